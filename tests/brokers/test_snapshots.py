"""Claims about the snapshots of both brokers, against the sandbox through real sockets."""

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.brokers.loopback import AT_ONCE, Reply, Venue, tokens, unlimited
from tests.brokers.traders import PROJECTX, SCHWAB, Place, Trader, trader

from keepline.brokers.base import IntentKind
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.snapshot import ProjectXSnapshots
from keepline.brokers.schwab.snapshot import SchwabSnapshots
from keepline.brokers.snapshots import ROUNDS, lags_behind
from keepline.errors import ConfigError, KeeplineError
from keepline.model import Fill, Order, OrderStatus, OrderType, Side
from keepline.sandbox.book import Kind, Ticket
from keepline.sandbox.book import Side as VenueSide
from keepline.stream.snapshot import Snapshot
from keepline.stream.view import total

BOTH = pytest.mark.parametrize("place", [PROJECTX, SCHWAB], ids=str)
PARTS = ("accounts", "orders", "open_orders", "positions", "fills")
QUERIES = {
    "projectx": {
        "accounts": ("accounts",),
        "open_orders": ("open_orders",),
        "search_orders": ("orders",),
        "open_positions": ("positions",),
        "search_trades": ("fills", "positions"),
    },
    "schwab": {
        "orders": ("accounts", "orders", "open_orders", "positions", "fills"),
        "account": ("accounts", "positions"),
    },
}
"""What each query of a snapshot tells."""


class Looker:
    """A snapshot source, the client beneath it and the venue's truth."""

    def __init__(self, bot: Trader) -> None:
        self.bot = bot
        self.client: Any = bot.broker._client
        made = ProjectXSnapshots if bot.place is PROJECTX else SchwabSnapshots
        self.source: Any = made(self.client)
        self.positions = "open_positions" if bot.place is PROJECTX else "account"
        self.orders = "search_orders" if bot.place is PROJECTX else "orders"

    async def look(self, hours: float = 1.0) -> Snapshot:
        since = self.bot.clock.wall() - timedelta(hours=hours)
        found: Snapshot = await self.bot.get(
            self.source.snapshot([self.bot.place.account], since=since)
        )
        return found

    def before(self, query: str, what: Callable[[], object], times: int = 1) -> None:
        """Let something happen right before a query is sent."""
        real, left = getattr(self.client, query), times

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left >= 0:
                what()
            return await real(*args, **kwargs)

        setattr(self.client, query, wrapped)

    def trade(self, size: int = 1) -> None:
        """A trade of the account that nobody here asked for."""
        ticket = Ticket(
            account=self.bot.place.account,
            listing=self.bot.place.instrument,
            side=VenueSide.BUY,
            kind=Kind.MARKET,
            size=Decimal(size),
        )
        self.bot.sandbox.market.place(ticket, now=self.bot.clock.wall().timestamp())


@pytest.fixture
async def it(place: Place, tmp_path: Path) -> AsyncIterator[Looker]:
    async with trader(place, tmp_path / "orders") as bot:
        yield Looker(bot)


def quantity(seen: Snapshot) -> Decimal:
    assert seen.positions is not None
    return sum((position.quantity for position in seen.positions), Decimal(0))


@BOTH
async def test_a_snapshot_shows_what_the_venue_has(it: Looker) -> None:
    bought = await it.bot.want(it.bot.intent("entry", 3))
    resting = await it.bot.want(it.bot.limit("rest", str(it.bot.place.price - 50), 2))
    seen = await it.look()
    assert seen.failed == {}
    assert seen.missing == ()
    assert seen.scope == (it.bot.place.account,)
    assert seen.taken_at == it.bot.clock.wall()
    assert seen.since == it.bot.clock.wall() - timedelta(hours=1)
    assert [a.id for a in seen.accounts or ()] == [it.bot.place.account]
    assert {o.id: o.status for o in seen.orders or ()} == {
        bought.order_id: OrderStatus.FILLED,
        resting.order_id: OrderStatus.OPEN,
    }
    assert [o.id for o in seen.open_orders or ()] == [resting.order_id]
    assert [f.order_id for f in seen.fills or ()] == [bought.order_id]
    assert quantity(seen) == it.bot.held == 3


@BOTH
async def test_a_flat_account_is_flat_and_not_unknown(it: Looker) -> None:
    seen = await it.look()
    assert (seen.orders, seen.open_orders, seen.positions, seen.fills) == ((), (), (), ())


@BOTH
async def test_a_fill_between_the_queries_is_in_fills_and_position_alike(it: Looker) -> None:
    it.before(it.positions, it.trade, times=2)
    seen = await it.look()
    assert quantity(seen) == it.bot.held == 2
    assert total(seen.fills or ()) == 2
    assert [a.id for a in seen.accounts or ()] == [it.bot.place.account]
    assert {o.filled for o in seen.orders or ()} <= {Decimal(1)}


@BOTH
async def test_an_account_that_never_rests_has_fills_and_no_position(it: Looker) -> None:
    it.before(it.positions, it.trade, times=ROUNDS)
    seen = await it.look()
    assert seen.positions is None
    assert seen.failed == {"positions": "fills came each time that positions were read"}
    assert total(seen.fills or ()) == ROUNDS
    assert (await it.look()).failed == {}


@BOTH
@pytest.mark.parametrize("trouble", [{"name": "5xx"}, {"name": "html", "status": 200}], ids=str)
async def test_a_query_that_fails_is_not_empty_and_the_others_are_told(
    it: Looker, trouble: dict[str, Any]
) -> None:
    await it.bot.want(it.bot.intent("entry", 3))
    await it.bot.want(it.bot.limit("rest", str(it.bot.place.price - 50), 2))
    for query, parts in QUERIES[str(it.bot.place)].items():
        one = Looker(it.bot)
        put: dict[str, Any] = {**trouble, "on": "query", "count": 100}
        real = getattr(it.client, query)

        async def struck(*args: Any, real: Any = real, put: Any = put, **kwargs: Any) -> Any:
            it.bot.sandbox.fault(**put)
            try:
                return await real(*args, **kwargs)
            finally:
                it.bot.sandbox.clear_faults()

        setattr(it.client, query, struck)
        if set(parts) == set(PARTS):
            with pytest.raises(KeeplineError):
                await one.look()
        else:
            seen = await one.look()
            assert set(seen.missing) == set(parts) == set(seen.failed)
            others = [getattr(seen, name) for name in PARTS if name not in parts]
            assert all(others), "what could be read is told"
        setattr(it.client, query, real)
    assert (await it.look()).missing == ()


@BOTH
@pytest.mark.parametrize(
    "trouble",
    [
        {"name": "outage"},
        {"name": "html", "status": 403, "count": 1000},
        {"name": "429", "count": 1000},
    ],
    ids=lambda trouble: trouble["name"],
)
async def test_when_nothing_can_be_read_that_is_an_error(
    it: Looker, trouble: dict[str, Any]
) -> None:
    it.bot.sandbox.fault(**trouble, on="query")
    with pytest.raises(KeeplineError):
        await it.look()


@BOTH
async def test_slow_answers_make_a_late_snapshot_and_no_wrong_one(it: Looker) -> None:
    it.bot.sandbox.fault(name="slow", delay=8, on="query")
    it.before(it.positions, it.trade)
    begun = it.bot.clock.boottime()
    seen = await it.look()
    assert it.bot.clock.boottime() - begun >= 24
    assert quantity(seen) == total(seen.fills or ()) == 1


@BOTH
async def test_a_short_trouble_is_outlived(it: Looker) -> None:
    await it.bot.want(it.bot.intent("entry", 3))
    it.bot.sandbox.fault(name="5xx", on="query", count=2)
    assert quantity(await it.look()) == 3


@BOTH
async def test_an_order_is_shown_however_old_it_is_while_it_works(it: Looker) -> None:
    resting = await it.bot.want(it.bot.limit("rest", str(it.bot.place.price - 50), 2))
    await it.bot.pass_by(1500)
    for _ in range(2):
        seen = await it.look(hours=0.2)
        assert [o.id for o in seen.open_orders or ()] == [resting.order_id]
    off = it.bot.intent("off", None, kind=IntentKind.CANCEL, target_order_id=resting.order_id)
    assert (await it.bot.do(off)).accepted
    assert (await it.look(hours=0.2)).open_orders == ()


@pytest.mark.parametrize("place", [SCHWAB], ids=str)
async def test_a_fill_of_an_order_from_before_the_window_is_in_it(it: Looker) -> None:
    await it.bot.want(it.bot.limit("rest", str(it.bot.place.price - 50), 2))
    await it.bot.pass_by(1500)
    await it.look(hours=0.2)
    it.bot.pin(it.bot.place.price - 60)
    await it.bot.pass_by(1)
    seen = await it.look(hours=0.2)
    assert total(seen.fills or ()) == 2
    assert quantity(seen) == 2
    await it.bot.pass_by(1500)
    assert (await it.look(hours=0.2)).fills == ()
    assert quantity(await it.look(hours=0.2)) == 2


@BOTH
async def test_fills_from_before_the_window_are_not_in_it(it: Looker) -> None:
    await it.bot.want(it.bot.limit("rest", str(it.bot.place.price - 50), 2))
    await it.bot.want(it.bot.intent("entry", 3))
    assert total((await it.look(hours=0.2)).fills or ()) == 3
    await it.bot.pass_by(1500)
    seen = await it.look(hours=0.2)
    assert seen.fills == ()
    assert quantity(seen) == 3


@pytest.mark.parametrize("place", [PROJECTX], ids=str)
async def test_orders_that_were_read_before_fills_of_theirs_are_read_again(it: Looker) -> None:
    await it.bot.want(it.bot.limit("rest", str(it.bot.place.price - 50), 2))
    it.before("search_trades", lambda: it.bot.pin(it.bot.place.price - 60))
    seen = await it.look()
    assert [o.status for o in seen.orders or ()] == [OrderStatus.FILLED]
    assert quantity(seen) == total(seen.fills or ()) == 2


@pytest.mark.parametrize("place", [PROJECTX], ids=str)
async def test_several_accounts_are_one_snapshot(it: Looker) -> None:
    await it.bot.want(it.bot.intent("entry", 3))
    since = it.bot.clock.wall() - timedelta(hours=1)
    seen = await it.bot.get(it.source.snapshot(["1001", "1002"], since=since))
    assert sorted(a.id for a in seen.accounts) == ["1001", "1002"], "a closed one, too"
    assert quantity(seen) == 3


@BOTH
async def test_what_makes_no_sense_is_refused_before_anything_is_sent(it: Looker) -> None:
    now = it.bot.clock.wall()
    before = it.bot.sandbox.stats()["requests"]
    for accounts, since, key in [
        ([], now, "accounts"),
        ("1001", now, "accounts"),
        ([""], now, "accounts"),
        ([it.bot.place.account], datetime(2026, 1, 1), "since"),  # noqa: DTZ001 - that is the point
    ]:
        with pytest.raises(ConfigError) as caught:
            await it.source.snapshot(accounts, since=since)
        assert caught.value.key == key
    assert it.bot.sandbox.stats()["requests"] == before


@pytest.mark.parametrize("place", [PROJECTX], ids=str)
async def test_an_account_that_is_not_there_is_not_flat(it: Looker) -> None:
    since = it.bot.clock.wall() - timedelta(hours=1)
    seen = await it.bot.get(it.source.snapshot(["1001", "9"], since=since))
    assert seen.accounts is None
    assert seen.failed["accounts"].startswith("9 is not there; the token reaches 1001, ")


TRADE = {
    "id": 7, "accountId": 1, "contractId": "C", "creationTimestamp": "2026-01-05T14:00:00Z", "price": 1.5,
    "fees": 0.4, "side": 0, "size": 1, "orderId": 9,
}  # fmt: skip


async def test_a_trade_that_projectx_took_back_is_named(venue: Venue) -> None:
    good = {"success": True, "errorCode": 0}
    for path in ("Order/search", "Order/searchOpen", "Position/searchOpen"):
        venue.on(f"/api/{path}", Reply(good))
    venue.on("/api/Account/search", Reply(good | {"accounts": [{"id": 1, "name": "one"}]}))
    rows = [TRADE | {"voided": False}, TRADE | {"id": 8, "voided": True}]
    venue.on("/api/Trade/search", Reply(good | {"trades": rows}))
    async with ProjectXClient(
        tokens, base_url=venue.url, limiter=unlimited(), retry=AT_ONCE
    ) as client:
        since = client.clock.wall() - timedelta(hours=1)
        seen = await ProjectXSnapshots(client).snapshot(["1"], since=since)
    assert [f.id for f in seen.fills or ()] == ["7"]
    assert seen.voided == ("8",)
    assert seen.missing == ()


async def test_a_trade_that_is_taken_back_between_the_queries_makes_them_anew(venue: Venue) -> None:
    good = {"success": True, "errorCode": 0}
    for path in ("Order/search", "Order/searchOpen"):
        venue.on(f"/api/{path}", Reply(good))
    venue.on("/api/Account/search", Reply(good | {"accounts": [{"id": 1, "name": "one"}]}))
    held = {"id": 3, "accountId": 1, "contractId": "C", "type": 1, "size": 1, "averagePrice": 1}
    venue.on("/api/Position/searchOpen", Reply(good | {"positions": [held]}), Reply(good))
    rows = [Reply(good | {"trades": [TRADE | {"voided": gone}]}) for gone in (False, True)]
    venue.on("/api/Trade/search", *rows)
    async with ProjectXClient(
        tokens, base_url=venue.url, limiter=unlimited(), retry=AT_ONCE
    ) as client:
        since = client.clock.wall() - timedelta(hours=1)
        seen = await ProjectXSnapshots(client).snapshot(["1"], since=since)
    assert (seen.fills, seen.voided, seen.positions) == ((), ("7",), ())


def test_orders_lag_behind_when_fills_say_more() -> None:
    when = datetime.fromisoformat("2026-01-05T14:00:00Z")
    order = Order(
        id="1", account="A", instrument="X", side=Side.BUY, type=OrderType.LIMIT,
        status=OrderStatus.OPEN, quantity=Decimal(2), filled=Decimal(1), entered_at=when,
    )  # fmt: skip
    fills = [
        Fill(id=name, order_id=number, account="A", instrument="X", side=Side.BUY, quantity=Decimal(1),
             price=Decimal(1), at=when)
        for name, number in [("t1", "1"), ("t2", "1"), ("t3", "other")]
    ]  # fmt: skip
    assert not lags_behind([order], fills[:1])
    assert lags_behind([order], fills[:2])
    assert not lags_behind([], fills)
