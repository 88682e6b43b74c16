"""What a client may do, and how wishes become ticks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.hub.limits import Bucket, Limits


@pytest.mark.parametrize(
    ("rate", "ticks"),
    [(None, 1), (1000, 1), (62.5, 1), (60, 2), (30, 3), (10, 7), (1, 63), (0.1, 625)],
)
def test_a_declared_rate_is_a_whole_number_of_ticks(rate: float | None, ticks: int) -> None:
    assert Limits().interval_of(rate) == pytest.approx(ticks * 0.016)


@given(st.floats(min_value=0.1, max_value=1000))
def test_a_client_never_gets_more_frames_than_it_asked_for(rate: float) -> None:
    limits = Limits()
    interval = limits.interval_of(rate)
    assert interval >= limits.interval
    assert 1 / interval <= rate * (1 + 1e-9) or interval == limits.interval


def test_slower_frames_hold_more_up_to_the_clients_buffer() -> None:
    limits = Limits()
    assert limits.budget(limits.interval) == 50
    assert limits.budget(limits.interval_of(30)) == 150
    assert limits.budget(limits.interval_of(1)) == 256
    assert Limits(client_buffer=10).budget(1.0) == 50


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(10, 3, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(0.05) is False
    assert bucket.take(0.1) is True
    assert bucket.take(0.1) is False
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


@given(
    st.lists(st.floats(min_value=0, max_value=0.3), max_size=200),
    st.integers(1, 20),
    st.integers(1, 50),
)
def test_a_bucket_never_gives_more_than_burst_plus_rate_times_time(
    steps: list[float], burst: int, rate: int
) -> None:
    bucket, now, given_ = Bucket(rate, burst, 0.0), 0.0, 0
    for step in steps:
        now += step
        given_ += bucket.take(now)
        assert given_ <= burst + rate * now + 1e-6
