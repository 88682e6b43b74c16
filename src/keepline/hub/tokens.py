"""JSON Web Tokens: signatures by pinned algorithms, claims with a stated leeway, and our own HS256 tokens.

Invariants: every key is bound to the one algorithm that it was given for, so an RSA key never verifies an HMAC (RFC
8725 §3.1) and `none` verifies nothing; a token names its issuer and only that issuer's keys are tried; nothing in a
token's header is fetched or trusted (`jku`, `x5u`, `jwk`), `crit` is refused (RFC 7515 §4.1.11). What a stranger sends
never raises: it is a `Refusal`.
"""

import math
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any

import jwt
import msgspec
from msgspec import Meta, Struct

from keepline.errors import ConfigError
from keepline.hub.access import Identity
from keepline.hub.presenting import LONGEST_TOKEN
from keepline.hub.refusals import Refusal, RefusalCode, refuse
from keepline.hub.trust import ALGORITHMS, TrustedIssuer, TrustedKey

__all__ = ["LEEWAY_SECONDS", "Issued", "KeyWanted", "TokenIssuer", "TokenVerifier"]

LEEWAY_SECONDS = 30.0
"""How far the clocks of issuer and hub may differ: `exp`, `nbf` and `iat` are judged with it."""


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


def _decoded(part: str, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(jwt.utils.base64url_decode(part))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
