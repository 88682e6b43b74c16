"""The lock between processes: exclusive, freed by death, never deleted, harmless to cancel."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keepline.credentials import lease as leases
from keepline.credentials.lease import FileLease
from keepline.errors import StorageError
from keepline.testing import ManualClock

HOLDER = """
import asyncio, sys
from pathlib import Path
from keepline.credentials.lease import FileLease

async def main():
    async with FileLease(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tokens.lock"


@pytest.fixture
def holder(path: Path):
    """Another process that holds the lock until it is told to let go."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_free_lease_is_taken_at_once_and_given_back(path: Path) -> None:
    lease = FileLease(path, clock=ManualClock())
    async with lease as same:
        assert same is lease
        assert lease.held
        assert "held" in repr(lease)
    assert not lease.held
    assert path.exists(), "a lock file that is deleted lets two in"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    async with lease:
        pass


async def test_only_one_object_holds_it_and_the_next_one_looks_every_25_to_75_ms(
    path: Path,
) -> None:
    clock = ManualClock(chance=0.25)
    order = []

    async def second() -> None:
        async with FileLease(path, clock=clock):
            order.append("second")

    async with FileLease(path, clock=clock):
        waiting = asyncio.create_task(second())
        await clock.until_asleep()
        assert clock.next_wake == pytest.approx(0.0375)
        clock.advance(0.0375)
        await clock.until_asleep()
        order.append("first")
    await clock.run_until(waiting.done)
    assert order == ["first", "second"]


async def test_one_object_may_be_waited_for_by_several_tasks(path: Path) -> None:
    path.parent.mkdir()
    clock = ManualClock()
    lease = FileLease(path, clock=clock)
    inside: list[int] = []
    most: list[int] = []

    async def enter(number: int) -> None:
        async with lease:
            inside.append(number)
            most.append(len(inside))
            await asyncio.sleep(0)
            inside.remove(number)

    tasks = [asyncio.create_task(enter(number)) for number in range(5)]
    await clock.run_until(lambda: all(task.done() for task in tasks))
    assert most == [1, 1, 1, 1, 1]


async def test_a_cancelled_waiter_leaves_no_descriptor_and_no_lock(path: Path) -> None:
    clock = ManualClock()
    async with FileLease(path, clock=clock):
        before = open_descriptors()
        lease = FileLease(path, clock=clock)
        waiting = asyncio.create_task(lease.__aenter__())
        await clock.until_asleep()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert open_descriptors() == before
        assert not lease.held
    async with FileLease(path, clock=clock):
        pass


async def test_a_holder_that_is_killed_frees_it(path: Path, holder: subprocess.Popen) -> None:
    clock = ManualClock()
    waiting = asyncio.create_task(FileLease(path, clock=clock).__aenter__())
    await clock.until_asleep()
    clock.advance(0.05)
    await clock.until_asleep()
    assert not waiting.done()
    holder.kill()
    holder.communicate()
    await clock.run_until(waiting.done)
    lease = await waiting
    assert lease.held
    await lease.__aexit__(None, None, None)


async def test_a_holder_that_is_stopped_keeps_it(path: Path, holder: subprocess.Popen) -> None:
    holder.send_signal(signal.SIGSTOP)
    clock = ManualClock()
    waiting = asyncio.create_task(FileLease(path, clock=clock).__aenter__())
    with pytest.raises(TimeoutError):
        await clock.run_until(waiting.done, limit=60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_lock_on_a_file_that_was_replaced_does_not_count(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real = fcntl.flock
    path.parent.mkdir()
    before = open_descriptors()

    def flock(fd: int, how: int) -> None:
        real(fd, how)
        path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        assert leases._open_locked(path) is None
    assert open_descriptors() == before
    os.close(leases._open_locked(path))


async def test_the_lock_is_not_inherited(path: Path) -> None:
    async with FileLease(path) as lease:
        assert not os.get_inheritable(lease._fd)


async def test_a_link_or_a_pipe_or_a_foreign_file_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(StorageError, match="lock file cannot be used"):
        await FileLease(path).__aenter__()
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(StorageError, match="not a regular file of ours"):
        await FileLease(path).__aenter__()
    path.unlink()
    before = open_descriptors()
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(StorageError, match="not a regular file of ours"):
        await FileLease(path).__aenter__()
    assert open_descriptors() == before


async def test_a_directory_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="lock file cannot be used"):
        await FileLease(tmp_path / "file" / "lock").__aenter__()


async def test_a_directory_that_may_not_be_made_is_explained(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(StorageError, match="Permission denied"):
        await FileLease(path).__aenter__()
