"""When an issuer's keys are fetched: at first use, now and then, and once for a key that nobody knows.

Invariants: strangers who invent key names cause at most one fetch per interval; a failed fetch is repeated with growing
pauses and never throws away what was good.
"""

__all__ = ["KeyFetch"]


class KeyFetch:
    """Decides; the face fetches. Times are seconds on a clock that only moves forward.

    Args:
        refresh_after: seconds after which good keys are fetched anew, to notice a key that was withdrawn.
        least_interval: seconds between two fetches because of unknown keys.
        first_retry: seconds of pause after a failure; doubles each time.
        longest_retry: the longest such pause.
    """

    def __init__(
        self,
        *,
        refresh_after: float = 600.0,
        least_interval: float = 30.0,
        first_retry: float = 1.0,
        longest_retry: float = 300.0,
    ) -> None:
        self._refresh_after = refresh_after
        self._least_interval = least_interval
        self._first_retry = first_retry
        self._longest_retry = longest_retry
        self._good_at: float | None = None
        self._not_before = float("-inf")
        self._asked_at = float("-inf")
        self._failures = 0

    def wanted(self, now: float, *, unknown: bool = False) -> bool:
        """Whether to fetch now.

        Args:
            now: seconds.
            unknown: a token names a key that we do not have.
        """
        if now < self._not_before:
            return False
        if self._good_at is None or now - self._good_at >= self._refresh_after:
            return True
        return unknown and now - self._asked_at >= self._least_interval

    def started(self, now: float, *, unknown: bool = False) -> None:
        """A fetch begins."""
        if unknown:
            self._asked_at = now

    def succeeded(self, now: float) -> None:
        """The keys came and are good."""
        self._good_at = now
        self._failures = 0
        self._not_before = float("-inf")

    def failed(self, now: float) -> None:
        """They did not, or are no good."""
        pause = self._first_retry * 2.0 ** min(self._failures, 30)
        self._not_before = now + min(self._longest_retry, pause)
        self._failures += 1

    @property
    def failing(self) -> bool:
        """Whether the last fetch failed: an unknown key may only be unknown because of that."""
        return self._failures > 0 or self._good_at is None

    @property
    def deadline(self) -> float:
        """When `wanted` becomes true by itself."""
        if self._good_at is None:
            return self._not_before
        return max(self._not_before, self._good_at + self._refresh_after)

    def __repr__(self) -> str:
        return f"<KeyFetch {'failing' if self.failing else 'good'}>"
