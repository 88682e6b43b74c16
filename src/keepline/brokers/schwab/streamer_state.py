"""What Schwab's streamer makes a client remember: the fields of each quote, and which activities were seen.

Invariants: bounded; a quote's fields come from one connection alone; an activity is a repeat only when its number and
its whole content were seen, so numbers that begin anew on another connection hide nothing.
"""

from collections.abc import Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any

from keepline.brokers.schwab.streamer_fields import field_name
from keepline.brokers.schwab.streamer_messages import AccountActivity, LevelOne

__all__ = ["SUBSCRIBED", "Quotes", "SeenActivity"]

SUBSCRIBED = "SUBSCRIBED"
"""The kind of the activity that answers a subscription before anything has happened."""

_MOST_QUOTES = (
    4096  # eight times what Schwab lets one subscribe: a peer that invents symbols fills no memory
)
_MOST_ACTIVITIES = 4096


class Quotes:
    """The newest fields of each symbol on one connection."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], dict[str, Any]] = {}

    def merged(
        self, service: str, symbol: str, content: Mapping[str, Any], at: datetime | None
    ) -> LevelOne:
        """The whole quote after a line of a `data` message.

        Args:
            service: of the level-one ones.
            symbol: the line's `key`.
            content: the line; fields by their numbers.
            at: when the message was sent.
        """
        told = {
            field_name(service, number): value
            for number, value in content.items()
            if number.isascii() and number.isdecimal()
        }
        place = (service, symbol)
        values = {**self._values.get(place, {}), **told}
        if place not in self._values and len(self._values) >= _MOST_QUOTES:
            del self._values[next(iter(self._values))]
        self._values[place] = values
        delayed = content.get("delayed")
        return LevelOne(
            service,
            symbol,
            at,
            values,
            tuple(told),
            delayed if isinstance(delayed, bool) else None,
        )

    def forget(self, service: str, symbol: str) -> None:
        """Drop a symbol: its next quote begins anew."""
        self._values.pop((service, symbol), None)


class SeenActivity:
    """Tells repeated activities from new ones, across connections: hand the same one to each wire."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str, str, bytes], None] = {}
        self.repeats = 0

    def is_new(self, activity: AccountActivity) -> bool:
        """Whether it was not seen before; it counts as seen from now on.

        One without a number is always new, and so is the greeting of a subscription.
        """
        if activity.sequence is None or activity.kind == SUBSCRIBED:
            return True
        data = blake2b(activity.data.encode(errors="replace"), digest_size=16).digest()
        place = (activity.sequence, activity.account, activity.kind, data)
        if place in self._seen:
            self.repeats += 1
            return False
        if len(self._seen) >= _MOST_ACTIVITIES:
            del self._seen[next(iter(self._seen))]
        self._seen[place] = None
        return True
