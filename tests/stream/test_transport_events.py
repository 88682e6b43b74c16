"""Server-sent events: whole events arrive however they are split, and every end is told apart."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from tests.stream.loopback import Site, serving

from keepline.errors import PermanentError, TransientError
from keepline.stream.tokens import StreamTokens
from keepline.stream.transport import Ending, EndingKind
from keepline.stream.transport_events import EventsTransport
from keepline.stream.transport_http import HttpDoor, TokenPlace


class Events:
    """Writes the given pieces as an event stream, then ends, cuts or waits."""

    def __init__(self, *pieces: bytes, then: str = "end", status: int = 200) -> None:
        self.pieces = pieces
        self.then = then
        self.status = status
        self.posted: list[bytes] = []
        self.post_status = 200
        self.written = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            self.posted.append(await request.read())
            return web.Response(status=self.post_status)
        if self.status != 200:
            return web.Response(status=self.status, headers={"Retry-After": "3"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
        self.written.set()
        if self.then == "cut":
            request.transport.abort()
        elif self.then == "wait":
            await asyncio.Event().wait()
        return response


@asynccontextmanager
async def connected(
    events: Events, *, max_message_bytes: int = 1 << 20
) -> AsyncIterator[tuple[EventsTransport, Site]]:
    async with serving(events) as site:
        url = f"{site.url}/hub?id=1"
        transport = EventsTransport(
            HttpDoor(url, token=TokenPlace(StreamTokens("t"))),
            url,
            max_message_bytes=max_message_bytes,
        )
        try:
            await transport.open()
            yield transport, site
        finally:
            await transport.close()


async def test_events_arrive_whole_however_they_are_split() -> None:
    events = Events(b":\r\n", b"data: {}\x1e\r\n\r\nda", b'ta: {"type":6}\x1e\r\n', b"\r\n")
    got: list[bytes] = []
    async with connected(events) as (transport, site):
        ending = await transport.run(got.append)
    assert got == [b"{}\x1e", b'{"type":6}\x1e']
    assert ending == Ending(EndingKind.CLOSED, "the server ended the event stream")
    assert site.requests[0] == ("GET", "/hub?id=1", "Bearer t")


async def test_what_goes_now_is_one_post() -> None:
    events = Events(then="wait")
    async with connected(events) as (transport, site):
        await transport.write([b"a\x1e", b"b\x1e"])
    assert events.posted == [b"a\x1eb\x1e"]
    assert site.paths == ["GET /hub?id=1", "POST /hub?id=1"]


async def test_a_cut_is_told() -> None:
    async with connected(Events(b":\r\n", then="cut")) as (transport, _):
        ending = await transport.run(lambda _: None)
    assert ending.kind is EndingKind.CUT


async def test_a_damaged_stream_is_told() -> None:
    async with connected(Events(b"nonsense\r\n", then="wait")) as (transport, _):
        ending = await transport.run(lambda _: None)
    assert ending.kind is EndingKind.BROKEN


async def test_an_event_above_the_limit_is_told() -> None:
    events = Events(b"data: " + b"x" * 5000, then="wait")
    async with connected(events, max_message_bytes=1000) as (transport, _):
        ending = await transport.run(lambda _: None)
    assert (ending.kind, "1000 bytes" in ending.words) == (EndingKind.BROKEN, True)


async def test_a_refused_stream_is_a_typed_error() -> None:
    with pytest.raises(TransientError, match="429") as caught:
        async with connected(Events(status=429)):
            pass
    assert caught.value.retry_after == 3


async def test_a_page_is_no_event_stream() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>", content_type="text/html")

    async with serving(page) as site:
        transport = EventsTransport(HttpDoor(site.url), site.url, max_message_bytes=1000)
        with pytest.raises(PermanentError, match="text/html instead of an event stream"):
            await transport.open()
        await transport.close()


async def test_a_stream_that_does_not_begin_is_a_timeout() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(silent) as site:
        transport = EventsTransport(
            HttpDoor(site.url), site.url, max_message_bytes=1000, timeout_seconds=0.02
        )
        with pytest.raises(TransientError, match="did not begin in time"):
            await transport.open()
        await transport.close()


async def test_a_post_that_is_refused_is_a_typed_error() -> None:
    events = Events(then="wait")
    events.post_status = 404
    async with connected(events) as (transport, _):
        with pytest.raises(PermanentError, match="POST /hub: 404"):
            await transport.write([b"a"])


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_our_own_end_is_told_as_ours(how: str) -> None:
    events = Events(b":\r\n", then="wait")
    async with connected(events) as (transport, _):
        running = asyncio.ensure_future(transport.run(lambda _: None))
        await events.written.wait()
        await getattr(transport, how)()
        assert (await running).kind is EndingKind.OURS
    assert "secret" not in repr(transport)


async def test_an_event_without_data_is_not_handed_over() -> None:
    got: list[bytes] = []
    async with connected(Events(b":\r\n\r\ndata: {}\r\n\r\n\r\n")) as (transport, _):
        await transport.run(got.append)
    assert got == [b"{}"]
