"""Runs the reconciliation of a stream: asks for snapshots when they are due, and hands on what changed.

Invariants: one snapshot at a time; what comes from a snapshot goes the same way as what the stream tells, marked
`recovered`; a callback that raises stops nothing; what decides is in `reconcile`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from datetime import datetime

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import KeeplineError
from keepline.stream.reconcile import Look, Phase, Reconciler, ReconcileSettings, Result
from keepline.stream.snapshot import Discrepancy, Snapshot, SnapshotSource
from keepline.stream.view import AccountView, Change, Told
from keepline.telemetry import REGISTRY, event, shortened

__all__ = ["Reconciliation"]

log = logging.getLogger("keepline.stream")

DISCREPANCIES = REGISTRY.counter(
    "reconcile_discrepancies_total", "Differences between a stream and snapshots.", "kind"
)
LOOKS = REGISTRY.counter(
    "reconcile_looks_total", "Snapshots that were taken to check a stream.", "stream", "result"
)
LAST = REGISTRY.gauge(
    "reconcile_last_timestamp_seconds", "When a snapshot last proved a stream right.", "stream"
)


class Reconciliation:
    """Keeps a view of accounts right, over the stream's events and the broker's snapshots.

    The manager of the stream calls `begin` when a connection is up, `await reconcile()` once the topics of the accounts
    are subscribed, and `lost` when it is gone; events go to `receive` as they come. `start` adds the looks at a live
    stream; use it as an asynchronous context manager, or call `start` and `stop`.

    Args:
        source: what takes snapshots of the broker.
        accounts: ids of the accounts that are followed.
        on_change: called with each change in order, whether the stream or a snapshot told it; synchronous, cheap.
        on_discrepancy: called with each discrepancy, once.
        settings: how often and how carefully.
        name: of the stream, for logs and metrics.
        attempt_seconds: so long a snapshot may take.
        clock: for tests.

    Raises:
        ConfigError: no account, or a setting makes no sense.
    """

    def __init__(
        self,
        source: SnapshotSource,
        accounts: Iterable[str],
        *,
        on_change: Callable[[Change], object] | None = None,
        on_discrepancy: Callable[[Discrepancy], object] | None = None,
        settings: ReconcileSettings | None = None,
        name: str = "",
        attempt_seconds: float = 60.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._source = source
        self._reconciler = Reconciler(accounts, settings=settings)
        self._on_change = on_change
        self._on_discrepancy = on_discrepancy
        self._name = name
        self._attempt_seconds = attempt_seconds
        self._clock = clock
        self._turn = asyncio.Lock()
        self._stir = asyncio.Event()  # what is due may be due earlier
        self._turned = asyncio.Event()  # the connection came or went
        self._armed = float("inf")
        self._task: asyncio.Task[None] | None = None
        self._reconciled_at: datetime | None = None
        self._reason = ""

    # --- what is known ---

    @property
    def view(self) -> AccountView:
        """Orders, fills, positions and balances as they are known."""
        return self._reconciler.view

    @property
    def is_live(self) -> bool:
        """Whether the view is the present: connected, compared, and the stream is being applied."""
        return self._reconciler.phase is Phase.LIVE

    @property
    def phase(self) -> Phase:
        """Apart, buffering or live."""
        return self._reconciler.phase

    @property
    def unsure(self) -> frozenset[tuple[str, str]]:
        """Positions (account, instrument) that the broker told otherwise; they are looked at again in a moment."""
        return self._reconciler.unsure

    @property
    def reconciled_at(self) -> datetime | None:
        """When a whole snapshot was last taken in, None for never."""
        return self._reconciled_at

    @property
    def reason(self) -> str:
        """Why the last look was not whole, with what could not be read; "" when it was."""
        return self._reason

    # --- what the manager of the stream tells ---

    def begin(self) -> None:
        """A connection is up: events are kept from now on."""
        self._reconciler.begin(self._now())
        self._turned.set()
        self._stir.set()

    async def reconcile(self) -> None:
        """Take snapshots until one is whole; returns once live, or once `lost` or another `begin` came in between.

        Call it after the accounts' topics are confirmed: what happens between a snapshot and a subscription is seen by
        neither.
        """
        if self._reconciler.phase is Phase.APART:
            self.begin()
        while self._reconciler.phase is Phase.BUFFERING:
            self._turned.clear()
            if not await self._look() and self._reconciler.phase is Phase.BUFFERING:
                await self._wait(self._turned, self._reconciler.next_look)

    def lost(self) -> None:
        """The connection is gone: the view is the past until the next one was reconciled."""
        self._reconciler.lost(self._now())
        self._turned.set()
        self._stir.set()

    def receive(self, told: Told) -> None:
        """An event of the stream: an order, a fill, a position or an account. Synchronous, cheap, never raises."""
        self._hand_on(self._reconciler.receive(told, self._now()))
        if (due := self._reconciler.deadline) is not None and due < self._armed:
            self._stir.set()

    def suspect(
        self, *accounts: str, reason: str = "asked for", since: datetime | None = None
    ) -> None:
        """Something may have been missed (an event that could not be read, a full queue): look soon.

        Args:
            *accounts: whose; all without one.
            reason: what calls for it, for logs.
            since: when it happened, if long ago: the look has to reach back so far.
        """
        self._reconciler.suspect(self._now(), *accounts, reason=reason, since=since)
        self._stir.set()

    # --- life ---

    async def start(self) -> None:
        """From now on look at the broker now and then, and whenever something calls for it."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Look no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def __aenter__(self) -> "Reconciliation":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _run(self) -> None:
        while True:
            self._tell(self._reconciler.expire(self._now()))
            if not self.is_live:  # whoever connects calls `reconcile`
                await self._pause(self._reconciler.expiry)
            elif not await self._look():
                await self._pause(self._reconciler.deadline)

    async def _pause(self, due: float | None) -> None:
        """Wait for what is due next, or for news that may change it."""
        self._stir.clear()
        self._armed = float("inf") if due is None else due
        await self._wait(self._stir, due)

    async def _wait(self, news: asyncio.Event, due: float | None) -> None:
        left = None if due is None else due - self._now()
        if left is None:
            await news.wait()
        elif left > 0:
            with contextlib.suppress(TimeoutError):
                await within(self._clock, left, news.wait())

    # --- looks ---

    async def _look(self) -> bool:
        """Take the snapshot that is due and take it in; False when there was none to take."""
        async with self._turn:
            look = self._reconciler.look(self._now(), self._clock.wall())
            if look is None:
                return False
            try:
                snapshot = await self._snapshot(look)
            except BaseException:
                self._reconciler.give_up()
                raise
            result = self._reconciler.finish(snapshot, self._now())
        self._stir.set()  # live now, perhaps: whoever looks now and then has a new next time
        self._note(look, result, snapshot)
        self._hand_on(result.changes)
        self._tell(result.discrepancies)
        return True

    async def _snapshot(self, look: Look) -> Snapshot:
        try:
            told: object = await within(
                self._clock,
                self._attempt_seconds,
                self._source.snapshot(look.accounts, since=look.since),
            )
            if isinstance(told, Snapshot):
                return told
            raise TypeError(f"a source gives a Snapshot, not {type(told).__name__}")
        except (KeeplineError, TimeoutError) as error:
            words = str(error) or type(error).__name__
        except Exception as error:
            log.exception("A snapshot failed")
            words = repr(error)
        return Snapshot(
            taken_at=self._clock.wall(),
            since=look.since,
            scope=look.accounts,
            failed={"snapshot": words},
        )

    def _note(self, look: Look, result: Result, snapshot: Snapshot) -> None:
        whole = not result.reason
        failed = "; ".join(f"{name}: {words}" for name, words in snapshot.failed.items())
        self._reason = ": ".join(filter(None, (result.reason, failed))) if not whole else ""
        LOOKS.inc(self._name, "whole" if whole else "partial")
        if whole:
            self._reconciled_at = self._clock.wall()
            LAST.set(self._reconciled_at.timestamp(), self._name)
            level, sentence = logging.INFO, "Stream reconciled"
        else:
            level, sentence = logging.WARNING, "Stream not reconciled"
        event(
            log,
            level if look.reason != "periodic" or not whole else logging.DEBUG,
            sentence,
            stream=self._name,
            why=look.reason,
            reason=result.reason,
            failed=failed,
            recovered=sum(change.recovered for change in result.changes),
            discrepancies=len(result.discrepancies),
        )

    # --- what follows ---

    def _hand_on(self, changes: Iterable[Change]) -> None:
        if self._on_change is None:
            return
        for change in changes:
            _call(self._on_change, change)

    def _tell(self, discrepancies: Iterable[Discrepancy]) -> None:
        for found in discrepancies:
            DISCREPANCIES.inc(found.kind.value)
            event(
                log,
                logging.WARNING,
                "Stream discrepancy",
                stream=self._name,
                kind=found.kind.value,
                account=found.account,
                id=shortened(found.id) if found.id == found.account else found.id,
            )
            if self._on_discrepancy is not None:
                _call(self._on_discrepancy, found)

    def _now(self) -> float:
        return self._clock.boottime()

    def __repr__(self) -> str:
        return f"<Reconciliation {self._name or self._source!r}: {self._reconciler!r}>"


def _call(callback: Callable[..., object], value: object) -> None:
    try:
        callback(value)
    except Exception:
        log.exception("A callback of a reconciliation failed")
