"""What the clients of all brokers stand on: one pipeline, its limiter and breaker, and an HTTP session to close.

Invariants: a session that was handed in stays the giver's to close; printing a client shows its layers and no secret;
two clients of one account share a limiter, or each takes the whole budget.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import msgspec

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.oauth import require_safe_url
from keepline.errors import ConfigError
from keepline.http import HttpSession, Response
from keepline.resilience import (
    BodyReader,
    Breaker,
    CircuitBreaker,
    Http,
    Limiter,
    Pipeline,
    RateLimiter,
    RetryPolicy,
)
from keepline.resilience.bearer import TokenSource

__all__ = ["BrokerClient", "decoder", "limits_with"]

T = TypeVar("T")
Rules = Mapping[str, Mapping[str, Any]]


class BrokerClient:
    """A broker's API behind a pipeline; `async with` closes it.

    Attributes:
        name: the broker's, in metrics and logs.
        limits: the broker's own rules, as `RateLimiter` takes them.
        pipeline: the layers of every call; `print(client)` shows them.
    """

    name: ClassVar[str]
    limits: ClassVar[Rules]

    def __init__(
        self,
        tokens: TokenSource,
        base_url: str,
        *,
        reader: BodyReader,
        http: Http | None = None,
        limiter: Limiter | None = None,
        breaker: Breaker | None = None,
        retry: RetryPolicy | None = None,
        timeout_seconds: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(base_url, str):
            raise ConfigError(f"is a text, not a {type(base_url).__name__}", key="base_url")
        require_safe_url(base_url, key="base_url")
        self.clock = clock or SYSTEM_CLOCK
        self._own = HttpSession() if http is None else None
        self.pipeline = Pipeline(
            http or self._own or HttpSession(),
            base_url,
            broker=self.name,
            tokens=tokens,
            limiter=limiter or RateLimiter({"limits": self.limits}, clock=self.clock),
            breaker=breaker or CircuitBreaker(clock=self.clock),
            retry=retry,
            reader=reader,
            timeout_seconds=timeout_seconds,
            clock=self.clock,
        )

    async def close(self) -> None:
        """Close the connections, unless the session was handed in."""
        if self._own is not None:
            await self._own.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pipeline!r}>"

    def __str__(self) -> str:
        return str(self.pipeline)


def limits_with(own: Rules, given: Rules, foreign: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The rules of a broker under those of the configuration, for `RateLimiter`.

    A rule that has the name of an own one replaces it in its place and keeps its endpoints unless it names some; the
    others come first, since the first that matches counts; those of another broker (`foreign`) are left out.
    """
    added = {n: rule for n, rule in given.items() if n not in own and n not in foreign}
    replaced = {
        name: {"endpoints": rule.get("endpoints", ("*",)), **given[name]} if name in given else rule
        for name, rule in own.items()
    }
    return {"limits": {**added, **replaced}}


def decoder(kind: type[T]) -> Callable[[Response], T]:
    """Reads an answer's body as `kind`; what is of another shape becomes an error of the call."""
    decode = msgspec.json.Decoder(kind).decode
    return lambda answer: decode(answer.body)
