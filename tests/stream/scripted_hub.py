"""A hub that says what a test tells it to: negotiation and handshake as they should be, the rest by script."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import WSMsgType, web
from tests.stream.loopback import websocket

SEPARATOR = "\x1e"


class Peer:
    """The server's end of one WebSocket.

    Attributes:
        number: 1 for the first WebSocket, 2 for the next.
    """

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, number: int) -> None:
        self.number = number
        self.socket = socket
        self._request = request
        self._waiting: list[dict[str, Any]] = []

    async def say(self, *messages: dict[str, Any]) -> None:
        """Send messages, glued into one frame."""
        await self.raw("".join(json.dumps(message) + SEPARATOR for message in messages))

    async def raw(self, text: str) -> None:
        """Send a text frame."""
        await self.socket.send_str(text)

    async def hear(self, *, pings: bool = False) -> dict[str, Any] | None:
        """The next message, without pings unless wanted; None when the client is gone."""
        while True:
            while self._waiting:
                message = self._waiting.pop(0)
                if pings or message.get("type") != 6:
                    return message
            frame = await self.socket.receive()
            if frame.type is not WSMsgType.TEXT:
                return None
            self._waiting = [json.loads(part) for part in frame.data.split(SEPARATOR) if part]

    async def call(self, target: str, *arguments: Any, call_id: str | None = None) -> None:
        """Call a handler of the client."""
        message: dict[str, Any] = {"type": 1, "target": target, "arguments": list(arguments)}
        await self.say(message if call_id is None else {**message, "invocationId": call_id})

    async def answer(self, result: Any = None) -> dict[str, Any] | None:
        """Answer the next call with a result."""
        message = await self.hear()
        if message is not None:
            await self.say({"type": 3, "invocationId": message["invocationId"], "result": result})
        return message

    def cut(self) -> None:
        """Drop the socket without a word."""
        self._request.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedHub:
    """A request handler for `serving`.

    Attributes:
        peers: WebSockets so far.
        handshakes: what clients proposed.
        refuse: statuses for WebSockets by their number, instead of an upgrade.
    """

    def __init__(
        self, script: Script, *, stateful: bool = False, handshake: str | None = "{}\x1e"
    ) -> None:
        self._script = script
        self._stateful = stateful
        self._handshake = handshake
        self.peers = 0
        self.handshakes: list[Any] = []
        self.refuse: dict[int, int] = {}

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/negotiate"):
            granted = {"useStatefulReconnect": True} if self._stateful else {}
            offer = {"transport": "WebSockets", "transferFormats": ["Text", "Binary"]}
            return web.json_response(
                {
                    "negotiateVersion": 1,
                    "connectionId": "public",
                    "connectionToken": "private",
                    "availableTransports": [offer],
                    **granted,
                }
            )
        self.peers += 1
        if self.peers in self.refuse:
            return web.Response(status=self.refuse[self.peers])
        socket = await websocket(request)
        peer = Peer(request, socket, self.peers)
        if peer.number == 1:
            self.handshakes.append(await peer.hear())
            if self._handshake is not None:
                await peer.raw(self._handshake)
        await self._script(peer)
        return socket


async def listen(peer: Peer) -> None:
    """Hear everything and say nothing until the client goes."""
    while await peer.hear() is not None:
        pass


class Heard:
    """A script that notes every message of the client.

    Attributes:
        messages: a queue of them; None when the client is gone.
        peer: the newest WebSocket.
    """

    def __init__(self, *, pings: bool = False) -> None:
        self.messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._pings = pings

    async def __call__(self, peer: Peer) -> None:
        self.peers.put_nowait(peer)
        while True:
            message = await peer.hear(pings=self._pings)
            self.messages.put_nowait(message)
            if message is None:
                return
