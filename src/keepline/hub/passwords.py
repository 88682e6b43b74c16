"""Passwords: hashed with Argon2id, compared in constant time, refused when they are weak.

Invariants: a hash carries its parameters (PHC string format), which are capped before any work; a user who does not
exist costs the same work as one who does; no password enters an error or a repr.
"""

import base64
import binascii
import hmac
import re
import secrets
import unicodedata
from typing import NamedTuple

from keepline.errors import ConfigError

__all__ = [
    "ARGON2ID",
    "Argon2id",
    "check_strength",
    "hash_password",
    "parameters_of",
    "password_fits",
]

LONGEST_PASSWORD = 1024
"""Bytes; a longer one is refused unread."""

SHORTEST_PASSWORD = 12
"""Characters."""


class Argon2id(NamedTuple):
    """Parameters of the hash (RFC 9106).

    Attributes:
        memory_kib: KiB.
        passes: over the memory.
        lanes: in parallel.
    """

    memory_kib: int
    passes: int
    lanes: int


ARGON2ID = Argon2id(64 * 1024, 3, 4)
"""RFC 9106, second recommended option: 64 MiB, three passes, four lanes."""

_MOST = Argon2id(256 * 1024, 10, 16)
_HASH_BYTES = 32
_PHC = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=(\d{1,3})\$([A-Za-z0-9+/]{11,88})\$([A-Za-z0-9+/]{22,88})"
)
_COMMON = ("password", "passwort", "motdepasse", "contrasena", "qwerty", "qwertz", "azerty", "letmein", "welcome",
           "admin", "iloveyou", "changeme", "secret", "trading", "trader", "keepline", "monkey", "dragon",
           "football")  # fmt: skip
_ROWS = (
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890",
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertzuiop",
)


def hash_password(password: str, *, parameters: Argon2id = ARGON2ID) -> str:
    """The hash in PHC form with a salt of its own; takes a tenth of a second, never on an event loop.

    Raises:
        ConfigError: the parameters are beyond the caps.
    """
    _check(parameters)
    salt = secrets.token_bytes(16)
    return _phc(parameters, salt, _derive(password, parameters, salt, _HASH_BYTES))


def password_fits(password: str, phc: str | None, *, like: Argon2id = ARGON2ID) -> bool:
    """Whether a password belongs to a hash; takes a tenth of a second, never on an event loop.

    Args:
        password: as given.
        phc: the hash; None when there is no such user: the same work is done and the answer is no.
        like: the parameters of that work.
    """
    parameters, salt, wanted = (
        (like, b"\0" * 16, secrets.token_bytes(_HASH_BYTES)) if phc is None else _parsed(phc)
    )
    found = _derive(password, parameters, salt, len(wanted))
    return hmac.compare_digest(found, wanted) and phc is not None


def parameters_of(phc: str) -> Argon2id:
    """The parameters that a hash was made with.

    Raises:
        ConfigError: not a hash of ours, or parameters beyond the caps.
    """
    return _parsed(phc)[0]


def check_strength(password: str, *, name: str = "") -> None:
    """Refuse a password that is guessed early.

    Args:
        password: the password.
        name: whose, it must not be in it.

    Raises:
        ConfigError: says what is wrong with it, without a part of it.
    """
    if problem := _weakness(password, unicodedata.normalize("NFC", name)):
        raise ConfigError(f"the password {problem}", key="password")


def _weakness(password: str, name: str) -> str:
    text = unicodedata.normalize("NFC", password)
    plain = text.casefold()
    if len(text.encode("utf-8", "surrogatepass")) > LONGEST_PASSWORD:
        return f"is longer than {LONGEST_PASSWORD} bytes"
    if len(text) < SHORTEST_PASSWORD:
        return f"is shorter than {SHORTEST_PASSWORD} characters: take a few words, or let a password manager make one"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        return "has a control character in it: was it pasted with a line break?"
    if len(set(plain)) < 6:
        return "repeats a few characters: use at least 6 different ones"
    if len(name) >= 3 and name.casefold() in plain:
        return "contains the user's name"
    if len(_without_common(plain)) < 6:
        return "is a common word with little added: everyone tries those first"
    if _is_run(plain):
        return "is a run of neighbouring keys or letters"
    return ""


def _without_common(plain: str) -> str:
    """What is left besides common words, digits and signs; all of it when there is no common word in it."""
    rest = plain.translate(str.maketrans("013457@$!", "oleastasi"))
    if not any(word in rest for word in _COMMON):
        return plain
    for word in _COMMON:
        rest = rest.replace(word, " " * len(word))
    return "".join(
        was for was, now in zip(plain, rest, strict=True) if was.isalpha() and now != " "
    )


def _is_run(plain: str) -> bool:
    left = plain
    for row in _ROWS:
        for line in (row, row[::-1]):
            for size in range(len(line), 3, -1):
                for start in range(len(line) - size + 1):
                    left = left.replace(line[start : start + size], "")
    return len(left) < 4


def _check(parameters: Argon2id) -> None:
    memory, passes, lanes = parameters
    inside = 1 <= passes <= _MOST.passes and 1 <= lanes <= _MOST.lanes
    if not inside or not 8 * lanes <= memory <= _MOST.memory_kib:
        raise ConfigError(
            f"Argon2id with {memory} KiB, {passes} passes and {lanes} lanes is not done here: at most "
            f"{_MOST.memory_kib} KiB, {_MOST.passes} passes, {_MOST.lanes} lanes, and 8 KiB for each lane",
            key="argon2id",
        )


def _parsed(phc: str) -> tuple[Argon2id, bytes, bytes]:
    match = _PHC.fullmatch(phc)
    if match is None:
        raise ConfigError("is not an Argon2id hash in PHC form", key="password")
    parameters = Argon2id(*map(int, match.groups()[:3]))
    _check(parameters)
    try:
        salt, digest = (
            base64.b64decode(part + "=" * (-len(part) % 4)) for part in match.groups()[3:]
        )
    except (ValueError, binascii.Error):
        raise ConfigError("is not an Argon2id hash in PHC form", key="password") from None
    return parameters, salt, digest


def _phc(parameters: Argon2id, salt: bytes, digest: bytes) -> str:
    memory, passes, lanes = parameters
    coded = (base64.b64encode(part).decode().rstrip("=") for part in (salt, digest))
    return f"$argon2id$v=19$m={memory},t={passes},p={lanes}${'$'.join(coded)}"


def _derive(password: str, parameters: Argon2id, salt: bytes, length: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id as Kdf

    text = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    memory, passes, lanes = parameters
    return Kdf(salt=salt, length=length, iterations=passes, lanes=lanes, memory_cost=memory).derive(
        text
    )
