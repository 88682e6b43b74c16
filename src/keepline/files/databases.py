"""Words for what SQLite and the system refuse of a database file: what happened, and what a person can do."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from keepline.errors import StorageError

__all__ = ["HARMLESS", "explained_database", "sqlite_code"]

HARMLESS = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY})
"""After these the file is as it was before; after any other nobody knows what the disk has."""

_DAMAGED = {
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOTADB: "it is damaged, or no journal at all",
}
_REMEDIES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_READONLY: "it cannot be written; give us the right (chown, chmod) or use another path",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; make its directory ours and writable",
    sqlite3.SQLITE_BUSY: "another program keeps it locked; close what has it open",
    sqlite3.SQLITE_IOERR: "the disk reports an error; look at the system log and at the free space",
}


def sqlite_code(error: BaseException | None) -> int:
    """SQLite's primary result code; 0 for what is no error of its own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextlib.contextmanager
def explained_database(path: Path, what: str, *, damaged: str) -> Iterator[None]:
    """Errors of SQLite and of the system as ours.

    Args:
        path: the file.
        what: what it is, for example `the order journal`.
        damaged: what to do when it is damaged.

    Raises:
        StorageError: in the place of each of them.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = sqlite_code(error)
        harm = _DAMAGED.get(code)
        told = f"{harm}; {damaged}" if harm else _REMEDIES.get(code, f"SQLite says: {error}")
        raise StorageError(f"{what} cannot be used: {told}", path=path) from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{what} cannot be used: {error.strerror or error}; make its directory ours and writable",
            path=path,
        ) from error
