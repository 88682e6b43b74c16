"""Claims about the hubs on a socket: three transports, ids, calls, streams, events, stateful reconnect."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import ClientSession, WSServerHandshakeError
from tests.sandbox.raw_hub import END, RawHub, negotiate, records

from keepline.sandbox.book import Kind, Side, Ticket
from keepline.sandbox.server import SandboxServer
from keepline.sandbox.signalr_server import SignalRSettings
from keepline.testing import ManualClock

MES = "CON.F.US.MES.Z26"
FAILED = "An unexpected error occurred invoking '{}' on the server."
SHAKE = json.dumps({"protocol": "json", "version": 1}) + END


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def sandbox(clock: ManualClock) -> AsyncIterator[SandboxServer]:
    async with SandboxServer(clock=clock) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def opened(http: ClientSession, sandbox: SandboxServer, hub: str = "test") -> RawHub:
    token = {} if hub == "test" else {"access_token": sandbox.issue().access_token}
    return await RawHub(http, sandbox.url, hub).open(**token)


async def stateful(http: ClientSession, sandbox: SandboxServer) -> tuple[RawHub, str]:
    offer = await negotiate(http, sandbox.url, useStatefulReconnect="true")
    token = offer["connectionToken"]
    return await RawHub(http, sandbox.url).open(seat=token, version=2), token


def bought(sandbox: SandboxServer, clock: ManualClock, size: int = 1, **more: Any) -> int:
    asked = {"kind": Kind.MARKET, "side": Side.BUY, "size": Decimal(size), **more}
    now = clock.wall().timestamp()
    return sandbox.market.place(Ticket(account="1001", listing=MES, **asked), now=now).id


# --- calls ---


async def test_calls_are_answered_as_the_real_server_answers(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    hub = await opened(http, sandbox)
    for target, arguments, answer in (
        ("Echo", [{"a": [1, None]}], {"result": {"a": [1, None]}}),
        ("add", [2, 3], {"result": 5}),
        ("Nothing", [], {"result": None}),
        ("Throw", ["boom"], {"error": f"{FAILED.format('Throw')} HubException: boom"}),
        ("Bug", [], {"error": FAILED.format("Bug")}),
        ("Count", [], {"result": 1}),
        ("Count", [], {"result": 2}),
        ("Big", [5], {"result": "xxxxx"}),
    ):  # fmt: skip
        completion = await hub.call(target, *arguments)
        assert {k: v for k, v in completion.items() if k in ("result", "error")} == answer
    assert (await hub.call("WhoAmI"))["result"] == sandbox.signalr.connections[0].id
    assert "test" in repr(sandbox.signalr.connections[0])
    assert "1 connections" in repr(sandbox.signalr)


async def test_a_call_waits_for_the_one_before_it(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    hub = await opened(http, sandbox)
    await hub.say(type=1, invocationId="a", target="Slow", arguments=[0.4])
    await hub.say(type=1, invocationId="b", target="Nothing", arguments=[])
    second = asyncio.ensure_future(hub.read())
    await clock.run_until(second.done)
    assert second.result()["invocationId"] == "a"
    assert (await hub.read())["invocationId"] == "b"


async def test_a_client_is_asked_and_its_answer_comes_back(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    hub = await opened(http, sandbox)
    for reply, told in (({"result": 7}, 7), ({"error": "no idea"}, "no idea")):
        await hub.say(type=1, invocationId="a", target="AskClient", arguments=["Question", "q"])
        asked = await hub.read()
        assert (asked["target"], asked["arguments"]) == ("Question", ["q"])
        await hub.say(type=3, invocationId=asked["invocationId"], **reply)
        answer = await hub.read()
        assert str(told) in str(answer.get("result", answer.get("error")))


async def test_streams_go_both_ways_and_can_be_cancelled(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    hub = await opened(http, sandbox)
    await hub.say(type=4, invocationId="s", target="StreamFail", arguments=[2])
    items = [await hub.read() for _ in range(3)]
    assert [m.get("item") for m in items[:2]] == [0, 1]
    error = "An error occurred on the server while streaming results. HubException: ran out"
    assert items[2]["error"] == error
    await hub.say(type=4, invocationId="f", target="StreamForever", arguments=[])
    assert (await hub.read())["item"] == 0
    await hub.say(type=5, invocationId="f")
    while (message := await hub.read())["type"] != 3:
        assert message["invocationId"] == "f"
    assert message == {"type": 3, "invocationId": "f"}
    await hub.say(type=1, invocationId="w", target="Slow", arguments=[1])
    await hub.say(type=4, invocationId="q", target="StreamForever", arguments=[])
    await hub.say(type=5, invocationId="q")  # cancelled before its turn came
    ends = asyncio.ensure_future(hub.read())
    await clock.run_until(ends.done)
    assert (await hub.read()) == {"type": 3, "invocationId": "q"}


async def test_uploads_are_gathered_and_their_failure_is_told(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    hub = await opened(http, sandbox)
    for number in range(30):
        if not number:
            await hub.say(type=1, invocationId="u", target="Upload", arguments=[], streamIds=["1"])
        await hub.say(type=2, invocationId="1", item=number)
    await hub.say(type=2, invocationId="unknown", item=1)
    await hub.say(type=3, invocationId="1")
    assert (await hub.read())["result"] == list(range(30))
    await hub.say(type=4, invocationId="b", target="StreamBack", arguments=[], streamIds=["2"])
    await hub.say(type=2, invocationId="2", item="x")
    assert (await hub.read())["item"] == "x"
    await hub.say(type=3, invocationId="2", error="gone")
    assert "HubException: gone" in (await hub.read())["error"]
    two = {"streamIds": ["3", "4"]}
    await hub.say(type=1, invocationId="t", target="UploadTwo", arguments=["w"], **two)
    for stream in ("3", "4"):
        await hub.say(type=2, invocationId=stream, item=stream)
        await hub.say(type=3, invocationId=stream)
    assert (await hub.read())["result"] == ["w", ["3"], ["4"]]
    answer = await hub.call("Nothing", streamIds=["5"])
    assert answer["error"] == "Failed to invoke 'Nothing' due to an error on the server."


async def test_a_connection_that_ends_takes_its_work_with_it(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    hub = await opened(http, sandbox)
    await hub.say(type=1, target="AskClient", arguments=["Question", 1])
    assert (await hub.read())["type"] == 1
    await hub.say(type=1, target="Slow", arguments=[3600])
    await hub.say(type=1, target="Upload", arguments=[], streamIds=["1"])
    for number in range(50):
        await hub.say(type=2, invocationId="1", item=number)  # more than the server takes
    await hub.say(type=4, invocationId="s", target="StreamForever", arguments=[])
    hub.abort()
    await sandbox.signalr.until(lambda: sandbox.signalr.stats()["hub_messages"] > 10)
    await clock.run_until(lambda: not sandbox.signalr.connections)


@pytest.mark.parametrize(
    ("method", "message", "ending"),
    [
        ("Abort", {"type": 7}, "1000"),
        ("CloseAndReturn", {"type": 7, "allowReconnect": True}, "1000"),
        ("Die", None, "cut"),
    ],
)
async def test_the_server_ends_a_connection_in_each_of_its_ways(
    http: ClientSession, sandbox: SandboxServer, method: str, message: object, ending: str
) -> None:
    hub = await opened(http, sandbox)
    await hub.say(type=1, target=method, arguments=[])
    assert await hub.read() == message
    assert await hub.read() is None
    assert hub.closed == ending
    await sandbox.signalr.until(lambda: not sandbox.signalr.connections)


async def test_a_client_that_says_goodbye_is_gone(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    polite, wordless = [await opened(http, sandbox) for _ in range(2)]
    await polite.say(type=7)
    assert await polite.read() is None
    assert polite.closed == "1000"
    await wordless.socket.close()
    await sandbox.signalr.until(lambda: not sandbox.signalr.connections)


# --- time ---


async def test_time_goes_by_only_while_somebody_is_there(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    assert clock.next_wake is None
    hub = await opened(http, sandbox)
    await clock.until_asleep()
    pinged = asyncio.ensure_future(hub.read())
    await clock.run_until(pinged.done)
    assert pinged.result() == {"type": 6}
    assert 15 <= clock.boottime() <= 16
    await hub.socket.close()
    await sandbox.signalr.until(lambda: not sandbox.signalr.connections)
    clock.advance(1)  # the last beat finds nobody
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert clock.next_wake is None


async def test_a_handshake_that_never_comes_is_given_up(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    hub = await RawHub(http, sandbox.url).open(shake=False)
    answer = asyncio.ensure_future(hub.read())
    await clock.run_until(answer.done)
    assert answer.result() == {"error": "Handshake was canceled."}
    assert await hub.read() is None
    assert hub.closed == "1000"


async def test_the_beat_can_be_another(http: ClientSession, clock: ManualClock) -> None:
    async with SandboxServer(clock=clock, signalr=SignalRSettings(beat=0.1)) as sandbox:
        hub = await opened(http, sandbox)
        await clock.until_asleep()
        assert clock.next_wake == pytest.approx(0.1)
        await hub.socket.close()


# --- who may come in ---


async def test_the_hubs_of_the_broker_want_a_token_in_the_header_or_the_query(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    url, token = f"{sandbox.url}/hubs/user", sandbox.issue().access_token
    header = {"Authorization": f"Bearer {token}"}
    for method, path in (("POST", "/negotiate"), ("GET", ""), ("POST", ""), ("DELETE", "")):
        assert (await http.request(method, url + path)).status == 401
    assert (await http.post(f"{url}/negotiate", headers=header)).status == 200
    assert (await http.post(f"{url}/negotiate", params={"access_token": token})).status == 200
    with pytest.raises(WSServerHandshakeError, match="401"):
        await http.ws_connect(url, params={"access_token": "x"})
    assert [(d.route, d.status, d.token_in) for d in sandbox.signalr.dials] == [
        ("negotiate", 401, ""),
        ("polling", 401, ""),
        ("negotiate", 200, "header"),
        ("negotiate", 200, "query"),
        ("websocket", 401, "query"),
    ]
    assert sandbox.stats()["unauthorized"] == 5


async def test_negotiate_takes_no_get_and_an_id_is_its_token(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    assert (await http.get(f"{sandbox.url}/hubs/test/negotiate")).status == 405
    offer = await negotiate(http, sandbox.url)
    with pytest.raises(WSServerHandshakeError, match="404"):
        await RawHub(http, sandbox.url).open(seat=offer["connectionId"])
    hub = await RawHub(http, sandbox.url).open(seat=offer["connectionToken"])
    with pytest.raises(WSServerHandshakeError, match="409"):
        await RawHub(http, sandbox.url).open(seat=offer["connectionToken"])
    at = f"{sandbox.url}/hubs/test"
    params = {"id": offer["connectionToken"]}
    assert (await http.post(at, params=params)).status == 405
    assert (await http.delete(at, params=params)).status == 400
    assert (await http.post(at)).status == 400
    assert (await http.delete(at, params={"id": "x"})).status == 404
    await hub.socket.close()
    assert sandbox.signalr.last_handshake is not None
    assert sandbox.signalr.last_handshake.version == 1


# --- the other transports ---


async def test_events_stream_to_a_client_that_posts(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    at = f"{sandbox.url}/hubs/test"
    params = {"id": (await negotiate(http, sandbox.url))["connectionToken"]}
    accept = {"Accept": "text/event-stream"}
    stream = await http.get(at, params=params, headers=accept)
    assert stream.headers["Content-Type"] == "text/event-stream"
    assert await stream.content.readline() == b":\r\n"
    call = {"type": 1, "invocationId": "1", "target": "Echo", "arguments": ["a\nb"]}
    assert (await http.post(at, params=params, data=SHAKE + json.dumps(call) + END)).status == 200
    assert await stream.content.readuntil(b"\r\n\r\n") == b"data: {}\x1e\r\n\r\n"
    answer = await stream.content.readuntil(b"\r\n\r\n")
    assert records(answer.removeprefix(b"data: ").decode())[0]["result"] == "a\nb"
    assert (await http.get(at, params=params, headers=accept)).status == 409
    sandbox.signalr.cut("close")
    assert await stream.content.read() == b'data: {"type":7}\x1e\r\n\r\n'
    assert (await http.post(at, params=params, data="")).status == 404


async def test_a_reader_of_events_that_left_is_noticed(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    params = {"id": (await negotiate(http, sandbox.url))["connectionToken"]}
    accept = {"Accept": "text/event-stream"}
    stream = await http.get(f"{sandbox.url}/hubs/test", params=params, headers=accept)
    stream.close()
    await clock.run_until(lambda: not sandbox.signalr.connections)


async def polled(http: ClientSession, sandbox: SandboxServer) -> dict[str, str]:
    """The query of a connection that polls, its handshake done."""
    at = f"{sandbox.url}/hubs/test"
    params = {"id": (await negotiate(http, sandbox.url))["connectionToken"]}
    first = await http.get(at, params=params)
    assert (first.status, await first.read()) == (200, b"")
    assert (await http.post(at, params=params, data=SHAKE)).status == 200
    assert await (await http.get(at, params=params)).text() == "{}\x1e"
    return params


async def test_polls_bring_what_there_is_and_deleting_ends_them(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    at, params = f"{sandbox.url}/hubs/test", await polled(http, sandbox)
    waiting = asyncio.ensure_future(http.get(at, params=params))
    await until_polled(sandbox, 2)
    sandbox.signalr.push("E", 1)
    sandbox.signalr.push("E", 2)
    answer = await waiting
    assert (answer.status, answer.content_type) == (200, "text/plain")
    assert [m["arguments"] for m in records(await answer.text())] == [[1], [2]]
    waiting = asyncio.ensure_future(http.get(at, params=params))
    await until_polled(sandbox, 3)
    assert (await http.delete(at, params=params)).status == 202
    assert records(await (await waiting).text()) == [{"type": 7, "allowReconnect": True}]
    assert (await http.get(at, params=params)).status == 404


async def until_polled(sandbox: SandboxServer, number: int) -> None:
    (connection,) = sandbox.signalr.connections
    await sandbox.signalr.until(lambda: connection.memory.get("poll") == number)


async def test_a_second_poll_ends_the_first_and_an_empty_one_comes_back_after_90_s(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    at, params = f"{sandbox.url}/hubs/test", await polled(http, sandbox)
    first = asyncio.ensure_future(http.get(at, params=params))
    await until_polled(sandbox, 2)
    second = asyncio.ensure_future(http.get(at, params=params))
    assert (await first).status == 204
    begun = clock.boottime()
    await clock.run_until(second.done)
    assert ((await second).status, await (await second).read()) == (200, b"")
    assert 90 <= clock.boottime() - begun <= 91
    sandbox.signalr.cut("close_reconnect")
    assert records(await (await http.get(at, params=params)).text())[0]["type"] == 7
    assert (await http.get(at, params=params)).status == 204
    assert (await http.get(at, params=params)).status == 404


async def test_a_client_that_polls_no_more_is_gone_after_its_window(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    await polled(http, sandbox)
    (connection,) = sandbox.signalr.connections
    await clock.run_until(lambda: connection.is_over)
    assert 15 <= clock.boottime() <= 17
    params = await polled(http, sandbox)
    assert (await http.delete(f"{sandbox.url}/hubs/test", params=params)).status == 202
    assert sandbox.signalr.connections == []


async def test_binary_polls_say_so_and_a_huge_post_is_refused(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    at = f"{sandbox.url}/hubs/test"
    params = {"id": (await negotiate(http, sandbox.url))["connectionToken"]}
    await http.get(at, params=params)
    await http.post(at, params=params, data=SHAKE.replace("json", "messagepack"))
    answer = await http.get(at, params=params)
    assert (answer.content_type, await answer.read()) == ("application/octet-stream", b"{}\x1e")
    assert (await http.post(at, params=params, data=io.BytesIO(bytes(17 << 20)))).status == 413


# --- stateful reconnect ---


async def test_a_stateful_connection_survives_its_socket(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    hub, token = await stateful(http, sandbox)
    assert (await hub.call("Count"))["result"] == 1
    hub.abort()
    await sandbox.signalr.until(
        lambda: sandbox.signalr.connections[0].seat.place.name == "DETACHED"
    )
    assert sandbox.signalr.push("E", 5) == 1
    again = await RawHub(http, sandbox.url).open(seat=token, shake=False)
    assert await again.read() == {"type": 9, "sequenceId": 1}
    await again.say(type=9, sequenceId=2)
    assert (await again.read())["result"] == 1
    assert await again.event("E") == [5]
    assert (await again.call("Count"))["result"] == 2
    assert sandbox.signalr.dials[-1].reattached
    assert sandbox.stats()["hub_reattached"] == 1
    await again.socket.close()
    await sandbox.signalr.until(lambda: not sandbox.signalr.connections)
    with pytest.raises(WSServerHandshakeError, match="404"):
        await RawHub(http, sandbox.url).open(seat=token, shake=False)


async def test_a_cut_leaves_a_stateful_connection_until_its_window_is_over(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    hub, token = await stateful(http, sandbox)
    (connection,) = sandbox.signalr.connections
    sandbox.signalr.cut("abort")
    assert await hub.read() is None
    assert hub.closed == "cut"
    await connection.freed()
    begun = clock.boottime()
    await clock.run_until(lambda: connection.is_over)
    assert 15 <= clock.boottime() - begun <= 16
    with pytest.raises(WSServerHandshakeError, match="404"):
        await RawHub(http, sandbox.url).open(seat=token, shake=False)


async def test_a_detached_connection_can_be_ended_for_good(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    hub, _ = await stateful(http, sandbox)
    (connection,) = sandbox.signalr.connections
    hub.abort()
    await connection.freed()
    sandbox.signalr.cut("close")
    assert connection.is_over


async def test_two_sockets_for_one_stateful_connection_end_both(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    hub, token = await stateful(http, sandbox)
    opening = asyncio.ensure_future(RawHub(http, sandbox.url).open(seat=token, shake=False))
    await clock.run_until(opening.done)
    second = opening.result()
    assert await second.read() is None
    assert second.closed == "1000"
    assert await hub.read() is None
    assert sandbox.signalr.connections == []


async def test_version_1_is_not_stateful_even_when_it_was_granted(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    token = (await negotiate(http, sandbox.url, useStatefulReconnect="true"))["connectionToken"]
    hub = await RawHub(http, sandbox.url).open(seat=token)
    with pytest.raises(WSServerHandshakeError, match="409"):
        await RawHub(http, sandbox.url).open(seat=token)
    hub.abort()
    await sandbox.signalr.until(lambda: not sandbox.signalr.connections)


# --- the venue's events ---


async def subscribed(hub: RawHub) -> None:
    for name in ("Orders", "Positions", "Trades"):
        assert (await hub.call(f"Subscribe{name}", 1001))["result"] is None
    await hub.call("SubscribeAccounts")


async def test_an_order_by_rest_is_told_to_its_subscribers(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    hub = await opened(http, sandbox, "user")
    await subscribed(hub)
    other = await RawHub(http, sandbox.url, "user").open(access_token=sandbox._session_token())
    await other.call("SubscribeOrders", 1002)
    order = {"accountId": 1001, "contractId": MES, "type": 2, "side": 0, "size": 2}
    header = {"Authorization": f"Bearer {sandbox._session_token()}"}
    placed = await http.post(f"{sandbox.url}/api/Order/place", json=order, headers=header)
    number = (await placed.json())["orderId"]
    (working,), (filled,) = [await hub.event("GatewayUserOrder") for _ in range(2)]
    assert (working["id"], working["status"]) == (number, 1)
    assert (filled["id"], filled["status"], filled["fillVolume"]) == (number, 2, 2)
    assert (await hub.event("GatewayUserTrade"))[0]["orderId"] == number
    assert (await hub.event("GatewayUserPosition"))[0]["size"] == 2
    assert (await hub.event("GatewayUserAccount"))[0]["balance"] < 150_000
    assert sandbox.stats()["hub_subscriptions"] == 5
    assert sandbox.signalr.connections[1].sent == 0


async def test_a_resting_order_is_filled_as_time_goes_by(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    hub = await opened(http, sandbox, "user")
    await subscribed(hub)
    bought(sandbox, clock, size=25)  # ten a second
    trades = [asyncio.ensure_future(hub.event("GatewayUserTrade"))]
    await clock.run_until(trades[0].done)
    for _ in range(2):
        trades.append(asyncio.ensure_future(hub.event("GatewayUserTrade")))
        await clock.run_until(trades[-1].done)
    assert [(await t)[0]["size"] for t in trades] == [10, 10, 5]


async def test_what_happened_before_a_connection_is_told_to_nobody(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    for _ in range(2):
        number = bought(sandbox, clock)
        hub = await opened(http, sandbox, "user")
        await subscribed(hub)
        number = bought(sandbox, clock)
        sandbox.signalr.pump()
        assert (await hub.event("GatewayUserOrder"))[0]["id"] == number
        await hub.socket.close()
        await sandbox.signalr.until(lambda: not sandbox.signalr.connections)


async def test_market_data_comes_to_those_who_subscribed_as_often_as_they_did(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    hub = await opened(http, sandbox, "market")
    for name in ("Quotes", "Trades", "MarketDepth"):
        await hub.call(f"SubscribeContract{name}", MES)
    await hub.call("SubscribeContractMarketDepth", MES)
    contract, levels = await hub.event("GatewayDepth")
    assert (contract, levels[0]["type"]) == (MES, 6)
    for _ in range(10):
        clock.advance(1)
        sandbox.signalr.beat()
    first, second = [await hub.event("GatewayDepth") for _ in range(2)]
    assert first == second
    kinds = set()
    for _ in range(12):
        message = await hub.read()
        kinds.add((message["target"], type(message["arguments"][1])))
    assert kinds >= {("GatewayQuote", dict), ("GatewayTrade", list), ("GatewayDepth", list)}
    await hub.call("UnsubscribeContractMarketDepth", MES)
    assert len(sandbox.signalr.connections[0].book) == 2


async def test_a_subscription_that_cannot_be_is_refused_in_the_words_of_the_server(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    hub = await opened(http, sandbox, "user")
    answer = await hub.call("SubscribeOrders", "1001")
    assert answer["error"] == "Failed to invoke 'SubscribeOrders' due to an error on the server."
    assert "does not exist" in (await hub.call("SubscribeContractQuotes", MES))["error"]
    await hub.say(type=4, invocationId="s", target="SubscribeAccounts", arguments=[])
    assert "non-streaming" in (await hub.read())["error"]
