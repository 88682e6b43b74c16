"""Schwab's answers in our words, and our intents in Schwab's.

Invariants: pure functions; an unknown word becomes `UNKNOWN` or None with the raw word kept; ids become texts; a fill
has the same id however often it is read.
"""

from collections.abc import Iterable
from decimal import Decimal

from msgspec.structs import replace

from keepline.brokers.base import OrderIntent
from keepline.brokers.schwab.messages import (
    AssetType,
    Instruction,
    OrderInfo,
    OrderRequest,
    PositionInfo,
    SecuritiesAccount,
)
from keepline.brokers.schwab.messages import OrderStatus as Status
from keepline.brokers.schwab.messages import OrderType as Type
from keepline.errors import ConfigError
from keepline.model import Account, Fill, Order, OrderStatus, OrderType, Position, Side

__all__ = [
    "account_of",
    "asset_type_of",
    "closing_request",
    "fills_of",
    "order_of",
    "orders_of",
    "position_of",
    "replacement_of",
    "request_of",
]

_TYPES = {
    Type.MARKET: OrderType.MARKET,
    Type.LIMIT: OrderType.LIMIT,
    Type.STOP: OrderType.STOP,
    Type.STOP_LIMIT: OrderType.STOP_LIMIT,
    Type.TRAILING_STOP: OrderType.TRAILING_STOP,
}
_WIRE_TYPES = {ours: theirs for theirs, ours in _TYPES.items()}
_PRICES = {
    Type.LIMIT: ("price",),
    Type.STOP: ("stop_price",),
    Type.STOP_LIMIT: ("price", "stop_price"),
    Type.TRAILING_STOP: ("trail",),
}
_STATUSES = {
    Status.AWAITING_PARENT_ORDER: OrderStatus.PENDING,
    Status.AWAITING_CONDITION: OrderStatus.PENDING,
    Status.AWAITING_STOP_CONDITION: OrderStatus.OPEN,
    Status.AWAITING_MANUAL_REVIEW: OrderStatus.PENDING,
    Status.ACCEPTED: OrderStatus.OPEN,
    Status.AWAITING_UR_OUT: OrderStatus.OPEN,  # asked to be taken out, may still be filled
    Status.PENDING_ACTIVATION: OrderStatus.PENDING,
    Status.QUEUED: OrderStatus.OPEN,
    Status.WORKING: OrderStatus.OPEN,
    Status.REJECTED: OrderStatus.REJECTED,
    Status.PENDING_CANCEL: OrderStatus.OPEN,
    Status.CANCELED: OrderStatus.CANCELLED,
    Status.PENDING_REPLACE: OrderStatus.OPEN,
    Status.REPLACED: OrderStatus.CANCELLED,
    Status.FILLED: OrderStatus.FILLED,
    Status.EXPIRED: OrderStatus.EXPIRED,
    Status.NEW: OrderStatus.PENDING,
    Status.AWAITING_RELEASE_TIME: OrderStatus.PENDING,
    Status.PENDING_ACKNOWLEDGEMENT: OrderStatus.PENDING,
    Status.PENDING_RECALL: OrderStatus.OPEN,
}
_NO_BRACKETS = "Schwab knows no brackets by ticks: place the exits yourself, or a TRIGGER order as its own JSON"


def account_of(info: SecuritiesAccount) -> Account:
    """An account; its id is its number."""
    balance = info.current_balances.liquidation_value if info.current_balances else None
    restricted = info.is_closing_only_restricted
    return Account(
        id=info.account_number,
        name=info.type,
        balance=balance,
        can_trade=None if restricted is None else not restricted,
        simulated=False,
    )


def asset_type_of(symbol: str) -> AssetType:
    """What a symbol names: an option's has 21 characters, the last eight of them its strike."""
    return AssetType.OPTION if len(symbol) == 21 and symbol[-8:].isdigit() else AssetType.EQUITY


def order_of(info: OrderInfo, account: str) -> Order | None:
    """An order of one leg; None for a spread, which has no side. What is open and has fills is partially filled."""
    legs = info.order_leg_collection or ()
    if len(legs) != 1:
        return None
    leg, filled = legs[0], info.filled_quantity or Decimal(0)
    status = _STATUSES.get(info.status, OrderStatus.UNKNOWN)
    if status is OrderStatus.OPEN and filled > 0:
        status = OrderStatus.PARTIALLY_FILLED
    quantity = info.quantity if info.quantity is not None else leg.quantity
    return Order(
        id=str(info.order_id),
        account=account,
        instrument=leg.instrument.symbol,
        side=_side(leg.instruction),
        type=None if info.order_type is None else _TYPES.get(info.order_type),
        status=status,
        raw_status=info.status.value,
        quantity=quantity,
        filled=filled,
        limit_price=info.price,
        stop_price=info.stop_price,
        average_price=_average(info),
        tag=info.tag or "",
        entered_at=info.entered_time,
        updated_at=info.close_time,
    )


def orders_of(rows: Iterable[OrderInfo], account: str) -> tuple[Order, ...]:
    """All orders of one leg, the children of brackets too."""
    told = (order_of(info, account) for info in _with_children(rows))
    return tuple(order for order in told if order is not None)


def fills_of(rows: Iterable[OrderInfo], account: str) -> tuple[Fill, ...]:
    """The executions of orders, oldest first."""
    found = []
    for info in _with_children(rows):
        legs = info.order_leg_collection or ()
        sides = {leg.leg_id: (leg.instrument.symbol, _side(leg.instruction)) for leg in legs}
        for index, activity in enumerate(info.order_activity_collection or ()):
            mark = activity.activity_id if activity.activity_id is not None else index
            for number, execution in enumerate(activity.execution_legs or ()):
                first = next(iter(sides.values()), None)
                leg_of = sides.get(execution.leg_id, first)
                if leg_of is None:
                    continue
                fill = Fill(
                    id=f"{info.order_id}-{mark}-{number}",
                    order_id=str(info.order_id),
                    account=account,
                    instrument=leg_of[0],
                    side=leg_of[1],
                    quantity=execution.quantity,
                    price=execution.price,
                    at=execution.time or info.entered_time,
                )
                found.append(fill)
    return tuple(sorted(found, key=lambda fill: fill.at))


def position_of(info: PositionInfo, account: str) -> Position:
    """A position with its sign."""
    return Position(
        account=account,
        instrument=info.instrument.symbol,
        quantity=info.long_quantity - info.short_quantity,
        average_price=info.average_price,
    )


def request_of(intent: OrderIntent, *, held: Decimal | None = None) -> OrderRequest:
    """A new order.

    Args:
        intent: what is wanted.
        held: what the account holds of it: a sale of a stock that is not held is a short sale. None: a stock is
            bought and sold, nothing is sold short.

    Raises:
        ConfigError: Schwab has no such order.
    """
    if intent.side is None or intent.type is None or intent.quantity is None:
        raise ConfigError("a new order has side, type and quantity", key="side")
    if intent.take_profit_ticks is not None or intent.stop_loss_ticks is not None:
        key = "stop_loss_ticks" if intent.take_profit_ticks is None else "take_profit_ticks"
        raise ConfigError(_NO_BRACKETS, key=key)
    if intent.type not in _WIRE_TYPES:
        raise ConfigError(f"Schwab has no {intent.type.value} orders", key="type")
    return _request(intent, intent.side, intent.quantity, _WIRE_TYPES[intent.type], held)


def closing_request(intent: OrderIntent, held: Decimal) -> OrderRequest | None:
    """A market order that closes the position, or so much of it as the intent says; None when it is flat.

    Raises:
        ConfigError: more is to be closed than there is.
    """
    if held == 0:
        return None
    quantity = abs(held) if intent.quantity is None else intent.quantity
    if quantity > abs(held):
        raise ConfigError(f"{quantity} is more than the {abs(held)} that there are", key="quantity")
    side = Side.SELL if held > 0 else Side.BUY
    return _request(intent, side, quantity, Type.MARKET, held)


def replacement_of(intent: OrderIntent, old: OrderInfo) -> OrderRequest:
    """The order that takes the place of another: what the intent leaves open stays as it was.

    Without a quantity it is for what remains of the old one.

    Raises:
        ConfigError: the old order is none that can be replaced by one of a single leg.
    """
    legs = old.order_leg_collection or ()
    kind = old.order_type if intent.type is None else _WIRE_TYPES.get(intent.type)
    if len(legs) != 1 or kind not in _TYPES:
        raise ConfigError("the order has several legs or a type of its own", key="target_order_id")
    assert kind is not None  # None is no key
    leg = legs[0]
    rest = old.remaining_quantity if old.remaining_quantity is not None else leg.quantity
    request = OrderRequest(
        symbol=leg.instrument.symbol,
        instruction=leg.instruction,
        quantity=rest if intent.quantity is None else intent.quantity,
        type=kind,
        price=old.price if intent.limit_price is None else intent.limit_price,
        stop_price=old.stop_price if intent.stop_price is None else intent.stop_price,
        trail=old.stop_price_offset if intent.trail_price is None else intent.trail_price,
        asset_type=leg.instrument.asset_type or asset_type_of(leg.instrument.symbol),
    )
    wanted = _PRICES.get(kind, ())
    return replace(
        request,
        # Schwab tells prices of 0 for what an order does not have
        price=request.price if "price" in wanted else None,
        stop_price=request.stop_price if "stop_price" in wanted else None,
        trail=request.trail if "trail" in wanted else None,
        session=old.session or request.session,
        duration=old.duration or request.duration,
    )


def _request(
    intent: OrderIntent, side: Side, quantity: Decimal, kind: Type, held: Decimal | None
) -> OrderRequest:
    asset = asset_type_of(intent.instrument)
    return OrderRequest(
        symbol=intent.instrument,
        instruction=_instruction(asset, side, held),
        quantity=quantity,
        type=kind,
        price=intent.limit_price,
        stop_price=intent.stop_price,
        trail=intent.trail_price,
        asset_type=asset,
    )


def _instruction(asset: AssetType, side: Side, held: Decimal | None) -> Instruction:
    closes = held is not None and held * side.sign < 0
    if held is None and asset == AssetType.EQUITY:
        return Instruction.BUY if side is Side.BUY else Instruction.SELL
    if asset == AssetType.OPTION:
        return Instruction(f"{side.name}_TO_{'CLOSE' if closes else 'OPEN'}")
    if side is Side.BUY:
        return Instruction.BUY_TO_COVER if closes else Instruction.BUY
    return Instruction.SELL if closes else Instruction.SELL_SHORT


def _side(instruction: Instruction) -> Side:
    return Side.BUY if instruction.buys else Side.SELL


def _average(info: OrderInfo) -> Decimal | None:
    legs = [
        leg
        for activity in info.order_activity_collection or ()
        for leg in activity.execution_legs or ()
    ]
    quantity = sum((leg.quantity for leg in legs), Decimal(0))
    if quantity == 0:
        return None
    return sum((leg.quantity * leg.price for leg in legs), Decimal(0)) / quantity


def _with_children(rows: Iterable[OrderInfo]) -> Iterable[OrderInfo]:
    for row in rows:
        yield row
        yield from _with_children(row.child_order_strategies or ())
