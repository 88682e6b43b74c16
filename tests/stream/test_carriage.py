"""A conversation over its transports: reattach without a lost message, room for senders, last words, no task left."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from tests.stream.loopback import Handler, Site, serving
from tests.stream.scripted_hub import Heard, Peer, Script, ScriptedHub

from keepline.errors import OutcomeUnknown, PermanentError, TransientError
from keepline.stream.carriage import Carriage
from keepline.stream.codec import codec
from keepline.stream.connection import SignalRConnection
from keepline.stream.dialling import Dialled
from keepline.stream.events import ConnectionState
from keepline.stream.port import Lost
from keepline.stream.transport import Ending, EndingKind, Receiver
from keepline.stream.wire import HubWire
from keepline.testing import ManualClock


@asynccontextmanager
async def stateful(
    script: Script, **options: Any
) -> AsyncIterator[tuple[SignalRConnection, ScriptedHub, Site]]:
    server = ScriptedHub(script, stateful=True)
    async with serving(server) as site:
        hub = SignalRConnection(f"{site.url}/hub", stateful=True, **options)
        async with hub:
            yield hub, server, site


def holding_the_second(
    server: ScriptedHub, arrived: asyncio.Event, go_on: asyncio.Event
) -> Handler:
    """The second WebSocket is not accepted before it may be."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if server.peers == 1 and not request.path.endswith("negotiate"):
            arrived.set()
            await go_on.wait()
        return await server(request)

    return handle


def ours(tasks: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Those that run code of the stream."""
    return [task for task in tasks if "keepline/stream/" in repr(task)]


async def test_a_stateful_handshake_says_version_two() -> None:
    async with stateful(Heard()) as (_, server, _):
        assert server.handshakes == [{"protocol": "json", "version": 2}]


async def test_after_a_cut_the_conversation_goes_on_where_it_was() -> None:
    heard = Heard()
    async with stateful(heard) as (hub, server, site):
        first = await heard.peers.get()
        got: asyncio.Queue[int] = asyncio.Queue()
        hub.on("tick", got.put_nowait)
        call = asyncio.ensure_future(hub.invoke("Wait"))
        asked = await heard.messages.get()
        assert asked is not None
        await first.call("tick", 1)
        assert await got.get() == 1
        first.cut()
        assert await heard.messages.get() is None
        second = await heard.peers.get()
        assert second.number == 2
        assert await heard.messages.get() == {"type": 9, "sequenceId": 1}
        assert await heard.messages.get() == asked, "what was not acknowledged is said again"
        # the server repeats the tick, which was delivered, and goes on
        await second.say(
            {"type": 9, "sequenceId": 1},
            {"type": 1, "target": "tick", "arguments": [1]},
            {"type": 1, "target": "tick", "arguments": [2]},
            {"type": 3, "invocationId": asked["invocationId"], "result": "kept"},
        )
        assert await call == "kept"
        assert await got.get() == 2
        assert got.empty()
        assert hub.state is ConnectionState.CONNECTED
        assert len(server.handshakes) == 1, "no second handshake"
        assert [path for path in site.paths if "negotiate" in path] == site.paths[:1]
        assert site.paths[1:] == ["GET /hub?id=private"] * 2


async def test_what_is_said_while_the_transport_is_gone_is_said_later() -> None:
    heard = Heard()
    server = ScriptedHub(heard, stateful=True)
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async with (
        serving(holding_the_second(server, arrived, go_on)) as site,
        SignalRConnection(f"{site.url}/hub", stateful=True) as hub,
    ):
        (await heard.peers.get()).cut()
        assert await heard.messages.get() is None
        await arrived.wait()
        assert hub.state is ConnectionState.RECONNECTING
        call = asyncio.ensure_future(hub.invoke("Later"))
        await asyncio.sleep(0)
        go_on.set()
        peer = await heard.peers.get()
        assert await heard.messages.get() == {"type": 9, "sequenceId": 1}
        asked = await heard.messages.get()
        assert asked is not None
        assert asked["target"] == "Later"
        await peer.say(
            {"type": 9, "sequenceId": 1},
            {"type": 3, "invocationId": asked["invocationId"], "result": 5},
        )
        assert await call == 5


async def test_a_reattach_that_is_refused_is_not_repeated() -> None:
    heard = Heard()
    async with stateful(heard) as (hub, server, _):
        server.refuse = {2: 404}
        call = asyncio.ensure_future(hub.invoke("Wait"))
        await heard.messages.get()
        (await heard.peers.get()).cut()
        lost = await hub.closed()
        assert (lost.reason, lost.allow_reconnect) == ("cut", True)
        assert "the reattach failed: GET /hub: 404" in str(lost.error)
        with pytest.raises(OutcomeUnknown, match="404"):
            await call
        assert server.peers == 2


async def test_a_polite_close_is_not_answered_with_a_reattach() -> None:
    async def leave(peer: Peer) -> None:
        await peer.socket.close()

    async with stateful(leave) as (hub, server, _):
        assert (await hub.closed()).reason == "close"
        assert server.peers == 1


async def test_a_cut_before_the_server_spoke_after_a_reattach_ends_it() -> None:
    async def cut(peer: Peer) -> None:
        peer.cut()

    async with stateful(cut) as (hub, server, _):
        assert (await hub.closed()).reason == "cut"
        assert server.peers == 2


async def test_a_stop_during_a_reattach_ends_it() -> None:
    heard = Heard()
    server = ScriptedHub(heard, stateful=True)
    arrived = asyncio.Event()

    async def never_second(request: web.Request) -> web.StreamResponse:
        if server.peers == 1 and not request.path.endswith("negotiate"):
            arrived.set()
            await asyncio.Event().wait()
        return await server(request)

    async with serving(never_second) as site:
        hub = SignalRConnection(f"{site.url}/hub", stateful=True)
        await hub.start()
        (await heard.peers.get()).cut()
        await arrived.wait()
        await hub.stop()
        assert (await hub.closed()).reason == "stopped"


async def test_what_arrives_is_acknowledged_within_a_second() -> None:
    clock = ManualClock()
    heard = Heard()
    async with stateful(heard, clock=clock) as (hub, _, _):
        peer = await heard.peers.get()
        got: asyncio.Queue[int] = asyncio.Queue()
        hub.on("tick", got.put_nowait)
        for number in range(3):
            await peer.call("tick", number)
            await got.get()
        clock.advance(1.0)
        assert await heard.messages.get() == {"type": 8, "sequenceId": 3}


async def test_senders_wait_while_too_much_is_not_acknowledged() -> None:
    heard = Heard()
    async with stateful(heard) as (hub, _, _):
        peer = await heard.peers.get()
        await hub.send("Small", 1)
        full = asyncio.ensure_future(hub.send("Big", "x" * 100_000))
        await heard.messages.get()
        await heard.messages.get()
        assert not full.done(), "the buffer is full"
        call = asyncio.ensure_future(hub.invoke("Next"))
        ticked = asyncio.Event()
        hub.on("tick", ticked.set)
        await peer.call("tick")
        await ticked.wait()
        assert heard.messages.empty(), "a call waits for room before it is sent"
        await peer.say({"type": 8, "sequenceId": 2})
        await full
        asked = await heard.messages.get()
        assert asked is not None
        assert asked["target"] == "Next"
        await peer.say({"type": 3, "invocationId": asked["invocationId"], "result": 1})
        assert await call == 1


async def test_an_end_frees_those_who_wait_for_room() -> None:
    heard = Heard()
    async with stateful(heard) as (hub, server, _):
        server.refuse = {2: 404}
        full = asyncio.ensure_future(hub.send("Big", "x" * 100_000))
        await heard.messages.get()
        call = asyncio.ensure_future(hub.invoke("Next"))
        await asyncio.sleep(0)
        (await heard.peers.get()).cut()
        with pytest.raises(OutcomeUnknown, match="connection ended"):
            await full
        with pytest.raises(TransientError, match="nothing was sent"):
            await call


async def test_a_post_that_is_refused_ends_the_connection() -> None:
    polls: list[str] = []

    async def refuse_posts(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("negotiate"):
            offer = {"transport": "LongPolling", "transferFormats": ["Text"]}
            return web.json_response({"connectionId": "1", "availableTransports": [offer]})
        if request.method == "GET":
            polls.append("")
            if len(polls) == 1:
                return web.Response()
            if len(polls) == 2:
                return web.Response(text="{}\x1e")
            await asyncio.Event().wait()
        body = await request.text()
        return web.Response(status=503 if "Refused" in body else 200)

    async with (
        serving(refuse_posts) as site,
        SignalRConnection(f"{site.url}/hub", transports=("polling",)) as hub,
    ):
        with pytest.raises(OutcomeUnknown, match="writing failed: POST /hub: 503"):
            await hub.invoke("Refused")
        lost = await hub.closed()
        assert (lost.reason, lost.allow_reconnect) == ("cut", True)


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    heard = Heard()
    async with stateful(heard) as (hub, _, _):

        async def never(_: int) -> None:
            await asyncio.Event().wait()

        async def endless() -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        hub.on("tick", never)
        await (await heard.peers.get()).call("tick", 1)
        await hub.send("Upload", endless())
        await heard.messages.get()
        mine = asyncio.all_tasks()
        await hub.stop()
        assert len(ours(mine)) >= 6
        assert not ours(asyncio.all_tasks() - before)


async def test_cancelling_the_life_from_outside_still_tells_everyone() -> None:
    heard = Heard()
    async with stateful(heard) as (hub, _, _):
        call = asyncio.ensure_future(hub.invoke("Wait"))
        await heard.messages.get()
        life = next(task for task in asyncio.all_tasks() if task.get_name() == "stream")
        life.cancel()
        with pytest.raises(OutcomeUnknown):
            await call
        assert (await hub.closed()).reason == "stopped"


async def test_a_handler_that_cancels_the_reader_is_told_as_the_end() -> None:
    def cancel() -> None:
        raise asyncio.CancelledError

    heard = Heard()
    async with serving(ScriptedHub(heard)) as site, SignalRConnection(f"{site.url}/hub") as hub:
        hub.on("tick", cancel)
        await (await heard.peers.get()).call("tick")
        lost = await hub.closed()
    assert (lost.reason, lost.error) == ("cut", "a handler cancelled the reader")


async def test_a_reader_that_fails_ends_the_connection_in_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(BaseException):
        pass

    def broken() -> None:
        raise Broken

    heard = Heard()
    async with serving(ScriptedHub(heard)) as site, SignalRConnection(f"{site.url}/hub") as hub:
        hub.on("tick", broken)
        await (await heard.peers.get()).call("tick")
        lost = await hub.closed()
    assert (lost.reason, lost.error) == ("protocol", "the reader failed (Broken)")
    assert "Stream reader failed" in caplog.text


async def test_a_dead_peer_does_not_hold_up_the_end() -> None:
    clock = ManualClock()
    released = asyncio.Event()

    async def deaf(peer: Peer) -> None:
        await released.wait()

    async with serving(ScriptedHub(deaf)) as site:
        hub = SignalRConnection(f"{site.url}/hub", clock=clock)
        await hub.start()
        await clock.run_until(lambda: hub.state is ConnectionState.DISCONNECTED)
        assert (await hub.closed()).reason == "timeout"
        await hub.stop()
        released.set()


async def test_after_a_reattach_that_took_long_silence_ends_it_too() -> None:
    clock = ManualClock()
    heard = Heard()
    server = ScriptedHub(heard, stateful=True)
    arrived, go_on = asyncio.Event(), asyncio.Event()
    async with (
        serving(holding_the_second(server, arrived, go_on)) as site,
        SignalRConnection(f"{site.url}/hub", stateful=True, clock=clock) as hub,
    ):
        (await heard.peers.get()).cut()
        await arrived.wait()
        clock.advance(1000.0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert hub.state is ConnectionState.RECONNECTING
        go_on.set()
        assert await heard.messages.get() is None
        assert await heard.messages.get() == {"type": 9, "sequenceId": 1}
        await clock.run_until(lambda: hub.state is ConnectionState.DISCONNECTED)
        assert (await hub.closed()).reason == "timeout"
        assert server.peers == 2


async def test_senders_wait_while_the_transport_is_gone_and_too_much_was_said() -> None:
    heard = Heard()
    server = ScriptedHub(heard, stateful=True)
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async with (
        serving(holding_the_second(server, arrived, go_on)) as site,
        SignalRConnection(f"{site.url}/hub", stateful=True) as hub,
    ):
        (await heard.peers.get()).cut()
        assert await heard.messages.get() is None
        await arrived.wait()
        large = asyncio.ensure_future(hub.send("Large", "x" * 200_000))
        small = asyncio.ensure_future(hub.send("Small"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not large.done()
        assert not small.done()
        go_on.set()
        peer = await heard.peers.get()
        await peer.say({"type": 9, "sequenceId": 1}, {"type": 8, "sequenceId": 1})
        await asyncio.gather(large, small)
        targets = [(await heard.messages.get() or {}).get("target") for _ in range(3)]
        assert targets == [None, "Large", "Small"]


async def test_what_waited_to_be_written_when_the_transport_was_lost_is_said_once() -> None:
    heard = Heard()
    async with stateful(heard) as (hub, _, _):
        (await heard.peers.get()).cut()
        sends: list[asyncio.Future[None]] = []
        while (
            hub.state is ConnectionState.CONNECTED
        ):  # some are made in the very moment of the loss
            sends.append(asyncio.ensure_future(hub.send("Late", len(sends))))
            await asyncio.sleep(0)
        await heard.peers.get()
        while await heard.messages.get() is not None:
            pass
        assert await heard.messages.get() == {"type": 9, "sequenceId": 1}
        for number in range(len(sends)):
            message = await heard.messages.get()
            assert message is not None
            assert message["arguments"] == [number]
        await asyncio.gather(*sends)
        await hub.stop()
        assert await heard.messages.get() == {"type": 7}


async def test_silence_is_not_answered_with_a_goodbye() -> None:
    clock = ManualClock()
    heard = Heard()
    async with serving(ScriptedHub(heard)) as site:
        hub = SignalRConnection(f"{site.url}/hub", clock=clock)
        await hub.start()
        peer = await heard.peers.get()
        await clock.run_until(lambda: hub.state is ConnectionState.DISCONNECTED)
        await hub.stop()
        while await heard.messages.get() is not None:
            pass
        assert peer.socket.close_code == 1006


async def test_a_start_that_fails_leaves_no_task() -> None:
    async with serving(ScriptedHub(Heard(), handshake='{"error":"no"}\x1e')) as site:
        with pytest.raises(PermanentError):
            await SignalRConnection(f"{site.url}/hub").start()
        assert not ours(asyncio.all_tasks())


async def test_a_new_transport_that_comes_too_late_is_closed() -> None:
    class Line:
        name = "websockets"
        inherent_keep_alive = False
        closed = False

        async def run(self, receiver: Receiver) -> Ending:
            receiver(b"{}\x1e")
            return Ending(EndingKind.CUT, "cut")

        async def write(self, chunks: Sequence[bytes]) -> None:
            pass

        async def close(self) -> None:
            self.closed = True

        async def abort(self) -> None:
            pass

    class Late:
        async def reattach(self, lost: Dialled) -> Dialled:
            carriage.close()  # somebody stops in this moment
            return lost._replace(transport=second)

    second = Line()
    wire = HubWire(codec("json"), stateful=True)
    first = Dialled(Line(), "id", True, None, "http://h/hub")  # type: ignore[arg-type]
    ends: list[Lost] = []
    carriage = Carriage(
        wire,
        Late(),  # type: ignore[arg-type]
        first,
        receive=wire.receive,
        sink=lambda _: None,
        ended=lambda lost, _: ends.append(lost),
        reattaching=lambda _: None,
        tap=None,
        clock=ManualClock(),
    )
    await carriage.run()
    assert second.closed
    assert [lost.reason for lost in ends] == ["stopped"]
