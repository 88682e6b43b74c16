"""A client of the daemon's socket."""

import asyncio
import os

import pytest
from tests.relay.daemon_double import DaemonDouble

from keepline.errors import Closed, ConfigError, ProtocolError, StorageError, TransientError
from keepline.relay import local
from keepline.relay.local import LocalClient
from keepline.testing import ManualClock


@pytest.fixture
async def daemon(tmp_bots):
    async with DaemonDouble(tmp_bots / "daemon.sock") as double:
        yield double


async def test_hello_ping_status_and_tokens(daemon, make_token):
    daemon.tokens["schwab"] = make_token("tok", generation=4)
    async with LocalClient(daemon.path, name="test") as client:
        assert daemon.requests[0].client == "test"
        assert (await client.ping())["time"] == 1.0
        assert (await client.status())["state"] == "fine"
        token = await client.get_token("schwab", newer_than=3)
        assert (token.access_token, token.refresh_token, token.generation) == ("tok", "", 4)
        assert (await client.refresh_token("schwab", than=4)).generation == 4
        assert [(r.op, r.newer_than, r.than) for r in daemon.requests[-2:]] == [
            ("token.get", 3, None),
            ("token.refresh", None, 4),
        ]
        with pytest.raises(ConfigError, match="no credential nothing"):
            await client.get_token("nothing")
        assert "connected" in repr(client)


async def test_hello_names_the_daemon(daemon):
    client = LocalClient(daemon.path)
    assert (await client.connect())["server"] == "keepline"
    with pytest.raises(RuntimeError, match="already"):
        await client.connect()
    await client.close()
    await client.close()
    assert "closed" in repr(client)


async def test_the_default_address_is_the_daemons_socket(clean_environment):
    assert LocalClient().address.path == clean_environment / "run" / "daemon.sock"


async def test_many_requests_at_once_get_each_its_own_answer(daemon, make_token):
    for number in range(20):
        daemon.tokens[f"c{number}"] = make_token(f"tok-{number}")
    async with LocalClient(daemon.path) as client:
        tokens = await asyncio.gather(*(client.get_token(f"c{number}") for number in range(20)))
    assert [token.access_token for token in tokens] == [f"tok-{number}" for number in range(20)]


async def test_a_subscription_has_the_current_token_and_every_renewal(daemon, make_token):
    daemon.tokens["schwab"] = make_token("t1", generation=1)
    async with LocalClient(daemon.path) as client:
        subscription = await client.subscribe("schwab")
        assert (await subscription.next()).access_token == "t1"
        daemon.publish("schwab", make_token("t2", generation=2))
        assert (await subscription.next()).access_token == "t2"
        daemon.publish("schwab", make_token("t3", generation=3))
        await client.ping()
        daemon.publish("schwab", make_token("t4", generation=4))
        await client.ping()
        assert (await subscription.next()).access_token == "t4"


async def test_a_subscription_before_the_first_token_waits_for_it(daemon, make_token):
    daemon.tokens["schwab"] = None
    async with LocalClient(daemon.path) as client:
        subscription = await client.subscribe("schwab")
        daemon.publish("schwab", make_token("t1"))
        assert (await subscription.next()).access_token == "t1"


async def test_an_older_generation_never_replaces_an_unread_newer_one(make_token):
    subscription = local.Subscription("schwab")
    subscription.offer(make_token("new", generation=2))
    subscription.offer(make_token("old", generation=1))
    assert (await subscription.next()).access_token == "new"


async def test_closing_ends_an_iteration_and_the_daemon_dying_breaks_it(daemon, make_token):
    daemon.tokens["schwab"] = make_token()
    client = LocalClient(daemon.path)
    await client.connect()
    subscription = await client.subscribe("schwab")
    seen = []
    async for token in subscription:
        seen.append(token)
        await client.close()
    assert len(seen) == 1

    await client.connect()
    subscription = await client.subscribe("schwab")
    await subscription.next()
    daemon.drop()
    with pytest.raises(TransientError, match="ended the connection"):
        async for _ in subscription:
            pass
    with pytest.raises(TransientError):
        await client.ping()
    await client.close()


async def test_requests_under_way_fail_when_the_connection_ends(daemon):
    async with LocalClient(daemon.path) as client:
        daemon.answering = False
        waiting = asyncio.ensure_future(client.ping())
        while len(daemon.requests) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        daemon.drop()
        with pytest.raises(TransientError, match="ended"):
            await waiting


async def test_closing_fails_requests_under_way(daemon):
    client = LocalClient(daemon.path)
    await client.connect()
    daemon.answering = False
    waiting = asyncio.ensure_future(client.ping())
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed, match="not connected"):
        await client.ping()


async def test_a_daemon_that_does_not_answer_is_given_up(daemon):
    clock = ManualClock()
    client = LocalClient(daemon.path, timeout=45.0, clock=clock)
    await client.connect()
    daemon.answering = False
    task = asyncio.ensure_future(client.ping())
    await clock.run_until(task.done)
    with pytest.raises(TransientError, match="no answer to ping") as caught:
        await task
    assert caught.value.category == "timeout"
    daemon.answering = True
    assert await client.ping()
    await client.close()


async def test_nobody_there_is_said_with_what_to_do(tmp_bots):
    for path in (tmp_bots / "none.sock", tmp_bots / "none" / "x.sock"):
        with pytest.raises(TransientError, match="keepline run") as caught:
            await LocalClient(path).connect()
        assert caught.value.sent is False


async def test_a_socket_of_a_stranger_is_not_used(daemon, tmp_bots, monkeypatch):
    tmp_bots.chmod(0o777)
    with pytest.raises(StorageError, match="strangers"):
        await LocalClient(daemon.path).connect()
    tmp_bots.chmod(0o700)
    monkeypatch.setattr(local, "trusted_owners", lambda path: {os.geteuid() + 1})
    with pytest.raises(TransientError, match="belongs to user"):
        await LocalClient(daemon.path).connect()


async def test_what_speaks_another_protocol_is_said(tmp_bots):
    async def speak(reader, writer):
        await reader.readline()
        writer.write(b"220 mail ready\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(speak, tmp_bots / "x.sock") as server:
        client = LocalClient(tmp_bots / "x.sock")
        with pytest.raises(ProtocolError, match="not of its protocol"):
            await client.connect()
        server.close()


async def test_an_answer_without_a_number_ends_the_connection(tmp_bots):
    async def speak(reader, writer):
        await reader.readline()
        writer.write(b'{"v":1,"id":99,"ok":true}\n')
        writer.write(
            b'{"v":1,"id":null,"ok":false,"error":{"code":"bad_request","message":"what?"}}\n'
        )
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(speak, tmp_bots / "x.sock") as server:
        with pytest.raises(ProtocolError, match="what"):
            await LocalClient(tmp_bots / "x.sock").connect()
        server.close()


async def test_tls_needs_certificates_and_tcp_needs_a_listener():
    with pytest.raises(ProtocolError, match="certificates"):
        await LocalClient("tls://127.0.0.1:9").connect()
    with pytest.raises(TransientError, match="cannot be reached"):
        await LocalClient("tcp://127.0.0.1:9").connect()


async def test_a_connection_that_is_never_made_is_given_up(daemon, monkeypatch):
    async def never(self):
        await asyncio.Event().wait()

    monkeypatch.setattr(LocalClient, "_open", never)
    clock = ManualClock()
    task = asyncio.ensure_future(LocalClient(daemon.path, clock=clock).connect())
    await clock.run_until(task.done)
    with pytest.raises(TransientError, match="no connection in time"):
        await task
