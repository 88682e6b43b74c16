"""Writes what arrives on a stream to a file without holding the stream up.

Invariants: the reader of a stream only appends to a list; one thread compresses and writes, at least once a second, so
a crash costs a second; memory is bounded, and frames beyond the bound are counted in the recording itself; a disk that
refuses ends the recording, says so once, and leaves the stream alone; the file is new and ours alone (0600).
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import Closed, ConfigError
from keepline.stream.recording import BlockWriter, Entry, Head, Kind
from keepline.telemetry import event

__all__ = ["RecordedConnection", "Recorder"]

log = logging.getLogger("keepline.stream")

_PENDING_BYTES = 32 << 20  # ten seconds of the busiest market over a disk that stands still
_FLUSH_SECONDS = 1.0
_O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


class Recorder:
    """One recording in the making; use it as a context manager (of either kind), or call `start` and `stop`.

    Args:
        path: a new file; `.klrec.gz` is the custom.
        stream: the name of what is recorded.
        broker: whose protocol it is.
        encoding: of a SignalR connection; with `json` frames of bytes that are text are written as text.
        clock: arrival times are of its boottime.

    Example:
        >>> with Recorder("monday.klrec.gz", broker="projectx") as recorder:
        ...     link = SignalRLink(url, token, tap=recorder.connection("market"))
    """

    def __init__(
        self,
        path: Path | str,
        *,
        stream: str = "",
        broker: str = "",
        encoding: str = "json",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = Path(path)
        self.frames = 0
        """Frames that were taken so far."""
        self.missed = 0
        """Frames that the disk was too slow for."""
        self.failure: str | None = None
        """Why nothing is recorded any more, None while all is well."""
        self._clock = clock
        self._began = clock.boottime()
        head = Head(started_at=clock.wall(), stream=stream, broker=broker, encoding=encoding)
        self._blocks = BlockWriter(head)
        self._readable = _as_text if encoding == "json" else _as_it_is
        self._pending: list[Entry] = []
        self._pending_bytes = 0
        self._untold = 0
        self._connections = 0
        self._look = threading.Condition()
        self._ending = False
        self._thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        """Whether the file is ours: `start` made it."""
        return self._thread is not None

    def start(self) -> None:
        """Make the file and begin.

        Raises:
            ConfigError: the file exists or cannot be made; nothing is overwritten.
        """
        if self._thread is not None:
            return
        fd = _new_file(self.path)
        self._thread = threading.Thread(
            target=self._work, args=(fd,), name="stream recorder", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Write the rest and close the file; blocks until the disk has it. May be called twice."""
        with self._look:
            self._ending = True
            self._look.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Recorder":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> "Recorder":
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def connection(self, label: str) -> "RecordedConnection":
        """A new connection begins.

        Args:
            label: what it is, for example `market`; never a URL with a query.

        Returns:
            What to call with each frame: the `tap` of a link.

        Raises:
            Closed: the recorder was stopped.
        """
        if self._ending:
            raise Closed("the recorder was stopped: make a new one")
        self._connections += 1
        connection = RecordedConnection(self._put, self._connections, self._began)
        self._put(Entry(self._clock.boottime() - self._began, self._connections, "open", label))
        return connection

    def _put(self, entry: Entry) -> None:
        size = len(entry.data)
        with self._look:
            if self._ending or self.failure is not None:
                return
            if entry.is_frame and self._pending_bytes + size > _PENDING_BYTES:
                self.missed += 1
                self._untold += 1
                return
            self._tell_missing(entry.at)
            self._pending.append(entry)
            self._pending_bytes += size
            self.frames += entry.is_frame

    def _tell_missing(self, at: float) -> None:
        if self._untold:
            self._pending.append(Entry(at, self._connections, "missed", str(self._untold)))
            self._untold = 0

    def _take(self) -> tuple[list[Entry], bool]:
        """What is to be written, and whether it is the last; waits a second, or for the end."""
        with self._look:
            self._look.wait_for(lambda: self._ending, timeout=_FLUSH_SECONDS)
            if self._ending:
                self._tell_missing(self._clock.boottime() - self._began)
            entries, self._pending, self._pending_bytes = self._pending, [], 0
            return entries, self._ending

    def _work(self, fd: int) -> None:
        try:
            with open(fd, "wb", buffering=0) as file:
                ending = False
                while not ending:
                    entries, ending = self._take()
                    for entry in entries:
                        _write(file.fileno(), self._blocks.add(self._readable(entry)))
                    _write(file.fileno(), self._blocks.flush())
                os.fsync(fd)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        with self._look:
            self.failure = f"{self.path}: {error.strerror or error}"
            self._pending, self._pending_bytes = [], 0
        event(log, logging.ERROR, "Recording ended", path=str(self.path), error=self.failure)

    def __repr__(self) -> str:
        return f"<Recorder {self.path} {self.failure or f'{self.frames} frames'}>"


class RecordedConnection:
    """The tap of one connection: call it with each frame; made by `Recorder.connection`."""

    def __init__(self, put: Callable[[Entry], None], number: int, began: float) -> None:
        self._put = put
        self._number = number
        self._began = began

    def __call__(self, frame: bytes | str, at: float) -> None:
        """A frame arrived at `at` (boottime seconds)."""
        kind: Kind = "text" if isinstance(frame, str) else "binary"
        self._put(Entry(at - self._began, self._number, kind, frame))

    def snapshot(self, told: str, at: float) -> None:
        """The broker was asked what this connection cannot tell; its answer as JSON."""
        self._put(Entry(at - self._began, self._number, "snapshot", told))

    def lost(self, reason: str, at: float) -> None:
        """The connection ended."""
        self._put(Entry(at - self._began, self._number, "lost", reason))


def _as_text(entry: Entry) -> Entry:
    """Text is smaller and people can read it; what is none (half a character at the end of a chunk) stays bytes."""
    if isinstance(entry.data, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return Entry(entry.at, entry.connection, "text", entry.data.decode())
    return entry


def _as_it_is(entry: Entry) -> Entry:
    return entry


def _new_file(path: Path) -> int:
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise ConfigError(
                f"{path} exists: a recording is never overwritten, choose another name", key="path"
            )
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be made: {error.strerror or error}", key="path"
        ) from error


def _write(fd: int, block: bytes | None) -> None:
    view = memoryview(block or b"")
    while view:
        view = view[os.write(fd, view) :]
