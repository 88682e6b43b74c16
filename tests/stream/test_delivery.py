"""To callbacks and not past them: in order, in their own worker, announced when it is too much, closed in time."""

import asyncio
import functools
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from keepline.errors import ConfigError
from keepline.stream import delivery as delivery_module
from keepline.stream.callbacks import ERRORS
from keepline.stream.delivery import Delivery, Overflow, Put
from keepline.telemetry import fields_of
from keepline.testing import ManualClock

OPEN_INBOXES: list["Inbox"] = []


class Post:
    """Makes deliveries and closes them all in the end."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.overflows: list[Overflow] = []
        self._made: list[Delivery] = []

    def deliver(self, callback, **options) -> Delivery:
        made = Delivery(
            callback,
            **{"channel": "GatewayUserOrder", "clock": self.clock, "on_overflow": self.overflows.append, **options},
        )  # fmt: skip
        self._made.append(made)
        return made

    async def close(self) -> None:
        while OPEN_INBOXES:  # whatever failed, no thread is left waiting
            inbox = OPEN_INBOXES.pop()
            inbox.gate.set()
            inbox.open.set()
        for made in self._made:
            await made.close()


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    made = Post()
    yield made
    await made.close()


class Inbox:
    """A callback, plain or async, that remembers and can be held up."""

    def __init__(self, want: int) -> None:
        self.got: list[int] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()
        self.full = asyncio.Event()
        self._want = want
        self._loop = asyncio.get_running_loop()
        OPEN_INBOXES.append(self)

    def _take(self, number: int) -> None:
        self.got.append(number)
        self.threads.add(threading.current_thread().name)
        if len(self.got) == self._want:
            self._loop.call_soon_threadsafe(self.full.set)

    def plain(self, number: int) -> None:
        self._loop.call_soon_threadsafe(self.entered.set)
        self.gate.wait()
        self._take(number)

    async def coroutine(self, number: int) -> None:
        self.entered.set()
        await self.open.wait()
        self._take(number)


def counted(outcome: Put, channel: str) -> float:
    return delivery_module._COUNTERS[outcome].value(channel)


KINDS = pytest.mark.parametrize("kind", ["plain", "coroutine"])


@KINDS
async def test_messages_come_in_order_one_at_a_time(post: Post, kind: str) -> None:
    inbox = Inbox(500)
    delivery = post.deliver(getattr(inbox, kind))
    for number in range(500):
        assert delivery.push((number,)) is Put.QUEUED
    await inbox.full.wait()
    assert inbox.got == list(range(500))
    assert delivery.queued == 0


async def test_a_plain_function_has_a_thread_of_its_own_and_a_coroutine_the_loops(
    post: Post,
) -> None:
    plain, coroutine = Inbox(1), Inbox(1)
    post.deliver(plain.plain).push((1,))
    post.deliver(coroutine.coroutine).push((1,))
    await plain.full.wait()
    await coroutine.full.wait()
    assert coroutine.threads == {threading.current_thread().name}
    [name] = plain.threads
    assert name == "keepline callback Inbox.plain"


async def test_an_inline_function_is_called_at_once_on_the_loop(post: Post) -> None:
    got: list[tuple[int, str]] = []
    delivery = post.deliver(lambda *arguments: got.append(arguments), inline=True)
    assert delivery.push((1, "a")) is Put.QUEUED
    assert got == [(1, "a")]
    assert delivery.delivered == 1


async def test_an_async_callback_is_not_inline_whatever_is_asked(post: Post) -> None:
    inbox = Inbox(1)
    post.deliver(inbox.coroutine, inline=True).push((1,))
    assert inbox.got == []
    await inbox.full.wait()


@KINDS
async def test_a_callback_that_never_returns_stops_nobody_else(post: Post, kind: str) -> None:
    stuck, other = Inbox(1), Inbox(300)
    stuck.gate.clear()
    stuck.open.clear()
    hanging, working = post.deliver(getattr(stuck, kind)), post.deliver(getattr(other, kind))
    for number in range(300):
        hanging.push((number,))
        working.push((number,))
    await other.full.wait()
    assert other.got == list(range(300))
    assert stuck.got == []
    assert hanging.queued >= 299
    await stuck.entered.wait()
    post.clock.advance(60.0)
    assert hanging.stuck_for(post.clock.boottime()) == 60.0
    assert await working.close() == 0
    assert working.stuck_for(post.clock.boottime()) == 0.0
    stuck.gate.set()
    stuck.open.set()


@KINDS
async def test_what_a_callback_raises_is_counted_and_the_next_message_comes(
    post: Post, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(5)

    def plain(number: int) -> None:
        inbox.plain(number)
        raise ValueError("no")

    async def coroutine(number: int) -> None:
        await inbox.coroutine(number)
        raise ValueError("no")

    before = ERRORS.value("errors")
    delivery = post.deliver({"plain": plain, "coroutine": coroutine}[kind], channel="errors")
    with caplog.at_level(logging.ERROR, "keepline.stream"):
        for number in range(5):
            delivery.push((number,))
        await inbox.full.wait()
        await post.close()
    assert inbox.got == [0, 1, 2, 3, 4]
    assert (delivery.errors, delivery.delivered) == (5, 5)
    after = ERRORS.value("errors")
    assert after == before + 5
    said = [fields_of(record) for record in caplog.records if record.message == "Callback failed"]
    assert [fields["times"] for fields in said] == [1, 2, 4]  # a log is no flood
    assert said[0]["error"] == "ValueError: no"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(1)])
async def test_even_what_would_end_a_thread_does_not(post: Post, error: BaseException) -> None:
    inbox = Inbox(2)

    def callback(number: int) -> None:
        inbox.plain(number)
        raise error

    delivery = post.deliver(callback)
    delivery.push((1,))
    delivery.push((2,))
    await inbox.full.wait()
    await post.close()
    assert delivery.errors == 2


async def test_a_callback_that_cancels_itself_is_a_failure_and_not_the_end(post: Post) -> None:
    inbox = Inbox(2)

    async def callback(number: int) -> None:
        await inbox.coroutine(number)
        raise asyncio.CancelledError

    delivery = post.deliver(callback)
    delivery.push((1,))
    delivery.push((2,))
    await inbox.full.wait()
    await post.close()
    assert delivery.errors == 2


@KINDS
async def test_a_full_mailbox_is_announced_at_once_and_again_when_there_is_room(
    post: Post, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    over = asyncio.Event()
    told: list[Overflow] = []

    def listen(overflow: Overflow) -> None:
        told.append(overflow)
        if overflow.over:
            over.set()

    inbox = Inbox(4)
    inbox.gate.clear()
    inbox.open.clear()
    delivery = post.deliver(getattr(inbox, kind), limit=4, channel="flood", on_overflow=listen)
    delivery.push((0,))
    await inbox.entered.wait()  # it holds the first one
    puts = [delivery.push((number,)) for number in range(1, 8)]
    assert puts == [Put.QUEUED] * 4 + [Put.OVERFLOW] + [Put.REFUSED] * 2
    name = f"Inbox.{kind}"
    assert told == [Overflow("flood", name, 1, over=False)]
    assert delivery.missing == 3
    assert counted(Put.OVERFLOW, "flood") >= 3
    inbox.gate.set()
    inbox.open.set()
    await over.wait()
    assert told[1:] == [Overflow("flood", name, 3, over=True)]
    assert delivery.missing == 0
    assert delivery.push((8,)) is Put.QUEUED
    await post.close()
    assert inbox.got == [0, 1, 2, 3, 4, 8]
    assert delivery.queued == 0


async def test_a_listener_that_raises_is_logged(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    def listen(overflow: Overflow) -> None:
        raise RuntimeError("listener")

    inbox = Inbox(1)
    inbox.open.clear()
    delivery = post.deliver(inbox.coroutine, limit=1, on_overflow=listen)
    delivery.push((0,))
    with caplog.at_level(logging.ERROR, "keepline.stream"):
        assert delivery.push((1,)) is Put.OVERFLOW
    assert "Overflow listener failed" in [record.message for record in caplog.records]
    inbox.open.set()


async def test_an_overflow_without_a_listener_is_still_logged_and_counted(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(1)
    inbox.open.clear()
    delivery = post.deliver(inbox.coroutine, limit=1, on_overflow=None)
    delivery.push((0,))
    with caplog.at_level(logging.ERROR, "keepline.stream"):
        delivery.push((1,))
    [record] = [one for one in caplog.records if one.message == "Callback too slow, buffer full"]
    assert fields_of(record)["missing"] == 1
    inbox.open.set()


@KINDS
async def test_a_slow_callback_gets_the_newest_of_each_key(post: Post, kind: str) -> None:
    inbox = Inbox(3)
    inbox.gate.clear()
    inbox.open.clear()
    delivery = post.deliver(
        getattr(inbox, kind), policy="conflate", channel="GatewayQuote", limit=2
    )
    delivery.push((0,), "A")
    await inbox.entered.wait()
    puts = [
        delivery.push((number,), key) for number, key in ((1, "A"), (2, "B"), (3, "A"), (4, "C"))
    ]
    assert puts == [Put.QUEUED, Put.QUEUED, Put.CONFLATED, Put.DROPPED]
    inbox.gate.set()
    inbox.open.set()
    await inbox.full.wait()
    assert inbox.got == [0, 2, 4]
    assert counted(Put.CONFLATED, "GatewayQuote") >= 1
    assert counted(Put.DROPPED, "GatewayQuote") >= 1


async def test_a_plain_function_that_returns_something_to_await_is_awaited(post: Post) -> None:
    inbox = Inbox(3)
    delivery = post.deliver(lambda number: inbox.coroutine(number))
    for number in range(3):
        delivery.push((number,))
    await inbox.full.wait()
    assert inbox.got == [0, 1, 2]
    assert inbox.threads == {threading.current_thread().name}


async def test_inline_nobody_can_await_and_that_is_said(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(1)
    delivery = post.deliver(lambda number: inbox.coroutine(number), inline=True)
    with caplog.at_level(logging.ERROR, "keepline.stream"):
        delivery.push((1,))
    assert delivery.errors == 1
    assert "give the coroutine function itself" in str(fields_of(caplog.records[-1])["error"])
    future = asyncio.get_running_loop().create_future()
    post.deliver(lambda number: future, inline=True).push((1,))
    assert inbox.got == []


async def test_objects_and_partials_count_as_what_they_are(post: Post) -> None:
    inbox = Inbox(1)

    class Handler:
        async def __call__(self, number: int) -> None:
            await inbox.coroutine(number)

    delivery = post.deliver(Handler())
    delivery.push((1,))
    await inbox.full.wait()
    assert inbox.threads == {threading.current_thread().name}
    assert delivery.name.endswith("Handler")
    other = Inbox(1)
    post.deliver(functools.partial(other.coroutine, 5)).push(())
    await other.full.wait()
    assert (other.got, other.threads) == ([5], {threading.current_thread().name})


async def test_a_coroutine_that_never_really_waits_leaves_the_loop_to_others(post: Post) -> None:
    got: list[int] = []

    async def callback(number: int) -> None:
        got.append(number)

    delivery = post.deliver(callback)
    for number in range(1000):
        delivery.push((number,))
    turns = 0
    while len(got) < 1000:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 1000 // 32
    assert got == list(range(1000))


# --- the end ---


@KINDS
async def test_close_delivers_what_waits(post: Post, kind: str) -> None:
    inbox = Inbox(50)
    delivery = post.deliver(getattr(inbox, kind))
    for number in range(50):
        delivery.push((number,))
    assert await delivery.close() == 0
    assert inbox.got == list(range(50))
    assert delivery.push((51,)) is Put.REFUSED
    assert await delivery.close() == 0


@KINDS
async def test_close_does_not_wait_for_a_callback_that_hangs(
    post: Post, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(1)
    inbox.gate.clear()
    inbox.open.clear()
    delivery = post.deliver(getattr(inbox, kind))
    for number in range(3):
        delivery.push((number,))
    await inbox.entered.wait()
    closing = asyncio.ensure_future(delivery.close(drain_seconds=5.0))
    with caplog.at_level(logging.ERROR, "keepline.stream"):
        await post.clock.run_until(closing.done)
    assert closing.result() == 2
    assert post.clock.boottime() == pytest.approx(5.0)
    left = [fields_of(one) for one in caplog.records if one.message == "Callback left behind"]
    assert [fields["reason"] for fields in left] == (["it does not return"] if kind == "plain" else [])  # fmt: skip
    inbox.gate.set()


async def test_close_leaves_a_coroutine_behind_that_ignores_its_cancellation(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    inbox, let_go = Inbox(1), asyncio.Event()

    async def stubborn(number: int) -> None:
        inbox.entered.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    delivery = post.deliver(stubborn)
    delivery.push((1,))
    await inbox.entered.wait()
    closing = asyncio.ensure_future(delivery.close(drain_seconds=5.0))
    with caplog.at_level(logging.ERROR, "keepline.stream"):
        await post.clock.run_until(closing.done)
    [record] = [one for one in caplog.records if one.message == "Callback left behind"]
    assert fields_of(record)["reason"] == "it does not end when it is cancelled"
    let_go.set()


async def test_whoever_stops_waiting_for_close_leaves_no_task_behind(post: Post) -> None:
    inbox = Inbox(1)
    inbox.open.clear()
    delivery = post.deliver(inbox.coroutine)
    delivery.push((1,))
    await inbox.entered.wait()
    closing = asyncio.ensure_future(delivery.close(drain_seconds=5.0))
    await post.clock.until_asleep()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.sleep(0)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("keepline callback")]


async def test_closing_ends_what_a_thread_waits_for_on_the_loop(post: Post) -> None:
    inbox = Inbox(1)
    inbox.open.clear()
    delivery = post.deliver(lambda number: inbox.coroutine(number))
    delivery.push((1,))
    await inbox.entered.wait()
    closing = asyncio.ensure_future(delivery.close(drain_seconds=1.0))
    await post.clock.run_until(closing.done)
    assert inbox.got == []


async def test_a_delivery_without_messages_has_no_worker_to_close(post: Post) -> None:
    before = threading.active_count()
    delivery = post.deliver(lambda: None)
    assert threading.active_count() == before
    assert await delivery.close() == 0


def test_a_thread_survives_the_end_of_its_loop() -> None:
    """The callback goes on for what it holds, finds no loop, and ends in peace."""
    entered, gate, ended = threading.Event(), threading.Event(), threading.Event()

    async def nothing() -> None: ...

    def callback(number: int):
        entered.set()
        gate.wait()
        ended.set()
        return nothing()

    async def main() -> tuple[Delivery, threading.Thread]:
        delivery = Delivery(callback, channel="GatewayQuote", clock=ManualClock())
        delivery.push((1,))
        await asyncio.to_thread(entered.wait)
        await delivery.close(drain_seconds=0.0)
        [thread] = [one for one in threading.enumerate() if "callback" in one.name]
        return delivery, thread

    delivery, thread = asyncio.run(main())
    gate.set()
    thread.join()
    assert ended.is_set()
    assert delivery.errors == 1  # nobody was there to await what it returned


@pytest.mark.parametrize(
    ("options", "key"),
    [({"callback": 5}, "callback"), ({"policy": "newest"}, "policy"), ({"limit": 0}, "limit")],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Delivery(**{"callback": print, "channel": "x", **options})
    assert caught.value.key == key


def test_its_repr_tells_what_goes_on() -> None:
    delivery = Delivery(print, channel="GatewayQuote")
    assert repr(delivery) == "<Delivery GatewayQuote to print, 0 queued, 0 errors>"
    assert (delivery.channel, delivery.name) == ("GatewayQuote", "print")
