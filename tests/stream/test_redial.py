"""When to dial again: earned, not given; obeyed, not guessed; never in a storm."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import (
    APIError,
    ConfigError,
    PermanentError,
    ProtocolError,
    QueueFull,
    SignInRequired,
    TokenRefused,
    TokenUnavailable,
    TransientError,
)
from keepline.resilience.backoff import Backoff
from keepline.stream.faults import RULES
from keepline.stream.redial import DialLimiter, Fault, Plan, Redial, fault_of_error, fault_of_lost


def redial(**options: float) -> Redial:
    return Redial(**{"jitter": 0.0, **options})


def lose(
    one: Redial,
    now: float,
    *,
    lived: float = 0.0,
    data: bool = False,
    fault: Fault = Fault.NETWORK,
    **how: float,
) -> Plan:
    """A dial at `now` that is lost after `lived` seconds."""
    one.dialing(now)
    if lived:
        one.opened(now)
    if data:
        one.data()
    return one.lost(now + lived, fault, **how)


def delays(one: Redial, count: int, *, lived: float = 5.0, **how: Any) -> list[float]:
    now, found = 0.0, []
    for _ in range(count):
        plan = lose(one, now, lived=lived, **how)
        found.append(plan.delay)
        now = plan.at
    return found


def test_the_schedule_of_the_contract() -> None:
    assert delays(redial(), 7) == [0.0, 2.0, 10.0, 30.0, 60.0, 60.0, 60.0]


def test_an_open_connection_earns_nothing_without_data() -> None:
    assert delays(redial(), 5, lived=3600.0) == [0.0, 2.0, 10.0, 30.0, 60.0]


def test_data_earns_nothing_without_a_minimum_life() -> None:
    assert delays(redial(), 5, lived=29.0, data=True) == [0.0, 2.0, 10.0, 30.0, 60.0]


def test_life_and_data_together_earn_the_backoff_back() -> None:
    assert delays(redial(), 5, lived=30.0, data=True) == [0.0] * 5


def test_data_of_an_earlier_connection_does_not_count_for_the_next() -> None:
    one = redial()
    one.dialing(0.0)
    one.opened(0.0)
    one.data()
    assert one.lost(1.0, Fault.CLOSED).delay == 0.0
    assert lose(one, 2.0, lived=100.0).delay == 2.0
    assert one.failures == 2


def test_two_dials_are_never_closer_than_the_floor() -> None:
    one = redial(backoff=(0.0,))
    plan = lose(one, 100.0, lived=0.01)
    assert (plan.at, plan.delay) == (101.0, pytest.approx(0.99))


def test_a_connect_by_hand_forgets_the_past_but_not_the_floor() -> None:
    one = redial()
    delays(one, 4)
    one.reset()
    assert one.failures == 0
    assert lose(one, 1000.0, lived=0.1).at == 1001.0


def test_delays_are_spread_both_ways_and_leasts_only_upwards() -> None:
    def delay(fault: Fault, chance: float) -> float:
        one = Redial(jitter=0.2, backoff=(10.0,))
        one.dialing(0.0)
        return one.lost(50.0, fault, chance=chance).delay

    assert delay(Fault.NETWORK, 0.0) == pytest.approx(8.0)
    assert delay(Fault.NETWORK, 0.999) == pytest.approx(12.0, abs=0.01)
    assert delay(Fault.CONFLICT, 0.0) == pytest.approx(15.0)
    assert delay(Fault.CONFLICT, 0.999) == pytest.approx(18.0, abs=0.01)


@pytest.mark.parametrize(
    ("fault", "delay", "dial", "newer_token", "alarm"),
    [
        (Fault.NETWORK, 0.0, True, False, False),
        (Fault.TIMEOUT, 0.0, True, False, False),
        (Fault.SERVER, 0.0, True, False, False),
        (Fault.CLOSED, 0.0, True, False, False),
        (Fault.STALE, 0.0, True, False, False),
        (Fault.RENEWAL, 0.0, True, False, False),
        (Fault.GARBLED, 0.0, True, False, False),
        (Fault.THROTTLED, 30.0, True, False, False),
        (Fault.UNAUTHORIZED, 0.0, True, True, False),
        (Fault.NOT_FOUND, 60.0, True, False, True),
        (Fault.CONFLICT, 15.0, True, False, False),
        (Fault.OCCUPIED, 300.0, True, False, True),
        (Fault.PROTOCOL, 60.0, True, False, True),
        (Fault.REFUSED, 60.0, True, False, True),
        (Fault.CERTIFICATE, 300.0, True, False, True),
        (Fault.DISMISSED, 0.0, False, False, True),
    ],
)
def test_each_fault_is_met_in_its_own_way(
    fault: Fault, delay: float, dial: bool, newer_token: bool, alarm: bool
) -> None:
    plan = lose(redial(), 0.0, lived=10.0, fault=fault)
    assert (plan.delay, plan.dial, plan.newer_token, plan.alarm) == (
        delay,
        dial,
        newer_token,
        alarm,
    )
    assert plan.fault is fault
    assert RULES[fault].words in plan.reason


def test_every_fault_has_a_rule() -> None:
    assert set(RULES) == set(Fault)


def test_a_refused_token_is_replaced_once_and_then_asked_about_slowly_and_loudly() -> None:
    one = redial()
    first = lose(one, 0.0, fault=Fault.UNAUTHORIZED)
    assert (first.delay, first.newer_token, first.alarm) == (1.0, True, False)  # 1.0: the floor
    second = lose(one, first.at, fault=Fault.UNAUTHORIZED)
    assert (second.delay, second.newer_token, second.alarm) == (300.0, True, True)
    between = lose(one, second.at, fault=Fault.NETWORK)
    third = lose(one, between.at, fault=Fault.UNAUTHORIZED)
    assert third.delay == 300.0  # another fault in between does not make it new


def test_a_token_that_opened_a_connection_is_trusted_again() -> None:
    one = redial()
    lose(one, 0.0, fault=Fault.UNAUTHORIZED)
    lose(one, 100.0, lived=5.0)
    assert lose(one, 200.0, fault=Fault.UNAUTHORIZED).delay == 10.0


@pytest.mark.parametrize(
    ("asked", "delay"),
    [(45.0, 45.0), (5.0, 30.0), (86_400.0, 3600.0), (float("inf"), 3600.0), (float("nan"), 30.0), (-3.0, 30.0)],
)  # fmt: skip
def test_retry_after_is_obeyed_within_reason(asked: float, delay: float) -> None:
    plan = lose(redial(), 0.0, lived=5.0, fault=Fault.THROTTLED, retry_after=asked)
    assert plan.delay == delay


def test_attempts_run_out_when_they_are_limited() -> None:
    one = redial(attempts=3)
    plans = [lose(one, now, lived=1.0) for now in (0.0, 100.0, 200.0)]
    assert [plan.dial for plan in plans] == [True, True, False]
    assert "3 attempts failed in a row" in plans[-1].reason
    assert plans[-1].alarm


def test_a_person_is_called_after_several_failures_in_a_row() -> None:
    one = redial(alarm_after=3)
    assert [lose(one, now, lived=1.0).alarm for now in (0.0, 100.0, 200.0)] == [False, False, True]
    assert repr(one) == "<Redial after 3 failures in a row>"


def test_a_planned_new_connection_is_no_failure_unless_the_last_one_hardly_lived() -> None:
    assert delays(redial(attempts=1), 5, lived=100.0, fault=Fault.RENEWAL) == [0.0] * 5
    assert delays(redial(), 5, lived=5.0, fault=Fault.RENEWAL) == [0.0, 2.0, 10.0, 30.0, 60.0]
    one = redial(attempts=1)
    plans = [lose(one, now, lived=99.0, fault=Fault.RENEWAL) for now in (0.0, 100.0)]
    assert [(plan.dial, plan.alarm, plan.attempt) for plan in plans] == [(True, False, 1)] * 2


def test_a_renewal_without_a_gap_keeps_what_the_life_so_far_has_earned() -> None:
    one = redial()
    delays(one, 4)
    one.dialing(100.0)
    one.opened(100.0)
    one.data()
    one.renewed(200.0)
    plan = one.lost(200.5, Fault.NETWORK)
    assert (plan.attempt, plan.at) == (1, 201.0), "earned, and a dial a second after the last one"


def test_a_newer_token_makes_the_next_dial_due_by_the_schedule_alone() -> None:
    one = redial()
    first, second, third = (lose(one, now, fault=Fault.UNAUTHORIZED) for now in (0.0, 10.0, 20.0))
    assert (first.at, first.with_newer_at) == (1.0, 1.0)
    assert (second.at, second.with_newer_at) == (310.0, 12.0)
    assert (third.at, third.with_newer_at) == (320.0, 30.0)
    assert lose(one, 30.0, fault=Fault.UNAUTHORIZED, retry_after=99.0).with_newer_at == 129.0


def test_the_words_of_the_far_end_are_in_the_reason() -> None:
    one = redial()
    one.dialing(0.0)
    plan = one.lost(1.0, Fault.SERVER, words="503 at negotiate")
    assert plan.reason == "the server is in trouble: 503 at negotiate"


def test_a_schedule_of_ones_own_may_be_a_backoff() -> None:
    one = Redial(Backoff((3.0,), jitter=0.0))
    assert lose(one, 0.0, lived=5.0).delay == 3.0


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"min_life": -1.0}, "min_life"),
        ({"floor": float("inf")}, "floor"),
        ({"attempts": 0}, "attempts"),
        ({"alarm_after": 0}, "alarm_after"),
        ({"backoff": ()}, "delays"),
        ({"jitter": 2.0}, "jitter"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Redial(**options)
    assert caught.value.key == key


EVENTS = st.tuples(
    st.floats(0.0, 60.0),  # how long it lived
    st.booleans(),  # whether data came
    st.sampled_from([fault for fault in Fault if fault is not Fault.DISMISSED]),
    st.one_of(st.none(), st.floats(0.0, 100.0)),
    st.floats(0.0, 0.99),
)


@given(st.lists(EVENTS, min_size=2, max_size=60))
def test_no_sequence_of_losses_makes_a_storm(events) -> None:
    """Ever: dials are a floor apart; and connections that earned nothing get ever rarer dials."""
    one, now, dials, unearned = Redial(jitter=0.2), 0.0, [], 0
    for lived, data, fault, retry_after, chance in events:
        dials.append(now)
        one.dialing(now)
        one.opened(now)
        if data:
            one.data()
        plan = one.lost(now + lived, fault, retry_after=retry_after, chance=chance)
        earned = data and lived >= 30.0
        planned = fault is Fault.RENEWAL and lived >= 30.0
        unearned = (0 if earned else unearned) + (not planned)
        assert one.failures == unearned
        least = (0.0, 2.0, 10.0, 30.0, 60.0)[min(max(unearned, 1), 5) - 1] * 0.8
        assert plan.delay >= least - 1e-9
        if retry_after:
            assert plan.delay >= retry_after - 1e-6
        now = plan.at
    assert all(later - earlier >= 1.0 - 1e-6 for earlier, later in itertools.pairwise(dials))


@given(st.lists(st.floats(0.0, 0.5), min_size=20, max_size=60), st.booleans())
def test_accept_then_close_is_dialed_at_most_once_a_minute_in_the_long_run(lives, data) -> None:
    one, now, dials = Redial(jitter=0.2), 0.0, []
    for lived in lives:
        dials.append(now)
        plan = lose(one, now, lived=lived or 1e-3, data=data, fault=Fault.CLOSED)
        now = plan.at
    first_minutes = [at for at in dials if at <= 180.0]
    assert len(first_minutes) <= 8
    assert dials[-1] >= (len(dials) - 5) * 48.0


def test_a_process_dials_in_a_burst_and_then_at_a_steady_rate() -> None:
    limiter = DialLimiter(burst=3, per_second=2.0)
    assert [limiter.reserve(0.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert limiter.reserve(1.0) == 0.5
    assert [limiter.reserve(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert repr(limiter) == "<DialLimiter 2 per second>"


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=80))
def test_no_second_of_a_process_has_more_dials_than_its_budget(gaps) -> None:
    limiter, now, dials = DialLimiter(burst=4, per_second=2.0), 0.0, []
    for gap in gaps:
        now += gap
        dials.append(now + limiter.reserve(now))
    for start in dials:
        assert sum(start <= at < start + 10.0 - 1e-6 for at in dials) <= 4 + 20


@pytest.mark.parametrize(
    ("options", "key"), [({"burst": 0}, "burst"), ({"per_second": 0.0}, "per_second")]
)
def test_a_budget_that_makes_no_sense_is_refused(options: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DialLimiter(**options)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (TransientError("x", category="network"), Fault.NETWORK),
        (TransientError("x", category="timeout"), Fault.TIMEOUT),
        (TransientError("x"), Fault.NETWORK),
        (TransientError("x", category="server"), Fault.SERVER),
        (TransientError("x", category="rate_limit"), Fault.THROTTLED),
        (APIError("x", category="auth"), Fault.UNAUTHORIZED),
        (TransientError("x", status=503), Fault.SERVER),
        (TransientError("x", status=429, category="rate_limit"), Fault.THROTTLED),
        (TransientError("x", status=408), Fault.TIMEOUT),
        (PermanentError("x", status=401), Fault.UNAUTHORIZED),
        (PermanentError("x", status=403), Fault.UNAUTHORIZED),
        (PermanentError("x", status=404), Fault.NOT_FOUND),
        (PermanentError("x", status=409), Fault.CONFLICT),
        (PermanentError("x", status=501), Fault.SERVER),
        (PermanentError("x", status=400), Fault.REFUSED),
        (PermanentError("x", category="auth"), Fault.UNAUTHORIZED),
        (PermanentError("x", category="network"), Fault.CERTIFICATE),
        (ProtocolError("HTML, not JSON"), Fault.PROTOCOL),
        (TimeoutError(), Fault.TIMEOUT),
        (ConnectionResetError(), Fault.NETWORK),
        (QueueFull("x"), Fault.NETWORK),
        (SignInRequired("x"), Fault.UNAUTHORIZED),
        (TokenRefused("x"), Fault.UNAUTHORIZED),
        (TokenUnavailable("x"), Fault.NETWORK),
    ],
)
def test_an_error_is_one_fault(error: Exception, fault: Fault) -> None:
    assert fault_of_error(error) is fault


@pytest.mark.parametrize(
    ("reason", "fault"),
    [("close", Fault.CLOSED), ("cut", Fault.NETWORK), ("timeout", Fault.TIMEOUT), ("protocol", Fault.GARBLED),
     ("kicked", Fault.OCCUPIED), ("something new", Fault.NETWORK), ("stale", Fault.STALE)],
)  # fmt: skip
def test_the_end_of_a_connection_is_one_fault(reason: str, fault: Fault) -> None:
    assert fault_of_lost(reason) is fault
    assert fault_of_lost(reason, allow_reconnect=False) is Fault.DISMISSED
