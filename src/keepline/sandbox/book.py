"""The sandbox's trading words and the rules by which an order gets filled.

Invariants: values are frozen, so that an event is a photograph; amounts and prices are Decimal; an order that is over
never changes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import Enum

from keepline.sandbox.prices import Quote

__all__ = [
    "Account",
    "Event",
    "Fill",
    "Kind",
    "Order",
    "Position",
    "Reason",
    "Rejected",
    "Side",
    "Status",
    "Terms",
    "Ticket",
    "look",
]


class Side(Enum):
    """Which way; the value is the sign of the position it makes."""

    BUY = 1
    SELL = -1

    @property
    def other(self) -> "Side":
        """The way back."""
        return Side(-self.value)


class Kind(Enum):
    """How an order wants to be filled."""

    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop-limit"
    TRAILING_STOP = "trailing stop"
    JOIN_BID = "join bid"
    JOIN_ASK = "join ask"


class Status(Enum):
    """Where an order stands."""

    SUSPENDED = "a bracket that waits for its entry"
    WORKING = "working"
    FILLED = "filled"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    REPLACED = "replaced"

    @property
    def is_over(self) -> bool:
        """Whether it stands there for good."""
        return self not in (Status.SUSPENDED, Status.WORKING)


class Reason(Enum):
    """Why the venue says no; each broker has its own number or words for it."""

    ACCOUNT = "the account is unknown"
    ACCOUNT_CLOSED = "the account may not trade"
    LISTING = "the instrument is unknown"
    LISTING_CLOSED = "the instrument is not active"
    KIND = "the type or side of the order is unknown"
    SIZE = "the size must be a whole number from 1 up"
    PRICE = "a price is missing or not positive"
    TICK = "the price is not a whole number of ticks"
    BRACKET = "the sign of a bracket's ticks does not fit the side"
    TAG = "the tag was used before"
    FUNDS = "the account's funds do not suffice"
    ORDER = "the order is unknown"
    OVER = "the order is over"
    FILLED = "the order is filled"
    POSITION = "there is no such position"
    CLOSE_SIZE = "the position is smaller than that"


class Rejected(Exception):
    """The venue's no."""

    def __init__(self, reason: Reason, words: str = "") -> None:
        super().__init__(words or reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A trading account.

    Attributes:
        id: ProjectX's number, Schwab's account number, as text.
        name: as people say it.
        cash: at the beginning.
        hash: by which Schwab's addresses name it; empty at ProjectX.
        can_trade: orders are taken.
    """

    id: str
    name: str
    cash: Decimal
    hash: str = ""
    can_trade: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a client asks for.

    Attributes:
        account: its id.
        listing: the instrument's id.
        side: which way.
        kind: how.
        size: units.
        limit: the worst price.
        stop: the price that wakes it up.
        trail: how far a trailing stop stays behind, in points.
        tag: the client's word for it.
        stop_loss: ticks from the entry to a bracket: below 0 for a long position, above for a short one.
        take_profit: ticks to the other bracket, with the other sign.
        expires_at: epoch seconds, None for never.
        details: the broker's own words that come back with the order.
    """

    account: str
    listing: str
    side: Side
    kind: Kind
    size: Decimal
    limit: Decimal | None = None
    stop: Decimal | None = None
    trail: Decimal | None = None
    tag: str = ""
    stop_loss: int | None = None
    take_profit: int | None = None
    expires_at: float | None = None
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Ticket):
    """A ticket that the venue took, as it stands.

    Attributes:
        id: unique in the venue.
        status: where it stands.
        filled: units.
        average: price of what was filled.
        entered_at: epoch seconds.
        updated_at: of the last change, None before the first.
        triggered: the stop price was reached.
        resumes_at: before this it gets no fill.
        parent: the entry of a bracket.
        replaced_by: the order in its place.
        words: why it was rejected.
    """

    id: int
    status: Status = Status.WORKING
    filled: Decimal = Decimal(0)
    average: Decimal | None = None
    entered_at: float
    updated_at: float | None = None
    triggered: bool = False
    resumes_at: float = 0.0
    parent: int | None = None
    replaced_by: int | None = None
    words: str = ""

    @property
    def left(self) -> Decimal:
        """Units that are not filled."""
        return self.size - self.filled


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """One execution; `profit` is None when it only opened."""

    id: int
    order: int
    account: str
    listing: str
    side: Side
    size: Decimal
    price: Decimal
    fees: Decimal
    profit: Decimal | None
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What an account holds of an instrument; `size` is signed, 0 when it was closed just now."""

    id: int
    account: str
    listing: str
    size: Decimal
    average: Decimal
    opened_at: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: numbers are without a gap, from 1."""

    number: int
    at: float
    item: Order | Fill | Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What faults make of one request.

    Attributes:
        duplicates: what a tag that was used before gets: `refuse`, `accept`, or `original` (the first order again).
        part: the share that is filled at once, whatever the market; None leaves it to the market.
        pause: seconds before the rest is filled.
        skew: seconds that the venue's clock is ahead.
        location: whether Schwab's answer names the new order.
    """

    duplicates: str = "refuse"
    part: float | None = None
    pause: float = 0.0
    skew: float = 0.0
    location: bool = True


def look(order: Order, quote: Quote) -> tuple[Order, Decimal | None]:
    """The order after it saw the market, and the price at which it can be filled now."""
    if order.kind in _STOPPED:
        order = _woken(_trailed(order, quote), quote)
        if not order.triggered:
            return order, None
    price = quote.ask if order.side is Side.BUY else quote.bid
    if order.kind not in _LIMITED or order.limit is None:
        return order, price
    return order, price if (price - order.limit) * order.side.value <= 0 else None


_STOPPED = (Kind.STOP, Kind.STOP_LIMIT, Kind.TRAILING_STOP)
_LIMITED = (Kind.LIMIT, Kind.STOP_LIMIT, Kind.JOIN_BID, Kind.JOIN_ASK)


def _trailed(order: Order, quote: Quote) -> Order:
    if order.kind is not Kind.TRAILING_STOP or order.trail is None or order.triggered:
        return order
    stop = quote.last + order.trail * order.side.value
    closer = order.stop is None or (stop - order.stop) * order.side.value < 0
    return replace(order, stop=stop) if closer else order


def _woken(order: Order, quote: Quote) -> Order:
    if order.stop is None or order.triggered:
        return order
    reached = (quote.last - order.stop) * order.side.value >= 0
    return replace(order, triggered=True) if reached else order
