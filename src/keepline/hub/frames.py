"""RFC 6455 frames as a server sends them: prebuilt once, written to any number of clients.

Invariants: nothing is masked and nothing fragmented; lengths are in their shortest form; control frames carry at most
125 bytes; a close frame never carries a code that may not be on the wire.
"""

from struct import Struct

from keepline.hub.closecodes import CLOSE_WORDS, CloseCode, may_be_sent
from keepline.hub.deflate import Deflater

__all__ = ["close_frame", "deflated_frame", "ping_frame", "pong_frame", "read_close", "text_frame"]

SMALLEST_DEFLATED = 128
"""Bytes: below this a compressed message is hardly smaller, and RFC 7692 §6 lets each message choose."""

_FIN, _RSV1 = 0x80, 0x40
_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
_SHORT = Struct("!BB").pack
_MEDIUM = Struct("!BBH").pack
_LONG = Struct("!BBQ").pack
_CODE = Struct("!H")


def text_frame(payload: bytes) -> bytes:
    """A whole text message, not compressed."""
    return _head(_FIN | _TEXT, len(payload)) + payload


def deflated_frame(payload: bytes, deflater: Deflater) -> bytes:
    """A whole text message, compressed on its own, so that every client that negotiated it can read it."""
    if len(payload) < SMALLEST_DEFLATED:
        return text_frame(payload)
    packed = deflater.message(payload)
    return _head(_FIN | _RSV1 | _TEXT, len(packed)) + packed


def ping_frame(payload: bytes = b"") -> bytes:
    """A ping; the peer answers with a pong of the same payload (at most 125 bytes)."""
    return _control(_PING, payload)


def pong_frame(payload: bytes = b"") -> bytes:
    """The answer to a ping, with the ping's payload."""
    return _control(_PONG, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """The end of a connection; without a reason, the table's words; a long reason is cut at a whole character."""
    assert may_be_sent(code), f"close code {code} may not be on the wire"
    if not reason and code in CLOSE_WORDS:
        reason = CLOSE_WORDS[CloseCode(code)]
    words = reason.encode()[:123].decode(errors="ignore").encode()
    return _control(_CLOSE, _CODE.pack(code) + words)


def read_close(payload: bytes) -> tuple[int, str] | CloseCode:
    """The code and reason of a peer's close frame; 1005 stands for none; a `CloseCode` says with which to answer."""
    if not payload:
        return 1005, ""
    if len(payload) == 1 or not may_be_sent(code := _CODE.unpack_from(payload)[0]):
        return CloseCode.PROTOCOL_ERROR
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        return CloseCode.BAD_DATA


def _head(first: int, length: int) -> bytes:
    if length < 126:
        return _SHORT(first, length)
    if length < 65536:
        return _MEDIUM(first, 126, length)
    return _LONG(first, 127, length)


def _control(opcode: int, payload: bytes) -> bytes:
    assert len(payload) <= 125, "a control frame carries at most 125 bytes"
    return _SHORT(_FIN | opcode, len(payload)) + payload
