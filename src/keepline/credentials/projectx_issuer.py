"""The issuer for ProjectX login keys: a thin face over the decider in `loginkey`.

Invariant: a session that still lives is prolonged; the login key is used only where that does not work.
"""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials import loginkey
from keepline.credentials.caller import Caller
from keepline.credentials.oauth import require_safe_url
from keepline.credentials.token import Token
from keepline.errors import ConfigError
from keepline.http import HttpSession

__all__ = ["ProjectXIssuer"]

PROJECTX_URL = "https://api.topstepx.com"


class ProjectXIssuer(Caller):
    """ProjectX (TopstepX and other firms): a login key buys a session of 24 hours, nobody has to sign in.

    Args:
        username: of the firm's account.
        api_key: the login key.
        base_url: the firm's gateway.
        http: a session to share.
        clock: the wall clock of issue and expiry.
        name: the credential's name.

    Raises:
        ConfigError: one of them is empty, or the address is not https.
    """

    needs_person = False

    def __init__(
        self,
        username: str,
        api_key: str,
        *,
        base_url: str = PROJECTX_URL,
        http: HttpSession | None = None,
        clock: Clock = SYSTEM_CLOCK,
        name: str = "projectx",
    ) -> None:
        for key, value in (("username", username), ("api_key", api_key)):
            if not value:
                raise ConfigError("ProjectX needs it", key=key)
        require_safe_url(base_url, key="base_url")
        super().__init__(http, clock)
        self._username, self._api_key, self._name = username, api_key, name
        self._base_url = base_url.rstrip("/")

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None, **options: Any
    ) -> "ProjectXIssuer":
        """The issuer for `PROJECT_X_USERNAME` and `PROJECT_X_API_KEY`.

        Args:
            environment: by default the process's own.
            options: keyword arguments of the class.

        Raises:
            ConfigError: a variable is missing or empty.
        """
        values = os.environ if environment is None else environment
        for variable in ("PROJECT_X_USERNAME", "PROJECT_X_API_KEY"):
            if not values.get(variable):
                raise ConfigError("this environment variable is missing or empty", key=variable)
        return cls(values["PROJECT_X_USERNAME"], values["PROJECT_X_API_KEY"], **options)

    async def authenticate(self) -> Token:
        """A new session, bought with the login key.

        Raises:
            TokenRefused: a person has to correct something; `code` reads `loginKey 3 InvalidCredentials`.
            TransientError: it may work in a moment.
        """
        request = loginkey.login_request(self._base_url, self._username, self._api_key)
        answer = await self.post(request.url, json=request.json)
        return loginkey.read_login(answer, name=self._name, secrets=(self._api_key,))

    async def refresh(self, token: Token) -> Token:
        """The session prolonged while it lives, else a new one.

        Raises:
            TokenRefused: the login key was refused as well.
            TransientError: it may work in a moment.
        """
        if not token.is_expired(self._clock.wall()):
            request = loginkey.validate_request(self._base_url, token)
            answer = await self.post(request.url, headers=request.headers)
            renewed = loginkey.read_validate(answer, previous=token)
            if renewed is not None:
                return renewed
        return await self.authenticate()

    def __repr__(self) -> str:
        return f"<ProjectXIssuer {self._name} at {urlsplit(self._base_url).hostname}>"
