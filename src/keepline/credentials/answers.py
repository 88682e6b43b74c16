"""What the answers of every issuer have in common: JSON or not, try again or not, and words fit for a log.

Invariants: no clock and no socket; a text of the other side is quoted short, on one line and without our secrets.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from keepline.credentials.token import NEVER
from keepline.errors import TransientError
from keepline.telemetry.redaction import redact

__all__ = ["Answer", "after", "number", "quoted", "transient"]

LONGEST_WAIT = 86_400.0
"""Seconds: a server that asks us to stay away for longer is asked again after a day."""

_QUOTE = 200
_SHORTEST_SECRET = 4  # to blank out one letter would spell it out
_TRANSIENT_WORDS = {
    408: "the server gave up waiting",
    429: "too many requests",
    500: "the server failed",
    502: "a gateway before the server failed",
    503: "the server is not available",
    504: "a gateway before the server gave up waiting",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer as a decider sees it.

    Attributes:
        status: the HTTP status.
        headers: found in any spelling.
        body: as it came; not shown.
        sent_at: when its request was sent (aware datetime).
        endpoint: method and path, for messages.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    sent_at: datetime
    endpoint: str = ""

    def json_object(self) -> dict[str, Any] | None:
        """The body when it is a JSON object, None when it is anything else."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks us to wait (RFC 9110 §10.2.3), None when it does not say so clearly."""
        said = self.headers.get("Retry-After", "").strip()
        seconds = number(said)
        if seconds is None and (moment := _http_date(said)) is not None:
            seconds = (moment - (self.server_time or self.sent_at)).total_seconds()
        return None if seconds is None else min(max(seconds, 0.0), LONGEST_WAIT)

    @property
    def server_time(self) -> datetime | None:
        """The server's clock by its Date field."""
        return _http_date(self.headers.get("Date", ""))


def transient(answer: Answer, words: str = "") -> TransientError:
    """The error for an answer that settles nothing: the same request may work later."""
    status = answer.status
    if not words:
        words = _TRANSIENT_WORDS.get(status) or _unexpected(answer)
    return TransientError(
        f"HTTP {status}: {words}",
        category=_category(status),
        status=status,
        endpoint=answer.endpoint,
        retry_after=answer.retry_after,
    )


def quoted(text: object, secrets: Iterable[str] = ()) -> str:
    """Words of the other side, fit for a log: short, on one line, without what looks like a secret."""
    shown = str(text)[: 10 * _QUOTE]
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            shown = shown.replace(secret, "[redacted]")
    shown = " ".join(re.sub(r"[^\x20-\x7e\xa0-\uffff]", " ", redact(shown)).split())
    return shown if len(shown) <= _QUOTE else f"{shown[:_QUOTE]}…"


def number(value: object) -> float | None:
    """A finite number, also when it comes as plain decimal text; None for anything else."""
    if isinstance(value, str):
        value = float(value) if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def after(moment: datetime, seconds: float) -> datetime:
    """The moment plus seconds; what lies beyond the calendar is `NEVER`."""
    try:
        return min(moment + timedelta(seconds=seconds), NEVER)
    except OverflowError:
        return NEVER


def _category(status: int) -> str:
    special = {401: "auth", 403: "auth", 408: "timeout", 504: "timeout", 429: "rate_limit"}
    return special.get(status, "client" if 300 <= status < 500 else "server")


def _unexpected(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        return (
            "the address redirects instead of answering: the configured one is outdated, "
            "or this network wants a sign-in of its own"
        )
    if answer.json_object() is None:
        kind = answer.headers.get("Content-Type", "").partition(";")[0] or "no content type"
        return f"the answer is not a JSON object ({quoted(kind)})"
    return "the server failed" if answer.status >= 500 else "an answer that we do not know"


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
