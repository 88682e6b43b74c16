"""Partial quotes put together: what each contract's quote is now.

Invariants: a field keeps its value until the broker tells another one; what is told late never covers what is newer;
volume is the session's total, so one that is smaller begins a new session, and open, high and low of the old one end
with it; nothing outlives `forget`, for after a gap nobody knows what has not changed.
"""

from datetime import datetime
from typing import Final

from keepline.brokers.projectx.stream_messages import QuotePayload
from keepline.model import Quote

__all__ = ["QuoteMerger"]

_NAMES: Final = ("last_price", "best_bid", "best_ask", "volume", "open", "high", "low")
_SESSION: Final = ("open", "high", "low")


class _Known:
    """What is known of one contract: values and when each was told."""

    __slots__ = ("at", "told", "values")

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.values: dict[str, float] = {}
        self.told: dict[str, datetime] = {}


class QuoteMerger:
    """Merges partial quotes by contract.

    Attributes:
        late: fields that were passed over because a newer value was known.
    """

    def __init__(self) -> None:
        self.late = 0
        self._known: dict[str, _Known] = {}

    def apply(self, contract: str, change: QuotePayload, at: datetime) -> Quote:
        """Merge what has changed.

        Args:
            contract: whose quote.
            change: as it came.
            at: when, by the broker's clock; by ours when the broker does not say.

        Returns:
            The whole quote. Its moment is that of the newest change.
        """
        known = self._known.get(contract)
        if known is None:
            known = self._known[contract] = _Known(at)
        elif change.volume is not None and at >= known.at:
            self._begin_session_if_smaller(known, change.volume)
        values, told = known.values, known.told
        for name in _NAMES:
            value = getattr(change, name)
            if value is None:
                continue
            if name in told and told[name] > at:
                self.late += 1
                continue
            values[name] = value
            told[name] = at
        known.at = max(known.at, at)
        return _quote(contract, known)

    def get(self, contract: str) -> Quote | None:
        """The quote as it is known, None before the first change."""
        known = self._known.get(contract)
        return None if known is None else _quote(contract, known)

    def forget(self, contract: str | None = None) -> None:
        """Begin anew with one contract, or with all: after a gap only what is told again is true."""
        if contract is None:
            self._known.clear()
        else:
            self._known.pop(contract, None)

    def _begin_session_if_smaller(self, known: _Known, volume: float) -> None:
        if volume < known.values.get("volume", 0.0):
            for name in _SESSION:
                known.values.pop(name, None)
                known.told.pop(name, None)


def _quote(contract: str, known: _Known) -> Quote:
    get = known.values.get
    return Quote(
        instrument=contract,
        at=known.at,
        bid=get("best_bid"),
        ask=get("best_ask"),
        last=get("last_price"),
        volume=get("volume"),
        open=get("open"),
        high=get("high"),
        low=get("low"),
    )
