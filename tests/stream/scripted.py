"""A broker in memory: links whose answers a test writes down, in the order in which they are made."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from keepline.stream.port import Lost, Sink, Topic

Answer = BaseException | str | None
HANG = "hang"


@dataclass
class Script:
    """What one connection does; an exception is raised, HANG never answers, None is a yes."""

    open: Answer = None
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
