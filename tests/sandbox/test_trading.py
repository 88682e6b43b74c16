"""Claims about the trading addresses on a socket: tokens, rates, and the faults of orders."""

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from keepline.errors import TransientError
from keepline.http import HttpSession, Response
from keepline.sandbox.book import Status
from keepline.sandbox.quota import Rate
from keepline.sandbox.server import Rates, SandboxServer
from keepline.sandbox.trading import PROJECTX, SCHWAB
from keepline.testing import ManualClock

MES = "CON.F.US.MES.Z26"
PLACE = {"accountId": 1001, "contractId": MES, "type": 2, "side": 0, "size": 2}
ORDER = {
    "orderType": "MARKET",
    "session": "NORMAL",
    "duration": "DAY",
    "orderStrategyType": "SINGLE",
    "orderLegCollection": [
        {
            "instruction": "BUY",
            "quantity": 2,
            "instrument": {"symbol": "AAPL", "assetType": "EQUITY"},
        }
    ],
}
ORDERS = "/trader/v1/accounts/5A4E0B0C7D/orders"
BOTH = pytest.mark.parametrize("broker", [PROJECTX, SCHWAB])


class Desk:
    """A sandbox on a clock of the test's, and one client with a token."""

    def __init__(self, sandbox: SandboxServer, clock: ManualClock, http: HttpSession) -> None:
        self.sandbox, self.clock, self.http = sandbox, clock, http
        self.token = sandbox.issue().access_token

    async def ask(self, method: str, path: str, **more: Any) -> Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.sandbox.url}{path}"
        return await self.http.request(method, url, headers=headers, **more)

    async def place(self, broker: str, **more: object) -> Response:
        if broker == PROJECTX:
            return await self.ask("POST", "/api/Order/place", json={**PLACE, **more})
        return await self.ask("POST", ORDERS, json=ORDER)

    async def working(self, broker: str) -> Response:
        if broker == PROJECTX:
            return await self.ask("POST", "/api/Order/searchOpen", json={"accountId": 1001})
        return await self.ask("GET", "/trader/v1/accounts")

    @property
    def sizes(self) -> list[Decimal]:
        return [position.size for position in self.sandbox.market.positions]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    clock = ManualClock()
    async with SandboxServer(clock=clock) as sandbox, HttpSession() as http:
        yield Desk(sandbox, clock, http)


@BOTH
async def test_an_order_makes_a_position(desk: Desk, broker: str) -> None:
    answer = await desk.place(broker)
    assert answer.status in (200, 201)
    assert desk.sizes == [2]
    stats = desk.sandbox.stats()
    assert (stats["orders"], stats["fills"]) == (1, 1)


async def test_a_location_leads_to_the_order(desk: Desk) -> None:
    answer = await desk.place(SCHWAB)
    location = answer.headers["Location"]
    assert location.startswith(desk.sandbox.url)
    found = await desk.ask("GET", location.removeprefix(desk.sandbox.url))
    assert found.json()["status"] == "FILLED"


@BOTH
async def test_a_dead_token_is_refused_before_anything_else(desk: Desk, broker: str) -> None:
    desk.sandbox.fault("revoke", what="access")
    answer = await desk.place(broker)
    assert answer.status == 401
    assert desk.sandbox.market.orders == []
    assert desk.sandbox.stats()["unauthorized"] == 1


async def test_a_session_of_projectx_opens_its_api(desk: Desk) -> None:
    login = {"userName": "sandbox", "apiKey": "sandbox-api-key"}
    desk.token = (await desk.ask("POST", "/api/Auth/loginKey", json=login)).json()["token"]
    assert (await desk.place(PROJECTX)).json()["success"] is True


async def test_what_cannot_be_read_is_a_problem_document(desk: Desk) -> None:
    answer = await desk.place(PROJECTX, size="2")
    assert answer.status == 400
    assert answer.headers["Content-Type"].startswith("application/problem+json")


@BOTH
async def test_an_answer_is_lost_after_the_order_was_accepted(desk: Desk, broker: str) -> None:
    desk.sandbox.fault("order_answer_lost")
    with pytest.raises(TransientError) as caught:
        await desk.place(broker)
    assert caught.value.sent is True
    assert desk.sizes == [2]


@BOTH
async def test_an_order_is_accepted_eight_seconds_after_an_error(desk: Desk, broker: str) -> None:
    desk.sandbox.fault("late_accept")
    assert (await desk.place(broker)).status == 504
    desk.clock.advance(7.9)
    assert desk.sandbox.market.orders == []
    desk.clock.advance(0.1)
    assert desk.sizes == [2]
    (order,) = desk.sandbox.market.orders
    assert order.entered_at == desk.clock.wall().timestamp()


async def test_a_late_order_may_be_cut_or_get_a_page_or_a_number(desk: Desk) -> None:
    desk.sandbox.fault("late_accept", answer="cut", after=1)
    desk.sandbox.fault("late_accept", answer="html", status=200, after=2)
    desk.sandbox.fault("late_accept", error_code=7, after=3)
    with pytest.raises(TransientError):
        await desk.place(PROJECTX)
    page = await desk.place(PROJECTX)
    assert (page.status, page.text[:6]) == (200, "<html>")
    assert (await desk.place(PROJECTX)).json()["errorCode"] == 7
    desk.clock.advance(3)
    assert desk.sizes == [6]


async def test_a_late_order_that_makes_no_sense_is_never_accepted(desk: Desk) -> None:
    desk.sandbox.fault("late_accept")
    assert (await desk.place(PROJECTX, size=0)).status == 504
    desk.clock.advance(60)
    assert desk.sandbox.market.orders == []


async def test_a_late_cancel_comes_too_late_for_a_fill(desk: Desk) -> None:
    desk.sandbox.market.pin(MES, Decimal(6000), now=desk.clock.wall().timestamp())
    answer = await desk.place(PROJECTX, type=1, limitPrice=5999)
    desk.sandbox.fault("late_accept", on="cancel")
    body = {"accountId": 1001, "orderId": answer.json()["orderId"]}
    assert (await desk.ask("POST", "/api/Order/cancel", json=body)).status == 504
    desk.clock.advance(4)
    desk.sandbox.market.pin(MES, Decimal(5990), now=desk.clock.wall().timestamp())
    desk.clock.advance(60)
    assert desk.sandbox.market.orders[0].status is Status.FILLED


@BOTH
async def test_a_part_is_filled_and_the_connection_cut(desk: Desk, broker: str) -> None:
    desk.sandbox.fault("partial_fill_then_cut")
    with pytest.raises(TransientError):
        await desk.place(broker)
    assert desk.sizes == [1]
    desk.clock.advance(5)
    assert desk.sizes == [2]


@pytest.mark.parametrize(("policy", "size"), [("accept", 4), ("original", 2), ("refuse", 2)])
async def test_a_tag_that_was_used(desk: Desk, policy: str, size: int) -> None:
    desk.sandbox.fault("duplicate_tag", policy=policy)
    first = (await desk.place(PROJECTX, customTag="t")).json()
    second = (await desk.place(PROJECTX, customTag="t")).json()
    assert second["success"] is (policy != "refuse")
    assert (first["orderId"] == second.get("orderId")) is (policy == "original")
    assert desk.sizes == [size]


async def test_a_new_order_may_come_without_its_location(desk: Desk) -> None:
    desk.sandbox.fault("no_location")
    answer = await desk.place(SCHWAB)
    assert answer.status == 201
    assert "Location" not in answer.headers
    assert desk.sizes == [2]


@BOTH
async def test_faults_of_before_reach_orders_too(desk: Desk, broker: str) -> None:
    desk.sandbox.fault("429", on="order", retry_after=3)
    desk.sandbox.fault("5xx", on="order")
    desk.sandbox.fault("html", on="order", status=200)
    desk.sandbox.fault("refuse", on="order", error_code=2)
    limited = await desk.place(broker)
    assert (limited.status, limited.headers["Retry-After"]) == (429, "3")
    assert (await desk.place(broker)).status == 503
    assert (await desk.place(broker)).text.startswith("<html>")
    refused = await desk.place(broker)
    assert refused.status == (200 if broker == PROJECTX else 400)
    assert desk.sandbox.market.orders == []


async def test_a_clock_that_is_ahead_does_not_move_the_market(desk: Desk) -> None:
    desk.sandbox.fault("clock_skew", skew=600, on=["order", "query"])
    await desk.place(PROJECTX)
    (order,) = desk.sandbox.market.orders
    assert order.entered_at == desk.clock.wall().timestamp()
    body = {"accountId": 1001, "startTimestamp": "2026-01-05T14:40:00Z"}
    found = await desk.ask("POST", "/api/Order/search", json=body)
    assert found.json()["orders"][0]["creationTimestamp"] == "2026-01-05T14:40:00+00:00"


async def test_the_venue_has_rates_of_its_own() -> None:
    clock = ManualClock()
    rates = Rates(general=Rate(2, 60.0), history=Rate(1, 30.0), schwab=Rate(3, 60.0))
    async with SandboxServer(clock=clock, rates=rates) as sandbox, HttpSession() as http:
        desk = Desk(sandbox, clock, http)
        assert [(await desk.working(PROJECTX)).status for _ in range(3)] == [200, 200, 429]
        assert [(await desk.working(SCHWAB)).status for _ in range(4)] == [200, 200, 200, 429]
        assert (await desk.place(PROJECTX)).status == 429
        bars = {
            "contractId": MES,
            "live": False,
            "startTime": "2026-01-05T14:00:00Z",
            "endTime": "2026-01-05T14:30:00Z",
            "unit": 2,
            "unitNumber": 1,
            "limit": 5,
            "includePartialBar": False,
        }
        path = "/api/History/retrieveBars"
        assert [(await desk.ask("POST", path, json=bars)).status for _ in range(2)] == [200, 429]
        clock.advance(30)
        answer = await desk.ask("POST", path, json=bars)
        assert (answer.status, len(answer.json()["bars"])) == (200, 5)
        clock.advance(30)
        assert (await desk.place(PROJECTX)).status == 200
        assert sandbox.market.orders[0].entered_at == clock.wall().timestamp()
        assert sandbox.stats()["rate_limited"] == 4


def test_the_real_rates_are_the_defaults() -> None:
    assert Rates() == Rates(general=Rate(200, 60), history=Rate(50, 30), schwab=Rate(120, 60))


async def test_the_market_moves_while_nobody_asks(desk: Desk) -> None:
    await desk.place(PROJECTX, size=25)
    assert desk.sizes == [10]
    desk.clock.advance(2)
    assert desk.sizes == [25]
