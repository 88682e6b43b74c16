"""What arrives on ProjectX's streams in our words: an event in, values with their keys out.

Invariants: no event raises; what cannot be read, and a trade that was taken back, is a `Doubt` about an account, which
must then be asked; quotes are merged and books kept here, before anything may pass over a message, for a change that
was passed over would be lost.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias, cast

from msgspec import Struct

from keepline.brokers.projectx.depth import DepthBook
from keepline.brokers.projectx.messages import AccountInfo, OrderInfo, PositionInfo, TradeInfo
from keepline.brokers.projectx.quotes import QuoteMerger
from keepline.brokers.projectx.stream_messages import (
    DEPTH,
    MARKET_EVENTS,
    USER_EVENTS,
    DepthPayload,
    MarketPayload,
    QuotePayload,
    TradePayload,
    Unreadable,
    UserInfo,
    market_events,
    moment_of,
    user_events,
)
from keepline.brokers.projectx.words import (
    account_of,
    fill_of,
    market_trade_of,
    order_of,
    position_of,
)
from keepline.model import Account, DepthUpdate, Fill, MarketTrade, Order, Position, Quote

__all__ = ["Doubt", "Heard", "MarketReader", "Said", "UserReader"]

Said: TypeAlias = Order | Fill | Position | Account | Quote | MarketTrade | DepthUpdate
"""What a stream can tell."""


class Heard(Struct, frozen=True, gc=False):
    """A value that was told.

    Attributes:
        key: whose it is: an account's id or a contract.
        value: what was told.
    """

    key: str
    value: Said


class Doubt(Struct, frozen=True):
    """Something happened that the stream does not say: the broker must be asked.

    Attributes:
        channel: the event that was not understood.
        reason: why not.
        account: whom to ask about, None for every account.
        since: when what is in doubt happened, None for just now.
    """

    channel: str
    reason: str
    account: str | None = None
    since: datetime | None = None


class UserReader:
    """Reads the events of the user endpoint."""

    def read(self, channel: str, arguments: Sequence[Any]) -> list[Heard | Doubt]:
        """What an event says; nothing when it is none of ours.

        Args:
            channel: the event's name.
            arguments: plain values, one of them the event.
        """
        if channel not in USER_EVENTS:
            return []
        if not arguments:
            return [Doubt(channel, "it came without an argument")]
        return [
            Doubt(channel, event.reason, event.account)
            if isinstance(event, Unreadable)
            else _heard(channel, event.info)
            for event in user_events(channel, arguments[0])
        ]


def _heard(channel: str, info: UserInfo) -> Heard | Doubt:
    match info:
        case OrderInfo():
            return Heard(str(info.account_id), order_of(info))
        case TradeInfo(voided=True):
            reason = f"trade {info.id} was taken back"
            return Doubt(channel, reason, str(info.account_id), moment_of(info.creation_timestamp))
        case TradeInfo():
            return Heard(str(info.account_id), fill_of(info))
        case PositionInfo():
            return Heard(str(info.account_id), position_of(info))
        case AccountInfo():
            return Heard(str(info.id), account_of(info))


_NOTHING: Final[list[Heard | Doubt]] = []


class MarketReader:
    """Reads the events of the market endpoint on one connection.

    Args:
        quotes: where partial quotes are merged; shared by connections that overlap.
        levels: how deep the books are told.
    """

    def __init__(self, quotes: QuoteMerger, *, levels: int = 10) -> None:
        self._quotes = quotes
        self._levels = levels
        self._books: dict[str, DepthBook] = {}

    def read(
        self, channel: str, arguments: Sequence[Any], arrived: datetime
    ) -> Sequence[Heard | Doubt]:
        """What an event says; nothing when it is none of ours.

        Args:
            channel: the event's name.
            arguments: contract and payload, in the types of `MARKET_EVENTS` or plain.
            arrived: when, by our clock; taken where the broker does not say.
        """
        if len(arguments) != 2:
            return _NOTHING
        contract, payload = arguments
        if type(payload) is QuotePayload:  # the way of most messages
            return [self._quote(contract, payload, arrived)]
        if channel not in MARKET_EVENTS or not isinstance(contract, str):
            return _NOTHING
        entries = market_events(channel, payload)
        if isinstance(entries, Unreadable):
            return [Doubt(channel, entries.reason)]
        if channel == DEPTH:
            return self._depth(contract, cast(list[DepthPayload], entries), arrived)
        return [self._one(contract, entry, arrived) for entry in entries]

    def _one(self, contract: str, entry: MarketPayload, arrived: datetime) -> Heard:
        if isinstance(entry, TradePayload):
            return Heard(contract, market_trade_of(contract, entry, arrived))
        return self._quote(contract, cast(QuotePayload, entry), arrived)

    def _quote(self, contract: str, payload: QuotePayload, arrived: datetime) -> Heard:
        at = moment_of(payload.timestamp, payload.last_updated) or arrived
        return Heard(contract, self._quotes.apply(contract, payload, at))

    def book(self, contract: str) -> DepthBook | None:
        """A contract's book on this connection, None before its first event."""
        return self._books.get(contract)

    def _depth(
        self, contract: str, entries: list[DepthPayload], arrived: datetime
    ) -> Sequence[Heard | Doubt]:
        book = self._books.get(contract)
        if book is None:
            book = self._books[contract] = DepthBook(contract)
        if not book.apply(entries):
            return _NOTHING
        at = moment_of(entries[-1].timestamp) or arrived
        return [Heard(contract, book.update(at, self._levels))]
