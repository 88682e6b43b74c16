"""Where the daemon's socket file stands: claimed by a lock, bound privately, seen when it vanishes.

Invariants: one daemon per path, by a lock that dies with its process; what answers at the path is never robbed, what
does not is removed; the file is ours alone (0600) before anybody can connect. Everything here may block.
"""

import contextlib
import os
import select
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any

from keepline.errors import StorageError
from keepline.relay.address import check_directory, check_socket_path

if sys.platform != "win32":
    import fcntl

__all__ = ["SocketPlace", "peer_is_gone", "peer_uid"]

_UCRED = struct.Struct("3i")


class SocketPlace:
    """The path of a listening Unix socket.

    Args:
        path: the socket file; `<path>.lock` beside it is never deleted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._file: tuple[int, int] | None = None

    def claim(self) -> None:
        """Become the one owner of the path.

        Raises:
            ConfigError: the path is too long.
            StorageError: another daemon runs there, or the directory is not safe.
        """
        check_socket_path(self.path, key="KEEPLINE_RUNTIME_DIR")
        check_directory(self.path)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(f"{self.path}.lock", flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise self._owned() from None
        self._lock = lock

    def bind(self) -> socket.socket:
        """A bound socket at the path, ready for `listen`; a file without an owner is replaced.

        Raises:
            StorageError: somebody answers there.
            OSError: the system refuses.
        """
        if self._answers():
            raise self._owned()
        with contextlib.suppress(FileNotFoundError):
            self._remove()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(self.path))
            self.path.chmod(0o600)
            info = self.path.stat()
        except BaseException:
            sock.close()
            raise
        self._file = (info.st_dev, info.st_ino)
        sock.setblocking(False)
        return sock

    def is_ours(self) -> bool:
        """Whether the file at the path is the one that was bound last."""
        try:
            info = self.path.stat()
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self._file

    def leave(self) -> None:
        """Remove the file if it is ours and give up the path."""
        if self.is_ours():
            self.path.unlink(missing_ok=True)
        self._file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except (
                OSError
            ):  # slow or full: somebody is there, or something that is not ours to remove
                return True
            return True

    def _remove(self) -> None:
        if not stat.S_ISSOCK(self.path.lstat().st_mode):
            raise StorageError("is not a socket; move it away", path=self.path)
        self.path.unlink()

    def _owned(self) -> StorageError:
        return StorageError(
            "another daemon serves here already; stop it first, or give this one its own KEEPLINE_RUNTIME_DIR",
            path=self.path,
        )

    def __repr__(self) -> str:
        return f"<SocketPlace {self.path}{' ours' if self._file else ''}>"


def peer_uid(sock: Any) -> int | None:
    """The user at the other end of a Unix socket, None where the system cannot say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    return int(
        _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    )


def peer_is_gone(sock: Any) -> bool:
    """Whether the peer closed both directions, not only its sending one (POLLHUP of poll(2))."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))
