"""Requests are understood, and whatever else arrives gets a code and words."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.hub.offences import ERROR_WORDS, ErrorCode, Offence
from keepline.hub.wire import Ping, Position, Rate, Refresh, Subscribe, Unsubscribe, parse


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ('{"action":"subscribe","channels":["alerts"]}', Subscribe(["alerts"])),
        (
            '{"action":"subscribe","channels":["a"],"resume":{"a":{"epoch":"e","offset":7}},"id":3}',
            Subscribe(["a"], {"a": Position("e", 7)}, 3),
        ),
        ('{"channels":["a","b"],"action":"unsubscribe"}', Unsubscribe(["a", "b"])),
        ('{"action":"refresh","token":"x.y.z"}', Refresh("x.y.z")),
        ('{"action":"rate","rate":10}', Rate(10.0)),
        ('{"action":"rate","rate":null}', Rate(None)),
        ('{"action":"ping"}', Ping()),
        (b'{"action":"ping","id":"p1","something":"new"}', Ping("p1")),
    ],
)
def test_a_request_is_understood(text: str | bytes, request_: object) -> None:
    assert parse(text) == request_


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad_json"),
        ("{", "bad_json"),
        ("nonsense", "bad_json"),
        ('{"action":"ping"} {}', "bad_json"),
        (b'{"action":"\xff"}', "bad_json"),
        ("[" * 100_000, "bad_json"),
        ('{"action":"ping","x":' + "[" * 100_000, "bad_json"),
        ("[]", "not_an_object"),
        ('"ping"', "not_an_object"),
        ("null", "not_an_object"),
        ("{}", "unknown_action"),
        ('{"action":"dance"}', "unknown_action"),
        ('{"action":7}', "unknown_action"),
        ('{"action":["ping"]}', "unknown_action"),
        ('{"action":"subscribe"}', "bad_channel"),
        ('{"action":"subscribe","channels":"alerts"}', "bad_channel"),
        ('{"action":"subscribe","channels":[7]}', "bad_channel"),
        ('{"action":"subscribe","channels":[""]}', "bad_channel"),
        ('{"action":"unsubscribe","channels":[null]}', "bad_channel"),
        (msgspec.json.encode({"action": "subscribe", "channels": ["x" * 256]}), "bad_channel"),
        (msgspec.json.encode({"action": "subscribe", "channels": ["x"] * 10_000}), "too_many_channels"),
        (msgspec.json.encode({"action": "subscribe", "channels": [7] * 10_000}), "too_many_channels"),
        ('{"action":"subscribe","channels":["a"],"resume":7}', "bad_resume"),
        ('{"action":"subscribe","channels":["a"],"resume":{"a":7}}', "bad_resume"),
        ('{"action":"subscribe","channels":["a"],"resume":{"a":{"epoch":"e"}}}', "bad_resume"),
        ('{"action":"subscribe","channels":["a"],"resume":{"a":{"epoch":"e","offset":-1}}}', "bad_resume"),
        ('{"action":"subscribe","channels":["a"],"resume":{"a":{"epoch":"e","offset":1.5}}}', "bad_resume"),
        ('{"action":"subscribe","channels":["a"],"resume":{"a":{"epoch":1,"offset":1}}}', "bad_resume"),
        ('{"action":"rate"}', "bad_rate"),
        ('{"action":"rate","rate":0}', "bad_rate"),
        ('{"action":"rate","rate":-5}', "bad_rate"),
        ('{"action":"rate","rate":1e999}', "bad_json"),
        ('{"action":"rate","rate":100000}', "bad_rate"),
        ('{"action":"rate","rate":"fast"}', "bad_rate"),
        ('{"action":"refresh"}', "bad_token"),
        ('{"action":"refresh","token":""}', "bad_token"),
        ('{"action":"refresh","token":null}', "bad_token"),
        ('{"action":"ping","id":[1]}', "bad_request"),
        (msgspec.json.encode({"action": "ping", "id": "x" * 65}), "bad_request"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_a_code(text: str | bytes, code: str) -> None:
    offence = parse(text)
    assert isinstance(offence, Offence)
    assert offence.code == code
    assert offence.words.startswith(ERROR_WORDS[ErrorCode(code)])


def test_an_offence_names_the_request_that_it_answers() -> None:
    assert parse('{"action":"rate","rate":0,"id":"r9"}').id == "r9"
    assert parse('{"action":"dance","id":12}').id == 12
    assert parse(msgspec.json.encode({"action": "dance", "id": "x" * 65})).id is None
    assert parse('{"action":"dance","id":{"a":1}}').id is None
    assert parse('{"action":"subscribe","channels":[7],"id":1}').id == 1


def test_a_token_is_not_repeated_in_words() -> None:
    secret = "very-secret-token"
    offence = parse(msgspec.json.encode({"action": "refresh", "token": [secret]}))
    assert isinstance(offence, Offence)
    assert secret not in offence.words


def test_every_code_has_words() -> None:
    assert set(ERROR_WORDS) == set(ErrorCode)
    assert all(words and words[-1] not in "." for words in ERROR_WORDS.values())


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_nothing_that_arrives_raises(text: bytes | str) -> None:
    assert parse(text) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
ACTIONS = st.sampled_from(["subscribe", "unsubscribe", "refresh", "rate", "ping", "dance"])
FIELDS = st.sampled_from(["channels", "resume", "rate", "token", "id", "x"])


@given(ACTIONS, st.dictionaries(FIELDS, JSON, max_size=4))
def test_no_object_raises_and_an_offence_comes_from_the_table(
    action: str, fields: dict[str, object]
) -> None:
    answer = parse(msgspec.json.encode({"action": action, **fields}))
    if isinstance(answer, Offence):
        assert answer.words.startswith(ERROR_WORDS[answer.code])
    else:
        assert type(answer).__name__.lower() == action
