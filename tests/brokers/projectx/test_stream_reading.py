"""Events in, values out: whose they are, what is doubtful, and books and quotes that are kept beneath."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.brokers.projectx.test_stream_messages import (
    ACCOUNT,
    AT,
    CONTRACT,
    ORDER,
    POSITION,
    TRADE,
    plain,
)

from keepline.brokers.projectx import stream_messages as events
from keepline.brokers.projectx.quotes import QuoteMerger
from keepline.brokers.projectx.stream_messages import (
    DepthPayload,
    DepthType,
    QuotePayload,
    TradeLogType,
    TradePayload,
)
from keepline.brokers.projectx.stream_reading import Doubt, Heard, MarketReader, UserReader
from keepline.model import (
    Account,
    DepthLevel,
    DepthUpdate,
    Fill,
    MarketTrade,
    Order,
    Position,
    Quote,
    Side,
)

LATER = datetime(2026, 1, 5, 15, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("channel", "payload", "kind"),
    [
        (events.ACCOUNT, ACCOUNT, Account),
        (events.ORDER, ORDER, Order),
        (events.POSITION, POSITION, Position),
        (events.TRADE, TRADE, Fill),
    ],
)
def test_a_user_event_is_a_value_of_an_account(channel: str, payload: Any, kind: type) -> None:
    (heard,) = UserReader().read(channel, (payload,))
    assert isinstance(heard, Heard)
    assert (heard.key, type(heard.value)) == ("7", kind)


def test_a_short_position_is_negative() -> None:
    (heard,) = UserReader().read(events.POSITION, ({"action": 2, "data": POSITION},))
    assert isinstance(heard, Heard)
    assert isinstance(heard.value, Position)
    assert heard.value.quantity == Decimal(-2)


def test_a_trade_that_was_taken_back_is_no_fill_but_a_doubt() -> None:
    (doubt,) = UserReader().read(events.TRADE, ({**TRADE, "voided": True},))
    assert doubt == Doubt(events.TRADE, "trade 101 was taken back", "7", AT + timedelta(seconds=1))
    never = {**TRADE, "voided": True, "creationTimestamp": "0001-01-01T00:00:00"}
    (doubt,) = UserReader().read(events.TRADE, (never,))
    assert doubt == Doubt(events.TRADE, "trade 101 was taken back", "7")


def test_what_cannot_be_read_is_a_doubt_about_its_account() -> None:
    (doubt,) = UserReader().read(events.ORDER, ({"accountId": 7},))
    assert isinstance(doubt, Doubt)
    assert doubt.account == "7"
    (doubt,) = UserReader().read(events.ORDER, ())
    assert doubt == Doubt(events.ORDER, "it came without an argument")


def test_events_of_others_are_none_of_ours() -> None:
    assert UserReader().read("SomethingNew", (1,)) == []
    reader = MarketReader(QuoteMerger())
    assert list(reader.read("SomethingNew", (CONTRACT, 1), AT)) == []
    assert list(reader.read(events.QUOTE, (CONTRACT,), AT)) == []
    assert list(reader.read(events.QUOTE, (5, {}), AT)) == []


def test_what_cannot_be_read_of_the_market_is_a_doubt_of_nobody_s_account() -> None:
    (doubt,) = MarketReader(QuoteMerger()).read(events.QUOTE, (CONTRACT, None), AT)
    assert isinstance(doubt, Doubt)
    assert (doubt.channel, doubt.account) == (events.QUOTE, None)


def test_a_quote_is_whole_and_its_moment_is_the_broker_s() -> None:
    reader = MarketReader(QuoteMerger())
    reader.read(events.QUOTE, (CONTRACT, QuotePayload(best_bid=1.0, timestamp=AT)), LATER)
    (heard,) = reader.read(
        events.QUOTE, (CONTRACT, QuotePayload(best_ask=2.0, last_updated=AT)), LATER
    )
    assert heard == Heard(CONTRACT, Quote(instrument=CONTRACT, at=AT, bid=1.0, ask=2.0))
    (heard,) = reader.read(events.QUOTE, (CONTRACT, QuotePayload(last_price=1.5)), LATER)
    assert isinstance(heard, Heard)
    assert isinstance(heard.value, Quote)
    assert heard.value.at == LATER


def test_each_trade_of_the_market_is_told() -> None:
    trades = [
        TradePayload(price=1.0, volume=2.0, type=TradeLogType.BUY, timestamp=AT),
        TradePayload(price=1.5, volume=1.0),
    ]
    heard = MarketReader(QuoteMerger()).read(events.MARKET_TRADE, (CONTRACT, trades), LATER)
    assert [h.value for h in heard if isinstance(h, Heard)] == [
        MarketTrade(instrument=CONTRACT, at=AT, price=1.0, size=2.0, side=Side.BUY),
        MarketTrade(instrument=CONTRACT, at=LATER, price=1.5, size=1.0),
    ]


def test_depth_is_told_as_a_whole_book() -> None:
    reader = MarketReader(QuoteMerger(), levels=1)
    bids = [
        DepthPayload(type=DepthType.BID, price=p, volume=1.0, timestamp=AT) for p in (9.0, 10.0)
    ]
    reader.read(events.DEPTH, (CONTRACT, bids), LATER)
    ask = DepthPayload(type=DepthType.ASK, price=11.0, volume=1.0)
    (heard,) = reader.read(events.DEPTH, (CONTRACT, ask), LATER)
    assert isinstance(heard, Heard)
    assert isinstance(heard.value, DepthUpdate)
    assert (heard.value.best_bid, heard.value.best_ask, heard.value.at) == (10.0, 11.0, LATER)
    assert len(heard.value.bids) == 1
    assert len(reader.book(CONTRACT) or ()) == 3


def test_depth_that_says_nothing_about_a_level_is_not_told() -> None:
    reader = MarketReader(QuoteMerger())
    trade = DepthPayload(type=DepthType.TRADE, price=1.0, volume=1.0)
    assert list(reader.read(events.DEPTH, (CONTRACT, [trade]), AT)) == []
    assert list(reader.read(events.DEPTH, (CONTRACT, []), AT)) == []
    assert reader.book("another") is None


@given(
    st.sampled_from([*events.USER_EVENTS, *events.MARKET_EVENTS]),
    st.lists(plain, max_size=3),
)
def test_nothing_that_arrives_raises(channel: str, arguments: list[Any]) -> None:
    UserReader().read(channel, arguments)
    MarketReader(QuoteMerger()).read(channel, arguments, AT)
    MarketReader(QuoteMerger()).read(channel, [CONTRACT, *arguments[:1]], AT)


# --- MessagePack as .NET writes it ---


def dotnet(payload: Any) -> Any:
    """A map in .NET's form: member names as they are in C#, enums as names, decimals as texts."""
    names = {
        "status": {1: "Open", 7: "PendingCancellation"},
        "side": {0: "Bid", 1: "Ask"},
        "type": {1: "Limit", 2: "Short"},
    }
    decimals = {"size", "limitPrice", "averagePrice", "price", "fees", "balance"}
    return {
        key[:1].upper() + key[1:]: names[key][value]
        if key in names
        else str(value)
        if key in decimals and value is not None
        else value
        for key, value in payload.items()
    }


@pytest.mark.parametrize(
    ("channel", "payload"),
    [
        (events.ACCOUNT, ACCOUNT),
        (events.ORDER, ORDER),
        (events.ORDER, {**ORDER, "status": 7}),
        (events.POSITION, {**POSITION, "type": 2}),
        (events.TRADE, TRADE),
    ],
)
def test_a_user_event_says_the_same_in_messagepack(channel: str, payload: dict[str, Any]) -> None:
    expected = UserReader().read(channel, (payload,))
    assert all(isinstance(found, Heard) for found in expected)
    told = dotnet(payload)
    assert UserReader().read(channel, (told,)) == expected
    assert UserReader().read(channel, ({"Action": 1, "Data": told},)) == expected


def test_a_name_that_nobody_knew_is_a_doubt_about_its_account() -> None:
    (doubt,) = UserReader().read(events.ORDER, ({**dotnet(ORDER), "Status": "Thinking"},))
    assert isinstance(doubt, Doubt)
    assert doubt.account == str(ORDER["accountId"])


def test_market_events_say_the_same_in_messagepack() -> None:
    reader = MarketReader(QuoteMerger())
    (quote,) = reader.read(events.QUOTE, (CONTRACT, {"BestBid": "1.5", "Timestamp": AT}), AT)
    assert isinstance(quote, Heard)
    assert quote.value == Quote(instrument=CONTRACT, at=AT, bid=1.5)
    trade = {"Price": 2, "Volume": 3, "Type": "Sell", "Timestamp": AT, "SymbolId": "F.US.MNQ"}
    (told,) = reader.read(events.MARKET_TRADE, (CONTRACT, [trade]), AT)
    assert isinstance(told, Heard)
    assert told.value == MarketTrade(instrument=CONTRACT, at=AT, price=2, size=3, side=Side.SELL)
    entry = {"Type": "NewBestBid", "Price": 2.0, "Volume": 3, "Timestamp": AT}
    (book,) = reader.read(events.DEPTH, (CONTRACT, [entry]), AT)
    assert isinstance(book, Heard)
    assert isinstance(book.value, DepthUpdate)
    assert book.value.bids == (DepthLevel(2.0, 3.0),)
    assert events.market_types("messagepack") == dict.fromkeys(events.MARKET_EVENTS, ())
