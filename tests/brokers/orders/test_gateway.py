"""The gateway as a bot sees it, on a clock that moves by hand."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec import structs
from tests.brokers.orders.venue import (
    BY_LOOKS,
    LOST,
    TAGGED,
    Disk,
    MemoryJournal,
    PlainBroker,
    Venue,
    accepted_but_lost,
    order_intent,
)

from keepline.brokers.base import Ack, BrokerFacts, IntentKind, OrderIntent, Source
from keepline.brokers.orders import (
    Decision,
    OrderGateway,
    OrderJournal,
    OrderOutcome,
    OutcomeState,
    State,
)
from keepline.brokers.orders.docket import OUTCOMES, UNRESOLVED
from keepline.brokers.orders.store import leave_decision
from keepline.errors import (
    CircuitOpen,
    Closed,
    ConfigError,
    OutcomeUnknown,
    PermanentError,
    RateLimited,
    StorageError,
    TokenUnavailable,
    TransientError,
)
from keepline.model import Fill, OrderStatus, OrderType
from keepline.telemetry import fields_of
from keepline.testing import ManualClock

ACCEPTED, REFUSED, UNKNOWN = OutcomeState.ACCEPTED, OutcomeState.REFUSED, OutcomeState.UNKNOWN
ABSENT, AMBIGUOUS = OutcomeState.PRESUMED_ABSENT, OutcomeState.AMBIGUOUS


@dataclass
class Bench:
    """A gateway with everything around it."""

    facts: BrokerFacts = TAGGED
    clock: ManualClock = field(default_factory=ManualClock)
    disk: Disk = field(default_factory=Disk)
    gateways: list[OrderGateway] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.venue = Venue(self.clock, keeps_tags=self.facts.tag_echoed)
        self.broker = PlainBroker(self.venue, self.facts)
        self.journal = MemoryJournal(self.disk)

    async def gateway(self) -> OrderGateway:
        """A gateway on the same disk; an earlier one is gone as by a crash."""
        self.journal.open = False
        self.journal = MemoryJournal(self.disk)
        gateway = OrderGateway(self.broker, self.journal, clock=self.clock)
        self.gateways.append(gateway)
        await gateway.start()
        return gateway

    async def run(self, work: "asyncio.Future[OrderOutcome] | object") -> OrderOutcome:
        """Let time run until it is done."""
        task = asyncio.ensure_future(work)
        await self.clock.run_until(task.done)
        return task.result()

    async def final(self, gateway: OrderGateway, intent: OrderIntent) -> OrderOutcome:
        async def work() -> OrderOutcome:
            verb = getattr(gateway, intent.kind.value)
            return await (await verb(intent)).final()

        return await self.run(work())


@pytest.fixture
async def bench(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bench]:
    caplog.set_level(logging.DEBUG, logger="keepline.orders")
    bench = Bench()
    yield bench
    await ended(bench)


@pytest.fixture
async def by_looks() -> AsyncIterator[Bench]:
    bench = Bench(BY_LOOKS)
    yield bench
    await ended(bench)


async def ended(bench: Bench) -> None:
    for gateway in bench.gateways:
        await gateway.stop(grace_seconds=0)


# --- answers ---


async def test_an_order_that_is_answered(bench: Bench) -> None:
    gateway = await bench.gateway()
    outcome = await gateway.place(order_intent("one", 2))
    assert (outcome.state, outcome.order_id, outcome.how) == (ACCEPTED, "1", "answer")
    assert outcome.accepted
    assert outcome.is_final
    assert await outcome.final() is outcome
    assert bench.venue.position() == 2
    assert gateway.unresolved() == []


async def test_the_intent_is_on_the_disk_before_the_request_leaves(bench: Bench) -> None:
    gateway = await bench.gateway()

    def look(do: Callable[[], str]) -> str:
        record = bench.disk.records["one"]
        assert (record.state, record.sent_at) == (State.SENT, bench.clock.wall())
        return do()

    bench.broker.script = [look]
    assert (await gateway.place(order_intent("one"))).accepted
    await bench.clock.run_until(lambda: bench.disk.records["one"].state is State.ACCEPTED)


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (PermanentError("not enough margin"), "answer"),
        (PermanentError("no such host", sent=False), "unsent"),
        (TransientError("no connection", sent=False), "unsent"),
        (CircuitOpen("the circuit is open"), "unsent"),
        (RateLimited("the budget is spent"), "unsent"),
        (TokenUnavailable("no token"), "unsent"),
        (ConfigError("no such account"), "unsent"),
    ],
)
async def test_what_proves_that_nothing_was_changed_is_a_refusal(
    bench: Bench, error: Exception, how: str
) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [error]
    outcome = await gateway.place(order_intent("one"))
    assert (outcome.state, outcome.how) == (REFUSED, how)
    assert outcome.reason == str(error)
    assert bench.broker.queries == []


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        TransientError("503", status=503),
        TransientError("429", status=429),
        TimeoutError("too slow"),
        ConnectionResetError("reset"),
        ValueError("an answer that nobody can read"),
        Closed("the session was closed meanwhile"),
        OutcomeUnknown("a page instead of an answer"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_else_ends_a_call_leaves_the_outcome_unknown_and_nothing_is_sent_again(
    bench: Bench, error: Exception
) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [error]
    outcome = await bench.run(gateway.place(order_intent("one", deadline_seconds=1)))
    assert outcome.state is UNKNOWN
    assert [o.intent_id for o in gateway.unresolved()] == ["one"]
    final = await bench.run(outcome.final())
    assert final.state is ABSENT
    assert len(bench.broker.sent) == 1


async def test_an_answer_that_is_none_leaves_the_outcome_unknown(bench: Bench) -> None:
    gateway = await bench.gateway()

    async def nonsense(intent: OrderIntent) -> object:
        bench.venue.take(intent)
        return {"orderId": 7}

    bench.broker.place = nonsense
    final = await bench.final(gateway, order_intent("one"))
    assert (final.state, final.order_id, final.how) == (ACCEPTED, "1", "query")


async def test_a_call_that_never_ends_is_ended(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [lambda do: bench.clock.sleep(1e9)]
    started = bench.clock.boottime()
    final = await bench.final(gateway, order_intent("one", deadline_seconds=1))
    assert final.state is ABSENT
    assert bench.clock.boottime() - started >= 20 + 10, (
        "its longest call, then the longest processing"
    )


async def test_an_answer_without_an_id_is_accepted_and_the_id_is_looked_up(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [lambda do: Ack(None) if do() else None]
    outcome = await gateway.place(order_intent("one"))
    assert (outcome.state, outcome.order_id) == (ACCEPTED, None)
    await bench.clock.run_until(lambda: bench.disk.records["one"].order_id == "1")


# --- lost answers ---


@pytest.mark.parametrize("facts", [TAGGED, BY_LOOKS], ids=["by tag", "by looks"])
async def test_an_order_whose_answer_was_lost_is_found(facts: BrokerFacts) -> None:
    bench = Bench(facts)
    gateway = await bench.gateway()
    bench.broker.script = [accepted_but_lost]
    outcome = await bench.run(gateway.place(order_intent("one", 3)))
    assert (outcome.state, outcome.order_id, outcome.how) == (ACCEPTED, "1", "query")
    assert bench.venue.position() == 3
    await ended(bench)


async def test_an_order_that_is_accepted_eight_seconds_after_an_error_is_found(
    bench: Bench,
) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [TransientError("500", status=500)]
    placing = asyncio.ensure_future(gateway.place(order_intent("one", deadline_seconds=30)))
    await bench.clock.run_until(lambda: bench.clock.boottime() >= 8)
    bench.venue.take(order_intent("one"))
    outcome = await bench.run(placing)
    assert (outcome.state, outcome.how) == (ACCEPTED, "query")
    assert len(bench.broker.sent) == 1


async def test_a_failed_source_is_no_absence_however_long_it_fails(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script, bench.broker.blind = [LOST], {Source.HISTORY: "502"}
    outcome = await bench.run(gateway.place(order_intent("one")))
    await bench.clock.run_until(lambda: bench.clock.boottime() > 600)
    assert [o.state for o in gateway.unresolved()] == [UNKNOWN]
    bench.broker.blind = {}
    assert (await bench.run(outcome.final())).state is ABSENT


async def test_a_broker_that_shows_nothing_at_all_is_asked_again(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [accepted_but_lost]
    show, bench.broker.evidence = bench.broker.evidence, None
    outcome = await bench.run(gateway.place(order_intent("one", deadline_seconds=60)))
    assert outcome.state is UNKNOWN
    bench.broker.evidence = show
    assert (await bench.run(outcome.final())).state is ACCEPTED


async def test_a_view_that_cannot_be_judged_is_logged_and_taken_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [accepted_but_lost]
    show = bench.broker.evidence

    async def broken(query: object) -> object:
        seen = await show(query)
        return structs.replace(seen, history=(), open_orders=None)

    bench.broker.evidence = broken
    outcome = await bench.run(gateway.place(order_intent("one", deadline_seconds=40)))
    assert outcome.state is UNKNOWN
    assert "Order look failed" in caplog.messages
    bench.broker.evidence = show
    assert (await bench.run(outcome.final())).state is ACCEPTED


async def test_two_orders_that_fit_stop_and_ask_and_a_person_decides(by_looks: Bench) -> None:
    gateway = await by_looks.gateway()
    by_looks.venue.take(order_intent("a stranger's"))
    by_looks.broker.script = [accepted_but_lost]
    outcome = await by_looks.run(gateway.place(order_intent("one", deadline_seconds=1000)))
    assert outcome.state is AMBIGUOUS
    assert "2 orders fit: 1, 2" in outcome.reason
    assert not outcome.is_final
    waiting = asyncio.ensure_future(outcome.final())
    await by_looks.clock.run_until(lambda: by_looks.clock.boottime() > 5000)
    assert not waiting.done(), "nothing is guessed"
    decided = await gateway.resolve("one", "2", reason="seen on the screen")
    assert (decided.state, decided.order_id, decided.how) == (ACCEPTED, "2", "person")
    assert await by_looks.run(waiting) == decided


async def test_a_decision_must_say_one_thing_about_a_known_intent(bench: Bench) -> None:
    gateway = await bench.gateway()
    await gateway.place(order_intent("settled"))
    bench.broker.script = [LOST]
    bench.broker.blind = {Source.HISTORY: "502"}
    await bench.run(gateway.place(order_intent("one", deadline_seconds=1)))
    for arguments, words in [
        ({}, "either"),
        ({"order_id": "7", "absent": True}, "either"),
        ({"order_id": "1"}, "belongs to intent 'settled'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            await gateway.resolve("one", **arguments)
    with pytest.raises(ConfigError, match="nobody has placed"):
        await gateway.resolve("nobody", absent=True)
    with pytest.raises(ConfigError, match="is settled"):
        await gateway.resolve("settled", absent=True)
    assert (await gateway.resolve("one", absent=True)).state is ABSENT


async def test_a_late_order_wins_after_it_was_presumed_absent_and_is_told(bench: Bench) -> None:
    gateway = await bench.gateway()
    told: list[OrderOutcome] = []
    end = gateway.subscribe(told.append)
    bench.broker.script = [LOST]
    assert (await bench.final(gateway, order_intent("one"))).state is ABSENT
    bench.venue.take(order_intent("one"))
    await bench.clock.run_until(lambda: told[-1].state is ACCEPTED)
    assert (told[-1].how, told[-1].order_id) == ("late", "1")
    outcome = await gateway.outcome("one")
    assert outcome is not None
    assert (outcome.state, outcome.how) == (ACCEPTED, "late")
    end()
    end()
    await gateway.place(order_intent("two"))
    assert told[-1].intent_id == "one"


# --- the same id again ---


async def test_the_same_intent_again_gives_the_same_outcome_and_sends_nothing(bench: Bench) -> None:
    gateway = await bench.gateway()
    first = await gateway.place(order_intent("one"))
    again = await gateway.place(order_intent("one", deadline_seconds=99))
    assert again == first
    assert len(bench.broker.sent) == 1


async def test_many_calls_with_one_intent_at_once_send_it_once(bench: Bench) -> None:
    gateway = await bench.gateway()
    outcomes = await asyncio.gather(*(gateway.place(order_intent("one")) for _ in range(50)))
    assert set(outcomes) == {outcomes[0]}
    assert len(bench.broker.sent) == len(bench.venue.orders) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"quantity": Decimal(2)},
        {"type": OrderType.LIMIT, "limit_price": Decimal(1)},
        {"account": "B"},
        {"depends_on": ("other",)},
    ],
)
async def test_another_body_under_a_known_id_is_an_error_and_nothing_is_sent(
    bench: Bench, changes: dict[str, object]
) -> None:
    gateway = await bench.gateway()
    await gateway.place(order_intent("other"))
    await gateway.place(order_intent("one"))
    other = structs.replace(order_intent("one"), **changes)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match="'one' exists already and asks for something else"
        ) as caught:
            await gateway.place(other)
        assert caught.value.key == "id"
        gateway = await bench.gateway()
    assert len(bench.broker.sent) == 2


async def test_two_bodies_under_one_id_at_once_send_one(bench: Bench) -> None:
    gateway = await bench.gateway()
    done = await asyncio.gather(
        gateway.place(order_intent("one")),
        gateway.place(order_intent("one", 2)),
        return_exceptions=True,
    )
    assert [type(result) for result in done] == [OrderOutcome, ConfigError]
    assert len(bench.broker.sent) == 1


@pytest.mark.parametrize("state", ["accepted", "refused", "presumed absent"])
async def test_the_same_intent_after_a_restart_gives_the_same_outcome(
    bench: Bench, state: str
) -> None:
    script = {"accepted": [], "refused": [PermanentError("no")], "presumed absent": [LOST]}
    bench.broker.script = script[state]
    before = await bench.final(await bench.gateway(), order_intent("one"))
    await bench.clock.run_until(lambda: bench.disk.records["one"].state.is_settled)
    gateway = await bench.gateway()
    assert await bench.final(gateway, order_intent("one")) == before
    assert len(bench.broker.sent) == 1


async def test_an_outcome_of_long_ago_is_known_though_it_is_not_in_the_memory(bench: Bench) -> None:
    before = await (await bench.gateway()).place(order_intent("one"))
    await bench.clock.run_until(lambda: bench.disk.records["one"].state is State.ACCEPTED)
    bench.clock.advance(3 * 86_400)
    gateway = await bench.gateway()
    bench.broker.refuses = ConfigError("this contract has expired")
    assert await gateway.place(order_intent("one")) == before
    assert await gateway.outcome("one") == before
    assert await gateway.outcome("nobody") is None
    with pytest.raises(ConfigError, match="contract has expired"):
        await gateway.place(order_intent("new"))
    bench.broker.refuses = None
    bench.clock.advance(86_400)
    other = await bench.gateway()
    assert await other.place(order_intent("one")) == before, "found by the journal itself"
    assert len(bench.broker.sent) == 1


# --- what is refused before it is sent ---


async def test_what_makes_no_sense_is_neither_written_nor_sent(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.refuses = ConfigError("21000.30 is off the tick", key="limit_price")
    for intent in (order_intent("zero", 0), order_intent("off the tick"), order_intent("tick")):
        with pytest.raises(ConfigError):
            await gateway.place(intent)
    assert bench.disk.records == {}
    assert bench.broker.sent == []


async def test_an_intent_of_another_kind_is_refused(bench: Bench) -> None:
    gateway = await bench.gateway()
    with pytest.raises(ConfigError, match=r"cancel\(\) was given an intent to place") as caught:
        await gateway.cancel(order_intent("one"))
    assert caught.value.key == "kind"


async def test_a_gateway_that_does_not_run_sends_nothing(bench: Bench) -> None:
    gateway = OrderGateway(bench.broker, bench.journal, clock=bench.clock)
    with pytest.raises(Closed, match="is not started"):
        await gateway.place(order_intent("one"))
    await gateway.stop()
    await gateway.start()
    await gateway.start()
    await gateway.stop()
    with pytest.raises(Closed, match="was stopped"):
        await gateway.place(order_intent("one"))
    with pytest.raises(Closed, match="make a new one"):
        await gateway.start()
    gateway.observe(bench.venue.take(order_intent("x")))


async def test_a_full_disk_is_an_error_nothing_is_sent_and_the_id_can_be_used_later(
    bench: Bench,
) -> None:
    gateway = await bench.gateway()
    bench.journal.full = True
    done = await asyncio.gather(
        *(gateway.place(order_intent("one")) for _ in range(3)), return_exceptions=True
    )
    assert [type(error) for error in done] == [StorageError] * 3
    assert bench.broker.sent == []
    assert gateway.unresolved() == []
    bench.journal.full = False
    assert (await gateway.place(order_intent("one"))).accepted


async def test_a_disk_that_fills_up_before_the_answer_keeps_the_outcome_and_is_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await bench.gateway()

    def fill_up(do: Callable[[], str]) -> str:
        bench.journal.full = True
        return do()

    bench.broker.script = [fill_up]
    assert (await gateway.place(order_intent("one"))).accepted
    await bench.clock.run_until(lambda: "Order journal failed" in caplog.messages)
    assert bench.disk.records["one"].state is State.SENT
    await bench.clock.run_until(lambda: bench.clock.boottime() > 60)
    bench.journal.full = False
    await bench.clock.run_until(lambda: bench.disk.records["one"].state is State.ACCEPTED)
    assert len(bench.broker.sent) == 1


# --- deadlines and cancellation ---


async def test_a_caller_reads_unknown_after_its_deadline_and_the_work_goes_on(bench: Bench) -> None:
    gateway = await bench.gateway()

    async def slow(do: Callable[[], str]) -> str:
        await bench.clock.sleep(10)
        return do()

    bench.broker.script = [slow]
    outcome = await bench.run(gateway.place(order_intent("one", deadline_seconds=2)))
    assert (outcome.state, outcome.reason) == (UNKNOWN, "sent, and no answer came yet")
    assert bench.clock.boottime() == 2
    final = await bench.run(outcome.final())
    assert (final.state, final.how) == (ACCEPTED, "answer")


async def test_a_caller_that_is_cancelled_does_not_cancel_its_order(bench: Bench) -> None:
    gateway = await bench.gateway()

    async def slow(do: Callable[[], str]) -> str:
        await bench.clock.sleep(10)
        return do()

    bench.broker.script = [slow]
    placing = asyncio.create_task(gateway.place(order_intent("one")))
    await bench.clock.run_until(lambda: bench.broker.sent)
    placing.cancel()
    await asyncio.gather(placing, return_exceptions=True)
    assert (await bench.final(gateway, order_intent("one"))).accepted
    assert len(bench.broker.sent) == 1


# --- events ---


async def test_an_event_settles_what_the_answer_has_not_yet(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.venue.listeners.append(gateway.observe)

    async def slow(do: Callable[[], str]) -> str:
        number = do()
        await bench.clock.sleep(10)
        return number

    bench.broker.script = [slow]
    outcome = await gateway.place(order_intent("one"))
    assert (outcome.state, outcome.how, outcome.order_id) == (ACCEPTED, "stream", "1")
    assert bench.clock.boottime() == 0


async def test_each_fill_is_told_once_by_whatever_way_it_comes(bench: Bench) -> None:
    gateway = await bench.gateway()
    told: list[Fill] = []
    gateway.subscribe_fills(told.append)
    await gateway.place(order_intent("one", 5))
    (fill,) = bench.venue.fills
    gateway.observe(fill)
    gateway.observe(fill)
    caught = await gateway.catch_up("A")
    assert told == [fill]
    assert caught.fills == ()
    gateway = await bench.gateway()
    gateway.subscribe_fills(told.append)
    gateway.observe(fill)
    assert (await gateway.catch_up("A")).fills == ()
    assert told == [fill]
    assert await gateway.fills("1") == [fill]


async def test_a_fill_that_no_event_told_is_caught_up_also_by_the_next_process(
    bench: Bench,
) -> None:
    gateway = await bench.gateway()
    await gateway.place(order_intent("one"))
    bench.clock.advance(7200)
    gateway = await bench.gateway()
    told: list[Fill] = []
    gateway.subscribe_fills(told.append)
    caught = await gateway.catch_up("A")
    assert caught.fills == tuple(told) == tuple(bench.venue.fills)
    assert [p.quantity for p in caught.positions] == [Decimal(1)]
    assert caught.failed == {}


async def test_a_look_back_goes_no_further_than_the_last_one_unless_that_one_was_blind(
    bench: Bench,
) -> None:
    gateway = await bench.gateway()
    start = bench.clock.wall()
    bench.clock.advance(3600)
    bench.broker.blind = {Source.FILLS: "502"}
    assert set((await gateway.catch_up("A")).failed) == {Source.FILLS}
    bench.broker.blind = {}
    await gateway.catch_up("A")
    bench.clock.advance(3600)
    await gateway.catch_up("A")
    margin = timedelta(seconds=15)
    hours = [query.since - start + margin for query in bench.broker.queries]
    assert hours == [timedelta(0), timedelta(0), timedelta(hours=1)]


async def test_a_look_back_settles_what_is_unknown(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script, bench.broker.blind = [accepted_but_lost], dict.fromkeys(Source, "502")
    outcome = await bench.run(gateway.place(order_intent("one", deadline_seconds=1)))
    assert outcome.state is UNKNOWN
    bench.broker.blind = {}
    (settled,) = (await gateway.catch_up("A")).outcomes
    assert (settled.intent_id, settled.state) == ("one", ACCEPTED)


async def test_a_callback_that_fails_disturbs_nobody(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await bench.gateway()
    told: list[OrderOutcome] = []

    def fail(outcome: OrderOutcome) -> None:
        raise ValueError("a bug of the bot")

    gateway.subscribe(fail)
    gateway.subscribe(told.append)
    assert (await gateway.place(order_intent("one"))).accepted
    assert [o.intent_id for o in told] == ["one"]
    assert "An order callback failed" in caplog.messages


# --- who waits for whom ---


async def test_what_depends_on_an_unknown_outcome_is_frozen_and_released_by_it(
    bench: Bench,
) -> None:
    gateway = await bench.gateway()
    bench.broker.script, bench.broker.blind = [accepted_but_lost], dict.fromkeys(Source, "502")
    await bench.run(gateway.place(order_intent("entry", deadline_seconds=1)))
    stop = order_intent("stop", depends_on=("entry",), deadline_seconds=5)
    frozen = await bench.run(gateway.place(stop))
    assert (frozen.state, frozen.reason) == (UNKNOWN, "frozen, nothing was sent: waits for entry")
    assert [intent.id for intent in bench.broker.sent] == ["entry"]
    assert bench.disk.records["stop"].state is State.PREPARED
    bench.broker.blind = {}
    assert (await bench.run(frozen.final())).state is ACCEPTED
    assert [intent.id for intent in bench.broker.sent] == ["entry", "stop"]


async def test_what_depends_on_an_order_that_is_absent_is_refused_and_never_sent(
    bench: Bench,
) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [LOST]
    placing = asyncio.ensure_future(gateway.place(order_intent("entry")))
    outcome = await bench.final(gateway, order_intent("stop", depends_on=("entry",)))
    assert (outcome.state, outcome.how) == (REFUSED, "unsent")
    assert outcome.reason == "depends on entry, which is presumed_absent; nothing was sent"
    assert (await bench.run(placing)).state is ABSENT
    assert len(bench.broker.sent) == 1
    await bench.clock.run_until(lambda: bench.disk.records["stop"].state is State.REFUSED)


async def test_what_depends_on_a_refusal_is_refused(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [PermanentError("not enough margin")]
    await gateway.place(order_intent("entry"))
    outcome = await gateway.place(order_intent("stop", depends_on=("entry",)))
    assert (outcome.state, outcome.how) == (REFUSED, "unsent")


async def test_what_depends_on_nothing_known_is_an_error(bench: Bench) -> None:
    gateway = await bench.gateway()
    with pytest.raises(ConfigError, match="depends on 'entry', which nobody has placed") as caught:
        await gateway.place(order_intent("stop", depends_on=("entry",)))
    assert caught.value.key == "depends_on"
    assert bench.disk.records == {}


async def test_what_depends_on_an_order_of_an_earlier_process_is_sent(bench: Bench) -> None:
    await (await bench.gateway()).place(order_intent("entry"))
    await bench.clock.run_until(lambda: bench.disk.records["entry"].state is State.ACCEPTED)
    bench.clock.advance(5 * 86_400)
    gateway = await bench.gateway()
    assert (await gateway.place(order_intent("stop", depends_on=("entry",)))).accepted


LIMIT = {"type": OrderType.LIMIT, "limit_price": Decimal(100)}


async def test_a_cancel_finds_its_order_by_the_intent_that_made_it(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [accepted_but_lost]
    placing = asyncio.ensure_future(gateway.place(order_intent("entry", **LIMIT)))
    await bench.clock.run_until(lambda: bench.broker.sent)
    cancel = OrderIntent(id="c", kind=IntentKind.CANCEL, account="A", depends_on=("entry",))
    outcome = await bench.run(gateway.cancel(cancel))
    await placing
    assert outcome.accepted
    assert bench.broker.sent[-1].target_order_id == "1"
    assert bench.venue.orders["1"].status is OrderStatus.CANCELLED
    await bench.clock.run_until(lambda: bench.disk.records["c"].state is State.ACCEPTED)
    assert (bench.disk.records["c"].target, bench.disk.records["c"].intent) == ("1", cancel)


async def test_a_lost_answer_to_a_cancel_is_settled_by_its_order(bench: Bench) -> None:
    gateway = await bench.gateway()
    await gateway.place(order_intent("entry", **LIMIT))
    cancel = OrderIntent(id="c", kind=IntentKind.CANCEL, account="A", target_order_id="1")
    bench.broker.script = [accepted_but_lost]
    assert (await bench.final(gateway, cancel)).how == "query"
    late = structs.replace(cancel, id="c2")
    bench.broker.script = [LOST]
    assert (await bench.final(gateway, late)).accepted


async def test_a_lost_answer_to_a_change_is_settled_by_its_order(bench: Bench) -> None:
    gateway = await bench.gateway()
    await gateway.place(order_intent("entry", **LIMIT))
    change = OrderIntent(
        id="m", kind=IntentKind.MODIFY, account="A", target_order_id="1", limit_price=Decimal(101)
    )
    bench.broker.script = [accepted_but_lost]
    assert (await bench.final(gateway, change)).accepted
    other = structs.replace(change, id="m2", limit_price=Decimal(102))
    bench.broker.script = [LOST]
    assert (await bench.final(gateway, other)).state is ABSENT
    assert bench.venue.orders["1"].limit_price == 101


async def test_a_second_close_waits_until_the_first_is_settled(bench: Bench) -> None:
    gateway = await bench.gateway()
    await gateway.place(order_intent("entry", 2))
    close = OrderIntent(id="x1", kind=IntentKind.CLOSE, account="A", instrument="MNQ")
    part = structs.replace(close, id="x2", kind=IntentKind.PARTIAL_CLOSE, quantity=Decimal(1))
    bench.broker.script = [LOST]
    first = asyncio.ensure_future(gateway.close(close))
    second = asyncio.ensure_future(gateway.partial_close(part))
    await bench.clock.run_until(first.done)
    assert (await first).state is ABSENT
    assert [intent.id for intent in bench.broker.sent][:2] == ["entry", "x1"]
    await bench.run(second)
    assert [intent.id for intent in bench.broker.sent] == ["entry", "x1", "x2"]


async def test_a_person_withdraws_what_is_frozen(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script, bench.broker.blind = [LOST], dict.fromkeys(Source, "502")
    await bench.run(gateway.place(order_intent("entry", deadline_seconds=1)))
    frozen = await bench.run(
        gateway.place(order_intent("stop", depends_on=("entry",), deadline_seconds=1))
    )
    withdrawn = await gateway.resolve("stop", absent=True)
    assert (withdrawn.state, withdrawn.how) == (REFUSED, "unsent")
    assert await bench.run(frozen.final()) == withdrawn
    bench.broker.blind = {}
    await gateway.resolve("entry", "7")
    await bench.clock.run_until(lambda: bench.disk.records["stop"].state is State.REFUSED)
    assert [intent.id for intent in bench.broker.sent] == ["entry"]


# --- restarts ---


async def test_what_was_under_way_at_a_crash_is_found_by_the_next_process(bench: Bench) -> None:
    gateway = await bench.gateway()

    async def hang(do: Callable[[], str]) -> str:
        do()
        await bench.clock.sleep(1e6)
        return "never"

    bench.broker.script = [hang]
    placing = asyncio.ensure_future(gateway.place(order_intent("one")))
    await bench.clock.run_until(lambda: bench.venue.orders)
    gateway = await bench.gateway()
    assert [o.state for o in gateway.unresolved()] == [UNKNOWN]
    outcome = await bench.final(gateway, order_intent("one"))
    assert (outcome.state, outcome.how, len(bench.venue.orders)) == (ACCEPTED, "query", 1)
    placing.cancel()


async def test_what_was_frozen_at_a_crash_is_sent_only_when_it_is_asked_for_again(
    bench: Bench,
) -> None:
    gateway = await bench.gateway()
    bench.broker.script, bench.broker.blind = [accepted_but_lost], dict.fromkeys(Source, "502")
    stop = order_intent("stop", depends_on=("entry",), deadline_seconds=1)
    await bench.run(gateway.place(order_intent("entry", deadline_seconds=1)))
    await bench.run(gateway.place(stop))
    bench.broker.blind = {}
    gateway = await bench.gateway()
    await bench.clock.run_until(lambda: bench.disk.records["entry"].state is State.ACCEPTED)
    await bench.clock.run_until(lambda: bench.clock.boottime() > 100)
    assert [intent.id for intent in bench.broker.sent] == ["entry"]
    (waiting,) = gateway.unresolved()
    assert (waiting.intent_id, waiting.reason) == ("stop", "nothing was sent yet")
    assert (await gateway.place(stop)).accepted
    assert [intent.id for intent in bench.broker.sent] == ["entry", "stop"]


async def test_a_stop_waits_a_moment_for_what_is_under_way(bench: Bench) -> None:
    gateway = await bench.gateway()

    async def slow(do: Callable[[], str]) -> str:
        await bench.clock.sleep(3)
        return do()

    bench.broker.script = [slow]
    outcome = await bench.run(gateway.place(order_intent("one", deadline_seconds=1)))
    waiting = asyncio.ensure_future(outcome.final())
    await bench.run(gateway.stop())
    assert bench.disk.records["one"].state is State.ACCEPTED
    assert (await waiting).accepted


async def test_a_stop_leaves_what_has_no_answer_for_the_next_time(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script = [lambda do: bench.clock.sleep(1e6)]
    outcome = await bench.run(gateway.place(order_intent("one", deadline_seconds=1)))
    frozen = asyncio.ensure_future(gateway.place(order_intent("two", depends_on=("one",))))
    waiting = asyncio.ensure_future(outcome.final())
    await bench.clock.run_until(lambda: "two" in bench.disk.records)
    await bench.run(gateway.stop(grace_seconds=2))
    for task in (waiting, frozen):
        with pytest.raises(Closed, match="the next one goes on"):
            await task
    assert bench.disk.records["one"].state is State.UNKNOWN
    assert bench.disk.records["two"].state is State.PREPARED


# --- beside ---


async def test_decisions_of_the_command_line_are_taken_up(
    by_looks: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await by_looks.gateway()
    by_looks.venue.take(order_intent("a stranger's"))
    by_looks.broker.script = [accepted_but_lost]
    outcome = await by_looks.run(gateway.place(order_intent("one")))
    assert outcome.state is AMBIGUOUS
    by_looks.disk.decisions = [
        Decision(number=1, intent_id="nobody", order_id="1", reason=""),
        Decision(number=2, intent_id="one", order_id="2", reason="seen"),
    ]
    final = await by_looks.run(outcome.final())
    assert (final.order_id, final.how, final.reason) == ("2", "person", "seen")
    await by_looks.clock.run_until(lambda: not by_looks.disk.decisions)
    assert "Decision not taken" in caplog.messages


async def test_outcomes_are_counted_and_logged_without_amounts(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    labels = ("memory", "place", "accepted", "query")
    before = OUTCOMES.value(*labels)
    gateway = await bench.gateway()
    bench.broker.script = [accepted_but_lost]
    placing = asyncio.ensure_future(gateway.place(order_intent("one")))
    await bench.clock.run_until(lambda: "Order outcome unknown" in caplog.messages)
    assert UNRESOLVED.value("memory") == 1
    await bench.run(placing)
    assert OUTCOMES.value(*labels) - before == 1
    assert UNRESOLVED.value("memory") == 0
    record = next(r for r in caplog.records if r.message == "Order accepted")
    assert fields_of(record)["intent"] == "one"
    assert fields_of(record)["order"] == "1"


async def test_a_gateway_shows_what_is_unresolved(bench: Bench) -> None:
    gateway = await bench.gateway()
    assert repr(gateway) == "<OrderGateway memory, 0 unresolved>"


# --- on a real disk ---


async def test_a_gateway_on_a_path_keeps_its_orders(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "memory.orders"
    async with OrderGateway(bench.broker, path, clock=bench.clock) as gateway:
        first = await gateway.place(order_intent("one"))
        with pytest.raises(StorageError, match="one at a time"):
            await OrderGateway(bench.broker, str(path)).start()
    async with OrderGateway(bench.broker, OrderJournal(path), clock=bench.clock) as gateway:
        assert await gateway.place(order_intent("one")) == first
    assert len(bench.broker.sent) == 1


async def test_a_decision_that_was_left_in_the_file_is_taken_up_at_the_next_start(
    tmp_path: Path,
) -> None:
    bench, path = Bench(BY_LOOKS), tmp_path / "memory.orders"
    bench.venue.take(order_intent("a stranger's"))
    bench.broker.script = [accepted_but_lost]
    async with OrderGateway(bench.broker, path) as gateway:
        bench.broker.facts = structs.replace(BY_LOOKS, clock_skew_seconds=1e9)
        outcome = await gateway.place(order_intent("one", deadline_seconds=0.05))
        assert not outcome.is_final
    await asyncio.to_thread(leave_decision, path, "one", "2", "seen")
    async with OrderGateway(bench.broker, path) as gateway:
        final = await (await gateway.place(order_intent("one"))).final()
    assert (final.order_id, final.how) == ("2", "person")


async def test_a_journal_with_a_damaged_entry_stops_the_start_and_is_free_again(
    bench: Bench, tmp_path: Path
) -> None:
    import sqlite3

    path = tmp_path / "memory.orders"
    async with OrderGateway(bench.broker, path) as gateway:
        await gateway.place(order_intent("one"))

    def damage() -> None:
        db = sqlite3.connect(path)
        db.execute("UPDATE orders SET state='lost'")
        db.commit()
        db.close()

    await asyncio.to_thread(damage)
    for _ in range(2):
        with pytest.raises(StorageError, match="'one'"):
            await OrderGateway(bench.broker, path).start()


# --- ways to lose money that were tried by hand ---


async def test_what_was_frozen_at_a_crash_is_on_the_disk_as_sent_before_it_is_sent(
    bench: Bench,
) -> None:
    gateway = await bench.gateway()
    bench.broker.script, bench.broker.blind = [LOST], dict.fromkeys(Source, "502")
    await bench.run(gateway.place(order_intent("first", deadline_seconds=1)))
    second = order_intent("second", depends_on=("first",), deadline_seconds=1)
    await bench.run(gateway.place(second))
    bench.disk.records["first"] = structs.replace(
        bench.disk.records["first"], state=State.ACCEPTED, order_id="77"
    )
    gateway = await bench.gateway()
    states: list[State] = []

    def look(do: Callable[[], str | None]) -> str | None:
        states.append(bench.disk.records["second"].state)
        return do()

    bench.broker.script = [look]
    assert (await bench.run(gateway.place(second))).state is ACCEPTED
    assert states == [State.SENT]


async def test_an_order_that_nobody_can_tell_releases_nothing(by_looks: Bench) -> None:
    gateway = await by_looks.gateway()

    def twice(do: Callable[[], str | None]) -> Ack:
        do(), do()
        raise LOST

    by_looks.broker.script = [twice]
    assert (await by_looks.run(gateway.place(order_intent("one")))).state is AMBIGUOUS
    after = order_intent("two", 3, depends_on=("one",), deadline_seconds=300)
    assert (await by_looks.run(gateway.place(after))).state is UNKNOWN
    assert len(by_looks.broker.sent) == 1


async def test_a_second_close_waits_for_one_of_an_earlier_process(bench: Bench) -> None:
    gateway = await bench.gateway()
    bench.broker.script, bench.broker.blind = [LOST], dict.fromkeys(Source, "502")
    close = OrderIntent(
        id="c1", kind=IntentKind.CLOSE, account="A", instrument="MNQ", deadline_seconds=1
    )
    await bench.run(gateway.close(close))
    gateway = await bench.gateway()
    outcome = await bench.run(gateway.close(structs.replace(close, id="c2")))
    assert outcome.state is UNKNOWN
    assert [intent.id for intent in bench.broker.sent] == ["c1"]


async def test_what_a_person_withdraws_while_it_is_written_is_not_sent(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await bench.gateway()
    written = asyncio.Event()
    bench.journal.pause = lambda step: written.set() if step == "after begin" else None
    placing = asyncio.ensure_future(gateway.place(order_intent("one")))
    await written.wait()
    await gateway.resolve("one", absent=True)
    assert (await placing).state is REFUSED
    assert bench.broker.sent == []
    assert bench.disk.records["one"].state is State.REFUSED
    assert "Order work failed" not in caplog.text


async def test_a_clock_that_is_put_back_during_the_call_hides_no_order(by_looks: Bench) -> None:
    gateway = await by_looks.gateway()
    right = by_looks.clock.wall
    by_looks.clock.wall = lambda: right() + timedelta(hours=1)  # type: ignore[method-assign]

    def put_back(do: Callable[[], str | None]) -> Ack:
        by_looks.clock.wall = right  # type: ignore[method-assign]
        return accepted_but_lost(do)

    by_looks.broker.script = [put_back]
    outcome = await by_looks.final(gateway, order_intent("one"))
    assert (outcome.state, outcome.order_id) == (ACCEPTED, "1")


async def test_a_look_back_whose_caller_goes_away_tells_its_fills(bench: Bench) -> None:
    gateway = await bench.gateway()
    told: list[Fill] = []
    gateway.subscribe_fills(told.append)
    await gateway.place(order_intent("one"))
    noted = asyncio.Event()
    bench.journal.pause = lambda step: noted.set() if step == "after fills" else None
    looking = asyncio.ensure_future(gateway.catch_up("A"))
    await noted.wait()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    await gateway.stop()
    assert told == bench.venue.fills


async def test_fills_that_could_not_be_written_are_looked_up_again(bench: Bench) -> None:
    gateway = await bench.gateway()
    await gateway.place(order_intent("one"))
    bench.clock.advance(600)

    def full(step: str) -> None:
        if step == "before fills":
            raise StorageError("the disk is full")

    bench.journal.pause = full
    assert (await gateway.catch_up("A")).fills == ()
    bench.journal.pause = lambda step: None
    assert (await gateway.catch_up("A")).fills == tuple(bench.venue.fills)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_clock_that_was_ahead_hides_no_fill(bench: Bench, restart: bool) -> None:
    gateway = await bench.gateway()
    right = bench.clock.wall
    bench.clock.wall = lambda: right() + timedelta(hours=1)  # type: ignore[method-assign]
    await gateway.catch_up("A")
    bench.clock.wall = right  # type: ignore[method-assign]
    bench.clock.advance(60)
    bench.venue.take(order_intent("stranger"))
    bench.clock.advance(1200)
    if restart:
        gateway = await bench.gateway()
    assert (await gateway.catch_up("A")).fills == tuple(bench.venue.fills)


async def test_what_is_unresolved_is_shown_while_a_dependency_is_looked_up(bench: Bench) -> None:
    gateway = await bench.gateway()
    shown: list[str] = []

    def look(step: str) -> None:
        if step == "find":
            shown.extend(outcome.intent_id for outcome in gateway.unresolved())

    bench.journal.pause = look
    with pytest.raises(ConfigError, match="nobody has placed"):
        await gateway.place(order_intent("two", depends_on=("one",)))
    assert shown == ["two"]


async def test_two_starts_at_once_are_one(bench: Bench) -> None:
    gateway = OrderGateway(bench.broker, bench.journal, clock=bench.clock)
    bench.gateways.append(gateway)
    before = len(asyncio.all_tasks())
    await asyncio.gather(gateway.start(), gateway.start())
    assert len(asyncio.all_tasks()) == before + 1


async def test_a_lost_change_of_a_trail_is_never_called_done_unseen(bench: Bench) -> None:
    gateway = await bench.gateway()
    stop = order_intent("stop", type=OrderType.TRAILING_STOP, trail_price=Decimal(5))
    placed = await gateway.place(stop)
    bench.broker.script = [LOST]
    change = OrderIntent(
        id="trail",
        kind=IntentKind.MODIFY,
        account="A",
        target_order_id=placed.order_id or "",
        trail_price=Decimal(2),
        deadline_seconds=300,
    )
    assert (await bench.run(gateway.modify(change))).state is AMBIGUOUS
