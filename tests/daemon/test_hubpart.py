"""The hub under the daemon: its own process, ready with a reason, back after a kill; what the daemon says there."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.conftest import aside
from tests.hub.watcher import SECRET, Watcher, add_ann, settings

from keepline.config import Settings
from keepline.daemon.ask import save_token
from keepline.daemon.hubpart import BusPart, HubPart, bus_path, states
from keepline.daemon.service import Daemon
from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.relay.local import LocalClient
from keepline.sandbox.server import SandboxServer

Configure = Callable[..., Settings]

HUB = """
[hub]
enabled = true
port = {port}
drain_seconds = 0.0
canary_seconds = 0.2
token_secret_file = "hub.secret"
users_file = "hub-users.jsonl"
"""


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def with_hub(configure: Configure, clean_environment: Path) -> Configure:
    def write(port: int = 0, more: str = "", **others: Any) -> Settings:
        secret = clean_environment / "hub.secret"
        secret.touch(mode=0o600)
        secret.write_text(SECRET)
        add_ann(clean_environment)
        return configure(HUB.format(port=port) + more, **others)

    return aside(write)


async def test_the_daemon_says_on_system_how_its_tokens_and_parts_are(
    with_hub: Configure, sandbox: SandboxServer
) -> None:
    configured = with_hub(metrics="127.0.0.1:0")
    stored = await save_token(configured, "schwab", sandbox.issue())
    daemon = await asyncio.to_thread(Daemon, configured)
    await daemon.start()
    assert daemon.hub is not None
    assert daemon.metrics is not None
    assert daemon.hub.path == bus_path()
    assert bus_path().stat().st_mode & 0o777 == 0o600
    try:
        async with Watcher(daemon.hub.url) as watcher:
            await watcher.subscribe("system")
            told = await watcher.holds("credential-state schwab", state="VALID")
            assert told["generation"] == stored.generation
            await watcher.holds("part-state hub", ready=True)
            async with LocalClient() as client:
                renewed = await client.refresh_token("schwab")
                status = await client.status()
            told = await watcher.holds("credential-state schwab", generation=renewed.generation)
            assert renewed.access_token not in str(watcher.messages)
        rows = {part["name"]: part for part in status["parts"]}
        assert rows["hub"]["ready"]
        assert rows["hub"]["reason"].startswith(daemon.hub.url)
        assert rows["hub bus"]["reason"] == "connected"
        async with HttpSession() as http:
            answer = await http.request("GET", f"{daemon.metrics.url}/readyz")
        assert answer.status == 200
        assert b'"name": "hub"' in answer.body
    finally:
        await daemon.stop()
    assert daemon.hub.pid is None
    assert not bus_path().exists()


async def test_a_hub_that_is_killed_comes_back_alone_and_what_was_said_meanwhile_arrives(
    with_hub: Configure, sandbox: SandboxServer, unused_port: int
) -> None:
    configured = with_hub(unused_port)
    await save_token(configured, "schwab", sandbox.issue())
    daemon = await asyncio.to_thread(Daemon, configured)
    await daemon.start()
    hub, part = daemon.hub, daemon.bus
    assert hub is not None
    assert part is not None
    try:
        url, first = hub.url, hub.pid
        assert first is not None
        async with Watcher(url) as watcher:
            await watcher.subscribe("alerts")
            assert part.bus is not None
            await part.bus.publish_durable("alerts", "alert", {"n": 1})
            last = await watcher.kind("alert", n=1)
            os.kill(first, signal.SIGKILL)
            await watcher.end()
        assert part.bus.publish("alerts", "alert", {"n": 2})
        await part.bus.publish_durable("alerts", "alert", {"n": 3})  # waits for the next life
        assert hub.pid not in (None, first)
        async with Watcher(url) as watcher:
            where = {"epoch": last["epoch"], "offset": last["offset"]}
            told = await watcher.subscribe("alerts", resume={"alerts": where})
            assert told["data"]["recovered"] is True
            await watcher.kind("alert", n=2)
            await watcher.kind("alert", n=3)
            await watcher.subscribe("system")
            await watcher.holds("credential-state schwab", state="VALID")
        assert daemon.credentials["schwab"].ready()[0]
    finally:
        await daemon.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux")
async def test_workers_that_are_configured_serve_the_screens(
    with_hub: Configure, sandbox: SandboxServer
) -> None:
    configured = with_hub(more="workers = 1\n")
    await save_token(configured, "schwab", sandbox.issue())
    daemon = await asyncio.to_thread(Daemon, configured)
    await daemon.start()
    assert daemon.hub is not None
    try:
        async with Watcher(daemon.hub.url) as watcher:
            await watcher.subscribe("system")
            await watcher.holds("credential-state schwab", state="VALID")
            pid = daemon.hub.pid
            children = Path(f"/proc/{pid}/task/{pid}/children")
            (worker,) = (await asyncio.to_thread(children.read_text)).split()
            os.kill(int(worker), signal.SIGKILL)
            assert await watcher.end() == 1006  # it was the worker's
        assert daemon.hub.pid == pid
    finally:
        await daemon.stop()


async def test_a_port_that_is_taken_costs_the_hub_alone(
    with_hub: Configure, sandbox: SandboxServer
) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    configured = with_hub(port)
    await save_token(configured, "schwab", sandbox.issue())
    daemon = await asyncio.to_thread(Daemon, configured)
    await daemon.start()
    try:
        rows = {part["name"]: part for part in daemon.status()["parts"]}
        assert not rows["hub"]["ready"]
        assert "ddress already in use" in rows["hub"]["reason"]
        assert rows["credential schwab"]["ready"]
        assert not rows["hub bus"]["ready"]
    finally:
        await daemon.stop()
        taken.close()
        await taken.wait_closed()


async def test_a_number_that_makes_no_sense_is_found_before_anything_starts(
    with_hub: Configure,
) -> None:
    configured = with_hub(more="pong_timeout_seconds = 1.0")
    with pytest.raises(ConfigError, match="makes sense") as raised:
        await asyncio.to_thread(Daemon, configured)
    assert raised.value.key == "hub.pong_timeout_seconds"


async def test_without_the_switch_there_is_no_hub(
    configure: Configure, sandbox: SandboxServer
) -> None:
    daemon = await asyncio.to_thread(Daemon, configure())
    assert daemon.hub is None
    assert daemon.bus is None


async def test_the_socket_of_the_bus_is_made_again_when_its_file_has_gone(
    clean_environment: Path,
) -> None:
    await asyncio.to_thread(add_ann, clean_environment)
    path = clean_environment / "run" / "hub.sock"
    part = HubPart(settings(clean_environment), path=path)
    assert part.ready() == (False, "not started")
    assert repr(part) == "<HubPart not serving>"
    assert (part.pid, part.url) == (None, "")
    await part.stop()
    try:
        await part.start()
        await part.stop()
        await asyncio.to_thread(path.unlink)
        await part.start()
        assert await asyncio.to_thread(path.exists)
        assert part.ready()[0]
        assert repr(part) == f"<HubPart {part.url}>"
    finally:
        await part.stop()
        await part.close()
    assert not await asyncio.to_thread(path.exists)


async def test_a_bus_part_that_stopped_says_so(clean_environment: Path) -> None:
    part = BusPart(clean_environment / "nobody.sock", dict)
    assert part.ready() == (False, "not started")
    await part.start()
    part.changed()
    assert not part.ready()[0]
    await part.stop()
    await part.stop()
    assert part.ready() == (False, "not started")


def test_what_is_said_holds_the_facts_and_no_more() -> None:
    credential = {"state": "VALID", "generation": 4, "fingerprint": "f", "expires_in_seconds": 9.0}
    told = states(
        {
            "credentials": {"schwab": credential},
            "streams": {"quotes": {"state": "connected", "live": True, "recording": "x"}},
            "parts": [{"name": "socket", "ready": True, "reason": "clients: 1"}],
        }
    )
    assert set(told) == {"credential-state schwab", "stream-state quotes", "part-state socket"}
    kind, data = told["credential-state schwab"]
    assert kind == "credential-state"
    assert data["generation"] == 4
    assert "fingerprint" not in data
    assert told["stream-state quotes"][1]["live"] is True
    assert "recording" not in told["stream-state quotes"][1]
