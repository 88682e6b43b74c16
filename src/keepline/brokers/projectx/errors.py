"""What ProjectX means by `success: false`: one table per endpoint, because the same number has another name elsewhere.

Invariants: pure data and functions; a code that leaves the outcome open (`Pending`, `UnknownError`, a number that no
table has) is never read as a refusal.

Source: the enums of the Gateway API's OpenAPI document (`/swagger/v1/swagger.json`), read in 2025-09.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from keepline.resilience.classify import Category, Failure, unreadable
from keepline.resilience.wording import clean, failure_words, speaks_of_timeout

__all__ = ["TABLES", "Code", "read_body", "table_of"]


class Code(NamedTuple):
    """What a number means at one endpoint.

    Attributes:
        name: ProjectX's own name.
        category: ours.
        refused: it proves that nothing was changed.
        transient: the same call may work in a moment.
    """

    name: str
    category: Category = "client"
    refused: bool = True
    transient: bool = False


_PENDING = Code("OrderPending", "server", refused=False)
_UNKNOWN = Code("UnknownError", "server", refused=False)
_ACCOUNT = Code("AccountNotFound")
_REJECTED_ACCOUNT = Code("AccountRejected")
_CONTRACT = Code("ContractNotFound")
_INACTIVE = Code("ContractNotActive")

_CANCEL: Mapping[int, Code] = {
    1: _ACCOUNT,
    2: Code("OrderNotFound"),
    3: Code("Rejected"),
    4: Code("Pending", "server", refused=False),
    5: _UNKNOWN,
    6: _REJECTED_ACCOUNT,
}
_LOGIN: Mapping[int, Code] = {
    1: Code("UserNotFound", "auth"),
    2: Code("PasswordVerificationFailed", "auth"),
    3: Code("InvalidCredentials", "auth"),
    4: Code("AppNotFound", "auth"),
    5: Code("AppVerificationFailed", "auth"),
    6: Code("InvalidDevice", "auth"),
    7: Code("AgreementsNotSigned", "auth"),
    8: Code("UnknownError", "server", refused=False, transient=True),
    9: Code("ApiSubscriptionNotFound", "auth"),
    10: Code("ApiKeyAuthenticationDisabled", "auth"),
}
_SEARCH: Mapping[int, Code] = {1: _ACCOUNT}

TABLES: Mapping[str, Mapping[int, Code]] = {
    "order/place": {
        1: _ACCOUNT,
        2: Code("OrderRejected"),
        3: Code("InsufficientFunds"),
        4: Code("AccountViolation"),
        5: Code("OutsideTradingHours"),
        6: _PENDING,
        7: _UNKNOWN,
        8: _CONTRACT,
        9: _INACTIVE,
        10: _REJECTED_ACCOUNT,
    },
    "order/cancel": _CANCEL,
    "order/modify": {**_CANCEL, 7: _CONTRACT},
    "position/closecontract": {
        1: _ACCOUNT,
        2: Code("PositionNotFound"),
        3: _CONTRACT,
        4: _INACTIVE,
        5: Code("OrderRejected"),
        6: _PENDING,
        7: _UNKNOWN,
        8: _REJECTED_ACCOUNT,
    },
    "position/partialclosecontract": {
        1: _ACCOUNT,
        2: Code("PositionNotFound"),
        3: _CONTRACT,
        4: _INACTIVE,
        5: Code("InvalidCloseSize"),
        6: Code("OrderRejected"),
        7: _PENDING,
        8: _UNKNOWN,
        9: _REJECTED_ACCOUNT,
    },
    "history/retrievebars": {
        1: _CONTRACT,
        2: Code("UnitInvalid"),
        3: Code("UnitNumberInvalid"),
        4: Code("LimitInvalid"),
    },
    "order/search": _SEARCH,
    "order/searchopen": _SEARCH,
    "position/searchopen": _SEARCH,
    "trade/search": _SEARCH,
    "contract/searchbyid": {1: _CONTRACT},
    "contract/search": {},
    "contract/available": {},
    "account/search": {},
    "auth/loginkey": _LOGIN,
    "auth/loginapp": _LOGIN,
    "auth/validate": {
        1: Code("InvalidSession", "auth"),
        2: Code("SessionNotFound", "auth"),
        3: Code("ExpiredToken", "auth"),
        4: Code("UnknownError", "server", refused=False, transient=True),
    },
    "auth/logout": {1: Code("InvalidSession", "auth"), 2: _UNKNOWN},
}
"""Endpoint (the last two parts of its path, lower case) to number to meaning; 0 is Success everywhere."""

_OPEN = Code("a number that no table has", "server", refused=False)
_WITHOUT_ENVELOPE = frozenset({"status/ping"})


class _Envelope(msgspec.Struct):
    success: bool
    errorCode: int
    errorMessage: str | None = None


_decode = msgspec.json.Decoder(_Envelope).decode


def table_of(endpoint: str) -> str:
    """The key into `TABLES` of `POST /api/Order/place`, `/api/Order/place` or `Order/place`."""
    return "/".join(endpoint.rpartition(" ")[2].lower().rstrip("/").rsplit("/", 2)[-2:])


def read_body(endpoint: str, status: int, body: bytes) -> Failure | None:
    """The failure that a ProjectX answer tells of; a `keepline.resilience.BodyReader`.

    Args:
        endpoint: method and path.
        status: the HTTP status; only a 2xx carries the envelope, other statuses speak for themselves.
        body: the bytes as they came.

    Returns:
        None for a success, and for a status that is an error by itself.
    """
    if not 200 <= status < 300:
        return None
    try:
        envelope = _decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        key = table_of(endpoint)
        return None if key in _WITHOUT_ENVELOPE else unreadable(status, body, _missing(error))
    if envelope.success and envelope.errorCode == 0:
        return None
    return _said_no(table_of(endpoint), envelope, status)


def _said_no(key: str, envelope: _Envelope, status: int) -> Failure:
    number = envelope.errorCode
    # success with a code, or a failure without one: two statements that cannot both be true prove nothing
    known = not envelope.success and number != 0
    code = TABLES.get(key, {}).get(number, _OPEN) if known else _OPEN
    name = code.name if code is not _OPEN else ""
    words = clean(envelope.errorMessage or "")
    if not known:
        words = f"success is {str(envelope.success).lower()} but errorCode is {number}" + (
            words and f": {words}"
        )
    verb = key.rpartition("/")[2]
    return Failure(
        code.category,
        code.transient,
        failure_words(
            "refused" if code.refused else "no clear answer",
            f"{verb} {number} {name}".strip(),
            words,
        ),
        no_effect=code.refused and not speaks_of_timeout(words),
        token_refused=code.name in ("InvalidSession", "SessionNotFound", "ExpiredToken"),
        status=status,
        code=f"{verb} {number} {name}".strip(),
    )


def _missing(error: Exception) -> str:
    where = f" ({clean(str(error), 120)})" if isinstance(error, msgspec.ValidationError) else ""
    return f"{{success, errorCode, errorMessage}} is expected{where}"
