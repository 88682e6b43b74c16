"""The rate limiter: finds the rule of an endpoint, takes from its budget, and waits only when it must.

Invariants: all that decides is in `turnstile` and `limits`, all that waits in `waiting`; rules do not wait for each
other; a free call costs one lock, one look at the clock and one comparison.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError
from keepline.resilience.limits import limit_rules, rule_for
from keepline.resilience.turnstile import LANES, Lane
from keepline.resilience.waiting import Line, seconds_of
from keepline.telemetry import REGISTRY, event

__all__ = ["Priority", "RateLimiter"]

log = logging.getLogger("keepline.resilience")

Priority: TypeAlias = Literal["cancel", "order", "query", "normal", "history"]

LONGEST_PAUSE = 3600.0
"""Seconds: a server that asks for more is taken at this much, so that a broken header cannot stop a bot for a year."""

_MOST_ENDPOINTS = 4096  # remembered endpoints; paths with ids in them must not fill the memory

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
        self._lines = {rule.name: Line(rule, clock, log_size) for rule in self._rules}
        self._line_of: dict[str, Line] = dict(self._lines)

    async def acquire(
        self,
        endpoint: str,
        *,
        weight: int = 1,
        priority: Priority = "normal",
        deadline: float | None = None,
    ) -> float:
        """Return when the call may be sent, with the instant (boottime seconds) by which `give_back` knows the grant.

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
        except (KeyError, TypeError):
            line, lane = self._look_up(endpoint, priority)
        if deadline is not None and not (type(deadline) is float and deadline >= 0):
            seconds_of(deadline, "deadline")  # may be a whole number; NaN is not
        lock = line.lock
        # `with` costs twice as much, and this is the path of every call; a lock that is taken leads the long way round
        if lock.acquire(False):
            try:
                if line.turnstile.take(now := self._now(), weight, lane):
                    return now
            finally:
                lock.release()
        return await line.wait(weight, lane, deadline)

    def acquire_sync(
        self,
        endpoint: str,
        *,
        weight: int = 1,
        priority: Priority = "normal",
        deadline: float | None = None,
    ) -> float:
        """As `acquire`, blocking the calling thread; never call it on an event loop.

        Raises:
            RateLimited: as in `acquire`.
        """
        line, lane = self._look_up(endpoint, priority)
        if deadline is not None:
            seconds_of(deadline, "deadline")
        with line.lock:
            if line.turnstile.take(now := self._now(), weight, lane):
                return now
        return line.wait_sync(weight, lane, deadline)

    def give_back(self, endpoint: str, granted: float, *, weight: int = 1) -> None:
        """Return a grant, once, when nothing was sent with it; who waits is served. What is unknown changes nothing.

        Args:
            endpoint: as it was acquired.
            granted: what `acquire` returned.
            weight: as it was acquired.
        """
        line, _ = self._look_up(endpoint, "normal")
        line.rule.check_weight(weight)
        line.give_back(granted, weight)

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
            retry_after = min(seconds_of(retry_after, "retry_after"), LONGEST_PAUSE)
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

    def _look_up(self, endpoint: object, priority: object) -> tuple[Line, Lane]:
        if not isinstance(priority, str) or priority not in LANES:
            raise ConfigError(f"is one of {', '.join(LANES)}, not {priority!r}", key="priority")
        line = self._line_of.get(endpoint) if isinstance(endpoint, str) else None
        if line is None:
            line = self._lines[rule_for(self._rules, endpoint).name]
            endpoint = str(endpoint)
            if len(self._line_of) >= _MOST_ENDPOINTS:
                self._line_of = dict(self._lines)
            self._line_of[endpoint] = line
        return line, LANES[priority]

    def __repr__(self) -> str:
        return f"<RateLimiter {'; '.join(map(str, self._rules))}>"
