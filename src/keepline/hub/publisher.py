"""Publishes to a hub in another process, over HTTP, without ever making the caller wait.

Invariants: `publish` takes a lock for microseconds and touches no socket; what waits is bounded, by the policy of its
channel; a batch keeps its idempotency key until it is answered, so a repeat after a lost answer publishes nothing
twice; whatever is not published is counted.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import secrets
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import Closed, ConfigError, PermanentError, QueueFull
from keepline.http import HttpSession, redacted_url
from keepline.hub.messages import encode_data
from keepline.hub.outgoing import POLICIES, Added, Item, Outgoing, Policy
from keepline.hub.publishing import encode_draft
from keepline.hub.sending import Sender, Token
from keepline.portal import shared_portal
from keepline.telemetry import REGISTRY, event

__all__ = ["HubPublisher"]

log = logging.getLogger("keepline.hub")

MESSAGES = REGISTRY.counter(
    "hub_publisher_messages_total",
    "Messages handed to a hub's publisher by what became of them.",
    "outcome",
)


class HubPublisher:
    """A publisher for programs beside the hub.

    Used as it is, or in `with`, it works on a background thread; `async with` uses the caller's loop. Every method that
    is not a coroutine may be called from any thread.

    Args:
        url: the hub, for example `http://127.0.0.1:7999`.
        token: a JWT of role `service`, or what gives one (called again when the hub refuses it; must not block).
        policies: what to do, by channel, when there is no room; the hub's own channels are known, any other is
            `drop-oldest`.
        capacity: messages that may wait of channels that may drop some.
        durable_capacity: messages that may wait of channels that drop nothing.
        batch_messages: messages per request.
        batch_bytes: JSON text per request; one longer message goes alone.
        timeout_seconds: per request.
        close_seconds: how long the end waits for what is still to be sent.
        ssl_context: whom to trust; None is the system's store.
        clock: for waits.

    Example:
        >>> with HubPublisher("http://127.0.0.1:7999", token) as publisher:
        ...     publisher.publish("routing-metrics", "routing-decision", {"symbol": "EURUSD"})
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        policies: Mapping[str, Policy] | None = None,
        capacity: int = 10_000,
        durable_capacity: int = 100_000,
        batch_messages: int = 500,
        batch_bytes: int = 512 << 10,
        timeout_seconds: float = 10.0,
        close_seconds: float = 5.0,
        ssl_context: ssl.SSLContext | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.url = redacted_url(url).rstrip("/")
        if isinstance(token, str) and not token.strip():
            raise ConfigError("a token, or what gives one, is needed", key="token")
        if min(batch_messages, batch_bytes) < 1 or not close_seconds >= 0:
            raise ConfigError("a batch holds at least one message", key="batch_messages")
        self._queue = Outgoing(
            {**POLICIES, **(policies or {})}, capacity=capacity, durable_capacity=durable_capacity
        )
        self._most = batch_messages
        self._most_bytes = batch_bytes
        self._close_seconds = close_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._on_portal = False
        self._starting = False
        self._closed = False
        self._asleep = False
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._in_flight: list[Item] = []
        self._flushes: list[tuple[int, concurrent.futures.Future[bool]]] = []
        self._counts = dict.fromkeys(
            ("accepted", "duplicate", "conflated", "dropped", "refused", "lost"), 0
        )
        self._announced_full = False
        http = HttpSession(timeout_seconds=timeout_seconds, ssl_context=ssl_context)
        self._sender = Sender(
            *(self.url, token, http, self._report), hurry=self._closing, clock=clock
        )

    # --- handing in ---

    def publish(
        self,
        channel: str,
        type: str,
        data: object,
        *,
        key: str | None = None,
        id: str | None = None,
    ) -> bool:
        """Hand in a message; it is sent in the background.

        Args:
            channel: where to, for example `routing-metrics`.
            type: what it is, for example `routing-decision`.
            data: what JSON can say.
            key: what it is about, on a channel that keeps the newest per key.
            id: by what it is recognised when it comes again; messages of `never` channels get one.

        Returns:
            False when it is not taken: closed, or a `never` channel has no room left.

        Raises:
            ConfigError: what cannot be a message: NaN, no JSON, a channel that is no text.
        """
        line = self._line(channel, type, data, key, id)
        return self._hand_in(channel, type, key, line, None)

    async def publish_durable(
        self,
        channel: str,
        type: str,
        data: object,
        *,
        key: str | None = None,
        id: str | None = None,
    ) -> None:
        """Hand in a message and wait until the hub has it (and has stored it, on a `never` channel).

        Raises:
            ConfigError: as `publish`.
            QueueFull: there is no room.
            PermanentError: the hub refused it, with the hub's words.
            Closed: the publisher was closed first; it may have arrived.
        """
        line = self._line(channel, type, data, key, id or secrets.token_hex(12))
        waiter: concurrent.futures.Future[None] = concurrent.futures.Future()
        if not self._hand_in(channel, type, key, line, waiter):
            if self._closed:
                raise Closed(f"the publisher to {self.url} is closed")
            raise QueueFull(f"too many messages for {self.url} wait already", retry_after=1.0)
        await asyncio.wrap_future(waiter)

    # --- life ---

    def start(self) -> None:
        """Work on the background thread from now on; `publish` does it by itself.

        Raises:
            Closed: it was closed.
        """
        with self._lock:
            if self._closed:
                raise Closed(f"the publisher to {self.url} is closed")
            if self._starting:
                return
            self._starting = self._on_portal = True
        shared_portal().submit(self._begin())

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """Send what waits, for at most `timeout_seconds` (`close_seconds` if not said), and end.

        Returns:
            True when nothing was left behind.
        """
        if self._on_portal:
            return shared_portal().call(self._end, timeout_seconds)
        with self._lock:
            self._closed = True
        return not self._give_up()

    async def close(self, timeout_seconds: float | None = None) -> bool:
        """As `stop`, for a caller with an event loop."""
        if self._on_portal:
            ending = shared_portal().submit(self._end(timeout_seconds))
            return await asyncio.wrap_future(ending)
        return await self._end(timeout_seconds)

    def __enter__(self) -> "HubPublisher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> "HubPublisher":
        with self._lock:
            if self._closed:
                raise Closed(f"the publisher to {self.url} is closed")
            first, self._starting = not self._starting, True
        if first:
            await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def flush_sync(self, timeout_seconds: float | None = None) -> bool:
        """Wait until what was handed in so far is answered; not on an event loop.

        Returns:
            False when the time was up first.
        """
        waiter = self._flush()
        try:
            return waiter.result(timeout_seconds)
        except concurrent.futures.TimeoutError:
            return False

    async def flush(self, timeout_seconds: float | None = None) -> bool:
        """As `flush_sync`, for a caller with an event loop."""
        waiter = asyncio.wrap_future(self._flush())
        if timeout_seconds is None:
            return await waiter
        try:
            return await within(self._clock, timeout_seconds, waiter)
        except TimeoutError:
            return False

    @property
    def last_error(self) -> str:
        """Why the last request failed, "" when it did not."""
        return self._sender.last_error

    def get_stats(self) -> dict[str, Any]:
        """Numbers since the start: messages by what became of them, what waits, batches, retries, the last error."""
        with self._lock:
            return {
                **self._counts,
                "waiting": len(self._queue),
                "in_flight": len(self._in_flight),
                "batches": self._sender.requests,
                "retries": self._sender.retries,
                "last_error": self._sender.last_error,
                "closed": self._closed,
            }

    # --- from any thread ---

    def _line(
        self, channel: str, type: str, data: object, key: str | None, id: str | None
    ) -> bytes:
        made_up = secrets.token_hex(12) if self._queue.policy(channel) == "never" else None
        return encode_draft(channel, type, encode_data(data), key=key, id=id or made_up)

    def _hand_in(
        self,
        channel: str,
        type: str,
        key: str | None,
        line: bytes,
        waiter: "concurrent.futures.Future[None] | None",
    ) -> bool:
        with self._lock:
            if self._closed:
                self._count("refused")
                return False
            before = self._queue.dropped
            added = self._queue.add(channel, type, key, line, waiter=waiter)
            self._count_added(added, self._queue.dropped - before)
            started, asleep, self._asleep = self._starting, self._asleep, False
        if added is Added.REFUSED:
            return False
        if not started:
            with contextlib.suppress(Closed):
                self.start()
        elif asleep:
            self._call_soon(self._wake.set)
        return True

    def _count_added(self, added: Added, dropped: int) -> None:
        if added is Added.CONFLATED:
            self._count("conflated")
        if dropped:
            self._count("dropped", dropped)
        if added is Added.REFUSED:
            self._count("refused")
        if added in (Added.REFUSED, Added.DROPPED) and not self._announced_full:
            self._announced_full = True
            lost = "refused" if added is Added.REFUSED else "dropped"
            level = logging.ERROR if added is Added.REFUSED else logging.WARNING
            event(log, level, "Publisher buffer full", hub=self.url, messages=lost)

    def _count(self, outcome: str, by: int = 1) -> None:
        self._counts[outcome] += by
        MESSAGES.inc(outcome, by=by)

    def _flush(self) -> "concurrent.futures.Future[bool]":
        waiter: concurrent.futures.Future[bool] = concurrent.futures.Future()
        with self._lock:
            if self._closed or not self._pending(self._queue.sequence):
                waiter.set_result(not self._pending(self._queue.sequence))
            else:
                self._flushes.append((self._queue.sequence, waiter))
        return waiter

    def _pending(self, sequence: int) -> bool:
        """Whether something up to this number is not answered yet."""
        oldest = [item.sequence for item in self._in_flight]
        if self._queue.oldest is not None:
            oldest.append(self._queue.oldest)
        return bool(oldest) and min(oldest) <= sequence

    def _call_soon(self, function: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody sends any more
                loop.call_soon_threadsafe(function)

    # --- on the loop ---

    async def _begin(self) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.create_task(self._run())

    async def _end(self, timeout_seconds: float | None) -> bool:
        limit = self._close_seconds if timeout_seconds is None else timeout_seconds
        with self._lock:
            self._closed = True
            task, self._task = self._task, None
        self._closing.set()
        self._wake.set()
        if task is not None:
            try:
                await within(self._clock, limit, task)
            except TimeoutError:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        return not self._give_up()

    def _give_up(self) -> int:
        """Count what is left behind; it happens once."""
        with self._lock:
            left = self._in_flight + self._queue.take(len(self._queue), 1 << 62)
            self._in_flight = []
            if left:
                self._count("lost", len(left))
            flushes, self._flushes = self._flushes, []
        for item in left:
            _tell(item.waiter, Closed(f"the publisher to {self.url} was closed first"))
        for _, waiter in flushes:
            _answer(waiter, not left)
        if left:
            durable = sum(item.durable for item in left)
            event(
                *(log, logging.ERROR if durable else logging.WARNING, "Publisher closed early"),
                hub=self.url,
                lost=len(left),
                lost_of_never_channels=durable,
                error=self._sender.last_error,
            )
        return len(left)

    async def _run(self) -> None:
        try:
            while (items := await self._next()) is not None:
                await self._send(items)
        finally:
            await self._sender.close()

    async def _send(self, items: list[Item]) -> None:
        """A fault of ours costs the messages that met it, not all that come after them."""
        try:
            await self._sender.send(items)
        except Exception as error:
            log.exception("Publisher failed")
            left = list(self._in_flight)
            words = f"the publisher failed: {type(error).__name__}"
            self._report(left, refused={}, lost={i.sequence: words for i in left}, duplicates=0)

    async def _next(self) -> list[Item] | None:
        while True:
            with self._lock:
                self._wake.clear()
                items = self._queue.take(self._most, self._most_bytes)
                self._in_flight = items
                if items:
                    return items
                if self._closed:
                    return None
                self._asleep = True
                self._announced_full = False
            await self._wake.wait()

    def _report(
        self,
        items: Sequence[Item],
        *,
        refused: Mapping[int, str],
        lost: Mapping[int, str],
        duplicates: int,
    ) -> None:
        """These are answered: count them, and tell whoever waits for one of them."""
        accepted = len(items) - len(refused) - len(lost) - duplicates
        with self._lock:
            for outcome, number in (
                *(("accepted", accepted), ("duplicate", duplicates)),
                *(("refused", len(refused)), ("lost", len(lost))),
            ):
                if number:
                    self._count(outcome, number)
            gone = {item.sequence for item in items}
            self._in_flight = [item for item in self._in_flight if item.sequence not in gone]
            ready = [w for sequence, w in self._flushes if not self._pending(sequence)]
            self._flushes = [(s, w) for s, w in self._flushes if w not in ready]
        for item in items:
            reason = refused.get(item.sequence) or lost.get(item.sequence)
            _tell(item.waiter, None if reason is None else PermanentError(reason))
        for waiter in ready:
            _answer(waiter, True)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._starting else "not started"
        return f"<HubPublisher {self.url} {state}, {len(self._queue)} waiting>"


def _tell(waiter: "concurrent.futures.Future[None] | None", error: Exception | None) -> None:
    if waiter is None or not waiter.set_running_or_notify_cancel():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)


def _answer(waiter: "concurrent.futures.Future[bool]", value: bool) -> None:
    if waiter.set_running_or_notify_cancel():
        waiter.set_result(value)
