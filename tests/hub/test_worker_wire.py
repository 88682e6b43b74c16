"""What hub and workers say to each other, and sums of their numbers."""

import msgspec
import pytest

from keepline.errors import ProtocolError
from keepline.hub.channels import Channel, Policy
from keepline.hub.messages import Message, Stamps
from keepline.hub.worker_wire import (
    Ask,
    Beat,
    Deliver,
    Elsewhere,
    Messages,
    Read,
    Recheck,
    Restore,
    Told,
    counted_elsewhere,
    merged_metrics,
    parse_from_worker,
    parse_to_worker,
    restoring,
    worker_frame,
)

MESSAGE = Message("alerts", 3, "alert", "", 1.5, b'{"a":1}', 5, "id")


@pytest.mark.parametrize(
    "word",
    [
        Restore("alerts", "e", 3, None, (MESSAGE,)),
        Deliver(MESSAGE, 2),
        Messages(1, (MESSAGE,)),
        Messages(2, None),
        Elsewhere((("user", "ann", 2),)),
        Recheck(),
        Ask(7),
    ],
)
def test_what_the_hub_says_arrives(word: object) -> None:
    assert parse_to_worker(worker_frame(word)[4:]) == word  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "word", [Beat(2, (("all", "", 2),)), Read(1, "alerts", 5, 100), Told(1, ({"id": "x"},), b"m 1")]
)
def test_what_a_worker_says_arrives(word: object) -> None:
    assert parse_from_worker(worker_frame(word)[4:]) == word  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\xc1", b"{}", msgspec.msgpack.encode({"type": "x"})),
        b"\x81\xa4typ\xff\xa4beat",
        b"\x81\xa1x" * 100_000,
    ],
    ids=["empty", "never", "json", "other", "no-text", "deep"],
)
def test_what_is_no_word_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="no word of the hub"):
        parse_to_worker(payload)
    with pytest.raises(ProtocolError, match="no word of a worker"):
        parse_from_worker(payload)


@pytest.mark.parametrize("policy", list(Policy))
def test_a_channel_that_is_restored_shows_what_the_first_one_shows(policy: Policy) -> None:
    first = Channel("c", policy, epoch="e", history_count=4, snapshot_count=3)
    stamps = Stamps()
    for number, key in enumerate(["a", "b", "a", "a", "a", "a", "a"]):
        first.deliver(first.stamp("t", b"%d" % number, 1.0 + number, stamps, key=key))
    word = parse_to_worker(worker_frame(restoring(first))[4:])
    assert isinstance(word, Restore)
    second = Channel("c", policy, epoch="other", history_count=4, snapshot_count=3)
    second.restore(word.messages, offset=word.offset, epoch=word.epoch)
    assert (second.offset, second.epoch) == (7, "e")
    assert second.snapshot(9.0, stamps) == first.snapshot(9.0, stamps)
    for offset in range(8):
        was, now = first.resume("e", offset, 9.0), second.resume("e", offset, 9.0)
        assert (
            was is None or now is not None
        )  # what is a gap at the hub is never a silent hole here
    assert second.resume("e", 7, 9.0) is None


def test_counts_of_all_are_added_and_nobody_is_not_there() -> None:
    counts = [{("user", "ann"): 2, ("all", ""): 0}, {("user", "ann"): 1, ("user", "bob"): 1}]
    assert set(counted_elsewhere(counts)) == {("user", "ann", 3), ("user", "bob", 1)}


def test_numbers_that_count_the_same_are_added_and_the_rest_is_the_hubs_own() -> None:
    own = (
        b"# HELP keepline_hub_clients c\n# TYPE keepline_hub_clients gauge\n"
        b"keepline_hub_clients 1.0\n"
        b"# HELP keepline_hub_closed_total c\n# TYPE keepline_hub_closed_total counter\n"
        b'keepline_hub_closed_total{code="1000"} 2.0\n'
        b"# TYPE keepline_hub_ready gauge\nkeepline_hub_ready 1.0\n"
        b"# TYPE process_x gauge\nprocess_x 5.0\n"
    )
    other = (
        b"# TYPE keepline_hub_clients gauge\nkeepline_hub_clients 3.0\nkeepline_hub_ready 0.0\n"
        b'keepline_hub_closed_total{code="1000"} 1.0\n'
        b'keepline_hub_closed_total{code="3001"} 4.0\nprocess_x 7.0\n'
    )
    text = merged_metrics(own, [other, other]).decode().splitlines()
    assert "keepline_hub_clients 7.0" in text
    assert 'keepline_hub_closed_total{code="1000"} 4.0' in text
    assert 'keepline_hub_closed_total{code="3001"} 8.0' in text
    assert "keepline_hub_ready 1.0" in text
    assert "process_x 5.0" in text
    assert len(text) == len(own.splitlines()) + 1
