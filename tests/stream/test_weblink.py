"""A link over a real WebSocket, with a small protocol as its wire."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from keepline.errors import Closed, ConfigError, PermanentError, TransientError
from keepline.stream.port import Delivered, Ended, Lost, Opened, Settled, Topic, WireEvent
from keepline.stream.weblink import WireLink
from keepline.testing import ManualClock

TOPIC = Topic("quotes", ("sub", "MNQ"), ("unsub", "MNQ"), key="MNQ")
Handler = Callable[[web.WebSocketResponse], Awaitable[None]]


class ToyWire:
    """Lines of JSON: `{"op", "ref"}` out, `{"ref", "error"}` and `{"channel", "data"}` in; silence ends it."""

    def __init__(self, silence: float = 30.0) -> None:
        self._out: list[bytes | str] = []
        self._refs = 0
        self._silence = silence
        self.deadline: float | None = None

    def open(self, token: str, now: float) -> None:
        self.deadline = now + self._silence
        self._say("login", token=token)

    def _say(self, op: str, **more: Any) -> str:
        self._refs += 1
        self._out.append(json.dumps({"op": op, "ref": str(self._refs), **more}))
        return str(self._refs)

    def receive(self, data: bytes | str, now: float) -> Sequence[WireEvent]:
        self.deadline = now + self._silence
        if isinstance(data, bytes):
            return [Delivered("bytes", (data,))]
        said = json.loads(data)
        if "channel" in said:
            return [Delivered(said["channel"], (said["data"],))]
        if said.get("end"):
            error = PermanentError("login denied", category="auth") if said.get("denied") else None
            return [Ended(Lost("kicked", "there is another one"), error)]
        error = PermanentError(said["error"]) if said.get("error") else None
        return [Opened()] if said["ref"] == "1" else [Settled(said["ref"], error)]

    def take(self) -> list[bytes | str]:
        out, self._out = self._out, []
        return out

    def subscribe(self, topic: Topic, now: float) -> str:
        return self._say("sub", what=topic.subscribe[1])

    def unsubscribe(self, topic: Topic, now: float) -> str | None:
        return None if topic.unsubscribe is None else self._say("unsub")

    def probe(self, now: float) -> str | None:
        self.deadline = now + 1.0
        return self._say("probe")

    def expire(self, now: float) -> Sequence[WireEvent]:
        self.deadline = None
        return [Ended(Lost("timeout", "the broker is silent"))]

    def close(self, now: float) -> None:
        self._say("logout")


class Broker:
    """The other end."""

    def __init__(self) -> None:
        self.url = ""
        self.heard: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], object] = lambda said: {"ref": said["ref"]}
        self.socket: web.WebSocketResponse | None = None
        self.gone = asyncio.Event()
        self.goodbye: int | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        socket = self.socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            said = json.loads(message.data)
            self.heard.append(said)
            if (answer := self.answer(said)) is not None:
                await socket.send_json(answer)
        self.goodbye = socket.close_code
        self.gone.set()
        return socket


@asynccontextmanager
async def broker(**routes: Any) -> AsyncIterator[Broker]:
    made = Broker()
    app = web.Application()
    app.router.add_get("/stream", made.serve)
    for path, handler in routes.items():
        app.router.add_get(f"/{path}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"ws://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


def nothing(channel: str, arguments: Sequence[Any], at: float) -> None:
    """A sink that forgets."""


async def test_a_wire_is_all_that_a_broker_needs() -> None:
    async with broker() as b:
        got: asyncio.Queue[Any] = asyncio.Queue()
        taps: list[Any] = []
        link = WireLink(
            ToyWire, f"{b.url}/stream?id=1", lambda: "secret",
            tap=lambda data, at: taps.append(data),
        )  # fmt: skip
        await link.open(lambda *arrived: got.put_nowait(arrived[:2]))
        await link.subscribe(TOPIC)
        assert await link.probe() is True
        assert b.socket is not None
        await b.socket.send_json({"channel": "quotes", "data": 1})
        assert await got.get() == ("quotes", (1,))
        await b.socket.send_bytes(b"\x00")
        assert await got.get() == ("bytes", (b"\x00",))
        await link.unsubscribe(TOPIC)
        await link.unsubscribe(Topic("quotes", ("sub", "MNQ")))
        await link.close()
        await link.close()
        await b.gone.wait()
        assert [said["op"] for said in b.heard] == ["login", "sub", "probe", "unsub", "logout"]
        assert b.heard[0]["token"] == "secret"
        assert await link.closed() == Lost("stopped")
        assert len(taps) == 6
        assert "id=1" not in repr(link)


async def test_a_refused_request_has_the_brokers_words_and_the_link_lives() -> None:
    async with broker() as b:
        b.answer = lambda said: {"ref": said["ref"], "error": "no such symbol"}
        link = WireLink(ToyWire(), f"{b.url}/stream", "secret")
        b.answer = lambda said: {
            "ref": said["ref"],
            "error": said["op"] == "sub" and "no such symbol",
        }
        await link.open(nothing)
        with pytest.raises(PermanentError, match="no such symbol"):
            await link.subscribe(TOPIC)
        await link.probe()
        await link.close()


async def test_a_refused_login_is_the_error_of_open_and_nothing_stays_open() -> None:
    async with broker() as b:
        b.answer = lambda said: {"end": True, "denied": True}
        link = WireLink(ToyWire(), f"{b.url}/stream", "secret")
        with pytest.raises(PermanentError, match="login denied") as caught:
            await link.open(nothing)
        assert caught.value.category == "auth"
        await b.gone.wait()


async def test_requests_end_with_the_connection_and_it_says_how_it_ended() -> None:
    async with broker() as b:
        link = WireLink(ToyWire(), f"{b.url}/stream", "secret")
        b.answer = lambda said: {"ref": said["ref"]} if said["op"] == "login" else {"end": True}
        await link.open(nothing)
        with pytest.raises(
            TransientError, match="the connection ended first: there is another one"
        ):
            await link.subscribe(TOPIC)
        assert (await link.closed()).reason == "kicked"
        with pytest.raises(TransientError, match="not connected"):
            await link.probe()
        await link.close()


async def test_a_close_a_cut_and_a_frame_that_is_too_large_are_told_apart() -> None:
    async def close(socket: web.WebSocketResponse) -> None:
        await socket.close(code=1001)

    async def cut(socket: web.WebSocketResponse) -> None:
        request = socket._req
        assert request is not None
        assert request.transport is not None
        request.transport.abort()

    async def large(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"x" * 5000)

    for end, reason, words in (
        (close, "close", "1001"),
        (cut, "cut", "1006"),
        (large, "protocol", "1009"),
    ):
        async with broker() as b:
            link = WireLink(ToyWire(), f"{b.url}/stream", "secret", max_message_bytes=1000)
            await link.open(nothing)
            assert b.socket is not None
            await end(b.socket)
            lost = await link.closed()
            assert (lost.reason, words in (lost.error or "")) == (reason, True)
            await link.close()


async def test_the_deadline_of_the_wire_is_kept_also_when_it_comes_nearer() -> None:
    async with broker() as b:
        clock = ManualClock()
        link = WireLink(ToyWire(silence=30.0), f"{b.url}/stream", "secret", clock=clock)
        await link.open(nothing)
        clock.advance(20.0)
        b.answer = lambda _: None
        probing = asyncio.ensure_future(link.probe())
        await clock.run_until(probing.done)
        with pytest.raises(TransientError, match="the broker is silent"):
            await probing
        assert clock.boottime() == 21.0
        assert await link.closed() == Lost("timeout", "the broker is silent")
        await link.close()


@pytest.mark.parametrize(
    ("status", "kind", "category"),
    [(401, PermanentError, "auth"), (404, PermanentError, "client"), (429, TransientError, "rate_limit"),
     (503, TransientError, "server"), (200, PermanentError, "client"), (302, PermanentError, "client")],
)  # fmt: skip
async def test_a_server_that_gives_no_websocket_is_told_by_its_status(
    status: int, kind: type[Exception], category: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "7", "Location": "/stream"})

    async with broker(other=answer) as b:
        link = WireLink(ToyWire(), f"{b.url}/other?token=secret", "secret")
        with pytest.raises(kind) as caught:
            await link.open(nothing)
        assert caught.value.status == status
        assert caught.value.category == category
        assert caught.value.retry_after == (7.0 if status in (401, 429, 503) else None)
        assert "secret" not in str(caught.value)
        assert b.heard == [], "a token never follows a redirect"


async def test_nobody_there_is_a_passing_failure_and_a_link_is_opened_once() -> None:
    link = WireLink(ToyWire(), "ws://127.0.0.1:9/stream", "secret")
    with pytest.raises(TransientError, match=r"GET ws://127.0.0.1/stream: cannot connect"):
        await link.open(nothing)
    with pytest.raises(Closed, match="opened once"):
        await link.open(nothing)


async def test_what_was_never_opened_has_not_ended() -> None:
    link = WireLink(ToyWire(), "ws://127.0.0.1:9/stream", "secret")
    with pytest.raises(Closed, match="not opened"):
        await link.closed()
    await link.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "ws://", "nonsense"])
def test_an_address_that_is_none_is_refused_before_anything_starts(url: str) -> None:
    with pytest.raises(ConfigError, match="ws:// or wss://"):
        WireLink(ToyWire, url, "secret")


async def test_one_session_serves_all_links_and_the_last_one_closes_it() -> None:
    from keepline.stream.websession import borrow_session

    async with broker() as b:
        links = [WireLink(ToyWire(), f"{b.url}/stream", "secret") for _ in range(3)]
        for link in links:
            await link.open(nothing)
        lease = borrow_session()
        assert "4 borrowers" in repr(lease)
        for link in links:
            await link.close()
        assert not lease.session.closed
        await lease.release()
        await lease.release()
        assert lease.session.closed


async def test_a_recording_that_fails_ends_itself_and_not_the_link() -> None:
    frames: list[bytes | str] = []

    def tap(data: bytes | str, at: float) -> None:
        frames.append(data)
        raise OSError("the disk is full")

    async with broker() as far:
        link = WireLink(ToyWire, f"{far.url}/stream", "t", tap=tap)
        await link.open(nothing)
        await link.subscribe(TOPIC)
        assert len(frames) == 1
        await link.close()


@pytest.mark.parametrize("where", ["receive", "take", "expire", "sink"])
async def test_a_defect_in_a_wire_or_a_sink_ends_the_link_in_words(where: str) -> None:
    class Broken(ToyWire):
        armed = False

        def receive(self, data: bytes | str, now: float) -> Sequence[WireEvent]:
            return self._maybe("receive", super().receive(data, now))

        def take(self) -> list[bytes | str]:
            return self._maybe("take", super().take())

        def expire(self, now: float) -> Sequence[WireEvent]:
            return self._maybe("expire", super().expire(now))

        def _maybe(self, here: str, value: Any) -> Any:
            if self.armed and where == here:
                raise ZeroDivisionError("a defect")
            return value

    def sink(channel: str, arguments: Sequence[Any], at: float) -> None:
        raise ZeroDivisionError("a defect")

    wire, clock = Broken(), ManualClock()
    async with broker() as far:
        link = WireLink(wire, f"{far.url}/stream", "t", clock=clock)
        await link.open(sink if where == "sink" else nothing)
        wire.armed = True
        if where == "expire":
            clock.advance(30.0)
        elif where == "sink":
            assert far.socket is not None
            await far.socket.send_json({"channel": "quotes", "data": 1})
        else:
            with pytest.raises(TransientError, match="ended first"):
                await link.subscribe(TOPIC)
        lost = await link.closed()
        assert (lost.reason, lost.error) == ("cut", "the link failed (ZeroDivisionError)")
        wire.armed = False
        await link.close()


async def test_a_goodbye_to_a_peer_that_reads_nothing_lets_go_of_the_socket() -> None:
    class Talkative(ToyWire):
        def close(self, now: float) -> None:
            self._say("x" * (64 << 20))

    deaf = asyncio.Event()

    async def ignore(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        said = await socket.receive_json()
        await socket.send_json({"ref": said["ref"]})
        await deaf.wait()
        return socket

    async with broker(deaf=ignore) as far:
        link = WireLink(Talkative(), f"{far.url}/deaf", "t", clock=ManualClock())
        await link.open(nothing)
        assert link._socket is not None
        bare = link._socket.get_extra_info("socket")
        closing = asyncio.ensure_future(link.close())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not closing.done(), "nobody reads the goodbye"
        closing.cancel()
        await asyncio.wait({closing})
        for _ in range(1000):
            await asyncio.sleep(0)
        assert bare.fileno() == -1
        deaf.set()
