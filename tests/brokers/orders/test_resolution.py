"""One intent's way from prepared to settled, with bare numbers for time."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.brokers.orders.venue import BY_LOOKS, TAGGED, order_intent

from keepline.brokers.base import BrokerFacts, IntentKind, OrderIntent
from keepline.brokers.orders.matching import Finding, Found
from keepline.brokers.orders.resolution import LATE_WATCH_SECONDS, TRANSITIONS, How, State, Ticket
from keepline.errors import ConfigError

WALL = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
THERE = Finding(Found.YES, "order 7 is open", "7")
NOT_THERE = Finding(Found.ABSENT, "no order of it is there")
REJECTED = Finding(Found.NO, "the broker rejected it", "7")
TWO = Finding(Found.ASK, "2 orders fit: 7, 8; a person must say which is it")
NOTHING_PROVEN = Finding(Found.WAIT, "could not be read: history")
STRANGE = Finding(Found.UNCLEAR, "fill t1 of order 9 belongs to no known order")
FLAT = Finding(Found.NEEDLESS, "no closing order is there, and the position is flat")


def sent(facts: BrokerFacts = TAGGED, intent: OrderIntent | None = None) -> Ticket:
    ticket = Ticket(intent or order_intent("i"), facts)
    ticket.send(WALL)
    return ticket


def lost(
    facts: BrokerFacts = TAGGED, intent: OrderIntent | None = None, *, at: float = 100.0
) -> Ticket:
    ticket = sent(facts, intent)
    ticket.lost("no answer", at, WALL)
    return ticket


def absent(facts: BrokerFacts = TAGGED, intent: OrderIntent | None = None) -> Ticket:
    """Presumed absent at 110 s."""
    ticket = lost(facts, intent)
    for at in (100.0, 104.0, 110.0):
        look(ticket, NOT_THERE, at)
    assert ticket.state is State.PRESUMED_ABSENT
    return ticket


def look(ticket: Ticket, finding: Finding, at: float, how: How = How.QUERY) -> bool:
    changed = ticket.look(finding, how, at, at)
    if how is How.QUERY:
        ticket.pace(at)
    return changed


def test_an_answer_settles() -> None:
    ticket = sent()
    ticket.answered("7", 100.0, WALL)
    assert (ticket.state, ticket.how, ticket.order_id) == (State.ACCEPTED, How.ANSWER, "7")
    assert ticket.next_query_at is None


def test_a_proven_refusal_settles() -> None:
    ticket = sent()
    ticket.refused("not enough margin", 100.0, WALL)
    assert (ticket.state, ticket.how) == (State.REFUSED, How.ANSWER)
    assert ticket.reason == "not enough margin"


def test_what_never_left_is_refused_and_says_so() -> None:
    ticket = sent()
    ticket.unsent("the circuit is open")
    assert (ticket.state, ticket.how) == (State.REFUSED, How.UNSENT)


def test_a_lost_answer_is_unknown_and_looked_up_at_once() -> None:
    ticket = lost(at=100.0)
    assert ticket.state is State.UNKNOWN
    assert ticket.next_query_at == 100.0


def test_found_by_a_look() -> None:
    ticket = lost()
    assert look(ticket, THERE, 101.0)
    assert (ticket.state, ticket.how, ticket.order_id) == (State.ACCEPTED, How.QUERY, "7")
    assert ticket.next_query_at is None


def test_found_and_rejected_there_is_a_refusal_with_its_order() -> None:
    ticket = lost()
    assert look(ticket, REJECTED, 101.0)
    assert (ticket.state, ticket.order_id) == (State.REFUSED, "7")


def test_the_stream_is_faster_than_the_answer() -> None:
    ticket = sent()
    assert look(ticket, THERE, 99.0, How.STREAM)
    ticket.answered("7", 100.0, WALL)
    assert (ticket.state, ticket.how) == (State.ACCEPTED, How.STREAM)


def test_an_order_that_the_stream_has_shown_outlives_a_refusal_that_comes_after() -> None:
    for end in (
        lambda t: t.refused("no", 1.0, WALL),
        lambda t: t.unsent("no"),
        lambda t: t.lost("no", 1.0, WALL),
    ):
        ticket = sent()
        look(ticket, THERE, 0.5, How.STREAM)
        end(ticket)
        assert ticket.state is State.ACCEPTED


@pytest.mark.parametrize("finding", [NOT_THERE, REJECTED, TWO, STRANGE, FLAT, NOTHING_PROVEN])
def test_while_the_call_is_under_way_only_a_sight_counts(finding: Finding) -> None:
    ticket = sent()
    assert not look(ticket, finding, 1.0, How.STREAM)
    assert ticket.state is State.SENT


def test_absent_only_after_enough_views_of_which_the_last_came_after_the_longest_processing_time() -> (
    None
):
    ticket = lost(at=100.0)
    for at in (100.0, 102.0, 104.0, 106.0, 109.9):
        look(ticket, NOT_THERE, at)
        assert ticket.state is State.UNKNOWN
    look(ticket, NOT_THERE, 111.9)
    assert (ticket.state, ticket.how) == (State.PRESUMED_ABSENT, How.QUERY)
    assert ticket.reason == "no order of it is there in 6 views, the last 12 s after the call"


def test_one_late_view_is_not_enough() -> None:
    ticket = lost(at=100.0)
    look(ticket, NOT_THERE, 500.0)
    look(ticket, NOT_THERE, 501.0)  # within the spacing of the first: the same view, as it were
    look(ticket, NOT_THERE, 502.0)
    assert ticket.state is State.UNKNOWN
    look(ticket, NOT_THERE, 504.0)
    assert ticket.state is State.PRESUMED_ABSENT


def test_a_view_that_was_begun_before_the_call_ended_is_no_absence() -> None:
    ticket = lost(at=100.0)
    for at in (50.0, 60.0, 70.0, 99.9):
        ticket.look(NOT_THERE, How.QUERY, at, 200.0)
    look(ticket, NOT_THERE, 120.0)
    look(ticket, NOT_THERE, 130.0)
    assert ticket.state is State.UNKNOWN


def test_a_view_with_a_failed_source_is_no_absence() -> None:
    ticket = lost()
    for at in range(100, 1000, 5):
        look(ticket, NOTHING_PROVEN, float(at))
    assert ticket.state is State.UNKNOWN


def test_the_queries_hit_the_end_of_the_processing_time() -> None:
    ticket = lost(at=100.0)
    asked = []
    while ticket.state is State.UNKNOWN:
        at = ticket.next_query_at
        assert at is not None
        asked.append(at)
        look(ticket, NOT_THERE, at)
    assert asked == [100.0, 102.0, 106.0, 110.0]


def test_a_late_sight_wins_over_a_presumed_absence() -> None:
    ticket = absent()
    assert look(ticket, THERE, 300.0)
    assert (ticket.state, ticket.how, ticket.order_id) == (State.ADOPTED, How.LATE, "7")


def test_a_late_sight_by_its_tag_wins_even_over_a_refusal() -> None:
    ticket = sent()
    ticket.refused("not enough margin", 100.0, WALL)
    assert look(ticket, THERE, 108.0, How.STREAM)
    assert (ticket.state, ticket.how) == (State.ADOPTED, How.LATE)


def test_looks_do_not_overturn_a_refusal() -> None:
    ticket = sent(BY_LOOKS)
    ticket.refused("not enough margin", 100.0, WALL)
    assert not look(ticket, THERE, 108.0)
    assert ticket.state is State.REFUSED


def test_what_is_presumed_absent_is_looked_for_ever_less_for_an_hour() -> None:
    ticket = absent()
    asked = []
    while (at := ticket.next_query_at) is not None:
        asked.append(at)
        look(ticket, NOT_THERE, at)
    pauses = [b - a for a, b in itertools.pairwise(asked)]
    assert pauses == sorted(pauses)
    assert 900 < asked[-1] - 110 <= LATE_WATCH_SECONDS
    ticket.nudge(9_000.0)
    assert ticket.next_query_at == 9_000.0, "an event is heeded at any time"


def test_two_candidates_stop_and_ask() -> None:
    ticket = lost()
    assert look(ticket, TWO, 101.0)
    assert ticket.state is State.AMBIGUOUS
    assert ticket.next_query_at == 161.0
    for at in (161.0, 221.0, 281.0):
        assert not look(ticket, NOT_THERE, at)
    assert ticket.state is State.AMBIGUOUS, "what nobody decides is not guessed"


def test_one_candidate_that_is_left_settles_it() -> None:
    ticket = lost()
    look(ticket, TWO, 101.0)
    look(ticket, THERE, 161.0)
    assert ticket.state is State.ACCEPTED


def test_something_that_nobody_explains_ends_with_a_person() -> None:
    ticket = lost()
    for at in (100.0, 105.0, 111.0):
        look(ticket, STRANGE, at)
    assert ticket.state is State.AMBIGUOUS
    assert "a person must decide" in ticket.reason


def test_an_unexplained_view_between_absences_starts_the_count_again() -> None:
    ticket = lost()
    for at, finding in [
        (100.0, NOT_THERE),
        (103.0, NOT_THERE),
        (110.0, STRANGE),
        (113.0, NOT_THERE),
        (116.0, NOT_THERE),
    ]:
        look(ticket, finding, at)
        assert ticket.state is State.UNKNOWN
    look(ticket, NOT_THERE, 119.0)
    assert ticket.state is State.PRESUMED_ABSENT


def test_a_position_that_is_flat_makes_a_lost_close_needless() -> None:
    close = OrderIntent(id="c", kind=IntentKind.CLOSE, account="A", instrument="MNQ")
    ticket = lost(intent=close)
    for at in (100.0, 105.0):
        look(ticket, FLAT, at)
        assert ticket.state is State.UNKNOWN, "flat before the close could have come"
    look(ticket, FLAT, 110.0)
    assert (ticket.state, ticket.order_id) == (State.ACCEPTED, None)


def test_an_accepted_order_without_an_id_is_looked_for_and_not_for_ever() -> None:
    ticket = sent()
    ticket.answered(None, 100.0, WALL)
    assert ticket.state is State.ACCEPTED
    asked = 0
    while (at := ticket.next_query_at) is not None:
        asked += 1
        look(ticket, NOT_THERE, at)
    assert asked == 4
    assert (ticket.state, ticket.order_id) == (State.ACCEPTED, None)


def test_an_accepted_order_gets_its_id_by_a_look_also_when_it_was_rejected_there() -> None:
    for finding in (THERE, REJECTED):
        ticket = sent()
        ticket.answered(None, 100.0, WALL)
        assert look(ticket, finding, 101.0)
        assert (ticket.state, ticket.order_id) == (State.ACCEPTED, "7")


def test_a_burst_of_events_is_not_a_burst_of_queries() -> None:
    ticket = lost()
    look(ticket, NOT_THERE, 100.0)
    for _ in range(50):
        ticket.nudge(100.5)
    assert ticket.next_query_at == 102.0


def test_an_event_does_not_make_a_call_under_way_be_looked_up() -> None:
    ticket = sent()
    ticket.nudge(1.0)
    assert ticket.next_query_at is None


# --- after a crash ---


def restored(state: State, **more: object) -> Ticket:
    given = {"how": How.NONE, "reason": "", "order_id": None, "sent_at": WALL} | more
    return Ticket.restored(order_intent("i"), TAGGED, state=state, **given)


def test_what_was_sent_when_the_program_ended_is_unknown() -> None:
    ticket = restored(State.SENT)
    ticket.resume(5.0, WALL + timedelta(hours=3))
    assert (ticket.state, ticket.next_query_at) == (State.UNKNOWN, 5.0)


def test_the_processing_time_counts_from_the_restart_and_not_from_the_wall_clock() -> None:
    ticket = restored(State.SENT)
    ticket.resume(5.0, WALL + timedelta(hours=3))
    for at in (5.0, 8.0, 12.0):
        look(ticket, NOT_THERE, at)
    assert ticket.state is State.UNKNOWN
    look(ticket, NOT_THERE, 15.0)
    assert ticket.state is State.PRESUMED_ABSENT


def test_a_long_time_off_does_not_widen_the_window_for_its_order() -> None:
    ticket = restored(State.SENT)
    ticket.resume(5.0, WALL + timedelta(days=2))
    call, processing, skew = 20, 10, 5
    assert ticket.window.start == WALL - timedelta(seconds=skew)
    assert ticket.window.end == WALL + timedelta(seconds=call + processing + skew)


def test_a_clock_that_went_back_meanwhile_does_not_turn_the_window_round() -> None:
    ticket = restored(State.UNKNOWN)
    ticket.resume(5.0, WALL - timedelta(hours=1))
    assert WALL in ticket.window


def test_only_what_was_prepared_is_proven_to_be_unsent() -> None:
    ticket = restored(State.PREPARED, sent_at=None)
    ticket.resume(5.0, WALL)
    assert (ticket.state, ticket.next_query_at) == (State.PREPARED, None)


@pytest.mark.parametrize("state", [State.UNKNOWN, State.AMBIGUOUS, State.PRESUMED_ABSENT])
def test_what_was_searched_for_is_searched_for_again(state: State) -> None:
    ticket = restored(state)
    ticket.resume(5.0, WALL)
    assert (ticket.state, ticket.next_query_at) == (state, 5.0)


def test_an_accepted_order_without_an_id_is_searched_for_again() -> None:
    ticket = restored(State.ACCEPTED, how=How.ANSWER)
    ticket.resume(5.0, WALL)
    assert ticket.next_query_at == 5.0


@pytest.mark.parametrize("state", [State.REFUSED, State.ADOPTED])
def test_what_is_settled_rests(state: State) -> None:
    ticket = restored(state, order_id="7")
    ticket.resume(5.0, WALL)
    assert (ticket.state, ticket.next_query_at) == (state, None)


# --- a person ---


@pytest.mark.parametrize(
    ("ticket", "state"),
    [(lost(), State.ACCEPTED), (absent(), State.ADOPTED)],
    ids=["unknown", "presumed absent"],
)
def test_a_person_names_the_order(ticket: Ticket, state: State) -> None:
    ticket.decide("9", "seen at the broker")
    assert (ticket.state, ticket.how, ticket.order_id) == (state, How.PERSON, "9")
    assert ticket.next_query_at is None


def test_a_person_says_absent() -> None:
    ticket = lost()
    look(ticket, TWO, 101.0)
    ticket.decide(None, "both are mine")
    assert (ticket.state, ticket.how, ticket.next_query_at) == (
        State.PRESUMED_ABSENT,
        How.PERSON,
        None,
    )


def test_what_a_person_called_absent_still_gives_way_to_its_tag_but_not_to_looks() -> None:
    by_tag, by_looks = lost(TAGGED), lost(BY_LOOKS)
    for ticket in (by_tag, by_looks):
        ticket.decide(None, "not there")
        look(ticket, THERE, 500.0)
    assert (by_tag.state, by_looks.state) == (State.ADOPTED, State.PRESUMED_ABSENT)


def test_a_person_confirms_a_presumed_absence() -> None:
    ticket = absent()
    ticket.decide(None, "looked myself")
    assert (ticket.state, ticket.how, ticket.reason) == (
        State.PRESUMED_ABSENT,
        How.PERSON,
        "looked myself",
    )


def test_a_person_withdraws_what_was_never_sent() -> None:
    ticket = Ticket(order_intent("i"), TAGGED)
    ticket.decide(None, "not any more")
    assert (ticket.state, ticket.how) == (State.REFUSED, How.UNSENT)


def settled(state: State) -> Ticket:
    ticket = sent()
    if state is State.ACCEPTED:
        ticket.answered("7", 1.0, WALL)
    elif state is State.REFUSED:
        ticket.refused("no", 1.0, WALL)
    return ticket


@pytest.mark.parametrize(
    ("ticket", "order_id", "words"),
    [
        (sent(), "7", "under way"),
        (sent(), None, "under way"),
        (Ticket(order_intent("i"), TAGGED), "7", "never sent"),
        (settled(State.ACCEPTED), None, "settled"),
        (settled(State.ACCEPTED), "8", "it is order 7"),
        (settled(State.REFUSED), None, "settled"),
    ],
)
def test_a_person_cannot_overrule_a_proof(ticket: Ticket, order_id: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ticket.decide(order_id, "because")


# --- for all lives ---

FINDINGS = st.sampled_from([THERE, NOT_THERE, REJECTED, TWO, NOTHING_PROVEN, STRANGE])


@given(st.lists(st.tuples(FINDINGS, st.floats(0.1, 8.0)), max_size=40))
def test_whatever_is_seen_states_change_only_as_the_table_says(
    sights: list[tuple[Finding, float]],
) -> None:
    ticket, now = lost(at=0.0), 0.0
    for finding, pause in sights:
        now += pause
        before, order = ticket.state, ticket.order_id
        look(ticket, finding, now)
        assert ticket.state is before or ticket.state in TRANSITIONS[before]
        if before.is_accepted:
            assert ticket.order_id == order
        if ticket.state is State.PRESUMED_ABSENT and before is State.UNKNOWN:
            assert now >= TAGGED.longest_processing_seconds


@given(st.lists(st.tuples(FINDINGS, st.floats(0.1, 8.0)), max_size=30))
def test_a_sight_settles_it_whatever_was_seen_before(sights: list[tuple[Finding, float]]) -> None:
    ticket, now = lost(at=0.0), 0.0
    for finding, pause in sights:
        now += pause
        look(ticket, finding, now)
    look(ticket, THERE, now + 1.0)
    assert ticket.state.is_accepted
