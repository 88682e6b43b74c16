"""What went wrong: an answer becomes one `Failure`, a failure becomes one of our errors.

Invariants: a decider over bare values, the wall clock is handed in; every status has exactly one category; a mutation
counts as without effect only on proof (never sent, or refused before it was applied); no secret and no control
character of an answer reaches a message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Literal, NamedTuple, Protocol

from keepline.errors import (
    APIError,
    ConfigError,
    OutcomeUnknown,
    PermanentError,
    TransientError,
)
from keepline.resilience.wording import (
    clean,
    failure_words,
    speaks_of_timeout,
    what_it_is,
    words_of,
)

__all__ = [
    "CATEGORIES",
    "LONGEST_RETRY_AFTER",
    "BodyReader",
    "Category",
    "Failure",
    "Wait",
    "category_of",
    "checked_status",
    "error_of",
    "failure_of_answer",
    "failure_of_status",
    "is_transient",
    "parse_retry_after",
    "proves_no_effect",
    "unreadable",
]

Category = Literal["auth", "client", "server", "network", "timeout", "rate_limit"]

CATEGORIES: tuple[Category, ...] = ("auth", "client", "server", "network", "timeout", "rate_limit")

LONGEST_RETRY_AFTER = 300.0
"""Seconds: a server that asks for more is obeyed so far; a typing error of a year must not stop a bot for a year."""

_SPECIAL: dict[int, Category] = {
    401: "auth",
    403: "auth",
    408: "timeout",
    429: "rate_limit",
    504: "timeout",
}
_FOR_GOOD = frozenset({501, 505})
# 408 and 499 speak of a request that may have been at work already; a limiter may stand behind the handler
_PROVE_NOTHING = frozenset({408, 429, 499})
_REPEAT_ELSEWHERE = frozenset({307, 308})
_ADVICE = "; it may have taken effect: look it up before you send it again"
_REQUEST_ID_HEADERS = (
    "x-request-id",
    "schwab-client-correlid",
    "x-correlation-id",
    "request-id",
    "cf-ray",
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt, whoever noticed it.

    Attributes:
        category: one of `CATEGORIES`.
        transient: the same call may work in a moment.
        message: words for a person, without secrets.
        no_effect: it is proven that the request changed nothing: it never left, or was refused before it was applied.
        sent: False only when the request provably never left.
        token_refused: a newer token may help.
        status: the HTTP status, None when no answer came.
        code: the broker's own code and its name, "" when it gave none.
        retry_after: seconds that the server asked us to wait, None when it did not say.
        request_id: by what name the broker's support finds the call.
    """

    category: Category
    transient: bool
    message: str
    no_effect: bool = False
    sent: bool = True
    token_refused: bool = False
    status: int | None = None
    code: str = ""
    retry_after: float | None = None
    request_id: str = ""


class BodyReader(Protocol):
    """How a broker's own bodies are read: ProjectX says no inside a 200, Schwab in three shapes."""

    def __call__(self, endpoint: str, status: int, body: bytes) -> Failure | None:
        """The failure that the body tells of, None when it tells of none.

        Called with every answer, good ones included, so it decodes no more than it needs.

        Args:
            endpoint: method and path, for example `POST /api/Order/place`.
            status: the HTTP status.
            body: the bytes as they came.
        """
        ...


class Wait(NamedTuple):
    """What a Retry-After field asks for: seconds (None when it says nothing usable), and words when it was odd."""

    seconds: float | None
    note: str = ""


def category_of(status: int) -> Category:
    """The category of a status that is an error (or a redirect that was not followed).

    A number of no known class counts as a server's fault (RFC 9110 §15).
    """
    if (special := _SPECIAL.get(status)) is not None:
        return special
    return "client" if 300 <= status < 500 else "server"


def is_transient(status: int) -> bool:
    """Whether the same call may work in a moment: 408, 429, and 5xx except 501 and 505."""
    if status in (408, 429):
        return True
    return category_of(status) in ("server", "timeout") and status not in _FOR_GOOD


def proves_no_effect(status: int, words: str = "") -> bool:
    """Whether an error answer proves that a mutation changed nothing.

    401 does: the request "has not been applied" (RFC 9110 §15.5.2). So do the other refusals of 4xx, unless their words
    speak of a timeout, and 307 and 308, which ask for the same request elsewhere. 408, 429, 499 and every 5xx prove
    nothing.
    """
    if status in _REPEAT_ELSEWHERE:
        return True
    return 400 <= status < 500 and status not in _PROVE_NOTHING and not speaks_of_timeout(words)


def parse_retry_after(
    value: str | None, *, wall: datetime, longest: float = LONGEST_RETRY_AFTER
) -> Wait:
    """Read a Retry-After field: seconds or an HTTP date (RFC 9110 §10.2.3).

    Args:
        value: the field, None when there is none.
        wall: the server's time when it answered (its Date field), else ours.
        longest: seconds beyond which it is clamped.

    Returns:
        A moment in the past is 0 s; what is neither (negative, NaN, prose) says nothing and is named in the note.
    """
    if value is None or not (text := value.strip()):
        return Wait(None)
    seconds = _seconds(text)
    if seconds is None and (moment := _moment(text)) is not None:
        seconds = max((moment - wall).total_seconds(), 0.0)
    if seconds is None or not seconds >= 0:
        return Wait(None, f"its Retry-After {clean(text, 40)!r} is neither seconds nor a date")
    if seconds > longest:
        return Wait(longest, f"it asks for a wait of {seconds:g} s, clamped to {longest:g} s")
    return Wait(seconds)


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# ---------------------------------------------------------------------------------------------------- answers


def failure_of_answer(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    endpoint: str = "",
    reader: BodyReader | None = None,
    said: Failure | None = None,
    wall: datetime,
) -> Failure:
    """The failure that an answer tells of.

    Args:
        status: not a 2xx, unless `said` is given.
        headers: found in any spelling, or in lower case.
        body: the bytes as they came, JSON or not.
        endpoint: method and path, for the broker's table.
        reader: knows the broker's own bodies.
        said: what the body was found to say before; the reader is not asked again.
        wall: our wall clock, for a Retry-After that is a date and comes without a Date field.
    """
    if said is None and reader is not None:
        said = reader(endpoint, status, body)
    failure = said or failure_of_status(status, body)
    answered_at = _moment(headers.get("date", "")) or wall
    asked = parse_retry_after(headers.get("retry-after"), wall=answered_at)
    return replace(
        failure,
        message=f"{failure.message} ({asked.note})" if asked.note else failure.message,
        status=status,
        retry_after=failure.retry_after if asked.seconds is None else asked.seconds,
        request_id=failure.request_id or _request_id(headers),
    )


def unreadable(status: int, body: bytes, why: str) -> Failure:
    """A good status with a body that cannot be what was asked for: a maintenance page, half a JSON text, no text.

    It may work in a moment; whether a mutation had effect is not known.
    """
    return Failure("server", True, f"{status} with {what_it_is(body)} where {why}", status=status)


def failure_of_status(status: int, body: bytes) -> Failure:
    """The failure that a status tells of by itself, with the words of a body in one of the common shapes."""
    words, code = words_of(body)
    if 300 <= status < 400:
        words = "a redirect, which a mutation does not follow: check the broker's address"
    return Failure(
        category_of(status),
        is_transient(status),
        failure_words(_named(status), words),
        no_effect=proves_no_effect(status, words),
        token_refused=status == 401,
        code=code,
    )


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def _request_id(headers: Mapping[str, str]) -> str:
    return next((clean(headers[name], 80) for name in _REQUEST_ID_HEADERS if name in headers), "")


# ----------------------------------------------------------------------------------------------------- errors


def error_of(
    failure: Failure,
    *,
    mutation: bool,
    endpoint: str = "",
    attempt: int = 1,
    elapsed_seconds: float | None = None,
) -> APIError:
    """The error to raise for a failure: transient, permanent, or - a mutation without proof - outcome unknown."""
    kind: type[APIError] = TransientError if failure.transient else PermanentError
    message = failure.message
    if mutation and not failure.no_effect:
        kind = OutcomeUnknown
        message = message.removesuffix(_ADVICE) + _ADVICE
    return kind(
        message,
        category=failure.category,
        status=failure.status,
        endpoint=endpoint,
        attempt=attempt,
        retry_after=failure.retry_after,
        sent=failure.sent,
        code=failure.code,
        request_id=failure.request_id,
        elapsed_seconds=elapsed_seconds,
    )


def checked_status(status: object, key: str = "status_code") -> int:
    """The status as the number that it must be.

    Raises:
        ConfigError: it is a text, a bool, or no status that means an error.
    """
    if isinstance(status, bool) or not isinstance(status, int):
        raise ConfigError(f"a whole number such as 429 is needed, not {status!r}", key=key)
    if not 100 <= status <= 999:
        raise ConfigError(f"{status} is no HTTP status (100 to 999)", key=key)
    return status
