"""OAuth 2.0 as a decider (RFC 6749, 7636): builds token requests, reads answers into a token or an error.

Invariants: no clock, no chance, no socket. Only an error code that says so is a refusal; a server error, a page instead
of JSON or an unknown code is worth another try and never a reason to discard a refresh token. An answer that holds a
usable access token is never thrown away for an odd field beside it: it may hold the only copy of a rotated token.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import quote_plus, urlencode, urlsplit

from keepline.credentials.answers import Answer, after, number, quoted, transient
from keepline.credentials.token import DEFAULT_LIFETIME_SECONDS, Token
from keepline.errors import ConfigError, KeeplineError, TokenRefused

__all__ = [
    "FATAL_CODES",
    "ClientAuth",
    "Grant",
    "Granted",
    "OAuthApp",
    "SignIn",
    "TokenRequest",
    "begin_sign_in",
    "client_credentials_request",
    "exchange_request",
    "read_answer",
    "refresh_request",
    "refused",
    "require_safe_url",
]

Grant = Literal["refresh_token", "client_credentials", "authorization_code"]
ClientAuth = Literal["basic", "post", "none"]

FATAL_CODES: Mapping[str, str] = {
    "invalid_grant": "what we presented is expired, revoked or was used before: sign in again",
    "invalid_client": "the client id or its secret is wrong: compare them with the issuer's page",
    "unauthorized_client": "this app may not do that: look at its settings at the issuer",
    "unsupported_grant_type": "the issuer does not know this grant: choose another one",
    "invalid_scope": "the scope is unknown or not allowed for this app: correct it",
    "access_denied": "access was denied by the person or the issuer: sign in again and agree",
}
"""Error codes that no repetition cures (RFC 6749 §5.2, §4.1.2.1), each with what to do."""

_WORN_OUT = "the refresh token is no longer good: sign in again"
_KNOWN_FIELDS = ("access_token", "refresh_token", "expires_in", "token_type", "scope")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthApp:
    """A client at an issuer.

    Attributes:
        token_url: the token endpoint.
        client_id: the client's name there.
        client_secret: its secret, "" for a public client.
        client_auth: `basic` (RFC 6749 §2.3.1), `post` (in the body) or `none` (a public client).
        authorize_url: where a person signs in, "" when nobody does.
        redirect_uri: where the issuer sends the browser afterwards.
        scope: what to ask for, "" for the issuer's default.
        pkce: prove at the exchange that we began the sign-in (RFC 7636, S256).
        refresh_lifetime: from a sign-in to the next one, None when no end is known.
        name: the credential's name.
        worn_out_codes: further codes that mean a dead refresh token here.
        worn_out_texts: the same, found inside the description (lower case).
    """

    token_url: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    client_auth: ClientAuth = "basic"
    authorize_url: str = ""
    redirect_uri: str = ""
    scope: str = ""
    pkce: bool = True
    refresh_lifetime: timedelta | None = None
    name: str = ""
    worn_out_codes: frozenset[str] = frozenset()
    worn_out_texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_safe_url(self.token_url, key="token_url")
        if self.authorize_url:
            require_safe_url(self.authorize_url, key="authorize_url")
        if not self.client_id:
            raise ConfigError("the client's id is needed", key="client_id")
        if self.client_auth not in ("basic", "post", "none"):
            raise ConfigError("basic, post or none is needed", key="client_auth")
        if self.client_auth != "none" and not self.client_secret:
            raise ConfigError(
                f'client_auth = "{self.client_auth}" needs the secret; a public client says "none"',
                key="client_secret",
            )


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One POST to the token endpoint; its fields are secret and not shown."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    form: Mapping[str, str] = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What may not be quoted, whoever repeats it to us."""
        names = ("refresh_token", "code", "code_verifier", "client_secret")
        return tuple(self.form[name] for name in names if name in self.form)


@dataclass(frozen=True, slots=True)
class SignIn:
    """A sign-in that was begun.

    Attributes:
        url: the page that the person opens.
        state: what the redirect must bring back.
        verifier: the proof that we began it, "" without PKCE.
    """

    url: str = field(repr=False)
    state: str = field(repr=False)
    verifier: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Granted:
    """A token, and a remark when something about the answer was odd."""

    token: Token
    remark: str = ""


def require_safe_url(url: str, *, key: str) -> None:
    """Secrets travel by https, or by http on this machine alone.

    Raises:
        ConfigError: anything else.
    """
    try:
        parts = urlsplit(url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    except ValueError:
        safe = False
    if not safe or not parts.hostname:
        raise ConfigError("an https:// address is needed (http:// on loopback alone)", key=key)


def begin_sign_in(app: OAuthApp, *, state: str, verifier: str) -> SignIn:
    """The address for the person's browser.

    Args:
        app: the client.
        state: fresh and unguessable.
        verifier: fresh, 43 to 128 unreserved characters; not used without PKCE.

    Raises:
        ConfigError: the client has no authorize_url or no redirect_uri.
    """
    for key in ("authorize_url", "redirect_uri"):
        if not getattr(app, key):
            raise ConfigError("a sign-in needs it", key=key)
    query = {
        "response_type": "code",
        "client_id": app.client_id,
        "redirect_uri": app.redirect_uri,
        "state": state,
    }
    if app.scope:
        query["scope"] = app.scope
    if app.pkce:
        query |= {"code_challenge": _challenge(verifier), "code_challenge_method": "S256"}
    joint = "&" if urlsplit(app.authorize_url).query else "?"
    url = f"{app.authorize_url}{joint}{urlencode(query)}"
    return SignIn(url, state, verifier if app.pkce else "")


def exchange_request(app: OAuthApp, code: str, sign_in: SignIn) -> TokenRequest:
    """Buy the first tokens with the code of a redirect, decoded once."""
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": app.redirect_uri}
    if sign_in.verifier:
        form["code_verifier"] = sign_in.verifier
    return _request(app, form)


def refresh_request(app: OAuthApp, refresh_token: str) -> TokenRequest:
    """Spend a refresh token; the scope is left out: it stays what was granted (RFC 6749 §6)."""
    return _request(app, {"grant_type": "refresh_token", "refresh_token": refresh_token})


def client_credentials_request(app: OAuthApp) -> TokenRequest:
    """Buy a token with the client's own secret."""
    scope = {"scope": app.scope} if app.scope else {}
    return _request(app, {"grant_type": "client_credentials", **scope})


def read_answer(
    app: OAuthApp, request: TokenRequest, answer: Answer, *, previous: Token | None = None
) -> Granted:
    """What the token endpoint's answer means.

    Args:
        app: the client.
        request: what was sent.
        answer: what came.
        previous: the token that is being renewed: what a refresh leaves out is carried over from it.

    Raises:
        TokenRefused: a code that no repetition cures.
        TransientError: everything else that is not a token.
    """
    body = answer.json_object()
    if answer.status >= 300 or not body or (body.get("error") and not body.get("access_token")):
        raise _failure(app, answer, body or {}, (*request.secrets, app.client_secret))
    access_token = body.get("access_token")
    if not isinstance(access_token, str) or not re.fullmatch(r"[\x21-\x7e]+", access_token):
        raise transient(answer, "the answer holds no access_token that a header could carry")
    lifetime, remark = _lifetime(body.get("expires_in"))
    token = Token(
        access_token,
        expires_at=after(answer.sent_at, lifetime),
        issued_at=answer.sent_at,
        token_type=_text(body.get("token_type")) or "Bearer",
        scope=_scope(body.get("scope")) or (previous.scope if previous else app.scope),
        extra={name: value for name, value in body.items() if name not in _KNOWN_FIELDS},
    )
    return Granted(
        _with_refresh_token(app, token, _text(body.get("refresh_token")), previous), remark
    )


def refused(
    app: OAuthApp, code: str, description: str = "", *, status: int | None = None
) -> TokenRefused:
    """The refusal for an error code, with what to do about it."""
    remedy = FATAL_CODES.get(code, _WORN_OUT)
    if _is_worn_out(app, code, description):
        remedy = _WORN_OUT
    said = f"; the issuer says: {description}" if description else ""
    return TokenRefused(
        f"the issuer refused with {code}: {remedy}{said}",
        code=code,
        status=status,
        credential=app.name,
    )


def _request(app: OAuthApp, form: dict[str, str]) -> TokenRequest:
    headers = {"Accept": "application/json"}
    if app.client_auth == "basic":
        # each half is form-encoded before the colon joins them (RFC 6749 §2.3.1)
        pair = f"{quote_plus(app.client_id)}:{quote_plus(app.client_secret)}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    else:
        form["client_id"] = app.client_id
        if app.client_auth == "post":
            form["client_secret"] = app.client_secret
    return TokenRequest(app.token_url, headers, form)


def _failure(
    app: OAuthApp, answer: Answer, body: Mapping[str, Any], secrets: tuple[str, ...]
) -> KeeplineError:
    code = body.get("error")
    final = answer.status < 500 and answer.status not in (408, 429)
    if not isinstance(code, str) or not final or 300 <= answer.status < 400:
        return transient(answer)
    shown = quoted(code, secrets)
    description = quoted(_text(body.get("error_description")), secrets)
    if code in FATAL_CODES or _is_worn_out(app, code, description):
        return refused(app, shown, description, status=answer.status)
    return transient(answer, f"{shown}: {description}" if description else shown)


def _is_worn_out(app: OAuthApp, code: str, description: str) -> bool:
    return code in app.worn_out_codes or any(
        text in description.lower() for text in app.worn_out_texts
    )


def _with_refresh_token(
    app: OAuthApp, token: Token, refresh_token: str, previous: Token | None
) -> Token:
    if previous is not None:
        kept = refresh_token or previous.refresh_token
        return replace(token, refresh_token=kept, signin_deadline=previous.signin_deadline)
    deadline = None
    if refresh_token and app.refresh_lifetime is not None:
        deadline = after(token.issued_at, app.refresh_lifetime.total_seconds())
    return replace(token, refresh_token=refresh_token, signin_deadline=deadline)


def _lifetime(expires_in: object) -> tuple[float, str]:
    seconds = number(expires_in)
    if seconds is not None and seconds > 0:
        return seconds, ""
    assumed = f"counted as {DEFAULT_LIFETIME_SECONDS:g} s"
    if expires_in is None:
        return (
            DEFAULT_LIFETIME_SECONDS,
            f"the answer does not say how long the token lives: {assumed}",
        )
    return DEFAULT_LIFETIME_SECONDS, f"expires_in is {quoted(expires_in)!r:.60}: {assumed}"


def _scope(value: object) -> str:
    if isinstance(value, list):
        return " ".join(part for part in value if isinstance(part, str))
    return _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _challenge(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
