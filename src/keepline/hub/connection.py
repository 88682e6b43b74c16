"""One live WebSocket: reads what the client says, writes frames of our own making, keeps its heartbeat and its token.

Invariants: everything that leaves goes through our framer on the transport, never through aiohttp's writer, so that one
prebuilt frame serves all; after a close frame nothing more is written; nothing that a client sends raises.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import WSMsgType
from aiohttp.abc import AbstractStreamWriter

from keepline.clock import Clock
from keepline.hub.access import Action, Identity
from keepline.hub.broadcaster import Broadcaster
from keepline.hub.closecodes import CloseCode, may_be_received
from keepline.hub.cohorts import Client
from keepline.hub.farewells import close_code
from keepline.hub.frames import close_frame, ping_frame, pong_frame
from keepline.hub.inbound import Reading
from keepline.hub.measures import CLOSED
from keepline.hub.offences import ErrorCode, Offence
from keepline.hub.refusals import Refusal, RefusalCode
from keepline.hub.tenure import Expiring, Tenure
from keepline.hub.wire import Refresh
from keepline.telemetry import event

__all__ = ["CLOSING_SECONDS", "Connection", "Judge"]

log = logging.getLogger("keepline.hub")

CLOSING_SECONDS = 5.0
"""How long a client may take to answer a close frame before its socket is cut."""


class Judge(Protocol):
    """Who says what a client may: the gate, or in a worker what stands for it."""

    def admit(self, presented: str, /) -> Awaitable[Identity | Refusal]:
        """Judge a newer token."""
        ...

    def allows(self, identity: Identity, action: Action, channel: object) -> Refusal | None:
        """Whether a right is there."""
        ...

    def recheck(self, identity: Identity) -> Refusal | None:
        """Whether the user still stands."""
        ...


class Connection:
    """A client that was let in.

    Args:
        socket: prepared; only read from.
        transport: of the request; only this is written to.
        writer: as `prepare` returned it.
        tenure: how long its token lasts.
        address: the peer's.
        broadcaster: who has the frames.
        judge: who has the rights.
        is_public: whether a name is one of the channels that clients may know.
        clock: time.
        ping_seconds: between pings.
        pong_timeout_seconds: without a sign of life it is gone.
    """

    __slots__ = (
        "_broadcaster", "_clock", "_full_at", "_is_public", "_judge", "_limited", "_owed", "_ping_at", "_ping_seconds",
        "_pong_timeout", "_socket", "_writer", "address", "client", "connected_at", "ends_by", "heard", "tenure",
        "transport",
    )  # fmt: skip

    def __init__(
        self,
        socket: Reading,
        transport: asyncio.Transport,
        writer: AbstractStreamWriter,
        tenure: Tenure,
        *,
        address: str,
        broadcaster: Broadcaster,
        judge: Judge,
        is_public: Callable[[str], bool],
        clock: Clock,
        ping_seconds: float,
        pong_timeout_seconds: float,
    ) -> None:
        self._socket = socket
        self._writer = writer
        self._broadcaster = broadcaster
        self._judge = judge
        self._is_public = is_public
        self._clock = clock
        self._ping_seconds = ping_seconds
        self._pong_timeout = pong_timeout_seconds
        self.transport = transport
        self.tenure = tenure
        self.address = address
        self.client: Client | None = None
        self.connected_at = clock.wall()
        self.heard = clock.boottime()
        self.ends_by: float | None = None
        self._ping_at = self.heard + ping_seconds * (0.8 + 0.2 * clock.chance())
        self._owed: bytes | None = None
        self._full_at = float("-inf")
        self._limited = 0

    @property
    def identity(self) -> Identity:
        """Who it speaks for."""
        return self.tenure.identity

    def begin(self, client_id: str, *, deflate: bool) -> None:
        """Have it welcomed, and from now on served."""
        identity = self.identity
        welcome = {
            "user": identity.user,
            "role": identity.role,
            "expiresAt": identity.expires_at,
            "pingSeconds": self._ping_seconds,
            "maxMessageBytes": self._broadcaster.limits.max_message,
        }
        self.client = self._broadcaster.connect(client_id, self, deflate=deflate, welcome=welcome)

    async def run(self) -> None:
        """Read until the connection is over."""
        assert self.client is not None
        socket, clock = self._socket, self._clock
        while True:
            message = await socket.receive()
            kind = message.type
            self.heard = clock.boottime()
            if kind is WSMsgType.TEXT:
                if self.ends_by is None:
                    await self._text(message.data)
            elif kind is WSMsgType.PING:
                self._pong(message.data)
            elif kind is WSMsgType.BINARY:
                self._broadcaster.offend(self.client, Offence.of(ErrorCode.BINARY))
            elif kind is not WSMsgType.PONG:
                break
        if kind is WSMsgType.CLOSE:
            self._answer_close(message.data)
        elif self.ends_by is None and socket.said > CloseCode.GOING_AWAY:
            CLOSED.inc(str(socket.said))

    def broken(self) -> None:
        """A frame breaks the protocol: nothing that follows it is read."""
        self.end(CloseCode.PROTOCOL_ERROR, "")
        self.transport.close()

    # as the broadcaster's link

    async def drained(self) -> None:
        """Return when the transport's buffer is empty."""
        await self._writer.drain()
        self._pay_pong()

    def end(self, code: CloseCode, reason: str) -> None:
        """Say goodbye with this code; the socket is cut when the answer does not come in time."""
        if self.ends_by is not None:
            return
        self.ends_by = self._clock.boottime() + CLOSING_SECONDS
        CLOSED.inc(str(int(code)))
        if not self.transport.is_closing():
            self.transport.write(close_frame(code, reason))

    def overflowed(self, dropped: int) -> None:
        """It lost messages that it did not take in time."""
        now = self._clock.boottime()
        if now - self._full_at > 60 and self.client is not None:
            event(log, logging.WARNING, "buffer full", client=self.client.id, dropped=dropped)
            self._full_at = now

    # as the sweep looks at it

    def look(self, now: float, wall: float) -> None:
        """What time asks for: the token's end, a ping, the end of waiting."""
        if self.ends_by is not None:
            if now >= self.ends_by:
                self.transport.abort()
            return
        if wall >= self.tenure.deadline:
            self._tenure_due(wall)
        if now - self.heard >= self._pong_timeout:
            self._dismiss(CloseCode.NO_PONG)
        elif now >= self._ping_at:
            self._ping_at = now + self._ping_seconds
            if not self.transport.get_write_buffer_size():
                self.transport.write(ping_frame())
        self._pay_pong()

    def recheck(self) -> None:
        """Close it when its user no longer stands."""
        if (refusal := self._judge.recheck(self.identity)) is not None:
            self._dismiss(close_code(refusal), refusal.words)

    def leave(self, code: CloseCode) -> None:
        """Send it away."""
        self._dismiss(code)

    # inside

    async def _text(self, text: str) -> None:
        client = self.client
        assert client is not None
        before = client.key[0]
        asked = self._broadcaster.receive(client, text, self._permitted)
        if client.key[0] is not before and client.key[0] != before:
            channels = ",".join(client.key[0])
            event(log, logging.INFO, "subscribed", client=client.id, channels=channels)
        self._watch_rate(client)
        if asked is not None:
            await self._refresh(asked)

    def _watch_rate(self, client: Client) -> None:
        over = self._broadcaster.over_rate(client)
        if over and not self._limited:
            event(log, logging.WARNING, "rate limit exceeded", client=client.id)
        self._limited = over

    def _permitted(self, name: str) -> bool:
        if not self._is_public(name):
            return False
        return self._judge.allows(self.identity, Action.SUBSCRIBE, name) is None

    async def _refresh(self, asked: Refresh) -> None:
        client = self.client
        assert client is not None
        verdict = await self._judge.admit(asked.token)
        refusal = (
            verdict if isinstance(verdict, Refusal) else self.tenure.refresh(verdict, self._wall())
        )
        if refusal is not None:
            other = refusal.code is RefusalCode.OTHER_USER
            code = ErrorCode.OTHER_USER if other else ErrorCode.BAD_TOKEN
            detail = "" if other else refusal.words
            self._broadcaster.offend(client, Offence.of(code, detail, id=asked.id))
            return
        data: dict[str, Any] = {
            "expiresAt": self.identity.expires_at,
            "role": self.identity.role,
        }
        if asked.id is not None:
            data["id"] = asked.id
        self._broadcaster.tell(client, "refreshed", data)
        self._review_rights(client)

    def _review_rights(self, client: Client) -> None:
        lost = [name for name in client.channels() if not self._permitted(name)]
        for name in lost:
            self._broadcaster.unsubscribe(client, [name])
            self._broadcaster.offend(client, Offence.of(ErrorCode.FORBIDDEN, channel=name))

    def _tenure_due(self, wall: float) -> None:
        due = self.tenure.due(wall)
        if due is None or self.client is None:
            return
        if isinstance(due, Expiring):
            data = {"expiresAt": due.expires_at, "secondsLeft": round(due.seconds_left, 3)}
            self._broadcaster.tell(self.client, "expiring", data)
        else:
            self._dismiss(close_code(due.refusal), due.refusal.words)

    def _dismiss(self, code: CloseCode, reason: str = "") -> None:
        if self.client is not None:
            self._broadcaster.dismiss(self.client, code, reason)

    def _pong(self, payload: bytes) -> None:
        assert self.client is not None
        if self.ends_by is not None:
            return
        if not self._broadcaster.permit(self.client):
            self._broadcaster.offend(self.client, Offence.of(ErrorCode.RATE_LIMITED))
            return
        self._owed = bytes(payload)
        self._pay_pong()

    def _pay_pong(self) -> None:
        """The newest ping is answered once there is room (RFC 6455 §5.5.3)."""
        transport = self.transport
        if self._owed is None or self.ends_by is not None or transport.is_closing():
            return
        if not transport.get_write_buffer_size():
            transport.write(pong_frame(self._owed))
            self._owed = None

    def _answer_close(self, code: int) -> None:
        if self.ends_by is None and not self.transport.is_closing():
            answer = code or CloseCode.NORMAL
            if not may_be_received(answer):
                answer = CloseCode.PROTOCOL_ERROR
            self.transport.write(close_frame(answer))
        self.transport.close()

    def _wall(self) -> float:
        return self._clock.wall().timestamp()

    def __repr__(self) -> str:
        return f"<Connection {self.client.id if self.client else 'new'}>"
