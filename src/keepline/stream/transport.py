"""How the bytes of a hub connection travel: the port that WebSockets, server-sent events and long polling fit into.

Invariants: a transport moves bytes and decides nothing; `run` hands over what arrives in order and tells how it ended,
it never raises for what the peer or the network did; nothing here imports an HTTP library.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import ClassVar, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from keepline.errors import ConfigError
from keepline.stream.negotiate import FORMATS

__all__ = [
    "Ending",
    "EndingKind",
    "Receiver",
    "Transport",
    "checked_transports",
    "require_privacy",
]

Receiver: TypeAlias = Callable[[bytes], None]
"""Takes one chunk as it arrived; synchronous, on the loop. What it raises ends the transport's `run`."""


_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def checked_transports(wanted: Sequence[str], *, skip: bool, stateful: bool) -> tuple[str, ...]:
    """The names of the transports that may be used, each once.

    Args:
        wanted: the names.
        skip: negotiation is skipped.
        stateful: stateful reconnect is asked for.

    Raises:
        ConfigError: a name is not known, or the options exclude each other.
    """
    names = tuple(dict.fromkeys(wanted))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names or isinstance(wanted, str):
        known = ", ".join(FORMATS)
        raise ConfigError(f"one or more of {known} are needed, not {wanted!r}", key="transports")
    if skip and "websockets" not in names:
        raise ConfigError("only a WebSocket needs no negotiation", key="skip_negotiation")
    if skip and stateful:
        raise ConfigError("stateful reconnect is agreed on by negotiating", key="skip_negotiation")
    return names


def require_privacy(url: str) -> None:
    """A token travels by https, or by http on this machine alone.

    Raises:
        ConfigError: anything else.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise ConfigError(
            "a token is only sent to an https:// address (http:// on loopback alone)", key="url"
        )


class EndingKind(StrEnum):
    """In which of four ways a transport can end."""

    CLOSED = "closed"
    """The server said so: a Close frame, the end of the event stream, 204 to a poll."""
    CUT = "cut"
    """The connection broke, or the network is gone: nobody said anything."""
    BROKEN = "broken"
    """The peer sent what the transport may not carry: bad frames, bad UTF-8, a frame above the limit."""
    OURS = "ours"
    """`close` or `abort` was called here."""


class Ending(NamedTuple):
    """How a transport ended.

    Attributes:
        kind: who ended it, and how.
        words: for a person; without secrets.
        code: the WebSocket close code, or the HTTP status of a poll; None when there was none.
    """

    kind: EndingKind
    words: str
    code: int | None = None


class Transport(Protocol):
    """One way for bytes to a hub and back; a new object for each connect.

    Attributes:
        name: `websockets`, `events` or `polling`.
        inherent_keep_alive: an open request is proof of life, so the hub's own silence means nothing (long polling).
    """

    name: ClassVar[str]
    inherent_keep_alive: ClassVar[bool]

    async def open(self) -> None:
        """Connect; nothing is read before `run`.

        Raises:
            TransientError: it may work in a moment; `status` and `retry_after` as the server said.
            PermanentError: it will not work again unchanged.
        """
        ...

    async def run(self, receiver: Receiver) -> Ending:
        """Hand every chunk to the receiver until the transport ends."""
        ...

    async def write(self, chunks: Sequence[bytes]) -> None:
        """Send the chunks in order; returns when the transport has room for more. One caller at a time.

        Raises:
            APIError: the transport has ended, or the server refused the bytes.
        """
        ...

    async def close(self) -> None:
        """Say goodbye as the transport does, and let go of everything; may be called twice and at any time."""
        ...

    async def abort(self) -> None:
        """Let go of everything at once without a goodbye, so that the server keeps the connection for a reattach."""
        ...
