"""Schwab's lists in pieces: orders by windows of a year, price history by windows that one call answers.

Invariants: nothing here is sent; what Schwab cannot give is refused with the choices there are.
"""

from datetime import UTC, datetime, timedelta

from keepline.brokers.checks import span, text
from keepline.brokers.schwab.messages import CandlesAnswer, QuoteInfo
from keepline.brokers.windows import split
from keepline.errors import ConfigError
from keepline.model import Bar, Quote

__all__ = [
    "LONGEST_LISTING",
    "NEWEST_LISTING",
    "bars_of",
    "candles_query",
    "history_pieces",
    "quote_of",
]

LONGEST_LISTING = timedelta(days=365)
"""Of orders by one account (the Trader API's OpenAPI document: one year)."""

NEWEST_LISTING = timedelta(days=60)
"""How far back the list of all accounts' orders reaches."""

_MINUTES = (1, 5, 10, 15, 30)
# periodType, frequencyType, longest piece: periods of `day` end at 10, of `year` at 20
_UNITS = {
    "minute": ("day", "minute", timedelta(days=10)),
    "day": ("year", "daily", timedelta(days=20 * 365)),
    "week": ("year", "weekly", timedelta(days=20 * 365)),
    "month": ("year", "monthly", timedelta(days=20 * 365)),
}


def candles_query(
    symbol: str, start: datetime, end: datetime, unit: str, number: int, *, extended: bool
) -> dict[str, str]:
    """The query of `pricehistory`.

    Raises:
        ConfigError: an argument makes no sense; names it.
    """
    begin, finish = span(start, end)
    period, frequency, _ = _unit(unit, number)
    return {
        "symbol": text(symbol, "symbol"),
        "periodType": period,
        "frequencyType": frequency,
        "frequency": str(number),
        "startDate": str(_milliseconds(begin)),
        "endDate": str(_milliseconds(finish)),
        "needExtendedHoursData": str(bool(extended)).lower(),
    }


def history_pieces(
    start: datetime, end: datetime, unit: str, number: int
) -> list[tuple[datetime, datetime]]:
    """A span in pieces of one call each.

    Raises:
        ConfigError: an argument makes no sense; names it.
    """
    begin, finish = span(start, end)
    return split(begin, finish, _unit(unit, number)[2])


def bars_of(answer: CandlesAnswer) -> tuple[Bar, ...]:
    """The bars of an answer, oldest first."""
    rows = sorted(answer.candles or (), key=lambda row: row.datetime)
    return tuple(
        Bar(
            at=_instant(row.datetime),
            open=row.open,
            high=row.high,
            low=row.low,
            close=row.close,
            volume=row.volume,
        )
        for row in rows
    )


def quote_of(symbol: str, info: QuoteInfo, now: datetime) -> Quote:
    """A quote in our words; `now` stands in where Schwab tells no time."""
    numbers = info.quote
    if numbers is None:
        return Quote(instrument=symbol, at=now)
    told = numbers.quote_time or numbers.trade_time
    return Quote(
        instrument=symbol,
        at=now if told is None else _instant(told),
        bid=numbers.bid_price,
        ask=numbers.ask_price,
        last=numbers.last_price,
        bid_size=numbers.bid_size,
        ask_size=numbers.ask_size,
        volume=numbers.total_volume,
    )


def _unit(unit: object, number: object) -> tuple[str, str, timedelta]:
    if not isinstance(unit, str) or unit not in _UNITS:
        raise ConfigError(f"is one of {', '.join(_UNITS)}, not {unit!r}", key="unit")
    allowed = _MINUTES if unit == "minute" else (1,)
    if type(number) is not int or number not in allowed:
        choices = ", ".join(map(str, allowed))
        raise ConfigError(f"of {unit} bars is one of {choices}, not {number!r}", key="number")
    return _UNITS[unit]


def _milliseconds(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
