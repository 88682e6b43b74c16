"""No secret leaves in a line, however it was written down."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.telemetry import redact, redact_value

SECRET = "s3cretValue-1234567890"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"

NAMES = ["access_token", "refresh_token", "id_token", "client_secret", "app_secret", "apiKey", "api_key", "password",
         "passphrase", "shared_secret", "code_verifier", "storage_key"]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "token", "secret", "code"])
@pytest.mark.parametrize(
    "form",
    [
        "https://x.example/cb?state=1&{name}={secret}",
        '{{"{name}": "{secret}"}}',
        '{{"{name}":"{secret}","other":1}}',
        "{{'{name}': '{secret}'}}",
        '"body": "{{\\"{name}\\": \\"{secret}\\"}}"',
        '{{"{name}": "a\\"{secret}',
        '{{"{name}": "a\\"{secret}"}}',
        "GET /cb?{name}={secret} HTTP/1.1",
    ],
)
def test_a_secret_is_gone_in_every_form(name: str, form: str) -> None:
    text = redact(form.format(name=name, secret=SECRET))
    assert SECRET not in text
    assert "[redacted]" in text
    assert name in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["{name}={secret}", "x {name}={secret}, y", "  {name}: {secret}"])
def test_forms_and_yaml_lines_are_covered(name: str, form: str) -> None:
    assert SECRET not in redact(form.format(name=name, secret=SECRET))


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: basic {SECRET}==",
        f"cookie has {JWT} in it",
        f"https://user:{SECRET}@proxy.example:8080/",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
    ],
)
def test_secrets_that_need_no_name_are_known_by_their_form(text: str) -> None:
    found = redact(text)
    assert SECRET not in found
    assert "eyJ" not in found
    assert "redacted" in found


@pytest.mark.parametrize(
    "text",
    [
        "Token refreshed",
        "code=invalid_grant",
        "the bearer token was refused",
        "Bearer realm=x",
        "token: expired at 14:30, retry later",
        "POST https://api.example/v1/oauth/token",
        "fingerprint 1a2b3c4d, generation 1770000000",
        'WWW-Authenticate: Bearer error="invalid_token"',
        "127.0.0.1:8182 user@example.invalid",
    ],
)
def test_plain_words_stay(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=300))
def test_any_text_passes_and_a_second_pass_changes_nothing(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")),
        min_size=12,
        max_size=60,
    )
)
def test_any_secret_in_json_is_gone(secret: str) -> None:
    assert json.dumps({"access_token": secret}) != redact(json.dumps({"access_token": secret}))
    assert json.loads(redact(json.dumps({"access_token": secret, "n": 1}))) == {
        "access_token": "[redacted]",
        "n": 1,
    }


def test_values_are_walked_and_numbers_stay_numbers() -> None:
    value = {
        "cycle": 3,
        "seconds": 0.5,
        "ok": True,
        "none": None,
        "password": SECRET,
        "token": "",
        "code": "invalid_grant",
        "urls": [f"https://x/?token={SECRET}", ("a", 1)],
        "inner": {"refresh_token": SECRET, f"Bearer {SECRET}": 1},
        "error": ValueError(f"access_token={SECRET}"),
    }
    found = redact_value(value)
    assert SECRET not in repr(found)
    assert {key: found[key] for key in ("cycle", "seconds", "ok", "none", "password", "token", "code")} == {
        "cycle": 3, "seconds": 0.5, "ok": True, "none": None, "password": "[redacted]", "token": "",
        "code": "invalid_grant",
    }  # fmt: skip
    assert found["urls"] == ["https://x/?token=[redacted]", ["a", 1]]
    assert redact_value(SECRET, "Api_Key") == "[redacted]"


@pytest.mark.parametrize(
    "piece", ["eyJ-", "eyJabcdef-", "bearer ", '"token":"', "://a:", "token=", "password: ", "\\"]
)
def test_each_beginning_of_a_secret_is_looked_at_once(piece: str) -> None:
    """Work that grew with the square of the length would outlast the limit of every test by far."""
    redact(piece * (2_000_000 // len(piece)))


def test_known_secrets_go_whatever_they_look_like_and_the_longest_first() -> None:
    assert redact("no plainword2, no plainword", "plainword", "plainword2") == (
        "no [redacted], no [redacted]"
    )
    assert redact("act: redacted", "redacted", "acte") == "act: [redacted]"


def test_what_is_too_short_for_a_secret_leaves_words_whole() -> None:
    assert redact("the token expired", "e", "", "tok") == "the token expired"


def test_a_number_that_json_does_not_have_is_a_text() -> None:
    assert redact_value({"left": float("inf"), "n": float("nan"), "x": 1.5}) == {
        "left": "inf",
        "n": "nan",
        "x": 1.5,
    }
