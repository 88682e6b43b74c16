"""Peers made of bare sockets: whatever bytes at whatever moment."""

import contextlib
import queue
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keepline.credentials.token import Token


class RawPeer:
    """A client that writes bytes and reads the answer until the other end closes."""

    def __init__(self, address):
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, timeout=20)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(20)
            self.socket.connect(str(address))

    def write(self, data):
        self.socket.sendall(data)

    def finish(self):
        self.socket.shutdown(socket.SHUT_WR)

    def line(self):
        data = b""
        while not data.endswith(b"\n"):
            chunk = self.socket.recv(1)
            if not chunk:
                break
            data += chunk
        return data

    def rest(self):
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := self.socket.recv(65536):
                data += chunk
        return data

    def close(self):
        self.socket.close()


@pytest.fixture
def connect():
    with contextlib.ExitStack() as stack:

        def open_peer(address):
            peer = RawPeer(address)
            stack.callback(peer.close)
            return peer

        yield open_peer


@pytest.fixture
def say(connect):
    """Write once, read to the end."""

    def once(address, data, *, finish=False):
        peer = connect(address)
        peer.write(data)
        if finish:
            peer.finish()
        answer = peer.rest()
        peer.close()
        return answer

    return once


class Bot:
    """A listening socket that treats each connection as it is told: an old bot, a broken one, a silent one."""

    def __init__(self, path, behaviour):
        self.path = Path(path)
        self.received = queue.Queue()
        self.release = threading.Event()
        self.connections = 0
        self._behaviour = behaviour
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(20)
                self._behaviour(self, connection)

    def close(self):
        self.release.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def make_bot(tmp_bots):
    with contextlib.ExitStack() as stack:

        def make(behaviour, name="bot"):
            bot = Bot(tmp_bots / f"{name}.sock", behaviour)
            stack.callback(bot.close)
            return bot

        yield make


def answering(reply):
    """The behaviour of a bot that reads once, answers and closes."""

    def behave(bot, connection):
        bot.received.put(connection.recv(8192))
        connection.sendall(reply)

    return behave


@pytest.fixture
def tmp_bots(clean_environment):
    """A private directory with a short path for sockets."""
    directory = clean_environment / "bots"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def make_token():
    def make(access="tok-1", *, generation=1, life=3600.0, refresh="refresh-secret"):
        now = datetime.now(UTC)
        return Token(
            access,
            refresh,
            expires_at=now + timedelta(seconds=life),
            issued_at=now,
            generation=generation,
        )

    return make
