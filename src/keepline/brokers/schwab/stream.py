"""Charles Schwab's stream, kept: quotes, candles, books and what happens to orders, over one connection per user.

Invariants: what is subscribed outlives every connection; orders, fills and positions are what REST says of them, asked
for as soon as the streamer tells that something happened, and compared after every interruption; another session of the
user is not fought: it is said, and the next attempt waits minutes. A newer token needs no new connection.
"""

import inspect
import ssl
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial, wraps
from typing import Any, Literal

from keepline.brokers.account_events import AccountEvents, Observe
from keepline.brokers.base import OrderIntent
from keepline.brokers.checks import text
from keepline.brokers.listening import without_key
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.order_refresh import OrderRefresh
from keepline.brokers.schwab.snapshot import SchwabSnapshots
from keepline.brokers.schwab.stream_link import SchwabLink
from keepline.brokers.schwab.streamer_fields import ACCOUNT_ACTIVITY, SCREENERS
from keepline.brokers.schwab.streamer_messages import AccountActivity, LevelOne
from keepline.brokers.schwab.streamer_state import SeenActivity
from keepline.brokers.schwab.streamer_topics import (
    activity_topic,
    service_of_book,
    service_of_chart,
    service_of_quote,
    topic_of,
)
from keepline.brokers.schwab.streamer_wire import MOST_KEYS
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError, StreamNotLive
from keepline.model import Account, Fill, Order, Position
from keepline.resilience.bearer import TokenSource
from keepline.stream.delivery import Callback, Overflow
from keepline.stream.events import ConnectionState, EventKind, StreamEvent
from keepline.stream.health import HealthStatus
from keepline.stream.manager import StreamManager, Until
from keepline.stream.played_snapshots import PlayedSnapshots, RecordedSnapshots
from keepline.stream.port import Link, Topic, key_of_first_text
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.recorder import RecordedConnection
from keepline.stream.redial import DialLimiter
from keepline.stream.routing import Router
from keepline.stream.settings import StreamSettings
from keepline.stream.snapshot import Discrepancy, SnapshotSource
from keepline.stream.tokens import StreamTokens
from keepline.stream.view import AccountView

__all__ = ["SCHWAB_STREAM", "SchwabStream"]

SCHWAB_STREAM = StreamSettings(
    attempt_timeout=30.0,  # userPreference is asked first
    request_timeout=60.0,  # commands leave one after the other
    two_connections=False,
    parallel=MOST_KEYS,  # the wire makes few commands of what waits together
)
"""What fits Schwab's streamer: one connection per user, one command at a time."""

_EVENTS = "event"

Remove = Callable[[], None]
Exchange = Literal["nasdaq", "nyse", "options"]


class SchwabStream:
    """One user's stream.

    Args:
        tokens: whatever gives tokens: the same as the client's.
        client: asked where the streamer is, for orders and for snapshots; stays the caller's to close.
        accounts: numbers of the accounts to follow; none for market data alone.
        symbols: of which `on_quote` and its like tell unless they are given others.
        snapshots: what takes snapshots of the accounts; over the client by default.
        name: how logs, metrics and events call it.
        settings: what is done when.
        reconcile: how often and how carefully snapshots are taken.
        ssl_context: whom to trust; None is the system's store.
        links: makes the connections, for replays: `Playback.link`. By default they lead to Schwab's streamer.
        dial_limiter: the budget of dials; the process's by default.
        clock: time and chance.
        record: records every connection: `Recorder.connection`; None records nothing.

    Raises:
        ConfigError: an argument makes no sense.

    Example:
        ```python
        async with SchwabStream(manager, client, accounts=["12345678"]) as stream:
            stream.on_quote(print, "AAPL", "/ESZ26")
            stream.on_fill(print)
            gateway = OrderGateway(SchwabTrading(client), "data/orders", guard=stream.require_live)
        ```
    """

    def __init__(
        self,
        tokens: TokenSource,
        client: SchwabClient,
        *,
        accounts: Iterable[str] = (),
        symbols: Iterable[str] = (),
        snapshots: SnapshotSource | None = None,
        name: str = "schwab",
        settings: StreamSettings = SCHWAB_STREAM,
        reconcile: ReconcileSettings | None = None,
        ssl_context: ssl.SSLContext | None = None,
        links: Callable[[], Link] | None = None,
        dial_limiter: DialLimiter | None = None,
        clock: Clock = SYSTEM_CLOCK,
        record: Callable[[str], RecordedConnection] | None = None,
    ) -> None:
        self.name = name
        self.accounts, self.symbols = _texts(accounts, "accounts"), _texts(symbols, "symbols")
        self._clock = clock
        self._settings = settings
        self._events: AccountEvents | None = None
        self._refresh: OrderRefresh | None = None
        self._listeners = Router(
            key_of=key_of_first_text,
            mailbox=settings.mailbox,
            on_overflow=self._overflowed,
            clock=clock,
        )
        source, seen = StreamTokens(tokens), SeenActivity()
        self._tap: RecordedConnection | None = None

        def link() -> Link:
            self._tap = None if record is None else record(name)
            return SchwabLink(
                client,
                source,
                seen=seen,
                heard=self._heard,
                ssl_context=ssl_context,
                clock=clock,
                record=self._tap,
                played=None if links is None else links(),
            )

        self._manager = StreamManager(
            link,
            name=name,
            settings=settings,
            tokens=source,
            venue_time=_venue_time,
            dial_limiter=dial_limiter,
            clock=clock,
        )
        self._manager.on_event(self._told, inline=True)
        if self.accounts:
            taken = snapshots or SchwabSnapshots(client)
            if record is not None:
                taken = RecordedSnapshots(taken, self._note_snapshot)
            self._follow(client, taken, reconcile)

    def _follow(
        self, client: SchwabClient, source: SnapshotSource, reconcile: ReconcileSettings | None
    ) -> None:
        self._events = AccountEvents(
            source,
            self.accounts,
            name=self.name,
            settings=reconcile,
            mailbox=self._settings.mailbox,
            on_overflow=self._overflowed,
            clock=self._clock,
        )
        if isinstance(source, PlayedSnapshots):
            suspect = self._events.reconciliation.suspect
            source.on_offer(partial(suspect, reason="recorded"))
        self._refresh = OrderRefresh(client, self._events, self.accounts)
        self._manager.add_reconciler(self._events.reconciliation)
        self._manager.subscribe(activity_topic())

    # --- the connection ---

    async def __aenter__(self) -> "SchwabStream":
        try:
            await self.connect()
        except BaseException:
            await self.disconnect()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def connect(self, *, until: Until = "connected") -> None:
        """Connect and stay connected; returns when the stream is up.

        Args:
            until: `connected`, or `live`: subscribed, reconciled and fresh.

        Raises:
            APIError: the stream has FAILED.
        """
        if self._events is not None and self._refresh is not None:
            await self._events.start()
            await self._refresh.start()
        await self._manager.connect(until=until)

    async def disconnect(self) -> None:
        """Log out; what is subscribed stays so for the next `connect`."""
        await self._manager.disconnect()
        seconds = self._settings.stop_timeout
        if self._events is not None and self._refresh is not None:
            await self._refresh.stop()
            await self._events.stop(drain_seconds=seconds)
        await self._listeners.close(seconds)

    def renew(self, reason: str = "a newer token") -> None:
        """Log in once more with a newly asked token; needed by nobody, since the token counts at the login alone."""
        self._manager.renew(reason)

    # --- market data ---

    def on_quote(self, callback: Callback, *symbols: str, cadence: float | None = None) -> Remove:
        """Call back with each `Quote`: of shares, options, futures, currencies.

        Args:
            callback: a coroutine function runs on the loop, a plain function in a thread of its own.
            symbols: as Schwab writes them: `AAPL`, `AAPL  251219C00200000`, `/ESZ26`, `EUR/USD`; those of the stream
                without any.
            cadence: seconds of silence in a session after which a quote is stale; 120 by default.

        Returns:
            What ends it.

        Raises:
            ConfigError: a symbol is none.
        """
        return self._level_one(self._quoted(without_key(callback)), symbols, cadence)

    def on_level_one(
        self, callback: Callback, *symbols: str, cadence: float | None = None
    ) -> Remove:
        """The same with everything that Schwab tells: a `LevelOne` with its fields by name."""
        return self._level_one(without_key(callback), symbols, cadence)

    def on_candle(self, callback: Callback, *symbols: str) -> Remove:
        """Call back with a `Candlestick` of each symbol (shares, futures) when its minute is over."""
        topics = [topic_of(service_of_chart(one), one) for one in self._some(symbols)]
        return self._listen(topics, without_key(callback))

    def on_book(self, callback: Callback, *symbols: str, exchange: Exchange = "nasdaq") -> Remove:
        """Call back with each symbol's whole `Book`, whenever it changes."""
        topics = [topic_of(service_of_book(exchange), one) for one in self._some(symbols)]
        return self._listen(topics, without_key(callback))

    def on_screener(self, callback: Callback, *keys: str, options: bool = False) -> Remove:
        """Call back with whole lists of what moves; keys are `PREFIX_SORTFIELD_FREQUENCY`: `NASDAQ_VOLUME_5`.

        Schwab takes keys that make no sense without a word and sends nothing.
        """
        service = SCREENERS[1] if options else SCREENERS[0]
        topics = [topic_of(service, one) for one in _texts(keys, "keys", needed=True)]
        return self._listen(topics, without_key(callback))

    # --- accounts ---

    def on_order(self, callback: Callback, *, full: bool = False) -> Remove:
        """Call back with each change of an order, whether the stream or a snapshot told it.

        Args:
            callback: a coroutine function runs on the loop, a plain function in a thread of its own.
            full: give it the `Change` (how it was before, whether a snapshot told it) instead of the value.

        Raises:
            ConfigError: no accounts are followed.
        """
        return self._followed().listen(Order, callback, full=full)

    def on_fill(self, callback: Callback, *, full: bool = False) -> Remove:
        """Call back with each fill, once."""
        return self._followed().listen(Fill, callback, full=full)

    def on_position(self, callback: Callback, *, full: bool = False) -> Remove:
        """Call back with each change of a position; a flat one has the quantity 0."""
        return self._followed().listen(Position, callback, full=full)

    def on_account(self, callback: Callback, *, full: bool = False) -> Remove:
        """Call back with each change of a balance."""
        return self._followed().listen(Account, callback, full=full)

    def on_discrepancy(self, callback: Callback) -> Remove:
        """Call back with everything in which a snapshot and the stream disagreed."""
        return self._followed().listen(Discrepancy, callback)

    def on_activity(self, callback: Callback) -> Remove:
        """Call back with the raw `AccountActivity`, of all accounts of the user; its data is documented loosely."""
        self._followed()
        return self._listen([activity_topic()], without_key(callback))

    def observe_with(self, observe: Observe) -> Remove:
        """Hand each order and fill to an order gateway (`OrderGateway.observe`) before any callback."""
        return self._followed().observe_with(observe)

    @property
    def view(self) -> AccountView:
        """What is known of the accounts; the present only while the stream is live.

        Raises:
            ConfigError: no accounts are followed.
        """
        return self._followed().view

    # --- what may be believed ---

    def on_event(self, callback: Callback) -> Remove:
        """Call back with each `StreamEvent`: connected, first data, stale, reconciling, live, lost."""
        added = self._listeners.add(Topic(_EVENTS), callback, inline=False, conflate_by=None)

        def end() -> None:
            self._listeners.remove(added)

        return end

    @property
    def state(self) -> ConnectionState:
        """Whether there is a connection, which says nothing about its data."""
        return self._manager.state

    @property
    def health(self) -> HealthStatus:
        """How far the stream can be relied on; `reasons` says why."""
        return self._manager.health

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong, in words; empty when nothing is."""
        return self._manager.reasons

    @property
    def is_live(self) -> bool:
        """Whether everything that is wanted shows the present."""
        return self._manager.is_live

    def require_live(self, about: OrderIntent | str | None = None) -> None:
        """Refuse to go on while blind; as the `guard` of an `OrderGateway` it refuses new risk.

        Args:
            about: an intent (its account must be followed and live, and its symbol fresh when quotes of it are wanted),
                or a symbol whose quotes must be fresh. Without either everything must be live.

        Raises:
            StreamNotLive: what is shown is not the present, with the reasons.
        """
        if about is None:
            self._manager.require_live()
        elif isinstance(about, str):
            self._manager.require_live(service_of_quote(about), about)
        elif about.account not in self.accounts:
            reason = f"account …{about.account[-3:]} is not followed"
            raise StreamNotLive(
                f"stream {self.name} is blind: {reason}", stream=self.name, reasons=[reason]
            )
        else:
            self._manager.require_live(ACCOUNT_ACTIVITY)
            service = service_of_quote(about.instrument)
            if any((one.topic.channel, one.topic.key) == (service, about.instrument)
                   for one in self._manager.standings):  # fmt: skip
                self._manager.require_live(service, about.instrument)

    @property
    def reconciled_at(self) -> datetime | None:
        """When the accounts were last found right, None for never or without accounts."""
        return None if self._events is None else self._events.reconciliation.reconciled_at

    @property
    def managers(self) -> tuple[StreamManager, ...]:
        """What keeps the connection, for status and for calls of its own; here there is one."""
        return (self._manager,)

    # --- how ---

    def _level_one(
        self, callback: Callback, symbols: Sequence[str], cadence: float | None
    ) -> Remove:
        topics = [
            topic_of(service_of_quote(one), one, cadence=cadence) for one in self._some(symbols)
        ]
        return self._listen(topics, callback)

    def _quoted(self, deliver: Callback) -> Callback:
        if inspect.iscoroutinefunction(deliver):

            async def later(key: str, message: LevelOne) -> None:
                await deliver(key, message.quote(self._clock.wall()))

            return wraps(deliver)(later)

        def at_once(key: str, message: LevelOne) -> None:
            deliver(key, message.quote(self._clock.wall()))

        return wraps(deliver)(at_once)

    def _some(self, symbols: Sequence[str]) -> Sequence[str]:
        return _texts(symbols or self.symbols, "symbols", needed=True)

    def _listen(self, topics: Sequence[Topic], callback: Callback) -> Remove:
        removes: list[Remove] = []
        try:
            removes.extend(self._manager.subscribe(topic, callback) for topic in topics)
        except ConfigError:
            _all(removes)
            raise
        return partial(_all, removes)

    def _followed(self) -> AccountEvents:
        if self._events is None:
            raise ConfigError("no accounts are followed: name some", key="accounts")
        return self._events

    def _note_snapshot(self, told: str) -> None:
        if self._tap is not None:
            self._tap.snapshot(told, self._clock.boottime())

    def _heard(self, activity: AccountActivity) -> None:
        if self._refresh is not None:
            self._refresh.hear(activity)

    def _told(self, event: StreamEvent) -> None:
        self._listeners.push(self._listeners.route(_EVENTS, ""), (event,), "")

    def _overflowed(self, overflow: Overflow) -> None:
        if overflow.over or overflow.channel == _EVENTS:
            return
        words = f"{overflow.callback} is too slow: events of {overflow.channel} are lost to it"
        at = self._clock.wall()
        self._told(StreamEvent(EventKind.OVERFLOW, self.name, at, overflow.channel, "", words))

    def __repr__(self) -> str:
        return f"<SchwabStream {self._manager!r}>"


def _texts(values: Iterable[str], name: str, *, needed: bool = False) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ConfigError(f"is a list, not the text {values!r}", key=name)
    found = tuple(text(value, name) for value in values)
    if needed and not found:
        raise ConfigError("at least one is needed", key=name)
    return found


def _all(removes: Iterable[Remove]) -> None:
    for remove in removes:
        remove()


def _venue_time(channel: str, arguments: Sequence[Any]) -> float | None:
    """When Schwab says that a message happened, in epoch seconds."""
    message = arguments[1]
    at = getattr(message, "at", None)
    return None if at is None or channel == ACCOUNT_ACTIVITY else at.timestamp()
