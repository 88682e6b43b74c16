"""Lost answers, events and sources, a client that is killed at any step: nothing is doubled, nothing is lost.

Each seed is a whole life: some orders that a bot wants, a broker that misbehaves, crashes of the bot's process at
random steps, restarts from what was on the disk. KEEPLINE_FUZZ_SEEDS says how many lives; a failing one names its seed.
"""

import asyncio
import itertools
import logging
import os
import random
from collections import Counter
from decimal import Decimal

import pytest
from tests.brokers.orders.venue import (
    BY_LOOKS,
    TAGGED,
    ChaoticBroker,
    Disk,
    MemoryJournal,
    Venue,
    order_intent,
)

from keepline.brokers.base import BrokerFacts, IntentKind, OrderIntent
from keepline.brokers.orders import OrderGateway, OrderOutcome, OutcomeState
from keepline.model import Fill, Order, OrderType, Side
from keepline.testing import ManualClock

SEEDS = int(os.environ.get("KEEPLINE_FUZZ_SEEDS", "400"))


class Killed(BaseException):
    """The process is gone."""


class Life:
    """One seed: what a bot wants, and all that happens to it."""

    def __init__(self, seed: int, facts: BrokerFacts) -> None:
        self.chance = random.Random(f"{seed} {facts.tag_echoed}")
        self.clock = ManualClock()
        self.venue = Venue(self.clock, keeps_tags=facts.tag_echoed)
        self.facts = facts
        self.disk = Disk()
        self.steps = 0
        self.kill_at = {
            self.chance.randrange(2, 120) for _ in range(self.chance.choice((0, 1, 1, 3)))
        }
        self.dead = False
        self.heard: Counter[str] = Counter()
        self.wanted = [self._wish(number) for number in range(self.chance.randrange(1, 5))]
        self.withdrawn = {
            wish.id for wish in self.wanted if wish.limit_price and self.chance.random() < 0.4
        }
        self.closes = self.chance.random() < 0.4

    def _wish(self, number: int) -> OrderIntent:
        market = self.chance.random() < 0.6
        return OrderIntent(
            id=f"w{number}",
            account="A",
            instrument="MNQ",
            side=self.chance.choice((Side.BUY, Side.SELL)),
            quantity=Decimal(2**number),  # each its own, so that looks can tell them apart
            type=OrderType.MARKET if market else OrderType.LIMIT,
            limit_price=None if market else Decimal(100 + number),
        )

    def pause(self, step: str) -> None:
        """Each step of the client comes by here."""
        if self.dead:
            raise Killed
        self.steps += 1
        if self.steps in self.kill_at:
            self.dead = True
            raise Killed

    # --- the client ---

    async def live(self) -> None:
        """Run the client, again after each crash, until it has what it wants."""
        while True:
            self.dead = False
            before = asyncio.all_tasks()
            client = asyncio.create_task(self._client())
            await self.clock.run_until(
                lambda client=client: client.done() or self.dead, limit=20_000
            )
            if not self.dead:
                return client.result()
            await self._bury(before)

    async def _bury(self, before: set["asyncio.Task[object]"]) -> None:
        self.venue.listeners.clear()
        self.journal.open = False
        own = {t for t in asyncio.all_tasks() - before if t.get_name() != "venue"}
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)

    async def _client(self) -> None:
        journal = self.journal = MemoryJournal(self.disk, self.pause)
        broker = ChaoticBroker(self.venue, self.facts, self.chance, self.pause)
        gateway = OrderGateway(broker, journal, clock=self.clock)
        await gateway.start()
        gateway.subscribe_fills(lambda fill: self.heard.update([fill.id]))

        def hear(event: Order | Fill) -> None:
            if not self.dead and journal.open:
                gateway.observe(event)

        broker.stream(hear)
        wishes = [self._want(gateway, wish) for wish in self.wanted]
        await asyncio.gather(*wishes, self._in_and_out(gateway))
        await self._everything_caught_up(gateway)
        await gateway.stop()

    async def _want(self, gateway: OrderGateway, wish: OrderIntent) -> None:
        """Go on until the order is there: the same ids in the same order after each restart."""
        await self.clock.sleep(self.chance.uniform(0, 5))
        attempt = 0
        while True:
            attempt += 1
            outcome = await self._place(gateway, wish, f"{wish.id}.{attempt}")
            if outcome.accepted and wish.id in self.withdrawn:
                return await self._withdraw(gateway, outcome.intent_id)
            if outcome.accepted:
                return None
            assert outcome.state in (OutcomeState.REFUSED, OutcomeState.PRESUMED_ABSENT), outcome

    async def _withdraw(self, gateway: OrderGateway, placed: str) -> None:
        """Cancel it, until it is cancelled."""
        for attempt in itertools.count(1):
            cancel = OrderIntent(
                id=f"{placed}.c{attempt}",
                kind=IntentKind.CANCEL,
                account="A",
                depends_on=(placed,),
                deadline_seconds=self.chance.choice((0.1, 60.0)),
            )
            outcome = await (await gateway.cancel(cancel)).final()
            if outcome.accepted or "cancelled" in outcome.reason:
                return

    async def _in_and_out(self, gateway: OrderGateway) -> None:
        """Into a position of another instrument, and out of it by closing it."""
        if not self.closes:
            return
        entry = order_intent("in", 64, instrument="ES")
        for attempt in itertools.count(1):
            entered = await self._place(gateway, entry, f"in.{attempt}")
            if entered.accepted:
                break
        for attempt in itertools.count(1):
            out = OrderIntent(
                id=f"out.{attempt}",
                kind=IntentKind.CLOSE,
                account="A",
                instrument="ES",
                depends_on=(entered.intent_id,),
                deadline_seconds=self.chance.choice((0.1, 60.0)),
            )
            outcome = await (await gateway.close(out)).final()
            if outcome.accepted or "no such position" in outcome.reason:
                return

    async def _place(self, gateway: OrderGateway, wish: OrderIntent, name: str) -> OrderOutcome:
        intent = OrderIntent(
            id=name,
            account=wish.account,
            instrument=wish.instrument,
            side=wish.side,
            quantity=wish.quantity,
            type=wish.type,
            limit_price=wish.limit_price,
            deadline_seconds=self.chance.choice((0.1, 5.0, 60.0)),
        )
        calls = [gateway.place(intent) for _ in range(self.chance.choice((1, 1, 3)))]
        outcomes = await asyncio.gather(*calls)
        finals = {(o.state, o.order_id) for o in [await outcome.final() for outcome in outcomes]}
        assert len({state for state, _ in finals}) == 1, finals
        return await outcomes[0].final()

    async def _everything_caught_up(self, gateway: OrderGateway) -> None:
        for order in list(self.venue.orders.values()):
            if (
                not order.status.is_final
            ):  # resting orders are filled at last, in two pieces where they can be
                half = order.quantity // 2
                for piece in (half, order.quantity - half):
                    if piece:
                        self.venue.fill(order.id, piece)
        while (await gateway.catch_up("A")).failed:
            await self.clock.sleep(1)

    # --- the verdict ---

    def judge(self) -> None:
        stays = [wish for wish in self.wanted if wish.id not in self.withdrawn]
        wanted = sum((w.side.sign * w.quantity for w in stays if w.side), Decimal(0))
        assert self.venue.position() == wanted, "final position equals intent"
        assert self.venue.position(instrument="ES") == 0, "what was closed is flat"
        made = Counter((o.side, o.quantity) for o in self.venue.orders.values())
        asked = Counter((w.side, w.quantity) for w in self.wanted)
        asked.update([(Side.BUY, Decimal(64)), (Side.SELL, Decimal(64))] * self.closes)
        assert made == asked, "no order is doubled, none is missing"
        known = {fill.id for fill in self.disk.fills.values()}
        assert known == {fill.id for fill in self.venue.fills}, "no fill is lost"
        assert not self.heard or max(self.heard.values()) == 1, "each fill is told once"


def live_through(seed: int, facts: BrokerFacts) -> None:
    async def life() -> None:
        one = Life(seed, facts)
        await one.live()
        one.judge()

    asyncio.run(life())


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="keepline.orders")


@pytest.mark.parametrize("facts", [TAGGED, BY_LOOKS], ids=["by tag", "by looks"])
@pytest.mark.timeout(600)
def test_position_equals_intent_whatever_is_lost_and_whenever_the_client_dies(
    facts: BrokerFacts,
) -> None:
    for seed in range(SEEDS):
        try:
            live_through(seed, facts)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
