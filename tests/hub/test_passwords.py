"""Passwords: what is refused as weak, what a hash holds, and that an unknown user costs the same work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.hub import passwords
from keepline.hub.passwords import (
    ARGON2ID,
    Argon2id,
    check_strength,
    hash_password,
    parameters_of,
    password_fits,
)

CHEAP = Argon2id(64, 1, 1)
REST = "c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA"


def test_a_password_fits_its_hash_and_no_other() -> None:
    phc = hash_password("correct horse battery", parameters=CHEAP)
    assert phc.startswith("$argon2id$v=19$m=64,t=1,p=1$")
    assert "correct" not in phc
    assert parameters_of(phc) == CHEAP
    assert password_fits("correct horse battery", phc)
    assert not password_fits("correct horse batterz", phc)
    assert not password_fits("", phc)
    assert hash_password("correct horse battery", parameters=CHEAP) != phc


def test_our_hash_is_what_others_make_of_it() -> None:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id as Peer

    phc = hash_password("correct horse battery", parameters=CHEAP)
    Peer.verify_phc_encoded(b"correct horse battery", phc)
    theirs = Peer(salt=b"s" * 16, length=32, iterations=2, lanes=2, memory_cost=128)
    assert password_fits(
        "pässword of a peer", theirs.derive_phc_encoded("pässword of a peer".encode())
    )


def test_composed_and_decomposed_letters_are_one_password() -> None:
    assert password_fits(
        "cafe\u0301 corretto mio", hash_password("café corretto mio", parameters=CHEAP)
    )


def test_an_unknown_user_costs_the_same_work_and_never_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work: list[tuple[Argon2id, int]] = []
    derive = passwords._derive

    def counted(password: str, parameters: Argon2id, salt: bytes, length: int) -> bytes:
        work.append((parameters, length))
        return derive(password, parameters, salt, length)

    monkeypatch.setattr(passwords, "_derive", counted)
    phc = hash_password("correct horse battery", parameters=CHEAP)
    assert not password_fits("x", phc)
    assert not password_fits("x", None, like=CHEAP)
    assert work[1] == work[2]


def test_the_usual_parameters_are_those_of_rfc_9106() -> None:
    assert ARGON2ID == (65536, 3, 4)
    assert password_fits("correct horse battery", hash_password("correct horse battery"))


@pytest.mark.parametrize(
    "phc",
    [
        "",
        "x",
        f"$argon2i$v=19$m=64,t=1,p=1${REST}",
        f"$argon2id$v=16$m=64,t=1,p=1${REST}",
        f"$argon2id$v=19$m=9999999,t=1,p=1${REST}",
        f"$argon2id$v=19$m=64,t=99,p=1${REST}",
        f"$argon2id$v=19$m=64,t=0,p=1${REST}",
        f"$argon2id$v=19$m=64,t=1,p=99${REST}",
        f"$argon2id$v=19$m=8,t=1,p=4${REST}",
        "$argon2id$v=19$m=64,t=1,p=1$AAAAAAAAAAAAA$aGFzaGhhc2hoYXNoaGFzaA",
    ],
)
def test_a_hash_that_is_none_or_would_cost_too_much_is_refused_before_any_work(phc: str) -> None:
    with pytest.raises(ConfigError):
        password_fits("x", phc)


def test_parameters_beyond_the_caps_are_refused() -> None:
    with pytest.raises(ConfigError, match="is not done here: at most 262144 KiB"):
        hash_password("x", parameters=Argon2id(1 << 20, 1, 1))


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("", "shorter than 12"),
        ("short", "shorter than 12"),
        ("elevenchars", "shorter than 12"),
        ("x" * 1025, "longer than 1024"),
        ("ü" * 600, "longer than 1024"),
        ("aaaaaaaaaaaaaaaa", "repeats a few characters"),
        ("abababababababab", "repeats a few characters"),
        ("correct\thorse battery", "control character"),
        ("correct horse\r", "control character"),
        ("bad \ud800 surrogate here", "control character"),
        ("Annabella likes tea", "contains the user's name"),
        ("password1234", "common word"),
        ("P@ssw0rd123!", "common word"),
        ("Keepline2026!", "common word"),
        ("changeme-admin-1", "common word"),
        ("abcdefghijkl", "run of neighbouring"),
        ("qwertyuiop[]", "common word"),
        ("zxcvbnm,./zxcvbnm", "run of neighbouring"),
        ("123456789012", "run of neighbouring"),
        ("asdfghjkl;'zxcvbnm", "run of neighbouring"),
        ("lkjhgfdsapoiuytrewq", "run of neighbouring"),
    ],
)
def test_weak_passwords_are_refused_in_words(password: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        check_strength(password, name="annabella")
    assert error.value.key == "password"
    assert not password or len(password) < 6 or password not in str(error.value)


@pytest.mark.parametrize(
    "password",
    ["correct horse battery", "tea for two at ten", "9268-8263-9914", "8f3kq0zp1xw7", "пароль для робота",
     "Ω≈ç√∫˜µ≤≥÷åß",     "my secret garden has roses"],
)  # fmt: skip
def test_good_passwords_pass(password: str) -> None:
    check_strength(password, name="ann")
    check_strength(password, name="")


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_text_is_judged_without_a_crash(password: str, name: str) -> None:
    told = ""
    try:
        check_strength(password, name=name)
    except ConfigError as error:
        told = str(error)
    assert told == "" or told.startswith("[password]: the password ")
