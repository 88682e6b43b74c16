"""The calls of one hub connection: done one after another, and beside them those with streams in either direction.

Invariants: a call is answered once, whatever its method does; an upload holds at most ten items, then its client waits;
a stream goes no faster than its client reads; when the connection ends so does everything under way.

Source: measured at an ASP.NET Core 9.0 server with default options.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from keepline.sandbox.faults import Fault
from keepline.sandbox.signalr_calls import Method, checked, failed, stream_failed, unknown
from keepline.sandbox.signalr_hubs import Book
from keepline.sandbox.signalr_wire import Heard
from keepline.stream.messages import (
    CancelInvocation,
    Completion,
    Invocation,
    StreamInvocation,
    StreamItem,
)

__all__ = ["Answer", "Caller", "Calls", "Hub", "HubError", "Strike"]

_UPLOAD_ITEMS = 10
_MOST_CALLS = 1_000

_Call = Invocation | StreamInvocation
Answer = Invocation | StreamItem | Completion
"""What a connection is sent because of a call."""


class Strike(Protocol):
    """Which faults strike here and now."""

    def __call__(
        self, names: Collection[str], *, where: Callable[[Fault], bool] = ...
    ) -> dict[str, Fault]: ...


class HubError(Exception):
    """What a hub method says no with: a HubException, whose words the client gets to see."""


class Caller(Protocol):
    """What a hub method knows of the connection that called it.

    Attributes:
        book: what it subscribed to.
        memory: whatever a method wants to remember.
    """

    book: Book
    memory: dict[str, Any]

    @property
    def id(self) -> str:
        """The public id."""
        ...

    def event(self, target: str, arguments: tuple[object, ...]) -> None:
        """Send it an event."""
        ...

    def cut(self, how: str) -> None:
        """End it."""
        ...

    async def ask(self, target: str, *arguments: object) -> object:
        """Call one of its handlers; the result, or `HubError`."""
        ...


class Hub(Protocol):
    """What a connection talks to."""

    @property
    def name(self) -> str:
        """`user`, `market` or `test`."""
        ...

    @property
    def route(self) -> str:
        """By which faults name it."""
        ...

    @property
    def table(self) -> Mapping[str, Method]:
        """Its methods by lower-case name."""
        ...

    def call(self, caller: Caller, method: Method, arguments: tuple[Any, ...]) -> Awaitable[object]:
        """Do it; the result is answered. Uploads stand behind the arguments."""
        ...

    def stream(
        self, caller: Caller, method: Method, arguments: tuple[Any, ...]
    ) -> AsyncIterator[object]:
        """Do it; every item is sent."""
        ...

    def answered(self, caller: Caller, method: Method, arguments: tuple[Any, ...]) -> None:
        """The answer of a call is on its way."""
        ...


class Calls:
    """What is under way for one connection.

    Args:
        hub: whose methods are called.
        caller: the connection.
        send: sends a message.
        room: returns when a stream may go on.
        strike: faults of calls.
    """

    def __init__(
        self,
        hub: Hub,
        caller: Caller,
        *,
        send: Callable[[Answer], None],
        room: Callable[[], Awaitable[None]],
        strike: Strike,
    ) -> None:
        self._hub, self._caller = hub, caller
        self._send, self._room, self._strike = send, room, strike
        self._queue: asyncio.Queue[_Call] = asyncio.Queue(_MOST_CALLS)
        self._unwanted: set[str] = set()
        self._queued: set[str] = set()
        self._uploads: dict[str, asyncio.Queue[StreamItem | Completion]] = {}
        self._complete: set[str] = set()
        self._asked: dict[str, asyncio.Future[Completion]] = {}
        self._streams: dict[str, asyncio.Task[str | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = 0
        self._over = False
        self._spawn(self._work())

    async def hear(self, message: Heard) -> None:
        """What the client said; waits where the client shall."""
        if self._over:
            return
        match message:
            case Invocation() | StreamInvocation():
                await self._enqueue(message)
            case StreamItem():
                if message.id in self._uploads and message.id not in self._complete:
                    await self._uploads[message.id].put(message)
            case Completion():
                if message.id in self._uploads and message.id not in self._complete:
                    self._complete.add(message.id)
                    await self._uploads[message.id].put(message)
                asked = self._asked.pop(message.id, None)
                if asked is not None and not asked.done():
                    asked.set_result(message)
            case CancelInvocation():
                if message.id in self._streams:
                    self._streams[message.id].cancel()
                elif message.id in self._queued:
                    self._unwanted.add(message.id)

    async def ask(self, target: str, *arguments: object) -> object:
        """Call a handler of the client and wait for its result.

        Raises:
            HubError: the client answers with an error.
        """
        self._numbers += 1
        number = f"s{self._numbers}"
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._send(Invocation(target, arguments, id=number))
        completion = await answer
        if completion.error is not None:
            raise HubError(completion.error)
        return completion.result

    def end(self) -> None:
        """End everything under way."""
        self._over = True
        for future in self._asked.values():
            future.cancel()
        _drain(self._queue)
        for queue in self._uploads.values():
            _drain(queue)
        self._uploads.clear()
        for task in (*self._tasks, *self._streams.values()):
            task.cancel()

    async def _enqueue(self, call: _Call) -> None:
        struck = self._strike(
            ("cut_on_call", "call_fails"),
            where=lambda f: str(f.parameters["method"]).lower() in ("", call.target.lower()),
        )
        if "cut_on_call" in struck:
            self._caller.cut(str(struck["cut_on_call"].parameters["how"]))
        elif "call_fails" in struck:
            words = str(struck["call_fails"].parameters["description"])
            error = failed(call.target, words) if words else unknown(call.target)
            self._answer(call.id, error=error)
        else:
            for stream in call.stream_ids:
                self._uploads[stream] = asyncio.Queue(_UPLOAD_ITEMS)
            if isinstance(call, StreamInvocation):
                self._queued.add(call.id)
            await self._queue.put(call)

    async def _work(self) -> None:
        while True:
            call = await self._queue.get()
            self._queued.discard(call.id or "")
            method = checked(
                self._hub.table,
                call.target,
                call.arguments,
                streaming=isinstance(call, StreamInvocation),
                uploads=len(call.stream_ids),
            )
            if isinstance(method, str):
                self._forget_uploads(call)
                self._answer(call.id, error=method)
                continue
            uploads = (self._upload(name, self._uploads[name]) for name in call.stream_ids)
            arguments = (*call.arguments, *uploads)
            if isinstance(call, StreamInvocation):
                self._begin_stream(call, method, arguments)
            elif method.beside or call.stream_ids:
                self._spawn(self._run(call, method, arguments))
            else:
                await self._run(call, method, arguments)

    async def _run(self, call: _Call, method: Method, arguments: tuple[Any, ...]) -> None:
        try:
            result = await self._hub.call(self._caller, method, arguments)
        except HubError as no:
            self._answer(call.id, error=failed(call.target, str(no)))
        except Exception:  # whatever a method does wrong, its caller hears of it and nobody else
            self._answer(call.id, error=failed(call.target, None))
        else:
            self._answer(call.id, result=result)
            self._hub.answered(self._caller, method, arguments)
        finally:
            self._forget_uploads(call)

    def _begin_stream(
        self, call: StreamInvocation, method: Method, arguments: tuple[Any, ...]
    ) -> None:
        task = asyncio.create_task(self._run_stream(call, method, arguments))
        self._streams[call.id] = task
        task.add_done_callback(lambda task: self._end_stream(call, task))
        if call.id in self._unwanted:
            self._unwanted.discard(call.id)
            task.cancel()

    async def _run_stream(
        self, call: StreamInvocation, method: Method, arguments: tuple[Any, ...]
    ) -> str | None:
        """Send the items; the error with which the stream ends."""
        try:
            items: Any = self._hub.stream(self._caller, method, arguments)
            async with aclosing(items):
                async for item in items:
                    self._send(StreamItem(call.id, item))
                    await self._room()
        except HubError as no:
            return stream_failed(str(no))
        except Exception:  # as above
            return stream_failed(None)
        return None

    def _end_stream(self, call: StreamInvocation, task: "asyncio.Task[str | None]") -> None:
        self._streams.pop(call.id, None)
        self._forget_uploads(call)
        if not self._over and not self._silenced():
            error = None if task.cancelled() else task.result()
            self._send(Completion(call.id, error=error))

    async def _upload(
        self, name: str, items: "asyncio.Queue[StreamItem | Completion]"
    ) -> AsyncIterator[object]:
        while True:
            message = await items.get()
            if isinstance(message, StreamItem):
                yield message.item
            elif message.error is not None:
                raise HubError(message.error)
            else:
                return

    def _forget_uploads(self, call: _Call) -> None:
        """What still comes for its uploads is ignored, and whoever waits to put it in goes on."""
        for name in call.stream_ids:
            self._complete.discard(name)
            queue = self._uploads.pop(name, None)
            if queue is not None:
                _drain(queue)

    def _answer(
        self, number: str | None, *, result: object = None, error: str | None = None
    ) -> None:
        if number is None or self._silenced():
            return
        if error is not None:
            self._send(Completion(number, error=error))
        else:
            self._send(Completion(number, result=result))

    def _silenced(self) -> bool:
        return "silent" in self._strike(("silent",), where=lambda f: not f.parameters["answers"])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _drain(queue: "asyncio.Queue[Any]") -> None:
    """Empty it: whoever waits to put something in goes on."""
    while not queue.empty():
        queue.get_nowait()
