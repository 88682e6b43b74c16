"""What the error of a call says about the other side: a circuit breaker's default judgement.

Invariant: only what speaks against the other side is FAILED; what we did ourselves, or stopped, says nothing.
"""

from enum import Enum

from keepline.errors import APIError, Closed, ConfigError, CredentialError, PermanentError, Refused

__all__ = ["Verdict", "judge"]


class Verdict(Enum):
    """What the error of a call says about the other side."""

    FAILED = "failed"
    """It does not work as it should: counts towards opening."""
    ANSWERED = "answered"
    """It works and said no: counts as a call that went well."""
    SILENT = "silent"
    """Nothing: is not counted at all."""


def judge(error: BaseException) -> Verdict:
    """The default judgement.

    FAILED: broker errors of the categories server, network and timeout, and every exception that is not ours.
    ANSWERED: a refusal with a status, 4xx above all: 401 and 403 too, since who answers is alive.
    SILENT: 429 (it goes to the rate limiter), our own refusals (`Refused`, `Closed`), errors of credentials and
    configuration, permanent errors without an answer, cancellation.
    """
    if not isinstance(error, Exception):
        return Verdict.SILENT
    if isinstance(error, APIError):
        return _judge_api_error(error)
    if isinstance(error, Refused | Closed | CredentialError | ConfigError):
        return Verdict.SILENT
    return Verdict.FAILED


def _judge_api_error(error: APIError) -> Verdict:
    if error.category == "rate_limit":
        return Verdict.SILENT
    if isinstance(error, PermanentError) or error.category in ("auth", "client"):
        return Verdict.SILENT if error.status is None else Verdict.ANSWERED
    return Verdict.FAILED
