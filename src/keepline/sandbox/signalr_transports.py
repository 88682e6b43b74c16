"""The three transports of a hub on aiohttp: they move bytes between a request and a connection, nothing else.

Invariants: one frame of a WebSocket per message unless a fault says otherwise; the end of a conversation is a Close
frame 1000 without a reason, as the real server's; a socket that dies without one leaves a stateful connection to be
taken up again.
"""

import asyncio
from contextlib import suppress

from aiohttp import ClientConnectionResetError, WSMsgType, web

from keepline.clock import Clock, within
from keepline.sandbox.signalr_connection import HubConnection
from keepline.sandbox.signalr_wire import Phase
from keepline.stream.sse import write_event

__all__ = ["POLL_SECONDS", "serve_events", "serve_poll", "serve_send", "serve_websocket"]

POLL_SECONDS = 90.0
"""How long a poll is held."""

_FRAME_LIMIT = 4 << 20
_BODY_LIMIT = 16 << 20
_LOST = (ClientConnectionResetError, ConnectionError)


async def serve_websocket(request: web.Request, connection: HubConnection) -> web.StreamResponse:
    """Carry a connection until one side ends it."""
    socket = web.WebSocketResponse(
        autoclose=False, compress=False, max_msg_size=_FRAME_LIMIT, timeout=1.0
    )
    await socket.prepare(request)
    _attach(request, connection)
    writer = asyncio.create_task(_write(socket, connection))
    clean = False
    try:
        clean = await _read(socket, connection)
        if connection.wire.phase is Phase.OVER and not clean:
            await writer
    finally:
        writer.cancel()
        if connection.wire.can_reattach and not clean:
            connection.detach()
        else:
            connection.finish()
        with suppress(asyncio.CancelledError, *_LOST):
            await writer
    if clean:
        await socket.close()
    return socket


async def serve_events(request: web.Request, connection: HubConnection) -> web.StreamResponse:
    """Carry what a connection sends as server-sent events."""
    answer = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache, no-store"}
    )
    _attach(request, connection)
    try:
        await answer.prepare(request)
        await answer.write(b":\r\n")
        while frames := await connection.frames():
            for frame in frames:
                await answer.write(write_event(frame))
    except _LOST:
        pass
    finally:
        connection.finish()
    return answer


async def serve_poll(
    request: web.Request, connection: HubConnection, *, clock: Clock
) -> web.StreamResponse:
    """Answer one poll: with what there is, with nothing after `POLL_SECONDS`, with 204 when it is over."""
    number = connection.memory["poll"] = connection.memory.get("poll", 0) + 1
    _attach(request, connection, looked_after=True)
    connection.memory["polls"] = connection.memory.get("polls", 0) + 1
    try:
        return await _poll(request, connection, clock, number)
    finally:
        connection.memory["polls"] -= 1
        if connection.memory.get("deleted"):
            connection.finish()


async def _poll(
    request: web.Request, connection: HubConnection, clock: Clock, number: int
) -> web.StreamResponse:
    until = clock.boottime() + POLL_SECONDS
    while connection.memory["poll"] == number and not _is_gone(request):
        found = b"".join(await connection.some())
        if found:
            kind = "application/octet-stream" if connection.wire.binary else "text/plain"
            return web.Response(body=found, content_type=kind)
        if connection.wire.phase is Phase.OVER and not connection.has_output:
            connection.finish()
            break
        try:
            await within(clock, until - clock.boottime(), connection.wait())
        except TimeoutError:
            return web.Response()
    return web.Response(status=204)


async def serve_send(request: web.Request, connection: HubConnection) -> web.StreamResponse:
    """Take what a client sends beside its transport."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > _BODY_LIMIT:
            return web.Response(status=413)
    await connection.feed(bytes(body))
    return web.Response()


async def _read(socket: web.WebSocketResponse, connection: HubConnection) -> bool:
    """Hand on what comes; whether the client said that it ends."""
    while True:
        message = await socket.receive()
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            await connection.feed(message.data)
        else:
            return message.type is WSMsgType.CLOSE


async def _write(socket: web.WebSocketResponse, connection: HubConnection) -> None:
    with suppress(*_LOST):
        while frames := await connection.frames():
            kind = WSMsgType.BINARY if connection.wire.binary else WSMsgType.TEXT
            for frame in frames:
                await socket.send_frame(frame, kind)
        await socket.close()


def _attach(request: web.Request, connection: HubConnection, *, looked_after: bool = False) -> None:
    transport = request.transport

    def abort() -> None:
        if transport is not None:
            transport.abort()

    connection.attach(abort, lambda: looked_after or not _is_gone(request))


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
