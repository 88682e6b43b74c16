"""One kind of call, prepared once, and its way through all layers; the hot path of every bot.

Invariants: nothing is sent after the deadline; each attempt pays the limiter; a mutation that may have taken effect
ends as `OutcomeUnknown`; a cancellation passes through and blames nobody. A call that succeeds makes neither a timer
nor a task nor a metric object.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

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
from keepline.resilience.bearer import TokenLike, rest_until
from keepline.resilience.classify import Failure, unreadable
from keepline.resilience.raised import failure_of_exception
from keepline.resilience.recovery import AttemptFailed, Layers, Recovery, Subject
from keepline.resilience.retry import checked_seconds
from keepline.resilience.tally import REQUEST_SECONDS, REQUESTS, Tally
from keepline.resilience.wording import clean
from keepline.telemetry import DEFAULT_BUCKETS

if TYPE_CHECKING:
    from keepline.http import Response

__all__ = ["HARMLESS", "Operation"]

log = logging.getLogger("keepline.resilience")

T = TypeVar("T")

HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that read, unless an operation says otherwise."""

_INF = float("inf")
_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (OutcomeUnknown, "unknown"),
    (CircuitOpen, "circuit_open"),
    (RateLimited, "limited"),
    (Refused, "deadline"),
    (CredentialError, "no_token"),
    (Exception, "misuse"),
    (BaseException, "cancelled"),
)


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
        tally: the calls of this name that came through.
    """

    __slots__ = (
        *("__weakref__", "_acquire", "_bearer", "_breaker", "_budget", "_decode", "_expects_json", "_fetch", "_fields"),
        *("_give_back", "_layers", "_now", "_reader", "_send", "_subject", "_url", "deadline_seconds", "endpoint"),
        *("method", "mutation", "name", "path", "priority", "tally", "timeout_seconds", "weight"),
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
        tally: Tally,
    ) -> None:
        self.name, self.method, self.path = name, method, layers.root + path
        self.endpoint = f"{method} {self.path}"
        self.mutation, self.priority, self.weight = mutation, priority, weight
        self.timeout_seconds, self.deadline_seconds = timeout_seconds, deadline_seconds
        # whatever the hot path needs is one look-up away
        self._layers, self._now, self._send = layers, layers.clock.boottime, layers.http.request
        self._acquire = None if layers.limiter is None else layers.limiter.acquire
        self._give_back = getattr(layers.limiter, "give_back", None)
        self._bearer, self._fetch = layers.bearer, layers.bearer.fetch
        self._reader, self._budget = layers.reader, layers.handler.budget
        self._breaker = layers.breaker and layers.breaker.for_(layers.host, group)
        self._decode, self._expects_json = decode, expects_json
        self._url = layers.base_url + path
        self._fields = tuple(field for _, field, _, _ in Formatter().parse(path) if field)
        self._subject = Subject(layers, name, self.endpoint, self.path, mutation)
        self.tally = tally

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
        now, bearer, breaker = self._now, self._bearer, self._breaker
        begun = now()
        left = self.deadline_seconds
        if deadline_seconds is not None:
            left = checked_seconds(deadline_seconds, "deadline_seconds")
        deadline = _INF if left is None else begun + left
        url = self._url if fields is None and not self._fields else self._filled(fields or {})
        permit = None if breaker is None else self._admitted()
        units = self.weight if weight is None else weight
        recovery: Recovery | None = None
        token: TokenLike | str | None = None
        granted: object = None
        try:
            # one turn of the loop is one attempt; it is spelt out here because a coroutine more would cost a tenth
            while True:
                try:
                    if self._acquire is not None:
                        granted = await self._acquire(
                            self.path, weight=units, priority=self.priority, deadline=left
                        )  # fmt: skip
                    sent_headers = bearer.bare
                    if self._fetch is not None:
                        # driven by hand: a token that is there costs neither a timer nor a task
                        fetching = self._fetch()
                        try:
                            waits_for = fetching.send(None)
                        except StopIteration as fetched:
                            token = fetched.value
                        else:
                            token = await self._patiently(fetching, waits_for, deadline)
                        sent_headers = bearer.current if token is bearer.token else bearer.headers(token)  # fmt: skip
                    if headers is not None:
                        sent_headers = {**sent_headers, **headers}
                    sent = now()
                    timeout = self.timeout_seconds
                    if deadline - sent < timeout:
                        timeout = self._still(deadline - sent)
                    granted = None  # spent from here on
                    try:
                        answer = await self._send(
                            self.method, url, headers=sent_headers, params=params, json=json, form=form,
                            timeout_seconds=timeout,
                        )  # fmt: skip
                    except Exception as error:
                        raise self._lost(error, now() - sent) from None
                    seconds = now() - sent
                    value = self._read(answer, seconds)
                    break
                except AttemptFailed as failed:
                    recovery = recovery or Recovery(self._subject, begun, deadline)
                    left = _finite(await recovery.after(failed, token))
                except (Refused, CredentialError) as refused:
                    if recovery is None:
                        raise
                    raise (
                        recovery.error or refused
                    ) from refused  # what the other side said tells more
        except BaseException as error:
            self._ended(error, permit, now() - begun)
            if granted is not None:
                self._return(granted, units, error)
            raise
        if breaker is not None:
            breaker.leave(permit, seconds)
        if recovery is not None:
            recovery.succeeded()
        # `Tally.succeeded` in place: a call of it would cost as much as the three additions
        tally, budget = self.tally, self._budget
        tally.ok += 1
        tally.buckets[bisect_left(DEFAULT_BUCKETS, seconds)] += 1
        tally.seconds += seconds
        if budget.left < budget.capacity:
            budget.succeeded()
        if log.isEnabledFor(logging.DEBUG):
            self._subject.tell(logging.DEBUG, "Call done", seconds=round(seconds, 6))
        return value

    async def _patiently(
        self, fetching: Coroutine[Any, Any, Any], waits_for: Any, deadline: float
    ) -> TokenLike | str:
        left = deadline - self._now()
        try:
            token: TokenLike | str = await rest_until(self._layers.clock, left, fetching, waits_for)
        except TimeoutError:
            raise Refused(f"{self.endpoint}: no token came in time") from None
        return token

    def _return(self, granted: object, units: int, error: BaseException) -> None:
        """A turn of the limiter's that nothing was sent with; one thrown away may come from inside its lock."""
        if self._give_back is not None and not isinstance(error, GeneratorExit):
            self._give_back(self.path, granted, weight=units)

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

    def _lost(self, error: Exception, seconds: float) -> Exception:
        if isinstance(error, ConfigError | Closed | TypeError):
            return error  # the caller's own mistake: the HTTP face says so before it sends
        REQUEST_SECONDS.observe(seconds, self._layers.broker, self.name)
        return AttemptFailed(failure_of_exception(error), error)

    def _said_no(self, answer: "Response", seconds: float, said: Failure | None) -> AttemptFailed:
        REQUEST_SECONDS.observe(seconds, self._layers.broker, self.name)
        failure = self._layers.handler.failure_of(
            answer.status, answer.headers, answer.body, endpoint=self.endpoint, said=said
        )
        return AttemptFailed(failure)

    def _admitted(self) -> object:
        assert self._breaker is not None  # asked before
        try:
            return self._breaker.enter()
        except CircuitOpen:
            REQUESTS.inc(self._layers.broker, self.name, "circuit_open")
            raise

    def _ended(self, error: BaseException, permit: object, seconds: float) -> None:
        if self._breaker is not None:
            # the seconds hold our own waits: they are not held against the other side
            self._breaker.leave(permit, 0.0, None if _is_considered(error) else error)
        if isinstance(error, GeneratorExit):
            return  # thrown away, perhaps by the garbage collector in a thread that holds a metric's lock
        outcome = next(word for kind, word in _OUTCOMES if isinstance(error, kind))
        if isinstance(error, APIError) and outcome != "unknown":
            outcome = error.category
        REQUESTS.inc(self._layers.broker, self.name, outcome)
        if isinstance(error, Exception):
            level = logging.ERROR if outcome == "unknown" else logging.WARNING
            words = "Outcome unknown" if outcome == "unknown" else "Call failed"
            self._subject.tell(
                level, words, outcome=outcome, seconds=round(seconds, 3), reason=str(error)
            )

    def _filled(self, fields: Mapping[str, object]) -> str:
        if missing := [name for name in self._fields if fields.get(name) in (None, "")]:
            raise ConfigError(f"{self.endpoint} needs a value for {missing[0]}", key=missing[0])
        if extra := [name for name in fields if name not in self._fields]:
            raise ConfigError(f"{self.endpoint} has no such place in its path", key=extra[0])
        return self._url.format_map({k: quote(str(v), safe="") for k, v in fields.items()})

    def __repr__(self) -> str:
        kind = "changes something" if self.mutation else "reads"
        return (
            f"<Operation {self.name}: {self.endpoint}, {kind}, {self.tally.ok} calls came through>"
        )


def _finite(seconds: float) -> float | None:
    return None if seconds == _INF else seconds


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
