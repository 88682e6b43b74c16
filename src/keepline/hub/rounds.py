"""What a tick does: frames for those who are due, answers first, and the end of those who stay slow.

Invariants: a cohort's frame is joined and framed once; clients of their own at equal places share one as well; a cohort
gets no frame before its last one is handed out; all answers to a client come before the data behind them; frames of a
steady flow come to leave on the beats of one clock, whatever their channels and pauses, so that one tick serves all.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from keepline.hub.channels import Channel
from keepline.hub.closecodes import CloseCode
from keepline.hub.cohorts import Client, Cohort, Delivery, Key
from keepline.hub.deflate import Deflater
from keepline.hub.frames import deflated_frame, text_frame
from keepline.hub.messages import Message, Stamps, join
from keepline.hub.outbox import Batch, Outbox
from keepline.hub.places import Closing, Places, hears

__all__ = ["Refill", "Rounds", "Work"]

_ON_BEAT = 1e-6  # of a beat: what rounding makes of an instant that is on it
_LARGEST_STEP = 1 / 8  # of a beat


class Refill(msgspec.Struct, frozen=True):
    """Messages wanted from the journal: those of the channel after an offset, in order, at most so many."""

    client: Client
    channel: str
    after: int
    limit: int


class Work(msgspec.Struct):
    """What the face has to do now."""

    deliveries: list[Delivery] = []
    closings: list[Closing] = []
    refills: list[Refill] = []


class Rounds:
    """Makes the frames.

    Args:
        places: where the clients are.
        channels: all channels there are, by name.
        stamps: the wall time.
    """

    def __init__(self, places: Places, channels: Mapping[str, Channel], stamps: Stamps) -> None:
        self.places = places
        self.channels = channels
        self._stamps = stamps
        self._limits = places.limits
        self._deflater = Deflater()

    def tick(self, now: float) -> Work:
        """Everything that is due: frames and to whom, connections to close, messages to read from the journal."""
        work = Work([], self.places.closings, [])
        self.places.closings = []
        self._give_up(now, work)
        self._answer(work, now)
        self.places.gather()
        busy = {cohort.key for cohort in self.places.cohorts.values() if cohort.flight is not None}
        for cohort in list(self.places.cohorts.values()):
            if cohort.flight is None:
                self._serve(cohort, now, work)
        self._serve_strays(busy, now, work)
        self.places.reconsider()
        return work

    def hand(self, delivery: Delivery, count: int | None = None) -> list[Client]:
        """The next clients to whom the frame is written at once, before anything else is asked of the hub."""
        waiting = delivery.waiting
        cut = 0 if count is None else max(0, len(waiting) - count)
        chosen = waiting[cut:]
        del waiting[cut:]
        chosen.reverse()
        if (cohort := delivery.cohort) is not None:  # who has gone has left it
            handed = [client for client in chosen if client.cohort is cohort]
        else:
            handed = [client for client in chosen if self._handed(delivery, client)]
        self.places.landed(delivery)
        return handed

    def refilled(self, refill: Refill, messages: Iterable[Message], now: float) -> None:
        """What the journal has for a refill; what it does not have is lost and will be announced."""
        client, outbox = refill.client, refill.client.own
        if client.gone or outbox is None:
            return
        found = list(messages)
        channel = self.channels[refill.channel]
        first = found[0].offset if found else None
        if first != refill.after + 1:  # older ones are gone, for everybody
            channel.retained = first
        for i, each in enumerate(outbox.channels):
            if each is channel and i in outbox.hungry:
                outbox.hungry.discard(i)
                if outbox.cursors[i] == refill.after:
                    outbox.stored[i] = deque(found)
        self.places.wake(now)

    def _give_up(self, now: float, work: Work) -> None:
        while self.places.blocked:
            client = next(iter(self.places.blocked))
            if client.blocked is None or now - client.blocked < self._limits.slow_after:
                break
            self.places.retire(client)
            work.closings.append(Closing(client, CloseCode.SLOW))

    def _answer(self, work: Work, now: float) -> None:
        for client in [each for each in self.places.talk if hears(each)]:
            texts = client.control[: self._limits.max_batch]
            del client.control[: self._limits.max_batch]
            if not client.control:
                del self.places.talk[client]
            frame = text_frame(join(texts))
            client.answer = Delivery(frame, len(texts), now, [client], control=texts)
            work.deliveries.append(client.answer)

    def _serve(self, cohort: Cohort, now: float, work: Work) -> None:
        taken = self._take(cohort.outbox, cohort.key, now)
        if taken is None:
            return
        before, batch = taken
        if cohort.outbox.hungry:
            self._dissolve(cohort, before, work)
            return
        if batch is None:
            return
        members = list(cohort.members)
        members.reverse()
        delivery = self._framed(batch, cohort.key, members, before)
        delivery.cohort = cohort
        cohort.flight = delivery
        cohort.count(delivery)
        work.deliveries.append(delivery)

    def _dissolve(self, cohort: Cohort, before: list[int], work: Work) -> None:
        """What comes next is only in the journal, which answers one client at a time."""
        hungry = set(cohort.outbox.hungry)
        cohort.outbox.hungry.clear()
        cohort.outbox.cursors = before
        for client in list(cohort.members):
            self.places.leave(client)
            if client.own is not None:
                client.own.hungry = set(hungry)
                self._ask(client, client.own, hungry, work)

    def _ask(self, client: Client, outbox: Outbox, hungry: set[int], work: Work) -> None:
        for i in hungry:
            name, after = outbox.channels[i].name, outbox.cursors[i]
            work.refills.append(Refill(client, name, after, self._limits.refill))

    def _serve_strays(self, busy: set[Key], now: float, work: Work) -> None:
        groups: dict[object, list[Client]] = {}
        for client in self.places.strays:
            outbox = client.own
            if outbox is None or client.flight or client.control or client.key in busy:
                continue  # all answers come before the data behind them
            if outbox.pending():
                groups.setdefault((client.key, outbox.place(client)), []).append(client)
        for group in groups.values():
            self._serve_group(group, now, work)

    def _serve_group(self, group: list[Client], now: float, work: Work) -> None:
        leader = group[0]
        outbox = leader.own
        assert outbox is not None
        hungry = set(outbox.hungry)
        taken = self._take(outbox, leader.key, now)
        if taken is None:
            return
        before, batch = taken
        self._ask(leader, outbox, outbox.hungry - hungry, work)
        cohort = self.places.cohorts.get(leader.key)
        for client in group:
            own = client.own
            assert own is not None
            if own is not outbox:
                own.cursors = list(outbox.cursors)
                own.recovering = dict(outbox.recovering)
            if batch is not None and cohort is not None:  # in step, so that they meet
                own.due, own.urgent_due = cohort.outbox.due, cohort.outbox.urgent_due
            else:
                own.due, own.urgent_due = outbox.due, outbox.urgent_due
        if batch is None:
            return
        delivery = self._framed(batch, leader.key, group[::-1], before)
        for client in group:
            client.flight = delivery
        work.deliveries.append(delivery)

    def _take(self, outbox: Outbox, key: Key, now: float) -> tuple[list[int], Batch | None] | None:
        """Where it was and what it gets, None when nothing is due."""
        level = outbox.pending()
        full = level > 0 and outbox.due <= now
        if not full and not (level > 1 and outbox.urgent_due <= now):
            return None
        limits = self._limits
        before = list(outbox.cursors)
        budget = limits.budget(key[1])
        batch = outbox.take(now, budget, limits, self._stamps, urgent_only=not full)
        outbox.urgent_due = _after(outbox.urgent_due, limits.interval, now, limits.interval)
        if full:
            outbox.due = _after(outbox.due, key[1], now, limits.interval)
        return before, batch

    def _framed(self, batch: Batch, key: Key, waiting: list[Client], before: list[int]) -> Delivery:
        payload = join(batch.texts)
        frame = deflated_frame(payload, self._deflater) if key[2] else text_frame(payload)
        return Delivery(frame, len(batch.texts), batch.oldest, waiting, batch=batch, before=before)

    def _handed(self, delivery: Delivery, client: Client) -> bool:
        if client.gone:
            return False
        if delivery.control is not None:
            client.answer = None
            if client.blocked is None:
                return True
            self.places.take_back(client, delivery.control)
            return False
        if client.flight is not delivery:
            return False
        client.flight = None
        client.count(delivery, 1)
        return True


def _after(due: float, pause: float, now: float, beat: float) -> float:
    """The next frame's instant: in step with the last one, or with now after quiet; nearer to a beat each time.

    The pause only grows, by so little that nobody sees it, until the frames of a steady flow are on the common beat.
    """
    due = due + pause if now - due < pause else now + pause
    beats = due / beat
    off = math.ceil(beats - _ON_BEAT) - beats
    return due + min(off, _LARGEST_STEP) * beat if off > _ON_BEAT else due
