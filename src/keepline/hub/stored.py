"""Messages made again from the journal: byte for byte what clients got the first time.

Invariants: a decider; text and offset depend on the entry and its channel's epoch alone, so a message read from the
journal after a restart is the message that was delivered before it.
"""

import msgspec

from keepline.hub.entries import Entry
from keepline.hub.messages import Message, Stamps, encode_message

__all__ = ["StoredMessages"]

_MOST_TYPES = 256


class StoredMessages:
    """Makes the messages of one channel.

    Args:
        channel: its name.
        epoch: as the journal has it.
    """

    def __init__(self, channel: str, epoch: str) -> None:
        self.channel = channel
        self.epoch = epoch
        self._middle = b',"epoch":%b,"timestamp":"' % msgspec.json.encode(epoch)
        self._stamps = Stamps()
        self._heads: dict[str, bytes] = {}

    def message(self, entry: Entry, skew: float) -> Message:
        """The message of an entry.

        Args:
            entry: as it is on the disk.
            skew: seconds from the hub's clock to wall time; `at` of a message is on the hub's clock.
        """
        text, start = encode_message(
            self._head(entry.type),
            entry.offset,
            self._middle,
            self._stamps.at(entry.at),
            entry.key or "",
            entry.id,
            entry.data,
        )
        return Message(
            self.channel,
            entry.offset,
            entry.type,
            entry.key or "",
            entry.at - skew,
            text,
            start,
            entry.id,
        )

    def _head(self, type: str) -> bytes:
        head = self._heads.get(type)
        if head is None:
            if len(self._heads) >= _MOST_TYPES:
                self._heads.clear()
            words = msgspec.json.encode(type), msgspec.json.encode(self.channel)
            head = self._heads[type] = b'{"type":%b,"channel":%b,"offset":' % words
        return head

    def __repr__(self) -> str:
        return f"<StoredMessages {self.channel} {self.epoch}>"
