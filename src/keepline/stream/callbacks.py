"""One callback, called so that nothing it does ends anything else.

Invariants: what it raises is logged (at the 1st, 2nd, 4th, 8th … time, a log is no flood) and counted; only our own
cancellation passes through.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from keepline.clock import Clock
from keepline.errors import ConfigError
from keepline.telemetry import REGISTRY, event

__all__ = ["Callback", "Caller"]

log = logging.getLogger("keepline.stream")

Callback: TypeAlias = Callable[..., Any]
"""Called with the arguments of a message; a plain function or a coroutine function."""

ERRORS = REGISTRY.counter("stream_callback_errors_total", "Callbacks that raised", "channel")


class Caller:
    """Calls one callback and keeps count.

    Attributes:
        name: the callback's, for people.
        channel: whose messages it gets.
        is_async: whether it is a coroutine function.
        calls: how often it returned or raised.
        errors: how often it raised.
        busy_since: since when it has not returned (boottime seconds), None while it is idle.
    """

    __slots__ = (
        "_callback",
        "_now",
        "busy_since",
        "calls",
        "channel",
        "errors",
        "is_async",
        "name",
    )

    def __init__(self, callback: Callback, *, channel: str, clock: Clock) -> None:
        if not callable(callback):
            raise ConfigError(f"a callback is a function, not {callback!r}", key="callback")
        self.name = str(getattr(callback, "__qualname__", type(callback).__qualname__))
        self.channel = channel
        self.is_async = inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(
            getattr(callback, "__call__", None)  # noqa: B004 - an object with `async def __call__`
        )
        self.calls = self.errors = 0
        self.busy_since: float | None = None
        self._callback = callback
        self._now = clock.boottime

    def call(self, arguments: Sequence[Any]) -> Awaitable[Any] | None:
        """Call it; what it returns to be awaited is handed out, and then `finish` or `refuse` must follow."""
        self.busy_since = self._now()
        result = None
        try:
            result = self._callback(*arguments)
        except (Exception, asyncio.CancelledError, SystemExit) as error:
            self._failed(error)  # the last two would end a thread without a word
        if inspect.isawaitable(result):
            return result
        self._done()
        return None

    async def finish(self, result: Awaitable[Any]) -> None:
        """Await what a call returned."""
        try:
            await result
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._failed(error)  # the callback's own cancellation, not ours
        except Exception as error:
            self._failed(error)
        finally:
            self._done()

    def refuse(self, result: Awaitable[Any]) -> None:
        """The call returned something to await, and here nobody can."""
        if inspect.iscoroutine(result):
            result.close()
        words = f"{self.name} returned something to await: give the coroutine function itself"
        self._failed(ConfigError(words, key="callback"))
        self._done()

    def _done(self) -> None:
        self.busy_since = None
        self.calls += 1

    def _failed(self, error: BaseException) -> None:
        ERRORS.inc(self.channel)
        self.errors += 1
        if self.errors & (self.errors - 1) == 0:
            event(
                log,
                logging.ERROR,
                "Callback failed",
                channel=self.channel,
                callback=self.name,
                error=f"{type(error).__name__}: {error}",
                times=self.errors,
            )

    def __repr__(self) -> str:
        return f"<Caller {self.name} of {self.channel}, {self.calls} calls, {self.errors} errors>"
