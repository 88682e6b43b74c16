"""What a call pays for its rate limit and its circuit breaker, and what it gets for that, beside the peers.

Costs are process CPU as ratios to a bare await, measured in turns in the same run; behaviour is measured with real time
and greedy callers. Every peer is used as its own documentation shows.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench import Row
from keepline.resilience.breaker import CircuitBreaker
from keepline.resilience.limiter import RateLimiter

Call = Callable[[], Awaitable[object]]
Loop = Callable[[int], Awaitable[None]]  # does the thing that many times

HUGE = 1_000_000  # a budget that is never used up
PROBES = 2


async def nothing() -> None:
    """A coroutine that does nothing: the unit of the ratios."""


def each(function: Call) -> Loop:
    """The loop that awaits a call of the function; that of `nothing` is the unit, here as in the other benches."""

    async def loop(times: int) -> None:
        for _ in range(times):
            await function()

    return loop


async def spend(loop: Loop, times: int) -> float:
    """Seconds of process CPU for one time."""
    begun = time.process_time()
    await loop(times)
    return (time.process_time() - begun) / times


@dataclass(frozen=True)
class Cost:
    """What one call costs: in bare awaits, and in nanoseconds."""

    ratio: float
    ns: float


async def costs(loops: dict[str, Loop], *, times: int, repeats: int) -> dict[str, Cost]:
    """The median cost of each, all measured in turns, each between two measurements of a bare await."""
    found: dict[str, list[Cost]] = {name: [] for name in loops}
    bare = each(nothing)
    for _ in range(repeats):
        for name, loop in loops.items():
            before = await spend(bare, times)
            cost = await spend(loop, times)
            after = await spend(bare, times)
            found[name].append(Cost(2 * cost / (before + after), cost * 1e9))
    return {
        name: sorted(runs, key=lambda run: run.ratio)[repeats // 2] for name, runs in found.items()
    }


# ---- rate limiters ----


def limiter(limit: int, window: float, *, margin: float = 0.0) -> RateLimiter:
    rule = {"limit": limit, "window_seconds": window, "margin_seconds": margin, "endpoints": ["*"]}
    return RateLimiter({"limits": {"all": rule}})


@contextmanager
def limiters(limit: int, window: float) -> Iterator[dict[str, Call]]:
    """An `await acquire()` of each peer with the same budget; a peer that only says no is asked again in a loop."""
    from aiolimiter import AsyncLimiter
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
    from pyrate_limiter import InMemoryBucket, Limiter, Rate
    from throttled.asyncio import MemoryStore, RateLimiterType, Throttled, rate_limiter

    leaky = AsyncLimiter(limit, window)
    log = Limiter(InMemoryBucket([Rate(limit, round(window * 1000))]))
    item = RateLimitItemPerSecond(limit, max(1, round(window)))
    moving = MovingWindowRateLimiter(MemoryStorage())
    counter = SlidingWindowCounterRateLimiter(MemoryStorage())
    quota = rate_limiter.per_duration(_seconds(window), limit)
    sliding, bucket = (
        Throttled(key="all", using=using.value, quota=quota, store=MemoryStore(), timeout=60)
        for using in (RateLimiterType.SLIDING_WINDOW, RateLimiterType.TOKEN_BUCKET)
    )

    async def insist(strategy: Any) -> None:
        while not await strategy.hit(item, "all"):  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(window / limit / 10)

    try:
        yield {
            "aiolimiter acquire()": leaky.acquire,
            "pyrate-limiter log, try_acquire_async()": lambda: log.try_acquire_async("all"),
            "limits moving window, hit()": lambda: insist(moving),
            "limits sliding counter, hit()": lambda: insist(counter),
            "throttled-py sliding window, limit()": sliding.limit,
            "throttled-py token bucket, limit()": bucket.limit,
        }
    finally:
        log.close()


def _seconds(window: float) -> timedelta:
    return timedelta(seconds=max(1, round(window)))


async def price_of_a_permit(quick: bool) -> list[Row]:
    times, repeats = (4_000, 5) if quick else (20_000, 9)
    # a full log whose oldest grant has always left the window: the dearest free call there is
    ours = limiter(200, 1e-6)

    async def acquire(times: int) -> None:
        for _ in range(times):
            await ours.acquire("/api/Order/place")

    async def acquire_with_everything(times: int) -> None:
        for _ in range(times):
            await ours.acquire("/api/Order/place", priority="order", deadline=5.0)

    loops = {"acquire()": acquire, "acquire(priority, deadline)": acquire_with_everything}
    with limiters(HUGE, 1.0) as peers:
        loops |= {name: each(call) for name, call in peers.items()}
        found = await costs(loops, times=times, repeats=repeats)
    mine, other = found["acquire()"], found["aiolimiter acquire()"]
    bars = {"acquire()": 8.0}
    return [
        *(
            Row(f"{name}, to a bare await", cost.ratio, "x", bars.get(name))
            for name, cost in found.items()
        ),
        Row("acquire(), to aiolimiter's", mine.ratio / other.ratio, "x", 1),
        Row("acquire(), CPU", mine.ns, "ns"),
    ]


def most_in_a_window(stamps: list[float], window: float) -> int:
    return max(sum(1 for at in stamps[i:] if at < start + window) for i, start in enumerate(stamps))


async def greed(acquire: Call, seconds: float, workers: int = 30) -> list[float]:
    """The instants at which greedy workers were let through."""
    stamps: list[float] = []
    end = time.monotonic() + seconds

    async def work() -> None:
        while time.monotonic() < end:
            await acquire()
            stamps.append(time.monotonic())

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sorted(stamps)


async def overspending(quick: bool) -> list[Row]:
    """The most calls in any window, where 20 are allowed: all side by side, each with workers of its own."""
    limit, window, seconds = 20, 2.0, 3.5 if quick else 9.0
    ours = limiter(limit, window, margin=0.02)
    with limiters(limit, window) as peers:
        functions: dict[str, Call] = {"keepline": lambda: ours.acquire("/"), **peers}
        await asyncio.sleep(
            1 - time.time() % 1 + 0.75
        )  # not on a whole second, which flatters fixed windows
        runs = await asyncio.gather(*(greed(call, seconds) for call in functions.values()))
    rows = []
    for name, stamps in zip(functions, runs, strict=True):
        bar = limit if name == "keepline" else None
        most = most_in_a_window(stamps, window)
        rows.append(
            Row(
                f"most calls in any {window:g} s, {limit} allowed: {name.split(',')[0]}",
                most,
                "calls",
                bar,
            )
        )
    return rows


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def growth(quick: bool) -> list[Row]:
    if not Path("/proc/self/statm").exists():
        return []
    calls = 500_000 if quick else 10_000_000
    ours, breaker = limiter(200, 1e-6), CircuitBreaker()

    async def call(times: int) -> None:
        for _ in range(times):
            await ours.acquire("/api/Order/place")
            await breaker.call(nothing)

    await call(100_000)
    before = resident_bytes()
    await call(calls)
    grown = (resident_bytes() - before) / 1e6
    return [Row(f"memory grown after {calls:,} limited and guarded calls", grown, "MB", 1)]


# ---- circuit breakers ----


async def price_of_a_guard(quick: bool) -> list[Row]:
    import pybreaker
    from hyx.circuitbreaker import consecutive_breaker
    from purgatory import AsyncCircuitBreakerFactory

    times, repeats = (10_000, 5) if quick else (50_000, 15)
    ours, theirs = CircuitBreaker(), pybreaker.CircuitBreaker(fail_max=5)
    hyx = consecutive_breaker(failure_threshold=5)
    purgatory = await AsyncCircuitBreakerFactory().get_breaker("all")

    async def call(times: int) -> None:
        for _ in range(times):
            await ours.call(nothing)

    def block(breaker: Any) -> Loop:
        async def loop(times: int) -> None:
            for _ in range(times):
                async with breaker:
                    pass

        return loop

    async def pybreaker_block(times: int) -> None:
        for _ in range(times):
            with theirs.calling():
                await nothing()

    loops: dict[str, Loop] = {
        "breaker.call()": call,
        "async with breaker": block(ours),
        "hyx decorator": each(hyx(nothing)),
        "hyx async with": block(hyx),
        "purgatory async with": block(purgatory),
        "pybreaker with calling() and await": pybreaker_block,
    }
    found = await costs(loops, times=times, repeats=repeats)
    bars = {"breaker.call()": 7.0, "async with breaker": 10.0}
    return [
        Row(f"{name}, to a bare await", cost.ratio, "x", bars.get(name))
        for name, cost in found.items()
    ]


async def half_open(quick: bool) -> list[Row]:
    """How many of 20 calls at once are let through half-open."""
    rows = []
    for name, guard in (await half_open_guards()).items():
        passed = [0]
        release = asyncio.Event()
        tasks = [asyncio.create_task(_probe(guard, passed, release)) for _ in range(20)]
        await asyncio.sleep(0.01)
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        bar = PROBES if name == "keepline" else None
        rows.append(Row(f"calls of 20 let through half-open: {name}", passed[0], "calls", bar))
    return rows


async def half_open_guards() -> dict[str, Any]:
    """A breaker of each kind whose break is just over; each as something for `async with` or `with`."""
    import pybreaker
    from hyx.circuitbreaker import consecutive_breaker
    from purgatory import AsyncCircuitBreakerFactory

    ours = CircuitBreaker({"minimum_calls": 3, "break_seconds": 0.05, "probes": PROBES})
    hyx = consecutive_breaker(failure_threshold=3, recovery_time_secs=0.05)
    purgatory = await AsyncCircuitBreakerFactory(default_threshold=3, default_ttl=0.05).get_breaker(
        "all"
    )
    theirs = pybreaker.CircuitBreaker(fail_max=3, reset_timeout=0.05)  # type: ignore[arg-type]
    guards: dict[str, Any] = {
        "keepline": lambda: ours,
        "hyx": lambda: hyx,
        "purgatory": lambda: purgatory,
        "pybreaker": theirs.calling,
    }
    for guard in guards.values():
        for _ in range(3):
            with suppress(Exception):  # the third may come back as the breaker's own refusal
                await _guarded(guard, _fail)
    await asyncio.sleep(0.2)
    return guards


async def _probe(guard: Any, passed: list[int], release: asyncio.Event) -> None:
    async def call() -> None:
        passed[0] += 1
        await release.wait()

    await _guarded(guard, call)


async def _guarded(guard: Any, call: Call) -> None:
    manager = guard()
    if hasattr(manager, "__aenter__"):
        async with manager:
            await call()
    else:
        with manager:
            await call()


async def _fail() -> None:
    raise ConnectionError("an outage")


async def measure(quick: bool) -> list[Row]:
    rows: list[Row] = []
    for part in (price_of_a_permit, overspending, growth, price_of_a_guard, half_open):
        rows += await part(quick)
    return rows


def run(quick: bool) -> list[Row]:
    logging.getLogger("keepline").addHandler(logging.NullHandler())  # the outages are ours
    return asyncio.run(measure(quick))
