"""The encrypted file: what it hides, what it refuses, and that each refusal says which one it is."""

import hashlib
import json
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials import vault as vaults
from keepline.credentials.saving import DamagedFile
from keepline.credentials.token import NEVER, Token
from keepline.credentials.vault import ARGON2ID, PBKDF2, Kdf, Vault, parse
from keepline.errors import ConfigError, StorageError

PATH = Path("data/tokens.enc")
NOW = datetime(2026, 1, 5, 14, 30, 0, 123456, tzinfo=UTC)
CHEAP = Kdf("pbkdf2", 10)
TOKEN = Token(
    "access-secret-1",
    "refresh-secret-1",
    expires_at=NOW + timedelta(minutes=30),
    issued_at=NOW,
    scope="api",
    generation=7,
    signin_deadline=NOW + timedelta(days=7),
    extra={"id_token": "identity-secret-1", "n": 3, "deep": {"a": [1, None]}},
)


def seal(
    token: Token = TOKEN, *, key: bytes = b"key", kdf: Kdf = CHEAP, credential: str = "main"
) -> bytes:
    return Vault(key, kdf=kdf).seal(token, credential=credential, created_at=NOW)


def opened(
    data: bytes, *, key: bytes = b"key", kdf: Kdf = CHEAP, credential: str = "main"
) -> Token:
    return Vault(key, kdf=kdf).open(
        parse(data, PATH), credential=credential, source="the test", path=PATH
    )


def parts(data: bytes) -> tuple[int, dict, bytes]:
    _, version, header, body = struct.unpack_from(">8sHII", data)
    clear = json.loads(data[18 : 18 + header])
    return version, clear, data[18 + header : 18 + header + body]


def joined(version: int, clear: dict | bytes, body: bytes) -> bytes:
    """A file with a right checksum, whatever it says."""
    text = clear if isinstance(clear, bytes) else json.dumps(clear).encode()
    data = struct.pack(">8sHII", b"KEEPLINE", version, len(text), len(body)) + text + body
    return data + hashlib.sha256(data).digest()


@pytest.mark.parametrize("kdf", [CHEAP, PBKDF2, ARGON2ID])
def test_what_was_sealed_is_opened(kdf: Kdf) -> None:
    assert opened(seal(kdf=kdf), kdf=kdf) == TOKEN


def test_a_file_is_opened_with_its_own_derivation_whatever_is_configured() -> None:
    assert opened(seal(kdf=ARGON2ID), kdf=CHEAP) == TOKEN


def test_the_defaults_are_the_published_recommendations() -> None:
    assert (PBKDF2.name, PBKDF2.iterations) == ("pbkdf2", 600_000)
    assert (ARGON2ID.memory_kib, ARGON2ID.iterations, ARGON2ID.lanes) == (65536, 3, 4)
    assert (
        parse(Vault(b"key").seal(TOKEN, credential="main", created_at=NOW), PATH).header.kdf
        == PBKDF2
    )


def test_nothing_secret_stands_in_the_file_or_in_a_repr() -> None:
    data = seal(key=b"passphrase-1")
    for secret in (b"access-secret", b"refresh-secret", b"identity-secret", b"passphrase"):
        assert secret not in data
    assert "passphrase" not in repr(Vault(b"passphrase-1"))


def test_the_header_says_whose_it_is_and_how_old() -> None:
    header = parse(seal(), PATH).header
    assert (header.credential, header.generation, header.created_at) == ("main", 7, NOW)
    assert len(header.nonce) == 12


def test_the_salt_stays_and_the_nonce_never_comes_twice() -> None:
    vault = Vault(b"key", kdf=CHEAP)
    headers = [
        parse(vault.seal(TOKEN, credential="main", created_at=NOW), PATH).header for _ in range(50)
    ]
    assert len({header.salt for header in headers}) == 1
    assert len({header.nonce for header in headers}) == 50


def test_a_vault_that_opened_a_file_keeps_its_salt() -> None:
    data = seal()
    vault = Vault(b"key", kdf=CHEAP)
    vault.open(parse(data, PATH), credential="main", source="the test", path=PATH)
    again = vault.seal(TOKEN, credential="main", created_at=NOW)
    assert parse(again, PATH).header.salt == parse(data, PATH).header.salt
    other = Vault(b"key", kdf=Kdf("pbkdf2", 11))
    other.open(parse(data, PATH), credential="main", source="the test", path=PATH)
    stronger = parse(other.seal(TOKEN, credential="main", created_at=NOW), PATH).header
    assert stronger.salt != parse(data, PATH).header.salt
    assert stronger.kdf.iterations == 11


def test_a_key_is_derived_once_per_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    derived = []
    real = vaults._pbkdf2
    monkeypatch.setattr(vaults, "_pbkdf2", lambda *a: derived.append(a) or real(*a))
    vault = Vault(b"key", kdf=CHEAP)
    for _ in range(3):
        data = vault.seal(TOKEN, credential="main", created_at=NOW)
        vault.open(parse(data, PATH), credential="main", source="the test", path=PATH)
    assert len(derived) == 1


def test_the_memory_of_derived_keys_is_bounded() -> None:
    vault = Vault(b"key", kdf=CHEAP)
    for _ in range(20):
        vault.open(parse(seal(), PATH), credential="main", source="the test", path=PATH)
    assert len(vault._derived) <= 4


@pytest.mark.parametrize(
    "token",
    [
        Token("a"),
        Token("a", expires_at=NEVER),
        Token("ü€😀", expires_at=NOW.astimezone(timezone(timedelta(hours=-5)))),
        replace(TOKEN, extra={}),
    ],
)
def test_every_shape_of_token_comes_back(token: Token) -> None:
    assert opened(seal(token)) == token


def test_a_field_without_a_json_form_is_said_before_anything_is_written() -> None:
    for value in (object(), {1: {object()}}, "\ud800"):
        with pytest.raises(StorageError, match="plain values in extra"):
            seal(replace(TOKEN, extra={"x": value}))


# --- refusals ---


def test_a_wrong_key_is_told_from_damage() -> None:
    with pytest.raises(StorageError, match="another key than the one from the test") as caught:
        opened(seal(), key=b"other")
    assert not isinstance(caught.value, DamagedFile)


def test_another_credentials_file_is_named() -> None:
    with pytest.raises(StorageError, match="credential 'spare', not of 'main'") as caught:
        opened(seal(credential="spare"))
    assert not isinstance(caught.value, DamagedFile)


def test_a_file_that_was_given_another_credentials_name_does_not_open() -> None:
    version, clear, body = parts(seal(credential="spare"))
    with pytest.raises(DamagedFile, match="tampered"):
        opened(joined(version, {**clear, "credential": "main"}, body))


@pytest.mark.parametrize("field", ["generation", "created_at"])
def test_a_changed_header_field_does_not_open(field: str) -> None:
    version, clear, body = parts(seal())
    changed = {**clear, field: 99 if field == "generation" else "2027-01-01T00:00:00Z"}
    with pytest.raises(DamagedFile, match="tampered"):
        opened(joined(version, changed, body))


def test_each_flipped_bit_is_noticed() -> None:
    data = seal()
    for position in range(len(data)):
        for bit in (0, 7):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(StorageError):
                parse(bytes(changed), PATH)


def test_a_flipped_bit_in_the_body_is_called_damage() -> None:
    data = bytearray(seal())
    data[-60] ^= 1
    with pytest.raises(DamagedFile, match=r"checksum does not fit.*sign in again"):
        parse(bytes(data), PATH)


def test_each_truncation_is_damage() -> None:
    data = seal()
    for length in range(len(data)):
        with pytest.raises(DamagedFile, match="truncated" if length else "empty"):
            parse(data[:length], PATH)


def test_bytes_behind_the_end_are_damage() -> None:
    with pytest.raises(DamagedFile, match="3 bytes too many"):
        parse(seal() + b"xyz", PATH)


def test_another_programs_file_is_not_called_damaged() -> None:
    with pytest.raises(DamagedFile, match="not an encrypted token file"):
        parse(b'{"creation_timestamp": 1}', PATH)


@pytest.mark.parametrize(
    ("version", "words"), [(2, "newer Keepline.*upgrade"), (0, "older than any")]
)
def test_other_versions_of_the_format_have_their_own_words(version: int, words: str) -> None:
    _, clear, body = parts(seal())
    with pytest.raises(StorageError, match=words) as caught:
        parse(joined(version, clear, body), PATH)
    assert not isinstance(caught.value, DamagedFile), "a good file must not be moved aside"


@pytest.mark.parametrize("length", [0, 8, 11, 13, 16])
def test_a_nonce_has_twelve_bytes(length: int) -> None:
    version, clear, body = parts(seal())
    nonce = msgspec.to_builtins(bytes(length))
    with pytest.raises(DamagedFile, match=r"header makes no sense.*nonce"):
        parse(joined(version, {**clear, "nonce": nonce}, body), PATH)


@pytest.mark.parametrize(
    "kdf",
    [
        {"name": "pbkdf2", "iterations": 10**9},
        {"name": "pbkdf2", "iterations": 0},
        {"name": "pbkdf2", "iterations": -1},
        {"name": "pbkdf2", "iterations": 10, "memory_kib": 1 << 30},
        {"name": "argon2id", "iterations": 3, "memory_kib": 1 << 22, "lanes": 4},
        {"name": "argon2id", "iterations": 1000, "memory_kib": 64, "lanes": 1},
        {"name": "argon2id", "iterations": 3, "memory_kib": 65536, "lanes": 500},
        {"name": "argon2id", "iterations": 3, "memory_kib": 8, "lanes": 4},
        {"name": "argon2id", "iterations": 3, "memory_kib": 64, "lanes": 0},
    ],
)
def test_a_hostile_header_costs_no_derivation(kdf: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    version, clear, body = parts(seal())
    for name in ("_pbkdf2", "_argon2id"):
        monkeypatch.setattr(vaults, name, None)
    with pytest.raises(StorageError, match="key derivation that we do not do"):
        opened(joined(version, {**clear, "kdf": kdf}, body))


@pytest.mark.parametrize(
    "clear",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 4000,
        b" " * 5000,
        b'{"kdf":{"name":"md5","iterations":1}}',
    ],
)
def test_a_header_without_sense_is_damage(clear: bytes) -> None:
    with pytest.raises(DamagedFile, match="header makes no sense"):
        parse(joined(1, clear, b"x" * 40), PATH)


def test_unknown_header_fields_are_refused() -> None:
    version, clear, body = parts(seal())
    with pytest.raises(DamagedFile, match="header makes no sense"):
        parse(joined(version, {**clear, "surprise": 1}, body), PATH)


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="storage key is empty"):
        Vault(b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"access_token":""}',
        b'{"access_token":"a","expires_at":"2026-01-01T00:00:00"}',
    ],
)
def test_an_authentic_body_that_is_no_token_is_said(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vaults, "_json", lambda token: content)
    with pytest.raises(DamagedFile, match="not a token"):
        opened(seal())


@given(
    access=st.text(min_size=1).filter(lambda t: t.isprintable()),
    refresh=st.text(alphabet=st.characters(codec="utf-8")),
    key=st.binary(min_size=1),
    generation=st.integers(0, 2**53),
    extra=st.dictionaries(
        st.text(alphabet=st.characters(codec="utf-8")),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**53), 2**53)
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=3),
        ),
        max_size=4,
    ),
)
def test_any_token_under_any_key_comes_back(
    access: str, refresh: str, key: bytes, generation: int, extra: dict
) -> None:
    token = replace(
        TOKEN, access_token=access, refresh_token=refresh, generation=generation, extra=extra
    )
    assert opened(seal(token, key=key), key=key) == token
