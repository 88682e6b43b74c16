"""The journal of messages that are never dropped: on the disk before anybody sees them.

Invariants: one thread does all that touches the file, in the order in which it was asked; whatever waits while a commit
is under way shares the next one; `on_stored` is told of each new message once, in the order of the offsets, after its
commit and before whoever posted it; what waits is bounded.
"""

import asyncio
import concurrent.futures
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import Closed, ConfigError, QueueFull, StorageError
from keepline.hub.entries import (
    Entry,
    Position,
    Retention,
    Stored,
    check_entry,
    check_retention,
)
from keepline.hub.journal_file import JournalFile
from keepline.telemetry import REGISTRY, event

__all__ = ["Entry", "MessageJournal", "Position", "Retention", "Stored"]

T = TypeVar("T")

log = logging.getLogger("keepline.hub")

WRITES = REGISTRY.counter(
    "hub_journal_writes_total", "Messages that the hub's journal has synced to the disk."
)
COMMITS = REGISTRY.counter(
    "hub_journal_commits_total",
    "Synced writes of the hub's journal, each for all messages that waited.",
)
FAILURES = REGISTRY.counter(
    "hub_journal_failures_total", "Messages that the hub's journal could not store."
)
KEPT = Retention()

_LARGEST_GROUP = 512
_LARGEST_READ = 1000


class _Task(NamedTuple):
    work: Callable[[JournalFile], Any]
    done: "concurrent.futures.Future[Any]"
    kind: Literal["post", "write", "read"]


class MessageJournal:
    """A journal in an SQLite file, written by a thread of its own with group commit.

    Args:
        path: the file; made with mode 0600 when missing. Only one process at a time can have it.
        retention: what is kept, by channel.
        otherwise: what every other channel keeps.
        on_stored: called on the loop that started the journal with each new message, in the order of the offsets.
        capacity: messages that may wait for the disk; one more is refused, not lost silently.
        clock: the wall clock of messages that come without a time, and of retention by age.

    Example:
        >>> async with MessageJournal("data/hub.messages", on_stored=deliver) as journal:
        ...     stored = await journal.append("alerts", "alert", b'{"title":"LP gone"}')
    """

    def __init__(
        self,
        path: Path | str,
        *,
        retention: Mapping[str, Retention] | None = None,
        otherwise: Retention = KEPT,
        on_stored: Callable[[Entry], None] | None = None,
        capacity: int = 10_000,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = Path(path)
        self._retention = dict(retention or {})
        self._otherwise = otherwise
        for name, kept in (*self._retention.items(), ("", otherwise)):
            check_retention(name, kept)
        if capacity < 1:
            raise ConfigError(
                f"at least one message must have room, not {capacity!r}", key="capacity"
            )
        self._capacity = capacity
        self._on_stored = on_stored
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting = 0
        self._open = False
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: StorageError | None = None

    async def __aenter__(self) -> "MessageJournal":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the file, and own it from now on; `on_stored` is called on this loop.

        Raises:
            StorageError: another process or journal has it, it is damaged, no journal, or cannot be written.
        """
        if self._thread is not None:
            raise StorageError("is open already: one hub owns a journal", path=self.path)
        self._loop = asyncio.get_running_loop()
        self._failure = None
        self._tasks = queue.SimpleQueue()
        opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        opened.set_running_or_notify_cancel()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name=f"keepline-hub-{self.path.name}", daemon=True
        )
        self._thread.start()
        try:
            await asyncio.wrap_future(opened)
        except BaseException:  # also a caller that gives up: the file must not stay taken
            self._tasks.put(None)
            await self._join()
            raise
        self._open = True

    def post(
        self,
        channel: str,
        type: str,
        data: bytes,
        *,
        key: str | None = None,
        id: str | None = None,
        at: float | None = None,
    ) -> "concurrent.futures.Future[Stored]":
        """Hand in a message from any thread, without waiting for the disk.

        Args:
            channel: its channel.
            type: what it is, for example `alert`.
            data: its JSON text.
            key: what it is about.
            id: by what it is recognised when it comes again; made up when None.
            at: when it was published, in epoch seconds; now when None.

        Returns:
            What became of it; a `StorageError` says that it is not on the disk and must not be delivered.

        Raises:
            QueueFull: `capacity` messages wait for the disk already.
            ConfigError: a text that is none, an id that is empty or longer than 128 characters, more than 16 MiB.
            Closed: the journal is not open.
        """
        entry = Entry(
            channel=channel,
            offset=0,
            type=type,
            key=key,
            id=secrets.token_hex(12) if id is None else id,
            at=self._clock.wall().timestamp() if at is None else at,
            data=data,
        )
        check_entry(entry)
        kept = self._retention.get(channel, self._otherwise)
        return self._ask(lambda file: file.append(entry, kept), "post")

    async def append(
        self,
        channel: str,
        type: str,
        data: bytes,
        *,
        key: str | None = None,
        id: str | None = None,
        at: float | None = None,
    ) -> Stored:
        """Write a message; when this returns it is on the disk, and `on_stored` was told. Arguments as `post`.

        A caller that is cancelled meanwhile does not undo it.

        Raises:
            StorageError: it is not on the disk: disk full, damage, an error of the device.
            QueueFull, ConfigError, Closed: as `post`.
        """
        return await asyncio.wrap_future(self.post(channel, type, data, key=key, id=id, at=at))

    async def position(self, channel: str) -> Position:
        """How far a channel is; a channel that is new gets its epoch here, and keeps it."""
        return await self._do(lambda file: file.position(channel), "write")

    async def read(self, channel: str, after: int, *, limit: int = 256) -> list[Entry]:
        """What came after an offset, oldest first, at most `limit` (1000 and no more)."""
        most = _read_limit(limit)
        return await self._do(lambda file: file.read(channel, after, most))

    async def latest(
        self, channel: str, *, limit: int = 256, before: int | None = None
    ) -> list[Entry]:
        """The newest messages of a channel, oldest first; those below an offset page backwards."""
        most = _read_limit(limit)
        return await self._do(lambda file: file.latest(channel, before, most))

    async def find(self, channel: str, id: str) -> Entry | None:
        """A message by its id, None when it is not (or no longer) there."""
        return await self._do(lambda file: file.find(channel, id))

    async def prune(self) -> int:
        """Let go of what is older than its channel keeps; how many messages that were."""
        now = self._clock.wall().timestamp()

        def work(file: JournalFile) -> int:
            kept = {name: self._retention.get(name, self._otherwise) for name in file.names()}
            return sum(file.prune(name, kept[name], now) for name in kept)

        return await self._do(work, "write")

    async def close(self) -> None:
        """Finish what was asked, and give up the ownership; a second time it does nothing."""
        with self._lock:
            was_open, self._open = self._open, False
            if was_open:
                self._tasks.put(None)
        if was_open:
            await self._join()

    @property
    def failure(self) -> StorageError | None:
        """Why nothing more is written until the journal is opened again; None while all is well."""
        return self._failure

    @property
    def waiting(self) -> int:
        """Messages that wait for the disk."""
        return self._waiting

    async def _join(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.shield(asyncio.to_thread(thread.join))

    async def _do(
        self, work: Callable[[JournalFile], T], kind: Literal["write", "read"] = "read"
    ) -> T:
        return await asyncio.wrap_future(self._ask(work, kind))

    def _ask(
        self, work: Callable[[JournalFile], T], kind: Literal["post", "write", "read"]
    ) -> "concurrent.futures.Future[T]":
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        done.set_running_or_notify_cancel()  # from here on nobody can cancel it: it happens
        with self._lock:
            if not self._open:
                raise Closed(f"the message journal {self.path} is closed")
            if kind == "post":
                if self._waiting >= self._capacity:
                    raise QueueFull(
                        f"{self._waiting} messages wait for the disk of {self.path}: it is too slow for them",
                        retry_after=1.0,
                    )
                self._waiting += 1
            self._tasks.put(_Task(work, done, kind))
        return done

    # --- the thread ---

    def _run(self, opened: "concurrent.futures.Future[None]") -> None:
        try:
            file = JournalFile(self.path)
        except Exception as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            while (group := self._next_group()) is not None:
                self._finish(group, _perform(file, group))
                self._failure = file.failure
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

    def _finish(self, group: list[_Task], results: "list[_Result]") -> None:
        with self._lock:
            self._waiting -= sum(task.kind == "post" for task in group)
        _count(group, results)

        def tell() -> None:
            for _, value, error in results:
                if error is None and isinstance(value, Stored) and value.new:
                    self._deliver(value.entry)
            _resolve(results)

        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(tell)
        except (
            RuntimeError
        ):  # the loop is closed: nobody is left to deliver to, but threads may wait
            _resolve(results)

    def _deliver(self, entry: Entry) -> None:
        if self._on_stored is None:
            return
        try:
            self._on_stored(entry)
        except Exception:
            log.exception("A stored message was not delivered")

    def __repr__(self) -> str:
        state = "failed" if self._failure else "open" if self._open else "closed"
        return f"<MessageJournal {self.path} {state}, {self._waiting} waiting>"


_Result = tuple["concurrent.futures.Future[Any]", Any, BaseException | None]


def _perform(file: JournalFile, group: list[_Task]) -> list[_Result]:
    """Do a group in one transaction: all of its writes are durable together, or none is."""
    if all(task.kind == "read" for task in group) or file.failure is not None:
        return [_alone(file, task) for task in group]
    try:
        file.begin()
        results: list[_Result] = [(task.done, task.work(file), None) for task in group]
        file.commit()
    except Exception as error:
        file.roll_back()
        return [(task.done, None, _failure(error, file.path)) for task in group]
    return results


def _alone(file: JournalFile, task: _Task) -> _Result:
    """What needs no commit; a file that failed is still read, and refuses what would be written."""
    try:
        if task.kind != "read":
            file.begin()
        return task.done, task.work(file), None
    except Exception as error:
        return task.done, None, _failure(error, file.path)


def _failure(error: Exception, path: Path) -> StorageError:
    """Each caller gets an error of its own: they are raised in different places."""
    told = error if isinstance(error, StorageError) else None
    words = str(told.args[0]) if told else f"the message journal cannot be used: {error!r}"
    failure = StorageError(words, path=path)
    failure.__cause__ = error.__cause__ if told else error
    return failure


def _count(group: list[_Task], results: list[_Result]) -> None:
    posts = sum(task.kind == "post" for task in group)
    if not posts:
        return
    error = next((error for _, _, error in results if error is not None), None)
    if error is None:
        COMMITS.inc()
        WRITES.inc(by=sum(1 for _, value, _ in results if isinstance(value, Stored) and value.new))
        return
    FAILURES.inc(by=posts)
    event(log, logging.ERROR, "Message not stored", messages=posts, error=str(error))


def _resolve(results: list[_Result]) -> None:
    for done, value, error in results:
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)


def _read_limit(limit: int) -> int:
    if limit < 1:
        raise ConfigError(f"at least one message, not {limit!r}", key="limit")
    return min(limit, _LARGEST_READ)
