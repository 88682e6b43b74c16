"""From the loop to callbacks."""

import asyncio
import functools
import threading

import pytest

from keepline.credentials.token import Token
from keepline.errors import ConfigError
from keepline.relay.callbacks import Callbacks
from keepline.relay.mailbox import (
    EMPTY,
    Mailbox,
    TaskCourier,
    ThreadCourier,
    is_coroutine_callback,
)
from keepline.testing import ManualClock


def test_a_mailbox_holds_the_newest_and_counts_what_it_replaced():
    box = Mailbox()
    assert box.is_empty
    assert box.take() is EMPTY
    for number in range(5):
        box.put(number)
    assert not box.is_empty
    assert (box.take(), box.skipped) == (4, 4)
    box.put(None)
    assert box.take() is None
    assert box.skipped == 4


def test_a_draining_courier_hands_over_what_is_left_at_close():
    seen, entered, free = [], threading.Event(), threading.Event()

    def slow(text):
        seen.append(text)
        entered.set()
        assert free.wait(20)

    courier = ThreadCourier(slow, full=False, clock=ManualClock(), drain=True)
    courier.open()
    courier.put(Token("one"), 0.0)
    assert entered.wait(20)
    courier.put(Token("two"), 0.0)
    courier.close()
    free.set()
    courier.join()
    assert seen == ["one", "two"]


def test_how_long_a_callback_took_counts_from_the_arrival():
    clock, called = ManualClock(), threading.Event()

    def callback(text):
        clock.advance(0.25)
        called.set()

    courier = ThreadCourier(callback, full=False, clock=clock)
    courier.open()
    courier.put(Token("one"), clock.boottime() - 1.0)
    assert called.wait(20)
    courier.close()
    courier.join()
    assert courier.last_seconds == courier.longest_seconds == 1.25
    assert "1 calls" in repr(courier)


async def test_a_task_courier_calls_back_in_order_of_newest():
    seen, gate = [], asyncio.Event()

    async def slow(token):
        seen.append(token.access_token)
        await gate.wait()

    courier = TaskCourier(slow, full=True, clock=ManualClock())
    courier.open()
    for text in ("a", "b", "c"):
        courier.put(Token(text), 0.0)
        await asyncio.sleep(0)
    gate.set()
    while courier.calls < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert seen == ["a", "c"]
    assert courier.mailbox.skipped == 1
    courier.close()
    await courier.wait_closed()


async def test_a_callback_that_closes_its_own_courier_finishes():
    finished = []

    async def closing(text):
        courier.close()
        await courier.wait_closed()
        finished.append(text)

    courier = TaskCourier(closing, full=False, clock=ManualClock())
    courier.put(Token("one"), 0.0)
    while not finished:  # noqa: ASYNC110
        await asyncio.sleep(0)


class AsyncCallable:
    async def __call__(self, text): ...


async def coroutine(text): ...


@pytest.mark.parametrize(
    ("callback", "is_coroutine"),
    [
        (print, False),
        (lambda text: None, False),
        (coroutine, True),
        (AsyncCallable(), True),
        (functools.partial(coroutine), True),
        (functools.partial(print), False),
    ],
)
def test_coroutine_callbacks_are_recognised(callback, is_coroutine):
    assert is_coroutine_callback(callback) == is_coroutine


def test_a_refused_callback_is_not_kept():
    callbacks = Callbacks(None, clock=ManualClock())
    callbacks.open(on_loop=False)
    with pytest.raises(ConfigError):
        callbacks.add(coroutine)
    with pytest.raises(ConfigError):
        callbacks.set_main(coroutine)
    callbacks.close()
    callbacks.open(on_loop=False)
    assert callbacks.stats() == []
    callbacks.close()


def test_a_failed_open_starts_no_thread():
    callbacks = Callbacks(print, clock=ManualClock())
    callbacks.add(coroutine)
    before = threading.active_count()
    with pytest.raises(ConfigError):
        callbacks.open(on_loop=False)
    assert threading.active_count() == before
