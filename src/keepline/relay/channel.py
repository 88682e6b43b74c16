"""One connection from the sender to a bot.

Invariants: no byte of a token leaves before the other end's owner was checked; each message is one write; what the
other end answers becomes an `Answer`, what keeps us from reaching it an `Unreachable`.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import cast

from keepline.clock import Clock
from keepline.errors import KeeplineError
from keepline.relay.address import Address, own_uid, socket_owner_refusal, trusted_owners
from keepline.relay.peer import peer_of
from keepline.relay.wire import Answer, SenderWire

__all__ = ["Channel", "Unreachable", "open_channel"]

_QUEUE_FULL_PAUSE = (
    0.005  # seconds; a Unix socket whose queue is full says so at once instead of waiting
)


class Unreachable(Exception):
    """No connection, or none that may be used.

    Attributes:
        is_final: trying again would end the same way.
    """

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


async def open_channel(
    address: Address,
    *,
    clock: Clock,
    shared_secret: bytes = b"",
    context: ssl.SSLContext | None = None,
    server_name: str = "",
    allowed_uids: Collection[int] = (),
) -> "Channel":
    """Connect; the caller bounds the time.

    Raises:
        Unreachable: nobody listens, not allowed to connect, or not somebody whom we may give a token.
    """
    loop = asyncio.get_running_loop()

    def channel() -> Channel:
        return Channel(SenderWire(shared_secret=shared_secret))

    with _in_words(address):
        if address.path is None:
            _, made = await loop.create_connection(
                channel,
                address.host,
                address.port,
                ssl=context,
                server_hostname=(server_name or address.host) if context else None,
            )
            return made
        sock = await _connect_unix(address.path, allowed_uids, clock)
        try:
            _, made = await loop.create_unix_connection(channel, sock=sock)
        except BaseException:
            sock.close()
            raise
        return made


class Channel(asyncio.Protocol):
    """A connection that carries one message at a time."""

    def __init__(self, wire: SenderWire) -> None:
        self._wire = wire
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[Answer] | None = None
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._early: Answer | None = None
        self._is_lost = False

    @property
    def is_usable(self) -> bool:
        """Whether another message may be tried on it."""
        return not self._is_lost and self._wire.is_ready

    async def deliver(self, body: bytes) -> Answer:
        """Send one message and await the answer; the caller bounds the time, and drops the channel when it is up."""
        while not self._wire.is_ready and self._early is None:
            self._changed.clear()
            await self._changed.wait()  # for the receiver's greeting
        if self._early is not None:
            return self._early
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(self._wire.send(body))
        self._take(self._wire.receive(b"", self._now()))
        return await self._answer

    def close(self) -> None:
        """End the connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._take(self._wire.receive(data, self._now()))

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        answer = self._wire.receive_eof()
        if answer is not None and answer.code == "silent" and error is not None:
            answer = Answer(False, "silent", _loss_in_words(error))
        self._take(answer)

    def _take(self, answer: Answer | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if answer is None:
            if (deadline := self._wire.deadline) is not None:
                self._timer = asyncio.get_running_loop().call_at(deadline, self._wake)
        elif self._answer is None:
            self._early = answer
        elif not self._answer.done():
            self._answer.set_result(answer)
        self._changed.set()

    def _wake(self) -> None:
        self._take(self._wire.wake(self._now()))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def __repr__(self) -> str:
        return f"<Channel {self._wire!r}{' lost' if self._is_lost else ''}>"


async def _connect_unix(path: Path, allowed_uids: Collection[int], clock: Clock) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise Unreachable("this system has no Unix sockets: use tls:// or tcp://", is_final=True)
    trusted = await asyncio.to_thread(_trusted, path, allowed_uids)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while not _connected(sock, path):
            await clock.sleep(_QUEUE_FULL_PAUSE)
        peer = peer_of(sock, pidfd=False)
        if peer is not None and own_uid() is not None and peer.uid not in trusted:
            raise Unreachable(
                f"user {peer.uid} listens at {path}, whom the configuration does not allow",
                is_final=True,
            )
    except BaseException:
        sock.close()
        raise
    return sock


def _trusted(path: Path, allowed_uids: Collection[int]) -> frozenset[int]:
    trusted = trusted_owners(path, allowed_uids)
    refusal = socket_owner_refusal(path, trusted)
    if refusal:
        raise Unreachable(refusal, is_final=True)
    return trusted


def _connected(sock: socket.socket, path: Path) -> bool:
    try:
        sock.connect(str(path))
    except BlockingIOError:
        return False  # unlike TCP this is not under way: connect(2), EAGAIN
    return True


def _loss_in_words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):  # with TLS 1.3 a refusal of our certificate comes this late
        return f"it ended TLS: {(error.reason or 'no reason').lower().replace('_', ' ')}"
    words = error.strerror if isinstance(error, OSError) else str(error)
    return f"the connection broke: {words or type(error).__name__}"


@contextlib.contextmanager
def _in_words(address: Address) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Unreachable(f"no socket at {address.path}: the bot does not run") from None
    except ConnectionRefusedError:
        raise Unreachable(f"nobody listens at {address}") from None
    except PermissionError as error:
        raise Unreachable(
            f"permission denied: user {own_uid()} may not connect to {address}"
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(
            f"the certificate of {address} is not accepted: {error.verify_message}", is_final=True
        ) from error
    except ssl.SSLError as error:
        raise Unreachable(f"no TLS with {address}: {error.reason}") from error
    except KeeplineError as error:
        raise Unreachable(str(error), is_final=True) from error
    except OSError as error:
        raise Unreachable(f"{address}: {error.strerror or error}") from error
