"""Where one message ends and the next begins: a record separator behind text, a length before binary.

Invariants: any split of the same bytes gives the same records; work is linear in the bytes, also when they come one
at a time; nothing is kept beyond the largest allowed message. Source: the hub protocol's text and binary encodings.
"""

from typing import Final

__all__ = [
    "LARGEST_MESSAGE",
    "RECORD_SEPARATOR",
    "Oversize",
    "RecordSplitter",
    "frame_binary",
    "read_length",
    "write_length",
]

RECORD_SEPARATOR: Final = b"\x1e"
LARGEST_MESSAGE: Final = 16 << 20  # a server has no limit on what it sends; this is ours
_LARGEST_LENGTH: Final = 0x7FFF_FFFF


class Oversize(ValueError):
    """A message is larger than allowed, or its length cannot be one."""


class RecordSplitter:
    """Cuts text records out of a stream of bytes.

    Args:
        max_message_bytes: the largest record, separator included.

    Attributes:
        empty: no unfinished record is kept.
    """

    __slots__ = ("_kept", "_limit", "_parts", "empty")

    def __init__(self, max_message_bytes: int = LARGEST_MESSAGE) -> None:
        self._limit = max_message_bytes
        self.empty = True
        self._parts: list[bytes] = []
        self._kept = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The records that are complete now, without their separators.

        Raises:
            Oversize: a record is, or would become, larger than allowed.
        """
        records = data.split(RECORD_SEPARATOR)
        tail = records.pop()
        if self._kept and records:
            self._parts.append(records[0])
            records[0] = b"".join(self._parts)
            self._parts.clear()
            self._kept = 0
        if tail:
            self._parts.append(tail)
            self._kept += len(tail)
        self.empty = not self._kept
        limit = self._limit
        if self._kept >= limit:
            raise Oversize(f"a message of more than {limit} bytes arrived")
        if len(data) >= limit or (records and len(records[0]) >= limit):
            self._measure(records)
        return records

    def _measure(self, records: list[bytes]) -> None:
        largest = max(map(len, records), default=-1) + 1
        if largest > self._limit:
            raise Oversize(f"a message of {largest} bytes arrived; {self._limit} are allowed")

    def clear(self) -> None:
        """Forget the beginning of a record that will never be completed."""
        self._parts.clear()
        self._kept = 0
        self.empty = True


def write_length(length: int) -> bytes:
    """A length as one to five bytes of seven bits, lowest first (LEB128)."""
    out = bytearray()
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def frame_binary(body: bytes) -> bytes:
    """A binary message with its length before it."""
    return write_length(len(body)) + body


def read_length(data: bytes, at: int) -> tuple[int, int] | None:
    """The length that is written at a place, and where its message begins; None when bytes are missing.

    Raises:
        Oversize: the length has more than five bytes or exceeds 2 GiB - 1.
    """
    length = shift = 0
    for index in range(at, min(at + 5, len(data))):
        byte = data[index]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            if length > _LARGEST_LENGTH:
                raise Oversize("a message announces more than 2 GiB")
            return length, index + 1
        shift += 7
    if len(data) - at >= 5:
        raise Oversize("a message announces a length of more than five bytes")
    return None
