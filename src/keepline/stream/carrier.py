"""One link in the hands of the manager: opened within a time, asked within a time, ended once, closed within a time.

Invariants: a link that never answers holds up nobody for longer than its time; requests of one connection run beside
each other and their answers go to the registry; after `close` no task is left; what a link raises becomes words, never
a crash.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from keepline import telemetry
from keepline.clock import Clock, within
from keepline.errors import APIError, OutcomeUnknown, PermanentError, TransientError
from keepline.stream.port import Link, Lost
from keepline.stream.subscriptions import Action, Command, Registry

__all__ = ["Arrival", "Carrier"]

log = logging.getLogger("keepline.stream")

Arrival: TypeAlias = "Callable[[Carrier, str, Sequence[Any], float], None]"
"""Where the messages of a carrier go: the carrier itself, channel, arguments, arrival time."""


class Carrier:
    """One connection and what was asked on it.

    Args:
        link: the connection.
        registry: gets the answers.
        clock: time and chance.
        arrival: gets the messages.
        answered: called when a request has its answer in the registry, and (without a command) at the end.
        request_timeout: seconds for the answer to a request.
        stop_timeout: seconds for a goodbye.

    Attributes:
        epoch: its number in the registry, 0 before it is open.
        opened_at: boottime, 0 before it is open.
        lost: how it ended, None while it lives.
    """

    def __init__(
        self,
        link: Link,
        *,
        registry: Registry,
        clock: Clock,
        arrival: Arrival,
        answered: "Callable[[Carrier, Command | None], None]",
        request_timeout: float,
        stop_timeout: float,
    ) -> None:
        self._link = link
        self._registry = registry
        self._clock = clock
        self._arrival = arrival
        self._answered = answered
        self._request_timeout = request_timeout
        self._stop_timeout = stop_timeout
        self._tasks: set[asyncio.Task[None]] = set()
        self.epoch = 0
        self.opened_at = 0.0
        self.lost: Lost | None = None

    @property
    def link(self) -> Link:
        """The connection itself, for calls that only one broker knows."""
        return self._link

    async def open(self, seconds: float) -> None:
        """Connect and log in.

        Raises:
            TransientError: no connection in time; or what the link says.
        """
        try:
            await within(self._clock, seconds, self._link.open(self._sink))
        except TimeoutError:
            await self.close()
            raise TransientError(
                f"no connection within {seconds:g} s", category="timeout"
            ) from None
        except BaseException:
            await self.close()
            raise
        self.opened_at = self._clock.boottime()
        self.epoch = self._registry.connected()
        self._spawn(self._watch())

    def pump(self) -> None:
        """Send what is due on this connection."""
        if self.lost is not None:
            return
        for command in self._registry.due(self._clock.boottime(), self.epoch):
            self._spawn(self._ask(command))

    async def probe(self) -> bool | None:
        """Ask the venue something: whether it answered in time, None where there is nothing to ask."""
        try:
            asked = await within(self._clock, self._request_timeout, self._link.probe())
        except PermanentError:
            return True  # an answer is an answer
        except (APIError, TimeoutError) as error:
            telemetry.event(log, logging.INFO, "Stream probe unanswered", reason=str(error))
            return False
        return None if asked is False else True

    async def close(self) -> None:
        """Let go of everything within `stop_timeout`; may be called twice."""
        if self.epoch:
            self._registry.disconnected(self.epoch)
        if self.lost is None:
            self.lost = Lost("stopped")
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await within(self._clock, self._stop_timeout, self._link.close())
        except TimeoutError:
            telemetry.event(
                log, logging.WARNING, "Stream goodbye took too long", seconds=self._stop_timeout
            )
        except Exception:
            log.exception("closing a stream's link failed")

    def _sink(self, channel: str, arguments: Sequence[Any], at: float) -> None:
        self._arrival(self, channel, arguments, at)

    async def _watch(self) -> None:
        try:
            lost = await self._link.closed()
        except Exception as error:
            log.exception("a stream's link failed")
            lost = Lost("cut", f"the link failed ({type(error).__name__})")
        if self.lost is None:
            self.lost = lost
        self._answered(self, None)

    async def _ask(self, command: Command) -> None:
        call = (
            self._link.subscribe if command.action is Action.SUBSCRIBE else self._link.unsubscribe
        )
        try:
            await within(self._clock, self._request_timeout, call(command.topic))
        except TimeoutError:
            self._failed(command, TransientError("no answer in time", category="timeout"))
        except Exception as error:
            if not isinstance(error, APIError):
                log.exception("a request of a stream failed")
            self._failed(command, error)
        else:
            self._registry.confirmed(command)
        self._answered(self, command)

    def _failed(self, command: Command, error: Exception) -> None:
        telemetry.event(
            log, logging.WARNING, "Stream request failed",
            action=command.action.value, topic=command.topic.name, reason=str(error),
        )  # fmt: skip
        self._registry.failed(
            command,
            self._clock.boottime(),
            reason=str(error) or type(error).__name__,
            in_doubt=_is_in_doubt(error),
            permanent=isinstance(error, PermanentError),
            retry_after=getattr(error, "retry_after", None),
            chance=self._clock.chance(),
        )

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __repr__(self) -> str:
        return f"<Carrier {self.epoch} {self._link!r}{'' if self.lost is None else ' ' + self.lost.reason}>"


def _is_in_doubt(error: Exception) -> bool:
    """Whether the venue may have done it all the same."""
    if isinstance(error, OutcomeUnknown):
        return True
    return isinstance(error, TransientError) and error.sent and error.status is None
