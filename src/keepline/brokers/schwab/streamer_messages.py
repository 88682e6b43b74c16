"""What Schwab's streamer sends, typed: level-one quotes with all their fields, books, candles, lists, account activity.

Invariants: frozen; numbers are floats as on every quote, moments are aware; what cannot be read becomes `Unreadable`,
never an exception; an account number appears in no repr.

Sources: Schwab's Streamer API guide; recorded payloads of clients in the field for account activity.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from keepline.brokers.schwab.streamer_fields import (
    ACCOUNT_ACTIVITY,
    BOOKS,
    CHARTS,
    LEVEL_ONE,
    SCREENERS,
    field_name,
)
from keepline.model import Bar, Quote

__all__ = [
    "AccountActivity",
    "Book",
    "BookLevel",
    "BookShare",
    "Candlestick",
    "LevelOne",
    "Notice",
    "ScreenItem",
    "Screener",
    "StreamMessage",
    "Unreadable",
    "moment_of",
    "read_activity",
    "read_content",
]

Content: TypeAlias = Mapping[str, Any]

_WORDS_LIMIT = 200
_EARLIEST, _LATEST = (
    0,
    253_370_764_800_000,
)  # to the end of the year 9998: a day to spare for every zone


class LevelOne(Struct, frozen=True):
    """The whole quote of a symbol after a change.

    Attributes:
        service: for example `LEVELONE_EQUITIES`.
        symbol: as Schwab writes it.
        at: when the streamer sent it, None when it did not say.
        values: every field that was told on this connection, by name (`bid_price`, `total_volume`, …).
        changed: the names of those that this message brought.
        delayed: whether the prices are not real time, None when it was not said.
    """

    service: str
    symbol: str
    at: datetime | None
    values: Mapping[str, Any]
    changed: tuple[str, ...] = ()
    delayed: bool | None = None

    def quote(self, now: datetime) -> Quote:
        """In our words; `now` stands in where Schwab told no time."""
        told = [self._instant("quote_time"), self._instant("trade_time")]
        known = [moment for moment in told if moment is not None]
        return Quote(
            instrument=self.symbol,
            at=max(known) if known else self.at or now,
            bid=self._number("bid_price"),
            ask=self._number("ask_price"),
            last=self._number("last_price"),
            bid_size=self._number("bid_size"),
            ask_size=self._number("ask_size"),
            volume=self._number("total_volume"),
        )

    def _number(self, name: str) -> float | None:
        return _as_number(self.values.get(name))

    def _instant(self, name: str) -> datetime | None:
        return moment_of(self.values.get(name))


class BookShare(Struct, frozen=True):
    """What one exchange or market maker stands for at a price."""

    maker: str
    size: float
    at: int | None = None


class BookLevel(Struct, frozen=True):
    """One price of a book."""

    price: float
    size: float
    makers: tuple[BookShare, ...] = ()


class Book(Struct, frozen=True):
    """A whole book: it takes the place of the one before."""

    service: str
    symbol: str
    at: datetime | None
    bids: tuple[BookLevel, ...] = ()
    asks: tuple[BookLevel, ...] = ()


class Candlestick(Struct, frozen=True):
    """A candle of one minute.

    Attributes:
        bar: the candle; `bar.at` is its minute.
        sequence: counts the minutes of a day, None for futures.
    """

    service: str
    symbol: str
    bar: Bar
    sequence: int | None = None


class ScreenItem(Struct, frozen=True, rename="camel"):
    """A line of a screener's list."""

    symbol: str
    description: str = ""
    last_price: float | None = None
    net_change: float | None = None
    net_percent_change: float | None = None
    market_share: float | None = None
    total_volume: float | None = None
    trades: float | None = None
    volume: float | None = None


class Screener(Struct, frozen=True):
    """A whole list: what is not in it left it."""

    service: str
    key: str
    at: datetime | None
    sort_field: str = ""
    frequency: int | None = None
    items: tuple[ScreenItem, ...] = ()


class AccountActivity(Struct, frozen=True):
    """Something happened to an order of an account. Its data is documented loosely: ask for the order.

    Attributes:
        sequence: the message's number, None when it had none; a repeated message has the same.
        account: the account's number, "" when it was not said.
        kind: `SUBSCRIBED`, `OrderCreated`, `OrderAccepted`, `OrderFillCompleted`, `OrderUROutCompleted`, ….
        data: the text that came with it.
        order_id: the order's, "" when the data does not tell it.
    """

    sequence: int | None
    account: str
    kind: str
    data: str = ""
    order_id: str = ""

    def __repr__(self) -> str:  # the data and the account are the owner's own
        return f"<AccountActivity {self.kind} {self.order_id or 'no order'}>"


class Notice(Struct, frozen=True):
    """Something that the streamer says of itself."""

    code: int | None
    words: str


class Unreadable(Struct, frozen=True):
    """A frame, or a part of one, that is none of the streamer's; the connection goes on."""

    reason: str


StreamMessage: TypeAlias = (
    LevelOne | Book | Candlestick | Screener | AccountActivity | Notice | Unreadable
)
"""What a topic of the streamer delivers."""


def moment_of(milliseconds: object) -> datetime | None:
    """Epoch milliseconds as a moment; None when it is none."""
    number = _as_number(milliseconds)
    if number is None or not _EARLIEST < number < _LATEST:
        return None
    return datetime.fromtimestamp(number / 1000, UTC)


def read_content(service: str, key: str, content: Content, at: datetime | None) -> StreamMessage:
    """A line of a `data` message of any service but the level-one ones, whose fields are merged first."""
    reader = _READERS.get(service)
    if reader is None:
        return Unreadable(f"the service {service[:40]!r} is not known")
    named = {field_name(service, name): value for name, value in content.items()}
    try:
        return reader(service, key, named, at)
    except (TypeError, ValueError, KeyError, msgspec.ValidationError) as problem:
        words = str(problem)[:_WORDS_LIMIT]
        return Unreadable(f"{service} {key[:40]}: {type(problem).__name__}: {words}")


def read_activity(content: Content) -> AccountActivity:
    """A line of ACCT_ACTIVITY: `seq`, `1` the account, `2` the kind, `3` the data; whatever is missing is empty."""
    sequence = content.get("seq")
    data = content.get("3")
    text = data if isinstance(data, str) else "" if data is None else _as_json(data)
    return AccountActivity(
        sequence if type(sequence) is int else None,
        _as_text(content.get("1")),
        _as_text(content.get("2")) or "unknown",
        text,
        _order_id(text),
    )


class _ActivityData(Struct):
    """The part of an activity's data that every kind has had so far."""

    SchwabOrderID: str | int | None = None


def _order_id(data: str) -> str:
    try:
        told = msgspec.json.decode(data, type=_ActivityData).SchwabOrderID
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return ""
    text = str(told) if told is not None else ""
    return text if text.isascii() and text.isdecimal() and len(text) < 20 else ""


def _book(service: str, key: str, named: Content, at: datetime | None) -> Book:
    return Book(
        service,
        key,
        moment_of(named.get("book_time")) or at,
        _levels(named.get("bids")),
        _levels(named.get("asks")),
    )


def _levels(told: object) -> tuple[BookLevel, ...]:
    return tuple(
        BookLevel(_number(line["0"]), _number(line["1"]), _shares(line.get("3")))
        for line in _lines(told)
    )


def _shares(told: object) -> tuple[BookShare, ...]:
    return tuple(
        BookShare(_as_text(line["0"]), _number(line["1"]), _whole(line.get("2")))
        for line in _lines(told)
    )


def _candle(service: str, key: str, named: Content, _: datetime | None) -> Candlestick:
    minute = moment_of(named["chart_time"])
    if minute is None:
        raise ValueError("chart_time is no time")
    open_, high, low, close, volume = (
        _number(named[name]) for name in ("open", "high", "low", "close", "volume")
    )
    bar = Bar(at=minute, open=open_, high=high, low=low, close=close, volume=volume)
    return Candlestick(service, key, bar, _whole(named.get("sequence")))


def _screener(service: str, key: str, named: Content, at: datetime | None) -> Screener:
    items = msgspec.convert(named.get("items") or (), tuple[ScreenItem, ...])
    return Screener(
        service,
        key,
        moment_of(named.get("timestamp")) or at,
        _as_text(named.get("sort_field")),
        _whole(named.get("frequency")),
        items,
    )


_Reader: TypeAlias = Callable[[str, str, Content, datetime | None], StreamMessage]
_READERS: Mapping[str, _Reader] = {
    **dict.fromkeys(BOOKS, _book),
    **dict.fromkeys(CHARTS, _candle),
    **dict.fromkeys(SCREENERS, _screener),
}
assert not _READERS.keys() & {*LEVEL_ONE, ACCOUNT_ACTIVITY}  # those have readers of their own


def _lines(told: object) -> Sequence[Content]:
    if told is None:
        return ()
    if not isinstance(told, list) or not all(isinstance(line, dict) for line in told):
        raise TypeError("a list of objects is expected")
    return told


def _as_number(value: object) -> float | None:
    """A finite number; Schwab also writes some as text, and `NaN` for none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _number(value: object) -> float:
    number = _as_number(value)
    if number is None:
        raise ValueError(f"a number is expected, not {str(value)[:40]!r}")
    return number


def _whole(value: object) -> int | None:
    number = _as_number(value)
    return None if number is None else int(number)


def _as_text(value: object) -> str:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
