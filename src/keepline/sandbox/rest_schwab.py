"""Schwab's REST face of the market: orders by account hash, quotes and price history, in the real API's shapes.

Invariants: a 201 means taken for processing, not filled; the id of a new order is in `Location` alone; a replaced order
is another order with another id; a request that was refused changed nothing.

Sources: the Trader API's OpenAPI document (1.0.0) and schwab-py's paths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from keepline.sandbox import schwab_reading as reading
from keepline.sandbox import schwab_shapes as shapes
from keepline.sandbox.book import Account, Order, Reason, Rejected, Terms, Ticket
from keepline.sandbox.listings import Listing
from keepline.sandbox.market import Market
from keepline.sandbox.prices import Unit
from keepline.sandbox.streamer_session import PATH, Identity
from keepline.sandbox.venue import Reply

__all__ = ["ADDRESSES", "Address", "SchwabRequest", "SchwabRest"]

_DAY = 86_400.0
_MOST_RESULTS = 3_000
_FREQUENCIES = {
    "minute": (Unit.MINUTE, (1, 5, 10, 15, 30)),
    "daily": (Unit.DAY, (1,)),
    "weekly": (Unit.WEEK, (1,)),
    "monthly": (Unit.MONTH, (1,)),
}
_TAKEN_FIRST = (Reason.FUNDS, Reason.CLOSE_SIZE)  # what Schwab finds out after its 201
_PERIODS = {"day": 1.0, "month": 31.0, "year": 366.0, "ytd": 366.0}


@dataclass(frozen=True, slots=True)
class Address:
    """One address.

    Attributes:
        route: the group by which faults name it.
        handler: of `SchwabRest`, by name.
    """

    route: str
    handler: str


_ACCOUNT = "/trader/v1/accounts/{account}"
ADDRESSES: Mapping[tuple[str, str], Address] = MappingProxyType(
    {
        ("GET", "/trader/v1/accounts/accountNumbers"): Address("query", "numbers"),
        ("GET", "/trader/v1/accounts"): Address("query", "accounts"),
        ("GET", _ACCOUNT): Address("query", "account"),
        ("POST", f"{_ACCOUNT}/orders"): Address("order", "place"),
        ("GET", f"{_ACCOUNT}/orders"): Address("query", "orders"),
        ("GET", f"{_ACCOUNT}/orders/{{order}}"): Address("query", "order"),
        ("PUT", f"{_ACCOUNT}/orders/{{order}}"): Address("modify", "replace"),
        ("DELETE", f"{_ACCOUNT}/orders/{{order}}"): Address("cancel", "cancel"),
        ("POST", f"{_ACCOUNT}/previewOrder"): Address("query", "preview"),
        ("GET", f"{_ACCOUNT}/transactions"): Address("query", "transactions"),
        ("GET", "/trader/v1/orders"): Address("query", "all_orders"),
        ("GET", "/trader/v1/userPreference"): Address("query", "preference"),
        ("GET", "/marketdata/v1/quotes"): Address("query", "quotes"),
        ("GET", "/marketdata/v1/{symbol}/quotes"): Address("query", "quote"),
        ("GET", "/marketdata/v1/pricehistory"): Address("history", "candles"),
    }
)
"""Every address, by method and path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchwabRequest:
    """A request whose token was accepted.

    Attributes:
        path: the parts of the address that are in braces.
        query: what stands behind the question mark.
        body: the bytes as they came.
        base: scheme and host that the client used, for `Location`.
        now: the market's time in epoch seconds.
        terms: what faults make of it.
    """

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    base: str
    now: float
    terms: Terms


class SchwabRest:
    """The face."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._answers = 0

    def answer(self, address: Address, asked: SchwabRequest) -> Reply:
        """The answer to a request."""
        self._market.advance(asked.now)
        reply = self._answered(address, asked)
        self._answers += 1
        correlation = f"{self._answers:08x}-0000-4000-8000-000000000000"
        headers = {**reply.headers, "Schwab-Client-CorrelId": correlation}
        return Reply(reply.status, reply.body, headers)

    def _answered(self, address: Address, asked: SchwabRequest) -> Reply:
        is_data = address.handler in ("quotes", "quote", "candles")
        try:
            reply: Reply = getattr(self, f"_{address.handler}")(asked)
        except reading.Unreadable as no:
            return (shapes.data_error if is_data else shapes.error)(400, str(no))
        except Rejected as no:
            status = 404 if no.reason is Reason.ORDER or is_data else 400
            return (shapes.data_error if is_data else shapes.error)(status, str(no))
        return reply

    def _numbers(self, _: SchwabRequest) -> Reply:
        return Reply(200, [{"accountNumber": a.id, "hashValue": a.hash} for a in self._ours()])

    def _accounts(self, asked: SchwabRequest) -> Reply:
        return Reply(200, [self._told_account(account, asked) for account in self._ours()])

    def _account(self, asked: SchwabRequest) -> Reply:
        return Reply(200, self._told_account(self._named(asked), asked))

    def _place(self, asked: SchwabRequest) -> Reply:
        account = self._named(asked)
        ticket = reading.ticket_of(asked.body, account.id, now=asked.now)
        self._share(ticket.listing)
        try:
            self._check_held(ticket)
            order = self._market.place(ticket, now=asked.now, terms=asked.terms)
        except Rejected as no:
            if no.reason not in _TAKEN_FIRST:
                raise
            order = self._market.record_rejected(ticket, now=asked.now, words=str(no))
        return self._created(order, account, asked)

    def _replace(self, asked: SchwabRequest) -> Reply:
        account = self._named(asked)
        ticket = reading.ticket_of(asked.body, account.id, now=asked.now)
        self._share(ticket.listing)
        self._check_held(ticket)
        old = _order_number(asked)
        order = self._market.replace(old, ticket, now=asked.now, terms=asked.terms)
        return self._created(order, account, asked)

    def _check_held(self, ticket: Ticket) -> None:
        """A sale of what is not held must be a short sale, and only a short position can be covered."""
        held = self._market.holdings.position(ticket.account, ticket.listing)
        size = held.size if held else 0
        instruction = ticket.details["instruction"]
        if (instruction == "SELL" and size < ticket.size) or (
            instruction == "BUY_TO_COVER" and -size < ticket.size
        ):
            words = "This order may result in an oversold/overbought position in your account."
            raise Rejected(Reason.CLOSE_SIZE, words)

    def _created(self, order: Order, account: Account, asked: SchwabRequest) -> Reply:
        place = f"{asked.base}/trader/v1/accounts/{account.hash}/orders/{order.id}"
        return Reply(201, "", {"Location": place} if asked.terms.location else {})

    def _cancel(self, asked: SchwabRequest) -> Reply:
        account = self._named(asked)
        self._market.cancel(_order_number(asked), account=account.id, now=asked.now)
        return Reply(200, "")

    def _preview(self, asked: SchwabRequest) -> Reply:
        account = self._named(asked)
        ticket = reading.ticket_of(asked.body, account.id, now=asked.now)
        listing = self._share(ticket.listing)
        try:
            self._check_held(ticket)
            self._market.check(ticket)
            rejected = ""
        except Rejected as no:
            rejected = str(no)
        price = ticket.limit or self._market.quote(listing, now=asked.now).ask
        return Reply(200, shapes.preview_told(ticket, listing, price=price, rejected=rejected))

    def _order(self, asked: SchwabRequest) -> Reply:
        account = self._named(asked)
        order = self._market.order(_order_number(asked), account=account.id)
        return Reply(200, self._told(order, asked.terms))

    def _orders(self, asked: SchwabRequest) -> Reply:
        account = self._named(asked)
        start, end = self._window(asked)
        if end - start > 366 * _DAY:
            raise reading.Unreadable("fromEnteredTime and toEnteredTime are at most a year apart")
        return self._list(asked, {account.id}, start, end)

    def _all_orders(self, asked: SchwabRequest) -> Reply:
        start, end = self._window(asked)
        if asked.now - start > 60 * _DAY:
            raise reading.Unreadable("fromEnteredTime must be within 60 days from today")
        return self._list(asked, {account.id for account in self._ours()}, start, end)

    def _list(self, asked: SchwabRequest, accounts: set[str], start: float, end: float) -> Reply:
        status = asked.query.get("status")
        if status is not None and status not in shapes.STATUSES:
            raise reading.Unreadable(f"status is one of {', '.join(shapes.STATUSES)}")
        found = [
            order
            for order in reversed(self._market.orders)
            if order.account in accounts
            and start <= order.entered_at <= end
            and status in (None, shapes.status_of(order))
        ]
        most = _whole(asked.query, "maxResults", _MOST_RESULTS)
        return Reply(200, [self._told(order, asked.terms) for order in found[:most]])

    def _transactions(self, asked: SchwabRequest) -> Reply:
        account = self._named(asked)
        start, end = reading.epoch(asked.query, "startDate"), reading.epoch(asked.query, "endDate")
        skew = asked.terms.skew
        wanted = asked.query.get("types", "TRADE") == "TRADE"
        fills = [
            fill
            for fill in self._market.fills
            if wanted and fill.account == account.id and start <= fill.at + skew <= end
        ]
        listings = self._market.listings
        return Reply(200, [shapes.trade_told(f, listings[f.listing], skew=skew) for f in fills])

    def _preference(self, asked: SchwabRequest) -> Reply:
        url = f"{asked.base.replace('http', 'ws', 1)}{PATH}"
        numbers = [account.id for account in self._ours()]
        return Reply(200, shapes.preference_told(url, Identity(), numbers))

    def _quotes(self, asked: SchwabRequest) -> Reply:
        symbols = [symbol for symbol in asked.query.get("symbols", "").split(",") if symbol]
        if not symbols:
            raise reading.Unreadable("symbols is missing; it is required")
        found: dict[str, object] = {}
        unknown = []
        for symbol in symbols:
            try:
                found |= self._told_quote(symbol, asked)
            except Rejected:
                unknown.append(symbol)
        return Reply(200, {**found, **({"errors": {"invalidSymbols": unknown}} if unknown else {})})

    def _quote(self, asked: SchwabRequest) -> Reply:
        return Reply(200, self._told_quote(asked.path["symbol"], asked))

    def _candles(self, asked: SchwabRequest) -> Reply:
        listing = self._share(asked.query.get("symbol", ""))
        period = asked.query.get("periodType", "day")
        kind = asked.query.get("frequencyType", "minute" if period == "day" else "daily")
        number = _whole(asked.query, "frequency", 1)
        if (
            period not in _PERIODS
            or kind not in _FREQUENCIES
            or number not in _FREQUENCIES[kind][1]
        ):
            raise reading.Unreadable(
                "periodType, frequencyType and frequency do not fit each other"
            )
        now = asked.now + asked.terms.skew
        end = _whole(asked.query, "endDate", int(now * 1000)) / 1000
        span = _PERIODS[period] * _DAY * _whole(asked.query, "period", 10 if period == "day" else 1)
        start = _whole(asked.query, "startDate", int((end - span) * 1000)) / 1000
        unit = _FREQUENCIES[kind][0]
        bars = self._market.prices.bars(
            listing, start=start, end=end, unit=unit, number=number, now=now, partial=True
        )
        candles = [shapes.candle_told(bar) for bar in reversed(bars)]
        told = {"symbol": listing.symbol, "empty": not candles, "candles": candles}
        return Reply(200, told)

    def _told(self, order: Order, terms: Terms) -> dict[str, object]:
        fills = self._market.fills_of(order.id)
        listing = self._market.listings[order.listing]
        return shapes.order_told(order, listing, fills, skew=terms.skew)

    def _told_account(self, account: Account, asked: SchwabRequest) -> dict[str, object]:
        market = self._market
        held = [
            (position, listing, market.quote(listing, now=asked.now))
            for position in market.positions
            if position.account == account.id
            for listing in (market.listings[position.listing],)
        ]
        with_positions = "positions" in asked.query.get("fields", "").split(",")
        cash = market.holdings.cash(account.id)
        return shapes.account_told(account, cash, held, with_positions=with_positions)

    def _told_quote(self, symbol: str, asked: SchwabRequest) -> dict[str, object]:
        listing = self._share(symbol)
        quote = self._market.quote(listing, now=asked.now)
        at = asked.now + asked.terms.skew
        return {symbol: shapes.quote_told(listing, quote, at=at)}

    def _window(self, asked: SchwabRequest) -> tuple[float, float]:
        start = reading.epoch(asked.query, "fromEnteredTime")
        end = reading.epoch(asked.query, "toEnteredTime")
        if start > end:
            raise reading.Unreadable("fromEnteredTime is later than toEnteredTime")
        return start - asked.terms.skew, end - asked.terms.skew

    def _ours(self) -> list[Account]:
        return [account for account in self._market.accounts.values() if account.hash]

    def _named(self, asked: SchwabRequest) -> Account:
        for account in self._ours():
            if account.hash == asked.path["account"]:
                return account
        raise reading.Unreadable("Invalid account number")

    def _share(self, symbol: str) -> Listing:
        listing = self._market.listings.get(symbol)
        if listing is None or listing.is_future:
            raise Rejected(Reason.LISTING, f"the symbol {symbol[:40]!r} is unknown")
        return listing


def _order_number(asked: SchwabRequest) -> int:
    text = asked.path["order"]
    if not text.isdecimal() or len(text) > 18:
        raise reading.Unreadable("Order ID must be a number")
    return int(text)


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    try:
        number = int(text) if len(text) < 19 else -1
    except ValueError:
        number = -1
    if number < 0:
        raise reading.Unreadable(f"{name} must be a whole number from 0 up, not {text[:40]!r}")
    return number
