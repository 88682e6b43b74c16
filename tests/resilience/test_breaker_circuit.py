"""One circuit with bare numbers: when it opens, whom it lets through, what closes it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.resilience.circuit import Circuit, CircuitSettings, CircuitState, Permit

CLOSED, HALF_OPEN, OPEN, ISOLATED = (
    CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN, CircuitState.ISOLATED,
)  # fmt: skip


def circuit(**more: object) -> Circuit:
    defaults = {
        "minimum_calls": 4,
        "break_seconds": 10,
        "longest_break_seconds": 40,
        "slow_call_seconds": 5,
    }
    return Circuit(CircuitSettings(**{**defaults, **more}))  # type: ignore[arg-type]


def enter(of: Circuit, now: float) -> Permit:
    permit = of.enter(now)
    assert permit is not None
    return permit


def good(of: Circuit, now: float, seconds: float = 0.1) -> None:
    permit = enter(of, now)
    if not of.went_well(permit, now - seconds, now):
        of.succeeded(permit, now - seconds, now)


def bad(of: Circuit, now: float) -> None:
    of.failed(enter(of, now), now, now)


def opened(at: float = 0.0, **more: object) -> Circuit:
    of = circuit(**more)
    for _ in range(4):
        bad(of, at)
    assert of.state is OPEN
    return of


def half_open(**more: object) -> tuple[Circuit, Permit]:
    of = opened(**more)
    probe = enter(of, 10)
    assert of.state is HALF_OPEN
    return of, probe


def test_it_opens_when_the_share_of_failures_is_reached_and_not_before_the_minimum() -> None:
    of = circuit(failure_rate=0.5)
    bad(of, 0)
    bad(of, 1)
    good(of, 2)
    assert of.state is CLOSED
    good(of, 3)
    assert of.state is OPEN
    assert of.retry_after(5) == 8


def test_below_the_share_it_stays_closed() -> None:
    of = circuit(failure_rate=0.5)
    for now in range(20):
        good(of, now)
        good(of, now)
        bad(of, now)
    assert of.state is CLOSED


def test_it_opens_when_too_many_are_slow_although_all_succeed() -> None:
    of = circuit(slow_call_rate=0.75)
    good(of, 0)
    for now in (1, 2):
        good(of, now, seconds=5)
    assert of.state is CLOSED
    good(of, 3, seconds=5)
    assert of.state is OPEN


def test_without_a_slow_time_no_call_is_slow() -> None:
    of = circuit(slow_call_seconds=None)
    for now in range(20):
        good(of, now, seconds=1e6)
    assert of.counts(20) == (20, 0, 0)


def test_what_is_older_than_the_window_does_not_count() -> None:
    of = circuit(window_seconds=60)
    for now in (0, 1, 2):
        bad(of, now)
    assert of.counts(53.9) == (3, 3, 0)
    assert of.counts(60) == (0, 0, 0)
    bad(of, 61)
    assert of.state is CLOSED


def test_steady_calls_count_for_nine_tenths_of_the_window_at_least() -> None:
    of, calls = circuit(window_seconds=10, minimum_calls=1000), [number / 2 for number in range(41)]
    for now in calls:
        good(of, now)
        total, _, _ = of.counts(now)
        assert sum(1 for at in calls if now - 9 < at <= now) <= total
        assert total <= sum(1 for at in calls if now - 10 < at <= now)


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["good", "bad", "slow"])), max_size=60))
@settings(deadline=None)
def test_counts_are_those_of_nine_to_ten_tenths_of_the_window(
    calls: list[tuple[float, str]],
) -> None:
    of, now, past = circuit(window_seconds=20, minimum_calls=1000), 100.0, []
    for wait, how in calls:
        now += wait
        past.append((now, how))
        if how == "bad":
            bad(of, now)
        else:
            good(of, now, seconds=9 if how == "slow" else 0)
        total, failed, slow = of.counts(now)
        for count, kinds in (
            (total, ("good", "bad", "slow")),
            (failed, ("bad",)),
            (slow, ("slow",)),
        ):
            least = sum(1 for at, kind in past if kind in kinds and at > now - 18 + 1e-6)
            most = sum(1 for at, kind in past if kind in kinds and at > now - 20 - 1e-6)
            assert least <= count <= most


def test_while_open_nobody_passes_and_after_the_break_the_first_does() -> None:
    of = opened()
    assert of.enter(9.99) is None
    assert (of.refused, of.state_at(9.99), of.state_at(10)) == (1, OPEN, HALF_OPEN)
    assert of.retry_after(12) == 0
    assert enter(of, 10).lease == 1
    assert of.state is HALF_OPEN


def test_half_open_lets_through_exactly_its_probes() -> None:
    of = opened(probes=3)
    assert [of.enter(10) is not None for _ in range(20)] == [True] * 3 + [False] * 17
    assert of.probing(10) == 3
    assert of.retry_after(15) == 25  # when the first lease runs out


def test_enough_good_probes_close_it_with_nothing_counted() -> None:
    of, first = half_open(probes=2)
    second = enter(of, 10)
    of.succeeded(first, 10, 11)
    assert (of.state, of.enter(11)) == (HALF_OPEN, None)
    of.succeeded(second, 10, 12)
    assert of.state is CLOSED
    assert of.counts(12) == (0, 0, 0)


def test_one_bad_probe_opens_it_for_twice_as_long_each_time() -> None:
    of, now = opened(probes=2), 10.0
    breaks = []
    for _ in range(4):
        of.failed(enter(of, now), now, now)
        breaks.append(of.retry_after(now))
        now += breaks[-1] or 0
    assert breaks == [20, 40, 40, 40]
    for _ in range(2):
        good(of, now)
    assert of.state is CLOSED
    for _ in range(4):
        bad(of, now)
    assert of.retry_after(now) == 10


def test_a_slow_probe_is_not_a_good_one() -> None:
    of, probe = half_open()
    of.succeeded(probe, 10, 15)
    assert of.state is OPEN


def test_a_cancelled_probe_gives_its_lease_back_and_decides_nothing() -> None:
    of, probe = half_open(probes=1)
    assert of.enter(10) is None
    of.ended(probe, 11)
    assert (of.state, of.probing(11)) == (HALF_OPEN, 0)
    assert enter(of, 11).lease == 2


def test_a_hung_probe_loses_its_lease_and_its_late_result_decides_nothing() -> None:
    of, hung = half_open(probes=1, lease_seconds=30)
    assert of.enter(39.9) is None
    second = enter(of, 40)
    of.failed(hung, 10, 41)
    assert (of.state, of.late, of.probing(41)) == (HALF_OPEN, 1, 1)
    of.succeeded(second, 40, 42)
    assert of.state is CLOSED


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_a_result_that_comes_after_the_lease_ran_out_decides_nothing(outcome: str) -> None:
    of, hung = half_open(probes=1, lease_seconds=30)
    getattr(of, outcome)(hung, 39.9, 40)
    assert (of.state, of.late) == (HALF_OPEN, 1)


def test_a_new_half_open_begins_to_count_good_probes_anew() -> None:
    of, probe = half_open(probes=2)
    of.succeeded(probe, 10, 10)
    of.failed(enter(of, 10), 10, 10)
    of.succeeded(enter(of, 30), 30, 30)
    assert of.state is HALF_OPEN


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_a_call_begun_before_the_break_decides_nothing_after_it(outcome: str) -> None:
    of = circuit(probes=1)
    early = enter(of, 0)
    for _ in range(4):
        bad(of, 0)
    getattr(of, outcome)(early, 0, 5)
    assert of.state is OPEN
    probe = enter(of, 10)
    getattr(of, outcome)(early, 0, 11)
    assert of.state is HALF_OPEN
    of.succeeded(probe, 10, 12)
    getattr(of, outcome)(early, 0, 13)
    assert of.counts(13) == (0, 0, 0)
    assert of.late == 3


def test_a_call_that_says_nothing_changes_no_count() -> None:
    of = circuit()
    for now in range(50):
        of.ended(enter(of, now), now)
    assert (of.state, of.counts(50), of.late) == (CLOSED, (0, 0, 0), 0)


@pytest.mark.parametrize("begin", [circuit, opened, lambda: half_open()[0]])
def test_by_hand_it_is_isolated_from_every_state_until_it_is_closed_by_hand(begin) -> None:
    of = begin()
    of.isolate(20)
    assert (of.state, of.enter(1e9), of.retry_after(1e9)) == (ISOLATED, None, None)
    of.close(30)
    assert of.state is CLOSED
    good(of, 31)
    assert of.counts(31) == (1, 0, 0)


def test_what_was_under_way_when_it_was_isolated_does_not_close_it() -> None:
    of, probe = half_open(probes=1)
    of.isolate(11)
    of.succeeded(probe, 10, 12)
    assert of.state is ISOLATED


def test_closing_by_hand_begins_with_the_first_break_again() -> None:
    of, probe = half_open()
    of.failed(probe, 10, 10)
    of.close(11)
    for _ in range(4):
        bad(of, 12)
    assert of.retry_after(12) == 10


def test_every_change_is_told_once_with_its_reason() -> None:
    of, probe = half_open(probes=1)
    of.succeeded(probe, 10, 10)
    of.isolate(11)
    of.close(12)
    assert of.news == [
        (CLOSED, OPEN, "too many calls failed or were slow"),
        (OPEN, HALF_OPEN, "the break is over"),
        (HALF_OPEN, CLOSED, "enough probes succeeded"),
        (CLOSED, ISOLATED, "isolated by hand"),
        (ISOLATED, CLOSED, "closed by hand"),
    ]
    assert repr(of) == "<Circuit closed, era 5>"


def test_the_numbers_of_the_states_are_those_of_the_metric() -> None:
    assert [state.number for state in (CLOSED, HALF_OPEN, OPEN, ISOLATED)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(
            (rate, (0, -0.1, 1.1, float("nan"), True, "0.5"))
            for rate in ("failure_rate", "slow_call_rate")
        ),
        *((count, (0, -1, 1.5, True, "3", None)) for count in ("minimum_calls", "probes")),
        *(
            (name, (0, -1, float("nan"), float("inf"), True, "5"))
            for name in ("window_seconds", "break_seconds", "slow_call_seconds", "lease_seconds")
        ),
        ("window_seconds", (None,)),
        ("longest_break_seconds", (0.5, float("inf"), "9")),
    ],
)
def test_a_setting_that_makes_no_sense_names_itself(name: str, values: tuple[object, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^\[{name}\]: is "):
            CircuitSettings(**{name: value})  # type: ignore[arg-type]


# ---- for any trace ----

step = st.one_of(
    st.tuples(st.just("advance"), st.floats(0, 20)),
    st.tuples(st.just("enter"), st.just(0.0)),
    st.tuples(st.sampled_from(["succeeded", "failed", "ended"]), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.sampled_from(["isolate", "close"]), st.just(0.0)),
)


@given(st.lists(step, max_size=120), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_half_open_never_has_more_probes_out_than_its_permits_and_is_never_stuck(
    trace: list[tuple[str, float]], probes: int
) -> None:
    of, now = circuit(probes=probes, minimum_calls=2, lease_seconds=30), 0.0
    out: dict[Permit, float] = {}
    for what, value in trace:
        if what == "advance":
            now += value
        elif what == "enter":
            if (permit := of.enter(now)) is not None:
                out[permit] = now
        elif what in ("isolate", "close"):
            getattr(of, what)(now)
        elif out:
            permit = list(out)[int(value * len(out))]
            begun = out[permit]
            if permit.lease:
                del out[permit]
            if what == "ended":
                of.ended(permit, now)
            else:
                getattr(of, what)(permit, begun, now)
        leased = [p for p, at in out.items() if p.era == of.era and p.lease and now < at + 30]
        assert len(leased) <= probes
        assert of.probing(now) == (len(leased) if of.state is HALF_OPEN else 0)
    if of.state is not ISOLATED:
        assert (
            of.enter(now + 1000) is not None
        )  # whatever happened, somebody is let in sooner or later
