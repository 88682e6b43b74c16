"""One token in one file, saved so that no crash and no full disk loses it.

The order, which the tests kill at every step: reserve space → fsync → intent record → (the caller spends the refresh
token) → write → fsync → rename → fsync directory → read back and compare → drop the intent. Invariants: the last good
file stands until the new one is on the disk; while an answer is missing the intent record says so; a file that cannot
be understood is moved aside, never overwritten; what the main file does not take goes to the fallback.
"""

import logging
import threading
from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Protocol

from keepline import files, telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.intent import IntentRecord, Interruption
from keepline.credentials.token import Token, next_generation
from keepline.errors import StorageError

__all__ = ["DamagedFile", "FilePendingSave", "Interruption", "TokenCodec", "TokenFile"]

log = logging.getLogger("keepline.credentials")

_SMALLEST_RESERVE = 8192


class DamagedFile(StorageError):
    """The bytes make no sense as what they should be: nobody can read them, so they may be moved aside."""


class TokenCodec(Protocol):
    """How a token lies in the bytes of a file."""

    def load(self, path: Path) -> Token | None:
        """The file's token, None when there is no file.

        Raises:
            DamagedFile: the bytes make no sense.
            StorageError: another reason; the file is good and must not be replaced.
        """
        ...

    def decode(self, data: bytes, path: Path) -> Token:
        """The token in a file's bytes; raises as `load`."""
        ...

    def encode(self, token: Token) -> bytes:
        """The file's new bytes."""
        ...

    def matches(self, saved: Token, token: Token) -> bool:
        """Whether what was read back is what was saved."""
        ...


class TokenFile:
    """A token store over one file; every method may block and may be called from several threads.

    Args:
        path: the file; `<name>.intent` and, when needed, `<name>.damaged` lie beside it.
        codec: how the token is written.
        fallback_directory: where a token goes that the file did not take; the runtime directory unless given.
        credential: for messages.
        clock: for the intent record.
    """

    def __init__(
        self,
        path: Path,
        codec: TokenCodec,
        *,
        fallback_directory: Path | None = None,
        credential: str = "",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = path
        self.codec = codec
        self._fallback_directory = fallback_directory
        self._credential = credential
        self._intent = IntentRecord(path.with_name(f"{path.name}.intent"), clock)
        self._lock = threading.RLock()
        self._seen = 0

    def load(self) -> Token | None:
        """The newer one of the file's token and the one that an earlier failed save put into the fallback.

        Raises:
            StorageError: damaged, wrong key, another credential's, not private.
        """
        with self._lock:
            token = self._newest()
            if token is not None and token.generation < self._seen:
                self._say(
                    logging.WARNING,
                    "The token file went back to an older token",
                    generation=token.generation,
                    seen=self._seen,
                )
            return self._noted(token)

    def store(self, token: Token) -> None:
        """Save a token that was not bought with the stored one, from a sign-in for example.

        Raises:
            StorageError: not saved; the old file stands.
        """
        self.commit(token, None)

    def prepare(self, spending: Token | None) -> "FilePendingSave":
        """Make sure that an answer can be saved, and note that a refresh token is about to be spent.

        Args:
            spending: the token whose refresh token is sent next; None when nothing is spent.

        Raises:
            StorageError: disk full, wrong key, not private: do not spend now.
        """
        with self._lock:
            size = self._check_place()
            reservation = files.reserve(self.path, size)
            try:
                began = spending is not None and self._intent.begin(spending)
            except BaseException:
                reservation.discard()
                raise
            return FilePendingSave(self, reservation, began=began)

    def interrupted(self) -> Interruption | None:
        """The refresh that was begun with the stored token and never saved, None when there is none."""
        with self._lock:
            return self._intent.interruption(self._newest)

    def clear_token(self) -> None:
        """Overwrite and remove everything in which the token could be read.

        Raises:
            StorageError: something could not be removed; the rest was.
        """
        with self._lock:
            failures = []
            for path in (self._fallback(), *self._damaged(), self.path, self._intent.path):
                try:
                    files.erase(path)
                except StorageError as error:
                    failures.append(error)
            if failures:
                raise failures[0]

    def commit(self, token: Token, reservation: files.Reservation | None) -> Token:
        """Save into the reserved space (or new space) and return what the file then holds.

        Raises:
            StorageError: not saved; the message says where the token is kept meanwhile.
        """
        with self._lock:
            try:
                self._make_way()
                token = self._numbered(token)
                saved = self._written(token, reservation)
            except StorageError as error:
                raise self._kept_after(error, self._numbered(token)) from error
            finally:
                if reservation is not None:
                    reservation.discard()
            self._noted(saved)
            self._tidy(self._intent.path)
            self._tidy(self._fallback())
            # a file that counts in whole seconds may know a smaller number than the one that was given out already
            return saved.with_generation(max(saved.generation, token.generation))

    def drop_intent(self) -> None:
        """Forget that a refresh was begun: it is known that nothing was spent."""
        with self._lock:
            self._tidy(self._intent.path)

    def recode(self, codec: TokenCodec) -> None:
        """Write the token again in another form; the old file stands until the new one was read from the disk.

        Raises:
            StorageError: the file keeps its old form.
        """
        with self._lock:
            token = self.load()
            if token is None:
                self.codec = codec
                return
            data = codec.encode(token)
            try:
                with files.reserve(self.path, len(data)) as reservation:
                    reservation.commit(
                        data, check=lambda written: self._check_same(codec, written, token)
                    )
            finally:
                if self._opens(codec):  # even when only the directory could not be synced
                    self.codec = codec
            self._tidy(self._fallback())

    # --- reading ---

    def _newest(self) -> Token | None:
        kept = self._kept_aside()
        try:
            token = self.codec.load(self.path)
        except DamagedFile:
            if kept is None:
                raise
            self._say(logging.ERROR, "The token file is damaged; the token kept aside serves")
            return kept
        if kept is None or (token is not None and token.generation >= kept.generation):
            return token
        self._say(
            logging.WARNING,
            "A newer token was kept aside because its save had failed",
            kept=str(self._fallback()),
            generation=kept.generation,
        )
        return kept

    def _kept_aside(self) -> Token | None:
        path = self._fallback()
        try:
            return self.codec.load(path)
        except StorageError as error:
            self._say(logging.WARNING, "The token kept aside cannot be read", reason=str(error))
            return None

    def _noted(self, token: Token | None) -> Token | None:
        if token is not None:
            self._seen = max(self._seen, token.generation)
        return token

    def _numbered(self, token: Token) -> Token:
        if token.generation > 0:
            return token
        return token.with_generation(next_generation(self._seen, token.issued_at))

    # --- writing ---

    def _check_place(self) -> int:
        """Refuse a file that is good but not ours to replace; the size to reserve otherwise."""
        try:
            self._noted(self.codec.load(self.path))
        except DamagedFile as error:
            self._say(logging.WARNING, "The token file is damaged", reason=str(error))
        size = self.path.stat().st_size if self.path.exists() else 0
        return max(_SMALLEST_RESERVE, 2 * size)

    def _written(self, token: Token, reservation: files.Reservation | None) -> Token:
        data = self.codec.encode(token)
        (reservation or files.reserve(self.path, len(data))).commit(data)
        saved = self.codec.load(self.path)
        if saved is None or not self.codec.matches(saved, token):
            raise StorageError("what was read back is not what was saved", path=self.path)
        return saved

    def _make_way(self) -> None:
        try:
            self._noted(self.codec.load(self.path))
        except DamagedFile as error:
            aside = next(path for path in self._aside_names() if not path.exists())
            self.path.rename(aside)
            self._say(
                logging.WARNING,
                "The damaged token file was moved aside",
                moved_to=str(aside),
                reason=str(error),
            )

    def _kept_after(self, error: StorageError, token: Token) -> StorageError:
        path = self._fallback()
        try:
            if self._fallback_directory is None:
                files.runtime_directory()
            files.write_private(path, self.codec.encode(token))
            fate = f"it is kept in {path} until a save succeeds"
        except StorageError as second:
            fate = f"and it could not be kept elsewhere ({second}), so only this process has it"
        failure = StorageError(
            f"the new token is not saved: {error.args[0]}; {fate}",
            path=self.path,
            credential=self._credential,
        )
        failure.errno = error.errno
        return failure

    def _opens(self, codec: TokenCodec) -> bool:
        try:
            return codec.load(self.path) is not None
        except StorageError:
            return False

    def _check_same(self, codec: TokenCodec, written: bytes, token: Token) -> None:
        if not codec.matches(codec.decode(written, self.path), token):
            raise StorageError("what was read back is not what was written", path=self.path)

    def _tidy(self, path: Path) -> None:
        try:
            files.erase(path)
        except StorageError as error:
            self._say(
                logging.WARNING, "A file is left that could not be removed", reason=str(error)
            )

    # --- names ---

    def _fallback(self) -> Path:
        """Two stores may share a file name, never a path: the path's fingerprint keeps their fallbacks apart."""
        directory = self._fallback_directory or files.runtime_directory(make=False)
        place = sha256(str(self.path.absolute()).encode()).hexdigest()[:8]
        return directory / f"{self.path.name}.{place}.unsaved"

    def _aside_names(self) -> Iterator[Path]:
        name = f"{self.path.name}.damaged"
        yield self.path.with_name(name)
        for number in count(2):
            yield self.path.with_name(f"{name}-{number}")

    def _damaged(self) -> list[Path]:
        if not self.path.parent.is_dir():
            return []
        prefix = f"{self.path.name}.damaged"
        return [each for each in self.path.parent.iterdir() if each.name.startswith(prefix)]

    def _say(self, level: int, message: str, **fields: object) -> None:
        telemetry.event(
            log, level, message, credential=self._credential, path=str(self.path), **fields
        )

    def __repr__(self) -> str:
        return f"<TokenFile {self.path}>"


class FilePendingSave:
    """Space and intent for one answer; may block."""

    def __init__(self, file: TokenFile, reservation: files.Reservation, *, began: bool) -> None:
        self._file = file
        self._reservation: files.Reservation | None = reservation
        self._began = began
        self._unsaved = False

    def save(self, token: Token) -> Token:
        """Save the answer; call it again with the same token after a failure.

        Returns:
            The token as read back from the disk.

        Raises:
            StorageError: the file does not hold it yet; the message says where it is kept meanwhile.
        """
        reservation, self._reservation = self._reservation, None
        self._unsaved = True
        saved = self._file.commit(token, reservation)
        self._unsaved = self._began = False
        return saved

    def abandon(self, *, answer_lost: bool) -> None:
        """There is nothing to save: free the space.

        Args:
            answer_lost: the request may have reached the issuer, so the refresh token may be spent: keep the intent.
        """
        if self._reservation is not None:
            self._reservation.discard()
            self._reservation = None
        if self._began and not answer_lost and not self._unsaved:
            self._file.drop_intent()
            self._began = False

    def __repr__(self) -> str:
        return f"<FilePendingSave for {self._file.path}>"
