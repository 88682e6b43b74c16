"""One budget and its queue, with bare numbers: exact windows, buckets, lanes, deadlines, pauses."""

import bisect
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyrate_limiter import InMemoryBucket, Rate, RateItem

from keepline.resilience.limits import LimitRule
from keepline.resilience.turnstile import Lane, Ticket, Turnstile

INF = float("inf")


def turnstile(limit: int = 3, window: float = 10.0, burst: int | None = None, **more) -> Turnstile:
    rule = LimitRule("test", limit, window, limit if burst is None else burst, **more)
    return Turnstile(rule, log_size=10_000)


def join(
    of: Turnstile, now: float, weight: int = 1, lane: int = Lane.QUERY, deadline: float = INF
) -> Ticket:
    return of.join(now, weight, lane, deadline=deadline, owner=lambda: True)


def most_in_a_window(stamps: list[float], span: float) -> int:
    """The most units in any half-open window, by brute force."""
    return max(
        (bisect.bisect_left(stamps, at + span) - i for i, at in enumerate(stamps)), default=0
    )


def test_the_window_frees_a_unit_exactly_when_it_has_left() -> None:
    gate = turnstile(limit=2, window=10)
    assert [gate.take(now) for now in (0, 4, 9, 10, 13.999, 14)] == [
        True,
        True,
        False,
        True,
        False,
        True,
    ]


def test_the_margin_makes_the_window_longer() -> None:
    gate = turnstile(limit=1, window=10, margin_seconds=0.5)
    assert [gate.take(now) for now in (0, 10, 10.5)] == [True, False, True]


def test_a_weight_takes_that_many_units_or_none() -> None:
    gate = turnstile(limit=5)
    assert gate.take(0, 3)
    assert not gate.take(0, 3)
    assert gate.take(0, 2)
    assert gate.used(0) == 5
    assert gate.ready_at(5) == 10


def test_below_the_limit_a_burst_is_followed_by_the_even_rate() -> None:
    gate = turnstile(limit=10, window=10, burst=2)
    assert [gate.take(now) for now in (0, 0, 0, 0.5, 1, 1)] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]


def test_the_window_holds_where_burst_and_rate_together_would_pass_it() -> None:
    gate = turnstile(limit=10, window=10, burst=2)
    assert gate.take(0, 2)
    assert [now for now in range(1, 12) if gate.take(now)] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]


def test_a_heavy_waiter_is_overtaken_by_nobody_in_its_lane() -> None:
    gate = turnstile(limit=5)
    assert gate.take(0, 3)
    heavy = join(gate, 1, weight=4)
    light = join(gate, 2)
    assert gate.settle(9) == []
    assert not gate.take(9)
    assert gate.settle(10) == [heavy, light]


def test_lanes_are_served_in_order_and_within_one_first_come_first_served() -> None:
    gate = turnstile(limit=1)
    gate.take(0)
    lanes = [Lane.HISTORY, Lane.QUERY, Lane.ORDER, Lane.CANCEL, Lane.QUERY, Lane.CANCEL]
    tickets = [join(gate, 1, lane=lane) for lane in lanes]
    served = list(itertools.chain.from_iterable(gate.settle(now) for now in range(0, 100, 10)))
    assert served == [tickets[i] for i in (3, 5, 2, 1, 4, 0)]


def test_an_earlier_lane_passes_a_heavy_waiter_that_cannot_go_yet() -> None:
    gate = turnstile(limit=5)
    gate.take(0, 3)
    join(gate, 1, weight=4)
    assert not gate.take(2, 1, Lane.QUERY)
    assert gate.take(2, 1, Lane.CANCEL)


def test_what_cannot_be_served_before_its_deadline_is_refused_at_once() -> None:
    gate = turnstile(limit=1)
    gate.take(0)
    assert join(gate, 1, deadline=9.9).refused == pytest.approx(9.0)
    kept = join(gate, 1, deadline=10.0)
    assert kept.waits
    assert join(gate, 1, deadline=19.0).refused == pytest.approx(19.0)
    assert gate.settle(10.0) == [kept]
    assert gate.refused == 2


def test_a_deadline_that_a_later_cancel_breaks_is_refused_at_once() -> None:
    gate = turnstile(limit=1)
    gate.take(0)
    query = join(gate, 1, lane=Lane.QUERY, deadline=15)
    join(gate, 2, lane=Lane.CANCEL)
    assert gate.settle(2) == [query]
    assert query.refused == pytest.approx(18.0)


def test_a_deadline_that_a_pause_breaks_is_refused_at_once_and_others_wait_on() -> None:
    gate = turnstile(limit=1)
    gate.take(0)
    soon, whenever = join(gate, 1, deadline=12), join(gate, 1)
    gate.pause(2, 30)
    assert gate.settle(2) == [soon]
    assert whenever.waits
    assert gate.next_at == 32


def test_a_stalled_loop_serves_nobody_after_the_deadline() -> None:
    gate = turnstile(limit=1)
    gate.take(0)
    first, second = join(gate, 1, deadline=12), join(gate, 1, deadline=30)
    assert gate.settle(25) == [first, second]
    assert (first.refused, second.stamp) == (0.0, 25)


def test_a_loop_that_is_a_little_late_keeps_its_promise() -> None:
    gate = turnstile(limit=1)
    gate.take(0)
    ticket = join(gate, 1, deadline=10)
    assert gate.settle(10.04) == [ticket]
    assert ticket.stamp == 10.04


@pytest.mark.parametrize(("burst", "pause"), [(2, None), (4, None), (4, 3.0), (2, 3.0)])
def test_the_forecast_is_what_then_happens(burst: int, pause: float | None) -> None:
    gate = turnstile(limit=4, burst=burst)
    if pause is not None:
        gate.pause(0, pause)
    foretold, tickets = [], []
    for weight in [2, 1, 2, 1, 1, 2, 2, 1]:
        foretold.append(gate.forecast(0, weight, Lane.QUERY))
        tickets.append(join(gate, 0, weight=weight))
    assert [gate.forecast_of(t, 0) for t in tickets if t.waits] == [at for at in foretold if at > 0]
    while (now := gate.next_at) < INF:
        gate.settle(now)
    assert [t.stamp for t in tickets] == pytest.approx(foretold)


def test_who_stops_waiting_lets_those_behind_go() -> None:
    gate = turnstile(limit=5)
    gate.take(0, 3)
    heavy, light = join(gate, 1, weight=4), join(gate, 1)
    gate.leave(heavy, 2)
    assert gate.settle(2) == [light]
    assert gate.left == 1


def test_a_grant_that_nobody_used_is_free_again() -> None:
    gate = turnstile(limit=3)
    first, unused, last = join(gate, 0), join(gate, 1), join(gate, 2)
    assert not gate.take(3)
    gate.leave(unused, 3)
    assert gate.grants() == [first.stamp, last.stamp]
    assert gate.take(3)
    assert not gate.take(3)
    assert (gate.granted, gate.given_back) == (3, 1)


def test_a_grant_that_has_left_the_window_gives_nothing_back() -> None:
    gate = Turnstile(LimitRule("test", 1, 10.0, 1), log_size=0)
    unused = join(gate, 0)
    assert gate.take(10)
    gate.leave(unused, 11)
    assert not gate.take(11)


def test_a_grant_from_before_a_new_beginning_gives_nothing_back() -> None:
    gate = turnstile(limit=100, window=100, burst=2)
    unused = join(gate, 0, weight=2)
    gate.reset()
    assert gate.take(0.5, 2)
    gate.leave(unused, 0.6)
    assert not gate.take(0.6)
    assert (gate.granted, gate.given_back) == (1, 0)


def test_a_grant_without_a_ticket_is_given_back_by_its_instant() -> None:
    gate = turnstile(limit=100, window=100, burst=3)
    assert gate.take(0, 3)
    gate.give_back(0, 0, 3)
    assert gate.take(0, 3)
    gate.give_back(2, 0, 2)  # two seconds refilled two units, which are there anyway
    assert gate.take(2, 2)
    assert not gate.take(2)
    assert gate.grants() == [0, 2, 2]
    gate.give_back(2, 1, 1)
    assert gate.grants() == [0, 2, 2]


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 3), st.booleans()), max_size=40),
    st.integers(3, 5),
)
def test_given_back_grants_never_overspend_a_window(
    calls: list[tuple[float, int, bool]], burst: int
) -> None:
    gate, now = turnstile(limit=5, window=10, burst=burst), 0.0
    sent: list[float] = []
    unused: list[tuple[float, int]] = []
    for gap, weight, is_sent in calls:
        now += gap
        if unused:
            gate.give_back(now, *unused.pop())
        if gate.take(now, weight):
            if is_sent:
                sent += [now] * weight
            else:
                unused.append((now, weight))
    for at in sent:
        assert sum(1 for other in sent if at <= other < at + 10) <= 5


def test_what_the_bucket_refilled_meanwhile_is_not_given_back_twice() -> None:
    gate = turnstile(limit=100, window=100, burst=2)
    unused = join(gate, 0, weight=2)
    assert gate.take(2, 2)
    gate.leave(unused, 2)
    assert not gate.take(2)


def test_after_a_pause_comes_one_call_then_the_even_rate_until_the_bucket_is_full() -> None:
    gate = turnstile(limit=10, window=10)
    assert gate.pause(0, 5) == 5
    assert gate.paused_for(2) == 3
    assert not gate.take(4.9, 1, Lane.CANCEL)
    assert [gate.take(now) for now in (5, 5, 5.9, 6, 6.5, 7)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert [gate.take(30) for _ in range(11)] == [True] * 10 + [False]


def test_a_pause_without_a_time_grows_while_the_server_goes_on_refusing() -> None:
    gate = turnstile(limit=10, window=10)
    assert gate.pause(0, None) == 1
    assert gate.pause(0.5, None) == 1  # calls that were under way: still the same overspending
    assert gate.paused_for(0.5) == 1
    assert [gate.pause(at, None) for at in (2, 5, 10, 20)] == [2, 4, 8, 10]
    assert gate.pause(60, None) == 1


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    gate = turnstile()
    gate.pause(0, 60)
    assert gate.pause(1, 5) == 59


def test_a_pause_of_no_time_returns_nothing_to_a_spent_bucket() -> None:
    gate = turnstile(limit=100, window=100, burst=2)
    assert gate.take(0, 2)
    assert gate.pause(0, 0.0) == 0
    assert not gate.take(0.5)
    assert gate.take(1)


def test_a_grant_returned_after_a_pause_began_does_not_shorten_it() -> None:
    gate = turnstile(limit=4, window=40, burst=2)
    unused = join(gate, 0, weight=2)
    gate.pause(1, 20)
    gate.leave(unused, 1)
    assert [gate.ready_at(weight) for weight in (1, 2)] == [21, 31]


def test_a_new_beginning_forgets_grants_and_pauses_and_serves_who_waits() -> None:
    gate = turnstile(limit=1)
    gate.take(0)
    waiting = join(gate, 1)
    gate.pause(1, 600)
    gate.reset()
    assert gate.settle(2) == [waiting]
    assert (gate.granted, gate.pauses) == (1, 0)


def test_a_ticket_says_where_it_stands() -> None:
    gate = turnstile(limit=1)
    granted, waiting, refused = join(gate, 0), join(gate, 0), join(gate, 0, deadline=1)
    assert repr(granted) == "<Ticket query weight 1, granted>"
    assert repr(waiting) == "<Ticket query weight 1, waits>"
    assert repr(refused) == "<Ticket query weight 1, refused>"


@pytest.mark.parametrize("limit", range(3, 40))
def test_nobody_comes_out_of_a_pause_early_not_even_by_rounding(limit: int) -> None:
    gate = turnstile(limit, 30, margin_seconds=0.1)
    until = 1001.152388571864451 + gate.pause(1001.152388571864451, 3.508916679962871)
    assert gate.forecast(1002, 1, Lane.CANCEL) >= until
    assert gate.ready_at(1) >= until
    behind = [join(gate, 1002, lane=Lane.CANCEL) for _ in range(2)]
    assert gate.forecast_of(behind[0], 1002) >= until


# ---- for any trace ----

steps = st.one_of(
    st.tuples(st.just("advance"), st.floats(0, 12)),
    st.tuples(st.just("advance"), st.sampled_from([1e-9, 0.5, 1.0, 5.0, 10.0])),
    st.tuples(st.just("take"), st.integers(1, 3), st.sampled_from(Lane)),
    st.tuples(
        st.just("join"),
        st.integers(1, 3),
        st.sampled_from(Lane),
        st.sampled_from([INF, 0.0, 3.0, 15.0]),
    ),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("return"), st.integers(0, 3)),
    st.tuples(st.just("pause"), st.one_of(st.none(), st.floats(0, 20))),
)
traces = st.lists(steps, max_size=60)


class Trace:
    """Runs random steps and remembers what was really sent."""

    def __init__(self, gate: Turnstile) -> None:
        self.gate = gate
        self.now = 1000.0
        self.tickets: list[Ticket] = []
        self.taken: list[tuple[float, int]] = []
        self.paused_until = -INF
        self.served: list[Ticket] = []

    def run(self, trace: list[tuple]) -> None:
        for step, *values in trace:
            getattr(self, step)(*values)
            self.settle()
        self.finish()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.gate.next_at <= end:
            self.now = max(self.now, self.gate.next_at)
            self.settle()
        self.now = end

    def finish(self) -> None:
        """Everyone who waits without a deadline is served sooner or later."""
        while (due := self.gate.next_at) < INF:
            assert due > self.now or self.gate.settle(self.now) == []
            self.now = max(self.now, due)
            assert self.settle()
        assert not any(ticket.waits for ticket in self.tickets)

    def take(self, weight: int, lane: int) -> None:
        ahead = [t for t in self.tickets if t.waits and t.lane <= lane]
        if self.gate.take(self.now, weight, lane):
            assert not ahead
            assert self.now >= self.paused_until
            self.taken.append((self.now, weight))

    def join(self, weight: int, lane: int, seconds: float) -> None:
        ticket = join(self.gate, self.now, weight, lane, self.now + seconds)
        self.tickets.append(ticket)
        if ticket.stamp is not None:
            assert self.now >= self.paused_until

    def leave(self, number: int) -> None:
        waiting = [t for t in self.tickets if t.waits]
        if waiting:
            ticket = waiting[number % len(waiting)]
            self.gate.leave(ticket, self.now)
            self.tickets.remove(ticket)

    def ret(self, number: int) -> None:
        granted = [t for t in self.tickets if t.stamp is not None][-4:]
        if granted:
            ticket = granted[number % len(granted)]
            self.gate.leave(ticket, self.now)
            self.tickets.remove(ticket)

    locals()["return"] = ret

    def pause(self, seconds: float | None) -> None:
        self.paused_until = max(self.paused_until, self.now + self.gate.pause(self.now, seconds))

    def settle(self) -> list[Ticket]:
        settled = self.gate.settle(self.now)
        for ticket in settled:
            if ticket.refused is not None:
                assert self.now + ticket.refused > ticket.deadline
            else:
                assert self.now >= self.paused_until
                assert ticket.stamp is not None
                assert ticket.stamp <= ticket.deadline + 0.05
                before = [t for t in self.tickets if t.lane == ticket.lane and t.waits]
                assert all(t.joined >= ticket.joined for t in before)
        return settled

    def sent(self) -> list[float]:
        """The instants of all units that were granted and kept."""
        kept = [(t.stamp, t.weight) for t in self.tickets if t.stamp is not None]
        return sorted(itertools.chain.from_iterable([at] * w for at, w in (*kept, *self.taken)))


rules = st.integers(3, 12).flatmap(
    lambda limit: st.builds(
        lambda window, burst, margin: LimitRule(
            "test", limit, window, burst, margin_seconds=margin
        ),
        st.sampled_from([1.0, 7.3, 10.0, 30.0]),
        st.one_of(st.just(limit), st.integers(3, limit)),
        st.sampled_from([0.0, 0.1]),
    )
)


@given(rules, traces)
@example(  # rounding must not let anyone out of a pause early
    LimitRule("test", 7, 30.0, 3, margin_seconds=0.1),
    [("advance", 1.152388571864451), ("pause", 3.508916679962871), ("join", 1, Lane.CANCEL, INF)],
)
@settings(max_examples=400, deadline=None)
def test_no_window_holds_more_than_the_limit_and_no_burst_more_than_the_bucket(
    rule: LimitRule, trace: list[tuple]
) -> None:
    run = Trace(Turnstile(rule, log_size=10_000))
    run.run(trace)
    sent = run.sent()
    assert most_in_a_window(sent, rule.window_seconds) <= rule.limit
    assert most_in_a_window(sent, rule.span) <= rule.limit
    assert run.gate.grants() == sent
    rate = rule.limit / rule.span
    for (i, first), (j, last) in itertools.combinations_with_replacement(enumerate(sent), 2):
        assert j - i + 1 <= rule.burst + (last - first) * rate + 1e-6


def pyrate_log(limit: int, window_ms: int) -> InMemoryBucket:
    # its window is closed at both ends, ours half open: one millisecond less makes them the same on whole milliseconds
    return InMemoryBucket([Rate(limit, window_ms - 1)])


@given(
    st.integers(1, 8),
    st.sampled_from([10, 100, 1000]),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3)), max_size=80),
)
@settings(max_examples=400, deadline=None)
def test_grants_are_those_of_pyrate_limiters_log(
    limit: int, window_ms: int, calls: list[tuple[int, int]]
) -> None:
    ours, theirs, now = turnstile(limit, window_ms), pyrate_log(limit, window_ms), 1_000_000
    for wait_ms, weight in calls:
        now += wait_ms
        if weight <= limit:
            expected = theirs.put(RateItem("test", now, weight=weight))
            assert ours.take(now, weight) is expected


def greedy(gate: Turnstile, step: float, until: float) -> Iterator[float]:
    """Instants of grants when someone asks all the time."""
    for number in range(int(until / step)):
        if gate.take(number * step):
            yield number * step


def test_greedy_callers_get_the_whole_budget_and_no_more() -> None:
    sent = list(greedy(turnstile(limit=20, window=2.0), 0.01, 9.0))
    assert most_in_a_window(sent, 2.0) == 20
    assert len(sent) == 100
