"""The manager of SignalR hubs against the sandbox's real server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from keepline.errors import ConfigError, PermanentError, StreamNotLive
from keepline.sandbox.server import SandboxServer
from keepline.stream.events import ConnectionState, EventKind, StreamEvent
from keepline.stream.health import HealthStatus
from keepline.stream.port import Topic
from keepline.stream.settings import StreamSettings
from keepline.stream.signalr_config import StreamConfig
from keepline.stream.signalr_link import SignalRLink
from keepline.stream.signalr_manager import SignalRConnectionManager
from keepline.testing import ManualClock

TICKS = Topic("Tick", ("Push", "Tick", 3))


@dataclass(frozen=True)
class Token:
    access_token: str
    token_type: str = "Bearer"
    generation: int = 1


class Tokens:
    """A holder that tells of newer tokens."""

    def __init__(self) -> None:
        self.token = Token("first")
        self.followers: list[Callable[[Token], None]] = []
        self.asked = 0

    async def get(self, *, newer_than: int | None = None) -> Token:
        self.asked += 1
        return self.token

    def subscribe(self, callback: Callable[[Token], None]) -> Callable[[], None]:
        self.followers.append(callback)
        return lambda: self.followers.remove(callback)

    def tell(self, token: Token) -> None:
        self.token = token
        for follower in self.followers:
            follower(token)


class Told:
    """What happened, to be waited for."""

    def __init__(self, streams: SignalRConnectionManager) -> None:
        self.events: list[StreamEvent] = []
        self._more = asyncio.Event()
        streams.on_event(self._told, inline=True)

    def _told(self, event: StreamEvent) -> None:
        self.events.append(event)
        self._more.set()

    async def until(self, kind: EventKind, times: int = 1) -> None:
        while sum(event.kind is kind for event in self.events) < times:
            self._more.clear()
            await self._more.wait()


@asynccontextmanager
async def streams(
    sandbox: SandboxServer, tokens: Any = None, router: Any = None, **config: Any
) -> AsyncIterator[tuple[SignalRConnectionManager, Told, ManualClock]]:
    clock = ManualClock()
    config = {"url": f"{sandbox.url}/hubs/test", **config}
    made = SignalRConnectionManager(tokens, router, config, clock=clock)
    told = Told(made)
    try:
        yield made, told, clock
    finally:
        await made.disconnect()


@pytest.mark.parametrize("encoding", ["json", "messagepack"])
async def test_a_hub_is_subscribed_called_and_heard(encoding: str) -> None:
    got: list[int] = []
    routed: list[Any] = []

    async def route(event: Any) -> None:
        routed.append(event.arguments)

    async with (
        SandboxServer() as sandbox,
        streams(sandbox, None, route, encoding=encoding, types={"Tick": (int,)}) as (made, _, __),
    ):
        end = made.subscribe(TICKS, got.append, inline=True)
        await made.connect(until="live")
        assert got == [0, 1, 2]
        assert made.is_live
        assert (made.state, made.health) == (ConnectionState.CONNECTED, HealthStatus.HEALTHY)
        assert made.reasons == ()
        assert await made.invoke("Add", 1, 2) == 3
        assert [item async for item in made.stream("Stream", 3)] == [0, 1, 2]
        made.require_live("Tick")
        end()
        await made.invoke("Push", "Tick", 1)
        assert len(got) == 3
        assert routed[:3] == [(0,), (1,), (2,)]
        assert made.stats()["signalr"]["live"]


async def test_a_cut_connection_comes_back_with_its_subscriptions() -> None:
    got: list[int] = []
    async with SandboxServer() as sandbox, streams(sandbox) as (made, told, clock):
        made.subscribe(TICKS, got.append, inline=True)
        await made.connect(until="live")
        clock.advance(1.0)  # two dials are a second apart at least
        await made.hub().link.connection.send("Die")  # type: ignore[attr-defined]
        await told.until(EventKind.LIVE, 2)
        assert got == [0, 1, 2, 0, 1, 2]


async def test_a_hub_that_aborts_is_not_dialed_again() -> None:
    async with SandboxServer() as sandbox, streams(sandbox) as (made, told, _):
        await made.connect()
        await made.hub().link.connection.send("Abort")  # type: ignore[attr-defined]
        await told.until(EventKind.LOST)
        await told.until(EventKind.ALARM)
        assert made.state is ConnectionState.FAILED
        with pytest.raises(StreamNotLive, match="failed"):
            await made.invoke("Add", 1, 2)


async def test_a_newer_token_makes_a_newer_connection_and_the_same_one_does_not() -> None:
    tokens = Tokens()
    got: list[int] = []
    async with SandboxServer() as sandbox, streams(sandbox, tokens) as (made, told, _):
        made.subscribe(TICKS, got.append, inline=True)
        await made.connect(until="live")
        first = await made.invoke("WhoAmI")
        asked = tokens.asked
        tokens.tell(Token("first"))
        for _ in range(5):
            assert await made.invoke("WhoAmI") == first
        assert tokens.asked == asked
        tokens.tell(Token("second", generation=2))
        while await made.invoke("WhoAmI") == first:
            pass
        assert EventKind.LOST not in [event.kind for event in told.events]
        assert tokens.asked > asked
        assert made.is_live
    assert tokens.followers == []


async def test_several_hubs_stand_behind_one_manager() -> None:
    got: list[Any] = []
    async with SandboxServer() as sandbox:
        config = {"url": f"{sandbox.url}/hubs", "endpoints": {"user": "test", "market": "/test"}}
        async with streams(sandbox, **config) as (made, told, _):
            made.subscribe("Tick", got.append, inline=True)
            await made.connect(until="live")
            assert sorted(made.stats()) == ["signalr/market", "signalr/user"]
            await made.invoke("Push", "Tick", 1, endpoint="user")
            await made.invoke("Push", "Tick", 1, endpoint="market")
            assert got == [0, 0]
            with pytest.raises(ConfigError, match="name one of the endpoints"):
                await made.invoke("Add", 1, 2)
            with pytest.raises(ConfigError, match="name one of the endpoints"):
                made.subscribe(TICKS)
            made.subscribe(Topic("Missing", ("Missing",)), endpoint="user")
            assert made.health is HealthStatus.DEGRADED
            made.require_live("Tick")
            with pytest.raises(StreamNotLive, match="Missing is not confirmed"):
                made.require_live()
            made.subscribe(Topic("Tock"), endpoint="user")
            made.require_live("Tock")
            remove = made.add_reconciler(asyncio.Event().wait, endpoint="market")
            await told.until(EventKind.RECONCILING)
            assert any("reconciling" in reason for reason in made.reasons)
            remove()
            made.renew()


async def test_one_hub_that_cannot_be_reached_is_the_error_of_connect() -> None:
    async with SandboxServer() as sandbox:
        config = {"url": f"{sandbox.url}/hubs", "endpoints": ["test", "none"], "attempts": 1}
        async with streams(sandbox, **config) as (made, _, __):
            with pytest.raises(PermanentError, match="404"):
                await made.connect()


@pytest.mark.parametrize("probe", [("WhoAmI",), ("NoSuchMethod",)])
async def test_any_answer_to_a_probe_is_an_answer(probe: tuple[str, ...]) -> None:
    async with SandboxServer() as sandbox:
        link = SignalRLink(f"{sandbox.url}/hubs/test", probe=probe)
        await link.open(lambda *_: None)
        assert await link.probe() is True
        await link.subscribe(Topic("Tick"))
        await link.unsubscribe(Topic("Tick", unsubscribe=("WhoAmI",)))
        await link.unsubscribe(Topic("Tick"))
        await link.close()
        assert (await link.closed()).reason == "stopped"
        assert await SignalRLink(f"{sandbox.url}/hubs/test").probe() is False


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "address of the hub is needed"),
        ({"url": "x", "heartbeats": 3}, "not known; there are attempt_timeout"),
        ({"url": "https://x", "endpoints": "user"}, "a list of paths"),
        ({"url": "https://x", "attempt_timeout": 0}, "a number of seconds above 0"),
        ("https://x", "a StreamConfig or a mapping, not str"),
        ({"url": 5}, r"\[url\]: the address of the hub is needed"),
        ({"url": "ftp://x"}, "begins with https"),
        ({"url": "http://far.example"}, "a token is only sent to an https"),
        ({"url": "https://x", "encoding": "xml"}, "say 'json' or 'messagepack'"),
        ({"url": "https://x", "transports": ()}, r"\[transports\]"),
        ({"url": "https://x", "token_in": "cookie"}, r"\[token_in\]"),
        ({"url": "https://x", "keep_alive": 0}, r"\[keep_alive\]"),
        ({"url": "https://x", "server_timeout": -1}, r"\[server_timeout\]"),
        ({"url": "https://x", "endpoints": {"user": 5}}, "a list of paths"),
        ({"url": "https://x", "endpoints": ("a/hub", "b/hub")}, "two paths end alike"),
        ({"url": "https://x", "options": {"nope": 1}}, r"\[options\]: not what a connection takes"),
        ({"url": "https://x", "types": {"Tick": int}}, "one type for each argument of Tick"),
        ({"url": "https://x", "probe": "WhoAmI"}, "a method and its arguments"),
        ({"url": "https://x", "ladder": 5}, "a Ladder, not 5"),
        ({"url": "https://x", "attempts": "3"}, "a number from 1 up, not '3'"),
        ({"url": "https://x", "mailbox": True}, "a number from 1 up, not True"),
        ({"url": "https://x", "backoff": 5}, "seconds before each dial"),
        ({"url": "https://x", "backoff": []}, "seconds before each dial"),
        ({"url": "https://x", "backoff": ["soon"]}, "seconds before each dial"),
        ({"url": "https://x", "heartbeat": "30"}, "a number of seconds above 0, not '30'"),
        ({"url": "https://x", "stale_after": float("nan")}, "a number of seconds above 0, not nan"),
        ({"url": "https://x", "min_life": "30"}, "a number, not '30'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SignalRConnectionManager(lambda: "secret", None, config)


def test_the_numbers_of_the_contract_are_the_defaults() -> None:
    config = StreamConfig(url="https://x")
    assert config.backoff == (0.0, 2.0, 10.0, 30.0, 60.0)
    assert (config.keep_alive, config.server_timeout) == (15.0, 30.0)
    assert (config.heartbeat, config.stale_after, config.attempt_timeout) == (30.0, 120.0, 15.0)
    assert (config.encoding, config.attempts) == ("json", None)
    assert config.settings == StreamSettings()


async def test_what_a_hub_says_without_being_asked_is_heard_from_its_first_frame_on() -> None:
    got: list[int] = []
    async with SandboxServer() as sandbox, streams(sandbox) as (made, _, __):
        for channel in ("Tick", "TICK"):
            made.subscribe(channel, got.append, inline=True)
        link = made._factory("", f"{sandbox.url}/hubs/test", None)()
        await link.open(lambda channel, arguments, _: got.append((channel, *arguments)))  # type: ignore[arg-type]
        await link.connection.invoke("Push", "Tick", 1)  # type: ignore[attr-defined]
        await link.close()
    assert sorted(got) == [("TICK", 0), ("Tick", 0)]  # type: ignore[comparison-overlap]


async def test_channels_are_heard_in_every_spelling_that_somebody_subscribed() -> None:
    got: list[tuple[str, int]] = []
    async with (
        SandboxServer() as sandbox,
        streams(sandbox, types={"tick": (int,)}) as (made, _, __),
    ):
        for channel in ("tick", "TICK"):
            made.subscribe(channel, lambda n, c=channel: got.append((c, n)), inline=True)
        await made.connect(until="live")
        await made.invoke("Push", "Tick", 1)
        assert sorted(got) == [("TICK", 0), ("tick", 0)]


async def test_a_block_that_is_never_entered_leaves_no_hub_behind() -> None:
    before = asyncio.all_tasks()
    async with SandboxServer() as sandbox:
        tokens = Tokens()
        config = {"url": f"{sandbox.url}/hubs", "endpoints": ["test", "none"], "attempts": 1}
        made = SignalRConnectionManager(tokens, None, config, clock=ManualClock())
        with pytest.raises(PermanentError, match="404"):
            async with made:
                raise AssertionError("one of the hubs is not there")
        assert made.hub("test").state is ConnectionState.DISCONNECTED
        assert tokens.followers == []
    assert asyncio.all_tasks() == before


def test_addresses_of_hubs_keep_the_query_and_have_names() -> None:
    config = StreamConfig(url="https://x/hubs/?a=1", endpoints=("user", "/market"))
    assert config.hubs == {"user": "https://x/hubs/user?a=1", "market": "https://x/hubs/market?a=1"}
    assert StreamConfig.of(config) is config
    assert StreamConfig.of({"url": "https://x", "backoff": [0, 1]}).backoff == (0, 1)


def test_a_router_or_token_source_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="route"):
        SignalRConnectionManager(None, 5, {"url": "https://x"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="get_token"):
        SignalRConnectionManager(5, None, {"url": "https://x"})  # type: ignore[arg-type]
