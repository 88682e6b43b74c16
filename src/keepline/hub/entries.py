"""What a message journal holds and says: entries, positions, how long they are kept.

Invariant: plain values, frozen.
"""

import math
from typing import NamedTuple

import msgspec

from keepline.errors import ConfigError

__all__ = ["Entry", "Position", "Retention", "Stored", "check_entry", "check_retention"]

LONGEST_WORD = 128
LARGEST_DATA = 16 << 20


class Entry(msgspec.Struct, frozen=True):
    """A message that is on the disk.

    Attributes:
        channel: its channel.
        offset: its place in the channel, from 1 up, without holes.
        type: what it is, for example `alert`.
        key: what it is about, None when the channel has no keys.
        id: by what it is recognised when it comes again.
        at: when it was given to the hub, in epoch seconds.
        data: its JSON text.
    """

    channel: str
    offset: int
    type: str
    key: str | None
    id: str
    at: float
    data: bytes


class Stored(NamedTuple):
    """What became of a message.

    Attributes:
        entry: as it is on the disk.
        new: False when its id was known: then `entry` is the earlier one and nothing was written.
    """

    entry: Entry
    new: bool


class Position(NamedTuple):
    """How far a channel is.

    Attributes:
        epoch: the life of the channel's offsets; another epoch means another file.
        offset: the last one given out, 0 when there was none.
        oldest: the oldest that is still held, None when nothing is.
    """

    epoch: str
    offset: int
    oldest: int | None


class Retention(msgspec.Struct, frozen=True):
    """What a channel keeps: at most so many messages, none older than that.

    Attributes:
        count: messages.
        age_seconds: from when the hub was given it.
    """

    count: int = 10_000
    age_seconds: float = 30 * 86_400.0


def check_entry(entry: Entry) -> None:
    """What the file could not take would fail all that waits beside it.

    Raises:
        ConfigError: a text that is none, an id that is empty or longer than 128 characters, more than 16 MiB.
    """
    for name in ("channel", "type", "key", "id"):
        text = getattr(entry, name)
        if text is None and name == "key":
            continue
        if not isinstance(text, str) or not 0 < len(text) <= LONGEST_WORD or not _is_text(text):
            raise ConfigError(f"a text of 1 to {LONGEST_WORD} characters is needed", key=name)
    data: object = entry.data
    if not isinstance(data, bytes) or len(data) > LARGEST_DATA:
        raise ConfigError(f"JSON text of at most {LARGEST_DATA >> 20} MiB is needed", key="data")
    if not math.isfinite(entry.at):
        raise ConfigError(f"epoch seconds are needed, not {entry.at!r}", key="at")


def check_retention(channel: str, kept: Retention) -> None:
    """At least one message, for a positive time.

    Raises:
        ConfigError: it is not so.
    """
    if kept.count < 1 or not kept.age_seconds > 0:
        raise ConfigError(
            f"keep at least one message for a positive time, not {kept}",
            key=f"retention.{channel}" if channel else "otherwise",
        )


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
