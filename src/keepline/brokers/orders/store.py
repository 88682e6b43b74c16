"""The journal's file: SQLite with a write-ahead log that is synced at each commit, and one owner by a lock beside it.

Invariants: used by one thread at a time; what `commit` returned from is on the disk; an error of the disk or of the
file is a `StorageError` that says what to do, and after one that may have left the file in doubt nothing more is
written.
"""

import contextlib
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from keepline.brokers.orders.records import COLUMNS, Decision, Record, from_row, to_row
from keepline.errors import ConfigError, StorageError
from keepline.files.databases import HARMLESS, explained_database, sqlite_code
from keepline.files.ownership import give_back, make_file, make_room, take
from keepline.model import Fill

__all__ = ["OWED", "JournalFile", "leave_decision", "read_journal"]

APPLICATION_ID = 0x6B6C6F72  # "klor": other people's SQLite files are not ours to write
VERSION = 1
OWED = ("prepared", "sent", "unknown", "ambiguous")
"""States whose outcome is still owed to somebody."""

_SCHEMA = """
CREATE TABLE orders(
  id TEXT PRIMARY KEY, body BLOB NOT NULL, state TEXT NOT NULL, how TEXT NOT NULL, reason TEXT NOT NULL,
  order_id TEXT, target TEXT NOT NULL, prepared_at REAL NOT NULL, sent_at REAL, changed_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX orders_owed ON orders(state) WHERE state IN ('prepared', 'sent', 'unknown', 'ambiguous');
CREATE INDEX orders_changed ON orders(changed_at);
CREATE TABLE fills(account TEXT, id TEXT, order_id TEXT, body BLOB NOT NULL, PRIMARY KEY(account, id)) WITHOUT ROWID;
CREATE TABLE decisions(number INTEGER PRIMARY KEY, intent_id TEXT NOT NULL, order_id TEXT, reason TEXT NOT NULL);
CREATE TABLE marks(name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
"""
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM orders"  # noqa: S608 - constants
_INSERT = f"INSERT INTO orders({', '.join(COLUMNS)}) VALUES({', '.join('?' * len(COLUMNS))}) ON CONFLICT(id) DO NOTHING"
_UPDATE = "UPDATE orders SET state=?, how=?, reason=?, order_id=?, target=?, sent_at=?, changed_at=? WHERE id=?"
_BUSY_SECONDS = 5.0
_DAMAGED = "stop trading, move it away, and check each open order at the broker"


class JournalFile:
    """The journal's file, open and owned.

    Args:
        path: the database; made with mode 0600, its directory 0700. `-wal`, `-shm` and `.lock` stand beside it.

    Raises:
        StorageError: another process owns it, it is damaged, no journal, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._broken: StorageError | None = None
        with _explained(path):
            make_room(path, "journal")
            self._lock = take(path, "order journal")
            try:
                make_file(path)
                self._db = self._open()
            except BaseException:
                self._unlock()
                raise

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False
        )
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if sys.platform == "darwin":
            db.execute("PRAGMA fullfsync=ON")  # an fsync there stops at the drive's cache
        _check_kind(db, self.path)
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            db.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _SCHEMA.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={VERSION}")
            db.execute("COMMIT")
        told = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if told != "ok":
            raise StorageError(
                f"the order journal is damaged ({told}): {_DAMAGED}",
                path=self.path,
            )

    # --- one transaction ---

    def begin(self) -> None:
        """Open a transaction.

        Raises:
            StorageError: it cannot be written, or an earlier failure left it in doubt.
        """
        if self._broken is not None:
            raise self._broken
        with self._watched():
            self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make the transaction durable: when this returns it is on the disk.

        Raises:
            StorageError: it is not; nothing of the transaction counts.
        """
        with self._watched():
            self._db.execute("COMMIT")

    def roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            with _explained(self.path):
                yield
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, sqlite3.Error):  # a damaged entry is its reader's trouble alone
                self.roll_back()
                if sqlite_code(cause) not in HARMLESS:
                    self._broken = error  # after a failed sync nobody knows what the disk has
            raise

    # --- within a transaction ---

    def insert(self, record: Record) -> Record | None:
        """Take in a new intent; the known one when its id is taken, and then nothing changes."""
        with self._watched():
            if self._db.execute(_INSERT, to_row(record)).rowcount:
                return None
            return self._find(record.intent.id)

    def update(self, record: Record) -> None:
        """Note where a known intent stands."""
        row = dict(zip(COLUMNS, to_row(record), strict=True))
        names = ("state", "how", "reason", "order_id", "target", "sent_at", "changed_at", "id")
        with self._watched():
            known = self._db.execute(_UPDATE, [row[name] for name in names]).rowcount
        if not known:  # somebody took the line away: what is not on the disk is not sent
            raise StorageError(f"has no intent {record.intent.id} any more", path=self.path)

    def find(self, intent_id: str) -> Record | None:
        with self._watched():
            return self._find(intent_id)

    def restore(self, since: float, *, limit: int = 10_000) -> list[Record]:
        """What is owed, and the newest of what was settled since a moment (epoch seconds), oldest first."""
        owed = f"state IN ({', '.join('?' * len(OWED))})"
        with self._watched():
            rows = self._db.execute(f"{_SELECT} WHERE {owed}", OWED).fetchall()
            rows += self._db.execute(
                f"{_SELECT} WHERE changed_at >= ? AND NOT {owed} ORDER BY changed_at DESC LIMIT ?",
                (since, *OWED, limit),
            ).fetchall()
        return sorted((self._read(row) for row in rows), key=lambda record: record.prepared_at)

    def oldest_owed(self) -> float | None:
        """When the oldest unresolved intent was prepared, in epoch seconds."""
        where = f"state IN ({', '.join('?' * len(OWED))})"
        with self._watched():
            (oldest,) = self._db.execute(
                f"SELECT min(prepared_at) FROM orders WHERE {where}",  # noqa: S608 - constants
                OWED,
            ).fetchone()
        return None if oldest is None else float(oldest)

    def new_fills(self, fills: Sequence[Fill]) -> list[Fill]:
        """Note fills; those that were not known before."""
        with self._watched():
            return [fill for fill in fills if self._is_new(fill)]

    def fills(self, order_id: str) -> list[Fill]:
        """The fills of an order, oldest first."""
        with self._watched():
            rows = self._db.execute(
                "SELECT body FROM fills WHERE order_id=?", (order_id,)
            ).fetchall()
        found = [msgspec.json.decode(row[0], type=Fill) for row in rows]
        return sorted(found, key=lambda fill: (fill.at, fill.id))

    def decisions(self) -> list[Decision]:
        """What persons said and nobody has taken up."""
        with self._watched():
            rows = self._db.execute(
                "SELECT number, intent_id, order_id, reason FROM decisions ORDER BY number"
            ).fetchall()
        names = ("number", "intent_id", "order_id", "reason")
        return [Decision(**dict(zip(names, row, strict=True))) for row in rows]

    def taken_up(self, numbers: Iterable[int]) -> None:
        """Strike decisions that were taken up."""
        with self._watched():
            self._db.executemany("DELETE FROM decisions WHERE number=?", [(n,) for n in numbers])

    def mark(self, name: str, value: float | None = None) -> float | None:
        """Read a number by name, or set it."""
        with self._watched():
            if value is not None:
                self._db.execute("INSERT OR REPLACE INTO marks VALUES(?, ?)", (name, value))
            row = self._db.execute("SELECT value FROM marks WHERE name=?", (name,)).fetchone()
        return None if row is None else float(row[0])

    def close(self) -> None:
        """Close the file and give up the ownership."""
        try:
            self._db.close()
        finally:
            self._unlock()

    def _find(self, intent_id: str) -> Record | None:
        row = self._db.execute(f"{_SELECT} WHERE id=?", (intent_id,)).fetchone()
        return None if row is None else self._read(row)

    def _read(self, row: tuple[Any, ...]) -> Record:
        return _read(row, self.path)

    def _is_new(self, fill: Fill) -> bool:
        row = (fill.account, fill.id, fill.order_id, msgspec.json.encode(fill))
        done = self._db.execute("INSERT INTO fills VALUES(?, ?, ?, ?) ON CONFLICT DO NOTHING", row)
        return bool(done.rowcount)

    def _unlock(self) -> None:
        fd, self._lock = self._lock, -1
        if fd >= 0:
            give_back(fd)


def read_journal(path: Path, *, all_records: bool = False, limit: int = 1000) -> list[Record]:
    """The records of a journal that another process may own, newest last; nothing is changed.

    Args:
        path: the journal.
        all_records: also those that are settled.
        limit: at most so many, the newest.

    Raises:
        ConfigError: there is no journal.
        StorageError: it is damaged, or no journal.
    """
    with _opened(path) as db:
        where = "" if all_records else f" WHERE state IN ({', '.join('?' * len(OWED))})"
        rows = db.execute(
            f"{_SELECT}{where} ORDER BY prepared_at DESC LIMIT ?",
            (*(() if all_records else OWED), limit),
        ).fetchall()
    return [_read(row, path) for row in reversed(rows)]


def leave_decision(path: Path, intent_id: str, order_id: str | None, reason: str) -> None:
    """Write down what a person says of an intent: its owner takes it up within seconds, or when it starts next.

    Raises:
        ConfigError: there is no journal, or no such intent in it.
        StorageError: it is damaged, no journal, or cannot be written.
    """
    with _opened(path) as db:
        if db.execute("SELECT 1 FROM orders WHERE id=?", (intent_id,)).fetchone() is None:
            raise ConfigError(f"no intent {intent_id!r} is in the journal {path}", key="ID")
        db.execute(
            "INSERT INTO decisions(intent_id, order_id, reason) VALUES(?, ?, ?)",
            (intent_id, order_id, reason),
        )


def _explained(path: Path) -> contextlib.AbstractContextManager[None]:
    return explained_database(path, "the order journal", damaged=_DAMAGED)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise ConfigError(f"there is no order journal {path}: no order was placed through it yet")
    with _explained(path):
        db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
        try:
            _check_kind(db, path)
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                raise StorageError(
                    "the order journal is empty: its making was interrupted", path=path
                )
            yield db
        finally:
            db.close()


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


def _read(row: tuple[Any, ...], path: Path) -> Record:
    try:
        return from_row(row)
    except ConfigError as error:
        raise StorageError(
            f"the order journal is damaged: {error}; look that order up at the broker, then delete its row",
            path=path,
        ) from error
