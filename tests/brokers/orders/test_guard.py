"""Claims about the guard: a bot that is blind takes no new risk, and gets out of what it has."""

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal

import pytest
from msgspec.structs import replace
from tests.brokers.orders.venue import Disk, MemoryJournal, PlainBroker, Venue, order_intent

from keepline.brokers.base import IntentKind, OrderIntent
from keepline.brokers.orders import OrderGateway, OutcomeState, State
from keepline.errors import ConfigError, Refused
from keepline.model import OrderType, Side
from keepline.testing import ManualClock


class Guard:
    """Refuses while it is shut, and remembers whom it was asked about."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[str] = []

    def __call__(self, intent: OrderIntent) -> None:
        self.asked.append(intent.id)
        if self.error is not None:
            raise self.error


class Bench:
    def __init__(self) -> None:
        self.clock, self.guard, self.disk = ManualClock(), Guard(), Disk()
        self.broker = PlainBroker(Venue(self.clock, keeps_tags=True))
        self.journal = MemoryJournal(self.disk)
        self.gateway = OrderGateway(self.broker, self.journal, guard=self.guard, clock=self.clock)

    def shut(self) -> None:
        self.guard.error = Refused("the stream is not live")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.gateway:
        yield made


def change(name: str, kind: IntentKind, **more: object) -> OrderIntent:
    return order_intent(name, kind=kind, **more)


async def test_while_the_guard_is_shut_no_new_risk_is_sent_or_written(bench: Bench) -> None:
    entry = await bench.gateway.place(order_intent("entry"))
    bench.shut()
    before = len(bench.broker.sent)
    with pytest.raises(Refused, match="not live"):
        await bench.gateway.place(order_intent("more"))
    more = change("m", IntentKind.MODIFY, target_order_id=entry.order_id, limit_price=None)
    with pytest.raises(Refused):
        await bench.gateway.modify(more)
    assert len(bench.broker.sent) == before
    assert set(bench.disk.records) == {"entry"}
    assert await bench.gateway.outcome("more") is None


async def test_once_it_is_open_again_the_same_intent_goes_out(bench: Bench) -> None:
    bench.shut()
    with pytest.raises(Refused):
        await bench.gateway.place(order_intent("entry"))
    bench.guard.error = None
    assert (await bench.gateway.place(order_intent("entry"))).accepted


async def test_to_cancel_and_to_close_is_never_refused(bench: Bench) -> None:
    await bench.gateway.place(order_intent("entry"))
    resting = await bench.gateway.place(limit("rest"))
    bench.shut()
    off = change("off", IntentKind.CANCEL, target_order_id=resting.order_id)
    assert (await bench.gateway.cancel(off)).accepted
    part = change("part", IntentKind.PARTIAL_CLOSE)
    assert (await bench.gateway.partial_close(part)).accepted
    out = replace(change("out", IntentKind.CLOSE), quantity=None)
    assert (await bench.gateway.close(out)).state is not OutcomeState.REFUSED
    assert bench.guard.asked == ["entry", "rest"]


async def test_what_was_sent_before_keeps_its_outcome_while_it_is_shut(bench: Bench) -> None:
    gate = asyncio.Event()

    async def held_up(do: Callable[[], str]) -> str:
        await gate.wait()
        return do()

    bench.broker.script = [held_up]
    first = asyncio.create_task(bench.gateway.place(order_intent("entry")))
    await bench.clock.run_until(lambda: bench.broker.sent, limit=1)
    bench.shut()
    second = asyncio.create_task(bench.gateway.place(order_intent("entry")))
    gate.set()
    assert (await first) == (await second) == await bench.gateway.place(order_intent("entry"))
    assert (await first).accepted
    assert len(bench.broker.sent) == 1
    assert bench.guard.asked == ["entry"]


async def test_what_waits_for_another_intent_is_not_stopped_halfway(bench: Bench) -> None:
    gate = asyncio.Event()

    async def held_up(do: Callable[[], str]) -> str:
        await gate.wait()
        return do()

    bench.broker.script = [held_up]
    stop = order_intent("stop", depends_on=("entry",), side=Side.SELL)
    first = asyncio.create_task(bench.gateway.place(order_intent("entry")))
    waiting = asyncio.create_task(bench.gateway.place(stop))
    await bench.clock.run_until(lambda: len(bench.disk.records) == 2, limit=1)
    bench.shut()
    again = asyncio.create_task(bench.gateway.place(stop))
    gate.set()
    assert (await first).accepted
    assert (await waiting).accepted, "a protection is not taken away from what it protects"
    assert (await again).accepted


async def test_an_error_of_the_guard_itself_refuses_too(bench: Bench) -> None:
    bench.guard.error = ValueError("a bug of the bot")
    with pytest.raises(ValueError, match="a bug"):
        await bench.gateway.place(order_intent("entry"))
    assert bench.broker.sent == []


async def test_what_makes_no_sense_is_said_before_the_guard_is_asked(bench: Bench) -> None:
    bench.shut()
    with pytest.raises(ConfigError):
        await bench.gateway.place(replace(order_intent("entry"), quantity=None))
    assert bench.guard.asked == []


async def test_what_was_never_sent_is_a_new_decision_after_a_restart() -> None:
    bench = Bench()
    async with bench.gateway:
        await bench.gateway.place(order_intent("entry"))
    record = bench.disk.records["entry"]
    bench.disk.records["next"] = type(record)(
        **{name: getattr(record, name) for name in record.__struct_fields__}
        | {"intent": order_intent("next"), "state": State.PREPARED, "sent_at": None,
           "order_id": None}
    )  # fmt: skip
    bench.journal = MemoryJournal(bench.disk)
    again = OrderGateway(bench.broker, bench.journal, guard=bench.guard, clock=bench.clock)
    async with again:
        bench.shut()
        with pytest.raises(Refused):
            await again.place(order_intent("next"))
        assert len(bench.broker.sent) == 1
        bench.guard.error = None
        assert (await again.place(order_intent("next"))).accepted


def limit(name: str) -> OrderIntent:
    return order_intent(name, type=OrderType.LIMIT, limit_price=Decimal(90))


async def test_a_guard_that_says_false_refuses() -> None:
    bench = Bench()
    live = False
    gateway = OrderGateway(bench.broker, bench.journal, guard=lambda _: live, clock=bench.clock)
    async with gateway:
        with pytest.raises(Refused, match="refused intent entry; nothing was sent"):
            await gateway.place(order_intent("entry"))
        assert bench.broker.sent == []
        live = True
        assert (await gateway.place(order_intent("entry"))).accepted


async def test_a_guard_that_would_have_to_be_awaited_lets_nothing_pass() -> None:
    bench = Bench()

    async def later(_: OrderIntent) -> None:
        pytest.fail("nobody awaits it")

    class Later:
        async def __call__(self, _: OrderIntent) -> None:
            pytest.fail("nobody awaits it")

    for wrong in (later, Later(), "guard", 5):
        with pytest.raises(ConfigError, match=r"guard.*is a plain function"):
            OrderGateway(bench.broker, bench.journal, guard=wrong)  # type: ignore[arg-type]
    hidden = OrderGateway(
        bench.broker, bench.journal, guard=lambda intent: later(intent), clock=bench.clock
    )
    async with hidden:
        with pytest.raises(ConfigError, match="intent entry was not sent"):
            await hidden.place(order_intent("entry"))
    assert bench.broker.sent == []
