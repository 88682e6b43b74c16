import asyncio

import pytest

from keepline.daemon.parts import Part, Supervisor
from keepline.resilience.backoff import Backoff
from keepline.testing import ManualClock


class Diary(Part):
    """A part that writes down what happens to it and fails on command."""

    def __init__(self, name: str, pages: list[str], *, essential: bool = False) -> None:
        self.name = name
        self.essential = essential
        self.pages = pages
        self.start_errors: list[Exception] = []
        self.break_now = asyncio.Event()
        self.stop_hangs = False
        self.stop_error: Exception | None = None
        self.answer = (True, "running")

    async def start(self) -> None:
        self.pages.append(f"start {self.name}")
        if self.start_errors:
            raise self.start_errors.pop(0)

    async def run(self) -> None:
        await self.break_now.wait()
        self.break_now.clear()
        raise OSError(f"{self.name} broke")

    async def stop(self) -> None:
        self.pages.append(f"stop {self.name}")
        if self.stop_error:
            raise self.stop_error
        if self.stop_hangs:
            await asyncio.get_running_loop().create_future()

    def ready(self) -> tuple[bool, str]:
        return self.answer


def three(pages: list[str]) -> tuple[Diary, Diary, Diary]:
    return Diary("a", pages), Diary("b", pages), Diary("c", pages)


async def test_parts_start_in_order_and_stop_in_reverse() -> None:
    pages: list[str] = []
    supervisor = Supervisor(three(pages), clock=ManualClock())
    await supervisor.start()
    assert pages == ["start a", "start b", "start c"]
    await supervisor.stop()
    assert pages[3:] == ["stop c", "stop b", "stop a"]


async def test_a_second_stop_does_nothing() -> None:
    pages: list[str] = []
    supervisor = Supervisor(three(pages), clock=ManualClock())
    await supervisor.start()
    await supervisor.stop()
    await supervisor.stop()
    assert pages.count("stop a") == 1


async def test_each_part_answers_for_itself() -> None:
    a, b, c = three([])
    b.answer = (False, "token expired")
    supervisor = Supervisor((a, b, c), clock=ManualClock())
    assert [part.reason for part in supervisor.readiness()] == ["stopped"] * 3
    await supervisor.start()
    assert [(p.name, p.ready, p.reason) for p in supervisor.readiness()] == [
        ("a", True, "running"),
        ("b", False, "token expired"),
        ("c", True, "running"),
    ]
    assert not supervisor.ready
    b.answer = (True, "running")
    assert supervisor.ready
    await supervisor.stop()


async def test_an_essential_part_that_cannot_start_stops_the_others_and_says_why() -> None:
    pages: list[str] = []
    a, _, c = three(pages)
    b = Diary("b", pages, essential=True)
    b.start_errors = [OSError("somebody owns the socket")]
    with pytest.raises(OSError, match="somebody owns the socket"):
        await Supervisor((a, b, c), clock=ManualClock()).start()
    assert pages == ["start a", "start b", "stop b", "stop a"]


async def test_another_part_that_cannot_start_comes_back_alone() -> None:
    pages: list[str] = []
    clock = ManualClock()
    a, b, c = three(pages)
    b.start_errors = [OSError("port in use"), OSError("port in use")]
    supervisor = Supervisor((a, b, c), clock=clock, backoff=Backoff((1.0, 4.0), jitter=0))
    await supervisor.start()
    assert supervisor.readiness()[1].reason == "waiting: port in use"
    assert supervisor.readiness()[2].ready
    await clock.run_until(lambda: supervisor.ready)
    assert clock.boottime() == 5.0
    assert pages.count("start b") == 3
    assert pages.count("start a") == pages.count("start c") == 1
    await supervisor.stop()


async def test_a_part_that_breaks_later_is_stopped_and_started_again() -> None:
    pages: list[str] = []
    clock = ManualClock()
    a, b, c = three(pages)
    supervisor = Supervisor((a, b, c), clock=clock, backoff=Backoff((2.0,), jitter=0))
    await supervisor.start()
    b.break_now.set()
    await clock.run_until(lambda: pages.count("start b") == 2)
    assert pages == ["start a", "start b", "start c", "stop b", "start b"]
    assert clock.boottime() == 2.0
    await supervisor.stop()


async def test_failures_are_forgotten_after_a_time_of_service() -> None:
    pages: list[str] = []
    clock = ManualClock()
    part = Diary("a", pages)
    backoff = Backoff((1.0, 100.0), jitter=0)
    supervisor = Supervisor([part], clock=clock, backoff=backoff, steady_after=60.0)
    await supervisor.start()
    for expected in (1.0, 1.0):
        clock.advance(60.0)
        before = clock.boottime()
        starts = pages.count("start a")
        part.break_now.set()
        await clock.run_until(lambda starts=starts: pages.count("start a") > starts)
        assert clock.boottime() - before == expected
    part.break_now.set()
    before = clock.boottime()
    await clock.run_until(lambda: pages.count("start a") == 4)
    assert clock.boottime() - before == 100.0
    await supervisor.stop()


async def test_a_part_that_simply_ends_counts_as_failed() -> None:
    class Short(Part):
        name = "short"

        async def run(self) -> None:
            return

    clock = ManualClock()
    supervisor = Supervisor([Short()], clock=clock)
    await supervisor.start()
    await clock.run_until(
        lambda: supervisor.readiness()[0].reason == "waiting: it ended", limit=0.9
    )
    await supervisor.stop()


async def test_a_part_that_does_not_drain_is_left_behind_after_its_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pages: list[str] = []
    clock = ManualClock()
    a, b, c = three(pages)
    b.stop_hangs = True
    c.stop_error = RuntimeError("bad day")
    supervisor = Supervisor((a, b, c), clock=clock)
    await supervisor.start()
    stopping = asyncio.create_task(supervisor.stop())
    await clock.run_until(stopping.done)
    assert clock.boottime() == b.drain_seconds
    assert pages[3:] == ["stop c", "stop b", "stop a"]
    assert caplog.messages.count("Part did not drain") == 2


async def test_a_part_that_waits_for_its_next_try_stops_at_once() -> None:
    pages: list[str] = []
    a = Diary("a", pages)
    a.start_errors = [OSError()]
    supervisor = Supervisor([a], clock=ManualClock())
    await supervisor.start()
    assert supervisor.readiness()[0].reason == "waiting: OSError"
    assert "a waiting" in repr(supervisor)
    await supervisor.stop()
    assert pages == ["start a", "stop a"]
    assert supervisor.readiness()[0].reason == "stopped: OSError"


async def test_a_plain_part_starts_stops_and_is_ready() -> None:
    supervisor = Supervisor([Part()], clock=ManualClock())
    await supervisor.start()
    assert supervisor.ready
    await supervisor.stop()
