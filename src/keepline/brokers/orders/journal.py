"""The journal of order intents: what is written here is on the disk before anything is sent.

Invariants: one thread does all that touches the file, in the order in which it was asked; whatever waits while a commit
is under way shares the next one; a caller goes on only when its commit is durable.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from keepline.brokers.orders.records import Decision, Record
from keepline.brokers.orders.store import JournalFile
from keepline.errors import Closed, KeeplineError, StorageError
from keepline.model import Fill
from keepline.telemetry import REGISTRY

__all__ = ["Journal", "OrderJournal"]

T = TypeVar("T")

COMMITS = REGISTRY.counter(
    "order_journal_commits_total", "Synced writes of order journals, each for all that waited."
)
WRITES = REGISTRY.counter(
    "order_journal_writes_total", "Entries that order journals have synced to the disk."
)
_LARGEST_GROUP = 512


class Journal(Protocol):
    """What an order gateway needs of its journal; `OrderJournal` is the one on the disk."""

    async def start(self) -> None:
        """Open it, and own it from now on."""
        ...

    async def begin(self, record: Record) -> Record | None:
        """Write a new intent; the known one when its id is taken, and then nothing is written."""
        ...

    async def save(self, record: Record) -> None:
        """Write where a known intent stands."""
        ...

    async def find(self, intent_id: str) -> Record | None:
        """What is known of an intent."""
        ...

    async def restore(self, since: float) -> list[Record]:
        """What is unresolved, and what changed since `since` (epoch seconds), oldest first."""
        ...

    async def oldest_owed(self) -> float | None:
        """When the oldest unresolved intent was prepared, in epoch seconds; None when there is none."""
        ...

    async def new_fills(self, fills: Sequence[Fill]) -> list[Fill]:
        """Write fills; those that were not known before."""
        ...

    async def fills(self, order_id: str) -> list[Fill]:
        """The fills of an order that are known, oldest first."""
        ...

    async def decisions(self) -> list[Decision]:
        """What persons said and nobody has taken up."""
        ...

    async def taken_up(self, numbers: Sequence[int]) -> None:
        """Strike decisions that were taken up."""
        ...

    async def mark(self, name: str, value: float | None = None) -> float | None:
        """Read a number by name, or set it."""
        ...

    async def close(self) -> None:
        """Finish what was asked, and give up the ownership."""
        ...


class _Task(NamedTuple):
    work: Callable[[JournalFile], Any]
    done: "asyncio.Future[Any]"
    writes: bool


class OrderJournal:
    """A journal in an SQLite file, written by a thread of its own with group commit.

    Args:
        path: the file; made with mode 0600 when missing. Only one process at a time can have it.

    Example:
        >>> journal = OrderJournal("data/topstep.orders")
        >>> async with OrderGateway(broker, journal) as gateway:
        ...     outcome = await gateway.place(intent)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Open the file, and own it from now on.

        Raises:
            StorageError: another process or gateway has it, it is damaged, no journal, or cannot be written.
        """
        if self._thread is not None:  # two owners of one journal could each send what waits in it
            raise StorageError("is open already: one gateway owns a journal", path=self.path)
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run,
            args=(self._loop, opened),
            name=f"keepline-journal-{self.path.name}",
            daemon=True,
        )
        self._thread.start()
        try:
            await asyncio.shield(opened)
        except KeeplineError:
            await self._join()
            raise

    async def begin(self, record: Record) -> Record | None:
        """Write a new intent; when this returns None it is on the disk.

        Returns:
            The known record when the id is taken already; nothing was written then.

        Raises:
            StorageError: it is not on the disk: disk full, damage, an error of the device.
            Closed: the journal was closed.
        """
        return await self._do(lambda file: file.insert(record), writes=True)

    async def save(self, record: Record) -> None:
        """Write where a known intent stands; errors as with `begin`."""
        await self._do(lambda file: file.update(record), writes=True)

    async def find(self, intent_id: str) -> Record | None:
        """What is known of an intent, None for nothing."""
        return await self._do(lambda file: file.find(intent_id))

    async def restore(self, since: float) -> list[Record]:
        """What is unresolved, and what changed since `since` (epoch seconds), oldest first."""
        return await self._do(lambda file: file.restore(since))

    async def oldest_owed(self) -> float | None:
        """When the oldest unresolved intent was prepared, in epoch seconds; None when there is none."""
        return await self._do(lambda file: file.oldest_owed())

    async def new_fills(self, fills: Sequence[Fill]) -> list[Fill]:
        """Write fills; those that were not known before, so that each is told once."""
        return await self._do(lambda file: file.new_fills(fills), writes=True)

    async def fills(self, order_id: str) -> list[Fill]:
        """The fills of an order that are known, oldest first."""
        return await self._do(lambda file: file.fills(order_id))

    async def decisions(self) -> list[Decision]:
        """What persons said (`keepline orders reconcile`) and nobody has taken up."""
        return await self._do(lambda file: file.decisions())

    async def taken_up(self, numbers: Sequence[int]) -> None:
        """Strike decisions that were taken up."""
        await self._do(lambda file: file.taken_up(numbers), writes=True)

    async def mark(self, name: str, value: float | None = None) -> float | None:
        """Read a number by name, or set it."""
        return await self._do(lambda file: file.mark(name, value), writes=value is not None)

    async def close(self) -> None:
        """Finish what was asked, and give up the ownership; a second time it does nothing."""
        if self._thread is not None:
            self._tasks.put(None)
            await self._join()

    async def _join(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.shield(asyncio.to_thread(thread.join))

    async def _do(self, work: Callable[[JournalFile], T], *, writes: bool = False) -> T:
        if self._thread is None or self._loop is None:
            raise Closed(f"the order journal {self.path} is closed")
        done: asyncio.Future[T] = self._loop.create_future()
        self._tasks.put(_Task(work, done, writes))
        return await done

    # --- the thread ---

    def _run(self, loop: asyncio.AbstractEventLoop, opened: "asyncio.Future[None]") -> None:
        try:
            file = JournalFile(self.path)
        except Exception as error:
            _tell(loop, [(opened, None, error)])
            return
        _tell(loop, [(opened, None, None)])
        try:
            while (group := self._next_group()) is not None:
                _tell(loop, _perform(file, group))
        finally:
            file.close()

    def _next_group(self) -> list[_Task] | None:
        first = self._tasks.get()
        if first is None:
            return None
        group = [first]
        while len(group) < _LARGEST_GROUP:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is None:
                self._tasks.put(None)  # close, once this group is done
                break
            group.append(task)
        return group

    def __repr__(self) -> str:
        return f"<OrderJournal {self.path} {'open' if self._thread is not None else 'closed'}>"


_Result = tuple["asyncio.Future[Any]", Any, BaseException | None]


def _perform(file: JournalFile, group: list[_Task]) -> list[_Result]:
    """Do a group in one transaction: all of its writes are durable together, or none is."""
    try:
        file.begin()
        results = [_one(file, task) for task in group]
        file.commit()
    except Exception as error:
        file.roll_back()
        return [(task.done, None, _failure(error, file.path)) for task in group]
    writes = sum(task.writes for task in group)
    if writes:
        COMMITS.inc()
        WRITES.inc(by=writes)
    return results


def _one(file: JournalFile, task: _Task) -> _Result:
    try:
        return task.done, task.work(file), None
    except StorageError as error:
        if error.__cause__ is not None and type(error.__cause__).__module__ == "sqlite3":
            raise  # the transaction is gone
        return task.done, None, error  # one damaged entry is that caller's alone


def _failure(error: Exception, path: Path) -> StorageError:
    """Each caller gets an error of its own: they are raised in different places."""
    told = error if isinstance(error, StorageError) else None
    words = str(told.args[0]) if told else f"the order journal cannot be written: {error!r}"
    failure = StorageError(words, path=path)
    failure.__cause__ = error.__cause__ if told else error
    return failure


def _tell(loop: asyncio.AbstractEventLoop, results: list[_Result]) -> None:
    def deliver() -> None:
        for done, value, error in results:
            if done.done():
                continue
            if error is None:
                done.set_result(value)
            else:
                done.set_exception(error)

    try:
        loop.call_soon_threadsafe(deliver)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more
