"""The shapes of ProjectX's REST API: what each endpoint takes and how the market's values are told.

Invariants: a request of another shape is a problem document, never a guess (a number as text is no number); what is
told carries the real API's names, kinds and numbers.

Sources: the Gateway API's OpenAPI document; its samples for the form of moments.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from msgspec import Meta, Struct

from keepline.sandbox.book import Account, Fill, Kind, Order, Position, Side, Status
from keepline.sandbox.listings import Listing
from keepline.sandbox.prices import Bar
from keepline.sandbox.venue import Reply

__all__ = [
    "KINDS",
    "SIDES",
    "AccountBody",
    "AccountsBody",
    "BarsBody",
    "BracketBody",
    "CancelBody",
    "CloseBody",
    "ContractBody",
    "ContractsBody",
    "LiveBody",
    "ModifyBody",
    "OrdersBody",
    "PartialCloseBody",
    "PlaceBody",
    "TradesBody",
    "account_told",
    "bar_told",
    "contract_told",
    "envelope",
    "epoch",
    "order_told",
    "position_told",
    "problem",
    "trade_told",
]

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]

KINDS: Mapping[int, Kind] = {
    1: Kind.LIMIT,
    2: Kind.MARKET,
    3: Kind.STOP_LIMIT,
    4: Kind.STOP,
    5: Kind.TRAILING_STOP,
    6: Kind.JOIN_BID,
    7: Kind.JOIN_ASK,
}
"""ProjectX's `OrderType`."""
SIDES: Mapping[int, Side] = {0: Side.BUY, 1: Side.SELL}
"""ProjectX's `OrderSide`: 0 is Bid, which buys."""

_KIND_NUMBERS = {kind: number for number, kind in KINDS.items()}
_SIDE_NUMBERS = {side: number for number, side in SIDES.items()}
_STATUS_NUMBERS = {
    Status.WORKING: 1,
    Status.FILLED: 2,
    Status.CANCELLED: 3,
    Status.REPLACED: 3,
    Status.EXPIRED: 4,
    Status.REJECTED: 5,
    Status.SUSPENDED: 8,
}


class AccountsBody(Struct):
    """Of `Account/search`."""

    onlyActiveAccounts: bool


class ContractsBody(Struct):
    """Of `Contract/search`."""

    live: bool
    searchText: str | None = None


class ContractBody(Struct):
    """Of `Contract/searchById`."""

    contractId: str


class LiveBody(Struct):
    """Of `Contract/available`."""

    live: bool


class BarsBody(Struct):
    """Of `History/retrieveBars`, all required."""

    contractId: str
    live: bool
    startTime: datetime
    endTime: datetime
    unit: Int32
    unitNumber: Int32
    limit: Int32
    includePartialBar: bool


class BracketBody(Struct):
    """A child of an order."""

    ticks: Int32
    type: Int32


class PlaceBody(Struct):
    """Of `Order/place`."""

    accountId: Int32
    contractId: str
    type: Int32
    side: Int32
    size: Int32
    limitPrice: float | None = None
    stopPrice: float | None = None
    trailPrice: float | None = None
    customTag: str | None = None
    stopLossBracket: BracketBody | None = None
    takeProfitBracket: BracketBody | None = None


class CancelBody(Struct):
    """Of `Order/cancel`."""

    accountId: Int32
    orderId: int


class ModifyBody(Struct):
    """Of `Order/modify`."""

    accountId: Int32
    orderId: int
    size: Int32 | None = None
    limitPrice: float | None = None
    stopPrice: float | None = None
    trailPrice: float | None = None


class AccountBody(Struct):
    """Of `Order/searchOpen` and `Position/searchOpen`."""

    accountId: Int32


class OrdersBody(Struct):
    """Of `Order/search`."""

    accountId: Int32
    startTimestamp: datetime
    endTimestamp: datetime | None = None


class TradesBody(Struct):
    """Of `Trade/search`."""

    accountId: Int32
    startTimestamp: datetime | None = None
    endTimestamp: datetime | None = None


class CloseBody(Struct):
    """Of `Position/closeContract`."""

    accountId: Int32
    contractId: str


class PartialCloseBody(Struct):
    """Of `Position/partialCloseContract`."""

    accountId: Int32
    contractId: str
    size: Int32


def epoch(moment: datetime) -> float:
    """Epoch seconds of a moment on the wire; one without a zone is UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def envelope(code: int = 0, words: str | None = None, **more: object) -> dict[str, object]:
    """The answer of every endpoint: the fields of its own and how it went."""
    return {**more, "success": code == 0, "errorCode": code, "errorMessage": words}


def problem(error: Exception) -> Reply:
    """ASP.NET's answer to a request that cannot be read."""
    words, _, path = str(error).partition(" - at `")
    where = path.rstrip("`") or "$"
    body = {
        "type": "https://tools.ietf.org/html/rfc9110#section-15.5.1",
        "title": "One or more validation errors occurred.",
        "status": 400,
        "errors": {where: [words]},
    }
    return Reply(400, body, {"Content-Type": "application/problem+json"})


def account_told(account: Account, cash: Decimal) -> dict[str, object]:
    """An account."""
    return {
        "id": int(account.id),
        "name": account.name,
        "balance": float(cash),
        "canTrade": account.can_trade,
        "isVisible": account.can_trade,
        "simulated": True,
    }


def contract_told(listing: Listing) -> dict[str, object]:
    """A contract."""
    return {
        "id": listing.id,
        "name": listing.name,
        "description": listing.description,
        "tickSize": float(listing.tick),
        "tickValue": float(listing.tick_value),
        "activeContract": listing.active,
        "symbolId": listing.symbol,
    }


def bar_told(bar: Bar) -> dict[str, object]:
    """A bar, named by its beginning."""
    return {
        "t": _moment(bar.at),
        "o": float(bar.open),
        "h": float(bar.high),
        "l": float(bar.low),
        "c": float(bar.close),
        "v": bar.volume,
    }


def order_told(order: Order, listing: Listing, *, skew: float) -> dict[str, object]:
    """An order (OrderModel)."""
    return {
        "id": order.id,
        "accountId": int(order.account),
        "contractId": order.listing,
        "symbolId": listing.symbol,
        "creationTimestamp": _moment(order.entered_at + skew),
        "updateTimestamp": None if order.updated_at is None else _moment(order.updated_at + skew),
        "status": _STATUS_NUMBERS[order.status],
        "type": _KIND_NUMBERS[order.kind],
        "side": _SIDE_NUMBERS[order.side],
        "size": int(order.size),
        "limitPrice": _price(order.limit),
        "stopPrice": _price(order.stop),
        "fillVolume": int(order.filled),
        "filledPrice": _price(order.average),
        "customTag": order.tag or None,
    }


def trade_told(fill: Fill, *, skew: float) -> dict[str, object]:
    """A half-turn; one that only opened has no profit."""
    return {
        "id": fill.id,
        "accountId": int(fill.account),
        "contractId": fill.listing,
        "creationTimestamp": _moment(fill.at + skew),
        "price": float(fill.price),
        "profitAndLoss": _price(fill.profit),
        "fees": float(fill.fees),
        "side": _SIDE_NUMBERS[fill.side],
        "size": int(fill.size),
        "voided": False,
        "orderId": fill.order,
    }


def position_told(position: Position, *, skew: float) -> dict[str, object]:
    """A position: its size has no sign, its type says which way it points."""
    return {
        "id": position.id,
        "accountId": int(position.account),
        "contractId": position.listing,
        "creationTimestamp": _moment(position.opened_at + skew),
        "type": 1 if position.size > 0 else 2 if position.size < 0 else 0,
        "size": int(abs(position.size)),
        "averagePrice": float(position.average),
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _price(value: Decimal | None) -> float | None:
    return None if value is None else float(value)
