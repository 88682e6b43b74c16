"""The hub on a real port: who gets in, what they get, how they are told no, and how it ends."""

import asyncio
import contextlib
import json
import logging
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from tests.hub.hub_server import PASSWORD, RunningHub, Wire, eventually, running_hub, token

import keepline
from keepline.errors import Closed as HubClosed
from keepline.errors import ConfigError, Refused
from keepline.hub.channels import Policy
from keepline.hub.closecodes import CloseCode
from keepline.hub.server import AnalyticsHub
from keepline.hub.settings import CHANNELS, ChannelSettings, HubConfig

ADMIN_ONLY = "exposure-updates"


def data(message: dict[str, Any]) -> Any:
    return message["data"]


# signing in


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "x/y"])
async def test_a_sign_in_is_json_whatever_the_content_type_says(tmp_path: Path, kind: str) -> None:
    async with running_hub(tmp_path) as running:
        body = json.dumps({"username": "tom", "password": PASSWORD})
        status, told, headers = await running.ask(
            "POST", "/login", user=None, data=body, headers={"Content-Type": kind}
        )
        assert (status, told["role"]) == (200, "trader")
        assert 43_198 <= told["expires_in"] <= 43_200
        assert headers["Cache-Control"] == "no-store"
        wire = await Wire.to(running.hub, bearer=told["token"])
        assert data(await wire.until("welcome"))["user"] == "tom"
        await wire.close()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"username":"tom","password":"wrong"}', 401, "bad_credentials"),
        (b'{"username":["tom"],"password":null}', 401, "bad_credentials"),
        (b"{}", 401, "bad_credentials"),
        (b"username=tom", 400, "bad_request"),
        (b"[" * 3000, 400, "bad_request"),
        (b"\xff", 400, "bad_request"),
        (b" " * 5000, 413, "too_large"),
    ],
)
async def test_a_bad_sign_in_is_answered_in_words(
    tmp_path: Path, body: bytes, status: int, code: str
) -> None:
    async with running_hub(tmp_path) as running:
        got, told, _ = await running.ask("POST", "/login", user=None, data=body)
        assert (got, told["error"]) == (status, code)


async def test_a_login_flood_is_sent_to_wait(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        body = json.dumps({"username": "tom", "password": "wrong"})
        asked = [running.ask("POST", "/login", user=None, data=body) for _ in range(30)]
        answers = await asyncio.gather(*asked)
        assert {status for status, _, _ in answers} == {401, 429}
        assert all(int(h["Retry-After"]) >= 1 for status, _, h in answers if status == 429)


# getting in


@pytest.mark.parametrize("way", ["authorization", "subprotocol", "query"])
async def test_a_token_may_come_in_three_ways(tmp_path: Path, way: str) -> None:
    async with running_hub(tmp_path) as running:
        mine = token("tom")
        if way == "authorization":
            wire = await Wire.to(running.hub, bearer=mine)
        elif way == "subprotocol":
            fields = {"Sec-WebSocket-Protocol": f"keepline.v1, bearer.{mine}"}
            wire = await Wire.to(running.hub, headers=fields)
            assert wire.headers["sec-websocket-protocol"] == "keepline.v1"
        else:
            wire = await Wire.to(running.hub, path=f"/ws/analytics?token={mine}")
        assert wire.status == 101
        assert data(await wire.until("welcome"))["role"] == "trader"
        await wire.close()


BAD = {
    "none": (None, 3501, 401),
    "garbage": ("aa.bb.cc", 3500, 401),
    "expired": ({"exp": 1_700_000_000, "iat": 1_600_000_000}, 3002, 401),
    "audience": ({"aud": "others"}, 3500, 401),
    "unknown user": ({"sub": "eve"}, 3502, 401),
}


def bad_token(given: Any) -> str | None:
    return token(**{"user": given.pop("sub", "ann"), **given}) if isinstance(given, dict) else given


@pytest.mark.parametrize("name", BAD)
async def test_a_machine_with_a_bad_token_gets_a_status(tmp_path: Path, name: str) -> None:
    given, _, status = BAD[name]
    async with running_hub(tmp_path) as running:
        bearer = bad_token(dict(given) if isinstance(given, dict) else given)
        wire = await Wire.to(running.hub, bearer=bearer)
        assert wire.status == status
        assert wire.headers["www-authenticate"].startswith("Bearer")
        await wire.close()


@pytest.mark.parametrize("name", BAD)
async def test_a_browser_with_a_bad_token_is_closed_with_a_code(tmp_path: Path, name: str) -> None:
    given, code, _ = BAD[name]
    async with running_hub(tmp_path) as running:
        bad = bad_token(dict(given) if isinstance(given, dict) else given)
        fields = {"Origin": running.hub.url}
        if bad:
            fields["Sec-WebSocket-Protocol"] = f"keepline.v1, bearer.{bad}"
        wire = await Wire.to(running.hub, headers=fields)
        assert wire.status == 101
        assert (await wire.closed()).code == code
        await wire.frame(8, code.to_bytes(2, "big"))
        assert await wire.reader.read() == b""
        await wire.close()


async def test_a_page_of_a_foreign_origin_gets_nowhere(tmp_path: Path) -> None:
    async with running_hub(tmp_path, allowed_origins=("https://desk.example",)) as running:
        for origin in ("https://evil.example", "https://desk.example.evil.example", "null"):
            wire = await Wire.to(running.hub, bearer=token(), headers={"Origin": origin})
            assert (await wire.closed()).code == CloseCode.FORBIDDEN
            await wire.close()
            status, told, headers = await running.ask(
                "GET", "/api/channels", headers={"Origin": origin}
            )
            assert (status, told["error"]) == (403, "bad_origin")
            assert "Access-Control-Allow-Origin" not in headers
        wire = await Wire.to(
            running.hub, bearer=token(), headers={"Origin": "https://desk.example"}
        )
        await wire.until("welcome")
        await wire.close()


async def test_an_allowed_page_may_read_answers_and_ask_before(tmp_path: Path) -> None:
    async with running_hub(tmp_path, allowed_origins=("https://desk.example",)) as running:
        origin = {"Origin": "https://desk.example"}
        status, _, headers = await running.ask("GET", "/api/channels", headers=origin)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://desk.example")
        status, _, headers = await running.ask("OPTIONS", "/api/publish", user=None, headers=origin)
        assert status == 204
        assert "Idempotency-Key" in headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize("path", ["/", "/login", "/metrics", "/ws/analytics"])
async def test_a_strangers_host_name_reaches_nothing(tmp_path: Path, path: str) -> None:
    async with running_hub(tmp_path) as running:
        status, told, _ = await running.ask("GET", path, headers={"Host": "evil.example"})
        assert (status, told["error"]) == (421, "bad_host")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Upgrade": ""}, 426),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Connection": "close"}, 400),
        ({"Sec-WebSocket-Protocol": "other"}, 400),
    ],
)
async def test_what_is_no_handshake_is_told_so(
    tmp_path: Path, fields: dict[str, str], status: int
) -> None:
    async with running_hub(tmp_path) as running:
        wire = await Wire.to(running.hub, bearer=token(), headers=fields)
        assert wire.status == status
        await wire.close()


async def test_a_token_is_in_no_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_hub(tmp_path) as running:
        mine = token("tom")
        for headers, path in (
            ({"Sec-WebSocket-Protocol": f"bearer.{mine}"}, "/ws/analytics"),
            ({"Sec-WebSocket-Protocol": f"keepline.v1, bearer.{mine}x"}, "/ws/analytics"),
            ({}, f"/ws/analytics?token={mine}x"),
            ({}, f"/nowhere?token={mine}"),
            ({"Upgrade": ""}, f"/ws/analytics?token={mine}"),
            ({"Authorization": f"Bearer {mine}", "Bad Name": mine}, f"/x?token={mine}"),
        ):
            await (await Wire.to(running.hub, headers=headers, path=path)).close()
    assert caplog.records
    assert mine[-20:] not in caplog.text
    assert all(mine[-20:] not in str(vars(record)) for record in caplog.records)


async def test_connections_of_one_user_and_of_one_address_have_a_limit(tmp_path: Path) -> None:
    async with running_hub(tmp_path, max_connections_per_user=1) as running:
        first = await running.open("tom")
        second = await Wire.to(running.hub, bearer=token("tom"))
        assert (second.status, int(second.headers["retry-after"]) > 0) == (429, True)
        third = await Wire.to(running.hub, bearer=token("tom"), headers={"Origin": running.hub.url})
        assert (await third.closed()).code == CloseCode.TOO_MANY_CONNECTIONS
        other = await running.open("ann")
        await first.close()
        await eventually(lambda: len(running.hub.attendance) == 1)
        again = await running.open("tom")
        for wire in (second, third, other, again):
            await wire.close()
    async with running_hub(tmp_path, max_connections_per_address=1) as running:
        first = await running.open("tom")
        second = await Wire.to(running.hub, bearer=token("ann"))
        assert second.status == 429
        await first.close()
        await second.close()


# live


async def test_a_subscriber_gets_a_snapshot_and_then_each_message(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        running.hub.publish("lp-performance", "lp-metrics", {"lpName": "A"}, key="A")
        wire = await running.open("vic")
        await wire.send({"action": "subscribe", "channels": ["lp-performance", ADMIN_ONLY, "no"]})
        subscribed = await wire.until("subscribed")
        assert data(subscribed)["policy"] == "conflate"
        assert data(await wire.until("error"))["code"] == "forbidden"
        assert data(await wire.until("error"))["code"] == "unknown_channel"
        snapshot = await wire.until("snapshot")
        assert [item["key"] for item in data(snapshot)["items"]] == ["A"]
        running.hub.publish("lp-performance", "lp-metrics", {"lpName": "B"}, key="B")
        message = await wire.until("lp-metrics")
        assert (message["offset"], message["key"], data(message)) == (2, "B", {"lpName": "B"})
        await wire.close()


async def test_the_canarys_channel_is_nobodys(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open("ann")
        await wire.send({"action": "subscribe", "channels": ["keepline-canary"]})
        assert data(await wire.until("error"))["code"] == "forbidden"
        with pytest.raises(ConfigError, match="no channel"):
            running.hub.publish("keepline-canary", "x", 1)
        await wire.close()


async def test_any_thread_may_publish_and_its_order_is_kept(tmp_path: Path) -> None:
    channels = (ChannelSettings(name="line", policy=Policy.DROP_OLDEST, history_count=5000),)
    async with running_hub(tmp_path, channels=channels, client_buffer=5000) as running:
        wire = await running.open(subscribe=["line"])

        def work(own: int) -> None:
            for number in range(200):
                running.hub.publish("line", "step", [own, number])

        threads = [threading.Thread(target=work, args=(own,)) for own in range(4)]
        for thread in threads:
            thread.start()
        got: list[list[int]] = []
        while len(got) < 800:
            got.append(data(await wire.until("step")))
        for own in range(4):
            assert [number for thread, number in got if thread == own] == list(range(200))
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        await wire.close()


async def test_publishing_needs_a_running_hub_and_good_words(tmp_path: Path) -> None:
    hub = AnalyticsHub({"memory_only": True, "directory": str(tmp_path)})
    with pytest.raises(HubClosed):
        hub.publish("alerts", "alert", {})
    with pytest.raises(HubClosed):
        await hub.publish_durable("alerts", "alert", {})
    for arguments in (
        ("nothing", "x", 1, {}),
        ("alerts", "", 1, {}),
        ("alerts", "x" * 129, 1, {}),
        ("alerts", "x", float("nan"), {}),
        ("alerts", "x", object(), {}),
        ("alerts", "x", "y" * 300_000, {}),
        ("alerts", "x", 1, {"key": ""}),
        ("alerts", "x", 1, {"id": "i" * 129}),
    ):
        *plain, more = arguments
        with pytest.raises(ConfigError):
            hub.publish(*plain, **more)
    assert keepline.AnalyticsHub is AnalyticsHub


async def test_what_is_never_dropped_outlives_the_hub_and_is_resumed_exactly(
    tmp_path: Path,
) -> None:
    async with running_hub(tmp_path) as running:
        for number in range(5):
            placed = await running.hub.publish_durable("alerts", "alert", {"n": number})
        assert (placed.offset, placed.new) == (5, True)
        again = await running.hub.publish_durable("alerts", "alert", {"n": 9}, id="one")
        twice = await running.hub.publish_durable("alerts", "alert", {"n": 9}, id="one")
        assert (again.offset, again.new, twice.offset, twice.new) == (6, True, 6, False)
        running.hub.publish("alerts", "alert", {"n": 7})
    async with running_hub(tmp_path) as running:
        wire = await running.open("vic")
        position = {"epoch": placed.epoch, "offset": 2}
        resume = {"action": "subscribe", "channels": ["alerts"], "resume": {"alerts": position}}
        await wire.send(resume)
        assert data(await wire.until("subscribed"))["recovered"] is True
        got = [(await wire.until("alert")) for _ in range(5)]
        assert [message["offset"] for message in got] == [3, 4, 5, 6, 7]
        assert [data(message)["n"] for message in got] == [2, 3, 4, 9, 7]
        await wire.close()


async def test_a_resume_from_the_future_is_a_gap_and_a_snapshot(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        epoch = running.hub.registrar.channels["system"].epoch
        for position in ({"epoch": "other", "offset": 1}, {"epoch": epoch, "offset": 99}):
            await wire.send(
                {"action": "subscribe", "channels": ["system"], "resume": {"system": position}}
            )
            assert data(await wire.until("subscribed"))["recovered"] is False
            await wire.until("gap")
            await wire.until("snapshot")
        await wire.close()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("{", "bad_json"),
        ("[1]", "not_an_object"),
        ({"action": "dance"}, "unknown_action"),
        ({"action": "subscribe", "channels": [5]}, "bad_channel"),
        ({"action": "subscribe", "channels": ["x"] * 10_000}, "too_many_channels"),
        ({"action": "subscribe", "channels": ["alerts"], "resume": {"alerts": 3}}, "bad_resume"),
        ({"action": "ping", "pad": "x" * 70_000}, "too_large"),
        ({"action": "refresh", "token": "aa.bb.cc"}, "bad_token"),
        (b"\x00", "binary"),
    ],
)
async def test_bad_input_is_answered_and_the_connection_stays(
    tmp_path: Path, sent: Any, code: str
) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        if isinstance(sent, bytes):
            await wire.frame(2, sent)
        else:
            await wire.send(sent)
        assert data(await wire.until("error"))["code"] == code
        await wire.send({"action": "ping", "id": 7})
        assert data(await wire.until("pong")) == {"id": 7}
        await wire.close()


async def test_who_repeats_offences_is_sent_away(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        for _ in range(12):
            await wire.send("nonsense")
        assert (await wire.closed()).code == CloseCode.TOO_MANY_OFFENCES
        await wire.close()


async def test_who_floods_is_sent_away_to_come_back_slower(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_hub(tmp_path, inbound_rate=20) as running:
        for opcode, payload in ((1, b'{"action":"ping"}'), (9, b"")):
            wire = await running.open()
            with contextlib.suppress(ConnectionError):
                for _ in range(60):
                    await wire.frame(opcode, payload)
            assert (await wire.closed()).code == CloseCode.FLOODING
            await wire.close()
    assert "rate limit exceeded" in caplog.text


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ((1, b"x" * 300_000, 0x80), 1009),
        ((1, b"\xff\xff", 0x80), 1007),
        ((3, b"", 0x80), 1002),
        ((1, b"x", 0xC0), 1002),
        ((9, b"x" * 126, 0x80), 1002),
        ((0, b"x", 0x80), 1002),
    ],
)
async def test_a_broken_frame_ends_the_connection_with_the_rfcs_code(
    tmp_path: Path, frame: tuple[int, bytes, int], code: int
) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        opcode, payload, first = frame
        with contextlib.suppress(ConnectionError):
            await wire.frame(opcode, payload, first=first)
        assert (await wire.closed()).code == code
        await wire.close()


@pytest.mark.parametrize(("code", "answer"), [(1000, 1000), (4001, 4001), (1006, 1002), (0, 1000)])
async def test_a_close_is_answered(tmp_path: Path, code: int, answer: int) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        await wire.frame(8, code.to_bytes(2, "big") if code else b"")
        assert (await wire.closed()).code == answer
        assert await wire.reader.read() == b""
        await wire.close()


# compression


async def test_deflate_is_agreed_on_without_context_and_made_once(tmp_path: Path) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with running_hub(tmp_path) as running:
        wires = [await running.open(headers=offer, subscribe=["system"]) for _ in range(2)]
        agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        assert [wire.headers["sec-websocket-extensions"] for wire in wires] == [agreed] * 2
        for number in range(2):
            running.hub.publish("system", "health", {"n": number, "text": "much the same " * 40})
            for wire in wires:
                assert data(await wire.until("health"))["n"] == number
        first, second = (wire.frames[-1] for wire in wires)
        assert first == second
        assert len(first) < 200
        squeeze = zlib.compressobj(wbits=-15)
        text = squeeze.compress(b'{"action":"ping","id":3}') + squeeze.flush(zlib.Z_SYNC_FLUSH)
        await wires[0].frame(1, text[:-4], first=0xC0)
        assert data(await wires[0].until("pong")) == {"id": 3}
        for wire in wires:
            await wire.close()


@pytest.mark.parametrize(
    "offer",
    ["permessage-deflate; server_max_window_bits=10", "x-other", 'permessage-deflate; foo="1"'],
)
async def test_an_offer_that_cannot_be_met_gets_plain_frames(tmp_path: Path, offer: str) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open(headers={"Sec-WebSocket-Extensions": offer}, subscribe=["system"])
        assert "sec-websocket-extensions" not in wire.headers
        running.hub.publish("system", "health", "x" * 2000)
        await wire.until("health")
        await wire.frame(1, b"x", first=0xC0)
        assert (await wire.closed()).code == 1002
        await wire.close()


async def test_a_deflate_bomb_is_not_inflated(tmp_path: Path) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    async with running_hub(tmp_path) as running:
        wire = await running.open(headers=offer)
        squeeze = zlib.compressobj(wbits=-15)
        bomb = squeeze.compress(b"0" * 50_000_000) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        assert len(bomb) < 60_000
        await wire.frame(1, bomb[:-4], first=0xC0)
        assert (await wire.closed()).code == 1009
        await wire.close()


# time


async def test_pings_go_both_ways_and_silence_ends_it(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        await wire.frame(9, b"are you there")
        assert await wire.pinged(10) == b"are you there"
        running.hub.attendance.look()
        for _ in range(2):
            running.clock.ahead += 25
            connection = running.hub.attendance.connections[0]
            connection.look(running.clock.boottime(), running.clock.wall().timestamp())
            assert await wire.pinged() == b""
        running.clock.ahead += 11
        connection.look(running.clock.boottime(), running.clock.wall().timestamp())
        closed = await wire.closed()
        assert closed.code == CloseCode.NO_PONG
        await wire.close()


async def test_a_machine_that_slept_blames_no_client(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        running.hub.attendance.look()
        running.clock.ahead += 3000
        running.hub.attendance.look()
        await wire.send({"action": "ping"})
        await wire.until("pong")
        await wire.close()


async def test_a_token_that_ends_is_announced_and_a_newer_one_carries_on(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        now = time.time()
        wire = await Wire.to(running.hub, bearer=token("tom", iat=now, exp=now + 300))
        await wire.until("welcome")
        running.clock.ahead += 250
        running.hub.attendance.look()
        told = data(await wire.until("expiring"))
        assert 0 < told["secondsLeft"] <= 60
        await wire.send({"action": "refresh", "token": token("ann"), "id": 1})
        assert data(await wire.until("error")) | {"message": ""} == {
            "code": "other_user",
            "message": "",
            "id": 1,
        }
        newer = token("tom", iat=now, exp=now + 1000)
        await wire.send({"action": "refresh", "token": newer, "id": "r"})
        told = data(await wire.until("refreshed"))
        assert (told["id"], told["role"], round(told["expiresAt"] - now)) == ("r", "trader", 1000)
        running.clock.ahead += 300
        running.hub.attendance.look()
        await wire.send({"action": "ping"})
        await wire.until("pong")
        running.clock.ahead += 600
        running.hub.attendance.look()
        closed = await wire.closed()
        assert (closed.code, "expired" in closed.reason) == (CloseCode.TOKEN_EXPIRED, True)
        await wire.close()


async def test_a_revoked_users_connections_end(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        tom, ann = await running.open("tom"), await running.open("ann")
        await running.hub.revoke("tom")
        assert (await tom.closed()).code == CloseCode.REVOKED
        await ann.send({"action": "ping"})
        await ann.until("pong")
        await tom.close()
        await ann.close()


# those who do not read


async def test_one_that_never_reads_costs_little_hurts_nobody_and_hears_of_its_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    channels = (ChannelSettings(name="line", policy=Policy.DROP_OLDEST, history_count=500),)
    async with running_hub(tmp_path, channels=channels) as running:
        stuck = await running.open(subscribe=["line"])
        good = await running.open(subscribe=["line"])
        stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]
        count = 1500
        for number in range(count):
            running.hub.publish("line", "step", {"n": number, "pad": "x" * 2000})
            if number % 40 == 39:
                await good.until(lambda each, last=number: data(each).get("n") == last)
        status, told, _ = await running.ask("GET", "/api/clients")
        worst = max(told["clients"], key=lambda each: each["slowSeconds"])
        assert status == 200
        assert worst["queueBytes"] < 64 * 1024
        assert worst["waiting"] > 256
        stuck.writer.transport.resume_reading()  # type: ignore[attr-defined]
        seen, lost = [], 0
        while not seen or seen[-1] < count - 1:
            message = await stuck.until(lambda each: each["type"] in ("step", "gap"))
            if message["type"] == "gap":
                lost += data(message)["count"]
            else:
                seen.append(data(message)["n"])
        assert lost > 0
        assert len(seen) + lost == count
        assert "buffer full" in caplog.text
        await stuck.close()
        await good.close()


async def test_one_that_stays_slow_is_sent_away_to_come_back(tmp_path: Path) -> None:
    channels = (ChannelSettings(name="line", policy=Policy.DROP_OLDEST),)
    async with running_hub(tmp_path, channels=channels, slow_after_seconds=30) as running:
        stuck = await running.open(subscribe=["line"])
        stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client = next(c for c in running.hub.broadcaster.clients.values() if c.id != "canary")
        while client.blocked is None:
            running.hub.publish("line", "step", "x" * 20_000)
            await asyncio.sleep(0)
        running.clock.ahead += 31
        running.hub.publish("line", "step", 1)
        while not client.gone:  # noqa: ASYNC110 - else it might be drained before the hub looks
            await asyncio.sleep(0)
        stuck.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await stuck.closed()).code == CloseCode.SLOW
        await stuck.close()


# over HTTP


async def publish(running: RunningHub, body: str, user: str = "svc", **headers: str) -> Any:
    return (await running.ask("POST", "/api/publish", user=user, data=body, headers=headers))[:2]


def line(channel: str, number: Any = 1, **more: Any) -> str:
    return json.dumps({"channel": channel, "type": "t", "data": number, **more})


async def test_lines_are_published_each_for_itself(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open(subscribe=["system", "alerts"])
        body = "\n".join(
            [
                line("system", 1, key="a"),
                line("alerts", 2, id="one"),
                line("nowhere"),
                "{",
                line("alerts", 2, id="one"),
                '{"channel":"system","type":"t","data":NaN}',
                line("system", "x" * 300_000),
            ]
        )
        status, told = await publish(running, body)
        assert (status, told["accepted"], told["duplicates"]) == (200, 3, 1)
        codes = {each["line"]: each["code"] for each in told["refused"]}
        assert codes == {3: "unknown_channel", 4: "bad_json", 6: "bad_json", 7: "too_large"}
        got = [await wire.until("t") for _ in range(2)]
        assert sorted(data(message) for message in got) == [1, 2]
        await wire.close()


async def test_a_role_without_the_right_publishes_nothing(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        status, told = await publish(running, line("system"), user="tom")
        assert (status, told["refused"][0]["code"]) == (200, "forbidden")
        assert running.hub.registrar.channels["system"].offset == 0


async def test_an_idempotency_key_makes_a_repeat_harmless(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        key = {"Idempotency-Key": "k1"}
        first = await publish(running, line("system", 1), **key)
        assert await publish(running, line("system", 1), **key) == first
        assert running.hub.registrar.channels["system"].offset == 1
        status, told = await publish(running, line("system", 2), **key)
        assert (status, told["error"]) == (422, "key_reused")
        status, _ = await publish(running, line("system", 1), "ann", **key)
        assert running.hub.registrar.channels["system"].offset == 2
        status, _ = await publish(running, line("system"), **{"Idempotency-Key": "k" * 129})
        assert status == 400


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("{", {"Content-Type": "application/json"}, 400),
        ("\n".join(["{}"] * 1001), {}, 413),
        ("x" * 2000, {}, 413),
        ("{}", {"Content-Encoding": "gzip"}, 415),
    ],
)
async def test_a_body_that_cannot_be_taken_is_refused_whole(
    tmp_path: Path, body: str, headers: dict[str, str], status: int
) -> None:
    async with running_hub(tmp_path, max_publish_bytes=1900 if "x" in body else 4 << 20) as running:
        assert (await publish(running, body, **headers))[0] == status


async def test_one_object_may_be_broken_into_lines(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        body = '{\n"channel": "system",\n"type": "t",\n"data": {}\n}'
        status, told = await publish(running, body, **{"Content-Type": "application/json"})
        assert (status, told["accepted"]) == (200, 1)
        two = f"{line('system')}\n{line('system')}"
        status, told = await publish(running, two, **{"Content-Type": "application/json"})
        assert (status, told["accepted"]) == (200, 2)


async def test_history_goes_back_page_by_page(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        for number in range(7):
            await running.hub.publish_durable("alerts", "alert", number)
            running.hub.publish("routing-metrics", "routing-decision", number)
        for path in ("/api/history/alerts", "/api/alerts", "/api/history/routing-metrics"):
            _, told, _ = await running.ask("GET", f"{path}?limit=3")
            assert [data(each) for each in told["messages"]] == [4, 5, 6]
            _, told, _ = await running.ask("GET", f"{path}?limit=3&before=5")
            assert [data(each) for each in told["messages"]] == [1, 2, 3]
            assert told["offset"] == 7


@pytest.mark.parametrize(
    ("path", "user", "status"),
    [
        ("/api/history/alerts?limit=0", "ann", 400),
        ("/api/history/alerts?before=x", "ann", 400),
        ("/api/history/nothing", "ann", 404),
        ("/api/history/..%2Falerts", "ann", 404),
        ("/api/history/exposure-updates", "vic", 403),
        ("/api/history/alerts", None, 401),
        ("/api/clients", "tom", 403),
        ("/api/clients", None, 401),
        ("/api/channels", None, 401),
        ("/api/nothing", "ann", 404),
        ("/api/publish", "svc", 405),
    ],
)
async def test_a_no_over_http_is_a_status_and_a_code(
    tmp_path: Path, path: str, user: str | None, status: int
) -> None:
    async with running_hub(tmp_path) as running:
        got, told, _ = await running.ask("GET", path, user=user)
        assert got == status
        assert told["error"]
        assert told["message"]


async def test_a_role_sees_the_channels_that_it_may_use(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        _, told, _ = await running.ask("GET", "/api/channels", user="vic")
        assert {each["channel"]: each["may"] for each in told["channels"]} == {
            "alerts": ["subscribe"],
            "lp-performance": ["subscribe"],
        }
        _, told, _ = await running.ask("GET", "/api/channels", user="ann")
        assert len(told["channels"]) == len(CHANNELS)


class Keeper:
    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    async def acknowledge(self, alert_id: str, *, user: str, note: str) -> None:
        if alert_id == "taken":
            raise Refused("somebody has it")
        self.asked.append((alert_id, user, note))

    async def resolve(self, alert_id: str, *, user: str, note: str) -> None:
        raise LookupError(alert_id)

    async def snooze(self, alert_id: str, *, user: str, note: str, seconds: float) -> Any:
        return {"until": seconds}


async def test_alert_actions_go_to_the_handler(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        ack = "/api/alerts/a1/ack"
        assert (await running.ask("POST", ack, user="tom"))[0] == 501
        keeper = Keeper()
        running.hub.on_alert(keeper)
        assert (await running.ask("POST", ack, user="vic"))[0] == 403
        assert (await running.ask("POST", ack, user="tom", data='{"note":"mine"}'))[0] == 200
        assert keeper.asked == [("a1", "tom", "mine")]
        assert (await running.ask("POST", "/api/alerts/taken/ack", user="tom"))[0] == 409
        assert (await running.ask("POST", "/api/alerts/a1/resolve", user="tom"))[0] == 404
        assert (await running.ask("POST", "/api/alerts/a1/dance", user="tom"))[0] == 404
        _, told, _ = await running.ask(
            "POST", "/api/alerts/a1/snooze", user="tom", data='{"seconds": 60}'
        )
        assert told["until"] == 60


async def test_who_is_connected_is_for_admins(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open("tom", subscribe=["alerts"])
        await wire.send({"action": "rate", "rate": 10})
        await wire.send({"action": "ping"})
        await wire.until("pong")
        _, told, _ = await running.ask("GET", "/api/clients")
        (client,) = told["clients"]
        assert (client["user"], client["channels"]) == ("tom", ["alerts"])
        assert client["framesPerSecond"] <= 10
        assert told["total"] == 1
        await wire.close()


async def test_a_journal_that_is_away_is_said_and_the_key_stays_free(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        journal = running.hub.registrar.journal
        assert journal is not None
        await journal.close()
        key = {"Idempotency-Key": "k"}
        for _ in range(2):
            status, told = await publish(running, line("alerts"), **key)
            assert (status, told["error"]) == (503, "unavailable")
        status, told, headers = await running.ask("GET", "/api/alerts")
        assert (status, told["error"]) == (503, "unavailable")
        assert int(headers["Retry-After"]) >= 1
        await journal.start()
        status, told = await publish(running, line("alerts"), **key)
        assert (status, told["accepted"]) == (200, 1)


async def test_a_failure_inside_is_not_explained_to_strangers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_hub(tmp_path) as running:

        async def fails(*_: object, **__: object) -> Any:
            raise RuntimeError("the secret plan")

        running.hub.registrar.history = fails  # type: ignore[method-assign]
        status, told, _ = await running.ask("GET", "/api/alerts")
        assert (status, told["error"]) == (500, "internal")
        assert "secret" not in str(told)
        assert "Request failed" in caplog.text


# health, numbers, page


async def test_health_readiness_and_numbers(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        await running.hub.ready()
        assert (await running.ask("GET", "/healthz", user=None))[:2] == (200, {"alive": True})
        status, told, _ = await running.ask("GET", "/readyz", user=None)
        assert (status, told) == (200, {"ready": True, "reasons": []})
        wire = await running.open(subscribe=["system"])
        running.hub.publish("system", "health", 1)
        await wire.until("health")
        status, text, _ = await running.ask("GET", "/metrics", user=None)
        for name in (
            'hub_subscriptions{channel="system"} 1.0',
            "hub_ready 1.0",
            "hub_delivery_seconds_bucket",
            "hub_batch_messages_bucket",
            "hub_queue_bytes_bucket",
            "hub_canary_seconds_bucket",
            'hub_connections_total{outcome="accepted"}',
        ):
            assert name in text.decode()
        await wire.close()
    assert running.hub.reasons == ["the hub does not run"]
    with pytest.raises(HubClosed):
        await running.hub.ready()


async def test_a_hub_that_does_not_deliver_is_not_ready(tmp_path: Path) -> None:
    async with running_hub(tmp_path, canary_seconds=0.1) as running:
        await running.hub.ready()
        running.hub.broadcaster.deliver = running.hub.registrar.channels[  # type: ignore[method-assign]
            "keepline-canary"
        ].deliver
        while not running.hub.reasons:
            running.clock.ahead += 10
            await asyncio.sleep(0.01)
        status, told, _ = await running.ask("GET", "/readyz", user=None)
        assert status == 503
        assert "late" in told["reasons"][0]


async def test_a_hub_whose_inside_fails_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_hub(tmp_path) as running:

        def fails() -> None:
            raise RuntimeError("broken")

        running.hub.attendance.look = fails  # type: ignore[method-assign]
        await running.hub.ready()
        await eventually(lambda: running.hub.reasons)
        assert "failed" in running.hub.reasons[0]
        await eventually(lambda: "Hub part failed" in caplog.text)


async def test_the_page_is_sent_with_a_strict_policy(tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / "lib").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html><title>desk</title>")
    (page / "lib" / "app.js").write_text("export {}")
    (page / ".secret.js").write_text("no")
    (page / "notes.py").write_text("no")
    (tmp_path / "outside.js").write_text("no")
    async with running_hub(tmp_path, page=page) as running:
        status, body, headers = await running.ask("GET", "/", user=None)
        assert (status, b"desk" in body) == (200, True)
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        tag = headers["ETag"]
        status, _, _ = await running.ask("GET", "/", user=None, headers={"If-None-Match": tag})
        assert status == 304
        status, _, headers = await running.ask("GET", "/lib/app.js", user=None)
        assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
        for path in ("/.secret.js", "/notes.py", "/lib/../../outside.js", "/outside.js", "/lib"):
            assert (await running.ask("GET", path, user=None))[0] == 404
        _, _, headers = await running.ask("GET", "/healthz", user=None)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["Server"] == "keepline"


# the listener


async def raw(running: RunningHub, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.hub.port)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer
    writer.close()
    return b""


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-", b"POST /login HTTP/1.1\r\n"]
)
async def test_who_connects_and_dawdles_is_cut_off(tmp_path: Path, sent: bytes) -> None:
    async with running_hub(tmp_path, handshake_timeout_seconds=0.1) as running:
        assert await raw(running, sent) == b""


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async with running_hub(tmp_path, handshake_timeout_seconds=0.1) as running:
        head = f"POST /login HTTP/1.1\r\nHost: 127.0.0.1:{running.hub.port}\r\nContent-Length: 9\r\n\r\n{{"
        assert (await raw(running, head.encode())).startswith(b"HTTP/1.1 408")


async def test_a_flood_of_headers_is_refused(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        start = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{running.hub.port}\r\n"
        many = "".join(f"X-{number}: y\r\n" for number in range(500))
        long = "X-Long: " + "y" * 20_000 + "\r\n"
        for flood in (many, long):
            assert b" 400 " in (await raw(running, (start + flood + "\r\n").encode()))[:13]
        assert b" 400 " in (await raw(running, b"GET /" + b"a" * 20_000))[:13]


async def test_sockets_of_one_address_are_counted_before_they_ask(tmp_path: Path) -> None:
    async with running_hub(tmp_path, max_connections_per_address=1) as running:
        sockets = [await asyncio.open_connection("127.0.0.1", running.hub.port) for _ in range(110)]
        ended = asyncio.gather(*(reader.read() for reader, _ in sockets[101:]))
        assert set(await ended) == {b""}
        for _, writer in sockets:
            writer.close()


async def test_the_end_sends_everybody_away_to_come_back(tmp_path: Path) -> None:
    async with running_hub(tmp_path, drain_seconds=0.05) as running:
        wires = [await running.open() for _ in range(5)]
        ends = [asyncio.ensure_future(wire.closed()) for wire in wires]
        stopping = asyncio.ensure_future(running.hub.stop())
        closed = await asyncio.gather(*ends)
        assert {each.code for each in closed} == {CloseCode.SHUTTING_DOWN}
        for wire in wires:
            await wire.frame(8, (3001).to_bytes(2, "big"))
        await stopping
        for wire in wires:
            await wire.close()
        with pytest.raises(OSError):
            await Wire.to(running.hub)


async def test_a_hub_starts_once_and_again_after_its_end(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        with pytest.raises(ConfigError, match="already"):
            await running.hub.start()
    await running.hub.start()
    await running.hub.ready()
    await running.hub.stop()


async def test_serve_runs_until_it_is_cancelled(tmp_path: Path) -> None:
    hub = AnalyticsHub(HubConfig(port=0, directory=tmp_path, memory_only=True, drain_seconds=0))
    serving = asyncio.ensure_future(hub.serve())
    await eventually(lambda: not hub.reasons)
    hub.publish("alerts", "alert", 1)
    assert (await hub.publish_durable("alerts", "alert", 2)).offset == 2
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert hub.reasons == ["the hub does not run"]


async def test_a_port_that_is_taken_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        other = AnalyticsHub(
            HubConfig(port=running.hub.port, directory=tmp_path / "b", memory_only=True)
        )
        with pytest.raises(OSError, match="in use"):
            await other.start()
        again = AnalyticsHub(HubConfig(port=0, directory=tmp_path))
        with pytest.raises(keepline.StorageError):
            await again.start()


def test_it_runs_under_uvloop(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        async with running_hub(tmp_path) as running:
            wire = await running.open(subscribe=["system", "alerts"])
            running.hub.publish("system", "health", 1)
            await running.hub.publish_durable("alerts", "alert", 2)
            got = {(await wire.until(kind))["data"] for kind in ("health", "alert")}
            assert got == {1, 2}
            await wire.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
