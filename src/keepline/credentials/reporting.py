"""What a credential says about itself: metrics, log events and errors in words, none with a secret.

Invariant: instants are aware and in UTC, durations are seconds; a text from outside is redacted before it is used.
"""

import logging
import math
from datetime import datetime

from keepline.credentials.token import Token
from keepline.errors import Closed, KeeplineError, SignInRequired, TokenUnavailable
from keepline.telemetry import REGISTRY, event, redact

__all__ = ["Reporter", "finite", "iso", "reason"]

log = logging.getLogger("keepline.credentials")

EXPIRY = REGISTRY.gauge(
    "token_expiry_timestamp_seconds", "When the access token dies, epoch.", "credential"
)
ISSUED = REGISTRY.gauge(
    "token_issued_timestamp_seconds", "When the access token was issued, epoch.", "credential"
)
DEADLINE = REGISTRY.gauge(
    "token_signin_deadline_timestamp_seconds", "When a person must sign in, epoch.", "credential"
)
GENERATION = REGISTRY.gauge("token_generation", "The token's generation.", "credential")
UNSAVED = REGISTRY.gauge(
    "token_unsaved_generation",
    "The generation that is in memory only because its save failed, 0 if none.",
    "credential",
)
REFRESHES = REGISTRY.counter(
    "token_refresh_total", "Renewals by how they ended.", "credential", "outcome"
)


class Reporter:
    """The voice of one credential."""

    def __init__(self, name: str) -> None:
        self.name = name

    def counts(self, outcome: str) -> None:
        """A renewal ended."""
        REFRESHES.inc(self.name, outcome)

    def token(self, message: str, token: Token, **fields: object) -> None:
        """A token was taken up: the gauges and the event `Token refreshed`, `Token updated` or `Token loaded`."""
        EXPIRY.set(token.expires_at.timestamp(), self.name)
        ISSUED.set(token.issued_at.timestamp(), self.name)
        GENERATION.set(token.generation, self.name)
        if token.signin_deadline is None:
            DEADLINE.forget(self.name)
        else:
            DEADLINE.set(token.signin_deadline.timestamp(), self.name)
        facts = {"generation": token.generation, "expires_at": iso(token.expires_at)}
        self.says(logging.INFO, message, **fields, **facts)

    def unsaved(self, generation: int) -> None:
        """The generation that is in memory only, 0 if none."""
        UNSAVED.set(generation, self.name)

    def signin_soon(self, deadline: datetime | None, left: float) -> None:
        """`left` seconds until a person must have signed in."""
        self.says(
            logging.WARNING,
            "Sign-in needed soon",
            signin_deadline=iso(deadline),
            in_hours=round(left / 3600, 1),
            command=f"keepline login {self.name}",
        )

    def says(self, level: int, message: str, **fields: object) -> None:
        """An event of this credential."""
        event(log, level, message, credential=self.name, **fields)

    # --- errors ---

    def unavailable(
        self, what: str, retry_at: datetime | None, cause: Exception | None
    ) -> TokenUnavailable:
        """No token: `what` says why, `retry_at` when to come back."""
        then = "" if retry_at is None else f"; next attempt at {retry_at:%Y-%m-%d %H:%M:%S} UTC"
        error = TokenUnavailable(
            f"{self.name}: {what}{then}", retry_at=retry_at, cause=cause, credential=self.name
        )
        error.__cause__ = cause
        return error

    def refusal(self, cause: Exception | None, *, lost: str, needs_person: bool) -> SignInRequired:
        """A person must act, because the issuer said no.

        Args:
            cause: the refusal.
            lost: words about a refresh whose answer was lost, "" if there was none.
            needs_person: whether signing in is what they must do; otherwise the configuration is wrong.
        """
        words = str(cause.args[0]) if cause is not None and cause.args else "the issuer said no"
        if lost:
            words = f"{words}; {lost}"
        own_command = isinstance(cause, SignInRequired) and not needs_person
        if not needs_person and not own_command:
            words = f"{words}; check what the configuration says of it"
        command = cause.command if isinstance(cause, SignInRequired) and own_command else ""
        return self.signin(redact(words), command=command, cause=cause)

    def signin(
        self, words: str, *, command: str = "", cause: BaseException | None = None
    ) -> SignInRequired:
        """A person must act."""
        error = SignInRequired(f"{self.name}: {words}", credential=self.name, command=command)
        error.__cause__ = cause
        return error

    def again(self, error: SignInRequired) -> SignInRequired:
        """The same for another caller: a traceback belongs to one."""
        fresh = SignInRequired(
            str(error.args[0]), credential=error.credential, command=error.command
        )
        fresh.__cause__ = error.__cause__
        return fresh

    def closed(self) -> Closed:
        """It was stopped."""
        return Closed(f"{self.name}: the token manager was stopped; make a new one")


def reason(error: BaseException | None) -> str:
    """An error in words, "" for none."""
    if error is None:
        return ""
    words = redact(str(error))
    if isinstance(error, KeeplineError) and words:
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def iso(moment: datetime | None) -> str | None:
    """ISO-8601 to the second."""
    return None if moment is None else moment.isoformat(timespec="seconds")


def finite(seconds: float) -> float | None:
    """Seconds for JSON, which has no infinity."""
    return round(seconds, 3) if math.isfinite(seconds) else None
