"""schwab-py's own streaming client at the sandbox's streamer: what it says and understands, we speak."""

import asyncio
import warnings
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from keepline.brokers.schwab.streamer_fields import BOOKS, FIELDS
from keepline.clock import SYSTEM_CLOCK
from keepline.sandbox.book import Kind, Side, Ticket
from keepline.sandbox.server import SandboxServer
from keepline.sandbox.streamer_session import StreamerTimes

with warnings.catch_warnings(record=True):
    # schwab-py 1.5.1 imports parts of websockets and authlib that their makers call old: theirs to mend, not ours
    warnings.simplefilter("ignore")
    from schwab.streaming import StreamClient, UnexpectedResponseCode


class Account:
    """What schwab-py's streaming client needs of its HTTP client: the preferences and the token."""

    def __init__(self, sandbox: SandboxServer) -> None:
        self.url = sandbox.url
        self.token_metadata = self
        self.token = {"access_token": sandbox.issue().access_token}

    async def get_user_preferences(self) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token['access_token']}"}
        async with httpx.AsyncClient() as http:
            return await http.get(f"{self.url}/trader/v1/userPreference", headers=headers)


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    async with SandboxServer(streamer=StreamerTimes(tick=0.02, heartbeat=0.05)) as server:
        server.market.pin("AAPL", Decimal(200), now=SYSTEM_CLOCK.wall().timestamp())
        yield server


async def handled(client: Any, got: list[Any]) -> Any:
    async with asyncio.timeout(20):
        while not got:
            await client.handle_message()
    return got.pop()["content"][0]


async def test_it_logs_in_and_gets_quotes_candles_books_and_account_activity(
    sandbox: SandboxServer,
) -> None:
    client = StreamClient(Account(sandbox))
    await client.login()
    quotes: list[Any] = []
    client.add_level_one_equity_handler(quotes.append)
    await client.level_one_equity_subs(["AAPL"])
    quote = await handled(client, quotes)
    assert (quote["key"], quote["BID_PRICE"], quote["LAST_PRICE"]) == ("AAPL", 200.0, 200.0)

    candles: list[Any] = []
    client.add_chart_equity_handler(candles.append)
    await client.chart_equity_subs(["F"])
    candle = await handled(client, candles)
    assert candle["LOW_PRICE"] <= candle["OPEN_PRICE"] <= candle["HIGH_PRICE"]

    activities: list[Any] = []
    client.add_account_activity_handler(activities.append)
    await client.account_activity_sub()
    assert (await handled(client, activities))["MESSAGE_TYPE"] == "SUBSCRIBED"
    ticket = Ticket(
        account="10000001", listing="F", side=Side.BUY, kind=Kind.MARKET, size=Decimal(1)
    )
    sandbox.market.place(ticket, now=SYSTEM_CLOCK.wall().timestamp())
    assert (await handled(client, activities))["MESSAGE_TYPE"] == "OrderCreated"

    await client.level_one_equity_add(["MSFT"])
    await client.level_one_equity_unsubs(["AAPL"])
    await client.logout()


async def test_what_the_sandbox_does_not_have_is_an_error_to_it(sandbox: SandboxServer) -> None:
    client = StreamClient(Account(sandbox))
    await client.login()
    with pytest.raises(UnexpectedResponseCode):
        await client.level_one_option_subs(["AAPL  251219C00200000"])
    await client.logout()


def test_its_fields_have_the_numbers_that_ours_have() -> None:
    for ours, theirs in (
        ("LEVELONE_EQUITIES", StreamClient.LevelOneEquityFields),
        ("LEVELONE_OPTIONS", StreamClient.LevelOneOptionFields),
        ("LEVELONE_FUTURES", StreamClient.LevelOneFuturesFields),
        ("LEVELONE_FUTURES_OPTIONS", StreamClient.LevelOneFuturesOptionsFields),
        ("LEVELONE_FOREX", StreamClient.LevelOneForexFields),
        ("CHART_EQUITY", StreamClient.ChartEquityFields),
        ("CHART_FUTURES", StreamClient.ChartFuturesFields),
        ("SCREENER_EQUITY", StreamClient.ScreenerFields),
        ("ACCT_ACTIVITY", StreamClient.AccountActivityFields),
        *((book, StreamClient.BookFields) for book in BOOKS),
    ):
        assert sorted(field.value for field in theirs) == list(range(len(FIELDS[ours]))), ours
    for word in ("BID_PRICE", "ASK_PRICE", "LAST_PRICE", "BID_SIZE", "ASK_SIZE", "TOTAL_VOLUME", "MARK",
                 "OPEN_PRICE", "HIGH_PRICE", "LOW_PRICE", "CLOSE_PRICE", "SECURITY_STATUS"):  # fmt: skip
        for ours, theirs in (
            ("LEVELONE_EQUITIES", StreamClient.LevelOneEquityFields),
            ("LEVELONE_OPTIONS", StreamClient.LevelOneOptionFields),
            ("LEVELONE_FUTURES", StreamClient.LevelOneFuturesFields),
            ("LEVELONE_FUTURES_OPTIONS", StreamClient.LevelOneFuturesOptionsFields),
            ("LEVELONE_FOREX", StreamClient.LevelOneForexFields),
        ):
            assert FIELDS[ours][theirs[word].value] == word.lower(), (ours, word)
