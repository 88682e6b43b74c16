"""Handlers of a hub connection at work: coroutines as bounded tasks, and an answer for every call that waits for one.

Invariants: a handler that raises or never returns stops no other and not the reader; at most `limit` coroutines run at
a time, one more is refused, counted and logged; a call that the server waits for is answered once, within its time,
even when no handler is there; an error's own text never goes to the server.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from keepline.clock import Clock, within
from keepline.errors import ConfigError, KeeplineError
from keepline.stream.binding import Types
from keepline.stream.dispatch import Dispatch
from keepline.stream.messages import Invocation
from keepline.telemetry import REGISTRY

__all__ = ["AnswerOut", "Answering"]

log = logging.getLogger("keepline.stream")

_failures = REGISTRY.counter(
    "stream_handler_failures_total", "Handlers that raised, came too late or were refused.", "kind"
)

NO_HANDLER = "Client didn't provide a result."  # the official clients' words
SEVERAL = "Client provided multiple results."


class AnswerOut(Protocol):
    """Where answers go: `HubWire.complete` and a push behind it."""

    def __call__(self, call_id: str, result: Any = None, *, error: str | None = None) -> None: ...


class Answering:
    """Runs what handlers return, and answers the server.

    Args:
        answer: where answers go.
        clock: time.
        limit: coroutines that may run at a time.
        seconds: for the answer to a call of the server.
        types: into what arguments are decoded.

    Raises:
        ConfigError: no handler could ever run, or in no time.

    Attributes:
        dispatch: the table of handlers.
        failures: how often a handler raised, came too late or was refused.
        tasks: the coroutines at work.
    """

    def __init__(
        self,
        answer: AnswerOut,
        *,
        clock: Clock,
        limit: int,
        seconds: float,
        types: Types | None = None,
    ) -> None:
        _check(limit, seconds)
        self._answer = answer
        self._clock = clock
        self._limit = limit
        self._seconds = seconds
        self.tasks: set[asyncio.Task[None]] = set()
        self._owed: dict[str, asyncio.Task[None]] = {}
        self.failures = 0
        self.dispatch = Dispatch(types, failed=self._raised, returned=self._returned)

    def asked(self, call: Invocation) -> None:
        """The server waits for an answer to this call."""
        handlers = self.dispatch.handlers(call.target)
        if not handlers:
            return self._say(call, None, NO_HANDLER)
        results: list[Any] = []
        error: str | None = None
        for handler in handlers:
            try:
                results.append(handler(*call.arguments))
            except Exception as failure:
                self._raised(call, failure)
                error = _words(call, failure)
        if not any(map(inspect.isawaitable, results)):
            return self._settle(call, results, error)
        if self._has_room(call, results):
            task = self._run(self._gather(call, results, error))
            self._owed[str(call.id)] = task
        else:
            self._say(call, None, f"{call.target}: too many handlers are at work")
        return None

    def cancelled(self, call_id: str) -> None:
        """The server no longer waits."""
        task = self._owed.pop(call_id, None)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """Cancel what still runs."""
        mine = asyncio.current_task()
        tasks = [task for task in self.tasks if task is not mine]
        for task in tasks:
            task.cancel()
        if tasks:  # a handler that swallows its cancellation must not hold up the end
            await asyncio.wait(tasks, timeout=1.0)

    def _returned(self, call: Invocation, value: Any) -> None:
        if inspect.isawaitable(value) and self._has_room(call, [value]):
            self._run(self._finish(call, value))

    async def _finish(self, call: Invocation, value: Awaitable[Any]) -> None:
        try:
            await value
        except Exception as failure:
            self._raised(call, failure)

    async def _gather(self, call: Invocation, values: Sequence[Any], error: str | None) -> None:
        try:
            results = await within(self._clock, self._seconds, _all(values))
        except TimeoutError:
            self._count(call, "timeout", None)
            self._say(call, None, f"{call.target}: no answer within {self._seconds:g} s")
        except Exception as failure:
            self._raised(call, failure)
            self._say(call, None, _words(call, failure))
        else:
            self._settle(call, results, error)
        finally:
            self._owed.pop(str(call.id), None)

    def _settle(self, call: Invocation, results: Sequence[Any], error: str | None) -> None:
        given = [result for result in results if result is not None]
        if error is None and len(given) > 1:
            error = SEVERAL
        self._say(call, given[0] if given else None, error)

    def _say(self, call: Invocation, result: Any, error: str | None) -> None:
        call_id = str(call.id)
        try:
            if error is None:
                self._answer(call_id, result)
            else:
                self._answer(call_id, error=error)
        except KeeplineError as failure:
            self._raised(call, failure)
            self._answer(call_id, error=f"{call.target}: the result cannot be sent")

    def _has_room(self, call: Invocation, values: Sequence[Any]) -> bool:
        if len(self.tasks) < self._limit:
            return True
        for value in values:
            if inspect.iscoroutine(value):
                value.close()
        self._count(call, "refused", None)
        return False

    def _run(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _raised(self, call: Invocation, failure: Exception) -> None:
        self._count(call, "raised", failure)

    def _count(self, call: Invocation, kind: str, failure: Exception | None) -> None:
        self.failures += 1
        _failures.inc(kind)
        if (
            self.failures & (self.failures - 1) == 0
        ):  # 1, 2, 4, 8, …: a broken handler is no log storm
            fields = {"target": call.target, "kind": kind, "failures": self.failures}
            log.error("Stream handler failed", exc_info=failure, extra={"fields": fields})


def _check(limit: int, seconds: float) -> None:
    if limit < 1:
        raise ConfigError(f"at least one handler must run, not {limit!r}", key="max_running")
    if not 0 < seconds < float("inf"):
        raise ConfigError(
            f"a positive number of seconds is needed, not {seconds!r}", key="result_timeout"
        )


def _words(call: Invocation, failure: Exception) -> str:
    return f"{call.target}: the handler failed ({type(failure).__name__})"


async def _all(values: Sequence[Any]) -> list[Any]:
    return [await value if inspect.isawaitable(value) else value for value in values]
