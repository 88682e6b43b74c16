"""ProjectX's REST face of the market: every trading endpoint of the Gateway API in its own shapes.

Invariants: a request that cannot be read is 400 with a problem document; every other answer is 200 with `success`, and
the number of a refusal is the endpoint's own; a request that was refused changed nothing.

Sources: the Gateway API's OpenAPI document and gateway.docs.projectx.com; suspended brackets that no search shows,
their tags, the sign of their ticks and the trail as a distance are what users of TopstepX recorded (2026-07).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType

import msgspec
from msgspec import Struct

from keepline.sandbox import projectx_shapes as shapes
from keepline.sandbox.book import Order, Reason, Rejected, Status, Terms, Ticket
from keepline.sandbox.listings import Listing
from keepline.sandbox.market import Market
from keepline.sandbox.prices import MOST_BARS, Unit
from keepline.sandbox.venue import Reply

__all__ = ["ENDPOINTS", "Endpoint", "ProjectXRest"]

MOST_CONTRACTS = 20
"""Contracts in one answer of `Contract/search`."""

_UNITS = frozenset(map(int, Unit))
_LONGEST = 10_000  # units in a bar: ours, the real gateway's limit is not known


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address.

    Attributes:
        route: the group by which faults name it.
        method: of `ProjectXRest`, by name.
        request: what its body must be.
        codes: the endpoint's own number for each reason to refuse.
        other: its number for all other reasons.
    """

    route: str
    method: str
    request: type[Struct]
    codes: Mapping[Reason, int]
    other: int = 1


_ACCOUNT = {Reason.ACCOUNT: 1}
_PLACE = {
    Reason.ACCOUNT: 1,
    Reason.FUNDS: 3,
    Reason.LISTING: 8,
    Reason.LISTING_CLOSED: 9,
    Reason.ACCOUNT_CLOSED: 10,
}
# what was filled is past cancelling, and users saw 5 (UnknownError) for it: the outcome has to be looked up
_CANCEL = {Reason.ACCOUNT: 1, Reason.ORDER: 2, Reason.OVER: 2, Reason.FILLED: 5}
_CLOSE = {
    Reason.ACCOUNT: 1,
    Reason.POSITION: 2,
    Reason.LISTING: 3,
    Reason.LISTING_CLOSED: 4,
    Reason.ACCOUNT_CLOSED: 8,
}
_PARTIAL = {**_CLOSE, Reason.CLOSE_SIZE: 5, Reason.ACCOUNT_CLOSED: 9}

ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        f"/api/{path}": endpoint
        for path, endpoint in {
            "Account/search": Endpoint("query", "accounts", shapes.AccountsBody, {}),
            "Contract/search": Endpoint("query", "contracts", shapes.ContractsBody, {}),
            "Contract/searchById": Endpoint("query", "contract", shapes.ContractBody, {Reason.LISTING: 1}),
            "Contract/available": Endpoint("query", "available", shapes.LiveBody, {}),
            "History/retrieveBars": Endpoint("history", "bars", shapes.BarsBody, {Reason.LISTING: 1}),
            "Order/place": Endpoint("order", "place", shapes.PlaceBody, _PLACE, 2),
            "Order/modify": Endpoint("modify", "modify", shapes.ModifyBody, _CANCEL, 3),
            "Order/cancel": Endpoint("cancel", "cancel", shapes.CancelBody, _CANCEL, 3),
            "Order/search": Endpoint("query", "orders", shapes.OrdersBody, _ACCOUNT),
            "Order/searchOpen": Endpoint("query", "open_orders", shapes.AccountBody, _ACCOUNT),
            "Position/searchOpen": Endpoint("query", "positions", shapes.AccountBody, _ACCOUNT),
            "Position/closeContract": Endpoint("close", "close", shapes.CloseBody, _CLOSE, 5),
            "Position/partialCloseContract": Endpoint("close", "close", shapes.PartialCloseBody, _PARTIAL, 6),
            "Trade/search": Endpoint("query", "trades", shapes.TradesBody, _ACCOUNT),
        }.items()
    }
)  # fmt: skip
"""Every trading endpoint, all of them POST."""


class ProjectXRest:
    """The face; `now` is the market's time in epoch seconds."""

    def __init__(self, market: Market) -> None:
        self._market = market

    def answer(self, path: str, body: bytes, *, now: float, terms: Terms) -> Reply:
        """The answer to a request whose token was accepted.

        Args:
            path: a key of `ENDPOINTS`.
            body: the bytes as they came.
            now: the market's time.
            terms: what faults make of it.
        """
        endpoint = ENDPOINTS[path]
        try:
            request = msgspec.json.decode(body, type=endpoint.request)
        except (msgspec.MsgspecError, RecursionError) as error:
            return shapes.problem(error)
        self._market.advance(now)
        try:
            found = getattr(self, f"_{endpoint.method}")(request, now, terms)
        except Rejected as no:
            code = endpoint.codes.get(no.reason, endpoint.other)
            return Reply(
                200, shapes.envelope(code, None if no.reason is Reason.FILLED else str(no))
            )
        except _Code as no:
            return Reply(200, shapes.envelope(no.code))
        return Reply(200, shapes.envelope(**found))

    def _accounts(self, asked: shapes.AccountsBody, _: float, __: Terms) -> dict[str, object]:
        market = self._market
        ours = [account for account in market.accounts.values() if not account.hash]
        return {
            "accounts": [
                shapes.account_told(account, market.holdings.cash(account.id))
                for account in ours
                if account.can_trade or not asked.onlyActiveAccounts
            ]
        }

    def _contracts(self, asked: shapes.ContractsBody, _: float, __: Terms) -> dict[str, object]:
        words = (asked.searchText or "").lower()
        fitting = [
            shapes.contract_told(listing)
            for listing in self._futures()
            if words in f"{listing.id} {listing.name} {listing.description}".lower()
        ]
        return {"contracts": fitting[:MOST_CONTRACTS]}

    def _contract(self, asked: shapes.ContractBody, _: float, __: Terms) -> dict[str, object]:
        return {"contract": shapes.contract_told(self._listing(asked.contractId))}

    def _available(self, _: shapes.LiveBody, __: float, ___: Terms) -> dict[str, object]:
        active = [listing for listing in self._futures() if listing.active]
        return {"contracts": [shapes.contract_told(listing) for listing in active]}

    def _bars(self, asked: shapes.BarsBody, now: float, terms: Terms) -> dict[str, object]:
        listing = self._listing(asked.contractId)
        if asked.unit not in _UNITS:
            raise _Code(2)
        if not 1 <= asked.unitNumber <= _LONGEST:
            raise _Code(3)
        if not 1 <= asked.limit <= MOST_BARS:
            raise _Code(4)
        bars = self._market.prices.bars(
            listing,
            start=shapes.epoch(asked.startTime),
            end=shapes.epoch(asked.endTime),
            unit=Unit(asked.unit),
            number=asked.unitNumber,
            limit=asked.limit,
            now=now + terms.skew,
            partial=asked.includePartialBar,
        )
        return {"bars": [shapes.bar_told(bar) for bar in bars]}

    def _place(self, asked: shapes.PlaceBody, now: float, terms: Terms) -> dict[str, object]:
        kind, side = shapes.KINDS.get(asked.type), shapes.SIDES.get(asked.side)
        if kind is None or side is None:
            raise Rejected(Reason.KIND)
        ticket = Ticket(
            account=self._account(asked.accountId),
            listing=asked.contractId,
            side=side,
            kind=kind,
            size=Decimal(asked.size),
            limit=_exact(asked.limitPrice),
            stop=_exact(asked.stopPrice),
            trail=_exact(asked.trailPrice),
            tag=asked.customTag or "",
            stop_loss=asked.stopLossBracket.ticks if asked.stopLossBracket else None,
            take_profit=asked.takeProfitBracket.ticks if asked.takeProfitBracket else None,
        )
        self._listing(asked.contractId)  # a share is no contract here
        return {"orderId": self._market.place(ticket, now=now, terms=terms).id}

    def _modify(self, asked: shapes.ModifyBody, now: float, _: Terms) -> dict[str, object]:
        self._market.modify(
            asked.orderId,
            account=self._account(asked.accountId),
            now=now,
            size=None if asked.size is None else Decimal(asked.size),
            limit=_exact(asked.limitPrice),
            stop=_exact(asked.stopPrice),
            trail=_exact(asked.trailPrice),
        )
        return {}

    def _cancel(self, asked: shapes.CancelBody, now: float, _: Terms) -> dict[str, object]:
        self._market.cancel(asked.orderId, account=self._account(asked.accountId), now=now)
        return {}

    def _close(
        self, asked: shapes.CloseBody | shapes.PartialCloseBody, now: float, terms: Terms
    ) -> dict[str, object]:
        size = Decimal(asked.size) if isinstance(asked, shapes.PartialCloseBody) else None
        account = self._account(asked.accountId)
        self._market.close(account, asked.contractId, now=now, size=size, terms=terms)
        return {}

    def _orders(self, asked: shapes.OrdersBody, _: float, terms: Terms) -> dict[str, object]:
        window = _Window(asked.startTimestamp, asked.endTimestamp, terms.skew)
        orders = [o for o in self._of(asked.accountId) if window.holds(o.entered_at)]
        return {"orders": [self._told(order, terms) for order in orders]}

    def _open_orders(self, asked: shapes.AccountBody, _: float, terms: Terms) -> dict[str, object]:
        orders = [o for o in self._of(asked.accountId) if o.status is Status.WORKING]
        return {"orders": [self._told(order, terms) for order in orders]}

    def _positions(self, asked: shapes.AccountBody, _: float, terms: Terms) -> dict[str, object]:
        account = self._account(asked.accountId)
        held = [position for position in self._market.positions if position.account == account]
        return {"positions": [shapes.position_told(item, skew=terms.skew) for item in held]}

    def _trades(self, asked: shapes.TradesBody, _: float, terms: Terms) -> dict[str, object]:
        account = self._account(asked.accountId)
        window = _Window(asked.startTimestamp, asked.endTimestamp, terms.skew)
        fills = [f for f in self._market.fills if f.account == account and window.holds(f.at)]
        return {"trades": [shapes.trade_told(fill, skew=terms.skew) for fill in fills]}

    def _of(self, number: int) -> list[Order]:
        """The account's orders that a search shows: suspended brackets are not among them."""
        account = self._account(number)
        return [
            order
            for order in self._market.orders
            if order.account == account and order.status is not Status.SUSPENDED
        ]

    def _told(self, order: Order, terms: Terms) -> dict[str, object]:
        return shapes.order_told(order, self._market.listings[order.listing], skew=terms.skew)

    def _account(self, number: int) -> str:
        account = self._market.accounts.get(str(number))
        if account is None or account.hash:
            raise Rejected(Reason.ACCOUNT)
        return account.id

    def _futures(self) -> list[Listing]:
        return [listing for listing in self._market.listings.values() if listing.is_future]

    def _listing(self, contract: str) -> Listing:
        listing = self._market.listings.get(contract)
        if listing is None or not listing.is_future:
            raise Rejected(Reason.LISTING)
        return listing


class _Code(Exception):
    """A refusal that has a number at this endpoint and no meaning in the market."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Window:
    """Moments from a start to an end, both included, as the venue's clock tells them."""

    def __init__(self, start: datetime | None, end: datetime | None, skew: float) -> None:
        self._start = float("-inf") if start is None else shapes.epoch(start) - skew
        self._end = float("inf") if end is None else shapes.epoch(end) - skew

    def holds(self, at: float) -> bool:
        """Whether the moment is in it."""
        return self._start <= at <= self._end


def _exact(number: float | None) -> Decimal | None:
    return None if number is None else Decimal(repr(number))
