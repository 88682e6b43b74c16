"""Tells systemd how the daemon is: READY, STATUS, WATCHDOG and STOPPING as datagrams, without a dependency.

Invariants: outside of systemd every call does nothing; no failure here ever reaches the daemon. The protocol is that of
sd_notify(3): lines `KEY=VALUE` to the socket named by NOTIFY_SOCKET, where a leading `@` is the abstract namespace.
"""

import contextlib
import os
import socket
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """The service manager's ear.

    Args:
        environ: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked up.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog_seconds(environ) if self._address else None
        """Seconds between two signs of life, half of what systemd allows; None when it does not ask."""

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={_one_line(status)}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self, status: str = "stopping") -> None:
        self._send("STOPPING=1", f"STATUS={_one_line(status)}")

    def _send(self, *lines: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), address)


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        allowed = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return None
    return allowed / 2 if allowed > 0 else None


def _one_line(text: str) -> str:
    return " ".join(text.split())
