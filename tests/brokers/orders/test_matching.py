"""What one view says about one intent, by its tag or by its looks."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from msgspec import structs
from tests.brokers.orders.venue import BY_LOOKS, TAGGED, order_intent

from keepline.brokers.base import BrokerFacts, Evidence, IntentKind, OrderIntent, Source
from keepline.brokers.orders.matching import (
    Finding,
    Found,
    View,
    Window,
    examine,
    partial_view,
    whole_view,
)
from keepline.model import Fill, Order, OrderStatus, OrderType, Position, Side

AT = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
WINDOW = Window(AT - timedelta(seconds=5), AT + timedelta(seconds=15))
MARKET = order_intent("i")
LIMIT = order_intent("i", type=OrderType.LIMIT, limit_price=Decimal(100))
CANCEL = OrderIntent(id="i", kind=IntentKind.CANCEL, account="A", target_order_id="1")
MODIFY = OrderIntent(
    id="i", kind=IntentKind.MODIFY, account="A", target_order_id="1", limit_price=Decimal(101)
)
CLOSE = OrderIntent(id="i", kind=IntentKind.CLOSE, account="A", instrument="MNQ")
ORDER = Order(
    id="1",
    account="A",
    instrument="MNQ",
    side=Side.BUY,
    type=OrderType.MARKET,
    status=OrderStatus.OPEN,
    quantity=Decimal(1),
    entered_at=AT,
)
RESTING = structs.replace(ORDER, type=OrderType.LIMIT, limit_price=Decimal(100))
FILL = Fill(
    id="t1",
    order_id="1",
    account="A",
    instrument="MNQ",
    side=Side.BUY,
    quantity=Decimal(1),
    price=Decimal(100),
    at=AT,
)


def told(
    intent: OrderIntent,
    *orders: Order,
    facts: BrokerFacts = BY_LOOKS,
    view: View | None = None,
    owners: dict[str, str] | None = None,
    rivals: int = 0,
    failed: tuple[Source, ...] = (),
    fills: tuple[Fill, ...] = (),
    positions: tuple[Position, ...] = (),
) -> Finding:
    seen = Evidence(
        history=orders, fills=fills, positions=positions, failed=dict.fromkeys(failed, "502")
    )
    owner = (owners or {}).get
    return examine(intent, view or whole_view(seen), facts, WINDOW, owner, rivals=rivals)


def tagged(**changes: object) -> Order:
    return structs.replace(ORDER, **({"tag": "i"} | changes))


# --- by tag ---


def test_its_tag_finds_it_whatever_it_looks_like_by_now() -> None:
    changed = tagged(quantity=Decimal(9), entered_at=AT - timedelta(days=3))
    assert told(MARKET, changed, facts=TAGGED)[::2] == (Found.YES, "1")


@pytest.mark.parametrize("tag", ["", "j", "I", "i.1"])
def test_another_tag_is_another_order(tag: str) -> None:
    assert told(MARKET, tagged(tag=tag), facts=TAGGED).what is Found.ABSENT


def test_a_tag_of_another_account_is_another_order() -> None:
    assert told(MARKET, tagged(account="B"), facts=TAGGED).what is Found.ABSENT


def test_two_orders_with_its_tag_stop_and_ask() -> None:
    finding = told(MARKET, tagged(), tagged(id="2"), facts=TAGGED)
    assert finding.what is Found.ASK
    assert "1, 2" in finding.reason


def test_legs_of_a_bracket_that_carry_the_tag_are_not_taken_for_it() -> None:
    stop = tagged(id="2", type=OrderType.STOP, side=Side.SELL)
    assert told(MARKET, tagged(), stop, facts=TAGGED)[::2] == (Found.YES, "1")


def test_a_tag_is_beyond_doubt_though_a_source_failed() -> None:
    assert told(MARKET, tagged(), facts=TAGGED, failed=(Source.HISTORY,)).what is Found.YES
    assert told(MARKET, facts=TAGGED, view=partial_view([tagged()])).what is Found.YES


def test_an_order_that_was_rejected_is_a_refusal() -> None:
    rejected = tagged(status=OrderStatus.REJECTED, raw_status="5")
    finding = told(MARKET, rejected, facts=TAGGED)
    assert finding == Finding(Found.NO, "the broker rejected it (5)", "1")


def test_a_rejected_rest_of_an_order_that_was_filled_in_part_is_no_refusal() -> None:
    part = tagged(status=OrderStatus.REJECTED, filled=Decimal("0.5"))
    assert told(MARKET, part, facts=TAGGED).what is Found.YES


@pytest.mark.parametrize(
    "status", [OrderStatus.FILLED, OrderStatus.CANCELLED, OrderStatus.EXPIRED, OrderStatus.UNKNOWN]
)
def test_an_order_that_was_taken_counts_whatever_became_of_it(status: OrderStatus) -> None:
    assert told(MARKET, tagged(status=status), facts=TAGGED).what is Found.YES


# --- by looks ---


def test_looks_and_time_find_it() -> None:
    assert told(MARKET, ORDER)[::2] == (Found.YES, "1")


@pytest.mark.parametrize(
    "changes",
    [
        {"account": "B"},
        {"instrument": "ES"},
        {"side": Side.SELL},
        {"quantity": Decimal(2)},
        {"type": OrderType.LIMIT},
        {"type": None},
        {"entered_at": AT - timedelta(seconds=6)},
        {"entered_at": AT + timedelta(seconds=16)},
    ],
)
def test_one_difference_makes_it_another_order(changes: dict[str, object]) -> None:
    assert told(MARKET, structs.replace(ORDER, **changes)).what is Found.ABSENT


@pytest.mark.parametrize("seconds", [-5, 0, 15])
def test_the_ends_of_the_window_belong_to_it(seconds: int) -> None:
    edge = structs.replace(ORDER, entered_at=AT + timedelta(seconds=seconds))
    assert told(MARKET, edge).what is Found.YES


def test_prices_tell_limit_orders_apart() -> None:
    other = structs.replace(RESTING, id="2", limit_price=Decimal(101))
    assert told(LIMIT, RESTING, other)[::2] == (Found.YES, "1")


def test_equal_amounts_written_differently_are_equal() -> None:
    assert told(LIMIT, structs.replace(RESTING, limit_price=Decimal("100.00"))).what is Found.YES


def test_two_that_fit_stop_and_ask() -> None:
    finding = told(MARKET, ORDER, structs.replace(ORDER, id="2"))
    assert finding.what is Found.ASK


def test_two_that_fit_two_intents_are_shared_in_their_order() -> None:
    later = structs.replace(ORDER, id="2", entered_at=AT + timedelta(seconds=1))
    assert told(MARKET, later, ORDER, rivals=1)[::2] == (Found.YES, "1")


def test_what_another_intent_owns_is_not_taken() -> None:
    two = (ORDER, structs.replace(ORDER, id="2"))
    assert told(MARKET, *two, owners={"1": "other"})[::2] == (Found.YES, "2")
    assert told(MARKET, *two, owners={"1": "other", "2": "another"}).what is Found.ABSENT


@pytest.mark.parametrize("source", [Source.OPEN_ORDERS, Source.HISTORY])
def test_looks_prove_nothing_while_orders_could_not_all_be_read(source: Source) -> None:
    assert told(MARKET, ORDER, failed=(source,)).what is Found.WAIT


def test_looks_in_a_single_event_prove_nothing() -> None:
    assert told(MARKET, view=partial_view([ORDER])).what is Found.WAIT


# --- absence ---


@pytest.mark.parametrize("facts", [TAGGED, BY_LOOKS])
@pytest.mark.parametrize("source", Source)
def test_a_failed_source_is_no_absence(source: Source, facts: BrokerFacts) -> None:
    finding = told(MARKET, failed=(source,), facts=facts)
    assert finding == Finding(Found.WAIT, f"could not be read: {source.value}")


@pytest.mark.parametrize("facts", [TAGGED, BY_LOOKS])
def test_nothing_in_any_source_is_an_absence(facts: BrokerFacts) -> None:
    assert told(MARKET, facts=facts).what is Found.ABSENT


@pytest.mark.parametrize("facts", [TAGGED, BY_LOOKS])
def test_a_fill_whose_order_is_not_shown_is_no_absence(facts: BrokerFacts) -> None:
    finding = told(MARKET, fills=(FILL,), facts=facts)
    assert finding.what is Found.UNCLEAR
    assert "fill t1 of order 1" in finding.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"instrument": "ES"},
        {"account": "B"},
        {"side": Side.SELL},
        {"quantity": Decimal(2)},
        {"at": AT - timedelta(seconds=6)},
    ],
)
def test_a_fill_that_cannot_be_its_own_does_not_matter(changes: dict[str, object]) -> None:
    assert told(MARKET, fills=(structs.replace(FILL, **changes),)).what is Found.ABSENT


def test_a_fill_of_an_order_that_somebody_owns_is_explained() -> None:
    assert told(MARKET, fills=(FILL,), owners={"1": "other"}).what is Found.ABSENT


def test_a_fill_of_an_order_that_is_shown_and_does_not_fit_is_explained() -> None:
    other = structs.replace(ORDER, quantity=Decimal(5))
    assert told(MARKET, other, fills=(FILL,)).what is Found.ABSENT


# --- closing ---


def test_a_close_is_found_by_its_market_order_at_both_kinds_of_brokers() -> None:
    out = structs.replace(ORDER, side=Side.SELL, quantity=Decimal(3))
    for facts in (TAGGED, BY_LOOKS):
        assert told(CLOSE, out, facts=facts)[::2] == (Found.YES, "1")


def test_an_order_with_a_tag_is_somebodys_entry_and_no_close() -> None:
    assert told(CLOSE, tagged(tag="entry"), facts=TAGGED).what is not Found.YES


def test_no_closing_order_and_a_flat_position_make_the_close_needless() -> None:
    assert told(CLOSE).what is Found.NEEDLESS


def test_no_closing_order_and_a_position_is_an_absence() -> None:
    held = Position(account="A", instrument="MNQ", quantity=Decimal(2))
    assert told(CLOSE, positions=(held,)).what is Found.ABSENT


def test_positions_that_could_not_be_read_are_not_flat() -> None:
    assert told(CLOSE, failed=(Source.POSITIONS,)).what is Found.WAIT


# --- cancels and changes ---


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (OrderStatus.CANCELLED, Found.YES),
        (OrderStatus.FILLED, Found.NO),
        (OrderStatus.EXPIRED, Found.NO),
        (OrderStatus.OPEN, Found.ABSENT),
        (OrderStatus.PENDING, Found.ABSENT),
        (OrderStatus.PARTIALLY_FILLED, Found.ABSENT),
        (OrderStatus.UNKNOWN, Found.ABSENT),
    ],
)
def test_a_cancel_is_told_by_the_status_of_its_order(status: OrderStatus, what: Found) -> None:
    assert told(CANCEL, structs.replace(ORDER, status=status)).what is what


def test_a_target_that_is_not_shown_proves_nothing_about_a_cancel() -> None:
    assert told(CANCEL).what is Found.UNCLEAR
    assert told(MODIFY).what is Found.UNCLEAR
    assert told(CANCEL, failed=(Source.HISTORY,)).what is Found.WAIT


def test_an_open_target_in_a_single_event_proves_nothing() -> None:
    assert told(CANCEL, view=partial_view([ORDER])).what is Found.WAIT


def test_a_change_is_told_by_the_values_of_its_order() -> None:
    changed = structs.replace(RESTING, limit_price=Decimal(101))
    assert told(MODIFY, changed, facts=TAGGED)[::2] == (Found.YES, "1")
    assert told(MODIFY, RESTING, facts=TAGGED).what is Found.ABSENT
    filled = structs.replace(RESTING, status=OrderStatus.FILLED)
    assert told(MODIFY, filled, facts=TAGGED).what is Found.NO


REPLACED = structs.replace(RESTING, status=OrderStatus.CANCELLED)
NEW = structs.replace(RESTING, id="2", limit_price=Decimal(101))


@pytest.mark.parametrize(
    ("orders", "what"),
    [
        ((REPLACED, NEW), Found.YES),
        ((REPLACED, NEW, structs.replace(NEW, id="3")), Found.ASK),
        ((REPLACED,), Found.UNCLEAR),
        ((RESTING,), Found.ABSENT),
        ((RESTING, NEW), Found.UNCLEAR),
        ((structs.replace(RESTING, status=OrderStatus.FILLED), NEW), Found.NO),
        ((REPLACED, structs.replace(NEW, quantity=Decimal(2))), Found.UNCLEAR),
        ((REPLACED, structs.replace(NEW, side=Side.SELL)), Found.UNCLEAR),
        ((REPLACED, structs.replace(NEW, type=OrderType.STOP)), Found.UNCLEAR),
        ((REPLACED, structs.replace(NEW, entered_at=AT - timedelta(hours=1))), Found.UNCLEAR),
    ],
)
def test_a_change_that_makes_a_new_order_is_told_by_both(
    orders: tuple[Order, ...], what: Found
) -> None:
    finding = told(MODIFY, *orders)
    assert finding.what is what
    assert finding.order_id == ("2" if what is Found.YES else finding.order_id)


def test_a_replacement_is_not_searched_for_where_orders_could_not_all_be_read() -> None:
    assert told(MODIFY, REPLACED, NEW, failed=(Source.HISTORY,)).what is Found.WAIT


def test_of_an_order_that_two_sources_show_the_ended_one_counts() -> None:
    filled = structs.replace(ORDER, status=OrderStatus.FILLED)
    for one, other in [((ORDER,), (filled,)), ((filled,), (ORDER,))]:
        view = whole_view(Evidence(open_orders=one, history=other))
        assert view.orders["1"].status is OrderStatus.FILLED
