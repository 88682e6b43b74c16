"""Claims about the sandbox's streamer on a socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import (
    ClientSession,
    ClientWebSocketResponse,
    ServerDisconnectedError,
    WSMsgType,
    WSServerHandshakeError,
)

from keepline.clock import SYSTEM_CLOCK
from keepline.sandbox.book import Kind, Side, Ticket
from keepline.sandbox.server import SandboxServer
from keepline.sandbox.streamer_session import StreamerTimes
from keepline.testing import ManualClock

EQUITIES = "LEVELONE_EQUITIES"
QUICK = StreamerTimes(tick=0.02, heartbeat=0.05, idle=30.0)


class Client:
    """A client of the streamer with no code of ours in it."""

    def __init__(self, sandbox: SandboxServer, socket: ClientWebSocketResponse, info: Any) -> None:
        self.sandbox, self.socket, self.info = sandbox, socket, info
        self.number = 0

    def request(self, service: str, command: str, **parameters: str) -> dict[str, Any]:
        self.number += 1
        return {
            "service": service,
            "command": command,
            "requestid": str(self.number),
            "SchwabClientCustomerId": self.info["schwabClientCustomerId"],
            "SchwabClientCorrelId": self.info["schwabClientCorrelId"],
            "parameters": parameters,
        }

    async def send(self, service: str, command: str, **parameters: str) -> None:
        request = self.request(service, command, **parameters)
        await self.socket.send_json({"requests": [request]})

    async def login(self, token: str) -> int:
        await self.introduce(token)
        return await self.code()

    async def introduce(self, token: str) -> None:
        names = ("SchwabClientChannel", "SchwabClientFunctionId")
        said = {name: self.info[f"s{name[1:]}"] for name in names}
        await self.send("ADMIN", "LOGIN", Authorization=token, **said)

    async def was_heard(self) -> None:
        """The sandbox has read everything that was sent until now: its answer to a ping says so."""
        await self.socket.ping()
        async with asyncio.timeout(20):
            while (await self.socket.receive()).type is not WSMsgType.PONG:
                pass

    async def until(self, name: str) -> Any:
        """The next part of this name; a closed connection is None."""
        async with asyncio.timeout(20):
            while (message := await self.socket.receive()).type is WSMsgType.TEXT:
                frame = json.loads(message.data)
                if name in frame:
                    return frame[name][0]
        return None

    async def code(self) -> int:
        return (await self.until("response"))["content"]["code"]  # type: ignore[no-any-return]

    async def ended(self) -> tuple[int | None, int | None]:
        """The code of the streamer's last word and of the closed socket."""
        said = None
        async with asyncio.timeout(20):
            while (message := await self.socket.receive()).type is WSMsgType.TEXT:
                for part in json.loads(message.data).get("notify", ()):
                    said = part.get("content", {}).get("code", said)
        return said, self.socket.close_code


@asynccontextmanager
async def connected(sandbox: SandboxServer) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {sandbox.token}"}  # type: ignore[attr-defined]
    async with ClientSession() as http:
        answer = await http.get(f"{sandbox.url}/trader/v1/userPreference", headers=headers)
        [info] = (await answer.json())["streamerInfo"]
        async with http.ws_connect(info["streamerSocketUrl"], autoping=False) as socket:
            yield Client(sandbox, socket, info)


@asynccontextmanager
async def logged_in(sandbox: SandboxServer) -> AsyncIterator[Client]:
    async with connected(sandbox) as client:
        assert await client.login(sandbox.token) == 0  # type: ignore[attr-defined]
        yield client


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    async with SandboxServer(streamer=QUICK) as server:
        server.token = server.issue().access_token  # type: ignore[attr-defined]
        yield server


def pin(sandbox: SandboxServer, price: str) -> None:
    sandbox.market.pin("AAPL", Decimal(price), now=SYSTEM_CLOCK.wall().timestamp())


async def test_user_preference_leads_to_the_streamer(sandbox: SandboxServer) -> None:
    pin(sandbox, "200")
    async with logged_in(sandbox) as client:
        await client.send(EQUITIES, "SUBS", keys="AAPL", fields="0,1,2,3")
        assert await client.code() == 0
        assert (await client.until("data"))["content"][0]["3"] == 200.0
        pin(sandbox, "201")
        assert (await client.until("data"))["content"] == [
            {"key": "AAPL", "1": 201.0, "2": 201.01, "3": 201.0}
        ]
        assert (await client.until("notify"))["heartbeat"].isdecimal()
    assert sandbox.stats()["streamer_logins"] == 1


async def test_a_dead_token_is_denied_and_the_connection_ends(sandbox: SandboxServer) -> None:
    async with connected(sandbox) as client:
        assert await client.login("dead") == 3
        assert await client.ended() == (None, 1000)


async def test_two_commands_before_an_answer_are_parallel() -> None:
    clock = ManualClock()
    async with SandboxServer(clock=clock, streamer=StreamerTimes(answer=1.0, tick=60)) as sandbox:
        sandbox.token = sandbox.issue().access_token  # type: ignore[attr-defined]
        async with connected(sandbox) as client:
            await client.introduce(sandbox.token)  # type: ignore[attr-defined]
            await client.was_heard()
            clock.advance(1)
            assert await client.code() == 0
            for command in ("SUBS", "ADD", "UNSUBS"):
                await client.send(EQUITIES, command, keys="AAPL", fields="0,1")
            await client.was_heard()
            clock.advance(1)
            assert [await client.code() for _ in range(3)] == [0, 24, 23]


async def test_the_newest_login_of_a_user_has_the_stream(sandbox: SandboxServer) -> None:
    async with logged_in(sandbox) as first, logged_in(sandbox) as second:
        assert await first.ended() == (12, 1000)
        await second.send(EQUITIES, "SUBS", keys="AAPL", fields="0,1")
        assert await second.code() == 0
    assert sandbox.stats()["streamer_kicked"] == 1


async def test_a_connection_that_wants_nothing_ends() -> None:
    times = StreamerTimes(tick=0.01, idle=0.05)
    async with SandboxServer(streamer=times) as sandbox:
        sandbox.token = sandbox.issue().access_token  # type: ignore[attr-defined]
        async with logged_in(sandbox) as client:
            assert await client.ended() == (30, 1000)


@pytest.mark.parametrize(
    ("how", "end"),
    [
        ("abort", (None, 1006)),
        ("bye", (None, 1000)),
        ("close", (30, 1000)),
        ("close_reconnect", (30, 1000)),
    ],
)
async def test_a_cut_comes_in_every_way(
    sandbox: SandboxServer, how: str, end: tuple[int | None, int]
) -> None:
    async with logged_in(sandbox) as client:
        sandbox.fault("cut_stream", on="streamer", how=how)
        assert await client.ended() == end


@pytest.mark.parametrize("code", [3, 12, 20, 30])
async def test_a_code_may_be_said_by_a_fault(sandbox: SandboxServer, code: int) -> None:
    async with logged_in(sandbox) as client:
        sandbox.fault("cut_stream", on="user_hub")  # is about others
        sandbox.fault("streamer_code", code=code)
        assert await client.ended() == (code, 1000)


async def test_a_connection_may_end_right_after_its_login(sandbox: SandboxServer) -> None:
    sandbox.fault("accept_then_close", on="streamer", how="bye")
    async with logged_in(sandbox) as client:
        assert await client.ended() == (None, 1000)
    async with logged_in(sandbox) as client:
        await client.send(EQUITIES, "SUBS", keys="AAPL", fields="0,1")
        assert await client.code() == 0


async def test_a_connection_may_end_some_time_after_its_login() -> None:
    clock = ManualClock()
    async with SandboxServer(clock=clock, streamer=StreamerTimes(idle=1000)) as sandbox:
        sandbox.token = sandbox.issue().access_token  # type: ignore[attr-defined]
        sandbox.fault("accept_then_close", on="streamer", after=60, how="bye")
        async with connected(sandbox) as client:
            ended = asyncio.ensure_future(client.login(sandbox.token))  # type: ignore[attr-defined]
            await clock.run_until(ended.done)
            begun = clock.boottime()
            over = asyncio.ensure_future(client.ended())
            await clock.run_until(over.done)
            assert over.result() == (None, 1000)
            assert clock.boottime() - begun >= 59


async def test_a_command_may_cut_or_fail(sandbox: SandboxServer) -> None:
    sandbox.fault("call_fails", on="streamer", method="ADD")
    sandbox.fault("cut_on_call", on="streamer", method="VIEW", how="bye")
    async with logged_in(sandbox) as client:
        for command, code in (("SUBS", 0), ("ADD", 24), ("ADD", 0)):
            await client.send(EQUITIES, command, keys="AAPL", fields="0,1")
            assert await client.code() == code
        await client.send(EQUITIES, "VIEW", fields="0,1")
        assert await client.ended() == (None, 1000)


async def test_silence_leaves_heartbeats_and_answers_alone(sandbox: SandboxServer) -> None:
    async with logged_in(sandbox) as client:
        await client.send(EQUITIES, "SUBS", keys="AAPL", fields="0,3")
        await client.until("data")
        sandbox.fault("silent", on="streamer")
        pin(sandbox, "300")
        for _ in range(3):
            assert "heartbeat" in (await client.until("notify"))
        await client.send(EQUITIES, "VIEW", fields="0,3")
        assert await client.code() == 0
        sandbox.clear_faults()
        assert (await client.until("data"))["content"] == [{"key": "AAPL", "3": 300.0}]


async def test_answers_may_be_silent_too_and_one_frame_alone(sandbox: SandboxServer) -> None:
    async with logged_in(sandbox) as client:
        pin(sandbox, "200")
        sandbox.fault("silent", on="streamer", answers=False)
        await client.send(EQUITIES, "SUBS", keys="AAPL", fields="0,3")
        for _ in range(3):
            assert list(await client.socket.receive_json()) == ["notify"]
        assert sandbox._streamer.keys == 1
        sandbox.clear_faults()
        before = sandbox.stats()["faults"]
        sandbox.fault("black_hole", on="streamer", count=1)
        while sandbox.stats()["faults"] == before:
            await client.until("notify")
        pin(sandbox, "201")
        assert (await client.until("data"))["content"][0]["3"] == 201.0


async def test_a_black_hole_swallows_heartbeats_and_answers() -> None:
    clock = ManualClock()
    async with SandboxServer(clock=clock, streamer=StreamerTimes(idle=1000)) as sandbox:
        sandbox.token = sandbox.issue().access_token  # type: ignore[attr-defined]
        async with connected(sandbox) as client:
            login = asyncio.ensure_future(client.login(sandbox.token))  # type: ignore[attr-defined]
            await clock.run_until(login.done)
            sandbox.fault("black_hole", on="streamer", seconds=100)
            ends = clock.boottime() + 100
            await client.send(EQUITIES, "SUBS", keys="AAPL", fields="0,3")
            await client.was_heard()
            heard = asyncio.ensure_future(client.socket.receive_json())
            await clock.run_until(heard.done)
            assert clock.boottime() >= ends
            assert "response" not in heard.result()


async def test_an_order_is_filled_while_nobody_listens(sandbox: SandboxServer) -> None:
    ticket = Ticket(
        account="10000001",
        listing="AAPL",
        side=Side.BUY,
        kind=Kind.LIMIT,
        size=Decimal(4),
        limit=Decimal(1),
    )
    async with logged_in(sandbox) as client:
        placed = sandbox.market.place(ticket, now=SYSTEM_CLOCK.wall().timestamp())
        sandbox.fault("fill_while_away", part=0.5, on="streamer")
        assert await client.ended() == (None, 1006)
    assert [(fill.order, fill.size) for fill in sandbox.market.fills] == [(placed.id, 2)]


async def test_lines_may_come_twice_or_never(sandbox: SandboxServer) -> None:
    async with logged_in(sandbox) as client:
        pin(sandbox, "200")
        await client.send(EQUITIES, "SUBS", keys="AAPL", fields="0,3")
        await client.until("data")
        sandbox.fault("missing_events", on="streamer", event="CHART_EQUITY")  # is about others
        sandbox.fault("duplicate_events", on="streamer", event=EQUITIES)
        pin(sandbox, "201")
        line = {"key": "AAPL", "3": 201.0}
        assert (await client.until("data"))["content"] == [line, line]
        sandbox.fault("missing_events", on="streamer", event=EQUITIES)
        pin(sandbox, "202")
        while sandbox.stats()["faults"] < 2:
            await client.until("notify")
        pin(sandbox, "203")
        assert (await client.until("data"))["content"] == [{"key": "AAPL", "3": 203.0}]


async def test_frames_may_be_slow_and_glued(sandbox: SandboxServer) -> None:
    async with logged_in(sandbox) as client:
        sandbox.fault("glued_frames", on="streamer", count=1)
        sandbox.fault("slow_frames", on="streamer", delay=0.01, count=1)
        await client.send(EQUITIES, "SUBS", keys="AAPL", fields="0,3")
        async with asyncio.timeout(20):
            while "data" not in (frame := await client.socket.receive_json()):
                assert "notify" in frame
        assert "response" in frame
        assert sandbox.stats()["faults"] == 2


@pytest.mark.parametrize(("fault", "status"), [("429", 429), ("5xx", 503), ("html", 403)])
async def test_an_upgrade_may_be_refused(sandbox: SandboxServer, fault: str, status: int) -> None:
    sandbox.fault(fault, on="websocket")
    with pytest.raises(WSServerHandshakeError) as caught:
        async with connected(sandbox):
            pass
    assert caught.value.status == status
    sandbox.fault("slow", on="websocket", delay=0.001, count=1)
    async with connected(sandbox):
        pass


async def test_an_upgrade_may_be_cut(sandbox: SandboxServer) -> None:
    sandbox.fault("outage", on="websocket")
    with pytest.raises(ServerDisconnectedError):
        async with connected(sandbox):
            pass


async def test_a_client_that_is_too_far_behind_is_ended(
    sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepline.sandbox.schwab_streamer._MOST_WAITING", 3)
    async with logged_in(sandbox) as client:
        sandbox.fault("slow_frames", on="streamer", delay=0.5, count=1)
        assert await client.ended() == (30, 1000)


async def test_the_streamer_counts_its_connections_and_keys(sandbox: SandboxServer) -> None:
    streamer = sandbox._streamer
    async with logged_in(sandbox) as client:
        await client.send(EQUITIES, "SUBS", keys="AAPL,F", fields="0,1")
        assert await client.code() == 0
        assert (streamer.connections, streamer.keys) == (1, 2)
        assert "1 connections" in repr(streamer)


async def test_a_page_of_another_site_is_no_client(sandbox: SandboxServer) -> None:
    async with ClientSession() as http:
        with pytest.raises(WSServerHandshakeError) as caught:
            await http.ws_connect(f"{sandbox.url}/ws", origin="https://evil.invalid")
        assert caught.value.status == 403


async def test_stopping_the_sandbox_ends_every_connection(sandbox: SandboxServer) -> None:
    async with logged_in(sandbox) as client:
        await sandbox.stop()
        await client.ended()
