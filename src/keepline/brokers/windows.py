"""A long time span in pieces that a broker answers in one go, and how far a download has come.

Invariants: the pieces cover the span without a gap, in order, each at most as long as asked; neighbours share their
edge, so that whatever lies on it is seen, and the reader drops what it has seen.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

__all__ = ["Progress", "split", "without_repeats"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long download has come.

    Attributes:
        done: pieces that are here.
        total: pieces in all.
        rows: bars (or orders) so far.
        until: everything before this is here.
    """

    done: int
    total: int
    rows: int
    until: datetime

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.done / self.total


def split(start: datetime, end: datetime, longest: timedelta) -> list[tuple[datetime, datetime]]:
    """The span in pieces of at most `longest`, oldest first."""
    assert longest > timedelta(0), "a piece has a length"
    pieces = []
    while start < end:
        edge = end if end - start <= longest else start + longest
        pieces.append((start, edge))
        start = edge
    return pieces


def without_repeats(rows: Iterable[T], key: Callable[[T], Hashable]) -> Iterator[T]:
    """The rows in order, each key once."""
    seen: set[Hashable] = set()
    for row in rows:
        if (name := key(row)) not in seen:
            seen.add(name)
            yield row
