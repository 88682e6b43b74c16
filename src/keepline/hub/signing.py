"""The hub's own signing keys: HS256 secrets in one private file, newest last, each with a key id.

Invariants: a secret is generated, 32 random bytes, or given by the operator; a key is followed by a new one in time,
and then verifies for as long as a token signed with it may live, no longer; two processes that share the file end with
the same keys; the key id is drawn by chance and says nothing about the secret.
"""

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from keepline import files, telemetry
from keepline.errors import StorageError
from keepline.files.locking import alone_in, signature
from keepline.hub.trust import KeyRing, TrustedKey

__all__ = ["KEYS_FILE_NAME", "SigningKeys"]

log = logging.getLogger("keepline.hub")

KEYS_FILE_NAME = "hub-signing.keys"
"""The generated keys' file in the configuration directory."""

ROTATE_AFTER_SECONDS = 90 * 86_400.0
"""How long one key signs."""

_MOST_KEYS = 64


class _Key(Struct, frozen=True, forbid_unknown_fields=True):
    kid: str
    secret: bytes
    created_at: float


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keys: list[_Key]


class SigningKeys:
    """The keys of the file, or one that was given. `load`, `rotate` and `refreshed` may block; the rest is memory.

    Args:
        path: the file, mode 0600, ours; it is made when missing.
        rotate_after_seconds: how long one key signs.
        keep_seconds: how long its tokens may live after that.
        follows: only read what another process makes and rotates.
    """

    refetches = False

    def __init__(
        self,
        path: Path | None,
        *,
        rotate_after_seconds: float = ROTATE_AFTER_SECONDS,
        keep_seconds: float = 31 * 86_400.0,
        follows: bool = False,
    ) -> None:
        self.path = path
        self._rotate_after = rotate_after_seconds
        self._keep = keep_seconds
        self._follows = follows
        self._mark: tuple[int, ...] | None = None
        self._created_at = float("inf")
        self._keys: list[TrustedKey] = []

    @classmethod
    def fixed(cls, secret: bytes, *, kid: str = "configured") -> "SigningKeys":
        """One secret that somebody else keeps and changes.

        Raises:
            ConfigError: it is shorter than 32 bytes.
        """
        keys = cls(None)
        keys._keys = [TrustedKey.secret(secret, kid=kid)]
        return keys

    @classmethod
    def load_or_create(cls, path: Path, *, now: float) -> "SigningKeys":
        """The file's keys, read now.

        Raises:
            StorageError: as `load`.
        """
        keys = cls(path)
        keys.load(now=now)
        return keys

    def load(self, *, now: float) -> None:
        """Read the file; when there is none, make one with a new key.

        Raises:
            StorageError: not private, not ours, damaged, or it cannot be written; missing, for one that follows.
        """
        if self.path is None:
            return
        mark = signature(self.path)
        stored = _read(self.path)
        if not stored and self._follows:
            raise StorageError("is missing: the hub makes it at its next look", path=self.path)
        if not stored:
            self._replace(now)
        else:
            self._take(stored, mark)

    def rotate(self, *, now: float) -> None:
        """Sign with a new key from now on.

        Raises:
            StorageError: as `load`.
        """
        if self.path is not None:
            self._replace(now, self.current.kid)

    def refreshed(self, *, now: float) -> None:
        """Take up a file that changed, and rotate when it is time.

        Raises:
            StorageError: as `load`; the keys in memory stay.
        """
        if self.path is None:
            return
        if signature(self.path) != self._mark:
            self.load(now=now)
        if not self._follows and now - self._created_at >= self._rotate_after:
            self.rotate(now=now)

    @property
    def current(self) -> TrustedKey:
        """The key to sign with."""
        return self._keys[-1]

    @property
    def ring(self) -> KeyRing:
        """The keys that verify."""
        return KeyRing(self._keys)

    def _replace(self, now: float, only_after: str = "") -> None:
        assert self.path is not None
        with alone_in(self.path.parent):
            stored = _read(self.path) or []
            if not stored or stored[-1].kid == only_after:  # else another process was faster
                stored = [*self._living(stored, now), _new_key(now)][-_MOST_KEYS:]
                files.write_private(self.path, msgspec.json.encode(_File(1, stored)) + b"\n")
                telemetry.event(
                    log, logging.INFO, "A signing key was generated", path=str(self.path)
                )
            self._take(stored, signature(self.path))

    def _living(self, stored: Sequence[_Key], now: float) -> list[_Key]:
        """Each key signed until the next one was made; the last one until now."""
        ends = [*(key.created_at for key in stored[1:]), now][: len(stored)]
        return [key for key, end in zip(stored, ends, strict=True) if now < end + self._keep]

    def _take(self, stored: Sequence[_Key], mark: tuple[int, ...] | None) -> None:
        self._keys = [TrustedKey.secret(key.secret, kid=key.kid) for key in stored]
        self._created_at = stored[-1].created_at
        self._mark = mark

    def __repr__(self) -> str:
        return f"<SigningKeys {self.path or 'configured'}, {len(self._keys)} keys>"


def _new_key(now: float) -> _Key:
    return _Key(secrets.token_hex(4), secrets.token_bytes(32), now)


def _read(path: Path) -> list[_Key]:
    data = files.read_private(path, limit=64 * 1024)
    if data is None:
        return []
    try:
        stored = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        stored = _File(0, [])
    whole = all(len(key.secret) >= 32 and key.kid for key in stored.keys)
    if stored.version != 1 or not stored.keys or not whole:
        raise StorageError(
            "is not a file of signing keys: restore it, or remove it and have everyone sign in again",
            path=path,
        )
    return stored.keys
