"""Private files: read with checks on the open descriptor, replaced by rename of a complete and synced spare."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from keepline.errors import StorageError
from keepline.files import steps
from keepline.files.checks import LooseMode, check_file, ours
from keepline.files.directories import make_directories, strangers_can_write
from keepline.files.failures import explained

__all__ = [
    "Reservation",
    "append_private",
    "erase",
    "read_private",
    "reserve",
    "write_private",
]


def read_private(
    path: Path, *, limit: int = 1 << 20, on_loose_mode: LooseMode = "refuse", system: bool = False
) -> bytes | None:
    """Read a file that only we may read.

    Args:
        path: the file; its last component must not be a symbolic link.
        limit: bytes; a longer file is refused, it is not ours.
        on_loose_mode: what to do when group or others have rights: refuse, warn, or `allow`.
        system: root may own it too, as with the credentials that systemd hands to a service.

    Returns:
        The bytes, or None when there is no such file.

    Raises:
        StorageError: a link, not a regular file, another owner, a loose mode, too long, unreadable.
    """
    with explained(path, "read"):
        try:
            fd = os.open(path, steps.READ_FLAGS)
        except FileNotFoundError:
            return None
        try:
            check_file(os.fstat(fd), path, on_loose_mode, system)
            data = steps.read_up_to(fd, limit + 1)
        finally:
            os.close(fd)
    if len(data) > limit:
        raise StorageError(f"is longer than {limit} bytes: this is another file", path=path)
    return data


def write_private(path: Path, data: bytes) -> None:
    """Replace a file by `data`, durably, or leave it as it was.

    Raises:
        StorageError: disk full, quota, device error, a link, another owner, a directory that strangers can write.
    """
    with reserve(path, len(data)) as reservation:
        reservation.commit(data)


def reserve(path: Path, size: int) -> "Reservation":
    """Take the disk space for a later write now, so that the write cannot fail for want of it.

    Directories that are missing are made with mode 0700. What a dead process left beside the file is removed.

    Args:
        path: the file that `commit` will replace.
        size: bytes to reserve; a longer `commit` works too while the disk has room.

    Raises:
        StorageError: as `write_private`.
    """
    with explained(path, "saved"):
        make_directories(path.parent)
        _check_target(path)
        steps.remove_leftovers(path)
        return Reservation(path, *steps.new_spare(path, size))


class Reservation:
    """Disk space beside a file, locked while it lives; leave its `with` block and what is not committed is freed."""

    def __init__(self, path: Path, fd: int, spare: Path) -> None:
        self.path = path
        self._fd: int | None = fd
        self._spare = spare

    def commit(self, data: bytes, *, check: Callable[[bytes], object] | None = None) -> None:
        """Make `data` the file's content: full write, fsync, rename, fsync of the directory.

        Args:
            data: the whole new content.
            check: is given what was written, read from the disk again, before the old file is replaced; what it raises
                leaves the old file in place.

        Raises:
            StorageError: nothing was replaced, unless the message says that only the directory could not be synced.
        """
        if self._fd is None:
            raise StorageError("this reservation is spent: reserve again", path=self.path)
        with explained(self.path, "saved"):
            try:
                self._write(data)
                if check is not None:
                    os.lseek(self._fd, 0, os.SEEK_SET)
                    check(steps.read_up_to(self._fd, len(data) + 1))
                self._rename()
            finally:
                self.discard()
            steps.sync_directory(self.path)

    def discard(self) -> None:
        """Free the space; after `commit`, and a second time, it does nothing."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        if sys.platform == "win32":
            os.close(fd)
        with contextlib.suppress(OSError):
            self._spare.unlink(missing_ok=True)
        if sys.platform != "win32":
            os.close(
                fd
            )  # last: until then the lock keeps others from taking the spare for a leftover

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        try:
            steps.fill(self._fd, data)
            os.fsync(self._fd)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                raise
            # A second fsync of this file may report success for pages that are gone: only a new file tells the truth.
            self.discard()
            self._fd, self._spare = steps.new_spare(self.path, 0)
            steps.fill(self._fd, data)
            os.fsync(self._fd)

    def _rename(self) -> None:
        if sys.platform == "win32" and self._fd is not None:
            os.close(self._fd)  # Windows renames no open file
            self._fd = None
        os.replace(self._spare, self.path)  # noqa: PTH105

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def __repr__(self) -> str:
        return f"<Reservation for {self.path}, {'spent' if self._fd is None else 'open'}>"


def append_private(path: Path, data: bytes) -> None:
    """Add bytes at the end of a file that only we may read; it is made with mode 0600 when missing.

    Raises:
        StorageError: as `read_private` and `write_private`.
    """
    with explained(path, "written"):
        make_directories(path.parent)
        fd = os.open(path, steps.WRITE_FLAGS | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            check_file(os.fstat(fd), path, "refuse", system=False)
            steps.write_all(fd, data)
        finally:
            os.close(fd)


def erase(path: Path) -> None:
    """Overwrite a file, remove it and what an interrupted save left beside it; an absent file is fine.

    Overwriting reaches the old blocks on ordinary file systems only; on copy-on-write ones and on flash the removal is
    what counts.

    Raises:
        StorageError: it is a link, belongs to another user, or cannot be removed.
    """
    with explained(path, "erased"):
        steps.remove_leftovers(path)
        try:
            info = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISREG(info.st_mode) or not ours(info):
            raise StorageError(
                "is not a regular file of ours: look at it, then remove it by hand", path=path
            )
        steps.overwrite(path)
        os.unlink(path)  # noqa: PTH108 - the os calls are the save order, one by one
        steps.sync_directory(path)


def _check_target(path: Path) -> None:
    if strangers_can_write(path.parent) == "yes":
        raise StorageError(
            f"others can write its directory and exchange the file; run: chmod go-w {path.parent}, or use another one",
            path=path,
        )
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(info.st_mode):
        raise StorageError("is a symbolic link: put the file itself there", path=path)
    if not stat.S_ISREG(info.st_mode):
        raise StorageError("is not a regular file: move it away", path=path)
    if not ours(info):
        raise StorageError(
            f"belongs to user {info.st_uid}, not to us: make it ours with chown, or use another file",
            path=path,
        )
