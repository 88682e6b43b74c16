"""One rate budget and the queue before it: an exact sliding window and a token bucket, decided in one take.

Invariants:
  * In any half-open span of `rule.span` seconds at most `rule.limit` units are granted. The log holds the time of each
    of the last `limit` units (and some more for proof), so a take of weight w is due when the w-th oldest of them has
    left the span: nothing is approximated, nothing is swept.
  * In any t seconds at most `burst + t * limit / span` units are granted. With `burst == limit` the window implies it,
    so the bucket is kept only below that, and after a pause.
  * Who waits is served by lane, then first come, first served; nobody overtakes a heavy waiter within a lane.

A decider: no clock, lock or loop; `now` comes from outside and never runs backwards.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import chain, repeat

from keepline.resilience.limits import LimitRule

__all__ = ["LANES", "Lane", "Ticket", "Turnstile"]

_INF = float("inf")

_LOG_KEPT = 1000
_ONE = 1  # compared by identity: True and 1.0 are no weights, and are told so by the long way round
_TIMER_SLACK = 0.05  # seconds: a loop that wakes a little late does not break a promise made before
_FIRST_PAUSE = 0.1  # share of the window, after a refusal of the server without a time


class Lane(IntEnum):
    """Who goes first when several wait. Strict: a lane that is never empty starves those behind it."""

    CANCEL = 0
    ORDER = 1
    QUERY = 2
    HISTORY = 3


LANES = {
    "cancel": Lane.CANCEL,
    "order": Lane.ORDER,
    "query": Lane.QUERY,
    "normal": Lane.QUERY,
    "history": Lane.HISTORY,
}
"""The lane of each priority name; `normal` is a query."""


class Ticket:
    """A place in the queue.

    Attributes:
        stamp: when it was granted, None before.
        refused: None, or how many seconds after the refusal its turn would have come.
        joined: when it came.
        owner: what the face wants to find again; the decider does not look at it.
    """

    __slots__ = ("charged", "deadline", "joined", "lane", "owner", "refused", "stamp", "weight")

    def __init__(
        self, weight: int, lane: int, joined: float, deadline: float, owner: Callable[[], bool]
    ) -> None:
        self.weight = weight
        self.lane = lane
        self.joined = joined
        self.deadline = deadline
        self.owner = owner
        self.stamp: float | None = None
        self.refused: float | None = None
        self.charged = 0.0

    @property
    def waits(self) -> bool:
        return self.stamp is None and self.refused is None

    def __repr__(self) -> str:
        state = "waits" if self.waits else "refused" if self.stamp is None else "granted"
        return f"<Ticket {Lane(self.lane).name.lower()} weight {self.weight}, {state}>"


class Turnstile:
    """The budget of one rule and the queue before it.

    Attributes:
        rule: what it enforces.
        granted, refused, left, given_back: how many calls were served, refused for their deadline, stopped waiting,
            and returned a grant that nobody used.
        pauses: how often the server said stop.
    """

    __slots__ = ("_bad_news", "_full_at", "_gate", "_interval", "_kept", "_lanes", "_log", "_pause", "_paused_at",
                 "_paused_until", "_shaped", "_soonest", "_span", "given_back", "granted", "left", "pauses", "refused",
                 "rule", "waiting")  # fmt: skip

    def __init__(self, rule: LimitRule, *, log_size: int | None = None) -> None:
        self.rule = rule
        self._kept = min(rule.limit, _LOG_KEPT) if log_size is None else log_size
        self._span = rule.span
        self._interval = rule.span / rule.limit
        self._shaped = rule.burst < rule.limit
        self._lanes: tuple[deque[Ticket], ...] = tuple(deque() for _ in Lane)
        self.waiting = 0
        self._soonest = _INF  # the earliest deadline of those who wait
        self._bad_news = (
            False  # something happened that makes somebody wait longer than was foretold
        )
        self.reset()

    def reset(self) -> None:
        """Begin anew: a whole budget, no pause, all counters at zero. Who waits still waits: `settle` serves them."""
        size = self._kept + self.rule.limit
        self._log = deque(repeat(-_INF, size), maxlen=size)
        self._full_at = (
            -_INF
        )  # when the bucket is full again; while the window implies the bucket it is not kept
        self._paused_at = self._paused_until = -_INF
        self._pause = 0.0
        self.granted = self.refused = self.left = self.given_back = self.pauses = 0
        self._set_gate()

    def take(self, now: float, weight: int = 1, lane: int = Lane.QUERY) -> bool:
        """Grant at once or not at all; never before anyone who waits in the same lane or an earlier one."""
        log = self._log
        if weight is _ONE and self._gate <= now and log[self._kept] + self._span <= now:
            log.append(now)
            self.granted += 1
            return True
        self.rule.check_weight(weight)
        if self._is_queued(lane) or self.ready_at(weight) > now:
            return False
        self._record(now, weight)
        return True

    def join(
        self,
        now: float,
        weight: int,
        lane: int,
        *,
        deadline: float = _INF,
        owner: Callable[[], bool],
    ) -> Ticket:
        """Grant, refuse what cannot be served by `deadline` (an instant), or queue. Settle what is due first."""
        self.rule.check_weight(weight)
        ticket = Ticket(weight, lane, now, deadline, owner)
        due = self.forecast(now, weight, lane)
        if due > deadline:
            self._refuse(ticket, due - now)
        elif due <= now and not self._is_queued(lane):
            self._grant(ticket, now)
        else:
            self._queue(ticket)
        return ticket

    def settle(self, now: float) -> list[Ticket]:
        """Serve everyone whose turn has come and refuse whose deadline cannot be met any more; those, in order."""
        settled = list(self._refuse_hopeless(now)) if self._bad_news or now > self._soonest else []
        while (head := self._head()) is not None and self.ready_at(head.weight) <= now:
            self._unqueue(head)
            self._grant(head, now)
            settled.append(head)
        self._set_gate()
        return settled

    def leave(self, ticket: Ticket, now: float) -> None:
        """Stop waiting, or return a grant that was not used."""
        if ticket.stamp is not None:
            self._return(now, ticket.stamp, ticket.weight, ticket.charged)
        elif ticket.refused is None:
            self._unqueue(ticket)
            self.left += 1
        self._set_gate()

    def give_back(self, now: float, stamp: float, weight: int) -> None:
        """Return a grant that was taken without a ticket and not used."""
        # what a pause's bucket took besides stays taken: it is not known any more, and less is safe
        self._return(now, stamp, weight, weight * self._interval if self._shaped else 0.0)
        self._set_gate()

    def disperse(self) -> None:
        """Nobody waits any more: those who did are in another process."""
        for lane in self._lanes:
            lane.clear()
        self.waiting, self._soonest, self._bad_news = 0, _INF, False
        self._set_gate()

    @property
    def next_at(self) -> float:
        """When `settle` has something to do: the instant at which the first in the queue is due, inf without one."""
        head = self._head()
        return _INF if head is None else self.ready_at(head.weight)

    def ready_at(self, weight: int) -> float:
        """When `weight` units are free if nobody else takes any; may lie in the past."""
        window = self._log[self._kept + weight - 1] + self._span
        bucket = self._full_at - (self.rule.burst - weight) * self._interval
        return max(window, bucket, self._paused_until)

    def forecast(self, now: float, weight: int, lane: int) -> float:
        """When a newcomer's turn comes if nothing else happens."""
        if not self._is_queued(lane):
            return max(now, self.ready_at(weight))
        course = _Course(self, now)
        for ticket in chain.from_iterable(self._lanes[: lane + 1]):
            course.serve(ticket.weight)
        return course.due(weight)

    def forecast_of(self, ticket: Ticket, now: float) -> float:
        """When the turn of someone in the queue comes if nothing else happens."""
        course = _Course(self, now)
        for other in chain.from_iterable(self._lanes):
            if other is ticket:
                break
            course.serve(other.weight)
        return course.due(ticket.weight)

    def pause(self, now: float, seconds: float | None) -> float:
        """The server said stop: no grant for `seconds`, then one, then the even rate until the bucket is full again.

        Without a time the pause is a tenth of the window, and doubles up to the window when the server says stop again
        within a window after the pause. What was said during a pause prolongs it at most.

        Returns:
            For how many seconds nothing is granted.
        """
        paused = now < self._paused_until
        if seconds is None:
            again = paused or now < self._paused_until + self._span
            first = self.rule.window_seconds * _FIRST_PAUSE
            grown = self._pause if paused else 2 * self._pause
            self._pause = min(max(first, grown if again else first), self.rule.window_seconds)
            seconds = self._pause
        self.pauses += 1
        self._paused_at = now
        self._paused_until = max(self._paused_until, now + seconds)
        drained = self._paused_until + (self.rule.burst - 1) * self._interval
        self._full_at = max(self._full_at, drained)
        self._bad_news = True
        self._set_gate()
        return self._paused_until - now

    def paused_for(self, now: float) -> float:
        """Seconds until the pause that the server asked for is over, 0 without one."""
        return max(0.0, self._paused_until - now)

    def used(self, now: float) -> int:
        """Units that count at this moment."""
        log = list(self._log)
        return len(log) - max(self._kept, bisect_right(log, now, key=lambda at: at + self._span))

    def grants(self) -> list[float]:
        """The instants of the last grants, oldest first, one entry for each unit of weight."""
        log = list(self._log)
        return log[bisect_right(log, -_INF) :]

    def _head(self) -> Ticket | None:
        for lane in self._lanes:
            if lane:
                return lane[0]
        return None

    def _is_queued(self, lane: int) -> bool:
        return self.waiting > 0 and any(self._lanes[: lane + 1])

    def _queue(self, ticket: Ticket) -> None:
        self._lanes[ticket.lane].append(ticket)
        self.waiting += 1
        self._soonest = min(self._soonest, ticket.deadline)
        if self._soonest < _INF and any(self._lanes[ticket.lane + 1 :]):
            self._bad_news = True
        self._set_gate()

    def _unqueue(self, ticket: Ticket) -> None:
        lane = self._lanes[ticket.lane]
        if lane[0] is ticket:
            lane.popleft()
        else:
            lane.remove(ticket)
        self.waiting -= 1

    def _grant(self, ticket: Ticket, now: float) -> None:
        ticket.stamp = now
        ticket.charged = self._record(now, ticket.weight)

    def _refuse(self, ticket: Ticket, seconds: float) -> None:
        ticket.refused = seconds
        self.refused += 1

    def _refuse_hopeless(self, now: float) -> Iterator[Ticket]:
        course = _Course(self, now)
        self._bad_news, self._soonest = False, _INF
        for ticket in list(chain.from_iterable(self._lanes)):
            due = course.due(ticket.weight)
            if due > ticket.deadline + _TIMER_SLACK:
                self._unqueue(ticket)
                self._refuse(ticket, due - now)
                yield ticket
            else:
                course.serve(ticket.weight)
                self._soonest = min(self._soonest, ticket.deadline)

    def _record(self, now: float, weight: int) -> float:
        """Write a grant down; what it cost the bucket, in seconds of refilling."""
        charged = 0.0
        if self._shaped or self._full_at > now:
            charged = weight * self._interval
            self._full_at = max(self._full_at, now) + charged
        self._log.extend(repeat(now, weight))
        self.granted += 1
        self._set_gate()
        return charged

    def _return(self, now: float, stamp: float, weight: int, charged: float) -> None:
        log = list(self._log)
        first = bisect_left(log, stamp)
        if log[first : first + weight] != [stamp] * weight:
            return  # long ago, or before a new beginning
        del log[first : first + weight]
        log[:0] = repeat(-_INF, weight)
        self._log = deque(log, maxlen=len(log))
        # a pause since then emptied the bucket, and nothing of it is ours to return; what it refilled since the grant,
        # it would have refilled for nobody
        if self._paused_at < stamp:
            self._full_at -= max(0.0, charged - (now - stamp))
        self.granted -= 1
        self.given_back += 1

    def _set_gate(self) -> None:
        """The instant from which the window alone decides about a call of weight 1: the fast path of `take`."""
        self._gate = _INF if self._shaped or self.waiting else self._full_at


class _Course:
    """What will be granted when, if nothing else happens: a rehearsal that leaves the turnstile alone."""

    __slots__ = ("_full_at", "_now", "_served", "_turnstile")

    def __init__(self, turnstile: Turnstile, now: float) -> None:
        self._turnstile = turnstile
        self._now = max(now, turnstile._paused_until)
        self._full_at = turnstile._full_at
        self._served: list[float] = []

    def due(self, weight: int) -> float:
        """When a call of this weight is next served."""
        of = self._turnstile
        nth = len(self._served) + weight - 1
        limit = of.rule.limit
        leaves = of._log[of._kept + nth] if nth < limit else self._served[nth - limit]
        bucket = self._full_at - (of.rule.burst - weight) * of._interval
        return max(self._now, leaves + of._span, bucket)

    def serve(self, weight: int) -> None:
        """Grant a call of this weight when it is due."""
        self._now = self.due(weight)
        if self._turnstile._shaped or self._full_at > self._now:
            self._full_at = max(self._full_at, self._now) + weight * self._turnstile._interval
        self._served.extend(repeat(self._now, weight))
