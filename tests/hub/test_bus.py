"""The bus over a real socket to a real registrar: what must arrive does, whoever ends between; the rest is bounded."""

import asyncio
import concurrent.futures
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from keepline.errors import Closed, ConfigError, PermanentError, QueueFull, StorageError
from keepline.hub import bus_server
from keepline.hub.bus import LocalBus, read_frame
from keepline.hub.bus_server import BusServer
from keepline.hub.bus_wire import Hello, Publish, Welcome, frame, framed, parse_from_hub
from keepline.hub.messages import Message
from keepline.hub.publishing import Draft
from keepline.hub.registrar import Registrar
from keepline.hub.settings import CHANNELS


class Ear:
    """Gets what the registrar hands out."""

    def __init__(self, registrar: Registrar) -> None:
        self.heard: list[Message] = []
        self.more = asyncio.Event()
        self._registrar = registrar

    def deliver(self, message: Message) -> None:
        self._registrar.channels[message.channel].deliver(message)
        self.heard.append(message)
        self.more.set()

    async def until(self, condition: Callable[[list[Message]], object]) -> None:
        async with asyncio.timeout(20):
            while not condition(self.heard):
                self.more.clear()
                await self.more.wait()

    def data(self, channel: str) -> list[bytes]:
        return [message.data for message in self.heard if message.channel == channel]


@pytest.fixture
def listening(clean_environment: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(clean_environment / "bus"))
        sock.listen()
        yield sock


@asynccontextmanager
async def hub(
    listening: socket.socket, directory: Path, kind: type[Registrar] = Registrar, **more: Any
) -> AsyncIterator[Ear]:
    """One life of a hub: its registrar and its end of the bus."""
    registrar = kind(CHANNELS, journal_path=directory / "data" / "messages.db")
    ear = Ear(registrar)
    await registrar.start(ear)
    server = BusServer(registrar, listening, **more)
    await server.start()
    try:
        yield ear
    finally:
        await server.close()
        await registrar.close()


def bus(listening: socket.socket, **more: Any) -> LocalBus:
    return LocalBus(Path(listening.getsockname()), name="test", **more)


async def test_a_message_that_must_not_get_lost_is_on_the_disk_when_the_wait_ends(
    listening: socket.socket, clean_environment: Path
) -> None:
    async with hub(listening, clean_environment) as ear:
        client = bus(listening)
        await client.start()
        await client.publish_durable("alerts", "alert", {"title": "one"}, id="a1")
        await client.publish_durable("alerts", "alert", {"title": "two"}, id="a1")  # known
        await client.publish_durable("routing-metrics", "routing-decision", [1])
        assert ear.data("alerts") == [b'{"title":"one"}']
        assert ear.data("routing-metrics") == [b"[1]"]
        assert client.ready() == (True, "connected")
        assert await client.close()
    async with hub(listening, clean_environment) as later:
        assert later._registrar.channels["alerts"].offset == 1


async def test_what_was_handed_in_before_the_hub_came_arrives_and_the_newest_of_a_key_once(
    listening: socket.socket, clean_environment: Path
) -> None:
    client = bus(listening)
    for number in range(5):
        assert client.publish("alerts", "alert", number)
        assert client.publish("exposure-updates", "exposure-change", number, key="house")
    await client.start()
    ready, reason = client.ready()
    assert not ready
    assert "6 messages wait" in reason
    async with hub(listening, clean_environment) as ear:
        await ear.until(lambda heard: len(heard) == 6)
        assert ear.data("alerts") == [b"0", b"1", b"2", b"3", b"4"]
        assert ear.data("exposure-updates") == [b"4"]
    await client.close()


async def test_a_hub_that_comes_back_gets_what_it_missed_and_nothing_twice(
    listening: socket.socket, clean_environment: Path
) -> None:
    welcomes: list[int] = []
    client = bus(listening, on_connected=lambda: welcomes.append(1))
    await client.start()
    for life in range(3):
        client.publish("alerts", "alert", [life, "before"])
        async with hub(listening, clean_environment) as ear:
            await client.publish_durable("alerts", "alert", [life, "during"])
            last = ear._registrar.channels["alerts"].offset
    assert last == 6
    assert len(welcomes) == 3
    assert await client.close()


class Trouble(Registrar):
    """A registrar whose disk is full, or whose queue is, as often as the test says."""

    failures = 0
    full = 0

    def post(self, *args: Any, **more: Any) -> "concurrent.futures.Future[Any]":
        kind = type(self)
        if kind.full:
            kind.full -= 1
            raise QueueFull("too many wait")
        if kind.failures:
            kind.failures -= 1
            failed: concurrent.futures.Future[Any] = concurrent.futures.Future()
            failed.set_exception(StorageError("the disk is full"))
            return failed
        return super().post(*args, **more)


async def test_what_cannot_be_stored_just_now_is_kept_and_brought_again(
    listening: socket.socket, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trouble, "failures", 2)
    monkeypatch.setattr(Trouble, "full", 1)
    async with hub(listening, clean_environment, Trouble) as ear:
        client = bus(listening)
        await client.start()
        await client.publish_durable("alerts", "alert", "one")
        assert ear.data("alerts") == [b'"one"']
        assert client.connections > 1
        assert await client.close()


async def test_a_journal_that_was_closed_keeps_the_message_with_its_publisher(
    listening: socket.socket, clean_environment: Path
) -> None:
    lost = asyncio.Event()
    client = bus(listening, on_lost=lost.set)
    async with hub(listening, clean_environment) as ear:
        await client.start()
        await client.publish_durable("alerts", "alert", 1)
        await ear._registrar.close()
        client.publish("alerts", "alert", 2)
        await lost.wait()
    async with hub(listening, clean_environment) as ear:
        await ear.until(lambda heard: [m.data for m in heard] == [b"2"])
        assert await client.close()


async def test_a_message_that_the_hub_never_takes_is_refused_in_its_words_and_the_rest_goes_on(
    listening: socket.socket, clean_environment: Path
) -> None:
    async with hub(listening, clean_environment) as ear:
        client = bus(listening)
        await client.start()
        client.publish("nowhere", "t", 1)
        with pytest.raises(PermanentError, match="there is no channel 'elsewhere'"):
            await client.publish_durable("elsewhere", "t", 1)
        with pytest.raises(ConfigError, match="not a finite number"):
            client.publish("alerts", "alert", float("nan"))
        await client.publish_durable("alerts", "alert", 1)
        assert len(ear.heard) == 1
        assert client.connections == 1
        await client.close()


async def test_messages_of_many_threads_arrive_each_threads_in_order(
    listening: socket.socket, clean_environment: Path
) -> None:
    async with hub(listening, clean_environment) as ear:
        client = bus(listening)
        await client.start()

        def work(name: int) -> None:
            for number in range(100):
                assert client.publish("alerts", "alert", [name, number])

        await asyncio.gather(*(asyncio.to_thread(work, name) for name in range(4)))
        await ear.until(lambda heard: len(heard) == 400)
        for name in range(4):
            own = [text for text in ear.data("alerts") if text.startswith(b"[%d," % name)]
            assert own == [b"[%d,%d]" % (name, number) for number in range(100)]
        assert await client.close()


async def test_a_full_bus_refuses_what_must_not_be_dropped_and_drops_the_oldest_of_the_rest(
    listening: socket.socket,
) -> None:
    client = bus(listening, capacity=2, durable_capacity=1)
    assert client.publish("alerts", "alert", 1)
    assert not client.publish("alerts", "alert", 2)
    with pytest.raises(QueueFull, match="wait already"):
        await client.publish_durable("alerts", "alert", 3)
    assert all(client.publish("routing-metrics", "t", number) for number in range(5))
    assert not await client.close()
    assert not client.publish("alerts", "alert", 4)
    with pytest.raises(Closed):
        await client.publish_durable("alerts", "alert", 5)


async def test_who_waits_when_the_bus_is_closed_is_told(listening: socket.socket) -> None:
    client = bus(listening)
    await client.start()
    waiting = asyncio.create_task(client.publish_durable("alerts", "alert", 1))
    given_up = asyncio.create_task(client.publish_durable("alerts", "alert", 2))
    await asyncio.sleep(0)
    given_up.cancel()
    assert not await client.close(0.0)
    with pytest.raises(Closed, match="before the hub had the message"):
        await waiting


async def test_another_users_program_is_not_heard(
    listening: socket.socket, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_server, "peer_uid", lambda _: 4242)
    async with hub(listening, clean_environment):
        reader, writer = await asyncio.open_unix_connection(listening.getsockname())
        writer.write(frame(Hello(1, "stranger")))
        with pytest.raises((ConnectionError, AssertionError)):
            assert await read_frame(reader)
        writer.close()
    async with hub(listening, clean_environment, uids=[4242]):
        client = bus(listening)
        await client.start()
        await client.publish_durable("alerts", "alert", 1)
        await client.close()


async def test_no_more_publishers_than_allowed(
    listening: socket.socket, clean_environment: Path
) -> None:
    async with hub(listening, clean_environment, most=1):
        client = bus(listening)
        await client.start()
        await client.publish_durable("alerts", "alert", 1)
        reader, writer = await asyncio.open_unix_connection(listening.getsockname())
        assert await reader.read() == b""
        writer.close()
        await client.close()


async def test_a_hub_without_descriptors_takes_its_publishers_later(
    listening: socket.socket, clean_environment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with hub(listening, clean_environment):
        with socket.socket(socket.AF_UNIX) as early:
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, usual[1]))
            try:
                early.connect(listening.getsockname())
                async with asyncio.timeout(20):
                    while "Publisher not accepted" not in caplog.text:  # noqa: ASYNC110 - a log
                        await asyncio.sleep(0)  # the hub's own turn of the loop
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        client = bus(listening)
        await client.start()
        await client.publish_durable("alerts", "alert", 1)
        assert await client.close()


@pytest.mark.parametrize(
    "said",
    [
        frame(Publish(1, False, Draft("alerts", "alert", b"1"))),  # type: ignore[arg-type]
        frame(Hello(99, "from the future")),
        frame(Hello(1, "a")) + frame(Hello(1, "a")),
        frame(Hello(1, "a")) + b"\xff\xff\xff\xff",
        frame(Hello(1, "a")) + b"\0\0",
        frame(Hello(1, "a")) + b"\0\0\0\x09{",
        framed(b'{"x":' * 100_000),
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
    ],
    ids=[
        "no-hello",
        "version",
        "twice",
        "too-long",
        "half-a-head",
        "half-a-frame",
        "deep",
        "http",
        "nothing",
    ],
)
async def test_a_program_that_does_not_keep_to_the_words_is_sent_away_and_others_stay(
    listening: socket.socket, clean_environment: Path, said: bytes
) -> None:
    async with hub(listening, clean_environment) as ear:
        good = bus(listening)
        await good.start()
        reader, writer = await asyncio.open_unix_connection(listening.getsockname())
        writer.write(said)
        writer.write_eof()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # noqa: PT012
            while await reader.readexactly(1):
                pass
        writer.close()
        await good.publish_durable("alerts", "alert", 1)
        assert len(ear.heard) == 1
        await good.close()


@pytest.mark.parametrize(
    "answer",
    [
        *(frame(Welcome(99, ())), b"\0\0\0\x02[]", b"", frame(Welcome(1, ())) * 2),
        framed(b'{"x":' * 2_000),
    ],
    ids=["version", "list", "nothing", "twice", "deep"],
)
async def test_a_hub_that_speaks_otherwise_is_left_and_tried_again(
    listening: socket.socket, answer: bytes
) -> None:
    listening.setblocking(False)
    loop = asyncio.get_running_loop()
    client = bus(listening)
    await client.start()
    async with asyncio.timeout(20):
        for _ in range(2):
            sock, _address = await loop.sock_accept(listening)
            with sock:
                await loop.sock_sendall(sock, answer)
                sock.shutdown(socket.SHUT_WR)
                with suppress(ConnectionError):
                    while await loop.sock_recv(sock, 1000):
                        pass
    assert not client.ready()[0]
    await client.close(0.0)


async def test_a_hub_that_does_not_read_stops_its_publisher_and_what_waits_is_the_newest(
    listening: socket.socket,
) -> None:
    listening.setblocking(False)
    loop = asyncio.get_running_loop()
    connected = asyncio.Event()
    client = bus(listening, on_connected=connected.set)
    await client.start()
    sock, _ = await loop.sock_accept(listening)
    with sock:
        await loop.sock_sendall(sock, frame(Welcome(1, ())))
        await connected.wait()
        text = "x" * 50_000
        for number in range(200):
            client.publish("lp-performance", "lp-metrics", [number, text], key="one")
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_unix_connection(sock=sock.dup())
        seen = []
        async with asyncio.timeout(20):
            while not seen or seen[-1] != 199:
                payload = await read_frame(reader)
                assert payload is not None
                if b"publish" in payload[:20]:
                    seen.append(int(payload.split(b'"data":[')[1].split(b",")[0]))
        assert len(seen) < 100
        assert seen == sorted(seen)
        writer.close()
        await client.close(0.0)


async def test_the_hub_says_which_channels_are_stored(
    listening: socket.socket, clean_environment: Path
) -> None:
    async with hub(listening, clean_environment):
        reader, writer = await asyncio.open_unix_connection(listening.getsockname())
        writer.write(frame(Hello(1, "x")))
        payload = await read_frame(reader)
        assert payload is not None
        assert parse_from_hub(payload) == Welcome(1, ("alerts",))
        writer.close()
        await writer.wait_closed()


def test_a_bus_says_where_it_leads(listening: socket.socket) -> None:
    assert repr(bus(listening)) == f"<LocalBus {listening.getsockname()}, not started>"
