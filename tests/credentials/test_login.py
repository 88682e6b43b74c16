"""Claims about a person's sign-in, over real sockets with TLS, against the sandbox's authorize page."""

import asyncio
import logging
import os
import socket
import ssl
import stat
import threading
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectorCertificateError, ClientSession
from cryptography import x509

from keepline.credentials.certificate import self_signed_context
from keepline.credentials.issuer import OAuth2Issuer, SchwabIssuer
from keepline.credentials.login import sign_in
from keepline.credentials.token import Token
from keepline.errors import (
    ConfigError,
    CredentialError,
    SignInRequired,
    StorageError,
    TokenRefused,
    TransientError,
)
from keepline.sandbox.server import SandboxServer
from keepline.testing import ManualClock


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Person:
    """Somebody at a browser: gets the page's address, follows it and reads what the last page says."""

    def __init__(self) -> None:
        self.opened: asyncio.Queue[str] = asyncio.Queue()
        self.count = 0
        self._loop = asyncio.get_running_loop()

    def browser(self, url: str) -> None:
        self.count += 1
        self._loop.call_soon_threadsafe(self.opened.put_nowait, url)

    async def visit(self, url: str) -> tuple[int, str]:
        async with ClientSession() as browser, browser.get(url, ssl=False) as page:
            return page.status, await page.text()

    async def agree(self) -> tuple[int, str]:
        return await self.visit(await self.opened.get())

    async def where_it_leads(self) -> str:
        """The address that the issuer's page redirects to."""
        page = await self.opened.get()
        async with ClientSession() as browser, browser.get(page, allow_redirects=False) as answer:
            return answer.headers["Location"]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def sandbox(clock: ManualClock) -> AsyncIterator[SandboxServer]:
    async with SandboxServer(clock=clock) as server:
        yield server


@pytest.fixture
async def issuer(sandbox: SandboxServer, clock: ManualClock) -> AsyncIterator[SchwabIssuer]:
    async with SchwabIssuer(
        "sandbox-key",
        "sandbox-secret",
        base_url=sandbox.url,
        redirect_uri=f"https://127.0.0.1:{unused_port()}",
        clock=clock,
    ) as schwab:
        yield schwab


@pytest.fixture
async def person() -> Person:
    return Person()


@pytest.fixture
def begin(
    issuer: SchwabIssuer, person: Person, clock: ManualClock
) -> Callable[..., asyncio.Task[Token]]:
    """Start a sign-in with this person."""

    def start(**options: Any) -> asyncio.Task[Token]:
        settings = {"browser": person.browser, "clock": clock, **options}
        return asyncio.create_task(sign_in(settings.pop("issuer", issuer), **settings))

    return start


Begin = Callable[..., asyncio.Task[Token]]


# --- by callback ---


async def test_the_whole_way_through_a_browser_ends_with_both_tokens(
    sandbox: SandboxServer, person: Person, begin: Begin, clock: ManualClock
) -> None:
    announced: list[str] = []
    task = begin(announce=announced.append)
    status, page = await person.agree()
    token = await task
    assert status == 200
    assert "Signed in" in page
    assert token.refresh_token
    assert token.signin_deadline == clock.wall() + timedelta(days=7)
    assert sandbox.accepts(token.access_token)
    assert len(announced) == person.count == 1
    assert sandbox.stats()["sign_ins"] == 1


async def test_the_page_says_that_it_worked_only_when_the_token_is_kept(
    person: Person, begin: Begin
) -> None:
    asked, allowed, kept = asyncio.Event(), asyncio.Event(), []

    async def save(token: Token) -> None:
        asked.set()
        await allowed.wait()
        kept.append(token)

    task = begin(save=save)
    visit = asyncio.create_task(person.agree())
    await asked.wait()
    assert not visit.done()
    allowed.set()
    assert (await visit)[0] == 200
    assert kept == [await task]


async def test_a_token_that_cannot_be_kept_is_told_on_the_page(
    person: Person, begin: Begin
) -> None:
    async def save(_: Token) -> None:
        raise StorageError("the disk is full")

    task = begin(save=save)
    status, page = await person.agree()
    assert status == 400
    assert "Not signed in" in page
    assert "the disk is full" in page
    with pytest.raises(StorageError):
        await task


async def test_a_foreign_state_is_shown_and_waited_past(
    person: Person, begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    task = begin()
    address = await person.where_it_leads()
    with caplog.at_level(logging.DEBUG):
        status, page = await person.visit(address.replace("state=", "state=x"))
        assert status == 400
        assert "belongs to another sign-in" in page
        assert not task.done()
        assert (await person.visit(address))[0] == 200
    assert (await task).refresh_token
    assert "Foreign redirect" in caplog.text
    code = address.split("code=")[1].split("&")[0]
    assert code not in caplog.text


async def test_other_paths_methods_and_hosts_get_nothing(person: Person, begin: Begin) -> None:
    task = begin()
    address = await person.where_it_leads()
    base, _, query = address.partition("?")
    async with ClientSession() as browser:
        async with browser.get(f"{base}/favicon.ico?{query}", ssl=False) as answer:
            assert answer.status == 404
        async with browser.post(address, ssl=False) as answer:
            assert answer.status == 404
        async with browser.get(address, ssl=False, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 400
        async with browser.get(address, ssl=False) as answer:
            assert answer.status == 200
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    await task


async def test_a_person_who_denies_ends_it_with_words_on_both_sides(
    person: Person, begin: Begin
) -> None:
    task = begin()
    address = await person.where_it_leads()
    base, _, query = address.partition("?")
    state = query.split("state=")[1]
    status, page = await person.visit(
        f"{base}?error=access_denied&error_description=%3Cb%3E&state={state}"
    )
    assert status == 400
    assert "access was denied" in page
    assert "&lt;b&gt;" in page
    with pytest.raises(TokenRefused) as caught:
        await task
    assert caught.value.code == "access_denied"


async def test_a_reloaded_or_forged_page_changes_nothing_any_more(
    sandbox: SandboxServer, person: Person, begin: Begin
) -> None:
    kept, allowed = asyncio.Event(), asyncio.Event()

    async def save(_: Token) -> None:
        kept.set()
        await allowed.wait()

    task = begin(save=save)
    address = await person.where_it_leads()
    visit = asyncio.create_task(person.visit(address))
    await kept.wait()
    later = [await request_page(address), await request_page(address.replace("code=", "error="))]
    # answered at once, so those before it have been read
    assert (await person.visit(address.replace("state=", "state=x")))[0] == 400
    allowed.set()
    assert (await visit)[0] == 200
    for reader, writer in later:
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
    await task
    assert sandbox.stats()["token_requests"] == 1


async def request_page(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for the address and leave the answer to be read."""
    reader, writer = await open_callback(address)
    query = address.partition("?")[2]
    lines = f"GET /?{query} HTTP/1.1\r\nHost: {host_of(address)}\r\nConnection: close\r\n\r\n"
    writer.write(lines.encode())
    await writer.drain()
    return reader, writer


def host_of(address: str) -> str:
    return address.split("//")[1].split("/")[0].split("?")[0]


async def open_callback(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection(
        "127.0.0.1", int(host_of(address).rpartition(":")[2]), ssl=trusting
    )


async def test_an_answer_without_a_refresh_token_is_refused_and_not_kept(
    sandbox: SandboxServer, person: Person, begin: Begin
) -> None:
    kept: list[Token] = []

    async def save(token: Token) -> None:
        kept.append(token)

    sandbox.fault("no_refresh_token")
    task = begin(save=save)
    status, page = await person.agree()
    assert status == 400
    assert "no refresh token" in page
    with pytest.raises(TokenRefused, match="no refresh token"):
        await task
    assert kept == []


async def test_an_issuer_out_of_order_is_told_on_the_page(
    sandbox: SandboxServer, person: Person, begin: Begin
) -> None:
    sandbox.fault("5xx")
    task = begin()
    status, page = await person.agree()
    assert (status, "HTTP 503" in page) == (400, True)
    with pytest.raises(TransientError):
        await task


async def test_it_gives_up_after_its_time_and_frees_port_and_lock(
    issuer: SchwabIssuer, person: Person, begin: Begin, clock: ManualClock
) -> None:
    task = begin(callback_timeout=300)
    await person.opened.get()
    await clock.until_asleep()
    clock.advance(299)
    assert not task.done()
    clock.advance(1)
    with pytest.raises(SignInRequired, match=r"nobody signed in within 300 s.*login schwab"):
        await task
    again = begin()
    assert (await person.agree())[0] == 200
    assert (await again).refresh_token


async def test_a_cancelled_sign_in_tells_the_page_and_frees_the_lock(
    person: Person, begin: Begin
) -> None:
    kept = asyncio.Event()

    async def save(_: Token) -> None:
        kept.set()
        await asyncio.Event().wait()

    task = begin(save=save)
    visit = asyncio.create_task(person.agree())
    await kept.wait()
    task.cancel()
    status, page = await visit
    assert (status, "interrupted" in page) == (400, True)
    with pytest.raises(asyncio.CancelledError):
        await task
    again = begin()
    assert (await person.agree())[0] == 200
    await again


async def test_one_sign_in_per_credential_at_a_time(
    person: Person, begin: Begin, clock: ManualClock
) -> None:
    first = begin()
    page = await person.opened.get()
    second = begin()
    # the timer of the first sleeps too: only the second one's wait for the lock is let go by
    while not second.done():
        await clock.until_asleep()
        clock.advance(0.1)
        await asyncio.sleep(0)
    with pytest.raises(CredentialError, match="another sign-in of schwab is under way"):
        await second
    assert person.opened.empty()
    assert person.count == 1
    assert (await person.visit(page))[0] == 200
    await first


async def test_a_taken_port_says_what_to_do(issuer: SchwabIssuer, begin: Begin) -> None:
    port = int(issuer.app.redirect_uri.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError) as caught:
        await begin()
    assert caught.value.key == "redirect_uri"
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "paste the address" in str(caught.value)


async def test_a_callback_elsewhere_cannot_be_heard(begin: Begin, person: Person) -> None:
    other = SchwabIssuer("k", "s", redirect_uri="https://bot.example/cb")
    with pytest.raises(ConfigError, match="not come back to this machine"):
        await begin(issuer=other)
    assert person.count == 0


async def test_a_loopback_callback_may_be_plain_http(
    sandbox: SandboxServer, person: Person, begin: Begin
) -> None:
    async with OAuth2Issuer(
        f"{sandbox.url}/v1/oauth/token",
        "sandbox-key",
        "sandbox-secret",
        grant="authorization_code",
        authorize_url=f"{sandbox.url}/v1/oauth/authorize",
        redirect_uri=f"http://localhost:{unused_port()}/done",
    ) as plain:
        task = begin(issuer=plain)
        assert (await person.agree())[0] == 200
        assert (await task).refresh_token


async def test_without_a_browser_the_address_is_only_announced(
    person: Person, begin: Begin
) -> None:
    announced: list[str] = []
    task = begin(open_browser=False, announce=announced.append)
    while not announced:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert (await person.visit(announced[0]))[0] == 200
    await task
    assert person.count == 0


async def test_a_browser_that_does_not_start_ends_nothing(
    begin: Begin, person: Person, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(url: str) -> None:
        person.browser(url)
        raise webbrowser.Error("no runnable browser for " + url)

    task = begin(browser=broken)
    assert (await person.agree())[0] == 200
    await task
    for thread in threading.enumerate():
        if thread.name == "browser":
            await asyncio.to_thread(thread.join)
    assert "Browser not opened" in caplog.text
    assert "state=" not in caplog.text


# --- by paste ---


def pasting(person: Person, change: Callable[[str], str]) -> Callable[[str], Awaitable[str]]:
    async def paste(page: str) -> str:
        await person.opened.put(page)
        return change(await person.where_it_leads())

    return paste


async def test_a_pasted_address_signs_in_without_a_callback(
    person: Person, begin: Begin, sandbox: SandboxServer
) -> None:
    token = await begin(paste=pasting(person, lambda address: f" {address}\n"), open_browser=False)
    assert token.refresh_token
    assert sandbox.stats()["sign_ins"] == 1
    assert person.count == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: "", "nothing was pasted"),
        (lambda address: address.replace("127.0.0.1", "evil.example"), "comes back to"),
        (lambda address: address.replace("?code", "/x?code"), "comes back to"),
        (lambda address: address.replace("state=", "state=x"), "another sign-in"),
        (lambda address: address.split("code=")[1], "not an address"),
    ],
)
async def test_a_wrong_paste_is_refused_and_nothing_is_sent(
    person: Person, begin: Begin, sandbox: SandboxServer, change: Callable[[str], str], words: str
) -> None:
    with pytest.raises(SignInRequired, match=words):
        await begin(paste=pasting(person, change), open_browser=False)
    assert sandbox.stats()["token_requests"] == 0


async def test_a_paste_is_waited_for_only_so_long(begin: Begin, clock: ManualClock) -> None:
    async def never(_: str) -> str:
        return await asyncio.Future[str]()

    task = begin(paste=never, open_browser=False, callback_timeout=60)
    await clock.run_until(task.done)
    with pytest.raises(SignInRequired, match="within 60 s"):
        await task


# --- the certificate ---


async def test_a_browser_that_checks_certificates_does_not_trust_ours(
    person: Person, begin: Begin
) -> None:
    task = begin()
    address = await person.where_it_leads()
    async with ClientSession() as browser:
        with pytest.raises(ClientConnectorCertificateError):
            await browser.get(address)
    assert (await person.visit(address))[0] == 200
    await task


async def test_the_certificate_names_the_loopback_address_and_lives_a_day(
    person: Person, begin: Begin, clock: ManualClock
) -> None:
    task = begin()
    address = await person.where_it_leads()
    _, writer = await open_callback(address)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    shown = x509.load_der_x509_certificate(der)
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert shown.not_valid_after_utc == clock.wall() + timedelta(days=1)
    assert (await person.visit(address))[0] == 200
    await task


def test_the_key_is_on_the_disk_only_encrypted_private_and_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    seen: list[tuple[bytes, int, int]] = []

    def watching(context: ssl.SSLContext, certfile: Path, password: bytes) -> None:
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (certfile, certfile.parent)]
        seen.append((certfile.read_bytes(), *modes))
        load(context, certfile, password=password)

    load = ssl.SSLContext.load_cert_chain
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watching)
    self_signed_context("::1", clock.wall())
    ((pem, file_mode, directory_mode),) = seen
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in pem
    assert b"BEGIN PRIVATE KEY" not in pem
    assert (file_mode, directory_mode) == (0o600, 0o700)
    assert list(Path(os.environ["KEEPLINE_RUNTIME_DIR"]).iterdir()) == []
