"""The sandbox's broker: decides every answer of its OAuth server from the request and the venue's time.

Invariants: the same seed and the same requests give the same answers; no clock, no chance, no socket; a refresh token
that was spent buys nothing, and ends its family unless it comes within the grace.
"""

import base64
import binascii
import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_plus, urlencode, urlsplit

from keepline.errors import ConfigError
from keepline.sandbox.ledger import Family, Ledger, Verdict
from keepline.sandbox.sessions import Sessions

__all__ = ["OAuthVenue", "Reply", "VenueSettings"]

SCHWAB_REFUSAL = (
    '400 Bad Request: "{"error_description":"Exception while authenticating refresh token",'
    '"error":"refresh_token_authentication_error"}"'
)
"""What clients of Schwab quote for a refresh token past its seven days, beside the code `unsupported_token_type`."""

_REFUSED = {
    Verdict.UNKNOWN: ("invalid_grant", "the refresh token is unknown"),
    Verdict.REVOKED: ("invalid_grant", "the sign-in was revoked"),
    Verdict.EXPIRED: ("unsupported_token_type", SCHWAB_REFUSAL),
    Verdict.REUSED: ("invalid_grant", "the refresh token was spent before: the sign-in is revoked"),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a mapping is sent as JSON, a text as HTML."""

    status: int
    body: Mapping[str, object] | list[object] | str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VenueSettings:
    """How the venue behaves; all times in seconds.

    Attributes:
        seed: the same seed gives the same tokens.
        access_lifetime: life of an access token.
        refresh_lifetime: from a sign-in to the next; no refresh moves it.
        session_lifetime: life of a ProjectX session token.
        code_lifetime: how long a code may be exchanged.
        rotate: whether a refresh answers with a new refresh token.
        grace: how long the one before the live refresh token still works after a rotation.
        one_sign_in: whether a new sign-in ends the earlier ones, as Schwab does.
        redirect_uris: where the authorize page may send a browser; empty allows any loopback address.
        app_key: the OAuth client's name.
        app_secret: its secret.
        username: of ProjectX's loginKey.
        api_key: of ProjectX's loginKey.
    """

    seed: int = 1
    access_lifetime: float = 1800.0
    refresh_lifetime: float = 604_800.0
    session_lifetime: float = 86_400.0
    code_lifetime: float = 30.0
    rotate: bool = True
    grace: float = 0.0
    one_sign_in: bool = True
    redirect_uris: tuple[str, ...] = ()
    app_key: str = "sandbox-key"
    app_secret: str = field(default="sandbox-secret", repr=False)
    username: str = "sandbox"
    api_key: str = field(default="sandbox-api-key", repr=False)

    def __post_init__(self) -> None:
        for name in ("access_lifetime", "refresh_lifetime", "session_lifetime", "code_lifetime"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError("a positive number of seconds is needed", key=name)
        if not 0 <= self.grace < float("inf"):
            raise ConfigError("a number of seconds from 0 up is needed", key="grace")


@dataclass(frozen=True, slots=True)
class _Code:
    expires_at: float
    redirect_uri: str
    challenge: str


class OAuthVenue:
    """Schwab's authorize and token endpoints; `sessions` is ProjectX's part of the same venue.

    Every method takes `now`, the venue's time in epoch seconds.
    """

    def __init__(self, settings: VenueSettings | None = None) -> None:
        self.settings = settings or VenueSettings()
        self.counts: Counter[str] = Counter()
        self.sessions = Sessions(
            username=self.settings.username,
            api_key=self.settings.api_key,
            lifetime=self.settings.session_lifetime,
            secret=hashlib.sha256(f"keepline sandbox {self.settings.seed}".encode()).digest(),
            counts=self.counts,
        )
        self._ledger = Ledger()
        self._codes: dict[str, _Code] = {}
        self._made = 0

    def authorize(self, query: Mapping[str, str], *, now: float) -> Reply:
        """The page where a person would agree: it agrees at once and redirects with a code."""
        target = query.get("redirect_uri", "")
        if query.get("client_id") != self.settings.app_key:
            return _refusal("invalid_client", "the app key is unknown", status=401)
        if not self._may_redirect(target):
            return _refusal("invalid_request", "the redirect_uri is not registered for this app")
        if query.get("response_type") != "code":
            return _redirect(target, error="unsupported_response_type", state=query.get("state"))
        if query.get("code_challenge") and query.get("code_challenge_method") != "S256":
            return _redirect(target, error="invalid_request", state=query.get("state"))
        self.counts["authorizations"] += 1
        code = self._secret("code", prefix="C0.")
        self._codes[code] = _Code(
            now + self.settings.code_lifetime, target, query.get("code_challenge", "")
        )
        return _redirect(
            target, code=code, session=self._secret("session"), state=query.get("state")
        )

    def token(
        self,
        form: Mapping[str, str],
        *,
        authorization: str = "",
        now: float,
        rotate: bool | None = None,
    ) -> Reply:
        """The token endpoint.

        Args:
            form: the fields of the body.
            authorization: the header field of that name.
            now: the venue's time.
            rotate: for this request instead of the setting.
        """
        self.counts["token_requests"] += 1
        if not self._is_our_app(form, authorization):
            return self._refuse("invalid_client", "Client authentication failed", status=401)
        match form.get("grant_type"):
            case "authorization_code":
                return self._exchange(form, now=now)
            case "refresh_token":
                turn = self.settings.rotate if rotate is None else rotate
                return self._refresh(form.get("refresh_token", ""), rotate=turn, now=now)
            case "client_credentials":
                self.counts["client_credentials"] += 1
                family = self._ledger.open(now + self.settings.access_lifetime, now=now)
                return self._issue(family, now=now)
            case other:
                return self._refuse("unsupported_grant_type", f"no such grant: {str(other)[:40]}")

    def sign_in(self, *, now: float) -> Reply:
        """What a person's whole sign-in ends with: the answer that holds both tokens."""
        if self.settings.one_sign_in:
            self._ledger.revoke_all()
        self.counts["sign_ins"] += 1
        family = self._ledger.open(now + self.settings.refresh_lifetime, now=now)
        self._ledger.rotate(family, self._secret("refresh"), now=now)
        return self._issue(family, now=now)

    def accepts(self, bearer: str, *, now: float) -> bool:
        """Whether a token, of either kind, opens the API."""
        return self._ledger.accepts(bearer, now=now) or self.sessions.accepts(bearer, now=now)

    def revoke(self, what: str) -> None:
        """The venue takes back what it gave: `access` tokens before their time, or `all` sign-ins and sessions."""
        if what == "all":
            self.counts["revocations"] += self._ledger.revoke_all()
        self._ledger.forget_access()
        self.sessions.forget()

    def _may_redirect(self, target: str) -> bool:
        if self.settings.redirect_uris:
            return target in self.settings.redirect_uris
        parts = urlsplit(target)
        return parts.scheme in ("http", "https") and parts.hostname in (
            "127.0.0.1",
            "::1",
            "localhost",
        )

    def _is_our_app(self, form: Mapping[str, str], authorization: str) -> bool:
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "basic":
            key, secret = _basic(value)
        else:
            key, secret = form.get("client_id", ""), form.get("client_secret", "")
        ours = f"{self.settings.app_key}\n{self.settings.app_secret}"
        return hmac.compare_digest(f"{key}\n{secret}".encode(), ours.encode())

    def _exchange(self, form: Mapping[str, str], *, now: float) -> Reply:
        code = self._codes.pop(form.get("code", ""), None)  # single use, right or wrong
        if code is None or now >= code.expires_at:
            return self._refuse("invalid_grant", "the code is unknown, used or too old")
        if form.get("redirect_uri") != code.redirect_uri:
            return self._refuse("invalid_grant", "the redirect_uri is not the one of the sign-in")
        if code.challenge and _challenge(form.get("code_verifier", "")) != code.challenge:
            return self._refuse("invalid_grant", "the code_verifier does not fit")
        return self.sign_in(now=now)

    def _refresh(self, token: str, *, rotate: bool, now: float) -> Reply:
        verdict, family = self._ledger.look_up(token, grace=self.settings.grace, now=now)
        if family is None or verdict in _REFUSED:
            if family is not None and verdict is Verdict.REUSED:
                self.counts["reuses"] += 1
                self.counts["revocations"] += self._ledger.revoke(family)
            return self._refuse(*_REFUSED[verdict])
        if verdict is Verdict.LIVE and rotate:
            self._ledger.rotate(family, self._secret("refresh"), now=now)
        self.counts["refreshes"] += 1
        return self._issue(family, now=now)

    def _issue(self, family: Family, *, now: float) -> Reply:
        access = self._secret("access", prefix="I0.")
        self._ledger.grant(family, access, now + self.settings.access_lifetime, now=now)
        body: dict[str, object] = {
            "expires_in": _plain(self.settings.access_lifetime),
            "token_type": "Bearer",
            "scope": "api",
            "access_token": access,
        }
        if family.live:
            body["refresh_token"] = family.live
            body["id_token"] = self._secret("id")
        return Reply(200, body, {"Cache-Control": "no-store"})

    def _refuse(self, code: str, description: str, *, status: int = 400) -> Reply:
        self.counts["refused"] += 1
        return _refusal(code, description, status=status)

    def _secret(self, kind: str, *, prefix: str = "") -> str:
        self._made += 1
        digest = hashlib.sha256(f"{self.settings.seed}:{kind}:{self._made}".encode()).digest()
        return f"{prefix}{base64.urlsafe_b64encode(digest).decode().rstrip('=')}@"


def _refusal(code: str, description: str, *, status: int = 400) -> Reply:
    return Reply(status, {"error": code, "error_description": description})


def _redirect(target: str, **fields: str | None) -> Reply:
    query = urlencode({name: value for name, value in fields.items() if value is not None})
    return Reply(302, "", {"Location": f"{target}{'&' if '?' in target else '?'}{query}"})


def _basic(value: str) -> tuple[str, str]:
    """Key and secret of a Basic field, each form-decoded (RFC 6749 §2.3.1); empty when it is none."""
    try:
        key, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return unquote_plus(key), unquote_plus(secret)


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _plain(seconds: float) -> float | int:
    return int(seconds) if seconds == int(seconds) else seconds
