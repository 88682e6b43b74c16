"""Who takes messages out of a mailbox and calls the callback: a task, or a thread.

Invariants: one call at a time, in the mailbox's order; a mailbox is touched under the worker's lock alone; the end of
an overflow is judged on the loop, so that beginnings and ends are announced in order; `close` returns within its time,
whatever the callback does.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from keepline.clock import Clock, within
from keepline.stream.callbacks import Caller
from keepline.stream.mailbox import Mailbox, Put
from keepline.telemetry import event

__all__ = ["TaskWorker", "ThreadWorker", "Worker"]

log = logging.getLogger("keepline.stream")

_CALLS_PER_TURN = 32
"""A coroutine that never really waits gives the loop to others after so many calls."""


class Worker(Protocol):
    """What empties a mailbox."""

    def put(self, key: str, arguments: Sequence[Any]) -> Put:
        """A message for the mailbox; on the loop's thread."""
        ...

    async def close(self, seconds: float) -> None:
        """Work off what waits for at most that long, then stop."""
        ...


class TaskWorker:
    """A coroutine function's worker: one task on the loop."""

    def __init__(
        self,
        mailbox: Mailbox,
        caller: Caller,
        on_relief: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self._mailbox = mailbox
        self._caller = caller
        self._on_relief = on_relief
        self._clock = clock
        self._something = asyncio.Event()
        self._closing = False
        self._task = asyncio.get_running_loop().create_task(
            self._work(), name=f"keepline callback {caller.name}"
        )

    def put(self, key: str, arguments: Sequence[Any]) -> Put:
        """A message for the mailbox."""
        outcome = self._mailbox.put(key, arguments)
        self._something.set()
        return outcome

    async def _work(self) -> None:
        turn = 0
        while self._mailbox or not self._closing:
            if not self._mailbox:
                self._something.clear()
                await self._something.wait()
                continue
            await self._call(self._mailbox.take())
            turn += 1
            if turn % _CALLS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _call(self, arguments: Sequence[Any]) -> None:
        if missing := self._mailbox.relieved():
            self._on_relief(missing)
        result = self._caller.call(arguments)
        if result is not None:
            await self._caller.finish(result)

    async def close(self, seconds: float) -> None:
        """Work off what waits, then end the task; a callback that ignores its cancellation is left behind."""
        self._closing = True
        self._something.set()
        try:
            with contextlib.suppress(TimeoutError):
                await within(self._clock, seconds, asyncio.wait({self._task}))
        finally:
            self._task.cancel()
        try:
            await within(self._clock, max(seconds, 1.0), asyncio.wait({self._task}))
        except TimeoutError:
            _left_behind(self._caller, "it does not end when it is cancelled")


class ThreadWorker:
    """A plain function's worker: one daemon thread, since nothing else can be done about a call that blocks."""

    def __init__(
        self,
        mailbox: Mailbox,
        caller: Caller,
        on_relief: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self._mailbox = mailbox
        self._caller = caller
        self._on_relief = on_relief
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._closing = False
        self._abandoned = False
        self._done = asyncio.Event()
        self._awaited: asyncio.Task[None] | None = None
        self._thread = threading.Thread(
            target=self._work, name=f"keepline callback {caller.name}", daemon=True
        )
        self._thread.start()

    def put(self, key: str, arguments: Sequence[Any]) -> Put:
        """A message for the mailbox."""
        with self._condition:
            outcome = self._mailbox.put(key, arguments)
            self._condition.notify()
        return outcome

    def _work(self) -> None:
        try:
            while (arguments := self._next()) is not None:
                result = self._caller.call(arguments)
                if result is not None:
                    self._finish(result)
        finally:
            self._on_loop(self._done.set)

    def _next(self) -> Sequence[Any] | None:
        with self._condition:
            while not self._mailbox and not self._closing:
                self._condition.wait()
            if not self._mailbox or self._abandoned:
                return None
            arguments: Sequence[Any] = self._mailbox.take()
            has_room_again = self._mailbox.has_room_again
        if has_room_again:
            self._on_loop(self._relieve)
        return arguments

    def _relieve(self) -> None:
        with self._condition:
            missing = self._mailbox.relieved()
        if missing:
            self._on_relief(missing)

    def _finish(self, result: Awaitable[Any]) -> None:
        """A plain function returned something to await (`lambda quote: handle(quote)`): the loop does, we wait."""
        finished = threading.Event()
        if not self._on_loop(self._await, result, finished):
            self._caller.refuse(result)
            return
        finished.wait()

    def _await(self, result: Awaitable[Any], finished: threading.Event) -> None:
        self._awaited = self._loop.create_task(self._caller.finish(result))
        self._awaited.add_done_callback(lambda _: finished.set())

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return False
        return True

    async def close(self, seconds: float) -> None:
        """Work off what waits, then end the thread; one that does not return is left behind."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        try:
            await within(self._clock, seconds, self._done.wait())
        except TimeoutError:
            self._abandon()  # otherwise it has said its last word: joining it would only block the loop

    def _abandon(self) -> None:
        with self._condition:
            self._abandoned = True
        if self._awaited is not None:
            self._awaited.cancel()
        _left_behind(self._caller, "it does not return")


def _left_behind(caller: Caller, why: str) -> None:
    event(
        log,
        logging.ERROR,
        "Callback left behind",
        channel=caller.channel,
        callback=caller.name,
        reason=why,
    )
