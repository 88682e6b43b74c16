"""permessage-deflate as the hub speaks it: no context is kept, so one compressed message serves every client.

Invariants: an answer names only what RFC 7692 lets a server name for that offer; an offer that wants a smaller window
of ours is declined, since a message made with 32 KiB could not be read; each compressed message can be inflated alone.
"""

import zlib

__all__ = ["ANSWER", "Deflater", "negotiate_deflate"]

ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
"""The extension header of the answer to a plain offer."""

_TAIL = b"\x00\x00\xff\xff"
_FLAGS = {"server_no_context_takeover", "client_no_context_takeover"}
_BITS = {"server_max_window_bits", "client_max_window_bits"}


class Deflater:
    """Compresses messages, each on its own, with one compressor.

    A full flush forgets what came before, so nothing of one message is needed to read the next, and the compressor's
    256 KiB need not be made anew each time.

    Args:
        level: 1 (fast) to 9 (small).
    """

    __slots__ = ("_compressor",)

    def __init__(self, level: int = 1) -> None:
        self._compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 9)

    def message(self, payload: bytes) -> bytes:
        """The compressed message without the tail that RFC 7692 §7.2.1 strips."""
        packed = self._compressor.compress(payload) + self._compressor.flush(zlib.Z_FULL_FLUSH)
        assert packed.endswith(_TAIL)
        return packed[:-4]


def negotiate_deflate(header: str | None) -> str | None:
    """Our `Sec-WebSocket-Extensions` for the client's, None when the client belongs to those without compression.

    Offers are alternatives in the order of preference (RFC 7692 §5); the first that can be met as it stands is taken.
    """
    for offer in (header or "").split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name.lower() == "permessage-deflate" and (answer := _answer(parameters)) is not None:
            return answer
    return None


def _answer(parameters: list[str]) -> str | None:
    seen: dict[str, str | None] = {}
    for parameter in parameters:
        name, equals, value = (part.strip() for part in parameter.partition("="))
        name = name.lower()
        if name in seen or not _fits(name, _unquoted(value) if equals else None):
            return None
        seen[name] = _unquoted(value) if equals else None
    if "server_max_window_bits" not in seen:
        return ANSWER
    # accepted only by being named in the answer (§7.1.2.1), and only a full window can be promised
    return (
        f"{ANSWER}; server_max_window_bits=15" if seen["server_max_window_bits"] == "15" else None
    )


def _fits(name: str, value: str | None) -> bool:
    if name in _FLAGS:
        return value is None
    if name not in _BITS:
        return False
    if value is None:
        return name == "client_max_window_bits"
    return value in {"8", "9", "10", "11", "12", "13", "14", "15"}


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
