"""A connection to one of ProjectX's endpoints whose messages are in our words.

Invariants: every message is read before anything may pass over it; what the reader cannot say becomes a doubt, not a
loss; after `GatewayLogout` nothing is heard from the connection any more, and it ends.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from keepline import telemetry
from keepline.brokers.projectx.displaced import Displaced
from keepline.brokers.projectx.stream_messages import LOGOUT
from keepline.brokers.projectx.stream_reading import Doubt, Heard
from keepline.stream.port import Link, Lost, Sink, Topic

__all__ = ["ProjectXLink", "Read"]

log = logging.getLogger("keepline.stream")

Read: TypeAlias = Callable[[str, Sequence[Any]], Sequence[Heard | Doubt]]
"""A reader: channel and arguments as they came to what they say."""

_UNREAD = telemetry.REGISTRY.counter(
    "stream_unreadable_total", "Events that could not be read, or that take something back.", "channel"
)  # fmt: skip


class ProjectXLink:
    """A `Link` around another one.

    Args:
        inner: the connection itself.
        read: reads what arrives.
        doubt: is told of what could not be read.
        displaced: remembers how often another session took our place.
        heard: gets each value before the sink does; for what must not wait.
        ended: is told once how the connection ended.
    """

    def __init__(
        self,
        inner: Link,
        *,
        read: Read,
        doubt: Callable[[Doubt], object],
        displaced: Displaced,
        heard: Callable[[Heard], object] | None = None,
        ended: Callable[[Lost], object] | None = None,
    ) -> None:
        self._inner = inner
        self._read = read
        self._doubt = doubt
        self._displaced = displaced
        self._heard = heard
        self._tell_end = ended
        self._sink: Sink | None = None
        self._ended: Lost | None = None
        self._end = asyncio.Event()

    async def open(self, sink: Sink) -> None:
        """Connect; values go to `sink` as `(key, value)` from then on.

        Raises:
            APIError: as the connection says.
        """
        self._sink = sink
        await self._inner.open(self._hear)

    async def subscribe(self, topic: Topic) -> None:
        """Ask for a topic; one that comes without asking needs nothing."""
        await self._inner.subscribe(topic)

    async def unsubscribe(self, topic: Topic) -> None:
        """End a topic."""
        await self._inner.unsubscribe(topic)

    async def probe(self) -> bool | None:
        """Ask something that the server must answer."""
        return await self._inner.probe()

    async def close(self) -> None:
        """Let go of the connection."""
        self._say_ended(self._ended or Lost("stopped"))
        await self._inner.close()

    async def closed(self) -> Lost:
        """Return once the connection has ended, or another session has taken its place."""
        inner = asyncio.ensure_future(self._inner.closed())
        ours = asyncio.ensure_future(self._end.wait())
        try:
            await asyncio.wait({inner, ours}, return_when=asyncio.FIRST_COMPLETED)
            lost = self._ended if self._ended is not None else inner.result()
            self._say_ended(lost)
            return lost
        finally:
            inner.cancel()
            ours.cancel()
            await asyncio.gather(inner, ours, return_exceptions=True)

    def _hear(self, channel: str, arguments: Sequence[Any], at: float) -> None:
        if self._ended is not None or self._sink is None:
            return
        if channel == LOGOUT:
            self._logout(at)
            return
        for found in self._read(channel, arguments):
            if isinstance(found, Heard):
                if self._heard is not None:
                    self._heard(found)
                self._sink(channel, (found.key, found.value), at)
            else:
                _UNREAD.inc(channel)
                self._doubt(found)

    def _logout(self, at: float) -> None:
        self._ended = self._displaced.logout(at)
        telemetry.event(
            log, logging.ERROR, "Stream displaced",
            reason=self._ended.error, times=self._displaced.times,
        )  # fmt: skip
        self._end.set()

    def _say_ended(self, lost: Lost) -> None:
        tell, self._tell_end = self._tell_end, None
        if tell is not None:
            tell(lost)

    def __repr__(self) -> str:
        return f"<ProjectXLink {self._inner!r}>"
