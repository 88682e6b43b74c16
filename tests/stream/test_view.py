"""Claims about the view of an account: each thing once, in any order, nothing older over anything newer."""

import itertools
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stream.accounts import BUY, DAY_BEFORE, SELL, T0, account, at, fill, held, order

from keepline.model import Fill, Order, OrderStatus, Position
from keepline.stream.view import AccountView, Change, Told, moved, standing

S = OrderStatus
LIVES = [
    order(status=S.PENDING),
    order(status=S.OPEN),
    order(status=S.OPEN, limit_price=101, updated_at=at(1)),
    order(status=S.PARTIALLY_FILLED, filled=2, limit_price=101, updated_at=at(2)),
    order(status=S.PARTIALLY_FILLED, filled=4, limit_price=101, updated_at=at(2)),
    order(status=S.FILLED, filled=5, limit_price=101, updated_at=at(3)),
]


def applied(*events: Told, anchored: bool = True) -> AccountView:
    view = AccountView()
    if anchored:
        view.anchor("A", DAY_BEFORE)
    for event in events:
        view.apply(event)
    return view


# --- orders ---


def test_whatever_the_order_of_its_states_an_order_ends_as_it_ended() -> None:
    for turn in itertools.permutations(LIVES):
        assert applied(*turn, *turn).orders == {"1": LIVES[-1]}


@pytest.mark.parametrize("end", [S.FILLED, S.CANCELLED, S.EXPIRED, S.REJECTED])
@pytest.mark.parametrize("late", [S.PENDING, S.OPEN, S.PARTIALLY_FILLED, S.SUSPENDED, S.UNKNOWN])
def test_no_state_overwrites_an_end(end: OrderStatus, late: OrderStatus) -> None:
    view = applied(order(status=end, filled=2))
    assert view.apply(order(status=late, filled=2, updated_at=at(9))) == []
    assert view.orders["1"].status is end


def test_an_end_without_its_fills_keeps_those_that_were_known() -> None:
    view = applied(order(status=S.PARTIALLY_FILLED, filled=2), order(status=S.CANCELLED))
    assert (view.orders["1"].status, view.orders["1"].filled) == (S.CANCELLED, 2)


def test_a_fill_beside_a_cancel_is_not_lost() -> None:
    view = applied(order(status=S.CANCELLED, filled=1), order(status=S.CANCELLED, filled=2))
    assert view.orders["1"].filled == 2


def test_what_an_event_leaves_open_stays_known() -> None:
    first = order(tag="entry", average_price=Decimal(7), updated_at=at(1))
    view = applied(first, order(status=S.FILLED, filled=5))
    seen = view.orders["1"]
    assert (seen.tag, seen.average_price, seen.updated_at) == ("entry", 7, at(1))


def test_a_change_tells_what_was_before() -> None:
    view = AccountView()
    one, two = order(), order(status=S.CANCELLED)
    assert view.apply(one) == [Change(one)]
    assert view.apply(two, recovered=True) == [Change(two, one, recovered=True)]


def test_orders_at_work_are_those_that_have_not_ended() -> None:
    view = applied(order("1"), order("2", S.FILLED), order("3", account="B"))
    assert [o.id for o in view.working()] == ["1", "3"]
    assert [o.id for o in view.working("B")] == ["3"]


def test_standing_counts_end_fills_time_and_status_in_this_order() -> None:
    assert sorted(LIVES, key=standing) == LIVES
    assert standing(order(status=S.UNKNOWN)) < standing(order(status=S.PENDING))


def test_orders_that_ended_are_kept_up_to_a_bound_and_those_at_work_always() -> None:
    view = AccountView(kept=2)
    view.apply(order("work"))
    for number in range(5):
        view.apply(order(str(number), S.FILLED))
    assert list(view.orders) == ["work", "3", "4"]


# --- fills and positions ---


def test_a_fill_moves_its_position_once() -> None:
    view = applied(fill("t1", 2), fill("t1", 2), fill("t2", 3, SELL), fill("t1", 2))
    assert view.position("A", "MNQ") == held(-1, 100)
    assert list(view.fills) == ["t1", "t2"]


def test_a_fill_and_its_position_are_two_changes() -> None:
    view = applied()
    assert view.apply(fill("t1", 2), recovered=True) == [
        Change(fill("t1", 2), None, recovered=True),
        Change(held(2, 100), None, recovered=True),
    ]


def test_before_positions_were_told_beside_fills_a_position_is_not_known() -> None:
    view = applied(fill(), anchored=False)
    assert view.position("A", "MNQ") is None
    assert view.positions == {}
    view.anchor("A", DAY_BEFORE)
    assert view.position("A", "ES") == held(0, instrument="ES")
    assert view.is_anchored("A")
    assert not view.is_anchored("B")


def test_a_fill_from_before_the_anchor_is_in_the_position_already() -> None:
    view = AccountView()
    view.anchor("A", T0)
    view.place(held(5))
    view.apply(fill("old", 1, at=T0 - timedelta(seconds=1)))
    view.apply(fill("new", 1, at=T0))
    assert view.position("A", "MNQ") == held(6)
    assert set(view.fills) == {"old", "new"}


def test_an_anchor_never_goes_back() -> None:
    view = AccountView()
    view.anchor("A", T0)
    view.anchor("A", DAY_BEFORE)
    view.apply(fill(at=T0 - timedelta(seconds=1)))
    assert view.position("A", "MNQ") == held(0)


def test_fees_that_are_told_later_are_added_and_are_no_second_fill() -> None:
    view = applied(fill())
    assert view.apply(fill(fees=Decimal("0.4"))) == []
    assert view.apply(fill()) == []
    assert view.fills["t1"].fees == Decimal("0.4")


def test_a_fill_that_is_taken_back_counts_no_more_however_often_it_is_told() -> None:
    view = applied(fill("t1", 2), fill("t2", 1))
    (change,) = view.retract("t1")
    assert change.value == held(1, 100)
    assert view.apply(fill("t1", 2)) == []
    assert view.retract("t1") == []
    assert view.position("A", "MNQ") == held(1, 100)


def test_what_is_known_of_fills_has_a_bound_and_what_was_forgotten_counts_no_second_time() -> None:
    view = AccountView(kept=3)
    view.anchor("A", DAY_BEFORE)
    fills = [fill(f"t{n}", at=at(n)) for n in range(6)]
    for _ in range(2):
        for one in fills:
            view.apply(one)
    assert list(view.fills) == ["t3", "t4", "t5"]
    assert view.position("A", "MNQ") == held(6, 100)
    for n in range(9):
        view.retract(f"x{n}")
    view.apply(fill("x0", at=at(9)))
    assert "x0" in view.fills, "the list of what was taken back has the same bound"


@pytest.mark.parametrize(
    ("before", "step", "side", "price", "after"),
    [
        (held(0), 2, BUY, 100, held(2, 100)),
        (held(2, 100), 2, BUY, 110, held(4, 105)),
        (held(4, 105), 1, SELL, 200, held(3, 105)),
        (held(3, 105), 3, SELL, 200, held(0)),
        (held(3, 105), 5, SELL, 200, held(-2, 200)),
        (held(-2, 200), 2, SELL, 100, held(-4, 150)),
        (held(-4, 150), 5, BUY, 90, held(1, 90)),
        (held(2), 1, BUY, 90, held(3)),
    ],
)
def test_a_position_after_a_fill(
    before: Position, step: int, side: object, price: int, after: Position
) -> None:
    one = fill("t", step, side, price=Decimal(price))  # type: ignore[arg-type]
    assert moved(before, one) == after


def test_a_position_that_fills_do_not_explain_is_disputed_and_not_taken() -> None:
    view = applied(fill("t1", 1))
    assert view.apply(held(3, 90)) == []
    assert view.position("A", "MNQ") == held(1, 100)
    assert view.disputed == {("A", "MNQ"): held(3, 90)}
    view.apply(fill("t2", 2))
    assert view.disputed == {}
    assert view.position("A", "MNQ") == held(3, 90), "the broker's average price counts"


def test_a_disputed_position_is_settled_by_another_one_that_agrees() -> None:
    view = applied(fill("t1", 1))
    view.apply(held(3))
    view.apply(held(1))
    assert view.disputed == {}
    assert view.position("A", "MNQ") == held(1, 100)


def test_the_brokers_average_price_replaces_ours() -> None:
    view = applied(fill("t1", 1))
    assert view.apply(held(1, 101)) == [Change(held(1, 101), held(1, 100))]
    assert view.apply(held(1, 101)) == []


def test_without_an_anchor_the_stream_s_position_is_all_there_is() -> None:
    view = applied(held(3, 90), held(2, 91), anchored=False)
    assert view.position("A", "MNQ") == held(2, 91)
    view.place(held(0, 91))
    assert view.positions == {}


# --- accounts ---


def test_what_is_not_told_of_an_account_stays_as_it_was() -> None:
    view = AccountView()
    first = account(1000)
    view.apply(first)
    assert view.apply(account(None)) == []
    assert view.apply(account(900)) == [Change(account(900), first)]
    assert view.accounts == {"A": account(900)}


def test_the_view_shows_itself() -> None:
    view = applied(order(), fill(), held(1, 90))
    assert repr(view) == "<AccountView 1 orders at work, 1 fills, 1 positions>"


# --- any order ---

FILLS = st.builds(
    fill,
    st.sampled_from([f"t{n}" for n in range(8)]),
    st.just(1),
    st.just(BUY),
)


@given(st.lists(FILLS, max_size=30), st.randoms(use_true_random=False))
def test_any_order_and_any_repetition_of_fills_gives_the_same_position(
    fills: list[Fill], chance: object
) -> None:
    again = [*fills, *fills]
    chance.shuffle(again)  # type: ignore[attr-defined]
    one, other = applied(*fills), applied(*again)
    assert one.positions == other.positions
    assert set(one.fills) == set(other.fills)
    expected = Decimal(len({f.id for f in fills}))
    assert sum((p.quantity for p in one.positions.values()), Decimal(0)) == expected


@given(st.lists(st.sampled_from(LIVES), min_size=1, max_size=12))
def test_the_furthest_state_that_was_told_is_the_one_that_is_known(states: list[Order]) -> None:
    assert standing(applied(*states).orders["1"]) == max(map(standing, states))


@given(st.lists(st.one_of(FILLS, st.sampled_from(LIVES)), max_size=20))
def test_applying_twice_changes_nothing(events: list[Told]) -> None:
    view = applied(*events)
    assert [change for event in events for change in view.apply(event)] == []
