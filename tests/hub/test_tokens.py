"""Tokens: algorithms pinned, claims judged with a leeway, keys of one family never used for another, nothing raised."""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.hub.access import Identity
from keepline.hub.refusals import Refusal, RefusalCode
from keepline.hub.tokens import KeyWanted, TokenIssuer, TokenVerifier
from keepline.hub.trust import FixedKeys, KeyRing, TrustedIssuer, TrustedKey, keys_of_jwks

NOW = 1_700_000_000.0
SECRET = b"0123456789abcdef0123456789abcdef"
RSA = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)
EC = ec.generate_private_key(ec.SECP256R1())
EC384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()
ED448 = ed448.Ed448PrivateKey.generate()
CLAIMS = {"sub": "ann", "role": "viewer", "account": "U1", "iss": "desk", "aud": "hub", "iat": NOW - 10,
          "exp": NOW + 600}  # fmt: skip
SIGNERS = {"HS256": SECRET, "RS256": RSA, "ES256": EC, "EdDSA": ED}


def pem(private: Any) -> bytes:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[no-any-return]


def key(algorithm: str, kid: str = "") -> TrustedKey:
    if algorithm == "HS256":
        return TrustedKey.secret(SECRET, kid=kid)
    return TrustedKey.pem(pem(SIGNERS[algorithm]), algorithm, kid=kid)


def verifier(
    *keys: TrustedKey, algorithms: set[str] | None = None, refetches: bool = False, **more: Any
) -> TokenVerifier:
    issuer = TrustedIssuer(
        "desk",
        frozenset({"hub", "other-hub"}),
        frozenset(algorithms or {each.algorithm for each in keys}),
        FixedKeys(KeyRing(keys), refetches),
        more.pop("roles", None),
    )
    return TokenVerifier([issuer], **more)


def signed(
    algorithm: str = "HS256",
    *,
    signer: Any = None,
    header: Mapping[str, Any] | None = None,
    **claims: Any,
) -> str:
    payload = {name: value for name, value in (CLAIMS | claims).items() if value is not ...}
    return jwt.encode(payload, signer or SIGNERS[algorithm], algorithm, headers=dict(header or {}))


def part(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def forged(header: Any, payload: Any, signature: bytes = b"") -> str:
    return f"{part(header)}.{part(payload)}.{part(signature)}"


def raw(payload: bytes) -> str:
    """A token of ours whose payload is any bytes, with a signature that holds."""
    return jwt.PyJWS().encode(payload, SECRET, "HS256")


def code(verdict: object) -> RefusalCode:
    assert isinstance(verdict, Refusal)
    return verdict.code


@pytest.mark.parametrize("algorithm", list(SIGNERS))
def test_each_algorithm_is_verified(algorithm: str) -> None:
    found = verifier(key(algorithm)).verify(signed(algorithm), NOW)
    assert found == Identity("ann", "viewer", "U1", "desk", NOW - 10, NOW + 600)


@pytest.mark.parametrize("algorithm", list(SIGNERS))
@pytest.mark.parametrize("other", list(SIGNERS))
def test_a_key_of_one_family_never_verifies_another(algorithm: str, other: str) -> None:
    every = verifier(key(algorithm, "k"), algorithms=set(SIGNERS))
    verdict = every.verify(signed(other, header={"kid": "k"}), NOW)
    if algorithm == other:
        assert isinstance(verdict, Identity)
    else:
        assert code(verdict) is RefusalCode.BAD_ALGORITHM


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("pinned", [{"RS256", "ES256", "EdDSA"}, set(SIGNERS)])
def test_a_public_key_is_never_an_hmac_secret(algorithm: str, pinned: set[str]) -> None:
    head = part({"alg": "HS256", "typ": "JWT"})
    body = part(CLAIMS)
    public = pem(SIGNERS[algorithm])
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    for secret in (public, public.strip(), public.rstrip(b"\n") + b"\n\n"):
        token = f"{head}.{body}.{part(hmac.sign(f'{head}.{body}'.encode(), secret))}"
        verdict = verifier(key(algorithm), algorithms=pinned).verify(token, NOW)
        assert code(verdict) in (RefusalCode.BAD_ALGORITHM, RefusalCode.UNKNOWN_KEY)


@pytest.mark.parametrize(
    "name", ["none", "None", "NONE", "nOnE", "", "HS512", "RS512", "PS256", "ES384", "hs256", "dir"]
)
def test_other_algorithms_are_refused_whatever_is_configured(name: str) -> None:
    every = verifier(*map(key, SIGNERS))
    assert code(every.verify(forged({"alg": name}, CLAIMS), NOW)) is RefusalCode.BAD_ALGORITHM


def test_an_algorithm_that_is_not_pinned_for_the_issuer_is_refused() -> None:
    both = verifier(key("HS256"), key("RS256"), algorithms={"RS256"})
    assert code(both.verify(signed("HS256"), NOW)) is RefusalCode.BAD_ALGORITHM
    assert isinstance(both.verify(signed("RS256"), NOW), Identity)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": NOW - 29.9, "iat": NOW - 99}, None),
        ({"exp": NOW - 30, "iat": NOW - 99}, RefusalCode.EXPIRED),
        ({"exp": NOW - 5, "iat": NOW - 4}, RefusalCode.BAD_CLAIMS),
        ({"exp": ...}, RefusalCode.BAD_CLAIMS),
        ({"exp": str(NOW + 60)}, RefusalCode.BAD_CLAIMS),
        ({"exp": True}, RefusalCode.BAD_CLAIMS),
        ({"exp": None}, RefusalCode.BAD_CLAIMS),
        ({"nbf": NOW + 30}, None),
        ({"nbf": NOW + 30.1}, RefusalCode.NOT_YET_VALID),
        ({"nbf": "soon"}, RefusalCode.BAD_CLAIMS),
        ({"iat": NOW + 30}, None),
        ({"iat": NOW + 31}, RefusalCode.NOT_YET_VALID),
        ({"iat": ...}, RefusalCode.BAD_CLAIMS),
        ({"aud": "other-hub"}, None),
        ({"aud": ["x", "hub"]}, None),
        ({"aud": "hub "}, RefusalCode.BAD_AUDIENCE),
        ({"aud": "HUB"}, RefusalCode.BAD_AUDIENCE),
        ({"aud": ["x"]}, RefusalCode.BAD_AUDIENCE),
        ({"aud": []}, RefusalCode.BAD_AUDIENCE),
        ({"aud": ...}, RefusalCode.BAD_CLAIMS),
        ({"aud": {"hub": 1}}, RefusalCode.BAD_CLAIMS),
        ({"iss": "elsewhere"}, RefusalCode.BAD_ISSUER),
        ({"iss": "desk/"}, RefusalCode.BAD_ISSUER),
        ({"iss": ...}, RefusalCode.BAD_ISSUER),
        ({"sub": ""}, RefusalCode.BAD_CLAIMS),
        ({"sub": ...}, RefusalCode.BAD_CLAIMS),
        ({"sub": "a\nb"}, RefusalCode.BAD_CLAIMS),
        ({"sub": "x" * 257}, RefusalCode.BAD_CLAIMS),
        ({"role": ...}, RefusalCode.BAD_CLAIMS),
        ({"role": ["admin"]}, RefusalCode.BAD_CLAIMS),
        ({"role": "a\u202eb"}, RefusalCode.BAD_CLAIMS),
        ({"account": ...}, None),
        ({"account": None}, None),
        ({"account": 7}, RefusalCode.BAD_CLAIMS),
    ],
)  # fmt: skip
def test_each_claim_is_judged(claims: dict[str, Any], expected: RefusalCode | None) -> None:
    payload = {name: value for name, value in (CLAIMS | claims).items() if value is not ...}
    verdict = verifier(key("HS256")).verify(raw(json.dumps(payload).encode()), NOW)
    assert (verdict.code if isinstance(verdict, Refusal) else None) == expected


@pytest.mark.parametrize(
    "payload",
    [
        b'{"iss":"desk","sub":"a","role":"r","aud":"hub","iat":1,"exp":NaN}',
        b'{"iss":"desk","sub":"a","role":"r","aud":"hub","iat":1,"exp":1e999}',
        b'{"iss":"desk","sub":"a","role":"r","aud":"hub","iat":-1e999,"exp":99999999999}',
        b"[]", b"null", b"{", b"", b'"desk"', b"[" * 5000, b"\xff\xfe",
    ],
)  # fmt: skip
def test_a_payload_that_is_not_strict_json_is_refused(payload: bytes) -> None:
    assert isinstance(verifier(key("HS256")).verify(raw(payload), NOW), Refusal)


def test_a_doubled_issuer_is_not_two_issuers() -> None:
    body = json.dumps(CLAIMS)[:-1] + ',"iss":"elsewhere"}'
    assert code(verifier(key("HS256")).verify(raw(body.encode()), NOW)) is RefusalCode.BAD_ISSUER


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b", "a.b.c.d", "a.b.c.d.e", "é.b.c", "!.b.c", "x" * 9000, part([]) + ".e30.x",
     forged({"alg": "HS256", "crit": ["exp"]}, CLAIMS), forged({"alg": "HS256", "crit": None}, CLAIMS),
     forged({"alg": "HS256", "typ": "JOSE"}, CLAIMS), forged({"alg": 7}, CLAIMS), forged({"typ": "JWT"}, CLAIMS),
     forged({"alg": "HS256", "kid": 7}, CLAIMS), forged({"alg": "HS256", "kid": "k" * 300}, CLAIMS)],
)  # fmt: skip
def test_what_is_no_signed_token_is_refused_unread(token: str) -> None:
    assert code(verifier(key("HS256")).verify(token, NOW)) is RefusalCode.BAD_TOKEN


def test_a_critical_header_is_refused_even_when_the_signature_holds() -> None:
    token = signed(header={"crit": ["b64"], "b64": True})
    assert code(verifier(key("HS256")).verify(token, NOW)) is RefusalCode.BAD_TOKEN


def test_keys_that_a_header_points_to_or_brings_along_are_not_used() -> None:
    own = jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key())
    foreign = rsa.generate_private_key(65537, 2048)
    header = {
        "jku": "https://evil.example/k",
        "x5u": "https://evil.example/c",
        "jwk": json.loads(own),
    }
    token = signed("RS256", signer=foreign, header=header)
    assert code(verifier(key("RS256")).verify(token, NOW)) is RefusalCode.BAD_SIGNATURE


@given(st.data())
def test_a_token_with_a_changed_letter_is_never_somebody_else(data: st.DataObject) -> None:
    good = signed()
    place = data.draw(st.integers(0, len(good) - 1))
    letter = data.draw(st.characters(codec="utf-8"))
    changed = good[:place] + letter + good[place + 1 :]
    verdict = verifier(key("HS256")).verify(changed, NOW)
    # the last letter of a base64 text has bits that say nothing
    assert isinstance(verdict, Refusal) or verdict == verifier(key("HS256")).verify(good, NOW)


@given(st.text())
def test_nothing_that_a_stranger_sends_raises(text: str) -> None:
    assert isinstance(verifier(key("HS256")).verify(text, NOW), Refusal)
    assert isinstance(
        verifier(key("HS256")).verify(f"{part({'alg': 'HS256'})}.{text}.x", NOW), Refusal
    )


def test_the_leeway_is_configurable_within_reason() -> None:
    exact = verifier(key("HS256"), leeway_seconds=0)
    assert code(exact.verify(signed(exp=NOW), NOW)) is RefusalCode.EXPIRED
    for leeway in (-1, 301):
        with pytest.raises(ConfigError, match="0 to 300"):
            verifier(key("HS256"), leeway_seconds=leeway)


def test_names_are_normalised() -> None:
    found = verifier(key("HS256")).verify(signed(sub="Zoe\u0308"), NOW)
    assert isinstance(found, Identity)
    assert found.user == "Zoë"


def test_an_issuer_gives_only_the_roles_it_may() -> None:
    strict = verifier(key("HS256"), roles=frozenset({"viewer"}))
    assert isinstance(strict.verify(signed(), NOW), Identity)
    verdict = strict.verify(signed(role="admin"), NOW)
    assert code(verdict) is RefusalCode.BAD_CLAIMS
    assert verdict.words == "the token's issuer may not give this role"  # type: ignore[union-attr]


def test_keys_are_found_by_their_id() -> None:
    old, new = TrustedKey.secret(b"o" * 32, kid="old"), TrustedKey.secret(b"n" * 32, kid="new")
    both = verifier(old, new)
    for kid, secret in (("old", b"o" * 32), ("new", b"n" * 32)):
        assert isinstance(both.verify(signed(signer=secret, header={"kid": kid}), NOW), Identity)
    crossed = signed(signer=b"o" * 32, header={"kid": "new"})
    assert code(both.verify(crossed, NOW)) is RefusalCode.BAD_SIGNATURE
    assert isinstance(
        both.verify(signed(signer=b"o" * 32), NOW), Identity
    )  # without an id all are tried
    unknown = signed(signer=b"o" * 32, header={"kid": "third"})
    assert code(both.verify(unknown, NOW)) is RefusalCode.UNKNOWN_KEY


def test_an_unknown_key_of_a_set_that_can_change_is_asked_for() -> None:
    changing = verifier(key("HS256", "a"), refetches=True)
    assert changing.verify(signed(header={"kid": "b"}), NOW) == KeyWanted("desk")
    assert changing.verify(signed(signer=b"x" * 32), NOW) == KeyWanted("desk")
    assert (
        code(changing.verify(signed(signer=b"x" * 32, header={"kid": "a"}), NOW))
        is RefusalCode.BAD_SIGNATURE
    )


def issuer(**changes: Any) -> TrustedIssuer:
    fields = {"issuer": "desk", "audiences": frozenset({"hub"}), "algorithms": frozenset({"HS256"})}
    return TrustedIssuer(keys=FixedKeys(KeyRing()), **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("issuers", "words"),
    [
        ([issuer(), issuer()], "named twice"),
        ([issuer(issuer="")], "missing"),
        ([issuer(audiences=frozenset())], "name the audience"),
        ([issuer(audiences=frozenset({""}))], "name the audience"),
        ([issuer(algorithms=frozenset())], "are needed"),
        ([issuer(algorithms=frozenset({"none"}))], "HS256, RS256, ES256, EdDSA"),
    ],
)
def test_issuers_that_make_no_sense_are_refused_at_the_start(issuers: list, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TokenVerifier(issuers)


def certificate() -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    built = x509.CertificateBuilder(
        name, name, RSA.public_key(), 1, start, start + timedelta(days=1)
    )
    return built.sign(RSA, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_certificate_is_as_good_as_its_key() -> None:
    trusted = TrustedKey.pem(certificate(), "RS256")
    assert isinstance(verifier(trusted).verify(signed("RS256"), NOW), Identity)


PRIVATE = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrustedKey.secret(b"short"), "shorter than 32 bytes"),
        (lambda: TrustedKey.secret(pem(RSA)), "holds a PEM key where a secret is needed"),
        (lambda: TrustedKey.pem(b"nonsense", "RS256"), "is not a public key in PEM"),
        (lambda: TrustedKey.pem(b"-----BEGIN CERTIFICATE-----", "RS256"), "is not a public key"),
        (lambda: TrustedKey.pem(PRIVATE, "RS256"), "private key"),
        (lambda: TrustedKey.pem(pem(EC), "RS256"), "is not a key for RS256"),
        (lambda: TrustedKey.pem(pem(RSA), "HS256"), "a public key verifies RS256, ES256, EdDSA"),
        (lambda: TrustedKey.pem(pem(WEAK_RSA), "RS256"), "1024 bits"),
        (lambda: TrustedKey.pem(pem(EC384), "ES256"), "curve secp384r1; ES256 means P-256"),
        (lambda: TrustedKey.pem(pem(ED448), "EdDSA"), "is not a key for EdDSA"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused_at_the_start(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def jwk(private: Any, **more: Any) -> dict[str, Any]:
    made = {
        "RSA": jwt.algorithms.RSAAlgorithm,
        "Ell": jwt.algorithms.ECAlgorithm,
        "ECP": jwt.algorithms.ECAlgorithm,
    }.get(type(private).__name__[:3], jwt.algorithms.OKPAlgorithm)
    return json.loads(made.to_jwk(private.public_key())) | more  # type: ignore[no-any-return]


def ring(*keys: Any, pinned: tuple[str, ...] = ("RS256", "ES256", "EdDSA")) -> KeyRing:
    return keys_of_jwks(json.dumps({"keys": keys}).encode(), pinned)


def test_a_key_set_gives_a_key_for_each_family() -> None:
    keys = ring(
        jwk(RSA, kid="r"), jwk(EC, kid="e", use="sig", alg="ES256"), jwk(ED, kid="d", alg="EdDSA")
    )
    assert len(keys) == 3
    assert repr(keys) == "<KeyRing of 3>"
    whole = TokenVerifier(
        [
            TrustedIssuer(
                "desk", frozenset({"hub"}), frozenset({"RS256", "ES256", "EdDSA"}), FixedKeys(keys)
            )
        ]
    )
    for algorithm, kid in (("RS256", "r"), ("ES256", "e"), ("EdDSA", "d")):
        assert isinstance(whole.verify(signed(algorithm, header={"kid": kid}), NOW), Identity)


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "s", "alg": "HS256"},
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": ["RSA"]},
        {"kty": "EC", "crv": ["P-256"]},
        jwk(RSA, use="enc"),
        jwk(RSA, alg="RS512"),
        jwk(RSA, alg="HS256"),
        jwk(RSA, kid=7),
        jwk(WEAK_RSA),
        jwk(EC384),
        jwk(ED448),
        json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA)) | {"key_ops": ["verify"]},
        json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(ED)),
    ],
)  # fmt: skip
def test_keys_that_are_of_no_use_are_passed_over(entry: Any) -> None:
    assert len(ring(entry, jwk(EC, kid="good"))) == 1
    with pytest.raises(ValueError, match="holds no key for"):
        ring(entry)


def test_only_pinned_families_are_taken_from_a_set() -> None:
    assert len(ring(jwk(RSA), jwk(EC), pinned=("ES256",))) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"<html>", "is not JSON"), (b"[]", "is not a key set"), (b'{"keys":{}}', "is not a key set"),
     (json.dumps({"keys": [1] * 33}).encode(), "more than 32")],
)  # fmt: skip
def test_what_is_no_key_set_says_so(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        keys_of_jwks(data, ["RS256"])


@given(st.binary())
def test_a_key_set_of_noise_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        keys_of_jwks(data, ["RS256"])


def test_tokens_of_ours_verify_and_show_nothing() -> None:
    maker = TokenIssuer(issuer="desk", audience="hub", lifetime_seconds=600)
    trusted = TrustedKey.secret(SECRET, kid="k1")
    made = maker.issue(trusted, user="ann", role="viewer", account="", now=NOW + 0.9876)
    assert verifier(trusted).verify(made.token, NOW + 1) == made.identity
    assert made.identity.issued_at == NOW + 0.987
    assert made.expires_in == 599
    assert jwt.get_unverified_header(made.token) == {"alg": "HS256", "typ": "JWT", "kid": "k1"}
    assert made.token not in repr(made)
    assert "0123" not in repr(trusted)
    assert repr(verifier(trusted)) == "<TokenVerifier of desk>"
