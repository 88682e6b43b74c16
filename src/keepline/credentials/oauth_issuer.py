"""The OAuth 2.0 issuers: thin faces over the decider in `oauth`.

Invariants: a token has generation 0 (the manager numbers it); `TokenRefused` means that a person or a configuration
must change, `TransientError` that the same call may work in a moment.
"""

import logging
import secrets
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials import oauth
from keepline.credentials.caller import Caller
from keepline.credentials.oauth import ClientAuth, Grant, OAuthApp, SignIn, TokenRequest
from keepline.credentials.token import Token
from keepline.errors import ConfigError, SignInRequired
from keepline.files import read_private
from keepline.http import HttpSession
from keepline.telemetry import event

__all__ = ["OAuth2Issuer", "SchwabIssuer"]

SCHWAB_URL = "https://api.schwabapi.com"
SCHWAB_REDIRECT = "https://127.0.0.1:8182"
SCHWAB_SIGN_IN_LASTS = timedelta(days=7)
"""From the sign-in; no refresh moves it (docs/auth.rst of schwab-py 1.5)."""

log = logging.getLogger("keepline.credentials")


class OAuth2Issuer(Caller):
    """Any OAuth 2.0 server.

    Args:
        token_url: the token endpoint; https, or http on loopback.
        client_id: the client's name there.
        client_secret: its secret, "" for a public client.
        grant: how a first token is bought; only `client_credentials` needs no person.
        client_auth: how the client proves itself: `basic`, `post` (in the body), `none` (a public client).
        authorize_url: where a person signs in.
        redirect_uri: where the server sends the browser afterwards.
        scope: what to ask for, separated by blanks.
        pkce: prove a sign-in with a code verifier (S256).
        http: a session to share; by default one of its own, closed by `close()`.
        clock: the wall clock of issue and expiry.
        name: the credential's name, for messages.
        refresh_lifetime: how long after a sign-in the next one is due, None when no end is known.
        worn_out_codes: error codes beyond the standard's that mean a dead refresh token.
        worn_out_texts: the same, found inside an error's description (lower case).

    Raises:
        ConfigError: an address, id or secret is missing or wrong.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str = "",
        *,
        grant: Grant = "refresh_token",
        client_auth: ClientAuth = "basic",
        authorize_url: str = "",
        redirect_uri: str = "",
        scope: str = "",
        pkce: bool = True,
        http: HttpSession | None = None,
        clock: Clock = SYSTEM_CLOCK,
        name: str = "",
        refresh_lifetime: timedelta | None = None,
        worn_out_codes: Collection[str] = (),
        worn_out_texts: Collection[str] = (),
    ) -> None:
        self._app = OAuthApp(
            token_url=token_url,
            client_id=client_id,
            client_secret=client_secret,
            client_auth=client_auth,
            authorize_url=authorize_url,
            redirect_uri=redirect_uri,
            scope=scope,
            pkce=pkce,
            refresh_lifetime=refresh_lifetime,
            name=name,
            worn_out_codes=frozenset(worn_out_codes),
            worn_out_texts=tuple(worn_out_texts),
        )
        if grant not in ("refresh_token", "client_credentials", "authorization_code"):
            raise ConfigError(
                "refresh_token, client_credentials or authorization_code is needed", key="grant"
            )
        super().__init__(http, clock)
        self._grant = grant

    @property
    def app(self) -> OAuthApp:
        """The client at the issuer, as the sign-in needs it."""
        return self._app

    @property
    def needs_person(self) -> bool:
        """Whether a first token takes somebody at a browser."""
        return self._grant != "client_credentials"

    async def authenticate(self) -> Token:
        """A token for the client itself.

        Raises:
            SignInRequired: only a person can begin with this grant.
            TokenRefused: the issuer said no for good.
            TransientError: it may work in a moment.
        """
        if self.needs_person:
            raise SignInRequired("a person has to sign in", credential=self._app.name)
        return await self._ask(oauth.client_credentials_request(self._app))

    async def refresh(self, token: Token) -> Token:
        """The token after this one; the sign-in deadline stays where it was.

        Raises:
            SignInRequired: there is no refresh token.
            TokenRefused: the issuer said no for good.
            TransientError: it may work in a moment.
        """
        if not self.needs_person:
            return await self.authenticate()  # such a grant has no refresh token (RFC 6749 §4.4.3)
        if not token.refresh_token:
            raise SignInRequired("there is no refresh token", credential=self._app.name)
        request = oauth.refresh_request(self._app, token.refresh_token)
        return await self._ask(request, previous=token)

    def begin_sign_in(self) -> SignIn:
        """A fresh sign-in: the page for the browser, and what proves that its answer is ours.

        Raises:
            ConfigError: authorize_url or redirect_uri is missing.
        """
        return oauth.begin_sign_in(
            self._app, state=secrets.token_urlsafe(24), verifier=secrets.token_urlsafe(48)
        )

    async def exchange(self, code: str, signin: SignIn) -> Token:
        """Buy the first tokens with the code of a redirect; the sign-in deadline starts here.

        Args:
            code: as it stood in the redirect, decoded once (Schwab's ends in `@`).
            signin: the sign-in that the redirect answers.

        Raises:
            TokenRefused: the issuer said no for good.
            TransientError: it may work in a moment, with a new sign-in: a code serves once.
        """
        return await self._ask(oauth.exchange_request(self._app, code, signin))

    async def _ask(self, request: TokenRequest, *, previous: Token | None = None) -> Token:
        answer = await self.post(request.url, headers=request.headers, form=request.form)
        granted = oauth.read_answer(self._app, request, answer, previous=previous)
        if granted.remark:
            event(
                log,
                logging.WARNING,
                "Odd token answer",
                credential=self._app.name,
                remark=granted.remark,
            )
        return granted.token

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._app.name or urlsplit(self._app.token_url).hostname} by {self._grant}>"


class SchwabIssuer(OAuth2Issuer):
    """Schwab's Trader API: access tokens of 30 minutes, a person every seven days.

    Args:
        app_key: of the app on developer.schwab.com.
        app_secret: of the same app.
        base_url: where the API lives.
        redirect_uri: exactly as registered with the app, including a slash at the end.
        http: a session to share.
        clock: the wall clock of issue and expiry.
        name: the credential's name.
    """

    def __init__(
        self,
        app_key: str,
        app_secret: str,
        *,
        base_url: str = SCHWAB_URL,
        redirect_uri: str = SCHWAB_REDIRECT,
        http: HttpSession | None = None,
        clock: Clock = SYSTEM_CLOCK,
        name: str = "schwab",
    ) -> None:
        base_url = base_url.rstrip("/")
        super().__init__(
            f"{base_url}/v1/oauth/token",
            app_key,
            app_secret,
            grant="authorization_code",
            authorize_url=f"{base_url}/v1/oauth/authorize",
            redirect_uri=redirect_uri,
            pkce=False,
            http=http,
            clock=clock,
            name=name,
            refresh_lifetime=SCHWAB_SIGN_IN_LASTS,
            # the bodies that clients saw for a refresh token past its days; the first name misleads
            worn_out_codes=("unsupported_token_type",),
            worn_out_texts=("refresh token invalid", "refresh_token_authentication_error"),
        )

    @classmethod
    def from_app_config(cls, path: Path | str, **options: Any) -> "SchwabIssuer":
        """The issuer for a `schwab_app_config.yaml`: `app_key` and `app_secret` on its top level.

        Args:
            path: the YAML file.
            options: keyword arguments of the class.

        Raises:
            ConfigError: the file or a key is missing or is not what it should be; names both.
            StorageError: the file may not be read, or belongs to somebody else.
        """
        path = Path(path)
        entries = _read_yaml(path)
        return cls(_entry(entries, "app_key", path), _entry(entries, "app_secret", path), **options)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    # another program's file: loose rights are complained of, not refused
    data = read_private(path, on_loose_mode="warn")
    if data is None:
        raise ConfigError("this file is missing; it holds app_key and app_secret", file=path)
    try:
        entries = yaml.safe_load(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            f"this is not YAML{where}", file=path
        ) from None  # it would quote the secret
    if not isinstance(entries, dict):
        raise ConfigError("lines such as `app_key: …` are expected", file=path)
    return entries


def _entry(entries: Mapping[str, Any], key: str, path: Path) -> str:
    value = entries.get(key)
    if value is None or value == "":
        raise ConfigError("this key is missing or empty", key=key, file=path)
    if not isinstance(value, str):
        raise ConfigError("a text is expected: put the value in quotes", key=key, file=path)
    return value.strip()
