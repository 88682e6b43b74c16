"""Claims about issuers, against the sandbox over a real socket."""

import asyncio
import logging
import socket
import stat
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from yarl import URL

from keepline.credentials.issuer import (
    AuthService,
    OAuth2Issuer,
    ProjectXIssuer,
    SchwabIssuer,
    StaticIssuer,
)
from keepline.credentials.token import NEVER, Token
from keepline.errors import (
    ConfigError,
    KeeplineError,
    SignInRequired,
    StorageError,
    TokenRefused,
    TransientError,
)
from keepline.http import HttpSession
from keepline.sandbox.server import SandboxServer
from keepline.testing import ManualClock

REDIRECT = "https://127.0.0.1:8182"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def sandbox(clock: ManualClock) -> AsyncIterator[SandboxServer]:
    async with SandboxServer(clock=clock) as server:
        yield server


@pytest.fixture
async def schwab(sandbox: SandboxServer, clock: ManualClock) -> AsyncIterator[SchwabIssuer]:
    async with SchwabIssuer(
        "sandbox-key", "sandbox-secret", base_url=f"{sandbox.url}/", clock=clock
    ) as issuer:
        yield issuer


@pytest.fixture
async def projectx(sandbox: SandboxServer, clock: ManualClock) -> AsyncIterator[ProjectXIssuer]:
    async with ProjectXIssuer(
        "sandbox", "sandbox-api-key", base_url=sandbox.url, clock=clock
    ) as issuer:
        yield issuer


def oauth2(sandbox: SandboxServer, **options: Any) -> OAuth2Issuer:
    settings = {"client_secret": "sandbox-secret", **options}
    return OAuth2Issuer(f"{sandbox.url}/v1/oauth/token", "sandbox-key", **settings)


async def redirected(page: str) -> dict[str, str]:
    """The fields that the issuer's page sends the browser back with."""
    async with ClientSession() as browser, browser.get(page, allow_redirects=False) as answer:
        return dict(URL(answer.headers["Location"]).query)


# --- Schwab ---


async def test_schwab_renews_and_the_seven_days_stay_where_they_were(
    sandbox: SandboxServer, schwab: SchwabIssuer, clock: ManualClock
) -> None:
    first = sandbox.issue()
    clock.advance(1500)
    second = await schwab.refresh(first)
    assert second.access_token != first.access_token
    assert second.refresh_token != first.refresh_token
    assert second.issued_at == clock.wall()
    assert second.expires_at == clock.wall() + timedelta(minutes=30)
    assert second.signin_deadline == first.signin_deadline
    assert second.generation == 0
    assert second.extra.keys() == {"id_token"}
    assert sandbox.accepts(second.access_token)


async def test_schwab_signs_in_with_a_code_that_was_decoded_once(
    sandbox: SandboxServer, schwab: SchwabIssuer, clock: ManualClock
) -> None:
    begun = schwab.begin_sign_in()
    assert begun.url.startswith(f"{sandbox.url}/v1/oauth/authorize?response_type=code&")
    assert "code_challenge" not in begun.url
    fields = await redirected(begun.url)
    assert fields["state"] == begun.state
    assert fields["code"].endswith("@")
    token = await schwab.exchange(fields["code"], begun)
    assert token.signin_deadline == clock.wall() + timedelta(days=7)
    assert (await schwab.refresh(token)).signin_deadline == token.signin_deadline


async def test_schwab_past_its_seven_days_asks_for_a_person(
    sandbox: SandboxServer, schwab: SchwabIssuer, clock: ManualClock
) -> None:
    token = sandbox.issue()
    clock.advance(7 * 86_400)
    with pytest.raises(TokenRefused, match="no longer good: sign in again") as caught:
        await schwab.refresh(token)
    assert (caught.value.code, caught.value.status) == ("unsupported_token_type", 400)
    assert caught.value.credential == "schwab"


async def test_schwab_never_authenticates_by_itself(schwab: SchwabIssuer) -> None:
    assert schwab.needs_person is True
    with pytest.raises(SignInRequired, match="keepline login schwab"):
        await schwab.authenticate()


async def test_without_a_refresh_token_nothing_is_sent(
    sandbox: SandboxServer, schwab: SchwabIssuer
) -> None:
    with pytest.raises(SignInRequired, match="no refresh token"):
        await schwab.refresh(Token("a"))
    assert sandbox.stats()["requests"] == 0


async def test_two_sign_ins_share_neither_state_nor_verifier(sandbox: SandboxServer) -> None:
    async with oauth2(
        sandbox, authorize_url=f"{sandbox.url}/v1/oauth/authorize", redirect_uri=REDIRECT
    ) as issuer:
        one, two = issuer.begin_sign_in(), issuer.begin_sign_in()
    assert one.state != two.state
    assert one.verifier != two.verifier
    assert 43 <= len(one.verifier) <= 128


@pytest.mark.parametrize(
    ("fault", "category", "status"),
    [
        ({"name": "5xx"}, "server", 503),
        ({"name": "5xx", "status": 500}, "server", 500),
        ({"name": "html"}, "auth", 403),
        ({"name": "html", "status": 200}, "server", 200),
        ({"name": "429"}, "rate_limit", 429),
        ({"name": "refuse", "code": "try_later"}, "client", 400),
        ({"name": "refuse", "status": 502}, "server", 502),
        ({"name": "outage"}, "network", None),
        ({"name": "answer_lost"}, "network", None),
    ],
)
async def test_an_outage_is_worth_another_try_and_loses_nothing(
    sandbox: SandboxServer,
    schwab: SchwabIssuer,
    fault: dict[str, Any],
    category: str,
    status: int | None,
) -> None:
    token = sandbox.issue()
    sandbox.fault(**fault)
    with pytest.raises(TransientError) as caught:
        await schwab.refresh(token)
    assert (caught.value.category, caught.value.status) == (category, status)
    assert caught.value.endpoint == "POST /v1/oauth/token"
    sandbox.clear_faults()
    if fault["name"] != "answer_lost":
        assert (await schwab.refresh(token)).access_token


async def test_the_time_to_stay_away_is_handed_on(
    sandbox: SandboxServer, schwab: SchwabIssuer
) -> None:
    sandbox.fault("429", retry_after=7)
    with pytest.raises(TransientError) as caught:
        await schwab.refresh(sandbox.issue())
    assert caught.value.retry_after == 7


@pytest.mark.parametrize("code", ["invalid_grant", "invalid_client", "unauthorized_client",
                                  "unsupported_grant_type", "invalid_scope", "access_denied"])  # fmt: skip
async def test_a_fatal_code_is_a_refusal(
    sandbox: SandboxServer, schwab: SchwabIssuer, code: str
) -> None:
    sandbox.fault("refuse", code=code)
    with pytest.raises(TokenRefused) as caught:
        await schwab.refresh(sandbox.issue())
    assert caught.value.code == code


async def test_an_issuer_that_nobody_listens_for_was_provably_not_asked(clock: ManualClock) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with SchwabIssuer("k", "s", base_url=f"http://127.0.0.1:{port}", clock=clock) as issuer:
        with pytest.raises(TransientError) as caught:
            await issuer.refresh(Token("a", "r"))
    assert caught.value.sent is False


async def test_the_old_refresh_token_stays_when_the_answer_has_none(
    sandbox: SandboxServer, schwab: SchwabIssuer
) -> None:
    token = sandbox.issue()
    sandbox.fault("no_refresh_token")
    sandbox.fault("rotate", enabled=False)
    assert (await schwab.refresh(token)).refresh_token == token.refresh_token


def test_an_issuer_shows_no_secret() -> None:
    shown = [
        repr(SchwabIssuer("hush-key", "hush-secret")),
        repr(OAuth2Issuer("https://issuer.example/token", "hush-id", "hush-secret")),
        repr(ProjectXIssuer("hush-user", "hush-key")),
        repr(StaticIssuer("hush-token")),
    ]
    assert "hush" not in "".join(shown)
    assert "issuer.example" in shown[1]
    assert "api.topstepx.com" in shown[2]


# --- any OAuth 2 server ---


@pytest.mark.parametrize("auth", ["basic", "post"])
async def test_a_client_of_its_own_needs_no_person(
    sandbox: SandboxServer, clock: ManualClock, auth: Any
) -> None:
    async with oauth2(sandbox, grant="client_credentials", client_auth=auth, clock=clock) as issuer:
        assert issuer.needs_person is False
        token = await issuer.authenticate()
        assert token.refresh_token == ""
        assert token.expires_at == clock.wall() + timedelta(minutes=30)
        newer = await issuer.refresh(token)
    assert newer.access_token != token.access_token
    assert sandbox.stats()["client_credentials"] == 2


async def test_a_public_client_is_refused_by_a_server_that_wants_a_secret(
    sandbox: SandboxServer,
) -> None:
    async with oauth2(sandbox, client_auth="none", client_secret="") as issuer:
        with pytest.raises(TokenRefused, match="compare them") as caught:
            await issuer.refresh(Token("a", "r"))
    assert (caught.value.code, caught.value.status) == ("invalid_client", 401)


async def test_a_sign_in_with_pkce_proves_that_we_began_it(sandbox: SandboxServer) -> None:
    async with oauth2(
        sandbox,
        grant="authorization_code",
        authorize_url=f"{sandbox.url}/v1/oauth/authorize",
        redirect_uri=REDIRECT,
        refresh_lifetime=timedelta(days=1),
        name="other",
    ) as issuer:
        assert issuer.needs_person is True
        begun = issuer.begin_sign_in()
        fields = await redirected(begun.url)
        token = await issuer.exchange(fields["code"], begun)
        assert token.signin_deadline == token.issued_at + timedelta(days=1)
        stolen = await redirected(begun.url)
        with pytest.raises(TokenRefused, match="code_verifier"):
            await issuer.exchange(stolen["code"], issuer.begin_sign_in())


async def test_an_odd_answer_is_logged_without_the_token(
    sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def no_lifetime(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"access_token": "hush"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(no_lifetime, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with caplog.at_level(logging.WARNING, "keepline.credentials"):
        async with server, OAuth2Issuer(f"http://127.0.0.1:{port}/t", "i", "s", grant="client_credentials",
                                        name="odd") as issuer:  # fmt: skip
            token = await issuer.authenticate()
    assert token.lifetime == timedelta(minutes=30)
    (record,) = caplog.records
    assert record.message == "Odd token answer"
    assert record.__dict__["fields"]["credential"] == "odd"
    assert "hush" not in str(record.__dict__)


def test_an_unknown_grant_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="client_credentials or authorization_code") as caught:
        OAuth2Issuer("https://h/t", "i", "s", grant="password")  # type: ignore[arg-type]
    assert caught.value.key == "grant"


async def test_a_shared_session_is_not_closed(sandbox: SandboxServer) -> None:
    async with HttpSession() as http:
        async with oauth2(sandbox, grant="client_credentials", http=http) as issuer:
            await issuer.authenticate()
        assert "open" in repr(http)


# --- schwab_app_config.yaml ---


def app_config(folder: Path, text: str, *, mode: int = 0o600) -> Path:
    path = folder / "schwab_app_config.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


async def test_the_app_s_file_is_read_as_it_is(
    tmp_path: Path, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    path = app_config(
        tmp_path,
        "# mine\napp_key: sandbox-key\napp_secret: ' sandbox-secret'\nextra: [1]\n",
        mode=0o644,
    )
    async with SchwabIssuer.from_app_config(str(path), base_url=sandbox.url, name="mine") as issuer:
        assert issuer.app.name == "mine"
        assert (await issuer.refresh(sandbox.issue())).access_token
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert any("chmod" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("app_secret: hush\n", "app_key", "missing or empty"),
        ("app_key: k\n", "app_secret", "missing or empty"),
        ("app_key: k\napp_secret: ''\n", "app_secret", "missing or empty"),
        ("app_key: 123\napp_secret: hush\n", "app_key", "put the value in quotes"),
        ("", "", "are expected"),
        ("- app_key\n", "", "are expected"),
        ("app_key: k\napp_secret: 'hush\n", "", "not YAML near line"),
        ("app_key: \x00\n", "", "not YAML"),
    ],
)
def test_an_app_s_file_that_is_wrong_is_named_with_its_key(
    tmp_path: Path, text: str, key: str, words: str
) -> None:
    path = app_config(tmp_path, text)
    with pytest.raises(ConfigError, match=words) as caught:
        SchwabIssuer.from_app_config(path)
    assert (caught.value.file, caught.value.key) == (path, key)
    assert "hush" not in str(caught.value)


def test_a_missing_app_s_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this file is missing") as caught:
        SchwabIssuer.from_app_config(tmp_path / "none.yaml")
    assert caught.value.file == tmp_path / "none.yaml"


def test_an_app_s_file_behind_a_link_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(app_config(tmp_path, "app_key: k\napp_secret: s\n"))
    with pytest.raises(StorageError):
        SchwabIssuer.from_app_config(link)


# --- ProjectX ---


async def test_projectx_logs_in_by_itself_and_reads_the_jwt(
    sandbox: SandboxServer, projectx: ProjectXIssuer, clock: ManualClock
) -> None:
    assert projectx.needs_person is False
    token = await projectx.authenticate()
    assert token.expires_at == clock.wall() + timedelta(days=1)
    assert token.signin_deadline is None
    assert sandbox.accepts(token.access_token)


async def test_projectx_prolongs_a_session_that_lives(
    sandbox: SandboxServer, projectx: ProjectXIssuer, clock: ManualClock
) -> None:
    token = await projectx.authenticate()
    clock.advance(22 * 3600)
    newer = await projectx.refresh(token)
    assert newer.expires_at == clock.wall() + timedelta(days=1)
    stats = sandbox.stats()
    assert (stats["logins"], stats["validations"]) == (1, 1)


async def test_projectx_uses_the_key_when_validate_is_refused(
    sandbox: SandboxServer, projectx: ProjectXIssuer
) -> None:
    token = await projectx.authenticate()
    sandbox.fault("refuse", on="validate")
    assert (await projectx.refresh(token)).access_token != token.access_token
    stats = sandbox.stats()
    assert (stats["logins"], stats["validations"]) == (2, 0)


async def test_projectx_uses_the_key_at_once_when_the_session_is_over(
    sandbox: SandboxServer, projectx: ProjectXIssuer, clock: ManualClock
) -> None:
    token = await projectx.authenticate()
    clock.advance(86_400)
    await projectx.refresh(token)
    assert sandbox.stats()["requests"] == 2
    assert sandbox.stats()["logins"] == 2


async def test_projectx_does_not_burn_logins_while_the_gateway_is_out_of_order(
    sandbox: SandboxServer, projectx: ProjectXIssuer
) -> None:
    token = await projectx.authenticate()
    sandbox.fault("5xx", on="validate")
    with pytest.raises(TransientError):
        await projectx.refresh(token)
    assert sandbox.stats()["logins"] == 1


async def test_projectx_tells_a_wrong_key_from_a_moody_gateway(
    sandbox: SandboxServer, projectx: ProjectXIssuer
) -> None:
    async with ProjectXIssuer("sandbox", "hush", base_url=sandbox.url) as wrong:
        with pytest.raises(TokenRefused) as caught:
            await wrong.authenticate()
    assert caught.value.code == "loginKey 3 InvalidCredentials"
    sandbox.fault("refuse", error_code=8, on="login")
    with pytest.raises(TransientError, match="errorCode 8"):
        await projectx.authenticate()


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("", "k"), "username"),
        (("u", ""), "api_key"),
        (("u", "k", "http://gw.example"), "base_url"),
    ],
)
def test_projectx_names_what_is_missing(arguments: tuple[str, ...], key: str) -> None:
    username, api_key, *base = arguments
    options = {"base_url": base[0]} if base else {}
    with pytest.raises(ConfigError) as caught:
        ProjectXIssuer(username, api_key, **options)  # type: ignore[arg-type]
    assert caught.value.key == key


async def test_projectx_takes_its_names_from_the_environment(
    sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROJECT_X_USERNAME", "sandbox")
    with pytest.raises(ConfigError, match="environment variable is missing") as caught:
        ProjectXIssuer.from_environment()
    assert caught.value.key == "PROJECT_X_API_KEY"
    monkeypatch.setenv("PROJECT_X_API_KEY", "sandbox-api-key")
    async with ProjectXIssuer.from_environment(base_url=sandbox.url) as issuer:
        assert (await issuer.authenticate()).access_token
    with pytest.raises(ConfigError) as caught:
        ProjectXIssuer.from_environment({})
    assert caught.value.key == "PROJECT_X_USERNAME"


# --- static ---


async def test_a_static_token_is_served_until_it_expires_and_never_renewed(
    clock: ManualClock,
) -> None:
    issuer = StaticIssuer("t", clock.wall() + timedelta(hours=1), clock=clock, name="oanda")
    token = await issuer.authenticate()
    assert (token.access_token, token.generation) == ("t", 0)
    with pytest.raises(SignInRequired, match="cannot be renewed") as caught:
        await issuer.refresh(token)
    assert caught.value.credential == "oanda"
    clock.advance(3600)
    with pytest.raises(SignInRequired, match="expired on 2026-01-05"):
        await issuer.authenticate()


async def test_a_static_token_without_expiry_lives_for_ever() -> None:
    issuer = StaticIssuer("t")
    assert (await issuer.authenticate()).expires_at == NEVER
    with pytest.raises(ConfigError, match="needs its token"):
        StaticIssuer("")


def test_every_issuer_is_an_auth_service() -> None:
    services: list[AuthService] = [
        SchwabIssuer("k", "s"),
        OAuth2Issuer("https://h/t", "i", "s"),
        ProjectXIssuer("u", "k"),
        StaticIssuer("t"),
    ]
    assert all(hasattr(service, "needs_person") for service in services)
    assert issubclass(TokenRefused, KeeplineError)
