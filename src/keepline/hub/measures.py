"""The hub's numbers: counted in plain integers where it is hot, brought to the registry once a second and at a scrape.

Invariants: nothing here is a label that names a user; a hot path adds to a list and takes no lock.
"""

import bisect
import threading
from collections import Counter
from collections.abc import Iterable

from keepline.telemetry import REGISTRY

__all__ = [
    "CANARY",
    "CLIENTS",
    "CLOSED",
    "CONNECTIONS",
    "MESSAGES",
    "QUEUE_BYTES",
    "RATE_LIMITED",
    "READY",
    "REQUESTS",
    "SUBSCRIPTIONS",
    "HandedOut",
    "Tally",
]

CLIENTS = REGISTRY.gauge("hub_clients", "WebSocket clients that are connected.")
SUBSCRIPTIONS = REGISTRY.gauge("hub_subscriptions", "Clients subscribed to a channel.", "channel")
MESSAGES = REGISTRY.counter(
    "hub_messages_total", "Messages published, each counted once.", "channel"
)
CONNECTIONS = REGISTRY.counter(
    "hub_connections_total", "WebSocket handshakes by how they ended.", "outcome"
)
CLOSED = REGISTRY.counter(
    "hub_closed_total", "Connections that the hub closed, by the code that it sent.", "code"
)
REQUESTS = REGISTRY.counter(
    "hub_requests_total", "HTTP requests by route and status.", "route", "status"
)
RATE_LIMITED = REGISTRY.counter(
    "hub_rate_limited_total", "Messages of clients that were over their rate and were ignored."
)
READY = REGISTRY.gauge("hub_ready", "1 while the hub delivers, 0 when /readyz says why not.")

_DELIVERED = REGISTRY.counter("hub_delivered_total", "Messages handed to clients' sockets.")
_CONFLATED = REGISTRY.counter(
    "hub_conflated_total",
    "Messages that a client did not get because a newer one of their key did.",
)
_DROPPED = REGISTRY.counter(
    "hub_dropped_total",
    "Messages that a client lost, each announced by a gap.",
    "channel",
    "reason",
)
_BATCH_BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_BATCH = REGISTRY.histogram(
    "hub_batch_messages", "Messages in a frame.", buckets=tuple(map(float, _BATCH_BOUNDS))
)
_DELIVERY_BOUNDS = (
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.5, 1.0, 5.0, 30.0,
)  # fmt: skip
_DELIVERY = REGISTRY.histogram(
    "hub_delivery_seconds",
    "From the publish of a frame's oldest message to the write to the client's socket.",
    buckets=_DELIVERY_BOUNDS,
)
CANARY = REGISTRY.histogram(
    "hub_canary_seconds",
    "From publish to receipt of the message that proves that the hub delivers.",
    buckets=_DELIVERY_BOUNDS,
)
QUEUE_BYTES = REGISTRY.histogram(
    "hub_queue_bytes",
    "Bytes that wait in the process for a client's socket, looked at once a second for each client.",
    buckets=(0.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0),
)


class HandedOut:
    """Messages of one registrar: counted by its loop alone, brought to `MESSAGES` when that is read.

    Args:
        channels: all that there are.

    Attributes:
        counts: messages by channel.
    """

    __slots__ = ("_brought", "counts")

    def __init__(self, channels: Iterable[str]) -> None:
        self.counts = dict.fromkeys(channels, 0)
        self._brought = dict(self.counts)

    def open(self) -> None:
        """Be asked from now on."""
        with _lock:
            _open.add(self)

    def close(self) -> None:
        """Bring the last ones and be forgotten; say it once or often."""
        with _lock:
            self._bring()
            _open.discard(self)

    def _bring(self) -> None:
        for channel, count in self.counts.items():
            if new := count - self._brought[channel]:
                self._brought[channel] = count
                MESSAGES.inc(channel, by=new)


_lock = threading.Lock()
_open: set[HandedOut] = set()


def _bring_all() -> None:
    with _lock:
        for each in _open:
            each._bring()


MESSAGES.gather_from(_bring_all)


class Tally:
    """What was delivered since it was last brought to the registry."""

    __slots__ = (
        "_batch",
        "_batch_sum",
        "_delay",
        "_delay_sum",
        "conflated",
        "delivered",
        "dropped",
    )

    def __init__(self) -> None:
        self.delivered = 0
        self.conflated = 0
        self.dropped: Counter[tuple[str, str]] = Counter()
        self._clear()

    def frame(self, clients: int, messages: int, seconds: float) -> None:
        """A frame went to so many clients, so long after its oldest message was published."""
        self.delivered += clients * messages
        self._batch[bisect.bisect_left(_BATCH_BOUNDS, messages)] += clients
        self._batch_sum += clients * messages
        self._delay[bisect.bisect_left(_DELIVERY_BOUNDS, seconds)] += clients
        self._delay_sum += clients * seconds

    def report(self) -> None:
        """Bring it to the registry and begin anew."""
        if not self.delivered:
            return
        _DELIVERED.inc(by=self.delivered)
        _BATCH.add(self._batch, self._batch_sum)
        _DELIVERY.add(self._delay, self._delay_sum)
        if self.conflated:
            _CONFLATED.inc(by=self.conflated)
        for (channel, reason), count in self.dropped.items():
            _DROPPED.inc(channel, reason, by=count)
        self.delivered = self.conflated = 0
        self.dropped.clear()
        self._clear()

    def _clear(self) -> None:
        self._batch = [0] * (len(_BATCH_BOUNDS) + 1)
        self._batch_sum = 0.0
        self._delay = [0] * (len(_DELIVERY_BOUNDS) + 1)
        self._delay_sum = 0.0
