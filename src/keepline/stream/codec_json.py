"""The JSON encoding of the hub protocol: one object for each message, a record separator behind each.

Invariants: properties come in any order, unknown ones and unknown message types are skipped; a decoder answers
whatever it is fed with values and never raises; arguments are decoded once, straight into their registered types.
The frequent call, `{"type":1,"target":"X","arguments":[…]}`, is recognised by its first bytes, which are learnt
from the calls that arrive; everything else takes the general way, and both give the same.

Where implementations differ, this one: waits for the rest of a partial record (as .NET; JavaScript refuses it);
takes `"result":null` beside an error (as JavaScript); refuses empty ids, targets, header names and header values
(as JavaScript and .NET since 2025); takes null for an absent call_id, error, headers or streamIds.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from keepline.stream.binding import Types, misfit
from keepline.stream.framing import LARGEST_MESSAGE, Oversize, RecordSplitter
from keepline.stream.messages import (
    Ack,
    BindingFailure,
    CancelInvocation,
    Close,
    Completion,
    Decoded,
    Invocation,
    Malformed,
    Ping,
    Sequence,
    StreamInvocation,
    StreamItem,
)

__all__ = ["JsonDecoder"]

_NOTHING: Final = msgspec.Raw()
_ARGUMENTS: Final = b',"arguments":'
_BRACE: Final = 0x7D
_Read: TypeAlias = Callable[[bytes], Any]
_PING: Final = Ping()
_LEARNT: Final = (
    1024  # beginnings of calls that are remembered; a peer cannot make us remember more
)
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


class _Kind(msgspec.Struct):
    type: int


class _Invocation(msgspec.Struct, tag_field="type", tag=1, rename="camel"):
    target: str
    arguments: msgspec.Raw
    invocation_id: str | None = None
    stream_ids: tuple[str, ...] | None = None
    headers: dict[str, str] | None = None


class _StreamItem(msgspec.Struct, tag_field="type", tag=2, rename="camel"):
    invocation_id: str
    item: msgspec.Raw
    headers: dict[str, str] | None = None


class _Completion(msgspec.Struct, tag_field="type", tag=3, rename="camel"):
    invocation_id: str
    result: msgspec.Raw = _NOTHING
    error: str | None = None
    headers: dict[str, str] | None = None


class _StreamInvocation(msgspec.Struct, tag_field="type", tag=4, rename="camel"):
    target: str
    arguments: msgspec.Raw
    invocation_id: str
    stream_ids: tuple[str, ...] | None = None
    headers: dict[str, str] | None = None


class _Cancel(msgspec.Struct, tag_field="type", tag=5, rename="camel"):
    invocation_id: str
    headers: dict[str, str] | None = None


class _Ping(msgspec.Struct, tag_field="type", tag=6):
    pass


class _Close(msgspec.Struct, tag_field="type", tag=7, rename="camel"):
    error: str | None = None
    allow_reconnect: bool | None = False


class _Ack(msgspec.Struct, tag_field="type", tag=8, rename="camel"):
    sequence_id: int


class _Sequence(msgspec.Struct, tag_field="type", tag=9, rename="camel"):
    sequence_id: int


_Calls: TypeAlias = _Invocation | _StreamInvocation
_Envelope: TypeAlias = (
    _Calls | _StreamItem | _Completion | _Cancel | _Ping | _Close | _Ack | _Sequence
)
_read_kind: Final = msgspec.json.Decoder(_Kind).decode
_read_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_read_list: Final = msgspec.json.Decoder(list[Any]).decode
_read_any: Final = msgspec.json.Decoder().decode
_count: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class JsonDecoder:
    """Turns text, however it is split, into messages.

    Args:
        types: the expected types; None for plain values everywhere.
        max_message_bytes: the largest message, separator included.

    Attributes:
        limit: `max_message_bytes`.
    """

    __slots__ = ("_learnt", "_over", "_readers", "_splitter", "_types", "limit")

    def __init__(
        self, types: Types | None = None, *, max_message_bytes: int = LARGEST_MESSAGE
    ) -> None:
        self._types = types or Types()
        self._splitter = RecordSplitter(max_message_bytes)
        self.limit = max_message_bytes
        self._learnt: dict[bytes, tuple[str, _Read]] = self._types.derived()  # by their beginning
        self._readers: dict[Any, Callable[[bytes | msgspec.Raw], Any]] = {Any: _read_any}
        self._over = False

    def reset(self) -> None:
        """A new transport carries the same conversation: forget the beginning of an unfinished message."""
        self._splitter.clear()

    @property
    def idle(self) -> bool:
        """Whether the next byte begins a message."""
        return self._splitter.empty

    def plain(self, target: str) -> tuple[bytes, _Read]:
        """What stands before the arguments in a plain call of a target, and what decodes the arguments."""
        head = b'{"type":1,"target":' + msgspec.json.encode(target) + _ARGUMENTS
        return head, _arguments_reader(self, self._types.arguments(target))

    def feed(self, data: bytes | str) -> list[Decoded]:
        """What is complete now, in order; after a `Malformed` always nothing."""
        if self._over:
            return []
        try:
            if isinstance(data, str):
                data = data.encode()
            return self._records(self._splitter.feed(data))
        except (Oversize, UnicodeEncodeError) as error:
            self._over = True
            return [Malformed(str(error))]

    def _records(self, records: list[bytes]) -> list[Decoded]:
        out: list[Decoded] = []
        learnt = self._learnt
        for record in records:
            head, _, rest = record.partition(_ARGUMENTS)
            known = learnt.get(head)
            if known is not None:
                try:
                    if rest[-1] == _BRACE:
                        out.append(Invocation(known[0], known[1](rest[:-1])))
                        continue
                except Exception:  # noqa: S110 (also what a Struct of the caller raises: below it gets its words)
                    pass
            message = self._general(record)
            if message is None:
                continue
            out.append(message)
            if type(message) is Malformed:
                self._over = True
                break
            if type(message) is Invocation and known is None:
                self._learn(head, message)
        return out

    def _learn(self, head: bytes, call: Invocation) -> None:
        """Remember the bytes before the arguments, when they are the shortest way to say this call."""
        plain, read = self.plain(call.target)
        if head + _ARGUMENTS == plain and len(self._learnt) < _LEARNT:
            self._learnt[head] = (call.target, read)

    def _general(self, record: bytes) -> Decoded | None:
        try:
            envelope = _read_envelope(record)
        except _UNREADABLE as error:
            return _unreadable(record, error)
        try:
            return _READ[type(envelope)](self, envelope)
        except _UNREADABLE as error:
            return Malformed(str(error))

    def _reader(self, kind: Any) -> Callable[[bytes | msgspec.Raw], Any]:
        reader = self._readers.get(kind)
        if reader is None:
            reader = self._readers[kind] = msgspec.json.Decoder(kind).decode
        return reader

    def _call(self, envelope: _Calls) -> Decoded:
        target, call_id = _named("target", envelope.target), envelope.invocation_id
        if call_id is not None:
            _named("invocationId", call_id)
        ids = envelope.stream_ids or ()
        for each in ids:
            _named("streamIds", each)
        headers = _headers(envelope.headers)
        expected = self._types.arguments(target)
        streamed = type(envelope) is _StreamInvocation
        if memoryview(envelope.arguments)[0] != 0x5B:  # "["
            raise ValueError("'arguments' is not an array")
        try:
            arguments = _arguments_reader(self, expected)(envelope.arguments)
        except Exception as error:  # what a Struct of the caller raises is a misfit as well
            given = len(_count(envelope.arguments))
            return BindingFailure(target, call_id, misfit(expected, given, error), streamed)
        if streamed:
            return StreamInvocation(target, arguments, call_id or "", ids, headers)
        return Invocation(target, arguments, call_id, ids, headers)

    def _item(self, envelope: _StreamItem) -> Decoded:
        call_id, headers = (
            _named("invocationId", envelope.invocation_id),
            _headers(envelope.headers),
        )
        try:
            return StreamItem(
                call_id, self._reader(self._types.result(call_id))(envelope.item), headers
            )
        except Exception as error:
            return BindingFailure(
                "", call_id, f"an item has another type than expected: {error}", True
            )

    def _completion(self, envelope: _Completion) -> Decoded:
        call_id, headers = (
            _named("invocationId", envelope.invocation_id),
            _headers(envelope.headers),
        )
        result = bytes(envelope.result)
        if envelope.error is not None:
            if result not in (b"", b"null"):
                raise ValueError("a completion has both an error and a result")
            return Completion(call_id, error=envelope.error, headers=headers)
        if not result:
            return Completion(call_id, headers=headers)
        if result == b"null":
            return Completion(call_id, None, headers=headers)
        try:
            return Completion(
                call_id, self._reader(self._types.result(call_id))(result), headers=headers
            )
        except Exception as error:
            return BindingFailure(
                "", call_id, f"the result has another type than expected: {error}"
            )

    def _cancel(self, envelope: _Cancel) -> Decoded:
        call_id = _named("invocationId", envelope.invocation_id)
        return CancelInvocation(call_id, _headers(envelope.headers))


_READ: Final[dict[type, Callable[[JsonDecoder, Any], Decoded]]] = {
    _Invocation: JsonDecoder._call,
    _StreamItem: JsonDecoder._item,
    _Completion: JsonDecoder._completion,
    _StreamInvocation: JsonDecoder._call,
    _Cancel: JsonDecoder._cancel,
    _Ping: lambda _, envelope: _PING,
    _Close: lambda _, envelope: Close(envelope.error, bool(envelope.allow_reconnect)),
    _Ack: lambda _, envelope: Ack(envelope.sequence_id),
    _Sequence: lambda _, envelope: Sequence(envelope.sequence_id),
}


def _arguments_reader(decoder: JsonDecoder, expected: tuple[Any, ...] | None) -> Callable[..., Any]:
    return _read_list if expected is None else decoder._reader(tuple[expected])  # type: ignore[valid-type]


def _named(what: str, text: str) -> str:
    if not text:
        raise ValueError(f"{what!r} is empty")
    return text


def _headers(headers: dict[str, str] | None) -> dict[str, str] | None:
    if headers and not all(key and value for key, value in headers.items()):
        raise ValueError("'headers' has an empty name or value")
    return headers or None


def _unreadable(record: bytes, error: Exception) -> Malformed | None:
    """None for a message of a type that does not exist yet: it is to be skipped."""
    try:
        kind = _read_kind(record).type
    except _UNREADABLE:
        return Malformed(f"not a message: {error}")
    return Malformed(f"a message of type {kind}: {error}") if 1 <= kind <= 9 else None
