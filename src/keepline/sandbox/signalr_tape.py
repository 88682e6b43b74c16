"""The sandbox's market data: what a market hub tells about a contract from one moment to the next.

Invariants: the same seed, contract and moments give the same quotes, trades and levels; prices are the market's, pins
included; a quote after the first holds only what changed; a level of the book replaces the one at its price.

Source of names and numbers: the realtime pages of gateway.docs.projectx.com; arrays of trades and levels and partial
quotes are what clients of TopstepX recorded.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from zlib import crc32

from keepline.sandbox.listings import Listing
from keepline.sandbox.market import Market
from keepline.sandbox.prices import Bar, Unit

__all__ = ["LEVELS", "Depth", "Step", "Tape"]

LEVELS = 5
"""Prices of the book on each side."""

_ALWAYS = ("symbol", "symbolName", "lastUpdated", "timestamp")

Row = dict[str, object]
_Levels = dict[tuple[bool, Decimal], int]


class Depth(IntEnum):
    """ProjectX's `DomType`, those that the sandbox sends."""

    ASK = 1
    BID = 2
    BEST_ASK = 3
    BEST_BID = 4
    RESET = 6
    NEW_BEST_BID = 9
    NEW_BEST_ASK = 10


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to a contract since the last look; empty where nothing did."""

    quote: Row
    trades: list[Row]
    depth: list[Row]


class Tape:
    """One contract's quotes, trades and book.

    Args:
        market: whose prices they are.
        listing: of which contract.
        seed: of trades and volumes.
    """

    def __init__(self, market: Market, listing: Listing, *, seed: int) -> None:
        self._market, self._listing = market, listing
        self._key = f"{seed}:{listing.id}:tape"
        self._code = f"/{listing.symbol.rpartition('.')[2]}"
        self._quotes: list[Row] = []  # what one subscriber or another holds for true
        self._books: list[_Levels] = []
        self._best: dict[bool, Decimal] = {}
        self._day: Bar | None = None
        self._traded = 0

    def quote(self, *, now: float) -> Row:
        """Everything about the contract: the first quote of a subscription."""
        whole = self._whole(now)
        self._quotes.append(whole)
        return whole

    def _whole(self, now: float) -> Row:
        quote = self._market.quote(self._listing, now=now)
        day = self._bar(now)
        change = quote.last - day.open
        moment = _moment(now)
        return {
            "symbol": self._listing.symbol,
            "symbolName": self._code,
            "lastPrice": float(quote.last),
            "bestBid": float(quote.bid),
            "bestAsk": float(quote.ask),
            "change": float(change),
            "changePercent": round(float(change / day.open) * 100, 2),
            "open": float(day.open),
            "high": float(day.high),
            "low": float(day.low),
            "volume": day.volume + self._traded,
            "lastUpdated": moment,
            "timestamp": moment,
        }

    def depth(self, *, now: float) -> list[Row]:
        """The whole book, begun by a reset: the first levels of a subscription."""
        best, levels = self._sides(now), self._levels(now)
        self._books.append(levels)
        reset = _level(Depth.RESET, Decimal(0), 0, now)
        return [reset, *(_row(key, size, best, now) for key, size in levels.items())]

    def step(self, *, now: float) -> Step:
        """What happened since the last step."""
        trades = self._trades(now)
        self._traded += sum(int(str(row["volume"])) for row in trades)
        whole, known = self._whole(now), self._quotes or [{}]
        changed = {
            name: value
            for name, value in whole.items()
            if name in _ALWAYS or any(told.get(name) != value for told in known)
        }
        self._quotes = [whole]
        return Step(changed if len(changed) > len(_ALWAYS) else {}, trades, self._moves(now))

    def _trades(self, now: float) -> list[Row]:
        quote = self._market.quote(self._listing, now=now)
        found: list[Row] = []
        for number in range(self._chance("count", now) % 4):
            chance = self._chance(f"trade{number}", now)
            sold = bool(chance & 1)
            found.append(
                {
                    "symbolId": self._listing.symbol,
                    "price": float(quote.bid if sold else quote.ask),
                    "timestamp": _moment(now),
                    "type": int(sold),
                    "volume": 1 + (chance >> 1) % 5,
                }
            )
        return found

    def _moves(self, now: float) -> list[Row]:
        """The levels that changed; a price that left the book has no volume."""
        levels, known = self._levels(now), self._books or [{}]
        best = self._sides(now)
        gone = {key: 0 for book in known for key in book if key not in levels}
        moved = {
            key: size
            for key, size in levels.items()
            if any(book.get(key) != size for book in known)
        }
        rows = [_row(key, size, best, now) for key, size in (gone | moved).items()]
        for is_ask, kind in ((False, Depth.NEW_BEST_BID), (True, Depth.NEW_BEST_ASK)):
            if self._best.get(is_ask, best[is_ask]) != best[is_ask]:
                rows.append(_level(kind, best[is_ask], levels[is_ask, best[is_ask]], now))
        self._books, self._best = [levels], best
        return rows

    def _sides(self, now: float) -> dict[bool, Decimal]:
        """The best bid, and under True the best ask."""
        quote = self._market.quote(self._listing, now=now)
        return {False: quote.bid, True: quote.ask}

    def _levels(self, now: float) -> _Levels:
        quote, tick = self._market.quote(self._listing, now=now), self._listing.tick
        sides: tuple[tuple[bool, Decimal, int], ...] = (
            (True, quote.ask, 1),
            (False, quote.bid, -1),
        )
        return {
            (is_ask, price): 1 + self._chance(f"{is_ask}{price}", now // 4) % 50
            for is_ask, best, away in sides
            for price in (best + away * index * tick for index in range(LEVELS))
            if price > 0
        }

    def _bar(self, now: float) -> Bar:
        """The day so far; what was seen of its range and volume never shrinks."""
        last = self._market.quote(self._listing, now=now).last
        found = self._market.prices.bars(
            self._listing, start=0, end=now, unit=Unit.DAY, limit=1, now=now, partial=True
        )
        bar = found[0] if found else Bar(int(now), last, last, last, last, 0)
        seen = self._day
        if seen is None or seen.at != bar.at:
            seen, self._traded = bar, 0
        self._day = Bar(
            bar.at,
            bar.open,
            max(bar.high, seen.high, last),
            min(bar.low, seen.low, last),
            last,
            seen.volume,
        )
        return self._day

    def _chance(self, what: str, now: float) -> int:
        return crc32(f"{self._key}:{what}:{int(now * 1000)}".encode())


def _row(key: tuple[bool, Decimal], size: int, best: dict[bool, Decimal], now: float) -> Row:
    is_ask, price = key
    if price == best[is_ask]:
        return _level(Depth.BEST_ASK if is_ask else Depth.BEST_BID, price, size, now)
    return _level(Depth.ASK if is_ask else Depth.BID, price, size, now)


def _level(kind: Depth, price: Decimal, size: int, now: float) -> Row:
    return {
        "timestamp": _moment(now),
        "type": int(kind),
        "price": float(price),
        "volume": size,
        "currentVolume": size,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
