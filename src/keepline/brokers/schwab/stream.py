"""Charles Schwab's stream, kept: quotes, candles, books and what happens to orders, over one connection per user.

Invariants: what is subscribed outlives every connection; orders, fills and positions are what REST says of them, asked
for as soon as the streamer tells that something happened, and compared after every interruption; another session of the
user is not fought: it is said, and the next attempt waits minutes. A newer token needs no new connection.
"""

import inspect
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Literal

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
from keepline.brokers.stream import BrokerStream
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError
from keepline.resilience.bearer import TokenSource
from keepline.stream.delivery import Callback
from keepline.stream.manager import StreamManager, Until
from keepline.stream.port import Link
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.recorder import RecordedConnection
from keepline.stream.redial import DialLimiter
from keepline.stream.settings import StreamSettings
from keepline.stream.snapshot import SnapshotSource
from keepline.stream.tokens import StreamTokens
from keepline.telemetry import shortened

__all__ = ["SCHWAB_STREAM", "SchwabStream"]

SCHWAB_STREAM = StreamSettings(
    attempt_timeout=30.0,  # userPreference is asked first
    request_timeout=60.0,  # commands leave one after the other
    two_connections=False,
    parallel=MOST_KEYS,  # the wire makes few commands of what waits together
)
"""What fits Schwab's streamer: one connection per user, one command at a time."""

Remove = Callable[[], None]
Exchange = Literal["nasdaq", "nyse", "options"]


class SchwabStream(BrokerStream):
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
        super().__init__(
            name=name, accounts=_texts(accounts, "accounts"), settings=settings, clock=clock
        )
        self.symbols = _texts(symbols, "symbols")
        self._refresh: OrderRefresh | None = None
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
        self._managers = (self._manager,)
        if self.accounts:
            events = self._follow(
                snapshots or SchwabSnapshots(client),
                reconcile,
                name=name,
                note_snapshot=None if record is None else self._note_snapshot,
            )
            self._refresh = OrderRefresh(client, events, self.accounts)
            self._manager.add_reconciler(events.reconciliation)
            self._manager.subscribe(activity_topic())

    # --- the connection ---

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
        if self._refresh is not None:
            await self._refresh.stop()
        await self._stop_telling()

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
        return self._listen(self._manager, topics, without_key(callback))

    def on_book(self, callback: Callback, *symbols: str, exchange: Exchange = "nasdaq") -> Remove:
        """Call back with each symbol's whole `Book`, whenever it changes."""
        topics = [topic_of(service_of_book(exchange), one) for one in self._some(symbols)]
        return self._listen(self._manager, topics, without_key(callback))

    def on_screener(self, callback: Callback, *keys: str, options: bool = False) -> Remove:
        """Call back with whole lists of what moves; keys are `PREFIX_SORTFIELD_FREQUENCY`: `NASDAQ_VOLUME_5`.

        Schwab takes keys that make no sense without a word and sends nothing.
        """
        service = SCREENERS[1] if options else SCREENERS[0]
        topics = [topic_of(service, one) for one in _texts(keys, "keys", needed=True)]
        return self._listen(self._manager, topics, without_key(callback))

    # --- accounts ---

    def on_activity(self, callback: Callback) -> Remove:
        """Call back with the raw `AccountActivity`, of all accounts of the user; its data is documented loosely."""
        self._followed()
        return self._listen(self._manager, [activity_topic()], without_key(callback))

    # --- how ---

    def _level_one(
        self, callback: Callback, symbols: Sequence[str], cadence: float | None
    ) -> Remove:
        topics = [
            topic_of(service_of_quote(one), one, cadence=cadence) for one in self._some(symbols)
        ]
        return self._listen(self._manager, topics, callback)

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

    def _require_account(self) -> None:
        self._manager.require_live(ACCOUNT_ACTIVITY)

    def _quotes_of(self, instrument: str) -> tuple[StreamManager | None, str]:
        return self._manager, service_of_quote(instrument)

    def _called(self, account: str) -> str:
        return shortened(account)

    def _note_snapshot(self, told: str) -> None:
        if self._tap is not None:
            self._tap.snapshot(told, self._clock.boottime())

    def _heard(self, activity: AccountActivity) -> None:
        if self._refresh is not None:
            self._refresh.hear(activity)


def _texts(values: Iterable[str], name: str, *, needed: bool = False) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ConfigError(f"is a list, not the text {values!r}", key=name)
    found = tuple(text(value, name) for value in values)
    if needed and not found:
        raise ConfigError("at least one is needed", key=name)
    return found


def _venue_time(channel: str, arguments: Sequence[Any]) -> float | None:
    """When Schwab says that a message happened, in epoch seconds."""
    message = arguments[1]
    at = getattr(message, "at", None)
    return None if at is None or channel == ACCOUNT_ACTIVITY else at.timestamp()
