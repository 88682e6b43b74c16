"""Streams: bytes to typed events in handlers, beside pysignalr and signalrcore; back to live; memory.

All libraries read the same recorded session (`bench.stream_traffic`) in the same run. Over a socket the server is
another process that writes ready bytes (`bench.stream_server`), each client a process of its own that counts its own
processor time between the first and the last event (`bench.stream_clients`).
"""

import asyncio
import gc
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import Row
from bench.stream_clients import NAMES, offline
from bench.stream_traffic import TARGETS, frames

ENCODINGS = ("json", "messagepack")
CORE_BAR = 5.0  # missed in MessagePack, which signalrcore reads with a library in C
SECONDS = 120.0  # for a process of ours, which takes a few


def run(quick: bool) -> list[Row]:
    rows = []
    for encoding in ENCODINGS:
        rows += without_socket(encoding, 10_000, 3 if quick else 9)
    for encoding in ENCODINGS:
        rows += over_socket(encoding, 40_000 if quick else 200_000, 1 if quick else 3)
    rows += asyncio.run(back_to_live(5 if quick else 25))
    for encoding in ENCODINGS:
        rows.append(memory_over_time(encoding, 300_000 if quick else 10_000_000))
    rows += memory_of_many()
    return rows


# -------------------------------------------------------------------------------------------------------------- speed


def without_socket(encoding: str, count: int, rounds: int) -> list[Row]:
    """Messages per processor second; the libraries take turns, and the median round counts."""
    recorded = frames(count, encoding)
    gc.collect()
    gc.freeze()
    ways = {name: offline(name, encoding, recorded) for name in NAMES}
    spent: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            spent[name].append(ways[name]())
    gc.unfreeze()
    return compared(f"{encoding}, no socket", count, spent, CORE_BAR)


def over_socket(encoding: str, count: int, rounds: int) -> list[Row]:
    """The same over a loopback WebSocket, a frame for each message."""
    spent: dict[str, list[float]] = {name: [] for name in NAMES}
    with server(encoding, count) as url:
        for _ in range(rounds):
            for name in NAMES:
                command = [sys.executable, "-m", "bench.stream_clients"]
                done = subprocess.run(
                    [*command, name, encoding, url, str(count)],
                    capture_output=True,
                    text=True,
                    timeout=SECONDS,
                    check=True,
                )
                spent[name].append(float(done.stdout))
    return compared(f"{encoding}, over a socket", count, spent, 2.0)


def compared(what: str, count: int, spent: dict[str, list[float]], core_bar: float) -> list[Row]:
    rate = {name: count / statistics.median(times) for name, times in spent.items()}
    return [
        *(Row(f"{what}: {name}", rate[name], "/s") for name in NAMES),
        Row(f"{what}: to pysignalr", rate["keepline"] / rate["pysignalr"], "x", 2.0, at_least=True),
        Row(
            f"{what}: to signalrcore",
            rate["keepline"] / rate["signalrcore"],
            "x",
            core_bar,
            at_least=True,
        ),
    ]


@contextmanager
def server(encoding: str, count: int) -> Iterator[str]:
    command = [sys.executable, "-m", "bench.stream_server", encoding, str(count)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(SECONDS)


# ------------------------------------------------------------------------------------------------------- back to live


async def back_to_live(cuts: int) -> list[Row]:
    """Wall seconds from a cut of both connections until a stream with a snapshot of its accounts is live again.

    Sandbox and stream share the process; each cut has a stream of its own, so that none waits in a backoff. An order is
    filled while nobody is connected, so there is something to recover.
    """
    from keepline.brokers.projectx.client import ProjectXClient
    from keepline.resilience.limiter import RateLimiter
    from keepline.sandbox.quota import Rate
    from keepline.sandbox.server import Rates, SandboxServer

    many = Rate(1_000_000, 1.0)
    limits = {"limits": {"all": {"limit": 10_000, "window_seconds": 1, "endpoints": ["*"]}}}
    async with SandboxServer(rates=Rates(general=many), one_sign_in=False) as sandbox:
        token = sandbox.issue().access_token

        async def tokens() -> str:
            return token

        async with ProjectXClient(
            tokens, base_url=sandbox.url, limiter=RateLimiter(limits)
        ) as client:
            seconds = [await one_cut(sandbox, client, tokens) for _ in range(cuts)]
    return [
        Row("cut to live with snapshots, median, wall", statistics.median(seconds), "s"),
        Row("cut to live with snapshots, slowest, wall", max(seconds), "s", 1.0),
    ]


async def one_cut(sandbox: Any, client: Any, tokens: Any) -> float:
    from keepline.brokers.projectx.stream import ProjectXStream
    from keepline.stream.dial_budget import DialLimiter

    contract = "CON.F.US.MES.Z26"
    changed = asyncio.Event()
    stream = ProjectXStream(
        tokens,
        client,
        accounts=["1001"],
        contracts=[contract],
        base_url=sandbox.url,
        session=None,
        dial_limiter=DialLimiter(),
    )
    for manager in stream.managers:
        manager.on_event(lambda _: changed.set(), inline=True)
    logging.getLogger("keepline.stream").setLevel(logging.CRITICAL)  # every cut is a warning
    async with stream:
        stream.on_quote(ignored)
        await stream.connect(until="live")
        await asyncio.sleep(1.1)  # one stream dials at most once a second
        begun = time.perf_counter()
        sandbox.fault("fill_while_away", on=["user_hub"])
        sandbox.fault("cut_stream", on=["market_hub"])
        while stream.is_live:
            changed.clear()
            await changed.wait()
        await stream.connect(until="live")
        return time.perf_counter() - begun


async def ignored(_: Any) -> None: ...


# ------------------------------------------------------------------------------------------------------------- memory


def resident() -> float:
    """This process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class RecordedHub:
    """A link that reads a recorded session again and again, through wire and dispatch."""

    def __init__(self, recorded: list[bytes], encoding: str) -> None:
        from keepline.brokers.projectx.stream_messages import MARKET_EVENTS
        from keepline.stream.codec import codec
        from keepline.stream.dispatch import Dispatch
        from keepline.stream.handshake import write_response
        from keepline.stream.straight import straight
        from keepline.stream.wire import HubWire

        self._recorded = recorded
        self._gone = asyncio.Event()
        self._dispatch = Dispatch(failed=print, returned=print)
        for target, kinds in MARKET_EVENTS.items():
            self._dispatch.on(target, self._taking(target), *kinds)
        wire = HubWire(codec(encoding), types=self._dispatch.types)
        wire.open(0.0)
        self._receive = straight(wire, self._dispatch)
        self._receive(write_response(), 0.0)
        self._sink: Any = None

    def _taking(self, target: str) -> Any:
        return lambda *arguments: self._sink(target, arguments, self._now)

    async def read(self) -> None:
        """All of it once, as fast as possible."""
        from keepline.clock import SYSTEM_CLOCK

        self._now = SYSTEM_CLOCK.boottime()
        for at, frame in enumerate(self._recorded):
            self._receive(frame, self._now)
            if not at % 100:
                await asyncio.sleep(0)

    async def open(self, sink: Any) -> None:
        self._sink = sink

    async def subscribe(self, topic: Any) -> None: ...

    async def unsubscribe(self, topic: Any) -> None: ...

    async def probe(self) -> bool:
        return False

    async def close(self) -> None:
        self._gone.set()

    async def closed(self) -> Any:
        from keepline.stream.port import Lost

        await self._gone.wait()
        return Lost("stopped")


async def flow(encoding: str, count: int) -> float:
    """MB that a manager with callbacks for everything grew by, from a tenth of the messages on."""
    from keepline.stream.manager import StreamManager
    from keepline.stream.port import Topic

    recorded = frames(10_000, encoding)
    hub = RecordedHub(recorded, encoding)
    seen = 0

    def take(*_: Any) -> None:
        nonlocal seen
        seen += 1

    async with StreamManager(lambda: hub, name=f"bench {encoding}") as manager:
        for target in TARGETS:
            manager.subscribe(Topic(target), take, inline=True)
        rounds = count // len(recorded)
        for _ in range(max(1, rounds // 10)):
            await hub.read()
        gc.collect()
        before = resident()
        for _ in range(rounds):
            await hub.read()
        gc.collect()
        grown = resident() - before
    if seen < count:
        raise SystemExit(f"{seen} of {count} messages came")
    return grown


def memory_over_time(encoding: str, count: int) -> Row:
    """In a process of its own, where nothing else comes and goes."""
    grown = float(alone("flow", encoding, str(count), seconds=1800.0))
    return Row(f"{encoding}: memory grown over {count / 1e6:g} million messages", grown, "MB", 1.0)


def memory_of_many() -> list[Row]:
    with server("json", 0) as url:
        connections = float(alone("many", url, "connections"))
        streams = float(alone("many", url, "streams"))
    return [
        Row("100 connections in one process, above the first", connections, "MB", 10.0),
        Row("100 kept streams in one process, above the first", streams, "MB"),
    ]


async def many(url: str, what: str) -> float:
    """MB of 100 more in this process after the first one."""
    from keepline.stream.connection import SignalRConnection
    from keepline.stream.dial_budget import DialLimiter
    from keepline.stream.manager import StreamManager
    from keepline.stream.port import Topic
    from keepline.stream.signalr_link import SignalRLink

    limiter = DialLimiter(burst=1000, per_second=1000)

    async def one(number: int) -> Any:
        if what == "connections":
            connection = SignalRConnection(url)
            connection.on("GatewayQuote", ignored)
            await connection.start()
            return connection.stop
        manager = StreamManager(
            lambda: SignalRLink(url), name=f"bench {number}", dial_limiter=limiter
        )
        manager.subscribe(Topic("GatewayQuote"), lambda *_: None, inline=True)
        await manager.connect()
        return manager.disconnect

    ends = [await one(0)]
    gc.collect()
    before = resident()
    ends += [await one(number) for number in range(1, 101)]
    gc.collect()
    grown = resident() - before
    for end in ends:
        await end()
    return grown


def alone(*command: str, seconds: float = SECONDS) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bench.streams", *command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    if sys.argv[1] == "flow":
        print(asyncio.run(flow(sys.argv[2], int(sys.argv[3]))))
    else:
        print(asyncio.run(many(sys.argv[2], sys.argv[3])))
