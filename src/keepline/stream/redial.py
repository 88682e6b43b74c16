"""When to dial again after a lost or refused connection, and when not to: deciders over bare numbers.

Invariants: an open connection earns nothing by being open, the backoff starts anew only after `min_life` seconds and
data; two dials are never closer than `floor` seconds; what the server asked for (Retry-After, no return) is obeyed.
"""

from dataclasses import dataclass
from enum import StrEnum

from keepline.errors import APIError, ConfigError, KeeplineError
from keepline.resilience.backoff import Backoff

__all__ = ["DialLimiter", "Fault", "Plan", "Redial", "Rule", "fault_of_error", "fault_of_lost"]


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
        first_at_once: whether the first of its kind in a row is met at once (a newer token may be all it takes).
        final: whether dialing ends here.
        alarm: whether a person should look already at the first one.
        words: what it means, for people.
    """

    words: str
    least: float = 0.0
    newer_token: bool = False
    first_at_once: bool = False
    final: bool = False
    alarm: bool = False


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
    Fault.CERTIFICATE: Rule("the certificate is not trusted", least=300.0, alarm=True),
    Fault.REFUSED: Rule("the server refused the connect", least=60.0, alarm=True),
    Fault.DISMISSED: Rule("the server closed and asked us not to come back", final=True, alarm=True),
    Fault.STALE: Rule("the connection was open and blind"),
    Fault.RENEWAL: Rule("a newer token needs a new connection"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do after a lost or refused connection.

    Attributes:
        fault: why.
        dial: False when it ends here: the connection has FAILED until somebody connects again.
        at: when to dial (boottime seconds).
        delay: seconds from now to then.
        attempt: which dial in a row without success that will be, 1 for the first.
        newer_token: ask for a token newer than the one that was refused.
        alarm: whether a person should look.
        reason: in words, without secrets.
    """

    fault: Fault
    dial: bool
    at: float
    delay: float
    attempt: int
    newer_token: bool
    alarm: bool
    reason: str


class Redial:
    """One connection's memory of its failures.

    Example:
        >>> redial = Redial()
        >>> redial.dialing(now=0.0)
        >>> redial.lost(0.5, Fault.NETWORK).delay
        0.5
        >>> redial.dialing(now=1.0)
        >>> redial.lost(1.5, Fault.NETWORK).delay
        2.0
    """

    def __init__(
        self,
        backoff: Backoff | tuple[float, ...] = (0.0, 2.0, 10.0, 30.0, 60.0),
        *,
        jitter: float = 0.2,
        min_life: float = 30.0,
        floor: float = 1.0,
        attempts: int | None = None,
        alarm_after: int = 5,
    ) -> None:
        """
        Args:
            backoff: seconds before the first, second, … dial; the last repeats.
            jitter: share by which delays are spread both ways (when `backoff` is a plain tuple).
            min_life: seconds that a connection must live, with data, before its failures are forgotten.
            floor: seconds between two dials at least, whatever the schedule says.
            attempts: how many dials in a row may fail before it ends; None goes on for ever.
            alarm_after: how many failures in a row are a person's business.

        Raises:
            ConfigError: a number makes no sense.
        """
        for key, value in (("min_life", min_life), ("floor", floor)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"a number of seconds from 0 up, not {value!r}", key=key)
        if attempts is not None and attempts < 1:
            raise ConfigError(f"a number from 1 up or None, not {attempts!r}", key="attempts")
        if alarm_after < 1:
            raise ConfigError(f"a number from 1 up, not {alarm_after!r}", key="alarm_after")
        self._backoff = (
            backoff if isinstance(backoff, Backoff) else Backoff(tuple(backoff), jitter=jitter)
        )
        self._min_life = min_life
        self._floor = floor
        self._attempts = attempts
        self._alarm_after = alarm_after
        self._failures = 0
        self._refusals = 0
        self._dialed_at: float | None = None
        self._opened_at: float | None = None
        self._data = False

    @property
    def failures(self) -> int:
        """Failures in a row that are not forgotten yet."""
        return self._failures

    def reset(self) -> None:
        """Somebody asked for a connect by hand: the past is forgotten, the floor between dials is not."""
        self._failures = self._refusals = 0
        self._opened_at, self._data = None, False

    def dialing(self, now: float) -> None:
        """A dial starts."""
        self._dialed_at = now
        self._opened_at, self._data = None, False

    def opened(self, now: float) -> None:
        """The connection is open and logged in; that alone earns nothing."""
        self._opened_at = now

    def data(self) -> None:
        """Something useful came: data, or the venue's answer to a probe where silence is normal."""
        self._data = True

    def lost(
        self,
        now: float,
        fault: Fault,
        *,
        retry_after: float | None = None,
        words: str = "",
        chance: float = 0.5,
    ) -> Plan:
        """The dial failed or the connection ended: what now.

        Args:
            now: boottime seconds.
            fault: why, see `fault_of_error` and `fault_of_lost`.
            retry_after: seconds that the server asked for.
            words: details for people, without secrets.
            chance: a number in [0, 1) that spreads the delay.
        """
        self._judge(now)
        rule = RULES[fault]
        self._failures += 1
        self._refusals = self._refusals + 1 if fault is Fault.UNAUTHORIZED else 0
        at = self._when(now, rule, retry_after, chance)
        spent = self._attempts is not None and self._failures >= self._attempts
        self._opened_at, self._data = None, False
        return Plan(
            fault,
            dial=not (rule.final or spent),
            at=at,
            delay=at - now,
            attempt=self._failures,
            newer_token=rule.newer_token,
            alarm=rule.alarm or spent or self._failures >= self._alarm_after or self._refusals > 1,
            reason=_reason(rule, words, self._failures if spent else None),
        )

    def _judge(self, now: float) -> None:
        """Forget the failures when the connection has earned it."""
        lived = now - self._opened_at if self._opened_at is not None else 0.0
        if self._data and lived >= self._min_life:
            self._failures = self._refusals = 0

    def _when(self, now: float, rule: Rule, retry_after: float | None, chance: float) -> float:
        delay = self._backoff.delay(self._failures, chance)
        if not (rule.first_at_once and self._refusals == 1):
            # only upwards: what the server asked for is a least
            delay = max(delay, rule.least * (1 + self._backoff.jitter * chance))
        if retry_after is not None and retry_after > 0:
            delay = max(delay, retry_after * (1 + self._backoff.jitter * chance))
        earliest = now if self._dialed_at is None else self._dialed_at + self._floor
        return max(now + delay, earliest)

    def __repr__(self) -> str:
        return f"<Redial after {self._failures} failures in a row>"


class DialLimiter:
    """How often a whole process may dial: a burst, then a steady rate.

    One object is shared by every connection of a process, so that fifty bots that lose the same server do not come back
    in the same instant.
    """

    def __init__(self, *, burst: int = 20, per_second: float = 2.0) -> None:
        """
        Args:
            burst: dials that may go at once after a quiet time.
            per_second: the steady rate after that.
        """
        if burst < 1 or not 0 < per_second < float("inf"):
            raise ConfigError(
                f"needs burst >= 1 and per_second > 0, not {burst!r} and {per_second!r}",
                key="burst" if burst < 1 else "per_second",
            )
        self._gap = 1.0 / per_second
        self._slack = (burst - 1) * self._gap
        self._next = float("-inf")

    def reserve(self, now: float) -> float:
        """Take a dial from the budget; returns the seconds to wait before it (0 or more)."""
        at = max(self._next, now)
        self._next = at + self._gap
        return max(0.0, at - self._slack - now)

    def __repr__(self) -> str:
        return f"<DialLimiter {1 / self._gap:g} per second>"


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
    "client": Fault.REFUSED,
}
_BY_WORD = {
    "timeout": Fault.TIMEOUT,
    "protocol": Fault.PROTOCOL,
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
    from keepline.errors import PermanentError, ProtocolError

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
    from keepline.errors import CredentialError, TokenUnavailable

    return isinstance(error, CredentialError) and not isinstance(error, TokenUnavailable)


def fault_of_lost(reason: str, *, allow_reconnect: bool = True) -> Fault:
    """Which fault the end of an open connection is: the one-word reason of `Lost`."""
    if not allow_reconnect:
        return Fault.DISMISSED
    return _BY_WORD.get(reason, Fault.NETWORK)


def _reason(rule: Rule, words: str, spent: int | None) -> str:
    text = f"{rule.words}: {words}" if words else rule.words
    return text if spent is None else f"{text}; {spent} attempts failed in a row, no more are made"


_ = KeeplineError
