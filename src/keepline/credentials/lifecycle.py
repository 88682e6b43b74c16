"""What to do about a token at time t: keep it, renew it, look for a sign-in by somebody else.

A decider over bare numbers: `now` and every deadline are seconds of one clock that counts suspend. Invariants: the
state changes only by the table; SIGN_IN_REQUIRED comes only from a refusal or a passed sign-in deadline, never from
an outage; a token is served until it really expires unless the venue itself refused it.
"""

import math
from enum import Enum

from keepline.credentials.policy import TokenManagerConfig

__all__ = [
    "LOOK_SECONDS",
    "NEAR_DEATH_SECONDS",
    "TRANSITIONS",
    "WARNINGS",
    "Action",
    "Happening",
    "Lifecycle",
    "TokenManagerConfig",
    "TokenState",
]

LOOK_SECONDS = 30.0
"""Seconds between two looks into the store while a person is asked to sign in."""

NEAR_DEATH_SECONDS = 60.0
"""Below this life left, an answer that may not be savable is better than no token at all."""

YOUNG_SECONDS = 60.0
"""A venue that refuses a token of less than this age probably refuses every token: renewals for it are spaced by the
retry delays."""

SPACING_SECONDS = 1.0
"""Least seconds between a renewal and the next one, however short the issuer says that the token lives."""

_HOUR = 3600.0
WARNINGS = (72 * _HOUR, 48 * _HOUR, 24 * _HOUR, 6 * _HOUR, 1 * _HOUR)
"""Seconds before the sign-in deadline at which a person is warned, once each."""


class TokenState(Enum):
    """Where a credential stands."""

    INITIAL = "initial"
    VALID = "valid"
    REFRESHING = "refreshing"
    ERROR = "error"
    EXPIRED = "expired"
    SIGN_IN_REQUIRED = "sign_in_required"


class Happening(Enum):
    """What can happen to a credential."""

    TAKEN = "a token was taken up: renewed, adopted, loaded or handed in"
    BEGUN = "a renewal began"
    FAILED = "a renewal failed and may work later"
    DIED = "the token expired"
    REFUSED = "the issuer said no for good, or the sign-in deadline passed"


_S, _H = TokenState, Happening
TRANSITIONS: dict[TokenState, dict[Happening, TokenState]] = {
    _S.INITIAL: {
        _H.TAKEN: _S.VALID,
        _H.BEGUN: _S.REFRESHING,
        _H.FAILED: _S.ERROR,
        _H.DIED: _S.EXPIRED,
        _H.REFUSED: _S.SIGN_IN_REQUIRED,
    },
    _S.VALID: {
        _H.TAKEN: _S.VALID,
        _H.BEGUN: _S.REFRESHING,
        _H.FAILED: _S.ERROR,
        _H.DIED: _S.EXPIRED,
        _H.REFUSED: _S.SIGN_IN_REQUIRED,
    },
    _S.REFRESHING: {
        _H.TAKEN: _S.VALID,
        _H.BEGUN: _S.REFRESHING,
        _H.FAILED: _S.ERROR,
        _H.DIED: _S.REFRESHING,
        _H.REFUSED: _S.SIGN_IN_REQUIRED,
    },
    _S.ERROR: {
        _H.TAKEN: _S.VALID,
        _H.BEGUN: _S.REFRESHING,
        _H.FAILED: _S.ERROR,
        _H.DIED: _S.EXPIRED,
        _H.REFUSED: _S.SIGN_IN_REQUIRED,
    },
    _S.EXPIRED: {
        _H.TAKEN: _S.VALID,
        _H.BEGUN: _S.REFRESHING,
        _H.FAILED: _S.EXPIRED,
        _H.DIED: _S.EXPIRED,
        _H.REFUSED: _S.SIGN_IN_REQUIRED,
    },
    # only a token ends it: no attempt is made with what was refused
    _S.SIGN_IN_REQUIRED: {
        _H.TAKEN: _S.VALID,
        _H.BEGUN: _S.SIGN_IN_REQUIRED,
        _H.FAILED: _S.SIGN_IN_REQUIRED,
        _H.DIED: _S.SIGN_IN_REQUIRED,
        _H.REFUSED: _S.SIGN_IN_REQUIRED,
    },
}
"""The state machine: from a state, by a happening, to a state. Every pair is there."""


class Action(Enum):
    """What the face has to start now."""

    NOTHING = "nothing"
    RENEW = "renew"
    LOOK = "look into the store"


class Lifecycle:
    """One credential's clocks and its state.

    Attributes:
        state: by the table `TRANSITIONS`.
        expires: when the token dies; -inf without one, inf when it never does.
        due: when the next renewal begins; inf when none is planned.
        signin_deadline: when a person must have signed in again; inf if never.
        failures: failed attempts in a row.
        cycle: the number of the renewal that is under way or comes next, from 1.
    """

    def __init__(self, policy: TokenManagerConfig) -> None:
        self.state = TokenState.INITIAL
        self.expires = -math.inf
        self.due = math.inf
        self.signin_deadline = math.inf
        self.failures = 0
        self.cycle = 1
        self._policy = policy
        self._backoff = policy.backoff
        self._issued = -math.inf
        self._rejected = False
        self._strikes = 0
        self._not_before = -math.inf
        self._barred_until = -math.inf
        self._look_at = math.inf
        self._warned: set[float] = set()

    # --- what happened ---

    def empty(self, now: float) -> None:
        """There is no token and the issuer needs no person: get the first one now."""
        self.due = now

    def take(
        self,
        now: float,
        *,
        lifetime: float,
        left: float,
        signin_left: float | None = None,
        renewed: bool = False,
    ) -> None:
        """A token is held from now on.

        Args:
            now: the time.
            lifetime: seconds from its issue to its death; of no meaning if it never dies.
            left: seconds of that still ahead; may be negative; inf if it never dies.
            signin_left: seconds until a person must sign in, inf if never; None when that moment is the one known
                already, so that a jump of the wall clock does not move it.
            renewed: it came from the issuer just now and ends a cycle.
        """
        self.expires = now + left
        self._issued = now if renewed else now - (lifetime - left)
        if signin_left is not None:
            self.signin_deadline = now + signin_left
            self._warned = set()
        self._rejected = False
        self._happens(Happening.TAKEN)
        if renewed:
            self.cycle += 1
        if renewed and left <= 0:  # dead on arrival: an issuer that does so must not be hammered
            self.failed(now)
        else:
            self.failures = 0
            self._barred_until = -math.inf
            self.due = self._due_of(now, lifetime, left, renewed=renewed)
        self._note_time(now)

    def begin(self, now: float) -> int:
        """A renewal begins; the number of the attempt in this cycle, from 1."""
        self._happens(Happening.BEGUN)
        self.due = math.inf
        return self.failures + 1

    def failed(
        self,
        now: float,
        *,
        chance: float = 0.5,
        retry_after: float | None = None,
        latest: float = math.inf,
    ) -> None:
        """A renewal failed for a reason that may pass.

        Args:
            now: the time.
            chance: a number in [0, 1) that spreads the delay.
            retry_after: seconds that the issuer asked for; the next attempt is never earlier.
            latest: a time by which the next attempt is made if the delay would pass it.
        """
        self.failures += 1
        self._rejected = False  # one stray 401 during an outage must not stop every bot
        due = now + self._backoff.delay(self.failures, chance)
        if now < latest:
            due = min(due, latest)
        if retry_after is not None:
            self._barred_until = now + max(0.0, retry_after)
            due = max(due, self._barred_until)
        self.due = self._not_before = due
        self._happens(Happening.FAILED)
        self._note_time(now)

    def refused(self, now: float) -> None:
        """Only a person can help; the store is looked at from now on."""
        self.due = math.inf
        self._look_at = now
        self._happens(Happening.REFUSED)

    def rejected(self, now: float) -> bool:
        """The venue refused the current token (HTTP 401): whether a renewal may begin for that now.

        False leaves the token in service for the others: an attempt failed a moment ago, or the venue refuses every
        token.
        """
        self._note_time(now)
        if self.state in (TokenState.REFRESHING, TokenState.SIGN_IN_REQUIRED):
            self._rejected = True  # the one under way will do; or a person will
            return True
        if now < self._not_before:
            return False
        young = now - max(self._issued, self._not_before) < YOUNG_SECONDS
        self._strikes = self._strikes + 1 if young else 0
        if self._strikes:
            self._not_before = now + self._backoff.delay(self._strikes)
        self._rejected = True
        return True

    def looked(self, now: float) -> None:
        """The store held nothing new."""
        self._look_at = now + LOOK_SECONDS

    # --- what to do ---

    def wake(self, now: float) -> Action:
        """Let time pass up to `now`; what to start."""
        self._note_time(now)
        if self.state is TokenState.SIGN_IN_REQUIRED:
            return Action.LOOK if self._look_at <= now else Action.NOTHING
        return Action.RENEW if self.due <= now else Action.NOTHING

    @property
    def next_wake(self) -> float:
        """When `wake` has something new to say; inf if never."""
        moments = [self.due, self.expires, self.signin_deadline, *self._warning_times()]
        if self.state is TokenState.SIGN_IN_REQUIRED:
            return self._look_at
        if self.state is TokenState.REFRESHING:
            return math.inf
        if self.expires == -math.inf or self.state is TokenState.EXPIRED:
            moments.remove(self.expires)
        return min(moments)

    def warning(self, now: float) -> float | None:
        """Seconds to the sign-in deadline if a person is to be warned now, None otherwise; each mark speaks once."""
        left = self.signin_deadline - now
        passed = {mark for mark in WARNINGS if left <= mark}
        if left <= 0 or passed <= self._warned:
            return None
        self._warned |= passed
        return left

    @property
    def fresh_until(self) -> float:
        """Until when the token may be served; -inf when there is none or the venue refused it."""
        return -math.inf if self._rejected else self.expires

    def life_left(self, now: float) -> float:
        """Seconds for which the token can be served, 0 if not at all."""
        return max(0.0, self.fresh_until - now)

    @property
    def retry_at(self) -> float | None:
        """When the next attempt is due, None while one is under way or none is planned."""
        return self.due if self.due < math.inf else None

    @property
    def rejected_until(self) -> float:
        """Until when `rejected` answers no."""
        return self._not_before

    @property
    def barred_until(self) -> float:
        """Until when the issuer asked to be left alone, whoever wants a token."""
        return self._barred_until

    # --- inside ---

    def _happens(self, happening: Happening) -> None:
        self.state = TRANSITIONS[self.state][happening]

    def _due_of(self, now: float, lifetime: float, left: float, *, renewed: bool) -> float:
        if left == math.inf:
            return math.inf
        if not renewed:
            return self.expires - self._policy.buffer(lifetime)
        # an issuer may hand out a token that has lived already: what is left counts, or we would ask again at once
        due = self.expires - self._policy.buffer(min(lifetime, left))
        return max(due, now + SPACING_SECONDS)

    def _note_time(self, now: float) -> None:
        if self.expires != -math.inf and self.expires <= now:
            self._happens(Happening.DIED)
        resting = self.state not in (TokenState.REFRESHING, TokenState.SIGN_IN_REQUIRED)
        if resting and self.signin_deadline <= now:
            self.refused(now)

    def _warning_times(self) -> list[float]:
        return [self.signin_deadline - mark for mark in WARNINGS if mark not in self._warned]

    def __repr__(self) -> str:
        return (
            f"<Lifecycle {self.state.name}, cycle {self.cycle}, {self.failures} failures,"
            f" expires {self.expires:g}, due {self.due:g}>"
        )
