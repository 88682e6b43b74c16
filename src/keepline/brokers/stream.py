"""What the streams of all brokers have in common: who is told of accounts, what may be believed, what is recorded.

Invariants: a stream of a broker is one object over one or more kept connections; nothing is called the present unless
all of them are; a guard refuses new risk while the account or its quotes are blind.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Self

from keepline.brokers.account_events import AccountEvents, Observe
from keepline.brokers.base import OrderIntent
from keepline.brokers.orders.gateway import OrderGateway
from keepline.clock import Clock
from keepline.errors import ConfigError, StreamNotLive
from keepline.model import Account, Fill, Order, Position
from keepline.stream.delivery import Callback, Overflow
from keepline.stream.events import ConnectionState, EventKind, StreamEvent
from keepline.stream.health import HealthStatus
from keepline.stream.manager import StreamManager, Until
from keepline.stream.played_snapshots import PlayedSnapshots, RecordedSnapshots
from keepline.stream.port import Topic, key_of_first_text
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.routing import Router
from keepline.stream.settings import StreamSettings
from keepline.stream.snapshot import Discrepancy, SnapshotSource
from keepline.stream.view import AccountView

__all__ = ["BrokerStream"]

_EVENTS = "event"
_WORSE_FIRST = (
    ConnectionState.FAILED,
    ConnectionState.DISCONNECTED,
    ConnectionState.RECONNECTING,
    ConnectionState.CONNECTING,
    ConnectionState.CONNECTED,
)
_WORST_FIRST = (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.HEALTHY)


class BrokerStream(ABC):
    """One user's stream of one broker; `ProjectXStream` and `SchwabStream` are made of it.

    A broker's class names its managers, follows accounts with `_follow`, and says where quotes come from.

    Args:
        name: how logs, metrics and events call it.
        accounts: ids of the accounts that are followed.
        settings: how connections are kept.
        clock: time.
    """

    def __init__(
        self, *, name: str, accounts: Sequence[str], settings: StreamSettings, clock: Clock
    ) -> None:
        self.name = name
        self.accounts = tuple(accounts)
        self._settings = settings
        self._clock = clock
        self._managers: tuple[StreamManager, ...] = ()
        self._events: AccountEvents | None = None
        self._accounts_name = name
        self._listeners = Router(
            key_of=key_of_first_text,
            mailbox=settings.mailbox,
            on_overflow=self._overflowed,
            clock=clock,
        )

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

    @abstractmethod
    async def connect(self, *, until: Until = "connected") -> None:
        """Connect and stay connected; returns when everything is up.

        Args:
            until: `connected`, or `live`: subscribed, reconciled and fresh.

        Raises:
            APIError: a connection has failed for good.
            Closed: `disconnect` came first.
        """

    @abstractmethod
    async def disconnect(self) -> None:
        """Close the connections and let listeners end."""

    async def _stop_telling(self) -> None:
        seconds = self._settings.stop_timeout
        if self._events is not None:
            await self._events.stop(drain_seconds=seconds)
        await self._listeners.close(seconds)

    # --- what may be believed ---

    @property
    def is_live(self) -> bool:
        """Whether everything that is wanted shows the present."""
        return all(manager.is_live for manager in self._managers)

    @property
    def state(self) -> ConnectionState:
        """Whether there is a connection, which says nothing about its data; of several the worst."""
        return min((manager.state for manager in self._managers), key=_WORSE_FIRST.index)

    @property
    def health(self) -> HealthStatus:
        """How far the stream can be relied on, of several connections the worst; `reasons` says why."""
        return min((manager.health for manager in self._managers), key=_WORST_FIRST.index)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong, in words; empty when nothing is."""
        one = len(self._managers) == 1
        found = [
            reason if one else f"{manager.name}: {reason}"
            for manager in self._managers
            for reason in manager.reasons
        ]
        if self._events is not None and (unread := self._events.reconciliation.reason):
            found.append(f"the accounts {unread}")
        return tuple(found)

    def require_live(self, about: OrderIntent | str | None = None) -> None:
        """Refuse to go on while blind; as the `guard` of an `OrderGateway` it refuses new risk.

        Args:
            about: an intent (its account must be followed and live, and its instrument fresh when quotes of it are
                wanted), or an instrument whose quotes must be fresh. Without either everything must be live.

        Raises:
            StreamNotLive: what is shown is not the present, with the reasons.
        """
        if about is None:
            for manager in self._managers:
                manager.require_live()
        elif isinstance(about, str):
            self._require_quotes(about)
        elif about.account not in self.accounts:
            raise self._blind(f"account {self._called(about.account)} is not followed")
        else:
            self._require_account()
            if self._wants_quotes(about.instrument):
                self._require_quotes(about.instrument)

    def _blind(self, reason: str) -> StreamNotLive:
        words = f"stream {self.name} is blind: {reason}"
        return StreamNotLive(words, stream=self.name, reasons=[reason])

    def _require_quotes(self, instrument: str) -> None:
        manager, channel = self._quotes_of(instrument)
        if manager is None:
            raise self._blind(f"no market data is followed, nothing is known of {instrument}")
        manager.require_live(channel, instrument)

    def _wants_quotes(self, instrument: str) -> bool:
        manager, channel = self._quotes_of(instrument)
        wanted = () if manager is None else manager.standings
        return any((one.topic.channel, one.topic.key) == (channel, instrument) for one in wanted)

    @abstractmethod
    def _require_account(self) -> None:
        """Raise `StreamNotLive` when what is known of the accounts is not the present."""

    @abstractmethod
    def _quotes_of(self, instrument: str) -> tuple[StreamManager | None, str]:
        """Which connection and channel bring the quotes of an instrument."""

    def _called(self, account: str) -> str:
        """An account's id for messages."""
        return account

    @property
    def view(self) -> AccountView:
        """Orders, fills, positions and balances as they are known; the present only while `is_live`.

        Raises:
            ConfigError: no account is followed.
        """
        return self._followed().view

    @property
    def reconciled_at(self) -> datetime | None:
        """When the accounts were last found right, None for never or without accounts."""
        return None if self._events is None else self._events.reconciliation.reconciled_at

    @property
    def managers(self) -> tuple[StreamManager, ...]:
        """What keeps the connections, for status and for calls of their own."""
        return self._managers

    # --- who is told ---

    def on_order(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each state of an order, once, whether the stream or a snapshot told it.

        A callback that is too slow for its mailbox gets what it missed once there is room: the newest state of each.

        Args:
            callback: a coroutine function runs on the loop, a plain function in a thread of its own.
            full: give it the `Change`: the value, how it was before, and whether it came late (`recovered`).

        Returns:
            What ends it.

        Raises:
            ConfigError: no account is followed, or it is not callable.
        """
        return self._followed().listen(Order, callback, full=full)

    def on_fill(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each fill, once, also those that were missed. As `on_order` otherwise."""
        return self._followed().listen(Fill, callback, full=full)

    def on_position(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each position that changed; a flat one has the quantity 0. As `on_order` otherwise."""
        return self._followed().listen(Position, callback, full=full)

    def on_account(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each balance that changed. As `on_order` otherwise."""
        return self._followed().listen(Account, callback, full=full)

    def on_discrepancy(self, callback: Callback) -> Callable[[], None]:
        """Call back with each `Discrepancy` between what was known and what the broker shows; returns what ends it."""
        return self._followed().listen(Discrepancy, callback)

    def feed(self, gateway: OrderGateway) -> Callable[[], None]:
        """Let an order gateway see orders and fills before any callback, and look where no event explains a difference.

        Unknown outcomes settle themselves then. Returns what ends it.
        """
        return self._followed().feed(gateway)

    def observe_with(self, observe: Observe) -> Callable[[], None]:
        """Hand each order and fill to a function at once, on the loop, before any callback; returns what ends it.

        An `OrderGateway` is better given to `feed`.
        """
        return self._followed().observe_with(observe)

    def on_event(self, callback: Callback) -> Callable[[], None]:
        """Call back with each `StreamEvent`: connected, first data, stale, reconciling, live, lost, overflow, alarm.

        Returns:
            What ends it.
        """
        added = self._listeners.add(Topic(_EVENTS), callback, inline=False, conflate_by=None)

        def end() -> None:
            self._listeners.remove(added)

        return end

    # --- how ---

    @staticmethod
    def _listen(
        manager: StreamManager, topics: Sequence[Topic], callback: Callback
    ) -> Callable[[], None]:
        """Subscribe to all of the topics or to none; returns what ends it."""
        ends: list[Callable[[], None]] = []

        def end() -> None:
            for one in ends:
                one()

        try:
            ends.extend(manager.subscribe(topic, callback) for topic in topics)
        except ConfigError:
            end()
            raise
        return end

    def _follow(
        self,
        source: SnapshotSource,
        reconcile: ReconcileSettings | None,
        *,
        name: str,
        note_snapshot: Callable[[str], object] | None,
    ) -> AccountEvents:
        """Follow the accounts; `note_snapshot` records what snapshots told."""
        self._accounts_name = name
        noted = source if note_snapshot is None else RecordedSnapshots(source, note_snapshot)
        self._events = events = AccountEvents(
            noted,
            self.accounts,
            name=name,
            settings=reconcile,
            mailbox=self._settings.mailbox,
            on_overflow=self._overflowed,
            clock=self._clock,
        )
        if isinstance(source, PlayedSnapshots):
            source.on_offer(partial(events.reconciliation.suspect, reason="recorded"))
        return events

    def _followed(self) -> AccountEvents:
        if self._events is None:
            raise ConfigError("no account is followed: there is nothing to tell", key="accounts")
        return self._events

    def _told(self, event: StreamEvent) -> None:
        self._listeners.push(self._listeners.route(_EVENTS, ""), (event,), "")

    def _overflowed(self, overflow: Overflow) -> None:
        if overflow.over or overflow.channel == _EVENTS:
            return
        words = (
            f"{overflow.callback} is too slow: events of {overflow.channel} wait for it to go on"
        )
        at = self._clock.wall()
        self._told(
            StreamEvent(EventKind.OVERFLOW, self._accounts_name, at, overflow.channel, "", words)
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(map(repr, self._managers))}>"
