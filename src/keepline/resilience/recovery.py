"""After a failed attempt: a newer token, a wait and a repeat, or the error to raise.

Invariants: one newer token per call; a mutation is sent again only when it provably had no effect; nobody waits past
the deadline; a repeat is counted and logged before it is waited for.
"""

import logging
from dataclasses import dataclass, replace
from math import inf

from keepline.clock import Clock
from keepline.errors import APIError, CredentialError
from keepline.resilience.bearer import Bearer, TokenLike
from keepline.resilience.classify import BodyReader, Failure
from keepline.resilience.handler import ErrorHandler
from keepline.resilience.ports import Breaker, Http, Limiter
from keepline.resilience.retry import Decision, RetryVerdict
from keepline.resilience.tally import RETRIES
from keepline.telemetry import event

__all__ = ["AttemptFailed", "Layers", "Recovery", "Subject"]

log = logging.getLogger("keepline.resilience")

_WORTH_SAYING = frozenset({RetryVerdict.ATTEMPTS, RetryVerdict.DEADLINE, RetryVerdict.BUDGET})


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Layers:
    """What all operations of a pipeline share; `root` is the path of the base address."""

    broker: str
    host: str
    base_url: str
    root: str
    http: Http
    bearer: Bearer
    limiter: Limiter | None
    breaker: Breaker | None
    handler: ErrorHandler
    reader: BodyReader | None
    clock: Clock
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Subject:
    """What is being called: an operation as its recovery, the log and the metrics know it."""

    layers: Layers
    name: str
    endpoint: str
    path: str
    mutation: bool

    def tell(self, level: int, message: str, **fields: object) -> None:
        """Log an event."""
        event(log, level, message, broker=self.layers.broker, op=self.name, **fields)


class AttemptFailed(Exception):
    """One attempt came to nothing: carries why from where it is seen to where it is decided about."""

    def __init__(self, failure: Failure, cause: BaseException | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.cause = cause


class Recovery:
    """One call after its first failure.

    Attributes:
        attempt: the attempt that is being made.
        error: how the one before it ended.
    """

    __slots__ = ("_begun", "_deadline", "_renewed", "_subject", "attempt", "error")

    def __init__(self, subject: Subject, begun: float, deadline: float) -> None:
        self._subject, self._begun, self._deadline = subject, begun, deadline
        self._renewed = False
        self.attempt = 1
        self.error: APIError | None = None

    async def after(self, failed: AttemptFailed, sent: TokenLike | str | None) -> float:
        """Return when the next attempt is due, with the seconds that it has: always more than 0.

        Args:
            failed: the attempt.
            sent: the token that it was made with.

        Raises:
            APIError: there is no next attempt.
            CredentialError: a 401 that no token can cure.
        """
        words = self._subject.layers.bearer.hide(failed.failure.message, sent)
        failure = replace(failed.failure, message=words)
        if not self._renewed and self._a_newer_token_helps(failure):
            self._renewed = True
            self.error = await self._renew(failure, sent)
        else:
            self.error = await self._wait(failure, failed.cause)
        if (left := self._left()) <= 0:  # a busy loop wakes late
            raise _with_words(self.error, "the deadline passed before the next attempt")
        self.attempt += 1
        return left

    def succeeded(self) -> None:
        """The repeat came through."""
        self._subject.tell(logging.INFO, "Call recovered", attempt=self.attempt)

    async def _wait(self, failure: Failure, cause: BaseException | None) -> APIError:
        layers = self._subject.layers
        if failure.category == "rate_limit":
            self._feed_back(failure)
        decision = layers.handler.decide(
            failure,
            self._subject.endpoint,
            self.attempt,
            mutation=self._subject.mutation,
            elapsed_seconds=self._elapsed(),
            seconds_left=self._left(),
        )
        if not decision:
            raise _given_up(decision) from cause
        self._count_and_tell(failure, decision)
        await layers.clock.sleep(decision.delay_seconds)
        return decision.error

    def _count_and_tell(self, failure: Failure, decision: Decision) -> None:
        RETRIES.inc(self._subject.layers.broker, self._subject.name, failure.category)
        self._subject.tell(
            logging.WARNING,
            "Call repeated",
            attempt=self.attempt,
            category=failure.category,
            status=failure.status,
            delay_seconds=round(decision.delay_seconds, 3),
            reason=failure.message,
        )

    def _feed_back(self, failure: Failure) -> None:
        limiter, asked = self._subject.layers.limiter, failure.retry_after
        if asked is not None and not 0 <= asked < inf:
            asked = None  # of a reader's own making
        if limiter is not None:
            limiter.feedback(self._subject.path, asked)
        self._subject.tell(logging.WARNING, "rate limit exceeded", retry_after_seconds=asked)

    def _a_newer_token_helps(self, failure: Failure) -> bool:
        # RFC 9110 §15.5.2: a request that got a 401 "has not been applied", so a mutation may be sent again too,
        # unless the broker's reader says otherwise
        return failure.token_refused and (failure.no_effect or not self._subject.mutation)

    async def _renew(self, failure: Failure, sent: TokenLike | str | None) -> APIError:
        """Wait for a newer token than the one that was refused."""
        subject, layers = self._subject, self._subject.layers
        error = layers.handler.refused_token(
            failure,
            subject.endpoint,
            self.attempt,
            mutation=subject.mutation,
            elapsed_seconds=self._elapsed(),
        )
        subject.tell(logging.WARNING, "Token refused", attempt=self.attempt, reason=failure.message)
        try:
            newer = await layers.bearer.newer(layers.clock, self._left(), sent)
        except TimeoutError:
            raise _with_words(error, "no newer token came in time") from None
        except CredentialError as unavailable:
            raise unavailable from error
        if not newer:
            raise _with_words(error, "there is no newer token")
        RETRIES.inc(layers.broker, subject.name, "auth")
        return error

    def _left(self) -> float:
        return self._deadline - self._subject.layers.clock.boottime()

    def _elapsed(self) -> float:
        return self._subject.layers.clock.boottime() - self._begun


def _given_up(decision: Decision) -> APIError:
    if decision.verdict in _WORTH_SAYING:
        return _with_words(decision.error, decision.reason)
    return decision.error


def _with_words(error: APIError, words: str) -> APIError:
    error.args = (f"{error.args[0]} ({words})",)
    return error
