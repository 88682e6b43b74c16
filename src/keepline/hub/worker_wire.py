"""What a hub and its workers say to each other, and how their numbers become one.

Invariants: a decider; a worker that starts gets each channel whole before the first message behind it; every question
has a number and gets one answer.

Words are MessagePack in the frames of the bus. The hub sends `Restore` for each channel, then `Deliver`; the worker
sends `Beat`, and `Read` for messages that memory no longer has.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from keepline.errors import ProtocolError
from keepline.hub.bus_wire import framed
from keepline.hub.channels import Channel
from keepline.hub.messages import Message

__all__ = [
    "Ask",
    "Beat",
    "Deliver",
    "Elsewhere",
    "FromWorker",
    "Messages",
    "Read",
    "Recheck",
    "Restore",
    "ToWorker",
    "Told",
    "counted_elsewhere",
    "merged_metrics",
    "parse_from_worker",
    "parse_to_worker",
    "restoring",
    "worker_frame",
]


class Restore(msgspec.Struct, frozen=True, tag="restore"):
    """A channel as it is now.

    Attributes:
        channel: its name.
        epoch: of its count.
        offset: the last that was given out.
        retained: the oldest on the disk, None without one.
        messages: what memory has of it, in order.
    """

    channel: str
    epoch: str
    offset: int
    retained: int | None
    messages: tuple[Message, ...]


class Deliver(msgspec.Struct, frozen=True, tag="deliver"):
    """The next message of its channel.

    Attributes:
        message: it.
        retained: the oldest on the disk now, None without one.
    """

    message: Message
    retained: int | None


class Messages(msgspec.Struct, frozen=True, tag="messages"):
    """The answer to `Read`.

    Attributes:
        ask: the question's number.
        messages: what there is; None when it cannot be read.
    """

    ask: int
    messages: tuple[Message, ...] | None


class Elsewhere(msgspec.Struct, frozen=True, tag="elsewhere"):
    """Connections that others have.

    Attributes:
        counts: kind, name and how many.
    """

    counts: tuple[tuple[str, str, int], ...]


class Recheck(msgspec.Struct, frozen=True, tag="recheck"):
    """Users or revocations changed."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Who is connected, and the numbers so far; answered by `Told`.

    Attributes:
        ask: the question's number.
    """

    ask: int


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """A sign of life.

    Attributes:
        clients: connected.
        counts: kind, name and how many, as `Attendance` counts.
    """

    clients: int
    counts: tuple[tuple[str, str, int], ...]


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Messages behind an offset are wanted; answered by `Messages`."""

    ask: int
    channel: str
    after: int
    limit: int


class Told(msgspec.Struct, frozen=True, tag="told"):
    """The answer to `Ask`.

    Attributes:
        ask: the question's number.
        clients: as `/api/clients` shows them.
        metrics: as `/metrics` shows them.
    """

    ask: int
    clients: tuple[dict[str, Any], ...]
    metrics: bytes


ToWorker = Restore | Deliver | Messages | Elsewhere | Recheck | Ask
FromWorker = Beat | Read | Told

_to_worker: "msgspec.msgpack.Decoder[ToWorker]" = msgspec.msgpack.Decoder(ToWorker)
_from_worker: "msgspec.msgpack.Decoder[FromWorker]" = msgspec.msgpack.Decoder(FromWorker)
_encode = msgspec.msgpack.Encoder().encode


def worker_frame(word: ToWorker | FromWorker) -> bytes:
    """A word as it goes over the link."""
    return framed(_encode(word))


def parse_to_worker(payload: bytes) -> ToWorker:
    """What the hub said.

    Raises:
        ProtocolError: no word of the link.
    """
    try:
        return _to_worker.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"no word of the hub: {error}") from None


def parse_from_worker(payload: bytes) -> FromWorker:
    """What a worker said.

    Raises:
        ProtocolError: no word of the link.
    """
    try:
        return _from_worker.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"no word of a worker: {error}") from None


def restoring(channel: Channel) -> Restore:
    """Everything that a worker needs to go on with a channel."""
    known = {m.offset: m for m in (*channel.latest.values(), *channel.history)}
    messages = tuple(known[offset] for offset in sorted(known))
    return Restore(channel.name, channel.epoch, channel.offset, channel.retained, messages)


def counted_elsewhere(
    counts: Iterable[Mapping[tuple[str, str], int]],
) -> tuple[tuple[str, str, int], ...]:
    """The sum of what others have."""
    total: dict[tuple[str, str], int] = {}
    for each in counts:
        for place, count in each.items():
            total[place] = total.get(place, 0) + count
    return tuple((kind, name, count) for (kind, name), count in total.items() if count)


_NOT_SUMMED = (b"keepline_hub_ready", b"keepline_hub_bus_publishers")
_NAME = b"keepline_hub_"


def merged_metrics(own: bytes, others: Iterable[bytes]) -> bytes:
    """The hub's own numbers with those of its workers added where they count the same thing.

    Args:
        own: a Prometheus exposition.
        others: those of the workers; only what is named after the hub is taken, the rest is each process's own.
    """
    more: dict[bytes, float] = {}
    for text in others:
        for line in text.splitlines():
            if line.startswith(_NAME) and not line.startswith(_NOT_SUMMED):
                sample, _, value = line.rpartition(b" ")
                more[sample] = more.get(sample, 0.0) + float(value)
    lines = [_added(line, more) for line in own.splitlines()]
    return b"\n".join(_with_new(lines, more)) + b"\n"


def _added(line: bytes, more: dict[bytes, float]) -> bytes:
    sample, _, value = line.rpartition(b" ")
    if line.startswith(b"#") or sample not in more:
        return line
    return b"%b %b" % (sample, str(float(value) + more.pop(sample)).encode())


def _with_new(lines: list[bytes], more: dict[bytes, float]) -> Iterable[bytes]:
    """Samples whose labels only workers have stand behind the head of their metric."""
    for line in lines:
        yield line
        if line.startswith(b"# TYPE "):
            name = line.split()[2]
            for sample in [each for each in more if each.partition(b"{")[0] == name]:
                yield b"%b %b" % (sample, str(more.pop(sample)).encode())
