"""Texts without secrets: the one place that knows what a secret looks like.

Invariants: a text that was redacted stays as it is when it is redacted again; redacting never raises and takes time in
proportion to the text.
"""

import math
import re
from collections.abc import Mapping

__all__ = ["redact", "redact_value", "shortened"]

_LONG_NAMES = (
    r"access_token|refresh_token|id_token|client_secret|app_secret|api_?key|password|passphrase|shared_secret"
    r"|code_verifier|bearer_token|storage_key"
)
_NAMES = rf"(?:{_LONG_NAMES}|token|secret|code)"
_PRIVATE_NAME = re.compile(rf"(?i)^(?:{_LONG_NAMES}|token|secret)$")
_REDACTIONS = (
    (
        re.compile(r"(?i)\b(bearer|basic)(\s+)(?!error|token\b|realm)[A-Za-z0-9._~+/=-]{6,}"),
        r"\1\2[redacted]",
    ),
    (re.compile(rf"(?i)([?&]{_NAMES}=)[^&\s'\"\\]+"), r"\1[redacted]"),
    (  # JSON and reprs, also JSON inside a JSON text, whose quotation marks carry a backslash
        re.compile(rf"(?i)(\\?[\"']{_NAMES}\\?[\"']\s*:\s*)(\\?[\"'])(?:(?!\2)(?:\\.|.))*(\2|$)"),
        r"\1\2[redacted]\2",
    ),
    (
        re.compile(rf"(?i)\b((?!code=){_NAMES}=)(?!\[redacted)[^&\s,;'\")\]}}\\]{{6,}}"),
        r"\1[redacted]",
    ),
    (  # YAML and header lines
        re.compile(rf"(?i)\b((?:{_LONG_NAMES}):[ \t]+)(?![\[\"'{{])[^\s,;'\"\\]{{6,}}"),
        r"\1[redacted]",
    ),
    (re.compile(r"(://[^/\s:@\"']*:)[^/\s@\"']+(@)"), r"\1[redacted]\2"),
    (
        re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"),
        "[redacted jwt]",
    ),
    (
        re.compile(
            r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|$)"
        ),
        r"\1[redacted]\2",
    ),
)


_SHORTEST_SECRET = 4
"""Characters; a shorter "secret" would be found in the middle of words, and nothing of it is worth hiding."""


def redact(text: str, *known: str) -> str:
    """The text without what looks like a secret.

    Recognised are bearer and basic values, token and secret fields in URLs, JSON, forms, YAML and reprs, passwords in a
    URL's authority, JWTs and PEM private keys.

    Args:
        text: what is to be shown.
        known: secrets that may stand in it, whatever they look like.
    """
    secrets = sorted({s for s in known if len(s) >= _SHORTEST_SECRET}, key=len, reverse=True)
    if secrets:
        text = re.sub("|".join(map(re.escape, secrets)), "[redacted]", text)
    for pattern, replacement in _REDACTIONS:
        text = pattern.sub(replacement, text)
    return text


def shortened(account: str) -> str:
    """An account's id as logs and errors show it: its last three characters tell it from a person's others.

    Args:
        account: the whole id.
    """
    return f"…{account[-3:]}" if account else ""


def redact_value(value: object, name: str = "") -> object:
    """A log field's value in plain words: numbers as they are, all else as redacted text.

    Args:
        value: what was logged.
        name: the field's name; one that names a secret hides its value whatever it looks like.
    """
    if name and _PRIVATE_NAME.match(name):
        return "[redacted]" if value else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {redact(str(key)): redact_value(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact_value(item) for item in value]
    return redact(str(value))
