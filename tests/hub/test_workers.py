"""Workers: real processes that share one port, see every message in order, and are replaced when they are lost."""

import asyncio
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.hub.watcher import Watcher, add_ann, settings, token

from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.hub.channels import Policy
from keepline.hub.opening import GateSettings
from keepline.hub.process import HubProcess
from keepline.hub.registrar import Registrar
from keepline.hub.server import AnalyticsHub
from keepline.hub.settings import CHANNELS, ChannelSettings, HubConfig
from keepline.hub.signing import KEYS_FILE_NAME
from keepline.hub.workers import Workers
from keepline.resilience.backoff import Backoff

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")


@pytest.fixture(autouse=True)
def ann(clean_environment: Path) -> None:
    add_ann(clean_environment)


@asynccontextmanager
async def hub(directory: Path, workers: int = 2, **more: Any) -> AsyncIterator[AnalyticsHub]:
    async with AnalyticsHub(settings(directory, workers=workers, **more)) as running:
        assert running.workers is not None
        await running.workers.complete()
        await running.ready()
        yield running


@asynccontextmanager
async def watchers(url: str, count: int) -> AsyncIterator[list[Watcher]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Watcher(url)) for _ in range(count)]


async def get(url: str) -> Any:
    async with HttpSession() as http:
        return await http.request("GET", url, headers={"Authorization": f"Bearer {token()}"})


async def restarts(url: str) -> float:
    """How many workers were replaced, by the hub's numbers; none yet is no line."""
    metrics = (await get(f"{url}/metrics")).body.decode()
    found = re.search(r"^keepline_hub_worker_restarts_total (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_clients_are_spread_and_each_sees_everything_in_order(
    clean_environment: Path,
) -> None:
    async with hub(clean_environment) as running, watchers(running.url, 6) as screens:
        for screen in screens:
            await screen.subscribe("alerts", "routing-metrics")
        assert len(running.attendance) == 0  # all of them are with the workers
        for number in range(50):
            running.publish("routing-metrics", "routing-decision", {"n": number})
        await running.publish_durable("alerts", "alert", {"title": "one"}, id="a1")
        for screen in screens:
            await screen.kind("routing-decision", n=49)
            seen = [m["data"]["n"] for m in screen.messages if m["type"] == "routing-decision"]
            assert seen == list(range(50))
            if not any(m["type"] == "alert" for m in screen.messages):
                await screen.kind("alert", title="one")
        told = (await get(f"{running.url}/api/clients")).json()
        assert told["total"] == 6
        assert {each["user"] for each in told["clients"]} == {"ann"}
        metrics = (await get(f"{running.url}/metrics")).body.decode()
        assert re.search(r"^keepline_hub_clients 6\.0$", metrics, re.MULTILINE)
        ready = await get(f"{running.url}/readyz")
        assert ready.json() == {"ready": True, "reasons": []}


async def test_sign_in_history_and_a_wrong_token_are_answered_on_the_same_port(
    clean_environment: Path,
) -> None:
    async with hub(clean_environment, workers=1) as running, HttpSession() as http:
        body = {"username": "ann", "password": "correct-horse-7-staple"}
        answer = await http.request("POST", f"{running.url}/login", json=body)
        assert answer.status == 200
        async with Watcher(running.url, answer.json()["token"]) as screen:
            await screen.alive()
        assert (await get(f"{running.url}/api/alerts")).status == 200
        refused = await http.request(
            "GET", f"{running.url}/ws/analytics", headers={"Authorization": "Bearer x.y.z"}
        )
        assert refused.status == 426
        assert refused.headers["Connection"].lower() in ("close", "upgrade")
        assert (await http.request("GET", f"{running.url}/healthz")).status == 200


async def test_one_that_is_killed_is_replaced_and_its_clients_go_on_where_they_were(
    clean_environment: Path,
) -> None:
    async with hub(clean_environment, workers=1) as running:
        assert running.workers is not None
        async with Watcher(running.url) as screen:
            await screen.subscribe("alerts")
            await running.publish_durable("alerts", "alert", {"n": 1})
            last = await screen.kind("alert", n=1)
            (pid,) = running.workers.pids
            before = await restarts(running.url)
            os.kill(pid, signal.SIGKILL)
            assert await screen.end() == 1006
        await running.publish_durable("alerts", "alert", {"n": 2})
        await running.workers.complete()
        assert running.workers.pids != [pid]
        assert await restarts(running.url) == before + 1
        await running.publish_durable("alerts", "alert", {"n": 3})
        async with Watcher(running.url) as screen:
            where = {"epoch": last["epoch"], "offset": last["offset"]}
            told = await screen.subscribe("alerts", resume={"alerts": where})
            assert told["data"]["recovered"] is True
            await screen.kind("alert", n=2)
            await screen.kind("alert", n=3)
        assert running.reasons == []


async def test_what_memory_no_longer_has_is_read_by_the_hub(clean_environment: Path) -> None:
    short = ChannelSettings(name="alerts", policy=Policy.NEVER, history_count=3, snapshot_count=2)
    channels = tuple(short if each.name == "alerts" else each for each in CHANNELS)
    async with hub(clean_environment, workers=1, channels=channels) as running:
        for number in range(1, 31):
            stored = await running.publish_durable("alerts", "alert", {"n": number})
        async with Watcher(running.url) as screen:
            where = {"epoch": stored.epoch, "offset": 0}
            told = await screen.subscribe("alerts", resume={"alerts": where})
            assert told["data"]["recovered"] is True
            await screen.kind("alert", n=30)
            seen = [m["data"]["n"] for m in screen.messages if m["type"] == "alert"]
            assert seen == list(range(1, 31))


async def test_one_that_stands_still_is_given_up(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub(clean_environment, workers=1) as running:
        workers = running.workers
        assert workers is not None
        monkeypatch.setattr(workers, "_silence_seconds", 1.5)
        (first,) = workers.pids
        os.kill(first, signal.SIGKILL)  # its successor has the shorter patience
        async with asyncio.timeout(60):
            while first in workers.pids or not workers.pids:
                await get(f"{running.url}/readyz")
            await workers.complete()
            (second,) = workers.pids
            os.kill(second, signal.SIGSTOP)
            while second in workers.pids:
                await get(f"{running.url}/readyz")
            await workers.complete()
        assert second not in workers.pids
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)


async def test_a_user_who_is_revoked_is_sent_away_by_every_worker(clean_environment: Path) -> None:
    async with hub(clean_environment) as running, watchers(running.url, 4) as screens:
        for screen in screens:
            await screen.alive()
        await running.revoke("ann")
        assert [await screen.end() for screen in screens] == [3502] * 4


async def test_at_the_end_all_are_told_to_come_back(
    clean_environment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with hub(clean_environment) as running:
        async with watchers(running.url, 4) as screens:
            for screen in screens:
                await screen.alive()
            ending = asyncio.gather(running.stop(), *(screen.end() for screen in screens))
            assert (await ending)[1:] == [3001] * 4
        assert running.workers is not None
        assert running.workers.pids == []
    assert "Worker lost" not in caplog.text


async def test_they_have_all_the_time_in_which_clients_are_sent_away(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepline.hub.workers._GRACE_SECONDS", 0.5)
    async with (
        hub(clean_environment, workers=1, drain_seconds=2.0) as running,
        watchers(running.url, 4) as screens,
    ):
        for screen in screens:
            await screen.alive()
        ending = asyncio.gather(running.stop(), *(screen.end() for screen in screens))
        assert (await ending)[1:] == [3001] * 4


async def test_a_worker_makes_no_signing_keys(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepline.hub.workers._BACKOFF", Backoff((60.0,)))  # it fails once
    gate = GateSettings(directory=clean_environment, argon2id=(64, 1, 1))
    keys = clean_environment / KEYS_FILE_NAME
    config = HubConfig(port=0, directory=clean_environment, gate=gate, workers=1)
    registrar = Registrar(CHANNELS, journal_path=None)
    workers = Workers(config, registrar, own=dict)
    await workers.start(1)
    assert workers.troubles() == ["1 of 1 workers do not serve"]
    assert not keys.exists()
    await workers.close()


async def test_without_a_worker_the_hub_serves_by_itself_and_says_so(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with AnalyticsHub(settings(clean_environment, workers=1)) as running:
        async with Watcher(running.url) as screen:
            await screen.alive()
            assert len(running.attendance) == 1
        assert "1 of 1 workers do not serve" in running.reasons


async def test_a_handshake_in_pieces_is_served_too(clean_environment: Path) -> None:
    async with hub(clean_environment, workers=1) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET /w")
        await writer.drain()
        await get(f"{running.url}/healthz")
        writer.write(b"s/analytics HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % running.port)
        assert b" 426 " in await reader.readline()
        writer.close()


def ends(pids: list[int]) -> None:
    """Wait until these processes are gone."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        gone = ended.poll(20_000)
        os.close(descriptor)
        assert gone, f"{pid} outlived its hub"


async def test_workers_end_with_a_hub_that_is_killed(clean_environment: Path) -> None:
    process = HubProcess(settings(clean_environment, workers=2))
    await process.start()
    try:
        pid = process.pid
        assert pid is not None
        children = await asyncio.to_thread(Path(f"/proc/{pid}/task/{pid}/children").read_text)
        pids = [int(child) for child in children.split()]
        assert len(pids) == 2
        # Ctrl-C goes to whoever started them, who ends them in order
        assert [os.getsid(each) for each in (pid, *pids)] == [pid, *pids]
        os.kill(pid, signal.SIGKILL)
        await process.ended()
        await asyncio.to_thread(ends, pids)
    finally:
        await process.stop()


def test_workers_need_plain_connections(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        HubConfig(workers=1, tls_certificate=tmp_path / "c", tls_key=tmp_path / "k")


@pytest.mark.parametrize("arguments", [[], ["1"], ["x", "y"], ["9998", "9999"]])
def test_by_hand_a_worker_says_who_starts_it(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "keepline.hub.worker_main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "by the hub" in done.stderr
