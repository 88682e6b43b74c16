"""When to dial again after a lost or refused connection, and when not to: a decider over bare numbers.

Invariants: an open connection earns nothing by being open, the backoff starts anew only after `min_life` seconds and
data; two dials are never closer than `floor` seconds; what the server asked for (Retry-After, no return) is obeyed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from keepline.errors import ConfigError
from keepline.resilience.backoff import Backoff
from keepline.stream.dial_budget import DialLimiter
from keepline.stream.faults import (
    LONGEST_RETRY_AFTER,
    RULES,
    Fault,
    Rule,
    fault_of_error,
    fault_of_lost,
)

__all__ = ["DialLimiter", "Fault", "Plan", "Redial", "Rule", "fault_of_error", "fault_of_lost"]


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
        with_newer_at: when to dial (boottime seconds) if a newer token comes first: by the schedule alone.
        alarm: whether a person should look.
        reason: in words, without secrets.
    """

    fault: Fault
    dial: bool
    at: float
    delay: float
    attempt: int
    newer_token: bool
    with_newer_at: float
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
        backoff: Backoff | Sequence[float] = (0.0, 2.0, 10.0, 30.0, 60.0),
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
            jitter: share by which delays are spread both ways (when `backoff` is plain numbers).
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

    def allow(self, attempts: int | None) -> None:
        """From now on so many dials in a row may fail; None goes on for ever."""
        self._attempts = attempts

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
        self._refusals = 0

    def renewed(self, now: float) -> None:
        """A second connection took the place of the first without a gap: the life goes on, and what it earned stays."""
        self._dialed_at = now
        self._refusals = 0

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
        rule = RULES[fault]
        planned = self._judge(now) >= self._min_life and rule.planned
        self._failures += not planned
        self._refusals += fault is Fault.UNAUTHORIZED
        at = self._when(now, rule, retry_after, chance)
        out_of_attempts = self._attempts is not None and self._failures >= self._attempts
        spent = out_of_attempts and not planned
        self._opened_at, self._data = None, False
        return Plan(
            fault,
            dial=not (rule.final or spent),
            at=at,
            delay=at - now,
            attempt=max(self._failures, 1),
            newer_token=rule.newer_token,
            with_newer_at=self._when(now, _SCHEDULE_ALONE, retry_after, chance),
            alarm=rule.alarm or spent or self._failures >= self._alarm_after or self._refusals > 1,
            reason=_reason(rule, words, self._failures if spent else None),
        )

    def _judge(self, now: float) -> float:
        """Forget the failures when the connection has earned it; gives back how long it lived."""
        lived = now - self._opened_at if self._opened_at is not None else 0.0
        if self._data and lived >= self._min_life:
            self._failures = self._refusals = 0
        return lived

    def _when(self, now: float, rule: Rule, retry_after: float | None, chance: float) -> float:
        delay = self._backoff.delay(max(self._failures, 1), chance)
        least = 0.0 if rule.first_at_once and self._refusals == 1 else rule.least
        if retry_after is not None and retry_after > 0:
            least = max(least, min(retry_after, LONGEST_RETRY_AFTER))
        # spread upwards only: what the server asked for is a least
        delay = max(delay, least * (1 + self._backoff.jitter * chance))
        earliest = now if self._dialed_at is None else self._dialed_at + self._floor
        return max(now + delay, earliest)

    def __repr__(self) -> str:
        return f"<Redial after {self._failures} failures in a row>"


_SCHEDULE_ALONE = Rule("")


def _reason(rule: Rule, words: str, spent: int | None) -> str:
    text = f"{rule.words}: {words}" if words else rule.words
    if spent is None:
        return text
    failed = "1 attempt failed" if spent == 1 else f"{spent} attempts failed in a row"
    return f"{text}; {failed}, no more are made"
