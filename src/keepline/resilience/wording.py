"""Foreign texts in a message: what an answer says, in one clean line.

Invariants: one line, no control characters, no secret, bounded length, whatever the bytes are; nothing here raises.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from keepline.telemetry import redact

__all__ = ["clean", "failure_words", "speaks_of_timeout", "what_it_is", "words_of"]

_WORDS_LIMIT = 240
_BODY_LIMIT = 64 << 10
_SPEAKS_OF_TIME = re.compile(r"(?i)time[ds]?[ _-]?out")
_TITLE = re.compile(rb"(?is)<title[^>]*>(.{0,400}?)</title")
_SENTENCES = ("error_description", "detail", "errorMessage", "error_message", "message", "title")


def clean(text: str, limit: int = _WORDS_LIMIT) -> str:
    """A foreign text fit for a message: one line, no control characters, no secret, not longer than `limit`."""
    head = text[: 8 * limit]
    line = " ".join("".join(c if c.isprintable() else " " for c in redact(head)).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def failure_words(*parts: str) -> str:
    """Parts of a message, the empty ones left out: `refused: place 3 InsufficientFunds: margin`."""
    return ": ".join(part for part in parts if part)


def speaks_of_timeout(words: str) -> bool:
    """Whether a refusal is none: a broker answered 400 "Order request timed out" to orders that it placed 8 s later."""
    return _SPEAKS_OF_TIME.search(words) is not None


def what_it_is(body: bytes) -> str:
    """A body in a few words: `a page titled “Maintenance”`, `an empty body`."""
    start = body[:512].lstrip().lower()
    if not start:
        return "an empty body"
    if start.startswith(b"<"):
        title = _TITLE.search(body[:_BODY_LIMIT])
        name = clean(title[1].decode("utf-8", "replace"), 80) if title else ""
        return f"a page titled “{name}”" if name else "a page"
    return f"a body of {len(body)} bytes"


def words_of(body: bytes) -> tuple[str, str]:
    """What the body says and by what code: problem+json (RFC 9457), OAuth, common shapes, a page, plain text."""
    if len(body) > _BODY_LIMIT or body[:512].lstrip()[:1] == b"<":
        return what_it_is(body), ""
    try:
        return _told_by(msgspec.json.decode(body))
    except (msgspec.DecodeError, RecursionError):
        return clean(body.decode("utf-8", "replace")), ""


def _told_by(document: object) -> tuple[str, str]:
    if not isinstance(document, dict):
        return clean(str(document)) if isinstance(document, str) else "", ""
    return clean("; ".join(dict.fromkeys(_sentences(document)))), _code(document)


def _sentences(document: Mapping[str, Any]) -> list[str]:
    said = [str(document[name]) for name in _SENTENCES if isinstance(document.get(name), str)]
    errors = document.get("errors")
    if isinstance(errors, dict):  # ASP.NET names the fields
        said += [f"{field}: {_first(what)}" for field, what in errors.items()]
    if isinstance(errors, list):
        said += [_first(item) for item in errors]
    if isinstance(error := document.get("error"), dict):
        said += _sentences(error)
    return [sentence for sentence in said if sentence]


def _first(what: object) -> str:
    if isinstance(what, list):
        return _first(what[0]) if what else ""
    if isinstance(what, dict):
        return ": ".join(
            str(what[name]) for name in ("title", "detail", "message") if what.get(name)
        )
    return str(what)


def _code(document: Mapping[str, Any]) -> str:
    for name in ("error", "code", "errorCode", "type"):
        value = document.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "about:blank":
            return clean(str(value), 80)
    return ""
