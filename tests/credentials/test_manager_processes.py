"""Many processes, one sign-in: whatever they do at the same time, the refresh token is spent once."""

import asyncio
import json
import os
import signal
import sys

import pytest
from tests.credentials.family import manager_on, store_at, stored, zygote

from keepline.credentials.issuer import SchwabIssuer
from keepline.credentials.manager import TokenManager
from keepline.credentials.schwab_file import SchwabTokenFile
from keepline.errors import TokenUnavailable
from keepline.sandbox.server import SandboxServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and flock")


async def test_fifty_processes_at_expiry_make_exactly_one_refresh(tmp_path):
    path = tmp_path / "tokens.enc"
    async with SandboxServer() as sandbox, zygote() as children:
        await asyncio.to_thread(stored, path, sandbox, age=1801)
        sandbox.fault("slow", delay=1.0)
        await children.begin(path, sandbox.url, count=50)
        said, ends = await children.end()
        tokens = {(line["token"], line["generation"]) for line in said if "token" in line}
        assert ends == [0] * 50
        assert not [line for line in said if "error" in line]
        assert len(tokens) == 1
        stats = sandbox.stats()
        assert (stats["refreshes"], stats["token_requests"]) == (1, 1)
        assert (stats["reuses"], stats["revocations"]) == (0, 0)
        saved = await asyncio.to_thread(store_at(path).load)
        assert {(saved.fingerprint, saved.generation)} == tokens
        assert sandbox.accepts(saved.access_token)


@pytest.mark.parametrize("age", [1600, 1801])
async def test_a_stopped_lease_holder_causes_no_second_spend_and_its_answer_is_adopted(
    tmp_path, age
):
    path = tmp_path / "tokens.enc"
    asked = asyncio.Event()
    async with SandboxServer() as sandbox, zygote() as children:
        answer = sandbox.venue.token
        sandbox.venue.token = lambda *a, **k: asked.set() or answer(*a, **k)
        sandbox.fault("slow", delay=0.5)
        old = await asyncio.to_thread(stored, path, sandbox, age=age)
        [pid] = await children.begin(path, sandbox.url, force=True)
        await asked.wait()
        os.kill(pid, signal.SIGSTOP)
        async with manager_on(path, sandbox, refresh_timeout_seconds=0.3) as manager:
            for _ in range(3):
                with pytest.raises(TokenUnavailable, match="another process has held the lease"):
                    await manager.force_refresh()
            if age < 1800:
                assert await manager.get_token() == old.access_token
            else:
                with pytest.raises(TokenUnavailable, match="held the lease") as wait:
                    await manager.get_token()
                assert wait.value.retry_at is not None
            assert sandbox.stats()["token_requests"] == 1
            os.kill(pid, signal.SIGCONT)
            said, ends = await children.end()
            assert ends == [0]
            adopted = await manager.force_refresh()
            assert adopted.fingerprint == next(line["token"] for line in said if "token" in line)
        stats = sandbox.stats()
        assert (stats["refreshes"], stats["token_requests"], stats["reuses"]) == (1, 1, 0)


async def test_a_killed_lease_holder_frees_the_lease_at_once(tmp_path):
    path = tmp_path / "tokens.enc"
    async with SandboxServer() as sandbox, zygote() as children:
        await asyncio.to_thread(stored, path, sandbox, age=1801)
        await children.begin(
            path, sandbox.url, steps=True, kill_at=2
        )  # the lease is taken, no more
        _, ends = await children.end()
        assert ends == [-signal.SIGKILL]
        async with manager_on(path, sandbox) as manager:
            assert sandbox.accepts(await manager.get_token())
        assert sandbox.stats()["refreshes"] == 1


async def test_a_token_that_another_program_wrote_into_its_json_file_is_adopted(tmp_path):
    path = tmp_path / "schwab_tokens.json"
    async with SandboxServer(one_sign_in=False) as sandbox:
        await asyncio.to_thread(SchwabTokenFile(path).store, sandbox.issue())
        issuer = SchwabIssuer("sandbox-key", "sandbox-secret", base_url=sandbox.url)
        async with issuer, TokenManager({}, issuer, storage=SchwabTokenFile(path)) as manager:
            ours = await manager.get()
            foreign = sandbox.issue()
            written = json.loads(await asyncio.to_thread(path.read_text))
            written["token"] |= {
                "access_token": foreign.access_token,
                "refresh_token": foreign.refresh_token,
                "expires_at": int(ours.expires_at.timestamp()) + 60,
            }
            await asyncio.to_thread(path.write_text, json.dumps(written))
            adopted = await manager.get(newer_than=ours.generation)
            assert adopted.access_token == foreign.access_token
            assert adopted.generation > ours.generation
            assert sandbox.stats()["refreshes"] == 0
            renewed = await manager.force_refresh()
            assert sandbox.accepts(renewed.access_token)
            assert sandbox.stats()["reuses"] == 0
        saved = await asyncio.to_thread(SchwabTokenFile(path).load)
        assert saved.access_token == renewed.access_token
