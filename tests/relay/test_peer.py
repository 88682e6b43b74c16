"""Who is at the other end."""

import os
import socket
import subprocess
import sys

import pytest

from keepline.relay import peer as peer_module
from keepline.relay.peer import peer_of

CONNECT = "import socket,sys;s=socket.socket(1);s.connect(sys.argv[1]);sys.stdin.read()"


@pytest.fixture
def listener(tmp_bots):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_bots / "x.sock"))
        sock.listen()
        yield sock


def test_the_kernel_names_process_and_user(listener):
    with subprocess.Popen(
        [sys.executable, "-c", CONNECT, listener.getsockname()], stdin=-1
    ) as other:
        connection, _ = listener.accept()
        with connection:
            peer = peer_of(connection)
            assert (peer.pid, peer.uid, peer.gid) == (other.pid, os.getuid(), os.getgid())
            other.stdin.close()
            other.wait()
            if peer.pidfd is not None:
                assert not peer.is_alive
            peer.close()
            peer.close()
            assert peer.pidfd is None
            assert peer.is_alive is None


def test_a_living_peer_is_alive_where_the_kernel_hands_out_its_descriptor(listener):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            peer = peer_of(connection)
            assert peer.is_alive in (True, None)
            peer.close()
            assert peer_of(connection, pidfd=False).pidfd is None


def test_an_older_kernel_tells_the_user_alone(listener, monkeypatch):
    monkeypatch.setattr(peer_module, "_SO_PEERPIDFD", 9999)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            peer = peer_of(connection)
            assert (peer.uid, peer.pidfd, peer.is_alive) == (os.getuid(), None, None)


def test_a_tcp_peer_and_a_system_that_tells_nothing_are_unknown(monkeypatch):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert peer_of(client) is None
    left, right = socket.socketpair()
    with left, right:
        monkeypatch.delattr(socket, "SO_PEERCRED")
        assert peer_of(left) is None
    monkeypatch.undo()
    assert peer_of(left) is None  # closed
