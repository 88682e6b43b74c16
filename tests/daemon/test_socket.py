import asyncio
import json
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keepline
from keepline.credentials.token import Token
from keepline.daemon import socket as daemon_socket
from keepline.daemon.socket import LocalSocket
from keepline.errors import (
    ConfigError,
    ProtocolError,
    QueueFull,
    Refused,
    SignInRequired,
    StorageError,
    TransientError,
)
from keepline.relay.local import LocalClient
from keepline.relay.peer import Peer
from keepline.telemetry import fields_of
from keepline.testing import ManualClock

Source = Any  # tests/daemon/conftest.py


def token(generation: int) -> Token:
    return Token(f"access-{generation}", f"refresh-{generation}", generation=generation)


async def until(condition: Any) -> None:
    """Let the loop run until the condition holds; the test's own timeout ends a condition that never does."""
    while not condition():  # noqa: ASYNC110 - the loop has to turn for what others do
        await asyncio.sleep(0)


class Raw:
    """A peer that speaks in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, local: LocalSocket) -> "Raw":
        return cls(*await asyncio.open_unix_connection(str(local.path), limit=1 << 20))

    async def ask(self, line: bytes) -> dict[str, Any]:
        self.writer.write(line + b"\n")
        return await self.read()

    async def read(self) -> dict[str, Any]:
        answer = json.loads(await self.reader.readline())
        assert isinstance(answer, dict)
        return answer

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_hello_says_who_answers(local: LocalSocket) -> None:
    async with LocalClient(local.path) as client:
        hello = await client.request("hello", client="test")
    assert hello == {
        "server": "keepline",
        "version": keepline.__version__,
        "protocol": 1,
        "pid": os.getpid(),
        "credentials": ["schwab"],
    }


async def test_ping_answers_the_time_and_status_what_the_daemon_says(local: LocalSocket) -> None:
    async with LocalClient(local.path) as client:
        assert (await client.ping())["time"] > 1.7e9
        assert await client.status() == {"credentials": {"schwab": {}}}


async def test_a_token_is_got_without_its_refresh_token(local: LocalSocket, source: Source) -> None:
    raw = await Raw.connect(local)
    answer = await raw.ask(b'{"v":1,"id":7,"op":"token.get","credential":"schwab","newer_than":0}')
    assert answer["id"] == 7
    assert answer["result"]["access_token"] == "access-1"
    assert "refresh" not in json.dumps(answer)
    assert source.asked == [("get", 0)]
    await raw.close()


async def test_a_refresh_is_passed_on_with_the_generation_that_failed(
    local: LocalSocket, source: Source
) -> None:
    async with LocalClient(local.path) as client:
        assert (await client.refresh_token("schwab", than=1)).generation == 1
    assert source.asked == [("refresh", 1)]


async def test_a_subscriber_has_the_current_token_and_each_new_one(
    local: LocalSocket, source: Source
) -> None:
    async with LocalClient(local.path) as client:
        tokens = await client.subscribe("schwab")
        assert (await tokens.next()).generation == 1
        source.publish(token(2))
        assert (await tokens.next()).generation == 2
        await client.subscribe("schwab")
        assert len(source.subscribers) == 1
    await until(lambda: not source.subscribers)


async def test_a_subscriber_before_the_first_token_gets_it_when_it_comes(
    local: LocalSocket, source: Source
) -> None:
    source.current = None
    async with LocalClient(local.path) as client:
        tokens = await client.subscribe("schwab")
        source.publish(token(5))
        assert (await tokens.next()).generation == 5


async def test_errors_arrive_as_their_own_class(local: LocalSocket, source: Source) -> None:
    async with LocalClient(local.path) as client:
        source.error = SignInRequired("the refresh token is dead", credential="schwab")
        with pytest.raises(SignInRequired, match="keepline login schwab"):
            await client.get_token("schwab")
        with pytest.raises(ConfigError, match="no credential 'swab' here; there is schwab"):
            await client.get_token("swab")


async def test_a_fault_of_ours_is_logged_and_its_text_stays_here(
    local: LocalSocket, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.error = RuntimeError("secret-text")
    raw = await Raw.connect(local)
    answer = await raw.ask(b'{"v":1,"id":1,"op":"token.get","credential":"schwab"}')
    assert answer["error"]["code"] == "internal"
    assert "secret-text" not in json.dumps(answer)
    assert "token.get failed" in caplog.text
    await raw.close()


async def test_one_request_that_waits_holds_up_no_other(local: LocalSocket, source: Source) -> None:
    source.wait = asyncio.Event()
    async with LocalClient(local.path) as client:
        slow = asyncio.create_task(client.get_token("schwab"))
        await until(lambda: source.asked)
        await client.ping()
        assert not slow.done()
        source.wait.set()
        assert (await slow).generation == 1


async def test_a_client_that_leaves_takes_its_questions_along(
    local: LocalSocket, source: Source
) -> None:
    source.wait = asyncio.Event()
    raw = await Raw.connect(local)
    raw.writer.write(b'{"v":1,"id":1,"op":"token.get","credential":"schwab"}\n')
    await until(lambda: source.asked)
    await raw.close()
    await until(lambda: source.cancelled)
    await until(lambda: not local.clients)


async def test_a_client_that_closed_its_end_still_gets_its_answer_then_the_close(
    local: LocalSocket, source: Source
) -> None:
    source.wait = asyncio.Event()
    raw = await Raw.connect(local)
    raw.writer.write(b'{"v":1,"id":1,"op":"token.get","credential":"schwab"}\n')
    raw.writer.write_eof()
    await until(lambda: source.asked)
    source.wait.set()
    assert (await raw.read())["ok"] is True
    assert await raw.reader.read() == b""
    await raw.close()


async def test_a_client_that_says_nothing_and_closes_is_closed(local: LocalSocket) -> None:
    raw = await Raw.connect(local)
    raw.writer.write_eof()
    assert await raw.reader.read() == b""
    await raw.close()


async def test_a_line_that_is_too_long_is_refused_with_words_and_closed(
    local: LocalSocket,
) -> None:
    raw = await Raw.connect(local)
    raw.writer.write(b"x" * 70_000)
    assert "a line has at most 65536 bytes" in (await raw.read())["error"]["message"]
    assert await raw.reader.read() == b""
    await raw.close()


async def test_a_reader_that_sleeps_gets_the_newest_and_delays_nobody(
    local: LocalSocket, source: Source
) -> None:
    sleeper = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sleeper.setblocking(False)
    sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sleeper, str(local.path))
    await loop.sock_sendall(
        sleeper, b'{"v":1,"id":1,"op":"token.subscribe","credential":"schwab"}\n'
    )
    await until(lambda: source.subscribers)
    async with LocalClient(local.path) as awake:
        tokens = await awake.subscribe("schwab")
        await tokens.next()
        for generation in range(2, 400):
            big = Token("a" * 4000 + str(generation), generation=generation)
            source.publish(big)
            assert (await tokens.next()).generation == generation
        read = bytearray()
        while b'"generation":399' not in read:
            read += await loop.sock_recv(sleeper, 1 << 16)
    assert read.count(b'"event":"token"') < 300
    sleeper.close()


async def test_a_client_that_asks_and_never_reads_is_not_listened_to_any_more(
    local: LocalSocket,
) -> None:
    flood = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    flood.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(flood, str(local.path))
    line = b'{"v":1,"id":1,"op":"nonsense"}\n' * 1000

    async def pour() -> None:
        while True:
            await loop.sock_sendall(flood, line)

    pouring = asyncio.create_task(pour())
    await until(lambda: any(client._blocked for client in local.clients))
    (stuck,) = [client for client in local.clients if client._blocked]
    assert not stuck._transport.is_reading()
    async with LocalClient(local.path) as other:
        await other.ping()
    assert not pouring.done()
    pouring.cancel()
    while await loop.sock_recv(flood, 1 << 20):
        if not any(client._blocked for client in local.clients):
            assert stuck._transport.is_reading()
            break
    flood.close()


async def test_one_client_too_many_is_told_so(clean_environment: Path, source: Source) -> None:
    path = clean_environment / "run" / "daemon.sock"
    server = LocalSocket(path, {"schwab": source}, dict, max_clients=1)
    await server.start()
    async with LocalClient(path):
        with pytest.raises(QueueFull, match="1 clients are connected already"):
            await LocalClient(path).connect()
    await server.stop()


async def test_another_user_is_refused_unless_allowed(
    local: LocalSocket, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Peer(pid=1, uid=12345, gid=12345)
    monkeypatch.setattr(daemon_socket, "peer_of", lambda sock, pidfd: stranger)
    with pytest.raises(Refused, match="user 12345 is not served here"):
        await LocalClient(local.path).connect()
    local._uids = frozenset({12345})
    async with LocalClient(local.path) as client:
        await client.ping()


async def test_a_subscriber_may_close_its_sending_end(local: LocalSocket, source: Source) -> None:
    raw = await Raw.connect(local)
    raw.writer.write(b'{"v":1,"id":1,"op":"token.subscribe","credential":"schwab"}\n')
    raw.writer.write_eof()
    assert (await raw.read())["ok"] is True
    source.publish(token(2))
    assert (await raw.read())["event"] == "token"
    await raw.close()
    await until(lambda: not source.subscribers or source.publish(token(3)))


async def test_the_socket_is_for_us_alone(local: LocalSocket) -> None:
    assert stat.S_IMODE(local.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(local.path.parent.stat().st_mode) == 0o700


async def test_a_second_daemon_is_refused_and_the_first_goes_on(
    local: LocalSocket, source: Source
) -> None:
    second = LocalSocket(local.path, {"schwab": source}, dict)
    with pytest.raises(StorageError, match="listens here already"):
        await second.start()
    await second.stop()
    async with LocalClient(local.path) as client:
        await client.ping()


async def test_a_foreign_owner_of_the_path_is_not_robbed(
    clean_environment: Path, source: Source
) -> None:
    path = clean_environment / "run" / "daemon.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as owner:
        owner.bind(str(path))
        owner.listen()
        server = LocalSocket(path, {"schwab": source}, dict)
        with pytest.raises(StorageError, match="listens here already"):
            await server.start()
        await server.stop()
        assert path.exists()


async def test_a_stale_file_is_replaced(clean_environment: Path, source: Source) -> None:
    path = clean_environment / "run" / "daemon.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    server = LocalSocket(path, {"schwab": source}, dict)
    await server.start()
    async with LocalClient(path) as client:
        await client.ping()
    await server.stop()
    assert not path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(
    clean_environment: Path, source: Source
) -> None:
    path = clean_environment / "run" / "daemon.sock"
    path.write_text("notes")
    server = LocalSocket(path, {"schwab": source}, dict)
    with pytest.raises(StorageError, match="is not a socket"):
        await server.start()
    await server.stop()
    assert path.read_text() == "notes"


async def test_a_path_that_is_too_long_is_refused_with_words(tmp_path: Path) -> None:
    server = LocalSocket(tmp_path / ("x" * 120) / "daemon.sock", {}, dict)
    with pytest.raises(ConfigError, match="a Unix socket's path at most"):
        await server.start()


async def test_a_directory_that_strangers_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StorageError, match="strangers can write"):
        await LocalSocket(tmp_path / "daemon.sock", {}, dict).start()


async def test_the_file_is_bound_again_when_it_vanishes_and_clients_stay(
    clean_environment: Path, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    path = clean_environment / "run" / "daemon.sock"
    server = LocalSocket(path, {"schwab": source}, dict, clock=clock)
    await server.start()
    watching = asyncio.create_task(server.run())
    async with LocalClient(path) as old:
        path.unlink()
        await clock.until_asleep()
        clock.advance(daemon_socket.LOOK_SECONDS)
        await until(path.exists)
        async with LocalClient(path) as new:
            await new.ping()
        await old.ping()
    assert "Socket bound again" in caplog.messages
    await until(lambda: server.ready() == (True, "clients: 0"))
    watching.cancel()
    await server.stop()


async def test_a_place_that_was_taken_meanwhile_makes_it_unready_until_it_is_free(
    clean_environment: Path, source: Source
) -> None:
    clock = ManualClock()
    path = clean_environment / "run" / "daemon.sock"
    server = LocalSocket(path, {"schwab": source}, dict, clock=clock)
    await server.start()
    watching = asyncio.create_task(server.run())
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as thief:
        thief.bind(str(path))
        thief.listen()
        await clock.until_asleep()
        clock.advance(daemon_socket.LOOK_SECONDS)
        await until(lambda: not server.ready()[0])
        assert "cannot be made again" in server.ready()[1]
    await clock.until_asleep()
    clock.advance(daemon_socket.LOOK_SECONDS)
    await until(lambda: server.ready()[0])
    watching.cancel()
    await server.stop()


async def test_stopping_closes_the_clients(local: LocalSocket, source: Source) -> None:
    client = LocalClient(local.path)
    await client.connect()
    tokens = await client.subscribe("schwab")
    await tokens.next()
    await local.stop()
    with pytest.raises(TransientError, match="the daemon ended the connection"):
        await tokens.next()
    await client.close()
    assert not local.path.exists()
    assert "0 clients" in repr(local)


async def test_clients_are_counted(local: LocalSocket, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "keepline.daemon")
    async with LocalClient(local.path):
        assert daemon_socket.CLIENTS.value() == 1
    await until(lambda: not local.clients)
    assert daemon_socket.CLIENTS.value() == 0
    told = [r for r in caplog.records if r.getMessage().startswith("Client")]
    assert [(r.levelname, r.getMessage()) for r in told] == [
        ("INFO", "Client connected"),
        ("INFO", "Client disconnected"),
    ]
    assert [fields_of(r)["total"] for r in told] == [1, 0]


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(lines=st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_are_answered_or_ignored_and_the_next_client_is_served(
    lines: list[bytes], clean_environment: Path
) -> None:
    async def play() -> None:
        path = clean_environment / "run" / "fuzz.sock"
        server = LocalSocket(path, {}, dict)
        await server.start()
        raw = await Raw.connect(server)
        raw.writer.write(b"\n".join(lines) + b"\n")
        raw.writer.write_eof()
        for line in (await raw.reader.read()).splitlines():
            assert json.loads(line)["ok"] is False
        await raw.close()
        async with LocalClient(path) as client:
            await client.ping()
        await server.stop()

    asyncio.run(play())


async def test_a_request_for_another_protocol_is_refused(local: LocalSocket) -> None:
    raw = await Raw.connect(local)
    answer = await raw.ask(b'{"v":2,"id":1,"op":"ping"}')
    assert answer["error"]["code"] == "bad_request"
    await raw.close()
    assert ProtocolError


async def test_the_lost_socket_is_closed_before_the_new_one_is_made(
    clean_environment: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.13 removes the file of a server that it closes, by its inode, which the new file may have."""
    clock = ManualClock()
    path = clean_environment / "run" / "daemon.sock"
    server = LocalSocket(path, {"schwab": source}, dict, clock=clock)
    await server.start()
    first = server._binding
    assert first is not None
    closed: list[bool] = []
    bind = daemon_socket.bind_unix

    def watched(*args: Any, **options: Any) -> Any:
        closed.append(first.socket.fileno() == -1)
        return bind(*args, **options)

    monkeypatch.setattr(daemon_socket, "bind_unix", watched)
    watching = asyncio.create_task(server.run())
    path.unlink()
    await clock.until_asleep()
    clock.advance(daemon_socket.LOOK_SECONDS)
    await until(lambda: server._binding is not first)
    assert closed == [True]
    watching.cancel()
    await server.stop()


@pytest.mark.parametrize(("uid", "served"), [(0, True), (4711, True), (4712, False)])
async def test_root_and_our_own_user_are_served_and_nobody_else(
    local: LocalSocket, monkeypatch: pytest.MonkeyPatch, uid: int, served: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(daemon_socket, "peer_of", lambda sock, pidfd: Peer(1, uid, uid))
    raw = await Raw.connect(local)
    answer = await raw.ask(b'{"v":1,"id":1,"op":"ping"}') if served else await raw.read()
    assert answer["ok"] is served
    await raw.close()


async def test_a_stop_that_is_cut_short_still_lets_go_of_everything(
    local: LocalSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding = local._binding
    assert binding is not None
    client = LocalClient(local.path)
    await client.connect()
    never = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(asyncio, "to_thread", lambda work: never)
    stopping = asyncio.create_task(local.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert binding.socket.fileno() == -1
    with pytest.raises(TransientError, match="ended the connection"):
        await client.ping()
    await client.close()
