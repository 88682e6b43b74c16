"""The lives of a stream: what is earned, beginnings and ends that cross, defects that end nothing else."""

import asyncio
import threading
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.stream.scripted import HANG, ORDERS, QUOTES, Script, bench, settle

from keepline.errors import Closed, ConfigError, PermanentError, TransientError
from keepline.stream.calendar import CME_FUTURES
from keepline.stream.dial_budget import process_dials
from keepline.stream.events import ConnectionState, EventKind
from keepline.stream.health import HealthStatus
from keepline.stream.manager import StreamManager
from keepline.stream.port import Lost, Topic
from keepline.stream.redial import DialLimiter
from keepline.stream.settings import StreamSettings
from keepline.stream.tokens import StreamTokens
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock

DOWN = TransientError("down", category="network")
REFUSED = PermanentError("401", category="auth", status=401)


def dead() -> list[Script]:
    """Three dials that fail: the next wait would be 30 s."""
    return [Script(open=DOWN) for _ in range(3)]


# --- what is earned ---


async def test_the_first_dial_after_a_good_life_goes_at_once() -> None:
    async with bench() as b:
        await b.connect("live")
        b.clock.advance(1.0)
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert b.broker.dialed_at == [0.0, 1.0]


async def test_a_renewed_connection_keeps_what_the_life_before_it_has_earned() -> None:
    async with bench(*dead(), chance=0.0) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        b.link.bring("Order", 1)
        b.clock.advance(31.0)
        b.manager.renew()
        await b.until(lambda: b.broker.closed[-1:] == [3])
        at = b.clock.boottime()
        b.link.end(Lost("cut"))
        await b.until(lambda: len(b.broker.links) == 6)
        assert b.broker.dialed_at[-1] == at


@pytest.mark.parametrize("has_probe", [True, False])
async def test_a_stream_that_is_quiet_by_nature_earns_its_backoff_back(has_probe: bool) -> None:
    async with bench(*dead(), Script(has_probe=has_probe), chance=0.0) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        await b.until(lambda: b.link.probes == 1)
        await settle()
        at = b.clock.boottime()
        b.link.end(Lost("cut"))
        await b.until(lambda: len(b.broker.links) == 5)
        assert b.broker.dialed_at[-1] == at


async def test_an_answered_probe_of_a_blind_stream_earns_nothing() -> None:
    paced = Topic("Tick", ("Ticks",), ("NoTicks",), cadence=10.0)
    async with bench(*dead(), chance=0.0) as b:
        b.manager.subscribe(paced, inline=True)
        await b.connect()
        await b.until(lambda: b.link.probes)
        b.clock.advance(31.0)
        at = b.clock.boottime()
        b.link.end(Lost("cut"))
        await b.until(lambda: len(b.broker.links) == 5)
        assert b.broker.dialed_at[-1] - at == pytest.approx(30.0 * 0.8)


async def test_a_newer_token_ends_the_long_wait_after_refused_ones() -> None:
    tokens = StreamTokens(lambda: "a")
    async with bench(Script(open=REFUSED), Script(open=REFUSED), tokens=tokens, chance=0.0) as b:
        connecting = asyncio.ensure_future(b.manager.connect())
        await b.until(lambda: b.count(EventKind.ALARM))
        await settle()
        b.clock.advance(100.0)
        await settle()
        assert len(b.broker.links) == 2
        b.manager.renew()
        await settle()
        await connecting
        assert b.broker.dialed_at == [0.0, 1.0, 101.0]


async def test_a_newer_token_changes_nothing_about_other_waits() -> None:
    async with bench(*dead(), chance=0.5) as b:
        connecting = asyncio.ensure_future(b.manager.connect())
        await b.until(lambda: len(b.broker.links) == 3)
        await settle()
        b.manager.renew()
        await b.drive(connecting)  # type: ignore[arg-type]
        assert b.broker.dialed_at == [0.0, 1.0, 3.0, 13.0]


async def test_where_one_connection_is_allowed_renewals_are_no_failures() -> None:
    settings = StreamSettings(two_connections=False)
    async with bench(settings=settings) as b:
        await b.connect()
        for number in range(2, 8):
            b.clock.advance(86_400.0)
            await settle()
            b.manager.renew()
            await b.until(lambda: b.kinds.count(EventKind.CONNECTED) == number)  # noqa: B023
        assert b.broker.dialed_at == [86_400.0 * day for day in range(7)]
        assert b.count(EventKind.ALARM) == 0


# --- what is asked for ---


async def test_a_subscription_that_is_confirmed_during_a_query_leads_to_another_one() -> None:
    async with bench() as b:
        asked, gate = [], asyncio.Event()

        async def reconcile() -> None:
            asked.append(list(b.link.subscribed))
            await gate.wait()

        b.manager.subscribe(ORDERS, inline=True)
        b.manager.add_reconciler(reconcile)
        connecting = asyncio.ensure_future(b.manager.connect(until="live"))
        await b.until(lambda: asked)
        b.manager.subscribe(Topic("Fill", ("Fills",)), inline=True)
        await b.until(lambda: "Fill" in b.link.subscribed)
        await settle()
        gate.set()
        await b.drive(connecting)  # type: ignore[arg-type]
        assert asked == [["Order"], ["Order", "Fill"]]


async def test_what_was_kept_back_goes_on_although_one_message_cannot_be_placed() -> None:
    def place(arguments: Any) -> str:
        return str(arguments[0]["key"])

    got: list[Any] = []
    async with bench() as b:

        async def reconcile() -> None:
            for message in ({}, {"key": "A"}, {"key": "B"}):
                b.link.bring("Order", message)

        b.manager.subscribe(ORDERS, got.append, inline=True, conflate_by=place)
        b.manager.add_reconciler(reconcile)
        await b.connect("live")
        assert got == [{"key": "A"}, {"key": "B"}]
        assert b.manager.stats()["unreadable"] == 1


async def test_a_callback_that_cannot_place_a_message_takes_it_from_no_other() -> None:
    got: list[int] = []

    def place(arguments: Any) -> str:
        raise KeyError("symbol")

    async with bench() as b:
        b.manager.subscribe(QUOTES, lambda *_: None, inline=True, conflate_by=place)
        b.manager.subscribe(QUOTES, lambda _, price: got.append(price), inline=True)
        await b.connect("live")
        b.link.bring("Quote", "MNQ", 1)
        assert got == [1]
        assert b.manager.stats()["unreadable"] == 1


async def test_a_message_whose_time_cannot_be_read_goes_on() -> None:
    def venue_time(channel: str, arguments: Any) -> float:
        raise ValueError("no time")

    got: list[int] = []
    async with bench(venue_time=venue_time) as b:
        b.manager.subscribe(ORDERS, got.append, inline=True)
        await b.connect("live")
        b.link.bring("Order", 1)
        assert got == [1]
        assert b.count(EventKind.FIRST_DATA) == 1
        assert b.manager.stats()["unreadable"] == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_callback_that_does_not_return_is_a_reason_in_words(kind: str) -> None:
    gate, waiting = threading.Event(), asyncio.Event()

    def block(_: int) -> None:
        gate.wait()

    async def wait(_: int) -> None:
        await waiting.wait()

    async with bench() as b:
        b.manager.subscribe(ORDERS, block if kind == "sync" else wait)
        await b.connect("live")
        b.link.bring("Order", 1)
        b.link.bring("Order", 2)
        await b.until(lambda: b.manager.stats()["queued"] == 1)
        assert b.manager.health is HealthStatus.HEALTHY
        b.clock.advance(31.0)
        assert b.manager.health is HealthStatus.DEGRADED
        assert b.manager.is_live, "it sees; what it does with it is another matter"
        [reason] = b.manager.reasons
        assert "has not returned for 31 s, 1 messages of Order wait for it" in reason
        gate.set()
        waiting.set()
        await b.until(lambda: b.manager.stats()["delivered"] == 2)
        assert b.manager.health is HealthStatus.HEALTHY


# --- defects ---


async def test_a_link_that_cannot_even_be_made_is_words_and_another_attempt() -> None:
    async with bench(Script(make=OSError("too many open files"))) as b:
        await b.connect("live")
        assert b.clock.boottime() == 1.0


async def test_a_link_that_cannot_be_made_for_a_renewal_leaves_the_old_one_alone() -> None:
    async with bench() as b:
        await b.connect("live")
        b.broker.scripts = [Script(make=OSError("too many open files"))]
        b.manager.renew()
        await settle()
        assert b.manager.is_live
        assert len(b.broker.links) == 1
        await b.until(lambda: len(b.broker.links) == 2)
        assert b.count(EventKind.LOST) == 0


async def test_a_defect_of_ours_is_told_and_a_connect_by_hand_heals_it() -> None:
    class Broken(DialLimiter):
        calls = 0

        def reserve(self, now: float) -> float:
            self.calls += 1
            if self.calls == 2:
                raise ZeroDivisionError("by nothing")
            return super().reserve(now)

    async with bench(dial_limiter=Broken(burst=1000)) as b:
        await b.connect("live")
        b.link.end(Lost("cut"))
        await b.until(lambda: b.manager.state is ConnectionState.FAILED)
        assert b.kinds[-2:] == [EventKind.LOST, EventKind.LOST]
        assert b.manager.reasons[0] == "a defect of ours (ZeroDivisionError)"
        assert not b.manager.is_live
        await b.connect("live")


# --- ends ---


async def test_every_stop_ends_in_time_whatever_never_returns() -> None:
    gate = threading.Event()

    def block(*_: Any) -> None:
        gate.wait()

    async def stubborn(*_: Any) -> None:
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async with bench(Script(close=HANG), event_router=stubborn) as b:
        b.manager.subscribe(ORDERS, block)
        b.manager.subscribe(ORDERS, stubborn)
        b.manager.on_event(stubborn)
        await b.connect("live")
        b.link.bring("Order", 1)
        await settle()
        at = b.clock.boottime()
        await b.drive(b.manager.disconnect())
        assert b.clock.boottime() - at <= 6.0
        gate.set()
        for task in asyncio.all_tasks():
            if "stubborn" in task.get_name():
                task.cancel()
        await settle()


@pytest.mark.parametrize("stage", ["dial", "wait", "renewal", "grace", "reconcile", "subscribe"])
async def test_a_stop_at_any_moment_closes_every_link_and_leaves_no_task(stage: str) -> None:
    before = asyncio.all_tasks()
    scripts = {
        "dial": [Script(open=HANG)],
        "wait": [Script(open=DOWN)] * 4,
        "renewal": [Script(), Script(open=HANG)],
        "subscribe": [Script(subscribe={"Order": [HANG]})],
    }
    async with bench(*scripts.get(stage, [])) as b:
        b.manager.subscribe(ORDERS, inline=True)
        if stage == "reconcile":
            b.manager.add_reconciler(asyncio.Event().wait)
        connecting = asyncio.ensure_future(b.manager.connect())
        await b.until(lambda: len(b.broker.links) == (4 if stage == "wait" else 1))
        await settle()
        if stage in ("renewal", "grace"):
            b.manager.renew()
            await settle()
            assert len(b.broker.links) == 2
        await b.manager.disconnect()
        with suppress(Closed):
            await connecting
        assert sorted(b.broker.closed) == list(range(len(b.broker.links)))
        assert b.manager.state is ConnectionState.DISCONNECTED
        assert asyncio.all_tasks() == before


async def test_who_stops_waiting_for_a_stop_does_not_stop_it() -> None:
    before = asyncio.all_tasks()
    async with bench(Script(close=HANG)) as b:
        await b.connect("live")
        stopping = asyncio.ensure_future(b.manager.disconnect())
        await settle()
        stopping.cancel()
        await settle()
        assert stopping.cancelled()
        again = asyncio.ensure_future(b.manager.disconnect())
        await settle()
        assert not again.done(), "it waits for what the first one began"
        await b.drive(again)  # type: ignore[arg-type]
        assert b.broker.closed == [0]
        assert b.manager.state is ConnectionState.DISCONNECTED
    assert asyncio.all_tasks() == before


async def test_a_connect_during_a_stop_begins_after_it() -> None:
    async with bench(Script(close=HANG)) as b:
        await b.connect("live")
        stopping = asyncio.ensure_future(b.manager.disconnect())
        await settle()
        connecting = asyncio.ensure_future(b.manager.connect(until="live"))
        await settle()
        assert len(b.broker.links) == 1
        await b.drive(asyncio.gather(stopping, connecting))  # type: ignore[arg-type]
        assert len(b.broker.links) == 2
        assert b.manager.is_live
        assert b.broker.closed == [0]


async def test_two_connects_at_once_make_one_connection() -> None:
    async with bench() as b:
        await b.drive(asyncio.gather(b.manager.connect(), b.manager.connect(until="live")))  # type: ignore[arg-type]
        assert len(b.broker.links) == 1


async def test_a_block_that_is_never_entered_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    async with bench(*[Script(open=DOWN)] * 9) as b:

        async def use() -> None:
            async with b.manager:
                raise AssertionError("there is no connection")

        using = asyncio.ensure_future(use())
        await b.until(lambda: len(b.broker.links) == 2)
        using.cancel()
        await settle()
        assert using.cancelled()
        assert asyncio.all_tasks() == before
        assert b.manager.state is ConnectionState.DISCONNECTED


async def test_a_callback_may_stop_the_stream_that_calls_it() -> None:
    def shown() -> list[tuple[str, ...]]:
        metric = next(metric for metric in REGISTRY if metric.name == "keepline_stream_state")
        return [labels for labels, _ in metric.samples() if labels[0] == "stopped from within"]

    async with bench(name="stopped from within") as b:

        async def stop(_: int) -> None:
            await b.manager.disconnect()

        b.manager.subscribe(ORDERS, stop)
        await b.connect("live")
        assert shown()
        b.link.bring("Order", 1)
        await b.until(lambda: b.manager.state is ConnectionState.DISCONNECTED)
        await settle()
        assert b.broker.closed == [0]
        assert not shown()
        await b.until(lambda: len(asyncio.all_tasks()) <= 2)


# --- one budget for each clock ---


async def test_a_budget_of_dials_belongs_to_the_clock_that_its_seconds_are_of() -> None:
    early, late = ManualClock(), ManualClock()
    late.advance(1000.0)
    for _ in range(100):
        process_dials(late).reserve(late.boottime())
    assert process_dials(late).reserve(late.boottime()) > 0.0
    assert process_dials(early).reserve(early.boottime()) == 0.0
    assert process_dials(early) is process_dials(early)
    async with bench(clock=late, dial_limiter=None) as b:
        connecting = asyncio.ensure_future(b.manager.connect())
        await settle()
        assert not b.broker.links, "the streams of a clock share its budget"
        await b.drive(connecting)  # type: ignore[arg-type]


def test_a_stream_refuses_settings_before_anything_starts() -> None:
    for settings in ({"backoff": ()}, {"attempts": 0}, {"heartbeat": 0.0}, {"parallel": 0}):
        with pytest.raises(ConfigError):
            StreamManager(lambda: None, settings=StreamSettings(**settings))  # type: ignore[arg-type, return-value]


# --- to the second ---


async def test_a_refused_subscription_is_repeated_when_its_wait_is_over() -> None:
    busy = TransientError("busy", category="server", status=503)
    async with bench(Script(subscribe={"Order": [busy]})) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        assert b.clock.boottime() == 1.0


async def test_a_failed_renewal_is_repeated_when_its_wait_is_over() -> None:
    settings = StreamSettings(backoff=(0.0, 7.0))
    async with bench(settings=settings) as b:
        await b.connect("live")
        b.broker.scripts = [Script(open=DOWN)]
        b.manager.renew()
        await b.until(lambda: len(b.broker.links) == 3)
        assert b.broker.dialed_at == [0.0, 0.0, 7.0]


async def test_after_a_renewal_silence_is_noticed_as_before() -> None:
    paced = Topic("Tick", ("Ticks",), ("NoTicks",), cadence=10.0)
    async with bench() as b:
        b.manager.subscribe(paced, inline=True)
        await b.connect()
        b.link.bring("Tick", 1)
        b.manager.renew()
        await b.until(lambda: b.broker.closed == [0])
        assert b.manager.is_live
        at = b.clock.boottime()
        await b.until(lambda: b.count(EventKind.STALE))
        assert b.clock.boottime() - at <= 10.0
        assert b.manager.blind() == ["Tick is stale"]


async def test_what_a_renewal_could_not_keep_is_asked_for() -> None:
    asked: list[int] = []

    async def reconcile() -> None:
        asked.append(b.link.number)

    async with bench(settings=StreamSettings(mailbox=2)) as b:
        b.manager.subscribe(ORDERS, inline=True)
        b.manager.add_reconciler(reconcile)
        await b.connect("live")

        def flood(link: Any, _: Topic) -> None:
            for number in range(3):
                link.bring("Order", number)

        b.broker.scripts = [Script(on_subscribe=flood)]
        b.manager.renew()
        await b.until(lambda: len(asked) == 2)
        assert asked == [0, 1]


async def test_while_the_session_is_closed_nothing_is_missed() -> None:
    session = CME_FUTURES
    paced = Topic("Tick", ("Ticks",), ("NoTicks",), cadence=10.0, session=session)
    saturday = ManualClock(wall=datetime(2026, 1, 3, 12, 0, tzinfo=UTC))
    monday = ManualClock(wall=datetime(2026, 1, 5, 15, 0, tzinfo=UTC))
    for clock, words in ((saturday, []), (monday, ["Tick has brought nothing yet"])):
        async with bench(clock=clock) as b:
            b.manager.subscribe(paced, inline=True)
            await b.connect()
            await settle()
            assert b.manager.blind() == words


async def test_a_person_is_called_again_after_a_life_that_was_good() -> None:
    refused = PermanentError("404", status=404)
    async with bench(Script(open=refused), Script(open=refused)) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        assert b.count(EventKind.ALARM) == 1, "once for the same trouble"
        b.link.bring("Order", 1)
        b.clock.advance(31.0)
        b.broker.scripts = [Script(open=refused)]
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert b.count(EventKind.ALARM) == 2


async def test_between_the_end_of_a_connection_and_its_notice_nobody_calls_it_live() -> None:
    async with bench() as b:
        await b.connect("live")
        b.link.end(Lost("cut", "the cable"))
        await b.until(lambda: not b.manager.is_live)
        [reason] = b.manager.blind()
        assert "the cable" in reason


async def test_a_probe_that_an_earlier_connection_did_not_answer_ends_no_later_one() -> None:
    async with bench(Script(probe=HANG)) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        await b.until(lambda: b.link.probes == 1)
        b.manager.renew()
        await b.until(lambda: b.link.probes == 1 and b.link.number == 1)
        assert len(b.broker.links) == 2
        assert b.manager.is_live


async def test_a_no_to_a_probe_is_an_answer() -> None:
    async with bench(Script(probe=PermanentError("no such method"))) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        await b.until(lambda: b.link.probes == 3)
        assert len(b.broker.links) == 1


async def test_while_there_is_no_connection_nothing_is_confirmed() -> None:
    async with bench(Script(), *dead()) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        b.link.end(Lost("cut"))
        await b.until(lambda: len(b.broker.links) == 3)
        assert b.manager.stats()["topics"] == {"Order": "wanted"}
        assert b.manager.stats()["live"] is False


async def test_a_subscription_that_is_refused_for_good_is_repeated_rarely() -> None:
    async with bench(Script(subscribe={"Order": [PermanentError("no such account")]})) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        assert b.clock.boottime() == 60.0


async def test_a_token_that_a_renewal_was_refused_with_is_asked_for_anew() -> None:
    refused: list[str] = []

    class Watched(StreamTokens):
        def refused(self) -> None:
            refused.append("newer")

    async with bench(tokens=Watched(lambda: "a")) as b:
        await b.connect("live")
        b.broker.scripts = [Script(open=REFUSED)]
        b.manager.renew()
        await b.until(lambda: refused)
        assert b.manager.is_live


async def test_a_renewal_that_dies_while_it_is_filled_is_repeated_without_waiting_for_its_time() -> (
    None
):
    async with bench(settings=StreamSettings(backoff=(0.0, 7.0))) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        dies = Script(subscribe={"Order": [HANG]}, on_open=lambda link: link.end(Lost("cut")))
        b.broker.scripts = [dies]
        b.manager.renew()
        await b.until(lambda: len(b.broker.links) == 3)
        assert b.broker.dialed_at == [0.0, 0.0, 7.0]
        assert b.count(EventKind.LOST) == 0


async def test_a_renewal_counts_in_the_budget_of_dials() -> None:
    async with bench(dial_limiter=DialLimiter(burst=1, per_second=0.1)) as b:
        await b.connect("live")
        b.manager.renew()
        await b.until(lambda: b.broker.open_links == 2)
        assert b.clock.boottime() == 10.0


# --- who is told ---


async def test_a_callback_that_comes_later_gets_what_comes_after_it() -> None:
    first: list[int] = []
    second: list[int] = []
    async with bench() as b:
        b.manager.subscribe(ORDERS, first.append, inline=True)
        await b.connect("live")
        b.link.bring("Order", 1)
        end = b.manager.subscribe(ORDERS, second.append, inline=True)
        b.link.bring("Order", 2)
        end()
        b.link.bring("Order", 3)
        assert (first, second) == ([1, 2, 3], [2])


async def test_a_refused_subscription_leaves_no_callback_behind() -> None:
    got: list[int] = []
    async with bench() as b:
        b.manager.subscribe(ORDERS, inline=True)
        with pytest.raises(ConfigError):
            b.manager.subscribe(Topic("Order", ("Other",)), got.append, inline=True)
        await b.connect("live")
        b.link.bring("Order", 1)
        assert got == []


async def test_what_nobody_wants_any_more_is_not_missed() -> None:
    paced = Topic("Tick", ("Ticks",), ("NoTicks",), cadence=10.0)
    async with bench() as b:
        end = b.manager.subscribe(paced, inline=True)
        await b.connect()
        b.link.bring("Tick", 1)
        end()
        end()
        b.clock.advance(100.0)
        await settle()
        assert b.manager.reasons == ()
        assert b.count(EventKind.STALE) == 0


async def test_the_event_router_is_let_go_with_the_stream() -> None:
    before = asyncio.all_tasks()
    routed: list[Any] = []

    async def route(event: Any) -> None:
        routed.append(event)

    async with bench(event_router=route) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        b.link.bring("Order", 1)
    assert len(routed) == 1
    assert asyncio.all_tasks() == before
