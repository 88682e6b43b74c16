"""The publisher against a real server: never waits, publishes once, says what it could not."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

import msgspec
import pytest
from aiohttp import web
from tests.hub.hub_double import HubDouble, cut, on_manual_time, status

from keepline.errors import Closed, ConfigError, PermanentError, QueueFull
from keepline.hub.publisher import HubPublisher
from keepline.hub.sending import RETRIES
from keepline.testing import ManualClock


@pytest.fixture
async def hub() -> AsyncIterator[HubDouble]:
    double = HubDouble()
    await double.start()
    yield double
    await double.stop()


async def test_messages_arrive_in_order_with_ids_where_nothing_may_be_lost(hub: HubDouble) -> None:
    async with HubPublisher(hub.url, "good") as publisher:
        for number in range(3):
            assert publisher.publish("routing-metrics", "routing-decision", {"n": number})
        publisher.publish("alerts", "alert", {"title": "x"})
        publisher.publish("lp-performance", "lp-metrics", {"lp": 1}, key="LP1", id="mine")
        assert await publisher.flush()
    kinds = [draft.channel for draft in hub.published]
    assert kinds[0] == "alerts"
    assert [each["n"] for each in hub.data if "n" in each] == [0, 1, 2]
    by_channel = {draft.channel: draft for draft in hub.published}
    assert len(by_channel["alerts"].id or "") == 24
    assert by_channel["routing-metrics"].id is None
    assert (by_channel["lp-performance"].key, by_channel["lp-performance"].id) == ("LP1", "mine")


async def test_what_comes_together_leaves_together(hub: HubDouble) -> None:
    async with HubPublisher(hub.url, "good", batch_messages=100) as publisher:
        for number in range(250):
            publisher.publish("routing-metrics", "t", number)
        await publisher.flush()
        stats = publisher.get_stats()
    assert hub.data == list(range(250))
    assert len(hub.requests) == stats["batches"] == 3
    assert (stats["accepted"], stats["waiting"], stats["in_flight"]) == (250, 0, 0)
    assert stats["last_error"] == ""


async def test_a_lost_answer_publishes_nothing_twice(hub: HubDouble) -> None:
    hub.after.append(cut)
    retries = RETRIES.value("network")
    async with HubPublisher(hub.url, "good") as publisher:
        publisher.publish("routing-metrics", "t", 1)
        assert await publisher.flush()
        assert publisher.last_error == ""
    assert hub.data == [1]
    (first_key, first), (second_key, second) = hub.requests
    assert (first_key, first) == (second_key, second)
    assert RETRIES.value("network") - retries == 1


async def test_two_batches_have_two_keys(hub: HubDouble) -> None:
    async with HubPublisher(hub.url, "good") as publisher:
        for number in range(2):
            publisher.publish("routing-metrics", "t", number)
            await publisher.flush()
    assert len({key for key, _ in hub.requests}) == 2


async def test_a_server_that_asks_for_time_gets_it(hub: HubDouble) -> None:
    hub.before += [status(429, **{"Retry-After": "7"}), status(503, **{"Retry-After": "3"})]
    clock = ManualClock()
    async with HubPublisher(hub.url, "good", clock=clock) as publisher:
        publisher.publish("routing-metrics", "t", 1)
        await hub.until(lambda: hub.requests)
        await clock.until_asleep()
        assert clock.next_wake == 7.0
        assert "answered 429" in publisher.last_error
        clock.advance(7.0)
        await hub.until(lambda: len(hub.requests) == 2)
        await clock.until_asleep()
        assert clock.next_wake == 3.0
        clock.advance(3.0)
        await hub.until(lambda: hub.published)
    assert hub.data == [1]
    assert publisher.get_stats()["retries"] == 2


async def test_a_hub_that_is_away_is_tried_again_and_the_newest_of_a_key_waits(
    hub: HubDouble, caplog
) -> None:
    caplog.set_level(logging.INFO, "keepline.hub")
    await hub.stop()
    clock = ManualClock()
    async with HubPublisher(hub.url, "good", clock=clock) as publisher:
        publisher.publish("routing-metrics", "t", "first")
        await clock.until_asleep()
        for number in range(100):
            publisher.publish("exposure-updates", "t", number, key="total")
        assert publisher.get_stats()["waiting"] == 1
        assert publisher.get_stats()["conflated"] == 99
        await hub.start()
        assert await on_manual_time(clock, publisher.flush())
    assert hub.data == ["first", 99]
    said = [record.getMessage() for record in caplog.records]
    assert said.count("Hub not reachable") == said.count("Hub reached again") == 1


async def test_the_oldest_is_dropped_and_said_once(hub: HubDouble, caplog) -> None:
    await hub.stop()
    clock = ManualClock()
    publisher = HubPublisher(hub.url, "good", capacity=10, clock=clock, close_seconds=0)
    async with publisher:
        publisher.publish("routing-metrics", "t", "in flight")
        await clock.until_asleep()
        assert all(publisher.publish("routing-metrics", "t", n) for n in range(25))
        assert publisher.get_stats()["dropped"] == 15
        await hub.start()
        await on_manual_time(clock, publisher.flush())
    assert hub.data == ["in flight", *range(15, 25)]
    assert [r.getMessage() for r in caplog.records].count("Publisher buffer full") == 1


async def test_what_must_arrive_is_refused_when_there_is_no_room(hub: HubDouble, caplog) -> None:
    clock = ManualClock()
    publisher = HubPublisher(
        hub.url, "good", durable_capacity=2, batch_messages=1, clock=clock, close_seconds=0
    )
    await hub.stop()
    async with publisher:
        publisher.publish("alerts", "alert", 0)
        await clock.until_asleep()
        assert publisher.publish("alerts", "alert", 1)
        assert publisher.publish("alerts", "alert", 2)
        assert not publisher.publish("alerts", "alert", 3)
        with pytest.raises(QueueFull):
            await publisher.publish_durable("alerts", "alert", 4)
        assert publisher.get_stats()["refused"] == 2
        await hub.start()
        await on_manual_time(clock, publisher.flush())
    assert hub.data == [0, 1, 2]
    full = [r for r in caplog.records if r.getMessage() == "Publisher buffer full"]
    assert [record.levelname for record in full] == ["ERROR"]


async def test_publish_durable_returns_when_the_hub_has_it(hub: HubDouble) -> None:
    async with HubPublisher(hub.url, "good") as publisher:
        await publisher.publish_durable("alerts", "alert", {"a": 1})
        assert hub.data == [{"a": 1}]
        hub.refuse.add("alerts")
        with pytest.raises(PermanentError, match=r"may not do that \(forbidden\)"):
            await publisher.publish_durable("alerts", "alert", {"a": 2})
    with pytest.raises(Closed):
        await publisher.publish_durable("alerts", "alert", {"a": 3})


async def test_refused_lines_are_counted_and_the_others_arrive(hub: HubDouble, caplog) -> None:
    hub.refuse.add("secret")
    async with HubPublisher(hub.url, "good") as publisher:
        for channel in ("secret", "routing-metrics", "secret"):
            publisher.publish(channel, "t", channel)
        await publisher.flush()
        stats = publisher.get_stats()
    assert hub.data == ["routing-metrics"]
    assert (stats["accepted"], stats["refused"]) == (1, 2)
    assert "Messages refused by the hub" in caplog.text


async def test_an_id_that_the_hub_has_is_a_duplicate(hub: HubDouble) -> None:
    async with HubPublisher(hub.url, "good") as publisher:
        for _ in range(2):
            await publisher.publish_durable("alerts", "alert", {}, id="one")
        assert publisher.get_stats()["duplicate"] == 1
    assert len(hub.published) == 1


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_one_message_that_spoils_its_batch_is_found_and_the_others_arrive(
    hub: HubDouble, code: int
) -> None:
    async def judge(request: web.Request) -> web.Response | None:
        return web.Response(status=code) if b"poison" in await request.read() else None

    hub.before += [judge] * 100
    async with HubPublisher(hub.url, "good") as publisher:
        for number in range(8):
            publisher.publish("routing-metrics", "t", "poison" if number == 5 else number)
        waiting = publisher.publish_durable("alerts", "alert", "poison too")
        with pytest.raises(PermanentError, match=f"status_{code}"):
            await waiting
        await publisher.flush()
        stats = publisher.get_stats()
    assert hub.data == [0, 1, 2, 3, 4, 6, 7]
    assert (stats["accepted"], stats["refused"]) == (7, 2)


async def test_a_refused_token_is_asked_for_anew(hub: HubDouble) -> None:
    tokens = ["old", "good\n"]
    clock = ManualClock()
    async with HubPublisher(hub.url, lambda: tokens.pop(0), clock=clock) as publisher:
        publisher.publish("routing-metrics", "t", 1)
        await on_manual_time(clock, publisher.flush())
    assert hub.data == [1]


async def test_a_token_may_be_awaited_and_one_that_cannot_be_had_is_tried_again(
    hub: HubDouble,
) -> None:
    asked = []

    async def token() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("secret words")
        return "good"

    clock = ManualClock()
    async with HubPublisher(hub.url, token, clock=clock) as publisher:
        publisher.publish("routing-metrics", "t", 1)
        await clock.until_asleep()
        assert publisher.last_error == "no token could be had (RuntimeError)"
        await on_manual_time(clock, publisher.flush())
    assert hub.data == [1]


async def test_an_answer_that_is_not_a_hubs_is_no_success(hub: HubDouble) -> None:
    hub.before.append(lambda _: web.Response(text="<html>sign in</html>"))
    clock = ManualClock()
    async with HubPublisher(hub.url, "good", clock=clock) as publisher:
        publisher.publish("routing-metrics", "t", 1)
        await clock.until_asleep()
        assert "not a hub's" in publisher.last_error
        await on_manual_time(clock, publisher.flush())
    assert hub.data == [1]


async def test_after_a_long_doubt_only_what_the_hub_knows_by_its_id_is_sent_again(
    hub: HubDouble,
) -> None:
    clock = ManualClock()
    await hub.stop()
    async with HubPublisher(hub.url, "good", clock=clock) as publisher:
        await hub.start()
        hub.before.append(cut)
        publisher.publish("routing-metrics", "t", "doubtful")
        publisher.publish("alerts", "alert", "certain")
        await hub.until(lambda: hub.requests)
        await hub.stop()
        await clock.run_until(lambda: clock.boottime() > 241)
        await hub.start()
        await on_manual_time(clock, publisher.flush())
        stats = publisher.get_stats()
    assert hub.data == ["certain"]
    assert (stats["accepted"], stats["lost"]) == (1, 1)


async def test_a_fault_of_ours_costs_the_messages_that_met_it_and_no_more(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    async with HubPublisher(hub.url, "good") as publisher:
        request = publisher._sender._http.request

        async def broken(*_: object, **__: object) -> None:
            monkeypatch.setattr(publisher._sender._http, "request", request)
            raise ZeroDivisionError

        monkeypatch.setattr(publisher._sender._http, "request", broken)
        with pytest.raises(PermanentError, match="ZeroDivisionError"):
            await publisher.publish_durable("alerts", "alert", 1)
        await publisher.publish_durable("alerts", "alert", 2)
        assert publisher.get_stats()["lost"] == 1
    assert hub.data == [2]
    assert "Publisher failed" in caplog.text


# --- its life ---


async def test_the_end_waits_for_what_is_still_to_be_sent(hub: HubDouble) -> None:
    publisher = HubPublisher(hub.url, "good")
    async with publisher:
        for number in range(1000):
            publisher.publish("routing-metrics", "t", number)
    assert hub.data == list(range(1000))
    assert not publisher.publish("routing-metrics", "t", 1)
    assert publisher.get_stats()["closed"]
    assert "closed" in repr(publisher)
    assert await publisher.flush()
    with pytest.raises(Closed):
        publisher.start()
    with pytest.raises(Closed):
        async with publisher:
            raise AssertionError


async def test_the_end_waits_no_longer_than_it_may_and_says_what_was_lost(
    hub: HubDouble, caplog
) -> None:
    hub.before += [status(503, **{"Retry-After": "60"})] * 3
    clock = ManualClock()
    publisher = HubPublisher(hub.url, "good", clock=clock, close_seconds=5.0)
    await publisher.__aenter__()
    publisher.publish("alerts", "alert", 1)
    publisher.publish("routing-metrics", "t", 2)
    durable = asyncio.ensure_future(publisher.publish_durable("alerts", "alert", 3))
    await hub.until(lambda: hub.requests)
    flush = asyncio.ensure_future(publisher.flush())
    await clock.until_asleep()
    closing = asyncio.ensure_future(publisher.close())
    await clock.run_until(lambda: clock.next_wake == 5.0)
    clock.advance(5.0)
    assert await closing is False
    with pytest.raises(Closed):
        await durable
    assert await flush is False
    assert publisher.get_stats()["lost"] == 3
    lost = next(r for r in caplog.records if r.getMessage() == "Publisher closed early")
    assert (lost.levelname, lost.fields["lost_of_never_channels"]) == ("ERROR", 2)
    assert await publisher.close()


async def test_the_end_cuts_a_pause_short_that_nobody_asked_for(hub: HubDouble) -> None:
    hub.before.append(status(500))
    clock = ManualClock()
    async with HubPublisher(hub.url, "good", clock=clock) as publisher:
        publisher.publish("routing-metrics", "t", 1)
        await clock.until_asleep()
    assert hub.data == [1]
    assert clock.boottime() == 0.0


async def test_a_flush_ends_with_its_time(hub: HubDouble) -> None:
    hub.before.append(status(503, **{"Retry-After": "60"}))
    clock = ManualClock()
    publisher = HubPublisher(hub.url, "good", clock=clock)
    async with publisher:
        publisher.publish("routing-metrics", "t", 1)
        await hub.until(lambda: hub.requests)
        assert await on_manual_time(clock, publisher.flush(1.0)) is False
        assert await on_manual_time(clock, publisher.flush(100.0)) is True


async def test_a_plain_thread_publishes_without_a_loop_of_its_own(hub: HubDouble) -> None:
    def trader() -> None:
        with HubPublisher(hub.url, "good") as publisher:
            for number in range(10):
                publisher.publish("routing-metrics", "t", number)
            assert publisher.flush_sync(30)
            publisher.start()  # a second time it does nothing

    await asyncio.to_thread(trader)
    assert hub.data == list(range(10))


async def test_it_starts_by_itself_and_may_be_closed_from_a_loop(hub: HubDouble) -> None:
    publisher = HubPublisher(hub.url, "good")
    assert "not started" in repr(publisher)
    publisher.publish("routing-metrics", "t", 1)
    assert "running" in repr(publisher)
    assert await publisher.flush()
    assert await publisher.close()
    assert hub.data == [1]


async def test_a_publisher_that_never_started_ends_at_once(hub: HubDouble) -> None:
    assert HubPublisher(hub.url, "good").stop()
    assert await HubPublisher(hub.url, "good").close()


async def test_many_threads_publish_at_once(hub: HubDouble) -> None:
    async with HubPublisher(hub.url, "good", capacity=10_000) as publisher:
        gate = threading.Barrier(4)

        def trader(name: int) -> None:
            gate.wait()
            for number in range(250):
                publisher.publish("routing-metrics", "t", [name, number])

        await asyncio.gather(*(asyncio.to_thread(trader, name) for name in range(4)))
        assert await publisher.flush()
        assert publisher.get_stats()["accepted"] == 1000
    for name in range(4):
        assert [n for who, n in hub.data if who == name] == list(range(250))


async def test_what_cannot_be_a_message_is_refused_at_once(hub: HubDouble) -> None:
    publisher = HubPublisher(hub.url, "good")
    for channel, data in [("x", float("nan")), ("x", object()), ("", 1), (None, 1)]:
        with pytest.raises(ConfigError):
            publisher.publish(channel, "t", data)  # type: ignore[arg-type]
    assert publisher.get_stats()["waiting"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://x"},
        {"token": "  "},
        {"capacity": 0},
        {"batch_messages": 0},
        {"timeout_seconds": -1.0},
        {"policies": {"x": "lose"}},
        {"close_seconds": float("nan")},
    ],
)
def test_wrong_settings_are_said_at_once(wrong) -> None:
    with pytest.raises(ConfigError):
        HubPublisher(**{"url": "http://127.0.0.1:1", "token": "t", **wrong})


async def test_no_secret_is_shown(hub: HubDouble, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    clock = ManualClock()
    url = hub.url.replace("http://", "http://user:word@") + "/?token=word"
    async with HubPublisher(url, "very-secret", clock=clock, close_seconds=0) as publisher:
        publisher.publish("routing-metrics", "t", 1)
        await clock.until_asleep()
        shown = f"{publisher!r} {publisher.get_stats()} {publisher.last_error} {caplog.text}"
    assert "very-secret" not in shown
    assert "word" not in shown


def test_a_batch_is_lines_of_json() -> None:
    publisher = HubPublisher("http://127.0.0.1:1", "t")
    line = publisher._line("c", "t", {"x": 1}, None, None)
    assert msgspec.json.decode(line)["data"] == {"x": 1}
