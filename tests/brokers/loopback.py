"""A broker on loopback that answers by script: what left this machine is what it saw."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from keepline.resilience import RateLimiter, RetryPolicy

AT_ONCE = RetryPolicy(attempts=3, first_delay_seconds=0.0, throttled_delay_seconds=0.0)


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    token: str


@dataclass
class Reply:
    """One answer; `cut` closes the connection instead."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


class Venue:
    """Answers each path by its script; the last line of a script for ever."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.scripts: dict[str, list[Reply | Callable[[Seen], Reply]]] = {}
        self.url = ""

    def on(self, path: str, *replies: Reply | Callable[[Seen], Reply]) -> None:
        self.scripts[path] = list(replies)

    def last(self, path: str = "") -> Seen:
        return [seen for seen in self.seen if seen.path.endswith(path)][-1]

    def count(self, path: str) -> int:
        return sum(seen.path.endswith(path) for seen in self.seen)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        seen = Seen(
            request.method,
            request.path,
            dict(request.query),
            json.loads(text) if text else None,
            request.headers.get("Authorization", ""),
        )
        self.seen.append(seen)
        script = self.scripts.get(f"{request.method} {request.path}") or self.scripts.get(
            request.path
        )
        if script is None:
            return web.Response(status=404, text="no such path in the script")
        line = script.pop(0) if len(script) > 1 else script[0]
        reply = line(seen) if callable(line) else line
        if reply.cut:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(reply.body, str):
            return web.Response(
                status=reply.status,
                text=reply.body,
                headers=reply.headers,
                content_type="text/html",
            )
        body = b"" if reply.body is None else json.dumps(reply.body).encode()
        return web.Response(
            status=reply.status, body=body, headers=reply.headers, content_type="application/json"
        )


async def tokens() -> str:
    """A source of tokens that never change."""
    return "secret-access-token"


def unlimited() -> RateLimiter:
    return RateLimiter(
        {"limits": {"all": {"limit": 10_000, "window_seconds": 1, "endpoints": ["*"]}}}
    )


@asynccontextmanager
async def loopback() -> AsyncIterator[Venue]:
    """A venue that listens while the block runs."""
    served = Venue()
    application = web.Application(client_max_size=8 << 20)
    application.router.add_route("*", "/{path:.*}", served.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield served
    finally:
        await runner.cleanup()
