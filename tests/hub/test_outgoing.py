"""What a publisher holds: bounded by the policy of each channel, in order, nothing lost that is not said."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.hub.outgoing import Added, Outgoing

POLICIES = {"never": "never", "newest": "conflate"}


def queue(**options) -> Outgoing:
    return Outgoing(POLICIES, **options)


def lines(items) -> list[bytes]:
    return [item.line for item in items]


def test_what_must_arrive_leaves_first_each_in_order() -> None:
    held = queue()
    for number, channel in enumerate(["plain", "never", "plain", "never"]):
        assert held.add(channel, "t", None, b"%d" % number) is Added.QUEUED
    assert held.oldest == 1
    assert lines(held.take(3, 1000)) == [b"1", b"3", b"0"]
    assert lines(held.take(3, 1000)) == [b"2"]
    assert (held.take(3, 1000), held.oldest, len(held)) == ([], None, 0)


def test_only_the_newest_of_a_key_waits() -> None:
    held = queue()
    assert held.add("newest", "t", "a", b"a1") is Added.QUEUED
    assert held.add("newest", "t", "b", b"b1") is Added.QUEUED
    assert held.add("newest", "t", "a", b"a2") is Added.CONFLATED
    assert held.add("newest", "other", "a", b"o1") is Added.QUEUED
    assert held.add("newest", "t", None, b"n1") is Added.QUEUED
    assert held.add("newest", "t", None, b"n2") is Added.QUEUED
    assert lines(held.take(9, 1000)) == [b"b1", b"a2", b"o1", b"n1", b"n2"]


def test_the_oldest_leaves_when_there_is_no_room() -> None:
    held = queue(capacity=2)
    assert [held.add("plain", "t", None, b"%d" % n) for n in range(3)][-1] is Added.DROPPED
    assert held.dropped == 1
    assert lines(held.take(9, 1000)) == [b"1", b"2"]


def test_what_must_arrive_is_refused_when_there_is_no_room_and_drops_nothing() -> None:
    held = queue(durable_capacity=2, capacity=1)
    held.add("never", "t", None, b"1")
    held.add("never", "t", None, b"2")
    held.add("plain", "t", None, b"p")
    assert held.add("never", "t", None, b"3") is Added.REFUSED
    assert lines(held.take(9, 1000)) == [b"1", b"2", b"p"]


def test_bytes_are_bounded_too() -> None:
    held = queue(most_bytes=10)
    assert held.add("never", "t", None, b"x" * 10) is Added.QUEUED
    assert held.add("never", "t", None, b"x") is Added.REFUSED
    assert held.add("plain", "t", None, b"x" * 6) is Added.QUEUED
    assert held.add("plain", "t", None, b"y" * 6) is Added.DROPPED
    assert held.add("plain", "t", None, b"y" * 11) is Added.REFUSED
    assert held.add("newest", "t", "k", b"n") is Added.QUEUED
    assert held.add("newest", "t", "k", b"m" * 4) is Added.CONFLATED


def test_a_batch_is_bounded_by_bytes_but_one_message_goes_alone() -> None:
    held = queue()
    for size in (50, 3, 3):
        held.add("plain", "t", None, b"x" * size)
    assert [len(item.line) for item in held.take(9, 8)] == [50]
    assert [len(item.line) for item in held.take(9, 8)] == [3, 3]


def test_settings_without_room_or_with_an_unknown_policy_are_refused() -> None:
    with pytest.raises(ConfigError):
        queue(capacity=0)
    with pytest.raises(ConfigError, match="conflate, drop-oldest, never"):
        Outgoing({"a": "drop-newest"})
    assert "0 that must arrive" in repr(queue())


@given(
    st.lists(
        st.tuples(st.sampled_from(["never", "newest", "plain"]), st.sampled_from("ab"))
        | st.integers(1, 4),
        max_size=60,
    )
)
def test_every_message_is_sent_or_accounted_for(steps) -> None:
    held = queue(capacity=3, durable_capacity=4)
    told: Counter[Added] = Counter()
    sent: list[bytes] = []
    number = 0
    for step in steps:
        if isinstance(step, int):
            sent += lines(held.take(step, 1000))
            continue
        channel, key = step
        number += 1
        told[held.add(channel, "t", key, f"{channel} {number:04}".encode())] += 1
        assert len(held) <= 7
    sent += lines(held.take(1000, 1 << 20))
    assert len(sent) == len(set(sent))
    assert len(sent) + told[Added.CONFLATED] + held.dropped + told[Added.REFUSED] == number
    for channel in (b"never", b"newest", b"plain"):
        own = [line for line in sent if line.startswith(channel)]
        assert own == sorted(own)
