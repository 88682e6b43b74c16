"""Both encodings say the same; any split of the bytes gives the same messages."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.stream.codec import Codec, Types, codec
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

CODECS = [codec("json"), codec("messagepack")]
each_codec = pytest.mark.parametrize("encoding", CODECS, ids=lambda encoding: encoding.name)

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
arguments = st.lists(values, max_size=4)
ids = st.lists(names, max_size=3).map(tuple)
headers = st.none() | st.dictionaries(names, names, min_size=1, max_size=3)
numbers = st.integers(-(2**63), 2**63 - 1)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Invocation, names, arguments, st.none() | names, ids, headers),
    st.builds(StreamInvocation, names, arguments, names, ids, headers),
    st.builds(StreamItem, names, values, headers),
    st.builds(Completion, names, values, headers=headers),
    st.builds(Completion, names, error=st.text(st.characters(codec="utf-8")), headers=headers),
    st.builds(Completion, names, headers=headers),
    st.builds(CancelInvocation, names, headers),
    st.just(Ping()),
    st.builds(Close, st.none() | st.text(st.characters(codec="utf-8")), st.booleans()),
    st.builds(Ack, numbers),
    st.builds(Sequence, numbers),
)


@each_codec
@given(sent=st.lists(messages, max_size=6))
def test_what_is_sent_arrives(encoding: Codec, sent: list[Message]) -> None:
    assert encoding.decoder().feed(b"".join(map(encoding.encode, sent))) == sent


@each_codec
@given(sent=st.lists(messages, max_size=4), data=st.data())
def test_any_split_of_the_bytes_gives_the_same(
    encoding: Codec, sent: list[Message], data: st.DataObject
) -> None:
    wire = b"".join(map(encoding.encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    decoder = encoding.decoder()
    arrived = []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        arrived += decoder.feed(wire[begin:end])
    assert arrived == sent


@each_codec
@given(sent=st.lists(messages, max_size=3))
def test_one_byte_at_a_time_gives_the_same(encoding: Codec, sent: list[Message]) -> None:
    wire = b"".join(map(encoding.encode, sent))
    decoder = encoding.decoder()
    assert [m for i in range(len(wire)) for m in decoder.feed(wire[i : i + 1])] == sent


@each_codec
def test_no_bytes_are_no_messages(encoding: Codec) -> None:
    assert encoding.decoder().feed(b"") == []


@each_codec
def test_a_target_is_typed_in_whatever_case_the_peer_writes_it(encoding: Codec) -> None:
    types = Types()
    types.expect("gatewayQUOTE", float)
    decoder = encoding.decoder(types)
    for target in ("GatewayQuote", "gatewayquote", "GATEWAYQUOTE", "GatewayQuote"):
        (call,) = decoder.feed(encoding.encode(Invocation(target, [1])))
        assert call == Invocation(target, (1.0,))
        assert isinstance(call, Invocation)
        assert isinstance(call.arguments[0], float)


@each_codec
def test_a_peer_that_invents_names_fills_no_memory(encoding: Codec) -> None:
    decoder = encoding.decoder()
    for number in range(1500):
        decoder.feed(encoding.encode(Invocation(f"T{number}", [])))
    assert len(decoder._learnt) == 1024  # type: ignore[attr-defined]
    assert decoder.feed(encoding.encode(Invocation("T1499", [1]))) == [Invocation("T1499", [1])]


def test_encodings_are_found_by_name_in_any_case() -> None:
    assert [codec("JSON").name, codec("MessagePack").name] == ["json", "messagepack"]
    assert [codec("json").binary, codec("messagepack").binary] == [False, True]
    assert repr(codec("json")) == "Codec(json)"
    with pytest.raises(ConfigError, match="'xml' is no encoding: say 'json' or 'messagepack'"):
        codec("xml")
