"""Clients by the thousand: a raw asyncio protocol that reads frames at once and shows them to a screen."""

import asyncio
import contextlib
import fcntl
import resource
import socket
import struct
import termios
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from tests.hub.house import CLOSE, PING, PONG, TEXT, frame, handshake
from tests.hub.screen import Screen


class Glass(asyncio.Protocol):
    """One client; the screen holds the hub to what it promises, message by message.

    Args:
        screen: None only counts.

    Attributes:
        offsets: data messages and snapshots that came.
        code: of the close frame, 0 before.
        lost: set once the connection is gone.
    """

    def __init__(self, screen: Screen | None = None) -> None:
        self.screen = screen
        self.offsets = 0
        self.code = 0
        self.status = 0
        self.lost = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self.on_message: Callable[[dict[str, Any]], None] | None = None
        self._buffer = b""
        self._waiting: list[tuple[Callable[[], object], asyncio.Future[None]]] = []

    @classmethod
    async def open(
        cls,
        port: int,
        bearer: str,
        channels: Iterable[str] = (),
        *,
        screen: Screen | None = None,
        resume: dict[str, Any] | None = None,
        buffer: int = 0,
    ) -> "Glass":
        """Connect and subscribe; returns when the handshake was answered."""
        glass = cls(screen)
        own = socket.socket()
        own.setblocking(False)
        if buffer:  # before it connects: it is what the other side may send unread
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(own, ("127.0.0.1", port))
        await loop.create_connection(lambda: glass, sock=own)
        assert glass.transport is not None
        glass.transport.write(handshake(port, bearer))
        await glass.until(lambda: glass.status)
        names = list(channels)
        if names and glass.status == 101:
            glass.ask(action="subscribe", channels=names, resume=resume or {})
        return glass

    def ask(self, **request: Any) -> None:
        assert self.transport is not None
        self.transport.write(frame(TEXT, msgspec.json.encode(request)))

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once this is true; it is looked at whenever something came."""
        if condition():
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        await future

    def shows(self, channel: str, **fields: Any) -> bool:
        """Whether the newest value that is shown of a channel's only key has these fields."""
        assert self.screen is not None
        state = self.screen.state.get(channel, {})
        return any(all(value.get(n) == v for n, v in fields.items()) for value in state.values())

    async def leave(self) -> None:
        assert self.transport is not None
        self.transport.abort()
        await self.lost.wait()

    # as a protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.status:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            self.status = int(head.split(b" ")[1])
            self._buffer = rest
        if self.status == 101:
            self._frames()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self.status = self.status or -1
        self.lost.set()
        self._look()
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(ConnectionError(f"closed with {self.code}"))
        self._waiting.clear()

    def _look(self) -> None:
        for waiting in [each for each in self._waiting if each[0]()]:
            self._waiting.remove(waiting)
            if not waiting[1].done():
                waiting[1].set_result(None)

    def _frames(self) -> None:
        data, at = self._buffer, 0
        while len(data) - at >= 2:
            length, begin = data[at + 1], at + 2
            if length >= 126:
                begin = at + (4 if length == 126 else 10)
                if len(data) < begin:
                    break
                length = int.from_bytes(data[at + 2 : begin])
            if len(data) < begin + length:
                break
            self._frame(data[at] & 0x0F, data[at : begin + length], data[begin : begin + length])
            at = begin + length
        self._buffer = data[at:]

    def _frame(self, opcode: int, whole: bytes, payload: bytes) -> None:
        assert not self.code, "something behind the close frame"
        assert self.transport is not None
        if opcode == TEXT:
            self.offsets += payload.count(b'"epoch"')
            if self.screen is not None:
                for message in msgspec.json.decode(payload):
                    self.screen.message(message)
                    if self.on_message is not None:
                        self.on_message(message)
        elif opcode == PING:
            self.transport.write(frame(PONG, payload))
        elif opcode == CLOSE:
            self.code = int.from_bytes(payload[:2])
            self.transport.write(frame(CLOSE, payload[:2]))


def unread(own: socket.socket) -> int:
    """Bytes that the kernel holds for a socket's other side, sent or not, and not yet acknowledged."""
    return struct.unpack("i", fcntl.ioctl(own.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]


def room_for(clients: int) -> int:
    """How many clients this process may have, each with two ends; raises the soft limit as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * clients + 500
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return clients if soft == resource.RLIM_INFINITY else min(clients, (soft - 500) // 2)
