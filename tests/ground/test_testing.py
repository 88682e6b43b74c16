"""The clock that moves by hand, which all other tests trust."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from keepline.testing import ManualClock


def test_both_hands_move_together_and_the_wall_can_jump_alone() -> None:
    clock = ManualClock(wall=datetime(2026, 3, 1, tzinfo=UTC), chance=0.25)
    clock.advance(90)
    assert clock.boottime() == 90
    assert clock.wall() == datetime(2026, 3, 1, 0, 1, 30, tzinfo=UTC)
    clock.jump_wall(-3600)
    assert clock.boottime() == 90
    assert clock.wall() == datetime(2026, 2, 28, 23, 1, 30, tzinfo=UTC)
    clock.pause(10)
    assert clock.boottime() == 100
    assert clock.chance() == 0.25


async def test_sleepers_wake_in_order_of_their_time() -> None:
    clock, woken = ManualClock(), []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.boottime()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("late", 60), ("early", 10), ("at once", 0)):
            group.create_task(sleeper(name, seconds))
        group.create_task(clock.run_until(lambda: len(woken) == 3))
    assert woken == [("at once", 0), ("early", 10), ("late", 60)]


async def test_advance_wakes_nobody_who_is_not_due() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(clock.sleep(10))
    await clock.until_asleep()
    assert clock.next_wake == 10
    clock.advance(9.5)
    await asyncio.sleep(0)
    assert not sleeping.done()
    assert clock.next_wake == 0.5
    clock.advance(0.5)
    await sleeping


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(clock.sleep(10))
    await clock.until_asleep()
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert clock.next_wake is None
    clock.advance(20)


async def test_run_until_returns_without_moving_when_the_condition_holds() -> None:
    clock = ManualClock()
    await clock.run_until(lambda: True)
    assert clock.boottime() == 0


async def test_run_until_gives_up_at_its_limit() -> None:
    clock = ManualClock()

    async def for_ever() -> None:
        while True:
            await clock.sleep(100)

    task = asyncio.ensure_future(for_ever())
    with pytest.raises(TimeoutError, match="250 s of the manual clock"):
        await clock.run_until(lambda: False, limit=250)
    assert clock.boottime() == 200
    task.cancel()


def test_its_repr_tells_the_time() -> None:
    clock = ManualClock()
    clock.advance(timedelta(hours=1).total_seconds())
    assert repr(clock) == "<ManualClock 3600 s, wall 2026-01-05 15:30:00, 0 asleep>"


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_boottime_cannot_go_back(seconds: float) -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="only moves forward"):
        clock.advance(seconds)
    assert clock.boottime() == 0
