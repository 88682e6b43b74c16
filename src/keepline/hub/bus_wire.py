"""What goes over the bus to the hub: frames, their words, and what was sent and is not stored yet.

Invariants: a decider; a message of a channel that drops nothing stays here until the hub says that it is stored, and
over a new connection it goes again, under its old id, before anything newer does; a frame that is too long or no word
of the bus ends the connection, it is never skipped.

A frame is its length in four bytes, most significant first, and that much JSON. The publisher says `hello`, then
`publish`; the hub says `welcome`, and to messages that ask for an answer `stored` or `refused`.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from keepline.errors import ProtocolError
from keepline.hub.outgoing import Added, Item, Outgoing
from keepline.hub.publishing import Draft

__all__ = [
    "HEAD",
    "LONGEST_FRAME",
    "PROTOCOL",
    "FromHub",
    "FromPublisher",
    "Hello",
    "Publish",
    "Sending",
    "Stored",
    "Turned",
    "Welcome",
    "frame",
    "frame_length",
    "framed",
    "parse_from_hub",
    "parse_from_publisher",
]

PROTOCOL = 1
"""The version that both ends must speak."""

LONGEST_FRAME = 17 << 20
"""Bytes of JSON in a frame: the largest data that a hub may be told to take, and the words around it."""

HEAD = 4
"""Bytes before a frame's JSON."""

T = TypeVar("T")


class Hello(msgspec.Struct, frozen=True, tag_field="op", tag="hello"):
    """The publisher's first word.

    Attributes:
        v: the protocol.
        name: who it is, for the hub's log.
    """

    v: int
    name: str


class Publish(msgspec.Struct, frozen=True, tag_field="op", tag="publish"):
    """A message for a channel.

    Attributes:
        seq: the publisher's number for it.
        answer: whether the publisher waits for `stored` or `refused`.
        draft: the message.
    """

    seq: int
    answer: bool
    draft: Draft


class Welcome(msgspec.Struct, frozen=True, tag_field="op", tag="welcome"):
    """The hub's first word.

    Attributes:
        v: the protocol.
        durable: the channels whose messages are stored before anybody gets them.
    """

    v: int
    durable: tuple[str, ...]


class Stored(msgspec.Struct, frozen=True, tag_field="op", tag="stored"):
    """These messages are on the disk, or delivered where nothing is stored.

    Attributes:
        seqs: their numbers.
    """

    seqs: tuple[int, ...]


class Turned(msgspec.Struct, frozen=True, tag_field="op", tag="refused"):
    """This message will never be published.

    Attributes:
        seq: its number.
        reason: why, in words.
    """

    seq: int
    reason: str


FromPublisher = Hello | Publish
FromHub = Welcome | Stored | Turned

_from_publisher: "msgspec.json.Decoder[FromPublisher]" = msgspec.json.Decoder(FromPublisher)
_from_hub: "msgspec.json.Decoder[FromHub]" = msgspec.json.Decoder(FromHub)


def frame(word: FromPublisher | FromHub) -> bytes:
    """A word as it goes over the bus."""
    return framed(msgspec.json.encode(word))


def framed(payload: bytes) -> bytes:
    """JSON as a frame."""
    return len(payload).to_bytes(HEAD, "big") + payload


def frame_length(head: bytes) -> int:
    """How many bytes follow these four.

    Raises:
        ProtocolError: more than a frame may have, or none.
    """
    length = int.from_bytes(head, "big")
    if not 0 < length <= LONGEST_FRAME:
        raise ProtocolError(f"a frame of {length} bytes; 1 to {LONGEST_FRAME} are possible")
    return length


def parse_from_publisher(payload: bytes) -> FromPublisher:
    """What a publisher said.

    Raises:
        ProtocolError: no word of the bus.
    """
    return _parsed(_from_publisher, payload)


def parse_from_hub(payload: bytes) -> FromHub:
    """What the hub said.

    Raises:
        ProtocolError: no word of the bus.
    """
    return _parsed(_from_hub, payload)


class Sending:
    """The publisher's side: what waits, and what is under way.

    Args:
        queue: what waits; bounded, by policy.
        window: messages that may be under way unanswered.
    """

    def __init__(self, queue: Outgoing, *, window: int = 1000) -> None:
        self._queue = queue
        self._window = window
        self._under_way: dict[int, Item] = {}
        self._again: list[int] = []

    def durable(self, channel: str) -> bool:
        """Whether the channel drops nothing."""
        return self._queue.policy(channel) == "never"

    def add(
        self, channel: str, type: str, key: str | None, line: bytes, *, waiter: Any = None
    ) -> Added:
        """Take a message in; as `Outgoing.add`."""
        return self._queue.add(channel, type, key, line, waiter=waiter)

    def connected(self) -> None:
        """There is a new connection: what was not answered over the last one goes again."""
        self._again = sorted(self._under_way, reverse=True)

    def take(self, *, most: int = 100, most_bytes: int = 256 << 10) -> bytes:
        """The next frames to write, empty when nothing may go now."""
        frames: list[bytes] = []
        size = 0
        while self._again and len(frames) < most and size < most_bytes:
            frames.append(_publish(self._under_way[self._again.pop()]))
            size += len(frames[-1])
        room = min(most - len(frames), self._window - len(self._under_way))
        if room > 0 and size < most_bytes and not self._again:
            for item in self._queue.take(room, most_bytes - size):
                frames.append(_publish(item))
                if _wants_answer(item):
                    self._under_way[item.sequence] = item
        return b"".join(frames)

    def stored(self, seqs: Sequence[int]) -> list[Item]:
        """The hub has these; what is over now."""
        over = [self._under_way.pop(seq, None) for seq in seqs]
        return [item for item in over if item is not None]

    def refused(self, seq: int) -> Item | None:
        """The hub will never take this one; None when it was answered already, or asked for none."""
        return self._under_way.pop(seq, None)

    def left(self) -> list[Item]:
        """Give up: everything that is not known to be stored."""
        items = list(self._under_way.values())
        self._under_way.clear()
        self._again.clear()
        while waiting := self._queue.take(1000, 1 << 30):
            items += waiting
        return items

    @property
    def dropped(self) -> int:
        """Messages that left for newer ones."""
        return self._queue.dropped

    @property
    def under_way(self) -> int:
        """Messages that were sent and are not answered."""
        return len(self._under_way)

    def __len__(self) -> int:
        return len(self._queue) + len(self._under_way)

    def __repr__(self) -> str:
        return f"<Sending {len(self._queue)} waiting, {len(self._under_way)} under way>"


def _wants_answer(item: Item) -> bool:
    return item.durable or item.waiter is not None


def _publish(item: Item) -> bytes:
    """The line is a draft's JSON already, and stays as it is."""
    answer = b"true" if _wants_answer(item) else b"false"
    return framed(
        b'{"op":"publish","seq":%d,"answer":%b,"draft":%b}' % (item.sequence, answer, item.line)
    )


def _parsed(decoder: "msgspec.json.Decoder[T]", payload: bytes) -> T:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"no word of the bus: {error}") from None
