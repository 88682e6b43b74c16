"""Long polling: one poll waits, posts carry, and each status means what ASP.NET Core means by it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from tests.stream.loopback import Site, serving

from keepline.errors import PermanentError, TransientError
from keepline.stream.tokens import StreamTokens
from keepline.stream.transport import Ending, EndingKind
from keepline.stream.transport_http import HttpDoor, TokenPlace
from keepline.stream.transport_polling import PollingTransport


class Polls:
    """Answers polls from a list; when it is empty a poll waits until the server ends."""

    def __init__(self, *answers: web.Response | tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.posted: list[bytes] = []
        self.waiting = asyncio.Event()
        self.post_status = 200

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            self.posted.append(await request.read())
            return web.Response(status=self.post_status)
        if request.method == "DELETE":
            return web.Response(status=202)
        if not self.answers:
            self.waiting.set()
            await asyncio.Event().wait()
        status, body = self.answers.pop(0)
        return web.Response(status=status, body=body)


@asynccontextmanager
async def connected(
    polls: Polls, *, text: bool = True
) -> AsyncIterator[tuple[PollingTransport, Site]]:
    async with serving(polls) as site:
        url = f"{site.url}/hub?id=1"
        transport = PollingTransport(
            HttpDoor(url, token=TokenPlace(StreamTokens("t"))),
            url,
            text=text,
            max_message_bytes=8 << 20,
        )
        try:
            await transport.open()
            yield transport, site
        finally:
            await transport.close()


async def test_polls_bring_bytes_until_the_server_closes() -> None:
    polls = Polls((200, b""), (200, b"{}\x1e"), (200, b""), (200, b"a\x1eb\x1e"), (204, b""))
    got: list[bytes] = []
    async with connected(polls) as (transport, _):
        ending = await transport.run(got.append)
    assert got == [b"{}\x1e", b"a\x1eb\x1e"]
    assert ending == Ending(EndingKind.CLOSED, "the server closed the connection (204)", 204)


async def test_all_that_goes_now_is_one_post_and_the_end_is_a_delete() -> None:
    polls = Polls((200, b""))
    async with connected(polls) as (transport, site):
        await transport.write([b"a\x1e", b"b\x1e"])
    assert polls.posted == [b"a\x1eb\x1e"]
    assert site.paths == ["GET /hub?id=1", "POST /hub?id=1", "DELETE /hub?id=1"]


async def test_a_connection_that_is_gone_is_a_cut_with_its_status() -> None:
    polls = Polls((200, b""), (404, b"No Connection with that ID"))
    async with connected(polls) as (transport, _):
        ending = await transport.run(lambda _: None)
    assert (ending.kind, ending.code) == (EndingKind.CUT, 404)
    assert "404" in ending.words


async def test_a_first_poll_that_is_refused_is_a_typed_error() -> None:
    with pytest.raises(PermanentError, match="404"):
        async with connected(Polls((404, b""))):
            pass


async def test_a_poll_that_breaks_is_a_cut() -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        if break_off.calls:  # type: ignore[attr-defined]
            request.transport.abort()
        break_off.calls += 1  # type: ignore[attr-defined]
        return web.Response()

    break_off.calls = 0  # type: ignore[attr-defined]
    async with serving(break_off) as site:
        transport = PollingTransport(
            HttpDoor(site.url), site.url, text=False, max_message_bytes=1000
        )
        await transport.open()
        ending = await transport.run(lambda _: None)
        await transport.abort()
    assert ending.kind is EndingKind.CUT
    assert ending.words.startswith("a poll failed: GET /")


async def test_a_poll_brings_up_to_the_limit_and_not_more() -> None:
    polls = Polls((200, b""), (200, b"x" * (8 << 20)), (200, b"x" * ((8 << 20) + 1)))
    sizes: list[int] = []
    async with connected(polls) as (transport, _):
        ending = await transport.run(lambda data: sizes.append(len(data)))
    assert sizes == [8 << 20]
    assert (ending.kind, f"{8 << 20} bytes" in ending.words) == (EndingKind.BROKEN, True)


async def test_a_post_that_is_refused_is_a_typed_error() -> None:
    polls = Polls((200, b""))
    polls.post_status = 503
    async with connected(polls) as (transport, _):
        with pytest.raises(TransientError, match="503"):
            await transport.write([b"a"])


async def test_our_own_end_is_told_as_ours() -> None:
    polls = Polls((200, b""))
    async with connected(polls) as (transport, site):
        running = asyncio.ensure_future(transport.run(lambda _: None))
        await polls.waiting.wait()
        await transport.abort()
        assert (await running).kind is EndingKind.OURS
        assert "DELETE" not in " ".join(site.paths), "abort says no goodbye"


async def test_a_goodbye_that_nobody_hears_is_no_error() -> None:
    polls = Polls((200, b""))
    async with serving(polls) as site:
        transport = PollingTransport(
            HttpDoor(site.url), site.url, text=True, max_message_bytes=1000
        )
        await transport.open()
    await transport.close()
    assert "secret" not in repr(transport)


async def test_a_poll_may_take_longer_than_any_other_request() -> None:
    release = asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        if "other" in request.path:
            await asyncio.Event().wait()
        if site.paths.count("GET /hub") > 1:
            await release.wait()
            return web.Response(status=204)
        return web.Response()

    async with serving(hold) as site:
        url = f"{site.url}/hub"
        doors = [HttpDoor(url, timeout_seconds=0.2) for _ in range(2)]
        transport = PollingTransport(doors[0], url, text=True, max_message_bytes=1000)
        await transport.open()
        running = asyncio.ensure_future(transport.run(lambda _: None))
        with pytest.raises(TransientError):  # what began at the same time has run out of time
            await doors[1].request("GET", f"{site.url}/other")
        with pytest.raises(TransientError):
            await doors[1].request("GET", f"{site.url}/other")
        assert not running.done()
        release.set()
        assert (await running).code == 204
        await transport.close()
        await doors[1].close()
