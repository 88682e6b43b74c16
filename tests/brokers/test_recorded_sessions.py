"""A session of accounts is recorded at the sandbox and played again without it: the same events, the same view."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.brokers.loopback import AT_ONCE, unlimited

from keepline.brokers.base import OrderIntent
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.playback import projectx_frames
from keepline.brokers.projectx.stream import ProjectXStream
from keepline.brokers.projectx.trading import ProjectXTrading
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import Instruction, OrderRequest
from keepline.brokers.schwab.playback import schwab_frames
from keepline.brokers.schwab.stream import SchwabStream
from keepline.clock import SYSTEM_CLOCK
from keepline.credentials.token import Token
from keepline.model import Fill, Order, OrderStatus, OrderType, Side
from keepline.sandbox.server import SandboxServer
from keepline.sandbox.signalr_server import SignalRSettings
from keepline.sandbox.streamer_session import StreamerTimes
from keepline.stream.dial_budget import DialLimiter
from keepline.stream.events import EventKind, StreamEvent
from keepline.stream.playback import Playback
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.recorder import Recorder
from keepline.stream.recording import Recording
from keepline.stream.settings import StreamSettings
from keepline.stream.view import AccountView, Change

ACCOUNT = "1001"
CONTRACT = "CON.F.US.MES.Z26"
QUICK = StreamSettings(backoff=(0.0, 0.05), jitter=0.0)
LOOKS = ReconcileSettings(guard_seconds=0.01, spacing_seconds=0.01, retry_seconds=(0.01,))
AAPL = "AAPL"
SCHWAB_ACCOUNT = "10000001"


class Told:
    """What a listener was told, and how to wait for more."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._more = asyncio.Event()

    async def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._more.set()

    async def first(self, wanted: Callable[[Any], object], *, after: int = 0) -> Any:
        await self.until(lambda items: any(map(wanted, items[after:])))
        return next(item for item in self.items[after:] if wanted(item))

    async def until(self, condition: Callable[[list[Any]], object]) -> None:
        while not condition(self.items):
            self._more.clear()
            await self._more.wait()


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    quick = {"signalr": SignalRSettings(beat=0.02), "streamer": StreamerTimes(tick=0.02)}
    async with SandboxServer(one_sign_in=False, **quick) as server:  # type: ignore[arg-type]
        yield server


def pin(sandbox: SandboxServer, what: str, price: int) -> None:
    sandbox.market.pin(what, Decimal(price), now=SYSTEM_CLOCK.wall().timestamp())


def known(view: AccountView) -> tuple[object, ...]:
    orders = {order.id: (order.status, order.filled) for order in view.orders.values()}
    return orders, dict(view.fills), dict(view.positions)


def kinds(events: Sequence[StreamEvent]) -> list[EventKind]:
    """What happened to the whole of a stream, up to the last time that it was live."""
    told = [e.kind for e in events if not e.channel]
    return told[: len(told) - told[::-1].index(EventKind.LIVE)]


async def test_a_session_of_an_account_with_a_cut_ends_in_the_same_view(
    sandbox: SandboxServer, tmp_path: Path
) -> None:
    """Also what was missed during the cut: it stands in the snapshots of the recording."""
    token = sandbox.issue().access_token
    pin(sandbox, CONTRACT, 6000)

    async def give() -> str:
        return token

    client = ProjectXClient(give, base_url=sandbox.url, limiter=unlimited(), retry=AT_ONCE)

    def stream(client: ProjectXClient | None, **options: Any) -> ProjectXStream:
        return ProjectXStream(
            token, client, accounts=[ACCOUNT], base_url=sandbox.url, settings=QUICK,
            reconcile=LOOKS, dial_limiter=DialLimiter(burst=1000, per_second=1000), **options,
        )  # fmt: skip

    def intent(number: int, **options: Any) -> OrderIntent:
        return OrderIntent(
            **{"id": f"i-{number}", "account": ACCOUNT, "instrument": CONTRACT, "side": Side.BUY,
               "quantity": Decimal(2), "type": OrderType.MARKET} | options
        )  # fmt: skip

    events, orders, fills = Told(), Told(), Told()
    async with client, Recorder(tmp_path / "a.klrec.gz", broker="projectx") as recorder:
        live = stream(client, record=recorder.connection)
        live.on_event(events)
        live.on_order(orders)
        live.on_fill(fills, full=True)
        async with live:
            await live.connect(until="live")
            sandbox.signalr.push("Echo", f"you said {token}", hub="user")
            trading = ProjectXTrading(client)
            done = await trading.place(intent(1))
            await fills.first(lambda c: c.value.order_id == done.order_id)
            await orders.first(lambda o: o.id == done.order_id and o.status.is_final)
            resting = intent(2, type=OrderType.LIMIT, limit_price=Decimal(5990))
            missed = await trading.place(resting)
            await orders.first(lambda o: o.id == missed.order_id)
            seen = len(events.items)
            sandbox.fault("fill_while_away", on=["user_hub"])
            change = await fills.first(lambda c: c.value.order_id == missed.order_id)
            assert change.recovered
            await events.first(lambda e: e.kind is EventKind.LIVE and not e.channel, after=seen)
            expected = known(live.view)

    recording = await asyncio.to_thread(Recording, tmp_path / "a.klrec.gz")
    frames = [entry.data for entry in await asyncio.to_thread(list, recording)]
    assert f"you said {'*' * len(token)}" in "".join(map(str, frames))
    assert token not in "".join(map(str, frames))
    playback = Playback(recording, projectx_frames, speed=None)
    events_again, fills_again = Told(), Told()
    again = stream(None, links=playback.link, snapshots=playback.snapshots)
    again.on_event(events_again)
    again.on_fill(fills_again, full=True)
    async with again:
        change = await fills_again.first(lambda c: c.value.order_id == missed.order_id)
        assert isinstance(change, Change)
        assert change.recovered
        lives = times_live(events.items)
        await events_again.until(lambda items: times_live(items) >= lives)
        assert known(again.view) == expected
    assert kinds(events_again.items) == kinds(events.items)
    assert [c.value for c in fills_again.items] == [c.value for c in fills.items]
    assert again.view.orders[missed.order_id or ""].status is OrderStatus.FILLED


def times_live(events: Sequence[StreamEvent]) -> int:
    return sum(e.kind is EventKind.LIVE and not e.channel for e in events)


async def test_a_session_at_schwab_ends_in_the_same_view_without_schwab(
    sandbox: SandboxServer, tmp_path: Path
) -> None:
    """Schwab's stream says only that something happened; what it was stands in the recorded snapshots."""
    token = sandbox.issue()
    pin(sandbox, AAPL, 200)

    class Tokens:
        async def get(self, *, newer_than: int | None = None) -> Token:
            return token

    def stream(client: SchwabClient, **options: Any) -> SchwabStream:
        return SchwabStream(
            Tokens(), client, accounts=[SCHWAB_ACCOUNT], symbols=[AAPL], reconcile=LOOKS,
            dial_limiter=DialLimiter(burst=1000), **options,
        )  # fmt: skip

    fills, quotes, again_fills, again_quotes = Told(), Told(), Told(), Told()
    client = SchwabClient(Tokens(), base_url=sandbox.url, limiter=unlimited())
    async with (
        client,
        Recorder(tmp_path / "a.klrec.gz", broker="schwab") as recorder,
        stream(client, record=recorder.connection) as live,
    ):
        live.on_fill(fills)
        live.on_quote(quotes)
        await live.connect(until="live")
        buy = OrderRequest(symbol=AAPL, instruction=Instruction.BUY, quantity=10)
        placed = await client.place_order(SCHWAB_ACCOUNT, buy)
        await fills.first(lambda f: f.order_id == str(placed.order_id))
        looked = live.reconciled_at
        pin(sandbox, AAPL, 201)
        await quotes.first(lambda q: q.last == 201.0)
        while live.reconciled_at == looked:  # the activity calls for a look
            await client.account_numbers()
        expected = known(live.view)
    assert isinstance(fills.items[0], Fill)

    recording = await asyncio.to_thread(Recording, tmp_path / "a.klrec.gz")
    playback = Playback(recording, schwab_frames, speed=None)
    dead = SchwabClient(Tokens(), base_url="http://127.0.0.1:9", retry=AT_ONCE)
    async with dead:
        again = stream(dead, links=playback.link, snapshots=playback.snapshots)
        again.on_fill(again_fills)
        again.on_quote(again_quotes)
        async with again:
            await again_quotes.first(lambda q: q.last == 201.0)
            await again_fills.first(lambda f: isinstance(f, Fill))
            assert known(again.view) == expected
    assert [fill.id for fill in again_fills.items] == [fill.id for fill in fills.items]
    assert all(isinstance(order, Order) for order in again.view.orders.values())
