"""`GET /ws/analytics`: who may have a live connection, and how those who may not are told.

Invariants: nothing is upgraded for a stranger's host name; a machine gets an HTTP status; a browser, which cannot see
one, is accepted and closed with a code that says whether to come back; no token is ever answered or logged.
"""

import asyncio
import math
import secrets
import socket
from collections.abc import Sequence

from aiohttp import HttpVersion11, WSMsgType, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from keepline.clock import Clock
from keepline.hub.access import Identity
from keepline.hub.attendance import Attendance, neighbourhood
from keepline.hub.broadcaster import Broadcaster
from keepline.hub.closecodes import CLOSE_WORDS, CloseCode
from keepline.hub.connection import CLOSING_SECONDS, Connection
from keepline.hub.deflate import negotiate_deflate
from keepline.hub.farewells import close_code
from keepline.hub.frames import close_frame
from keepline.hub.gate import Gate
from keepline.hub.inbound import InboundGuard, Reading
from keepline.hub.measures import CLOSED, CONNECTIONS
from keepline.hub.origins import OriginRules
from keepline.hub.presenting import SUBPROTOCOL, presented
from keepline.hub.refusals import Refusal
from keepline.hub.replies import refused, reply
from keepline.hub.settings import HubConfig
from keepline.hub.turnstile import Turnstile

__all__ = ["SocketDoor", "agree_on_deflate"]

_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_LOWAT_BYTES = 16 * 1024
_SEND_BUFFER = 64 * 1024


class SocketDoor:
    """Lets clients in.

    Args:
        config: the hub's settings.
        gate: judges tokens.
        origins: whose pages may connect.
        broadcaster: serves those who are in.
        attendance: counts them.
        clock: time.
    """

    def __init__(
        self,
        config: HubConfig,
        *,
        gate: Gate,
        origins: OriginRules,
        broadcaster: Broadcaster,
        attendance: Attendance,
        clock: Clock,
    ) -> None:
        self._config = config
        self._gate = gate
        self._origins = origins
        self._broadcaster = broadcaster
        self._attendance = attendance
        self._clock = clock
        self._public = frozenset(channel.name for channel in config.channels)
        self._turnstile = Turnstile()
        self.draining = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer an upgrade; what is called between here and the socket is kept for as long as a client stays."""
        taken: list[tuple[str, str]] = []
        try:
            identity = await self._let_in(request, taken)
            if not isinstance(identity, Identity):
                return identity
            ready, connection = await self._welcome(request, identity)
            if connection is not None:
                try:
                    await connection.run()
                finally:
                    self._farewell(connection)
            return ready
        finally:
            for kind, name in taken:
                self._attendance.give_back(kind, name)

    async def _let_in(
        self, request: web.Request, taken: list[tuple[str, str]]
    ) -> Identity | web.StreamResponse:
        """Who it is, or the answer to somebody who may not; `taken` gets the places to give back."""
        if (flaw := _flaw(request)) is not None:
            CONNECTIONS.inc("malformed")
            return flaw
        await self._turnstile.wait()
        if self.draining:
            return await self._turn_away(request, CloseCode.SHUTTING_DOWN, 503)
        if not self._take(taken, "all", ""):
            return await self._turn_away(request, CloseCode.TOO_MANY_CONNECTIONS, 503)
        if not self._take(taken, "address", neighbourhood(request.remote or "")):
            return await self._turn_away(request, CloseCode.TOO_MANY_CONNECTIONS, 429)
        verdict = await self._verdict(request)
        if isinstance(verdict, Refusal):
            return await self._refuse(request, verdict)
        if not self._take(taken, "user", f"{verdict.issuer}\n{verdict.user}"):
            return await self._turn_away(request, CloseCode.TOO_MANY_CONNECTIONS, 429)
        return verdict

    def _take(self, taken: list[tuple[str, str]], kind: str, name: str) -> bool:
        if not self._attendance.take(kind, name):
            return False
        taken.append((kind, name))
        return True

    async def _verdict(self, request: web.Request) -> Identity | Refusal:
        headers = request.headers
        foreign = self._origins.refusal(headers.getall(hdrs.ORIGIN, ()))
        if foreign is not None:
            return self._gate.refused(foreign)
        return await self._gate.admit(
            presented(
                authorization=headers.getall(hdrs.AUTHORIZATION, ()),
                protocols=headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ()),
                query=request.query.getall("token", ()),
            )
        )

    async def _welcome(
        self, request: web.Request, identity: Identity
    ) -> tuple[web.StreamResponse, Connection | None]:
        ready, writer, guard = await self._accept(request)
        transport = request.transport
        if transport is None:
            return ready, None
        _tune(transport)
        connection = Connection(
            ready,
            transport,
            writer,
            self._gate.tenure(identity),
            address=request.remote or "",
            broadcaster=self._broadcaster,
            judge=self._gate,
            is_public=self._public.__contains__,
            clock=self._clock,
            ping_seconds=self._config.ping_seconds,
            pong_timeout_seconds=self._config.pong_timeout_seconds,
        )
        deflate = hdrs.SEC_WEBSOCKET_EXTENSIONS in ready.headers
        connection.begin(secrets.token_hex(8), deflate=deflate)
        CONNECTIONS.inc("accepted")
        self._attendance.enter(connection)
        guard.begin(connection.broken)
        return ready, connection

    def _farewell(self, connection: Connection) -> None:
        assert connection.client is not None
        self._broadcaster.disconnect(connection.client)
        self._attendance.exit(connection)
        self._attendance.linger(connection.transport)

    async def _accept(
        self, request: web.Request
    ) -> tuple[Reading, AbstractStreamWriter, InboundGuard]:
        guard = InboundGuard(request.protocol, getattr(request.protocol, "_message_tail", b""))
        if request.transport is not None:
            request.transport.set_protocol(guard)
        ready = Reading(
            autoping=False,
            autoclose=False,
            protocols=(SUBPROTOCOL,),
            compress=_agreed(request) is not None,
            # a little more than the limit: what is only too long is answered, what is far too long is not even read
            max_msg_size=self._config.max_message_bytes * 4,
            timeout=CLOSING_SECONDS,
        )
        return ready, await ready.prepare(request), guard

    async def _refuse(self, request: web.Request, refusal: Refusal) -> web.StreamResponse:
        if _is_browser(request):
            return await self._close(request, close_code(refusal), refusal.words, "refused")
        CONNECTIONS.inc("refused")
        return refused(refusal)

    async def _turn_away(
        self, request: web.Request, code: CloseCode, status: int
    ) -> web.StreamResponse:
        if _is_browser(request):
            return await self._close(request, code, "", "turned_away")
        CONNECTIONS.inc("turned_away")
        wait = math.ceil(1 + self._clock.chance() * 9)
        word = "shutting_down" if self.draining else "too_many_connections"
        return reply(status, {"error": word, "message": CLOSE_WORDS[code]}, retry_after=wait)

    async def _close(
        self, request: web.Request, code: CloseCode, reason: str, outcome: str
    ) -> web.StreamResponse:
        """Accept, and close at once: this is all that a page can see."""
        CONNECTIONS.inc(outcome)
        ready, _, guard = await self._accept(request)
        transport = request.transport
        if transport is not None:
            guard.begin(transport.close)
            CLOSED.inc(str(int(code)))
            transport.write(close_frame(code, reason))
            self._attendance.linger(transport)
            while (await ready.receive()).type in (
                WSMsgType.TEXT,
                WSMsgType.BINARY,
                WSMsgType.PING,
                WSMsgType.PONG,
            ):
                pass
            transport.close()
        return ready


def agree_on_deflate(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put our terms of compression into the answer: aiohttp's own would keep a compressor for each connection."""
    if isinstance(response, web.WebSocketResponse):
        answer = _agreed(request)
        if answer is not None and response.compress:
            response.headers[hdrs.SEC_WEBSOCKET_EXTENSIONS] = answer
        else:
            response.headers.popall(hdrs.SEC_WEBSOCKET_EXTENSIONS, None)


def _agreed(request: web.BaseRequest) -> str | None:
    return negotiate_deflate(",".join(request.headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, ())))


def _flaw(request: web.Request) -> web.Response | None:
    """Why this is no WebSocket handshake of RFC 6455."""
    if request.version < HttpVersion11:
        words = "a WebSocket begins with HTTP/1.1"
        return reply(400, {"error": "bad_version", "message": words})
    if request.headers.get(hdrs.UPGRADE, "").lower().strip() != "websocket":
        return reply(
            426,
            {"error": "upgrade_required", "message": "this address speaks WebSocket"},
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )
    if request.headers.get(hdrs.SEC_WEBSOCKET_VERSION) != "13":
        return reply(
            426,
            {"error": "bad_version", "message": "WebSocket version 13 is spoken here"},
            headers={
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
            },
        )
    first = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
    if first is not None and SUBPROTOCOL not in _items(first):
        return reply(
            400,
            {
                "error": "bad_subprotocol",
                "message": f"offer {SUBPROTOCOL} first, or no subprotocol",
            },
        )
    return None


def _items(field: str) -> Sequence[str]:
    return [item.strip() for item in field.split(",")]


def _is_browser(request: web.Request) -> bool:
    return hdrs.ORIGIN in request.headers or hdrs.SEC_WEBSOCKET_PROTOCOL in request.headers


def _tune(transport: asyncio.Transport) -> None:
    """Let little wait below us: what a client does not read stays where it can still be made newer."""
    secured = transport.get_extra_info("sslcontext") is not None
    transport.set_write_buffer_limits(high=1 if secured else 0, low=0)
    own = transport.get_extra_info("socket")
    if own is None or own.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        if _LOWAT is not None:
            own.setsockopt(socket.IPPROTO_TCP, _LOWAT, _LOWAT_BYTES)
        else:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    except OSError:
        return  # it works without, only with staler data for those who do not read
