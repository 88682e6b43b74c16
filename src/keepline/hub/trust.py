"""The keys that tokens are verified with: each bound to one algorithm, from PEM, a secret, or a key set.

Invariants: a key never verifies another algorithm than its own (RFC 8725 §3.1); what is too short or on another curve
is refused when it is read, not when it is used; no repr shows key material.
"""

import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from msgspec import Struct

from keepline.errors import ConfigError

__all__ = [
    "ALGORITHMS",
    "FixedKeys",
    "KeyRing",
    "KeySource",
    "TrustedIssuer",
    "TrustedKey",
    "keys_of_jwks",
]

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
"""What can be pinned; EdDSA means Ed25519, ES256 the curve P-256 (RFC 7518, RFC 8037)."""

SHORTEST_SECRET = 32
"""Bytes: an HS256 key is at least as long as its hash (RFC 7518 §3.2)."""

_SHORTEST_RSA_BITS = 2048
_MOST_KEYS = 32
_NO_KID_TRIES = 4


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key and the one algorithm that it verifies.

    Attributes:
        algorithm: one of `ALGORITHMS`.
        kid: its name in token headers, "" without one.
        material: the secret's bytes or the public key; never shown.
    """

    algorithm: str
    kid: str
    material: Any = field(repr=False)

    @classmethod
    def secret(cls, material: bytes, *, kid: str = "") -> "TrustedKey":
        """An HS256 key.

        Raises:
            ConfigError: shorter than 32 bytes, or a public key or certificate by mistake.
        """
        if b"-----BEGIN " in material:
            raise ConfigError(
                "holds a PEM key where a secret is needed: HS256 takes a random text, RS256, ES256 and EdDSA take keys",
                key="secret",
            )
        if len(material) < SHORTEST_SECRET:
            raise ConfigError(
                f"is shorter than {SHORTEST_SECRET} bytes and can be guessed: write 32 random bytes there, for example "
                "by `openssl rand -hex 32`",
                key="secret",
            )
        return cls("HS256", kid, material)

    @classmethod
    def pem(cls, text: bytes, algorithm: str, *, kid: str = "") -> "TrustedKey":
        """A public key or certificate in PEM.

        Raises:
            ConfigError: not a public key, a private one, or one that does not fit the algorithm.
        """
        if b"PRIVATE KEY" in text:
            raise ConfigError(
                "holds a private key: the hub verifies, it needs only the public one", key="key"
            )
        try:
            if b"BEGIN CERTIFICATE" in text:
                key: Any = load_pem_x509_certificate(text).public_key()
            else:
                key = load_pem_public_key(text)
        except (ValueError, TypeError, jwt.PyJWTError, UnsupportedAlgorithm):
            raise ConfigError("is not a public key in PEM", key="key") from None
        if problem := _misfit(algorithm, key):
            raise ConfigError(problem, key="key")
        return cls(algorithm, kid, key)


class KeyRing:
    """The keys of an issuer at a moment."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[TrustedKey] = ()) -> None:
        self._keys = tuple(keys)

    def find(self, kid: str | None, algorithm: str) -> Sequence[TrustedKey]:
        """The keys to try for a token's header; without `kid` the newest few of the algorithm."""
        fitting = [key for key in self._keys if key.algorithm == algorithm]
        if kid is None:
            return fitting[-_NO_KID_TRIES:][::-1]
        return [key for key in fitting if key.kid == kid]

    def knows(self, kid: str | None) -> bool:
        """Whether there is a key of this name, for whatever algorithm."""
        return any(kid is None or key.kid == kid for key in self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._keys)}>"


class KeySource(Protocol):
    """Where an issuer's keys are; answers from memory."""

    @property
    def ring(self) -> KeyRing:
        """The last good keys."""
        ...

    @property
    def refetches(self) -> bool:
        """Whether an unknown key may turn up by fetching again."""
        ...


@dataclass(frozen=True, slots=True)
class FixedKeys:
    """Keys that were configured and stay."""

    ring: KeyRing
    refetches: bool = False


class TrustedIssuer(Struct, frozen=True):
    """One issuer that the hub believes, and how far.

    Attributes:
        issuer: the exact `iss`.
        audiences: at least one of them must be in `aud`.
        algorithms: those that are accepted from it, out of `ALGORITHMS`.
        keys: its keys.
        roles: the only roles that it may give, None for any.
    """

    issuer: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    keys: KeySource
    roles: frozenset[str] | None = None


def keys_of_jwks(data: bytes, algorithms: Iterable[str]) -> KeyRing:
    """The keys of a JWK Set (RFC 7517) that can verify the pinned algorithms; others are passed over.

    Secrets (`oct`), private keys and keys for encryption have no business in a set that is handed around: they are
    passed over as well.

    Args:
        data: the set as JSON.
        algorithms: the pinned ones.

    Raises:
        ValueError: not a key set, or none of its keys can be used; says which.
    """
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError('is not a key set: there is no list "keys"')
    if len(listed) > _MOST_KEYS:
        raise ValueError(f"holds more than {_MOST_KEYS} keys")
    pinned = frozenset(algorithms)
    keys = [key for entry in listed if (key := _key_of_jwk(entry, pinned)) is not None]
    if not keys:
        raise ValueError(f"holds no key for {', '.join(sorted(pinned))}")
    return KeyRing(keys)


_JWK_ALGORITHMS: dict[tuple[str, str | None], str] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}


def _key_of_jwk(entry: object, pinned: frozenset[str]) -> TrustedKey | None:
    if not isinstance(entry, Mapping) or entry.get("use", "sig") != "sig":
        return None
    kind, curve, kid = entry.get("kty"), entry.get("crv"), entry.get("kid", "")
    if not isinstance(kind, str) or not isinstance(curve, str | None) or not isinstance(kid, str):
        return None
    algorithm = _JWK_ALGORITHMS.get((kind, curve if kind != "RSA" else None))
    if algorithm is None or algorithm not in pinned:
        return None
    if entry.get("alg", algorithm) not in (algorithm, "Ed25519" if kind == "OKP" else algorithm):
        return None
    try:
        key = jwt.PyJWK(dict(entry), algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, binascii.Error, UnsupportedAlgorithm):
        return None
    return None if _misfit(algorithm, key) else TrustedKey(algorithm, kid, key)


def _misfit(algorithm: str, key: object) -> str:
    """What is wrong with a key for an algorithm, "" when nothing is."""
    kinds = {"RS256": RSAPublicKey, "ES256": EllipticCurvePublicKey, "EdDSA": Ed25519PublicKey}
    if algorithm not in kinds:
        return f"a public key verifies {', '.join(kinds)}, not {algorithm}"
    if isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
        return "holds a private key: the hub verifies, it needs only the public one"
    if not isinstance(key, kinds[algorithm]):
        return f"is not a key for {algorithm}"
    if isinstance(key, RSAPublicKey) and key.key_size < _SHORTEST_RSA_BITS:
        return (
            f"is an RSA key of {key.key_size} bits; {_SHORTEST_RSA_BITS} are the least that holds"
        )
    if isinstance(key, EllipticCurvePublicKey) and not isinstance(key.curve, SECP256R1):
        return f"is on the curve {key.curve.name}; ES256 means P-256"
    return ""
