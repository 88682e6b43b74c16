"""Looks at the broker until every outcome is known, and takes up what persons decide meanwhile.

Invariants: one look per account at a time; a look that fails proves nothing and is made again; nothing here sends.
"""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from keepline.brokers.base import Evidence, Source
from keepline.brokers.orders.book import Look
from keepline.brokers.orders.docket import BEGUN, Docket
from keepline.brokers.orders.outcome import OrderOutcome
from keepline.clock import within
from keepline.errors import ConfigError, KeeplineError
from keepline.model import Fill, Position
from keepline.telemetry import REGISTRY, event

__all__ = ["CaughtUp", "Watch"]

log = logging.getLogger("keepline.orders")

LOOKS = REGISTRY.counter(
    "order_looks_total", "Views of a broker that were taken to settle outcomes.", "broker", "result"
)
_CHORES_SECONDS = 5.0
_AFTER_FAULT_SECONDS = 15.0


class CaughtUp(NamedTuple):
    """What a look back found.

    Attributes:
        outcomes: of intents that it settled.
        fills: that were not known before.
        positions: of the account; only to be trusted when `positions` is not in `failed`.
        failed: sources that could not be read whole, with the reason.
    """

    outcomes: tuple[OrderOutcome, ...]
    fills: tuple[Fill, ...]
    positions: tuple[Position, ...]
    failed: dict[Source, str]


class Watch:
    """Settles what is unknown; `run` is a task of the gateway."""

    def __init__(self, docket: Docket) -> None:
        self._docket = docket
        self._clock = docket.clock
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._chores_at = docket.clock.boottime()
        self._caught_up_at: dict[str, float] = {}

    async def run(self) -> None:
        """Look whenever a look is due, until cancelled."""
        try:
            while True:
                await self._round()
        finally:
            turns = list(self._busy.values())
            for turn in turns:
                turn.cancel()
            await asyncio.gather(*turns, return_exceptions=True)

    async def _round(self) -> None:
        self._docket.stir.clear()
        now = self._clock.boottime()
        if self._has_chores and now >= self._chores_at:
            await self._chores()
            self._chores_at = self._clock.boottime() + _CHORES_SECONDS
        for look in self._docket.book.due(now, self._busy):
            turn = asyncio.create_task(self._look_in_turn(look))
            self._busy[look.query.account] = turn
        await self._sleep()

    async def look(self, look: Look) -> CaughtUp:
        """Take one view and judge by it."""
        return (await self._look(look))[0]

    async def _look(self, look: Look) -> tuple[CaughtUp, bool]:
        """As `look`, and whether all of its fills are on the disk."""
        docket, clock = self._docket, self._clock
        asked_at = clock.boottime()
        evidence = await self._evidence(look)
        tickets = docket.book.seen(look, evidence, asked_at, clock.boottime())
        changed = [e for ticket in tickets if (e := docket.get(ticket.intent.id)) is not None]
        for entry in changed:
            docket.changed(entry)
            docket.spawn(
                docket.save(entry)
            )  # also when the gateway is stopped by whoever was told just now
        for name in look.covers:
            if (waiting := docket.get(name)) is not None:
                waiting.wake()  # who waits for an order id learns that it is not to be had
        new = await self._note(evidence)
        LOOKS.inc(docket.broker.name, "partial" if evidence.failed else "whole")
        outcomes = tuple(docket.outcome(entry) for entry in changed)
        found = CaughtUp(outcomes, tuple(new or ()), evidence.positions, dict(evidence.failed))
        return found, new is not None

    async def catch_up(self, account: str) -> CaughtUp:
        """Look at everything since the last time that everything was seen."""
        docket = self._docket
        facts, wall = docket.broker.facts, self._clock.wall()
        name = f"caught up {account}"
        mark = await docket.journal.mark(name) or await docket.journal.mark(BEGUN)
        since = wall if mark is None else datetime.fromtimestamp(mark, UTC)
        margin = timedelta(seconds=facts.clock_skew_seconds + facts.longest_processing_seconds)
        now = self._clock.boottime()
        if (at := self._caught_up_at.get(account)) is not None:
            since = min(since, wall - timedelta(seconds=now - at))  # the wall clock may have jumped
        elif since > wall:
            # the mark is of a clock that was ahead: nobody knows what has been seen
            begun = await docket.journal.mark(BEGUN)
            since = since if begun is None else datetime.fromtimestamp(begun, UTC)
        found, noted = await self._look(docket.book.look_since(account, min(since, wall) - margin))
        if noted and not {Source.FILLS, Source.HISTORY} & found.failed.keys():
            await docket.journal.mark(name, wall.timestamp())
            self._caught_up_at[account] = now
        return found

    async def _look_in_turn(self, look: Look) -> None:
        try:
            await self.look(look)
        except Exception as error:
            # a view that cannot be judged: neither hammer the broker nor give the intents up
            event(
                log,
                logging.ERROR,
                "Order look failed",
                account=look.query.account,
                error=repr(error),
            )
            await self._clock.sleep(_AFTER_FAULT_SECONDS)
        finally:
            self._busy.pop(look.query.account, None)
            self._docket.stir.set()

    async def _evidence(self, look: Look) -> Evidence:
        broker = self._docket.broker
        try:
            return await within(
                self._clock, broker.facts.longest_call_seconds, broker.evidence(look.query)
            )
        except Exception as error:
            words = str(error) or type(error).__name__
            return Evidence(failed=dict.fromkeys(Source, words))

    async def _note(self, evidence: Evidence) -> list[Fill] | None:
        try:
            return await self._docket.take_fills(evidence.fills)
        except KeeplineError as error:
            event(log, logging.ERROR, "Order journal failed", error=str(error))
            return None

    async def _sleep(self) -> None:
        docket = self._docket
        times = [docket.book.next_at(self._busy), self._chores_at if self._has_chores else None]
        due = min((at for at in times if at is not None), default=None)
        if due is None:
            await docket.stir.wait()
            return
        if (left := due - self._clock.boottime()) > 0:
            with contextlib.suppress(TimeoutError):
                await within(self._clock, left, docket.stir.wait())
        else:
            await asyncio.sleep(0)

    # --- chores ---

    @property
    def _has_chores(self) -> bool:
        return bool(self._docket.unsaved) or self._docket.book.wants_person

    async def _chores(self) -> None:
        for entry in list(self._docket.unsaved.values()):
            await self._docket.save(entry)
        try:
            decisions = await self._docket.journal.decisions()
            for decision in decisions:
                await self._decide(decision.intent_id, decision.order_id, decision.reason)
            if decisions:
                await self._docket.journal.taken_up([decision.number for decision in decisions])
        except KeeplineError as error:
            event(log, logging.ERROR, "Order journal failed", error=str(error))

    async def _decide(self, intent_id: str, order_id: str | None, reason: str) -> None:
        try:
            await self.decide(intent_id, order_id, reason)
        except ConfigError as error:
            event(log, logging.WARNING, "Decision not taken", intent=intent_id, error=str(error))

    async def decide(self, intent_id: str, order_id: str | None, reason: str) -> OrderOutcome:
        """Take up what a person says of an intent.

        Raises:
            ConfigError: nobody knows the intent, it is settled by proof, or the order belongs to another one.
        """
        docket = self._docket
        entry = await docket.fetch(intent_id)
        if entry is None:
            raise ConfigError(f"nobody has placed an intent {intent_id!r}", key="intent_id")
        owner = docket.book.owner(order_id) if order_id else None
        if owner not in (None, intent_id):
            raise ConfigError(f"order {order_id} belongs to intent {owner!r}", key="order_id")
        entry.ticket.decide(order_id, reason)
        docket.changed(entry)
        await docket.save(entry)
        docket.book.reconsider(entry.ticket.intent.account, self._clock.boottime())
        docket.stir.set()
        return docket.outcome(entry)
