"""What the hub says: each message becomes JSON bytes exactly once, and a frame is those bytes between commas.

Invariants: the bytes of a message never change; a number that JSON does not have (NaN, Infinity) is refused, never
turned into null; a top-level `offset` is always a position from which a client may resume.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from keepline.errors import ConfigError

__all__ = [
    "OWN_TYPES",
    "Message",
    "Stamps",
    "encode_control",
    "encode_data",
    "encode_message",
    "encode_snapshot",
    "join",
]

OWN_TYPES = frozenset(
    {"welcome", "subscribed", "unsubscribed", "refreshed", "snapshot", "gap", "error", "expiring", "pong"}
)  # fmt: skip
"""Types that say something about the connection or a channel: only the hub sends them."""

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Message(msgspec.Struct, frozen=True, gc=False):
    """One published message, encoded.

    Attributes:
        channel: where.
        offset: its place in the channel, from 1 up.
        type: what it is.
        key: of what it is the newest value, "" for the channel as a whole.
        at: when it was published (seconds, the hub's own clock).
        text: the message as JSON.
        start: where its data begins in the text; the data ends one byte before the text does.
        id: the publisher's own, "" without; two messages of one id are one.
    """

    channel: str
    offset: int
    type: str
    key: str
    at: float
    text: bytes
    start: int
    id: str = ""

    @property
    def data(self) -> bytes:
        """The data as JSON."""
        return self.text[self.start : -1]

    @property
    def gone(self) -> bool:
        """Whether it says that its key is no more."""
        return self.text.endswith(b'"data":null}')


class Stamps:
    """Wall time as text; the same millisecond is written once.

    Attributes:
        skew: seconds to add to the hub's clock to get wall time.
    """

    __slots__ = ("_ms", "_second", "_seconds", "_text", "skew")

    def __init__(self, skew: float = 0.0) -> None:
        self.skew = skew
        self._ms = -1
        self._text = b""
        self._second = -1
        self._seconds = ""

    def at(self, now: float) -> bytes:
        """ISO-8601 in UTC with milliseconds, without quotes."""
        ms = int((now + self.skew) * 1000)
        if ms != self._ms:
            second, rest = divmod(ms, 1000)
            if second != self._second:
                self._second = second
                self._seconds = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._ms = ms
            self._text = f"{self._seconds}.{rest:03d}Z".encode()
        return self._text


def encode_data(data: Any) -> bytes:
    """The data of a message as JSON; `Decimal` becomes a number.

    Raises:
        ConfigError: it holds what JSON cannot say: NaN, Infinity, an object of a foreign type, a circle.
    """
    try:
        text = _encode(data)
        # a NaN is written as null (a float) or NaN (a Decimal); only what holds such words is looked at closely
        suspect = b"null" in text or b"NaN" in text or b"Infinity" in text
        where = _not_a_number(data) if suspect else ""
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"cannot be written as JSON: {error}", key="data") from error
    if where:
        raise ConfigError(f"data{where} is not a finite number; JSON has none such", key="data")
    return text


def encode_message(
    head: bytes, offset: int, middle: bytes, stamp: bytes, key: str, own: str, data: bytes
) -> tuple[bytes, int]:
    """A whole message, and where its data begins: `head` ends before the offset, `middle` holds the epoch."""
    if key or own:
        extra = b"" if not key else b',"key":' + _encode(key)
        if own:
            extra += b',"id":' + _encode(own)
        front = b'%b%d%b%b"%b,"data":' % (head, offset, middle, stamp, extra)
    else:
        front = b'%b%d%b%b","data":' % (head, offset, middle, stamp)
    return b"%b%b}" % (front, data), len(front)


def encode_snapshot(
    head: bytes,
    offset: int,
    middle: bytes,
    stamp: bytes,
    messages: Iterable[Message],
    stamps: Stamps,
    *,
    partial: bool,
) -> bytes:
    """Many values in one message: `{"items": [{type, key, offset, timestamp, id?, data}, ...], "partial": ...}`."""
    items = b",".join(_item(m, stamps) for m in messages)
    whole = b"true" if partial else b"false"
    return b'%b%d%b%b","data":{"items":[%b],"partial":%b}}' % (
        head, offset, middle, stamp, items, whole,
    )  # fmt: skip


def _item(message: Message, stamps: Stamps) -> bytes:
    """A message within a snapshot: when it was published and by what it is known are its own."""
    own = b',"id":' + _encode(message.id) if message.id else b""
    return b'{"type":%b,"key":%b,"offset":%d,"timestamp":"%b"%b,"data":%b}' % (
        _encode(message.type), _encode(message.key), message.offset, stamps.at(message.at), own, message.data,
    )  # fmt: skip


def encode_control(
    kind: str, stamp: bytes, data: Mapping[str, Any], *, channel: str | None = None
) -> bytes:
    """A message about the connection or a subscription; it has no offset."""
    where = b"" if channel is None else b',"channel":' + _encode(channel)
    return b'{"type":%b%b,"timestamp":"%b","data":%b}' % (
        _encode(kind),
        where,
        stamp,
        _encode(data),
    )


def join(texts: Iterable[bytes]) -> bytes:
    """The payload of a frame: an array of messages."""
    return b"[%b]" % b",".join(texts)


def _not_a_number(value: Any, where: str = "") -> str:
    """The path of the first number that JSON does not have, "" when there is none."""
    if isinstance(value, (float, Decimal)):
        return "" if math.isfinite(value) else where or " itself"
    if isinstance(value, Mapping):
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = enumerate(value)
    elif isinstance(value, (str, bytes, int, msgspec.Raw)) or value is None:
        return ""
    else:
        built = msgspec.to_builtins(value, builtin_types=(Decimal, float))
        return (
            _not_a_number(built, where) if isinstance(built, (dict, list, float, Decimal)) else ""
        )
    for key, each in inner:
        if found := _not_a_number(each, f"{where}[{key!r}]"):
            return found
    return ""
