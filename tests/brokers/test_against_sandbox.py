"""Claims about both brokers from end to end: client, gateway and journal against the sandbox through real sockets.

Whatever the venue does to an answer, the final position equals the intent and no order is doubled.
"""

import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.brokers.traders import PROJECTX, SCHWAB, Place, Trader, trader

from keepline.brokers.base import IntentKind
from keepline.brokers.orders import OutcomeState
from keepline.errors import APIError, ConfigError
from keepline.model import Side
from keepline.sandbox.book import Kind, Status, Terms, Ticket
from keepline.sandbox.book import Side as VenueSide

BOTH = pytest.mark.parametrize("place", [PROJECTX, SCHWAB], ids=str)
Faults = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="keepline")


@pytest.fixture
async def bot(place: Place, tmp_path: Path) -> AsyncIterator[Trader]:
    async with trader(place, tmp_path / "orders") as made:
        yield made


def put(bot: Trader, faults: Faults) -> None:
    for fault in faults:
        bot.sandbox.fault(**{k: v for k, v in fault.items() if k != "fault"}, name=fault["fault"])


LOST = {"fault": "order_answer_lost"}
TROUBLES: dict[str, Faults] = {
    "nothing": [],
    "the answer lost after the order was accepted": [LOST],
    "accepted 8 s after a 504": [{"fault": "late_accept"}],
    "accepted 8 s after a 400 that speaks of a timeout": [
        {"fault": "late_accept", "status": 400, "description": "Order request timed out"}
    ],
    "accepted 8 s after a page": [{"fault": "late_accept", "answer": "html", "status": 200}],
    "accepted 8 s after the connection was cut": [{"fault": "late_accept", "answer": "cut"}],
    "accepted 8 s after Pending": [{"fault": "late_accept", "error_code": 6}],
    "accepted 8 s after UnknownError": [{"fault": "late_accept", "error_code": 7}],
    "accepted 8 s after a number that nobody knows": [{"fault": "late_accept", "error_code": 77}],
    "accepted though the answer is a 502": [{"fault": "late_accept", "after": 0, "status": 502}],
    "a part filled, then cut": [{"fault": "partial_fill_then_cut"}],
    "the answer slower than the caller waits": [{"fault": "slow", "delay": 40, "on": "order"}],
    "too many requests": [{"fault": "429", "on": "order", "count": 2}],
    "too many requests, and when to come back": [{"fault": "429", "on": "order", "retry_after": 7}],
    "a server error before any work": [{"fault": "5xx", "on": "order"}],
    "a page before any work": [{"fault": "html", "on": "order", "status": 200}],
    "a refusal": [{"fault": "refuse", "on": "order", "error_code": 2}],
    "an outage of a while": [{"fault": "outage", "seconds": 20, "on": ["order", "query"]}],
    "a lost answer, and nothing can be looked up": [
        LOST,
        {"fault": "5xx", "on": "query", "seconds": 90},
    ],
    "a lost answer, and pages instead of lists": [
        LOST,
        {"fault": "html", "on": "query", "status": 200, "seconds": 45},
    ],
    "a lost answer, and too many questions": [LOST, {"fault": "429", "on": "query", "count": 20}],
    "lost answers in a row": [LOST, LOST, {"fault": "late_accept"}, LOST],
    "a lost answer at a venue whose clock is ahead": [LOST, {"fault": "clock_skew", "skew": 25}],
    "a lost answer at a venue whose clock is behind": [LOST, {"fault": "clock_skew", "skew": -25}],
    "no Location": [{"fault": "no_location"}],
}


@BOTH
@pytest.mark.parametrize("faults", TROUBLES.values(), ids=TROUBLES)
async def test_the_position_is_the_intent_and_nothing_is_doubled(
    bot: Trader, faults: Faults
) -> None:
    put(bot, faults)
    outcome = await bot.want(bot.intent("entry", 4))
    if bot.place is PROJECTX or not any(f["fault"] == "no_location" for f in faults):
        assert outcome.order_id == str(bot.orders[-1].id)
    await bot.hold(4, orders=1)


@BOTH
@pytest.mark.parametrize("faults", TROUBLES.values(), ids=TROUBLES)
async def test_an_order_that_rests_is_not_doubled_either(bot: Trader, faults: Faults) -> None:
    put(bot, faults)
    far = bot.place.price - 50
    await bot.want(bot.limit("rest", str(far), 4))
    in_part = any(fault["fault"] == "partial_fill_then_cut" for fault in faults)
    await bot.hold(2 if in_part else 0, orders=1)
    bot.pin(far - 1)
    await bot.hold(4, orders=1)


@BOTH
@pytest.mark.parametrize("fault", [LOST, {"fault": "late_accept"}], ids=["lost", "late"])
async def test_a_bot_that_simply_tries_again_is_doubled(bot: Trader, fault: dict[str, Any]) -> None:
    """The control: these faults do bite."""
    put(bot, [fault])
    for attempt in range(2):
        with contextlib.suppress(APIError):
            await bot.get(bot.broker.place(bot.intent(f"try{attempt}", 4)))
    await bot.pass_by(60)
    assert bot.held == 8


@BOTH
@pytest.mark.parametrize(
    "faults",
    [[], [LOST], [{"fault": "late_accept", "on": ["modify", "cancel", "close"]}]],
    ids=["nothing", "the answer lost", "done 8 s after a 504"],
)
class TestChanges:
    """What changes an order or a position that is there."""

    async def test_a_modified_order(self, bot: Trader, faults: Faults) -> None:
        entry = await bot.want(bot.limit("rest", "100", 4))
        put(bot, faults)
        change = bot.intent(
            "up",
            None,
            kind=IntentKind.MODIFY,
            target_order_id=entry.order_id,
            limit_price=Decimal(101),
        )
        outcome = await bot.want(change)
        await bot.pass_by(120)
        (order,) = bot.working
        assert (order.limit, order.size) == (101, 4)
        assert outcome.order_id == str(order.id)
        assert len(bot.orders) == (2 if bot.place is SCHWAB else 1)

    async def test_a_cancelled_order(self, bot: Trader, faults: Faults) -> None:
        entry = await bot.want(bot.limit("rest", "100", 4))
        put(bot, faults)
        intent = bot.intent("off", None, kind=IntentKind.CANCEL, target_order_id=entry.order_id)
        assert (await bot.want(intent)).accepted
        assert bot.orders[0].status is Status.CANCELLED
        await bot.hold(0, orders=1)

    async def test_a_closed_position_is_flat_and_not_turned(
        self, bot: Trader, faults: Faults
    ) -> None:
        await bot.want(bot.intent("entry", 4))
        put(bot, _on_place(faults) if bot.place is SCHWAB else faults)  # Schwab closes by an order
        outcome = await bot.want(bot.intent("out", None, kind=IntentKind.CLOSE))
        assert outcome.accepted
        await bot.hold(0, orders=2)

    async def test_a_part_of_a_position_is_closed_once(self, bot: Trader, faults: Faults) -> None:
        await bot.want(bot.intent("entry", 4))
        put(bot, _on_place(faults) if bot.place is SCHWAB else faults)
        await bot.want(bot.intent("half", 1, kind=IntentKind.PARTIAL_CLOSE))
        await bot.hold(3, orders=2)

    async def test_a_change_waits_for_the_order_that_is_not_known_yet(
        self, bot: Trader, faults: Faults
    ) -> None:
        put(bot, [{"fault": "late_accept"}])
        rest = bot.limit("rest", "100", 4, deadline_seconds=1.0)
        entry = await bot.get(bot.gateway.place(rest))
        assert entry.state is OutcomeState.UNKNOWN
        put(bot, faults)
        off = bot.intent("off", None, kind=IntentKind.CANCEL, depends_on=("rest",))
        assert (await bot.do(off)).accepted
        assert (await bot.get(entry.final())).accepted
        assert bot.orders[0].status is Status.CANCELLED


def _on_place(faults: Faults) -> Faults:
    return [f | {"on": "order"} if f["fault"] == "late_accept" else f for f in faults]


@BOTH
async def test_a_filled_order_is_past_cancelling(bot: Trader) -> None:
    entry = await bot.want(bot.intent("entry", 2))
    off = bot.intent("off", None, kind=IntentKind.CANCEL, target_order_id=entry.order_id)
    assert (await bot.do(off)).state is OutcomeState.REFUSED
    await bot.hold(2, orders=1)


@BOTH
async def test_an_order_that_is_filled_while_its_late_cancel_is_under_way(bot: Trader) -> None:
    entry = await bot.want(bot.limit("rest", "150", 2))
    put(bot, [{"fault": "late_accept", "on": "cancel"}])
    off = bot.intent(
        "off", None, kind=IntentKind.CANCEL, target_order_id=entry.order_id, deadline_seconds=1.0
    )
    outcome = await bot.get(bot.gateway.cancel(off))
    assert outcome.state is OutcomeState.UNKNOWN
    bot.pin(Decimal(140))
    assert (await bot.get(outcome.final())).state is OutcomeState.REFUSED
    await bot.hold(2, orders=1)


@BOTH
async def test_an_order_of_nonsense_leaves_no_trace(bot: Trader) -> None:
    before = bot.sandbox.stats()["requests"]
    for wrong in (bot.intent("zero", 0), bot.intent("none", None), bot.limit("p", "NaN")):
        with pytest.raises(ConfigError):
            await bot.get(bot.gateway.place(wrong))
    assert bot.sandbox.stats()["requests"] == before


@BOTH
async def test_an_intent_that_is_placed_again_is_the_same_order(bot: Trader) -> None:
    put(bot, [LOST])
    intent = bot.intent("entry", 3)
    first, second = await bot.do(intent), await bot.do(intent)
    assert first == second
    await bot.hold(3, orders=1)


@BOTH
async def test_a_restart_goes_on_with_what_was_unknown(bot: Trader, tmp_path: Path) -> None:
    put(bot, [{"fault": "late_accept"}, {"fault": "outage", "on": "query"}])
    intent = bot.intent("entry", 3, deadline_seconds=2.0)
    outcome = await bot.get(bot.gateway.place(intent))
    assert outcome.state is OutcomeState.UNKNOWN
    await bot.get(bot.gateway.stop())
    await bot.stop()
    bot.sandbox.clear_faults()
    await bot.start(tmp_path / "orders")
    assert (await bot.do(intent)).accepted
    await bot.hold(3, orders=1)


async def stranger(bot: Trader, tag: str, *, size: int = 1) -> None:
    """The same order from elsewhere, with the same tag."""
    ticket = Ticket(
        account=bot.place.account,
        listing=bot.place.instrument,
        side=VenueSide.BUY,
        kind=Kind.MARKET,
        size=Decimal(size),
        tag=tag,
    )
    now = bot.clock.wall().timestamp()
    bot.sandbox.market.place(ticket, now=now, terms=Terms(duplicates="accept"))


@BOTH
async def test_a_twin_is_left_to_a_person_and_what_depends_on_it_is_frozen(bot: Trader) -> None:
    """A duplicate tag at ProjectX, the same looks at Schwab: the gateway stops and asks."""
    put(bot, [{"fault": "duplicate_tag"}, LOST])
    await stranger(bot, "entry")
    entry = await bot.get(bot.gateway.place(bot.intent("entry", deadline_seconds=300)))
    assert entry.state is OutcomeState.AMBIGUOUS
    waiting = bot.intent("next", 2, depends_on=("entry",), deadline_seconds=120)
    frozen = await bot.get(bot.gateway.place(waiting))
    assert frozen.state is OutcomeState.UNKNOWN
    assert "waits for entry" in frozen.reason
    assert len(bot.orders) == 2, "nothing was sent meanwhile"
    own = str(bot.orders[1].id)
    said = await bot.get(bot.gateway.resolve("entry", own))
    assert (said.accepted, said.order_id) == (True, own)
    assert (await bot.get(frozen.final())).accepted
    await bot.hold(1 + 1 + 2, orders=3)


@pytest.mark.parametrize("place", [PROJECTX], ids=str)
@pytest.mark.parametrize("policy", ["refuse", "original"])
async def test_an_id_of_an_earlier_life_makes_no_second_order(
    bot: Trader, tmp_path: Path, policy: str
) -> None:
    intent = bot.intent("entry", 2)
    await bot.do(intent)
    await bot.stop()
    put(bot, [{"fault": "duplicate_tag", "policy": policy}])
    await bot.start(tmp_path / "another-journal")
    outcome = await bot.do(intent)
    assert outcome.accepted is (policy == "original")
    await bot.hold(2, orders=1)
    await bot.get(bot.gateway.catch_up(bot.place.account))
    again = await bot.gateway.outcome("entry")
    assert again is not None
    assert (again.accepted, again.order_id) == (True, str(bot.orders[0].id))


SEEDS = int(os.environ.get("KEEPLINE_VENUE_SEEDS", "10"))
KINDS_OF_TROUBLE = [faults for faults in TROUBLES.values() if faults]


@BOTH
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_day_of_trouble_ends_where_it_should(bot: Trader, seed: int) -> None:
    chance = random.Random(f"{bot.place} {seed}")
    wanted = 0
    for step in range(8):
        for fault in chance.choice([[], *KINDS_OF_TROUBLE]):
            mutations = ["order", "modify"] if fault["fault"] == "partial_fill_then_cut" else None
            put(bot, [fault | ({"on": mutations} if mutations else {})])
        what = chance.choice(["buy", "buy", "sell", "rest", "close"])
        size = 2 + step  # each its own, so that looks can tell them apart
        if what == "buy" or (what == "sell" and wanted < size):
            await bot.want(bot.intent(f"s{step}", size))
            wanted += size
        elif what == "sell":
            await bot.want(bot.intent(f"s{step}", size, side=Side.SELL))
            wanted -= size
        elif what == "rest":
            await bot.want(bot.limit(f"s{step}", str(bot.place.price - 50), size))
            bot.pin(bot.place.price - 60)
            await bot.pass_by(60)
            bot.pin()
            wanted += size
        elif wanted:
            await bot.want(bot.intent(f"s{step}", None, kind=IntentKind.CLOSE))
            await bot.pass_by(60)
            wanted = 0
        bot.sandbox.clear_faults()
        await bot.pass_by(60)
        assert bot.held == wanted, f"after step {step}: {what}"
    assert bot.gateway.unresolved() == []
    assert bot.working == []
    assert sum(fill.size * fill.side.value for fill in bot.sandbox.market.fills) == wanted
    told = await bot.get(bot.gateway.catch_up(bot.place.account))
    assert not told.failed
    assert sum(position.quantity for position in told.positions) == wanted
