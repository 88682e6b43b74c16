"""Server-sent events as ASP.NET Core writes them: `data: …` lines, an empty line behind each event.

Invariants: any split of the same bytes gives the same events; what the peer sent never raises, it becomes
`Malformed` and then nothing; lines end in CR LF alone, because only these servers are spoken to and a lone LF is a
damaged stream.
"""

from typing import Final

from keepline.stream.framing import LARGEST_MESSAGE
from keepline.stream.messages import Malformed

__all__ = ["EventReader", "write_event"]

_PREFIX: Final = b"data: "


class EventReader:
    """Turns the body of an event stream into the data of its events.

    Args:
        max_event_bytes: the largest event, line ends included.
    """

    __slots__ = ("_fresh", "_kept", "_limit", "_lines", "_over", "_size")

    def __init__(self, *, max_event_bytes: int = LARGEST_MESSAGE) -> None:
        self._limit = max_event_bytes
        self._kept = bytearray()
        self._fresh = 0  # where in the kept bytes no LF was looked for yet
        self._lines: list[bytes] = []
        self._size = 0
        self._over = False

    def feed(self, data: bytes) -> list[bytes | Malformed]:
        """The data of the events that are complete now, lines joined by LF; comments are skipped.

        An empty line without data gives b"", as the protocol's own parser does.
        """
        out: list[bytes | Malformed] = []
        if self._over:
            return out
        self._kept += data
        begin = 0
        while (end := self._kept.find(b"\n", self._fresh)) >= 0:
            self._fresh = end + 1
            reason = self._line(bytes(self._kept[begin : end + 1]), out)
            if reason is not None:
                return self._end(out, reason)
            begin = end + 1
        del self._kept[:begin]
        self._fresh = len(self._kept)
        if self._kept[:1] == b"\r" and len(self._kept) > 1:
            return self._end(out, "an event does not end in CR LF")
        if self._size + len(self._kept) > self._limit:
            return self._end(out, f"an event of more than {self._limit} bytes arrived")
        return out

    def _line(self, line: bytes, out: list[bytes | Malformed]) -> str | None:
        """Takes one line with its end; gives the reason when it is none."""
        self._size += len(line)
        if not line.endswith(b"\r\n"):
            return "a line of the event stream ends in LF alone"
        if self._size > self._limit:
            return f"an event of more than {self._limit} bytes arrived"
        if line == b"\r\n":
            out.append(b"\n".join(self._lines))
            self._lines.clear()
            self._size = 0
        elif line.startswith(_PREFIX):
            self._lines.append(line[len(_PREFIX) : -2])
        elif not line.startswith(b":"):
            return "a line of the event stream begins with neither 'data: ' nor ':'"
        return None

    def _end(self, out: list[bytes | Malformed], reason: str) -> list[bytes | Malformed]:
        self._over = True
        out.append(Malformed(reason))
        return out


def write_event(data: bytes) -> bytes:
    """Data as one event; each of its lines becomes a line of its own."""
    if not data:
        return b"\r\n"
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    return b"".join(b"%b%b\r\n" % (_PREFIX, line) for line in lines) + b"\r\n"
