"""`HubPublisher` and `Tail` against the hub itself: its numbers, its keys, its journal, its close codes."""

import asyncio
import concurrent.futures
import contextlib
from pathlib import Path
from typing import Any

import pytest
from tests.hub.hub_double import on_manual_time
from tests.hub.hub_server import RunningHub, running_hub, token

from keepline.errors import PermanentError, SignInRequired, StorageError
from keepline.hub.publisher import HubPublisher
from keepline.hub.tail import Tail
from keepline.testing import ManualClock


async def held(hub: RunningHub, channel: str) -> list[Any]:
    _, told, _ = await hub.ask("GET", f"/api/history/{channel}?limit=1000")
    return [message["data"] for message in told["messages"]]


async def first(tail: Tail, count: int) -> list[dict[str, Any]]:
    shown = []
    async with contextlib.aclosing(tail.messages()) as messages:
        async for message in messages:
            shown.append(message)
            if len(shown) == count:
                break
    return shown


async def test_messages_arrive_in_order_and_alerts_are_stored(tmp_path: Path) -> None:
    async with (
        running_hub(tmp_path) as running,
        HubPublisher(running.hub.url, token("svc"), batch_messages=100) as publisher,
    ):
        for number in range(250):
            publisher.publish("routing-metrics", "t", number)
            publisher.publish("alerts", "alert", number)
        assert await publisher.flush()
        await publisher.publish_durable("alerts", "alert", 250)
        assert await held(running, "routing-metrics") == list(range(250))
        assert await held(running, "alerts") == list(range(251))
        assert publisher.get_stats()["accepted"] == 501
    async with running_hub(tmp_path) as running:
        assert await held(running, "alerts") == list(range(251))


async def test_a_known_id_is_a_duplicate_and_a_bad_line_is_refused_with_the_hubs_words(
    tmp_path: Path,
) -> None:
    async with (
        running_hub(tmp_path, max_publish_bytes=4096) as running,
        HubPublisher(running.hub.url, token("svc")) as publisher,
    ):
        for _ in range(2):
            publisher.publish("alerts", "alert", 1, id="mine")
        with pytest.raises(PermanentError, match=r"there is no such channel \(unknown_channel"):
            await publisher.publish_durable("nowhere", "t", 1)
        with pytest.raises(PermanentError, match=r"at most 4096 bytes are taken here \(too_large"):
            await publisher.publish_durable("alerts", "alert", "x" * 5000)
        assert await held(running, "alerts") == [1]
        stats = publisher.get_stats()
        assert (stats["accepted"], stats["duplicate"], stats["refused"]) == (1, 1, 2)


async def test_a_token_that_is_refused_is_asked_for_anew_with_the_hubs_words(
    tmp_path: Path,
) -> None:
    tokens = [token("svc", iat=1, exp=2), token("svc")]
    clock = ManualClock()
    async with (
        running_hub(tmp_path) as running,
        HubPublisher(running.hub.url, lambda: tokens.pop(0), clock=clock) as publisher,
    ):
        publisher.publish("alerts", "alert", 1)
        await clock.until_asleep()
        assert "answered 401: the token has expired" in publisher.last_error
        assert await on_manual_time(clock, publisher.flush())
        assert await held(running, "alerts") == [1]


async def test_a_journal_that_fails_for_a_while_makes_no_message_twice_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path) as running:
        registrar = running.hub.registrar
        real = registrar.post
        failures: list[concurrent.futures.Future[Any]] = []

        def post(*arguments: Any, **more: Any) -> Any:
            if len(failures) == 2:
                return real(*arguments, **more)
            failures.append(concurrent.futures.Future())
            failures[-1].set_exception(StorageError("the disk is full"))
            return failures[-1]

        monkeypatch.setattr(registrar, "post", post)
        async with HubPublisher(running.hub.url, token("svc"), clock=clock) as publisher:
            publisher.publish("routing-metrics", "t", 1)
            publisher.publish("alerts", "alert", 1)
            publisher.publish("lp-performance", "t", 1, key="LP1")
            await on_manual_time(clock, publisher.flush())
        assert len(failures) == 2
        for channel in ("routing-metrics", "alerts", "lp-performance"):
            assert await held(running, channel) == [1], channel


async def test_many_publishers_and_a_follower_see_everything_once(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:

        async def publish(own: int) -> None:
            async with HubPublisher(running.hub.url, token("svc")) as publisher:
                for number in range(100):
                    publisher.publish("alerts", "alert", [own, number])

        following = asyncio.ensure_future(
            first(Tail(running.hub.url, token("tom"), ["alerts"]), 500)
        )
        await asyncio.gather(*(publish(own) for own in range(5)))
        shown = await following
    assert [message["offset"] for message in shown] == list(range(1, 501))
    for own in range(5):
        mine = [n for who, n in (message["data"] for message in shown) if who == own]
        assert mine == list(range(100))


async def test_a_follower_resumes_at_the_next_life_of_the_hub(tmp_path: Path) -> None:
    notes: list[str] = []
    async with running_hub(tmp_path) as running:
        url, port = running.hub.url, running.hub.port
        tail = Tail(url, token("tom"), ["alerts", "exposure-updates"], note=notes.append)
        messages = tail.messages()
        await running.hub.publish_durable("alerts", "alert", 1)
        running.hub.publish("exposure-updates", "t", 1, key="total")
        shown = [await anext(messages), await anext(messages)]
    async with running_hub(tmp_path, port=port) as running:
        await running.hub.publish_durable("alerts", "alert", 2)
        running.hub.publish("exposure-updates", "t", 2, key="total")
        shown += [await anext(messages), await anext(messages)]
        await messages.aclose()
    seen = sorted((message["channel"], message["data"]) for message in shown)
    assert seen == [
        *(("alerts", 1), ("alerts", 2)),
        *(("exposure-updates", 1), ("exposure-updates", 2)),
    ]
    assert notes
    assert not any("missed" in note for note in notes if "alerts" in note)


async def test_a_follower_that_is_withdrawn_does_not_come_back(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        messages = Tail(running.hub.url, token("tom"), ["alerts"]).messages()
        await running.hub.publish_durable("alerts", "alert", 1)
        await anext(messages)
        await running.hub.revoke("tom")
        with pytest.raises(SignInRequired, match="withdrawn"):
            await anext(messages)


async def test_a_follower_that_may_nothing_ends_and_one_that_may_some_goes_on(
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    async with running_hub(tmp_path) as running:
        with pytest.raises(PermanentError, match="forbidden"):
            await first(Tail(running.hub.url, token("vic"), ["system", "routing-metrics"]), 1)
        await running.hub.publish_durable("alerts", "alert", 1)
        tail = Tail(running.hub.url, token("vic"), ["system", "alerts"], note=notes.append)
        assert [message["data"] for message in await first(tail, 1)] == [1]
        assert "(forbidden)" in notes[0]
