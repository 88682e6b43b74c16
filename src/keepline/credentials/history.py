"""What became of each renewal: a private file of JSON lines with fingerprints, never tokens.

Invariants: a record holds no secret; the file never grows above 1,000 records by more than one; a line that a crash
tore in half costs that line and no other.
"""

import logging
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from keepline import files, telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.token import Token

__all__ = ["Rotation", "RotationHistory"]

log = logging.getLogger("keepline.credentials")

LONGEST = 1000
"""Records after which the file is cut down: three weeks at one renewal every 25 minutes is about 1,200."""

KEPT = 500
"""The newest records that stay when it is cut down."""

_REASON_CHARACTERS = 300
_LIMIT_BYTES = 4 << 20


Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Rotation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt to renew a token.

    Attributes:
        at: when it ended.
        generation: of the token that came, or of the one that was to be renewed when none came.
        fingerprint: of the same token's access token.
        issued_at: when that token was issued.
        expires_at: when it dies.
        outcome: one word, for example `refreshed`, `adopted`, `signed_in`, `refused`, `failed`.
        reason: why, "" when there is nothing to say.
    """

    at: Moment
    generation: int
    fingerprint: str
    issued_at: Moment
    expires_at: Moment
    outcome: str
    reason: str = ""


class RotationHistory:
    """The list of rotations, in a file or (path None) in memory.

    Args:
        path: a private file, made at the first record.
        clock: for the time of a record.
    """

    def __init__(self, path: Path | None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = path
        self._clock = clock
        self._records: list[Rotation] = []

    def append(
        self, token: Token, *, outcome: str, reason: str = "", at: datetime | None = None
    ) -> Rotation:
        """Add a record; blocks for the length of one short write when there is a file.

        Args:
            token: what came, or what was to be renewed.
            outcome: one word.
            reason: words for a person; anything that looks like a secret is taken out.
            at: when it ended (aware); now unless given.

        Returns:
            The record as written.

        Raises:
            StorageError: the file cannot be written; the renewal itself is not affected.
        """
        record = Rotation(
            at=at or self._clock.wall(),
            generation=token.generation,
            fingerprint=token.fingerprint,
            issued_at=token.issued_at,
            expires_at=token.expires_at,
            outcome=outcome,
            reason=telemetry.redact(reason)[:_REASON_CHARACTERS],
        )
        if self.path is None:
            self._records = [*self._records, record][-LONGEST:]
        else:
            self._write(self.path, record)
        return record

    def read(self) -> list[Rotation]:
        """All records, oldest first.

        Raises:
            StorageError: the file is not private or cannot be read.
        """
        if self.path is None:
            return list(self._records)
        return self._parse(self._bytes(self.path))

    def _write(self, path: Path, record: Rotation) -> None:
        line = msgspec.json.encode(record) + b"\n"
        content = self._bytes(path)
        if content.count(b"\n") >= LONGEST:
            newest = [*self._parse(content), record][-KEPT:]
            lines = b"".join(msgspec.json.encode(each) + b"\n" for each in newest)
            return files.write_private(path, lines)
        torn = content and not content.endswith(b"\n")  # by a crash: close that line first
        return files.append_private(path, b"\n" + line if torn else line)

    def _bytes(self, path: Path) -> bytes:
        return files.read_private(path, limit=_LIMIT_BYTES) or b""

    def _parse(self, content: bytes) -> list[Rotation]:
        records, torn = [], 0
        for line in content.splitlines():
            try:
                records.append(msgspec.json.decode(line, type=Rotation))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                torn += bool(line)
        if torn:
            telemetry.event(
                log,
                logging.WARNING,
                "History has unreadable lines",
                path=str(self.path),
                lines=torn,
            )
        return records

    def __repr__(self) -> str:
        return f"<RotationHistory {self.path or 'in memory'}>"
