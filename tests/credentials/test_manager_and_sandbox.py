"""Claims about the manager with a real issuer on a socket."""

import asyncio
import threading
from pathlib import Path

import pytest

from keepline.credentials import vault as vaults
from keepline.credentials.issuer import SchwabIssuer
from keepline.credentials.lifecycle import TokenManagerConfig
from keepline.credentials.manager import TokenManager
from keepline.credentials.storage import TokenStorage
from keepline.sandbox.server import SandboxServer


async def test_callers_in_one_turn_of_the_loop_spend_one_refresh_token() -> None:
    async with (
        SandboxServer() as sandbox,
        SchwabIssuer("sandbox-key", "sandbox-secret", base_url=sandbox.url) as issuer,
    ):
        async with TokenManager(TokenManagerConfig(), issuer) as manager:
            manager.update_tokens(sandbox.issue())
            await manager.force_refresh()
            tokens = await asyncio.gather(*(manager.force_refresh() for _ in range(10)))
            for _ in range(100):  # turns of the loop in which one more renewal would begin
                await asyncio.sleep(0)
        assert len({token.generation for token in tokens}) == 1
        assert sandbox.stats()["token_requests"] == 2
        assert sandbox.accepts(tokens[0].access_token)


@pytest.mark.parametrize("kdf", ["pbkdf2", "argon2id"])
async def test_no_key_is_derived_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdf: str
) -> None:
    places, derive = [], vaults._derive

    def watched(*args: object) -> object:
        places.append(threading.current_thread())
        return derive(*args)

    monkeypatch.setattr(vaults, "_derive", watched)

    def storage() -> TokenStorage:
        return TokenStorage(tmp_path / "tokens.enc", key="passphrase", kdf=kdf)

    async with (
        SandboxServer() as sandbox,
        SchwabIssuer("sandbox-key", "sandbox-secret", base_url=sandbox.url) as issuer,
    ):
        await asyncio.to_thread(storage().store, sandbox.issue())
        async with TokenManager({}, issuer, storage=storage()) as manager:
            renewed = await manager.force_refresh()
        assert (await asyncio.to_thread(storage().load)) == renewed
    assert len(places) == 3  # one in each store: a save costs none
    assert threading.current_thread() not in places
    path = tmp_path / "tokens.enc"
    written = vaults.parse(path.read_bytes(), path)
    assert written.header.kdf == {"pbkdf2": vaults.PBKDF2, "argon2id": vaults.ARGON2ID}[kdf]
