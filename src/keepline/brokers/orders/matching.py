"""What a view of the broker says about one intent: found, gone, absent, unclear, or too many to tell.

Invariants: no clock and no memory; a source that was not read whole never proves an absence; an order that belongs to
another intent is never taken; among more orders than intents that could own them nothing is chosen.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from keepline.brokers.base import BrokerFacts, Evidence, IntentKind, OrderIntent, Source
from keepline.model import Fill, Order, OrderStatus, OrderType, Position

__all__ = [
    "Finding",
    "Found",
    "View",
    "Window",
    "candidates",
    "could_be",
    "examine",
    "partial_view",
    "shape",
    "whole_view",
]

_ORDERS = frozenset({Source.OPEN_ORDERS, Source.HISTORY})
_FLAT = Decimal(0)


class Found(enum.Enum):
    """What a view says about an intent."""

    YES = "it is there"
    NO = "the broker refused it, or it came too late"
    ABSENT = "nothing of it is there, and everything was looked at"
    NEEDLESS = "nothing of it is there, and what it wants holds already"
    UNCLEAR = "nothing of it is there, but something is that nobody explains"
    WAIT = "this view proves nothing"
    ASK = "a person must decide"


class Finding(NamedTuple):
    """What a view says about an intent, with the broker's order id where there is one."""

    what: Found
    reason: str
    order_id: str | None = None


class Window(NamedTuple):
    """When the broker must have taken an order in for it to be ours, by the broker's clock, margins included."""

    start: datetime
    end: datetime

    def __contains__(self, moment: object) -> bool:
        return isinstance(moment, datetime) and self.start <= moment <= self.end


class View(NamedTuple):
    """An account as it was seen, each order once."""

    orders: Mapping[str, Order]
    fills: tuple[Fill, ...]
    positions: tuple[Position, ...]
    failed: frozenset[Source]


Owner = Callable[[str], str | None]
"""Which intent an order id belongs to, None for nobody's."""


def whole_view(evidence: Evidence) -> View:
    """The view that an answer to a query gives."""
    orders: dict[str, Order] = {}
    for order in (*evidence.open_orders, *evidence.history):
        known = orders.get(order.id)
        if known is None or not known.status.is_final:
            orders[order.id] = order
    return View(orders, evidence.fills, evidence.positions, frozenset(evidence.failed))


def partial_view(orders: Iterable[Order] = (), fills: Iterable[Fill] = ()) -> View:
    """The view that single events give: what is in it is there, what is not may be there as well."""
    return View({order.id: order for order in orders}, tuple(fills), (), frozenset(Source))


def shape(intent: OrderIntent) -> tuple[object, ...]:
    """What an order of this intent looks like: intents of one shape cannot be told apart without a tag."""
    own = (intent.kind, intent.account, intent.instrument, intent.side, intent.quantity)
    return (*own, intent.type, intent.limit_price, intent.stop_price, intent.target_order_id)


def candidates(
    intent: OrderIntent, view: View, facts: BrokerFacts, window: Window, owner: Owner
) -> list[Order]:
    """Orders of a view that could be an intent's by their looks, the earliest first."""
    fitting = [
        order
        for order in view.orders.values()
        if not (facts.tag_echoed and order.tag)
        and owner(order.id) in (None, intent.id)
        and could_be(intent, window, order)
    ]
    return sorted(fitting, key=lambda order: (order.entered_at, order.id))


def could_be(intent: OrderIntent, window: Window, order: Order) -> bool:
    """Whether an order looks like an intent's and was taken in at the time."""
    return order.entered_at in window and _looks_like(intent, order)


def examine(
    intent: OrderIntent,
    view: View,
    facts: BrokerFacts,
    window: Window,
    owner: Owner,
    *,
    rivals: int = 0,
) -> Finding:
    """What a view says about an intent.

    Args:
        intent: with `target_order_id` filled in.
        view: what was seen.
        facts: of the broker.
        window: when the order must have been taken in.
        owner: who owns an order already.
        rivals: how many other intents of the same shape could own what fits, and do not know their order either.
    """
    if intent.kind is IntentKind.CANCEL:
        return _cancelled(intent, view)
    if intent.kind is IntentKind.MODIFY:
        return _modified(intent, view, facts, window, owner)
    if intent.kind is IntentKind.PLACE and facts.tag_echoed:
        return _tagged(intent, view, window, owner)
    return _by_looks(intent, view, facts, window, owner, rivals)


# --- orders that carry our tag ---


def _tagged(intent: OrderIntent, view: View, window: Window, owner: Owner) -> Finding:
    ours = [o for o in view.orders.values() if o.tag == intent.id and o.account == intent.account]
    ours = [o for o in ours if owner(o.id) in (None, intent.id)]
    if len(ours) > 1:  # the legs of a bracket may carry the tag of their parent
        ours = [o for o in ours if _looks_like(intent, o)] or ours
    if not ours:
        return _nothing(intent, view, window, owner)
    return _ask(ours) if len(ours) > 1 else _standing(ours[0])


# --- orders that can only be told by their looks ---


def _by_looks(
    intent: OrderIntent, view: View, facts: BrokerFacts, window: Window, owner: Owner, rivals: int
) -> Finding:
    ours = candidates(intent, view, facts, window, owner)
    if not ours:
        return _nothing(intent, view, window, owner)
    if view.failed & _ORDERS:
        return Finding(Found.WAIT, "an order fits, but not every source could be read")
    return _ask(ours) if len(ours) > 1 + rivals else _standing(ours[0])


def _looks_like(intent: OrderIntent, order: Order) -> bool:
    if (order.account, order.instrument) != (intent.account, intent.instrument):
        return False
    closes = intent.kind in (IntentKind.CLOSE, IntentKind.PARTIAL_CLOSE)
    wanted = OrderType.MARKET if closes else intent.type
    pairs = (
        (intent.side, order.side),
        (intent.quantity, order.quantity),
        (wanted, order.type),
        (intent.limit_price, order.limit_price),
        (intent.stop_price, order.stop_price),
    )
    return all(want is None or want == has for want, has in pairs)


def _nothing(intent: OrderIntent, view: View, window: Window, owner: Owner) -> Finding:
    if view.failed:
        names = ", ".join(sorted(source.value for source in view.failed))
        return Finding(Found.WAIT, f"could not be read: {names}")
    for fill in view.fills:
        if _unexplained(intent, fill, view, window, owner):
            return Finding(
                Found.UNCLEAR, f"fill {fill.id} of order {fill.order_id} belongs to no known order"
            )
    if intent.kind is IntentKind.CLOSE and _held(intent, view) == _FLAT:
        return Finding(Found.NEEDLESS, "no closing order is there, and the position is flat")
    return Finding(Found.ABSENT, "no order of it is there")


def _unexplained(intent: OrderIntent, fill: Fill, view: View, window: Window, owner: Owner) -> bool:
    return (
        (fill.account, fill.instrument) == (intent.account, intent.instrument)
        and (intent.side is None or intent.side is fill.side)
        and (intent.quantity is None or fill.quantity <= intent.quantity)
        and fill.at >= window.start
        and fill.order_id not in view.orders
        and owner(fill.order_id) is None
    )


def _held(intent: OrderIntent, view: View) -> Decimal:
    place = (intent.account, intent.instrument)
    own = [p.quantity for p in view.positions if (p.account, p.instrument) == place]
    return sum(own, _FLAT)


def _standing(order: Order) -> Finding:
    if order.status is OrderStatus.REJECTED and not order.filled:
        said = order.raw_status or order.status.value
        return Finding(Found.NO, f"the broker rejected it ({said})", order.id)
    return Finding(Found.YES, f"order {order.id} is {order.status.value}", order.id)


def _ask(orders: list[Order]) -> Finding:
    names = ", ".join(sorted(order.id for order in orders))
    return Finding(Found.ASK, f"{len(orders)} orders fit: {names}; a person must say which is it")


# --- changes of an order that is known ---


def _cancelled(intent: OrderIntent, view: View) -> Finding:
    order = view.orders.get(intent.target_order_id)
    if order is None:
        return _target_missing(intent, view)
    if order.status is OrderStatus.CANCELLED:
        return Finding(Found.YES, f"order {order.id} is cancelled", order.id)
    if order.status.is_final:
        return Finding(Found.NO, f"order {order.id} was {order.status.value} before", order.id)
    return _still(order, view, "is still there")


def _modified(
    intent: OrderIntent, view: View, facts: BrokerFacts, window: Window, owner: Owner
) -> Finding:
    order = view.orders.get(intent.target_order_id)
    if order is None:
        return _target_missing(intent, view)
    if facts.replace_makes_new_order:
        return _replaced(intent, order, view, window, owner)
    if _has_changes(intent, order):
        if intent.trail_price is not None:  # orders do not show their trail
            if view.failed & _ORDERS:
                return Finding(Found.WAIT, "not every source could be read")
            return Finding(Found.UNCLEAR, f"order {order.id} does not show its trail")
        return Finding(Found.YES, f"order {order.id} is as wanted", order.id)
    if order.status.is_final:
        return Finding(Found.NO, f"order {order.id} was {order.status.value} before", order.id)
    return _still(order, view, "is unchanged")


def _replaced(intent: OrderIntent, old: Order, view: View, window: Window, owner: Owner) -> Finding:
    new = [
        order
        for order in view.orders.values()
        if order.id != old.id
        and order.entered_at in window
        and owner(order.id) in (None, intent.id)
        and (order.account, order.instrument, order.side) == (old.account, old.instrument, old.side)
        and order.type is (intent.type or old.type)
        and _has_changes(intent, order, else_as=old)
    ]
    if not old.status.is_final:
        return _still(old, view, "is unchanged") if not new else _still_there_beside(old, new)
    if old.status is not OrderStatus.CANCELLED:
        return Finding(Found.NO, f"order {old.id} was {old.status.value} before", old.id)
    if view.failed & _ORDERS:
        return Finding(Found.WAIT, "not every source could be read")
    if not new:
        return Finding(Found.UNCLEAR, f"order {old.id} is cancelled and no new one is there")
    return _ask(new) if len(new) > 1 else _instead_of(old, _standing(new[0]))


def _instead_of(old: Order, finding: Finding) -> Finding:
    """A successor that was rejected leaves nothing at work, and whoever reads "refused" would not think so."""
    if finding.what is not Found.NO:
        return finding
    reason = f"{finding.reason}; order {old.id}, which it was to replace, is gone all the same"
    return finding._replace(reason=reason)


def _has_changes(intent: OrderIntent, order: Order, *, else_as: Order | None = None) -> bool:
    for name in ("quantity", "limit_price", "stop_price"):
        wanted = getattr(intent, name)
        if wanted is None and else_as is not None:
            wanted = getattr(else_as, name)
        if wanted is not None and wanted != getattr(order, name):
            return False
    return True


def _still(order: Order, view: View, how: str) -> Finding:
    if view.failed & _ORDERS:
        return Finding(Found.WAIT, "not every source could be read")
    return Finding(Found.ABSENT, f"order {order.id} {how}", order.id)


def _still_there_beside(old: Order, new: list[Order]) -> Finding:
    names = ", ".join(order.id for order in new)
    return Finding(Found.UNCLEAR, f"order {old.id} is still there beside {names}")


def _target_missing(intent: OrderIntent, view: View) -> Finding:
    if view.failed & _ORDERS:
        return Finding(Found.WAIT, "not every source could be read")
    return Finding(Found.UNCLEAR, f"order {intent.target_order_id} is not shown any more")
