"""Public helpers for tests of programs that use Keepline: a clock that moves by hand.

Nothing in the package imports this module.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

__all__ = ["ManualClock"]


class ManualClock:
    """A clock that stands still until you move it: hours of token life in microseconds.

    Wall and boottime move together with `advance`; `jump_wall` moves the wall alone, as a time server does.

    Example:
        >>> clock = ManualClock()
        >>> clock.advance(60)
        >>> clock.boottime()
        60.0
    """

    def __init__(
        self, *, wall: datetime = datetime(2026, 1, 5, 14, 30, tzinfo=UTC), chance: float = 0.5
    ) -> None:
        self._now = 0.0
        self._wall = wall
        self._chance = chance
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._someone_sleeps = asyncio.Event()
        self.boottime: Callable[[], float] = lambda: self._now

    def wall(self) -> datetime:
        return self._wall

    def chance(self) -> float:
        return self._chance

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return await asyncio.sleep(0)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        self._someone_sleeps.set()
        return await future

    def pause(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move both clocks forward and wake whoever is due; they run when the loop runs next.

        Raises:
            ValueError: backwards, which only the wall clock can go.
        """
        if not seconds >= 0:
            raise ValueError(f"boottime only moves forward, not by {seconds!r}: see jump_wall()")
        self._now += seconds
        self._wall += timedelta(seconds=seconds)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    def jump_wall(self, seconds: float) -> None:
        """Move the wall clock alone, forward or (negative) back."""
        self._wall += timedelta(seconds=seconds)

    @property
    def next_wake(self) -> float | None:
        """Seconds until the first sleeper is due, None when nobody sleeps."""
        self._forget_cancelled()
        return self._sleepers[0][0] - self._now if self._sleepers else None

    async def until_asleep(self) -> None:
        """Return once someone sleeps on this clock: the code under test has nothing to do before that time."""
        while self.next_wake is None:
            self._someone_sleeps.clear()
            await self._someone_sleeps.wait()

    async def run_until(self, condition: Callable[[], object], *, limit: float = 864_000.0) -> None:
        """Let time run, sleeper by sleeper, until `condition()` holds.

        Raises:
            TimeoutError: `limit` seconds of this clock went by first.
        """
        end = self._now + limit
        while not condition():
            await self._let_others_run(condition)
            if condition():
                return
            await self.until_asleep()
            step = self.next_wake or 0.0
            if self._now + step > end:
                raise TimeoutError(
                    f"the condition did not hold within {limit:g} s of the manual clock"
                )
            self.advance(step)

    async def _let_others_run(self, condition: Callable[[], object]) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
            if condition():
                return

    def _forget_cancelled(self) -> None:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)

    def __repr__(self) -> str:
        return f"<ManualClock {self._now:g} s, wall {self._wall:%Y-%m-%d %H:%M:%S}, {len(self._sleepers)} asleep>"
