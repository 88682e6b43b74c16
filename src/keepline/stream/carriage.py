"""The life of one hub conversation: bytes between wire and transport, one timer, at most one transport at a time.

Invariants: one reader, one writer and one timer, gone when `run` returns; the timer is armed again when it fires or
when the deadline comes nearer, never per message; a transport that was cut is replaced once when the wire can go on,
and its socket is dropped without a goodbye first; `ended` is called once, before anything is waited for.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from keepline.clock import Clock
from keepline.errors import APIError, KeeplineError
from keepline.stream.dialling import Dialled, Dialler
from keepline.stream.port import Lost
from keepline.stream.straight import Receive
from keepline.stream.transport import Ending, EndingKind, Receiver, Transport
from keepline.stream.wire import HubWire, Phase
from keepline.stream.wire_events import Closed, CloseReason, WireEvent
from keepline.telemetry import REGISTRY

__all__ = ["Carriage"]

log = logging.getLogger("keepline.stream")

_reattached = REGISTRY.counter(
    "stream_reattached_total",
    "Lost transports of stateful connections, by what became of them.",
    "outcome",
)

_GOODBYE_SECONDS = 2.0  # for our last words: a stop must not hang on a dead peer
_NEVER = float("inf")
_REASONS = {
    CloseReason.SAID: "close",
    CloseReason.REFUSED: "close",
    CloseReason.SILENT: "timeout",
    CloseReason.HANDSHAKE_TIMEOUT: "timeout",
    CloseReason.MALFORMED: "protocol",
    CloseReason.LOST: "cut",
    CloseReason.OURS: "stopped",
}
_ENDINGS = {EndingKind.CLOSED: "close", EndingKind.BROKEN: "protocol"}


class Carriage:
    """Carries one conversation over its transports.

    Args:
        wire: the conversation, not opened yet.
        dialler: makes the transport of a reattach.
        dialled: the first transport.
        receive: takes what arrives to the wire, delivers the calls that nobody waits for, and gives what else happened
            (`straight`); must not raise.
        sink: gets that, in order, from the reader and the timer; must not raise.
        ended: is told how the conversation ended, and which way the wire calls it; must not raise.
        reattaching: is told when a reattach begins (True) and when it succeeded (False).
        clock: time.

    Attributes:
        room: set while a sender may go on; cleared while something waits to be written or to be acknowledged.
        received_at: when the newest chunk arrived (boottime seconds).
        tap: gets each chunk and its arrival time first.
    """

    def __init__(
        self,
        wire: HubWire,
        dialler: Dialler,
        dialled: Dialled,
        *,
        receive: Receive,
        sink: Callable[[Sequence[WireEvent]], None],
        ended: Callable[[Lost, CloseReason], None],
        reattaching: Callable[[bool], None],
        tap: Callable[[bytes | str, float], None] | None,
        clock: Clock,
    ) -> None:
        self.wire = wire
        self.room = asyncio.Event()
        self.received_at = 0.0
        self.tap = tap
        self._dialler = dialler
        self._dialled = dialled
        self._receive = receive
        self._sink = sink
        self._ended = ended
        self._reattaching = reattaching
        self._clock = clock
        self._now = clock.boottime
        self._outbox: list[bytes] = []
        self._to_write = asyncio.Event()
        self._over = asyncio.Event()
        self._how: CloseReason | None = None
        self._timer: asyncio.Task[None] | None = None
        self._armed_for = _NEVER

    def push(self) -> None:
        """Let the writer have what the wire wants written; call it after everything that was asked of the wire."""
        out = self.wire.take()
        if out:
            self._outbox += out
            self._to_write.set()
            self.room.clear()
        elif self.wire.blocked:
            self.room.clear()

    def close(self) -> None:
        """End the conversation in our name; `run` says Close and returns."""
        self._look_for_end(self.wire.close())
        self.push()

    async def run(self) -> None:
        """Open the conversation and carry it until it is over."""
        self.wire.open(self._now())
        self.push()
        self.attend()
        current: Dialled | None = self._dialled
        try:
            while current is not None:
                self._dialled = current
                ending = await self._carry(current.transport)
                current = await self._next(current, ending) if ending else None
        finally:
            if not self._over.is_set():  # cancelled from outside
                self._look_for_end(self.wire.close())
            await self._part()

    # ---------------------------------------------------------------------------------- one transport

    async def _carry(self, transport: Transport) -> Ending | None:
        """Read and write until the transport ends, or (None) the conversation."""
        loop = asyncio.get_running_loop()
        reading = loop.create_task(transport.run(self._receiver()), name="stream reader")
        writing = loop.create_task(self._write(transport), name="stream writer")
        over = loop.create_task(self._over.wait(), name="stream end")
        tasks: list[asyncio.Task[Any]] = [reading, writing, over]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._over.is_set():
            return None
        return _ending_of(reading, writing)

    def _receiver(self) -> Receiver:
        """The hot path: one call per chunk. What a call from the server does to the wire shows in other events."""
        clock, hear = self._now, self._receive
        stateful = self._dialled.stateful

        def receive(data: bytes) -> None:
            now = self.received_at = clock()
            if self.tap is not None:
                self.tap(data, now)
            rest = hear(data, now)
            if rest:
                self._sink(rest)
                self._look_for_end(rest)
                self.push()
            if stateful:
                self.push()
                self.attend()
                self._make_room()

        return receive

    async def _write(self, transport: Transport) -> APIError:
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            chunks, self._outbox = self._outbox, []
            try:
                await transport.write(chunks)
            except APIError as error:
                return error
            self._make_room()

    def _make_room(self) -> None:
        if not self._outbox and not self._to_write.is_set() and not self.wire.blocked:
            self.room.set()

    # ------------------------------------------------------------------------------------------ time

    def attend(self) -> None:
        """Arm the timer if the deadline of the wire came nearer."""
        deadline = self.wire.deadline
        if deadline is None or deadline >= self._armed_for or self._over.is_set():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = deadline
        self._timer = asyncio.get_running_loop().create_task(self._watch(), name="stream timer")

    async def _watch(self) -> None:
        while (deadline := self.wire.deadline) is not None:
            self._armed_for = deadline
            await self._clock.sleep(deadline - self._now())
            events = self.wire.expire(self._now())
            if events:
                self._sink(events)
                self._look_for_end(events)
            self.push()
        self._armed_for = _NEVER

    # ------------------------------------------------------------------------------------------- ends

    def _look_for_end(self, events: Sequence[WireEvent], kind: EndingKind | None = None) -> None:
        """`Closed` comes once and last."""
        said = events[-1] if events else None
        if type(said) is not Closed or self._over.is_set():
            return
        reason = _REASONS[said.reason]
        if said.reason is CloseReason.LOST and kind is not None:
            reason = _ENDINGS.get(kind, reason)
        self._how = said.reason
        self._over.set()
        self._ended(Lost(reason, said.error or None, said.allow_reconnect), said.reason)
        self.room.set()

    async def _next(self, lost: Dialled, ending: Ending) -> Dialled | None:
        """One immediate attempt to go on over a new transport, when the server keeps the conversation."""
        self._lose(ending)
        if self.wire.phase is not Phase.LOST:
            return None
        if ending.kind is not EndingKind.CUT:  # a server that said goodbye keeps nothing
            self._lose(ending)
            return None
        self._outbox.clear()  # what counts is in the wire's buffer
        self._reattaching(True)
        await lost.transport.abort()
        again = await self._reattach(lost, ending)
        if again is None:
            return None
        _reattached.inc("done")
        self.wire.reattached(self._now())
        self._reattaching(False)
        self.push()
        self.attend()
        return again

    async def _reattach(self, lost: Dialled, ending: Ending) -> Dialled | None:
        loop = asyncio.get_running_loop()
        dialling = loop.create_task(self._dialler.reattach(lost), name="stream reattach")
        over = loop.create_task(self._over.wait(), name="stream end")
        try:
            await asyncio.wait([dialling, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            if not dialling.done():
                dialling.cancel()
            await asyncio.gather(dialling, over, return_exceptions=True)
        failure = None if dialling.cancelled() else dialling.exception()
        if failure is not None and not isinstance(failure, KeeplineError):
            raise failure
        if failure is None and not dialling.cancelled():
            if not self._over.is_set():
                return dialling.result()
            await dialling.result().transport.close()
        _reattached.inc("failed")
        self._lose(ending._replace(words=f"{ending.words}; the reattach failed: {failure}"))
        return None

    def _lose(self, ending: Ending) -> None:
        self._look_for_end(self.wire.lost(self._now(), ending.words), ending.kind)

    async def _part(self) -> None:
        """Our last words as far as anybody listens; then the socket is let go."""
        transport = self._dialled.transport
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)
        if self._how in (CloseReason.SILENT, CloseReason.LOST):  # nobody is there to listen
            return await transport.abort()
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                if self._outbox:
                    await transport.write(self._outbox)
                await transport.close()
        except (APIError, TimeoutError):
            await transport.abort()
        return None

    def __repr__(self) -> str:
        return f"<Carriage {self._dialled!r} {self.wire.phase.name}>"


def _ending_of(reading: "asyncio.Task[Ending]", writing: "asyncio.Task[APIError]") -> Ending:
    if not reading.cancelled():
        error = reading.exception()
        if error is None:
            return reading.result()
        log.error("Stream reader failed", exc_info=error)
        return Ending(EndingKind.BROKEN, f"the reader failed ({type(error).__name__})")
    if writing.cancelled():
        return Ending(EndingKind.CUT, "a handler cancelled the reader")
    return Ending(EndingKind.CUT, f"writing failed: {writing.result()}")
