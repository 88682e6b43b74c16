"""The words of the bus, and that nothing which must arrive is forgotten or overtaken, whatever breaks when."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ProtocolError
from keepline.hub.bus_wire import (
    LONGEST_FRAME,
    FromPublisher,
    Hello,
    Publish,
    Sending,
    Stored,
    Turned,
    Welcome,
    frame,
    frame_length,
    parse_from_hub,
    parse_from_publisher,
)
from keepline.hub.outgoing import Added, Outgoing
from keepline.hub.publishing import encode_draft


def words(data: bytes) -> list[FromPublisher]:
    found = []
    while data:
        length = frame_length(data[:4])
        found.append(parse_from_publisher(data[4 : 4 + length]))
        data = data[4 + length :]
    return found


def add(sending: Sending, channel: str, number: int, **more: object) -> Added:
    line = encode_draft(channel, "t", b"%d" % number, id=f"m{number}")
    return sending.add(channel, "t", None, line, **more)


def sequences(data: bytes) -> list[int]:
    return [word.seq for word in words(data) if isinstance(word, Publish)]


@pytest.mark.parametrize("word", [Welcome(1, ("alerts",)), Stored((1, 2)), Turned(3, "no")])
def test_what_the_hub_says_arrives_as_it_was_said(word: object) -> None:
    assert parse_from_hub(frame(word)[4:]) == word


def test_a_publishers_line_arrives_as_it_was_written() -> None:
    assert words(frame(Hello(1, "daemon"))) == [Hello(1, "daemon")]
    sending = Sending(Outgoing())
    add(sending, "alerts", 7)
    (word,) = words(sending.take())
    assert isinstance(word, Publish)
    assert (word.seq, word.answer, word.draft.id) == (1, True, "m7")
    assert bytes(word.draft.data) == b"7"


@pytest.mark.parametrize("head", [b"\0\0\0\0", (LONGEST_FRAME + 1).to_bytes(4, "big"), b"GET "])
def test_a_length_that_no_frame_has_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError, match="a frame of"):
        frame_length(head)


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"{", b"[]", b'{"op":"other"}', b'{"op":"publish","seq":1}', b"\xff\xff", b"nul"),
        b'{"x":' * 100_000,
    ],
    ids=["empty", "half", "list", "other", "lacking", "binary", "cut", "deep"],
)
def test_what_is_no_word_ends_the_connection(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="no word"):
        parse_from_publisher(payload)
    with pytest.raises(ProtocolError, match="no word"):
        parse_from_hub(payload)


def test_what_may_be_dropped_is_forgotten_once_it_was_written() -> None:
    sending = Sending(Outgoing())
    add(sending, "routing-metrics", 1)
    (word,) = words(sending.take())
    assert isinstance(word, Publish)
    assert not word.answer
    assert len(sending) == 0


def test_somebody_who_waits_gets_an_answer_on_any_channel() -> None:
    sending = Sending(Outgoing())
    add(sending, "routing-metrics", 1, waiter="somebody")
    sending.take()
    assert [item.waiter for item in sending.stored([1])] == ["somebody"]


def test_the_window_bounds_what_is_under_way() -> None:
    sending = Sending(Outgoing(), window=3)
    for number in range(5):
        add(sending, "alerts", number)
    assert sequences(sending.take()) == [1, 2, 3]
    assert sending.take() == b""
    sending.stored([2])
    assert sequences(sending.take()) == [4]
    assert (sending.under_way, len(sending)) == (3, 4)


def test_what_was_refused_is_not_sent_again() -> None:
    sending = Sending(Outgoing())
    add(sending, "alerts", 1)
    add(sending, "alerts", 2)
    sending.take()
    refused = sending.refused(1)
    assert refused is not None
    assert refused.sequence == 1
    assert sending.refused(1) is None
    sending.connected()
    assert sequences(sending.take()) == [2]


def test_an_answer_to_something_else_changes_nothing() -> None:
    sending = Sending(Outgoing())
    assert sending.stored([5, 6]) == []


def test_giving_up_names_everything_that_is_not_known_to_be_stored() -> None:
    sending = Sending(Outgoing())
    for number in range(3):
        add(sending, "alerts", number)
    sending.take(most=1)
    add(sending, "routing-metrics", 4)
    assert sorted(item.sequence for item in sending.left()) == [1, 2, 3, 4]
    assert len(sending) == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["alerts", "routing-metrics"])),
        st.tuples(st.just("take"), st.integers(1, 5)),
        st.tuples(st.just("lose"), st.just(0)),
        st.tuples(st.just("answer"), st.integers(1, 5)),
    ),
    max_size=60,
)


class Disk:
    """A hub that knows messages by their id, as the journal does."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.unanswered: list[int] = []

    def take(self, word: Publish) -> None:
        number = msgspec.json.decode(word.draft.data)
        if word.draft.channel == "alerts":
            if number not in self.kept:
                self.kept.append(number)
            self.unanswered.append(word.seq)


@given(STEPS)
def test_whatever_breaks_everything_that_must_arrive_does_once_and_in_order(
    steps: list[tuple[str, object]],
) -> None:
    sending, disk, given_in, number = Sending(Outgoing(), window=4), Disk(), [], 0
    for what, how in [*steps, ("lose", 0), *[("take", 5), ("answer", 5)] * 60]:
        match what, how:
            case "add", str(channel):
                number += 1
                add(sending, channel, number)
                if channel == "alerts":
                    given_in.append(number)
            case "take", int(most):
                for word in words(sending.take(most=most)):
                    assert isinstance(word, Publish)
                    disk.take(word)
            case "answer", int(most):
                sending.stored(disk.unanswered[:most])
                del disk.unanswered[:most]
            case "lose", _:
                disk.unanswered.clear()
                sending.connected()
    assert disk.kept == given_in
    assert len(sending) == 0
