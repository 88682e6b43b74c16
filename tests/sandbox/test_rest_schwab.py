"""Claims about Schwab's face of the market: requests in, answers out."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.sandbox.book import Terms
from keepline.sandbox.market import Market
from keepline.sandbox.rest_schwab import ADDRESSES, SchwabRequest, SchwabRest
from keepline.sandbox.venue import Reply

NOW = datetime(2026, 1, 5, 14, 30, 0, 700_000, tzinfo=UTC).timestamp()
HASH = "5A4E0B0C7D"
BASE = "https://api.example"
ORDERS = "/trader/v1/accounts/{account}/orders"
ONE = f"{ORDERS}/{{order}}"
WINDOW = {
    "fromEnteredTime": "2026-01-05T00:00:00.000Z",
    "toEnteredTime": "2026-01-06T00:00:00.000Z",
}


def order(**changes: Any) -> dict[str, Any]:
    leg = {
        "instruction": changes.pop("instruction", "BUY"),
        "quantity": changes.pop("quantity", 10),
        "instrument": {"symbol": changes.pop("symbol", "AAPL"), "assetType": "EQUITY"},
    }
    made = {
        "orderType": "MARKET",
        "session": "NORMAL",
        "duration": "DAY",
        "orderStrategyType": "SINGLE",
        "orderLegCollection": [leg],
    }
    return made | changes


LIMIT = order(orderType="LIMIT", price="150.00")


class Desk:
    """The face with a clock of its own."""

    def __init__(self) -> None:
        self.market, self.now = Market(), NOW
        self.market.pin("AAPL", Decimal(200), now=NOW)
        self.face = SchwabRest(self.market)

    def raw(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        query: Mapping[str, str] | None = None,
        terms: Terms | None = None,
        **parts: object,
    ) -> Reply:
        asked = SchwabRequest(
            path={"account": HASH, **{name: str(part) for name, part in parts.items()}},
            query=query or {},
            body=body,
            base=BASE,
            now=self.now,
            terms=terms or Terms(),
        )
        return self.face.answer(ADDRESSES[method, path], asked)

    def get(self, path: str, query: Mapping[str, str] | None = None, **parts: object) -> Any:
        reply = self.raw("GET", path, query=query, **parts)
        assert reply.status == 200, reply.body
        return reply.body

    def place(self, asked: Mapping[str, object], terms: Terms | None = None) -> int:
        reply = self.raw("POST", ORDERS, json.dumps(asked).encode(), terms=terms)
        assert (reply.status, reply.body) == (201, ""), reply.body
        return int(reply.headers["Location"].rpartition("/")[2])

    def order(self, number: int) -> Any:
        return self.get(ONE, order=number)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def words(reply: Reply) -> str:
    assert isinstance(reply.body, dict)
    if "message" in reply.body:
        assert reply.body["errors"] == [reply.body["message"]]
        return str(reply.body["message"])
    (problem,) = reply.body["errors"]
    assert problem["status"] == str(reply.status)
    return str(problem["detail"])


def test_numbers_have_hashes(desk: Desk) -> None:
    told = desk.get("/trader/v1/accounts/accountNumbers")
    assert told == [{"accountNumber": "10000001", "hashValue": HASH}]


def test_a_new_order_is_named_by_its_location_alone(desk: Desk) -> None:
    reply = desk.raw("POST", ORDERS, json.dumps(LIMIT).encode())
    assert (reply.status, reply.body) == (201, "")
    number = desk.market.orders[0].id
    assert reply.headers["Location"] == f"{BASE}/trader/v1/accounts/{HASH}/orders/{number}"
    assert reply.headers["Schwab-Client-CorrelId"]
    silent = desk.raw("POST", ORDERS, json.dumps(LIMIT).encode(), terms=Terms(location=False))
    assert "Location" not in silent.headers


def test_a_working_order(desk: Desk) -> None:
    told = desk.order(desk.place(LIMIT))
    assert told == {
        "session": "NORMAL",
        "duration": "DAY",
        "orderType": "LIMIT",
        "complexOrderStrategyType": "NONE",
        "quantity": 10.0,
        "filledQuantity": 0.0,
        "remainingQuantity": 10.0,
        "requestedDestination": "AUTO",
        "destinationLinkName": "AutoRoute",
        "price": 150.0,
        "orderLegCollection": [
            {
                "orderLegType": "EQUITY",
                "legId": 1,
                "instrument": {
                    "assetType": "EQUITY",
                    "cusip": "037833100",
                    "symbol": "AAPL",
                    "description": "Apple Inc",
                },
                "instruction": "BUY",
                "positionEffect": "OPENING",
                "quantity": 10.0,
            }
        ],
        "orderStrategyType": "SINGLE",
        "orderId": told["orderId"],
        "cancelable": True,
        "editable": True,
        "status": "WORKING",
        "enteredTime": "2026-01-05T14:30:00+0000",
        "tag": "TA_sandbox",
        "accountNumber": 10000001,
    }


def test_a_filled_order_tells_its_executions(desk: Desk) -> None:
    told = desk.order(desk.place(order(quantity=700)))
    assert (told["status"], told["filledQuantity"], told["remainingQuantity"]) == (
        "WORKING",
        500.0,
        200.0,
    )
    desk.now += 1
    told = desk.order(told["orderId"])
    assert (told["status"], told["cancelable"]) == ("FILLED", False)
    assert told["closeTime"] == "2026-01-05T14:30:01+0000"
    first, second = told["orderActivityCollection"]
    assert (first["quantity"], second["quantity"]) == (500.0, 200.0)
    assert first["executionLegs"][0]["price"] == 200.01
    assert "price" not in told


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (order(orderType="STOP", stopPrice="250"), "AWAITING_STOP_CONDITION"),
        (order(orderType="STOP_LIMIT", stopPrice=250, price=251), "AWAITING_STOP_CONDITION"),
        (order(orderType="TRAILING_STOP", stopPriceOffset=5), "AWAITING_STOP_CONDITION"),
        (order(duration="GOOD_TILL_CANCEL", orderType="LIMIT", price=1), "WORKING"),
        (order(instruction="SELL_SHORT"), "FILLED"),
        (order(quantity=1_000_000), "REJECTED"),
        (order(instruction="SELL"), "REJECTED"),
        (order(instruction="BUY_TO_COVER"), "REJECTED"),
    ],
)
def test_what_becomes_of_an_order(desk: Desk, asked: dict[str, Any], status: str) -> None:
    told = desk.order(desk.place(asked))
    assert told["status"] == status
    assert ("statusDescription" in told) == (status == "REJECTED")


def test_what_is_held_can_be_sold_and_what_is_short_covered(desk: Desk) -> None:
    desk.place(order())
    assert desk.order(desk.place(order(instruction="SELL")))["status"] == "FILLED"
    desk.place(order(instruction="SELL_SHORT"))
    told = desk.order(desk.place(order(instruction="BUY_TO_COVER")))
    assert told["status"] == "FILLED"
    assert told["orderLegCollection"][0]["positionEffect"] == "CLOSING"
    assert desk.market.positions == []


def test_an_order_of_the_day_expires(desk: Desk) -> None:
    number = desk.place(LIMIT)
    desk.now = datetime(2026, 1, 6, 0, 59, tzinfo=UTC).timestamp()
    assert desk.order(number)["status"] == "WORKING"
    desk.now = datetime(2026, 1, 6, 1, 1, tzinfo=UTC).timestamp()
    assert desk.order(number)["status"] == "EXPIRED"


def test_a_replaced_order_has_another_number(desk: Desk) -> None:
    old = desk.place(LIMIT)
    body = json.dumps(LIMIT | {"price": 151}).encode()
    reply = desk.raw("PUT", ONE, body, order=old)
    assert reply.status == 201
    new = int(reply.headers["Location"].rpartition("/")[2])
    assert (desk.order(old)["status"], desk.order(new)["price"]) == ("REPLACED", 151.0)
    assert desk.raw("PUT", ONE, body, order=old).status == 400
    assert desk.raw("PUT", ONE, body, order=1).status == 404
    sale = json.dumps(order(instruction="SELL")).encode()
    assert "oversold" in words(desk.raw("PUT", ONE, sale, order=new))
    assert desk.order(new)["status"] == "WORKING"


def test_cancelling(desk: Desk) -> None:
    number = desk.place(LIMIT)
    reply = desk.raw("DELETE", ONE, order=number)
    assert (reply.status, reply.body) == (200, "")
    assert desk.order(number)["status"] == "CANCELED"
    again = desk.raw("DELETE", ONE, order=number)
    assert (again.status, words(again)) == (400, "the order is cancelled")
    assert desk.raw("DELETE", ONE, order=5).status == 404
    assert desk.raw("DELETE", ONE, order="x").status == 400
    assert desk.raw("GET", ONE, order="9" * 30).status == 400


@pytest.mark.parametrize(
    ("asked", "about"),
    [
        (b"", "cannot be read"),
        (b"[" * 60_000, "cannot be read"),
        (b"\xff", "cannot be read"),
        (order(quantity="10"), "quantity"),
        (order(orderLegCollection=[]), "one leg"),
        (order(orderStrategyType="TRIGGER"), "SINGLE"),
        (order(orderType="NET_DEBIT"), "orderType is one of MARKET"),
        (order(session="X"), "session is one of"),
        (order(duration="FILL_OR_KILL"), "duration is one of"),
        (order(instruction="HOLD"), "instruction is one of"),
        (order(stopPriceLinkType="PERCENT"), "stopPriceLinkType"),
        (order(symbol="NOPE"), "symbol 'NOPE' is unknown"),
        (order(symbol="CON.F.US.MES.Z26"), "is unknown"),
        (order(quantity=0), "whole number from 1"),
        (order(quantity=1.5), "whole number from 1"),
        (order(quantity=1e300), "whole number from 1"),
        (order(orderType="LIMIT"), "a price is missing"),
        (order(orderType="LIMIT", price="NaN"), "price must be a number"),
        (order(orderType="LIMIT", price="ten"), "price must be a number"),
        (order(orderType="LIMIT", price=-1), "not positive"),
        (order(orderType="LIMIT", price="10.001"), "not a multiple of 0.01"),
        (order(orderType="LIMIT", price="1e300"), "not a multiple of 0.01"),
    ],
)
def test_an_order_that_makes_no_sense_is_a_bad_request(
    desk: Desk, asked: bytes | dict[str, Any], about: str
) -> None:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    reply = desk.raw("POST", ORDERS, body)
    assert reply.status == 400
    assert about in words(reply)
    assert desk.market.orders == []


@pytest.mark.parametrize("path", [ORDERS, "/trader/v1/accounts/{account}"])
def test_an_account_that_is_not_ours(desk: Desk, path: str) -> None:
    reply = desk.raw("GET", path, query=WINDOW, account="10000001")  # the number is not the hash
    assert (reply.status, words(reply)) == (400, "Invalid account number")


def test_a_list_is_newest_first_and_may_be_filtered(desk: Desk) -> None:
    first = desk.place(LIMIT)
    desk.now += 1
    second = desk.place(order())
    assert [row["orderId"] for row in desk.get(ORDERS, WINDOW)] == [second, first]
    assert [row["orderId"] for row in desk.get("/trader/v1/orders", WINDOW)] == [second, first]
    filtered = desk.get(ORDERS, {**WINDOW, "status": "FILLED"})
    assert [row["orderId"] for row in filtered] == [second]
    assert [r["orderId"] for r in desk.get(ORDERS, {**WINDOW, "maxResults": "1"})] == [second]
    late = {**WINDOW, "fromEnteredTime": "2026-01-05T14:30:01Z"}
    assert [row["orderId"] for row in desk.get(ORDERS, late)] == [second]


@pytest.mark.parametrize(
    ("path", "query", "about"),
    [
        (ORDERS, {}, "fromEnteredTime is missing"),
        (ORDERS, {"fromEnteredTime": WINDOW["fromEnteredTime"]}, "toEnteredTime is missing"),
        (ORDERS, {**WINDOW, "fromEnteredTime": "yesterday"}, "in the form"),
        (ORDERS, {**WINDOW, "fromEnteredTime": "2026-01-05T00:00:00"}, "in the form"),
        (ORDERS, {**WINDOW, "toEnteredTime": "2026-01-04T00:00:00Z"}, "later than"),
        (ORDERS, {**WINDOW, "fromEnteredTime": "2024-12-01T00:00:00Z"}, "a year apart"),
        (ORDERS, {**WINDOW, "status": "OPEN"}, "status is one of"),
        (ORDERS, {**WINDOW, "maxResults": "-1"}, "maxResults must be"),
        (ORDERS, {**WINDOW, "maxResults": "x"}, "maxResults must be"),
        ("/trader/v1/orders", {**WINDOW, "fromEnteredTime": "2025-11-01T00:00:00Z"}, "60 days"),
        ("/trader/v1/accounts/{account}/transactions", {}, "startDate is missing"),
        ("/marketdata/v1/quotes", {}, "symbols is missing"),
        ("/marketdata/v1/pricehistory", {"symbol": "AAPL", "frequency": "7"}, "do not fit"),
        ("/marketdata/v1/pricehistory", {"symbol": "AAPL", "periodType": "eon"}, "do not fit"),
        (
            "/marketdata/v1/pricehistory",
            {"symbol": "AAPL", "startDate": "9" * 40},
            "startDate must",
        ),
    ],
)
def test_a_question_that_makes_no_sense_is_a_bad_request(
    desk: Desk, path: str, query: dict[str, str], about: str
) -> None:
    reply = desk.raw("GET", path, query=query)
    assert reply.status == 400
    assert about in words(reply)


def test_balances_and_positions(desk: Desk) -> None:
    desk.place(order())
    account = desk.get("/trader/v1/accounts/{account}")["securitiesAccount"]
    assert account["accountNumber"] == "10000001"
    assert account["currentBalances"]["cashBalance"] == 1_000_000 - 2000.1
    assert account["currentBalances"]["liquidationValue"] == pytest.approx(999_999.9)
    assert "positions" not in account
    (told,) = desk.get("/trader/v1/accounts", {"fields": "positions"})
    (position,) = told["securitiesAccount"]["positions"]
    assert (position["longQuantity"], position["shortQuantity"]) == (10.0, 0.0)
    assert (position["averagePrice"], position["marketValue"]) == (200.01, 2000.0)
    assert position["instrument"]["symbol"] == "AAPL"
    desk.place(order(instruction="SELL_SHORT", quantity=30))
    (told,) = desk.get("/trader/v1/accounts", {"fields": "positions"})
    assert told["securitiesAccount"]["positions"][0]["shortQuantity"] == 20.0


def test_transactions(desk: Desk) -> None:
    number = desk.place(order())
    window = {"startDate": WINDOW["fromEnteredTime"], "endDate": WINDOW["toEnteredTime"]}
    path = "/trader/v1/accounts/{account}/transactions"
    (told,) = desk.get(path, {**window, "types": "TRADE"})
    assert (told["orderId"], told["netAmount"], told["time"]) == (
        number,
        -2000.1,
        "2026-01-05T14:30:00+0000",
    )
    assert told["transferItems"][0]["amount"] == 10.0
    assert desk.get(path, {**window, "types": "DIVIDEND"}) == []


def test_a_preview_places_nothing(desk: Desk) -> None:
    path = "/trader/v1/accounts/{account}/previewOrder"

    def preview(asked: Mapping[str, object]) -> Any:
        return desk.raw("POST", path, json.dumps(asked).encode()).body

    good = preview(LIMIT)
    assert (good["orderId"], good["orderStrategy"]["status"]) == (0, "ACCEPTED")
    assert good["orderStrategy"]["orderBalance"]["orderValue"] == 1500.0
    assert good["orderValidationResult"]["rejects"] == []
    for asked, about in ((order(instruction="SELL"), "oversold"), (order(quantity=10**6), "funds")):
        bad = preview(asked)
        assert bad["orderStrategy"]["status"] == "REJECTED"
        assert about in bad["orderValidationResult"]["rejects"][0]["message"]
    assert desk.market.orders == []


def test_quotes(desk: Desk) -> None:
    told = desk.get("/marketdata/v1/quotes", {"symbols": "AAPL,NOPE,F"})
    assert set(told) == {"AAPL", "F", "errors"}
    assert told["errors"] == {"invalidSymbols": ["NOPE"]}
    quote = told["AAPL"]["quote"]
    assert (quote["bidPrice"], quote["askPrice"], quote["lastPrice"]) == (200.0, 200.01, 200.0)
    assert quote["quoteTime"] == int(NOW * 1000)
    one = desk.get("/marketdata/v1/{symbol}/quotes", symbol="AAPL")
    assert one == {"AAPL": told["AAPL"]}
    missing = desk.raw("GET", "/marketdata/v1/{symbol}/quotes", symbol="NOPE")
    assert (missing.status, "NOPE" in words(missing)) == (404, True)


def test_price_history(desk: Desk) -> None:
    path = "/marketdata/v1/pricehistory"
    start = int((NOW - 3600) * 1000)
    told = desk.get(path, {"symbol": "AAPL", "frequencyType": "minute", "startDate": str(start)})
    candles = told["candles"]
    assert (told["symbol"], told["empty"], len(candles)) == ("AAPL", False, 60)
    assert [c["datetime"] for c in candles] == sorted(c["datetime"] for c in candles)
    assert set(candles[0]) == {"open", "high", "low", "close", "volume", "datetime"}
    days = desk.get(path, {"symbol": "AAPL", "periodType": "month", "period": "2"})["candles"]
    assert 40 <= len(days) <= 46
    five = desk.get(path, {"symbol": "AAPL", "frequency": "5", "period": "1"})["candles"]
    assert five[1]["datetime"] - five[0]["datetime"] == 300_000
    future = {"symbol": "AAPL", "startDate": str(start + 10**8), "endDate": str(start + 2 * 10**8)}
    assert desk.get(path, future) == {"symbol": "AAPL", "empty": True, "candles": []}
    assert desk.raw("GET", path, query={"symbol": "X"}).status == 404
    assert desk.raw("GET", path).status == 404


def test_a_clock_that_is_ahead_shows_in_every_moment(desk: Desk) -> None:
    ahead = Terms(skew=86_400)
    number = desk.place(order(), ahead)
    reply = desk.raw("GET", ONE, order=number, terms=ahead)
    assert isinstance(reply.body, dict)
    assert reply.body["enteredTime"] == "2026-01-06T14:30:00+0000"
    shifted = {
        "fromEnteredTime": "2026-01-06T14:00:00Z",
        "toEnteredTime": "2026-01-06T15:00:00Z",
    }
    assert desk.get(ORDERS, shifted) == []
    found = desk.raw("GET", ORDERS, query=shifted, terms=ahead).body
    assert isinstance(found, list)
    assert len(found) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    ),
    st.sampled_from([*order(), "price", "stopPrice", "stopPriceOffset"]),
)
def test_any_order_gets_an_answer(value: object, name: str) -> None:
    desk = Desk()
    for body in (value, LIMIT | {name: value}):
        reply = desk.raw("POST", ORDERS, json.dumps(body).encode())
        assert reply.status in (201, 400)


QUESTIONS = ["symbol", "symbols", "frequency", "endDate", "period", "fromEnteredTime", "status"]


@given(
    st.sampled_from([key for key in ADDRESSES if key[0] == "GET"]),
    st.text(max_size=20) | st.integers().map(str),
    st.sampled_from(QUESTIONS),
)
def test_any_question_gets_an_answer(key: tuple[str, str], text: str, name: str) -> None:
    reply = Desk().raw(
        *key, query={"symbol": "AAPL", **WINDOW, name: text}, order=text, symbol=text
    )
    assert reply.status in (200, 400, 404)
