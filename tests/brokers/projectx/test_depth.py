"""The book: levels replaced, best prices pruned, resets, and what says nothing about a level."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.projectx.depth import MOST_LEVELS, DepthBook
from keepline.brokers.projectx.stream_messages import DepthPayload, DepthType
from keepline.model import DepthLevel

AT = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
CONTRACT = "CON.F.US.MNQ.U26"


def entry(kind: DepthType, price: float = 0.0, volume: float | None = None) -> DepthPayload:
    return DepthPayload(type=kind, price=price, volume=volume)


def bid(price: float, volume: float) -> DepthPayload:
    return entry(DepthType.BID, price, volume)


def ask(price: float, volume: float) -> DepthPayload:
    return entry(DepthType.ASK, price, volume)


def book(*entries: DepthPayload) -> DepthBook:
    made = DepthBook(CONTRACT)
    made.apply(entries)
    return made


def test_a_level_is_replaced_not_added_to() -> None:
    update = book(bid(10, 5), bid(10, 7)).update(AT)
    assert update.bids == (DepthLevel(10, 7),)


def test_best_prices_come_first_on_both_sides() -> None:
    update = book(bid(9, 1), bid(10, 2), ask(12, 3), ask(11, 4)).update(AT)
    assert [level.price for level in update.bids] == [10, 9]
    assert [level.price for level in update.asks] == [11, 12]
    assert (update.best_bid, update.best_ask, update.is_crossed) == (10, 11, False)
    assert (update.instrument, update.at) == (CONTRACT, AT)


def test_an_update_is_as_deep_as_asked_for() -> None:
    made = book(*[bid(price, 1) for price in range(1, 30)])
    assert [level.price for level in made.update(AT, 3).bids] == [29, 28, 27]
    assert (len(made.update(AT).bids), len(made)) == (10, 29)


def test_a_size_of_nothing_takes_the_level_away() -> None:
    made = book(bid(10, 5), bid(9, 1), bid(10, 0), bid(8, 0))
    assert made.update(AT).bids == (DepthLevel(9, 1),)


def test_an_empty_book_has_no_best_price() -> None:
    update = book().update(AT)
    assert (update.best_bid, update.best_ask, update.is_crossed) == (None, None, False)


@pytest.mark.parametrize("kind", [DepthType.BEST_BID, DepthType.NEW_BEST_BID])
def test_a_told_best_bid_takes_away_what_would_be_better(kind: DepthType) -> None:
    made = book(bid(10, 5), bid(11, 5), bid(9, 5), entry(kind, 10, 2))
    assert made.update(AT).bids == (DepthLevel(10, 2), DepthLevel(9, 5))


@pytest.mark.parametrize("kind", [DepthType.BEST_ASK, DepthType.NEW_BEST_ASK])
def test_a_told_best_ask_takes_away_what_would_be_better(kind: DepthType) -> None:
    made = book(ask(10, 5), ask(9, 5), ask(11, 5), entry(kind, 10, 2))
    assert made.update(AT).asks == (DepthLevel(10, 2), DepthLevel(11, 5))


def test_a_best_price_of_size_nothing_is_no_best_price() -> None:
    made = book(bid(11, 5), bid(10, 5), entry(DepthType.BEST_BID, 10, 0))
    assert made.update(AT).bids == (DepthLevel(11, 5),)


def test_a_reset_empties_the_book_and_what_follows_it_stays() -> None:
    made = book(bid(10, 5), ask(11, 5), entry(DepthType.RESET), bid(9, 1))
    update = made.update(AT)
    assert (update.bids, update.asks, made.resets) == ((DepthLevel(9, 1),), (), 1)


@pytest.mark.parametrize(
    "said",
    [
        entry(DepthType.TRADE, 10, 1),
        entry(DepthType.LOW, 1, 1),
        entry(DepthType.HIGH, 99, 1),
        entry(DepthType.FILL, 10, 1),
        entry(DepthType.UNKNOWN, 10, 1),
        entry(DepthType(42), 10, 1),
        entry(DepthType.BID, 10, None),
        entry(DepthType.BID, float("nan"), 1),
        entry(DepthType.BID, 10, float("inf")),
    ],
)
def test_what_says_nothing_about_a_level_changes_nothing(said: DepthPayload) -> None:
    made = book(bid(10, 5))
    assert not made.apply([said])
    assert (made.update(AT).bids, made.ignored) == ((DepthLevel(10, 5),), 1)


def test_the_current_volume_counts_only_without_the_other() -> None:
    both = DepthPayload(type=DepthType.BID, price=10, volume=7, current_volume=3)
    alone = DepthPayload(type=DepthType.BID, price=9, current_volume=3)
    assert book(both, alone).update(AT).bids == (DepthLevel(10, 7), DepthLevel(9, 3))


def test_a_crossed_book_is_said_to_be_crossed() -> None:
    assert book(bid(11, 1), ask(11, 1)).update(AT).is_crossed


def test_the_book_is_bounded_and_keeps_what_is_near_the_market() -> None:
    made = book(*[ask(price, 1) for price in range(MOST_LEVELS + 50, 0, -1)])
    assert len(made) == MOST_LEVELS
    assert made.update(AT).best_ask == 1


def test_forgotten_is_empty() -> None:
    made = book(bid(10, 5), ask(11, 5))
    made.forget()
    assert (len(made), made.resets) == (0, 0)


steps = st.lists(
    st.tuples(
        st.sampled_from([DepthType.BID, DepthType.ASK, DepthType.RESET, DepthType.TRADE]),
        st.integers(1, 30),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 5))
def test_the_book_is_what_was_last_told_of_each_price(
    told: list[tuple[DepthType, int, int]], pieces: int
) -> None:
    """Against a plain dictionary, however the entries are spread over events."""
    sides: dict[DepthType, dict[int, int]] = {DepthType.BID: {}, DepthType.ASK: {}}
    for kind, price, size in told:
        if kind is DepthType.RESET:
            for side in sides.values():
                side.clear()
        elif kind in sides:
            sides[kind].pop(price, None)
            if size:
                sides[kind][price] = size
    made = DepthBook(CONTRACT)
    for begin in range(0, len(told), pieces):
        made.apply([entry(*step) for step in told[begin : begin + pieces]])
    update = made.update(AT, 100)
    assert update.bids == tuple(
        DepthLevel(price, sides[DepthType.BID][price])
        for price in sorted(sides[DepthType.BID], reverse=True)
    )
    assert update.asks == tuple(
        DepthLevel(price, sides[DepthType.ASK][price]) for price in sorted(sides[DepthType.ASK])
    )
