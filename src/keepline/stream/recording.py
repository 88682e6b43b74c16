"""A stream on disk: every frame that arrived, when, and on which connection.

Format, version 1: gzip members of JSON lines, so `zcat` shows them. The first line says what this is; each other line
is `[seconds since the start, connection, kind, data]`. A block is a gzip member of its own, whole or not there: after a
crash everything before the last block is readable. Invariants: only what the venue sent is recorded, and a token of
ours that it repeats is hidden before; the recorder never holds up the stream: frames that the disk cannot take are
counted and the recording says how many are missing and where.
"""

import base64
import binascii
import gzip
import zlib
from collections.abc import Generator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from keepline.errors import ConfigError

__all__ = ["FORMAT", "BlockWriter", "Entry", "Head", "Kind", "Recording"]

FORMAT = "keepline-stream"
"""What the first line of a recording names."""

Kind = Literal["open", "text", "binary", "snapshot", "lost", "missed"]
"""A connection began (data: its label), a frame of text or of bytes, what the broker showed when it was asked (JSON), a
connection ended (why), frames are not here (how many)."""

_READ = 64 << 10
_MOST_SECONDS = 1e9  # what is beyond 30 years is damage
_LONGEST_LINE = 64 << 20  # a frame of 16 MiB with every character escaped is longer than any


class Head(Struct, frozen=True, kw_only=True):
    """The first line of a recording.

    Attributes:
        started_at: wall time of second 0, aware.
        stream: the name of what was recorded.
        broker: whose protocol it is, for example `projectx`.
        encoding: of a SignalR connection.
    """

    format: str = FORMAT
    version: int = 1
    started_at: Annotated[datetime, Meta(tz=True)]
    stream: str = ""
    broker: str = ""
    encoding: str = "json"


class Entry(Struct, frozen=True):
    """One thing that happened.

    Attributes:
        at: seconds since the recording began.
        connection: counts from 1; a reconnect is a new one.
        kind: what happened.
        data: the frame (bytes for a binary one), a snapshot, the label of a connection, why it ended, or how many
            are missing.
    """

    at: float
    connection: int
    kind: Kind
    data: str | bytes = ""

    @property
    def is_frame(self) -> bool:
        """Whether it is something that the venue sent."""
        return self.kind in ("text", "binary")


class _Line(Struct, frozen=True, array_like=True):
    at: float
    connection: int
    kind: Kind
    data: str = ""


class BlockWriter:
    """Turns entries into gzip members (a decider: where the bytes go is another's work).

    Args:
        head: written before the first entry.
        block_bytes: a block is closed when its lines are longer.
    """

    def __init__(self, head: Head, *, block_bytes: int = 64 << 10, level: int = 6) -> None:
        self._encoder = msgspec.json.Encoder()
        self._lines: list[bytes] = [self._encoder.encode(head), b"\n"]
        self._size = sum(map(len, self._lines))
        self._limit = block_bytes
        self._level = level

    def add(self, entry: Entry) -> bytes | None:
        """Take an entry; a whole block when it is full."""
        data = entry.data
        if isinstance(data, bytes):
            data = base64.b64encode(data).decode("ascii")
        line = self._encoder.encode(_Line(round(entry.at, 6), entry.connection, entry.kind, data))
        self._lines += (line, b"\n")
        self._size += len(line) + 1
        return self.flush() if self._size >= self._limit else None

    def flush(self) -> bytes | None:
        """Close the block; None when it would be empty."""
        if not self._lines:
            return None
        block = gzip.compress(b"".join(self._lines), self._level, mtime=0)
        self._lines, self._size = [], 0
        return block


class Recording:
    """Reads a recording from the beginning, as often as asked.

    Args:
        path: the file.

    Raises:
        ConfigError: it is not there, or not a recording of this version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.damage: str | None = None
        """Why the last reading stopped before the end of the file, None when it did not."""
        lines = self._lines()
        try:
            self.head = self._read_head(next(lines, None))
        finally:
            lines.close()

    def __iter__(self) -> Iterator[Entry]:
        """The entries in order; a damaged tail ends it early and is told by `damage`."""
        lines = self._lines()
        next(lines, None)
        decode = msgspec.json.Decoder(_Line).decode
        for number, line in enumerate(lines, start=2):
            try:
                yield _entry(decode(line))
            except (msgspec.DecodeError, binascii.Error, ValueError):  # what is not UTF-8, too
                self.damage = f"{self.path}: line {number} is damaged; what is before it was read"
                return

    def _read_head(self, line: bytes | None) -> Head:
        try:
            head = msgspec.json.decode(line or b"", type=Head)
        except msgspec.DecodeError:
            head = None
        if head is None or head.format != FORMAT or not 1970 <= head.started_at.year < 9000:
            raise ConfigError(
                f"{self.path} is not a recording of a stream; `keepline stream record` makes one",
                key="recording",
            )
        if head.version != 1:
            raise ConfigError(
                f"{self.path} is a recording of version {head.version}, this program reads 1",
                key="recording",
            )
        return head

    def _lines(self) -> Generator[bytes, None, None]:
        self.damage = None
        rest = b""
        for chunk in self._chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            if len(rest) > _LONGEST_LINE:
                self.damage = f"{self.path}: a line without an end"
                return
        if rest and self.damage is None:
            self.damage = f"{self.path}: the last line is cut off"

    def _chunks(self) -> Iterator[bytes]:
        try:
            with gzip.open(self.path) as file:
                while chunk := file.read1(_READ):
                    yield chunk
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.damage = f"{self.path}: cut off or damaged ({error}); what is before it was read"
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error.strerror or error}", key="recording"
            ) from error

    def __repr__(self) -> str:
        return f"<Recording {self.path} of {self.head.stream or self.head.broker or 'a stream'}>"


def _entry(line: _Line) -> Entry:
    """The entry of a line.

    Raises:
        ValueError: it says what no recorder writes.
    """
    if not 0 <= line.at <= _MOST_SECONDS or (line.kind == "missed" and not line.data.isdecimal()):
        raise ValueError("no entry")
    if line.kind == "binary":
        return Entry(
            line.at, line.connection, line.kind, base64.b64decode(line.data, validate=True)
        )
    return Entry(line.at, line.connection, line.kind, line.data)
