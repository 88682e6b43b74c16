"""Bars into a file, CSV or Parquet: whole or not at all.

Invariants: rows go to a file beside the wanted one, which takes its name when the last row is there; what was there
before stays until then; nothing here runs on an event loop.
"""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC
from pathlib import Path
from typing import Any, Protocol

from keepline.errors import ConfigError, KeeplineError
from keepline.model import Bar

__all__ = ["COLUMNS", "BarFile", "as_row", "bar_file"]

COLUMNS = ("at", "open", "high", "low", "close", "volume")
"""Of both formats; `at` is UTC, in CSV as ISO 8601."""


class BarFile(Protocol):
    """Where bars go: any number of `write`, then either `keep` or `drop`."""

    def write(self, bars: Sequence[Bar]) -> None:
        """Add rows.

        Raises:
            KeeplineError: the disk does not take them.
        """
        ...

    def keep(self) -> None:
        """All rows are there: the file takes its name.

        Raises:
            KeeplineError: the disk does not take them; what was there before still is.
        """
        ...

    def drop(self) -> None:
        """Leave no trace."""
        ...


def as_row(bar: Bar) -> tuple[object, ...]:
    """A bar as a row of `COLUMNS`, its time as ISO 8601 in UTC."""
    at = bar.at.astimezone(UTC).isoformat()
    return (at, bar.open, bar.high, bar.low, bar.close, bar.volume)


def bar_file(path: Path) -> BarFile:
    """The writer for a path by its ending: `.csv` or `.parquet`.

    Raises:
        ConfigError: another ending, no such directory, no right to write there, or Parquet without pyarrow.
    """
    kinds: dict[str, type[_Csv | _Parquet]] = {".csv": _Csv, ".parquet": _Parquet}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        ending = path.suffix or "no ending"
        raise ConfigError(f"ends in .csv or .parquet, not {ending!r}", key="out", file=path)
    if path.is_dir():
        raise ConfigError("is a directory; name a file in it", key="out", file=path)
    try:
        return kind(path)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", key="out", file=path) from None


class _Part:
    """A file in the making beside the wanted one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.stream = self._part.open("wb")

    def keep(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        self._part.replace(self._path)

    def drop(self) -> None:
        with suppress(OSError):  # what the buffer still holds may not fit on the disk
            self.stream.close()
        self._part.unlink(missing_ok=True)

    @contextmanager
    def trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            words = error.strerror or str(error)
            raise KeeplineError(f"{self._path}: cannot be written: {words}") from None


class _Csv:
    def __init__(self, path: Path) -> None:
        self._file = _Part(path)
        self._text = io.TextIOWrapper(self._file.stream, encoding="utf-8", newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(self, bars: Sequence[Bar]) -> None:
        with self._file.trouble():
            self._rows.writerows(map(as_row, bars))

    def keep(self) -> None:
        with self._file.trouble():
            self._text.flush()
            self._file.keep()

    def drop(self) -> None:
        with suppress(OSError):
            self._text.close()
        self._file.drop()


class _Parquet:
    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(
                "Parquet needs pyarrow: pip install 'keepline[parquet]', or name a .csv file",
                key="out",
                file=path,
            ) from None
        self._pyarrow: Any = pyarrow
        numbers = [(name, pyarrow.float64()) for name in COLUMNS[1:]]
        self._schema = pyarrow.schema([("at", pyarrow.timestamp("us", tz="UTC")), *numbers])
        self._file = _Part(path)
        self._writer: Any = pyarrow.parquet.ParquetWriter(self._file.stream, self._schema)

    def write(self, bars: Sequence[Bar]) -> None:
        columns = {name: [getattr(bar, name) for bar in bars] for name in COLUMNS}
        with self._file.trouble():
            self._writer.write_table(self._pyarrow.table(columns, schema=self._schema))

    def keep(self) -> None:
        with self._file.trouble():
            self._writer.close()
            self._file.keep()

    def drop(self) -> None:
        with suppress(OSError):
            self._writer.close()
        self._file.drop()
