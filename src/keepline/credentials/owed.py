"""A token that is in memory and not yet on the disk: its save is owed until it succeeds.

Invariant: while a save has failed, its generation is visible in the metrics; the alarm is loud at every failed try.
"""

import logging
import math

from keepline.credentials.reporting import Reporter, reason
from keepline.credentials.token import Token
from keepline.resilience.backoff import exponential

__all__ = ["OwedSave"]

_AGAIN = exponential(1.0, 60.0)


class OwedSave:
    """What must still be saved, and when to try again.

    Attributes:
        token: what is owed, None if nothing.
        due: boottime of the next try; inf if none is planned.
    """

    def __init__(self, report: Reporter) -> None:
        self.token: Token | None = None
        self.due = math.inf
        self._failures = 0
        self._report = report

    @property
    def failed_generation(self) -> int:
        """The generation whose save failed, 0 if none."""
        return self.token.generation if self.token and self._failures else 0

    def owe(self, token: Token, now: float) -> None:
        """Save this one as soon as may be; whatever was owed before is out of date."""
        self.token, self.due, self._failures = token, now, 0
        self._report.unsaved(0)

    def paid(self) -> None:
        """A newer token than the owed one is on the disk, or the owed one itself."""
        self.token, self.due, self._failures = None, math.inf, 0
        self._report.unsaved(0)

    def tried(self, token: Token, error: Exception | None, now: float, chance: float) -> None:
        """A try ended; None is success."""
        if error is None:
            self.paid()
            self._report.says(logging.INFO, "Token saved", generation=token.generation)
            return
        self._failures += 1
        delay = _AGAIN.delay(self._failures, chance)
        self.token, self.due = token, now + delay
        self._report.unsaved(token.generation)
        self._report.says(
            logging.CRITICAL,
            "Token not saved",
            generation=token.generation,
            reason=reason(error),
            next_in_seconds=round(delay, 1),
        )

    def tried_last(self, token: Token, error: Exception | None) -> None:
        """The try at the end; no other follows."""
        self.paid()
        if error is None:
            self._report.says(logging.INFO, "Token saved", generation=token.generation)
            return
        self._report.says(
            logging.CRITICAL,
            "Token lost: the last try to save it failed",
            generation=token.generation,
            reason=reason(error),
        )
