"""ProjectX's streams as one thing: orders, fills, positions, balances, quotes, trades and books that show the present.

Invariants: two connections, one for accounts and one for the market, each kept on its own; what an account's connection
missed is asked for by REST before it counts as live; `require_live` refuses new orders while the stream is blind; a
newer token makes newer connections first and drops the old ones after.

Source: gateway.docs.projectx.com (realtime data), read in 2025-09; its sample connects without negotiation and with
the token in the address.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, cast, runtime_checkable

from keepline.brokers.account_events import AccountEvents, Observe
from keepline.brokers.base import OrderIntent
from keepline.brokers.listening import without_key
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.quotes import QuoteMerger
from keepline.brokers.projectx.snapshot import ProjectXSnapshots
from keepline.brokers.projectx.stream_links import Endpoint, ProjectXLinks, Tap
from keepline.brokers.projectx.stream_messages import DEPTH, MARKET_TRADE, QUOTE
from keepline.brokers.projectx.stream_reading import Doubt, Heard
from keepline.brokers.projectx.stream_topics import (
    account_ids,
    contract_ids,
    market_topic,
    user_topics,
    venue_time,
)
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError, StreamNotLive
from keepline.model import Account, Fill, Order, Position, Quote
from keepline.stream.calendar import CME_FUTURES, SessionCalendar
from keepline.stream.delivery import Callback, Overflow
from keepline.stream.events import ConnectionState, EventKind, StreamEvent
from keepline.stream.health import HealthStatus
from keepline.stream.manager import StreamManager, Until
from keepline.stream.played_snapshots import PlayedSnapshots, RecordedSnapshots
from keepline.stream.port import Link, Topic, key_of_first_text
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.redial import DialLimiter
from keepline.stream.routing import Router
from keepline.stream.settings import StreamSettings
from keepline.stream.snapshot import Discrepancy, SnapshotSource
from keepline.stream.tokens import StreamTokenSource
from keepline.stream.view import AccountView

__all__ = ["ProjectXStream"]

_EVENTS = "event"
_WORSE_FIRST = (
    ConnectionState.FAILED,
    ConnectionState.DISCONNECTED,
    ConnectionState.RECONNECTING,
    ConnectionState.CONNECTING,
    ConnectionState.CONNECTED,
)
_WORST_FIRST = (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.HEALTHY)
# at the end, so that nobody takes the old for the present, and at the beginning, for what still came after the end
_GAPS = (EventKind.LOST, EventKind.CONNECTED)


@runtime_checkable
class _Announcing(Protocol):
    """A source of tokens that tells of each new one; `keepline.TokenManager` is one."""

    def subscribe(self, callback: Callable[[Any], Any]) -> Callable[[], None]: ...


class ProjectXStream:
    """Accounts and markets of one ProjectX user, streamed.

    Use it as an asynchronous context manager, or call `connect` and `disconnect`. It serves one life: after
    `disconnect` make a new one.

    Args:
        tokens: what gives the newest token: a `TokenManager`, anything with `await get_token()`, a callable.
        client: asked for snapshots of the accounts; stays the caller's to close. Needed with accounts.
        accounts: ids of the accounts that are followed; none for market data alone.
        contracts: of which `on_quote`, `on_trade` and `on_depth` tell unless they are given others.
        snapshots: what takes snapshots of the accounts; over the client by default, `Playback.snapshots` for replays.
        base_url: the firm's real-time gateway.
        name: how logs, metrics and events call the streams: `NAME.user` and `NAME.market`.
        settings: how connections are kept.
        reconcile: how often and how carefully accounts are compared.
        quote_cadence: seconds within which a contract's quote is expected to change; None when it may be silent.
        session: when quotes are expected at all; None means always.
        levels: how many prices of each side a book is told with.
        renew_after: seconds after which connections are renewed though no newer token was announced; tokens live 24 h.
        record: records every connection, and the snapshots beside them: `Recorder.connection`; None records nothing.
        links: makes the connections to `user` and `market`; for replays. By default they are SignalR connections.
        dial_limiter: the budget of dials; the process's by default.
        clock: for tests.
        options: more of `SignalRConnection`; by default `token_in="query"` and `skip_negotiation=True`.

    Raises:
        ConfigError: neither accounts nor contracts, accounts without a client, an id or a number that makes no sense.

    Example:
        >>> async with ProjectXStream(tokens, client, accounts=["1001"]) as stream:
        ...     stream.on_fill(print)
        ...     gateway = OrderGateway(ProjectXTrading(client), "data/orders", guard=stream.require_live)
    """

    def __init__(
        self,
        tokens: StreamTokenSource,
        client: ProjectXClient | None = None,
        *,
        accounts: Iterable[str | int] = (),
        contracts: Iterable[str] = (),
        snapshots: SnapshotSource | None = None,
        base_url: str = "https://rtc.topstepx.com",
        name: str = "projectx",
        settings: StreamSettings | None = None,
        reconcile: ReconcileSettings | None = None,
        quote_cadence: float | None = 120.0,
        session: SessionCalendar | None = CME_FUTURES,
        levels: int = 10,
        renew_after: float = 72_000.0,
        record: Callable[[str], Tap] | None = None,
        links: Callable[[Endpoint], Link] | None = None,
        dial_limiter: DialLimiter | None = None,
        clock: Clock = SYSTEM_CLOCK,
        **options: Any,
    ) -> None:
        self.name = name
        self.accounts = account_ids(accounts)
        self.contracts = contract_ids(contracts)
        if not self.accounts and not self.contracts:
            raise ConfigError("give accounts, contracts or both", key="accounts")
        if not 0 < renew_after < float("inf"):
            raise ConfigError(
                f"a number of seconds above 0, not {renew_after!r}", key="renew_after"
            )
        self._announcing = tokens
        self._quotes = QuoteMerger()
        self._links = ProjectXLinks(
            tokens,
            base_url,
            quotes=self._quotes,
            levels=levels,
            heard=self._heard,
            doubt=self._doubt,
            connect=links,
            record=record,
            clock=clock,
            **options,
        )
        self._cadence, self._session = quote_cadence, session
        self._renew_after = renew_after
        self._clock = clock
        self._settings = settings or StreamSettings()
        self._listeners = Router(
            key_of=key_of_first_text,
            mailbox=self._settings.mailbox,
            on_overflow=self._overflowed,
            clock=clock,
        )
        self._events: AccountEvents | None = None
        self._user: StreamManager | None = None
        self._market: StreamManager | None = None
        if self.accounts:
            recorded = record is not None
            self._events = self._account_events(client, snapshots, reconcile, recorded=recorded)
            self._user = self._manager("user", dial_limiter)
            for topic in user_topics(self.accounts):
                self._user.subscribe(topic)
            self._user.add_reconciler(self._events.reconciliation)
        if self.contracts:
            self._market = self._manager("market", dial_limiter)
        self._managers = tuple(m for m in (self._user, self._market) if m is not None)
        self._renewing: asyncio.Task[None] | None = None
        self._renewed_at = 0.0
        self._ends: list[Callable[[], None]] = []

    def _account_events(
        self,
        client: ProjectXClient | None,
        snapshots: SnapshotSource | None,
        reconcile: ReconcileSettings | None,
        *,
        recorded: bool,
    ) -> AccountEvents:
        if snapshots is None and client is None:
            raise ConfigError(
                "accounts need one, to be asked for what a connection missed", key="client"
            )
        source = snapshots or ProjectXSnapshots(cast(ProjectXClient, client))
        events = AccountEvents(
            RecordedSnapshots(source, self._links.note_snapshot) if recorded else source,
            self.accounts,
            name=f"{self.name}.user",
            settings=reconcile,
            mailbox=self._settings.mailbox,
            on_overflow=self._overflowed,
            clock=self._clock,
        )
        if isinstance(snapshots, PlayedSnapshots):
            snapshots.on_offer(partial(events.reconciliation.suspect, reason="recorded"))
        return events

    # --- life ---

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.disconnect()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.disconnect()

    async def connect(self, *, until: Until = "connected") -> None:
        """Connect and stay connected; returns when everything is up.

        Args:
            until: `connected`, or `live`: subscribed, reconciled and fresh.

        Raises:
            APIError: a stream has failed for good.
            Closed: `disconnect` came first.
        """
        if self._renewing is None:
            if isinstance(self._announcing, _Announcing):
                self._ends.append(self._announcing.subscribe(self._newer_token))
            if self._events is not None:
                await self._events.start()
            self._renewing = asyncio.create_task(self._renew_by_age(), name=f"{self.name} renewal")
        await asyncio.gather(*(manager.connect(until=until) for manager in self._managers))

    async def disconnect(self) -> None:
        """Close the connections and let listeners end."""
        for end in self._ends:
            end()
        self._ends.clear()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await asyncio.gather(*(manager.disconnect() for manager in self._managers))
        seconds = self._settings.stop_timeout
        if self._events is not None:
            await self._events.stop(drain_seconds=seconds)
        await self._listeners.close(seconds)

    def renew(self, reason: str = "a newer token") -> None:
        """Take newer connections with a newly asked token, without a gap."""
        self._renewed_at = self._clock.boottime()
        for manager in self._managers:
            manager.renew(reason)

    # --- what may be believed ---

    @property
    def is_live(self) -> bool:
        """Whether everything that is shown is the present."""
        return all(manager.is_live for manager in self._managers)

    @property
    def state(self) -> ConnectionState:
        """The worse of the two connections."""
        return min((manager.state for manager in self._managers), key=_WORSE_FIRST.index)

    @property
    def health(self) -> HealthStatus:
        """The worse of the two streams; `reasons` says why."""
        return min((manager.health for manager in self._managers), key=_WORST_FIRST.index)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong, in words; empty when nothing is."""
        return tuple(
            f"{manager.name}: {reason}" for manager in self._managers for reason in manager.reasons
        )

    def require_live(self, intent: OrderIntent | None = None) -> None:
        """Refuse to go on while blind; as the `guard` of an `OrderGateway` it refuses new risk.

        Args:
            intent: what is to be done: its account must be followed and live, and its contract fresh when quotes of it
                are wanted. Without one everything must be live.

        Raises:
            StreamNotLive: what is shown is not the present, with the reasons.
        """
        if intent is None:
            for manager in self._managers:
                manager.require_live()
            return
        if self._user is None or intent.account not in self.accounts:
            reason = f"account {intent.account} is not followed"
            raise StreamNotLive(
                f"stream {self.name} is blind: {reason}", stream=self.name, reasons=[reason]
            )
        self._user.require_live()
        if self._market is not None and self._wants_quotes(intent.instrument):
            self._market.require_live(QUOTE, intent.instrument)

    @property
    def view(self) -> AccountView:
        """Orders, fills, positions and balances as they are known; the present only while `is_live`.

        Raises:
            ConfigError: no account is followed.
        """
        return self._accounts_followed().view

    @property
    def reconciled_at(self) -> datetime | None:
        """When the accounts were last found right, None for never or without accounts."""
        return None if self._events is None else self._events.reconciliation.reconciled_at

    def quote(self, contract: str) -> Quote | None:
        """The quote of a contract as far as it was told on this connection, None before the first."""
        return self._quotes.get(contract)

    @property
    def managers(self) -> tuple[StreamManager, ...]:
        """The streams themselves, for status and for calls of their own."""
        return self._managers

    # --- who is told ---

    def on_order(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each state of an order, once; returns what ends it.

        Args:
            callback: a coroutine function runs on the loop, a plain function in a thread of its own.
            full: give it the `Change`: the value, how it was before, and whether a snapshot told it (`recovered`).
        """
        return self._accounts_followed().listen(Order, callback, full=full)

    def on_fill(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each fill, once, also those that were missed. As `on_order` otherwise."""
        return self._accounts_followed().listen(Fill, callback, full=full)

    def on_position(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each position that changed, flat ones too. As `on_order` otherwise."""
        return self._accounts_followed().listen(Position, callback, full=full)

    def on_account(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each balance that changed. As `on_order` otherwise."""
        return self._accounts_followed().listen(Account, callback, full=full)

    def on_discrepancy(self, callback: Callback) -> Callable[[], None]:
        """Call back with each `Discrepancy` between what was known and what the broker shows; returns what ends it."""
        return self._accounts_followed().listen(Discrepancy, callback)

    def observe_with(self, observe: Observe) -> Callable[[], None]:
        """Hand each order and fill to `OrderGateway.observe`, before any callback; returns what ends it."""
        return self._accounts_followed().observe_with(observe)

    def on_quote(self, callback: Callback, *contracts: str) -> Callable[[], None]:
        """Call back with the newest whole quote; what a slow callback has no time for is passed over.

        Args:
            callback: as in `on_order`.
            *contracts: of which; those of the stream without any.

        Returns:
            What ends it.
        """
        return self._want(QUOTE, callback, contracts, self._cadence)

    def on_trade(self, callback: Callback, *contracts: str) -> Callable[[], None]:
        """Call back with each trade of the market. As `on_quote` otherwise, but none is passed over."""
        return self._want(MARKET_TRADE, callback, contracts, None)

    def on_depth(self, callback: Callback, *contracts: str) -> Callable[[], None]:
        """Call back with the newest whole book. As `on_quote` otherwise."""
        return self._want(DEPTH, callback, contracts, None)

    def on_event(self, callback: Callback) -> Callable[[], None]:
        """Call back with each `StreamEvent` of both streams; returns what ends it."""
        added = self._listeners.add(Topic(_EVENTS), callback, inline=False, conflate_by=None)

        def end() -> None:
            self._listeners.remove(added)

        return end

    # --- how ---

    def _want(
        self, channel: str, callback: Callback, contracts: Sequence[str], cadence: float | None
    ) -> Callable[[], None]:
        market = self._market
        if market is None:
            raise ConfigError("no contract was given: there is no market data", key="contracts")
        deliver = without_key(callback)
        ends = [
            market.subscribe(
                market_topic(channel, contract, cadence=cadence, session=self._session), deliver
            )
            for contract in contract_ids(contracts) or self.contracts
        ]

        def end() -> None:
            for one in ends:
                one()

        return end

    def _wants_quotes(self, contract: str) -> bool:
        wanted = () if self._market is None else self._market.standings
        return any((one.topic.channel, one.topic.key) == (QUOTE, contract) for one in wanted)

    def _accounts_followed(self) -> AccountEvents:
        if self._events is None:
            raise ConfigError("no account was given: there is nothing to tell", key="accounts")
        return self._events

    def _manager(self, endpoint: Endpoint, limiter: DialLimiter | None) -> StreamManager:
        manager = StreamManager(
            lambda: self._links.link(endpoint),
            name=f"{self.name}.{endpoint}",
            settings=self._settings,
            tokens=self._links.tokens[endpoint],
            venue_time=venue_time,
            dial_limiter=limiter,
            clock=self._clock,
        )
        manager.on_event(self._told, inline=True)
        return manager

    def _heard(self, heard: Heard) -> None:
        value = heard.value
        if self._events is None or heard.key not in self.accounts:
            return
        if isinstance(value, Order | Fill | Position | Account):
            self._events.receive(value)

    def _doubt(self, doubt: Doubt) -> None:
        if self._events is None or (doubt.account and doubt.account not in self.accounts):
            return
        whom = (doubt.account,) if doubt.account else ()
        self._events.reconciliation.suspect(*whom, reason=f"{doubt.channel}: {doubt.reason}")

    def _told(self, event: StreamEvent) -> None:
        if event.kind in _GAPS and event.stream == f"{self.name}.market":
            self._quotes.forget()
        self._listeners.push(self._listeners.route(_EVENTS, ""), (event,), "")

    def _overflowed(self, overflow: Overflow) -> None:
        if overflow.over or overflow.channel == _EVENTS:
            return
        words = f"{overflow.callback} is too slow: events of {overflow.channel} are lost to it"
        self._told(
            StreamEvent(
                EventKind.OVERFLOW,
                f"{self.name}.user",
                self._clock.wall(),
                overflow.channel,
                "",
                words,
            )
        )

    def _newer_token(self, _: Any) -> None:
        self.renew()

    async def _renew_by_age(self) -> None:
        self._renewed_at = self._clock.boottime()
        while True:
            due = self._renewed_at + self._renew_after
            await self._clock.sleep(due - self._clock.boottime())
            if self._clock.boottime() >= self._renewed_at + self._renew_after:
                self.renew("the token's age")

    def __repr__(self) -> str:
        return f"<ProjectXStream {', '.join(map(repr, self._managers))}>"
