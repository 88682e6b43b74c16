"""Where a client is in each of its channels, and what it gets next.

Invariants: an outbox holds positions, not messages, so a client that reads nothing costs nothing and is fresh when it
reads again; within a channel offsets ascend; what is passed over on a `drop-oldest` or `never` channel is announced by
one `gap` in its place; a `conflate` channel is always taken whole, so that no key starves.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice

from keepline.hub.channels import UNSEEN, Channel, Gap, Policy
from keepline.hub.limits import Limits
from keepline.hub.messages import Message, Stamps

__all__ = ["Batch", "Outbox"]


class Batch:
    """What one frame says.

    Attributes:
        texts: the messages.
        oldest: when the oldest of them was published.
        conflated: messages that were passed over because a newer one of their key goes out, by channel.
        dropped: messages that were lost and announced by a gap, by channel and reason.
    """

    __slots__ = ("conflated", "dropped", "oldest", "texts")

    def __init__(self, now: float) -> None:
        self.texts: list[bytes] = []
        self.oldest = now
        self.conflated: dict[str, int] = {}
        self.dropped: dict[tuple[str, str], int] = {}


class Outbox:
    """The positions of one client, or of a whole cohort, in its channels.

    Attributes:
        channels: in the order of their names.
        cursors: the last offset taken of each, `UNSEEN` before the snapshot.
        due: from when on the next frame may go.
        urgent_due: the same for channels that do not wait for a declared rate.
        hungry: indexes of channels whose next messages are only in the journal.
    """

    __slots__ = ("channels", "cursors", "due", "hungry", "recovering", "stored", "urgent_due")

    def __init__(self, channels: tuple[Channel, ...], cursors: list[int], due: float) -> None:
        self.channels = channels
        self.cursors = cursors
        self.due = due
        self.urgent_due = due
        self.hungry: set[int] = set()
        self.recovering: dict[int, int] = {}  # index -> up to where the client was promised all
        self.stored: dict[int, deque[Message]] = {}  # index -> what the journal handed back

    def plain(self) -> bool:
        """Whether the cursors alone say where it is."""
        if self.stored or self.hungry:
            return False
        return all(self.cursors[i] >= until for i, until in self.recovering.items())

    def place(self, owner: object) -> object:
        """Equal for two outboxes of the same channels that would take the same; `owner` is like nobody else."""
        if self.stored or self.hungry:
            return owner
        return (tuple(self.cursors), tuple(self.recovering.items()), self.due, self.urgent_due)

    def pending(self) -> int:
        """0: nothing to take; 1: something; 2: something that is urgent."""
        found = 0
        for i, channel in enumerate(self.channels):
            if channel.offset > self.cursors[i] and i not in self.hungry:
                if channel.urgent:
                    return 2
                found = 1
        return found

    def waiting(self) -> int:
        """How many messages (on `conflate` channels: keys) a client has before it."""
        total = 0
        for cursor, channel in zip(self.cursors, self.channels, strict=True):
            if channel.policy is Policy.CONFLATE:
                changed = channel.changes(cursor)
                total += len(channel.latest if changed is None else changed)
            elif cursor != UNSEEN:
                total += channel.offset - cursor
        return total

    def take(
        self, now: float, budget: int, limits: Limits, stamps: Stamps, *, urgent_only: bool = False
    ) -> Batch | None:
        """The next frame's messages, None when there are none; the positions move behind them."""
        cursors = self.cursors
        wanted = [
            i
            for i, channel in enumerate(self.channels)
            if channel.offset > cursors[i]
            and i not in self.hungry
            and (channel.urgent or not urgent_only)
        ]
        if not wanted:
            return None
        batch = Batch(now)
        self._take_all(wanted, batch, now, budget, limits, stamps)
        return batch if batch.texts else None

    def _take_all(
        self,
        wanted: list[int],
        batch: Batch,
        now: float,
        budget: int,
        limits: Limits,
        stamps: Stamps,
    ) -> None:
        queues: list[int] = []
        share = max(1, budget // len(wanted))
        room = budget
        for i in wanted:
            channel = self.channels[i]
            if channel.policy is Policy.CONFLATE or self.cursors[i] == UNSEEN:
                room -= self._take_state(i, channel, batch, share, now, stamps)
            else:
                queues.append(i)
        queues.sort(key=lambda i: not self.channels[i].urgent)
        for left, i in zip(range(len(queues) - 1, -1, -1), queues, strict=True):
            allowed = max(share, room - share * left)
            room -= self._take_queue(i, self.channels[i], batch, allowed, now, limits, stamps)

    def _take_state(
        self, i: int, channel: Channel, batch: Batch, share: int, now: float, stamps: Stamps
    ) -> int:
        """Everything that changed, as messages or in one snapshot."""
        cursor = self.cursors[i]
        self.cursors[i] = channel.offset
        changed = None
        if cursor != UNSEEN and channel.policy is Policy.CONFLATE:
            changed = channel.changes(cursor)
        if changed is None:
            batch.texts.append(channel.snapshot(now, stamps))
            return 1
        batch.oldest = min(batch.oldest, changed[0].at)
        if passed := channel.offset - cursor - len(changed):
            batch.conflated[channel.name] = passed
        if len(changed) > share:
            batch.texts.append(channel.collapsed(changed, now, stamps, partial=True))
            return 1
        batch.texts += [message.text for message in changed]
        return len(changed)

    def _take_queue(
        self,
        i: int,
        channel: Channel,
        batch: Batch,
        allowed: int,
        now: float,
        limits: Limits,
        stamps: Stamps,
    ) -> int:
        """The next messages in order, behind a gap for those that are lost."""
        if self._lost(i, channel, batch, now, limits, stamps):
            allowed -= 1
        cursor = self.cursors[i]
        source: Iterable[Message]
        if cursor + 1 >= channel.oldest():
            self.stored.pop(i, None)
            source = channel.between(cursor + 1, allowed)
        elif stored := self.stored.get(i):
            source = islice(stored, allowed)
        else:
            self.hungry.add(i)
            return 0
        size = taken = 0
        for message in source:
            if size >= limits.frame_bytes:
                break
            batch.texts.append(message.text)
            size += len(message.text)
            cursor = message.offset
            taken += 1
            if message.at < batch.oldest:
                batch.oldest = message.at
        self.cursors[i] = cursor
        self._used(i, cursor)
        if cursor < self.recovering.get(i, 0):
            # it reads as fast as frames let it, so that nothing goes meanwhile
            self.recovering[i] = channel.offset
        return taken

    def _used(self, i: int, cursor: int) -> None:
        stored = self.stored.get(i)
        while stored and stored[0].offset <= cursor:
            stored.popleft()
        if stored is not None and not stored:
            del self.stored[i]

    def _lost(
        self, i: int, channel: Channel, batch: Batch, now: float, limits: Limits, stamps: Stamps
    ) -> bool:
        """Pass over what cannot be delivered any more, with words."""
        cursor = self.cursors[i]
        stored = self.stored.get(i)
        if stored and stored[0].offset == cursor + 1:
            return False  # it is here, whatever the journal has forgotten since
        first = channel.first()
        reason = "retention"
        if channel.policy is Policy.DROP_OLDEST:
            promised = max(0, self.recovering.get(i, 0) - cursor) if self.recovering else 0
            kept = channel.offset - limits.client_buffer - promised + 1
            if kept > first:
                first, reason = kept, "slow"
        if cursor + 1 >= first:
            return False
        gap = Gap(cursor + 1, first - 1, reason)
        batch.texts.append(channel.gap_text(gap, now, stamps))
        batch.dropped[channel.name, reason] = first - 1 - cursor
        self.cursors[i] = first - 1
        self._used(i, first - 1)
        return True
