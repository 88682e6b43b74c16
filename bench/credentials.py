"""What a bot pays for a token that is valid: the fast path as a ratio to a bare await."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from bench import Row
from keepline import StaticIssuer, TokenManager


async def nothing() -> None:
    """A coroutine that does nothing: the unit of the ratios."""


async def cpu_per_call(function: Callable[[], Awaitable[object]], calls: int) -> float:
    """Seconds of process CPU for one `await function()`."""
    begun = time.process_time()
    for _ in range(calls):
        await function()
    return (time.process_time() - begun) / calls


async def ratio(
    function: Callable[[], Awaitable[object]], *, calls: int, repeats: int
) -> tuple[float, float]:
    """(median ratio to a bare await measured right before and after, best seconds per call)."""
    ratios, best = [], float("inf")
    for _ in range(repeats):
        before = await cpu_per_call(nothing, calls)
        cost = await cpu_per_call(function, calls)
        after = await cpu_per_call(nothing, calls)
        ratios.append(2 * cost / (before + after))
        best = min(best, cost)
    return sorted(ratios)[repeats // 2], best


async def measure(quick: bool) -> list[Row]:
    calls, repeats = (20_000, 5) if quick else (100_000, 15)
    expires = datetime.now(UTC) + timedelta(hours=24)
    async with TokenManager(
        {}, StaticIssuer("a-token-for-the-bench", expires_at=expires)
    ) as manager:
        await manager.get_token()
        times, seconds = await ratio(manager.get_token, calls=calls, repeats=repeats)
    return [
        Row("get_token() when valid, to a bare await", times, "x", 4),
        Row("get_token() when valid, CPU", seconds * 1e9, "ns"),
    ]


def run(quick: bool) -> list[Row]:
    return asyncio.run(measure(quick))
