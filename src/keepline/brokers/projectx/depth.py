"""The book of a contract out of depth events: levels are replaced, never added up.

Invariants: a level's size is the last one told, 0 takes it away; a told best price takes away what would be better on
its side; a reset empties the book; each side has at most `MOST_LEVELS` levels, those that are nearest to the market.

`volume` is taken as a level's size: the documentation calls it the total at the price and does not explain the
`currentVolume` beside it, which is taken only when `volume` is missing. That an entry replaces its level is what
clients have found.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from datetime import datetime
from math import isfinite
from typing import Final

from keepline.brokers.projectx.stream_messages import DepthPayload, DepthType
from keepline.model import DepthLevel, DepthUpdate

__all__ = ["MOST_LEVELS", "DepthBook"]

MOST_LEVELS: Final = 10_000
"""Levels of a side that are kept; a real book has some hundred."""

_BIDS: Final = frozenset({DepthType.BID, DepthType.BEST_BID, DepthType.NEW_BEST_BID})
_ASKS: Final = frozenset({DepthType.ASK, DepthType.BEST_ASK, DepthType.NEW_BEST_ASK})
_BEST: Final = frozenset(
    {DepthType.BEST_BID, DepthType.NEW_BEST_BID, DepthType.BEST_ASK, DepthType.NEW_BEST_ASK}
)


class _Levels:
    """One side; `sign` is -1 where the highest price is the best, so that the first rank is the best one."""

    __slots__ = ("by_rank", "ranks", "sign")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.ranks: list[float] = []  # sorted, best first
        self.by_rank: dict[float, DepthLevel] = {}

    def put(self, price: float, size: float) -> None:
        rank = self.sign * price
        if size <= 0:
            if self.by_rank.pop(rank, None) is not None:
                del self.ranks[bisect_left(self.ranks, rank)]
            return
        if rank not in self.by_rank:
            insort(self.ranks, rank)
        self.by_rank[rank] = DepthLevel(price, size)
        if len(self.ranks) > MOST_LEVELS:
            del self.by_rank[self.ranks.pop()]

    def cut_better_than(self, price: float) -> None:
        end = bisect_left(self.ranks, self.sign * price)
        for rank in self.ranks[:end]:
            del self.by_rank[rank]
        del self.ranks[:end]

    def clear(self) -> None:
        self.ranks.clear()
        self.by_rank.clear()

    def best(self, count: int) -> tuple[DepthLevel, ...]:
        levels = self.by_rank
        return tuple([levels[rank] for rank in self.ranks[:count]])


class DepthBook:
    """One contract's book.

    Args:
        contract: whose.

    Attributes:
        resets: how often the broker emptied it.
        ignored: entries that say nothing about a level (trades, extremes, types without a name, no price or size).
    """

    def __init__(self, contract: str) -> None:
        self.contract = contract
        self.resets = 0
        self.ignored = 0
        self._bids = _Levels(-1)
        self._asks = _Levels(1)

    def apply(self, entries: Iterable[DepthPayload]) -> bool:
        """Take in the entries of one event, in their order.

        Returns:
            Whether anything in it was about the book.
        """
        touched = False
        for entry in entries:
            touched |= self._apply(entry)
        return touched

    def update(self, at: datetime, levels: int = 10) -> DepthUpdate:
        """The book as it is, the best `levels` of each side."""
        return DepthUpdate(
            instrument=self.contract,
            at=at,
            bids=self._bids.best(levels),
            asks=self._asks.best(levels),
        )

    def forget(self) -> None:
        """Empty it: after a gap only what is told again is true."""
        self._bids.clear()
        self._asks.clear()

    def __len__(self) -> int:
        """How many levels are known, of both sides."""
        return len(self._bids.ranks) + len(self._asks.ranks)

    def _apply(self, entry: DepthPayload) -> bool:
        kind = entry.type
        if kind in _BIDS:
            side = self._bids
        elif kind in _ASKS:
            side = self._asks
        elif kind == DepthType.RESET:
            self.resets += 1
            self.forget()
            return True
        else:
            self.ignored += 1
            return False
        return self._place(side, entry)

    def _place(self, side: _Levels, entry: DepthPayload) -> bool:
        size = entry.current_volume if entry.volume is None else entry.volume
        if size is None or not isfinite(entry.price) or not isfinite(size):
            self.ignored += 1
            return False
        if entry.type in _BEST and size > 0:
            side.cut_better_than(entry.price)
        side.put(entry.price, size)
        return True
