"""The nine messages of the SignalR hub protocol, and what a decoder says when bytes are none of them.

Invariants: every value is frozen; a message holds what the peer said and nothing about how it was encoded; the two
failures are values, because a decoder never raises for what the peer did. Source: the ASP.NET Core hub protocol,
versions 1 and 2.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Values
from typing import Any, TypeAlias

import msgspec

__all__ = [
    "Ack",
    "BindingFailure",
    "CancelInvocation",
    "Close",
    "Completion",
    "Decoded",
    "Invocation",
    "Malformed",
    "Message",
    "Ping",
    "Sequence",
    "StreamInvocation",
    "StreamItem",
]

# No message can be part of a reference cycle, so the collector need not look at millions of them (`gc=False`).


class Invocation(msgspec.Struct, frozen=True, gc=False):
    """A call of a method or a handler on the other side (type 1).

    Attributes:
        target: the method's name as the peer wrote it; names are compared without regard to case.
        arguments: the values, a tuple when their types are registered, else a list.
        id: under which a `Completion` is wanted, None when nobody waits for one.
        stream_ids: the streams that the caller uploads beside the arguments.
        headers: texts beside the call, None when there are none.
    """

    target: str
    arguments: Values[Any]
    id: str | None = None
    stream_ids: Values[str] = ()
    headers: Mapping[str, str] | None = None


class StreamInvocation(msgspec.Struct, frozen=True, gc=False):
    """A call whose result is a stream of items (type 4): as `Invocation`, but the id is required."""

    target: str
    arguments: Values[Any]
    id: str
    stream_ids: Values[str] = ()
    headers: Mapping[str, str] | None = None


class StreamItem(msgspec.Struct, frozen=True, gc=False):
    """One item of a stream in either direction (type 2)."""

    id: str
    item: Any
    headers: Mapping[str, str] | None = None


class Completion(msgspec.Struct, frozen=True, gc=False):
    """The end of a call or of a stream (type 3).

    Attributes:
        id: which call or stream.
        result: the value; None for a JSON null, `msgspec.UNSET` when there is none. Void methods send either.
        error: the failure in words, None when it succeeded. Never together with a result.
        headers: texts beside it, None when there are none.
    """

    id: str
    result: Any = msgspec.UNSET
    error: str | None = None
    headers: Mapping[str, str] | None = None


class CancelInvocation(msgspec.Struct, frozen=True, gc=False):
    """The caller of a stream wants no more items (type 5)."""

    id: str
    headers: Mapping[str, str] | None = None


class Ping(msgspec.Struct, frozen=True, gc=False):
    """The peer is alive and has nothing to say (type 6)."""


class Close(msgspec.Struct, frozen=True, gc=False):
    """The peer ends the connection (type 7); without `allow_reconnect` it asks us not to come back."""

    error: str | None = None
    allow_reconnect: bool = False


class Ack(msgspec.Struct, frozen=True, gc=False):
    """Everything up to this number has arrived (type 8, version 2)."""

    sequence_id: int


class Sequence(msgspec.Struct, frozen=True, gc=False):
    """The next counted message has this number (type 9, version 2): the first thing said after a reattach."""

    sequence_id: int


class BindingFailure(msgspec.Struct, frozen=True, gc=False):
    """Values do not fit the registered types: the connection stays, the one call, handler or stream fails.

    Attributes:
        target: the method's name, "" when a result or an item does not fit.
        id: the call's id, None when nobody waits for an answer.
        reason: what does not fit, in words.
        stream: a stream was asked for, or an item of one does not fit.
    """

    target: str
    id: str | None
    reason: str
    stream: bool = False


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """The peer broke the protocol: the connection must end. A decoder gives nothing after it."""

    reason: str


Message: TypeAlias = (
    Invocation
    | StreamInvocation
    | StreamItem
    | Completion
    | CancelInvocation
    | Ping
    | Close
    | Ack
    | Sequence
)
Decoded: TypeAlias = Message | BindingFailure | Malformed
