import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.token import NEVER, Token
from keepline.daemon.tokenfile import from_json, to_json
from keepline.errors import ConfigError

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
LATER = NOW + timedelta(minutes=30)


def read(value: Any) -> Token:
    return from_json(json.dumps(value).encode(), NOW)


@pytest.mark.parametrize("expires", [LATER, NEVER])
@pytest.mark.parametrize("deadline", [None, NOW + timedelta(days=7)])
def test_what_was_exported_is_imported_the_same(
    expires: datetime, deadline: datetime | None
) -> None:
    token = Token(
        "a",
        "r",
        expires_at=expires,
        issued_at=NOW,
        token_type="Bearer",
        scope="api",
        generation=9,
        signin_deadline=deadline,
        extra={"id_token": "i"},
    )
    assert from_json(to_json(token, "x").encode(), NOW) == token.with_generation(0)


def test_a_file_of_schwab_py_has_its_sign_in_deadline() -> None:
    inner = {"access_token": "a", "refresh_token": "r", "expires_at": LATER.timestamp(), "x": 1}
    token = read({"creation_timestamp": int(NOW.timestamp()), "token": inner})
    assert token.signin_deadline == NOW + timedelta(days=7)
    assert token.expires_at == LATER
    assert token.extra == {"x": 1}
    assert read({"token": inner}).signin_deadline is None


def test_an_oauth_answer_counts_from_now() -> None:
    token = read({"access_token": "a", "refresh_token": "r", "expires_in": 60})
    assert (token.issued_at, token.expires_at) == (NOW, NOW + timedelta(seconds=60))


def test_a_bare_access_token_lives_half_an_hour() -> None:
    assert read({"access_token": "a"}).expires_at == LATER


def test_an_expiry_that_is_null_is_never() -> None:
    assert read({"access_token": "a", "expires_at": None}).expires_at == NEVER


def test_an_expired_token_is_good_while_it_can_be_renewed() -> None:
    old = {"access_token": "a", "expires_at": (NOW - timedelta(hours=1)).timestamp()}
    assert read({**old, "refresh_token": "r"}).is_expired(NOW)
    with pytest.raises(ConfigError, match="expired and holds no refresh_token"):
        read(old)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "a JSON object is expected"),
        ("secret-text", "a JSON object is expected"),
        ({}, "access_token"),
        ({"access_token": ""}, "access_token must not be empty"),
        ({"access_token": 7}, "access_token"),
        ({"access_token": "secret-text", "expires_at": "soon"}, "expires_at"),
        ({"access_token": "secret-text", "expires_at": "2026-01-05T14:30:00"}, "needs its offset"),
        ({"access_token": "secret-text", "expires_at": 1e99}, "not a token"),
    ],
)
def test_what_is_no_token_is_refused_without_its_value(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read(value)
    assert "secret-text" not in str(caught.value)


@given(st.binary())
def test_any_bytes_are_a_token_or_a_refusal(data: bytes) -> None:
    with pytest.raises(ConfigError):
        from_json(data, NOW)


FIELDS = (
    "access_token",
    "refresh_token",
    "expires_at",
    "expires_in",
    "issued_at",
    "token",
    "creation_timestamp",
    "scope",
    "extra",
    "signin_deadline",
)
VALUES = st.none() | st.text() | st.integers() | st.floats() | st.just({"access_token": "a"})


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_any_object_is_a_token_or_a_refusal(value: dict[str, Any]) -> None:
    try:
        token = read(value)
    except ConfigError:
        return
    assert token.generation == 0
