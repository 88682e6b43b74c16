"""A small real server that answers `POST /api/publish` and `GET /ws/analytics` as the hub does, and fails on demand."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import WSMessage, web

from keepline.clock import SYSTEM_CLOCK
from keepline.hub.publishing import (
    Answered,
    Begin,
    Draft,
    Flaw,
    Idempotency,
    answer_body,
    read_drafts,
)
from keepline.testing import ManualClock

LISTING = {
    "channels": [
        {"channel": "alerts", "may": ["subscribe"]},
        {"channel": "system", "may": ["subscribe", "publish"]},
        {"channel": "mine", "may": ["publish"]},
    ]
}

Fault = Callable[[web.Request], Any]


@dataclass
class HubDouble:
    """What was published, in order, and what it should do wrong next.

    Attributes:
        published: messages that were taken, each once.
        requests: bodies that came, with their keys.
        faults: taken one by one, before (`before`) or after (`after`) a request was worked on.
        tokens: those that are good.
        refuse: channels whose lines are refused.
        listing: the answer of `GET /api/channels`.
    """

    published: list[Draft] = field(default_factory=list)
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    before: list[Fault] = field(default_factory=list)
    after: list[Fault] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {"good"})
    refuse: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    sockets: list[web.WebSocketResponse] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    on_socket: Callable[["HubDouble", web.WebSocketResponse, Any], Any] | None = None
    url: str = ""
    listing: Any = field(default_factory=lambda: LISTING)
    got: asyncio.Event = field(default_factory=asyncio.Event)
    _keys: Idempotency = field(default_factory=Idempotency)
    _runner: web.AppRunner | None = None
    _port: int = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/api/publish", self._publish)
        app.router.add_get("/api/channels", self._channels)
        app.router.add_get("/ws/analytics", self._socket)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.got.clear()
            await self.got.wait()

    @property
    def data(self) -> list[Any]:
        return [msgspec.json.decode(draft.data) for draft in self.published]

    async def _publish(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        key = request.headers.get("Idempotency-Key", "")
        self.requests.append((key, body))
        try:
            if request.headers["Authorization"].removeprefix("Bearer ") not in self.tokens:
                return web.Response(status=401)
            if self.before and (answer := await _do(self.before.pop(0), request)) is not None:
                return answer
            answer = self._answer(key, body)
            if self.after and (instead := await _do(self.after.pop(0), request)) is not None:
                return instead
            return web.Response(body=answer, content_type="application/json")
        finally:
            self.got.set()

    def _answer(self, key: str, body: bytes) -> bytes:
        known = self._keys.begin("me", key, hashlib.sha256(body).digest(), SYSTEM_CLOCK.boottime())
        if isinstance(known, bytes):
            return known
        assert known is Begin.NEW
        good, bad = read_drafts(body)
        duplicates = 0
        for number, draft in good:
            if draft.channel in self.refuse:
                bad.append(Flaw(number, "forbidden", "this role may not do that"))
            elif draft.id in self.ids:
                duplicates += 1
            else:
                self.published.append(draft)
                self.ids |= {draft.id} - {None}
        answer = answer_body(Answered(len(body.splitlines()) - len(bad), duplicates, bad))
        self._keys.finish("me", key, answer)
        return answer

    async def _channels(self, request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"].removeprefix("Bearer ") not in self.tokens:
            return web.Response(status=401)
        return web.json_response(self.listing)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"].removeprefix("Bearer ") not in self.tokens:
            return web.Response(status=401)
        if self.before and (answer := await _do(self.before.pop(0), request)) is not None:
            return answer
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for frame in socket:
            assert isinstance(frame, WSMessage)
            asked = msgspec.json.decode(frame.data)
            self.asked.append(asked)
            self.got.set()
            if self.on_socket is not None:
                await self.on_socket(self, socket, asked)
        return socket


async def _do(fault: Fault, request: web.Request) -> Any:
    result = fault(request)
    return await result if asyncio.iscoroutine(result) else result


def status(number: int, **headers: str) -> Fault:
    """Answer with this status."""
    return lambda _: web.Response(status=number, headers=headers)


def cut(request: web.Request) -> web.Response:
    """Close the connection instead of an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def on_manual_time(clock: ManualClock, awaitable: Any) -> Any:
    """Let the clock run whenever somebody sleeps on it, until this is done."""
    task = asyncio.ensure_future(awaitable)

    async def run() -> None:
        while not task.done():
            await clock.until_asleep()
            clock.advance(clock.next_wake or 0.0)
            for _ in range(50):  # whoever was woken goes on first
                await asyncio.sleep(0)

    runner = asyncio.ensure_future(run())
    try:
        return await task
    finally:
        runner.cancel()
