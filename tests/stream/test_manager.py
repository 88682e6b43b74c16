"""The manager over a broker in memory: what is wanted survives, what is shown is the present or said not to be."""

import asyncio
from typing import Any

import pytest
from tests.stream.scripted import HANG, ORDERS, QUOTES, Script, bench, settle

from keepline.errors import ConfigError, PermanentError, StreamNotLive, TransientError
from keepline.stream.events import ConnectionState, EventKind
from keepline.stream.health import HealthStatus
from keepline.stream.manager import StreamManager
from keepline.stream.port import Lost, Topic
from keepline.stream.settings import StreamSettings
from keepline.stream.tokens import StreamTokens
from keepline.testing import ManualClock


async def test_what_is_wanted_is_subscribed_and_a_bot_is_told_how_far_it_is() -> None:
    async with bench() as b:
        got: list[tuple[Any, ...]] = []
        b.manager.subscribe(QUOTES, lambda *arguments: got.append(arguments), inline=True)
        assert b.manager.state is ConnectionState.DISCONNECTED
        await b.connect("live")
        assert b.manager.state is ConnectionState.CONNECTED
        assert b.link.subscribed == ["Quote MNQ"]
        assert b.kinds == [EventKind.CONNECTED, EventKind.LIVE]
        b.link.bring("Quote", "MNQ", {"bid": 1})
        assert got == [("MNQ", {"bid": 1})]
        assert b.told[-1].kind is EventKind.FIRST_DATA
        assert (b.told[-1].channel, b.told[-1].key) == ("Quote", "MNQ")
        assert b.manager.health is HealthStatus.HEALTHY
        assert b.manager.reasons == ()


async def test_subscriptions_are_replayed_in_order_after_each_full_reconnect() -> None:
    async with bench() as b:
        names = [f"Quote {letter}" for letter in "DACB"]
        for letter in "DACB":
            b.manager.subscribe(Topic("Quote", ("Quotes", letter), key=letter))
        await b.connect("live")
        assert b.link.subscribed == names
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert b.link.number == 1
        assert b.link.subscribed == names
        assert b.kinds == [
            EventKind.CONNECTED,
            EventKind.LIVE,
            EventKind.LOST,
            EventKind.CONNECTED,
            EventKind.LIVE,
        ]


async def test_the_first_connect_waits_for_a_server_that_comes_up_late() -> None:
    down = TransientError("cannot connect", category="network", sent=False)
    async with bench(Script(open=down), Script(open=down), Script(open=down)) as b:
        await b.connect()
        assert len(b.broker.links) == 4
        gaps = [b - a for a, b in zip(b.broker.dialed_at, b.broker.dialed_at[1:], strict=False)]
        assert gaps == [
            1.0,
            2.0,
            10.0,
        ]  # 0, 2, 10 of the schedule; two dials are a second apart at least
        assert b.kinds == [EventKind.CONNECTED, EventKind.LIVE][: len(b.kinds)]
        assert b.broker.closed == [0, 1, 2], "a link that did not open is closed all the same"


async def test_an_attempt_that_hangs_is_given_up_after_its_own_time() -> None:
    settings = StreamSettings(attempt_timeout=7.0)
    async with bench(Script(open=HANG), settings=settings) as b:
        await b.connect()
        assert b.broker.dialed_at == [0.0, 7.0]


async def test_attempts_are_limited_only_when_asked_for_and_then_connect_says_why() -> None:
    down = TransientError("cannot connect to 127.0.0.1:1", category="network", sent=False)
    settings = StreamSettings(attempts=3)
    async with bench(*[Script(open=down)] * 5, settings=settings) as b:
        with pytest.raises(TransientError, match="cannot connect to"):
            await b.connect()
        assert len(b.broker.links) == 3
        assert b.manager.state is ConnectionState.FAILED
        assert b.kinds[-1] is EventKind.LOST
        with pytest.raises(StreamNotLive, match=r"failed: .* attempts failed in a row"):
            b.manager.require_live()


async def test_a_failed_stream_can_be_connected_by_hand() -> None:
    down = TransientError("cannot connect", category="network", sent=False)
    async with bench(Script(open=down), settings=StreamSettings(attempts=1)) as b:
        with pytest.raises(TransientError):
            await b.connect()
        await b.connect()
        assert b.manager.state is ConnectionState.CONNECTED


async def test_a_close_that_asks_us_not_to_come_back_is_obeyed() -> None:
    async with bench() as b:
        await b.connect("live")
        b.link.end(Lost("close", "the hub aborted", allow_reconnect=False))
        await b.until(lambda: b.manager.state is ConnectionState.FAILED)
        b.clock.advance(86_400)
        await settle()
        assert len(b.broker.links) == 1
        assert b.kinds[-2:] == [EventKind.ALARM, EventKind.LOST]
        assert b.count(EventKind.LOST) == 1
        assert any("asked us not to come back" in event.reason for event in b.told)
        assert b.manager.health is HealthStatus.UNHEALTHY


@pytest.mark.parametrize(
    ("error", "least"),
    [
        (TransientError("slow down", category="rate_limit", status=429, retry_after=90.0), 90.0),
        (TransientError("slow down", category="rate_limit", status=429), 30.0),
        (PermanentError("nothing here", status=404), 60.0),
        (PermanentError("exists", status=409), 15.0),
        (TransientError("trouble", category="server", status=503, retry_after=20.0), 20.0),
        (PermanentError("untrusted", category="network"), 300.0),
        (TransientError("down", category="network"), 0.0),
    ],
)
async def test_reasons_of_a_refused_connect_are_treated_apart(
    error: Exception, least: float
) -> None:
    async with bench(Script(open=error), chance=0.0) as b:
        await b.connect()
        first, second = b.broker.dialed_at
        assert second - first == pytest.approx(max(least, 1.0))


async def test_a_refused_token_is_asked_for_anew_once_and_then_slowly() -> None:
    refused = PermanentError("401", category="auth", status=401)
    asked: list[str] = []

    class Watched(StreamTokens):
        def refused(self) -> None:
            asked.append("newer")

    tokens = Watched(lambda: "a")
    scripts = [Script(open=refused), Script(open=refused)]
    async with bench(*scripts, tokens=tokens, chance=0.0) as b:
        await b.connect()
        first, second, third = b.broker.dialed_at
        assert second - first == 1.0
        assert third - second == 300.0
        assert asked == ["newer", "newer"]
        assert b.count(EventKind.ALARM) == 1


async def test_a_server_that_accepts_and_closes_is_not_hammered() -> None:
    async with bench(chance=0.0) as b:
        b.broker.scripts = [
            Script(on_open=lambda link: link.end(Lost("close", "go away"))) for _ in range(30)
        ]
        connecting = asyncio.ensure_future(b.manager.connect())
        await b.until(lambda: len(b.broker.links) == 12)
        await connecting
        gaps = [b - a for a, b in zip(b.broker.dialed_at, b.broker.dialed_at[1:], strict=False)]
        assert gaps[-1] == pytest.approx(60.0 * 0.8)
        assert b.count(EventKind.ALARM) == 1, "a person is told, once"


async def test_a_life_with_data_earns_the_backoff_back() -> None:
    down = TransientError("down", category="network")
    async with bench(Script(open=down), Script(open=down), Script(open=down), chance=0.0) as b:
        b.manager.subscribe(ORDERS, inline=True)
        await b.connect("live")
        b.link.bring("Order", {"id": 1})
        b.clock.advance(31.0)
        at = b.clock.boottime()
        b.link.end(Lost("cut"))
        await b.until(lambda: len(b.broker.links) == 5)
        assert b.broker.dialed_at[-1] == at


async def test_an_outage_in_the_middle_of_resubscribing_loses_nothing() -> None:
    letters = "ABCDE"
    cut = Script(on_subscribe=lambda link, topic: topic.key == "C" and link.end(Lost("cut")))
    busy = Script(subscribe={"Quote D": [TransientError("503", category="server", status=503)]})
    async with bench(Script(), cut, busy, settings=StreamSettings(parallel=1)) as b:
        for letter in letters:
            b.manager.subscribe(Topic("Quote", ("Quotes", letter), key=letter))
        await b.connect("live")
        b.link.end(Lost("cut"))
        await b.until(lambda: b.kinds.count(EventKind.LIVE) == 2)
        assert b.broker.links[1].subscribed == ["Quote A", "Quote B", "Quote C"]
        assert sorted(set(b.link.subscribed)) == [f"Quote {letter}" for letter in letters]
        assert b.link.subscribed.count("Quote D") == 2, "the refused one is asked for again"
        assert [s.phase.value for s in b.manager.standings] == ["confirmed"] * 5


async def test_a_subscription_without_an_answer_ends_in_a_new_connection_not_in_silence() -> None:
    mute = Script(subscribe={"Order": [HANG]})
    async with bench(mute) as b:
        b.manager.subscribe(
            Topic("Order", ("Orders", 1))
        )  # cannot be given back: whether it is there is unknown
        await b.connect("live")
        assert b.link.number == 1
        assert b.link.subscribed == ["Order"]


async def test_callbacks_share_a_topic_and_the_last_one_gives_it_back() -> None:
    async with bench() as b:
        got: list[str] = []
        first = b.manager.subscribe(ORDERS, lambda _: got.append("first"), inline=True)
        second = b.manager.subscribe(ORDERS, lambda _: got.append("second"), inline=True)
        await b.connect("live")
        b.link.bring("Order", 1)
        assert got == ["first", "second"]
        first()
        first()
        b.link.bring("Order", 2)
        assert got == ["first", "second", "second"]
        await settle()
        assert b.link.asked == [("subscribe", "Order")]
        second()
        await b.until(lambda: ("unsubscribe", "Order") in b.link.asked)


async def test_a_topic_that_is_wanted_later_is_subscribed_at_once() -> None:
    async with bench() as b:
        await b.connect("live")
        b.manager.subscribe(QUOTES)
        assert not b.manager.is_live
        await b.until(lambda: b.manager.is_live)
        assert b.link.subscribed == ["Quote MNQ"]
        assert b.broker.dialed_at == [0.0]


def test_the_same_topic_with_another_request_is_refused_with_its_name() -> None:
    manager = StreamManager(lambda: None, clock=ManualClock())  # type: ignore[arg-type, return-value]
    manager.subscribe(ORDERS)
    with pytest.raises(ConfigError, match="Order is already subscribed with"):
        manager.subscribe(Topic("Order", ("Orders", 2)))
    with pytest.raises(ConfigError, match="policy 'never' already"):
        manager.subscribe(Topic("Order", ("Orders", 1), policy="conflate"))


async def test_blindness_has_words_and_trading_can_be_refused() -> None:
    async with bench(Script(subscribe={"Order": [HANG]})) as b:
        b.manager.subscribe(ORDERS)
        b.manager.subscribe(QUOTES)
        with pytest.raises(StreamNotLive, match="stream test is not live: disconnected"):
            b.manager.require_live()
        await b.connect()
        await b.until(lambda: not b.manager.blind("Quote"))
        b.manager.require_live("Quote", "MNQ")
        with pytest.raises(StreamNotLive, match="Order is not confirmed") as caught:
            b.manager.require_live()
        assert caught.value.stream == "test"
        assert caught.value.reasons == ("Order is not confirmed",)
        assert b.manager.blind("Depth") == ["Depth is not subscribed"]
        assert b.manager.health is HealthStatus.DEGRADED


async def test_a_setting_that_no_time_could_heal_ends_the_attempts_at_once() -> None:
    async with bench(Script(open=ConfigError("a token is only sent to https", key="url"))) as b:
        with pytest.raises(PermanentError, match="only sent to https"):
            await b.connect()
        assert (b.manager.state, len(b.broker.links)) == (ConnectionState.FAILED, 1)


async def test_a_link_with_a_bug_is_words_and_another_attempt() -> None:
    scripts = [Script(open=ValueError("a bug")), Script(subscribe={"Order": [KeyError("a bug")]})]
    async with bench(*scripts) as b:
        b.manager.subscribe(ORDERS)
        await b.connect("live")
        assert len(b.broker.links) == 2
        assert b.link.subscribed == ["Order", "Order"]
