"""The ProjectX client against a real server on loopback: every endpoint, every end."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from tests.brokers.loopback import AT_ONCE, Reply, Seen, Venue, tokens, unlimited

from keepline.brokers.projectx.client import PROJECTX_LIMITS, ProjectXClient
from keepline.brokers.projectx.messages import (
    BarUnit,
    Bracket,
    OrderChange,
    OrderRequest,
    OrderSide,
    OrderStatus,
    OrderType,
    PositionType,
)
from keepline.brokers.windows import Progress
from keepline.errors import ConfigError, OutcomeUnknown, PermanentError, TransientError
from keepline.resilience import RateLimiter

OK = {"success": True, "errorCode": 0, "errorMessage": None}
MNQ = "CON.F.US.MNQ.U26"
START = datetime(2026, 1, 5, 12, tzinfo=UTC)
ORDER = {
    "id": 9056, "accountId": 704, "contractId": MNQ, "symbolId": "F.US.MNQ",
    "creationTimestamp": "2026-01-05T12:00:00.1+00:00",
    "updateTimestamp": None, "status": 1, "type": 1, "side": 0, "size": 2, "limitPrice": 21000.25, "stopPrice": None,
    "fillVolume": 0, "filledPrice": None, "customTag": "intent-1",
}  # fmt: skip


def good(**fields: Any) -> Reply:
    return Reply({**OK, **fields})


def no(code: int, message: str | None = None) -> Reply:
    return Reply({"success": False, "errorCode": code, "errorMessage": message})


@pytest.fixture
async def client(venue: Venue) -> AsyncIterator[ProjectXClient]:
    async with ProjectXClient(
        tokens, base_url=venue.url, limiter=unlimited(), retry=AT_ONCE
    ) as made:
        yield made


def order(**changes: Any) -> OrderRequest:
    fields: dict[str, Any] = {
        "account_id": 704,
        "contract_id": MNQ,
        "type": OrderType.MARKET,
        "side": OrderSide.BID,
    }
    return OrderRequest(**(fields | {"size": 1} | changes))


# --- reads ---


async def test_a_ping_is_a_pong(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Status/ping", Reply("pong"))
    assert await client.ping() == "pong"
    assert venue.last().method == "GET"


async def test_accounts_are_typed_and_the_token_travels(
    venue: Venue, client: ProjectXClient
) -> None:
    row = {
        "id": 704,
        "name": "50KTC",
        "balance": 50123.45,
        "canTrade": True,
        "isVisible": True,
        "simulated": False,
    }
    venue.on("/api/Account/search", good(accounts=[row, row | {"id": 705, "new": "field"}]))
    first, second = await client.accounts()
    assert (first.id, first.name, first.balance) == (704, "50KTC", Decimal("50123.45"))
    assert (first.can_trade, first.simulated, second.id) == (True, False, 705)
    assert venue.last().body == {"onlyActiveAccounts": True}
    assert venue.last().token == "Bearer secret-access-token"


async def test_a_null_list_is_empty(venue: Venue, client: ProjectXClient) -> None:
    for path in ("Account/search", "Contract/search", "Contract/available", "Order/search", "Order/searchOpen",
                 "Position/searchOpen", "Trade/search", "History/retrieveBars"):  # fmt: skip
        venue.on(
            f"/api/{path}",
            good(accounts=None, contracts=None, orders=None, positions=None, bars=None),
        )
    assert await client.accounts() == await client.search_contracts("MNQ") == ()
    assert await client.available_contracts() == await client.open_orders(704) == ()
    assert await client.search_orders(704, START) == await client.open_positions(704) == ()
    assert await client.search_trades(704, START) == ()
    assert await client.retrieve_bars(MNQ, START, START + timedelta(hours=1)) == ()


async def test_an_account_is_found_by_name_or_id_or_by_being_the_only_one(
    venue: Venue, client: ProjectXClient
) -> None:
    both = [
        {"id": 704, "name": "PRACTICE", "canTrade": True},
        {"id": 705, "name": "50KTC", "canTrade": False},
    ]
    venue.on("/api/Account/search", good(accounts=both))
    assert (await client.account("50KTC")).id == 705
    assert (await client.account(704)).name == "PRACTICE"
    assert (await client.account()).id == 704
    with pytest.raises(ConfigError, match="no account '50kTC'; there is PRACTICE, 50KTC"):
        await client.account("50kTC")
    venue.on("/api/Account/search", good(accounts=[]))
    with pytest.raises(ConfigError, match=r"which account\?; there is none"):
        await client.account()


async def test_contracts_are_searched_and_their_ticks_remembered(
    venue: Venue, client: ProjectXClient
) -> None:
    row = {
        "id": MNQ,
        "name": "MNQU6",
        "description": "Micro",
        "tickSize": 0.25,
        "tickValue": 0.5,
        "activeContract": True,
    }
    venue.on("/api/Contract/search", good(contracts=[row]))
    venue.on("/api/Contract/searchById", good(contract=row | {"id": "B", "tickSize": 0.015625}))
    venue.on("/api/Contract/available", good(contracts=[row | {"id": "C", "tickSize": 0}]))
    assert client.tick_size(MNQ) is None
    (found,) = await client.search_contracts("MNQ")
    assert (found.name, found.tick_size, found.active_contract) == ("MNQU6", Decimal("0.25"), True)
    assert venue.last().body == {"searchText": "MNQ", "live": False}
    assert (await client.contract("B")).tick_size == Decimal("0.015625")
    await client.available_contracts(live=True)
    assert venue.last().body == {"live": True}
    assert [client.tick_size(name) for name in (MNQ, "B", "C")] == [
        Decimal("0.25"),
        Decimal("0.015625"),
        None,
    ]


async def test_a_contract_that_is_not_there(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Contract/searchById", no(1), good(contract=None))
    with pytest.raises(PermanentError, match="searchbyid 1 ContractNotFound"):
        await client.contract("X")
    with pytest.raises(PermanentError, match="no contract 'X'"):
        await client.contract("X")
    with pytest.raises(ConfigError, match="contract_id"):
        await client.contract("")


async def test_orders_positions_and_trades_are_typed(venue: Venue, client: ProjectXClient) -> None:
    venue.on(
        "/api/Order/search",
        good(orders=[ORDER | {"status": 42, "fillVolume": 1, "filledPrice": 21000.5}]),
    )
    venue.on("/api/Order/searchOpen", good(orders=[ORDER]))
    position = {"id": 1, "accountId": 704, "contractId": MNQ, "creationTimestamp": "2026-01-05T12:00:00", "type": 2,
                "size": 3, "averagePrice": 21000.1}  # fmt: skip
    venue.on("/api/Position/searchOpen", good(positions=[position]))
    trade = {"id": 8604, "accountId": 704, "contractId": MNQ, "creationTimestamp": "2026-01-05T12:00:01Z", "price": 0.1,
             "profitAndLoss": None, "fees": 0.37, "side": 1, "size": 1, "voided": False, "orderId": 9056}  # fmt: skip
    venue.on("/api/Trade/search", good(trades=[trade]))
    (past,) = await client.search_orders(704, START, START + timedelta(hours=1))
    assert (past.status, past.status.name, past.fill_volume) == (42, "UNKNOWN_42", 1)
    assert venue.last().body == {
        "accountId": 704, "startTimestamp": "2026-01-05T12:00:00.000Z", "endTimestamp": "2026-01-05T13:00:00.000Z",
    }  # fmt: skip
    (working,) = await client.open_orders(704)
    assert (working.status, working.type, working.side) == (
        OrderStatus.OPEN,
        OrderType.LIMIT,
        OrderSide.BID,
    )
    assert (working.limit_price, working.custom_tag) == (Decimal("21000.25"), "intent-1")
    assert working.creation_timestamp == START + timedelta(milliseconds=100)
    (held,) = await client.open_positions(704)
    assert (held.type, held.size, held.average_price) == (PositionType.SHORT, 3, Decimal("21000.1"))
    assert held.creation_timestamp == START
    (fill,) = await client.search_trades(704, START)
    assert (fill.price, fill.fees, fill.profit_and_loss) == (Decimal("0.1"), Decimal("0.37"), None)
    assert venue.last().body == {"accountId": 704, "startTimestamp": "2026-01-05T12:00:00.000Z"}


async def test_a_read_is_repeated_until_it_comes_through(
    venue: Venue, client: ProjectXClient
) -> None:
    venue.on(
        "/api/Order/searchOpen", Reply(cut=True), Reply("<title>Down</title>"), good(orders=[])
    )
    assert await client.open_orders(704) == ()
    assert venue.count("searchOpen") == 3


async def test_a_page_inside_a_200_is_a_typed_error(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Account/search", Reply("<html><title>Maintenance</title></html>"))
    with pytest.raises(TransientError, match="a page titled “Maintenance”") as caught:
        await client.accounts()
    assert (caught.value.category, caught.value.endpoint) == ("server", "POST /api/Account/search")


async def test_a_shape_that_is_not_expected_is_a_typed_error(
    venue: Venue, client: ProjectXClient
) -> None:
    venue.on("/api/Account/search", good(accounts=[{"id": "704", "name": "x"}]))
    with pytest.raises(
        PermanentError, match=r"another shape than expected: .*\$\.accounts\[0\]\.id"
    ):
        await client.accounts()


async def test_an_account_that_is_not_there_is_said_by_name(
    venue: Venue, client: ProjectXClient
) -> None:
    venue.on("/api/Order/searchOpen", no(1))
    with pytest.raises(PermanentError, match="searchopen 1 AccountNotFound"):
        await client.open_orders(704)


# --- bars ---


def bar(at: datetime, close: float = 2.0) -> dict[str, object]:
    return {"t": at.isoformat(), "o": 1.0, "h": 3, "l": 0.5, "c": close, "v": 10}


async def test_bars_come_oldest_first_as_floats(venue: Venue, client: ProjectXClient) -> None:
    rows = [bar(START + timedelta(minutes=n)) for n in (2, 1, 0)]
    venue.on("/api/History/retrieveBars", good(bars=rows))
    found = await client.retrieve_bars(
        MNQ, START, START + timedelta(minutes=2), "minute", 1, limit=5, partial=True
    )
    assert [b.at for b in found] == [START + timedelta(minutes=n) for n in range(3)]
    first = found[0]
    assert (first.open, first.high, first.low, first.close, first.volume) == (1, 3, 0.5, 2, 10)
    assert isinstance(first.high, float)
    assert venue.last().body == {
        "contractId": MNQ, "live": False, "startTime": "2026-01-05T12:00:00.000Z",
        "endTime": "2026-01-05T12:02:00.000Z", "unit": 2, "unitNumber": 1, "limit": 5, "includePartialBar": True,
    }  # fmt: skip


class Bars:
    """A gateway that has a bar each second and never gives more than the limit, the newest ones."""

    def __init__(self, length: timedelta = timedelta(seconds=1)) -> None:
        self.length = length

    def __call__(self, seen: Seen) -> Reply:
        start, end = (datetime.fromisoformat(seen.body[key]) for key in ("startTime", "endTime"))
        count = int((end - start) / self.length) + 1
        times = [end - n * self.length for n in range(min(count, seen.body["limit"]))]
        return Reply({**OK, "bars": [bar(at) for at in times]})


async def test_a_long_span_comes_whole_each_bar_once_with_progress(
    venue: Venue, client: ProjectXClient
) -> None:
    venue.on("/api/History/retrieveBars", Bars())
    end = START + timedelta(seconds=45_000)
    told: list[Progress] = []
    found = [b.at async for b in client.bars(MNQ, START, end, BarUnit.SECOND, progress=told.append)]
    assert found == [START + timedelta(seconds=n) for n in range(45_001)]
    assert [(p.done, p.total) for p in told] == [(1, 3), (2, 3), (3, 3)]
    assert (told[-1].rows, told[-1].until) == (45_001, end)


@pytest.mark.parametrize(("unit", "calls"), [("second", 5), ("minute", 1), ("month", 1)])
async def test_a_span_takes_as_few_calls_as_it_can(
    venue: Venue, client: ProjectXClient, unit: str, calls: int
) -> None:
    venue.on("/api/History/retrieveBars", good(bars=[]))
    end = START + timedelta(seconds=99_995)
    assert [b async for b in client.bars(MNQ, START, end, unit)] == []
    assert venue.count("retrieveBars") == calls


async def test_bad_arguments_of_bars_are_refused_before_anything_is_sent(
    venue: Venue, client: ProjectXClient
) -> None:
    hour = timedelta(hours=1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"unit": "fortnight"}, "unit"), ({"unit": BarUnit.UNSPECIFIED}, "unit"), ({"unit": 42}, "unit"),
        ({"number": 0}, "number"), ({"number": 1.5}, "number"), ({"limit": 20_001}, "limit"), ({"limit": 0}, "limit"),
        ({"contract_id": ""}, "contract_id"), ({"end": START}, "end"), ({"end": START - hour}, "end"),
        ({"start": START.replace(tzinfo=None)}, "start"),
    ]  # fmt: skip
    for changes, key in wrong:
        arguments = {"contract_id": MNQ, "start": START, "end": START + hour} | changes
        with pytest.raises(ConfigError) as caught:
            await client.retrieve_bars(**arguments)
        assert caught.value.key == key
        if "limit" not in changes and "contract_id" not in changes:
            with pytest.raises(ConfigError):
                await anext(client.bars(**arguments))
    assert venue.seen == []


async def test_local_times_are_converted(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/History/retrieveBars", good(bars=[]))
    zone = timezone(timedelta(hours=-6))
    await client.retrieve_bars(
        MNQ, datetime(2026, 1, 5, 6, tzinfo=zone), datetime(2026, 1, 5, 7, tzinfo=zone)
    )
    assert venue.last().body["startTime"] == "2026-01-05T12:00:00.000Z"


async def test_bars_that_the_gateway_refuses_are_said_by_name(
    venue: Venue, client: ProjectXClient
) -> None:
    venue.on("/api/History/retrieveBars", no(3))
    with pytest.raises(PermanentError, match="retrievebars 3 UnitNumberInvalid"):
        await anext(client.bars(MNQ, START, START + timedelta(hours=1), "minute", 7))


# --- orders ---


async def test_a_whole_order_goes_out_in_the_words_of_the_api(
    venue: Venue, client: ProjectXClient
) -> None:
    venue.on("/api/Order/place", good(orderId=9056))
    wanted = order(
        type=OrderType.STOP_LIMIT, side=OrderSide.ASK, size=Decimal(2), limit_price=Decimal("21000.25"),
        stop_price=Decimal("21001.10"), custom_tag="intent-1", linked_order_id=7,
        stop_loss=Bracket(ticks=10, type=OrderType.STOP), take_profit=Bracket(ticks=-20, type=OrderType.LIMIT),
    )  # fmt: skip
    assert await client.place_order(wanted) == 9056
    assert venue.last().body == {
        "accountId": 704, "contractId": MNQ, "type": 3, "side": 1, "size": 2, "limitPrice": 21000.25,
        "stopPrice": 21001.1, "customTag": "intent-1", "linkedOrderId": 7, "stopLossBracket": {"ticks": 10, "type": 4},
        "takeProfitBracket": {"ticks": -20, "type": 1},
    }  # fmt: skip


async def test_what_was_not_given_is_not_in_the_body(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Order/place", good(orderId=1))
    await client.place_order(order())
    assert venue.last().body == {
        "accountId": 704,
        "contractId": MNQ,
        "type": 2,
        "side": 0,
        "size": 1,
    }


@pytest.mark.parametrize(
    ("kind", "prices", "number"),
    [
        (OrderType.LIMIT, {"limit_price": Decimal(5)}, 1),
        (OrderType.MARKET, {}, 2),
        (OrderType.STOP, {"stop_price": Decimal(5)}, 4),
        (OrderType.TRAILING_STOP, {"trail_price": Decimal(5)}, 5),
        (OrderType.JOIN_BID, {}, 6),
        (OrderType.JOIN_ASK, {}, 7),
    ],
)
async def test_each_type_has_its_number_and_a_stop_is_four(
    venue: Venue, client: ProjectXClient, kind: OrderType, prices: dict[str, Decimal], number: int
) -> None:
    venue.on("/api/Order/place", good(orderId=1))
    await client.place_order(order(type=kind, **prices))
    assert venue.last().body["type"] == number


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"size": 0}, "size", "above 0"),
        ({"size": -1}, "size", "above 0"),
        ({"size": Decimal("1.5")}, "size", "whole number"),
        ({"size": "1"}, "size", "is a number"),
        ({"account_id": 0}, "account_id", "above 0"),
        ({"contract_id": " "}, "contract_id", "not empty"),
        ({"type": OrderType.UNKNOWN}, "type", "is one of LIMIT, MARKET"),
        ({"type": 9}, "type", "is one of"),
        ({"type": "limit"}, "type", "is one of"),
        ({"side": 2}, "side", r"OrderSide\.BID \(buy\)"),
        ({"side": "buy"}, "side", "OrderSide"),
        ({"type": OrderType.LIMIT}, "limit_price", "a limit order needs it"),
        ({"type": OrderType.STOP}, "stop_price", "a stop order needs it"),
        ({"type": OrderType.TRAILING_STOP}, "trail_price", "a trailing stop order needs it"),
        ({"limit_price": Decimal(5)}, "limit_price", "does not belong to a market order"),
        ({"type": OrderType.LIMIT, "limit_price": Decimal("21000.30")}, "limit_price", "off the tick of 0.25"),
        ({"type": OrderType.LIMIT, "limit_price": "21000.25"}, "limit_price", "is a number"),
        ({"type": OrderType.LIMIT, "limit_price": Decimal("NaN")}, "limit_price", "finite"),
        ({"type": OrderType.TRAILING_STOP, "trail_price": Decimal(-1)}, "trail_price", "no price above 0"),
        ({"custom_tag": "  "}, "custom_tag", "not empty"),
        ({"linked_order_id": -7}, "linked_order_id", "above 0"),
        ({"stop_loss": Bracket(ticks=10, type=OrderType.STOP)}, "stop_loss.ticks", "below 0 for a long position"),
        ({"take_profit": Bracket(ticks=-1, type=OrderType.LIMIT)}, "take_profit.ticks", "above 0 for a long"),
        ({"side": OrderSide.ASK, "stop_loss": Bracket(ticks=-1, type=OrderType.STOP)}, "stop_loss.ticks",
         "above 0 for a short"),
        ({"stop_loss": Bracket(ticks=0, type=OrderType.STOP)}, "stop_loss.ticks", "below 0"),
        ({"stop_loss": Bracket(ticks=-1, type=OrderType.LIMIT)}, "stop_loss.type", "STOP or TRAILING_STOP"),
        ({"take_profit": Bracket(ticks=1, type=OrderType.STOP)}, "take_profit.type", "is LIMIT"),
    ],
)  # fmt: skip
async def test_an_order_that_makes_no_sense_is_refused_before_anything_is_sent(
    venue: Venue, client: ProjectXClient, changes: dict[str, Any], key: str, words: str
) -> None:
    venue.on("/api/Contract/searchById", good(contract={"id": MNQ, "tickSize": 0.25}))
    venue.on("/api/Order/place", good(orderId=1))
    await client.contract(MNQ)
    with pytest.raises(ConfigError, match=words) as caught:
        await client.place_order(order(**changes))
    assert caught.value.key == key
    assert venue.count("place") == 0


async def test_a_success_without_an_id_has_none(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Order/place", good(), good(orderId=None))
    assert await client.place_order(order()) is None
    assert await client.place_order(order()) is None


@pytest.mark.parametrize(
    ("code", "name"),
    [(1, "AccountNotFound"), (2, "OrderRejected"), (3, "InsufficientFunds"), (5, "OutsideTradingHours"),
     (9, "ContractNotActive")],
)  # fmt: skip
async def test_a_refusal_is_permanent_and_sent_once(
    venue: Venue, client: ProjectXClient, code: int, name: str
) -> None:
    venue.on("/api/Order/place", no(code, "because"))
    with pytest.raises(PermanentError, match=f"place {code} {name}: because") as caught:
        await client.place_order(order())
    assert caught.value.code == f"place {code} {name}"
    assert venue.count("place") == 1


@pytest.mark.parametrize(
    "reply",
    [
        no(6), no(7), no(99), Reply(status=500), Reply(status=503), Reply(status=429), Reply(cut=True),
        Reply("<html>Maintenance</html>"), Reply([1]), Reply({"success": True}), good(orderId="9056"),
        no(2, "Order request timed out"), Reply({"success": True, "errorCode": 3}),
    ],
)  # fmt: skip
async def test_an_answer_that_cannot_be_trusted_leaves_an_order_unknown_and_it_is_sent_once(
    venue: Venue, client: ProjectXClient, reply: Reply
) -> None:
    venue.on("/api/Order/place", reply)
    with pytest.raises(OutcomeUnknown, match="look it up before you send it again"):
        await client.place_order(order())
    assert venue.count("place") == 1


async def test_an_order_to_nobody_was_never_sent(venue: Venue) -> None:
    async with ProjectXClient(tokens, base_url="http://127.0.0.1:1", retry=AT_ONCE) as client:
        with pytest.raises(TransientError) as caught:
            await client.place_order(order())
    assert caught.value.sent is False


async def test_a_change_carries_what_changes(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Order/modify", good())
    change = OrderChange(
        account_id=704, order_id=9056, size=3, stop_price=Decimal("1.5"), contract_id=MNQ
    )
    await client.modify_order(change)
    assert venue.last().body == {"accountId": 704, "orderId": 9056, "size": 3, "stopPrice": 1.5}
    with pytest.raises(ConfigError, match="nothing to change"):
        await client.modify_order(OrderChange(account_id=704, order_id=9056))
    venue.on("/api/Order/modify", no(7), no(4))
    with pytest.raises(PermanentError, match="modify 7 ContractNotFound"):
        await client.modify_order(change)
    with pytest.raises(OutcomeUnknown, match="modify 4 Pending"):
        await client.modify_order(change)


async def test_a_change_off_the_tick_is_refused(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Contract/searchById", good(contract={"id": MNQ, "tickSize": 0.25}))
    await client.contract(MNQ)
    change = OrderChange(account_id=704, order_id=9056, limit_price=Decimal("1.3"), contract_id=MNQ)
    with pytest.raises(ConfigError, match="off the tick"):
        await client.modify_order(change)


async def test_a_cancel_and_its_ends(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Order/cancel", good(), no(2), no(5))
    await client.cancel_order(704, 9056)
    assert venue.last().body == {"accountId": 704, "orderId": 9056}
    with pytest.raises(PermanentError, match="cancel 2 OrderNotFound"):
        await client.cancel_order(704, 9056)
    with pytest.raises(OutcomeUnknown, match="cancel 5 UnknownError"):
        await client.cancel_order(704, 9056)


async def test_closing_a_position_whole_and_in_part(venue: Venue, client: ProjectXClient) -> None:
    venue.on("/api/Position/closeContract", good(), no(2))
    venue.on("/api/Position/partialCloseContract", good(), no(5), no(7))
    await client.close_position(704, MNQ)
    assert venue.last().body == {"accountId": 704, "contractId": MNQ}
    with pytest.raises(PermanentError, match="closecontract 2 PositionNotFound"):
        await client.close_position(704, MNQ)
    await client.partial_close_position(704, MNQ, 2)
    assert venue.last().body == {"accountId": 704, "contractId": MNQ, "size": 2}
    with pytest.raises(PermanentError, match="partialclosecontract 5 InvalidCloseSize"):
        await client.partial_close_position(704, MNQ, 2)
    with pytest.raises(OutcomeUnknown, match="partialclosecontract 7 OrderPending"):
        await client.partial_close_position(704, MNQ, 2)
    with pytest.raises(ConfigError, match="above 0"):
        await client.partial_close_position(704, MNQ, 0)


# --- the client itself ---


async def test_it_prints_itself_without_a_secret(client: ProjectXClient, venue: Venue) -> None:
    venue.on("/api/Account/search", good(accounts=[]))
    await client.accounts()
    for shown in (repr(client), str(client)):
        assert venue.url in shown
        assert "secret" not in shown
    assert "Pipeline projectx" in str(client)


async def test_by_default_bars_have_a_budget_of_their_own_and_the_safer_one() -> None:
    async with ProjectXClient(tokens) as client:
        shown = str(client)
    assert "history: 30 per 30 s; general: 200 per 60 s" in shown
    assert "https://api.topstepx.com" in shown
    assert RateLimiter({"limits": PROJECTX_LIMITS})


@pytest.mark.parametrize("url", ["http://api.topstepx.com", "ftp://x", "", "api.topstepx.com"])
def test_a_token_travels_by_https_alone(url: str) -> None:
    with pytest.raises(ConfigError, match="https"):
        ProjectXClient(tokens, base_url=url)


async def test_a_session_that_was_handed_in_stays_open(venue: Venue) -> None:
    from keepline.http import HttpSession

    venue.on("/api/Status/ping", Reply("pong"))
    async with HttpSession() as http:
        async with ProjectXClient(tokens, base_url=venue.url, http=http) as client:
            await client.ping()
        assert "open" in repr(http)
