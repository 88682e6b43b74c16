"""What a stream brings, on its way to callbacks and to the event router.

Invariants: a message makes its topics fresh, then goes to each of its callbacks once, or is kept back for a
reconciliation that runs; one that cannot be read is counted and ends nothing; nothing here waits.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from keepline.clock import Clock
from keepline.errors import ConfigError
from keepline.stream.delivery import Callback, Delivery, Overflow
from keepline.stream.escalation import Told
from keepline.stream.events import EventKind, StreamMessage
from keepline.stream.health import HealthWatch
from keepline.stream.port import KeyOf, Topic
from keepline.stream.rounds import Rounds
from keepline.stream.routing import Route, Router
from keepline.stream.settings import StreamSettings
from keepline.stream.subscriptions import Registry

__all__ = ["EventRouter", "Intake", "VenueTime"]

log = logging.getLogger("keepline.stream")

VenueTime: TypeAlias = Callable[[str, Sequence[Any]], float | None]
"""Channel and arguments to the event's time at the venue (epoch seconds), None when it carries none."""


class EventRouter(Protocol):
    """Gets every message of a stream."""

    def route(self, event: StreamMessage) -> object:
        """Take a message; may be a coroutine function."""
        ...


class Intake:
    """The messages of one stream.

    Args:
        name: of the stream.
        settings: how much may wait, and how long a callback may take before it counts as stuck (`heartbeat`).
        key_of: tells to which topic of a channel a message belongs.
        venue_time: tells when the venue says that a message happened; None when no message says so.
        event_router: gets every message beside the callbacks; None for none.
        registry: told of the first data of a topic on a connection.
        watch: told of all data.
        rounds: keeps messages back while something is asked for.
        clock: time.
        tell: gets what a bot should know.
        first_data: called at the first data of a topic on a connection.
        wake: called when there is something to look at.

    Attributes:
        router: the callbacks.
        last_data: when data last arrived (boottime seconds), None when never.
        unreadable: messages whose key, time or place could not be worked out.

    Raises:
        ConfigError: the event router is none.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: StreamSettings,
        key_of: KeyOf,
        venue_time: VenueTime | None,
        event_router: EventRouter | Callable[[StreamMessage], object] | None,
        registry: Registry,
        watch: HealthWatch,
        rounds: Rounds,
        clock: Clock,
        tell: Told,
        first_data: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self._name = name
        self._settings = settings
        self._venue_time = venue_time
        self._event_router = None if event_router is None else _callback_of(event_router)
        self._registry = registry
        self._watch = watch
        self._rounds = rounds
        self._clock = clock
        self._tell = tell
        self._first_data = first_data
        self._wake = wake
        self._routing: Delivery | None = None
        self.router = Router(
            key_of=key_of, mailbox=settings.mailbox, on_overflow=self._overflowed, clock=clock
        )
        self.last_data: float | None = None
        self.unreadable = 0

    def arrived(self, epoch: int, channel: str, arguments: Sequence[Any], at: float) -> None:
        """A message came on the connection of that number."""
        try:
            key = self.router.key_of(channel, arguments)
            route = self.router.route(channel, key)
            self._note(route, epoch, channel, arguments, at)
            if not self._rounds.holds(channel, never=route.never):
                self._push(route, key, channel, arguments, at)
            elif not self._rounds.keep((channel, arguments, at)):
                self._hold_is_full(channel)
        except Exception:
            self._cannot_read(channel)

    def forward(self, channel: str, arguments: Sequence[Any], at: float) -> None:
        """A message that was kept back goes on."""
        try:
            key = self.router.key_of(channel, arguments)
            self._push(self.router.route(channel, key), key, channel, arguments, at)
        except Exception:
            self._cannot_read(channel)

    def stuck(self) -> Iterator[str]:
        """The callbacks that have not returned for longer than a heartbeat, in words."""
        now = self._clock.boottime()
        for delivery in self.deliveries():
            seconds = delivery.stuck_for(now)
            if seconds >= self._settings.heartbeat:
                waiting = f"{delivery.queued} messages of {delivery.channel} wait for it"
                yield f"{delivery.name} has not returned for {seconds:.0f} s, {waiting}"

    def deliveries(self) -> list[Delivery]:
        """Every mailbox: those of the callbacks and that of the event router."""
        own = [] if self._routing is None else [self._routing]
        return [*self.router.deliveries(), *own]

    async def close(self, seconds: float) -> None:
        """Let every worker go, each with that long for what waits; a later message starts new ones."""
        routing, self._routing = self._routing, None
        if routing is not None:
            self.router.let_go(routing, seconds)
        await self.router.close(seconds)

    def _note(
        self, route: Route, epoch: int, channel: str, arguments: Sequence[Any], at: float
    ) -> None:
        self.last_data = at
        venue_at = None if self._venue_time is None else self._venue_at(channel, arguments)
        for ident in route.idents:
            if self._watch.data(ident, at, venue_at):
                self._tell(EventKind.LIVE, Topic(ident[0], key=ident[1]), "data is back")
                self._wake()
            if self._registry.data(ident, epoch):
                self._first_data()
                self._tell(EventKind.FIRST_DATA, Topic(ident[0], key=ident[1]), "")
                self._wake()

    def _venue_at(self, channel: str, arguments: Sequence[Any]) -> float | None:
        assert self._venue_time is not None
        try:
            return self._venue_time(channel, arguments)
        except Exception:
            self._cannot_read(channel)  # its time alone: the message goes on
            return None

    def _push(
        self, route: Route, key: str, channel: str, arguments: Sequence[Any], at: float
    ) -> None:
        if self._event_router is not None:
            if self._routing is None:
                self._routing = Delivery(
                    self._event_router,
                    channel="event router",
                    limit=self._settings.mailbox,
                    on_overflow=self._overflowed,
                    clock=self._clock,
                )
            self._routing.push((StreamMessage(self._name, channel, arguments, at),))
        self.router.push(route, arguments, key)

    def _cannot_read(self, channel: str) -> None:
        self.unreadable += 1
        if self.unreadable & (self.unreadable - 1) == 0:  # a log is not a flood
            log.exception("a message of %s on %s cannot be read", self._name, channel)

    def _overflowed(self, overflow: Overflow) -> None:
        name = f"overflow {overflow.channel}"
        if overflow.over:
            self._watch.clear(name)
            self._rounds.request(f"{overflow.missing} messages of {overflow.channel} were lost")
            self._wake()
            return
        words = f"{overflow.callback} is too slow: messages of {overflow.channel} are lost"
        self._watch.note(name, words)
        self._tell(EventKind.OVERFLOW, Topic(overflow.channel), words)

    def _hold_is_full(self, channel: str) -> None:
        if self._rounds.overflowed == 1:
            words = "more messages came during a reconciliation than could be kept"
            self._tell(EventKind.OVERFLOW, Topic(channel), words)

    def __repr__(self) -> str:
        return f"<Intake of {self._name}, {self.router!r}, {self.unreadable} unreadable>"


def _callback_of(router: EventRouter | Callable[[StreamMessage], object]) -> Callback:
    if callable(route := getattr(router, "route", None)):
        return route  # type: ignore[no-any-return]
    if callable(router):
        return router
    raise ConfigError("an object with route(event) or a callable is needed", key="event_router")
