"""Where each client is: in a cohort, at a place of its own, or taking nothing; and when the next tick is due.

Invariants: a client is in exactly one of a cohort, the strays, the blocked, or has no subscription; a client that moves
while a frame is on its way to it either had it handed out or is where it was before it; the deadline is right after
each call.
"""

from collections.abc import Mapping

import msgspec

from keepline.hub.channels import UNSEEN, Channel
from keepline.hub.closecodes import CloseCode
from keepline.hub.cohorts import Client, Cohort, Delivery, Key
from keepline.hub.limits import Limits
from keepline.hub.outbox import Outbox

__all__ = ["Closing", "Places", "hears"]

NEVER = float("inf")


class Closing(msgspec.Struct, frozen=True):
    """A connection that is to be closed; the face closes it and then says `disconnect`."""

    client: Client
    code: CloseCode
    reason: str = ""


class Places:
    """All clients that have something to get, by what they are doing.

    Args:
        limits: see `Limits`.

    Attributes:
        cohorts: by what their members have in common.
        strays: clients with an outbox of their own that take what they get.
        blocked: clients that take nothing, the longest first.
        talk: clients for whom answers wait.
        closings: connections to close.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._deadline: float | None = None
        self._stale = False
        self.cohorts: dict[Key, Cohort] = {}
        self.strays: dict[Client, None] = {}
        self.blocked: dict[Client, None] = {}
        self.talk: dict[Client, None] = {}
        self.closings: list[Closing] = []
        self._marked: list[Channel] = []

    @property
    def deadline(self) -> float | None:
        """When to tick next, None when nothing is due."""
        if self._stale:
            self._schedule()
        return self._deadline

    # what happens to a client

    def positions(self, client: Client) -> tuple[dict[str, int], dict[str, int]]:
        """Its cursor by channel, and up to where it was promised all, with nothing under way."""
        self.recall(client)
        outbox = client.outbox()
        if outbox is None:
            return {}, {}
        names = [channel.name for channel in outbox.channels]
        promised = {names[i]: until for i, until in outbox.recovering.items()}
        return dict(zip(names, outbox.cursors, strict=True)), promised

    def place(
        self,
        client: Client,
        cursors: Mapping[str, int],
        promised: Mapping[str, int],
        known: Mapping[str, Channel],
        now: float,
    ) -> None:
        """Give it an outbox of its own at these positions."""
        if client.gone:
            return
        old = client.outbox()
        if client.cohort is not None:
            self.leave(client)
        self.strays.pop(client, None)
        names = sorted(cursors)
        client.key = (tuple(names), client.interval, client.deflate)
        client.own = None
        if not names:
            return
        due = now if old is None else min(old.due, old.urgent_due)
        channels = tuple(known[name] for name in names)
        client.own = Outbox(channels, [cursors[name] for name in names], due)
        client.own.recovering = {
            i: promised[name] for i, name in enumerate(names) if name in promised
        }
        if client.blocked is None:
            self.strays[client] = None
            self.wake(due)

    def close(self, client: Client, code: CloseCode, reason: str = "") -> None:
        """Have the face close it, once; it gets nothing more."""
        if not client.gone:
            self.retire(client)
            self.closings.append(Closing(client, code, reason))
            self.wake(-NEVER)

    def retire(self, client: Client) -> None:
        """It gets nothing more."""
        if client.gone:
            return
        self.recall(client)
        client.gone = True
        if client.cohort is not None:
            self.leave(client)
        client.own = None
        for group in (self.strays, self.blocked, self.talk):
            group.pop(client, None)

    def drained(self, client: Client, now: float) -> None:
        """Its transport's buffer is empty again."""
        if client.blocked is None or client.gone:
            return
        client.blocked = None
        del self.blocked[client]
        if client.own is not None:
            self.strays[client] = None
        self.wake(now)

    def stalled(self, delivery: Delivery, client: Client, now: float) -> None:
        """It was handed a delivery and could not take it: it stays where it was before."""
        if client.gone:
            return
        if delivery.control is not None:
            self.take_back(client, delivery.control)
        elif delivery.cohort is None:
            self.put_back(client, delivery)
        elif client.cohort is delivery.cohort:
            self.leave(client, delivery)
        self.block(client, now)

    def take_back(self, client: Client, texts: list[bytes]) -> None:
        """Answers that were not taken wait again, before those that came since."""
        client.control[:0] = texts
        self.talk[client] = None

    # moving between cohorts

    def gather(self) -> None:
        """Who is at its cohort's place joins it; who has none founds it."""
        for client in list(self.strays):
            outbox = client.own
            if client.flight or client.control or outbox is None or not outbox.plain():
                continue
            cohort = self.cohorts.get(client.key)
            if cohort is None:
                if UNSEEN in outbox.cursors:
                    continue
                cohort = self.cohorts[client.key] = Cohort(client.key, outbox)
                outbox.recovering.clear()
            elif cohort.flight is not None or cohort.outbox.cursors != outbox.cursors:
                continue
            cohort.join(client)
            del self.strays[client]

    def leave(self, client: Client, missed: Delivery | None = None) -> None:
        """Out of its cohort, behind the delivery that it missed if there is one."""
        cohort = client.cohort
        assert cohort is not None
        cohort.leave(client, missed)
        if not cohort.members and self.cohorts.get(cohort.key) is cohort:
            del self.cohorts[cohort.key]
        if client.blocked is None and not client.gone:
            self.strays[client] = None

    def put_back(self, client: Client, delivery: Delivery) -> None:
        """To where it was before a delivery of its own."""
        outbox = client.own
        if outbox is not None and len(outbox.cursors) == len(delivery.before):
            outbox.cursors = list(delivery.before)
            outbox.stored.clear()
            outbox.hungry.clear()
            client.count(delivery, -1)

    def recall(self, client: Client) -> None:
        """Take back what is under way to it and was not handed out."""
        delivery = client.flight
        if delivery is not None:
            client.flight = None
            delivery.waiting.remove(client)
            client.count(delivery, 1)  # it counts from when it is handed out
            self.put_back(client, delivery)
            return
        delivery = client.cohort.flight if client.cohort is not None else None
        if delivery is not None and client in delivery.waiting:
            delivery.waiting.remove(client)
            self.leave(client, delivery)
            self.landed(delivery)

    def block(self, client: Client, now: float) -> None:
        """It takes nothing: out of everybody's way until it is drained."""
        self.recall(client)
        if client.cohort is not None:
            self.leave(client)
        self.strays.pop(client, None)
        if client.blocked is None:
            client.blocked = now
            self.blocked[client] = None
            self.wake(now + self.limits.slow_after)

    def landed(self, delivery: Delivery) -> None:
        """A delivery may be handed out completely: its cohort is free for the next one."""
        if delivery.waiting:
            return
        if delivery.cohort is not None and delivery.cohort.flight is delivery:
            delivery.cohort.flight = None
        self.reconsider()

    # deadlines

    def reconsider(self) -> None:
        """So much has moved that the deadline is worked out anew when somebody asks for it."""
        self._stale = True

    def wake(self, at: float) -> None:
        """Tick at this time at the latest."""
        if self._deadline is None or at < self._deadline:
            self._deadline = at

    def mark(self, channel: Channel) -> None:
        """The first message since the last tick: when do its subscribers want it?"""
        if self._stale:
            return  # will be seen then
        channel.marked = True
        self._marked.append(channel)
        for cohort in self.cohorts.values():
            if cohort.flight is None and channel in cohort.outbox.channels:
                self.wake(cohort.outbox.urgent_due if channel.urgent else cohort.outbox.due)
        for client in self.strays:
            if client.flight is None and client.own is not None and channel in client.own.channels:
                self.wake(client.own.urgent_due if channel.urgent else client.own.due)

    def _schedule(self) -> None:
        """Look at everybody who could get something: when is the next tick?"""
        self._stale = False
        for channel in self._marked:
            channel.marked = False
        self._marked.clear()
        self._deadline = -NEVER if self.closings else None
        busy = set()
        for cohort in self.cohorts.values():
            if cohort.flight is not None:
                busy.add(cohort.key)
            else:
                self._want(cohort.outbox)
        for client in self.strays:
            if client.flight is None and client.own is not None and client.key not in busy:
                self._want(client.own)
        if any(hears(client) for client in self.talk):
            self.wake(-NEVER)
        if self.blocked:
            first = next(iter(self.blocked)).blocked
            assert first is not None
            self.wake(first + self.limits.slow_after)

    def _want(self, outbox: Outbox) -> None:
        if level := outbox.pending():
            self.wake(outbox.urgent_due if level > 1 else outbox.due)


def hears(client: Client) -> bool:
    """Whether it may be answered now: it takes what is written, and has no earlier answer on its way."""
    return client.blocked is None and client.answer is None
