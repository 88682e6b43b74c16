"""Claims about what an order gateway learns from a stream and its reconciliation."""

import asyncio
import logging
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from msgspec.structs import replace
from tests.brokers.orders.venue import (
    BY_LOOKS,
    TAGGED,
    Disk,
    MemoryJournal,
    PlainBroker,
    Venue,
    accepted_but_lost,
    order_intent,
)

from keepline.brokers.base import Evidence, IntentKind, Source
from keepline.brokers.orders import How, OrderGateway, OrderOutcome, State
from keepline.brokers.orders.feeding import GatewayFeed
from keepline.brokers.orders.matching import Found, Window, examine, whole_view
from keepline.brokers.orders.resolution import Ticket
from keepline.model import Account, Order, OrderStatus, OrderType
from keepline.stream.snapshot import Discrepancy, DiscrepancyKind
from keepline.stream.view import Change
from keepline.testing import ManualClock

K = DiscrepancyKind


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.venue = Venue(self.clock)
        self.broker = PlainBroker(self.venue)
        self.gateway = OrderGateway(self.broker, MemoryJournal(Disk()), clock=self.clock)
        self.feed = GatewayFeed(self.gateway)

    async def lost_entry(self, name: str = "entry") -> "asyncio.Task[OrderOutcome]":
        """An order whose answer is lost, and that nothing but the stream can show."""
        self.broker.blind = dict.fromkeys(Source, "503")
        self.broker.script = [accepted_but_lost]
        outcome = await self.gateway.place(order_intent(name, deadline_seconds=0.0001))
        return asyncio.create_task(outcome.final())

    def order(self) -> Order:
        return list(self.venue.orders.values())[-1]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.gateway:
        yield made


async def unknown(bench: Bench) -> "asyncio.Task[OrderOutcome]":
    work = asyncio.create_task(bench.lost_entry())
    await bench.clock.run_until(work.done)
    return work.result()


async def test_an_order_of_the_stream_settles_an_unknown_outcome(bench: Bench) -> None:
    final = await unknown(bench)
    bench.feed.changed(Change(bench.order()))
    outcome = await final
    assert (outcome.accepted, outcome.how, outcome.order_id) == (True, "stream", bench.order().id)


async def test_an_order_that_only_a_snapshot_shows_settles_it_too(bench: Bench) -> None:
    final = await unknown(bench)
    bench.feed.changed(Change(bench.order(), recovered=True))
    bench.feed.differs(Discrepancy(K.UNKNOWN_ORDER, "A", "1", None, bench.order()))
    assert (await final).accepted


async def test_a_discrepancy_alone_settles_it_with_what_the_broker_shows(bench: Bench) -> None:
    final = await unknown(bench)
    bench.feed.differs(Discrepancy(K.UNKNOWN_ORDER, "A", "1", None, bench.order()))
    assert (await final).accepted


async def test_a_missed_fill_is_told_once_by_whatever_way_it_came(bench: Bench) -> None:
    told: list[object] = []
    bench.gateway.subscribe_fills(told.append)
    await bench.gateway.place(order_intent("entry"))
    fill = bench.venue.fills[0]
    bench.feed.changed(Change(fill, recovered=True))
    bench.feed.differs(Discrepancy(K.MISSED_FILL, "A", fill.id, None, fill))
    bench.feed.changed(Change(fill))
    await bench.clock.run_until(lambda: told, limit=1)
    assert told == [fill]
    assert await bench.gateway.fills(fill.order_id) == [fill]


@pytest.mark.parametrize("kind", [K.MISSING_ORDER, K.POSITION_BREAK])
async def test_a_difference_that_no_event_explains_makes_the_gateway_look_once(
    bench: Bench, kind: DiscrepancyKind
) -> None:
    for _ in range(3):
        bench.feed.differs(Discrepancy(kind, "A", "1"))
    await bench.feed.drain()
    assert [query.account for query in bench.broker.queries] == ["A"]
    bench.feed.differs(Discrepancy(kind, "A", "1"))
    await bench.feed.drain()
    assert len(bench.broker.queries) == 2


async def test_to_settle_a_difference_is_to_have_looked(bench: Bench) -> None:
    await bench.feed.settle(Discrepancy(K.POSITION_BREAK, "A", "MNQ"))
    assert len(bench.broker.queries) == 1


@pytest.mark.parametrize("kind", [K.BALANCE_BREAK, K.MISSED_FILL, K.ORDER_BREAK, K.UNKNOWN_ORDER])
async def test_other_differences_call_for_no_look(bench: Bench, kind: DiscrepancyKind) -> None:
    bench.feed.differs(Discrepancy(kind, "A", "1"))
    bench.feed.changed(Change(Account(id="A", balance=Decimal(1))))
    await bench.feed.drain()
    assert bench.broker.queries == []


async def test_a_gateway_that_was_stopped_does_not_break_the_stream(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.gateway.place(order_intent("entry"))
    await bench.gateway.stop()
    bench.feed.changed(Change(bench.order()))
    with caplog.at_level(logging.WARNING, logger="keepline.orders"):
        bench.feed.differs(Discrepancy(K.MISSING_ORDER, "A", "1"))
        await bench.feed.drain()
    assert [r.message for r in caplog.records if r.levelno > logging.INFO] == ["Order look failed"]


async def test_a_difference_found_during_a_look_gets_a_look_of_its_own(bench: Bench) -> None:
    bench.feed.differs(Discrepancy(K.MISSING_ORDER, "A", "1"))
    await bench.clock.run_until(lambda: bench.broker.queries, limit=0)
    bench.feed.differs(Discrepancy(K.MISSING_ORDER, "A", "2"))
    await bench.feed.drain()
    assert len(bench.broker.queries) == 2


async def test_looks_end_with_the_feed_and_a_bug_in_one_is_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    async def hangs(_: str) -> None:
        asked.set()
        await never.wait()

    async def breaks(_: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.gateway, "catch_up", hangs)
    bench.feed.differs(Discrepancy(K.MISSING_ORDER, "A", "1"))
    await asked.wait()
    await bench.feed.stop()
    monkeypatch.setattr(bench.gateway, "catch_up", breaks)
    await bench.feed.settle(Discrepancy(K.MISSING_ORDER, "A", "1"))
    assert [r.message for r in caplog.records if r.levelno > logging.INFO] == ["Order look failed"]


# --- beside it: what an outcome says ---


def test_a_rejected_replacement_says_that_the_old_order_is_gone() -> None:
    clock = ManualClock()
    venue = Venue(clock, keeps_tags=False)
    old = venue.take(order_intent("o", type=OrderType.LIMIT, limit_price=Decimal(90)))
    new = replace(old, id="99", limit_price=Decimal(91), status=OrderStatus.REJECTED)
    gone = replace(old, status=OrderStatus.CANCELLED)
    intent = order_intent("m", kind=IntentKind.MODIFY, target_order_id=old.id, type=None, side=None)
    intent = replace(intent, limit_price=Decimal(91), quantity=None)
    view = whole_view(Evidence(history=(gone, new)))
    window = Window(clock.wall(), clock.wall())
    finding = examine(intent, view, BY_LOOKS, window, lambda _: None)
    assert finding.what is Found.NO
    assert f"order {old.id}, which it was to replace, is gone all the same" in finding.reason


def test_a_step_that_is_not_in_the_table_is_an_error_also_without_assertions() -> None:
    ticket = Ticket(order_intent("entry"), TAGGED)
    ticket.unsent("no")
    with pytest.raises(RuntimeError, match="REFUSED cannot become SENT"):
        ticket.send(ManualClock().wall())
    assert (ticket.state, ticket.how) == (State.REFUSED, How.UNSENT)
