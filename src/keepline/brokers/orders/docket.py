"""The intents at work in one gateway: their tickets, who waits for them, and what of them is on the disk.

Invariants: a change is told to those who wait before it is saved, and everything that they do next is written behind
it; a change that could not be saved stays in a list and is saved later.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any

from keepline.brokers.base import Broker, OrderIntent
from keepline.brokers.orders.book import Book
from keepline.brokers.orders.journal import Journal
from keepline.brokers.orders.outcome import OrderOutcome, outcome_of
from keepline.brokers.orders.records import Record, record_of, ticket_of
from keepline.brokers.orders.resolution import State, Ticket
from keepline.clock import Clock
from keepline.errors import Closed, KeeplineError
from keepline.model import Fill
from keepline.telemetry import REGISTRY, event

__all__ = ["BEGUN", "Docket", "Entry"]

BEGUN = "begun"
"""The mark of when the journal was begun, in epoch seconds."""

log = logging.getLogger("keepline.orders")

OUTCOMES = REGISTRY.counter(
    "order_outcomes_total",
    "Order intents by what became of them; an order that appears late counts again.",
    "broker", "kind", "state", "how",
)  # fmt: skip
UNRESOLVED = REGISTRY.gauge(
    "orders_unknown_outcome", "Order intents whose outcome is not known.", "broker"
)
FILLS = REGISTRY.counter("fills_total", "Fills, each counted once.", "broker")

_REMEMBERED = timedelta(days=1)
_EVENTS = {
    State.UNKNOWN: (logging.WARNING, "Order outcome unknown"),
    State.AMBIGUOUS: (logging.ERROR, "Order ambiguous"),
    State.PRESUMED_ABSENT: (logging.WARNING, "Order presumed absent"),
    State.ADOPTED: (logging.WARNING, "Order appeared late"),
    State.REFUSED: (logging.INFO, "Order refused"),
    State.ACCEPTED: (logging.INFO, "Order accepted"),
}


class Entry:
    """One intent at work: its ticket, who works on it, and who waits.

    Attributes:
        body: the intent as the caller gave it.
        task: who works on it, None when nobody does.
        failure: why nobody can: the journal failed, or the gateway was stopped.
        told: the last state that listeners heard of.
        written: whether the journal has it.
    """

    __slots__ = ("body", "failure", "prepared_at", "task", "ticket", "told", "waiters", "written")

    def __init__(self, ticket: Ticket, body: OrderIntent, prepared_at: datetime) -> None:
        self.ticket = ticket
        self.body = body
        self.prepared_at = prepared_at
        self.task: asyncio.Task[None] | None = None
        self.failure: KeeplineError | None = None
        self.told: State | None = None
        self.written = False
        self.waiters: list[asyncio.Future[None]] = []

    async def change(self) -> None:
        """Wait for the next change of its state, its order id or its failure."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        await waiter

    def wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Docket:
    """The intents at work in one gateway."""

    def __init__(self, broker: Broker, journal: Journal, clock: Clock) -> None:
        self.broker = broker
        self.journal = journal
        self.clock = clock
        self.book = Book(broker.facts)
        self.stir = asyncio.Event()  # something changed that a watch should know
        self.unsaved: dict[str, Entry] = {}
        self.outcome_listeners: list[Callable[[OrderOutcome], object]] = []
        self.fill_listeners: list[Callable[[Fill], object]] = []
        self._entries: dict[str, Entry] = {}
        self._background: set[asyncio.Task[Any]] = set()

    # --- entries ---

    async def restore(self) -> None:
        """Take up what an earlier process left: everything unresolved, and what was settled lately."""
        now, wall = self.clock.boottime(), self.clock.wall()
        if await self.journal.mark(BEGUN) is None:
            await self.journal.mark(BEGUN, wall.timestamp())
        oldest = await self.journal.oldest_owed()
        since = wall if oldest is None else min(wall, datetime.fromtimestamp(oldest, wall.tzinfo))
        for record in await self.journal.restore((since - _REMEMBERED).timestamp()):
            entry = self._enter(record)
            before = entry.ticket.state
            entry.ticket.resume(now, wall)
            self.book.update(entry.ticket)
            entry.told = entry.ticket.state
            if entry.ticket.state is not before:
                self._tell(entry)
                await self.save(entry)
        self._count()

    def get(self, intent_id: str) -> Entry | None:
        """The entry of an intent that this process has in its memory."""
        return self._entries.get(intent_id)

    async def fetch(self, intent_id: str) -> Entry | None:
        """The entry of an intent, from the journal where the memory does not have it."""
        if (entry := self._entries.get(intent_id)) is not None:
            return entry
        record = await self.journal.find(intent_id)
        if record is None:
            return None
        return self._entries.get(intent_id) or self._enter(record)

    def add(self, intent: OrderIntent) -> Entry:
        """A new intent."""
        entry = Entry(Ticket(intent, self.broker.facts), intent, self.clock.wall())
        self._entries[intent.id] = entry
        self.book.add(entry.ticket)
        return entry

    def adopt(self, entry: Entry, record: Record) -> None:
        """The journal knows the intent from an earlier time: that is what counts."""
        entry.ticket = ticket_of(record, self.broker.facts)
        entry.body, entry.prepared_at = record.intent, record.prepared_at
        entry.told = entry.ticket.state
        self._forget(self.book.add(entry.ticket))

    def discard(self, entry: Entry) -> None:
        """Forget an intent that never came into the journal."""
        self._entries.pop(entry.body.id, None)
        self.book.discard(entry.body.id)

    def _enter(self, record: Record) -> Entry:
        ticket = ticket_of(record, self.broker.facts)
        entry = Entry(ticket, record.intent, record.prepared_at)
        entry.told = ticket.state
        entry.written = True
        self._entries[record.intent.id] = entry
        self._forget(self.book.add(ticket))
        if not ticket.state.is_settled and ticket.state is not State.PREPARED:
            self.book.enter_lane(ticket)
        return entry

    # --- changes ---

    def outcome(self, entry: Entry) -> OrderOutcome:
        """What is known of an entry at this moment."""
        waits: tuple[str, ...] = ()
        if entry.ticket.state is State.PREPARED and entry.task is not None:
            waits = self.book.release(entry.ticket.intent).waits_for
        return outcome_of(entry.ticket, self.final, waits_for=waits)

    async def final(self, intent_id: str) -> OrderOutcome:
        """Wait for the final outcome of an intent."""
        entry = await self.fetch(intent_id)
        if entry is None:
            raise Closed(f"intent {intent_id} was never written to the journal; nothing was sent")
        while not entry.ticket.state.is_settled:
            if entry.failure is not None:
                raise entry.failure
            await entry.change()
        return self.outcome(entry)

    def changed(self, entry: Entry) -> None:
        """Note that the ticket of an entry changed, and tell those who wait; `save` has to follow."""
        ticket = entry.ticket
        self._entries.setdefault(entry.body.id, entry)
        self._forget(self.book.update(ticket))
        entry.wake()
        if ticket.next_query_at is not None:
            self.stir.set()
        if ticket.state is not entry.told:
            entry.told = ticket.state
            self._tell(entry)
        self._count()

    def fail(self, entry: Entry, error: KeeplineError) -> None:
        """Nobody can work on an entry any more."""
        entry.failure = error
        entry.wake()

    def record(self, entry: Entry) -> Record:
        """What is to be written of an entry at this moment."""
        return record_of(
            entry.ticket,
            body=entry.body,
            prepared_at=entry.prepared_at,
            changed_at=self.clock.wall(),
        )

    async def save(self, entry: Entry) -> None:
        """Write where an entry stands; a failure is logged, kept in mind and not raised."""
        name = entry.body.id
        try:
            await self.journal.save(self.record(entry))
        except KeeplineError as error:
            self.unsaved[name] = entry
            self.stir.set()
            event(log, logging.ERROR, "Order journal failed", intent=name, error=str(error))
        else:
            self.unsaved.pop(name, None)

    # --- fills ---

    async def take_fills(self, fills: Iterable[Fill]) -> list[Fill]:
        """Write fills, and tell those that are new; each is told once, also when who asked has gone meanwhile."""
        if not (given := list(fills)):
            return []
        work = asyncio.ensure_future(self._take_fills(given))
        self._background.add(work)
        work.add_done_callback(self._background.discard)
        return await asyncio.shield(work)

    async def _take_fills(self, given: list[Fill]) -> list[Fill]:
        new = await self.journal.new_fills(given)
        for fill in new:
            FILLS.inc(self.broker.name)
            _call(self.fill_listeners, fill)
        return new

    # --- work behind the scenes ---

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for; errors are logged."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    async def drain(self) -> None:
        """Wait for what was spawned."""
        while self._background:
            await asyncio.wait(set(self._background))

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            event(log, logging.ERROR, "Order work failed", error=str(error))

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def _forget(self, names: list[str]) -> None:
        for name in names:
            self._entries.pop(name, None)

    def _tell(self, entry: Entry) -> None:
        ticket = entry.ticket
        if ticket.state not in _EVENTS:
            return
        level, sentence = _EVENTS[ticket.state]
        event(
            log,
            level,
            sentence,
            broker=self.broker.name,
            intent=ticket.intent.id,
            order=ticket.order_id or "",
            how=ticket.how.value,
            reason=ticket.reason,
        )
        kind = ticket.intent.kind.value
        OUTCOMES.inc(self.broker.name, kind, ticket.state.value, ticket.how.value)
        _call(self.outcome_listeners, self.outcome(entry))

    def _count(self) -> None:
        UNRESOLVED.set(float(self.book.unsettled_count), self.broker.name)


def _call(listeners: list[Callable[[Any], object]], value: object) -> None:
    for listener in list(listeners):
        try:
            listener(value)
        except Exception:
            log.exception("An order callback failed")
