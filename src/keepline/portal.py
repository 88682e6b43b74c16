"""The one background thread with an event loop, behind every synchronous face.

Invariants: the thread starts with the first use and is a daemon; nobody's own loop is patched or nested; a child made
by `fork` gets a portal of its own with its first use and never touches the parent's loop.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

__all__ = ["Portal", "shared_portal"]

P = ParamSpec("P")
T = TypeVar("T")

_portals: "weakref.WeakSet[Portal]" = weakref.WeakSet()
_left_to_the_parent: list[object] = []


class Portal:
    """A thread that runs an event loop for callers that have none.

    Example:
        >>> portal = Portal()
        >>> async def double(number: int) -> int:
        ...     return 2 * number
        >>> portal.call(double, 21)
        42
        >>> portal.stop()
    """

    def __init__(self, *, name: str = "keepline-portal") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        _portals.add(self)

    def call(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a coroutine function on the portal's loop and return its result, blocking the calling thread.

        Raises:
            RuntimeError: called on the portal's own thread, where it would wait for itself for ever.
            Exception: whatever the coroutine raised.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a blocking call on the portal's own thread would wait for itself: await the coroutine there"
            )
        future = self.submit(function(*args, **kwargs))
        try:
            return future.result()
        except BaseException:
            future.cancel()  # the caller was interrupted: nobody is left who wants the result
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        """Start a coroutine on the portal's loop; its result or error is in the future."""
        with self._lock:
            if self._loop is None:
                self._start()
            assert self._loop is not None
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self) -> None:
        """Cancel what runs, close the loop and join the thread; the next use starts a new one.

        Raises:
            RuntimeError: called on the portal's own thread.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("the portal cannot be stopped from its own thread")
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is not None and thread is not None:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()

    @property
    def is_running(self) -> bool:
        return self._loop is not None

    def _start(self) -> None:
        loop = _new_loop()
        helpers = concurrent.futures.ThreadPoolExecutor(
            4, thread_name_prefix=f"{self._name}-helper"
        )
        loop.set_default_executor(helpers)
        started = threading.Event()
        loop.call_soon(started.set)
        thread = threading.Thread(target=_run, args=(loop,), name=self._name, daemon=True)
        thread.start()
        started.wait()
        self._loop, self._thread = loop, thread

    def _forget(self) -> None:
        self._lock = (
            threading.Lock()
        )  # the old one may be held by a thread that the child does not have
        self._loop = self._thread = None

    def __repr__(self) -> str:
        return f"<Portal {self._name} {'running' if self.is_running else 'idle'}>"


_shared = Portal()


def shared_portal() -> Portal:
    """The process's portal: all synchronous faces share its thread."""
    return _shared


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop  # here, so that a program that never starts a portal does not pay for it

            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        _finish(loop)


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def _after_fork_in_child() -> None:
    # The loop's epoll object is shared with the parent: closing it here would take the parent's wake-up pipe out of it.
    # So it is kept, untouched, for the life of the child.
    for portal in list(_portals):
        _left_to_the_parent.append((portal._loop, portal._thread))
        portal._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
