"""The port that the order gateway needs of a broker, and the values that cross it.

Invariants: an intent is a whole statement of what is wanted, its id belongs to the intent and never to an attempt; a
broker's adapter decides nothing about unknown outcomes, it only tells what was answered and what can be seen.
"""

import enum
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from types import NoneType
from typing import Protocol

from msgspec import Struct, field

from keepline.brokers.checks import neighbours
from keepline.errors import ConfigError
from keepline.model import Fill, Order, OrderType, Position, Side

__all__ = [
    "Ack",
    "Broker",
    "BrokerFacts",
    "Evidence",
    "EvidenceQuery",
    "IntentKind",
    "OrderIntent",
    "Source",
    "check_intent",
    "check_tick",
]

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class IntentKind(enum.Enum):
    """What an intent wants to change."""

    PLACE = "place"
    MODIFY = "modify"
    CANCEL = "cancel"
    CLOSE = "close"
    PARTIAL_CLOSE = "partial_close"


class OrderIntent(Struct, frozen=True, kw_only=True):
    """What is wanted, whole: enough to send it, and enough to find it again when no answer came.

    Attributes:
        id: yours, unique for ever: letters, digits and `. _ : -`, at most 64. It is the idempotency key, and the tag at
            brokers that keep one.
        kind: what to do.
        account: the broker's account id.
        instrument: the broker's instrument id.
        side: of the order; for `close` and `partial_close` of the closing order, when you know it.
        quantity: above 0; for `modify` the new one or None to leave it.
        type: of the order.
        limit_price, stop_price: as the type demands; for `modify` the new ones or None to leave them.
        trail_price: distance of a trailing stop.
        take_profit_ticks, stop_loss_ticks: brackets, where the broker has them.
        target_order_id: for `modify` and `cancel`, the broker's order id. "" with exactly one `depends_on`: the order
            that this intent made.
        depends_on: ids of earlier intents. It is not sent before each of them is accepted, and refused when one is
            refused or presumed absent.
        deadline_seconds: how long a caller waits for the outcome before it reads UNKNOWN; the work goes on behind it.
    """

    id: str
    kind: IntentKind = IntentKind.PLACE
    account: str
    instrument: str = ""
    side: Side | None = None
    quantity: Decimal | None = None
    type: OrderType | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_price: Decimal | None = None
    take_profit_ticks: int | None = None
    stop_loss_ticks: int | None = None
    target_order_id: str = ""
    depends_on: tuple[str, ...] = ()
    deadline_seconds: float = 30.0


class Ack(Struct, frozen=True):
    """A trustworthy yes.

    Attributes:
        order_id: the broker's id of the order (for a replacing `modify` the new one), None when the answer had none.
    """

    order_id: str | None = None


class BrokerFacts(Struct, frozen=True, kw_only=True):
    """What the gateway must know of a broker to settle an unknown outcome.

    Attributes:
        longest_processing_seconds: a request that the broker took may become visible this late.
        tag_echoed: the intent's id comes back on orders, so it finds them.
        tag_unique: the broker refuses a second order with the same tag.
        replace_makes_new_order: a `modify` ends the old order and makes a new one with another id.
        absences: this many complete views without the order, before it is presumed absent.
        absence_spacing_seconds: at least this long between two of them.
        clock_skew_seconds: how far the broker's clock may be from ours.
        longest_call_seconds: no call of the adapter takes longer, waits for limits and retries included.
    """

    longest_processing_seconds: float
    tag_echoed: bool
    tag_unique: bool = False
    replace_makes_new_order: bool = False
    absences: int = 3
    absence_spacing_seconds: float = 2.0
    clock_skew_seconds: float = 30.0
    longest_call_seconds: float = 90.0


class Source(enum.Enum):
    """Where a broker shows what became of an order."""

    OPEN_ORDERS = "open_orders"
    HISTORY = "history"
    FILLS = "fills"
    POSITIONS = "positions"


class EvidenceQuery(Struct, frozen=True, kw_only=True):
    """What the gateway wants to see.

    Attributes:
        account: of this account alone.
        since: orders and fills of this instant and later; the margin for clocks is in it already.
        instruments: that are of interest; an adapter may narrow its requests to them, and may also show all.
        order_ids: orders to look up by their id, also when they are older than `since`.
    """

    account: str
    since: datetime
    instruments: tuple[str, ...] = ()
    order_ids: tuple[str, ...] = ()


class Evidence(Struct, frozen=True, kw_only=True):
    """Everything that a broker shows of an account, in one view.

    The sources are to be read in this order, so that an order that is filled meanwhile is seen in one of them.

    Attributes:
        open_orders: that are working.
        history: orders of the window, whatever their status.
        fills: trades of the window.
        positions: all of the account; an instrument that is not listed is flat.
        failed: sources that could not be read whole, with the reason: their silence proves nothing.
    """

    open_orders: tuple[Order, ...] = ()
    history: tuple[Order, ...] = ()
    fills: tuple[Fill, ...] = ()
    positions: tuple[Position, ...] = ()
    failed: Mapping[Source, str] = field(default_factory=dict)


class Broker(Protocol):
    """What the order gateway needs of a broker.

    The five mutations send **at most one** request that changes something. They raise

    * `PermanentError` when the broker refused and this proves that nothing was changed,
    * any `APIError` with `sent=False`, `Refused`, `CredentialError` or `ConfigError` when nothing was sent,
    * `OutcomeUnknown`, or anything else, when it is not known.
    """

    @property
    def name(self) -> str:
        """How logs and metrics call it."""
        ...

    @property
    def facts(self) -> BrokerFacts:
        """What the gateway must know of it."""
        ...

    def check(self, intent: OrderIntent) -> None:
        """Look at an intent before it is journaled and sent; no I/O. `check_intent` has run already.

        Raises:
            ConfigError: names the field in `key` and says what is wrong: a price off the tick, a type that the broker
                does not have, a quantity that is not whole.
        """
        ...

    async def place(self, intent: OrderIntent) -> Ack:
        """Send a new order; at brokers that keep a tag, with `intent.id` as its tag."""
        ...

    async def modify(self, intent: OrderIntent) -> Ack:
        """Change the order `target_order_id`; fields that are None stay as they are."""
        ...

    async def cancel(self, intent: OrderIntent) -> Ack:
        """Cancel the order `target_order_id`."""
        ...

    async def close(self, intent: OrderIntent) -> Ack:
        """Close the whole position in `instrument`."""
        ...

    async def partial_close(self, intent: OrderIntent) -> Ack:
        """Close `quantity` of the position in `instrument`."""
        ...

    async def evidence(self, query: EvidenceQuery) -> Evidence:
        """Look at all sources; one that fails is listed in `Evidence.failed`, and the others are still told.

        Raises:
            KeeplineError: nothing could be read at all.
        """
        ...


_PRICES: Mapping[OrderType, tuple[str, ...]] = {
    OrderType.LIMIT: ("limit_price",),
    OrderType.STOP: ("stop_price",),
    OrderType.STOP_LIMIT: ("limit_price", "stop_price"),
    OrderType.TRAILING_STOP: ("trail_price",),
}


def check_intent(intent: OrderIntent) -> None:
    """Refuse an intent that makes no sense at any broker; the gateway calls it before `Broker.check`.

    Raises:
        ConfigError: names the field in `key`.
    """
    _check_kinds(intent)
    if not _ID.fullmatch(intent.id):
        raise _wrong(
            "id", f"{intent.id!r} must be 1 to 64 letters, digits or any of . _ : -", intent
        )
    _check_text(intent)
    _check_amounts(intent)
    if intent.kind is IntentKind.PLACE:
        _check_order(intent)
    if intent.kind is IntentKind.CLOSE and intent.quantity is not None:
        raise _wrong(
            "quantity", "a close is of the whole position; partial_close takes one", intent
        )
    if intent.kind is IntentKind.PARTIAL_CLOSE and intent.quantity is None:
        raise _wrong("quantity", "is missing: how much of the position to close", intent)
    if intent.kind is not IntentKind.PLACE:
        _check_no_brackets(intent)
    if intent.kind is IntentKind.MODIFY and not any(
        value is not None
        for value in (intent.quantity, intent.limit_price, intent.stop_price, intent.trail_price)
    ):
        raise _wrong("limit_price", "nothing to change: give a quantity or a price", intent)


def check_tick(intent: OrderIntent, tick_size: Decimal | None) -> None:
    """Refuse a price that is not a multiple of the tick; None for a tick that is not known checks nothing.

    Raises:
        ConfigError: names the field in `key` and the nearest two prices; or the price is no finite number.
    """
    for name in ("limit_price", "stop_price", "trail_price"):
        price: Decimal | None = getattr(intent, name)
        if price is None:
            continue
        if not price.is_finite():
            raise _wrong(name, f"{price} must be a finite number", intent)
        if beside := neighbours(price, tick_size, name):
            below, above = beside
            raise _wrong(
                name,
                f"{price} is off the tick of {tick_size}: {below} and {above} are next to it",
                intent,
            )


def _wrong(key: str, what: str, intent: OrderIntent) -> ConfigError:
    return ConfigError(f"{what} (intent {intent.id[:80]!r}; nothing was sent)", key=key)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "id": (str,),
    "kind": (IntentKind,),
    "account": (str,),
    "instrument": (str,),
    "side": (Side, NoneType),
    "type": (OrderType, NoneType),
    "target_order_id": (str,),
    "depends_on": (tuple,),
}


def _check_kinds(intent: OrderIntent) -> None:
    # a struct takes what it is given; "buy" is no Side.BUY, and what is not a buy would go out as a sale
    for name, kinds in _KINDS.items():
        value = getattr(intent, name)
        if not isinstance(value, kinds):
            wanted = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
            raise ConfigError(f"is a {wanted}, not {value!r:.80} (nothing was sent)", key=name)
    if not all(isinstance(name, str) for name in intent.depends_on):
        raise _wrong("depends_on", "holds the ids of intents", intent)
    seconds: object = intent.deadline_seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise _wrong("deadline_seconds", f"{seconds!r:.80} is no number of seconds", intent)


def _check_no_brackets(intent: OrderIntent) -> None:
    for name in ("take_profit_ticks", "stop_loss_ticks"):
        if getattr(intent, name) is not None:
            words = intent.kind.value.replace("_", " ")
            raise _wrong(name, f"belongs to a new order, not to a {words}", intent)


def _check_text(intent: OrderIntent) -> None:
    if not intent.account:
        raise _wrong("account", "is missing", intent)
    if intent.kind in (IntentKind.MODIFY, IntentKind.CANCEL):
        if not intent.target_order_id and len(intent.depends_on) != 1:
            raise _wrong("target_order_id", "is missing: which order?", intent)
    elif not intent.instrument:
        raise _wrong("instrument", "is missing", intent)
    if intent.id in intent.depends_on:
        raise _wrong("depends_on", "an intent cannot depend on itself", intent)


def _check_amounts(intent: OrderIntent) -> None:
    if not 0 < intent.deadline_seconds < float("inf"):
        raise _wrong(
            "deadline_seconds",
            f"{intent.deadline_seconds!r} must be a number of seconds above 0",
            intent,
        )
    for name in ("quantity", "limit_price", "stop_price", "trail_price"):
        value = getattr(intent, name)
        if value is None:
            continue
        if not isinstance(value, Decimal):
            raise _wrong(name, f"must be a Decimal, not {type(value).__name__}", intent)
        # a price may be below 0 (spreads, oil in 2020), a quantity and a distance may not
        if not value.is_finite() or (value <= 0 and name in ("quantity", "trail_price")):
            raise _wrong(name, f"{value} must be a finite number above 0", intent)
    for name in ("take_profit_ticks", "stop_loss_ticks"):
        ticks = getattr(intent, name)
        if ticks is not None and (
            isinstance(ticks, bool) or not isinstance(ticks, int) or ticks <= 0
        ):
            raise _wrong(name, f"{ticks!r} must be a whole number of ticks above 0", intent)


def _check_order(intent: OrderIntent) -> None:
    for name in ("side", "type", "quantity"):
        if getattr(intent, name) is None:
            raise _wrong(name, "is missing", intent)
    assert intent.type is not None
    for name in _PRICES.get(intent.type, ()):
        if getattr(intent, name) is None:
            raise _wrong(name, f"is missing: a {intent.type.value} order needs it", intent)
