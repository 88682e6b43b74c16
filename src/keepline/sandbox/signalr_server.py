"""The sandbox's SignalR server: its three hubs on the sandbox's port, their connections and the beat that drives them.

Invariants: the venue's time goes by once a second while somebody is connected, and not otherwise; a request that
changes the market is told to subscribers before it is answered; what a fault does at once is done when it is asked for.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from keepline.clock import Clock
from keepline.sandbox.faults import Fault, Faults
from keepline.sandbox.faulttable import number
from keepline.sandbox.market import Market
from keepline.sandbox.signalr_callwork import Hub
from keepline.sandbox.signalr_connection import HubConnection
from keepline.sandbox.signalr_endpoint import Endpoint, Seat, Transport
from keepline.sandbox.signalr_gate import Dial, Gate, Token
from keepline.sandbox.signalr_hubs import LOGOUT, MARKET, USER, Feed, Topic
from keepline.sandbox.signalr_projectx import ProjectXHub
from keepline.sandbox.signalr_testhub import TestHub
from keepline.sandbox.signalr_wire import Limits, ServerWire
from keepline.stream.handshake import HandshakeRequest

__all__ = ["HUB_COUNTERS", "SignalRServer", "SignalRSettings"]

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

_OPEN_TO_ALL = ("test",)
_MARKET_DATA = (Topic.QUOTES, Topic.MARKET_TRADES, Topic.DEPTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRSettings:
    """How the hubs behave.

    Attributes:
        limits: times and sizes of a conversation.
        beat: seconds between two looks at the venue and at every connection.
    """

    limits: Limits = Limits()  # noqa: RUF009 - frozen
    beat: float = 1.0


class SignalRServer:
    """The hubs; `SandboxServer.signalr` is one.

    Attributes:
        connections: those that are not over, oldest first.
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
        self.last_handshake: HandshakeRequest | None = None
        self._market, self._accepts = market, accepts
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
        self._gate = Gate(
            self,
            self._endpoints,
            open_to_all=_OPEN_TO_ALL,
            accepts=accepts,
            new_token=new_token,
            faults=faults,
            clock=clock,
            counts=counts,
        )
        self._beating: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    # --- for tests ---

    @property
    def dials(self) -> Sequence[Dial]:
        """Requests that reached for a hub, oldest first: the last ten thousand."""
        return tuple(self._gate.dials)

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
        """Return once something holds that follows from connections coming, going or being answered."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # --- for the sandbox ---

    def routes(self) -> Iterator[tuple[str, str, Any]]:
        """Method, path and handler of every address."""
        return self._gate.routes()

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
                self._market().fill_working(number(said["part"]), now=self._venue_now())
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

    # --- connections ---

    def connect(self, hub: str, seat: Seat, token: Token) -> HubConnection:
        """A new connection."""
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
            changed=self.changed,
            over=self._forget,
            token=token[0],
            token_in=token[1],
        )
        self.begin()
        self.connections.append(connection)
        self._changed.set()
        return connection

    def connection_of(self, seat: Seat) -> HubConnection:
        """The one that sits there."""
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
        if connection.hub.name in _OPEN_TO_ALL or self._accepts(connection.token):
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

    def changed(self) -> None:
        """Something happened that `until` may wait for."""
        self._changed.set()

    def begin(self) -> None:
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

    def __repr__(self) -> str:
        return f"<SignalRServer {len(self.connections)} connections, {len(self.dials)} dials>"
