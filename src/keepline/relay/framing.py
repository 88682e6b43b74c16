"""Cuts what a sender writes into messages, whatever way it arrives.

A message ends at a newline, at the close of a top-level JSON object, at the end of input, or after 50 ms of quiet
behind bare text. Invariants: each byte is looked at a bounded number of times; no more than the largest message plus
one read is held; a newline inside an object is white space, inside one of its strings it ends a broken message; nothing
here raises for what a peer sent.
"""

import re
from enum import Enum, auto
from typing import Final

import msgspec

__all__ = ["QUIET_SECONDS", "Cut", "Frame", "Framer"]

QUIET_SECONDS: Final = 0.05
"""Seconds without a byte after which bare text is complete: `printf token | nc` sends no newline and waits."""


class Cut(Enum):
    """Why a frame ended where it did."""

    WHOLE = auto()
    TOO_LARGE = auto()
    INCOMPLETE = auto()
    BROKEN = auto()
    EMPTY = auto()


class Frame(msgspec.Struct, frozen=True):
    """One message as it came.

    Attributes:
        data: its bytes without the newline; empty unless `cut` is WHOLE.
        is_json: it began with a brace.
        newline: a newline ended it, so the answer ends with one too.
        cut: WHOLE, or what is wrong with it; after any other than WHOLE the framer is of no more use.
    """

    data: bytes
    is_json: bool
    newline: bool
    cut: Cut = Cut.WHOLE


class _Place(Enum):
    BETWEEN = auto()  # nothing of a message yet
    BEHIND_OBJECT = auto()  # an object closed; its newline may follow
    TEXT = auto()
    OBJECT = auto()
    STRING = auto()


_NEWLINE = re.compile(rb"\n")
_NOT_BLANK = re.compile(rb"[^ \t\r\n]")
# up to the next brace, over whole strings; stops before a string that is not whole, and never goes back
_OUTSIDE_STRING = re.compile(
    rb'[^"{}]*+(?:"[^"\\\x00-\x1f]*+(?:\\[\s\S][^"\\\x00-\x1f]*+)*+"[^"{}]*+)*+'
)
_INSIDE_STRING = re.compile(rb'["\\\x00-\x1f]')
_OPEN, _CLOSE, _QUOTE, _BACKSLASH = b"{"[0], b"}"[0], b'"'[0], b"\\"[0]


class Framer:
    """One connection's bytes on their way to messages.

    Args:
        limit: bytes of the largest message.
    """

    __slots__ = ("_buffer", "_depth", "_limit", "_place", "_scanned", "_seen")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()  # of the message under way; begins with its first byte
        self._scanned = 0
        self._depth = 0
        self._place = _Place.BETWEEN
        self._seen = False  # whether the connection has brought any message

    @property
    def is_in_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._place not in (_Place.BETWEEN, _Place.BEHIND_OBJECT)

    @property
    def is_in_text(self) -> bool:
        """Whether bare text has begun and not ended: quiet will end it."""
        return self._place is _Place.TEXT

    def feed(self, data: bytes) -> list[Frame]:
        """The messages that these bytes complete, in order."""
        self._buffer += data
        frames: list[Frame] = []
        while (frame := self._step()) is not None:
            frames.append(frame)
            if frame.cut is not Cut.WHOLE:
                break
        return frames

    def finish(self) -> Frame | None:
        """The input ended: what has begun is complete if it is text, and incomplete if it is an object."""
        if self._place is _Place.TEXT:
            return self._take(len(self._buffer), len(self._buffer), is_json=False, newline=False)
        if self.is_in_message:
            return self._bad(Cut.INCOMPLETE)
        return None if self._seen else self._bad(Cut.EMPTY)

    def quiet(self) -> Frame | None:
        """Nothing came for `QUIET_SECONDS`: bare text is complete."""
        return self.finish() if self.is_in_text else None

    def _step(self) -> Frame | None:
        if not self._buffer:
            return None
        if not self.is_in_message and (frame := self._begin()):
            return frame
        match self._place:
            case _Place.TEXT:
                frame = self._text()
            case _Place.OBJECT | _Place.STRING:
                frame = self._object()
            case _:
                return None
        if frame is None and len(self._buffer) > self._limit:
            return self._bad(Cut.TOO_LARGE)
        return frame

    def _begin(self) -> Frame | None:
        if self._buffer[:1] == b"{":  # as nearly every message begins
            self._place = _Place.OBJECT
            return None
        found = _NOT_BLANK.search(self._buffer)
        blank = self._buffer[: found.start() if found else None]
        if b"\n" in blank:
            if self._place is _Place.BETWEEN and not self._seen:
                return self._bad(Cut.EMPTY, newline=True)
            self._place = _Place.BETWEEN
        del self._buffer[: len(blank)]
        if found:
            if self._buffer[0] == _OPEN:
                self._place = _Place.OBJECT
            elif self._place is _Place.BEHIND_OBJECT:
                return self._bad(Cut.BROKEN)  # text glued to an object is no token
            else:
                self._place = _Place.TEXT
        return None

    def _text(self) -> Frame | None:
        if found := _NEWLINE.search(self._buffer, self._scanned):
            return self._take(found.start(), found.end(), is_json=False, newline=True)
        self._scanned = len(self._buffer)
        return None

    def _object(self) -> Frame | None:
        buffer = self._buffer
        while True:
            if self._place is _Place.STRING and (
                (frame := self._string()) is not None or self._place is _Place.STRING
            ):
                return frame
            skipped = _OUTSIDE_STRING.match(buffer, self._scanned)
            assert skipped is not None  # it matches nothing, too
            at = skipped.end()
            if at == len(buffer):
                self._scanned = at
                return None
            self._scanned = at + 1
            byte = buffer[at]
            if byte == _QUOTE:
                self._place = _Place.STRING
            elif byte == _OPEN:
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return self._close(at + 1)

    def _string(self) -> Frame | None:
        """Go on inside a string that did not come whole; the place is OBJECT behind its end."""
        while found := _INSIDE_STRING.search(self._buffer, self._scanned):
            at = found.start()
            self._scanned = at + 1
            byte = self._buffer[at]
            if byte == _QUOTE:
                self._place = _Place.OBJECT
                return None
            if byte != _BACKSLASH:
                return self._bad(Cut.BROKEN, newline=byte == 10)
            self._scanned = (
                at + 2
            )  # may lie behind what has come: the escaped byte is skipped when it comes
        self._scanned = max(self._scanned, len(self._buffer))
        return None

    def _close(self, end: int) -> Frame:
        behind = _NOT_BLANK.search(self._buffer, end)
        next_begins = behind.start() if behind else len(self._buffer)
        newline = self._buffer.find(b"\n", end, next_begins) >= 0
        frame = self._take(end, next_begins, is_json=True, newline=newline)
        if not newline:
            self._place = _Place.BEHIND_OBJECT
        return frame

    def _take(self, end: int, next_begins: int, *, is_json: bool, newline: bool) -> Frame:
        if end > self._limit:
            return self._bad(Cut.TOO_LARGE, newline=newline)
        data = bytes(self._buffer[:end])
        del self._buffer[:next_begins]
        self._reset()
        return Frame(data if is_json else data.rstrip(b" \t\r"), is_json, newline)

    def _bad(self, cut: Cut, *, newline: bool = False) -> Frame:
        is_json = self._place in (_Place.OBJECT, _Place.STRING)
        self._buffer.clear()
        self._reset()
        return Frame(b"", is_json, newline, cut)

    def _reset(self) -> None:
        self._scanned = self._depth = 0
        self._place = _Place.BETWEEN
        self._seen = True

    def __repr__(self) -> str:
        return f"<Framer {self._place.name}, {len(self._buffer)} bytes>"
