"""Trading words: exact, frozen, and with one meaning each."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest

from keepline import model
from keepline.model import Bar, Fill, Order, OrderStatus, OrderType, Position, Quote, Side

AT = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
FILL = Fill(
    id="t1",
    order_id="7",
    account="1",
    instrument="MNQ",
    side=Side.SELL,
    quantity=Decimal("0.10"),
    price=Decimal("21000.25"),
    at=AT,
)
ORDER = Order(
    id="7",
    account="1",
    instrument="MNQ",
    side=Side.BUY,
    type=OrderType.LIMIT,
    status=OrderStatus.OPEN,
    quantity=Decimal(2),
    entered_at=AT,
)
VALUES = [
    FILL,
    ORDER,
    model.Account(id="1"),
    model.Instrument(id="CON.F.US.MNQ.U26", symbol="MNQ"),
    Position(account="1", instrument="MNQ", quantity=Decimal(-2)),
    Bar(at=AT, open=1.0, high=2.0, low=0.5, close=1.5, volume=10.0),
    Quote(instrument="MNQ", at=AT, bid=1.0),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_each_value_is_frozen_and_hashable(value: msgspec.Struct) -> None:
    with pytest.raises(AttributeError):
        setattr(value, value.__struct_fields__[0], "other")
    assert hash(value) == hash(msgspec.structs.replace(value))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_each_value_survives_json_to_the_last_digit(value: msgspec.Struct) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


def test_amounts_keep_their_digits_in_json() -> None:
    assert json.loads(msgspec.json.encode(FILL))["quantity"] == "0.10"


def test_a_side_says_what_it_does_to_a_position_and_what_undoes_it() -> None:
    assert (Side.BUY.sign, Side.SELL.sign) == (1, -1)
    assert (Side.BUY.opposite, Side.SELL.opposite) == (Side.SELL, Side.BUY)


@pytest.mark.parametrize("status", OrderStatus)
def test_only_an_order_that_has_ended_is_final(status: OrderStatus) -> None:
    ended = {"filled", "cancelled", "expired", "rejected"}
    assert status.is_final == (status.value in ended)


def test_a_partial_fill_leaves_the_order_working() -> None:
    assert not OrderStatus.PARTIALLY_FILLED.is_final
