"""Claims about the server's side of a hub conversation, in bare numbers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.sandbox.signalr_wire import REPLAY_BYTES, Limits, Phase, ServerWire
from keepline.stream.codec import codec
from keepline.stream.messages import Close, Completion, Invocation, Ping, StreamItem

END = b"\x1e"
BROKEN = {"type": 7, "error": "Connection closed with an error.", "allowReconnect": True}


def shake(protocol: str = "json", version: int = 1) -> bytes:
    return json.dumps({"protocol": protocol, "version": version}).encode() + END


def a_wire(*, version: int = 1, stateful: bool = False, polling: bool = False) -> ServerWire:
    """One whose handshake is done."""
    wire = ServerWire(now=0, stateful=stateful, polling=polling, limits=Limits())
    wire.receive(shake(version=version), now=0)
    assert wire.take() == [b"{}" + END]
    return wire


def said(wire: ServerWire) -> list[Any]:
    """What it has to write, read as JSON."""
    return [json.loads(record) for data in wire.take() for record in data.split(END)[:-1]]


def message(**fields: object) -> bytes:
    return json.dumps(fields).encode() + END


CALL = message(type=1, target="Echo", arguments=[1], invocationId="1")


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (shake("nope"), "The protocol 'nope' is not supported."),
        (shake(version=3), "The server does not support version 3 of the 'json' protocol."),
        (message(type=6), "An unexpected error occurred during connection handshake."),
        (b"\xff" + END, "An unexpected error occurred during connection handshake."),
        (b"x" * 70_000, "An unexpected error occurred during connection handshake."),
    ],
)
def test_a_handshake_that_does_not_fit_is_refused_in_words(sent: bytes, answer: str) -> None:
    wire = ServerWire(now=0, limits=Limits())
    assert wire.receive(sent, now=0) == []
    assert said(wire) == [{"error": answer}]
    assert wire.phase is Phase.OVER
    assert wire.receive(CALL, now=0) == []


def test_names_have_no_case_and_version_0_is_taken() -> None:
    wire = ServerWire(now=0, limits=Limits())
    wire.receive(shake("JSON", 0), now=0)
    assert said(wire) == [{}]
    binary = ServerWire(now=0, limits=Limits())
    binary.receive(shake("MessagePack"), now=0)
    assert binary.binary
    assert binary.asked is not None
    assert binary.asked.protocol == "MessagePack"


def test_a_fault_may_refuse_a_good_handshake() -> None:
    wire = ServerWire(now=0, limits=Limits())
    wire.refusal = "no"
    wire.receive(shake(), now=0)
    assert said(wire) == [{"error": "no"}]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_any_split_of_the_bytes_is_heard_the_same(cuts: list[int]) -> None:
    data = shake() + CALL + message(type=6) + CALL
    wire, at, heard = ServerWire(now=0, limits=Limits()), 0, []
    for size in [*cuts, len(data)]:
        heard += wire.receive(data[at : at + size], now=0)
        at += size
    assert [type(m) for m in heard] == [Invocation, Invocation]


def test_without_a_handshake_it_ends_after_fifteen_seconds() -> None:
    wire = ServerWire(now=0, limits=Limits())
    wire.tick(now=14.9)
    assert wire.take() == []
    wire.tick(now=15)
    assert said(wire) == [{"error": "Handshake was canceled."}]


def test_silence_is_broken_by_a_ping_but_not_over_long_polling() -> None:
    wire, polling = a_wire(), a_wire(polling=True)
    for now in (14, 15, 16, 29, 30):
        wire.tick(now=now)
        polling.tick(now=now)
    assert said(wire) == [{"type": 6}, {"type": 6}]
    assert said(polling) == []
    wire.send(Invocation("X", ()), now=40)
    wire.tick(now=46)
    assert [m["type"] for m in said(wire)] == [1]


def test_a_client_is_given_up_only_once_it_has_pinged() -> None:
    wire = a_wire()
    wire.tick(now=1000)
    assert wire.phase is Phase.OPEN
    wire.receive(message(type=6), now=1000)
    wire.receive(CALL, now=1020)
    wire.tick(now=1049)
    assert wire.phase is Phase.OPEN
    said(wire)
    wire.tick(now=1050)
    assert said(wire) == [BROKEN]


@pytest.mark.parametrize(
    "data", [b"{not json" + END, message(type=1), message(type=3, invocationId="1", result=1, error="x")]
)  # fmt: skip
def test_what_breaks_the_protocol_ends_it_and_allows_to_reconnect(data: bytes) -> None:
    wire = a_wire()
    assert wire.receive(data + CALL, now=1) == []
    assert said(wire) == [BROKEN]
    assert wire.phase is Phase.OVER


def test_a_message_may_have_32768_bytes_and_no_more() -> None:
    empty = len(message(type=1, target="Echo", arguments=[""]))
    fitting = message(type=1, target="Echo", arguments=["x" * (32_768 - empty)])
    wire = a_wire()
    assert len(wire.receive(fitting, now=0)) == 1
    wire.receive(fitting.replace(b"xx", b"xxx", 1), now=0)
    assert said(wire) == [BROKEN]


@pytest.mark.parametrize("name", ["json", "messagepack"])
def test_a_message_of_an_unknown_type_makes_it_deaf_until_too_much_piles_up(name: str) -> None:
    wire = ServerWire(now=0, limits=Limits())
    wire.receive(shake(name), now=0)
    wire.take()
    binary = name == "messagepack"
    call = codec(name).encode(Invocation("Echo", (1,), id="1"))
    unknown = b"\x02\x91\x2a" if binary else message(type=42)
    heard = [wire.receive(part, now=0) for part in (call + unknown[:2], unknown[2:], call, call)]
    assert [len(messages) for messages in heard] == [1, 0, 0, 0]
    wire.tick(now=20)
    assert wire.take() == [codec(name).encode(Ping())]
    assert wire.phase is Phase.OPEN
    wire.receive(call * 3_000, now=21)
    assert wire.take() == [codec(name).encode(Close("Connection closed with an error.", True))]


def test_lengths_that_are_none_and_values_that_are_no_message_end_it() -> None:
    for data in (b"\xff" * 6, b"\x01\xc1", b"\x01\xc0", b"\x01\x90"):
        wire = ServerWire(now=0, limits=Limits())
        wire.receive(shake("messagepack"), now=0)
        wire.receive(data, now=0)
        assert wire.phase is Phase.OVER, data


def test_a_close_message_is_obeyed_and_ours_says_what_may_follow() -> None:
    wire = a_wire()
    wire.receive(message(type=7), now=0)
    assert (wire.phase, wire.take()) == (Phase.OVER, [])
    for error, allow, told in (
        (None, False, {"type": 7}),
        ("bye", True, {"type": 7, "error": "bye", "allowReconnect": True}),
    ):
        wire = a_wire()
        wire.close(error, allow_reconnect=allow, now=0)
        wire.send(Invocation("X", ()), now=0)
        wire.close(now=0)
        assert said(wire) == [told]


# --- stateful reconnect ---


def test_stateful_reconnect_needs_both_the_offer_and_version_2() -> None:
    assert a_wire(version=2, stateful=True).can_reattach
    assert not a_wire(version=1, stateful=True).can_reattach
    assert not a_wire(version=2).can_reattach
    over = a_wire(version=2, stateful=True)
    over.end()
    assert not over.can_reattach


def test_what_was_sent_while_nobody_was_there_is_said_again_in_order() -> None:
    wire = a_wire(version=2, stateful=True)
    for number in range(3):
        wire.send(Invocation("X", (number,)), now=1)
    wire.take()
    wire.receive(message(type=8, sequenceId=2), now=1)
    wire.lost()
    wire.send(Completion("1", result=5), now=2)
    wire.tick(now=500)  # no ping, no time-out without a transport
    assert wire.take() == []
    wire.reattached(now=500)
    assert said(wire) == [
        {"type": 9, "sequenceId": 3},
        {"type": 1, "target": "X", "arguments": [2]},
        {"type": 3, "invocationId": "1", "result": 5},
    ]


def test_a_message_that_was_here_before_the_reattach_is_heard_once() -> None:
    wire = a_wire(version=2, stateful=True)
    items = [message(type=2, invocationId="u", item=n) for n in range(3)]
    assert len(wire.receive(items[0] + items[1], now=1)) == 2
    wire.lost()
    wire.reattached(now=2)
    again = wire.receive(message(type=9, sequenceId=2) + items[1] + items[2], now=2)
    assert [m.item for m in again if isinstance(m, StreamItem)] == [2]


@pytest.mark.parametrize("number", [0, -1, 5])
def test_a_sequence_that_cannot_be_ends_it(number: int) -> None:
    wire = a_wire(version=2, stateful=True)
    wire.receive(CALL, now=1)
    wire.receive(message(type=9, sequenceId=number), now=1)
    assert said(wire) == [BROKEN]


def test_without_stateful_reconnect_sequences_and_acks_are_ignored() -> None:
    wire = a_wire()
    wire.receive(message(type=9, sequenceId=0) + message(type=8, sequenceId=9), now=1)
    assert (wire.phase, wire.take()) == (Phase.OPEN, [])


def test_acks_come_a_second_after_something_that_counts_unless_withheld() -> None:
    wire = a_wire(version=2, stateful=True)
    wire.receive(message(type=6), now=0)
    wire.tick(now=5)
    assert said(wire) == []
    wire.receive(CALL, now=5)
    wire.tick(now=5.5)
    assert said(wire) == []
    wire.withhold_acks = True
    wire.tick(now=6)
    assert said(wire) == []
    wire.withhold_acks = False
    wire.tick(now=7)
    assert said(wire) == [{"type": 8, "sequenceId": 1}]
    wire.tick(now=8)
    assert said(wire) == []


def test_at_a_hundred_thousand_bytes_it_waits_for_an_ack() -> None:
    wire = a_wire(version=2, stateful=True)
    for number in range(30):
        wire.send(Invocation("X", ("x" * 10_000, number)), now=1)
    sent = said(wire)
    assert len(sent) == 10
    assert sum(10_000 for _ in sent) >= REPLAY_BYTES
    assert wire.waiting == 20
    wire.receive(message(type=8, sequenceId=10), now=2)
    wire.receive(message(type=8, sequenceId=20), now=2)
    numbers = [m["arguments"][1] for m in (*sent, *said(wire))]
    assert numbers == list(range(30))


def test_bytes_that_are_none_of_ours_are_counted_by_nobody() -> None:
    wire = a_wire(version=2, stateful=True)
    wire.garble(b"x")
    assert (wire.unsent, wire.take()) == (1, [b"x"])
    wire.lost()
    wire.reattached(now=1)
    assert said(wire) == [{"type": 9, "sequenceId": 1}]


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_taken_or_end_it(data: bytes, stateful: bool) -> None:
    wire = a_wire(version=2, stateful=stateful)
    for part in (data, data[:7] + END, END):
        wire.receive(part, now=1)
    assert wire.phase in (Phase.OPEN, Phase.OVER)
