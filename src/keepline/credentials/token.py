"""One access token with everything that belongs to it: immutable, so that no reader ever mixes two generations.

Invariant: neither repr, str nor an error shows any part of a secret, only a fingerprint of it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["DEFAULT_LIFETIME_SECONDS", "NEVER", "Token", "fingerprint", "next_generation"]

DEFAULT_LIFETIME_SECONDS = 1800.0
"""Seconds that a token from outside counts as valid when nobody said: the shortest life we know of (Schwab's)."""

NEVER = datetime(9999, 12, 31, tzinfo=UTC)
"""The expiry of a token that does not expire."""


def fingerprint(secret: str) -> str:
    """Eight hex digits that tell two secrets apart and lead back to neither; "-" for the empty one."""
    return hashlib.sha256(b"keepline:" + secret.encode()).hexdigest()[:8] if secret else "-"


def next_generation(previous: int, issued_at: datetime) -> int:
    """The number of a new token: larger than the previous one, and than any before a store was lost.

    It is the epoch second of issue unless two tokens fall into one second, so a receiver that outlives the daemon and
    its store still sees numbers that only grow.
    """
    return max(previous + 1, int(issued_at.timestamp()))


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """What an issuer gave us.

    Attributes:
        access_token: the secret that opens the API.
        refresh_token: the secret that buys the next access token, "" when there is none.
        expires_at: when the access token dies (aware datetime).
        issued_at: when we got it (aware datetime).
        token_type: how it is presented, `Bearer` with every broker that we know.
        scope: what the issuer says it is good for.
        generation: grows with every new token of a credential; 0 until a manager or a store has numbered it.
        signin_deadline: when a person must sign in again, whatever is refreshed before; None if never.
        extra: the issuer's other fields, untouched (`id_token` is one).
    """

    access_token: str
    refresh_token: str = ""
    expires_at: datetime = NEVER
    issued_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    token_type: str = "Bearer"  # noqa: S105 - the scheme's name
    scope: str = ""
    generation: int = 0
    signin_deadline: datetime | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.access_token:
            raise ValueError("access_token must not be empty")
        for name in ("expires_at", "issued_at", "signin_deadline"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise ValueError(
                    f"{name} must be timezone-aware, for example datetime.now(timezone.utc)"
                )

    @property
    def lifetime(self) -> timedelta:
        """From issue to expiry; zero when it was dead on arrival."""
        return max(self.expires_at - self.issued_at, timedelta(0))

    @property
    def fingerprint(self) -> str:
        """Eight hex digits by which people and logs may name this token."""
        return fingerprint(self.access_token)

    def is_expired(self, now: datetime | None = None) -> bool:
        """Whether the access token is dead by the wall clock (now, unless given)."""
        return self.expires_at <= (now or datetime.now(UTC))

    def with_generation(self, generation: int) -> "Token":
        """The same token under another number."""
        return replace(self, generation=generation)

    def __repr__(self) -> str:
        expiry = (
            "never expires"
            if self.expires_at >= NEVER
            else f"expires {self.expires_at:%Y-%m-%dT%H:%M:%S%z}"
        )
        refresh = "" if self.refresh_token else ", no refresh token"
        return f"<Token {self.fingerprint} generation {self.generation}, {expiry}{refresh}>"

    __str__ = __repr__
