"""What was missed is asked for after each connect, and only a round that ended well makes a stream live.

Invariants: messages of the channels that a reconciler named are kept back in order while a round runs, and go on
after it; a round that fails is tried again, the stream stays blind meanwhile; what does not fit is counted and asked
for in another round.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from keepline import telemetry
from keepline.clock import Clock, within
from keepline.resilience.backoff import Backoff
from keepline.stream.port import Reconciling

__all__ = ["Kept", "Rounds"]

log = logging.getLogger("keepline.stream")

Kept = tuple[str, Sequence[Any], float]
"""A message that was kept back: channel, arguments, arrival."""

_BACKOFF = Backoff((1.0, 2.0, 5.0, 10.0, 30.0))


class _Call:
    """A bare async function as a reconciler: the manager keeps the messages for it."""

    def __init__(self, call: Callable[[], Awaitable[object]]) -> None:
        self._call = call

    def begin(self) -> None:
        """Nothing to prepare."""

    async def reconcile(self) -> None:
        await self._call()

    def lost(self) -> None:
        """Nothing to forget."""


class Rounds:
    """The reconcilers of one stream.

    Args:
        clock: time and chance.
        timeout: seconds for one try of one reconciler.
        limit: messages that are kept back at most.

    Attributes:
        due: why a round is needed, "" when none is.
        running: whether one runs.
        failure: what the last try failed with, "" when it did not.
        overflowed: messages that did not fit since the last round.
    """

    def __init__(self, *, clock: Clock, timeout: float, limit: int) -> None:
        self._clock = clock
        self._timeout = timeout
        self._limit = limit
        self._reconcilers: list[tuple[Reconciling, frozenset[str] | None]] = []
        self._kept: deque[Kept] = deque()
        self.due = ""
        self.running = False
        self.failure = ""
        self.overflowed = 0

    def __len__(self) -> int:
        return len(self._reconcilers)

    @property
    def pending(self) -> bool:
        """Whether what is shown may not be the present."""
        return self.running or bool(self.due)

    def add(
        self,
        reconciler: Reconciling | Callable[[], Awaitable[object]],
        channels: Collection[str] | None,
    ) -> Callable[[], None]:
        """Add a reconciler and return what removes it.

        Args:
            reconciler: an object with `begin`, `reconcile` and `lost`, or an async function.
            channels: whose messages are kept back for it; None: an object keeps them by itself, for a function those of
                every topic that drops nothing.
        """
        entry = _entry(reconciler, None if channels is None else frozenset(channels))
        self._reconcilers.append(entry)

        def remove() -> None:
            if entry in self._reconcilers:
                self._reconcilers.remove(entry)
            if not self._reconcilers:
                self.due = ""

        return remove

    def connecting(self) -> None:
        """A connection is about to be made: from its first message on they are kept back."""
        if self._reconcilers:
            self._each("begin")
            self.due = self.due or "a new connection"

    def request(self, reason: str) -> None:
        """Something may have been missed."""
        if self._reconcilers:
            if not self.pending:
                self._each("begin")
            self.due = self.due or reason

    def lost(self) -> None:
        """The connection is gone; messages that were kept stay kept for the next round."""
        if self._reconcilers:
            self._each("lost")
            self.due = self.due or "the connection was lost"

    def holds(self, channel: str, *, never: bool) -> bool:
        """Whether messages of a channel are kept back now; `never`: its policy is to drop nothing."""
        if not self.pending:
            return False
        return any(never if names is None else channel in names for _, names in self._reconcilers)

    def keep(self, message: Kept) -> bool:
        """Keep a message back for the end of the round; False when it does not fit, and another round is due."""
        if len(self._kept) < self._limit:
            self._kept.append(message)
            return True
        self.overflowed += 1
        self.due = self.due or "more messages came than could be kept"
        return False

    def take(self) -> list[Kept]:
        """What was kept, in order of arrival."""
        kept = list(self._kept)
        self._kept.clear()
        self.overflowed = 0
        return kept

    async def run(self) -> None:
        """Run rounds until none is due; only cancelling ends it earlier."""
        self.running = True
        failures = 0
        try:
            while reason := self.due:
                self.due = ""
                if (
                    self.overflowed
                ):  # this round begins after all that was kept, and asks for what it told
                    self.take()
                if await self._round():
                    failures = 0
                    continue
                failures += 1
                self.due = reason
                await self._clock.sleep(_BACKOFF.delay(failures, self._clock.chance()))
        finally:
            self.running = False

    async def _round(self) -> bool:
        try:
            for reconciler, _ in list(self._reconcilers):
                await within(self._clock, self._timeout, reconciler.reconcile())
        except TimeoutError as error:
            self.failure = str(error)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
        else:
            self.failure = ""
            return True
        telemetry.event(log, logging.WARNING, "Stream reconciliation failed", reason=self.failure)
        return False

    def _each(self, name: str) -> None:
        for reconciler, _ in self._reconcilers:
            try:
                getattr(reconciler, name)()
            except Exception:
                log.exception("a reconciler failed in %s()", name)

    def __repr__(self) -> str:
        return (
            f"<Rounds of {len(self)} reconcilers, {self.due or 'none due'}, {len(self._kept)} kept>"
        )


def _entry(
    reconciler: Reconciling | Callable[[], Awaitable[object]], names: frozenset[str] | None
) -> tuple[Reconciling, frozenset[str] | None]:
    if callable(reconciler):
        return _Call(reconciler), names
    return reconciler, names or frozenset()
