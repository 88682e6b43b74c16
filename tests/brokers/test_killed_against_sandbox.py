"""kill -9 of a bot before every step it takes: the one that comes after it on the same journal ends with one order."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.brokers.traders import PROJECTX, SCHWAB, Place, Trader, trader

from keepline.brokers.orders import OutcomeState

BOTH = pytest.mark.parametrize("place", [PROJECTX, SCHWAB], ids=str)
SIZE = 3

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and kill"),
    pytest.mark.timeout(180),
]


class Mortals:
    """The other end of `mortal.py`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = 0

    async def begin(self, bot: Trader, journal: Path, kill_at: int | None = None) -> None:
        """Let a bot trade at this venue; `pid` is its number before it does anything."""
        command = {
            "broker": bot.place.broker,
            "account": bot.place.account,
            "instrument": bot.place.instrument,
            "quantity": SIZE,
            "url": bot.sandbox.url,
            "token": bot.sandbox.issue().access_token,
            "journal": str(journal),
            "kill_at": kill_at,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self.pid = int((await self._line())["pid"])
        self._process.stdin.write(b"go\n")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    async def end(self) -> tuple[dict[str, Any], int]:
        """What it said at its end, and how it ended (a negative number is the signal)."""
        said: dict[str, Any] = {}
        while "done" not in (line := await self._line()):
            said = line
        return said, int(line["done"])

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the process has died; its error output tells why"
        return json.loads(line)  # type: ignore[no-any-return]


@pytest.fixture
async def mortals() -> AsyncIterator[Mortals]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("mortal.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Mortals(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="keepline")


async def goes_on(bot: Trader, journal: Path) -> OutcomeState:
    """A fresh bot with the same wish, and the same id while that may still be there; what the id came to."""
    await bot.start(journal)
    try:
        intent = bot.intent("entry", SIZE)
        outcome = await bot.do(intent)
        if not outcome.accepted:
            await bot.want(bot.intent("again", SIZE))
        await bot.hold(SIZE, orders=1)
    finally:
        await bot.stop()
    return outcome.state


@BOTH
@pytest.mark.parametrize("is_lost", [False, True], ids=["answered", "answer lost"])
async def test_after_a_kill_at_any_step_there_is_one_order(
    place: Place, is_lost: bool, tmp_path: Path, mortals: Mortals
) -> None:
    seen: set[tuple[bool, OutcomeState]] = set()
    for kill_at in count():
        journal = tmp_path / f"{kill_at}" / "orders"
        async with trader(place, journal, wall=datetime.now(UTC), start=False) as bot:
            if is_lost:
                bot.sandbox.fault("order_answer_lost")
            await mortals.begin(bot, journal, kill_at)
            said, end = await mortals.end()
            if end == 0:
                assert (said["state"], bot.held, len(bot.orders)) == ("accepted", SIZE, 1)
                assert kill_at >= len(
                    said["steps"]
                )  # how many there are depends on what shares a commit
                break
            assert end == -signal.SIGKILL, said
            had_arrived = bool(bot.orders)
            seen.add((had_arrived, await goes_on(bot, journal)))
    assert seen == {
        (False, OutcomeState.ACCEPTED),  # killed before it was written: placed by the next one
        (False, OutcomeState.PRESUMED_ABSENT),  # written, never sent: looked for, not found
        (True, OutcomeState.ACCEPTED),  # sent: found
    }


@BOTH
async def test_a_bot_that_is_killed_while_its_answer_is_on_the_way(
    place: Place, tmp_path: Path, mortals: Mortals
) -> None:
    journal = tmp_path / "orders"
    async with trader(place, journal, wall=datetime.now(UTC), start=False) as bot:
        market = bot.sandbox.market
        accept = market.place

        def accepted(*args: Any, **kwargs: Any) -> Any:
            order = accept(*args, **kwargs)
            mortals.kill()
            return order

        market.place = accepted  # type: ignore[method-assign]
        await mortals.begin(bot, journal)
        assert (await mortals.end())[1] == -signal.SIGKILL
        market.place = accept  # type: ignore[method-assign]
        assert len(bot.orders) == 1
        assert await goes_on(bot, journal) is OutcomeState.ACCEPTED


@BOTH
async def test_an_order_that_is_accepted_after_its_bot_was_killed(
    place: Place, tmp_path: Path, mortals: Mortals
) -> None:
    journal = tmp_path / "orders"
    async with trader(place, journal, wall=datetime.now(UTC), start=False) as bot:
        bot.sandbox.fault("late_accept")
        later = bot.sandbox.market.later

        def postponed(at: float, work: Any) -> None:
            later(at, work)
            mortals.kill()

        bot.sandbox.market.later = postponed  # type: ignore[method-assign]
        await mortals.begin(bot, journal)
        assert (await mortals.end())[1] == -signal.SIGKILL
        assert bot.orders == []
        assert await goes_on(bot, journal) is OutcomeState.ACCEPTED
