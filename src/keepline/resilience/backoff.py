"""How long to wait before the next attempt: a decider over bare numbers.

Invariants: a delay is never negative and never above the longest one times (1 + jitter); the number of an attempt alone
decides, so a caller resets by counting from zero again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from keepline.errors import ConfigError

__all__ = ["Backoff", "exponential"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """A schedule of delays, then a steady one for ever.

    Attributes:
        delays: seconds before the first, second, … repeat.
        steady: seconds between all later ones; None repeats the last of `delays`.
        jitter: share of a delay by which it is spread both ways, so that a fleet does not come back together.
    """

    delays: Sequence[float] = (30.0, 60.0, 120.0, 300.0)
    steady: float | None = None
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if not self.delays:
            raise ConfigError("at least one delay is needed", key="delays")
        for delay in (*self.delays, *(() if self.steady is None else (self.steady,))):
            if not 0 <= delay < float("inf"):
                raise ConfigError(
                    f"a delay is a number of seconds from 0 up, not {delay!r}", key="delays"
                )
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"jitter is a share from 0 to 1, not {self.jitter!r}", key="jitter")

    def delay(self, failures: int, chance: float = 0.5) -> float:
        """Seconds to wait after `failures` failures in a row (1 or more).

        Args:
            failures: how often it failed; 1 gives the first delay.
            chance: a number in [0, 1); 0.5 gives the delay unspread.
        """
        if failures <= len(self.delays):
            base = self.delays[max(failures, 1) - 1]
        else:
            base = self.delays[-1] if self.steady is None else self.steady
        return base * (1 + self.jitter * (2 * chance - 1))


def exponential(
    first: float, longest: float, *, factor: float = 2.0, jitter: float = 0.1
) -> Backoff:
    """A schedule that grows by `factor` from `first` seconds and stays at `longest`."""
    if not (0 < first <= longest and factor > 1):
        raise ConfigError(
            f"needs 0 < first <= longest and factor > 1, not first={first!r}, longest={longest!r}, factor={factor!r}",
            key="backoff",
        )
    delays = []
    delay = first
    while delay < longest:
        delays.append(delay)
        delay *= factor
    return Backoff((*delays, longest), jitter=jitter)
