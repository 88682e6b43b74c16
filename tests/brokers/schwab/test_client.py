"""The Schwab client against a real server on loopback: every endpoint, every end."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from tests.brokers.loopback import AT_ONCE, Reply, Seen, Venue, tokens, unlimited

from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import (
    AssetType,
    Duration,
    Instruction,
    OrderRequest,
    OrderStatus,
    OrderType,
    Placed,
    Session,
)
from keepline.brokers.schwab.rules import order_id_in
from keepline.brokers.windows import Progress
from keepline.errors import ConfigError, OutcomeUnknown, PermanentError, TransientError
from keepline.testing import ManualClock

NUMBER, HASH = "10000001", "5A4E0B0C7D"
ACCOUNTS = "/trader/v1/accounts"
ORDERS = f"{ACCOUNTS}/{HASH}/orders"
START = datetime(2026, 1, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ORDER = {
    "session": "NORMAL", "duration": "DAY", "orderType": "LIMIT", "complexOrderStrategyType": "NONE", "quantity": 10.0,
    "filledQuantity": 4.0, "remainingQuantity": 6.0, "price": 145.32, "orderStrategyType": "SINGLE", "orderId": 1001,
    "cancelable": True, "editable": True, "status": "WORKING", "enteredTime": "2026-01-05T12:00:00+0000", "tag": "API",
    "accountNumber": 10000001, "requestedDestination": "AUTO",
    "orderLegCollection": [{"orderLegType": "EQUITY", "legId": 1, "instruction": "BUY", "quantity": 10.0,
                            "instrument": {"assetType": "EQUITY", "symbol": "AAPL", "cusip": "037833100"}}],
    "orderActivityCollection": [{"activityType": "EXECUTION", "activityId": 77, "quantity": 4.0,
                                 "executionLegs": [{"legId": 1, "quantity": 4.0, "price": 145.30,
                                                    "time": "2026-01-05T12:00:01+0000"}]}],
}  # fmt: skip


def created(order_id: object = 1001) -> Reply:
    location = f"https://api.schwabapi.com{ORDERS}/{order_id}"
    return Reply(status=201, headers={"Location": location})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(wall=START + 2 * HOUR)


@pytest.fixture
async def client(venue: Venue, clock: ManualClock) -> AsyncIterator[SchwabClient]:
    venue.on(f"{ACCOUNTS}/accountNumbers", Reply([{"accountNumber": NUMBER, "hashValue": HASH}]))
    async with SchwabClient(
        tokens, base_url=venue.url, limiter=unlimited(), retry=AT_ONCE, clock=clock
    ) as made:
        yield made


def order(**changes: Any) -> OrderRequest:
    fields: dict[str, Any] = {"symbol": "AAPL", "instruction": Instruction.BUY, "quantity": 10}
    return OrderRequest(**(fields | changes))


# --- accounts ---


async def test_the_hash_of_an_account_is_asked_once(venue: Venue, client: SchwabClient) -> None:
    venue.on(f"{ACCOUNTS}/{HASH}", Reply({"securitiesAccount": {"accountNumber": NUMBER}}))
    assert await client.account_hash(NUMBER) == HASH
    await client.account(NUMBER)
    await client.account(int(NUMBER))
    assert venue.count("accountNumbers") == 1
    assert venue.seen[0].token == "Bearer secret-access-token"


async def test_a_number_that_is_not_known_is_asked_for_again_and_told_without_digits(
    venue: Venue, client: SchwabClient
) -> None:
    await client.account_numbers()
    with pytest.raises(ConfigError, match=r"no account …987; the token reaches …001") as caught:
        await client.account_hash("76543987")
    assert "76543987" not in str(caught.value)
    assert venue.count("accountNumbers") == 2
    with pytest.raises(ConfigError, match="not empty"):
        await client.account_hash("")


async def test_accounts_are_typed_and_a_repr_has_no_number(
    venue: Venue, client: SchwabClient
) -> None:
    account = {
        "type": "MARGIN", "accountNumber": NUMBER, "isClosingOnlyRestricted": False,
        "currentBalances": {"liquidationValue": 12345.67, "cashBalance": 0.1},
        "positions": [{"longQuantity": 0, "shortQuantity": 3.0, "averagePrice": 162.12,
                       "instrument": {"assetType": "EQUITY", "symbol": "AMD"}}],
    }  # fmt: skip
    venue.on(ACCOUNTS, Reply([{"securitiesAccount": account}]))
    venue.on(f"{ACCOUNTS}/{HASH}", Reply({"securitiesAccount": account}))
    (found,) = await client.accounts()
    assert venue.last().query == {}
    assert found.current_balances is not None
    assert found.current_balances.liquidation_value == Decimal("12345.67")
    one = await client.account(NUMBER, positions=True)
    assert venue.last().query == {"fields": "positions"}
    assert one.positions is not None
    assert (one.positions[0].short_quantity, one.positions[0].average_price) == (
        3,
        Decimal("162.12"),
    )
    assert repr(one) == "<SecuritiesAccount MARGIN, 1 positions>"


async def test_the_streamer_introduces_itself_by_the_preference(
    venue: Venue, client: SchwabClient
) -> None:
    info = {"streamerSocketUrl": "wss://s", "schwabClientCustomerId": "cust", "schwabClientCorrelId": "corr",
            "schwabClientChannel": "N9", "schwabClientFunctionId": "APIAPP"}  # fmt: skip
    venue.on("/trader/v1/userPreference", Reply({"accounts": [], "streamerInfo": [info]}))
    (found,) = (await client.user_preference()).streamer_info or ()
    assert (found.streamer_socket_url, found.schwab_client_channel) == ("wss://s", "N9")
    assert found.schwab_client_customer_id == "cust"
    assert "cust" not in repr(found)


# --- orders, read ---


async def test_an_order_is_typed(venue: Venue, client: SchwabClient) -> None:
    venue.on(f"{ORDERS}/1001", Reply(ORDER | {"status": "A_NEW_WORD"}))
    found = await client.order(NUMBER, 1001)
    assert (found.order_id, found.status, found.status.is_known) == (1001, "A_NEW_WORD", False)
    assert (found.order_type, found.price) == (OrderType.LIMIT, Decimal("145.32"))
    assert found.entered_time == START
    assert found.order_leg_collection is not None
    leg = found.order_leg_collection[0]
    assert (leg.instruction, leg.instrument.symbol, leg.quantity) == (Instruction.BUY, "AAPL", 10)
    assert found.order_activity_collection is not None
    (execution,) = found.order_activity_collection[0].execution_legs or ()
    assert (execution.price, execution.time) == (Decimal("145.30"), START + timedelta(seconds=1))
    assert NUMBER not in repr(found)


async def test_an_order_that_is_not_there(venue: Venue, client: SchwabClient) -> None:
    venue.on(f"{ORDERS}/7", Reply({"message": "Order not found", "errors": []}, status=404))
    with pytest.raises(PermanentError, match="Order not found") as caught:
        await client.order(NUMBER, 7)
    assert HASH not in str(caught.value)
    with pytest.raises(ConfigError, match="order_id"):
        await client.order(NUMBER, 0)


async def test_orders_of_a_short_span_take_one_call_in_utc(
    venue: Venue, client: SchwabClient
) -> None:
    venue.on(ORDERS, Reply([ORDER]))
    zone = timezone(timedelta(hours=-5))
    local = datetime(2026, 1, 5, 7, 0, 0, 250_000, tzinfo=zone)
    (found,) = await client.orders(NUMBER, local, local + HOUR, status="WORKING")
    assert found.order_id == 1001
    assert venue.last().query == {
        "fromEnteredTime": "2026-01-05T12:00:00.250Z", "toEnteredTime": "2026-01-05T13:00:00.250Z",
        "maxResults": "500", "status": "WORKING",
    }  # fmt: skip


async def test_orders_of_three_years_take_a_call_for_each_and_come_once(
    venue: Venue, client: SchwabClient
) -> None:
    older = ORDER | {"orderId": 900, "enteredTime": "2024-01-05T12:00:00+0000"}
    venue.on(ORDERS, Reply([ORDER]), Reply([older, ORDER]), Reply([]))
    found = await client.orders(NUMBER, START - timedelta(days=1000), START)
    assert [row.order_id for row in found] == [900, 1001]
    spans = [
        (seen.query["fromEnteredTime"], seen.query["toEnteredTime"]) for seen in venue.seen[1:]
    ]
    assert len(spans) == 3
    assert spans[0][1] == spans[1][0]
    assert spans[1][1] == spans[2][0]


async def test_a_full_page_is_asked_again_in_halves(venue: Venue, client: SchwabClient) -> None:
    """Of 2,500 orders in an hour no page shows more than five hundred."""
    entered = [START + n * (HOUR / 2500) for n in range(2500)]

    def page(seen: Seen) -> Reply:
        left, right = (
            datetime.fromisoformat(seen.query[k]) for k in ("fromEnteredTime", "toEnteredTime")
        )
        rows = [ORDER | {"orderId": n + 1, "enteredTime": at.isoformat()} for n, at in enumerate(entered) if left <= at <= right]  # fmt: skip  # noqa: E501
        return Reply(rows[: int(seen.query["maxResults"])])

    venue.on(ORDERS, page)
    found = await client.orders(NUMBER, START, START + HOUR)
    assert [row.order_id for row in found] == list(range(1, 2501))


async def test_a_full_page_of_one_second_is_taken_as_it_is(
    venue: Venue, client: SchwabClient
) -> None:
    rows = [ORDER | {"orderId": n + 1} for n in range(500)]
    venue.on(ORDERS, Reply(rows))
    found = await client.orders(NUMBER, START, START + timedelta(seconds=1))
    assert len(found) == 500


async def test_orders_of_all_accounts_reach_back_sixty_days_in_one_call(
    venue: Venue, client: SchwabClient, clock: ManualClock
) -> None:
    venue.on("/trader/v1/orders", Reply([ORDER]))
    venue.on(ORDERS, Reply([ORDER]))
    found = await client.all_orders(
        clock.wall() - timedelta(days=60), clock.wall(), status=OrderStatus.WORKING
    )
    assert [row.order_id for row in found] == [1001]
    assert [seen.path for seen in venue.seen] == ["/trader/v1/orders"]
    assert venue.last().query["status"] == "WORKING"
    found = await client.all_orders(clock.wall() - timedelta(days=61), clock.wall())
    assert [row.order_id for row in found] == [1001]
    assert venue.last().path == ORDERS


@pytest.mark.parametrize(
    ("start", "end", "key"),
    [
        (START, START, "end"),
        (START, START - HOUR, "end"),
        (START.replace(tzinfo=None), START, "start"),
    ],
)
async def test_a_span_that_makes_no_sense_is_refused(
    venue: Venue, client: SchwabClient, start: datetime, end: datetime, key: str
) -> None:
    for listing in (client.orders(NUMBER, start, end), client.all_orders(start, end)):
        with pytest.raises(ConfigError) as caught:
            await listing
        assert caught.value.key == key
    assert venue.seen == []


# --- orders, placed ---


async def test_an_order_is_placed_and_its_id_read_from_the_location(
    venue: Venue, client: SchwabClient
) -> None:
    venue.on(ORDERS, created(1001))
    wanted = order(
        type=OrderType.STOP_LIMIT, price=Decimal("145.30"), stop_price=Decimal(145), quantity=Decimal(10),
        session=Session.SEAMLESS, duration=Duration.GOOD_TILL_CANCEL,
    )  # fmt: skip
    assert await client.place_order(NUMBER, wanted) == Placed(order_id=1001)
    assert venue.last().method == "POST"
    assert venue.last().body == {
        "orderType": "STOP_LIMIT", "session": "SEAMLESS", "duration": "GOOD_TILL_CANCEL", "orderStrategyType": "SINGLE",
        "complexOrderStrategyType": "NONE", "price": "145.30", "stopPrice": "145",
        "orderLegCollection": [{"instruction": "BUY", "quantity": 10,
                                "instrument": {"symbol": "AAPL", "assetType": "EQUITY"}}],
    }  # fmt: skip


@pytest.mark.parametrize(("instruction", "basis"), [("SELL", "BID"), ("BUY", "ASK")])
async def test_a_trailing_stop_follows_its_side_of_the_market(
    venue: Venue, client: SchwabClient, instruction: str, basis: str
) -> None:
    venue.on(ORDERS, created())
    await client.place_order(
        NUMBER, order(instruction=instruction, type=OrderType.TRAILING_STOP, trail=Decimal("1.5"))
    )
    body = venue.last().body
    assert (body["stopPriceOffset"], body["stopPriceLinkType"], body["stopPriceLinkBasis"]) == (
        1.5,
        "VALUE",
        basis,
    )


async def test_the_apis_own_json_goes_through_as_it_is(venue: Venue, client: SchwabClient) -> None:
    venue.on(ORDERS, created())
    own = {
        "orderType": "NET_DEBIT",
        "orderStrategyType": "TRIGGER",
        "orderLegCollection": [{"x": 1}],
        "price": "0.1",
    }
    await client.place_order(NUMBER, own)
    assert venue.last().body == own
    for key in ("orderType", "orderStrategyType", "orderLegCollection"):
        with pytest.raises(ConfigError) as caught:
            await client.place_order(
                NUMBER, {name: value for name, value in own.items() if name != key}
            )
        assert caught.value.key == key


@pytest.mark.parametrize(
    "location",
    [
        "", "/", "/orders", "/orders/", "/orders/abc", "/orders/1001x", "https://x/accounts/5A4E/positions/1001",
        "/orders/١", "https://[::1/orders/7", "/orders/-7", "/orders/1001/legs",
    ],
)  # fmt: skip
def test_a_location_that_names_no_order_is_none(location: str) -> None:
    assert order_id_in(location) is None


@pytest.mark.parametrize(
    "location", ["/orders/7", "https://x/v1/accounts/5A/orders/7/", " /a/orders/7?x=1 "]
)
def test_a_location_names_the_order_by_its_last_part(location: str) -> None:
    assert order_id_in(location) == 7


async def test_a_201_without_a_location_is_a_yes_without_an_id(
    venue: Venue, client: SchwabClient
) -> None:
    venue.on(ORDERS, Reply(status=201))
    assert await client.place_order(NUMBER, order()) == Placed(order_id=None)


@pytest.mark.parametrize(
    "reply",
    [Reply(status=500), Reply(status=503), Reply(status=429), Reply(cut=True), Reply("<html>Maintenance</html>"),
     Reply("<html>x</html>", status=201), Reply({"a": 1}), Reply({"message": "request timed out"}, status=400)],
)  # fmt: skip
async def test_an_answer_that_cannot_be_trusted_leaves_an_order_unknown_and_it_is_sent_once(
    venue: Venue, client: SchwabClient, reply: Reply
) -> None:
    venue.on(ORDERS, reply)
    with pytest.raises(OutcomeUnknown, match="look it up before you send it again"):
        await client.place_order(NUMBER, order())
    assert venue.count("orders") == 1


async def test_a_refusal_is_permanent(venue: Venue, client: SchwabClient) -> None:
    venue.on(ORDERS, Reply({"message": "Bad request", "errors": ["price is missing"]}, status=400))
    with pytest.raises(PermanentError, match="Bad request; price is missing"):
        await client.place_order(NUMBER, order())


async def test_a_replacement_is_a_new_order_sent_once(venue: Venue, client: SchwabClient) -> None:
    venue.on(f"PUT {ORDERS}/1001", created(1002), Reply(cut=True))
    wanted = order(type=OrderType.LIMIT, price=Decimal("145.31"))
    assert await client.replace_order(NUMBER, 1001, wanted) == Placed(order_id=1002)
    assert venue.last().body["price"] == "145.31"
    with pytest.raises(OutcomeUnknown):
        await client.replace_order(NUMBER, 1001, wanted)
    assert venue.count("1001") == 2


async def test_a_cancel_is_sent_once(venue: Venue, client: SchwabClient) -> None:
    gone = Reply({"message": "cannot be canceled"}, status=400)
    venue.on(f"DELETE {ORDERS}/1001", Reply(), gone, Reply(cut=True))
    await client.cancel_order(NUMBER, 1001)
    with pytest.raises(PermanentError, match="cannot be canceled"):
        await client.cancel_order(NUMBER, 1001)
    with pytest.raises(OutcomeUnknown):
        await client.cancel_order(NUMBER, 1001)
    assert venue.count("1001") == 3


async def test_a_preview_places_nothing_and_is_repeated_like_a_read(
    venue: Venue, client: SchwabClient
) -> None:
    result = {"rejects": [{"validationRuleName": "R1", "message": "too much"}], "warns": None}
    path = f"{ACCOUNTS}/{HASH}/previewOrder"
    venue.on(
        path, Reply(cut=True), Reply({"orderId": 0, "orderValidationResult": result}), Reply({})
    )
    found = await client.preview_order(NUMBER, order())
    assert [finding.message for finding in found.rejects] == ["too much"]
    assert venue.count("previewOrder") == 2
    assert (await client.preview_order(NUMBER, order())).rejects == ()


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"quantity": 0}, "quantity", "above 0"),
        ({"quantity": Decimal("0.5")}, "quantity", "whole number"),
        ({"quantity": "10"}, "quantity", "is a number"),
        ({"symbol": ""}, "symbol", "not empty"),
        ({"type": "SOMETHING"}, "type", "is one of MARKET, LIMIT"),
        ({"type": OrderType.NET_DEBIT}, "type", "is one of"),
        ({"type": OrderType.LIMIT}, "price", "a limit order needs it"),
        ({"price": Decimal(1)}, "price", "does not belong to a market order"),
        ({"type": OrderType.LIMIT, "price": Decimal("145.321")}, "price", "off the tick of 0.01"),
        ({"type": OrderType.LIMIT, "price": Decimal("0.12345")}, "price", "off the tick of 0.0001"),
        ({"type": OrderType.LIMIT, "price": Decimal(-1)}, "price", "no price above 0"),
        ({"type": OrderType.LIMIT, "price": "145.32"}, "price", "is a number"),
        (
            {"instruction": Instruction.BUY_TO_OPEN},
            "instruction",
            "of an equity is one of BUY, SELL",
        ),
        ({"asset_type": AssetType.OPTION}, "instruction", "of an option is one of BUY_TO_OPEN"),
        ({"asset_type": AssetType.FUTURE}, "asset_type", "is EQUITY or OPTION"),
        ({"session": "NIGHT"}, "session", "is one of NORMAL"),
        ({"duration": Duration("FOREVER")}, "duration", "is one of DAY"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused_before_anything_is_sent(
    venue: Venue, client: SchwabClient, changes: dict[str, Any], key: str, words: str
) -> None:
    wrong = order(**changes)
    for call in (client.place_order(NUMBER, wrong), client.preview_order(NUMBER, wrong), client.replace_order(NUMBER, 1, wrong)):  # fmt: skip  # noqa: E501
        with pytest.raises(ConfigError, match=words) as caught:
            await call
        assert caught.value.key == key
    assert venue.seen == []


async def test_below_a_dollar_a_stock_has_a_finer_tick_and_an_option_has_not(
    venue: Venue, client: SchwabClient
) -> None:
    venue.on(ORDERS, created())
    await client.place_order(NUMBER, order(type=OrderType.LIMIT, price=Decimal("0.1234")))
    assert venue.last().body["price"] == "0.1234"
    option = order(
        symbol="AAPL  260116C00200000", instruction=Instruction.BUY_TO_OPEN, asset_type=AssetType.OPTION,
        type=OrderType.LIMIT, price=Decimal("0.1234"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"off the tick of 0\.01"):
        await client.place_order(NUMBER, option)


# --- market data ---


async def test_quotes_by_symbol(venue: Venue, client: SchwabClient, clock: ManualClock) -> None:
    quote = {"bidPrice": 168.4, "askPrice": 168.41, "lastPrice": 168.405, "bidSize": 400, "totalVolume": 22361159,
             "quoteTime": 1767614400000}  # fmt: skip
    venue.on(
        "/marketdata/v1/quotes",
        Reply({"AAPL": {"assetMainType": "EQUITY", "symbol": "AAPL", "quote": quote}, "$SPX": {"symbol": "$SPX"},
               "X": {"quote": {"tradeTime": 1767614401000}}, "errors": {"invalidSymbols": ["NOPE"]}}),
    )  # fmt: skip
    found = await client.quotes(["AAPL", "$SPX", "X", "NOPE"])
    assert venue.last().query == {"symbols": "AAPL,$SPX,X,NOPE", "fields": "quote"}
    assert set(found) == {"AAPL", "$SPX", "X"}
    assert (found["AAPL"].bid, found["AAPL"].ask, found["AAPL"].volume) == (168.4, 168.41, 22361159)
    assert (found["AAPL"].at, found["$SPX"].at) == (START, clock.wall())
    assert found["X"].at == START + timedelta(seconds=1)
    with pytest.raises(ConfigError, match=r"list of symbols such as \['AAPL'\]"):
        await client.quotes("AAPL")
    with pytest.raises(ConfigError, match="at least one symbol"):
        await client.quotes([])


def candle(at: datetime) -> dict[str, object]:
    return {
        "open": 1,
        "high": 3.0,
        "low": 0.5,
        "close": 2.0,
        "volume": 10,
        "datetime": int(at.timestamp() * 1000),
    }


async def test_price_history_comes_oldest_first(venue: Venue, client: SchwabClient) -> None:
    rows = [candle(START + timedelta(minutes=n)) for n in (1, 0)]
    venue.on(
        "/marketdata/v1/pricehistory", Reply({"symbol": "AAPL", "empty": False, "candles": rows})
    )
    first, second = await client.price_history("AAPL", START, START + HOUR, extended=True)
    assert (first.at, first.open, first.volume) == (START, 1.0, 10)
    assert second.at == START + timedelta(minutes=1)
    assert venue.last().query == {
        "symbol": "AAPL", "periodType": "day", "frequencyType": "minute", "frequency": "1",
        "startDate": "1767614400000", "endDate": "1767618000000", "needExtendedHoursData": "true",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("unit", "period", "frequency"),
    [("day", "year", "daily"), ("week", "year", "weekly"), ("month", "year", "monthly")],
)
async def test_longer_bars_have_a_period_of_their_own(
    venue: Venue, client: SchwabClient, unit: str, period: str, frequency: str
) -> None:
    venue.on("/marketdata/v1/pricehistory", Reply({"symbol": "AAPL", "empty": True}))
    assert [
        bar async for bar in client.bars("AAPL", START - timedelta(days=3000), START, unit)
    ] == []
    assert len(venue.seen) == 1
    assert (venue.last().query["periodType"], venue.last().query["frequencyType"]) == (
        period,
        frequency,
    )


async def test_a_month_of_minutes_comes_whole_each_bar_once_with_progress(
    venue: Venue, client: SchwabClient
) -> None:
    def page(seen: Seen) -> Reply:
        left, right = (int(seen.query[key]) // 1000 for key in ("startDate", "endDate"))
        times = [datetime.fromtimestamp(at, UTC) for at in range(left, right + 1, 3600)]
        return Reply({"symbol": "AAPL", "candles": [candle(at) for at in times]})

    venue.on("/marketdata/v1/pricehistory", page)
    end = START + timedelta(days=25)
    told: list[Progress] = []
    found = [
        bar.at async for bar in client.bars("AAPL", START, end, "minute", 30, progress=told.append)
    ]
    assert found == [START + timedelta(hours=n) for n in range(601)]
    assert [(p.done, p.total, p.rows) for p in told] == [(1, 3, 241), (2, 3, 481), (3, 3, 601)]


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"unit": "second"}, "unit"), ({"number": 7}, "number"), ({"unit": "day", "number": 2}, "number"),
     ({"number": True}, "number"), ({"symbol": ""}, "symbol"), ({"end": START}, "end")],
)  # fmt: skip
async def test_history_that_schwab_has_not_is_refused(
    venue: Venue, client: SchwabClient, changes: dict[str, Any], key: str
) -> None:
    arguments = {"symbol": "AAPL", "start": START, "end": START + HOUR} | changes
    for call in (client.price_history(**arguments), anext(client.bars(**arguments))):
        with pytest.raises(ConfigError) as caught:
            await call
        assert caught.value.key == key
    assert venue.seen == []


# --- the client itself ---


async def test_it_prints_itself_without_a_secret_or_an_account(
    venue: Venue, client: SchwabClient
) -> None:
    await client.account_numbers()
    for shown in (repr(client), str(client)):
        assert venue.url in shown
        assert not any(word in shown for word in ("secret", NUMBER, HASH))
    async with SchwabClient(tokens) as other:
        assert "schwab: 120 per 60 s" in str(other)
        assert "https://api.schwabapi.com" in str(other)


async def test_an_error_names_neither_account_nor_hash(venue: Venue, client: SchwabClient) -> None:
    venue.on(ORDERS, Reply(status=503))
    with pytest.raises(TransientError) as caught:
        await client.orders(NUMBER, START, START + HOUR)
    assert HASH not in str(caught.value)
    assert NUMBER not in str(caught.value)
    assert "{account}" in str(caught.value)
