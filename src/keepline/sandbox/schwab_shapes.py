"""The shapes of Schwab's Trader and market data APIs: how the market's values are told.

Invariants: moments on the wire have whole seconds and `+0000`, as the real API's; a field without a value is left out
of an order.

Sources: the Trader API's OpenAPI document (1.0.0); answers that clients in the field recorded, for the form of moments
and of market data.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from keepline.sandbox.book import Account, Fill, Order, Position, Status, Ticket
from keepline.sandbox.listings import Listing
from keepline.sandbox.prices import Bar, Quote
from keepline.sandbox.streamer_session import Identity
from keepline.sandbox.venue import Reply

__all__ = [
    "STATUSES",
    "account_told",
    "candle_told",
    "data_error",
    "error",
    "order_told",
    "preference_told",
    "preview_told",
    "quote_told",
    "status_of",
    "trade_told",
]

_OPENING = ("BUY", "SELL_SHORT")
STATUSES = (
    "AWAITING_PARENT_ORDER", "AWAITING_CONDITION", "AWAITING_STOP_CONDITION", "AWAITING_MANUAL_REVIEW", "ACCEPTED",
    "AWAITING_UR_OUT", "PENDING_ACTIVATION", "QUEUED", "WORKING", "REJECTED", "PENDING_CANCEL", "CANCELED",
    "PENDING_REPLACE", "REPLACED", "FILLED", "EXPIRED", "NEW", "AWAITING_RELEASE_TIME", "PENDING_ACKNOWLEDGEMENT",
    "PENDING_RECALL", "UNKNOWN",
)  # fmt: skip
"""By which a list of orders may be filtered."""


def error(status: int, words: str) -> Reply:
    """A refusal of the Trader API."""
    return Reply(status, {"message": words, "errors": [words]})


def data_error(status: int, words: str) -> Reply:
    """A refusal of the market data API."""
    title = "Not Found" if status == 404 else "Bad Request"
    told = {"id": "sandbox", "status": str(status), "title": title, "detail": words}
    return Reply(status, {"errors": [told]})


def status_of(order: Order) -> str:
    """Schwab's word for where an order stands."""
    if order.status is Status.WORKING and order.stop is not None and not order.triggered:
        return "AWAITING_STOP_CONDITION"
    return "CANCELED" if order.status is Status.CANCELLED else order.status.name


def order_told(
    order: Order, listing: Listing, fills: Iterable[Fill], *, skew: float
) -> dict[str, object]:
    """An order with its executions."""
    is_over = order.status.is_over
    told: dict[str, object] = {
        "session": order.details.get("session", "NORMAL"),
        "duration": order.details.get("duration", "DAY"),
        "orderType": order.kind.name,
        "complexOrderStrategyType": "NONE",
        "quantity": float(order.size),
        "filledQuantity": float(order.filled),
        "remainingQuantity": 0.0 if is_over else float(order.left),
        "requestedDestination": "AUTO",
        "destinationLinkName": "AutoRoute",
        "price": _number(order.limit),
        "stopPrice": _number(order.stop),
        "stopPriceOffset": _number(order.trail),
        "orderLegCollection": [_leg(order, listing)],
        "orderStrategyType": "SINGLE",
        "orderId": order.id,
        "cancelable": not is_over,
        "editable": not is_over,
        "status": status_of(order),
        "statusDescription": order.words or None,
        "enteredTime": _moment(order.entered_at + skew),
        "closeTime": _moment((order.updated_at or order.entered_at) + skew) if is_over else None,
        "tag": "TA_sandbox",
        "accountNumber": int(order.account),
        "orderActivityCollection": [_activity(fill, listing, skew) for fill in fills] or None,
    }
    return {name: value for name, value in told.items() if value is not None}


def preview_told(
    ticket: Ticket, listing: Listing | None, *, price: Decimal, rejected: str
) -> dict[str, object]:
    """What `previewOrder` says of an order that is not placed."""
    reject = {"validationRuleName": "Sandbox", "message": rejected, "originalSeverity": "REJECT"}
    return {
        "orderId": 0,
        "orderStrategy": {
            "accountNumber": ticket.account,
            "orderStrategyType": "SINGLE",
            "orderType": ticket.kind.name,
            "session": ticket.details["session"],
            "duration": ticket.details["duration"],
            "status": "REJECTED" if rejected else "ACCEPTED",
            "quantity": float(ticket.size),
            "price": _number(ticket.limit),
            "orderBalance": {"orderValue": float(price * ticket.size), "projectedCommission": 0.0},
            "orderLegs": [
                {
                    "askPrice": float(price),
                    "finalSymbol": ticket.listing,
                    "assetType": "EQUITY",
                    "instruction": ticket.details["instruction"],
                    "quantity": float(ticket.size),
                    "instrument": _instrument(listing) if listing else None,
                }
            ],
        },
        "orderValidationResult": {
            "alerts": [],
            "accepts": [],
            "rejects": [reject] if rejected else [],
            "reviews": [],
            "warns": [],
        },
        "commissionAndFee": {"commission": {"commissionLegs": []}, "fee": {"feeLegs": []}},
    }


def account_told(
    account: Account,
    cash: Decimal,
    positions: Sequence[tuple[Position, Listing, Quote]],
    *,
    with_positions: bool,
) -> dict[str, object]:
    """An account, with what it holds when asked for."""
    worth = sum((position.size * quote.last for position, _, quote in positions), Decimal(0))
    told: dict[str, object] = {
        "type": "MARGIN",
        "accountNumber": account.id,
        "roundTrips": 0,
        "isDayTrader": False,
        "isClosingOnlyRestricted": False,
        "currentBalances": {
            "cashBalance": float(cash),
            "buyingPower": float(cash),
            "liquidationValue": float(cash + worth),
        },
    }
    if with_positions and positions:
        told["positions"] = [_position(*held) for held in positions]
    return {"securitiesAccount": told}


def trade_told(fill: Fill, listing: Listing, *, skew: float) -> dict[str, object]:
    """A fill as a transaction."""
    amount = fill.size * fill.side.value
    return {
        "activityId": fill.id,
        "time": _moment(fill.at + skew),
        "accountNumber": fill.account,
        "type": "TRADE",
        "status": "VALID",
        "subAccount": "MARGIN",
        "tradeDate": _moment(fill.at + skew),
        "orderId": fill.order,
        "netAmount": float(-amount * fill.price),
        "transferItems": [
            {
                "instrument": _instrument(listing),
                "amount": float(amount),
                "cost": float(-amount * fill.price),
                "price": float(fill.price),
            }
        ],
    }


def preference_told(url: str, who: Identity, accounts: Iterable[str]) -> dict[str, object]:
    """What `userPreference` says: where the streamer is, and how to introduce oneself there."""
    info = {
        "streamerSocketUrl": url,
        "schwabClientCustomerId": who.customer,
        "schwabClientCorrelId": who.correlation,
        "schwabClientChannel": who.channel,
        "schwabClientFunctionId": who.function,
    }
    told = [
        {"accountNumber": number, "primaryAccount": True, "type": "MARGIN"} for number in accounts
    ]
    offer = {"level2Permissions": True, "mktDataPermission": "NP"}
    return {"accounts": told, "streamerInfo": [info], "offers": [offer]}


def quote_told(listing: Listing, quote: Quote, *, at: float) -> dict[str, object]:
    """A quote of a share."""
    milliseconds = int(at * 1000)
    return {
        "assetMainType": "EQUITY",
        "assetSubType": "COE",
        "quoteType": "NBBO",
        "realtime": True,
        "symbol": listing.symbol,
        "reference": {"cusip": listing.cusip, "description": listing.description},
        "quote": {
            "bidPrice": float(quote.bid),
            "bidSize": 1,
            "askPrice": float(quote.ask),
            "askSize": 1,
            "lastPrice": float(quote.last),
            "lastSize": 1,
            "mark": float(quote.last),
            "quoteTime": milliseconds,
            "tradeTime": milliseconds,
            "securityStatus": "Normal",
        },
    }


def candle_told(bar: Bar) -> dict[str, object]:
    """A candle, named by its beginning in epoch milliseconds."""
    return {
        "open": float(bar.open),
        "high": float(bar.high),
        "low": float(bar.low),
        "close": float(bar.close),
        "volume": bar.volume,
        "datetime": bar.at * 1000,
    }


def _leg(order: Order, listing: Listing) -> dict[str, object]:
    instruction = str(order.details.get("instruction", order.side.name))
    return {
        "orderLegType": "EQUITY",
        "legId": 1,
        "instrument": _instrument(listing),
        "instruction": instruction,
        "positionEffect": "OPENING" if instruction in _OPENING else "CLOSING",
        "quantity": float(order.size),
    }


def _instrument(listing: Listing) -> dict[str, object]:
    return {
        "assetType": "EQUITY",
        "cusip": listing.cusip,
        "symbol": listing.symbol,
        "description": listing.description,
    }


def _activity(fill: Fill, listing: Listing, skew: float) -> dict[str, object]:
    execution = {
        "legId": 1,
        "quantity": float(fill.size),
        "mismarkedQuantity": 0.0,
        "price": float(fill.price),
        "time": _moment(fill.at + skew),
    }
    return {
        "activityType": "EXECUTION",
        "activityId": fill.id,
        "executionType": "FILL",
        "quantity": float(fill.size),
        "executionLegs": [execution],
    }


def _position(position: Position, listing: Listing, quote: Quote) -> dict[str, object]:
    return {
        "longQuantity": float(max(position.size, Decimal(0))),
        "shortQuantity": float(max(-position.size, Decimal(0))),
        "averagePrice": float(position.average),
        "marketValue": float(position.size * quote.last),
        "instrument": _instrument(listing),
    }


def _number(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
