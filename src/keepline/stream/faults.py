"""Why there is no connection, and what each reason deserves: a table.

Invariants: each fault has one rule; an error or the end of a connection is exactly one fault.
"""

from dataclasses import dataclass
from enum import StrEnum

from keepline.errors import (
    APIError,
    CredentialError,
    PermanentError,
    ProtocolError,
    TokenUnavailable,
)

__all__ = ["LONGEST_RETRY_AFTER", "RULES", "Fault", "Rule", "fault_of_error", "fault_of_lost"]


class Fault(StrEnum):
    """Why there is no connection (any more); also the `reason` of the reconnect counter."""

    NETWORK = "network"
    TIMEOUT = "timeout"
    SERVER = "server"
    CLOSED = "closed"
    THROTTLED = "throttled"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    OCCUPIED = "occupied"
    PROTOCOL = "protocol"
    GARBLED = "garbled"
    CERTIFICATE = "certificate"
    REFUSED = "refused"
    DISMISSED = "dismissed"
    STALE = "stale"
    RENEWAL = "renewal"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a fault is met.

    Attributes:
        least: seconds to wait at least, whatever the schedule says.
        newer_token: whether the same token is useless, so that a newer one is asked for.
        first_at_once: whether the first of its kind is met by the schedule alone (a newer token may be all it takes).
        final: whether dialing ends here.
        alarm: whether a person should look already at the first one.
        planned: whether we wanted it so: after a life of some length it is no failure.
        words: what it means, for people.
    """

    words: str
    least: float = 0.0
    newer_token: bool = False
    first_at_once: bool = False
    final: bool = False
    alarm: bool = False
    planned: bool = False


LONGEST_RETRY_AFTER = 3600.0
"""Seconds: a server that asks for more is asked again after that, in case it was a slip."""

RULES: dict[Fault, Rule] = {
    Fault.NETWORK: Rule("the network or the far end failed"),
    Fault.TIMEOUT: Rule("no answer in time"),
    Fault.SERVER: Rule("the server is in trouble"),
    Fault.CLOSED: Rule("the server closed the connection and lets us come back"),
    Fault.THROTTLED: Rule("the server asked for fewer connects", least=30.0),
    Fault.UNAUTHORIZED: Rule(
        "the token was refused", least=300.0, newer_token=True, first_at_once=True
    ),
    Fault.NOT_FOUND: Rule("there is nothing at this address", least=60.0, alarm=True),
    Fault.CONFLICT: Rule("the server still holds an earlier connection of ours", least=15.0),
    Fault.OCCUPIED: Rule(
        "another connection of the same user took our place", least=300.0, alarm=True
    ),
    Fault.PROTOCOL: Rule("the far end does not speak this protocol", least=60.0, alarm=True),
    Fault.GARBLED: Rule("what came could not be read"),
    Fault.CERTIFICATE: Rule("the certificate is not trusted", least=300.0, alarm=True),
    Fault.REFUSED: Rule("the server refused the connect", least=60.0, alarm=True),
    Fault.DISMISSED: Rule("the server closed and asked us not to come back", final=True, alarm=True),
    Fault.STALE: Rule("the connection was open and blind"),
    Fault.RENEWAL: Rule("a newer token needs a new connection", planned=True),
}  # fmt: skip


_BY_STATUS = {
    401: Fault.UNAUTHORIZED,
    403: Fault.UNAUTHORIZED,
    404: Fault.NOT_FOUND,
    408: Fault.TIMEOUT,
    409: Fault.CONFLICT,
    429: Fault.THROTTLED,
}
_BY_CATEGORY = {
    "auth": Fault.UNAUTHORIZED,
    "rate_limit": Fault.THROTTLED,
    "server": Fault.SERVER,
    "timeout": Fault.TIMEOUT,
    "network": Fault.NETWORK,
}
_BY_WORD = {
    "timeout": Fault.TIMEOUT,
    "protocol": Fault.GARBLED,
    "kicked": Fault.OCCUPIED,
    "occupied": Fault.OCCUPIED,
    "close": Fault.CLOSED,
    "closed": Fault.CLOSED,
    "stale": Fault.STALE,
    "renewal": Fault.RENEWAL,
}


def fault_of_error(error: BaseException) -> Fault:
    """Which fault an error of a dial is.

    `PermanentError` of the network is a refused certificate: everything else about a network may pass.
    """
    if isinstance(error, TimeoutError):
        return Fault.TIMEOUT
    if isinstance(error, ProtocolError):
        return Fault.PROTOCOL
    if not isinstance(error, APIError):
        return Fault.UNAUTHORIZED if _is_credential(error) else Fault.NETWORK
    if error.status in _BY_STATUS:
        return _BY_STATUS[error.status]
    if error.status is not None and error.status >= 500:
        return Fault.SERVER
    if isinstance(error, PermanentError):
        if error.category == "network":
            return Fault.CERTIFICATE
        return Fault.UNAUTHORIZED if error.category == "auth" else Fault.REFUSED
    return _BY_CATEGORY.get(error.category, Fault.NETWORK)


def _is_credential(error: BaseException) -> bool:
    return isinstance(error, CredentialError) and not isinstance(error, TokenUnavailable)


def fault_of_lost(reason: str, *, allow_reconnect: bool = True) -> Fault:
    """Which fault the end of an open connection is: the one-word reason of `Lost`."""
    if not allow_reconnect:
        return Fault.DISMISSED
    return _BY_WORD.get(reason, Fault.NETWORK)
