"""Words for what a file system refuses: what happened, and what a person can do about it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from keepline.errors import StorageError

__all__ = ["explained", "remedy"]

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


def remedy(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    return _REMEDIES.get(name) or f"{error.strerror or error} ({name or 'no error number'})"


@contextlib.contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        failure = StorageError(f"cannot be {doing}: {remedy(error)}", path=path)
        failure.errno = error.errno
        raise failure from error
