"""The bot's inbox over real sockets."""

import asyncio
import contextlib
import errno
import itertools
import json
import logging
import os
import queue
import select
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from keepline.clock import SYSTEM_CLOCK
from keepline.errors import ConfigError, StorageError
from keepline.portal import shared_portal
from keepline.relay import listener as listener_module
from keepline.relay.listener import Listener
from keepline.relay.message import Ledger, seal
from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
from keepline.relay.settings import listener_options
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock

FUTURE = int(time.time()) + 3600


def v1(generation=1, access="tok", credential="c", **fields):
    message = {"access_token": access, "refresh_token": "", "expires_at": FUTURE, "v": 1}
    message |= {"credential": credential, "generation": generation} | fields
    return json.dumps(message).encode() + b"\n"


@pytest.fixture
def inbox(tmp_bots):
    """Receivers that are stopped at the end."""
    made = []

    def make(callback=None, *, clock=None, start=True, **settings):
        settings.setdefault("unix_socket_path", tmp_bots / "default.sock")
        extra = {} if clock is None else {"clock": clock}
        receiver = TokenReceiver(callback, TokenReceiverConfig(**settings), **extra)
        made.append(receiver)
        if start:
            assert receiver.start(), receiver.last_error
        return receiver

    yield make
    for receiver in made:
        receiver.stop()


def join_callbacks():
    """Callbacks and saving go on for a moment after `stop`."""
    for thread in threading.enumerate():
        if thread.name.startswith("keepline-callback"):
            thread.join(30)


def path_of(receiver):
    return receiver.config.unix_socket_path


# --- the wire, end to end ---


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (b"test_token_abc123\n", b"OK\n"),
        (b"test_token_abc123", b"OK"),
        (b'{"access_token":"test_token_abc123"}\n', b"OK\n"),
        (b'{"access_token":"test_token_abc123"}', b"OK"),
        (b'{"access_token":"first"}{"access_token":"test_token_abc123"}', b"OKOK"),
    ],
)
def test_a_token_is_answered_and_readable_at_once(inbox, say, message, answer):
    receiver = inbox()
    assert receiver.get_latest_token() == ""
    assert receiver.get_latest() is None
    assert say(path_of(receiver), message) == answer
    assert receiver.get_latest_token() == "test_token_abc123"
    assert receiver.get_latest().access_token == "test_token_abc123"


def test_the_end_of_input_completes_bare_text(inbox, say):
    receiver = inbox()
    assert say(path_of(receiver), b"tok", finish=True) == b"OK"
    assert receiver.get_latest_token() == "tok"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"x" * 8193 + b"\n", "too_large"),
        (b"x" * 300_000, "too_large"),
        (b"\n", "empty"),
        (b"\xff\xfe\n", "bad_utf8"),
        (b'{"refresh_token":"r"}\n', "bad_field"),
        (b'{"access_token":7}\n', "bad_field"),
        (b'{"access_token":"a","expires_at":5}\n', "expired"),
        (b"two words\n", "bad_text"),
    ],
)
def test_bad_input_gets_its_code_and_the_latest_token_stays(inbox, say, message, code):
    receiver = inbox()
    say(path_of(receiver), b"good\n")
    assert say(path_of(receiver), message).startswith(b"ERR " + code.encode() + b" ")
    assert receiver.get_latest_token() == "good"
    assert receiver.get_stats()["outcomes"] == {"accepted": 1, code: 1}


def test_half_an_object_then_silence_is_answered_after_the_timeout(inbox, say):
    receiver = inbox(receive_timeout=0.1)
    assert say(path_of(receiver), b'{"access_to').startswith(b"ERR incomplete ")


def test_silence_alone_is_answered_after_the_timeout(inbox, connect):
    receiver = inbox(receive_timeout=0.1)
    assert connect(path_of(receiver)).rest().startswith(b"ERR empty ")


def test_half_an_object_then_the_end_is_incomplete(inbox, say):
    receiver = inbox()
    assert say(path_of(receiver), b'{"access_to', finish=True).startswith(b"ERR incomplete ")


def test_an_older_generation_is_stale_and_the_connection_goes_on(inbox, connect):
    receiver = inbox()
    peer = connect(path_of(receiver))
    peer.write(v1(5, "five"))
    assert peer.line() == b"OK\n"
    peer.write(v1(4, "four"))
    assert peer.line().startswith(b"ERR stale ")
    peer.write(v1(6, "six"))
    assert peer.line() == b"OK\n"
    assert receiver.get_latest_token() == "six"
    assert receiver.get_latest().extra["credential"] == "c"
    other = connect(path_of(receiver))
    other.write(v1(5, "five"))
    assert other.line().startswith(b"ERR stale ")


def test_the_same_token_again_is_fine_and_no_news(inbox, connect):
    tokens = queue.Queue()
    receiver = inbox(tokens.put)
    peer = connect(path_of(receiver))
    for message in (v1(5, "five"), v1(5, "five"), v1(6, "six")):
        peer.write(message)
        assert peer.line() == b"OK\n"
    assert receiver.token_count == 2
    assert receiver.get_stats()["outcomes"] == {"accepted": 2, "duplicate": 1}


# --- callbacks ---


def test_callbacks_get_text_or_the_token(inbox, say):
    texts, tokens = queue.Queue(), queue.Queue()
    receiver = inbox(texts.put)
    remove = receiver.add_callback(tokens.put, full=True)
    say(path_of(receiver), b"one\n")
    assert texts.get(timeout=20) == "one"
    assert tokens.get(timeout=20).access_token == "one"
    remove()
    remove()
    receiver.set_callback(None)
    receiver.add_callback(texts.put)
    say(path_of(receiver), b"two\n")
    assert texts.get(timeout=20) == "two"
    assert tokens.empty()


def test_a_callback_that_raises_disturbs_nobody_and_leaks_nothing(inbox, say, caplog):
    good, called = queue.Queue(), threading.Semaphore(0)

    def bad(token):
        called.release()
        raise ValueError(f"cannot use {token}")

    receiver = inbox(bad)
    receiver.add_callback(good.put)
    for text in ("secret-one", "secret-two"):
        say(path_of(receiver), text.encode() + b"\n")
        assert good.get(timeout=20) == text
        assert called.acquire(timeout=20)
    receiver.stop()
    join_callbacks()
    assert [courier["errors"] for courier in receiver.get_stats()["callbacks"]] == [2, 0]
    assert "Callback failed" in caplog.text
    assert "cannot use [redacted]" in caplog.text
    assert "secret-" not in caplog.text


def test_a_slow_callback_skips_to_the_newest_and_delays_nobody(inbox, say):
    seen, free, entered, fast = [], threading.Event(), threading.Event(), queue.Queue()
    done = threading.Event()

    def slow(token):
        seen.append(token)
        entered.set()
        assert free.wait(20)
        if token == "t9":
            done.set()

    receiver = inbox(slow)
    receiver.add_callback(fast.put)
    say(path_of(receiver), b"t0\n")
    assert fast.get(timeout=20) == "t0"
    assert entered.wait(20)
    for number in range(1, 10):
        assert say(path_of(receiver), b"t%d\n" % number) == b"OK\n"
        assert fast.get(timeout=20) == f"t{number}"
    free.set()
    assert done.wait(20)
    assert seen == ["t0", "t9"]
    assert receiver.get_stats()["callbacks"][0]["skipped"] == 8
    assert receiver.get_stats()["callbacks"][1]["skipped"] == 0


def test_stop_does_not_wait_for_a_callback_and_none_begins_after_it(inbox, say):
    free, entered, seen = threading.Event(), threading.Event(), []

    def slow(token):
        seen.append(token)
        entered.set()
        assert free.wait(20)

    receiver = inbox(slow)
    say(path_of(receiver), b"one\n")
    assert entered.wait(20)
    say(path_of(receiver), b"two\n")
    receiver.stop()
    assert not receiver.is_running
    free.set()
    join_callbacks()
    assert seen == ["one"]


def test_a_callback_may_stop_its_receiver(inbox, say):
    stopped = threading.Event()
    receiver = inbox()
    receiver.set_callback(lambda token: (receiver.stop(), stopped.set()))
    say(path_of(receiver), b"one\n")
    assert stopped.wait(20)
    assert not receiver.is_running


async def test_on_the_callers_loop_callbacks_may_be_coroutines(tmp_bots):
    loop, seen = asyncio.get_running_loop(), asyncio.Queue()

    async def take(token):
        assert asyncio.get_running_loop() is loop
        await seen.put(token)

    async def fail(token):
        raise ValueError("no")

    config = TokenReceiverConfig(unix_socket_path=tmp_bots / "a.sock")
    async with TokenReceiver(take, config) as receiver:
        receiver.add_callback(seen.put_nowait)
        receiver.add_callback(fail)
        assert receiver.is_running
        with pytest.raises(ConfigError, match="already"):
            await receiver.__aenter__()
        reader, writer = await asyncio.open_unix_connection(tmp_bots / "a.sock")
        writer.write(b"one\n")
        assert await reader.read() == b"OK\n"
        assert [await seen.get(), await seen.get()] == ["one", "one"]
        writer.close()
    assert not receiver.is_running
    assert not (tmp_bots / "a.sock").exists()
    assert receiver.get_stats()["callbacks"][2]["errors"] == 1


async def test_leaving_cancels_a_callback_under_way(tmp_bots):
    entered, ended = asyncio.Event(), asyncio.Event()

    async def endless(token):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    config = TokenReceiverConfig(unix_socket_path=tmp_bots / "a.sock")
    async with TokenReceiver(endless, config):
        _, writer = await asyncio.open_unix_connection(tmp_bots / "a.sock")
        writer.write(b"one\n")
        await entered.wait()
        writer.close()
    assert ended.is_set()


def test_a_coroutine_callback_without_a_loop_is_refused_in_words(inbox, tmp_bots):
    async def take(token): ...

    receiver = inbox(take, start=False)
    assert not receiver.start()
    assert "async with" in receiver.last_error
    receiver.set_callback(None)
    assert receiver.start()
    with pytest.raises(ConfigError, match="async with"):
        receiver.add_callback(take)
    assert receiver.last_error is None


async def test_start_works_inside_a_running_loop(inbox):
    tokens, arrived = [], asyncio.Event()
    loop = asyncio.get_running_loop()
    receiver = inbox(lambda token: (tokens.append(token), loop.call_soon_threadsafe(arrived.set)))
    reader, writer = await asyncio.open_unix_connection(path_of(receiver))
    writer.write(b"one\n")
    assert await reader.read() == b"OK\n"
    await arrived.wait()
    assert tokens == ["one"]
    writer.close()
    receiver.stop()


# --- start, stop, and what stands in the way ---


def test_start_twice_is_fine_and_stop_removes_the_socket(inbox):
    receiver = inbox()
    assert receiver.start()
    path = path_of(receiver)
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert receiver.address == f"unix:{path}"
    assert str(path) in repr(receiver)
    receiver.stop()
    receiver.stop()
    assert not path.exists()
    assert "not running" in repr(receiver)
    assert receiver.start()


def test_stop_waits_for_no_timeout(inbox, connect):
    receiver = inbox(accept_timeout=3600, receive_timeout=3600)
    connect(path_of(receiver)).write(b"half")
    receiver.stop()
    assert not receiver.is_running


def test_the_default_path_is_in_the_runtime_directory(clean_environment, say):
    with TokenReceiver() as receiver:
        path = clean_environment / "run" / "bots" / "default.sock"
        assert receiver.address == f"unix:{path}"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert say(path, b"test_token_abc123\n") == b"OK\n"


def test_two_receivers_in_one_process_do_not_mix(inbox, tmp_bots, say):
    one, two = queue.Queue(), queue.Queue()
    schwab = inbox(one.put, unix_socket_path=tmp_bots / "schwab.sock")
    projectx = inbox(two.put, unix_socket_path=tmp_bots / "projectx.sock")
    say(path_of(schwab), v1(9, "s", "schwab"), finish=True)
    say(path_of(projectx), b"p\n")
    assert (one.get(timeout=20), two.get(timeout=20)) == ("s", "p")
    assert (schwab.get_latest_token(), projectx.get_latest_token()) == ("s", "p")


def test_a_live_owner_is_never_robbed(inbox, say):
    first = inbox()
    second = inbox(start=False)
    assert not second.start()
    assert "listens here already" in second.last_error
    assert first.get_stats()["outcomes"] == {}
    with pytest.raises(StorageError, match="this process"), second:
        pass
    assert say(path_of(first), b"one\n") == b"OK\n"


def test_the_process_that_owns_the_path_is_named(inbox, tmp_bots):
    code = "import socket,sys;s=socket.socket(1);s.bind(sys.argv[1]);s.listen();print(1,flush=True);input()"
    path = tmp_bots / "default.sock"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        receiver = inbox(start=False)
        assert not receiver.start()
        assert f"process {other.pid}" in receiver.last_error
        other.communicate(b"\n")


def test_a_stale_socket_is_taken_over(inbox, tmp_bots, say):
    path = tmp_bots / "default.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    receiver = inbox()
    assert say(path_of(receiver), b"one\n") == b"OK\n"


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(inbox, tmp_bots, kind):
    path = tmp_bots / "default.sock"
    {"file": path.touch, "directory": path.mkdir, "link": lambda: path.symlink_to("/nowhere")}[
        kind
    ]()
    receiver = inbox(start=False)
    assert not receiver.start()
    assert "is not a socket" in receiver.last_error
    assert os.path.lexists(path)


def test_a_missing_directory_is_said_with_the_remedy(inbox, tmp_bots):
    receiver = inbox(start=False, unix_socket_path=tmp_bots / "no" / "x.sock")
    assert not receiver.start()
    assert "mkdir -p -m 700" in receiver.last_error


def test_a_directory_that_strangers_can_write_is_refused(inbox, tmp_bots):
    tmp_bots.chmod(0o777)
    receiver = inbox(start=False)
    assert not receiver.start()
    assert "chmod go-w" in receiver.last_error
    tmp_bots.chmod(0o700)


def test_a_sticky_directory_is_used_with_a_warning(inbox, tmp_bots, caplog):
    tmp_bots.chmod(0o1777)
    inbox()
    assert "others can write" in caplog.text


def test_a_path_that_is_too_long_is_refused_in_words(inbox, tmp_bots, monkeypatch):
    receiver = inbox(start=False, unix_socket_path=tmp_bots / ("x" * 108))
    assert not receiver.start()
    assert "107" in receiver.last_error
    monkeypatch.setenv("KEEPLINE_RUNTIME_DIR", str(tmp_bots / ("y" * 108)))
    receiver = TokenReceiver()
    assert not receiver.start()
    assert "KEEPLINE_RUNTIME_DIR" in receiver.last_error


def test_the_umask_changes_nothing(inbox, tmp_bots):
    old = os.umask(0)
    try:
        receiver = inbox(socket_mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path_of(receiver).stat().st_mode) == 0o600
    receiver.stop()
    old = os.umask(0o777)
    try:
        receiver = inbox(socket_mode=0o660, socket_group=os.getgid())
    finally:
        os.umask(old)
    assert stat.S_IMODE(path_of(receiver).stat().st_mode) == 0o660
    assert path_of(receiver).stat().st_gid == os.getgid()


def test_a_group_that_does_not_exist_is_said(inbox):
    receiver = inbox(start=False, socket_group="no-such-group", socket_mode=0o660)
    assert not receiver.start()
    assert "no-such-group" in receiver.last_error
    assert not path_of(receiver).exists()


def test_a_peer_of_another_user_is_turned_away_unread(inbox, say):
    receiver = inbox(allowed_uids=(os.getuid() + 1,))
    answer = say(path_of(receiver), b"x" * 100_000 + b"\n")
    assert answer == b"ERR forbidden user %d may not send tokens here\n" % os.getuid()
    assert receiver.get_latest_token() == ""


def test_no_descriptor_is_left_behind_by_a_thousand_connections(inbox, say):
    receiver = inbox()
    say(path_of(receiver), b"warm\n")
    receiver.stop()
    assert receiver.start()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(1000):
        assert say(path_of(receiver), b"t%d\n" % number) == b"OK\n"
    receiver.stop()
    assert receiver.start()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_too_many_connections_are_told_so(inbox, connect):
    receiver = inbox(max_connections=2)
    held = [connect(path_of(receiver)) for _ in range(2)]
    for peer in held:
        peer.write(b'{"half":')
    assert connect(path_of(receiver)).rest() == b"ERR busy too many connections\n"
    held[0].write(b"1}")
    assert held[0].rest().startswith(b"ERR bad_field")


def test_an_idle_connection_makes_room_for_a_new_one(inbox, connect):
    receiver = inbox(max_connections=2)
    idle = [connect(path_of(receiver)) for _ in range(2)]
    for number, peer in enumerate(idle):
        peer.write(v1(number + 1))
        assert peer.line() == b"OK\n"
    idle[0].write(v1(3))  # now the second is the longest idle
    assert idle[0].line() == b"OK\n"
    fresh = connect(path_of(receiver))
    fresh.write(v1(4))
    assert fresh.line() == b"OK\n"
    assert idle[1].rest() == b""
    idle[0].write(v1(5))
    assert idle[0].line() == b"OK\n"


def test_a_peer_that_never_reads_its_answers_is_dropped(inbox, connect):
    receiver = inbox(receive_timeout=0.2)
    peer = connect(path_of(receiver))
    message = v1(1) * 50
    with contextlib.suppress(ConnectionError):
        for _ in itertools.repeat(None):
            peer.write(message)
    assert receiver.get_stats()["connections"] == 0


async def test_a_socket_that_vanished_is_bound_again(tmp_bots, caplog):
    clock = ManualClock()
    path = tmp_bots / "a.sock"
    async with TokenReceiver(config=TokenReceiverConfig(unix_socket_path=path), clock=clock) as bot:
        await clock.until_asleep()
        inode = path.stat().st_ino
        clock.advance(5)
        await clock.until_asleep()
        assert path.stat().st_ino == inode
        path.unlink()
        clock.advance(5)
        await clock.until_asleep()
        assert "Socket bound again" in caplog.text
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"one\n")
        assert await reader.read() == b"OK\n"
        writer.close()
        assert bot.get_latest_token() == "one"


async def test_a_path_that_somebody_else_took_is_left_to_them_until_they_go(tmp_bots):
    clock = ManualClock()
    path = tmp_bots / "a.sock"
    async with TokenReceiver(config=TokenReceiverConfig(unix_socket_path=path), clock=clock) as bot:
        await clock.until_asleep()
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
        other.listen()
        clock.advance(5)
        await clock.until_asleep()
        assert "cannot be made again" in bot.last_error
        assert bot.is_running
        other.close()
        clock.advance(5)
        await clock.until_asleep()
        assert bot.last_error is None
    assert not path.exists()


def test_stop_leaves_the_socket_of_another_alone(inbox):
    receiver = inbox()
    path = path_of(receiver)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        receiver.stop()
        assert path.exists()


# --- TCP ---


def test_tcp_is_only_open_with_a_secret_or_plain_words(inbox):
    receiver = inbox(start=False, prefer_unix_socket=False, tcp_port=0)
    assert not receiver.start()
    assert "shared_secret" in receiver.last_error
    receiver = inbox(
        start=False,
        prefer_unix_socket=False,
        tcp_port=0,
        tcp_host="0.0.0.0",
        shared_secret="s" * 16,
    )
    assert not receiver.start()
    assert "allow_plain_tcp_beyond_loopback" in receiver.last_error
    receiver = inbox(
        start=False,
        prefer_unix_socket=False,
        tcp_port=0,
        tcp_host="0.0.0.0",
        allow_plain_tcp_beyond_loopback=True,
        allow_unauthenticated_loopback=True,
    )
    assert not receiver.start()
    assert "shared_secret" in receiver.last_error


def test_tcp_on_loopback_when_allowed(inbox, say):
    receiver = inbox(prefer_unix_socket=False, tcp_port=0, allow_unauthenticated_loopback=True)
    host, port = receiver.address.removeprefix("tcp://").split(":")
    assert say((host, int(port)), b"one\n") == b"OK\n"
    assert receiver.get_latest_token() == "one"
    assert receiver.history()[0].pid is None


def test_without_unix_sockets_tcp_is_the_fallback(inbox, monkeypatch):
    monkeypatch.delattr(socket, "AF_UNIX")
    receiver = inbox(tcp_port=0, allow_unauthenticated_loopback=True)
    assert receiver.address.startswith("tcp://127.0.0.1:")


def test_a_port_in_use_is_said_with_the_remedy(inbox):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        receiver = inbox(
            start=False,
            prefer_unix_socket=False,
            tcp_port=port,
            allow_unauthenticated_loopback=True,
        )
        assert not receiver.start()
    assert str(port) in receiver.last_error
    assert "another tcp_port" in receiver.last_error


# --- what it says of itself ---


def test_history_and_statistics_hold_no_secret(inbox, say, caplog):
    caplog.set_level(logging.INFO, "keepline.relay")
    receiver = inbox(history_size=2)
    for name in ("secret-1", "secret-2", "secret-3"):
        say(
            path_of(receiver),
            json.dumps({"access_token": name, "refresh_token": "secret-r"}).encode(),
        )
    history = receiver.history()
    assert [line.fingerprint for line in history][-1] == receiver.get_latest().fingerprint
    assert len(history) == 2
    assert history[-1].pid == os.getpid()
    stats = receiver.get_stats()
    assert stats["token_count"] == receiver.token_count == 3
    assert stats["running"]
    assert stats["last_error"] is None
    shown = repr(history) + json.dumps(stats) + repr(receiver) + repr(receiver.config) + caplog.text
    assert "secret-" not in shown
    assert "Token received" in caplog.text


def test_arrivals_are_counted_by_outcome(inbox, say):
    counter = REGISTRY.counter("relay_received_total", "", "outcome")
    before = counter.value("accepted"), counter.value("bad_text")
    receiver = inbox()
    say(path_of(receiver), b"one\n")
    say(path_of(receiver), b"two words\n")
    assert (counter.value("accepted"), counter.value("bad_text")) == (before[0] + 1, before[1] + 1)


def test_every_thread_reads_whole_tokens(inbox, connect):
    receiver = inbox()
    peer = connect(path_of(receiver))
    torn, over = [], threading.Event()

    def read():
        while not over.is_set():
            token = receiver.get_latest()
            if token and token.access_token != f"t{token.generation}":
                torn.append(token)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        peer.write(b"".join(v1(generation, f"t{generation}") for generation in range(1, 2000)))
        peer.finish()
        assert peer.rest() == b"OK\n" * 1999
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert not torn


# --- after a restart, after a fork, at exit ---


def test_the_newest_token_survives_a_restart_encrypted(inbox, say, clean_environment, monkeypatch):
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "correct horse battery staple")
    persist = clean_environment / "data" / "bot.enc"
    receiver = inbox(persist_path=persist)
    say(path_of(receiver), v1(7, "kept-secret")[:-1], finish=True)
    receiver.stop()
    join_callbacks()
    assert b"kept-secret" not in persist.read_bytes()
    again = inbox(persist_path=persist)
    assert again.get_latest_token() == "kept-secret"
    assert again.token_count == 0
    assert say(path_of(again), v1(6, "older"), finish=True).startswith(b"ERR stale")


def test_a_kept_token_that_expired_is_not_served(inbox, clean_environment, monkeypatch):
    from keepline.credentials.storage import TokenStorage

    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "correct horse battery staple")
    persist = clean_environment / "data" / "bot.enc"
    clock = ManualClock()
    from keepline.credentials.token import Token

    TokenStorage(persist).store(Token("dead", expires_at=clock.wall(), issued_at=clock.wall()))
    assert inbox(persist_path=persist, clock=clock).get_latest_token() == ""


def test_a_kept_token_that_cannot_be_read_stops_nothing(inbox, say, clean_environment, caplog):
    persist = clean_environment / "data" / "bot.enc"
    persist.write_bytes(b"rubbish")
    persist.chmod(0o600)
    receiver = inbox(persist_path=persist)
    assert "cannot be read" in caplog.text
    assert say(path_of(receiver), b"one\n") == b"OK\n"


def test_a_token_that_cannot_be_kept_is_served_and_said(inbox, say, clean_environment, monkeypatch):
    monkeypatch.setenv("KEEPLINE_STORAGE_KEY", "correct horse battery staple")
    folder = clean_environment / "data" / "kept"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    receiver = inbox(persist_path=folder / "bot.enc")
    assert say(path_of(receiver), b"one\n") == b"OK\n"
    receiver.stop()
    join_callbacks()
    assert "could not be saved" in receiver.last_error
    assert receiver.get_latest_token() == "one"


def test_a_forked_child_has_no_receiver_and_takes_nothing_from_the_parent(inbox, say):
    receiver = inbox()
    assert say(path_of(receiver), b"one\n") == b"OK\n"
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        sys.settrace(
            None
        )  # a lock of the tracer that measures coverage may have been held at the fork
        try:
            receiver.stop()
            os.write(
                outside, b"%d %s" % (receiver.is_running, receiver.get_latest_token().encode())
            )
        finally:
            os._exit(0)
    os.close(outside)
    os.waitpid(child, 0)
    with os.fdopen(inside) as pipe:
        assert pipe.read() == "0 one"
    assert say(path_of(receiver), b"two\n") == b"OK\n"


def test_a_program_that_ends_without_stop_leaves_no_socket(clean_environment):
    code = textwrap.dedent(
        """
        from keepline import TokenReceiver
        receiver = TokenReceiver()
        assert receiver.start(), receiver.last_error
        print(receiver.config.unix_socket_path)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not os.path.lexists(done.stdout.strip())


def test_the_loop_of_receivers_is_the_shared_portal(inbox):
    inbox()
    assert shared_portal().is_running


def test_each_connection_gets_a_nonce_of_its_own_so_a_copied_push_is_worth_nothing(inbox, connect):
    receiver = inbox(shared_secret="a secret of sixteen")
    first, second = connect(path_of(receiver)), connect(path_of(receiver))
    nonces = [json.loads(peer.line())["nonce"] for peer in (first, second)]
    assert len(set(nonces)) == 2
    sealed = seal(b"a secret of sixteen", nonces[0], 0, b"tok") + b"\n"
    first.write(sealed)
    assert first.rest() == b"OK\n"
    second.write(sealed)
    assert second.rest().startswith(b"ERR bad_mac ")
    assert receiver.token_count == 1


async def test_whoever_reads_ok_finds_the_token_in_place(tmp_bots):
    seen, done, ours = [], asyncio.Event(), socket.socket(socket.AF_UNIX)

    def arrived(arrival, peer):
        with contextlib.suppress(BlockingIOError):
            seen.append(ours.recv(100))  # nothing may be there yet
        done.set()

    config = TokenReceiverConfig(unix_socket_path=tmp_bots / "x.sock")
    listener = Listener(
        listener_options(config),
        Ledger(),
        clock=SYSTEM_CLOCK,
        on_arrival=arrived,
        on_trouble=lambda trouble: None,
    )
    await listener.open()
    with ours:
        ours.connect(str(tmp_bots / "x.sock"))
        ours.setblocking(False)
        ours.send(b"tok\n")
        await done.wait()
        assert seen == []
        assert await asyncio.get_running_loop().sock_recv(ours, 100) == b"OK\n"
    await listener.close()


def hung_up(peer):
    """Wait until the other end let go altogether."""
    poll = select.poll()
    poll.register(peer.socket, 0)
    return bool(poll.poll(20_000))


def test_a_refused_peer_that_stays_is_dropped_after_a_while(inbox, connect, monkeypatch):
    monkeypatch.setattr(listener_module, "_LINGER_SECONDS", 0.01)
    peer = connect(path_of(inbox(receive_timeout=3600.0)))
    peer.write(b"two words\n")
    assert peer.rest().startswith(b"ERR bad_text ")
    assert hung_up(peer)


def test_a_refused_peer_that_writes_on_and_on_is_dropped_at_once(inbox, connect, monkeypatch):
    monkeypatch.setattr(listener_module, "_LINGER_SECONDS", 3600.0)
    peer = connect(path_of(inbox()))
    peer.write(b"two words\n")
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        peer.write(b"x" * (8 << 20))


def test_stop_drops_those_who_are_connected(inbox, connect):
    receiver = inbox()
    peer = connect(path_of(receiver))
    peer.write(v1())
    assert peer.line() == b"OK\n"
    receiver.stop()
    assert peer.rest() == b""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EADDRINUSE, "Address already in use; stop the other program or choose another"),
        (errno.EACCES, "Permission denied; ports below 1024 belong to root"),
        (errno.EADDRNOTAVAIL, "tcp_host is no address of this machine"),
    ],
)
def test_why_tcp_does_not_listen_is_said_in_words(inbox, monkeypatch, number, words):
    async def fail(self):
        raise OSError(number, "error while attempting to bind on address ('127.0.0.1', 1)")

    monkeypatch.setattr(listener_module.Listener, "_open_tcp", fail)
    receiver = inbox(
        start=False, prefer_unix_socket=False, allow_unauthenticated_loopback=True, tcp_port=1
    )
    assert not receiver.start()
    assert words in receiver.last_error
    assert "(" not in receiver.last_error


def test_a_home_directory_that_there_is_not_is_said(inbox):
    receiver = inbox(start=False, unix_socket_path="~nobody-of-this-name/x.sock")
    assert not receiver.start()
    assert "there is no home directory for ~nobody-of-this-name" in receiver.last_error
    with pytest.raises(ConfigError, match="no home directory") as caught:
        inbox(start=False, persist_path="~nobody-of-this-name/x.enc")
    assert caught.value.key == "persist_path"
