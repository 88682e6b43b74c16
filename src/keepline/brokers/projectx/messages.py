"""What ProjectX's Gateway sends and takes, typed: one struct per object of its REST API.

Invariants: ids are whole numbers, amounts and prices of orders, trades and positions are Decimal, bars are floats; an
unknown value of an enum is kept; a null list is an empty one.

Source: the Gateway API's OpenAPI document (`/swagger/v1/swagger.json`) and gateway.docs.projectx.com, read in 2025-09.
"""

from datetime import datetime
from decimal import Decimal
from typing import ClassVar

from msgspec import Struct

from keepline.brokers.messages import Message, OpenIntEnum

__all__ = [
    "AccountInfo",
    "AccountsAnswer",
    "BarAnswer",
    "BarUnit",
    "BarsAnswer",
    "Bracket",
    "ContractAnswer",
    "ContractInfo",
    "ContractsAnswer",
    "OrderChange",
    "OrderInfo",
    "OrderRequest",
    "OrderSide",
    "OrderStatus",
    "OrderType",
    "OrdersAnswer",
    "PlaceAnswer",
    "PositionInfo",
    "PositionType",
    "PositionsAnswer",
    "TradeInfo",
    "TradesAnswer",
]


class OrderSide(OpenIntEnum):
    """Which side of the market; `BID` buys."""

    BID = 0
    ASK = 1


class OrderType(OpenIntEnum):
    """How an order is executed; a stop is 4, not 3."""

    UNKNOWN = 0
    LIMIT = 1
    MARKET = 2
    STOP_LIMIT = 3
    STOP = 4
    TRAILING_STOP = 5
    JOIN_BID = 6
    JOIN_ASK = 7


class OrderStatus(OpenIntEnum):
    """What became of an order."""

    NONE = 0
    OPEN = 1
    FILLED = 2
    CANCELLED = 3
    EXPIRED = 4
    REJECTED = 5
    PENDING = 6
    PENDING_CANCELLATION = 7
    SUSPENDED = 8


class PositionType(OpenIntEnum):
    """Which way a position points."""

    UNDEFINED = 0
    LONG = 1
    SHORT = 2


class BarUnit(OpenIntEnum):
    """What a bar's length is counted in."""

    UNSPECIFIED = 0
    SECOND = 1
    MINUTE = 2
    HOUR = 3
    DAY = 4
    WEEK = 5
    MONTH = 6


# ------------------------------------------------------------------------------------------------------------ requests


class Bracket(Struct, frozen=True, kw_only=True):
    """A child order that follows a fill.

    Attributes:
        ticks: from the fill's price, with its sign: a long position's stop loss is below (negative) and its take profit
            above (positive), a short one's the other way round. The gateway refuses the wrong sign (seen 2026-08).
        type: how the child is executed: `LIMIT` for a take profit, `STOP` or `TRAILING_STOP` for a stop loss.
    """

    ticks: int
    type: OrderType


class OrderRequest(Struct, frozen=True, kw_only=True):
    """A new order.

    Attributes:
        account_id: whose.
        contract_id: of what, for example `CON.F.US.MNQ.U26`.
        type: how it is executed.
        side: `BID` buys, `ASK` sells.
        size: contracts.
        limit_price: of a limit and a stop limit order.
        stop_price: of a stop and a stop limit order.
        trail_price: of a trailing stop.
        custom_tag: comes back in searches and events; unique in the account. A key to look the order up by, no proof
            that a second one is refused.
        stop_loss: child order; the account must be in Auto-OCO mode.
        take_profit: child order, as `stop_loss`.
        linked_order_id: sent only when given: a null is refused by some gateways.
    """

    account_id: int
    contract_id: str
    type: OrderType
    side: OrderSide
    size: Decimal | int
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_price: Decimal | None = None
    custom_tag: str = ""
    stop_loss: Bracket | None = None
    take_profit: Bracket | None = None
    linked_order_id: int | None = None


class OrderChange(Struct, frozen=True, kw_only=True):
    """What is to be different about an order; None leaves it as it is.

    Attributes:
        account_id: whose.
        order_id: which.
        size: contracts.
        limit_price, stop_price, trail_price: the new prices.
        contract_id: of what, so that prices can be held against its tick; not sent.
    """

    account_id: int
    order_id: int
    size: Decimal | int | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_price: Decimal | None = None
    contract_id: str = ""


# ------------------------------------------------------------------------------------------------------------- answers


class AccountInfo(Message, frozen=True, kw_only=True):
    """An account as `Account/search` tells it."""

    id: int
    name: str
    balance: Decimal | None = None
    can_trade: bool | None = None
    is_visible: bool | None = None
    simulated: bool | None = None


class ContractInfo(Message, frozen=True, kw_only=True):
    """A contract: `CON.F.US.MNQ.U26` with its tick."""

    id: str
    name: str = ""
    description: str = ""
    tick_size: Decimal | None = None
    tick_value: Decimal | None = None
    active_contract: bool | None = None
    symbol_id: str = ""


_BAR = {"at": "t", "open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}


class BarAnswer(Message, frozen=True, kw_only=True, rename=_BAR):
    """A bar; whether `at` is its beginning or its end is not documented."""

    moments: ClassVar[tuple[str, ...]] = ("at",)

    at: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float = 0.0


class OrderInfo(Message, frozen=True, kw_only=True):
    """An order as searches and events tell it."""

    moments: ClassVar[tuple[str, ...]] = ("creation_timestamp", "update_timestamp")

    id: int
    account_id: int
    contract_id: str
    creation_timestamp: datetime
    status: OrderStatus
    type: OrderType
    side: OrderSide
    size: Decimal
    symbol_id: str | None = None
    update_timestamp: datetime | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    fill_volume: Decimal | None = None
    filled_price: Decimal | None = None
    custom_tag: str | None = None


class PositionInfo(Message, frozen=True, kw_only=True):
    """An open position; its size has no sign, `type` says which way it points."""

    moments: ClassVar[tuple[str, ...]] = ("creation_timestamp",)

    account_id: int
    contract_id: str
    type: PositionType
    size: Decimal
    id: int | None = None
    creation_timestamp: datetime | None = None
    average_price: Decimal | None = None


class TradeInfo(Message, frozen=True, kw_only=True):
    """A half-turn: one fill of an order. Without `profit_and_loss` it opened a position."""

    moments: ClassVar[tuple[str, ...]] = ("creation_timestamp",)

    id: int
    account_id: int
    contract_id: str
    creation_timestamp: datetime
    price: Decimal
    side: OrderSide
    size: Decimal
    order_id: int
    profit_and_loss: Decimal | None = None
    fees: Decimal | None = None
    voided: bool = False


class AccountsAnswer(Message, frozen=True, kw_only=True):
    """Of `Account/search`."""

    accounts: tuple[AccountInfo, ...] | None = None


class ContractsAnswer(Message, frozen=True, kw_only=True):
    """Of `Contract/search` and `Contract/available`."""

    contracts: tuple[ContractInfo, ...] | None = None


class ContractAnswer(Message, frozen=True, kw_only=True):
    """Of `Contract/searchById`."""

    contract: ContractInfo | None = None


class BarsAnswer(Message, frozen=True, kw_only=True):
    """Of `History/retrieveBars`."""

    bars: tuple[BarAnswer, ...] | None = None


class OrdersAnswer(Message, frozen=True, kw_only=True):
    """Of `Order/search` and `Order/searchOpen`."""

    orders: tuple[OrderInfo, ...] | None = None


class PositionsAnswer(Message, frozen=True, kw_only=True):
    """Of `Position/searchOpen`."""

    positions: tuple[PositionInfo, ...] | None = None


class TradesAnswer(Message, frozen=True, kw_only=True):
    """Of `Trade/search`."""

    trades: tuple[TradeInfo, ...] | None = None


class PlaceAnswer(Message, frozen=True, kw_only=True):
    """Of `Order/place`; a success may come without an id."""

    order_id: int | None = None
