"""The encrypted file of one token, format 1.

    8  magic "KEEPLINE"
    2  format version           4  header length           4  body length           (big endian)
       header: JSON with the key derivation and its parameters, salt, key id, nonce, generation, time, credential
       body:   AES-256-GCM of the token's JSON; everything before it is associated data
    32 SHA-256 of all that precedes, in every version of the format

Invariants: the nonce has 12 bytes and is drawn anew for each save (NIST SP 800-38D); parameters of the key derivation
that would cost more than a fraction of a second or 128 MiB are refused before any work; the checksum tells damage from
a wrong key, the key id tells a wrong key from tampering; the encryption key is never written, its id is an HMAC.
"""

import hashlib
import hmac
import os
import struct
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from keepline import files
from keepline.clock import Clock
from keepline.credentials.keys import storage_key
from keepline.credentials.saving import DamagedFile
from keepline.credentials.token import Token
from keepline.errors import ConfigError, StorageError

__all__ = ["ARGON2ID", "FORMAT_VERSION", "PBKDF2", "Kdf", "Sealed", "Vault", "VaultCodec", "parse"]

FORMAT_VERSION = 1
MAGIC = b"KEEPLINE"

_PREFIX = struct.Struct(">8sHII")
_CHECKSUM_BYTES = 32
_NONCE_BYTES = 12
_SALT_BYTES = 16
_LONGEST_HEADER = 4096


class Kdf(msgspec.Struct, frozen=True):
    """A key derivation with its parameters, as the header holds them.

    Attributes:
        name: `pbkdf2` (HMAC-SHA256) or `argon2id`.
        iterations: rounds, or passes over the memory.
        memory_kib: KiB, Argon2id only.
        lanes: Argon2id only.
    """

    name: Literal["pbkdf2", "argon2id"]
    iterations: int
    memory_kib: int = 0
    lanes: int = 0

    def excess(self) -> str:
        """What is beyond our caps, "" when nothing is: a hostile file must cost neither time nor memory."""
        most = _CAPS[self.name]
        for field in ("iterations", "memory_kib", "lanes"):
            least = 1 if getattr(most, field) else 0
            if not least <= (value := getattr(self, field)) <= getattr(most, field):
                return f"{field} {value}, {least} to {getattr(most, field)} are taken"
        if self.name == "argon2id" and self.memory_kib < 8 * self.lanes:  # RFC 9106
            return f"memory_kib {self.memory_kib} is less than 8 for each of {self.lanes} lanes"
        return ""


PBKDF2 = Kdf("pbkdf2", 600_000)
"""OWASP Password Storage Cheat Sheet: 600,000 rounds of HMAC-SHA256."""

ARGON2ID = Kdf("argon2id", 3, memory_kib=64 * 1024, lanes=4)
"""RFC 9106, second recommended option: 64 MiB, three passes, four lanes."""

_CAPS = {
    "pbkdf2": Kdf("pbkdf2", 2_000_000),
    "argon2id": Kdf("argon2id", 6, memory_kib=128 * 1024, lanes=8),
}


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in clear before the body, and is authenticated with it."""

    kdf: Kdf
    salt: bytes
    key_id: bytes
    nonce: bytes
    generation: int
    created_at: Annotated[datetime, msgspec.Meta(tz=True)]
    credential: str


class Sealed(NamedTuple):
    """A file whose form is right; its secret is still closed."""

    header: _Header
    associated: bytes
    body: bytes


def parse(data: bytes, path: Path) -> Sealed:
    """Check a file's form and checksum; needs no key.

    Raises:
        DamagedFile: empty, not one of our files, truncated, changed.
        StorageError: another version of the format, or parameters beyond the caps.
    """
    version, end_of_header, end_of_body = _outline(data, path)
    checksum = hashlib.sha256(data[:end_of_body]).digest()
    if not hmac.compare_digest(checksum, data[end_of_body:]):
        raise DamagedFile(
            "is damaged: its checksum does not fit, so bytes were changed; restore a backup or sign in again",
            path=path,
        )
    _check_version(version, path)
    associated, body = data[:end_of_header], data[end_of_header:end_of_body]
    return Sealed(_header(associated[_PREFIX.size :], path), associated, body)


def _outline(data: bytes, path: Path) -> tuple[int, int, int]:
    if not data:
        raise DamagedFile("is empty: restore a backup or sign in again", path=path)
    if not data.startswith(MAGIC[: len(data)]):
        raise DamagedFile(
            "is not an encrypted token file of Keepline: correct the path, or move it away",
            path=path,
        )
    if len(data) < _PREFIX.size:
        raise _truncated(len(data), "a header", path)
    _, version, header_bytes, body_bytes = _PREFIX.unpack_from(data)
    end_of_header = _PREFIX.size + header_bytes
    end_of_body = end_of_header + body_bytes
    whole = end_of_body + _CHECKSUM_BYTES
    if len(data) < whole:
        raise _truncated(len(data), f"{whole} bytes", path)
    if len(data) > whole:
        raise DamagedFile(
            f"is damaged: {len(data) - whole} bytes too many; restore a backup or sign in again",
            path=path,
        )
    return version, end_of_header, end_of_body


def _truncated(length: int, wanted: str, path: Path) -> DamagedFile:
    return DamagedFile(
        f"is truncated: {length} bytes where {wanted} should be; restore a backup or sign in again",
        path=path,
    )


def _check_version(version: int, path: Path) -> None:
    if version > FORMAT_VERSION:
        raise StorageError(
            f"has format {version}, written by a newer Keepline; this one reads format {FORMAT_VERSION}: upgrade",
            path=path,
        )
    if version < FORMAT_VERSION:
        raise StorageError(
            f"has format {version}, older than any that this Keepline reads: move it away and sign in again",
            path=path,
        )


def _header(data: bytes, path: Path) -> _Header:
    try:
        if len(data) > _LONGEST_HEADER:
            raise ValueError("too long")
        header = msgspec.json.decode(data, type=_Header)
        lengths = (len(header.nonce), len(header.salt), len(header.key_id))
        if lengths != (_NONCE_BYTES, _SALT_BYTES, 8):
            raise ValueError(f"nonce, salt and key id of {lengths} bytes")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedFile(
            f"is damaged: its header makes no sense ({error}); restore a backup or sign in again",
            path=path,
        ) from error
    if excess := header.kdf.excess():
        raise StorageError(
            f"asks for a key derivation that we do not do ({header.kdf.name}: {excess}): not written by Keepline; "
            "move it away and sign in again",
            path=path,
        )
    return header


class _Keys(NamedTuple):
    encryption: bytes
    id: bytes


class Vault:
    """Seals and opens with one passphrase; derived keys are kept, so that a save costs no derivation.

    Args:
        material: passphrase or key.
        kdf: for files that are made; a file that exists is opened with its own and keeps its salt if it is the same.
    """

    def __init__(self, material: bytes, *, kdf: Kdf = PBKDF2) -> None:
        if not material:
            raise ConfigError("the storage key is empty: give a passphrase", key="key")
        self._material = material
        self._kdf = kdf
        self._salt: bytes | None = None
        self._derived: dict[tuple[Kdf, bytes], _Keys] = {}
        self._lock = threading.Lock()

    def seal(self, token: Token, *, credential: str, created_at: datetime) -> bytes:
        """The bytes of a file that holds the token; may block for the derivation of the key.

        Raises:
            StorageError: a field of `extra` has no JSON form.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._salt = self._salt or os.urandom(_SALT_BYTES)
        keys = self._keys(self._kdf, self._salt)
        nonce = os.urandom(_NONCE_BYTES)
        header = _Header(
            self._kdf, self._salt, keys.id, nonce, token.generation, created_at, credential
        )
        plain, clear = _json(token), msgspec.json.encode(header)
        associated = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(clear), len(plain) + 16) + clear
        sealed = associated + AESGCM(keys.encryption).encrypt(nonce, plain, associated)
        return sealed + hashlib.sha256(sealed).digest()

    def open(self, sealed: Sealed, *, credential: str, source: str, path: Path) -> Token:
        """The token; may block for the derivation of the key.

        Args:
            sealed: from `parse`.
            credential: whose file it must be.
            source: where the key came from, for the message.
            path: for the message.

        Raises:
            StorageError: another credential's file, a wrong key.
            DamagedFile: the key is right and the content is not what was sealed.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        header = sealed.header
        if header.credential != credential:
            raise StorageError(
                f"holds the token of credential {header.credential!r}, not of {credential!r}: give each its own file",
                path=path,
                credential=credential,
            )
        keys = self._keys(header.kdf, header.salt)
        if not hmac.compare_digest(keys.id, header.key_id):
            raise StorageError(
                f"was encrypted with another key than the one from {source}: give the right key, or move the file "
                "away and sign in again",
                path=path,
                credential=credential,
            )
        try:
            plain = AESGCM(keys.encryption).decrypt(header.nonce, sealed.body, sealed.associated)
        except InvalidTag as error:
            raise DamagedFile(
                "was tampered with: the key is right and the content is not authentic; restore a backup or sign in "
                "again",
                path=path,
            ) from error
        if header.kdf == self._kdf:
            self._salt = header.salt
        return _token(plain, path)

    def _keys(self, kdf: Kdf, salt: bytes) -> _Keys:
        with self._lock:
            keys = self._derived.get((kdf, salt))
            if keys is None:
                while len(self._derived) >= 4:
                    del self._derived[next(iter(self._derived))]
                keys = self._derived[kdf, salt] = _derive(self._material, kdf, salt)
            return keys

    def __repr__(self) -> str:
        return f"<Vault {self._kdf.name}>"


def _derive(material: bytes, kdf: Kdf, salt: bytes) -> _Keys:
    master = (
        _argon2id(material, kdf, salt) if kdf.name == "argon2id" else _pbkdf2(material, kdf, salt)
    )
    encryption = hmac.digest(master, b"keepline vault 1: encryption", "sha256")
    return _Keys(encryption, hmac.digest(master, b"keepline vault 1: key id", "sha256")[:8])


def _pbkdf2(material: bytes, kdf: Kdf, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

    return PBKDF2HMAC(SHA256(), 32, salt, kdf.iterations).derive(material)


def _argon2id(material: bytes, kdf: Kdf, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    return Argon2id(
        salt=salt,
        length=32,
        iterations=kdf.iterations,
        lanes=kdf.lanes,
        memory_cost=kdf.memory_kib,
    ).derive(material)


def _json(token: Token) -> bytes:
    try:
        return msgspec.json.encode(token)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise StorageError(
            f"the token has a field that cannot be saved as JSON ({error}): keep only plain values in extra"
        ) from error


def _token(plain: bytes, path: Path) -> Token:
    try:
        return msgspec.json.decode(plain, type=Token)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedFile(
            f"holds something that is not a token ({error}): sign in again", path=path
        ) from error


class VaultCodec:
    """A token as an encrypted file; finds its key when it first needs one.

    Args:
        path: the main file: a key is never generated beside it.
        key: passphrase or key; None asks `storage_key`.
        credential: whose token it is.
        kdf: for new files.
        clock: for the header's time.

    Raises:
        ConfigError: an empty key, an unknown kdf.
    """

    def __init__(
        self, path: Path, *, key: str | bytes | None, credential: str, kdf: str, clock: Clock
    ) -> None:
        if kdf not in (PBKDF2.name, ARGON2ID.name):
            raise ConfigError(f"is 'pbkdf2' or 'argon2id', not {kdf!r}", key="kdf")
        self._path = path
        self._clock = clock
        self._kdf = ARGON2ID if kdf == ARGON2ID.name else PBKDF2
        self._credential = credential
        self._source = "the argument key"
        material = key.encode() if isinstance(key, str) else key
        self._vault = None if material is None else Vault(material, kdf=self._kdf)

    def load(self, path: Path) -> Token | None:
        data = files.read_private(path)
        return None if data is None else self.decode(data, path)

    def decode(self, data: bytes, path: Path) -> Token:
        sealed = parse(data, path)
        vault = self._opened(path, create=False)
        return vault.open(sealed, credential=self._credential, source=self._source, path=path)

    def encode(self, token: Token) -> bytes:
        # a file that is there has a key already: a new one would only hide that the right one is missing
        vault = self._opened(self._path, create=not self._path.exists())
        return vault.seal(token, credential=self._credential, created_at=self._clock.wall())

    def matches(self, saved: Token, token: Token) -> bool:
        # extra is the issuer's: JSON may bend an odd number in it, which must not keep a token from being saved
        return replace(saved, extra={}) == replace(token, extra={})

    def _opened(self, path: Path, *, create: bool) -> Vault:
        if self._vault is None:
            found = storage_key(create=create, data_directory=self._path.parent)
            if found is None:
                raise StorageError(
                    "is encrypted and its key was not found: set KEEPLINE_STORAGE_KEY_FILE or KEEPLINE_STORAGE_KEY, "
                    "or move the file away and sign in again",
                    path=path,
                    credential=self._credential,
                )
            self._source = found.source
            self._vault = Vault(found.material, kdf=self._kdf)
        return self._vault

    def __repr__(self) -> str:
        return f"<VaultCodec of {self._credential}>"
