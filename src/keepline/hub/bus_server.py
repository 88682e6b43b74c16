"""The hub's end of the bus: takes messages from programs of the own user, and says of some when they are stored.

Invariants: a message is answered only after it is on the disk; a message that cannot be stored just now ends its
connection, so that the publisher keeps it and brings it again; nothing is read from a publisher while the journal is
full or its answers are not taken.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import socket
import struct
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import Closed, ConfigError, KeeplineError, ProtocolError, QueueFull
from keepline.hub.bus import read_frame
from keepline.hub.bus_wire import (
    PROTOCOL,
    FromHub,
    Hello,
    Publish,
    Stored,
    Turned,
    Welcome,
    frame,
    parse_from_publisher,
)
from keepline.telemetry import REGISTRY, event

__all__ = ["BusServer", "Sink", "peer_uid"]

log = logging.getLogger("keepline.hub")

PUBLISHERS = REGISTRY.gauge("hub_bus_publishers", "Programs that are connected to the hub's bus.")

HELLO_SECONDS = 10.0
_BUFFER = 64 << 10
_FULL_SECONDS = 0.1
_CREDENTIALS = struct.Struct("3i")


class Sink(Protocol):
    """Who takes what comes over the bus: the hub's registrar."""

    @property
    def channels(self) -> Iterable[str]:
        """Their names."""
        ...

    def durable(self, channel: str) -> bool:
        """Whether the channel's messages go to the disk first."""
        ...

    def prepared(
        self, channel: object, type: object, data: Any, key: object = None, id: object = None
    ) -> bytes:
        """The data as JSON; ConfigError when the message is none."""
        ...

    def publish(
        self, channel: str, type: str, text: bytes, *, key: str | None = None, id: str | None = None
    ) -> object:
        """Publish on a channel that is not durable."""
        ...

    def post(
        self, channel: str, type: str, text: bytes, *, key: str | None = None, id: str | None = None
    ) -> "concurrent.futures.Future[Any]":
        """Store on a durable channel, and publish then."""
        ...


def peer_uid(sock: Any) -> int | None:
    """The user at the other end of a Unix socket, None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    credentials = sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


class BusServer:
    """Serves a listening Unix socket.

    Args:
        sink: who takes the messages.
        listening: the socket, bound and listening; it is not closed here.
        uids: users that may publish beside the own one and root.
        most: publishers at a time.
        clock: for waits.
    """

    def __init__(
        self,
        sink: Sink,
        listening: socket.socket,
        *,
        uids: Collection[int] = (),
        most: int = 64,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._sink = sink
        self._listening = listening
        self._uids = {0, os.geteuid(), *uids}
        self._most = most
        self._clock = clock
        self._accepting: asyncio.Task[None] | None = None
        self._sessions: dict[_Session, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Take publishers from now on."""
        self._listening.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(), name="keepline bus")

    async def close(self) -> None:
        """Send everybody away; what is stored meanwhile is not answered any more, and comes again elsewhere."""
        tasks = [*self._sessions.values(), *([self._accepting] if self._accepting else [])]
        self._accepting = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def publishers(self) -> int:
        """How many are connected."""
        return len(self._sessions)

    async def _accept(self) -> None:
        """Not a server of asyncio's: that would close the socket, which belongs to who started this process."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listening)
            except OSError as error:  # out of descriptors: those who wait come a little later
                event(log, logging.WARNING, "Publisher not accepted", error=str(error))
                await self._clock.sleep(_FULL_SECONDS)
                continue
            if not self._admits(sock):
                sock.close()
                continue
            session = _Session(self._sink, self._clock)
            task = loop.create_task(session.serve(sock))
            self._sessions[session] = task
            task.add_done_callback(functools.partial(self._gone, session))
            PUBLISHERS.set(len(self._sessions))

    def _admits(self, sock: socket.socket) -> bool:
        uid = peer_uid(sock)
        if uid is not None and uid not in self._uids:
            event(log, logging.WARNING, "Publisher refused", uid=uid)
            return False
        if len(self._sessions) >= self._most:
            event(log, logging.WARNING, "Publisher refused", total=len(self._sessions))
            return False
        return True

    def _gone(self, session: "_Session", _: object) -> None:
        del self._sessions[session]
        PUBLISHERS.set(len(self._sessions))

    def __repr__(self) -> str:
        return f"<BusServer with {len(self._sessions)} publishers>"


class _Session:
    """One publisher."""

    def __init__(self, sink: Sink, clock: Clock) -> None:
        self._sink = sink
        self._clock = clock
        self._done: list[int] = []
        self._name = "publisher"

    async def serve(self, sock: socket.socket) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=sock, limit=_BUFFER)
        self._loop = asyncio.get_running_loop()
        self._writer.transport.set_write_buffer_limits(high=_BUFFER)
        try:
            await within(self._clock, HELLO_SECONDS, self._greet(reader))
            while (payload := await read_frame(reader)) is not None:
                word = parse_from_publisher(payload)
                if not isinstance(word, Publish):
                    raise ProtocolError("it said hello twice")
                await self._take(word)
                await self._writer.drain()
        except (ProtocolError, TimeoutError) as error:
            event(log, logging.WARNING, "Publisher sent away", name=self._name, reason=str(error))
        except OSError:
            pass  # it is gone; what it did not hear of it brings again
        finally:
            self._writer.transport.abort()

    async def _greet(self, reader: asyncio.StreamReader) -> None:
        payload = await read_frame(reader)
        word = None if payload is None else parse_from_publisher(payload)
        if not isinstance(word, Hello):
            raise ProtocolError("it did not say hello")
        self._name = word.name[:64]
        if word.v != PROTOCOL:
            raise ProtocolError(f"it speaks version {word.v}, this hub {PROTOCOL}")
        durable = tuple(name for name in self._sink.channels if self._sink.durable(name))
        self._say(Welcome(PROTOCOL, durable))

    async def _take(self, asked: Publish) -> None:
        draft = asked.draft
        words = (draft.channel, draft.type)
        try:
            text = self._sink.prepared(*words, draft.data, draft.key, draft.id)
            if self._sink.durable(draft.channel):
                stored = await self._post(*words, text, draft.key, draft.id)
                if stored is not None:
                    stored.add_done_callback(lambda done: self._later(asked, done))
                return
            self._sink.publish(*words, text, key=draft.key, id=draft.id)
        except ConfigError as error:
            self._say(Turned(asked.seq, str(error)))
        else:
            if asked.answer:
                self._stored(asked.seq)

    async def _post(
        self, channel: str, type: str, text: bytes, key: str | None, id: str | None
    ) -> "concurrent.futures.Future[Any] | None":
        """Hand it to the journal, waiting for room: meanwhile nothing is read from this publisher."""
        while True:
            try:
                return self._sink.post(channel, type, text, key=key, id=id)
            except QueueFull:
                await self._clock.sleep(_FULL_SECONDS)
            except Closed:
                self._writer.transport.abort()
                return None

    def _later(self, asked: Publish, done: "concurrent.futures.Future[Any]") -> None:
        """On the journal's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the publisher brings it again
            self._loop.call_soon_threadsafe(self._settled, asked, done.exception())

    def _settled(self, asked: Publish, error: BaseException | None) -> None:
        if error is None:
            self._stored(asked.seq)
        elif isinstance(error, ConfigError):
            self._say(Turned(asked.seq, str(error)))
        else:
            words = str(error) if isinstance(error, KeeplineError) else type(error).__name__
            event(log, logging.ERROR, "Message not stored", name=self._name, error=words)
            self._writer.transport.abort()  # it keeps the message and brings it again

    def _stored(self, seq: int) -> None:
        if not self._done:
            self._loop.call_soon(self._answer)
        self._done.append(seq)

    def _answer(self) -> None:
        done, self._done = tuple(self._done), []
        self._say(Stored(done))

    def _say(self, word: FromHub) -> None:
        if not self._writer.transport.is_closing():
            self._writer.write(frame(word))
