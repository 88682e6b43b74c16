"""The sandbox's prices: a seeded walk that can be asked for any moment, and the bars cut from it.

Invariants: the same seed, instrument and moment give the same price, in whatever order they are asked; a bar is the
same in every window that holds it, and opens where the one before it closed; no clock, no chance, no state.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from zlib import crc32

from keepline.sandbox.listings import Listing

__all__ = ["MOST_BARS", "Bar", "Prices", "Quote", "Unit"]

MOST_BARS = 20_000
"""Bars in one answer (ProjectX's documented limit)."""

_DAY = 86_400
_WEEK = 7 * _DAY
_FIRST_MONDAY = 4 * _DAY  # 1970-01-01 was a Thursday
_FRIDAY_CLOSE = 4 * _DAY + 22 * 3600
_SUNDAY_OPEN = 6 * _DAY + 22 * 3600
_WEEKLY_SWING = 0.03
_WAVES = tuple(
    (period, _WEEKLY_SWING * math.sqrt(period / _WEEK))
    for period in (15, 60, 300, 1_800, 14_400, _DAY, _WEEK)
)
_MASK = (1 << 64) - 1


class Unit(IntEnum):
    """ProjectX's `AggregateBarUnit`."""

    SECOND = 1
    MINUTE = 2
    HOUR = 3
    DAY = 4
    WEEK = 5
    MONTH = 6


_SECONDS = {
    Unit.SECOND: 1,
    Unit.MINUTE: 60,
    Unit.HOUR: 3600,
    Unit.DAY: _DAY,
    Unit.WEEK: _WEEK,
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `at` is its beginning in epoch seconds."""

    at: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: int


@dataclass(frozen=True, slots=True)
class Quote:
    """The market of one moment."""

    bid: Decimal
    ask: Decimal
    last: Decimal


class Prices:
    """All walks of one seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def last(self, listing: Listing, now: float) -> Decimal:
        """The price at a moment in epoch seconds."""
        key = crc32(f"{self._seed}:{listing.id}".encode())
        drift = 0.0
        for period, swing in _WAVES:
            drift += swing * _wave(key + period, now / period)
        return max(listing.tick, listing.rounded(float(listing.price) * (1 + drift)))

    def quote(self, listing: Listing, now: float) -> Quote:
        """Bid, ask and last: the ask is one tick above the last price."""
        last = self.last(listing, now)
        return Quote(last, last + listing.tick, last)

    def bars(
        self,
        listing: Listing,
        *,
        start: float,
        end: float,
        unit: Unit,
        number: int = 1,
        limit: int = MOST_BARS,
        now: float,
        partial: bool = False,
    ) -> list[Bar]:
        """Bars that begin from `start` to `end`, both included; the newest `limit` of them, newest first.

        Shorter bars than a day rest from Friday to Sunday 22:00 UTC, days on Saturday and Sunday.

        Args:
            listing: of what.
            start: epoch seconds.
            end: epoch seconds.
            unit: of the length.
            number: of units in a bar.
            limit: at most so many.
            now: nothing later than this is told.
            partial: whether the bar that is not over yet belongs to them.
        """
        price = functools.lru_cache(maxsize=8)(functools.partial(self.last, listing))
        found: list[Bar] = []
        for begin, over in _spans(unit, number, min(end, now)):
            if begin < start or len(found) >= limit:
                break
            if over <= now or partial:
                found.append(self._bar(listing, price, begin, min(over, now)))
        return found

    def _bar(
        self, listing: Listing, price: Callable[[float], Decimal], begin: int, end: float
    ) -> Bar:
        opened, middle, closed = price(begin), price((begin + end) / 2), price(end)
        high, low = max(opened, middle, closed), min(opened, middle, closed)
        key = crc32(f"{self._seed}:{listing.id}:volume".encode())
        volume = 1 + int((1.1 + _lattice(key, begin)) * (end - begin) * listing.depth)
        return Bar(begin, opened, high, low, closed, volume)


def _spans(unit: Unit, number: int, end: float) -> Iterator[tuple[int, int]]:
    """Beginning and end of bars, backwards from the one that holds `end`."""
    if unit is Unit.MONTH:
        yield from _months(number, end)
        return
    length = _SECONDS[unit] * number
    offset = _FIRST_MONDAY if unit is Unit.WEEK else 0
    begin = math.floor((end - offset) / length) * length + offset
    while begin > 0:
        closed_since = _closed_since(begin, length)
        if closed_since is None:
            yield begin, begin + length
            begin -= length
        else:
            begin = math.floor((closed_since - 1 - offset) / length) * length + offset


def _closed_since(begin: int, length: int) -> int | None:
    """When the rest began that a bar begins in, None in trading hours."""
    if length > _DAY:
        return None
    second = (begin - _FIRST_MONDAY) % _WEEK
    if length == _DAY:
        return begin - (second - 5 * _DAY) if second >= 5 * _DAY else None
    return begin - (second - _FRIDAY_CLOSE) if _FRIDAY_CLOSE <= second < _SUNDAY_OPEN else None


def _months(number: int, end: float) -> Iterator[tuple[int, int]]:
    day = datetime.fromtimestamp(end, UTC)
    month = (day.year * 12 + day.month - 1) // number * number
    while month > 1970 * 12:
        yield _month_start(month), _month_start(month + number)
        month -= number


def _month_start(month: int) -> int:
    return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp())


def _wave(key: int, place: float) -> float:
    """Smooth noise in [-1, 1]: its values at whole places are chance, between them it glides."""
    whole = math.floor(place)
    share = place - whole
    glide = share * share * (3 - 2 * share)
    return _lattice(key, whole) * (1 - glide) + _lattice(key, whole + 1) * glide


@functools.lru_cache(maxsize=65_536)
def _lattice(key: int, place: int) -> float:
    """A number in [-1, 1) that looks like chance: SplitMix64's mixing of key and place."""
    mixed = (place * 0x9E3779B97F4A7C15 + key * 0xD1B54A32D192ED03) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) / (1 << 63) - 1
