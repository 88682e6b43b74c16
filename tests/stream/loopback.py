"""A small web server on loopback for the tests of streams: each test brings the handlers that it needs."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """Where a server listens, and what it was asked.

    Attributes:
        url: its address without a path.
        requests: method, path with query, and `Authorization` of each request, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def paths(self) -> list[str]:
        return [f"{method} {path}" for method, path, _ in self.requests]

    @property
    def tokens(self) -> list[str | None]:
        return [token for _, _, token in self.requests]


@asynccontextmanager
async def serving(
    handler: Handler, *, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    """Serve every path and method with one handler until the block ends."""
    site = Site()

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        site.requests.append(
            (request.method, str(request.rel_url), request.headers.get("Authorization"))
        )
        return await handler(request)  # type: ignore[arg-type]

    runner = web.ServerRunner(web.Server(note), shutdown_timeout=0.01)
    await runner.setup()
    tcp = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context)
    await tcp.start()
    host, port = runner.addresses[0][:2]
    site.url = f"{'https' if ssl_context else 'http'}://{host}:{port}"
    try:
        yield site
    finally:
        await runner.cleanup()


async def websocket(request: web.BaseRequest) -> web.WebSocketResponse:
    """Accept an upgrade."""
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    return socket


@asynccontextmanager
async def raw_serving(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A TCP server that is no web server; gives its http address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    async with server:
        yield f"http://{host}:{port}"
