"""Whose a file or directory is, and who else may touch it.

Invariant: on Windows, which has neither owner nor mode bits, everything counts as ours alone.
"""

import logging
import os
import stat
import sys
from pathlib import Path
from typing import Literal

from keepline import telemetry
from keepline.errors import StorageError

if sys.platform != "win32":
    import grp
    import pwd

__all__ = ["LooseMode", "check_file", "loose", "others_write", "ours"]

log = logging.getLogger("keepline.files")

LooseMode = Literal["refuse", "warn", "allow"]

_STRANGERS = 0o077


def check_file(info: os.stat_result, path: Path, on_loose_mode: LooseMode, system: bool) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise StorageError("is not a regular file: put the file itself there", path=path)
    if not ours(info) and not (system and info.st_uid == 0):
        raise StorageError(
            f"belongs to user {info.st_uid}, not to us: make it ours with chown, or use another file",
            path=path,
        )
    if info.st_nlink > 1:
        raise StorageError(
            f"has {info.st_nlink} names (hard links), and a save would leave the others behind: remove them",
            path=path,
        )
    if loose(info) and on_loose_mode != "allow":
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


def ours(info: os.stat_result) -> bool:
    return sys.platform == "win32" or info.st_uid == os.geteuid()


def loose(info: os.stat_result) -> bool:
    return sys.platform != "win32" and bool(info.st_mode & _STRANGERS)


def others_write(info: os.stat_result) -> bool:
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
