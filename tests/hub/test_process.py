"""The hub in a process of its own: it serves, drains, ends with whoever started it, and keeps what is stored."""

import asyncio
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.hub.watcher import Watcher, add_ann, settings

from keepline.errors import ConfigError, ProtocolError, StorageError, TransientError
from keepline.hub.bus import LocalBus
from keepline.hub.journal import MessageJournal
from keepline.hub.process import HubProcess, read_order
from keepline.hub.settings import HubConfig
from keepline.testing import ManualClock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the hub's process needs Unix")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(autouse=True)
def ann(clean_environment: Path) -> None:
    add_ann(clean_environment)


@pytest.fixture
def bus_socket(clean_environment: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(clean_environment / "bus"))
        sock.listen()
        yield sock


@asynccontextmanager
async def running(config: HubConfig, **more: Any) -> AsyncIterator[HubProcess]:
    process = HubProcess(config, **more)
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


async def test_it_serves_what_comes_over_the_bus_and_drains_when_it_is_told(
    clean_environment: Path, bus_socket: socket.socket
) -> None:
    async with running(settings(clean_environment), bus=bus_socket, beat_seconds=0.05) as process:
        bus = LocalBus(Path(bus_socket.getsockname()), name="test")
        await bus.start()
        async with Watcher(process.url) as peer:
            await peer.subscribe("alerts", "exposure-updates")
            await bus.publish_durable("alerts", "alert", {"title": "one"})
            await peer.kind("alert", title="one")
            bus.publish("exposure-updates", "exposure-change", {"netExposure": 5}, key="house")
            await peer.kind("exposure-change", netExposure=5)
            ready, reason = process.ready()
            assert ready, reason
            assert reason.startswith("http://127.0.0.1:")
            assert await bus.close()
            assert (await asyncio.gather(process.stop(), peer.end()))[1] == 3001
        assert process.ready() == (False, "not started")
        assert process.pid is None


async def test_killed_and_started_again_clients_go_on_where_they_were(
    clean_environment: Path, bus_socket: socket.socket
) -> None:
    port = free_port()
    async with running(settings(clean_environment, port=port), bus=bus_socket) as process:
        bus = LocalBus(Path(bus_socket.getsockname()), name="test")
        await bus.start()
        async with Watcher(process.url) as peer:
            await peer.subscribe("alerts")
            for number in range(5):
                await bus.publish_durable("alerts", "alert", {"n": number})
            last = await peer.kind("alert", n=4)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            assert await process.ended() == "the hub's process ended with -9"
            assert await peer.end() == 1006
        for number in range(5, 9):
            assert bus.publish("alerts", "alert", {"n": number})
        await process.stop()
        await process.start()
        await bus.publish_durable("alerts", "alert", {"n": 9})
        async with Watcher(process.url) as peer:
            where = {"epoch": last["epoch"], "offset": last["offset"]}
            told = await peer.subscribe("alerts", resume={"alerts": where})
            assert told["data"]["recovered"] is True
            await peer.kind("alert", n=9)
            alerts = [each for each in peer.messages if each["type"] == "alert"]
            assert [each["data"]["n"] for each in alerts] == [5, 6, 7, 8, 9]
            offsets = [each["offset"] for each in alerts]
            assert offsets == list(range(last["offset"] + 1, last["offset"] + 6))
        assert await bus.close()


async def test_a_hub_that_stands_still_is_given_up_and_killed(clean_environment: Path) -> None:
    config = settings(clean_environment)
    async with running(
        config, beat_seconds=0.05, silence_seconds=1.0, grace_seconds=0.2
    ) as process:
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert "no sign of life for 1 s" in await process.ended()
        await process.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_sigterm_ends_it_in_order(clean_environment: Path) -> None:
    async with running(settings(clean_environment)) as process:
        async with Watcher(process.url) as peer:
            await peer.alive()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
            assert await peer.end() == 3001
        assert await process.ended() == "the hub's process ended with 0"


async def test_a_taken_port_is_said_in_words(clean_environment: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = HubProcess(settings(clean_environment, port=taken.getsockname()[1]))
        with pytest.raises(TransientError, match=r"cannot listen: .*ddress already in use"):
            await process.start()
    assert process.pid is None


async def test_a_journal_of_another_hub_and_a_missing_certificate_are_said_in_words(
    clean_environment: Path,
) -> None:
    async with MessageJournal(clean_environment / "hub-messages.db"):
        with pytest.raises(StorageError, match=r"hub-messages\.db"):
            await HubProcess(settings(clean_environment)).start()
    nowhere = clean_environment / "nowhere.pem"
    config = settings(clean_environment, tls_certificate=nowhere, tls_key=nowhere)
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        await HubProcess(config).start()


async def test_one_that_does_not_serve_in_time_is_ended(clean_environment: Path) -> None:
    process = HubProcess(settings(clean_environment), start_seconds=0.0, grace_seconds=0.1)
    with pytest.raises(TransientError, match="did not serve within 0 s"):
        await process.start()
    assert process.pid is None
    await process.stop()  # twice is once


async def test_a_start_that_nobody_waits_for_any_more_leaves_no_process(
    clean_environment: Path,
) -> None:
    process = HubProcess(settings(clean_environment))
    starting = asyncio.create_task(process.start())
    while (pid := process.pid) is None:  # noqa: ASYNC110 - a fact
        await asyncio.sleep(0)  # until there is a process that does not serve yet
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert process.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_one_that_ends_before_it_serves_is_said(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TransientError, match="ended before it served"):
        await HubProcess(settings(clean_environment)).start()


def test_its_hub_ends_with_a_parent_that_is_killed(clean_environment: Path) -> None:
    parent = """
        import asyncio, sys
        from pathlib import Path
        from keepline.hub.process import HubProcess
        from keepline.hub.settings import HubConfig
        from keepline.hub.opening import GateSettings
        async def main():
            directory = Path(sys.argv[1])
            config = HubConfig(port=0, directory=directory, drain_seconds=0,
                               gate=GateSettings(directory=directory))
            process = HubProcess(config)
            await process.start()
            print(process.pid, flush=True)
            await process.ended()
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(parent), str(clean_environment)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        hub = os.pidfd_open(int(process.stdout.readline()))
        try:
            process.kill()
            ended = select.poll()
            ended.register(hub, select.POLLIN)
            assert ended.poll(20_000), "the hub outlived its parent"
        finally:
            os.close(hub)


def test_a_loop_that_hangs_does_not_outlive_the_pipe() -> None:
    hung = """
        import socket, sys, threading
        from keepline.hub import process_main
        process_main.end_hard_without(socket.socket(fileno=int(sys.argv[1])), -1.0)
        print("hangs", flush=True)
        threading.Event().wait()
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", textwrap.dedent(hung), str(theirs.fileno())]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, pass_fds=[theirs.fileno()]
        ) as process:
            theirs.close()
            assert process.stdout is not None
            assert process.stdout.readline() == b"hangs\n"
            ours.close()
            assert process.wait(20) == 1


@pytest.mark.parametrize("arguments", [[], ["x"], ["9999"]])
def test_by_hand_it_says_who_starts_it(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "keepline.hub.process_main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "keepline run" in done.stderr


@pytest.mark.parametrize("said", [b"", b"\0\0\0\x05nonsense", b"\0\0\0\x02{}"])
def test_without_an_order_it_ends(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        command = [sys.executable, "-m", "keepline.hub.process_main", str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            ours.sendall(said)
            ours.shutdown(socket.SHUT_WR)
            assert process.wait(60) == 1
            assert b'"failed"' in ours.recv(1000)


@pytest.mark.parametrize("said", [b"[]", b'{"x":' * 100_000], ids=["list", "deep"])
def test_an_order_that_is_none_is_refused(said: bytes) -> None:
    with pytest.raises(ProtocolError, match="no order"):
        read_order(said)


async def test_it_says_how_it_is(clean_environment: Path) -> None:
    clock = ManualClock()
    process = HubProcess(settings(clean_environment), beat_seconds=3600.0, clock=clock)
    assert repr(process) == "<HubProcess not running>"
    assert (process.url, process.drain_seconds) == ("", 11.0)
    await process.start()
    try:
        assert process.ready()[0]
        clock.advance(10_801.0)
        assert process.ready() == (False, "no sign of life for 10801 s")
        assert repr(process) == f"<HubProcess {process.pid}>"
    finally:
        await process.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits are Linux's")
async def test_a_journal_that_cannot_be_written_ends_this_life_and_the_next_one_gets_the_alert(
    clean_environment: Path, bus_socket: socket.socket
) -> None:
    config = settings(clean_environment)
    async with running(config, bus=bus_socket, beat_seconds=0.05) as process:
        bus = LocalBus(Path(bus_socket.getsockname()), name="test")
        await bus.start()
        await bus.publish_durable("alerts", "alert", {"n": 1})
        assert process.pid is not None
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        assert bus.publish("alerts", "alert", {"n": 2})
        # 1, or what Python makes of it when its standard error is a file that may not grow either
        assert await process.ended() in {
            f"the hub's process ended with {code}" for code in (1, 120)
        }
        await process.stop()
        await process.start()
        await bus.publish_durable("alerts", "alert", {"n": 3})
        async with Watcher(process.url) as watcher:
            await watcher.subscribe("alerts")
            told = await watcher.kind("snapshot")
            assert [each["data"]["n"] for each in told["data"]["items"]] == [1, 2, 3]
        assert await bus.close()
