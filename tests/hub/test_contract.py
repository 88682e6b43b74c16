"""The hub's side of the contract to the letter: paths, claims, numbers, presets, metrics, events; and its life."""

import asyncio
import concurrent.futures
import json
import logging
import re
import socket
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from tests.hub.hub_server import PASSWORD, SECRET, Wire, eventually, running_hub, token

from keepline import telemetry
from keepline.clock import SystemClock
from keepline.errors import Closed, ConfigError, StorageError
from keepline.hub.attendance import Attendance
from keepline.hub.broadcaster import Broadcaster
from keepline.hub.channels import Channel, Policy
from keepline.hub.closecodes import CloseCode
from keepline.hub.fanout import Hub
from keepline.hub.limits import Limits
from keepline.hub.measures import Tally
from keepline.hub.messages import OWN_TYPES, Stamps
from keepline.hub.outbox import Outbox
from keepline.hub.registrar import Registrar
from keepline.hub.server import AnalyticsHub
from keepline.hub.settings import HubConfig

# numbers


def test_the_defaults_are_the_contracts() -> None:
    config = HubConfig()
    assert (config.host, config.port) == ("127.0.0.1", 7999)
    assert (config.ping_seconds, config.pong_timeout_seconds) == (25, 60)
    assert config.handshake_timeout_seconds == 10
    limits = config.limits()
    assert (limits.max_batch, limits.interval, limits.client_buffer) == (50, 0.016, 256)
    assert (limits.inbound_rate, limits.slow_after) == (1000, 30)
    assert limits == Limits(), "the decider's defaults are the configuration's"
    assert config.max_connections_per_user > 0
    assert config.max_connections_per_address > 0


def test_the_channels_are_the_contracts() -> None:
    assert {each.name: each.policy.value for each in HubConfig().channels} == {
        "routing-metrics": "drop-oldest",
        "lp-performance": "conflate",
        "exposure-updates": "conflate",
        "alerts": "never",
        "system": "conflate",
    }


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"channels": [{"name": "keepline-canary", "policy": "conflate"}]}, "channels"),
        ({"channels": [{"name": "a", "policy": "never", "history_count": -1}]}, "channels.a.history_count"),
        ({"channels": [{"name": "a", "policy": "never", "snapshot_count": -1}]}, "channels.a.snapshot_count"),
        ({"channels": [{"name": "a", "policy": "never", "retention_count": 0}]}, "channels.a.retention_count"),
        ({"channels": [{"name": "a", "policy": "never", "history": 1}]}, ""),
        ({"gate": {"directory": "/nowhere", "scret": "x"}}, ""),
        ({"slow_after_seconds": float("nan")}, "slow_after_seconds"),
        ("port", "hub"),
        ([("port", 1)], "hub"),
    ],
)  # fmt: skip
def test_settings_that_would_fail_later_are_refused_now(given: Any, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HubConfig.of(given)
    assert caught.value.key == key


def test_no_history_in_memory_is_a_setting_like_another() -> None:
    config = HubConfig.of(
        {"channels": [{"name": "a", "policy": "drop-oldest", "history_count": 0}]}
    )
    assert config.channels[0].history_count == 0


# paths


PATHS = [
    ("GET", "/ws/analytics", 426),
    ("POST", "/api/publish", 200),
    ("GET", "/api/channels", 200),
    ("GET", "/api/history/lp-performance", 200),
    ("GET", "/api/alerts", 200),
    ("POST", "/api/alerts/a1/ack", 501),
    ("POST", "/api/alerts/a1/resolve", 501),
    ("POST", "/api/alerts/a1/snooze", 501),
    ("GET", "/api/clients", 200),
    ("GET", "/healthz", 200),
    ("GET", "/readyz", 200),
    ("GET", "/metrics", 200),
    ("GET", "/", 200),
]


async def test_every_path_is_there(tmp_path: Path) -> None:
    bodies = {
        "/api/publish": '{"channel":"system","type":"t","data":1}',
        "/api/alerts/a1/snooze": '{"seconds":60}',
    }
    async with running_hub(tmp_path) as running:
        await running.hub.ready()
        for method, path, status in PATHS:
            answer = await running.ask(method, path, data=bodies.get(path))
            assert (path, answer[0]) == (path, status)


async def test_a_sign_in_gives_a_token_with_the_contracts_claims(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        body = json.dumps({"username": "tom", "password": PASSWORD})
        _, told, _ = await running.ask("POST", "/login", user=None, data=body)
        assert set(told) == {"token", "expires_in", "role"}
        claims = jwt.decode(told["token"], SECRET, algorithms=["HS256"], audience="keepline-hub")
        assert {"sub", "role", "account", "iss", "aud", "iat", "exp"} <= set(claims)
        assert (claims["sub"], claims["role"], claims["iss"]) == ("tom", "trader", "keepline")


async def test_what_a_role_may_read_publish_and_acknowledge(tmp_path: Path) -> None:
    readable = {
        "ann": {"routing-metrics", "lp-performance", "exposure-updates", "alerts", "system"},
        "tom": {"exposure-updates", "alerts"},
        "vic": {"alerts", "lp-performance"},
        "svc": set(),
    }
    publishes, acknowledges = {"ann", "svc"}, {"ann", "tom"}
    async with running_hub(tmp_path) as running:
        for user, names in readable.items():
            _, told, _ = await running.ask("GET", "/api/channels", user=user)
            may = {each["channel"]: each["may"] for each in told["channels"]}
            assert {name for name, what in may.items() if "subscribe" in what} == names
            line = '{"channel":"system","type":"t","data":1}'
            _, told, _ = await running.ask("POST", "/api/publish", user=user, data=line)
            assert told["accepted"] == (user in publishes)
            status, _, _ = await running.ask("POST", "/api/alerts/a/ack", user=user)
            assert status == (501 if user in acknowledges else 403)


# messages


async def test_a_frame_is_an_array_of_messages_with_the_contracts_fields(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open(subscribe=["lp-performance"])
        running.hub.publish("lp-performance", "lp-metrics", {"lpName": "LP1"}, key="LP1")
        message = await wire.until("lp-metrics")
        assert list(message) == ["type", "channel", "offset", "epoch", "timestamp", "key", "data"]
        assert message["offset"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", message["timestamp"])
        await wire.close()


async def test_the_hubs_own_words_are_published_by_nobody_else(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        for kind in sorted(OWN_TYPES):
            with pytest.raises(ConfigError, match="own word"):
                running.hub.publish("system", kind, {})
            line = json.dumps({"channel": "system", "type": kind, "data": {}})
            _, told, _ = await running.ask("POST", "/api/publish", user="svc", data=line)
            assert (told["accepted"], told["refused"][0]["code"]) == (0, "bad_data")


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ((["system"], "t", 1), "channel"),
        ((None, "t", 1), "channel"),
        (("system", "\ud800", 1), "type"),
        (("system", 5, 1), "type"),
        (("system", "t", float("inf")), "data"),
    ],
)
async def test_what_cannot_be_published_is_refused_in_words(
    tmp_path: Path, given: Any, key: str
) -> None:
    async with running_hub(tmp_path) as running:
        with pytest.raises(ConfigError) as caught:
            running.hub.publish(*given)
        assert caught.value.key == key


async def test_lines_that_are_told_to_come_again_were_not_published(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        journal = running.hub.registrar.journal
        assert journal is not None
        await journal.close()
        system = '{"channel":"system","type":"t","data":1}'
        alert = '{"channel":"alerts","type":"alert","data":1,"id":"a"}'
        body = f"{system}\n{alert}\n{system}\n"
        key = {"Idempotency-Key": "k"}
        asked = {"user": "svc", "data": body, "headers": key}
        assert (await running.ask("POST", "/api/publish", **asked))[0] == 503
        assert running.hub.registrar.channels["system"].offset == 0
        await journal.start()
        status, told, _ = await running.ask("POST", "/api/publish", **asked)
        assert (status, told["accepted"]) == (200, 3)
        assert running.hub.registrar.channels["system"].offset == 2
        assert running.hub.registrar.channels["alerts"].offset == 1


def test_a_message_is_measured_in_bytes() -> None:
    hub = Hub([Channel("a", Policy.CONFLATE, epoch="e")], Limits(max_message=1000))
    client = hub.connect("c", 0.0)
    for text, told in (
        ("é" * 400, "bad_json"),
        ("é" * 600, "too_large"),
        ("x" * 1001, "too_large"),
    ):
        client.control.clear()
        hub.receive(client, text, 0.0)
        assert json.loads(client.control[0])["data"]["code"] == told


# numbers of its own


def scraped() -> dict[str, float]:
    pairs = (line.rpartition(" ") for line in telemetry.render_metrics().decode().splitlines())
    return {name: float(value) for name, _, value in pairs if not name.startswith("#")}


def grown(before: dict[str, float]) -> dict[str, float]:
    return {
        name.removeprefix("keepline_hub_"): value - before.get(name, 0)
        for name, value in scraped().items()
        if value != before.get(name, 0)
    }


def test_what_was_delivered_is_in_the_contracts_metrics() -> None:
    tally, before = Tally(), scraped()
    tally.frame(3, 7, 0.003)
    tally.conflated = 5
    tally.dropped["alerts", "retention"] = 2
    tally.dropped["routing-metrics", "slow"] = 9
    tally.report()
    new = grown(before)
    assert (new["batch_messages_count"], new["batch_messages_sum"]) == (3, 21)
    assert new["delivery_seconds_count"] == 3
    assert round(new["delivery_seconds_sum"], 6) == 0.009
    assert new['delivery_seconds_bucket{le="0.004"}'] == 3
    assert 'delivery_seconds_bucket{le="0.002"}' not in new
    assert new["conflated_total"] == 5
    assert new['dropped_total{channel="alerts",reason="retention"}'] == 2
    assert new['dropped_total{channel="routing-metrics",reason="slow"}'] == 9


async def test_clients_and_what_waits_for_them_are_in_the_contracts_metrics(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        before = scraped()
        wire = await running.open(subscribe=["alerts"])
        running.hub.attendance.look()
        running.hub.attendance.gauge()
        running.hub.publish("system", "t", 1)
        new = grown(before)
        assert new["clients"] == 1
        assert new['subscriptions{channel="alerts"}'] == 1
        assert new["queue_bytes_count"] >= 1
        assert new['messages_total{channel="system"}'] == 1
        await wire.close()
        await eventually(lambda: not len(running.hub.attendance))
        assert "clients" not in grown(before)


async def test_messages_over_the_rate_are_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "keepline")
    async with running_hub(tmp_path, inbound_rate=1) as running:
        before = scraped()
        wire = await running.open()
        for number in range(4):
            await wire.send({"action": "ping", "id": number})
        for _ in range(3):
            await wire.until("error")
        assert grown(before)["rate_limited_total"] == 3
        events = [record.getMessage() for record in caplog.records]
        assert sum("rate limit exceeded" in each for each in events) == 1
        assert any("Client connected" in each for each in events)
        await wire.close()
        await eventually(lambda: not len(running.hub.attendance))
        assert any("Client disconnected" in each.getMessage() for each in caplog.records)


def test_a_loss_says_whether_the_client_or_the_hub_was_too_slow() -> None:
    channel = Channel("q", Policy.DROP_OLDEST, epoch="e", history_count=50)
    stamps = Stamps()
    for number in range(100):
        channel.deliver(channel.stamp("t", b"%d" % number, 0.0, stamps))
    forgotten = Outbox((channel,), [10], 0.0).take(0.0, 50, Limits(), stamps)
    slow = Outbox((channel,), [10], 0.0).take(0.0, 50, Limits(client_buffer=20), stamps)
    assert forgotten is not None
    assert slow is not None
    assert forgotten.dropped == {("q", "retention"): 40}
    assert slow.dropped == {("q", "slow"): 70}


async def test_the_access_log_has_no_query(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_hub(tmp_path) as running:
        await running.ask("GET", "/api/channels?token=hunter2&x=plainly")
        wire = await Wire.to(running.hub, path="/ws/analytics?token=hunter2&x=plainly")
        assert wire.status == 401
        await wire.close()
        written = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
        assert any("/api/channels" in each for each in written)
        assert not [each for each in written if "hunter2" in each or "plainly" in each]


async def test_an_admin_sees_what_a_client_got_and_passed_over(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open(subscribe=["exposure-updates"])
        for number in range(10):
            running.hub.publish("exposure-updates", "exposure-change", number, key="all")
        await wire.until("exposure-change")
        _, told, _ = await running.ask("GET", "/api/clients")
        (client,) = told["clients"]
        assert client["conflated"] == 9
        assert client["sent"] >= 1
        (connection,) = running.hub.attendance.connections
        assert connection.client is not None
        running.hub.publish("exposure-updates", "exposure-change", "x" * 200_000, key="all")
        while connection.client.blocked is None:
            running.hub.publish("exposure-updates", "exposure-change", "x" * 200_000, key="all")
            await asyncio.sleep(0)
        running.clock.ahead += 3
        _, told, _ = await running.ask("GET", "/api/clients")
        (client,) = told["clients"]
        assert client["queueBytes"] > 0
        assert client["waiting"] >= 1
        assert client["slowSeconds"] >= 3
        await wire.close()


async def test_an_action_on_an_alert_has_a_small_body(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        note = json.dumps({"note": "x" * 9000})
        status, told, _ = await running.ask("POST", "/api/alerts/a/ack", data=note)
        assert (status, told["error"]) == (413, "too_large")


# what may not be held against a client, or by it


async def test_a_client_that_does_not_read_is_not_pinged_into_its_queue(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open(subscribe=["routing-metrics"])
        (connection,) = running.hub.attendance.connections
        while not (full := connection.transport.get_write_buffer_size()):
            running.hub.publish("routing-metrics", "routing-decision", "x" * 100_000)
            await asyncio.sleep(0)
        connection.look(connection.heard + 26, 0.0)
        assert connection.transport.get_write_buffer_size() <= full
        await wire.close()


class Sink(asyncio.Transport):
    """A socket that takes everything, and says how much it was given."""

    def __init__(self, given: list[bytes]) -> None:
        super().__init__()
        self.given = given
        self.full = False

    def get_write_buffer_size(self) -> int:
        return int(self.full)

    def is_closing(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        self.given.append(data)


class Seat:
    def __init__(self, given: list[bytes]) -> None:
        self.transport = Sink(given)

    async def drained(self) -> None:
        """Always is."""

    def end(self, code: CloseCode, reason: str) -> None:
        raise AssertionError((code, reason))

    def overflowed(self, dropped: int) -> None:
        raise AssertionError(dropped)


class Loser(Seat):
    def __init__(self) -> None:
        self.given: list[bytes] = []
        super().__init__(self.given)
        self.lost: list[int] = []

    async def drained(self) -> None:
        await asyncio.Event().wait()

    def overflowed(self, dropped: int) -> None:
        self.lost.append(dropped)


async def test_a_frame_for_many_is_written_in_parts_with_others_turns_between() -> None:
    registrar = Registrar(HubConfig().channels, journal_path=None)
    broadcaster = Broadcaster(registrar.channels.values(), registrar, slice=10)
    broadcaster.start()
    await registrar.start(broadcaster)
    given: list[bytes] = []
    for number in range(45):
        client = broadcaster.connect(str(number), Seat(given), deflate=False, welcome={})
        broadcaster.subscribe(client, ["system"])
    await eventually(lambda: sum(b"snapshot" in frame for frame in given) == 45)
    given.clear()
    registrar.publish("system", "t", b"1")
    written = []
    while sum(written) < 45:
        await asyncio.sleep(0)
        written.append(len(given))
        given.clear()
    assert [part for part in written if part] == [10, 10, 10, 10, 5]
    for client in list(broadcaster.clients.values()):
        broadcaster.disconnect(client)
    await broadcaster.close()


async def test_only_who_was_written_to_is_said_to_have_lost_something() -> None:
    registrar = Registrar(HubConfig().channels, journal_path=None)
    limits = Limits(client_buffer=5)
    broadcaster = Broadcaster(registrar.channels.values(), registrar, limits=limits)
    broadcaster.start()
    await registrar.start(broadcaster)
    seats = [Loser(), Loser()]
    for number, seat in enumerate(seats):
        client = broadcaster.connect(str(number), seat, deflate=False, welcome={})
        broadcaster.subscribe(client, ["routing-metrics"])
    await eventually(lambda: all(b"snapshot" in b"".join(seat.given) for seat in seats))
    seats[0].transport.full = True
    for number in range(20):
        registrar.publish("routing-metrics", "routing-decision", b"%d" % number)
    await eventually(lambda: b"gap" in b"".join(seats[1].given))
    assert [seat.lost for seat in seats] == [[], [15]]
    for client in list(broadcaster.clients.values()):
        broadcaster.disconnect(client)
    await broadcaster.close()


async def test_a_line_that_the_disk_refuses_is_told_to_come_again(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        failed: concurrent.futures.Future[Any] = concurrent.futures.Future()
        failed.set_exception(StorageError("disk full"))
        running.hub.registrar.post = lambda *_, **__: failed  # type: ignore[method-assign]
        lines = (
            '{"channel":"system","type":"t","data":1}\n{"channel":"alerts","type":"alert","data":1}'
        )
        status, told, headers = await running.ask("POST", "/api/publish", data=lines)
        assert (status, told["error"]) == (503, "unavailable")
        assert int(headers["Retry-After"]) >= 1
        assert running.hub.registrar.channels["system"].offset == 0


async def test_where_the_kernel_has_no_low_water_mark_its_buffer_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepline.hub.upgrade._LOWAT", None)
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        (connection,) = running.hub.attendance.connections
        own = connection.transport.get_extra_info("socket")
        asked = 64 * 1024  # Linux keeps the double of what is asked
        assert asked <= own.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * asked
        await wire.close()


async def test_a_head_has_at_most_64_fields(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        for extra, status in ((60, b" 200 "), (70, b" 400 ")):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.hub.port)
            fields = "".join(f"X-{number}: y\r\n" for number in range(extra))
            host = f"Host: 127.0.0.1:{running.hub.port}\r\n"
            writer.write(f"GET /healthz HTTP/1.1\r\n{host}{fields}\r\n".encode())
            assert status in await reader.readuntil(b"\r\n")
            writer.close()


async def test_a_canary_that_is_later_than_the_next_one_is_late(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        hub = running.hub
        await hub.ready()
        hub.broadcaster.deliver = hub.registrar.channels["keepline-canary"].deliver  # type: ignore[method-assign]
        assert hub._readiness is not None
        hub._readiness._send()
        running.clock.ahead += 4.0
        assert hub.reasons == []
        running.clock.ahead += 2.0
        assert "late" in hub.reasons[0]


# the end, and the beginning


class Hasty(SystemClock):
    """Keeps what it was asked to sleep, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Guest:
    """A connection that goes when it is told to."""

    class client:
        id = "guest"
        sent = dropped = 0

    def __init__(self, attendance: Attendance, clock: Hasty) -> None:
        self.attendance, self.clock = attendance, clock
        self.told: tuple[CloseCode, int] | None = None
        attendance.enter(self)  # type: ignore[arg-type]

    def leave(self, code: CloseCode) -> None:
        self.told = code, len(self.clock.slept)
        self.attendance.exit(self)  # type: ignore[arg-type]


async def test_clients_are_sent_away_one_part_after_another_with_uneven_pauses() -> None:
    clock = Hasty()
    attendance = Attendance(clock, most={})
    guests = [Guest(attendance, clock) for _ in range(100)]
    await attendance.send_away(CloseCode.SHUTTING_DOWN, 2.0)
    told = [guest.told for guest in guests]
    assert {each and each[0] for each in told} == {CloseCode.SHUTTING_DOWN}
    parts = [each[1] for each in told if each]
    assert max(parts.count(part) for part in set(parts)) == 5
    assert len(set(clock.slept)) > 1
    assert 1.0 <= sum(clock.slept) <= 3.0


async def test_who_comes_during_the_end_is_told_to_come_back(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        port = running.hub.port
        staying = await running.open()
        late = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        first = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        for reader, writer in late:
            writer.write(first)
            await reader.readuntil(b"true}")
        stopping = asyncio.ensure_future(running.hub.stop())
        assert (await staying.closed()).code == CloseCode.SHUTTING_DOWN
        (reader, writer), (ready_reader, ready_writer) = late
        ready_writer.write(first.replace(b"healthz", b"readyz"))
        assert b"shutting down" in await ready_reader.readuntil(b"]}")
        upgrade = (
            f"GET /ws/analytics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Authorization: Bearer {token()}\r\n\r\n"
        )
        writer.write(upgrade.encode())
        answer = await reader.readuntil(b'"}')
        assert b" 503 " in answer[:13]
        assert b"Retry-After" in answer
        assert b"shutting_down" in answer
        await staying.frame(8, (3001).to_bytes(2, "big"))
        await stopping
        for _, each in late:
            each.close()
        await staying.close()


async def test_starts_and_stops_that_meet_wait_for_each_other(tmp_path: Path) -> None:
    hub = AnalyticsHub({"port": 0, "directory": str(tmp_path), "drain_seconds": 0})
    first, second = await asyncio.gather(hub.start(), hub.start(), return_exceptions=True)
    assert first is None
    assert isinstance(second, ConfigError)
    await hub.ready()
    assert hub.reasons == []
    await asyncio.gather(hub.stop(), hub.stop())
    await asyncio.gather(hub.start(), hub.stop())
    assert hub.reasons == ["the hub does not run"]
    starting = asyncio.ensure_future(hub.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    async with hub:
        await hub.ready()


async def test_a_start_that_fails_leaves_the_port(tmp_path: Path) -> None:
    hub = AnalyticsHub({"port": 0, "directory": str(tmp_path), "allowed_origins": ["*"]})
    with pytest.raises(ConfigError) as caught:
        await hub.start()
    assert caught.value.key == "allowed_origins"
    with socket.socket() as other:
        other.bind(("127.0.0.1", hub.port))


async def test_a_publish_into_a_closed_loop_is_said_and_nothing_stays_behind(
    tmp_path: Path,
) -> None:
    async with running_hub(tmp_path) as running:
        hub, loop = running.hub, running.hub._loop
        hub._loop = asyncio.new_event_loop()
        hub._loop.close()
        for _ in range(2):
            with pytest.raises(Closed):
                await asyncio.to_thread(hub.publish, "system", "t", "lost")
        hub._loop = loop
        wire = await running.open(subscribe=["system"])
        await asyncio.to_thread(hub.publish, "system", "t", "kept")
        assert (await wire.until("t"))["data"] == "kept"
        await wire.close()


async def test_a_foreign_page_is_closed_whatever_its_token(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await Wire.to(
            running.hub, bearer=token(), headers={"Origin": "https://evil.example"}
        )
        assert (await wire.closed()).code == CloseCode.FORBIDDEN
        await wire.close()


async def test_a_user_whom_another_program_removes_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepline.hub.server._LOOK_AT_USERS", 0.01)
    async with running_hub(tmp_path) as running:
        wire, stays = await running.open("tom"), await running.open("ann")
        gate = running.hub.config.gate
        assert gate is not None
        users = gate.users()
        await asyncio.to_thread(users.load)
        await asyncio.to_thread(users.remove, "tom", now=time.time())
        assert (await wire.closed()).code == CloseCode.REVOKED
        await stays.send({"action": "ping"})
        await stays.until("pong")
        await wire.close()
        await stays.close()
