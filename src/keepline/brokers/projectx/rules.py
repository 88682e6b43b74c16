"""An order for ProjectX, looked at and put into the words of its API; nothing here is sent.

Invariants: what ProjectX would refuse for its form is refused here, with the field's name and the reason; a field that
was not given is not in the body (a null is refused by some gateways).
"""

from decimal import Decimal
from typing import Any

from keepline.brokers.checks import amount, id_number, number, price, text, wire_number
from keepline.brokers.projectx.messages import (
    Bracket,
    OrderChange,
    OrderRequest,
    OrderSide,
    OrderType,
)
from keepline.errors import ConfigError

__all__ = ["change_body", "close_body", "order_body"]

_NEEDED: dict[OrderType, tuple[str, ...]] = {
    OrderType.LIMIT: ("limit_price",),
    OrderType.MARKET: (),
    OrderType.STOP_LIMIT: ("limit_price", "stop_price"),
    OrderType.STOP: ("stop_price",),
    OrderType.TRAILING_STOP: ("trail_price",),
    OrderType.JOIN_BID: (),
    OrderType.JOIN_ASK: (),
}
_PRICES = ("limit_price", "stop_price", "trail_price")
_WIRE = {"limit_price": "limitPrice", "stop_price": "stopPrice", "trail_price": "trailPrice"}
_STOPS = (OrderType.STOP, OrderType.TRAILING_STOP)


def order_body(order: OrderRequest, tick: Decimal | None) -> dict[str, Any]:
    """The JSON of `Order/place`.

    Args:
        order: what is wanted.
        tick: the contract's, None when it is not known.

    Raises:
        ConfigError: a field makes no sense, is missing or not needed; names it.
    """
    if not isinstance(order, OrderRequest):
        raise ConfigError(f"is an OrderRequest, not a {type(order).__name__}", key="order")
    kind, side = _kind(order.type), _side(order.side)
    body = {
        "accountId": id_number(order.account_id, "account_id"),
        "contractId": text(order.contract_id, "contract_id"),
        "type": int(kind),
        "side": int(side),
        "size": wire_number(amount(order.size, "size", whole=True)),
    }
    for name in _PRICES:
        if getattr(order, name) is None and name in _NEEDED[kind]:
            raise ConfigError(f"is missing: a {_words(kind)} order needs it", key=name)
        if getattr(order, name) is not None and name not in _NEEDED[kind]:
            raise ConfigError(f"does not belong to a {_words(kind)} order", key=name)
    body |= _prices(order, tick)
    if order.custom_tag:
        body["customTag"] = text(order.custom_tag, "custom_tag")
    if order.linked_order_id is not None:
        body["linkedOrderId"] = id_number(order.linked_order_id, "linked_order_id")
    return body | _brackets(order, side)


def change_body(change: OrderChange, tick: Decimal | None) -> dict[str, Any]:
    """The JSON of `Order/modify`.

    Raises:
        ConfigError: nothing is to change, or a field makes no sense; names it.
    """
    if not isinstance(change, OrderChange):
        raise ConfigError(f"is an OrderChange, not a {type(change).__name__}", key="change")
    body: dict[str, Any] = {
        "accountId": id_number(change.account_id, "account_id"),
        "orderId": id_number(change.order_id, "order_id"),
    }
    wanted = _prices(change, tick)
    if change.size is not None:
        wanted["size"] = wire_number(amount(change.size, "size", whole=True))
    if not wanted:
        raise ConfigError("nothing to change: give a size or a price", key="size")
    return body | wanted


def close_body(account_id: object, contract_id: object, size: object = None) -> dict[str, Any]:
    """The JSON of `Position/closeContract`, and with a size of `partialCloseContract`.

    Raises:
        ConfigError: a field makes no sense; names it.
    """
    body: dict[str, Any] = {
        "accountId": id_number(account_id, "account_id"),
        "contractId": text(contract_id, "contract_id"),
    }
    if size is not None:
        body["size"] = wire_number(amount(size, "size", whole=True))
    return body


def _kind(value: object) -> OrderType:
    if isinstance(value, bool) or not isinstance(value, int) or value not in _NEEDED:
        known = ", ".join(kind.name for kind in _NEEDED)
        raise ConfigError(f"is one of {known}, not {value!r}", key="type")
    return OrderType(value)


def _side(value: object) -> OrderSide:
    if isinstance(value, bool) or not isinstance(value, int) or value not in (0, 1):
        raise ConfigError(
            f"is OrderSide.BID (buy) or OrderSide.ASK (sell), not {value!r}", key="side"
        )
    return OrderSide(value)


def _prices(order: OrderRequest | OrderChange, tick: Decimal | None) -> dict[str, int | float]:
    found = {}
    for name in _PRICES:
        value = getattr(order, name)
        if value is None:
            continue
        # a trailing distance has no sign; a price may be below zero (oil, April 2020)
        checked = price(value, name, tick=tick, above_zero=name == "trail_price")
        found[_WIRE[name]] = wire_number(checked)
    return found


def _brackets(order: OrderRequest, side: OrderSide) -> dict[str, Any]:
    above = 1 if side == OrderSide.BID else -1
    found = {}
    if order.stop_loss is not None:
        found["stopLossBracket"] = _bracket(order.stop_loss, "stop_loss", _STOPS, -above)
    if order.take_profit is not None:
        kinds = (OrderType.LIMIT,)
        found["takeProfitBracket"] = _bracket(order.take_profit, "take_profit", kinds, above)
    return found


def _bracket(bracket: Bracket, key: str, kinds: tuple[OrderType, ...], sign: int) -> dict[str, int]:
    if not isinstance(bracket, Bracket):
        raise ConfigError(f"is a Bracket, not {bracket!r:.80}", key=key)
    ticks = number(bracket.ticks, f"{key}.ticks")
    if ticks != ticks.to_integral_value() or ticks * sign <= 0:
        where = "above 0" if sign > 0 else "below 0"
        way = "long" if (sign > 0) == (key == "take_profit") else "short"
        raise ConfigError(
            f"is a whole number {where} for a {way} position, not {ticks}", key=f"{key}.ticks"
        )
    if bracket.type not in kinds:
        names = " or ".join(kind.name for kind in kinds)
        raise ConfigError(f"is {names}, not {bracket.type!r}", key=f"{key}.type")
    return {"ticks": int(ticks), "type": int(bracket.type)}


def _words(kind: OrderType) -> str:
    return kind.name.lower().replace("_", " ")
