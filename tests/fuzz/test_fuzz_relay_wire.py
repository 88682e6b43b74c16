"""Any bytes into the relay's two ends, cut anywhere, at any moment: an answer or a refusal, never an exception."""

import itertools
import json
from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from keepline.credentials.token import Token
from keepline.relay.message import Code, Ledger, Rejected, encode_push, jwt_expiry, parse_push, seal
from keepline.relay.wire import Answer, ReceiverWire, SenderWire, WireRules

WALL = 1_767_600_000.0
NONCE = "0123456789abcdef"
SECRET = b"fuzz-secret-fuzz-secret"
OUTCOMES = {code.value for code in Code} | {"accepted", "duplicate"}
TOKEN = Token("tok", "ref", expires_at=datetime.fromtimestamp(WALL + 60, UTC), generation=5)
PUSH = encode_push(TOKEN, "c", with_refresh_token=True)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([WALL + 60, 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
fields = st.sampled_from(
    ["access_token", "refresh_token", "expires_at", "v", "credential", "generation", "mac", "body"]
)
objects = st.dictionaries(fields | st.text(max_size=5), json_values, max_size=8)
messages = (
    objects.map(lambda value: json.dumps(value).encode())
    | objects.map(
        lambda value: json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "replace")
    )
    | st.binary(max_size=80)
    | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.sampled_from(
        [PUSH, PUSH[:-1], b"token", b'{"a":"\\', b"{" * 50, b'"' * 9, seal(SECRET, NONCE, 0, PUSH)]
    )
)
glue = st.sampled_from([b"", b"\n", b"\r\n", b" ", b"\n\n"])
streams = st.lists(st.tuples(messages, glue), max_size=5).map(
    lambda pairs: b"".join(itertools.chain.from_iterable(pairs))
)
cuts = st.lists(st.integers(0, 400), max_size=6)


def chunks(stream, places):
    places = sorted({min(place, len(stream)) for place in places} | {0, len(stream)})
    return [stream[a:b] for a, b in itertools.pairwise(places)]


@given(
    streams,
    cuts,
    st.lists(st.sampled_from([0.0, 0.06, 6.0]), max_size=8),
    st.booleans(),
    st.booleans(),
)
@example(b"{" * 9000, [], [], False, False)
@example(b'{"x":' + b"[" * 4000 + b"]" * 4000 + b"}", [], [], False, False)
@example(b'{"access_token":"a"}' * 300, [7, 13], [], False, False)
def test_the_receiving_end_answers_every_message_and_never_raises(
    stream, places, pauses, ends, secret
):
    rules = WireRules(max_token_size=8192, shared_secret=SECRET if secret else b"")
    wire = ReceiverWire(rules, Ledger(), now=0.0, nonce=NONCE)
    greeting, now, arrivals = wire.take(), 0.0, []
    for chunk, pause in itertools.zip_longest(chunks(stream, places), pauses):
        if chunk:
            arrivals += wire.receive(chunk, now, WALL)
        now += pause or 0.0
        arrivals += wire.wake(now, WALL)
    if ends:
        arrivals += wire.receive_eof(WALL)
    answers = wire.take()
    assert greeting == (b'{"nonce":"%s"}\n' % NONCE.encode() if secret else b"")
    assert {arrival.outcome for arrival in arrivals} <= OUTCOMES
    assert all(
        (arrival.token is not None) == (arrival.outcome == "accepted") for arrival in arrivals
    )
    assert all(bool(arrival.reason) == (arrival.outcome in set(Code)) for arrival in arrivals)
    refused = sum(bool(arrival.reason) for arrival in arrivals)
    assert answers.count(b"OK") + answers.count(b"ERR ") >= len(arrivals)
    assert answers.count(b"ERR ") >= refused
    assert wire.deadline is None or not wire.is_closing
    assert SECRET not in answers


@given(streams, cuts)
def test_what_is_accepted_does_not_depend_on_how_version_one_is_cut(stream, places):
    prefix = PUSH + b"\n"

    def accepted(parts):
        wire = ReceiverWire(WireRules(), Ledger(), now=0.0)
        arrivals = [arrival for part in parts for arrival in wire.receive(part, 0.0, WALL)]
        return [arrival.token.access_token for arrival in arrivals if arrival.token]

    whole = accepted([prefix + stream])
    parts = accepted([prefix, *chunks(stream, places)])
    assert (
        parts == whole[: len(parts)]
    )  # a connection may close earlier when an old message came alone


@given(messages)
def test_a_message_is_a_token_that_can_be_sent_on_or_a_refusal(data):
    try:
        push = parse_push(data, is_json=data.startswith(b"{"), wall=WALL)
    except Rejected:
        return
    again = parse_push(
        encode_push(push.token, push.credential, with_refresh_token=True), is_json=True, wall=WALL
    )
    assert again.token.access_token == push.token.access_token
    assert again.token.refresh_token == push.token.refresh_token
    assert again.token.generation == push.token.generation
    assert int(push.token.expires_at.timestamp()) == again.token.expires_at.timestamp()


@given(st.text(max_size=60) | st.text("eyJ.abcXYZ019_-=", max_size=60).map(lambda t: "eyJ" + t))
def test_an_expiry_is_a_time_or_nothing(text):
    expiry = jwt_expiry(text)
    assert expiry is None or 0 < expiry < 253_402_300_800


@given(streams, cuts, st.booleans(), st.booleans(), st.booleans())
@example(b"x" * 5000, [], False, True, False)
def test_the_sending_end_makes_an_answer_of_anything(stream, places, secret, sends, ends):
    wire = SenderWire(shared_secret=SECRET if secret else b"")
    found, now = [], 0.0
    for chunk in chunks(stream, places):
        if sends and wire.is_ready:
            assert SECRET not in wire.send(PUSH)
        found.append(wire.receive(chunk, now))
        now += 0.06
        found.append(wire.wake(now))
    if ends:
        found.append(wire.receive_eof())
        assert wire.is_over
    for answer in found:
        assert answer is None or isinstance(answer, Answer)
        assert answer is None or answer.ok or (answer.code + answer.reason).isprintable()
