"""The bus: how a program on this machine publishes to a hub in another process, over a private Unix socket.

Invariants: `publish` touches no socket and never waits; what waits is bounded, by the policy of its channel; a message
of a channel that drops nothing is kept until the hub has it on the disk, whatever ends between; a hub that does not
read stops its publishers, not itself; only the own user's programs are heard.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import Closed, KeeplineError, PermanentError, ProtocolError, QueueFull
from keepline.hub.bus_wire import (
    HEAD,
    PROTOCOL,
    Hello,
    Sending,
    Stored,
    Turned,
    Welcome,
    frame,
    frame_length,
    parse_from_hub,
)
from keepline.hub.messages import encode_data
from keepline.hub.outgoing import POLICIES, Added, Item, Outgoing, Policy
from keepline.hub.publishing import encode_draft
from keepline.resilience.backoff import Backoff
from keepline.telemetry import REGISTRY, event

__all__ = ["Bus", "LocalBus", "read_frame"]

log = logging.getLogger("keepline.hub")

MESSAGES = REGISTRY.counter(
    "hub_bus_messages_total", "Messages handed to the bus by what became of them.", "outcome"
)

WELCOME_SECONDS = 30.0
"""A hub that is being started again lets its publishers wait at the socket that stays open."""

_BACKOFF = Backoff((0.05, 0.1, 0.25, 0.5, 1.0), jitter=0.3)
_BUFFER = 64 << 10


class Bus(Protocol):
    """A way to a hub, whatever it goes over: `LocalBus` within a machine."""

    def publish(
        self, channel: str, type: str, data: Any, *, key: str | None = None, id: str | None = None
    ) -> bool:
        """Take a message without waiting; False when there is no room for it."""
        ...

    async def publish_durable(
        self, channel: str, type: str, data: Any, *, key: str | None = None, id: str | None = None
    ) -> None:
        """Return when the hub has the message, on its disk where the channel drops nothing."""
        ...


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame's JSON, None at the end.

    Raises:
        ProtocolError: a frame too long, or one that ends in its middle.
    """
    try:
        head = await reader.readexactly(HEAD)
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise ProtocolError("the connection ended within a frame") from None
        return None
    try:
        return await reader.readexactly(frame_length(head))
    except asyncio.IncompleteReadError:
        raise ProtocolError("the connection ended within a frame") from None


class LocalBus:
    """A publisher's end; belongs to the event loop that starts it, `publish` may be called from any thread.

    Args:
        path: the hub's bus socket.
        name: who publishes, for the hub's log.
        policies: what to do, by channel, when there is no room; the hub's own channels are known.
        capacity: messages that may wait of channels that may drop some.
        durable_capacity: messages that may wait of channels that drop nothing.
        on_connected: called whenever the hub has said welcome.
        on_lost: called whenever such a connection has ended.
        clock: for waits.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        policies: Mapping[str, Policy] = POLICIES,
        capacity: int = 10_000,
        durable_capacity: int = 10_000,
        on_connected: Callable[[], object] | None = None,
        on_lost: Callable[[], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = path
        self.connected = False
        self.connections = 0
        self._name = name
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._clock = clock
        self._lock = threading.Lock()
        self._sending = Sending(
            Outgoing(policies, capacity=capacity, durable_capacity=durable_capacity)
        )
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._asleep = False
        self._empty = asyncio.Event()
        self._trouble = "not started"

    # --- handing in ---

    def publish(
        self, channel: str, type: str, data: Any, *, key: str | None = None, id: str | None = None
    ) -> bool:
        """Hand in a message; it is sent in the background.

        Args:
            channel: where to.
            type: what it is.
            data: what JSON can say.
            key: what it is about, on a channel that keeps the newest per key.
            id: by what it is recognised when it comes again; messages that are never dropped get one.

        Returns:
            False when it is not taken: closed, or a channel that drops nothing has no room left.

        Raises:
            ConfigError: what cannot be a message: NaN, no JSON, a channel that is no text.
        """
        return self._hand_in(channel, type, data, key, id, None)

    async def publish_durable(
        self, channel: str, type: str, data: Any, *, key: str | None = None, id: str | None = None
    ) -> None:
        """Hand in a message and wait until the hub has it; arguments as `publish`.

        Raises:
            ConfigError: as `publish`.
            QueueFull: there is no room.
            PermanentError: the hub refused it, with the hub's words.
            Closed: the bus was closed first; the message may have arrived.
        """
        waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
        if not self._hand_in(channel, type, data, key, id, waiter):
            if self._closed:
                raise Closed("the bus is closed")
            raise QueueFull("too many messages for the hub wait already", retry_after=1.0)
        await asyncio.wrap_future(waiter)

    def _hand_in(
        self, channel: str, type: str, data: Any, key: str | None, id: str | None, waiter: Any
    ) -> bool:
        may_go_twice = waiter is not None or self._sending.durable(channel)
        own = secrets.token_hex(12) if id is None and may_go_twice else id
        line = encode_draft(channel, type, encode_data(data), key=key, id=own)
        with self._lock:
            if self._closed:
                return False
            added = self._sending.add(channel, type, key, line, waiter=waiter)
            wake, self._asleep = self._asleep, False
        if added is not Added.QUEUED:
            MESSAGES.inc(added.value)
        if wake and self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)
        return added is not Added.REFUSED

    # --- life ---

    async def start(self) -> None:
        """Connect, and connect again for ever, in the background."""
        self._loop = asyncio.get_running_loop()
        self._trouble = "not connected yet"
        self._task = self._loop.create_task(self._keep(), name="keepline bus")

    async def close(self, timeout_seconds: float = 1.0) -> bool:
        """Send what waits, for at most this long, and end; a second time it does nothing.

        Returns:
            True when nothing was left behind.
        """
        with self._lock:
            self._closed = True
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await within(self._clock, timeout_seconds, self._emptied())
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        return not self._give_up()

    def ready(self) -> tuple[bool, str]:
        """Whether messages go through, and the reason in words."""
        if not self.connected:
            return False, f"{self._trouble}; {len(self._sending)} messages wait"
        return True, "connected"

    def __repr__(self) -> str:
        return f"<LocalBus {self.path}, {'connected' if self.connected else self._trouble}>"

    # --- the connection ---

    async def _keep(self) -> None:
        failures = 0
        while True:
            before = self.connections
            try:
                await self._serve()
                self._trouble = "the hub ended the connection"
            except (OSError, ProtocolError, TimeoutError) as error:
                self._trouble = str(error) or type(error).__name__
            failures = 1 if self.connections > before else failures + 1
            await self._clock.sleep(_BACKOFF.delay(failures, self._clock.chance()))

    async def _serve(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=_BUFFER)
        try:
            writer.write(frame(Hello(PROTOCOL, self._name)))
            await within(self._clock, WELCOME_SECONDS, self._welcomed(reader))
            self._begin()
            ends = {
                asyncio.create_task(self._hear(reader)),
                asyncio.create_task(self._send(writer)),
            }
            try:
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in ends:
                    task.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
            for task in done:
                task.result()
        finally:
            self._end()
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _welcomed(self, reader: asyncio.StreamReader) -> None:
        payload = await read_frame(reader)
        word = None if payload is None else parse_from_hub(payload)
        if not isinstance(word, Welcome) or word.v != PROTOCOL:
            raise ProtocolError(f"the hub at {self.path} did not say welcome")

    def _begin(self) -> None:
        with self._lock:
            self._sending.connected()
        self.connected = True
        self.connections += 1
        event(log, logging.INFO, "Bus connected", waiting=len(self._sending))
        if self._on_connected is not None:
            self._on_connected()

    def _end(self) -> None:
        if self.connected:
            self.connected = False
            level = logging.DEBUG if self._closed else logging.WARNING
            event(log, level, "Bus lost", waiting=len(self._sending))
            if self._on_lost is not None:
                self._on_lost()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=_BUFFER)
        while True:
            with self._lock:
                frames = self._sending.take()
                self._asleep = not frames
            if frames:
                writer.write(frames)
                await writer.drain()
            else:
                self._check_empty()
                await self._wake.wait()
                self._wake.clear()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while (payload := await read_frame(reader)) is not None:
            match parse_from_hub(payload):
                case Stored(seqs):
                    self._stored(seqs)
                case Turned(seq, reason):
                    self._refused(seq, reason)
                case Welcome():
                    raise ProtocolError("the hub said welcome twice")

    def _stored(self, seqs: tuple[int, ...]) -> None:
        with self._lock:
            over = self._sending.stored(seqs)
        MESSAGES.inc("accepted", by=len(over))
        for item in over:
            _resolve(item, None)
        self._wake.set()  # there is room in the window again

    def _refused(self, seq: int, reason: str) -> None:
        with self._lock:
            item = self._sending.refused(seq)
        MESSAGES.inc("refused")
        event(log, logging.WARNING, "Message refused by the hub", reason=reason)
        if item is not None:
            _resolve(item, PermanentError(f"the hub refused the message: {reason}"))
        self._wake.set()

    # --- the end ---

    def _check_empty(self) -> None:
        if self._closed and not len(self._sending):
            self._empty.set()

    async def _emptied(self) -> None:
        self._wake.set()
        await self._empty.wait()

    def _give_up(self) -> int:
        with self._lock:
            left = self._sending.left()
        if left:
            MESSAGES.inc("lost", by=len(left))
            event(log, logging.WARNING, "Messages not sent to the hub", messages=len(left))
        for item in left:
            _resolve(item, Closed("the bus was closed before the hub had the message"))
        return len(left)


def _resolve(item: Item, error: KeeplineError | None) -> None:
    waiter = item.waiter
    if waiter is None or waiter.done() or not waiter.set_running_or_notify_cancel():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
