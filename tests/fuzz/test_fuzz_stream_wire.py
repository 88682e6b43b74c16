"""Any bytes into a hub conversation, cut anywhere, at any moment: an event or a typed end, never an exception."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from keepline.stream.codec import Codec, Types, codec
from keepline.stream.framing import frame_binary
from keepline.stream.handshake import (
    HandshakeReader,
    judge_request,
    read_request,
    read_response,
    write_response,
)
from keepline.stream.messages import Malformed
from keepline.stream.negotiate import (
    Negotiated,
    NegotiateError,
    Redirect,
    choose_transports,
    read_reply,
)
from keepline.stream.sse import EventReader
from keepline.stream.wire import HubWire, Phase
from keepline.stream.wire_events import Closed

JSON, PACK = codec("json"), codec("messagepack")


class Tick(msgspec.Struct):
    symbol: str
    last: float | None = None


keys = st.sampled_from(
    ["type", "target", "arguments", "invocationId", "item", "result", "error", "headers", "streamIds", "sequenceId",
     "allowReconnect", "connectionId", "connectionToken", "availableTransports", "negotiateVersion", "url",
     "ProtocolVersion", "protocol", "version", "transport", "transferFormats", "symbol", "last"],
)  # fmt: skip
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.integers() | st.floats()
    | st.sampled_from(["", "1", "2", "T", "Tick", "WebSockets", "Text"]) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(keys | st.text(max_size=4), inner, max_size=6),
    max_leaves=10,
)  # fmt: skip
records = values.map(msgspec.json.encode) | st.binary(max_size=40)
json_streams = st.lists(records, max_size=6).map(lambda parts: b"".join(p + b"\x1e" for p in parts))


def pack(value: Any) -> bytes:
    try:
        return frame_binary(msgspec.msgpack.encode(value))
    except OverflowError:  # an integer that MessagePack cannot hold
        return frame_binary(b"\xcf" + b"\xff" * 8)


arrays = st.tuples(st.integers(0, 11), values, values, values, values, values).map(list)
bodies = (
    (values | arrays).map(pack) | st.binary(max_size=40) | st.binary(max_size=40).map(frame_binary)
)
pack_streams = st.lists(bodies, max_size=6).map(b"".join)
cuts = st.lists(st.integers(0, 200), max_size=6).map(sorted)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def conversation(encoding: Codec, stateful: bool) -> HubWire:
    types = Types()
    types.expect("Tick", str, Tick)
    types.expect("T", int)
    wire = HubWire(encoding, types=types, stateful=stateful, max_message_bytes=500)
    wire.open(0.0)
    wire.receive(write_response(), 0.0)
    wire.invoke("Ask", [], Tick)
    wire.open_stream("Ask", [], int)
    return wire


def converse(encoding: Codec, data: bytes, at: list[int], stateful: bool) -> None:
    wire = conversation(encoding, stateful)
    events = []
    for step, piece in enumerate(pieces(data, at)):
        now = float(step)
        events += wire.receive(piece, now)
        events += wire.expire(now)
        if stateful and step == 2 and not wire.lost(now) and wire.phase is Phase.LOST:
            wire.reattached(now)
        wire.take()
        assert wire.deadline is None or wire.phase is Phase.OPEN
    ends = [event for event in events if isinstance(event, Closed)]
    assert len(ends) <= 1
    assert ends == events[-1:] or not ends
    assert (wire.phase is Phase.CLOSED) >= bool(ends)


@given(json_streams, cuts, st.booleans())
def test_any_json_is_an_event_or_an_end(data: bytes, at: list[int], stateful: bool) -> None:
    converse(JSON, data, at, stateful)


@given(pack_streams, cuts, st.booleans())
def test_any_messagepack_is_an_event_or_an_end(data: bytes, at: list[int], stateful: bool) -> None:
    converse(PACK, data, at, stateful)


@given(st.binary(max_size=300), cuts, st.sampled_from([JSON, PACK]))
def test_any_bytes_are_an_event_or_an_end(data: bytes, at: list[int], encoding: Codec) -> None:
    converse(encoding, data, at, False)


@given(st.text(max_size=100))
def test_any_text_is_an_event_or_an_end(text: str) -> None:
    for encoding in (JSON, PACK):
        conversation(encoding, False).receive(text, 1.0)


@given(json_streams | pack_streams, cuts)
def test_however_bytes_are_cut_they_mean_the_same(data: bytes, at: list[int]) -> None:
    for encoding in (JSON, PACK):
        whole, cut = encoding.decoder(), encoding.decoder()
        together = repr(whole.feed(data))  # by its text, for NaN is not equal to itself
        assert (
            repr([message for piece in pieces(data, at) for message in cut.feed(piece)]) == together
        )


@given(records, cuts)
def test_any_handshake_is_an_answer_or_malformed(record: bytes, at: list[int]) -> None:
    reader = HandshakeReader()
    answers = [reader.feed(piece) for piece in pieces(record, at)]
    assert all(answer is None or isinstance(answer, tuple | Malformed) for answer in answers)
    read_response(record)
    judge_request(read_request(record))


@given(records, st.booleans())
def test_any_negotiate_reply_is_one_of_three(record: bytes, stateful: bool) -> None:
    reply = read_reply(record, stateful=stateful)
    assert isinstance(reply, Negotiated | Redirect | NegotiateError)
    assert repr(reply)
    if isinstance(reply, Negotiated):
        choose_transports(reply.transports, ("websockets", "events", "polling"), binary=stateful)


@given(
    st.lists(st.sampled_from([b"data: ", b"\r\n", b"\n", b"\r", b":", b"x", b"\xff"]), max_size=30),
    st.integers(1, 9),
)
def test_any_event_stream_is_events_or_one_malformed_at_the_end(
    parts: list[bytes], step: int
) -> None:
    data = b"".join(parts)
    whole = EventReader(max_event_bytes=40).feed(data)
    reader = EventReader(max_event_bytes=40)
    split = [event for i in range(0, len(data), step) for event in reader.feed(data[i : i + step])]
    assert [type(event) for event in split] == [type(event) for event in whole]
    assert not any(isinstance(event, Malformed) for event in whole[:-1])
