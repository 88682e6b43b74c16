"""What RFC 6455 asks of a client's frames and aiohttp's reader lets pass: masks, reserved bits, order of fragments.

Invariants: `FrameRules` looks at heads alone and copies no payload; after the first broken frame nothing is read any
more; frames that came together with the handshake are looked at as well.
"""

import asyncio
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from aiohttp import WSCloseCode, web

__all__ = ["FrameRules", "InboundGuard", "Reading"]

if TYPE_CHECKING:
    _Socket: TypeAlias = web.WebSocketResponse[bool]
else:
    _Socket = web.WebSocketResponse  # in aiohttp 3.13 it is not generic

_LONGEST_HEAD = 14
_CONTROL, _RESERVED, _MASKED = 0x8, 0x70, 0x80


class FrameRules:
    """Follows the frames in a stream of bytes, however it is cut."""

    __slots__ = ("_head", "_left", "_open")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self._open = False

    def holds(self, data: bytes) -> bool:
        """Whether the stream is still one that a client may send; once not, the answer means nothing any more."""
        at, size = 0, len(data)
        while at < size:
            if self._left:
                taken = min(self._left, size - at)
                self._left -= taken
                at += taken
                continue
            before = len(self._head)
            head = self._head + data[at : at + _LONGEST_HEAD - before]
            width = _width(head)
            if not width:
                self._head = head
                return True
            if not self._fits(head):
                return False
            at += width - before
            self._head = b""
            self._left = _length(head)
        return True

    def _fits(self, head: bytes) -> bool:
        opcode, last = head[0] & 0x0F, head[0] & 0x80
        if not head[1] & _MASKED or (head[1] & 0x7F == 127 and head[2] & 0x80):
            return False
        if opcode & _CONTROL:
            return not head[0] & _RESERVED
        if (opcode == 0) != self._open:
            return False
        self._open = not last
        return True


def _width(head: bytes) -> int:
    """Bytes of the whole head, 0 while it is not all there."""
    if len(head) < 2:
        return 0
    flag = head[1] & 0x7F
    width = 2 + (4 if head[1] & _MASKED else 0) + (2 if flag == 126 else 8 if flag == 127 else 0)
    return width if len(head) >= width else 0


def _length(head: bytes) -> int:
    flag = head[1] & 0x7F
    return flag if flag < 126 else int.from_bytes(head[2:4] if flag == 126 else head[2:10])


class InboundGuard(asyncio.Protocol):
    """Stands between a socket and whoever reads it.

    Args:
        reader: gets everything up to the first broken frame.
        early: what it has already got behind the handshake.

    Attributes:
        broken: called once for the first broken frame; it closes the connection.
    """

    def __init__(self, reader: asyncio.Protocol, early: bytes = b"") -> None:
        self._reader = reader
        self._rules = FrameRules()
        self._early = early
        self._held = True
        self.broken: Callable[[], None] | None = None

    def begin(self, broken: Callable[[], None]) -> None:
        """From now on, say so when a frame is broken; at once when one was."""
        self.broken = broken
        early, self._early = self._early, b""
        if self._held and not self._rules.holds(early):
            self._held = False
        if not self._held:
            broken()

    def data_received(self, data: bytes) -> None:
        """Pass it on if it may be read."""
        if not self._held:
            return
        if self.broken is None:
            self._early += data  # not begun yet: looked at in one piece
        elif not self._rules.holds(data):
            self._held = False
            self.broken()
            return
        self._reader.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self._reader.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._reader.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._reader.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._reader.resume_writing()


class Reading(_Socket):
    """A WebSocket to read from that says which rule was broken, also when a message cannot be inflated.

    Attributes:
        said: the code with which it was closed for a broken rule, 0 before.
    """

    said = 0

    async def close(
        self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True
    ) -> bool:
        """Close; text that cannot be had from its compressed form is no text (RFC 6455 §7.4.1)."""
        if isinstance(self.exception(), zlib.error):
            code = WSCloseCode.INVALID_TEXT
        self.said = int(code)
        return await super().close(code=code, message=message, drain=drain)
