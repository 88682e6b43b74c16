"""Claims about the address that a browser comes back with."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.oauth import OAuthApp, SignIn
from keepline.credentials.redirect import (
    Place,
    callback_place,
    read_redirect,
    require_refresh_token,
)
from keepline.credentials.token import Token
from keepline.errors import ConfigError, SignInRequired, TokenRefused, TransientError

APP = OAuthApp(
    token_url="https://issuer.example/token",
    client_id="app",
    client_secret="secret",
    redirect_uri="https://127.0.0.1:8182",
    name="main",
)
BEGUN = SignIn("https://issuer.example/auth", "st4te")
GOOD = "https://127.0.0.1:8182/?code=C0.abc%40&session=x&state=st4te"


def read(address: str, *, app: OAuthApp = APP) -> str:
    return read_redirect(address, app=app, sign_in=BEGUN)


def test_the_code_is_decoded_exactly_once() -> None:
    assert read(GOOD) == "C0.abc@"
    assert read(GOOD.replace("%40", "%2540")) == "C0.abc%40"


@pytest.mark.parametrize(
    "address",
    [
        f"  {GOOD}\n",
        f"<{GOOD}>",
        f'"{GOOD}"',
        GOOD.replace("8182/", "8182"),
        GOOD.replace("abc", "a\nbc"),
    ],
)
def test_what_a_terminal_adds_or_breaks_is_forgiven(address: str) -> None:
    assert read(address) == "C0.abc@"


@pytest.mark.parametrize("address", ["", "  \n", '""'])
def test_an_empty_paste_is_refused_with_words(address: str) -> None:
    with pytest.raises(SignInRequired, match="nothing was pasted") as caught:
        read(address)
    assert caught.value.command == "keepline login main"


@pytest.mark.parametrize(
    "address",
    ["C0.abc@", "code=C0.abc@&state=st4te", "127.0.0.1:8182/?code=x", "https://[::1", "https://", "ftp://127.0.0.1:8182/",
     "https://127.0.0.1:0/?code=x", "https://127.0.0.1:99999/"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_words(address: str) -> None:
    with pytest.raises(SignInRequired, match="not an address"):
        read(address)


@pytest.mark.parametrize(
    "change",
    [
        ("127.0.0.1:8182", "evil.example"),
        ("127.0.0.1:8182", "127.0.0.1:8182@evil.example"),
        ("127.0.0.1:8182", "127.0.0.1:8183"),
        ("127.0.0.1:8182", "127.0.0.1"),
        ("127.0.0.1:8182", "localhost:8182"),
        ("https://", "http://"),
        ("8182/", "8182/other"),
        ("8182/", "8182//"),
    ],
)
def test_a_foreign_place_is_refused_with_words(change: tuple[str, str]) -> None:
    with pytest.raises(SignInRequired, match="comes back to") as caught:
        read(GOOD.replace(*change))
    assert "C0.abc" not in str(caught.value)
    assert "st4te" not in str(caught.value)


def test_the_default_port_may_be_left_out() -> None:
    app = replace(APP, redirect_uri="https://127.0.0.1")
    assert read("https://127.0.0.1:443/?code=c&state=st4te", app=app) == "c"
    app = replace(APP, redirect_uri="http://127.0.0.1:80/cb")
    assert read("http://127.0.0.1/cb?code=c&state=st4te", app=app) == "c"


@pytest.mark.parametrize(
    "query",
    ["code=c", "code=c&state=", "code=c&state=other", "code=c&state=st4te&state=st4te", "code=c&state=st4te%20", "",
     "error=access_denied", "error=access_denied&state=x", "code=c&state=%ff"],
)  # fmt: skip
def test_nothing_is_believed_without_our_state(query: str) -> None:
    with pytest.raises(SignInRequired, match="belongs to another sign-in"):
        read(f"https://127.0.0.1:8182/?{query}")


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(SignInRequired, match="too many fields"):
        read(GOOD + "&a=b" * 30)


@pytest.mark.parametrize("query", ["state=st4te", "state=st4te&code=", "state=st4te&code=a&code=b"])
def test_without_exactly_one_code_there_is_none(query: str) -> None:
    with pytest.raises(TokenRefused, match="without a code") as caught:
        read(f"https://127.0.0.1:8182/?{query}")
    assert caught.value.code == "no_code"


def test_a_person_who_denies_is_understood() -> None:
    address = (
        "https://127.0.0.1:8182/?state=st4te&error=access_denied&error_description=You+said%0Ano"
    )
    with pytest.raises(TokenRefused, match=r"access was denied.*You said no") as caught:
        read(address)
    assert (caught.value.code, caught.value.credential) == ("access_denied", "main")


def test_an_unknown_error_is_a_refusal_without_its_markup() -> None:
    with pytest.raises(TokenRefused) as caught:
        read("https://127.0.0.1:8182/?state=st4te&error=%3Cscript%3E" + "x" * 100)
    assert len(caught.value.code) == 40
    assert "<" not in str(caught.value)
    with pytest.raises(TokenRefused, match="refused with an error"):
        read("https://127.0.0.1:8182/?state=st4te&error=")


@pytest.mark.parametrize("code", ["server_error", "temporarily_unavailable"])
def test_a_page_that_failed_for_the_moment_is_worth_another_try(code: str) -> None:
    with pytest.raises(TransientError, match=f"{code}.*sign in again"):
        read(f"https://127.0.0.1:8182/?state=st4te&error={code}")


def test_a_token_that_cannot_be_renewed_is_refused() -> None:
    with pytest.raises(TokenRefused, match="no refresh token, so nothing was saved") as caught:
        require_refresh_token(Token("a"), APP)
    assert caught.value.code == "no_refresh_token"
    token = Token("a", "r")
    assert require_refresh_token(token, APP) is token


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("https://127.0.0.1:8182", Place("127.0.0.1", 8182, "/", True)),
        ("http://localhost:8182/cb", Place("127.0.0.1", 8182, "/cb", False)),
        ("https://[::1]:8182/", Place("::1", 8182, "/", True)),
    ],
)
def test_a_callback_on_this_machine_has_a_place(uri: str, place: Place) -> None:
    assert callback_place(uri) == place


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("https://bot.example/cb", "not come back to this machine"),
        ("", "not come back to this machine"),
        ("https://127.0.0.1", "port 443 needs root"),
        ("https://127.0.0.1:80", "port 80 needs root"),
    ],
)
def test_a_callback_that_cannot_be_heard_says_what_to_do(uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        callback_place(uri)
    assert caught.value.key == "redirect_uri"
    assert "paste the address" in str(caught.value)


@given(st.text() | st.text().map(lambda text: f"https://127.0.0.1:8182/?{text}"))
def test_any_text_is_refused_with_one_of_three_errors(text: str) -> None:
    with contextlib.suppress(SignInRequired, TokenRefused, TransientError):
        read(text)
        raise AssertionError("a code without our state")


@pytest.mark.parametrize("character", ["\ud800", "\U0001f600", "\x00"])
def test_not_even_half_a_character_breaks_it(character: str) -> None:
    with pytest.raises(SignInRequired):
        read(f"https://127.0.0.1:8182/?state={character}&code={character}")
