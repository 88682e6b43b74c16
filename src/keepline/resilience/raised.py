"""What went wrong, told by an exception: ours, the standard library's or an HTTP library's becomes one `Failure`.

Invariants: a decider over bare values; foreign libraries are known by name and never imported; a cancellation is
nobody's failure; a request counts as never sent only where the exception proves it.
"""

from dataclasses import replace

from keepline.errors import (
    APIError,
    CircuitOpen,
    CredentialError,
    PermanentError,
    ProtocolError,
    QueueFull,
    RateLimited,
    Refused,
    TokenUnavailable,
    TransientError,
)
from keepline.resilience.classify import CATEGORIES, Category, Failure, failure_of_status
from keepline.resilience.wording import clean

__all__ = ["failure_of_exception"]


def failure_of_exception(error: BaseException) -> Failure:
    """The failure that an exception tells of; ours, the standard library's and those of HTTP libraries.

    Raises:
        BaseException: a cancellation or an interrupt is nobody's failure and is raised again.
    """
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, APIError):
        return _failure_of_ours(error)
    if isinstance(error, (Refused, CredentialError)):
        return _failure_before_sending(error)
    if isinstance(error, ProtocolError):
        return Failure("server", True, clean(str(error)))
    if (status := _status_of(error)) is not None:
        return replace(failure_of_status(status, b""), status=status)
    return _failure_of_transport(error)


def _failure_of_ours(error: APIError) -> Failure:
    categories = [known for known in CATEGORIES if known == error.category]
    refused = isinstance(error, PermanentError) and (error.status or 0) < 500
    return Failure(
        categories[0] if categories else "client",
        isinstance(error, TransientError),
        str(error.args[0]) if error.args else "",
        no_effect=not error.sent or refused,
        sent=error.sent,
        token_refused=error.status == 401,
        status=error.status,
        code=error.code,
        retry_after=error.retry_after,
        request_id=error.request_id,
    )


_BEFORE_SENDING: tuple[tuple[type[Exception], Category, bool], ...] = (
    (RateLimited, "rate_limit", True),
    (CircuitOpen, "server", True),
    (QueueFull, "client", True),
    (Refused, "client", True),
    (TokenUnavailable, "auth", True),
    (CredentialError, "auth", False),
)


def _failure_before_sending(error: Exception) -> Failure:
    category, transient = _kind_before_sending(error)
    return Failure(
        category,
        transient,
        clean(str(error)),
        no_effect=True,
        sent=False,
        retry_after=getattr(error, "retry_after", None),
    )


def _kind_before_sending(error: Exception) -> tuple[Category, bool]:
    for kind, category, transient in _BEFORE_SENDING:
        if isinstance(error, kind):
            return category, transient
    raise AssertionError("asked for Refused and CredentialError alone")


_NEVER_SENT = frozenset(
    {"ConnectionRefusedError", "gaierror", "ClientConnectorError", "ConnectError", "ConnectTimeout"}
    | {"ConnectionTimeoutError", "SSLCertVerificationError", "NewConnectionError", "PoolTimeout"}
)
_TRANSPORT = frozenset(
    {"OSError", "EOFError", "ClientError", "TransportError", "RequestException", "HTTPException"}
)


def _failure_of_transport(error: Exception) -> Failure:
    # by name, so that neither aiohttp nor httpx nor requests is imported to recognise what they raise
    names = {kind.__name__ for kind in type(error).__mro__}
    never_sent = not names.isdisjoint(_NEVER_SENT)
    words = clean(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    if any("Timeout" in name for name in names):
        return Failure("timeout", True, words, no_effect=never_sent, sent=not never_sent)
    if not names.isdisjoint(_TRANSPORT) and getattr(error, "filename", None) is None:
        trusted = not any("Certificate" in name or "CertVerification" in name for name in names)
        return Failure("network", trusted, words, no_effect=never_sent, sent=not never_sent)
    return Failure("client", False, words)


def _status_of(error: Exception) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 300 <= value <= 999:
                return value
    return None
