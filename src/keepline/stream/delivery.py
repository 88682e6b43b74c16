"""From a stream to callbacks: each has a mailbox and a worker of its own, so that none waits for another.

Invariants: one callback sees its items in order and one at a time; a coroutine function runs as a task on the loop, a
plain function in a thread of its own, since it may block; what a callback raises is logged and counted and ends
nothing; a full `never` mailbox is announced before the refused item is forgotten, and again when there is room.
"""

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import ConfigError
from keepline.stream.mailbox import Mailbox, Put
from keepline.stream.port import Policy
from keepline.telemetry import REGISTRY, event

__all__ = ["Callback", "Delivery", "Overflow"]

log = logging.getLogger("keepline.stream")

Callback = Callable[..., Any]
"""Called with the arguments of a message; a plain function or a coroutine function."""

CONFLATED = REGISTRY.counter(
    "stream_conflated_total", "Messages replaced by a newer one of their key", "channel"
)
DROPPED = REGISTRY.counter(
    "stream_dropped_total", "Messages of a conflated channel dropped: too many keys", "channel"
)
OVERFLOWS = REGISTRY.counter(
    "stream_overflow_total", "Messages that a full never-drop mailbox refused", "channel"
)
CALLBACK_ERRORS = REGISTRY.counter(
    "stream_callback_errors_total", "Callbacks that raised", "channel"
)


@dataclass(frozen=True, slots=True)
class Overflow:
    """A never-drop mailbox is full, or has room again: what is missing must come from a snapshot.

    Attributes:
        channel: whose messages.
        callback: whose mailbox.
        missing: how many were refused so far.
        over: True once there is room again: now a reconciliation can be delivered.
    """

    channel: str
    callback: str
    missing: int
    over: bool


class Delivery:
    """One callback with its mailbox and its worker.

    `push` is called on the loop's thread; the worker starts with the first item.
    """

    def __init__(
        self,
        callback: Callback,
        *,
        channel: str,
        policy: Policy = "never",
        limit: int = 10_000,
        inline: bool = False,
        on_overflow: Callable[[Overflow], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            callback: called as `callback(*arguments)`.
            channel: for logs and metrics.
            policy: what a full mailbox does, see `Mailbox`.
            limit: how many messages may wait.
            inline: a plain function runs on the loop, at once when nothing waits: only for what never blocks.
            on_overflow: called on the loop when a `never` mailbox is full, and when it has room again.
            clock: time.

        Raises:
            ConfigError: the callback is not callable, or the mailbox's settings make no sense.
        """
        if not callable(callback):
            raise ConfigError(f"a callback is a function, not {callback!r}", key="callback")
        self.name = _name(callback)
        self.channel = channel
        self._callback = callback
        self._mailbox = Mailbox(policy, limit=limit)
        self._on_overflow = on_overflow
        self._clock = clock
        self._errors = 0
        self._delivered = 0
        self._closed = False
        self._busy_since: float | None = None
        self._worker: _TaskWorker | _ThreadWorker | None = None
        self._is_async = _is_async(callback)
        self._inline = inline and not self._is_async

    # --- facts ---

    @property
    def queued(self) -> int:
        """How many messages wait."""
        return len(self._mailbox)

    @property
    def delivered(self) -> int:
        """How many messages the callback has returned from, or raised at."""
        return self._delivered

    @property
    def errors(self) -> int:
        """How often the callback raised."""
        return self._errors

    @property
    def missing(self) -> int:
        """Messages refused in the overflow that goes on, 0 when none does."""
        return self._mailbox.missing

    def stuck_for(self, now: float) -> float:
        """For how many seconds the callback has not returned, 0.0 while it is idle."""
        return 0.0 if self._busy_since is None else max(now - self._busy_since, 0.0)

    # --- work ---

    def push(self, arguments: Sequence[Any], key: str = "") -> Put:
        """A message for the callback: cheap, never raises, never waits; only on the loop's thread."""
        if self._inline:
            return self._call_now(arguments)
        if self._closed:
            return Put.REFUSED
        if self._worker is None:
            self._worker = (_TaskWorker if self._is_async else _ThreadWorker)(self)
        outcome = self._worker.put(key, arguments)
        if outcome is not Put.QUEUED:
            self._count(outcome)
        return outcome

    def _call_now(self, arguments: Sequence[Any]) -> Put:
        if self._closed:
            return Put.REFUSED
        self.run(arguments)
        return Put.QUEUED

    def _count(self, outcome: Put) -> None:
        if outcome is Put.CONFLATED:
            CONFLATED.inc(self.channel)
        elif outcome is Put.DROPPED:
            DROPPED.inc(self.channel)
        else:
            OVERFLOWS.inc(self.channel)
        if outcome is Put.OVERFLOW:
            self._announce(self._mailbox.missing, over=False)

    def _announce(self, missing: int, *, over: bool) -> None:
        level = logging.WARNING if over else logging.ERROR
        words = "Callback has room again" if over else "Callback too slow, buffer full"
        event(log, level, words, channel=self.channel, callback=self.name, missing=missing)
        if self._on_overflow is not None:
            try:
                self._on_overflow(Overflow(self.channel, self.name, missing, over))
            except Exception:
                log.exception("An overflow's listener raised")

    def take(self) -> Any:
        """For the workers: the next message."""
        return self._mailbox.take()

    def run(self, arguments: Sequence[Any]) -> None:
        """For the workers: one call of a plain function."""
        self._busy_since = self._clock.boottime()
        try:
            self._callback(*arguments)
        except Exception as error:
            self.failed(error)
        finally:
            self._busy_since = None
            self._delivered += 1

    async def run_async(self, arguments: Sequence[Any]) -> None:
        """For the workers: one call of a coroutine function."""
        self._busy_since = self._clock.boottime()
        try:
            await self._callback(*arguments)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.failed(error)  # the callback's own, not ours
        except Exception as error:
            self.failed(error)
        finally:
            self._busy_since = None
            self._delivered += 1

    def failed(self, error: BaseException) -> None:
        """For the workers: the callback raised."""
        CALLBACK_ERRORS.inc(self.channel)
        self._errors += 1
        if self._errors & (self._errors - 1) == 0:  # the 1st, 2nd, 4th, 8th …: a log is not a flood
            event(
                log,
                logging.ERROR,
                "Callback failed",
                channel=self.channel,
                callback=self.name,
                error=f"{type(error).__name__}: {error}",
                times=self._errors,
            )

    @property
    def mailbox(self) -> Mailbox:
        """For the workers: what waits."""
        return self._mailbox

    def relieved(self, missing: int) -> None:
        """For the workers, on the loop: an overflow is over."""
        self._announce(missing, over=True)

    async def close(self, *, drain_seconds: float = 1.0) -> int:
        """Accept nothing more, give the callback that long for what waits, and let go of the worker.

        Returns:
            How many messages were not delivered; a thread that does not return is left behind and logged.
        """
        self._closed = True
        if self._worker is not None:
            await self._worker.close(self._clock, drain_seconds)
        return len(self._mailbox)

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.channel} to {self.name}, {self.queued} queued, {self.errors} errors>"
        )


class _TaskWorker:
    """A coroutine function's worker: one task."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._something = asyncio.Event()
        self._closing = False
        self._task = asyncio.get_running_loop().create_task(
            self._work(), name=f"keepline callback {delivery.name}"
        )

    def put(self, key: str, arguments: Sequence[Any]) -> Put:
        outcome = self._delivery.mailbox.put(key, arguments)
        self._something.set()
        return outcome

    async def _work(self) -> None:
        delivery, mailbox = self._delivery, self._delivery.mailbox
        while True:
            while mailbox:
                await delivery.run_async(mailbox.take())
                if mailbox.missing and (missing := mailbox.relieved()):
                    delivery.relieved(missing)
                # a coroutine that never really waits must not keep the loop from others
                await asyncio.sleep(0)
            if self._closing:
                return
            self._something.clear()
            await self._something.wait()

    async def close(self, clock: Clock, seconds: float) -> None:
        self._closing = True
        self._something.set()
        with contextlib.suppress(TimeoutError):
            await within(clock, seconds, asyncio.shield(self._task))
        self._task.cancel()
        await asyncio.wait({self._task})


class _ThreadWorker:
    """A plain function's worker: one daemon thread."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._closing = False
        self._abandoned = False
        self._waiting = False
        self._done = asyncio.Event()
        self._thread = threading.Thread(
            target=self._work, name=f"keepline callback {delivery.name}", daemon=True
        )
        self._thread.start()

    def put(self, key: str, arguments: Sequence[Any]) -> Put:
        with self._condition:
            outcome = self._delivery.mailbox.put(key, arguments)
            if self._waiting:
                self._condition.notify()
        return outcome

    def _work(self) -> None:
        try:
            while (arguments := self._next()) is not None:
                self._delivery.run(arguments)
        finally:
            self._on_loop(self._done.set)

    def _next(self) -> Sequence[Any] | None:
        mailbox = self._delivery.mailbox
        with self._condition:
            while not mailbox:
                if self._closing:
                    return None
                self._waiting = True
                self._condition.wait()
                self._waiting = False
            if self._abandoned:
                return None
            arguments: Sequence[Any] = mailbox.take()
            missing = mailbox.relieved() if mailbox.missing else 0
        if missing:
            self._on_loop(self._delivery.relieved, missing)
        return arguments

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(call, *arguments)

    async def close(self, clock: Clock, seconds: float) -> None:
        with self._condition:
            self._closing = True
            self._condition.notify()
        try:
            await within(clock, seconds, self._done.wait())
        except TimeoutError:
            with self._condition:
                self._abandoned = True
            event(
                log,
                logging.ERROR,
                "Callback does not return, its thread is left behind",
                channel=self._delivery.channel,
                callback=self._delivery.name,
            )


def _name(callback: Callback) -> str:
    return str(getattr(callback, "__qualname__", type(callback).__qualname__))


def _is_async(callback: Callback) -> bool:
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(
        getattr(callback, "__call__", None)  # noqa: B004 - whether it is a coroutine function, not whether callable
    )
