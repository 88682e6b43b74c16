"""Stateful reconnect: what was sent and not acknowledged is kept, what arrives twice is dropped. Both ends use it.

Invariants: calls, items, completions and cancellations (types 1 to 5) are counted from 1 in each direction, nothing
else is; a counted message is delivered exactly once however often the transport is replaced; an acknowledgement
goes out within a second of the first message that needs one, and sooner only when half of what the peer may keep
has arrived, because a peer with a full buffer stops sending. Source: ASP.NET Core 9 hub protocol version 2, where
both ends keep 100 000 bytes.
"""

from collections import deque
from typing import Final

from keepline.stream.messages import (
    Ack,
    BindingFailure,
    CancelInvocation,
    Completion,
    Invocation,
    StreamInvocation,
    StreamItem,
)

__all__ = ["COUNTED", "MessageBuffer"]

COUNTED: Final = frozenset(
    {Invocation, StreamInvocation, StreamItem, Completion, CancelInvocation, BindingFailure}
)
"""The kinds of decoded messages that are counted; one whose values do not fit was still a counted message."""

_ACK_SECONDS: Final = 1.0


class MessageBuffer:
    """Both counters of one conversation, and the bytes that may have to be said again.

    Args:
        limit: bytes of unacknowledged messages from which on senders shall wait.
    """

    __slots__ = (
        "_ack_at",
        "_arrived_bytes",
        "_bytes",
        "_expected",
        "_kept",
        "_limit",
        "_seen",
        "_sent",
    )

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._kept: deque[bytes] = deque()  # the last of them has the number _sent
        self._bytes = 0
        self._sent = 0
        self._expected = 1  # the number of the next counted message
        self._seen = 0  # the highest number that was delivered
        self._ack_at: float | None = None
        self._arrived_bytes = 0

    @property
    def full(self) -> bool:
        """Whether senders shall wait for an acknowledgement."""
        return self._bytes >= self._limit

    @property
    def unacknowledged(self) -> int:
        """How many counted messages are kept."""
        return len(self._kept)

    @property
    def deadline(self) -> float | None:
        """When the next acknowledgement is due, None when none is."""
        return self._ack_at

    def sent(self, framed: bytes) -> None:
        """A counted message goes out, or would, were the transport there."""
        self._sent += 1
        self._kept.append(framed)
        self._bytes += len(framed)

    def acknowledged(self, sequence_id: int) -> None:
        """The peer has everything up to a number; numbers beyond what was sent mean all of it."""
        first = self._sent - len(self._kept) + 1
        for _ in range(min(sequence_id, self._sent) - first + 1):
            self._bytes -= len(self._kept.popleft())

    def received(self, now: float, size: int = 0) -> bool:
        """A counted message arrived; False when it was delivered before and is to be dropped.

        Args:
            now: seconds on the clock of `deadline`.
            size: its bytes, as far as known.
        """
        number = self._expected
        self._expected += 1
        self._arrived_bytes += size
        if self._ack_at is None:
            self._ack_at = now + _ACK_SECONDS
        if self._arrived_bytes * 2 >= self._limit:
            self._ack_at = min(self._ack_at, now)
        if number <= self._seen:
            return False
        self._seen = number
        return True

    def due(self, now: float) -> Ack | None:
        """The acknowledgement that is to be sent now, None when it is not yet time."""
        if self._ack_at is None or now < self._ack_at:
            return None
        self._ack_at = None
        self._arrived_bytes = 0
        return Ack(self._seen)

    def begin(self) -> tuple[int, list[bytes]]:
        """After a new transport: the number to announce, and the messages to say again, in order."""
        return self._sent - len(self._kept) + 1, list(self._kept)

    def resume(self, sequence_id: int) -> str | None:
        """The peer announced its next number; a reason when that cannot be."""
        if sequence_id < 1:
            return f"the sequence number {sequence_id} is below 1"
        if (
            sequence_id > self._seen + 1
        ):  # not `_expected`: a replay may have been cut off after its acknowledgement
            return (
                f"the sequence number {sequence_id} leaves a gap: {self._seen + 1} was to come next"
            )
        self._expected = sequence_id
        return None
