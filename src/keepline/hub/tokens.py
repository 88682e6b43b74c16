"""JSON Web Tokens: signatures by pinned algorithms, claims with a stated leeway, and our own HS256 tokens.

Invariants: every key is bound to the one algorithm that it was given for, so an RSA key never verifies an HMAC (RFC
8725 §3.1) and `none` verifies nothing; a token names its issuer and only that issuer's keys are tried; nothing in a
token's header is fetched or trusted (`jku`, `x5u`, `jwk`), `crit` is refused (RFC 7515 §4.1.11). What a stranger sends
never raises: it is a `Refusal`.
"""

import binascii
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

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
from msgspec import Meta, Struct

from keepline.errors import ConfigError
from keepline.hub.access import Identity
from keepline.hub.presenting import LONGEST_TOKEN
from keepline.hub.refusals import Refusal, RefusalCode, refuse

__all__ = [
    "ALGORITHMS",
    "LEEWAY_SECONDS",
    "FixedKeys",
    "Issued",
    "KeyRing",
    "KeySource",
    "KeyWanted",
    "TokenIssuer",
    "TokenVerifier",
    "TrustedIssuer",
    "TrustedKey",
    "keys_of_jwks",
]

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
"""What can be pinned; EdDSA means Ed25519, ES256 the curve P-256 (RFC 7518, RFC 8037)."""

LEEWAY_SECONDS = 30.0
"""How far the clocks of issuer and hub may differ: `exp`, `nbf` and `iat` are judged with it."""

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


class KeyWanted(Struct, frozen=True):
    """The token names a key that we do not have: fetch the issuer's keys, then verify again.

    Attributes:
        issuer: whose.
    """

    issuer: str


_Text = Annotated[str, Meta(min_length=1, max_length=256)]


class _Header(Struct, frozen=True):
    alg: str
    kid: Annotated[str, Meta(max_length=256)] | None = None
    typ: str | None = None
    crit: msgspec.Raw = msgspec.Raw()


class _Claims(Struct, frozen=True):
    iss: _Text
    sub: _Text
    role: _Text
    aud: _Text | Annotated[list[_Text], Meta(max_length=32)]
    exp: float
    iat: float
    nbf: float | None = None
    account: Annotated[str, Meta(max_length=256)] | None = None


class _Issuer(Struct, frozen=True):
    iss: str


_TYPES = {None, "jwt", "at+jwt", "application/at+jwt"}
_header_decoder = msgspec.json.Decoder(_Header)
_issuer_decoder = msgspec.json.Decoder(_Issuer)
_claims_decoder = msgspec.json.Decoder(_Claims)


class TokenVerifier:
    """Turns a token into an identity, or says why not.

    Args:
        issuers: whom to believe.
        leeway_seconds: how far clocks may differ.

    Raises:
        ConfigError: no issuer, one twice, an algorithm that does not exist, no audience.
    """

    def __init__(
        self, issuers: Iterable[TrustedIssuer], *, leeway_seconds: float = LEEWAY_SECONDS
    ) -> None:
        if not 0 <= leeway_seconds <= 300:
            raise ConfigError("0 to 300 seconds are sensible", key="leeway_seconds")
        self.leeway_seconds = leeway_seconds
        self._issuers: dict[str, TrustedIssuer] = {}
        for issuer in issuers:
            _check_issuer(issuer)
            if issuer.issuer in self._issuers:
                raise ConfigError(f"the issuer {issuer.issuer!r} is named twice", key="issuer")
            self._issuers[issuer.issuer] = issuer
        self._jws = jwt.PyJWS(algorithms=list(ALGORITHMS))

    def verify(self, token: str, now: float) -> Identity | Refusal | KeyWanted:
        """Judge a token.

        Args:
            token: as presented.
            now: epoch seconds.

        Returns:
            Who it speaks for; why not; or whose keys to fetch before asking once more.
        """
        parts = token.split(".")
        if len(token) > LONGEST_TOKEN or len(parts) != 3 or not token.isascii():
            return refuse(RefusalCode.BAD_TOKEN)
        header = _decoded(parts[0], _header_decoder)
        named = _decoded(parts[1], _issuer_decoder)
        if header is None or bytes(header.crit) or (header.typ or "jwt").lower() not in _TYPES:
            return refuse(RefusalCode.BAD_TOKEN)
        if header.alg not in ALGORITHMS:
            return refuse(RefusalCode.BAD_ALGORITHM)
        if named is None or (issuer := self._issuers.get(named.iss)) is None:
            return refuse(RefusalCode.BAD_ISSUER)
        if header.alg not in issuer.algorithms:
            return refuse(RefusalCode.BAD_ALGORITHM)
        return self._verify_signed(token, header, issuer, now)

    def _verify_signed(
        self, token: str, header: _Header, issuer: TrustedIssuer, now: float
    ) -> Identity | Refusal | KeyWanted:
        ring = issuer.keys.ring
        keys = ring.find(header.kid, header.alg)
        if not keys:
            if header.kid is not None and ring.knows(header.kid):
                return refuse(RefusalCode.BAD_ALGORITHM)  # its key is of another family
            if issuer.keys.refetches:
                return KeyWanted(issuer.issuer)
            return refuse(RefusalCode.UNKNOWN_KEY)
        payload = next(filter(None, (self._payload(token, key) for key in keys)), None)
        if payload is None:
            if header.kid is None and issuer.keys.refetches:
                return KeyWanted(issuer.issuer)
            return refuse(RefusalCode.BAD_SIGNATURE)
        return _identity(payload, issuer, now, self.leeway_seconds)

    def _payload(self, token: str, key: TrustedKey) -> bytes | None:
        try:
            whole = self._jws.decode_complete(token, key.material, algorithms=[key.algorithm])
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return None
        payload: bytes = whole["payload"]
        return payload

    def __repr__(self) -> str:
        return f"<TokenVerifier of {', '.join(self._issuers)}>"


def _identity(
    payload: bytes, issuer: TrustedIssuer, now: float, leeway: float
) -> Identity | Refusal:
    try:
        claims = _claims_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return refuse(RefusalCode.BAD_CLAIMS)
    if refusal := _claims_refusal(claims, issuer, now, leeway):
        return refusal
    return Identity(
        user=unicodedata.normalize("NFC", claims.sub),
        role=claims.role,
        account=claims.account or "",
        issuer=claims.iss,
        issued_at=claims.iat,
        expires_at=claims.exp,
    )


def _claims_refusal(
    claims: _Claims, issuer: TrustedIssuer, now: float, leeway: float
) -> Refusal | None:
    begins = [claims.iat, *([] if claims.nbf is None else [claims.nbf])]
    if not all(map(math.isfinite, [claims.exp, *begins])) or claims.exp <= claims.iat:
        return refuse(RefusalCode.BAD_CLAIMS)
    if not claims.sub.isprintable() or not claims.role.isprintable():
        return refuse(RefusalCode.BAD_CLAIMS)
    audiences = {claims.aud} if isinstance(claims.aud, str) else set(claims.aud)
    if claims.iss != issuer.issuer:  # a doubled member: the two readers saw different ones
        return refuse(RefusalCode.BAD_ISSUER)
    if not audiences & issuer.audiences:
        return refuse(RefusalCode.BAD_AUDIENCE)
    if now >= claims.exp + leeway:
        return refuse(RefusalCode.EXPIRED)
    if max(begins) > now + leeway:
        return refuse(RefusalCode.NOT_YET_VALID)
    if issuer.roles is not None and claims.role not in issuer.roles:
        return refuse(RefusalCode.BAD_CLAIMS, "the token's issuer may not give this role")
    return None


class Issued(Struct, frozen=True):
    """A token that we made.

    Attributes:
        token: the text; kept out of the repr.
        identity: who it speaks for.
        expires_in: whole seconds.
    """

    token: str
    identity: Identity
    expires_in: int

    def __repr__(self) -> str:
        return f"<Issued for {self.expires_in} s>"


class TokenIssuer:
    """Makes the tokens that `POST /login` answers with.

    Args:
        issuer: the `iss`.
        audience: the `aud`.
        lifetime_seconds: how long a token lives.
    """

    def __init__(self, *, issuer: str, audience: str, lifetime_seconds: float) -> None:
        self.issuer = issuer
        self._audience = audience
        self._lifetime = int(lifetime_seconds)

    def issue(self, key: TrustedKey, *, user: str, role: str, account: str, now: float) -> Issued:
        """A token for a user, signed with `key`.

        Args:
            key: the newest HS256 key.
            user: the name.
            role: the role.
            account: the account, may be "".
            now: epoch seconds; `iat` keeps the milliseconds, so that a revocation in the same second can tell them
                apart (RFC 7519 §2 allows fractions).
        """
        issued_at = math.floor(now * 1000) / 1000
        expires_at = math.floor(now) + self._lifetime
        claims = {
            "sub": user,
            "role": role,
            "account": account,
            "iss": self.issuer,
            "aud": self._audience,
            "iat": issued_at,
            "exp": expires_at,
        }
        token = jwt.encode(claims, key.material, algorithm=key.algorithm, headers={"kid": key.kid})
        identity = Identity(user, role, account, self.issuer, issued_at, float(expires_at))
        return Issued(token, identity, int(expires_at - now))


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
    if not isinstance(entry, Mapping) or entry.get("use", "sig") != "sig" or "d" in entry:
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


def _check_issuer(issuer: TrustedIssuer) -> None:
    if not issuer.issuer:
        raise ConfigError("the issuer's name (its `iss`) is missing", key="issuer")
    if not issuer.audiences or "" in issuer.audiences:
        raise ConfigError(
            "name the audience that tokens for this hub carry: without one a token for another service would do",
            key="audience",
        )
    if not issuer.algorithms or issuer.algorithms - set(ALGORITHMS):
        raise ConfigError(f"one or more of {', '.join(ALGORITHMS)} are needed", key="algorithms")


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


def _decoded(part: str, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(jwt.utils.base64url_decode(part))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
