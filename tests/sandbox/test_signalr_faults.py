"""Claims about the faults of hubs: each one, as a client meets it."""

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, WSServerHandshakeError
from tests.sandbox.raw_hub import END, RawHub, negotiate

from keepline.sandbox.book import Kind, Side, Ticket
from keepline.sandbox.faults import Faults
from keepline.sandbox.faulttable import HUBS, KINDS, STREAMS
from keepline.sandbox.server import SandboxServer
from keepline.testing import ManualClock

MES = "CON.F.US.MES.Z26"


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


@pytest.fixture
async def hub(http: ClientSession, sandbox: SandboxServer) -> RawHub:
    return await RawHub(http, sandbox.url).open()


async def as_user(http: ClientSession, sandbox: SandboxServer) -> RawHub:
    return await RawHub(http, sandbox.url, "user").open(access_token=sandbox.issue().access_token)


def test_the_oldest_fault_of_a_name_strikes_and_is_counted_down() -> None:
    faults = Faults()
    for event in ("A", "B", ""):
        faults.add({"fault": "missing_events", "event": event}, now=0)

    def struck(event: str, route: str = "user_hub") -> bool:
        return bool(
            faults.strike(
                ("missing_events",),
                route,
                now=0,
                where=lambda f: f.parameters["event"] in ("", event),
            )
        )

    assert not struck("B", route="token")
    assert [struck("B") for _ in range(3)] == [True, True, False]
    assert [struck("A") for _ in range(2)] == [True, False]


def test_a_fault_of_streams_changes_no_request() -> None:
    faults = Faults()
    for name, kind in KINDS.items():
        if set(kind.on) & set(STREAMS):
            faults.add({"fault": name, "count": 1}, now=0)
    assert faults.plan("websocket", now=0).struck == ()
    assert not any(f.name in ("cut_stream", "displaced") for f in faults.in_force(now=0))


# --- reaching a hub ---


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ({"fault": "429", "retry_after": 3, "on": "negotiate"}, 429, "too many"),
        ({"fault": "html", "status": 200, "on": "negotiate"}, 200, "<html>"),
        ({"fault": "5xx", "status": 404, "on": "negotiate"}, 404, "fault"),
        ({"fault": "negotiate_error", "description": "no room"}, 200, '{"error":"no room"}'),
        ({"fault": "legacy_negotiate"}, 200, '"ProtocolVersion":"1.5"'),
    ],
)
async def test_negotiate_answers_what_a_fault_wants(
    http: ClientSession, sandbox: SandboxServer, fault: dict[str, Any], status: int, words: str
) -> None:
    sandbox.fault(fault.pop("fault"), **fault)
    answer = await http.post(f"{sandbox.url}/hubs/test/negotiate")
    assert answer.status == status
    assert words in await answer.text()
    assert answer.headers.get("Retry-After") == ("3" if status == 429 else None)
    assert (await http.post(f"{sandbox.url}/hubs/test/negotiate")).status == 200
    assert [d.status for d in sandbox.signalr.dials] == [status, 200]


async def test_negotiate_leads_elsewhere(http: ClientSession, sandbox: SandboxServer) -> None:
    sandbox.fault("redirect")
    assert (await negotiate(http, sandbox.url))["url"] == f"{sandbox.url}/hubs/test"
    sandbox.fault("redirect", url="http://other.example/hub", new_token=True)
    offer = await negotiate(http, sandbox.url)
    assert offer["url"] == "http://other.example/hub"
    assert sandbox.accepts(offer["accessToken"])


async def test_an_offer_can_be_short_or_too_generous(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    sandbox.fault("offered", transports="ServerSentEvents, LongPolling")
    sandbox.fault("unasked_stateful")
    offer = await negotiate(http, sandbox.url)
    names = [o["transport"] for o in offer["availableTransports"]]
    assert names == ["ServerSentEvents", "LongPolling"]
    assert offer["useStatefulReconnect"] is True
    assert "useStatefulReconnect" not in await negotiate(http, sandbox.url)


@pytest.mark.parametrize("status", [404, 409, 503])
async def test_a_transport_is_refused_with_any_status(
    http: ClientSession, sandbox: SandboxServer, status: int
) -> None:
    sandbox.fault("5xx", status=status, on="websocket")
    with pytest.raises(WSServerHandshakeError, match=str(status)):
        await RawHub(http, sandbox.url).open()
    sandbox.fault("5xx", status=204, on="polling")
    assert (await http.get(f"{sandbox.url}/hubs/test")).status == 204
    sandbox.fault("5xx", status=status, on="send")
    assert (await http.post(f"{sandbox.url}/hubs/test")).status == status


async def test_an_outage_cuts_what_is_open_and_whoever_comes(
    http: ClientSession, sandbox: SandboxServer, hub: RawHub
) -> None:
    sandbox.fault("outage")
    assert await hub.read() is None
    assert hub.closed == "cut"
    for route in ("/negotiate", ""):
        with pytest.raises(ClientError):
            await http.post(f"{sandbox.url}/hubs/test{route}")
    with pytest.raises(ClientError):
        await RawHub(http, sandbox.url).open()
    dials = list(sandbox.signalr.dials)[1:]
    assert {(d.route, d.status) for d in dials} == {("negotiate", 0), ("websocket", 0)}
    sandbox.clear_faults()
    sandbox.fault("outage", on="token")
    other = await RawHub(http, sandbox.url).open()
    assert (await other.call("Nothing"))["result"] is None


async def test_a_slow_or_lost_negotiation(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    sandbox.fault("slow", delay=5, on="negotiate", count=1)
    asked = asyncio.ensure_future(http.post(f"{sandbox.url}/hubs/test/negotiate"))
    await clock.run_until(asked.done)
    assert (await asked).status == 200
    assert clock.boottime() >= 5
    sandbox.fault("answer_lost", on="negotiate")
    with pytest.raises(ClientError):
        await http.post(f"{sandbox.url}/hubs/test/negotiate")


# --- how it ends ---


@pytest.mark.parametrize(
    ("how", "message", "ending"),
    [
        ("abort", None, "cut"),
        ("bye", None, "1000"),
        ("close", {"type": 7, "error": "why"}, "1000"),
        ("close_reconnect", {"type": 7, "error": "why", "allowReconnect": True}, "1000"),
    ],
)
async def test_open_connections_end_in_each_way(
    sandbox: SandboxServer, hub: RawHub, how: str, message: object, ending: str
) -> None:
    sandbox.fault("cut_stream", how=how, error="why", on="test_hub")
    assert await hub.read() == message
    assert await hub.read() is None
    assert hub.closed == ending


async def test_a_cut_keeps_to_its_hub(sandbox: SandboxServer, hub: RawHub) -> None:
    sandbox.fault("cut_stream", on=["user_hub", "market_hub"])
    assert (await hub.call("Nothing"))["result"] is None


async def test_a_connection_can_end_right_after_its_handshake(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    sandbox.fault("accept_then_close", on="test_hub")
    hub = await RawHub(http, sandbox.url).open()
    assert await hub.read() == {"type": 7, "allowReconnect": True}
    sandbox.fault("accept_then_close", on="test_hub", after=3, how="abort")
    hub = await RawHub(http, sandbox.url).open()
    begun = clock.boottime()
    ended = asyncio.ensure_future(hub.read())
    await clock.run_until(ended.done)
    assert hub.closed == "cut"
    assert 3 <= clock.boottime() - begun <= 4


async def test_a_handshake_is_refused_once(http: ClientSession, sandbox: SandboxServer) -> None:
    sandbox.fault("handshake_error", description="not today", on="test_hub")
    hub = await RawHub(http, sandbox.url).open(shake=False)
    await hub.say(protocol="json", version=1)
    assert await hub.read() == {"error": "not today"}
    assert await hub.read() is None
    await RawHub(http, sandbox.url).open()


async def test_a_call_fails_or_ends_its_connection(sandbox: SandboxServer, hub: RawHub) -> None:
    sandbox.fault("call_fails", method="echo")
    sandbox.fault("call_fails", method="Add", description="busy")
    assert (await hub.call("Nothing"))["result"] is None
    failed = "Failed to invoke 'Echo' due to an error on the server."
    assert (await hub.call("Echo", 1))["error"] == failed
    assert (await hub.call("Add", 1, 2))["error"].endswith("HubException: busy")
    assert (await hub.call("Add", 1, 2))["result"] == 3
    sandbox.fault("cut_on_call", method="Add", how="close_reconnect")
    await hub.say(type=1, invocationId="x", target="Add", arguments=[1, 2])
    assert await hub.read() == {"type": 7, "allowReconnect": True}


async def test_connections_outlive_their_token_unless_the_server_looks(
    http: ClientSession, sandbox: SandboxServer, hub: RawHub, clock: ManualClock
) -> None:
    user = await as_user(http, sandbox)
    sandbox.fault("revoke")
    clock.advance(1)
    sandbox.signalr.beat()
    assert (await user.call("SubscribeAccounts"))["result"] is None
    sandbox.fault("expiry_close")
    sandbox.signalr.beat()
    assert await user.read() == {"type": 7, "allowReconnect": True}
    assert await user.read() is None
    assert (await hub.call("Nothing"))["result"] is None


async def test_a_session_can_be_displaced(http: ClientSession, sandbox: SandboxServer) -> None:
    user = await as_user(http, sandbox)
    sandbox.fault("displaced", on="user_hub")
    assert (await user.read())["target"] == "GatewayLogout"
    assert await user.read() == {"type": 7}


# --- silence and frames ---


async def test_silence_leaves_answers_and_pings(
    sandbox: SandboxServer, hub: RawHub, clock: ManualClock
) -> None:
    sandbox.fault("silent", on="test_hub")
    assert await hub.events_of(3) == []
    ping = asyncio.ensure_future(hub.read())
    await clock.run_until(ping.done)
    assert ping.result() == {"type": 6}
    sandbox.clear_faults()
    sandbox.fault("silent", answers=False)
    await hub.say(type=1, invocationId="1", target="Nothing", arguments=[])
    await hub.say(type=4, invocationId="2", target="Stream", arguments=[2])
    items = [(await hub.read())["item"] for _ in range(2)]
    ping = asyncio.ensure_future(hub.read())
    await clock.run_until(ping.done)
    assert (items, ping.result()) == ([0, 1], {"type": 6})


async def test_a_black_hole_swallows_pings_too(
    sandbox: SandboxServer, hub: RawHub, clock: ManualClock
) -> None:
    sandbox.fault("black_hole", seconds=100)
    await hub.say(type=1, invocationId="1", target="Nothing", arguments=[])
    message = asyncio.ensure_future(hub.read())
    await clock.run_until(message.done)
    assert message.result() == {"type": 6}
    assert clock.boottime() > 100


async def test_frames_come_late(sandbox: SandboxServer, hub: RawHub, clock: ManualClock) -> None:
    sandbox.fault("slow_frames", delay=2)
    answer = asyncio.ensure_future(hub.call("Nothing"))
    await clock.run_until(answer.done)
    assert clock.boottime() >= 2


async def test_a_client_that_does_not_read_is_ended(
    sandbox: SandboxServer, hub: RawHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepline.sandbox.signalr_connection._MOST_UNSENT", 3)
    sandbox.fault("slow_frames", delay=1000)
    for number in range(5):
        sandbox.signalr.push("E", number)
    sandbox.signalr.beat()
    assert await hub.read() is None
    assert hub.closed == "cut"
    assert sandbox.signalr.connections == []


async def test_messages_come_in_pieces(sandbox: SandboxServer, hub: RawHub) -> None:
    sandbox.fault("split_frames", size=5)
    assert (await hub.call("Echo", "häß"))["result"] == "häß"
    assert all(len(frame) <= 5 for frame in hub.frames[1:])
    assert len(hub.frames) > 5


async def test_messages_come_glued(sandbox: SandboxServer, hub: RawHub, clock: ManualClock) -> None:
    sandbox.fault("glued_frames", wait=2)
    found = asyncio.ensure_future(hub.events_of(3))
    await clock.run_until(found.done)
    assert found.result() == [0, 1, 2]
    assert [frame.count(END) for frame in hub.frames[1:]] == [4]


async def test_a_huge_message_comes_before_an_event(sandbox: SandboxServer, hub: RawHub) -> None:
    sandbox.fault("oversize_frame", bytes=2_000_000)
    assert await hub.events_of(2) == [0, 1]
    assert max(map(len, hub.frames)) > 2_000_000


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("completion", {"type": 3, "invocationId": "no-such-call", "result": 1}),
        ("item", {"type": 2, "invocationId": "no-such-stream", "item": 1}),
        ("call", {"type": 1, "invocationId": "s999", "target": "NobodyHasThis", "arguments": []}),
        ("sequence", {"type": 9, "sequenceId": 0}),
        ("unknown_type", {"type": 42, "target": "?"}),
    ],
)
async def test_what_no_client_expects_comes_before_an_event(
    sandbox: SandboxServer, hub: RawHub, form: str, read: object
) -> None:
    sandbox.fault("strange_message", form=form)
    sandbox.signalr.push("E", 1)
    assert await hub.read() == read
    assert await hub.event("E") == [1]


async def test_frames_that_cannot_be_read_are_sent_when_wanted(
    http: ClientSession, sandbox: SandboxServer, hub: RawHub
) -> None:
    sandbox.fault("strange_message", form="not_json")
    sandbox.signalr.push("E", 1)
    with pytest.raises(json.JSONDecodeError):
        await hub.read()
    other = await RawHub(http, sandbox.url).open()
    sandbox.fault("strange_message", form="not_utf8", count=2)
    sandbox.signalr.push("E", 1)
    assert await other.read() is None  # a WebSocket of text has to be UTF-8
    assert other.closed == "cut"


async def test_acks_can_be_withheld(
    http: ClientSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    token = (await negotiate(http, sandbox.url, useStatefulReconnect="true"))["connectionToken"]
    hub = await RawHub(http, sandbox.url).open(seat=token, version=2)
    sandbox.fault("ack_stall", seconds=5)
    await hub.call("Nothing")
    ack = asyncio.ensure_future(hub.read())
    await clock.run_until(ack.done)
    assert ack.result() == {"type": 8, "sequenceId": 1}
    assert clock.boottime() >= 5


# --- events ---


async def test_events_are_lost_doubled_and_out_of_order(
    sandbox: SandboxServer, hub: RawHub
) -> None:
    sandbox.fault("duplicate_events", count=2)
    sandbox.fault("missing_events")
    assert await hub.events_of(4) == [1, 1, 2, 2, 3]
    sandbox.fault("reordered_events")
    assert await hub.events_of(3) == [1, 0, 2]
    sandbox.fault("missing_events", event="Other")
    assert await hub.events_of(2) == [0, 1]
    assert await hub.events_of(1, "Other") == []


async def test_events_of_the_user_hub_come_wrapped(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    user = await as_user(http, sandbox)
    await user.call("SubscribeOrders", 1001)
    sandbox.fault("wrapped_events", action=2)
    resting(sandbox)
    sandbox.signalr.pump()
    (wrapped,) = await user.event("GatewayUserOrder")
    assert (wrapped["action"], wrapped["data"]["status"]) == (2, 1)


def resting(sandbox: SandboxServer) -> int:
    """An order that no market price reaches."""
    ticket = Ticket(
        account="1001",
        listing=MES,
        side=Side.BUY,
        kind=Kind.LIMIT,
        size=Decimal(4),
        limit=Decimal(4000),
    )
    return sandbox.market.place(ticket, now=sandbox.signalr._venue_now()).id


async def test_an_order_is_filled_while_nobody_is_there(
    http: ClientSession, sandbox: SandboxServer, hub: RawHub
) -> None:
    user = await as_user(http, sandbox)
    await user.call("SubscribeTrades", 1001)
    number = resting(sandbox)
    sandbox.fault("fill_while_away", part=0.5)
    assert await user.read() is None
    assert user.closed == "cut"
    assert [(f.order, f.size) for f in sandbox.market.fills] == [(number, 2)]
    again = await as_user(http, sandbox)
    await again.call("SubscribeTrades", 1001)
    sandbox.fault("fill_while_away", on="streamer")  # nobody of ours is cut
    assert (await again.event("GatewayUserTrade"))[0]["size"] == 2
    assert (await hub.call("Nothing"))["result"] is None


async def test_a_stateful_subscriber_hears_of_a_fill_while_it_was_away(
    http: ClientSession, sandbox: SandboxServer
) -> None:
    token = sandbox.issue().access_token
    query = {"useStatefulReconnect": "true", "access_token": token}
    seat = (await negotiate(http, sandbox.url, "user", **query))["connectionToken"]
    user = await RawHub(http, sandbox.url, "user").open(seat=seat, version=2, access_token=token)
    await user.call("SubscribeTrades", 1001)
    number = resting(sandbox)
    (connection,) = sandbox.signalr.connections
    sandbox.fault("fill_while_away")
    await connection.freed()
    again = RawHub(http, sandbox.url, "user")
    await again.open(seat=seat, shake=False, access_token=token)
    assert (await again.event("GatewayUserTrade"))[0]["orderId"] == number


async def test_the_counters_tell_of_hubs(
    http: ClientSession, sandbox: SandboxServer, hub: RawHub
) -> None:
    await hub.events_of(3)
    await negotiate(http, sandbox.url)
    sandbox.fault("cut_stream")
    await sandbox.signalr.until(lambda: not sandbox.signalr.connections)
    stats = await (await http.get(f"{sandbox.url}/stats")).json()
    told = {name: count for name, count in stats.items() if name.startswith("hub_")}
    assert told == {
        "hub_connections": 0,
        "hub_subscriptions": 0,
        "hub_dials": 2,
        "hub_negotiations": 1,
        "hub_handshakes": 1,
        "hub_reattached": 0,
        "hub_events": 3,
        "hub_messages": 1,
    }
    assert set(HUBS) < set(STREAMS)
