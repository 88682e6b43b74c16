"""Claims about the way from "something happened to this order" to the order: asked once, never given up in silence."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import pytest

from keepline.brokers.account_events import AccountEvents
from keepline.brokers.schwab import order_refresh
from keepline.brokers.schwab.order_refresh import OrderRefresh
from keepline.brokers.schwab.streamer_messages import AccountActivity
from keepline.brokers.schwab.streamer_state import SUBSCRIBED
from keepline.errors import TransientError
from keepline.stream.snapshot import Snapshot
from keepline.testing import ManualClock

ACCOUNT = "10000001"


class Broker:
    """Answers about orders by script, and shows empty accounts."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.answers: list[Exception | asyncio.Event] = []
        self.asked: list[int] = []
        self.looks = 0
        self.news = asyncio.Event()

    async def order(self, account: str, number: int) -> Any:
        self.asked.append(number)
        self.news.set()
        answer = self.answers.pop(0) if self.answers else TransientError("503")
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = TransientError("503")
        raise answer

    async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
        self.looks += 1
        return Snapshot(
            taken_at=self.clock.wall(),
            since=since,
            scope=tuple(accounts),
            accounts=(),
            orders=(),
            open_orders=(),
            positions=(),
            fills=(),
        )

    async def until(self, count: int) -> None:
        while len(self.asked) < count:
            self.news.clear()
            await self.news.wait()


class Bench:
    def __init__(self) -> None:
        self.broker = Broker()
        self.events = AccountEvents(self.broker, [ACCOUNT], name="test", clock=self.broker.clock)
        client: Any = self.broker
        self.it = OrderRefresh(client, self.events, [ACCOUNT])

    def hear(self, order: str, account: str = ACCOUNT, kind: str = "OrderCreated") -> None:
        self.it.hear(AccountActivity(1, account, kind, "", order))

    async def look_follows(self) -> None:
        before = self.broker.looks
        await self.broker.clock.run_until(lambda: self.broker.looks > before, limit=10)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    await made.it.start()
    await made.events.start()
    await made.events.reconciliation.reconcile()
    yield made
    await made.it.stop()
    await made.events.stop()


@pytest.mark.parametrize("error", [TransientError("503"), ZeroDivisionError("a shape of theirs")])
async def test_an_order_that_cannot_be_had_is_looked_for_and_the_next_one_is_asked_for(
    bench: Bench, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    bench.broker.answers = [error]
    bench.hear("1")
    await bench.broker.until(1)
    await bench.look_follows()
    bench.hear("2")
    await bench.broker.until(2)
    assert "Order refresh failed" in caplog.text


async def test_an_order_is_asked_for_once_however_much_happened_and_again_for_what_came_meanwhile(
    bench: Bench,
) -> None:
    gate = asyncio.Event()
    bench.broker.answers = [gate]
    for _ in range(5):
        bench.hear("1")
    await bench.broker.until(1)
    for _ in range(5):
        bench.hear("1")
    bench.hear("2")
    gate.set()
    await bench.broker.until(3)
    assert bench.broker.asked == [1, 1, 2]


async def test_a_greeting_is_no_activity_and_others_accounts_are_none_of_ours(bench: Bench) -> None:
    bench.hear("1", kind=SUBSCRIBED)
    bench.hear("", account="", kind=SUBSCRIBED)
    bench.hear("2", account="20000002")
    assert repr(bench.it) == "<OrderRefresh, 0 orders wait>"
    for _ in range(20):
        await asyncio.sleep(0)
    deadline = bench.events.reconciliation._reconciler.next_look
    assert deadline == 60.0, "no look was called for"
    assert bench.broker.asked == []


async def test_more_orders_than_can_wait_are_left_to_a_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_refresh, "_MOST", 3)
    gate = asyncio.Event()
    bench.broker.answers = [gate]
    bench.hear("1")
    await bench.broker.until(1)
    for number in range(2, 9):
        bench.hear(str(number))
    assert repr(bench.it) == "<OrderRefresh, 3 orders wait>"
    await bench.look_follows()
    gate.set()
    await bench.broker.until(4)
    assert bench.broker.asked == [1, 2, 3, 4]


async def test_what_waits_at_the_end_is_forgotten_and_starting_twice_starts_once() -> None:
    bench = Bench()
    bench.hear("1")
    await bench.it.stop()
    await bench.it.start()
    await bench.it.start()
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.broker.asked == []
    await bench.it.stop()
