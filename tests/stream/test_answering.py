"""A server that asks is answered, always, once and in time; handlers run bounded and apart from each other."""

import asyncio
import logging

import pytest

from keepline.errors import ConfigError
from keepline.stream.answering import Answering
from keepline.stream.messages import Invocation
from keepline.testing import ManualClock

Answer = tuple[str, object, str | None]


class Answers:
    """Notes what would go to the server."""

    def __init__(self, *, limit: int = 10, seconds: float = 5.0) -> None:
        self.given: asyncio.Queue[Answer] = asyncio.Queue()
        self.clock = ManualClock()
        self.work = Answering(self._note, clock=self.clock, limit=limit, seconds=seconds)

    def _note(self, call_id: str, result: object = None, *, error: str | None = None) -> None:
        if isinstance(result, set):
            raise ConfigError("a set cannot be sent")
        self.given.put_nowait((call_id, result, error))

    async def ask(self, *handlers: object) -> Answer:
        for handler in handlers:
            self.work.dispatch.on("ask", handler)  # type: ignore[arg-type]
        self.work.asked(Invocation("Ask", [1], "7"))
        return await self.given.get()


async def test_what_a_handler_gives_back_is_the_answer() -> None:
    async def later(number: int) -> int:
        return number + 1

    assert await Answers().ask(lambda number: number) == ("7", 1, None)
    assert await Answers().ask(later) == ("7", 2, None)
    assert await Answers().ask(lambda _: None) == ("7", None, None)
    assert await Answers().ask(lambda _: None, later) == ("7", 2, None)


async def test_without_a_handler_there_is_an_error() -> None:
    assert await Answers().ask() == ("7", None, "Client didn't provide a result.")


async def test_several_results_are_an_error() -> None:
    answer = await Answers().ask(lambda _: 1, lambda _: 2)
    assert answer == ("7", None, "Client provided multiple results.")


async def test_an_error_tells_the_server_its_kind_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: int) -> None:
        raise ValueError("a secret")

    async def broken_later(_: int) -> None:
        raise ValueError("a secret")

    for handler in (broken, broken_later):
        answers = Answers()
        expected = ("7", None, "Ask: the handler failed (ValueError)")
        assert await answers.ask(handler) == expected
        assert answers.work.failures == 1
    assert "Stream handler failed" in caplog.text


async def test_the_others_run_when_one_raises() -> None:
    seen: list[int] = []

    def broken(_: int) -> None:
        raise ValueError

    _, result, error = await Answers().ask(broken, seen.append)
    assert (seen, result) == ([1], None)
    assert error


async def test_a_handler_that_takes_too_long_is_stopped_and_answered_for() -> None:
    stopped = asyncio.Event()

    async def never(_: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    answers = Answers(seconds=5.0)
    waiting = asyncio.ensure_future(answers.ask(never))
    await answers.clock.until_asleep()
    answers.clock.advance(5.0)
    assert await waiting == ("7", None, "Ask: no answer within 5 s")
    await stopped.wait()


async def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    answer = await Answers().ask(lambda _: {1, 2})
    assert answer == ("7", None, "Ask: the result cannot be sent")


async def test_a_server_that_no_longer_waits_stops_the_handler() -> None:
    stopped = asyncio.Event()
    begun = asyncio.Event()

    async def never(_: int) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    answers = Answers()
    answers.work.dispatch.on("ask", never)
    answers.work.asked(Invocation("ask", [1], "7"))
    await begun.wait()
    answers.work.cancelled("7")
    answers.work.cancelled("unknown")
    await stopped.wait()
    assert answers.given.empty()


async def test_one_more_than_may_run_is_refused_and_counted() -> None:
    release = asyncio.Event()
    done: list[int] = []

    async def wait(number: int) -> None:
        await release.wait()
        done.append(number)

    answers = Answers(limit=2)
    answers.work.dispatch.on("tick", wait)
    answers.work.dispatch.on("ask", wait)
    answers.work.dispatch.deliver([Invocation("tick", [number]) for number in range(4)])
    assert (len(answers.work.tasks), answers.work.failures) == (2, 2)
    answers.work.asked(Invocation("ask", [9], "7"))
    assert await answers.given.get() == ("7", None, "ask: too many handlers are at work")
    release.set()
    await asyncio.wait(answers.work.tasks)
    assert done == [0, 1]


async def test_a_broken_handler_is_no_log_storm(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: int) -> None:
        raise ValueError

    answers = Answers()
    answers.work.dispatch.on("tick", broken)
    with caplog.at_level(logging.ERROR):
        answers.work.dispatch.deliver([Invocation("tick", [1])] * 1000)
    assert answers.work.failures == 1000
    assert len(caplog.records) == 10


async def test_stopping_cancels_what_runs() -> None:
    cancelled: list[int] = []

    async def never(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(number)

    answers = Answers()
    answers.work.dispatch.on("tick", never)
    answers.work.dispatch.deliver([Invocation("tick", [1]), Invocation("tick", [2])])
    await asyncio.sleep(0)
    await answers.work.stop()
    assert sorted(cancelled) == [1, 2]
    await answers.work.stop()


async def test_a_plain_value_that_nobody_waits_for_is_dropped() -> None:
    answers = Answers()
    answers.work.dispatch.on("tick", lambda number: number)
    assert answers.work.dispatch.deliver([Invocation("tick", [1])]) == []
    assert not answers.work.tasks


async def test_nothing_is_kept_of_a_call_that_was_answered() -> None:
    async def later(_: int) -> str:
        await asyncio.sleep(0)
        return "done"

    answers = Answers()
    assert await answers.ask(later) == ("7", "done", None)
    for task in list(answers.work.tasks):
        await task
    assert not answers.work._owed
