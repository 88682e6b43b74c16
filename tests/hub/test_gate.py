"""The gate: signing in, tokens, revocation, at most two computations, and refusals that are counted without secrets."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from keepline.errors import ConfigError, StorageError
from keepline.hub import gate as module
from keepline.hub.access import Action, Identity
from keepline.hub.gate import Gate
from keepline.hub.jwks import JwksFile, KeySet
from keepline.hub.passwords import Argon2id
from keepline.hub.presenting import Presented, Way
from keepline.hub.refusals import Refusal, RefusalCode, refuse
from keepline.hub.signing import SigningKeys
from keepline.hub.tenure import Expiring
from keepline.hub.tokens import Issued
from keepline.hub.trust import TrustedIssuer
from keepline.hub.users import UsersFile
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock

CHEAP, DEARER = Argon2id(64, 1, 1), Argon2id(128, 1, 1)
GOOD = "correct horse battery"
ADDRESS = "192.0.2.1"


class Place:
    """A users file, keys, a clock, and gates on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.users = UsersFile(directory / "users", parameters=CHEAP)
        self.keys = SigningKeys.load_or_create(directory / "keys", now=self.now)

    @property
    def now(self) -> float:
        return self.clock.wall().timestamp()

    async def add(self, name: str = "ann", role: str = "trader", **more: Any) -> None:
        await self.outside(self.users.add, name, GOOD, role=role, **more)

    async def outside(self, change: Callable[..., object], *values: object, **more: object) -> None:
        """What another process does to a file, now."""
        await asyncio.to_thread(lambda: change(*values, now=self.now, **more))

    async def gate(self, **settings: Any) -> Gate:
        made = Gate(self.users, self.keys, clock=self.clock, **settings)
        await made.start()
        return made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def signed_in(gate: Gate, name: str = "ann") -> Issued:
    issued = await gate.sign_in(name, GOOD, address=ADDRESS)
    assert isinstance(issued, Issued)
    return issued


def code(verdict: object) -> RefusalCode:
    assert isinstance(verdict, Refusal)
    return verdict.code


async def test_who_signs_in_gets_a_token_that_is_admitted(place: Place) -> None:
    await place.add(account="U1")
    gate = await place.gate()
    issued = await signed_in(gate)
    assert issued.expires_in == 43_200
    identity = await gate.admit(Presented(issued.token, Way.QUERY))
    assert identity == issued.identity
    assert isinstance(identity, Identity)
    assert (identity.user, identity.role, identity.account) == ("ann", "trader", "U1")
    assert gate.recheck(identity) is None
    assert gate.allows(identity, Action.SUBSCRIBE, "alerts") is None
    assert code(gate.allows(identity, Action.SUBSCRIBE, "system")) is RefusalCode.FORBIDDEN


@pytest.mark.parametrize(
    ("username", "password"),
    [("ann", "wrong"), ("ann", ""), ("nobody", GOOD), ("", GOOD), ("ANN", GOOD), ("off", GOOD), ("ann", None),
     (None, GOOD), (7, 7), (["ann"], GOOD), ("ann", {"$ne": ""}), ("ann", "x" * 5000),
     ("x" * 5000, GOOD), ("\ud800", "\ud800")],
)  # fmt: skip
async def test_every_wrong_pair_gets_the_same_answer(
    place: Place, username: object, password: object
) -> None:
    await place.add()
    await place.add("off")
    await place.outside(place.users.disable, "off")
    gate = await place.gate()
    assert await gate.sign_in(username, password, address=ADDRESS) == refuse(
        RefusalCode.BAD_CREDENTIALS
    )


async def test_there_is_no_default_account(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    gate = await place.gate()
    assert "Nobody can sign in yet" in caplog.text
    for name in ("admin", "keepline", "root", ""):
        for password in ("admin", "", "keepline", "password"):
            verdict = await gate.sign_in(
                name, password, address=f"10.0.{len(name)}.{len(password)}"
            )
            assert isinstance(verdict, Refusal)


async def test_failures_are_throttled_for_known_and_unknown_names_alike(place: Place) -> None:
    await place.add()
    gate = await place.gate()
    for name, address in (("ann", "10.0.0.1"), ("nobody", "10.0.0.2")):
        for _ in range(5):
            assert (
                code(await gate.sign_in(name, "wrong", address=address))
                is RefusalCode.BAD_CREDENTIALS
            )
        verdict = await gate.sign_in(name, GOOD, address=address)
        assert verdict == refuse(RefusalCode.THROTTLED, retry_after=1.0)
    place.clock.advance(1)
    assert isinstance(await gate.sign_in("ann", GOOD, address="10.0.0.1"), Issued)


async def test_two_computations_at_once_and_the_third_is_told_to_come_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.add()
    gate = await place.gate()
    go, both = threading.Event(), threading.Barrier(3)
    real = module.password_fits

    def slow(*arguments: Any, **more: Any) -> bool:
        both.wait(10)
        go.wait(10)
        return real(*arguments, **more)

    monkeypatch.setattr(module, "password_fits", slow)
    running = [asyncio.create_task(gate.sign_in("ann", GOOD, address=ADDRESS)) for _ in range(2)]
    await asyncio.to_thread(both.wait, 10)
    running[0].cancel()  # it hangs up; its thread goes on and counts
    with pytest.raises(asyncio.CancelledError):
        await running[0]
    for _ in range(10):  # nor do they count as failures
        third = await gate.sign_in("ann", GOOD, address=ADDRESS)
        assert third == refuse(RefusalCode.BUSY, retry_after=1.0)
        assert third.status == 429
    go.set()
    assert isinstance(await running[1], Issued)
    await asyncio.get_running_loop().shutdown_default_executor()  # until both threads have ended
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert gate._computing == 0


async def test_a_computation_that_breaks_does_not_take_a_place_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.add()
    gate = await place.gate()

    def broken(*_: Any, **__: Any) -> bool:
        raise MemoryError

    monkeypatch.setattr(module, "password_fits", broken)
    for _ in range(3):
        with pytest.raises(MemoryError):
            await gate.sign_in("ann", GOOD, address=ADDRESS)
    monkeypatch.undo()
    assert isinstance(await gate.sign_in("ann", GOOD, address=ADDRESS), Issued)


async def test_revocation_ends_what_was_issued_before_and_nothing_after_also_across_a_restart(
    place: Place,
) -> None:
    await place.add()
    gate = await place.gate()
    old = await signed_in(gate)
    place.clock.advance(0.25)
    await gate.revoke("ann")
    assert code(await gate.admit(old.token)) is RefusalCode.REVOKED
    assert code(gate.recheck(old.identity)) is RefusalCode.REVOKED
    place.clock.advance(0.25)  # within the same second
    new = await signed_in(gate)
    assert isinstance(await gate.admit(new.token), Identity)
    restarted = await place.gate()
    assert code(await restarted.admit(old.token)) is RefusalCode.REVOKED
    assert isinstance(await restarted.admit(new.token), Identity)


@pytest.mark.parametrize("how", ["remove", "disable", "replace", "namesake"])
async def test_a_change_of_the_file_ends_tokens_of_a_running_hub(place: Place, how: str) -> None:
    await place.add()
    gate = await place.gate()
    issued = await signed_in(gate)
    assert not await gate.look()
    place.clock.advance(5)
    outside = UsersFile(place.users.path, parameters=CHEAP)
    if how == "disable":
        await place.outside(outside.disable, "ann")
    elif how == "replace":
        await place.outside(outside.add, "ann", GOOD, role="trader", replace=True)
    else:
        await place.outside(outside.remove, "ann")
    if how == "namesake":
        await place.outside(outside.add, "ann", GOOD, role="trader")
    assert await gate.look()
    assert code(gate.recheck(issued.identity)) is RefusalCode.REVOKED
    assert code(await gate.admit(issued.token)) is RefusalCode.REVOKED


async def test_a_user_added_while_it_runs_can_sign_in_at_once(place: Place) -> None:
    gate = await place.gate()
    outside = UsersFile(place.users.path, parameters=CHEAP)
    await place.outside(outside.add, "new", GOOD, role="viewer")
    await signed_in(gate, "new")


async def test_a_hash_with_old_parameters_is_made_anew_at_the_next_sign_in(place: Place) -> None:
    await place.add()
    place.users.parameters = DEARER
    gate = await place.gate()
    issued = await signed_in(gate)
    assert "m=128" in place.users.book.users["ann"].password
    assert isinstance(await gate.admit(issued.token), Identity)  # that ends no token
    await signed_in(gate)


async def test_a_file_that_cannot_be_written_does_not_stop_a_sign_in(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await place.add()
    place.users.parameters = DEARER
    gate = await place.gate()

    def full(*_: Any) -> None:
        raise StorageError("no space left on the disk")

    monkeypatch.setattr(place.users, "rehash", full)
    await signed_in(gate)
    assert "Password not hashed anew" in caplog.text


async def test_tokens_expire_and_a_connection_is_told(place: Place) -> None:
    await place.add()
    gate = await place.gate(token_lifetime_seconds=600, notice_seconds=45, leeway_seconds=10)
    issued = await signed_in(gate)
    tenure = gate.tenure(issued.identity)
    assert tenure.due(place.now) is None
    place.clock.advance(555)
    assert isinstance(tenure.due(place.now), Expiring)
    place.clock.advance(54)
    assert isinstance(await gate.admit(issued.token), Identity)
    place.clock.advance(1)
    assert code(await gate.admit(issued.token)) is RefusalCode.EXPIRED
    assert tenure.ends_at == place.now


async def test_a_rotated_key_of_ours_is_taken_up(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await place.add()
    gate = await place.gate()
    old = await signed_in(gate)
    another = SigningKeys(place.directory / "keys")
    await place.outside(another.load)
    await place.outside(another.rotate)
    await gate.look()
    new = await signed_in(gate)
    kids = {jwt.get_unverified_header(each.token)["kid"] for each in (old, new)}
    assert len(kids) == 2
    for each in (old, new):
        assert isinstance(await gate.admit(each.token), Identity)
    await asyncio.to_thread((place.directory / "keys").write_bytes, b"rubbish")
    await gate.look()
    assert "Signing keys not read" in caplog.text
    assert isinstance(await gate.admit(new.token), Identity)


class Elsewhere:
    """Another issuer with a key set in a file."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.path = place.directory / "jwks.json"
        self.privates: dict[str, ed25519.Ed25519PrivateKey] = {}
        self.keys = KeySet(JwksFile(self.path), ["EdDSA"], clock=place.clock)
        self.trusted = TrustedIssuer(
            "elsewhere", frozenset({"hub"}), frozenset({"EdDSA"}), self.keys
        )

    def publish(self, *kids: str) -> None:
        keys = []
        for kid in kids:
            private = self.privates.setdefault(kid, ed25519.Ed25519PrivateKey.generate())
            keys.append(
                json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(private.public_key())) | {"kid": kid}
            )
        self.path.write_text(json.dumps({"keys": keys}))

    def token(self, kid: str, **claims: Any) -> str:
        now = int(self.place.now)
        base = {
            "sub": "eve",
            "role": "viewer",
            "iss": "elsewhere",
            "aud": "hub",
            "iat": now,
            "exp": now + 600,
        }
        private = self.privates.setdefault(kid, ed25519.Ed25519PrivateKey.generate())
        return jwt.encode(base | claims, private, "EdDSA", headers={"kid": kid})


async def test_a_new_key_of_another_issuer_is_fetched_when_a_token_names_it(place: Place) -> None:
    elsewhere = Elsewhere(place)
    elsewhere.publish("k1")
    gate = await place.gate(trusted=[elsewhere.trusted])
    assert isinstance(await gate.admit(elsewhere.token("k1")), Identity)
    elsewhere.publish("k2")
    assert isinstance(await gate.admit(elsewhere.token("k2")), Identity)
    assert code(await gate.admit(elsewhere.token("k1"))) is RefusalCode.UNKNOWN_KEY
    elsewhere.publish("k3")
    assert (
        code(await gate.admit(elsewhere.token("k3"))) is RefusalCode.UNKNOWN_KEY
    )  # not twice in half a minute
    elsewhere.path.unlink()
    place.clock.advance(600)
    assert code(await gate.admit(elsewhere.token("k3"))) is RefusalCode.KEYS_UNAVAILABLE
    assert isinstance(await gate.admit(elsewhere.token("k2")), Identity)  # the last good ones count
    await gate.close()


async def test_another_issuer_cannot_speak_as_ours_and_its_users_can_be_revoked(
    place: Place,
) -> None:
    await place.add()
    elsewhere = Elsewhere(place)
    elsewhere.publish("k1")
    gate = await place.gate(trusted=[elsewhere.trusted])
    ours = elsewhere.token("k1", iss="keepline", aud="keepline-hub", sub="ann", role="admin")
    assert code(await gate.admit(ours)) is RefusalCode.BAD_ALGORITHM
    theirs = await gate.admit(elsewhere.token("k1", sub="ann"))
    assert isinstance(theirs, Identity)
    mine = await signed_in(gate)
    assert not theirs.same_user(mine.identity)
    await gate.revoke("eve")
    assert code(await gate.admit(elsewhere.token("k1"))) is RefusalCode.REVOKED


async def test_a_refusal_is_counted_and_logged_without_secrets(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await place.add()
    gate = await place.gate()
    issued = await signed_in(gate)
    counter = next(metric for metric in REGISTRY if metric.name == "keepline_hub_refused_total")
    before = counter.value("bad_signature")
    bad = issued.token[:-8] + "AAAAAAAA"
    for _ in range(5):
        assert code(await gate.admit(bad)) is RefusalCode.BAD_SIGNATURE
    assert counter.value("bad_signature") == before + 5
    await gate.sign_in("ann", "wrong password here", address=ADDRESS)
    await gate.admit(refuse(RefusalCode.NO_TOKEN))
    refused = [r for r in caplog.records if r.message == "Access refused"]
    assert len(refused) == 3  # one line a second for each code
    place.clock.advance(1)
    await gate.admit(bad)
    told = "\n".join(str(vars(record)) for record in caplog.records)
    assert "'not_logged': 4" in told
    for secret in (issued.token, bad, bad.split(".")[1], "wrong password here", GOOD):
        assert secret not in told
        assert secret not in repr(gate)


async def test_a_users_file_that_is_not_private_stops_the_start(place: Place) -> None:
    await place.add()
    await asyncio.to_thread(place.users.path.chmod, 0o666)
    with pytest.raises(StorageError):
        await place.gate()


def test_a_lifetime_that_makes_no_sense_is_refused(place: Place) -> None:
    for lifetime in (0, 59, 32 * 86_400):
        with pytest.raises(ConfigError, match="60 seconds to 31 days"):
            Gate(place.users, place.keys, token_lifetime_seconds=lifetime)
