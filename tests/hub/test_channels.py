"""Channels count, keep and know what was missed."""

from typing import Any
from unittest.mock import ANY

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.hub.channels import UNSEEN, Channel, Gap, Policy
from keepline.hub.messages import Message, Stamps

STAMPS = Stamps()


def channel(policy: Policy = Policy.DROP_OLDEST, **more: Any) -> Channel:
    return Channel("c", policy, epoch="e1", **more)


def put(channel: Channel, *values: Any, now: float = 0.0, key: str = "", own: str = "") -> None:
    for value in values:
        data = msgspec.json.encode(value)
        channel.deliver(channel.stamp("t", data, now, STAMPS, key=key, own=own))


def offsets(messages: list[Message] | None) -> list[int] | None:
    return None if messages is None else [message.offset for message in messages]


def items(text: bytes) -> list[tuple[str, Any]]:
    return [(item["key"], item["data"]) for item in msgspec.json.decode(text)["data"]["items"]]


# --- resume ---


@pytest.mark.parametrize(
    ("policy", "position", "gap"),
    [
        # twenty were published, the last ten are here
        (Policy.DROP_OLDEST, ("e1", 20), None),
        (Policy.DROP_OLDEST, ("e1", 10), None),
        (Policy.DROP_OLDEST, ("e1", 9), Gap(10, 20, "retention")),
        (Policy.DROP_OLDEST, ("e1", 0), Gap(1, 20, "retention")),
        (Policy.DROP_OLDEST, ("e1", 21), Gap(None, 20, "future")),
        (Policy.DROP_OLDEST, ("e0", 20), Gap(None, 20, "epoch")),
        (Policy.NEVER, ("e1", 10), None),
        (Policy.NEVER, ("e1", 9), Gap(10, 10, "retention")),
        (Policy.NEVER, ("e1", 3), Gap(4, 10, "retention")),
        (Policy.NEVER, ("e2", 3), Gap(None, 20, "epoch")),
        (Policy.CONFLATE, ("e1", 0), None),
        (Policy.CONFLATE, ("e1", 20), None),
        (Policy.CONFLATE, ("e1", 99), Gap(None, 20, "future")),
        (Policy.CONFLATE, ("e9", 1), Gap(None, 20, "epoch")),
    ],
)
def test_a_position_is_resumed_or_what_is_lost_is_said(
    policy: Policy, position: tuple[str, int], gap: Gap | None
) -> None:
    target = channel(policy, history_count=10)
    put(target, *range(20))
    assert target.resume(*position, now=0.0) == gap


def test_what_a_journal_has_can_be_resumed() -> None:
    target = channel(Policy.NEVER, history_count=10)
    put(target, *range(20))
    target.retained = 4
    assert target.first() == 4
    assert target.resume("e1", 3, 0.0) is None
    assert target.resume("e1", 2, 0.0) == Gap(3, 3, "retention")


def test_what_is_too_old_cannot_be_resumed() -> None:
    target = channel(history_age=60.0)
    put(target, 1, now=0.0)
    put(target, 2, now=50.0)
    assert target.resume("e1", 0, 60.0) is None
    assert target.resume("e1", 0, 61.0) == Gap(1, 2, "retention")
    assert target.resume("e1", 1, 61.0) is None
    assert target.resume("e1", 1, 999.0) == Gap(2, 2, "retention")
    assert target.resume("e1", 2, 999.0) is None


def test_a_gap_knows_how_many_when_anybody_can() -> None:
    assert Gap(3, 7, "slow").count == 5
    assert Gap(None, 7, "epoch").count is None


# --- state ---


def test_changes_are_the_newest_of_each_key_in_order() -> None:
    target = channel(Policy.CONFLATE)
    for key in "abcab":
        put(target, key, key=key)
    assert offsets(target.changes(0)) == [3, 4, 5]
    assert offsets(target.changes(3)) == [4, 5]
    assert offsets(target.changes(5)) == []
    assert target.changes(UNSEEN) is None


def test_a_key_that_had_to_go_makes_those_who_missed_it_read_the_whole() -> None:
    target = channel(Policy.CONFLATE, max_keys=2)
    for key in "abc":
        put(target, key, key=key)
    assert target.evicted == 1
    assert list(target.latest) == ["b", "c"]
    assert target.changes(0) is None
    assert offsets(target.changes(1)) == [2, 3]
    assert target.resume("e1", 0, 0.0) == Gap(1, 3, "retention")


def test_a_snapshot_is_the_whole_state_without_the_keys_that_are_gone() -> None:
    target = channel(Policy.CONFLATE)
    put(target, 1, key="a")
    put(target, 2, key="b")
    put(target, None, key="a")
    text = msgspec.json.decode(target.snapshot(0.0, STAMPS))
    assert (text["type"], text["offset"], text["epoch"]) == ("snapshot", 3, "e1")
    (item,) = text["data"]["items"]
    assert item == {"type": "t", "key": "b", "offset": 2, "timestamp": ANY, "data": 2}
    assert text["data"]["partial"] is False
    assert offsets(target.changes(1)) == [2, 3], "who knew the key is told that it is gone"


def test_a_snapshots_items_keep_their_own_time_and_id() -> None:
    target = channel(Policy.NEVER)
    put(target, "a", now=7.0, own="alert-1")
    live = msgspec.json.decode(target.history[0].text)
    (item,) = msgspec.json.decode(target.snapshot(3600.0, STAMPS))["data"]["items"]
    assert (item["id"], item["timestamp"]) == ("alert-1", live["timestamp"])


def test_a_snapshot_is_written_once_per_state() -> None:
    target = channel(Policy.CONFLATE)
    assert items(target.snapshot(0.0, STAMPS)) == []
    put(target, 1)
    text = target.snapshot(0.0, STAMPS)
    assert target.snapshot(5.0, STAMPS) is text
    put(target, 2)
    assert items(target.snapshot(5.0, STAMPS)) == [("", 2)]


@pytest.mark.parametrize("policy", [Policy.DROP_OLDEST, Policy.NEVER])
@pytest.mark.parametrize(("count", "shown"), [(1, [9]), (3, [7, 8, 9]), (99, list(range(10)))])
def test_the_snapshot_of_a_queue_is_its_newest_messages(
    policy: Policy, count: int, shown: list[int]
) -> None:
    target = channel(policy, snapshot_count=count)
    put(target, *range(10))
    assert [value for _, value in items(target.snapshot(0.0, STAMPS))] == shown


# --- bounds ---


def test_the_history_is_bounded_by_count_and_by_size() -> None:
    target = channel(history_count=5)
    put(target, *range(20))
    assert (target.oldest(), len(target.history)) == (16, 5)
    target = channel(history_bytes=1000)
    put(target, *["x" * 200] * 20)
    assert sum(len(message.text) for message in target.history) <= 1000
    put(target, "x" * 5000)
    assert offsets(list(target.history)) == [21], "the newest stays however large"


def test_ids_are_remembered_up_to_a_bound() -> None:
    target = channel(max_ids=2)
    for own in "abc":
        put(target, own, own=own)
    assert target.known("a") is None
    assert offsets([m for m in (target.known("b"), target.known("c")) if m]) == [2, 3]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40)), max_size=60),
    st.integers(1, 4),
)
def test_changes_since_any_position_bring_it_to_the_present(
    puts: list[tuple[str, int]], most: int
) -> None:
    """Whoever knew the state at some offset and gets the changes, or else the whole, knows the state now."""
    target = channel(Policy.CONFLATE, max_keys=most)
    states: list[dict[str, Any]] = [{}]
    for key, value in puts:
        put(target, value or None, key=key)
        states.append({m.key: msgspec.json.decode(m.data) for m in target.latest.values()})
    newest = {key: value or None for key, value in puts}
    for cursor, known in enumerate(states):
        changed = target.changes(cursor)
        if changed is None:
            shown = dict(items(target.snapshot(0.0, STAMPS)))
        else:
            shown = known | {m.key: msgspec.json.decode(m.data) for m in changed}
        shown = {k: v for k, v in shown.items() if v is not None}
        kept = {k: v for k, v in states[-1].items() if v is not None}
        assert {k: v for k, v in shown.items() if k in states[-1]} == kept
        assert all(newest[k] == v for k, v in shown.items()), "nobody shows an older value"


# --- a journal before, a parent above ---


def test_what_is_stamped_is_seen_when_it_is_delivered() -> None:
    target = channel(Policy.NEVER)
    first = target.stamp("t", b"1", 0.0, STAMPS)
    second = target.stamp("t", b"2", 0.0, STAMPS)
    assert (target.offset, target.stamped) == (0, 2)
    target.deliver(first)
    target.deliver(second)
    assert (target.offset, target.stamped) == (2, 2)


def test_offsets_that_could_not_be_stored_are_given_again() -> None:
    target = channel(Policy.NEVER)
    put(target, 1)
    target.stamp("t", b"2", 0.0, STAMPS)
    target.stamp("t", b"3", 0.0, STAMPS)
    target.withdraw(2)
    assert target.stamp("t", b"4", 0.0, STAMPS).offset == 2
    with pytest.raises(AssertionError, match="cannot be taken back"):
        target.withdraw(1)


def test_a_message_is_not_delivered_twice() -> None:
    target = channel()
    message = target.stamp("t", b"1", 0.0, STAMPS)
    target.deliver(message)
    with pytest.raises(AssertionError, match="already delivered"):
        target.deliver(message)


@pytest.mark.parametrize("policy", list(Policy))
def test_a_copy_that_missed_messages_tells_its_clients(policy: Policy) -> None:
    parent, copy = channel(policy), channel(policy)
    for i in range(6):
        message = parent.stamp("t", b"1", 0.0, STAMPS, key=str(i))
        parent.deliver(message)
        if i not in (2, 3):
            copy.deliver(message)
    assert copy.offset == copy.stamped == 6
    gap = copy.resume("e1", 2, 0.0)
    last = 4 if policy is Policy.NEVER else 6
    assert gap == Gap(3, last, "retention")
    assert copy.resume("e1", 4, 0.0) is None
    if policy is Policy.CONFLATE:
        assert copy.changes(2) is None


@pytest.mark.parametrize("policy", list(Policy))
def test_a_copy_begins_where_its_parent_is(policy: Policy) -> None:
    parent, copy = channel(policy), Channel("c", policy, epoch="other")
    put(copy, "old", key="old")
    for i in range(9):
        put(parent, i, key="abc"[i % 3])
    copy.restore(list(parent.history)[-4:], offset=9, epoch="e1")
    assert (copy.offset, copy.stamped, copy.epoch) == (9, 9, "e1")
    assert sorted(items(copy.snapshot(0.0, STAMPS))) == sorted(items(parent.snapshot(0.0, STAMPS)))
    if policy is not Policy.CONFLATE:
        assert copy.resume("e1", 5, 0.0) is None
    assert copy.resume("e1", 4, 0.0) is not None
    copy.restore([], offset=12, epoch="e1")
    assert copy.offset == 12


def test_a_channel_of_many_types_does_not_remember_them_all() -> None:
    target = channel()
    for i in range(600):
        target.deliver(target.stamp(f"type {i}", b"1", 0.0, STAMPS))
    assert msgspec.json.decode(target.history[-1].text)["type"] == "type 599"
