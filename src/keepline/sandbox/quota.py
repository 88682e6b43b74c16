"""How often a venue lets a client ask: so many requests in any window of so many seconds.

Invariants: a request that is refused does not count; `now` is a number of seconds that only moves forward.
"""

from collections import deque
from dataclasses import dataclass

from keepline.errors import ConfigError

__all__ = ["Quota", "Rate"]


@dataclass(frozen=True, slots=True)
class Rate:
    """`limit` requests in any `seconds`.

    Raises:
        ConfigError: they are not positive.
    """

    limit: int
    seconds: float

    def __post_init__(self) -> None:
        if self.limit < 1 or not 0 < self.seconds < float("inf"):
            raise ConfigError(
                f"at least 1 request in a positive number of seconds is needed, not {self.limit} in {self.seconds!r}",
                key="rate",
            )


class Quota:
    """The requests of the last window."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._taken: deque[float] = deque(maxlen=rate.limit)

    def take(self, now: float) -> bool:
        """Whether one more request is let in."""
        full = len(self._taken) == self._rate.limit
        if full and now - self._taken[0] < self._rate.seconds:
            return False
        self._taken.append(now)
        return True
