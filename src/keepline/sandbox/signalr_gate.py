"""The requests that reach for a hub: negotiation, the three transports, what is sent beside them, the end.

Invariants: faults come first, then the token, then the connection; whoever is refused is told by a status alone; every
request for a connection is a dial that tests can count.

Source: measured at an ASP.NET Core 9.0 server.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from aiohttp import web

from keepline.clock import Clock, within
from keepline.sandbox.faults import Faults, Plan
from keepline.sandbox.replies import bearer, cut, response
from keepline.sandbox.signalr_connection import HubConnection
from keepline.sandbox.signalr_endpoint import Endpoint, Place, Seat, Transport
from keepline.sandbox.signalr_transports import (
    serve_events,
    serve_poll,
    serve_send,
    serve_websocket,
)
from keepline.sandbox.venue import Reply

__all__ = ["Dial", "Gate", "Inside", "Token"]

_MOST_DIALS = 10_000
_REATTACH_WAIT = 0.5
_UNAUTHORIZED = 401
_ROUTES = {
    Transport.WEBSOCKETS: "websocket",
    Transport.EVENTS: "events",
    Transport.POLLING: "polling",
}

Token = tuple[str, str]
"""A bearer, and where it stood: `header`, `query` or ""."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """One request that reached for a hub.

    Attributes:
        hub: `user`, `market` or `test`.
        route: `negotiate`, `websocket`, `events` or `polling`.
        at: the server's time in seconds.
        status: of the answer; 101 for a WebSocket, 0 for a connection that was cut.
        token_in: `header`, `query` or "" without one.
        reattached: whether it took up a stateful connection.
    """

    hub: str
    route: str
    at: float
    status: int
    token_in: str = ""
    reattached: bool = False


class Inside(Protocol):
    """What stands behind the gate."""

    def connect(self, hub: str, seat: Seat, token: Token) -> HubConnection:
        """A new connection."""
        ...

    def connection_of(self, seat: Seat) -> HubConnection:
        """The one that sits there."""
        ...

    def begin(self) -> None:
        """Somebody is there, or will be."""
        ...

    def changed(self) -> None:
        """Tests that wait for a dial may look."""
        ...


class Gate:
    """All requests of all hubs.

    Attributes:
        dials: requests that reached for a hub, the last ten thousand.

    Args:
        inside: the connections.
        endpoints: by the name of the hub.
        open_to_all: hubs that want no token.
        accepts: whether a token opens the venue now.
        new_token: a fresh one, for redirects.
        faults: those in force.
        clock: time and delays.
        counts: where things are counted.
    """

    def __init__(
        self,
        inside: Inside,
        endpoints: Mapping[str, Endpoint],
        *,
        open_to_all: tuple[str, ...],
        accepts: Callable[[str], bool],
        new_token: Callable[[], str],
        faults: Faults,
        clock: Clock,
        counts: Counter[str],
    ) -> None:
        self.dials: deque[Dial] = deque(maxlen=_MOST_DIALS)
        self._inside, self._endpoints, self._open_to_all = inside, endpoints, open_to_all
        self._accepts, self._new_token = accepts, new_token
        self._faults, self._clock, self._counts = faults, clock, counts

    def routes(self) -> Iterator[tuple[str, str, Any]]:
        """Method, path and handler of every address."""
        for name in self._endpoints:
            yield "POST", f"/hubs/{name}/negotiate", partial(self._negotiate, name)
            yield "GET", f"/hubs/{name}", partial(self._open, name)
            yield "POST", f"/hubs/{name}", partial(self._send, name)
            yield "DELETE", f"/hubs/{name}", partial(self._delete, name)

    async def _negotiate(self, hub: str, request: web.Request) -> web.StreamResponse:
        plan, instead = await self._suffered(hub, "negotiate", request)
        if instead is not None:
            return instead
        self._counts["hub_negotiations"] += 1
        if plan.reply is not None:
            reply = self._filled_in(plan.reply, request)
        elif not self._admits(hub, request):
            reply = Reply(_UNAUTHORIZED, "")
        else:
            reply = self._endpoints[hub].negotiate(
                request.query,
                now=self._clock.boottime(),
                offered=plan.offered,
                unasked=plan.unasked,
            )
            self._inside.begin()
        self._dialled(hub, "negotiate", request, 0 if plan.lose else reply.status)
        return cut(request) if plan.lose else self._told(reply)

    async def _open(self, hub: str, request: web.Request) -> web.StreamResponse:
        transport = _transport(request)
        route = _ROUTES[transport]
        plan, instead = await self._suffered(hub, route, request)
        if instead is not None:
            return instead
        if plan.reply is not None:
            return self._refused(hub, route, request, plan.reply.status, plan.reply)
        if not self._admits(hub, request):
            return self._refused(hub, route, request, _UNAUTHORIZED)
        endpoint, token = self._endpoints[hub], request.query.get("id")
        known = endpoint.find(token, now=self._clock.boottime())
        if known is not None and known.place is Place.ATTACHED and await self._still_there(known):
            return await self._end_both(request, known)
        is_new = known is None or known.place is Place.NEW
        seat = endpoint.attach(token, transport, now=self._clock.boottime())
        if isinstance(seat, int):
            return self._refused(hub, route, request, seat)
        connection = (
            self._inside.connect(hub, seat, _token(request))
            if is_new
            else self._inside.connection_of(seat)
        )
        again = not is_new and transport is Transport.WEBSOCKETS
        if is_new or again:
            status = 101 if transport is Transport.WEBSOCKETS else 200
            self._dialled(hub, route, request, status, reattached=again)
        if again:
            self._counts["hub_reattached"] += 1
            connection.token, connection.token_in = _token(request)
            connection.wire.reattached(now=self._clock.boottime())
        return await self._serve(request, connection, transport, is_new=is_new)

    async def _serve(
        self,
        request: web.Request,
        connection: HubConnection,
        transport: Transport,
        *,
        is_new: bool,
    ) -> web.StreamResponse:
        if transport is Transport.WEBSOCKETS:
            return await serve_websocket(request, connection)
        if transport is Transport.EVENTS:
            return await serve_events(request, connection)
        answer: web.StreamResponse = web.Response()
        if not is_new:
            answer = await serve_poll(request, connection, clock=self._clock)
        if not connection.is_over and not connection.memory.get("polls"):
            endpoint = self._endpoints[connection.hub.name]
            endpoint.detach(connection.seat, keep=True, now=self._clock.boottime())
        return answer

    async def _send(self, hub: str, request: web.Request) -> web.StreamResponse:
        plan, instead = await self._suffered(hub, "send", request)
        if instead is not None:
            return instead
        if plan.reply is not None:
            return self._told(plan.reply)
        if not self._admits(hub, request):
            return web.Response(status=_UNAUTHORIZED)
        now = self._clock.boottime()
        seat = self._endpoints[hub].sender(request.query.get("id"), now=now)
        if isinstance(seat, int):
            return web.Response(status=seat)
        return await serve_send(request, self._inside.connection_of(seat))

    async def _delete(self, hub: str, request: web.Request) -> web.StreamResponse:
        if not self._admits(hub, request):
            return web.Response(status=_UNAUTHORIZED)
        now = self._clock.boottime()
        seat = self._endpoints[hub].deleted(request.query.get("id"), now=now)
        if isinstance(seat, int):
            return web.Response(status=seat)
        connection = self._inside.connection_of(seat)
        connection.wire.close(allow_reconnect=True, now=now)
        connection.memory["deleted"] = (
            True  # the poll that waits takes the Close message, then it is over
        )
        connection.wake()
        if seat.place is not Place.ATTACHED:
            connection.finish()
        return web.Response(status=202)

    async def _suffered(
        self, hub: str, route: str, request: web.Request
    ) -> tuple[Plan, web.StreamResponse | None]:
        """What faults do before anything else is looked at."""
        plan = self._faults.plan(route, now=self._clock.boottime(), broker="projectx")
        self._counts["requests"] += 1
        self._counts["faults"] += len(plan.struck)
        if plan.delay:
            await self._clock.sleep(plan.delay)
        if not plan.cut:
            return plan, None
        if route != "send":
            self._dialled(hub, route, request, 0)
        return plan, cut(request)

    async def _still_there(self, seat: Seat) -> bool:
        """Whether the old socket of a stateful connection lives on; one that is dying gets half a second."""
        connection = self._inside.connection_of(seat)
        if not connection.wire.can_reattach:
            return False
        try:
            await within(self._clock, _REATTACH_WAIT, connection.freed())
        except TimeoutError:
            return True
        return False

    async def _end_both(self, request: web.Request, seat: Seat) -> web.StreamResponse:
        """Two sockets for one connection: both end, as at the real server."""
        connection = self._inside.connection_of(seat)
        self._dialled(connection.hub.name, "websocket", request, 101)
        socket = web.WebSocketResponse(timeout=1.0)
        await socket.prepare(request)
        connection.cut("abort")
        connection.finish()
        await socket.close()
        return socket

    def _refused(
        self, hub: str, route: str, request: web.Request, status: int, reply: Reply | None = None
    ) -> web.Response:
        self._dialled(hub, route, request, status)
        return web.Response(status=status) if reply is None else self._told(reply)

    def _told(self, reply: Reply) -> web.Response:
        if reply.status == 204 or reply.body == "":
            return web.Response(status=reply.status, headers=reply.headers)
        return response(reply, frozenset(), now=self._clock.wall().timestamp())

    def _filled_in(self, reply: Reply, request: web.Request) -> Reply:
        """A redirect's own address and token, where the fault left them open."""
        body = reply.body
        if not isinstance(body, dict) or "url" not in body:
            return reply
        url = (
            body["url"] or f"{request.scheme}://{request.host}{request.path[: -len('/negotiate')]}"
        )
        token = {"accessToken": self._new_token()} if "accessToken" in body else {}
        return Reply(reply.status, {**body, "url": url, **token}, reply.headers)

    def _admits(self, hub: str, request: web.Request) -> bool:
        if hub in self._open_to_all or self._accepts(_token(request)[0]):
            return True
        self._counts["unauthorized"] += 1
        return False

    def _dialled(
        self, hub: str, route: str, request: web.Request, status: int, *, reattached: bool = False
    ) -> None:
        self._counts["hub_dials"] += 1
        self.dials.append(
            Dial(
                hub=hub,
                route=route,
                at=self._clock.boottime(),
                status=status,
                token_in=_token(request)[1],
                reattached=reattached,
            )
        )
        self._inside.changed()


def _token(request: web.Request) -> tuple[str, str]:
    """The bearer of a request and where it stood."""
    header = bearer(request)
    if header:
        return header, "header"
    query = request.query.get("access_token", "")
    return query, "query" if query else ""


def _transport(request: web.Request) -> Transport:
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return Transport.WEBSOCKETS
    if "text/event-stream" in request.headers.get("Accept", ""):
        return Transport.EVENTS
    return Transport.POLLING
