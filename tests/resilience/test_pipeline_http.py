"""The pipeline over real sockets: what leaves this machine, counted by a server that misbehaves."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from keepline.errors import OutcomeUnknown, PermanentError, TransientError
from keepline.http import HttpSession
from keepline.resilience import Pipeline, RetryPolicy

AT_ONCE = RetryPolicy(first_delay_seconds=0.0, throttled_delay_seconds=0.0)
LOST, LATE = b"lost", b"late"


def reply(body: bytes = b"{}", *, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


class Server:
    """Answers by script on one port; the last line for ever. LOST closes after reading, LATE never answers."""

    def __init__(self) -> None:
        self.script: list[bytes] = [reply()]
        self.seen: list[str] = []
        self.tokens: list[str] = []
        self.over = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])
        }
        await reader.readexactly(int(fields.get("content-length", 0)))
        self.seen.append(head.split(" HTTP")[0])
        self.tokens.append(fields.get("authorization", ""))
        line = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if line == LATE:
            await self.over.wait()
        if line in (LOST, LATE):
            return False
        writer.write(line)
        await writer.drain()
        return True


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    served = Server()
    listening = await asyncio.start_server(served, "127.0.0.1", 0)
    async with listening:
        yield served, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        served.over.set()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_a_mutation_whose_answer_is_lost_on_a_warm_connection_leaves_once(
    server: tuple[Server, str], method: str
) -> None:
    served, url = server
    async with HttpSession() as http:
        line = Pipeline(http, url, broker="real", retry=AT_ONCE)
        await line.request("GET", "/warm")
        served.script = [LOST, reply()]
        with pytest.raises(OutcomeUnknown) as caught:
            await line.request(method, "/orders", json={"size": 1})
    assert served.seen == ["GET /warm", f"{method} /orders"]
    assert (caught.value.category, caught.value.sent) == ("network", True)


async def test_a_read_whose_answer_is_lost_is_asked_again(server: tuple[Server, str]) -> None:
    served, url = server
    served.script = [LOST, LOST, reply(b'{"a":1}')]
    async with HttpSession() as http:
        got = await Pipeline(http, url, broker="real", retry=AT_ONCE).request("GET", "/bars")
    assert got.json() == {"a": 1}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("status", ["307 Temporary Redirect", "308 Permanent Redirect"])
async def test_a_redirect_of_a_mutation_is_not_followed(
    server: tuple[Server, str], status: str, method: str
) -> None:
    served, url = server
    served.script = [reply(status=status, extra=f"Location: {url}/elsewhere\r\n"), reply()]
    async with HttpSession() as http:
        with pytest.raises(PermanentError, match="check the broker's address"):
            await Pipeline(http, url, broker="real").request(method, "/orders", json={})
    assert served.seen == [f"{method} /orders"]


async def test_an_answer_that_comes_too_late_leaves_an_order_unknown(
    server: tuple[Server, str],
) -> None:
    served, url = server
    served.script = [LATE]
    async with HttpSession() as http:
        line = Pipeline(http, url, broker="real", timeout_seconds=0.05)
        with pytest.raises(OutcomeUnknown) as caught:
            await line.request("POST", "/orders", json={})
    assert (caught.value.category, served.seen) == ("timeout", ["POST /orders"])


async def test_an_order_to_a_closed_port_never_left_and_may_be_sent_again(
    server: tuple[Server, str],
) -> None:
    closed = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    async with HttpSession() as http:
        line = Pipeline(http, f"http://127.0.0.1:{port}", broker="real", retry=AT_ONCE)
        with pytest.raises(TransientError) as caught:
            await line.request("POST", "/orders", json={})
    assert (caught.value.sent, caught.value.attempt) == (False, 4)


@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests"])
async def test_retry_after_of_a_real_header_is_read(
    server: tuple[Server, str], status: str
) -> None:
    served, url = server
    served.script = [reply(status=status, extra="Retry-After: 0\r\nX-Request-Id: r\r\n"), reply()]
    async with HttpSession() as http:
        await Pipeline(http, url, broker="real", retry=AT_ONCE).request("GET", "/bars")
        served.script = [reply(status=status, extra="Retry-After: 3600\r\nX-Request-Id: r\r\n")]
        with pytest.raises(TransientError) as caught:
            await Pipeline(http, url, broker="real").request("GET", "/bars")
    assert (caught.value.retry_after, caught.value.request_id) == (300, "r")
    assert "clamped to 300 s" in str(caught.value)


async def test_a_401_is_cured_by_the_next_token(server: tuple[Server, str]) -> None:
    served, url = server
    served.script = [reply(status="401 Unauthorized"), reply()]
    texts = iter(["old-token", "new-token", "new-token"])

    async def tokens() -> str:
        return next(texts)

    async with HttpSession() as http:
        await Pipeline(http, url, broker="real", tokens=tokens).request("POST", "/orders", json={})
    assert served.tokens == ["Bearer old-token", "Bearer new-token"]


@pytest.mark.parametrize(
    ("status", "body", "extra", "kind", "words"),
    [
        ("200 OK", b"a" * (10 << 20), "", OutcomeUnknown, ""),
        ("200 OK", b"\xff\xfe{}", "Content-Type: text/html; charset=nonsense\r\n", OutcomeUnknown, "a body of 4 bytes"),
        ("200 OK", b"<html><title>Maintenance", "Content-Type: application/json\r\n", OutcomeUnknown, "a page"),
        ("200 OK", b"not gzip", "Content-Encoding: gzip\r\n", OutcomeUnknown, ""),
        ("502 Bad Gateway", b"a" * (10 << 20), "", OutcomeUnknown, ""),
        ("400 Bad Request", b"\xff\x00\x1b[31mno", "", PermanentError, "[31mno"),
        ("400 Bad Request", "größer".encode("utf-16"), "Content-Type: text/plain\r\n", PermanentError, "400 Bad"),
    ],
)  # fmt: skip
async def test_an_order_with_a_strange_answer_is_sent_once_and_told_in_one_line(
    server: tuple[Server, str],
    status: str,
    body: bytes,
    extra: str,
    kind: type[Exception],
    words: str,
) -> None:
    served, url = server
    served.script = [reply(body, status=status, extra=extra)]
    async with HttpSession() as http:
        with pytest.raises(kind) as caught:
            await Pipeline(http, url, broker="real", retry=AT_ONCE).request("PUT", "/orders")
    assert type(caught.value) is kind
    assert served.seen == ["PUT /orders"]
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
