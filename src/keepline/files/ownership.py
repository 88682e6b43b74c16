"""Whose a database file is: the lock beside it, its directory, its own owner and mode.

Invariants: the lock is `flock`, which belongs to the open file and dies with its process, however that dies; the lock
file is never deleted. On Windows, which has none, it excludes nobody.
"""

import contextlib
import os
import stat
import sys
from pathlib import Path

from keepline.clock import SYSTEM_CLOCK
from keepline.errors import StorageError
from keepline.files.checks import check_file
from keepline.files.directories import strangers_can_write
from keepline.files.failures import explained

if sys.platform != "win32":
    import fcntl

__all__ = ["give_back", "make_file", "make_room", "owner_of", "take"]

_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_TRIES = 10
_PAUSE_SECONDS = 0.02


def make_room(path: Path, what: str) -> None:
    """Make the directory of a file, private where it is missing.

    Args:
        path: the file.
        what: what it is, in words, for example `journal`.

    Raises:
        StorageError: strangers can write the directory.
        OSError: it cannot be made.
    """
    missing = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
    if strangers_can_write(path.parent) == "yes":
        raise StorageError(
            f"others can write its directory and exchange the {what}; run: chmod go-w {path.parent}, or use another"
            " one",
            path=path,
        )


def make_file(path: Path) -> None:
    """Make a file with mode 0600, or check whose an existing one is.

    Raises:
        StorageError: it is somebody else's, or no regular file.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    try:
        check_file(os.fstat(fd), path, "warn", system=False)
    finally:
        os.close(fd)


def take(path: Path, what: str) -> int:
    """Own a file until `give_back` or the end of this process.

    Args:
        path: the file; the lock is beside it, with `.lock` at the end of its name.
        what: what it is, in words, for example `order journal`.

    Returns:
        What `give_back` wants.

    Raises:
        StorageError: another process has it, or its lock is no regular file.
        OSError: the lock cannot be opened.
    """
    fd = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    if sys.platform == "win32":
        return fd
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError("its lock file is not a regular file: remove it", path=path)
        _lock(fd)
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
    except BlockingIOError:
        text = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        raise StorageError(
            f"another program ({f'process {text}' if text else 'unknown'}) has this {what}: one at a time; stop it, or"
            " use another file",
            path=path,
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def give_back(fd: int) -> None:
    """Let another process own it."""
    os.close(fd)


def owner_of(path: Path) -> int | None:
    """The process that owns a file, 0 when it does not say, None when nobody does.

    Raises:
        StorageError: the lock cannot be read.
    """
    lock = _lock_path(path)
    if sys.platform == "win32" or not lock.exists():
        return None
    with explained(lock, "read"):
        fd = os.open(lock, os.O_RDONLY | _FLAGS)
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


def _lock(fd: int) -> None:
    """Take it; `owner_of` of another process may hold it for the blink of an eye."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        SYSTEM_CLOCK.pause(_PAUSE_SECONDS)
    return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
