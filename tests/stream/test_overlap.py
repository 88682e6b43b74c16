"""Two connections that bring the same messages: each goes on once, whatever the interleaving."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from keepline.stream.overlap import Overlap

STEPS = st.lists(st.tuples(st.sampled_from(["old", "new"]), st.integers(0, 3)), max_size=40)


@given(before=STEPS, after=st.lists(st.integers(0, 3), max_size=20))
def test_what_both_bring_goes_on_once_and_nothing_is_lost(
    before: list[tuple[str, int]], after: list[int]
) -> None:
    overlap = Overlap()
    brought: dict[str, Counter[int]] = {"old": Counter(), "new": Counter()}
    went_on: Counter[int] = Counter()
    for side, number in before:
        brought[side][number] += 1
        if side == "old":
            overlap.from_old("Order", (number,))
            went_on[number] += 1
        else:
            overlap.from_new("Order", (number,), 0.0)
    went_on.update(arguments[0] for _, arguments, _ in overlap.switch())
    for number in after:
        brought["new"][number] += 1
        if not overlap.is_repeat("Order", (number,)):
            went_on[number] += 1
    assert went_on == brought["old"] | brought["new"], "the larger number of each, not the sum"


@given(STEPS)
def test_the_order_of_what_only_the_new_one_brought_is_kept(steps: list[tuple[str, int]]) -> None:
    overlap = Overlap()
    for at, (_, number) in enumerate(steps):
        overlap.from_new("Order", (number,), float(at))
    assert [at for _, _, at in overlap.switch()] == [float(at) for at in range(len(steps))]


def test_what_does_not_fit_is_told_and_bounded() -> None:
    overlap = Overlap(limit=2)
    for number in range(3):
        overlap.from_new("Order", (number,), 0.0)
    assert overlap.overflowed
    assert len(overlap.switch()) == 2


def test_values_that_no_encoder_knows_are_told_apart_by_what_they_show() -> None:
    overlap = Overlap()
    overlap.from_new("Order", (complex(1, 2),), 0.0)
    overlap.from_old("Order", (complex(1, 2),))
    assert "keeps 1" in repr(overlap)
    assert overlap.switch() == []
