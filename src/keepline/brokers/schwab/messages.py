"""What Schwab's Trader API and market data send and take, typed: one struct per object.

Invariants: amounts and prices of orders, executions, balances and positions are Decimal, quotes and candles are floats;
an unknown word is kept; an account number never appears in a repr.

Sources: the Trader API's OpenAPI document 1.0.0 and the market data API's description, as kept by clients in the field.
"""

from datetime import datetime
from decimal import Decimal
from typing import ClassVar

from msgspec import Struct

from keepline.brokers.messages import Message, OpenStrEnum

__all__ = [
    "AccountInfo",
    "AccountNumber",
    "Activity",
    "AssetType",
    "Balances",
    "Candle",
    "CandlesAnswer",
    "Duration",
    "ExecutionLeg",
    "Instruction",
    "InstrumentInfo",
    "OrderInfo",
    "OrderLeg",
    "OrderRequest",
    "OrderStatus",
    "OrderType",
    "Placed",
    "PositionInfo",
    "Preview",
    "PreviewFinding",
    "PreviewFindings",
    "QuoteInfo",
    "QuoteNumbers",
    "SecuritiesAccount",
    "Session",
    "StreamerInfo",
    "UserPreference",
]


class OrderType(OpenStrEnum):
    """How an order is executed."""

    MARKET = "MARKET"
    LIMIT = "LIMIT"
    STOP = "STOP"
    STOP_LIMIT = "STOP_LIMIT"
    TRAILING_STOP = "TRAILING_STOP"
    CABINET = "CABINET"
    NON_MARKETABLE = "NON_MARKETABLE"
    MARKET_ON_CLOSE = "MARKET_ON_CLOSE"
    EXERCISE = "EXERCISE"
    TRAILING_STOP_LIMIT = "TRAILING_STOP_LIMIT"
    NET_DEBIT = "NET_DEBIT"
    NET_CREDIT = "NET_CREDIT"
    NET_ZERO = "NET_ZERO"
    LIMIT_ON_CLOSE = "LIMIT_ON_CLOSE"


class OrderStatus(OpenStrEnum):
    """What became of an order; the list has grown before."""

    AWAITING_PARENT_ORDER = "AWAITING_PARENT_ORDER"
    AWAITING_CONDITION = "AWAITING_CONDITION"
    AWAITING_STOP_CONDITION = "AWAITING_STOP_CONDITION"
    AWAITING_MANUAL_REVIEW = "AWAITING_MANUAL_REVIEW"
    ACCEPTED = "ACCEPTED"
    AWAITING_UR_OUT = "AWAITING_UR_OUT"
    PENDING_ACTIVATION = "PENDING_ACTIVATION"
    QUEUED = "QUEUED"
    WORKING = "WORKING"
    REJECTED = "REJECTED"
    PENDING_CANCEL = "PENDING_CANCEL"
    CANCELED = "CANCELED"
    PENDING_REPLACE = "PENDING_REPLACE"
    REPLACED = "REPLACED"
    FILLED = "FILLED"
    EXPIRED = "EXPIRED"
    NEW = "NEW"
    AWAITING_RELEASE_TIME = "AWAITING_RELEASE_TIME"
    PENDING_ACKNOWLEDGEMENT = "PENDING_ACKNOWLEDGEMENT"
    PENDING_RECALL = "PENDING_RECALL"
    UNKNOWN = "UNKNOWN"


class Instruction(OpenStrEnum):
    """What a leg does."""

    BUY = "BUY"
    SELL = "SELL"
    BUY_TO_COVER = "BUY_TO_COVER"
    SELL_SHORT = "SELL_SHORT"
    BUY_TO_OPEN = "BUY_TO_OPEN"
    BUY_TO_CLOSE = "BUY_TO_CLOSE"
    SELL_TO_OPEN = "SELL_TO_OPEN"
    SELL_TO_CLOSE = "SELL_TO_CLOSE"
    EXCHANGE = "EXCHANGE"
    SELL_SHORT_EXEMPT = "SELL_SHORT_EXEMPT"

    @property
    def buys(self) -> bool:
        """Whether it adds to a position."""
        return self.value.startswith("BUY")


class Session(OpenStrEnum):
    """When an order may be executed."""

    NORMAL = "NORMAL"
    AM = "AM"
    PM = "PM"
    SEAMLESS = "SEAMLESS"


class Duration(OpenStrEnum):
    """How long an order works."""

    DAY = "DAY"
    GOOD_TILL_CANCEL = "GOOD_TILL_CANCEL"
    FILL_OR_KILL = "FILL_OR_KILL"
    IMMEDIATE_OR_CANCEL = "IMMEDIATE_OR_CANCEL"
    END_OF_WEEK = "END_OF_WEEK"
    END_OF_MONTH = "END_OF_MONTH"
    NEXT_END_OF_MONTH = "NEXT_END_OF_MONTH"


class AssetType(OpenStrEnum):
    """What is traded."""

    EQUITY = "EQUITY"
    OPTION = "OPTION"
    INDEX = "INDEX"
    MUTUAL_FUND = "MUTUAL_FUND"
    CASH_EQUIVALENT = "CASH_EQUIVALENT"
    FIXED_INCOME = "FIXED_INCOME"
    CURRENCY = "CURRENCY"
    COLLECTIVE_INVESTMENT = "COLLECTIVE_INVESTMENT"
    FUTURE = "FUTURE"
    FOREX = "FOREX"


# ------------------------------------------------------------------------------------------------------------ requests


class OrderRequest(Struct, frozen=True, kw_only=True):
    """A new order of one leg. For spreads and brackets hand the API's own JSON over instead.

    Attributes:
        symbol: for example `AAPL`, of an option `AAPL  260116C00200000`.
        instruction: what it does.
        quantity: shares or contracts.
        type: how it is executed.
        price: of a limit and a stop limit order.
        stop_price: of a stop and a stop limit order.
        trail: dollars behind the market, of a trailing stop.
        session: when it may be executed.
        duration: how long it works.
        asset_type: `EQUITY` or `OPTION`.
    """

    symbol: str
    instruction: Instruction
    quantity: Decimal | int
    type: OrderType = OrderType.MARKET
    price: Decimal | None = None
    stop_price: Decimal | None = None
    trail: Decimal | None = None
    session: Session = Session.NORMAL
    duration: Duration = Duration.DAY
    asset_type: AssetType = AssetType.EQUITY


# ------------------------------------------------------------------------------------------------------------- answers


class AccountNumber(Message, frozen=True, kw_only=True):
    """An account's number and the hash that stands for it in paths."""

    account_number: str
    hash_value: str

    def __repr__(self) -> str:
        return "<AccountNumber>"


class InstrumentInfo(Message, frozen=True, kw_only=True):
    """What an order or a position is about."""

    symbol: str = ""
    asset_type: AssetType | None = None
    cusip: str | None = None
    description: str | None = None
    instrument_id: int | None = None


class OrderLeg(Message, frozen=True, kw_only=True):
    """One leg of an order."""

    instruction: Instruction
    instrument: InstrumentInfo
    quantity: Decimal = Decimal(0)
    leg_id: int | None = None
    position_effect: str | None = None


class ExecutionLeg(Message, frozen=True, kw_only=True):
    """A fill of one leg."""

    moments: ClassVar[tuple[str, ...]] = ("time",)

    quantity: Decimal
    price: Decimal
    time: datetime | None = None
    leg_id: int | None = None
    instrument_id: int | None = None


class Activity(Message, frozen=True, kw_only=True):
    """Something that happened to an order; an execution has legs."""

    activity_type: str = ""
    activity_id: int | None = None
    execution_type: str | None = None
    quantity: Decimal | None = None
    execution_legs: tuple[ExecutionLeg, ...] | None = None


class OrderInfo(Message, frozen=True, kw_only=True):
    """An order as Schwab tells it; a bracket has children."""

    moments: ClassVar[tuple[str, ...]] = ("entered_time", "close_time")

    order_id: int
    status: OrderStatus
    entered_time: datetime
    order_type: OrderType | None = None
    session: Session | None = None
    duration: Duration | None = None
    order_strategy_type: str | None = None
    complex_order_strategy_type: str | None = None
    quantity: Decimal | None = None
    filled_quantity: Decimal | None = None
    remaining_quantity: Decimal | None = None
    price: Decimal | None = None
    stop_price: Decimal | None = None
    stop_price_offset: Decimal | None = None
    order_leg_collection: tuple[OrderLeg, ...] | None = None
    order_activity_collection: tuple[Activity, ...] | None = None
    child_order_strategies: tuple["OrderInfo", ...] | None = None
    close_time: datetime | None = None
    status_description: str | None = None
    tag: str | None = None
    cancelable: bool | None = None
    editable: bool | None = None


class PositionInfo(Message, frozen=True, kw_only=True):
    """A position; long and short are counted apart."""

    instrument: InstrumentInfo
    long_quantity: Decimal = Decimal(0)
    short_quantity: Decimal = Decimal(0)
    average_price: Decimal | None = None
    market_value: Decimal | None = None


class Balances(Message, frozen=True, kw_only=True):
    """What an account is worth; which of them there are depends on the account's type."""

    liquidation_value: Decimal | None = None
    cash_balance: Decimal | None = None
    buying_power: Decimal | None = None
    equity: Decimal | None = None


class SecuritiesAccount(Message, frozen=True, kw_only=True):
    """An account with its balances, and its positions when they were asked for."""

    account_number: str
    type: str = ""
    is_closing_only_restricted: bool | None = None
    current_balances: Balances | None = None
    positions: tuple[PositionInfo, ...] | None = None

    def __repr__(self) -> str:
        return f"<SecuritiesAccount {self.type}, {len(self.positions or ())} positions>"


class AccountInfo(Message, frozen=True, kw_only=True):
    """How Schwab wraps an account."""

    securities_account: SecuritiesAccount


class Placed(Struct, frozen=True, kw_only=True):
    """What a 201 says of a new order.

    Attributes:
        order_id: from the Location field; None when there was none: list the orders and compare.
    """

    order_id: int | None = None


class PreviewFinding(Message, frozen=True, kw_only=True):
    """One thing that a preview has to say."""

    validation_rule_name: str | None = None
    message: str | None = None
    activity_message: str | None = None
    original_severity: str | None = None


class PreviewFindings(Message, frozen=True, kw_only=True):
    """What a preview has to say, by weight."""

    rejects: tuple[PreviewFinding, ...] | None = None
    warns: tuple[PreviewFinding, ...] | None = None
    reviews: tuple[PreviewFinding, ...] | None = None
    alerts: tuple[PreviewFinding, ...] | None = None
    accepts: tuple[PreviewFinding, ...] | None = None


class Preview(Message, frozen=True, kw_only=True):
    """What would become of an order."""

    order_id: int | None = None
    order_validation_result: PreviewFindings | None = None

    @property
    def rejects(self) -> tuple[PreviewFinding, ...]:
        """The reasons for which it would be refused."""
        found = self.order_validation_result
        return (found.rejects if found is not None else None) or ()


# years 1 to 9999, with a day to spare for every zone
_EARLIEST, _LATEST = -62_135_510_400_000, 253_402_214_400_000


def _check_instants(*told: int | None) -> None:
    for milliseconds in told:
        if milliseconds is not None and not _EARLIEST <= milliseconds <= _LATEST:
            raise ValueError("a time beyond the calendar")


class QuoteNumbers(Message, frozen=True, kw_only=True):
    """The numbers of a quote; times are epoch milliseconds."""

    bid_price: float | None = None
    ask_price: float | None = None
    last_price: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    total_volume: float | None = None
    mark: float | None = None
    open_price: float | None = None
    high_price: float | None = None
    low_price: float | None = None
    close_price: float | None = None
    quote_time: int | None = None
    trade_time: int | None = None

    def __post_init__(self) -> None:
        _check_instants(self.quote_time, self.trade_time)


class QuoteInfo(Message, frozen=True, kw_only=True):
    """A quote with what it is about."""

    symbol: str = ""
    asset_main_type: AssetType | None = None
    realtime: bool | None = None
    quote: QuoteNumbers | None = None


class Candle(Message, frozen=True, kw_only=True):
    """A bar; `datetime` is epoch milliseconds."""

    open: float
    high: float
    low: float
    close: float
    datetime: int
    volume: float = 0.0

    def __post_init__(self) -> None:
        _check_instants(self.datetime)


class CandlesAnswer(Message, frozen=True, kw_only=True):
    """Of `pricehistory`."""

    symbol: str = ""
    empty: bool = False
    candles: tuple[Candle, ...] | None = None


class StreamerInfo(Message, frozen=True, kw_only=True):
    """Where the streamer is and how to introduce oneself."""

    streamer_socket_url: str
    schwab_client_customer_id: str = ""
    schwab_client_correl_id: str = ""
    schwab_client_channel: str = ""
    schwab_client_function_id: str = ""

    def __repr__(self) -> str:
        return f"<StreamerInfo {self.streamer_socket_url}>"


class UserPreference(Message, frozen=True, kw_only=True):
    """Of `userPreference`: what the streamer needs."""

    streamer_info: tuple[StreamerInfo, ...] | None = None
