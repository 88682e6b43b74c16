"""Where a token rests: the interface that the manager needs, and the encrypted store.

Invariants: nothing secret is written in clear; with `memory_only` nothing is written at all; a store never hands out
what it could not verify.
"""

import threading
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.saving import DamagedFile, TokenFile
from keepline.credentials.saving import Interruption as Interruption
from keepline.credentials.token import Token, next_generation
from keepline.errors import ConfigError

__all__ = ["PendingSave", "StoredTokens", "TokenStorage", "TokenStore"]


class PendingSave(Protocol):
    """Space and intent for one answer of an issuer; may block when the store has a path."""

    def save(self, token: Token) -> Token:
        """Save it and return what was read back; may be called again after a `StorageError`."""
        ...

    def abandon(self, *, answer_lost: bool) -> None:
        """There is nothing to save; `answer_lost` keeps the intent record."""
        ...


class TokenStore(Protocol):
    """What a `TokenManager` needs of a store; its methods may block unless `path` is None."""

    @property
    def path(self) -> Path | None:
        """The file, None when the token is in memory only: calls are instant then."""
        ...

    def load(self) -> Token | None:
        """The token, None when there is none; `StorageError` when there is one that cannot be trusted."""
        ...

    def store(self, token: Token) -> None:
        """Save a token that was not bought with the stored one."""
        ...

    def clear_token(self) -> None:
        """Leave nothing that could be read."""
        ...

    def prepare(self, spending: Token | None) -> PendingSave:
        """Reserve space and note which refresh token is about to be spent; `StorageError`: do not spend it."""
        ...

    def interrupted(self) -> Interruption | None:
        """A refresh that was begun with the stored token and whose answer was never saved."""
        ...


class StoredTokens:
    """The public face of every store of ours: the manager's interface and a short one for plain programs."""

    def __init__(self, kept: TokenStore, clock: Clock) -> None:
        self._kept = kept
        self._clock = clock

    @property
    def path(self) -> Path | None:
        """The file, None when the token is in memory only."""
        return self._kept.path

    def load(self) -> Token | None:
        """The stored token, None when there is none.

        Raises:
            StorageError: there is one that cannot be served: damaged, wrong key, another credential's, not private.
        """
        return self._kept.load()

    def store(self, token: Token) -> None:
        """Save a token; one with generation 0 gets its number here.

        Raises:
            StorageError: not saved; the last good one stands.
        """
        self._kept.store(token)

    def clear_token(self) -> None:
        """Leave nothing that could be read: the file, its spare, the intent, the fallback, what was moved aside.

        Raises:
            StorageError: something could not be removed.
        """
        self._kept.clear_token()

    def prepare(self, spending: Token | None) -> PendingSave:
        """Reserve space and note that the refresh token of `spending` is about to be spent.

        Raises:
            StorageError: an answer could not be saved now, so do not ask for one.
        """
        return self._kept.prepare(spending)

    def interrupted(self) -> Interruption | None:
        """A refresh that was begun with the stored token and whose answer was never saved, None when there is none."""
        return self._kept.interrupted()

    def store_token(self, token: str, expires_at: datetime) -> None:
        """Save an access token; a stored refresh token and sign-in deadline are kept.

        Args:
            token: the access token's text.
            expires_at: when it dies (aware).

        Raises:
            ConfigError: the token is empty or the time has no zone.
            StorageError: not saved.
        """
        _check(token, expires_at)
        try:
            stored = self.load()
        except DamagedFile:
            stored = None  # the store moves it aside
        self.store(
            Token(
                token,
                stored.refresh_token if stored else "",
                expires_at=expires_at,
                issued_at=self._clock.wall(),
                signin_deadline=stored.signin_deadline if stored else None,
            )
        )

    def load_token(self) -> tuple[str, datetime] | None:
        """Access token and expiry (aware), None when nothing is stored.

        Raises:
            StorageError: what is stored cannot be trusted.
        """
        token = self.load()
        return None if token is None else (token.access_token, token.expires_at)

    def is_valid(self) -> bool:
        """Whether a token is stored that has not expired.

        Raises:
            StorageError: what is stored cannot be trusted.
        """
        token = self.load()
        return token is not None and not token.is_expired(self._clock.wall())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path or 'in memory'}>"


def _check(token: object, expires_at: object) -> None:
    if not isinstance(token, str) or not token.strip():
        raise ConfigError("needs the access token's text, not an empty value", key="token")
    if not isinstance(expires_at, datetime) or expires_at.tzinfo is None:
        raise ConfigError(
            "needs an aware datetime, for example datetime.now(timezone.utc) + timedelta(minutes=30)",
            key="expires_at",
        )


class TokenStorage(StoredTokens):
    """One credential's token, encrypted with AES-256-GCM in a private file, or in memory only.

    Args:
        storage_path: the file; its directory is made with mode 0700 when missing.
        memory_only: keep the token in this process; `path` is None.
        key: passphrase or key; None asks the sources of `keepline.credentials.keys.storage_key` when it is needed.
        credential: whose token it is; another credential's file is refused.
        kdf: how the key is derived from the passphrase when a file is made.
        fallback_directory: where a token goes when its save fails; the runtime directory unless given.
        clock: for `is_valid` and the records.

    Raises:
        ConfigError: an empty key, an unknown kdf.
    """

    def __init__(
        self,
        storage_path: str | Path = "data/tokens.enc",
        memory_only: bool = False,
        *,
        key: str | bytes | None = None,
        credential: str = "default",
        kdf: Literal["pbkdf2", "argon2id"] = "pbkdf2",
        fallback_directory: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._file: TokenFile | None = None
        if memory_only:
            super().__init__(_Memory(), clock)
            return
        from keepline.credentials.vault import VaultCodec  # cryptography is for those who encrypt

        path = Path(storage_path).expanduser().absolute()
        self._file = TokenFile(
            path,
            VaultCodec(path, key=key, credential=credential, kdf=kdf, clock=clock),
            fallback_directory=fallback_directory,
            credential=credential,
            clock=clock,
        )
        super().__init__(self._file, clock)
        self._credential, self._kdf = credential, kdf

    def change_key(self, new_key: str | bytes) -> None:
        """Encrypt the file with another key; afterwards give the new one to every program that uses it.

        Args:
            new_key: passphrase or key.

        Raises:
            ConfigError: the key is empty.
            StorageError: the file keeps its old key.
        """
        if self._file is None:
            return  # nothing is encrypted in memory
        from keepline.credentials.vault import VaultCodec

        self._file.recode(
            VaultCodec(
                self._file.path,
                key=new_key,
                credential=self._credential,
                kdf=self._kdf,
                clock=self._clock,
            )
        )


class _Memory:
    """A store that dies with its process."""

    path = None

    def __init__(self) -> None:
        self._token: Token | None = None
        self._seen = 0
        self._lock = threading.Lock()

    def load(self) -> Token | None:
        return self._token

    def store(self, token: Token) -> None:
        self.save(token)

    def save(self, token: Token) -> Token:
        with self._lock:
            if token.generation <= 0:
                token = token.with_generation(next_generation(self._seen, token.issued_at))
            self._seen = max(self._seen, token.generation)
            self._token = token
            return token

    def abandon(self, *, answer_lost: bool) -> None:
        """There is no space to free."""

    def clear_token(self) -> None:
        self._token = None

    def prepare(self, spending: Token | None) -> "_Memory":
        return self

    def interrupted(self) -> Interruption | None:
        return None
