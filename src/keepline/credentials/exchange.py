"""Asks the issuer for the next token, bounded in time.

Invariants: what the issuer does not repeat (the refresh token, the sign-in deadline) is carried over; a first token is
asked for only where that needs no person; an answer that is no progress counts as a failure.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

from keepline.clock import Clock, within
from keepline.credentials.token import Token
from keepline.errors import APIError, TokenRefused, TransientError

if TYPE_CHECKING:
    from keepline.credentials.issuer import AuthService

__all__ = ["Exchange", "Kind", "answer_may_be_lost"]


class Kind(Enum):
    """How a renewal ended; the value is the `outcome` of metrics and history."""

    RENEWED = "refreshed"
    SIGNED_IN = "signed_in"
    ADOPTED = "adopted"
    FAILED = "failed"
    REFUSED = "refused"


class Exchange:
    """One issuer, asked with a bound.

    Args:
        issuer: whom to ask.
        clock: measures the bound.
        timeout: seconds for one answer.
    """

    def __init__(self, issuer: "AuthService", clock: Clock, *, timeout: float) -> None:
        self._issuer = issuer
        self._clock = clock
        self._timeout = timeout

    @property
    def needs_person(self) -> bool:
        """Whether a first token takes somebody at a browser."""
        return bool(getattr(self._issuer, "needs_person", False))

    async def after(
        self, base: Token | None, *, foreign: Callable[[Token], Awaitable[Token | None]]
    ) -> tuple[Kind, Token]:
        """The token after `base`, the first one after None.

        Args:
            base: the token in hand.
            foreign: asked after a refusal: what somebody else stored meanwhile. With that, no first token is asked for.

        Raises:
            TokenRefused, SignInRequired: a person or the configuration must change.
            Exception: anything else may pass.
        """
        if base is None:
            return Kind.SIGNED_IN, await self._ask(self._issuer.authenticate())
        kind, answer = await self._following(base, foreign)
        if _is_same(answer, base):
            raise TransientError("the issuer returned the token that it was to renew", status=200)
        return kind, answer

    async def _following(
        self, base: Token, foreign: Callable[[Token], Awaitable[Token | None]]
    ) -> tuple[Kind, Token]:
        dead = base.is_expired(self._clock.wall())
        if dead and not base.refresh_token and not self.needs_person:
            return Kind.SIGNED_IN, await self._ask(self._issuer.authenticate())
        try:
            answer = await self._ask(self._issuer.refresh(base))
        except TokenRefused:
            if self.needs_person or await foreign(base) is not None:
                raise
            return Kind.SIGNED_IN, await self._ask(self._issuer.authenticate())
        return Kind.RENEWED, replace(
            answer,
            refresh_token=answer.refresh_token or base.refresh_token,
            signin_deadline=answer.signin_deadline or base.signin_deadline,
        )

    async def _ask(self, call: Awaitable[Token]) -> Token:
        try:
            answer = await within(self._clock, self._timeout, call)
        except TimeoutError as error:
            raise TransientError(
                f"no answer from the issuer within {self._timeout:g} s", category="timeout"
            ) from error
        if not isinstance(answer, Token):
            raise TypeError(f"the issuer gave {type(answer).__name__}, a Token is needed")
        return answer


def answer_may_be_lost(error: Exception) -> bool:
    """Whether the issuer may have acted although no token came: then the refresh token may be spent."""
    if not isinstance(error, APIError):
        return True
    return error.sent and not (error.status is not None and 400 <= error.status < 500)


def _is_same(answer: Token, base: Token) -> bool:
    secrets = (base.access_token, base.refresh_token)
    same = (answer.access_token, answer.refresh_token) == secrets
    return same and answer.expires_at <= base.expires_at
