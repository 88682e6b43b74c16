"""Claims about the sandbox on a socket."""

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from keepline.errors import ConfigError, TransientError
from keepline.http import HttpSession, Response
from keepline.sandbox.server import COUNTERS, SandboxServer
from keepline.testing import ManualClock

BASIC = {"Authorization": "Basic " + base64.b64encode(b"sandbox-key:sandbox-secret").decode()}
FORM_TYPE = "application/x-www-form-urlencoded"
FORM = {"Content-Type": FORM_TYPE}
MULTIPART = "multipart/form-data; boundary=x"
PAGE = {"client_id": "sandbox-key", "response_type": "code"}
LOGIN = {"userName": "sandbox", "apiKey": "sandbox-api-key"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def sandbox(clock: ManualClock) -> AsyncIterator[SandboxServer]:
    async with SandboxServer(clock=clock) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[HttpSession]:
    async with HttpSession() as session:
        yield session


async def refresh(http: HttpSession, sandbox: SandboxServer, token: str) -> Response:
    form = {"grant_type": "refresh_token", "refresh_token": token}
    return await http.request("POST", f"{sandbox.url}/v1/oauth/token", headers=BASIC, form=form)


async def accounts(http: HttpSession, sandbox: SandboxServer, token: str) -> int:
    url = f"{sandbox.url}/trader/v1/accounts/accountNumbers"
    return (await http.request("GET", url, headers={"Authorization": f"Bearer {token}"})).status


async def test_a_token_is_renewed_over_the_socket(
    http: HttpSession, sandbox: SandboxServer
) -> None:
    issued = sandbox.issue()
    answer = await refresh(http, sandbox, issued.refresh_token)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert sandbox.accepts(answer.json()["access_token"])
    assert await accounts(http, sandbox, answer.json()["access_token"]) == 200
    assert await accounts(http, sandbox, "x") == 401
    assert sandbox.stats()["refreshes"] == 1


async def test_what_it_issues_is_a_whole_token(sandbox: SandboxServer, clock: ManualClock) -> None:
    token = sandbox.issue()
    assert token.expires_at == clock.wall() + timedelta(seconds=1800)
    assert token.signin_deadline == clock.wall() + timedelta(days=7)
    assert token.generation == 0
    assert sandbox.accepts(token.access_token)
    clock.advance(1800)
    assert not sandbox.accepts(token.access_token)


async def test_the_authorize_page_redirects_a_browser(
    http: HttpSession, sandbox: SandboxServer
) -> None:
    target = f"{sandbox.url}/api/Status/ping"
    query = {"client_id": "sandbox-key", "redirect_uri": target, "response_type": "code"}
    answer = await http.request("GET", f"{sandbox.url}/v1/oauth/authorize", params=query)
    assert (answer.url, answer.text) == (target, "pong")
    assert sandbox.stats()["authorizations"] == 1


async def test_projectx_logs_in_validates_and_logs_out(
    http: HttpSession, sandbox: SandboxServer
) -> None:
    async def ask(path: str, token: str = "", **body: object) -> dict[str, object]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"{sandbox.url}/api/Auth/{path}"
        answer = (await http.request("POST", url, headers=headers, json=body or None)).json()
        assert isinstance(answer, dict)
        return answer

    token = str((await ask("loginKey", **LOGIN))["token"])
    newer = str((await ask("validate", token))["newToken"])
    assert await accounts(http, sandbox, newer) == 200
    assert (await ask("logout", newer))["success"] is True
    assert (await ask("validate", newer))["success"] is False
    assert await accounts(http, sandbox, newer) == 401
    stats = sandbox.stats()
    assert (stats["logins"], stats["validations"], stats["logouts"]) == (1, 1, 1)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 60_000])
async def test_a_login_that_is_no_json_object_is_a_bad_request(
    sandbox: SandboxServer, body: bytes
) -> None:
    answer = await raw(sandbox, b"POST /api/Auth/loginKey", b"", body)
    assert answer.startswith(b"HTTP/1.1 400")


async def raw(sandbox: SandboxServer, line: bytes, headers: bytes, body: bytes = b"") -> bytes:
    """One request in bytes of the test's own, one answer."""
    host = b"" if b"Host:" in headers else b"Host: localhost\r\n"
    length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sandbox.url.rpartition(":")[2]))
    writer.write(line + b" HTTP/1.1\r\n" + host + headers + length + body)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "host", [b"evil.example", b"evil.example:80", b"127.0.0.1.evil.example", b"[", b""]
)
@pytest.mark.parametrize("line", [b"GET /stats", b"POST /faults", b"GET /api/Status/ping"])
async def test_another_host_name_is_refused(
    sandbox: SandboxServer, line: bytes, host: bytes
) -> None:
    answer = await raw(sandbox, line, b"Host: " + host + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 421")
    assert sandbox.stats()["requests"] == 0


@pytest.mark.parametrize("host", [b"127.0.0.1", b"localhost:1", b"[::1]:8787"])
async def test_its_own_names_are_served(sandbox: SandboxServer, host: bytes) -> None:
    answer = await raw(sandbox, b"GET /api/Status/ping", b"Host: " + host + b"\r\n")
    assert answer.endswith(b"pong")


async def test_a_page_of_another_site_cannot_steer_it(sandbox: SandboxServer) -> None:
    body = b'{"fault": "outage"}'
    answer = await raw(sandbox, b"POST /faults", b"Origin: https://evil.example\r\n", body)
    assert answer.startswith(b"HTTP/1.1 403")
    answer = await raw(sandbox, b"POST /faults", b"Origin: http://localhost:3\r\n", body)
    assert answer.startswith(b"HTTP/1.1 201")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "broker.example", ""])
def test_it_listens_on_loopback_unless_told(host: str) -> None:
    with pytest.raises(ConfigError, match="not a loopback address"):
        SandboxServer(host=host)


async def test_told_so_it_answers_strangers_under_any_name() -> None:
    async with SandboxServer(host="0.0.0.0", allow_remote=True) as server:
        answer = await raw(server, b"GET /api/Status/ping", b"Host: broker.example\r\n")
    assert answer.endswith(b"pong")


async def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"cannot listen on 127.0.0.1:{port} \(Address already in use\)"
        ) as caught:
            await SandboxServer(port=port).start()
    assert caught.value.key == "port"


async def test_it_tells_where_it_is() -> None:
    server = SandboxServer(host="::1")
    assert "not started" in repr(server)
    await server.stop()
    async with server:
        assert server.url.startswith("http://[::1]:")
        assert server.url in repr(server)


async def test_a_lost_answer_spends_the_refresh_token(
    http: HttpSession, sandbox: SandboxServer
) -> None:
    token = sandbox.issue().refresh_token
    sandbox.fault("answer_lost")
    with pytest.raises(TransientError) as caught:
        await refresh(http, sandbox, token)
    assert caught.value.sent is True
    assert sandbox.stats()["refreshes"] == 1
    assert (await refresh(http, sandbox, token)).status == 400
    assert sandbox.stats()["reuses"] == 1


async def test_an_outage_does_no_work(http: HttpSession, sandbox: SandboxServer) -> None:
    token = sandbox.issue().refresh_token
    sandbox.fault("outage")
    for _ in range(2):
        with pytest.raises(TransientError):
            await refresh(http, sandbox, token)
    assert sandbox.clear_faults() == 1
    assert (await refresh(http, sandbox, token)).status == 200
    assert sandbox.stats()["reuses"] == 0


async def test_a_slow_answer_waits_on_the_sandbox_s_clock(
    http: HttpSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    sandbox.fault("slow", delay=3600)
    asked = asyncio.create_task(refresh(http, sandbox, sandbox.issue().refresh_token))
    await clock.until_asleep()
    assert sandbox.stats()["refreshes"] == 1  # the work is done at once
    assert not asked.done()
    clock.advance(3600)
    assert (await asked).status == 200


async def test_the_venue_s_clock_may_be_wrong(
    http: HttpSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    sandbox.fault("clock_skew", skew=7200)
    answer = await http.request("POST", f"{sandbox.url}/api/Auth/loginKey", json=LOGIN)
    assert parsedate_to_datetime(answer.headers["Date"]) == clock.wall() + timedelta(hours=2)


async def test_the_date_is_the_clock_s(http: HttpSession) -> None:
    clock = ManualClock(wall=datetime(2030, 1, 1, tzinfo=UTC))
    async with SandboxServer(clock=clock) as sandbox:
        answer = await http.request("GET", f"{sandbox.url}/api/Status/ping")
    assert parsedate_to_datetime(answer.headers["Date"]) == clock.wall()


async def test_an_answer_may_lack_its_refresh_token_and_rotation_may_be_switched(
    http: HttpSession, sandbox: SandboxServer
) -> None:
    token = sandbox.issue().refresh_token
    sandbox.fault("rotate", enabled=False)
    sandbox.fault("no_refresh_token")
    assert "refresh_token" not in (await refresh(http, sandbox, token)).json()
    assert (await refresh(http, sandbox, token)).json()["refresh_token"] == token


async def test_an_access_token_may_die_before_its_time(sandbox: SandboxServer) -> None:
    token = sandbox.issue()
    sandbox.fault("revoke", what="access")
    assert not sandbox.accepts(token.access_token)
    assert sandbox.stats()["revocations"] == 0
    sandbox.fault("revoke")
    assert sandbox.stats()["revocations"] == 1


async def test_faults_are_steered_over_http(
    http: HttpSession, sandbox: SandboxServer, clock: ManualClock
) -> None:
    url = f"{sandbox.url}/faults"
    told = await http.request("POST", url, json={"fault": "refuse", "count": 1, "seconds": None})
    assert told.status == 201
    assert told.json()["code"] == "invalid_grant"
    await http.request("POST", url, json={"fault": "5xx", "seconds": 60})
    clock.advance(10)
    listed = (await http.request("GET", url)).json()
    assert [(f["fault"], f["count"], f["seconds"]) for f in listed] == [
        ("refuse", 1, None),
        ("5xx", None, 50),
    ]
    answers = [await refresh(http, sandbox, "x") for _ in range(2)]
    assert [answer.status for answer in answers] == [400, 503]
    assert (await http.request("DELETE", url)).json() == {"cleared": 1}
    assert (await http.request("GET", f"{sandbox.url}/stats")).json() == sandbox.stats()
    assert sandbox.stats()["faults"] == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"fault": "nope"}, "no such fault: 'nope'"),
        ({"fault": ["a"]}, "no such fault"),
        ({"fault": "slow", "name": 1}, "unknown here"),
        ({"count": 1}, "a JSON object is needed"),
        ([], "a JSON object is needed"),
    ],
)
async def test_an_unknown_fault_is_answered_with_the_list(
    http: HttpSession, sandbox: SandboxServer, body: object, words: str
) -> None:
    answer = await http.request("POST", f"{sandbox.url}/faults", json=body)
    assert answer.status == 400
    assert words in answer.json()["error"]
    assert "answer_lost" in answer.json()["known"]


def test_the_reference_names_every_counter_and_address() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/reference/sandbox.md").read_text()
    assert all(f"`{name}`" in text for name in COUNTERS)
    routes = SandboxServer()._application().router.routes()
    assert all(f"`{route.method} {route.resource.canonical}`" in text
               for route in routes if route.resource and route.method != "HEAD")  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "more", "status"),
    [
        ("POST", "/v1/oauth/token", {"data": b"grant_type=%ff&a=\xff", "headers": FORM}, 400),
        ("POST", "/v1/oauth/token", {"data": b"a=b", "headers": {"Content-Type": f"{FORM_TYPE}; charset=none"}}, 400),
        ("POST", "/v1/oauth/token", {"data": b"\xff", "headers": {"Content-Type": MULTIPART}}, 400),
        ("POST", "/v1/oauth/token", {"headers": {"Authorization": "Basic \u00e9"}}, 401),
        ("POST", "/v1/oauth/token", {"data": b"a" * 100_000, "headers": FORM}, 413),
        ("POST", "/api/Auth/loginKey", {"data": b'{"userName": "\\ud800", "apiKey": 5}'}, 200),
        ("POST", "/api/Auth/loginKey", {"data": b"[" * 60_000}, 400),
        ("POST", "/api/Auth/validate", {"headers": {"Authorization": "Bearer \u00e9"}}, 200),
        ("GET", "/v1/oauth/authorize", {"params": {**PAGE, "redirect_uri": "http://[::1"}}, 400),
        ("GET", "/v1/oauth/authorize", {"params": {**PAGE, "redirect_uri": "http://127.0.0.1/\r\nX: y"}}, 400),
        ("GET", "/v1/oauth/authorize", {"params": {**PAGE, "redirect_uri": "javascript:alert(1)"}}, 400),
        ("POST", "/faults", {"data": b'{"fault": "clock_skew", "skew": 1e300}'}, 400),
        ("POST", "/faults", {"data": b"\xff"}, 400),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_answered_and_breaks_nothing(
    sandbox: SandboxServer, method: str, path: str, more: dict[str, Any], status: int
) -> None:
    async with ClientSession() as client:
        answer = await client.request(method, f"{sandbox.url}{path}", allow_redirects=False, **more)
        assert answer.status == status
        assert (await client.get(f"{sandbox.url}/api/Status/ping")).status == 200
