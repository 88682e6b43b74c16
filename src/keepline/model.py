"""Trading words, the same for every broker: accounts, instruments, orders, fills, positions, bars and quotes.

Invariants: every value is frozen; amounts that money hangs on are `Decimal`, market data is `float`; every instant is
an aware `datetime`; an id is the broker's own, as text. Nothing here knows a broker.
"""

import enum
from datetime import datetime
from decimal import Decimal

from msgspec import Struct

__all__ = [
    "Account",
    "Bar",
    "DepthLevel",
    "DepthUpdate",
    "Fill",
    "Instrument",
    "MarketTrade",
    "Order",
    "OrderStatus",
    "OrderType",
    "Position",
    "Quote",
    "Side",
]


class Side(enum.Enum):
    """Which way an order goes."""

    BUY = "buy"
    SELL = "sell"

    @property
    def sign(self) -> int:
        """+1 for a buy, -1 for a sell: what a fill does to a position."""
        return 1 if self is Side.BUY else -1

    @property
    def opposite(self) -> "Side":
        """The other way."""
        return Side.SELL if self is Side.BUY else Side.BUY


class OrderType(enum.Enum):
    """How an order is priced."""

    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"
    TRAILING_STOP = "trailing_stop"
    JOIN_BID = "join_bid"
    JOIN_ASK = "join_ask"


class OrderStatus(enum.Enum):
    """Where an order stands at the broker; a status of the broker's that has no word here is `UNKNOWN`."""

    PENDING = "pending"
    OPEN = "open"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    SUSPENDED = "suspended"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether nothing will happen to the order any more."""
        return self in _FINAL


_FINAL = frozenset(
    {OrderStatus.FILLED, OrderStatus.CANCELLED, OrderStatus.EXPIRED, OrderStatus.REJECTED}
)


class Account(Struct, frozen=True, kw_only=True):
    """An account as the broker tells it; None where the broker does not say."""

    id: str
    name: str = ""
    balance: Decimal | None = None
    can_trade: bool | None = None
    simulated: bool | None = None


class Instrument(Struct, frozen=True, kw_only=True):
    """Something that can be traded.

    Attributes:
        id: the broker's key, for example `CON.F.US.MNQ.U26`; the symbol where the broker has no other.
        tick_size: the step of its price, None when the broker does not say.
        tick_value: what one step is worth, in the account's currency.
        active: whether it can be traded now, None when the broker does not say.
    """

    id: str
    symbol: str
    name: str = ""
    tick_size: Decimal | None = None
    tick_value: Decimal | None = None
    active: bool | None = None


class Order(Struct, frozen=True, kw_only=True):
    """An order as the broker tells it.

    Attributes:
        type: None for a type of the broker's that has no word here.
        raw_status: the broker's own word or number.
        tag: the client's mark that came back with it, "" when there is none.
        entered_at: when the broker took it in, by the broker's clock.
    """

    id: str
    account: str
    instrument: str
    side: Side
    type: OrderType | None
    status: OrderStatus
    raw_status: str = ""
    quantity: Decimal
    filled: Decimal = Decimal(0)
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    average_price: Decimal | None = None
    tag: str = ""
    entered_at: datetime
    updated_at: datetime | None = None


class Fill(Struct, frozen=True, kw_only=True):
    """A trade of ours; `id` is the broker's and never comes twice, so it tells repeats apart."""

    id: str
    order_id: str
    account: str
    instrument: str
    side: Side
    quantity: Decimal
    price: Decimal
    fees: Decimal | None = None
    at: datetime


class Position(Struct, frozen=True, kw_only=True):
    """What an account holds of an instrument; `quantity` is negative for a short position."""

    account: str
    instrument: str
    quantity: Decimal
    average_price: Decimal | None = None


class Bar(Struct, frozen=True, kw_only=True):
    """One bar of a price history; `at` is the label that the broker gives it."""

    at: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float


class Quote(Struct, frozen=True, kw_only=True):
    """Prices of an instrument at one moment; None where the broker does not say.

    Attributes:
        last: price of the last trade.
        volume: traded since the session began, not by the last trade.
        open, high, low: of the session.
    """

    instrument: str
    at: datetime
    bid: float | None = None
    ask: float | None = None
    last: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    volume: float | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None


class MarketTrade(Struct, frozen=True, kw_only=True):
    """A trade on the market, anyone's.

    Attributes:
        side: of the one who took the price; None where the broker does not say.
    """

    instrument: str
    at: datetime
    price: float
    size: float
    side: Side | None = None


class DepthLevel(Struct, frozen=True, gc=False):
    """One price of a book and all that is offered at it."""

    price: float
    size: float


class DepthUpdate(Struct, frozen=True, kw_only=True):
    """The book of an instrument after a change, best prices first; whole by itself, so an older one may be passed over.

    Attributes:
        bids: from the highest price down, as deep as was asked for.
        asks: from the lowest price up.
    """

    instrument: str
    at: datetime
    bids: tuple[DepthLevel, ...]
    asks: tuple[DepthLevel, ...]

    @property
    def best_bid(self) -> float | None:
        """The highest price that someone pays, None in an empty book."""
        return self.bids[0].price if self.bids else None

    @property
    def best_ask(self) -> float | None:
        """The lowest price at which someone sells, None in an empty book."""
        return self.asks[0].price if self.asks else None

    @property
    def is_crossed(self) -> bool:
        """Whether the book says that someone pays more than another one asks: between two messages, or damaged."""
        return bool(self.bids and self.asks) and self.bids[0].price >= self.asks[0].price
