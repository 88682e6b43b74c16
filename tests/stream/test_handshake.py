"""The first exchange: proposals and answers as bytes, what is glued behind, what is refused."""

import pytest

from keepline.stream.handshake import (
    CANCELED,
    FAILED,
    HandshakeReader,
    HandshakeRequest,
    HandshakeResponse,
    judge_request,
    read_request,
    read_response,
    write_request,
    write_response,
)
from keepline.stream.messages import Malformed


def test_a_proposal_is_written_and_read() -> None:
    assert write_request("json") == b'{"protocol":"json","version":1}\x1e'
    assert write_request("messagepack", 2) == b'{"protocol":"messagepack","version":2}\x1e'
    assert read_request(b'{"version":2,"protocol":"json","more":null}') == HandshakeRequest(
        "json", 2
    )


@pytest.mark.parametrize(
    "record",
    [b"", b"42", b'"json"', b"null", b"[]", b"{}", b'{"protocol":"json"}', b'{"version":1}',
     b'{"protocol":null,"version":1}', b'{"protocol":"json","version":"1"}', b'{"type":6}', b"\xff", b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_proposal_is_malformed_and_refused(record: bytes) -> None:
    request = read_request(record)
    assert isinstance(request, Malformed)
    assert judge_request(request) == FAILED


ANSWERS = [
    (b"{}", None), (b'{"error":"no"}', "no"), (b'{"error":""}', ""), (b'{"later":null}', None),
    (b'{"minorVersion":34,"error":""}', ""), (b'{"minorVersion":34}', None),
]  # fmt: skip


@pytest.mark.parametrize(("record", "error"), ANSWERS)
def test_an_answer_without_an_error_is_success(record: bytes, error: str | None) -> None:
    assert read_response(record) == HandshakeResponse(error)


@pytest.mark.parametrize(
    "record",
    [b"", b"42", b'"42"', b"null", b"[]", b'{"error":null}', b'{"error":1}', b'{"type":6}', b'{"type":null}',
     b"\xff", b"<html>"],
)  # fmt: skip
def test_what_is_no_answer_is_malformed(record: bytes) -> None:
    assert isinstance(read_response(record), Malformed)


def test_an_answer_is_written() -> None:
    assert write_response() == b"{}\x1e"
    assert write_response("") == b'{"error":""}\x1e'
    assert write_response(CANCELED) == b'{"error":"Handshake was canceled."}\x1e'


JUDGED = [
    ("json", 1, None), ("JSON", 0, None), ("MessagePack", 2, None),
    ("nope", 1, "The protocol 'nope' is not supported."),
    ("json", 3, "The server does not support version 3 of the 'json' protocol."),
]  # fmt: skip


@pytest.mark.parametrize(("protocol", "version", "error"), JUDGED)
def test_a_server_says_why_it_refuses(protocol: str, version: int, error: str | None) -> None:
    assert judge_request(HandshakeRequest(protocol, version)) == error


def test_messages_glued_behind_the_handshake_are_handed_on() -> None:
    assert HandshakeReader().feed(b"{}\x1e\x02\x91\x06") == (b"{}", b"\x02\x91\x06")
    assert HandshakeReader().feed('{}\x1e{"type":6}\x1e') == (b"{}", b'{"type":6}\x1e')
    reader = HandshakeReader()
    assert [reader.feed(byte) for byte in (b"{", b"}")] == [None, None]
    assert reader.feed(b"\x1e") == (b"{}", b"")


@pytest.mark.parametrize(
    "chunks", [[b"x" * 70_000], [b"x" * 60_000, b"x" * 10_000], [b"x" * 70_000 + b"\x1e"]]
)
def test_a_handshake_without_an_end_is_malformed(chunks: list[bytes]) -> None:
    reader = HandshakeReader()
    answers = [reader.feed(chunk) for chunk in chunks]
    assert isinstance(answers[-1], Malformed)
