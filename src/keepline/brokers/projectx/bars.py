"""Bars of ProjectX: what one call may ask for, and a long span in calls.

Invariants: a piece of a span never holds more bars than one call answers; bars come out oldest first; nothing here is
sent.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from keepline.brokers.checks import amount, span, text, wire_moment
from keepline.brokers.projectx.messages import BarsAnswer, BarUnit
from keepline.brokers.windows import split
from keepline.errors import ConfigError
from keepline.model import Bar

__all__ = ["LARGEST_PAGE", "bars_body", "bars_of", "pieces_of"]

LARGEST_PAGE = 20_000
"""Bars that one call answers at most (gateway.docs.projectx.com, retrieve-bars)."""

_LENGTHS = {
    BarUnit.SECOND: timedelta(seconds=1),
    BarUnit.MINUTE: timedelta(minutes=1),
    BarUnit.HOUR: timedelta(hours=1),
    BarUnit.DAY: timedelta(days=1),
    BarUnit.WEEK: timedelta(weeks=1),
    BarUnit.MONTH: timedelta(days=28),  # the shortest: a piece never holds more bars than a page
}


def bars_body(
    contract_id: str,
    start: datetime,
    end: datetime,
    unit: BarUnit | str,
    number: int,
    *,
    limit: int,
    live: bool,
    partial: bool,
) -> dict[str, Any]:
    """The JSON of `History/retrieveBars`; all of its fields are required.

    Raises:
        ConfigError: an argument makes no sense; names it.
    """
    begin, finish = span(start, end)
    if amount(limit, "limit", whole=True) > LARGEST_PAGE:
        raise ConfigError(f"is at most {LARGEST_PAGE:,}, not {limit}", key="limit")
    return {
        "contractId": text(contract_id, "contract_id"),
        "live": bool(live),
        "startTime": wire_moment(begin),
        "endTime": wire_moment(finish),
        "unit": int(_unit(unit)),
        "unitNumber": int(_number(number)),
        "limit": int(limit),
        "includePartialBar": bool(partial),
    }


def bars_of(answer: BarsAnswer) -> tuple[Bar, ...]:
    """The bars of an answer, oldest first: the gateway's come newest first."""
    rows = sorted(answer.bars or (), key=lambda row: row.at)
    return tuple(
        Bar(
            at=row.at, open=row.open, high=row.high, low=row.low, close=row.close, volume=row.volume
        )
        for row in rows
    )


def pieces_of(
    start: datetime, end: datetime, unit: BarUnit | str, number: int
) -> list[tuple[datetime, datetime]]:
    """A span in pieces of one call each.

    Raises:
        ConfigError: an argument makes no sense; names it.
    """
    begin, finish = span(start, end)
    whole = finish - begin
    bar = _LENGTHS[_unit(unit)].total_seconds() * float(_number(number))
    # both edges of a piece may hold a bar, so it is one bar shorter than a page
    longest = bar * (LARGEST_PAGE - 1)
    return split(begin, finish, min(whole, timedelta(seconds=min(longest, whole.total_seconds()))))


def _unit(value: object) -> BarUnit:
    told = value
    if isinstance(value, str):
        value = BarUnit.__members__.get(value.upper(), BarUnit.UNSPECIFIED)
    if isinstance(value, bool) or not isinstance(value, int) or value not in _LENGTHS:
        names = ", ".join(unit.name.lower() for unit in _LENGTHS)
        raise ConfigError(f"is one of {names}, not {told!r}", key="unit")
    return BarUnit(value)


def _number(value: object) -> Decimal:
    return amount(value, "number", whole=True)
