"""Events of ProjectX's streams: both shapes of user events, arrays, numbers nobody knew, and what cannot be read."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.projectx import stream_messages as events
from keepline.brokers.projectx.messages import AccountInfo, OrderInfo, PositionInfo, TradeInfo
from keepline.brokers.projectx.stream_messages import (
    MARKET_EVENTS,
    USER_EVENTS,
    DepthPayload,
    DepthType,
    QuotePayload,
    TradeLogType,
    TradePayload,
    Unreadable,
    UserEvent,
    each,
    moment_of,
    user_events,
)
from keepline.brokers.projectx.words import fill_of, market_trade_of, order_of, position_of
from keepline.model import OrderStatus, Side

AT = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
CONTRACT = "CON.F.US.MNQ.U26"

ACCOUNT = {"id": 7, "name": "50K", "balance": 50123.45, "canTrade": True, "simulated": True}
ORDER = {
    "id": 11,
    "accountId": 7,
    "contractId": CONTRACT,
    "symbolId": "F.US.MNQ",
    "creationTimestamp": "2026-01-05T14:30:00+00:00",
    "updateTimestamp": None,
    "status": 1,
    "type": 1,
    "side": 1,
    "size": 3,
    "limitPrice": 21500.25,
    "fillVolume": 1,
    "filledPrice": 21500.5,
    "customTag": "entry-1",
}
POSITION = {
    "id": 3,
    "accountId": 7,
    "contractId": CONTRACT,
    "type": 2,
    "size": 2,
    "averagePrice": 1.5,
}
TRADE = {
    "id": 101,
    "accountId": 7,
    "contractId": CONTRACT,
    "creationTimestamp": "2026-01-05T14:30:01Z",
    "price": 21500.5,
    "profitAndLoss": None,
    "fees": 0.37,
    "side": 0,
    "size": 1,
    "voided": False,
    "orderId": 11,
}
ALL = [
    (events.ACCOUNT, ACCOUNT, AccountInfo),
    (events.ORDER, ORDER, OrderInfo),
    (events.POSITION, POSITION, PositionInfo),
    (events.TRADE, TRADE, TradeInfo),
]


@pytest.mark.parametrize(("channel", "payload", "kind"), ALL)
def test_a_user_event_is_read_flat_and_wrapped_alike(
    channel: str, payload: Any, kind: type
) -> None:
    (flat,) = user_events(channel, payload)
    (wrapped,) = user_events(channel, {"action": 1, "data": payload})
    assert isinstance(flat, UserEvent)
    assert isinstance(wrapped, UserEvent)
    assert isinstance(flat.info, kind)
    assert flat.info == wrapped.info
    assert (flat.action, wrapped.action) == (None, 1)


def test_events_come_in_lists_too_within_and_around_the_wrapping() -> None:
    second = {**TRADE, "id": 102}
    for payload in (
        [TRADE, second],
        {"action": 1, "data": [TRADE, second]},
        [{"action": 1, "data": TRADE}, {"action": 1, "data": second}],
    ):
        found = user_events(events.TRADE, payload)
        assert [event.info.id for event in found if isinstance(event, UserEvent)] == [101, 102]


def test_amounts_are_exact_and_moments_aware() -> None:
    (event,) = user_events(events.TRADE, {**TRADE, "creationTimestamp": "2026-01-05T14:30:01"})
    assert isinstance(event, UserEvent)
    fill = fill_of(event.info)
    assert (fill.price, fill.fees, fill.at.tzinfo) == (Decimal("21500.5"), Decimal("0.37"), UTC)
    assert (fill.id, fill.order_id, fill.side) == ("101", "11", Side.BUY)


def test_a_number_that_nobody_knew_is_kept() -> None:
    (event,) = user_events(events.ORDER, {**ORDER, "status": 42, "type": 43, "newField": {"a": 1}})
    assert isinstance(event, UserEvent)
    assert (event.info.status.value, event.info.status.is_known) == (42, False)
    order = order_of(event.info)
    assert (order.status, order.raw_status, order.type) == (OrderStatus.UNKNOWN, "UNKNOWN_42", None)


def test_a_position_that_was_closed_has_the_size_nothing() -> None:
    (event,) = user_events(events.POSITION, {**POSITION, "type": 0, "size": 0})
    assert isinstance(event, UserEvent)
    assert position_of(event.info).quantity == 0


@pytest.mark.parametrize(
    "payload",
    [
        None,
        5,
        "text",
        {},
        {"action": 1, "data": None},
        {"action": 1, "data": {"action": 1, "data": ORDER}},
        {**ORDER, "size": "many"},
        {**ORDER, "size": "NaN"},
        {**ORDER, "creationTimestamp": "yesterday"},
        {**ORDER, "id": None},
    ],
)
def test_what_cannot_be_read_is_told_and_does_not_raise(payload: Any) -> None:
    (found,) = user_events(events.ORDER, payload)
    assert isinstance(found, Unreadable)
    assert (found.channel, found.reason != "") == (events.ORDER, True)


def test_whose_the_unreadable_event_was_is_said_where_it_can_be() -> None:
    (found,) = user_events(events.ORDER, {"accountId": 7, "status": "?"})
    assert isinstance(found, Unreadable)
    assert found.account == "7"
    (found,) = user_events(events.ORDER, {"accountId": True})
    assert isinstance(found, Unreadable)
    assert found.account is None


def test_one_bad_event_of_a_list_does_not_hide_the_others() -> None:
    bad, good = user_events(events.TRADE, [{**TRADE, "price": None}, TRADE])
    assert isinstance(bad, Unreadable)
    assert isinstance(good, UserEvent)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "accountId", "data", "action", "size"]), inner)
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(USER_EVENTS)), plain)
def test_any_payload_is_read_or_told(channel: str, payload: Any) -> None:
    assert all(
        isinstance(found, (UserEvent, Unreadable)) for found in user_events(channel, payload)
    )


# -------------------------------------------------------------------------------------------------------------- market


def decoded(channel: str, text: str, encoding: str) -> list[Any]:
    """The arguments of an event as a typed decoder gives them."""
    kind = tuple[MARKET_EVENTS[channel]]  # type: ignore[misc]
    if encoding == "json":
        return list(msgspec.json.decode(text, type=kind))
    return list(
        msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.json.decode(text)), type=kind)
    )


@pytest.mark.parametrize("encoding", ["json", "messagepack"])
def test_market_events_decode_into_types(encoding: str) -> None:
    when = '"timestamp":"2026-01-05T14:30:00+00:00"'
    if encoding == "messagepack":
        when = '"timestamp":"2026-01-05T14:30:00Z"'
    contract, quote = decoded(
        events.QUOTE, f'["{CONTRACT}",{{"bestBid":1.5,{when},"new":1}}]', encoding
    )
    assert (contract, quote) == (CONTRACT, QuotePayload(best_bid=1.5, timestamp=AT))
    _, trades = decoded(
        events.MARKET_TRADE, f'["{CONTRACT}",[{{"price":2,"volume":3,"type":1,{when}}}]]', encoding
    )
    assert trades == [TradePayload(price=2, volume=3, type=TradeLogType.SELL, timestamp=AT)]
    _, depth = decoded(
        events.DEPTH, f'["{CONTRACT}",[{{"type":6}},{{"type":99,"price":1,"volume":2}}]]', encoding
    )
    assert [entry.type.value for entry in depth] == [6, 99]
    assert not depth[1].type.is_known


def test_a_trade_or_an_entry_of_depth_may_come_alone() -> None:
    _, trade = decoded(events.MARKET_TRADE, f'["{CONTRACT}",{{"price":2,"volume":3}}]', "json")
    assert each(trade) == [TradePayload(price=2, volume=3)]
    _, entry = decoded(events.DEPTH, f'["{CONTRACT}",{{"type":1,"price":2,"volume":3}}]', "json")
    assert each(entry) == [DepthPayload(type=DepthType.ASK, price=2, volume=3)]


def test_a_market_trade_says_who_took_the_price_and_when() -> None:
    sold = market_trade_of(CONTRACT, TradePayload(price=2, volume=3, type=TradeLogType.SELL), AT)
    assert (sold.instrument, sold.side, sold.at, sold.price, sold.size) == (
        CONTRACT,
        Side.SELL,
        AT,
        2,
        3,
    )
    unknown = market_trade_of(CONTRACT, TradePayload(price=2, volume=3, type=TradeLogType(9)), AT)
    assert unknown.side is None
    assert market_trade_of(CONTRACT, TradePayload(price=2, volume=3), AT).side is None


def test_a_moment_is_one_in_utc_or_none() -> None:
    assert moment_of(AT.replace(year=1), None, AT.replace(tzinfo=None)) == AT
    assert moment_of(None) is None
