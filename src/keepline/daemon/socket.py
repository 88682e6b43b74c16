"""The daemon's local socket: bots and commands ask for tokens and status, and hear of each renewal.

Invariants: only our own user, root and allowed users are served, checked on each connection; a refresh token never
crosses; a client that does not read costs one bounded buffer and the newest token, and delays nobody; the file is bound
again when it vanishes, and a live owner of it is never robbed.
"""

import asyncio
import logging
import os
import select
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

import keepline
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.token import Token
from keepline.daemon.parts import Part
from keepline.errors import ConfigError, KeeplineError, QueueFull, Refused
from keepline.relay.binding import Binding, bind_unix
from keepline.relay.local import (
    MAX_LINE,
    PROTOCOL,
    LocalRequest,
    LocalServerSession,
    error_to_wire,
    token_object,
)
from keepline.relay.peer import peer_of
from keepline.telemetry import REGISTRY, event

__all__ = ["LOOK_SECONDS", "MAX_CLIENTS", "LocalSocket", "TokenSource"]

log = logging.getLogger("keepline.daemon")

MAX_CLIENTS = 256
"""Connections at once; one more is told `queue_full` and closed."""

LOOK_SECONDS = 2.0
"""Between two looks whether the socket file is still ours."""

_BACKLOG = 64

CLIENTS = REGISTRY.gauge("local_clients", "Connections to the daemon's local socket.")


class TokenSource(Protocol):
    """What the socket needs of a credential; `TokenManager` has it."""

    async def get(self, *, newer_than: int | None = None) -> Token: ...
    async def force_refresh(self, *, than: int | None = None) -> Token: ...
    def subscribe(self, callback: Callable[[Token], Any]) -> Callable[[], None]: ...
    @property
    def current(self) -> Token | None: ...


class LocalSocket(Part):
    """The daemon's end of `daemon.sock`.

    Args:
        path: the socket file, in a directory of ours.
        sources: the credentials by name.
        status: the answer to the operation `status`.
        allowed_uids: users who are served beside our own and root.
        max_clients: connections at once.
    """

    name = "socket"
    essential = True

    def __init__(
        self,
        path: Path,
        sources: Mapping[str, TokenSource],
        status: Callable[[], Mapping[str, Any]],
        *,
        allowed_uids: frozenset[int] = frozenset(),
        max_clients: int = MAX_CLIENTS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = path
        self.sources = sources
        self.status = status
        self.clients: set[_Client] = set()
        self._uids = allowed_uids
        self._max_clients = max_clients
        self.clock = clock
        self._binding: Binding | None = None
        self._server: asyncio.AbstractServer | None = None
        self._trouble = ""

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the path is too long for a socket.
            StorageError: another daemon listens there, or the directory is not safe.
        """
        await self._listen()
        event(log, logging.INFO, "Listening", socket=str(self.path))

    async def run(self) -> None:
        """Bind again whenever somebody removed the file; connections that stand go on."""
        while True:
            await self.clock.sleep(LOOK_SECONDS)
            if self._binding is not None and await asyncio.to_thread(self._binding.stands):
                continue
            self._close_server()
            try:
                await self._listen()
            except OSError as error:
                self._trouble = f"the socket file vanished and cannot be made again: {error}"
                event(log, logging.ERROR, "Socket lost", reason=self._trouble)
            else:
                event(log, logging.WARNING, "Socket bound again", socket=str(self.path))

    async def stop(self) -> None:
        binding, self._binding = self._binding, None
        try:
            if binding is not None:
                await asyncio.to_thread(binding.unlink)
        finally:  # also when that took too long on a slow disk
            self._close_server()
            for client in list(self.clients):
                client.close()
            if binding is not None:
                binding.socket.close()

    def ready(self) -> tuple[bool, str]:
        if self._trouble:
            return False, self._trouble
        return True, f"clients: {len(self.clients)}"

    async def _listen(self) -> None:
        binding = await asyncio.to_thread(
            bind_unix, self.path, mode=0o600, group=None, backlog=_BACKLOG, clock=self.clock
        )
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Client(self), sock=binding.socket, backlog=_BACKLOG
            )
        except BaseException:
            await asyncio.to_thread(binding.release)
            raise
        self._binding = binding
        self._trouble = ""

    def _close_server(self) -> None:
        """Accept nobody any more; before a new file is made, because Python 3.13 removes the file of a server that it
        closes, and the new one may have the same inode."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def admit(self, transport: asyncio.Transport) -> Exception | None:
        """Why this connection is not served, None when it is."""
        peer = peer_of(transport.get_extra_info("socket"), pidfd=False)
        if peer is not None and peer.uid not in {0, os.geteuid(), *self._uids}:
            event(log, logging.WARNING, "Client refused", uid=peer.uid, pid=peer.pid)
            return Refused(f"user {peer.uid} is not served here")
        if len(self.clients) >= self._max_clients:
            event(log, logging.WARNING, "Client refused", total=len(self.clients))
            return QueueFull(f"{self._max_clients} clients are connected already")
        return None

    def __repr__(self) -> str:
        return f"<LocalSocket {self.path}, {len(self.clients)} clients>"


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, daemon: LocalSocket) -> None:
        self._daemon = daemon
        self._session = LocalServerSession()
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: dict[str, Callable[[], None]] = {}
        self._blocked = False
        self._at_end = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(
            "asyncio.Transport", transport
        )  # uvloop's is no subclass
        transport.set_write_buffer_limits(high=MAX_LINE)
        refusal = self._daemon.admit(transport)
        if refusal is not None:
            line = {"v": PROTOCOL, "id": None, "ok": False, "error": error_to_wire(refusal)}
            transport.write(msgspec.json.encode(line) + b"\n")
            transport.close()
            return
        self._daemon.clients.add(self)
        self._count("Client connected")

    def data_received(self, data: bytes) -> None:
        for request in self._session.receive(data):
            task = asyncio.get_running_loop().create_task(self._serve(request))
            self._tasks.add(task)
            task.add_done_callback(self._served)
        self._flush()

    def eof_received(self) -> bool:
        """The peer has said all: it still gets its answers (`nc -N` works so) unless it is gone altogether."""
        if _is_gone(self._transport.get_extra_info("socket")):
            return False
        self._at_end = True
        self._close_when_done()
        return True

    def pause_writing(self) -> None:
        """The peer does not read: stop listening to it too, so that answers cannot pile up."""
        self._blocked = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        self._transport.resume_reading()
        self._flush()

    def connection_lost(self, reason: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()
        for unsubscribe in self._subscriptions.values():
            unsubscribe()
        if self in self._daemon.clients:
            self._daemon.clients.discard(self)
            self._count("Client disconnected")

    def close(self) -> None:
        self._transport.close()

    async def _serve(self, request: LocalRequest) -> None:
        try:
            self._session.reply(request, await self._answer(request))
        except Exception as error:
            self._session.fail(request, error)
            if not isinstance(error, KeeplineError):
                log.exception("%s failed", request.op)
        self._flush()

    async def _answer(self, request: LocalRequest) -> Mapping[str, Any]:
        match request.op:
            case "hello":
                log.debug("hello from %s", request.client)
                return self._hello()
            case "ping":
                return {"time": self._daemon.clock.wall().timestamp()}
            case "status":
                return self._daemon.status()
        source = self._source(request.credential)
        match request.op:
            case "token.get":
                return token_object(await source.get(newer_than=request.newer_than))
            case "token.refresh":
                return token_object(await source.force_refresh(than=request.than))
            case _:
                return self._subscribe(request.credential, source)

    def _hello(self) -> Mapping[str, Any]:
        return {
            "server": "keepline",
            "version": keepline.__version__,
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "credentials": list(self._daemon.sources),
        }

    def _source(self, credential: str) -> TokenSource:
        source = self._daemon.sources.get(credential)
        if source is None:
            there = ", ".join(self._daemon.sources) or "none"
            raise ConfigError(f"no credential {credential!r} here; there is {there}")
        return source

    def _subscribe(self, credential: str, source: TokenSource) -> Mapping[str, Any]:
        def tell(token: Token) -> None:
            self._session.event(credential, token)
            self._flush()

        if credential not in self._subscriptions:
            self._subscriptions[credential] = source.subscribe(tell)
        return {} if source.current is None else token_object(source.current)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._close_when_done()

    def _flush(self) -> None:
        if not self._blocked and not self._transport.is_closing():
            data = self._session.take()
            if data:
                self._transport.write(data)
            self._close_when_done()

    def _close_when_done(self) -> None:
        done = self._at_end and not self._tasks and not self._subscriptions
        if (done or self._session.is_closing) and not self._blocked:
            self._transport.close()

    def _count(self, what: str) -> None:
        total = len(self._daemon.clients)
        CLIENTS.set(total)
        event(log, logging.INFO, what, total=total)


def _is_gone(sock: Any) -> bool:
    """Whether the peer closed both directions, not only its sending one (POLLHUP of poll(2))."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))
