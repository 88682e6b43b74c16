"""Moves bytes between connections and their wires, on whatever loop it is opened.

Invariants: it decides nothing about messages; a peer of another user is turned away before it is read; there is a bound
on connections and on what a connection may hold; one timer serves all of them.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from keepline import telemetry
from keepline.clock import Clock
from keepline.errors import KeeplineError
from keepline.relay.address import Address, TLSConfig
from keepline.relay.binding import Binding, bind_unix
from keepline.relay.message import Code, Ledger
from keepline.relay.peer import Peer, peer_of
from keepline.relay.wire import Arrival, ReceiverWire, WireRules

__all__ = ["Listener", "ListenerOptions"]

log = logging.getLogger("keepline.relay")

LOOK_AFTER_SOCKET_SECONDS: Final = 5.0
"""How often the socket file is looked for: temp cleaners remove it behind our back."""

_LINGER_SECONDS: Final = (
    1.0  # a refused peer may still be writing: closing at once could destroy our answer
)
_LINGER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """How to listen; see `TokenReceiverConfig` for the meaning of each."""

    address: Address
    rules: WireRules
    socket_mode: int
    socket_group: str | int | None
    allowed_uids: frozenset[int]
    backlog: int
    max_connections: int
    tls: TLSConfig | None


class Listener:
    """One listening socket and its connections.

    Args:
        options: where and how.
        ledger: what was accepted so far.
        clock: wall time for expiry, sleep for looking after the socket file.
        on_arrival: told of every message, on the loop.
        on_trouble: told when the socket is lost and cannot be bound again, and with None when it is back.
    """

    def __init__(
        self,
        options: ListenerOptions,
        ledger: Ledger,
        *,
        clock: Clock,
        on_arrival: Callable[[Arrival, Peer | None], None],
        on_trouble: Callable[[str | None], None],
    ) -> None:
        self.options = options
        self.ledger = ledger
        self.clock = clock
        self.on_arrival = on_arrival
        self.address = options.address
        self.connections: dict[_Connection, None] = {}  # in the order in which they were used
        self._on_trouble = on_trouble
        self._binding: Binding | None = None
        self._server: asyncio.Server | None = None
        self._guard: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop

    async def open(self) -> None:
        """Listen.

        Raises:
            ConfigError: a setting that cannot work.
            StorageError: the path or its directory cannot be used, or somebody listens there.
            OSError: the port cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        if self.options.address.path is None:
            await self._open_tcp()
        else:
            await self._open_unix(self.options.address.path)
            self._guard = self._loop.create_task(self._look_after_socket())

    async def close(self) -> None:
        """Stop listening and drop all connections, without waiting for a peer."""
        if self._guard is not None:
            self._guard.cancel()
            await asyncio.gather(self._guard, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        server, binding, self._server, self._binding = self._server, self._binding, None, None
        if binding is not None:
            await asyncio.to_thread(binding.unlink)
        if server is not None:
            server.close()
        if binding is not None:
            binding.socket.close()
        for connection in list(self.connections):
            connection.abort()

    def abandon_after_fork(self) -> None:
        """In a forked child: give back the copy of the listening socket, touch nothing else of the parent's."""
        if self._binding is not None:
            self._binding.socket.close()
            self._binding = None

    def unlink_at_exit(self) -> None:
        """The process ends: remove the socket's file, from whatever thread."""
        if self._binding is not None:
            self._binding.unlink()

    def now(self) -> float:
        """Seconds on the loop's clock, in which wires tell their deadlines."""
        return self._loop.time()

    def arm(self, deadline: float | None) -> None:
        """See to it that `wake` of the connections comes by this time of the loop."""
        if deadline is None or (self._timer is not None and self._timer.when() <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._wake)

    def make_room(self) -> bool:
        """Whether one more connection may come; an idle one that may be opened again goes for it."""
        if len(self.connections) < self.options.max_connections:
            return True
        idle = next((c for c in self.connections if c.is_idle), None)
        if idle is not None:
            idle.abort()
        return idle is not None

    def _wake(self) -> None:
        self._timer = None
        now = self._loop.time()
        for connection in list(self.connections):
            connection.wake(now)
        self.arm(min((d for c in self.connections if (d := c.deadline) is not None), default=None))

    async def _open_unix(self, path: Path) -> None:
        options = self.options
        binding = await asyncio.to_thread(
            bind_unix,
            path,
            mode=options.socket_mode,
            group=options.socket_group,
            backlog=options.backlog,
            clock=self.clock,
        )
        try:
            server = await self._loop.create_unix_server(
                lambda: _Connection(self), sock=binding.socket, backlog=options.backlog
            )
        except BaseException:
            await asyncio.to_thread(binding.release)
            raise
        self._server, self._binding = server, binding

    async def _open_tcp(self) -> None:
        address, tls = self.options.address, self.options.tls
        context = await asyncio.to_thread(tls.server_context) if tls is not None else None
        self._server = await self._loop.create_server(
            lambda: _Connection(self),
            address.host,
            address.port,
            ssl=context,
            backlog=self.options.backlog,
            ssl_handshake_timeout=self.options.rules.receive_timeout if context else None,
        )
        port = self._server.sockets[0].getsockname()[1]
        self.address = Address(address.scheme, host=address.host, port=port)

    async def _look_after_socket(self) -> None:
        while True:
            await self.clock.sleep(LOOK_AFTER_SOCKET_SECONDS)
            binding = self._binding
            if binding is None or await asyncio.to_thread(binding.stands):
                continue
            if self._server is not None:
                # nobody can find it any more; closed first, because Python 3.13 removes the file of a server that it
                # closes, and the new file may have the same inode
                self._server.close()
                self._server = None
                binding.socket.close()
            try:
                await self._open_unix(binding.path)
            except (KeeplineError, OSError) as error:
                self._on_trouble(f"the socket is gone and cannot be made again: {error}")
            else:
                self._on_trouble(None)
                telemetry.event(log, logging.WARNING, "Socket bound again", path=str(binding.path))

    def __repr__(self) -> str:
        return f"<Listener {self.address}, {len(self.connections)} connections>"


class _Connection(asyncio.Protocol):
    """One peer."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._wire: ReceiverWire | None = None
        self._transport: asyncio.Transport
        self._peer: Peer | None = None
        self._linger_until: float | None = None
        self._lingered = 0
        self._stuck_since: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it holds nothing and waits for nothing: its sender opens another when it needs one."""
        return self.deadline is None

    @property
    def deadline(self) -> float | None:
        """When `wake` is due, in the loop's time."""
        if self._linger_until is not None:
            return self._linger_until
        if self._stuck_since is not None:
            return self._stuck_since + self._listener.options.rules.receive_timeout
        return self._wire.deadline if self._wire is not None else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        listener, self._transport = self._listener, transport
        options = listener.options
        now = listener.now()
        self._wire = wire = ReceiverWire(
            options.rules,
            listener.ledger,
            now=now,
            nonce=secrets.token_hex(16) if options.rules.shared_secret else "",
        )
        has_room = listener.make_room()
        listener.connections[self] = None
        if options.address.path is not None:
            self._peer = peer_of(transport.get_extra_info("socket"))
        if self._peer is not None and self._peer.uid not in options.allowed_uids:
            self._turn_away(Code.FORBIDDEN, f"user {self._peer.uid} may not send tokens here")
        elif not has_room:
            self._turn_away(Code.BUSY, "too many connections")
        else:
            if greeting := wire.take():
                transport.write(greeting)
            listener.arm(wire.deadline)

    def data_received(self, data: bytes) -> None:
        wire, listener = self._wire, self._listener
        if wire is None or wire.is_closing:
            return self._discard(data)
        arrivals = wire.receive(data, listener.now(), listener.clock.wall().timestamp())
        self._serve(arrivals)
        if self in listener.connections:  # the longest idle one stands first
            del listener.connections[self]
            listener.connections[self] = None
        return None

    def eof_received(self) -> None:
        if self._wire is not None and not self._wire.is_closing:
            arrivals = self._wire.receive_eof(self._listener.clock.wall().timestamp())
            self._report(arrivals)
            self._transport.write(self._wire.take())
        # returning None closes the transport once the answer is written

    def wake(self, now: float) -> None:
        """Time passed."""
        deadline = self.deadline
        if deadline is None or now < deadline or self._wire is None:
            return
        if self._linger_until is not None or self._stuck_since is not None:
            self.abort()
        else:
            self._serve(self._wire.wake(now, self._listener.clock.wall().timestamp()))

    def pause_writing(self) -> None:
        """The peer writes and does not read our answers: read no more of it until it does."""
        self._transport.pause_reading()
        self._stuck_since = self._listener.now()
        self._listener.arm(self.deadline)

    def resume_writing(self) -> None:
        self._transport.resume_reading()
        self._stuck_since = None
        self._listener.arm(self.deadline)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.connections.pop(self, None)
        self._wire = None
        if self._peer is not None:
            self._peer.close()

    def abort(self) -> None:
        """Drop the connection now."""
        self._listener.connections.pop(self, None)
        self._transport.abort()

    def _turn_away(self, code: Code, reason: str) -> None:
        assert self._wire is not None
        self._serve([self._wire.refuse(code, reason)])

    def _serve(self, arrivals: list[Arrival]) -> None:
        wire = self._wire
        assert wire is not None
        # tokens first: whoever reads our OK may rely on the new token being the latest
        self._report(arrivals)
        if answer := wire.take():
            self._transport.write(answer)
        if wire.is_closing:
            self._close(refused=bool(arrivals) and arrivals[-1].reason != "")
        else:
            self._listener.arm(wire.deadline)

    def _report(self, arrivals: list[Arrival]) -> None:
        for arrival in arrivals:
            self._listener.on_arrival(arrival, self._peer)

    def _close(self, *, refused: bool) -> None:
        if refused and self._transport.can_write_eof():
            self._transport.write_eof()
            self._linger_until = self._listener.now() + _LINGER_SECONDS
            self._listener.arm(self._linger_until)
        else:
            self._transport.close()

    def _discard(self, data: bytes) -> None:
        self._lingered += len(data)
        if self._lingered > _LINGER_BYTES:
            self.abort()
