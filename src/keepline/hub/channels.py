"""A channel: numbers what is published, keeps the newest value per key and a bounded history, knows who missed what.

Invariants: offsets are 1, 2, 3 ... within an epoch, without a hole; `latest` is in the order of offsets; what a client
missed is either all here or said to be lost, never partly here. Where a client is, is one number per channel, so a
client that reads nothing holds nothing.
"""

from collections import deque
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from keepline.hub.messages import (
    Message,
    Stamps,
    encode_control,
    encode_message,
    encode_snapshot,
)

__all__ = ["UNSEEN", "Channel", "Gap", "Missed", "Policy"]

UNSEEN = -1
"""The cursor of a client that knows nothing of a channel: a snapshot comes first."""

MOST_TYPES = 256


class Policy(StrEnum):
    """What happens to messages that a client does not take in time."""

    CONFLATE = "conflate"
    DROP_OLDEST = "drop-oldest"
    NEVER = "never"


class Missed(StrEnum):
    """Why a position cannot be resumed."""

    EPOCH = "epoch"
    FUTURE = "future"
    RETENTION = "retention"


class Gap(msgspec.Struct, frozen=True):
    """Messages that a client will not get.

    Attributes:
        first: offset of the first lost one, None when its count began in another epoch.
        last: offset of the last lost one.
        reason: why; "slow" when the client did not take them in time.
    """

    first: int | None
    last: int
    reason: str

    @property
    def count(self) -> int | None:
        """How many, None when nobody can know."""
        return None if self.first is None else self.last - self.first + 1


class Channel:
    """One channel.

    Args:
        name: as clients subscribe to it.
        policy: what a slow client loses.
        epoch: of this count of offsets; a new one whenever offsets begin anew.
        offset: the last one already given away (a journal continues its count).
        history_count: messages kept in memory, at most.
        history_age: seconds they are kept, at most.
        history_bytes: and their size, at most.
        max_keys: keys whose newest value is kept; beyond, the key that was silent longest goes.
        snapshot_count: newest messages in the snapshot of a channel that is not `conflate`.
        max_ids: ids remembered, by which a repeated message is known.

    Attributes:
        offset: the last message that clients may have.
        stamped: the last offset given away; ahead of `offset` while a journal writes.
        retained: the oldest offset that can be had from a journal, None without one.
        latest: the newest message of each key.
        history: the newest messages.
        evicted: keys that had to go.
        urgent: whether its messages do not wait for a slow declared rate.
        marked: for the hub: whether its subscribers have been looked at since the last tick.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        *,
        epoch: str,
        offset: int = 0,
        history_count: int = 1000,
        history_age: float = 300.0,
        history_bytes: int = 8 << 20,
        max_keys: int = 4096,
        snapshot_count: int = 1,
        max_ids: int = 4096,
    ) -> None:
        self.name = name
        self.policy = policy
        self.epoch = epoch
        self.offset = self.stamped = offset
        self.retained: int | None = None
        self.latest: dict[str, Message] = {}
        self.history: deque[Message] = deque()
        self.evicted = 0
        self.urgent = policy is Policy.NEVER
        self.marked = False
        self.history_count = history_count
        self.history_age = history_age
        self.history_bytes = history_bytes
        self.max_keys = max_keys
        self.snapshot_count = snapshot_count
        self._max_ids = max_ids
        self._ids: dict[str, Message] = {}
        self._bytes = 0
        self._floor = offset  # changes after this offset are all in `latest`
        self._conflates = policy is Policy.CONFLATE
        self._heads: dict[str, bytes] = {}
        self._middle = b',"epoch":%b,"timestamp":"' % msgspec.json.encode(epoch)
        self._snapshot: tuple[int, bytes] | None = None

    # publishing

    def known(self, own: str) -> Message | None:
        """The message that already has this id."""
        return self._ids.get(own)

    def stamp(
        self, kind: str, data: bytes, now: float, stamps: Stamps, *, key: str = "", own: str = ""
    ) -> Message:
        """The next message, encoded; clients get it once it is delivered."""
        offset = self.stamped + 1
        text, start = encode_message(
            self._head(kind), offset, self._middle, stamps.at(now), key, own, data
        )
        self.stamped = offset
        return Message(self.name, offset, kind, key, now, text, start, own)

    def withdraw(self, first: int) -> None:
        """Take back the offsets from here on: what was stamped with them could not be stored and is forgotten."""
        assert self.offset < first, "what clients may have cannot be taken back"
        self.stamped = min(self.stamped, first - 1)

    def deliver(self, message: Message) -> None:
        """Let clients have it: the next one in order, stamped here or by the process that keeps the count."""
        if message.offset != self.offset + 1:
            assert message.offset > self.offset, f"offset {message.offset} was already delivered"
            self._skip(message.offset - 1)
        self.offset = message.offset
        if self.stamped < self.offset:
            self.stamped = self.offset
        if self._conflates:
            latest = self.latest
            latest.pop(message.key, None)  # so that it is inserted at the end
            latest[message.key] = message
            if len(latest) > self.max_keys:
                self._evict()
        self.history.append(message)
        self._bytes += len(message.text)
        if len(self.history) > self.history_count or self._bytes > self.history_bytes:
            self._shed()
        if message.id:
            self._remember(message)

    def restore(self, messages: Iterable[Message], *, offset: int, epoch: str) -> None:
        """Begin where another process is: its newest messages in order, its count, its epoch."""
        self.epoch = epoch
        self._middle = b',"epoch":%b,"timestamp":"' % msgspec.json.encode(epoch)
        self._snapshot = None
        self.latest.clear()
        self.history.clear()
        self._bytes = 0
        self.offset = self.stamped = self._floor = 0
        for message in messages:
            self.deliver(message)
        if self.offset < offset:
            self._skip(offset)

    # where clients are

    def oldest(self) -> int:
        """The oldest offset in memory, one beyond the newest when there is none."""
        return self.history[0].offset if self.history else self.offset + 1

    def first(self) -> int:
        """The oldest offset that can still be delivered, from memory or from the journal."""
        oldest = self.oldest()
        return oldest if self.retained is None else min(oldest, self.retained)

    def resume(self, epoch: str, offset: int, now: float) -> Gap | None:
        """None when everything after this position can be delivered, else what is lost."""
        self.expire(now)
        if epoch != self.epoch:
            return Gap(None, self.offset, Missed.EPOCH)
        if offset > self.offset:
            return Gap(None, self.offset, Missed.FUTURE)
        first = self._floor + 1 if self._conflates else self.first()
        if offset + 1 >= first:
            return None
        last = self.offset if self.policy is not Policy.NEVER else first - 1
        return Gap(offset + 1, last, Missed.RETENTION)

    def changes(self, cursor: int) -> list[Message] | None:
        """The newest value of each key that changed after the cursor, in order; None when only the whole will do."""
        if cursor < self._floor:
            return None
        changed = []
        for message in reversed(self.latest.values()):
            if message.offset <= cursor:
                break
            changed.append(message)
        changed.reverse()
        return changed

    def between(self, first: int, count: int) -> list[Message]:
        """At most so many messages in memory from this offset on."""
        history = self.history
        start = first - self.oldest()
        return [history[i] for i in range(start, min(start + count, len(history)))]

    def snapshot(self, now: float, stamps: Stamps) -> bytes:
        """The whole state as one message: each key's newest value, or the newest messages."""
        if self._snapshot is None or self._snapshot[0] != self.offset:
            values: Iterable[Message]
            if self._conflates:
                values = [m for m in self.latest.values() if not m.gone]
            else:
                start = max(0, len(self.history) - self.snapshot_count)
                values = [self.history[i] for i in range(start, len(self.history))]
            self._snapshot = self.offset, self.collapsed(values, now, stamps, partial=False)
        return self._snapshot[1]

    def collapsed(
        self, values: Iterable[Message], now: float, stamps: Stamps, *, partial: bool
    ) -> bytes:
        """Values as one `snapshot` message at the present offset."""
        return encode_snapshot(
            self._head("snapshot"),
            self.offset,
            self._middle,
            stamps.at(now),
            values,
            stamps,
            partial=partial,
        )

    def gap_text(self, gap: Gap, now: float, stamps: Stamps) -> bytes:
        """The announcement of a gap."""
        data = {"from": gap.first, "to": gap.last, "count": gap.count, "reason": gap.reason}
        return encode_control("gap", stamps.at(now), data, channel=self.name)

    def expire(self, now: float) -> None:
        """Forget what is older than the history's age."""
        oldest = now - self.history_age
        history = self.history
        while history and history[0].at < oldest:
            self._bytes -= len(history.popleft().text)

    # inside

    def _head(self, kind: str) -> bytes:
        head = self._heads.get(kind)
        if head is None:
            if len(self._heads) >= MOST_TYPES:
                self._heads.clear()
            head = b'{"type":%b,"channel":%b,"offset":' % (
                msgspec.json.encode(kind),
                msgspec.json.encode(self.name),
            )
            self._heads[kind] = head
        return head

    def _skip(self, offset: int) -> None:
        """Messages up to this offset will never be seen here: whoever was before them has a gap."""
        self.history.clear()
        self._bytes = 0
        self._floor = self.offset = offset
        self.stamped = max(self.stamped, offset)

    def _evict(self) -> None:
        key = next(iter(self.latest))
        self._floor = max(self._floor, self.latest.pop(key).offset)
        self.evicted += 1

    def _shed(self) -> None:
        while len(self.history) > self.history_count or (
            self._bytes > self.history_bytes and len(self.history) > 1
        ):
            self._bytes -= len(self.history.popleft().text)

    def _remember(self, message: Message) -> None:
        self._ids[message.id] = message
        if len(self._ids) > self._max_ids:
            del self._ids[next(iter(self._ids))]
