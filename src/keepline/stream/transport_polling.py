"""Hub messages by long polling: one request waits for what comes, others carry what goes.

Invariants: one poll at a time (a second one would end the first); 204 means closed, 404 gone, an empty 200 that nothing
came in time; a poll is never repeated behind our back; the end is said with a DELETE.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

from keepline.errors import APIError, PermanentError
from keepline.stream.transport import Ending, EndingKind, Receiver
from keepline.stream.transport_http import HttpDoor, refusal

__all__ = ["PollingTransport"]

_POLL_SECONDS = 100.0  # ASP.NET Core holds a poll for 90 s; what takes longer is lost


class PollingTransport:
    """A hub connection by long polling.

    Args:
        door: the HTTP side.
        url: the endpoint with its `id`.
        text: the messages are JSON text; kept for the header alone.
        max_message_bytes: a larger answer ends the connection.
    """

    name: ClassVar[str] = "polling"
    inherent_keep_alive: ClassVar[bool] = True

    def __init__(self, door: HttpDoor, url: str, *, text: bool, max_message_bytes: int) -> None:
        self._door = door
        self._url = url
        kind = "text/plain;charset=UTF-8" if text else "application/octet-stream"
        self._headers = {"Content-Type": kind}
        self._max_bytes = max_message_bytes
        self._open = False
        self._ours = False

    async def open(self) -> None:
        answer = await self._door.request("GET", self._url, fresh_token=True)
        if answer.status != 200:
            raise refusal("GET", self._url, answer)
        self._open = True

    async def run(self, receiver: Receiver) -> Ending:
        assert self._open, "open() comes first"
        while True:
            try:
                answer = await self._door.request(
                    "GET", self._url, seconds=_POLL_SECONDS, max_bytes=self._max_bytes
                )
            except PermanentError as error:
                return self._ended(EndingKind.BROKEN, f"a poll failed: {error}", error.status)
            except APIError as error:
                return self._ended(EndingKind.CUT, f"a poll failed: {error}", error.status)
            if answer.status == 204:
                return self._ended(EndingKind.CLOSED, "the server closed the connection (204)", 204)
            if answer.status != 200:
                words = str(refusal("GET", self._url, answer))
                return self._ended(EndingKind.CUT, f"a poll was refused: {words}", answer.status)
            if answer.body:
                receiver(answer.body)

    async def write(self, chunks: Sequence[bytes]) -> None:
        answer = await self._door.request(
            "POST", self._url, body=b"".join(chunks), headers=self._headers
        )
        if answer.status != 200:
            raise refusal("POST", self._url, answer)

    async def close(self) -> None:
        self._ours = True
        if self._open:
            self._open = False
            with suppress(APIError):  # the server finds out by itself when no poll comes
                await self._door.request("DELETE", self._url)
        await self._door.close()

    async def abort(self) -> None:
        self._ours = True
        self._open = False
        await self._door.abort()

    def _ended(self, kind: EndingKind, words: str, status: int | None) -> Ending:
        return Ending(EndingKind.OURS, "closed here") if self._ours else Ending(kind, words, status)

    def __repr__(self) -> str:
        return f"<PollingTransport {self._door!r}>"
