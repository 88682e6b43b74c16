"""The token's life as bare numbers: when to renew, by which table the state moves, when a person is called."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.lifecycle import (
    LOOK_SECONDS,
    TRANSITIONS,
    WARNINGS,
    Action,
    Happening,
    Lifecycle,
    TokenState,
)
from keepline.credentials.policy import TokenManagerConfig

HOUR = 3600.0
DAY = 24 * HOUR
S, H = TokenState, Happening


def life(**settings) -> Lifecycle:
    return Lifecycle(TokenManagerConfig(**settings))


def holding(lifetime=1800.0, *, now=0.0, **more) -> Lifecycle:
    made = life()
    made.take(now, lifetime=lifetime, left=more.pop("left", lifetime), **more)
    return made


# --- the table ---


def test_the_table_answers_every_happening_in_every_state():
    assert set(TRANSITIONS) == set(TokenState)
    for row in TRANSITIONS.values():
        assert set(row) == set(Happening)


def test_a_person_is_called_only_by_a_refusal():
    callers = {
        happening
        for state, row in TRANSITIONS.items()
        for happening, after in row.items()
        if after is S.SIGN_IN_REQUIRED and state is not S.SIGN_IN_REQUIRED
    }
    assert callers == {H.REFUSED}


def test_only_a_token_ends_the_call_for_a_person():
    row = TRANSITIONS[S.SIGN_IN_REQUIRED]
    assert [happening for happening in row if row[happening] is not S.SIGN_IN_REQUIRED] == [H.TAKEN]


def test_valid_comes_only_from_a_token():
    for row in TRANSITIONS.values():
        assert [h for h in row if row[h] is S.VALID and h is not H.TAKEN] in ([], [H.TAKEN])
        assert row[H.TAKEN] is S.VALID


# --- when to renew ---


@pytest.mark.parametrize(
    ("lifetime", "due"), [(24 * HOUR, 22 * HOUR), (1800.0, 1500.0), (60.0, 50.0)]
)
def test_a_token_is_renewed_by_the_smaller_buffer(lifetime, due):
    token = holding(lifetime)
    assert token.due == pytest.approx(due)
    assert token.wake(due - 1) is Action.NOTHING
    assert token.wake(due + 0.001) is Action.RENEW
    assert token.state is S.VALID


def test_a_token_that_never_dies_is_never_renewed():
    token = holding(1e12, left=math.inf)
    assert token.due == math.inf
    assert token.wake(1e11) is Action.NOTHING
    assert token.state is S.VALID
    assert token.next_wake == math.inf


def test_a_loaded_token_keeps_the_buffer_of_its_whole_life():
    token = holding(1800.0, left=400.0, now=50.0)
    assert token.due == pytest.approx(150.0)
    assert token.expires == 450.0


def test_a_loaded_token_inside_its_buffer_is_due_at_once():
    assert holding(1800.0, left=100.0).wake(0.0) is Action.RENEW


def test_a_loaded_dead_token_is_expired_and_due():
    token = holding(1800.0, left=-10.0)
    assert token.state is S.EXPIRED
    assert token.life_left(0.0) == 0.0
    assert token.wake(0.0) is Action.RENEW


def test_a_renewed_token_with_little_left_is_not_due_at_once():
    token = holding(1800.0, left=60.0, renewed=True)
    assert token.due == pytest.approx(50.0)


def test_renewals_never_follow_each_other_without_a_pause():
    assert holding(0.01, left=0.01, renewed=True, now=7.0).due == 8.0


def test_a_token_dead_on_arrival_counts_as_a_failure():
    token = holding(0.0, renewed=True)
    assert token.state is S.EXPIRED
    assert token.failures == 1
    assert token.due == 30.0


def test_the_first_token_is_fetched_at_once():
    start = life()
    start.empty(5.0)
    assert start.state is S.INITIAL
    assert start.wake(5.0) is Action.RENEW
    assert start.next_wake == 5.0


def test_a_renewal_closes_its_cycle_and_an_adoption_does_not():
    token = holding()
    token.begin(1500.0)
    token.take(1501.0, lifetime=1800.0, left=1800.0, renewed=True)
    assert token.cycle == 2
    token.take(1600.0, lifetime=1800.0, left=1800.0)
    assert token.cycle == 2


# --- failures ---


def test_failures_are_retried_by_the_listed_delays_and_then_for_ever():
    token, now, waits = holding(DAY), 22 * HOUR, []
    for attempt in range(1, 8):
        assert token.wake(now) is Action.RENEW
        assert token.begin(now) == attempt
        assert token.wake(now + 1) is Action.NOTHING
        token.failed(now)
        waits.append(token.due - now)
        now = token.due
    assert waits == [30, 60, 120, 300, 300, 300, 300]
    assert token.state is S.ERROR


def test_the_delay_is_spread_by_chance():
    early, late = holding(DAY), holding(DAY)
    early.failed(0.0, chance=0.0)
    late.failed(0.0, chance=0.999999)
    assert early.due == pytest.approx(27.0)
    assert late.due == pytest.approx(33.0)


def test_what_the_issuer_asks_for_is_respected():
    token = holding(DAY)
    token.begin(0.0)
    token.failed(0.0, retry_after=500.0)
    assert token.due == 500.0
    assert token.barred_until == 500.0
    token.take(10.0, lifetime=DAY, left=DAY)
    assert token.barred_until == -math.inf


def test_a_shorter_wish_of_the_issuer_does_not_shorten_the_delay():
    token = holding(DAY)
    token.failed(0.0, retry_after=5.0)
    assert token.due == 30.0


def test_a_failure_of_ours_is_tried_again_before_the_token_dies():
    token = holding(1800.0)
    token.begin(1710.0)
    token.failed(1710.0)
    token.begin(1740.0 - 20.0)
    token.failed(1720.0, latest=1740.0)
    assert token.due == 1740.0
    token.begin(1741.0)
    token.failed(1741.0, latest=1740.0)
    assert token.due > 1741.0


def test_a_token_that_dies_between_attempts_is_expired_and_still_retried():
    token = holding(1800.0)
    token.begin(1790.0)
    token.failed(1790.0)
    assert token.state is S.ERROR
    assert token.wake(1800.0) is Action.NOTHING
    assert token.state is S.EXPIRED
    assert token.wake(1821.0) is Action.RENEW


def test_death_during_a_renewal_leaves_it_running():
    token = holding(1800.0)
    token.begin(1799.0)
    token.wake(1900.0)
    assert token.state is S.REFRESHING
    assert token.next_wake == math.inf
    token.failed(1900.0)
    assert token.state is S.EXPIRED


def test_without_any_token_a_failure_is_an_error_and_not_an_expiry():
    start = life()
    start.empty(0.0)
    start.begin(0.0)
    start.failed(0.0)
    assert start.state is S.ERROR
    assert start.next_wake == 30.0


def test_a_success_forgets_the_failures():
    token = holding()
    token.failed(0.0)
    token.failed(30.0)
    token.begin(90.0)
    token.take(90.0, lifetime=1800.0, left=1800.0, renewed=True)
    assert token.failures == 0
    token.failed(100.0)
    assert token.due == 130.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["failed", "wake", "reject", "begin"]), st.floats(0, 900)),
        max_size=40,
    )
)
def test_an_outage_of_any_shape_never_calls_a_person(steps):
    token, now = holding(1800.0), 0.0
    for what, wait in steps:
        now += wait
        if what == "failed":
            token.failed(now)
        elif what == "wake":
            token.wake(now)
        elif what == "reject":
            token.rejected(now)
        else:
            token.begin(now)
        assert token.state is not S.SIGN_IN_REQUIRED
        assert token.state is not S.VALID or now < token.expires


# --- the venue refuses a token ---


def test_a_refused_token_is_not_served_while_it_is_renewed():
    token = holding(1800.0)
    assert token.rejected(500.0)
    assert token.fresh_until == -math.inf
    assert token.life_left(500.0) == 0.0


def test_after_a_passing_failure_the_refused_token_serves_again():
    token = holding(1800.0)
    token.rejected(500.0)
    token.begin(500.0)
    token.failed(501.0)
    assert token.fresh_until == 1800.0


def test_a_refusal_during_the_retry_delay_begins_nothing_and_takes_nothing_away():
    token = holding(1800.0)
    token.begin(500.0)
    token.failed(500.0)
    assert not token.rejected(510.0)
    assert token.rejected_until == 530.0
    assert token.fresh_until == 1800.0
    assert token.rejected(530.0)


def test_a_refusal_during_a_renewal_waits_for_that_one():
    token = holding(1800.0)
    token.begin(1500.0)
    assert token.rejected(1500.0)
    assert token.fresh_until == -math.inf


def test_a_venue_that_refuses_every_token_does_not_cause_a_storm():
    token, now, renewals = holding(1800.0, left=900.0), 0.0, []
    while now < 1200.0:
        if token.rejected(now):
            renewals.append(now)
            token.begin(now)
            token.take(now, lifetime=1800.0, left=1800.0, renewed=True)
        now += 1.0
    # at once for the first report, once more for the brand-new token, then by the retry delays
    assert renewals == [0.0, 1.0, 31.0, 91.0, 211.0, 511.0, 811.0, 1111.0]


# --- a person ---


def test_a_refusal_calls_a_person_and_the_token_is_served_to_its_end():
    token = holding(1800.0)
    token.begin(1500.0)
    token.refused(1501.0)
    assert token.state is S.SIGN_IN_REQUIRED
    assert token.fresh_until == 1800.0
    assert token.due == math.inf
    assert token.wake(1900.0) is Action.LOOK
    assert token.state is S.SIGN_IN_REQUIRED


def test_the_store_is_looked_at_every_thirty_seconds():
    token = holding()
    token.refused(100.0)
    assert token.wake(100.0) is Action.LOOK
    token.looked(100.0)
    assert token.wake(100.0 + LOOK_SECONDS - 1) is Action.NOTHING
    assert token.next_wake == 100.0 + LOOK_SECONDS
    assert token.wake(100.0 + LOOK_SECONDS) is Action.LOOK


def test_a_token_found_in_the_store_ends_the_call():
    token = holding()
    token.refused(100.0)
    token.take(200.0, lifetime=1800.0, left=1700.0, signin_left=7 * DAY)
    assert token.state is S.VALID
    assert token.wake(200.0) is Action.NOTHING


def test_nothing_but_a_token_moves_it_out_of_sign_in_required():
    token = holding()
    token.refused(10.0)
    token.begin(20.0)
    token.failed(20.0)
    assert token.state is S.SIGN_IN_REQUIRED
    assert token.rejected(30.0)
    assert token.state is S.SIGN_IN_REQUIRED


def test_the_passed_deadline_calls_a_person_while_the_token_still_serves():
    token = holding(1800.0, signin_left=600.0)
    assert token.next_wake <= 600.0
    assert token.wake(600.0) is Action.LOOK
    assert token.state is S.SIGN_IN_REQUIRED
    assert token.life_left(700.0) == 1100.0


def test_a_deadline_that_passes_during_a_renewal_is_noticed_at_its_end():
    token = holding(1800.0, signin_left=1600.0)
    token.begin(1500.0)
    token.wake(1650.0)
    assert token.state is S.REFRESHING
    token.failed(1650.0)
    assert token.state is S.SIGN_IN_REQUIRED


def test_a_refresh_does_not_move_the_deadline():
    token = holding(1800.0, signin_left=7 * DAY)
    token.take(1500.0, lifetime=1800.0, left=1800.0, renewed=True)
    assert token.signin_deadline == 7 * DAY


def test_a_person_is_warned_once_at_each_mark():
    token, warned = holding(8 * DAY, signin_left=7 * DAY), []
    for hour in range(7 * 24):
        left = token.warning(hour * HOUR)
        if left is not None:
            warned.append(left)
    assert warned == list(WARNINGS)


def test_a_late_start_warns_once_for_all_the_marks_that_passed():
    token = holding(1800.0, signin_left=5 * HOUR)
    assert token.warning(0.0) == 5 * HOUR
    assert token.warning(1.0) is None
    assert token.warning(4 * HOUR) == HOUR
    assert token.warning(5 * HOUR) is None


def test_a_warning_has_its_wake():
    token = holding(30 * DAY, signin_left=7 * DAY)
    assert token.next_wake == 4 * DAY
    assert token.warning(token.next_wake) == 3 * DAY
    assert token.next_wake == 5 * DAY


def test_a_new_sign_in_is_warned_of_anew():
    token = holding(1800.0, signin_left=HOUR)
    assert token.warning(0.0) is not None
    token.take(10.0, lifetime=1800.0, left=1800.0, signin_left=7 * DAY)
    assert token.warning(10.0) is None
    assert token.warning(10.0 + 4 * DAY) == 3 * DAY


def test_who_needs_no_person_is_never_warned():
    assert holding().warning(1e9) is None


@given(st.floats(1, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_next_wake_never_lies_behind_unless_something_is_due(lifetime, signin, step):
    token = holding(lifetime, signin_left=signin)
    now = 0.0
    for _ in range(5):
        now += step
        action = token.wake(now)
        token.warning(now)
        assert action is not Action.NOTHING or token.next_wake > now
        assert token.fresh_until == lifetime


def test_its_repr_tells_the_state():
    assert "VALID" in repr(holding())
