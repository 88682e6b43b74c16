"""The callbacks of one receiver or feed, each with its courier.

Invariants: adding and removing works from every thread, before and while tokens come; a coroutine function is refused
where no loop of the caller's would run it; reading the couriers needs no lock.
"""

import threading
from collections.abc import Callable
from typing import Any

from keepline.clock import Clock
from keepline.credentials.token import Token
from keepline.errors import ConfigError
from keepline.relay.mailbox import (
    Callback,
    Courier,
    TaskCourier,
    ThreadCourier,
    is_coroutine_callback,
)

__all__ = ["Callbacks"]

_Entry = tuple[Callback, bool]


class Callbacks:
    """Who wants to hear of tokens.

    Args:
        main: the callback that `set_main` replaces; None for none.
        clock: measures callbacks.
    """

    def __init__(self, main: Callback | None, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._main: _Entry | None = None if main is None else (main, False)
        self._others: list[_Entry] = []
        self._couriers: tuple[Courier, ...] = ()
        self._is_open = False
        self._on_loop = False

    def set_main(self, callback: Callback | None) -> None:
        """Replace the main callback; None removes it.

        Raises:
            ConfigError: a coroutine function while callbacks run on threads.
        """
        entry = None if callback is None else (callback, False)
        with self._lock:
            self._exchange(self._main, entry)
            self._main = entry

    def add(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Add a callback and return a function that removes it.

        Raises:
            ConfigError: a coroutine function while callbacks run on threads.
        """
        entry = (callback, full)
        with self._lock:
            self._exchange(None, entry)
            self._others.append(entry)

        def remove() -> None:
            with self._lock:
                if entry in self._others:
                    self._others.remove(entry)
                    self._exchange(entry, None)

        return remove

    def open(self, *, on_loop: bool) -> None:
        """Begin to call back: in tasks of the running loop, or on threads.

        Raises:
            ConfigError: a coroutine function while callbacks run on threads.
        """
        with self._lock:
            self._on_loop = on_loop
            entries = [*([self._main] if self._main else []), *self._others]
            couriers = [self._courier(entry) for entry in entries]
            for courier in couriers:
                courier.open()
            self._couriers, self._is_open = tuple(couriers), True

    def put(self, token: Token, arrived: float) -> None:
        """Leave a token for all of them; `arrived` in seconds of the clock's boottime."""
        for courier in self._couriers:
            courier.put(token, arrived)

    def close(self) -> None:
        """Let no further call begin."""
        with self._lock:
            self._is_open = False
            for courier in self._couriers:
                courier.close()

    async def wait_closed(self) -> None:
        """After `close`: return once calls in tasks have ended."""
        for courier in self._couriers:
            if isinstance(courier, TaskCourier):
                await courier.wait_closed()

    def stats(self) -> list[dict[str, Any]]:
        """Numbers of each, in the order in which they were added."""
        return [courier.stats() for courier in self._couriers]

    def forget_after_fork(self) -> None:
        """In a forked child: the threads are not here."""
        self._lock = threading.Lock()
        self._couriers, self._is_open = (), False

    def _courier(self, entry: _Entry) -> Courier:
        callback, full = entry
        if self._on_loop:
            return TaskCourier(callback, full=full, clock=self._clock)
        if is_coroutine_callback(callback):
            raise ConfigError(
                "a coroutine function needs a loop of yours: use `async with`", key="callback"
            )
        return ThreadCourier(callback, full=full, clock=self._clock)

    def _exchange(self, old: _Entry | None, new: _Entry | None) -> None:
        if not self._is_open:
            return
        kept = list(self._couriers)
        if new is not None:
            courier = self._courier(new)
            courier.open()
            kept.append(courier)
        gone = next((c for c in kept if (c.callback, c.full) == old), None)
        if gone is not None:
            kept.remove(gone)
            gone.close()
        self._couriers = tuple(kept)
