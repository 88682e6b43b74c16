"""The manager over a broker in memory: what is wanted survives, what is shown is the present or said not to be."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.stream.scripted import Script, ScriptedBroker, ScriptedLink

from keepline.stream.events import ConnectionState, EventKind, StreamEvent
from keepline.stream.health import HealthStatus
from keepline.stream.manager import StreamManager
from keepline.stream.port import Lost, Topic
from keepline.stream.settings import StreamSettings
from keepline.testing import ManualClock

QUOTES = Topic("Quote", ("Quotes", "MNQ"), ("NoQuotes", "MNQ"), key="MNQ", policy="conflate")
ORDERS = Topic("Order", ("Orders", 1), ("NoOrders", 1))


class Bench:
    """A manager, its broker and its clock, and what a bot was told."""

    def __init__(self, *scripts: Script, chance: float = 0.5, **options: Any) -> None:
        self.clock = ManualClock(chance=chance)
        self.broker = ScriptedBroker(self.clock, scripts)
        settings = options.pop("settings", StreamSettings())
        self.manager = StreamManager(
            self.broker, name="test", settings=settings, clock=self.clock, **options
        )
        self.told: list[StreamEvent] = []
        self.manager.on_event(self.told.append, inline=True)

    @property
    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.told if not event.channel]

    def count(self, kind: EventKind) -> int:
        return sum(event.kind is kind for event in self.told)

    async def until(self, condition: Callable[[], object]) -> None:
        await self.clock.run_until(condition)

    async def connect(self, until: str = "connected") -> None:
        connecting = asyncio.ensure_future(self.manager.connect(until=until))  # type: ignore[arg-type]
        await self.until(connecting.done)
        await connecting

    @property
    def link(self) -> ScriptedLink:
        return self.broker.last


@asynccontextmanager
async def bench(*scripts: Script, **options: Any) -> AsyncIterator[Bench]:
    made = Bench(*scripts, **options)
    try:
        yield made
    finally:
        leaving = asyncio.ensure_future(made.manager.disconnect())
        await made.until(leaving.done)
        await leaving


async def test_what_is_wanted_is_subscribed_and_a_bot_is_told_how_far_it_is() -> None:
    async with bench() as b:
        got: list[tuple[Any, ...]] = []
        b.manager.subscribe(QUOTES, lambda *arguments: got.append(arguments), inline=True)
        assert b.manager.state is ConnectionState.DISCONNECTED
        await b.connect("live")
        assert b.manager.state is ConnectionState.CONNECTED
        assert b.link.subscribed == ["Quote MNQ"]
        assert b.kinds == [EventKind.CONNECTED, EventKind.LIVE]
        b.link.bring("Quote", "MNQ", {"bid": 1})
        assert got == [("MNQ", {"bid": 1})]
        assert b.told[-1].kind is EventKind.FIRST_DATA
        assert (b.told[-1].channel, b.told[-1].key) == ("Quote", "MNQ")
        assert b.manager.health is HealthStatus.HEALTHY
        assert b.manager.reasons == ()


async def test_subscriptions_are_replayed_in_order_after_each_full_reconnect() -> None:
    async with bench() as b:
        names = [f"Quote {letter}" for letter in "DACB"]
        for letter in "DACB":
            b.manager.subscribe(Topic("Quote", ("Quotes", letter), key=letter))
        await b.connect("live")
        assert b.link.subscribed == names
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert b.link.number == 1
        assert b.link.subscribed == names
        assert b.kinds == [
            EventKind.CONNECTED,
            EventKind.LIVE,
            EventKind.LOST,
            EventKind.CONNECTED,
            EventKind.LIVE,
        ]
