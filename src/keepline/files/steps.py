"""A save, step by step: the spare beside the file, its space, full writes, fsync of file and directory.

Invariant: a spare is locked by the process that writes it, so one that can be locked was left by the dead.
"""

import contextlib
import errno
import os
import secrets
import sys
from pathlib import Path

from keepline.errors import StorageError
from keepline.files.checks import ours
from keepline.files.failures import remedy

if sys.platform != "win32":
    import fcntl

__all__ = [
    "CREATE_FLAGS",
    "READ_FLAGS",
    "WRITE_FLAGS",
    "fill",
    "new_spare",
    "overwrite",
    "read_up_to",
    "remove_leftovers",
    "sync_directory",
    "write_all",
]

_COMMON = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
READ_FLAGS = os.O_RDONLY | _COMMON | getattr(os, "O_NONBLOCK", 0)  # a FIFO must not hang us
WRITE_FLAGS = os.O_WRONLY | _COMMON
CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | _COMMON


def new_spare(path: Path, size: int) -> tuple[int, Path]:
    while True:
        spare = path.parent / f".{path.name}.{secrets.token_hex(6)}.spare"
        fd = os.open(spare, CREATE_FLAGS, 0o600)
        try:
            _lock(fd)
            if (
                os.fstat(fd).st_nlink == 0
            ):  # another process took it for a leftover before we had locked it
                os.close(fd)
                continue
            _allocate(fd, size)
            os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                spare.unlink(missing_ok=True)
            os.close(fd)
            raise
        return fd, spare


def _allocate(fd: int, size: int) -> None:
    if size > 0 and hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    write_all(fd, bytes(size))
    return None


def fill(fd: int, data: bytes) -> None:
    os.lseek(fd, 0, os.SEEK_SET)
    write_all(fd, data)
    os.ftruncate(fd, len(data))


def write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # one write may take less than all: seen with a page of disk left
        written = os.write(fd, rest)
        if written <= 0:
            raise OSError(errno.EIO, "the file takes no more bytes")
        rest = rest[written:]


def read_up_to(fd: int, limit: int) -> bytes:
    parts = []
    while limit > 0 and (part := os.read(fd, min(limit, 1 << 16))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def sync_directory(path: Path) -> None:
    if sys.platform == "win32":
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems know no fsync of a directory
            raise StorageError(
                f"was written, but its directory could not be synced, so a power cut could undo it: {remedy(error)}",
                path=path,
            ) from error
    finally:
        os.close(fd)


def overwrite(path: Path) -> None:
    with contextlib.suppress(OSError):  # the removal that follows is what must work
        fd = os.open(path, WRITE_FLAGS)
        try:
            write_all(fd, bytes(os.fstat(fd).st_size))
            os.fsync(fd)
        finally:
            os.close(fd)


def remove_leftovers(path: Path) -> None:
    """Remove the spares of dead processes: a living one holds a lock on its own."""
    if sys.platform == "win32" or not path.parent.is_dir():
        return
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if name.startswith(f".{path.name}.") and name.endswith(".spare"):
            _remove_if_dead(path.parent / name)


def _remove_if_dead(spare: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(spare, READ_FLAGS)
        try:
            if ours(os.fstat(fd)) and _lock(fd):
                overwrite(spare)
                spare.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by its writer, or a file system without locks
        return False
    return True
