"""Runs a program on real sockets and a clock that jumps: time goes by only when nothing else can happen.

The loop asks its selector to wait when no callback is ready. If no socket of this process has anything either,
everything waits for the clock, and it goes on to the next thing that is due. Work in threads has to be told
(`Jumping.thread`).
"""

import asyncio
import contextlib
import inspect
import selectors
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from keepline.testing import ManualClock

__all__ = ["Jumping"]

_STUCK = 20.0  # real seconds in which nothing at all happens


class Jumping:
    """A clock, and a loop that moves it.

    Args:
        limit: seconds of the clock in which a program has to be done.

    Attributes:
        clock: give it to everything.
        look: called whenever time is about to go on.
    """

    def __init__(self, *, limit: float = 3600.0) -> None:
        self.clock = ManualClock()
        self.look: Callable[[], None] = lambda: None
        self._limit = limit
        self._threads = 0

    def run(self, program: Coroutine[Any, Any, Any]) -> None:
        """Run a program to its end."""
        selector = _IdleSelector(self._idle)
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.run(program)

    @contextlib.contextmanager
    def thread(self) -> Iterator[None]:
        """Something is under way beside the loop: time waits for it."""
        self._threads += 1
        try:
            yield
        finally:
            self._threads -= 1

    def threaded(self, thing: Any) -> Any:
        """The same thing, whose coroutines run in threads."""
        return _Threaded(thing, self)

    def _idle(self) -> bool:
        """Let time go on, if nothing but time is waited for."""
        if self._threads or self.clock.next_wake is None:
            return False
        self.look()
        if self.clock.boottime() > self._limit:
            raise TimeoutError(f"the program is not done within {self._limit:g} s of its clock")
        self.clock.advance(self.clock.next_wake)
        return True


class _IdleSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def __init__(self, idle: Callable[[], bool]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        if self._idle():
            return []
        found = super().select(_STUCK if timeout is None else min(timeout, _STUCK))
        if not found and timeout is None:
            raise TimeoutError("everything waits, and nothing will come")
        return found


class _Threaded:
    def __init__(self, thing: Any, jumping: Jumping) -> None:
        self._thing, self._jumping = thing, jumping

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if not inspect.iscoroutinefunction(value):
            return value

        async def counted(*args: Any, **kwargs: Any) -> Any:
            with self._jumping.thread():
                return await value(*args, **kwargs)

        return counted
