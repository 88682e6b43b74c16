"""Waiting times between attempts: bare numbers in, bare numbers out."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.resilience import Backoff, exponential

delays = st.lists(st.floats(0, 1e6), min_size=1, max_size=8)
chances = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 30), (1, 30), (2, 60), (3, 120), (4, 300), (5, 300), (900, 300)]
)
def test_the_default_schedule_is_the_contracts(failures: int, seconds: float) -> None:
    assert Backoff().delay(failures) == seconds


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (3, 60), (4, 60)])
def test_after_the_schedule_comes_the_steady_delay(failures: int, seconds: float) -> None:
    assert Backoff((1, 2), steady=60).delay(failures) == seconds


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 80), (0.5, 100), (0.75, 110)])
def test_jitter_spreads_both_ways(chance: float, seconds: float) -> None:
    assert Backoff((100,), jitter=0.2).delay(1, chance) == pytest.approx(seconds)


@given(
    delays, st.one_of(st.none(), st.floats(0, 1e6)), st.floats(0, 1), st.integers(0, 1000), chances
)
def test_a_delay_is_never_negative_and_never_above_the_longest_with_jitter(
    schedule: list[float], steady: float | None, jitter: float, failures: int, chance: float
) -> None:
    delay = Backoff(schedule, steady=steady, jitter=jitter).delay(failures, chance)
    longest = max(*schedule, steady or 0.0, 0.0)
    assert 0 <= delay <= longest * (1 + jitter)


@given(st.floats(1e-3, 10), st.floats(1, 1e3), st.floats(1.1, 10))
def test_exponential_never_shrinks_and_ends_at_the_longest(
    first: float, more: float, factor: float
) -> None:
    longest = first * more
    backoff = exponential(first, longest, factor=factor, jitter=0)
    row = [backoff.delay(n) for n in range(1, len(backoff.delays) + 3)]
    assert row[0] == first or first == longest
    assert row[-1] == row[-2] == longest
    assert all(a <= b for a, b in itertools.pairwise(row))


def test_exponential_doubles() -> None:
    assert exponential(0.5, 5).delays == (0.5, 1.0, 2.0, 4.0, 5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Backoff(()),
        lambda: Backoff((1, -1)),
        lambda: Backoff((float("nan"),)),
        lambda: Backoff((1,), steady=float("inf")),
        lambda: Backoff((1,), jitter=1.5),
        lambda: exponential(0, 5),
        lambda: exponential(5, 1),
        lambda: exponential(1, 5, factor=1),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(build) -> None:
    with pytest.raises(ConfigError, match=r"^\[(delays|jitter|backoff)\]: "):
        build()
