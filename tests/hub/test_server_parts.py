"""The hub's parts on their own: settings, registrar, broadcaster, attendance, readiness."""

import asyncio
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.hub.hub_server import ShiftedClock, Wire, eventually, running_hub, token

from keepline.errors import ConfigError, StorageError
from keepline.hub.attendance import Attendance, neighbourhood
from keepline.hub.broadcaster import Broadcaster
from keepline.hub.channels import Policy
from keepline.hub.closecodes import CloseCode
from keepline.hub.farewells import close_code
from keepline.hub.listening import bind
from keepline.hub.measures import MESSAGES, Tally
from keepline.hub.messages import Message
from keepline.hub.readiness import CANARY_CHANNEL, Readiness
from keepline.hub.refusals import RefusalCode, refuse
from keepline.hub.registrar import Registrar, report_failure
from keepline.hub.settings import CHANNELS, PRESETS, ChannelSettings, HubConfig
from keepline.hub.turnstile import Turnstile

LINE = ChannelSettings(name="line", policy=Policy.DROP_OLDEST)


class Collected:
    """An outlet that keeps what it gets, as a bus would send it on."""

    def __init__(self, registrar: Registrar) -> None:
        self.registrar = registrar
        self.got: list[Message] = []

    def deliver(self, message: Message) -> None:
        self.registrar.channels[message.channel].deliver(message)
        self.got.append(message)


# settings


@pytest.mark.parametrize(
    ("preset", "batch", "interval", "buffer"),
    [
        ("standard", 50, 0.016, 256),
        ("high-frequency", 100, 0.008, 512),
        ("low-latency", 10, 0.005, 256),
        ("small-memory", 50, 0.016, 64),
    ],
)
def test_a_preset_is_a_set_of_defaults(
    preset: str, batch: int, interval: float, buffer: int
) -> None:
    limits = HubConfig(preset=preset).limits()
    assert (limits.max_batch, limits.interval, limits.client_buffer) == (batch, interval, buffer)
    assert HubConfig(preset=preset, max_batch_size=7).limits().max_batch == 7


def test_queued_frames_bound_what_waits() -> None:
    assert PRESETS["small-memory"].max_queued_frames == 5
    limits = HubConfig(preset="small-memory", max_batch_size=4).limits()
    assert limits.client_buffer == 20


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"preset": "fast"}, "preset"),
        ({"batch_interval": 16}, "batch_interval"),
        ({"port": 70_000}, "port"),
        ({"tls_certificate": "a.pem"}, "tls_key"),
        ({"pong_timeout_seconds": 1}, "pong_timeout_seconds"),
        ({"channels": [{"name": "A b", "policy": "never"}]}, "channels"),
        ({"channels": [{"name": "a", "policy": "never"}] * 2}, "channels"),
        ({"prot": 1}, ""),
        ({"port": "x"}, ""),
    ],
)
def test_a_setting_that_cannot_be_is_named(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HubConfig.of(given)
    assert caught.value.key == key


def test_a_mapping_says_the_same_as_the_fields(tmp_path: Path) -> None:
    told = HubConfig.of(
        {"directory": str(tmp_path), "channels": [{"name": "own", "policy": "conflate"}]}
    )
    assert told.directory == tmp_path
    assert told.channels[0].policy is Policy.CONFLATE
    assert HubConfig.of(told) is told
    assert HubConfig.of(None).channels == CHANNELS


def test_every_refusal_has_a_code_whose_range_says_the_same() -> None:
    for code in RefusalCode:
        assert int(close_code(refuse(code))) >= 3000


# who numbers and stores


async def test_the_registrar_hands_each_message_to_its_outlet_in_order(tmp_path: Path) -> None:
    registrar = Registrar(CHANNELS, journal_path=tmp_path / "j.db", max_data=1000)
    outlet = Collected(registrar)
    await registrar.start(outlet)
    before = MESSAGES.value("alerts")
    texts = [registrar.prepared("alerts", "alert", {"n": number}) for number in range(20)]
    posted = [registrar.post("alerts", "alert", text) for text in texts]
    await asyncio.gather(*map(asyncio.wrap_future, posted))
    assert [message.offset for message in outlet.got] == list(range(1, 21))
    assert MESSAGES.value("alerts") == before + 20
    first = registrar.publish("system", "health", b"1", id="x")
    again = registrar.publish("system", "health", b"1", id="x")
    assert (first.new, again.new, first.offset == again.offset) == (True, False, True)
    read = await registrar.read("alerts", 5, 3)
    assert [message.text for message in read] == [outlet.got[i].text for i in (5, 6, 7)]
    assert [each.offset for each in await registrar.read("system", 0, 5)] == [1]
    with pytest.raises(ConfigError, match="1000"):
        registrar.prepared("alerts", "alert", "x" * 2000)
    await registrar.close()
    await registrar.close()
    assert MESSAGES.value("alerts") == before + 20


async def test_retention_moves_on_by_count_and_by_age(tmp_path: Path) -> None:
    clock = ShiftedClock()
    alerts = ChannelSettings(
        name="alerts", policy=Policy.NEVER, retention_count=5, retention_seconds=100
    )
    registrar = Registrar([alerts], journal_path=tmp_path / "j.db", clock=clock)
    await registrar.start(Collected(registrar))
    for number in range(8):
        await registrar.publish_durable("alerts", "alert", b"%d" % number)
    assert registrar.channels["alerts"].retained == 4
    clock.ahead += 1000
    registrar.adjust()
    await registrar.publish_durable("alerts", "alert", b"8")
    await registrar.prune()
    assert registrar.channels["alerts"].retained == 9
    assert [each.offset for each in await registrar.history("alerts")] == [9]
    await registrar.close()


async def test_without_a_journal_messages_last_as_long_as_the_process() -> None:
    registrar = Registrar([CHANNELS[3], LINE], journal_path=None)
    outlet = Collected(registrar)
    await registrar.start(outlet)
    placed = await registrar.publish_durable("alerts", "alert", b"1")
    assert (placed.offset, registrar.durable("alerts")) == (1, False)
    await registrar.prune()
    for number in range(10):
        registrar.publish("line", "step", b"%d" % number)
    page = await registrar.history("line", limit=3, before=9)
    assert [message.offset for message in page] == [6, 7, 8]
    assert await registrar.history("line", limit=3, before=1) == []
    await registrar.close()


async def test_a_message_that_cannot_be_stored_is_said_and_not_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registrar = Registrar(CHANNELS, journal_path=tmp_path / "j.db")
    outlet = Collected(registrar)
    await registrar.start(outlet)
    done = registrar.post("alerts", "alert", b"1")
    await asyncio.wrap_future(done)
    report_failure(done)
    failed: Any = type(done)()
    failed.set_exception(StorageError("disk full", path=tmp_path))
    report_failure(failed)
    assert "Message not stored" in caplog.text
    await registrar.close()


# who fans out


async def test_a_client_far_behind_is_refilled_from_the_journal(tmp_path: Path) -> None:
    alerts = ChannelSettings(name="alerts", policy=Policy.NEVER, history_count=10)
    async with running_hub(tmp_path, channels=(alerts,)) as running:
        for number in range(300):
            placed = await running.hub.publish_durable("alerts", "alert", number)
        wire = await running.open()
        position = {"epoch": placed.epoch, "offset": 3}
        await wire.send(
            {"action": "subscribe", "channels": ["alerts"], "resume": {"alerts": position}}
        )
        got = [await wire.until("alert") for _ in range(297)]
        assert [message["offset"] for message in got] == list(range(4, 301))
        await wire.close()


async def test_a_journal_that_cannot_be_read_sends_the_client_to_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = ChannelSettings(name="alerts", policy=Policy.NEVER, history_count=10)
    async with running_hub(tmp_path, channels=(alerts,)) as running:
        for number in range(100):
            placed = await running.hub.publish_durable("alerts", "alert", number)

        async def fails(*_: object) -> list[Message]:
            raise StorageError("damaged", path=tmp_path)

        running.hub.registrar.read = fails  # type: ignore[method-assign]
        wire = await running.open()
        position = {"epoch": placed.epoch, "offset": 3}
        await wire.send(
            {"action": "subscribe", "channels": ["alerts"], "resume": {"alerts": position}}
        )
        assert (await wire.closed()).code == CloseCode.LOST_PLACE
        assert "Journal not read" in caplog.text
        await wire.close()


async def test_a_worker_takes_over_a_channel_as_its_parent_has_it(tmp_path: Path) -> None:
    parent = Registrar([LINE], journal_path=None)
    outlet = Collected(parent)
    await parent.start(outlet)
    for number in range(3):
        parent.publish("line", "step", b"%d" % number)
    copies = Registrar([LINE], journal_path=None).channels
    worker = Broadcaster(copies.values(), parent)
    worker.start()
    channel = parent.channels["line"]
    worker.restore("line", outlet.got, offset=channel.offset, epoch=channel.epoch)
    parent.publish("line", "step", b"3")
    worker.deliver(outlet.got[-1])
    assert (copies["line"].offset, copies["line"].epoch) == (4, channel.epoch)
    assert [m.text for m in copies["line"].history] == [m.text for m in channel.history]
    await worker.close()


async def test_several_publishes_of_one_turn_make_one_frame(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open(subscribe=["routing-metrics"])
        running.clock.ahead += 1.0  # it is quiet
        for number in range(50):
            running.hub.publish("routing-metrics", "routing-decision", number)
        assert [message["data"] for message in await wire.messages()] == list(range(50))
        await wire.close()


async def test_many_who_come_back_at_once_are_all_served(tmp_path: Path) -> None:
    async with running_hub(tmp_path, slice=10) as running:
        resume = {"epoch": running.hub.registrar.channels["system"].epoch, "offset": 0}
        for number in range(5):
            running.hub.publish("system", "health", number, key=str(number))

        async def come_back() -> list[Any]:
            wire = await Wire.to(running.hub, bearer=token("ann"))
            await wire.send(
                {"action": "subscribe", "channels": ["system"], "resume": {"system": resume}}
            )
            got = [(await wire.until("health"))["data"] for _ in range(5)]
            last = (await wire.until("health"))["data"]
            await wire.close()
            return [*got, last]

        coming = [asyncio.ensure_future(come_back()) for _ in range(200)]
        await eventually(lambda: len(running.hub.attendance) == 200)
        running.hub.publish("system", "health", "live", key="live")
        assert set(map(tuple, await asyncio.gather(*coming))) == {(0, 1, 2, 3, 4, "live")}
        await eventually(lambda: not len(running.hub.attendance))


def test_what_was_delivered_is_told_once() -> None:
    tally = Tally()
    tally.frame(3, 10, 0.004)
    tally.conflated = 2
    tally.dropped["line", "slow"] += 4
    tally.report()
    assert (tally.delivered, tally.conflated, dict(tally.dropped)) == (0, 0, {})
    tally.report()


# who is here


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::2", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_address_is_counted_with_its_neighbours(address: str, counted: str) -> None:
    assert neighbourhood(address) == counted


def test_places_are_taken_and_given_back() -> None:
    attendance = Attendance(ShiftedClock(), most={"user": 2})
    assert [attendance.take("user", "a") for _ in range(3)] == [True, True, False]
    assert attendance.take("user", "b")
    assert all(attendance.take("address", "x") for _ in range(10))
    attendance.give_back("user", "a")
    assert attendance.take("user", "a")


async def test_who_does_not_answer_a_close_is_cut(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open("tom")
        await running.hub.revoke("tom")
        assert (await wire.closed()).code == CloseCode.REVOKED
        running.hub.attendance.look()
        assert len(running.hub.attendance) == 1
        running.clock.ahead += 6
        running.hub.attendance.look()
        assert await wire.reader.read() == b""
        await eventually(lambda: not len(running.hub.attendance))
        await wire.close()


async def test_a_refused_page_that_stays_is_cut(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await Wire.to(running.hub, headers={"Origin": "https://evil.example"})
        assert (await wire.closed()).code == CloseCode.FORBIDDEN
        running.clock.ahead += 6
        running.hub.attendance.look()
        assert await wire.reader.read() == b""
        await wire.close()


async def test_a_right_that_a_newer_token_lacks_is_taken_away(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        now = time.time()
        foreign = {"iat": now, "exp": now + 100}
        wire = await Wire.to(running.hub, bearer=token("ann", **foreign))
        await wire.until("welcome")
        await wire.send({"action": "subscribe", "channels": ["system", "alerts"]})
        await wire.until("snapshot")
        connection = running.hub.attendance.connections[0]
        connection.tenure.refresh(
            msgspec.structs.replace(connection.identity, role="viewer"), time.time()
        )
        await wire.send({"action": "subscribe", "channels": ["system"]})
        error = await wire.until("error")
        assert (error["channel"], error["data"]["code"]) == ("system", "forbidden")
        await wire.close()


async def test_a_crowd_goes_in_by_turns_and_who_gives_up_holds_nobody_up() -> None:
    turnstile = Turnstile(2)
    went: list[int] = []

    async def go(number: int) -> None:
        await turnstile.wait()
        went.append(number)

    going = [asyncio.ensure_future(go(number)) for number in range(9)]
    await asyncio.sleep(0)
    assert went == [0, 1]
    going[3].cancel()
    seen = 2
    while len(went) < 8:
        await asyncio.sleep(0)
        assert len(went) - seen <= 2
        seen = len(went)
    assert went == [0, 1, 2, 4, 5, 6, 7, 8]
    await asyncio.gather(*going, return_exceptions=True)


# ready


async def test_no_canary_no_readiness() -> None:
    clock = ShiftedClock()
    registrar = Registrar([CANARY_CHANNEL], journal_path=None, clock=clock)
    broadcaster = Broadcaster(registrar.channels.values(), registrar, clock=clock)
    await registrar.start(Collected(registrar))  # deaf: nothing reaches the broadcaster's clients
    broadcaster.start()
    readiness = Readiness(
        registrar, broadcaster, clock=clock, every_seconds=1.0, reasons=lambda: ["the rest"]
    )
    assert readiness.reasons == ["the rest", "no canary was sent yet"]
    running = asyncio.ensure_future(readiness.run())
    await eventually(lambda: "arrived yet" in readiness.reasons[-1])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await broadcaster.close()


# sockets


async def test_little_waits_in_the_kernel_for_one_that_does_not_read(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as running:
        wire = await running.open()
        own = running.hub.attendance.connections[0].transport.get_extra_info("socket")
        lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if lowat is None:
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 256 * 1024
        else:
            assert own.getsockopt(socket.IPPROTO_TCP, lowat) == 16 * 1024
        await wire.close()


def certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, own = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    own.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, own


async def test_tls_serves_the_same(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(chain))
    async with running_hub(tmp_path, tls_certificate=chain, tls_key=key) as running:
        await running.hub.ready()
        url = f"https://localhost:{running.hub.port}"
        bearer = {"Authorization": f"Bearer {token('ann')}"}
        async with running.session.get(f"{url}/api/channels", headers=bearer, ssl=trust) as answer:
            assert answer.status == 200
            assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
        own = {**bearer, "Origin": url}
        async with running.session.ws_connect(
            f"{url}/ws/analytics", headers=own, ssl=trust
        ) as live:
            assert (await live.receive_json())[0]["type"] == "welcome"
            await live.send_json({"action": "subscribe", "channels": ["routing-metrics"]})
            while (await live.receive_json())[0]["type"] != "snapshot":
                pass
            seen: list[int] = []
            for number in range(300):
                running.hub.publish("routing-metrics", "step", {"n": number, "pad": "x" * 3000})
                if number % 50 == 49:
                    while not seen or seen[-1] < number:
                        frame = await live.receive_json()
                        seen += [m["data"]["n"] for m in frame if m["type"] == "step"]
            assert seen == list(range(300))
        plain = {**bearer, "Origin": f"http://localhost:{running.hub.port}"}
        async with running.session.get(f"{url}/api/channels", headers=plain, ssl=trust) as answer:
            assert answer.status == 403


async def test_a_certificate_that_is_none_is_said_in_words(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    with pytest.raises(ConfigError, match="no certificate") as caught:
        async with running_hub(tmp_path, tls_certificate=bad, tls_key=bad):
            pass
    assert caught.value.key == "tls_certificate"


async def test_all_addresses_of_a_host_get_one_port() -> None:
    first = await bind("localhost", 0)
    port = first[0].getsockname()[1]
    assert {each.getsockname()[1] for each in first} == {port}
    first[0].listen()
    with pytest.raises(OSError, match="in use"):
        await bind("127.0.0.1", port)
    for each in first:
        each.close()
    shared = [*await bind("127.0.0.1", 0, reuse_port=True)]
    shared += await bind("127.0.0.1", shared[0].getsockname()[1], reuse_port=True)
    for each in shared:
        each.close()
