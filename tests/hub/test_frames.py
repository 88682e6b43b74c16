"""Frames as RFC 6455 wants them from a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.hub.screen import payload_of

from keepline.hub.closecodes import CLOSE_WORDS, CloseCode, comes_back, may_be_sent
from keepline.hub.deflate import Deflater
from keepline.hub.frames import (
    close_frame,
    deflated_frame,
    ping_frame,
    pong_frame,
    read_close,
    text_frame,
)


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_lengths_are_in_their_shortest_form(length: int, head: bytes) -> None:
    frame = text_frame(b"x" * length)
    assert frame == head + b"x" * length


def test_pings_and_pongs_carry_their_payload() -> None:
    assert ping_frame() == b"\x89\x00"
    assert ping_frame(b"canary") == b"\x89\x06canary"
    assert pong_frame(b"canary") == b"\x8a\x06canary"


def test_a_control_frame_carries_at_most_125_bytes() -> None:
    assert len(ping_frame(b"x" * 125)) == 127
    with pytest.raises(AssertionError, match="at most 125 bytes"):
        ping_frame(b"x" * 126)


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=5))
def test_each_compressed_message_is_read_without_those_before_it(payloads: list[bytes]) -> None:
    deflater = Deflater()
    for payload in payloads:
        assert payload_of(deflated_frame(payload, deflater)) == payload


def test_the_first_of_two_equal_messages_is_as_large_as_the_second() -> None:
    deflater = Deflater()
    text = b'{"type":"exposure-change","channel":"exposure-updates"}' * 5
    first, second = deflated_frame(text, deflater), deflated_frame(text, deflater)
    assert first == second, "nothing of the first is needed for the second"
    assert first[0] == 0xC1
    assert len(first) < len(text) / 2


def test_small_messages_are_not_compressed() -> None:
    assert deflated_frame(b"x" * 127, Deflater()) == text_frame(b"x" * 127)
    assert deflated_frame(b"x" * 128, Deflater())[0] == 0xC1


# --- closing ---


def test_a_close_frame_has_the_words_of_the_table() -> None:
    frame = close_frame(CloseCode.SLOW)
    assert frame[0] == 0x88
    assert read_close(frame[2:]) == (3010, CLOSE_WORDS[CloseCode.SLOW])


def test_a_long_reason_is_cut_at_a_whole_character() -> None:
    code, reason = read_close(close_frame(4000, "é" * 100)[2:])  # type: ignore[misc]
    assert code == 4000
    assert reason == "é" * 61


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_codes_that_may_not_be_on_the_wire(code: int) -> None:
    assert not may_be_sent(code)
    with pytest.raises(AssertionError, match="may not be on the wire"):
        close_frame(code)
    assert read_close(code.to_bytes(2)) is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("payload", "read"),
    [
        (b"", (1005, "")),
        (b"\x03", CloseCode.PROTOCOL_ERROR),
        (b"\x03\xe8", (1000, "")),
        (b"\x03\xe8bye", (1000, "bye")),
        (b"\x0b\xb8later", (3000, "later")),
        (b"\x03\xe8\xff\xfe", CloseCode.BAD_DATA),
    ],
)
def test_a_peers_close_frame_is_read(payload: bytes, read: object) -> None:
    assert read_close(payload) == read


def test_every_close_code_has_words_that_fit_and_may_be_sent() -> None:
    assert set(CLOSE_WORDS) == set(CloseCode)
    assert all(len(words.encode()) <= 123 for words in CLOSE_WORDS.values())
    assert all(may_be_sent(code) for code in CloseCode)


@pytest.mark.parametrize("code", [code for code in CloseCode if code >= 3000])
def test_the_range_and_the_words_say_the_same(code: CloseCode) -> None:
    assert ("come back" in CLOSE_WORDS[code]) == comes_back(code)


@pytest.mark.parametrize(
    ("code", "back"),
    [(1000, False), (1001, True), (1002, False), (1003, False), (1005, True), (1006, True), (1007, False),
     (1008, False), (1009, False), (1010, False), (1011, True), (1012, True), (1013, True), (1014, True),
     (3000, True), (3499, True), (3500, False), (3999, False), (4100, True), (4500, False)],
)  # fmt: skip
def test_which_codes_come_back(code: int, back: bool) -> None:
    assert comes_back(code) is back
