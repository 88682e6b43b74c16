"""ProjectX's streams as one thing: orders, fills, positions, balances, quotes, trades and books that show the present.

Invariants: two connections, one for accounts and one for the market, each kept on its own; what an account's connection
missed is asked for by REST before it counts as live; `require_live` refuses new orders while the stream is blind; a
newer token makes newer connections first and drops the old ones after.

Source: gateway.docs.projectx.com (realtime data), read in 2025-09; its sample connects without negotiation and with
the token in the address.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from keepline.brokers.checks import seconds
from keepline.brokers.listening import without_key
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.quotes import QuoteMerger
from keepline.brokers.projectx.snapshot import ProjectXSnapshots
from keepline.brokers.projectx.stream_links import Endpoint, ProjectXLinks, Tap
from keepline.brokers.projectx.stream_messages import DEPTH, MARKET_EVENTS, MARKET_TRADE, QUOTE
from keepline.brokers.projectx.stream_reading import Doubt, Heard
from keepline.brokers.projectx.stream_topics import (
    account_ids,
    contract_ids,
    market_topic,
    user_topics,
    venue_time,
)
from keepline.brokers.stream import BrokerStream
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError
from keepline.model import Account, Fill, Order, Position, Quote
from keepline.stream.calendar import CME_FUTURES, SessionCalendar
from keepline.stream.delivery import Callback
from keepline.stream.events import EventKind, StreamEvent
from keepline.stream.manager import StreamManager, Until
from keepline.stream.port import Link
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.redial import DialLimiter
from keepline.stream.settings import StreamSettings
from keepline.stream.snapshot import SnapshotSource
from keepline.stream.tokens import StreamTokenSource

__all__ = ["ProjectXStream"]

# at the end, so that nobody takes the old for the present, and at the beginning, for what still came after the end
_GAPS = (EventKind.LOST, EventKind.CONNECTED)


@runtime_checkable
class _Announcing(Protocol):
    """A source of tokens that tells of each new one; `keepline.TokenManager` is one."""

    def subscribe(self, callback: Callable[[Any], Any]) -> Callable[[], None]: ...


class ProjectXStream(BrokerStream):
    """Accounts and markets of one ProjectX user, streamed.

    Use it as an asynchronous context manager, or call `connect` and `disconnect`, which may come again.

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
        super().__init__(
            name=name,
            accounts=account_ids(accounts),
            settings=settings or StreamSettings(),
            clock=clock,
        )
        self.contracts = contract_ids(contracts)
        if not self.accounts and not self.contracts:
            raise ConfigError("give accounts, contracts or both", key="accounts")
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
        self._cadence = None if quote_cadence is None else seconds(quote_cadence, "quote_cadence")
        self._session = session
        self._renew_after = seconds(renew_after, "renew_after")
        self._user: StreamManager | None = None
        self._market: StreamManager | None = None
        if self.accounts:
            events = self._follow(
                self._source(client, snapshots),
                reconcile,
                name=f"{name}.user",
                note_snapshot=None if record is None else self._links.note_snapshot,
            )
            self._user = self._manager("user", dial_limiter)
            for topic in user_topics(self.accounts):
                self._user.subscribe(topic)
            self._user.add_reconciler(events.reconciliation)
        if self.contracts:
            self._market = self._manager("market", dial_limiter)
        self._managers = tuple(m for m in (self._user, self._market) if m is not None)
        self._renewing: asyncio.Task[None] | None = None
        self._renewed_at = 0.0
        self._ends: list[Callable[[], None]] = []

    @staticmethod
    def _source(client: ProjectXClient | None, snapshots: SnapshotSource | None) -> SnapshotSource:
        if snapshots is None and client is None:
            raise ConfigError(
                "accounts need one, to be asked for what a connection missed", key="client"
            )
        return snapshots or ProjectXSnapshots(cast(ProjectXClient, client))

    # --- life ---

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
        """Close the connections and let listeners end; what is subscribed stays so for the next `connect`."""
        for end in self._ends:
            end()
        self._ends.clear()
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        await asyncio.gather(*(manager.disconnect() for manager in self._managers))
        await self._stop_telling()

    def renew(self, reason: str = "a newer token") -> None:
        """Take newer connections with a newly asked token, without a gap."""
        self._renewed_at = self._clock.boottime()
        for manager in self._managers:
            manager.renew(reason)

    # --- the market ---

    def quote(self, contract: str) -> Quote | None:
        """The quote of a contract as far as it was told on this connection, None before the first."""
        return self._quotes.get(contract)

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

    # --- how ---

    def _want(
        self, channel: str, callback: Callback, contracts: Sequence[str], cadence: float | None
    ) -> Callable[[], None]:
        market = self._market
        if market is None:
            raise ConfigError("no contract was given: there is no market data", key="contracts")
        deliver = without_key(callback)
        topics = [
            market_topic(channel, contract, cadence=cadence, session=self._session)
            for contract in contract_ids(contracts) or self.contracts
        ]
        return self._listen(market, topics, deliver)

    def _require_account(self) -> None:
        if self._user is not None:
            self._user.require_live()

    def _quotes_of(self, instrument: str) -> tuple[StreamManager | None, str]:
        return self._market, QUOTE

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
        if self._events is None or doubt.channel in MARKET_EVENTS:
            return  # what the market said cannot be asked for
        if doubt.account and doubt.account not in self.accounts:
            return
        whom = (doubt.account,) if doubt.account else ()
        reason = f"{doubt.channel}: {doubt.reason}"
        self._events.reconciliation.suspect(*whom, reason=reason, since=doubt.since)

    def _told(self, event: StreamEvent) -> None:
        if event.kind in _GAPS and event.stream == f"{self.name}.market":
            self._quotes.forget()
        super()._told(event)

    def _newer_token(self, _: Any) -> None:
        self.renew()

    async def _renew_by_age(self) -> None:
        self._renewed_at = self._clock.boottime()
        while True:
            due = self._renewed_at + self._renew_after
            await self._clock.sleep(due - self._clock.boottime())
            if self._clock.boottime() >= self._renewed_at + self._renew_after:
                self.renew("the token's age")
