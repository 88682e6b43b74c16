"""One open hub connection of the sandbox: its calls, streams and answers, and the faults that strike it.

Invariants: calls are done one after another, as the real server does, those of streams beside them; an upload holds at
most ten items, then its client waits; whatever ends a connection ends everything that was under way for it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from keepline.clock import Clock
from keepline.sandbox.faults import Fault
from keepline.sandbox.signalr_calls import Method, checked, failed, stream_failed, unknown
from keepline.sandbox.signalr_endpoint import Seat
from keepline.sandbox.signalr_frames import joined, pieces, strange
from keepline.sandbox.signalr_hubs import Book
from keepline.sandbox.signalr_wire import Heard, Phase, ServerWire
from keepline.stream.messages import (
    CancelInvocation,
    Completion,
    Invocation,
    StreamInvocation,
    StreamItem,
)

__all__ = ["Hub", "HubConnection", "HubError", "Strike"]

_UPLOAD_ITEMS = 10
_UNSENT_ITEMS = 1_000
_MOST_CALLS = 1_000
_MOST_UNSENT = 200_000  # messages: a client that reads nothing is not waited for, as no pipe here would stop us
_EVENT_FAULTS = ("silent", "missing_events", "oversize_frame", "strange_message", "duplicate_events",
                 "reordered_events")  # fmt: skip
_FRAME_FAULTS = ("black_hole", "slow_frames", "glued_frames", "split_frames")

Call = Invocation | StreamInvocation


class Strike(Protocol):
    """Which faults strike here and now."""

    def __call__(
        self, names: Collection[str], *, where: Callable[[Fault], bool] = ...
    ) -> dict[str, Fault]: ...


class HubError(Exception):
    """What a hub method says no with: a HubException, whose words the client gets to see."""


class Hub(Protocol):
    """What a connection talks to.

    Attributes:
        name: `user`, `market` or `test`.
        route: by which faults name it.
        table: its methods.
    """

    name: str
    route: str
    table: Mapping[str, Method]

    def call(
        self, connection: "HubConnection", method: Method, arguments: tuple[Any, ...]
    ) -> Awaitable[object]:
        """Do it; the result is answered. Uploads stand behind the arguments."""
        ...

    def stream(
        self, connection: "HubConnection", method: Method, arguments: tuple[Any, ...]
    ) -> AsyncIterator[object]:
        """Do it; every item is sent."""
        ...

    def answered(
        self, connection: "HubConnection", method: Method, arguments: tuple[Any, ...]
    ) -> None:
        """The answer of a call is on its way."""
        ...


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
        self._parted, self._after_handshake, self._over = parted, shaken, over
        self._ready = asyncio.Event()
        self._free = asyncio.Event()
        self._room = asyncio.Event()
        self._calls: asyncio.Queue[Call] = asyncio.Queue(_MOST_CALLS)
        self._uploads: dict[str, asyncio.Queue[Any]] = {}
        self._asked: dict[str, asyncio.Future[Completion]] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._held: list[Invocation] = []
        self._close_at, self._close_how = float("inf"), ""
        self._abort: Callable[[], None] = lambda: None
        self._alive: Callable[[], bool] = lambda: True
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished = False
        self._spawn(self._work())

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
            await self._hear(message)

    # --- what the server does ---

    def event(self, target: str, arguments: Sequence[object]) -> None:
        """Send an event, or what faults make of it."""
        if self.wire.phase is not Phase.OPEN:
            return
        struck = self._strike(
            _EVENT_FAULTS, where=lambda f: f.parameters.get("event") in (None, "", target)
        )
        if "silent" in struck or "missing_events" in struck:
            return
        if "oversize_frame" in struck:
            filling = "x" * int(str(struck["oversize_frame"].parameters["bytes"]))
            self._send(Invocation("Oversize", (filling,)))
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
            HubError: the client answers with an error, or without a result.
        """
        number = f"s{self.memory.setdefault('asked', 0) + 1}"
        self.memory["asked"] += 1
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._send(Invocation(target, arguments, id=number))
        completion = await answer
        if completion.error is not None:
            raise HubError(completion.error)
        return completion.result

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
        for future in self._asked.values():
            future.cancel()
        for queue in (self._calls, *self._uploads.values()):
            while not queue.empty():  # whoever waits to put something in goes on
                queue.get_nowait()
        self._uploads.clear()
        for task in (*self._tasks, *self._streams.values()):
            task.cancel()
        self.wake()
        self._free.set()
        self._over(self)

    # --- calls ---

    def _shaken(self) -> None:
        self._after_handshake(self)
        fault = self._strike(("accept_then_close",)).get("accept_then_close")
        if fault is not None:
            self._close_how = str(fault.parameters["how"])
            self._close_at = self._now() + float(str(fault.parameters["after"]))
            if self._close_at <= self._now():
                self.cut(self._close_how)

    async def _hear(self, message: Heard) -> None:
        match message:
            case Invocation() | StreamInvocation():
                if not self._mishap(message):
                    for stream in message.stream_ids:
                        self._uploads[stream] = asyncio.Queue(_UPLOAD_ITEMS)
                    await self._calls.put(message)
            case StreamItem():
                if message.id in self._uploads:
                    await self._uploads[message.id].put(message)
            case Completion():
                if message.id in self._uploads:
                    await self._uploads.pop(message.id).put(message)
                asked = self._asked.pop(message.id, None)
                if asked is not None and not asked.done():
                    asked.set_result(message)
            case CancelInvocation():
                stream_task = self._streams.get(message.id)
                if stream_task is not None:
                    stream_task.cancel()

    def _mishap(self, call: Call) -> bool:
        """Whether a fault took the call."""
        struck = self._strike(
            ("cut_on_call", "call_fails"),
            where=lambda f: str(f.parameters["method"]).lower() in ("", call.target.lower()),
        )
        if "cut_on_call" in struck:
            self.cut(str(struck["cut_on_call"].parameters["how"]))
        elif "call_fails" in struck:
            words = str(struck["call_fails"].parameters["description"])
            self._answer(
                call.id, error=failed(call.target, words) if words else unknown(call.target)
            )
        return bool(struck)

    async def _work(self) -> None:
        while True:
            call = await self._calls.get()
            method = checked(
                self.hub.table,
                call.target,
                call.arguments,
                streaming=isinstance(call, StreamInvocation),
                uploads=len(call.stream_ids),
            )
            if isinstance(method, str):
                for stream in call.stream_ids:
                    self._uploads.pop(stream, None)
                self._answer(call.id, error=method)
                continue
            uploads = tuple(self._upload(name, self._uploads[name]) for name in call.stream_ids)
            arguments = (*call.arguments, *uploads)
            if isinstance(call, StreamInvocation):
                task = asyncio.create_task(self._run_stream(call, method, arguments))
                self._streams[call.id] = task
            elif method.beside:
                self._spawn(self._run(call, method, arguments))
            else:
                await self._run(call, method, arguments)

    async def _run(self, call: Call, method: Method, arguments: tuple[Any, ...]) -> None:
        try:
            result = await self.hub.call(self, method, arguments)
        except HubError as no:
            self._answer(call.id, error=failed(call.target, str(no)))
        except Exception:  # whatever a method does wrong, its caller hears of it and nobody else
            self._answer(call.id, error=failed(call.target, None))
        else:
            self._answer(call.id, result=result)
            self.hub.answered(self, method, arguments)

    async def _run_stream(
        self, call: StreamInvocation, method: Method, arguments: tuple[Any, ...]
    ) -> None:
        error = None
        try:
            async for item in self.hub.stream(self, method, arguments):
                self._send(StreamItem(call.id, item))
                await self._wait_for_room()
        except asyncio.CancelledError:  # the client wants no more, or is gone
            if self._finished:
                raise
        except HubError as no:
            error = stream_failed(str(no))
        except Exception:  # as above
            error = stream_failed(None)
        self._streams.pop(call.id, None)
        if not self._silent_answers():
            self._send(Completion(call.id, error=error))

    async def _upload(self, name: str, items: "asyncio.Queue[Any]") -> AsyncIterator[object]:
        try:
            while True:
                message = await items.get()
                if isinstance(message, Completion):
                    if message.error is not None:
                        raise HubError(message.error)
                    return
                yield message.item
        finally:
            self._uploads.pop(name, None)

    def _answer(
        self, number: str | None, *, result: object = None, error: str | None = None
    ) -> None:
        if number is None or self._silent_answers():
            return
        if error is not None:
            self._send(Completion(number, error=error))
        else:
            self._send(Completion(number, result=result))

    async def _wait_for_room(self) -> None:
        """A stream goes no faster than its client reads."""
        while self.wire.unsent + self.wire.waiting > _UNSENT_ITEMS:
            self._room.clear()
            await self._room.wait()

    def _silent_answers(self) -> bool:
        return "silent" in self._strike(("silent",), where=lambda f: not f.parameters["answers"])

    def _send(self, message: Invocation | StreamItem | Completion) -> None:
        self.wire.send(message, now=self._now())
        self.wake()

    async def _suffered(self, out: list[bytes]) -> list[bytes]:
        """The frames of some messages, after what faults do to them."""
        struck = self._strike(_FRAME_FAULTS)
        if "black_hole" in struck:
            return []
        if "slow_frames" in struck:
            await self._clock.sleep(float(str(struck["slow_frames"].parameters["delay"])))
        if "glued_frames" in struck:
            await self._clock.sleep(float(str(struck["glued_frames"].parameters["wait"])))
            out = joined([*out, *self.wire.take()])
        if "split_frames" in struck:
            size = int(str(struck["split_frames"].parameters["size"]))
            out = pieces(out, size=size, binary=self.wire.binary)
        return out

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _now(self) -> float:
        return self._clock.boottime()

    def __repr__(self) -> str:
        way = self.seat.transport.value if self.seat.transport else "no transport"
        return f"<HubConnection {self.hub.name} {self.id} {way} {self.wire.phase.value}>"
