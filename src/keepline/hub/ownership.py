"""Whose a journal is: the lock beside it, its directory, its file's owner and mode.

Invariants: the lock is `flock`, which belongs to the open file and dies with its process, however that dies; the lock
file is never deleted. On Windows, which has none, it excludes nobody.
"""

import os
import stat
import sys
from pathlib import Path

from keepline.errors import StorageError
from keepline.files import strangers_can_write
from keepline.files.checks import check_file

if sys.platform != "win32":
    import fcntl

__all__ = ["give_back", "make_file", "make_room", "take"]

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


def make_room(path: Path) -> None:
    """Make the directory of a journal, private where it is missing; refuse one that strangers can write."""
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
    """Make the file with mode 0600, or check whose an existing one is."""
    fd = os.open(path, _FLAGS, 0o600)
    try:
        check_file(os.fstat(fd), path, "warn", system=False)
    finally:
        os.close(fd)


def take(path: Path) -> int:
    """Own the journal until `give_back` or the end of this process.

    Raises:
        StorageError: another process has it.
    """
    fd = os.open(path.with_name(f"{path.name}.lock"), _FLAGS, 0o600)
    if sys.platform == "win32":
        return fd
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError("its lock file is not a regular file: remove it", path=path)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
    except BlockingIOError:
        text = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        raise StorageError(
            f"another program ({f'process {text}' if text else 'unknown'}) has this message journal: one at a time;"
            " stop it, or use another journal",
            path=path,
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def give_back(fd: int) -> None:
    """Let another process own it."""
    os.close(fd)
