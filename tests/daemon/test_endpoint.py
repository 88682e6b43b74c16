import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from keepline.daemon.endpoint import MetricsEndpoint, parse_listen
from keepline.daemon.parts import Readiness
from keepline.errors import ConfigError
from keepline.http import HttpSession


@pytest.fixture
def parts() -> list[Readiness]:
    return [Readiness("socket", True, "0 clients"), Readiness("credential x", True, "VALID")]


@pytest.fixture
async def endpoint(parts: list[Readiness]) -> AsyncIterator[MetricsEndpoint]:
    served = MetricsEndpoint("127.0.0.1", 0, lambda: parts)
    await served.start()
    yield served
    await served.stop()


async def raw(endpoint: MetricsEndpoint, request: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    writer.write(request.replace("\n", "\r\n").encode())
    answer = (await reader.readuntil(b"\r\n")).decode()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_numbers_are_prometheus_text(endpoint: MetricsEndpoint) -> None:
    async with HttpSession() as http:
        answer = await http.request("GET", f"{endpoint.url}/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE keepline_local_clients gauge" in answer.text
    assert endpoint.ready() == (True, f"{endpoint.url}/metrics")


async def test_alive_is_one_word(endpoint: MetricsEndpoint) -> None:
    async with HttpSession() as http:
        answer = await http.request("GET", f"{endpoint.url}/healthz")
    assert (answer.status, answer.text) == (200, "ok\n")


async def test_ready_says_each_part_and_why_not(
    endpoint: MetricsEndpoint, parts: list[Readiness]
) -> None:
    async with HttpSession() as http:
        answer = await http.request("GET", f"{endpoint.url}/readyz")
        assert answer.status == 200
        assert json.loads(answer.body)["ready"] is True
        parts[1] = Readiness("credential x", False, "EXPIRED")
        answer = await http.request("GET", f"{endpoint.url}/readyz")
    assert answer.status == 503
    told = {"name": "credential x", "ready": False, "reason": "EXPIRED"}
    assert json.loads(answer.body)["parts"][1] == told


async def test_other_paths_say_what_is_known(endpoint: MetricsEndpoint) -> None:
    async with HttpSession() as http:
        answer = await http.request("GET", f"{endpoint.url}/")
    assert answer.status == 404
    assert "/metrics /healthz /readyz" in answer.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", "421"),
        ("evil.example:80", "421"),
        ("127.0.0.1:1", "200"),
        ("localhost", "200"),
        ("[::1]:99", "200"),
        ("", "421"),
    ],
)
async def test_a_request_for_another_host_is_refused(
    endpoint: MetricsEndpoint, host: str, status: str
) -> None:
    answer = await raw(endpoint, f"GET /metrics HTTP/1.1\nHost: {host}\nConnection: close\n\n")
    assert f" {status} " in answer


async def test_only_reading_is_allowed(endpoint: MetricsEndpoint) -> None:
    answer = await raw(endpoint, "POST /metrics HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n")
    assert " 405 " in answer


async def test_a_port_in_use_is_an_error_of_the_start(endpoint: MetricsEndpoint) -> None:
    second = MetricsEndpoint("127.0.0.1", endpoint.port, list)
    with pytest.raises(ConfigError, match="Address already in use; choose another port"):
        await second.start()
    await second.stop()
    await second.stop()


async def test_it_listens_again_on_the_port_that_it_was_told(parts: list[Readiness]) -> None:
    served = MetricsEndpoint("::1", 0, lambda: parts)
    for _ in range(2):
        await served.start()
        assert served.url.startswith("http://[::1]:")
        assert "MetricsEndpoint http://[::1]" in repr(served)
        await served.stop()


def test_a_loopback_address_with_its_port() -> None:
    assert parse_listen("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert parse_listen("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize("port", ["99999", "123456", "9" * 5000, "-1", "٣", ""])
def test_a_port_that_is_none_is_refused_in_words(port: str) -> None:
    with pytest.raises(ConfigError, match="is no host:port"):
        parse_listen(f"127.0.0.1:{port}")
