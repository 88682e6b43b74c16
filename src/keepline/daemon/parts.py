"""Parts of the daemon under one supervisor: started in order, drained in reverse, restarted alone when they fail.

Invariants: a part is never started twice without a stop between; an essential part that cannot start the first time
stops what was started before it and its error reaches the caller; any other failure stays with its part, which comes
back after a growing delay; a part that does not drain within its bound is cancelled and named.
"""

import asyncio
import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.resilience.backoff import Backoff, exponential
from keepline.telemetry import REGISTRY, event

__all__ = ["Part", "PartState", "Readiness", "Supervisor"]

log = logging.getLogger("keepline.daemon")

RESTARTS = REGISTRY.counter(
    "part_restarts_total", "Parts that failed and were started again.", "part"
)


class Part:
    """Something the daemon runs; override what it needs.

    Attributes:
        name: how logs, `keepline status` and `/readyz` call it.
        essential: whether the daemon is pointless without it.
        drain_seconds: how long `stop` may take before it is cancelled.
    """

    name: str = "part"
    essential: bool = False
    drain_seconds: float = 0.5

    async def start(self) -> None:
        """Return when it serves; an exception means that it does not."""

    async def run(self) -> None:
        """Return or raise when it has failed and must be started again; never, while all is well."""
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        """Finish what is under way and let go of everything; called once after each start, even a failed one."""

    def ready(self) -> tuple[bool, str]:
        """Whether it does its job now, and the reason in words."""
        return True, "running"


class PartState(enum.Enum):
    """Where a part stands."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Readiness:
    """One part's answer to "do you do your job?"."""

    name: str
    ready: bool
    reason: str


class Supervisor:
    """Runs parts.

    Args:
        parts: in the order of their start; they stop in reverse.
        clock: measures delays and bounds.
        backoff: the delays before a failed part starts again.
        steady_after: seconds of service after which earlier failures of a part are forgotten.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        clock: Clock = SYSTEM_CLOCK,
        backoff: Backoff | None = None,
        steady_after: float = 60.0,
    ) -> None:
        backoff = backoff or exponential(1.0, 60.0)
        self._keepers = [_Keeper(part, clock, backoff, steady_after) for part in parts]

    async def start(self) -> None:
        """Start all parts, one after the other.

        Raises:
            Exception: an essential part's own reason; everything started before it has been stopped again.
        """
        for keeper in self._keepers:
            try:
                await keeper.start()
            except BaseException:
                await self.stop()
                raise

    async def stop(self) -> None:
        """Stop all parts in reverse order, each within its bound; twice is once."""
        for keeper in reversed(self._keepers):
            await keeper.stop()

    def readiness(self) -> list[Readiness]:
        """Each part's readiness, in the order of their start."""
        return [keeper.readiness() for keeper in self._keepers]

    @property
    def ready(self) -> bool:
        """Whether every part does its job."""
        return all(part.ready for part in self.readiness())

    def __repr__(self) -> str:
        states = ", ".join(f"{k.part.name} {k.state.value}" for k in self._keepers)
        return f"<Supervisor {states}>"


class _Keeper:
    """Keeps one part running."""

    def __init__(self, part: Part, clock: Clock, backoff: Backoff, steady_after: float) -> None:
        self.part = part
        self.state = PartState.STOPPED
        self._clock = clock
        self._backoff = backoff
        self._steady_after = steady_after
        self._failures = 0
        self._reason = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """The first start: an essential part's failure is the caller's, any other is kept here."""
        try:
            await self._start()
        except Exception as error:
            if self.part.essential:
                await self._stop()
                raise
            await self._fail(error)
        self._task = asyncio.create_task(self._keep(), name=f"keepline part {self.part.name}")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        await self._stop()

    def readiness(self) -> Readiness:
        if self.state is PartState.RUNNING:
            return Readiness(self.part.name, *self.part.ready())
        reason = f"{self.state.value}: {self._reason}" if self._reason else self.state.value
        return Readiness(self.part.name, False, reason)

    async def _keep(self) -> None:
        while True:
            if self.state is PartState.WAITING:
                delay = self._backoff.delay(self._failures, self._clock.chance())
                await self._clock.sleep(delay)
            try:
                await self._serve()
            except Exception as error:
                await self._fail(error)

    async def _serve(self) -> None:
        if self.state is PartState.WAITING:
            RESTARTS.inc(self.part.name)
            await self._start()
            event(log, logging.INFO, "Part restarted", part=self.part.name)
        since = self._clock.boottime()
        try:
            await self.part.run()
        finally:
            if self._clock.boottime() - since >= self._steady_after:
                self._failures = 0
        raise RuntimeError("it ended")

    async def _start(self) -> None:
        self.state = PartState.STARTING
        await self.part.start()
        self.state = PartState.RUNNING
        self._reason = ""

    async def _fail(self, error: Exception) -> None:
        self._failures += 1
        self._reason = str(error) or type(error).__name__
        await self._stop()
        self.state = PartState.WAITING
        event(
            log,
            logging.ERROR,
            "Part failed",
            part=self.part.name,
            failures=self._failures,
            reason=self._reason,
        )

    async def _stop(self) -> None:
        if self.state in (PartState.STOPPED, PartState.WAITING):
            self.state = PartState.STOPPED
            return
        self.state = PartState.STOPPING
        try:
            await within(self._clock, self.part.drain_seconds, self.part.stop())
        except Exception as error:
            reason = str(error) or type(error).__name__
            event(log, logging.WARNING, "Part did not drain", part=self.part.name, reason=reason)
        self.state = PartState.STOPPED
