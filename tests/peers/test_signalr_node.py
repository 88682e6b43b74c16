"""The official SignalR client under Node (npm `@microsoft/signalr`) at the sandbox's hubs, and beside ours."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.brokers.loopback import unlimited
from tests.peers.node_hub import Node, NodeError, running
from tests.peers.npm import install

from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.messages import OrderRequest, OrderSide, OrderType
from keepline.sandbox.server import SandboxServer
from keepline.stream.connection import SignalRConnection
from keepline.testing import ManualClock

pytestmark = pytest.mark.timeout(120)  # the first run installs the packages

HERE = Path(__file__).parent / "signalr"
CONTRACT = "CON.F.US.MES.Z26"
WAYS = [
    pytest.param({"transport": "websockets"}, id="websockets-json"),
    pytest.param({"transport": "websockets", "messagepack": True}, id="websockets-messagepack"),
    pytest.param({"transport": "events"}, id="events-json"),
    pytest.param({"transport": "polling"}, id="polling-json"),
    pytest.param({"transport": "polling", "messagepack": True}, id="polling-messagepack"),
]
BOTH = pytest.mark.parametrize("messagepack", [False, True], ids=["json", "messagepack"])


@pytest.fixture
async def node(
    need: Callable[..., dict[str, str]], pytestconfig: pytest.Config
) -> AsyncIterator[Node]:
    tools = need("node", "npm")
    assert pytestconfig.cache is not None
    folder = await asyncio.to_thread(install, pytestconfig.cache, tools["npm"], HERE)
    async with running(tools["node"], folder) as made:
        yield made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def sandbox(clock: ManualClock) -> AsyncIterator[SandboxServer]:
    """On a clock that stands still: what is sent late or never is so because a test says it."""
    async with SandboxServer(clock=clock) as made:
        yield made


Connect = Callable[..., Awaitable[None]]


@pytest.fixture
def connect(node: Node, sandbox: SandboxServer) -> Connect:
    """Build and start a connection: to the test hub, by the name `hub`, unless told otherwise."""

    async def connected(path: str = "test", hub: str = "hub", **options: Any) -> None:
        await node.do("build", hub=hub, url=f"{sandbox.url}/hubs/{path}", **options)
        await node.do("start", hub=hub)

    return connected


async def invoke(node: Node, target: str, *args: Any, **more: Any) -> Any:
    return await node.do("invoke", hub="hub", target=target, args=args, **more)


async def streamed(node: Node, name: str, target: str, *args: Any, **more: Any) -> str | None:
    """All of a stream; the error that ended it."""
    await node.do("stream", hub="hub", name=name, target=target, args=args, **more)
    error: str | None = (await node.first("end", name=name))["error"]
    return error


# -------------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize("way", WAYS)
async def test_calls_are_answered(node: Node, connect: Connect, way: dict[str, Any]) -> None:
    await connect(**way)
    value = {"a": [1, "é\n\u001e", None, 1.5, True], "b": {}}
    assert await invoke(node, "Echo", value) == value
    assert await invoke(node, "add", 2, 3) == 5
    assert await invoke(node, "Nothing") is None
    assert len(await invoke(node, "Big", 300_000)) == 300_000
    assert await invoke(node, "WhoAmI") == await node.do("id", hub="hub")


@pytest.mark.parametrize("way", WAYS)
async def test_each_refusal_has_the_real_servers_words(
    node: Node, connect: Connect, way: dict[str, Any]
) -> None:
    await connect(**way)
    for target, args, words in (
        ("Throw", ["boom"], "An unexpected error occurred invoking 'Throw' on the server. HubException: boom"),
        ("Bug", [], "An unexpected error occurred invoking 'Bug' on the server."),
        ("Nope", [], "Failed to invoke 'Nope' due to an error on the server. HubException: Method does not exist."),
        ("Add", [1], "Failed to invoke 'Add' due to an error on the server."),
        ("Add", ["a", 1], "Failed to invoke 'Add' due to an error on the server."),
        ("Stream", [3],
         "The client attempted to invoke the streaming 'Stream' method with a non-streaming invocation."),
    ):  # fmt: skip
        with pytest.raises(NodeError) as caught:
            await invoke(node, target, *args)
        assert str(caught.value) == words
    assert "non-streaming 'Add'" in (await streamed(node, "wrong", "Add", 1, 2) or "")
    assert await invoke(node, "Add", 2, 3) == 5


@pytest.mark.parametrize("way", WAYS)
async def test_streams_come_down_whole_or_end_with_their_error(
    node: Node, connect: Connect, way: dict[str, Any]
) -> None:
    await connect(**way)
    assert await streamed(node, "s", "Stream", 100) is None
    assert node.items("s") == list(range(100))
    error = await streamed(node, "f", "StreamFail", 2)
    assert error == (
        "An error occurred on the server while streaming results. HubException: ran out"
    )
    assert node.items("f") == [0, 1]


@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_that_is_given_up_ends_at_the_server(
    node: Node, clock: ManualClock, connect: Connect, way: dict[str, Any]
) -> None:
    await connect(**way)
    await node.do("stream", hub="hub", name="s", target="StreamForever", args=[])
    for count in (1, 2, 3):
        await node.until(lambda _, count=count: len(node.items("s")) >= count)
        clock.advance(0.01)
    await node.do("dispose", name="s")
    assert await invoke(node, "Count") == 1
    seen = len(node.items("s"))
    for _ in range(3):
        clock.advance(0.01)
        await invoke(node, "Count")
    assert len(node.items("s")) == seen


@pytest.mark.parametrize("way", WAYS)
async def test_streams_go_up(node: Node, connect: Connect, way: dict[str, Any]) -> None:
    await connect(**way)
    items = [{"n": n} for n in range(40)]
    assert await invoke(node, "Upload", up=[{"items": items}]) == items
    both = [{"items": [1, 2]}, {"items": ["a"]}]
    assert await invoke(node, "UploadTwo", "w", up=both) == ["w", [1, 2], ["a"]]
    assert await streamed(node, "back", "StreamBack", up=[{"items": items}]) is None
    assert node.items("back") == items


@BOTH
async def test_an_upload_comes_back_item_by_item_and_ends_with_its_own_error(
    node: Node, connect: Connect, messagepack: bool
) -> None:
    await connect(messagepack=messagepack)
    await node.do("stream", hub="hub", name="s", target="StreamBack", args=[], up=[{"name": "u"}])
    for number in range(3):
        await node.do("next", name="u", item=number)
        await node.until(lambda _, number=number: node.items("s") == list(range(number + 1)))
    await node.do("abort", name="u", error="no more")
    assert "no more" in (await node.first("end", name="s"))["error"]


@pytest.mark.parametrize("way", WAYS)
async def test_the_server_asks_and_is_answered(
    node: Node, connect: Connect, way: dict[str, Any]
) -> None:
    await connect(**way)
    await node.do("on", hub="hub", target="Question", answer="answer")
    await node.do("on", hub="hub", target="Trouble", answer="fail")
    assert await invoke(node, "AskClient", "Question", "why") == ["answer", "why"]
    for target, words in (("Nobody", "didn't provide a result"), ("Trouble", "handler failed")):
        with pytest.raises(NodeError, match=words):
            await invoke(node, "AskClient", target, 1)


@pytest.mark.parametrize("way", WAYS)
async def test_events_come_in_order_whatever_their_frames(
    node: Node, sandbox: SandboxServer, connect: Connect, way: dict[str, Any]
) -> None:
    await connect(**way)
    await node.do("on", hub="hub", target="tICK")
    await invoke(node, "Push", "Tick", 500)
    sandbox.fault("oversize_frame", bytes=1_000_000)
    await invoke(node, "Push", "Tick", 1)
    await node.until(lambda _: len(node.calls("tICK")) == 501)
    assert node.calls("tICK") == [*([n] for n in range(500)), [0]]


async def test_messages_that_are_glued_together_are_told_apart(
    node: Node, sandbox: SandboxServer, connect: Connect
) -> None:
    await connect()
    await node.do("on", hub="hub", target="Tick")
    sandbox.fault("glued_frames", wait=0)
    await invoke(node, "Push", "Tick", 5)
    assert node.calls("Tick") == [[n] for n in range(5)]


@pytest.mark.parametrize("form", ["completion", "item", "unknown_type"])
async def test_what_it_does_not_expect_disturbs_nothing(
    node: Node, sandbox: SandboxServer, connect: Connect, form: str
) -> None:
    await connect()
    await node.do("on", hub="hub", target="Tick")
    sandbox.fault("strange_message", form=form)
    await invoke(node, "Push", "Tick", 2)
    assert node.calls("Tick") == [[0], [1]]
    assert await node.do("state", hub="hub") == "Connected"


# --------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("way", WAYS)
async def test_a_goodbye_is_heard_on_both_sides(
    node: Node, sandbox: SandboxServer, connect: Connect, way: dict[str, Any]
) -> None:
    await connect(**way)
    await node.do("stop", hub="hub")
    assert (await node.first("closed"))["error"] is None
    await sandbox.signalr.until(lambda: not sandbox.signalr.connections)


@BOTH
@pytest.mark.parametrize(
    ("how", "comes_back"),
    [("abort", True), ("bye", True), ("close_reconnect", True), ("close", False)],
)
async def test_each_end_is_understood(
    node: Node,
    sandbox: SandboxServer,
    connect: Connect,
    how: str,
    comes_back: bool,
    messagepack: bool,
) -> None:
    await connect(reconnect=[0, 0], messagepack=messagepack)
    first = await node.do("id", hub="hub")
    sandbox.fault("cut_stream", how=how, on="test_hub", error="said")
    if comes_back:
        again = await node.first("reconnected")
        assert again["id"] not in (None, first)
        assert await invoke(node, "Add", 1, 2) == 3
    else:
        assert "said" in (await node.first("closed"))["error"]
        assert node.of("reconnecting") == []


@pytest.mark.parametrize(
    ("target", "comes_back"), [("Abort", False), ("CloseAndReturn", True), ("Die", True)]
)
async def test_a_method_that_ends_its_connection(
    node: Node, connect: Connect, target: str, comes_back: bool
) -> None:
    await connect(reconnect=[0, 0])
    await node.do("send", hub="hub", target=target, args=[])
    await node.first("reconnected" if comes_back else "closed")
    assert bool(node.of("reconnecting")) is comes_back


async def test_a_call_without_an_answer_fails_with_its_connection(
    node: Node, sandbox: SandboxServer, connect: Connect
) -> None:
    await connect()
    sandbox.fault("cut_on_call")
    with pytest.raises(NodeError):
        await invoke(node, "Echo", 1)
    await node.first("closed")


async def test_a_server_that_says_nothing_is_given_up(
    node: Node, sandbox: SandboxServer, connect: Connect
) -> None:
    """The official client's own time, made short: its pings go on, and nothing comes."""
    sandbox.fault("black_hole")
    await node.do("build", hub="hub", url=f"{sandbox.url}/hubs/test", serverTimeout=50)
    with pytest.raises(NodeError, match=r"[Tt]imeout"):
        await node.do("start", hub="hub")
    sandbox.clear_faults()
    await connect(hub="later", serverTimeout=1000)  # enough to start in
    assert "timeout" in (await node.first("closed", hub="later"))["error"].lower()


# ----------------------------------------------------------------------------------------------------------- begins


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"name": "negotiate_error", "description": "no room"}, "no room"),
        ({"name": "429", "on": "negotiate"}, "429"),
        ({"name": "5xx", "on": "negotiate", "status": 404}, "404.*not a SignalR endpoint"),
        ({"name": "html", "on": "negotiate"}, "403"),
        ({"name": "html", "on": "negotiate", "status": 200}, "JSON"),
        ({"name": "legacy_negotiate"}, "ASP.NET SignalR"),
        ({"name": "unasked_stateful"}, "Stateful Reconnect"),
        ({"name": "handshake_error", "description": "nah"}, "nah"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
async def test_a_start_that_is_refused_says_so(
    node: Node, sandbox: SandboxServer, connect: Connect, fault: dict[str, Any], words: str
) -> None:
    sandbox.fault(**fault)
    with pytest.raises(NodeError, match=words):
        await connect()
    await connect(hub="next")


async def test_a_redirect_is_followed_with_its_token(
    node: Node, sandbox: SandboxServer, connect: Connect
) -> None:
    sandbox.fault("redirect", new_token=True, count=2)
    await connect("user", token="a token that opens nothing")
    assert await node.do("invoke", hub="hub", target="SubscribeAccounts", args=[]) is None
    assert sandbox.stats()["hub_negotiations"] == 3


async def test_a_transport_that_does_not_start_is_followed_by_the_next(
    node: Node, sandbox: SandboxServer, connect: Connect
) -> None:
    sandbox.fault("5xx", status=404, on=["websocket", "events"], count=2)
    await connect()
    assert await invoke(node, "Add", 1, 2) == 3
    routes = [dial.route for dial in sandbox.signalr.dials]
    assert routes[:2] == ["negotiate", "websocket"]
    assert "polling" in routes


@pytest.mark.parametrize(
    ("offered", "used"),
    [("WebSockets", "websocket"), ("ServerSentEvents", "events"), ("LongPolling", "polling")],
)
async def test_what_is_offered_is_used(
    node: Node, sandbox: SandboxServer, connect: Connect, offered: str, used: str
) -> None:
    sandbox.fault("offered", transports=offered)
    await connect()
    assert await invoke(node, "Add", 1, 2) == 3
    assert {dial.route for dial in sandbox.signalr.dials} == {"negotiate", used}


async def test_a_token_is_wanted_and_goes_where_it_is_read(
    node: Node, sandbox: SandboxServer, connect: Connect
) -> None:
    with pytest.raises(NodeError, match="401"):
        await connect("user", token="wrong")
    with pytest.raises(NodeError, match="401"):
        await connect("market")
    await connect("user", hub="good", token=sandbox.issue().access_token)
    assert await node.do("invoke", hub="good", target="SubscribeAccounts", args=[]) is None


@BOTH
async def test_it_can_come_without_negotiation(
    node: Node, sandbox: SandboxServer, connect: Connect, messagepack: bool
) -> None:
    """As ProjectX's sample does: the token in the address, straight to a WebSocket."""
    token = sandbox.issue().access_token
    await connect(
        f"user?access_token={token}",
        transport="websockets",
        skipNegotiation=True,
        messagepack=messagepack,
    )
    assert await node.do("id", hub="hub") is None
    await node.do("invoke", hub="hub", target="SubscribeOrders", args=[1001])
    assert [dial.route for dial in sandbox.signalr.dials] == ["websocket"]
    assert sandbox.stats()["hub_subscriptions"] == 1


# --------------------------------------------------------------------------------------------------- stateful reconnect


@BOTH
async def test_a_cut_in_the_middle_of_a_stream_costs_no_item_and_doubles_none(
    node: Node, sandbox: SandboxServer, clock: ManualClock, connect: Connect, messagepack: bool
) -> None:
    await connect(stateful={}, reconnect=[0, 0], messagepack=messagepack)
    whoami = await node.do("id", hub="hub")
    assert await invoke(node, "Count") == 1
    await node.do("stream", hub="hub", name="s", target="StreamSlow", args=[12, 0.1])
    for number in range(12):
        await node.until(lambda _, number=number: len(node.items("s")) > number)
        if number in (4, 8):
            sandbox.fault("cut_stream", on="test_hub")
            await sandbox.signalr.until(
                lambda number=number: sandbox.stats()["hub_reattached"] == number // 4
            )
        await clock.until_asleep()
        clock.advance(0.1)
    assert (await node.first("end", name="s"))["error"] is None
    assert node.items("s") == list(range(12))
    assert await invoke(node, "Count") == 2  # the same connection at the server
    assert await invoke(node, "WhoAmI") == whoami
    assert node.of("reconnecting") == []


@BOTH
async def test_what_was_sent_into_a_cut_arrives_once(
    node: Node, sandbox: SandboxServer, connect: Connect, messagepack: bool
) -> None:
    await connect(stateful={}, messagepack=messagepack)
    for count in range(1, 6):
        sandbox.fault("cut_stream", on="test_hub")
        assert await invoke(node, "Count") == count
    assert node.of("closed") == []
    assert sandbox.stats()["hub_reattached"] == 5


@BOTH
async def test_more_than_the_replay_buffer_holds_comes_through_by_acknowledgement(
    node: Node, sandbox: SandboxServer, clock: ManualClock, connect: Connect, messagepack: bool
) -> None:
    """6,000 events are more than the 100,000 bytes that a server keeps: the client has to acknowledge."""
    await connect(stateful={}, messagepack=messagepack)
    await node.do("on", hub="hub", target="Tick")
    pushed = node.begin("invoke", hub="hub", target="Push", args=["Tick", 6000])
    await node.until(lambda _: pushed.done())
    assert node.calls("Tick") == [[n] for n in range(6000)]


@BOTH
async def test_a_server_that_acknowledges_nothing_holds_up_the_senders_and_loses_nothing(
    node: Node, sandbox: SandboxServer, clock: ManualClock, connect: Connect, messagepack: bool
) -> None:
    await connect(stateful={"bufferSize": 2000}, messagepack=messagepack)
    await connect(hub="other")
    (connection, _) = sandbox.signalr.connections
    sandbox.fault("ack_stall")
    sandbox.signalr.beat()
    wanted = ["x" * 300] * 3
    calls = [
        node.begin("invoke", hub="hub", target="Upload", args=[], up=[{"items": wanted}])
        for _ in range(8)
    ]
    await sandbox.signalr.until(lambda: connection.received >= 5)
    for _ in range(20):
        await node.do("invoke", hub="other", target="Nothing", args=[])
    assert not all(call.done() for call in calls)
    sandbox.clear_faults()
    for _ in range(25):  # of the venue's seconds: acknowledgements come with time
        clock.advance(1)
        for _ in range(5):
            await node.do("invoke", hub="other", target="Nothing", args=[])
    assert all(call.done() for call in calls)
    assert [await call for call in calls] == [wanted] * 8


async def test_a_server_that_forgot_the_connection_makes_a_new_one(
    node: Node, sandbox: SandboxServer, connect: Connect
) -> None:
    await connect(stateful={}, reconnect=[0, 0])
    first = await node.do("id", hub="hub")
    assert await invoke(node, "Count") == 1
    sandbox.fault("5xx", status=404, on="websocket")
    sandbox.fault("cut_stream", on="test_hub")
    assert (await node.first("reconnected"))["id"] != first
    assert await invoke(node, "Count") == 1


# --------------------------------------------------------------------------------------------- our client beside theirs

USER = ("GatewayUserAccount", "GatewayUserOrder", "GatewayUserPosition", "GatewayUserTrade")
DATA = ("GatewayQuote", "GatewayTrade", "GatewayDepth")


class Ours:
    """Our connection to one hub, and every event it saw."""

    def __init__(self, url: str, token: str, hub: str, *, encoding: str) -> None:
        self.seen: list[tuple[str, list[Any]]] = []
        self.connection = SignalRConnection(
            f"{url}/hubs/{hub}", lambda: token, encoding=encoding, transports=("websockets",)
        )
        for target in USER if hub == "user" else DATA:
            self.connection.on(target, self._noting(target))

    def _noting(self, target: str) -> Callable[..., None]:
        return lambda *arguments: self.seen.append((target, list(arguments)))


@BOTH
async def test_our_client_and_theirs_see_the_same_events(
    node: Node, sandbox: SandboxServer, clock: ManualClock, connect: Connect, messagepack: bool
) -> None:
    """Orders, fills, positions, balances, quotes, trades and depth of one venue, on two connections each."""
    token = sandbox.issue().access_token

    async def tokens() -> str:
        return token

    ours = {
        hub: Ours(sandbox.url, token, hub, encoding="messagepack" if messagepack else "json")
        for hub in ("user", "market")
    }
    wanted = {
        "user": [("SubscribeAccounts",), *((f"Subscribe{w}", 1001) for w in ("Orders", "Positions", "Trades"))],
        "market": [(f"SubscribeContract{w}", CONTRACT) for w in ("Quotes", "Trades", "MarketDepth")],
    }  # fmt: skip
    async with ours["user"].connection, ours["market"].connection:
        for hub, calls in wanted.items():
            await connect(hub, hub=hub, token=token, messagepack=messagepack)
            for target in USER if hub == "user" else DATA:
                await node.do("on", hub=hub, target=target)
            for method, *args in calls:
                await node.do("invoke", hub=hub, target=method, args=args)
                await ours[hub].connection.invoke(method, *args)
        async with ProjectXClient(
            tokens, base_url=sandbox.url, limiter=unlimited(), clock=clock
        ) as client:
            for number in range(12):
                clock.advance(1)
                await client.place_order(order(number))
                sandbox.signalr.beat()
        for hub, (first, *_) in wanted.items():  # an answer comes after what was sent before it
            method, args = first[0].replace("Subscribe", "Unsubscribe"), first[1:]
            await node.do("invoke", hub=hub, target=method, args=args)
            await ours[hub].connection.invoke(method, *args)
    for hub in wanted:
        theirs = [(one["target"], one["args"]) for one in node.of("call", hub=hub)]
        mine = ours[hub].seen
        assert {target for target, _ in mine} == set(USER if hub == "user" else DATA)
        assert len(mine) > 30
        assert mine == theirs


def order(number: int) -> OrderRequest:
    """Buys and sells at the market, and every third one rests."""
    rests = number % 3 == 2
    return OrderRequest(
        account_id=1001,
        contract_id=CONTRACT,
        type=OrderType.LIMIT if rests else OrderType.MARKET,
        side=OrderSide.ASK if number % 2 else OrderSide.BID,
        size=1 + number,
        limit_price=Decimal(9000 if number % 2 else 1000) if rests else None,
    )
