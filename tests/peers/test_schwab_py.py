"""schwab-py itself opens a file that we wrote and we one that it wrote, before and after refreshes by either side."""

import asyncio
import base64
import json
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import pytest
from aiohttp import web

from keepline.clock import SYSTEM_CLOCK
from keepline.credentials.schwab_file import SIGNIN_LIFETIME, SchwabTokenFile
from keepline.credentials.token import Token
from keepline.errors import StorageError

with warnings.catch_warnings(record=True):
    # schwab-py 1.5.1 imports parts of websockets and authlib that their makers call old: theirs to mend, not ours
    warnings.simplefilter("ignore")
    import schwab.auth

APP = ("app-key", "app-secret")


@dataclass
class Issuer:
    """A token endpoint on loopback that rotates refresh tokens, as strictly as one can be."""

    url: str = ""
    refresh_token: str = ""
    issued: int = 0
    spent: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)

    def answer(self) -> dict[str, object]:
        self.issued += 1
        self.refresh_token = f"refresh-{self.issued}"
        return {
            "expires_in": 1800,
            "token_type": "Bearer",
            "scope": "api",
            "refresh_token": self.refresh_token,
            "access_token": f"access-{self.issued}",
            "id_token": f"identity-{self.issued}",
        }

    async def token(self, request: web.Request) -> web.Response:
        form = parse_qs(await request.text())
        self.authorizations.append(request.headers["Authorization"])
        if form["grant_type"] == ["refresh_token"]:
            [given] = form["refresh_token"]
            if given != self.refresh_token:
                return web.json_response({"error": "invalid_grant"}, status=400)
            self.spent.append(given)
        response = web.json_response(self.answer())
        response.force_close()  # schwab-py leaves the session of a sign-in open: it must not leak a socket here
        return response


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    """The issuer on a thread of its own, because schwab-py blocks.

    schwab-py has the token endpoint as a constant of its module and no setting for it, so the constant is the one thing
    that is exchanged; everything else is schwab-py as its users run it. A call that would go to Schwab's API itself is
    not made: the session is asked for its token directly, by the method that it calls before each request.
    """
    issuer, ready, loop = Issuer(), threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/oauth/token", issuer.token)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/oauth/token"
        stop = asyncio.Event()
        issuer.stop = lambda: loop.call_soon_threadsafe(stop.set)
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="issuer")
    thread.start()
    ready.wait()
    monkeypatch.setattr(schwab.auth, "TOKEN_ENDPOINT", issuer.url)
    yield issuer
    issuer.stop()
    thread.join()
    loop.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "schwab_tokens.json"


@pytest.fixture
def open_client(path: Path) -> Iterator:
    """schwab-py's own way to open a token file; what it opens is closed."""
    clients = []

    def opened():
        clients.append(schwab.auth.client_from_token_file(str(path), *APP))
        return clients[-1]

    yield opened
    for client in clients:
        client.session.close()


def sign_in_with_schwab_py(issuer: Issuer, path: Path) -> None:
    """schwab-py's own exchange of a code, and its own writer."""

    def write(token: dict, *args: object, **options: object) -> None:
        path.write_text(json.dumps(token))  # as schwab-py's writer: in place, mode by the umask

    context = schwab.auth.get_auth_context(APP[0], "https://127.0.0.1:8182")
    received = f"https://127.0.0.1:8182/?code=abc&session=x&state={context.state}"
    client = schwab.auth.client_from_received_url(*APP, context, received, write)
    client.session.close()


def due(path: Path) -> None:
    """Make the access token as old as one is after 26 minutes, below schwab-py's leeway of 300 s."""
    content = json.loads(path.read_text())
    content["token"]["expires_at"] -= 1600
    path.write_text(json.dumps(content))


def spends(client) -> str:
    """What schwab-py does before each request: refresh when due; returns the access token that it would send."""
    assert client.session.ensure_active_token(client.session.token)
    return client.session.token["access_token"]


def we_refresh(path: Path, issuer: Issuer) -> Token:
    """A refresh by us in the order of a save, over real HTTP."""
    store = SchwabTokenFile(path)
    old = store.load()
    pending = store.prepare(old)
    answer = httpx.post(
        issuer.url,
        data={"grant_type": "refresh_token", "refresh_token": old.refresh_token},
        auth=APP,
        trust_env=False,
    ).json()
    now = SYSTEM_CLOCK.wall()
    return pending.save(
        replace(
            old,
            access_token=answer["access_token"],
            refresh_token=answer["refresh_token"],
            issued_at=now,
            expires_at=now + timedelta(seconds=answer["expires_in"]),
            generation=0,
            extra={"id_token": answer["id_token"]},
        )
    )


def ours(issuer: Issuer) -> Token:
    answer, now = issuer.answer(), SYSTEM_CLOCK.wall()
    return Token(
        str(answer["access_token"]),
        str(answer["refresh_token"]),
        expires_at=now + timedelta(minutes=30),
        issued_at=now,
        scope="api",
        signin_deadline=now + SIGNIN_LIFETIME,
        extra={"id_token": answer["id_token"]},
    )


def test_we_read_what_schwab_py_wrote_at_a_sign_in(issuer: Issuer, path: Path, caplog) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    sign_in_with_schwab_py(issuer, path)
    path.chmod(0o644)  # what its writer leaves under the usual umask
    token = SchwabTokenFile(path).load()
    assert (token.access_token, token.refresh_token, token.scope) == (
        "access-1",
        "refresh-1",
        "api",
    )
    assert token.extra == {"id_token": "identity-1"}
    assert timedelta(0) <= token.issued_at - before < timedelta(minutes=1)
    assert token.expires_at - token.issued_at == timedelta(minutes=30)
    assert timedelta(0) <= token.signin_deadline - before - SIGNIN_LIFETIME < timedelta(minutes=1)
    assert "Others may read this file" in caplog.text


def test_schwab_py_opens_what_we_wrote_and_refreshes_it(
    issuer: Issuer, path: Path, open_client
) -> None:
    SchwabTokenFile(path).store(ours(issuer))
    client = open_client()
    assert spends(client) == "access-1"
    assert issuer.spent == [], "a fresh token of ours is not refreshed"
    assert 0 <= client.token_age() < 60
    due(path)
    client = open_client()
    assert spends(client) == "access-2"
    assert issuer.spent == ["refresh-1"]
    assert issuer.authorizations == ["Basic " + base64.b64encode(b"app-key:app-secret").decode()]


def test_we_read_what_schwab_py_refreshed(issuer: Issuer, path: Path, open_client) -> None:
    store = SchwabTokenFile(path)
    store.store(replace(ours(issuer), generation=1))
    first = store.load()
    due(path)
    assert spends(open_client()) == "access-2"
    second = store.load()
    assert (second.access_token, second.refresh_token) == ("access-2", "refresh-2")
    assert second.generation >= first.generation
    assert second.signin_deadline == first.signin_deadline, "a refresh never moves it"
    assert not second.is_expired()


def test_schwab_py_opens_what_we_refreshed(issuer: Issuer, path: Path, open_client) -> None:
    sign_in_with_schwab_py(issuer, path)
    path.chmod(0o644)
    created = json.loads(path.read_text())["creation_timestamp"]
    assert we_refresh(path, issuer).access_token == "access-2"
    assert json.loads(path.read_text())["creation_timestamp"] == created
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client = open_client()
    assert spends(client) == "access-2"
    assert client.session.token["id_token"] == "identity-2"
    assert client.token_metadata.creation_timestamp == created
    assert issuer.spent == ["refresh-1"]


def test_both_sides_take_turns_for_days_and_no_refresh_token_is_spent_twice(
    issuer: Issuer, path: Path, open_client
) -> None:
    sign_in_with_schwab_py(issuer, path)
    path.chmod(0o600)
    shape = set(json.loads(path.read_text())["token"])
    for turn in range(2, 12, 2):
        due(path)
        assert we_refresh(path, issuer).access_token == f"access-{turn}"
        due(path)
        assert spends(open_client()) == f"access-{turn + 1}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert set(json.loads(path.read_text())["token"]) == shape
    assert issuer.spent == [f"refresh-{number}" for number in range(1, 11)]


def test_a_schwab_py_that_is_already_running_does_not_see_our_refresh(
    issuer: Issuer, path: Path, open_client
) -> None:
    """The documented limit: schwab-py reads its file once, so its next refresh is refused and it must be restarted."""
    SchwabTokenFile(path).store(ours(issuer))
    due(path)
    running = open_client()
    we_refresh(path, issuer)
    with pytest.raises(Exception, match="invalid_grant"):
        spends(running)
    assert SchwabTokenFile(path).load().access_token == "access-2", "the refusal harms nothing"
    assert spends(open_client()) == "access-2"


def test_what_schwab_py_refuses_we_refuse_with_words(
    issuer: Issuer, path: Path, open_client
) -> None:
    inner = {"access_token": "a", "refresh_token": "r", "expires_in": 1800, "expires_at": 1}
    for content, error, words in (
        (json.dumps({"token": inner}), ValueError, "old format"),
        (json.dumps({"creation_timestamp": 1}), KeyError, "no field 'token'"),
        ("", json.JSONDecodeError, "is empty"),
        ('{"creation_timestamp": 17', json.JSONDecodeError, "half-written"),
    ):
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(error):
            open_client()
        with pytest.raises(StorageError, match=words):
            SchwabTokenFile(path).load()


def test_the_refreshless_token_of_schwab_pys_empty_paste_is_refused(
    issuer: Issuer, path: Path
) -> None:
    path.write_text(
        json.dumps(
            {
                "creation_timestamp": 1_767_538_800,
                "token": {"access_token": "a", "expires_in": 3600, "expires_at": 1_767_542_400},
            }
        )
    )
    path.chmod(0o600)
    with pytest.raises(StorageError, match=r"no refresh_token.*keepline login"):
        SchwabTokenFile(path).load()
