"""The sandbox's market: what accounts may ask of the one venue behind both brokers' faces.

Invariants: the same seed and the same calls at the same times give the same orders, fills and numbers; a refusal
changes nothing; a tag finds the first order that carried it. `now` is epoch seconds and never goes back.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from keepline.sandbox.book import (
    Account,
    Event,
    Fill,
    Kind,
    Order,
    Position,
    Reason,
    Rejected,
    Side,
    Status,
    Terms,
    Ticket,
)
from keepline.sandbox.engine import Engine
from keepline.sandbox.holdings import Holdings
from keepline.sandbox.listings import LISTINGS, Listing
from keepline.sandbox.prices import Prices, Quote

__all__ = ["ACCOUNTS", "Market"]

ACCOUNTS = (
    Account(id="1001", name="SANDBOX-150K", cash=Decimal(150_000)),
    Account(id="1002", name="SANDBOX-CLOSED", cash=Decimal(0), can_trade=False),
    Account(id="10000001", name="Sandbox", cash=Decimal(1_000_000), hash="5A4E0B0C7D"),
)
"""ProjectX's two, one of them closed, and Schwab's, which has a hash."""

_PLAIN = Terms()
_LIMITED = (Kind.LIMIT, Kind.STOP_LIMIT)
_STOPPED = (Kind.STOP, Kind.STOP_LIMIT)
_MOST = 10**9  # units of one order


class Market:
    """One venue with all its accounts.

    Args:
        seed: of the walk.
        accounts: who trades here.
        listings: what is traded, by id.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        accounts: Iterable[Account] = ACCOUNTS,
        listings: Mapping[str, Listing] = LISTINGS,
    ) -> None:
        self.accounts = {account.id: account for account in accounts}
        self.listings = listings
        self._engine = Engine(seed=seed, accounts=self.accounts.values(), listings=listings)
        self._tags: dict[tuple[str, str], int] = {}

    @property
    def orders(self) -> list[Order]:
        """Every order that was ever taken, oldest first."""
        return list(self._engine.orders.values())

    @property
    def fills(self) -> list[Fill]:
        """Every execution, oldest first."""
        return list(self._engine.fills)

    @property
    def positions(self) -> list[Position]:
        """Every open position."""
        return self.holdings.all()

    @property
    def holdings(self) -> Holdings:
        """Positions and cash."""
        return self._engine.holdings

    @property
    def prices(self) -> Prices:
        """The walk and its bars."""
        return self._engine.prices

    def order(self, number: int, *, account: str) -> Order:
        """An order of the account.

        Raises:
            Rejected: it has none of that number.
        """
        order = self._engine.orders.get(number)
        if order is None or order.account != account:
            raise Rejected(Reason.ORDER)
        return order

    def fills_of(self, number: int) -> list[Fill]:
        """Executions of one order, oldest first."""
        return list(self._engine.fills_of.get(number, ()))

    def events_since(self, number: int) -> list[Event]:
        """What happened after the event of that number, oldest first; 0 for all that is remembered."""
        return self._engine.events_since(number)

    def quote(self, listing: Listing, *, now: float) -> Quote:
        """Bid, ask and last price."""
        return self._engine.quote(listing, now)

    def pin(self, listing: str, price: Decimal | None, *, now: float) -> None:
        """Hold a price where it is told, against the walk; None lets it go. Bars do not change."""
        self.advance(now)
        self._engine.pin(listing, price)

    def later(self, at: float, work: Callable[[float], object]) -> None:
        """Have something done at a time of the venue; it is handed that time."""
        self._engine.later(at, work)

    def advance(self, now: float) -> None:
        """Let everything happen that is due by now."""
        self._engine.advance(now)

    def place(self, ticket: Ticket, *, now: float, terms: Terms = _PLAIN) -> Order:
        """Take an order, fill what can be filled at once, and tell how it stands.

        Raises:
            Rejected: nothing was changed.
        """
        self.advance(now)
        known = self._engine.orders.get(self._tags.get((ticket.account, ticket.tag), 0))
        if known is not None and terms.duplicates == "refuse":
            raise Rejected(Reason.TAG, f"the tag {ticket.tag!r} was used by order {known.id}")
        if known is not None and terms.duplicates == "original":
            return known
        self.check(ticket)
        order = self._enter(ticket, terms)
        return self._engine.match(order.id, share=terms.part)

    def check(self, ticket: Ticket) -> None:
        """Whether the venue would take it.

        Raises:
            Rejected: it would not, and why.
        """
        self._may_trade(ticket.account)
        listing = self._active(ticket.listing)
        if ticket.size <= 0 or not _is_whole(ticket.size):
            raise Rejected(Reason.SIZE)
        _check_prices(ticket, listing)
        for ticks, sign in ((ticket.stop_loss, -1), (ticket.take_profit, 1)):
            if ticks is not None and ticks * sign * ticket.side.value <= 0:
                raise Rejected(Reason.BRACKET)
        price = ticket.limit or self.quote(listing, now=self._engine.now).ask
        change = ticket.size * ticket.side.value
        if not self.holdings.affords(ticket.account, listing, change, price=price):
            raise Rejected(Reason.FUNDS)

    def record_rejected(self, ticket: Ticket, *, now: float, words: str) -> Order:
        """Take an order only to reject it, as Schwab does after its 201."""
        self.advance(now)
        return self._engine.record(ticket, Status.REJECTED, words)

    def cancel(self, number: int, *, account: str, now: float) -> Order:
        """Take an order out of the market, and its suspended brackets with it.

        Raises:
            Rejected: it is unknown or over.
        """
        self.advance(now)
        return self._engine.end(self._living(number, account), Status.CANCELLED)

    def modify(
        self,
        number: int,
        *,
        account: str,
        now: float,
        size: Decimal | None = None,
        limit: Decimal | None = None,
        stop: Decimal | None = None,
        trail: Decimal | None = None,
    ) -> Order:
        """Change an order where it stands; what is None stays.

        Raises:
            Rejected: it is unknown or over, or the change makes no sense.
        """
        self.advance(now)
        order = self._living(number, account)
        order = replace(
            order,
            size=order.size if size is None else size,
            limit=order.limit if limit is None else limit,
            stop=order.stop if stop is None else stop,
            trail=order.trail if trail is None else trail,
        )
        if order.size <= order.filled or not _is_whole(order.size):
            raise Rejected(Reason.SIZE, f"{order.filled} units are filled already")
        _check_prices(order, self.listings[order.listing])
        return self._engine.change(order)

    def replace(self, number: int, ticket: Ticket, *, now: float, terms: Terms = _PLAIN) -> Order:
        """Put a new order in the place of another, as Schwab does.

        Raises:
            Rejected: the old one is unknown or over, or the new one would not be taken; nothing was changed.
        """
        self.advance(now)
        old = self._living(number, ticket.account)
        self.check(ticket)
        new = self._enter(ticket, terms)
        self._engine.end(replace(old, replaced_by=new.id), Status.REPLACED)
        return self._engine.match(new.id, share=terms.part)

    def close(
        self,
        account: str,
        listing: str,
        *,
        now: float,
        size: Decimal | None = None,
        terms: Terms = _PLAIN,
    ) -> Order:
        """Close a position, or `size` units of it, by an order at the market.

        Raises:
            Rejected: there is no such position, or it is smaller.
        """
        self.advance(now)
        self._may_trade(account)
        self._active(listing)
        held = self.holdings.position(account, listing)
        if held is None:
            raise Rejected(Reason.POSITION)
        if size is not None and not 1 <= size <= abs(held.size):
            raise Rejected(Reason.CLOSE_SIZE)
        ticket = Ticket(
            account=account,
            listing=listing,
            side=Side.SELL if held.size > 0 else Side.BUY,
            kind=Kind.MARKET,
            size=abs(held.size) if size is None else size,
        )
        return self.place(ticket, now=now, terms=terms)

    def fill_working(self, part: float, *, now: float) -> list[Order]:
        """Fill a part of every working order at its own price, whatever the market says; the orders after it.

        Of a bracket's two orders the first one ends the other.
        """
        self.advance(now)
        working = [order for order in self.orders if order.status is Status.WORKING]
        return [
            self._engine.fill(order.id, Decimal(max(1, int(float(order.left) * part))))
            for order in working
            if self._engine.orders[order.id].status is Status.WORKING
        ]

    def _enter(self, ticket: Ticket, terms: Terms) -> Order:
        if ticket.kind in (Kind.JOIN_BID, Kind.JOIN_ASK):
            quote = self.quote(self.listings[ticket.listing], now=self._engine.now)
            joined = quote.bid if ticket.kind is Kind.JOIN_BID else quote.ask
            ticket = replace(ticket, limit=joined)
        order = self._engine.enter(ticket, pause=0.0 if terms.part is None else terms.pause)
        if order.tag:
            self._tags.setdefault((order.account, order.tag), order.id)
        return order

    def _may_trade(self, account: str) -> None:
        if account not in self.accounts:
            raise Rejected(Reason.ACCOUNT)
        if not self.accounts[account].can_trade:
            raise Rejected(Reason.ACCOUNT_CLOSED)

    def _active(self, listing: str) -> Listing:
        if listing not in self.listings:
            raise Rejected(Reason.LISTING)
        if not self.listings[listing].active:
            raise Rejected(Reason.LISTING_CLOSED)
        return self.listings[listing]

    def _living(self, number: int, account: str) -> Order:
        order = self.order(number, account=account)
        if order.status.is_over:
            reason = Reason.FILLED if order.status is Status.FILLED else Reason.OVER
            raise Rejected(reason, f"the order is {order.status.value}")
        return order


def _is_whole(size: Decimal) -> bool:
    return size < _MOST and size % 1 == 0


def _check_prices(ticket: Ticket, listing: Listing) -> None:
    for price, needed in (
        (ticket.limit, ticket.kind in _LIMITED),
        (ticket.stop, ticket.kind in _STOPPED),
        (ticket.trail, ticket.kind is Kind.TRAILING_STOP),
    ):
        if (price is None and needed) or (price is not None and price <= 0):
            raise Rejected(Reason.PRICE)
        if price is not None and not listing.on_tick(price):
            raise Rejected(Reason.TICK, f"{price} is not a multiple of {listing.tick}")
