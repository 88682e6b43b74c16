import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keepline.config import Settings
from keepline.daemon.ask import save_token
from keepline.daemon.doctor import Finding, examine
from keepline.daemon.service import Daemon
from keepline.relay.address import default_socket_path
from keepline.relay.receiver import TokenReceiver, TokenReceiverConfig
from keepline.sandbox.server import SandboxServer

Configure = Callable[..., Settings]

RELAY = '[relay.bots]\ncredential = "schwab"\ntargets = ["bot:a"]\n'


async def findings(settings: Settings) -> dict[str, Finding]:
    return {finding.subject: finding async for finding in examine(settings.file)}


async def test_all_is_well(configure: Configure, sandbox: SandboxServer) -> None:
    settings = configure(RELAY)
    await save_token(settings, "schwab", sandbox.issue())
    daemon = await asyncio.to_thread(Daemon, settings)
    await daemon.start()
    bot = TokenReceiver(config=TokenReceiverConfig(unix_socket_path=default_socket_path("a")))
    async with bot:
        found = await findings(settings)
    assert {finding.level for finding in found.values()} == {"ok"}, found
    assert list(found) == [
        "configuration",
        "credential schwab",
        "credential schwab: issuer",
        "credential schwab: clock",
        "relay bots",
        "runtime directory",
        "daemon",
    ]
    await daemon.stop()


async def test_nothing_runs_and_nobody_signed_in(configure: Configure) -> None:
    found = await findings(configure(RELAY))
    assert found["credential schwab"].level == "fail"
    assert found["credential schwab"].remedy == "keepline login schwab"
    assert found["relay bots"].words == "no bot listens at bot:a"
    assert found["daemon"].remedy == "keepline run"


async def test_a_daemon_that_waits_is_a_warning(configure: Configure) -> None:
    settings = configure()
    daemon = await asyncio.to_thread(Daemon, settings)
    await daemon.start()
    assert "SIGN_IN_REQUIRED" in (await findings(settings))["daemon"].words
    await daemon.stop()


async def test_a_wrong_configuration_ends_it(clean_environment: Path) -> None:
    file = clean_environment / "keepline.toml"
    file.write_text("[credentals.x]\n")
    found = [finding async for finding in examine(file)]
    assert [finding.level for finding in found] == ["fail"]
    assert "did you mean credentials?" in found[0].words


async def test_a_configuration_that_strangers_write_is_a_warning(configure: Configure) -> None:
    settings = configure()
    assert settings.file is not None
    settings.file.chmod(0o666)
    found = await findings(settings)
    assert "can be changed by strangers" in found["configuration"].words


async def test_a_missing_app_file_fails(configure: Configure, clean_environment: Path) -> None:
    settings = configure()
    (clean_environment / "app.yaml").unlink()
    assert "app.yaml: this file is missing" in (await findings(settings))["credential schwab"].words


async def test_a_damaged_store_fails(configure: Configure, clean_environment: Path) -> None:
    settings = configure()
    (clean_environment / "tokens.json").write_text('{"token": 7}')
    (clean_environment / "tokens.json").chmod(0o600)
    assert (await findings(settings))["credential schwab"].level == "fail"


async def test_an_expired_token_and_a_near_deadline_are_warnings(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure(schwab='storage = "encrypted"')
    token = sandbox.issue()
    near = replace(token, signin_deadline=token.issued_at + timedelta(hours=5))
    await save_token(settings, "schwab", near)
    assert "a person must sign in by" in (await findings(settings))["credential schwab"].words
    hour = timedelta(hours=1)
    dead = replace(token, issued_at=token.issued_at - hour, expires_at=token.expires_at - hour)
    await save_token(settings, "schwab", dead)
    assert (await findings(settings))["credential schwab"].remedy == "start keepline run"


async def test_an_issuer_out_of_reach_fails(configure: Configure, sandbox: SandboxServer) -> None:
    settings = configure()
    found = await findings(settings)
    assert found["credential schwab: issuer"].level == "ok"
    await sandbox.stop()
    found = await findings(settings)
    assert found["credential schwab: issuer"].level == "fail"
    assert "check network" in found["credential schwab: issuer"].remedy
    await sandbox.start()


@pytest.mark.parametrize(
    ("date", "level", "words"),
    [
        ("Mon, 05 Jan 2026 14:30:01 GMT", "ok", "1 s away"),
        ("Mon, 05 Jan 2026 15:30:00 GMT", "warn", "3600 s away"),
        ("yesterday", "warn", "is no date"),
    ],
)
def test_the_clock_is_compared_with_the_issuers(date: str, level: str, words: str) -> None:
    from datetime import UTC, datetime

    from keepline.daemon.doctor import compare_clocks

    finding = compare_clocks("x", date, datetime(2026, 1, 5, 14, 30, tzinfo=UTC))
    assert finding.level == level
    assert words in finding.words


async def test_other_kinds_of_credentials_are_looked_at(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure(
        '[credentials.s]\nissuer = "static"\naccess_token_file = "key"\n'
        f'[credentials.o]\nissuer = "oauth2"\ntoken_url = "{sandbox.url}/v1/oauth/token"\nclient_id = "c"\n'
        'client_auth = "none"\ngrant = "client_credentials"\nstorage_key_file = "key"\n',
        schwab='storage = "memory"',
    )
    found = await findings(settings)
    assert found["credential s"].words == "kept in memory"
    assert found["credential o"].words.startswith("no token stored yet")
    assert found["credential o: issuer"].words == f"{sandbox.url} answers"
    assert "credential s: issuer" not in found


async def test_a_bad_target_and_a_long_runtime_directory_fail(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    settings = configure(RELAY.replace("bot:a", "nonsense"))
    monkeypatch.setenv("KEEPLINE_RUNTIME_DIR", str(clean_environment / ("x" * 100)))
    found = await findings(settings)
    assert "is no address" in found["relay bots"].words
    assert found["runtime directory"].remedy.startswith("set KEEPLINE_RUNTIME_DIR")
    assert found["daemon"].level == "fail"


def test_thirty_seconds_are_still_the_right_time() -> None:
    from keepline.daemon.doctor import compare_clocks

    now = datetime(2026, 1, 5, 14, 30, 30, tzinfo=UTC)
    date = "Mon, 05 Jan 2026 14:30:{:02d} GMT"
    assert compare_clocks("x", date.format(0), now).level == "ok"
    assert compare_clocks("x", "Mon, 05 Jan 2026 14:29:59 GMT", now).level == "warn"
