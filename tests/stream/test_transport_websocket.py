"""A hub connection over a WebSocket: bytes in order, every end told apart, no goodbye on abort."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import sha1

import pytest
from aiohttp import WSMsgType, web
from tests.stream.loopback import Handler, raw_serving, serving, websocket

from keepline.errors import PermanentError, TransientError
from keepline.stream.tokens import StreamTokens
from keepline.stream.transport import Ending, EndingKind
from keepline.stream.transport_http import HttpDoor, TokenPlace
from keepline.stream.transport_websocket import WebSocketTransport


@asynccontextmanager
async def connected(
    handler: Handler, *, text: bool = True, max_message_bytes: int = 1 << 20
) -> AsyncIterator[WebSocketTransport]:
    async with serving(handler) as site:
        url = f"{site.url}/hub?id=1"
        transport = WebSocketTransport(
            HttpDoor(url), url, text=text, max_message_bytes=max_message_bytes
        )
        try:
            await transport.open()
            yield transport
        finally:
            await transport.close()


async def ending_of(handler: Handler, **options: int) -> tuple[list[bytes], Ending]:
    """What arrived until the end, and the end."""
    got: list[bytes] = []
    async with connected(handler, **options) as transport:
        return got, await transport.run(got.append)


async def test_text_and_binary_frames_arrive_in_order_as_bytes() -> None:
    async def talk(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        await socket.send_str("first é")
        await socket.send_bytes(b"\x02\x91\x06")
        await socket.close()
        return socket

    got, ending = await ending_of(talk)
    assert got == ["first é".encode(), b"\x02\x91\x06"]
    assert ending == Ending(EndingKind.CLOSED, "the server closed the WebSocket (1000)", 1000)


@pytest.mark.parametrize(("text", "kind"), [(True, WSMsgType.TEXT), (False, WSMsgType.BINARY)])
async def test_each_chunk_leaves_as_one_frame_of_the_encoding(text: bool, kind: WSMsgType) -> None:
    seen: asyncio.Queue[tuple[WSMsgType, object]] = asyncio.Queue()

    async def listen(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        async for message in socket:
            seen.put_nowait((message.type, message.data))
        return socket

    async with connected(listen, text=text) as transport:
        await transport.write([b"one\x1e", b"two\x1e"])
        assert [await seen.get(), await seen.get()] == [
            (kind, "one\x1e" if text else b"one\x1e"),
            (kind, "two\x1e" if text else b"two\x1e"),
        ]


@pytest.mark.parametrize("code", [1001, 1008, 1009, 1011, 1012, 1013, 3000])
async def test_the_code_of_a_close_frame_is_told(code: int) -> None:
    async def leave(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        await socket.close(code=code)
        return socket

    _, ending = await ending_of(leave)
    assert (ending.kind, ending.code) == (EndingKind.CLOSED, code)
    assert str(code) in ending.words


async def test_a_close_frame_without_a_code_is_one_without_a_code() -> None:
    async def leave(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        await socket.send_frame(b"", WSMsgType.CLOSE)
        await socket.receive()
        return socket

    _, ending = await ending_of(leave)
    assert ending == Ending(EndingKind.CLOSED, "the server closed the WebSocket (1005)", 1005)


async def test_abort_drops_what_is_not_sent_yet() -> None:
    got, aborted = 0, asyncio.Event()
    done = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        request = await reader.readuntil(b"\r\n\r\n")
        key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
        accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        await aborted.wait()
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                got += len(data)
        done.set()

    size = 64 << 20
    async with raw_serving(speak) as url:
        transport = WebSocketTransport(HttpDoor(url), url, text=False, max_message_bytes=1000)
        await transport.open()
        writing = asyncio.ensure_future(transport.write([bytes(size)]))
        await asyncio.sleep(0)
        await transport.abort()
        aborted.set()
        await done.wait()
        await asyncio.gather(writing, return_exceptions=True)
    assert got < size


async def test_a_cut_is_not_a_close() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        await socket.send_str("a")
        request.transport.abort()
        return socket

    got, ending = await ending_of(cut)
    assert got in ([b"a"], [])  # a reset may overtake what was sent
    assert (ending.kind, ending.code) == (EndingKind.CUT, 1006)


async def test_a_socket_that_just_ends_is_a_cut() -> None:
    async def leave(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        request.transport.close()
        return socket

    _, ending = await ending_of(leave)
    assert ending.kind is EndingKind.CUT


async def test_a_frame_above_the_limit_is_named_with_the_setting() -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        await socket.send_bytes(b"x" * 5000)
        await socket.receive()
        return socket

    got, ending = await ending_of(flood, max_message_bytes=4096)
    assert got == []
    assert (ending.kind, ending.code) == (EndingKind.BROKEN, 1009)
    assert "max_message_bytes=4096" in ending.words


async def test_ten_mebibytes_in_one_frame_arrive_under_the_default_limit() -> None:
    async def send(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        await socket.send_bytes(b"x" * (10 << 20))
        await socket.close()
        return socket

    got, _ = await ending_of(send, max_message_bytes=16 << 20)
    assert [len(chunk) for chunk in got] == [10 << 20]


async def test_bytes_that_are_no_frame_break_the_connection() -> None:
    async def garble(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        request.transport.write(b"\xff\xff\xff\xff")
        await socket.receive()
        return socket

    _, ending = await ending_of(garble)
    assert ending.kind is EndingKind.BROKEN
    assert "no WebSocket frame" in ending.words


async def test_our_own_close_is_told_as_ours() -> None:
    async def listen(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        await socket.receive()
        return socket

    async with connected(listen) as transport:
        running = asyncio.ensure_future(transport.run(lambda _: None))
        await asyncio.sleep(0)
        await transport.close()
        assert (await running).kind is EndingKind.OURS
        await transport.close()
        with pytest.raises(TransientError, match="closed"):
            await transport.write([b"x"])


async def test_abort_sends_no_close_frame() -> None:
    ends: asyncio.Queue[object] = asyncio.Queue()

    async def listen(request: web.Request) -> web.StreamResponse:
        socket = await websocket(request)
        message = await socket.receive()
        ends.put_nowait((message.type, socket.close_code))
        return socket

    async with connected(listen) as transport:
        running = asyncio.ensure_future(transport.run(lambda _: None))
        await asyncio.sleep(0)
        await transport.abort()
        assert (await running).kind is EndingKind.OURS
        kind, code = await ends.get()  # type: ignore[misc]
        assert kind is not WSMsgType.CLOSE
        assert code in (1006, None, 1000)


@pytest.mark.parametrize(
    ("status", "error", "category"),
    [
        (400, PermanentError, "client"),
        (401, PermanentError, "auth"),
        (403, PermanentError, "auth"),
        (404, PermanentError, "client"),
        (409, PermanentError, "client"),
        (429, TransientError, "rate_limit"),
        (500, TransientError, "server"),
        (503, TransientError, "server"),
    ],
)
async def test_a_refused_upgrade_says_which_status(
    status: int, error: type[Exception], category: str
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Retry-After": "7"})

    with pytest.raises(error, match=str(status)) as caught:
        await ending_of(refuse)
    assert (caught.value.status, caught.value.category) == (status, category)
    assert caught.value.retry_after == 7
    assert caught.value.endpoint == "GET /hub"


@pytest.mark.parametrize("in_query", [False, True])
async def test_a_redirected_upgrade_is_not_followed(in_query: bool) -> None:
    async def accept(request: web.Request) -> web.StreamResponse:
        return await websocket(request)

    async with serving(accept) as elsewhere:

        async def move(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{elsewhere.url}{request.rel_url}")

        async with serving(move) as site:
            door = HttpDoor(site.url, token=TokenPlace(StreamTokens("verysecret"), in_query))
            url = f"{site.url}/hub"
            transport = WebSocketTransport(door, url, text=True, max_message_bytes=1000)
            with pytest.raises(PermanentError, match="wants the request elsewhere") as caught:
                await transport.open()
            await transport.close()
        assert elsewhere.requests == []
        assert elsewhere.url in str(caught.value)
        assert "verysecret" not in str(caught.value)


async def test_a_plain_web_server_is_named() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    with pytest.raises(PermanentError, match="address of a SignalR endpoint"):
        await ending_of(page)


async def test_an_upgrade_with_a_wrong_key_is_no_upgrade() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: no\r\n\r\n"
        )
        await writer.drain()

    async with raw_serving(speak) as url:
        transport = WebSocketTransport(HttpDoor(url), url, text=True, max_message_bytes=1000)
        with pytest.raises(PermanentError, match="without a proper change to WebSocket"):
            await transport.open()
        await transport.close()


async def test_the_repr_shows_neither_id_nor_token() -> None:
    url = "http://127.0.0.1:9/hub?id=verysecret"
    transport = WebSocketTransport(HttpDoor(url), url, text=True, max_message_bytes=1000)
    assert "verysecret" not in repr(transport)
