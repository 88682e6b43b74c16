"""Who is at the other end of a Unix socket, as the kernel tells it.

Invariants: the answer is as of connect (or listen), so a program that exits and a process number that is used again
change nothing; the process descriptor is closed with its `Peer`.
"""

import contextlib
import os
import select
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Peer", "peer_of"]

_SO_PEERPIDFD: Final = 77
"""Linux 6.5 and later: a descriptor of the peer's process; Python has no name for it (include/uapi/asm-generic)."""

_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(slots=True)
class Peer:
    """The process at the other end.

    Attributes:
        pid: its number when it connected.
        uid: its user.
        gid: its group.
        pidfd: a descriptor of the process itself, None where the kernel has none.
    """

    pid: int
    uid: int
    gid: int
    pidfd: int | None = field(default=None, repr=False)

    @property
    def is_alive(self) -> bool | None:
        """Whether that very process still runs; None where it cannot be told from a later one of the same number."""
        if self.pidfd is None:
            return None
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Give the process descriptor back; a second time does nothing."""
        if self.pidfd is not None:
            with contextlib.suppress(OSError):
                os.close(self.pidfd)
            self.pidfd = None


def peer_of(sock: Any, *, pidfd: bool = True) -> Peer | None:
    """The other end's process; None where the system does not tell (it is no Unix socket, or not Linux).

    Args:
        sock: a connected Unix socket, or what a transport gives for it.
        pidfd: ask for the process descriptor too; close it with `Peer.close`.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    try:
        pid, uid, gid = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
        )
    except OSError:
        return None
    if uid < 0:  # not a Unix socket, or a peer from outside our user namespace
        return None
    return Peer(pid, uid, gid, _process_descriptor(sock) if pidfd else None)


def _process_descriptor(sock: Any) -> int | None:
    try:
        return int(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError:  # an older kernel
        return None
