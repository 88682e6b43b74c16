"""What to do when ProjectX says `GatewayLogout`: another session seems to have taken this one's place.

Invariants: a stream that was displaced shows the present no more, so its connection ends; the first time one comes back
at once (a new sign-in of our own has the same effect), a second time within `CALM_SECONDS` it is a conflict, which is
said and not fought over.

The event is documented nowhere and its exact cause is unproven.
"""

from typing import Final

from msgspec import Struct

from keepline.stream.port import Lost

__all__ = ["CALM_SECONDS", "Displaced"]

CALM_SECONDS: Final = 600.0
"""Displaced again within so many seconds is a conflict of two sessions, not an accident."""


class Displaced(Struct):
    """How often a session was displaced; one object for all connections of an endpoint.

    Attributes:
        times: how often in all.
        last: when last (boottime seconds), None before the first time.
    """

    times: int = 0
    last: float | None = None

    def logout(self, now: float) -> Lost:
        """The event came: how the connection ends.

        Args:
            now: boottime seconds.
        """
        before, self.last = self.last, now
        self.times += 1
        if before is None or now - before > CALM_SECONDS:
            return Lost("close", "GatewayLogout: another session of this user has taken our place")
        return Lost(
            "kicked",
            "GatewayLogout again: another program streams with the same user, and each connect of ours would end its"
            " session; stop one of the two",
        )
