"""How often a whole process may dial: a decider.

Invariant: in any stretch of time there are at most `burst` dials and `per_second` for each of its seconds.
"""

import weakref

from keepline.errors import ConfigError

__all__ = ["DialLimiter", "process_dials"]


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


_BY_CLOCK: "weakref.WeakKeyDictionary[object, DialLimiter]" = weakref.WeakKeyDictionary()


def process_dials(clock: object) -> DialLimiter:
    """How often this process dials, all its streams together; one budget for each clock, whose seconds it counts."""
    return _BY_CLOCK.setdefault(clock, DialLimiter())
