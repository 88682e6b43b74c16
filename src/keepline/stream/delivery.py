"""From a stream to callbacks: each has a mailbox and a worker of its own, so that none waits for another.

Invariants: one callback sees its messages in order and one at a time; a coroutine function runs as a task on the loop,
a plain function in a thread of its own, since it may block; a full `never` mailbox is announced before the message that
it refused is forgotten, and again once there is room for what a reconciliation brings.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.stream.callbacks import Callback, Caller
from keepline.stream.mailbox import Mailbox, Put
from keepline.stream.port import Policy
from keepline.stream.workers import TaskWorker, ThreadWorker, Worker
from keepline.telemetry import REGISTRY, event

__all__ = ["Callback", "Delivery", "Overflow", "Put"]

log = logging.getLogger("keepline.stream")

_COUNTERS = {
    Put.CONFLATED: REGISTRY.counter(
        "stream_conflated_total", "Messages replaced by a newer one of their key", "channel"
    ),
    Put.DROPPED: REGISTRY.counter(
        "stream_dropped_total", "Messages of a conflated channel dropped: too many keys", "channel"
    ),
    Put.REFUSED: REGISTRY.counter(
        "stream_overflow_total", "Messages that a full never-drop mailbox refused", "channel"
    ),
}
_COUNTERS[Put.OVERFLOW] = _COUNTERS[Put.REFUSED]


@dataclass(frozen=True, slots=True)
class Overflow:
    """A never-drop mailbox is full, or has room again: what is missing must come from a snapshot.

    Attributes:
        channel: whose messages.
        callback: whose mailbox.
        missing: how many were refused so far.
        over: True once there is room again: now what a reconciliation brings can be delivered.
    """

    channel: str
    callback: str
    missing: int
    over: bool


class Delivery:
    """One callback with its mailbox and its worker, which starts with the first message.

    All methods are called on the loop's thread.
    """

    def __init__(
        self,
        callback: Callback,
        *,
        channel: str,
        policy: Policy = "never",
        limit: int = 10_000,
        inline: bool = False,
        on_overflow: Callable[[Overflow], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            callback: called as `callback(*arguments)`; a plain function is called in a thread of its own.
            channel: for logs and metrics.
            policy: what a full mailbox does, see `Mailbox`.
            limit: how many messages may wait.
            inline: a plain function is called on the loop, at once: only for what never blocks.
            on_overflow: called on the loop when a `never` mailbox is full, and when it has room again.
            clock: time.

        Raises:
            ConfigError: the callback is not callable, or the mailbox's settings make no sense.
        """
        self._mailbox = Mailbox(policy, limit=limit)
        self._caller = Caller(callback, channel=channel, clock=clock)
        self._inline = inline and not self._caller.is_async
        self._on_overflow = on_overflow
        self._clock = clock
        self._worker: Worker | None = None
        self._closed = False

    @property
    def channel(self) -> str:
        """Whose messages."""
        return self._caller.channel

    @property
    def name(self) -> str:
        """The callback's, for people."""
        return self._caller.name

    @property
    def queued(self) -> int:
        """How many messages wait."""
        return len(self._mailbox)

    @property
    def delivered(self) -> int:
        """How many calls of the callback have ended, raising or not."""
        return self._caller.calls

    @property
    def errors(self) -> int:
        """How often the callback raised."""
        return self._caller.errors

    @property
    def missing(self) -> int:
        """Messages refused in the overflow that goes on, 0 when none does."""
        return self._mailbox.missing

    def stuck_for(self, now: float) -> float:
        """For how many seconds (`now` is boottime) the callback has not returned, 0.0 while it is idle."""
        since = self._caller.busy_since
        return 0.0 if since is None else max(now - since, 0.0)

    def push(self, arguments: Sequence[Any], key: str = "") -> Put:
        """A message for the callback: cheap, never raises, never waits; `key` matters for `conflate` alone.

        After `close` messages are refused and not counted.
        """
        if self._closed:
            return Put.REFUSED
        if self._inline:
            return self._call_now(arguments)
        outcome = (self._worker or self._start()).put(key, arguments)
        if outcome is not Put.QUEUED:
            _COUNTERS[outcome].inc(self.channel)
            if outcome is Put.OVERFLOW:
                self._announce(1, over=False)
        return outcome

    def _call_now(self, arguments: Sequence[Any]) -> Put:
        result = self._caller.call(arguments)
        if result is not None:
            self._caller.refuse(result)
        return Put.QUEUED

    def _start(self) -> Worker:
        kind = TaskWorker if self._caller.is_async else ThreadWorker
        self._worker = kind(self._mailbox, self._caller, self._relieved, self._clock)
        return self._worker

    def _relieved(self, missing: int) -> None:
        self._announce(missing, over=True)

    def _announce(self, missing: int, *, over: bool) -> None:
        level = logging.WARNING if over else logging.ERROR
        words = "Callback has room again" if over else "Callback too slow, buffer full"
        event(log, level, words, channel=self.channel, callback=self.name, missing=missing)
        if self._on_overflow is None:
            return
        try:
            self._on_overflow(Overflow(self.channel, self.name, missing, over))
        except Exception as error:
            event(log, logging.ERROR, "Overflow listener failed", channel=self.channel,
                  error=f"{type(error).__name__}: {error}")  # fmt: skip

    async def close(self, *, drain_seconds: float = 1.0) -> int:
        """Accept nothing more, give the callback that long for what waits, and let go of the worker.

        Returns:
            How many messages were not delivered. A thread or task that does not end is left behind and logged.
        """
        self._closed = True
        if self._worker is not None:
            await self._worker.close(drain_seconds)
        return len(self._mailbox)

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.channel} to {self.name}, {self.queued} queued, {self.errors} errors>"
        )
