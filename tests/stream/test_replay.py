"""Stateful reconnect: counters, acknowledgements and the bytes that are said again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.stream.messages import Ack
from keepline.stream.replay import MessageBuffer


def filled(*messages: bytes, limit: int = 100) -> MessageBuffer:
    buffer = MessageBuffer(limit)
    for message in messages:
        buffer.sent(message)
    return buffer


def test_nothing_sent_begins_at_one_with_nothing_to_say() -> None:
    assert MessageBuffer().begin() == (1, [])


@pytest.mark.parametrize(
    ("acknowledged", "first", "again"),
    [
        ([], 1, [b"a", b"b", b"c"]),
        ([1], 2, [b"b", b"c"]),
        ([2, 1, 2], 3, [b"c"]),
        ([3], 4, []),
        ([99], 4, []),
        ([0], 1, [b"a", b"b", b"c"]),
        ([-5], 1, [b"a", b"b", b"c"]),
    ],
)
def test_after_a_new_transport_begins_with_the_first_that_is_not_acknowledged(
    acknowledged: list[int], first: int, again: list[bytes]
) -> None:
    buffer = filled(b"a", b"b", b"c")
    for number in acknowledged:
        buffer.acknowledged(number)
    assert buffer.begin() == (first, again)
    assert buffer.unacknowledged == len(again)


def test_senders_wait_from_the_limit_until_enough_is_acknowledged() -> None:
    buffer = filled(b"x" * 60)
    assert not buffer.full
    buffer.sent(b"y" * 40)
    assert buffer.full
    buffer.acknowledged(1)
    assert not buffer.full


def test_what_arrives_again_is_dropped() -> None:
    buffer = MessageBuffer()
    assert [buffer.received(0.0) for _ in range(3)] == [True, True, True]
    assert buffer.resume(2) is None
    assert [buffer.received(0.0) for _ in range(3)] == [False, False, True]


def test_a_peer_that_goes_on_where_it_was_loses_nothing() -> None:
    buffer = MessageBuffer()
    buffer.received(0.0)
    assert buffer.resume(2) is None
    assert buffer.received(0.0)


@pytest.mark.parametrize(
    ("number", "words"), [(0, "below 1"), (-3, "below 1"), (3, "leaves a gap: 2")]
)
def test_a_number_that_cannot_be_is_refused(number: int, words: str) -> None:
    buffer = MessageBuffer()
    buffer.received(0.0)
    reason = buffer.resume(number)
    assert reason is not None
    assert words in reason
    assert buffer.received(0.0)  # and changes nothing


def test_what_was_acknowledged_need_not_be_said_again_when_a_replay_is_cut_off() -> None:
    buffer = MessageBuffer()
    buffer.received(0.0)
    assert buffer.resume(1) is None
    assert buffer.due(1.0) == Ack(1)
    assert buffer.resume(2) is None  # the replay of 1 never came
    assert buffer.received(1.0)


def test_an_acknowledgement_goes_out_a_second_after_the_first_message() -> None:
    buffer = MessageBuffer()
    assert (buffer.deadline, buffer.due(100.0)) == (None, None)
    buffer.received(10.0)
    buffer.received(10.9)
    assert buffer.deadline == 11.0
    assert buffer.due(10.999) is None
    assert buffer.due(11.0) == Ack(2)
    assert (buffer.deadline, buffer.due(20.0)) == (None, None)


def test_what_arrived_again_is_acknowledged_again() -> None:
    buffer = MessageBuffer()
    buffer.received(0.0)
    assert buffer.due(1.0) == Ack(1)
    buffer.resume(1)
    buffer.received(5.0)
    assert buffer.due(6.0) == Ack(1)


def test_an_acknowledgement_goes_out_at_once_when_the_peers_buffer_is_half_full() -> None:
    buffer = MessageBuffer(100)
    buffer.received(1.0, 49)
    assert buffer.due(1.0) is None
    buffer.received(1.1, 1)
    assert buffer.due(1.1) == Ack(2)
    buffer.received(1.2, 49)
    assert buffer.due(1.2) is None


# what may happen between two ends: a message sent, the transport carries k messages, acknowledges, or is replaced
steps = st.lists(st.tuples(st.sampled_from("smar"), st.integers(0, 4)), max_size=60)


@given(steps)
def test_however_the_transport_is_replaced_each_message_is_delivered_once_and_in_order(
    happenings: list[tuple[str, int]],
) -> None:
    sender, receiver = MessageBuffer(), MessageBuffer()
    under_way: list[bytes] = []
    delivered: list[bytes] = []
    count = 0

    def carry(number: int) -> None:
        for _ in range(min(number, len(under_way))):
            message = under_way.pop(0)
            if receiver.received(0.0):
                delivered.append(message)

    def replace() -> None:
        first, again = sender.begin()
        assert receiver.resume(first) is None
        under_way[:] = again

    for what, number in happenings:
        if what == "s":
            sender.sent(b"%d" % count)
            under_way.append(b"%d" % count)
            count += 1
        elif what == "m":
            carry(number)
        elif what == "a" and (ack := receiver.due(2.0)) is not None:
            sender.acknowledged(ack.sequence_id)
        elif what == "r":
            replace()
    replace()
    carry(count)
    assert delivered == [b"%d" % number for number in range(count)]
