"""Who waits for a token and who is told of each new one.

Invariants: at most `limit` callers wait; one that gives up or is cancelled disturbs nobody; a subscriber that fails
or is slow neither stops nor delays another, sees its tokens one after another and skips to the newest.
"""

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from keepline.clock import Clock, within
from keepline.credentials.token import Token
from keepline.errors import QueueFull

__all__ = ["Subscriber", "Subscribers", "Waiter", "WaitingRoom"]

log = logging.getLogger("keepline.credentials")

Subscriber = Callable[[Token], Any]
"""Called with each new token, on the event loop; may be a coroutine function."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One caller in the queue.

    Attributes:
        future: gets the token or the error.
        newer_than: only a token of a larger generation serves it.
        until: boottime when it gives up; -inf when it wants the result of the attempt under way and no later one.
    """

    future: asyncio.Future[Token]
    newer_than: int
    until: float


class WaitingRoom:
    """The bounded queue in front of a renewal."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._waiters: set[Waiter] = set()

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, *, newer_than: int = -1, patience: float | None = None) -> Token:
        """Wait for a token.

        Args:
            newer_than: a token of a larger generation is wanted.
            patience: seconds to wait at most; None waits for the end of the attempt under way.

        Raises:
            QueueFull: as many wait already as may.
            TimeoutError: the time was up first.
        """
        if len(self._waiters) >= self._limit:
            raise QueueFull(f"{self._limit} callers wait for a token already (max_queue_depth)")
        until = -math.inf if patience is None else self._clock.boottime() + patience
        waiter = Waiter(asyncio.get_running_loop().create_future(), newer_than, until)
        self._waiters.add(waiter)
        try:
            if patience is None:
                return await waiter.future
            return await within(self._clock, patience, waiter.future)
        finally:
            self._waiters.discard(waiter)

    def serve(self, token: Token) -> None:
        """Give the token to everyone whom it serves."""
        for waiter in self._waiting():
            if token.generation > waiter.newer_than:
                waiter.future.set_result(token)

    def dismiss(self, error: Callable[[Waiter], Exception | None]) -> None:
        """Send away each one for whom `error` has a reason."""
        for waiter in self._waiting():
            reason = error(waiter)
            if reason is not None:
                waiter.future.set_exception(reason)

    def _waiting(self) -> list[Waiter]:
        return [waiter for waiter in self._waiters if not waiter.future.done()]


class Subscribers:
    """Callbacks, each behind its own slot for the newest token."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._all: list[_Slot] = []

    def add(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with each token from now on; the answer ends that, twice does no harm."""
        if not callable(callback):
            raise TypeError(f"a callable is needed, not {type(callback).__name__}")
        slot = _Slot(callback, self._name)
        self._all.append(slot)

        def remove() -> None:
            if slot in self._all:
                self._all.remove(slot)

        return remove

    def tell(self, token: Token) -> None:
        for slot in list(self._all):
            slot.put(token)

    async def drain(self, clock: Clock, seconds: float) -> None:
        """Let running coroutines end within `seconds`, then cancel them."""
        running = {slot.task for slot in self._all if slot.task is not None}
        if not running:
            return
        try:
            await within(clock, seconds, asyncio.wait(running))
        except TimeoutError:
            log.warning(
                "%s: %d subscribers did not end within %g s; cancelled",
                self._name,
                len(running),
                seconds,
            )
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._all)


class _Slot:
    """One subscriber: its running coroutine and the newest token that waits behind it."""

    def __init__(self, callback: Subscriber, name: str) -> None:
        self.task: asyncio.Task[None] | None = None
        self._callback = callback
        self._name = name
        self._next: Token | None = None

    def put(self, token: Token) -> None:
        if self.task is not None:
            self._next = token
            return
        answer = self._call(token)
        if answer is not None:
            self.task = asyncio.ensure_future(self._run(answer))

    def _call(self, token: Token) -> Awaitable[Any] | None:
        try:
            answer = self._callback(token)
        except Exception as error:
            self._report(error)
            return None
        return answer if inspect.isawaitable(answer) else None

    async def _run(self, answer: Awaitable[Any] | None) -> None:
        try:
            while True:
                if answer is not None:
                    await self._finish(answer)
                if self._next is None:
                    return
                token, self._next = self._next, None
                answer = self._call(token)
        finally:
            self.task = None

    async def _finish(self, answer: Awaitable[Any]) -> None:
        try:
            await answer
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        log.error(
            "%s: a subscriber failed with %s; the others were told",
            self._name,
            type(error).__name__,
            exc_info=error,
        )
