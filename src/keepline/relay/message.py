"""What a relay message says: parsing and writing of a pushed token, the proof, the answer.

Invariants: a message becomes a `Token` or a `Rejected` with a code and a reason, never another exception; no reason
holds a part of the message; of two generations of a credential the older never replaces the newer while that one lives.
"""

import base64
import binascii
import hmac
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from keepline.credentials.token import DEFAULT_LIFETIME_SECONDS, Token

__all__ = [
    "ANONYMOUS",
    "LARGEST_MESSAGE",
    "Code",
    "Ledger",
    "Push",
    "Rejected",
    "encode_push",
    "jwt_expiry",
    "parse_push",
    "proof",
    "read_envelope",
    "seal",
]

LARGEST_MESSAGE: Final = 8192
"""Bytes that every receiver accepts, and that an existing bot reads at once."""

ANONYMOUS: Final = ""
"""The credential's name in messages that carry none."""

_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the last instant that a datetime holds
_MOST_CREDENTIALS = 64


class Code(StrEnum):
    """The `<code>` of `ERR <code> <reason>`, and the outcome that is counted."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    BAD_UTF8 = "bad_utf8"
    BAD_TEXT = "bad_text"
    BAD_JSON = "bad_json"
    BAD_FIELD = "bad_field"
    INCOMPLETE = "incomplete"
    EXPIRED = "expired"
    STALE = "stale"
    FORBIDDEN = "forbidden"
    BAD_MAC = "bad_mac"
    BUSY = "busy"

    @property
    def is_final(self) -> bool:
        """Whether the same message would be refused again, however often it is sent."""
        return self is not Code.BUSY


class Rejected(Exception):
    """A message that is not accepted: why, in a code and in words."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Push(msgspec.Struct, frozen=True):
    """One pushed token.

    Attributes:
        token: the token; generation 0 unless the message carries one.
        credential: whose it is, "" when the message does not say.
        keeps_open: the message is of version 1: more may follow on the connection.
    """

    token: Token
    credential: str = ANONYMOUS
    keeps_open: bool = False


class Ledger:
    """What a receiver has accepted: decides whether a push is news."""

    def __init__(self) -> None:
        self._newest: dict[str, Token] = {}

    def admit(self, push: Push, wall: float) -> bool:
        """Whether this token is news; False for the one that we have already.

        Args:
            push: the message.
            wall: epoch seconds now.

        Raises:
            Rejected: expired, or older than the one that we have while that one lives.
        """
        token = push.token
        if token.expires_at.timestamp() <= wall:
            raise Rejected(
                Code.EXPIRED, f"the token expired at {token.expires_at:%Y-%m-%dT%H:%M:%SZ}"
            )
        if not token.generation:
            return True
        known = self._newest.get(push.credential)
        if known is not None and known.expires_at.timestamp() > wall:
            if token.generation < known.generation:
                raise Rejected(
                    Code.STALE,
                    f"generation {token.generation} is older than {known.generation}, which we have",
                )
            if token.generation == known.generation and token.access_token == known.access_token:
                return False
        self.remember(push)
        return True

    def remember(self, push: Push) -> None:
        """Take a token for the newest of its credential, without any check."""
        self._newest.pop(push.credential, None)
        if len(self._newest) >= _MOST_CREDENTIALS:
            del self._newest[next(iter(self._newest))]
        self._newest[push.credential] = push.token


def parse_push(data: bytes, *, is_json: bool, wall: float) -> Push:
    """Read one message.

    Args:
        data: the message without its newline.
        is_json: it begins with a brace; otherwise it is the bare token.
        wall: epoch seconds now: the token's time of issue, and what default lifetimes count from.

    Raises:
        Rejected: it is none; the reason says what was expected.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Rejected(Code.BAD_UTF8, f"byte {error.start} is not UTF-8") from None
    if not is_json:
        return Push(_token(_checked_text(text), "", None, 0, wall))
    try:
        message = _decode(text)
    except msgspec.ValidationError as error:
        raise Rejected(Code.BAD_FIELD, str(error)) from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Rejected(Code.BAD_JSON, str(error)) from None
    return _push_of(message, wall)


def encode_push(token: Token, credential: str, *, with_refresh_token: bool = False) -> bytes:
    """The JSON text of a push, without its newline; an older bot reads its first three fields."""
    return msgspec.json.encode(
        {
            "access_token": token.access_token,
            "refresh_token": token.refresh_token if with_refresh_token else "",
            "expires_at": int(token.expires_at.timestamp()),
            "v": 1,
            "credential": credential,
            "generation": token.generation,
        }
    )


def proof(secret: bytes, nonce: str, sequence: int, body: bytes) -> str:
    """HMAC-SHA256 over the receiver's nonce, the message's number on this connection (from 0) and its bytes."""
    return hmac.new(secret, b"%s\n%d\n%s" % (nonce.encode(), sequence, body), "sha256").hexdigest()


def seal(secret: bytes, nonce: str, sequence: int, body: bytes) -> bytes:
    """A push with its proof, without the newline."""
    mac = proof(secret, nonce, sequence, body)
    return msgspec.json.encode({"v": 1, "mac": mac, "body": body.decode()})


def read_envelope(data: bytes, secret: bytes, nonce: str, sequence: int) -> bytes:
    """The push inside a message with a proof.

    Raises:
        Rejected: no proof, or one that does not fit: another secret, changed bytes, sent before.
    """
    try:
        envelope = _decode_envelope(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise Rejected(Code.BAD_MAC, "this receiver wants a proof of the shared secret") from None
    body = envelope.body.encode()
    expected = proof(secret, nonce, sequence, body)
    if not hmac.compare_digest(expected.encode(), envelope.mac.encode()):
        raise Rejected(
            Code.BAD_MAC, "the proof does not fit: another secret, or a repeated message"
        )
    return body


def jwt_expiry(token: str) -> float | None:
    """The `exp` of a JWT in epoch seconds, unverified: the issuer checks signatures, we only plan by it.

    Returns:
        None when the text is no JWT, or names no usable time (RFC 7519, 4.1.4).
    """
    parts = token.split(".")
    if len(parts) != 3 or not token.startswith("eyJ"):
        return None
    payload = parts[1]
    try:
        claims = _decode_claims(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return claims.exp if claims.exp is not None and 0 < claims.exp <= _LAST_SECOND else None


def _push_of(message: "_Message", wall: float) -> Push:
    access, refresh = message.access_token, message.refresh_token or ""
    if not access:
        raise Rejected(Code.BAD_FIELD, "`access_token` is empty")
    _check_characters(access, "`access_token`")
    _check_characters(refresh, "`refresh_token`")
    _check_characters(message.credential, "`credential`")
    expires_at = message.expires_at
    if expires_at is not None and not 0 <= expires_at <= _LAST_SECOND:
        raise Rejected(
            Code.BAD_FIELD, "`expires_at` is no instant in epoch seconds (are these milliseconds?)"
        )
    if message.v not in (None, 1):
        raise Rejected(Code.BAD_FIELD, f"`v` is {message.v}; this receiver speaks version 1")
    token = _token(access, refresh, expires_at, message.generation, wall, message.credential)
    return Push(token, message.credential, keeps_open=message.v == 1)


def _token(
    access: str,
    refresh: str,
    expires_at: float | None,
    generation: int,
    wall: float,
    credential: str = ANONYMOUS,
) -> Token:
    if expires_at is None:
        expires_at = jwt_expiry(access)
    if expires_at is None:
        expires_at = wall + DEFAULT_LIFETIME_SECONDS
    return Token(
        access,
        refresh,
        expires_at=datetime.fromtimestamp(expires_at, UTC),
        issued_at=datetime.fromtimestamp(wall, UTC),
        generation=generation,
        extra={"credential": credential} if credential else {},
    )


def _checked_text(text: str) -> str:
    if not text:
        raise Rejected(Code.EMPTY, "the message is empty")
    if text[0] in '["':
        raise Rejected(
            Code.BAD_TEXT, "neither a JSON object nor a bare token: it begins like other JSON"
        )
    _check_characters(text, "the token")
    return text


def _check_characters(text: str, what: str) -> None:
    # isprintable() is False for control characters, separators other than the space, and lone surrogates
    if text and (not text.isprintable() or " " in text):
        raise Rejected(Code.BAD_TEXT, f"{what} holds a space or a control character")


class _Message(msgspec.Struct):
    access_token: str
    refresh_token: str | None = None
    expires_at: int | float | None = None
    v: int | None = None
    credential: str = ANONYMOUS
    generation: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0


class _Envelope(msgspec.Struct):
    v: int
    mac: str
    body: str


class _Claims(msgspec.Struct):
    exp: float | None = None


_decode = msgspec.json.Decoder(_Message).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_claims = msgspec.json.Decoder(_Claims).decode
