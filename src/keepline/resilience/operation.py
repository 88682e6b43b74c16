"""One kind of call, prepared once, and its way through all layers; the hot path of every bot.

Invariants: nothing is sent after the deadline; each attempt pays the limiter; a mutation is repeated only when it
provably had no effect, else it ends as `OutcomeUnknown`; a 401 is answered with one newer token, once; a cancellation
passes through and blames nobody. A call that succeeds makes neither a timer nor a task nor a metric object.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from keepline.clock import Clock
from keepline.errors import (
    APIError,
    CircuitOpen,
    Closed,
    ConfigError,
    CredentialError,
    OutcomeUnknown,
    RateLimited,
    Refused,
)
from keepline.resilience.bearer import Bearer, rest_until
from keepline.resilience.classify import (
    BodyReader,
    Failure,
    clean,
    failure_of_exception,
    unreadable,
)
from keepline.resilience.handler import ErrorHandler
from keepline.resilience.ports import Breaker, Http, Limiter
from keepline.resilience.retry import Decision, RetryVerdict, checked_seconds
from keepline.resilience.tally import REQUEST_SECONDS, REQUESTS, RETRIES, Tally
from keepline.telemetry import DEFAULT_BUCKETS, event

if TYPE_CHECKING:
    from keepline.http import Response

__all__ = ["HARMLESS", "Layers", "Operation"]

log = logging.getLogger("keepline.resilience")

T = TypeVar("T")

HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that read, unless an operation says otherwise."""

_INF = float("inf")
_WORTH_SAYING = frozenset({RetryVerdict.ATTEMPTS, RetryVerdict.DEADLINE, RetryVerdict.BUDGET})
_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (OutcomeUnknown, "unknown"),
    (CircuitOpen, "circuit_open"),
    (RateLimited, "limited"),
    (Refused, "deadline"),
    (CredentialError, "no_token"),
    (Exception, "misuse"),
    (BaseException, "cancelled"),
)

_Request: TypeAlias = tuple[
    str,
    object,
    Mapping[str, str] | None,
    Mapping[str, str] | None,
    Mapping[str, str] | None,
    int,
    float,
]  # url, json, params, form, headers, weight, deadline


@dataclass(frozen=True, slots=True)
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


class _Failed(Exception):
    """One attempt came to nothing: carries why from where it is seen to where it is decided about."""

    def __init__(
        self, failure: Failure, seconds: float, cause: BaseException | None = None
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.seconds = seconds
        self.cause = cause


class Operation(Generic[T]):
    """One kind of call; calling it makes the call. Made by `Pipeline.operation`.

    Attributes:
        name: its name in metrics and logs.
        endpoint: method and path with `{names}`, as errors tell it.
        path: the path, as the limiter knows it.
        mutation: it changes something at the other side.
        priority, weight: for the limiter.
        timeout_seconds: for one attempt.
        deadline_seconds: over all attempts and waits, None for none.
    """

    __slots__ = (
        *("__weakref__", "_acquire", "_bearer", "_breaker", "_budget", "_decode", "_expects_json", "_fetch", "_fields"),
        *("_layers", "_now", "_reader", "_send", "_tally", "_url", "deadline_seconds", "endpoint", "method"),
        *("mutation", "name", "path", "priority", "timeout_seconds", "weight"),
    )  # fmt: skip

    def __init__(
        self,
        layers: Layers,
        name: str,
        method: str,
        path: str,
        *,
        mutation: bool,
        priority: str,
        weight: int,
        group: str,
        expects_json: bool,
        decode: "Callable[[Response], T] | None",
        timeout_seconds: float,
        deadline_seconds: float | None,
    ) -> None:
        self.name, self.method, self.path = name, method, layers.root + path
        self.endpoint = f"{method} {self.path}"
        self.mutation, self.priority, self.weight = mutation, priority, weight
        self.timeout_seconds, self.deadline_seconds = timeout_seconds, deadline_seconds
        # whatever the hot path needs is one look-up away
        self._layers, self._now, self._send = layers, layers.clock.boottime, layers.http.request
        self._acquire = None if layers.limiter is None else layers.limiter.acquire
        self._bearer, self._fetch = layers.bearer, layers.bearer.fetch
        self._reader, self._budget = layers.reader, layers.handler.budget
        self._breaker = layers.breaker and layers.breaker.for_(layers.host, group)
        self._decode, self._expects_json = decode, expects_json
        self._url = layers.base_url + path
        self._fields = tuple(field for _, field, _, _ in Formatter().parse(path) if field)
        self._tally = Tally(self, layers.broker, name)

    async def __call__(
        self,
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, object] | None = None,
        weight: int | None = None,
        deadline_seconds: float | None = None,
    ) -> T:
        """Make the call.

        Args:
            json: sent as a JSON body when not None.
            params: added to the query.
            form: sent as a form when not None.
            headers: beside the pipeline's.
            fields: values of the path's `{names}`.
            weight: units of the rate budget, instead of the operation's.
            deadline_seconds: over all attempts and waits, instead of the operation's.

        Raises:
            ConfigError: an argument makes no sense; nothing was sent.
            CircuitOpen: the other side fails too often; nothing was sent.
            RateLimited: the rate budget cannot serve it before its deadline; nothing was sent.
            Refused: the deadline passed before it could be sent.
            CredentialError: there is no token; nothing was sent, or a 401 could not be cured.
            TransientError: a read failed, or a mutation that provably had no effect; it may work in a moment.
            PermanentError: it was refused, and will be refused again.
            OutcomeUnknown: a mutation may have taken effect: look it up, never resend blindly.
        """
        begun = self._now()
        limit = self.deadline_seconds
        if deadline_seconds is not None:
            limit = checked_seconds(deadline_seconds, "deadline_seconds")
        request: _Request = (
            self._url if fields is None and not self._fields else self._filled(fields or {}),
            json, params, form, headers, self.weight if weight is None else weight,
            _INF if limit is None else begun + limit,
        )  # fmt: skip
        breaker = self._breaker
        permit = None if breaker is None else self._admitted(breaker)
        try:
            try:
                value, seconds = await self._attempt(request)
            except _Failed as failed:
                value, seconds = await self._recover(request, failed, begun)
        except BaseException as error:
            self._ended(error, permit, self._now() - begun)
            raise
        if breaker is not None:
            breaker.leave(permit, seconds)
        # `Tally.succeeded` in place: a call costs as much as the three additions
        tally = self._tally
        tally.ok += 1
        tally.buckets[bisect_left(DEFAULT_BUCKETS, seconds)] += 1
        tally.seconds += seconds
        self._budget.succeeded()
        return value

    # ---- one attempt

    async def _attempt(self, request: _Request) -> tuple[T, float]:
        url, json, params, form, extra, weight, deadline = request
        now = self._now
        if self._acquire is not None:
            left = None if deadline == _INF else deadline - now()
            await self._acquire(self.path, weight=weight, priority=self.priority, deadline=left)
        if self._fetch is None:
            headers = self._bearer.bare
        else:
            # driven by hand as far as it goes by itself: a token that is there costs neither a timer nor a task
            fetching = self._fetch()
            try:
                waits_for = fetching.send(None)
            except StopIteration as fetched:
                headers = self._bearer.headers(fetched.value)
            else:
                headers = await self._patiently(fetching, waits_for, deadline)
        if extra is not None:
            headers = {**headers, **extra}
        begun = now()
        timeout = self.timeout_seconds
        if (left := deadline - begun) < timeout:
            timeout = self._still(left)
        try:
            answer = await self._send(
                self.method, url, headers=headers, params=params, json=json, form=form, timeout_seconds=timeout
            )  # fmt: skip
        except (ConfigError, Closed, TypeError):
            raise  # the caller's own mistake: the HTTP face says so before it sends
        except Exception as error:
            raise self._lost(error, now() - begun) from None
        seconds = now() - begun
        return self._read(answer, seconds), seconds

    async def _patiently(
        self, fetching: Coroutine[Any, Any, Any], waits_for: Any, deadline: float
    ) -> Mapping[str, str]:
        left = deadline - self._now()
        try:
            token = await rest_until(self._layers.clock, left, fetching, waits_for)
        except TimeoutError:
            raise Refused(f"{self.endpoint}: no token came in time") from None
        return self._bearer.headers(token)

    def _still(self, seconds: float) -> float:
        if seconds <= 0:
            raise Refused(f"{self.endpoint}: the deadline passed before it could be sent")
        return seconds

    def _read(self, answer: "Response", seconds: float) -> T:
        reader, status = self._reader, answer.status
        if not 200 <= status < 300:
            raise self._said_no(answer, seconds, None)
        if reader is not None and (said := reader(self.endpoint, status, answer.body)) is not None:
            raise self._said_no(answer, seconds, said)
        try:
            if self._decode is not None:
                return self._decode(answer)
            if self._expects_json:
                _check_json(answer.body)
        except Exception as error:
            raise self._said_no(answer, seconds, _not_understood(answer, error)) from None
        return answer  # type: ignore[return-value]  # without a decode T is Response

    def _lost(self, error: Exception, seconds: float) -> _Failed:
        REQUEST_SECONDS.observe(seconds, self._layers.broker, self.name)
        failure = failure_of_exception(error)
        return _Failed(self._without_token(failure), seconds, error)

    def _said_no(self, answer: "Response", seconds: float, said: Failure | None) -> _Failed:
        REQUEST_SECONDS.observe(seconds, self._layers.broker, self.name)
        failure = self._layers.handler.failure_of(
            answer.status, answer.headers, answer.body, endpoint=self.endpoint, said=said
        )
        return _Failed(self._without_token(failure), seconds)

    def _without_token(self, failure: Failure) -> Failure:
        return replace(failure, message=self._layers.bearer.hide(failure.message))

    # ---- after a failed attempt

    async def _recover(self, request: _Request, failed: _Failed, begun: float) -> tuple[T, float]:
        attempt, renewed = 1, False
        while True:
            error: APIError
            if not renewed and self._a_newer_token_helps(failed.failure):
                renewed = True
                error = await self._renew(failed, attempt, begun, request[-1])
            else:
                error = await self._wait_or_give_up(failed, attempt, begun, request[-1])
            attempt += 1
            try:
                result = await self._attempt(request)
            except _Failed as again:
                failed = again
            except (Refused, CredentialError) as refused:
                raise error from refused  # what the other side said tells more
            else:
                self._tell(logging.INFO, "Call recovered", attempt=attempt)
                return result

    async def _wait_or_give_up(
        self, failed: _Failed, attempt: int, begun: float, deadline: float
    ) -> APIError:
        """Sleep until the next attempt is due, or raise."""
        failure, layers = failed.failure, self._layers
        if failure.category == "rate_limit":
            self._feed_back(failure)
        now = self._now()
        decision = layers.handler.decide(
            failure,
            self.endpoint,
            attempt,
            mutation=self.mutation,
            elapsed_seconds=now - begun,
            seconds_left=deadline - now,
        )
        if not decision:
            raise self._given_up(decision) from failed.cause
        RETRIES.inc(layers.broker, self.name, failure.category)
        self._tell(
            logging.WARNING,
            "Call repeated",
            attempt=attempt,
            category=failure.category,
            status=failure.status,
            delay_seconds=round(decision.delay_seconds, 3),
            reason=failure.message,
        )
        await layers.clock.sleep(decision.delay_seconds)
        return decision.error

    def _given_up(self, decision: Decision) -> APIError:
        error = decision.error
        if decision.verdict in _WORTH_SAYING:
            error.args = (f"{error.args[0]} ({decision.reason})",)
        return error

    def _a_newer_token_helps(self, failure: Failure) -> bool:
        # RFC 9110 §15.5.2: a request that got a 401 "has not been applied", so a mutation may be sent again too,
        # unless the broker's reader says otherwise
        return failure.token_refused and (failure.no_effect or not self.mutation)

    async def _renew(
        self, failed: _Failed, attempt: int, begun: float, deadline: float
    ) -> APIError:
        """Wait for a newer token than the one refused, or raise."""
        bearer, failure = self._layers.bearer, failed.failure
        error = self._layers.handler.refused_token(
            failure,
            self.endpoint,
            attempt,
            mutation=self.mutation,
            elapsed_seconds=self._now() - begun,
        )
        self._tell(logging.WARNING, "Token refused", attempt=attempt, reason=failure.message)
        try:
            newer = await bearer.newer(self._layers.clock, deadline - self._now())
        except TimeoutError:
            error.args = (f"{error.args[0]} (no newer token came in time)",)
            raise error from None
        except CredentialError as unavailable:
            raise unavailable from error
        if not newer:
            raise error
        RETRIES.inc(self._layers.broker, self.name, "auth")
        return error

    def _feed_back(self, failure: Failure) -> None:
        if self._layers.limiter is not None:
            self._layers.limiter.feedback(self.path, failure.retry_after)
        self._tell(logging.WARNING, "rate limit exceeded", retry_after_seconds=failure.retry_after)

    # ---- the end

    def _admitted(self, breaker: Breaker) -> object:
        try:
            return breaker.enter()
        except CircuitOpen:
            REQUESTS.inc(self._layers.broker, self.name, "circuit_open")
            raise

    def _ended(self, error: BaseException, permit: object, seconds: float) -> None:
        if self._breaker is not None:
            # the seconds hold our own waits: they are not held against the other side
            self._breaker.leave(permit, 0.0, None if _is_considered(error) else error)
        outcome = next(word for kind, word in _OUTCOMES if isinstance(error, kind))
        if isinstance(error, APIError) and outcome != "unknown":
            outcome = error.category
        REQUESTS.inc(self._layers.broker, self.name, outcome)
        if isinstance(error, Exception):
            level = logging.ERROR if outcome == "unknown" else logging.WARNING
            words = "Outcome unknown" if outcome == "unknown" else "Call failed"
            self._tell(level, words, outcome=outcome, seconds=round(seconds, 3), reason=str(error))

    def _tell(self, level: int, message: str, **fields: object) -> None:
        event(log, level, message, broker=self._layers.broker, op=self.name, **fields)

    def _filled(self, fields: Mapping[str, object]) -> str:
        if missing := [name for name in self._fields if fields.get(name) in (None, "")]:
            raise ConfigError(f"{self.endpoint} needs a value for {missing[0]}", key=missing[0])
        if extra := [name for name in fields if name not in self._fields]:
            raise ConfigError(f"{self.endpoint} has no such place in its path", key=extra[0])
        return self._url.format_map({k: quote(str(v), safe="") for k, v in fields.items()})

    def __repr__(self) -> str:
        kind = "changes something" if self.mutation else "reads"
        return (
            f"<Operation {self.name}: {self.endpoint}, {kind}, {self._tally.ok} calls came through>"
        )


def _is_considered(error: BaseException) -> bool:
    """A good status with the broker's own code: whatever it says, the other side is well."""
    return isinstance(error, APIError) and error.status == 200 and error.code != ""


_check_json = msgspec.json.Decoder(msgspec.Raw).decode


def _not_understood(answer: "Response", error: Exception) -> Failure:
    """A good status around something else: a page may be gone in a moment, a wrong shape stays wrong."""
    try:
        _check_json(answer.body)
    except msgspec.DecodeError:
        return unreadable(answer.status, answer.body, "JSON is expected")
    words = clean(str(error) or type(error).__name__, 160)
    return Failure(
        "server", False, f"{answer.status} with JSON of another shape than expected: {words}"
    )
