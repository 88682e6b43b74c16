"""One connection to a hub: against the sandbox's real server, over all transports and both encodings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from keepline.errors import (
    Closed,
    OutcomeUnknown,
    PermanentError,
    ProtocolError,
    QueueFull,
    TransientError,
)
from keepline.sandbox.server import SandboxServer
from keepline.stream.binding import Types
from keepline.stream.connection import SignalRConnection
from keepline.stream.events import ConnectionState

WAYS = [
    ("json", "websockets"),
    ("json", "events"),
    ("json", "polling"),
    ("messagepack", "websockets"),
    ("messagepack", "polling"),
]


@asynccontextmanager
async def connected(**options: object) -> AsyncIterator[SignalRConnection]:
    async with (
        SandboxServer() as sandbox,
        SignalRConnection(f"{sandbox.url}/hubs/test", **options) as hub,  # type: ignore[arg-type]
    ):
        yield hub


async def until_the_end(items: AsyncIterator[object], got: list[object]) -> None:
    async for item in items:
        got.append(item)


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@pytest.mark.parametrize(("encoding", "transport"), WAYS)
async def test_calls_go_both_ways(encoding: str, transport: str) -> None:
    async with connected(encoding=encoding, transports=(transport,)) as hub:
        assert (hub.transport, hub.state) == (transport, ConnectionState.CONNECTED)
        assert await hub.invoke("WhoAmI") == hub.connection_id
        assert await hub.invoke("add", 2, 3) == 5
        assert await hub.invoke("Nothing") is None
        got: list[int] = []
        hub.on("TICK", got.append)
        await hub.invoke("Push", "Tick", 50)
        assert got == list(range(50))
        hub.on("question", lambda text: [text, text])
        assert await hub.invoke("AskClient", "Question", "é") == ["é", "é"]
        await hub.send("Count")
        assert await hub.invoke("Count") == 2


@pytest.mark.parametrize(("encoding", "transport"), WAYS)
async def test_streams_go_both_ways(encoding: str, transport: str) -> None:
    async with connected(encoding=encoding, transports=(transport,)) as hub:
        assert [item async for item in hub.stream("Stream", 30)] == list(range(30))
        assert await hub.invoke("Upload", numbers(30)) == list(range(30))
        both = await hub.invoke("UploadTwo", numbers(2), "word", numbers(3))
        assert both == ["word", [0, 1], [0, 1, 2]]
        assert [item async for item in hub.stream("StreamBack", numbers(5))] == [0, 1, 2, 3, 4]


async def test_several_uploads_and_a_call_go_on_side_by_side() -> None:
    async with connected() as hub:
        uploads = [hub.invoke("Upload", numbers(count)) for count in (30, 40)]
        assert await asyncio.gather(*uploads, hub.invoke("Add", 1, 2)) == [
            await hub.invoke("Upload", numbers(30)),
            await hub.invoke("Upload", numbers(40)),
            3,
        ]


async def test_what_arrives_is_decoded_into_the_types_that_were_asked_for() -> None:
    class Pair(msgspec.Struct):
        left: int
        right: str = ""

    async with connected() as hub:
        given = {"left": 1, "right": "x"}
        assert await hub.invoke("Echo", given, result_type=Pair) == Pair(1, "x")
        with pytest.raises(ProtocolError, match="it worked, but what came back does not fit"):
            await hub.invoke("Echo", given, result_type=int)
        seen: list[Pair] = []
        hub.on("pair", lambda pair: seen.append(pair) or "thanks", Pair)
        assert await hub.invoke("AskClient", "pair", {"left": 2}) == "thanks"
        assert seen == [Pair(2)]
        with pytest.raises(ProtocolError):
            _ = [item async for item in hub.stream("Stream", 3, item_type=str)]


async def test_connections_that_share_a_table_of_types_do_not_disturb_each_other() -> None:
    types = Types()
    types.expect("tick", str)
    async with SandboxServer() as sandbox:
        url = f"{sandbox.url}/hubs/test"
        async with (
            SignalRConnection(url, types=types) as one,
            SignalRConnection(url, types=types) as other,
        ):
            held = asyncio.Event()

            async def hold(number: int) -> int:
                await held.wait()
                return number

            one.on("hold", hold)
            waiting = asyncio.ensure_future(one.invoke("AskClient", "hold", 7, result_type=int))
            assert await other.invoke("Echo", "text") == "text", "its id is the same"
            held.set()
            assert await waiting == 7
            one.on("tick", print, str)()  # the last handler leaves with its types
            got: list[str] = []
            other.on("tick", got.append)
            await other.invoke("Push", "tick", 2)
            assert got == [], "numbers do not fit"
    assert types.arguments("tick") == (str,)


async def test_what_the_server_says_no_to_is_explained() -> None:
    async with connected() as hub:
        for method, arguments, words in (
            ("Missing", (), "no method of this name"),
            ("Add", ("x",), "number or the types of the arguments are wrong"),
            ("Throw", ("boo",), "HubException: boo"),
            ("Stream", (1,), "call it with stream"),
        ):
            with pytest.raises(PermanentError, match=words) as caught:
                await hub.invoke(method, *arguments)
            assert caught.value.endpoint == f"invoke {method}"
        got: list[object] = []
        with pytest.raises(PermanentError, match="ran out"):
            await until_the_end(hub.stream("StreamFail", 3), got)
        assert got == [0, 1, 2]
        assert await hub.invoke("Add", 1, 1) == 2, "nothing of it harmed the connection"


async def test_leaving_a_stream_cancels_it() -> None:
    async with connected() as hub:
        items = hub.stream("StreamForever")
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
        await items.aclose()
        assert await hub.invoke("Add", 1, 1) == 2
        async for item in hub.stream("StreamForever"):
            if item == 2:
                break


async def test_a_stream_that_is_not_taken_fast_enough_ends_alone() -> None:
    async with connected() as hub:
        items = hub.stream("Stream", 100, buffer=4)
        got = [await anext(items)]
        assert await hub.invoke("Add", 1, 1) == 2
        with pytest.raises(QueueFull, match="more than 4 items wait"):
            await until_the_end(items, got)
        assert got == list(range(len(got)))
        assert await hub.invoke("Add", 1, 1) == 2


async def test_an_upload_that_fails_tells_the_server_only_its_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ValueError("a secret of ours")

    async with connected() as hub:
        with pytest.raises(PermanentError) as caught:
            await hub.invoke("Upload", broken())
        assert "secret" not in str(caught.value)
    assert "Stream upload failed" in caplog.text


async def test_an_upload_ends_with_its_call() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with connected() as hub:
        call = asyncio.ensure_future(hub.invoke("Upload", endless()))
        await hub.invoke("Count")
        call.cancel()
        await ended.wait()
        assert await hub.invoke("Add", 1, 1) == 2


async def test_an_upload_beside_a_send_goes_on_by_itself() -> None:
    exhausted = asyncio.Event()

    async def three() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        exhausted.set()

    async with connected() as hub:
        await hub.send("Upload", three())
        await exhausted.wait()
        assert await hub.invoke("Add", 1, 1) == 2


@pytest.mark.parametrize(
    ("method", "reason", "welcome"),
    [("Abort", "close", False), ("CloseAndReturn", "close", True), ("Die", "cut", True)],
)
async def test_the_end_tells_why_and_whether_we_may_come_back(
    method: str, reason: str, welcome: bool
) -> None:
    async with connected(transports=("websockets",)) as hub:
        await hub.send(method)
        lost = await hub.closed()
        assert (lost.reason, lost.allow_reconnect) == (reason, welcome)
        assert hub.state is ConnectionState.DISCONNECTED
        with pytest.raises(TransientError, match="nothing was sent") as caught:
            await hub.invoke("Add", 1, 1)
        assert not caught.value.sent
        with pytest.raises(TransientError):
            await hub.send("Add", 1, 1)


@pytest.mark.parametrize("transport", ["websockets", "events", "polling"])
async def test_what_is_pending_at_the_end_has_an_unknown_outcome(transport: str) -> None:
    async with connected(transports=(transport,)) as hub:
        call = asyncio.ensure_future(hub.invoke("AskClient", "never", 1))
        asked = asyncio.Event()

        async def never(_: int) -> None:
            asked.set()
            await asyncio.Event().wait()

        hub.on("never", never)
        items = hub.stream("StreamForever")
        await anext(items)
        await asked.wait()
        await hub.stop()
        with pytest.raises(OutcomeUnknown, match="look it up before you send it again"):
            await call
        with pytest.raises(OutcomeUnknown):
            _ = [item async for item in items]
        assert (await hub.closed()).reason == "stopped"


async def test_a_stateful_connection_survives_a_cut_with_its_calls_and_streams() -> None:
    async with SandboxServer() as sandbox:
        url = f"{sandbox.url}/hubs/test"
        async with SignalRConnection(url, stateful=True) as hub:
            name = await hub.invoke("WhoAmI")
            items = hub.stream("Stream", 2000, buffer=3000)
            assert await anext(items) == 0
            assert sandbox.signalr.cut("abort") == 1
            assert [item async for item in items] == list(range(1, 2000))
            assert await hub.invoke("WhoAmI") == name
            assert hub.state is ConnectionState.CONNECTED


async def test_a_connection_is_started_once() -> None:
    async with connected() as hub:
        with pytest.raises(Closed, match="make a new one"):
            await hub.start()
    with pytest.raises(Closed):
        await hub.start()
    await hub.stop()


async def test_a_handler_may_stop_its_own_connection() -> None:
    async with connected() as hub:

        async def leave(_: int) -> None:
            await hub.stop()

        hub.on("leave", leave)
        await hub.send("Push", "leave", 1)
        assert (await hub.closed()).reason == "stopped"


async def test_a_stop_before_and_during_the_start_is_fine() -> None:
    hub = SignalRConnection("http://127.0.0.1:9/hub")
    with pytest.raises(Closed, match="was not started"):
        await hub.closed()
    await hub.stop()
    assert (await hub.closed()).reason == "stopped"
    with pytest.raises(Closed):
        await hub.start()


async def test_every_chunk_is_given_to_the_recorder_first() -> None:
    chunks: list[tuple[bytes | str, float]] = []
    async with connected(tap=lambda data, at: chunks.append((data, at))) as hub:
        await hub.invoke("Echo", "recorded")
        assert b"".join(bytes(data) for data, _ in chunks).startswith(b"{}\x1e")  # type: ignore[arg-type]
        assert any(b"recorded" in data for data, _ in chunks)  # type: ignore[operator]
        assert [at for _, at in chunks] == sorted(at for _, at in chunks)
        assert hub.received_at == chunks[-1][1]
