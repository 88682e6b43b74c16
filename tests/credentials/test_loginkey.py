"""Claims about ProjectX's login keys as a decider."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.answers import Answer
from keepline.credentials.loginkey import (
    LOGIN_ERRORS,
    login_request,
    read_login,
    read_validate,
    validate_request,
)
from keepline.credentials.token import NEVER, Token
from keepline.errors import TokenRefused, TransientError
from keepline.http import Headers

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
DAY = timedelta(days=1)


def session(**claims: Any) -> str:
    return jwt.encode(claims, b"k" * 32, algorithm="HS256")


def answer(body: object, status: int = 200, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, Headers(headers), data, NOW, "POST /api/Auth/loginKey")


def login(token: object, **headers: str) -> Token:
    return read_login(answer({"token": token, "success": True, "errorCode": 0}, **headers))


def exp(moment: datetime) -> float:
    return moment.timestamp()


PREVIOUS = Token("old", expires_at=NOW + timedelta(hours=2), issued_at=NOW - timedelta(hours=22))


def test_the_requests_carry_the_key_or_the_session_and_show_neither() -> None:
    request = login_request("https://gw", "me", "hush")
    assert request.url == "https://gw/api/Auth/loginKey"
    assert request.json == {"userName": "me", "apiKey": "hush"}
    validate = validate_request("https://gw", Token("hush"))
    assert validate.url == "https://gw/api/Auth/validate"
    assert validate.headers == {"Authorization": "Bearer hush"}
    assert validate.json is None
    assert "hush" not in repr((request, validate))


def test_a_session_expires_when_its_jwt_says() -> None:
    token = login(session(exp=exp(NOW + timedelta(hours=5))))
    assert token.expires_at == NOW + timedelta(hours=5)
    assert token.issued_at == NOW
    assert token.refresh_token == ""
    assert token.signin_deadline is None


@pytest.mark.parametrize(
    "text",
    [
        "opaque",
        "a.b.c",
        session(sub="x"),
        session(exp=None),
        session(exp=0),
        session(exp=-5),
        session(exp="soon"),
        session(exp=float("nan")),
    ],
)
def test_a_token_that_does_not_say_lives_a_day(text: str) -> None:
    assert login(text).expires_at == NOW + DAY


def test_an_absurd_expiry_stays_within_the_calendar() -> None:
    assert login(session(exp=1e300)).expires_at == NEVER
    assert login(session(exp="1900000000")).expires_at == datetime.fromtimestamp(1_900_000_000, UTC)


@pytest.mark.parametrize(("ahead", "counted"), [(7200, 7200), (-7200, -7200), (30, 0), (-30, 0)])
def test_a_gateway_whose_clock_is_wrong_is_read_by_its_own_clock(ahead: int, counted: int) -> None:
    there = NOW + timedelta(seconds=ahead)
    token = login(session(exp=exp(there + DAY)), Date=f"{there:%a, %d %b %Y %H:%M:%S} GMT")
    assert token.expires_at == NOW + DAY + timedelta(seconds=ahead - counted)


@pytest.mark.parametrize("code", LOGIN_ERRORS)
def test_a_listed_code_is_a_refusal_that_names_it(code: int) -> None:
    body = {"token": None, "success": False, "errorCode": code, "errorMessage": "for hush"}
    with pytest.raises(TokenRefused) as caught:
        read_login(answer(body), name="topstep", secrets=("hush",))
    word, remedy = LOGIN_ERRORS[code]
    assert caught.value.code == f"loginKey {code} {word}"
    assert caught.value.credential == "topstep"
    assert remedy in str(caught.value)
    assert "for [redacted]" in str(caught.value)


def test_the_terminal_codes_are_those_of_the_enum() -> None:
    assert set(LOGIN_ERRORS) == {1, 2, 3, 4, 5, 6, 7, 9, 10}


@pytest.mark.parametrize(
    "body",
    [
        {"token": None, "success": False, "errorCode": 8, "errorMessage": None},
        {"token": None, "success": False, "errorCode": 11},
        {"token": None, "success": False, "errorCode": "3"},
        {"token": None, "success": False},
        {"token": "abc", "success": False, "errorCode": 8},
        {"token": "", "success": True, "errorCode": 0},
        {"token": None, "success": True},
        {"token": "a\nb", "success": True},
        {"token": "ü", "success": True},
        {"token": 5, "success": True},
        {"token": "abc", "success": "true"},
        {},
        b"<html>",
        b"[]",
    ],
)
def test_everything_else_is_worth_another_try(body: object) -> None:
    with pytest.raises(TransientError) as caught:
        read_login(answer(body))
    assert caught.value.endpoint == "POST /api/Auth/loginKey"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_another_status_is_no_refusal(status: int) -> None:
    body = {"token": None, "success": False, "errorCode": 3}
    with pytest.raises(TransientError) as caught:
        read_login(answer(body, status, **{"Retry-After": "9"}))
    assert (caught.value.status, caught.value.retry_after) == (status, 9)


def test_validate_brings_a_session_that_lives_longer() -> None:
    text = session(exp=exp(NOW + DAY))
    renewed = read_validate(answer({"success": True, "newToken": text}), previous=PREVIOUS)
    assert renewed is not None
    assert (renewed.access_token, renewed.expires_at) == (text, NOW + DAY)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"success": False, "errorCode": 1, "newToken": None}, 200),
        ({"success": False, "errorCode": 3, "newToken": "x"}, 200),
        ({"success": True, "newToken": None}, 200),
        ({"success": True}, 200),
        ({"success": True, "newToken": session(exp=exp(NOW + timedelta(hours=2)))}, 200),
        ({}, 401),
        (b"", 401),
    ],
)
def test_a_refused_or_useless_validate_leads_to_the_key(body: object, status: int) -> None:
    assert read_validate(answer(body, status), previous=PREVIOUS) is None


@pytest.mark.parametrize(("body", "status"), [({}, 503), (b"<html>", 200), ({}, 429), ({}, 403)])
def test_a_gateway_out_of_order_is_no_reason_to_use_the_key(body: object, status: int) -> None:
    with pytest.raises(TransientError):
        read_validate(answer(body, status), previous=PREVIOUS)


@given(
    st.dictionaries(
        st.sampled_from(["token", "newToken", "success", "errorCode", "errorMessage"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    )
)
def test_any_body_is_a_token_or_one_of_two_errors(body: dict[str, object]) -> None:
    with contextlib.suppress(TokenRefused, TransientError):
        assert read_login(answer(body)).access_token == body["token"]
    with contextlib.suppress(TransientError):
        renewed = read_validate(answer(body), previous=PREVIOUS)
        assert renewed is None or renewed.access_token == body["newToken"]
