"""Claims about the face: who is asked when, what callbacks get, and that failures and cancellation stop nothing."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from msgspec.structs import replace
from tests.stream.accounts import account, at, fill, held, order, snapshot

from keepline.errors import ConfigError, TransientError
from keepline.stream.reconcile import DiscrepancyKind, Phase, ReconcileSettings, Snapshot
from keepline.stream.reconciliation import DISCREPANCIES, LAST, LOOKS, Reconciliation
from keepline.telemetry import fields_of
from keepline.testing import ManualClock

DOWN = TransientError("the broker is down")


class Source:
    """Answers by script; the last line of it for ever. An event in it is waited for first."""

    def __init__(self, *answers: object) -> None:
        self.answers: list[object] = list(answers) or [snapshot()]
        self.asked: list[tuple[tuple[str, ...], datetime]] = []
        self.begun = asyncio.Event()

    async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
        self.asked.append((tuple(accounts), since))
        self.begun.set()
        line = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(line, asyncio.Event):
            await line.wait()
            line = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(line, BaseException):
            raise line
        if not isinstance(line, Snapshot):
            return line  # type: ignore[return-value]
        since = since.replace(tzinfo=None) if line.scope == ("naive",) else since
        return replace(line, since=since, scope=tuple(accounts))


class Bench:
    def __init__(self, *answers: object, **more: Any) -> None:
        self.clock = ManualClock(wall=at(0))
        self.source = Source(*answers)
        self.changes: list[Any] = []
        self.found: list[Any] = []
        given = {"on_change": self.changes.append, "on_discrepancy": self.found.append} | more
        self.it = Reconciliation(self.source, ["A"], name="test", clock=self.clock, **given)

    async def live(self) -> None:
        self.it.begin()
        await self.it.reconcile()
        assert self.it.is_live


async def test_a_connection_is_reconciled_and_live() -> None:
    bench = Bench(snapshot(fills=[fill()], positions=[held(1)]))
    assert (bench.it.phase, bench.it.is_live, bench.it.reconciled_at) == (Phase.APART, False, None)
    bench.it.begin()
    bench.it.receive(fill())
    bench.it.receive(order())
    assert bench.changes == []
    await bench.it.reconcile()
    assert bench.it.is_live
    assert bench.it.reconciled_at == at(0)
    assert [(type(c.value).__name__, c.recovered) for c in bench.changes] == [
        ("Fill", True),
        ("Position", True),
        ("Order", False),
    ]
    bench.it.receive(fill("t2"))
    assert bench.it.view.positions == {("A", "MNQ"): held(2)}


async def test_reconcile_alone_begins_by_itself() -> None:
    bench = Bench()
    await bench.it.reconcile()
    assert bench.it.is_live
    await bench.it.reconcile()
    assert len(bench.source.asked) == 1, "live already"


@pytest.mark.parametrize(
    "trouble", [DOWN, snapshot(positions=None), ValueError("nonsense")], ids=["down", "part", "bug"]
)
async def test_a_failure_is_tried_again_until_a_snapshot_is_whole(
    trouble: object, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(trouble, trouble, snapshot())
    before = LOOKS.value("test", "partial")
    work = asyncio.create_task(bench.it.reconcile())
    await bench.clock.run_until(lambda: len(bench.source.asked) == 2)
    assert not bench.it.is_live
    assert bench.it.reason.startswith("could not be read: ")
    await bench.clock.run_until(work.done)
    assert bench.it.is_live
    assert bench.clock.boottime() == 1.5
    assert LOOKS.value("test", "partial") == before + 2
    lines = [r for r in caplog.records if r.message == "Stream not reconciled"]
    assert len(lines) == 2
    assert fields_of(lines[0])["failed"]
    assert bench.it.reason == ""


async def test_an_account_is_shortened_in_a_log_and_whole_for_a_callback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = "10000001"
    whole, other = snapshot(scope=(name,)), account(900, name)
    bench = Bench(whole, snapshot(scope=(name,), accounts=[other]))
    bench.it = Reconciliation(
        bench.source, [name], clock=bench.clock, on_discrepancy=bench.found.append
    )
    await bench.live()
    bench.it.receive(account(1000, name))
    async with bench.it:
        await bench.clock.run_until(lambda: bench.found)
    assert [(found.kind.value, found.account) for found in bench.found] == [("balance_break", name)]
    lines = [fields_of(r) for r in caplog.records if r.message == "Stream discrepancy"]
    assert [(line["account"], line["id"]) for line in lines] == [("…001", "…001")]


@pytest.mark.parametrize(
    ("nonsense", "words"),
    [
        (None, "a source gives a Snapshot, not NoneType"),
        (snapshot(scope=("naive",), fills=[fill()]), "offset-naive and offset-aware"),
    ],
)
async def test_a_source_that_talks_nonsense_is_asked_again_before_live_and_afterwards(
    nonsense: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(nonsense, snapshot(), nonsense, snapshot())
    async with bench.it:
        work = asyncio.create_task(bench.it.reconcile())
        await bench.clock.run_until(work.done)
        assert bench.it.is_live
        await bench.clock.run_until(lambda: len(bench.source.asked) == 4)
        assert bench.it.is_live
        await bench.clock.run_until(lambda: bench.it.reconciled_at == bench.clock.wall())
    lines = [fields_of(r) for r in caplog.records if r.message == "Stream not reconciled"]
    assert len(lines) == 2
    assert all(words in str(line) for line in lines)


async def test_a_snapshot_that_never_comes_is_given_up_after_its_time() -> None:
    bench = Bench(asyncio.Event(), snapshot(), attempt_seconds=20.0)
    work = asyncio.create_task(bench.it.reconcile())
    await bench.clock.run_until(work.done)
    assert bench.it.is_live
    assert bench.clock.boottime() == 20.5


async def test_lost_while_a_snapshot_is_taken_ends_without_live() -> None:
    gate = asyncio.Event()
    bench = Bench(gate, snapshot(fills=[fill()]))
    work = asyncio.create_task(bench.it.reconcile())
    await bench.source.begun.wait()
    bench.it.lost()
    gate.set()
    await work
    assert not bench.it.is_live
    assert bench.changes == []


async def test_lost_during_the_pause_after_a_failure_ends_at_once() -> None:
    bench = Bench(DOWN)
    work = asyncio.create_task(bench.it.reconcile())
    await bench.clock.run_until(lambda: len(bench.source.asked) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.clock.next_wake == 1.0
    before = bench.clock.boottime()
    bench.it.lost()
    await work
    assert (bench.it.phase, bench.clock.boottime()) == (Phase.APART, before)


async def test_a_snapshot_of_the_old_connection_does_not_make_the_new_one_live() -> None:
    gate = asyncio.Event()
    bench = Bench(gate, snapshot(fills=[fill("old")]), snapshot(fills=[fill("new")]))
    work = asyncio.create_task(bench.it.reconcile())
    await bench.source.begun.wait()
    bench.it.lost()
    bench.it.begin()
    gate.set()
    await work
    assert bench.it.is_live
    assert len(bench.source.asked) == 2
    assert set(bench.it.view.fills) == {"new"}


async def test_a_reconciliation_that_is_cancelled_can_be_asked_for_again() -> None:
    bench = Bench(asyncio.Event(), snapshot())
    work = asyncio.create_task(bench.it.reconcile())
    await bench.source.begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await bench.it.reconcile()
    assert bench.it.is_live


async def test_a_live_stream_is_looked_at_now_and_then_and_missed_fills_are_announced() -> None:
    bench = Bench(snapshot(), snapshot(fills=[fill()], positions=[held(1)]))
    before = DISCREPANCIES.value("missed_fill")
    async with bench.it:
        await bench.live()
        await bench.clock.run_until(lambda: bench.changes)
        assert bench.clock.boottime() == 60.0
        assert all(change.recovered for change in bench.changes)
        assert bench.found == []
        await bench.clock.run_until(lambda: bench.found)
        assert bench.clock.boottime() == 65.0
    assert [found.kind for found in bench.found] == [DiscrepancyKind.MISSED_FILL]
    assert DISCREPANCIES.value("missed_fill") == before + 1
    assert LAST.value("test") == at(60).timestamp()


async def test_a_disputed_position_and_a_suspicion_wake_the_looker() -> None:
    bench = Bench(snapshot())
    async with bench.it:
        await bench.live()
        await bench.clock.until_asleep()
        bench.it.receive(held(3))
        await bench.clock.run_until(lambda: len(bench.source.asked) == 2)
        assert bench.clock.boottime() == 5.0
        assert bench.it.unsure == frozenset()
        bench.it.suspect("A", reason="a queue was full")
        await bench.clock.run_until(lambda: len(bench.source.asked) == 3)
        assert bench.clock.boottime() == 10.0


async def test_while_apart_nobody_is_asked() -> None:
    bench = Bench(snapshot())
    async with bench.it:
        await bench.live()
        bench.it.lost()
        for _ in range(50):
            await asyncio.sleep(0)
        assert bench.clock.next_wake is None
        assert len(bench.source.asked) == 1
        await bench.live()
    await bench.it.stop()
    assert len(bench.source.asked) == 2


async def test_starting_twice_starts_once() -> None:
    bench = Bench(snapshot(), settings=ReconcileSettings(every_seconds=7.0))
    await bench.it.start()
    await bench.it.start()
    await bench.live()
    await bench.clock.run_until(lambda: len(bench.source.asked) == 3)
    assert bench.clock.boottime() == 14.0
    await bench.it.stop()


async def test_callbacks_that_raise_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(_: object) -> None:
        raise ValueError("a bug of the bot")

    caplog.set_level(logging.CRITICAL, logger="keepline.stream")
    bench = Bench(snapshot(), snapshot(fills=[fill()]), on_change=wrong, on_discrepancy=wrong)
    await bench.live()
    bench.it.lost()
    await bench.live()
    bench.it.receive(fill("t2"))
    assert set(bench.it.view.fills) == {"t1", "t2"}


async def test_without_callbacks_there_is_still_the_view() -> None:
    bench = Bench(snapshot(), snapshot(fills=[fill()]), on_change=None, on_discrepancy=None)
    await bench.live()
    bench.it.lost()
    await bench.live()
    assert set(bench.it.view.fills) == {"t1"}


async def test_it_shows_itself_and_refuses_nonsense() -> None:
    bench = Bench()
    assert repr(bench.it).startswith("<Reconciliation 'test': <Reconciler apart")
    with pytest.raises(ConfigError):
        Reconciliation(bench.source, [])
