"""Directories of ours: made private, checked, and where the runtime one lies."""

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Literal

from keepline.errors import ConfigError, StorageError
from keepline.files.checks import loose, others_write, ours
from keepline.files.failures import explained

__all__ = [
    "expanded",
    "make_directories",
    "private_directory",
    "runtime_directory",
    "strangers_can_write",
]


def expanded(path: str | os.PathLike[str], *, key: str) -> Path:
    """The absolute path of what somebody named, `~` taken for the home directory.

    Args:
        path: as it stands in a call, a setting or the environment.
        key: where it stands, for the message.

    Raises:
        ConfigError: empty, not a path, or `~` where there is no home directory.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise ConfigError("the path of a file or directory is needed", key=key)
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(
            f"there is no home directory for {path}: set HOME or give a path without ~", key=key
        ) from None


def private_directory(path: Path) -> Path:
    """Make a directory with mode 0700 (missing parents too), or check that an existing one is ours alone.

    Returns:
        The path.

    Raises:
        StorageError: a link, not a directory, another owner, rights for group or others.
    """
    with explained(path, "used as a private directory"):
        make_directories(path)
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            raise StorageError("is a symbolic link: put a real directory there", path=path)
        if not stat.S_ISDIR(info.st_mode):
            raise StorageError("is not a directory: move it away", path=path)
        if not ours(info):
            raise StorageError(
                f"belongs to user {info.st_uid}, not to us: use another directory", path=path
            )
        if loose(info):
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
    with explained(directory, "checked"):
        info = os.stat(real)  # noqa: PTH116
    if not ours(info) and info.st_uid != 0:
        return "yes"
    if not others_write(info):
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
        return expanded(chosen, key="KEEPLINE_RUNTIME_DIR")
    if given := environment.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])  # systemd separates several by colons
    if session := environment.get("XDG_RUNTIME_DIR"):
        return Path(session) / "keepline"
    if sys.platform == "win32":
        return Path(tempfile.gettempdir()) / "keepline"
    return Path(f"/tmp/keepline-{os.geteuid()}")  # noqa: S108 - made 0700, owner and link checked


def make_directories(directory: Path) -> None:
    missing = []
    while not directory.exists() and not directory.is_symlink():
        missing.append(directory)
        directory = directory.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
