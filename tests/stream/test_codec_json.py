"""JSON messages: every kind as bytes and back, any order, what ends the connection and what fails alone."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from keepline.errors import ConfigError
from keepline.stream.codec import Types, codec
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

JSON = codec("json")
HEADERS = {"trace": "a-1", "with\nbreak": "two\r\nlines"}
HEADERS_TEXT = r'{"trace":"a-1","with\nbreak":"two\r\nlines"}'


class Tick(msgspec.Struct):
    symbol: str
    last: float
    at: datetime | None = None


def feed(text: str, types: Types | None = None) -> list[Decoded]:
    return JSON.decoder(types).feed(text + "\x1e")


def one(text: str, types: Types | None = None) -> Decoded:
    (message,) = feed(text, types)
    return message


def expecting(target: str, *kinds: Any) -> Types:
    types = Types()
    types.expect(target, *kinds)
    return types


BOTH_WAYS: list[tuple[Message, str]] = [
    (Invocation("Tick", [1, "a", None]), '{"type":1,"target":"Tick","arguments":[1,"a",null]}'),
    (Invocation("Tick", [], "7"), '{"type":1,"invocationId":"7","target":"Tick","arguments":[]}'),
    (
        Invocation("Tick", [2.5], None, ("u1", "u2")),
        '{"type":1,"target":"Tick","arguments":[2.5],"streamIds":["u1","u2"]}',
    ),
    (
        Invocation("Tick", ["μ€"], "7", (), HEADERS),
        f'{{"type":1,"headers":{HEADERS_TEXT},"invocationId":"7","target":"Tick","arguments":["μ€"]}}',
    ),
    (StreamItem("3", {"a": [1]}), '{"type":2,"invocationId":"3","item":{"a":[1]}}'),
    (StreamItem("3", None), '{"type":2,"invocationId":"3","item":null}'),
    (StreamItem("3", 1, HEADERS), f'{{"type":2,"headers":{HEADERS_TEXT},"invocationId":"3","item":1}}'),
    (Completion("3"), '{"type":3,"invocationId":"3"}'),
    (Completion("3", None), '{"type":3,"invocationId":"3","result":null}'),
    (Completion("3", 42), '{"type":3,"invocationId":"3","result":42}'),
    (Completion("3", error="no"), '{"type":3,"invocationId":"3","error":"no"}'),
    (Completion("3", error=""), '{"type":3,"invocationId":"3","error":""}'),
    (
        StreamInvocation("Ticks", ["NQ"], "9", ("u",)),
        '{"type":4,"invocationId":"9","target":"Ticks","arguments":["NQ"],"streamIds":["u"]}',
    ),
    (CancelInvocation("9"), '{"type":5,"invocationId":"9"}'),
    (CancelInvocation("9", HEADERS), f'{{"type":5,"headers":{HEADERS_TEXT},"invocationId":"9"}}'),
    (Ping(), '{"type":6}'),
    (Close(), '{"type":7}'),
    (Close(""), '{"type":7,"error":""}'),
    (Close("bye", True), '{"type":7,"error":"bye","allowReconnect":true}'),
    (Ack(1394), '{"type":8,"sequenceId":1394}'),
    (Sequence(1234), '{"type":9,"sequenceId":1234}'),
]  # fmt: skip


@pytest.mark.parametrize(("message", "text"), BOTH_WAYS)
def test_a_message_is_written_and_read(message: Message, text: str) -> None:
    assert JSON.encode(message) == text.encode() + b"\x1e"
    assert one(text) == message


ANOTHER_ORDER = [
    ('{ "arguments": [1, 2] , "type" : 1, "target":"T" }', Invocation("T", [1, 2])),
    ('{"target":"T","type":1,"arguments":[]}', Invocation("T", [])),
    ('{"result":10,"invocationId":"1","type":3}', Completion("1", 10)),
    ('{"item":"x","invocationId":"1","type":2}', StreamItem("1", "x")),
    ('{"arguments":[],"invocationId":"1","type":4,"target":"T"}', StreamInvocation("T", [], "1")),
    ('{"type":1,"target":"T","arguments":[],"invocationId":"5"}', Invocation("T", [], "5")),
]
TOLERATED = [
    ('{"type":1,"target":"T","arguments":[],"added":{"a":1}}', Invocation("T", [])),
    ('{"type":3,"invocationId":"1","error":"e","result":null}', Completion("1", error="e")),
    ('{"type":3,"invocationId":"1","error":null}', Completion("1")),
    ('{"type":1,"invocationId":null,"target":"T","arguments":[],"streamIds":null,"headers":null}',
     Invocation("T", [])),
    ('{"type":2,"invocationId":"1","headers":{},"item":8}', StreamItem("1", 8)),
    ('{"type":6,"extra":[]}', Ping()),
    ('{"type":7,"allowReconnect":null}', Close()),
    ('{"type":1,"target":"\\u0054","arguments":[]}', Invocation("T", [])),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ANOTHER_ORDER + TOLERATED)
def test_properties_come_in_any_order_and_with_unknown_ones(text: str, message: Message) -> None:
    assert one(text) == message


BROKEN = [
    "", "null", "42", '"text"', "[1]", "{}", "{", '{"type":1', '{"type":"1"}', '{"type":null}', '{"type":true}',
    '{"type":1}', '{"type":1,"target":"T"}', '{"type":1,"arguments":[]}', '{"type":1,"target":4,"arguments":[]}',
    '{"type":1,"target":"","arguments":[]}', '{"type":1,"target":"T","arguments":{}}',
    '{"type":1,"target":"T","arguments":null}', '{"type":1,"target":"T","arguments":"x"}',
    '{"type":1,"target":"T","arguments":[1,]}', '{"type":1,"target":"T","arguments":[]},"a":1',
    '{"type":1,"target":"T","arguments":[]]', '{"type":1,"target":"T","arguments":[]',
    '{"type":1,"invocationId":7,"target":"T","arguments":[]}',
    '{"type":1,"invocationId":"","target":"T","arguments":[]}',
    '{"type":1,"target":"T","arguments":[],"streamIds":[1]}',
    '{"type":1,"target":"T","arguments":[],"streamIds":[""]}',
    '{"type":1,"headers":{"a":1},"target":"T","arguments":[]}',
    '{"type":1,"headers":{"a":null},"target":"T","arguments":[]}',
    '{"type":1,"headers":{"a":""},"target":"T","arguments":[]}',
    '{"type":1,"headers":{"":"a"},"target":"T","arguments":[]}',
    '{"type":2}', '{"type":2,"invocationId":"1"}', '{"type":2,"invocationId":1,"item":1}',
    '{"type":2,"invocationId":"","item":1}',
    '{"type":3}', '{"type":3,"invocationId":1}', '{"type":3,"invocationId":""}',
    '{"type":3,"invocationId":"1","error":[]}', '{"type":3,"invocationId":"1","error":"e","result":1}',
    '{"type":4,"target":"T","arguments":[]}', '{"type":4,"invocationId":"","target":"T","arguments":[]}',
    '{"type":5}', '{"type":5,"invocationId":""}', '{"type":7,"error":1}', '{"type":7,"allowReconnect":"yes"}',
    '{"type":8}', '{"type":8,"sequenceId":true}', '{"type":8,"sequenceId":null}', '{"type":9,"sequenceId":"1"}',
    "[" * 100_000, '{"type":1,"target":"T","arguments":' + "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:60] or "empty")
def test_what_breaks_the_protocol_is_malformed_and_nothing_follows(text: str) -> None:
    decoder = JSON.decoder()
    *before, failure = decoder.feed(f'{{"type":6}}\x1e{text}\x1e{{"type":6}}\x1e')
    assert before == [Ping()]
    assert isinstance(failure, Malformed)
    assert failure.reason
    assert decoder.feed('{"type":6}\x1e') == []


def test_invalid_utf8_in_an_envelope_is_malformed() -> None:
    for frame in (b'{"type":1,"target":"\xff","arguments":[]}\x1e', b'{"type":\xff}\x1e'):
        (failure,) = JSON.decoder().feed(frame)
        assert isinstance(failure, Malformed)


@pytest.mark.parametrize("kinds", [None, (str,)])
def test_invalid_utf8_in_arguments_fails_alone(kinds: tuple[type, ...] | None) -> None:
    decoder = JSON.decoder(expecting("T", *kinds) if kinds else None)
    for text in (b"fine", b"\xff", b"fine"):
        (message,) = decoder.feed(b'{"type":1,"target":"T","arguments":["%b"]}\x1e' % text)
        assert isinstance(message, Invocation if text == b"fine" else BindingFailure)
    assert decoder.feed('{"type":6}\x1e') == [Ping()]


def test_a_lone_surrogate_in_text_is_malformed() -> None:
    (failure,) = JSON.decoder().feed('{"type":6,"a":"\ud800"}\x1e')
    assert isinstance(failure, Malformed)


@pytest.mark.parametrize("kind", [0, 10, 99, -1])
def test_a_type_that_does_not_exist_yet_is_skipped_whatever_it_holds(kind: int) -> None:
    assert feed(f'{{"type":{kind},"target":4,"headers":3}}\x1e{{"type":6}}') == [Ping()]


MISFITS = [
    ("[]", "0 argument(s) arrived where 2"),
    ('[1,"",{"1":1}]', "3 argument(s) arrived where 2"),
    ('["abc","xyz"]', "`int`"),
    ("[1,[1]]", "`str`"),
]


@pytest.mark.parametrize(("arguments", "reason"), MISFITS)
@pytest.mark.parametrize("learnt", [False, True])
def test_arguments_that_do_not_fit_fail_alone(arguments: str, reason: str, learnt: bool) -> None:
    decoder = JSON.decoder(expecting("foo", int, str))
    if learnt:
        assert decoder.feed('{"type":1,"target":"foo","arguments":[1,"a"]}\x1e') == [
            Invocation("foo", (1, "a"))
        ]
    for id_text, call_id in (("", None), ('"invocationId":"42",', "42")):
        frame = f'{{"type":1,{id_text}"target":"foo","arguments":{arguments}}}\x1e{{"type":6}}\x1e'
        failure, ping = decoder.feed(frame)
        assert ping == Ping()
        assert isinstance(failure, BindingFailure)
        assert (failure.target, failure.id, failure.stream) == ("foo", call_id, False)
        assert reason in failure.reason


def test_a_stream_call_that_does_not_fit_says_so() -> None:
    failure = one(
        '{"type":4,"invocationId":"1","target":"foo","arguments":[]}', expecting("foo", int)
    )
    assert isinstance(failure, BindingFailure)
    assert failure.stream


def test_results_and_items_are_decoded_into_their_type_or_fail_alone() -> None:
    types = Types()
    types.expect_result("1", Tick)
    text = '{"symbol":"NQ","last":1,"at":"2026-11-20T15:04:05Z"}'
    tick = Tick("NQ", 1.0, datetime(2026, 11, 20, 15, 4, 5, tzinfo=UTC))
    assert one(f'{{"type":3,"invocationId":"1","result":{text}}}', types) == Completion("1", tick)
    assert one(f'{{"type":2,"invocationId":"1","item":{text}}}', types) == StreamItem("1", tick)
    assert one('{"type":3,"invocationId":"1","result":null}', types) == Completion("1", None)
    failure = one('{"type":3,"invocationId":"1","result":{"symbol":1}}', types)
    assert isinstance(failure, BindingFailure)
    assert (failure.target, failure.id, failure.stream) == ("", "1", False)
    failure = one('{"type":2,"invocationId":"1","item":7}', types)
    assert isinstance(failure, BindingFailure)
    assert failure.stream
    types.forget_result("1")
    assert one('{"type":2,"invocationId":"1","item":7}', types) == StreamItem("1", 7)


FREQUENT = '{"type":1,"target":"Tick","arguments":["NQ",{"symbol":"NQ","last":2}]}'
ARRIVED = Invocation("Tick", ("NQ", Tick("NQ", 2.0)))


def test_the_frequent_call_is_typed_alone_glued_and_as_text() -> None:
    decoder = JSON.decoder(expecting("tick", str, Tick))
    frame = FREQUENT.encode() + b"\x1e"
    for data, count in ((frame, 1), (frame, 1), (frame * 3, 3), (FREQUENT + "\x1e", 1)):
        assert decoder.feed(data) == [ARRIVED] * count


@pytest.mark.parametrize(
    "change",
    [
        ('"NQ",{', '"NQ", {'),
        ("]}", '],"invocationId":"4"}'),
        ("]}", '],"streamIds":["4"]}'),
        ("]}", '],"headers":{"a":"]}"}}'),
        ("]}", '],"more":[1]}'),
        ("]}", "]]"),
        ("]}", "]"),
        ('"last":2', '"last":"2"'),
        (',"arguments":', ',"arguments": '),
        ("Tick", "TICK"),
        ("Tick", "Tock"),
    ],
)
def test_learnt_bytes_change_nothing_about_what_a_call_means(change: tuple[str, str]) -> None:
    text = FREQUENT.replace(*change)
    learnt = JSON.decoder(expecting("tick", str, Tick))
    learnt.feed(FREQUENT + "\x1e")
    new = JSON.decoder(expecting("tick", str, Tick))
    assert learnt.feed(text + "\x1e") == new.feed(text + "\x1e")


def test_names_with_the_same_first_letters_are_told_apart() -> None:
    decoder = JSON.decoder()
    names = ["GatewayUserOrderA", "GatewayUserOrderB", "x", "a\nb"]
    calls = [Invocation(name, [number]) for number, name in enumerate(names)]
    for _ in range(3):
        for call in calls:
            assert decoder.feed(JSON.encode(call)) == [call]


def test_a_struct_that_raises_its_own_error_is_a_misfit() -> None:
    class Picky(msgspec.Struct):
        a: int

        def __post_init__(self) -> None:
            raise LookupError("not this one")

    decoder = JSON.decoder(expecting("T", Picky))
    for _ in range(2):
        (failure,) = decoder.feed('{"type":1,"target":"T","arguments":[{"a":1}]}\x1e')
        assert isinstance(failure, BindingFailure)
        assert "not this one" in failure.reason


def test_other_types_count_from_the_next_bytes() -> None:
    types = expecting("T", int)
    decoder = JSON.decoder(types)
    frame = '{"type":1,"target":"T","arguments":[1]}\x1e'
    assert decoder.feed(frame) == decoder.feed(frame) == [Invocation("T", (1,))]
    types.expect("t", float)
    (call,) = decoder.feed(frame)
    assert isinstance(call, Invocation)
    assert isinstance(call.arguments[0], float)
    types.forget("T")
    assert decoder.feed(frame) == [Invocation("T", [1])]


def test_a_message_may_be_as_large_as_allowed_and_not_a_byte_larger() -> None:
    ping = '{"type":6}\x1e'
    assert JSON.decoder(max_message_bytes=len(ping)).feed(ping * 2) == [Ping()] * 2
    for data in (ping, ping * 2, ping[:-1]):
        (failure,) = JSON.decoder(max_message_bytes=len(ping) - 1).feed(data)
        assert isinstance(failure, Malformed)
    decoder = JSON.decoder(max_message_bytes=len(ping) - 1)
    failures = [message for byte in ping for message in decoder.feed(byte)]
    assert [type(failure) for failure in failures] == [Malformed]


def test_a_learnt_call_may_not_be_larger_than_allowed_either() -> None:
    decoder = JSON.decoder(max_message_bytes=60)
    call = '{"type":1,"target":"T","arguments":["%s"]}\x1e'
    assert len(decoder.feed(call % "x")) == 1
    assert isinstance(decoder.feed(call % ("x" * 60))[0], Malformed)


def test_after_a_reset_the_beginning_of_a_message_is_forgotten() -> None:
    decoder = JSON.decoder()
    assert decoder.feed('{"type":') == []
    decoder.reset()
    assert decoder.feed('{"type":6}\x1e') == [Ping()]


def test_a_value_that_json_cannot_hold_is_refused_with_words() -> None:
    with pytest.raises(ConfigError, match="Invocation cannot be sent as JSON"):
        JSON.encode(Invocation("T", [object()]))
