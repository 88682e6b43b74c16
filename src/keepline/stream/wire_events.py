"""What happens on a hub connection, as values: what `HubWire` answers to bytes and to time.

Invariants: every call that the server answers gets one `Answered`, every stream one `Ended`; `Closed` comes once
and last; a call from the server is the message itself, not a copy of it.
"""

from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from keepline.stream.messages import BindingFailure, Invocation

__all__ = [
    "Answered",
    "Called",
    "Cancelled",
    "CloseReason",
    "Closed",
    "Ended",
    "HandshakeDone",
    "Item",
    "Resumed",
    "Stray",
    "Unbound",
    "WireEvent",
]

Called: TypeAlias = Invocation
"""The server calls a handler; with an id it waits for `HubWire.complete`."""


class CloseReason(StrEnum):
    """Why a conversation is over."""

    REFUSED = "refused"
    """The server refused the handshake."""
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """The server did not answer the handshake in time."""
    SILENT = "silent"
    """Nothing arrived for longer than the server may be silent."""
    SAID = "said"
    """The server sent Close."""
    MALFORMED = "malformed"
    """The server broke the protocol."""
    LOST = "lost"
    """The transport ended without a Close."""
    OURS = "ours"
    """We closed it."""


class HandshakeDone(msgspec.Struct, frozen=True):
    """Messages may be exchanged."""


class Answered(msgspec.Struct, frozen=True):
    """A call is over.

    Attributes:
        id: which one.
        result: the value; None for a void method.
        error: the failure in the server's words (see `explain`), None when it succeeded.
        unfit: it succeeded at the server, but the result has another type than expected; `error` says how.
    """

    id: str
    result: Any = None
    error: str | None = None
    unfit: bool = False


class Item(msgspec.Struct, frozen=True):
    """A stream that we opened has an item."""

    id: str
    item: Any


class Ended(msgspec.Struct, frozen=True):
    """A stream that we opened is over; the attributes are those of `Answered`."""

    id: str
    error: str | None = None
    unfit: bool = False


class Cancelled(msgspec.Struct, frozen=True):
    """The server no longer waits for the result of a call that it made."""

    id: str


class Unbound(msgspec.Struct, frozen=True):
    """A call from the server does not fit; a waiting server has been told."""

    failure: BindingFailure


class Stray(msgspec.Struct, frozen=True):
    """A message for a call or stream that is not open: worth counting, otherwise harmless."""

    kind: str
    id: str


class Resumed(msgspec.Struct, frozen=True):
    """After a reattach the server goes on where it was."""


class Closed(msgspec.Struct, frozen=True):
    """The conversation is over; all open calls have an unknown outcome.

    Attributes:
        reason: why.
        allow_reconnect: whether coming back makes sense; False when the server forbids it, refuses the encoding, or
            when we closed.
        error: in words, "" when there are none.
    """

    reason: CloseReason
    allow_reconnect: bool
    error: str = ""


WireEvent: TypeAlias = (
    HandshakeDone
    | Called
    | Answered
    | Item
    | Ended
    | Cancelled
    | Unbound
    | Stray
    | Resumed
    | Closed
)
