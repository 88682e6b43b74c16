"""A conversation that outlives its transport: what is replayed, dropped, acknowledged and refused."""

from typing import Any

import pytest

from keepline.errors import Closed as ClosedError
from keepline.stream.codec import codec
from keepline.stream.handshake import write_response
from keepline.stream.messages import (
    Ack,
    Close,
    Completion,
    Invocation,
    Message,
    Ping,
    Sequence,
    StreamItem,
)
from keepline.stream.wire import HubWire, Phase
from keepline.stream.wire_events import (
    Answered,
    Closed,
    CloseReason,
    HandshakeDone,
    Resumed,
    WireEvent,
)

JSON = codec("json")


class Server:
    """The other end of a stateful conversation."""

    def __init__(self, **options: Any) -> None:
        self.wire = HubWire(JSON, stateful=True, **options)
        self.wire.open(0.0)
        self.wire.take()
        assert self.wire.receive(write_response(), 0.0) == [HandshakeDone()]
        assert self.written() == [Ping()]

    def says(self, *messages: Message, now: float = 1.0) -> list[WireEvent]:
        return self.wire.receive(b"".join(map(JSON.encode, messages)), now)

    def written(self) -> list[Any]:
        return JSON.decoder().feed(b"".join(self.wire.take()))

    def cut(self, now: float = 2.0) -> None:
        assert self.wire.can_reattach
        assert self.wire.lost(now, "reset") == []
        assert self.wire.phase is Phase.LOST
        assert self.wire.can_reattach


def call(number: int) -> Invocation:
    return Invocation("T", [number])


def test_what_was_not_acknowledged_is_said_again_behind_its_number() -> None:
    server = Server()
    for number in range(4):
        server.wire.send("T", [number])
    assert server.written() == [call(0), call(1), call(2), call(3)]
    assert server.says(Ack(2)) == []
    server.cut()
    server.wire.reattached(3.0)
    assert server.written() == [Sequence(3), call(2), call(3)]
    assert server.says(Sequence(1)) == [Resumed()]
    server.wire.send("T", [4])
    assert server.written() == [call(4)]


def test_what_was_never_written_is_said_once() -> None:
    server = Server()
    server.wire.send("T", [0])  # not taken before the cut
    server.cut()
    server.wire.send("T", [1])  # while there is no transport
    assert server.written() == []
    server.wire.reattached(3.0)
    assert server.written() == [Sequence(1), call(0), call(1)]


def test_with_everything_acknowledged_the_number_is_the_next() -> None:
    server = Server()
    server.wire.send("T", [0])
    server.written()
    server.says(Ack(1))
    server.cut()
    server.wire.reattached(3.0)
    assert server.written() == [Sequence(2)]


def test_what_the_server_says_again_is_delivered_once() -> None:
    server = Server()
    assert server.says(call(1), call(2)) == [call(1), call(2)]
    server.cut()
    server.wire.reattached(3.0)
    events = server.says(Sequence(2), call(2), call(3), Ping(), now=3.0)
    assert events == [Resumed(), call(3)]


def test_messages_before_the_servers_number_are_heard() -> None:
    server = Server()
    server.says(call(1))
    server.cut()
    server.wire.reattached(3.0)
    assert server.says(call(2), now=3.0) == [call(2)]
    assert server.says(Sequence(3), call(3), now=3.0) == [Resumed(), call(3)]


def test_calls_and_streams_survive() -> None:
    server = Server()
    sent = server.wire.invoke("Add", [1])
    server.written()
    server.cut()
    server.wire.reattached(3.0)
    assert server.written() == [Sequence(1), Invocation("Add", [1], sent)]
    assert server.says(Sequence(1), Completion(sent, 2), now=3.0) == [Resumed(), Answered(sent, 2)]


def test_half_a_message_of_the_old_transport_is_forgotten() -> None:
    server = Server()
    server.wire.receive(b'{"type":1,"tar', 1.0)
    server.cut()
    server.wire.reattached(3.0)
    assert server.says(Sequence(1), call(1), now=3.0) == [Resumed(), call(1)]


@pytest.mark.parametrize("number", [0, -1, 3])
def test_a_number_that_cannot_be_ends_it(number: int) -> None:
    server = Server()
    server.says(call(1))
    server.cut()
    server.wire.reattached(3.0)
    server.written()
    (closed,) = server.says(Sequence(number), call(2), now=3.0)
    assert isinstance(closed, Closed)
    assert (closed.reason, closed.allow_reconnect) == (CloseReason.MALFORMED, True)
    assert server.written() == [Close(closed.error)]
    assert not server.wire.can_reattach


def test_a_failed_reattach_ends_it() -> None:
    server = Server()
    server.cut()
    assert server.wire.lost(3.0, "404") == [Closed(CloseReason.LOST, True, "404")]
    assert server.wire.phase is Phase.CLOSED


def test_a_transport_that_is_lost_before_the_server_went_on_is_not_replaced_again() -> None:
    server = Server()
    server.cut()
    server.wire.reattached(3.0)
    assert not server.wire.can_reattach
    assert server.wire.lost(4.0, "again") == [Closed(CloseReason.LOST, True, "again")]


def test_a_transport_that_is_lost_later_is_replaced_again() -> None:
    server = Server()
    for now in (3.0, 5.0):
        server.cut(now)
        server.wire.reattached(now)
        assert server.says(Sequence(1), now=now) == [Resumed()]


def test_a_transport_that_the_server_closed_is_not_replaced() -> None:
    server = Server()
    assert server.wire.lost(1.0, "1000", clean=True) == [Closed(CloseReason.LOST, True, "1000")]
    server = Server()
    server.says(Close(allow_reconnect=True))
    assert not server.wire.can_reattach


def test_only_what_is_lost_is_reattached() -> None:
    with pytest.raises(ClosedError, match="nothing is lost"):
        Server().wire.reattached(1.0)


def test_between_two_transports_nothing_is_timed_or_heard() -> None:
    server = Server()
    server.says(call(1))
    server.cut()
    assert server.wire.deadline is None
    assert server.wire.expire(1e6) == []
    assert server.says(call(2)) == []
    server.wire.reattached(1e6)
    assert server.wire.expire(1e6) == []
    assert server.wire.phase is Phase.OPEN


def test_an_acknowledgement_goes_out_once_a_second_at_most_and_only_for_what_is_counted() -> None:
    server = Server()
    server.says(Ping(), now=1.0)
    assert server.wire.deadline == 15.0
    server.says(call(1), now=2.0)
    assert server.wire.deadline == 3.0
    server.says(call(2), now=2.5)
    server.wire.expire(2.9)
    assert server.written() == []
    server.wire.expire(3.0)
    assert server.written() == [Ack(2)]
    server.says(call(3), now=3.1)
    assert server.written() == []
    server.says(call(4), now=4.2)  # due, and noticed without a timer
    assert server.written() == [Ack(4)]


def test_a_flood_is_acknowledged_before_the_servers_buffer_is_full() -> None:
    server = Server(replay_bytes=1000)
    big = Invocation("T", ["x" * 150])
    server.says(big, big, now=1.0)
    assert server.written() == []
    server.says(big, big, now=1.0)
    assert server.written() == [Ack(4)]


def test_senders_are_asked_to_wait_while_the_buffer_is_full() -> None:
    server = Server(replay_bytes=100)
    assert not server.wire.blocked
    server.wire.send("T", ["x" * 100])
    assert server.wire.blocked
    server.says(Ack(1))
    assert not server.wire.blocked


def test_pings_and_acknowledgements_are_not_said_again() -> None:
    server = Server()
    server.says(call(1), now=1.0)
    server.wire.expire(2.0)
    server.wire.expire(40.0)
    server = Server()
    server.says(call(1), now=1.0)
    server.wire.expire(16.0)
    server.cut(17.0)
    server.wire.reattached(17.0)
    assert server.written() == [Sequence(1)]


def test_an_item_that_does_not_fit_was_counted_all_the_same() -> None:
    server = Server()
    stream = server.wire.open_stream("Count", [], int)
    server.says(StreamItem(stream, "x"), now=1.0)
    server.wire.take()
    server.wire.expire(2.0)
    assert server.written() == [Ack(1)]
