"""Two connections that bring the same messages for a moment: each message goes on once; a decider.

While a new connection is filled, the old one still delivers and the new one is kept back. Invariants: a message that
both bring goes on exactly once, one that only one of them brings goes on too; the order of each connection is kept;
what is kept back is bounded, and an overflow is told.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import msgspec

__all__ = ["Overlap"]

_ENCODER = msgspec.msgpack.Encoder(
    enc_hook=repr
)  # types without an encoding are told apart by what they show


class Overlap:
    """Which messages of a new connection the old one has not brought.

    Args:
        limit: messages that are kept back at most.

    Attributes:
        overflowed: whether more came: then something may be missing, and must be asked for.

    Example:
        >>> overlap = Overlap()
        >>> overlap.from_new("Trade", ("MNQ", 1), 0.0)
        >>> overlap.from_new("Trade", ("MNQ", 2), 0.1)
        >>> overlap.from_old("Trade", ("MNQ", 1))
        >>> overlap.switch()
        [('Trade', ('MNQ', 2), 0.1)]
        >>> overlap.is_repeat("Trade", ("MNQ", 1))
        False
    """

    def __init__(self, *, limit: int = 100_000) -> None:
        self._limit = limit
        self._kept: deque[tuple[bytes, str, Sequence[Any], float]] = deque()
        self._brought_by_old: Counter[bytes] = Counter()
        self._kept_counts: Counter[bytes] = Counter()
        self._consumed: Counter[bytes] = Counter()
        self.overflowed = False

    def from_old(self, channel: str, arguments: Sequence[Any]) -> None:
        """The old connection brought a message, and it went on."""
        mark = _mark(channel, arguments)
        if self._kept_counts[mark] > self._consumed[mark]:
            self._consumed[mark] += 1
        else:
            self._brought_by_old[mark] += 1

    def from_new(self, channel: str, arguments: Sequence[Any], at: float) -> None:
        """The new connection brought a message: it is kept back unless the old one had it."""
        mark = _mark(channel, arguments)
        if self._was_brought(mark):
            return
        if len(self._kept) >= self._limit:
            self.overflowed = True
            return
        self._kept.append((mark, channel, arguments, at))
        self._kept_counts[mark] += 1

    def switch(self) -> list[tuple[str, Sequence[Any], float]]:
        """The old connection is dropped: what only the new one brought so far, in its order."""
        kept, self._kept = self._kept, deque()
        only_new = []
        for mark, channel, arguments, at in kept:
            if self._consumed[mark]:
                self._consumed[mark] -= 1
            else:
                only_new.append((channel, arguments, at))
        self._kept_counts.clear()
        return only_new

    def is_repeat(self, channel: str, arguments: Sequence[Any]) -> bool:
        """After the switch: whether the old connection had already brought this late message of the new one."""
        return self._was_brought(_mark(channel, arguments))

    def _was_brought(self, mark: bytes) -> bool:
        if not self._brought_by_old[mark]:
            return False
        self._brought_by_old[mark] -= 1
        return True

    def __repr__(self) -> str:
        return (
            f"<Overlap keeps {len(self._kept)}, the old one brought {self._brought_by_old.total()}>"
        )


def _mark(channel: str, arguments: Sequence[Any]) -> bytes:
    return _ENCODER.encode((channel, arguments))
