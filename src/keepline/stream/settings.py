"""How a stream is kept: every number with its reason.

Invariant: settings are checked when they are made, before anything is started.
"""

from dataclasses import dataclass, field

from keepline.errors import ConfigError
from keepline.stream.health import Ladder

__all__ = ["StreamSettings"]


_SECONDS = (
    "attempt_timeout",
    "heartbeat",
    "reconcile_timeout",
    "request_timeout",
    "stale_after",
    "stop_timeout",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """What the manager of a stream does when.

    Attributes:
        backoff: seconds before the first, second, … dial; the last repeats.
        jitter: share by which these are spread both ways.
        attempts: dials in a row that may fail before the stream has FAILED; None goes on for ever.
        min_life: seconds that a connection must live, with data, before its failures are forgotten.
        attempt_timeout: seconds for one attempt, from asking for a token to the end of the login.
        request_timeout: seconds for the answer to a subscription or a probe.
        heartbeat: seconds between looks at the health at most.
        stale_after: seconds of silence after which a topic without a cadence is asked about.
        ladder: what is done about a stale topic, and when.
        reconcile_timeout: seconds for one try to make right what was missed.
        two_connections: whether the broker allows a second connection while a new token takes over.
        parallel: requests under way at once on a connection; 1 for brokers that mind.
        mailbox: messages that may wait for one callback, and for a reconciliation.
        stop_timeout: seconds for a goodbye and for callbacks that are still running.

    Raises:
        ConfigError: a number makes no sense.
    """

    backoff: tuple[float, ...] = (0.0, 2.0, 10.0, 30.0, 60.0)
    jitter: float = 0.2
    attempts: int | None = None
    min_life: float = 30.0
    attempt_timeout: float = 15.0
    request_timeout: float = 15.0
    heartbeat: float = 30.0
    stale_after: float = 120.0
    ladder: Ladder = field(default_factory=Ladder)
    reconcile_timeout: float = 60.0
    two_connections: bool = True
    parallel: int = 16
    mailbox: int = 10_000
    stop_timeout: float = 2.0

    def __post_init__(self) -> None:
        for name in _SECONDS:
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value < float("inf")):
                raise ConfigError(f"a number of seconds above 0, not {value!r}", key=name)
        for name in ("jitter", "min_life"):
            value = getattr(self, name)
            if not _is_number(value):
                raise ConfigError(f"a number, not {value!r}", key=name)
        whole = (
            ("mailbox", "parallel")
            if self.attempts is None
            else ("mailbox", "parallel", "attempts")
        )
        for name in whole:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"a number from 1 up, not {value!r}", key=name)
        delays: object = self.backoff
        if not (isinstance(delays, tuple | list) and delays and all(map(_is_number, delays))):
            raise ConfigError(
                f"seconds before each dial, (0, 2, 10), not {delays!r}", key="backoff"
            )
        if not isinstance(self.ladder, Ladder):
            raise ConfigError(f"a Ladder, not {self.ladder!r}", key="ladder")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
