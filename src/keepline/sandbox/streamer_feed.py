"""What Schwab's streamer tells about the venue: quotes, books and candles of shares, and what happened to orders.

Invariants: the same seed and moments give the same lines; prices are the market's, pins included; an activity's number
is never given twice; accounts of another broker are told to nobody.

Sources: Schwab's Streamer API guide for fields and numbers; clients in the field recorded activities and their data.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from keepline.sandbox.book import Event, Fill, Order, Status
from keepline.sandbox.listings import Listing
from keepline.sandbox.market import Market
from keepline.sandbox.prices import Bar, Unit

__all__ = ["SERVICES", "Activity", "Line", "StreamerFeed"]

SERVICES = ("LEVELONE_EQUITIES", "NYSE_BOOK", "NASDAQ_BOOK", "CHART_EQUITY", "ACCT_ACTIVITY")
"""The services that the sandbox has; a field that one does not have may be asked for."""

_DAY = 86_400
_LEVELS = 5
_SCALE = 1_000_000
_TIMES = ("34", "35")

Line = dict[str, object]
"""One line of a `data` message: fields by their numbers."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Something that happened to an order of an account."""

    sequence: int
    account: str
    kind: str
    data: str

    def line(self, key: str) -> Line:
        """As it is sent to a subscription with this key."""
        told = {"seq": self.sequence, "key": key}
        return told | {"1": self.account, "2": self.kind, "3": self.data}


class StreamerFeed:
    """The venue's news in Schwab's words; `now` is the market's time.

    Args:
        market: the truth.
    """

    def __init__(self, market: Market) -> None:
        self._market = market
        self._seen = 0
        self._sequence = itertools.count(1)
        self._known: set[int] = set()

    def catch_up(self) -> None:
        """Nobody listened: what happened until now is told to nobody."""
        self.activities()

    def activities(self) -> list[Activity]:
        """What happened to the accounts since the last look, oldest first."""
        events = self._market.events_since(self._seen)
        if events:
            self._seen = events[-1].number
        told = (found for event in events for found in self._told(event))
        return [Activity(next(self._sequence), *found) for found in told]

    def line(self, service: str, symbol: str, *, now: float) -> Line | None:
        """Everything about a symbol just now; None for one that does not exist, which Schwab says nothing about."""
        listing = self._market.listings.get(symbol)
        if listing is None or listing.is_future:
            return None
        if service == "LEVELONE_EQUITIES":
            return self._level_one(listing, now)
        return self._candle(listing, now) if service == "CHART_EQUITY" else self._book(listing, now)

    @staticmethod
    def is_news(changed: Mapping[str, object]) -> bool:
        """Whether the fields of a quote that changed are worth a message: times alone are not."""
        return any(name not in _TIMES for name in changed)

    def _level_one(self, listing: Listing, now: float) -> Line:
        quote = self._market.quote(listing, now=now)
        day, before = self._days(listing, now)
        milliseconds = int(now * 1000)
        change = quote.last - before.close
        return {
            "0": listing.symbol,
            "1": float(quote.bid),
            "2": float(quote.ask),
            "3": float(quote.last),
            "4": 1,
            "5": 1,
            "8": day.volume,
            "9": 100,
            "10": float(max(day.high, quote.last)),
            "11": float(min(day.low, quote.last)),
            "12": float(before.close),
            "14": True,
            "15": listing.description,
            "17": float(day.open),
            "18": float(change),
            "25": "NASDAQ",
            "32": "Normal",
            "33": float(quote.last),
            "34": milliseconds,
            "35": milliseconds,
            "42": round(float(change / before.close) * 100, 4),
        }

    def _book(self, listing: Listing, now: float) -> Line:
        quote = self._market.quote(listing, now=now)
        milliseconds = int(now * 1000)

        def side(best: Decimal, step: int) -> list[Line]:
            prices = (best + step * listing.tick * place for place in range(_LEVELS))
            return [
                {
                    "0": float(price),
                    "1": 100 * place,
                    "2": 1,
                    "3": [{"0": "NSDQ", "1": 100 * place, "2": milliseconds}],
                }
                for place, price in enumerate(prices, 1)
            ]

        bids, asks = side(quote.bid, -1), side(quote.ask, 1)
        return {"0": listing.symbol, "1": milliseconds, "2": bids, "3": asks}

    def _candle(self, listing: Listing, now: float) -> Line | None:
        """The last minute that is over."""
        bars = self._market.prices.bars(
            listing, start=now - _DAY, end=now, unit=Unit.MINUTE, limit=1, now=now
        )
        if not bars:
            return None
        bar = bars[0]
        return {
            "0": listing.symbol,
            "1": bar.at % _DAY // 60,
            "2": float(bar.open),
            "3": float(bar.high),
            "4": float(bar.low),
            "5": float(bar.close),
            "6": float(bar.volume),
            "7": bar.at * 1000,
            "8": bar.at // _DAY,
        }

    def _days(self, listing: Listing, now: float) -> tuple[Bar, Bar]:
        """The day until now and the one before; at a weekend the last two that were."""
        bars = self._market.prices.bars(
            listing, start=0, end=now, unit=Unit.DAY, limit=2, now=now, partial=True
        )
        return bars[0], bars[-1]

    def _told(self, event: Event) -> Iterator[tuple[str, str, str]]:
        item = event.item
        if not isinstance(item, (Order, Fill)) or not self._market.accounts[item.account].hash:
            return
        if isinstance(item, Fill):
            order = self._market.order(item.order, account=item.account)
            yield item.account, "OrderFillCompleted", _fill_data(item, order)
            return
        if item.id not in self._known:
            self._known.add(item.id)
            yield item.account, "OrderCreated", _data(item, "OrderCreated")
            if item.status is not Status.REJECTED:
                yield item.account, "OrderAccepted", _data(item, "OrderAccepted", Status="Open")
        if item.status in _OUT:
            yield (
                item.account,
                "OrderUROutCompleted",
                _data(
                    item,
                    "OrderUROutCompleted",
                    LegStatus="LegClosed",
                    OutCancelType=_OUT[item.status],
                    CancelQuantity=_scaled(item.left),
                ),
            )


_OUT = {
    Status.CANCELLED: "ClientCancel",
    Status.REPLACED: "ClientChange",
    Status.EXPIRED: "SystemExpire",
    Status.REJECTED: "SystemReject",
}


def _data(order: Order, kind: str, **more: object) -> str:
    event = {"EventType": kind, **more}
    return json.dumps(
        {
            "SchwabOrderID": str(order.id),
            "AccountNumber": order.account,
            "BaseEvent": {"EventType": kind, f"{kind}Event": event},
        }
    )


def _fill_data(fill: Fill, order: Order) -> str:
    closed = order.status is Status.FILLED
    return _data(
        order,
        "OrderFillCompleted",
        LegStatus="LegClosed" if closed else "LegOpen",
        ExecutionInfo={
            "ExecutionId": str(fill.id),
            "ExecutionQuantity": _scaled(fill.size),
            "ExecutionPrice": _scaled(fill.price),
            "ExecutionTransType": "Fill",
        },
    )


def _scaled(value: Decimal) -> Line:
    """A number as activities tell it: a whole one in text, and twice the count of its decimals."""
    return {"lo": str(int(value * _SCALE)), "signScale": 12}
