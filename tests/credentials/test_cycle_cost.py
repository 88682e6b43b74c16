"""A renewal costs the issuer one request and the disk one save, however often it is repeated."""

import asyncio
import os

from keepline import SchwabIssuer, TokenManager, TokenStorage
from keepline.sandbox.server import SandboxServer


async def test_a_cycle_is_one_request_and_one_save(tmp_path, monkeypatch):
    saves = []
    replace = os.replace

    def counted(source, target, **options):
        if os.fspath(target).endswith("token.enc"):
            saves.append(target)
        return replace(source, target, **options)

    async with SandboxServer() as sandbox:
        store = TokenStorage(tmp_path / "token.enc", key="a passphrase", credential="schwab")
        await asyncio.to_thread(store.store, sandbox.issue().with_generation(1))
        monkeypatch.setattr(os, "replace", counted)
        async with (
            SchwabIssuer("sandbox-key", "sandbox-secret", base_url=sandbox.url) as issuer,
            TokenManager({"name": "schwab"}, issuer, storage=store) as manager,
        ):
            for cycle in range(1, 6):
                await manager.force_refresh()
                assert (sandbox.stats()["refreshes"], len(saves)) == (cycle, cycle)
