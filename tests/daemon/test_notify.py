import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from keepline.daemon.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd holds: the other end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(5)
        yield ear


def notifier(manager: socket.socket, **environ: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname(), **environ})


def test_each_state_is_one_datagram(manager: socket.socket) -> None:
    speaker = notifier(manager)
    speaker.ready("serving\n2 credentials")
    assert manager.recv(200) == b"READY=1\nSTATUS=serving 2 credentials"
    speaker.status("refreshing")
    assert manager.recv(200) == b"STATUS=refreshing"
    speaker.watchdog()
    assert manager.recv(200) == b"WATCHDOG=1"
    speaker.stopping()
    assert manager.recv(200) == b"STOPPING=1\nSTATUS=stopping"


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0keepline-test-{os.getpid()}")
        ear.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@keepline-test-{os.getpid()}"}).watchdog()
        assert ear.recv(200) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/does/not/exist", "/" + "x" * 200, "@\0\0"])
def test_nobody_there_is_no_failure(address: str) -> None:
    speaker = Notifier({"NOTIFY_SOCKET": address} if address else {})
    speaker.ready("serving")


def test_the_watchdog_is_fed_twice_as_often_as_asked(manager: socket.socket) -> None:
    assert notifier(manager, WATCHDOG_USEC="20000000").watchdog_seconds == 10.0
    own = str(os.getpid())
    assert notifier(manager, WATCHDOG_USEC="2000000", WATCHDOG_PID=own).watchdog_seconds == 1.0


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog_is_fed_that_nobody_asked_for(
    manager: socket.socket, environ: dict[str, str]
) -> None:
    assert notifier(manager, **environ).watchdog_seconds is None


def test_no_watchdog_without_a_manager() -> None:
    assert Notifier({"WATCHDOG_USEC": "20000000"}).watchdog_seconds is None
