"""Telling bots what changes, and those who wait that it has come.

Invariants: each listener has a worker of its own, so that none holds up another; who waits is answered once.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

from keepline import telemetry
from keepline.clock import Clock
from keepline.stream.delivery import Callback, Delivery
from keepline.stream.events import EventKind, StreamEvent
from keepline.stream.port import Topic

__all__ = ["Announcer", "Until"]

log = logging.getLogger("keepline.stream")

Until: TypeAlias = Literal["connected", "live"]
"""How far a connect waits: for the connection, or for data that shows the present."""

_LEVELS = {
    EventKind.STALE: logging.WARNING,
    EventKind.LOST: logging.WARNING,
    EventKind.OVERFLOW: logging.ERROR,
    EventKind.ALARM: logging.ERROR,
}
_WAITING = 1000  # events for one listener: a stream has a few in a bad minute


class Announcer:
    """The listeners of one stream and those who wait for it.

    Args:
        name: of the stream.
        clock: time.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._listeners: dict[object, tuple[Callback, bool, Delivery]] = {}
        self._waiters: list[tuple[Until, asyncio.Future[None]]] = []

    def add(
        self, callback: Callback, *, inline: bool, let_go: Callable[[Delivery], None]
    ) -> Callable[[], None]:
        """Add a listener; returns what removes it and hands its worker to `let_go`."""
        token = object()
        self._listeners[token] = (callback, inline, self._worker(callback, inline=inline))

        def remove() -> None:
            entry = self._listeners.pop(token, None)
            if entry is not None:
                let_go(entry[2])

        return remove

    def tell(self, kind: EventKind, topic: Topic | None, reason: str) -> None:
        """Log an event, answer who waited for it, hand it to every listener."""
        channel, key = ("", "") if topic is None else (topic.channel, topic.key)
        telemetry.event(
            log, _LEVELS.get(kind, logging.INFO), f"Stream {kind.value.replace('_', ' ')}",
            stream=self._name, channel=channel, key=key, reason=reason,
        )  # fmt: skip
        told = StreamEvent(kind, self._name, self._clock.wall(), channel, key, reason)
        if topic is None and kind in (EventKind.CONNECTED, EventKind.LIVE):
            self._reached(kind)
        for _, _, delivery in list(self._listeners.values()):
            delivery.push((told,))

    async def wait(self, until: Until) -> None:
        """Return at the next `CONNECTED` or `LIVE` of the stream, or raise what `fail` is given."""
        entry = (until, asyncio.get_running_loop().create_future())
        self._waiters.append(entry)
        try:
            await entry[1]
        finally:
            self._waiters.remove(entry)

    def fail(self, error: BaseException) -> None:
        """It will not come: raise this to who waits."""
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    async def close(self, seconds: float) -> None:
        """Let every worker go, each with that long for what waits; a later event starts new ones."""
        old = [delivery for _, _, delivery in self._listeners.values()]
        for token, (callback, inline, _) in list(self._listeners.items()):
            self._listeners[token] = (callback, inline, self._worker(callback, inline=inline))
        await asyncio.gather(*(delivery.close(drain_seconds=seconds) for delivery in old))

    def _worker(self, callback: Callback, *, inline: bool) -> Delivery:
        return Delivery(
            callback, channel="events", limit=_WAITING, inline=inline, clock=self._clock
        )

    def _reached(self, kind: EventKind) -> None:
        for until, waiter in self._waiters:
            if not waiter.done() and (until == "connected" or kind is EventKind.LIVE):
                waiter.set_result(None)

    def __repr__(self) -> str:
        return f"<Announcer {self._name}, {len(self._listeners)} listeners>"
