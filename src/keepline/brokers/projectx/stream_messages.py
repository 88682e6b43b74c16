"""What ProjectX's two streams send, typed: events of the user endpoint and of the market endpoint.

Invariants: an unknown value of an enum is kept; market events decode in one pass into plain structs without a line of
Python per message; an event of the user endpoint that cannot be read is told as `Unreadable` and never raises, for what
was in it must then be asked for.

Sources: gateway.docs.projectx.com (real time data); clients of the Gateway for what it does not say: trades and depth
come as arrays, user events flat or as `{"action": 1, "data": {…}}`, `GatewayLogout` exists.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from keepline.brokers.messages import OpenIntEnum
from keepline.brokers.projectx.dotnet import as_json_writes
from keepline.brokers.projectx.messages import AccountInfo, OrderInfo, PositionInfo, TradeInfo
from keepline.stream.binding import Types

__all__ = [
    "ACCOUNT",
    "DEPTH",
    "LOGOUT",
    "MARKET_EVENTS",
    "MARKET_TRADE",
    "ORDER",
    "POSITION",
    "QUOTE",
    "TRADE",
    "USER_EVENTS",
    "DepthPayload",
    "DepthType",
    "MarketPayload",
    "QuotePayload",
    "TradeLogType",
    "TradePayload",
    "Unreadable",
    "UserEvent",
    "each",
    "market_events",
    "market_types",
    "moment_of",
    "stream_types",
    "user_events",
]

ACCOUNT = "GatewayUserAccount"
ORDER = "GatewayUserOrder"
POSITION = "GatewayUserPosition"
TRADE = "GatewayUserTrade"
QUOTE = "GatewayQuote"
MARKET_TRADE = "GatewayTrade"
DEPTH = "GatewayDepth"
LOGOUT = "GatewayLogout"
"""Undocumented, on both endpoints: another session of the same user seems to have taken the place of this one."""

_FIRST_REAL_YEAR = 1970  # before it lies .NET's "no moment": 0001-01-01


class DepthType(OpenIntEnum):
    """What an entry of a depth event is about (DomType)."""

    UNKNOWN = 0
    ASK = 1
    BID = 2
    BEST_ASK = 3
    BEST_BID = 4
    TRADE = 5
    RESET = 6
    LOW = 7
    HIGH = 8
    NEW_BEST_BID = 9
    NEW_BEST_ASK = 10
    FILL = 11


class TradeLogType(OpenIntEnum):
    """Who took the price in a market trade; not the numbers of `OrderSide`'s words, though the same ones."""

    BUY = 0
    SELL = 1


# -------------------------------------------------------------------------------------------------------------- market


class QuotePayload(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """A quote: only what has changed is there, so it has to be merged.

    Attributes:
        symbol: the symbol's id (`F.US.EP`), not the contract's; that is the event's first argument.
        volume: traded in the session so far.
    """

    symbol: str | None = None
    symbol_name: str | None = None
    last_price: float | None = None
    best_bid: float | None = None
    best_ask: float | None = None
    change: float | None = None
    change_percent: float | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None
    volume: float | None = None
    last_updated: datetime | None = None
    timestamp: datetime | None = None


class TradePayload(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """A trade of anyone's on the market."""

    price: float
    volume: float
    type: TradeLogType | None = None
    symbol_id: str | None = None
    timestamp: datetime | None = None


class DepthPayload(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """One entry of a depth event; `volume` is what the price's level has now, not what was added to it."""

    type: DepthType
    price: float = 0.0
    volume: float | None = None
    current_volume: float | None = None
    timestamp: datetime | None = None


MARKET_EVENTS: Mapping[str, tuple[Any, ...]] = {
    QUOTE: (str, QuotePayload),
    MARKET_TRADE: (str, list[TradePayload] | TradePayload),
    DEPTH: (str, list[DepthPayload] | DepthPayload),
}
"""Event to the types of its arguments, for a decoder of the hub protocol in JSON."""

MarketPayload: TypeAlias = QuotePayload | TradePayload | DepthPayload
_MARKET_KINDS: Mapping[str, type[MarketPayload]] = {
    QUOTE: QuotePayload,
    MARKET_TRADE: TradePayload,
    DEPTH: DepthPayload,
}


def market_types(encoding: str = "json") -> Mapping[str, tuple[Any, ...]]:
    """`MARKET_EVENTS` where it fits: in MessagePack members have other names, and come as plain values."""
    return MARKET_EVENTS if encoding == "json" else dict.fromkeys(MARKET_EVENTS, ())


def stream_types(encoding: str = "json") -> Types:
    """What decodes the events of both endpoints: market events into types, user events into plain values."""
    types = Types()
    for channel, kinds in market_types(encoding).items():
        if kinds:
            types.expect(channel, *kinds)
    return types


def market_events(channel: str, payload: Any) -> "list[MarketPayload] | Unreadable":
    """The entries of a market event, out of typed or plain values."""
    kind = _MARKET_KINDS[channel]
    try:
        return [
            item
            if isinstance(item, kind)
            else msgspec.convert(as_json_writes(item, kind), kind, strict=False)
            for item in each(payload)
        ]
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        return Unreadable(channel, str(error)[:200])


def each(payload: Any) -> list[Any]:
    """The entries of an event that comes as a list or alone."""
    return payload if isinstance(payload, list) else [payload]


def moment_of(*candidates: datetime | None) -> datetime | None:
    """The first moment that is one, in UTC where it has no zone; None when none of them is."""
    for moment in candidates:
        if moment is not None and moment.year >= _FIRST_REAL_YEAR:
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


# ---------------------------------------------------------------------------------------------------------------- user

UserInfo: TypeAlias = AccountInfo | OrderInfo | PositionInfo | TradeInfo


class UserEvent(Struct, frozen=True):
    """An event of the user endpoint.

    Attributes:
        info: what it is about, as the REST API tells it too.
        action: the number of the wrapped form; its meaning is documented nowhere. None in the flat form.
    """

    info: UserInfo
    action: int | None = None


class Unreadable(Struct, frozen=True):
    """An event that does not have its form: something happened, and it has to be asked what.

    Attributes:
        channel: the event's name.
        reason: what is wrong, with no value out of it.
        account: whose it was, None when even that cannot be read.
    """

    channel: str
    reason: str
    account: str | None = None


USER_EVENTS: Mapping[str, type[UserInfo]] = {
    ACCOUNT: AccountInfo,
    ORDER: OrderInfo,
    POSITION: PositionInfo,
    TRADE: TradeInfo,
}
"""Event to what it is about."""


def user_events(channel: str, payload: Any) -> list[UserEvent | Unreadable]:
    """The events in the argument of a user event: flat, wrapped, or a list of either.

    Args:
        channel: one of `USER_EVENTS`.
        payload: plain values, as a decoder without types gives them.
    """
    kind = USER_EVENTS[channel]
    return [_read(channel, kind, item, action) for item, action in _unwrapped(payload, None)]


def _unwrapped(payload: Any, action: int | None) -> Iterator[tuple[Any, int | None]]:
    if isinstance(payload, list):
        for item in payload:
            yield from _unwrapped(item, action)
    elif isinstance(payload, dict) and (_names(payload) & {"data", "id"}) == {"data"}:
        wrapped = {_name(key): value for key, value in payload.items()}
        number, data = wrapped.get("action"), wrapped["data"]
        known = number if isinstance(number, int) and not isinstance(number, bool) else None
        # only one wrapping is known; a second one is no event
        yield from ((item, known) for item in each(data))
    else:
        yield payload, action


def _names(payload: dict[Any, Any]) -> set[Any]:
    return set(map(_name, payload))


def _name(key: Any) -> Any:
    return key.lower() if isinstance(key, str) else key


def _read(
    channel: str, kind: type[UserInfo], item: Any, action: int | None
) -> UserEvent | Unreadable:
    try:
        return UserEvent(msgspec.convert(item, kind), action)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        problem = error
    plain = as_json_writes(item, kind)
    try:
        return UserEvent(msgspec.convert(plain, kind), action)
    except (msgspec.ValidationError, ValueError, OverflowError):
        return Unreadable(channel, str(problem)[:200], _account(plain))


def _account(item: Any) -> str | None:
    number = item.get("accountId") if isinstance(item, dict) else None
    return str(number) if isinstance(number, int) and not isinstance(number, bool) else None
