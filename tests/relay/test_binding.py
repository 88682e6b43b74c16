"""Taking a socket path: stale files go, live owners stay, and two that start at once do not rob each other."""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading

import pytest

from keepline.errors import ConfigError, StorageError
from keepline.relay import binding as binding_module
from keepline.relay.binding import bind_unix
from keepline.testing import ManualClock


def bind(path, **kwargs):
    return bind_unix(path, **({"mode": 0o600, "group": None, "backlog": 5} | kwargs))


def leave_stale(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_of_many_that_start_at_once_exactly_one_gets_the_path(tmp_bots):
    path = tmp_bots / "x.sock"
    for _ in range(20):
        leave_stale(path)
        won, lost, gate = [], [], threading.Barrier(8)

        def start(won=won, lost=lost, gate=gate):
            gate.wait()
            try:
                won.append(bind(path))
            except StorageError as error:
                lost.append(error)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        assert won[0].stands()
        won[0].release()
        assert not path.exists()


def test_a_locked_directory_is_waited_for_and_then_said(tmp_bots):
    clock = ManualClock()
    fd = os.open(tmp_bots, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="locked"):
            bind(tmp_bots / "x.sock", clock=clock)
    finally:
        os.close(fd)
    assert clock.boottime() == pytest.approx(1.0, abs=0.02)


def test_an_owner_whose_queue_is_full_is_alive(tmp_bots):
    path = tmp_bots / "x.sock"
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(socket.socket(socket.AF_UNIX))
        owner.bind(str(path))
        owner.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(StorageError, match="EAGAIN"):
            bind(path)


def test_another_kind_of_socket_is_left_alone(tmp_bots):
    path = tmp_bots / "x.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(StorageError, match="EPROTOTYPE"):
            bind(path)
    assert path.exists()


def test_a_dead_socket_of_another_user_is_left_alone(tmp_bots, monkeypatch):
    path = tmp_bots / "x.sock"
    leave_stale(path)
    monkeypatch.setattr(binding_module, "own_uid", lambda: 4242)
    with pytest.raises(StorageError, match="dead socket of user"):
        bind(path)
    assert path.exists()


def test_a_directory_where_we_may_make_no_files_is_said(tmp_bots, monkeypatch):
    def refuse(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(StorageError, match="may not make files"):
        bind(tmp_bots / "x.sock")


def test_a_failed_bind_is_said(tmp_bots, monkeypatch):
    def refuse(self, address):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(StorageError, match="No space"):
        bind(tmp_bots / "x.sock")


def test_a_group_that_is_not_ours_leaves_no_socket_behind(tmp_bots, monkeypatch):
    def refuse(path, uid, gid):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ConfigError, match="usermod"):
        bind(tmp_bots / "x.sock", group=12345)
    assert not (tmp_bots / "x.sock").exists()


def test_a_group_by_name(tmp_bots):
    import grp

    name = grp.getgrgid(os.getgid()).gr_name
    bound = bind(tmp_bots / "x.sock", group=name, mode=0o660)
    assert bound.path.stat().st_gid == os.getgid()
    bound.release()
    bound.release()


def test_the_stale_socket_of_a_killed_process_is_taken_over(tmp_bots):
    path = tmp_bots / "x.sock"
    code = "import socket,sys,os;s=socket.socket(1);s.bind(sys.argv[1]);s.listen();os.kill(os.getpid(),9)"
    subprocess.run([sys.executable, "-c", code, path], check=False)
    assert path.exists()
    bind(path).release()


def test_the_file_of_another_that_got_our_inode_is_not_ours(tmp_bots):
    binding = bind_unix(tmp_bots / "x.sock", mode=0o600, group=None, backlog=1)
    assert binding.stands()
    os.utime(binding.path, ns=(1, 1))  # as a file that was made at another time
    assert not binding.stands()
    binding.release()
    assert binding.path.exists()
