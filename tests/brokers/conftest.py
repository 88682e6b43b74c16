"""What the tests of brokers share."""

from collections.abc import AsyncIterator

import pytest
from tests.brokers.loopback import Venue, loopback


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    """A broker on loopback that answers by script."""
    async with loopback() as served:
        yield served
