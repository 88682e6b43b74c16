"""What happens to accounts, told once to everyone who listens, whether a stream told it or a snapshot.

Invariants: each listener has a mailbox of its own, nothing is dropped from it in silence; an order gateway sees an
event before any listener does; what a snapshot told goes the same way and says so (`Change.recovered`).
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.model import Account, Fill, Order, Position
from keepline.stream.delivery import Callback, Overflow
from keepline.stream.port import Topic, key_of_first_text
from keepline.stream.reconcile import ReconcileSettings
from keepline.stream.reconciliation import Reconciliation
from keepline.stream.routing import Router
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
_CHANGES: Final = {kind: f"{name} change" for kind, name in _NAMES.items()}


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
        self._router = Router(
            key_of=key_of_first_text,
            mailbox=mailbox,
            on_overflow=on_overflow or _nobody_asked,
            clock=clock,
        )
        self._observers: list[Observe] = []

    @property
    def view(self) -> AccountView:
        """What is known of the accounts; the present only while the stream is live."""
        return self.reconciliation.view

    def receive(self, told: Told) -> None:
        """An event of the stream; synchronous, cheap, never raises."""
        self.reconciliation.receive(told)

    def observe_with(self, observe: Observe) -> Callable[[], None]:
        """Hand each order and fill to a gateway at once, on the loop; returns what ends it."""
        self._observers.append(observe)

        def end() -> None:
            if observe in self._observers:
                self._observers.remove(observe)

        return end

    def listen(self, kind: type, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call back with each event of a kind.

        Args:
            kind: `Order`, `Fill`, `Position`, `Account` or `Discrepancy`.
            callback: a coroutine function runs on the loop, a plain function in a thread of its own.
            full: give it the `Change` (how it was before, whether a snapshot told it) instead of the value.

        Returns:
            What ends it; events that wait are not delivered then.

        Raises:
            ConfigError: it is not callable.
        """
        topic = Topic((_CHANGES if full else _NAMES)[kind])
        subscriber = self._router.add(topic, callback, inline=False, conflate_by=None)

        def end() -> None:
            self._router.remove(subscriber)

        return end

    async def start(self) -> None:
        """From now on take snapshots of a live stream now and then."""
        await self.reconciliation.start()

    async def stop(self, *, drain_seconds: float = 1.0) -> None:
        """Take no more snapshots; each listener has so many seconds for what waits for it."""
        await self.reconciliation.stop()
        await self._router.close(drain_seconds)

    def _changed(self, change: Change) -> None:
        value = change.value
        if isinstance(value, Order | Fill):
            for observe in list(self._observers):
                try:
                    observe(value)
                except Exception:
                    log.exception("An order gateway could not take in an event")
        self._push(_NAMES[type(value)], value)
        self._push(_CHANGES[type(value)], change)

    def _differed(self, found: Discrepancy) -> None:
        self._push(_NAMES[Discrepancy], found)

    def _push(self, channel: str, value: Any) -> None:
        self._router.push(self._router.route(channel, ""), (value,), "")

    def __repr__(self) -> str:
        return f"<AccountEvents {self.reconciliation!r}>"


def _nobody_asked(overflow: Overflow) -> None:
    """The mailbox itself has logged and counted it."""
