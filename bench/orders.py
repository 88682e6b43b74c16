"""What an order costs beside its HTTP call: journaled before it is sent, with many callers and with one.

The broker answers at once, so the figures are the gateway's and the disk's: each order is two synced entries (sent,
answered), of which a caller waits for the first.
"""

import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

from bench import Row
from keepline.brokers.base import Ack, BrokerFacts, Evidence, EvidenceQuery, OrderIntent
from keepline.brokers.orders import OrderGateway
from keepline.brokers.orders.journal import COMMITS, WRITES
from keepline.model import OrderType, Side


class Instant:
    """A broker whose answer is there already."""

    name = "bench"
    facts = BrokerFacts(longest_processing_seconds=10.0, tag_echoed=True)

    def __init__(self) -> None:
        self.orders = 0

    def check(self, intent: OrderIntent) -> None:
        return

    async def place(self, intent: OrderIntent) -> Ack:
        self.orders += 1
        return Ack(str(self.orders))

    modify = cancel = close = partial_close = place

    async def evidence(self, query: EvidenceQuery) -> Evidence:
        return Evidence()


def intent(name: str) -> OrderIntent:
    return OrderIntent(
        id=name,
        account="1",
        instrument="CON.F.US.MNQ.U26",
        side=Side.BUY,
        quantity=Decimal(1),
        type=OrderType.MARKET,
    )


@asynccontextmanager
async def gateway() -> AsyncIterator[OrderGateway]:
    with tempfile.TemporaryDirectory() as directory:
        async with OrderGateway(Instant(), Path(directory) / "bench.orders") as running:
            yield running


async def many(count: int) -> tuple[float, float]:
    """Orders a second from that many concurrent callers, and entries for each sync of the disk."""
    commits, writes = COMMITS.value(), WRITES.value()
    async with gateway() as running:
        start = time.perf_counter()
        outcomes = await asyncio.gather(*(running.place(intent(f"m{n}")) for n in range(count)))
        seconds = time.perf_counter() - start
        assert all(outcome.accepted for outcome in outcomes)
    return count / seconds, (WRITES.value() - writes) / (COMMITS.value() - commits)


async def one(count: int) -> list[float]:
    """Milliseconds of each of so many orders, one after the other, shortest first."""
    times = []
    async with gateway() as running:
        for number in range(count):
            start = time.perf_counter()
            await running.place(intent(f"o{number}"))
            times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)


async def restart(count: int) -> float:
    """Seconds until a gateway is ready on a journal of so many orders."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.orders"
        async with OrderGateway(Instant(), path) as running:
            await asyncio.gather(*(running.place(intent(f"r{n}")) for n in range(count)))
        start = time.perf_counter()
        async with OrderGateway(Instant(), path):
            return time.perf_counter() - start


def run(quick: bool) -> list[Row]:
    """The figures of the order gateway."""
    logging.getLogger("keepline.orders").setLevel(logging.WARNING)
    count = 2_000 if quick else 10_000
    rates = [asyncio.run(many(count)) for _ in range(1 if quick else 3)]
    times = asyncio.run(one(200 if quick else 1_000))
    return [
        Row(
            "journaled orders, many callers",
            max(rate for rate, _ in rates),
            "/s",
            1_000,
            at_least=True,
        ),
        Row("entries for each sync of the disk", max(group for _, group in rates), "x"),
        Row("one journaled order, one caller, median", statistics.median(times), "ms"),
        Row("one journaled order, one caller, 99 %", times[int(len(times) * 0.99)], "ms"),
        Row(f"ready again on a journal of {count} orders", asyncio.run(restart(count)), "s"),
    ]
