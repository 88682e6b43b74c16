"""A running hub with cheap passwords, and clients that see every byte."""

import asyncio
import base64
import contextlib
import json
import os
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jwt

from keepline.clock import SystemClock
from keepline.hub.opening import GateSettings
from keepline.hub.server import AnalyticsHub
from keepline.hub.settings import HubConfig

SECRET = "0123456789abcdef0123456789abcdef-hub-tests"
PASSWORD = "correct-horse-7-staple"
USERS = {"ann": "admin", "tom": "trader", "vic": "viewer", "svc": "service"}


class ShiftedClock(SystemClock):
    """The machine's clocks, moved forward by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0
        plain = self.boottime
        self.boottime = lambda: plain() + self.ahead

    def wall(self) -> datetime:
        return super().wall() + timedelta(seconds=self.ahead)


def token(user: str = "ann", role: str | None = None, **claims: Any) -> str:
    """A token as the hub itself would give one."""
    now = time.time()
    whole = {
        "sub": user,
        "role": role or USERS.get(user, "admin"),
        "account": "",
        "iss": "keepline",
        "aud": "keepline-hub",
        "iat": now,
        "exp": now + 3600,
        **claims,
    }
    return jwt.encode(whole, SECRET, algorithm="HS256")


@contextlib.asynccontextmanager
async def running_hub(directory: Path, **config: Any) -> AsyncIterator["RunningHub"]:
    """A hub on a free port with the four users."""
    clock = config.pop("clock", None) or ShiftedClock()
    gate = GateSettings(
        directory=directory, secret=SECRET, argon2id=(64, 1, 1), notice_seconds=60.0
    )
    await asyncio.to_thread(_add_users, gate)
    settings = HubConfig(
        **{"port": 0, "directory": directory, "gate": gate, "drain_seconds": 0.0, **config}
    )
    hub = AnalyticsHub(settings, clock=clock)
    async with hub, aiohttp.ClientSession() as session:
        yield RunningHub(hub, session, clock)


def _add_users(gate: GateSettings) -> None:
    users = gate.users()
    if users.refreshed() and users.book:
        return
    for name, role in USERS.items():
        users.add(name, PASSWORD, role=role, account="", now=time.time() - 5)


async def eventually(condition: Callable[[], object]) -> None:
    """Let the loop turn until it holds."""
    while not condition():  # noqa: ASYNC110 - what is waited for is the server's, it has no event for tests
        await asyncio.sleep(0)


class RunningHub:
    """A hub and a session to ask it."""

    def __init__(
        self, hub: AnalyticsHub, session: aiohttp.ClientSession, clock: ShiftedClock
    ) -> None:
        self.hub = hub
        self.session = session
        self.clock = clock

    async def ask(
        self, method: str, path: str, *, user: str | None = "ann", **more: Any
    ) -> tuple[int, Any, Any]:
        """Status, decoded body, headers."""
        headers = dict(more.pop("headers", {}))
        if user is not None:
            headers.setdefault("Authorization", f"Bearer {token(user)}")
        async with self.session.request(
            method, self.hub.url + path, headers=headers, **more
        ) as answer:
            body = await answer.read()
            decoded = json.loads(body) if answer.content_type == "application/json" else body
            return answer.status, decoded, answer.headers

    async def open(
        self, user: str = "ann", *, subscribe: list[str] | None = None, **more: Any
    ) -> "Wire":
        """A raw client that was welcomed, and subscribed where wanted."""
        wire = await Wire.to(self.hub, bearer=token(user), **more)
        await wire.until("welcome")
        if subscribe:
            await wire.send({"action": "subscribe", "channels": subscribe})
            for _ in subscribe:
                await wire.until("snapshot")
        return wire


class Closed(Exception):
    """The hub closed the connection.

    Attributes:
        code: of its close frame; 1006 when there was none.
        reason: of its close frame.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Wire:
    """A WebSocket client of bare bytes: it checks what it is sent and answers nothing by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.frames: list[bytes] = []
        self.control: list[tuple[int, bytes]] = []
        self.waiting: list[dict[str, Any]] = []
        self.deflate = False

    @classmethod
    async def to(
        cls,
        hub: AnalyticsHub,
        *,
        bearer: str | None = None,
        path: str = "/ws/analytics",
        headers: dict[str, str] | None = None,
    ) -> "Wire":
        """Connect and upgrade; the status is there, whatever it is."""
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        wire = cls(reader, writer)
        fields = {
            "Host": f"127.0.0.1:{hub.port}",
            "Upgrade": "websocket",
            "Connection": "keep-alive, Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            **({"Authorization": f"Bearer {bearer}"} if bearer else {}),
            **(headers or {}),
        }
        lines = [f"GET {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v), "", ""]
        writer.write("\r\n".join(lines).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        wire.status = int(head[0].split()[1])
        wire.headers = {
            line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:-2]
        }
        wire.deflate = "sec-websocket-extensions" in wire.headers
        return wire

    async def send(self, message: Any) -> None:
        """A text message: an object, or text as it is."""
        text = message if isinstance(message, str) else json.dumps(message)
        await self.frame(1, text.encode())

    async def frame(self, opcode: int, payload: bytes, *, first: int = 0x80) -> None:
        """A masked frame."""
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", first | opcode, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", first | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", first | opcode, 0x80 | 127, size)
        self.writer.write(head + b"\0\0\0\0" + payload)
        await self.writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        """The next frame: its first byte and its payload."""
        try:
            first, second = await self.reader.readexactly(2)
            assert not second & 0x80, "a server never masks"
            size = second
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first, await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Closed(1006) from None

    async def messages(self) -> list[dict[str, Any]]:
        """The messages of the next text frame; control frames are kept aside, a close frame raises."""
        while True:
            first, payload = await self.receive()
            opcode = first & 0xF
            if opcode == 8:
                raise Closed(int.from_bytes(payload[:2], "big"), payload[2:].decode())
            if opcode != 1:
                self.control.append((opcode, payload))
                continue
            assert first & 0x80
            self.frames.append(payload)
            if first & 0x40:
                assert self.deflate, "compressed, though it was not agreed on"
                payload = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
            whole = json.loads(payload)
            assert isinstance(whole, list)
            return whole

    async def until(self, wanted: str | Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message of a type, or that a condition holds for; those before it are passed over."""
        test = wanted if callable(wanted) else lambda message: message["type"] == wanted
        while True:
            while self.waiting:
                message = self.waiting.pop(0)
                if test(message):
                    return message
            self.waiting = await self.messages()

    async def closed(self) -> Closed:
        """How the hub closes it."""
        try:
            while True:
                await self.messages()
        except Closed as closed:
            return closed

    async def pinged(self, opcode: int = 9) -> bytes:
        """The payload of the next ping (or other control frame)."""
        while True:
            for each in self.control:
                if each[0] == opcode:
                    self.control.remove(each)
                    return each[1]
            first, payload = await self.receive()
            self.control.append((first & 0xF, payload))

    async def close(self) -> None:
        """Go without a word."""
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
