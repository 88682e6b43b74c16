"""A certified OpenID provider that we did not write (npm `oidc-provider`) issues, rotates and revokes."""

import asyncio
import base64
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from aiohttp import ClientSession, CookieJar
from tests.peers.npm import install

from keepline.credentials.issuer import OAuth2Issuer
from keepline.credentials.lifecycle import TokenManagerConfig, TokenState
from keepline.credentials.login import sign_in
from keepline.credentials.manager import TokenManager
from keepline.credentials.token import Token
from keepline.errors import SignInRequired, TokenRefused, TransientError
from keepline.http import HttpSession

pytestmark = pytest.mark.timeout(300)  # the first run installs the package

HERE = Path(__file__).parent / "oidc"
SECRET = "s3cret: with %+& and /="
ACCESS_SECONDS = 600


@dataclass
class Provider:
    """The running server, and somebody at a browser for it."""

    url: str
    redirect_uri: str

    def issuer(self, client_id: str = "basic", **options: Any) -> OAuth2Issuer:
        settings = {
            "client_secret": SECRET,
            "grant": "authorization_code",
            "authorize_url": f"{self.url}/auth",
            "redirect_uri": self.redirect_uri,
            "scope": "openid",
            "name": "peer",
            **options,
        }
        return OAuth2Issuer(f"{self.url}/token", client_id, **settings)

    async def agree(self, page: str) -> str:
        """Follow the provider's pages to the end: the address that leads back to us."""
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
            while not page.startswith(self.redirect_uri):
                async with browser.get(page, allow_redirects=False) as answer:
                    assert answer.status in (302, 303), await answer.text()
                    location = answer.headers["Location"]
                    page = location if "://" in location else self.url + location
        return page

    async def signed_in(self, issuer: OAuth2Issuer) -> Token:
        return await sign_in(issuer, paste=self.agree, open_browser=False)

    async def ask(self, path: str, token: str) -> dict[str, Any]:
        """What the provider says of a token (introspection), or that it takes it back (revocation)."""
        pair = base64.b64encode(f"basic:{quote_plus(SECRET)}".encode()).decode()
        async with HttpSession() as http:
            answer = await http.request(
                "POST",
                f"{self.url}/token/{path}",
                headers={"Authorization": f"Basic {pair}"},
                form={"token": token},
            )
        assert answer.status == 200, answer.text
        return answer.json() if answer.body else {}

    async def is_active(self, token: str) -> bool:
        return bool((await self.ask("introspection", token))["active"])


@pytest.fixture
async def provider(
    need: Callable[..., dict[str, str]], pytestconfig: pytest.Config
) -> AsyncIterator[Provider]:
    tools = need("node", "npm")
    assert pytestconfig.cache is not None
    folder = await asyncio.to_thread(install, pytestconfig.cache, tools["npm"], HERE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        redirect_uri = f"https://127.0.0.1:{probe.getsockname()[1]}/"
    setting = {"secret": SECRET, "redirectUri": redirect_uri, "accessLifetime": ACCESS_SECONDS}
    process = await asyncio.create_subprocess_exec(
        tools["node"],
        "server.mjs",
        cwd=folder,
        env={**os.environ, "OIDC_PEER": json.dumps(setting), "NODE_ENV": "test"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Provider(json.loads(await process.stdout.readline())["url"], redirect_uri)
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.parametrize(
    ("client", "auth"), [("basic", "basic"), ("post", "post"), ("machine", "basic")]
)
async def test_a_client_of_its_own_is_known_by_each_way_of_proof(
    provider: Provider, client: str, auth: Any
) -> None:
    options = {"grant": "client_credentials", "client_auth": auth, "scope": ""}
    async with provider.issuer(client, **options) as issuer:
        token = await issuer.authenticate()
        assert token.refresh_token == ""
        assert token.lifetime == timedelta(seconds=ACCESS_SECONDS)
        assert await provider.is_active(token.access_token)
        assert (await issuer.refresh(token)).access_token != token.access_token


@pytest.mark.parametrize(
    ("client", "auth"), [("basic", "basic"), ("post", "post"), ("public", "none")]
)
async def test_a_sign_in_with_pkce_is_renewed_by_rotation(
    provider: Provider, client: str, auth: Any
) -> None:
    options = {"client_secret": ""} if auth == "none" else {}
    async with provider.issuer(
        client, client_auth=auth, refresh_lifetime=timedelta(hours=1), **options
    ) as issuer:
        first = await provider.signed_in(issuer)
        assert first.signin_deadline == first.issued_at + timedelta(hours=1)
        assert first.scope == "openid"
        assert "id_token" in first.extra
        second = await issuer.refresh(first)
        assert second.refresh_token != first.refresh_token
        assert second.signin_deadline == first.signin_deadline
        assert await provider.is_active(second.access_token)


async def test_a_spent_refresh_token_ends_the_whole_sign_in(provider: Provider) -> None:
    async with provider.issuer() as issuer:
        first = await provider.signed_in(issuer)
        second = await issuer.refresh(first)
        for token in (first, second):
            with pytest.raises(TokenRefused, match="sign in again") as caught:
                await issuer.refresh(token)
            assert (caught.value.code, caught.value.status) == ("invalid_grant", 400)
        assert not await provider.is_active(second.access_token)


async def test_its_refusals_are_told_apart(provider: Provider) -> None:
    async with provider.issuer(client_secret="wrong") as issuer:
        with pytest.raises(TokenRefused) as caught:
            await issuer.refresh(Token("a", "r"))
        assert (caught.value.code, caught.value.status) == ("invalid_client", 401)
    async with provider.issuer("machine") as issuer:
        # a code that says nothing of the token never costs it
        with pytest.raises(TransientError, match="invalid_request: requested grant type"):
            await issuer.refresh(Token("a", "r"))
    async with provider.issuer() as issuer:
        begun = issuer.begin_sign_in()
        address = await provider.agree(begun.url)
        code = address.partition("code=")[2].partition("&")[0]
        with pytest.raises(TokenRefused) as caught:
            await issuer.exchange(code, issuer.begin_sign_in())  # another verifier
        assert caught.value.code == "invalid_grant"


async def test_a_scope_that_it_does_not_allow_is_a_refusal(provider: Provider) -> None:
    async with provider.issuer("machine", grant="client_credentials", scope="orders") as issuer:
        with pytest.raises(TokenRefused) as caught:
            await issuer.authenticate()
    assert caught.value.code == "invalid_scope"


async def test_its_browser_comes_back_to_our_callback(provider: Provider) -> None:
    opened: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    async with provider.issuer() as issuer:
        task = asyncio.create_task(
            sign_in(issuer, browser=lambda url: loop.call_soon_threadsafe(opened.put_nowait, url))
        )
        address = await provider.agree(await opened.get())
        async with ClientSession() as browser, browser.get(address, ssl=False) as page:
            assert page.status == 200
            assert "Signed in" in await page.text()
        assert await provider.is_active((await task).access_token)


async def test_the_manager_lives_through_rotation_and_stops_at_revocation(
    provider: Provider,
) -> None:
    async with provider.issuer() as issuer:
        first = await provider.signed_in(issuer)
        config = TokenManagerConfig(name="peer")
        async with TokenManager(config, issuer) as manager:
            manager.update_tokens(first)
            seen = {await manager.get_token()}
            for _ in range(5):
                seen.add((await manager.force_refresh()).access_token)
            together = await asyncio.gather(*(manager.force_refresh() for _ in range(10)))
            assert len({token.generation for token in together}) == 1
            assert len(seen) == 6
            last = await manager.get()
            assert await provider.is_active(last.access_token)
            await provider.ask("revocation", last.refresh_token)
            with pytest.raises((TokenRefused, SignInRequired)):
                await manager.force_refresh()
            assert manager.get_state() is TokenState.SIGN_IN_REQUIRED
