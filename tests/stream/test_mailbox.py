"""What waits for a callback: nothing is lost in silence, and nothing grows without end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.stream.mailbox import Mailbox, Put


def taken(mailbox: Mailbox) -> list[object]:
    return [mailbox.take() for _ in range(len(mailbox))]


def test_never_keeps_order_and_refuses_by_name_when_it_is_full() -> None:
    mailbox = Mailbox("never", limit=2)
    assert [mailbox.put("", number) for number in range(4)] == [
        Put.QUEUED, Put.QUEUED, Put.OVERFLOW, Put.REFUSED,
    ]  # fmt: skip
    assert (mailbox.missing, mailbox.refused) == (2, 2)
    assert taken(mailbox) == [0, 1]


def test_an_overflow_lasts_until_half_of_the_queue_is_free_so_that_there_is_one_hole() -> None:
    mailbox = Mailbox("never", limit=4)
    for number in range(5):
        mailbox.put("", number)
    mailbox.take()
    assert mailbox.relieved() == 0
    assert mailbox.put("", 5) is Put.REFUSED  # there is room, and the hole goes on
    mailbox.take()
    assert mailbox.relieved() == 2
    assert mailbox.relieved() == 0
    assert mailbox.put("", 6) is Put.QUEUED
    assert taken(mailbox) == [2, 3, 6]
    assert mailbox.refused == 2


def test_the_smallest_mailbox_recovers_too() -> None:
    mailbox = Mailbox("never", limit=1)
    assert [mailbox.put("", 0), mailbox.put("", 1)] == [Put.QUEUED, Put.OVERFLOW]
    mailbox.take()
    assert mailbox.relieved() == 1
    assert mailbox.put("", 2) is Put.QUEUED


def test_conflate_keeps_the_newest_of_each_key_in_the_place_of_the_first() -> None:
    mailbox = Mailbox("conflate")
    puts = [mailbox.put(key, item) for key, item in (("A", 1), ("B", 2), ("A", 3), ("A", 4))]
    assert puts == [Put.QUEUED, Put.QUEUED, Put.CONFLATED, Put.CONFLATED]
    assert taken(mailbox) == [4, 2]
    assert mailbox.conflated == 2
    assert mailbox.relieved() == 0


def test_too_many_keys_push_out_the_oldest_one_counted() -> None:
    mailbox = Mailbox("conflate", limit=2)
    puts = [mailbox.put(key, key) for key in "ABC"]
    assert puts == [Put.QUEUED, Put.QUEUED, Put.DROPPED]
    assert taken(mailbox) == ["B", "C"]
    assert mailbox.dropped == 1


@pytest.mark.parametrize("policy", ["never", "conflate"])
def test_nothing_can_be_taken_where_nothing_waits(policy) -> None:
    mailbox = Mailbox(policy)
    assert not mailbox
    with pytest.raises(IndexError):
        mailbox.take()
    assert repr(mailbox) == f"<Mailbox {policy}, 0 of 10000, 0 refused>"


@pytest.mark.parametrize(
    ("policy", "limit", "key"), [("newest", 5, "policy"), ("never", 0, "limit")]
)
def test_settings_that_make_no_sense_are_refused(policy, limit: int, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Mailbox(policy, limit=limit)
    assert caught.value.key == key


STEPS = st.lists(
    st.one_of(st.sampled_from(["take", "relieve"]), st.sampled_from("ABCD")), max_size=200
)


@given(STEPS, st.integers(1, 8))
def test_never_never_drops_without_announcing(steps, limit: int) -> None:
    """Every item is taken in order or refused; a hole begins with OVERFLOW and its end tells its size."""
    mailbox = Mailbox("never", limit=limit)
    accepted, out, told, number = [], [], 0, 0
    open_hole = 0
    for step in steps:
        if step == "take":
            if mailbox:
                out.append(mailbox.take())
        elif step == "relieve":
            missing = mailbox.relieved()
            if missing:
                assert missing == open_hole
                told, open_hole = told + missing, 0
        else:
            number += 1
            outcome = mailbox.put(step, number)
            if outcome is Put.QUEUED:
                assert not open_hole
                accepted.append(number)
            else:
                assert outcome is (Put.REFUSED if open_hole else Put.OVERFLOW)
                open_hole += 1
        assert len(mailbox) <= limit
        assert mailbox.missing == open_hole
    assert out + taken(mailbox) == accepted
    assert number == len(accepted) + told + open_hole
    assert mailbox.refused == told + open_hole
    if open_hole:
        assert mailbox.has_room_again
        assert mailbox.relieved() == open_hole  # an empty mailbox always recovers


@given(STEPS, st.integers(1, 4))
def test_conflate_ends_with_the_newest_of_each_key_that_was_not_counted_out(
    steps, limit: int
) -> None:
    mailbox = Mailbox("conflate", limit=limit)
    newest, out, number = {}, [], 0
    for step in steps:
        if step == "take":
            if mailbox:
                out.append(mailbox.take())
        elif step != "relieve":
            number += 1
            newest[step] = number
            mailbox.put(step, (step, number))
        assert len(mailbox) <= limit
    rest = taken(mailbox)
    assert all(newest[key] == item for key, item in rest)
    assert number == len(out) + len(rest) + mailbox.conflated + mailbox.dropped
    assert out == sorted(out, key=lambda pair: pair[1]) or mailbox.conflated
