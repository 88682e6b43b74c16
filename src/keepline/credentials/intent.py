"""The note that a refresh token is about to be spent, and what it means after a crash.

Invariants: it holds fingerprints, never a token; it is on the disk before the request leaves; one that says the same
already is not written over, so the first interruption keeps its time.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from keepline import files, telemetry
from keepline.clock import Clock
from keepline.credentials.token import Token, fingerprint
from keepline.errors import StorageError

__all__ = ["IntentRecord", "Interruption"]

log = logging.getLogger("keepline.credentials")


@dataclass(frozen=True, slots=True)
class Interruption:
    """A refresh was begun and its answer never saved: the refresh token in the store may be spent.

    Attributes:
        begun_at: when (aware UTC).
        generation: of the token whose refresh token was to be spent.
        fingerprint: of that refresh token.
    """

    begun_at: datetime
    generation: int
    fingerprint: str


class _Intent(msgspec.Struct, frozen=True):
    v: int
    begun_at: Annotated[datetime, msgspec.Meta(tz=True)]
    generation: int
    fingerprint: str
    access_fingerprint: str


class IntentRecord:
    """The record's file, beside the token's.

    Args:
        path: the record's own path.
        clock: for its time.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock

    def begin(self, spending: Token) -> bool:
        """Note it durably; False when there is nothing to spend or an earlier record says the same already.

        Raises:
            StorageError: the note is not on the disk: do not spend.
        """
        if not spending.refresh_token:
            return False
        spent, access = fingerprint(spending.refresh_token), spending.fingerprint
        earlier = self._read()
        if earlier is not None and (earlier.fingerprint, earlier.access_fingerprint) == (
            spent,
            access,
        ):
            return False
        intent = _Intent(1, self._clock.wall(), spending.generation, spent, access)
        files.write_private(self.path, msgspec.json.encode(intent))
        return True

    def interruption(self, load: Callable[[], Token | None]) -> Interruption | None:
        """The refresh that was begun with the stored token and never saved, None when there is none.

        Args:
            load: gives the stored token; when it cannot, the interruption is true all the same.
        """
        intent = self._read()
        if intent is None:
            return None
        try:
            stored = load()
        except StorageError:
            pass
        else:
            if stored is None or stored.fingerprint != intent.access_fingerprint:
                return None  # the answer was saved; only the record was not dropped
        return Interruption(intent.begun_at, intent.generation, intent.fingerprint)

    def _read(self) -> _Intent | None:
        try:
            data = files.read_private(self.path)
            return None if data is None else msgspec.json.decode(data, type=_Intent)
        except (StorageError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            telemetry.event(
                log,
                logging.WARNING,
                "The intent record cannot be read",
                path=str(self.path),
                reason=str(error),
            )
            return None

    def __repr__(self) -> str:
        return f"<IntentRecord {self.path}>"
