"""What no broker could make sense of is refused before it is journaled, with the field's name."""

from decimal import Decimal

import pytest
from msgspec import structs

from keepline.brokers.base import IntentKind, OrderIntent, check_intent, check_tick
from keepline.errors import ConfigError
from keepline.model import OrderType, Side

GOOD = OrderIntent(
    id="entry-1",
    account="1",
    instrument="MNQ",
    side=Side.BUY,
    quantity=Decimal(1),
    type=OrderType.LIMIT,
    limit_price=Decimal("21000.25"),
)


def wrong(intent: OrderIntent) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_intent(intent)
    assert "nothing was sent" in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"id": ""}, "id"),
        ({"id": "a b"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": "ü"}, "id"),
        ({"account": ""}, "account"),
        ({"instrument": ""}, "instrument"),
        ({"side": None}, "side"),
        ({"type": None}, "type"),
        ({"quantity": None}, "quantity"),
        ({"quantity": Decimal(0)}, "quantity"),
        ({"quantity": Decimal(-1)}, "quantity"),
        ({"quantity": Decimal("NaN")}, "quantity"),
        ({"quantity": Decimal("Infinity")}, "quantity"),
        ({"quantity": 1}, "quantity"),
        ({"limit_price": None}, "limit_price"),
        ({"limit_price": Decimal("NaN")}, "limit_price"),
        ({"limit_price": 21000.25}, "limit_price"),
        ({"type": OrderType.STOP}, "stop_price"),
        ({"type": OrderType.STOP_LIMIT}, "stop_price"),
        ({"type": OrderType.TRAILING_STOP}, "trail_price"),
        ({"type": OrderType.TRAILING_STOP, "trail_price": Decimal(0)}, "trail_price"),
        ({"take_profit_ticks": 0}, "take_profit_ticks"),
        ({"stop_loss_ticks": -4}, "stop_loss_ticks"),
        ({"stop_loss_ticks": 4.5}, "stop_loss_ticks"),
        ({"deadline_seconds": 0.0}, "deadline_seconds"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds"),
        ({"deadline_seconds": float("inf")}, "deadline_seconds"),
        ({"depends_on": ("entry-1",)}, "depends_on"),
        ({"kind": IntentKind.CANCEL}, "target_order_id"),
        ({"kind": IntentKind.MODIFY}, "target_order_id"),
        ({"kind": IntentKind.MODIFY, "depends_on": ("a", "b")}, "target_order_id"),
        ({"kind": IntentKind.PARTIAL_CLOSE, "quantity": None}, "quantity"),
        ({"kind": IntentKind.CLOSE, "instrument": ""}, "instrument"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(changes: dict[str, object], key: str) -> None:
    assert wrong(structs.replace(GOOD, **changes)).key == key


def test_a_modify_that_changes_nothing_is_refused() -> None:
    idle = OrderIntent(id="m", kind=IntentKind.MODIFY, account="1", target_order_id="7")
    assert "nothing to change" in str(wrong(idle))


@pytest.mark.parametrize(
    "intent",
    [
        GOOD,
        structs.replace(GOOD, limit_price=Decimal("-37.63")),  # oil, April 2020
        structs.replace(GOOD, type=OrderType.MARKET, limit_price=None),
        OrderIntent(id="c", kind=IntentKind.CANCEL, account="1", target_order_id="7"),
        OrderIntent(id="c", kind=IntentKind.CANCEL, account="1", depends_on=("entry-1",)),
        OrderIntent(id="x", kind=IntentKind.CLOSE, account="1", instrument="MNQ"),
        OrderIntent(id="m", kind=IntentKind.MODIFY, account="1", target_order_id="7", quantity=Decimal(2)),
    ],
    ids=lambda intent: f"{intent.kind.value} {intent.id}",
)  # fmt: skip
def test_what_makes_sense_is_let_through(intent: OrderIntent) -> None:
    check_intent(intent)


def test_a_price_off_the_tick_is_refused_with_the_prices_next_to_it() -> None:
    with pytest.raises(ConfigError, match=r"21000\.25 and 21000\.50 are next to it") as caught:
        check_tick(structs.replace(GOOD, limit_price=Decimal("21000.30")), Decimal("0.25"))
    assert caught.value.key == "limit_price"


@pytest.mark.parametrize("tick", [None, Decimal(0), Decimal("0.25"), Decimal("0.01")])
def test_a_price_on_the_tick_or_an_unknown_tick_is_fine(tick: Decimal | None) -> None:
    check_tick(GOOD, tick)
