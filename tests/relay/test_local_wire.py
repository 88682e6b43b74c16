"""The daemon's local interface as bytes, both ends joined without a socket."""

import itertools
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.token import NEVER, Token
from keepline.errors import (
    CircuitOpen,
    Closed,
    ConfigError,
    KeeplineError,
    ProtocolError,
    QueueFull,
    RateLimited,
    Refused,
    SignInRequired,
    StorageError,
    TokenRefused,
    TokenUnavailable,
)
from keepline.relay.local_objects import (
    error_from_wire,
    error_to_wire,
    token_from_object,
    token_object,
)
from keepline.relay.local_wire import (
    MAX_LINE,
    MAX_OPEN_REQUESTS,
    OPERATIONS,
    LocalAnswer,
    LocalClientSession,
    LocalEvent,
    LocalServerSession,
)

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)


def token(access="a", generation=1, **fields):
    settings = {"expires_at": NOW, "issued_at": NOW, "generation": generation} | fields
    return Token(access, "refresh-secret", **settings)


def answers(session):
    return [json.loads(line) for line in session.take().splitlines()]


# --- the daemon's end ---


def test_a_request_comes_out_typed_and_its_answer_carries_its_number():
    daemon, client = LocalServerSession(), LocalClientSession()
    number, line = client.request("token.get", credential="schwab", newer_than=4, than=None)
    (request,) = daemon.receive(line)
    assert (request.op, request.credential, request.newer_than) == ("token.get", "schwab", 4)
    assert "than" not in json.loads(line)
    daemon.reply(request, {"x": 1})
    assert client.receive(daemon.take()) == [LocalAnswer(number, {"x": 1})]
    assert daemon.take() == b""


def test_answers_may_come_in_another_order():
    daemon, client = LocalServerSession(), LocalClientSession()
    first, one = client.request("ping")
    second, two = client.request("status")
    requests = daemon.receive(one + two)
    daemon.reply(requests[1], {})
    daemon.fail(requests[0], QueueFull("full", retry_after=2.0))
    found = client.receive(daemon.take())
    assert [answer.id for answer in found] == [second, first]
    assert isinstance(found[1].error, QueueFull)
    assert found[1].error.retry_after == 2.0


def test_a_second_answer_to_a_request_is_ignored():
    daemon = LocalServerSession()
    (request,) = daemon.receive(LocalClientSession().request("ping")[1])
    daemon.reply(request, {})
    daemon.reply(request, {})
    daemon.fail(request, QueueFull("full"))
    assert len(answers(daemon)) == 1


@pytest.mark.parametrize("op", sorted(OPERATIONS))
def test_every_documented_operation_is_known(op):
    line = LocalClientSession().request(op, credential="c")[1]
    assert [request.op for request in LocalServerSession().receive(line)] == [op]


@pytest.mark.parametrize(
    ("line", "code", "number"),
    [
        (b"rubbish", "bad_request", None),
        (b"[]", "bad_request", None),
        (b"\xff", "bad_request", None),
        (b'{"v":1,"op":"ping"}', "bad_request", None),
        (b'{"v":1,"id":"x","op":"ping"}', "bad_request", None),
        (b'{"v":2,"id":7,"op":"ping"}', "bad_request", 7),
        (b'{"v":1,"id":7,"op":"nothing"}', "unknown_op", 7),
        (b'{"v":1,"id":7,"op":"token.get"}', "bad_request", 7),
        (b'{"v":1,"id":7,"op":"token.get","credential":5}', "bad_request", 7),
        (b'{"v":1,"id":7,"op":"token.get","credential":"c","newer_than":"x"}', "bad_request", 7),
        (b'{"v":1,"id":7,"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "bad_request", None),
    ],
)
def test_what_is_no_request_is_answered_and_the_connection_goes_on(line, code, number):
    daemon = LocalServerSession()
    assert daemon.receive(line + b"\n") == []
    (answer,) = answers(daemon)
    assert (answer["ok"], answer["id"], answer["error"]["code"]) == (False, number, code)
    assert answer["error"]["message"]
    assert not daemon.is_closing
    assert len(daemon.receive(LocalClientSession().request("ping")[1])) == 1


def test_unknown_fields_are_for_newer_daemons():
    assert LocalServerSession().receive(b'{"v":1,"id":1,"op":"ping","new":[1]}\n')


def test_an_endless_line_ends_the_connection_with_a_word():
    daemon = LocalServerSession()
    ping = LocalClientSession().request("ping")[1]
    assert len(daemon.receive(ping + b"x" * MAX_LINE)) == 1
    assert daemon.is_closing
    assert answers(daemon)[-1]["error"]["code"] == "bad_request"
    assert daemon.receive(ping) == []
    assert daemon.take() == b""


@pytest.mark.parametrize("step", [1 << 20, 1000])
def test_a_line_over_the_limit_is_dropped_whole_or_in_parts(step):
    daemon = LocalServerSession()
    ping = LocalClientSession().request("ping")[1]
    data = ping + b"x" * MAX_LINE + b"\n" + ping
    requests = [r for i in range(0, len(data), step) for r in daemon.receive(data[i : i + step])]
    assert len(requests) == 1
    assert daemon.is_closing


def test_too_many_open_requests_are_refused_and_room_comes_back():
    daemon, client = LocalServerSession(), LocalClientSession()
    lines = [client.request("ping")[1] for _ in range(MAX_OPEN_REQUESTS + 1)]
    requests = daemon.receive(b"".join(lines))
    assert len(requests) == MAX_OPEN_REQUESTS
    assert [answer["error"]["code"] for answer in answers(daemon)] == ["queue_full"]
    daemon.reply(requests[0], {})
    assert len(daemon.receive(client.request("ping")[1])) == 1


def test_a_number_in_use_is_refused_without_touching_the_first():
    daemon = LocalServerSession()
    (request,) = daemon.receive(b'{"v":1,"id":7,"op":"ping"}\n')
    assert daemon.receive(b'{"v":1,"id":7,"op":"status"}\n') == []
    daemon.reply(request, {})
    assert [answer["id"] for answer in answers(daemon)] == [None, 7]
    assert "1 open" not in repr(daemon)


def test_of_unsent_events_only_the_newest_of_each_credential_is_kept():
    daemon = LocalServerSession()
    for generation in range(1000):
        daemon.event("schwab", token("s", generation))
        daemon.event("projectx", token("p", generation))
    events = LocalClientSession().receive(daemon.take())
    assert [(event.credential, event.token.generation) for event in events] == [
        ("schwab", 999),
        ("projectx", 999),
    ]
    assert daemon.take() == b""


def test_no_refresh_token_crosses():
    daemon = LocalServerSession()
    daemon.event("schwab", token())
    (request,) = daemon.receive(LocalClientSession().request("token.get", credential="c")[1])
    daemon.reply(request, token_object(token()))
    assert b"refresh-secret" not in daemon.take()


# --- the client's end ---


@pytest.mark.parametrize(
    "line",
    [
        b"rubbish",
        b"\xff",
        b"[]",
        b'{"id":"x"}',
        b'{"v":1,"event":"token","credential":"c"}',
        b'{"v":1,"event":"token","credential":"c","data":{"access_token":7}}',
        b'{"v":1,"event":"token","credential":"c","data":{"access_token":"","expires_at":1,"issued_at":1}}',
        b'{"v":1,"event":"token","credential":"c","data":{"access_token":"a","expires_at":1e300,"issued_at":1}}',
        b'{"v":1,"id":1,"ok":false,"error":{"code":7}}',
        b'{"v":1,"id":1,"ok":false,"error":{"code":"token_unavailable","retry_at":1e300}}',
    ],
)
def test_a_daemon_that_breaks_the_protocol_is_an_error_value(line):
    (found,) = LocalClientSession().receive(line + b"\n")
    assert isinstance(found, ProtocolError)


def test_an_endless_line_of_the_daemon_is_an_error_value_once():
    client = LocalClientSession()
    (found,) = client.receive(b"x" * MAX_LINE)
    assert isinstance(found, ProtocolError)
    assert client.receive(b"x" * MAX_LINE) == []


def test_events_that_we_do_not_know_are_for_newer_clients():
    assert LocalClientSession().receive(b'{"v":1,"event":"limits","data":{}}\n') == []


def test_an_error_without_a_body_is_still_an_error():
    (answer,) = LocalClientSession().receive(b'{"v":1,"id":3,"ok":false}\n')
    assert type(answer.error) is KeeplineError


# --- objects ---


@pytest.mark.parametrize(
    "original",
    [
        token(),
        token(expires_at=NEVER),
        token(signin_deadline=NOW, scope="trade", token_type="Bearer", generation=2**40),
    ],
)
def test_a_token_comes_back_without_its_refresh_token(original):
    back = token_from_object(json.loads(json.dumps(token_object(original))))
    for name in (
        "access_token",
        "expires_at",
        "issued_at",
        "generation",
        "scope",
        "signin_deadline",
    ):
        assert getattr(back, name) == getattr(original, name)
    assert back.refresh_token == ""
    assert token_object(original)["fingerprint"] == original.fingerprint


@pytest.mark.parametrize("data", [None, 7, {}, {"access_token": "a"}])
def test_what_is_no_token_object_is_said(data):
    with pytest.raises(ProtocolError, match="not a token object"):
        token_from_object(data)


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (SignInRequired("sign in", credential="schwab"), ["credential", "command"]),
        (TokenUnavailable("down", retry_at=NOW, credential="schwab"), ["retry_at", "credential"]),
        (TokenUnavailable("down"), ["retry_at"]),
        (TokenRefused("no", code="invalid_grant", status=400), ["code", "status"]),
        (StorageError("full", path="/x/y"), ["path"]),
        (StorageError("full"), ["path"]),
        (ConfigError("no such credential"), []),
        (QueueFull("full", retry_after=1.5), ["retry_after"]),
        (Refused("not you"), ["retry_after"]),
        (ProtocolError("bad"), []),
    ],
)
def test_an_error_comes_back_as_what_it_was(error, fields):
    body = json.loads(json.dumps(error_to_wire(error)))
    back = error_from_wire(body)
    assert type(back) is type(error)
    assert back.args[0] == error.args[0]
    for name in fields:
        assert getattr(back, name) == getattr(error, name)


@pytest.mark.parametrize(
    "error", [CircuitOpen("open"), RateLimited("slow"), Closed("closed"), KeeplineError()]
)
def test_other_errors_of_ours_are_internal_with_their_words(error):
    body = error_to_wire(error)
    assert (body["code"], body["message"]) == ("internal", str(error) or "internal")


def test_a_foreign_error_shows_its_kind_and_not_its_text():
    body = error_to_wire(ValueError("token secret-123 is bad"))
    assert body["code"] == "internal"
    assert "ValueError" in body["message"]
    assert "secret" not in json.dumps(body)


def test_a_code_that_we_do_not_know_is_a_plain_error():
    assert type(error_from_wire({"code": "new", "message": "words"})) is KeeplineError
    assert str(error_from_wire({"code": "new"})) == "new"


@given(
    st.lists(st.sampled_from(["ping", "status", "token.get"]), max_size=6),
    st.lists(st.integers(0, 600)),
)
def test_requests_arrive_however_they_are_cut(operations, cuts):
    client, daemon = LocalClientSession(), LocalServerSession()
    stream = b"".join(client.request(op, credential="c")[1] for op in operations)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    got = [r for a, b in itertools.pairwise(places) for r in daemon.receive(stream[a:b])]
    assert [request.op for request in got] == operations


@given(st.binary(max_size=300))
def test_event_or_error_whatever_the_daemon_writes(data):
    for found in LocalClientSession().receive(data + b"\n"):
        assert isinstance(found, LocalAnswer | LocalEvent | ProtocolError)
