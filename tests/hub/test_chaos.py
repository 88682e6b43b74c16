"""Things go wrong on a large scale: nobody is hurt by another, and what was promised is kept, message by message."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientError, ClientSession
from tests.hub.glass import Glass, room_for, unread
from tests.hub.house import AUDIENCE, ISSUER, SECRET, claims, settings, token
from tests.hub.screen import Screen

from keepline.errors import QueueFull
from keepline.hub.server import AnalyticsHub
from keepline.hub.settings import CHANNELS
from keepline.testing import ManualClock

TEXT = "x" * 1000
EVERYTHING = ["routing-metrics", "exposure-updates", "alerts"]


async def turn(times: int = 1) -> None:
    """Let the loop look at its sockets."""
    for _ in range(times):
        await asyncio.sleep(0)


async def leave(glasses: list[Glass]) -> None:
    for glass in glasses:
        await glass.leave()


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into Linux's queues")
async def test_one_that_never_reads_among_500_costs_little_and_hurts_nobody(tmp_path: Path) -> None:
    clients, rounds, burst = room_for(500), 60, 25
    async with AnalyticsHub(settings(tmp_path)) as hub:
        bearer = token()
        glasses = [
            await Glass.open(hub.port, bearer, ["routing-metrics"]) for _ in range(clients - 2)
        ]
        witness = await Glass.open(hub.port, bearer, ["routing-metrics"], screen=Screen())
        stalled = await Glass.open(
            hub.port, bearer, ["routing-metrics"], screen=Screen(), buffer=4096
        )
        everybody = [*glasses, witness, stalled]
        for glass in everybody:
            await glass.until(lambda glass=glass: glass.offsets >= 2)  # subscribed, and a snapshot
        connection = next(
            each
            for each in hub.attendance.connections
            if each.transport.get_extra_info("peername")
            == stalled.transport.get_extra_info("sockname")
        )
        stalled.transport.pause_reading()
        own: socket.socket = connection.transport.get_extra_info("socket")
        before, largest, kernel = resident(), 0, 0
        for number in range(rounds):
            for each in range(burst):
                data = {"number": number * burst + each, "text": TEXT}
                hub.publish("routing-metrics", "routing-decision", data)
            wanted = 2 + (number + 1) * burst
            for glass in [*glasses, witness]:
                await glass.until(lambda glass=glass, wanted=wanted: glass.offsets >= wanted)
            largest = max(largest, connection.transport.get_write_buffer_size())
            kernel = max(kernel, unread(own._sock if hasattr(own, "_sock") else own))
        total = rounds * burst
        assert largest <= 60 * 1200  # one frame of at most 50 messages
        assert kernel <= 256 * 1024 < total * 1000  # of what it was sent in that time
        assert resident() - before < 64 << 20
        assert [glass.offsets for glass in glasses] == [2 + total] * len(glasses)
        assert witness.screen.seen["routing-metrics"] == list(range(1, total + 1))
        assert not witness.screen.gaps
        stalled.transport.resume_reading()
        hub.publish("routing-metrics", "routing-decision", {"number": "last"})
        await stalled.until(lambda: stalled.screen.position.get("routing-metrics") == total + 1)
        lost, seen = stalled.screen.lost["routing-metrics"], stalled.screen.seen["routing-metrics"]
        assert lost + len(seen) == total + 1  # what it did not get is announced where it was
        assert lost > total // 2  # and what it got in the end is fresh
        assert lost == connection.client.dropped
        await leave(everybody)


@pytest.mark.timeout(120)
async def test_two_thousand_that_come_back_at_once_get_exactly_what_they_missed(
    tmp_path: Path,
) -> None:
    clients = room_for(2000)
    async with AnalyticsHub(settings(tmp_path)) as hub:
        bearer = token()

        async def come(screen: Screen) -> Glass:
            resume = screen.resume(EVERYTHING)
            glass = await Glass.open(hub.port, bearer, EVERYTHING, screen=screen, resume=resume)
            assert glass.status == 101
            await glass.until(lambda: len(screen.subscribed) == 3)
            return glass

        async def publish(count: int) -> None:
            for number in range(count):
                hub.publish("exposure-updates", "exposure-change", {"n": number}, key="desk")
                hub.publish("routing-metrics", "routing-decision", {"n": number})
                await hub.publish_durable("alerts", "alert", {"n": number}, key=str(number))

        def at(glass: Glass, offset: int) -> Callable[[], bool]:
            assert glass.screen is not None
            positions = glass.screen.position
            return lambda: all(positions.get(name) == offset for name in EVERYTHING)

        await publish(3)
        screens = [Screen() for _ in range(clients)]
        glasses = list(await asyncio.gather(*(come(screen) for screen in screens)))
        await publish(5)
        for glass in glasses:
            await glass.until(at(glass, 8))
        for connection in hub.attendance.connections:
            connection.transport.abort()
        for glass in glasses:
            await glass.lost.wait()
        await publish(7)
        for screen in screens:
            screen.subscribed.clear()
        glasses = list(await asyncio.gather(*(come(screen) for screen in screens)))
        await publish(2)
        for glass in glasses:
            await glass.until(at(glass, 17))
        for screen in screens:
            assert screen.seen["alerts"][-14:] == list(range(4, 18))
            assert screen.seen["routing-metrics"] == list(range(4, 18))
            assert not screen.gaps
            assert screen.state["exposure-updates"] == {"desk": {"n": 1}}
        assert len(hub.attendance) == clients
        await leave(glasses)


async def test_a_publisher_faster_than_everything_loses_nothing_unannounced(tmp_path: Path) -> None:
    count = 8000
    channels = tuple(msgspec.structs.replace(each, retention_count=100_000) for each in CHANNELS)
    async with AnalyticsHub(settings(tmp_path, channels=channels)) as hub:
        glass = await Glass.open(hub.port, token(), EVERYTHING, screen=Screen())
        await glass.until(lambda: len(glass.screen.subscribed) == 3)
        taken = dict.fromkeys(EVERYTHING, 0)
        mutex = threading.Lock()

        def flood(channel: str, start: int) -> None:
            for number in range(start, start + count):
                with contextlib.suppress(QueueFull):  # said at once, to the one who publishes
                    hub.publish(channel, "thing", {"n": number}, key="one")
                    with mutex:
                        taken[channel] += 1

        floods = [
            asyncio.to_thread(flood, channel, part * count)
            for channel in EVERYTHING
            for part in (range(2) if channel != "alerts" else range(1))
        ]
        await asyncio.gather(*floods)
        # what lies in the inbox is before these
        for channel in EVERYTHING:
            await asyncio.to_thread(hub.publish, channel, "thing", {"n": "last"}, key="one")
            taken[channel] += 1
        for channel in EVERYTHING:
            await glass.until(
                lambda channel=channel: glass.screen.position.get(channel) == taken[channel]
            )
        screen = glass.screen
        assert screen.seen["alerts"] == list(range(1, taken["alerts"] + 1))
        routed = len(screen.seen["routing-metrics"]) + screen.lost.get("routing-metrics", 0)
        assert routed == taken["routing-metrics"]
        assert screen.state["exposure-updates"] == {"one": {"n": "last"}}
        assert all(gap["channel"] == "routing-metrics" for gap in screen.gaps)
        assert screen.largest <= 50
        await glass.leave()


class Mortal:
    """A hub's process that is started and killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0

    async def start(self) -> None:
        program = Path(__file__).with_name("mortal_hub.py")
        words = (str(self._directory), str(self.port), ISSUER, AUDIENCE, SECRET)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program), *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self.port = int(await self._process.stdout.readline())

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[Mortal]:
    tmp_path.chmod(0o700)
    mortal = Mortal(tmp_path)
    await mortal.start()
    yield mortal
    await mortal.kill()


async def test_killed_at_any_moment_no_alert_that_was_taken_is_lost_or_comes_twice(
    mortal: Mortal,
) -> None:
    taken: set[str] = set()
    got: list[str] = []
    screens = [Screen() for _ in range(5)]
    number = 0

    def note(message: dict[str, Any]) -> None:
        if message["type"] == "alert":
            got.append(message["data"]["n"])

    async def publish(http: ClientSession) -> None:
        nonlocal number
        while True:
            number += 1
            url = f"http://127.0.0.1:{mortal.port}/api/publish"
            lines = [
                {"channel": "alerts", "type": "alert", "id": f"a{number}"},
                {"channel": "exposure-updates", "type": "thing", "key": "desk"},
                {"channel": "routing-metrics", "type": "thing"},
            ]
            data = {"n": str(number)}
            body = b"\n".join(msgspec.json.encode({**line, "data": data}) for line in lines)
            async with http.post(url, data=body) as answer:
                told = await answer.json()
                assert told["accepted"] == 3, told
                taken.add(str(number))

    async def come(screen: Screen, first: bool) -> Glass:
        glass = await Glass.open(mortal.port, token(), screen=screen)
        glass.on_message = note if first else None
        screen.subscribed.clear()
        resume = screen.resume(EVERYTHING)
        glass.ask(action="subscribe", channels=EVERYTHING, resume=resume)
        await glass.until(lambda: len(screen.subscribed) == 3)
        return glass

    headers = {
        "Authorization": f"Bearer {token('bot', 'service')}",
        "Content-Type": "application/x-ndjson",
    }
    async with ClientSession(headers=headers) as http:
        for life in range(3):
            epochs = {name: screens[0].epoch.get(name) for name in EVERYTHING}
            gaps = len(screens[0].gaps)
            glasses = [await come(screen, screen is screens[0]) for screen in screens]
            if life:
                assert screens[0].epoch["alerts"] == epochs["alerts"]
                assert screens[0].epoch["exposure-updates"] != epochs["exposure-updates"]
                told = {(gap["channel"], gap["reason"]) for gap in screens[0].gaps[gaps:]}
                assert told == {("exposure-updates", "epoch"), ("routing-metrics", "epoch")}
            publishing = asyncio.ensure_future(publish(http))
            enough = len(got) + 40
            await glasses[0].until(lambda enough=enough: len(got) >= enough)
            await mortal.kill()
            with contextlib.suppress(ClientError, ConnectionError):
                await publishing
            for glass in glasses:
                await glass.lost.wait()
            await mortal.start()
    glasses = [await come(screen, screen is screens[0]) for screen in screens]
    await glasses[0].until(lambda: taken <= set(got))
    assert len(got) == len(set(got))  # each once, over three lives
    assert [int(each) for each in got] == sorted(int(each) for each in got)
    end = screens[0].position["alerts"]
    for glass in glasses:
        await glass.until(lambda glass=glass: glass.screen.position["alerts"] == end)
    assert all(screen.seen["alerts"] == list(range(1, end + 1)) for screen in screens)
    await leave(glasses)


async def moved(clock: ManualClock, done: Callable[[], object], step: float = 0.016) -> None:
    """Let time pass in small steps until this is true."""
    for _ in range(200_000):
        if done():
            return
        clock.advance(step)
        await turn()
    raise AssertionError("it never came true")


def at_clock(clock: ManualClock, seconds: float, user: str = "ann") -> str:
    now = int(clock.wall().timestamp())
    return token(user, **claims(user, iat=now, exp=now + seconds))


async def test_the_wall_clock_jumps_and_deliveries_do_not_care(tmp_path: Path) -> None:
    clock = ManualClock()
    async with AnalyticsHub(settings(tmp_path), clock=clock) as hub:
        opening = asyncio.ensure_future(
            Glass.open(hub.port, at_clock(clock, 30 * 86_400), EVERYTHING, screen=Screen())
        )
        await moved(clock, opening.done)
        glass = opening.result()
        stamps: list[str] = []
        glass.on_message = lambda message: stamps.append(message["timestamp"])
        await moved(clock, lambda: len(glass.screen.subscribed) == 3)
        number = 0
        for jump in (86_400.0, -3600.0, -86_400.0, 0.5, -0.5, 3600.0):
            clock.jump_wall(jump)
            end = clock.boottime() + 3
            await moved(clock, lambda end=end: clock.boottime() >= end, 0.5)
            for _ in range(5):
                number += 1
                hub.publish("routing-metrics", "thing", {"n": number})
                hub.publish("exposure-updates", "thing", {"n": number}, key="desk")
                await hub.publish_durable("alerts", "alert", {"n": number})
            await moved(
                clock,
                lambda at=number: all(glass.screen.position.get(name) == at for name in EVERYTHING),
            )
            told = stamps[-1]
            assert told[:16] == clock.wall().isoformat()[:16]
        assert not glass.screen.gaps
        assert glass.screen.seen["alerts"] == list(range(1, number + 1))
        assert not glass.lost.is_set()
        clock.jump_wall(60 * 86_400)  # now the token has expired
        await moved(clock, lambda: glass.code, 0.5)
        assert glass.code == 3002
        await glass.leave()


async def test_tokens_that_expire_under_load_end_their_connections_alone(tmp_path: Path) -> None:
    clock = ManualClock()
    async with AnalyticsHub(settings(tmp_path), clock=clock) as hub:
        glasses: list[Glass] = []
        for number in range(60):
            bearer = at_clock(clock, 120, f"user-{number}")
            opening = asyncio.ensure_future(
                Glass.open(hub.port, bearer, ["routing-metrics"], screen=Screen())
            )
            await moved(clock, opening.done, 0.001)
            glasses.append(opening.result())
        careful, careless = glasses[:30], glasses[30:]
        told = {"expiring": 0, "refreshed": 0}

        def listen(number: int, glass: Glass) -> Callable[[dict[str, Any]], None]:
            def hear(message: dict[str, Any]) -> None:
                if message["type"] in told:
                    told[message["type"]] += 1
                if message["type"] == "expiring" and glass in careful:
                    glass.ask(action="refresh", token=at_clock(clock, 900, f"user-{number}"))

            return hear

        for number, glass in enumerate(glasses):
            glass.on_message = listen(number, glass)
        published = 0
        while not all(glass.lost.is_set() for glass in careless):
            published += 1
            hub.publish("routing-metrics", "thing", {"n": published})
            clock.advance(0.05)
            await turn(3)
            assert published < 20_000
        assert {glass.code for glass in careless} == {3002}
        assert told == {"expiring": 60, "refreshed": 30}
        await moved(
            clock,
            lambda: all(g.screen.position.get("routing-metrics") == published for g in careful),
        )
        for glass in careful:
            screen = glass.screen
            missed = screen.lost.get("routing-metrics", 0)
            assert len(screen.seen["routing-metrics"]) + missed == published
        assert len(hub.attendance) == 30
        await leave(careful)
