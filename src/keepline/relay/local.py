"""A client of the daemon's local socket: requests by id, renewed tokens by subscription.

Invariants: one connection carries everything; when it ends, every waiting request and subscription ends with an error
that says so; a subscription keeps only the newest token, so a slow reader holds nothing up.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, cast

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.credentials.token import Token
from keepline.errors import Closed, KeeplineError, ProtocolError, TransientError
from keepline.relay.address import (
    Address,
    TLSConfig,
    daemon_socket_path,
    parse_address,
    socket_owner_refusal,
    trusted_owners,
)
from keepline.relay.local_objects import (
    error_from_wire,
    error_to_wire,
    token_from_object,
    token_object,
)
from keepline.relay.local_wire import (
    MAX_LINE,
    MAX_OPEN_REQUESTS,
    OPERATIONS,
    PROTOCOL,
    LocalAnswer,
    LocalClientSession,
    LocalEvent,
    LocalRequest,
    LocalServerSession,
)

__all__ = [
    "MAX_LINE",
    "MAX_OPEN_REQUESTS",
    "OPERATIONS",
    "PROTOCOL",
    "LocalAnswer",
    "LocalClient",
    "LocalClientSession",
    "LocalEvent",
    "LocalRequest",
    "LocalServerSession",
    "Subscription",
    "error_from_wire",
    "error_to_wire",
    "token_from_object",
    "token_object",
]


class LocalClient:
    """A connection to the daemon on this machine.

    Args:
        address: the daemon's socket; None for `daemon.sock` in the runtime directory.
        timeout: seconds that a request may take, a refresh at the issuer included.
        name: who we are, for the daemon's log.

    Example:
        async with LocalClient() as daemon:
            token = await daemon.get_token("schwab")
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        timeout: float = 45.0,
        name: str = "",
        tls: TLSConfig | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if address is None:
            address = Address("unix", path=daemon_socket_path())
        self.address = address if isinstance(address, Address) else parse_address(address)
        self.timeout = timeout
        self._name = name or f"pid {os.getpid()}"
        self._tls = tls
        self._clock = clock
        self._link: _Link | None = None

    async def connect(self) -> Mapping[str, Any]:
        """Connect and say hello.

        Returns:
            What the daemon says of itself: server, version, protocol, pid, credentials.

        Raises:
            TransientError: nobody listens there, or no answer in time; category `network` or `timeout`.
            StorageError: strangers can write the socket's directory.
            ProtocolError: what listens there does not speak our protocol.
        """
        if self._link is not None:
            raise RuntimeError("connected already")
        try:
            self._link = await within(self._clock, self.timeout, self._open())
        except TimeoutError:
            raise self._unreachable("no connection in time", category="timeout") from None
        except OSError as error:
            if isinstance(error, KeeplineError):
                raise
            raise self._unreachable(error.strerror or str(error)) from error
        try:
            return await self.request("hello", client=self._name)
        except BaseException:
            await self.close()
            raise

    async def request(self, op: str, **arguments: object) -> Mapping[str, Any]:
        """Ask and await the answer's `result`; several requests may be under way at once.

        Raises:
            KeeplineError: the daemon's refusal as the error class that it stands for.
            TransientError: the connection ended, or no answer in time.
            Closed: `close` was called, or `connect` never was.
        """
        link = self._require()
        number, line = link.session.request(op, **arguments)
        future = link.expect(number)
        link.write(line)
        try:
            return await within(self._clock, self.timeout, future)
        except TimeoutError:
            raise self._unreachable(f"no answer to {op} in time", category="timeout") from None
        finally:
            link.forget(number)

    async def ping(self) -> Mapping[str, Any]:
        """The daemon's time: it is alive."""
        return await self.request("ping")

    async def status(self) -> Mapping[str, Any]:
        """What `keepline status` shows."""
        return await self.request("status")

    async def get_token(self, credential: str, *, newer_than: int | None = None) -> Token:
        """A valid token, of a later generation than `newer_than` when given; without its refresh token."""
        result = await self.request("token.get", credential=credential, newer_than=newer_than)
        return token_from_object(result)

    async def refresh_token(self, credential: str, *, than: int | None = None) -> Token:
        """A token from a refresh now, unless the daemon's is newer than `than` already."""
        result = await self.request("token.refresh", credential=credential, than=than)
        return token_from_object(result)

    async def subscribe(self, credential: str) -> "Subscription":
        """Every renewal of a credential, the current token first.

        Raises:
            KeeplineError: as `request`.
        """
        link = self._require()
        subscription = link.subscriptions.setdefault(credential, Subscription(credential))
        result = await self.request("token.subscribe", credential=credential)
        if result.get("access_token"):
            subscription.offer(token_from_object(result))
        return subscription

    async def close(self) -> None:
        """End the connection; what waits on it gets `Closed`."""
        link, self._link = self._link, None
        if link is not None:
            link.end(Closed("the connection to the daemon was closed"))
            await link.lost.wait()

    def _require(self) -> "_Link":
        if self._link is None:
            raise Closed("not connected to the daemon: `await connect()` first")
        return self._link

    async def _open(self) -> "_Link":
        loop, address = asyncio.get_running_loop(), self.address
        if address.path is None:
            context = None
            if address.scheme == "tls":
                if self._tls is None:
                    raise ProtocolError(f"{address} needs certificates: give tls=TLSConfig(...)")
                context = await asyncio.to_thread(self._tls.client_context)
            _, link = await loop.create_connection(_Link, address.host, address.port, ssl=context)
            return link
        await asyncio.to_thread(_check_owner, address)
        _, link = await loop.create_unix_connection(_Link, str(address.path))
        return link

    def _unreachable(self, reason: str, *, category: str = "network") -> TransientError:
        return TransientError(
            f"the daemon cannot be reached: {reason}; is `keepline run` running?",
            category=category,
            endpoint=str(self.address),
            sent=False,
        )

    async def __aenter__(self) -> "LocalClient":
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<LocalClient {self.address} {'connected' if self._link else 'closed'}>"


class Subscription:
    """The tokens of one credential as they come; iterate it once.

    When the iterating code is slow, tokens in between are skipped: only the newest is worth having.
    """

    def __init__(self, credential: str) -> None:
        self.credential = credential
        self._newest: Token | None = None
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    def offer(self, token: Token) -> None:
        """Put a token in place of an older one that was not read."""
        if self._newest is None or token.generation >= self._newest.generation:
            self._newest = token
            self._changed.set()

    def end(self, error: BaseException) -> None:
        """Let the reader have this error after the last token."""
        self._error = error
        self._changed.set()

    async def next(self) -> Token:
        """The next token.

        Raises:
            TransientError: the connection to the daemon ended.
            Closed: our side closed it.
        """
        while self._newest is None:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        token, self._newest = self._newest, None
        return token

    async def __aiter__(self) -> AsyncIterator[Token]:
        while True:
            try:
                token = await self.next()
            except Closed:
                return
            yield token


class _Link(asyncio.Protocol):
    """The bytes of one connection, sorted by its session."""

    def __init__(self) -> None:
        self.session = LocalClientSession()
        self.subscriptions: dict[str, Subscription] = {}
        self.lost = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._transport: asyncio.Transport | None = None
        self._error: BaseException | None = None

    def expect(self, number: int) -> "asyncio.Future[Mapping[str, Any]]":
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        if self._error is not None:
            future.set_exception(self._error)
        return future

    def forget(self, number: int) -> None:
        self._waiting.pop(number, None)

    def write(self, line: bytes) -> None:
        if self._transport is not None and self._error is None:
            self._transport.write(line)

    def end(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
            for subscription in self.subscriptions.values():
                subscription.end(error)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        for item in self.session.receive(data):
            match item:
                case LocalAnswer():
                    self._answer(item)
                case LocalEvent(credential, token):
                    if credential in self.subscriptions:
                        self.subscriptions[credential].offer(token)
                case ProtocolError():
                    self.end(item)

    def connection_lost(self, reason: Exception | None) -> None:
        self.end(
            TransientError(
                f"the daemon ended the connection{f': {reason}' if reason else ''}",
                category="network",
            )
        )
        self.lost.set()

    def _answer(self, answer: LocalAnswer) -> None:
        future = self._waiting.get(answer.id) if answer.id is not None else None
        if future is None or future.done():
            if answer.id is None and answer.error is not None:
                self.end(
                    answer.error
                )  # it could not read what we sent: nothing later can be trusted
        elif answer.error is not None:
            future.set_exception(answer.error)
        else:
            future.set_result(answer.result or {})


def _check_owner(address: Address) -> None:
    assert address.path is not None
    refusal = socket_owner_refusal(address.path, trusted_owners(address.path))
    if refusal:
        raise PermissionError(0, refusal)
