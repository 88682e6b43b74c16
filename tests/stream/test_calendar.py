"""When data is expected: evenings, maintenance, weekends, holidays and summer time, in the market's own zone."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.stream.calendar import (
    CME_FUTURES,
    US_EQUITIES,
    US_EQUITIES_EXTENDED,
    Hours,
    SessionCalendar,
    Span,
    cme_holidays,
    us_holidays,
)

CHICAGO = ZoneInfo("America/Chicago")
NEW_YORK = ZoneInfo("America/New_York")
EVER = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
CALENDARS = st.sampled_from([CME_FUTURES, US_EQUITIES, US_EQUITIES_EXTENDED])


def chicago(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=CHICAGO)


def new_york(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK)


@pytest.mark.parametrize(
    ("at", "is_open"),
    [
        ("2026-11-16 15:59:59", True),  # Monday
        ("2026-11-16 16:00:00", False),  # maintenance
        ("2026-11-16 16:59:59", False),
        ("2026-11-16 17:00:00", True),
        ("2026-11-17 03:00:00", True),
        ("2026-11-20 15:59:00", True),  # Friday
        ("2026-11-20 16:00:00", False),  # the weekend
        ("2026-11-20 17:30:00", False),
        ("2026-11-21 12:00:00", False),
        ("2026-11-22 16:59:59", False),  # Sunday
        ("2026-11-22 17:00:00", True),
        ("2026-11-26 11:59:00", True),  # Thanksgiving: halt at noon, open again in the evening
        ("2026-11-26 12:00:00", False),
        ("2026-11-26 17:00:00", True),
        ("2026-11-27 12:14:00", True),
        ("2026-11-27 12:15:00", False),
        ("2026-11-27 17:00:00", False),
        ("2026-12-24 12:15:00", False),  # Christmas Eve, then nothing before the 27th
        ("2026-12-24 18:00:00", False),
        ("2026-12-25 10:00:00", False),
        ("2026-12-25 18:00:00", False),
        ("2026-12-27 17:00:00", True),
        ("2025-12-25 17:00:00", True),  # a Thursday: Friday's session opens in the evening
        ("2025-12-31 15:00:00", True),
        ("2025-12-31 17:00:00", False),
        ("2026-01-01 17:00:00", True),
        ("2026-04-02 17:00:00", False),  # Good Friday's session would begin now
        ("2026-04-03 10:00:00", False),
        ("2026-01-19 11:00:00", True),  # Martin Luther King Jr. Day
        ("2026-01-19 13:00:00", False),
        ("2026-01-19 17:00:00", True),
    ],
)
def test_hours_of_cme_futures(at: str, is_open: bool) -> None:
    assert CME_FUTURES.is_open(chicago(at)) is is_open


@pytest.mark.parametrize(
    ("at", "regular", "extended"),
    [
        ("2026-11-16 06:59", False, False),
        ("2026-11-16 07:00", False, True),
        ("2026-11-16 09:30", True, True),
        ("2026-11-16 15:59", True, True),
        ("2026-11-16 16:00", False, True),
        ("2026-11-16 20:00", False, False),
        ("2026-11-21 12:00", False, False),
        ("2026-11-26 12:00", False, False),
        ("2026-11-27 12:59", True, True),
        ("2026-11-27 13:00", False, False),
        ("2026-07-03 12:00", False, False),  # Independence Day falls on a Saturday
        ("2025-07-03 13:00", False, False),
    ],
)
def test_hours_of_us_equities(at: str, regular: bool, extended: bool) -> None:
    assert US_EQUITIES.is_open(new_york(at)) is regular
    assert US_EQUITIES_EXTENDED.is_open(new_york(at)) is extended


NYSE = {
    2021: "01-01 01-18 02-15 04-02 05-31 07-05 09-06 11-25 12-24",
    2022: "01-17 02-21 04-15 05-30 06-20 07-04 09-05 11-24 12-26",
    2023: "01-02 01-16 02-20 04-07 05-29 06-19 07-04 09-04 11-23 12-25",
    2024: "01-01 01-15 02-19 03-29 05-27 06-19 07-04 09-02 11-28 12-25",
    2025: "01-01 01-20 02-17 04-18 05-26 06-19 07-04 09-01 11-27 12-25",
    2026: "01-01 01-19 02-16 04-03 05-25 06-19 07-03 09-07 11-26 12-25",
}
NYSE_EARLY = {
    2022: "11-25",
    2023: "07-03 11-24",
    2024: "07-03 11-29 12-24",
    2025: "07-03 11-28 12-24",
    2026: "11-27 12-24",
}


@pytest.mark.parametrize("year", NYSE)
def test_the_holidays_are_those_that_the_exchange_published(year: int) -> None:
    closed = [day for day, close in us_holidays(year).items() if close is None]
    weekdays = sorted(f"{day:%m-%d}" for day in closed if day.weekday() < 5 and day.year == year)
    if year == 2022:
        weekdays = [day for day in weekdays if day != "01-01"]
    assert " ".join(weekdays) == NYSE[year]


@pytest.mark.parametrize("year", NYSE_EARLY)
def test_the_early_closes_are_those_that_the_exchange_published(year: int) -> None:
    early = sorted(f"{day:%m-%d}" for day, close in us_holidays(year).items() if close is not None)
    assert " ".join(early) == NYSE_EARLY[year]


def test_the_futures_exchange_halts_early_where_stocks_are_closed() -> None:
    days = cme_holidays(2026)
    assert days[date(2026, 7, 3)] == time(12, 0)
    assert days[date(2026, 11, 27)] == time(12, 15)
    assert days[date(2026, 4, 3)] is None
    assert date(2019, 6, 19) not in cme_holidays(2019)  # not yet a holiday


def test_a_span_says_since_when_and_until_when() -> None:
    maintenance = CME_FUTURES.span(chicago("2026-11-16 16:20"))
    assert maintenance == Span(
        False, chicago("2026-11-16 16:00").astimezone(UTC), chicago("2026-11-16 17:00").astimezone(UTC)
    )  # fmt: skip
    session = CME_FUTURES.span(chicago("2026-11-16 17:00"))
    assert (session.is_open, session.end) == (True, chicago("2026-11-17 16:00"))
    weekend = CME_FUTURES.span(chicago("2026-11-21 12:00"))
    assert (weekend.start, weekend.end) == (
        chicago("2026-11-20 16:00"),
        chicago("2026-11-22 17:00"),
    )


def test_summer_time_moves_the_session_with_the_clocks_of_the_market() -> None:
    winter, summer = (
        CME_FUTURES.span(chicago("2026-03-05 10:00")),
        CME_FUTURES.span(chicago("2026-03-10 10:00")),
    )
    assert (winter.end.hour, summer.end.hour) == (22, 21)
    night = CME_FUTURES.span(chicago("2026-03-08 18:00"))  # the clocks changed this morning
    assert night.end - night.start == timedelta(hours=23)


@given(CALENDARS, EVER)
def test_an_instant_lies_in_its_span_and_the_next_one_follows(calendar, at) -> None:
    span = calendar.span(at)
    assert at in span
    assert calendar.is_open(at) is span.is_open
    after = calendar.span(span.end)
    assert after.is_open is not span.is_open
    assert after.start == span.end
    assert calendar.span(span.end - timedelta(microseconds=1)) == span


@given(CALENDARS, EVER)
def test_no_session_is_longer_than_a_day_and_no_closure_longer_than_a_week(calendar, at) -> None:
    span = calendar.span(at)
    assert span.end - span.start < timedelta(days=1 if span.is_open else 6)


def test_a_day_can_be_corrected_by_hand() -> None:
    mourning = US_EQUITIES.with_days({date(2025, 1, 9): None, date(2025, 12, 25): time(13, 0)})
    assert not mourning.is_open(new_york("2025-01-09 12:00"))
    assert mourning.is_open(new_york("2025-12-25 12:00"))
    assert not mourning.is_open(new_york("2025-12-25 14:00"))
    assert US_EQUITIES.is_open(new_york("2025-01-09 12:00"))
    assert mourning.with_days({date(2025, 1, 10): None}).days.keys() >= {date(2025, 1, 9)}


def test_calendars_are_values() -> None:
    again = US_EQUITIES.with_days({})
    assert again == US_EQUITIES
    assert hash(again) == hash(US_EQUITIES)
    assert repr(again) == "<SessionCalendar US equities, America/New_York>"


def test_a_market_that_is_closed_for_good_is_closed() -> None:
    closed = {date(2026, 11, 1) + timedelta(days=offset): None for offset in range(60)}
    gone = US_EQUITIES.with_days(closed)
    span = gone.span(new_york("2026-11-25 12:00"))
    assert not span.is_open
    assert span.end > new_york("2026-12-01 12:00")


def test_a_market_without_holidays_and_with_an_opening_after_its_close_that_day() -> None:
    market = SessionCalendar("odd", "UTC", {0: Hours(time(9), time(17))})
    assert market.is_open(datetime(2026, 12, 28, 12, tzinfo=UTC))
    shut = market.with_days({date(2026, 12, 28): time(8)})
    assert not shut.is_open(datetime(2026, 12, 28, 12, tzinfo=UTC))


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        CME_FUTURES.span(datetime(2026, 1, 5, 12))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("zone", "hours", "key"),
    [
        ("America/Chicagoo", {0: Hours(time(9), time(17))}, "zone"),
        ("../etc/passwd", {0: Hours(time(9), time(17))}, "zone"),
        ("UTC", {}, "hours"),
        ("UTC", {7: Hours(time(9), time(17))}, "hours"),
        ("UTC", {0: Hours(time(17), time(9))}, "hours"),
        ("UTC", {0: Hours(time(17), time(9), opens_days_before=2)}, "hours"),
    ],
)
def test_a_calendar_that_makes_no_sense_is_refused_with_words(
    zone: str, hours: dict[int, Hours], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        SessionCalendar("mine", zone, hours)
    assert caught.value.key == key
