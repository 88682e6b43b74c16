"""Plain counters of all operations of one name: three additions per call, brought into the metrics when these are read.

Invariants: one writer (the event loop of the pipeline that owns it), any number of readers; what is counted is never
lost, also when the owner is gone; nothing is counted twice; a finalizer takes no lock, since it may run inside one.
"""

import threading
import weakref
from bisect import bisect_left
from collections import deque

from keepline.telemetry import DEFAULT_BUCKETS, REGISTRY

__all__ = ["REQUESTS", "REQUEST_SECONDS", "RETRIES", "Tally"]

REQUESTS = REGISTRY.counter(
    "api_requests_total", "Calls to a broker, by how they ended.", "broker", "op", "outcome"
)
RETRIES = REGISTRY.counter(
    "api_retries_total", "Attempts that were repeated, by what was wrong.", "broker", "op", "reason"
)
REQUEST_SECONDS = REGISTRY.histogram(
    "api_request_duration_seconds",
    "From sending to the whole answer, each attempt.",
    "broker",
    "op",
)

_lock = threading.Lock()
_live: "set[Tally]" = set()
_orphans: "deque[Tally]" = (
    deque()
)  # their owners are gone; a finalizer may append, and nothing else


class Tally:
    """The good calls of all operations of one name of a pipeline.

    Attributes:
        ok: how many.
        buckets: how many of them took how long, under the bounds of `DEFAULT_BUCKETS`.
        seconds: what they took together.
    """

    __slots__ = ("_brought", "broker", "buckets", "ok", "op", "seconds")

    def __init__(self, owner: object, broker: str, op: str) -> None:
        self.broker, self.op = broker, op
        self.ok = 0
        self.buckets = [0] * (len(DEFAULT_BUCKETS) + 1)
        self.seconds = 0.0
        self._brought: tuple[int, list[int], float] = (0, list(self.buckets), 0.0)
        with _lock:
            _bury()
            _live.add(self)
        weakref.finalize(owner, _orphans.append, self).atexit = False

    def succeeded(self, seconds: float) -> None:
        """Count a call that came through; the pipeline has these lines in place."""
        self.ok += 1
        self.buckets[bisect_left(DEFAULT_BUCKETS, seconds)] += 1
        self.seconds += seconds

    def bring(self) -> None:
        """Add what is new to the metrics; the caller holds the lock."""
        ok, buckets, seconds = self.ok, list(self.buckets), self.seconds
        old_ok, old_buckets, old_seconds = self._brought
        self._brought = (ok, buckets, seconds)
        REQUESTS.inc(self.broker, self.op, "ok", by=ok - old_ok)
        fresh = [now - before for now, before in zip(buckets, old_buckets, strict=True)]
        REQUEST_SECONDS.add(fresh, seconds - old_seconds, self.broker, self.op)


def _bring_all() -> None:
    with _lock:
        _bury()
        for tally in list(_live):
            tally.bring()


def _bury() -> None:
    """Bring what the orphans counted and forget them; the caller holds the lock."""
    while _orphans:
        tally = _orphans.popleft()
        tally.bring()
        _live.discard(tally)


REQUESTS.gather_from(_bring_all)
REQUEST_SECONDS.gather_from(_bring_all)
