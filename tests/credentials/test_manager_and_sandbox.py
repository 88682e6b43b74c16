"""Claims about the manager with a real issuer on a socket."""

import asyncio

from keepline.credentials.issuer import SchwabIssuer
from keepline.credentials.lifecycle import TokenManagerConfig
from keepline.credentials.manager import TokenManager
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
