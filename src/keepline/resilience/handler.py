"""The error handler: classification, retry policy and statistics behind four calls, for programs with their own loop.

Invariants: safe from every thread; asking (`classify_error`, `should_retry`, `get_retry_delay`) changes nothing, only
`handle_error` and `record_success` count; what may be an order is not repeated without proof.
"""

import threading
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import APIError, ConfigError, OutcomeUnknown
from keepline.resilience.classify import (
    CATEGORIES,
    BodyReader,
    Category,
    Failure,
    category_of,
    checked_status,
    error_of,
    failure_of_answer,
)
from keepline.resilience.raised import failure_of_exception
from keepline.resilience.retry import (
    Decision,
    RetryBudget,
    RetryPolicy,
    RetryVerdict,
    checked_count,
)

__all__ = ["READS_BY_POST", "ErrorHandler", "is_mutation"]

READS_BY_POST = (
    "*/history/*",
    "*/search",
    "*/searchopen",
    "*/searchbyid",
    "*/available",
    "*/previeworder",
)
"""Endpoints, in lower case, that read although they are called by POST (ProjectX does so throughout)."""

_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
_MUTATING_WORDS = ("order", "position", "close", "cancel", "place")


def is_mutation(endpoint: str) -> bool:
    """Whether a call may change something, judged by its endpoint alone; in doubt it does.

    Args:
        endpoint: `POST /api/Order/place`, or the path alone: then it counts as a mutation when it speaks of orders or
            positions, or of placing, cancelling or closing.
    """
    method, _, path = endpoint.strip().rpartition(" ")
    lowered = path.partition("?")[0].lower()
    if method.upper() in _HARMLESS:
        return False
    if method.upper() in ("", "POST") and any(fnmatchcase(lowered, glob) for glob in READS_BY_POST):
        return False
    return bool(method) or any(word in lowered for word in _MUTATING_WORDS)


class ErrorHandler:
    """Tells errors apart, decides about retries, and counts.

    Args:
        config: a `RetryPolicy`, a mapping of its attributes, or None for its defaults.
        reader: knows a broker's own bodies (`keepline.brokers.projectx.errors.read_body`).
        budget: shared with others that call the same host; None makes one of its own.
        clock: for tests.

    Raises:
        ConfigError: an unknown setting, or a value that cannot be.
    """

    def __init__(
        self,
        config: RetryPolicy | Mapping[str, Any] | None = None,
        *,
        reader: BodyReader | None = None,
        budget: RetryBudget | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.policy = (
            config if isinstance(config, RetryPolicy) else RetryPolicy.from_mapping(config or {})
        )
        self.budget = budget or RetryBudget()
        self.reader = reader
        self._clock = clock
        self._lock = threading.Lock()
        self._by_category: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        self._retries = 0
        self._successes = 0

    def classify_error(
        self,
        status_code: int | BaseException | None,
        error_body: object = None,
        *,
        endpoint: str = "",
    ) -> Category:
        """The category of a failure: `auth`, `client`, `server`, `network`, `timeout` or `rate_limit`.

        Args:
            status_code: the HTTP status; None when no answer came; or the exception that was raised.
            error_body: the answer's body (bytes, text, or decoded JSON) for brokers that say no inside a 200.
            endpoint: where, for brokers whose codes differ from endpoint to endpoint.

        Raises:
            ConfigError: not a status, or a good status whose body tells of no failure.
        """
        if status_code is None:
            return "network"
        if isinstance(status_code, BaseException):
            return failure_of_exception(status_code).category
        status = checked_status(status_code)
        told = self.reader(endpoint, status, _bytes_of(error_body)) if self.reader else None
        if told is not None:
            return told.category
        if status >= 300:
            return category_of(status)
        if error_body is not None and not _is_json(_bytes_of(error_body)):
            return "server"  # a page, where data was promised
        raise ConfigError(f"{status} is not the status of an error", key="status_code")

    def should_retry(
        self, error: BaseException, attempt: int, *, mutation: bool | None = None
    ) -> bool:
        """Whether the failure and the number of attempts allow a repeat; deadline and budget are not asked.

        Args:
            error: what was raised.
            attempt: the attempt that failed, 1 for the first.
            mutation: whether the call changes something; None judges by the error's endpoint.

        Raises:
            ConfigError: `attempt` is not a whole number from 1 up.
        """
        failure = failure_of_exception(error)
        if mutation is None:
            mutation = is_mutation(getattr(error, "endpoint", "") or "")
        verdict = self.policy.verdict(
            failure, attempt=checked_count(attempt, "attempt"), mutation=mutation
        )
        return verdict is RetryVerdict.REPEAT

    def get_retry_delay(self, attempt: int, error: BaseException) -> float:
        """Seconds to wait after a failed attempt: drawn anew each time, never less than the server asked for.

        Raises:
            ConfigError: `attempt` is not a whole number from 1 up.
        """
        return self.policy.delay(
            failure_of_exception(error),
            attempt=checked_count(attempt, "attempt"),
            chance=self._clock.chance(),
        )

    def handle_error(
        self,
        error: BaseException,
        endpoint: str,
        attempt: int,
        *,
        mutation: bool | None = None,
        elapsed_seconds: float | None = None,
        seconds_left: float | None = None,
    ) -> Decision:
        """Count a failure and decide what to do; the result may be awaited, which waits for nothing.

        Args:
            error: what was raised; a cancellation is raised again.
            endpoint: `POST /api/Order/place`; kept on the error.
            attempt: the attempt that failed, 1 for the first.
            mutation: whether the call changes something; None judges by the endpoint.
            elapsed_seconds: since the call began, for the error.
            seconds_left: until the call's deadline; None asks for none.

        Raises:
            ConfigError: `attempt` is not a whole number from 1 up.
        """
        if mutation is None:
            mutation = isinstance(error, OutcomeUnknown) or is_mutation(endpoint)
        decision = self.decide(
            failure_of_exception(error),
            endpoint,
            checked_count(attempt, "attempt"),
            mutation=mutation,
            elapsed_seconds=elapsed_seconds,
            seconds_left=seconds_left,
        )
        decision.error.__cause__ = error
        return decision

    def decide(
        self,
        failure: Failure,
        endpoint: str,
        attempt: int,
        *,
        mutation: bool,
        elapsed_seconds: float | None = None,
        seconds_left: float | None = None,
    ) -> Decision:
        """What `handle_error` does, for a failure that is classified already."""
        verdict = self.policy.verdict(failure, attempt=attempt, mutation=mutation)
        delay = 0.0
        if verdict is RetryVerdict.REPEAT:
            delay = self.policy.delay(failure, attempt=attempt, chance=self._clock.chance())
            verdict = self._affordable(failure, delay, seconds_left)
        self._count(failure.category, retried=verdict is RetryVerdict.REPEAT)
        error = error_of(
            failure,
            mutation=mutation,
            endpoint=endpoint,
            attempt=attempt,
            elapsed_seconds=elapsed_seconds,
        )
        return Decision(
            verdict, delay if verdict is RetryVerdict.REPEAT else 0.0, error, attempt, endpoint
        )

    def refused_token(
        self,
        failure: Failure,
        endpoint: str,
        attempt: int,
        *,
        mutation: bool,
        elapsed_seconds: float | None = None,
    ) -> APIError:
        """Count a 401 that a newer token may cure; gives the error to raise when it does not."""
        self._count(failure.category, retried=False)
        return error_of(
            failure,
            mutation=mutation,
            endpoint=endpoint,
            attempt=attempt,
            elapsed_seconds=elapsed_seconds,
        )

    def failure_of(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        endpoint: str = "",
        said: Failure | None = None,
    ) -> Failure:
        """The failure that an answer tells of, with this handler's reader and clock."""
        return failure_of_answer(
            status,
            headers,
            body,
            endpoint=endpoint,
            reader=self.reader,
            said=said,
            wall=self._clock.wall(),
        )

    def record_success(self) -> None:
        """Count a call that came through; it earns a share of a retry."""
        self.budget.succeeded()
        with self._lock:
            self._successes += 1

    def get_stats(self) -> dict[str, Any]:
        """`total_errors`, `retries`, `successes`, and `by_category` with all six categories."""
        with self._lock:
            by_category = dict(self._by_category)
            retries, successes = self._retries, self._successes
        return {
            "total_errors": sum(by_category.values()),
            "retries": retries,
            "successes": successes,
            "by_category": by_category,
        }

    def _affordable(
        self, failure: Failure, delay: float, seconds_left: float | None
    ) -> RetryVerdict:
        if seconds_left is not None and delay >= seconds_left:
            return RetryVerdict.DEADLINE
        paid = self.budget.spend(failure.category, self._clock.boottime())
        return RetryVerdict.REPEAT if paid else RetryVerdict.BUDGET

    def _count(self, category: Category, *, retried: bool) -> None:
        with self._lock:
            self._by_category[category] += 1
            self._retries += retried

    def __repr__(self) -> str:
        stats = self.get_stats()
        return f"<ErrorHandler {stats['total_errors']} errors, {stats['retries']} retries, {self.policy}>"


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def _bytes_of(body: object) -> bytes:
    if isinstance(body, bytes):
        return body
    if body is None:
        return b""
    return body.encode() if isinstance(body, str) else msgspec.json.encode(body)
