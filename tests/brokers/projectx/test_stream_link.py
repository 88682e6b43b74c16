"""A ProjectX connection around any other: what passes, what ends it, and renewal by age on a clock moved by hand."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from keepline.brokers.projectx.displaced import Displaced
from keepline.brokers.projectx.stream import ProjectXStream
from keepline.brokers.projectx.stream_link import ProjectXLink
from keepline.brokers.projectx.stream_messages import LOGOUT, ORDER
from keepline.brokers.projectx.stream_reading import Doubt, Heard
from keepline.model import Account
from keepline.stream.dial_budget import DialLimiter
from keepline.stream.port import Lost, Sink, Topic
from keepline.testing import ManualClock

VALUE = Account(id="7")
TOPIC = Topic(ORDER, ("SubscribeOrders", 7), key="7")


class Wireless:
    """A connection without a wire: a `Link` that a test speaks through."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.sink: Sink | None = None
        self.end: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()

    async def open(self, sink: Sink) -> None:
        self.sink = sink

    async def subscribe(self, topic: Topic) -> None:
        self.said.append(f"+{topic.name}")

    async def unsubscribe(self, topic: Topic) -> None:
        self.said.append(f"-{topic.name}")

    async def probe(self) -> bool:
        self.said.append("?")
        return True

    async def close(self) -> None:
        self.said.append("close")
        if not self.end.done():
            self.end.set_result(Lost("stopped"))

    async def closed(self) -> Lost:
        return await asyncio.shield(self.end)

    def tell(self, channel: str, *arguments: Any) -> None:
        assert self.sink is not None
        self.sink(channel, arguments, 1.0)


class Sunk:
    """Everything that came out."""

    def __init__(self) -> None:
        self.inner = Wireless()
        self.out: list[tuple[str, Sequence[Any], float]] = []
        self.heard: list[Heard] = []
        self.doubts: list[Doubt] = []
        self.ends: list[Lost] = []
        self.link = ProjectXLink(
            self.inner,
            read=self.read,
            doubt=self.doubts.append,
            displaced=Displaced(),
            heard=self.heard.append,
            ended=self.ends.append,
        )

    def read(self, channel: str, arguments: Sequence[Any]) -> Sequence[Heard | Doubt]:
        return [Heard("7", VALUE), Doubt(channel, "odd")]

    def sink(self, channel: str, arguments: Sequence[Any], at: float) -> None:
        assert self.heard, "what must not wait comes first"
        self.out.append((channel, arguments, at))


async def test_values_go_on_with_their_key_and_doubts_apart() -> None:
    sunk = Sunk()
    await sunk.link.open(sunk.sink)
    sunk.inner.tell(ORDER, {"id": 1})
    assert sunk.out == [(ORDER, ("7", VALUE), 1.0)]
    assert (sunk.heard, sunk.doubts) == ([Heard("7", VALUE)], [Doubt(ORDER, "odd")])


async def test_requests_pass_through() -> None:
    sunk = Sunk()
    await sunk.link.open(sunk.sink)
    await sunk.link.subscribe(TOPIC)
    assert await sunk.link.probe()
    await sunk.link.unsubscribe(TOPIC)
    await sunk.link.close()
    assert sunk.inner.said == [f"+{TOPIC.name}", "?", f"-{TOPIC.name}", "close"]
    assert await sunk.link.closed() == Lost("stopped")
    assert await sunk.link.closed() == Lost("stopped")
    assert sunk.ends == [Lost("stopped")]
    assert "Wireless" in repr(sunk.link)


async def test_after_a_logout_nothing_is_heard_and_the_connection_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sunk = Sunk()
    await sunk.link.open(sunk.sink)
    ended = asyncio.ensure_future(sunk.link.closed())
    sunk.inner.tell(LOGOUT, {"reason": "?"})
    sunk.inner.tell(ORDER, {"id": 1})
    lost = await ended
    assert (lost.reason, lost.allow_reconnect, sunk.out) == ("close", True, [])
    assert "Stream displaced" in caplog.text


async def test_connections_are_renewed_before_a_token_is_a_day_old() -> None:
    clock = ManualClock()
    made: list[Wireless] = []

    def connect(_: str) -> Wireless:
        made.append(Wireless())
        return made[-1]

    dials = DialLimiter()
    stream = ProjectXStream(
        "token", contracts=["MNQ"], links=connect, dial_limiter=dials, clock=clock
    )
    async with stream:
        assert len(made) == 1
        for number in (2, 3):
            begin = clock.boottime()
            await clock.run_until(lambda wanted=number: len(made) == wanted)
            assert 70_000 < clock.boottime() - begin < 80_000
            await clock.run_until(lambda old=made[-2]: "close" in old.said)
            assert "close" not in made[-1].said
