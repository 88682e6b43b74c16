"""The codes by which Schwab's streamer answers, and what each means for a request and for the connection.

Invariants: pure data and functions; a code that is not in the table fails the request and may work later; what the
streamer says is shown without control characters and secrets.

Source: Schwab's Streamer API guide, "Response codes".
"""

from collections.abc import Mapping

from keepline.brokers.messages import OpenIntEnum
from keepline.errors import APIError, PermanentError, TransientError
from keepline.stream.port import Lost
from keepline.telemetry.redaction import redact

__all__ = ["SUCCEEDED", "Code", "ending_of", "failure_of", "plain"]

_WORDS_LIMIT = 200


class Code(OpenIntEnum):
    """What the streamer answers."""

    SUCCESS = 0
    LOGIN_DENIED = 3
    UNKNOWN_FAILURE = 9
    SERVICE_NOT_AVAILABLE = 11
    CLOSE_CONNECTION = 12
    REACHED_SYMBOL_LIMIT = 19
    STREAM_CONN_NOT_FOUND = 20
    BAD_COMMAND_FORMAT = 21
    FAILED_COMMAND_SUBS = 22
    FAILED_COMMAND_UNSUBS = 23
    FAILED_COMMAND_ADD = 24
    FAILED_COMMAND_VIEW = 25
    SUCCEEDED_COMMAND_SUBS = 26
    SUCCEEDED_COMMAND_UNSUBS = 27
    SUCCEEDED_COMMAND_ADD = 28
    SUCCEEDED_COMMAND_VIEW = 29
    STOP_STREAMING = 30


SUCCEEDED = frozenset(
    {
        Code.SUCCESS,
        Code.SUCCEEDED_COMMAND_SUBS,
        Code.SUCCEEDED_COMMAND_UNSUBS,
        Code.SUCCEEDED_COMMAND_ADD,
        Code.SUCCEEDED_COMMAND_VIEW,
    }
)
"""Those that say yes."""

_ENDINGS: Mapping[Code, tuple[str, str]] = {
    Code.LOGIN_DENIED: ("login", "Schwab's streamer denied the login: a newer token is needed"),
    Code.CLOSE_CONNECTION: (
        "kicked",
        "another session of this user took over (Schwab allows one streamer connection per user): stop that program",
    ),
    Code.STREAM_CONN_NOT_FOUND: ("session", "the streamer does not know this session"),
    Code.STOP_STREAMING: ("stopped", "the streamer stopped streaming"),
}
_HINTS: Mapping[Code, str] = {
    Code.CLOSE_CONNECTION: (
        "the user has another streamer connection, and Schwab allows one: an old one of ours that is not over yet, or "
        "another program's"
    ),
    Code.SERVICE_NOT_AVAILABLE: "the service is not available",
    Code.REACHED_SYMBOL_LIMIT: "too many symbols are subscribed: end some first",
    Code.BAD_COMMAND_FORMAT: "the request is malformed",
}
_REFUSALS = (Code.REACHED_SYMBOL_LIMIT, Code.BAD_COMMAND_FORMAT)


def ending_of(code: Code, words: str) -> Lost | None:
    """How the connection ends with this code, None when it goes on."""
    found = _ENDINGS.get(code)
    if found is None:
        return None
    reason, hint = found
    return Lost(reason, _sentence(code, hint, words))


def failure_of(code: Code, words: str, endpoint: str) -> APIError:
    """The error of a request that got this code; a login's has the status by which connects are told apart.

    Args:
        code: none of `SUCCEEDED`.
        words: what the streamer said.
        endpoint: what was asked, for example `SUBS LEVELONE_EQUITIES`.
    """
    hint = _HINTS.get(code) or _ENDINGS.get(code, ("", "the command failed"))[1]
    kind: type[APIError] = TransientError
    category, status = "server", None
    if code is Code.LOGIN_DENIED:
        kind, category, status = PermanentError, "auth", 401
    elif code is Code.CLOSE_CONNECTION:
        category, status = "client", 409
    elif code in _REFUSALS:
        kind, category = PermanentError, "client"
    return kind(
        _sentence(code, hint, words),
        category=category,
        status=status,
        endpoint=endpoint,
        code=f"{int(code)} {code.name}",
    )


def plain(words: object, *secrets: str) -> str:
    """Foreign words fit for a message: one line, no control characters, no secret."""
    head = redact(str(words or "")[: 8 * _WORDS_LIMIT], *secrets)
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return line if len(line) <= _WORDS_LIMIT else f"{line[: _WORDS_LIMIT - 1]}…"


def _sentence(code: Code, hint: str, words: str) -> str:
    said = f": {words}" if words else ""
    return f"{hint} (code {int(code)}{said})"
