"""The rate limiter: waits for the budget of an endpoint, from any number of threads and event loops.

Invariants:
  * All that decides is in `turnstile`; here are one lock per rule, the waiting and the waking.
  * No lock is held across an `await`, a wake-up or a log line that could block; a rule never waits for another rule.
  * Each loop with waiters sleeps for itself, each waiting thread too, and whoever wakes first serves all who are due:
    a loop that hangs or was closed holds nobody up.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError, RateLimited
from keepline.resilience.limits import LimitRule, limit_rules, rule_for
from keepline.resilience.turnstile import LANES, Lane, Ticket, Turnstile
from keepline.telemetry import REGISTRY, event

__all__ = ["Priority", "RateLimiter"]

log = logging.getLogger("keepline.resilience")

Priority: TypeAlias = Literal["cancel", "order", "query", "normal", "history"]

LONGEST_PAUSE = 3600.0
"""Seconds: a server that asks for more is taken at this much, so that a broken header cannot stop a bot for a year."""

LOOK_AGAIN = 0.25
"""Seconds after which a waiting thread looks whether its turn came earlier than foretold."""

_MOST_ENDPOINTS = 4096  # remembered endpoints; paths with ids in them must not fill the memory

_waits = REGISTRY.histogram(
    "ratelimit_wait_seconds", "How long calls that had to wait for their budget waited.", "rule"
)
_refusals = REGISTRY.counter(
    "ratelimit_refused_total", "Calls refused because their deadline could not be met.", "rule"
)
_pauses = REGISTRY.counter(
    "ratelimit_feedback_total", "How often a server said that a budget was overspent.", "rule"
)


class RateLimiter:
    """Never more than the limit in any window, first come, first served, by priority.

    A call waits for the budget of its endpoint's rule; rules do not wait for each other. A call that is cancelled while
    it waits, or after it was granted and before it knows, takes nothing. Safe to share between threads and event loops.

    Priorities, served strictly in this order: `cancel`, `order`, `query` (also called `normal`), `history`. A priority
    that always has someone waiting starves those behind it.

    Args:
        config: `{"limits": {NAME: {"limit", "window_seconds", "burst"?, "endpoints"?, "margin_seconds"?}}}`; the first
            rule whose pattern matches an endpoint is its rule, and an endpoint equal to a NAME is that rule. Without a
            configuration: `history`, 50 per 30 s, for `*/History/*`, and `general`, 200 per 60 s, for all else.
        clock: where time comes from; the wall clock is never asked.
        log_size: how many units beyond the window `grants` keeps; by default as many as the limit, at most 1,000.

    Raises:
        ConfigError: a rule makes no sense; also, from all methods, an endpoint that no rule covers, a weight above the
            burst, a priority that does not exist.

    Example:
        >>> limiter = RateLimiter()
        >>> limiter.try_acquire("/api/Order/place", priority="order")
        True
        >>> limiter.get_wait_time("/api/History/retrieveBars")
        0.0
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        clock: Clock | None = None,
        log_size: int | None = None,
    ) -> None:
        if log_size is not None and (type(log_size) is not int or log_size < 0):
            raise ConfigError(f"is a whole number from 0 up, not {log_size!r}", key="log_size")
        self._rules = limit_rules(config)
        clock = clock or SYSTEM_CLOCK
        self._now = clock.boottime
        self._lines = {rule.name: _Line(rule, clock, log_size) for rule in self._rules}
        self._line_of: dict[str, _Line] = dict(self._lines)

    async def acquire(
        self,
        endpoint: str,
        *,
        weight: int = 1,
        priority: Priority = "normal",
        deadline: float | None = None,
    ) -> None:
        """Return when the call may be sent.

        Args:
            endpoint: a path such as `/api/Order/place`, or the name of a rule.
            weight: how many units the call costs.
            priority: whom it may pass while others wait.
            deadline: seconds from now; without one it only waits and never refuses.

        Raises:
            RateLimited: it cannot be served before its deadline. Said at once where it can be foreseen, and as soon as
                something changes that makes it so.
        """
        try:
            line, lane = self._line_of[endpoint], LANES[priority]
        except KeyError:
            line, lane = self._look_up(endpoint, priority)
        lock = line.lock
        lock.acquire()  # `with` costs twice as much, and this is the path of every call
        try:
            if line.turnstile.take(self._now(), weight, lane):
                return
        finally:
            lock.release()
        await line.wait(weight, lane, deadline)

    def acquire_sync(
        self,
        endpoint: str,
        *,
        weight: int = 1,
        priority: Priority = "normal",
        deadline: float | None = None,
    ) -> None:
        """As `acquire`, blocking the calling thread; never call it on an event loop.

        Raises:
            RateLimited: as in `acquire`.
        """
        line, lane = self._look_up(endpoint, priority)
        with line.lock:
            if line.turnstile.take(self._now(), weight, lane):
                return
        line.wait_sync(weight, lane, deadline)

    def try_acquire(self, endpoint: str, *, weight: int = 1, priority: Priority = "normal") -> bool:
        """Take the budget if that passes nobody who waits, else leave everything as it is and return False."""
        line, lane = self._look_up(endpoint, priority)
        with line.lock:
            return line.turnstile.take(self._now(), weight, lane)

    def get_wait_time(
        self, endpoint: str, *, weight: int = 1, priority: Priority = "normal"
    ) -> float:
        """Seconds that a call would wait if it came now and nothing else happened."""
        line, lane = self._look_up(endpoint, priority)
        line.rule.check_weight(weight)
        with line.lock:
            now = self._now()
            return line.turnstile.forecast(now, weight, lane) - now

    def feedback(self, endpoint: str, retry_after: float | None = None) -> float:
        """A server answered 429: its count is ahead of ours, so stop, then begin slowly.

        Nothing of the endpoint's rule is granted for `retry_after` seconds, whatever the priority; after that one unit,
        and more at the even rate of limit per window, until a whole window's worth was left unused. Who waits with a
        deadline that this breaks is refused at once.

        Args:
            endpoint: the endpoint that answered.
            retry_after: seconds that the server asked for, at most an hour is taken. None: a tenth of the window, and
                twice as long each time that it was not enough, up to the window.

        Returns:
            For how many seconds nothing is granted.
        """
        if retry_after is not None:
            retry_after = min(_seconds(retry_after, "retry_after"), LONGEST_PAUSE)
        line, _ = self._look_up(endpoint, "normal")
        seconds = line.pause(retry_after)
        _pauses.inc(line.rule.name)
        event(log, logging.WARNING, "Rate limit reported by the server", rule=line.rule.name,
              pause_seconds=round(seconds, 3), stated=retry_after is not None)  # fmt: skip
        return seconds

    def reset(self) -> None:
        """All budgets whole, no pauses, counters at zero; who waits is served. For another account, and for tests."""
        for line in self._lines.values():
            line.reset()

    def grants(self, endpoint: str) -> list[float]:
        """Proof: the instants (boottime seconds) of the last grants of a rule, one entry per unit, oldest first."""
        line, _ = self._look_up(endpoint, "normal")
        with line.lock:
            return line.turnstile.grants()

    def get_stats(self) -> dict[str, Any]:
        """Totals and, below `limits`, each rule: its numbers, what is used, who waits, what happened. JSON-ready."""
        limits = {name: line.stats() for name, line in self._lines.items()}
        counters = (
            "granted",
            "waiting",
            "waited",
            "refused",
            "cancelled",
            "given_back",
            "feedback",
        )
        totals = {name: sum(rule[name] for rule in limits.values()) for name in counters}
        return {**totals, "limits": limits}

    def _look_up(self, endpoint: str, priority: str) -> "tuple[_Line, Lane]":
        if priority not in LANES:
            raise ConfigError(f"is one of {', '.join(LANES)}, not {priority!r}", key="priority")
        line = self._line_of.get(endpoint)
        if line is None:
            line = self._lines[rule_for(self._rules, endpoint).name]
            if len(self._line_of) >= _MOST_ENDPOINTS:
                self._line_of = dict(self._lines)
            self._line_of[endpoint] = line
        return line, LANES[priority]

    def __repr__(self) -> str:
        return f"<RateLimiter {'; '.join(map(str, self._rules))}>"


@dataclass(slots=True)
class _Watch:
    """What one event loop knows about a rule: how many wait there, and the task that sleeps for them."""

    loop: asyncio.AbstractEventLoop
    waiters: int = 0
    task: asyncio.Task[None] | None = None
    until: float = (
        -math.inf
    )  # the instant to which the task sleeps; -inf while it is awake and will look anyway


class _Line:
    """One rule: its turnstile behind a lock, and those who wait before it."""

    __slots__ = (
        "_clock",
        "_now",
        "_watches",
        "lock",
        "rule",
        "turnstile",
        "waited",
        "waited_seconds",
    )

    def __init__(self, rule: LimitRule, clock: Clock, log_size: int | None) -> None:
        self.rule = rule
        self.lock = threading.Lock()
        self.turnstile = Turnstile(rule, log_size=log_size)
        self._clock = clock
        self._now = clock.boottime
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
        self.waited = 0
        self.waited_seconds = 0.0

    async def wait(self, weight: int, lane: int, deadline: float | None) -> None:
        """Queue, and return when it was granted; cancelled, it takes nothing."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self.lock:
            ticket = self._join(weight, lane, deadline, partial(_wake, loop, future))
            watch = self._enlist(loop) if ticket.waits else None
        if watch is not None:
            try:
                self._start(watch)
                await future
            except BaseException:
                self._leave(ticket)
                raise
            finally:
                self._dismiss(watch)
        self._conclude(ticket)

    def wait_sync(self, weight: int, lane: int, deadline: float | None) -> None:
        """The same for a thread: it sleeps until its turn is foretold, and looks now and then if it came earlier."""
        with self.lock:
            ticket = self._join(weight, lane, deadline, _found_by_its_thread)
        try:
            while (seconds := self._seconds_left(ticket)) is not None:
                self._clock.pause(min(seconds, LOOK_AGAIN))
        except BaseException:
            self._leave(ticket)
            raise
        self._conclude(ticket)

    def pause(self, seconds: float | None) -> float:
        with self.lock:
            pause = self.turnstile.pause(self._now(), seconds)
            self._settle()
        return pause

    def reset(self) -> None:
        with self.lock:
            self.turnstile.reset()
            self.waited, self.waited_seconds = 0, 0.0
            self._settle()

    def stats(self) -> dict[str, Any]:
        with self.lock:
            now, turnstile, rule = self._now(), self.turnstile, self.rule
            used = turnstile.used(now)
            return {
                "limit": rule.limit,
                "window_seconds": rule.window_seconds,
                "burst": rule.burst,
                "margin_seconds": rule.margin_seconds,
                "used": used,
                "free": rule.limit - used,
                "paused_seconds": turnstile.paused_for(now),
                "waiting": turnstile.waiting,
                "granted": turnstile.granted,
                "waited": self.waited,
                "waited_seconds": self.waited_seconds,
                "refused": turnstile.refused,
                "cancelled": turnstile.left,
                "given_back": turnstile.given_back,
                "feedback": turnstile.pauses,
            }

    def _join(
        self, weight: int, lane: int, deadline: float | None, wake: Callable[[], bool]
    ) -> Ticket:
        self._settle()
        now = self._now()
        last = math.inf if deadline is None else now + _seconds(deadline, "deadline")
        ticket = self.turnstile.join(now, weight, lane, deadline=last, owner=wake)
        self._settle()  # it may have passed others, whose deadlines that breaks, or be due before a watch looks again
        return ticket

    def _settle(self) -> None:
        now = self._now()
        while lost := [ticket for ticket in self.turnstile.settle(now) if not ticket.owner()]:
            for ticket in lost:  # its loop was closed: nobody is left who would use the grant
                self.turnstile.leave(ticket, now)
            self._watches = {loop: w for loop, w in self._watches.items() if not loop.is_closed()}
        due = self.turnstile.next_at
        for watch in [watch for watch in self._watches.values() if due < watch.until]:
            watch.until = -math.inf
            if not _call(watch.loop, self._restart, watch):
                del self._watches[watch.loop]

    def _leave(self, ticket: Ticket) -> None:
        with self.lock:
            self.turnstile.leave(ticket, self._now())
            self._settle()

    def _seconds_left(self, ticket: Ticket) -> float | None:
        """Seconds until the turn of a thread's ticket, None when it is settled."""
        with self.lock:
            self._settle()
            if not ticket.waits:
                return None
            now = self._now()
            return self.turnstile.forecast_of(ticket, now) - now

    def _conclude(self, ticket: Ticket) -> None:
        if ticket.refused is not None:
            _refusals.inc(self.rule.name)
            raise RateLimited(
                f"the budget of {self.rule} is used up: the turn of this call would come in {ticket.refused:.3g} s,"
                " after its deadline",
                retry_after=ticket.refused,
            )
        if ticket.stamp is not None and (seconds := ticket.stamp - ticket.joined) > 0:
            _waits.observe(seconds, self.rule.name)
            with self.lock:
                self.waited += 1
                self.waited_seconds += seconds

    def _enlist(self, loop: asyncio.AbstractEventLoop) -> _Watch:
        watch = self._watches.setdefault(loop, _Watch(loop))
        watch.waiters += 1
        return watch

    def _start(self, watch: _Watch) -> None:
        if watch.task is None or watch.task.done():
            watch.task = watch.loop.create_task(self._sleep_for(watch), name="keepline rate limit")

    def _restart(self, watch: _Watch) -> None:
        if watch.task is not None:
            watch.task.cancel()
            watch.task = None
        if watch.waiters:
            self._start(watch)

    def _dismiss(self, watch: _Watch) -> None:
        with self.lock:
            watch.waiters -= 1
            if watch.waiters == 0:
                self._watches.pop(watch.loop, None)
        if watch.waiters == 0 and watch.task is not None:
            watch.task.cancel()

    async def _sleep_for(self, watch: _Watch) -> None:
        """Serve who is due, then sleep until the next one is; one such task for all waiters of a loop."""
        while True:
            with self.lock:
                watch.until = -math.inf
                self._settle()
                due = watch.until = self.turnstile.next_at
                seconds = due - self._now()
            if due == math.inf:
                return
            await self._clock.sleep(seconds)


def _wake(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> bool:
    """Tell a waiter, from whatever thread, that it was settled; False when its loop is gone."""
    return _call(loop, _finish, future)


def _found_by_its_thread() -> bool:
    return True


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> bool:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed
        return False
    return True


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _seconds(value: object, key: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise ConfigError(f"is a number of seconds from 0 up, not {value!r}", key=key)
