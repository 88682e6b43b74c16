"""What happens to accounts, told once to everyone who listens, whether a stream told it or a snapshot.

Invariants: each listener has a mailbox of its own, and what does not fit into it comes once there is room; an order
gateway sees an event before any listener does; what a snapshot told goes the same way and says so (`Change.recovered`).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final, TypeAlias

from keepline.brokers.account_listeners import AccountListener, News
from keepline.brokers.orders.feeding import GatewayFeed
from keepline.brokers.orders.gateway import OrderGateway
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError
from keepline.model import Account, Fill, Order, Position
from keepline.stream.delivery import Callback, Overflow
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.reconciliation import Reconciliation
from keepline.stream.snapshot import Discrepancy, SnapshotSource
from keepline.stream.view import AccountView, Change, Told

__all__ = ["AccountEvents", "Observe"]

log = logging.getLogger("keepline.stream")

Observe: TypeAlias = Callable[[Order | Fill], object]
"""`OrderGateway.observe`."""

_NAMES: Final = {
    Order: "order",
    Fill: "fill",
    Position: "position",
    Account: "account",
    Discrepancy: "discrepancy",
}


class AccountEvents:
    """Orders, fills, positions and balances of some accounts, kept right and handed on.

    What a stream tells goes to `receive`; the manager of the stream drives `reconciliation`.

    Args:
        source: what takes snapshots of the broker.
        accounts: ids of the accounts that are followed.
        name: of the stream, for logs and metrics.
        settings: how often and how carefully snapshots are taken.
        mailbox: how many events may wait for one listener.
        on_overflow: called when a listener is too slow for its mailbox, and when it has room again.
        clock: for tests.

    Raises:
        ConfigError: no account, or a setting makes no sense.
    """

    def __init__(
        self,
        source: SnapshotSource,
        accounts: Iterable[str],
        *,
        name: str,
        settings: ReconcileSettings | None = None,
        mailbox: int = 10_000,
        on_overflow: Callable[[Overflow], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.reconciliation = Reconciliation(
            source,
            accounts,
            on_change=self._changed,
            on_discrepancy=self._differed,
            settings=settings,
            name=name,
            clock=clock,
        )
        self._listener = partial(
            AccountListener,
            mailbox=mailbox,
            on_overflow=on_overflow or _nobody_asked,
            clock=clock,
        )
        self._listeners: dict[type, list[AccountListener]] = {kind: [] for kind in _NAMES}
        self._leaving: set[asyncio.Task[None]] = set()
        self._feeds: list[GatewayFeed] = []
        self._observers: list[Observe] = []

    @property
    def view(self) -> AccountView:
        """What is known of the accounts; the present only while the stream is live."""
        return self.reconciliation.view

    def receive(self, told: Told) -> None:
        """An event of the stream; synchronous, cheap, never raises."""
        self.reconciliation.receive(told)

    def feed(self, gateway: OrderGateway) -> Callable[[], None]:
        """Let an order gateway see what is seen here, on the loop; returns what ends it.

        Each order and fill goes to it before any listener is called, so unknown outcomes settle themselves; for an
        order that is missing and a position that no event explains it looks at the broker.
        """
        feed = GatewayFeed(gateway)
        self._feeds.append(feed)
        end_observing = self.observe_with(gateway.observe)

        def end() -> None:
            end_observing()
            if feed in self._feeds:
                self._feeds.remove(feed)
                self._leave(feed.stop())

        return end

    def observe_with(self, observe: Observe) -> Callable[[], None]:
        """Hand each order and fill to a function at once, on the loop; returns what ends it.

        Raises:
            ConfigError: it is not callable.
        """
        if not callable(observe):
            raise ConfigError(
                f"is a function of an order or a fill, not {observe!r}; an order gateway is fed with `feed`",
                key="observe",
            )
        self._observers.append(observe)

        def end() -> None:
            if observe in self._observers:
                self._observers.remove(observe)

        return end

    def listen(self, kind: type, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each event of a kind.

        A callback that is too slow for its mailbox is told of what it missed once there is room: of the newest state of
        each thing, marked `recovered`.

        Args:
            kind: `Order`, `Fill`, `Position`, `Account` or `Discrepancy`.
            callback: a coroutine function runs on the loop, a plain function in a thread of its own.
            full: give it the `Change` (how it was before, whether a snapshot told it) instead of the value.

        Returns:
            What ends it; events that wait are not delivered then.

        Raises:
            ConfigError: it is not callable.
        """
        listener = self._listener(callback, channel=_NAMES[kind], full=full)
        there = self._listeners[kind]
        there.append(listener)

        def end() -> None:
            if listener in there:
                there.remove(listener)
                self._leave(listener.close(0.0))

        return end

    async def start(self) -> None:
        """From now on take snapshots of a live stream now and then."""
        await self.reconciliation.start()

    async def stop(self, *, drain_seconds: float = 1.0) -> None:
        """Take no more snapshots; each listener has so many seconds for what waits for it."""
        await self.reconciliation.stop()
        ends = [feed.stop() for feed in self._feeds]
        ends += [one.close(drain_seconds) for there in self._listeners.values() for one in there]
        await asyncio.gather(*ends, *self._leaving, return_exceptions=True)

    def _changed(self, change: Change) -> None:
        value = change.value
        if isinstance(value, Order | Fill):
            for observe in list(self._observers):
                try:
                    observe(value)
                except Exception:
                    log.exception("An order gateway could not take in an event")
        self._tell(type(value), change)

    def _differed(self, found: Discrepancy) -> None:
        for feed in list(self._feeds):
            try:
                feed.differs(found)
            except Exception:
                log.exception("An order gateway could not take in a discrepancy")
        self._tell(Discrepancy, found)

    def _tell(self, kind: type, news: News) -> None:
        for listener in list(self._listeners[kind]):
            listener.tell(news)

    def _leave(self, ending: Coroutine[Any, Any, None]) -> None:
        try:
            task = asyncio.get_running_loop().create_task(ending)
        except RuntimeError:  # without a loop nothing ever started
            ending.close()
            return
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def __repr__(self) -> str:
        return f"<AccountEvents {self.reconciliation!r}>"


def _nobody_asked(overflow: Overflow) -> None:
    """The mailbox itself has logged and counted it."""
