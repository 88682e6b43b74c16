"""A stream that a bot can rely on: connected again after any interruption, whole again, and honest about what it shows.

Invariants: what is subscribed outlives every connection; a message goes to each of its callbacks once; no callback,
however slow, stops pings or other callbacks; a bot can ask at any moment whether what it sees is the present; after
`disconnect` no task of ours is left.
"""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import Closed, ConfigError, StreamNotLive
from keepline.stream.announcing import Announcer, Until
from keepline.stream.delivery import Callback
from keepline.stream.dial_budget import DialLimiter, process_dials
from keepline.stream.events import (
    STATE_NUMBERS,
    ConnectionState,
    StreamEvent,
    StreamMessage,
)
from keepline.stream.health import HealthStatus, HealthWatch
from keepline.stream.intake import EventRouter, Intake, VenueTime
from keepline.stream.keeper import Keeper
from keepline.stream.port import KeyOf, Link, Reconciling, Topic, key_of_first_text
from keepline.stream.redial import Fault
from keepline.stream.rounds import Rounds
from keepline.stream.routing import ConflateBy
from keepline.stream.settings import StreamSettings
from keepline.stream.subscriptions import Registry, Standing
from keepline.stream.tokens import StreamTokens

__all__ = ["EventRouter", "StreamManager", "Until", "VenueTime"]

log = logging.getLogger("keepline.stream")

_STATE = telemetry.REGISTRY.gauge(
    "stream_state", "0 disconnected, 1 connecting, 2 connected, 3 reconnecting, 4 failed.", "stream"
)
_LIVE = telemetry.REGISTRY.gauge("stream_live", "Whether a stream shows the present.", "stream")
_LAST_DATA = telemetry.REGISTRY.gauge(
    "stream_last_data_timestamp_seconds", "When data of a stream last arrived.", "stream"
)
_MANAGERS: "weakref.WeakSet[StreamManager]" = weakref.WeakSet()


class StreamManager:
    """One stream of a broker, kept.

    Example:
        ```python
        async with StreamManager(lambda: WireLink(MyWire, url, tokens), name="market") as market:
            market.subscribe(Topic("quotes", ("SUBS", "MNQ"), key="MNQ", cadence=60), on_quote)
            market.require_live("quotes")
        ```

    Args:
        factory: makes a link for each attempt.
        name: how logs, metrics and events call it.
        settings: what is done when.
        tokens: what the links ask for their token; told when one was refused.
        event_router: gets every message beside the callbacks: an object with `route(event)` or a callable.
        key_of: tells to which topic of a channel a message belongs.
        venue_time: tells when the venue says that a message happened, for the event lag.
        dial_limiter: the budget of dials; the process's by default.
        clock: time and chance.

    Raises:
        ConfigError: a setting makes no sense.
    """

    def __init__(
        self,
        factory: Callable[[], Link],
        *,
        name: str = "stream",
        settings: StreamSettings | None = None,
        tokens: StreamTokens | None = None,
        event_router: EventRouter | Callable[[StreamMessage], object] | None = None,
        key_of: KeyOf = key_of_first_text,
        venue_time: VenueTime | None = None,
        dial_limiter: DialLimiter | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        settings = settings or StreamSettings()
        self.name = name
        self._settings = settings
        self._clock = clock
        self._announcer = Announcer(name, clock)
        self._registry = Registry(parallel=settings.parallel)
        self._watch = HealthWatch(
            heartbeat=settings.heartbeat, stale_after=settings.stale_after, ladder=settings.ladder
        )
        self._rounds = Rounds(
            clock=clock, timeout=settings.reconcile_timeout, limit=settings.mailbox
        )
        self._intake = Intake(
            name=name,
            settings=settings,
            key_of=key_of,
            venue_time=venue_time,
            event_router=event_router,
            registry=self._registry,
            watch=self._watch,
            rounds=self._rounds,
            clock=clock,
            tell=self._announcer.tell,
            first_data=lambda: self._keeper.proof_of_life(),
            wake=lambda: self._keeper.wake(),
        )
        self._router = self._intake.router
        self._keeper = Keeper(
            factory,
            name=name,
            settings=settings,
            registry=self._registry,
            watch=self._watch,
            rounds=self._rounds,
            tokens=tokens,
            limiter=dial_limiter or process_dials(clock),
            clock=clock,
            tell=self._announcer.tell,
            deliver=self._intake.arrived,
            forward=self._intake.forward,
        )
        self._task: asyncio.Task[None] | None = None
        _MANAGERS.add(self)

    # --- the connection ---

    async def __aenter__(self) -> "StreamManager":
        try:
            await self.connect()
        except BaseException:
            await self.disconnect()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def connect(self, *, until: Until = "connected") -> None:
        """Connect and stay connected.

        Returns when the stream is up; attempts go on until then, without end unless `attempts` is set. Who stops
        waiting (a cancelled or timed out call) stops waiting only: `disconnect` ends the attempts.

        Args:
            until: `connected`, or `live`: subscribed, reconciled and fresh.

        Raises:
            APIError: the stream has FAILED: the server asked us not to come back, or the attempts are used up.
            Closed: `disconnect` came first.
        """
        while self._task is not None and self._task.cancelling() and not self._task.done():
            await asyncio.wait(
                {self._task}
            )  # two lives of one stream would get in each other's way
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._keeper.run(), name=f"stream {self.name}"
            )
            self._task.add_done_callback(self._kept_no_more)
        elif self.is_live or (until == "connected" and self.state is ConnectionState.CONNECTED):
            return
        await self._announcer.wait(until)

    async def disconnect(self) -> None:
        """Close the connection and let callbacks end, within `stop_timeout` each; what is wanted stays wanted."""
        task = self._task
        if task is not None:
            if not task.cancelling():
                task.cancel()
            await asyncio.wait({task})  # who stops waiting does not stop the stop
            if self._task is task:
                self._task = None
                for metric in (_STATE, _LIVE, _LAST_DATA):
                    metric.forget(self.name)
        seconds = self._settings.stop_timeout
        await asyncio.gather(self._intake.close(seconds), self._announcer.close(seconds))

    def renew(self, reason: str = "a newer token") -> None:
        """Take a new connection, with a newly asked token, in the place of this one.

        Where the broker allows two the new one is filled first and nothing is missed or told twice; otherwise the old
        one goes first. Without a connection the next one asks for its token anyway; if it waits because the last token
        was refused, it waits no longer than the schedule says.
        """
        self._keeper.renew(reason)

    def allow_failures(self, attempts: int | None) -> None:
        """Let so many dials in a row fail from now on, whatever the settings say; None goes on for ever.

        Who wants a first connection soon, and to keep it for good, asks for few attempts until `connect` returns.
        """
        self._keeper.allow(attempts)

    def reconnect(self, reason: str, *, fault: Fault = Fault.STALE) -> None:
        """Drop the connection and make a new one: the caller knows that it is no good.

        Args:
            reason: in words, without secrets.
            fault: by which rule to come back.
        """
        if self.state is ConnectionState.CONNECTED:
            self._keeper.give_up(fault, reason)

    @property
    def link(self) -> Link:
        """The connection that is up, for calls that only its broker knows.

        Raises:
            StreamNotLive: none is.
        """
        if (carrier := self._keeper.carrier) is None:
            raise self._not_live([f"{self.state.value}: {self._keeper.reason}".rstrip(": ")])
        return carrier.link

    # --- what is wanted ---

    def subscribe(
        self,
        topic: Topic | str,
        callback: Callback | None = None,
        *,
        inline: bool = False,
        conflate_by: ConflateBy | None = None,
    ) -> Callable[[], None]:
        """Want a topic, now and after every reconnect.

        Args:
            topic: what; a text is a channel that the broker fills without being asked.
            callback: called as `callback(*arguments)`: a coroutine function in a task of its own, a plain one in a
                thread of its own; None when the event router is enough.
            inline: a plain function runs on the event loop at once: only for what never blocks.
            conflate_by: under which key messages replace each other (policy `conflate`); the topic's key by default.

        Returns:
            A function that ends it.

        Raises:
            ConfigError: the same channel and key are wanted with another request or policy already.
        """
        topic = Topic(topic) if isinstance(topic, str) else topic
        subscriber = self._router.add(
            topic, callback or _nothing, inline=inline or callback is None, conflate_by=conflate_by
        )
        try:
            first = self._registry.want(topic)
        except ConfigError:
            self._router.remove(subscriber)
            raise
        if first:
            self._watch.watch(topic)
        self._keeper.wake()

        def unsubscribe() -> None:
            if self._router.remove(subscriber) and self._registry.release(topic):
                self._watch.unwatch(topic)
                self._keeper.wake()

        return unsubscribe

    def add_reconciler(
        self,
        reconciler: Reconciling | Callable[[], Awaitable[object]],
        *,
        channels: Collection[str] | None = None,
    ) -> Callable[[], None]:
        """Run something after each connect, before the stream is live.

        Args:
            reconciler: an object with `begin`, `reconcile` and `lost`, or an async function; one that raises is called
                again.
            channels: whose messages are kept back until it is done. None: an object keeps them by itself; for a
                function those of every `never` topic.

        Returns:
            A function that removes it.
        """
        remove = self._rounds.add(reconciler, channels)
        if self.state is ConnectionState.CONNECTED:
            self._rounds.request("a reconciler was added")
            self._keeper.wake()
        return remove

    def request_reconciliation(self, reason: str) -> None:
        """Something may have been missed: reconcile again, and be live after that."""
        self._rounds.request(reason)
        self._keeper.wake()

    def on_event(
        self, callback: Callable[[StreamEvent], object], *, inline: bool = False
    ) -> Callable[[], None]:
        """Be told what changes; returns a function that ends it.

        Args:
            callback: a coroutine function or a plain one, each with a worker of its own.
            inline: a plain function runs on the event loop at once: only for what never blocks.
        """
        return self._announcer.add(callback, inline=inline, let_go=self._router.let_go)

    # --- what may be believed ---

    @property
    def state(self) -> ConnectionState:
        """Whether there is a connection, which says nothing about its data."""
        return self._keeper.state

    @property
    def health(self) -> HealthStatus:
        """How far the stream can be relied on; `reasons` says why."""
        status = self._watch.health.status
        if status is HealthStatus.HEALTHY and (not self.is_live or any(self._intake.stuck())):
            return HealthStatus.DEGRADED
        return status

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong, in words, the worst first; empty when nothing is."""
        blind = (
            self.blind() if self.state is ConnectionState.CONNECTED else ()
        )  # told by the health
        words = (*self._watch.health.reasons, *blind, *self._intake.stuck())
        return tuple(dict.fromkeys(words))

    @property
    def is_live(self) -> bool:
        """Whether everything that is wanted shows the present."""
        return not self.blind()

    def blind(self, channel: str | None = None, key: str | None = None) -> list[str]:
        """Why it does not show the present, empty when it does.

        Args:
            channel: ask about one channel only.
            key: ask about one topic of it only.
        """
        topics = [
            topic
            for topic in self._registry.wanted
            if channel in (None, topic.channel) and key in (None, topic.key)
        ]
        if channel is not None and not topics:
            return [f"{channel}{' ' + key if key else ''} is not subscribed"]
        return self._keeper.blind(topics)

    def require_live(self, channel: str | None = None, key: str | None = None) -> None:
        """Refuse to go on while blind.

        Raises:
            StreamNotLive: what is shown is not the present, with the reasons.
        """
        if reasons := self.blind(channel, key):
            raise self._not_live(reasons)

    @property
    def last_data_at(self) -> datetime | None:
        """When data last arrived (aware, UTC), None when never."""
        return self._wall_of(self._intake.last_data)

    def last_data(self, topic: Topic) -> datetime | None:
        """When data of a topic last arrived, over all connections (aware, UTC), None when never."""
        return self._wall_of(self._watch.last_data(topic))

    @property
    def standings(self) -> list[Standing]:
        """Where each wanted topic stands, in the order in which they were wanted."""
        return self._registry.standings()

    def stats(self) -> dict[str, Any]:
        """Numbers and texts for a status page."""
        deliveries = self._intake.deliveries()
        return {
            "state": self.state.value,
            "health": self.health.value,
            "live": self.is_live,
            "reasons": list(self.reasons),
            "last_data": self.last_data_at,
            "topics": {one.topic.name: one.phase.value for one in self.standings},
            "queued": sum(delivery.queued for delivery in deliveries),
            "delivered": sum(delivery.delivered for delivery in deliveries),
            "callback_errors": sum(delivery.errors for delivery in deliveries),
            "unreadable": self._intake.unreadable,
        }

    def _wall_of(self, at: float | None) -> datetime | None:
        if at is None:
            return None
        return self._clock.wall() - timedelta(seconds=self._clock.boottime() - at)

    # --- the end ---

    def _kept_no_more(self, task: asyncio.Task[None]) -> None:
        error: BaseException = self._keeper.error or Closed(f"stream {self.name} was disconnected")
        if not task.cancelled() and task.exception() is not None:
            error = task.exception() or error
            log.error("the keeper of %s failed", self.name, exc_info=error)
        self._announcer.fail(error)

    def _not_live(self, reasons: Sequence[str]) -> StreamNotLive:
        message = f"stream {self.name} is not live: {'; '.join(reasons)}"
        return StreamNotLive(message, stream=self.name, reasons=reasons)

    def show_metrics(self) -> None:
        """Bring this stream's numbers to the registry, as its reader asks."""
        if self._task is None:
            return
        _STATE.set(STATE_NUMBERS[self.state], self.name)
        _LIVE.set(float(self.is_live), self.name)
        if (last := self.last_data_at) is not None:
            _LAST_DATA.set(last.timestamp(), self.name)

    def __repr__(self) -> str:
        return f"<StreamManager {self.name} {self.state.value}, {self.health.value}>"


def _bring() -> None:
    for manager in list(_MANAGERS):
        manager.show_metrics()


for _metric in (_STATE, _LIVE, _LAST_DATA):
    _metric.gather_from(_bring)


def _nothing(*_: Any) -> None:
    """The event router is enough."""
