"""Hub messages by server-sent events: one endless answer brings what comes, posts carry what goes. Text only.

Invariants: the stream is never asked for a second time behind our back; `open` returns with the header of the answer,
which the server writes at once; posts go one after the other.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import ClassVar
from urllib.parse import urlsplit

import aiohttp

from keepline.errors import APIError, PermanentError, TransientError
from keepline.http import Headers
from keepline.stream.messages import Malformed
from keepline.stream.sse import EventReader
from keepline.stream.transport import Ending, EndingKind, Receiver
from keepline.stream.transport_http import Answer, HttpDoor, refusal

__all__ = ["EventsTransport"]

_HEADERS = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
_POST_HEADERS = {"Content-Type": "text/plain;charset=UTF-8"}


class EventsTransport:
    """A hub connection by server-sent events.

    Args:
        door: the HTTP side.
        url: the endpoint with its `id`.
        max_message_bytes: a larger event ends the connection.
        timeout_seconds: for the header of the answer.
    """

    name: ClassVar[str] = "events"
    inherent_keep_alive: ClassVar[bool] = False

    def __init__(
        self, door: HttpDoor, url: str, *, max_message_bytes: int, timeout_seconds: float = 15.0
    ) -> None:
        self._door = door
        self._url = url
        self._seconds = timeout_seconds
        self._reader = EventReader(max_event_bytes=max_message_bytes)
        self._stack = AsyncExitStack()
        self._answer: aiohttp.ClientResponse | None = None
        self._ours = False

    async def open(self) -> None:
        limits = aiohttp.ClientTimeout(total=None, connect=self._seconds)
        opening = self._door.opened("GET", self._url, limits, headers=_HEADERS)
        try:
            async with asyncio.timeout(self._seconds):
                answer = await self._stack.enter_async_context(opening)
        except TimeoutError:
            raise TransientError(
                "the event stream did not begin in time",
                category="timeout",
                endpoint=f"GET {urlsplit(self._url).path}",
            ) from None
        if answer.status != 200:
            raise refusal("GET", self._url, Answer(answer.status, Headers(answer.headers), b""))
        if answer.content_type != "text/event-stream":
            raise PermanentError(
                f"answered with {answer.content_type} instead of an event stream: is this the address of a SignalR "
                "endpoint?",
                status=answer.status,
                endpoint=f"GET {urlsplit(self._url).path}",
            )
        self._answer = answer

    async def run(self, receiver: Receiver) -> Ending:
        assert self._answer is not None, "open() comes first"
        read = self._answer.content.readany
        while True:
            try:
                chunk = await read()
            except (aiohttp.ClientError, OSError, RuntimeError) as error:
                # RuntimeError is how aiohttp says that the socket was gone before the reading began
                words = f"the event stream broke ({type(error).__name__})"
                return self._ended(EndingKind.CUT, words)
            if not chunk:
                return self._ended(EndingKind.CLOSED, "the server ended the event stream")
            for event in self._reader.feed(chunk):
                if isinstance(event, Malformed):
                    return self._ended(EndingKind.BROKEN, event.reason)
                if event:
                    receiver(event)

    async def write(self, chunks: Sequence[bytes]) -> None:
        answer = await self._door.request(
            "POST", self._url, body=b"".join(chunks), headers=_POST_HEADERS
        )
        if answer.status != 200:
            raise refusal("POST", self._url, answer)

    async def close(self) -> None:
        self._ours = True
        if self._answer is not None:
            self._answer.close()  # the server learns of it by the end of the socket
        await self._release()
        await self._door.close()

    async def abort(self) -> None:
        self._ours = True
        await self._door.abort()
        await self._release()

    async def _release(self) -> None:
        try:
            await self._stack.aclose()
        except APIError:  # a socket that broke meanwhile
            return

    def _ended(self, kind: EndingKind, words: str) -> Ending:
        return Ending(EndingKind.OURS, "closed here") if self._ours else Ending(kind, words)

    def __repr__(self) -> str:
        return f"<EventsTransport {self._door!r}>"
