"""A hub's client in bytes of the test's own: WebSockets by aiohttp, JSON by hand."""

import json
from collections import deque
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

__all__ = ["RawHub", "negotiate", "records"]

END = "\x1e"


async def negotiate(
    http: ClientSession, url: str, hub: str = "test", **query: str
) -> dict[str, Any]:
    """The offer of a hub."""
    params = {"negotiateVersion": "1", **query}
    answer = await http.post(f"{url}/hubs/{hub}/negotiate", params=params)
    assert answer.status == 200, await answer.text()
    offer = await answer.json()
    assert isinstance(offer, dict)
    return offer


def records(text: str) -> list[Any]:
    """The messages of a text."""
    return [json.loads(record) for record in text.split(END)[:-1]]


class RawHub:
    """One WebSocket to a hub; a `str` of `closed` tells how it ended."""

    def __init__(self, http: ClientSession, url: str, hub: str = "test") -> None:
        self._http, self._url = http, f"{url}/hubs/{hub}"
        self._messages: deque[Any] = deque()
        self._text = ""
        self._calls = 0
        self.frames: list[str] = []
        self.closed = ""
        self.socket: ClientWebSocketResponse

    async def open(
        self, *, seat: str = "", version: int = 1, shake: bool = True, **query: str
    ) -> "RawHub":
        """Connect and shake hands."""
        params = {**({"id": seat} if seat else {}), **query}
        self.socket = await self._http.ws_connect(
            self._url, params=params, autoclose=False, max_msg_size=0
        )
        if shake:
            await self.say(protocol="json", version=version)
            assert await self.read() == {}
        return self

    async def say(self, **message: object) -> None:
        """Send a message."""
        await self.socket.send_str(json.dumps(message) + END)

    async def read(self) -> Any:
        """The next message, None when the connection has ended."""
        while not self._messages and not self.closed:
            frame = await self.socket.receive()
            if frame.type is WSMsgType.TEXT:
                self.frames.append(frame.data)
                whole, end, self._text = (self._text + frame.data).rpartition(END)
                self._messages += records(whole + end)
            elif frame.type is WSMsgType.CLOSE:
                self.closed = f"{frame.data} {frame.extra}".strip()
                await self.socket.close()
            else:
                self.closed = "cut"
        return self._messages.popleft() if self._messages else None

    async def event(self, target: str) -> Any:
        """The arguments of the next event of this name."""
        while (message := await self.read()) is not None:
            if message.get("target") == target:
                return message["arguments"]
        raise AssertionError(f"the connection ended ({self.closed}) without {target}")

    async def call(self, target: str, *arguments: object, **more: object) -> Any:
        """The completion of a call."""
        self._calls += 1
        number = str(self._calls)
        await self.say(type=1, invocationId=number, target=target, arguments=arguments, **more)
        while (message := await self.read()) is not None:
            if message["type"] == 3 and message["invocationId"] == number:
                return message
        raise AssertionError(f"the connection ended ({self.closed}) without an answer")

    async def events_of(self, count: int, target: str = "E") -> list[int]:
        """The numbers that `Push` sends, in the order in which they come, up to its answer."""
        await self.say(type=1, invocationId="p", target="Push", arguments=[target, count])
        found = []
        while (message := await self.read())["type"] != 3:
            if message.get("target") == target:
                found.append(message["arguments"][0])
        return found

    def abort(self) -> None:
        """Let go of the socket without a word."""
        transport = self.socket._writer.transport
        transport.abort()
