"""The JSON token file of schwab-py 1.5, read and written so that a schwab-py opened later works.

    {"creation_timestamp": <epoch s>, "token": {"expires_in", "token_type", "scope", "refresh_token", "access_token",
                                                "id_token", "expires_at": <epoch s>}}

Invariants: `creation_timestamp` is the sign-in's and moves only with a new one; fields that we do not know stay where
they are; the file is replaced whole and synced with mode 0600, where schwab-py truncates and writes in place, so one
that is empty or half-written is read again for a second and never overwritten. A schwab-py that is already running does
not see what we write: it reads its file once.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from keepline import files
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.saving import DamagedFile, TokenFile
from keepline.credentials.storage import StoredTokens
from keepline.credentials.token import Token, next_generation
from keepline.errors import StorageError

__all__ = ["SIGNIN_LIFETIME", "SchwabTokenFile"]

SIGNIN_LIFETIME = timedelta(days=7)
"""How long a Schwab sign-in lasts; no refresh moves it."""

HALF_WRITTEN_SECONDS = 1.0
"""How long a file that makes no sense is read again: another program may be writing it."""

_STEP_SECONDS = 0.05
_REMEDY = "restore a backup, or delete it and run: keepline login"
_LAST = 253_402_214_400.0  # the last day of the year 9999: `token.NEVER`
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=_LAST)]
_SignIn = Annotated[
    float, msgspec.Meta(ge=0, le=_LAST / 2)
]  # a deadline of seven days fits behind it

Fields = TypeVar("Fields")


class SchwabTokenFile(StoredTokens):
    """One Schwab token in the file that schwab-py reads and writes.

    A group- or world-readable file of ours is read with a warning and gets mode 0600 at the next save. The generation
    is the second of issue, so it grows whoever refreshed.

    Args:
        path: the file, `configs/schwab_tokens.json` in many projects.
        clock: for waiting on a half-written file and for the records.
        fallback_directory: where a token goes when its save fails; the runtime directory unless given.
        credential: for messages.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Clock = SYSTEM_CLOCK,
        fallback_directory: Path | None = None,
        credential: str = "schwab",
    ) -> None:
        where = Path(path).expanduser().absolute()
        file = TokenFile(
            where,
            _Codec(where, clock),
            fallback_directory=fallback_directory,
            credential=credential,
            clock=clock,
        )
        super().__init__(file, clock)


class _Inner(msgspec.Struct):
    """The fields that we know; the others travel in `Token.extra`."""

    access_token: Annotated[str, msgspec.Meta(min_length=1)]
    refresh_token: str = ""
    expires_at: _Seconds | None = None
    expires_in: _Seconds | None = None
    token_type: str = "Bearer"  # noqa: S105 - the scheme's name
    scope: str | list[str] | None = None


class _Outer(msgspec.Struct):
    token: dict[str, Any]
    creation_timestamp: _SignIn


_KNOWN = frozenset(_Inner.__struct_fields__)


class _Codec:
    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def load(self, path: Path) -> Token | None:
        deadline = self._clock.boottime() + HALF_WRITTEN_SECONDS
        while True:
            data = files.read_private(path, on_loose_mode="warn")
            if data is None:
                return None
            if _whole(data) or self._clock.boottime() >= deadline:
                return self.decode(data, path)
            self._clock.pause(_STEP_SECONDS)

    def decode(self, data: bytes, path: Path) -> Token:
        outer = _outer(data, path)
        inner = _inner(outer.token, path)
        signed_in = _moment(outer.creation_timestamp)
        # Without expires_at nobody knows when the token was issued; counted from the sign-in it is refreshed at once.
        lifetime = 1800.0 if inner.expires_in is None else inner.expires_in
        expires_at = (
            min(outer.creation_timestamp + lifetime, _LAST)
            if inner.expires_at is None
            else inner.expires_at
        )
        issued_at = _moment(max(expires_at - lifetime, 0.0))
        scope = " ".join(inner.scope) if isinstance(inner.scope, list) else inner.scope or ""
        return Token(
            inner.access_token,
            inner.refresh_token,
            expires_at=_moment(expires_at),
            issued_at=issued_at,
            token_type=inner.token_type,
            scope=scope,
            generation=next_generation(0, issued_at),
            signin_deadline=signed_in + SIGNIN_LIFETIME,
            extra={name: value for name, value in outer.token.items() if name not in _KNOWN},
        )

    def encode(self, token: Token) -> bytes:
        if not token.refresh_token:
            raise StorageError(
                "a Schwab token without a refresh token dies within the hour and is not saved; run: keepline login",
                path=self._path,
            )
        outer, inner = self._present()
        expires_at, issued_at = int(token.expires_at.timestamp()), int(token.issued_at.timestamp())
        inner |= dict(token.extra) | {
            "expires_in": max(expires_at - issued_at, 0),
            "token_type": token.token_type,
            "scope": token.scope,
            "refresh_token": token.refresh_token,
            "access_token": token.access_token,
            "expires_at": expires_at,
        }
        outer |= {"creation_timestamp": _creation(token, outer), "token": inner}
        try:
            return msgspec.json.encode(outer)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise StorageError(
                f"the token has a field that cannot be saved as JSON ({error}): keep only plain values in extra",
                path=self._path,
            ) from error

    def matches(self, saved: Token, token: Token) -> bool:
        return (saved.access_token, saved.refresh_token, int(saved.expires_at.timestamp())) == (
            token.access_token,
            token.refresh_token,
            int(token.expires_at.timestamp()),
        )

    def _present(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The file's objects as they are, so that what we do not know stays in place; empty when it makes no sense."""
        data = files.read_private(self._path, on_loose_mode="allow") or b""
        try:
            outer = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return {}, {}
        inner = outer.get("token")
        return outer, dict(inner) if isinstance(inner, dict) else {}


def _creation(token: Token, outer: dict[str, Any]) -> int:
    if token.signin_deadline is not None:
        return int((token.signin_deadline - SIGNIN_LIFETIME).timestamp())
    present = outer.get("creation_timestamp")
    return int(present) if isinstance(present, int | float) else int(token.issued_at.timestamp())


def _whole(data: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(data), dict)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _outer(data: bytes, path: Path) -> _Outer:
    if not data.strip():
        raise DamagedFile(f"the token file is empty: {_REMEDY}", path=path)
    try:
        content = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedFile(
            f"the token file is half-written or no JSON ({error}): {_REMEDY}", path=path
        ) from error
    if not isinstance(content, dict):
        raise DamagedFile(f"the token file holds no JSON object: {_REMEDY}", path=path)
    if "creation_timestamp" not in content and ("access_token" in content or "token" in content):
        raise DamagedFile(
            "the token file has the old format without creation_timestamp, which schwab-py 1.5 does not read "
            "either: delete it and run: keepline login",
            path=path,
        )
    for name in ("token", "creation_timestamp"):
        if name not in content:
            raise DamagedFile(
                f"the token file has no field {name!r}, so it is not one of schwab-py 1.5: {_REMEDY}",
                path=path,
            )
    return _converted(content, _Outer, path)


def _inner(token: dict[str, Any], path: Path) -> _Inner:
    if not token.get("refresh_token"):
        raise DamagedFile(
            "the token has no refresh_token, as after an empty answer in schwab-py's manual sign-in: delete the "
            "file and run: keepline login",
            path=path,
        )
    return _converted(token, _Inner, path)


def _converted(content: object, kind: type[Fields], path: Path) -> Fields:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise DamagedFile(
            f"a field of the token file is wrong ({error}): {_REMEDY}", path=path
        ) from error


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
