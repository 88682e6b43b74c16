"""What a call costs beside the peers: the whole pipeline without HTTP, retry alone, classification; memory held.

HTTP is an object that gives a ready answer, so the figures are ours alone; limits are so wide that nobody waits. Peers
are measured when they are installed: tenacity, stamina, hyx, and the stack of tenacity, limits and pybreaker.
"""

import asyncio
import gc
import importlib.util
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bench import Row
from keepline.brokers.projectx.errors import read_body
from keepline.errors import APIError
from keepline.http import Headers, Response
from keepline.resilience import CircuitBreaker, ErrorHandler, Pipeline, RateLimiter

URL = "https://api.example.com"
WIDE = 10_000  # calls in 10 ms: nobody waits, and the log of grants is full soon
Call = Callable[[], Awaitable[object]]


class Instant:
    """An HTTP face whose answer is there already."""

    def __init__(
        self, status: int = 200, body: bytes = b'{"success":true,"errorCode":0,"orderId":7}'
    ) -> None:
        self.answer = Response(status, Headers({"Content-Type": "application/json"}), body, URL)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: object = None,
        form: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Response:
        return self.answer


class Token:
    access_token, token_type, generation = "a-token-for-the-bench", "Bearer", 1


class Tokens:
    async def get(self, *, newer_than: int | None = None) -> Token:
        return Token


async def nothing() -> None:
    """A coroutine that does nothing: the unit of the ratios."""


async def cpu_per_call(function: Call, calls: int) -> float:
    """Seconds of process CPU for one `await function()`."""
    begun = time.process_time()
    for _ in range(calls):
        await function()
    return (time.process_time() - begun) / calls


async def ratio(function: Call, calls: int, repeats: int) -> float:
    """Median ratio to a bare await that is measured right before and after."""
    await cpu_per_call(function, max(calls // 10, 10))
    ratios = []
    for _ in range(repeats):
        before = await cpu_per_call(nothing, calls)
        cost = await cpu_per_call(function, calls)
        after = await cpu_per_call(nothing, calls)
        ratios.append(2 * cost / (before + after))
    return sorted(ratios)[repeats // 2]


def whole(**options: Any) -> Pipeline:
    """All layers at work."""
    rule = {"limit": WIDE, "window_seconds": 0.01, "endpoints": ["*"], "margin_seconds": 0.0}
    layers: dict[str, Any] = {
        "broker": "bench",
        "tokens": Tokens(),
        "limiter": RateLimiter({"limits": {"all": rule}}),
        "breaker": CircuitBreaker(),
    }
    return Pipeline(Instant(), URL, **{**layers, **options})


def retry_alone() -> Pipeline:
    return Pipeline(Instant(), URL, broker="bench")


def failing() -> Call:
    operation = Pipeline(Instant(404), URL, broker="bench").operation("get", "GET", "/x")

    async def call() -> None:
        try:
            await operation()
        except APIError:
            return

    return call


async def work() -> None:
    """What the peers wrap."""


def peers() -> dict[str, Call]:
    """The installed peers around a coroutine that does nothing, each as its guide shows it."""
    found: dict[str, Call] = {}
    if importlib.util.find_spec("tenacity"):
        import tenacity

        found["tenacity @retry"] = tenacity.retry(
            stop=tenacity.stop_after_attempt(4),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
            retry=tenacity.retry_if_exception_type(OSError),
        )(work)
    if importlib.util.find_spec("stamina"):
        import stamina

        found["stamina @retry"] = stamina.retry(on=OSError, attempts=4)(work)
    if importlib.util.find_spec("hyx"):
        from hyx.retry import retry

        found["hyx @retry"] = retry(on=OSError, attempts=4)(work)
    if all(importlib.util.find_spec(name) for name in ("tenacity", "limits", "pybreaker")):
        found["tenacity + limits + pybreaker"] = stack()
    return found


def stack() -> Call:
    """The same work from parts: retry, breaker, exact moving window, token, HTTP, status."""
    import limits
    import pybreaker
    import tenacity
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    http, tokens = Instant(), Tokens()
    breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=30)
    window = MovingWindowRateLimiter(MemoryStorage())
    item = limits.RateLimitItemPerSecond(100 * WIDE)

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(4),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
        retry=tenacity.retry_if_exception_type(OSError),
    )
    async def call() -> Response:
        with breaker.calling():
            while not await window.hit(item, "general"):  # noqa: ASYNC110 - how limits is waited for
                await asyncio.sleep(0.01)
            token = await tokens.get()
            headers = {"Authorization": f"Bearer {token.access_token}"}
            answer = await http.request("POST", URL + "/x", headers=headers, timeout_seconds=30.0)
            if answer.status >= 500:
                raise OSError(answer.status)
            return answer

    return call


async def held_after(function: Call, calls: int) -> int:
    """Blocks of memory that many calls leave behind."""
    await cpu_per_call(function, 3 * WIDE)
    gc.collect()
    before = sys.getallocatedblocks()
    await cpu_per_call(function, calls)
    gc.collect()
    return sys.getallocatedblocks() - before


async def measure(quick: bool) -> list[Row]:
    calls, repeats = (10_000, 5) if quick else (50_000, 11)
    place = whole().operation("place", "POST", "/api/Order/place", priority="order")
    times = await ratio(place, calls, repeats)
    read = whole(reader=read_body).operation("place", "POST", "/api/Order/place", priority="order")
    handler = ErrorHandler()

    async def classify() -> None:
        handler.classify_error(503)

    get = retry_alone().operation("get", "GET", "/x")
    rows = [
        Row("pipeline without HTTP, all layers, to a bare await", times, "x", 40),
        Row("the same, with ProjectX's envelope read", await ratio(read, calls, repeats), "x"),
        Row("pipeline of retry and classification alone", await ratio(get, calls, repeats), "x"),
        Row("a call refused with 404", await ratio(failing(), calls // 10, repeats), "x"),
        Row("classify_error(503)", await ratio(classify, calls, repeats), "x"),
    ]
    for name, call in peers().items():
        cost = await ratio(call, calls // 10, repeats)
        rows.append(Row(name, cost, "x"))
        if "+" in name:
            rows.append(Row(f"pipeline, to {name}", times / cost, "x", 0.1))
    many = 100_000 if quick else 10_000_000
    rows.append(
        Row(f"memory blocks left by {many:,} calls", await held_after(place, many), "", 1000)
    )
    return rows


def run(quick: bool) -> list[Row]:
    logging.getLogger("keepline").addHandler(logging.NullHandler())
    return asyncio.run(measure(quick))
