"""`make live` itself, run against the sandbox: it asks for everything, changes nothing, and gives nothing away."""

from collections.abc import AsyncIterator

import pytest
from tests.live.topstepx import READS, OnlyReads, differences, main, unknown_values

from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.sandbox.server import SandboxServer


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    async with SandboxServer() as server:
        yield server


def environment(sandbox: SandboxServer, **changes: str) -> dict[str, str]:
    return {
        "PROJECT_X_API_KEY": "sandbox-api-key", "PROJECT_X_USERNAME": "sandbox", "PROJECT_X_BASE_URL": sandbox.url,
    } | changes  # fmt: skip


async def test_everything_is_asked_and_nothing_is_changed(sandbox: SandboxServer) -> None:
    lines: list[str] = []
    assert await main(environment(sandbox), lines.append) == 0
    assert lines[-1] == "nothing was changed; every answer was read"
    assert all(line.startswith("ok  ") for line in lines[:-1]), lines
    assert not any("field" in line for line in lines), lines
    assert sandbox.stats()["orders"] == 0
    told = "\n".join(lines)
    assert "sandbox-api-key" not in told
    assert "SANDBOX-150K" not in told
    for what in (
        "ping",
        "account",
        "bars of a month",
        "open positions",
        "trades of a month",
        "contract by id",
    ):
        assert f"ok      {what}: " in told


async def test_a_question_that_fails_is_counted_and_the_others_are_asked(
    sandbox: SandboxServer,
) -> None:
    sandbox.fault("5xx", on=["history"], status=501)
    lines: list[str] = []
    assert await main(environment(sandbox), lines.append) == 1
    assert sum(line.startswith("FAILED  bars") for line in lines) == 1
    assert lines[-1] == "nothing was changed; 1 questions failed"


async def test_an_account_that_is_not_there_is_a_failed_question(sandbox: SandboxServer) -> None:
    lines: list[str] = []
    assert await main(environment(sandbox, PROJECT_X_ACCOUNT_NAME="NOPE"), lines.append) == 1
    assert any("no account 'NOPE'" in line for line in lines)
    assert "SANDBOX" not in "\n".join(lines), "the names of accounts are not for an issue"


async def test_without_a_key_it_says_what_is_missing() -> None:
    lines: list[str] = []
    assert await main({"PROJECT_X_USERNAME": "x"}, lines.append) == 2
    assert lines == ["missing in the environment: PROJECT_X_API_KEY"]


@pytest.mark.parametrize(
    "path", ["/api/Order/place", "/api/Order/cancel", "/api/Position/closeContract", "/x"]
)
async def test_what_could_change_something_is_not_asked(sandbox: SandboxServer, path: str) -> None:
    async with HttpSession() as session:
        with pytest.raises(ConfigError, match="may change something"):
            await OnlyReads(session, sandbox.url).request("POST", sandbox.url + path, json={})
    assert sandbox.stats()["requests"] == 0
    assert not any(
        word in path for path in READS for word in ("place", "modify", "cancel", "close")
    )


def test_fields_that_differ_are_named() -> None:
    row = {"id": 1, "name": "x", "balance": 1, "canTrade": True, "isVisible": True, "more": 1}
    assert differences({"accounts": [row]}) == [
        "accounts: new field 'more'",
        "accounts: no field 'simulated'",
    ]
    assert differences({"accounts": None}) == differences(None) == []


def test_values_without_a_name_are_told() -> None:
    from decimal import Decimal

    from keepline.brokers.projectx.messages import PositionInfo, PositionType

    row = PositionInfo(account_id=1, contract_id="x", type=PositionType(9), size=Decimal(1))
    assert unknown_values((row,)) == ["PositionType 9"]
    assert unknown_values("pong") == []
