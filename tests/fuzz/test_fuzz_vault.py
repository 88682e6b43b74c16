"""Any bytes in the encrypted file, the intent record or the history: a token, nothing, or a clear refusal."""

import hashlib
import json
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepline import files
from keepline.credentials import vault as vaults
from keepline.credentials.history import RotationHistory
from keepline.credentials.storage import TokenStorage
from keepline.credentials.token import Token
from keepline.credentials.vault import Kdf, Vault, parse
from keepline.errors import StorageError

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
TOKEN = Token("access-secret", "refresh-secret", issued_at=NOW, generation=7)
CHEAP = Kdf("pbkdf2", 10)
GOOD = Vault(b"key", kdf=CHEAP).seal(TOKEN, credential="default", created_at=NOW)
HEADER_BYTES = struct.unpack_from(">I", GOOD, 10)[0]
HEADER = json.loads(GOOD[18 : 18 + HEADER_BYTES])
BODY = GOOD[18 + HEADER_BYTES : -32]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "tokens.enc"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaults, "PBKDF2", CHEAP)


def joined(version: int, header: bytes, body: bytes) -> bytes:
    """A file whose checksum is right, so that the content is looked at."""
    data = struct.pack(">8sHII", b"KEEPLINE", version, len(header), len(body)) + header + body
    return data + hashlib.sha256(data).digest()


def refused_or_right(data: bytes) -> None:
    """No other exception, no secret in the refusal, and no token but the one that was sealed."""
    vault = Vault(b"key", kdf=CHEAP)
    try:
        sealed = parse(data, Path("f"))
        token = vault.open(sealed, credential="default", source="the test", path=Path("f"))
    except StorageError as error:
        refusal = str(error)
        assert len(refusal) > 20
        assert "secret" not in refusal
    else:
        assert token == TOKEN


@given(st.binary(max_size=600))
@example(GOOD)
@example(b"KEEPLINE" + b"\xff" * 40)
def test_any_bytes(data: bytes) -> None:
    refused_or_right(data)


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_word(data: bytes) -> None:
    refused_or_right(b"KEEPLINE" + data)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=20), st.integers(0, 20))
def test_a_good_file_with_a_stretch_replaced(position: int, piece: bytes, removed: int) -> None:
    refused_or_right(GOOD[:position] + piece + GOOD[position + removed :])


@given(st.integers(0, 65535), st.binary(max_size=200), st.binary(max_size=100))
def test_any_header_with_a_right_checksum(version: int, header: bytes, body: bytes) -> None:
    refused_or_right(joined(version, header, body))


@given(
    st.sampled_from([*HEADER, "kdf.name", "kdf.iterations", "kdf.memory_kib", "new"]), json_values
)
@example("kdf.iterations", 10**12)
@example("salt", "")
def test_any_value_in_any_header_field(field: str, value: object) -> None:
    header = {**HEADER, "kdf": dict(HEADER["kdf"])}
    outer, _, inner = field.partition(".")
    if inner:
        header[outer][inner] = value
    else:
        header[outer] = value
    refused_or_right(joined(1, json.dumps(header).encode(), BODY))


@given(st.binary(max_size=200))
def test_any_authentic_content(content: bytes) -> None:
    vault = Vault(b"key", kdf=CHEAP)
    real, vaults._json = vaults._json, lambda token: content
    try:
        data = vault.seal(TOKEN, credential="default", created_at=NOW)
    finally:
        vaults._json = real
    with pytest.raises(StorageError, match="not a token"):
        vault.open(parse(data, Path("f")), credential="default", source="the test", path=Path("f"))


@given(st.binary(max_size=300) | st.just(GOOD) | st.integers(0, len(GOOD)).map(lambda n: GOOD[:n]))
def test_any_file_is_a_token_or_a_refusal_and_a_save_over_it_loses_nothing(
    path: Path, data: bytes
) -> None:
    storage = TokenStorage(path, key="key", fallback_directory=path.parent / "fallback")
    storage.clear_token()
    files.write_private(path, data)
    try:
        assert storage.load() == TOKEN
    except StorageError:
        before = storage.path.read_bytes()
        storage.store(TOKEN)
        assert storage.load() == TOKEN
        assert path.with_name("tokens.enc.damaged").read_bytes() == before


@given(st.binary(max_size=300))
@example(
    b'{"v":1,"begun_at":"2026-01-01T00:00:00","generation":1,"fingerprint":"","access_fingerprint":""}'
)
def test_any_intent_record_is_nothing_or_an_interruption(path: Path, data: bytes) -> None:
    storage = TokenStorage(path, key="key", fallback_directory=path.parent / "fallback")
    files.write_private(path.with_name("tokens.enc.intent"), data)
    assert storage.interrupted() is None


@given(st.binary(max_size=300))
def test_any_history_is_read_and_written_on(path: Path, data: bytes) -> None:
    file = path.with_name("history.jsonl")
    files.write_private(file, data)
    history = RotationHistory(file)
    record = history.append(TOKEN, outcome="refreshed")
    assert history.read()[-1] == record
