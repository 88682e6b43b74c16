"""Whose a journal is: the lock beside it, its files' owner and mode, and words for what fails there.

Invariants: the lock is `flock`, which belongs to the open file and dies with its process, however that dies; the lock
file is never deleted. On Windows, which has none, it excludes nobody.
"""

import contextlib
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from keepline.clock import SYSTEM_CLOCK
from keepline.errors import StorageError
from keepline.files import strangers_can_write
from keepline.files.checks import check_file

if sys.platform != "win32":
    import fcntl

__all__ = ["explained", "make_file", "make_room", "owner_of", "take"]

_TRIES = 10
_PAUSE_SECONDS = 0.02

_REMEDIES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_CORRUPT: "it is damaged; stop trading, move it away, and check each open order at the broker",
    sqlite3.SQLITE_NOTADB: "it is damaged, or no journal at all; move it away, and check each open order at the broker",
    sqlite3.SQLITE_READONLY: "it cannot be written; give us the right (chown, chmod) or use another path",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; make its directory ours and writable",
    sqlite3.SQLITE_BUSY: "another program keeps it locked; close what has it open",
    sqlite3.SQLITE_IOERR: "the disk reports an error; look at the system log and at the free space",
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        what = _REMEDIES.get(code, f"SQLite says: {error}")
        failure = StorageError(f"the order journal cannot be used: {what}", path=path)
        failure.errno = None
        raise failure from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"the order journal cannot be used: {error.strerror or error}; make its directory ours and writable",
            path=path,
        ) from error


def owner_of(path: Path) -> int | None:
    """The process that owns a journal, 0 when it does not say, None when nobody does."""
    lock = _lock_path(path)
    if sys.platform == "win32" or not lock.exists():
        return None
    with explained(path):
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(fd, 32).strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(fd)
    return None


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def make_room(path: Path) -> None:
    missing = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
    if strangers_can_write(path.parent) == "yes":
        raise StorageError(
            f"others can write its directory and exchange the journal; run: chmod go-w {path.parent}, or use another"
            " one",
            path=path,
        )


def make_file(path: Path) -> None:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(path, flags, 0o600)
    try:
        check_file(os.fstat(fd), path, "warn", system=False)
    finally:
        os.close(fd)


def take(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(_lock_path(path), flags, 0o600)
    if sys.platform == "win32":
        return fd
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError("its lock file is not a regular file: remove it", path=path)
        _lock(fd)
    except BlockingIOError:
        text = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        raise StorageError(
            f"another program ({f'process {text}' if text else 'unknown'}) has this order journal: one at a time; stop"
            " it, or use another journal",
            path=path,
        ) from None
    except BaseException:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())
    return fd


def _lock(fd: int) -> None:
    """Take it; `owner_of` of another process may hold it for the blink of an eye."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        SYSTEM_CLOCK.pause(_PAUSE_SECONDS)
    return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
