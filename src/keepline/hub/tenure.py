"""How long a live connection may go on with the token it has: a notice in time, then the end, unless it is renewed.

Invariants: times are epoch seconds of the wall clock, which may jump: what is due is asked with each look and never
remembered as a span; one notice for each token; another user never takes over a connection.
"""

from msgspec import Struct

from keepline.hub.access import Identity
from keepline.hub.refusals import Refusal, RefusalCode, refuse

__all__ = ["NOTICE_SECONDS", "Ended", "Expiring", "Tenure"]

NOTICE_SECONDS = 60.0
"""How long before the end a client is told; a token that lives shorter is announced in the last half of its life."""


class Expiring(Struct, frozen=True):
    """Tell the client to send a `refresh`.

    Attributes:
        expires_at: epoch seconds of the token's end.
        seconds_left: from now to then, never negative.
    """

    expires_at: float
    seconds_left: float


class Ended(Struct, frozen=True):
    """Close the connection: the token has expired.

    Attributes:
        refusal: code and words for the close.
    """

    refusal: Refusal


class Tenure:
    """The clock of one connection.

    Args:
        identity: of the verified token that it was opened with.
        leeway_seconds: as at verification: so long after `exp` the token still counts.
        notice_seconds: how long before `exp` the client is told.
    """

    __slots__ = ("_identity", "_leeway", "_notice", "_notice_at", "_told")

    def __init__(
        self,
        identity: Identity,
        *,
        leeway_seconds: float = 30.0,
        notice_seconds: float = NOTICE_SECONDS,
    ) -> None:
        self._leeway = leeway_seconds
        self._notice = notice_seconds
        self._told = False
        self._begin(identity)

    @property
    def identity(self) -> Identity:
        """Who the connection speaks for, as of the newest token."""
        return self._identity

    @property
    def ends_at(self) -> float:
        """Epoch seconds from which the connection must not live."""
        return self._identity.expires_at + self._leeway

    @property
    def deadline(self) -> float:
        """Epoch seconds at which `due` has something to say: look then, and every half minute, clocks jump."""
        return self.ends_at if self._told else min(self._notice_at, self.ends_at)

    def due(self, now: float) -> Expiring | Ended | None:
        """What to do now; the notice comes once for each token.

        Args:
            now: epoch seconds.
        """
        if now >= self.ends_at:
            return Ended(refuse(RefusalCode.EXPIRED))
        if self._told or now < self._notice_at:
            return None
        self._told = True
        left = max(0.0, self._identity.expires_at - now)
        return Expiring(self._identity.expires_at, left)

    def refresh(self, identity: Identity, now: float) -> Refusal | None:
        """Go on with a new verified token of the same user; None when it was taken.

        A role or account that changed is taken over with it: ask the rights again for what is subscribed. A token that
        ends earlier than the present one is taken too: the user may have wanted that.

        Args:
            identity: of the new token, verified now.
            now: epoch seconds.
        """
        if not identity.same_user(self._identity):
            return refuse(RefusalCode.OTHER_USER)
        if now >= identity.expires_at + self._leeway:
            return refuse(RefusalCode.EXPIRED)
        self._begin(identity)
        return None

    def _begin(self, identity: Identity) -> None:
        self._identity = identity
        life = max(0.0, identity.expires_at - identity.issued_at)
        self._notice_at = identity.expires_at - min(self._notice, life / 2)
        self._told = False

    def __repr__(self) -> str:
        return f"<Tenure until {self.ends_at:.0f}>"
