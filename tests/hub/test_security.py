"""Attacks from outside: each is refused, counted and logged, and no log line or metric holds a token or a password."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import ClientSession
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.hub.house import (
    AUDIENCE,
    CLOSE,
    SECRET,
    TEXT,
    Peer,
    claims,
    deflated,
    frame,
    handshake,
    raw,
    settings,
    token,
)
from wsproto.extensions import PerMessageDeflate

from keepline.hub.opening import GateSettings, IssuerSettings
from keepline.hub.readiness import CANARY_CHANNEL
from keepline.hub.server import AnalyticsHub
from keepline.telemetry import render_metrics
from keepline.testing import ManualClock

PASSWORD = "correct-horse-7-staple"
WRONG = "wrong-battery-8-clip"
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
PUBLIC = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


class Watch:
    """What was logged and counted since it began; `secrets` may be in neither."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._before = self._numbers()
        self.secrets: set[str] = {SECRET, PASSWORD, WRONG}

    def secret(self, text: str) -> str:
        """A token that is used from here on: neither it nor its parts may be said."""
        self.secrets.update([text, *(part for part in text.split(".") if len(part) > 16)])
        return text

    def counted(self, name: str) -> float:
        """By how much a metric (with its labels, as in the exposition) has grown."""
        return self._numbers().get(name, 0.0) - self._before.get(name, 0.0)

    def refused(self, code: str) -> float:
        return self.counted(f'keepline_hub_refused_total{{code="{code}"}}')

    def said(self) -> str:
        """Every log line with all its fields."""
        formatter = logging.Formatter()
        found = []
        for record in self._caplog.get_records("setup") + self._caplog.records:
            found += [formatter.format(record), repr(record.__dict__)]
        return "\n".join(found)

    def check(self) -> None:
        said = self.said() + render_metrics().decode()
        for secret in self.secrets:
            assert secret not in said, f"{secret[:12]}… was said"

    def _numbers(self) -> dict[str, float]:
        lines = render_metrics().decode().splitlines()
        parts = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in parts}


@pytest.fixture
def watch(caplog: pytest.LogCaptureFixture) -> Iterator[Watch]:
    caplog.set_level(logging.DEBUG)
    watch = Watch(caplog)
    yield watch
    watch.check()


def two_issuers(directory: Path) -> tuple[IssuerSettings, ...]:
    key = directory / "idp.pem"
    key.write_bytes(PUBLIC)
    return (
        IssuerSettings(issuer="desk", audiences=(AUDIENCE,), algorithms=("HS256",), secret=SECRET),
        IssuerSettings(issuer="idp", audiences=(AUDIENCE,), algorithms=("RS256",), key_file=key),
    )


def add_users(directory: Path) -> None:
    users = GateSettings(directory=directory, argon2id=(64, 1, 1)).users()
    for name, role in (("ann", "admin"), ("bob", "viewer")):
        users.add(name, PASSWORD, role=role, account="", now=time.time() - 5)


@pytest.fixture
def house(tmp_path: Path) -> Callable[..., AnalyticsHub]:
    """Makes a hub with users ann and bob and two issuers, with any settings."""
    tmp_path.chmod(0o700)
    add_users(tmp_path)
    issuers = two_issuers(tmp_path)

    def make(clock: Any = None, **more: Any) -> AnalyticsHub:
        config = settings(tmp_path, gate={"issuers": issuers}, **more)
        return AnalyticsHub(config) if clock is None else AnalyticsHub(config, clock=clock)

    return make


@pytest.fixture
async def hub(house: Callable[..., AnalyticsHub], watch: Watch) -> AsyncIterator[AnalyticsHub]:
    async with house() as hub:
        yield hub


async def served(hub: AnalyticsHub) -> None:
    """Somebody else is served all the same."""
    async with await Peer.open(hub.port, token("witness")) as peer:
        await peer.alive()


# tokens


def signed(header: dict[str, Any], payload: dict[str, Any], key: bytes) -> str:
    """HS256 whatever the library thinks of the key."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=")
        for each in (header, payload)
    ]
    text = b".".join(parts)
    mac = hmac.new(key, text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def changed(text: str, **more: Any) -> str:
    """The token with other claims under the same signature."""
    head, body, mac = text.split(".")
    said = json.loads(base64.urlsafe_b64decode(body + "=="))
    new = base64.urlsafe_b64encode(json.dumps({**said, **more}).encode()).rstrip(b"=").decode()
    return f"{head}.{new}.{mac}"


NOW = int(time.time())
HEAD = {"alg": "HS256", "typ": "JWT"}
BAD_TOKENS: dict[str, tuple[Callable[[], str], set[str]]] = {
    "none": (lambda: jwt.encode(claims(), None, "none"), {"bad_algorithm"}),
    "None": (lambda: signed({"alg": "None"}, claims(), b""), {"bad_algorithm"}),
    "HS512": (lambda: jwt.encode(claims(), SECRET * 2, "HS512"), {"bad_algorithm"}),
    "RS256 for a secret": (lambda: jwt.encode(claims(), RSA, "RS256"), {"bad_algorithm"}),
    "a public key as the secret": (
        lambda: signed(HEAD, claims(iss="idp"), PUBLIC),
        {"bad_algorithm"},
    ),
    "a stripped public key as the secret": (
        lambda: signed(HEAD, claims(iss="idp"), PUBLIC.strip()),
        {"bad_algorithm"},
    ),
    "one's own key in the head": (
        lambda: jwt.encode(
            claims(iss="idp"),
            OTHER_RSA,
            "RS256",
            headers={"jwk": jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_RSA.public_key(), as_dict=True)},
        ),
        {"bad_signature"},
    ),
    "a key's address in the head": (
        lambda: jwt.encode(claims(iss="idp"), OTHER_RSA, "RS256", headers={"jku": "http://127.0.0.1:1/"}),
        {"bad_signature"},
    ),
    "a file as the key": (
        lambda: signed({**HEAD, "kid": "../../../../dev/null"}, claims(), b""),
        {"bad_signature", "unknown_key"},
    ),
    "another key": (lambda: signed(HEAD, claims(), b"x" * 40), {"bad_signature"}),
    "no signature": (lambda: token().rpartition(".")[0] + ".", {"bad_signature", "bad_token"}),
    "changed claims": (lambda: changed(token("bob", "viewer"), role="admin"), {"bad_signature"}),
    "the hub's own issuer": (
        lambda: token(iss="keepline"),
        {"bad_signature", "unknown_key"},
    ),
    "expired": (lambda: token(iat=NOW - 7200, exp=NOW - 3600), {"expired"}),
    "from the future": (lambda: token(iat=NOW + 3600, exp=NOW + 7200), {"not_yet_valid"}),
    "not before": (lambda: token(nbf=NOW + 3600), {"not_yet_valid"}),
    "for others": (lambda: token(aud="another-service"), {"bad_audience"}),
    "for nobody": (lambda: token(aud=None), {"bad_audience", "bad_claims"}),
    "of others": (lambda: token(iss="https://evil.example"), {"bad_issuer"}),
    "of nobody": (lambda: token(iss=None), {"bad_issuer", "bad_claims"}),
    "without an end": (lambda: token(exp=None), {"bad_claims"}),
    "an end that is no time": (lambda: token(exp="never"), {"bad_claims"}),
    "an endless end": (lambda: signed(HEAD, claims(exp=1e400), SECRET.encode()), {"bad_claims", "bad_issuer"}),
    "nobody": (lambda: token(sub=None), {"bad_claims"}),
    "a list of roles": (lambda: token(role=["admin"]), {"bad_claims"}),
    "critical": (lambda: signed({**HEAD, "crit": ["exp"]}, claims(), SECRET.encode()), {"bad_token"}),
    "no token at all": (lambda: "aaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbb.cc", {"bad_token"}),
    "endless": (lambda: token(padding="x" * 6300), {"bad_token"}),
}  # fmt: skip
COMES_BACK = {"expired", "not_yet_valid"}


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_a_bad_token_opens_no_door(hub: AnalyticsHub, watch: Watch, name: str) -> None:
    make, codes = BAD_TOKENS[name]
    bad = watch.secret(make())
    async with await Peer.open(hub.port, bad) as machine:
        assert machine.status == 401
        assert machine.fields["www-authenticate"].startswith("Bearer")
    async with await Peer.open(hub.port, target=f"/ws/analytics?token={bad}") as query:
        assert query.status == 401
    async with await Peer.open(hub.port, subprotocols=["keepline.v1", f"bearer.{bad}"]) as page:
        assert (page.status, page.subprotocol) == (101, "keepline.v1")
        code = await page.end()
        assert code is not None
        assert (3000 <= code < 3500) == bool(codes & COMES_BACK)
        assert page.messages == []
        assert bad not in str(page.reason)
    async with ClientSession(headers={"Authorization": f"Bearer {bad}"}) as http:
        for path in ("/api/channels", "/api/clients", "/api/history/alerts"):
            async with http.get(hub.url + path) as answer:
                assert answer.status == 401
                told = await answer.json()
                assert told["error"] in codes
        async with http.post(hub.url + "/api/publish", json={}) as answer:
            assert answer.status == 401
    assert sum(watch.refused(each) for each in codes) >= 7
    assert "Access refused" in watch.said()


async def test_a_good_token_opens_each_door_and_is_never_said(
    hub: AnalyticsHub, watch: Watch
) -> None:
    good = [watch.secret(token()), watch.secret(jwt.encode(claims(iss="idp"), RSA, "RS256"))]
    for each in good:
        for way in (
            {"bearer": each},
            {"subprotocols": ["keepline.v1", f"bearer.{each}"]},
            {"target": f"/ws/analytics?token={each}"},
        ):
            async with await Peer.open(hub.port, **way) as peer:
                await peer.alive()
    for path in (
        "/nowhere",
        "/api/channels",
        "/",
        "/ws/analytics",
        "/login",
    ):  # where no query counts
        await raw(
            hub.port,
            f"GET {path}?token={good[0]} HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n\r\n".encode(),
        )


async def test_two_different_tokens_are_one_too_many(hub: AnalyticsHub, watch: Watch) -> None:
    one, other = watch.secret(token()), watch.secret(token("bob", "viewer"))
    async with await Peer.open(hub.port, one, target=f"/ws/analytics?token={other}") as peer:
        assert peer.status == 400
    assert watch.refused("conflicting_tokens") == 1


async def test_without_a_token_there_is_nothing(hub: AnalyticsHub, watch: Watch) -> None:
    async with await Peer.open(hub.port) as machine:
        assert machine.status == 401
    async with await Peer.open(hub.port, subprotocols=["keepline.v1"]) as page:
        assert await page.end() == 3501
        assert page.messages == []
    assert watch.refused("no_token") == 2


# origins and hosts


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://127.0.0.1.evil.example:{port}",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{port}@evil.example",
        "http://evil.example/http://127.0.0.1:{port}",
        "null",
        "file://",
        "",
    ],
)
async def test_a_page_of_another_origin_gets_nothing(
    hub: AnalyticsHub, watch: Watch, origin: str
) -> None:
    origin = origin.format(port=hub.port)
    good = watch.secret(token())
    async with await Peer.open(hub.port, good, fields=[("Origin", origin)]) as peer:
        assert await peer.end() == 3504
        assert peer.messages == []
    async with ClientSession(headers={"Authorization": f"Bearer {good}", "Origin": origin}) as http:
        async with http.get(hub.url + "/api/channels") as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
        async with http.post(hub.url + "/login", json={}) as answer:
            assert answer.status == 403
        async with http.options(hub.url + "/api/publish") as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers
    assert watch.refused("bad_origin") >= 3


async def test_the_hubs_own_page_may(hub: AnalyticsHub, watch: Watch) -> None:
    origin = f"http://127.0.0.1:{hub.port}"
    offered = ["keepline.v1", f"bearer.{watch.secret(token())}"]
    async with await Peer.open(hub.port, subprotocols=offered, fields=[("Origin", origin)]) as peer:
        await peer.alive()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:{port}", "evil.example:{port}", "127.0.0.2"]
)
async def test_a_name_that_is_not_the_hubs_reaches_no_route(
    hub: AnalyticsHub, watch: Watch, host: str
) -> None:
    name = host.format(port=hub.port)
    good = watch.secret(token())
    answers = []
    for path in ("/", "/healthz", "/metrics", "/api/channels", "/ws/analytics"):
        request = handshake(hub.port, good, host=name, first=f"GET {path} HTTP/1.1")
        answers.append((await raw(hub.port, request)).status)
    assert answers == [421] * 5
    assert watch.refused("bad_host") == 5


# roles


@pytest.mark.parametrize(
    "name",
    [
        "exposure-updates",
        "Exposure-Updates",
        "EXPOSURE-UPDATES",
        "exposure-updates ",
        " exposure-updates",
        "exposure-updates\u0000",
        "exposure-updates\n",
        "alerts\nexposure-updates",
        "alerts/../exposure-updates",
        "./exposure-updates",
        "exposure\u2010updates",
        "ｅxposure-updates",
        "exposure-update*",
        "*",
        "$exposure-updates",
        "exposure-updates#",
        "exposure%2dupdates",
        "system",
        CANARY_CHANNEL.name,
        "keepline.canary",
        "__class__",
    ],
    ids=ascii,
)  # fmt: skip
async def test_no_spelling_of_a_channel_gives_more_than_the_role(
    hub: AnalyticsHub, watch: Watch, name: str
) -> None:
    async with await Peer.open(hub.port, watch.secret(token("bob", "viewer"))) as viewer:
        viewer.ask(action="subscribe", channels=["alerts", name])
        error = await viewer.kind("error")
        assert error["data"]["code"] in {"forbidden", "unknown_channel"}
        hub.publish("exposure-updates", "exposure-change", {"totalExposure": 1})
        hub.publish("system", "state", {"state": "x"})
        await hub.publish_durable("alerts", "alert", {"title": "for all"})
        await viewer.kind("alert")
        viewer.ask(action="subscribe", channels=[name], resume={name: {"epoch": "x", "offset": 0}})
        await viewer.kind("error")
        await viewer.alive()
        channels = {
            message.get("channel") for message in viewer.messages if message["type"] != "error"
        }
        assert channels <= {None, "alerts"}
        assert hub.broadcaster.clients
        for client in hub.broadcaster.clients.values():
            if client.link.__class__.__name__ == "Connection":
                assert set(client.channels()) <= {"alerts"}


@pytest.mark.parametrize(
    "path",
    [
        "/api/history/exposure-updates",
        "/api/history/%65xposure-updates",
        "/api/history/alerts%2f..%2fexposure-updates",
        "/api/history/alerts/../exposure-updates",
        "/api/history/exposure-updates%00",
        "/api/history/" + CANARY_CHANNEL.name,
        "/api/clients",
    ],
)
async def test_http_gives_no_more_than_the_role(hub: AnalyticsHub, watch: Watch, path: str) -> None:
    hub.publish("exposure-updates", "exposure-change", {"totalExposure": 424242})
    viewer = watch.secret(token("bob", "viewer"))
    answer = await raw(
        hub.port,
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\nConnection: close\r\n"
        f"Authorization: Bearer {viewer}\r\n\r\n".encode(),
        until=b"never",
    )
    assert answer.status in (400, 403, 404)
    assert b"424242" not in answer.body


@pytest.mark.parametrize(
    "role", ["viewer", "trader", "nobody", "", "Admin", "admin ", "service,admin"]
)
async def test_who_may_not_publish_or_acknowledge_does_not(
    hub: AnalyticsHub, watch: Watch, role: str
) -> None:
    good = watch.secret(token("eve", role))
    message = {"channel": "alerts", "type": "alert", "data": {"title": "forged"}}
    async with ClientSession(headers={"Authorization": f"Bearer {good}"}) as http:
        async with http.post(hub.url + "/api/publish", json=message) as answer:
            told = await answer.json()
            assert told.get("accepted", 0) == 0, told
        async with http.post(hub.url + "/api/alerts/1/ack") as answer:
            assert answer.status == (501 if role == "trader" else 401 if not role else 403)
    assert hub.registrar.channels["alerts"].offset == 0


# sizes


def post(hub: AnalyticsHub, path: str, *fields: str, bearer: str = "") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{hub.port}", *fields]
    if bearer:
        lines.append(f"Authorization: Bearer {bearer}")
    return "\r\n".join([*lines, "", ""]).encode()


async def test_a_body_that_is_too_large_is_not_taken(hub: AnalyticsHub, watch: Watch) -> None:
    good = watch.secret(token("bot", "service"))
    for path, size in (("/api/publish", 1 << 40), ("/login", 5000), ("/api/publish", 4_194_305)):
        answer = await raw(hub.port, post(hub, path, f"Content-Length: {size}", bearer=good))
        assert answer.status == 413, path
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    head = post(hub, "/login", "Transfer-Encoding: chunked")
    assert (await raw(hub.port, head + chunk * 3)).status == 413  # and there is no end of it
    packed = gzip.compress(b" " * (1 << 24))
    fields = ("Content-Encoding: gzip", f"Content-Length: {len(packed)}")
    head = post(hub, "/api/publish", *fields, bearer=good)
    assert (await raw(hub.port, head + packed)).status == 415
    await served(hub)


async def test_heads_that_are_too_large_are_refused(hub: AnalyticsHub, watch: Watch) -> None:
    long = watch.secret("s3cret-" * 20_000)
    start = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n"
    for request in (
        start + f"X-Long: {long}\r\n\r\n",
        start + f"Authorization: Bearer {long}\r\n\r\n",
        start + f"Cookie: {long}\r\n\r\n",
        f"GET /{long} HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n\r\n",
        start + "".join(f"X-{number}: y\r\n" for number in range(5000)) + "\r\n",
        start + f"{long}: x\r\n\r\n",
        start + f"X: y\r\n {long}\r\n\r\n",
    ):
        answer = await raw(hub.port, request.encode())
        assert answer.status in (0, 400, 414, 431), request[:80]
    await served(hub)
    assert watch.counted('keepline_hub_connections_total{outcome="no_request"}') == 7


async def test_a_head_without_an_end_is_cut(hub: AnalyticsHub, watch: Watch) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    writer.write(f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n".encode())
    with contextlib.suppress(ConnectionError):
        for number in range(20_000):  # 20 MB, were it taken
            writer.write(f"X-{number}: {'y' * 1000}\r\n".encode())
            await writer.drain()
        pytest.fail("all of it was taken")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await served(hub)


async def test_messages_and_bombs_over_the_limit_end_only_their_connection(
    hub: AnalyticsHub, watch: Watch
) -> None:
    async with await Peer.open(hub.port, watch.secret(token())) as witness:
        for attack, deflate in (
            (frame(TEXT, b" " * 300_000), None),
            (frame(TEXT, deflated(b" " * (64 << 20)), rsv=4), PerMessageDeflate()),
        ):
            async with await Peer.open(hub.port, token(), deflate=deflate) as peer:
                peer.write(attack)
                assert await peer.end() == 1009
        await witness.alive()
    assert watch.counted('keepline_hub_closed_total{code="1009"}') == 2


# time


async def test_who_never_finishes_a_head_is_cut_and_others_are_served(
    house: Callable[..., AnalyticsHub], watch: Watch
) -> None:
    async with house(handshake_timeout_seconds=0.3) as hub:
        starts = [
            b"",
            b"G",
            b"GET / HTTP/1.1\r\nHost: x",
            handshake(hub.port)[:-4],
            handshake(hub.port)[:-2],
        ]
        waiting = [asyncio.open_connection("127.0.0.1", hub.port) for _ in range(50)]
        pairs = await asyncio.gather(*waiting)
        for at, (_, writer) in enumerate(pairs):
            writer.write(starts[at % len(starts)])
        await served(hub)

        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        await asyncio.gather(*(cut(*pair) for pair in pairs))
        await served(hub)
    # the whole head among them is a request
    assert watch.counted('keepline_hub_connections_total{outcome="no_request"}') >= 40
    assert "No request came" in watch.said()


async def test_who_dribbles_a_head_is_cut(house: Callable[..., AnalyticsHub], watch: Watch) -> None:
    async with house(handshake_timeout_seconds=0.3) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        ended = asyncio.ensure_future(reader.read())
        while not ended.done():  # a byte whenever the hub has had time to look
            writer.write(b"y")
            await asyncio.wait({ended}, timeout=0.02)
        with contextlib.suppress(ConnectionError):
            await ended
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("path", ["/login", "/api/publish"])
async def test_who_dribbles_a_body_is_told_and_cut(
    house: Callable[..., AnalyticsHub], watch: Watch, path: str
) -> None:
    async with house(handshake_timeout_seconds=0.3) as hub:
        request = post(
            hub, path, "Content-Length: 100", bearer=watch.secret(token("bot", "service"))
        )
        assert (await raw(hub.port, request + b"{")).status == 408
        await served(hub)


async def test_who_is_refused_and_stays_is_cut(
    house: Callable[..., AnalyticsHub], watch: Watch
) -> None:
    clock = ManualClock()
    async with house(clock) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(handshake(hub.port, sec_websocket_protocol="keepline.v1"))
        await reader.readuntil(b"\r\n\r\n")
        head = await reader.readexactly(2)
        assert head[0] == 0x80 | CLOSE
        writer.write(frame(TEXT, b"{}"))  # and goes on talking
        ended = asyncio.ensure_future(reader.read())
        while not ended.done():
            clock.advance(1)
            await asyncio.wait({ended}, timeout=0.01)
        with contextlib.suppress(ConnectionError):
            await ended
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_who_does_not_answer_pings_is_closed(
    house: Callable[..., AnalyticsHub], watch: Watch
) -> None:
    clock = ManualClock()
    async with house(clock) as hub:
        issued = await hub.gate.sign_in("ann", PASSWORD, address="127.0.0.1")
        good = watch.secret(issued.token)
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(handshake(hub.port, good))
        await reader.readuntil(b"\r\n\r\n")
        ended = asyncio.ensure_future(reader.read())
        while not ended.done():
            clock.advance(1)
            await asyncio.wait({ended}, timeout=0.01)
        said = await ended
        assert (3011).to_bytes(2) in said
        writer.close()
    assert watch.counted('keepline_hub_closed_total{code="3011"}') == 1


# floods


async def sign_in(
    hub: AnalyticsHub, http: ClientSession, name: str, password: str
) -> tuple[int, Any, Any]:
    async with http.post(
        hub.url + "/login", json={"username": name, "password": password}
    ) as answer:
        return answer.status, await answer.json(), answer.headers.get("Retry-After")


async def test_guessing_one_name_is_throttled_and_a_stranger_cannot_tell_who_exists(
    hub: AnalyticsHub, watch: Watch
) -> None:
    async with ClientSession() as http:
        for name in ("ann", "no-such-user"):
            told = []
            for _ in range(8):
                status, body, wait = await sign_in(hub, http, name, WRONG)
                told.append((status, body["error"], wait is not None))
            assert told[:5] == [(401, "bad_credentials", False)] * 5
            assert told[5:] == [(429, "throttled", True)] * 3
        assert (await sign_in(hub, http, "ann", PASSWORD))[0] == 429  # locked is locked
        status, body, _ = await sign_in(hub, http, "bob", PASSWORD)
        assert status == 200
        watch.secret(body["token"])
    assert watch.refused("bad_credentials") == 10
    assert watch.refused("throttled") == 7
    assert "no-such-user" not in watch.said()


async def test_guessing_many_names_from_one_address_is_throttled(
    hub: AnalyticsHub, watch: Watch
) -> None:
    async with ClientSession() as http:
        statuses = [(await sign_in(hub, http, f"user-{n}", WRONG))[0] for n in range(30)]
    assert statuses == [401] * 20 + [429] * 10
    assert watch.refused("throttled") == 10


async def test_many_sign_ins_at_once_are_refused_rather_than_queued(
    hub: AnalyticsHub, watch: Watch
) -> None:
    async with ClientSession() as http:
        done = await asyncio.gather(*(sign_in(hub, http, f"user-{n}", WRONG) for n in range(40)))
        assert {status for status, _, _ in done} <= {401, 429}
        busy = [wait for status, body, wait in done if body["error"] == "busy"]
        assert busy
        assert all(busy)
        await served(hub)
    assert watch.refused("busy") == len(busy)


BAD_LOGINS = [
    b"",
    b"[]",
    b"null",
    b"{",
    b'{"username":"ann"}',
    b'{"username":["ann"],"password":{"$ne":1}}',
    b'{"username":"ann","password":null}',
    b'{"username":7,"password":7}',
    b'{"username":"ann\\u0000","password":"x"}',
    b'{"username":"","password":""}',
    b"username=ann&password=x",
    b"[" * 4000,
    b'{"username":"\xff","password":"x"}',
]


@pytest.mark.parametrize("body", BAD_LOGINS, ids=lambda body: repr(body)[:40])
async def test_a_sign_in_that_makes_no_sense_is_refused(
    hub: AnalyticsHub, watch: Watch, body: bytes
) -> None:
    async with ClientSession() as http, http.post(hub.url + "/login", data=body) as answer:
        assert answer.status in (400, 401)
        assert "token" not in await answer.json()


async def test_one_user_has_so_many_connections(
    house: Callable[..., AnalyticsHub], watch: Watch
) -> None:
    async with house(max_connections_per_user=3) as hub, contextlib.AsyncExitStack() as stack:
        good = watch.secret(token("bob", "viewer"))
        peers = [await stack.enter_async_context(await Peer.open(hub.port, good)) for _ in range(3)]
        async with await Peer.open(hub.port, good) as machine:
            assert machine.status == 429
            assert int(machine.fields["retry-after"]) >= 1
        offered = ["keepline.v1", f"bearer.{good}"]
        async with await Peer.open(hub.port, subprotocols=offered) as page:
            assert await page.end() == 3015
        await served(hub)
        peers[0].write(frame(CLOSE, b"\x03\xe8"))
        await peers[0].end()
        async with await Peer.open(hub.port, good) as again:  # a place that is left is free
            await again.alive()
    assert watch.counted('keepline_hub_connections_total{outcome="turned_away"}') == 2


async def test_one_address_has_so_many_connections(
    house: Callable[..., AnalyticsHub], watch: Watch
) -> None:
    async with house(max_connections_per_address=5) as hub, contextlib.AsyncExitStack() as stack:
        for number in range(5):
            peer = await Peer.open(hub.port, watch.secret(token(f"user-{number}", "viewer")))
            await stack.enter_async_context(peer)
        async with await Peer.open(hub.port, watch.secret(token("another"))) as machine:
            assert machine.status == 429
        answer = await raw(
            hub.port, f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n\r\n".encode()
        )
        assert answer.status == 200


async def test_sockets_that_say_nothing_are_counted_too(
    house: Callable[..., AnalyticsHub], watch: Watch
) -> None:
    # nothing else cuts them while this test runs
    async with house(max_connections_per_address=10, handshake_timeout_seconds=300) as hub:
        pairs = [await asyncio.open_connection("127.0.0.1", hub.port) for _ in range(110)]
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        for _, each in [*pairs, (reader, writer)]:
            each.close()
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()
        await served(hub)
    assert watch.counted('keepline_hub_connections_total{outcome="turned_away"}') == 1
    assert "Too many connections" in watch.said()


async def test_a_flood_of_messages_ends_its_connection_alone(
    house: Callable[..., AnalyticsHub], watch: Watch
) -> None:
    async with (
        house(inbound_rate=100) as hub,
        await Peer.open(hub.port, watch.secret(token("witness"))) as witness,
        await Peer.open(hub.port, watch.secret(token("eve", "viewer"))) as eve,
    ):
        eve.write(frame(TEXT, b'{"action":"ping"}') * 2000)
        assert await eve.end() == 3013
        await witness.alive()
    assert watch.counted("keepline_hub_rate_limited_total") >= 10
    assert watch.said().count("rate limit exceeded") >= 1


async def test_a_flood_of_pings_is_a_flood(
    house: Callable[..., AnalyticsHub], watch: Watch
) -> None:
    async with house(inbound_rate=100) as hub, await Peer.open(hub.port, token("eve")) as eve:
        eve.write(frame(9, b"x") * 2000)
        assert await eve.end() == 3013


# what answers say


async def test_no_answer_says_what_stands_behind_the_hub(hub: AnalyticsHub, watch: Watch) -> None:
    host = f"Host: 127.0.0.1:{hub.port}\r\nConnection: close\r\n"
    for request in (
        f"GET / HTTP/1.1\r\n{host}\r\n",
        f"GET /nowhere HTTP/1.1\r\n{host}\r\n",
        f"DELETE /login HTTP/1.1\r\n{host}\r\n",
        f"GET /api/channels HTTP/1.1\r\n{host}\r\n",
    ):
        answer = await raw(hub.port, request.encode())
        assert answer.fields["server"] == "keepline"
        assert answer.fields["x-content-type-options"] == "nosniff"
        assert answer.fields["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.fields["content-security-policy"]
        assert answer.fields["referrer-policy"] == "no-referrer"
    for request in (
        "GARBAGE\r\n\r\n",
        f"GET /%zz HTTP/1.1\r\n{host}\r\n",
        "GET / HTTP/9.9\r\n\r\n",
    ):
        answer = await raw(hub.port, request.encode(), until=b"never")
        assert answer.status in (0, 400, 404, 421, 505)
        for word in (b"aiohttp", b"Python", b"Traceback"):
            assert word not in answer.body
