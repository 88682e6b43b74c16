"""Who is here: connections by user and address, and the one timer that looks after all of them.

Invariants: a place is given back whatever happens to its connection; one look a second, however many there are; a
machine that slept blames no client for it.
"""

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from keepline.clock import Clock
from keepline.hub.closecodes import CloseCode
from keepline.hub.connection import CLOSING_SECONDS, Connection
from keepline.hub.measures import CLIENTS, QUEUE_BYTES, SUBSCRIPTIONS
from keepline.telemetry import event

__all__ = ["Attendance", "neighbourhood"]

log = logging.getLogger("keepline.hub")

LOOK_SECONDS = 1.0


class Attendance:
    """All live connections of a process.

    Args:
        clock: time.
        most: by kind (`all`, `address`, `user`), how many connections there may be; 0 for any number.
        public: names of the channels for the metrics.

    Attributes:
        elsewhere: how many places other processes of the hub have taken, by kind and name.
    """

    def __init__(self, clock: Clock, *, most: dict[str, int], public: Iterable[str] = ()) -> None:
        self._clock = clock
        self._most = most
        self._public = tuple(public)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._connections: dict[Connection, None] = {}
        self._lingering: dict[asyncio.Transport, float] = {}
        self._looked = clock.boottime()
        self._empty = asyncio.Event()
        self._empty.set()
        self.elsewhere: Callable[[str, str], int] = _nowhere

    @property
    def connections(self) -> list[Connection]:
        """Who is connected."""
        return list(self._connections)

    def __len__(self) -> int:
        return len(self._connections)

    def take(self, kind: str, name: str) -> bool:
        """A place for one more; False when there is none."""
        most = self._most.get(kind, 0)
        if most and self._counts[kind, name] + self.elsewhere(kind, name) >= most:
            return False
        self._counts[kind, name] += 1
        return True

    def counts(self) -> Mapping[tuple[str, str], int]:
        """The places that are taken here, by kind and name."""
        return self._counts

    def give_back(self, kind: str, name: str) -> None:
        """A place that was taken is free."""
        self._counts[kind, name] -= 1
        if not self._counts[kind, name]:
            del self._counts[kind, name]

    def enter(self, connection: Connection) -> None:
        """A client is here."""
        self._connections[connection] = None
        self._empty.clear()
        CLIENTS.inc()
        client = connection.client
        assert client is not None
        event(log, logging.INFO, "Client connected", client=client.id, total=len(self))

    def exit(self, connection: Connection) -> None:
        """A client is gone."""
        del self._connections[connection]
        CLIENTS.inc(by=-1)
        if not self._connections:
            self._empty.set()
        client = connection.client
        assert client is not None
        event(
            log,
            logging.INFO,
            "Client disconnected",
            client=client.id,
            total=len(self),
            sent=client.sent,
            dropped=client.dropped,
        )

    def linger(self, transport: asyncio.Transport) -> None:
        """Cut this socket when the other side does not close it in time."""
        self._lingering[transport] = self._clock.boottime() + CLOSING_SECONDS

    def look(self) -> None:
        """See what time asks for."""
        now, wall = self._clock.boottime(), self._clock.wall().timestamp()
        asleep = now - self._looked - LOOK_SECONDS
        self._looked = now
        counts = [0] * (len(QUEUE_BYTES.buckets) + 1)
        total = 0
        for connection in list(self._connections):
            if asleep > LOOK_SECONDS:
                connection.heard += asleep
            connection.look(now, wall)
            size = connection.transport.get_write_buffer_size()
            total += size
            counts[_place(size)] += 1
        QUEUE_BYTES.add(counts, total)
        for transport, until in list(self._lingering.items()):
            if now >= until or transport.is_closing():
                del self._lingering[transport]
                transport.abort()

    def gauge(self) -> None:
        """Bring subscriptions to the registry."""
        counts = Counter(
            name for each in self._connections if each.client for name in each.client.channels()
        )
        for name in self._public:
            SUBSCRIPTIONS.set(counts[name], name)

    def recheck(self) -> None:
        """Users or revocations changed: close those who no longer stand."""
        for connection in list(self._connections):
            connection.recheck()

    async def send_away(self, code: CloseCode, seconds: float) -> None:
        """Close everybody, spread over so many seconds, and wait until they are gone or cut."""
        waiting = list(self._connections)
        steps = max(1, min(len(waiting), 20 if seconds else 1))
        for step in range(steps):
            for connection in waiting[step::steps]:
                connection.leave(code)
            if step + 1 < steps:
                await self._clock.sleep(seconds / steps * (0.5 + self._clock.chance()))
        await self._gone()

    async def _gone(self) -> None:
        until = self._clock.boottime() + CLOSING_SECONDS
        while self._connections and self._clock.boottime() < until:
            patience = asyncio.ensure_future(self._clock.sleep(0.5))
            leaving = asyncio.ensure_future(self._empty.wait())
            await asyncio.wait({patience, leaving}, return_when=asyncio.FIRST_COMPLETED)
            for task in (patience, leaving):
                task.cancel()
        for connection in list(self._connections):
            connection.transport.abort()
        for transport in self._lingering:
            transport.abort()

    def __repr__(self) -> str:
        return f"<Attendance {len(self)}>"


def _nowhere(kind: str, name: str) -> int:
    return 0


def neighbourhood(address: str) -> str:
    """The address as it is counted: an IPv6 host has a whole /64 to choose from."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address


def _place(size: int) -> int:
    if not size:
        return 0
    for place, bound in enumerate(QUEUE_BYTES.buckets):
        if size <= bound:
            return place
    return len(QUEUE_BYTES.buckets)
