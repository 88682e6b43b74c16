"""Whose a database file is, on a real file system: one owner at a time, private files, and words for what fails."""

import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keepline.errors import StorageError
from keepline.files import ownership
from keepline.files.databases import HARMLESS, explained_database, sqlite_code
from keepline.files.ownership import give_back, make_file, make_room, owner_of, take


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "some.db"


@pytest.fixture
def owned(path: Path) -> Path:
    """A file whose directory is there."""
    make_room(path, "journal")
    return path


def _open_files() -> int:
    listing = Path("/dev/fd")  # on Linux and macOS alike
    return len(list(listing.iterdir()))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_second_owner_hears_of_the_first_until_that_gives_it_back(owned: Path) -> None:
    lock = take(owned, "guest book")
    with pytest.raises(
        StorageError, match=f"process {os.getpid()}.*has this guest book: one at a time"
    ) as caught:
        take(owned, "guest book")
    assert caught.value.path == owned
    assert owner_of(owned) == os.getpid()
    give_back(lock)
    assert owner_of(owned) is None
    give_back(take(owned, "guest book"))


def test_a_lock_dies_with_its_process_and_its_file_stays(owned: Path) -> None:
    program = (
        "import os, sys, pathlib\nfrom keepline.files.ownership import take\n"
        "take(pathlib.Path(sys.argv[1]), 'x')\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(owned)], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert owned.with_name("some.db.lock").read_text().strip().isdigit()
    assert owner_of(owned) is None
    give_back(take(owned, "x"))


def test_a_shorter_process_number_leaves_nothing_of_a_longer_one(owned: Path) -> None:
    owned.with_name("some.db.lock").write_text("99999999999\n")
    lock = take(owned, "x")
    assert owner_of(owned) == os.getpid()
    give_back(lock)


def test_an_owner_that_says_nothing_is_0_and_unknown(owned: Path) -> None:
    fd = os.open(owned.with_name("some.db.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert owner_of(owned) == 0
    with pytest.raises(StorageError, match=r"\(unknown\)"):
        take(owned, "x")
    os.close(fd)


def test_who_looks_for_the_owner_keeps_nobody_out(
    owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_back(take(owned, "x"))
    looking = os.open(owned.with_name("some.db.lock"), os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    pauses: list[float] = []

    class Clock:
        def pause(self, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                os.close(looking)

    monkeypatch.setattr(ownership, "SYSTEM_CLOCK", Clock())
    give_back(take(owned, "x"))
    assert len(pauses) == 3


def test_two_that_look_for_the_owner_do_not_take_each_other_for_it(owned: Path) -> None:
    give_back(take(owned, "x"))
    looking = os.open(owned.with_name("some.db.lock"), os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert owner_of(owned) is None
    os.close(looking)


def test_a_refused_lock_leaves_no_file_open(owned: Path) -> None:
    lock = take(owned, "x")
    before = _open_files()
    for _ in range(3):
        with pytest.raises(StorageError):
            take(owned, "x")
    assert _open_files() == before
    give_back(lock)


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_a_lock_that_is_no_regular_file_is_refused(owned: Path, kind: str) -> None:
    lock = owned.with_name("some.db.lock")
    if kind == "fifo":
        os.mkfifo(lock, 0o600)
        with pytest.raises(StorageError, match="lock file is not a regular file"):
            take(owned, "x")
    else:
        lock.symlink_to(owned.with_name("elsewhere"))
        with pytest.raises(OSError):
            take(owned, "x")
        lock.with_name("elsewhere").touch()
        with pytest.raises(StorageError, match="symbolic link"):
            owner_of(owned)


def test_everything_that_is_made_is_ours_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        make_room(path.parent / "deep" / path.name, "journal")
        make_file(path)
        give_back(take(path, "x"))
    finally:
        os.umask(before)
    assert mode(path.parent) == mode(path.parent / "deep") == 0o700
    assert mode(path) == mode(path.with_name("some.db.lock")) == 0o600


def test_a_directory_that_others_can_write_is_refused_with_the_command(owned: Path) -> None:
    owned.parent.chmod(0o777)
    with pytest.raises(
        StorageError, match=f"exchange the guest book; run: chmod go-w {owned.parent}"
    ):
        make_room(owned, "guest book")
    owned.parent.chmod(0o700)


def test_a_link_in_its_place_is_not_followed(owned: Path) -> None:
    owned.symlink_to(owned.with_name("elsewhere"))
    with pytest.raises(OSError):
        make_file(owned)
    assert not owned.with_name("elsewhere").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_FULL, "disk is full"),
        (sqlite3.SQLITE_CORRUPT, "is damaged; burn it"),
        (sqlite3.SQLITE_NOTADB, "no journal at all; burn it"),
        (sqlite3.SQLITE_READONLY, "chown, chmod"),
        (sqlite3.SQLITE_CANTOPEN, "directory ours"),
        (sqlite3.SQLITE_BUSY, "locked"),
        (sqlite3.SQLITE_IOERR | 2 << 8, "disk reports an error"),
        (sqlite3.SQLITE_MISMATCH, "SQLite says: oh"),
    ],
)
def test_each_refusal_of_sqlite_has_a_remedy(path: Path, code: int, words: str) -> None:
    error = sqlite3.OperationalError("oh")
    error.sqlite_errorcode = code
    with (
        pytest.raises(StorageError, match=f"the book cannot be used: .*{words}") as caught,
        explained_database(path, "the book", damaged="burn it"),
    ):
        raise error
    assert caught.value.__cause__ is error
    assert (sqlite_code(error) in HARMLESS) == (code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY))


def test_what_the_system_refuses_is_said_and_what_is_ours_passes(path: Path) -> None:
    with (
        pytest.raises(StorageError, match="the book cannot be used: Is a directory"),
        explained_database(path, "the book", damaged=""),
    ):
        raise IsADirectoryError(21, "Is a directory")
    ours = StorageError("as it is", path=path)
    with pytest.raises(StorageError) as caught, explained_database(path, "x", damaged=""):
        raise ours
    assert caught.value is ours
