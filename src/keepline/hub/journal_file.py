"""The file behind a message journal: SQLite with a write-ahead log, synced at each commit, one owner by a lock.

Invariants: used by one thread at a time; what `commit` returned from is on the disk; an offset is given out once per
channel and epoch, also when everything that had one is gone; an error of the disk or of the file is a `StorageError`
that says what to do, and after one that may have left the file in doubt nothing more is written.
"""

import contextlib
import secrets
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from keepline.errors import StorageError
from keepline.files.databases import HARMLESS, explained_database, sqlite_code
from keepline.files.ownership import give_back, make_file, make_room, take
from keepline.hub.entries import Entry, Position, Retention, Stored

__all__ = ["JournalFile"]

APPLICATION_ID = 0x6B6C686D  # "klhm": other people's SQLite files are not ours to write
VERSION = 1
_BUSY_SECONDS = 5.0
_DAMAGED = "stop the hub, move it away, and a new one is made"

_SCHEMA = """
CREATE TABLE channels(
  number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL, newest INTEGER NOT NULL
);
CREATE TABLE messages(
  channel INTEGER NOT NULL, position INTEGER NOT NULL, type TEXT NOT NULL, key TEXT, id TEXT NOT NULL,
  at REAL NOT NULL, data BLOB NOT NULL, PRIMARY KEY(channel, position)
) WITHOUT ROWID;
CREATE UNIQUE INDEX messages_id ON messages(channel, id);
"""
_SELECT = "SELECT position, type, key, id, at, data FROM messages WHERE channel=?"


class _Channel:
    """A row of `channels`, kept in memory: its file has one owner."""

    __slots__ = ("epoch", "newest", "number")

    def __init__(self, number: int, epoch: str, newest: int) -> None:
        self.number = number
        self.epoch = epoch
        self.newest = newest


class JournalFile:
    """The journal's file, open and owned.

    Args:
        path: the database; made with mode 0600, its directory 0700. `-wal`, `-shm` and `.lock` stand beside it.

    Raises:
        StorageError: another process owns it, it is damaged, no journal, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: StorageError | None = None
        self._channels: dict[str, _Channel] = {}
        self._touched: set[str] = set()
        with _explained(path):
            make_room(path, "journal")
            self._lock = take(path, "message journal")
            try:
                make_file(path)
                self._db = self._open()
                self._load()
            except BaseException:
                self._unlock()
                raise

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False
        )
        try:
            _check_kind(db, self.path)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            if sys.platform == "darwin":
                db.execute("PRAGMA fullfsync=ON")  # an fsync there stops at the drive's cache
            _make_tables(db)
            _check_health(db, self.path)
        except BaseException:
            db.close()
            raise
        return db

    def _load(self) -> None:
        try:
            rows = self._db.execute("SELECT name, number, epoch, newest FROM channels").fetchall()
        except BaseException:
            self._db.close()
            raise
        self._channels = {name: _Channel(*rest) for name, *rest in rows}

    # --- one transaction ---

    def begin(self) -> None:
        """Open a transaction.

        Raises:
            StorageError: it cannot be written, or an earlier failure left it in doubt.
        """
        if self.failure is not None:
            raise self.failure
        self._touched.clear()
        with self._watched():
            self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make the transaction durable: when this returns it is on the disk.

        Raises:
            StorageError: it is not; nothing of the transaction counts.
        """
        with self._watched():
            self._db.executemany(
                "UPDATE channels SET newest=? WHERE number=?",
                [(c.newest, c.number) for c in map(self._channels.__getitem__, self._touched)],
            )
            self._db.execute("COMMIT")

    def roll_back(self) -> None:
        """Forget the transaction, in memory too."""
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        if self._touched:
            self._touched.clear()
            with contextlib.suppress(sqlite3.Error):
                rows = self._db.execute("SELECT name, number, epoch, newest FROM channels")
                self._channels = {name: _Channel(*rest) for name, *rest in rows}

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            with _explained(self.path):
                yield
        except StorageError as error:
            if sqlite_code(error.__cause__) not in HARMLESS:
                self.failure = error
            raise

    # --- within a transaction ---

    def append(self, entry: Entry, retention: Retention) -> Stored:
        """Take in a message; it gets the channel's next offset unless its id is known.

        Args:
            entry: the message; its own offset does not count.
            retention: what the channel keeps; its oldest message leaves when this one is one too many.
        """
        with self._watched():
            channel = self._channel(entry.channel)
            known = self._find(channel, entry.channel, entry.id)
            if known is not None:
                return Stored(known, False)
            entry = msgspec.structs.replace(entry, offset=channel.newest + 1)
            self._db.execute(
                "INSERT INTO messages VALUES(?, ?, ?, ?, ?, ?, ?)",
                (
                    *(channel.number, entry.offset, entry.type, entry.key),
                    *(entry.id, entry.at, entry.data),
                ),
            )
            self._touched.add(entry.channel)
            channel.newest = entry.offset
            self._drop(channel, entry.offset - retention.count)
            return Stored(entry, True)

    def prune(self, name: str, retention: Retention, now: float) -> int:
        """Let go of what is too old or too much; how many there were.

        Only from the oldest on: what is held has no holes, whatever the wall clock did.
        """
        if name not in self._channels:
            return 0
        with self._watched():
            channel = self._channels[name]
            row = self._db.execute(
                "SELECT min(position) FROM messages WHERE channel=? AND at >= ?",
                (channel.number, now - retention.age_seconds),
            ).fetchone()
            young = channel.newest + 1 if row[0] is None else row[0]
            return self._drop(channel, max(young - 1, channel.newest - retention.count))

    def names(self) -> list[str]:
        """The channels that it has."""
        return list(self._channels)

    def position(self, name: str) -> Position:
        """How far a channel is; a new one gets its epoch here."""
        with self._watched():
            channel = self._channel(name)
            (oldest,) = self._db.execute(
                "SELECT min(position) FROM messages WHERE channel=?", (channel.number,)
            ).fetchone()
        return Position(channel.epoch, channel.newest, oldest)

    def read(self, name: str, after: int, limit: int) -> list[Entry]:
        """What came after an offset, oldest first."""
        return self._rows(name, "AND position > ? ORDER BY position LIMIT ?", after, limit)

    def latest(self, name: str, before: int | None, limit: int) -> list[Entry]:
        """The newest ones (below an offset), oldest first."""
        below = sys.maxsize if before is None else before
        found = self._rows(name, "AND position < ? ORDER BY position DESC LIMIT ?", below, limit)
        return found[::-1]

    def find(self, name: str, id: str) -> Entry | None:
        """A message by its id."""
        with self._watched():
            channel = self._channels.get(name)
            return None if channel is None else self._find(channel, name, id)

    def close(self) -> None:
        """Close the file and give up the ownership."""
        try:
            self._db.close()
        finally:
            self._unlock()

    def _rows(self, name: str, where: str, *values: int) -> list[Entry]:
        channel = self._channels.get(name)
        if channel is None:
            return []
        with self._watched():
            rows = self._db.execute(f"{_SELECT} {where}", (channel.number, *values)).fetchall()
        return [Entry(name, *row) for row in rows]

    def _find(self, channel: _Channel, name: str, id: str) -> Entry | None:
        row = self._db.execute(f"{_SELECT} AND id=?", (channel.number, id)).fetchone()
        return None if row is None else Entry(name, *row)

    def _channel(self, name: str) -> _Channel:
        known = self._channels.get(name)
        if known is not None:
            return known
        epoch = secrets.token_hex(8)
        number = self._db.execute(
            "INSERT INTO channels(name, epoch, newest) VALUES(?, ?, 0)", (name, epoch)
        ).lastrowid
        self._channels[name] = made = _Channel(number or 0, epoch, 0)
        self._touched.add(name)
        return made

    def _drop(self, channel: _Channel, up_to: int) -> int:
        if up_to <= 0:
            return 0
        return self._db.execute(
            "DELETE FROM messages WHERE channel=? AND position <= ?", (channel.number, up_to)
        ).rowcount

    def _unlock(self) -> None:
        fd, self._lock = self._lock, -1
        if fd >= 0:
            give_back(fd)

    def __repr__(self) -> str:
        return f"<JournalFile {self.path}, {len(self._channels)} channels>"


def _explained(path: Path) -> contextlib.AbstractContextManager[None]:
    return explained_database(path, "the message journal", damaged=_DAMAGED)


def _make_tables(db: sqlite3.Connection) -> None:
    if db.execute("PRAGMA user_version").fetchone()[0]:
        return
    db.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, _SCHEMA.split(";")):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={VERSION}")
    db.execute("COMMIT")


def _check_kind(db: sqlite3.Connection, path: Path) -> None:
    (kind,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if kind != APPLICATION_ID and (version or tables):
        raise StorageError("is the database of another program: name another file", path=path)
    if version > VERSION:
        raise StorageError(
            f"was written by a newer Keepline (version {version} of the journal): update this one",
            path=path,
        )


def _check_health(db: sqlite3.Connection, path: Path) -> None:
    told = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if told != "ok":
        raise StorageError(
            f"the message journal is damaged ({told}): {_DAMAGED}",
            path=path,
        )
