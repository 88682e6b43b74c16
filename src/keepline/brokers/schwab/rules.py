"""An order for Schwab, looked at and put into the words of its API; nothing here is sent.

Invariants: what Schwab would refuse for its form is refused here, with the field's name and the reason; prices go out
as texts, digit by digit as the caller wrote them.
"""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from keepline.brokers.checks import amount, id_number, number, price, text, wire_number
from keepline.brokers.schwab.messages import (
    AssetType,
    Duration,
    Instruction,
    OrderRequest,
    OrderType,
    Session,
)
from keepline.errors import ConfigError

__all__ = ["order_body", "order_id_in", "tick_of"]

_NEEDED: dict[OrderType, tuple[str, ...]] = {
    OrderType.MARKET: (),
    OrderType.LIMIT: ("price",),
    OrderType.STOP: ("stop_price",),
    OrderType.STOP_LIMIT: ("price", "stop_price"),
    OrderType.TRAILING_STOP: ("trail",),
    OrderType.MARKET_ON_CLOSE: (),
    OrderType.LIMIT_ON_CLOSE: ("price",),
}
_STOCK = ("BUY", "SELL", "BUY_TO_COVER", "SELL_SHORT")
_OPTION = ("BUY_TO_OPEN", "BUY_TO_CLOSE", "SELL_TO_OPEN", "SELL_TO_CLOSE")
_INSTRUCTIONS: dict[AssetType, tuple[str, ...]] = {
    AssetType.EQUITY: _STOCK,
    AssetType.OPTION: _OPTION,
}
_CENT, _HUNDREDTH = Decimal("0.01"), Decimal("0.0001")


def tick_of(asset_type: AssetType, value: Decimal) -> Decimal:
    """The smallest step of a price: a cent, of a stock below a dollar a hundredth of one (SEC rule 612)."""
    return _HUNDREDTH if asset_type == AssetType.EQUITY and abs(value) < 1 else _CENT


def order_body(order: OrderRequest | Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a new order; the API's own JSON goes through as it is, if it names a type and legs.

    Raises:
        ConfigError: a field makes no sense, is missing or not needed; names it.
    """
    if isinstance(order, Mapping):
        return _own_json(order)
    if not isinstance(order, OrderRequest):
        raise ConfigError(f"is an OrderRequest or JSON, not {type(order).__name__}", key="order")
    kind: object = order.type
    needed = _NEEDED.get(order.type) if isinstance(kind, str) else None
    if needed is None:
        names = ", ".join(kind.name for kind in _NEEDED)
        raise ConfigError(f"is one of {names}, not {order.type!r}", key="type")
    body = {
        "orderType": str(order.type),
        "session": _word(order.session, Session, "session"),
        "duration": _word(order.duration, Duration, "duration"),
        "orderStrategyType": "SINGLE",
        "complexOrderStrategyType": "NONE",
        "orderLegCollection": [_leg(order)],
    }
    for name in ("price", "stop_price", "trail"):
        words = str(order.type).lower().replace("_", " ")
        if getattr(order, name) is None and name in needed:
            raise ConfigError(f"is missing: a {words} order needs it", key=name)
        if getattr(order, name) is not None and name not in needed:
            raise ConfigError(f"does not belong to a {words} order", key=name)
    return body | _prices(order)


def order_id_in(location: str) -> int | None:
    """The order's id in a Location field, None when it has none.

    `https://api.schwabapi.com/trader/v1/accounts/HASH/orders/1001` names the order 1001.
    """
    try:
        path = urlsplit(location.strip()).path
    except ValueError:
        return None
    head, _, last = path.rstrip("/").rpartition("/")
    try:
        return id_number(last, "Location") if head.endswith("/orders") else None
    except ConfigError:
        return None


def _own_json(order: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("orderType", "orderStrategyType"):
        if not isinstance(order.get(key), str):
            raise ConfigError("is missing in the order's JSON", key=key)
    legs, children = order.get("orderLegCollection"), order.get("childOrderStrategies")
    if not legs and not children:
        raise ConfigError("is missing in the order's JSON", key="orderLegCollection")
    for leg in _objects(legs, "orderLegCollection"):
        if "quantity" in leg:
            amount(leg["quantity"], "orderLegCollection.quantity")
    for child in _objects(children, "childOrderStrategies"):
        _own_json(child)
    try:
        json.dumps(order, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"is no JSON: {error}", key="order") from None
    return dict(order)


def _objects(value: object, key: str) -> Sequence[Mapping[str, Any]]:
    rows = value if isinstance(value, list | tuple) else () if value is None else (value,)
    if not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError("is a list of objects", key=key)
    return rows


def _leg(order: OrderRequest) -> dict[str, Any]:
    kind: object = order.asset_type
    allowed = _INSTRUCTIONS.get(order.asset_type) if isinstance(kind, str) else None
    if allowed is None:
        raise ConfigError(f"is EQUITY or OPTION, not {order.asset_type!r}", key="asset_type")
    if order.instruction not in allowed:
        words = str(order.asset_type).lower()
        raise ConfigError(
            f"of an {words} is one of {', '.join(allowed)}, not {order.instruction!r}",
            key="instruction",
        )
    return {
        "instruction": str(order.instruction),
        "quantity": wire_number(amount(order.quantity, "quantity", whole=True)),
        "instrument": {
            "symbol": text(order.symbol, "symbol"),
            "assetType": str(order.asset_type),
        },
    }


def _prices(order: OrderRequest) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, wire in (("price", "price"), ("stop_price", "stopPrice")):
        if getattr(order, name) is not None:
            found[wire] = f"{_price(order, name):f}"
    if order.trail is not None:
        found["stopPriceOffset"] = wire_number(_price(order, "trail"))
        found["stopPriceLinkType"] = "VALUE"
        # a sell order trails what it would get, a buy order what it would pay
        found["stopPriceLinkBasis"] = "ASK" if Instruction(order.instruction).buys else "BID"
    return found


def _price(order: OrderRequest, name: str) -> Decimal:
    value = number(getattr(order, name), name)
    return price(value, name, tick=tick_of(order.asset_type, value), above_zero=True)


def _word(value: object, kind: type[Session] | type[Duration], key: str) -> str:
    if value not in list(kind):
        raise ConfigError(f"is one of {', '.join(kind)}, not {value!r}", key=key)
    return str(value)
