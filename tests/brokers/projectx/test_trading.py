"""ProjectX behind the port of the order gateway, against a real server on loopback."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from tests.brokers.loopback import AT_ONCE, Reply, Venue, tokens, unlimited
from tests.brokers.projectx.test_client import MNQ, ORDER, START, good, no

from keepline.brokers.base import (
    Ack,
    Broker,
    EvidenceQuery,
    IntentKind,
    OrderIntent,
    Source,
    check_intent,
)
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.messages import AccountInfo, ContractInfo
from keepline.brokers.projectx.trading import PROJECTX_FACTS, ProjectXTrading
from keepline.brokers.projectx.words import account_of, instrument_of, request_of
from keepline.errors import ConfigError, KeeplineError, OutcomeUnknown, PermanentError
from keepline.model import OrderStatus, OrderType, Side


@pytest.fixture
async def trading(venue: Venue) -> AsyncIterator[ProjectXTrading]:
    async with ProjectXClient(
        tokens, base_url=venue.url, limiter=unlimited(), retry=AT_ONCE
    ) as client:
        yield ProjectXTrading(client)


def intent(**changes: Any) -> OrderIntent:
    fields: dict[str, Any] = {
        "id": "intent-1",
        "account": "704",
        "instrument": MNQ,
        "side": Side.BUY,
    }
    return OrderIntent(**(fields | {"quantity": Decimal(2), "type": OrderType.MARKET} | changes))


def test_it_is_a_broker(trading: ProjectXTrading) -> None:
    broker: Broker = trading
    assert broker.name == "projectx"
    assert broker.facts is PROJECTX_FACTS
    assert broker.facts.tag_echoed
    assert not broker.facts.tag_unique


async def test_an_intents_id_travels_as_its_tag(venue: Venue, trading: ProjectXTrading) -> None:
    venue.on("/api/Order/place", good(orderId=9056), good())
    wanted = intent(side=Side.SELL, stop_loss_ticks=10, take_profit_ticks=20)
    check_intent(wanted)
    trading.check(wanted)
    assert await trading.place(wanted) == Ack("9056")
    assert venue.last().body == {
        "accountId": 704, "contractId": MNQ, "type": 2, "side": 1, "size": 2, "customTag": "intent-1",
        "stopLossBracket": {"ticks": 10, "type": 4}, "takeProfitBracket": {"ticks": -20, "type": 1},
    }  # fmt: skip
    assert await trading.place(intent()) == Ack(None)


async def test_a_long_positions_exits_are_below_and_above(
    venue: Venue, trading: ProjectXTrading
) -> None:
    venue.on("/api/Order/place", good(orderId=1))
    await trading.place(intent(stop_loss_ticks=10, take_profit_ticks=20))
    body = venue.last().body
    assert (body["stopLossBracket"]["ticks"], body["takeProfitBracket"]["ticks"]) == (-10, 20)


@pytest.mark.parametrize(
    ("kind", "prices", "number"),
    [
        (OrderType.LIMIT, {"limit_price": Decimal(5)}, 1), (OrderType.STOP, {"stop_price": Decimal(5)}, 4),
        (OrderType.STOP_LIMIT, {"limit_price": Decimal(5), "stop_price": Decimal(5)}, 3),
        (OrderType.TRAILING_STOP, {"trail_price": Decimal(5)}, 5), (OrderType.JOIN_BID, {}, 6),
        (OrderType.JOIN_ASK, {}, 7),
    ],
)  # fmt: skip
async def test_each_of_our_types_has_its_number(
    venue: Venue, trading: ProjectXTrading, kind: OrderType, prices: dict[str, Decimal], number: int
) -> None:
    venue.on("/api/Order/place", good(orderId=1))
    await trading.place(intent(type=kind, **prices))
    assert venue.last().body["type"] == number


async def test_changes_cancels_and_closes(venue: Venue, trading: ProjectXTrading) -> None:
    for path in (
        "Order/modify",
        "Order/cancel",
        "Position/closeContract",
        "Position/partialCloseContract",
    ):
        venue.on(f"/api/{path}", good())
    change = intent(
        kind=IntentKind.MODIFY, target_order_id="9056", type=None, limit_price=Decimal("1.5")
    )
    assert await trading.modify(change) == Ack("9056")
    assert venue.last().body == {"accountId": 704, "orderId": 9056, "size": 2, "limitPrice": 1.5}
    assert await trading.cancel(intent(kind=IntentKind.CANCEL, target_order_id="9056")) == Ack(
        "9056"
    )
    assert venue.last().body == {"accountId": 704, "orderId": 9056}
    assert await trading.close(intent(kind=IntentKind.CLOSE, quantity=None)) == Ack()
    assert venue.last().body == {"accountId": 704, "contractId": MNQ}
    assert await trading.partial_close(intent(kind=IntentKind.PARTIAL_CLOSE)) == Ack()
    assert venue.last().body == {"accountId": 704, "contractId": MNQ, "size": 2}
    with pytest.raises(ConfigError, match="how much"):
        await trading.partial_close(intent(kind=IntentKind.PARTIAL_CLOSE, quantity=None))


async def test_what_the_client_raises_comes_through(venue: Venue, trading: ProjectXTrading) -> None:
    venue.on("/api/Order/place", no(3), no(6))
    with pytest.raises(PermanentError, match="InsufficientFunds"):
        await trading.place(intent())
    with pytest.raises(OutcomeUnknown, match="OrderPending"):
        await trading.place(intent())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"account": "50KTC"}, "account"),
        ({"quantity": Decimal("1.5")}, "quantity"),
        ({"type": OrderType.LIMIT, "limit_price": Decimal("1.3")}, "limit_price"),
        ({"kind": IntentKind.MODIFY, "target_order_id": "abc"}, "target_order_id"),
        (
            {"kind": IntentKind.MODIFY, "target_order_id": "1", "limit_price": Decimal("1.3")},
            "limit_price",
        ),
        (
            {"kind": IntentKind.MODIFY, "depends_on": ("a",), "limit_price": Decimal("1.3")},
            "limit_price",
        ),
        ({"kind": IntentKind.CANCEL, "target_order_id": "abc"}, "target_order_id"),
        ({"kind": IntentKind.CLOSE, "instrument": ""}, "instrument"),
        ({"kind": IntentKind.PARTIAL_CLOSE, "quantity": Decimal("0.5")}, "quantity"),
    ],
)
async def test_an_intent_that_makes_no_sense_is_refused_without_io(
    venue: Venue, trading: ProjectXTrading, changes: dict[str, Any], key: str
) -> None:
    venue.on("/api/Contract/searchById", good(contract={"id": MNQ, "tickSize": 0.25}))
    await trading._client.contract(MNQ)
    with pytest.raises(ConfigError) as caught:
        trading.check(intent(**changes))
    assert caught.value.key == key
    assert len(venue.seen) == 1


def test_what_is_right_passes_the_check(trading: ProjectXTrading) -> None:
    for changes in (
        {"type": OrderType.LIMIT, "limit_price": Decimal("1.3")},  # no tick is known
        {"kind": IntentKind.CANCEL, "depends_on": ("a",)},
        {"kind": IntentKind.CANCEL, "target_order_id": "7"},
        {"kind": IntentKind.MODIFY, "depends_on": ("a",)},
        {"kind": IntentKind.CLOSE, "quantity": None},
        {"kind": IntentKind.PARTIAL_CLOSE},
    ):
        trading.check(intent(**changes))


@pytest.mark.parametrize("missing", ["side", "type", "quantity"])
def test_an_order_without_an_essential_is_no_order(missing: str) -> None:
    with pytest.raises(ConfigError, match="side, type and quantity"):
        request_of(intent(**{missing: None}))


# --- evidence ---

SINCE = EvidenceQuery(account="704", since=START)
POSITION = {"id": 1, "accountId": 704, "contractId": MNQ, "type": 2, "size": 3, "averagePrice": 1.5}
TRADE = {"id": 8604, "accountId": 704, "contractId": MNQ, "creationTimestamp": "2026-01-05T12:00:01Z",
         "price": 21000.25, "fees": 0.37, "side": 1, "size": 1, "voided": False, "orderId": 9056}  # fmt: skip


def all_of(venue: Venue, *, orders: list[Any] | None = None) -> None:
    venue.on("/api/Order/searchOpen", good(orders=[ORDER]))
    venue.on("/api/Order/search", good(orders=orders or []))
    venue.on("/api/Trade/search", good(trades=[TRADE, TRADE | {"id": 8605, "voided": True}]))
    venue.on("/api/Position/searchOpen", good(positions=[POSITION]))


async def test_a_view_has_all_sources_in_our_words(venue: Venue, trading: ProjectXTrading) -> None:
    all_of(
        venue,
        orders=[
            ORDER
            | {
                "id": 9057,
                "status": 2,
                "fillVolume": 2,
                "filledPrice": 1.5,
                "type": 0,
                "customTag": None,
            }
        ],
    )
    found = await trading.evidence(SINCE)
    assert [seen.path for seen in venue.seen] == [
        "/api/Order/searchOpen", "/api/Order/search", "/api/Trade/search", "/api/Position/searchOpen",
    ]  # fmt: skip
    (working,), (past,) = found.open_orders, found.history
    assert (working.id, working.account, working.tag, working.side) == (
        "9056",
        "704",
        "intent-1",
        Side.BUY,
    )
    assert (working.status, working.raw_status, working.type) == (
        OrderStatus.OPEN,
        "OPEN",
        OrderType.LIMIT,
    )
    assert (working.quantity, working.limit_price) == (2, Decimal("21000.25"))
    assert working.entered_at == START + timedelta(milliseconds=100)
    assert (past.status, past.filled, past.average_price, past.type, past.tag) == (
        OrderStatus.FILLED,
        2,
        Decimal("1.5"),
        None,
        "",
    )
    (fill,) = found.fills
    assert (fill.id, fill.order_id, fill.side, fill.price, fill.fees) == ("8604", "9056", Side.SELL, Decimal("21000.25"), Decimal("0.37"))  # fmt: skip  # noqa: E501
    (position,) = found.positions
    assert (position.quantity, position.average_price) == (-3, Decimal("1.5"))
    assert found.failed == {}


@pytest.mark.parametrize(
    ("number", "filled", "status"),
    [
        (0, 0, OrderStatus.UNKNOWN), (1, 1, OrderStatus.PARTIALLY_FILLED), (3, 1, OrderStatus.CANCELLED),
        (4, 0, OrderStatus.EXPIRED), (5, 0, OrderStatus.REJECTED), (6, 0, OrderStatus.PENDING),
        (7, 0, OrderStatus.OPEN), (8, 0, OrderStatus.SUSPENDED), (42, 0, OrderStatus.UNKNOWN),
    ],
)  # fmt: skip
async def test_every_status_has_a_word(
    venue: Venue, trading: ProjectXTrading, number: int, filled: int, status: OrderStatus
) -> None:
    all_of(venue, orders=[ORDER | {"status": number, "fillVolume": filled}])
    (past,) = (await trading.evidence(SINCE)).history
    assert past.status is status


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/api/Order/searchOpen", Source.OPEN_ORDERS), ("/api/Order/search", Source.HISTORY),
        ("/api/Trade/search", Source.FILLS), ("/api/Position/searchOpen", Source.POSITIONS),
    ],
)  # fmt: skip
async def test_a_source_that_fails_is_told_by_name_and_the_others_are_shown(
    venue: Venue, trading: ProjectXTrading, path: str, source: Source
) -> None:
    all_of(venue, orders=[ORDER])
    venue.on(path, Reply(status=503))
    found = await trading.evidence(SINCE)
    assert set(found.failed) == {source}
    assert "503" in found.failed[source]
    shown = [bool(found.open_orders), bool(found.history), bool(found.fills), bool(found.positions)]
    assert shown == [other is not source for other in Source]


async def test_a_broker_that_shows_nothing_is_an_error(
    venue: Venue, trading: ProjectXTrading
) -> None:
    with pytest.raises(KeeplineError, match="404"):
        await trading.evidence(SINCE)
    assert len(venue.seen) == 4


async def test_an_order_from_before_the_window_is_searched_further_back(
    venue: Venue, trading: ProjectXTrading
) -> None:
    old = ORDER | {"id": 7, "creationTimestamp": (START - timedelta(days=3)).isoformat()}
    all_of(venue)
    venue.on("/api/Order/search", good(orders=[]), good(orders=[old, ORDER | {"id": 8}]))
    found = await trading.evidence(
        EvidenceQuery(account="704", since=START, order_ids=("7", "9056"))
    )
    assert [order.id for order in found.history] == ["7"]
    searched = [seen.body for seen in venue.seen if seen.path == "/api/Order/search"]
    assert searched[1] == {
        "accountId": 704, "startTimestamp": "2025-12-06T12:00:00.000Z", "endTimestamp": "2026-01-05T12:00:00.000Z",
    }  # fmt: skip
    venue.on("/api/Order/search", good(orders=[]), no(1))
    found = await trading.evidence(EvidenceQuery(account="704", since=START, order_ids=("7",)))
    assert set(found.failed) == {Source.HISTORY}


def test_accounts_and_contracts_in_our_words() -> None:
    account = account_of(
        AccountInfo(id=704, name="50KTC", balance=Decimal("1.5"), can_trade=True, simulated=False)
    )
    assert (account.id, account.name, account.balance, account.can_trade) == (
        "704",
        "50KTC",
        Decimal("1.5"),
        True,
    )
    contract = instrument_of(
        ContractInfo(id=MNQ, name="MNQU6", tick_size=Decimal("0.25"), active_contract=True)
    )
    assert (contract.id, contract.symbol, contract.tick_size, contract.active) == (
        MNQ,
        "MNQU6",
        Decimal("0.25"),
        True,
    )
    assert instrument_of(ContractInfo(id=MNQ)).symbol == MNQ
