"""From the loop to callbacks: each has a mailbox for one token, a worker of its own, and no influence on the others.

Invariants: putting never waits for a callback; a slow callback skips to the newest token, and each skipped one is
counted; an error of a callback is logged with the callback's name, counted, and ends nothing; after `close` no further
call begins.
"""

import asyncio
import inspect
import logging
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final

from keepline import telemetry
from keepline.clock import Clock
from keepline.credentials.token import Token

__all__ = [
    "EMPTY",
    "Callback",
    "Courier",
    "Mailbox",
    "TaskCourier",
    "ThreadCourier",
    "is_coroutine_callback",
]

log = logging.getLogger("keepline.relay")

Callback = Callable[[Any], Awaitable[None] | None]
"""Called with the access token as text, or with the `Token` when it was added with `full=True`."""

EMPTY: Final = object()
"""What an empty mailbox gives."""

_CALLBACK_SECONDS = telemetry.REGISTRY.histogram(
    "relay_callback_seconds",
    "From the arrival of a token to the return of a callback that was handed it.",
)


class Mailbox:
    """Room for one item: a new one takes the place of one that was not fetched. No lock: its owner has one."""

    __slots__ = ("_item", "skipped")

    def __init__(self) -> None:
        self._item: Any = EMPTY
        self.skipped = 0

    @property
    def is_empty(self) -> bool:
        return self._item is EMPTY

    def put(self, item: object) -> None:
        """Leave the newest item."""
        if self._item is not EMPTY:
            self.skipped += 1
        self._item = item

    def take(self) -> Any:
        """The newest item, or `EMPTY`."""
        item, self._item = self._item, EMPTY
        return item


class Courier(ABC):
    """Carries tokens to one callback and counts what happens.

    Args:
        callback: the user's function.
        full: hand over the `Token`, not its text alone.
        clock: its boottime measures callbacks.
    """

    def __init__(self, callback: Callback, *, full: bool, clock: Clock) -> None:
        self.callback = callback
        self.full = full
        self.calls = 0
        self.errors = 0
        self.last_seconds = 0.0
        self.longest_seconds = 0.0
        self.mailbox = Mailbox()
        self._clock = clock

    @property
    def name(self) -> str:
        """The callback's, for the log."""
        return str(getattr(self.callback, "__qualname__", type(self.callback).__name__))

    def open(self) -> None:  # noqa: B027 - a task needs nothing before its first token
        """Get ready."""

    @abstractmethod
    def put(self, token: Token, arrived: float) -> None:
        """Leave a token for the callback; `arrived` in seconds of the clock's boottime."""

    @abstractmethod
    def close(self) -> None:
        """Let no further call begin; one that runs may finish."""

    def stats(self) -> dict[str, Any]:
        """Numbers of this callback; `skipped` counts tokens that a newer one replaced before the callback was free."""
        return {
            "name": self.name,
            "calls": self.calls,
            "errors": self.errors,
            "skipped": self.mailbox.skipped,
            "last_seconds": self.last_seconds,
            "longest_seconds": self.longest_seconds,
        }

    def _argument(self, token: Token) -> Token | str:
        return token if self.full else token.access_token

    def _returned(self, arrived: float) -> None:
        self.calls += 1
        self.last_seconds = self._clock.boottime() - arrived
        self.longest_seconds = max(self.longest_seconds, self.last_seconds)
        _CALLBACK_SECONDS.observe(self.last_seconds)

    def _failed(self, token: Token) -> None:
        self.errors += 1
        trace = telemetry.redact(traceback.format_exc(), token.access_token, token.refresh_token)
        log.error("Callback failed: %s\n%s", self.name, trace)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}, {self.calls} calls, {self.errors} errors>"


class ThreadCourier(Courier):
    """Calls back on a thread of its own, which lives from `open` to `close`.

    Args:
        drain: hand over what is in the mailbox at `close` before the thread ends.
    """

    def __init__(
        self, callback: Callback, *, full: bool, clock: Clock, drain: bool = False
    ) -> None:
        super().__init__(callback, full=full, clock=clock)
        self._changed = threading.Condition()
        self._closed = False
        self._drain = drain
        self._thread = threading.Thread(
            target=self._work, name=f"keepline-callback-{self.name}", daemon=True
        )

    def open(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, token: Token, arrived: float) -> None:
        with self._changed:
            self.mailbox.put((token, arrived))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            if not self._drain:
                self.mailbox.take()
            self._changed.notify()

    def join(self) -> None:
        """After `close`: return once the thread has ended."""
        self._thread.join()

    def _work(self) -> None:
        while (item := self._next()) is not EMPTY:
            token, arrived = item
            try:
                self.callback(self._argument(token))
            except BaseException:
                self._failed(token)
            self._returned(arrived)

    def _next(self) -> Any:
        with self._changed:
            while self.mailbox.is_empty and not self._closed:
                self._changed.wait()
            return self.mailbox.take()


class TaskCourier(Courier):
    """Calls back in a task on the running loop; the callback may be a coroutine function."""

    def __init__(self, callback: Callback, *, full: bool, clock: Clock) -> None:
        super().__init__(callback, full=full, clock=clock)
        self._task: asyncio.Task[None] | None = None

    def put(self, token: Token, arrived: float) -> None:
        self.mailbox.put((token, arrived))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def close(self) -> None:
        self.mailbox.take()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Return once a call that was under way has ended."""
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while (item := self.mailbox.take()) is not EMPTY:
                token, arrived = item
                try:
                    result = self.callback(self._argument(token))
                    if inspect.isawaitable(result):
                        await result
                except Exception:
                    self._failed(token)
                self._returned(arrived)
        finally:
            self._task = None


def is_coroutine_callback(callback: Callback) -> bool:
    """Whether calling it gives something to await, as far as one can see before the call."""
    call = getattr(callback, "__call__", None)  # noqa: B004 - looks at it, does not ask whether it is there
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(call)
