"""Nonsense of every kind, from the caller and from the broker, ends as an error that names the field."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.brokers.loopback import AT_ONCE, Reply, Venue, tokens, unlimited

from keepline.brokers import checks
from keepline.brokers.base import IntentKind, OrderIntent, check_intent, check_tick
from keepline.brokers.projectx import rules as projectx_rules
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.messages import BarUnit, Bracket, OrderRequest, OrderSide, OrderType
from keepline.brokers.schwab import rules as schwab_rules
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import Instruction
from keepline.brokers.schwab.messages import OrderRequest as SchwabOrder
from keepline.errors import ConfigError, OutcomeUnknown, PermanentError
from keepline.model import OrderType as Type
from keepline.model import Side

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
DAY = timedelta(days=1)
QUARTER = Decimal("0.25")
OK = {"success": True, "errorCode": 0, "errorMessage": None}
INTENT = OrderIntent(
    id="entry-1", account="1", instrument="MNQ", side=Side.BUY, quantity=Decimal(1),
    type=Type.LIMIT, limit_price=Decimal("21000.25"),
)  # fmt: skip
ENDLESS = ["1E+308", "-1E+308", "1E+28", "1E+999999", "9" * 40]


def key_of(caught: pytest.ExceptionInfo[ConfigError]) -> str:
    return caught.value.key


# --- amounts, prices, ids, moments ---


@pytest.mark.parametrize("digits", ENDLESS)
def test_a_price_beyond_all_digits_is_a_config_error(digits: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_tick(structs.replace(INTENT, limit_price=Decimal(digits)), QUARTER)
    assert key_of(caught) == "limit_price"
    for look in (checks.price, checks.amount, checks.number):
        with pytest.raises(ConfigError, match="more than 15 digits") as caught:
            look(Decimal(digits), "x")
        assert key_of(caught) == "x"
        assert len(str(caught.value)) < 120


@pytest.mark.parametrize("value", [10**400, Decimal("1E-30"), Decimal("1E-999999"), 1e-300])
def test_a_number_that_no_json_carries_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="more than 15 digits"):
        checks.number(value, "x")


@pytest.mark.parametrize("value", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_a_price_that_is_no_number_is_a_config_error(value: str) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        check_tick(structs.replace(INTENT, stop_price=Decimal(value)), QUARTER)


@pytest.mark.parametrize("tick", ["NaN", "sNaN", "Infinity", "-1", "0"])
def test_a_tick_that_is_none_checks_nothing(tick: str) -> None:
    check_tick(INTENT, Decimal(tick))
    assert checks.price(Decimal(1), "x", tick=Decimal(tick)) == 1


@pytest.mark.parametrize(
    ("price", "beside"),
    [("-37.63", "-37.75 and -37.50"), ("-0.1", "-0.25 and 0.00"), ("0.1", "0.00 and 0.25")],
)
def test_the_prices_next_to_one_are_on_both_sides_of_it(price: str, beside: str) -> None:
    with pytest.raises(ConfigError, match=f"{beside} are next to it"):
        check_tick(structs.replace(INTENT, limit_price=Decimal(price)), QUARTER)
    with pytest.raises(ConfigError, match=f"nearest prices are {beside}"):
        checks.price(Decimal(price), "x", tick=QUARTER)


@given(
    st.decimals("-1E12", "1E12", places=4),
    st.sampled_from([QUARTER, Decimal("0.01"), Decimal("0.03"), Decimal(5)]),
)
def test_neighbours_hold_the_price_between_them(price: Decimal, tick: Decimal) -> None:
    beside = checks.neighbours(price, tick, "x")
    if beside is None:
        assert price % tick == 0
    else:
        below, above = beside
        assert below < price < above == below + tick
        assert below % tick == above % tick == 0


@pytest.mark.parametrize("value", [True, False, "1", None, [], b"1"])
def test_a_flag_or_a_text_is_no_quantity(value: object) -> None:
    with pytest.raises(ConfigError, match="is a number such as"):
        checks.amount(value, "size")


@pytest.mark.parametrize(
    "value", ["9" * 5000, 2**63, 10**5000, "9" * 19, "9" * 20, True, 0], ids=lambda _: ""
)
def test_an_id_has_at_most_64_bits(value: object) -> None:
    with pytest.raises(ConfigError, match="whole number above 0") as caught:
        checks.id_number(value, "order_id")
    assert len(str(caught.value)) < 160
    assert checks.id_number(2**63 - 1, "order_id") == checks.id_number(str(2**63 - 1), "order_id")


class _Silent(tzinfo):
    def utcoffset(self, _: datetime | None) -> None:
        return None


def test_a_moment_of_a_silent_zone_or_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing of its time zone"):
        checks.moment(datetime(2026, 1, 1, tzinfo=_Silent()), "start")
    late = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
    with pytest.raises(ConfigError, match="beyond the calendar") as caught:
        checks.moment(late, "end")
    assert key_of(caught) == "end"
    assert checks.wire_moment(datetime(1, 2, 3, tzinfo=UTC)) == "0001-02-03T00:00:00.000Z"
    assert checks.wire_moment(START + timedelta(microseconds=999_999)).endswith(":00.999Z")


# --- intents and orders ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 5), ("kind", "place"), ("account", 5), ("instrument", 7), ("side", "buy"), ("side", "BUY"),
        ("type", "limit"), ("target_order_id", 8), ("depends_on", ["x"]), ("depends_on", (5,)), ("depends_on", "x"),
        ("deadline_seconds", "3"), ("deadline_seconds", True), ("quantity", True), ("quantity", "1"),
        ("take_profit_ticks", True), ("stop_loss_ticks", "4"),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_refused_by_its_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match="nothing was sent") as caught:
        check_intent(structs.replace(INTENT, **{field: value}))
    assert key_of(caught) == field


def test_what_a_change_or_a_close_would_pass_over_is_refused() -> None:
    change = OrderIntent(
        id="m", kind=IntentKind.MODIFY, account="1", target_order_id="7", quantity=Decimal(1)
    )
    check_intent(change)
    with pytest.raises(ConfigError, match="belongs to a new order, not to a modify") as caught:
        check_intent(structs.replace(change, stop_loss_ticks=4))
    assert key_of(caught) == "stop_loss_ticks"
    close = OrderIntent(id="c", kind=IntentKind.CLOSE, account="1", instrument="MNQ")
    check_intent(close)
    with pytest.raises(ConfigError, match="partial_close takes one") as caught:
        check_intent(structs.replace(close, quantity=Decimal(1)))
    assert key_of(caught) == "quantity"


def market(**changes: Any) -> OrderRequest:
    fields: dict[str, Any] = {"type": OrderType.MARKET, "side": OrderSide.BID, "size": 1}
    return OrderRequest(**({"account_id": 1, "contract_id": "C"} | fields | changes))


def test_an_order_of_another_kind_is_a_config_error() -> None:
    bodies: list[tuple[str, Any]] = [
        ("order", lambda: projectx_rules.order_body({"size": 1}, None)),  # type: ignore[arg-type]
        ("change", lambda: projectx_rules.change_body(None, None)),  # type: ignore[arg-type]
        ("stop_loss", lambda: projectx_rules.order_body(market(stop_loss=5), None)),
        (
            "stop_loss.ticks",
            lambda: projectx_rules.order_body(
                market(stop_loss=Bracket(ticks=-(10**30), type=OrderType.STOP)), None
            ),
        ),
        ("order", lambda: schwab_rules.order_body(None)),  # type: ignore[arg-type]
        ("type", lambda: schwab_rules.order_body(share(type=[]))),
        ("asset_type", lambda: schwab_rules.order_body(share(asset_type=[]))),
    ]
    for key, make in bodies:
        with pytest.raises(ConfigError) as caught:
            make()
        assert key_of(caught) == key


def share(**changes: Any) -> SchwabOrder:
    fields: dict[str, Any] = {"symbol": "AAPL", "instruction": Instruction.BUY, "quantity": 1}
    return SchwabOrder(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"orderLegCollection": [{"quantity": 0}]}, "orderLegCollection.quantity"),
        ({"orderLegCollection": [{"quantity": float("nan")}]}, "orderLegCollection.quantity"),
        ({"orderLegCollection": [{"quantity": "1"}]}, "orderLegCollection.quantity"),
        ({"orderLegCollection": "abc"}, "orderLegCollection"),
        ({"orderLegCollection": [5]}, "orderLegCollection"),
        ({"childOrderStrategies": [{"orderType": "LIMIT"}]}, "orderStrategyType"),
        ({"price": float("inf")}, "order"),
        ({"price": Decimal("1.5")}, "order"),
    ],
)
def test_json_of_ones_own_has_an_amount_and_is_json(changes: dict[str, Any], key: str) -> None:
    order = {"orderType": "MARKET", "orderStrategyType": "SINGLE", "orderLegCollection": [{}]}
    with pytest.raises(ConfigError) as caught:
        schwab_rules.order_body(order | changes)
    assert key_of(caught) == key


@pytest.mark.parametrize("last", ["9" * 5000, "0", "-1", "١", "x"])
def test_a_location_of_nonsense_names_no_order(last: str) -> None:
    assert schwab_rules.order_id_in(f"/trader/v1/accounts/H/orders/{last}") is None


# --- what a broker may answer ---


@pytest.fixture
async def topstep(venue: Venue) -> AsyncIterator[ProjectXClient]:
    async with ProjectXClient(
        tokens, base_url=venue.url, limiter=unlimited(), retry=AT_ONCE
    ) as made:
        yield made


@pytest.fixture
async def schwab(venue: Venue) -> AsyncIterator[SchwabClient]:
    venue.on(
        "/trader/v1/accounts/accountNumbers", Reply([{"accountNumber": "1", "hashValue": "H"}])
    )
    async with SchwabClient(tokens, base_url=venue.url, limiter=unlimited(), retry=AT_ONCE) as made:
        yield made


@pytest.mark.parametrize("tick", ["NaN", "sNaN", "Infinity", "1E+999999"])
async def test_an_amount_that_is_none_is_a_typed_error(
    venue: Venue, topstep: ProjectXClient, tick: str
) -> None:
    venue.on("/api/Contract/search", Reply({**OK, "contracts": [{"id": "C", "tickSize": tick}]}))
    with pytest.raises(PermanentError, match="tick_size is no amount"):
        await topstep.search_contracts("C")
    assert topstep.tick_size("C") is None


async def test_an_amount_as_a_text_is_read(venue: Venue, topstep: ProjectXClient) -> None:
    venue.on("/api/Contract/search", Reply({**OK, "contracts": [{"id": "C", "tickSize": "0.25"}]}))
    await topstep.search_contracts("C")
    assert topstep.tick_size("C") == QUARTER


@pytest.mark.parametrize("told", [0, -1, None])
async def test_an_order_id_that_is_none_is_none(
    venue: Venue, topstep: ProjectXClient, told: object
) -> None:
    venue.on("/api/Order/place", Reply({**OK, "orderId": told}))
    assert await topstep.place_order(market()) is None


async def test_a_time_beyond_the_calendar_is_a_typed_error(
    venue: Venue, schwab: SchwabClient
) -> None:
    candle = {"open": 1, "high": 1, "low": 1, "close": 1, "datetime": 10**20}
    venue.on("/marketdata/v1/pricehistory", Reply({"candles": [candle]}))
    with pytest.raises(PermanentError, match="beyond the calendar"):
        await schwab.price_history("AAPL", START, START + DAY)
    venue.on("/marketdata/v1/quotes", Reply({"AAPL": {"quote": {"tradeTime": 10**20}}}))
    with pytest.raises(PermanentError, match="beyond the calendar"):
        await schwab.quotes(["AAPL"])


async def test_arguments_of_another_type_are_refused_before_anything_is_sent(
    venue: Venue, schwab: SchwabClient, topstep: ProjectXClient
) -> None:
    refused: list[tuple[str, Any]] = [
        ("symbols", schwab.quotes(None)),  # type: ignore[arg-type]
        ("symbols", schwab.quotes("AAPL")),
        ("symbols", schwab.quotes(["AAPL,MSFT"])),
        ("account", schwab.account(None)),  # type: ignore[arg-type]
        ("account", schwab.account(True)),
        ("unit", schwab.price_history("A", START, START + DAY, [])),  # type: ignore[arg-type]
        ("number", schwab.price_history("A", START, START + DAY, "minute", 1.0)),  # type: ignore[arg-type]
        ("unit", topstep.retrieve_bars("A", START, START + DAY, [])),  # type: ignore[arg-type]
        ("unit", topstep.retrieve_bars("A", START, START + DAY, True)),  # type: ignore[arg-type]
    ]
    for key, call in refused:
        with pytest.raises(ConfigError) as caught:
            await call
        assert key_of(caught) == key
    assert venue.seen == []
    with pytest.raises(ConfigError, match="base_url"):
        ProjectXClient(tokens, base_url=5)  # type: ignore[arg-type]


# --- what only the wire shows ---


@pytest.mark.parametrize(
    ("unit", "wire"),
    [("second", 1), ("minute", 2), ("hour", 3), ("day", 4), ("week", 5), ("month", 6)],
)
async def test_each_unit_of_bars_has_its_number(
    venue: Venue, topstep: ProjectXClient, unit: str, wire: int
) -> None:
    venue.on("/api/History/retrieveBars", Reply({**OK, "bars": []}))
    await topstep.retrieve_bars("C", START, START + DAY, unit, 3, live=True)
    body = venue.last().body
    assert (body["unit"], body["unitNumber"], body["live"]) == (wire, 3, True)
    assert BarUnit(wire).name.lower() == unit


async def test_a_piece_of_months_is_counted_in_the_shortest(
    venue: Venue, topstep: ProjectXClient
) -> None:
    venue.on("/api/History/retrieveBars", Reply({**OK, "bars": []}))
    seen = []
    start = datetime(1, 1, 2, tzinfo=UTC)
    async for _ in topstep.bars(
        "C", start, start + 28 * DAY * 20_000, "month", progress=seen.append
    ):
        pass
    assert [at.until - start for at in seen] == [28 * DAY * 19_999, 28 * DAY * 20_000]


async def test_a_yes_without_an_object_is_no_yes(venue: Venue, topstep: ProjectXClient) -> None:
    venue.on("/api/Order/cancel", Reply([]))
    with pytest.raises(OutcomeUnknown, match="Expected `object`"):
        await topstep.cancel_order(1, 2)


async def test_what_takes_risk_away_goes_first(
    topstep: ProjectXClient, schwab: SchwabClient
) -> None:
    def lane(client: object, name: str) -> str:
        return str(getattr(client, f"_{name}").priority)

    assert [lane(topstep, name) for name in ("cancel", "close", "partial_close")] == ["cancel"] * 3
    assert [lane(topstep, name) for name in ("place", "modify")] == ["order"] * 2
    assert [lane(topstep, name) for name in ("orders", "bars")] == ["query", "history"]
    assert [lane(schwab, name) for name in ("cancel", "place", "replace")] == [
        "cancel", "order", "order",
    ]  # fmt: skip
    assert [lane(schwab, name) for name in ("orders", "candles")] == ["query", "history"]
