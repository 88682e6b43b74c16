"""The two encodings of the hub protocol behind one face, for the caller's role and for the server's.

Invariants: the same message survives both encodings; a decoder never raises for what the peer did, and after a
`Malformed` it says nothing more; encoding raises only for a value that we were given and that cannot be sent.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from keepline.errors import ConfigError
from keepline.stream.binding import Types
from keepline.stream.codec_json import JsonDecoder
from keepline.stream.codec_messagepack import MessagePackDecoder
from keepline.stream.encode import encode_json, encode_messagepack
from keepline.stream.framing import LARGEST_MESSAGE
from keepline.stream.messages import Decoded, Message

__all__ = ["Codec", "Decoder", "Types", "codec"]


class Decoder(Protocol):
    """Turns what arrives on one connection into messages.

    Attributes:
        limit: the largest message.
    """

    limit: int

    @property
    def idle(self) -> bool:
        """Whether the next byte begins a message."""
        ...

    def plain(self, target: str) -> tuple[bytes, Callable[[bytes], Any]]:
        """What stands before the arguments in a plain call of a target, and what decodes the arguments."""
        ...

    def feed(self, data: bytes | str) -> list[Decoded]:
        """What is complete now, in order; after a `Malformed` always nothing."""
        ...

    def reset(self) -> None:
        """A new transport carries the same conversation: forget the beginning of an unfinished message."""
        ...


class Codec:
    """One encoding.

    Attributes:
        name: as the handshake says it.
        binary: whether its frames are binary.
        encode: a message as framed bytes; raises `ConfigError` for a value that cannot be sent.
    """

    __slots__ = ("_decoder", "binary", "encode", "name")

    def __init__(
        self,
        name: str,
        *,
        binary: bool,
        encode: Callable[[Message], bytes],
        decoder: Callable[..., Decoder],
    ) -> None:
        self.name = name
        self.binary = binary
        self.encode = encode
        self._decoder = decoder

    def decoder(
        self, types: Types | None = None, *, max_message_bytes: int = LARGEST_MESSAGE
    ) -> Decoder:
        """A decoder for one connection.

        Args:
            types: into what the values are decoded; None for plain values. Changes count from the next `feed`.
            max_message_bytes: the largest message; a larger one is `Malformed`.
        """
        return self._decoder(types, max_message_bytes=max_message_bytes)

    def __repr__(self) -> str:
        return f"Codec({self.name})"


_CODECS: Final = {
    "json": Codec("json", binary=False, encode=encode_json, decoder=JsonDecoder),
    "messagepack": Codec(
        "messagepack", binary=True, encode=encode_messagepack, decoder=MessagePackDecoder
    ),
}


def codec(name: str) -> Codec:
    """The encoding `json` or `messagepack`, in any case.

    Raises:
        ConfigError: there is no such encoding.
    """
    found = _CODECS.get(name.lower())
    if found is None:
        raise ConfigError(f"{name!r} is no encoding: say 'json' or 'messagepack'", key="encoding")
    return found
