"""From a push to the bot: reading and updating the token, the way to a callback, tokens per second, start and stop.

The pushing side of the throughput figures is a bare socket in another process (`python -m bench.relay MODE PATH
COUNT`), so that only the receiver is measured; both share the machine's processors.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench import Row
from keepline import TokenReceiver, TokenReceiverConfig
from keepline.relay.message import Ledger
from keepline.relay.wire import ReceiverWire, WireRules

FUTURE = int(time.time()) + 86_400


def message(generation: int, access: str = "") -> bytes:
    """A push as our sender writes it, with a token of a usual length."""
    fields = {
        "access_token": access or f"I0.b2F1dGgyLmJkYy5zY2h3YWIuY29t.{generation:06d}" + "x" * 60,
        "refresh_token": "",
        "expires_at": FUTURE,
        "v": 1,
        "credential": "schwab",
        "generation": generation,
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def run(quick: bool) -> list[Row]:
    rounds = 3 if quick else 5
    with tempfile.TemporaryDirectory(prefix="kl-bench-") as directory:
        path = Path(directory) / "bot.sock"
        return [
            *reading(path, rounds),
            deciding(rounds),
            *reaching(path, 500 if quick else 3000),
            one_connection(path, 5_000 if quick else 20_000, rounds),
            many_connections(path, 2_000 if quick else 10_000, rounds),
            *starting(path, 20 if quick else 100),
        ]


def receiver(path: Path, callback: Callable[[str], None] | None = None) -> TokenReceiver:
    made = TokenReceiver(callback, TokenReceiverConfig(unix_socket_path=path, listen_backlog=64))
    if not made.start():
        raise SystemExit(made.last_error)
    return made


def best(measure: Callable[[], float], rounds: int) -> float:
    return min(measure() for _ in range(rounds))


def reading(path: Path, rounds: int) -> list[Row]:
    """Nanoseconds of CPU for a read, beside the shared loop thread that sleeps."""
    bot = receiver(path)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        peer.sendall(message(1))
        peer.recv(100)

    def measure() -> float:
        calls, read = 200_000, bot.get_latest_token
        begun = time.perf_counter()
        for _ in range(calls):
            read()
        return (time.perf_counter() - begun) / calls * 1e9

    value = best(measure, rounds)
    bot.stop()
    return [Row("get_latest_token()", value, "ns", 200)]


def deciding(rounds: int) -> Row:
    """Microseconds from the bytes of a push to its answer, without socket and callbacks: the update itself."""
    count = 5_000
    pushes = [message(generation) for generation in range(1, count + 1)]

    def measure() -> float:
        wire = ReceiverWire(WireRules(), Ledger(), now=0.0)
        wall = time.time()
        begun = time.perf_counter()
        for push in pushes:
            wire.receive(push, 0.0, wall)
            wire.take()
        return (time.perf_counter() - begun) / count * 1e6

    return Row("update: bytes of a push to the new token", best(measure, rounds), "µs", 10)


def reaching(path: Path, count: int) -> list[Row]:
    """Milliseconds from the sender's write to the first line of the callback, one push at a time."""
    arrived, times = threading.Event(), []

    def callback(token: str) -> None:
        times.append(time.perf_counter())
        arrived.set()

    bot = receiver(path, callback)
    delays = []
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        for generation in range(1, count + 1):
            push = message(generation)
            arrived.clear()
            begun = time.perf_counter()
            peer.sendall(push)
            arrived.wait()
            delays.append((times[-1] - begun) * 1e3)
            peer.recv(100)
    bot.stop()
    delays.sort()
    return [
        Row("push to callback, median", statistics.median(delays), "ms"),
        Row("push to callback, p99", delays[int(len(delays) * 0.99)], "ms", 1.0),
    ]


def one_connection(path: Path, count: int, rounds: int) -> Row:
    value = throughput(path, "one", count, rounds)
    return Row("tokens on one connection, an answer each", value, "/s", 10_000, at_least=True)


def many_connections(path: Path, count: int, rounds: int) -> Row:
    value = throughput(path, "each", count, rounds)
    return Row("tokens with a connection each", value, "/s", 5_000, at_least=True)


def throughput(path: Path, mode: str, count: int, rounds: int) -> float:
    """The median of several rounds; the other process measures itself, its start is not counted."""
    rates = []
    for _ in range(rounds):
        bot = receiver(path, lambda token: None)
        command = [sys.executable, "-m", "bench.relay", mode, str(path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        if bot.token_count != count:
            raise SystemExit(f"{bot.token_count} of {count} tokens arrived")
        bot.stop()
        rates.append(float(done.stdout))
    return statistics.median(rates)


def starting(path: Path, rounds: int) -> list[Row]:
    starts, stops = [first_start(path)], []
    for _ in range(rounds):
        bot = TokenReceiver(
            lambda token: None,
            TokenReceiverConfig(unix_socket_path=path, accept_timeout=30.0, receive_timeout=30.0),
        )
        begun = time.perf_counter()
        bot.start()
        starts.append((time.perf_counter() - begun) * 1e3)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.sendall(b'{"half":')
            begun = time.perf_counter()
            bot.stop()
            stops.append((time.perf_counter() - begun) * 1e3)
    return [
        Row("receiver start, slowest", max(starts), "ms", 10),
        Row("receiver stop with a peer in the middle of a message, slowest", max(stops), "ms", 100),
    ]


def first_start(path: Path) -> float:
    """Milliseconds of the first start of a process, with the background thread's."""
    code = (
        "import sys, time; from keepline import TokenReceiver, TokenReceiverConfig;"
        "bot = TokenReceiver(print, TokenReceiverConfig(unix_socket_path=sys.argv[1]));"
        "begun = time.perf_counter(); assert bot.start(); print((time.perf_counter() - begun) * 1e3)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    return float(done.stdout)


def push_on_one_connection(path: str, count: int) -> float:
    pushes = [message(generation) for generation in range(1, count + 1)]
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        begun = time.perf_counter()
        for push in pushes:
            peer.sendall(push)
            if peer.recv(64) != b"OK\n":
                raise SystemExit("not OK")
        return count / (time.perf_counter() - begun)


def push_on_a_connection_each(path: str, count: int) -> float:
    pushes = [message(generation).replace(b'"v":1,', b"") for generation in range(1, count + 1)]
    begun = time.perf_counter()
    for push in pushes:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            peer.sendall(push)
            if peer.recv(64) != b"OK\n":
                raise SystemExit("not OK")
    return count / (time.perf_counter() - begun)


if __name__ == "__main__":
    mode, where, number = sys.argv[1:]
    push = push_on_one_connection if mode == "one" else push_on_a_connection_each
    print(push(where, int(number)))
