"""A broker in memory: links whose answers a test writes down, in the order in which they are made."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from keepline.stream.events import EventKind, StreamEvent
from keepline.stream.manager import StreamManager
from keepline.stream.port import Lost, Sink, Topic
from keepline.stream.redial import DialLimiter
from keepline.stream.settings import StreamSettings
from keepline.testing import ManualClock

Answer = BaseException | str | None
HANG = "hang"


@dataclass
class Script:
    """What one connection does; an exception is raised, HANG never answers, None is a yes."""

    open: Answer = None
    make: Exception | None = None
    subscribe: dict[str, list[Answer]] = field(default_factory=dict)
    unsubscribe: Answer = None
    probe: Answer = None
    has_probe: bool = True
    close: Answer = None
    on_open: Callable[["ScriptedLink"], None] | None = None
    on_subscribe: Callable[["ScriptedLink", Topic], None] | None = None


class ScriptedLink:
    """One connection to the broker in memory."""

    def __init__(self, broker: "ScriptedBroker", number: int, script: Script) -> None:
        self.broker = broker
        self.number = number
        self.script = script
        self.asked: list[tuple[str, str]] = []
        self.sink: Sink | None = None
        self.probes = 0
        self.closes = 0
        self._lost: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()

    async def open(self, sink: Sink) -> None:
        self.sink = sink
        await obey(self.script.open)
        self.broker.open_links += 1
        if self.script.on_open is not None:
            self.script.on_open(self)

    async def subscribe(self, topic: Topic) -> None:
        self.asked.append(("subscribe", topic.name))
        answers = self.script.subscribe.get(topic.name, [])
        await obey(answers.pop(0) if answers else None)
        if self.script.on_subscribe is not None:
            self.script.on_subscribe(self, topic)

    async def unsubscribe(self, topic: Topic) -> None:
        self.asked.append(("unsubscribe", topic.name))
        await obey(self.script.unsubscribe)

    async def probe(self) -> bool:
        self.probes += 1
        await obey(self.script.probe)
        return self.script.has_probe

    async def close(self) -> None:
        self.closes += 1
        if self.closes == 1:
            self.broker.closed.append(self.number)
        self.end(Lost("stopped"))
        await obey(self.script.close)

    async def closed(self) -> Lost:
        return await asyncio.shield(self._lost)

    def end(self, lost: Lost) -> None:
        if not self._lost.done():
            self._lost.set_result(lost)

    def bring(self, channel: str, *arguments: Any) -> None:
        assert self.sink is not None
        self.sink(channel, arguments, self.broker.clock.boottime())

    @property
    def subscribed(self) -> list[str]:
        return [name for action, name in self.asked if action == "subscribe"]


class ScriptedBroker:
    """Makes links, each after its script; without one everything is answered with yes."""

    def __init__(self, clock: Any, scripts: Sequence[Script] = ()) -> None:
        self.clock = clock
        self.scripts = list(scripts)
        self.links: list[ScriptedLink] = []
        self.dialed_at: list[float] = []
        self.closed: list[int] = []
        self.open_links = 0

    def __call__(self) -> ScriptedLink:
        script = self.scripts.pop(0) if self.scripts else Script()
        if script.make is not None:
            raise script.make
        link = ScriptedLink(self, len(self.links), script)
        self.links.append(link)
        self.dialed_at.append(self.clock.boottime())
        return link

    @property
    def last(self) -> ScriptedLink:
        return self.links[-1]


async def obey(answer: Answer) -> None:
    if answer is HANG:
        await asyncio.get_running_loop().create_future()
    if isinstance(answer, BaseException):
        raise answer


QUOTES = Topic("Quote", ("Quotes", "MNQ"), ("NoQuotes", "MNQ"), key="MNQ", policy="conflate")
ORDERS = Topic("Order", ("Orders", 1), ("NoOrders", 1))


class Bench:
    """A manager, its broker and its clock, and what a bot was told."""

    def __init__(self, *scripts: Script, chance: float = 0.5, **options: Any) -> None:
        self.clock = options.pop("clock", None) or ManualClock(chance=chance)
        self.broker = ScriptedBroker(self.clock, scripts)
        settings = options.pop("settings", StreamSettings())
        options.setdefault("dial_limiter", DialLimiter(burst=1000))
        self.manager = StreamManager(
            self.broker,
            name=options.pop("name", "test"),
            settings=settings,
            clock=self.clock,
            **options,
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
        await self.drive(self.manager.connect(until=until))  # type: ignore[arg-type]

    async def drive(self, work: Coroutine[Any, Any, None]) -> None:
        """Await something while time runs, if anybody waits for time."""
        task = asyncio.ensure_future(work)
        ticking = asyncio.ensure_future(self.until(task.done))
        await asyncio.wait({task, ticking}, return_when=asyncio.FIRST_COMPLETED)
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        await task

    @property
    def link(self) -> ScriptedLink:
        return self.broker.last


@asynccontextmanager
async def bench(*scripts: Script, **options: Any) -> AsyncIterator[Bench]:
    made = Bench(*scripts, **options)
    try:
        yield made
    finally:
        await made.drive(made.manager.disconnect())


async def settle() -> None:
    """Let everything run that can run without time."""
    for _ in range(30):
        await asyncio.sleep(0)
