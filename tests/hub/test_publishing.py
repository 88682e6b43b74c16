"""Both ends of `POST /api/publish` in values: lines, answers, keys."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError, ProtocolError
from keepline.hub.messages import encode_data
from keepline.hub.publishing import (
    Answered,
    Begin,
    Flaw,
    Idempotency,
    answer_body,
    encode_draft,
    read_answer,
    read_drafts,
    read_no,
)

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(WORDS, WORDS, JSON, st.none() | WORDS, st.none() | WORDS)
def test_a_message_is_one_line_and_comes_back_as_it_was(channel, kind, data, key, own) -> None:
    line = encode_draft(channel, kind, encode_data(data), key=key, id=own)
    assert b"\n" not in line
    good, bad = read_drafts(line + b"\n\n" + line)
    assert bad == []
    assert [number for number, _ in good] == [1, 3]
    for _, draft in good:
        assert (draft.channel, draft.type, draft.key, draft.id) == (channel, kind, key, own)
        assert msgspec.json.decode(draft.data) == data


@given(st.binary(max_size=200))
def test_no_body_of_any_bytes_raises(body: bytes) -> None:
    good, bad = read_drafts(body)
    assert len(good) + len(bad) <= body.count(b"\n") + 1
    read_drafts(body, lines=False)


GOOD = b'{"channel":"alerts","type":"alert","data":{}}'


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "bad_json"),
        (b"\xff", "bad_json"),
        (b"[" * 100_000, "bad_message"),
        (b'{"channel":"a","type":"b","data":' + b"[" * 99_999 + b"]" * 99_999 + b"}", "bad_json"),
        (b'{"channel":"a","type":"b","data":"\xff"}', "bad_json"),
        (b'{"channel":"a","type":"b","data":"\xed\xa0\x80"}', "bad_json"),
        (b'{"channel":"a","type":"b","data":NaN}', "bad_json"),
        (b'{"channel":"a","type":"b","data":{"x":Infinity}}', "bad_json"),
        (b"[]", "bad_message"),
        (b'{"channel":"a","type":"b"}', "bad_message"),
        (b'{"channel":5,"type":"b","data":1}', "bad_message"),
        (b'{"channel":"","type":"b","data":1}', "bad_message"),
        (b'{"channel":"a","type":"b","data":1,"kye":"x"}', "bad_message"),
        (b'{"channel":"a","type":"b","data":1,"id":"' + b"x" * 129 + b'"}', "bad_message"),
    ],
    ids=range(14),
)
def test_a_bad_line_costs_itself_alone(line: bytes, code: str) -> None:
    good, bad = read_drafts(b"\n".join([GOOD, line, GOOD]))
    assert [number for number, _ in good] == [1, 3]
    assert [(flaw.line, flaw.code) for flaw in bad] == [(2, code)]


def test_a_body_with_too_many_messages_is_refused_whole() -> None:
    good, bad = read_drafts(b"\n".join([GOOD] * 4), most=3)
    assert good == []
    assert bad == [Flaw(4, "too_many_lines", "at most 3 messages in one request, not 4")]


def test_one_message_may_be_written_over_several_lines() -> None:
    body = b'{\n "channel": "alerts",\n "type": "alert",\n "data": {}\n}'
    good, bad = read_drafts(body, lines=False)
    assert (len(good), bad) == (1, [])
    assert len(read_drafts(body)[1]) == 5


def test_words_that_are_none_are_refused_by_their_name() -> None:
    for name, change in [("channel", ("", "t")), ("type", ("c", 5)), ("channel", ("c" * 129, "t"))]:
        with pytest.raises(ConfigError) as caught:
            encode_draft(*change, b"1")
        assert caught.value.key == name
    with pytest.raises(ConfigError) as caught:
        encode_draft("c", "t", b"1", key="")
    assert caught.value.key == "key"
    with pytest.raises(ConfigError, match="surrogate"):
        encode_draft("c", "t", b"1", id="\ud800")


def test_an_answer_comes_back_as_it_was() -> None:
    told = Answered(3, 1, [Flaw(2, "forbidden", "no")])
    assert read_answer(answer_body(told)) == told


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"accepted":"x"}', b"\xff", b"[" * 99_999]
)
def test_what_is_no_answer_of_a_hub_is_said(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a hub's"):
        read_answer(body)


def test_a_key_gives_its_answer_again_for_its_user_and_body() -> None:
    keys = Idempotency(lifetime_seconds=10)
    assert keys.begin("me", "k", b"1", 0) is Begin.NEW
    assert keys.begin("me", "k", b"1", 1) is Begin.RUNNING
    keys.finish("me", "k", b"done")
    assert keys.begin("me", "k", b"1", 2) == b"done"
    assert keys.begin("me", "k", b"2", 2) is Begin.MISMATCH
    assert keys.begin("you", "k", b"1", 2) is Begin.NEW
    assert keys.begin("me", "k", b"1", 10) is Begin.NEW
    keys.forget("me", "k")
    assert keys.begin("me", "k", b"2", 10) is Begin.NEW


def test_keys_are_bounded_the_oldest_leaves() -> None:
    keys = Idempotency(capacity=2)
    for name in "abc":
        keys.begin("me", name, b"", 0)
        keys.finish("me", name, name.encode())
    assert len(keys) == 2
    assert "2 of 2" in repr(keys)
    assert keys.begin("me", "b", b"", 0) == b"b"
    assert keys.begin("me", "a", b"", 0) is Begin.NEW
    keys.finish("me", "gone", b"")
    with pytest.raises(ConfigError):
        Idempotency(capacity=0)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":"x"}', b"\xff", b"[" * 100_000])
def test_what_is_no_hubs_refusal_is_told_by_its_status(body: bytes) -> None:
    assert read_no(413, body) == Flaw(1, "status_413", "it was refused")


def test_a_hubs_refusal_is_told_in_its_words_bounded_and_harmless() -> None:
    assert read_no(401, b'{"error":"expired","message":"too\\u001b[1m late"}') == Flaw(
        1, "expired", "too[1m late"
    )
    long = read_no(400, b'{"error":"%s","message":"%s"}' % (b"e" * 500, b"m" * 500))
    assert (len(long.code), len(long.message)) == (128, 300)
