"""Claims about ProjectX's face of the market: bytes in, answers out."""

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
from keepline.sandbox.rest_projectx import ENDPOINTS, ProjectXRest
from keepline.sandbox.venue import Reply

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC).timestamp()
MES = "CON.F.US.MES.Z26"
PLACE = {"accountId": 1001, "contractId": MES, "type": 2, "side": 0, "size": 1}
FAR = {**PLACE, "type": 1, "limitPrice": 5000}


class Desk:
    """The face with a clock of its own."""

    def __init__(self) -> None:
        self.market, self.now = Market(), NOW
        self.market.pin(MES, Decimal(6000), now=NOW)
        self.face = ProjectXRest(self.market)

    def raw(self, path: str, body: bytes, terms: Terms | None = None) -> Reply:
        return self.face.answer(f"/api/{path}", body, now=self.now, terms=terms or Terms())

    def ask(self, path: str, body: Mapping[str, object], terms: Terms | None = None) -> Any:
        reply = self.raw(path, json.dumps(body).encode(), terms)
        assert reply.status == 200
        assert isinstance(reply.body, dict)
        return reply.body

    def code(self, path: str, body: Mapping[str, object]) -> int:
        answer = self.ask(path, body)
        assert answer["success"] is (answer["errorCode"] == 0)
        return int(answer["errorCode"])

    def place(self, **changes: object) -> int:
        answer = self.ask("Order/place", {**PLACE, **changes})
        assert answer["success"], answer
        return int(answer["orderId"])


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_accounts(desk: Desk) -> None:
    (account,) = desk.ask("Account/search", {"onlyActiveAccounts": True})["accounts"]
    assert account == {
        "id": 1001,
        "name": "SANDBOX-150K",
        "balance": 150_000.0,
        "canTrade": True,
        "isVisible": True,
        "simulated": True,
    }
    both = desk.ask("Account/search", {"onlyActiveAccounts": False})["accounts"]
    assert [row["id"] for row in both] == [1001, 1002]


def test_contracts(desk: Desk) -> None:
    (found,) = desk.ask("Contract/search", {"live": False, "searchText": "mesz6"})["contracts"]
    assert found == {
        "id": MES,
        "name": "MESZ6",
        "description": "Micro E-mini S&P 500: December 2026",
        "tickSize": 0.25,
        "tickValue": 1.25,
        "activeContract": True,
        "symbolId": "F.US.MES",
    }
    assert desk.ask("Contract/searchById", {"contractId": MES})["contract"] == found
    everything = desk.ask("Contract/search", {"live": False})["contracts"]
    active = desk.ask("Contract/available", {"live": False})["contracts"]
    assert [row["activeContract"] for row in everything].count(False) == 1
    assert len(active) == len(everything) - 1
    assert desk.code("Contract/searchById", {"contractId": "AAPL"}) == 1


def test_a_search_finds_at_most_twenty(desk: Desk) -> None:
    listing = desk.market.listings[MES]
    desk.market.listings = {str(n): listing for n in range(30)}
    assert len(desk.ask("Contract/search", {"live": False})["contracts"]) == 20


def test_an_order_comes_back_in_searches_with_its_tag(desk: Desk) -> None:
    number = desk.place(type=1, limitPrice=5000.25, customTag="t1", size=3)
    (order,) = desk.ask("Order/searchOpen", {"accountId": 1001})["orders"]
    assert order == {
        "id": number,
        "accountId": 1001,
        "contractId": MES,
        "symbolId": "F.US.MES",
        "creationTimestamp": "2026-01-05T14:30:00+00:00",
        "updateTimestamp": None,
        "status": 1,
        "type": 1,
        "side": 0,
        "size": 3,
        "limitPrice": 5000.25,
        "stopPrice": None,
        "fillVolume": 0,
        "filledPrice": None,
        "customTag": "t1",
    }


def test_a_fill_is_a_trade_and_a_position(desk: Desk) -> None:
    number = desk.place(size=2)
    desk.now += 1
    desk.place(side=1, size=1)
    opened, closed = desk.ask("Trade/search", {"accountId": 1001})["trades"]
    assert opened == {
        "id": opened["id"],
        "accountId": 1001,
        "contractId": MES,
        "creationTimestamp": "2026-01-05T14:30:00+00:00",
        "price": 6000.25,
        "profitAndLoss": None,
        "fees": 0.74,
        "side": 0,
        "size": 2,
        "voided": False,
        "orderId": number,
    }
    assert closed["profitAndLoss"] == -1.25
    (position,) = desk.ask("Position/searchOpen", {"accountId": 1001})["positions"]
    assert (position["type"], position["size"], position["averagePrice"]) == (1, 1, 6000.25)
    desk.place(side=1, size=4)
    (position,) = desk.ask("Position/searchOpen", {"accountId": 1001})["positions"]
    assert (position["type"], position["size"]) == (2, 3)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"accountId": 5}, 1),
        ({"accountId": 10000001}, 1),  # Schwab's
        ({"size": 0}, 2),
        ({"type": 0}, 2),
        ({"type": 9}, 2),
        ({"side": 2}, 2),
        ({"type": 1}, 2),
        ({"type": 4}, 2),
        ({"type": 1, "limitPrice": 6000.1}, 2),
        ({"type": 1, "limitPrice": 1e308}, 2),
        ({"stopLossBracket": {"ticks": 10, "type": 4}}, 2),
        ({"size": 301}, 3),
        ({"contractId": "X"}, 8),
        ({"contractId": "AAPL"}, 8),
        ({"contractId": "CON.F.US.MES.H25"}, 9),
        ({"accountId": 1002}, 10),
    ],
)
def test_each_refusal_of_an_order_has_its_number(
    desk: Desk, changes: dict[str, object], code: int
) -> None:
    answer = desk.ask("Order/place", {**PLACE, **changes})
    assert (answer["errorCode"], answer["success"]) == (code, False)
    assert answer["errorMessage"]
    assert "orderId" not in answer
    assert desk.market.orders == []


def test_a_tag_that_was_used_is_rejected(desk: Desk) -> None:
    number = desk.place(customTag="t1")
    answer = desk.ask("Order/place", {**PLACE, "customTag": "t1"})
    assert (answer["errorCode"], str(number) in answer["errorMessage"]) == (2, True)


def test_cancelling(desk: Desk) -> None:
    number = desk.place(**FAR)
    body = {"accountId": 1001, "orderId": number}
    assert desk.code("Order/cancel", {**body, "accountId": 7}) == 1
    assert desk.code("Order/cancel", {**body, "orderId": 1}) == 2
    assert desk.ask("Order/cancel", body) == {"success": True, "errorCode": 0, "errorMessage": None}
    assert desk.code("Order/cancel", body) == 2


def test_a_filled_order_is_past_cancelling_and_the_answer_says_nothing(desk: Desk) -> None:
    body = {"accountId": 1001, "orderId": desk.place()}
    answer = desk.ask("Order/cancel", body)
    assert (answer["errorCode"], answer["errorMessage"]) == (5, None)


def test_modifying(desk: Desk) -> None:
    body = {"accountId": 1001, "orderId": desk.place(**FAR)}
    assert desk.code("Order/modify", {**body, "limitPrice": 5001}) == 0
    assert desk.code("Order/modify", {**body, "limitPrice": 5001.1}) == 3
    assert desk.code("Order/modify", {**body, "size": 0}) == 3
    assert desk.code("Order/modify", {**body, "limitPrice": 0}) == 3
    assert desk.code("Order/modify", {**body, "orderId": 1}) == 2
    (order,) = desk.ask("Order/searchOpen", {"accountId": 1001})["orders"]
    assert (order["limitPrice"], order["size"]) == (5001.0, 1)
    assert order["updateTimestamp"] is not None


def test_closing(desk: Desk) -> None:
    body = {"accountId": 1001, "contractId": MES}
    assert desk.code("Position/closeContract", body) == 2
    assert desk.code("Position/partialCloseContract", {**body, "size": 1}) == 2
    desk.place(size=5)
    assert desk.code("Position/partialCloseContract", {**body, "size": 0}) == 5
    assert desk.code("Position/partialCloseContract", {**body, "size": 6}) == 5
    assert desk.code("Position/partialCloseContract", {**body, "size": 2}) == 0
    assert desk.market.positions[0].size == 3
    assert set(desk.ask("Position/closeContract", body)) == {"success", "errorCode", "errorMessage"}
    assert desk.market.positions == []
    for contract, close, partial in (("X", 3, 3), ("CON.F.US.MES.H25", 4, 4)):
        wrong = {"accountId": 1001, "contractId": contract, "size": 1}
        assert desk.code("Position/closeContract", wrong) == close
        assert desk.code("Position/partialCloseContract", wrong) == partial
    assert desk.code("Position/closeContract", {**body, "accountId": 1002}) == 8
    assert desk.code("Position/partialCloseContract", {**body, "accountId": 1002, "size": 1}) == 9


def test_searches_take_a_window(desk: Desk) -> None:
    first = desk.place()
    desk.now += 60
    second = desk.place(**FAR)
    window = {"accountId": 1001, "startTimestamp": "2026-01-05T14:30:30Z"}
    assert [o["id"] for o in desk.ask("Order/search", window)["orders"]] == [second]
    early = {"accountId": 1001, "startTimestamp": "2026-01-05T09:30:00-05:00"}
    early["endTimestamp"] = "2026-01-05T14:30:00.000"  # without a zone: UTC
    assert [o["id"] for o in desk.ask("Order/search", early)["orders"]] == [first]
    assert [t["orderId"] for t in desk.ask("Trade/search", early)["trades"]] == [first]
    assert desk.ask("Trade/search", window)["trades"] == []
    for path in ("Order/search", "Order/searchOpen", "Position/searchOpen", "Trade/search"):
        assert desk.code(path, {**window, "accountId": 9}) == 1


def test_suspended_brackets_are_in_no_search(desk: Desk) -> None:
    entry = {**FAR, "customTag": "e", "stopLossBracket": {"ticks": -8, "type": 4}}
    desk.place(**entry, takeProfitBracket={"ticks": 8, "type": 1})
    window = {"accountId": 1001, "startTimestamp": "2026-01-01T00:00:00Z"}
    assert len(desk.ask("Order/search", window)["orders"]) == 1
    assert len(desk.ask("Order/searchOpen", {"accountId": 1001})["orders"]) == 1
    desk.market.pin(MES, Decimal("4999.75"), now=desk.now)
    tags = {o["customTag"] for o in desk.ask("Order/search", window)["orders"]}
    assert tags == {"e", "e-SL", "e-TP"}


BARS = {
    "contractId": MES,
    "live": False,
    "startTime": "2026-01-05T14:00:00Z",
    "endTime": "2026-01-05T14:29:00Z",
    "unit": 2,
    "unitNumber": 1,
    "limit": 1000,
    "includePartialBar": False,
}


def test_bars(desk: Desk) -> None:
    bars = desk.ask("History/retrieveBars", BARS)["bars"]
    assert [bar["t"] for bar in bars[:2]] == [
        "2026-01-05T14:29:00+00:00",
        "2026-01-05T14:28:00+00:00",
    ]
    assert len(bars) == 30
    assert set(bars[0]) == {"t", "o", "h", "l", "c", "v"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"contractId": "X"}, 1),
        ({"unit": 0}, 2),
        ({"unit": 7}, 2),
        ({"unitNumber": 0}, 3),
        ({"unitNumber": 2_000_000}, 3),
        ({"limit": 0}, 4),
        ({"limit": 20_001}, 4),
    ],
)
def test_each_refusal_of_bars_has_its_number(
    desk: Desk, changes: dict[str, object], code: int
) -> None:
    assert desk.code("History/retrieveBars", {**BARS, **changes}) == code


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("Order/place", b"", "$"),
        ("Order/place", b"{", "$"),
        ("Order/place", b"[]", "$"),
        ("Order/place", b"\xff", "$"),
        ("Order/place", b"[" * 100_000, "$"),
        ("Order/place", b'{"accountId": 1001}', "$"),
        ("Order/place", json.dumps({**PLACE, "size": "1"}).encode(), "$.size"),
        ("Order/place", json.dumps({**PLACE, "size": 1.5}).encode(), "$.size"),
        ("Order/place", json.dumps({**PLACE, "size": 2**31}).encode(), "$.size"),
        ("Order/place", json.dumps({**PLACE, "accountId": None}).encode(), "$.accountId"),
        ("Order/place", json.dumps({**FAR, "limitPrice": "5000"}).encode(), "$.limitPrice"),
        ("Order/place", json.dumps({**FAR, "limitPrice": float("inf")}).encode(), "$"),
        ("History/retrieveBars", json.dumps({**BARS, "startTime": "x"}).encode(), "$.startTime"),
        ("History/retrieveBars", json.dumps({**BARS, "unit": "2"}).encode(), "$.unit"),
    ],
)
def test_what_cannot_be_read_is_a_problem_document(
    desk: Desk, path: str, body: bytes, where: str
) -> None:
    reply = desk.raw(path, body)
    assert reply.status == 400
    assert isinstance(reply.body, dict)
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert list(reply.body["errors"]) == [where]  # type: ignore[call-overload]
    assert "success" not in reply.body
    assert desk.market.orders == []


def test_a_clock_that_is_ahead_shows_in_every_moment(desk: Desk) -> None:
    ahead = Terms(skew=3600)
    desk.place()
    shifted = {"accountId": 1001, "startTimestamp": "2026-01-05T15:30:00Z"}
    assert desk.ask("Order/search", shifted)["orders"] == []
    (order,) = desk.ask("Order/search", shifted, ahead)["orders"]
    assert order["creationTimestamp"] == "2026-01-05T15:30:00+00:00"
    (trade,) = desk.ask("Trade/search", shifted, ahead)["trades"]
    assert trade["creationTimestamp"] == "2026-01-05T15:30:00+00:00"


def test_every_number_is_a_number_of_the_real_endpoint() -> None:
    from keepline.brokers.projectx.errors import TABLES, table_of

    for path, endpoint in ENDPOINTS.items():
        table = TABLES[table_of(path)]
        told = {
            *endpoint.codes.values(),
            *([endpoint.other] if endpoint.route in ("order", "close") else []),
        }
        assert told <= set(table), path


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


@given(
    st.sampled_from(list(ENDPOINTS)),
    st.dictionaries(
        st.sampled_from([*PLACE, *BARS, "orderId", "limitPrice", "stopPrice", "customTag", "startTimestamp",
                         "stopLossBracket", "onlyActiveAccounts"]),
        values | st.sampled_from([1001, MES, "2026-01-05T14:30:00Z", {"ticks": -3, "type": 4}]),
    ),
    st.sampled_from([{}, PLACE, BARS]),
)  # fmt: skip
def test_any_body_gets_an_answer(
    path: str, body: dict[str, object], base: dict[str, object]
) -> None:
    desk = Desk()
    reply = desk.face.answer(path, json.dumps({**base, **body}).encode(), now=NOW, terms=Terms())
    assert reply.status in (200, 400)
