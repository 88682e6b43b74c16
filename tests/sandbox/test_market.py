"""Claims about the sandbox's market: bare numbers in, values out."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.sandbox.book import (
    Fill,
    Kind,
    Order,
    Position,
    Reason,
    Rejected,
    Side,
    Status,
    Terms,
    Ticket,
)
from keepline.sandbox.engine import MOST_EVENTS
from keepline.sandbox.listings import LISTINGS
from keepline.sandbox.market import Market

MES = "CON.F.US.MES.Z26"
PX, SCHWAB = "1001", "10000001"
NOW = 1_767_623_400.0  # 2026-01-05 14:30 UTC, a Monday
TICK = Decimal("0.25")


def market(price: str = "6000") -> Market:
    """A market whose one future stands still."""
    made = Market()
    made.pin(MES, Decimal(price), now=NOW)
    return made


def ticket(
    kind: Kind = Kind.MARKET, side: Side = Side.BUY, size: int = 1, **more: object
) -> Ticket:
    more = {k: Decimal(str(v)) if k in ("limit", "stop", "trail") else v for k, v in more.items()}
    given = {"account": PX, "listing": MES, "side": side, "kind": kind, "size": Decimal(size)}
    return Ticket(**given | more)  # type: ignore[arg-type]


def held(made: Market, account: str = PX, listing: str = MES) -> Decimal:
    position = made.holdings.position(account, listing)
    return position.size if position else Decimal(0)


def status(made: Market, order: Order) -> Status:
    return made.order(order.id, account=order.account).status


def test_a_market_order_is_filled_at_once_at_the_other_side() -> None:
    made = market()
    order = made.place(ticket(size=3), now=NOW)
    assert (order.status, order.filled, order.average) == (Status.FILLED, 3, Decimal("6000.25"))
    sold = made.place(ticket(side=Side.SELL, size=1), now=NOW)
    assert sold.average == 6000
    assert held(made) == 2


def test_a_large_order_is_filled_second_by_second() -> None:
    made = market()
    order = made.place(ticket(size=25), now=NOW)
    assert (order.status, order.filled) == (Status.WORKING, 10)
    made.advance(NOW + 1)
    assert made.order(order.id, account=PX).filled == 20
    made.advance(NOW + 2)
    assert status(made, order) is Status.FILLED
    assert [fill.size for fill in made.fills_of(order.id)] == [10, 10, 5]


def test_a_limit_order_waits_for_its_price() -> None:
    made = market()
    order = made.place(ticket(Kind.LIMIT, limit=5999), now=NOW)
    assert order.status is Status.WORKING
    made.pin(MES, Decimal("5998.75"), now=NOW + 1)  # the ask is at the limit
    assert made.order(order.id, account=PX).average == 5999
    sell = made.place(ticket(Kind.LIMIT, Side.SELL, limit=6001), now=NOW + 1)
    made.pin(MES, Decimal(6002), now=NOW + 2)
    assert made.order(sell.id, account=PX).average == 6002


@pytest.mark.parametrize(
    ("side", "stop", "before", "at"), [(Side.BUY, 6010, 6009, 6010), (Side.SELL, 5990, 5991, 5990)]
)
def test_a_stop_order_wakes_at_its_price(side: Side, stop: int, before: int, at: int) -> None:
    made = market()
    order = made.place(ticket(Kind.STOP, side, stop=stop), now=NOW)
    made.pin(MES, Decimal(before), now=NOW + 1)
    assert status(made, order) is Status.WORKING
    made.pin(MES, Decimal(at), now=NOW + 2)
    assert status(made, order) is Status.FILLED


def test_a_stop_limit_order_wakes_and_then_waits_for_its_limit() -> None:
    made = market()
    order = made.place(ticket(Kind.STOP_LIMIT, stop=6010, limit=6005), now=NOW)
    made.pin(MES, Decimal(6010), now=NOW + 1)
    assert made.order(order.id, account=PX).triggered
    assert status(made, order) is Status.WORKING
    made.pin(MES, Decimal(6004), now=NOW + 2)
    assert status(made, order) is Status.FILLED


def test_a_trailing_stop_follows_and_never_goes_back() -> None:
    made = market()
    order = made.place(ticket(Kind.TRAILING_STOP, Side.SELL, trail=5), now=NOW)
    assert order.stop == 5995
    made.pin(MES, Decimal(6010), now=NOW + 1)
    made.pin(MES, Decimal(6006), now=NOW + 2)
    assert made.order(order.id, account=PX).stop == 6005
    made.pin(MES, Decimal(6005), now=NOW + 3)
    assert status(made, order) is Status.FILLED


def test_a_join_order_stands_at_the_bid_or_the_ask() -> None:
    made = market()
    assert made.place(ticket(Kind.JOIN_BID), now=NOW).limit == 6000
    assert made.place(ticket(Kind.JOIN_ASK, Side.SELL), now=NOW).limit == Decimal("6000.25")


def test_prices_that_do_not_belong_to_the_kind_are_not_looked_at() -> None:
    made = market()
    assert made.place(ticket(limit=1, stop=9000), now=NOW).status is Status.FILLED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account": "7"}, Reason.ACCOUNT),
        ({"account": "1002"}, Reason.ACCOUNT_CLOSED),
        ({"listing": "CON.F.US.XX.Z26"}, Reason.LISTING),
        ({"listing": "CON.F.US.MES.H25"}, Reason.LISTING_CLOSED),
        ({"size": Decimal(0)}, Reason.SIZE),
        ({"size": Decimal(-1)}, Reason.SIZE),
        ({"size": Decimal("1.5")}, Reason.SIZE),
        ({"kind": Kind.LIMIT}, Reason.PRICE),
        ({"kind": Kind.LIMIT, "limit": 0}, Reason.PRICE),
        ({"kind": Kind.STOP}, Reason.PRICE),
        ({"kind": Kind.TRAILING_STOP}, Reason.PRICE),
        ({"kind": Kind.STOP_LIMIT, "stop": 6000}, Reason.PRICE),
        ({"kind": Kind.LIMIT, "limit": "6000.1"}, Reason.TICK),
        ({"size": Decimal(301)}, Reason.FUNDS),
        ({"stop_loss": 10}, Reason.BRACKET),
        ({"take_profit": -10}, Reason.BRACKET),
        ({"side": Side.SELL, "stop_loss": -10}, Reason.BRACKET),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    changes: dict[str, object], reason: Reason
) -> None:
    made = market()
    with pytest.raises(Rejected) as caught:
        made.place(ticket(**changes), now=NOW)  # type: ignore[arg-type]
    assert caught.value.reason is reason
    assert made.orders == []
    assert made.events_since(0) == []


def test_a_tag_is_taken_once_by_an_account() -> None:
    made = market()
    first = made.place(ticket(tag="t1"), now=NOW)
    with pytest.raises(Rejected, match="'t1' was used by order") as caught:
        made.place(ticket(tag="t1"), now=NOW + 86_400)
    assert caught.value.reason is Reason.TAG
    again = made.place(ticket(tag="t1"), now=NOW, terms=Terms(duplicates="original"))
    assert again.id == first.id
    twin = made.place(ticket(tag="t1"), now=NOW, terms=Terms(duplicates="accept"))
    assert twin.id != first.id
    assert held(made) == 2
    made.place(ticket(), now=NOW)
    assert made.place(ticket(), now=NOW).status is Status.FILLED  # no tag is no tag


def test_a_cancelled_order_is_over() -> None:
    made = market()
    order = made.place(ticket(Kind.LIMIT, limit=5000), now=NOW)
    assert made.cancel(order.id, account=PX, now=NOW + 1).status is Status.CANCELLED
    made.pin(MES, Decimal(4000), now=NOW + 2)
    assert made.fills == []
    for deed in (made.cancel, made.modify):
        with pytest.raises(Rejected, match="is cancelled") as caught:
            deed(order.id, account=PX, now=NOW + 3)
        assert caught.value.reason is Reason.OVER


def test_a_filled_order_says_so_when_it_is_cancelled() -> None:
    made = market()
    order = made.place(ticket(), now=NOW)
    with pytest.raises(Rejected) as caught:
        made.cancel(order.id, account=PX, now=NOW)
    assert caught.value.reason is Reason.FILLED


def test_nobody_sees_the_orders_of_another_account() -> None:
    made = market()
    order = made.place(ticket(Kind.LIMIT, limit=5000), now=NOW)
    for number, account in ((order.id, SCHWAB), (1, PX)):
        with pytest.raises(Rejected) as caught:
            made.cancel(number, account=account, now=NOW)
        assert caught.value.reason is Reason.ORDER


def test_a_modified_order_keeps_its_number_and_what_was_not_told() -> None:
    made = market()
    order = made.place(ticket(Kind.LIMIT, limit=5000, size=2), now=NOW)
    changed = made.modify(order.id, account=PX, now=NOW + 1, size=Decimal(3))
    assert (changed.id, changed.limit, changed.size) == (order.id, 5000, 3)
    changed = made.modify(order.id, account=PX, now=NOW + 2, limit=Decimal(6001))
    assert (changed.status, changed.filled) == (Status.FILLED, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": Decimal(4)}, Reason.SIZE),
        ({"size": Decimal("20.5")}, Reason.SIZE),
        ({"limit": Decimal("5000.1")}, Reason.TICK),
        ({"stop": Decimal(-1)}, Reason.PRICE),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    change: dict[str, Decimal], reason: Reason
) -> None:
    made = market()
    order = made.place(ticket(Kind.LIMIT, limit=5000, size=20), now=NOW, terms=Terms(part=0.2))
    assert order.filled == 4
    with pytest.raises(Rejected) as caught:
        made.modify(order.id, account=PX, now=NOW, **change)  # type: ignore[arg-type]
    assert caught.value.reason is reason
    assert made.order(order.id, account=PX) == order


def test_a_replaced_order_is_another_order() -> None:
    made = market()
    old = made.place(ticket(Kind.LIMIT, limit=5000), now=NOW)
    new = made.replace(old.id, ticket(Kind.LIMIT, limit=5001), now=NOW + 1)
    was = made.order(old.id, account=PX)
    assert (was.status, was.replaced_by) == (Status.REPLACED, new.id)
    with pytest.raises(Rejected):
        made.replace(old.id, ticket(), now=NOW + 2)
    with pytest.raises(Rejected):
        made.replace(new.id, ticket(size=0), now=NOW + 2)
    assert status(made, new) is Status.WORKING


def test_closing_goes_the_other_way() -> None:
    made = market()
    made.place(ticket(side=Side.SELL, size=5), now=NOW)
    part = made.close(PX, MES, now=NOW, size=Decimal(2))
    assert (part.side, held(made)) == (Side.BUY, -3)
    for size in (Decimal(4), Decimal(0)):
        with pytest.raises(Rejected) as caught:
            made.close(PX, MES, now=NOW, size=size)
        assert caught.value.reason is Reason.CLOSE_SIZE
    made.close(PX, MES, now=NOW)
    assert made.positions == []
    with pytest.raises(Rejected) as caught:
        made.close(PX, MES, now=NOW)
    assert caught.value.reason is Reason.POSITION


def test_brackets_wait_for_the_entry_and_the_first_fill_ends_the_other() -> None:
    made = market()
    entry = made.place(
        ticket(Kind.LIMIT, limit=5999, tag="b", stop_loss=-8, take_profit=16), now=NOW
    )
    stop, target = (order for order in made.orders if order.parent == entry.id)
    assert (stop.tag, target.tag) == ("b-SL", "b-TP")
    assert {stop.status, target.status} == {Status.SUSPENDED}
    assert stop.stop is None
    made.pin(MES, Decimal("5998.75"), now=NOW + 1)
    stop, target = (made.order(order.id, account=PX) for order in (stop, target))
    assert (stop.stop, target.limit) == (5997, 6003)
    assert {stop.status, target.status} == {Status.WORKING}
    made.pin(MES, Decimal(6003), now=NOW + 2)
    assert (status(made, target), status(made, stop)) == (Status.FILLED, Status.CANCELLED)
    assert held(made) == 0


def test_brackets_go_with_an_entry_that_is_cancelled() -> None:
    made = market()
    entry = made.place(
        ticket(Kind.LIMIT, Side.SELL, limit=7000, stop_loss=8, take_profit=-8), now=NOW
    )
    made.cancel(entry.id, account=PX, now=NOW)
    assert {order.status for order in made.orders} == {Status.CANCELLED}


def test_both_brackets_touched_in_one_second_fill_one() -> None:
    made = market()
    made.place(ticket(stop_loss=-1, take_profit=1), now=NOW)
    stop, target = made.orders[1:]
    made.modify(target.id, account=PX, now=NOW, limit=Decimal(5000))
    made.pin(MES, Decimal(5000), now=NOW + 1)
    assert {status(made, stop), status(made, target)} == {Status.FILLED, Status.CANCELLED}
    assert held(made) == 0


def test_an_order_of_a_day_expires() -> None:
    made = market()
    order = made.place(ticket(Kind.LIMIT, limit=5000, expires_at=NOW + 60), now=NOW)
    made.advance(NOW + 59)
    assert status(made, order) is Status.WORKING
    made.advance(NOW + 60)
    assert status(made, order) is Status.EXPIRED


def test_a_fault_fills_a_part_and_the_rest_after_a_pause() -> None:
    made = market()
    order = made.place(ticket(size=10), now=NOW, terms=Terms(part=0.5, pause=5))
    assert (order.status, order.filled) == (Status.WORKING, 5)
    made.advance(NOW + 4.9)
    assert made.order(order.id, account=PX).filled == 5
    made.advance(NOW + 5)
    assert status(made, order) is Status.FILLED


def test_a_part_is_filled_whatever_the_market_but_one_unit_is_never_split() -> None:
    made = market()
    far = made.place(ticket(Kind.LIMIT, limit=5000, size=2), now=NOW, terms=Terms(part=1.0))
    assert (far.filled, far.average) == (1, 5000)
    one = made.place(ticket(size=1), now=NOW, terms=Terms(part=0.5))
    assert one.filled == 0
    sleeping = made.place(ticket(Kind.STOP, stop=7000, size=4), now=NOW, terms=Terms(part=0.5))
    assert (sleeping.filled, sleeping.average) == (2, 7000)


def test_work_of_later_is_done_in_order_at_its_time() -> None:
    made = market()
    done: list[tuple[str, float]] = []
    made.later(NOW + 8, lambda at: done.append(("b", at)))
    made.later(NOW + 3, lambda at: done.append(("a", at)))
    made.later(NOW + 8, lambda at: done.append(("c", at)))
    made.advance(NOW + 7.9)
    assert done == [("a", NOW + 3)]
    made.advance(NOW + 100)
    assert done == [("a", NOW + 3), ("b", NOW + 8), ("c", NOW + 8)]


def test_time_does_not_go_back() -> None:
    made = market()
    made.advance(NOW + 100)
    order = made.place(ticket(), now=NOW - 3600)
    assert order.entered_at == NOW + 100


def test_days_go_by_in_a_bounded_number_of_looks() -> None:
    made = Market()
    order = made.place(ticket(Kind.LIMIT, limit=1), now=NOW)
    looks = 0

    def counted(listing: object, now: float) -> object:
        nonlocal looks
        looks += 1
        return quote(listing, now)  # type: ignore[arg-type]

    quote, made._engine.quote = made._engine.quote, counted  # type: ignore[assignment,method-assign]
    made.advance(NOW + 30 * 86_400)
    assert looks <= 7_201
    assert status(made, order) is Status.WORKING


def test_a_pin_that_is_let_go_gives_way_to_the_walk() -> None:
    made = market("1000")
    made.pin(MES, None, now=NOW)
    listing = LISTINGS[MES]
    assert made.quote(listing, now=NOW) == made.prices.quote(listing, NOW)


def test_every_change_is_one_event_and_the_numbers_have_no_gap() -> None:
    made = market()
    made.place(ticket(size=2), now=NOW)
    made.cancel(made.place(ticket(Kind.LIMIT, limit=1), now=NOW).id, account=PX, now=NOW)
    events = made.events_since(0)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [type(event.item) for event in events] == [Order, Order, Fill, Position, Order, Order]
    assert made.events_since(4) == events[4:]
    assert made.events_since(99) == []
    assert made.events_since(-5) == events


def test_old_events_are_forgotten_and_the_numbers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_EVENTS >= 10_000
    monkeypatch.setattr("keepline.sandbox.engine.MOST_EVENTS", 3)
    made = market()
    for _ in range(4):
        made.place(ticket(Kind.LIMIT, limit=1), now=NOW)
    assert [event.number for event in made.events_since(0)] == [2, 3, 4]


def test_a_position_remembers_what_it_cost_and_earns_when_it_is_closed() -> None:
    made = market()
    made.place(ticket(size=2), now=NOW)  # at 6000.25
    made.pin(MES, Decimal(6010), now=NOW)
    made.place(ticket(size=2), now=NOW)  # at 6010.25
    (position,) = made.positions
    assert position.average == Decimal("6005.25")
    made.place(ticket(side=Side.SELL, size=3), now=NOW)  # at 6010
    assert made.fills[-1].profit == Decimal("4.75") / TICK * Decimal("1.25") * 3
    assert [fill.profit for fill in made.fills[:2]] == [None, None]
    fees = Decimal("0.37") * 7
    assert made.holdings.cash(PX) == 150_000 + made.fills[-1].profit - fees


def test_a_position_that_turns_takes_the_new_price_and_one_reopened_a_new_id() -> None:
    made = market()
    made.place(ticket(size=2), now=NOW)
    first = made.positions[0].id
    made.place(ticket(side=Side.SELL, size=5), now=NOW)
    (position,) = made.positions
    assert (position.size, position.average, position.id) == (-3, 6000, first)
    made.close(PX, MES, now=NOW)
    made.place(ticket(), now=NOW)
    assert made.positions[0].id != first


def test_shares_are_paid_in_full() -> None:
    made = Market()
    made.pin("AAPL", Decimal(200), now=NOW)
    buy = ticket(account=SCHWAB, listing="AAPL", size=400)
    made.place(buy, now=NOW)
    assert made.holdings.cash(SCHWAB) == 1_000_000 - 400 * Decimal("200.01")
    with pytest.raises(Rejected) as caught:
        made.place(ticket(account=SCHWAB, listing="AAPL", size=5_000), now=NOW)
    assert caught.value.reason is Reason.FUNDS
    made.place(ticket(account=SCHWAB, listing="AAPL", side=Side.SELL, size=5_000), now=NOW)


def test_closing_never_lacks_funds() -> None:
    made = market()
    for _ in range(3):
        made.place(ticket(size=10), now=NOW)
    made.pin(MES, Decimal(1), now=NOW)  # all cash is lost
    made.place(ticket(side=Side.SELL, size=10), now=NOW)
    assert made.holdings.cash(PX) < 0
    assert made.close(PX, MES, now=NOW).status is not Status.REJECTED


def test_an_order_may_be_taken_only_to_be_rejected() -> None:
    made = market()
    order = made.record_rejected(ticket(), now=NOW, words="no")
    assert (order.status, order.words) == (Status.REJECTED, "no")
    made.advance(NOW + 10)
    assert made.fills == []


deeds = st.tuples(
    st.sampled_from(["place", "cancel", "modify", "close", "wait", "move"]),
    st.sampled_from(list(Kind)),
    st.sampled_from(list(Side)),
    st.integers(1, 30),
    st.integers(-20, 20),
)


def play(made: Market, script: list[tuple[str, Kind, Side, int, int]]) -> None:
    now, price = NOW, Decimal(6000)
    for what, kind, side, size, ticks in script:
        price = max(Decimal(5000), price + ticks * TICK) if what == "move" else price
        away = price + ticks * TICK
        working = [order.id for order in made.orders if order.status is Status.WORKING] or [1]
        try:
            match what:
                case "place":
                    asked = ticket(kind, side, size, limit=away, stop=away, trail=TICK * size)
                    made.place(asked, now=now, terms=Terms(part=0.5 if ticks % 3 == 0 else None))
                case "cancel":
                    made.cancel(working[size % len(working)], account=PX, now=now)
                case "modify":
                    made.modify(working[0], account=PX, now=now, size=Decimal(size), limit=away)
                case "close":
                    made.close(PX, MES, now=now, size=Decimal(size) if ticks > 0 else None)
                case "wait":
                    now += size / 4
                    made.advance(now)
                case "move":
                    made.pin(MES, price, now=now)
        except Rejected:
            pass


@given(st.lists(deeds, max_size=40))
def test_positions_are_the_sum_of_the_fills_whatever_happens(
    script: list[tuple[str, Kind, Side, int, int]],
) -> None:
    made = market()
    play(made, script)
    assert held(made) == sum((fill.size * fill.side.value for fill in made.fills), Decimal(0))
    assert len({fill.id for fill in made.fills}) == len(made.fills)
    for order in made.orders:
        fills = made.fills_of(order.id)
        assert order.filled == sum((fill.size for fill in fills), Decimal(0))
        assert order.filled <= order.size
        assert (order.status is Status.FILLED) == (order.filled == order.size)
        if fills:
            paid = sum(f.price * f.size for f in fills)
            assert abs(order.average * order.filled - paid) < Decimal(
                "1e-15"
            )  # an average is a fraction
    earned = sum((fill.profit or 0) - fill.fees for fill in made.fills)
    assert abs(made.holdings.cash(PX) - 150_000 - earned) < Decimal("1e-15")


@given(st.lists(deeds, max_size=20))
def test_the_same_calls_give_the_same_history(
    script: list[tuple[str, Kind, Side, int, int]],
) -> None:
    one, two = Market(seed=7), Market(seed=7)
    play(one, script)
    play(two, script)
    assert one.events_since(0) == two.events_since(0)
