"""One conversation with a hub, by bytes and bare numbers: handshake, calls, streams, keep-alive, ends."""

from typing import Any

import msgspec
import pytest

from keepline.errors import Closed as ClosedError
from keepline.errors import ConfigError
from keepline.stream.codec import Codec, Types, codec
from keepline.stream.handshake import (
    HandshakeReader,
    HandshakeRequest,
    read_request,
    write_response,
)
from keepline.stream.messages import (
    Ack,
    BindingFailure,
    CancelInvocation,
    Close,
    Completion,
    Invocation,
    Message,
    Ping,
    Sequence,
    StreamInvocation,
    StreamItem,
)
from keepline.stream.wire import HubWire, Phase
from keepline.stream.wire_events import (
    Answered,
    Cancelled,
    Closed,
    CloseReason,
    Ended,
    HandshakeDone,
    Item,
    Stray,
    Unbound,
    WireEvent,
)

JSON, PACK = codec("json"), codec("messagepack")
each_codec = pytest.mark.parametrize("encoding", [JSON, PACK], ids=lambda encoding: encoding.name)


class Server:
    """The other end: says messages, reads what was written."""

    def __init__(self, encoding: Codec = JSON, **options: Any) -> None:
        self.encoding = encoding
        self.wire = HubWire(encoding, **options)
        self._decoder = encoding.decoder()

    def opened(self, now: float = 0.0) -> "Server":
        self.wire.open(now)
        self.wire.take()
        assert self.wire.receive(write_response(), now) == [HandshakeDone()]
        self.written()
        return self

    def says(self, *messages: Message, now: float = 1.0) -> list[WireEvent]:
        return self.wire.receive(b"".join(map(self.encoding.encode, messages)), now)

    def written(self) -> list[Any]:
        return self._decoder.feed(b"".join(self.wire.take()))


# --- the handshake ---


@pytest.mark.parametrize(("stateful", "version"), [(False, 1), (True, 2)])
@each_codec
def test_the_proposal_names_the_encoding_and_the_version(
    encoding: Codec, stateful: bool, version: int
) -> None:
    wire = HubWire(encoding, stateful=stateful, handshake_timeout=5.0)
    assert (wire.phase, wire.deadline, wire.take()) == (Phase.NEW, None, [])
    wire.open(10.0)
    read = HandshakeReader().feed(b"".join(wire.take()))
    assert isinstance(read, tuple)
    assert read_request(read[0]) == HandshakeRequest(encoding.name, version)
    assert wire.deadline == 15.0
    assert wire.phase is Phase.HANDSHAKE


@each_codec
def test_the_first_ping_follows_the_handshake_at_once(encoding: Codec) -> None:
    server = Server(encoding)
    server.wire.open(0.0)
    server.wire.take()
    assert server.wire.receive(b"{", 0.1) == []
    assert server.wire.receive(b"}\x1e", 0.2) == [HandshakeDone()]
    assert server.written() == [Ping()]


@each_codec
def test_messages_glued_to_the_handshake_are_heard(encoding: Codec) -> None:
    server = Server(encoding)
    server.wire.open(0.0)
    glued = write_response() + encoding.encode(Invocation("T", [1]))
    assert server.wire.receive(glued, 0.1) == [HandshakeDone(), Invocation("T", [1])]


REFUSALS = [
    ("The protocol 'messagepack' is not supported.", False),
    ("The server does not support version 3 of the 'json' protocol.", False),
    ("Handshake was canceled.", True),
    ("", True),
]


@pytest.mark.parametrize(("words", "again"), REFUSALS)
def test_a_refused_handshake_ends_it(words: str, again: bool) -> None:
    wire = HubWire(JSON)
    wire.open(0.0)
    assert wire.receive(write_response(words), 0.1) == [Closed(CloseReason.REFUSED, again, words)]
    assert wire.phase is Phase.CLOSED
    assert wire.deadline is None


@pytest.mark.parametrize("data", [b'{"type":6}\x1e', b"<html>\x1e", b"x" * 70_000])
def test_what_is_no_handshake_ends_it(data: bytes) -> None:
    wire = HubWire(JSON)
    wire.open(0.0)
    (closed,) = wire.receive(data, 0.1)
    assert isinstance(closed, Closed)
    assert (closed.reason, closed.allow_reconnect) == (CloseReason.MALFORMED, True)
    assert closed.error


def test_a_handshake_without_an_answer_ends_in_time() -> None:
    wire = HubWire(JSON)
    wire.open(0.0)
    assert wire.expire(14.9) == []
    (closed,) = wire.expire(15.0)
    assert closed == Closed(
        CloseReason.HANDSHAKE_TIMEOUT, True, "the server did not answer the handshake within 15 s"
    )
    assert wire.receive(write_response(), 16.0) == []


def test_a_conversation_is_opened_once() -> None:
    wire = HubWire(JSON)
    wire.open(0.0)
    with pytest.raises(ClosedError, match="make a new one"):
        wire.open(1.0)


# --- keep-alive ---


def test_a_ping_goes_out_on_silence_of_ours_alone() -> None:
    server = Server(keep_alive=15.0, server_timeout=100.0).opened(0.0)
    assert server.wire.deadline == 15.0
    server.wire.expire(14.9)
    assert server.written() == []
    server.wire.expire(15.0)
    assert server.written() == [Ping()]
    assert server.wire.deadline == 30.0
    server.says(Ping(), now=20.0)
    server.wire.send("T", [])
    assert server.wire.deadline == 35.0
    server.wire.expire(30.0)
    assert server.written() == [Invocation("T", [])]


def test_silence_of_the_server_ends_it_and_any_bytes_are_no_silence() -> None:
    server = Server(keep_alive=1000.0, server_timeout=30.0).opened(0.0)
    assert server.wire.receive(b'{"ty', 29.0) == []
    assert server.wire.deadline == 59.0
    assert server.wire.expire(58.9) == []
    assert server.wire.expire(59.0) == [
        Closed(CloseReason.SILENT, True, "nothing arrived from the server for 30 s")
    ]
    assert server.wire.expire(60.0) == []


def test_a_transport_that_proves_life_itself_needs_no_pings() -> None:
    server = Server(inherent_keep_alive=True)
    server.wire.open(0.0)
    server.wire.take()
    server.wire.receive(write_response(), 0.0)
    assert server.written() == []
    assert server.wire.deadline is None
    assert server.wire.expire(1e6) == []
    assert server.written() == []


# --- calls of ours ---


@each_codec
def test_a_call_is_answered_by_its_id(encoding: Codec) -> None:
    server = Server(encoding).opened()
    first = server.wire.invoke("Add", [1, 2])
    second = server.wire.invoke("Void", [])
    assert server.written() == [Invocation("Add", [1, 2], first), Invocation("Void", [], second)]
    assert server.says(Completion(second, None), Completion(first, 3)) == [
        Answered(second, None),
        Answered(first, 3),
    ]
    third = server.wire.invoke("Nothing", [])
    assert server.says(Completion(third)) == [Answered(third, None)]
    failing = server.wire.invoke("Bug", [])
    assert server.says(Completion(failing, error="boom")) == [Answered(failing, None, "boom")]


@each_codec
def test_a_result_has_its_type_or_is_unfit(encoding: Codec) -> None:
    server = Server(encoding).opened()
    call = server.wire.invoke("Add", [], float)
    (answer,) = server.says(Completion(call, 3))
    assert isinstance(answer, Answered)
    assert isinstance(answer.result, float)
    call = server.wire.invoke("Add", [], float)
    (answer,) = server.says(Completion(call, "three"))
    assert isinstance(answer, Answered)
    assert answer.unfit
    assert "float" in (answer.error or "")
    assert server.says(Completion(call, 1)) == [Stray("completion", call)]


def test_a_call_without_an_id_wants_no_answer() -> None:
    server = Server().opened()
    server.wire.send("T", ["a"], stream_ids=["9"])
    assert server.written() == [Invocation("T", ["a"], None, ("9",))]


def test_an_answer_to_nothing_is_a_stray() -> None:
    server = Server().opened()
    assert server.says(Completion("77"), StreamItem("78", 1), CancelInvocation("79")) == [
        Stray("completion", "77"),
        Stray("item", "78"),
        Stray("cancellation", "79"),
    ]
    call = server.wire.invoke("T", [])
    assert server.says(StreamItem(call, 1), Completion(call, 2)) == [
        Stray("item", call),
        Answered(call, 2),
    ]


def test_an_unfit_value_for_nothing_is_a_stray() -> None:
    types = Types()
    types.expect_result("5", int)
    server = Server(types=types).opened()
    assert server.says(StreamItem("5", "x"), Completion("5", "x")) == [
        Stray("item", "5"),
        Stray("completion", "5"),
    ]


def test_a_cancelled_call_is_forgotten_in_silence() -> None:
    server = Server().opened()
    call = server.wire.invoke("Slow", [])
    server.written()
    server.wire.cancel(call)
    server.wire.cancel(call)
    server.wire.cancel("unknown")
    assert server.written() == []
    assert server.says(Completion(call, 1)) == []
    assert server.says(Completion(call, 1)) == [Stray("completion", call)]


def test_a_value_that_cannot_be_sent_leaves_nothing_behind() -> None:
    types = Types()
    server = Server(types=types).opened()
    with pytest.raises(ConfigError, match="cannot be sent"):
        server.wire.invoke("T", [object()], int)
    assert types.result("1") is Any
    assert server.written() == []
    assert server.says(Completion("1")) == [Stray("completion", "1")]


# --- streams ---


@each_codec
def test_a_stream_gives_items_and_an_end(encoding: Codec) -> None:
    server = Server(encoding).opened()
    stream = server.wire.open_stream("Count", [2], int)
    assert server.written() == [StreamInvocation("Count", [2], stream)]
    assert server.says(StreamItem(stream, 0), StreamItem(stream, 1), Completion(stream)) == [
        Item(stream, 0),
        Item(stream, 1),
        Ended(stream),
    ]
    stream = server.wire.open_stream("Count", [2])
    assert server.says(Completion(stream, error="ran out")) == [Ended(stream, "ran out")]


def test_a_cancelled_stream_tells_the_server_and_ignores_what_is_under_way() -> None:
    server = Server().opened()
    stream = server.wire.open_stream("Count", [2])
    server.written()
    server.wire.cancel(stream)
    assert server.written() == [CancelInvocation(stream)]
    assert server.says(StreamItem(stream, 0), Completion(stream)) == []


def test_an_unfit_item_ends_its_stream_and_no_other() -> None:
    server = Server().opened()
    stream = server.wire.open_stream("Count", [], int)
    other = server.wire.open_stream("Count", [], int)
    server.written()
    events = server.says(StreamItem(stream, "x"), StreamItem(stream, "y"), StreamItem(other, 1))
    ended = events[0]
    assert isinstance(ended, Ended)
    assert (ended.id, ended.unfit) == (stream, True)
    assert events[1:] == [Item(other, 1)]
    assert server.written() == [CancelInvocation(stream)]


def test_a_stream_of_ours_goes_beside_the_arguments() -> None:
    server = Server().opened()
    upload = server.wire.new_upload()
    call = server.wire.invoke("Sum", [], stream_ids=[upload])
    server.wire.upload(upload, 1)
    server.wire.finish_upload(upload)
    other = server.wire.new_upload()
    server.wire.finish_upload(other, "source broke")
    assert len({upload, call, other}) == 3
    assert server.written() == [
        Invocation("Sum", [], call, (upload,)),
        StreamItem(upload, 1),
        Completion(upload),
        Completion(other, error="source broke"),
    ]


# --- calls of the server's ---


@each_codec
def test_calls_of_the_server_arrive_in_order(encoding: Codec) -> None:
    types = Types()
    types.expect("tick", str, float)
    server = Server(encoding, types=types).opened()
    calls = [Invocation("Tick", ("NQ", float(number))) for number in range(5)]
    assert server.says(*calls) == calls
    assert server.says(calls[0], Ping(), calls[1]) == calls[:2]


def test_a_waiting_server_is_answered_once() -> None:
    server = Server().opened()
    assert server.says(Invocation("Ask", [], "s1"), Invocation("Ask", [], "s2")) == [
        Invocation("Ask", [], "s1"),
        Invocation("Ask", [], "s2"),
    ]
    assert server.wire.complete("s1", {"a": 1})
    assert server.wire.complete("s2", error="no handler")
    assert not server.wire.complete("s1", 2)
    assert not server.wire.complete("never", 2)
    assert server.written() == [Completion("s1", {"a": 1}), Completion("s2", error="no handler")]


def test_an_answer_that_cannot_be_sent_can_be_replaced_by_an_error() -> None:
    server = Server().opened()
    server.says(Invocation("Ask", [], "s1"))
    with pytest.raises(ConfigError):
        server.wire.complete("s1", object())
    assert server.wire.complete("s1", error="not to be sent")


def test_a_server_that_no_longer_waits_says_so() -> None:
    server = Server().opened()
    server.says(Invocation("Ask", [], "s1"))
    assert server.says(CancelInvocation("s1")) == [Cancelled("s1")]
    assert not server.wire.complete("s1", 1)


@each_codec
def test_a_call_that_does_not_fit_is_answered_at_once(encoding: Codec) -> None:
    types = Types()
    types.expect("Ask", int)
    server = Server(encoding, types=types).opened()
    waiting, silent, fine = server.says(
        Invocation("Ask", [], "s1"), Invocation("Ask", ["x"]), Invocation("Ask", [1])
    )
    assert isinstance(waiting, Unbound)
    assert isinstance(silent, Unbound)
    assert fine == Invocation("Ask", (1,))
    (answer,) = server.written()
    assert isinstance(answer, Completion)
    assert answer.id == "s1"
    assert "0 argument(s)" in (answer.error or "")


def test_a_server_that_wants_a_stream_is_told_that_there_is_none() -> None:
    server = Server().opened()
    (event,) = server.says(StreamInvocation("Ask", [], "s1"))
    assert event == Unbound(BindingFailure("Ask", "s1", "a client offers no streams", True))
    assert server.written() == [Completion("s1", error="Ask: a client offers no streams")]


# --- ends ---


@pytest.mark.parametrize("again", [False, True])
@each_codec
def test_a_close_of_the_server_says_whether_to_come_back(encoding: Codec, again: bool) -> None:
    server = Server(encoding).opened()
    events = server.says(Close("bye", again), Invocation("T", []))
    assert events == [Closed(CloseReason.SAID, again, "bye")]
    assert server.says(Ping()) == []
    assert server.wire.lost(2.0) == []


def test_a_broken_protocol_ends_it_with_a_last_word() -> None:
    server = Server().opened()
    called, closed = server.wire.receive(b'{"type":1,"target":"T","arguments":[]}\x1e[]\x1e', 1.0)
    assert called == Invocation("T", [])
    assert isinstance(closed, Closed)
    assert (closed.reason, closed.allow_reconnect) == (CloseReason.MALFORMED, True)
    assert server.written() == [Close(closed.error)]


@each_codec
def test_text_that_no_codec_can_hold_ends_it_behind_a_plain_call_too(encoding: Codec) -> None:
    server = Server(encoding).opened()
    for number in range(3):
        assert server.says(Invocation("T", [number])) == [Invocation("T", [number])]
    (closed,) = server.wire.receive("\ud800", 1.0)
    assert isinstance(closed, Closed)
    assert closed.reason is CloseReason.MALFORMED
    assert server.wire.receive("x", 1.0) == []


@each_codec
def test_plain_calls_among_others_and_in_pieces_stay_in_order(encoding: Codec) -> None:
    server = Server(encoding).opened()
    plain, asked = Invocation("T", [1]), Invocation("T", [2], "s1")
    frame = encoding.encode(plain)
    for _ in range(2):
        assert server.says(plain) == [plain]
        assert server.says(Completion("9"), plain) == [Stray("completion", "9"), plain]
        assert server.wire.receive(frame[:9], 1.0) == []
        assert server.wire.receive(frame[9:] + frame, 1.0) == [plain, plain]
        assert server.says(asked) == [asked]
        assert server.wire.complete("s1", 1)


def test_a_lost_transport_ends_it() -> None:
    server = Server().opened()
    assert not server.wire.can_reattach
    assert server.wire.lost(1.0, "reset") == [Closed(CloseReason.LOST, True, "reset")]
    assert server.wire.lost(2.0) == []


def test_a_transport_that_is_lost_during_the_handshake_ends_it() -> None:
    wire = HubWire(JSON, stateful=True)
    wire.open(0.0)
    assert wire.lost(1.0) == [Closed(CloseReason.LOST, True)]


def test_our_close_is_told_to_an_open_server_once() -> None:
    server = Server().opened()
    assert server.wire.close() == [Closed(CloseReason.OURS, False)]
    assert server.written() == [Close()]
    assert server.wire.close() == []
    early = HubWire(JSON)
    assert early.close("never mind") == [Closed(CloseReason.OURS, False, "never mind")]
    assert early.take() == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_saying_something_outside_of_a_conversation_is_refused(moment: str) -> None:
    server = Server()
    if moment == "after":
        server.opened()
        server.wire.close()
        server.written()
    for say in (
        lambda wire: wire.send("T", []),
        lambda wire: wire.invoke("T", [], int),
        lambda wire: wire.open_stream("T", []),
        lambda wire: wire.upload("1", 1),
        lambda wire: wire.finish_upload("1"),
    ):
        with pytest.raises(ClosedError, match="not open"):
            say(server.wire)
    server.wire.cancel("1")
    assert not server.wire.complete("s1")
    assert server.wire.take() == []


def test_a_stream_that_is_cancelled_after_the_end_says_nothing() -> None:
    server = Server().opened()
    stream = server.wire.open_stream("Count", [])
    server.written()
    server.wire.lost(1.0)
    server.wire.cancel(stream)
    assert server.written() == []


def test_without_stateful_reconnect_its_messages_mean_nothing() -> None:
    server = Server().opened()
    assert server.says(Sequence(5), Ack(7), Ping()) == []
    assert not server.wire.blocked
    assert server.wire.phase is Phase.OPEN


def test_a_call_larger_than_allowed_ends_it() -> None:
    server = Server(max_message_bytes=100).opened()
    (closed,) = server.says(Invocation("T", ["x" * 100]))
    assert isinstance(closed, Closed)
    assert "100" in closed.error


def test_a_struct_is_a_value_like_any_other() -> None:
    class Order(msgspec.Struct):
        size: int

    server = Server().opened()
    call = server.wire.invoke("Place", [Order(2)], Order)
    assert server.written() == [Invocation("Place", [{"size": 2}], call)]
    assert server.says(Completion(call, {"size": 3})) == [Answered(call, Order(3))]


@each_codec
def test_nothing_is_kept_of_a_call_that_is_over(encoding: Codec) -> None:
    types = Types()
    server = Server(encoding, types=types).opened()
    ids = [server.wire.invoke("Add", [1], int) for _ in range(2)]
    ids.append(server.wire.open_stream("Count", [1], int))
    assert [types.result(call_id) for call_id in ids] == [int] * 3
    server.says(Completion(ids[0], 1), Completion(ids[2]))
    server.wire.cancel(ids[1])
    assert [types.result(call_id) for call_id in ids] == [Any] * 3
