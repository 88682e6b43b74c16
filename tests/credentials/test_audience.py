"""The bounded queue and the subscribers, by themselves."""

import asyncio

import pytest
from tests.credentials.keeping import settled

from keepline.credentials.audience import Subscribers, WaitingRoom
from keepline.credentials.token import Token
from keepline.errors import QueueFull
from keepline.testing import ManualClock


def token(generation: int) -> Token:
    return Token(f"access-{generation}").with_generation(generation)


async def test_a_waiter_is_served_only_by_a_newer_token():
    room = WaitingRoom(2, ManualClock())
    waiting = asyncio.ensure_future(room.wait(newer_than=5))
    await settled()
    room.serve(token(5))
    await settled()
    assert not waiting.done()
    room.serve(token(6))
    assert (await waiting).generation == 6
    assert len(room) == 0


async def test_the_place_of_one_who_was_served_or_cancelled_is_free_again():
    clock = ManualClock()
    room = WaitingRoom(1, clock)
    for end in ("served", "cancelled", "late"):
        waiting = asyncio.ensure_future(room.wait(patience=5.0))
        await settled()
        with pytest.raises(QueueFull):
            await room.wait()
        if end == "served":
            room.serve(token(1))
            await waiting
        elif end == "cancelled":
            waiting.cancel()
            await settled()
        else:
            clock.advance(5.0)
            with pytest.raises(TimeoutError):
                await waiting
        assert len(room) == 0


async def test_only_those_with_a_reason_are_sent_away():
    room = WaitingRoom(5, ManualClock())
    first, second = (asyncio.ensure_future(room.wait(newer_than=n)) for n in (1, 2))
    await settled()
    room.dismiss(lambda waiter: ValueError("go") if waiter.newer_than == 1 else None)
    with pytest.raises(ValueError, match="go"):
        await first
    assert not second.done()
    room.serve(token(3))
    await second


async def test_a_subscriber_that_becomes_synchronous_again_is_called_on():
    seen = []

    def sometimes(told):
        seen.append(told.generation)
        if told.generation == 1:
            return asyncio.sleep(0)
        return None

    subscribers = Subscribers("schwab")
    subscribers.add(sometimes)
    subscribers.tell(token(1))
    subscribers.tell(token(2))
    await settled()
    subscribers.tell(token(3))
    assert seen == [1, 2, 3]
    assert len(subscribers) == 1


async def test_draining_without_anyone_running_takes_no_time():
    subscribers = Subscribers("schwab")
    subscribers.add(lambda told: None)
    await subscribers.drain(ManualClock(), 1.0)


async def test_draining_lets_those_who_end_in_time_end():
    seen, gate = [], asyncio.Event()

    async def slow(told):
        await gate.wait()
        seen.append(told.generation)

    subscribers = Subscribers("schwab")
    subscribers.add(slow)
    subscribers.tell(token(1))
    draining = asyncio.ensure_future(subscribers.drain(ManualClock(), 1.0))
    await settled()
    gate.set()
    await draining
    assert seen == [1]
