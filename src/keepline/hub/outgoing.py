"""What a publisher holds until the hub has it: bounded, by the policy of each channel.

Invariants: a decider; a message of a `never` channel is refused in so many words when there is no room, never thrown
away for another; of a `conflate` channel only the newest per key waits; else the oldest leaves when there is no room.
"""

import enum
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, Literal

from keepline.errors import ConfigError

__all__ = ["POLICIES", "Added", "Item", "Outgoing", "Policy"]

Policy = Literal["conflate", "drop-oldest", "never"]

POLICIES: Mapping[str, Policy] = {
    "alerts": "never",
    "exposure-updates": "conflate",
    "lp-performance": "conflate",
    "routing-metrics": "drop-oldest",
    "system": "conflate",
}
"""The hub's own channels as they come; any other is `drop-oldest` unless said."""

_KNOWN = ("conflate", "drop-oldest", "never")


class Added(enum.Enum):
    """What adding a message did."""

    QUEUED = "queued"
    CONFLATED = "conflated"
    DROPPED = "dropped"
    REFUSED = "refused"


class Item:
    """A message that waits.

    Attributes:
        sequence: grows with each message of the publisher.
        line: its JSON line.
        durable: its channel drops nothing.
        waiter: who wants to know what becomes of it.
    """

    __slots__ = ("durable", "line", "place", "sequence", "waiter")

    def __init__(
        self, sequence: int, line: bytes, *, durable: bool, place: object, waiter: Any = None
    ) -> None:
        self.sequence = sequence
        self.line = line
        self.durable = durable
        self.place = place
        self.waiter = waiter


class Outgoing:
    """The queue of a publisher.

    Args:
        policies: by channel; one that is not named is `drop-oldest`.
        capacity: messages of droppable channels that may wait.
        durable_capacity: messages of `never` channels that may wait.
        most_bytes: JSON text that may wait, for each of the two.

    Attributes:
        dropped: messages that left for newer ones.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy] = POLICIES,
        *,
        capacity: int = 10_000,
        durable_capacity: int = 100_000,
        most_bytes: int = 64 << 20,
    ) -> None:
        for channel, policy in policies.items():
            if policy not in _KNOWN:
                raise ConfigError(
                    f"one of {', '.join(_KNOWN)} is needed, not {policy!r}",
                    key=f"policies.{channel}",
                )
        if min(capacity, durable_capacity, most_bytes) < 1:
            raise ConfigError("room for at least one message is needed", key="capacity")
        self._policies = dict(policies)
        self._capacity = capacity
        self._durable_capacity = durable_capacity
        self._most_bytes = most_bytes
        self._durable: deque[Item] = deque()
        self._droppable: OrderedDict[object, Item] = OrderedDict()
        self._durable_bytes = 0
        self._droppable_bytes = 0
        self._sequence = 0
        self.dropped = 0

    @property
    def sequence(self) -> int:
        """The number of the last message that was added."""
        return self._sequence

    @property
    def oldest(self) -> int | None:
        """The number of the oldest message that waits."""
        heads = [item.sequence for item in (self._head(), self._durable_head()) if item]
        return min(heads, default=None)

    def policy(self, channel: str) -> Policy:
        """What happens to a message of this channel when there is no room."""
        return self._policies.get(channel, "drop-oldest")

    def add(
        self, channel: str, type: str, key: str | None, line: bytes, *, waiter: Any = None
    ) -> Added:
        """Take a message in.

        Returns:
            CONFLATED: it took the place of an older one of its key; DROPPED: an older one left for it; REFUSED: there
            is no room, and it is not in.
        """
        self._sequence += 1
        policy = self.policy(channel)
        if policy == "never":
            return self._add_durable(line, waiter)
        place: object = self._sequence
        if policy == "conflate" and key is not None:
            place = (channel, type, key)
        return self._add_droppable(place, line, waiter)

    def take(self, most: int, most_bytes: int) -> list[Item]:
        """The next messages to send, those of `never` channels first; one at least when any waits."""
        taken: list[Item] = []
        size = 0
        while (item := self._durable_head() or self._head()) is not None:
            size += len(item.line) + 1
            if taken and (len(taken) >= most or size > most_bytes):
                break
            taken.append(item)
            self._remove(item)
        return taken

    def __len__(self) -> int:
        return len(self._durable) + len(self._droppable)

    def _add_durable(self, line: bytes, waiter: Any) -> Added:
        room = self._durable_bytes + len(line) <= self._most_bytes
        if len(self._durable) >= self._durable_capacity or not room:
            return Added.REFUSED
        item = Item(self._sequence, line, durable=True, place=None, waiter=waiter)
        self._durable.append(item)
        self._durable_bytes += len(line)
        return Added.QUEUED

    def _add_droppable(self, place: object, line: bytes, waiter: Any) -> Added:
        if len(line) > self._most_bytes:
            return Added.REFUSED
        older = self._droppable.pop(place, None)
        if older is not None:
            self._droppable_bytes -= len(older.line)
        dropped = self._make_room(len(line))
        item = Item(self._sequence, line, durable=False, place=place, waiter=waiter)
        self._droppable[place] = item
        self._droppable_bytes += len(line)
        if dropped:
            return Added.DROPPED
        return Added.QUEUED if older is None else Added.CONFLATED

    def _make_room(self, size: int) -> int:
        dropped = 0
        while self._droppable and (
            len(self._droppable) >= self._capacity
            or self._droppable_bytes + size > self._most_bytes
        ):
            self._remove(next(iter(self._droppable.values())))
            dropped += 1
        self.dropped += dropped
        return dropped

    def _durable_head(self) -> Item | None:
        return self._durable[0] if self._durable else None

    def _head(self) -> Item | None:
        return next(iter(self._droppable.values())) if self._droppable else None

    def _remove(self, item: Item) -> None:
        if item.durable:
            self._durable.popleft()
            self._durable_bytes -= len(item.line)
        else:
            del self._droppable[item.place]
            self._droppable_bytes -= len(item.line)

    def __repr__(self) -> str:
        return f"<Outgoing {len(self._durable)} that must arrive, {len(self._droppable)} others>"
