"""Key sets from an address and from a file: one fetch at a time, the last good one kept, rotation taken up."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed25519

from keepline.errors import ConfigError
from keepline.http import Headers, HttpSession, Response
from keepline.hub.jwks import JwksFile, JwksUrl, KeySet
from keepline.testing import ManualClock


def jwks(*kids: str) -> bytes:
    keys = []
    for kid in kids:
        public = ed25519.Ed25519PrivateKey.generate().public_key()
        keys.append(json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(public)) | {"kid": kid})
    return json.dumps({"keys": keys}).encode()


class Issuer:
    """An issuer on loopback; `gate` holds its answers back until it is set."""

    def __init__(self) -> None:
        self.body, self.status, self.asked = jwks("a"), 200, 0
        self.headers: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.url = ""

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked += 1
        self.arrived.set()
        await self.gate.wait()
        return web.Response(body=self.body, status=self.status, headers=self.headers)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    served = Issuer()
    app = web.Application()
    app.router.add_get("/keys", served.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield served
    served.gate.set()
    await runner.cleanup()


@pytest.fixture
async def http() -> AsyncIterator[HttpSession]:
    async with HttpSession() as session:
        yield session


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def keys_at(issuer: Issuer, http: HttpSession, clock: ManualClock) -> KeySet:
    return KeySet(JwksUrl(issuer.url, http), ["EdDSA"], clock=clock)


def known(keys: KeySet, kid: str) -> bool:
    return bool(keys.ring.find(kid, "EdDSA"))


async def test_keys_are_fetched_once_and_again_when_they_are_old(
    issuer: Issuer, http: HttpSession, clock: ManualClock
) -> None:
    keys = keys_at(issuer, http, clock)
    assert keys.failing
    assert len(keys.ring) == 0
    await keys.look()
    await keys.look()
    assert known(keys, "a")
    assert issuer.asked == 1
    issuer.body = jwks("b")
    clock.advance(600)
    await keys.look()
    assert (known(keys, "a"), known(keys, "b"), issuer.asked) == (False, True, 2)
    assert repr(keys) == f"<KeySet {issuer.url}, 1 keys>"


async def test_an_unknown_key_is_fetched_once_however_many_ask(
    issuer: Issuer, http: HttpSession, clock: ManualClock
) -> None:
    keys = keys_at(issuer, http, clock)
    await keys.look()
    issuer.body = jwks("a", "b")
    await asyncio.gather(*(keys.look(unknown=True) for _ in range(20)))
    assert known(keys, "b")
    await asyncio.gather(*(keys.look(unknown=True) for _ in range(20)))
    assert issuer.asked == 2


async def test_one_who_hangs_up_does_not_end_the_fetch_for_the_others(
    issuer: Issuer, http: HttpSession, clock: ManualClock
) -> None:
    keys = keys_at(issuer, http, clock)
    issuer.gate.clear()
    first, second = asyncio.create_task(keys.look()), asyncio.create_task(keys.look())
    await issuer.arrived.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    issuer.gate.set()
    await second
    assert known(keys, "a")
    assert issuer.asked == 1


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (503, b"{}", "answered 503"),
        (200, b"<html>", "is not JSON"),
        (200, b'{"keys":[]}', "holds no key for EdDSA"),
        (200, b" " * (300 * 1024), "is larger than 256 KiB"),
    ],
)
async def test_the_last_good_keys_stay_when_a_fetch_fails(
    issuer: Issuer,
    http: HttpSession,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: bytes,
    reason: str,
) -> None:
    keys = keys_at(issuer, http, clock)
    await keys.look()
    issuer.status, issuer.body = status, body
    clock.advance(600)
    await keys.look()
    assert keys.failing
    assert known(keys, "a")
    assert caplog.records[-1].message == "Issuer keys not fetched"
    assert reason in str(vars(caplog.records[-1]))
    await keys.look(unknown=True)  # it pauses after a failure
    assert issuer.asked == 2
    issuer.status, issuer.body = 200, jwks("b")
    clock.advance(1)
    await keys.look()
    assert not keys.failing
    assert known(keys, "b")


async def test_an_issuer_that_is_not_there_is_no_error_of_ours(
    http: HttpSession, clock: ManualClock, free_port: int
) -> None:
    keys = KeySet(JwksUrl(f"http://127.0.0.1:{free_port}/keys", http), ["EdDSA"], clock=clock)
    await keys.look()
    assert keys.failing


async def test_closing_ends_a_fetch_under_way(
    issuer: Issuer, http: HttpSession, clock: ManualClock
) -> None:
    keys = keys_at(issuer, http, clock)
    await keys.close()
    issuer.gate.clear()
    waiting = asyncio.create_task(keys.look())
    await issuer.arrived.wait()
    await keys.close()
    await waiting
    assert len(keys.ring) == 0


def test_plain_http_is_for_this_machine_only() -> None:
    session: Any = None
    for url in ("https://login.example/keys", "http://localhost:1/k", "http://[::1]:1/k"):
        JwksUrl(url, session)
    with pytest.raises(ConfigError, match="use https"):
        JwksUrl("http://login.example/keys", session)
    with pytest.raises(ConfigError):
        JwksUrl("file:///etc/passwd", session)


async def test_a_redirect_to_plain_http_elsewhere_is_not_followed_into_trust(
    clock: ManualClock,
) -> None:
    class Redirected(HttpSession):
        """What came after a redirect; no other machine is asked in a test."""

        async def request(self, method: str, url: str, **_: Any) -> Response:
            return Response(200, Headers(), jwks("a"), "http://login.example/keys")

    keys = KeySet(JwksUrl("https://login.example/keys", Redirected()), ["EdDSA"], clock=clock)
    await keys.look()
    assert keys.failing
    assert not known(keys, "a")


def test_an_address_is_shown_without_its_query() -> None:
    session: Any = None
    keys = KeySet(
        JwksUrl("https://user:word@login.example/keys?api_key=hidden", session), ["EdDSA"]
    )
    assert repr(keys) == "<KeySet https://login.example/keys, 0 keys>"


async def test_a_file_is_read_again_soon(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(jwks("a"))
    keys = KeySet(JwksFile(path), ["EdDSA"], clock=clock)
    await keys.look()
    assert known(keys, "a")
    path.write_bytes(jwks("b"))
    await keys.look(unknown=True)
    assert known(keys, "b")
    path.write_bytes(b" " * (300 * 1024))
    clock.advance(600)
    await keys.look()
    assert keys.failing
    path.unlink()
    clock.advance(600)
    await keys.look()
    assert keys.failing
    assert known(keys, "b")
