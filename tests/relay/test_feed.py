"""Following a credential at the daemon."""

import asyncio
import logging
import os
import queue
import threading

import pytest
from tests.relay.daemon_double import DaemonDouble

from keepline.errors import ConfigError
from keepline.relay.feed import TokenFeed
from keepline.testing import ManualClock


@pytest.fixture
async def daemon(tmp_bots):
    async with DaemonDouble(tmp_bots / "daemon.sock") as double:
        yield double


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


class ThreadedDaemon:
    """The same daemon on a loop of its own, for plain code."""

    def __init__(self, path):
        self.double = DaemonDouble(path)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        self._ready.wait()

    async def _run(self):
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with self.double:
            self._ready.set()
            await self._over.wait()

    def publish(self, credential, token):
        self._loop.call_soon_threadsafe(self.double.publish, credential, token)

    def close(self):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@pytest.fixture
def plain_daemon(tmp_bots):
    daemon = ThreadedDaemon(tmp_bots / "daemon.sock")
    yield daemon
    daemon.close()


async def test_iterating_gives_the_current_token_and_every_renewal(daemon, make_token):
    daemon.tokens["schwab"] = make_token("t1", generation=1)
    feed = TokenFeed("schwab", daemon.path)
    seen = []
    async for token in feed:
        seen.append(token.access_token)
        assert feed.get_latest_token() == token.access_token
        if len(seen) == 3:
            break
        daemon.publish("schwab", make_token(f"t{len(seen) + 1}", generation=len(seen) + 1))
    assert seen == ["t1", "t2", "t3"]
    assert feed.token_count == 3
    await until(lambda: not daemon.connections)


async def test_a_slow_reader_gets_the_newest(daemon, make_token):
    daemon.tokens["schwab"] = make_token("t1", generation=1)
    feed = TokenFeed("schwab", daemon.path)
    tokens = aiter(feed)
    assert (await anext(tokens)).access_token == "t1"
    for generation in range(2, 30):
        daemon.publish("schwab", make_token(f"t{generation}", generation=generation))
        await until(lambda g=generation: feed.get_latest().generation == g)
    assert (await anext(tokens)).access_token == "t29"
    await tokens.aclose()


async def test_the_feed_comes_back_when_the_daemon_does(tmp_bots, make_token, caplog):
    clock, seen = ManualClock(), []
    path = tmp_bots / "daemon.sock"
    async with TokenFeed("schwab", path, callback=seen.append, clock=clock) as feed:
        for delay in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0):
            await until(lambda d=delay: clock.next_wake == pytest.approx(d))
            assert "keepline run" in feed.last_error
            clock.advance(delay - 1e-9 if delay == 10.0 else delay)
            if delay == 10.0:
                clock.advance(1e-6)
        assert caplog.text.count("Feed not connected") == 1
        await until(lambda: clock.next_wake == pytest.approx(10.0))
        async with DaemonDouble(path) as daemon:
            daemon.tokens["schwab"] = make_token("t1", generation=1)
            clock.advance(10.0)
            await until(lambda: seen == ["t1"])
            assert feed.is_connected
            assert feed.last_error is None
            daemon.drop()
            await until(lambda: not feed.is_connected)
        assert feed.get_latest_token() == "t1"


async def test_a_connection_that_lasts_resets_the_delays_and_a_short_one_does_not(
    daemon, make_token
):
    daemon.tokens["schwab"] = make_token()
    clock = ManualClock()
    async with TokenFeed("schwab", daemon.path, clock=clock) as feed:
        for delay in (0.1, 0.2, 0.4):
            await until(lambda: feed.is_connected)
            daemon.drop()
            await until(lambda d=delay: clock.next_wake == pytest.approx(d))
            clock.advance(delay)
        await until(lambda: feed.is_connected)
        clock.advance(10.0)
        daemon.drop()
        await until(lambda: clock.next_wake == pytest.approx(0.1))


async def test_the_same_token_after_a_reconnect_is_handed_over_once(daemon, make_token):
    clock, seen = ManualClock(), []
    daemon.tokens["schwab"] = make_token("t1", generation=5)
    async with TokenFeed("schwab", daemon.path, callback=seen.append, clock=clock) as feed:
        await until(lambda: seen == ["t1"])
        for generation, access in ((5, "t1"), (4, "older"), (6, "t6"), (6, "t6-again")):
            daemon.tokens["schwab"] = make_token(access, generation=generation)
            daemon.subscribed.clear()
            daemon.drop()
            await until(lambda: clock.next_wake and clock.next_wake < 40)
            clock.advance(clock.next_wake)
            await daemon.subscribed.wait()
            await until(lambda: feed.is_connected)
        await until(lambda: seen == ["t1", "t6", "t6-again"])
        assert feed.token_count == 3


async def test_an_unknown_credential_is_said_and_tried_again(daemon, make_token, caplog):
    clock = ManualClock()
    async with TokenFeed("typo", daemon.path, clock=clock) as feed:
        await until(lambda: feed.last_error)
        assert "no credential typo" in feed.last_error
        daemon.tokens["typo"] = make_token("t1")
        await until(lambda: clock.next_wake == pytest.approx(0.1))
        clock.advance(0.1)
        await until(lambda: feed.get_latest_token() == "t1")
    assert "Feed not connected" in caplog.text


async def test_coroutine_callbacks_run_on_the_callers_loop(daemon, make_token):
    daemon.tokens["schwab"] = make_token("t1")
    got, loop = asyncio.Queue(), asyncio.get_running_loop()

    async def take(token):
        assert asyncio.get_running_loop() is loop
        await got.put(token)

    feed = TokenFeed("schwab", daemon.path)
    feed.set_callback(take)
    remove = feed.add_callback(got.put_nowait, full=True)
    async with feed:
        assert feed.is_running
        assert {str(await got.get()), str(await got.get())} == {"t1", str(feed.get_latest())}
        with pytest.raises(ConfigError, match="already"):
            await feed.__aenter__()
        remove()
    assert not feed.is_running


def test_plain_code_gets_callbacks_on_threads(plain_daemon, make_token):
    plain_daemon.double.tokens["schwab"] = make_token("t1", generation=1)
    got = queue.Queue()
    with TokenFeed("schwab", plain_daemon.double.path, callback=got.put) as feed:
        assert got.get(timeout=20) == "t1"
        feed.start()
        plain_daemon.publish("schwab", make_token("t2", generation=2))
        assert got.get(timeout=20) == "t2"
        assert feed.get_latest_token() == "t2"
        stats = feed.get_stats()
        assert (stats["running"], stats["connected"], stats["token_count"]) == (True, True, 2)
    assert not feed.is_running
    assert not feed.is_connected
    feed.stop()
    assert feed.get_stats()["running"] is False


def test_a_coroutine_callback_in_plain_code_is_refused(plain_daemon):
    async def take(token): ...

    with pytest.raises(ConfigError, match="async with"):
        TokenFeed("schwab", plain_daemon.double.path, callback=take).start()


@pytest.mark.parametrize("settings", [("a b", None), ("", None)])
def test_a_name_that_is_none_is_refused(settings):
    with pytest.raises(ConfigError):
        TokenFeed(*settings)


def test_an_address_that_is_none_is_refused_at_start():
    with pytest.raises(ConfigError):
        TokenFeed("schwab", "nothing").start()


def test_nothing_secret_is_shown(plain_daemon, make_token, caplog):
    caplog.set_level(logging.DEBUG, "keepline.relay")
    plain_daemon.double.tokens["schwab"] = make_token("secret-a")
    got = queue.Queue()
    with TokenFeed("schwab", plain_daemon.double.path, callback=got.put) as feed:
        got.get(timeout=20)
        shown = repr(feed) + repr(feed.get_stats()) + repr([vars(r) for r in caplog.records])
    assert "secret-" not in shown
    assert "Token received" in caplog.text


def test_a_forked_child_has_no_feed_until_it_starts_one(plain_daemon, make_token):
    plain_daemon.double.tokens["schwab"] = make_token("t1")
    got = queue.Queue()
    with TokenFeed("schwab", plain_daemon.double.path, callback=got.put) as feed:
        got.get(timeout=20)
        inside, outside = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                before = feed.is_running
                feed.stop()
                mine = queue.Queue()
                with TokenFeed("schwab", plain_daemon.double.path, callback=mine.put):
                    os.write(outside, b"%d %s" % (before, mine.get(timeout=20).encode()))
            finally:
                os._exit(0)
        os.close(outside)
        os.waitpid(child, 0)
        with os.fdopen(inside) as pipe:
            assert pipe.read() == "0 t1"
        assert feed.is_running
