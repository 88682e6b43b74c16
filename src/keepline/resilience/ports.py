"""What a pipeline needs of its layers: protocols alone, so that the daemon's and a cluster's limiter fit later."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from keepline.http import Response

__all__ = ["Breaker", "Http", "Limiter"]


class Limiter(Protocol):
    """What spends a rate budget: `RateLimiter`, the daemon's, or a cluster's."""

    async def acquire(
        self,
        endpoint: str,
        *,
        weight: int = 1,
        priority: Any = "normal",
        deadline: float | None = None,
    ) -> object:
        """Return when the call may be sent; `deadline` is seconds from now.

        What it gives is handed to the limiter's `give_back(endpoint, granted, weight=...)`, if it has one, when nothing
        was sent after all.

        Raises:
            RateLimited: it cannot be served before the deadline.
        """
        ...

    def feedback(self, endpoint: str, retry_after: float | None) -> object:
        """The server answered 429; `retry_after` is seconds, None when it did not say."""
        ...


class Breaker(Protocol):
    """What refuses calls to a side that fails: `CircuitBreaker`."""

    def for_(self, host: str, operations: str = "") -> "Breaker":
        """The breaker of a host and a class of operations."""
        ...

    def enter(self) -> Any:
        """Let a call in; what it gives is handed to `leave`, exactly once.

        Raises:
            CircuitOpen: not now.
        """
        ...

    def leave(self, permit: Any, seconds: float, error: BaseException | None = None) -> object:
        """The call has ended: the other side took `seconds`, and `error` says how it went."""
        ...


class Http(Protocol):
    """The HTTP face; `keepline.http.HttpSession` is one."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: object = None,
        form: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> "Response":
        """Send one request and read its whole answer, within `timeout_seconds`.

        Raises:
            APIError: no whole answer came; `sent` is False only when the request provably never left.
        """
        ...
