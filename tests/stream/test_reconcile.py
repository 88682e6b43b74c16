"""Claims about the decider: when it looks, what a snapshot changes and announces, when it says live."""

import random
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stream.accounts import (
    DAY_BEFORE,
    SELL,
    T0,
    Truth,
    account,
    at,
    fill,
    held,
    order,
    snapshot,
)

from keepline.errors import ConfigError
from keepline.model import OrderStatus
from keepline.stream.reconcile import (
    Discrepancy,
    DiscrepancyKind,
    Look,
    Phase,
    Reconciler,
    ReconcileSettings,
    Result,
    Snapshot,
)
from keepline.stream.view import Told

K, S = DiscrepancyKind, OrderStatus
GUARD = ReconcileSettings().guard_seconds


class Bench:
    """A reconciler and its time."""

    def __init__(self, *accounts: str, **settings: Any) -> None:
        self.it = Reconciler(accounts or ("A",), settings=ReconcileSettings(**settings))
        self.now = 0.0

    @classmethod
    def live(cls, *seen: Told, **first: Any) -> "Bench":
        """Live after a first snapshot, and quiet since."""
        bench = cls()
        bench.it.begin(0.0)
        assert bench.look(**first).live
        for one in seen:
            bench.it.receive(one, bench.now)
        bench.now += 100
        return bench

    def begin(self) -> None:
        self.it.lost(self.now)
        self.it.begin(self.now)

    def ask(self) -> Look:
        look = self.it.look(self.now, at(self.now))
        assert look is not None
        return look

    def look(self, *meanwhile: Told, after: float = 0.0, **parts: Any) -> Result:
        """A whole look; events come while it is taken."""
        self.now += after
        look = self.ask()
        for one in meanwhile:
            self.it.receive(one, self.now)
        given = {"scope": look.accounts, "since": look.since} | parts
        return self.it.finish(snapshot(**given), self.now)

    def later(self, seconds: float = GUARD) -> list[Discrepancy]:
        self.now += seconds
        return self.it.expire(self.now)

    def held(self, instrument: str = "MNQ") -> Decimal | None:
        found = self.it.view.position("A", instrument)
        return None if found is None else found.quantity


def kinds(result: Result) -> list[DiscrepancyKind]:
    return [found.kind for found in result.discrepancies]


# --- from a connection to live ---


def test_a_first_snapshot_is_taken_as_it_is_and_makes_live() -> None:
    bench = Bench()
    bench.it.begin(0.0)
    one, trade = order(), fill()
    result = bench.look(
        orders=[one],
        open_orders=[one],
        fills=[trade],
        positions=[held(4, 90)],
        accounts=[account()],
    )
    assert result.live
    assert result.discrepancies == ()
    assert {type(c.value).__name__ for c in result.changes} == {
        "Order", "Fill", "Position", "Account",
    }  # fmt: skip
    assert all(change.recovered for change in result.changes)
    assert len(result.changes) == 4
    assert bench.held() == 4, "the fills of the window are in the position already"


def test_what_came_meanwhile_is_kept_and_comes_after_the_snapshot() -> None:
    bench = Bench()
    bench.it.begin(0.0)
    assert bench.it.receive(fill("t1"), 0.0) == []
    assert bench.it.view.fills == {}
    result = bench.look(fill("t2"), fill("t1"), fills=[fill("t1")], positions=[held(1)])
    assert [c.value.id for c in result.changes if hasattr(c.value, "id")] == ["t1", "t2"]
    assert [c.recovered for c in result.changes] == [True, True, False, False]
    assert bench.held() == 2
    assert bench.it.phase is Phase.LIVE


def test_a_live_stream_is_applied_at_once() -> None:
    bench = Bench.live()
    (one, two) = bench.it.receive(fill(), bench.now)
    assert (one.value, one.recovered) == (fill(), False)
    assert two.value == held(1, 100)


@pytest.mark.parametrize("part", ["accounts", "orders", "open_orders", "positions", "fills"])
def test_a_query_that_failed_does_not_make_live_and_is_not_empty(part: str) -> None:
    bench = Bench.live(order(), positions=[held(3)])
    bench.begin()
    working = {"orders": [order()], "open_orders": [order()], "positions": [held(3)]}
    result = bench.look(**working | {part: None})
    assert not result.live
    assert result.reason == f"could not be read: {part}"
    assert result.discrepancies == ()
    assert bench.held() == 3, "not flat"
    assert len(bench.it.view.working()) == 1, "not without orders"
    assert bench.look(after=0.5, **working).live


def test_what_a_partial_snapshot_did_show_is_taken() -> None:
    bench = Bench()
    bench.it.begin(0.0)
    result = bench.look(orders=[order()], positions=None)
    assert [change.value for change in result.changes] == [order()]
    assert bench.held() is None


def test_positions_without_their_fills_are_not_compared() -> None:
    bench = Bench.live(positions=[held(3)])
    for _ in range(4):
        result = bench.look(fills=None, positions=[held(7)], after=70)
        assert result.discrepancies == ()
    assert bench.held() == 3


def test_an_account_that_the_snapshot_is_not_about_is_not_empty() -> None:
    bench = Bench("A", "B")
    bench.it.begin(0.0)
    result = bench.look(scope=("A",))
    assert result.reason == "could not be read: B"
    assert not result.live


def test_accounts_that_nobody_follows_are_left_out_of_a_snapshot() -> None:
    bench = Bench()
    bench.it.begin(0.0)
    foreign: dict[str, Any] = {
        "orders": [order(account="B")],
        "open_orders": [order(account="B")],
        "fills": [fill(account="B")],
        "positions": [held(1, account="B")],
        "accounts": [account(name="B")],
    }
    result = bench.look(**foreign)
    assert result.live
    assert result.changes == ()


def test_looks_that_fail_are_repeated_ever_more_seldom() -> None:
    bench = Bench(retry_seconds=(1.0, 3.0))
    bench.it.begin(0.0)
    for pause in (1.0, 3.0, 3.0):
        bench.look(fills=None)
        assert bench.it.deadline == bench.now + pause
        assert bench.it.look(bench.now + pause - 0.1, T0) is None
        bench.now += pause
    assert bench.look().live


def test_a_snapshot_of_an_earlier_connection_counts_for_nothing() -> None:
    bench = Bench.live()
    bench.now += 60
    bench.ask()
    bench.begin()
    result = bench.it.finish(snapshot(fills=[fill()]), bench.now)
    assert result == Result(reason="the connection changed while it was taken")
    assert bench.it.view.fills == {}
    bench.ask()
    bench.it.lost(bench.now)
    assert not bench.it.finish(snapshot(), bench.now).live
    assert bench.it.phase is Phase.APART


def test_a_connection_that_replaces_another_one_needs_a_snapshot_of_its_own() -> None:
    bench = Bench()
    bench.it.begin(0.0)
    bench.ask()
    bench.it.begin(0.1)
    assert not bench.it.finish(snapshot(), 0.2).live
    bench.now = 0.2
    assert bench.look().live


def test_while_one_snapshot_is_taken_no_other_is_asked_for() -> None:
    bench = Bench()
    assert bench.it.deadline is None
    assert bench.it.look(0.0, T0) is None, "not connected"
    bench.it.begin(0.0)
    bench.ask()
    assert bench.it.deadline is None
    assert bench.it.look(0.0, T0) is None


def test_a_look_that_was_given_up_is_due_again() -> None:
    bench = Bench.live()
    bench.now = 60.0
    bench.ask()
    bench.it.give_up()
    assert bench.ask().reason == "periodic"
    bench.it.give_up()
    bench.it.give_up()
    bench.begin()
    bench.ask()
    bench.it.give_up()
    assert bench.look().live


def test_events_of_a_lost_connection_are_kept_for_the_next_one() -> None:
    bench = Bench.live()
    bench.it.lost(bench.now)
    assert bench.it.receive(fill("late", at=at(100)), bench.now) == []
    bench.it.begin(bench.now)
    assert bench.look().live
    assert bench.held() == 1


def test_more_events_than_can_be_kept_make_another_snapshot_necessary() -> None:
    bench = Bench(buffer=2)
    bench.it.begin(0.0)
    bench.ask()
    for number in range(3):
        bench.it.receive(fill(f"t{number}"), 0.0)
    result = bench.it.finish(snapshot(), 0.0)
    assert (result.live, result.reason) == (False, "too many events came while it was taken")
    assert bench.it.overflows == 1
    fills = [fill(f"t{number}") for number in range(3)]
    assert bench.look(after=0.5, fills=fills, positions=[held(3)]).live
    assert bench.held() == 3


# --- how far back, and when ---


def test_the_first_look_goes_back_a_day_and_later_ones_to_the_last_whole_one() -> None:
    bench = Bench()
    bench.it.begin(0.0)
    assert bench.ask() == Look(("A",), DAY_BEFORE, "connect")
    bench.it.finish(snapshot(), 1.0)
    bench.now = 61.0
    assert bench.ask() == Look(("A",), at(-120), "periodic")
    bench.it.finish(snapshot(fills=None), 62.0)
    bench.now = 70.0
    assert bench.ask() == Look(("A",), at(-120), "the last look failed")


def test_a_wall_clock_that_jumps_changes_nothing_of_how_far_a_look_goes_back() -> None:
    bench = Bench.live()
    look = bench.it.look(100.0, at(100 + 7200))
    assert look is not None
    assert look.since == at(7200 - 120)


def test_accounts_of_a_live_stream_are_looked_at_one_by_one_with_a_distance() -> None:
    bench = Bench("A", "B")
    bench.it.begin(0.0)
    assert bench.ask().accounts == ("A", "B")
    bench.it.finish(snapshot(scope=("A", "B")), 0.0)
    assert bench.it.deadline == 60.0
    bench.now = 60.0
    first = bench.look().live
    assert first
    assert bench.it.deadline == 65.0
    assert bench.it.look(64.9, at(64.9)) is None
    bench.now = 65.0
    assert bench.ask().accounts == ("B",)


def test_what_is_suspected_is_looked_at_soon() -> None:
    bench = Bench.live()
    bench.now = 10.0
    bench.it.suspect(10.0, reason="a queue was full")
    assert bench.it.deadline == 10.0
    assert bench.ask().reason == "a queue was full"


def test_what_the_stream_said_of_a_position_during_a_look_is_not_settled_by_it() -> None:
    bench = Bench.live()
    bench.ask()
    bench.it.receive(held(2), bench.now)
    bench.it.finish(snapshot(), bench.now)
    assert bench.it.view.disputed == {("A", "MNQ"): held(2)}
    assert bench.it.next_look == bench.now + GUARD
    bench.look(after=GUARD)
    assert bench.it.view.disputed == {}


def test_a_new_connection_begins_with_short_pauses_again() -> None:
    bench = Bench(retry_seconds=(1.0, 10.0, 100.0))
    bench.it.begin(0.0)
    for pause in (1.0, 10.0, 100.0):
        assert not bench.look(fills=None).live
        assert bench.it.deadline == bench.now + pause
        bench.now += pause
    bench.begin()
    assert not bench.look(fills=None).live
    assert bench.it.deadline == bench.now + 1.0


def test_a_suspicion_about_long_ago_is_looked_into_so_far_back_and_only_once() -> None:
    bench = Bench.live()
    running = bench.ask()
    bench.it.suspect(bench.now, "A", reason="a trade was taken back", since=at(-5000))
    bench.it.suspect(bench.now, "A", since=at(-4000))
    assert running.since > at(-5000)
    bench.it.finish(snapshot(since=running.since), bench.now)
    bench.now += 5
    look = bench.ask()
    assert (look.since, look.reason) == (at(-5120), "a trade was taken back")
    bench.it.finish(snapshot(since=look.since), bench.now)
    bench.now += 60
    assert bench.ask().since == at(bench.now - 60 - 120)


def test_a_suspicion_of_an_account_that_nobody_follows_calls_for_no_look() -> None:
    bench = Bench.live()
    bench.now = 10.0
    bench.it.suspect(10.0, "B")
    assert bench.it.look(10.0, at(10)) is None


def test_a_suspicion_during_a_look_is_not_answered_by_it() -> None:
    bench = Bench.live()
    bench.ask()
    bench.it.suspect(bench.now, "A")
    bench.it.finish(snapshot(), bench.now)
    assert bench.it.deadline == bench.now + 5.0


def test_a_suspicion_before_live_is_answered_by_the_first_snapshot() -> None:
    bench = Bench()
    bench.it.begin(0.0)
    bench.it.suspect(0.0)
    assert bench.look().live
    assert bench.it.deadline == 60.0


# --- fills ---


def test_a_fill_while_away_is_applied_announced_and_marked_recovered() -> None:
    bench = Bench.live()
    bench.begin()
    result = bench.look(fills=[fill()], positions=[held(1)])
    assert result.discrepancies == (Discrepancy(K.MISSED_FILL, "A", "t1", None, fill()),)
    assert [change.recovered for change in result.changes] == [True, True]
    assert bench.held() == 1


def test_a_fill_that_the_stream_told_meanwhile_was_not_missed() -> None:
    bench = Bench.live()
    bench.begin()
    result = bench.look(fill(), fills=[fill()], positions=[held(1)])
    assert result.discrepancies == ()
    assert bench.held() == 1


def test_a_fill_that_a_look_sees_first_is_announced_when_the_stream_stays_silent() -> None:
    bench = Bench.live()
    result = bench.look(fills=[fill()], positions=[held(1)])
    assert result.discrepancies == ()
    assert len(result.changes) == 2
    assert bench.it.deadline == bench.now + GUARD
    assert bench.later(GUARD - 0.1) == []
    assert [found.kind for found in bench.later(0.1)] == [K.MISSED_FILL]
    assert bench.later(100) == [], "once"


def test_a_fill_that_a_look_sees_first_and_the_stream_tells_then_is_nothing() -> None:
    bench = Bench.live()
    bench.look(fills=[fill()], positions=[held(1)])
    assert bench.it.receive(fill(), bench.now) == []
    assert bench.later() == []
    assert bench.held() == 1


def test_a_fill_that_the_broker_took_back_is_taken_out() -> None:
    bench = Bench.live(fill("t1"), fill("t2"))
    result = bench.look(fills=[fill("t2")], voided=("t1",), positions=[held(1)])
    assert result.discrepancies == ()
    assert bench.held() == 1


# --- orders ---


def test_an_order_that_nobody_told_of_is_taken_in_and_announced() -> None:
    bench = Bench.live()
    bench.begin()
    result = bench.look(orders=[order()], open_orders=[order()])
    assert result.discrepancies == (Discrepancy(K.UNKNOWN_ORDER, "A", "1", None, order()),)
    assert bench.it.view.orders == {"1": order()}


def test_an_order_that_ended_while_away_is_a_break_with_both_sides() -> None:
    bench = Bench.live(order())
    bench.begin()
    done = order(status=S.FILLED, filled=5, updated_at=at(9))
    result = bench.look(orders=[done])
    assert result.discrepancies == (Discrepancy(K.ORDER_BREAK, "A", "1", order(), done),)
    assert bench.it.view.orders["1"].status is S.FILLED


@pytest.mark.parametrize("known", [True, False])
def test_an_order_that_the_stream_told_meanwhile_is_no_discrepancy(known: bool) -> None:
    bench = Bench.live(*[order(status=S.PENDING)] if known else [])
    bench.begin()
    told = order(updated_at=at(9))
    assert bench.look(told, orders=[told], open_orders=[told]).discrepancies == ()


@pytest.mark.parametrize("known", [True, False])
def test_an_order_that_a_look_sees_first_waits_for_the_stream(known: bool) -> None:
    bench = Bench.live(*[order(status=S.PENDING)] if known else [])
    told = order(updated_at=at(9))
    assert bench.look(orders=[told], open_orders=[told]).discrepancies == ()
    bench.it.receive(order(status=S.PENDING), bench.now)  # a repetition of an older state
    assert [f.kind for f in bench.later()] == [K.ORDER_BREAK if known else K.UNKNOWN_ORDER]
    newer = order(limit_price=101, updated_at=at(10))
    bench.look(orders=[newer], open_orders=[newer], after=60)
    bench.it.receive(newer, bench.now)
    assert bench.later() == [], "told late"


def test_what_differs_in_nothing_that_matters_is_no_break() -> None:
    bench = Bench.live(order())
    bench.begin()
    same = order(average_price=Decimal(3), updated_at=at(9))
    assert bench.look(orders=[same], open_orders=[same]).discrepancies == ()


def test_a_list_that_lags_behind_the_stream_takes_nothing_back() -> None:
    bench = Bench.live(order(status=S.FILLED, filled=5))
    result = bench.look(orders=[order()], open_orders=[order()])
    assert (result.changes, result.discrepancies) == ((), ())
    assert bench.look(orders=[order(status=S.FILLED, filled=5)], after=60).discrepancies == ()


def test_a_list_that_stays_behind_is_announced_once_and_not_believed() -> None:
    bench = Bench.live(done := order(status=S.FILLED, filled=5))
    stale = {"orders": [order()], "open_orders": [order()]}
    assert kinds(bench.look(**stale)) == []
    other = order(limit_price=99)
    assert kinds(bench.look(orders=[other], after=60)) == [], "that is another difference"
    assert kinds(bench.look(**stale, after=60)) == []
    result = bench.look(**stale, after=60)
    assert result.discrepancies == (Discrepancy(K.ORDER_BREAK, "A", "1", done, order()),)
    assert kinds(bench.look(**stale, after=60)) == []
    assert bench.it.view.orders["1"] == done


def test_a_list_that_lagged_once_and_shows_the_order_no_more_starts_anew() -> None:
    bench = Bench.live(order(status=S.FILLED, filled=5))
    stale = {"orders": [order()], "open_orders": [order()]}
    for parts in (stale, {}, stale):
        assert kinds(bench.look(**parts, after=60)) == []
    assert kinds(bench.look(**stale, after=60)) == [K.ORDER_BREAK]


@pytest.mark.parametrize("swapped", [True, False])
def test_events_that_were_kept_explain_a_change_in_whatever_order_they_came(swapped: bool) -> None:
    bench = Bench.live(order(status=S.PENDING))
    bench.begin()
    done = order(status=S.FILLED, filled=5, updated_at=at(9))
    events = [done, order()] if swapped else [order(), done]
    assert bench.look(*events, orders=[done]).discrepancies == ()


def test_absence_from_open_orders_is_not_absence() -> None:
    bench = Bench.live(order())
    done = order(status=S.CANCELLED, updated_at=at(5))
    result = bench.look(open_orders=[], orders=[done])
    assert result.discrepancies == ()
    assert bench.it.view.orders["1"].status is S.CANCELLED


def test_an_order_in_no_list_is_missing_once_and_stays_as_it_was() -> None:
    young = order(entered_at=at(50))
    bench = Bench.live(young)
    result = bench.look()
    assert result.discrepancies == (Discrepancy(K.MISSING_ORDER, "A", "1", young, None),)
    assert result.live
    assert bench.look(after=60).discrepancies == ()
    assert bench.it.view.working() == [young]
    bench.look(orders=[young], after=60)
    assert bench.look(after=60).reason == "an order is older than what was asked for"
    assert kinds(bench.look(after=5)) == [K.MISSING_ORDER], "it was there again, and is gone anew"


@pytest.mark.parametrize("failed", ["orders", "open_orders"])
def test_an_order_is_not_missing_where_a_list_was_not_read(failed: str) -> None:
    bench = Bench.live(order(entered_at=at(50)))
    assert bench.look(**{failed: None}).discrepancies == ()


def test_an_order_from_before_the_window_is_asked_for_before_it_is_missing() -> None:
    old = order(entered_at=T0 - timedelta(days=30))
    bench = Bench.live(old, orders=[old], open_orders=[old])
    bench.begin()
    result = bench.look()
    assert not result.live
    assert result.reason == "an order is older than what was asked for"
    assert result.discrepancies == ()
    bench.now += 0.5
    look = bench.ask()
    assert look.since == old.entered_at
    done = order(status=S.EXPIRED, entered_at=old.entered_at)
    result = bench.it.finish(snapshot(since=look.since, orders=[done]), bench.now)
    assert result.live
    assert kinds(result) == [K.ORDER_BREAK]
    bench.now += 60
    assert bench.ask().since > T0 - timedelta(days=1), "asked for once"


def test_a_suspended_bracket_is_in_no_list_and_not_missing() -> None:
    bench = Bench.live(order(status=S.SUSPENDED, entered_at=at(50)))
    assert bench.look().discrepancies == ()


def test_an_order_that_appears_while_a_look_is_taken_is_not_missing() -> None:
    bench = Bench.live()
    assert bench.look(order(entered_at=at(100))).discrepancies == ()


def test_of_two_states_of_one_age_the_one_that_the_stream_told_meanwhile_counts() -> None:
    bench = Bench.live(order(limit_price=100))
    bench.look(order(limit_price=101), open_orders=[order(limit_price=100)], orders=[order()])
    assert bench.it.view.orders["1"].limit_price == 101
    bench.look(open_orders=[order(limit_price=102)], orders=[order(limit_price=102)], after=60)
    assert bench.it.view.orders["1"].limit_price == 102


# --- positions ---


def test_a_position_that_differs_is_broken_only_when_it_differs_again_after_the_guard() -> None:
    bench = Bench.live(positions=[held(3)])
    result = bench.look(positions=[held(1, 90)])
    assert (result.changes, result.discrepancies) == ((), ())
    assert bench.it.unsure == {("A", "MNQ")}
    assert bench.it.deadline == bench.now + GUARD
    result = bench.look(positions=[held(1, 90)], after=GUARD)
    assert result.discrepancies == (
        Discrepancy(K.POSITION_BREAK, "A", "MNQ", held(3), held(1, 90)),
    )
    assert [c.value for c in result.changes] == [held(1, 90)], "the broker's value counts"
    assert bench.it.unsure == frozenset()
    assert bench.look(positions=[held(1, 90)], after=60).discrepancies == ()


def test_a_position_that_the_broker_does_not_list_is_flat_there() -> None:
    bench = Bench.live(positions=[held(3)])
    bench.look()
    assert kinds(bench.look(after=GUARD)) == [K.POSITION_BREAK]
    assert bench.held() == 0


def test_a_position_that_nobody_knew_is_broken_too() -> None:
    bench = Bench.live()
    other = held(2, instrument="ES")
    bench.look(positions=[other])
    assert kinds(bench.look(positions=[other], after=GUARD)) == [K.POSITION_BREAK]
    assert bench.held("ES") == 2


def test_a_difference_that_goes_away_was_none() -> None:
    bench = Bench.live(positions=[held(3)])
    bench.look(positions=[held(1)])
    assert bench.look(positions=[held(3)], after=GUARD).discrepancies == ()
    assert bench.it.unsure == frozenset()
    assert bench.look(positions=[held(1)], after=60).discrepancies == (), "counted from the start"


def test_recent_activity_puts_a_break_off() -> None:
    bench = Bench.live(positions=[held(3)])
    bench.look(positions=[held(1)])
    bench.now += GUARD - 1
    bench.it.receive(order(), bench.now)
    working: dict[str, Any] = {"orders": [order()], "open_orders": [order()]}
    assert kinds(bench.look(positions=[held(1)], after=1, **working)) == []
    assert kinds(bench.look(positions=[held(1)], after=GUARD, **working)) == [K.POSITION_BREAK]


def test_the_same_difference_in_three_looks_is_a_break_however_busy_it_is() -> None:
    bench = Bench.live(positions=[held(3)])
    for number in range(1, 3):
        fills = [fill(f"t{n}", at=at(bench.now)) for n in range(number)]
        assert kinds(bench.look(fill(f"t{number}", at=at(bench.now)), fills=fills,
                                positions=[held(1 + len(fills))], after=GUARD)) == []  # fmt: skip
    fills = [fill(f"t{n}") for n in range(3)]
    result = bench.look(fill("t3", at=at(bench.now)), fills=fills, positions=[held(4)], after=GUARD)
    assert kinds(result) == [K.POSITION_BREAK]
    assert bench.held() == 5, "theirs, and what came after it"


def test_three_looks_in_a_hurry_are_no_guard_period() -> None:
    bench = Bench(spacing_seconds=0.5)
    bench.it.begin(0.0)
    bench.look(positions=[held(3)])
    for _ in range(4):
        bench.it.suspect(bench.now)
        assert kinds(bench.look(positions=[held(1)], after=0.5)) == []
    bench.it.suspect(bench.now)
    assert kinds(bench.look(positions=[held(1)], after=GUARD)) == [K.POSITION_BREAK]


def test_a_fill_that_this_very_look_found_is_activity() -> None:
    bench = Bench.live(positions=[held(3)])
    bench.look(positions=[held(1)])
    found = {"fills": [fill()], "positions": [held(2)]}
    assert kinds(bench.look(**found, after=GUARD)) == []
    assert kinds(bench.look(**found, after=GUARD)) == [K.POSITION_BREAK]


def test_a_fill_that_was_known_before_positions_were_and_is_not_listed_comes_on_top() -> None:
    bench = Bench()
    bench.it.view.apply(fill())
    bench.it.begin(0.0)
    assert bench.look(positions=[held(3)]).live
    assert bench.held() == 4


def test_an_old_fill_that_is_told_after_whole_looks_is_in_the_position_already() -> None:
    bench = Bench.live(positions=[held(3)])
    for _ in range(3):
        assert bench.look(positions=[held(3)], after=300).live
    bench.it.receive(fill(at=at(10)), bench.now)
    assert bench.held() == 3
    bench.it.receive(fill("t2", at=at(bench.now)), bench.now)
    assert bench.held() == 4


def test_fills_that_the_snapshot_does_not_have_yet_are_no_difference() -> None:
    bench = Bench.live(positions=[held(3)])
    result = bench.look(fill("t9", 2, at=at(bench.now)), positions=[held(3)])
    assert (result.discrepancies, bench.it.unsure) == ((), frozenset())
    assert bench.held() == 5


def test_positions_that_are_ahead_of_the_list_of_fills_are_no_difference() -> None:
    bench = Bench.live(positions=[held(3)])
    bench.look(fill("t9", 2, at=at(bench.now)), positions=[held(5, 80)])
    assert bench.it.unsure == frozenset()
    assert bench.held() == 5


def test_a_position_that_the_stream_disputes_is_looked_into_after_the_guard() -> None:
    bench = Bench.live(positions=[held(3)])
    bench.it.receive(held(4), bench.now)
    assert bench.held() == 3
    bench.now += 5
    assert bench.ask().reason in ("a position is disputed", "periodic")
    result = bench.it.finish(snapshot(fills=[fill()], positions=[held(4)]), bench.now)
    assert len(result.changes) == 2
    assert bench.it.view.disputed == {}


def test_a_dispute_calls_for_a_look_before_the_next_one_is_due() -> None:
    bench = Bench()
    bench.it.begin(0.0)
    bench.look(positions=[held(3)])
    bench.it.receive(held(4), 10.0)
    assert bench.it.deadline == 10.0 + GUARD
    assert bench.look(after=10 + GUARD, positions=[held(3)]).live
    assert bench.it.view.disputed == {}, "the broker agrees with us"


def test_the_brokers_average_price_is_taken_without_a_word() -> None:
    bench = Bench.live(fill())
    result = bench.look(fills=[fill()], positions=[held(1, 90)])
    assert [c.value for c in result.changes] == [held(1, 90)]
    assert result.discrepancies == ()


# --- balances ---


def test_a_balance_that_the_stream_told_otherwise_is_a_break() -> None:
    bench = Bench.live(account(1000))
    result = bench.look(accounts=[account(900)])
    assert result.discrepancies == (
        Discrepancy(K.BALANCE_BREAK, "A", "A", account(1000), account(900)),
    )
    assert bench.it.view.accounts == {"A": account(900)}
    assert bench.look(accounts=[account(800)], after=60).discrepancies == ()


def test_a_balance_that_only_snapshots_tell_is_no_break() -> None:
    bench = Bench.live(accounts=[account(1000)])
    result = bench.look(accounts=[account(900)])
    assert [c.value for c in result.changes] == [account(900)]
    assert result.discrepancies == ()


def test_a_balance_may_move_while_something_happens_or_while_away() -> None:
    bench = Bench.live(account(1000))
    bench.it.receive(fill(at=at(100)), bench.now)
    fills = {"fills": [fill(at=at(100))], "positions": [held(1)]}
    assert bench.look(accounts=[account(999)], **fills).discrepancies == ()
    bench.it.receive(account(998), bench.now)
    bench.begin()
    assert bench.look(accounts=[account(900)], **fills).discrepancies == ()


def test_a_balance_that_the_stream_told_meanwhile_is_not_overwritten() -> None:
    bench = Bench.live()
    bench.look(account(998), accounts=[account(900)])
    assert bench.it.view.accounts == {"A": account(998)}


def test_a_balance_from_before_the_snapshot_does_not_come_back_after_it() -> None:
    bench = Bench.live()
    bench.begin()
    bench.it.receive(account(1000), bench.now)
    assert bench.look(account(998), accounts=[account(999)]).live
    assert bench.it.view.accounts == {"A": account(998)}
    bench.begin()
    bench.it.receive(account(1000), bench.now)
    assert bench.look(accounts=[account(997)]).live
    assert bench.it.view.accounts == {"A": account(997)}


def test_a_balance_that_is_not_told_is_no_break() -> None:
    bench = Bench.live(account(1000))
    assert bench.look(accounts=[account(None)]).discrepancies == ()
    assert bench.it.view.accounts == {"A": account(1000)}


# --- twice ---


def test_the_same_snapshot_twice_changes_nothing_and_announces_nothing() -> None:
    bench = Bench.live(order("1"), order("2", entered_at=at(50)), positions=[held(2)])
    bench.begin()
    done = order("1", S.FILLED, filled=5, updated_at=at(9))
    parts: dict[str, Any] = {
        "orders": [done, order("3")],
        "open_orders": [order("3")],
        "fills": [fill("t1", 5)],
        "positions": [held(7)],
        "accounts": [account(5)],
    }
    assert len(bench.look(**parts).discrepancies) == 4
    for _ in range(3):
        again = bench.look(**parts, after=60)
        assert (again.changes, again.discrepancies) == ((), ())
    assert bench.later() == []


# --- what is refused, what it shows ---


@pytest.mark.parametrize(
    ("accounts", "key"),
    [([], "accounts"), ("A", "accounts"), ([1], "accounts"), ([""], "accounts")],
)
def test_accounts_are_texts_and_at_least_one(accounts: Any, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Reconciler(accounts)
    assert caught.value.key == key


@pytest.mark.parametrize(
    "settings",
    [
        {"guard_seconds": 0},
        {"every_seconds": float("inf")},
        {"spacing_seconds": float("nan")},
        {"margin_seconds": -1},
        {"lookback_seconds": "1"},
        {"buffer": True},
        {"retry_seconds": ()},
        {"retry_seconds": (1.0, 0.0)},
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Reconciler(["A"], settings=ReconcileSettings(**settings))
    assert caught.value.key == next(iter(settings))


def test_it_shows_itself() -> None:
    it = Reconciler(["A", "A"])
    assert it.accounts == ("A",)
    assert repr(it).startswith("<Reconciler apart, 0 events kept, <AccountView")
    assert str(Discrepancy(K.POSITION_BREAK, "A", "MNQ")) == "position break: MNQ in account A"


# --- any interleaving ---


class Story:
    """A venue, a stream that loses, doubles and shuffles, and looks whose queries are apart."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.truth = Truth(chance)
        self.it = Reconciler(["A"])
        self.connected = False
        self.queries: Iterator[Snapshot | None] | None = None
        self.told_fills: list[str] = []
        self.announced: list[tuple[str, str]] = []
        self.connect()

    def step(self) -> None:
        steps = [self.truth.move] * 5 + [self.deliver] * 5 + [self.query] * 6
        self.chance.choice([*steps, self.connect, self.lose, self.wait])()

    def connect(self) -> None:
        self.connected = True
        self.it.begin(self.truth.seconds)

    def lose(self) -> None:
        self.connected = False
        self.truth.sent.clear()
        self.it.lost(self.truth.seconds)

    def wait(self, seconds: float | None = None) -> None:
        self.truth.seconds += self.chance.choice([0.1, 1, 6, 61]) if seconds is None else seconds
        self.announce(self.it.expire(self.truth.seconds))

    def deliver(self) -> None:
        sent, self.truth.sent = self.truth.sent, []
        if not self.connected:
            return
        for one in list(sent):
            trouble = self.chance.randrange(6)
            if trouble == 0:
                sent.remove(one)
            elif trouble == 1:
                sent.append(one)
        if self.chance.random() < 0.3:
            self.chance.shuffle(sent)
        for one in sent:
            self.note(self.it.receive(one, self.truth.seconds))

    def query(self, *, fails: bool = True) -> None:
        """The next query of the look that is under way, or the first of a new one."""
        if self.queries is None:
            look = self.it.look(self.truth.seconds, self.truth.wall)
            self.queries = None if look is None else self.truth.queries(look.since)
            return
        if (found := next(self.queries)) is None:
            return
        self.queries = None
        parts = ["accounts", "orders", "open_orders", "positions", "fills"]
        if fails and self.chance.random() < 0.3:
            found = _without(found, self.chance.choice(parts))
        result = self.it.finish(found, self.truth.seconds)
        self.note(result.changes)
        self.announce(result.discrepancies)

    def note(self, changes: Any) -> None:
        self.told_fills += [c.value.id for c in changes if hasattr(c.value, "order_id")]

    def announce(self, found: Any) -> None:
        self.announced += [
            (one.kind, one.id) for one in found if one.kind in (K.MISSED_FILL, K.UNKNOWN_ORDER)
        ]

    def end(self) -> None:
        """The venue is quiet, whatever is under way is lost, and looks go on."""
        self.lose()
        self.queries = None
        self.connect()
        for _ in range(8):
            for _ in range(12):
                self.query(fails=False)
            self.wait(61)


def _without(found: Snapshot, part: str) -> Snapshot:
    parts = {
        name: None if name == part else getattr(found, name)
        for name in ("accounts", "orders", "open_orders", "positions", "fills")
    }
    return snapshot(taken_at=found.taken_at, since=found.since, **parts)


@given(st.integers(0, 2**64), st.integers(0, 150))
def test_any_interleaving_ends_with_the_truth(seed: int, steps: int) -> None:
    story = Story(random.Random(seed))
    for _ in range(steps):
        story.step()
    story.end()
    assert story.it.phase is Phase.LIVE
    assert story.truth.difference(story.it.view) == ""
    assert len(story.told_fills) == len(set(story.told_fills)), "each fill was told once"
    assert set(story.told_fills) == set(story.truth.fills), "and none was kept back"
    assert len(story.announced) == len(set(story.announced)), "each discrepancy was announced once"
    assert story.it.unsure == frozenset()


@given(st.integers(0, 2**64), st.integers(0, 80))
def test_a_whole_snapshot_of_a_quiet_venue_is_the_truth_at_once(seed: int, steps: int) -> None:
    story = Story(random.Random(seed))
    for _ in range(20):
        story.query(fails=False)
    for _ in range(steps):
        story.chance.choice([story.truth.move, story.deliver, story.wait])()
    story.lose()
    story.connect()
    story.queries = None
    for _ in range(20):
        story.query(fails=False)
    assert story.it.phase is Phase.LIVE
    assert story.truth.difference(story.it.view) == ""


def test_the_model_does_lose_what_nobody_looks_for() -> None:
    """The control: without a look at the end the same stories end elsewhere."""
    wrong = 0
    for seed in range(50):
        story = Story(random.Random(seed))
        for _ in range(40):
            story.step()
        wrong += story.it.phase is not Phase.LIVE or bool(
            set(story.truth.fills) - set(story.it.view.fills)
        )
    assert wrong > 10


def test_a_sell_is_a_step_down() -> None:
    bench = Bench.live()
    bench.it.receive(fill("t1", 2, SELL), bench.now)
    assert bench.held() == -2
