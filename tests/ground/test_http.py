"""Claims about the one HTTP session, each against a real socket."""

import asyncio
import contextlib
import json
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import trustme

from keepline.errors import (
    APIError,
    Closed,
    ConfigError,
    PermanentError,
    ProtocolError,
    TransientError,
)
from keepline.http import BODY_LIMIT, Headers, HttpSession, Response, redacted_url

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server of plain sockets on loopback: it sees every byte and every connection that we make."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """The request line, the header fields in lower case, and the body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *fields = head.split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
    return line, headers, await reader.readexactly(int(headers.get("content-length", 0)))


def answer(body: bytes = b"{}", *, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def told(error: BaseException | None) -> str:
    """What a traceback would say of the error and of all that it is chained to."""
    lines = []
    while error is not None:
        lines += traceback.format_exception_only(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(lines)


class Recorder:
    """Answers every request with the same bytes and keeps what it saw."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            self.requests.append(await read_request(reader))
            writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            await writer.drain()

    @property
    def lines(self) -> list[str]:
        return [line for line, _, _ in self.requests]


@pytest.fixture
async def http() -> AsyncIterator[HttpSession]:
    async with HttpSession(timeout_seconds=20) as session:
        yield session


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "404 Not Found", "503 Busy"])
async def test_every_status_is_an_answer(http: HttpSession, status: str) -> None:
    async with raw_server(
        Recorder(answer(b'{"a": 1}', status=status, extra="X-Fault: yes\r\n"))
    ) as url:
        response = await http.request("GET", f"{url}/path?code=secret")
    assert response.status == int(status[:3])
    assert response.headers["x-FAULT"] == "yes"
    assert response.json() == {"a": 1}
    assert response.text == '{"a": 1}'
    assert response.url == f"{url}/path"


async def test_a_form_is_sent_urlencoded_and_named_so(http: HttpSession) -> None:
    recorder = Recorder(answer())
    async with raw_server(recorder) as url:
        await http.request("post", url, form={"code": "C0.abc@", "x": "a b"}, headers={"X-Y": "z"})
    line, headers, body = recorder.requests[0]
    assert line == "POST / HTTP/1.1"
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert headers["x-y"] == "z"
    assert headers["user-agent"].startswith("keepline/")
    assert parse_qs(body.decode()) == {"code": ["C0.abc@"], "x": ["a b"]}


async def test_json_is_sent_as_json_and_params_join_the_query(http: HttpSession) -> None:
    recorder = Recorder(answer())
    async with raw_server(recorder) as url:
        await http.request("POST", f"{url}/a?b=%40", params={"c": "d e"}, json={"k": [1]})
        await http.request("POST", f"{url}/a", params={"c": "d"})
    line, headers, body = recorder.requests[0]
    assert line == "POST /a?b=%40&c=d+e HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"k": [1]}
    assert recorder.lines[1] == "POST /a?c=d HTTP/1.1"


async def test_content_is_sent_as_it_is(http: HttpSession) -> None:
    recorder = Recorder(answer())
    async with raw_server(recorder) as url:
        fields = {"Content-Type": "application/x-ndjson"}
        await http.request("POST", url, content=b"1\n2\n", headers=fields)
        await http.request("POST", url, content=b"")
    kinds = [headers["content-type"] for _, headers, _ in recorder.requests]
    assert kinds == ["application/x-ndjson", "application/octet-stream"]
    assert [body for _, _, body in recorder.requests] == [b"1\n2\n", b""]


async def test_two_bodies_are_a_mistake(http: HttpSession) -> None:
    with pytest.raises(TypeError, match="one body"):
        await http.request("POST", "http://127.0.0.1:1", json={}, form={})
    with pytest.raises(TypeError, match="one body"):
        await http.request("POST", "http://127.0.0.1:1", content=b"", form={})


async def test_cookies_are_not_kept(http: HttpSession) -> None:
    recorder = Recorder(answer(extra="Set-Cookie: session=secret\r\n"))
    async with raw_server(recorder) as url:
        await http.request("GET", url)
        await http.request("GET", url)
    assert all("cookie" not in headers for _, headers, _ in recorder.requests)


class DropsTheWarmConnection:
    """Answers the first request and closes the connection when the second arrives on it, without an answer."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for served in range(2):
            line, _, _ = await read_request(reader)
            self.lines.append(line)
            if served or (len(self.lines) > 2 and "GET" not in line):
                return
            writer.write(answer())
            await writer.drain()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "PATCH"])
async def test_a_mutation_is_sent_once_when_a_warm_connection_drops(
    http: HttpSession, method: str
) -> None:
    server = DropsTheWarmConnection()
    async with raw_server(server) as url:
        await http.request("GET", f"{url}/warm")
        with pytest.raises(TransientError, match="without an answer") as caught:
            await http.request(method, f"{url}/order", form={"a": "b"})
    assert server.lines == ["GET /warm HTTP/1.1", f"{method} /order HTTP/1.1"]
    assert caught.value.sent is True
    assert caught.value.category == "network"
    assert caught.value.endpoint == f"{method} /order"


async def test_a_read_may_be_repeated_when_a_warm_connection_drops(http: HttpSession) -> None:
    server = DropsTheWarmConnection()
    async with raw_server(server) as url:
        await http.request("GET", f"{url}/warm")
        response = await http.request("GET", f"{url}/read")
    assert response.status == 200
    assert server.lines == ["GET /warm HTTP/1.1", *["GET /read HTTP/1.1"] * 2]


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
async def test_a_redirect_of_a_mutation_is_the_answer(http: HttpSession, status: str) -> None:
    recorder = Recorder(answer(status=status, extra="Location: /elsewhere\r\n"))
    async with raw_server(recorder) as url:
        response = await http.request("POST", f"{url}/v1/oauth/token", form={"refresh_token": "r"})
    assert response.status == int(status[:3])
    assert recorder.lines == ["POST /v1/oauth/token HTTP/1.1"]


async def test_a_read_follows_redirects_and_keeps_its_authorization_at_home(
    http: HttpSession,
) -> None:
    foreign, seen = Recorder(answer(b'"far"')), []
    async with raw_server(foreign) as far:
        home = Recorder(answer(status="307 Temporary", extra=f"Location: {far}/x?code=secret\r\n"))
        async with raw_server(home) as url:
            response = await http.request("GET", url, headers={"Authorization": "Bearer secret"})
        seen = [headers for _, headers, _ in foreign.requests]
    assert response.url == f"{far}/x"
    assert response.json() == "far"
    assert ["authorization" in headers for headers in seen] == [False]


async def test_redirects_in_a_circle_are_permanent(http: HttpSession) -> None:
    async with raw_server(
        Recorder(answer(status="302 Found", extra="Location: /?code=hush\r\n"))
    ) as url:
        with pytest.raises(PermanentError, match="circle") as caught:
            await http.request("GET", f"{url}/?code=hush")
    assert "hush" not in told(caught.value)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_refused_connection_was_provably_not_sent(http: HttpSession) -> None:
    with pytest.raises(
        TransientError, match=r"cannot connect to 127\.0\.0\.1:\d+: Connection refused$"
    ) as caught:
        await http.request(
            "POST", f"http://127.0.0.1:{unused_port()}/token?code=hush", form={"a": "b"}
        )
    assert caught.value.sent is False
    assert caught.value.category == "network"
    assert caught.value.endpoint == "POST /token"
    assert "hush" not in told(caught.value)


async def test_an_unknown_name_was_provably_not_sent(http: HttpSession) -> None:
    with pytest.raises(TransientError, match=r"the name no-such\.invalid was not found") as caught:
        await http.request("POST", "http://no-such.invalid/token")
    assert caught.value.sent is False


async def test_a_connection_that_closes_at_once_counts_as_sent(http: HttpSession) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with raw_server(close) as url:
        with pytest.raises(TransientError) as caught:
            await http.request("POST", url, form={"a": "b"})
    assert caught.value.sent is True
    assert caught.value.category == "network"


async def test_silence_is_a_timeout_and_counts_as_sent(http: HttpSession) -> None:
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()

    async with raw_server(silent) as url:
        with pytest.raises(TransientError, match="no answer in time") as caught:
            await http.request("POST", url, form={"a": "b"}, timeout_seconds=0.05)
        await gone.wait()
    assert caught.value.category == "timeout"
    assert caught.value.sent is True


async def test_a_handshake_that_never_ends_was_not_sent(http: HttpSession) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(silent) as url:
        with pytest.raises(TransientError, match="in time") as caught:
            await http.request("POST", url.replace("http", "https"), timeout_seconds=0.05)
    assert caught.value.category == "timeout"
    assert caught.value.sent is False


async def test_half_an_answer_is_transient(http: HttpSession) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"access_token"')
        await writer.drain()

    async with raw_server(half) as url:
        with pytest.raises(TransientError, match="middle of the answer") as caught:
            await http.request("POST", url, form={"a": "b"})
    assert caught.value.sent is True


async def test_what_is_not_http_is_transient(http: HttpSession) -> None:
    async with raw_server(Recorder(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")) as url:
        with pytest.raises(TransientError, match="not HTTP") as caught:
            await http.request("POST", f"{url}/a?code=hush")
    assert "hush" not in told(caught.value)


async def test_a_reset_in_the_answer_is_transient(http: HttpSession) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.transport.abort()

    async with raw_server(reset) as url:
        with pytest.raises(TransientError) as caught:
            await http.request("PUT", url, json={"a": 1})
    assert caught.value.sent is True


async def test_an_answer_beyond_the_limit_is_cut_off(http: HttpSession) -> None:
    async with raw_server(Recorder(answer(b"x" * (BODY_LIMIT + 1)))) as url:
        with pytest.raises(TransientError, match="larger than 4 MiB") as caught:
            await http.request("POST", f"{url}/big")
    assert caught.value.status == 200
    assert caught.value.endpoint == "POST /big"


async def test_an_answer_at_the_limit_is_read_whole(http: HttpSession) -> None:
    async with raw_server(Recorder(answer(b"x" * BODY_LIMIT))) as url:
        assert len((await http.request("GET", url)).body) == BODY_LIMIT


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_an_unknown_authority_is_permanent_with_words(http: HttpSession) -> None:
    tls = server_context(trustme.CA(), "127.0.0.1")
    async with raw_server(Recorder(answer()), tls=tls) as url:
        with pytest.raises(PermanentError, match=r"not trusted \(.+SSL_CERT_FILE") as caught:
            await http.request("POST", url)
    assert caught.value.sent is False


async def test_a_certificate_of_another_name_is_permanent() -> None:
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    tls = server_context(authority, "other.example")
    async with (
        HttpSession(ssl_context=trust) as http,
        raw_server(Recorder(answer()), tls=tls) as url,
    ):
        with pytest.raises(PermanentError, match="not trusted") as caught:
            await http.request("POST", url)
    assert caught.value.category == "network"


async def test_an_authority_of_your_own_is_trusted_when_named() -> None:
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    tls = server_context(authority, "127.0.0.1")
    async with (
        HttpSession(ssl_context=trust) as http,
        raw_server(Recorder(answer()), tls=tls) as url,
    ):
        assert (await http.request("POST", url)).status == 200


async def test_tls_to_a_plain_port_is_a_failed_handshake(http: HttpSession) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer())
        await writer.drain()

    async with raw_server(plain) as url:
        with pytest.raises(TransientError, match="TLS handshake") as caught:
            await http.request("POST", url.replace("http", "https"))
    assert caught.value.sent is False


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/x",
        "api.example.com",
        "http://",
        "https:///x",
        "http://[::1",
        "http://h:99999/",
    ],
)
async def test_an_address_that_is_none_is_a_configuration_error(
    http: HttpSession, url: str
) -> None:
    with pytest.raises(ConfigError, match="http:// or https://"):
        await http.request("GET", url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:hush@h.example:443/a/b?code=hush#hush", "https://h.example/a/b"),
        ("http://h.example:8080", "http://h.example:8080/"),
        ("http://[::1]:80/x", "http://[::1]/x"),
    ],
)
def test_a_shown_address_has_no_secret_part(url: str, shown: str) -> None:
    assert redacted_url(url) == shown


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="positive number of seconds"):
        HttpSession(timeout_seconds=seconds)


async def test_a_cancelled_request_stays_cancelled(http: HttpSession) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()

    async with raw_server(silent) as url:
        task = asyncio.create_task(http.request("POST", url))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_it_opens_again_after_close_and_tells_its_state() -> None:
    http = HttpSession()
    assert "not connected" in repr(http)
    await http.close()
    recorder = Recorder(answer())
    async with raw_server(recorder) as url:
        await http.request("GET", url)
        assert "open" in repr(http)
        await http.close()
        await http.request("GET", url)
        await http.close()
    assert recorder.connections == 2


def test_a_session_of_another_loop_says_so() -> None:
    http = HttpSession()

    async def first() -> asyncio.AbstractEventLoop:
        async with raw_server(Recorder(answer())) as url:
            await http.request("GET", url)
        return asyncio.get_running_loop()

    async def second() -> None:
        with pytest.raises(Closed, match="another event loop"):
            await http.request("GET", "http://127.0.0.1:1")

    with asyncio.Runner() as one, asyncio.Runner() as two:
        one.run(first())
        two.run(second())
        one.run(http.close())


def test_an_answer_that_is_not_json_says_where_it_came_from() -> None:
    for body in (b"<html>Access Denied</html>", b"\xff", b"[" * 100_000):
        response = Response(403, Headers(), body, "https://h/token")
        with pytest.raises(ProtocolError, match="https://h/token answered 403"):
            response.json()


def test_neither_bodies_nor_header_values_are_shown() -> None:
    response = Response(200, Headers({"Location": "?code=hush"}), b"hush", "https://h/")
    assert "hush" not in repr(response)


def test_header_fields_are_one_mapping_in_any_spelling() -> None:
    headers = Headers({"Retry-After": "3"})
    assert headers["RETRY-after"] == headers.get("retry-after") == "3"
    assert list(headers) == ["retry-after"]
    assert len(headers) == 1
    assert headers.get("Date") is None


def test_the_errors_are_api_errors() -> None:
    assert issubclass(TransientError, APIError)


async def test_neither_a_proxy_of_the_environment_nor_a_netrc_is_consulted(
    http: HttpSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password hunter2\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    proxy, recorder = Recorder(answer()), Recorder(answer())
    async with raw_server(proxy) as other, raw_server(recorder) as url:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, other)
        assert (await http.request("POST", f"{url}/token")).status == 200
    assert proxy.lines == []
    assert recorder.lines == ["POST /token HTTP/1.1"]
    assert "authorization" not in recorder.requests[0][1]
