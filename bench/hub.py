"""The hub beside its peers: server CPU per delivered message, latency, memory and CPU of a connection.

All on the same work in one run: 1,000 messages of 220 to 245 bytes each second to every client, in frames each 16 ms;
the server on one core, the clients in a program of their own (`hub_drain.c`) on the others. Peers that do not join
messages by themselves get what is due each 16 ms joined by hand. Everything is measured in rounds; shown is the round
in which the server needed least, because what others do on the machine only ever adds to it.
"""

import statistics
import time
from collections.abc import Callable

from bench import Row
from bench.hub_load import Figures, measure
from bench.hub_peers import Peer, peers
from keepline.hub.channels import Channel, Policy
from keepline.hub.fanout import Hub
from keepline.hub.limits import Bucket

ONCE = ("websockets each", "starlette", "socketio", "ws", "socket.io")
"""Peers far from any bar: one round is enough."""
DEFLATED = ("floor", "keepline", "bun each", "bun", "websockets")


def run(quick: bool) -> list[Row]:
    rounds, seconds = (1, 2.0) if quick else (3, 2.5)
    known = peers(print)
    rows: list[Row] = []
    for clients in (500,) if quick else (1000, 500):
        rows += side_by_side(known, clients, rounds, seconds)
    return [
        *rows,
        *quiet(known, rounds, seconds),
        *one_client(known, rounds, seconds),
        to_ten_outboxes(),
        inbound_limiter(),
    ]


def side_by_side(known: dict[str, Peer], clients: int, rounds: int, seconds: float) -> list[Row]:
    plain: dict[str, list[Figures]] = {}
    mixed: dict[str, list[Figures]] = {}
    deflated: dict[str, list[Figures]] = {}
    for number in range(rounds):
        for name, peer in known.items():
            if number == 0 or name not in ONCE:
                plain.setdefault(name, []).append(measure(peer, clients, seconds))
        for name in ("floor", "keepline"):
            mixed.setdefault(name, []).append(measure(known[name], clients, seconds, mixed=True))
        for name in DEFLATED:
            if name in known and (number == 0 or name in ("floor", "keepline", "bun")):
                found = measure(known[name], clients, seconds, deflate=True)
                deflated.setdefault(name, []).append(found)
    best = {
        kind: {name: calmest(found) for name, found in group.items()}
        for kind, group in (("plain", plain), ("mixed", mixed), ("deflate", deflated))
    }
    table(known, clients, best)
    return judged(clients, best)


def calmest(found: list[Figures]) -> Figures:
    return min(found, key=lambda each: each.cpu)


def table(known: dict[str, Peer], clients: int, best: dict[str, dict[str, Figures]]) -> None:
    print(f"### {clients} clients\n")
    print(
        "| server | µs CPU a message | delivered | p50 | p99 | p99.9 ms | of its core "
        "| the clients' | KB a client | ms CPU to accept |"
    )
    print("| --- " + "| ---: " * 9 + "|")
    for kind, group in best.items():
        for name, f in group.items():
            label = known[name].name + ("" if kind == "plain" else f", {kind}")
            print(
                f"| {label} | {f.cpu:.3f} | {f.ratio:.1%} | {f.p50:.1f} | {f.p99:.1f} | {f.p999:.1f} "
                f"| {f.busy:.0%} | {f.drain:.0%} | {f.memory:.1f} | {f.accept:.2f} |"
            )
    print(flush=True)


def judged(clients: int, best: dict[str, dict[str, Figures]]) -> list[Row]:
    plain, mixed, deflated = best["plain"], best["mixed"], best["deflate"]
    ours, packed = plain["keepline"], deflated["keepline"]
    rows = [
        Row(f"mixed subscriptions to the floor, {clients}", mixed["keepline"].cpu / mixed["floor"].cpu, "x", 1.25),
        Row(f"same subscriptions to the floor, {clients}", ours.cpu / plain["floor"].cpu, "x", 1.25),
        Row(f"deflate to the floor with deflate, {clients}", packed.cpu / deflated["floor"].cpu, "x"),
    ]  # fmt: skip
    if "bun" in plain:
        cheapest = min(plain["bun"].cpu, plain["bun each"].cpu)
        rows += [
            Row(f"to Bun at its cheapest, {clients}", ours.cpu / cheapest, "x", 1.35),
            Row(f"deflate to Bun, its own batching, {clients}", packed.cpu / deflated["bun each"].cpu, "x", 0.5),
            Row(f"deflate to Bun, joined by hand, {clients}", packed.cpu / deflated["bun"].cpu, "x"),
        ]  # fmt: skip
    if "websockets" in plain:
        theirs, each = plain["websockets"].cpu, plain["websockets each"].cpu
        rows += [
            Row(f"to websockets, joined by hand, {clients}", ours.cpu / theirs, "x", 0.8),
            Row(f"to websockets, broadcast of each, {clients}", ours.cpu / each, "x", 0.8),
        ]
    if "centrifuge" in plain:
        rows.append(Row(f"to centrifuge, {clients}", ours.cpu / plain["centrifuge"].cpu, "x", 0.5))
    if clients == 1000:
        rows += [
            Row("1,000,000 messages/s, delivered", ours.ratio * 100, "%", 99.5, at_least=True),
            Row("1,000,000 messages/s, p50", ours.p50, "ms", 16),
            Row("1,000,000 messages/s, p99", ours.p99, "ms", 32),
        ]
    return [
        *rows,
        Row(f"memory of an idle client, {clients}", ours.memory, "KB", 20),
        Row(f"memory of an idle client with deflate, {clients}", packed.memory, "KB", 32),
        Row(f"CPU to accept, sign in and subscribe, {clients}", ours.accept, "ms", 1),
    ]


def quiet(known: dict[str, Peer], rounds: int, seconds: float) -> list[Row]:
    """A message after 25 ms without any, at every client."""

    def p99(name: str, clients: int) -> float:
        found = [
            measure(known[name], clients, seconds * 2, rate=40.0, sampled=clients)
            for _ in range(rounds)
        ]
        return statistics.median([each.p99 for each in found])

    hundred, thousand, floor = p99("keepline", 100), p99("keepline", 1000), p99("floor", 1000)
    return [
        Row("after quiet, p99 at 100 clients", hundred, "ms", 3),
        Row("after quiet, p99 at 1,000 clients", thousand, "ms"),
        Row("after quiet, p99 at 1,000 clients to the floor", thousand / floor, "x", 1.25),
    ]


def one_client(known: dict[str, Peer], rounds: int, seconds: float) -> list[Row]:
    found = calmest([measure(known["keepline"], 1, seconds, rate=3000.0) for _ in range(rounds)])
    return [
        Row("3,000 messages/s to one client, delivered", found.ratio * 100, "%", 99, at_least=True),
        Row("3,000 messages/s to one client, p99", found.p99, "ms"),
    ]  # fmt: skip


def least(measured: Callable[[int], None], count: int) -> float:
    """Seconds of CPU per call, the least of several runs."""
    times = []
    for _ in range(7):
        begun = time.process_time()
        measured(count)
        times.append((time.process_time() - begun) / count)
    return min(times)


def to_ten_outboxes() -> Row:
    """One publish, encoding included, to ten clients of which no two have the same subscriptions."""
    extra = [Channel(f"extra-{i}", Policy.DROP_OLDEST, epoch="bench") for i in range(10)]
    hub = Hub([Channel("desk", Policy.DROP_OLDEST, epoch="bench"), *extra])
    for i in range(10):
        client = hub.connect(f"client{i}", 0.0)
        hub.subscribe(client, ["desk", f"extra-{i}"], 0.0)
    for now in (0.0, 0.1, 0.2):
        for delivery in hub.tick(now).deliveries:
            hub.hand(delivery)
    data = {"symbol": "EURUSD", "side": "BUY", "volume": 1.5, "lpSelected": "LP-ALPHA"}

    def publish(count: int) -> None:
        for number in range(count):
            hub.publish("desk", "note", data, 1.0 + number * 1e-6, key="EURUSD")

    value = least(publish, 20_000)
    return Row("publish one message to 10 clients' outboxes", value * 1e6, "µs", 5)


def inbound_limiter() -> Row:
    bucket = Bucket(1000, 1000, 0.0)

    def take(count: int) -> None:
        for number in range(count):
            bucket.take(number * 1e-3)

    return Row("inbound limiter", least(take, 100_000) * 1e9, "ns", 500)
