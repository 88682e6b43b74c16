"""The token itself: immutable, aware of time, and shown by a fingerprint alone."""

import hashlib
import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.token import NEVER, Token, fingerprint, next_generation

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
NAIVE = NOW.replace(tzinfo=None)
ACCESS, REFRESH = "access-secret-A1b2C3", "refresh-secret-D4e5F6"
TOKEN = Token(
    ACCESS,
    REFRESH,
    expires_at=NOW + timedelta(minutes=30),
    issued_at=NOW,
    extra={"id_token": "identity-secret-1"},
)


def test_it_shows_a_fingerprint_and_no_part_of_a_secret() -> None:
    for shown in (repr(TOKEN), str(TOKEN), f"{TOKEN}", f"{[TOKEN]}"):
        assert "secret" not in shown
        assert TOKEN.fingerprint in shown
        assert "2026-01-05T15:00:00" in shown
    assert "never expires, no refresh token" in repr(Token("a"))


def test_a_fingerprint_has_32_bits_of_a_keyed_hash_and_leads_back_to_nothing() -> None:
    assert fingerprint(ACCESS) == hashlib.sha256(b"keepline:" + ACCESS.encode()).hexdigest()[:8]
    assert fingerprint("") == "-"
    assert fingerprint(ACCESS) != fingerprint(REFRESH)


def test_nobody_can_change_it_and_it_may_be_compared_hashed_and_sent() -> None:
    with pytest.raises(FrozenInstanceError):
        TOKEN.access_token = "another"  # type: ignore[misc]
    same = pickle.loads(pickle.dumps(TOKEN))
    assert same == TOKEN
    assert len({TOKEN, same}) == 1
    assert replace(TOKEN, refresh_token="x") != TOKEN


@pytest.mark.parametrize(
    ("field", "value", "error", "words"),
    [
        ("access_token", "", ValueError, "must not be empty"),
        ("access_token", None, ValueError, "must not be empty"),
        (
            "access_token",
            b"access-secret",
            TypeError,
            "access_token must be of type str, not bytes",
        ),
        ("access_token", 123456, TypeError, "access_token must be of type str, not int"),
        ("refresh_token", None, TypeError, "refresh_token must be of type str, not NoneType"),
        ("generation", "5", TypeError, "generation must be of type int, not str"),
        ("expires_at", None, TypeError, "expires_at must be an aware datetime, not NoneType"),
        ("expires_at", 1767625800.0, TypeError, r"datetime.fromtimestamp\(seconds"),
        ("issued_at", "2026-01-05", TypeError, "issued_at must be an aware datetime, not str"),
        ("signin_deadline", 7, TypeError, "signin_deadline must be an aware datetime, not int"),
        ("expires_at", NAIVE, ValueError, "expires_at must be timezone-aware"),
        ("issued_at", NAIVE, ValueError, "issued_at must be timezone-aware"),
        ("signin_deadline", NAIVE, ValueError, "signin_deadline must be timezone"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named_and_its_value_is_not(
    field: str, value: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        replace(TOKEN, **{field: value})
    assert "access-secret" not in str(caught.value)
    assert "123456" not in str(caught.value)


def test_it_is_dead_from_the_moment_of_its_expiry_on() -> None:
    assert not TOKEN.is_expired(TOKEN.expires_at - timedelta(microseconds=1))
    assert TOKEN.is_expired(TOKEN.expires_at)
    assert not Token("a").is_expired()
    assert Token("a", expires_at=datetime.now(UTC) - timedelta(seconds=1)).is_expired()


def test_a_life_is_never_negative() -> None:
    assert TOKEN.lifetime == timedelta(minutes=30)
    assert replace(TOKEN, expires_at=NOW - timedelta(hours=1)).lifetime == timedelta(0)
    assert Token("a").expires_at == NEVER


@given(
    previous=st.integers(min_value=0, max_value=2**40),
    issued=st.datetimes(min_value=NAIVE, timezones=st.just(UTC)),
)
def test_a_generation_grows_and_is_at_least_the_second_of_issue(previous, issued) -> None:
    number = next_generation(previous, issued)
    assert number > previous
    assert number >= int(issued.timestamp())
    assert number in (previous + 1, int(issued.timestamp()))
