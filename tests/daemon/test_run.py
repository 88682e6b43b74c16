import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from keepline import config
from keepline.config import Settings
from keepline.daemon.ask import save_token, stored_token
from keepline.daemon.loop import run_on_loop
from keepline.daemon.notify import Notifier
from keepline.daemon.run import run, run_once, stop_signals, until_signal
from keepline.daemon.service import Daemon
from keepline.errors import ConfigError, SignInRequired, TokenUnavailable
from keepline.relay.address import default_socket_path
from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
from keepline.sandbox.server import SandboxServer
from keepline.testing import ManualClock

Configure = Callable[..., Settings]

RELAY = '[relay.bots]\ncredential = "schwab"\ntargets = ["bot:a"]\nattempts = 1\n'


async def heard(ear: socket.socket) -> str:
    return (await asyncio.get_running_loop().sock_recv(ear, 500)).decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_it_tells_the_service_manager_and_stops_at_a_signal(
    configure: Configure, sandbox: SandboxServer, clean_environment: Path, number: signal.Signals
) -> None:
    settings = configure()
    await save_token(settings, "schwab", sandbox.issue())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(clean_environment / "notify"))
        ear.setblocking(False)
        environ = {"NOTIFY_SOCKET": ear.getsockname()}
        serving = asyncio.create_task(run(settings, notifier=Notifier(environ)))
        assert (await heard(ear)).startswith("READY=1\nSTATUS=schwab generation")
        assert (clean_environment / "run/daemon.sock").exists()
        os.kill(os.getpid(), number)
        assert (await heard(ear)).startswith("STOPPING=1")
        assert await serving == number
    assert not (clean_environment / "run/daemon.sock").exists()


async def test_the_watchdog_is_fed_and_the_status_told_again(
    configure: Configure, clean_environment: Path
) -> None:
    clock = ManualClock()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(clean_environment / "notify"))
        ear.setblocking(False)
        environ = {"NOTIFY_SOCKET": ear.getsockname(), "WATCHDOG_USEC": "20000000"}
        serving = asyncio.create_task(run(configure(), notifier=Notifier(environ), clock=clock))
        assert "SIGN_IN_REQUIRED" in await heard(ear)
        hearing = asyncio.create_task(heard(ear))
        await clock.run_until(hearing.done, limit=10.0)
        assert await hearing == "WATCHDOG=1"
        assert (await heard(ear)).startswith("STATUS=credential schwab: SIGN_IN_REQUIRED")
        os.kill(os.getpid(), signal.SIGTERM)
        await serving  # stopping takes no time of this clock


async def test_the_watchdog_is_fed_while_an_answer_is_waited_for_at_the_end(
    configure: Configure, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, answered, stop = ManualClock(), asyncio.Event(), Daemon.stop

    async def slow(self: Daemon) -> None:
        await answered.wait()
        await stop(self)

    monkeypatch.setattr(Daemon, "stop", slow)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(clean_environment / "notify"))
        ear.setblocking(False)
        environ = {"NOTIFY_SOCKET": ear.getsockname(), "WATCHDOG_USEC": "20000000"}
        serving = asyncio.create_task(run(configure(), notifier=Notifier(environ), clock=clock))
        await heard(ear)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await heard(ear)).startswith("STOPPING=1")
        hearing = asyncio.create_task(heard(ear))
        await clock.run_until(hearing.done, limit=10.0)
        assert await hearing == "WATCHDOG=1"
        answered.set()
        await serving
    await asyncio.sleep(0)
    assert clock.next_wake is None  # nobody is left who would tell of a daemon that is gone


async def test_a_start_that_fails_leaves_the_signals_as_they_were(configure: Configure) -> None:
    settings = configure(metrics="1.2.3.4:5")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match="not loopback"):
        await run(settings)
    assert signal.getsignal(signal.SIGTERM) is before


async def test_once_delivers_the_current_token_and_spends_nothing(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure(RELAY)
    stored = await save_token(settings, "schwab", sandbox.issue())
    bot = TokenReceiver(config=TokenReceiverConfig(unix_socket_path=default_socket_path("a")))
    async with bot:
        (cycle,) = await run_once(settings)
        assert bot.get_latest_token() == stored.access_token
    assert cycle.error is None
    assert [delivery.outcome for delivery in cycle.deliveries] == ["delivered"]
    assert sandbox.stats()["refreshes"] == 0


async def test_once_renews_what_is_due_saves_and_delivers_it(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure(RELAY)
    old = sandbox.issue()
    hour = timedelta(hours=1)
    dead = replace(old, issued_at=old.issued_at - hour, expires_at=old.expires_at - hour)
    await save_token(settings, "schwab", dead)
    (cycle,) = await run_once(settings)
    assert cycle.error is None
    assert cycle.token is not None
    assert cycle.token.access_token != old.access_token
    assert (await stored_token(settings, "schwab")).access_token == cycle.token.access_token
    assert cycle.deliveries[0].outcome == "unreachable"
    assert sandbox.stats()["refreshes"] == 1


async def test_once_without_a_token_says_that_a_person_must_sign_in(configure: Configure) -> None:
    (cycle,) = await run_once(configure(RELAY))
    assert isinstance(cycle.error, SignInRequired)
    assert cycle.token is None
    assert cycle.deliveries == ()


async def test_once_during_an_outage_says_so(
    configure: Configure, sandbox: SandboxServer, clean_environment: Path
) -> None:
    key = clean_environment / "pk"
    key.write_text("sandbox-api-key")
    key.chmod(0o600)
    settings = configure(
        f'[credentials.top]\nissuer = "projectx"\nusername = "sandbox"\nbase_url = "{sandbox.url}"\n'
        'api_key_file = "pk"\nstorage = "memory"\n'
    )
    await save_token(settings, "schwab", sandbox.issue())
    sandbox.fault("outage")
    cycles = {cycle.credential: cycle for cycle in await run_once(settings)}
    assert isinstance(cycles["top"].error, TokenUnavailable)
    assert cycles["schwab"].error is None


def test_once_with_nothing_to_keep_is_a_configuration_error(clean_environment: Path) -> None:
    file = clean_environment / "keepline.toml"
    file.write_text("")
    with pytest.raises(ConfigError, match="nothing to keep"):
        asyncio.run(run_once(config.load(file, environ={})))


def test_a_long_running_program_gets_the_fast_loop() -> None:
    async def kind() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run_on_loop(kind()) == "uvloop"


def test_the_socket_works_on_the_fast_loop(clean_environment: Path) -> None:
    from keepline.daemon.socket import LocalSocket
    from keepline.relay.local import LocalClient

    async def play() -> None:
        server = LocalSocket(clean_environment / "run/daemon.sock", {}, dict)
        await server.start()
        async with LocalClient() as client:
            await client.ping()
        await server.stop()

    run_on_loop(play())


async def test_once_delivers_no_dead_token(configure: Configure, sandbox: SandboxServer) -> None:
    settings = configure(RELAY)
    old = sandbox.issue()
    hour = timedelta(hours=1)
    dead = replace(old, issued_at=old.issued_at - hour, expires_at=old.expires_at - hour)
    await save_token(settings, "schwab", dead)
    sandbox.fault("outage")
    (cycle,) = await run_once(settings)
    assert isinstance(cycle.error, TokenUnavailable)
    assert (cycle.token, cycle.deliveries) == (None, ())


async def test_a_signal_ends_the_work_and_its_end_is_the_end() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    async def work() -> None:
        try:
            begun.set()
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("in order")

    waiting = asyncio.create_task(until_signal(work()))
    await begun.wait()
    signal.raise_signal(signal.SIGTERM)
    assert await waiting is signal.SIGTERM
    assert ended == ["in order"]

    async def short(error: Exception | None) -> None:
        if error:
            raise error

    assert await until_signal(short(None)) is None
    with pytest.raises(ConfigError):
        await until_signal(short(ConfigError("x")))


async def test_whoever_gives_up_waiting_for_a_signal_ends_the_work_too() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    waiting = asyncio.create_task(until_signal(work()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_an_impatient_second_signal_changes_nothing() -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert await stop is signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        for _ in range(3):  # until the loop has heard it
            await asyncio.sleep(0)
        assert stop.result() is signal.SIGTERM
    assert faults == []
