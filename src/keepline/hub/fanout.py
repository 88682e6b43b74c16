"""The hub's decider: who gets which frame when, and what becomes of those who do not take it.

Invariants: every client sees each channel as a prefix of what was published: no duplicate, no hole that is not
announced, the newest value per key at the end, whatever is published, stalled, reconnected and resumed in between;
a publish costs the same for one client and for a thousand; a tick joins and frames once per cohort.

The face calls `tick` at `deadline`, hands each delivery out in slices with `hand`, writes where the transport's buffer
is empty and says `stalled` where it is not, and `drained` when it has become empty.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from keepline.errors import ConfigError
from keepline.hub.channels import UNSEEN, Channel, Policy
from keepline.hub.closecodes import CloseCode
from keepline.hub.cohorts import Client, Delivery
from keepline.hub.limits import Limits
from keepline.hub.messages import Message, Stamps, encode_control, encode_data
from keepline.hub.offences import ErrorCode, Offence
from keepline.hub.places import Closing, Places, hears
from keepline.hub.rounds import Refill, Rounds, Work
from keepline.hub.wire import Ping, Position, Rate, Refresh, Subscribe, Unsubscribe, parse

__all__ = ["Closing", "Hub", "Refill", "Work"]


class Hub:
    """Channels, clients and what is due.

    Args:
        channels: all channels there are.
        limits: see `Limits`.
        skew: seconds from the clock of `now` to wall time.

    Attributes:
        channels: by name.
        clients: by id.
        duplicates: messages whose id was known.
    """

    def __init__(
        self, channels: Iterable[Channel], limits: Limits | None = None, *, skew: float = 0.0
    ) -> None:
        self.limits = limits or Limits()
        self.channels = {channel.name: channel for channel in channels}
        self.clients: dict[str, Client] = {}
        self.duplicates = 0
        self._stamps = Stamps(skew)
        self._places = Places(self.limits)
        self._rounds = Rounds(self._places, self.channels, self._stamps)

    @property
    def deadline(self) -> float | None:
        """When to call `tick` next (seconds, the clock of `now`), None when nothing is due; `-inf` means at once.

        It is right after each call, and worked out when it is read: a face looks once after several calls.
        """
        return self._places.deadline

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
            ConfigError: there is no such channel, or the data cannot be written as JSON, or the channel's messages go
                through a journal and one is on its way.
        """
        target = self.channels.get(channel)
        if target is not None and target.stamped != target.offset:
            raise ConfigError(f"{channel!r} is persisted first: use publish_durable", key="channel")
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

    def deliver(self, message: Message) -> bool:
        """Let clients have a message that was stamped, here or in the process that keeps the count.

        Returns:
            Whether the deadline may be another now: only the first message of a channel since a tick can move it.
        """
        channel = self.channels[message.channel]
        channel.deliver(message)
        if channel.marked:
            return False
        self._places.mark(channel)
        return True

    def restore(
        self, name: str, messages: Iterable[Message], *, offset: int, epoch: str, now: float
    ) -> None:
        """Take over a channel's count from the process that keeps it; in another epoch its clients begin anew."""
        channel = self.channels[name]
        anew = channel.epoch != epoch or channel.offset > offset
        channel.restore(messages, offset=offset, epoch=epoch)
        for client in list(self.clients.values()):
            if anew and name in client.channels():
                cursors, promised = self._places.positions(client)
                lost = Position("", 0)  # no epoch of ours
                cursors[name], promised[name] = self._begin(client, channel, lost, now, None)
                self._places.place(client, cursors, promised, self.channels, now)
        self._places.reconsider()

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
            self._places.retire(client)

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
        if (size := _size(text, self.limits.max_message)) > self.limits.max_message:
            detail = f"{size} bytes, {self.limits.max_message} are allowed"
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
        cursors, recovering = self._places.positions(client)
        for name in wanted:
            if offence := self._refusal(name, cursors, permitted, own):
                self.offend(client, offence, now)
                continue
            channel = self.channels[name]
            cursors[name], recovering[name] = self._begin(
                client, channel, resume.get(name), now, own
            )
        self._places.place(client, cursors, recovering, self.channels, now)

    def unsubscribe(
        self, client: Client, names: Iterable[str], now: float, *, own: str | int | None = None
    ) -> None:
        """Remove channels: each is answered with `unsubscribed` or an `error`; nothing of it comes after that."""
        cursors, recovering = self._places.positions(client)
        for name in dict.fromkeys(names):
            if cursors.pop(name, None) is None:
                code = (
                    ErrorCode.NOT_SUBSCRIBED if name in self.channels else ErrorCode.UNKNOWN_CHANNEL
                )
                self.offend(client, Offence.of(code, channel=name, id=own), now)
                continue
            self.tell(client, "unsubscribed", now, {} if own is None else {"id": own}, channel=name)
        self._places.place(client, cursors, recovering, self.channels, now)

    def rate(self, client: Client, rate: float | None, now: float) -> None:
        """Frames per second that it wants, None for the hub's own pace."""
        cursors, recovering = self._places.positions(client)
        client.interval = self.limits.interval_of(rate)
        self._places.place(client, cursors, recovering, self.channels, now)

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
        self._places.talk[client] = None
        if hears(client):
            self._places.wake(now)

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
        return self._rounds.tick(now)

    def hand(self, delivery: Delivery, count: int | None = None) -> list[Client]:
        """The next clients to whom the frame is written at once, before anything else is asked of the hub."""
        return self._rounds.hand(delivery, count)

    def stalled(self, delivery: Delivery, client: Client, now: float) -> None:
        """It was handed a delivery and could not take it: it stays where it was before."""
        self._places.stalled(delivery, client, now)

    def drained(self, client: Client, now: float) -> None:
        """Its transport's buffer is empty again."""
        self._places.drained(client, now)

    def close(self, client: Client, code: CloseCode, reason: str = "") -> None:
        """Have the face close it, once; it gets nothing more."""
        self._places.close(client, code, reason)

    def refilled(self, refill: Refill, messages: Iterable[Message], now: float) -> None:
        """What the journal has for a refill; what it does not have is lost and will be announced."""
        self._rounds.refilled(refill, messages, now)

    # beginnings

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


def _size(text: bytes | str, most: int) -> int:
    """In bytes; what is short enough however it is written is not written out for that."""
    if isinstance(text, bytes) or len(text) * 4 <= most:
        return len(text)
    return len(text.encode(errors="surrogatepass"))
