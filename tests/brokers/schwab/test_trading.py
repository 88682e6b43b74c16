"""Schwab behind the port of the order gateway, against a real server on loopback."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from tests.brokers.loopback import AT_ONCE, Reply, Venue, tokens, unlimited
from tests.brokers.schwab.test_client import (
    ACCOUNTS,
    HASH,
    HOUR,
    NUMBER,
    ORDER,
    ORDERS,
    START,
    created,
)

from keepline.brokers.base import Ack, Broker, EvidenceQuery, IntentKind, OrderIntent, Source
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import OrderInfo, SecuritiesAccount
from keepline.brokers.schwab.messages import OrderStatus as Status
from keepline.brokers.schwab.trading import SCHWAB_FACTS, SchwabTrading
from keepline.brokers.schwab.words import account_of, fills_of, order_of, orders_of, request_of
from keepline.errors import (
    ConfigError,
    KeeplineError,
    OutcomeUnknown,
    PermanentError,
    TransientError,
)
from keepline.model import OrderStatus, OrderType, Side
from keepline.testing import ManualClock

NUMBERS = Reply([{"accountNumber": NUMBER, "hashValue": HASH}])
OPTION = "AAPL  260116C00200000"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(wall=START + 2 * HOUR)


@pytest.fixture
async def client(venue: Venue, clock: ManualClock) -> AsyncIterator[SchwabClient]:
    venue.on(f"{ACCOUNTS}/accountNumbers", NUMBERS)
    venue.on(ORDERS, created())
    async with SchwabClient(
        tokens, base_url=venue.url, limiter=unlimited(), retry=AT_ONCE, clock=clock
    ) as made:
        yield made


@pytest.fixture
def trading(client: SchwabClient) -> SchwabTrading:
    return SchwabTrading(client)


def intent(**changes: Any) -> OrderIntent:
    fields: dict[str, Any] = {
        "id": "intent-1",
        "account": NUMBER,
        "instrument": "AAPL",
        "side": Side.BUY,
    }
    return OrderIntent(**(fields | {"quantity": Decimal(10), "type": OrderType.MARKET} | changes))


def holding(symbol: str, long: int = 0, short: int = 0) -> Reply:
    row = {
        "longQuantity": long,
        "shortQuantity": short,
        "averagePrice": 1.5,
        "instrument": {"symbol": symbol},
    }
    return Reply({"securitiesAccount": {"accountNumber": NUMBER, "positions": [row]}})


def leg(venue: Venue) -> dict[str, Any]:
    (only,) = venue.last().body["orderLegCollection"]
    return {
        "instruction": only["instruction"],
        "quantity": only["quantity"],
        "type": only["instrument"]["assetType"],
    }


def test_it_is_a_broker(trading: SchwabTrading) -> None:
    broker: Broker = trading
    assert broker.name == "schwab"
    assert broker.facts is SCHWAB_FACTS
    assert broker.facts.replace_makes_new_order
    assert not broker.facts.tag_echoed


async def test_a_stock_is_bought_and_sold_without_a_look_at_the_positions(
    venue: Venue, trading: SchwabTrading
) -> None:
    assert await trading.place(intent()) == Ack("1001")
    assert leg(venue) == {"instruction": "BUY", "quantity": 10, "type": "EQUITY"}
    await trading.place(intent(side=Side.SELL, type=OrderType.LIMIT, limit_price=Decimal("1.50")))
    assert (leg(venue)["instruction"], venue.last().body["price"]) == ("SELL", "1.50")
    assert venue.count(HASH) == 0


@pytest.mark.parametrize(
    ("symbol", "side", "long", "short", "instruction"),
    [
        ("AAPL", Side.SELL, 10, 0, "SELL"), ("AAPL", Side.SELL, 0, 0, "SELL_SHORT"),
        ("AAPL", Side.BUY, 0, 10, "BUY_TO_COVER"), ("AAPL", Side.BUY, 0, 0, "BUY"),
        (OPTION, Side.BUY, 0, 0, "BUY_TO_OPEN"), (OPTION, Side.BUY, 0, 1, "BUY_TO_CLOSE"),
        (OPTION, Side.SELL, 1, 0, "SELL_TO_CLOSE"), (OPTION, Side.SELL, 0, 0, "SELL_TO_OPEN"),
    ],
)  # fmt: skip
async def test_with_short_sales_what_is_held_decides_the_instruction(
    venue: Venue,
    client: SchwabClient,
    symbol: str,
    side: Side,
    long: int,
    short: int,
    instruction: str,
) -> None:
    venue.on(f"{ACCOUNTS}/{HASH}", holding(symbol, long, short))
    await SchwabTrading(client, short_sales=True).place(intent(instrument=symbol, side=side))
    assert leg(venue)["instruction"] == instruction


async def test_an_option_opens_or_closes_by_what_is_held(
    venue: Venue, trading: SchwabTrading
) -> None:
    venue.on(f"{ACCOUNTS}/{HASH}", holding(OPTION, 1))
    await trading.place(intent(instrument=OPTION, side=Side.SELL))
    assert leg(venue) == {"instruction": "SELL_TO_CLOSE", "quantity": 10, "type": "OPTION"}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"type": OrderType.JOIN_BID}, "type", "Schwab has no join_bid orders"),
        ({"take_profit_ticks": 4}, "take_profit_ticks", "no brackets by ticks"),
        ({"stop_loss_ticks": 4}, "stop_loss_ticks", "no brackets by ticks"),
        ({"quantity": Decimal("1.5")}, "quantity", "whole number"),
        ({"type": OrderType.LIMIT, "limit_price": Decimal("1.005")}, "limit_price", "off the tick"),
        ({"type": OrderType.LIMIT, "limit_price": Decimal(-1)}, "limit_price", "no price above 0"),
        (
            {"type": OrderType.TRAILING_STOP, "trail_price": Decimal("1.005")},
            "trail_price",
            "off the tick",
        ),
        ({"account": ""}, "account", "not empty"),
        ({"instrument": " "}, "instrument", "not empty"),
        ({"kind": IntentKind.CANCEL, "target_order_id": "abc"}, "target_order_id", "whole number"),
        ({"kind": IntentKind.MODIFY, "target_order_id": "abc"}, "target_order_id", "whole number"),
        (
            {"kind": IntentKind.PARTIAL_CLOSE, "quantity": Decimal("0.5")},
            "quantity",
            "whole number",
        ),
    ],
)
def test_an_intent_that_makes_no_sense_is_refused_without_io(
    venue: Venue, trading: SchwabTrading, changes: dict[str, Any], key: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        trading.check(intent(**changes))
    assert caught.value.key == key
    assert venue.seen == []


def test_what_is_right_passes_the_check(trading: SchwabTrading) -> None:
    for changes in (
        {},
        {"kind": IntentKind.CANCEL, "depends_on": ("a",), "quantity": None},
        {"kind": IntentKind.MODIFY, "target_order_id": "7"},
        {"kind": IntentKind.CLOSE, "quantity": None},
    ):
        trading.check(intent(**changes))


@pytest.mark.parametrize("missing", ["side", "type", "quantity"])
def test_an_order_without_an_essential_is_no_order(missing: str) -> None:
    with pytest.raises(ConfigError, match="side, type and quantity"):
        request_of(intent(**{missing: None}))


# --- closing ---


@pytest.mark.parametrize(
    ("long", "short", "quantity", "instruction", "sent"),
    [(10, 0, None, "SELL", 10), (0, 7, None, "BUY_TO_COVER", 7), (10, 0, Decimal(4), "SELL", 4)],
)
async def test_a_position_is_closed_by_a_market_order_against_it(
    venue: Venue,
    trading: SchwabTrading,
    long: int,
    short: int,
    quantity: Decimal | None,
    instruction: str,
    sent: int,
) -> None:
    venue.on(f"{ACCOUNTS}/{HASH}", holding("AAPL", long, short))
    wanted = intent(kind=IntentKind.CLOSE, side=None, quantity=quantity, type=None)
    closing = trading.close(wanted) if quantity is None else trading.partial_close(wanted)
    assert await closing == Ack("1001")
    assert venue.last().body["orderType"] == "MARKET"
    assert leg(venue) == {"instruction": instruction, "quantity": sent, "type": "EQUITY"}


async def test_what_cannot_be_closed_is_not_sent(venue: Venue, trading: SchwabTrading) -> None:
    venue.on(f"{ACCOUNTS}/{HASH}", holding("AAPL", 10))
    with pytest.raises(PermanentError, match="no position in MSFT") as caught:
        await trading.close(intent(kind=IntentKind.CLOSE, instrument="MSFT"))
    assert caught.value.sent is False
    with pytest.raises(ConfigError, match="11 is more than the 10 that there are"):
        await trading.partial_close(intent(quantity=Decimal(11)))
    with pytest.raises(ConfigError, match="closing it takes a sell"):
        await trading.close(intent(quantity=None, side=Side.BUY))
    with pytest.raises(ConfigError, match="how much"):
        await trading.partial_close(intent(quantity=None))
    assert venue.count("orders") == 0


@pytest.mark.parametrize("reply", [Reply(status=503), Reply(cut=True)])
async def test_a_look_that_fails_before_an_order_is_no_unknown_outcome(
    venue: Venue, trading: SchwabTrading, reply: Reply
) -> None:
    venue.on(f"{ACCOUNTS}/{HASH}", reply)
    venue.on(f"{ORDERS}/1001", reply)
    looks = (
        trading.close(intent(kind=IntentKind.CLOSE)),
        trading.modify(intent(kind=IntentKind.MODIFY, target_order_id="1001")),
    )
    for look in looks:
        with pytest.raises(TransientError, match="what must be known before") as caught:
            await look
        assert caught.value.sent is False
    assert venue.count("/orders") == 0


async def test_a_look_that_takes_too_long_is_given_up(
    venue: Venue, trading: SchwabTrading, client: SchwabClient, clock: ManualClock
) -> None:
    asked = asyncio.Event()

    async def never() -> str:
        asked.set()
        await asyncio.Event().wait()
        return ""

    async with SchwabClient(never, base_url=venue.url, clock=clock) as slow:
        closing = asyncio.create_task(SchwabTrading(slow).place(intent()))
        await asked.wait()
        await clock.run_until(closing.done)
        with pytest.raises(KeeplineError) as caught:
            await closing
    assert getattr(caught.value, "sent", False) is False
    assert venue.seen == []


# --- changing ---


async def test_a_replacement_keeps_what_the_intent_leaves_open(
    venue: Venue, trading: SchwabTrading
) -> None:
    old = ORDER | {"duration": "GOOD_TILL_CANCEL", "stopPrice": 0.0}
    venue.on(f"GET {ORDERS}/1001", Reply(old))
    venue.on(f"PUT {ORDERS}/1001", created(1002))
    change = intent(
        kind=IntentKind.MODIFY,
        target_order_id="1001",
        type=None,
        quantity=None,
        limit_price=Decimal("1.5"),
    )
    assert await trading.modify(change) == Ack("1002")
    body = venue.last().body
    assert (body["orderType"], body["price"], body["duration"]) == (
        "LIMIT",
        "1.5",
        "GOOD_TILL_CANCEL",
    )
    assert "stopPrice" not in body
    assert leg(venue) == {
        "instruction": "BUY",
        "quantity": 6,
        "type": "EQUITY",
    }  # four of ten are filled
    await trading.modify(
        intent(kind=IntentKind.MODIFY, target_order_id="1001", type=None, quantity=Decimal(3))
    )
    assert (leg(venue)["quantity"], venue.last().body["price"]) == (3, "145.32")
    await trading.modify(
        intent(target_order_id="1001", type=OrderType.STOP, stop_price=Decimal(140), quantity=None)
    )
    assert (venue.last().body["orderType"], venue.last().body["stopPrice"]) == ("STOP", "140")


async def test_an_order_of_several_legs_is_not_replaced(
    venue: Venue, trading: SchwabTrading
) -> None:
    change = intent(kind=IntentKind.MODIFY, target_order_id="1001", type=None)
    legs = ORDER["orderLegCollection"] * 2  # type: ignore[operator]
    venue.on(
        f"GET {ORDERS}/1001",
        Reply(ORDER | {"orderLegCollection": legs}),
        Reply(ORDER | {"orderType": "NET_DEBIT"}),
    )
    for _ in range(2):
        with pytest.raises(ConfigError, match="several legs or a type of its own"):
            await trading.modify(change)


async def test_an_order_that_is_gone_is_a_refusal(venue: Venue, trading: SchwabTrading) -> None:
    venue.on(f"GET {ORDERS}/1001", Reply({"message": "no such order"}, status=404))
    with pytest.raises(PermanentError, match="no such order"):
        await trading.modify(intent(kind=IntentKind.MODIFY, target_order_id="1001", type=None))


async def test_a_cancel_and_an_unknown_one(venue: Venue, trading: SchwabTrading) -> None:
    venue.on(f"DELETE {ORDERS}/1001", Reply(), Reply(status=500))
    wanted = intent(kind=IntentKind.CANCEL, target_order_id="1001")
    assert await trading.cancel(wanted) == Ack("1001")
    with pytest.raises(OutcomeUnknown):
        await trading.cancel(wanted)


# --- evidence ---

QUERY = EvidenceQuery(account=NUMBER, since=START)


async def test_a_view_has_orders_fills_and_positions_in_our_words(
    venue: Venue, trading: SchwabTrading, clock: ManualClock
) -> None:
    done = ORDER | {"orderId": 1002, "status": "CANCELED", "closeTime": "2026-01-05T13:00:00+0000"}
    venue.on(ORDERS, Reply([ORDER, done]))
    venue.on(f"{ACCOUNTS}/{HASH}", holding("AAPL", 4))
    found = await trading.evidence(QUERY)
    assert venue.seen[1].query["fromEnteredTime"] == "2026-01-05T12:00:00.000Z"
    assert venue.seen[1].query["toEnteredTime"] == "2026-01-05T14:01:00.000Z"
    assert [order.id for order in found.open_orders] == ["1001"]
    assert [order.id for order in found.history] == ["1001", "1002"]
    (working,) = found.open_orders
    assert (working.account, working.instrument, working.side) == (NUMBER, "AAPL", Side.BUY)
    assert (working.status, working.raw_status) == (OrderStatus.PARTIALLY_FILLED, "WORKING")
    assert (working.quantity, working.filled, working.limit_price) == (10, 4, Decimal("145.32"))
    assert (working.average_price, working.entered_at, working.tag) == (
        Decimal("145.3"),
        START,
        "API",
    )
    assert [fill.id for fill in found.fills] == ["1001-77-0", "1002-77-0"]
    fill = found.fills[0]
    assert (fill.order_id, fill.quantity, fill.price, fill.side) == (
        "1001",
        4,
        Decimal("145.3"),
        Side.BUY,
    )
    assert fill.at == START + timedelta(seconds=1)
    (position,) = found.positions
    assert (position.instrument, position.quantity, position.account) == ("AAPL", 4, NUMBER)
    assert found.failed == {}


async def test_orders_from_before_the_window_are_looked_up_one_by_one(
    venue: Venue, trading: SchwabTrading
) -> None:
    venue.on(ORDERS, Reply([]))
    venue.on(f"{ORDERS}/7", Reply(ORDER | {"orderId": 7}))
    venue.on(f"{ORDERS}/8", Reply({"message": "no such order"}, status=404))
    venue.on(f"{ORDERS}/9", Reply({"message": "Forbidden"}, status=403))
    venue.on(f"{ACCOUNTS}/{HASH}", holding("AAPL", 4))
    found = await trading.evidence(EvidenceQuery(account=NUMBER, since=START, order_ids=("7", "8")))
    assert ([order.id for order in found.history], found.failed) == (["7"], {})
    found = await trading.evidence(EvidenceQuery(account=NUMBER, since=START, order_ids=("9",)))
    assert set(found.failed) == {Source.OPEN_ORDERS, Source.HISTORY, Source.FILLS}


async def test_a_source_that_fails_is_told_by_name(venue: Venue, trading: SchwabTrading) -> None:
    venue.on(ORDERS, Reply(status=503))
    venue.on(f"{ACCOUNTS}/{HASH}", holding("AAPL", 4))
    found = await trading.evidence(QUERY)
    assert set(found.failed) == {Source.OPEN_ORDERS, Source.HISTORY, Source.FILLS}
    assert len(found.positions) == 1
    venue.on(ORDERS, Reply([ORDER]))
    venue.on(f"{ACCOUNTS}/{HASH}", Reply(cut=True))
    found = await trading.evidence(QUERY)
    assert (set(found.failed), len(found.history)) == ({Source.POSITIONS}, 1)
    venue.on(ORDERS, Reply(status=503))
    with pytest.raises(TransientError):
        await trading.evidence(QUERY)


def info(**changes: Any) -> OrderInfo:
    return msgspec.convert(ORDER | changes, OrderInfo, str_keys=False)


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_a_word(status: Status) -> None:
    order = order_of(info(status=status.value, filledQuantity=0), NUMBER)
    assert order is not None
    assert (order.status is OrderStatus.UNKNOWN) == (status is Status.UNKNOWN)
    assert order.raw_status == status.value


def test_a_status_and_a_type_that_nobody_knew_are_kept() -> None:
    order = order_of(
        info(status="A_NEW_WORD", orderType="NET_DEBIT", quantity=None, closeTime=None), NUMBER
    )
    assert order is not None
    assert (order.status, order.raw_status, order.type) == (OrderStatus.UNKNOWN, "A_NEW_WORD", None)
    assert order.quantity == 10


def test_children_of_a_bracket_are_orders_and_a_spread_is_none() -> None:
    legs = ORDER["orderLegCollection"] * 2  # type: ignore[operator]
    bracket = info(
        childOrderStrategies=[
            ORDER | {"orderId": 1003},
            ORDER | {"orderId": 1004, "orderLegCollection": legs},
        ]
    )
    assert [order.id for order in orders_of([bracket], NUMBER)] == ["1001", "1003"]
    assert [fill.order_id for fill in fills_of([bracket], NUMBER)] == ["1001", "1003", "1004"]
    assert order_of(info(orderActivityCollection=None), NUMBER).average_price is None  # type: ignore[union-attr]
    assert fills_of([info(orderLegCollection=[])], NUMBER) == ()


def test_a_fill_without_an_id_of_its_own_has_the_same_id_each_time() -> None:
    activity = {
        "executionLegs": [{"quantity": 1, "price": 2}, {"quantity": 3, "price": 4, "legId": 9}]
    }
    row = info(orderActivityCollection=[{"activityType": "ORDER_ACTION"}, activity])
    ids = [fill.id for fill in fills_of([row], NUMBER)]
    assert ids == ["1001-1-0", "1001-1-1"] == [fill.id for fill in fills_of([row], NUMBER)]


def test_an_account_in_our_words() -> None:
    told = {"accountNumber": NUMBER, "type": "CASH", "isClosingOnlyRestricted": True,
            "currentBalances": {"liquidationValue": 1.5}}  # fmt: skip
    account = account_of(msgspec.convert(told, SecuritiesAccount))
    assert (account.id, account.name, account.balance, account.can_trade) == (
        NUMBER,
        "CASH",
        Decimal("1.5"),
        False,
    )
    bare = account_of(msgspec.convert({"accountNumber": NUMBER}, SecuritiesAccount))
    assert (bare.balance, bare.can_trade) == (None, None)
