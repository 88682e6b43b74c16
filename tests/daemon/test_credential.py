from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keepline.credentials.manager import TokenManager
from keepline.credentials.storage import TokenStorage
from keepline.credentials.token import Token
from keepline.daemon.credential import CredentialPart
from keepline.errors import SignInRequired, StorageError, TokenRefused, TokenUnavailable


class Issuer:
    """Answers at once, or refuses."""

    needs_person = False

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.lifetime = timedelta(hours=1)

    async def authenticate(self) -> Token:
        self.calls += 1
        if self.error is not None:
            raise self.error
        now = datetime.now(UTC)
        return Token(f"a{self.calls}", "r", expires_at=now + self.lifetime, issued_at=now)

    async def refresh(self, token: Token) -> Token:
        return await self.authenticate()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def part(issuer: Issuer) -> CredentialPart:
    def manager() -> TokenManager:
        return TokenManager({"name": "x"}, issuer, storage=TokenStorage(memory_only=True))

    return CredentialPart("x", manager, refresh_timeout=30.0)


async def test_it_serves_and_tells_its_followers(part: CredentialPart) -> None:
    heard: list[Token] = []
    part.subscribe(heard.append)
    await part.start()
    token = await part.get()
    assert part.current == token
    assert heard == [token]
    assert part.ready() == (True, f"VALID, generation {token.generation}")
    renewed = await part.force_refresh()
    assert renewed.generation > token.generation
    assert heard == [token, renewed]
    await part.stop()


async def test_who_left_hears_no_more(part: CredentialPart) -> None:
    heard: list[Token] = []
    leave = part.subscribe(heard.append)
    leave()
    leave()
    await part.start()
    await part.get()
    assert heard == []
    await part.stop()


async def test_a_follower_that_fails_hurts_no_other(
    part: CredentialPart, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(token: Token) -> None:
        raise ValueError("bad follower")

    heard: list[Token] = []
    part.subscribe(fail)
    part.subscribe(heard.append)
    await part.start()
    await part.get()
    assert len(heard) == 1
    assert "a follower failed" in caplog.text
    await part.stop()


async def test_followers_stay_across_a_restart(part: CredentialPart) -> None:
    heard: list[Token] = []
    part.subscribe(heard.append)
    for _ in range(2):
        await part.start()
        await part.get()
        await part.stop()
    assert [token.access_token for token in heard] == ["a1", "a2"]


async def test_without_a_manager_it_says_why(part: CredentialPart) -> None:
    with pytest.raises(TokenUnavailable, match="x is not being kept just now"):
        await part.get()
    assert part.status()["state"] == "STOPPED"
    assert part.ready() == (False, "STOPPED: no token yet")


async def test_a_store_that_cannot_be_read_is_the_answer_to_everybody(
    issuer: Issuer, clean_environment: Path
) -> None:
    path = clean_environment / "tokens.enc"
    path.write_bytes(b"x")
    path.chmod(0o644)

    def manager() -> TokenManager:
        return TokenManager({"name": "x"}, issuer, storage=TokenStorage(path, key="k"))

    part = CredentialPart("x", manager, refresh_timeout=30.0)
    with pytest.raises(StorageError, match="chmod 600"):
        await part.start()
    with pytest.raises(StorageError, match="chmod 600"):
        await part.get()
    assert "chmod 600" in part.status()["last_error"]
    await part.stop()
    path.unlink()
    await part.start()
    assert (await part.get()).access_token == "a1"
    assert part.start_error is None
    await part.stop()


async def test_not_ready_says_what_a_person_must_do(part: CredentialPart, issuer: Issuer) -> None:
    issuer.error = TokenRefused("wrong key")
    await part.start()
    with pytest.raises(SignInRequired):
        await part.get()
    assert part.ready() == (False, "SIGN_IN_REQUIRED: run keepline login x")
    await part.stop()


async def test_an_expired_token_is_not_ready(part: CredentialPart, issuer: Issuer) -> None:
    issuer.lifetime = timedelta(seconds=-1)
    await part.start()
    with pytest.raises(TokenUnavailable):
        await part.force_refresh()
    ready, reason = part.ready()
    assert not ready
    assert "no valid token" in reason
    assert "CredentialPart x" in repr(part)
    await part.stop()


def test_its_stop_waits_for_a_whole_refresh(part: CredentialPart) -> None:
    assert part.drain_seconds > 30.0


async def test_a_stopped_credential_says_so_and_leaves_its_manager_alone(
    part: CredentialPart,
) -> None:
    await part.start()
    await part.stop()
    await part.stop()
    assert part.status()["state"] == "STOPPED"
    with pytest.raises(TokenUnavailable, match="is not being kept just now"):
        await part.get()
