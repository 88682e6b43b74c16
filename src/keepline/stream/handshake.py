"""The first exchange on a connection: which encoding and which version are spoken, in JSON whatever comes after.

Invariants: `{}` is success; the first separator ends the handshake and what is glued behind it belongs to the
messages; what the peer sent never raises. An empty error text is a refusal (as .NET; JavaScript takes it for
success), and so is an error of null. Source: ASP.NET Core 9 hub protocol; its server takes names in any case and
versions up to 2.
"""

from typing import Final

import msgspec

from keepline.stream.framing import RECORD_SEPARATOR
from keepline.stream.messages import Malformed

__all__ = [
    "CANCELED",
    "FAILED",
    "HandshakeReader",
    "HandshakeRequest",
    "HandshakeResponse",
    "judge_request",
    "read_request",
    "read_response",
    "write_request",
    "write_response",
]

CANCELED: Final = "Handshake was canceled."
"""What a server answers when no request came in time (15 seconds)."""
FAILED: Final = "An unexpected error occurred during connection handshake."
"""What a server answers to something that is no request."""
_LARGEST: Final = 64 << 10


class HandshakeRequest(msgspec.Struct, frozen=True):
    """The caller's proposal.

    Attributes:
        protocol: `json` or `messagepack`.
        version: 1, or 2 with stateful reconnect.
    """

    protocol: str
    version: int


class HandshakeResponse(msgspec.Struct, frozen=True):
    """The server's answer; success when `error` is None."""

    error: str | None = None


class _Answer(msgspec.Struct):
    error: str | msgspec.UnsetType = msgspec.UNSET
    type: msgspec.Raw = msgspec.Raw()


class HandshakeReader:
    """Cuts the one record of the handshake off the beginning of a connection."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes | str) -> tuple[bytes, bytes] | Malformed | None:
        """The record and the bytes behind it; None while it is incomplete."""
        self._kept += data.encode(errors="replace") if isinstance(data, str) else data
        end = self._kept.find(RECORD_SEPARATOR)
        if end < 0 and len(self._kept) <= _LARGEST:
            return None
        if not 0 <= end <= _LARGEST:
            return Malformed(f"the handshake has no end within {_LARGEST} bytes")
        return bytes(self._kept[:end]), bytes(self._kept[end + 1 :])


def write_request(protocol: str, version: int = 1) -> bytes:
    """A proposal with its separator."""
    return msgspec.json.encode(HandshakeRequest(protocol, version)) + RECORD_SEPARATOR


def read_request(record: bytes) -> HandshakeRequest | Malformed:
    """A proposal, from a record without its separator."""
    try:
        return msgspec.json.decode(record, type=HandshakeRequest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return Malformed(f"not a handshake request: {error}")


def judge_request(
    request: HandshakeRequest | Malformed,
    *,
    protocols: tuple[str, ...] = ("json", "messagepack"),
    newest: int = 2,
) -> str | None:
    """Why a server refuses a proposal, in a stock server's words; None when it accepts."""
    if isinstance(request, Malformed):
        return FAILED
    if request.protocol.lower() not in protocols:
        return f"The protocol '{request.protocol}' is not supported."
    if request.version > newest:
        return (
            f"The server does not support version {request.version} "
            f"of the '{request.protocol}' protocol."
        )
    return None


def write_response(error: str | None = None) -> bytes:
    """An answer with its separator; `{}` without an error."""
    return msgspec.json.encode({} if error is None else {"error": error}) + RECORD_SEPARATOR


def read_response(record: bytes) -> HandshakeResponse | Malformed:
    """An answer, from a record without its separator; a record with a `type` is a message too early."""
    try:
        answer = msgspec.json.decode(record, type=_Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return Malformed(f"not a handshake response: {error}")
    if answer.type:
        return Malformed("a message arrived before the handshake's response")
    return HandshakeResponse(None if answer.error is msgspec.UNSET else answer.error)
