"""What one client may do and what one client may cost.

Invariants: every number has a default and a reason; a bucket never grants more than its burst plus rate times time.
"""

import msgspec

__all__ = ["Bucket", "Limits"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The hub's limits; durations in seconds, sizes in bytes.

    Attributes:
        max_batch: messages in one frame; a client that asked for a slower rate gets proportionally more per frame.
        interval: between two frames to one client (60 per second); the first after quiet goes at once.
        client_buffer: how many messages of a `drop-oldest` channel wait for a client before the oldest goes.
        frame_bytes: a frame that has reached this size takes no more queued messages.
        control_buffer: answers that wait for a client that does not read, before it is closed as slow.
        slow_after: how long a client may take nothing before it is closed with the code that says come back.
        max_channels: subscriptions of one connection.
        inbound_rate: messages per second that a client may send.
        inbound_burst: and at once.
        offences: how many in a row before the connection is closed; one is forgiven every `forgive_after`.
        forgive_after: see `offences`.
        max_message: bytes of one inbound message.
        max_data: bytes of one published message's data.
        refill: messages of a `never` channel asked of the journal at a time.
    """

    max_batch: int = 50
    interval: float = 0.016
    client_buffer: int = 256
    frame_bytes: int = 256 * 1024
    control_buffer: int = 256
    slow_after: float = 30.0
    max_channels: int = 64
    inbound_rate: float = 1000.0
    inbound_burst: float = 1000.0
    offences: int = 10
    forgive_after: float = 10.0
    max_message: int = 64 * 1024
    max_data: int = 256 * 1024
    refill: int = 256

    def interval_of(self, rate: float | None) -> float:
        """The pause between frames for a declared rate: a whole number of ticks, so that equal wishes meet."""
        if rate is None or rate * self.interval >= 1:
            return self.interval
        return -(-1 / rate // self.interval) * self.interval

    def budget(self, interval: float) -> int:
        """Messages in one frame of a client with this pause."""
        ticks = max(1, round(interval / self.interval))
        return min(self.max_batch * ticks, max(self.max_batch, self.client_buffer))


class Bucket:
    """A token bucket: `burst` at once, `rate` per second after that."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more is within the limit."""
        level = self._level + (now - self._at) * self._rate
        if level > self._burst:
            level = self._burst
        self._at = now
        if level < 1.0:
            self._level = level
            return False
        self._level = level - 1.0
        return True
