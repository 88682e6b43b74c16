"""The system's clocks: forward only, aware, and never looking away for long."""

import asyncio
import time

import pytest

from keepline import clock as clock_module
from keepline.clock import LONGEST_LOOK_AWAY, SYSTEM_CLOCK, Clock, SystemClock, within
from keepline.testing import ManualClock


def test_boottime_only_grows_and_wall_is_aware() -> None:
    first = SYSTEM_CLOCK.boottime()
    assert SYSTEM_CLOCK.boottime() >= first
    assert SYSTEM_CLOCK.wall().utcoffset().total_seconds() == 0
    assert 0 <= SYSTEM_CLOCK.chance() < 1
    assert repr(SYSTEM_CLOCK) == "<SystemClock>"


def test_boottime_counts_suspend_where_the_system_can() -> None:
    if hasattr(time, "CLOCK_BOOTTIME"):
        expected = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert SYSTEM_CLOCK.boottime() >= expected
        assert SYSTEM_CLOCK.boottime().__class__ is float
    else:
        assert SYSTEM_CLOCK.boottime is time.monotonic


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no boottime")
def test_the_clock_that_is_asked_is_the_one_that_counts_suspend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that never slept both clocks say the same."""
    monkeypatch.setattr(time, "clock_gettime", lambda kind: (kind, "asked"))
    assert SystemClock().boottime() == (time.CLOCK_BOOTTIME, "asked")


def test_without_a_boottime_clock_the_monotonic_one_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert SystemClock().boottime is time.monotonic


async def test_sleep_never_looks_away_longer_than_thirty_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a suspend the boottime has jumped: the next look ends the sleep at once."""
    clock = SystemClock()
    now, looks = 1000.0, []
    clock.boottime = lambda: now

    async def nap(seconds: float) -> None:
        nonlocal now
        looks.append(seconds)
        now += 3600 if len(looks) == 2 else seconds  # the machine was shut during the second look

    monkeypatch.setattr(clock_module.asyncio, "sleep", nap)
    await clock.sleep(1800)
    assert looks == [LONGEST_LOOK_AWAY, LONGEST_LOOK_AWAY]


async def test_a_sleep_of_nothing_returns() -> None:
    await SYSTEM_CLOCK.sleep(0)
    await SYSTEM_CLOCK.sleep(-5)


def test_pause_blocks_the_thread_that_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(clock_module.time, "sleep", seen.append)
    SYSTEM_CLOCK.pause(0.25)
    assert seen == [0.25]


def test_both_clocks_are_clocks() -> None:
    clocks: list[Clock] = [SystemClock(), ManualClock()]
    assert all(callable(clock.boottime) for clock in clocks)


async def test_within_hands_back_the_answer_that_came_in_time() -> None:
    async def answer() -> int:
        return 42

    assert await within(ManualClock(), 5, answer()) == 42


async def test_within_hands_on_the_error_that_came_in_time() -> None:
    async def fail() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        await within(ManualClock(), 5, fail())


async def test_within_cancels_what_is_late() -> None:
    clock = ManualClock()
    never = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(within(clock, 5, never))
    await clock.run_until(waiting.done)
    with pytest.raises(TimeoutError, match="within 5 s"):
        await waiting
    assert never.cancelled()
    assert clock.boottime() == 5


async def test_within_cancels_its_work_when_the_caller_is_cancelled() -> None:
    clock = ManualClock()
    never = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(within(clock, 5, never))
    await clock.until_asleep()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert never.cancelled()
    assert clock.next_wake is None
