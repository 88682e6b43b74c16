"""One process at a time: a lock on a file that is never deleted.

Invariants: the lock is `flock`, which belongs to the open file and dies with its process, however that dies (a POSIX
`lockf` would vanish when any descriptor of the file is closed); no descriptor is held while waiting, so a cancelled
waiter leaves nothing behind; a lock on a file that someone deleted meanwhile does not count.
"""

import asyncio
import os
import stat
import sys
from pathlib import Path
from types import TracebackType

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import StorageError

if sys.platform != "win32":
    import fcntl

__all__ = ["FileLease"]

POLL_SECONDS = 0.05
"""Between two tries: short beside an HTTP call, and no load."""

_FLAGS = (
    os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
)  # fmt: skip


class FileLease:
    """An asynchronous context manager that only one holder on this machine has at a time.

    It waits without end: bound it with a timeout of the caller's. On Windows it excludes nobody.

    Args:
        path: the lock file; made with mode 0600 (missing directories 0700) and left in place.
        clock: where the waiting happens.

    Example:
        >>> async with FileLease(Path("data/tokens.enc.lock")):
        ...     ...
    """

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = path
        self._clock = clock
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock just now."""
        return self._fd is not None

    async def __aenter__(self) -> "FileLease":
        """Wait until the lock is ours.

        Raises:
            StorageError: the lock file is a link, another user's, or cannot be made.
        """
        while (fd := await self._try()) is None:
            await self._clock.sleep(POLL_SECONDS * (0.5 + self._clock.chance()))
        self._fd = fd
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    async def _try(self) -> int | None:
        if self._fd is not None:
            return None
        try:
            try:
                return _open_locked(self.path)
            except FileNotFoundError:
                await asyncio.to_thread(self._make_directory)
                return _open_locked(self.path)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"the lock file cannot be used ({error.strerror}): make its directory ours and writable",
                path=self.path,
            ) from error

    def _make_directory(self) -> None:
        missing = [p for p in (self.path.parent, *self.path.parent.parents) if not p.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=0o700, exist_ok=True)

    def __repr__(self) -> str:
        return f"<FileLease {self.path}, {'held' if self.held else 'free or held by another'}>"


def _open_locked(path: Path) -> int | None:
    fd = os.open(path, _FLAGS, 0o600)
    try:
        if _lock(fd, path):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _lock(fd: int, path: Path) -> bool:
    if sys.platform == "win32":
        return True
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
        raise StorageError("the lock file is not a regular file of ours: remove it", path=path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0
