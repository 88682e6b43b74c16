"""What the address says that a browser comes back with after a sign-in: a decider.

Invariants: no code is taken without the state of our own sign-in, compared in constant time; what does not belong to
the sign-in raises `SignInRequired` (go on waiting), what does belong and says no raises `TokenRefused` or
`TransientError` (the sign-in is over); no message repeats a code or a state.
"""

import hmac
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, urlsplit

from keepline.credentials.answers import quoted
from keepline.credentials.oauth import OAuthApp, SignIn, refused
from keepline.credentials.token import Token
from keepline.errors import ConfigError, SignInRequired, TokenRefused, TransientError

__all__ = ["Place", "callback_place", "read_redirect", "require_refresh_token"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PASSING = ("server_error", "temporarily_unavailable")
"""Errors of the authorize page that another try may cure (RFC 6749 §4.1.2.1)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a callback is listened for."""

    host: str
    port: int
    path: str
    tls: bool


def callback_place(redirect_uri: str) -> Place:
    """Where the browser will come back to, when that is this machine.

    Raises:
        ConfigError: it is another machine, or a port that needs root; says what to do.
    """
    parts = _split(redirect_uri)
    if parts is None or parts.hostname not in _LOOPBACK:
        raise ConfigError(
            "the browser would not come back to this machine: register a callback such as https://127.0.0.1:8182, "
            "or paste the address",
            key="redirect_uri",
        )
    if (port := parts.port or 443) < 1024:
        raise ConfigError(
            f"port {port} needs root: register a callback with a port from 1024 up, or paste the address",
            key="redirect_uri",
        )
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return Place(host, port, parts.path or "/", parts.scheme == "https")


def read_redirect(address: str, *, app: OAuthApp, sign_in: SignIn) -> str:
    """The code in the address that the browser was sent to, decoded once.

    Args:
        address: what the person pasted, or what the browser asked our callback for.
        app: the client; its redirect_uri tells which addresses are ours.
        sign_in: the one that was begun.

    Raises:
        SignInRequired: empty, not an address, of another place, or of another sign-in.
        TokenRefused: the issuer or the person said no, or there is no code.
        TransientError: the issuer's page failed for the moment.
    """
    parts = _ours(address.strip().strip("\"'<>"), app)
    fields = _fields(parts.query, app)
    # the state first: without it nothing else in the address deserves belief
    state = _one(fields, "state").encode(errors="replace")
    if not hmac.compare_digest(state, sign_in.state.encode()):
        raise SignInRequired(
            "the address belongs to another sign-in (its state is not ours): open the newest page and use its address",
            credential=app.name,
        )
    if "error" in fields:
        raise _denied(app, _one(fields, "error"), _one(fields, "error_description"))
    code = _one(fields, "code")
    if not code:
        raise TokenRefused(
            "the issuer sent the browser back without a code: sign in again and agree to the end",
            code="no_code",
            credential=app.name,
        )
    return code


def require_refresh_token(token: Token, app: OAuthApp) -> Token:
    """The token, when it can be renewed.

    Raises:
        TokenRefused: it holds no refresh token; it would die within the hour and leave the bots logged out.
    """
    if token.refresh_token:
        return token
    raise TokenRefused(
        "the issuer's answer holds no refresh token, so nothing was saved: sign in again; an issuer may want a scope "
        "such as offline_access for it",
        code="no_refresh_token",
        credential=app.name,
    )


def _ours(address: str, app: OAuthApp) -> SplitResult:
    """The parts of the address when it leads to our redirect_uri."""
    if not address:
        raise SignInRequired(
            "nothing was pasted: paste the whole address that the browser shows after you agreed",
            credential=app.name,
        )
    parts, wanted = _split(address), urlsplit(app.redirect_uri)
    if parts is None:
        raise SignInRequired(
            "this is not an address: paste all of it, from https:// to the end",
            credential=app.name,
        )
    if _origin(parts) != _origin(wanted) or (parts.path or "/") != (wanted.path or "/"):
        raise SignInRequired(
            f"the address leads to {quoted(_origin(parts)[1])}{quoted(parts.path)}, the sign-in comes back to "
            f"{_origin(wanted)[1]}{wanted.path}: paste the address that begins with {app.redirect_uri}",
            credential=app.name,
        )
    return parts


def _split(address: str) -> SplitResult | None:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def _origin(parts: SplitResult) -> tuple[str, str]:
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, f"{parts.hostname}:{port}"


def _fields(query: str, app: OAuthApp) -> dict[str, list[str]]:
    try:
        return parse_qs(query, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise SignInRequired("the address holds too many fields", credential=app.name) from None


def _one(fields: dict[str, list[str]], name: str) -> str:
    """The field's value; one that is there twice counts as none (RFC 6749 §3.1)."""
    values = fields.get(name, [])
    return values[0] if len(values) == 1 else ""


def _denied(app: OAuthApp, code: str, description: str) -> TokenRefused | TransientError:
    shown, said = re.sub(r"[^\w.-]", "", code)[:40] or "an error", quoted(description)
    if code in _PASSING:
        return TransientError(
            f"the issuer's page failed ({shown}): sign in again", category="server"
        )
    return refused(app, shown, said)
