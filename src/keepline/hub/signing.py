"""The hub's own signing keys: HS256 secrets in one private file, newest last, each with a key id.

Invariants: a secret is generated, 32 random bytes, or read from a file that the operator named; an old key verifies for
as long as a token signed with it may live, then it is dropped; the key id is drawn by chance and says nothing about
the secret.
"""

import logging
import secrets
from pathlib import Path

import msgspec
from msgspec import Struct

from keepline import files, telemetry
from keepline.errors import StorageError
from keepline.hub.tokens import KeyRing, TrustedKey

__all__ = ["KEYS_FILE_NAME", "SigningKeys"]

log = logging.getLogger("keepline.hub")

KEYS_FILE_NAME = "hub-signing.keys"
"""The generated keys' file in the configuration directory."""


class _Key(Struct, frozen=True, forbid_unknown_fields=True):
    kid: str
    secret: bytes
    created_at: float
    retired_at: float | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keys: list[_Key]


class SigningKeys:
    """The keys as the file holds them; made by `load`, `load_or_create` or `fixed`. May block."""

    refetches = False

    def __init__(self, keys: list[TrustedKey], *, path: Path | None) -> None:
        self._keys = keys
        self.path = path

    @classmethod
    def fixed(cls, secret: bytes, *, kid: str = "configured") -> "SigningKeys":
        """One secret that somebody else keeps.

        Raises:
            ConfigError: it is too short.
        """
        return cls([TrustedKey.secret(secret, kid=kid)], path=None)

    @classmethod
    def load_or_create(cls, path: Path, *, now: float) -> "SigningKeys":
        """The file's keys; a file that is not there is made with a new one.

        Raises:
            StorageError: not private, not ours, damaged, or it cannot be written.
        """
        stored = _read(path)
        if stored is None:
            files.write_private(path, _encoded([_new_key(now)]))
            telemetry.event(log, logging.INFO, "A signing key was generated", path=str(path))
            stored = _read(path) or []
        return cls([TrustedKey.secret(key.secret, kid=key.kid) for key in stored], path=path)

    @classmethod
    def rotate(cls, path: Path, *, now: float, keep_seconds: float) -> "SigningKeys":
        """Add a new key; those before it still verify for `keep_seconds`, the longest that a token lives.

        Raises:
            StorageError: as `load_or_create`.
        """
        kept = [
            key if key.retired_at is not None else msgspec.structs.replace(key, retired_at=now)
            for key in _read(path) or []
        ]
        kept = [key for key in kept if now < (key.retired_at or now) + keep_seconds]
        files.write_private(path, _encoded([*kept, _new_key(now)]))
        return cls.load_or_create(path, now=now)

    @property
    def current(self) -> TrustedKey:
        """The key to sign with."""
        return self._keys[-1]

    @property
    def ring(self) -> KeyRing:
        """The keys that verify."""
        return KeyRing(self._keys)

    def __repr__(self) -> str:
        return f"<SigningKeys {self.path or 'configured'}, {len(self._keys)} keys>"


def _new_key(now: float) -> _Key:
    return _Key(secrets.token_hex(4), secrets.token_bytes(32), now)


def _encoded(keys: list[_Key]) -> bytes:
    return msgspec.json.encode(_File(1, keys)) + b"\n"


def _read(path: Path) -> list[_Key] | None:
    data = files.read_private(path, limit=64 * 1024)
    if data is None:
        return None
    try:
        stored = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        stored = None
    good = stored is not None and stored.version == 1 and stored.keys
    if (
        stored is None
        or not good
        or any(len(key.secret) < 32 or not key.kid for key in stored.keys)
    ):
        raise StorageError(
            "is not a file of signing keys: restore it, or remove it and have everyone sign in again",
            path=path,
        )
    return stored.keys
