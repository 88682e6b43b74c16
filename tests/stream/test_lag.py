"""Lag is what is late, not what a clock is off by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.stream.lag import LagMeter

EPOCH = 1_790_000_000.0


def meter_after(delays: list[float], *, skew: float = 0.0, every: float = 1.0) -> LagMeter:
    """A meter that saw one event per `every` seconds, each late by its delay; the venue's clock is off by `skew`."""
    meter = LagMeter()
    for number, delay in enumerate(delays):
        now = number * every
        meter.saw(now, EPOCH + now - delay + skew)
        meter.judge(EPOCH)
    return meter


@pytest.mark.parametrize("skew", [0.0, 3.0, -3.0, 29.0, -29.0])
def test_a_clock_that_is_off_is_not_lag(skew: float) -> None:
    assert meter_after([0.02, 0.05, 0.02], skew=skew).value == pytest.approx(0.0, abs=0.06)


@pytest.mark.parametrize("skew", [0.0, 3.0, -3.0])
def test_what_comes_late_is_lag_whatever_the_clocks_say(skew: float) -> None:
    assert meter_after([0.0, 0.0, 7.0], skew=skew).value == pytest.approx(7.0, abs=0.01)


def test_a_stream_that_was_behind_from_its_first_event_is_not_taken_for_a_clock() -> None:
    assert meter_after([4140.0, 4140.0]).value == pytest.approx(4110.0)


def test_of_the_events_between_two_judgements_the_freshest_counts() -> None:
    meter = meter_after([0.0])
    meter.saw(1.0, EPOCH + 1.0 - 3 * 3600)  # a snapshot: the last trade of three hours ago
    meter.saw(1.1, EPOCH + 1.1)
    assert meter.judge(EPOCH) == pytest.approx(0.0, abs=0.01)


def test_without_events_the_judgement_stays() -> None:
    meter = meter_after([0.0, 5.0])
    assert meter.judge(EPOCH) == pytest.approx(5.0)
    meter.reset()
    assert meter.judge(EPOCH) == 0.0


def test_a_lag_that_creeps_is_not_absorbed_within_the_hour() -> None:
    delays = [number * 0.05 for number in range(600)]  # 30 s behind after ten minutes
    assert meter_after(delays).value == pytest.approx(delays[-1], abs=0.1)


def test_a_wrong_best_case_is_forgotten_after_an_hour() -> None:
    meter = LagMeter()
    meter.saw(0.0, EPOCH + 20.0)  # one event from the future
    meter.judge(EPOCH)
    meter.saw(1.0, EPOCH + 1.0)
    assert meter.judge(EPOCH) == pytest.approx(20.0)
    for now in range(60, 4200, 60):
        meter.saw(now, EPOCH + now)
        meter.judge(EPOCH)
    assert meter.value == pytest.approx(0.0, abs=0.01)


def test_after_a_long_silence_the_best_case_is_that_of_now() -> None:
    meter = meter_after([0.0])
    meter.saw(100_000.0, EPOCH + 100_000.0 - 12.0)
    assert meter.judge(EPOCH) == pytest.approx(0.0)


@given(
    st.lists(st.floats(0.0, 10_000.0), min_size=1, max_size=50),
    st.floats(-1e5, 1e5),
    st.floats(0.1, 500.0),
)
def test_lag_is_never_negative_and_never_below_what_the_skew_allows(delays, skew, every) -> None:
    meter = meter_after(delays, skew=skew, every=every)
    assert meter.value >= 0.0
    assert meter.value >= delays[-1] - skew - 30.0 - 1e-3


@pytest.mark.parametrize("wrong", [{"max_skew": -1.0}, {"span": 0.0}, {"spans": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        LagMeter(**wrong)


def test_it_says_itself_in_words() -> None:
    meter = meter_after([0.0, 5.0])
    assert meter.words == "events come 5.0 s after their time at the venue"
    assert repr(meter) == "<LagMeter 5.000 s>"
