"""What Schwab's error bodies say: the Trader API, market data and the OAuth gateway each have a shape of their own.

Invariants: pure data and functions; the status decides the category and what is proven, the body adds words, the code,
and whether a newer token could help.

Sources: the Trader API's OpenAPI document for `{message, errors}`; market data answers `{errors: [{id, status, title,
detail}]}` and the gateway `{error, error_description}` as clients in the field have recorded them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from keepline.resilience.classify import Failure, category_of, is_transient, proves_no_effect
from keepline.resilience.wording import clean, failure_words

__all__ = ["SIGN_IN_AGAIN", "needs_sign_in", "read_body"]

SIGN_IN_AGAIN = (
    "refresh_token_authentication_error",
    "refresh token invalid",
    "unsupported_token_type",
    "invalid_grant",
)
"""Words (in lower case) by which the gateway says that the refresh token is dead: a person must sign in again."""

_WRONG_APP = (
    "client not authorized"  # the app lacks the product: a newer token of the same app is no better
)
_BODY_LIMIT = 64 << 10


def read_body(endpoint: str, status: int, body: bytes) -> Failure | None:
    """The failure that a Schwab answer tells of; a `keepline.resilience.BodyReader`.

    Args:
        endpoint: method and path, not needed here.
        status: the HTTP status.
        body: the bytes as they came.

    Returns:
        None for a good status (Schwab never says no inside one), and for a body in none of Schwab's shapes.
    """
    if status < 300 or (document := _document(body)) is None:
        return None
    sentences = [clean(sentence) for sentence in _sentences(document) if sentence]
    if not sentences:
        return None
    words = "; ".join(dict.fromkeys(sentences))
    wrong_app = _WRONG_APP in words.lower()
    hint = "add the product to the app at developer.schwab.com" if wrong_app else ""
    return Failure(
        category_of(status),
        is_transient(status),
        failure_words(str(status), words, hint),
        no_effect=proves_no_effect(status, words),
        token_refused=status == 401 and not wrong_app,
        status=status,
        code=clean(str(document.get("error") or _first_id(document)), 80),
    )


def needs_sign_in(body: bytes) -> bool:
    """Whether the OAuth gateway's refusal says that a person must sign in again."""
    document = _document(body) or {}
    words = " ".join(_sentences(document)).lower() + f" {document.get('error', '')}".lower()
    return any(sign in words for sign in SIGN_IN_AGAIN)


def _document(body: bytes) -> Mapping[str, Any] | None:
    if len(body) > _BODY_LIMIT:
        return None
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _sentences(document: Mapping[str, Any]) -> Iterator[str]:
    for name in ("message", "error_description"):
        if isinstance(document.get(name), str):
            yield document[name]
    errors = document.get("errors")
    for item in errors if isinstance(errors, list) else ():
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield ": ".join(
                str(item[name]) for name in ("title", "detail", "message") if item.get(name)
            )


def _first_id(document: Mapping[str, Any]) -> str:
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    return str(first.get("id") or "") if isinstance(first, dict) else ""
