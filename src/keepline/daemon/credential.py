"""One credential as a part of the daemon: its manager, and everybody who follows its tokens across restarts of it.

Invariants: a manager that could not start is replaced by a fresh one, never reused; who subscribed here keeps hearing
of new tokens whichever manager serves; stopping waits for a refresh in flight until its answer is saved.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from keepline.credentials.lifecycle import TokenState
from keepline.credentials.manager import TokenManager
from keepline.credentials.token import Token
from keepline.daemon.parts import Part
from keepline.errors import StorageError, TokenUnavailable

__all__ = ["CredentialPart"]

log = logging.getLogger("keepline.daemon")

_SAVE_SECONDS = 15.0
"""For a save after the answer came, on a disk that is slow."""

_FACTS = (
    "generation",
    "fingerprint",
    "expires_at",
    "expires_in_seconds",
    "signin_deadline",
    "signin_in_seconds",
    "next_refresh_at",
    "unsaved_generation",
    "storage",
)


class CredentialPart(Part):
    """Keeps one credential; answers the daemon's socket for it.

    Args:
        credential: the credential's name.
        make_manager: makes a manager that was never started.
        refresh_timeout: seconds that an exchange with the issuer may take.
    """

    def __init__(
        self,
        credential: str,
        make_manager: Callable[[], TokenManager],
        *,
        refresh_timeout: float,
    ) -> None:
        self.credential = credential
        self.name = f"credential {credential}"
        self.drain_seconds = refresh_timeout + _SAVE_SECONDS
        self.current: Token | None = None
        self.start_error: StorageError | None = None
        self._make_manager = make_manager
        self._manager: TokenManager | None = None
        self._followers: list[Callable[[Token], Any]] = []

    # --- a part ---

    async def start(self) -> None:
        manager = await asyncio.to_thread(self._make_manager)
        manager.subscribe(self._tell)
        try:
            await manager.start()
        except StorageError as error:
            self.start_error = error
            raise
        self.start_error = None
        self._manager = manager

    async def stop(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.stop()

    def ready(self) -> tuple[bool, str]:
        status = self.status()
        state = str(status["state"])
        left = status["expires_in_seconds"]
        if left is not None and left <= 0:
            return False, f"{state}: no valid token; {status['last_error'] or 'none came yet'}"
        if state == TokenState.SIGN_IN_REQUIRED.name:
            return False, f"{state}: run keepline login {self.credential}"
        if self.current is None:
            return False, f"{state}: no token yet"
        if status["unsaved_generation"]:
            return False, f"generation {status['unsaved_generation']} is in memory only"
        return True, f"{state}, generation {status['generation']}"

    # --- a source of tokens ---

    async def get(self, *, newer_than: int | None = None) -> Token:
        return await self._serving().get(newer_than=newer_than)

    async def force_refresh(self, *, than: int | None = None) -> Token:
        return await self._serving().force_refresh(than=than)

    def subscribe(self, callback: Callable[[Token], Any]) -> Callable[[], None]:
        """Call `callback` with each token from now on; the answer ends that, twice does no harm."""
        self._followers.append(callback)

        def remove() -> None:
            if callback in self._followers:
                self._followers.remove(callback)

        return remove

    def status(self) -> Mapping[str, Any]:
        """As `TokenManager.status`; the reason why there is none, when there is none."""
        if self._manager is not None:
            return self._manager.status()
        reason = "stopped" if self.start_error is None else str(self.start_error)
        nothing = dict.fromkeys(_FACTS)
        return {"name": self.credential, "state": "STOPPED", **nothing, "last_error": reason}

    def _serving(self) -> TokenManager:
        if self._manager is None:
            raise self.start_error or TokenUnavailable(
                f"{self.credential} is not being kept just now", credential=self.credential
            )
        return self._manager

    def _tell(self, token: Token) -> None:
        self.current = token
        for follower in list(self._followers):
            try:
                follower(token)
            except Exception:
                log.exception("%s: a follower failed; the others were told", self.credential)

    def __repr__(self) -> str:
        return f"<CredentialPart {self.credential} {self._manager or 'stopped'}>"
