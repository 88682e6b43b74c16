"""A bot's whole side against the sandbox: client, adapter, gateway, journal, on a clock that moves when all is quiet.

Venue and bot share one clock. It stands still while anything is under way on a socket or on the disk, and then goes on
to the next thing that is due, so eight seconds, or a minute without an answer, take no time.
"""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from keepline.brokers.base import IntentKind, OrderIntent
from keepline.brokers.orders import OrderGateway, OrderJournal, OrderOutcome, OutcomeState
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.trading import ProjectXTrading
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.trading import SchwabTrading
from keepline.http import HttpSession
from keepline.model import OrderType, Side
from keepline.sandbox.book import Order, Status
from keepline.sandbox.server import SandboxServer
from keepline.testing import ManualClock

__all__ = ["PROJECTX", "SCHWAB", "Place", "Trader", "trader"]

T = TypeVar("T")
LONG = 100_000_000.0


@dataclass(frozen=True)
class Place:
    """Where a bot trades."""

    broker: str
    account: str
    instrument: str
    price: Decimal

    def __str__(self) -> str:
        return self.broker


PROJECTX = Place("projectx", "1001", "CON.F.US.MES.Z26", Decimal(6000))
SCHWAB = Place("schwab", "10000001", "AAPL", Decimal(200))


class Quiet:
    """Knows whether anything is under way beside the event loop."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._under_way = 0
        self._changed = asyncio.Event()
        self.boottime, self.wall, self.chance = clock.boottime, clock.wall, clock.chance

    def watch(self, thing: Any) -> Any:
        """The same thing, whose coroutines count as under way."""
        return _Watched(thing, self)

    async def sleep(self, seconds: float) -> None:
        """A sleep of the venue: whoever waits for its answer waits for the clock."""
        async with self.counted(-1):
            await self._clock.sleep(seconds)

    def pause(self, seconds: float) -> None:
        self._clock.pause(seconds)

    @contextlib.asynccontextmanager
    async def counted(self, step: int = 1) -> AsyncIterator[None]:
        self._count(step)
        try:
            yield
        finally:
            self._count(-step)

    async def settle(self) -> None:
        """Return when nothing happens any more before the clock moves."""
        while True:
            for _ in range(30):
                await asyncio.sleep(0)
            if self._under_way <= 0:
                return
            self._changed.clear()
            await self._changed.wait()

    def _count(self, step: int) -> None:
        self._under_way += step
        self._changed.set()


class _Watched:
    def __init__(self, thing: Any, quiet: Quiet) -> None:
        self._thing, self._quiet = thing, quiet

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if not inspect.iscoroutinefunction(value):
            return value

        async def counted(*args: Any, **kwargs: Any) -> Any:
            async with self._quiet.counted():
                return await value(*args, **kwargs)

        return counted


class Trader:
    """The bot, and the venue's truth beside it."""

    def __init__(
        self, place: Place, sandbox: SandboxServer, clock: ManualClock, quiet: Quiet
    ) -> None:
        self.place, self.sandbox, self.clock, self.quiet = place, sandbox, clock, quiet
        self.broker: Any
        self.gateway: OrderGateway
        self._open: contextlib.AsyncExitStack

    # --- life ---

    async def start(self, journal: Path) -> None:
        """A fresh process of the bot on this journal."""
        self._open = contextlib.AsyncExitStack()
        http = await self._open.enter_async_context(HttpSession())
        token = self.sandbox.issue().access_token

        async def tokens() -> str:
            return token

        given: Any = {"http": self.quiet.watch(http), "clock": self.clock}
        if self.place is PROJECTX:
            self.broker = ProjectXTrading(
                ProjectXClient(tokens, base_url=self.sandbox.url, **given)
            )
        else:
            self.broker = SchwabTrading(SchwabClient(tokens, base_url=self.sandbox.url, **given))
        book = self.quiet.watch(OrderJournal(journal))
        self.gateway = OrderGateway(self.broker, book, clock=self.clock)
        await self._open.enter_async_context(self.gateway)
        await self.get(
            self.gateway.catch_up(self.place.account)
        )  # Schwab's account hash is known from now on

    async def stop(self) -> None:
        await self._open.aclose()

    async def until(self, condition: Callable[[], object], *, limit: float = 1800.0) -> None:
        """Let time run until the condition holds."""
        end = self.clock.boottime() + limit
        while True:
            await self.quiet.settle()
            if condition():
                return
            if self.clock.boottime() > end:
                raise TimeoutError(f"not within {limit:g} s of the venue's time")
            while self.clock.next_wake is None:  # some turns of the loop may still be missing
                await asyncio.sleep(0)
                if condition():
                    return
            self.clock.advance(min(self.clock.next_wake or 0.0, 1.0))

    async def get(self, work: Awaitable[T]) -> T:
        """Let time run until the work is done."""
        task = asyncio.ensure_future(work)
        await self.until(task.done)
        return task.result()

    async def pass_by(self, seconds: float) -> None:
        """Let so much time run."""
        await self.get(self.clock.sleep(seconds))

    # --- wishes ---

    def intent(self, name: str, quantity: int | None = 1, **more: Any) -> OrderIntent:
        """A market order to buy, unless said otherwise."""
        kind = more.get("kind", IntentKind.PLACE)
        given: dict[str, Any] = {"account": self.place.account, "instrument": self.place.instrument}
        if kind is IntentKind.PLACE:
            given |= {"side": Side.BUY, "type": OrderType.MARKET}
        if quantity is not None:
            given["quantity"] = Decimal(quantity)
        return OrderIntent(id=name, **given | more)

    def limit(self, name: str, price: str, quantity: int = 1, **more: Any) -> OrderIntent:
        return self.intent(name, quantity, type=OrderType.LIMIT, limit_price=Decimal(price), **more)

    async def do(self, intent: OrderIntent) -> OrderOutcome:
        """Ask once and wait for the final word."""
        outcome = await self.get(getattr(self.gateway, intent.kind.value)(intent))
        return await self.get(outcome.final())

    async def want(self, intent: OrderIntent) -> OrderOutcome:
        """Ask until it is there: a new id after each proof or presumption that it is not."""
        for attempt in range(40):
            outcome = await self.do(replace(intent, id=f"{intent.id}.{attempt}"))
            if outcome.accepted:
                return outcome
            assert outcome.state in (OutcomeState.REFUSED, OutcomeState.PRESUMED_ABSENT), outcome
            await self.pass_by(5)
        raise AssertionError(f"{intent.id} was never accepted: {outcome}")

    # --- truth ---

    @property
    def orders(self) -> list[Order]:
        """What the venue took, without what it rejected."""
        return [o for o in self.sandbox.market.orders if o.status is not Status.REJECTED]

    @property
    def working(self) -> list[Order]:
        return [order for order in self.orders if not order.status.is_over]

    @property
    def held(self) -> Decimal:
        position = self.sandbox.market.holdings.position(self.place.account, self.place.instrument)
        return position.size if position else Decimal(0)

    def pin(self, price: Decimal | None = None) -> None:
        """Let the market stand still at a price."""
        now = self.clock.wall().timestamp()
        self.sandbox.market.pin(self.place.instrument, price or self.place.price, now=now)

    async def hold(self, wanted: int, orders: int) -> None:
        """Position equals intent, nothing is doubled, and it stays so; nothing is left open."""
        await self.pass_by(120)
        assert self.held == wanted
        assert len(self.orders) == orders, self.orders
        assert self.gateway.unresolved() == []


@contextlib.asynccontextmanager
async def trader(
    place: Place, journal: Path, *, wall: datetime | None = None, start: bool = True
) -> AsyncIterator[Trader]:
    """A bot and its venue."""
    clock = ManualClock() if wall is None else ManualClock(wall=wall)
    quiet = Quiet(clock)
    async with SandboxServer(clock=quiet, access_lifetime=LONG) as sandbox:
        bot = Trader(place, sandbox, clock, quiet)
        bot.pin()
        if start:
            await bot.start(journal)
        try:
            yield bot
        finally:
            if start:
                await bot.stop()
