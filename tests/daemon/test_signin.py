import asyncio
import io
import os
import sys
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from keepline.config import Settings
from keepline.daemon.ask import stored_token
from keepline.daemon.signin import ask_line, login
from keepline.errors import ConfigError, SignInRequired
from keepline.sandbox.server import SandboxServer

Configure = Callable[..., Settings]


async def visit(url: str) -> str:
    """What the browser's address line says after the sign-in."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    request = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
    writer.write(request.encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    await writer.wait_closed()
    location = next(x for x in head.splitlines() if x.lower().startswith("location:"))
    return location.partition(":")[2].strip()


async def test_a_person_pastes_the_address(
    configure: Configure, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading, "r"))
    visits: list[asyncio.Task[None]] = []

    async def browse(url: str) -> None:
        address = await visit(url)
        os.write(writing, address.encode() + b"\n")

    settings = configure()
    token = await login(
        settings,
        "schwab",
        paste=True,
        open_browser=False,
        announce=lambda url: visits.append(asyncio.create_task(browse(url))),
    )
    await asyncio.gather(*visits)
    assert (await stored_token(settings, "schwab")).access_token == token.access_token
    assert sandbox.accepts(token.access_token)
    assert sandbox.stats()["sign_ins"] == 1
    os.close(writing)
    sys.stdin.close()


async def test_who_needs_no_person_is_told_what_to_do(configure: Configure) -> None:
    settings = configure('[credentials.s]\nissuer = "static"\naccess_token_file = "key"\n')
    with pytest.raises(ConfigError, match="keepline token refresh s"):
        await login(settings, "s", paste=True, open_browser=False, announce=print)


async def test_an_input_that_ends_is_no_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SignInRequired, match="the input ended before an address came"):
        await ask_line("address: ")
    assert capsys.readouterr().err == "address: "


async def test_a_person_who_never_answers_keeps_nothing_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading, "r"))
    before = set(threading.enumerate())
    asking = asyncio.create_task(ask_line("address: "))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    os.close(writing)
    for thread in set(threading.enumerate()) - before:
        thread.join()
    sys.stdin.close()


async def test_an_input_that_ends_names_the_command_to_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SignInRequired) as caught:
        await ask_line("", credential="topstep")
    assert str(caught.value).endswith("run: keepline login topstep")


async def test_an_input_that_cannot_be_read_is_an_error_and_no_endless_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed)
    with pytest.raises(ValueError, match="closed file"):
        await ask_line("")
