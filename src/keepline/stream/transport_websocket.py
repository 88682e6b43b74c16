"""Hub messages over a WebSocket: one frame in, one call of the receiver; one message out, one frame.

Invariants: no timer and no task per message: `ClientWebSocketResponse.receive` without a timeout is one bare await;
`abort` sends no Close frame (a server drops a connection that closed politely, and a reattach would meet 404).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import aiohttp

from keepline.errors import TransientError
from keepline.stream.transport import Ending, EndingKind, Receiver
from keepline.stream.transport_http import HttpDoor

__all__ = ["WebSocketTransport"]

_DATA = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
_WORDS = {
    1000: "the server closed the WebSocket",
    1001: "the server is going away",
    1008: "the server closed the WebSocket: against its policy",
    1009: "the server closed the WebSocket: a message was too big for it",
    1011: "the server closed the WebSocket: an error of its own",
    1012: "the server restarts",
    1013: "the server asks to come back later",
}


class WebSocketTransport:
    """A hub connection over a WebSocket.

    Args:
        door: the HTTP side.
        url: the endpoint with its `id`, http or https.
        text: send text frames (JSON) or binary ones (MessagePack).
        max_message_bytes: a larger frame ends the connection.
    """

    name: ClassVar[str] = "websockets"
    inherent_keep_alive: ClassVar[bool] = False

    def __init__(self, door: HttpDoor, url: str, *, text: bool, max_message_bytes: int) -> None:
        self._door = door
        self._url = url
        self._opcode = aiohttp.WSMsgType.TEXT if text else aiohttp.WSMsgType.BINARY
        self._max_bytes = max_message_bytes
        self._socket: aiohttp.ClientWebSocketResponse[bool] | None = None
        self._ours = False

    async def open(self) -> None:
        self._socket = await self._door.websocket(self._url, max_bytes=self._max_bytes)

    async def run(self, receiver: Receiver) -> Ending:
        assert self._socket is not None, "open() comes first"
        receive = self._socket.receive
        while True:
            message = await receive()
            if message.type in _DATA:
                receiver(message.data)
            else:
                return self._ending(message)

    async def write(self, chunks: Sequence[bytes]) -> None:
        assert self._socket is not None, "open() comes first"
        try:
            for chunk in chunks:
                await self._socket.send_frame(chunk, self._opcode)
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError("the WebSocket is closed", category="network") from (
                error if isinstance(error, OSError) else None
            )

    async def close(self) -> None:
        self._ours = True
        if self._socket is not None:
            await self._socket.close()
        await self._door.close()

    async def abort(self) -> None:
        self._ours = True
        await self._door.abort()
        if self._socket is not None:
            await self._socket.close()  # nothing leaves any more, but aiohttp lets go of its side

    def _ending(self, message: Any) -> Ending:
        if self._ours:
            return Ending(EndingKind.OURS, "closed here")
        if message.type is aiohttp.WSMsgType.CLOSE:
            code = message.data or 1005
            words = _WORDS.get(code, "the server closed the WebSocket")
            return Ending(EndingKind.CLOSED, f"{words} ({code})", code)
        if message.type is aiohttp.WSMsgType.ERROR and isinstance(
            message.data, aiohttp.WebSocketError
        ):
            return Ending(EndingKind.BROKEN, self._broken_words(message.data), message.data.code)
        return Ending(EndingKind.CUT, "the connection was cut without a word (1006)", 1006)

    def _broken_words(self, error: aiohttp.WebSocketError) -> str:
        if error.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            return f"the server sent a frame larger than max_message_bytes={self._max_bytes}"
        return f"the server sent bytes that are no WebSocket frame ({error.code})"

    def __repr__(self) -> str:
        return f"<WebSocketTransport {self._door!r}>"
