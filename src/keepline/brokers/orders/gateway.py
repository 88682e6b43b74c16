"""Orders that are never doubled: each intent is on the disk before it is sent, and is sent at most once.

Invariants: an intent's id is its idempotency key, in this process, among concurrent calls and across restarts; a
request without a trustworthy answer is never sent again, its outcome is found out; what a caller is told is never taken
back, except that an order which appears late wins. The book and its tickets decide; this is how bots reach them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from keepline.brokers.base import Broker, IntentKind, OrderIntent, check_intent
from keepline.brokers.orders import sending
from keepline.brokers.orders.docket import Docket, Entry
from keepline.brokers.orders.guarding import Guard, ask_guard, checked_guard
from keepline.brokers.orders.journal import Journal, OrderJournal
from keepline.brokers.orders.outcome import OrderOutcome
from keepline.brokers.orders.records import same_body
from keepline.brokers.orders.resolution import State
from keepline.brokers.orders.watch import CaughtUp, Watch
from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import Closed, ConfigError, KeeplineError
from keepline.model import Fill, Order

__all__ = ["OrderGateway"]

log = logging.getLogger("keepline.orders")

_ADDS_RISK = frozenset({IntentKind.PLACE, IntentKind.MODIFY})


class OrderGateway:
    """Places, changes and cancels orders at one broker, and knows what became of each.

    Use it as an asynchronous context manager, or call `start` and `stop`. All calls run on one event loop.

    Args:
        broker: the adapter of the broker.
        journal: an `OrderJournal`, or the path of its file; only one process at a time can have it.
        guard: called with each new intent to place or modify before anything of it is written or sent; what it raises
            the caller gets (`stream.require_live` of a bot that must not trade while it is blind), and False refuses,
            too. A plain function: it cannot be awaited. To cancel and to close is never refused by it.
        clock: for tests.

    Raises:
        ConfigError: the guard is no plain function.

    Example:
        >>> async with OrderGateway(broker, "data/topstep.orders") as gateway:
        ...     outcome = await gateway.place(OrderIntent(id="entry-1", account="1", instrument="CON.F.US.MNQ.U26",
        ...         side=Side.BUY, quantity=Decimal(1), type=OrderType.MARKET))
        ...     if not outcome.is_final:
        ...         outcome = await outcome.final()
    """

    def __init__(
        self,
        broker: Broker,
        journal: Journal | Path | str,
        *,
        guard: Guard | None = None,
        clock: Clock | None = None,
    ) -> None:
        if isinstance(journal, (str, Path)):
            journal = OrderJournal(journal)
        self._broker = broker
        self._guard = checked_guard(guard)
        self._clock = clock or SYSTEM_CLOCK
        self._docket = Docket(broker, journal, self._clock)
        self._watch = Watch(self._docket)
        self._watching: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._stopped = False

    # --- life ---

    async def start(self) -> None:
        """Open the journal and go on with everything that is unresolved in it.

        Raises:
            StorageError: another process has the journal, or it is damaged; nothing can be placed.
        """
        if self._stopped:
            raise Closed("the order gateway was stopped: make a new one")
        async with self._starting:
            if self._watching is None:
                await self._start()

    async def _start(self) -> None:
        journal = self._docket.journal
        await journal.start()
        try:
            await self._docket.restore()
        except BaseException:
            await journal.close()
            raise
        self._watching = asyncio.create_task(self._watch.run())

    async def stop(self, *, grace_seconds: float = 5.0) -> None:
        """Wait a moment for what is under way, and close the journal; what is unresolved stays in it for the next time.

        Args:
            grace_seconds: how long calls that are under way may take; what has no answer then is UNKNOWN.
        """
        if self._watching is None:
            return
        self._stopped = True
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        self._watching = None
        await self._end_flows(grace_seconds)
        await self._docket.drain()
        closed = Closed("the order gateway was stopped; the next one goes on with this intent")
        for entry in self._docket.entries():
            if not entry.ticket.state.is_settled:
                self._docket.fail(entry, closed)
        await self._docket.journal.close()

    async def _end_flows(self, grace_seconds: float) -> None:
        under_way = [e.task for e in self._docket.entries() if e.task and e.ticket.in_flight]
        if under_way:
            with contextlib.suppress(TimeoutError):
                await within(self._clock, grace_seconds, asyncio.wait(under_way))
        flows = [entry.task for entry in self._docket.entries() if entry.task]
        for task in flows:
            task.cancel()
        await asyncio.gather(*flows, return_exceptions=True)

    async def __aenter__(self) -> "OrderGateway":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    # --- what a bot wants ---

    async def place(self, intent: OrderIntent) -> OrderOutcome:
        """Place an order; the same intent again gives the same outcome and sends nothing.

        Once called it goes on, whoever stops waiting: the intent, not the caller, owns the request.

        Args:
            intent: with `kind` place.

        Returns:
            ACCEPTED or REFUSED when that is known within `intent.deadline_seconds`; UNKNOWN otherwise, and `final()` of
            it waits on. AMBIGUOUS at once, because a person must decide.

        Raises:
            ConfigError: the intent makes no sense, or its id exists with another body; nothing was sent.
            StorageError: the journal cannot be written (disk full, damage); nothing was sent.
            Closed: the gateway was stopped or not started.
            Refused: the guard said False; nothing was sent.
            Exception: whatever the guard raises; nothing was sent.
        """
        return await self._submit(IntentKind.PLACE, intent)

    async def modify(self, intent: OrderIntent) -> OrderOutcome:
        """Change the order `target_order_id`, once earlier changes of it are settled. As `place` otherwise."""
        return await self._submit(IntentKind.MODIFY, intent)

    async def cancel(self, intent: OrderIntent) -> OrderOutcome:
        """Cancel the order `target_order_id`; REFUSED says that it had ended before. As `place` otherwise."""
        return await self._submit(IntentKind.CANCEL, intent)

    async def close(self, intent: OrderIntent) -> OrderOutcome:
        """Close a position, once earlier closes of it are settled. As `place` otherwise."""
        return await self._submit(IntentKind.CLOSE, intent)

    async def partial_close(self, intent: OrderIntent) -> OrderOutcome:
        """Close a part of a position, once earlier closes of it are settled. As `place` otherwise."""
        return await self._submit(IntentKind.PARTIAL_CLOSE, intent)

    # --- what is known ---

    def observe(self, seen: Order | Fill) -> None:
        """Take in an event of the broker's stream, repeated or late ones too; it may settle an outcome at once."""
        if self._watching is None:
            return
        docket = self._docket
        for ticket in docket.book.witness(seen, self._clock.boottime()):
            if (entry := docket.get(ticket.intent.id)) is not None:
                docket.changed(entry)
                docket.spawn(docket.save(entry))
        if isinstance(seen, Fill):
            docket.spawn(self._take(seen))
        docket.stir.set()

    async def catch_up(self, account: str) -> CaughtUp:
        """Look at everything since the last time, after a stream was interrupted and now and then: no fill is lost.

        Returns:
            What was settled, the fills that were new, the positions, and the sources that failed.

        Raises:
            Closed: the gateway is not running.
        """
        self._check_running()
        return await self._watch.catch_up(account)

    def unresolved(self) -> list[OrderOutcome]:
        """Intents whose outcome is not known, oldest first."""
        entries = (self._docket.get(t.intent.id) for t in self._docket.book.unsettled())
        return [self._docket.outcome(entry) for entry in entries if entry is not None]

    async def outcome(self, intent_id: str) -> OrderOutcome | None:
        """What is known of an intent, of an earlier process too; None for an id that nobody used."""
        self._check_running()
        entry = await self._docket.fetch(intent_id)
        return None if entry is None else self._docket.outcome(entry)

    async def fills(self, order_id: str) -> list[Fill]:
        """The fills of an order that were seen, oldest first."""
        self._check_running()
        return await self._docket.journal.fills(order_id)

    async def resolve(
        self, intent_id: str, order_id: str | None = None, *, absent: bool = False, reason: str = ""
    ) -> OrderOutcome:
        """A person says what became of an intent: which order it is, or that there is none.

        Raises:
            ConfigError: both or neither is said, the intent is settled by proof, or the order belongs to another one.
        """
        self._check_running()
        if absent == bool(order_id):
            raise ConfigError("say either which order it is or that there is none", key="order_id")
        return await self._watch.decide(intent_id, order_id, reason or "a person said so")

    def subscribe(self, callback: Callable[[OrderOutcome], object]) -> Callable[[], None]:
        """Call back with each outcome that changes, late ones above all; returns what ends it."""
        return _listen(self._docket.outcome_listeners, callback)

    def subscribe_fills(self, callback: Callable[[Fill], object]) -> Callable[[], None]:
        """Call back with each fill, once, by whatever way it was seen; returns what ends it."""
        return _listen(self._docket.fill_listeners, callback)

    # --- how ---

    async def _submit(self, kind: IntentKind, intent: OrderIntent) -> OrderOutcome:
        self._check_running()
        if intent.kind is not kind:
            raise ConfigError(
                f"{kind.value}() was given an intent to {intent.kind.value}; nothing was sent",
                key="kind",
            )
        entry = await self._entry(intent)
        if not same_body(entry.body, intent):
            raise sending.different_body(intent.id)
        if entry.task is None and entry.ticket.state is State.PREPARED:
            entry.failure = None
            entry.task = asyncio.create_task(self._flow(entry))
        return await self._wait(entry, intent.deadline_seconds)

    async def _entry(self, intent: OrderIntent) -> Entry:
        known = self._docket.get(intent.id)
        if known is not None and known.ticket.state is not State.PREPARED:
            return known
        try:
            check_intent(intent)
            self._broker.check(intent)
            if self._guard is not None and intent.kind in _ADDS_RISK:
                ask_guard(self._guard, intent)
        except Exception:
            # what was sent long ago keeps its outcome, though it could not be sent today
            if (known := await self._docket.fetch(intent.id)) is None or _is_idle(known):
                raise
            return known
        return self._docket.get(intent.id) or self._docket.add(intent)

    async def _flow(self, entry: Entry) -> None:
        try:
            await sending.run(self._docket, entry)
        except KeeplineError as error:
            self._give_up(entry, error)
        except Exception as error:
            log.exception("Order work failed")
            self._give_up(entry, KeeplineError(f"intent {entry.body.id}: {error!r}"))
        finally:
            entry.task = None

    def _give_up(self, entry: Entry, error: KeeplineError) -> None:
        self._docket.book.leave_lane(entry.ticket)
        if not entry.written:
            self._docket.discard(entry)
        self._docket.fail(entry, error)

    async def _wait(self, entry: Entry, seconds: float) -> OrderOutcome:
        with contextlib.suppress(TimeoutError):
            await within(self._clock, seconds, self._until_known(entry))
        return self._docket.outcome(entry)

    async def _until_known(self, entry: Entry) -> None:
        while not entry.ticket.state.is_settled and entry.ticket.state is not State.AMBIGUOUS:
            if entry.failure is not None:
                raise entry.failure
            await entry.change()

    async def _take(self, fill: Fill) -> None:
        await self._docket.take_fills([fill])

    def _check_running(self) -> None:
        if self._watching is None:
            words = "was stopped" if self._stopped else "is not started: use it with `async with`"
            raise Closed(f"the order gateway {words}; nothing was sent")

    def __repr__(self) -> str:
        return (
            f"<OrderGateway {self._broker.name}, {len(self._docket.book.unsettled())} unresolved>"
        )


def _is_idle(entry: Entry) -> bool:
    """Whether nothing of it was sent and nobody is about to: to ask for it now is a new decision."""
    return entry.ticket.state is State.PREPARED and entry.task is None


def _listen(
    listeners: list[Callable[..., object]], callback: Callable[..., object]
) -> Callable[[], None]:
    listeners.append(callback)

    def end() -> None:
        if callback in listeners:
            listeners.remove(callback)

    return end
