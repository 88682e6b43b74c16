"""A message from the journal is the message that was delivered, byte for byte, and what a channel would have made."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from keepline.hub.channels import Channel, Policy
from keepline.hub.entries import Entry
from keepline.hub.messages import Stamps
from keepline.hub.stored import StoredMessages

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(WORDS, WORDS, st.none() | WORDS, WORDS, st.floats(0, 4e9), st.floats(-1e6, 1e6))
def test_it_is_what_the_channel_itself_would_have_stamped(
    channel: str, kind: str, key: str | None, own: str, at: float, skew: float
) -> None:
    stored = StoredMessages(channel, "e1").message(
        Entry(channel, 1, kind, key, own, at, b'{"x":1}'), skew
    )
    made = Channel(channel, Policy.NEVER, epoch="e1").stamp(
        kind, b'{"x":1}', at, Stamps(), key=key or "", own=own
    )
    assert stored.text == made.text
    assert stored.data == b'{"x":1}'
    assert (stored.start, stored.offset, stored.key, stored.id) == (
        *(made.start, made.offset),
        *(made.key, made.id),
    )
    assert stored.at == at - skew
    assert msgspec.json.decode(stored.text)["epoch"] == "e1"


def test_a_channel_takes_it_up_where_the_journal_is() -> None:
    made = StoredMessages("alerts", "e1")
    entries = [Entry("alerts", n, "alert", None, f"i{n}", 1.0, b"{}") for n in (4, 5)]
    channel = Channel("alerts", Policy.NEVER, epoch="e1")
    channel.restore([made.message(e, 0.0) for e in entries], offset=5, epoch="e1")
    channel.deliver(made.message(Entry("alerts", 6, "alert", None, "i6", 2.0, b"{}"), 0.0))
    assert (channel.offset, channel.oldest()) == (6, 4)
    known = channel.known("i5")
    assert known is not None
    assert known.offset == 5


def test_types_are_remembered_within_bounds() -> None:
    made = StoredMessages("c", "e")
    for number in range(600):
        text = made.message(Entry("c", 1, f"t{number}", None, "i", 0.0, b"1"), 0.0).text
        assert msgspec.json.decode(text)["type"] == f"t{number}"
    assert len(made._heads) <= 256
    assert repr(made) == "<StoredMessages c e>"
