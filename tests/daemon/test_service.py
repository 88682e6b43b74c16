import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from keepline import config
from keepline.config import Settings
from keepline.daemon.ask import save_token
from keepline.daemon.service import Daemon
from keepline.errors import ConfigError, SignInRequired, StorageError
from keepline.http import HttpSession
from keepline.relay.address import default_socket_path
from keepline.relay.local import LocalClient
from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
from keepline.sandbox.server import SandboxServer

Configure = Callable[..., Settings]

RELAY = '[relay.bots]\ncredential = "schwab"\ntargets = ["bot:a"]\nattempts = 1\n'


async def test_it_loads_delivers_renews_and_delivers_again(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure(RELAY)
    stored = await save_token(settings, "schwab", sandbox.issue())
    bot = TokenReceiver(config=TokenReceiverConfig(unix_socket_path=default_socket_path("a")))
    async with bot:
        daemon = await asyncio.to_thread(Daemon, settings)
        await daemon.start()
        await daemon.relays["bots"].delivered()
        assert bot.get_latest_token() == stored.access_token
        async with LocalClient() as client:
            renewed = await client.refresh_token("schwab")
        await daemon.relays["bots"].delivered()
        assert bot.get_latest_token() == renewed.access_token != stored.access_token
        assert sandbox.accepts(renewed.access_token)
        assert daemon.supervisor.ready
        await daemon.stop()
    assert sandbox.stats()["refreshes"] == 1
    assert sandbox.stats()["reuses"] == 0


async def test_status_tells_everything_but_secrets(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure(RELAY)
    token = await save_token(settings, "schwab", sandbox.issue())
    daemon = await asyncio.to_thread(Daemon, settings)
    await daemon.start()
    async with LocalClient() as client:
        status = await client.status()
    assert status["ready"] is True
    assert [part["name"] for part in status["parts"]] == [
        "socket",
        "relay bots",
        "credential schwab",
    ]
    assert status["credentials"]["schwab"]["fingerprint"] == token.fingerprint
    assert status["credentials"]["schwab"]["signin_deadline"] is not None
    assert status["relay"]["bots"][0]["target"] == "bot:a"
    for secret in (token.access_token, token.refresh_token, "sandbox-secret"):
        assert secret not in str(status)
    assert f"schwab generation {token.generation}, expires" in daemon.summary()
    assert "credential schwab running" in repr(daemon)
    await daemon.stop()


async def test_numbers_are_served_when_they_are_wanted(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure(metrics="127.0.0.1:0")
    await save_token(settings, "schwab", sandbox.issue())
    daemon = await asyncio.to_thread(Daemon, settings)
    await daemon.start()
    assert daemon.metrics is not None
    async with HttpSession() as http:
        answer = await http.request("GET", f"{daemon.metrics.url}/readyz")
        numbers = await http.request("GET", f"{daemon.metrics.url}/metrics")
    assert answer.status == 200
    assert 'keepline_token_generation{credential="schwab"}' in numbers.text
    await daemon.stop()


async def test_a_sign_in_that_is_needed_keeps_it_waiting_and_unready(
    configure: Configure,
) -> None:
    daemon = await asyncio.to_thread(Daemon, configure())
    await daemon.start()
    assert "credential schwab: SIGN_IN_REQUIRED: run keepline login schwab" in daemon.summary()
    async with LocalClient() as client:
        with pytest.raises(SignInRequired, match="keepline login schwab"):
            await client.get_token("schwab")
    await daemon.stop()


async def test_a_second_daemon_ends_before_it_touches_a_token(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure()
    old = sandbox.issue()
    first = await asyncio.to_thread(Daemon, settings)
    await first.start()
    await save_token(settings, "schwab", old)
    second = await asyncio.to_thread(Daemon, settings)
    with pytest.raises(StorageError, match="listens here already"):
        await second.start()
    await second.stop()
    assert sandbox.stats()["refreshes"] == 0
    await first.stop()


async def test_when_no_store_can_be_read_it_ends_with_the_reason(
    configure: Configure, clean_environment: Path
) -> None:
    settings = configure(schwab='storage = "encrypted"')
    (clean_environment / "data").mkdir(mode=0o700, exist_ok=True)
    (clean_environment / "data/schwab.enc").write_bytes(b"not a vault")
    (clean_environment / "data/schwab.enc").chmod(0o644)
    daemon = await asyncio.to_thread(Daemon, settings)
    with pytest.raises(StorageError, match="chmod 600"):
        await daemon.start()
    assert not (clean_environment / "run/daemon.sock").exists()


async def test_one_store_that_cannot_be_read_leaves_the_others_served(
    configure: Configure, clean_environment: Path
) -> None:
    bad = '[credentials.bad]\nissuer = "static"\naccess_token_file = "key"\nstorage = "encrypted"\n'
    settings = configure(bad + 'storage_key_file = "key"\n')
    (clean_environment / "data").mkdir(mode=0o700, exist_ok=True)
    (clean_environment / "data/bad.enc").write_bytes(b"x")
    (clean_environment / "data/bad.enc").chmod(0o644)
    daemon = await asyncio.to_thread(Daemon, settings)
    await daemon.start()
    assert "credential bad: waiting" in daemon.summary()
    async with LocalClient() as client:
        with pytest.raises(StorageError, match="chmod 600"):
            await client.get_token("bad")
    await daemon.stop()


def test_nothing_to_keep_is_a_configuration_error(clean_environment: Path) -> None:
    file = clean_environment / "keepline.toml"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"nothing to keep; add a \[credentials.NAME\]"):
        Daemon(config.load(file, environ={}))


async def test_a_hub_alone_is_enough_to_run(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(clean_environment))
    file = clean_environment / "keepline.toml"
    file.write_text('[hub]\nenabled = true\nport = 0\n[telemetry]\nmetrics = "127.0.0.1:0"\n')
    daemon = Daemon(await asyncio.to_thread(config.load, file, environ={}))
    await daemon.start()
    assert daemon.summary()
    await daemon.stop()


async def test_two_brokers_have_their_own_tokens_and_bots(
    configure: Configure, sandbox: SandboxServer, clean_environment: Path
) -> None:
    key = clean_environment / "pk"
    key.write_text("sandbox-api-key")
    key.chmod(0o600)
    settings = configure(
        f'[credentials.top]\nissuer = "projectx"\nusername = "sandbox"\nbase_url = "{sandbox.url}"\n'
        'api_key_file = "pk"\nstorage = "memory"\n'
        '[relay.schwab]\ncredential = "schwab"\ntargets = ["bot:a"]\n'
        '[relay.top]\ncredential = "top"\ntargets = ["bot:b"]\n'
    )
    stored = await save_token(settings, "schwab", sandbox.issue())
    bots = [
        TokenReceiver(config=TokenReceiverConfig(unix_socket_path=default_socket_path(name)))
        for name in "ab"
    ]
    async with bots[0], bots[1]:
        daemon = await asyncio.to_thread(Daemon, settings)
        await daemon.start()
        token = await daemon.credentials["top"].get()
        for relay in daemon.relays.values():
            await relay.delivered()
        assert bots[0].get_latest_token() == stored.access_token
        assert bots[1].get_latest_token() == token.access_token
        assert token.lifetime > timedelta(hours=20)
        await daemon.stop()
