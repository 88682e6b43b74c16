"""Who numbers and stores: each message gets its place here, and what is never dropped is on the disk first.

Invariants: one registrar per hub, whatever number of processes fan out; it hands each message to its outlet exactly
once and in the order of offsets; it knows no client.
"""

import asyncio
import concurrent.futures
import logging
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError
from keepline.hub.channels import Channel, Policy
from keepline.hub.journal import Entry, MessageJournal, Retention, Stored
from keepline.hub.measures import HandedOut
from keepline.hub.messages import OWN_TYPES, Message, Stamps, encode_data
from keepline.hub.publishing import LONGEST_WORD
from keepline.hub.settings import ChannelSettings
from keepline.hub.stored import StoredMessages
from keepline.telemetry import event

__all__ = ["Outlet", "Published", "Registrar", "report_failure"]

log = logging.getLogger("keepline.hub")

_MOST_RESTORED = 1000


class Outlet(Protocol):
    """Who fans out: the broadcaster of this process, or the bus to those of others."""

    def deliver(self, message: Message) -> None:
        """Take the next message of its channel, and bring it into the registrar's channel (`Channel.deliver`)."""
        ...


class Published(NamedTuple):
    """Where a message is now.

    Attributes:
        channel: its channel.
        offset: its place there.
        epoch: the count that the offset belongs to.
        new: False when its id was known and nothing was published again.
    """

    channel: str
    offset: int
    epoch: str
    new: bool


class Registrar:
    """Channels, their counts and the journal; belongs to one event loop.

    Args:
        channels: what there is.
        journal_path: where messages of `never` channels are kept; None keeps them in memory alone.
        max_data: bytes of one message's data.
        clock: time.
    """

    def __init__(
        self,
        channels: Iterable[ChannelSettings],
        *,
        journal_path: Path | None,
        max_data: int = 256 * 1024,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._settings = {each.name: each for each in channels}
        self._max_data = max_data
        self._clock = clock
        self._stamps = Stamps()
        self._handed_out = HandedOut(self._settings)
        self._outlet: Outlet | None = None
        self._stored: dict[str, StoredMessages] = {}
        self.channels = {each.name: _channel(each) for each in self._settings.values()}
        self.journal: MessageJournal | None = None
        if journal_path is not None:
            kept = {
                each.name: Retention(count=each.retention_count, age_seconds=each.retention_seconds)
                for each in self._settings.values()
                if each.policy is Policy.NEVER
            }
            self.journal = MessageJournal(
                journal_path, retention=kept, on_stored=self._on_stored, clock=clock
            )
        self.adjust()

    async def start(self, outlet: Outlet) -> None:
        """Open the journal and take up the counts where they were.

        Args:
            outlet: gets every message from now on.

        Raises:
            StorageError: the journal belongs to another process, is damaged or cannot be written.
        """
        self._outlet = outlet
        if self.journal is not None:
            await self.journal.start()
            for name, settings in self._settings.items():
                if settings.policy is Policy.NEVER:
                    await self._restore(name, min(settings.history_count, _MOST_RESTORED))
        self._handed_out.open()

    async def close(self) -> None:
        """Finish what is being written."""
        if self.journal is not None:
            await self.journal.close()
        self._handed_out.close()

    @property
    def skew(self) -> float:
        """Seconds from the clock's boottime to wall time."""
        return self._stamps.skew

    def adjust(self) -> None:
        """Look at the wall clock again: it may have jumped."""
        skew = self._clock.wall().timestamp() - self._clock.boottime()
        if abs(skew - self._stamps.skew) > 0.001:
            self._stamps.skew = skew

    def durable(self, channel: str) -> bool:
        """Whether the channel's messages go to the disk first."""
        return channel in self._stored

    def prepared(
        self, channel: object, type: object, data: Any, key: object = None, id: object = None
    ) -> bytes:
        """The data as JSON, once all of the message is known to be good; from any thread.

        Raises:
            ConfigError: no such channel, a word that is none, data that JSON cannot say or that is too large.
        """
        if not isinstance(channel, str) or channel not in self.channels:
            known = ", ".join(self.channels)
            raise ConfigError(f"there is no channel {channel!r}; there are {known}", key="channel")
        _check_word("type", type)
        if key is not None:
            _check_word("key", key)
        if id is not None:
            _check_word("id", id)
        if type in OWN_TYPES:
            raise ConfigError(f"{type!r} is the hub's own word: choose another", key="type")
        text = encode_data(data)
        if len(text) > self._max_data:
            raise ConfigError(
                f"is {len(text)} bytes; a message may have {self._max_data}", key="data"
            )
        return text

    def publish(
        self, channel: str, type: str, text: bytes, *, key: str | None = None, id: str | None = None
    ) -> Published:
        """Number a message that `prepared` found good, and hand it to the outlet; on the loop.

        A message of a durable channel goes through `post`.
        """
        target = self.channels[channel]
        if id and (earlier := target.known(id)) is not None:
            return Published(channel, earlier.offset, target.epoch, False)
        now = self._clock.boottime()
        message = target.stamp(type, text, now, self._stamps, key=key or "", own=id or "")
        self._hand_out(message)
        return Published(channel, message.offset, target.epoch, True)

    def post(
        self, channel: str, type: str, text: bytes, *, key: str | None = None, id: str | None = None
    ) -> "concurrent.futures.Future[Stored]":
        """Store a message of a durable channel; it goes out once it is on the disk. From any thread.

        Raises:
            QueueFull: too many wait for the disk.
            Closed: the journal is not open.
        """
        assert self.journal is not None
        return self.journal.post(channel, type, text, key=key, id=id)

    async def publish_durable(
        self, channel: str, type: str, text: bytes, *, key: str | None = None, id: str | None = None
    ) -> Published:
        """Publish; a message of a durable channel is on the disk when this returns.

        Raises:
            StorageError: it is not on the disk, and nobody gets it.
            QueueFull, Closed: as `post`.
        """
        if not self.durable(channel):
            return self.publish(channel, type, text, key=key, id=id)
        stored = await asyncio.wrap_future(self.post(channel, type, text, key=key, id=id))
        epoch = self._stored[channel].epoch
        return Published(channel, stored.entry.offset, epoch, stored.new)

    async def read(self, channel: str, after: int, limit: int) -> list[Message]:
        """Messages behind an offset, oldest first, from the disk where they are there."""
        if self.journal is None or channel not in self._stored:
            return self.channels[channel].between(after + 1, limit)
        entries = await self.journal.read(channel, after, limit=limit)
        return self._messages(channel, entries)

    async def history(
        self, channel: str, *, limit: int = 100, before: int | None = None
    ) -> list[Message]:
        """The newest messages below an offset, oldest first."""
        if self.journal is not None and channel in self._stored:
            entries = await self.journal.latest(channel, limit=limit, before=before)
            return self._messages(channel, entries)
        target = self.channels[channel]
        target.expire(self._clock.boottime())
        end = target.offset + 1 if before is None else min(before, target.offset + 1)
        start = max(target.oldest(), end - limit)
        return target.between(start, max(0, end - start))

    async def prune(self) -> None:
        """Let go of what is too old; call it every minute or so."""
        if self.journal is None:
            return
        await self.journal.prune()
        for name in self._stored:
            self.channels[name].retained = (await self.journal.position(name)).oldest

    async def _restore(self, name: str, limit: int) -> None:
        assert self.journal is not None
        position = await self.journal.position(name)
        self._stored[name] = StoredMessages(name, position.epoch)
        entries = await self.journal.latest(name, limit=limit)
        target = self.channels[name]
        target.restore(self._messages(name, entries), offset=position.offset, epoch=position.epoch)
        target.retained = position.oldest

    def _messages(self, channel: str, entries: Sequence[Entry]) -> list[Message]:
        made = self._stored[channel]
        return [made.message(entry, self._stamps.skew) for entry in entries]

    def _on_stored(self, entry: Entry) -> None:
        channel = self.channels[entry.channel]
        kept = entry.offset - self._settings[entry.channel].retention_count + 1
        channel.retained = max(channel.retained or entry.offset, kept)
        self._hand_out(self._stored[entry.channel].message(entry, self._stamps.skew))

    def _hand_out(self, message: Message) -> None:
        assert self._outlet is not None, "the registrar was not started"
        self._handed_out.counts[message.channel] += 1
        self._outlet.deliver(message)

    def __repr__(self) -> str:
        return f"<Registrar of {', '.join(self.channels)}>"


def report_failure(done: "concurrent.futures.Future[Stored]") -> None:
    """For a message that nobody waits for: say that it could not be stored."""
    if (error := done.exception()) is not None:
        event(log, logging.ERROR, "Message not stored", messages=1, error=str(error))


def _channel(settings: ChannelSettings) -> Channel:
    return Channel(
        settings.name,
        settings.policy,
        epoch=secrets.token_hex(4),
        history_count=settings.history_count,
        history_age=settings.history_seconds,
        snapshot_count=settings.snapshot_count,
    )


def _check_word(name: str, word: object) -> None:
    if not isinstance(word, str) or not 0 < len(word) <= LONGEST_WORD:
        raise ConfigError(f"a text of 1 to {LONGEST_WORD} characters is needed", key=name)
    if not word.isascii():
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError("half of a surrogate pair is no text", key=name) from None
