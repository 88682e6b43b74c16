"""All intents of a broker together: who owns what, who waits for whom, what is asked and when."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from msgspec import structs
from tests.brokers.orders.venue import BY_LOOKS, TAGGED, order_intent

from keepline.brokers.base import BrokerFacts, Evidence, IntentKind, OrderIntent
from keepline.brokers.orders.book import Book, Release
from keepline.brokers.orders.resolution import How, State, Ticket
from keepline.model import Fill, Order, OrderStatus, OrderType, Side

WALL = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)


def order(number: str, *, at: float = 0.0, **changes: object) -> Order:
    given = {
        "account": "A", "instrument": "MNQ", "side": Side.BUY, "type": OrderType.MARKET,
        "status": OrderStatus.FILLED, "quantity": Decimal(1),
    } | changes  # fmt: skip
    return Order(id=number, entered_at=WALL + timedelta(seconds=at), **given)


class Desk:
    """A book, and tickets in it."""

    def __init__(self, facts: BrokerFacts = BY_LOOKS, *, kept: int = 10_000) -> None:
        self.facts = facts
        self.book = Book(facts, kept=kept)

    def prepared(self, intent: OrderIntent) -> Ticket:
        ticket = Ticket(intent, self.facts)
        self.book.add(ticket)
        self.book.enter_lane(ticket)
        return ticket

    def sent(self, intent: OrderIntent, *, at: float = 0.0) -> Ticket:
        ticket = self.prepared(intent)
        ticket.send(WALL + timedelta(seconds=at))
        self.book.update(ticket)
        return ticket

    def lost(self, intent: OrderIntent, *, at: float = 0.0) -> Ticket:
        ticket = self.sent(intent, at=at)
        ticket.lost("no answer", at, WALL + timedelta(seconds=at))
        self.book.update(ticket)
        return ticket

    def accepted(self, intent: OrderIntent, number: str | None) -> Ticket:
        ticket = self.sent(intent)
        ticket.answered(number, 0.0, WALL)
        self.book.update(ticket)
        return ticket

    def look(self, at: float, *orders: Order) -> list[Ticket]:
        """Everything that is due is asked at that time, and answered at once."""
        (look,) = self.book.due(at)
        return self.book.seen(look, Evidence(history=orders), at, at)


def test_an_order_that_was_answered_is_not_taken_for_a_lost_one() -> None:
    desk = Desk()
    desk.accepted(order_intent("one"), "1")
    two = desk.lost(order_intent("two"))
    desk.look(0.0, order("1"))
    assert two.state is State.UNKNOWN
    desk.look(2.0, order("1"), order("2"))
    assert (two.state, two.order_id) == (State.ACCEPTED, "2")


def test_two_equal_intents_share_two_equal_orders_in_the_order_in_which_they_came() -> None:
    desk = Desk()
    one, two = desk.lost(order_intent("one"), at=0.0), desk.lost(order_intent("two"), at=1.0)
    desk.look(1.0, order("8", at=1.2), order("7", at=0.2))
    assert (one.order_id, two.order_id) == ("7", "8")


def test_more_orders_than_intents_are_for_a_person_and_what_is_left_then_is_clear() -> None:
    desk = Desk()
    one, two = desk.lost(order_intent("one")), desk.lost(order_intent("two"))
    desk.look(0.0, order("7"), order("8"), order("9"))
    assert {one.state, two.state} == {State.AMBIGUOUS}
    one.decide("8", "seen")
    two.decide("9", "seen")
    for ticket in (one, two):
        desk.book.update(ticket)
    assert (desk.book.owner("8"), desk.book.owner("9")) == ("one", "two")


def test_a_decision_about_one_clears_the_other() -> None:
    desk = Desk()
    one = desk.lost(order_intent("one"))
    desk.look(0.0, order("7"), order("8"))
    assert one.state is State.AMBIGUOUS
    desk.accepted(order_intent("two"), "8")
    desk.book.reconsider("A", 5.0)
    desk.look(5.0, order("7"), order("8"))
    assert (one.state, one.order_id) == (State.ACCEPTED, "7")


def test_an_equal_intent_that_is_under_way_is_waited_for() -> None:
    desk = Desk()
    one, two = desk.lost(order_intent("one")), desk.sent(order_intent("two"))
    desk.look(0.0, order("7"))
    assert one.state is State.UNKNOWN
    two.answered("7", 1.0, WALL)
    desk.book.update(two)
    desk.look(3.0, order("7"))
    assert one.state is State.UNKNOWN, "7 is the other one's"


def test_a_presumed_absence_does_not_take_the_order_of_the_intent_that_came_after_it() -> None:
    desk = Desk()
    first = desk.lost(order_intent("first"))
    for at in (0.0, 5.0, 10.0):
        desk.look(at)
    assert first.state is State.PRESUMED_ABSENT
    (look,) = desk.book.due(1000.0)  # asked before the second one was lost
    second = desk.lost(order_intent("second"), at=10.5)
    desk.book.seen(look, Evidence(history=(order("7", at=10.6),)), 1000.0, 1000.0)
    assert first.state is State.PRESUMED_ABSENT
    desk.look(1003.0, order("7", at=10.6))
    assert (first.state, second.order_id) == (State.PRESUMED_ABSENT, "7")


def test_a_repeated_cancel_does_not_let_the_first_appear_late() -> None:
    desk = Desk(TAGGED)
    cancel = OrderIntent(id="c1", kind=IntentKind.CANCEL, account="A", target_order_id="7")
    first = desk.lost(cancel)
    working = order("7", status=OrderStatus.OPEN)
    for at in (0.0, 5.0, 10.0):
        desk.look(at, working)
    assert first.state is State.PRESUMED_ABSENT
    second = desk.sent(structs.replace(cancel, id="c2"), at=11.0)
    desk.book.witness(order("7", status=OrderStatus.CANCELLED), 12.0)
    assert (first.state, second.state) == (State.PRESUMED_ABSENT, State.ACCEPTED)


# --- events ---


def test_an_event_with_the_tag_settles_at_once_and_a_repeat_changes_nothing() -> None:
    desk = Desk(TAGGED)
    ticket = desk.sent(order_intent("one"))
    event = order("7", tag="one")
    assert desk.book.witness(event, 1.0) == [ticket]
    assert (ticket.how, ticket.order_id) == (How.STREAM, "7")
    assert desk.book.witness(event, 2.0) == []


def test_an_event_that_fits_by_its_looks_makes_the_next_look_come_soon() -> None:
    desk = Desk()
    ticket = desk.lost(order_intent("one"))
    for at in (0.0, 2.0, 6.0):
        desk.look(at)
    assert desk.book.next_at() == 10.0
    desk.book.witness(order("7"), 8.5)
    assert (ticket.state, desk.book.next_at()) == (State.UNKNOWN, 8.5)


def test_a_fill_of_nobody_makes_the_next_look_come_soon_and_one_of_ours_does_not() -> None:
    desk = Desk(TAGGED)
    desk.accepted(order_intent("ours"), "1")
    desk.lost(order_intent("one"))
    for at in (0.0, 2.0, 6.0):
        desk.look(at)
    fill = Fill(
        id="t",
        order_id="1",
        account="A",
        instrument="MNQ",
        side=Side.BUY,
        quantity=Decimal(1),
        price=Decimal(1),
        at=WALL,
    )
    desk.book.witness(fill, 8.5)
    assert desk.book.next_at() == 10.0
    desk.book.witness(structs.replace(fill, order_id="2"), 8.5)
    assert desk.book.next_at() == 8.5


def test_events_of_other_accounts_and_instruments_change_nothing() -> None:
    desk = Desk()
    desk.lost(order_intent("one"))
    desk.look(0.0)
    desk.book.witness(order("7", account="B"), 1.0)
    desk.book.witness(order("8", instrument="ES"), 1.0)
    assert desk.book.next_at() == 2.0


# --- looks ---


def test_one_look_covers_all_that_is_searched_for_in_an_account() -> None:
    desk = Desk()
    desk.lost(order_intent("one"), at=10.0)
    desk.lost(order_intent("two", instrument="ES"), at=20.0)
    desk.lost(
        OrderIntent(id="three", kind=IntentKind.CANCEL, account="B", target_order_id="5"), at=20.0
    )
    first, second = desk.book.due(30.0)
    assert first.covers == {"one", "two"}
    assert first.query.since == WALL + timedelta(seconds=10 - desk.facts.clock_skew_seconds)
    assert first.query.instruments == ("ES", "MNQ")
    assert (second.query.account, second.query.order_ids, second.query.instruments) == (
        "B",
        ("5",),
        (),
    )


def test_an_account_that_is_being_looked_at_is_not_due() -> None:
    desk = Desk()
    desk.lost(order_intent("one"))
    assert desk.book.due(0.0, {"A"}) == []
    assert desk.book.next_at({"A"}) is None


def test_nothing_to_find_out_asks_nothing() -> None:
    desk = Desk()
    desk.accepted(order_intent("one"), "1")
    desk.sent(order_intent("two"))
    assert desk.book.next_at() is None
    assert desk.book.due(1e9) == []


def test_a_look_back_reaches_as_far_as_asked_and_covers_what_is_searched_for() -> None:
    desk = Desk()
    desk.lost(order_intent("one"))
    long_ago = WALL - timedelta(hours=5)
    look = desk.book.look_since("A", long_ago)
    assert (look.query.since, look.covers) == (long_ago, {"one"})
    assert desk.book.look_since("B", long_ago).covers == frozenset()


# --- who waits ---


def depending(name: str, *names: str, **more: object) -> OrderIntent:
    return order_intent(name, depends_on=names, **more)


def test_what_depends_on_an_unknown_outcome_waits_for_it() -> None:
    desk = Desk()
    entry = desk.lost(order_intent("entry"))
    stop = depending("stop", "entry")
    assert desk.book.release(stop) == Release(waits_for=("entry",))
    entry.decide("7", "seen")
    assert desk.book.release(stop) == Release()


def test_what_depends_on_something_refused_or_absent_is_refused() -> None:
    desk = Desk()
    refused, gone = desk.sent(order_intent("refused")), desk.lost(order_intent("gone"))
    refused.refused("no", 0.0, WALL)
    gone.decide(None, "not there")
    assert "refused, which is refused" in desk.book.release(depending("a", "refused")).refused
    assert "presumed_absent" in desk.book.release(depending("b", "gone")).refused


def test_a_cancel_without_a_target_takes_the_order_it_depends_on() -> None:
    desk = Desk()
    cancel = OrderIntent(id="c", kind=IntentKind.CANCEL, account="A", depends_on=("entry",))
    entry = desk.accepted(order_intent("entry"), None)
    assert desk.book.release(cancel) == Release(waits_for=("entry",)), "its id is being looked for"
    desk.look(0.0, order("7"))
    assert desk.book.release(cancel) == Release(target="7")
    assert entry.order_id == "7"


def test_a_cancel_of_an_order_whose_id_cannot_be_found_is_refused() -> None:
    desk = Desk()
    cancel = OrderIntent(id="c", kind=IntentKind.CANCEL, account="A", depends_on=("entry",))
    desk.accepted(order_intent("entry"), None)
    while (at := desk.book.next_at()) is not None:
        desk.look(at)
    assert "order id of entry is not known" in desk.book.release(cancel).refused


def close(name: str, kind: IntentKind = IntentKind.CLOSE, **more: object) -> OrderIntent:
    return OrderIntent(
        id=name,
        kind=kind,
        account="A",
        instrument=str(more.get("instrument", "MNQ")),
        quantity=Decimal(1),
    )


def test_a_second_close_waits_for_the_first_and_one_of_another_instrument_does_not() -> None:
    desk = Desk()
    first = desk.lost(close("first"))
    second = desk.prepared(close("second", IntentKind.PARTIAL_CLOSE))
    assert desk.book.release(second.intent) == Release(waits_for=("first",))
    assert desk.book.release(close("other", instrument="ES")) == Release()
    first.decide(None, "absent")
    desk.book.update(first)
    assert desk.book.release(second.intent) == Release(), "settled, however, is enough"


def test_a_second_change_of_an_order_waits_and_a_cancel_does_not() -> None:
    desk = Desk()
    change = OrderIntent(
        id="m1", kind=IntentKind.MODIFY, account="A", target_order_id="7", quantity=Decimal(2)
    )
    desk.lost(change)
    assert desk.book.release(structs.replace(change, id="m2")).waits_for == ("m1",)
    assert desk.book.release(structs.replace(change, id="m2", target_order_id="8")) == Release()
    cancel = OrderIntent(id="c", kind=IntentKind.CANCEL, account="A", target_order_id="7")
    assert desk.book.release(cancel) == Release()


# --- room ---


def test_old_settled_intents_make_room_and_unsettled_ones_never_do() -> None:
    desk = Desk(kept=3)
    lost = desk.lost(order_intent("lost"))
    for number in range(10):
        desk.accepted(order_intent(f"i{number}"), str(number))
    assert len(desk.book) == 4
    assert desk.book.get("lost") is lost
    assert desk.book.owner("0") is None
    assert desk.book.owner("9") == "i9"
    assert {ticket.intent.id for ticket in desk.book} == {"lost", "i7", "i8", "i9"}


def test_an_intent_that_never_came_to_be_leaves_nothing() -> None:
    desk = Desk()
    desk.prepared(close("first"))
    desk.book.discard("first")
    desk.book.discard("first")
    assert len(desk.book) == desk.book.unsettled_count == 0
    assert desk.book.release(close("second")) == Release()


def test_what_a_person_could_settle_is_known() -> None:
    desk = Desk()
    assert not desk.book.wants_person
    ticket = desk.sent(order_intent("one"))
    assert not desk.book.wants_person, "under way"
    ticket.lost("no answer", 0.0, WALL)
    desk.book.update(ticket)
    assert desk.book.wants_person
