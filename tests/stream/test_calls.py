"""What waits for the server is settled once: by its answer, its stream's end, or the end of the connection."""

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import (
    ConfigError,
    OutcomeUnknown,
    PermanentError,
    ProtocolError,
    QueueFull,
    TransientError,
)
from keepline.stream.calls import Calls, ItemQueue, start_failure
from keepline.stream.port import Lost
from keepline.stream.wire_events import Answered, CloseReason, Ended, Item


async def drained(queue: ItemQueue) -> list[object]:
    got = []
    while True:
        try:
            got.append(await queue.take())
        except StopAsyncIteration:
            return got


async def test_an_answer_settles_its_call_and_no_other() -> None:
    calls = Calls(lambda _: None)
    first, second = calls.expect("1", "invoke A"), calls.expect("2", "invoke B")
    calls.answered(Answered("2", "two"))
    calls.answered(Answered("2", "again"))
    calls.answered(Answered("9", "nobody's"))
    assert await second == "two"
    assert not first.done()
    assert len(calls) == 1


async def test_an_answer_for_someone_who_left_is_dropped() -> None:
    calls = Calls(lambda _: None)
    answer = calls.expect("1", "invoke A")
    answer.cancel()
    calls.answered(Answered("1", None, "too late"))
    calls.expect("2", "invoke B").cancel()
    calls.lost("gone")
    assert len(calls) == 0


@pytest.mark.parametrize(
    ("event", "error", "category"),
    [
        (Answered("1", None, "no"), PermanentError, "client"),
        (Answered("1", None, ""), PermanentError, "client"),
        (
            Answered("1", None, "Failed to invoke 'A' because user is unauthorized"),
            PermanentError,
            "auth",
        ),
        (Answered("1", None, "no int", True), ProtocolError, None),
    ],
)
async def test_an_error_of_the_server_is_typed(
    event: Answered, error: type[Exception], category: str | None
) -> None:
    calls = Calls(lambda _: None)
    answer = calls.expect("1", "invoke A")
    calls.answered(event)
    with pytest.raises(error, match="invoke A") as caught:
        await answer
    assert getattr(caught.value, "category", None) == category


async def test_a_stream_ends_with_its_error_after_its_items() -> None:
    calls = Calls(lambda _: None)
    for number, words in enumerate((None, "", "broke")):
        queue = ItemQueue("stream S", 10)
        calls.expect_items(str(number), queue)
        calls.item(Item(str(number), 1))
        calls.ended(Ended(str(number), words))
        calls.item(Item(str(number), 2))
        assert await queue.take() == 1
        with pytest.raises(StopAsyncIteration if words is None else PermanentError):
            await queue.take()


async def test_the_end_of_the_connection_settles_everything() -> None:
    calls = Calls(lambda _: None)
    answer, queue = calls.expect("1", "invoke A"), ItemQueue("stream S", 2)
    calls.expect_items("2", queue)
    calls.item(Item("2", 1))
    calls.lost("the cable was cut")
    with pytest.raises(OutcomeUnknown, match="invoke A: the cable was cut"):
        await answer
    assert await queue.take() == 1
    with pytest.raises(OutcomeUnknown, match="stream S: the cable was cut"):
        await queue.take()


async def test_an_overflow_cancels_the_stream_once() -> None:
    cancelled: list[str] = []
    calls = Calls(cancelled.append)
    queue = ItemQueue("stream S", 2)
    calls.expect_items("1", queue)
    for number in range(5):
        calls.item(Item("1", number))
    calls.ended(Ended("1"))
    assert cancelled == ["1"]
    assert [await queue.take(), await queue.take()] == [0, 1]
    with pytest.raises(QueueFull, match="more than 2 items"):
        await queue.take()


def test_a_buffer_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one item"):
        ItemQueue("stream S", 0)


@given(st.lists(st.integers(), max_size=30), st.integers(1, 10))
def test_items_come_in_order_and_none_is_lost_in_silence(items: list[int], limit: int) -> None:
    async def check() -> None:
        queue = ItemQueue("stream S", limit)
        taken = [item for item in items if queue.put(item)]
        queue.end()
        assert taken == items[:limit]
        got: list[object] = []
        if len(items) > limit:
            for _ in taken:
                got.append(await queue.take())
            with pytest.raises(QueueFull):
                await queue.take()
        else:
            got = await drained(queue)
        assert got == taken

    asyncio.run(check())


async def test_one_who_waits_is_woken_by_each_item_and_by_the_end() -> None:
    queue = ItemQueue("stream S", 2)
    waiting = asyncio.ensure_future(drained(queue))
    await asyncio.sleep(0)
    queue.put(1)
    await asyncio.sleep(0)
    queue.put(2)
    await asyncio.sleep(0)
    queue.end()
    queue.end(ProtocolError("too late to matter"))
    assert await waiting == [1, 2]


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        (CloseReason.REFUSED, PermanentError, "refused the handshake: why"),
        (CloseReason.MALFORMED, PermanentError, "does not speak the hub protocol: why"),
        (CloseReason.HANDSHAKE_TIMEOUT, TransientError, "why"),
        (CloseReason.LOST, TransientError, "before the handshake was done: why"),
        (CloseReason.SAID, TransientError, "before the handshake was done: why"),
    ],
)
def test_a_failed_start_says_whether_to_try_again(
    how: CloseReason, error: type[Exception], words: str
) -> None:
    failure = start_failure(Lost("x", "why"), how, "https://example.com/hub")
    assert type(failure) is error
    assert words in str(failure)
    assert str(failure).startswith("https://example.com/hub: ")


async def test_an_error_that_nobody_hears_is_no_alarm() -> None:
    alarms: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: alarms.append(context))
    calls = Calls(lambda _: None)
    calls.expect("1", "invoke A")
    calls.lost("the connection ended")
    gc.collect()
    assert alarms == []
