"""When data is expected at all: trading sessions in their own time zone, holidays by rule, so that no list runs out.

Invariants: a session belongs to a trade date and may open on an earlier one; instants go in and out as aware datetimes;
in doubt about a holiday the calendar says closed, since data in a closed session is welcome and a false alarm is not.
Hours: CME Globex and NYSE as published; single products and years may differ, `with_days` corrects them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from types import MappingProxyType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from keepline.errors import ConfigError

__all__ = [
    "CME_FUTURES",
    "US_EQUITIES",
    "US_EQUITIES_EXTENDED",
    "Hours",
    "SessionCalendar",
    "Span",
    "cme_holidays",
    "us_holidays",
]

Days = Mapping[date, time | None]
"""Trade dates that are different: None is closed, a time is an early close."""

_LOOK_AHEAD = 15
"""Days: longer than any closure between two sessions."""


@dataclass(frozen=True, slots=True)
class Hours:
    """The session of a trade date in local time.

    Attributes:
        opens: local time of the opening.
        closes: local time of the end, on the trade date itself.
        opens_days_before: 1 when it opens on the evening before.
    """

    opens: time
    closes: time
    opens_days_before: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in which a session is open or closed.

    Attributes:
        is_open: whether data is expected.
        start: when it began (aware, UTC); for a closed stretch the last end of a session, or earlier.
        end: when it ends (aware, UTC).
    """

    is_open: bool
    start: datetime
    end: datetime

    def __contains__(self, at: datetime) -> bool:
        return self.start <= at < self.end


@dataclass(frozen=True)
class SessionCalendar:
    """Weekly sessions with holidays.

    Attributes:
        name: what people call it.
        zone: IANA name of the time zone in which the hours are meant.
        hours: by weekday of the trade date, Monday is 0; a missing weekday has no session.
        holidays: rule that gives the different days of a year.
        days: corrections by hand: they win over the rule.

    Raises:
        ConfigError: an unknown zone, no hours, or hours that end before they begin.

    Example:
        >>> CME_FUTURES.is_open(datetime(2026, 1, 5, 22, 30, tzinfo=UTC))  # 16:30 in Chicago: maintenance
        False
    """

    name: str
    zone: str
    hours: Mapping[int, Hours]
    holidays: "Callable[[int], Days] | None" = None
    days: Days = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hours", MappingProxyType(dict(self.hours)))
        object.__setattr__(self, "days", MappingProxyType(dict(self.days)))
        _zone(self.zone)
        if not self.hours or not set(self.hours) <= set(range(7)):
            raise ConfigError(
                f"{self.name}: hours by weekday are needed, 0 (Monday) to 6, not {sorted(self.hours)}",
                key="hours",
            )
        for hours in self.hours.values():
            if hours.opens_days_before not in (0, 1) or (
                hours.opens_days_before == 0 and hours.opens >= hours.closes
            ):
                raise ConfigError(
                    f"{self.name}: a session ends after it opens: {hours}", key="hours"
                )

    def __hash__(self) -> int:
        return hash((self.name, self.zone, tuple(self.hours.items()), tuple(self.days.items())))

    def is_open(self, at: datetime) -> bool:
        """Whether data is expected at an instant (aware)."""
        return self.span(at).is_open

    def span(self, at: datetime) -> Span:
        """The open or closed stretch around an instant.

        Args:
            at: aware; ValueError for a naive one, whose meaning nobody knows.
        """
        if at.tzinfo is None:
            raise ValueError(f"{at!r} has no time zone: pass an aware datetime")
        at = at.astimezone(UTC)
        today = at.astimezone(_zone(self.zone)).date()
        ended = at - timedelta(days=_LOOK_AHEAD)
        for offset in range(-_LOOK_AHEAD, _LOOK_AHEAD + 1):
            session = self._session(today + timedelta(days=offset))
            if session is None:
                continue
            opens, closes = session
            if closes <= at:
                ended = closes
            elif opens <= at:
                return Span(True, opens, closes)
            else:
                return Span(False, ended, opens)
        return Span(False, ended, at + timedelta(days=_LOOK_AHEAD))

    def with_days(self, days: Days) -> "SessionCalendar":
        """The same calendar with corrections: a date with None is closed, with a time it closes early."""
        return replace(self, days={**self.days, **days})

    def _session(self, trade_date: date) -> tuple[datetime, datetime] | None:
        hours = self.hours.get(trade_date.weekday())
        special = self._special(trade_date)
        if hours is None or special is None:
            return None
        zone = _zone(self.zone)
        opening_day = trade_date - timedelta(days=hours.opens_days_before)
        opens = datetime.combine(opening_day, hours.opens, zone).astimezone(UTC)
        closes = min(special, hours.closes)
        end = datetime.combine(trade_date, closes, zone).astimezone(UTC)
        return (opens, end) if opens < end else None

    def _special(self, trade_date: date) -> time | None:
        """The latest time of a trade date, None when it has no session."""
        if trade_date in self.days:
            return self.days[trade_date]
        if self.holidays is None:
            return time.max
        return _days(self.holidays, trade_date.year).get(trade_date, time.max)

    def __repr__(self) -> str:
        return f"<SessionCalendar {self.name}, {self.zone}>"


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"the time zone {name!r} is not known here: check its name, or install the package tzdata",
            key="zone",
        ) from error


@lru_cache(maxsize=256)
def _days(rule: Callable[[int], Days], year: int) -> Days:
    return rule(year)


def us_holidays(year: int) -> Days:
    """Holidays and early closes (13:00) of the US stock exchanges, New York time, by the rules of the NYSE."""
    early = time(13, 0)
    days: dict[date, time | None] = {_thanksgiving(year) + timedelta(days=1): early}
    for eve in (date(year, 7, 3), date(year, 12, 24)):
        if eve.weekday() < 4:  # on a Friday it is the holiday itself, observed
            days[eve] = early
    for day in (_new_year(year), _good_friday(year), *_monday_holidays(year), _thanksgiving(year),
                _observed(date(year, 7, 4)), _observed(date(year, 12, 25)), *_juneteenth(year)):  # fmt: skip
        days[day] = None
    return days


def cme_holidays(year: int) -> Days:
    """Closed trade dates and early halts of CME Globex, Chicago time, on the side of caution.

    Products differ (energy and metals halt later than equity indices on many of these days); the earliest halt stands
    here.
    """
    noon, early = time(12, 0), time(12, 15)
    days: dict[date, time | None] = {_thanksgiving(year) + timedelta(days=1): early}
    for eve in (date(year, 7, 3), date(year, 12, 24)):
        days[eve] = early
    for day in (*_monday_holidays(year), _thanksgiving(year), _observed(date(year, 7, 4)),
                *_juneteenth(year)):  # fmt: skip
        days[day] = noon
    for day in (_new_year(year), _good_friday(year), _observed(date(year, 12, 25))):
        days[day] = None
    return days


def _observed(day: date) -> date:
    """Saturday's holiday is kept on Friday, Sunday's on Monday."""
    return day + timedelta(days={5: -1, 6: 1}.get(day.weekday(), 0))


def _new_year(year: int) -> date:
    day = date(year, 1, 1)  # one on a Saturday is not moved into the old year
    return day + timedelta(days=1) if day.weekday() == 6 else day


def _monday_holidays(year: int) -> Iterable[date]:
    """Martin Luther King Jr. Day, Presidents' Day, Memorial Day, Labor Day."""
    last_of_may = date(year, 5, 31)
    return (
        _nth(year, 1, 0, 3),
        _nth(year, 2, 0, 3),
        last_of_may - timedelta(days=last_of_may.weekday()),
        _nth(year, 9, 0, 1),
    )


def _juneteenth(year: int) -> Iterable[date]:
    return (_observed(date(year, 6, 19)),) if year >= 2022 else ()


def _thanksgiving(year: int) -> date:
    return _nth(year, 11, 3, 4)


def _nth(year: int, month: int, weekday: int, n: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(weekday - first.weekday()) % 7 + 7 * (n - 1))


def _good_friday(year: int) -> date:
    """Two days before Easter Sunday, by the Gregorian computus."""
    century, rest = divmod(year, 100)
    golden = year % 19
    correction = (8 * century + 13) // 25
    epact = (19 * golden + century - century // 4 - correction + 15) % 30
    epact -= (golden + 11 * epact) // 319
    weekday = (2 * (century % 4) + 2 * (rest // 4) - rest % 4 - epact + 32) % 7
    month = (epact + weekday + 90) // 25
    return date(year, month, (epact + weekday + month + 19) % 32) - timedelta(days=2)


_EVENING = Hours(time(17, 0), time(16, 0), opens_days_before=1)
CME_FUTURES = SessionCalendar(
    "CME futures", "America/Chicago", dict.fromkeys(range(5), _EVENING), cme_holidays
)
"""CME Globex: Sunday to Friday, 17:00 to 16:00 Chicago time, with a daily break from 16:00 to 17:00."""

US_EQUITIES = SessionCalendar(
    "US equities",
    "America/New_York",
    dict.fromkeys(range(5), Hours(time(9, 30), time(16, 0))),
    us_holidays,
)
"""The regular session of the US stock exchanges: 9:30 to 16:00 New York time."""

US_EQUITIES_EXTENDED = SessionCalendar(
    "US equities, extended hours",
    "America/New_York",
    dict.fromkeys(range(5), Hours(time(7, 0), time(20, 0))),
    us_holidays,
)
"""With the sessions before and after as most brokers offer them: 7:00 to 20:00 New York time."""
