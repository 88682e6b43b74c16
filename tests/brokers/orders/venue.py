"""A venue in memory behind a broker that loses, delays, repeats and reorders, on a clock that moves by hand.

What the venue did is the truth that tests compare with: `venue.orders`, `venue.fills`, `venue.position(...)`.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from msgspec import structs

from keepline.brokers.base import (
    Ack,
    BrokerFacts,
    Evidence,
    EvidenceQuery,
    IntentKind,
    OrderIntent,
    Source,
)
from keepline.brokers.orders.records import Decision, Record
from keepline.brokers.orders.store import OWED
from keepline.errors import Closed, OutcomeUnknown, PermanentError, StorageError, TransientError
from keepline.model import Fill, Order, OrderStatus, OrderType, Position, Side
from keepline.testing import ManualClock

TAGGED = BrokerFacts(
    longest_processing_seconds=10.0,
    tag_echoed=True,
    longest_call_seconds=20.0,
    clock_skew_seconds=5.0,
)
BY_LOOKS = structs.replace(TAGGED, tag_echoed=False, replace_makes_new_order=True)


def order_intent(name: str, quantity: int | str = 1, **more: object) -> OrderIntent:
    """A market order to buy, unless said otherwise."""
    given = {"side": Side.BUY, "type": OrderType.MARKET, "account": "A", "instrument": "MNQ"} | more
    return OrderIntent(id=name, quantity=Decimal(quantity), **given)


class Venue:
    """Orders, fills and positions, exactly as they are."""

    def __init__(self, clock: ManualClock, *, keeps_tags: bool = True) -> None:
        self.clock = clock
        self.keeps_tags = keeps_tags
        self.orders: dict[str, Order] = {}
        self.fills: list[Fill] = []
        self.listeners: list[Callable[[Order | Fill], object]] = []

    def take(self, intent: OrderIntent, *, fill: Decimal | None = None) -> Order:
        """Take an order in; a market order is filled at once, whole unless `fill` says how much."""
        number = str(len(self.orders) + 1)
        self.orders[number] = Order(
            id=number,
            account=intent.account,
            instrument=intent.instrument,
            side=intent.side or Side.SELL,
            type=intent.type or OrderType.MARKET,
            status=OrderStatus.OPEN,
            quantity=intent.quantity or Decimal(1),
            limit_price=intent.limit_price,
            stop_price=intent.stop_price,
            tag=intent.id if self.keeps_tags and intent.kind is IntentKind.PLACE else "",
            entered_at=self.clock.wall(),
        )
        self._tell(self.orders[number])
        if intent.type in (OrderType.MARKET, None):
            self.fill(number, fill or self.orders[number].quantity)
        return self.orders[number]

    def fill(self, number: str, quantity: Decimal) -> None:
        order = self.orders[number]
        filled = order.filled + quantity
        whole = filled == order.quantity
        status = OrderStatus.FILLED if whole else OrderStatus.PARTIALLY_FILLED
        self.orders[number] = structs.replace(order, filled=filled, status=status)
        fill = Fill(
            id=f"t{len(self.fills) + 1}",
            order_id=number,
            account=order.account,
            instrument=order.instrument,
            side=order.side,
            quantity=quantity,
            price=Decimal(100),
            at=self.clock.wall(),
        )
        self.fills.append(fill)
        self._tell(self.orders[number])
        self._tell(fill)

    def end(self, number: str, status: OrderStatus = OrderStatus.CANCELLED) -> None:
        """The order works no more; one that has ended already refuses."""
        if self.orders[number].status.is_final:
            raise PermanentError(f"order {number} is {self.orders[number].status.value}")
        self.orders[number] = structs.replace(self.orders[number], status=status)
        self._tell(self.orders[number])

    def change(self, number: str, **values: object) -> None:
        self.orders[number] = structs.replace(self.orders[number], **values)
        self._tell(self.orders[number])

    def flatten(self, intent: OrderIntent) -> str:
        """Close a position with a market order that carries no tag."""
        held = self.position(intent.account, intent.instrument)
        if not held:
            raise PermanentError("no such position")
        side = Side.SELL if held > 0 else Side.BUY
        return self.take(structs.replace(intent, side=side, quantity=abs(held))).id

    def position(self, account: str = "A", instrument: str = "MNQ") -> Decimal:
        own = [f for f in self.fills if (f.account, f.instrument) == (account, instrument)]
        return sum((f.side.sign * f.quantity for f in own), Decimal(0))

    def of(self, tag: str) -> list[Order]:
        return [order for order in self.orders.values() if order.tag == tag]

    def shown(self, query: EvidenceQuery) -> Evidence:
        """Everything, as it is now."""
        orders = [o for o in self.orders.values() if o.account == query.account]
        wanted = [o for o in orders if o.entered_at >= query.since or o.id in query.order_ids]
        names = {fill.instrument for fill in self.fills}
        held = [(name, self.position(query.account, name)) for name in sorted(names)]
        return Evidence(
            open_orders=tuple(o for o in orders if not o.status.is_final),
            history=tuple(wanted),
            fills=tuple(
                f for f in self.fills if f.account == query.account and f.at >= query.since
            ),
            positions=tuple(
                Position(account=query.account, instrument=name, quantity=quantity)
                for name, quantity in held
                if quantity
            ),
        )

    def _tell(self, event: Order | Fill) -> None:
        for listener in list(self.listeners):
            listener(event)


class PlainBroker:
    """A broker whose next answers a test writes down: exceptions are raised, functions are called with the intent."""

    def __init__(self, venue: Venue, facts: BrokerFacts = TAGGED, *, name: str = "memory") -> None:
        self.venue, self.facts, self.name = venue, facts, name
        self.script: list[object] = []
        self.blind: dict[Source, str] = {}
        self.sent: list[OrderIntent] = []
        self.queries: list[EvidenceQuery] = []
        self.refuses: Exception | None = None

    def check(self, intent: OrderIntent) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def place(self, intent: OrderIntent) -> Ack:
        return await self._answer(intent, lambda: self.venue.take(intent).id)

    async def modify(self, intent: OrderIntent) -> Ack:
        def change() -> str:
            prices = {"limit_price": intent.limit_price, "stop_price": intent.stop_price}
            given = {name: value for name, value in prices.items() if value is not None}
            self.venue.change(intent.target_order_id, **given)
            return intent.target_order_id

        return await self._answer(intent, change)

    async def cancel(self, intent: OrderIntent) -> Ack:
        return await self._answer(intent, lambda: self.venue.end(intent.target_order_id))

    async def close(self, intent: OrderIntent) -> Ack:
        return await self._answer(intent, lambda: self.venue.flatten(intent))

    async def partial_close(self, intent: OrderIntent) -> Ack:
        return await self._answer(intent, lambda: self.venue.take(intent).id)

    async def evidence(self, query: EvidenceQuery) -> Evidence:
        self.queries.append(query)
        seen = self.venue.shown(query)
        hidden = {source.value: () for source in self.blind}
        return structs.replace(seen, failed=dict(self.blind), **hidden)

    async def _answer(self, intent: OrderIntent, do: Callable[[], str | None]) -> Ack:
        self.sent.append(intent)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, BaseException):
            raise step
        if callable(step):
            step = step(do)
            if asyncio.iscoroutine(step):
                step = await step
            return step if isinstance(step, Ack) else Ack(step)
        return Ack(do())


def accepted_but_lost(do: Callable[[], str | None]) -> Ack:
    """The broker did it, and the answer got lost."""
    do()
    raise OutcomeUnknown("the connection was lost", category="network")


LOST = OutcomeUnknown("no answer within 30 s", category="timeout")


@dataclass
class Disk:
    """What survives a crash."""

    records: dict[str, Record] = field(default_factory=dict)
    fills: dict[tuple[str, str], Fill] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)


class MemoryJournal:
    """A journal on a `Disk`: each entry takes its time to become durable, and a crash cuts that short.

    Args:
        disk: what survives.
        pause: called at each step, before and after an entry is durable; a crash raises there.
    """

    def __init__(self, disk: Disk, pause: Callable[[str], object] | None = None) -> None:
        self.disk = disk
        self.pause = pause or (lambda step: None)
        self.open = False
        self.full = False

    async def start(self) -> None:
        self.open = True

    async def begin(self, record: Record) -> Record | None:
        await self._step("before begin")
        known = self.disk.records.get(record.intent.id)
        if known is None:
            self._write()
            self.disk.records[record.intent.id] = record
        await self._step("after begin")
        return known

    async def save(self, record: Record) -> None:
        await self._step("before save")
        self._write()
        self.disk.records[record.intent.id] = record
        await self._step("after save")

    async def find(self, intent_id: str) -> Record | None:
        await self._step("find")
        return self.disk.records.get(intent_id)

    async def restore(self, since: float) -> list[Record]:
        return [
            record
            for record in self.disk.records.values()
            if record.state.value in OWED or record.changed_at.timestamp() >= since
        ]

    async def oldest_owed(self) -> float | None:
        owed = [r.prepared_at for r in self.disk.records.values() if r.state.value in OWED]
        return min(owed).timestamp() if owed else None

    async def new_fills(self, fills: Sequence[Fill]) -> list[Fill]:
        await self._step("before fills")
        new = [fill for fill in fills if (fill.account, fill.id) not in self.disk.fills]
        self.disk.fills |= {(fill.account, fill.id): fill for fill in new}
        await self._step("after fills")
        return list({fill.id: fill for fill in new}.values())

    async def fills(self, order_id: str) -> list[Fill]:
        return [fill for fill in self.disk.fills.values() if fill.order_id == order_id]

    async def decisions(self) -> list[Decision]:
        return list(self.disk.decisions)

    async def taken_up(self, numbers: Sequence[int]) -> None:
        self.disk.decisions = [d for d in self.disk.decisions if d.number not in numbers]

    async def mark(self, name: str, value: float | None = None) -> float | None:
        if value is not None:
            self.disk.marks[name] = value
        return self.disk.marks.get(name)

    async def close(self) -> None:
        self.open = False

    def _write(self) -> None:
        if self.full:
            raise StorageError("the order journal cannot be used: the disk is full")

    async def _step(self, name: str) -> None:
        if not self.open:
            raise Closed("the journal is closed")
        self.pause(name)
        await asyncio.sleep(0)
        if not self.open:
            raise Closed("the journal is closed")


FATES = (
    *("fine", "fine", "no id", "slow", "lost there", "lost back", "late", "late", "hangs"),
    *("refused", "not sent", "surprise"),
)


def answer_into(arrived: "asyncio.Future[str | None]", do: Callable[[], str | None]) -> None:
    """Do what was asked when it arrives; a refusal travels back as well."""
    try:
        arrived.set_result(do())
    except PermanentError as error:
        arrived.set_exception(error)
        arrived.exception()  # the client may be dead by now


class ChaoticBroker(PlainBroker):
    """A broker whose answers, sources and events get lost, late, doubled and out of order, as its seed decides.

    Args:
        venue: where the orders are.
        facts: what it promises; it keeps within `longest_processing_seconds`.
        chance: the seeded dice.
        pause: called at each step; a crash of the client raises there.
    """

    def __init__(
        self,
        venue: Venue,
        facts: BrokerFacts,
        chance: random.Random,
        pause: Callable[[str], object],
    ) -> None:
        super().__init__(venue, facts)
        self.chance, self.pause = chance, pause
        self.clock = venue.clock
        self.behind_the_scenes: set[asyncio.Task[None]] = set()

    async def _answer(self, intent: OrderIntent, do: Callable[[], str | None]) -> Ack:
        self.pause("before the request")
        self.sent.append(intent)
        fate = self.chance.choice(FATES)
        match fate:
            case "lost there":
                await self._nap(3)
                raise OutcomeUnknown("the connection was lost", category="network")
            case "refused":
                raise PermanentError("not enough margin")
            case "not sent":
                raise TransientError("no connection", category="network", sent=False)
            case "late":
                self._later(self.chance.uniform(0, self.facts.longest_processing_seconds), do)
                raise OutcomeUnknown("503, and yet it is at work", category="server", status=503)
            case "surprise":
                self._later(0, do)
                raise RuntimeError("an answer that nobody can read")
        longest = {"hangs": self.facts.longest_processing_seconds, "slow": 3}.get(fate, 0.2)
        # from here on the request is the network's: it arrives, whatever becomes of the client
        arrived: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._later(self.chance.uniform(0, longest), lambda: answer_into(arrived, do))
        number = await asyncio.shield(arrived)
        self.pause("after the request")
        await self._nap(10_000 if fate == "hangs" else 0.2)
        if fate == "lost back":
            raise OutcomeUnknown("the connection was lost", category="network")
        return Ack(None if fate == "no id" else number)

    async def evidence(self, query: EvidenceQuery) -> Evidence:
        self.pause("before the look")
        parts: dict[str, object] = {}
        failed: dict[Source, str] = {}
        for source in Source:  # each is read at its own moment
            await self._nap(0.5)
            if self.chance.random() < 0.15:
                failed[source] = "502"
            else:
                parts[source.value] = getattr(self.venue.shown(query), source.value)
        if self.chance.random() < 0.05:
            raise TransientError("no connection", category="network", sent=False)
        self.pause("after the look")
        return Evidence(failed=failed, **parts)

    def stream(self, hear: Callable[[Order | Fill], object]) -> None:
        """Send the venue's events to a client: some never, some late, some twice."""

        def send(event: Order | Fill) -> None:
            fate = self.chance.random()
            for _ in range(0 if fate < 0.4 else 2 if fate < 0.5 else 1):
                self._later(self.chance.choice((0, 0, 0.3, 2, 15)), lambda: hear(event))

        self.venue.listeners[:] = [send]

    def _later(self, seconds: float, do: Callable[[], object]) -> None:
        async def work() -> None:
            await self.clock.sleep(seconds)
            with contextlib.suppress(PermanentError):
                do()

        task = asyncio.create_task(work(), name="venue")
        self.behind_the_scenes.add(task)
        task.add_done_callback(self.behind_the_scenes.discard)

    async def _nap(self, most: float) -> None:
        await self.clock.sleep(self.chance.uniform(0, most))
