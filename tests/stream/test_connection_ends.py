"""How a connection fails to start and how it ends: each in words, typed, and with everybody who waits told."""

import asyncio
import gc
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from aiohttp import WSMsgType, web
from tests.stream.loopback import Handler, raw_serving, serving, websocket
from tests.stream.scripted_hub import Heard, Peer, Script, ScriptedHub, listen

from keepline.errors import (
    Closed,
    ConfigError,
    CredentialError,
    KeeplineError,
    OutcomeUnknown,
    PermanentError,
    TransientError,
)
from keepline.stream.connection import SignalRConnection
from keepline.stream.events import ConnectionState
from keepline.stream.port import Lost
from keepline.stream.tokens import StreamTokens
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock

SECRET = "eyJ.very.secret"


@asynccontextmanager
async def connected(
    script: Script, *, stateful: bool = False, **options: object
) -> AsyncIterator[SignalRConnection]:
    async with (
        serving(ScriptedHub(script, stateful=stateful)) as site,
        SignalRConnection(f"{site.url}/hub", stateful=stateful, **options) as hub,  # type: ignore[arg-type]
    ):
        yield hub


async def start_failure(handler: Handler, **options: object) -> KeeplineError:
    async with serving(handler) as site:
        return await failure_at(f"{site.url}/hub", **options)


async def failure_at(url: str, **options: object) -> KeeplineError:
    hub = SignalRConnection(url, **options)  # type: ignore[arg-type]
    with pytest.raises(KeeplineError) as caught:
        await hub.start()
    assert hub.state is ConnectionState.DISCONNECTED
    assert (await hub.closed()).reason != "stopped"
    return caught.value


# ------------------------------------------------------------------------------------------------ starts


async def test_nobody_at_the_address() -> None:
    async with raw_serving(lambda *_: asyncio.sleep(0)) as url:
        pass
    error = await failure_at(f"{url}/hub")
    assert isinstance(error, TransientError)
    assert "cannot connect" in str(error)


async def test_a_plain_web_server_and_a_page_at_negotiate() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>", content_type="text/html")

    assert "web page" in str(await start_failure(page))
    assert "SignalR endpoint" in str(await start_failure(page, skip_negotiation=True))


async def test_a_websocket_server_that_speaks_something_else() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        async for message in socket:
            await socket.send_str(f"hello{message.data}")
        return socket

    error = await start_failure(echo, skip_negotiation=True)
    assert isinstance(error, PermanentError)
    assert "does not speak the hub protocol" in str(error)


async def test_a_handshake_that_is_refused_or_ends_the_connection() -> None:
    refused = await start_failure(ScriptedHub(listen, handshake='{"error":"no such protocol"}\x1e'))
    assert isinstance(refused, PermanentError)
    assert "refused the handshake: no such protocol" in str(refused)

    async def leave(peer: Peer) -> None:
        peer.cut()

    cut = await start_failure(ScriptedHub(leave, handshake=None))
    assert isinstance(cut, TransientError)
    assert "before the handshake was done" in str(cut)


async def test_a_handshake_without_an_answer_ends_in_time() -> None:
    clock = ManualClock()
    heard = Heard()
    hub = ScriptedHub(heard, handshake=None)
    async with serving(hub) as site:
        connection = SignalRConnection(f"{site.url}/hub", handshake_timeout=7.0, clock=clock)
        starting = asyncio.ensure_future(connection.start())
        await heard.peers.get()
        clock.advance(7.0)
        with pytest.raises(TransientError, match="within 7 s") as caught:
            await starting
        assert caught.value.category == "timeout"


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 503])
async def test_each_status_at_the_connect_is_told_apart(status: int) -> None:
    hub = ScriptedHub(listen)
    hub.refuse = {1: status}
    error = await start_failure(hub)
    assert (error.status, str(status) in str(error)) == (status, True)  # type: ignore[attr-defined]


async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()

    for stop in (True, False):
        asked = asyncio.Event()
        async with raw_serving(silent) as url:
            hub = SignalRConnection(f"{url}/hub")
            starting = asyncio.ensure_future(hub.start())
            await asked.wait()
            if stop:
                await hub.stop()
                with pytest.raises(Closed, match="stopped while it started"):
                    await starting
            else:
                starting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await starting
            assert (await hub.closed()).reason == "stopped"


async def test_a_stop_during_the_handshake_ends_the_start() -> None:
    heard = Heard()
    alarms: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: alarms.append(context))
    async with serving(ScriptedHub(heard, handshake=None)) as site:
        hub = SignalRConnection(f"{site.url}/hub")
        starting = asyncio.ensure_future(hub.start())
        await heard.peers.get()
        await hub.stop()
        with pytest.raises(Closed):
            await starting
        assert await heard.messages.get() is None
        del hub, starting
        gc.collect()
    assert alarms == [], "nobody is left to be told, and nobody is alarmed"


async def test_a_token_source_without_a_token_is_told_as_it_said_it() -> None:
    def none() -> str:
        raise CredentialError("sign in first")

    error = await start_failure(ScriptedHub(listen), access_token=none)
    assert str(error) == "sign in first"


async def test_after_a_refusal_a_newer_token_is_asked_for() -> None:
    asked: list[int | None] = []

    class Holder:
        async def get(self, *, newer_than: int | None = None) -> object:
            asked.append(newer_than)
            return Held(f"t{len(asked)}", len(asked))

    class Held(NamedTuple):
        access_token: str
        generation: int

    tokens = StreamTokens(Holder())  # type: ignore[arg-type]
    hub = ScriptedHub(listen)
    hub.refuse = {1: 401}
    assert (await start_failure(hub, access_token=tokens)).status == 401  # type: ignore[attr-defined]
    tokens.refused()
    async with serving(ScriptedHub(listen)) as site, SignalRConnection(f"{site.url}/hub", tokens):
        assert site.tokens == ["Bearer t3", "Bearer t4"]
    assert asked == [None, None, 2, None]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"encoding": "xml"}, "encoding"),
        ({"token_in": "cookie"}, "token_in"),
        ({"keep_alive": 0}, "keep_alive"),
        ({"server_timeout": float("nan")}, "server_timeout"),
        ({"handshake_timeout": -1}, "handshake_timeout"),
        ({"result_timeout": float("inf")}, "result_timeout"),
        ({"max_running": 0}, "max_running"),
        ({"url": "example.com"}, "url"),
        ({"access_token": 5}, "token"),
        ({"transports": ("pigeons",)}, "transports"),
        ({"transports": ("polling",), "skip_negotiation": True}, "skip_negotiation"),
        ({"url": "http://example.com/hub", "access_token": "t"}, "url"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(
    options: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        SignalRConnection(**{"url": "https://example.com/hub", **options})  # type: ignore[arg-type]
    assert caught.value.key == key


# ------------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize("token_in", ["header", "query"])
async def test_the_token_is_in_no_message_log_repr_or_error(
    token_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    heard = Heard(pings=True)
    hub = ScriptedHub(heard)
    async with serving(hub) as site:
        connection = SignalRConnection(f"{site.url}/hub", SECRET, token_in=token_in)  # type: ignore[arg-type]
        async with connection:
            await connection.send("Hello", 1)
            messages = [await heard.messages.get() for _ in range(2)]
            text = f"{connection!r} {connection._carriage!r} {hub.handshakes} {messages}"
            peer = await heard.peers.get()
            peer.cut()
            text += repr(await connection.closed())
            with pytest.raises(TransientError) as caught:
                await connection.invoke("X")
        text += f"{caught.value!r}"
        ours = [r.getMessage() + str(r.__dict__) for r in caplog.records if "keepline" in r.name]
        assert SECRET not in text + "".join(ours)
        assert "private" not in text + "".join(ours), "the id of the connection is a secret too"
        where = {"header": lambda r: r[2], "query": lambda r: r[1]}[token_in]
        assert [SECRET in str(where(request)) for request in site.requests] == [True, True]
        other = {"header": lambda r: r[1], "query": lambda r: r[2]}[token_in]
        assert [SECRET in str(other(request)) for request in site.requests] == [False, False]


# -------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("no json\x1e", ""),
        ('{"type":1}\x1e', ""),
        ('{"type":1,"target":"a","arguments":[],"invocationId":""}\x1e', ""),
        ('{"type":3,"invocationId":"1","result":1,"error":"x"}\x1e', ""),
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_told_and_left(raw: str, words: str) -> None:
    heard = Heard()
    async with connected(heard) as hub:
        peer = await heard.peers.get()
        await peer.raw(raw)
        lost = await hub.closed()
        assert (lost.reason, lost.allow_reconnect) == ("protocol", True)
        assert lost.error
        assert (await heard.messages.get() or {})["type"] == 7, "the server is told why"


async def test_invalid_utf_8_is_counted_and_the_rest_goes_on() -> None:
    heard = Heard()
    before = strays("misfit")
    async with connected(heard) as hub:
        peer = await heard.peers.get()
        ticks: asyncio.Queue[str] = asyncio.Queue()
        hub.on("tick", ticks.put_nowait)
        frame = b'{"type":1,"target":"tick","arguments":["\xff\xfe"]}\x1e'
        await peer.socket.send_frame(frame, WSMsgType.TEXT)
        await peer.call("tick", "é")
        assert await ticks.get() == "é"
    assert strays("misfit") == before + 1


def strays(kind: str) -> float:
    return REGISTRY.counter("stream_stray_total", "", "kind").value(kind)


async def test_a_frame_above_the_limit_ends_it_and_names_the_setting() -> None:
    heard = Heard()
    async with connected(heard, max_message_bytes=100_000) as hub:
        peer = await heard.peers.get()
        await peer.call("big", "x" * 100_000)
        lost = await hub.closed()
        assert lost.reason == "protocol"
        assert "max_message_bytes=100000" in str(lost.error)


async def test_ten_mebibytes_in_one_message_are_no_trouble() -> None:
    heard = Heard()
    async with connected(heard) as hub:
        sizes: asyncio.Queue[int] = asyncio.Queue()
        hub.on("big", lambda text: sizes.put_nowait(len(text)))
        await (await heard.peers.get()).call("big", "x" * (10 << 20))
        assert await sizes.get() == 10 << 20


async def test_messages_for_nobody_are_harmless_and_counted() -> None:
    heard = Heard()
    kinds = ("completion", "item", "cancellation", "misfit")
    before = [strays(kind) for kind in kinds]
    async with connected(heard) as hub:
        peer = await heard.peers.get()
        ticks: asyncio.Queue[int] = asyncio.Queue()
        hub.on("tick", ticks.put_nowait)
        hub.on("typed", ticks.put_nowait, int)
        await peer.say(
            {"type": 3, "invocationId": "77", "result": 1},
            {"type": 2, "invocationId": "78", "item": 1},
            {"type": 5, "invocationId": "79"},
            {"type": 8, "sequenceId": 5},
            {"type": 9, "sequenceId": 0},
            {"type": 99, "anything": True},
            {"type": 1, "target": "typed", "arguments": ["no number"]},
            {"type": 1, "target": "nobody", "arguments": []},
            {"type": 1, "target": "tick", "arguments": [1]},
        )
        assert await ticks.get() == 1
        assert hub.state is ConnectionState.CONNECTED
    assert [strays(kind) for kind in kinds] == [count + 1 for count in before]


@pytest.mark.parametrize("sequence", [0, -1, 5])
async def test_a_sequence_that_cannot_be_ends_a_stateful_connection(sequence: int) -> None:
    heard = Heard()
    async with connected(heard, stateful=True) as hub:
        await (await heard.peers.get()).say({"type": 9, "sequenceId": sequence})
        lost = await hub.closed()
        assert lost.reason == "protocol"
        assert str(sequence) in str(lost.error)


async def test_a_handler_that_raises_or_never_returns_stops_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard = Heard()
    async with connected(heard) as hub:
        peer = await heard.peers.get()
        ticks: asyncio.Queue[int] = asyncio.Queue()

        def broken(_: int) -> None:
            raise ValueError("oops")

        async def late_broken(_: int) -> None:
            raise ValueError("oops")

        async def never(_: int) -> None:
            await asyncio.Event().wait()

        for handler in (broken, late_broken, never, ticks.put_nowait):
            hub.on("tick", handler)
        for number in range(3):
            await peer.call("tick", number)
        assert [await ticks.get() for _ in range(3)] == [0, 1, 2]
        answer = asyncio.ensure_future(hub.invoke("Fine"))
        message = await heard.messages.get()
        assert message is not None
        await peer.say({"type": 3, "invocationId": message["invocationId"], "result": "yes"})
        assert await answer == "yes"
    assert "Stream handler failed" in caplog.text


async def test_a_recorder_that_fails_stops_recording_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chunks = 0

    def full(data: bytes | str, at: float) -> None:
        nonlocal chunks
        chunks += 1
        raise OSError("disk full")

    heard = Heard()
    async with connected(heard, tap=full) as hub:
        ticks: asyncio.Queue[int] = asyncio.Queue()
        hub.on("tick", ticks.put_nowait)
        await (await heard.peers.get()).call("tick", 1)
        assert await ticks.get() == 1
    assert chunks == 1
    assert "Stream recording stopped" in caplog.text


# -------------------------------------------------------------------------------------------------- time


async def test_a_ping_goes_out_at_once_and_after_silence_of_ours() -> None:
    clock = ManualClock()
    heard = Heard(pings=True)
    async with connected(heard, clock=clock, keep_alive=10.0, server_timeout=1000.0):
        assert await heard.messages.get() == {"type": 6}
        for _ in range(3):
            await clock.until_asleep()
            clock.advance(10.0)
            assert await heard.messages.get() == {"type": 6}


async def test_silence_of_the_server_ends_the_connection() -> None:
    clock = ManualClock()
    heard = Heard()
    async with connected(heard, clock=clock, server_timeout=30.0) as hub:
        peer = await heard.peers.get()
        waiting = asyncio.ensure_future(hub.invoke("Wait"))
        await heard.messages.get()
        clock.advance(29.0)
        await peer.call("tick")
        ticked = asyncio.Event()
        hub.on("tick", ticked.set)
        await ticked.wait()
        clock.advance(29.0)
        await peer.call("tick")  # what arrives counts from then on
        assert hub.state is ConnectionState.CONNECTED
        await clock.run_until(lambda: hub.state is ConnectionState.DISCONNECTED)
        lost = await hub.closed()
        assert (lost.reason, lost.error) == ("timeout", "nothing arrived from the server for 30 s")
        with pytest.raises(OutcomeUnknown):
            await waiting


async def test_a_call_with_a_time_limit_ends_unknown() -> None:
    clock = ManualClock()
    heard = Heard()
    async with connected(heard, clock=clock, server_timeout=1000.0) as hub:
        call = asyncio.ensure_future(hub.invoke("Wait", timeout_seconds=3.0))
        await heard.messages.get()
        clock.advance(3.0)
        with pytest.raises(OutcomeUnknown, match="no answer within 3 s") as caught:
            await call
        assert (caught.value.category, caught.value.endpoint) == ("timeout", "invoke Wait")
        late = asyncio.ensure_future(hub.invoke("Next"))
        message = await heard.messages.get()
        assert message is not None
        peer = await heard.peers.get()
        await peer.say({"type": 3, "invocationId": "1", "result": "too late"})
        await peer.say({"type": 3, "invocationId": message["invocationId"], "result": 2})
        assert await late == 2


# ----------------------------------------------------------------------------------------- how it ended


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ({"type": 7}, Lost("close", None, False)),
        ({"type": 7, "error": "bye", "allowReconnect": True}, Lost("close", "bye", True)),
    ],
)
async def test_a_close_of_the_server_is_obeyed(message: dict[str, object], lost: Lost) -> None:
    async def say(peer: Peer) -> None:
        await peer.say(message)
        await listen(peer)

    async with connected(say) as hub:
        assert await hub.closed() == lost


async def test_a_close_frame_without_a_message_lets_us_come_back() -> None:
    async def leave(peer: Peer) -> None:
        await peer.socket.close(code=1001)

    async with connected(leave) as hub:
        lost = await hub.closed()
    assert (lost.reason, lost.allow_reconnect) == ("close", True)
    assert "1001" in str(lost.error)


async def test_a_stop_says_close() -> None:
    heard = Heard()
    async with connected(heard):
        pass
    assert await heard.messages.get() == {"type": 7}
    assert await heard.messages.get() is None


async def test_the_place_of_a_lost_send_is_told() -> None:
    heard = Heard()
    async with connected(heard) as hub:
        await hub.send("Fine")
        peer = await heard.peers.get()
        peer.cut()
        await hub.closed()
        with pytest.raises(TransientError, match="there is no connection"):
            await hub.send("Lost")
        with pytest.raises(TransientError):
            _ = [item async for item in hub.stream("Lost")]


async def test_what_cannot_be_sent_is_refused_before_it_leaves() -> None:
    heard = Heard()
    async with connected(heard) as hub:
        with pytest.raises(ConfigError):
            await hub.invoke("X", object())
        with pytest.raises(ConfigError, match="buffer"):
            await anext(hub.stream("X", buffer=0))
        await hub.send("Y")
        assert (await heard.messages.get() or {})["target"] == "Y"


def test_nothing_of_aiohttp_is_loaded_before_the_start() -> None:
    program = (
        "import sys; from keepline.stream.connection import SignalRConnection; "
        "SignalRConnection('https://example.com/hub', 'token'); print('aiohttp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


async def test_who_gives_up_tells_the_server_at_once_and_wants_no_late_answer() -> None:
    clock = ManualClock()
    heard = Heard()
    async with connected(heard, clock=clock, server_timeout=1000.0) as hub:
        peer = await heard.peers.get()
        call = asyncio.ensure_future(hub.invoke("Wait", timeout_seconds=3.0))
        asked = await heard.messages.get()
        assert asked is not None
        clock.advance(3.0)
        with pytest.raises(OutcomeUnknown):
            await call
        before = strays("completion")
        ticked = asyncio.Event()
        hub.on("tick", ticked.set)
        await peer.say({"type": 3, "invocationId": asked["invocationId"], "result": 1})
        await peer.call("tick")
        await ticked.wait()
        assert strays("completion") == before

        items = hub.stream("Count")
        first = asyncio.ensure_future(anext(items))
        opened = await heard.messages.get()
        assert opened is not None
        await peer.say({"type": 2, "invocationId": opened["invocationId"], "item": 1})
        assert await first == 1
        await items.aclose()
        assert await heard.messages.get() == {"type": 5, "invocationId": opened["invocationId"]}
