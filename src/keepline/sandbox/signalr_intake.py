"""What a hub's server reads before it decodes: whole messages, up to one of a type that it does not know.

Invariants: any split of the same bytes gives the same messages; after an unknown type nothing is read any more, and at
`PILE` unread bytes the connection is over.

Source: measured at an ASP.NET Core 9.0 server, which never consumes a message of an unknown type.
"""

import msgspec

from keepline.stream.framing import RECORD_SEPARATOR, Oversize, read_length

__all__ = ["PILE", "Intake"]

PILE = 32_768
"""Unread bytes that the server takes."""

_KNOWN = range(1, 10)


class _Typed(msgspec.Struct):
    type: object = None


class Intake:
    """The bytes of one connection after its handshake.

    Args:
        binary: they are MessagePack.
    """

    def __init__(self, *, binary: bool) -> None:
        self.stuck = False
        self._binary = binary
        self._kept = b""

    def feed(self, data: bytes | str) -> bytes:
        """What the decoder shall see of it now."""
        self._kept += data.encode(errors="surrogatepass") if isinstance(data, str) else data
        at = 0
        while not self.stuck and (end := self._end(at)) is not None:
            if self._knows(at, end):
                at = end
            else:
                self.stuck = True
        if not self.stuck and len(self._kept) - at > PILE:
            at = len(self._kept)  # too large a message: the decoder says so
        ready, self._kept = self._kept[:at], self._kept[at:]
        return ready

    def clear(self) -> None:
        """Another transport: forget the beginning of an unfinished message."""
        self._kept = b""

    @property
    def is_full(self) -> bool:
        """Whether more has piled up unread than the server takes."""
        return self.stuck and len(self._kept) > PILE

    def _end(self, at: int) -> int | None:
        """Where the message ends that begins there, None while it is incomplete."""
        if not self._binary:
            end = self._kept.find(RECORD_SEPARATOR, at)
            return None if end < 0 else end + 1
        try:
            found = read_length(self._kept, at)
        except Oversize:
            return len(self._kept)  # the decoder says so
        if found is None or found[0] + found[1] > len(self._kept):
            return None
        return found[0] + found[1]

    def _knows(self, at: int, end: int) -> bool:
        """Whether it is a message of a known type, or none at all, which the decoder says."""
        try:
            if self._binary:
                _, begin = read_length(self._kept, at) or (0, end)
                values = msgspec.msgpack.decode(self._kept[begin:end])
                kind = values[0] if isinstance(values, list) and values else None
            else:
                kind = msgspec.json.decode(self._kept[at : end - 1], type=_Typed).type
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return True
        return type(kind) is not int or kind in _KNOWN
