"""A token as JSON that a person carries: what `token export` writes and `token import` reads.

Invariants: what it reads may be our own form, schwab-py's file or an OAuth answer; an error names the field and never
shows a value.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from keepline.credentials.token import DEFAULT_LIFETIME_SECONDS, NEVER, Token
from keepline.errors import ConfigError

__all__ = ["from_json", "to_json"]

_SCHWAB_SIGN_IN = timedelta(days=7)
"""From `creation_timestamp`, as schwab-py counts it."""

_KNOWN = frozenset(
    {
        "credential",
        "access_token",
        "refresh_token",
        "expires_at",
        "expires_in",
        "issued_at",
        "token_type",
        "scope",
        "generation",
        "signin_deadline",
        "extra",
    }
)


class _Form(msgspec.Struct):
    access_token: str
    refresh_token: str = ""
    expires_at: float | datetime | None = None
    expires_in: float | None = None
    issued_at: float | datetime | None = None
    token_type: str = "Bearer"  # noqa: S105 - the scheme's name
    scope: str = ""
    signin_deadline: float | datetime | None = None
    extra: dict[str, Any] | None = None


def to_json(token: Token, credential: str) -> str:
    """All of a token, its secrets included; instants are ISO-8601."""
    return msgspec.json.format(
        msgspec.json.encode(
            {
                "credential": credential,
                "access_token": token.access_token,
                "refresh_token": token.refresh_token,
                "expires_at": None if token.expires_at >= NEVER else token.expires_at,
                "issued_at": token.issued_at,
                "token_type": token.token_type,
                "scope": token.scope,
                "generation": token.generation,
                "signin_deadline": token.signin_deadline,
                "extra": dict(token.extra),
            }
        ),
        indent=2,
    ).decode()


def from_json(data: bytes, now: datetime) -> Token:
    """The token of one of the three forms, with generation 0.

    Args:
        data: the JSON.
        now: the time (aware), for a form that gives no time of issue.

    Raises:
        ConfigError: no JSON object, a field that is missing or of another type, or a token that has expired.
    """
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ConfigError("a JSON object is expected", key="token") from None
    try:
        token = _read(raw, now)
    except (msgspec.MsgspecError, ValueError, OverflowError, OSError) as error:
        raise ConfigError(_problem(error), key="token") from None
    if token.is_expired(now) and not token.refresh_token:
        raise ConfigError("it has expired and holds no refresh_token", key="token")
    return token


def _read(raw: dict[str, Any], now: datetime) -> Token:
    deadline = None
    if isinstance(raw.get("token"), dict):  # schwab-py: {"creation_timestamp": …, "token": {…}}
        created = raw.get("creation_timestamp")
        if isinstance(created, int | float):
            deadline = datetime.fromtimestamp(created, UTC) + _SCHWAB_SIGN_IN
        raw = raw["token"]
    return _token(msgspec.convert(raw, _Form), raw, now, deadline)


def _token(form: _Form, raw: dict[str, Any], now: datetime, deadline: datetime | None) -> Token:
    lifetime = timedelta(
        seconds=DEFAULT_LIFETIME_SECONDS if form.expires_in is None else form.expires_in
    )
    expires = _moment(form.expires_at)
    if expires is None:
        never = "expires_at" in raw and form.expires_in is None
        expires = NEVER if never else (_moment(form.issued_at) or now) + lifetime
    issued = _moment(form.issued_at) or min(now, expires - lifetime if expires < NEVER else now)
    return Token(
        form.access_token,
        form.refresh_token,
        expires_at=expires,
        issued_at=issued,
        token_type=form.token_type,
        scope=form.scope,
        signin_deadline=_moment(form.signin_deadline) or deadline,
        extra={**(form.extra or {}), **{k: v for k, v in raw.items() if k not in _KNOWN}},
    )


def _moment(value: float | datetime | None) -> datetime | None:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("an instant needs its offset, for example 2026-01-05T14:30:00Z")
        return value.astimezone(UTC)
    return None if value is None else datetime.fromtimestamp(value, UTC)


def _problem(error: Exception) -> str:
    """msgspec names field and types, never the value."""
    return f"not a token: {error}".replace("`", "").replace("$.", "")
