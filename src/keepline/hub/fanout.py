"""The hub's decider: who gets which frame when, and what becomes of those who do not take it.

Invariants: every client sees each channel as a prefix of what was published: no duplicate, no hole that is not
announced, the newest value per key at the end, whatever is published, stalled, reconnected and resumed in between;
a publish costs the same for one client and for a thousand; a tick joins and frames once per cohort.

The face calls `tick` at `deadline`, hands each delivery out in slices with `hand`, writes where the transport's buffer
is empty and says `stalled` where it is not, and `drained` when it has become empty.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from keepline.errors import ConfigError
from keepline.hub.channels import UNSEEN, Channel, Policy
from keepline.hub.closecodes import CloseCode
from keepline.hub.cohorts import Client, Cohort, Delivery, Key
from keepline.hub.deflate import Deflater
from keepline.hub.frames import deflated_frame, text_frame
from keepline.hub.limits import Limits
from keepline.hub.messages import Message, Stamps, encode_control, encode_data, join
from keepline.hub.offences import ErrorCode, Offence
from keepline.hub.outbox import Batch, Outbox
from keepline.hub.wire import Ping, Position, Rate, Refresh, Subscribe, Unsubscribe, parse

__all__ = ["Closing", "Hub", "Refill", "Work"]

NEVER = float("inf")


class Closing(msgspec.Struct, frozen=True):
    """A connection that is to be closed; the face closes it and then says `disconnect`."""

    client: Client
    code: CloseCode
    reason: str = ""


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


class Hub:
    """Channels, clients and what is due.

    Args:
        channels: all channels there are.
        limits: see `Limits`.
        skew: seconds from the clock of `now` to wall time.

    Attributes:
        deadline: when to call `tick` next (seconds, the clock of `now`), None when nothing is due. It is right after
            each call; a face that has a timer for an earlier time need not look.
        clients: by id.
        published: messages by channel since the start.
        duplicates: messages whose id was known.
    """

    def __init__(
        self, channels: Iterable[Channel], limits: Limits | None = None, *, skew: float = 0.0
    ) -> None:
        self.limits = limits or Limits()
        self.channels = {channel.name: channel for channel in channels}
        self.clients: dict[str, Client] = {}
        self.deadline: float | None = None
        self.duplicates = 0
        self._stamps = Stamps(skew)
        self._deflater = Deflater()
        self._cohorts: dict[Key, Cohort] = {}
        self._strays: dict[Client, None] = {}  # with an outbox of their own, and taking
        self._blocked: dict[Client, None] = {}  # taking nothing, the longest first
        self._talk: dict[Client, None] = {}  # answers wait for them
        self._closings: list[Closing] = []
        self._marked: list[Channel] = []

    @property
    def skew(self) -> float:
        """Seconds from the clock of `now` to wall time; the face sets it again when the wall clock jumps."""
        return self._stamps.skew

    @skew.setter
    def skew(self, seconds: float) -> None:
        self._stamps.skew = seconds

    # publishing

    def publish(
        self, channel: str, kind: str, data: Any, now: float, *, key: str = "", own: str = ""
    ) -> Message:
        """Number, encode and deliver; a known id gives back the message that already has it.

        Raises:
            ConfigError: there is no such channel, or the data cannot be written as JSON.
        """
        message = self.stamp(channel, kind, data, now, key=key, own=own)
        if message.offset > self.channels[channel].offset:
            self.deliver(message)
        return message

    def stamp(
        self, channel: str, kind: str, data: Any, now: float, *, key: str = "", own: str = ""
    ) -> Message:
        """Number and encode: what is persisted first is delivered with `deliver` once it is safe.

        Raises:
            ConfigError: there is no such channel, or the data cannot be written as JSON or is too large.
        """
        try:
            target = self.channels[channel]
        except KeyError:
            known = ", ".join(self.channels)
            raise ConfigError(
                f"there is no channel {channel!r}; there are {known}", key="channel"
            ) from None
        if own and (earlier := target.known(own)) is not None:
            self.duplicates += 1
            return earlier
        text = encode_data(data)
        if len(text) > self.limits.max_data:
            raise ConfigError(
                f"is {len(text)} bytes; a message may have {self.limits.max_data}", key="data"
            )
        return target.stamp(kind, text, now, self._stamps, key=key, own=own)

    def deliver(self, message: Message) -> None:
        """Let clients have a message that was stamped, here or in the process that keeps the count."""
        channel = self.channels[message.channel]
        channel.deliver(message)
        if not channel.marked:
            self._mark(channel)

    # connections

    def connect(
        self,
        own_id: str,
        now: float,
        *,
        link: Any = None,
        deflate: bool = False,
        welcome: Mapping[str, Any] | None = None,
    ) -> Client:
        """A new client; `welcome` is what it is told first."""
        assert own_id not in self.clients, f"client {own_id} is already connected"
        client = Client(own_id, now, self.limits, link=link, deflate=deflate)
        self.clients[own_id] = client
        self.tell(client, "welcome", now, {"client": own_id, **(welcome or {})})
        return client

    def disconnect(self, client: Client) -> None:
        """It is gone; says so once or often."""
        if self.clients.get(client.id) is client:
            del self.clients[client.id]
            self._retire(client)

    def close(self, client: Client, code: CloseCode, reason: str = "") -> None:
        """Have the face close it, once; it gets nothing more."""
        if not client.gone:
            self._retire(client)
            self._closings.append(Closing(client, code, reason))
            self._wake(-NEVER)

    def drained(self, client: Client, now: float) -> None:
        """Its transport's buffer is empty again."""
        if client.blocked is None or client.gone:
            return
        client.blocked = None
        del self._blocked[client]
        if client.own is not None:
            self._strays[client] = None
        self._wake(now)

    def stalled(self, delivery: Delivery, client: Client, now: float) -> None:
        """It was handed a delivery and could not take it: it stays where it was before."""
        if client.gone:
            return
        if delivery.control is not None:
            self._take_back(client, delivery.control)
        elif delivery.cohort is None:
            self._put_back(client, delivery)
        elif client.cohort is delivery.cohort:
            self._leave(client, delivery)
        self._block(client, now)

    # requests

    def receive(
        self,
        client: Client,
        text: bytes | str,
        now: float,
        permitted: Callable[[str], bool] = lambda channel: True,
    ) -> Refresh | None:
        """Do what a client's message asks; what only the face can do (a newer token) is handed back."""
        if not client.bucket.take(now):
            self.offend(client, Offence.of(ErrorCode.RATE_LIMITED), now)
            return None
        if len(text) > self.limits.max_message:
            detail = f"{len(text)} bytes, {self.limits.max_message} are allowed"
            self.offend(client, Offence.of(ErrorCode.TOO_LARGE, detail), now)
            return None
        request = parse(text)
        match request:
            case Offence():
                self.offend(client, request, now)
            case Subscribe():
                self.subscribe(
                    client,
                    request.channels,
                    now,
                    request.resume,
                    permitted=permitted,
                    own=request.id,
                )
            case Unsubscribe():
                self.unsubscribe(client, request.channels, now, own=request.id)
            case Rate():
                self.rate(client, request.rate, now)
            case Ping():
                self.tell(client, "pong", now, {} if request.id is None else {"id": request.id})
            case Refresh():
                return request
        return None

    def subscribe(
        self,
        client: Client,
        names: Iterable[str],
        now: float,
        resume: Mapping[str, Position] | None = None,
        *,
        permitted: Callable[[str], bool] = lambda channel: True,
        own: str | int | None = None,
    ) -> None:
        """Add channels: each is answered with `subscribed` or an `error`; a channel that it has begins anew."""
        resume = resume or {}
        wanted = dict.fromkeys(names)
        if stray := [name for name in resume if name not in wanted]:
            self.offend(
                client,
                Offence.of(ErrorCode.BAD_RESUME, f"{stray[0]!r} is not in channels", id=own),
                now,
            )
            return
        cursors, recovering = self._positions(client)
        for name in wanted:
            if offence := self._refusal(name, cursors, permitted, own):
                self.offend(client, offence, now)
                continue
            channel = self.channels[name]
            cursors[name], recovering[name] = self._begin(
                client, channel, resume.get(name), now, own
            )
        self._place(client, cursors, recovering, now)

    def unsubscribe(
        self, client: Client, names: Iterable[str], now: float, *, own: str | int | None = None
    ) -> None:
        """Remove channels: each is answered with `unsubscribed` or an `error`; nothing of it comes after that."""
        cursors, recovering = self._positions(client)
        for name in dict.fromkeys(names):
            if cursors.pop(name, None) is None:
                code = (
                    ErrorCode.NOT_SUBSCRIBED if name in self.channels else ErrorCode.UNKNOWN_CHANNEL
                )
                self.offend(client, Offence.of(code, channel=name, id=own), now)
                continue
            recovering.pop(name, None)
            self.tell(client, "unsubscribed", now, {} if own is None else {"id": own}, channel=name)
        self._place(client, cursors, recovering, now)

    def rate(self, client: Client, rate: float | None, now: float) -> None:
        """Frames per second that it wants, None for the hub's own pace."""
        cursors, recovering = self._positions(client)
        client.interval = self.limits.interval_of(rate)
        self._place(client, cursors, recovering, now)

    def tell(
        self,
        client: Client,
        kind: str,
        now: float,
        data: Mapping[str, Any],
        *,
        channel: str | None = None,
    ) -> None:
        """An answer or a notice to one client (`pong`, `refreshed`, `expiring` ...), with the next tick."""
        if client.gone:
            return
        client.control.append(encode_control(kind, self._stamps.at(now), data, channel=channel))
        if len(client.control) > self.limits.control_buffer:
            self.close(client, CloseCode.SLOW)
        self._talk[client] = None
        if _hears(client):
            self._wake(now)

    def offend(self, client: Client, offence: Offence, now: float) -> None:
        """Answer an offence; the connection stays unless they repeat."""
        if client.offences.take(now):
            data = {"code": offence.code, "message": offence.words}
            if offence.id is not None:
                data["id"] = offence.id  # type: ignore[assignment]
            self.tell(client, "error", now, data, channel=offence.channel)
            return
        flooding = offence.code is ErrorCode.RATE_LIMITED
        self.close(client, CloseCode.FLOODING if flooding else CloseCode.TOO_MANY_OFFENCES)

    # time

    def tick(self, now: float) -> Work:
        """Everything that is due: frames and to whom, connections to close, messages to read from the journal."""
        work = Work([], self._closings, [])
        self._closings = []
        self._give_up(now, work)
        self._answer(work, now)
        self._gather()
        busy = {cohort.key for cohort in self._cohorts.values() if cohort.flight is not None}
        for cohort in list(self._cohorts.values()):
            if cohort.flight is None:
                self._serve(cohort, now, work)
        self._serve_strays(busy, now, work)
        self._schedule()
        return work

    def hand(self, delivery: Delivery, count: int | None = None) -> list[Client]:
        """The next clients to whom the frame is written at once, before anything else is asked of the hub."""
        waiting = delivery.waiting
        cut = 0 if count is None else max(0, len(waiting) - count)
        chosen = waiting[cut:]
        del waiting[cut:]
        chosen.reverse()
        handed = [client for client in chosen if self._handed(delivery, client)]
        self._landed(delivery)
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
        self._wake(now)

    # where clients are

    def _positions(self, client: Client) -> tuple[dict[str, int], dict[str, int]]:
        """Its cursor by channel, and up to where it was promised all, with nothing under way."""
        self._recall(client)
        outbox = client.outbox()
        if outbox is None:
            return {}, {}
        names = [channel.name for channel in outbox.channels]
        promised = {names[i]: until for i, until in outbox.recovering.items()}
        return dict(zip(names, outbox.cursors, strict=True)), promised

    def _place(
        self, client: Client, cursors: dict[str, int], promised: dict[str, int], now: float
    ) -> None:
        """Give it an outbox of its own at these positions."""
        if client.gone:
            return
        old = client.outbox()
        if client.cohort is not None:
            self._leave(client)
        self._strays.pop(client, None)
        names = sorted(cursors)
        client.key = (tuple(names), client.interval, client.deflate)
        client.own = None
        if not names:
            return
        due = now if old is None else min(old.due, old.urgent_due)
        channels = tuple(self.channels[name] for name in names)
        client.own = Outbox(channels, [cursors[name] for name in names], due)
        client.own.recovering = {
            i: promised[name] for i, name in enumerate(names) if name in promised
        }
        if client.blocked is None:
            self._strays[client] = None
            self._wake(due)

    def _refusal(
        self,
        name: str,
        cursors: Mapping[str, int],
        permitted: Callable[[str], bool],
        own: str | int | None,
    ) -> Offence | None:
        if name not in self.channels:
            return Offence.of(ErrorCode.UNKNOWN_CHANNEL, channel=name, id=own)
        if not permitted(name):
            return Offence.of(ErrorCode.FORBIDDEN, channel=name, id=own)
        if name not in cursors and len(cursors) >= self.limits.max_channels:
            most = f"{self.limits.max_channels} are allowed"
            return Offence.of(ErrorCode.TOO_MANY_CHANNELS, most, channel=name, id=own)
        return None

    def _begin(
        self,
        client: Client,
        channel: Channel,
        position: Position | None,
        now: float,
        own: str | int | None,
    ) -> tuple[int, int]:
        """Say how a subscription begins; the cursor, and up to where all was promised."""
        gap = None if position is None else channel.resume(position.epoch, position.offset, now)
        recovered = position is not None and gap is None
        data: dict[str, Any] = {
            "policy": channel.policy,
            "epoch": channel.epoch,
            "offset": channel.offset,
            "recovered": recovered,
        }
        if own is not None:
            data["id"] = own
        self.tell(client, "subscribed", now, data, channel=channel.name)
        if gap is None:
            return (position.offset, channel.offset) if position is not None else (UNSEEN, 0)
        client.control.append(channel.gap_text(gap, now, self._stamps))
        if channel.policy is Policy.NEVER:
            return channel.first() - 1, 0  # what is retained is delivered one by one
        return UNSEEN, 0

    def _leave(self, client: Client, missed: Delivery | None = None) -> None:
        """Out of its cohort, behind the delivery that it missed if there is one."""
        cohort = client.cohort
        assert cohort is not None
        cohort.leave(client, missed)
        if not cohort.members and self._cohorts.get(cohort.key) is cohort:
            del self._cohorts[cohort.key]
        if client.blocked is None and not client.gone:
            self._strays[client] = None

    def _take_back(self, client: Client, texts: list[bytes]) -> None:
        client.control[:0] = texts
        self._talk[client] = None

    def _put_back(self, client: Client, delivery: Delivery) -> None:
        outbox = client.own
        if outbox is not None and len(outbox.cursors) == len(delivery.before):
            outbox.cursors = list(delivery.before)
            outbox.stored.clear()
            outbox.hungry.clear()
            client.count(delivery, -1)

    def _recall(self, client: Client) -> None:
        """Take back what is under way to it and was not handed out."""
        delivery = client.flight
        if delivery is not None:
            client.flight = None
            delivery.waiting.remove(client)
            client.count(delivery, 1)  # it counts from when it is handed out
            self._put_back(client, delivery)
            return
        delivery = client.cohort.flight if client.cohort is not None else None
        if delivery is not None and client in delivery.waiting:
            delivery.waiting.remove(client)
            self._leave(client, delivery)
            self._landed(delivery)

    def _retire(self, client: Client) -> None:
        if client.gone:
            return
        self._recall(client)
        client.gone = True
        if client.cohort is not None:
            self._leave(client)
        client.own = None
        for group in (self._strays, self._blocked, self._talk):
            group.pop(client, None)

    def _block(self, client: Client, now: float) -> None:
        self._recall(client)
        if client.cohort is not None:
            self._leave(client)
        self._strays.pop(client, None)
        if client.blocked is None:
            client.blocked = now
            self._blocked[client] = None
            self._wake(now + self.limits.slow_after)

    # frames

    def _give_up(self, now: float, work: Work) -> None:
        while self._blocked:
            client = next(iter(self._blocked))
            if client.blocked is None or now - client.blocked < self.limits.slow_after:
                break
            self._retire(client)
            work.closings.append(Closing(client, CloseCode.SLOW))

    def _answer(self, work: Work, now: float) -> None:
        for client in [each for each in self._talk if _hears(each)]:
            texts = client.control[: self.limits.max_batch]
            del client.control[: self.limits.max_batch]
            if not client.control:
                del self._talk[client]
            frame = text_frame(join(texts))
            client.answer = Delivery(frame, len(texts), now, [client], control=texts)
            work.deliveries.append(client.answer)

    def _gather(self) -> None:
        """Who is at its cohort's place joins it; who has none founds it."""
        for client in list(self._strays):
            outbox = client.own
            if client.flight or client.control or outbox is None or not outbox.plain():
                continue
            cohort = self._cohorts.get(client.key)
            if cohort is None:
                if UNSEEN in outbox.cursors:
                    continue
                cohort = self._cohorts[client.key] = Cohort(client.key, outbox)
                outbox.recovering.clear()
            elif cohort.flight is not None or cohort.outbox.cursors != outbox.cursors:
                continue
            cohort.join(client)
            del self._strays[client]

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
            self._leave(client)
            if client.own is not None:
                client.own.hungry = set(hungry)
                self._ask(client, client.own, hungry, work)

    def _ask(self, client: Client, outbox: Outbox, hungry: set[int], work: Work) -> None:
        for i in hungry:
            name, after = outbox.channels[i].name, outbox.cursors[i]
            work.refills.append(Refill(client, name, after, self.limits.refill))

    def _serve_strays(self, busy: set[Key], now: float, work: Work) -> None:
        groups: dict[object, list[Client]] = {}
        for client in self._strays:
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
        cohort = self._cohorts.get(leader.key)
        for client in group:
            own = client.own
            assert own is not None
            if own is not outbox:
                own.cursors = list(outbox.cursors)
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
        limits = self.limits
        before = list(outbox.cursors)
        budget = limits.budget(key[1])
        batch = outbox.take(now, budget, limits, self._stamps, urgent_only=not full)
        outbox.urgent_due = _after(outbox.urgent_due, limits.interval, now)
        if full:
            outbox.due = _after(outbox.due, key[1], now)
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
            self._take_back(client, delivery.control)
            return False
        if delivery.cohort is not None:
            return client.cohort is delivery.cohort
        if client.flight is not delivery:
            return False
        client.flight = None
        client.count(delivery, 1)
        return True

    def _landed(self, delivery: Delivery) -> None:
        if delivery.waiting:
            return
        if delivery.cohort is not None and delivery.cohort.flight is delivery:
            delivery.cohort.flight = None
        self._schedule()

    # deadlines

    def _wake(self, at: float) -> None:
        if self.deadline is None or at < self.deadline:
            self.deadline = at

    def _mark(self, channel: Channel) -> None:
        """The first message since the last tick: when do its subscribers want it?"""
        channel.marked = True
        self._marked.append(channel)
        for cohort in self._cohorts.values():
            if cohort.flight is None and channel in cohort.outbox.channels:
                self._wake(cohort.outbox.urgent_due if channel.urgent else cohort.outbox.due)
        for client in self._strays:
            if client.flight is None and client.own is not None and channel in client.own.channels:
                self._wake(client.own.urgent_due if channel.urgent else client.own.due)

    def _schedule(self) -> None:
        """Look at everybody who could get something: when is the next tick?"""
        for channel in self._marked:
            channel.marked = False
        self._marked.clear()
        self.deadline = -NEVER if self._closings else None
        busy = set()
        for cohort in self._cohorts.values():
            if cohort.flight is not None:
                busy.add(cohort.key)
            else:
                self._want(cohort.outbox)
        for client in self._strays:
            if client.flight is None and client.own is not None and client.key not in busy:
                self._want(client.own)
        if any(_hears(client) for client in self._talk):
            self._wake(-NEVER)
        if self._blocked:
            first = next(iter(self._blocked)).blocked
            assert first is not None
            self._wake(first + self.limits.slow_after)

    def _want(self, outbox: Outbox) -> None:
        if level := outbox.pending():
            self._wake(outbox.urgent_due if level > 1 else outbox.due)


def _after(due: float, interval: float, now: float) -> float:
    """The next frame's instant: in step with the last one, or with now after quiet."""
    return due + interval if now - due < interval else now + interval


def _hears(client: Client) -> bool:
    """Whether it may be answered now: it takes what is written, and has no earlier answer on its way."""
    return client.blocked is None and client.answer is None
