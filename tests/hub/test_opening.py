"""From settings to a gate: what an operator says is what holds, and what makes no sense is refused with its key."""

import asyncio
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.hub.access import Action, Identity
from keepline.hub.gate import Gate
from keepline.hub.opening import GateSettings, IssuerSettings, make_gate
from keepline.hub.tokens import Issued
from keepline.testing import ManualClock

GOOD = "correct horse battery"
SECRET = "s" * 32
RSA = rsa.generate_private_key(65537, 2048)
PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def settings(directory: Path, **changes: Any) -> GateSettings:
    return GateSettings(**({"directory": directory, "argon2id": (64, 1, 1)} | changes))


def issuer(**changes: Any) -> IssuerSettings:
    return IssuerSettings(
        **({"issuer": "desk", "audiences": ("hub",), "algorithms": ("RS256",)} | changes)
    )


async def opened(settings: GateSettings, clock: ManualClock) -> Gate:
    gate = await asyncio.to_thread(lambda: make_gate(settings, HttpSession(), clock=clock))
    await gate.start()
    return gate


def token(clock: ManualClock, key: Any, algorithm: str, **claims: Any) -> str:
    now = int(clock.wall().timestamp())
    base = {
        "sub": "eve",
        "role": "viewer",
        "iss": "desk",
        "aud": "hub",
        "iat": now,
        "exp": now + 60,
    }
    return jwt.encode(base | claims, key, algorithm)


async def test_the_defaults_need_nothing_but_a_directory(tmp_path: Path) -> None:
    clock = ManualClock()
    chosen = settings(tmp_path)
    await asyncio.to_thread(lambda: chosen.users().add("ann", GOOD, role="viewer", now=1.0))
    gate = await opened(chosen, clock)
    issued = await gate.sign_in("ann", GOOD, address="192.0.2.1")
    assert isinstance(issued, Issued)
    assert isinstance(await gate.admit(issued.token), Identity)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "hub-signing.keys",
        "hub-users.jsonl",
    ]


async def test_a_role_that_is_named_loses_its_defaults_and_others_keep_them(tmp_path: Path) -> None:
    rights = {"viewer": {"subscribe": ("system",)}, "auditor": {"subscribe": ("*",)}}
    gate = await opened(settings(tmp_path, rights=rights, overseers=("auditor",)), ManualClock())

    def may(role: str, channel: str) -> bool:
        who = Identity("x", role, "", "keepline", 0.0, 1.0)
        return gate.rules.refusal(who, Action.SUBSCRIBE, channel) is None

    assert (may("viewer", "system"), may("viewer", "alerts")) == (True, False)
    assert (may("auditor", "system"), may("trader", "alerts"), may("trader", "system")) == (
        True,
        True,
        False,
    )
    assert (
        gate.rules.oversight_refusal(Identity("x", "admin", "", "keepline", 0.0, 1.0)) is not None
    )


async def test_a_given_secret_signs_and_no_key_file_is_made(tmp_path: Path) -> None:
    clock = ManualClock()
    chosen = settings(
        tmp_path, secret=SECRET, users_file=tmp_path / "people", issuer="me", audience="us"
    )
    await asyncio.to_thread(lambda: chosen.users().add("ann", GOOD, role="viewer", now=1.0))
    gate = await opened(chosen, clock)
    issued = await gate.sign_in("ann", GOOD, address="192.0.2.1")
    assert isinstance(issued, Issued)
    claims = jwt.decode(
        issued.token,
        SECRET,
        ["HS256"],
        audience="us",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert (claims["iss"], claims["sub"]) == ("me", "ann")
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


async def test_each_kind_of_key_of_another_issuer(tmp_path: Path) -> None:
    clock = ManualClock()
    (tmp_path / "key.pem").write_bytes(PEM)
    own = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "r"}
    (tmp_path / "set.json").write_text(json.dumps({"keys": [own]}))
    issuers = (
        issuer(issuer="pem", key_file=tmp_path / "key.pem", roles=("viewer",)),
        issuer(issuer="set", jwks_file=tmp_path / "set.json"),
        issuer(issuer="shared", secret=SECRET, algorithms=("HS256",)),
    )
    gate = await opened(settings(tmp_path, issuers=issuers), clock)
    for name, key, algorithm in (
        ("pem", RSA, "RS256"),
        ("set", RSA, "RS256"),
        ("shared", SECRET, "HS256"),
    ):
        assert isinstance(await gate.admit(token(clock, key, algorithm, iss=name)), Identity), name
    assert not isinstance(
        await gate.admit(token(clock, RSA, "RS256", iss="pem", role="admin")), Identity
    )
    assert not isinstance(
        await gate.admit(token(clock, PEM.decode()[:20] * 3, "HS256", iss="pem")), Identity
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "give exactly one of"),
        ({"jwks_url": "https://x.example/k", "jwks_file": Path("x")}, "give exactly one of"),
        ({"secret": SECRET}, "HS256 takes a secret and nothing else does"),
        (
            {"secret": SECRET, "algorithms": ("HS256", "RS256")},
            "HS256 takes a secret and nothing else does",
        ),
        (
            {"jwks_url": "https://x.example/k", "algorithms": ("HS256",)},
            "HS256 takes a secret and nothing else does",
        ),
        ({"secret": "short", "algorithms": ("HS256",)}, "shorter than 32 bytes"),
        ({"jwks_url": "http://x.example/k"}, "use https"),
        ({"key_file": Path("/nowhere/key.pem")}, "/nowhere/key.pem cannot be read: No such file"),
        (
            {"key_file": Path("/nowhere/key.pem"), "algorithms": ("RS256", "ES256")},
            "a key has one algorithm",
        ),
        ({"key_file": Path(__file__)}, "test_opening.py is not a public key in PEM"),
        ({"jwks_url": "https://x.example/k", "audiences": ()}, "name the audience"),
        (
            {"jwks_url": "https://x.example/k", "algorithms": ("RS999",)},
            "HS256, RS256, ES256, EdDSA",
        ),
        ({"jwks_url": "https://x.example/k", "issuer": "keepline"}, "named twice"),
    ],
)
def test_an_issuer_that_makes_no_sense_is_refused_at_the_start(
    tmp_path: Path, changes: dict, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_gate(settings(tmp_path, issuers=(issuer(**changes),)), HttpSession())


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    shown = f"{settings(tmp_path, secret=SECRET)!r}{issuer(secret=SECRET)!r}"
    assert SECRET not in shown
    assert shown == f"<GateSettings in {tmp_path}><IssuerSettings desk>"
