"""How late events come: venue time against arrival, with the clocks' difference taken out as far as it can be known.

Invariants: the best case of the last hour is the clocks' difference, within `max_skew` seconds: a clock that is off by
a second is not lag, and a stream that was behind from its first event is not skew; one late event among timely ones
(a snapshot of the last trade, say) is not lag either: of the events between two judgements the freshest counts.
"""

from keepline.errors import ConfigError

__all__ = ["LagMeter"]


class LagMeter:
    """The lag of one topic.

    Attributes:
        value: seconds, as of the last `judge`.
    """

    __slots__ = ("_bests", "_bucket", "_bucket_at", "_freshest", "_max_skew", "_span", "value")

    def __init__(self, *, max_skew: float = 30.0, span: float = 300.0, spans: int = 12) -> None:
        """
        Args:
            max_skew: seconds by which the two clocks may honestly differ.
            span: seconds of one stretch of which the best case is kept.
            spans: how many stretches are kept.
        """
        if max_skew < 0 or span <= 0 or spans < 1:
            raise ConfigError("max_skew >= 0, span > 0 and spans >= 1 are needed", key="lag")
        self._max_skew = max_skew
        self._span = span
        self._bests: list[float] = [float("inf")] * spans
        self._bucket = 0
        self._bucket_at: float | None = None
        self._freshest = float("inf")
        self.value = 0.0

    def reset(self) -> None:
        """A new connection: what was late is forgotten, what is known of the clocks stays."""
        self._freshest = float("inf")
        self.value = 0.0

    def saw(self, now: float, venue_at: float) -> None:
        """An event arrived: boottime seconds and its venue time in epoch seconds."""
        sample = now - venue_at
        if sample < self._freshest:
            self._freshest = sample
        if self._bucket_at is None or now >= self._bucket_at + self._span:
            self._turn(now)
        if sample < self._bests[self._bucket]:
            self._bests[self._bucket] = sample

    def _turn(self, now: float) -> None:
        if self._bucket_at is not None:
            passed = min(int((now - self._bucket_at) / self._span), len(self._bests))
            for _ in range(passed):
                self._bucket = (self._bucket + 1) % len(self._bests)
                self._bests[self._bucket] = float("inf")
        self._bucket_at = now

    def judge(self, anchor: float) -> float:
        """The lag of the freshest event since the last judgement; unchanged without one.

        Args:
            anchor: wall clock (epoch seconds) minus boottime, at this moment.
        """
        if self._freshest == float("inf"):
            return self.value
        difference = min(self._bests)
        skew = min(max(difference + anchor, -self._max_skew), self._max_skew)
        self.value = max(self._freshest + anchor - skew, 0.0)
        self._freshest = float("inf")
        return self.value

    @property
    def words(self) -> str:
        """What people read."""
        return f"events come {self.value:.1f} s after their time at the venue"

    def __repr__(self) -> str:
        return f"<LagMeter {self.value:.3f} s>"
