"""A newer connection in the place of one that still works, tried until it is there.

Invariants: one replacement at a time; one that fails leaves the working connection alone and is tried again later;
the old connection is closed a grace after the switch, so that calls on it may still be answered; no carrier is
forgotten.
"""

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from keepline import telemetry
from keepline.clock import Clock
from keepline.stream.carrier import Carrier
from keepline.stream.dial_budget import DialLimiter
from keepline.stream.faults import Fault, fault_of_error
from keepline.stream.replacement import Replacement
from keepline.stream.settings import StreamSettings
from keepline.stream.subscriptions import Registry
from keepline.stream.tokens import StreamTokens

__all__ = ["Renewal"]

log = logging.getLogger("keepline.stream")

_GRACE = 5.0
"""Seconds after a renewal in which a repeated message is recognised and pending calls may still be answered."""


class Renewal:
    """The renewals of one stream.

    Args:
        name: of the stream.
        settings: what is done when.
        registry: what has to be confirmed on the new connection.
        tokens: told when a token was refused.
        limiter: how often the process may dial.
        clock: time and chance.
        new_carrier: makes a connection that is not open yet.
        take_over: makes the replacement the stream's connection and gives back the old one.
        wake: called when there is something to look at.

    Attributes:
        wanted: why a newer connection is wanted, "" when none is.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: StreamSettings,
        registry: Registry,
        tokens: StreamTokens | None,
        limiter: DialLimiter,
        clock: Clock,
        new_carrier: Callable[[], Carrier],
        take_over: Callable[[Replacement], Carrier],
        wake: Callable[[], None],
    ) -> None:
        self._name = name
        self._settings = settings
        self._registry = registry
        self._tokens = tokens
        self._limiter = limiter
        self._clock = clock
        self._new_carrier = new_carrier
        self._take_over = take_over
        self._wake = wake
        self._replacement: Replacement | None = None
        self._old: Carrier | None = None
        self._at = 0.0
        self.wanted = ""

    def want(self, reason: str) -> None:
        """Take a newer connection as soon as possible."""
        self.wanted, self._at = reason, 0.0

    def forget(self) -> None:
        """A new connection is made anyway."""
        self.wanted = ""

    @property
    def is_due(self) -> bool:
        """Whether one should be started now."""
        return (
            bool(self.wanted) and self._replacement is None and self._clock.boottime() >= self._at
        )

    @property
    def deadline(self) -> float | None:
        """When the next try is due, None when none is waited for."""
        waits = self.wanted and self._replacement is None and self._at > self._clock.boottime()
        return self._at if waits else None

    @property
    def carriers(self) -> list[Carrier]:
        """Connections beside the stream's own."""
        new = [] if self._replacement is None else [self._replacement.carrier]
        return new if self._old is None else [*new, self._old]

    def dropped(self) -> None:
        """All carriers are closed."""
        self._replacement = self._old = None

    def pump(self) -> None:
        """Send what is due on the connection that is being filled."""
        if self._replacement is not None and self._replacement.is_filling:
            self._replacement.carrier.pump()

    def answered(self) -> None:
        """An answer came on some connection, or the end."""
        if self._replacement is not None:
            self._replacement.wake()

    def passes(self, carrier: Carrier, channel: str, arguments: Sequence[Any], at: float) -> bool:
        """Whether a message goes on now; what does not is kept back, or has gone on before."""
        there = self._replacement
        return there is None or there.passes(carrier, channel, arguments, at)

    def begin(self) -> Coroutine[Any, Any, None]:
        """Fill a second connection while the first one goes on, then drop the first: to be run as a task."""
        reason, self.wanted = self.wanted, ""
        try:
            replacement = Replacement(self._new_carrier(), limit=self._settings.mailbox)
        except Exception as error:
            return self._failed(None, reason, error)
        self._replacement = replacement
        return self._run(replacement, reason)

    async def _run(self, replacement: Replacement, reason: str) -> None:
        try:
            await self._clock.sleep(self._limiter.reserve(self._clock.boottime()))
            await replacement.open(self._settings.attempt_timeout)
            self._wake()
            await replacement.filled(self._registry, self._clock, self._settings.attempt_timeout)
        except Exception as error:
            await self._failed(replacement, reason, error)
        else:
            await self._switch(replacement, reason)
        self._wake()  # another one may have waited for this

    async def _failed(self, replacement: Replacement | None, reason: str, error: Exception) -> None:
        telemetry.event(
            log, logging.WARNING, "Stream renewal failed", stream=self._name, reason=str(error)
        )
        if fault_of_error(error) is Fault.UNAUTHORIZED and self._tokens is not None:
            self._tokens.refused()
        self.wanted = self.wanted or reason
        self._at = self._clock.boottime() + max(self._settings.backoff)
        if replacement is not None:
            await replacement.carrier.close()
        self._replacement = None

    async def _switch(self, replacement: Replacement, reason: str) -> None:
        old = self._old = self._take_over(replacement)
        telemetry.event(log, logging.INFO, "Stream renewed", stream=self._name, reason=reason)
        self._wake()
        # what the old one brought may still be on the new one's way, and answers on the old one's
        await self._clock.sleep(_GRACE)
        self._replacement = None
        await old.close()
        self._old = None

    def __repr__(self) -> str:
        return f"<Renewal {self._name} {self.wanted or 'not wanted'}>"
