"""MessagePack messages: every kind as bytes and back, lengths, what ends the connection and what fails alone."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from keepline.errors import ConfigError
from keepline.stream.codec import Types, codec
from keepline.stream.framing import frame_binary
from keepline.stream.messages import (
    Ack,
    BindingFailure,
    CancelInvocation,
    Close,
    Completion,
    Decoded,
    Invocation,
    Malformed,
    Message,
    Ping,
    Sequence,
    StreamInvocation,
    StreamItem,
)

PACK = codec("messagepack")


class Tick(msgspec.Struct):
    symbol: str
    last: float


def framed(value: Any) -> bytes:
    return frame_binary(msgspec.msgpack.encode(value))


def one(data: bytes, types: Types | None = None) -> Decoded:
    (message,) = PACK.decoder(types).feed(data)
    return message


def expecting(target: str, *kinds: Any) -> Types:
    types = Types()
    types.expect(target, *kinds)
    return types


BOTH_WAYS: list[tuple[Message, list[Any]]] = [
    (Invocation("Tick", [1, "a", None]), [1, {}, None, "Tick", [1, "a", None], []]),
    (Invocation("Tick", [], "7", ("u",)), [1, {}, "7", "Tick", [], ["u"]]),
    (Invocation("Tick", [], None, (), {"a": "b"}), [1, {"a": "b"}, None, "Tick", [], []]),
    (StreamItem("3", 42), [2, {}, "3", 42]),
    (StreamItem("3", None, {"a": "b"}), [2, {"a": "b"}, "3", None]),
    (Completion("3", error="no"), [3, {}, "3", 1, "no"]),
    (Completion("3"), [3, {}, "3", 2]),
    (Completion("3", None), [3, {}, "3", 3, None]),
    (Completion("3", {"a": b"\x01"}), [3, {}, "3", 3, {"a": b"\x01"}]),
    (StreamInvocation("Ticks", ["NQ"], "9"), [4, {}, "9", "Ticks", ["NQ"], []]),
    (CancelInvocation("9"), [5, {}, "9"]),
    (Ping(), [6]),
    (Close(), [7, None, False]),
    (Close("bye", True), [7, "bye", True]),
    (Ack(300), [8, 300]),
    (Sequence(2), [9, 2]),
]


@pytest.mark.parametrize(("message", "items"), BOTH_WAYS)
def test_a_message_is_written_and_read(message: Message, items: list[Any]) -> None:
    assert PACK.encode(message) == framed(items)
    assert one(framed(items)) == message
    if not isinstance(message, Ping):
        assert one(framed([*items, *([[]] if items[0] in (1, 4) else [0, "later"])])) == message


def test_a_ping_has_three_known_bytes() -> None:
    assert PACK.encode(Ping()) == bytes.fromhex("029106")


TOLERATED: list[tuple[list[Any], Message]] = [
    ([1, {}, None, "T", [1]], Invocation("T", [1])),
    ([1, None, None, "T", [], None], Invocation("T", [])),
    ([7], Close()),
    ([7, "e"], Close("e")),
    ([3, {}, "1", 2, 0], Completion("1")),
]


@pytest.mark.parametrize(("items", "message"), TOLERATED)
def test_what_may_be_missing_is_not_missed(items: list[Any], message: Message) -> None:
    assert one(framed(items)) == message


BROKEN: list[Any] = [
    "text", 7, None, {}, [], ["1"], [None], [True], [1], [1, 3], [1, {}], [1, {"a": 1}, None, "T", [], []],
    [1, {1: "a"}, None, "T", [], []], [1, {"": "a"}, None, "T", [], []], [1, {"a": ""}, None, "T", [], []],
    [1, {}, 5, "T", [], []], [1, {}, "", "T", [], []], [1, {}, None, "", [], []], [1, {}, None, 4, [], []],
    [1, {}, None], [1, {}, None, None, []], [1, {}, None, "T", [], [""]], [1, {}, None, "T", [], [1]],
    [1, {}, None, "T", [], "u"],
    [2, {}], [2, {}, ""], [2, {}, False, 1], [2, {}, "1"],
    [3, {}], [3, {}, "", 2], [3, {}, "1"], [3, {}, "1", "2"], [3, {}, "1", 4], [3, {}, "1", 0], [3, {}, "1", 1],
    [3, {}, "1", 1, 5], [4, {}, None, "T", [], []], [4, {}, "", "T", [], []], [4, {}, "1", "", [], []],
    [5, {}], [5, {}, ""], [7, 1], [7, None, "yes"], [8], [8, None], [8, True], [9], [9, "1"],
]  # fmt: skip


@pytest.mark.parametrize("value", BROKEN, ids=repr)
def test_what_breaks_the_protocol_is_malformed_and_nothing_follows(value: Any) -> None:
    decoder = PACK.decoder()
    *before, failure = decoder.feed(framed([6]) + framed(value) + framed([6]))
    assert before == [Ping()]
    assert isinstance(failure, Malformed)
    assert failure.reason
    assert decoder.feed(framed([6])) == []


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("00"),
        bytes.fromhex("01c1"),
        bytes.fromhex("03910600"),  # two values in one message
        bytes.fromhex("ffffffffff"),
        bytes.fromhex("8080808008"),
        bytes.fromhex("8080808080"),
        frame_binary(b"\x91" * 100_000),
        frame_binary(b"\x96\x01\x80\xc0\xa1\xff\x90\x90"),  # no UTF-8
    ],
)
def test_bytes_that_are_no_message_are_malformed(data: bytes) -> None:
    assert isinstance(one(data), Malformed)


def test_text_is_malformed() -> None:
    (failure,) = PACK.decoder().feed('{"type":6}\x1e')
    assert failure == Malformed("text arrived where binary messages are spoken")


@pytest.mark.parametrize("kind", [0, 10, -1, 2**40])
def test_a_type_that_does_not_exist_yet_is_skipped_whatever_it_holds(kind: int) -> None:
    assert PACK.decoder().feed(framed([kind, 5, None]) + framed([6])) == [Ping()]


MISFITS = [
    ([1, {}, "abc", "xyz"], "missing or no array"),
    ([1, {}, "abc", "xyz", 42], "missing or no array"),
    ([1, {}, "abc", "xyz", []], "0 argument(s) arrived where 1"),
    ([1, {}, "abc", "xyz", ["a", "b"], []], "2 argument(s) arrived where 1"),
    ([1, {}, "abc", "xyz", [42], []], "`str`"),
    ([4, {}, "abc", "xyz", [42], []], "`str`"),
]


@pytest.mark.parametrize(("items", "reason"), MISFITS)
def test_arguments_that_do_not_fit_fail_alone(items: list[Any], reason: str) -> None:
    decoder = PACK.decoder(expecting("XYZ", str))
    decoder.feed(framed([1, {}, None, "xyz", ["learnt"], []]))
    failure, ping = decoder.feed(framed(items) + framed([6]))
    assert ping == Ping()
    assert isinstance(failure, BindingFailure)
    assert (failure.target, failure.id, failure.stream) == ("xyz", "abc", items[0] == 4)
    assert reason in failure.reason


def test_what_cannot_be_read_as_plain_values_fails_alone() -> None:
    body = msgspec.msgpack.encode([1, {}, None, "T"])[1:] + b"\x91\xa1\xff" + b"\x90"
    failure, ping = PACK.decoder().feed(frame_binary(b"\x96" + body) + framed([6]))
    assert isinstance(failure, BindingFailure)
    assert "cannot be read" in failure.reason
    assert ping == Ping()


def test_a_learnt_call_that_does_not_fit_fails_alone() -> None:
    decoder = PACK.decoder(expecting("xyz", str))
    for value, kind in (("a", Invocation), (1, BindingFailure), ("b", Invocation)):
        assert [type(m) for m in decoder.feed(framed([1, {}, None, "xyz", [value], []]))] == [kind]


def test_results_and_items_are_decoded_into_their_type_or_fail_alone() -> None:
    types = Types()
    types.expect_result("1", Tick)
    tick = {"symbol": "NQ", "last": 1.5}
    assert one(framed([3, {}, "1", 3, tick]), types) == Completion("1", Tick("NQ", 1.5))
    assert one(framed([2, {}, "1", tick]), types) == StreamItem("1", Tick("NQ", 1.5))
    assert one(framed([3, {}, "1", 3, None]), types) == Completion("1", None)
    for items, stream in (
        ([3, {}, "1", 3, 4], False),
        ([3, {}, "1", 3], False),
        ([2, {}, "1", 4], True),
    ):
        failure = one(framed(items), types)
        assert isinstance(failure, BindingFailure)
        assert (failure.target, failure.id, failure.stream) == ("", "1", stream)


def test_instants_are_timestamps() -> None:
    at = datetime(2018, 1, 1, 11, 24, tzinfo=UTC)
    assert PACK.encode(Completion("abc", at)) == bytes.fromhex("0e950380a361626303d6ff5a4a1a50")
    assert one(bytes.fromhex("0e950380a361626303d6ff5a4a1a50")) == Completion("abc", at)


@pytest.mark.parametrize("target", ["T", "GatewayQuote", "x" * 31, "y" * 40, "z" * 300])
def test_the_frequent_call_is_typed_alone_and_glued(target: str) -> None:
    decoder = PACK.decoder(expecting(target, Tick))
    call = Invocation(target, (Tick("NQ", 2.0),))
    frame = PACK.encode(call)
    for count in (1, 1, 3):
        assert decoder.feed(frame * count) == [call] * count


@pytest.mark.parametrize(
    "items",
    [
        [1, {}, None, "Tick", [[1]], []],
        [1, {}, "4", "Tick", [[1]], []],
        [1, {"a": "b"}, None, "Tick", [[1]], []],
        [1, {}, None, "Tick", [[1]], ["u"]],
        [1, {}, None, "Tick", [[1]]],
        [1, {}, None, "Tick", [[]], [[]]],
        [1, {}, None, "Tick", [], [], []],
        [1, {}, None, "Tick", [[1], []], []],
        [1, {}, None, "TICK", [[1]], []],
    ],
)
def test_learnt_bytes_change_nothing_about_what_a_call_means(items: list[Any]) -> None:
    learnt = PACK.decoder(expecting("tick", list[int]))
    learnt.feed(framed([1, {}, None, "Tick", [[5]], []]))
    new = PACK.decoder(expecting("tick", list[int]))
    assert learnt.feed(framed(items)) == new.feed(framed(items))


def test_other_types_count_from_the_next_bytes() -> None:
    types = expecting("T", int)
    decoder = PACK.decoder(types)
    frame = framed([1, {}, None, "T", [1], []])
    assert decoder.feed(frame) == decoder.feed(frame) == [Invocation("T", (1,))]
    types.forget("T")
    assert decoder.feed(frame) == [Invocation("T", [1])]


def test_a_message_may_be_as_large_as_allowed_and_not_a_byte_larger() -> None:
    call = Invocation("T", ["x" * 200])
    frame = PACK.encode(call)
    size = len(frame) - 2
    assert PACK.decoder(max_message_bytes=size).feed(frame * 2) == [call] * 2
    (failure,) = PACK.decoder(max_message_bytes=size - 1).feed(frame[:2])
    assert isinstance(failure, Malformed)
    learnt = PACK.decoder(max_message_bytes=size - 1)
    learnt.feed(framed([1, {}, None, "T", ["x"], []]))
    assert isinstance(learnt.feed(frame)[0], Malformed)


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 49_374])
def test_lengths_of_one_two_and_three_bytes_are_read(size: int) -> None:
    item = StreamItem("1", "x" * size)
    assert PACK.decoder().feed(PACK.encode(item) * 2) == [item] * 2


def test_after_a_reset_the_beginning_of_a_message_is_forgotten() -> None:
    decoder = PACK.decoder()
    assert decoder.feed(b"\x02\x91") == []
    decoder.reset()
    assert decoder.feed(b"\x02\x91\x06") == [Ping()]


def test_a_value_that_messagepack_cannot_hold_is_refused_with_words() -> None:
    for value in (object(), 2**70):
        with pytest.raises(ConfigError, match="StreamItem cannot be sent as MessagePack"):
            PACK.encode(StreamItem("1", value))
