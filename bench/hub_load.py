"""One measurement of `bench/hub`: a server on one core, many raw sockets in a program of their own on the others.

A connection is opened, upgraded and subscribed here, blocking, and then handed to the drain program (`hub_drain.c`).
"""

import contextlib
import os
import resource
import socket
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.hub_peers import Greeting, Peer, drain_program, key
from bench.hub_servers import CHANNELS, MIXES

__all__ = ["Figures", "measure"]

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover"
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_KB = 1 / 1024


@dataclass(frozen=True)
class Figures:
    """What one measurement gave.

    Attributes:
        cpu: server microseconds (user and system) per delivered message.
        ratio: delivered of what was due in the measured time.
        p50, p99, p999: milliseconds from the stamp of a message to its arrival, sampled connections.
        busy: the server's share of its core.
        drain: the clients' program's share of a core.
        accept: server milliseconds per accepted and subscribed connection.
        memory: KB of resident memory per idle connection.
        closed: connections that the server ended.
        size: wire bytes per delivered message.
        rate: messages delivered per second.
        frames: per connection and second.
        waited: the share of the time in which the server was ready to run and others had its core.
    """

    cpu: float
    ratio: float
    p50: float
    p99: float
    p999: float
    busy: float
    drain: float
    accept: float
    memory: float
    closed: int
    size: float
    rate: float
    frames: float
    waited: float


def measure(
    peer: Peer,
    clients: int,
    seconds: float,
    *,
    rate: float = 1000.0,
    deflate: bool = False,
    mixed: bool = False,
    sampled: int = 20,
) -> Figures:
    """Runs the server, connects, publishes, measures, ends it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 65536 else 65536, hard))
    cores = sorted(os.sched_getaffinity(0))
    port = free_port()
    sockets: list[socket.socket] = []
    with serving(peer, port, rate, "deflate" if deflate else "plain", cores[0]) as server:
        os.sched_setaffinity(0, set(cores[1:] or cores))
        try:
            warm = min(20, clients // 2)
            for number in range(clients):
                if number == warm:
                    time.sleep(0.2)
                    before = cpu_of(server.pid), memory_of(server.pid)
                sockets.append(opened(port, peer.greeting(number, mixed), deflate))
            time.sleep(0.3)
            after = cpu_of(server.pid), memory_of(server.pid)
            found = drained(server, sockets, seconds, max(1, clients // sampled))
        finally:
            os.sched_setaffinity(0, set(cores))
            for each in sockets:
                each.close()
    fresh = clients - warm
    shares = [len(MIXES[i % len(MIXES)]) / CHANNELS if mixed else 1.0 for i in range(clients)]
    due = rate * found.seconds * sum(shares)
    delays = sorted(found.delays) or [0]
    return Figures(
        cpu=found.server_cpu * 1e6 / max(1.0, found.messages),
        ratio=found.messages / due,
        p50=at(delays, 0.5),
        p99=at(delays, 0.99),
        p999=at(delays, 0.999),
        busy=found.server_cpu / found.seconds,
        drain=found.drain_cpu / found.seconds,
        accept=(after[0] - before[0]) / fresh * 1e3,
        memory=(after[1] - before[1]) / fresh,
        closed=found.closed,
        size=found.bytes / max(1.0, found.messages),
        rate=found.messages / found.seconds,
        frames=found.frames / found.seconds / clients,
        waited=found.waited / found.seconds,
    )


def at(values: list[int], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] / 1e3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(
    peer: Peer, port: int, rate: float, wire: str, core: int
) -> Iterator[subprocess.Popen[bytes]]:
    """The peer as a process on one core, until it accepts connections; killed at the end."""
    with (
        tempfile.TemporaryFile() as words,
        tempfile.TemporaryDirectory(prefix="kl-bench-") as place,
    ):
        server = subprocess.Popen(
            peer.command(port, rate, wire),
            stdin=subprocess.PIPE,
            stdout=words,
            stderr=subprocess.STDOUT,
            cwd=peer.cwd,
            env={**os.environ, "TMPDIR": place},
            preexec_fn=lambda: settle({core}),
        )
        try:
            limit = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if server.poll() is not None or time.monotonic() > limit:
                    words.seek(0)
                    raise SystemExit(f"{peer.name} did not start:\n{words.read().decode()[-2000:]}")
                time.sleep(0.05)
            try:
                yield server
            except (OSError, EOFError) as problem:
                words.seek(0)
                raise SystemExit(
                    f"{peer.name}: {problem!r}\n{words.read().decode()[-2000:]}"
                ) from problem
        finally:
            server.kill()
            server.wait()
            if server.stdin:
                server.stdin.close()


def settle(cores: set[int]) -> None:
    """Keep this process to these cores, before others where that is allowed."""
    os.sched_setaffinity(0, cores)
    os.setsid()  # Linux gives the processor by session first
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        Path("/proc/self/autogroup").write_text("-10")


def cpu_of(pid: int) -> float:
    """Seconds of user and system time of a process with its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def waited_of(pid: int) -> float:
    """Seconds in which its main thread was ready to run, and waited."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def memory_of(pid: int) -> float:
    """KB of resident memory."""
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        * os.sysconf("SC_PAGE_SIZE")
        * PAGE_KB
    )


def opened(port: int, greeting: Greeting, deflate: bool) -> socket.socket:
    """A connection that is upgraded and subscribed."""
    made = socket.create_connection(("127.0.0.1", port), 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = [
        f"GET {greeting.path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key()}", "Sec-WebSocket-Version: 13",
        *greeting.headers, *([OFFER] if deflate else []),
    ]  # fmt: skip
    made.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        peeked = made.recv(4096, socket.MSG_PEEK)
        if not peeked:
            raise EOFError("closed during the upgrade")
        cut = peeked.find(b"\r\n\r\n")
        head += made.recv(cut + 4 if cut >= 0 else len(peeked))
    if not head.startswith(b"HTTP/1.1 101"):
        raise EOFError(f"no upgrade: {head[:200]!r}")
    texts, awaited = list(greeting.texts), list(greeting.until)
    if not greeting.answers:
        for text in texts:
            made.sendall(masked(text))
        texts = []
    while awaited:
        seen = frame_of(made)
        while awaited and awaited[0] in seen:
            awaited.pop(0)
            if texts:
                made.sendall(masked(texts.pop(0)))
    return made


def masked(text: str) -> bytes:
    """A client's text frame; the mask of zeros leaves the payload as it is."""
    payload = text.encode()
    size = (
        bytes((0x80 | len(payload),))
        if len(payload) < 126
        else b"\xfe" + struct.pack("!H", len(payload))
    )
    return b"\x81" + size + b"\0\0\0\0" + payload


def exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := source.recv(count - len(data))):
            raise EOFError("closed before it was subscribed")
        data += more
    return data


def frame_of(source: socket.socket) -> str:
    """The text of the next frame, inflated."""
    first, size = exactly(source, 2)
    if size == 126:
        (size,) = struct.unpack("!H", exactly(source, 2))
    elif size == 127:
        (size,) = struct.unpack("!Q", exactly(source, 8))
    payload = exactly(source, size)
    if first & 15 == 8:
        raise EOFError(f"closed: {payload!r}")
    return (inflated(payload) if first & 0x40 else payload).decode()


def inflated(payload: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")


@dataclass(frozen=True)
class Drained:
    messages: float
    bytes: int
    frames: int
    delays: list[int]
    server_cpu: float
    drain_cpu: float
    seconds: float
    closed: int
    waited: float


def drained(
    server: subprocess.Popen[bytes], sockets: list[socket.socket], seconds: float, stride: int
) -> Drained:
    """Publishes, lets it run in for a second, and counts for the given time."""
    with tempfile.NamedTemporaryFile() as raw:
        numbers = [each.fileno() for each in sockets]
        program = subprocess.Popen(
            [str(drain_program())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=numbers,
            preexec_fn=lambda: settle(os.sched_getaffinity(0)),
        )
        assert program.stdin
        assert program.stdout
        assert server.stdin

        def tell(words: str) -> None:
            program.stdin.write(words.encode())
            program.stdin.flush()

        try:
            tell(f"{raw.name} {stride} {len(numbers)} {' '.join(map(str, numbers))}\n")
            program.stdout.readline()
            server.stdin.write(b"go\n")
            server.stdin.flush()
            time.sleep(1.0)
            tell("b")
            begun, others = cpu_of(server.pid), waited_of(server.pid)
            time.sleep(seconds)
            used, others = cpu_of(server.pid) - begun, waited_of(server.pid) - others
            tell("e")
            closed, drain_cpu, wall, count, delays = map(int, program.stdout.readline().split())
            rows = [tuple(map(int, program.stdout.readline().split())) for _ in range(count)]
            values = [int(program.stdout.readline()) for _ in range(delays)]
        finally:
            program.kill()
            program.wait()
            program.stdin.close()
            program.stdout.close()
        messages: float = sum(row[0] for row in rows)
        size = sum(row[1] for row in rows)
        if not messages and size:
            messages, values = uncompressed(Path(raw.name), rows, stride)
    frames = sum(row[2] for row in rows)
    return Drained(
        messages, size, frames, values, used, drain_cpu / 1e6, wall / 1e6, closed, others
    )


def uncompressed(path: Path, rows: list[tuple[int, ...]], stride: int) -> tuple[float, list[int]]:
    """Messages of compressed connections: the sampled ones inflated, the others by their bytes."""
    data, place, counted, delays, size = path.read_bytes(), 0, 0, [], 0
    while place < len(data):
        _, arrival, length = struct.unpack_from("=IQI", data, place)
        place += 16
        text = inflated(data[place : place + length])
        place += length
        size += length
        for piece in text.split(b"@")[1:]:
            counted += 1
            delays.append(arrival - int(piece[:16]))
    total = sum(row[1] for row in rows)
    return counted * total / max(1, size), delays
