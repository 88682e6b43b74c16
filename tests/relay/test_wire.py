"""Both ends of a push joined without a socket: every edge in microseconds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.relay.message import Code, Ledger
from keepline.relay.wire import Answer, ReceiverWire, SenderWire, WireRules

WALL = 1_767_600_000.0
NONCE = "0123456789abcdef"


def receiver(*, ledger=None, **rules):
    return ReceiverWire(WireRules(**rules), ledger or Ledger(), now=0.0, nonce=NONCE)


def v1(generation=1, access="tok", **fields):
    message = {"access_token": access, "refresh_token": "", "expires_at": WALL + 60, "v": 1}
    return json.dumps(message | {"credential": "c", "generation": generation} | fields).encode()


def outcomes(arrivals):
    return [arrival.outcome for arrival in arrivals]


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (b"token\n", b"OK\n"),
        (b'{"access_token":"a"}\n', b"OK\n"),
        (b'{"access_token":"a"}', b"OK"),
        (b'{"access_token":"a"}{"access_token":"b"}', b"OKOK"),
        (b'{"access_token":"a"}\n{"access_token":"b"}\n', b"OK\nOK\n"),
        (b"one\ntwo\n", b"OK\nOK\n"),
    ],
)
def test_the_answer_has_a_newline_when_the_message_had_one_and_then_we_close(message, answer):
    wire = receiver()
    arrivals = wire.receive(message, 0.0, WALL)
    assert set(outcomes(arrivals)) == {"accepted"}
    assert wire.take() == answer
    assert wire.is_closing
    assert wire.take() == b""
    assert wire.receive(b"more\n", 0.0, WALL) == []
    assert wire.receive_eof(WALL) == []
    assert wire.deadline is None


def test_a_connection_of_version_one_stays_open_in_silence():
    wire = receiver()
    for generation in (1, 2, 3):
        assert outcomes(wire.receive(v1(generation) + b"\n", 0.0, WALL)) == ["accepted"]
        assert wire.take() == b"OK\n"
        assert not wire.is_closing
        assert wire.deadline is None
    assert wire.receive_eof(WALL) == []
    assert wire.is_closing


def test_a_late_newline_behind_an_object_is_no_empty_message():
    wire = receiver()
    wire.receive(v1(1), 0.0, WALL)
    assert wire.take() == b"OK"
    assert wire.receive(b"\n", 0.1, WALL) == []
    assert wire.take() == b""
    assert not wire.is_closing


def test_a_second_object_that_has_begun_is_waited_for():
    wire = receiver()
    assert outcomes(wire.receive(b'{"access_token":"a"}{"acc', 0.0, WALL)) == ["accepted"]
    assert not wire.is_closing
    assert outcomes(wire.receive(b'ess_token":"b"}', 0.1, WALL)) == ["accepted"]
    assert wire.is_closing
    assert wire.take() == b"OKOK"


def test_fifty_milliseconds_of_quiet_complete_bare_text():
    wire = receiver()
    assert wire.receive(b"tok", 1.0, WALL) == []
    assert wire.deadline == pytest.approx(1.05)
    assert wire.receive(b"en", 1.04, WALL) == []
    assert wire.wake(1.05, WALL) == []
    (arrival,) = wire.wake(1.09, WALL)
    assert arrival.token.access_token == "token"
    assert wire.take() == b"OK"
    assert wire.is_closing


def test_quiet_completes_bare_text_behind_version_one_too_and_then_we_close():
    wire = receiver()
    wire.receive(v1(1) + b"\n", 0.0, WALL)
    wire.receive(b"bare", 1.0, WALL)
    assert outcomes(wire.wake(1.05, WALL)) == ["accepted"]
    assert wire.is_closing


def test_text_that_trickles_for_ever_is_cut_off():
    wire = receiver(receive_timeout=5.0)
    now = 0.0
    while not wire.is_closing:
        wire.receive(b"x", now, WALL)
        now += 0.04
        arrivals = wire.wake(now, WALL)
    assert outcomes(arrivals) == ["incomplete"]
    assert now == pytest.approx(5.0, abs=0.05)


def test_half_an_object_and_silence_is_incomplete():
    wire = receiver(receive_timeout=5.0)
    wire.receive(b'{"access_', 2.0, WALL)
    assert wire.deadline == 7.0
    wire.receive(b"token", 6.0, WALL)
    assert wire.wake(6.9, WALL) == []
    assert outcomes(wire.wake(7.0, WALL)) == ["incomplete"]
    assert wire.take() == b"ERR incomplete the message did not end in time"
    assert wire.is_closing


def test_half_an_object_on_a_connection_of_version_one_is_incomplete_too():
    wire = receiver(receive_timeout=5.0)
    wire.receive(v1(1) + b"\n", 0.0, WALL)
    wire.receive(b'{"access_', 100.0, WALL)
    assert wire.deadline == 105.0
    assert outcomes(wire.wake(105.0, WALL)) == ["incomplete"]


def test_a_connection_that_says_nothing_is_closed():
    wire = receiver(receive_timeout=5.0)
    assert wire.deadline == 5.0
    assert outcomes(wire.wake(5.0, WALL)) == ["empty"]
    assert wire.take() == b"ERR empty nothing came in time"


def test_the_end_of_input_completes_text_and_not_an_object():
    wire = receiver()
    wire.receive(b"token", 0.0, WALL)
    assert outcomes(wire.receive_eof(WALL)) == ["accepted"]
    assert wire.take() == b"OK"
    wire = receiver()
    wire.receive(b'{"access', 0.0, WALL)
    assert outcomes(wire.receive_eof(WALL)) == ["incomplete"]
    assert wire.take().startswith(b"ERR incomplete ")


def test_a_connection_without_a_message_is_answered_and_not_counted():
    wire = receiver()
    assert wire.receive_eof(WALL) == []
    assert wire.take().startswith(b"ERR empty ")
    assert wire.is_closing


@pytest.mark.parametrize(
    ("message", "code", "newline"),
    [
        (b"\n", "empty", True),
        (b"two words\n", "bad_text", True),
        (b"\xff\n", "bad_utf8", True),
        (b'{"a":1}\n', "bad_field", True),
        (b'{"a":1}', "bad_field", False),
        (b'{"access_token":"a"}junk\n', "bad_json", False),
        (b'{"access_token":"a\nb"}\n', "bad_json", True),
        (b"{]}\n", "bad_json", True),
        (b'{"access_token":"a","expires_at":5}\n', "expired", True),
        (b"x" * 8193, "too_large", False),
        (b"x" * 8193 + b"\n", "too_large", True),
        (b'{"access_token":"' + b"x" * 9000 + b'"}\n', "too_large", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\ntoken\n", "bad_text", True),
    ],
)
def test_bad_input_gets_a_clear_refusal_and_the_connection_ends(message, code, newline):
    wire = receiver()
    arrivals = wire.receive(message, 0.0, WALL)
    assert arrivals[-1].outcome == code
    assert arrivals[-1].reason
    answer = wire.take().removeprefix(b"OK")
    assert answer.startswith(b"ERR " + code.encode() + b" ")
    assert answer.endswith(b"\n") == newline
    assert wire.is_closing


def test_an_older_generation_is_refused_and_the_connection_goes_on():
    wire = receiver()
    wire.receive(v1(5) + b"\n", 0.0, WALL)
    wire.take()
    assert outcomes(wire.receive(v1(4) + b"\n", 0.0, WALL)) == ["stale"]
    assert wire.take() == b"ERR stale generation 4 is older than 5, which we have\n"
    assert outcomes(wire.receive(v1(6, expires_at=1) + b"\n", 0.0, WALL)) == ["expired"]
    assert not wire.is_closing
    assert outcomes(wire.receive(v1(5) + v1(6), 0.0, WALL)) == ["duplicate", "accepted"]


def test_generations_are_remembered_across_connections():
    ledger = Ledger()
    receiver(ledger=ledger).receive(v1(5), 0.0, WALL)
    assert outcomes(receiver(ledger=ledger).receive(v1(4), 0.0, WALL)) == ["stale"]


def test_a_broken_message_on_a_connection_of_version_one_ends_it():
    wire = receiver()
    wire.receive(v1(5) + b"\n", 0.0, WALL)
    assert outcomes(wire.receive(b"{]}\n", 0.0, WALL)) == ["bad_json"]
    assert wire.is_closing


@pytest.mark.parametrize("broken", [b'{"access_token":"a\nb"}\n', b"x" * 9000, b'{"a":1}x'])
def test_what_cannot_be_cut_ends_a_connection_of_version_one(broken):
    wire = receiver()
    wire.receive(v1(5) + b"\n", 0.0, WALL)
    assert outcomes(wire.receive(broken, 0.0, WALL))[-1] in ("bad_json", "too_large", "bad_field")
    assert wire.is_closing


@pytest.mark.parametrize("old", [b'{"access_token":"a"}\n', b"token\n"])
def test_an_old_message_behind_version_one_is_taken_and_ends_the_connection(old):
    wire = receiver()
    wire.receive(v1(5) + b"\n", 0.0, WALL)
    assert outcomes(wire.receive(old, 0.0, WALL)) == ["accepted"]
    assert wire.is_closing


def test_a_message_of_version_one_behind_an_old_one_in_the_same_read_keeps_the_connection():
    wire = receiver()
    assert outcomes(wire.receive(b"token\n" + v1(5) + b"\n", 0.0, WALL)) == ["accepted", "accepted"]
    assert not wire.is_closing


def test_a_peer_that_is_turned_away_hears_why():
    wire = receiver(shared_secret=b"s")
    assert wire.refuse(Code.FORBIDDEN, "user 7 may not").outcome == "forbidden"
    assert wire.take() == b"ERR forbidden user 7 may not\n"
    assert wire.is_closing
    assert "closing" in repr(wire)


# --- the sending end ---


def sender(secret=b""):
    return SenderWire(shared_secret=secret)


@pytest.mark.parametrize(
    ("chunks", "answer"),
    [
        ([b"OK\n"], Answer(True)),
        ([b"OK\r\n"], Answer(True)),
        ([b"O", b"K\n"], Answer(True)),
        ([b"OK thanks\n"], Answer(True)),
        ([b"ERR stale generation 4 is older\n"], Answer(False, "stale", "generation 4 is older")),
        ([b"ERR\n"], Answer(False, "", "")),
        ([b"ERR \x1b[31mred\n"], Answer(False, "[31mred", "")),
    ],
)
def test_an_answer_ends_at_its_newline(chunks, answer):
    wire = sender()
    assert wire.send(b"{}") == b"{}\n"
    got = [wire.receive(chunk, 0.0) for chunk in chunks]
    assert got == [None] * (len(chunks) - 1) + [answer]
    assert wire.is_ready


def test_an_answer_ends_with_the_input():
    wire = sender()
    wire.send(b"{}")
    assert wire.receive(b"OK", 0.0) is None
    assert wire.receive_eof() == Answer(True)
    assert wire.is_over
    assert wire.receive(b"OK\n", 0.0) is None
    assert wire.receive_eof() is None


def test_an_answer_ends_after_fifty_milliseconds_of_quiet():
    wire = sender()
    wire.send(b"{}")
    assert wire.receive(b"OK", 3.0) is None
    assert wire.deadline == pytest.approx(3.05)
    assert wire.wake(3.04) is None
    assert wire.wake(3.06) == Answer(True)
    assert wire.is_ready
    assert wire.deadline is None


def test_the_late_newline_of_an_answer_does_not_disturb_the_next():
    wire = sender()
    wire.send(b"{}")
    wire.receive(b"OK", 0.0)
    wire.wake(1.0)
    assert wire.receive(b"\n", 1.1) is None
    wire.send(b"{}")
    assert wire.receive(b"", 1.2) is None
    assert wire.deadline is None
    assert wire.receive(b"OK\n", 1.3) == Answer(True)


def test_closing_without_a_word_is_no_consent():
    wire = sender()
    wire.send(b"{}")
    answer = wire.receive_eof()
    assert (answer.ok, answer.code) == (False, "silent")


def test_closing_between_messages_is_nothing_to_answer():
    wire = sender()
    assert wire.receive_eof() is None
    assert wire.is_over


@pytest.mark.parametrize("words", [b"ACCEPTED\n", b"\xff\xfe\n", b"{}\n", b"OKAY\n"])
def test_other_words_than_ok_are_no_consent(words):
    wire = sender()
    wire.send(b"{}")
    answer = wire.receive(words, 0.0)
    assert (answer.ok, answer.code) == (False, "unclear")
    assert wire.is_over


@pytest.mark.parametrize("sent", [True, False])
def test_a_flood_instead_of_an_answer_ends_the_connection(sent):
    wire = sender()
    if sent:
        wire.send(b"{}")
    assert wire.receive(b"x" * 2000, 0.0).code == "unclear"
    assert wire.is_over


def test_what_was_said_before_we_sent_is_the_answer():
    wire = sender()
    assert wire.receive(b"ERR busy too many connections\n", 0.0) is None
    wire.send(b"{}")
    assert wire.receive(b"", 0.0) == Answer(False, "busy", "too many connections")


def test_an_answer_of_a_kilobyte_is_long_enough():
    wire = sender()
    wire.send(b"{}")
    assert wire.receive(b"ERR " + b"x" * 1020, 0.0) is None
    assert wire.receive(b"x", 0.0).code == "unclear"


def test_two_answers_in_one_read_belong_to_two_messages():
    wire = sender()
    wire.send(b"{}")
    assert wire.receive(b"OK\nERR stale old\n", 0.0) == Answer(True)
    wire.send(b"{}")
    assert wire.receive(b"", 0.0) == Answer(False, "stale", "old")


def test_sending_before_the_answer_is_our_own_mistake():
    wire = sender()
    wire.send(b"{}")
    with pytest.raises(RuntimeError, match="WAITING"):
        wire.send(b"{}")
    assert "WAITING" in repr(wire)


# --- both joined ---


def exchange(to, frm, now=0.0):
    """Carry what the receiver wrote to the sender."""
    return to.receive(frm.take(), now)


def test_a_shared_secret_is_proven_message_by_message():
    bot, daemon = receiver(shared_secret=b"s3cret"), sender(b"s3cret")
    assert not daemon.is_ready
    assert exchange(daemon, bot) is None
    for generation in (1, 2, 3):
        written = daemon.send(v1(generation))
        assert b"s3cret" not in written
        assert outcomes(bot.receive(written, 0.0, WALL)) == ["accepted"]
        assert exchange(daemon, bot) == Answer(True)


def test_another_secret_and_a_repeated_message_are_refused():
    bot, daemon = receiver(shared_secret=b"s3cret"), sender(b"wrong")
    exchange(daemon, bot)
    assert outcomes(bot.receive(daemon.send(v1(1)), 0.0, WALL)) == ["bad_mac"]
    assert exchange(daemon, bot).code == "bad_mac"
    assert bot.is_closing

    bot, daemon = receiver(shared_secret=b"s3cret"), sender(b"s3cret")
    exchange(daemon, bot)
    written = daemon.send(v1(1))
    assert outcomes(bot.receive(written, 0.0, WALL)) == ["accepted"]
    assert outcomes(bot.receive(written, 0.0, WALL)) == ["bad_mac"]
    assert bot.is_closing


@pytest.mark.parametrize("plain", [b"token\n", v1(1) + b"\n", b'{"access_token":"a"}'])
def test_a_receiver_with_a_secret_takes_nothing_without_a_proof(plain):
    bot = receiver(shared_secret=b"s3cret")
    assert outcomes(bot.receive(plain, 0.0, WALL)) == ["bad_mac"]
    assert bot.is_closing


def test_a_sender_without_the_secret_learns_that_one_is_needed():
    bot, daemon = receiver(shared_secret=b"s3cret"), sender()
    written = daemon.send(v1(1))
    bot.receive(written, 0.0, WALL)
    answer = exchange(daemon, bot)
    assert answer.code == "needs_secret"
    assert daemon.is_over


def test_a_sender_with_a_secret_never_sends_to_a_receiver_that_asks_for_no_proof():
    daemon = sender(b"s3cret")
    assert daemon.receive(b"hello\n", 0.0).code == "no_greeting"
    daemon = sender(b"s3cret")
    assert daemon.receive_eof().code == "silent"
    daemon = sender(b"s3cret")
    assert daemon.receive(b"ERR busy too many connections\n", 0.0).code == "busy"
    daemon = sender(b"s3cret")
    assert daemon.receive(b"x" * 2000, 0.0).code == "unclear"
    for length, is_ready in ((7, False), (8, True), (128, True), (129, False)):
        daemon = sender(b"s3cret")
        daemon.receive(b'{"nonce":"%s"}\n' % (b"a" * length), 0.0)
        assert daemon.is_ready == is_ready
    for nonce in (b'{"nonce":"short"}\n', b'{"nonce":7}\n', b'{"nonce":"%s"}\n' % (b"a" * 200)):
        assert sender(b"s3cret").receive(nonce, 0.0).code == "no_greeting"


messages = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from([b"\n", b"", b"\r\n"])), min_size=1, max_size=5
)


@given(messages, st.lists(st.integers(0, 2000), max_size=8))
def test_version_one_messages_get_one_answer_each_however_they_are_cut(written, cuts):
    stream = b"".join(v1(generation) + end for generation, end in written)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    wire = receiver()
    arrivals = []
    for begin, end in zip(places, places[1:], strict=False):  # noqa: RUF007
        arrivals += wire.receive(stream[begin:end], 0.0, WALL)
    newest, expected = 0, []
    for generation, _ in written:
        expected.append(
            "accepted" if generation > newest else "duplicate" if generation == newest else "stale"
        )
        newest = max(newest, generation)
    assert outcomes(arrivals) == expected
    answers = wire.take()
    assert answers.count(b"OK") + answers.count(b"ERR ") == len(written)
    assert not wire.is_closing


def test_a_trickle_of_blanks_buys_no_time():
    wire = ReceiverWire(WireRules(receive_timeout=5.0), Ledger(), now=0.0)
    for now in (2.0, 4.0):
        assert wire.receive(b" ", now, WALL) == []
    assert wire.deadline == 5.0
    assert [arrival.outcome for arrival in wire.wake(5.0, WALL)] == ["empty"]


def test_the_time_of_a_message_counts_from_its_first_byte():
    wire = ReceiverWire(WireRules(receive_timeout=5.0), Ledger(), now=0.0)
    wire.receive(b'  {"acc', 4.0, WALL)
    wire.receive(b"ess_t", 6.0, WALL)
    assert wire.deadline == 9.0


@given(st.floats(min_value=0.0, max_value=1e9))
def test_quiet_text_is_complete_at_the_deadline_whatever_the_clock_shows(now):
    wire = ReceiverWire(WireRules(), Ledger(), now=now)
    wire.receive(b"token", now, WALL)
    assert outcomes(wire.wake(wire.deadline, WALL)) == ["accepted"]
