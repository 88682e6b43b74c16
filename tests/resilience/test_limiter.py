"""The rate limiter as bots use it: tasks, loops and threads before one budget."""

import asyncio
import gc
import json
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepline.clock import SystemClock
from keepline.errors import ConfigError, RateLimited
from keepline.resilience.limiter import LONGEST_PAUSE, RateLimiter
from keepline.resilience.limits import LimitRule
from keepline.resilience.turnstile import Lane
from keepline.resilience.waiting import Line
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock

BARS = "/api/History/retrieveBars"
ORDERS = "/api/Order/place"


def limiter(limit: int = 2, window: float = 10.0, *, clock: Any = None, **more: Any) -> RateLimiter:
    rule = {
        "limit": limit,
        "window_seconds": window,
        "margin_seconds": 0,
        "endpoints": ["*"],
        **more,
    }
    return RateLimiter({"limits": {"all": rule}}, clock=clock or ManualClock(), log_size=5000)


def spend(of: RateLimiter, count: int, endpoint: str = ORDERS) -> None:
    for _ in range(count):
        assert of.try_acquire(endpoint)


async def let_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def queue(of: RateLimiter, done: list[str], name: str, **more: Any) -> "asyncio.Task[None]":
    """A task that waits and then writes its name down, in the queue when this returns."""

    async def wait() -> None:
        await of.acquire(ORDERS, **more)
        done.append(name)

    task = asyncio.create_task(wait())
    await let_run()
    return task


def used(of: RateLimiter, rule: str = "all") -> int:
    number: int = of.get_stats()["limits"][rule]["used"]
    return number


def test_a_free_call_does_not_wait_for_the_loop() -> None:
    with pytest.raises(StopIteration):
        limiter().acquire(ORDERS).send(None)


async def test_a_call_beyond_the_budget_waits_until_the_window_has_passed() -> None:
    clock = ManualClock()
    of = limiter(2, 10, clock=clock)
    spend(of, 2)
    clock.advance(3)
    task = asyncio.create_task(of.acquire(ORDERS))
    await clock.run_until(task.done)
    assert clock.boottime() == 10
    assert of.grants(ORDERS) == [0, 0, 10]


async def test_who_waits_first_is_served_first_and_newcomers_do_not_pass() -> None:
    clock = ManualClock()
    of, done = limiter(1, 10, clock=clock), list[str]()
    spend(of, 1)
    tasks = [await queue(of, done, str(number)) for number in range(5)]
    for _ in range(50):
        assert not of.try_acquire(ORDERS)
        clock.advance(1)
        await let_run()
    assert all(task.done() for task in tasks)
    assert done == ["0", "1", "2", "3", "4"]


async def test_a_heavy_call_is_not_starved_by_light_ones() -> None:
    clock = ManualClock()
    of, done = limiter(5, 10, clock=clock), list[str]()
    spend(of, 1)
    heavy = await queue(of, done, "heavy", weight=5)
    light = [await queue(of, done, "light") for _ in range(5)]
    await clock.run_until(lambda: all(task.done() for task in (heavy, *light)))
    assert done[0] == "heavy"


async def test_cancels_go_before_orders_before_queries_before_history() -> None:
    clock = ManualClock()
    of, done = limiter(1, 10, clock=clock), list[str]()
    spend(of, 1)
    names = ["history", "normal", "query", "order", "cancel"]
    tasks = [await queue(of, done, name, priority=name) for name in names]
    await clock.run_until(lambda: all(task.done() for task in tasks))
    assert done == ["cancel", "order", "normal", "query", "history"]


async def test_an_idle_budget_does_not_wait_for_a_busy_one() -> None:
    of = RateLimiter(clock=ManualClock())
    spend(of, 50, BARS)
    waiting = asyncio.create_task(of.acquire(BARS))
    await let_run()
    assert of.get_wait_time(ORDERS) == 0
    with pytest.raises(StopIteration):
        of.acquire(ORDERS).send(None)
    waiting.cancel()


async def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_time_to_come_back() -> (
    None
):
    clock = ManualClock()
    of = limiter(1, 10, clock=clock)
    spend(of, 1)
    clock.advance(4)
    with pytest.raises(
        RateLimited, match=r"the budget of all: 1 per 10 s is used up: .* in 6 s"
    ) as caught:
        await of.acquire(ORDERS, deadline=5)
    assert caught.value.retry_after == 6
    assert clock.next_wake is None
    with pytest.raises(RateLimited):
        of.acquire_sync(ORDERS, deadline=0)
    assert of.get_stats()["refused"] == 2
    await clock.run_until(asyncio.create_task(of.acquire(ORDERS, deadline=6)).done)


async def test_a_pause_refuses_at_once_who_waits_with_a_deadline_that_it_breaks() -> None:
    clock = ManualClock()
    of = limiter(1, 10, clock=clock)
    spend(of, 1)
    task = asyncio.create_task(of.acquire(ORDERS, deadline=20))
    await let_run()
    of.feedback(ORDERS, 30)
    with pytest.raises(RateLimited) as caught:
        await task
    assert caught.value.retry_after == 30
    assert clock.boottime() == 0


async def test_the_wait_time_is_what_a_call_then_waits() -> None:
    clock = ManualClock()
    of = limiter(2, 10, clock=clock)
    assert of.get_wait_time(ORDERS) == 0
    spend(of, 2)
    clock.advance(4)
    assert of.get_wait_time(ORDERS) == 6
    tasks = [asyncio.create_task(of.acquire(ORDERS)) for _ in range(2)]
    await let_run()
    assert of.get_wait_time(ORDERS) == 16
    assert of.get_wait_time(ORDERS, priority="cancel") == 6
    assert of.get_wait_time(ORDERS, weight=2, priority="cancel") == 6
    await clock.run_until(lambda: all(task.done() for task in tasks))


async def test_a_429_stops_the_budget_and_then_it_begins_slowly() -> None:
    clock = ManualClock()
    of = limiter(10, 10, clock=clock)
    assert of.feedback(ORDERS, 5) == 5
    assert of.get_stats()["limits"]["all"]["paused_seconds"] == 5
    tasks = [asyncio.create_task(of.acquire(ORDERS)) for _ in range(4)]
    await clock.run_until(lambda: all(task.done() for task in tasks))
    assert of.grants(ORDERS) == [5, 6, 7, 8]


def test_a_retry_after_of_a_year_is_taken_as_an_hour() -> None:
    assert limiter().feedback(ORDERS, 365 * 86_400) == LONGEST_PAUSE


def test_a_429_without_a_time_pauses_for_a_tenth_of_the_window_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    of = limiter(2, 60)
    with caplog.at_level("WARNING", logger="keepline.resilience"):
        assert of.feedback(ORDERS) == 6
    assert caplog.messages == ["Rate limit reported by the server"]
    assert caplog.records[0].fields == {"rule": "all", "pause_seconds": 6.0, "stated": False}  # type: ignore[attr-defined]


async def test_a_cancelled_waiter_takes_nothing_and_lets_the_next_one_go() -> None:
    clock = ManualClock()
    of, done = limiter(3, 10, clock=clock), list[str]()
    spend(of, 1)
    heavy = await queue(of, done, "heavy", weight=3)
    light = await queue(of, done, "light")
    heavy.cancel()
    await light
    with pytest.raises(asyncio.CancelledError):
        await heavy
    assert (done, used(of), of.get_stats()["cancelled"]) == (["light"], 2, 1)
    assert clock.next_wake is None


async def test_a_call_cancelled_after_its_grant_and_before_it_knows_gives_the_budget_back() -> None:
    of, done = limiter(1, 10), list[str]()
    spend(of, 1)
    first = await queue(of, done, "first")
    second = await queue(of, done, "second")
    of.reset()  # grants the first; it has not run yet
    assert used(of) == 1
    first.cancel()
    await second
    assert (first.cancelled(), done, used(of)) == (True, ["second"], 1)
    assert of.get_stats()["given_back"] == 1


async def test_a_waiter_that_is_thrown_away_holds_nobody_up() -> None:
    clock = ManualClock()
    of, done = limiter(1, 10, clock=clock), list[str]()
    spend(of, 1)
    thrown_away = of.acquire(ORDERS)
    thrown_away.send(None)
    task = await queue(of, done, "next")
    thrown_away.close()
    await clock.run_until(task.done)
    assert clock.boottime() == 10
    assert of.get_stats()["given_back"] == 1


class StandingClock(ManualClock):
    """Nobody who sleeps on it is ever woken."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.get_running_loop().create_future()


def wait_in_a_loop_that_is_then_closed(of: RateLimiter, **more: Any) -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # that tasks are destroyed is what is tested
    waiting = loop.create_task(of.acquire(ORDERS, **more))
    loop.run_until_complete(let_run())
    assert not waiting.done()
    loop.close()


def test_the_waiters_of_a_closed_loop_hold_nobody_up() -> None:
    clock = StandingClock()
    of = limiter(1, 10, clock=clock)
    spend(of, 1)
    wait_in_a_loop_that_is_then_closed(of)
    clock.advance(10)
    of.acquire_sync(ORDERS)
    assert of.grants(ORDERS) == [0, 10]
    gc.collect()


def test_a_closed_loop_is_not_woken_when_its_waiter_becomes_the_first() -> None:
    clock = StandingClock()
    of = limiter(2, 10, clock=clock)
    spend(of, 1)
    clock.advance(5)
    spend(of, 1)
    wait_in_a_loop_that_is_then_closed(of, weight=2)
    with pytest.raises(RateLimited):
        of.acquire_sync(ORDERS, priority="cancel", deadline=1)
    of.acquire_sync(ORDERS, priority="cancel")
    assert clock.boottime() == 10
    assert of.get_stats()["waiting"] == 1
    gc.collect()


def test_a_waiter_in_one_loop_is_woken_from_another_thread() -> None:
    of = limiter(1, 3600, clock=SystemClock())
    spend(of, 1)
    queued = threading.Event()

    async def wait() -> None:
        task = asyncio.create_task(of.acquire(ORDERS))
        await let_run()
        queued.set()
        await asyncio.wait_for(task, 30)

    thread = threading.Thread(target=asyncio.run, args=(wait(),))
    thread.start()
    assert queued.wait(30)
    of.reset()
    thread.join(30)
    assert not thread.is_alive()
    assert of.get_stats()["waiting"] == 0


async def test_a_loop_that_sleeps_for_one_wakes_earlier_for_another_that_is_due_before() -> None:
    clock = ManualClock()
    of, done = limiter(2, 10, clock=clock), list[str]()
    spend(of, 1)
    clock.advance(5)
    spend(of, 1)
    heavy = await queue(of, done, "heavy", weight=2)
    assert clock.next_wake == 10
    light = await queue(of, done, "light", priority="cancel")
    assert clock.next_wake == 5
    await clock.run_until(light.done)
    assert (clock.boottime(), heavy.done()) == (10, False)
    heavy.cancel()
    await let_run()
    assert clock.next_wake is None


def test_a_thread_waits_for_its_turn() -> None:
    clock = ManualClock()
    of = limiter(2, 10, clock=clock)
    for _ in range(5):
        of.acquire_sync(ORDERS)
    assert of.grants(ORDERS) == [0, 0, 10, 10, 20]
    stats = of.get_stats()["limits"]["all"]
    assert (stats["waited"], stats["waited_seconds"]) == (2, 20)


def test_a_waiting_thread_notices_soon_that_its_turn_came_earlier_than_foretold() -> None:
    class Eventful(ManualClock):
        def pause(self, seconds: float) -> None:
            self.advance(seconds)
            of.reset()

    clock = Eventful()
    of = limiter(1, 3600, clock=clock)
    spend(of, 1)
    of.acquire_sync(ORDERS)
    assert clock.boottime() <= 0.25


async def test_a_newcomer_does_not_queue_behind_those_whose_deadline_passed_while_the_loop_hung() -> (
    None
):
    clock = StandingClock()
    of = limiter(1, 10, clock=clock)
    spend(of, 1)
    late = asyncio.create_task(of.acquire(ORDERS, deadline=12))
    await let_run()
    clock.advance(25)
    await of.acquire(ORDERS, deadline=5)
    assert of.grants(ORDERS) == [0, 25]
    with pytest.raises(RateLimited):
        await late


async def test_a_grant_that_was_given_back_serves_who_waits() -> None:
    of, done = limiter(1, 10), []
    granted = await of.acquire(ORDERS)
    waiting = await queue(of, done, "next")
    of.give_back(ORDERS, granted)
    await waiting
    assert (done, of.get_stats()["given_back"], used(of)) == (["next"], 1, 1)
    of.give_back(ORDERS, 99.0)
    assert used(of) == 1
    with pytest.raises(ConfigError, match=r"^\[weight\]: "):
        of.give_back(ORDERS, granted, weight=2)


async def test_every_way_to_a_grant_tells_its_instant() -> None:
    clock = ManualClock()
    of = limiter(1, 10, clock=clock)
    clock.advance(3)
    assert await of.acquire(ORDERS) == 3
    waiting = asyncio.create_task(of.acquire(ORDERS))
    await clock.run_until(waiting.done)
    assert (await waiting, clock.boottime()) == (13, 13)
    of.reset()
    assert of.acquire_sync(ORDERS) == 13


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_child_of_a_fork_inherits_neither_a_held_lock_nor_those_who_wait() -> None:
    line = Line(LimitRule("all", 1, 10.0, 1), ManualClock(), None)
    assert line.turnstile.take(0)

    async def wait_and_fork() -> int:
        waiting = asyncio.create_task(line.wait(1, Lane.QUERY, None))
        await let_run()
        with line.lock, warnings.catch_warnings():  # as if another thread were inside
            warnings.simplefilter("ignore", DeprecationWarning)
            if (child := os.fork()) == 0:
                fresh = not line.lock.locked() and line.turnstile.waiting == 0
                os._exit(0 if fresh and line.turnstile.take(10) else 1)
        _, status = os.waitpid(child, 0)
        assert line.turnstile.waiting == 1
        waiting.cancel()
        return os.waitstatus_to_exitcode(status)

    assert asyncio.run(wait_and_fork()) == 0


def test_an_interrupted_thread_takes_nothing() -> None:
    class Interrupted(ManualClock):
        def pause(self, seconds: float) -> None:
            raise KeyboardInterrupt

    of = limiter(1, 10, clock=Interrupted())
    of.acquire_sync(ORDERS)
    with pytest.raises(KeyboardInterrupt):
        of.acquire_sync(ORDERS)
    assert of.get_stats()["waiting"] == 0


class ThreadClock(SystemClock):
    """Time that passes only while someone waits for it, shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0.0
        self.boottime: Callable[[], float] = lambda: self._now

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds

    async def sleep(self, seconds: float) -> None:
        self.pause(seconds)
        await asyncio.sleep(0)


def most_in_a_window(stamps: list[float], window: float) -> int:
    return max(sum(1 for at in stamps[i:] if at < stamps[i] + window) for i in range(len(stamps)))


def test_eight_threads_share_one_limiter_and_no_window_is_overspent() -> None:
    of = limiter(20, 2, clock=ThreadClock())
    ready = threading.Barrier(8)

    def work() -> None:
        ready.wait(30)
        for number in range(50):
            of.acquire_sync(ORDERS, priority="cancel" if number % 7 == 0 else "normal")

    async def work_in_a_loop() -> None:
        ready.wait(30)
        for _ in range(5):
            await asyncio.gather(*(of.acquire(ORDERS) for _ in range(10)))

    threads = [threading.Thread(target=work) for _ in range(5)]
    threads += [threading.Thread(target=asyncio.run, args=(work_in_a_loop(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    grants = of.grants(ORDERS)
    assert len(grants) == of.get_stats()["granted"] == 400
    assert most_in_a_window(grants, 2) == 20
    assert of.get_stats()["waiting"] == 0


def test_statistics_are_json_and_add_up() -> None:
    of = RateLimiter(clock=ManualClock())
    spend(of, 3, BARS)
    spend(of, 2)
    stats = json.loads(json.dumps(of.get_stats()))
    assert stats["granted"] == 5
    assert {
        name: (rule["limit"], rule["used"], rule["free"]) for name, rule in stats["limits"].items()
    } == {
        "history": (50, 3, 47),
        "general": (200, 2, 198),
    }


async def test_waits_refusals_and_pauses_are_metrics() -> None:
    names = ("ratelimit_wait_seconds", "ratelimit_refused_total", "ratelimit_feedback_total")
    metrics = {m.name: m for m in REGISTRY}
    before = [metrics[f"keepline_{name}"].value("all") for name in names]
    clock = ManualClock()
    of = limiter(1, 10, clock=clock)
    spend(of, 1)
    with pytest.raises(RateLimited):
        await of.acquire(ORDERS, deadline=1)
    of.feedback(ORDERS, 1)
    await clock.run_until(asyncio.create_task(of.acquire(ORDERS)).done)
    after = [metrics[f"keepline_{name}"].value("all") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


def test_it_prints_its_rules() -> None:
    of = limiter(120, 60, burst=20)
    assert repr(of) == "<RateLimiter all: 120 per 60 s, 20 at once>"


def test_paths_with_ids_do_not_fill_the_memory() -> None:
    of = limiter(100_000, 0.001)
    for number in range(10_000):
        of.try_acquire(f"/accounts/{number}/orders")
    assert len(of._line_of) <= 4097


async def test_calls_without_end_keep_a_log_of_constant_length() -> None:
    clock = ManualClock()
    of = RateLimiter({"limits": {"all": {"limit": 50, "window_seconds": 0.01}}}, clock=clock)
    for _ in range(2000):
        clock.advance(0.001)
        await of.acquire("all")
    assert len(of.grants("all")) == 100


@pytest.mark.parametrize("bad", [-1, float("nan"), "5", True])
async def test_a_deadline_or_a_retry_after_that_makes_no_sense_is_refused(bad: Any) -> None:
    of = limiter()
    for call in (lambda: of.acquire_sync(ORDERS, deadline=bad), lambda: of.feedback(ORDERS, bad)):
        with pytest.raises(
            ConfigError, match=r"^\[(deadline|retry_after)\]: is a number of seconds from 0 up, not"
        ):
            call()
    with pytest.raises(ConfigError, match=r"^\[deadline\]"):
        await of.acquire(ORDERS, deadline=bad)


async def test_bad_arguments_are_said_at_once_even_while_the_budget_is_free() -> None:
    of = limiter(2, 10)
    for bad in ("urgent", None, ["order"]):
        with pytest.raises(
            ConfigError, match=r"^\[priority\]: is one of cancel, order, query, normal, history"
        ):
            await of.acquire(ORDERS, priority=bad)  # type: ignore[arg-type]
    for bad in (0, 3, 1.5, 1.0, True, 10**30):
        with pytest.raises(ConfigError, match=r"^\[weight\]: "):
            await of.acquire(ORDERS, weight=bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"^\[weight\]: "):
            of.get_wait_time(ORDERS, weight=bad)  # type: ignore[arg-type]
    for bad in ("", None, ["a"]):
        with pytest.raises(ConfigError, match=r"^\[endpoint\]: "):
            await of.acquire(bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no rule covers"):
        await RateLimiter({"limits": {"a": {"limit": 1, "window_seconds": 1}}}).acquire(ORDERS)
    for bad in (-1, 1.5):
        with pytest.raises(ConfigError, match=r"^\[log_size\]: "):
            RateLimiter(log_size=bad)  # type: ignore[arg-type]


# ---- for any traffic ----

caller = st.tuples(
    st.floats(0, 30),  # when it comes
    st.integers(1, 3),  # weight
    st.sampled_from(["cancel", "order", "query", "normal", "history"]),
    st.one_of(st.none(), st.floats(0, 40)),  # deadline
    st.one_of(st.none(), st.floats(0, 40)),  # cancelled after
)
feedback = st.tuples(st.floats(0, 30), st.one_of(st.none(), st.floats(0, 15)))


async def traffic(
    callers: list[tuple], pauses: list[tuple], jumps: float
) -> tuple[list[float], list[str]]:
    """Grants and each caller's fate, with the wall clock jumping to and fro between all steps."""
    clock = ManualClock()
    of = limiter(4, 10, clock=clock, burst=3)
    fates = [""] * len(callers)

    async def call(
        number: int, comes: float, weight: int, priority: Any, deadline: float | None
    ) -> None:
        await clock.sleep(comes)
        clock.jump_wall(jumps if number % 2 else -jumps)
        try:
            await of.acquire(ORDERS, weight=weight, priority=priority, deadline=deadline)
            fates[number] = f"served {clock.boottime():.6f}"
        except RateLimited:
            fates[number] = f"refused {clock.boottime():.6f}"

    async def pause(at: float, seconds: float | None) -> None:
        await clock.sleep(at)
        of.feedback(ORDERS, seconds)

    async def cancel(task: "asyncio.Task[None]", after: float) -> None:
        await clock.sleep(after)
        task.cancel()

    tasks = []
    for number, (comes, weight, priority, deadline, gives_up) in enumerate(callers):
        tasks.append(asyncio.create_task(call(number, comes, weight, priority, deadline)))
        if gives_up is not None:
            tasks.append(asyncio.create_task(cancel(tasks[-1], gives_up)))
    tasks += [asyncio.create_task(pause(*one)) for one in pauses]
    await clock.run_until(lambda: all(task.done() for task in tasks))
    assert clock.next_wake is None
    assert of.get_stats()["waiting"] == 0
    return of.grants(ORDERS), fates


@given(st.lists(caller, max_size=25), st.lists(feedback, max_size=2))
@settings(max_examples=60, deadline=None)
def test_no_window_is_overspent_nobody_waits_for_ever_and_the_wall_clock_does_not_matter(
    callers: list[tuple], pauses: list[tuple]
) -> None:
    grants, fates = asyncio.run(traffic(callers, pauses, 0))
    if grants:
        assert most_in_a_window(grants, 10) <= 4
    for (*_, deadline, gives_up), fate in zip(callers, fates, strict=True):
        assert fate or gives_up is not None
        assert deadline is not None or not fate.startswith("refused")
    assert asyncio.run(traffic(callers, pauses, 3600)) == (grants, fates)
