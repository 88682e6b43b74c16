"""What waits for one callback, and what a full queue means: a decider.

Invariants: under `never` nothing that was accepted is lost, order is arrival, and what cannot be accepted is refused by
name (`OVERFLOW`) from the first one on; under `conflate` the newest of each key waits in the place of the first, so no
key starves; the number of waiting items never exceeds `limit`.
"""

from collections import deque
from enum import Enum
from typing import Any

from keepline.errors import ConfigError
from keepline.stream.port import Policy

__all__ = ["Mailbox", "Put"]


class Put(Enum):
    """What became of an item."""

    QUEUED = "queued"
    CONFLATED = "conflated"
    """it took the place of an older one of its key"""
    DROPPED = "dropped"
    """it was queued, and the oldest key of all went to make room (conflate)"""
    OVERFLOW = "overflow"
    """it was refused, and it is the first: from now on something is missing (never)"""
    REFUSED = "refused"
    """it was refused like those before it (never)"""


class Mailbox:
    """A bounded queue with a policy.

    Attributes:
        policy: `never` or `conflate`.
        limit: how many items may wait.
        conflated: items replaced by a newer one of their key.
        dropped: items that went because too many keys waited.
        refused: items that were not accepted, in total.
        missing: items that were not accepted since the overflow that goes on; 0 when none does.
    """

    __slots__ = (
        "_items",
        "_queue",
        "conflated",
        "dropped",
        "limit",
        "missing",
        "policy",
        "refused",
    )

    def __init__(self, policy: Policy, *, limit: int = 10_000) -> None:
        """
        Raises:
            ConfigError: an unknown policy, or a limit below 1.
        """
        if policy not in ("never", "conflate"):
            raise ConfigError(f"policy is `never` or `conflate`, not {policy!r}", key="policy")
        if limit < 1:
            raise ConfigError(
                f"a mailbox needs room for 1 item at least, not {limit!r}", key="limit"
            )
        self.policy = policy
        self.limit = limit
        self.conflated = self.dropped = self.refused = self.missing = 0
        self._queue: deque[Any] = deque()
        self._items: dict[str, Any] = {}

    def put(self, key: str, item: Any) -> Put:
        """An item arrived; `key` matters for `conflate` alone."""
        return self._put_newest(key, item) if self.policy == "conflate" else self._put_all(item)

    def _put_newest(self, key: str, item: Any) -> Put:
        outcome = Put.QUEUED
        if key in self._items:
            self.conflated += 1
            outcome = Put.CONFLATED
        elif len(self._items) >= self.limit:
            del self._items[next(iter(self._items))]
            self.dropped += 1
            outcome = Put.DROPPED
        self._items[key] = item
        return outcome

    def _put_all(self, item: Any) -> Put:
        # an overflow lasts until half the queue is free: one hole, not a thousand
        if self.missing or len(self._queue) >= self.limit:
            self.missing += 1
            self.refused += 1
            return Put.OVERFLOW if self.missing == 1 else Put.REFUSED
        self._queue.append(item)
        return Put.QUEUED

    def take(self) -> Any:
        """The next item; IndexError when none waits."""
        if self.policy == "never":
            return self._queue.popleft()
        if not self._items:
            raise IndexError("nothing waits")
        return self._items.pop(next(iter(self._items)))

    def relieved(self) -> int:
        """Ends an overflow once half of the queue is free: how many items it refused, 0 when it goes on."""
        if not self.has_room_again:
            return 0
        missing, self.missing = self.missing, 0
        return missing

    @property
    def has_room_again(self) -> bool:
        """Whether an overflow goes on that may end now."""
        return self.missing > 0 and len(self._queue) <= self.limit // 2

    def __len__(self) -> int:
        return len(self._queue) + len(self._items)

    def __repr__(self) -> str:
        return f"<Mailbox {self.policy}, {len(self)} of {self.limit}, {self.refused} refused>"
