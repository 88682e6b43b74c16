"""One open hub connection of the sandbox: what it is sent, how it ends, and the faults that strike it.

Invariants: an event reaches the wire as often as faults say and otherwise once; whatever ends a connection ends
everything that was under way for it; a client that does not read is ended, not waited for.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from keepline.clock import Clock
from keepline.sandbox.faults import Fault
from keepline.sandbox.faulttable import number
from keepline.sandbox.signalr_callwork import Answer, Calls, Hub, Strike
from keepline.sandbox.signalr_endpoint import Seat
from keepline.sandbox.signalr_frames import joined, pieces, strange
from keepline.sandbox.signalr_hubs import Book
from keepline.sandbox.signalr_wire import Phase, ServerWire
from keepline.stream.messages import Invocation

__all__ = ["HubConnection"]

_UNSENT_ITEMS = 1_000
_MOST_UNSENT = 200_000  # messages
_LOSSES = ("silent", "missing_events")
_MISHAPS = ("oversize_frame", "strange_message", "duplicate_events", "reordered_events")
_FRAME_FAULTS = ("black_hole", "slow_frames", "glued_frames", "split_frames")


class HubConnection:
    """One connection.

    Attributes:
        hub: which one.
        seat: its ids and transport.
        wire: the conversation.
        token: that opened it.
        token_in: `header`, `query` or "" without one.
        book: what it subscribed to.
        sent: events that were sent.
        received: messages that came.

    Args:
        hub: what it talks to.
        seat: the endpoint's.
        wire: a new one.
        clock: time and delays.
        strike: its faults.
        parted: called when a transport has left it and another one may come.
        shaken: called when the handshake is done.
        changed: called when a transport came, and for every message.
        over: called once when it has ended.
        token: the bearer.
        token_in: where it was.
    """

    def __init__(
        self,
        hub: Hub,
        seat: Seat,
        wire: ServerWire,
        *,
        clock: Clock,
        strike: Strike,
        parted: Callable[["HubConnection"], None],
        shaken: Callable[["HubConnection"], None],
        changed: Callable[[], None],
        over: Callable[["HubConnection"], None],
        token: str = "",
        token_in: str = "",
    ) -> None:
        self.hub, self.seat, self.wire = hub, seat, wire
        self.token, self.token_in = token, token_in
        self.book = Book()
        self.sent = self.received = 0
        self.memory: dict[str, Any] = {}
        self._clock, self._strike = clock, strike
        self._parted, self._after_handshake = parted, shaken
        self._changed, self._over = changed, over
        self._ready = asyncio.Event()
        self._free = asyncio.Event()
        self._room = asyncio.Event()
        self._held: list[Invocation] = []
        self._close_at, self._close_how = float("inf"), ""
        self._abort: Callable[[], None] = lambda: None
        self._alive: Callable[[], bool] = lambda: True
        self._finished = False
        self._calls = Calls(hub, self, send=self._send, room=self._wait_for_room, strike=strike)

    @property
    def id(self) -> str:
        """The public id."""
        return self.seat.id

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._finished

    # --- transports ---

    def attach(self, abort: Callable[[], None], alive: Callable[[], bool]) -> None:
        """A transport carries it from now on."""
        self._abort, self._alive = abort, alive
        self._free.clear()
        self.wake()
        self._changed()

    def detach(self) -> None:
        """The transport is gone and another one may carry on."""
        self._abort, self._alive = (lambda: None), (lambda: True)
        self.wire.lost()
        self._parted(self)
        self._free.set()
        self.wake()

    async def freed(self) -> None:
        """Return when no transport carries it."""
        await self._free.wait()

    async def frames(self) -> list[bytes]:
        """What has to be written next, a frame each; nothing when the conversation is over."""
        while True:
            found = await self.some()
            if found:
                return found
            if self.wire.phase is Phase.OVER and not self.has_output:
                return []
            await self.wait()

    async def some(self) -> list[bytes]:
        """What can be written now; faults may make it nothing."""
        out = self.wire.take()
        self._room.set()
        return await self._suffered(out) if out else []

    @property
    def has_output(self) -> bool:
        """Whether something waits to be written."""
        return self.wire.unsent > 0

    async def wait(self) -> None:
        """Return when there may be something to write."""
        self._ready.clear()
        if not self.has_output and self.wire.phase is not Phase.OVER:
            await self._ready.wait()

    def wake(self) -> None:
        """Something may have to be written."""
        self._ready.set()

    async def feed(self, data: bytes | str) -> None:
        """What the client sent."""
        before = self.wire.phase
        if before is Phase.HANDSHAKE:
            refused = self._strike(("handshake_error",)).get("handshake_error")
            self.wire.refusal = str(refused.parameters["description"]) if refused else None
        heard = self.wire.receive(data, now=self._now())
        if before is Phase.HANDSHAKE and self.wire.phase is Phase.OPEN:
            self._shaken()
        self.wake()
        for message in heard:
            self.received += 1
            self._changed()
            await self._calls.hear(message)

    # --- what the server does ---

    def event(self, target: str, arguments: tuple[object, ...]) -> None:
        """Send an event, or what faults make of it."""
        if self.wire.phase is not Phase.OPEN:
            return
        if self._strike(_LOSSES, where=lambda f: _means(f, target)):
            return
        struck = self._strike(_MISHAPS, where=lambda f: _means(f, target))
        if "oversize_frame" in struck:
            size = int(number(struck["oversize_frame"].parameters["bytes"]))
            self._send(Invocation("Oversize", ("x" * size,)))
        if "strange_message" in struck:
            form = str(struck["strange_message"].parameters["form"])
            self.wire.garble(strange(form, binary=self.wire.binary))
        events = [Invocation(target, arguments)] * (2 if "duplicate_events" in struck else 1)
        if "reordered_events" in struck:
            self._held += events
            return
        self.sent += len(events) + len(self._held)
        for message in (*events, *self._held):
            self._send(message)
        self._held.clear()

    async def ask(self, target: str, *arguments: object) -> object:
        """Call a handler of the client and wait for its result.

        Raises:
            HubError: the client answers with an error.
        """
        return await self._calls.ask(target, *arguments)

    def cut(self, how: str, *, error: str = "") -> None:
        """End it in one of the ways of the fault `cut_stream`."""
        if how == "abort":
            self._abort()
            self.wire.lost()
            if not self.wire.can_reattach:
                self.finish()
            return
        if how == "bye":
            self.wire.end()
        else:
            allow = how == "close_reconnect"
            self.wire.close(error or None, allow_reconnect=allow, now=self._now())
        if self._free.is_set():
            self.finish()
        self.wake()

    def tick(self) -> None:
        """Look at the time, once a second."""
        now = self._now()
        if now >= self._close_at:
            self.cut(self._close_how)
        self.wire.withhold_acks = "ack_stall" in self._strike(("ack_stall",))
        self.wire.tick(now=now)
        if not self._alive() or self.wire.unsent > _MOST_UNSENT:
            self._abort()
            self.finish()
        self.wake()

    def finish(self) -> None:
        """It is over: end what is under way."""
        if self._finished:
            return
        self._finished = True
        self.wire.end()
        self._calls.end()
        self._room.set()
        self.wake()
        self._free.set()
        self._over(self)

    def _shaken(self) -> None:
        self._after_handshake(self)
        fault = self._strike(("accept_then_close",)).get("accept_then_close")
        if fault is not None:
            self._close_how = str(fault.parameters["how"])
            self._close_at = self._now() + number(fault.parameters["after"])
            if self._close_at <= self._now():
                self.cut(self._close_how)

    async def _wait_for_room(self) -> None:
        while self.wire.unsent + self.wire.waiting > _UNSENT_ITEMS:
            self._room.clear()
            await self._room.wait()

    def _send(self, message: Answer) -> None:
        self.wire.send(message, now=self._now())
        self.wake()
        self._changed()

    async def _suffered(self, out: list[bytes]) -> list[bytes]:
        """The frames of some messages, after what faults do to them."""
        struck = self._strike(_FRAME_FAULTS)
        if "black_hole" in struck:
            return []
        if "slow_frames" in struck:
            await self._clock.sleep(number(struck["slow_frames"].parameters["delay"]))
        if "glued_frames" in struck:
            await self._clock.sleep(number(struck["glued_frames"].parameters["wait"]))
            out = joined([*out, *self.wire.take()])
        if "split_frames" in struck:
            size = int(number(struck["split_frames"].parameters["size"]))
            out = pieces(out, size=size, binary=self.wire.binary)
        return out

    def _now(self) -> float:
        return self._clock.boottime()

    def __repr__(self) -> str:
        way = self.seat.transport.value if self.seat.transport else "no transport"
        return f"<HubConnection {self.hub.name} {self.id} {way} {self.wire.phase.value}>"


def _means(fault: Fault, target: str) -> bool:
    """Whether a fault of events is about this one."""
    return fault.parameters.get("event") in (None, "", target)
