"""Following a real server over a real WebSocket: resumed after a break, ended when it says so."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from tests.hub.hub_double import HubDouble, status

from keepline.errors import PermanentError, SignInRequired, TransientError
from keepline.hub.tail import Tail
from keepline.testing import ManualClock


@pytest.fixture
async def hub() -> AsyncIterator[HubDouble]:
    double = HubDouble()
    await double.start()
    yield double
    await double.stop()


def alert(offset: int) -> dict:
    return {"type": "alert", "channel": "alerts", "offset": offset, "epoch": "e", "data": offset}


async def first(tail: Tail, count: int) -> list[dict]:
    shown = []
    async with contextlib.aclosing(tail.messages()) as messages:
        async for message in messages:
            shown.append(message)
            if len(shown) == count:
                break
    return shown


def ends_with(code: int, *messages: dict):
    async def answer(hub, socket, asked) -> None:
        if messages:
            await socket.send_str(json.dumps(messages))
        await socket.close(code=code)

    return answer


async def driven(clock: ManualClock, awaitable):
    task = asyncio.ensure_future(awaitable)
    await clock.run_until(task.done)
    return await task


async def test_it_resumes_after_a_break_where_it_was(hub: HubDouble) -> None:
    async def answer(hub, socket, asked) -> None:
        resume = asked.get("resume", {}).get("alerts", {"offset": 0})["offset"]
        await socket.send_str(json.dumps([alert(resume + 1), alert(resume + 2)]))
        await socket.close(code=3010)

    hub.on_socket = answer
    notes: list[str] = []
    clock = ManualClock()
    tail = Tail(hub.url, "good", ["alerts"], note=notes.append, clock=clock)
    shown = await driven(clock, first(tail, 5))
    assert [message["offset"] for message in shown] == [1, 2, 3, 4, 5]
    assert hub.asked[2]["resume"] == {"alerts": {"epoch": "e", "offset": 4}}
    assert "reads too slowly" in notes[0]
    assert (
        clock.boottime() == 1.0
    )  # half a second each: a connection that brought something is no failure


async def test_pauses_grow_while_nothing_comes(hub: HubDouble) -> None:
    hub.on_socket = ends_with(3001)
    clock = ManualClock()
    task = asyncio.ensure_future(first(Tail(hub.url, "good", ["alerts"], clock=clock), 1))
    await clock.run_until(lambda: len(hub.asked) == 4)
    assert clock.boottime() == 0.5 + 1.0 + 2.0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_hub_that_goes_away_and_comes_back_is_found_again(hub: HubDouble) -> None:
    hub.on_socket = ends_with(1001, alert(1))
    notes: list[str] = []
    clock = ManualClock()
    tail = Tail(hub.url, "good", ["alerts"], note=notes.append, clock=clock)
    async with contextlib.aclosing(tail.messages()) as messages:
        assert (await anext(messages))["offset"] == 1
        await hub.stop()
        upcoming = asyncio.ensure_future(anext(messages))
        await clock.run_until(lambda: any("cannot connect" in note for note in notes))
        hub.on_socket = ends_with(1001, alert(2))
        await hub.start()
        await clock.run_until(upcoming.done)
        assert (await upcoming)["offset"] == 2


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (3500, SignInRequired, "sign in"),
        (3502, SignInRequired, "withdrawn"),
        (3503, PermanentError, "correct the client"),
        (3999, PermanentError, "closed with code 3999"),
    ],
)
async def test_a_code_that_says_do_not_come_back_ends_it(
    hub: HubDouble, code: int, error, words: str
) -> None:
    hub.on_socket = ends_with(code)
    with pytest.raises(error, match=words):
        await first(Tail(hub.url, "good", ["alerts"]), 1)
    assert len(hub.asked) == 1


async def test_a_token_that_is_refused_needs_a_person(hub: HubDouble) -> None:
    with pytest.raises(SignInRequired, match="401") as caught:
        await first(Tail(hub.url, "bad-secret", ["alerts"]), 1)
    assert "/login" in str(caught.value)
    assert "bad-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "error", "after"),
    [
        (status(503, **{"Retry-After": "9"}), TransientError, 9.0),
        (status(429), TransientError, None),
        (status(404), PermanentError, None),
    ],
)
async def test_a_first_connection_that_fails_says_why_at_once(
    hub: HubDouble, answer, error, after
) -> None:
    hub.before.append(answer)
    with pytest.raises(error, match="handshake") as caught:
        await first(Tail(hub.url, "good", ["alerts"]), 1)
    assert caught.value.retry_after == after


async def test_a_hub_that_is_not_there_is_unreachable(hub: HubDouble) -> None:
    await hub.stop()
    with pytest.raises(TransientError, match="cannot connect") as caught:
        await first(Tail(hub.url, "good", ["alerts"]), 1)
    assert caught.value.sent is False


async def test_a_hub_that_asks_for_time_while_we_come_back_gets_it(hub: HubDouble) -> None:
    hub.on_socket = ends_with(3001, alert(1))
    clock = ManualClock()
    tail = Tail(hub.url, "good", ["alerts"], clock=clock)
    async with contextlib.aclosing(tail.messages()) as messages:
        await anext(messages)
        hub.before.append(status(503, **{"Retry-After": "9"}))
        hub.on_socket = ends_with(3001, alert(2))
        upcoming = asyncio.ensure_future(anext(messages))
        await clock.run_until(upcoming.done)
        await upcoming
    assert clock.boottime() == 0.5 + 9.0


async def test_frames_that_are_none_are_noted_and_passed_over(hub: HubDouble) -> None:
    async def answer(hub, socket, asked) -> None:
        await socket.send_bytes(b"\0")
        await socket.send_str("nonsense")
        await socket.send_str(json.dumps([alert(1)]))

    hub.on_socket = answer
    notes: list[str] = []
    tail = Tail(hub.url, "good", ["alerts"], note=notes.append)
    assert len(await first(tail, 1)) == 1
    assert "no array of messages" in notes[0]
    assert "alerts" in repr(tail)
