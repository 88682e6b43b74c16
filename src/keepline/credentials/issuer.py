"""Issuers: what turns a secret into a token; the port, the one without a server, and the door to the others.

Invariants: an issuer returns a token with generation 0 (the manager numbers it); `TokenRefused` means that a person or
a configuration must change, `TransientError` that the same call may work in a moment.
"""

from datetime import datetime
from typing import Protocol

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.oauth import SignIn
from keepline.credentials.oauth_issuer import OAuth2Issuer, SchwabIssuer
from keepline.credentials.projectx_issuer import ProjectXIssuer
from keepline.credentials.token import NEVER, Token
from keepline.errors import ConfigError, SignInRequired

__all__ = [
    "AuthService",
    "OAuth2Issuer",
    "ProjectXIssuer",
    "SchwabIssuer",
    "SignIn",
    "StaticIssuer",
]


class AuthService(Protocol):
    """What a `TokenManager` asks for tokens.

    An implementation may have `needs_person: bool`; True says that `authenticate()` cannot work without somebody at a
    browser and raises `SignInRequired`. Without the attribute it counts as False.
    """

    async def authenticate(self) -> Token:
        """A first token, from what the issuer knows by itself."""
        ...

    async def refresh(self, token: Token) -> Token:
        """The token after `token`."""
        ...


class StaticIssuer:
    """A token that somebody made by hand and that nobody can renew (Alpaca, OANDA).

    Args:
        token: the access token.
        expires_at: when it dies (aware datetime), None if never.
        clock: the wall clock of its expiry.
        name: the credential's name, for messages.
    """

    needs_person = False

    def __init__(
        self,
        token: str,
        expires_at: datetime | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        name: str = "",
    ) -> None:
        if not token:
            raise ConfigError("a static credential needs its token", key="token")
        self._clock = clock
        self._name = name
        self._token = Token(token, expires_at=expires_at or NEVER, issued_at=clock.wall())

    async def authenticate(self) -> Token:
        """The token.

        Raises:
            SignInRequired: it has expired.
        """
        if self._token.is_expired(self._clock.wall()):
            raise self._worn_out(f"the static token expired on {self._token.expires_at:%Y-%m-%d}")
        return self._token

    async def refresh(self, token: Token) -> Token:
        """Nothing renews a static token.

        Raises:
            SignInRequired: always, with what to do.
        """
        raise self._worn_out("a static token cannot be renewed")

    def _worn_out(self, what: str) -> SignInRequired:
        return SignInRequired(
            f"{what}: make a new one at the broker and put it where this one is configured",
            credential=self._name,
            command="keepline config show",
        )

    def __repr__(self) -> str:
        return f"<StaticIssuer {self._token.fingerprint}>"
