"""Keeps a receiver's newest token encrypted, so that a bot that restarts has it before the next push.

Invariants: saving never holds a push up: it happens on a thread, and only the newest token is saved; a token that
cannot be read or saved is said and stops nothing; what was still to be saved at `close` is.
"""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from keepline.clock import Clock
from keepline.credentials.token import Token
from keepline.errors import KeeplineError
from keepline.files import expanded
from keepline.relay.mailbox import ThreadCourier

if TYPE_CHECKING:
    from keepline.credentials.storage import TokenStorage

__all__ = ["TokenKeeper"]

log = logging.getLogger("keepline.relay")


class TokenKeeper:
    """The encrypted file behind a receiver.

    Args:
        path: the file, in the format of `TokenStorage`.
        clock: tells whether a token still lives.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Clock) -> None:
        self._path = expanded(path, key="persist_path")
        self._clock = clock
        self._storage: TokenStorage | None = None
        self._courier: ThreadCourier | None = None
        self._on_trouble: Callable[[str | None], None] = lambda trouble: None

    def open(self, *, on_trouble: Callable[[str | None], None]) -> Token | None:
        """Get ready to save; may block for the key derivation.

        Args:
            on_trouble: told why a token could not be saved, and with None when a later one was.

        Returns:
            The token of the last run, None when there is none that lives.
        """
        self._on_trouble = on_trouble
        self._courier = ThreadCourier(self._save, full=True, clock=self._clock, drain=True)
        self._courier.open()
        try:
            token = self._store().load()
        except KeeplineError as error:
            log.warning("The token of the last run cannot be read: %s", error)
            return None
        return None if token is None or token.is_expired(self._clock.wall()) else token

    def put(self, token: Token, arrived: float) -> None:
        """Save a token soon."""
        if self._courier is not None:
            self._courier.put(token, arrived)

    def close(self) -> None:
        """Save what is left, on the thread, and end it."""
        if self._courier is not None:
            self._courier.close()
            self._courier = None

    def forget_after_fork(self) -> None:
        """In a forked child: the thread is not here."""
        self._courier = None

    def _save(self, token: Token) -> None:
        try:
            self._store().store(token)
        except KeeplineError as error:
            self._on_trouble(f"the token came and could not be saved: {error}")
        else:
            self._on_trouble(None)

    def _store(self) -> "TokenStorage":
        if self._storage is None:
            from keepline.credentials.storage import TokenStorage

            self._storage = TokenStorage(self._path, clock=self._clock)
        return self._storage
