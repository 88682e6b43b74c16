"""What every issuer with an HTTP API does alike: send what a decider wrote, hand back the answer.

Invariant: the clock is read before sending, so a token never looks younger than it is.
"""

from typing import Any, TypeVar
from urllib.parse import urlsplit

from keepline.clock import Clock
from keepline.credentials.answers import Answer
from keepline.http import HttpSession

__all__ = ["Caller"]

Self = TypeVar("Self", bound="Caller")


class Caller:
    """One HTTP session and one clock; closes the HTTP session when it made it."""

    def __init__(self, http: HttpSession | None, clock: Clock) -> None:
        self._http = http or HttpSession()
        self._owns_http = http is None
        self._clock = clock

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless the HTTP session was handed in."""
        if self._owns_http:
            await self._http.close()

    async def post(self, url: str, **content: Any) -> Answer:
        """One POST; every status is an answer.

        Raises:
            TransientError: none came.
        """
        sent_at = self._clock.wall()
        response = await self._http.request("POST", url, **content)
        endpoint = f"POST {urlsplit(url).path}"
        return Answer(response.status, response.headers, response.body, sent_at, endpoint)
