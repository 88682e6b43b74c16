"""The newest token as a header, and awaiting by hand."""

import asyncio
from dataclasses import dataclass

import pytest

from keepline.errors import ConfigError, TokenUnavailable
from keepline.resilience.bearer import Bearer, until
from keepline.testing import ManualClock

FOREVER = float("inf")


@dataclass(frozen=True)
class Token:
    access_token: str
    generation: int = 1
    token_type: str = "Bearer"


class Manager:
    def __init__(self) -> None:
        self.token = Token("first-secret")
        self.asked: list[int | None] = []
        self.refused = asyncio.Event()
        self.renewed = asyncio.Event()

    async def get(self, *, newer_than: int | None = None) -> Token:
        self.asked.append(newer_than)
        if newer_than is not None and newer_than >= self.token.generation:
            self.refused.set()
            await self.renewed.wait()
        return self.token


class TextOnly:
    text = "first-secret"

    async def get_token(self) -> str:
        return self.text


async def test_the_header_of_an_unchanged_token_is_the_same_object() -> None:
    bearer = Bearer(Manager(), {"Accept": "application/json"})
    assert bearer.fetch is not None
    headers = bearer.headers(await bearer.fetch())
    assert headers == {"Accept": "application/json", "Authorization": "Bearer first-secret"}
    assert bearer.headers(await bearer.fetch()) is headers
    assert bearer.headers(Token("b", token_type="Token"))["Authorization"] == "Token b"
    assert bearer.bare == {"Accept": "application/json"}


async def test_a_newer_token_is_waited_for_by_generation() -> None:
    manager = Manager()
    bearer = Bearer(manager, {})
    bearer.headers(await manager.get())
    waiting = asyncio.ensure_future(bearer.newer(ManualClock(), 5, manager.token))
    await manager.refused.wait()
    assert manager.asked == [None, 1]
    manager.token = Token("second-secret", 2)
    manager.renewed.set()
    assert await waiting


async def test_the_wait_for_a_newer_token_ends_at_the_deadline() -> None:
    manager, clock = Manager(), ManualClock()
    bearer = Bearer(manager, {})
    bearer.headers(manager.token)
    waiting = asyncio.ensure_future(bearer.newer(clock, 5, manager.token))
    await clock.run_until(waiting.done)
    with pytest.raises(TimeoutError):
        await waiting
    assert clock.boottime() == 5


@pytest.mark.parametrize("kind", ["holder", "callable", "lambda"])
async def test_a_source_of_texts_is_asked_once_more(kind: str) -> None:
    holder = TextOnly()
    source = {"holder": holder, "callable": holder.get_token, "lambda": lambda: holder.get_token()}[
        kind
    ]
    bearer = Bearer(source, {})
    assert bearer.fetch is not None
    assert bearer.headers(await bearer.fetch())["Authorization"] == "Bearer first-secret"
    assert not await bearer.newer(ManualClock(), 5, "first-secret")
    holder.text = "second-secret"
    assert await bearer.newer(ManualClock(), 5, "first-secret")


async def test_without_a_source_or_a_token_sent_nothing_is_newer() -> None:
    assert not await Bearer(None, {}).newer(ManualClock(), 5, "sent")
    assert not await Bearer(TextOnly(), {}).newer(ManualClock(), 5, None)


def test_an_empty_token_is_not_sent() -> None:
    with pytest.raises(TokenUnavailable, match="empty token"):
        Bearer(TextOnly(), {}).headers("")


def test_a_token_that_an_answer_quotes_is_hidden() -> None:
    bearer = Bearer(TextOnly(), {})
    assert bearer.hide("x first-secret") == "x first-secret"
    bearer.headers("first-secret")
    assert bearer.hide("x first-secret y") == "x [redacted] y"
    assert bearer.hide("x other-secret first-secret", "other-secret") == "x [redacted] [redacted]"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("your token first-sec…", "your token [redacted]…"),
        ("first-se", "[redacted]"),
        ("first-secret first-secure", "[redacted] [redacted]ure"),
        ("first", "first"),
    ],
)
def test_the_beginning_of_a_token_where_a_quote_was_cut_off_is_hidden_too(
    text: str, seen: str
) -> None:
    assert Bearer(None, {}).hide(text, "first-secret") == seen


def test_a_token_that_is_part_of_its_own_substitute_ends_the_hiding() -> None:
    assert Bearer(None, {}).hide("a redacted b", "redacted") == "a [redacted] b"


def test_a_source_of_no_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="async callable is needed, not str"):
        Bearer("a-token", {})  # type: ignore[arg-type]


def test_a_bearer_says_where_its_token_comes_from_and_never_the_token() -> None:
    bearer = Bearer(Manager(), {})
    bearer.headers(Token("first-secret"))
    assert str(bearer) == "Manager, waits for a newer one after a 401"
    assert str(Bearer(TextOnly(), {})) == "TextOnly, asked again after a 401"
    assert str(Bearer(TextOnly().get_token, {})).startswith("TextOnly.get_token")
    assert str(Bearer(None, {})) == "none"


async def test_until_passes_value_error_and_cancellation_through() -> None:
    clock, gate = ManualClock(), asyncio.Event()
    seen: list[str] = []

    async def work(*, fail: bool = False) -> str:
        try:
            await gate.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        if fail:
            raise KeyError("x")
        return "done"

    for seconds in (5, FOREVER):
        cancelled = asyncio.ensure_future(until(clock, seconds, work()))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        waiting = asyncio.ensure_future(until(clock, seconds, work()))
        failing = asyncio.ensure_future(until(clock, seconds, work(fail=True)))
        await asyncio.sleep(0)
        gate.set()
        assert await waiting == "done"
        with pytest.raises(KeyError):
            await failing
        gate.clear()
    assert seen == ["cancelled", "cancelled"]
    assert clock.next_wake is None


async def test_until_the_time_is_up_the_work_is_cancelled() -> None:
    clock, never = ManualClock(), asyncio.Event()
    waiting = asyncio.ensure_future(until(clock, 3, never.wait()))
    await clock.run_until(waiting.done)
    with pytest.raises(TimeoutError):
        await waiting
    assert clock.boottime() == 3
