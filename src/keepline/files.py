"""Private files: atomic, durable, 0600, ours alone.

Invariants: owner, mode and kind are checked on the open descriptor, never by name; no symbolic link is followed; a
file changes only by rename of a complete and synced one, so a reader sees the old bytes or the new ones; after a failed
fsync the file is written anew, because the kernel may have dropped what it could not write. Every failure is a
`StorageError` that names the path and the remedy. On Windows, which has neither owner nor mode bits, those checks are
left out.
"""

import contextlib
import errno
import logging
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

from keepline import telemetry
from keepline.errors import StorageError

if sys.platform != "win32":
    import fcntl
    import grp
    import pwd

__all__ = [
    "Reservation",
    "append_private",
    "erase",
    "private_directory",
    "read_private",
    "reserve",
    "runtime_directory",
    "strangers_can_write",
    "write_private",
]

log = logging.getLogger("keepline.files")

_COMMON = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | _COMMON | getattr(os, "O_NONBLOCK", 0)  # a FIFO must not hang us
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _COMMON
_STRANGERS = 0o077

LooseMode = Literal["refuse", "warn", "allow"]


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
    with _explained(path, "read"):
        try:
            fd = os.open(path, _READ)
        except FileNotFoundError:
            return None
        try:
            _check_file(os.fstat(fd), path, on_loose_mode, system)
            data = _read_up_to(fd, limit + 1)
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
    with _explained(path, "saved"):
        _make_directories(path.parent)
        _check_target(path)
        _remove_leftovers(path)
        return Reservation(path, *_new_spare(path, size))


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
        with _explained(self.path, "saved"):
            try:
                self._write(data)
                if check is not None:
                    os.lseek(self._fd, 0, os.SEEK_SET)
                    check(_read_up_to(self._fd, len(data) + 1))
                self._rename()
            finally:
                self.discard()
            _sync_directory(self.path)

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
            _fill(self._fd, data)
            os.fsync(self._fd)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                raise
            # A second fsync of this file may report success for pages that are gone: only a new file tells the truth.
            self.discard()
            self._fd, self._spare = _new_spare(self.path, 0)
            _fill(self._fd, data)
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
    with _explained(path, "written"):
        _make_directories(path.parent)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _COMMON, 0o600)
        try:
            _check_file(os.fstat(fd), path, "refuse", system=False)
            _write_all(fd, data)
        finally:
            os.close(fd)


def erase(path: Path) -> None:
    """Overwrite a file, remove it and what an interrupted save left beside it; an absent file is fine.

    Overwriting reaches the old blocks on ordinary file systems only; on copy-on-write ones and on flash the removal is
    what counts.

    Raises:
        StorageError: it is a link, belongs to another user, or cannot be removed.
    """
    with _explained(path, "erased"):
        _remove_leftovers(path)
        try:
            info = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISREG(info.st_mode) or not _ours(info):
            raise StorageError(
                "is not a regular file of ours: look at it, then remove it by hand", path=path
            )
        _overwrite(path)
        os.unlink(path)  # noqa: PTH108 - the os calls are the save order, one by one
        _sync_directory(path)


def private_directory(path: Path) -> Path:
    """Make a directory with mode 0700 (missing parents too), or check that an existing one is ours alone.

    Returns:
        The path.

    Raises:
        StorageError: a link, not a directory, another owner, rights for group or others.
    """
    with _explained(path, "used as a private directory"):
        _make_directories(path)
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            raise StorageError("is a symbolic link: put a real directory there", path=path)
        if not stat.S_ISDIR(info.st_mode):
            raise StorageError("is not a directory: move it away", path=path)
        if not _ours(info):
            raise StorageError(
                f"belongs to user {info.st_uid}, not to us: use another directory", path=path
            )
        if _loose(info):
            raise StorageError(
                f"has mode {stat.S_IMODE(info.st_mode):04o}, so others have rights there; run: chmod 700 {path}",
                path=path,
            )
    return path


def strangers_can_write(directory: Path) -> Literal["no", "sticky", "yes"]:
    """Whether another user could put files into a directory or exchange ours there.

    Links are followed to the real directory; for one that does not exist yet, the nearest existing parent answers. A
    directory of another user (root excepted) is open to that user. Group rights count unless the group is ours alone.

    Returns:
        `sticky`: others can add files there but not exchange ours, as in /tmp.
    """
    real = directory.resolve()
    while not real.exists():
        real = real.parent
    with _explained(directory, "checked"):
        info = os.stat(real)  # noqa: PTH116
    if not _ours(info) and info.st_uid != 0:
        return "yes"
    if not _others_write(info):
        return "no"
    return "sticky" if info.st_mode & stat.S_ISVTX else "yes"


def runtime_directory(*, make: bool = True) -> Path:
    """Where sockets and locks live, 0700 and owned by us.

    The first that is set of `KEEPLINE_RUNTIME_DIR`, `RUNTIME_DIRECTORY` (systemd), `$XDG_RUNTIME_DIR/keepline`; else
    `/tmp/keepline-<uid>`.

    Args:
        make: False only names it and touches nothing.

    Raises:
        StorageError: as `private_directory`.
    """
    path = _runtime_path()
    return private_directory(path) if make else path


def _runtime_path() -> Path:
    environment = os.environ
    if chosen := environment.get("KEEPLINE_RUNTIME_DIR"):
        return Path(chosen)
    if given := environment.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])  # systemd separates several by colons
    if session := environment.get("XDG_RUNTIME_DIR"):
        return Path(session) / "keepline"
    if sys.platform == "win32":
        return Path(tempfile.gettempdir()) / "keepline"
    return Path(f"/tmp/keepline-{os.geteuid()}")  # noqa: S108 - made 0700, owner and link checked


# --- checks ---


def _check_file(info: os.stat_result, path: Path, on_loose_mode: LooseMode, system: bool) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise StorageError("is not a regular file: put the file itself there", path=path)
    if not _ours(info) and not (system and info.st_uid == 0):
        raise StorageError(
            f"belongs to user {info.st_uid}, not to us: make it ours with chown, or use another file",
            path=path,
        )
    if info.st_nlink > 1:
        raise StorageError(
            f"has {info.st_nlink} names (hard links), and a save would leave the others behind: remove them",
            path=path,
        )
    if _loose(info) and on_loose_mode != "allow":
        _complain(path, info, refuse=on_loose_mode == "refuse")


def _complain(path: Path, info: os.stat_result, *, refuse: bool) -> None:
    mode = f"{stat.S_IMODE(info.st_mode):04o}"
    if refuse:
        raise StorageError(
            f"has mode {mode}, so others may read the secret; run: chmod 600 {path}", path=path
        )
    telemetry.event(
        log, logging.WARNING, "Others may read this file; run chmod 600", path=str(path), mode=mode
    )


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
    if not _ours(info):
        raise StorageError(
            f"belongs to user {info.st_uid}, not to us: make it ours with chown, or use another file",
            path=path,
        )


def _ours(info: os.stat_result) -> bool:
    return sys.platform == "win32" or info.st_uid == os.geteuid()


def _loose(info: os.stat_result) -> bool:
    return sys.platform != "win32" and bool(info.st_mode & _STRANGERS)


def _others_write(info: os.stat_result) -> bool:
    if sys.platform == "win32":
        return False
    if info.st_mode & stat.S_IWOTH:
        return True
    return bool(info.st_mode & stat.S_IWGRP) and not _our_own_group(info.st_gid)


def _our_own_group(gid: int) -> bool:
    """Many systems give each user a group of the same name with no other member, and umask 002 with it."""
    if sys.platform == "win32":
        return True
    try:
        us, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return us.pw_gid == gid and group.gr_name == us.pw_name and set(group.gr_mem) <= {us.pw_name}


# --- the save, step by step ---


def _new_spare(path: Path, size: int) -> tuple[int, Path]:
    while True:
        spare = path.parent / f".{path.name}.{secrets.token_hex(6)}.spare"
        fd = os.open(spare, _CREATE, 0o600)
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
    _write_all(fd, bytes(size))
    return None


def _fill(fd: int, data: bytes) -> None:
    os.lseek(fd, 0, os.SEEK_SET)
    _write_all(fd, data)
    os.ftruncate(fd, len(data))


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # one write may take less than all: seen with a page of disk left
        written = os.write(fd, rest)
        if written <= 0:
            raise OSError(errno.EIO, "the file takes no more bytes")
        rest = rest[written:]


def _read_up_to(fd: int, limit: int) -> bytes:
    parts = []
    while limit > 0 and (part := os.read(fd, min(limit, 1 << 16))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def _sync_directory(path: Path) -> None:
    if sys.platform == "win32":
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems know no fsync of a directory
            raise StorageError(
                f"was written, but its directory could not be synced, so a power cut could undo it: {_remedy(error)}",
                path=path,
            ) from error
    finally:
        os.close(fd)


def _make_directories(directory: Path) -> None:
    missing = []
    while not directory.exists() and not directory.is_symlink():
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def _overwrite(path: Path) -> None:
    with contextlib.suppress(OSError):  # the removal that follows is what must work
        fd = os.open(path, os.O_WRONLY | _COMMON)
        try:
            _write_all(fd, bytes(os.fstat(fd).st_size))
            os.fsync(fd)
        finally:
            os.close(fd)


def _remove_leftovers(path: Path) -> None:
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
        fd = os.open(spare, _READ)
        try:
            if _ours(os.fstat(fd)) and _lock(fd):
                _overwrite(spare)
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


# --- words for failures ---

_REMEDIES = {
    "ENOSPC": "the disk is full; free some space",
    "EDQUOT": "your disk quota is used up; free some space",
    "EIO": "the disk reports an input/output error; look at the system log and save the disk's data",
    "EROFS": "the file system is mounted read-only; use a directory that can be written",
    "EACCES": "permission denied; give us the right (chown, chmod) or use another path",
    "EPERM": "the system does not permit it; give us the right (chown, chmod) or use another path",
    "ELOOP": "it is a symbolic link; put the file itself there",
    "ENOTDIR": "a part of its path is a file, not a directory; correct the path",
    "EISDIR": "it is a directory; name a file in it",
    "ENAMETOOLONG": "the path is too long; use a shorter one",
    "EMFILE": "this process has too many open files; raise its limit (ulimit -n)",
}


def _remedy(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    return _REMEDIES.get(name) or f"{error.strerror or error} ({name or 'no error number'})"


@contextlib.contextmanager
def _explained(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        failure = StorageError(f"cannot be {doing}: {_remedy(error)}", path=path)
        failure.errno = error.errno
        raise failure from error
