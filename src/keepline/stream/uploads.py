"""Streams that go up with a call: each item waits for room, and the end is said whatever it was.

Invariants: an upload never outlives its connection, nor the call that waits for a result; the iterator is closed when
it was not exhausted; of an error the server is told no more than its kind.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias

from keepline.errors import Closed, KeeplineError
from keepline.stream.wire import HubWire

__all__ = ["Carrier", "Uploads", "split"]

log = logging.getLogger("keepline.stream")

Streams: TypeAlias = Mapping[str, AsyncIterator[Any]]


class Carrier(Protocol):
    """What an upload needs of its connection."""

    @property
    def wire(self) -> HubWire:
        """The conversation."""
        ...

    @property
    def room(self) -> asyncio.Event:
        """Set while a sender may go on."""
        ...

    def push(self) -> None:
        """Have written what the wire wants written."""
        ...


def split(arguments: Sequence[Any], wire: HubWire) -> tuple[list[Any], Streams]:
    """Plain arguments, and by new ids those that can be iterated asynchronously, in order."""
    plain = [argument for argument in arguments if not hasattr(argument, "__aiter__")]
    streams = [argument for argument in arguments if hasattr(argument, "__aiter__")]
    return plain, {wire.new_upload(): stream for stream in streams}


class Uploads:
    """The uploads of one connection.

    Attributes:
        tasks: those under way.
    """

    def __init__(self, carrier: Callable[[], Carrier | None]) -> None:
        self._carrier = carrier
        self.tasks: set[asyncio.Task[None]] = set()

    def begin(self, streams: Streams) -> list[asyncio.Task[None]]:
        """Send the items of each stream beside whatever else happens."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._send(items, name)) for name, items in streams.items()]
        for task in tasks:
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return tasks

    @contextmanager
    def beside(self, streams: Streams) -> Iterator[None]:
        """Uploads that end with the block."""
        tasks = self.begin(streams)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def stop(self) -> None:
        """Cancel what is under way."""
        mine = asyncio.current_task()
        tasks = [task for task in self.tasks if task is not mine]
        for task in tasks:
            task.cancel()
        if tasks:  # an iterator that swallows its cancellation must not hold up the end
            await asyncio.wait(tasks, timeout=1.0)

    async def _send(self, items: AsyncIterator[Any], name: str) -> None:
        words: str | None = "the upload was cancelled"
        try:
            async for item in items:
                await self._one(name, item)
            words = None
        except Closed:
            pass  # the connection is over, and whoever made the call is told so
        except Exception as error:
            words = f"the upload failed ({type(error).__name__})"
            log.error("Stream upload failed", exc_info=error)
        finally:
            self._finish(name, words)
            if words is not None and (close := getattr(items, "aclose", None)) is not None:
                await close()

    async def _one(self, name: str, item: Any) -> None:
        carrier = self._carrier()
        if carrier is None:
            raise Closed("the connection is over")
        carrier.wire.upload(name, item)
        carrier.push()
        await carrier.room.wait()

    def _finish(self, name: str, words: str | None) -> None:
        carrier = self._carrier()
        if carrier is not None:
            with suppress(KeeplineError):  # the connection ended meanwhile
                carrier.wire.finish_upload(name, words)
                carrier.push()
