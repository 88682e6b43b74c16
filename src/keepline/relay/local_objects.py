"""Tokens and errors as objects of the daemon's local interface, and back.

Invariants: instants are epoch seconds; no refresh token and no foreign error's text leaves the daemon; what another
program sent becomes a value or a `ProtocolError`, never anything else.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from keepline.credentials.token import Token
from keepline.errors import (
    CircuitOpen,
    ConfigError,
    CredentialError,
    KeeplineError,
    ProtocolError,
    QueueFull,
    RateLimited,
    Refused,
    SignInRequired,
    StorageError,
    TokenRefused,
    TokenUnavailable,
)

__all__ = ["error_from_wire", "error_to_wire", "token_from_object", "token_object"]


def token_object(token: Token) -> dict[str, Any]:
    """A token as the local interface shows it: instants as epoch seconds, never the refresh token."""
    deadline = token.signin_deadline
    return {
        "access_token": token.access_token,
        "expires_at": token.expires_at.timestamp(),
        "issued_at": token.issued_at.timestamp(),
        "token_type": token.token_type,
        "scope": token.scope,
        "generation": token.generation,
        "signin_deadline": None if deadline is None else deadline.timestamp(),
        "fingerprint": token.fingerprint,
    }


def token_from_object(data: object) -> Token:
    """The token that `token_object` described.

    Raises:
        ProtocolError: a field is missing, of another type or out of range.
    """
    try:
        fields = msgspec.convert(data, _TokenObject)
        return Token(
            fields.access_token,
            expires_at=datetime.fromtimestamp(fields.expires_at, UTC),
            issued_at=datetime.fromtimestamp(fields.issued_at, UTC),
            token_type=fields.token_type,
            scope=fields.scope,
            generation=fields.generation,
            signin_deadline=(
                None
                if fields.signin_deadline is None
                else datetime.fromtimestamp(fields.signin_deadline, UTC)
            ),
        )
    except (msgspec.MsgspecError, ValueError, OverflowError, OSError) as error:
        raise ProtocolError(f"not a token object: {error}") from None


def error_to_wire(error: BaseException) -> dict[str, Any]:
    """An error as the local interface shows it: a code, a sentence, and what the client needs to rebuild it."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "internal")
    if code == "internal" and not isinstance(error, KeeplineError):
        # a foreign error's text may hold anything
        return {
            "code": code,
            "message": f"the daemon failed with {type(error).__name__}; see its log",
        }
    body: dict[str, Any] = {"code": code, "message": str(error.args[0]) if error.args else code}
    if isinstance(error, CredentialError) and error.credential:
        body["credential"] = error.credential
    match error:
        case SignInRequired():
            body["command"] = error.command
        case TokenUnavailable() if error.retry_at is not None:
            body["retry_at"] = error.retry_at.timestamp()
        case TokenRefused():
            body |= {"reason": error.code, "status": error.status}
        case StorageError() if error.path is not None:
            body["path"] = str(error.path)
        case Refused() if error.retry_after is not None:
            body["retry_after"] = error.retry_after
    return body


def error_from_wire(body: Mapping[str, Any]) -> KeeplineError:
    """The error of ours that a code stands for; an unknown code becomes a plain `KeeplineError`.

    Raises:
        ProtocolError: a field has another type than the protocol says.
    """
    try:
        fields = msgspec.convert(body, _WireError)
        retry_at = None if fields.retry_at is None else datetime.fromtimestamp(fields.retry_at, UTC)
    except (msgspec.MsgspecError, ValueError, OverflowError, OSError) as error:
        raise ProtocolError(f"not an error object: {error}") from None
    message, credential = fields.message or fields.code, fields.credential
    match fields.code:
        case "sign_in_required":
            return SignInRequired(message, credential=credential, command=fields.command)
        case "token_unavailable":
            return TokenUnavailable(message, retry_at=retry_at, credential=credential)
        case "token_refused":
            return TokenRefused(
                message, code=fields.reason, status=fields.status, credential=credential
            )
        case "storage_error":
            return StorageError(message, path=fields.path, credential=credential)
        case "unknown_credential":
            return ConfigError(message, key="credential")
        case "queue_full":
            return QueueFull(message, retry_after=fields.retry_after)
        case "forbidden":
            return Refused(message, retry_after=fields.retry_after)
        case "bad_request" | "unknown_op":
            return ProtocolError(message)
        case _:
            return KeeplineError(message)


# The first match wins: a subclass stands before its parent.
_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (SignInRequired, "sign_in_required"),
    (TokenUnavailable, "token_unavailable"),
    (TokenRefused, "token_refused"),
    (StorageError, "storage_error"),
    (ConfigError, "unknown_credential"),
    (QueueFull, "queue_full"),
    (CircuitOpen, "internal"),
    (RateLimited, "internal"),
    (Refused, "forbidden"),
    (ProtocolError, "bad_request"),
)


class _TokenObject(msgspec.Struct):
    access_token: str
    expires_at: float
    issued_at: float
    token_type: str = "Bearer"  # noqa: S105 - the scheme's name
    scope: str = ""
    generation: int = 0
    signin_deadline: float | None = None


class _WireError(msgspec.Struct):
    code: str = "internal"
    message: str = ""
    credential: str = ""
    command: str = ""
    retry_at: float | None = None
    reason: str = ""
    status: int | None = None
    path: str | None = None
    retry_after: float | None = None
