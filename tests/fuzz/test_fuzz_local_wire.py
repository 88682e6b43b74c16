"""Any bytes into both ends of the daemon's socket: a request, an answer, an event, or a clear refusal."""

import itertools
import json

from hypothesis import example, given
from hypothesis import strategies as st

from keepline.credentials.token import Token
from keepline.errors import KeeplineError, ProtocolError
from keepline.relay.local_objects import (
    error_from_wire,
    error_to_wire,
    token_from_object,
    token_object,
)
from keepline.relay.local_wire import (
    MAX_LINE,
    OPERATIONS,
    LocalAnswer,
    LocalClientSession,
    LocalEvent,
    LocalRequest,
    LocalServerSession,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
names = st.sampled_from(
    ["v", "id", "op", "credential", "newer_than", "than", "client", "ok", "result", "error", "event", "data",
     "code", "message", "retry_at", "access_token", "expires_at", "issued_at", "generation"]
)  # fmt: skip
telling = st.sampled_from([1, 7, *sorted(OPERATIONS), "token", "schwab", True, "sign_in_required"])
objects = st.dictionaries(names, telling | json_values, max_size=9)
lines = (
    objects.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=60)
    | st.sampled_from([b"", b" ", b"[" * 3000, b'{"v":1,"id":1,"op":"ping"}'])
)
streams = st.lists(lines, max_size=6).map(b"\n".join)
cuts = st.lists(st.integers(0, 500), max_size=6)


def chunks(stream, places):
    places = sorted({min(place, len(stream)) for place in places} | {0, len(stream)})
    return [stream[a:b] for a, b in itertools.pairwise(places)]


@given(streams, cuts)
@example(b"x" * (MAX_LINE + 5) + b"\n" + b'{"v":1,"id":1,"op":"ping"}\n', [100])
@example(b'{"v":1,"id":' + b"9" * 5000 + b',"op":"ping"}\n', [])
def test_the_daemon_answers_every_line_and_never_raises(stream, places):
    daemon = LocalServerSession()
    requests = [r for chunk in chunks(stream + b"\n", places) for r in daemon.receive(chunk)]
    for request in requests:
        assert isinstance(request, LocalRequest)
        assert request.op in OPERATIONS
        assert request.credential or not request.op.startswith("token.")
        daemon.reply(request, {})
    written = [json.loads(line) for line in daemon.take().splitlines()]
    assert all(len(str(line)) < MAX_LINE for line in written)
    asked = [line for line in (stream + b"\n").split(b"\n") if line.strip()]
    if not daemon.is_closing:
        assert len(written) == len(asked)
    assert sum(line["ok"] for line in written) == len(requests)


@given(streams, cuts)
def test_requests_do_not_depend_on_how_they_are_cut(stream, places):
    whole, parts = LocalServerSession(), LocalServerSession()
    one = whole.receive(stream + b"\n")
    other = [r for chunk in chunks(stream + b"\n", places) for r in parts.receive(chunk)]
    assert one == other
    assert whole.take() == parts.take()


@given(streams, cuts)
@example(b"x" * (MAX_LINE + 5), [])
def test_the_client_makes_a_value_of_anything(stream, places):
    client = LocalClientSession()
    for chunk in chunks(stream + b"\n", places):
        for found in client.receive(chunk):
            assert isinstance(found, LocalAnswer | LocalEvent | ProtocolError)


@given(json_values | objects)
def test_objects_are_values_or_protocol_errors(value):
    try:
        token = token_from_object(value)
    except ProtocolError:
        pass
    else:
        assert isinstance(token, Token)
        assert token_from_object(token_object(token)).access_token == token.access_token
    if isinstance(value, dict):
        try:
            error = error_from_wire(value)
        except ProtocolError:
            return
        assert isinstance(error, KeeplineError)
        assert type(error_from_wire(error_to_wire(error))) in (type(error), KeeplineError)
