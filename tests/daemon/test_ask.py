import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from keepline.config import Settings
from keepline.daemon import ask
from keepline.daemon.service import Daemon
from keepline.errors import ConfigError, SignInRequired, TokenUnavailable, TransientError
from keepline.sandbox.server import SandboxServer

Configure = Callable[..., Settings]


async def started(settings: Settings) -> Daemon:
    daemon = await asyncio.to_thread(Daemon, settings)
    await daemon.start()
    return daemon


async def test_without_a_daemon_the_store_answers(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure()
    with pytest.raises(SignInRequired, match="schwab: no token is stored"):
        await ask.get_token(settings.file, "schwab")
    stored = await ask.save_token(settings, "schwab", sandbox.issue())
    assert await ask.get_token(settings.file, "") == stored
    with pytest.raises(TokenUnavailable, match="no daemon runs to renew it"):
        await ask.get_token(settings.file, "schwab", newer_than=stored.generation)
    status = await ask.token_status(settings.file, "")
    assert (status["state"], status["generation"]) == ("STORED", stored.generation)
    whole = await ask.whole_status(settings.file)
    assert whole["running"] is False
    assert whole["credentials"]["schwab"] == {**whole["credentials"]["schwab"], "state": "STORED"}
    assert await ask.tell_daemon("schwab") is None


async def test_an_expired_token_is_not_handed_out_without_a_daemon(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure()
    token, hour = sandbox.issue(), timedelta(hours=1)
    dead = replace(token, issued_at=token.issued_at - hour, expires_at=token.expires_at - hour)
    await ask.save_token(settings, "schwab", dead)
    with pytest.raises(TokenUnavailable, match="keepline token refresh schwab"):
        await ask.get_token(settings.file, "schwab")
    assert (await ask.token_status(settings.file, "schwab"))["state"] == "EXPIRED"
    renewed = await ask.refresh_token(settings.file, "schwab")
    stored = await ask.get_token(settings.file, "schwab")
    assert stored.access_token == renewed.access_token
    assert sandbox.stats()["refreshes"] == 1


async def test_with_a_daemon_the_daemon_answers(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure()
    stored = await ask.save_token(settings, "schwab", sandbox.issue())
    daemon = await started(settings)
    assert (await ask.get_token(None, "")).access_token == stored.access_token
    renewed = await ask.refresh_token(None, "schwab", than=stored.generation)
    assert renewed.generation > stored.generation
    assert (await ask.refresh_token(None, "", than=stored.generation)) == renewed
    assert (await ask.token_status(None, ""))["state"] == "VALID"
    assert (await ask.whole_status(None))["running"] is True
    async for token in ask.follow(""):
        assert token.generation == renewed.generation
        break
    await daemon.stop()
    assert sandbox.stats()["refreshes"] == 1


async def test_a_new_sign_in_reaches_a_daemon_that_waits_for_it(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure()
    daemon = await started(settings)
    assert daemon.credentials["schwab"].status()["state"] == "SIGN_IN_REQUIRED"
    saved = await ask.save_token(settings, "schwab", sandbox.issue())
    taken = await ask.tell_daemon("schwab")
    assert taken is not None
    assert taken.access_token == saved.access_token
    assert daemon.credentials["schwab"].status()["state"] == "VALID"
    await daemon.stop()
    assert sandbox.stats()["refreshes"] == 0


async def test_a_new_sign_in_replaces_a_token_that_the_daemon_serves(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure()
    await ask.save_token(settings, "schwab", sandbox.issue())
    daemon = await started(settings)
    later = sandbox.issue()
    later = replace(later, issued_at=later.issued_at + timedelta(seconds=2))
    saved = await ask.save_token(settings, "schwab", later)
    taken = await ask.tell_daemon("schwab")
    assert taken is not None
    assert taken.access_token == saved.access_token
    await daemon.stop()
    assert sandbox.stats()["reuses"] == 0


async def test_a_daemon_that_keeps_other_credentials_is_not_told(
    configure: Configure, sandbox: SandboxServer
) -> None:
    daemon = await started(configure())
    assert await ask.tell_daemon("other") is None
    await daemon.stop()


async def test_watching_needs_a_daemon(configure: Configure) -> None:
    with pytest.raises(TransientError, match="is `keepline run` running"):
        async for _ in ask.follow("schwab"):
            pass


async def test_memory_keeps_no_sign_in(configure: Configure, sandbox: SandboxServer) -> None:
    settings = configure(schwab='storage = "memory"')
    with pytest.raises(ConfigError, match='set storage = "encrypted"') as caught:
        await ask.save_token(settings, "schwab", sandbox.issue())
    assert caught.value.key == "credentials.schwab.storage"


async def test_a_token_without_the_end_of_its_sign_in_gets_the_latest_possible(
    configure: Configure, sandbox: SandboxServer
) -> None:
    token = replace(sandbox.issue(), signin_deadline=None)
    saved = await ask.save_token(configure(schwab='storage = "encrypted"'), "schwab", token)
    assert saved.signin_deadline == token.issued_at + timedelta(days=7)


async def test_a_store_that_cannot_be_read_is_a_status_of_its_own(
    configure: Configure, clean_environment: Path
) -> None:
    settings = configure()
    text = '{"creation_timestamp": 1, "token": {"access_token": "secret-text", "expires_at": 9}}'
    (clean_environment / "tokens.json").write_text(text)
    (clean_environment / "tokens.json").chmod(0o600)
    status = await ask.stored_status(settings, "schwab")
    assert status["state"] == "ERROR"
    assert "refresh_token" in status["last_error"]
    assert "secret-text" not in status["last_error"]


async def test_an_interrupted_refresh_is_told(configure: Configure, sandbox: SandboxServer) -> None:
    settings = configure()
    saved = await ask.save_token(settings, "schwab", sandbox.issue())
    from keepline.daemon.compose import store_of

    store = await asyncio.to_thread(store_of, settings, "schwab")
    pending = await asyncio.to_thread(store.prepare, saved)
    await asyncio.to_thread(pending.abandon, answer_lost=True)
    status = await ask.stored_status(settings, "schwab")
    assert "was never saved; the refresh token may be spent" in status["interrupted"]


@pytest.mark.parametrize(
    ("names", "words"),
    [(["a", "b"], "name one of a, b"), ([], r"no \[credentials.NAME\] is configured")],
)
def test_a_name_that_is_needed_is_asked_for(names: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ask.only_name(names, "")


def test_the_only_name_needs_not_be_said() -> None:
    assert ask.only_name(["a"], "") == "a"
    assert ask.only_name(["a"], "b") == "b"


async def test_the_store_numbers_what_a_person_brings(
    configure: Configure, sandbox: SandboxServer
) -> None:
    settings = configure(schwab='storage = "encrypted"\n')
    first = await ask.save_token(settings, "schwab", sandbox.issue().with_generation(0))
    old = sandbox.issue().with_generation(1)
    assert (await ask.save_token(settings, "schwab", old)).generation > first.generation
