"""Takes a Unix socket path and gives it back: a stale file goes, a live owner is never robbed.

Invariants: nobody can connect before mode and group are right; a file is removed only when it is a socket, ours, and
nobody listens on it, and while no other receiver decides the same; what stands at our path is removed only if it is
still our own socket.
"""

import contextlib
import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError, StorageError
from keepline.relay.address import check_directory, check_socket_path, own_uid
from keepline.relay.peer import peer_of

if sys.platform != "win32":
    import fcntl
    import grp

__all__ = ["Binding", "bind_unix"]

log = logging.getLogger("keepline.relay")

_PATIENCE = 1.0  # seconds for another receiver that starts in the same directory
_LOOK_AGAIN = 0.01


@dataclass(frozen=True, slots=True)
class Binding:
    """A listening socket and the file that leads to it.

    Attributes:
        socket: listening, not yet served.
        path: where it is.
        identity: device, inode and time of the file; an inode alone is given to the next file.
    """

    socket: socket.socket
    path: Path
    identity: tuple[int, int, int]

    def stands(self) -> bool:
        """Whether the path still leads to this socket; temp cleaners and people remove files."""
        try:
            info = os.lstat(self.path)
        except OSError:
            return False
        return _identity(info) == self.identity

    def unlink(self) -> None:
        """Remove the file if it is still ours."""
        with contextlib.suppress(OSError):
            if self.stands():
                self.path.unlink()

    def release(self) -> None:
        """Remove the file if it is still ours, and close the socket."""
        self.unlink()
        self.socket.close()


def bind_unix(
    path: Path, *, mode: int, group: str | int | None, backlog: int, clock: Clock = SYSTEM_CLOCK
) -> Binding:
    """Listen at a path; may block for a moment, so not on a loop.

    Args:
        path: at most 107 bytes, in a directory that strangers cannot write (or a sticky one).
        mode: permission bits of the socket: who may connect.
        group: name or number of the group that owns it, None for our own.
        backlog: connections that may wait to be accepted.
        clock: its pause is used while another receiver binds in the same directory.

    Raises:
        ConfigError: the path is too long, or the group is unknown or not one of ours.
        StorageError: a bad directory, a file that is no socket of ours, or a live owner of the path.
    """
    check_socket_path(path)
    check_directory(path)
    number = _group_number(group)
    with _alone_in(path.parent, clock):
        _clear(path)
        binding = _bind(path)
        try:
            # nobody can connect before listen(): there is no moment with other rights than these
            if number is not None:
                _give_to_group(path, number, group)
            path.chmod(mode)
            binding.socket.listen(backlog)
        except BaseException:
            binding.release()
            raise
    return binding


def _bind(path: Path) -> Binding:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.bind(str(path))
        info = os.lstat(path)
    except PermissionError as error:
        sock.close()
        raise StorageError(
            f"permission denied: user {own_uid()} may not make files in {path.parent}", path=path
        ) from error
    except OSError as error:
        sock.close()
        raise StorageError(f"cannot listen here: {error.strerror}", path=path) from error
    return Binding(sock, path, _identity(info))


def _identity(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_dev, info.st_ino, info.st_mtime_ns


def _clear(path: Path) -> None:
    """Remove a stale socket of ours; anything else that stands there is an error in words."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot be looked at: {error.strerror}", path=path) from error
    if not stat.S_ISSOCK(info.st_mode):
        raise StorageError(
            "is there already and is not a socket: move it away or choose another path", path=path
        )
    owner = _listener_at(path)
    if owner is not None:
        raise StorageError(
            f"{owner} listens here already: stop it or choose another path", path=path
        )
    if info.st_uid != own_uid():
        raise StorageError(
            f"is a dead socket of user {info.st_uid}: have it removed or choose another path",
            path=path,
        )
    telemetry.event(log, logging.INFO, "Stale socket removed", path=str(path))
    path.unlink(missing_ok=True)


def _listener_at(path: Path) -> str | None:
    """Who listens on the socket, in words; None when nobody does."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(str(path))
        peer = peer_of(probe, pidfd=False)
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except OSError as error:
        # EAGAIN: its queue is full; EPROTOTYPE: another kind of socket; EACCES: we may not even knock
        return f"another program ({errno.errorcode.get(error.errno or 0, 'unknown')})"
    finally:
        probe.close()
    if peer is None:
        return "another program"
    return "this process" if peer.pid == os.getpid() else f"process {peer.pid}"


@contextlib.contextmanager
def _alone_in(directory: Path, clock: Clock) -> Iterator[None]:
    """Hold the directory's lock: looking for a live owner and taking the path must be one step."""
    if sys.platform == "win32":
        yield
        return
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot be opened: {error.strerror}", path=directory) from error
    try:
        _lock(fd, directory, clock)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, directory: Path, clock: Clock) -> None:
    deadline = clock.boottime() + _PATIENCE
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock.boottime() >= deadline:
                raise StorageError(
                    "is locked by another program for too long: try again", path=directory
                ) from None
        clock.pause(_LOOK_AGAIN)


def _group_number(group: str | int | None) -> int | None:
    if group is None or isinstance(group, int):
        return group
    if sys.platform != "win32":
        with contextlib.suppress(KeyError):
            return grp.getgrnam(group).gr_gid
    raise ConfigError(f"there is no group {group!r} on this machine", key="socket_group")


def _give_to_group(path: Path, number: int, group: str | int | None) -> None:
    try:
        os.chown(path, -1, number)
    except PermissionError as error:
        raise ConfigError(
            f"user {own_uid()} is not a member of the group {group!r}; run: usermod -aG {group} <user>",
            key="socket_group",
        ) from error
