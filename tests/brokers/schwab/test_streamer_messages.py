"""Claims about what Schwab's streamer sends, and what can be asked of it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.schwab.streamer_fields import FIELDS, all_fields, field_name
from keepline.brokers.schwab.streamer_messages import (
    AccountActivity,
    Book,
    BookLevel,
    BookShare,
    Candlestick,
    LevelOne,
    Screener,
    Unreadable,
    moment_of,
    read_activity,
    read_content,
)
from keepline.brokers.schwab.streamer_topics import (
    activity_topic,
    service_of_book,
    service_of_chart,
    service_of_quote,
    topic_of,
    unasked_topic,
)
from keepline.errors import ConfigError
from keepline.model import Bar
from keepline.stream.calendar import CME_FUTURES, US_EQUITIES

AT = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
MILLISECONDS = 1_767_623_400_000


def test_every_service_names_its_fields_once_and_begins_with_the_symbol() -> None:
    for service, names in FIELDS.items():
        assert len(set(names)) == len(names), service
        assert names[0] == ("subscription" if service == "ACCT_ACTIVITY" else "symbol")


@pytest.mark.parametrize(
    ("service", "number", "name"),
    [
        ("LEVELONE_EQUITIES", "8", "total_volume"),
        ("LEVELONE_EQUITIES", "35", "trade_time"),
        ("LEVELONE_EQUITIES", "51", "post_market_percent_change"),
        ("LEVELONE_OPTIONS", "28", "delta"),
        ("LEVELONE_OPTIONS", "55", "exercise_type"),
        ("LEVELONE_FUTURES", "10", "quote_time"),
        ("LEVELONE_FUTURES", "40", "settlement_date"),
        ("LEVELONE_FUTURES_OPTIONS", "25", "strike_price"),
        ("LEVELONE_FOREX", "29", "mark"),
        ("CHART_EQUITY", "1", "sequence"),
        ("CHART_EQUITY", "7", "chart_time"),
        ("CHART_FUTURES", "1", "chart_time"),
        ("LEVELONE_EQUITIES", "52", "field_52"),
        ("LEVELONE_EQUITIES", "٣", "field_٣"),
        ("NOVELTY", "1", "field_1"),
    ],
)
def test_a_number_has_a_name(service: str, number: str, name: str) -> None:
    assert field_name(service, number) == name


def test_all_fields_are_asked_for_by_number() -> None:
    assert all_fields("ACCT_ACTIVITY") == "0,1,2,3"
    assert all_fields("LEVELONE_EQUITIES").endswith(",50,51")


# --- quotes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"quote_time": MILLISECONDS, "trade_time": MILLISECONDS - 5000}, AT),
        ({"trade_time": MILLISECONDS}, AT),
        ({"quote_time": "soon"}, datetime(2026, 1, 1, tzinfo=UTC)),
        ({}, datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_quote_is_as_old_as_its_newest_price(values: dict[str, Any], expected: datetime) -> None:
    quote = LevelOne("S", "AAPL", datetime(2026, 1, 1, tzinfo=UTC), values)
    assert quote.quote(AT).at == expected


def test_without_any_time_a_quote_is_of_now() -> None:
    assert LevelOne("S", "AAPL", None, {}).quote(AT).at == AT


@pytest.mark.parametrize("value", ["NaN", "x", None, True, [], float("nan"), float("inf"), 10**400])
def test_what_is_no_number_is_no_price(value: object) -> None:
    assert LevelOne("S", "AAPL", None, {"bid_price": value}).quote(AT).bid is None


def test_numbers_in_text_are_numbers() -> None:
    assert LevelOne("S", "AAPL", None, {"bid_price": "1.5"}).quote(AT).bid == 1.5


@pytest.mark.parametrize("told", [-1, 0, 10**18, "x", None, True])
def test_what_is_no_time_is_none(told: object) -> None:
    assert moment_of(told) is None


# --- books, candles, lists -------------------------------------------------------------------------------------------


def test_a_book_has_prices_with_who_stands_for_them() -> None:
    level = {
        "0": 10.5,
        "1": 300,
        "2": 2,
        "3": [{"0": "NSDQ", "1": 200, "2": 5}, {"0": "ARCX", "1": 100}],
    }
    found = read_content(
        "NASDAQ_BOOK", "AAPL", {"key": "AAPL", "1": MILLISECONDS, "2": [level]}, None
    )
    makers = (BookShare("NSDQ", 200.0, 5), BookShare("ARCX", 100.0))
    assert found == Book("NASDAQ_BOOK", "AAPL", AT, (BookLevel(10.5, 300.0, makers),), ())


def test_a_candle_of_a_share_and_of_a_future() -> None:
    share = {
        "key": "MSFT",
        "1": 779,
        "2": 421.65,
        "3": 421.79,
        "4": 421.5,
        "5": 421.7,
        "6": 26.0,
        "7": MILLISECONDS,
    }
    bar = Bar(at=AT, open=421.65, high=421.79, low=421.5, close=421.7, volume=26.0)
    assert read_content("CHART_EQUITY", "MSFT", share, None) == Candlestick(
        "CHART_EQUITY", "MSFT", bar, 779
    )
    future = {"1": MILLISECONDS, "2": 421.65, "3": 421.79, "4": 421.5, "5": 421.7, "6": 26.0}
    assert read_content("CHART_FUTURES", "/ESZ26", future, None) == Candlestick(
        "CHART_FUTURES", "/ESZ26", bar
    )


def test_a_list_is_whole() -> None:
    item = {"symbol": "F", "lastPrice": 11.0, "marketShare": 2.5, "trades": 7, "novelty": 1}
    content = {"1": MILLISECONDS, "2": "VOLUME", "3": "5", "4": [item]}
    found = read_content("SCREENER_EQUITY", "NYSE_VOLUME_5", content, None)
    assert isinstance(found, Screener)
    assert (found.key, found.at, found.sort_field, found.frequency) == (
        "NYSE_VOLUME_5",
        AT,
        "VOLUME",
        5,
    )
    assert (found.items[0].symbol, found.items[0].market_share) == ("F", 2.5)


@pytest.mark.parametrize(
    ("service", "content"),
    [
        ("NASDAQ_BOOK", {"2": 7}),
        ("NASDAQ_BOOK", {"2": [7]}),
        ("NASDAQ_BOOK", {"2": [{"0": 1.0}]}),
        ("NASDAQ_BOOK", {"2": [{"0": 1.0, "1": "x"}]}),
        ("NASDAQ_BOOK", {"2": [{"0": 1.0, "1": 1, "3": [{}]}]}),
        ("CHART_EQUITY", {}),
        ("CHART_EQUITY", {"7": 0, "2": 1, "3": 1, "4": 1, "5": 1, "6": 1}),
        ("CHART_FUTURES", {"1": MILLISECONDS, "2": 1, "3": 1, "4": 1, "5": None, "6": 1}),
        ("SCREENER_OPTION", {"4": [{"lastPrice": 1}]}),
        ("SCREENER_OPTION", {"4": 7}),
        ("LEVELONE_EQUITIES", {}),
        ("NOVELTY", {}),
    ],
)
def test_a_line_of_another_shape_is_unreadable(service: str, content: dict[str, Any]) -> None:
    assert isinstance(read_content(service, "AAPL", content, AT), Unreadable)


# --- account activity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "order"),
    [
        ('{"SchwabOrderID": "1004", "AccountNumber": "1", "BaseEvent": {}}', "1004"),
        ('{"SchwabOrderID": 1004}', "1004"),
        ({"SchwabOrderID": "1004"}, "1004"),
        ("", ""),
        (None, ""),
        ("<OrderFillMessage/>", ""),
        ('{"SchwabOrderID": "../1"}', ""),
        ('{"SchwabOrderID": []}', ""),
        ("[" * 5000, ""),
        ("\ud800", ""),
    ],
)
def test_an_activity_names_its_order_when_its_data_does(data: object, order: str) -> None:
    told = read_activity({"seq": 3, "key": "k", "1": "10000001", "2": "OrderCreated", "3": data})
    assert (told.sequence, told.account, told.kind, told.order_id) == (
        3,
        "10000001",
        "OrderCreated",
        order,
    )


def test_an_activity_without_anything_is_one() -> None:
    assert read_activity({}) == AccountActivity(None, "", "unknown")
    assert read_activity({"seq": "3", "1": 10_000_001, "2": None}).account == "10000001"


def test_an_activity_shows_neither_account_nor_data() -> None:
    told = read_activity(
        {"1": "10000001", "2": "OrderCreated", "3": json.dumps({"SchwabOrderID": 5, "x": "mine"})}
    )
    assert repr(told) == "<AccountActivity OrderCreated 5>"


@given(st.dictionaries(st.sampled_from(["seq", "1", "2", "3", "key"]),
                       st.none() | st.text() | st.integers() | st.lists(st.integers()) | st.booleans()))  # fmt: skip
def test_no_activity_raises(content: dict[str, Any]) -> None:
    assert isinstance(read_activity(content), AccountActivity)


# --- topics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symbol", "service"),
    [
        ("AAPL", "LEVELONE_EQUITIES"),
        ("$SPX", "LEVELONE_EQUITIES"),
        ("AAPL  251219C00200000", "LEVELONE_OPTIONS"),
        ("/ESZ26", "LEVELONE_FUTURES"),
        ("./OZCZ26C565", "LEVELONE_FUTURES_OPTIONS"),
        ("EUR/USD", "LEVELONE_FOREX"),
    ],
)
def test_a_symbol_tells_its_service(symbol: str, service: str) -> None:
    assert service_of_quote(symbol) == service


def test_charts_and_books_have_their_services() -> None:
    assert service_of_chart("/ESZ26") == "CHART_FUTURES"
    assert service_of_chart("AAPL") == "CHART_EQUITY"
    assert service_of_book("nasdaq") == "NASDAQ_BOOK"
    with pytest.raises(ConfigError, match="nasdaq, nyse or options"):
        service_of_book("moon")


def test_quotes_may_be_conflated_and_candles_may_not() -> None:
    quote, candle = topic_of("LEVELONE_EQUITIES", "AAPL"), topic_of("CHART_FUTURES", "/ESZ26")
    assert (quote.policy, quote.session, quote.cadence) == ("conflate", US_EQUITIES, 120.0)
    assert (candle.policy, candle.session, candle.cadence) == ("never", CME_FUTURES, 180.0)
    assert topic_of("LEVELONE_FOREX", "EUR/USD").session is None
    assert topic_of("LEVELONE_EQUITIES", "AAPL", cadence=5.0).cadence == 5.0
    assert topic_of("LEVELONE_EQUITIES", "AAPL", fields="0,1").subscribe == ("SUBS", "AAPL", "0,1")


def test_account_activity_may_be_silent_for_days() -> None:
    topic = activity_topic()
    assert (topic.policy, topic.cadence, topic.session) == ("never", None, None)


@pytest.mark.parametrize("key", ["", "A,B", " A", 7, None])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(ConfigError):
        topic_of("LEVELONE_EQUITIES", key)


def test_unknown_services_and_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="LEVELONE_EQUITIES"):
        topic_of("QUOTE", "AAPL")
    with pytest.raises(ConfigError, match="NOTICE"):
        unasked_topic("NEWS")
    assert unasked_topic("NOTICE").subscribe == ()
