"""What a stream says of itself: fresh, stale, reconciling, live; renewed without a gap; stopped without remains."""

import asyncio
import threading
from typing import Any

import pytest
from tests.stream.scripted import HANG, ORDERS, QUOTES, Script, bench, settle

from keepline.errors import Closed, StreamNotLive, TransientError
from keepline.stream.events import ConnectionState, EventKind, StreamMessage
from keepline.stream.health import HealthStatus
from keepline.stream.port import Lost, Topic
from keepline.stream.redial import DialLimiter
from keepline.stream.settings import StreamSettings
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock

PACED = Topic("Tick", ("Ticks",), ("NoTicks",), cadence=10.0)


class CountingClock(ManualClock):
    """Knows how often somebody lay down to sleep."""

    sleeps = 0

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        await super().sleep(seconds)


# --- reconciliation ---


async def test_after_each_connect_what_was_missed_is_asked_for_before_live() -> None:
    async with bench() as b:
        order: list[Any] = []

        async def reconcile() -> None:
            order.append(("asked", b.link.number, b.manager.is_live))
            b.link.bring("Order", "while asking")

        b.manager.subscribe(ORDERS, lambda what: order.append(what), inline=True)
        b.manager.add_reconciler(reconcile)
        await b.connect("live")
        assert order == [("asked", 0, False), "while asking"]
        assert b.kinds == [EventKind.CONNECTED, EventKind.RECONCILING, EventKind.LIVE]
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert order[2:] == [("asked", 1, False), "while asking"]


async def test_a_failed_query_is_never_live_and_is_asked_again() -> None:
    async with bench() as b:
        answers: list[Exception | None] = [TransientError("503"), ValueError("nonsense"), None]

        async def reconcile() -> None:
            if (answer := answers.pop(0)) is not None:
                raise answer

        b.manager.subscribe(ORDERS)
        b.manager.add_reconciler(reconcile)
        await b.connect()
        await b.until(lambda: "nonsense" in str(b.manager.blind()))
        assert not b.manager.is_live
        with pytest.raises(StreamNotLive, match="reconciling: ValueError: nonsense"):
            b.manager.require_live()
        assert EventKind.LIVE not in b.kinds
        await b.until(lambda: b.manager.is_live)
        assert answers == []


async def test_a_query_that_hangs_is_given_up_and_asked_again() -> None:
    async with bench(settings=StreamSettings(reconcile_timeout=20.0)) as b:
        asked: list[float] = []

        async def reconcile() -> None:
            asked.append(b.clock.boottime())
            if len(asked) == 1:
                await asyncio.Event().wait()

        b.manager.add_reconciler(reconcile)
        await b.connect("live")
        assert asked == [0.0, 21.0]


async def test_a_query_waits_for_the_subscriptions_and_a_new_connection_asks_anew() -> None:
    late = Script(subscribe={"Order": [TransientError("503", category="server", status=503)]})
    async with bench(late) as b:
        seen: list[list[str]] = []

        async def reconcile() -> None:
            seen.append(list(b.link.subscribed))

        b.manager.subscribe(ORDERS)
        b.manager.add_reconciler(reconcile)
        await b.connect("live")
        assert seen == [["Order", "Order"]]


async def test_data_in_the_frame_that_confirms_is_data_of_a_confirmed_topic() -> None:
    """A topic whose first message comes before its confirmation is watched and asked about like any other one."""
    at_once = Script(on_subscribe=lambda link, topic: link.bring(topic.channel, "first"))
    async with bench(at_once) as b:
        rounds: list[list[str]] = []

        async def reconcile() -> None:
            rounds.append(list(b.link.subscribed))

        b.manager.add_reconciler(reconcile)
        await b.connect("live")
        assert rounds == [[]]
        b.manager.subscribe(ORDERS)
        await b.until(lambda: len(rounds) == 2 and b.manager.is_live)
        assert rounds[1] == ["Order"], "what happened before the subscription is asked for"
        b.manager.subscribe(PACED)
        await b.until(lambda: b.manager.is_live and not b.manager.blind("Tick"))
        await b.until(
            lambda: any(e.kind is EventKind.STALE and e.channel == "Tick" for e in b.told)
        )
        assert not b.manager.is_live


async def test_an_object_that_reconciles_is_told_of_the_connection() -> None:
    async with bench() as b:
        calls: list[str] = []

        class Books:
            def begin(self) -> None:
                calls.append("begin")

            async def reconcile(self) -> None:
                calls.append("reconcile")

            def lost(self) -> None:
                calls.append("lost")
                raise ValueError("a bug of theirs stops nobody")

        got: list[str] = []
        b.manager.subscribe(ORDERS, got.append, inline=True)
        remove = b.manager.add_reconciler(Books())
        b.broker.scripts = [Script(on_open=lambda link: link.bring("Order", "at once"))]
        await b.connect("live")
        assert got == ["at once"], "it keeps messages by itself"
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert calls == ["begin", "reconcile", "lost", "begin", "reconcile"]
        b.manager.request_reconciliation("a doubt")
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 3)
        assert calls[5:] == ["begin", "reconcile"]
        remove()
        b.manager.request_reconciliation("nobody is there")
        assert b.manager.is_live


async def test_more_messages_than_can_be_kept_are_told_and_asked_for_again() -> None:
    async with bench(settings=StreamSettings(mailbox=3)) as b:
        rounds: list[int] = []
        got: list[int] = []

        async def reconcile() -> None:
            rounds.append(len(rounds))
            for number in range(5 if len(rounds) == 1 else 1):
                b.link.bring("Order", number)

        b.manager.subscribe(ORDERS, got.append, inline=True)
        b.manager.add_reconciler(reconcile)
        await b.connect("live")
        assert rounds == [0, 1]
        assert got == [0], "what came before the second query is in its answer"
        assert b.count(EventKind.OVERFLOW) == 1


async def test_a_never_mailbox_that_overflows_leads_to_a_reconciliation() -> None:
    async with bench(settings=StreamSettings(mailbox=2)) as b:
        gate = asyncio.Event()
        rounds: list[str] = []
        got: list[int] = []

        async def slow(number: int) -> None:
            await gate.wait()
            got.append(number)

        async def reconcile() -> None:
            rounds.append("asked")

        b.manager.subscribe(ORDERS, slow)
        b.manager.add_reconciler(reconcile)
        await b.connect("live")
        for number in range(6):
            b.link.bring("Order", number)
            await settle()
        assert b.count(EventKind.OVERFLOW) == 1
        assert b.manager.health is HealthStatus.DEGRADED
        gate.set()
        await b.until(lambda: len(rounds) == 2 and b.manager.is_live)
        assert got == [0, 1, 2]
        assert b.manager.health is HealthStatus.HEALTHY


# --- health ---


async def test_silence_is_said_within_its_second_and_its_end_at_once() -> None:
    async with bench() as b:
        b.manager.subscribe(PACED)
        await b.connect()
        await b.until(lambda: b.manager.blind() == ["Tick has brought nothing yet"])
        b.link.bring("Tick", 1)
        await b.until(lambda: b.manager.is_live)
        at = b.clock.boottime()
        await b.until(lambda: b.count(EventKind.STALE))
        assert b.clock.boottime() == at + 10.0
        assert b.manager.blind("Tick") == ["Tick is stale"]
        assert b.manager.health is HealthStatus.UNHEALTHY
        b.link.bring("Tick", 2)
        assert b.manager.is_live
        assert b.told[-1].kind is EventKind.LIVE


async def test_staleness_climbs_from_a_probe_to_a_new_connection_to_an_alarm() -> None:
    async with bench() as b:
        b.manager.subscribe(PACED)
        await b.connect()
        await b.until(lambda: b.link.probes)
        first = b.link
        await b.until(lambda: ("unsubscribe", "Tick") in first.asked)
        assert first.asked.count(("subscribe", "Tick")) == 1
        await b.until(lambda: len(b.broker.links) == 2)
        assert first.asked.count(("subscribe", "Tick")) == 2
        await b.until(lambda: b.count(EventKind.ALARM))
        assert len(b.broker.links) >= 4


async def test_a_probe_without_an_answer_makes_a_new_connection() -> None:
    async with bench(Script(probe=HANG)) as b:
        b.manager.subscribe(ORDERS)
        await b.connect("live")
        await b.until(lambda: len(b.broker.links) == 2)
        assert b.broker.links[0].probes == 1
        assert b.clock.boottime() == 120.0 + 15.0
        assert any("probe" in event.reason for event in b.told if event.kind is EventKind.LOST)


async def test_a_quiet_stream_does_nothing_between_its_heartbeats() -> None:
    clock = CountingClock()
    async with bench(clock=clock) as b:
        b.manager.subscribe(ORDERS)
        await b.connect("live")
        await settle()
        before = clock.sleeps
        for number in range(50):
            b.link.bring("Order", number)
        await settle()
        assert clock.sleeps <= before + 1, "the first of a topic wakes it, no other message does"
        clock.advance(30.0)
        await settle()
        assert clock.sleeps <= before + 2


# --- renewal ---


async def test_a_newer_token_takes_over_without_a_gap_and_nothing_comes_twice() -> None:
    async with bench() as b:
        got: list[int] = []
        b.manager.subscribe(ORDERS, got.append, inline=True)
        b.manager.subscribe(QUOTES)
        await b.connect("live")
        old = b.link
        old.bring("Order", 1)

        def both(link: Any, topic: Topic) -> None:
            if topic is ORDERS:
                old.bring("Order", 2)
                link.bring("Order", 2)
                link.bring("Order", 3)  # the old one is late with it
                old.bring("Order", 3)
                link.bring("Order", 4)  # only the new one has it before the switch
                old.bring("Order", 5)  # the new one is late with it

        b.broker.scripts = [Script(on_subscribe=both)]
        b.manager.renew("the token is a new one")
        await b.until(lambda: b.manager.link is not old)
        assert b.broker.closed == [], "calls on the old one may still be answered"
        b.link.bring("Order", 5)
        b.link.bring("Order", 6)
        old.bring("Order", 7)
        assert got == [1, 2, 3, 5, 4, 6]
        assert b.link.number == 1
        assert b.count(EventKind.LOST) == 0
        assert b.manager.is_live
        b.clock.advance(6.0)
        await settle()
        assert b.broker.closed == [0]
        b.link.bring("Order", 6)
        assert got[-2:] == [6, 6], "after a while a repetition is news"


async def test_a_renewal_that_fails_leaves_the_old_connection_alone_and_is_tried_again() -> None:
    down = TransientError("503", category="server", status=503)
    async with bench(Script(), Script(open=down), Script(subscribe={"Order": [HANG]})) as b:
        got: list[int] = []
        b.manager.subscribe(ORDERS, got.append, inline=True)
        await b.connect("live")
        old = b.link
        b.manager.renew()
        await b.until(lambda: len(b.broker.links) == 4 and b.broker.closed == [1, 2, 0])
        assert b.count(EventKind.LOST) == 0
        old.bring("Order", 1)
        b.link.bring("Order", 2)
        assert got == [2]


async def test_where_one_connection_is_allowed_the_old_one_goes_first() -> None:
    async with bench(settings=StreamSettings(two_connections=False)) as b:
        await b.connect("live")
        closed_before_dial: list[bool] = []
        b.broker.scripts = [
            Script(on_open=lambda _: closed_before_dial.append(b.broker.closed == [0]))
        ]
        b.manager.renew()
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert closed_before_dial == [True]
        assert b.count(EventKind.LOST) == 1


async def test_a_connection_that_dies_while_it_is_replaced_is_lost_and_made_anew() -> None:
    async with bench(Script(), Script(open=HANG)) as b:
        b.manager.subscribe(ORDERS)
        await b.connect("live")
        b.manager.renew()
        await b.until(lambda: len(b.broker.links) == 2)
        b.broker.links[0].end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert sorted(b.broker.closed) == [0, 1]
        assert b.link.number == 2


async def test_a_connection_that_its_owner_knows_to_be_bad_is_replaced() -> None:
    async with bench() as b:
        b.manager.reconnect("nobody is there")
        b.manager.renew()
        await b.connect("live")
        b.manager.reconnect("a session conflict")
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        lost = next(event for event in b.told if event.kind is EventKind.LOST)
        assert "a session conflict" in lost.reason


# --- callbacks ---


async def test_a_callback_that_raises_hangs_or_blocks_stops_no_other() -> None:
    async with bench(settings=StreamSettings(stop_timeout=0.5)) as b:
        got: list[int] = []
        gate, entered = threading.Event(), threading.Event()

        def raises(_: int) -> None:
            raise ValueError("no")

        async def never(_: int) -> None:
            await asyncio.Event().wait()

        def blocks(_: int) -> None:
            entered.set()
            gate.wait()

        async def fine(number: int) -> None:
            got.append(number)

        for callback in (raises, never, blocks, fine):
            b.manager.subscribe(ORDERS, callback)
        await b.connect("live")
        for number in range(3):
            b.link.bring("Order", number)
        await b.until(lambda: got == [0, 1, 2] and entered.is_set())
        assert b.manager.is_live
        stats = b.manager.stats()
        assert stats["topics"] == {"Order": "first_data"}
        gate.set()


async def test_quotes_are_conflated_by_key_for_a_slow_callback() -> None:
    async with bench() as b:
        gate = asyncio.Event()
        got: list[Any] = []

        async def slow(contract: str, price: int) -> None:
            await gate.wait()
            got.append((contract, price))

        b.manager.subscribe(Topic("Quote", ("Quotes",), policy="conflate"), slow)
        await b.connect("live")
        b.link.bring("Quote", "A", 0)
        await settle()
        for price in range(1, 4):
            b.link.bring("Quote", "A", price)
            b.link.bring("Quote", "B", price)
        gate.set()
        await b.until(lambda: len(got) == 3)
        assert got == [("A", 0), ("A", 3), ("B", 3)]


async def test_the_event_router_gets_every_message_and_a_bad_reader_costs_one_line() -> None:
    class Router:
        def __init__(self) -> None:
            self.events: list[StreamMessage] = []

        async def route(self, event: StreamMessage) -> None:
            self.events.append(event)

    def key_of(channel: str, arguments: Any) -> str:
        return str(arguments[0]["key"])

    router = Router()
    async with bench(event_router=router, key_of=key_of) as b:
        b.manager.subscribe(Topic("Quote", key="A"))
        await b.connect("live")
        b.link.bring("Quote", {"key": "A"})
        b.link.bring("Quote", {})
        await b.until(lambda: router.events)
        assert [(e.channel, e.arguments) for e in router.events] == [("Quote", ({"key": "A"},))]
        assert b.manager.stats()["unreadable"] == 1
        assert b.manager.last_data_at is not None


# --- the end ---


async def test_a_stop_ends_within_its_time_whatever_hangs_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with bench(Script(close=HANG, subscribe={"Order": [HANG]})) as b:
        b.manager.subscribe(ORDERS, lambda _: None)
        await b.connect()
        at = b.clock.boottime()
        await b.drive(b.manager.disconnect())
        assert b.clock.boottime() - at <= 2.0
        assert b.manager.state is ConnectionState.DISCONNECTED
        assert b.manager.health is HealthStatus.UNHEALTHY
    assert asyncio.all_tasks() == before


async def test_a_stop_while_connecting_is_told_to_who_waits() -> None:
    async with bench(Script(open=HANG)) as b:
        connecting = asyncio.ensure_future(b.manager.connect())
        await b.until(lambda: b.broker.links)
        await b.manager.disconnect()
        with pytest.raises(Closed, match="stream test was disconnected"):
            await connecting
        assert b.broker.closed == [0]


async def test_who_stops_waiting_does_not_stop_the_attempts() -> None:
    down = TransientError("down", category="network")
    async with bench(*[Script(open=down)] * 3) as b:
        connecting = asyncio.ensure_future(b.manager.connect())
        await b.until(lambda: len(b.broker.links) == 2)
        connecting.cancel()
        await b.until(lambda: b.manager.state is ConnectionState.CONNECTED)
        await b.manager.connect()
        await b.manager.connect(until="live")


async def test_what_is_wanted_survives_a_stop_and_callbacks_go_on_after_it() -> None:
    async with bench() as b:
        got: list[int] = []

        async def take(number: int) -> None:
            got.append(number)

        b.manager.subscribe(ORDERS, take)
        for number in range(2):
            await b.connect("live")
            b.link.bring("Order", number)
            await b.until(lambda: len(got) == number + 1)  # noqa: B023 - awaited at once
            await b.manager.disconnect()
        assert got == [0, 1]
        with pytest.raises(StreamNotLive, match="disconnected"):
            _ = b.manager.link


async def test_a_listener_that_left_is_told_nothing_more() -> None:
    async with bench() as b:
        kinds: list[str] = []

        async def listen(event: Any) -> None:
            kinds.append(event.kind)

        remove = b.manager.on_event(listen)
        await b.connect("live")
        await b.until(lambda: kinds == ["connected", "live"])
        remove()
        remove()
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert kinds == ["connected", "live"]


async def test_numbers_of_a_stream_are_there_while_it_is_and_go_with_it() -> None:
    def shown(name: str) -> dict[tuple[str, ...], float]:
        metric = next(metric for metric in REGISTRY if metric.name == f"keepline_{name}")
        return {labels: value for labels, value in metric.samples() if labels[0] == "numbered"}

    async with bench(name="numbered") as b:
        b.manager.subscribe(ORDERS)
        await b.connect("live")
        b.link.bring("Order", 1)
        assert shown("stream_state") == {("numbered",): 2.0}
        assert shown("stream_live") == {("numbered",): 1.0}
        assert shown("stream_last_data_timestamp_seconds") == {
            ("numbered",): b.clock.wall().timestamp()
        }
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert shown("stream_reconnects_total") == {("numbered", "network"): 1.0}
        assert "numbered connected" in repr(b.manager)
    assert shown("stream_state") == {}


async def test_all_streams_of_a_process_share_one_budget_of_dials() -> None:
    limiter = DialLimiter(burst=1, per_second=0.1)
    clock = ManualClock()
    async with (
        bench(clock=clock, dial_limiter=limiter) as one,
        bench(clock=clock, dial_limiter=limiter) as other,
    ):
        await one.connect()
        await other.connect()
        assert (one.broker.dialed_at, other.broker.dialed_at) == ([0.0], [10.0])


async def test_a_stopped_stream_lets_a_hanging_callback_go() -> None:
    before = asyncio.all_tasks()
    async with bench() as b:

        async def never(_: int) -> None:
            await asyncio.Event().wait()

        b.manager.subscribe(ORDERS, never)
        await b.connect("live")
        b.link.bring("Order", 1)
        await settle()
    assert asyncio.all_tasks() == before
