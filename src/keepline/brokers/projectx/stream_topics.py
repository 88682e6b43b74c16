"""What can be asked of ProjectX's two endpoints: the topics, and when data of them is expected.

Invariants: an account is a whole number on the wire; orders, fills and positions drop nothing, neither do trades of the
market; of quotes and books the newest is enough; silence of an account that does nothing is normal.

Source: the realtime pages of gateway.docs.projectx.com, read in 2025-09.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from keepline.brokers.checks import id_number, text
from keepline.brokers.projectx.stream_messages import (
    ACCOUNT,
    DEPTH,
    MARKET_TRADE,
    ORDER,
    POSITION,
    QUOTE,
    TRADE,
)
from keepline.errors import ConfigError
from keepline.model import Account, DepthUpdate, Fill, MarketTrade, Order, Position, Quote
from keepline.stream.calendar import SessionCalendar
from keepline.stream.port import Policy, Topic

__all__ = ["account_ids", "contract_ids", "market_topic", "user_topics", "venue_time"]

_USER: Final = {ORDER: "Orders", POSITION: "Positions", TRADE: "Trades"}
_MARKET: Final[dict[str, tuple[str, Policy]]] = {
    QUOTE: ("ContractQuotes", "conflate"),
    MARKET_TRADE: ("ContractTrades", "never"),
    DEPTH: ("ContractMarketDepth", "conflate"),
}


def user_topics(accounts: Sequence[str]) -> list[Topic]:
    """Everything about these accounts, the trades before the positions that they move.

    Raises:
        ConfigError: an id is no whole number.
    """
    topics = [Topic(ACCOUNT, ("SubscribeAccounts",), ("UnsubscribeAccounts",))]
    for account in accounts:
        number = id_number(account, "accounts")
        topics += [
            Topic(channel, (f"Subscribe{name}", number), (f"Unsubscribe{name}", number), account)
            for channel, name in _USER.items()
        ]
    return topics


def market_topic(
    channel: str, contract: str, *, cadence: float | None, session: SessionCalendar | None
) -> Topic:
    """One kind of data of one contract.

    Args:
        channel: the event that brings it.
        contract: such as `CON.F.US.MNQ.U26`.
        cadence: seconds within which data is expected, None when it may be silent for long.
        session: when data is expected at all.
    """
    name, policy = _MARKET[channel]
    return Topic(
        channel,
        (f"Subscribe{name}", contract),
        (f"Unsubscribe{name}", contract),
        contract,
        policy,
        cadence,
        session,
    )


def venue_time(channel: str, arguments: Sequence[Any]) -> float | None:
    """When the broker says that something happened (epoch seconds), None where it does not."""
    match arguments[-1]:
        case Quote(at=at) | DepthUpdate(at=at) | MarketTrade(at=at) | Fill(at=at):
            return at.timestamp()
        case Order(updated_at=at) if at is not None:
            return at.timestamp()
        case Order() | Position() | Account():
            return None
    return None


def account_ids(accounts: Iterable[str | int]) -> tuple[str, ...]:
    """Ids of accounts as texts, each once.

    Raises:
        ConfigError: one is no whole number.
    """
    if isinstance(accounts, str):
        raise ConfigError(f"is a list of account ids, not the text {accounts!r}", key="accounts")
    return tuple(dict.fromkeys(str(id_number(account, "accounts")) for account in accounts))


def contract_ids(contracts: Iterable[str]) -> tuple[str, ...]:
    """Ids of contracts, each once.

    Raises:
        ConfigError: a text was given where a list is needed, or one is no text.
    """
    if isinstance(contracts, str):
        raise ConfigError(f"is a list of contract ids, not the text {contracts!r}", key="contracts")
    return tuple(dict.fromkeys(text(contract, "contracts") for contract in contracts))
