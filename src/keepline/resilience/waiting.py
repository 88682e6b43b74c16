"""Those who wait for a rate budget: tasks of any event loop and threads, before one rule.

Invariants:
  * All that decides is in `turnstile`; here are one lock per rule, the waiting and the waking.
  * No lock is held across an `await`, and none is asked while another is held.
  * Each loop with waiters sleeps for itself, each waiting thread too, and whoever wakes first serves all who are due:
    a loop that hangs or was closed holds nobody up.
"""

import asyncio
import math
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from keepline.clock import Clock
from keepline.errors import ConfigError, RateLimited
from keepline.resilience.limits import LimitRule
from keepline.resilience.turnstile import Ticket, Turnstile
from keepline.telemetry import REGISTRY

__all__ = ["Line", "seconds_of"]

LOOK_AGAIN = 0.25
"""Seconds after which a waiting thread looks whether its turn came earlier than foretold."""

_waits = REGISTRY.histogram(
    "ratelimit_wait_seconds", "How long calls that had to wait for their budget waited.", "rule"
)
_refusals = REGISTRY.counter(
    "ratelimit_refused_total", "Calls refused because their deadline could not be met.", "rule"
)


@dataclass(slots=True)
class _Watch:
    """What one event loop knows about a rule: how many wait there, and the task that sleeps for them.

    Attributes:
        until: the instant to which the task sleeps; -inf while it is awake and will look anyway.
    """

    loop: asyncio.AbstractEventLoop
    waiters: int = 0
    task: asyncio.Task[None] | None = None
    until: float = -math.inf


class Line:
    """One rule: its turnstile behind a lock, and those who wait before it."""

    __slots__ = ("__weakref__", "_clock", "_now", "_watches", "lock", "rule", "turnstile", "waited",
                 "waited_seconds")  # fmt: skip

    def __init__(self, rule: LimitRule, clock: Clock, log_size: int | None) -> None:
        self.rule = rule
        self.lock = threading.Lock()
        self.turnstile = Turnstile(rule, log_size=log_size)
        self._clock = clock
        self._now = clock.boottime
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
        self.waited = 0
        self.waited_seconds = 0.0
        _lines.add(self)

    async def wait(self, weight: int, lane: int, deadline: float | None) -> float:
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
            except GeneratorExit:
                # thrown away, not cancelled: this may be the garbage collector at work, in a thread that holds the lock
                ticket.owner = _nobody
                raise
            except BaseException:
                self._leave(ticket)
                self._dismiss(watch)
                raise
            self._dismiss(watch)
        return self._conclude(ticket)

    def wait_sync(self, weight: int, lane: int, deadline: float | None) -> float:
        """The same for a thread: it sleeps until its turn is foretold, and looks now and then if it came earlier."""
        with self.lock:
            ticket = self._join(weight, lane, deadline, _found_by_its_thread)
        try:
            while (seconds := self._seconds_left(ticket)) is not None:
                self._clock.pause(min(seconds, LOOK_AGAIN))
        except BaseException:
            self._leave(ticket)
            raise
        return self._conclude(ticket)

    def give_back(self, granted: float, weight: int) -> None:
        with self.lock:
            self.turnstile.give_back(self._now(), granted, weight)
            self._settle()

    def forget_the_parents(self) -> None:
        """After a fork, in the child: whoever waited waits in the parent, and nobody here will release the lock."""
        self.lock = threading.Lock()
        self.turnstile.disperse()
        self._watches = {}

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
        last = math.inf if deadline is None else now + seconds_of(deadline, "deadline")
        ticket = self.turnstile.join(now, weight, lane, deadline=last, owner=wake)
        self._settle()  # it may have passed others, whose deadlines that breaks, or be due before a watch looks again
        return ticket

    def _settle(self) -> None:
        now = self._now()
        while lost := [ticket for ticket in self.turnstile.settle(now) if not ticket.owner()]:
            for ticket in (
                lost
            ):  # its loop was closed or its task thrown away: nobody is left to use the grant
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

    def _conclude(self, ticket: Ticket) -> float:
        if ticket.stamp is None:
            assert ticket.refused is not None  # whoever comes here was settled
            _refusals.inc(self.rule.name)
            raise RateLimited(
                f"the budget of {self.rule} is used up: the turn of this call would come in {ticket.refused:.3g} s,"
                " after its deadline",
                retry_after=ticket.refused,
            )
        if (seconds := ticket.stamp - ticket.joined) > 0:
            _waits.observe(seconds, self.rule.name)
            with self.lock:
                self.waited += 1
                self.waited_seconds += seconds
        return ticket.stamp

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


def seconds_of(value: object, key: str) -> float:
    """A number of seconds that a caller gave, or the error that says which argument makes no sense."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    raise ConfigError(f"is a number of seconds from 0 up, not {value!r}", key=key)


def _wake(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> bool:
    """Tell a waiter, from whatever thread, that it was settled; False when its loop is gone."""
    return _call(loop, _finish, future)


def _found_by_its_thread() -> bool:
    return True


def _nobody() -> bool:
    return False


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> bool:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed
        return False
    return True


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


_lines: "weakref.WeakSet[Line]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for line in list(_lines):
        line.forget_the_parents()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
