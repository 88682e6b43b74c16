"""Events of accounts: once to everyone, in order, gateway first, and what a snapshot told is marked."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from msgspec.structs import replace

from keepline.brokers import account_listeners
from keepline.brokers.account_events import AccountEvents
from keepline.errors import ConfigError
from keepline.model import Account, Fill, Order, OrderStatus, OrderType, Position, Side
from keepline.stream.delivery import Overflow
from keepline.stream.snapshot import Discrepancy, DiscrepancyKind, Snapshot
from keepline.stream.view import Change
from keepline.testing import ManualClock

AT = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
ORDER = Order(
    id="11",
    account="7",
    instrument="MNQ",
    side=Side.BUY,
    type=OrderType.MARKET,
    status=OrderStatus.OPEN,
    quantity=Decimal(2),
    entered_at=AT,
)


def fill(number: int) -> Fill:
    return Fill(
        id=str(number),
        order_id="11",
        account="7",
        instrument="MNQ",
        side=Side.BUY,
        quantity=Decimal(1),
        price=Decimal("1.5"),
        at=AT,
    )


class Shown:
    """A broker that shows what it has."""

    def __init__(self) -> None:
        self.fills: tuple[Fill, ...] = ()

    async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
        held = Decimal(len(self.fills))
        there = (Position(account="7", instrument="MNQ", quantity=held),) if held else ()
        return Snapshot(
            taken_at=AT,
            since=since,
            scope=tuple(accounts),
            accounts=(Account(id="7"),),
            orders=(),
            open_orders=(ORDER,),
            positions=there,
            fills=self.fills,
        )


class Heard:
    """A listener on the loop that can be waited for."""

    def __init__(self) -> None:
        self.items: list[object] = []
        self._more = asyncio.Event()

    async def __call__(self, item: object) -> None:
        self.items.append(item)
        self._more.set()

    async def until(self, count: int) -> list[object]:
        while len(self.items) < count:
            self._more.clear()
            await self._more.wait()
        return self.items


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
async def events(shown: Shown) -> AsyncIterator[AccountEvents]:
    made = AccountEvents(shown, ["7"], name="test", clock=ManualClock())
    yield made
    await made.stop(drain_seconds=0)


async def test_what_the_stream_tells_is_told_once(events: AccountEvents) -> None:
    orders, fills = Heard(), Heard()
    events.listen(Order, orders)
    events.listen(Fill, fills)
    await events.reconciliation.reconcile()
    for _ in range(2):
        events.receive(fill(1))
        events.receive(fill(2))
    assert await fills.until(2) == [fill(1), fill(2)]
    assert await orders.until(1) == [ORDER]
    assert set(events.view.fills) == {"1", "2"}


async def test_what_a_snapshot_told_is_marked_and_the_discrepancy_said(
    events: AccountEvents, shown: Shown
) -> None:
    fills, differed = Heard(), Heard()
    events.listen(Fill, fills, full=True)
    events.listen(Discrepancy, differed)
    await events.reconciliation.reconcile()
    events.receive(fill(1))
    events.reconciliation.lost()
    shown.fills = (fill(1), fill(2))
    await events.reconciliation.reconcile()
    streamed, recovered = await fills.until(2)
    assert streamed == Change(fill(1))
    assert recovered == Change(fill(2), recovered=True)
    (found,) = await differed.until(1)
    assert isinstance(found, Discrepancy)
    assert (found.kind, found.id) == (DiscrepancyKind.MISSED_FILL, "2")


async def test_a_gateway_sees_orders_and_fills_before_any_listener(events: AccountEvents) -> None:
    seen: list[Order | Fill] = []
    end = events.observe_with(seen.append)
    await events.reconciliation.reconcile()
    events.receive(fill(1))
    assert seen == [ORDER, fill(1)]
    end()
    end()
    events.receive(fill(2))
    assert len(seen) == 2


async def test_a_gateway_that_raises_stops_nothing(
    events: AccountEvents, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Order | Fill) -> None:
        raise RuntimeError("no journal")

    fills = Heard()
    events.observe_with(broken)
    events.listen(Fill, fills)
    await events.reconciliation.reconcile()
    events.receive(fill(1))
    assert await fills.until(1) == [fill(1)]
    assert "could not take in an event" in caplog.text


async def test_a_listener_that_left_hears_nothing_more(events: AccountEvents) -> None:
    left, stayed = Heard(), Heard()
    end = events.listen(Fill, left)
    events.listen(Fill, stayed)
    await events.reconciliation.reconcile()
    end()
    end()
    events.receive(fill(1))
    await stayed.until(1)
    assert left.items == []


async def test_a_listener_that_is_too_slow_is_told_of(shown: Shown) -> None:
    told: list[Overflow] = []
    events = AccountEvents(
        shown, ["7"], name="test", mailbox=1, on_overflow=told.append, clock=ManualClock()
    )
    go_on = asyncio.Event()

    async def slow(_: Fill) -> None:
        await go_on.wait()

    events.listen(Fill, slow)
    await events.reconciliation.reconcile()
    for number in range(1, 4):
        events.receive(fill(number))
    assert [(overflow.channel, overflow.over) for overflow in told] == [("fill", False)]
    assert len(events.view.fills) == 3  # the view has what the listener could not take
    go_on.set()
    await events.stop()


@pytest.mark.parametrize("plain", [False, True])
async def test_what_a_slow_listener_missed_comes_once_there_is_room(
    shown: Shown, plain: bool
) -> None:
    told: list[Overflow] = []
    events = AccountEvents(
        shown, ["7"], name="test", mailbox=2, on_overflow=told.append, clock=ManualClock()
    )
    loop, heard = asyncio.get_running_loop(), Heard()
    go_on, thread_goes_on = asyncio.Event(), threading.Event()

    async def slow(change: Change) -> None:
        await go_on.wait()
        await heard(change)

    def slow_and_plain(change: Change) -> None:
        thread_goes_on.wait()
        asyncio.run_coroutine_threadsafe(heard(change), loop).result()

    await events.reconciliation.reconcile()
    events.listen(Fill, slow_and_plain if plain else slow, full=True)
    for number in range(1, 20):
        events.receive(fill(number))
    assert len(told) == 1
    go_on.set()
    thread_goes_on.set()
    got = await heard.until(19)
    events.receive(fill(20))
    got = await heard.until(20)
    assert [change.value.id for change in got] == [str(n) for n in range(1, 21)]  # type: ignore[attr-defined]
    late = [change.recovered for change in got]  # type: ignore[attr-defined]
    assert (late[0], late[-2:]) == (False, [True, False])
    assert [overflow.over for overflow in told] == [False, True] * (len(told) // 2)
    await events.stop()


async def test_of_what_changed_often_a_slow_listener_gets_the_newest_state(shown: Shown) -> None:
    events = AccountEvents(shown, ["7"], name="test", mailbox=1, clock=ManualClock())
    go_on, heard = asyncio.Event(), Heard()

    async def slow(change: Change) -> None:
        await go_on.wait()
        await heard(change)

    await events.reconciliation.reconcile()
    events.listen(Order, slow, full=True)
    states = [
        replace(ORDER, limit_price=Decimal(price), updated_at=AT + timedelta(seconds=price))
        for price in range(1, 10)
    ]
    for state in states:
        events.receive(state)
        await asyncio.sleep(0)
    go_on.set()
    got = await heard.until(3)
    assert got[0] == Change(states[0], ORDER)
    assert got[1] == Change(states[1], states[0])
    assert got[2] == Change(states[-1], states[1], recovered=True)
    await events.stop()


async def test_what_is_owed_to_a_listener_is_bounded_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(account_listeners, "MOST_OWED", 3)
    never = asyncio.Event()

    async def hangs(_: object) -> None:
        await never.wait()

    listener = account_listeners.AccountListener(
        hangs, channel="x", full=False, mailbox=1, on_overflow=lambda _: None, clock=ManualClock()
    )
    for number in range(9):
        listener.tell(Change(fill(number)))
    for _ in range(2):
        listener.tell(Discrepancy(DiscrepancyKind.MISSED_FILL, "7", "1"))
        listener.tell(Change(Position(account="7", instrument="MNQ", quantity=Decimal(1))))
        listener.tell(Change(Account(id="7")))
    assert listener.owed == 3
    assert "3 owed" in repr(listener)
    await listener.close(0)
    assert listener.owed == 0


class Gateway:
    """What an order gateway is told."""

    def __init__(self) -> None:
        self.seen: list[Order | Fill] = []
        self.looked: list[str] = []

    def observe(self, seen: Order | Fill) -> None:
        self.seen.append(seen)

    async def catch_up(self, account: str) -> None:
        self.looked.append(account)


async def test_a_gateway_that_is_fed_looks_when_no_event_explains_a_difference(
    events: AccountEvents, shown: Shown
) -> None:
    gateway, differed = Gateway(), Heard()
    end = events.feed(gateway)  # type: ignore[arg-type]
    events.listen(Discrepancy, differed)
    await events.reconciliation.reconcile()
    assert gateway.seen == [ORDER]
    gone = replace(ORDER, id="12", entered_at=ManualClock().wall() + timedelta(days=400))
    events.receive(gone)
    events.reconciliation.lost()
    await events.reconciliation.reconcile()
    (found,) = await differed.until(1)
    assert isinstance(found, Discrepancy)
    assert (found.kind, gateway.looked) == (DiscrepancyKind.MISSING_ORDER, ["7"])
    end()
    end()
    events.receive(fill(1))
    assert gateway.seen == [ORDER, gone]


async def test_a_gateway_that_cannot_take_a_discrepancy_stops_nothing(
    events: AccountEvents, shown: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Gateway):
        def observe(self, seen: Order | Fill) -> None:
            raise RuntimeError("no journal")

    differed = Heard()
    events.feed(Broken())  # type: ignore[arg-type]
    events.listen(Discrepancy, differed)
    await events.reconciliation.reconcile()
    events.reconciliation.lost()
    shown.fills = (fill(1),)
    await events.reconciliation.reconcile()
    await differed.until(1)
    assert "could not take in a discrepancy" in caplog.text


@pytest.mark.parametrize("how", ["end", "stop"])
async def test_what_ends_leaves_no_task_behind(events: AccountEvents, how: str) -> None:
    looking = asyncio.Event()

    class Slow(Gateway):
        async def catch_up(self, account: str) -> None:
            looking.set()
            await asyncio.Event().wait()

    before = asyncio.all_tasks()
    fills = Heard()
    ends = [events.feed(Slow()), events.listen(Fill, fills)]  # type: ignore[arg-type]
    await events.reconciliation.reconcile()
    events.receive(fill(1))
    await fills.until(1)
    events.receive(replace(ORDER, id="12", entered_at=ManualClock().wall() + timedelta(days=400)))
    events.reconciliation.lost()
    await events.reconciliation.reconcile()
    await looking.wait()
    assert asyncio.all_tasks() > before
    if how == "stop":
        await events.stop()
        ends = []
    for end in ends:
        end()
    for _ in range(20):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_gateway_is_fed_and_not_called(events: AccountEvents) -> None:
    with pytest.raises(ConfigError, match="an order gateway is fed with `feed`"):
        events.observe_with(Gateway())  # type: ignore[arg-type]


async def test_a_listener_is_a_function(events: AccountEvents) -> None:
    with pytest.raises(ConfigError, match="a callback is a function"):
        events.listen(Fill, "print")  # type: ignore[arg-type]
    assert "AccountEvents" in repr(events)
