"""Two processes and one file: a lock around a change, and a mark by which a reader sees that there was one."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from keepline.files.directories import private_directory

if sys.platform != "win32":
    import fcntl

__all__ = ["alone_in", "signature"]


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes' changes in this directory out; it is made when missing. Blocks."""
    if not directory.exists():
        private_directory(directory)
    if sys.platform == "win32":
        yield
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked meanwhile would keep it
        os.close(fd)


def signature(path: Path) -> tuple[int, ...] | None:
    """What differs as soon as the file is another one or was written to; None when there is none."""
    try:
        info = path.lstat()
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
