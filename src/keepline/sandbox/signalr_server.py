"""The sandbox's SignalR server: its three hubs on the sandbox's port, their connections and the beat that drives them.

Invariants: the venue's time goes by once a second while somebody is connected, and not otherwise; a request that
changes the market is told to subscribers before it is answered; what a fault does at once is done when it is asked for.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from keepline.clock import Clock, within
from keepline.sandbox.faults import Fault, Faults, Plan
from keepline.sandbox.market import Market
from keepline.sandbox.replies import bearer, cut, response
from keepline.sandbox.signalr_connection import Hub, HubConnection
from keepline.sandbox.signalr_endpoint import Endpoint, Place, Seat, Transport
from keepline.sandbox.signalr_hubs import LOGOUT, MARKET, USER, Feed, Topic
from keepline.sandbox.signalr_projectx import ProjectXHub
from keepline.sandbox.signalr_testhub import TestHub
from keepline.sandbox.signalr_transports import (
    serve_events,
    serve_poll,
    serve_send,
    serve_websocket,
)
from keepline.sandbox.signalr_wire import Limits, ServerWire
from keepline.sandbox.venue import Reply
from keepline.stream.handshake import HandshakeRequest

__all__ = ["HUB_COUNTERS", "Dial", "SignalRServer", "SignalRSettings"]

HUB_COUNTERS = (
    "hub_connections",
    "hub_subscriptions",
    "hub_dials",
    "hub_negotiations",
    "hub_handshakes",
    "hub_reattached",
    "hub_events",
    "hub_messages",
)
"""What `stats()` tells about hubs: the first two are of now, the others only go up."""

_MOST_DIALS = 10_000
_REATTACH_WAIT = 0.5
_MARKET_DATA = (Topic.QUOTES, Topic.MARKET_TRADES, Topic.DEPTH)
_UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRSettings:
    """How the hubs behave.

    Attributes:
        limits: times and sizes of a conversation.
        beat: seconds between two looks at the venue and at every connection.
    """

    limits: Limits = Limits()  # noqa: RUF009 - frozen
    beat: float = 1.0


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


class SignalRServer:
    """The hubs; `SandboxServer.signalr` is one.

    Attributes:
        connections: those that are not over, oldest first.
        dials: requests that reached for a hub, the last ten thousand.
        last_handshake: as the client asked for it, None before the first.

    Args:
        market: the market as of now.
        accepts: whether a token opens the venue now.
        new_token: a fresh one, for redirects.
        faults: those in force.
        clock: time and delays.
        counts: where things are counted.
        seed: of ids and of market data.
        settings: how the hubs behave.
    """

    def __init__(
        self,
        *,
        market: Callable[[], Market],
        accepts: Callable[[str], bool],
        new_token: Callable[[], str],
        faults: Faults,
        clock: Clock,
        counts: Counter[str],
        seed: int,
        settings: SignalRSettings | None = None,
    ) -> None:
        self.connections: list[HubConnection] = []
        self.dials: deque[Dial] = deque(maxlen=_MOST_DIALS)
        self.last_handshake: HandshakeRequest | None = None
        self._market, self._accepts, self._new_token = market, accepts, new_token
        self._faults, self._clock, self._counts = faults, clock, counts
        self._settings = settings or SignalRSettings()
        self._feed: Feed | None = None
        self._seed = seed
        self._user = self._projectx("user", USER)
        self._data = self._projectx("market", MARKET)
        self._hubs: dict[str, Hub] = {
            "user": self._user,
            "market": self._data,
            "test": TestHub(clock),
        }
        self._endpoints = {name: Endpoint(name, seed=seed) for name in self._hubs}
        self._beating: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    # --- for tests ---

    def cut(self, how: str = "abort", *, hub: str = "", error: str = "") -> int:
        """End open connections, of one hub when it is named; how many.

        Args:
            how: `abort` (1006), `bye` (1000), `close` (a Close message that forbids to reconnect) or
                `close_reconnect`.
            hub: `user`, `market` or `test`.
            error: of the Close message.
        """
        found = list(self._of(hub))
        for connection in found:
            connection.cut(how, error=error)
        return len(found)

    def push(self, target: str, *arguments: object, hub: str = "") -> int:
        """Send an event to open connections, whatever they subscribed to; how many.

        Args:
            target: the event's name.
            *arguments: its arguments.
            hub: to those of one hub.
        """
        found = list(self._of(hub))
        for connection in found:
            connection.event(target, arguments)
        return len(found)

    def pump(self) -> None:
        """Tell subscribers what happened to accounts since the last look."""
        market = self._market()
        if self._feed is not None:
            self._user.tell(self._of("user"), self._feed_of(market).user_events())

    def beat(self) -> None:
        """One look at the venue and at every connection: what happens once a second by itself."""
        self.pump()
        contracts = {key for c in self._of("market") for key in c.book.keys(*_MARKET_DATA)}
        if contracts:
            ticks = self._feed_of(self._market()).ticks(contracts, now=self._venue_now())
            self._data.tell(self._of("market"), ticks)
        for connection in list(self.connections):
            self._expire(connection)
            connection.tick()
        now = self._clock.boottime()
        ended = {seat.token for e in self._endpoints.values() for seat in e.sweep(now=now)}
        for connection in list(self.connections):
            if connection.seat.token in ended:
                connection.finish()

    def stats(self) -> dict[str, int]:
        """The counters of `HUB_COUNTERS`."""
        now = {
            "hub_connections": len(self.connections),
            "hub_subscriptions": sum(len(c.book) for c in self.connections),
            "hub_events": self._counts["hub_events"] + sum(c.sent for c in self.connections),
            "hub_messages": self._counts["hub_messages"]
            + sum(c.received for c in self.connections),
        }
        return {name: now.get(name, self._counts[name]) for name in HUB_COUNTERS}

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once something holds that follows from connections coming, going or shaking hands."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # --- for the sandbox ---

    def routes(self) -> Iterator[tuple[str, str, Any]]:
        """Method, path and handler of every address."""
        for name in self._hubs:
            yield "POST", f"/hubs/{name}/negotiate", partial(self._negotiate, name)
            yield "GET", f"/hubs/{name}", partial(self._open, name)
            yield "POST", f"/hubs/{name}", partial(self._send, name)
            yield "DELETE", f"/hubs/{name}", partial(self._delete, name)

    def strike(self, fault: Fault) -> None:
        """Do what a fault does at once."""
        said, hubs = fault.parameters, [on.removesuffix("_hub") for on in fault.on]
        match fault.name:
            case "outage" if "websocket" in fault.on:
                self.cut()
            case "cut_stream":
                for hub in hubs:
                    self.cut(str(said["how"]), hub=hub, error=str(said["error"]))
            case "displaced":
                for hub in hubs:
                    self.push(LOGOUT, {"reason": "displaced"}, hub=hub)
                    self.cut(str(said["how"]), hub=hub)
            case "fill_while_away":
                if "user" in hubs:
                    self.cut(hub="user")
                self._market().fill_working(float(str(said["part"])), now=self._venue_now())
                self.pump()

    async def stop(self) -> None:
        """End every connection."""
        for connection in list(self.connections):
            connection.cut("abort")
            connection.finish()
        task, self._beating = self._beating, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # --- requests ---

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
            self._begin()
        self._dialled(hub, "negotiate", request, 0 if plan.lose else reply.status)
        return cut(request) if plan.lose else self._told(reply)

    async def _open(self, hub: str, request: web.Request) -> web.StreamResponse:
        transport = _transport(request)
        route = {Transport.WEBSOCKETS: "websocket", Transport.EVENTS: "events"}.get(
            transport, "polling"
        )
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
        connection = self._connection(hub, seat, request) if is_new else self._connection_of(seat)
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
        if not connection.is_over:
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
        return await serve_send(request, self._connection_of(seat))

    async def _delete(self, hub: str, request: web.Request) -> web.StreamResponse:
        if not self._admits(hub, request):
            return web.Response(status=_UNAUTHORIZED)
        now = self._clock.boottime()
        seat = self._endpoints[hub].deleted(request.query.get("id"), now=now)
        if isinstance(seat, int):
            return web.Response(status=seat)
        connection = self._connection_of(seat)
        connection.wire.close(allow_reconnect=True, now=now)
        connection.wake()
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
        self._dialled(hub, route, request, 0)
        return plan, cut(request)

    async def _still_there(self, seat: Seat) -> bool:
        """Whether the old socket of a stateful connection lives on; one that is dying gets half a second."""
        connection = self._connection_of(seat)
        if not connection.wire.can_reattach:
            return False
        try:
            await within(self._clock, _REATTACH_WAIT, connection.freed())
        except TimeoutError:
            return True
        return False

    async def _end_both(self, request: web.Request, seat: Seat) -> web.StreamResponse:
        """Two sockets for one connection: both end, as at the real server."""
        connection = self._connection_of(seat)
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
        if hub == "test" or self._accepts(_token(request)[0]):
            return True
        self._counts["unauthorized"] += 1
        return False

    # --- connections ---

    def _connection(self, hub: str, seat: Seat, request: web.Request) -> HubConnection:
        token, token_in = _token(request)
        wire = ServerWire(
            now=self._clock.boottime(),
            stateful=seat.stateful,
            polling=seat.transport is Transport.POLLING,
            limits=self._settings.limits,
        )
        connection = HubConnection(
            self._hubs[hub],
            seat,
            wire,
            clock=self._clock,
            strike=partial(self._strike, f"{hub}_hub"),
            parted=self._parted,
            shaken=self._shaken,
            over=self._forget,
            token=token,
            token_in=token_in,
        )
        self._begin()
        self.connections.append(connection)
        self._changed.set()
        return connection

    def _connection_of(self, seat: Seat) -> HubConnection:
        return next(c for c in self.connections if c.seat is seat)

    def _parted(self, connection: HubConnection) -> None:
        endpoint = self._endpoints[connection.hub.name]
        endpoint.detach(connection.seat, keep=True, now=self._clock.boottime())
        self._changed.set()

    def _shaken(self, connection: HubConnection) -> None:
        self.last_handshake = connection.wire.asked
        self._counts["hub_handshakes"] += 1
        self._changed.set()

    def _forget(self, connection: HubConnection) -> None:
        self._endpoints[connection.hub.name].drop(connection.seat)
        self.connections.remove(connection)
        self._counts["hub_events"] += connection.sent
        self._counts["hub_messages"] += connection.received
        self._changed.set()

    def _of(self, hub: str) -> Iterator[HubConnection]:
        """Connections of a hub, or of all, as of now."""
        return (c for c in list(self.connections) if hub in ("", c.hub.name))

    def _expire(self, connection: HubConnection) -> None:
        if connection.hub.name == "test" or self._accepts(connection.token):
            return
        if self._strike(connection.hub.route, ("expiry_close",)):
            connection.cut("close_reconnect")

    def _strike(
        self,
        route: str,
        names: Any,
        *,
        where: Callable[[Fault], bool] = lambda _: True,
    ) -> dict[str, Fault]:
        found = self._faults.strike(names, route, now=self._clock.boottime(), where=where)
        self._counts["faults"] += len(found)
        return found

    # --- time ---

    def _begin(self) -> None:
        """Somebody is there: time goes by, and what happened before is told to nobody."""
        feed = self._feed_of(self._market())
        if not self.connections:
            feed.user_events()
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(self._beat_on())

    async def _beat_on(self) -> None:
        while self.connections or any(e.seats for e in self._endpoints.values()):
            await self._clock.sleep(self._settings.beat)
            self.beat()

    def _projectx(self, name: str, table: Any) -> ProjectXHub:
        return ProjectXHub(
            name,
            table,
            lambda: self._feed_of(self._market()),
            strike=partial(self._strike, f"{name}_hub"),
            now=self._venue_now,
        )

    def _feed_of(self, market: Market) -> Feed:
        if self._feed is None:
            self._feed = Feed(market, seed=self._seed)
        return self._feed

    def _venue_now(self) -> float:
        return self._clock.wall().timestamp()

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
        self._changed.set()

    def __repr__(self) -> str:
        return f"<SignalRServer {len(self.connections)} connections, {len(self.dials)} dials>"


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
