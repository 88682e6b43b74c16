"""Public helpers for tests of programs that use Keepline: a clock that moves by hand, the contract of brokers.

Nothing in the package imports this module.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from keepline.brokers.base import (
    Broker,
    EvidenceQuery,
    IntentKind,
    OrderIntent,
    check_intent,
)
from keepline.errors import ConfigError, PermanentError
from keepline.model import Order, OrderStatus

__all__ = ["BrokerContract", "ManualClock"]


class ManualClock:
    """A clock that stands still until you move it: hours of token life in microseconds.

    Wall and boottime move together with `advance`; `jump_wall` moves the wall alone, as a time server does.

    Example:
        >>> clock = ManualClock()
        >>> clock.advance(60)
        >>> clock.boottime()
        60.0
    """

    def __init__(
        self, *, wall: datetime = datetime(2026, 1, 5, 14, 30, tzinfo=UTC), chance: float = 0.5
    ) -> None:
        self._now = 0.0
        self._wall = wall
        self._chance = chance
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._someone_sleeps = asyncio.Event()
        self.boottime: Callable[[], float] = lambda: self._now

    def wall(self) -> datetime:
        return self._wall

    def chance(self) -> float:
        return self._chance

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return await asyncio.sleep(0)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        self._someone_sleeps.set()
        return await future

    def pause(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move both clocks forward and wake whoever is due; they run when the loop runs next.

        Raises:
            ValueError: backwards, which only the wall clock can go.
        """
        if not seconds >= 0:
            raise ValueError(f"boottime only moves forward, not by {seconds!r}: see jump_wall()")
        self._now += seconds
        self._wall += timedelta(seconds=seconds)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    def jump_wall(self, seconds: float) -> None:
        """Move the wall clock alone, forward or (negative) back."""
        self._wall += timedelta(seconds=seconds)

    @property
    def next_wake(self) -> float | None:
        """Seconds until the first sleeper is due, None when nobody sleeps."""
        self._forget_cancelled()
        return self._sleepers[0][0] - self._now if self._sleepers else None

    async def until_asleep(self) -> None:
        """Return once someone sleeps on this clock: the code under test has nothing to do before that time."""
        while self.next_wake is None:
            self._someone_sleeps.clear()
            await self._someone_sleeps.wait()

    async def run_until(self, condition: Callable[[], object], *, limit: float = 864_000.0) -> None:
        """Let time run, sleeper by sleeper, until `condition()` holds.

        Raises:
            TimeoutError: `limit` seconds of this clock went by first.
        """
        end = self._now + limit
        while not condition():
            await self._let_others_run(condition)
            if condition():
                return
            await self.until_asleep()
            step = self.next_wake or 0.0
            if self._now + step > end:
                raise TimeoutError(
                    f"the condition did not hold within {limit:g} s of the manual clock"
                )
            self.advance(step)

    async def _let_others_run(self, condition: Callable[[], object]) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
            if condition():
                return

    def _forget_cancelled(self) -> None:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)

    def __repr__(self) -> str:
        return f"<ManualClock {self._now:g} s, wall {self._wall:%Y-%m-%d %H:%M:%S}, {len(self._sleepers)} asleep>"


class BrokerContract:
    """What every broker behind the order gateway has to keep, as tests: subclass it in a test module of yours.

    The subclass gives two fixtures: `broker`, an adapter that is connected to a venue for tests, and `resting`, an
    intent to place a limit order that the venue takes and does not fill. Asynchronous tests need a plugin
    (`pytest-asyncio`).

    Example:
        >>> class TestMine(BrokerContract):
        ...     @pytest.fixture
        ...     def resting(self) -> OrderIntent: ...
    """

    def test_its_facts_make_sense(self, broker: Broker) -> None:
        """Numbers with which the gateway can settle an unknown outcome."""
        facts = broker.facts
        assert broker.name
        assert facts.longest_processing_seconds > 0
        assert facts.longest_call_seconds > 0
        assert facts.clock_skew_seconds >= 0
        assert facts.absences >= 1
        assert facts.absence_spacing_seconds > 0

    def test_a_good_intent_passes_the_check(self, broker: Broker, resting: OrderIntent) -> None:
        """The check lets through what the venue takes."""
        check_intent(resting)
        broker.check(resting)

    def test_an_intent_that_it_cannot_send_is_refused_by_its_field(
        self, broker: Broker, resting: OrderIntent
    ) -> None:
        """An order id that could lead elsewhere is a `ConfigError` that names the field, before anything is sent."""
        try:
            broker.check(self._cancel(resting, "../1"))
        except ConfigError as error:
            assert error.key == "target_order_id", str(error)  # noqa: PT017 - no pytest here
        else:
            raise AssertionError("the check lets an order id through that is none")

    async def test_what_was_placed_is_seen(self, broker: Broker, resting: OrderIntent) -> None:
        """The order is in the evidence, as it was asked for, with its tag where tags come back."""
        number = await self._placed(broker, resting)
        order = await self._seen(broker, resting, number)
        assert order.status is not OrderStatus.UNKNOWN
        assert not order.status.is_final, f"{order.status} {order.raw_status}"
        for name in ("account", "instrument", "side", "type", "quantity", "limit_price"):
            assert getattr(order, name) == getattr(resting, name), name
        assert order.entered_at.tzinfo is not None
        assert (order.tag == resting.id) == broker.facts.tag_echoed

    async def test_what_was_changed_is_seen(self, broker: Broker, resting: OrderIntent) -> None:
        """A change shows in the same order, or in a new one while the old one is cancelled."""
        number = await self._placed(broker, resting)
        assert resting.quantity is not None
        change = OrderIntent(
            id=f"{resting.id}.m",
            kind=IntentKind.MODIFY,
            account=resting.account,
            instrument=resting.instrument,
            target_order_id=number,
            quantity=resting.quantity + 1,
            limit_price=resting.limit_price,
        )
        broker.check(change)
        new = (await broker.modify(change)).order_id or number
        assert (new != number) == broker.facts.replace_makes_new_order
        assert (await self._seen(broker, resting, new)).quantity == resting.quantity + 1
        if new != number:
            old = await self._seen(broker, resting, number)
            assert old.status is OrderStatus.CANCELLED

    async def test_what_was_cancelled_is_seen_by_its_id(
        self, broker: Broker, resting: OrderIntent
    ) -> None:
        """A cancelled order is still shown, as cancelled."""
        number = await self._placed(broker, resting)
        await broker.cancel(self._cancel(resting, number))
        assert (await self._seen(broker, resting, number)).status is OrderStatus.CANCELLED

    async def test_a_refusal_is_permanent(self, broker: Broker, resting: OrderIntent) -> None:
        """To cancel an order that has ended is refused with a proof that nothing was changed."""
        number = await self._placed(broker, resting)
        await broker.cancel(self._cancel(resting, number))
        try:
            await broker.cancel(self._cancel(resting, number))
        except PermanentError:
            return
        raise AssertionError("an order that has ended can be cancelled again")

    async def test_an_account_without_orders_shows_none(
        self, broker: Broker, resting: OrderIntent
    ) -> None:
        """A view of a future window is whole and empty: nothing failed, nothing is invented."""
        number = await self._placed(broker, resting)
        ahead = (await self._seen(broker, resting, number)).entered_at + timedelta(seconds=1)
        seen = await broker.evidence(EvidenceQuery(account=resting.account, since=ahead))
        assert not seen.failed
        assert [order.id for order in seen.history if order.entered_at >= ahead] == []
        assert seen.fills == ()

    @staticmethod
    def _cancel(resting: OrderIntent, number: str) -> OrderIntent:
        return OrderIntent(
            id=f"{resting.id}.c",
            kind=IntentKind.CANCEL,
            account=resting.account,
            instrument=resting.instrument,
            target_order_id=number,
        )

    @staticmethod
    async def _placed(broker: Broker, resting: OrderIntent) -> str:
        ack = await broker.place(resting)
        assert ack.order_id, "an answer without an order id"
        return ack.order_id

    @staticmethod
    async def _seen(broker: Broker, resting: OrderIntent, number: str) -> Order:
        since = datetime.now(UTC) - timedelta(days=1)
        query = EvidenceQuery(account=resting.account, since=since, order_ids=(number,))
        seen = await broker.evidence(query)
        assert not seen.failed, f"{ {s.value: why for s, why in seen.failed.items()} }"
        found = {order.id: order for order in (*seen.open_orders, *seen.history)}
        assert number in found, f"order {number} is in no source"
        return found[number]
