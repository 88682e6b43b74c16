"""A bot that trades while everything around it fails at random: in the end it knows what the venue knows.

Venue and bot are the real ones on real sockets; only time is not: it goes on whenever nothing else can happen. A
failing run is repeated by its seed: `-k 'test_chaos_ends_with_the_truth[17]'`.
"""

import asyncio
import logging
import random
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.brokers.loopback import unlimited
from tests.jumping import Jumping

from keepline.brokers.base import IntentKind, OrderIntent
from keepline.brokers.orders import OrderGateway, OrderJournal
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.stream import ProjectXStream
from keepline.brokers.projectx.trading import ProjectXTrading
from keepline.errors import APIError, StreamNotLive
from keepline.model import Fill, OrderType, Side
from keepline.sandbox.server import SandboxServer
from keepline.sandbox.signalr_wire import Phase
from keepline.stream.dial_budget import DialLimiter
from keepline.stream.events import EventKind, StreamEvent
from keepline.stream.reconcile import ReconcileSettings
from keepline.testing import ManualClock

SEEDS = 200
ACCOUNT, CONTRACT = "1001", "CON.F.US.MES.Z26"
HUBS = {"user": 4, "market": 3}  # subscriptions of each
STEPS = 20
LONG = 1e8  # seconds that a token lives

# what comes late by a fault is told late: together these delays stay below the second that is allowed
FAULTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cut_stream", {"how": "abort"}),
    ("cut_stream", {"how": "bye"}),
    ("cut_stream", {"how": "close_reconnect"}),
    ("cut_stream", {"how": "abort", "on": ["user_hub"]}),
    ("cut_stream", {"how": "abort", "on": ["market_hub"]}),
    ("fill_while_away", {"on": ["user_hub"]}),
    ("fill_while_away", {"on": ["user_hub"], "part": 0.5}),
    ("duplicate_events", {"count": 3}),
    ("reordered_events", {"count": 2}),
    ("missing_events", {"count": 2}),
    ("missing_events", {"event": "GatewayUserTrade"}),
    ("wrapped_events", {"count": 3}),
    ("silent", {"seconds": 5}),
    ("slow_frames", {"delay": 0.2, "seconds": 5}),
    ("glued_frames", {"wait": 0.2, "seconds": 5}),
    ("split_frames", {"seconds": 5}),
    ("black_hole", {"seconds": 40}),
    ("oversize_frame", {"bytes": 200_000}),
    ("strange_message", {"form": "completion"}),
    ("strange_message", {"form": "call"}),
    ("strange_message", {"form": "unknown_type"}),
    ("strange_message", {"form": "not_json"}),
    ("accept_then_close", {"count": 2}),
    ("accept_then_close", {"how": "abort", "after": 1.5}),
    ("handshake_error", {}),
    ("call_fails", {"count": 2}),
    ("cut_on_call", {}),
    ("5xx", {"on": ["websocket"], "count": 2}),
    ("429", {"on": ["websocket"], "retry_after": 3}),
    ("5xx", {"on": ["query"], "count": 4}),
    ("html", {"on": ["query"], "status": 200, "count": 2}),
    ("slow", {"on": ["query"], "delay": 3, "seconds": 6}),
    ("outage", {"seconds": 4}),
    ("order_answer_lost", {}),
    ("late_accept", {"on": ["order"]}),
    ("partial_fill_then_cut", {"on": ["order"]}),
)

NEGOTIATED: dict[str, Any] = {"skip_negotiation": False, "token_in": "header"}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"encoding": "messagepack"},
    NEGOTIATED,
    {**NEGOTIATED, "stateful": True},
    {**NEGOTIATED, "stateful": True, "encoding": "messagepack"},
    {**NEGOTIATED, "transports": ("events",)},
    {**NEGOTIATED, "transports": ("polling",), "encoding": "messagepack"},
)


class Blindness:
    """What the bot is told of its sight, beside what the venue knows of its connections.

    Attributes:
        late: the longest time in which a stream called itself live while the venue had no connection with all of its
            subscriptions, for each hub.
        blind: seconds without sight as `is_live` says, for each hub.
        told: the same, from events alone.
    """

    def __init__(self, sandbox: SandboxServer, stream: ProjectXStream, clock: ManualClock) -> None:
        self._sandbox, self._stream, self._clock = sandbox, stream, clock
        self._at = clock.boottime()
        self._right: dict[str, float] = dict.fromkeys(HUBS, self._at)
        self._dark: dict[str, bool] = dict.fromkeys(HUBS, True)
        self._stale: dict[str, set[tuple[str, str]]] = {hub: set() for hub in HUBS}
        self.late: dict[str, float] = dict.fromkeys(HUBS, 0.0)
        self.blind: dict[str, float] = dict.fromkeys(HUBS, 0.0)
        self.told: dict[str, float] = dict.fromkeys(HUBS, 0.0)
        for manager in stream.managers:
            manager.on_event(self._heard, inline=True)

    def look(self) -> None:
        """All has been said and done at this instant, and time is about to go on."""
        now = self._clock.boottime()
        wake = self._clock.next_wake or 0.0
        for manager in self._stream.managers:
            hub = manager.name.rpartition(".")[2]
            if not manager.is_live or self._subscribed(hub):
                self._right[hub] = now
            self.late[hub] = max(self.late[hub], now - self._right[hub])
            self.blind[hub] += 0.0 if manager.is_live else wake
            self.told[hub] += wake if self._dark[hub] or self._stale[hub] else 0.0

    def _subscribed(self, hub: str) -> bool:
        return any(
            c.hub.name == hub and c.wire.phase is Phase.OPEN and len(c.book) >= HUBS[hub]
            for c in self._sandbox.signalr.connections
        )

    def _heard(self, event: StreamEvent) -> None:
        hub, topic = event.stream.rpartition(".")[2], (event.channel, event.key)
        assert event.at == self._clock.wall()
        if event.kind in (EventKind.LOST, EventKind.RECONCILING):
            self._dark[hub] = True
            self._stale[hub].clear()
        elif event.kind is EventKind.STALE:
            self._stale[hub].add(topic)
        elif event.kind is EventKind.LIVE and event.channel:
            self._stale[hub].discard(topic)
        elif event.kind is EventKind.LIVE:
            self._dark[hub] = False
            self._stale[hub].clear()


class Day:
    """A bot that trades, and the venue beside it."""

    def __init__(self, seed: int, jumping: Jumping, journal: Path) -> None:
        self.chance = random.Random(seed)
        self.jumping, self.clock = jumping, jumping.clock
        self.journal = journal
        self.fills: list[Fill] = []
        self.quotes = 0
        self.blinded = 0
        self._wishes: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """The whole day, and the judgement at its end."""
        async with SandboxServer(
            clock=self.clock,
            access_lifetime=LONG,
            one_sign_in=False,
            seed=self.chance.randrange(99),
        ) as self.sandbox:
            self.token = self.sandbox.issue().access_token
            client = ProjectXClient(
                self.give, base_url=self.sandbox.url, limiter=unlimited(), clock=self.clock
            )
            self.stream = self.made(client)
            self.seen = Blindness(self.sandbox, self.stream, self.clock)
            self.jumping.look = self.seen.look
            journal = self.jumping.threaded(OrderJournal(self.journal))
            self.gateway = OrderGateway(
                ProjectXTrading(client), journal, guard=self.stream.require_live, clock=self.clock
            )
            self.stream.feed(self.gateway)
            async with client, self.gateway, self.stream:
                await self.stream.connect(until="live")
                for number in range(STEPS):
                    self.trouble()
                    self.wish(number)
                    await self.clock.sleep(self.chance.choice((0.0, 0.3, 1.0, 4.0)))
                await self.settled()
                self.judge()
            self.jumping.look = lambda: None

    def made(self, client: ProjectXClient) -> ProjectXStream:
        stream = ProjectXStream(
            self.give,
            client,
            accounts=[ACCOUNT],
            contracts=[CONTRACT],
            base_url=self.sandbox.url,
            session=None,
            reconcile=ReconcileSettings(guard_seconds=2, spacing_seconds=2, every_seconds=20),
            dial_limiter=DialLimiter(),
            clock=self.clock,
            **self.chance.choice(WAYS),
        )
        stream.on_fill(self.filled)
        for listen in (stream.on_quote, stream.on_trade, stream.on_depth):
            listen(self.quoted)
        return stream

    async def give(self) -> str:
        return self.token

    async def filled(self, fill: Fill) -> None:
        self.fills.append(fill)

    async def quoted(self, _: Any) -> None:
        self.quotes += 1

    # --- what happens ---

    def trouble(self) -> None:
        if self.chance.random() < 0.4:
            return
        if self.chance.random() < 0.1:
            self.token = self.sandbox.issue().access_token
            self.stream.renew()
            return
        name, options = self.chance.choice(FAULTS)
        self.sandbox.fault(name, **options)

    def wish(self, number: int) -> None:
        if self.chance.random() < 0.7:
            self._wishes.append(asyncio.create_task(self.place(number)))

    async def place(self, number: int) -> None:
        intent = self.order(number)
        if (working := self.stream.view.working()) and self.chance.random() < 0.3:
            intent = OrderIntent(
                id=f"wish-{number}",
                kind=IntentKind.CANCEL,
                account=ACCOUNT,
                instrument=CONTRACT,
                target_order_id=self.chance.choice([order.id for order in working]),
            )
        try:
            outcome = await getattr(self.gateway, intent.kind.value)(intent)
            if not outcome.is_final:
                await outcome.final()
        except StreamNotLive:
            self.blinded += 1
        except APIError:
            pass

    def order(self, number: int) -> OrderIntent:
        rests = self.chance.random() < 0.4
        return OrderIntent(
            id=f"wish-{number}",
            account=ACCOUNT,
            instrument=CONTRACT,
            side=self.chance.choice(tuple(Side)),
            quantity=Decimal(self.chance.randint(1, 4)),
            type=OrderType.LIMIT if rests else OrderType.MARKET,
            limit_price=Decimal(5000) if rests else None,
        )

    async def settled(self) -> None:
        """No more trouble, and enough time for all that is due."""
        self.sandbox.clear_faults()
        await self.clock.sleep(75)  # what a silent connection, a late order and a backoff may take
        await self.stream.connect(until="live")
        await asyncio.gather(*self._wishes)
        await self.clock.sleep(30)  # one more look at the accounts

    # --- what came of it ---

    def judge(self) -> None:
        market, view = self.sandbox.market, self.stream.view
        theirs = {str(fill.id) for fill in market.fills if fill.account == ACCOUNT}
        assert set(view.fills) == theirs
        assert Counter(fill.id for fill in self.fills) == Counter(theirs)
        orders = {str(o.id): o for o in market.orders if o.account == ACCOUNT}
        assert {i: (o.filled, o.status.is_final) for i, o in view.orders.items()} == {
            i: (o.filled, o.status.is_over) for i, o in orders.items()
        }
        position = market.holdings.position(ACCOUNT, CONTRACT)
        held = view.position(ACCOUNT, CONTRACT)
        assert (held.quantity if held else 0) == (position.size if position else 0)
        assert self.gateway.unresolved() == []
        tags = Counter(order.tag for order in orders.values())
        assert max(tags.values(), default=1) == 1
        assert len(tags) <= len(self._wishes) - self.blinded
        assert self.stream.is_live, self.stream.reasons
        books = {c.hub.name: len(c.book) for c in self.sandbox.signalr.connections}
        assert books == HUBS
        assert len(self.sandbox.signalr.connections) == len(HUBS)
        assert self.quotes
        for hub in HUBS:
            assert self.seen.late[hub] <= 1.0, hub
            assert abs(self.seen.told[hub] - self.seen.blind[hub]) <= 1.0, hub


@pytest.mark.parametrize("seed", range(SEEDS))
def test_chaos_ends_with_the_truth(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="keepline")
    jumping = Jumping()
    jumping.run(Day(seed, jumping, tmp_path / "orders").run())
