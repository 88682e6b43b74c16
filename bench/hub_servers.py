"""The Python servers that `bench/hub` measures: `python -m bench.hub_servers NAME PORT RATE each|joined plain|deflate`.

A line on standard input starts the publisher. It hands out what is due each 16 ms, as our hub does by itself; the hub
and the floor are told each message when it is due. Messages bear the instant at which they were due, so that a
publisher that is late is not forgiven; below 60 per second they bear the instant of their publication: that is the
figure after quiet.
"""

import asyncio
import base64
import hashlib
import sys
import time
import zlib
from collections.abc import Awaitable, Callable

import uvloop

INTERVAL = 0.016
FEED = 0.001
CHANNELS = 4
MIXES = ((0, 1, 2, 3), (0, 1), (1, 2, 3), (3,), (0, 2))
"""Which channels a client reads when subscriptions are mixed, by its number."""


def wall() -> int:
    return time.time_ns() // 1000


def message(number: int, stamp: int) -> str:
    """As long as one of ours, 220 to 230 bytes."""
    return (
        f'{{"type":"routing-decision","channel":"desk-{number % CHANNELS}","offset":{number},"epoch":"k3j9x2",'
        f'"timestamp":"2026-11-20T09:00:00.000Z","data":{{"symbol":"SYM{number % 50}","side":"BUY","volume":1.5,'
        f'"routingDecision":"ABOOK","lpSelected":"LP-ALPHA","at":"@{stamp}"}}}}'
    )


def frame(payload: bytes, deflated: bool = False) -> bytes:
    first = 0xC1 if deflated else 0x81
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def squeeze(payload: bytes) -> bytes:
    made = zlib.compressobj(1, zlib.DEFLATED, -15)
    return (made.compress(payload) + made.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def started() -> None:
    """Returns when the caller says so."""
    loop, said = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(0, said.set)
    await said.wait()
    loop.remove_reader(0)


async def publish(
    rate: float,
    give: Callable[[list[tuple[int, int]]], Awaitable[None] | None],
    interval: float = INTERVAL,
) -> None:
    """Gives (number, stamp) of the messages that are due, each interval, for ever."""
    await started()
    quiet = rate < 60
    began, wall_began, done, ticks = time.perf_counter(), wall(), 0, 0
    while True:
        due = int((time.perf_counter() - began) * rate)
        if due > done:
            stamps = [
                (number, wall() if quiet else wall_began + int(number * 1e6 / rate))
                for number in range(done, due)
            ]
            done = due
            if (given := give(stamps)) is not None:
                await given
        ticks += 1
        target = (done + 1) / rate if quiet else ticks * interval
        await asyncio.sleep(max(0.0, began + target - time.perf_counter()))


def joined(stamps: list[tuple[int, int]]) -> str:
    return "[" + ",".join([message(*stamp) for stamp in stamps]) + "]"


class Bare(asyncio.Protocol):
    """The floor: an upgrade without questions, then only writes of what is ready."""

    def __init__(self, groups: dict[int, set[asyncio.WriteTransport]]) -> None:
        self.groups = groups
        self.head = b""
        self.group = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.head.endswith(b"\r\n\r\n"):
            return
        self.head += data
        if not self.head.endswith(b"\r\n\r\n"):
            return
        lines = self.head.decode().split("\r\n")
        self.group = int(lines[0].split()[1].rpartition("=")[2] or 0)
        key = next(
            line.partition(": ")[2] for line in lines if line.startswith("Sec-WebSocket-Key")
        )
        accept = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n"
        )
        self.groups.setdefault(self.group, set()).add(self.transport)

    def connection_lost(self, problem: Exception | None) -> None:
        self.groups.get(self.group, set()).discard(self.transport)


async def floor(port: int, rate: float, style: str, deflate: bool) -> None:
    groups: dict[int, set[asyncio.WriteTransport]] = {}
    await asyncio.get_running_loop().create_server(lambda: Bare(groups), "127.0.0.1", port)

    pending: list[tuple[int, str]] = []
    sent = 0.0

    def give(stamps: list[tuple[int, int]]) -> None:
        nonlocal sent
        pending.extend([(number % CHANNELS, message(number, stamp)) for number, stamp in stamps])
        now = time.perf_counter()
        if now - sent < INTERVAL - 0.0005:
            return
        sent = now
        for group, transports in groups.items():
            wanted = [text for channel, text in pending if channel in MIXES[group]]
            if not wanted:
                continue
            payload = f"[{','.join(wanted)}]".encode()
            data = frame(squeeze(payload), True) if deflate else frame(payload)
            for transport in transports:
                transport.write(data)
        pending.clear()

    await publish(rate, give, FEED)


async def websockets(port: int, rate: float, style: str, deflate: bool) -> None:
    from websockets.asyncio.server import broadcast, serve

    server = await serve(
        lambda connection: connection.wait_closed(),
        "127.0.0.1",
        port,
        compression="deflate" if deflate else None,
    )

    def give(stamps: list[tuple[int, int]]) -> None:
        if style == "joined":
            broadcast(server.connections, joined(stamps))
        else:
            for stamp in stamps:
                broadcast(server.connections, message(*stamp))

    await publish(rate, give)


async def starlette(port: int, rate: float, style: str, deflate: bool) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    screens: set[WebSocket] = set()

    async def screen(socket: WebSocket) -> None:
        await socket.accept()
        screens.add(socket)
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            screens.discard(socket)

    config = uvicorn.Config(
        Starlette(routes=[WebSocketRoute("/", screen)]),
        host="127.0.0.1",
        port=port,
        log_level="error",
        ws_per_message_deflate=deflate,
    )
    serving = asyncio.create_task(uvicorn.Server(config).serve())

    async def give(stamps: list[tuple[int, int]]) -> None:
        text = joined(stamps)
        for socket in list(screens):
            await socket.send_text(text)

    await asyncio.gather(serving, publish(rate, give))


async def socketio(port: int, rate: float, style: str, deflate: bool) -> None:
    import socketio as library
    import uvicorn

    hub = library.AsyncServer(async_mode="asgi", transports=["websocket"])
    config = uvicorn.Config(
        library.ASGIApp(hub),
        host="127.0.0.1",
        port=port,
        log_level="error",
        ws_per_message_deflate=deflate,
    )
    serving = asyncio.create_task(uvicorn.Server(config).serve())

    async def give(stamps: list[tuple[int, int]]) -> None:
        await hub.emit("messages", joined(stamps))

    await asyncio.gather(serving, publish(rate, give))


def main() -> None:
    name, port, rate, style, wire = sys.argv[1:]
    servers = {
        "floor": floor,
        "websockets": websockets,
        "starlette": starlette,
        "socketio": socketio,
    }
    if name == "ours":
        from bench.hub_ours import ours

        servers["ours"] = ours
    uvloop.run(servers[name](int(port), float(rate), style, wire == "deflate"))


if __name__ == "__main__":
    main()
