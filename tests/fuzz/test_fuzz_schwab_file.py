"""Any bytes in the token file: a token, or a refusal that names the file; and what loads can be saved again."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepline import files
from keepline.credentials.schwab_file import SchwabTokenFile
from keepline.credentials.token import Token
from keepline.errors import StorageError
from keepline.testing import ManualClock

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
INNER = {
    "expires_in": 1800,
    "token_type": "Bearer",
    "scope": "api",
    "refresh_token": "refresh-secret",
    "access_token": "access-secret",
    "id_token": "identity-secret",
    "expires_at": 1_767_625_200,
}
GOOD = json.dumps({"creation_timestamp": 1_767_538_800, "token": INNER}).encode()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "schwab_tokens.json"


def token_or_refusal(path: Path, data: bytes) -> None:
    files.write_private(path, data)
    store = SchwabTokenFile(path, clock=ManualClock(wall=NOW), fallback_directory=path.parent / "f")
    try:
        token = store.load()
    except StorageError as error:
        refusal = str(error)
        assert str(path) in refusal
        assert "-secret" not in refusal
        assert path.read_bytes() == data
    else:
        assert isinstance(token, Token)
        assert token.refresh_token
        saved = store.prepare(token).save(token)
        assert (saved.access_token, saved.refresh_token) == (
            token.access_token,
            token.refresh_token,
        )
        assert abs((saved.expires_at - token.expires_at).total_seconds()) < 1


@given(st.binary(max_size=300))
@example(GOOD)
@example(b"[" * 100_000)
@example(b'{"creation_timestamp": 1e400, "token": {}}')
def test_any_bytes(path: Path, data: bytes) -> None:
    token_or_refusal(path, data)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=12), st.integers(0, 12))
def test_a_good_file_with_a_stretch_replaced(
    path: Path, position: int, piece: bytes, removed: int
) -> None:
    token_or_refusal(path, GOOD[:position] + piece + GOOD[position + removed :])


@given(json_values)
def test_any_json(path: Path, value: object) -> None:
    token_or_refusal(path, json.dumps(value).encode())


@given(st.sampled_from([*INNER, "new"]), json_values, json_values)
@example("expires_at", 253_402_214_400.9, 0)
@example("expires_in", 253_402_214_400, 126_000_000_000)
@example("new", "\ud800", 0)
def test_any_value_in_any_field(path: Path, field: str, value: object, created: object) -> None:
    content = {"creation_timestamp": created, "token": {**INNER, field: value}, "top": value}
    token_or_refusal(path, json.dumps(content).encode())
    content["creation_timestamp"] = 1_767_538_800
    token_or_refusal(path, json.dumps(content).encode())
