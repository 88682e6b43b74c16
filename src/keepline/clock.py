"""The only door to time and chance.

Deadlines live on a clock that counts suspend (CLOCK_BOOTTIME); the wall clock is for people, files and wires. No sleep
here looks away for more than 30 s, so a laptop that was shut wakes up to the truth. Deciders never import this module:
they are handed `now` as a number.
"""

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol, TypeVar

__all__ = ["LONGEST_LOOK_AWAY", "SYSTEM_CLOCK", "Clock", "SystemClock", "within"]

LONGEST_LOOK_AWAY = 30.0
"""Seconds: no face sleeps longer without looking at the clock again."""

T = TypeVar("T")


class Clock(Protocol):
    """Time and chance as a face needs them; `keepline.testing.ManualClock` is the one for tests."""

    @property
    def boottime(self) -> Callable[[], float]:
        """Seconds on a clock that only moves forward and counts suspend; its zero means nothing."""
        ...

    def wall(self) -> datetime:
        """The wall clock, aware, in UTC: may jump."""
        ...

    def chance(self) -> float:
        """A number in [0, 1) for jitter; not for secrets."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of boottime; at once when they are not positive."""
        ...

    def pause(self, seconds: float) -> None:
        """Block the calling thread; never on an event loop."""
        ...


def _boottime() -> Callable[[], float]:
    if hasattr(time, "CLOCK_BOOTTIME"):
        return functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    return time.monotonic  # macOS counts suspend here; Windows does since 10


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        # a C callable held as an attribute: the fast path of get_token() pays no Python frame for the time
        self.boottime = _boottime()

    def wall(self) -> datetime:
        return datetime.now(UTC)

    def chance(self) -> float:
        return random.random()

    async def sleep(self, seconds: float) -> None:
        deadline = self.boottime() + seconds
        while (left := deadline - self.boottime()) > 0:  # noqa: ASYNC110 - a clock has no event to wait for
            await asyncio.sleep(min(left, LONGEST_LOOK_AWAY))

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def __repr__(self) -> str:
        return "<SystemClock>"


SYSTEM_CLOCK = SystemClock()


async def within(clock: Clock, seconds: float, awaitable: Awaitable[T]) -> T:
    """Await something for at most `seconds` of the given clock.

    The awaitable is cancelled when the time is up or the caller is cancelled; shield it when it must go on.

    Raises:
        TimeoutError: the time was up first.
    """
    work = asyncio.ensure_future(awaitable)
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({work, timer}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise TimeoutError(f"no answer within {seconds:g} s")
    finally:
        timer.cancel()
        if not work.done():
            work.cancel()
