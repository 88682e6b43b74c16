"""kill -9 at every step of a renewal: a spent refresh token is presented again only where its answer was truly lost.

The child dies before its n-th step; a fresh manager on the same store then goes on against the same issuer, which
rotates refresh tokens and ends the whole sign-in when a spent one comes back.
"""

import asyncio
import os
import signal
import sys
from itertools import count

import pytest
from tests.credentials.family import Zygote, manager_on, store_at, stored, zygote

from keepline.errors import SignInRequired
from keepline.sandbox.server import SandboxServer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and kill"),
    pytest.mark.timeout(120),
]


async def killed_before(step: int | None, path, sandbox: SandboxServer, children: Zygote):
    """Let a child renew and die; the steps of one that lived, None of one that was killed."""
    await children.begin(path, sandbox.url, steps=True, kill_at=step)
    said, ends = await children.end()
    if ends == [-signal.SIGKILL]:
        return None
    assert ends == [0], said
    return next(line["steps"] for line in said if "steps" in line)


async def test_a_renewal_goes_through_the_steps_in_their_order(tmp_path):
    path = tmp_path / "tokens.enc"
    async with SandboxServer() as sandbox, zygote() as children:
        await asyncio.to_thread(stored, path, sandbox, age=1801)
        steps = await killed_before(None, path, sandbox, children)
    marks = [
        s for s in steps if s in ("lease", "prepare", "request", "answer", "release", "publish")
    ]
    assert marks[-6:] == ["lease", "prepare", "request", "answer", "release", "publish"]
    before, after = steps.index("request"), steps.index("answer")
    assert "fsync" in steps[:before], "space and intent are on the disk before anything is spent"
    assert after == before + 1
    saving = steps[after:]
    assert saving.index("write") < saving.index("fsync") < saving.index("replace")
    assert "fsync" in saving[saving.index("replace") :], "the directory is synced before publishing"


@pytest.mark.parametrize("grace", [0.0, 600.0])
async def test_after_a_kill_at_any_step_nothing_is_lost_but_an_answer_that_never_reached_the_disk(
    tmp_path, grace
):
    outcomes = {"not asked": 0, "saved": 0, "lost": 0}
    path = tmp_path / "tokens.enc"
    store = store_at(path)  # one object: its key is derived once
    async with SandboxServer(grace=grace) as sandbox, zygote() as children:
        for step in count():
            for left_behind in set(tmp_path.iterdir()) - {path}:
                left_behind.unlink()
            spent = await asyncio.to_thread(stored, path, sandbox, age=1801, store=store)
            before = sandbox.stats()
            if await killed_before(step, path, sandbox, children) is not None:
                break
            found = await asyncio.to_thread(store.load)
            asked = sandbox.stats()["refreshes"] > before["refreshes"]
            lost = asked and found.refresh_token == spent.refresh_token
            await goes_on(path, sandbox, is_lost=lost and not grace)
            reuses = sandbox.stats()["reuses"] - before["reuses"]
            assert reuses == (1 if lost and not grace else 0)
            outcomes["lost" if lost else "saved" if asked else "not asked"] += 1
    assert min(outcomes.values()) >= 3, outcomes


async def goes_on(path, sandbox, *, is_lost: bool) -> None:
    async with manager_on(path, sandbox) as manager:
        if is_lost:
            await ends_clearly(manager)
            return
        assert sandbox.accepts(await manager.get_token())
        fresh = await manager.force_refresh()
        assert sandbox.accepts(fresh.access_token)
        assert manager.status()["interrupted"] is None


async def ends_clearly(manager) -> None:
    for _ in range(3):
        with pytest.raises(SignInRequired) as call:
            await manager.get_token()
        assert "interrupted before its answer was saved" in str(call.value)
        assert "keepline login schwab" in str(call.value)
    status = manager.status()
    assert status["state"] == "SIGN_IN_REQUIRED"
    assert "interrupted" in status["interrupted"]


@pytest.mark.parametrize("grace", [0.0, 600.0])
async def test_a_kill_while_the_answer_is_on_its_way_ends_clearly(tmp_path, grace):
    path = tmp_path / "tokens.enc"
    async with SandboxServer(grace=grace) as sandbox, zygote() as children:
        await asyncio.to_thread(stored, path, sandbox, age=1801)
        answer, pids = sandbox.venue.token, []

        def answered(*args, **kwargs):
            reply = answer(*args, **kwargs)
            os.kill(pids[0], signal.SIGKILL)  # the token is spent, and nobody reads the answer
            return reply

        sandbox.venue.token = answered
        sandbox.fault("slow", delay=0.2)
        pids += await children.begin(path, sandbox.url)
        _, ends = await children.end()
        sandbox.venue.token = answer
        assert ends == [-signal.SIGKILL]
        async with manager_on(path, sandbox) as manager:
            if grace:
                assert sandbox.accepts(await manager.get_token())
            else:
                await ends_clearly(manager)
        assert sandbox.stats()["reuses"] == (0 if grace else 1)


async def test_a_sign_in_after_the_lost_answer_is_taken_up_and_the_record_is_gone(tmp_path):
    path = tmp_path / "tokens.enc"
    async with SandboxServer() as sandbox, zygote() as children:
        await asyncio.to_thread(stored, path, sandbox, age=1801)
        await killed_after_the_answer(path, sandbox, children)
        async with manager_on(path, sandbox) as manager:
            await ends_clearly(manager)
            await asyncio.to_thread(store_at(path).store, sandbox.issue())
            assert sandbox.accepts((await manager.force_refresh()).access_token)
            fresh = await manager.force_refresh()
            assert sandbox.accepts(fresh.access_token)
            assert manager.status()["interrupted"] is None


async def killed_after_the_answer(path, sandbox, children) -> None:
    copy = path.with_name("trace.enc")
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o600)
    steps = await killed_before(None, copy, sandbox, children)
    await asyncio.to_thread(stored, path, sandbox, age=1801)
    assert await killed_before(steps.index("answer"), path, sandbox, children) is None
