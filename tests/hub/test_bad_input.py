"""Whatever a client sends: an `error` with a code of the table, and the connection stays, unless it goes on and on."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.hub.house import BINARY, TEXT, Peer, frame, settings, token

from keepline.hub.closecodes import CloseCode
from keepline.hub.offences import ErrorCode
from keepline.hub.server import AnalyticsHub


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[AnalyticsHub]:
    async with AnalyticsHub(settings(tmp_path)) as hub:
        yield hub


@pytest.fixture
async def peer(hub: AnalyticsHub) -> AsyncIterator[Peer]:
    async with await Peer.open(hub.port, token()) as peer:
        await peer.kind("welcome")
        yield peer


def sub(**more: Any) -> bytes:
    return msgspec.json.encode({"action": "subscribe", **more})


def resuming(position: Any) -> bytes:
    return sub(channels=["system"], resume={"system": position})


BAD = [
    (b"", "bad_json"),
    (b" ", "bad_json"),
    (b"{", "bad_json"),
    (b"hello", "bad_json"),
    (b"{'action':'ping'}", "bad_json"),
    (b'{"action":"ping"} trailing', "bad_json"),
    (b'{"action":"ping","action":}', "bad_json"),
    (b'{"action":"subscribe","channels":[NaN]}', "bad_json"),
    (b"[" * 50_000, "bad_json"),
    (b'{"a":' * 10_000, "bad_json"),
    (b"null", "not_an_object"),
    (b"[]", "not_an_object"),
    (b'"subscribe"', "not_an_object"),
    (b"1e999", {"not_an_object", "bad_json"}),
    (b"{}", "unknown_action"),
    (b'{"action":null}', "unknown_action"),
    (b'{"action":["subscribe"]}', "unknown_action"),
    (b'{"action":"SUBSCRIBE","channels":[]}', "unknown_action"),
    (b'{"action":"publish","channel":"system","type":"x","data":{}}', "unknown_action"),
    (b'{"action":"\\ud800"}', {"unknown_action", "bad_json"}),
    (sub(), {"bad_request", "bad_channel"}),
    (sub(channels=None), "bad_channel"),
    (sub(channels="system"), "bad_channel"),
    (sub(channels={"system": 1}), "bad_channel"),
    (sub(channels=[7]), "bad_channel"),
    (sub(channels=["system", None]), "bad_channel"),
    (sub(channels=[["system"]]), "bad_channel"),
    (sub(channels=[""]), "bad_channel"),
    (sub(channels=["x" * 256]), "bad_channel"),
    (sub(channels=["nowhere"]), "unknown_channel"),
    (sub(channels=["System"]), "unknown_channel"),
    (sub(channels=["system "]), "unknown_channel"),
    (sub(channels=["../system"]), "unknown_channel"),
    (sub(channels=["*"]), "unknown_channel"),
    (sub(channels=[str(i) for i in range(10_000)]), {"too_many_channels", "too_large"}),
    (sub(channels=["a"] * 10_000), "too_many_channels"),
    (msgspec.json.encode({"action": "unsubscribe", "channels": ["system"]}), "not_subscribed"),
    (msgspec.json.encode({"action": "unsubscribe", "channels": ["nowhere"]}), "unknown_channel"),
    (sub(channels=["system"], resume=[]), "bad_resume"),
    (sub(channels=["system"], resume="x"), "bad_resume"),
    (sub(channels=["system"], resume={"alerts": {"epoch": "x", "offset": 1}}), "bad_resume"),
    (resuming(None), "bad_resume"),
    (resuming(7), "bad_resume"),
    (resuming({}), "bad_resume"),
    (resuming({"epoch": "x"}), "bad_resume"),
    (resuming({"offset": 1}), "bad_resume"),
    (resuming({"epoch": 7, "offset": 1}), "bad_resume"),
    (resuming({"epoch": "x", "offset": -1}), "bad_resume"),
    (resuming({"epoch": "x", "offset": "1"}), "bad_resume"),
    (resuming({"epoch": "x", "offset": 1.5}), "bad_resume"),
    (resuming({"epoch": "x" * 65, "offset": 1}), "bad_resume"),
    (b'{"action":"rate","rate":0}', "bad_rate"),
    (b'{"action":"rate","rate":-1}', "bad_rate"),
    (b'{"action":"rate","rate":1e9}', "bad_rate"),
    (b'{"action":"rate","rate":"10"}', "bad_rate"),
    (b'{"action":"refresh"}', {"bad_token", "bad_request"}),
    (b'{"action":"refresh","token":7}', "bad_token"),
    (b'{"action":"refresh","token":""}', "bad_token"),
    (b'{"action":"refresh","token":"a.b.c"}', "bad_token"),
    (b'{"action":"ping","id":{}}', "bad_request"),
    (b'{"action":"ping","id":1.5}', "bad_request"),
    (msgspec.json.encode({"action": "ping", "id": "x" * 65}), "bad_request"),
    (b'{"action":"ping"}'.ljust(64 * 1024 + 1), "too_large"),
]


@pytest.mark.parametrize(("text", "code"), BAD, ids=lambda each: repr(each)[:60])
async def test_it_is_answered_with_a_code_and_the_connection_stays(
    peer: Peer, text: bytes, code: str | set[str]
) -> None:
    peer.write(frame(TEXT, text))
    error = await peer.kind("error")
    assert error["data"]["code"] in ({code} if isinstance(code, str) else code)
    assert error["data"]["message"]
    assert "offset" not in error
    await peer.alive()
    await peer.subscribed("alerts")


async def test_a_binary_frame_is_answered(peer: Peer) -> None:
    peer.write(frame(BINARY, b'{"action":"ping"}'))
    await peer.kind("error", code="binary")
    await peer.alive()


async def test_an_error_names_the_request_and_the_channel(peer: Peer) -> None:
    peer.ask(action="subscribe", channels=["nowhere", "system"], id="mine")
    error = await peer.kind("error", code="unknown_channel")
    assert (error["channel"], error["data"]["id"]) == ("nowhere", "mine")
    assert (await peer.kind("subscribed"))["channel"] == "system"  # the good one counts


@pytest.mark.parametrize("channel", ["system", "routing-metrics", "alerts"])
@pytest.mark.parametrize("reason", ["future", "epoch"])
async def test_a_place_that_never_was_is_a_gap_and_the_present(
    hub: AnalyticsHub, peer: Peer, channel: str, reason: str
) -> None:
    for number in range(3):
        await hub.publish_durable(channel, "thing", {"number": number}, key=str(number))
    await peer.subscribed(channel)
    known = await peer.until(lambda message: message.get("epoch"))
    epoch = known["epoch"] if reason == "future" else "another"
    async with await Peer.open(hub.port, token()) as late:
        position = {"epoch": epoch, "offset": 10**30}
        late.ask(action="subscribe", channels=[channel], resume={channel: position})
        told = (await late.kind("subscribed"))["data"]
        assert (told["recovered"], told["offset"]) == (False, 3)
        assert (await late.kind("gap"))["data"]["reason"] == reason
        if channel == "alerts":
            numbers = [(await late.kind("thing"))["data"]["number"] for _ in range(3)]
        else:
            items = (await late.kind("snapshot", partial=False))["data"]["items"]
            numbers = [item["data"]["number"] for item in items]
        assert numbers == [0, 1, 2]
        await late.alive()


OFFENCES = [
    (frame(TEXT, b"{"), CloseCode.TOO_MANY_OFFENCES),
    (frame(BINARY, b"x"), CloseCode.TOO_MANY_OFFENCES),
    (frame(TEXT, sub(channels=["nowhere"])), CloseCode.TOO_MANY_OFFENCES),
    (frame(TEXT, sub(channels=["alerts"] * 2000)), CloseCode.TOO_MANY_OFFENCES),
    (frame(TEXT, b'{"action":"refresh","token":"a.b.c"}'), CloseCode.TOO_MANY_OFFENCES),
]


@pytest.mark.parametrize(("offence", "code"), OFFENCES, ids=lambda each: repr(each)[:40])
async def test_who_goes_on_is_sent_away_with_a_code_of_the_table(
    peer: Peer, offence: bytes, code: CloseCode
) -> None:
    peer.write(offence * 20)  # all at once: it is told even so
    assert await peer.end() == code
    errors = [message for message in peer.messages if message["type"] == "error"]
    assert len(errors) == 10


async def test_one_request_with_many_flaws_costs_no_more_than_that(peer: Peer) -> None:
    peer.ask(action="subscribe", channels=[f"nowhere-{i}" for i in range(1000)])
    assert await peer.end() == CloseCode.TOO_MANY_OFFENCES
    assert sum(message["type"] == "error" for message in peer.messages) <= 10


async def test_who_sends_too_much_is_told_and_then_sent_away(tmp_path: Path) -> None:
    async with (
        AnalyticsHub(settings(tmp_path, inbound_rate=5)) as hub,
        await Peer.open(hub.port, token()) as peer,
    ):
        for number in range(100):
            peer.ask(action="ping", id=number)
        assert await peer.end() == CloseCode.FLOODING
        codes = {m["data"]["code"] for m in peer.messages if m["type"] == "error"}
        assert codes == {ErrorCode.RATE_LIMITED}


async def test_no_text_whatever_breaks_the_connection_of_another(hub: AnalyticsHub) -> None:
    codes = {code.value for code in ErrorCode}

    async with await Peer.open(hub.port, token()) as witness:
        await witness.subscribed("system")
        for text in fuzz():
            async with await Peer.open(hub.port, token()) as peer:
                peer.write(frame(TEXT, text))
                await peer.alive()
                answers = [m for m in peer.messages if m["type"] == "error"]
                assert all(m["data"]["code"] in codes for m in answers)
        hub.publish("system", "thing", {"still": "here"})
        await witness.kind("thing", still="here")


def fuzz() -> list[bytes]:
    """Requests with fields of every type, the same in every run."""
    found: list[bytes] = []
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    value = st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=8,
    )
    fields = st.sampled_from(["channels", "resume", "id", "token", "rate", "action"])

    @hypothesis_settings(max_examples=60, derandomize=True, database=None)
    @given(
        st.sampled_from(["subscribe", "unsubscribe", "refresh", "rate", "ping"]),
        st.dictionaries(fields, value, max_size=4),
    )
    def collect(action: str, more: dict[str, Any]) -> None:
        found.append(msgspec.json.encode({"action": action, **more}))

    collect()
    return found


# what is published

ONE = {"channel": "system", "type": "thing", "data": {"n": 1}}
WITH = b'{"channel":"system","type":"thing","data":%s}'
PUBLISHED = [
    (WITH % b"NaN", 400, {"bad_json", "bad_data"}),
    (WITH % b"[Infinity]", 400, {"bad_json", "bad_data"}),
    (WITH % b'{"x":-Infinity}', 400, {"bad_json", "bad_data"}),
    (WITH % (b'"' + b"x" * (1 << 20) + b'"'), 400, {"too_large"}),
    (WITH % (b"[" * 100_000), 400, {"bad_json"}),
    (WITH % (b"[" * 5000 + b"]" * 5000), 400, {"bad_json", "bad_data", "bad_message"}),
    (WITH % b'"\xff"', 400, {"bad_json", "bad_data"}),
    (WITH % b'"\\ud800"', 400, {"bad_json", "bad_data"}),
    (b"[]", 400, {"bad_message"}),
    (b'{"channel":7,"type":"x","data":1}', 400, {"bad_message"}),
    (b'{"channel":"system","data":1}', 400, {"bad_message"}),
    (b'{"channel":"system","type":"","data":1}', 400, {"bad_message", "bad_data"}),
    (b'{"channel":"nowhere","type":"x","data":1}', 400, {"unknown_channel"}),
    (b"x" * ((4 << 20) + 1), 413, {"too_large"}),
]


@pytest.mark.parametrize(("body", "status", "codes"), PUBLISHED, ids=lambda each: repr(each)[:50])
async def test_what_cannot_be_published_is_refused_whole_and_reaches_nobody(
    hub: AnalyticsHub, peer: Peer, body: bytes, status: int, codes: set[str]
) -> None:
    await peer.subscribed("system")
    headers = {
        "Authorization": f"Bearer {token('bot', 'service')}",
        "Content-Type": "application/json",
    }
    url = f"http://127.0.0.1:{hub.port}/api/publish"
    async with ClientSession(headers=headers) as http:
        async with http.post(url, data=io.BytesIO(body)) as answer:
            told = await answer.json()
            assert answer.status in (status, 200), told
            code = told["error"] if answer.status != 200 else told["refused"][0]["code"]
            assert code in codes, told
            assert told.get("accepted", 0) == 0
        async with http.post(url, json=ONE) as answer:
            assert (await answer.json())["accepted"] == 1
    await peer.kind("thing")
    assert [m["data"] for m in peer.messages if m["type"] == "thing"] == [{"n": 1}]


@pytest.mark.parametrize(
    "data", [float("nan"), [float("inf")], {"x": {1, object}}, "x" * (1 << 20)], ids=repr
)
async def test_the_program_that_publishes_is_told_what_is_wrong(
    hub: AnalyticsHub, peer: Peer, data: Any
) -> None:
    await peer.subscribed("system")
    with pytest.raises(ValueError):
        hub.publish("system", "thing", data)
    hub.publish("system", "thing", 1)
    assert (await peer.kind("thing"))["data"] == 1
