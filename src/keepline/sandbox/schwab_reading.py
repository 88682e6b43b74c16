"""How the sandbox reads what clients of Schwab send: orders and moments.

Invariants: a request that makes no sense is refused with words before the market sees it.

Source: the Trader API's OpenAPI document (1.0.0).
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation

import msgspec
from msgspec import Struct

from keepline.sandbox.book import Kind, Side, Ticket

__all__ = ["Unreadable", "epoch", "ticket_of"]

_DAY = 86_400
_KINDS = {
    kind.name: kind
    for kind in (Kind.MARKET, Kind.LIMIT, Kind.STOP, Kind.STOP_LIMIT, Kind.TRAILING_STOP)
}
_SIDES = {
    "BUY": Side.BUY,
    "BUY_TO_COVER": Side.BUY,
    "SELL": Side.SELL,
    "SELL_SHORT": Side.SELL,
}
_SESSIONS = ("NORMAL", "AM", "PM", "SEAMLESS")


class Unreadable(Exception):
    """A request that makes no sense; the words go into the answer."""


class _Instrument(Struct):
    symbol: str
    assetType: str = "EQUITY"


class _Leg(Struct):
    instruction: str
    quantity: float
    instrument: _Instrument


class _Body(Struct):
    orderType: str
    session: str
    duration: str
    orderStrategyType: str
    orderLegCollection: list[_Leg]
    price: float | str | None = None
    stopPrice: float | str | None = None
    stopPriceOffset: float | str | None = None
    stopPriceLinkType: str | None = None


def ticket_of(body: bytes, account: str, *, now: float) -> Ticket:
    """The ticket that an order of Schwab's means: one leg of shares, `SINGLE`.

    Raises:
        Unreadable: it is no such order; says what is wrong.
    """
    try:
        asked = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise Unreadable(f"the order cannot be read: {problem}") from None
    if asked.orderStrategyType != "SINGLE" or len(asked.orderLegCollection) != 1:
        raise Unreadable("the sandbox takes orders of one leg with orderStrategyType SINGLE")
    leg = asked.orderLegCollection[0]
    for name, value, known in (
        ("orderType", asked.orderType, _KINDS),
        ("session", asked.session, _SESSIONS),
        ("duration", asked.duration, ("DAY", "GOOD_TILL_CANCEL")),
        ("instruction", leg.instruction, _SIDES),
        ("assetType", leg.instrument.assetType, ("EQUITY",)),
        ("stopPriceLinkType", asked.stopPriceLinkType or "VALUE", ("VALUE",)),
    ):
        if value not in known:
            raise Unreadable(f"{name} is one of {', '.join(known)}, not {value[:40]!r}")
    return Ticket(
        account=account,
        listing=leg.instrument.symbol,
        side=_SIDES[leg.instruction],
        kind=_KINDS[asked.orderType],
        size=Decimal(repr(leg.quantity)),
        limit=_amount("price", asked.price),
        stop=_amount("stopPrice", asked.stopPrice),
        trail=_amount("stopPriceOffset", asked.stopPriceOffset),
        expires_at=_day_end(now) if asked.duration == "DAY" else None,
        details={
            "session": asked.session,
            "duration": asked.duration,
            "instruction": leg.instruction,
        },
    )


def epoch(query: Mapping[str, str], name: str) -> float:
    """Epoch seconds of a required moment in the query.

    Raises:
        Unreadable: it is missing or no moment.
    """
    text = query.get(name, "")
    if not text:
        raise Unreadable(f"{name} is missing; it is required")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Unreadable(f"{name} must be in the form yyyy-MM-dd'T'HH:mm:ss.SSSZ")
    return moment.timestamp()


def _day_end(now: float) -> float:
    """01:00 UTC after the day: the extended session of New York is over."""
    return (now // _DAY + 1) * _DAY + 3600


def _amount(name: str, value: float | str | None) -> Decimal | None:
    try:
        number = None if value is None else Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if number is not None and not number.is_finite():
        raise Unreadable(f"{name} must be a number, not {str(value)[:40]!r}")
    return number
