"""Keeps one token: one timer, one errand at a time, what is due is started and what comes back is taken up.

Invariants: an errand (renewal, look into the store, save) runs in a task of its own that no caller can cancel, and
never two at once; a token that could not be saved is served all the same and its save is owed until it succeeds.
When to do what is decided by `lifecycle`, how a renewal goes by `renewal`, and who is told by the manager.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from keepline.clock import LONGEST_LOOK_AWAY, Clock, within
from keepline.credentials.exchange import Kind
from keepline.credentials.holding import Holding
from keepline.credentials.lifecycle import NEAR_DEATH_SECONDS, Action, TokenState
from keepline.credentials.owed import OwedSave
from keepline.credentials.policy import TokenManagerConfig
from keepline.credentials.renewal import Outcome, Renewal
from keepline.credentials.reporting import Reporter, iso, reason
from keepline.credentials.token import Token, next_generation

if TYPE_CHECKING:
    from keepline.credentials.history import RotationHistory

__all__ = ["Keeper"]

log = logging.getLogger("keepline.credentials")

_LONGEST_REST = 3600.0
_LAST_PATIENCE = 1.0  # seconds that a stop waits for another process's lease


class Keeper:
    """The working half of a token manager.

    Attributes:
        attempt: the number of the last attempt within its cycle.
        wanted: somebody asked for a renewal that has not begun.
    """

    def __init__(
        self,
        config: TokenManagerConfig,
        held: Holding,
        renewal: Renewal,
        clock: Clock,
        *,
        history: "RotationHistory | None",
        on_rest: Callable[[], None],
    ) -> None:
        self.attempt = 0
        self.wanted = False
        self._config = config
        self._held = held
        self._life = held.lifecycle
        self._renewal = renewal
        self._clock = clock
        self._history = history
        self._on_rest = on_rest
        self._report = Reporter(config.name)
        self._owed = OwedSave(self._report)
        self._errand: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._nudge = asyncio.Event()

    # --- life ---

    async def open(self) -> None:
        """Read the store and begin to keep.

        Raises:
            StorageError: it cannot be read; nothing was begun.
        """
        stored, held = await self._renewal.load(), self._held
        if held.token is not None:  # handed in before the start
            self._put_above(held.token, stored)
        elif stored is not None:
            held.take(stored)
            held.tell("Token loaded", source="store")
        elif self._renewal.needs_person:
            held.require_signin(self._report.signin("no token yet"))
        else:
            self._life.empty(held.now)
        self._task = asyncio.ensure_future(self._keep())
        self.tend()

    async def close(self) -> None:
        """End; what was sent is waited for and saved, and a save that is owed is tried a last time."""
        self._held.closed = True
        self._held.wake()
        errand, keeping = self._errand, self._task
        if errand is not None:
            if not self._renewal.spending:
                errand.cancel()  # nothing was sent: it may be waiting for another process
            await asyncio.wait({errand})
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait({keeping})
        await self._last_save()
        await self._renewal.close()

    @property
    def opened(self) -> bool:
        """Whether it keeps."""
        return self._task is not None

    @property
    def renewing(self) -> bool:
        """Whether a renewal is under way."""
        return self._errand is not None and self._life.state is TokenState.REFRESHING

    @property
    def busy(self) -> bool:
        """Whether an errand runs or is about to."""
        return self._errand is not None or self.wanted

    @property
    def unsaved_generation(self) -> int:
        """The generation whose save failed, 0 if none."""
        return self._owed.failed_generation

    # --- what is asked of it ---

    def demand(self) -> None:
        """Begin a renewal now, or join the one under way."""
        if not self.renewing:
            self.wanted = True
            self.tend()

    def hand_in(self, token: Token) -> None:
        """Take up a token from outside, numbered above the one in hand."""
        held = self._held
        if token.generation <= held.generation:
            token = token.with_generation(next_generation(held.generation, token.issued_at))
        self._take(token)
        self._owed.owe(token, held.now)
        held.tell("Token updated", source="outside")
        if self.opened:
            self.tend()
        self._nudge.set()

    def tend(self) -> None:
        """Look at the clock and start what is due, unless something runs already."""
        action = self._held.wake()
        if self._errand is not None or self._held.closed:
            return
        if self._owed.due <= self._held.now:
            self._errand = asyncio.ensure_future(self._run(self._save))
        elif self._life.state is TokenState.SIGN_IN_REQUIRED:
            if self.wanted or action is Action.LOOK:
                self.wanted = False
                self._errand = asyncio.ensure_future(self._run(self._look))
        elif self.wanted or action is Action.RENEW:
            self.wanted = False
            self.attempt = self._life.begin(
                self._held.now
            )  # now, so that whoever asks next joins it
            self._errand = asyncio.ensure_future(self._run(self._renew))

    # --- one timer, one errand ---

    async def _keep(self) -> None:
        while True:
            self._nudge.clear()
            rest = _LONGEST_REST
            try:
                self.tend()
                if self._errand is None:
                    rest = min(self._life.next_wake, self._owed.due) - self._held.now
            except Exception:
                log.exception("%s: the keeper stumbled and goes on", self._report.name)
                rest = LONGEST_LOOK_AWAY
            with contextlib.suppress(TimeoutError):
                await within(self._clock, min(rest, _LONGEST_REST), self._nudge.wait())

    async def _run(self, errand: Callable[[], Awaitable[None]]) -> None:
        try:
            await errand()
        except Exception as error:
            log.exception("%s: an errand failed unexpectedly", self._report.name)
            self._held.last_error = error
            if self._life.state is TokenState.REFRESHING:
                self._life.failed(self._held.now, chance=self._clock.chance())
        finally:
            self._errand = None
            self._held.wake()
            self._on_rest()
            self._nudge.set()

    # --- renewal ---

    async def _renew(self) -> None:
        base = self._held.token
        try:
            outcome = await self._renewal.run(
                base,
                enough=self._is_enough,
                life_left=self._life.life_left(self._held.now),
                newest=lambda: self._held.generation,
            )
            self._apply(outcome, base)
            await self._remember(outcome, base)
        finally:
            self._renewal.spending = False

    def _apply(self, outcome: Outcome, base: Token | None) -> None:
        self._report.counts(outcome.kind.value)
        if outcome.kind in (Kind.FAILED, Kind.REFUSED):
            self._fail(outcome, base)
        else:
            self._succeed(outcome, base)

    def _is_enough(self, found: Token) -> bool:
        return self._held.left(found) > self._config.buffer(found.lifetime.total_seconds())

    def _succeed(self, outcome: Outcome, base: Token | None) -> None:
        token, held = outcome.token, self._held.token
        assert token is not None
        if held is not None and held is not base and _outlasts(held, token):
            # a new sign-in was handed in meanwhile, and the answer was saved over it: it goes on top again
            self.hand_in(held.with_generation(next_generation(token.generation, held.issued_at)))
            return
        cycle = self._life.cycle
        token = self._settle_number(token, outcome)
        if outcome.kind is Kind.ADOPTED:
            self._adopt(token)
            return
        self._take(token, left=outcome.left - (self._held.now - outcome.asked), renewed=True)
        self._held.tell("Token refreshed", cycle=cycle, attempt=self.attempt)

    def _settle_number(self, token: Token, outcome: Outcome) -> Token:
        """The token, numbered above the one in hand; what is not saved under that number is owed."""
        now, newest = self._held.now, self._held.generation
        if token.generation <= newest:
            token = token.with_generation(next_generation(newest, token.issued_at))
            self._owed.owe(token, now)
        elif outcome.saved:
            self._owed.paid()
        else:
            self._owed.tried(token, outcome.error, now, self._clock.chance())
        return token

    def _fail(self, outcome: Outcome, base: Token | None) -> None:
        if outcome.adopted is not None:
            self._adopt(outcome.adopted)
        elif self._held.token is not base:
            return  # a token was handed in meanwhile: the failure is about the old one
        self._held.last_error = outcome.error
        if outcome.kind is Kind.REFUSED:
            lost, person = self._renewal.lost, self._renewal.needs_person
            refusal = self._report.refusal(outcome.error, lost=lost, needs_person=person)
            self._held.require_signin(refusal)
        else:
            self._try_later(outcome)
        self._report.says(
            logging.WARNING,
            "Token refresh failed",
            cycle=self._life.cycle,
            attempt=self.attempt,
            reason=reason(outcome.error),
            next=iso(self._held.when(self._life.retry_at)),
        )

    def _try_later(self, outcome: Outcome) -> None:
        last_moment = math.inf
        if (
            outcome.postponed
        ):  # just inside the time in which an unsavable answer is better than none
            last_moment = self._life.expires - NEAR_DEATH_SECONDS + 1.0
        self._life.failed(
            self._held.now,
            chance=self._clock.chance(),
            retry_after=outcome.retry_after,
            latest=last_moment,
        )

    async def _remember(self, outcome: Outcome, base: Token | None) -> None:
        token = outcome.token or base
        if self._history is None or token is None:
            return
        words, at = reason(outcome.error), self._clock.wall()
        try:
            await asyncio.to_thread(
                self._history.append, token, outcome=outcome.kind.value, reason=words, at=at
            )
        except OSError as error:
            self._report.says(logging.WARNING, "History not written", reason=reason(error))

    async def _look(self) -> None:
        """Whether somebody signed in elsewhere."""
        token = self._held.token
        try:
            found = await self._renewal.look(token)
        except OSError as error:
            self._held.last_error, found = error, None
        if self._held.token is not token:
            return  # a token was handed in meanwhile
        if found is not None:
            self._adopt(found)
        elif token is not None and self._deadline_lies_ahead(token):
            self._held.take(token, again=True)
        else:
            self._life.looked(self._held.now)

    def _deadline_lies_ahead(self, token: Token) -> bool:
        """Whether the deadline passed only by a wall clock that was wrong when the token was loaded."""
        signin = self._held.signin
        refused = signin is not None and signin.__cause__ is not None
        return not refused and self._held.signin_left(token) > 0

    # --- a token is taken up ---

    def _take(self, token: Token, *, left: float | None = None, renewed: bool = False) -> None:
        self.wanted = False  # whoever asked for a new one has it
        self._held.take(token, left=left, renewed=renewed)

    def _adopt(self, token: Token) -> None:
        self._renewal.known = token
        self._take(token)
        self._held.tell("Token updated", source="store")

    def _put_above(self, token: Token, stored: Token | None) -> None:
        if stored is not None and stored.generation >= token.generation:
            token = token.with_generation(next_generation(stored.generation, token.issued_at))
        if stored is not None and not token.refresh_token:
            token = replace(
                token,
                refresh_token=stored.refresh_token,
                signin_deadline=token.signin_deadline or stored.signin_deadline,
            )
        self._take(token)
        self._owed.owe(token, self._held.now)

    # --- saves that are owed ---

    async def _save(self) -> None:
        token = self._owed.token
        if token is None:
            return
        newer, error = await self._renewal.save(token)
        if self._owed.token is not token:
            return  # a newer one was handed in meanwhile and is saved next
        self._owed.tried(token, error, self._held.now, self._clock.chance())
        if newer is not None:
            self._adopt(newer)

    async def _last_save(self) -> None:
        token = self._owed.token
        if token is not None:
            _, error = await self._renewal.save(token, patience=_LAST_PATIENCE)
            self._owed.tried_last(token, error)


def _outlasts(held: Token, answer: Token) -> bool:
    """Whether a token that was handed in comes from a later sign-in than an answer that was on its way."""
    if held.signin_deadline is None or answer.signin_deadline is None:
        return False
    return held.signin_deadline > answer.signin_deadline
