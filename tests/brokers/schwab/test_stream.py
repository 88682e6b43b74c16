"""Claims about Schwab's stream against the sandbox on a real socket."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.brokers.loopback import Reply, loopback, unlimited

from keepline.brokers.base import OrderIntent
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import Instruction, OrderRequest, OrderType
from keepline.brokers.schwab.stream import SCHWAB_STREAM, SchwabStream
from keepline.brokers.schwab.stream_link import SchwabLink
from keepline.brokers.schwab.streamer_messages import AccountActivity, Book, Candlestick, LevelOne
from keepline.brokers.schwab.streamer_topics import topic_of
from keepline.brokers.schwab.streamer_wire import SchwabWire
from keepline.clock import SYSTEM_CLOCK
from keepline.credentials.token import Token
from keepline.errors import Closed, ConfigError, PermanentError, StreamNotLive
from keepline.model import Fill, Order, Position, Quote, Side
from keepline.sandbox.quota import Rate
from keepline.sandbox.server import Rates, SandboxServer
from keepline.sandbox.streamer_session import StreamerTimes
from keepline.stream.events import ConnectionState, EventKind, StreamEvent
from keepline.stream.playback import Playback, WireFrames
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.recorder import Recorder
from keepline.stream.recording import Recording
from keepline.stream.redial import DialLimiter
from keepline.stream.tokens import StreamTokens

ACCOUNT = "10000001"
QUICK = StreamerTimes(tick=0.02, heartbeat=0.05)
LOOKS = ReconcileSettings(guard_seconds=0.05, spacing_seconds=0.05, retry_seconds=(0.05,))
BUY = OrderRequest(symbol="AAPL", instruction=Instruction.BUY, quantity=10)


class Desk:
    """A sandbox, a client, and what holds their token."""

    def __init__(self, sandbox: SandboxServer) -> None:
        self.sandbox = sandbox
        self.token = sandbox.issue()
        self.asked: list[int | None] = []
        self.client = SchwabClient(self, base_url=sandbox.url, limiter=unlimited())

    async def get(self, *, newer_than: int | None = None) -> Token:
        self.asked.append(newer_than)
        return self.token

    def pin(self, symbol: str, price: object) -> None:
        now = SYSTEM_CLOCK.wall().timestamp()
        self.sandbox.market.pin(symbol, Decimal(str(price)), now=now)

    def stream(self, **options: Any) -> SchwabStream:
        known: dict[str, Any] = {"reconcile": LOOKS, "dial_limiter": DialLimiter(burst=1000)}
        return SchwabStream(self, self.client, **{**known, **options})


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    rates = Rates(schwab=Rate(100_000, 1.0))
    async with SandboxServer(streamer=QUICK, rates=rates) as sandbox:
        desk = Desk(sandbox)
        async with desk.client:
            yield desk


class Inbox:
    """What a callback got, in order."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, item: Any) -> None:
        self.items.put_nowait(item)

    async def until(self, wanted: Callable[[Any], object]) -> Any:
        async with asyncio.timeout(20):
            while not wanted(item := await self.items.get()):
                pass
        return item


def kind(wanted: EventKind) -> Callable[[StreamEvent], bool]:
    return lambda event: event.kind is wanted and not event.channel


async def test_a_quote_is_whole_after_each_change_of_the_market(desk: Desk) -> None:
    desk.pin("AAPL", 200)
    async with desk.stream() as stream:
        quotes, level_ones = Inbox(), Inbox()
        stream.on_quote(quotes, "AAPL")
        stream.on_level_one(level_ones, "AAPL")
        first = await quotes.until(lambda quote: quote.last == 200.0)
        assert isinstance(first, Quote)
        assert (first.bid, first.ask) == (200.0, 200.01)
        desk.pin("AAPL", 201)
        await quotes.until(lambda quote: quote.last == 201.0)
        whole = await level_ones.until(lambda told: told.values["last_price"] == 201.0)
        assert isinstance(whole, LevelOne)
        assert whole.values["description"] == "Apple Inc"
        assert "description" not in whole.changed


async def test_books_and_candles_arrive(desk: Desk) -> None:
    async with desk.stream() as stream:
        books, candles = Inbox(), Inbox()
        stream.on_book(books, "F", exchange="nasdaq")
        stream.on_candle(candles, "AAPL", "F")
        book = await books.until(lambda told: told.bids)
        assert isinstance(book, Book)
        assert book.bids[0].price < book.asks[0].price
        assert isinstance(await candles.until(lambda told: told.symbol == "F"), Candlestick)


async def test_many_symbols_are_few_commands(desk: Desk) -> None:
    async with desk.stream() as stream:
        quotes = Inbox()
        stream.on_quote(quotes, *(f"NONE{number}" for number in range(300)), "AAPL")
        await quotes.until(lambda quote: quote.instrument == "AAPL")
        assert desk.sandbox.stats()["streamer_commands"] < 10


async def test_an_order_is_followed_to_its_fill(desk: Desk) -> None:
    async with desk.stream(accounts=[ACCOUNT]) as stream:
        orders, fills, positions, activities, breaks = (Inbox() for _ in range(5))
        stream.on_order(orders)
        stream.on_fill(fills)
        stream.on_position(positions)
        stream.on_activity(activities)
        stream.on_discrepancy(breaks)
        observed: list[object] = []
        stream.observe_with(observed.append)
        await stream.connect(until="live")
        assert stream.is_live
        placed = await desk.client.place_order(ACCOUNT, BUY)
        fill = await fills.until(lambda _: True)
        assert isinstance(fill, Fill)
        assert (fill.order_id, fill.quantity, fill.side) == (str(placed.order_id), 10, Side.BUY)
        order = await orders.until(lambda order: order.status.is_final)
        assert isinstance(order, Order)
        position = await positions.until(lambda position: position.quantity == 10)
        assert isinstance(position, Position)
        told = await activities.until(lambda told: told.kind == "OrderFillCompleted")
        assert isinstance(told, AccountActivity)
        assert told.order_id == str(placed.order_id)
        assert fill in observed
        assert stream.view.fills == {fill.id: fill}
        assert fills.items.empty()
        assert breaks.items.empty()


async def test_an_activity_brings_the_fill_without_a_snapshot(desk: Desk) -> None:
    seldom = ReconcileSettings(spacing_seconds=3600)
    async with desk.stream(accounts=[ACCOUNT], reconcile=seldom) as stream:
        fills = Inbox()
        stream.on_fill(fills, full=True)
        await stream.connect(until="live")
        await desk.client.place_order(ACCOUNT, BUY)
        change = await fills.until(lambda _: True)
        assert isinstance(change.value, Fill)
        assert not change.recovered


async def test_a_fill_while_the_stream_was_away_is_recovered_once(desk: Desk) -> None:
    desk.pin("AAPL", 200)
    async with desk.stream(accounts=[ACCOUNT]) as stream:
        fills, events = Inbox(), Inbox()
        stream.on_fill(fills, full=True)
        stream.on_event(events)
        await stream.connect(until="live")
        limit = replace(BUY, type=OrderType.LIMIT, price=Decimal(190))
        await desk.client.place_order(ACCOUNT, limit)
        desk.sandbox.fault("cut_stream", on="streamer")
        desk.pin("AAPL", 189)
        await events.until(kind(EventKind.LOST))
        change = await fills.until(lambda _: True)
        assert change.recovered
        assert change.value.price == Decimal("189.01")
        await events.until(kind(EventKind.LIVE))
        stream.require_live()
        assert fills.items.empty()


async def test_a_fill_at_the_moment_of_a_cut_is_recovered_once(desk: Desk) -> None:
    desk.pin("AAPL", 200)
    async with desk.stream(accounts=[ACCOUNT]) as stream:
        fills, orders = Inbox(), Inbox()
        stream.on_fill(fills)
        stream.on_order(orders)
        await stream.connect(until="live")
        placed = await desk.client.place_order(
            ACCOUNT, replace(BUY, type=OrderType.LIMIT, price=Decimal(190))
        )
        await orders.until(lambda order: order.id == str(placed.order_id))
        desk.sandbox.fault("fill_while_away", on="streamer")
        assert (await fills.until(lambda _: True)).order_id == str(placed.order_id)
        await orders.until(lambda order: order.status.is_final)
        await stream.connect(until="live")
        assert fills.items.empty()


async def test_duplicate_and_late_activities_change_nothing(desk: Desk) -> None:
    async with desk.stream(accounts=[ACCOUNT]) as stream:
        fills = Inbox()
        stream.on_fill(fills)
        await stream.connect(until="live")
        desk.sandbox.fault("duplicate_events", event="OrderFillCompleted")
        desk.sandbox.fault("reordered_events", event="OrderCreated")
        await desk.client.place_order(ACCOUNT, BUY)
        await fills.until(lambda _: True)
        await desk.client.place_order(ACCOUNT, replace(BUY, symbol="F"))
        assert (await fills.until(lambda _: True)).instrument == "F"


async def test_lost_activities_are_found_by_the_next_look(desk: Desk) -> None:
    looks = replace(LOOKS, every_seconds=0.1)
    async with desk.stream(accounts=[ACCOUNT], reconcile=looks) as stream:
        fills = Inbox()
        stream.on_fill(fills, full=True)
        await stream.connect(until="live")
        desk.sandbox.fault("missing_events", count=3)
        await desk.client.place_order(ACCOUNT, BUY)
        assert (await fills.until(lambda _: True)).recovered


async def test_another_session_of_the_user_is_not_fought(desk: Desk) -> None:
    async with desk.stream() as first:
        events, quotes = Inbox(), Inbox()
        first.on_event(events)
        first.on_quote(Inbox(), "AAPL")
        async with desk.stream(name="second") as second:
            second.on_quote(quotes, "AAPL")
            told = [
                await events.until(lambda event: event.kind in (EventKind.ALARM, EventKind.LOST))
                for _ in range(2)
            ]
            assert {event.kind for event in told} == {EventKind.ALARM, EventKind.LOST}
            assert "another session of this user took over" in told[-1].reason
            await quotes.until(lambda _: True)
            assert first.state is ConnectionState.RECONNECTING
            with pytest.raises(StreamNotLive):
                first.require_live("AAPL")
            stats = desk.sandbox.stats()
            assert (stats["streamer_logins"], stats["streamer_kicked"]) == (2, 1)


async def test_a_renewed_token_keeps_the_socket(desk: Desk) -> None:
    async with desk.stream() as stream:
        quotes = Inbox()
        stream.on_quote(quotes, "AAPL")
        await quotes.until(lambda _: True)
        desk.token = desk.sandbox.issue()  # the one of the login is dead
        desk.pin("AAPL", 300)
        await quotes.until(lambda quote: quote.last == 300.0)
        assert desk.sandbox.stats()["streamer_logins"] == 1


async def test_a_refused_login_asks_for_a_newer_token(desk: Desk) -> None:
    dead = Token("I0.dead@", expires_at=desk.token.expires_at, generation=7)
    asked: list[int | None] = []

    class Tokens:
        async def get(self, *, newer_than: int | None = None) -> Token:
            asked.append(newer_than)
            return dead if newer_than is None else desk.token

    stream = SchwabStream(Tokens(), desk.client, dial_limiter=DialLimiter(burst=1000))
    async with asyncio.timeout(20):
        await stream.connect()
    await stream.disconnect()
    assert asked == [None, 7]


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("cut_stream", {"how": "abort"}),
        ("cut_stream", {"how": "bye"}),
        ("cut_stream", {"how": "close"}),
        ("streamer_code", {"code": 30}),
        ("streamer_code", {"code": 20}),
    ],
)
async def test_after_every_end_the_subscriptions_are_back(
    desk: Desk, fault: str, options: dict[str, object]
) -> None:
    async with desk.stream() as stream:
        events, quotes = Inbox(), Inbox()
        stream.on_event(events)
        stream.on_quote(quotes, "AAPL")
        await quotes.until(lambda _: True)
        desk.sandbox.fault(fault, on="streamer", **options)
        await events.until(kind(EventKind.LOST))
        await events.until(lambda event: event.kind is EventKind.FIRST_DATA)
        desk.pin("AAPL", 300)
        await quotes.until(lambda quote: quote.last == 300.0)


async def test_a_failed_command_is_tried_again(desk: Desk) -> None:
    desk.sandbox.fault("call_fails", on="streamer", method="SUBS")
    async with desk.stream() as stream:
        quotes = Inbox()
        stream.on_quote(quotes, "AAPL")
        await quotes.until(lambda _: True)


async def test_a_stream_that_is_silent_while_it_beats_is_stale(desk: Desk) -> None:
    async with desk.stream(settings=SCHWAB_STREAM) as stream:
        events = Inbox()
        stream.on_event(events)
        topic = replace(topic_of("LEVELONE_EQUITIES", "AAPL", cadence=0.2), session=None)
        stream.managers[0].subscribe(topic)
        await events.until(lambda event: event.kind is EventKind.FIRST_DATA)
        desk.sandbox.fault("silent", on="streamer")
        await events.until(lambda event: event.kind is EventKind.STALE)
        assert stream.state is ConnectionState.CONNECTED
        assert not stream.is_live
        assert any("AAPL" in reason for reason in stream.reasons)
        desk.sandbox.clear_faults()
        await events.until(lambda event: event.kind is EventKind.LIVE)


async def test_a_monster_and_glued_frames_are_survived(desk: Desk) -> None:
    desk.pin("AAPL", 200)
    async with desk.stream() as stream:
        quotes = Inbox()
        stream.on_quote(quotes, "AAPL")
        await quotes.until(lambda _: True)
        desk.sandbox.fault("oversize_frame", on="streamer", bytes=1 << 20)
        desk.sandbox.fault("glued_frames", on="streamer")
        desk.pin("AAPL", 201)
        await quotes.until(lambda quote: quote.last == 201.0)


async def test_a_gateway_is_refused_while_the_account_or_its_symbol_is_blind(desk: Desk) -> None:
    def intent(account: str = ACCOUNT, symbol: str = "AAPL") -> OrderIntent:
        return OrderIntent(id="a", account=account, instrument=symbol)

    stream = desk.stream(accounts=[ACCOUNT], symbols=["AAPL"])
    quotes = Inbox()
    stream.on_quote(quotes)
    with pytest.raises(StreamNotLive):
        stream.require_live(intent())
    assert stream.reconciled_at is None
    async with stream:
        await stream.connect(until="live")
        await quotes.until(lambda quote: quote.instrument == "AAPL")
        for about in (None, "AAPL", intent(), intent(symbol="F")):
            stream.require_live(about)
        assert stream.reconciled_at is not None
        with pytest.raises(StreamNotLive, match="…001 is not followed"):
            stream.require_live(intent("20000001"))
        with pytest.raises(StreamNotLive, match="F is not subscribed"):
            stream.require_live("F")
        desk.sandbox.fault("streamer_code", code=12)
        lost = Inbox()
        stream.on_event(lost)
        await lost.until(kind(EventKind.LOST))
        with pytest.raises(StreamNotLive, match="another session"):
            stream.require_live(intent())


async def test_a_listener_that_is_too_slow_is_told_of(desk: Desk) -> None:
    settings = dataclasses.replace(SCHWAB_STREAM, mailbox=1, stop_timeout=0.1)
    async with desk.stream(accounts=[ACCOUNT], settings=settings) as stream:
        events, never = Inbox(), asyncio.Event()
        stream.on_event(events)

        async def hangs(_: object) -> None:
            await never.wait()

        stream.on_fill(hangs)
        await stream.connect(until="live")
        for symbol in ("AAPL", "F", "MSFT"):
            await desk.client.place_order(ACCOUNT, replace(BUY, symbol=symbol))
        told = await events.until(lambda event: event.kind is EventKind.OVERFLOW)
        assert "too slow" in told.reason


async def test_renewing_by_hand_logs_in_once_more(desk: Desk) -> None:
    async with desk.stream(symbols=["AAPL"]) as stream:
        events, quotes = Inbox(), Inbox()
        stream.on_event(events)
        stream.on_quote(quotes)
        await quotes.until(lambda _: True)
        stream.renew()
        await events.until(kind(EventKind.CONNECTED))
        await events.until(lambda event: event.kind is EventKind.FIRST_DATA)
        assert desk.sandbox.stats()["streamer_logins"] == 2


async def test_an_activity_without_an_account_or_for_an_order_that_is_gone_calls_for_a_look(
    desk: Desk,
) -> None:
    async with desk.stream(accounts=[ACCOUNT]) as stream:
        await stream.connect(until="live")
        refresh = stream._refresh
        assert refresh is not None
        before = stream.reconciled_at
        for activity in (
            AccountActivity(1, "", "OrderCreated"),
            AccountActivity(2, ACCOUNT, "OrderCreated"),
            AccountActivity(3, ACCOUNT, "OrderCreated", "", "404"),
            AccountActivity(4, "20000001", "OrderCreated", "", "404"),
            AccountActivity(5, ACCOUNT, "SUBSCRIBED"),
        ):
            refresh.hear(activity)
        balances = Inbox()
        stream.on_account(balances)
        await desk.client.place_order(ACCOUNT, BUY)
        await balances.until(lambda _: True)  # no activity tells it: a look did
        assert before is not None
        assert "OrderRefresh" in repr(refresh)


async def test_a_recorded_stream_plays_through_the_same_code(desk: Desk, tmp_path: Path) -> None:
    desk.pin("AAPL", 200)
    path = tmp_path / "schwab.rec"
    async with (
        Recorder(path) as recorder,
        desk.stream(symbols=["AAPL"], record=recorder.connection) as stream,
    ):
        quotes = Inbox()
        stream.on_quote(quotes)
        await quotes.until(lambda quote: quote.last == 200.0)
        desk.pin("AAPL", 201)
        await quotes.until(lambda quote: quote.last == 201.0)
    info = (await desk.client.user_preference()).streamer_info
    assert info
    recording = await asyncio.to_thread(Recording, path)
    playback = Playback(recording, lambda: WireFrames(SchwabWire(info[0])), speed=None)
    again = desk.stream(symbols=["AAPL"], links=lambda: playback.link("schwab"))
    told, events = Inbox(), Inbox()
    again.on_quote(told)
    again.on_event(events)
    async with again:
        assert (await told.until(lambda quote: quote.last == 201.0)).ask == 201.01
        assert (await events.until(kind(EventKind.LOST))).reason
    assert desk.sandbox.stats()["streamer_logins"] == 1


async def test_market_data_alone_follows_no_accounts(desk: Desk) -> None:
    stream = desk.stream()
    for listen in (stream.on_order, stream.on_fill, stream.on_position, stream.on_account,
                   stream.on_discrepancy, stream.on_activity, stream.observe_with, stream.feed):  # fmt: skip
        with pytest.raises(ConfigError, match="no account is followed"):
            listen(print)
    with pytest.raises(ConfigError):
        _ = stream.view
    assert stream.state is ConnectionState.DISCONNECTED
    assert "SchwabStream" in repr(stream)


@pytest.mark.parametrize("accounts", ["10000001", [""], [7]])
async def test_accounts_that_are_none_are_refused(desk: Desk, accounts: Any) -> None:
    with pytest.raises(ConfigError):
        desk.stream(accounts=accounts)


async def test_symbols_and_callbacks_that_are_none_are_refused(desk: Desk) -> None:
    stream = desk.stream()
    for symbols in ((), ("",), ("A,B",), (7,)):
        with pytest.raises(ConfigError):
            stream.on_quote(print, *symbols)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a callback is a function"):
        stream.on_candle("print", "AAPL")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        stream.on_book(print, "AAPL", exchange="moon")  # type: ignore[arg-type]
    stream.managers[0].subscribe(topic_of("LEVELONE_EQUITIES", "AAPL", fields="0,1"))
    with pytest.raises(ConfigError):  # the same quotes with other fields
        stream.on_quote(print, "MSFT", "AAPL")
    assert [one.topic.key for one in stream.managers[0].standings] == ["AAPL"]


async def test_a_plain_function_gets_quotes_and_screeners_stay_silent(desk: Desk) -> None:
    loop, got = asyncio.get_running_loop(), asyncio.Event()
    async with desk.stream() as stream:
        remove = stream.on_quote(lambda _: loop.call_soon_threadsafe(got.set), "AAPL")
        stream.on_screener(print, "NYSE_VOLUME_5")
        async with asyncio.timeout(20):
            await got.wait()
        remove()
        assert stream.health
        stream.on_screener(print, "OPTION_ALL_VOLUME_5", options=True)


# --- the link --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def told_by(preference: object) -> AsyncIterator[SchwabLink]:
    async def token() -> str:
        return "secret-token"

    async with loopback() as venue:
        venue.on("/trader/v1/userPreference", Reply(preference))
        async with SchwabClient(token, base_url=venue.url, limiter=unlimited()) as client:
            yield SchwabLink(client, StreamTokens(token))


@pytest.mark.parametrize(
    ("preference", "words"),
    [
        ({}, "no streamer is named there"),
        ({"streamerInfo": []}, "no streamer is named there"),
        ({"streamerInfo": [{"streamerSocketUrl": "ws://streamer.invalid/ws"}]}, "is not wss://"),
        ({"streamerInfo": [{"streamerSocketUrl": "https://streamer.invalid"}]}, "is not wss://"),
        ({"streamerInfo": [{"streamerSocketUrl": "wss:///ws"}]}, "is not wss://"),
    ],
)
async def test_a_token_goes_to_no_strange_address(preference: object, words: str) -> None:
    async with told_by(preference) as link:
        with pytest.raises(PermanentError, match=words):
            await link.open(lambda *_: None)
        await link.close()


async def test_what_the_streamer_says_of_itself_is_logged_and_reaches_no_callback(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[object] = []
    link = SchwabLink(desk.client, StreamTokens(desk))
    await link.open(lambda *told: got.append(told))
    socket = desk.sandbox._streamer._open[0].socket
    await socket.send_str(
        '{"notify": [{"service": "ADMIN", "content": {"code": 7, "msg": "soon"}}]}'
    )
    await socket.send_str("no JSON")
    line = '{"service": "LEVELONE_EQUITIES", "content": [{"key": "AAPL", "1": 1}]}'
    await socket.send_str(f'{{"data": [{line}]}}')
    async with asyncio.timeout(20):
        while not got:
            await link.probe()
            await link.subscribe(topic_of("LEVELONE_EQUITIES", "F"))
    assert {told[0] for told in got} == {"LEVELONE_EQUITIES"}  # type: ignore[index]
    assert [record.message for record in caplog.records if "Streamer" in record.message] == [
        "Streamer notice",
        "Streamer unreadable",
    ]
    assert "SchwabLink" in repr(link)
    await link.close()


async def test_a_link_is_opened_once_and_first(desk: Desk) -> None:
    link = SchwabLink(desk.client, StreamTokens(desk))
    with pytest.raises(Closed):
        await link.closed()
    await link.close()
    await link.open(lambda *_: None)
    with pytest.raises(Closed):
        await link.open(lambda *_: None)
    await link.probe()  # nothing to ask yet
    await link.close()
    assert (await link.closed()).reason
