"""Both clients against the sandbox: whole conversations, and what a lost answer leaves behind."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal

import pytest
from tests.brokers.loopback import AT_ONCE, unlimited

from keepline.brokers.base import EvidenceQuery, OrderIntent
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.messages import OrderChange, OrderRequest, OrderSide
from keepline.brokers.projectx.messages import OrderStatus as ProjectXStatus
from keepline.brokers.projectx.messages import OrderType as ProjectXType
from keepline.brokers.projectx.trading import ProjectXTrading
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import Instruction, OrderStatus
from keepline.brokers.schwab.messages import OrderRequest as SchwabOrder
from keepline.brokers.schwab.messages import OrderType as SchwabType
from keepline.brokers.schwab.trading import SchwabTrading
from keepline.credentials.issuer import StaticIssuer
from keepline.credentials.manager import TokenManager
from keepline.errors import OutcomeUnknown, PermanentError
from keepline.model import OrderType, Side
from keepline.sandbox.server import SandboxServer
from keepline.testing import ManualClock

MES, STOCK, ACCOUNT = "CON.F.US.MES.Z26", "AAPL", "10000001"
PAST = timedelta(hours=3)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def sandbox(clock: ManualClock) -> AsyncIterator[SandboxServer]:
    async with SandboxServer(clock=clock) as server:
        now = clock.wall().timestamp()
        server.market.pin(MES, Decimal(6000), now=now)
        server.market.pin(STOCK, Decimal(225), now=now)
        yield server


@pytest.fixture
async def projectx(sandbox: SandboxServer, clock: ManualClock) -> AsyncIterator[ProjectXClient]:
    issuer = StaticIssuer(sandbox.issue().access_token)
    async with (
        TokenManager({"name": "sandbox"}, issuer) as manager,
        ProjectXClient(
            manager, base_url=sandbox.url, limiter=unlimited(), retry=AT_ONCE, clock=clock
        ) as client,
    ):
        yield client


@pytest.fixture
async def schwab(sandbox: SandboxServer, clock: ManualClock) -> AsyncIterator[SchwabClient]:
    issuer = StaticIssuer(sandbox.issue().access_token)
    async with (
        TokenManager({"name": "sandbox"}, issuer) as manager,
        SchwabClient(
            manager, base_url=sandbox.url, limiter=unlimited(), retry=AT_ONCE, clock=clock
        ) as client,
    ):
        yield client


async def test_a_future_is_found_bought_protected_and_closed(
    projectx: ProjectXClient, clock: ManualClock
) -> None:
    assert await projectx.ping() == "pong"
    account = await projectx.account()
    contract = await projectx.contract(MES)
    assert contract.tick_size == Decimal("0.25")
    bought = await projectx.place_order(
        OrderRequest(account_id=account.id, contract_id=MES, type=ProjectXType.MARKET, side=OrderSide.BID, size=2,
                     custom_tag="entry-1")
    )  # fmt: skip
    assert bought is not None
    stop = await projectx.place_order(
        OrderRequest(account_id=account.id, contract_id=MES, type=ProjectXType.STOP, side=OrderSide.ASK, size=2,
                     stop_price=Decimal("5990.25"), custom_tag="stop-1")
    )  # fmt: skip
    assert stop is not None
    await projectx.modify_order(
        OrderChange(
            account_id=account.id, order_id=stop, stop_price=Decimal("5991"), contract_id=MES
        )
    )
    (working,) = await projectx.open_orders(account.id)
    assert (working.id, working.type, working.stop_price) == (stop, ProjectXType.STOP, 5991)
    (position,) = await projectx.open_positions(account.id)
    assert (position.size, position.average_price) == (2, Decimal("6000.25"))
    await projectx.cancel_order(account.id, stop)
    await projectx.partial_close_position(account.id, MES, 1)
    await projectx.close_position(account.id, MES)
    assert await projectx.open_positions(account.id) == ()
    with pytest.raises(PermanentError, match="PositionNotFound"):
        await projectx.close_position(account.id, MES)
    orders = {
        order.id: order for order in await projectx.search_orders(account.id, clock.wall() - PAST)
    }
    assert (orders[bought].status, orders[bought].custom_tag) == (ProjectXStatus.FILLED, "entry-1")
    assert orders[stop].status is ProjectXStatus.CANCELLED
    trades = await projectx.search_trades(account.id, clock.wall() - PAST)
    assert sum(trade.size if trade.side == OrderSide.BID else -trade.size for trade in trades) == 0


async def test_bars_of_the_future_fit_each_other(
    projectx: ProjectXClient, clock: ManualClock
) -> None:
    start = clock.wall() - timedelta(hours=7)
    end = clock.wall() - timedelta(seconds=1)
    found = [bar async for bar in projectx.bars(MES, start, end, "second")]
    times = [bar.at for bar in found]
    assert len(times) > 20_000
    assert times == sorted(set(times))
    piece = await projectx.retrieve_bars(MES, times[100], times[200], "second")
    assert list(piece) == found[100:201]
    contracts = await projectx.search_contracts("MES")
    assert MES in {contract.id for contract in contracts}
    assert MES in {contract.id for contract in await projectx.available_contracts()}


@pytest.mark.parametrize("fault", ["order_answer_lost", "late_accept", "partial_fill_then_cut"])
async def test_an_unknown_order_at_projectx_is_seen_by_its_tag(
    sandbox: SandboxServer, projectx: ProjectXClient, clock: ManualClock, fault: str
) -> None:
    sandbox.fault(fault)
    trading = ProjectXTrading(projectx)
    wanted = OrderIntent(
        id="intent-7", account="1001", instrument=MES, side=Side.BUY, quantity=Decimal(2), type=OrderType.MARKET
    )  # fmt: skip
    with pytest.raises(OutcomeUnknown):
        await trading.place(wanted)
    clock.advance(8)
    found = await trading.evidence(EvidenceQuery(account="1001", since=clock.wall() - PAST))
    seen = {order.id for order in (*found.open_orders, *found.history) if order.tag == "intent-7"}
    assert len(seen) == len(sandbox.market.orders) == 1
    assert sum(fill.quantity for fill in found.fills) == found.positions[0].quantity == 2


async def test_a_stock_is_bought_by_limit_replaced_and_closed(
    schwab: SchwabClient, clock: ManualClock
) -> None:
    assert await schwab.account_numbers() == (ACCOUNT,)
    limit = SchwabOrder(
        symbol=STOCK, instruction=Instruction.BUY, quantity=10, type=SchwabType.LIMIT, price=Decimal("200.10")
    )  # fmt: skip
    assert (await schwab.preview_order(ACCOUNT, limit)).rejects == ()
    placed = await schwab.place_order(ACCOUNT, limit)
    assert placed.order_id is not None
    order = await schwab.order(ACCOUNT, placed.order_id)
    assert (order.status, order.price, order.quantity) == (
        OrderStatus.WORKING,
        Decimal("200.10"),
        10,
    )
    market = SchwabOrder(symbol=STOCK, instruction=Instruction.BUY, quantity=10)
    replaced = await schwab.replace_order(ACCOUNT, placed.order_id, market)
    assert replaced.order_id not in (None, placed.order_id)
    orders = await schwab.orders(ACCOUNT, clock.wall() - PAST, clock.wall() + PAST)
    assert [(row.order_id, row.status) for row in orders] == [
        (placed.order_id, OrderStatus.REPLACED), (replaced.order_id, OrderStatus.FILLED),
    ]  # fmt: skip
    assert orders == await schwab.all_orders(clock.wall() - PAST, clock.wall() + PAST)
    account = await schwab.account(ACCOUNT, positions=True)
    (position,) = account.positions or ()
    assert (position.instrument.symbol, position.long_quantity) == (STOCK, 10)
    assert len(await schwab.accounts()) == 1
    far = await schwab.place_order(ACCOUNT, limit)
    assert far.order_id is not None
    await schwab.cancel_order(ACCOUNT, far.order_id)
    with pytest.raises(PermanentError):
        await schwab.cancel_order(ACCOUNT, far.order_id)
    trading = SchwabTrading(schwab)
    closing = OrderIntent(id="close-1", account=ACCOUNT, instrument=STOCK)
    assert (await trading.close(closing)).order_id is not None
    found = await trading.evidence(EvidenceQuery(account=ACCOUNT, since=clock.wall() - PAST))
    assert (found.positions, found.failed, found.open_orders) == ((), {}, ())
    assert sum(fill.quantity * fill.side.sign for fill in found.fills) == 0


async def test_quotes_and_history_of_the_stock(schwab: SchwabClient, clock: ManualClock) -> None:
    quotes = await schwab.quotes([STOCK, "NOPE"])
    assert set(quotes) == {STOCK}
    assert quotes[STOCK].bid is not None
    end = clock.wall()
    found = [bar async for bar in schwab.bars(STOCK, end - timedelta(days=14), end, "minute", 30)]
    times = [bar.at for bar in found]
    assert times == sorted(set(times))
    assert times


@pytest.mark.parametrize("fault", ["order_answer_lost", "late_accept", "partial_fill_then_cut"])
async def test_an_unknown_order_at_schwab_is_seen_by_its_looks(
    sandbox: SandboxServer, schwab: SchwabClient, clock: ManualClock, fault: str
) -> None:
    sandbox.fault(fault)
    trading = SchwabTrading(schwab)
    wanted = OrderIntent(
        id="intent-7", account=ACCOUNT, instrument=STOCK, side=Side.BUY, quantity=Decimal(4), type=OrderType.LIMIT,
        limit_price=Decimal(230),
    )  # fmt: skip
    with pytest.raises(OutcomeUnknown):
        await trading.place(wanted)
    clock.advance(8)
    found = await trading.evidence(EvidenceQuery(account=ACCOUNT, since=clock.wall() - PAST))
    (order,) = found.history
    assert (order.side, order.quantity, order.limit_price, order.type) == (
        Side.BUY,
        4,
        230,
        OrderType.LIMIT,
    )
    assert sum(fill.quantity for fill in found.fills) == found.positions[0].quantity == 4


async def test_a_201_without_a_location_is_an_order_without_an_id(
    sandbox: SandboxServer, schwab: SchwabClient
) -> None:
    sandbox.fault("no_location")
    placed = await schwab.place_order(
        ACCOUNT, SchwabOrder(symbol=STOCK, instruction=Instruction.BUY, quantity=1)
    )
    assert placed.order_id is None
    assert len(sandbox.market.orders) == 1
