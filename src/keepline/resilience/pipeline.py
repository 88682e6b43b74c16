"""The layers between a bot and a broker's HTTP API, put together once, in an order that is printed.

Invariants: the order is deadline, breaker, retry, limiter, timeout, token, HTTP, classification; all calls of a
pipeline run on one event loop; all pipelines to one host share one retry budget unless they are given another.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from urllib.parse import urlsplit

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError
from keepline.resilience.bearer import Bearer, TokenSource
from keepline.resilience.classify import BodyReader
from keepline.resilience.handler import ErrorHandler
from keepline.resilience.operation import HARMLESS, Operation
from keepline.resilience.ports import Breaker, Http, Limiter
from keepline.resilience.recovery import Layers
from keepline.resilience.retry import RetryBudget, RetryPolicy, checked_seconds
from keepline.resilience.tally import Tally

if TYPE_CHECKING:
    from keepline.http import Response

__all__ = ["Pipeline"]

log = logging.getLogger("keepline.resilience")

T = TypeVar("T")
_GROUPS = {"cancel": "orders", "order": "orders", "history": "history"}
_MOST_OPERATIONS = 256  # made by `request` from texts; ids in paths belong into `fields`


class Pipeline:
    """Calls that survive.

    Args:
        http: the HTTP face, for example `keepline.http.HttpSession()`; it stays the caller's to close.
        base_url: where the broker's paths begin, for example `https://api.topstepx.com`.
        broker: its name in metrics and logs.
        tokens: what gives the newest token: an object with `await get(newer_than=...)` (`TokenManager`) or
            `await get_token()`, or an async callable; None sends no `Authorization`.
        limiter: what each attempt pays; None for no limit.
        breaker: what refuses calls while the other side fails; None for none.
        retry: how often and how long; `RetryPolicy(attempts=1)` repeats nothing but a 401.
        budget: of retries; None shares one with all pipelines to the same host.
        reader: knows the broker's own error bodies.
        headers: sent with every request.
        timeout_seconds: for one attempt.
        clock: for tests.

    Raises:
        ConfigError: an address that is none, or a number that cannot be.

    Example:
        >>> pipeline = Pipeline(HttpSession(), "https://api.topstepx.com", broker="projectx", tokens=manager)
        >>> place = pipeline.operation("place", "POST", "/api/Order/place", priority="order")
        >>> answer = await place(json={"accountId": 1, "contractId": "CON.F.US.MNQ.U26", "type": 2, "side": 0})
    """

    def __init__(
        self,
        http: Http,
        base_url: str,
        *,
        broker: str,
        tokens: TokenSource | None = None,
        limiter: Limiter | None = None,
        breaker: Breaker | None = None,
        retry: RetryPolicy | None = None,
        budget: RetryBudget | None = None,
        reader: BodyReader | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 30.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        host, root, base_url = _address(base_url)
        self.policy = retry or RetryPolicy()
        self.budget = budget or RetryBudget.shared(host)
        self.handler = ErrorHandler(self.policy, reader=reader, budget=self.budget, clock=clock)
        self._layers = Layers(
            broker=broker,
            host=host,
            base_url=base_url,
            root=root,
            http=http,
            bearer=Bearer(tokens, dict(headers or {})),
            limiter=limiter,
            breaker=breaker,
            handler=self.handler,
            reader=reader,
            clock=clock,
            timeout_seconds=_positive(timeout_seconds, "timeout_seconds"),
        )
        self._tallies: dict[str, Tally] = {}
        self._operations: dict[tuple[object, ...], Operation[Any]] = {}

    @overload
    def operation(
        self,
        name: str,
        method: str,
        path: str,
        *,
        mutation: bool | None = None,
        priority: str = "normal",
        weight: int = 1,
        group: str | None = None,
        expect: Literal["json", "any"] = "json",
        decode: None = None,
        timeout_seconds: float | None = None,
        deadline_seconds: float | None = None,
    ) -> "Operation[Response]": ...

    @overload
    def operation(
        self,
        name: str,
        method: str,
        path: str,
        *,
        mutation: bool | None = None,
        priority: str = "normal",
        weight: int = 1,
        group: str | None = None,
        decode: "Callable[[Response], T]",
        timeout_seconds: float | None = None,
        deadline_seconds: float | None = None,
    ) -> Operation[T]: ...

    def operation(
        self,
        name: str,
        method: str,
        path: str,
        *,
        mutation: bool | None = None,
        priority: str = "normal",
        weight: int = 1,
        group: str | None = None,
        expect: Literal["json", "any"] = "json",
        decode: "Callable[[Response], Any] | None" = None,
        timeout_seconds: float | None = None,
        deadline_seconds: float | None = None,
    ) -> Operation[Any]:
        """Prepare one kind of call; the result is awaited with what differs from call to call.

        Args:
            name: in metrics and logs: few of them, no ids.
            method: the HTTP method.
            path: after the base address, with `{names}` where ids go: `/accounts/{account}/orders`.
            mutation: whether it changes something; None takes everything but GET, HEAD and OPTIONS for a mutation. A
                broker that reads by POST needs False here, or its reads are never repeated.
            priority, weight: for the limiter.
            group: what fails together, for the breaker; None is `orders`, `history` or `queries` by the priority.
            expect: `json` refuses a good status around anything else; `any` takes what comes.
            decode: makes the result of a good answer; what it raises becomes an error that says what and where.
            timeout_seconds: for one attempt, instead of the pipeline's.
            deadline_seconds: over all attempts and waits, instead of the retry policy's.

        Raises:
            ConfigError: an argument makes no sense.
        """
        if not path.startswith("/"):
            raise ConfigError(f"a path begins with a slash, not {path!r}", key="path")
        method = method.upper()
        if (tally := self._tallies.get(name)) is None:
            # of the layers, which every operation holds: it may outlive the pipeline
            tally = self._tallies[name] = Tally(self._layers, self._layers.broker, name)
        return Operation(
            self._layers,
            name,
            method,
            path,
            mutation=method not in HARMLESS if mutation is None else mutation,
            priority=priority,
            weight=weight,
            group=_GROUPS.get(priority, "queries") if group is None else group,
            expects_json=expect == "json",
            decode=decode,
            timeout_seconds=self._layers.timeout_seconds
            if timeout_seconds is None
            else _positive(timeout_seconds, "timeout_seconds"),
            deadline_seconds=self.policy.deadline_seconds
            if deadline_seconds is None
            else checked_seconds(deadline_seconds, "deadline_seconds"),
            tally=tally,
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        op: str = "",
        mutation: bool | None = None,
        priority: str = "normal",
        expect: Literal["json", "any"] = "json",
        **call: Any,
    ) -> "Response":
        """One call without preparing it first: `operation(...)` and what it is called with, in one.

        Args:
            method: the HTTP method.
            path: after the base address, with `{names}` where ids go.
            op: its name in metrics and logs; without one the path's last word.
            mutation: as in `operation`.
            priority: as in `operation`.
            expect: as in `operation`.
            call: as in `Operation`: json, params, form, headers, fields, weight, deadline_seconds.

        Raises:
            APIError: and all else that an `Operation` raises.
        """
        key = (op, method, path, mutation, priority, expect)
        operation = self._operations.get(key)
        if operation is None:
            if len(self._operations) >= _MOST_OPERATIONS:
                raise ConfigError(
                    "too many different paths: put ids into `fields`, as in /orders/{id}",
                    key="path",
                )
            operation = self._operations[key] = self.operation(
                op or _last_word(path),
                method,
                path,
                mutation=mutation,
                priority=priority,
                expect=expect,
            )
        answer: Response = await operation(**call)
        return answer

    def get_stats(self) -> dict[str, Any]:
        """The error handler's statistics, with calls that came through, and what is left of the retry budget."""
        successes = sum(tally.ok for tally in self._tallies.values())
        left = round(self.budget.left, 2)
        return {**self.handler.get_stats(), "successes": successes, "retry_budget": left}

    def describe(self) -> list[tuple[str, str]]:
        """The layers from the outside in: name, and numbers in words."""
        layers, deadline = self._layers, self.policy.deadline_seconds
        return [
            ("deadline", "none" if deadline is None else f"{deadline:g} s over all attempts"),
            ("breaker", "none" if layers.breaker is None else str(layers.breaker)),
            (
                "retry",
                f"{self.policy}; {self.budget.left:.3g} of {self.budget.capacity:g} left in the budget",
            ),
            ("limiter", "none" if layers.limiter is None else str(layers.limiter)),
            ("timeout", f"{layers.timeout_seconds:g} s for each attempt"),
            ("token", str(layers.bearer)),
            ("http", f"{layers.http!r} to {layers.base_url}"),
            ("classify", _name_of(layers.reader)),
        ]

    def __repr__(self) -> str:
        return f"<Pipeline {self._layers.broker}: {self._layers.base_url}>"

    def __str__(self) -> str:
        lines = [f"Pipeline {self._layers.broker}, from the outside in:"]
        for number, (name, words) in enumerate(self.describe(), 1):
            first, *more = words.splitlines() or [""]
            lines.append(f"  {number}  {name:<9} {first}")
            lines += [f"     {'':<9} {line}" for line in more]
        return "\n".join(lines)


def _address(base_url: str) -> tuple[str, str, str]:
    """Host with port, path, and the whole without a slash at its end."""
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
        port = parts.port
    except (ValueError, AttributeError):
        host = port = None
    if (
        not host
        or parts.scheme not in ("http", "https")
        or parts.query
        or parts.fragment
        or parts.username
    ):
        raise ConfigError(
            "an http:// or https:// address without user, query and fragment is needed",
            key="base_url",
        )
    path = parts.path.rstrip("/")
    return (
        host if port is None else f"{host}:{port}",
        path,
        f"{parts.scheme}://{parts.netloc}{path}",
    )


def _positive(value: object, key: str) -> float:
    if (seconds := checked_seconds(value, key)) == 0:
        raise ConfigError("a number of seconds above 0 is needed, not 0", key=key)
    return seconds


def _last_word(path: str) -> str:
    words = [part for part in path.split("/") if part and not part.startswith("{")]
    return words[-1].lower() if words else "root"


def _name_of(reader: BodyReader | None) -> str:
    if reader is None:
        return "by status and common bodies"
    return f"by status and {getattr(reader, '__module__', type(reader).__name__)}"
