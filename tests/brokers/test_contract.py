"""Every broker behind the order gateway keeps the same contract, against the sandbox."""

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from keepline.brokers.base import Broker, OrderIntent
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.trading import ProjectXTrading
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.trading import SchwabTrading
from keepline.model import OrderType, Side
from keepline.sandbox.server import SandboxServer
from keepline.testing import BrokerContract


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    async with SandboxServer() as server:
        yield server


class TestProjectX(BrokerContract):
    @pytest.fixture
    async def broker(self, sandbox: SandboxServer) -> AsyncIterator[Broker]:
        async def tokens() -> str:
            return sandbox.issue().access_token

        async with ProjectXClient(tokens, base_url=sandbox.url) as client:
            yield ProjectXTrading(client)

    @pytest.fixture
    def resting(self) -> OrderIntent:
        return OrderIntent(
            id="contract-1",
            account="1001",
            instrument="CON.F.US.MES.Z26",
            side=Side.BUY,
            quantity=Decimal(1),
            type=OrderType.LIMIT,
            limit_price=Decimal(1000),
        )


class TestSchwab(BrokerContract):
    @pytest.fixture
    async def broker(self, sandbox: SandboxServer) -> AsyncIterator[Broker]:
        async def tokens() -> str:
            return sandbox.issue().access_token

        async with SchwabClient(tokens, base_url=sandbox.url) as client:
            yield SchwabTrading(client)

    @pytest.fixture
    def resting(self) -> OrderIntent:
        return OrderIntent(
            id="contract-1",
            account="10000001",
            instrument="AAPL",
            side=Side.BUY,
            quantity=Decimal(1),
            type=OrderType.LIMIT,
            limit_price=Decimal(50),
        )
