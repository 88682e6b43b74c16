"""ProjectX's login keys as a decider: a key buys a session token, validate buys the next one while it lives.

The gateway answers HTTP 200 also when it refuses: `success` and `errorCode` tell (swagger of api.topstepx.com, NSwag,
2025-09). Invariants: no clock, no socket; only a listed code is a refusal; a refused validate is never one, since the
key can still buy a new session.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from keepline.credentials.answers import Answer, after, number, quoted, transient
from keepline.credentials.token import Token
from keepline.errors import KeeplineError, TokenRefused

__all__ = [
    "LOGIN_ERRORS",
    "SESSION_SECONDS",
    "SessionRequest",
    "login_request",
    "read_login",
    "read_validate",
    "validate_request",
]

SESSION_SECONDS = 86_400.0
"""How long a session lives when its token does not say (gateway.docs.projectx.com, validate-session)."""

LOGIN_ERRORS: Mapping[int, tuple[str, str]] = {
    1: ("UserNotFound", "correct the user name"),
    2: ("PasswordVerificationFailed", "correct the login key"),
    3: ("InvalidCredentials", "correct the user name or the login key"),
    4: ("AppNotFound", "ask the firm to allow API access"),
    5: ("AppVerificationFailed", "ask the firm to allow API access"),
    6: ("InvalidDevice", "allow this device on the firm's page"),
    7: ("AgreementsNotSigned", "sign the agreements on the firm's page"),
    9: ("ApiSubscriptionNotFound", "book the API subscription on the firm's page"),
    10: ("ApiKeyAuthenticationDisabled", "enable login by API key on the firm's page"),
}
"""LoginErrorCode without 0 Success and 8 UnknownError; all of these need a person."""

_SKEW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """One POST to the gateway; what it carries is secret and not shown."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    json: Mapping[str, str] | None = field(default=None, repr=False)


def login_request(base_url: str, username: str, api_key: str) -> SessionRequest:
    """Buy a session with the login key."""
    return SessionRequest(
        f"{base_url}/api/Auth/loginKey", json={"userName": username, "apiKey": api_key}
    )


def validate_request(base_url: str, token: Token) -> SessionRequest:
    """Buy the next session token with one that lives."""
    return SessionRequest(
        f"{base_url}/api/Auth/validate", headers={"Authorization": f"Bearer {token.access_token}"}
    )


def read_login(answer: Answer, *, name: str = "", secrets: tuple[str, ...] = ()) -> Token:
    """What loginKey's answer means.

    Raises:
        TokenRefused: a code of `LOGIN_ERRORS`; its `code` reads `loginKey 3 InvalidCredentials`.
        TransientError: everything else that is not a token.
    """
    body = _body(answer)
    token = body.get("token")
    if body.get("success") is True and _is_bearer(token):
        return _token(token, answer)
    raise _refusal(answer, body, name, secrets)


def read_validate(answer: Answer, *, previous: Token) -> Token | None:
    """What validate's answer means; None when the session is over or not prolonged: the key has to be used.

    Raises:
        TransientError: the gateway is out of order.
    """
    if answer.status == 401:
        return None
    body = _body(answer)
    token = body.get("newToken")
    if body.get("success") is not True or not _is_bearer(token):
        return None
    renewed = _token(token, answer)
    return renewed if renewed.expires_at > previous.expires_at else None


def _body(answer: Answer) -> dict[str, Any]:
    body = answer.json_object()
    if answer.status != 200 or body is None:
        raise transient(answer)
    return body


def _is_bearer(token: object) -> bool:
    return (
        isinstance(token, str) and token.isascii() and token.isprintable() and bool(token.strip())
    )


def _refusal(
    answer: Answer, body: Mapping[str, Any], name: str, secrets: tuple[str, ...]
) -> KeeplineError:
    code = body.get("errorCode")
    said = f": {quoted(body['errorMessage'], secrets)}" if body.get("errorMessage") else ""
    if not isinstance(code, int) or code not in LOGIN_ERRORS:
        return transient(answer, f"no session, errorCode {quoted(code)}{said}")
    word, remedy = LOGIN_ERRORS[code]
    return TokenRefused(
        f"loginKey was refused with {code} {word}{said}; {remedy}",
        code=f"loginKey {code} {word}",
        status=answer.status,
        credential=name,
    )


def _token(text: Any, answer: Answer) -> Token:
    return Token(text, expires_at=_expiry(text, answer), issued_at=answer.sent_at)


def _expiry(text: str, answer: Answer) -> datetime:
    """The `exp` of the JWT on our clock; the signature is the gateway's business, we only read the date."""
    import jwt

    try:
        claims = jwt.decode(text, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        claims = {}
    seconds = number(claims.get("exp"))
    if seconds is None or seconds <= 0:
        return after(answer.sent_at, SESSION_SECONDS)
    return after(answer.sent_at, seconds - answer.sent_at.timestamp() - _skew(answer))


def _skew(answer: Answer) -> float:
    """How far the gateway's clock is ahead of ours; small differences are the travel time of the answer."""
    if answer.server_time is None:
        return 0.0
    ahead = (answer.server_time - answer.sent_at).total_seconds()
    return ahead if abs(ahead) > _SKEW_SECONDS else 0.0
