"""ProjectX's answers in our words, and our intents in ProjectX's.

Invariants: pure functions; an unknown number becomes `UNKNOWN` or None with the raw number kept; ids become texts.
"""

from datetime import datetime
from decimal import Decimal

from keepline.brokers.base import OrderIntent
from keepline.brokers.checks import id_number
from keepline.brokers.projectx.messages import (
    AccountInfo,
    Bracket,
    ContractInfo,
    OrderChange,
    OrderInfo,
    OrderRequest,
    OrderSide,
    PositionInfo,
    PositionType,
    TradeInfo,
)
from keepline.brokers.projectx.messages import OrderStatus as Status
from keepline.brokers.projectx.messages import OrderType as Type
from keepline.brokers.projectx.stream_messages import TradeLogType, TradePayload, moment_of
from keepline.errors import ConfigError
from keepline.model import (
    Account,
    Fill,
    Instrument,
    MarketTrade,
    Order,
    OrderStatus,
    OrderType,
    Position,
    Side,
)

__all__ = [
    "account_of",
    "change_of",
    "fill_of",
    "instrument_of",
    "market_trade_of",
    "order_of",
    "position_of",
    "request_of",
]

_TYPES = {
    Type.LIMIT: OrderType.LIMIT,
    Type.MARKET: OrderType.MARKET,
    Type.STOP_LIMIT: OrderType.STOP_LIMIT,
    Type.STOP: OrderType.STOP,
    Type.TRAILING_STOP: OrderType.TRAILING_STOP,
    Type.JOIN_BID: OrderType.JOIN_BID,
    Type.JOIN_ASK: OrderType.JOIN_ASK,
}
_WIRE_TYPES = {ours: theirs for theirs, ours in _TYPES.items()}
_STATUSES = {
    Status.OPEN: OrderStatus.OPEN,
    Status.FILLED: OrderStatus.FILLED,
    Status.CANCELLED: OrderStatus.CANCELLED,
    Status.EXPIRED: OrderStatus.EXPIRED,
    Status.REJECTED: OrderStatus.REJECTED,
    Status.PENDING: OrderStatus.PENDING,
    Status.PENDING_CANCELLATION: OrderStatus.OPEN,  # it may still be filled
    Status.SUSPENDED: OrderStatus.SUSPENDED,
}
_TAKERS = {TradeLogType.BUY: Side.BUY, TradeLogType.SELL: Side.SELL}


def account_of(info: AccountInfo) -> Account:
    """An account."""
    return Account(
        id=str(info.id),
        name=info.name,
        balance=info.balance,
        can_trade=info.can_trade,
        simulated=info.simulated,
    )


def instrument_of(info: ContractInfo) -> Instrument:
    """A contract; its symbol is its short name, such as MNQU6."""
    return Instrument(
        id=info.id,
        symbol=info.name or info.id,
        name=info.description,
        tick_size=info.tick_size,
        tick_value=info.tick_value,
        active=info.active_contract,
    )


def order_of(info: OrderInfo) -> Order:
    """An order; what is open and has fills is partially filled."""
    status = _STATUSES.get(info.status, OrderStatus.UNKNOWN)
    filled = info.fill_volume or Decimal(0)
    if status is OrderStatus.OPEN and filled > 0:
        status = OrderStatus.PARTIALLY_FILLED
    return Order(
        id=str(info.id),
        account=str(info.account_id),
        instrument=info.contract_id,
        side=_side(info.side),
        type=_TYPES.get(info.type),
        status=status,
        raw_status=info.status.name,
        quantity=info.size,
        filled=filled,
        limit_price=info.limit_price,
        stop_price=info.stop_price,
        average_price=info.filled_price,
        tag=info.custom_tag or "",
        entered_at=info.creation_timestamp,
        updated_at=info.update_timestamp,
    )


def fill_of(info: TradeInfo) -> Fill:
    """A half-turn."""
    return Fill(
        id=str(info.id),
        order_id=str(info.order_id),
        account=str(info.account_id),
        instrument=info.contract_id,
        side=_side(info.side),
        quantity=info.size,
        price=info.price,
        fees=info.fees,
        at=info.creation_timestamp,
    )


def position_of(info: PositionInfo) -> Position:
    """A position with its sign."""
    sign = -1 if info.type == PositionType.SHORT else 1
    return Position(
        account=str(info.account_id),
        instrument=info.contract_id,
        quantity=sign * info.size,
        average_price=info.average_price,
    )


def market_trade_of(contract: str, trade: TradePayload, arrived: datetime) -> MarketTrade:
    """A trade on the market; when it was is told by the broker, else it is when it arrived."""
    return MarketTrade(
        instrument=contract,
        at=moment_of(trade.timestamp) or arrived,
        price=trade.price,
        size=trade.volume,
        side=_TAKERS.get(trade.type) if trade.type is not None else None,
    )


def request_of(intent: OrderIntent) -> OrderRequest:
    """A new order with the intent's id as its tag.

    Raises:
        ConfigError: what the intent leaves open is needed.
    """
    if intent.side is None or intent.type is None or intent.quantity is None:
        raise ConfigError("a new order has side, type and quantity", key="side")
    side = OrderSide.BID if intent.side is Side.BUY else OrderSide.ASK
    above = intent.side.sign
    stop, target = intent.stop_loss_ticks, intent.take_profit_ticks
    return OrderRequest(
        account_id=id_number(intent.account, "account"),
        contract_id=intent.instrument,
        type=_WIRE_TYPES[intent.type],
        side=side,
        size=intent.quantity,
        limit_price=intent.limit_price,
        stop_price=intent.stop_price,
        trail_price=intent.trail_price,
        custom_tag=intent.id,
        stop_loss=None if stop is None else Bracket(ticks=-above * stop, type=Type.STOP),
        take_profit=None if target is None else Bracket(ticks=above * target, type=Type.LIMIT),
    )


def change_of(intent: OrderIntent) -> OrderChange:
    """A change of a working order."""
    return OrderChange(
        account_id=id_number(intent.account, "account"),
        order_id=id_number(intent.target_order_id, "target_order_id"),
        size=intent.quantity,
        limit_price=intent.limit_price,
        stop_price=intent.stop_price,
        trail_price=intent.trail_price,
        contract_id=intent.instrument,
    )


def _side(side: OrderSide) -> Side:
    return Side.BUY if side == OrderSide.BID else Side.SELL
