"""Claims about OAuth 2 as a decider: what is asked, and what each answer means."""

import base64
import contextlib
import hashlib
import json
import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.answers import LONGEST_WAIT, Answer, quoted
from keepline.credentials.oauth import (
    FATAL_CODES,
    OAuthApp,
    SignIn,
    TokenRequest,
    begin_sign_in,
    client_credentials_request,
    exchange_request,
    read_answer,
    refresh_request,
)
from keepline.credentials.token import NEVER, Token
from keepline.errors import ConfigError, KeeplineError, TokenRefused, TransientError
from keepline.http import Headers

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
APP = OAuthApp(
    token_url="https://issuer.example/token",
    client_id="app",
    client_secret="hush-secret",
    name="main",
)
SCHWAB = replace(
    APP,
    worn_out_codes=frozenset({"unsupported_token_type"}),
    worn_out_texts=("refresh token invalid", "refresh_token_authentication_error"),
)
REQUEST = refresh_request(APP, "hush-refresh")
PREVIOUS = Token(
    "old", "hush-refresh", issued_at=NOW, scope="api", signin_deadline=NOW + timedelta(days=3)
)
GOOD = {"access_token": "new", "expires_in": 1800}


def answer(body: object, status: int = 200, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, Headers(headers), data, NOW, "POST /token")


def token(body: object, *, app: OAuthApp = APP, previous: Token | None = None) -> Token:
    return read_answer(app, REQUEST, answer(body), previous=previous).token


def failure(given_answer: Answer, *, app: OAuthApp = APP) -> KeeplineError:
    with pytest.raises(KeeplineError) as caught:
        read_answer(app, REQUEST, given_answer, previous=PREVIOUS)
    return caught.value


# --- what is asked ---


def test_basic_encodes_each_half_before_the_colon() -> None:
    app = replace(APP, client_id="id:with colon", client_secret="s+e%c:ret")
    value = client_credentials_request(app).headers["Authorization"].removeprefix("Basic ")
    key, secret = base64.b64decode(value).decode().split(":")
    assert (key, secret) == ("id%3Awith+colon", "s%2Be%25c%3Aret")
    assert (unquote_plus(key), unquote_plus(secret)) == (app.client_id, app.client_secret)


@pytest.mark.parametrize(
    ("auth", "fields"),
    [
        ("basic", {}),
        ("post", {"client_id": "app", "client_secret": "hush-secret"}),
        ("none", {"client_id": "app"}),
    ],
)
def test_a_client_proves_itself_as_told(auth: Any, fields: dict[str, str]) -> None:
    request = refresh_request(replace(APP, client_auth=auth), "r")
    assert request.form == {"grant_type": "refresh_token", "refresh_token": "r", **fields}
    assert ("Authorization" in request.headers) is (auth == "basic")


def test_a_client_of_its_own_asks_for_its_scope() -> None:
    assert client_credentials_request(APP).form == {"grant_type": "client_credentials"}
    assert client_credentials_request(replace(APP, scope="a b")).form["scope"] == "a b"


def test_a_sign_in_s_page_carries_state_and_challenge() -> None:
    app = replace(APP, authorize_url="https://issuer.example/auth?tenant=1",
                  redirect_uri="https://127.0.0.1:8182/", scope="a b")  # fmt: skip
    begun = begin_sign_in(app, state="st&ate", verifier="v" * 43)
    page = urlsplit(begun.url)
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"v" * 43).digest()).decode().rstrip("=")
    assert page.path == "/auth"
    assert {name: values[0] for name, values in parse_qs(page.query).items()} == {
        "tenant": "1",
        "response_type": "code",
        "client_id": "app",
        "redirect_uri": "https://127.0.0.1:8182/",
        "state": "st&ate",
        "scope": "a b",
        "code_challenge": digest,
        "code_challenge_method": "S256",
    }
    form = exchange_request(app, "C0.x@", begun).form
    assert form["code"] == "C0.x@"
    assert form["code_verifier"] == "v" * 43
    assert form["redirect_uri"] == "https://127.0.0.1:8182/"


def test_without_pkce_there_is_neither_challenge_nor_verifier() -> None:
    app = replace(APP, authorize_url="https://h/auth", redirect_uri="https://h/", pkce=False)
    begun = begin_sign_in(app, state="s", verifier="v" * 43)
    assert "code_challenge" not in begun.url
    assert "code_verifier" not in exchange_request(app, "c", begun).form


@pytest.mark.parametrize("missing", ["authorize_url", "redirect_uri"])
def test_a_sign_in_without_an_address_names_it(missing: str) -> None:
    app = replace(APP, authorize_url="https://h/auth", redirect_uri="https://h/")
    with pytest.raises(ConfigError) as caught:
        begin_sign_in(replace(app, **{missing: ""}), state="s", verifier="v")
    assert caught.value.key == missing


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"token_url": ""}, "token_url"),
        ({"token_url": "issuer.example/token"}, "token_url"),
        ({"token_url": "http://issuer.example/token"}, "token_url"),
        ({"token_url": "https://[::1"}, "token_url"),
        ({"token_url": "https://"}, "token_url"),
        ({"authorize_url": "http://issuer.example/auth"}, "authorize_url"),
        ({"client_id": ""}, "client_id"),
        ({"client_secret": ""}, "client_secret"),
        ({"client_secret": "", "client_auth": "post"}, "client_secret"),
        ({"client_auth": "digest"}, "client_auth"),
    ],
)
def test_a_client_that_cannot_work_names_the_setting(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(APP, **changes)
    assert caught.value.key == key


@pytest.mark.parametrize("host", ["127.0.0.1:8787", "localhost", "[::1]:1"])
def test_plain_http_is_allowed_on_this_machine_alone(host: str) -> None:
    assert replace(APP, token_url=f"http://{host}/token").token_url


def test_nothing_of_a_secret_is_shown() -> None:
    begun = SignIn("https://h/?state=hush", "hush", "hush")
    shown = [repr(value) for value in (APP, REQUEST, begun, answer({"access_token": "hush"}))]
    assert "hush" not in "".join(shown)


# --- what an answer means ---


def test_a_whole_answer_becomes_a_whole_token() -> None:
    body = {
        "access_token": "a1",
        "refresh_token": "r1",
        "expires_in": 1800,
        "token_type": "Bearer",
        "scope": "api",
        "id_token": "i1",
    }
    got = token(body, app=replace(APP, refresh_lifetime=timedelta(days=7)))
    assert (got.access_token, got.refresh_token, got.scope) == ("a1", "r1", "api")
    assert (got.issued_at, got.expires_at) == (NOW, NOW + timedelta(minutes=30))
    assert got.signin_deadline == NOW + timedelta(days=7)
    assert got.extra == {"id_token": "i1"}
    assert got.generation == 0


def test_a_refresh_carries_over_what_the_answer_leaves_out_and_never_moves_the_deadline() -> None:
    got = token(GOOD, app=replace(APP, refresh_lifetime=timedelta(days=7)), previous=PREVIOUS)
    assert got.refresh_token == "hush-refresh"
    assert got.scope == "api"
    assert got.signin_deadline == PREVIOUS.signin_deadline
    rotated = token({**GOOD, "refresh_token": "r2", "scope": ["x", 5, "y"]}, previous=PREVIOUS)
    assert (rotated.refresh_token, rotated.scope) == ("r2", "x y")
    assert rotated.signin_deadline == PREVIOUS.signin_deadline


def test_a_token_without_a_refresh_token_has_no_sign_in_deadline() -> None:
    assert token(GOOD, app=replace(APP, refresh_lifetime=timedelta(days=7))).signin_deadline is None
    assert token(GOOD, app=replace(APP, scope="asked")).scope == "asked"


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [(1800, 1800), (2.5, 2.5), ("3600", 3600), ("59.5", 59.5), (1e300, None), (10**400, 1800)],
)
def test_a_lifetime_may_be_a_number_or_its_text(expires_in: object, seconds: float | None) -> None:
    wanted = NEVER if seconds is None else NOW + timedelta(seconds=seconds)
    assert token({**GOOD, "expires_in": expires_in}).expires_at == wanted


@pytest.mark.parametrize(
    "expires_in",
    [
        -1,
        0,
        "-5",
        "soon",
        "",
        "0x10",
        "1e9",
        True,
        [],
        {},
        float("nan"),
        float("inf"),
        None,
        10**400,
    ],
)
def test_a_lifetime_that_is_none_keeps_the_token_counts_as_half_an_hour_and_is_remarked(
    expires_in: object,
) -> None:
    body = {"access_token": "a", "refresh_token": "rotated", "expires_in": expires_in}
    granted = read_answer(APP, REQUEST, answer(body), previous=PREVIOUS)
    assert granted.token.expires_at == NOW + timedelta(seconds=1800)
    assert granted.token.refresh_token == "rotated"
    assert "counted as 1800 s" in granted.remark


def test_a_missing_lifetime_is_remarked_and_a_good_one_is_not() -> None:
    missing = read_answer(APP, REQUEST, answer({"access_token": "a"}))
    assert "does not say how long" in missing.remark
    assert read_answer(APP, REQUEST, answer(GOOD)).remark == ""


@pytest.mark.parametrize("value", [None, "", 5, ["a"], "a b", "a\r\nX: y", "ü", "\x00"])
def test_an_answer_without_a_usable_access_token_is_worth_another_try(value: object) -> None:
    error = failure(answer({"access_token": value, "expires_in": 1800}))
    assert isinstance(error, TransientError)
    assert "no access_token" in str(error)
    assert error.status == 200


def test_odd_fields_beside_a_good_token_do_no_harm() -> None:
    got = token({**GOOD, "token_type": 5, "scope": 7, "refresh_token": ["x"], "error": None})
    assert (got.token_type, got.scope, got.refresh_token) == ("Bearer", "", "")


@pytest.mark.parametrize("code", FATAL_CODES)
@pytest.mark.parametrize("status", [200, 400, 401, 403])
def test_a_fatal_code_is_a_refusal_with_words(code: str, status: int) -> None:
    error = failure(answer({"error": code, "error_description": "because"}, status))
    assert isinstance(error, TokenRefused)
    assert (error.code, error.status, error.credential) == (code, status, "main")
    assert FATAL_CODES[code] in str(error)
    assert "because" in str(error)


@pytest.mark.parametrize("code", ["invalid_request", "slow_down", "unsupported_token_type", "x y"])
def test_an_unknown_code_is_worth_another_try(code: str) -> None:
    error = failure(answer({"error": code, "error_description": "hm"}, 400))
    assert isinstance(error, TransientError)
    assert f"{code}: hm" in str(error)
    assert code in str(failure(answer({"error": code}, 400)))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": "unsupported_token_type", "error_description": "x"}),
        (401, {"error": "invalid_client", "error_description": "refresh token invalid"}),
        (400, {"error": "odd", "error_description": 'a "refresh_token_authentication_error" b'}),
        (400, {"error": "odd", "error_description": "Refresh Token Invalid"}),
    ],
)
def test_schwab_s_bodies_for_a_dead_refresh_token_are_refusals(
    status: int, body: dict[str, str]
) -> None:
    error = failure(answer(body, status), app=SCHWAB)
    assert isinstance(error, TokenRefused)
    assert "the refresh token is no longer good: sign in again" in str(error)
    assert error.code == body["error"]


@pytest.mark.parametrize(
    ("status", "category"),
    [
        (500, "server"),
        (502, "server"),
        (503, "server"),
        (504, "timeout"),
        (429, "rate_limit"),
        (408, "timeout"),
    ],
)
def test_a_server_error_is_never_a_refusal_whatever_it_says(status: int, category: str) -> None:
    error = failure(answer({"error": "invalid_grant"}, status))
    assert isinstance(error, TransientError)
    assert (error.category, error.status) == (category, status)
    assert error.endpoint == "POST /token"


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 503])
@pytest.mark.parametrize(
    "body",
    [b"<html>Access Denied</html>", b"", b"null", b'"x"', b"[1]", b"\xff", b"[" * 90_000, b"{}"],
)
def test_a_page_or_rubbish_is_never_a_refusal(status: int, body: bytes) -> None:
    error = failure(answer(body, status, **{"Content-Type": "text/html; charset=x"}), app=SCHWAB)
    assert isinstance(error, TransientError)
    assert error.status == status


def test_what_came_instead_of_json_is_named() -> None:
    assert "not a JSON object (text/html)" in str(
        failure(answer(b"<html>", 403, **{"Content-Type": "text/html; charset=utf-8"}))
    )
    assert "not a JSON object (no content type)" in str(failure(answer(b"<html>", 403)))
    assert "an answer that we do not know" in str(failure(answer({"a": 1}, 404)))
    assert "the server failed" in str(failure(answer({"a": 1}, 599)))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_told_as_one(status: int) -> None:
    error = failure(answer({"error": "invalid_grant"}, status, Location="https://portal/?x=hush"))
    assert isinstance(error, TransientError)
    assert "redirects instead of answering" in str(error)
    assert "hush" not in str(error)


@pytest.mark.parametrize("code", [5, None, ["invalid_grant"], {"code": "invalid_grant"}])
def test_an_error_that_is_no_text_is_worth_another_try(code: object) -> None:
    assert isinstance(failure(answer({"error": code}, 400)), TransientError)


# --- Retry-After ---


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3),
        ({"Retry-After": " 2.5 "}, 2.5),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "9999999"}, LONGEST_WAIT),
        ({"Retry-After": "Mon, 05 Jan 2026 14:31:00 GMT"}, 60),
        ({"Retry-After": "Mon, 05 Jan 2026 14:31:00 -0000"}, 60),
        ({"Retry-After": "Mon, 05 Jan 2026 14:29:00 GMT"}, 0),
        # by the server's own clock when it tells it
        (
            {
                "Retry-After": "Mon, 05 Jan 2026 16:00:10 GMT",
                "Date": "Mon, 05 Jan 2026 16:00:00 GMT",
            },
            10,
        ),
        ({"Retry-After": "Mon, 99 Jan 2026 16:00:10 GMT"}, None),
    ],
)
def test_the_time_to_stay_away_is_read_in_both_forms(
    headers: dict[str, str], seconds: float | None
) -> None:
    error = failure(answer({}, 429, **headers))
    assert isinstance(error, TransientError)
    assert error.retry_after == seconds


# --- secrets ---


def test_an_issuer_that_repeats_our_secrets_does_not_get_them_into_the_error() -> None:
    app = replace(APP, client_auth="post")
    request = TokenRequest(
        "https://h/t",
        {},
        {"code": "C0.hush@", "code_verifier": "hush-v", "refresh_token": "hush-refresh"},
    )
    said = "no: C0.hush@ hush-v hush-refresh hush-secret"
    for code in ("invalid_grant", "hush-refresh"):
        with pytest.raises(KeeplineError) as caught:
            read_answer(app, request, answer({"error": code, "error_description": said}, 400))
        assert "hush" not in str(caught.value)
        assert "[redacted]" in str(caught.value)


def test_a_secret_of_one_letter_is_not_spelled_out_by_its_gaps() -> None:
    assert quoted("requested grant", ["r", ""]) == "requested grant"


def test_a_quotation_is_short_and_on_one_line() -> None:
    assert quoted("a\r\nb\x1b[31m\tc\u2028d") == "a b [31m c d"
    assert len(quoted("x" * 10_000)) == 201


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "access_token",
    "refresh_token",
    "expires_in",
    "token_type",
    "scope",
    "error",
    "error_description",
]


@given(
    st.dictionaries(st.sampled_from(FIELDS), json_values | st.sampled_from(list(FATAL_CODES))),
    st.integers(200, 599),
)
def test_any_json_is_a_token_or_one_of_two_errors(body: dict[str, Any], status: int) -> None:
    try:
        got = read_answer(SCHWAB, REQUEST, answer(body, status), previous=PREVIOUS).token
    except (TokenRefused, TransientError) as error:
        refusal = isinstance(error, TokenRefused)
        known = (
            body.get("error") in (*FATAL_CODES, *SCHWAB.worn_out_codes)
            or "refresh" in str(body.get("error_description")).lower()
        )
        assert not refusal or (status < 500 and known)
    else:
        assert got.access_token == body["access_token"]
        assert got.refresh_token
        assert NOW < got.expires_at <= NEVER


@given(st.binary(max_size=200), st.integers(200, 599), st.dictionaries(
    st.sampled_from(["Retry-After", "Date", "Content-Type"]), st.text(string.printable)))  # fmt: skip
def test_any_bytes_are_worth_another_try_at_worst(
    body: bytes, status: int, headers: dict[str, str]
) -> None:
    with contextlib.suppress(TransientError):
        read_answer(APP, REQUEST, Answer(status, Headers(headers), body, NOW))
