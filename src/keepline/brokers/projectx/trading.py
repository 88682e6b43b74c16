"""ProjectX behind the port of the order gateway.

Invariants: each mutation sends one request that changes something; an intent's id travels as `customTag`, which is a
key to look the order up by and no proof that a second one is refused.
"""

from datetime import datetime, timedelta
from decimal import Decimal

from msgspec.structs import replace

from keepline.brokers.base import (
    Ack,
    BrokerFacts,
    Evidence,
    EvidenceQuery,
    IntentKind,
    OrderIntent,
    Source,
)
from keepline.brokers.checks import id_number
from keepline.brokers.gathering import View
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.messages import OrderInfo
from keepline.brokers.projectx.rules import change_body, close_body, order_body
from keepline.brokers.projectx.words import (
    change_of,
    fill_of,
    order_of,
    position_of,
    request_of,
)
from keepline.errors import ConfigError

__all__ = ["PROJECTX_FACTS", "ProjectXTrading"]

PROJECTX_FACTS = BrokerFacts(
    longest_processing_seconds=30.0,
    tag_echoed=True,
    tag_unique=False,  # "must be unique", but what a second one is answered is documented nowhere
    absences=3,
    absence_spacing_seconds=2.0,
)
"""What the gateway must know of ProjectX. The longest processing time is a guess on the safe side."""

_OURS = {"size": "quantity", "contract_id": "instrument", "account_id": "account"}
_OLDER = timedelta(days=30)
_LONGEST_CALL = 60.0


class ProjectXTrading:
    """Orders at ProjectX as the order gateway wants them.

    Args:
        client: stays the caller's to close.

    Example:
        >>> gateway = OrderGateway(ProjectXTrading(client), "data/topstep.orders")
    """

    def __init__(self, client: ProjectXClient) -> None:
        self._client = client

    @property
    def name(self) -> str:
        """How logs and metrics call it."""
        return self._client.name

    @property
    def facts(self) -> BrokerFacts:
        """What the gateway must know of it."""
        return PROJECTX_FACTS

    def check(self, intent: OrderIntent) -> None:
        """Refuse what ProjectX would refuse for its form; prices are held against the tick once it is known.

        Raises:
            ConfigError: names the field.
        """
        try:
            _check(intent, self._client.tick_size(intent.instrument))
        except ConfigError as error:  # in the intent's own words
            key = _OURS.get(error.key, error.key)
            raise ConfigError(str(error.args[0]), key=key) from None

    async def place(self, intent: OrderIntent) -> Ack:
        """Send a new order with the intent's id as its tag."""
        deadline = _deadline(intent)
        found = await self._client.place_order(request_of(intent), deadline_seconds=deadline)
        return Ack(None if found is None else str(found))

    async def modify(self, intent: OrderIntent) -> Ack:
        """Change size or prices; the order keeps its id."""
        deadline = _deadline(intent)
        await self._client.modify_order(change_of(intent), deadline_seconds=deadline)
        return Ack(intent.target_order_id)

    async def cancel(self, intent: OrderIntent) -> Ack:
        """Cancel the order `target_order_id`."""
        await self._client.cancel_order(
            id_number(intent.account, "account"),
            id_number(intent.target_order_id, "target_order_id"),
            deadline_seconds=_deadline(intent),
        )
        return Ack(intent.target_order_id)

    async def close(self, intent: OrderIntent) -> Ack:
        """Close the whole position; the gateway tells no order id."""
        account = id_number(intent.account, "account")
        deadline = _deadline(intent)
        await self._client.close_position(account, intent.instrument, deadline_seconds=deadline)
        return Ack()

    async def partial_close(self, intent: OrderIntent) -> Ack:
        """Close `quantity` of the position; the gateway tells no order id."""
        if intent.quantity is None:
            raise ConfigError("is missing: how much of the position to close", key="quantity")
        await self._client.partial_close_position(
            id_number(intent.account, "account"),
            intent.instrument,
            intent.quantity,
            deadline_seconds=_deadline(intent),
        )
        return Ack()

    async def evidence(self, query: EvidenceQuery) -> Evidence:
        """Open orders, orders and trades since, positions.

        Raises:
            KeeplineError: nothing could be read at all.
        """
        account, view, client = id_number(query.account, "account"), View(), self._client
        working = await view.see([Source.OPEN_ORDERS], client.open_orders(account))
        past = await view.see([Source.HISTORY], client.search_orders(account, query.since))
        past += await self._older(account, query, (*working, *past), view)
        trades = await view.see([Source.FILLS], client.search_trades(account, query.since))
        held = await view.see([Source.POSITIONS], client.open_positions(account))
        view.raise_if_blind()
        return Evidence(
            open_orders=tuple(map(order_of, working)),
            history=tuple(map(order_of, past)),
            fills=tuple(fill_of(trade) for trade in trades if not trade.voided),
            positions=tuple(map(position_of, held)),
            failed=view.failed,
        )

    async def _older(
        self, account: int, query: EvidenceQuery, seen: tuple[OrderInfo, ...], view: View
    ) -> tuple[OrderInfo, ...]:
        """Wanted orders from before the window: no call asks for one order, so a longer window is searched."""
        missing = set(query.order_ids) - {str(order.id) for order in seen}
        if not missing:
            return ()
        start: datetime = query.since - _OLDER
        longer = self._client.search_orders(account, start, query.since)
        found = await view.see([Source.HISTORY], longer)
        return tuple(order for order in found if str(order.id) in missing)


def _deadline(intent: OrderIntent) -> float:
    return min(intent.deadline_seconds, _LONGEST_CALL)


def _check(intent: OrderIntent, tick: Decimal | None) -> None:
    id_number(intent.account, "account")
    if intent.target_order_id:
        id_number(intent.target_order_id, "target_order_id")
    match intent.kind:
        case IntentKind.PLACE:
            order_body(request_of(intent), tick)
        case IntentKind.MODIFY:
            # the order of an intent that this one waits for has no id yet
            target = intent.target_order_id or "1"
            change_body(change_of(replace(intent, target_order_id=target)), tick)
        case IntentKind.CLOSE | IntentKind.PARTIAL_CLOSE:
            close_body(intent.account, intent.instrument, intent.quantity)
