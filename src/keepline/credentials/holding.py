"""The token in hand with its clocks: what may be served, until when, and what a person has to do.

Invariants: a token and its clocks change together; what the fast path reads follows each look at the clock;
every change of state is said once.
"""

import contextlib
import logging
import math
from collections.abc import Callable
from datetime import datetime, timedelta

from keepline.clock import Clock
from keepline.credentials.lifecycle import Action, Lifecycle, TokenState
from keepline.credentials.policy import TokenManagerConfig
from keepline.credentials.renewal import seconds_left
from keepline.credentials.reporting import Reporter, iso
from keepline.credentials.token import Token
from keepline.errors import SignInRequired

__all__ = ["Holding"]


class Holding:
    """One credential's present.

    Attributes:
        token: the one in hand, None before the first.
        fresh_until: boottime until which it may be served; -inf when it may not.
        lifecycle: the clocks.
        last_error: why the last errand failed, None once a token came.
        signin: what a person must do, None while nobody must.
        closed: nothing is served any more.
    """

    def __init__(
        self,
        config: TokenManagerConfig,
        clock: Clock,
        *,
        on_token: Callable[[Token], None],
        on_change: Callable[[], None],
    ) -> None:
        self.token: Token | None = None
        self.fresh_until = -math.inf
        self.lifecycle = Lifecycle(config)
        self.last_error: Exception | None = None
        self.signin: SignInRequired | None = None
        self.closed = False
        self._clock = clock
        self._on_token = on_token
        self._on_change = on_change
        self._report = Reporter(config.name)
        self._said = TokenState.INITIAL
        self._mourned: Token | None = None

    @property
    def now(self) -> float:
        """Boottime."""
        return self._clock.boottime()

    @property
    def state(self) -> TokenState:
        """By the lifecycle's table."""
        return self.lifecycle.state

    @property
    def generation(self) -> int:
        """Of the token in hand, 0 without one."""
        return self.token.generation if self.token else 0

    def serves(self, newer_than: int = -1) -> bool:
        """Whether the token in hand may be served to someone who wants one newer than that generation."""
        return self.now < self.fresh_until and self.generation > newer_than

    def wake(self) -> Action:
        """Let the clocks catch up; what is due."""
        now = self.now
        action = self.lifecycle.wake(now)
        left = self.lifecycle.warning(now)
        if left is not None and self.token is not None:
            self._report.signin_soon(self.token.signin_deadline, left)
        self._speak_of_state()
        self.fresh_until = -math.inf if self.closed else self.lifecycle.fresh_until
        self._on_change()
        return action

    def take(
        self, token: Token, *, left: float | None = None, renewed: bool = False, again: bool = False
    ) -> None:
        """Hold this token from now on.

        Args:
            token: it, numbered.
            left: seconds of life that it has; by the wall clock unless given.
            renewed: it came from the issuer just now.
            again: read its sign-in deadline from the wall clock again although it is the known one.
        """
        before = self.token
        known = before is not None and before.signin_deadline == token.signin_deadline
        self.lifecycle.take(
            self.now,
            lifetime=token.lifetime.total_seconds(),
            left=self.left(token) if left is None else left,
            signin_left=None if known and not again else self.signin_left(token),
            renewed=renewed,
        )
        self.token = token
        self.signin = self.last_error = None
        self.wake()

    def tell(self, message: str, **fields: object) -> None:
        """Say what was taken up, and hand it on."""
        token = self.token
        assert token is not None
        following = iso(self.when(self.lifecycle.retry_at))
        expires_in = round(self.lifecycle.expires - self.now, 1)
        self._report.token(message, token, **fields, next=following, expires_in_seconds=expires_in)
        self._on_token(token)

    def require_signin(self, signin: SignInRequired) -> None:
        """Only a person can help."""
        self.signin = signin
        self.lifecycle.refused(self.now)
        self.wake()

    def left(self, token: Token) -> float:
        """Seconds of life that a token has by the wall clock."""
        return seconds_left(token, self._clock.wall())

    def signin_left(self, token: Token) -> float:
        """Seconds until a person must sign in by the wall clock, inf if never."""
        if token.signin_deadline is None:
            return math.inf
        return (token.signin_deadline - self._clock.wall()).total_seconds()

    def when(self, boottime: float | None) -> datetime | None:
        """That moment on the wall clock, None for never."""
        if boottime is None or not math.isfinite(boottime):
            return None
        with contextlib.suppress(OverflowError):
            return self._clock.wall() + timedelta(seconds=boottime - self.now)
        return None

    def _speak_of_state(self) -> None:
        state = self.state
        if state is TokenState.SIGN_IN_REQUIRED and self.signin is None:
            deadline = iso(self.token.signin_deadline) if self.token else None
            self.signin = self._report.signin(f"the sign-in ended at {deadline}")
        if state is self._said:
            return
        self._said = state
        if state is TokenState.SIGN_IN_REQUIRED and self.signin is not None:
            words, command = str(self.signin.args[0]), self.signin.command
            self._report.says(logging.ERROR, "Sign-in required", reason=words, command=command)
        elif state is TokenState.EXPIRED and self._mourned is not self.token:
            self._mourned = self.token
            self._report.says(logging.WARNING, "Token expired", generation=self.generation)
