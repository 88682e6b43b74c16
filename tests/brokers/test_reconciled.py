"""Claims about a bot between a bad stream and a bad REST interface: in the end it knows what the venue knows.

The venue is the sandbox on a real socket; its events reach the bot through a stream that loses, doubles and shuffles.
"""

import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.brokers.traders import PROJECTX, SCHWAB, Trader, trader

from keepline.brokers.orders.feeding import GatewayFeed
from keepline.brokers.projectx.messages import OrderInfo, PositionInfo, TradeInfo
from keepline.brokers.projectx.snapshot import ProjectXSnapshots
from keepline.brokers.projectx.words import fill_of, order_of, position_of
from keepline.brokers.schwab.snapshot import SchwabSnapshots
from keepline.model import Fill
from keepline.sandbox import projectx_shapes as shapes
from keepline.sandbox.book import Fill as VenueFill
from keepline.sandbox.book import Order as VenueOrder
from keepline.stream.reconciliation import Reconciliation
from keepline.stream.snapshot import Discrepancy, DiscrepancyKind
from keepline.stream.view import Change, Told, total

SEEDS = int(os.environ.get("KEEPLINE_STREAM_SEEDS", "8"))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="keepline")


class Day:
    """A bot, its view, and the venue's truth."""

    def __init__(self, bot: Trader, seed: int = 0) -> None:
        self.bot, self.chance = bot, random.Random(seed)
        client: Any = bot.broker._client
        made: Any = ProjectXSnapshots if bot.place is PROJECTX else SchwabSnapshots
        self.feed = GatewayFeed(bot.gateway)
        self.changes: list[Change] = []
        self.found: list[Discrepancy] = []
        self.it = Reconciliation(
            made(client),
            [bot.place.account],
            on_change=self._changed,
            on_discrepancy=self._differs,
            clock=bot.clock,
        )
        self.heard = 0
        self.wishes = 0

    def _changed(self, change: Change) -> None:
        self.changes.append(change)
        self.feed.changed(change)

    def _differs(self, found: Discrepancy) -> None:
        self.found.append(found)
        self.feed.differs(found)

    # --- the stream ---

    async def connect(self) -> None:
        self.deliver(share=0.0)
        self.it.lost()
        self.it.begin()
        await self.bot.get(self.it.reconcile())

    def deliver(self, share: float = 0.8) -> None:
        """Hand on what happened: each event with this chance, some twice, some in another order."""
        events = self.bot.sandbox.market.events_since(self.heard)
        if events:
            self.heard = events[-1].number
        told = [e for e in map(self._told, (e.item for e in events)) if e is not None]
        heard = [e for e in told for _ in range(self._times(share))]
        if share < 1 and self.chance.random() < 0.5:
            self.chance.shuffle(heard)
        for one in heard:
            self.it.receive(one)

    def _times(self, share: float) -> int:
        if self.chance.random() >= share:
            return 0
        return 2 if share < 1 and self.chance.random() < 0.2 else 1

    def _told(self, item: Any) -> Told | None:
        if isinstance(item, VenueOrder):
            listing = self.bot.sandbox.market.listings[item.listing]
            told = shapes.order_told(item, listing, skew=0.0)
            return order_of(msgspec.convert(told, OrderInfo, strict=False))
        if isinstance(item, VenueFill):
            return fill_of(msgspec.convert(shapes.trade_told(item, skew=0.0), TradeInfo))
        return position_of(msgspec.convert(shapes.position_told(item, skew=0.0), PositionInfo))

    # --- the bot ---

    async def trade(self) -> None:
        """One wish, whatever becomes of it."""
        self.wishes += 1
        name, size = f"w{self.wishes}", self.wishes + 1
        if self.chance.random() < 0.6:
            intent = self.bot.intent(name, size)
        else:
            intent = self.bot.limit(name, str(self.bot.place.price - 50), size)
        with contextlib.suppress(Exception):
            await self.bot.get(self.bot.gateway.place(intent))

    def trouble(self) -> None:
        put = self.chance.choice(
            [
                {"name": "5xx", "on": "query", "count": 4},
                {"name": "html", "on": "query", "status": 200, "count": 2},
                {"name": "slow", "on": "query", "delay": 3},
                {"name": "order_answer_lost"},
                {"name": "late_accept", "on": "order"},
            ]
        )
        self.bot.sandbox.fault(**put)

    async def some_time(self) -> None:
        self.bot.pin(self.bot.place.price + self.chance.choice([0, 0, -60]))
        await self.bot.pass_by(self.chance.choice([0.5, 4, 30]))
        self.bot.sandbox.clear_faults()

    def difference(self) -> str:
        market, account = self.bot.sandbox.market, self.bot.place.account
        theirs = {
            "position": market.holdings.position(account, self.bot.place.instrument),
            "fills": sorted(f.size for f in market.fills if f.account == account),
            "working": sorted(str(o.id) for o in self.bot.working if o.account == account),
        }
        size = theirs["position"].size if theirs["position"] else Decimal(0)
        ours: dict[str, Any] = {
            "position": total(f for f in self.it.view.fills.values()),
            "fills": sorted(f.quantity for f in self.it.view.fills.values()),
            "working": sorted(order.id for order in self.it.view.working()),
        }
        held = self.it.view.position(account, self.bot.place.instrument)
        ours["held"] = held.quantity if held else None
        expected = {**theirs, "position": size, "held": size}
        return "; ".join(
            f"{name}: {ours[name]} is not {expected[name]}"
            for name in ours
            if ours[name] != expected[name]
        )


@contextlib.asynccontextmanager
async def day(place: Any, journal: Path, seed: int = 0) -> AsyncIterator[Day]:
    async with trader(place, journal) as bot:
        made = Day(bot, seed)
        async with made.it:
            yield made


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_is_lost_the_view_ends_as_the_venue_is(tmp_path: Path, seed: int) -> None:
    async with day(PROJECTX, tmp_path / "orders", seed) as it:
        await it.connect()
        for _ in range(25):
            what = it.chance.choice(
                ["trade", "trade", "deliver", "deliver", "trouble", "time", "cut"]
            )
            if what == "trade":
                await it.trade()
            elif what == "deliver":
                it.deliver()
            elif what == "trouble":
                it.trouble()
            elif what == "time":
                await it.some_time()
            else:
                await it.connect()
        it.bot.sandbox.clear_faults()
        await it.bot.pass_by(60)
        await it.connect()
        await it.bot.pass_by(150)
        assert it.difference() == ""
        told = [c.value.id for c in it.changes if isinstance(c.value, Fill)]
        assert len(told) == len(set(told)) == len(it.bot.sandbox.market.fills)
        names = [(f.kind, f.id) for f in it.found if f.kind is DiscrepancyKind.MISSED_FILL]
        assert len(names) == len(set(names))
        assert it.bot.gateway.unresolved() == []
        for fill in it.it.view.fills.values():
            assert fill in await it.bot.get(it.bot.gateway.fills(fill.order_id))


@pytest.mark.parametrize("place", [PROJECTX, SCHWAB], ids=str)
async def test_with_a_stream_that_is_silent_every_fill_is_found_and_announced(
    tmp_path: Path, place: Any
) -> None:
    async with day(place, tmp_path / "orders") as it:
        await it.connect()
        for size in (1, 2, 3):
            await it.bot.want(it.bot.intent(f"w{size}", size))
            await it.bot.pass_by(70)
        assert it.difference() == ""
        kinds = [found.kind for found in it.found]
        assert kinds.count(DiscrepancyKind.MISSED_FILL) == 3
        assert DiscrepancyKind.POSITION_BREAK not in kinds
        fills = [c for c in it.changes if isinstance(c.value, Fill)]
        assert [c.value.quantity for c in fills if isinstance(c.value, Fill)] == [1, 2, 3]
        assert all(c.recovered for c in fills)


async def test_with_a_stream_that_tells_all_nothing_is_recovered_and_nothing_announced(
    tmp_path: Path,
) -> None:
    async with day(PROJECTX, tmp_path / "orders") as it:
        await it.connect()
        it.changes.clear()
        for size in (1, 2, 3):
            await it.bot.want(it.bot.intent(f"w{size}", size))
            it.deliver(share=1.0)
            await it.bot.pass_by(70)
        assert it.difference() == ""
        assert it.found == []
        assert not [c for c in it.changes if c.recovered and isinstance(c.value, Fill)]


async def test_an_order_whose_answer_was_lost_is_settled_by_the_stream_at_once(
    tmp_path: Path,
) -> None:
    async with day(PROJECTX, tmp_path / "orders") as it:
        await it.connect()
        it.bot.sandbox.fault(name="order_answer_lost")
        it.bot.sandbox.fault(name="5xx", on="query", count=1000)
        outcome = await it.bot.get(
            it.bot.gateway.place(it.bot.intent("entry", 2, deadline_seconds=1.0))
        )
        assert not outcome.is_final
        it.deliver(share=1.0)
        final = await it.bot.get(outcome.final())
        assert (final.accepted, final.how) == (True, "stream")
        it.bot.sandbox.clear_faults()
