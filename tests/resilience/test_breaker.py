"""The circuit breaker as bots use it: calls, blocks, tasks, threads, and what their errors say."""

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from keepline.errors import (
    APIError,
    CircuitOpen,
    Closed,
    ConfigError,
    OutcomeUnknown,
    PermanentError,
    ProtocolError,
    QueueFull,
    RateLimited,
    TokenUnavailable,
    TransientError,
)
from keepline.resilience.breaker import CircuitBreaker, CircuitState, Verdict, judge
from keepline.resilience.circuit import CircuitSettings
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock

CLOSED, HALF_OPEN, OPEN, ISOLATED = (
    CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN, CircuitState.ISOLATED,
)  # fmt: skip
SETTINGS = {
    "minimum_calls": 3,
    "break_seconds": 10,
    "probes": 2,
    "slow_call_seconds": 5,
    "lease_seconds": 30,
}


def breaker(clock: Any = None, **more: Any) -> CircuitBreaker:
    return CircuitBreaker({**SETTINGS, **more}, clock=clock or ManualClock())


async def answer(value: str = "answer") -> str:
    return value


async def outage() -> None:
    raise TransientError("bad gateway", category="server", status=502)


async def fail(of: CircuitBreaker, times: int = 3, error: Callable[[], Any] = outage) -> None:
    for _ in range(times):
        with pytest.raises(TransientError):
            await of.call(error)


async def let_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_call_returns_what_the_function_returns_and_is_counted() -> None:
    of = breaker()
    assert await of.call(answer) == "answer"
    assert await of.call(answer, value="other") == "other"
    assert of.get_stats()["calls"] == 2


async def test_after_too_many_failures_nothing_is_called_until_the_break_is_over() -> None:
    clock = ManualClock()
    of = breaker(clock)
    await fail(of)
    clock.advance(4)
    called = False

    async def function() -> None:
        nonlocal called
        called = True

    with pytest.raises(
        CircuitOpen, match=r"the circuit default is open: .*; try again in 6 s"
    ) as caught:
        await of.call(function)
    assert (caught.value.retry_after, of.retry_after, called) == (6, 6, False)
    clock.advance(6)
    assert of.state is HALF_OPEN
    await of.call(function)
    await of.call(function)
    assert (called, of.state) == (True, CLOSED)


async def test_the_error_of_the_function_arrives_unchanged() -> None:
    error = TransientError("bad gateway", category="server")

    async def function() -> None:
        raise error

    with pytest.raises(TransientError) as caught:
        await breaker().call(function)
    assert caught.value is error


async def hang(begun: "list[str] | None" = None) -> None:
    if begun is not None:
        begun.append("begun")
    await asyncio.get_running_loop().create_future()


async def test_of_many_callers_half_open_lets_through_exactly_its_permits() -> None:
    clock = ManualClock()
    of = breaker(clock)
    await fail(of)
    clock.advance(10)
    begun: list[str] = []
    tasks = [asyncio.create_task(of.call(hang, begun)) for _ in range(20)]
    await let_run()
    assert len(begun) == 2
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 18
    for task in refused:
        with pytest.raises(
            CircuitOpen, match=r"half-open and its probes are under way; try again in 30 s"
        ):
            await task
    for task in set(tasks) - set(refused):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("how", ["call", "block"])
async def test_cancellations_count_as_nothing_and_pass_through(how: str) -> None:
    of = breaker()

    async def guarded() -> None:
        async with of:
            await hang()

    for _ in range(10):
        task = asyncio.create_task(of.call(hang) if how == "call" else guarded())
        await let_run()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    stats = of.get_stats()
    assert (of.state, stats["calls"], stats["failed"]) == (CLOSED, 0, 0)


@pytest.mark.parametrize("how", ["call", "block"])
async def test_a_cancelled_probe_gives_its_lease_back_at_once(how: str) -> None:
    clock = ManualClock()
    of = breaker(clock, probes=1)
    await fail(of)
    clock.advance(10)

    async def guarded() -> None:
        async with of:
            await hang()

    for _ in range(3):
        probe = asyncio.create_task(of.call(hang) if how == "call" else guarded())
        await let_run()
        with pytest.raises(CircuitOpen):
            await of.call(answer)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
    assert of.state is HALF_OPEN
    await of.call(answer)
    assert of.state is CLOSED


async def test_a_hung_probe_gives_its_lease_back_when_that_runs_out() -> None:
    clock = ManualClock()
    of = breaker(clock, probes=1)
    await fail(of)
    clock.advance(10)
    probe = asyncio.create_task(of.call(hang))
    await let_run()
    clock.advance(29)
    with pytest.raises(CircuitOpen):
        await of.call(answer)
    clock.advance(1)
    await of.call(answer)
    assert of.state is CLOSED
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)


async def test_a_probe_that_is_thrown_away_gives_its_lease_back() -> None:
    clock = ManualClock()
    of = breaker(clock, probes=1)
    await fail(of)
    clock.advance(10)
    for lock_is_held in (False, True):
        probe = of.call(hang)
        probe.send(None)
        if lock_is_held:  # the garbage collector may come while this very thread holds the lock
            with of._lock:
                probe.close()
            clock.advance(30)
        else:
            probe.close()
        assert of.get_stats()["probing"] == 0
    await of.call(answer)
    assert of.state is CLOSED


async def test_slow_calls_open_it_although_they_succeed() -> None:
    clock = ManualClock()
    of = breaker(clock)

    async def slow() -> None:
        clock.advance(5)

    for _ in range(3):
        await of.call(slow)
    assert of.state is OPEN


async def test_blocks_count_as_calls_do() -> None:
    of = breaker()
    async with of as inside:
        assert inside is of
    with of:
        pass
    for _ in range(2):
        with pytest.raises(TransientError):
            async with of:
                await outage()
    assert of.state is OPEN
    with pytest.raises(CircuitOpen), of:
        raise AssertionError("is not entered")
    with pytest.raises(CircuitOpen):
        async with of:
            raise AssertionError("is not entered")
    assert of.get_stats()["refused"] == 2


async def test_nested_blocks_and_those_of_other_tasks_are_told_apart() -> None:
    clock = ManualClock()
    of = breaker(clock, minimum_calls=100)
    release = asyncio.Event()

    async def slow() -> None:
        async with of:
            await release.wait()

    async with of:
        task = asyncio.create_task(slow())
        await let_run()
        async with of:
            pass
        clock.advance(5)
        async with of:
            pass
        with of:
            pass
    release.set()
    await task
    async with of:
        pass
    stats = of.get_stats()
    assert (stats["calls"], stats["slow"]) == (
        6,
        2,
    )  # the outermost block and that of the other task


async def test_blocks_of_tasks_that_were_started_by_one_task_keep_their_own_times() -> None:
    clock = ManualClock()
    of = breaker(clock, minimum_calls=100)
    async with of:
        pass  # what follows inherits the place of this block
    leave = [asyncio.Event() for _ in range(6)]

    async def hold(event: asyncio.Event) -> None:
        for _ in range(2):
            async with of:
                await event.wait()

    tasks = []
    for event in leave:
        tasks.append(asyncio.create_task(hold(event)))
        await let_run()
        clock.advance(1)
    with of:
        for event in reversed(leave):  # after 1 to 6 seconds, the last one first
            event.set()
    await asyncio.gather(*tasks)
    stats = of.get_stats()
    assert (stats["calls"], stats["slow"]) == (14, 2)


def test_a_thread_that_inherits_a_context_keeps_its_own_times() -> None:
    clock = ManualClock()
    of = breaker(clock, minimum_calls=100)
    with of:
        pass
    context, inside, leave = contextvars.copy_context(), threading.Event(), threading.Event()

    def hold() -> None:
        with of:
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=context.run, args=(hold,))
    thread.start()
    assert inside.wait(30)
    clock.advance(4)
    with of:
        clock.advance(1)
        leave.set()
        thread.join(30)
    assert (of.get_stats()["calls"], of.get_stats()["slow"]) == (3, 1)


async def test_tasks_that_start_their_successor_inside_a_block_keep_no_chain_of_places() -> None:
    of = breaker()
    last = asyncio.get_running_loop().create_future()

    async def one(left: int) -> None:
        async with of:
            if left:
                successors.append(asyncio.create_task(one(left - 1)))
            await asyncio.sleep(0)
        if not left:
            place, length = of._places.get(), 0
            while place is not None:
                place, length = place.outer, length + 1
            last.set_result(length)

    successors = [asyncio.create_task(one(50))]
    assert await last < 5
    await asyncio.gather(*successors)


async def test_a_block_left_in_another_context_is_no_error() -> None:
    of = breaker()

    async def enter() -> None:
        await of.__aenter__()

    await asyncio.create_task(enter())
    await of.__aexit__(None, None, None)
    assert (of.state, of.get_stats()["calls"]) == (CLOSED, 0)


OUTAGE = TransientError("", category="network")


async def test_results_of_before_the_break_do_not_decide_half_open() -> None:
    clock = ManualClock()
    of = breaker(clock, probes=1)
    early = of.enter()
    await fail(of)
    clock.advance(10)
    probe = of.enter()
    of.leave(early, 0.1, OUTAGE)
    of.leave(early, 0.1)
    assert of.state is HALF_OPEN
    of.leave(probe, 0.1)
    assert (of.state, of.get_stats()["late"]) == (CLOSED, 2)


async def test_a_call_that_was_measured_elsewhere_counts_as_it_is_told() -> None:
    of = breaker(minimum_calls=4)
    of.leave(of.enter(), 0.5)
    of.leave(of.enter(), 60)
    of.leave(of.enter(), 0.5, OUTAGE)
    of.leave(of.enter(), 0.5, RateLimited(""))
    stats = of.get_stats()
    assert (stats["calls"], stats["failed"], stats["slow"]) == (3, 1, 1)
    of.leave(of.enter(), 0.5, OUTAGE)
    with pytest.raises(CircuitOpen):
        of.enter()


async def test_each_host_and_class_of_operations_has_a_circuit_of_its_own() -> None:
    clock = ManualClock()
    of = breaker(clock)
    orders, bars = of.for_("api.topstepx.com", "orders"), of.for_("api.topstepx.com", "history")
    assert of.for_("api.topstepx.com", "orders") is orders
    await fail(bars)
    assert (of.state, orders.state, bars.state) == (CLOSED, CLOSED, OPEN)
    with pytest.raises(CircuitOpen, match=r"the circuit api\.topstepx\.com history is open"):
        await bars.call(answer)
    stats = json.loads(json.dumps(of.get_stats()))
    assert {name: one["state"] for name, one in stats["circuits"].items()} == {
        "api.topstepx.com orders": "closed",
        "api.topstepx.com history": "open",
    }
    assert stats["circuits"]["api.topstepx.com history"]["failure_rate"] == 1.0
    assert repr(of) == "<CircuitBreaker default closed, 2 more circuits>"


@pytest.mark.parametrize("key", [("", "orders"), (None, "orders"), ("host", 7), (5, "")])
def test_a_circuit_is_named_by_two_texts(key: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^\[host\]: a circuit is named by two texts"):
        breaker().for_(*key)


def test_ids_in_place_of_classes_of_operations_are_noticed() -> None:
    of, gauge = breaker(), REGISTRY.gauge("circuit_state", "", "host", "operations")
    for number in range(1000):
        of.for_("many.example", f"order {number}")
        gauge.forget("many.example", f"order {number}")
    with pytest.raises(ConfigError, match="name a class of operations, not an order or a request"):
        of.for_("many.example", "order 1000")


async def test_by_hand_it_is_isolated_and_closed_with_all_its_circuits() -> None:
    clock = ManualClock()
    of = breaker(clock)
    orders = of.for_("host", "orders")
    of.isolate()
    for one in (of, orders):
        assert (one.state, one.retry_after) == (ISOLATED, None)
        with pytest.raises(
            CircuitOpen, match=r"is isolated: nothing is sent until close\(\) is called"
        ) as caught:
            await one.call(answer)
        assert caught.value.retry_after is None
    clock.advance(1e6)
    assert of.state is ISOLATED
    of.close()
    assert await orders.call(answer) == "answer"


async def test_the_wall_clock_does_not_matter() -> None:
    clock = ManualClock()
    of = breaker(clock)
    for jump in (3600, -7200, 3600):
        clock.jump_wall(jump)
        await fail(of, 1)
    assert of.retry_after == 10
    clock.jump_wall(3600)
    assert of.state is OPEN
    clock.advance(10)
    clock.jump_wall(-3600)
    assert of.state is HALF_OPEN


async def test_every_change_is_a_metric_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    metrics = {metric.name: metric for metric in REGISTRY}
    labels = ("metrics.example", "orders")
    clock = ManualClock()
    of = breaker(clock, probes=1).for_(*labels)
    state = metrics["keepline_circuit_state"]
    assert state.value(*labels) == 0
    with caplog.at_level("INFO", logger="keepline.resilience"):
        await fail(of)
        assert state.value(*labels) == 2
        with pytest.raises(CircuitOpen):
            await of.call(answer)
        clock.advance(10)
        await of.call(answer)
    assert state.value(*labels) == 0
    changes = metrics["keepline_circuit_transitions_total"]
    assert [changes.value(*labels, to) for to in ("open", "half_open", "closed", "isolated")] == [
        1,
        1,
        1,
        0,
    ]
    assert metrics["keepline_circuit_refused_total"].value(*labels) == 1
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "Circuit open"),
        ("WARNING", "Circuit half_open"),
        ("INFO", "Circuit closed"),
    ]
    assert caplog.records[0].fields == {  # type: ignore[attr-defined]
        "circuit": "metrics.example orders", "was": "closed", "why": "too many calls failed or were slow",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        *(
            (TransientError("", category=category, status=status), Verdict.FAILED)
            for category, status in (("server", 502), ("network", None), ("timeout", None), ("timeout", 408))
        ),
        (OutcomeUnknown("", category="network"), Verdict.FAILED),
        (ProtocolError("a page where JSON was due"), Verdict.FAILED),
        (TimeoutError(), Verdict.FAILED),
        (ConnectionResetError(), Verdict.FAILED),
        (ValueError(), Verdict.FAILED),
        *(
            (PermanentError("", category=category, status=status), Verdict.ANSWERED)
            for category, status in (("client", 400), ("auth", 401), ("auth", 403), ("client", 422), ("server", 501))
        ),
        (APIError("", category="auth", status=401), Verdict.ANSWERED),
        (TransientError("", category="rate_limit", status=429), Verdict.SILENT),
        (PermanentError("certificate", category="network"), Verdict.SILENT),
        (RateLimited(""), Verdict.SILENT),
        (CircuitOpen(""), Verdict.SILENT),
        (QueueFull(""), Verdict.SILENT),
        (Closed(""), Verdict.SILENT),
        (TokenUnavailable(""), Verdict.SILENT),
        (ConfigError(""), Verdict.SILENT),
        (asyncio.CancelledError(), Verdict.SILENT),
        (KeyboardInterrupt(), Verdict.SILENT),
    ],
)  # fmt: skip
def test_only_what_speaks_against_the_other_side_counts(
    error: BaseException, verdict: Verdict
) -> None:
    assert judge(error) is verdict


async def test_refusals_and_429_never_open_it_and_4xx_closes_it_half_open() -> None:
    clock = ManualClock()
    of = breaker(clock, probes=1)

    async def refuse(error: Exception) -> None:
        raise error

    errors = [
        RateLimited("", retry_after=1),
        TransientError("", category="rate_limit", status=429),
        PermanentError("", category="auth", status=401),
        PermanentError("", category="client", status=404),
    ]
    for error in errors * 10:
        with pytest.raises(type(error)):
            await of.call(refuse, error)
    assert (of.state, of.get_stats()["calls"]) == (CLOSED, 20)
    of.close()
    await fail(of)
    clock.advance(10)
    with pytest.raises(PermanentError):
        await of.call(refuse, errors[-1])
    assert of.state is CLOSED


async def test_the_judgement_may_be_your_own() -> None:
    of = CircuitBreaker(SETTINGS, clock=ManualClock(), judge=lambda error: Verdict.FAILED)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await of.call(cancelled)
    assert of.state is OPEN
    assert of.for_("host")._judge is of._judge


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"failure_rat": 0.5}, r"^\[failure_rat\]: is not known; did you mean failure_rate\?"),
        ({"zzz": 1}, r"^\[zzz\]: is not known; there are: failure_rate, "),
        ({"probes": 0}, r"^\[probes\]: is a whole number from 1 up, not 0"),
        ([], r"^\[config\]: a breaker takes a mapping of settings, not list"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CircuitBreaker(config)


def test_settings_may_be_an_object_or_nothing() -> None:
    assert CircuitBreaker(CircuitSettings(probes=5)).settings.probes == 5
    assert CircuitBreaker().settings == CircuitSettings()


def test_eight_threads_share_one_breaker_and_half_open_lets_through_its_permits() -> None:
    clock = ManualClock()
    of = breaker(clock, probes=3, minimum_calls=8)
    ready, done = threading.Barrier(8), threading.Barrier(8)
    passed: list[str] = []

    def work() -> None:
        ready.wait(30)
        for _ in range(200):
            with of:
                pass
        try:
            with of:
                done.wait(30)
                raise TransientError("", category="network")
        except (TransientError, CircuitOpen):
            pass
        if done.wait(30) == 0:
            of.isolate()
            of.close()
            for _ in range(8):
                of.leave(of.enter(), 0.1, OUTAGE)
            clock.advance(10)
        ready.wait(30)
        try:
            with of:
                passed.append("passed")
                done.wait(30)
        except CircuitOpen:
            done.wait(30)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert (len(passed), of.state) == (3, CLOSED)


def test_good_calls_of_many_threads_are_counted() -> None:
    of = breaker()
    threads = [
        threading.Thread(target=lambda: [of.leave(of.enter(), 0.1) for _ in range(500)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert of.get_stats()["calls"] == 4000
