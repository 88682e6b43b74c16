"""Whether to try again, and when: a policy over bare numbers and a budget that a host's callers share.

Invariants: a mutation that is not proven to be without effect is never repeated; no delay outlives the deadline or is
shorter than the server asked for; a retry that the budget cannot pay does not happen: an outage is not answered with a
storm.
"""

import threading
import weakref
from collections.abc import Generator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import StrEnum
from math import inf
from typing import Any, Self

from keepline.errors import APIError, ConfigError
from keepline.resilience.classify import LONGEST_RETRY_AFTER, Category, Failure

__all__ = [
    "Decision",
    "RetryBudget",
    "RetryPolicy",
    "RetryVerdict",
    "checked_count",
    "checked_seconds",
]


class RetryVerdict(StrEnum):
    """Why a failed attempt is repeated, or is not."""

    REPEAT = "repeat"
    PERMANENT = "permanent"
    UNSAFE = "unsafe"
    ATTEMPTS = "attempts"
    DEADLINE = "deadline"
    BUDGET = "budget"


_WORDS = {
    RetryVerdict.PERMANENT: "the same call will fail again",
    RetryVerdict.UNSAFE: "it may have taken effect, so it is not repeated",
    RetryVerdict.ATTEMPTS: "all attempts are used up",
    RetryVerdict.DEADLINE: "the next attempt would come after the deadline",
    RetryVerdict.BUDGET: "the host's retry budget is spent",
}

# what a retry costs: a timeout held a connection for long, a throttled call was invited to come back
# (AWS SDKs: timeouts at twice the price since 2017, throttling at a third since 2026)
_PRICES: Mapping[Category, float] = {"timeout": 2.0, "rate_limit": 0.5}


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a failed attempt. True when it is to be repeated; awaiting it gives it back at once.

    Attributes:
        verdict: why.
        delay_seconds: how long to wait before the repeat, 0 when there is none.
        error: the failure as the error to raise when there is no repeat.
        attempt: the attempt that failed, 1 for the first.
        endpoint: where.
    """

    verdict: RetryVerdict
    delay_seconds: float
    error: APIError
    attempt: int
    endpoint: str = ""

    @property
    def retry(self) -> bool:
        """Whether to try again."""
        return self.verdict is RetryVerdict.REPEAT

    @property
    def category(self) -> str:
        """The error's category."""
        return self.error.category

    @property
    def reason(self) -> str:
        """The decision in words."""
        if self.retry:
            return f"attempt {self.attempt + 1} in {self.delay_seconds:.3g} s"
        return _WORDS[self.verdict]

    def __bool__(self) -> bool:
        return self.retry

    def __await__(self) -> Generator[Any, None, Self]:
        return self
        yield  # makes this a generator: an await without a wait

    def __str__(self) -> str:
        return f"{self.error} [attempt {self.attempt}: {self.reason}]"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long. All times are seconds.

    Attributes:
        attempts: at most so many, the first one included.
        first_delay_seconds: the longest first delay; each later one may be twice as long.
        throttled_delay_seconds: the same after a 429 without a usable Retry-After.
        longest_delay_seconds: no drawn delay is longer.
        longest_retry_after_seconds: a server that asks for more is obeyed so far.
        deadline_seconds: over all attempts and all waits of one call; None waits for ever.
    """

    attempts: int = 4
    first_delay_seconds: float = 0.5
    throttled_delay_seconds: float = 1.0
    longest_delay_seconds: float = 20.0
    longest_retry_after_seconds: float = LONGEST_RETRY_AFTER
    deadline_seconds: float | None = 60.0

    def __post_init__(self) -> None:
        checked_count(self.attempts, "attempts")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if not (field.name == "deadline_seconds" and value is None):
                checked_seconds(value, field.name)

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Self:
        """A policy from the attributes' names.

        Raises:
            ConfigError: a name is not one of them, or a value cannot be.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
                raise ConfigError(f"no such setting of retries{hint}", key=name)
        return cls(**settings)

    def verdict(self, failure: Failure, *, attempt: int, mutation: bool) -> RetryVerdict:
        """What the failure itself allows, before deadline and budget are asked.

        Args:
            failure: what went wrong.
            attempt: the attempt that failed, 1 for the first.
            mutation: it changes something at the other side.
        """
        if mutation and not failure.no_effect:
            return RetryVerdict.UNSAFE
        if not failure.transient:
            return RetryVerdict.PERMANENT
        return RetryVerdict.REPEAT if attempt < self.attempts else RetryVerdict.ATTEMPTS

    def delay(self, failure: Failure, *, attempt: int, chance: float) -> float:
        """Seconds to wait after a failed attempt: full jitter, on top of what the server asked for.

        Args:
            failure: what went wrong.
            attempt: the attempt that failed, 1 for the first.
            chance: a number in [0, 1).
        """
        throttled = failure.category == "rate_limit"
        first = self.throttled_delay_seconds if throttled else self.first_delay_seconds
        asked = failure.retry_after
        if (
            asked is not None and 0 <= asked < inf
        ):  # a Retry-After of somebody's own making may be anything
            return min(asked, self.longest_retry_after_seconds) + chance * first
        return chance * min(self.longest_delay_seconds, first * 2.0 ** min(attempt - 1, 60))

    def __str__(self) -> str:
        return (
            f"{self.attempts} attempts, full jitter from {self.first_delay_seconds:g} s"
            f" (429: {self.throttled_delay_seconds:g} s) to {self.longest_delay_seconds:g} s,"
            f" Retry-After up to {self.longest_retry_after_seconds:g} s"
        )


class RetryBudget:
    """A bucket of retries shared by all calls to one host; safe from every thread.

    Successes fill it, and so does time, slowly, so that a bot of few calls is not left without. First attempts are
    free.

    Attributes:
        left: retries that it holds; read it, do not write it.

    Args:
        capacity: retries that it holds when full, and at first.
        per_success: retries that one successful call earns.
        per_second: retries that a second earns.

    Raises:
        ConfigError: a number is negative, not a number, or the capacity is 0.
    """

    def __init__(
        self, *, capacity: float = 20.0, per_success: float = 0.1, per_second: float = 0.1
    ) -> None:
        self.capacity = checked_seconds(capacity, "capacity", what="a number of retries above 0")
        if self.capacity == 0:
            raise ConfigError("a budget of 0 allows no retry: use attempts=1", key="capacity")
        self.per_success = checked_seconds(per_success, "per_success", what="a number from 0 up")
        self.per_second = checked_seconds(per_second, "per_second", what="a number from 0 up")
        self.left = self.capacity
        self._seen: float | None = None
        self._lock = threading.Lock()

    @classmethod
    def shared(cls, host: str) -> "RetryBudget":
        """The one budget with default numbers of a host, as long as somebody holds it."""
        with _sharing:
            return _shared.setdefault(host, cls())

    def spend(self, category: Category, now: float) -> bool:
        """Pay for one retry if there is enough; `now` is seconds on a clock that only moves forward."""
        price = _PRICES.get(category, 1.0)
        with self._lock:
            self._earn_by_time(now)
            if self.left < price:
                return False
            self.left -= price
            return True

    def succeeded(self) -> None:
        """A call came through."""
        if self.left < self.capacity:  # a glance without the lock: nearly always full
            with self._lock:
                self.left = min(self.left + self.per_success, self.capacity)

    def _earn_by_time(self, now: float) -> None:
        if self._seen is not None and now > self._seen:
            self.left = min(self.left + (now - self._seen) * self.per_second, self.capacity)
        self._seen = now if self._seen is None else max(self._seen, now)

    def __repr__(self) -> str:
        return f"<RetryBudget {self.left:.3g} of {self.capacity:g} retries>"


_sharing = threading.Lock()
_shared: "weakref.WeakValueDictionary[str, RetryBudget]" = weakref.WeakValueDictionary()


def checked_count(value: object, key: str) -> int:
    """The number, when it is a whole one from 1 up.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"a whole number from 1 up is needed, not {value!r}", key=key)
    return value


def checked_seconds(
    value: object, key: str, *, what: str = "a number of seconds from 0 up"
) -> float:
    """The number, when it is one.

    Raises:
        ConfigError: it is negative, NaN, infinite, a text or a bool.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < inf:
        raise ConfigError(f"{what} is needed, not {value!r}", key=key)
    return float(value)
