"""Clients, the cohorts of those who are at the same place, and what is handed to them.

Invariants: members of a cohort have the same channels, pause and compression, and are at its position; a client is a
member of one cohort or has an outbox of its own; a frame that was not handed to a client leaves it where it was before.
"""

from typing import Any, TypeAlias

from keepline.hub.limits import Bucket, Limits
from keepline.hub.outbox import Batch, Outbox

__all__ = ["Client", "Cohort", "Delivery", "Key"]

Key: TypeAlias = tuple[tuple[str, ...], float, bool]
"""Channels, pause between frames, whether compressed."""


class Client:
    """One connection.

    Attributes:
        id: unique among those connected.
        link: the face's own object; never touched here.
        deflate: whether it negotiated compression.
        interval: seconds between its frames.
        key: with whom it could share frames.
        own: its outbox while it is in no cohort, None else and without subscriptions.
        cohort: whose member it is, None when it has an outbox of its own.
        flight: the delivery of its own that it was not handed yet.
        control: answers that wait for it.
        answer: the answers that are on their way and were not handed to it yet.
        blocked: since when it takes nothing, None when it does.
        gone: whether it was disconnected or is being closed.
        since: when it connected.
        sent, conflated, dropped: messages so far.
    """

    __slots__ = (
        "answer", "blocked", "bucket", "cohort", "conflated", "control", "deflate", "dropped", "flight", "gone", "id",
        "interval", "key", "link", "offences", "own", "sent", "since",
    )  # fmt: skip

    def __init__(
        self, own_id: str, now: float, limits: Limits, *, link: Any, deflate: bool
    ) -> None:
        self.id = own_id
        self.link = link
        self.deflate = deflate
        self.interval = limits.interval
        self.key: Key = ((), limits.interval, deflate)
        self.own: Outbox | None = None
        self.cohort: Cohort | None = None
        self.flight: Delivery | None = None
        self.control: list[bytes] = []
        self.answer: Delivery | None = None
        self.blocked: float | None = None
        self.bucket = Bucket(limits.inbound_rate, limits.inbound_burst, now)
        self.offences = Bucket(1 / limits.forgive_after, limits.offences, now)
        self.gone = False
        self.since = now
        self.sent = self.conflated = self.dropped = 0

    def outbox(self) -> Outbox | None:
        """Its own outbox, or its cohort's."""
        return self.own if self.cohort is None else self.cohort.outbox

    def channels(self) -> tuple[str, ...]:
        """What it is subscribed to."""
        outbox = self.outbox()
        return () if outbox is None else tuple(channel.name for channel in outbox.channels)

    def count(self, delivery: "Delivery", sign: int) -> None:
        """Add what a delivery says to what it got, or take it back."""
        self.sent += sign * delivery.count
        self.conflated += sign * delivery.conflated()
        self.dropped += sign * delivery.dropped()


class Cohort:
    """Clients at the same place.

    Attributes:
        key: what they have in common.
        outbox: where they are.
        members: in the order in which they joined.
        flight: the frame that some of them were not handed yet.
        sent, conflated, dropped: messages to each member since the cohort began.
    """

    __slots__ = ("conflated", "dropped", "flight", "key", "members", "outbox", "sent")

    def __init__(self, key: Key, outbox: Outbox) -> None:
        self.key = key
        self.outbox = outbox
        self.members: dict[Client, None] = {}
        self.flight: Delivery | None = None
        self.sent = self.conflated = self.dropped = 0

    def join(self, client: Client) -> None:
        """Take in a client that is at the cohort's position."""
        client.own = None
        client.cohort = self
        self.members[client] = None
        self._count(client, -1)

    def leave(self, client: Client, missed: "Delivery | None" = None) -> None:
        """Let a client go with an outbox of its own, at the place before the delivery that it missed."""
        outbox = self.outbox
        del self.members[client]
        client.cohort = None
        client.own = Outbox(
            outbox.channels, list(missed.before if missed else outbox.cursors), outbox.due
        )
        client.own.urgent_due = outbox.urgent_due
        self._count(client, 1)
        if missed is not None:
            client.count(missed, -1)

    def count(self, delivery: "Delivery") -> None:
        """Add what each member gets."""
        self.sent += delivery.count
        self.conflated += delivery.conflated()
        self.dropped += delivery.dropped()

    def _count(self, client: Client, sign: int) -> None:
        client.sent += sign * self.sent
        client.conflated += sign * self.conflated
        client.dropped += sign * self.dropped


class Delivery:
    """One frame and to whom it goes.

    Attributes:
        frame: the bytes to write, framed and where negotiated compressed.
        count: messages in it.
        oldest: when the oldest was published, for the time from publish to socket.
        batch: what it says; None for answers to one client.
        cohort: whose members it goes to, None for clients with outboxes of their own.
        before: the positions of those who do not get it.
        waiting: who was not handed it yet, the next one last.
        control: the answers in it, when it holds answers.
    """

    __slots__ = ("batch", "before", "cohort", "control", "count", "frame", "oldest", "waiting")

    def __init__(
        self,
        frame: bytes,
        count: int,
        oldest: float,
        waiting: list[Client],
        *,
        batch: Batch | None = None,
        cohort: Cohort | None = None,
        before: list[int] | None = None,
        control: list[bytes] | None = None,
    ) -> None:
        self.frame = frame
        self.count = count
        self.oldest = oldest
        self.waiting = waiting
        self.batch = batch
        self.cohort = cohort
        self.before = before or []
        self.control = control

    def conflated(self) -> int:
        """Messages passed over for newer ones of their keys."""
        return sum(self.batch.conflated.values()) if self.batch and self.batch.conflated else 0

    def dropped(self) -> int:
        """Messages lost and announced."""
        return sum(self.batch.dropped.values()) if self.batch and self.batch.dropped else 0
