"""ProjectX's streams against the sandbox: both endpoints, what was missed, who is told, who is refused."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.brokers.loopback import AT_ONCE, unlimited

from keepline.brokers.base import IntentKind, OrderIntent
from keepline.brokers.orders import OrderGateway, OutcomeState
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.snapshot import ProjectXSnapshots
from keepline.brokers.projectx.stream import ProjectXStream
from keepline.brokers.projectx.stream_messages import QUOTE, TRADE, stream_types
from keepline.brokers.projectx.stream_topics import market_topic
from keepline.brokers.projectx.trading import ProjectXTrading
from keepline.clock import SYSTEM_CLOCK
from keepline.errors import ConfigError, PermanentError, StreamNotLive
from keepline.model import (
    Account,
    DepthUpdate,
    Fill,
    MarketTrade,
    Order,
    OrderStatus,
    OrderType,
    Position,
    Quote,
    Side,
)
from keepline.sandbox.server import SandboxServer
from keepline.sandbox.signalr_server import SignalRSettings
from keepline.stream.dial_budget import DialLimiter
from keepline.stream.events import ConnectionState, EventKind, StreamEvent
from keepline.stream.health import HealthStatus
from keepline.stream.playback import Playback, SignalRFrames
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.recorder import Recorder
from keepline.stream.recording import Recording
from keepline.stream.settings import StreamSettings
from keepline.stream.snapshot import Discrepancy, DiscrepancyKind, Snapshot
from keepline.stream.view import Change

ACCOUNT = "1001"
CONTRACT = "CON.F.US.MES.Z26"
PRICE = Decimal(6000)
QUICK = StreamSettings(backoff=(0.0, 0.05), jitter=0.0)


class Told:
    """What a listener was told, and how to wait for more."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._more = asyncio.Event()

    async def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._more.set()

    async def until(self, condition: Callable[[list[Any]], object]) -> list[Any]:
        """Return what was told once something holds of it."""
        while not condition(self.items):
            self._more.clear()
            await self._more.wait()
        return self.items

    async def first(self, wanted: Callable[[Any], object]) -> Any:
        """The first item that is wanted, once there is one."""
        await self.until(lambda items: any(map(wanted, items)))
        return next(item for item in self.items if wanted(item))


class Desk:
    """A bot's side and the venue beside it."""

    def __init__(self, sandbox: SandboxServer) -> None:
        self.sandbox = sandbox
        self.token = sandbox.issue().access_token
        self.asked = 0
        self.client = ProjectXClient(
            self.give, base_url=sandbox.url, limiter=unlimited(), retry=AT_ONCE
        )
        self.pin()

    async def give(self) -> str:
        self.asked += 1
        return self.token

    def pin(self, price: Decimal | None = PRICE) -> None:
        now = SYSTEM_CLOCK.wall().timestamp()
        self.sandbox.market.pin(CONTRACT, price, now=now)

    def stream(self, **options: Any) -> ProjectXStream:
        given: dict[str, Any] = {
            "accounts": [ACCOUNT],
            "base_url": self.sandbox.url,
            "settings": QUICK,
            "session": None,
            "dial_limiter": DialLimiter(burst=1000, per_second=1000),
            "reconcile": ReconcileSettings(retry_seconds=(0.01,)),
        }
        return ProjectXStream(self.give, self.client, **(given | options))

    @asynccontextmanager
    async def live(self, **options: Any) -> AsyncIterator[ProjectXStream]:
        async with self.stream(**options) as stream:
            await stream.connect(until="live")
            yield stream

    def intent(self, number: int, **options: Any) -> OrderIntent:
        given: dict[str, Any] = {
            "id": f"intent-{number}",
            "account": ACCOUNT,
            "instrument": CONTRACT,
            "side": Side.BUY,
            "quantity": Decimal(2),
            "type": OrderType.MARKET,
        }
        return OrderIntent(**(given | options))

    @asynccontextmanager
    async def gateway(self, journal: Path, **options: Any) -> AsyncIterator[OrderGateway]:
        async with OrderGateway(ProjectXTrading(self.client), journal, **options) as gateway:
            yield gateway


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    quick = SignalRSettings(beat=0.02)
    async with SandboxServer(signalr=quick, one_sign_in=False) as sandbox:
        made = Desk(sandbox)
        async with made.client:
            yield made


# --------------------------------------------------------------------------------------------------------------- market


async def test_quotes_trades_and_books_arrive_in_our_words(desk: Desk) -> None:
    desk.pin(None)
    quotes, trades, books = Told(), Told(), Told()
    async with desk.live(accounts=(), contracts=[CONTRACT]) as stream:
        stream.on_quote(quotes)
        stream.on_trade(trades)
        stream.on_depth(books)
        (quote, *_) = await quotes.until(lambda items: len(items) >= 3)
        (trade, *_) = await trades.until(bool)
        (book, *_) = await books.until(lambda items: len(items) >= 3)
        await stream.connect(until="live")
        assert stream.is_live
    assert all(
        isinstance(item, Quote) and None not in (item.bid, item.ask) for item in quotes.items
    )
    assert (quote.instrument, quote.bid < quote.ask) == (CONTRACT, True)
    assert isinstance(trade, MarketTrade)
    assert trade.side in Side
    assert isinstance(book, DepthUpdate)
    assert all(update.bids and update.asks and not update.is_crossed for update in books.items)


async def test_market_data_is_wanted_from_the_broker_once_and_given_back_with_the_last(
    desk: Desk,
) -> None:
    first, second = Told(), Told()
    async with desk.live(accounts=(), contracts=[CONTRACT]) as stream:
        ends = [stream.on_quote(first), stream.on_quote(second, CONTRACT)]
        await first.until(bool)
        await second.until(bool)
        assert desk.sandbox.stats()["hub_subscriptions"] == 1
        for end in ends:
            end()
        (manager,) = stream.managers
        while desk.sandbox.stats()["hub_subscriptions"]:
            await desk.client.ping()
        assert manager.standings == []


# ------------------------------------------------------------------------------------------------------------- accounts


async def test_an_order_placed_by_rest_is_seen_as_events(desk: Desk) -> None:
    orders, fills, positions, accounts = Told(), Told(), Told(), Told()
    async with desk.live() as stream:
        stream.on_order(orders)
        stream.on_fill(fills)
        stream.on_position(positions)
        stream.on_account(accounts)
        placed = await ProjectXTrading(desk.client).place(desk.intent(1))
        order = await orders.first(lambda o: o.id == placed.order_id and o.status.is_final)
        fill = await fills.first(lambda f: f.order_id == placed.order_id)
        position = await positions.first(lambda p: p.quantity == 2)
        account = await accounts.first(lambda a: a.id == ACCOUNT)
        assert stream.view.position(ACCOUNT, CONTRACT) == position
    assert isinstance(order, Order)
    assert (order.status, order.tag) == (OrderStatus.FILLED, "intent-1")
    assert isinstance(fill, Fill)
    assert isinstance(position, Position)
    assert isinstance(account, Account)


async def test_both_shapes_of_events_say_the_same(desk: Desk) -> None:
    desk.sandbox.fault("wrapped_events", action=2)
    fills = Told()
    async with desk.live() as stream:
        stream.on_fill(fills)
        placed = await ProjectXTrading(desk.client).place(desk.intent(1))
        fill = await fills.first(lambda f: f.order_id == placed.order_id)
    assert fill.quantity == 2


async def test_an_event_that_comes_twice_is_told_once(desk: Desk) -> None:
    desk.sandbox.fault("duplicate_events", event="GatewayUserTrade")
    fills, positions = Told(), Told()
    async with desk.live() as stream:
        stream.on_fill(fills)
        stream.on_position(positions)
        await ProjectXTrading(desk.client).place(desk.intent(1))
        await positions.first(lambda p: p.quantity == 2)
        await ProjectXTrading(desk.client).place(desk.intent(2))
        await positions.first(lambda p: p.quantity == 4)
    assert len(fills.items) == len({fill.id for fill in fills.items})
    assert sum(fill.quantity for fill in fills.items) == 4


async def test_a_fill_while_away_is_recovered_and_marked(desk: Desk) -> None:
    orders, fills, differed, events = Told(), Told(), Told(), Told()
    async with desk.live() as stream:
        stream.on_fill(fills, full=True)
        stream.on_discrepancy(differed)
        stream.on_order(orders)
        resting = desk.intent(1, type=OrderType.LIMIT, limit_price=Decimal(5990))
        placed = await ProjectXTrading(desk.client).place(resting)
        await orders.first(lambda o: o.id == placed.order_id)
        stream.on_event(events)
        desk.sandbox.fault("fill_while_away", on=["user_hub"])
        change = await fills.first(lambda c: c.value.order_id == placed.order_id)
        found = await differed.first(lambda d: d.kind is DiscrepancyKind.MISSED_FILL)
        await events.first(lambda e: e.kind is EventKind.LIVE)
        assert stream.is_live
        assert stream.view.orders[placed.order_id or ""].status is OrderStatus.FILLED
    assert isinstance(change, Change)
    assert change.recovered
    assert isinstance(found, Discrepancy)
    kinds = [event.kind for event in events.items if isinstance(event, StreamEvent)]
    assert kinds.index(EventKind.LOST) < kinds.index(EventKind.RECONCILING)
    assert kinds.index(EventKind.RECONCILING) < kinds.index(EventKind.LIVE)


async def test_an_event_that_cannot_be_read_makes_the_stream_look(desk: Desk) -> None:
    desk.sandbox.fault("missing_events", event="GatewayUserTrade", count=1)
    fills = Told()
    careful = ReconcileSettings(guard_seconds=0.01, spacing_seconds=0.01, retry_seconds=(0.01,))
    async with desk.live(reconcile=careful) as stream:
        stream.on_fill(fills, full=True)
        placed = await ProjectXTrading(desk.client).place(desk.intent(1))
        desk.sandbox.signalr.push("GatewayUserTrade", {"accountId": 1001, "id": "?"}, hub="user")
        change = await fills.first(lambda c: c.value.order_id == placed.order_id)
    assert change.recovered


@pytest.mark.parametrize("encoding", ["json", "messagepack"])
async def test_other_ways_to_connect_tell_the_same(desk: Desk, encoding: str) -> None:
    quotes, fills = Told(), Told()
    way = {"encoding": encoding, "skip_negotiation": False, "token_in": "header"}
    async with desk.live(contracts=[CONTRACT], **way) as stream:
        stream.on_quote(quotes)
        stream.on_fill(fills)
        placed = await ProjectXTrading(desk.client).place(desk.intent(1))
        (quote, *_) = await quotes.until(bool)
        fill = await fills.first(lambda f: f.order_id == placed.order_id)
        assert {dial.token_in for dial in desk.sandbox.signalr.dials} == {"header"}
    assert isinstance(quote, Quote)
    assert quote.last is not None
    assert fill.price == fill.price.quantize(Decimal("0.25"))


async def test_a_token_in_the_address_is_asked_for_anew_at_each_connect(desk: Desk) -> None:
    events = Told()
    async with desk.live() as stream:
        stream.on_event(events)
        desk.token = desk.sandbox.issue().access_token
        desk.sandbox.venue.revoke("access")
        desk.token = desk.sandbox.issue().access_token
        desk.sandbox.signalr.cut(hub="user")
        await events.first(lambda e: e.kind is EventKind.LIVE)
        assert [dial.status for dial in desk.sandbox.signalr.dials] == [101, 101]


async def test_after_a_gap_a_quote_holds_only_what_was_told_since(desk: Desk) -> None:
    quotes, events = Told(), Told()
    async with desk.live(accounts=(), contracts=[CONTRACT]) as stream:
        stream.on_event(events)
        end = stream.on_quote(quotes)
        await quotes.until(bool)
        assert stream.quote(CONTRACT) == quotes.items[-1]
        end()
        desk.sandbox.fault("cut_stream", on=["market_hub"])
        await events.first(lambda e: e.kind is EventKind.LOST)
        assert stream.quote(CONTRACT) is None


async def test_a_recorded_session_tells_the_same_again(desk: Desk, tmp_path: Path) -> None:
    """Also where the recorded connection was cut and another one followed."""
    desk.pin(None)
    live, again, events = Told(), Told(), Told()
    async with (
        Recorder(tmp_path / "session") as recorder,
        desk.live(accounts=(), contracts=[CONTRACT], record=recorder.connection) as stream,
    ):
        stream.on_event(events)
        stream.on_trade(live)
        await live.until(bool)
        desk.sandbox.signalr.cut(hub="market")
        await events.first(lambda e: e.kind is EventKind.CONNECTED)
        seen = len(live.items)
        await live.until(lambda items: len(items) > seen)
    recording = await asyncio.to_thread(Recording, tmp_path / "session")
    playback = Playback(recording, lambda: SignalRFrames(types=stream_types()), speed=None)
    replayed = desk.stream(accounts=(), contracts=[CONTRACT], links=playback.link)
    replayed.on_trade(again)
    try:
        await replayed.connect()
        await again.until(lambda items: len(items) >= len(live.items))
    finally:
        await replayed.disconnect()
    assert again.items[: len(live.items)] == live.items
    assert replayed.state is not ConnectionState.CONNECTED


async def test_a_plain_function_is_called_too(desk: Desk) -> None:
    loop, heard = asyncio.get_running_loop(), Told()

    def plain(quote: Quote) -> None:
        asyncio.run_coroutine_threadsafe(heard(quote), loop)

    async with desk.live(accounts=(), contracts=[CONTRACT]) as stream:
        stream.on_quote(plain)
        (quote, *_) = await heard.until(bool)
    assert quote.instrument == CONTRACT


async def test_who_is_too_slow_for_his_fills_is_told_of_and_gets_them_later(desk: Desk) -> None:
    events, positions, fills, go_on = Told(), Told(), Told(), asyncio.Event()

    async def slow(fill: Fill) -> None:
        await go_on.wait()
        await fills(fill)

    narrow = StreamSettings(backoff=(0.0,), jitter=0.0, mailbox=1)
    async with desk.live(settings=narrow) as stream:
        stream.on_event(events)
        stream.on_fill(slow)
        stream.on_position(positions)
        for number in range(1, 4):
            await ProjectXTrading(desk.client).place(desk.intent(number))
            await positions.first(lambda p, held=2 * number: p.quantity == held)
        told = await events.first(lambda e: e.kind is EventKind.OVERFLOW)
        assert (told.stream, told.channel) == ("projectx.user", "fill")
        assert len(stream.view.fills) == 3
        go_on.set()
        got = await fills.until(lambda items: len(items) == 3)
        assert {fill.id for fill in got} == set(stream.view.fills)


async def test_a_trade_of_long_ago_that_is_taken_back_is_asked_for(desk: Desk) -> None:
    asked: list[datetime] = []
    looked = asyncio.Event()

    class Noted(ProjectXSnapshots):
        async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
            asked.append(since)
            looked.set()
            return await super().snapshot(accounts, since=since)

    quick = ReconcileSettings(spacing_seconds=0.01, margin_seconds=1.0)
    async with desk.live(snapshots=Noted(desk.client), reconcile=quick) as stream:
        looked.clear()
        old = SYSTEM_CLOCK.wall() - timedelta(days=9)
        link = stream._links.link("user")
        trade = {
            "id": 1, "accountId": int(ACCOUNT), "contractId": CONTRACT, "voided": True, "orderId": 5,
            "creationTimestamp": old.isoformat(), "price": 1, "side": 0, "size": 1,
        }  # fmt: skip
        link._sink = lambda *_: None
        link._hear(TRADE, (trade,), 0.0)
        await looked.wait()
    assert asked[-1] == old - timedelta(seconds=1)


async def test_what_is_known_says_when_and_how_well(desk: Desk) -> None:
    async with desk.live(contracts=[CONTRACT]) as stream:
        assert (stream.health, stream.reasons) == (HealthStatus.HEALTHY, ())
        assert stream.state is ConnectionState.CONNECTED
        assert stream.reconciled_at is not None
        assert "projectx.user" in repr(stream)
    assert stream.health is not HealthStatus.HEALTHY
    assert not stream.is_live


async def test_an_account_that_is_not_there_is_never_live_and_says_why(desk: Desk) -> None:
    looked = asyncio.Event()

    class Noted(ProjectXSnapshots):
        async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
            if looks := len(asked):
                looked.set()
            asked.append(looks)
            return await super().snapshot(accounts, since=since)

    asked: list[int] = []
    async with desk.stream(accounts=["424242"], snapshots=Noted(desk.client)) as stream:
        await looked.wait()
        assert any("424242 is not there" in reason for reason in stream.reasons)
        assert not stream.is_live
        assert stream.reconciled_at is None


async def test_a_stream_that_cannot_begin_leaves_nothing_behind(desk: Desk) -> None:
    once = StreamSettings(attempts=1)
    desk.token = "wrong"
    with pytest.raises(PermanentError) as caught:
        async with desk.stream(settings=once):
            pytest.fail("a refused token cannot connect")
    assert caught.value.status == 401


async def test_in_messagepack_a_stream_tells_the_same(desk: Desk) -> None:
    quotes, fills, books = Told(), Told(), Told()
    async with desk.live(contracts=[CONTRACT], encoding="messagepack") as stream:
        stream.on_quote(quotes)
        stream.on_depth(books)
        stream.on_fill(fills)
        await ProjectXTrading(desk.client).place(desk.intent(1))
        (fill, *_) = await fills.until(bool)
        (quote, *_) = await quotes.until(bool)
        (book, *_) = await books.until(bool)
        assert stream.view.fills == {fill.id: fill}
    assert fill.quantity == 2
    assert (quote.instrument, book.instrument) == (CONTRACT, CONTRACT)
    assert quote.bid < quote.ask


# -------------------------------------------------------------------------------------------------------------- orders


async def test_a_new_order_is_refused_while_the_stream_is_blind(desk: Desk, tmp_path: Path) -> None:
    events = Told()
    async with (
        desk.live() as stream,
        desk.gateway(tmp_path / "orders", guard=stream.require_live) as gateway,
    ):
        stream.on_event(events)
        resting = desk.intent(1, type=OrderType.LIMIT, limit_price=Decimal(5990))
        placed = await gateway.place(resting)
        desk.sandbox.fault("outage", on=["websocket"])
        await events.first(lambda e: e.kind is EventKind.LOST)
        with pytest.raises(StreamNotLive, match=r"projectx\.user is not live"):
            await gateway.place(desk.intent(2))
        cancel = desk.intent(
            3,
            kind=IntentKind.CANCEL,
            target_order_id=placed.order_id,
            side=None,
            quantity=None,
            type=None,
        )
        assert (await gateway.cancel(cancel)).state is OutcomeState.ACCEPTED
        desk.sandbox.clear_faults()
        await stream.connect(until="live")
        assert (await gateway.place(desk.intent(4))).state is OutcomeState.ACCEPTED
    assert len(desk.sandbox.market.orders) == 2


async def test_an_order_whose_answer_was_lost_is_known_by_its_event(
    desk: Desk, tmp_path: Path
) -> None:
    async with desk.live() as stream, desk.gateway(tmp_path / "orders") as gateway:
        stream.feed(gateway)
        desk.sandbox.fault("order_answer_lost", on=["order"])
        outcome = await gateway.place(desk.intent(1))
    assert (outcome.state, outcome.how) == (OutcomeState.ACCEPTED, "stream")
    assert len(desk.sandbox.market.orders) == 1


async def test_whose_account_is_not_followed_or_whose_quotes_are_old_is_refused(desk: Desk) -> None:
    quotes = Told()
    async with desk.live(contracts=[CONTRACT]) as stream:
        stream.require_live()
        stream.require_live(desk.intent(1))
        with pytest.raises(StreamNotLive, match="account 9 is not followed"):
            stream.require_live(desk.intent(1, account="9"))
        desk.sandbox.fault("silent", on=["market_hub"])
        stream.on_quote(quotes)
        for about in (desk.intent(1), CONTRACT):
            with pytest.raises(StreamNotLive, match="GatewayQuote"):
                stream.require_live(about)
        assert not stream.is_live
        stream.require_live(desk.intent(1, instrument="CON.F.US.MNQ.Z26"))
        desk.sandbox.clear_faults()
        await stream.connect(until="live")
        stream.require_live(desk.intent(1))
        assert await quotes.until(bool)


# -------------------------------------------------------------------------------------------------------- who may stay


async def test_a_newer_token_takes_over_without_a_gap(desk: Desk) -> None:
    fills, events = Told(), Told()
    async with desk.live() as stream:
        stream.on_fill(fills)
        stream.on_event(events)
        before = desk.sandbox.signalr.connections[0]
        desk.token = desk.sandbox.issue().access_token
        stream.renew()
        placed = []
        for number in range(1, 6):
            placed.append(await ProjectXTrading(desk.client).place(desk.intent(number)))
        await desk.sandbox.signalr.until(lambda: before not in desk.sandbox.signalr.connections)
        placed.append(await ProjectXTrading(desk.client).place(desk.intent(6)))
        await fills.until(lambda items: {p.order_id for p in placed} <= {f.order_id for f in items})
        assert stream.is_live
    assert len(fills.items) == len({fill.id for fill in fills.items})
    assert EventKind.LOST not in [event.kind for event in events.items]


class Announcing:
    """A source of tokens that tells of each new one."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.subscribers: list[Callable[[Any], Any]] = []

    async def get_token(self) -> str:
        return self.token

    def subscribe(self, callback: Callable[[Any], Any]) -> Callable[[], None]:
        self.subscribers.append(callback)
        return lambda: self.subscribers.remove(callback)


async def test_a_source_that_announces_a_newer_token_makes_newer_connections(desk: Desk) -> None:
    source = Announcing(desk.token)
    stream = ProjectXStream(
        source, contracts=[CONTRACT], base_url=desk.sandbox.url, settings=QUICK, session=None
    )
    async with stream:
        before = desk.sandbox.signalr.connections[0]
        source.token = desk.sandbox.issue().access_token
        for tell in source.subscribers:
            tell(source.token)
        await desk.sandbox.signalr.until(lambda: before not in desk.sandbox.signalr.connections)
        assert len(desk.sandbox.signalr.connections) == 1
    assert source.subscribers == []


async def test_who_is_displaced_comes_back_once_and_then_says_so(desk: Desk) -> None:
    events = Told()
    async with desk.live() as stream:
        stream.on_event(events)
        desk.sandbox.fault("displaced", on=["user_hub"])
        await events.first(lambda e: e.kind is EventKind.LOST)
        await stream.connect(until="live")
        dials = desk.sandbox.stats()["hub_dials"]
        desk.sandbox.fault("displaced", on=["user_hub"])
        alarm = await events.first(lambda e: e.kind is EventKind.ALARM)
        assert "stop one of the two" in alarm.reason
        assert (stream.is_live, desk.sandbox.stats()["hub_dials"]) == (False, dials)
        assert any("stop one of the two" in reason for reason in stream.reasons)
        with pytest.raises(StreamNotLive, match="stop one of the two"):
            stream.require_live()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"accounts": ()}, "accounts"),
        ({"accounts": "1001"}, "accounts"),
        ({"accounts": ["my account"]}, "accounts"),
        ({"contracts": CONTRACT}, "contracts"),
        ({"accounts": [True]}, "accounts"),
        ({"contracts": [5]}, "contracts"),
        ({"contracts": [""]}, "contracts"),
        ({"renew_after": 0}, "renew_after"),
        ({"renew_after": "daily"}, "renew_after"),
        ({"quote_cadence": -1.0}, "quote_cadence"),
        ({"levels": 0}, "levels"),
        ({"levels": "all"}, "levels"),
        ({"base_url": "rtc.topstepx.com"}, "base_url"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_its_name(
    desk: Desk, wrong: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        desk.stream(**wrong)
    assert caught.value.key == key


async def test_an_option_that_nobody_knows_is_refused_before_anything_is_sent(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="xml"):
        desk.stream(encoding="xml")
    with pytest.raises(TypeError, match="nonsense"):
        desk.stream(nonsense=1)
    assert desk.asked == 0


async def test_after_a_disconnect_it_connects_again_with_all_that_was_there(desk: Desk) -> None:
    source = Announcing(desk.token)
    quotes, fills = Told(), Told()
    stream = ProjectXStream(
        source,
        desk.client,
        accounts=[ACCOUNT],
        contracts=[CONTRACT],
        base_url=desk.sandbox.url,
        settings=QUICK,
        session=None,
    )
    stream.on_quote(quotes)
    stream.on_fill(fills)
    for life in (1, 2):
        async with stream:
            await stream.connect(until="live")
            assert len(source.subscribers) == 1
            await ProjectXTrading(desk.client).place(desk.intent(life))
            await fills.until(lambda items, life=life: len(items) == life)
            quotes.items.clear()
            await quotes.until(bool)
        assert source.subscribers == []
        assert not stream.is_live


async def test_of_several_contracts_all_are_subscribed_or_none(desk: Desk) -> None:
    stream = desk.stream(contracts=[CONTRACT])
    (_, market) = stream.managers
    taken = "CON.F.US.MNQ.Z26"
    other = market_topic(QUOTE, taken, cadence=None, session=None)
    market.subscribe(replace(other, policy="never"), print)
    with pytest.raises(ConfigError, match="policy"):
        stream.on_quote(print, CONTRACT, taken)
    assert [one.topic.key for one in market.standings] == [taken]


async def test_accounts_need_somebody_to_ask() -> None:
    with pytest.raises(ConfigError, match="accounts need one") as caught:
        ProjectXStream("token", accounts=[ACCOUNT])
    assert caught.value.key == "client"


async def test_what_was_not_asked_for_cannot_be_listened_to(desk: Desk) -> None:
    accounts_only = desk.stream()
    with pytest.raises(ConfigError, match="no contract was given"):
        accounts_only.on_quote(print)
    market_only = desk.stream(accounts=(), contracts=[CONTRACT])
    for ask in (market_only.on_fill, market_only.on_discrepancy, market_only.feed):
        with pytest.raises(ConfigError, match="no account is followed"):
            ask(print)
    with pytest.raises(ConfigError, match="a callback is a function"):
        market_only.on_quote("print")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="contract"):
        market_only.on_quote(print, "")
    assert market_only.reconciled_at is None
    with pytest.raises(StreamNotLive, match=f"nothing is known of {CONTRACT}"):
        accounts_only.require_live(CONTRACT)


async def test_a_token_is_nowhere_to_be_seen(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with desk.live() as stream:
        assert desk.token not in repr(stream)
        assert desk.asked > 0
    assert desk.token not in caplog.text


# --------------------------------------------------------------------------------------------------------- its own page


async def test_the_example_of_the_reference_trades(desk: Desk, tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs/reference/brokers.md"
    (code,) = re.findall(r"```python\n(from decimal.*?buy_one.*?)```", page.read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    url = desk.sandbox.url
    outcome = await names["buy_one"](desk.give, tmp_path / "orders", api=url, rtc=url)
    assert outcome.state is OutcomeState.ACCEPTED
    assert [order.tag for order in desk.sandbox.market.orders] == ["entry-1"]
