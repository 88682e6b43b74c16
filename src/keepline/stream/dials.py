"""The dials of one stream: when the next one may go, and what is said and counted about the last.

Invariants: every dial passes the process's budget; a refused token is handed back to be replaced before the next dial;
a newer token shortens only the wait that a refused one caused, and never below the schedule.
"""

import asyncio
import contextlib
import logging
from typing import NamedTuple

from keepline import telemetry
from keepline.clock import Clock, within
from keepline.errors import APIError
from keepline.stream.dial_budget import DialLimiter
from keepline.stream.faults import Fault
from keepline.stream.redial import Plan, Redial
from keepline.stream.settings import StreamSettings
from keepline.stream.tokens import StreamTokens

__all__ = ["Dials", "End"]

log = logging.getLogger("keepline.stream")

_RECONNECTS = telemetry.REGISTRY.counter(
    "stream_reconnects_total",
    "Connections of a stream that ended or failed, by why.",
    "stream",
    "reason",
)


class End(NamedTuple):
    """Why there is no connection (any more).

    Attributes:
        fault: by which rule to come back.
        words: for people, without secrets.
        error: what a dial failed with, None for the end of a connection that was up.
    """

    fault: Fault
    words: str
    error: APIError | None = None


class Dials:
    """The dials of one stream.

    Args:
        name: of the stream.
        settings: the schedule.
        tokens: told when a token was refused; None when the links know no token.
        limiter: the budget.
        clock: time and chance.

    Attributes:
        memory: what the connections so far have earned.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: StreamSettings,
        tokens: StreamTokens | None,
        limiter: DialLimiter,
        clock: Clock,
    ) -> None:
        self._name = name
        self._tokens = tokens
        self._limiter = limiter
        self._clock = clock
        self._newer_token = asyncio.Event()
        self.memory = Redial(
            settings.backoff,
            jitter=settings.jitter,
            min_life=settings.min_life,
            attempts=settings.attempts,
        )

    async def begin(self) -> None:
        """Return when the budget allows a dial, which starts then."""
        await self._clock.sleep(self._limiter.reserve(self._clock.boottime()))
        self.memory.dialing(self._clock.boottime())

    def renewed(self) -> None:
        """A second connection took the place of the first."""
        self.memory.renewed(self._clock.boottime())
        _RECONNECTS.inc(self._name, Fault.RENEWAL.value)

    def newer_token(self) -> None:
        """There is a newer token than the one that was refused."""
        self._newer_token.set()

    def plan(self, end: End) -> Plan:
        """What follows from the end of a connection or a failed dial."""
        plan = self.memory.lost(
            self._clock.boottime(),
            end.fault,
            retry_after=None if end.error is None else end.error.retry_after,
            words=end.words,
            chance=self._clock.chance(),
        )
        _RECONNECTS.inc(self._name, end.fault.value)
        telemetry.event(
            log, logging.WARNING, "Stream redial" if plan.dial else "Stream gives up",
            stream=self._name, reason=plan.reason, attempt=plan.attempt,
            next_seconds=round(plan.delay, 3) if plan.dial else None,
        )  # fmt: skip
        if plan.newer_token and self._tokens is not None:
            self._tokens.refused()
        return plan

    async def wait(self, plan: Plan) -> None:
        """Return when the next dial is due; after a refused token a newer one is worth a sooner dial."""
        self._newer_token.clear()
        at = plan.at
        if plan.newer_token:
            with contextlib.suppress(TimeoutError):
                await within(self._clock, at - self._clock.boottime(), self._newer_token.wait())
                at = plan.with_newer_at
        await self._clock.sleep(at - self._clock.boottime())

    def __repr__(self) -> str:
        return f"<Dials of {self._name}, {self.memory!r}>"
