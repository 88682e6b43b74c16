"""How messages are written: one JSON object with a separator behind it, or one MessagePack array with its length
before.

Invariants: properties and items stand in the order in which ASP.NET Core writes them; empty headers and stream ids
are left out of JSON, where absent and empty mean the same; a value that cannot be sent is refused before anything
is sent. Floats go out with 64 bits, instants as text or timestamps, enumerations by their values, which .NET
expects to be the names in MessagePack.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from keepline.errors import ConfigError
from keepline.stream.framing import RECORD_SEPARATOR, frame_binary
from keepline.stream.messages import (
    Ack,
    CancelInvocation,
    Close,
    Completion,
    Invocation,
    Message,
    Ping,
    Sequence,
    StreamInvocation,
    StreamItem,
)

__all__ = ["encode_json", "encode_messagepack"]

_FAILED, _VOID, _VALUE = 1, 2, 3  # the kinds of a completion


def encode_json(message: Message) -> bytes:
    """A message as JSON with its separator behind it.

    Raises:
        ConfigError: a value cannot be written as JSON.
    """
    try:
        return msgspec.json.encode(_WRITE[type(message)](message)) + RECORD_SEPARATOR
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"a value in {type(message).__name__} cannot be sent as JSON: {error}"
        ) from error


def _begin(kind: int, headers: Mapping[str, str] | None) -> dict[str, Any]:
    return {"type": kind, "headers": headers} if headers else {"type": kind}


def _write_call(kind: int, message: Invocation | StreamInvocation) -> dict[str, Any]:
    out = _begin(kind, message.headers)
    if message.id is not None:
        out["invocationId"] = message.id
    out["target"] = message.target
    out["arguments"] = message.arguments
    if message.stream_ids:
        out["streamIds"] = message.stream_ids
    return out


def _write_completion(message: Completion) -> dict[str, Any]:
    out = _begin(3, message.headers)
    out["invocationId"] = message.id
    if message.error is not None:
        out["error"] = message.error
    elif message.result is not msgspec.UNSET:
        out["result"] = message.result
    return out


def _write_close(message: Close) -> dict[str, Any]:
    out: dict[str, Any] = {"type": 7}
    if message.error is not None:
        out["error"] = message.error
    if message.allow_reconnect:
        out["allowReconnect"] = True
    return out


_WRITE: Final[dict[type, Callable[[Any], dict[str, Any]]]] = {
    Invocation: lambda m: _write_call(1, m),
    StreamItem: lambda m: _begin(2, m.headers) | {"invocationId": m.id, "item": m.item},
    Completion: _write_completion,
    StreamInvocation: lambda m: _write_call(4, m),
    CancelInvocation: lambda m: _begin(5, m.headers) | {"invocationId": m.id},
    Ping: lambda m: {"type": 6},
    Close: _write_close,
    Ack: lambda m: {"type": 8, "sequenceId": m.sequence_id},
    Sequence: lambda m: {"type": 9, "sequenceId": m.sequence_id},
}


def encode_messagepack(message: Message) -> bytes:
    """A message as MessagePack with its length before it.

    Raises:
        ConfigError: a value cannot be written as MessagePack.
    """
    try:
        return frame_binary(msgspec.msgpack.encode(_PACK[type(message)](message)))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"a value in {type(message).__name__} cannot be sent as MessagePack: {error}"
        ) from error


def _pack_completion(message: Completion) -> list[Any]:
    begin = [3, message.headers or {}, message.id]
    if message.error is not None:
        return [*begin, _FAILED, message.error]
    if message.result is msgspec.UNSET:
        return [*begin, _VOID]
    return [*begin, _VALUE, message.result]


def _pack_call(kind: int, message: Invocation | StreamInvocation) -> list[Any]:
    ids = message.stream_ids
    return [kind, message.headers or {}, message.id, message.target, message.arguments, ids]


_PACK: Final[dict[type, Callable[[Any], list[Any]]]] = {
    Invocation: lambda m: _pack_call(1, m),
    StreamItem: lambda m: [2, m.headers or {}, m.id, m.item],
    Completion: _pack_completion,
    StreamInvocation: lambda m: _pack_call(4, m),
    CancelInvocation: lambda m: [5, m.headers or {}, m.id],
    Ping: lambda m: [6],
    Close: lambda m: [7, m.error, m.allow_reconnect],
    Ack: lambda m: [8, m.sequence_id],
    Sequence: lambda m: [9, m.sequence_id],
}
