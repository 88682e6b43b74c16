"""One renewal from the lease to the disk: the order in which a refresh token may be spent.

lease → re-read the store → reserve space and note the intent → ask the issuer → number → save. Invariants: a token
that a sibling process saved is adopted and nothing is spent; nothing is spent that could not be saved, unless the
token in hand is about to die; an answer that was received is never dropped; while an answer is nowhere on disk the
lease is kept, so that no sibling can spend what we spent already.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from keepline.clock import Clock, within
from keepline.credentials.exchange import Exchange, Kind, answer_may_be_lost
from keepline.credentials.lifecycle import NEAR_DEATH_SECONDS
from keepline.credentials.token import NEVER, Token, fingerprint, next_generation
from keepline.errors import APIError, SignInRequired, StorageError, TokenRefused, TransientError
from keepline.telemetry import event

if TYPE_CHECKING:
    from keepline.credentials.issuer import AuthService
    from keepline.credentials.storage import PendingSave, TokenStore

__all__ = ["Lease", "Outcome", "Renewal", "seconds_left", "supersedes"]

log = logging.getLogger("keepline.credentials")

T = TypeVar("T")


class Lease(Protocol):
    """One holder at a time among processes: an asynchronous context manager that waits without end."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one renewal.

    Attributes:
        kind: how it ended.
        token: what the issuer gave or the store held, None after a failure.
        left: seconds of life that the token had at `asked`.
        asked: boottime when it was asked for or read.
        adopted: a sibling's token that was found on the way to a failure, None if none.
        error: why it failed.
        saved: False when the token is in memory only.
        postponed: the failure is ours (disk full): the last moment before death is a good one to try again.
    """

    kind: Kind
    token: Token | None = None
    left: float = 0.0
    asked: float = 0.0
    adopted: Token | None = None
    error: Exception | None = None
    saved: bool = True
    postponed: bool = False

    @property
    def retry_after(self) -> float | None:
        return self.error.retry_after if isinstance(self.error, APIError) else None


def seconds_left(token: Token, wall: datetime) -> float:
    """Seconds until the token dies, never more than its life: a wall clock that is late gives it no second one."""
    if token.expires_at >= NEVER:
        return float("inf")
    return min(token.lifetime, token.expires_at - wall).total_seconds()


def supersedes(found: Token, current: Token | None) -> bool:
    """Whether a token found in the store takes the place of the one in hand.

    A larger generation does; so does a token that a program without generations wrote: other secrets that live
    longer, or a later sign-in.
    """
    if current is None:
        return True
    if _same_secrets(found, current):
        return False
    if found.generation > current.generation or found.expires_at > current.expires_at:
        return True
    deadlines = (found.signin_deadline, current.signin_deadline)
    return deadlines[0] is not None and deadlines[1] is not None and deadlines[0] > deadlines[1]


class Renewal:
    """Runs renewals of one credential, one at a time.

    Attributes:
        spending: True from the reservation on, until the owner has taken up the outcome and resets it: an interruption
            meanwhile could cost the sign-in.
        known: the token that the store held when we last read or wrote it as ours; it is no news.
        lost: words about a refresh whose answer never reached the store, "" if there was none.
    """

    def __init__(
        self,
        issuer: "AuthService",
        store: "TokenStore",
        lease: Lease | None,
        clock: Clock,
        *,
        name: str,
        timeout: float,
    ) -> None:
        self.spending = False
        self.lost = ""
        self.known: Token | None = None
        self._exchange = Exchange(issuer, clock, timeout=timeout)
        self._store = store
        self._lease = lease
        self._clock = clock
        self._name = name
        self._timeout = timeout
        self._holding = False
        self._unsaved = False
        self._unanswered: tuple[str, datetime] | None = None

    @property
    def needs_person(self) -> bool:
        """Whether a first token takes somebody at a browser."""
        return self._exchange.needs_person

    async def load(self) -> Token | None:
        """The token in the store, None if it is empty.

        Raises:
            StorageError: it cannot be read.
        """
        self.known = await self._off_loop(self._store.load)
        return self.known

    async def look(self, current: Token | None) -> Token | None:
        """A token in the store that takes the place of `current`, numbered above it; None if there is none.

        Raises:
            StorageError: the store cannot be read.
        """
        found = await self._off_loop(self._store.load)
        if found is None or _same_secrets(found, self.known) or not supersedes(found, current):
            return None
        if current is not None and found.generation <= current.generation:
            return found.with_generation(next_generation(current.generation, found.issued_at))
        return found

    async def run(
        self,
        base: Token | None,
        *,
        enough: Callable[[Token], bool],
        life_left: float,
        newest: Callable[[], int],
    ) -> Outcome:
        """Get the token after `base`.

        Args:
            base: the token in hand.
            enough: whether a token found in the store ends the search.
            life_left: seconds for which the token in hand can be served.
            newest: the largest generation in use, asked when the answer is numbered.

        Returns:
            How it ended; failures are values.
        """
        try:
            async with self._alone():
                return await self._run(base, enough, life_left, newest)
        except TimeoutError:
            return await self._locked_out(base, enough)
        except StorageError as error:  # the lock file itself
            return Outcome(Kind.FAILED, error=error, postponed=True)

    async def save(
        self, token: Token, *, patience: float | None = None
    ) -> tuple[Token | None, Exception | None]:
        """Save a token that is in memory only.

        Args:
            token: what to save.
            patience: seconds to wait for the lease; the timeout of a renewal unless given.

        Returns:
            A sibling's newer token, which stays in the store instead, or None; and what went wrong, or None.
        """
        try:
            async with self._alone(patience):
                found = await self._stored()
                if found is not None and found.generation > token.generation:
                    return found, None
                return None, await self._save(None, token)
        except (TimeoutError, StorageError) as error:
            return None, error

    async def close(self) -> None:
        """Give the lease back, saved or not."""
        await self._release()

    # --- one renewal under the lease ---

    async def _run(
        self,
        base: Token | None,
        enough: Callable[[Token], bool],
        life_left: float,
        newest: Callable[[], int],
    ) -> Outcome:
        try:
            adopted = await self.look(base)
        except StorageError as error:
            if life_left >= NEAR_DEATH_SECONDS:
                return Outcome(Kind.FAILED, error=error, postponed=True)
            adopted = None
            self._warn("Store unreadable", str(error))
        if adopted is not None and enough(adopted):
            return self._adoption(adopted)
        self.spending = True
        outcome = await self._spend(adopted or base, life_left, newest)
        return replace(outcome, adopted=adopted)

    async def _spend(
        self, base: Token | None, life_left: float, newest: Callable[[], int]
    ) -> Outcome:
        # only under the lease: before, the intent may be that of a sibling whose answer is on its way
        self.lost = await self._off_loop(self._interruption, base) or self._unanswered_by(base)
        if self.lost:
            self._warn("Refresh was interrupted", self.lost)
        try:
            pending = await self._off_loop(self._store.prepare, base)
        except StorageError as error:
            if life_left >= NEAR_DEATH_SECONDS:
                return Outcome(Kind.FAILED, error=error, postponed=True)
            pending = None
            self._warn("No room to save the next token, and this one is about to die", str(error))
        asked, wall = self._clock.boottime(), self._clock.wall()
        try:
            kind, token = await self._exchange.after(base, foreign=self._foreign)
        except Exception as error:
            return await self._failure(error, base, pending)
        except BaseException:  # cancelled from outside in the middle: the answer may be on its way
            self._abandon(pending, True)
            raise
        generation = next_generation(max(newest(), base.generation if base else 0), token.issued_at)
        token = token.with_generation(generation)
        unsaved = await self._save(pending, token)
        left = seconds_left(token, wall)
        return Outcome(kind, token, left, asked, error=unsaved, saved=unsaved is None)

    async def _failure(
        self, error: Exception, base: Token | None, pending: "PendingSave | None"
    ) -> Outcome:
        refused = isinstance(error, TokenRefused | SignInRequired)
        lost = not refused and answer_may_be_lost(error)
        if lost and base is not None:
            self._unanswered = (fingerprint(base.refresh_token), self._clock.wall())
        await self._off_loop(self._abandon, pending, lost)
        if not refused:
            return Outcome(Kind.FAILED, error=error)
        # somebody else may have renewed or signed in while we asked: what is in the store now decides
        found = await self._foreign(base)
        return self._adoption(found) if found else Outcome(Kind.REFUSED, error=error)

    async def _stored(self) -> Token | None:
        try:
            return await self._off_loop(self._store.load)
        except StorageError as error:
            self._warn("Store unreadable", str(error))
            return None

    async def _foreign(self, base: Token | None) -> Token | None:
        try:
            return await self.look(base)
        except StorageError as error:
            self._warn("Store unreadable", str(error))
            return None

    async def _save(self, pending: "PendingSave | None", token: Token) -> Exception | None:
        save = self._store.store if pending is None else pending.save
        try:
            await self._off_loop(save, token)
        except Exception as error:  # whatever it is, the token is good and goes on in memory
            await self._off_loop(self._abandon, pending, True)
            self._unsaved = not await self._off_loop(self._siblings_can_read, token)
            return error
        self._unsaved = False
        self.known, self.lost = token, ""
        return None

    def _siblings_can_read(self, token: Token) -> bool:
        """Whether the store keeps the token elsewhere although the save failed: then nobody spends the old one."""
        with contextlib.suppress(Exception):  # in doubt they cannot
            found = self._store.load()
            return found is not None and found.access_token == token.access_token
        return False

    def _abandon(self, pending: "PendingSave | None", answer_lost: bool) -> None:
        if pending is None:
            return
        try:
            pending.abandon(answer_lost=answer_lost)
        except Exception as error:  # whatever it is, an answer in hand must not be dropped for it
            self._warn("The reserved space could not be freed", str(error))

    def _adoption(self, token: Token) -> Outcome:
        left = seconds_left(token, self._clock.wall())
        return Outcome(Kind.ADOPTED, token, left, self._clock.boottime())

    def _interruption(self, base: Token | None) -> str:
        found = self._store.interrupted()
        if found is None or base is None:
            return ""
        if found.fingerprint != fingerprint(base.refresh_token):
            return ""
        return _interrupted(found.begun_at)

    def _unanswered_by(self, base: Token | None) -> str:
        if base is None or self._unanswered is None:
            return ""
        spent, when = self._unanswered
        return _interrupted(when) if spent == fingerprint(base.refresh_token) else ""

    # --- the lease ---

    @contextlib.asynccontextmanager
    async def _alone(self, patience: float | None = None) -> AsyncIterator[None]:
        if not self._holding:
            await self._acquire(self._timeout if patience is None else patience)
        try:
            yield
        finally:
            if not self._unsaved:
                await self._release()

    async def _acquire(self, patience: float) -> None:
        try:
            await within(self._clock, patience, self._enter())
        except BaseException:
            await self._release()
            raise

    async def _enter(self) -> None:
        if self._lease is not None:
            await self._lease.__aenter__()
        self._holding = True

    async def _release(self) -> None:
        if self._holding:
            self._holding = False
            if self._lease is not None:
                await self._lease.__aexit__(None, None, None)

    async def _locked_out(self, base: Token | None, enough: Callable[[Token], bool]) -> Outcome:
        found = await self._foreign(base)
        if found is not None and enough(found):
            return self._adoption(found)
        held = TransientError(
            f"another process has held the lease of {self._name} for {self._timeout:g} s and saved no token yet",
            category="timeout",
            sent=False,
        )
        return Outcome(Kind.FAILED, error=held, adopted=found)

    # --- small things ---

    async def _off_loop(self, function: Callable[..., T], *args: Any) -> T:
        if self._store.path is None:
            return function(*args)
        return await asyncio.to_thread(function, *args)

    def _warn(self, message: str, reason: str) -> None:
        event(log, logging.WARNING, message, credential=self._name, reason=reason)


def _interrupted(when: datetime) -> str:
    return (
        f"a refresh begun at {when:%Y-%m-%d %H:%M:%S %Z} was interrupted before its answer was saved,"
        " so the refresh token may have been spent by it"
    )


def _same_secrets(one: Token, other: Token | None) -> bool:
    return other is not None and (one.access_token, one.refresh_token) == (
        other.access_token,
        other.refresh_token,
    )
