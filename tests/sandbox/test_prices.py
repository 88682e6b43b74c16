"""Claims about the sandbox's walk and its bars."""

import itertools
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.sandbox.listings import LISTINGS
from keepline.sandbox.prices import MOST_BARS, Bar, Prices, Unit

NOW = datetime(2026, 1, 5, 14, 30, 20, tzinfo=UTC).timestamp()  # a Monday
MES = LISTINGS["CON.F.US.MES.Z26"]
DAY = 86_400.0


def bars(
    unit: Unit = Unit.MINUTE, *, start: float = NOW - 7200, end: float = NOW, **more: object
) -> list[Bar]:
    given = {"start": start, "end": end, "unit": unit, "now": NOW} | more
    return Prices(1).bars(MES, **given)  # type: ignore[arg-type]


def day(bar: Bar) -> str:
    return f"{datetime.fromtimestamp(bar.at, UTC):%a %Y-%m-%d %H:%M}"


def test_a_seed_is_a_walk() -> None:
    walk = [Prices(1).last(MES, NOW + second) for second in range(600)]
    assert walk == [Prices(1).last(MES, NOW + second) for second in range(600)]
    assert walk != [Prices(2).last(MES, NOW + second) for second in range(600)]
    assert len(set(walk)) > 5
    other = LISTINGS["CON.F.US.EP.Z26"]  # the same price, another walk
    assert walk != [Prices(1).last(other, NOW + second) for second in range(600)]


@given(st.sampled_from(list(LISTINGS.values())), st.floats(0, 4e9), st.integers(0, 2**32))
def test_a_price_is_on_the_tick_and_near_its_place(listing: object, now: float, seed: int) -> None:
    assert isinstance(listing, type(MES))
    price = Prices(seed).last(listing, now)
    assert listing.on_tick(price)
    assert abs(price / listing.price - 1) < Decimal("0.1")
    quote = Prices(seed).quote(listing, now)
    assert quote.ask - quote.bid == listing.tick


def test_a_walk_does_not_jump() -> None:
    walk = [Prices(3).last(MES, NOW + second) for second in range(3600)]
    steps = [abs(a - b) for a, b in itertools.pairwise(walk)]
    assert max(steps) < 5


def test_bars_are_newest_first_and_fit_each_other() -> None:
    found = bars()
    assert [bar.at for bar in found] == list(range(int(NOW) // 60 * 60 - 60, int(NOW) - 7200, -60))
    for newer, older in itertools.pairwise(found):
        assert newer.open == older.close
    for bar in found:
        assert bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high
        assert bar.volume > 0
        assert all(MES.on_tick(price) for price in (bar.open, bar.high, bar.low, bar.close))


def test_a_bar_is_the_same_in_every_window() -> None:
    whole = {bar.at: bar for bar in bars(start=NOW - DAY)}
    assert all(whole[bar.at] == bar for bar in bars(start=NOW - 3000, end=NOW - 600))


def test_both_ends_of_a_window_belong_to_it() -> None:
    edge = NOW // 60 * 60 - 600
    assert [bar.at for bar in bars(start=edge, end=edge)] == [edge]
    assert bars(start=edge + 1, end=edge + 59) == []
    assert bars(start=edge, end=edge - 60) == []


def test_the_limit_keeps_the_newest() -> None:
    assert bars(limit=3) == bars()[:3]
    assert len(bars(Unit.SECOND, start=0)) == MOST_BARS


def test_the_bar_that_is_not_over_is_told_when_asked_for() -> None:
    partial = bars(partial=True)
    assert partial[1:] == bars()
    assert partial[0].at == NOW // 60 * 60
    assert partial[0].close == Prices(1).last(MES, NOW)
    assert bars(end=NOW + 1e6, partial=True) == partial  # nothing is told of the future


@pytest.mark.parametrize(
    ("unit", "number", "first"),
    [
        (Unit.SECOND, 30, "Mon 2026-01-05 14:29"),
        (Unit.MINUTE, 5, "Mon 2026-01-05 14:25"),
        (Unit.HOUR, 4, "Mon 2026-01-05 08:00"),
        (Unit.DAY, 1, "Fri 2026-01-02 00:00"),
        (Unit.WEEK, 1, "Mon 2025-12-29 00:00"),
        (Unit.MONTH, 1, "Mon 2025-12-01 00:00"),
        (Unit.MONTH, 3, "Wed 2025-10-01 00:00"),
    ],
)
def test_bars_begin_where_calendars_do(unit: Unit, number: int, first: str) -> None:
    assert day(bars(unit, number=number, start=0, limit=1)[0]) == first


def test_short_bars_rest_at_the_weekend() -> None:
    hours = [day(bar) for bar in bars(Unit.HOUR, start=NOW - 4 * DAY)]
    gap = hours.index("Sun 2026-01-04 22:00")
    assert hours[gap + 1] == "Fri 2026-01-02 21:00"
    seconds = bars(Unit.SECOND, start=NOW - 4 * DAY, end=NOW - DAY, limit=2)
    assert day(seconds[0]) == "Sun 2026-01-04 14:30" or day(seconds[0]).startswith("Fri")
    days = [day(bar)[:3] for bar in bars(Unit.DAY, start=NOW - 14 * DAY)]
    assert set(days) == {"Mon", "Tue", "Wed", "Thu", "Fri"}


@pytest.mark.parametrize("unit", list(Unit))
def test_before_time_began_there_is_no_bar(unit: Unit) -> None:
    assert bars(unit, start=-1e12, end=0) == []
    assert bars(unit, start=-1e12, end=-1e9) == []


def test_months_of_a_long_past_end_with_1970() -> None:
    months = bars(Unit.MONTH, start=-1e10)
    assert day(months[-1])[4:] == "1970-02-01 00:00"
