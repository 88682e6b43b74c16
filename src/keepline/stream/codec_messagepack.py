"""The MessagePack encoding of the hub protocol: one array for each message, its length before it.

Invariants: trailing items and unknown message types are skipped; a decoder answers whatever it is fed with values
and never raises; arguments are decoded once, straight into their registered types. The frequent call, `[1, {}, nil,
"X", […], []]`, is recognised by its first bytes, which are learnt from the calls that arrive; everything else takes
the general way, and both give the same.

Where implementations differ, this one: waits for the rest of a partial message (as .NET); takes missing stream ids
and a missing last item of Close; refuses empty ids, targets, header names and header values (as .NET since 2025);
lets a call with missing or unfit arguments, and a completion with a missing or unfit result, fail alone (as .NET
since 2025).
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from keepline.stream.binding import Types, misfit
from keepline.stream.framing import LARGEST_MESSAGE, Oversize, read_length
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

__all__ = ["MessagePackDecoder"]

_NOTHING: Final = msgspec.Raw()
_PING: Final = Ping()
_LEARNT: Final = (
    1024  # beginnings of calls that are remembered; a peer cannot make us remember more
)
_PLAIN: Final = b"\x96\x01\x80\xc0"  # six items: a call, no headers, no id
_SHORTEST: Final = 7  # bytes of `[1, {}, nil, "X", [], []]`, less one
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
_FAILED, _VOID, _VALUE = 1, 2, 3


class _Body(msgspec.Struct, array_like=True):
    """The items of a message as they lie there; what is missing is empty."""

    type: int
    first: msgspec.Raw = _NOTHING
    second: msgspec.Raw = _NOTHING
    third: msgspec.Raw = _NOTHING
    fourth: msgspec.Raw = _NOTHING
    fifth: msgspec.Raw = _NOTHING


_read_body: Final = msgspec.msgpack.Decoder(_Body).decode
_read_text: Final = msgspec.msgpack.Decoder(str).decode
_read_int: Final = msgspec.msgpack.Decoder(int).decode
_read_bool: Final = msgspec.msgpack.Decoder(bool).decode
_read_texts: Final = msgspec.msgpack.Decoder(tuple[str, ...] | None).decode
_read_headers: Final = msgspec.msgpack.Decoder(dict[str, str] | None).decode
_read_list: Final = msgspec.msgpack.Decoder(list[Any]).decode
_read_any: Final = msgspec.msgpack.Decoder().decode
_count: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class MessagePackDecoder:
    """Turns bytes, however they are split, into messages.

    Args:
        types: the expected types; None for plain values everywhere.
        max_message_bytes: the largest message without its length.

    Attributes:
        limit: `max_message_bytes`.
    """

    __slots__ = ("_kept", "_learnt", "_missing", "_over", "_readers", "_types", "limit")

    def __init__(
        self, types: Types | None = None, *, max_message_bytes: int = LARGEST_MESSAGE
    ) -> None:
        self._types = types or Types()
        self.limit = max_message_bytes
        self._learnt: dict[bytes, tuple[str, Callable[[bytes], Any]]] = self._types.derived()
        self._readers: dict[Any, Callable[[bytes | msgspec.Raw], Any]] = {Any: _read_any}
        self._kept: list[bytes] = []
        self._missing = 0  # bytes without which the first kept message cannot be complete
        self._over = False

    def reset(self) -> None:
        """A new transport carries the same conversation: forget the beginning of an unfinished message."""
        self._kept.clear()
        self._missing = 0

    @property
    def idle(self) -> bool:
        """Whether the next byte begins a message."""
        return not self._kept

    def plain(self, target: str) -> tuple[bytes, Callable[[bytes], Any]]:
        """What stands before the arguments in a plain call of a target, and what decodes the arguments."""
        head = _PLAIN + msgspec.msgpack.encode(target)
        return head, self._arguments_reader(self._types.arguments(target))

    def feed(self, data: bytes | str) -> list[Decoded]:
        """What is complete now, in order; after a `Malformed` always nothing."""
        if self._over:
            return []
        out: list[Decoded] = []
        if isinstance(data, str):
            return self._end(out, "text arrived where binary messages are spoken")
        if self._kept:
            self._kept.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return out
            data = b"".join(self._kept)
            self._kept.clear()
        try:
            at = self._messages(data, out)
        except Oversize as error:
            return self._end(out, str(error))
        if at < len(data) and not self._over:
            self._kept.append(data[at:])
        return out

    def _messages(self, data: bytes, out: list[Decoded]) -> int:
        """Appends the complete messages and gives the place where the unfinished one begins."""
        at, end, limit, learnt = 0, len(data), self.limit, self._learnt
        while at < end:
            size, begin = data[at], at + 1
            if size > 0x7F:
                if begin < end and (high := data[begin]) < 0x80:
                    size, begin = size & 0x7F | high << 7, begin + 1
                elif (length := read_length(data, at)) is not None:
                    size, begin = length
                else:
                    self._missing = 1
                    return at
            if size > limit:
                raise Oversize(f"a message of {size} bytes arrived; {limit} are allowed")
            stop = begin + size
            if stop > end:
                self._missing = stop - end
                return at
            at = stop
            # of a plain call, the fifth byte holds the size of the target's name
            known = None
            if size > _SHORTEST and data[stop - 1] == 0x90:
                arguments = begin + data[begin + 4] - 0x9B
                known = learnt.get(data[begin:arguments])
            if known is not None:
                try:
                    out.append(Invocation(known[0], known[1](data[arguments : stop - 1])))
                    continue
                except Exception:  # noqa: S110 (also what a Struct of the caller raises: below it gets its words)
                    pass
            body = data[begin:stop]
            message = self._general(body)
            if message is None:
                continue
            out.append(message)
            if type(message) is Malformed:
                self._over = True
                break
            if type(message) is Invocation and known is None:
                self._learn(body, message)
        return at

    def _learn(self, body: bytes, call: Invocation) -> None:
        """Remember the bytes before the arguments, when they are the usual way to say this call."""
        plain, read = self.plain(call.target)
        if body.startswith(plain) and plain[4] < 0xC0 and len(self._learnt) < _LEARNT:
            self._learnt[plain] = (call.target, read)

    def _end(self, out: list[Decoded], reason: str) -> list[Decoded]:
        self._over = True
        out.append(Malformed(reason))
        return out

    def _general(self, data: bytes) -> Decoded | None:
        try:
            body = _read_body(data)
            read = _READ.get(body.type)
            return read(self, body) if read else None
        except _UNREADABLE as error:
            return Malformed(f"not a message: {error}")

    def _reader(self, kind: Any) -> Callable[[bytes | msgspec.Raw], Any]:
        reader = self._readers.get(kind)
        if reader is None:
            reader = self._readers[kind] = msgspec.msgpack.Decoder(kind).decode
        return reader

    def _arguments_reader(self, expected: tuple[Any, ...] | None) -> Callable[..., Any]:
        return _read_list if expected is None else self._reader(tuple[expected])  # type: ignore[valid-type]

    def _call(self, body: _Body) -> Decoded:
        streamed = body.type == 4
        headers = _headers(body.first)
        call_id = (
            None if bytes(body.second) == b"\xc0" and not streamed else _text("id", body.second)
        )
        target = _text("target", body.third)
        ids = _texts(body.fifth)
        expected = self._types.arguments(target)
        try:
            arguments = self._arguments_reader(expected)(body.fourth)
        except Exception as error:  # what a Struct of the caller raises is a misfit as well
            return BindingFailure(target, call_id, _misfit(expected, body.fourth, error), streamed)
        if streamed:
            return StreamInvocation(target, arguments, call_id or "", ids, headers)
        return Invocation(target, arguments, call_id, ids, headers)

    def _item(self, body: _Body) -> Decoded:
        headers, call_id = _headers(body.first), _text("id", body.second)
        if not body.third:
            raise ValueError("a stream item has no item")
        try:
            return StreamItem(
                call_id, self._reader(self._types.result(call_id))(body.third), headers
            )
        except Exception as error:
            return BindingFailure(
                "", call_id, f"an item has another type than expected: {error}", True
            )

    def _completion(self, body: _Body) -> Decoded:
        headers, call_id = _headers(body.first), _text("id", body.second)
        kind = _read_int(body.third)
        if kind == _FAILED:
            return Completion(call_id, error=_read_text(body.fourth), headers=headers)
        if kind == _VOID:
            return Completion(call_id, headers=headers)
        if kind != _VALUE:
            raise ValueError(f"a completion of kind {kind}; 1, 2 and 3 exist")
        if bytes(body.fourth) == b"\xc0":
            return Completion(call_id, None, headers=headers)
        try:
            return Completion(
                call_id, self._reader(self._types.result(call_id))(body.fourth), headers=headers
            )
        except Exception as error:
            return BindingFailure(
                "", call_id, f"the result has another type than expected: {error}"
            )

    def _cancel(self, body: _Body) -> Decoded:
        return CancelInvocation(_text("id", body.second), _headers(body.first))

    def _close(self, body: _Body) -> Decoded:
        error = None if bytes(body.first) in (b"", b"\xc0") else _read_text(body.first)
        return Close(error, bool(body.second) and _read_bool(body.second))


_READ: Final[dict[int, Callable[[MessagePackDecoder, _Body], Decoded]]] = {
    1: MessagePackDecoder._call,
    2: MessagePackDecoder._item,
    3: MessagePackDecoder._completion,
    4: MessagePackDecoder._call,
    5: MessagePackDecoder._cancel,
    6: lambda _, body: _PING,
    7: MessagePackDecoder._close,
    8: lambda _, body: Ack(_read_int(body.first)),
    9: lambda _, body: Sequence(_read_int(body.first)),
}


def _text(what: str, raw: msgspec.Raw) -> str:
    if not raw:
        raise ValueError(f"{what!r} is missing")
    text: str = _read_text(raw)
    if not text:
        raise ValueError(f"{what!r} is empty")
    return text


def _texts(raw: msgspec.Raw) -> tuple[str, ...]:
    texts: tuple[str, ...] = (_read_texts(raw) if raw else None) or ()
    if not all(texts):
        raise ValueError("a stream id is empty")
    return texts


def _headers(raw: msgspec.Raw) -> dict[str, str] | None:
    headers: dict[str, str] | None = _read_headers(raw)
    if headers and not all(key and value for key, value in headers.items()):
        raise ValueError("the headers have an empty name or value")
    return headers or None


def _misfit(expected: tuple[Any, ...] | None, raw: msgspec.Raw, error: Exception) -> str:
    try:
        return misfit(expected, len(_count(raw)), error)
    except _UNREADABLE:
        return "the arguments are missing or no array"
