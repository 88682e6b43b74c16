"""Schwab behind the port of the order gateway.

Invariants: each mutation sends one request that changes something; what is looked up before it counts as never sent
when it fails; Schwab keeps no id of ours, so an order without an answer is found by its looks alone.
"""

from collections.abc import Coroutine
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

from keepline.brokers.base import (
    Ack,
    BrokerFacts,
    Evidence,
    EvidenceQuery,
    IntentKind,
    OrderIntent,
    Source,
)
from keepline.brokers.checks import amount, id_number, text
from keepline.brokers.gathering import View
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import AssetType, OrderInfo, OrderRequest, Placed
from keepline.brokers.schwab.rules import order_body
from keepline.brokers.schwab.words import (
    asset_type_of,
    closing_request,
    fills_of,
    orders_of,
    position_of,
    replacement_of,
    request_of,
)
from keepline.clock import Clock
from keepline.errors import ConfigError, PermanentError, TransientError
from keepline.model import Position, Side
from keepline.resilience.bearer import until

__all__ = ["SCHWAB_FACTS", "SchwabTrading"]

SCHWAB_FACTS = BrokerFacts(
    longest_processing_seconds=60.0,
    tag_echoed=False,
    replace_makes_new_order=True,
    absences=3,
    absence_spacing_seconds=3.0,
)
"""What the gateway must know of Schwab. The longest processing time is a guess on the safe side."""

T = TypeVar("T")

_AHEAD = timedelta(minutes=1)  # their clock may be ahead of ours
_LONGEST_LOOK, _LONGEST_CALL = 25.0, 60.0
_UNREAD = "what must be known before the order was not read: "


class SchwabTrading:
    """Orders at Schwab as the order gateway wants them. An account's id is its number.

    Args:
        client: stays the caller's to close.
        short_sales: whether a sale of a stock that is not held is a short sale. It costs a look at the positions before
            each order; without it such a sale is refused by Schwab.

    Example:
        >>> gateway = OrderGateway(SchwabTrading(client), "data/schwab.orders")
    """

    def __init__(self, client: SchwabClient, *, short_sales: bool = False) -> None:
        self._client = client
        self._short_sales = short_sales

    @property
    def name(self) -> str:
        """How logs and metrics call it."""
        return self._client.name

    @property
    def facts(self) -> BrokerFacts:
        """What the gateway must know of it."""
        return SCHWAB_FACTS

    def check(self, intent: OrderIntent) -> None:
        """Refuse what Schwab would refuse for its form.

        Raises:
            ConfigError: names the field.
        """
        text(intent.account, "account")
        if intent.kind is IntentKind.PLACE:
            _checked(request_of(intent))
        if intent.kind in (IntentKind.MODIFY, IntentKind.CANCEL) and intent.target_order_id:
            id_number(intent.target_order_id, "target_order_id")
        if intent.quantity is not None:
            amount(intent.quantity, "quantity", whole=True)

    async def place(self, intent: OrderIntent) -> Ack:
        """Send a new order."""
        held = None
        if self._short_sales or asset_type_of(intent.instrument) != AssetType.EQUITY:
            held = await self._held(intent)
        return await self._send(intent, request_of(intent, held=held))

    async def modify(self, intent: OrderIntent) -> Ack:
        """Replace the order: what the intent leaves open stays as it was, and the new one has a new id."""
        target = id_number(intent.target_order_id, "target_order_id")
        old = await self._before(self._client.order(intent.account, target))
        request = replacement_of(intent, old)
        placed = await self._client.replace_order(
            intent.account, target, _checked(request), deadline_seconds=_deadline(intent)
        )
        return _ack(placed)

    async def cancel(self, intent: OrderIntent) -> Ack:
        """Cancel the order `target_order_id`."""
        target = id_number(intent.target_order_id, "target_order_id")
        await self._before(self._client.account_hash(intent.account))
        deadline = _deadline(intent)
        await self._client.cancel_order(intent.account, target, deadline_seconds=deadline)
        return Ack(intent.target_order_id)

    async def close(self, intent: OrderIntent) -> Ack:
        """Close the whole position with a market order against it."""
        return await self._close(intent)

    async def partial_close(self, intent: OrderIntent) -> Ack:
        """Close `quantity` of the position with a market order against it."""
        if intent.quantity is None:
            raise ConfigError("is missing: how much of the position to close", key="quantity")
        return await self._close(intent)

    async def evidence(self, query: EvidenceQuery) -> Evidence:
        """Orders entered since, with their fills, those asked for by id, and positions.

        Raises:
            KeeplineError: nothing could be read at all.
        """
        client, account, view = self._client, query.account, View()
        end = client.clock.wall() + _AHEAD
        start = min(query.since, end - _AHEAD)
        lists = (Source.OPEN_ORDERS, Source.HISTORY, Source.FILLS)
        rows = await view.see(lists, client.orders(account, start, end))
        missing = set(query.order_ids) - {str(row.order_id) for row in rows}
        for order_id in sorted(missing):
            rows += await view.see(lists, self._by_id(account, order_id))
        held = await view.see([Source.POSITIONS], self._positions(account))
        view.raise_if_blind()
        orders = orders_of(rows, account)
        known = {order.id for order in orders}
        return Evidence(
            open_orders=tuple(order for order in orders if not order.status.is_final),
            history=orders,
            fills=tuple(fill for fill in fills_of(rows, account) if fill.order_id in known),
            positions=held,
            failed=view.failed,
        )

    async def _before(self, reading: Coroutine[Any, Any, T]) -> T:
        return await _before(self._client.clock, reading)

    async def _close(self, intent: OrderIntent) -> Ack:
        held = await self._held(intent)
        request = closing_request(intent, held)
        if request is None:
            raise PermanentError(
                f"there is no position in {intent.instrument}", code="PositionNotFound", sent=False
            )
        way = Side.SELL if held > 0 else Side.BUY
        if intent.side is not None and intent.side is not way:
            raise ConfigError(f"closing it takes a {way.value}", key="side")
        return await self._send(intent, request)

    async def _send(self, intent: OrderIntent, request: OrderRequest) -> Ack:
        await self._before(self._client.account_hash(intent.account))
        deadline = _deadline(intent)
        placed = await self._client.place_order(
            intent.account, _checked(request), deadline_seconds=deadline
        )
        return _ack(placed)

    async def _held(self, intent: OrderIntent) -> Decimal:
        rows = await self._before(self._positions(intent.account))
        own = [row.quantity for row in rows if row.instrument == intent.instrument]
        return sum(own, Decimal(0))

    async def _positions(self, account: str) -> tuple[Position, ...]:
        found = await self._client.account(account, positions=True)
        return tuple(position_of(row, found.account_number) for row in found.positions or ())

    async def _by_id(self, account: str, order_id: str) -> tuple[OrderInfo, ...]:
        try:
            return (await self._client.order(account, id_number(order_id, "order_id")),)
        except PermanentError as error:
            if error.status == 404:  # a whole answer: there is none
                return ()
            raise


def _checked(request: OrderRequest) -> OrderRequest:
    """The same, looked at; an error names the intent's field, not Schwab's."""
    try:
        order_body(request)
    except ConfigError as error:
        ours = {"price": "limit_price", "trail": "trail_price", "symbol": "instrument"}
        key = ours.get(error.key, error.key)
        raise ConfigError(str(error.args[0]), key=key) from None
    return request


async def _before(clock: Clock, reading: Coroutine[Any, Any, T]) -> T:
    """What is read before an order is sent: its failure is no unknown outcome.

    Raises:
        TransientError: it could not be read in time; nothing was sent.
    """
    try:
        return await until(clock, _LONGEST_LOOK, reading)
    except TimeoutError:
        words, category = f"no answer within {_LONGEST_LOOK:g} s", "timeout"
        raise TransientError(_UNREAD + words, category=category, sent=False) from None
    except TransientError as error:
        raise TransientError(
            f"{_UNREAD}{error}",
            category=error.category,
            status=error.status,
            retry_after=error.retry_after,
            sent=False,
        ) from error


def _ack(placed: Placed) -> Ack:
    return Ack(None if placed.order_id is None else str(placed.order_id))


def _deadline(intent: OrderIntent) -> float:
    return min(intent.deadline_seconds, _LONGEST_CALL)
