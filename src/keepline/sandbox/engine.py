"""The sandbox's matching: orders meet the walk as time goes by, and every change is an event.

Invariants: time only moves forward; an order that is over is never filled; an entry's brackets wait without a price
until it is filled, and the first fill of one ends the other; what accounts hold follows from the fills alone.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from decimal import Decimal

from keepline.sandbox.book import (
    Account,
    Event,
    Fill,
    Kind,
    Order,
    Position,
    Status,
    Ticket,
    look,
)
from keepline.sandbox.holdings import Holdings
from keepline.sandbox.listings import Listing
from keepline.sandbox.prices import Prices, Quote

__all__ = ["MOST_EVENTS", "Engine"]

MOST_EVENTS = 100_000
"""Older events are forgotten; orders and fills are not."""

_MOST_STEPS = 7_200  # a clock that jumps by days looks at the market this often, not every second


class Engine:
    """Orders, fills and time; who may do what is decided elsewhere."""

    def __init__(
        self, *, seed: int, accounts: Iterable[Account], listings: Mapping[str, Listing]
    ) -> None:
        self.listings = listings
        self.prices = Prices(seed)
        self.holdings = Holdings(accounts)
        self.orders: dict[int, Order] = {}
        self.fills: list[Fill] = []
        self.fills_of: dict[int, list[Fill]] = {}
        self.now = -math.inf
        self._working: dict[int, None] = {}
        self._children: dict[int, list[int]] = {}
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._due: list[tuple[float, int, Callable[[float], object]]] = []
        self._pins: dict[str, Decimal] = {}
        self._order_ids, self._fill_ids = itertools.count(1_000_001), itertools.count(5_000_001)
        self._order_of_work = itertools.count()

    def events_since(self, number: int) -> list[Event]:
        """What happened after the event of that number, oldest first."""
        newest = self._events[-1].number if self._events else 0
        count = min(max(0, newest - number), len(self._events))
        return list(itertools.islice(reversed(self._events), count))[::-1]

    def quote(self, listing: Listing, now: float) -> Quote:
        """Bid, ask and last price of a moment."""
        pin = self._pins.get(listing.id)
        if pin is not None:
            return Quote(pin, pin + listing.tick, pin)
        return self.prices.quote(listing, now)

    def pin(self, listing: str, price: Decimal | None) -> None:
        """Hold a price, or let it go; whoever is touched is filled at once."""
        self._pins.pop(listing, None)
        if price is not None:
            self._pins[listing] = price
        self._match_all()

    def later(self, at: float, work: Callable[[float], object]) -> None:
        """Have something done at a time; it is handed that time."""
        heapq.heappush(self._due, (at, next(self._order_of_work), work))

    def advance(self, now: float) -> None:
        """Let everything happen that is due by now."""
        while self._due and self._due[0][0] <= now:
            at, _, work = heapq.heappop(self._due)
            self._walk(at)
            work(max(at, self.now))
        self._walk(now)

    def enter(self, ticket: Ticket, *, pause: float = 0.0) -> Order:
        """Put an order with its brackets into the market; `pause` seconds go by before the market fills it."""
        order = replace(self.record(ticket), resumes_at=self.now + pause)
        self.orders[order.id] = order
        self._working[order.id] = None
        for ticks, kind, suffix in (
            (order.stop_loss, Kind.STOP, "SL"),
            (order.take_profit, Kind.LIMIT, "TP"),
        ):
            if ticks is not None:
                self._bracket(order, kind, suffix)
        return order

    def record(self, ticket: Ticket, status: Status = Status.WORKING, words: str = "") -> Order:
        """Give a ticket its number without putting it into the market."""
        asked = {item.name: getattr(ticket, item.name) for item in fields(Ticket)}
        number = next(self._order_ids)
        order = Order(**asked, id=number, status=status, entered_at=self.now, words=words)
        self._put(order)
        return order

    def change(self, order: Order) -> Order:
        """Put a changed order in the place of the old one and match it."""
        self._put(replace(order, updated_at=self.now))
        return self.match(order.id)

    def end(self, order: Order, status: Status) -> Order:
        """Take an order out of the market, and the brackets that still wait for it."""
        self._working.pop(order.id, None)
        self._put(replace(order, status=status, updated_at=self.now))
        self._end_all(self._brackets(order.id, Status.SUSPENDED))
        return self.orders[order.id]

    def match(self, number: int, *, share: float | None = None) -> Order:
        """Fill what the market fills now, or `share` of the order whatever the market says; the order after it."""
        order = self.orders[number]
        listing = self.listings[order.listing]
        quote = self.quote(listing, self.now)
        seen, price = look(order, quote)
        if seen != order:
            order = replace(seen, updated_at=self.now)
            self._put(order)
        if share is not None:
            size = min(order.left - 1, Decimal(max(1, int(float(order.size) * share))))
            price = price or order.limit or order.stop or quote.last
        else:
            size = min(order.left, Decimal(listing.depth))
            price = price if self.now >= order.resumes_at else None
        if price is not None and size > 0:
            self._fill(order, size, price)
        return self.orders[number]

    def fill(self, number: int, size: Decimal) -> Order:
        """Fill units of a working order at its own price, whatever the market says; the order after it."""
        order = self.orders[number]
        price = order.limit or order.stop or self.quote(self.listings[order.listing], self.now).last
        self._fill(order, min(size, order.left), price)
        return self.orders[number]

    def _bracket(self, entry: Order, kind: Kind, suffix: str) -> None:
        """A child as ProjectX's users have seen them: there at once, suspended, its tag made from the entry's."""
        ticket = Ticket(
            account=entry.account,
            listing=entry.listing,
            side=entry.side.other,
            kind=kind,
            size=entry.size,
            tag=f"{entry.tag}-{suffix}" if entry.tag else "",
        )
        child = replace(self.record(ticket, Status.SUSPENDED), parent=entry.id)
        self.orders[child.id] = child
        self._children.setdefault(entry.id, []).append(child.id)

    def _brackets(self, entry: int, *statuses: Status) -> list[Order]:
        children = [self.orders[number] for number in self._children.get(entry, ())]
        return [child for child in children if child.status in statuses]

    def _end_all(self, orders: Iterable[Order]) -> None:
        for order in orders:
            self.end(order, Status.CANCELLED)

    def _put(self, order: Order) -> None:
        self.orders[order.id] = order
        self._tell(order)

    def _tell(self, item: Order | Fill | Position) -> None:
        number = self._events[-1].number + 1 if self._events else 1
        self._events.append(Event(number, self.now, item))

    def _walk(self, until: float) -> None:
        if until <= self.now:
            return
        if self._working:
            step = max(1.0, (until - self.now) / _MOST_STEPS)
            at = math.floor(self.now) + step
            while at <= until and self._working:
                self.now = at
                self._match_all()
                at += step
        self.now = until

    def _match_all(self) -> None:
        for number in list(self._working):
            order = self.orders[number]
            if order.status.is_over:
                continue  # a bracket that another's fill has just ended
            if order.expires_at is not None and order.expires_at <= self.now:
                self.end(order, Status.EXPIRED)
            else:
                self.match(number)

    def _fill(self, order: Order, size: Decimal, price: Decimal) -> None:
        listing = self.listings[order.listing]
        fill = Fill(
            id=next(self._fill_ids),
            order=order.id,
            account=order.account,
            listing=order.listing,
            side=order.side,
            size=size,
            price=price,
            fees=listing.fee * size,
            profit=None,
            at=self.now,
        )
        fill = replace(fill, profit=self.holdings.profit(fill, listing))
        self.fills.append(fill)
        self.fills_of.setdefault(order.id, []).append(fill)
        position = self.holdings.apply(fill, listing)
        order = self._after(order, fill)
        self._put(order)
        self._tell(fill)
        self._tell(position)
        if order.parent is not None:
            self._end_all(
                other
                for other in self._brackets(order.parent, Status.WORKING, Status.SUSPENDED)
                if other.id != order.id
            )
        elif order.status is Status.FILLED:
            for child in self._brackets(order.id, Status.SUSPENDED):
                self._wake(child, order)

    def _after(self, order: Order, fill: Fill) -> Order:
        filled = order.filled + fill.size
        paid = (order.average or 0) * order.filled + fill.price * fill.size
        status = Status.FILLED if filled == order.size else Status.WORKING
        if status is Status.FILLED:
            self._working.pop(order.id, None)
        return replace(
            order, filled=filled, average=paid / filled, updated_at=self.now, status=status
        )

    def _wake(self, child: Order, entry: Order) -> None:
        """Give a bracket its price, so many ticks from the entry's, and put it into the market."""
        listing = self.listings[child.listing]
        base = listing.rounded(float(entry.average or 0))
        if child.kind is Kind.STOP:
            child = replace(child, stop=base + (entry.stop_loss or 0) * listing.tick)
        else:
            child = replace(child, limit=base + (entry.take_profit or 0) * listing.tick)
        self._working[child.id] = None
        self._put(replace(child, status=Status.WORKING, updated_at=self.now))
