"""What the sandbox's OAuth server remembers: sign-ins with the tokens that came from them.

A sign-in is a family (RFC 9700 §4.14): rotation hands its one live refresh token on; presenting a spent one is reuse
and ends the whole family, since the server cannot tell the thief from the owner. Invariants: a family has at most one
live refresh token; its deadline never moves; a spent token stays known for as long as its family could live.
"""

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Family", "Ledger", "Verdict"]


class Verdict(Enum):
    """What the ledger says about a refresh token."""

    LIVE = "live"
    GRACE = "the one before the live one, presented again in time"
    UNKNOWN = "unknown"
    REVOKED = "of a sign-in that is over"
    EXPIRED = "past the days that a sign-in lasts"
    REUSED = "spent before"


@dataclass(slots=True)
class Family:
    """One sign-in.

    Attributes:
        deadline: when a person must sign in again.
        live: the refresh token that works, "" in a family without one.
        previous: the one before it.
        rotated_at: when `previous` was spent.
        spent: every refresh token that was spent.
        access: expiry by access token.
        revoked: nothing of it works any more.
    """

    deadline: float
    live: str = ""
    previous: str = ""
    rotated_at: float = 0.0
    spent: set[str] = field(default_factory=set)
    access: dict[str, float] = field(default_factory=dict)
    revoked: bool = False


class Ledger:
    """All families, found by their tokens; `now` is the venue's time in seconds."""

    def __init__(self) -> None:
        self._families: list[Family] = []
        self._by_refresh: dict[str, Family] = {}
        self._by_access: dict[str, Family] = {}

    def open(self, deadline: float, *, now: float) -> Family:
        """A new sign-in; what is long over is forgotten on the way."""
        self._forget(now)
        family = Family(deadline)
        self._families.append(family)
        return family

    def grant(self, family: Family, access: str, expires_at: float, *, now: float) -> None:
        """Put an access token into the family; its expired ones go."""
        for old in [token for token, expiry in family.access.items() if expiry <= now]:
            del family.access[old], self._by_access[old]
        family.access[access] = expires_at
        self._by_access[access] = family

    def rotate(self, family: Family, refresh: str, *, now: float) -> None:
        """Make `refresh` the live token of the family; the one before it is spent."""
        if family.live:
            family.spent.add(family.live)
            family.previous, family.rotated_at = family.live, now
        family.live = refresh
        self._by_refresh[refresh] = family

    def look_up(self, refresh: str, *, grace: float, now: float) -> tuple[Verdict, Family | None]:
        """What a presented refresh token is worth, and whose it is."""
        family = self._by_refresh.get(refresh)
        if family is None:
            return Verdict.UNKNOWN, None
        if family.revoked:
            return Verdict.REVOKED, family
        if now >= family.deadline:
            return Verdict.EXPIRED, family
        if refresh == family.live:
            return Verdict.LIVE, family
        in_grace = refresh == family.previous and now - family.rotated_at < grace
        return (Verdict.GRACE if in_grace else Verdict.REUSED), family

    def accepts(self, access: str, *, now: float) -> bool:
        """Whether an access token opens the API."""
        family = self._by_access.get(access)
        return family is not None and not family.revoked and now < family.access[access]

    def revoke(self, family: Family) -> bool:
        """End a sign-in with all its tokens; False when it was over already."""
        fresh = not family.revoked
        family.revoked = True
        return fresh

    def revoke_all(self) -> int:
        """End every sign-in; how many were still alive."""
        return sum(self.revoke(family) for family in self._families)

    def forget_access(self) -> None:
        """Let every access token die before its time; the refresh tokens live on."""
        self._by_access.clear()
        for family in self._families:
            family.access.clear()

    def _forget(self, now: float) -> None:
        kept = []
        for family in self._families:
            if family.deadline > now or any(expiry > now for expiry in family.access.values()):
                kept.append(family)
                continue
            for token in (family.live, *family.spent):
                self._by_refresh.pop(token, None)
            for token in family.access:
                self._by_access.pop(token, None)
        self._families = kept
