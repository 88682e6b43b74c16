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
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from keepline.clock import Clock, within
from keepline.credentials.exchange import Kind
from keepline.credentials.lifecycle import NEAR_DEATH_SECONDS, Action, Lifecycle, TokenState
from keepline.credentials.owed import OwedSave
from keepline.credentials.policy import TokenManagerConfig
from keepline.credentials.renewal import Outcome, Renewal, seconds_left
from keepline.credentials.reporting import Reporter, iso, reason
from keepline.credentials.token import Token, next_generation
from keepline.errors import SignInRequired

if TYPE_CHECKING:
    from keepline.credentials.history import RotationHistory

__all__ = ["Keeper"]

log = logging.getLogger("keepline.credentials")

_LONGEST_REST = 3600.0
_LAST_PATIENCE = 1.0  # seconds that a stop waits for another process's lease


class Keeper:
    """The working half of a token manager.

    Attributes:
        token: the one in hand, None before the first.
        fresh_until: boottime until which it may be served; -inf when it may not.
        lifecycle: the clocks.
        last_error: why the last errand failed, None once a token came.
        signin: what a person must do, None while nobody must.
        attempt: the number of the last attempt within its cycle.
        wanted: somebody asked for a renewal that has not begun.
    """

    def __init__(
        self,
        config: TokenManagerConfig,
        renewal: Renewal,
        clock: Clock,
        *,
        history: "RotationHistory | None",
        on_token: Callable[[Token], None],
        on_change: Callable[[], None],
        on_rest: Callable[[], None],
    ) -> None:
        self.token: Token | None = None
        self.fresh_until = -math.inf
        self.lifecycle = Lifecycle(config)
        self.last_error: Exception | None = None
        self.signin: SignInRequired | None = None
        self.attempt = 0
        self.wanted = False
        self._sent_for = False
        self._config = config
        self._renewal = renewal
        self._clock = clock
        self._history = history
        self._on_token = on_token
        self._on_change = on_change
        self._on_rest = on_rest
        self._report = Reporter(config.name)
        self._errand: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._nudge = asyncio.Event()
        self._said = TokenState.INITIAL
        self._mourned: Token | None = None
        self._closed = False
        self._owed = OwedSave(self._report)

    # --- life ---

    async def open(self) -> None:
        """Read the store and begin to keep.

        Raises:
            StorageError: it cannot be read; nothing was begun.
        """
        stored = await self._renewal.load()
        if self._renewal.lost:
            self._report.says(logging.WARNING, "Refresh was interrupted", reason=self._renewal.lost)
        if self.token is not None:  # handed in before the start
            self._put_above(self.token, stored)
        elif stored is not None:
            self._take(stored, self._left(stored))
            self._tell("Token loaded", stored, source="store")
        elif self._renewal.needs_person:
            self._require_signin(self._report.signin("no token yet"))
        else:
            self.lifecycle.empty(self.now)
        self._task = asyncio.ensure_future(self._keep())
        self.tend()

    async def close(self) -> None:
        """End; what was sent is waited for and saved, and a save that is owed is tried a last time."""
        self._closed = True
        self.wake()
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
        return self._task is not None

    @property
    def renewing(self) -> bool:
        """Whether a renewal is under way, or was sent for in this very turn of the loop."""
        begun = self._errand is not None and self.lifecycle.state is TokenState.REFRESHING
        return begun or self._sent_for

    @property
    def busy(self) -> bool:
        """Whether an errand runs or is about to."""
        return self._errand is not None or self.wanted

    @property
    def now(self) -> float:
        return self._clock.boottime()

    @property
    def generation(self) -> int:
        """Of the token in hand, 0 without one."""
        return self.token.generation if self.token else 0

    @property
    def unsaved_generation(self) -> int:
        """The generation whose save failed, 0 if none."""
        return self._owed.failed_generation

    def serves(self, newer_than: int = -1) -> bool:
        """Whether the token in hand may be served to someone who wants one newer than that generation."""
        return self.now < self.fresh_until and self.generation > newer_than

    # --- what is asked of it ---

    def demand(self) -> None:
        """Begin a renewal now, or join the one under way."""
        if not self.renewing:
            self.wanted = True
            self.tend()

    def hand_in(self, token: Token) -> Token:
        """Take up a token from outside; as it was numbered."""
        if token.generation <= self.generation:
            token = token.with_generation(next_generation(self.generation, token.issued_at))
        self._take(token, self._left(token))
        self._owed.owe(token, self.now)
        self._tell("Token updated", token, source="outside")
        if self.opened:
            self.tend()
        self._nudge.set()
        return token

    def tend(self) -> None:
        """Look at the clock and start what is due, unless something runs already."""
        action = self.wake()
        if self._errand is not None or self._closed:
            return
        if self._owed.due <= self.now:
            self._send(self._save)
        elif self.lifecycle.state is TokenState.SIGN_IN_REQUIRED:
            if self.wanted or action is Action.LOOK:
                self._send(self._look)
        elif self.wanted or action is Action.RENEW:
            self._send(self._renew)

    def wake(self) -> Action:
        """Let the clocks catch up; what is due."""
        now = self.now
        action = self.lifecycle.wake(now)
        left = self.lifecycle.warning(now)
        if left is not None and self.token is not None:
            self._report.signin_soon(self.token.signin_deadline, left)
        self._speak_of_state()
        self.fresh_until = -math.inf if self._closed else self.lifecycle.fresh_until
        self._on_change()
        return action

    def when(self, boottime: float | None) -> datetime | None:
        """That moment on the wall clock, None for never."""
        if boottime is None or not math.isfinite(boottime):
            return None
        with contextlib.suppress(OverflowError):
            return self._clock.wall() + timedelta(seconds=boottime - self.now)
        return None

    # --- one timer, one errand ---

    async def _keep(self) -> None:
        while True:
            self._nudge.clear()
            try:
                self.tend()
            except Exception:
                log.exception("%s: the keeper stumbled and goes on", self._report.name)
            busy = self._errand is not None
            wake = math.inf if busy else min(self.lifecycle.next_wake, self._owed.due)
            with contextlib.suppress(TimeoutError):
                rest = min(wake - self.now, _LONGEST_REST)
                await within(self._clock, rest, self._nudge.wait())

    def _send(self, errand: Callable[[], Awaitable[None]]) -> None:
        if errand != self._save:
            self.wanted = False
        self._sent_for = errand == self._renew
        self._errand = asyncio.ensure_future(self._run(errand))

    async def _run(self, errand: Callable[[], Awaitable[None]]) -> None:
        try:
            await errand()
        except Exception as error:
            log.exception("%s: an errand failed unexpectedly", self._report.name)
            self.last_error = error
            if self.lifecycle.state is TokenState.REFRESHING:
                self.lifecycle.failed(self.now, chance=self._clock.chance())
        finally:
            self._errand, self._sent_for = None, False
            self.wake()
            self._on_rest()
            self._nudge.set()

    # --- renewal ---

    async def _renew(self) -> None:
        base = self.token
        self._sent_for = False
        self.attempt = self.lifecycle.begin(self.now)
        try:
            outcome = await self._renewal.run(
                base,
                enough=self._is_enough,
                life_left=self.lifecycle.life_left(self.now),
                newest=lambda: self.generation,
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
        return self._left(found) > self._config.buffer(found.lifetime.total_seconds())

    def _succeed(self, outcome: Outcome, base: Token | None) -> None:
        token = outcome.token
        assert token is not None
        held = self.token
        if held is not None and held is not base and _outlasts(held, token):
            # a new sign-in was handed in meanwhile, and the answer was saved over it: it goes on top again
            self.hand_in(held.with_generation(next_generation(token.generation, held.issued_at)))
            return
        cycle = self.lifecycle.cycle
        token = self._settle_number(token, outcome)
        if outcome.kind is Kind.ADOPTED:
            self._adopt(token)
            return
        self._take(token, outcome.left - (self.now - outcome.asked), renewed=True)
        self._tell("Token refreshed", token, cycle=cycle, attempt=self.attempt)

    def _settle_number(self, token: Token, outcome: Outcome) -> Token:
        """The token, numbered above the one in hand; what is not saved under that number is owed."""
        if token.generation <= self.generation:
            token = token.with_generation(next_generation(self.generation, token.issued_at))
            self._owed.owe(token, self.now)
        elif outcome.saved:
            self._owed.paid()
        else:
            self._owed.tried(token, outcome.error, self.now, self._clock.chance())
        return token

    def _fail(self, outcome: Outcome, base: Token | None) -> None:
        if outcome.adopted is not None:
            self._adopt(outcome.adopted)
        elif self.token is not base:
            return  # a token was handed in meanwhile: the failure is about the old one
        self.last_error = outcome.error
        if outcome.kind is Kind.REFUSED:
            lost, person = self._renewal.lost, self._renewal.needs_person
            self._require_signin(
                self._report.refusal(outcome.error, lost=lost, needs_person=person)
            )
        else:
            self.lifecycle.failed(
                self.now,
                chance=self._clock.chance(),
                retry_after=outcome.retry_after,
                latest=self._last_moment if outcome.postponed else math.inf,
            )
        self._report.says(
            logging.WARNING,
            "Token refresh failed",
            cycle=self.lifecycle.cycle,
            attempt=self.attempt,
            reason=reason(outcome.error),
            next=iso(self.when(self.lifecycle.retry_at)),
        )

    @property
    def _last_moment(self) -> float:
        """Just inside the time in which an unsavable answer is better than none."""
        return self.lifecycle.expires - NEAR_DEATH_SECONDS + 1.0

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
        try:
            found = await self._renewal.look(self.token)
        except OSError as error:
            self.last_error, found = error, None
        if found is not None:
            self._adopt(found)
        elif self.token is not None and self._deadline_lies_ahead(self.token):
            self._take(self.token, self._left(self.token), signin_again=True)
        else:
            self.lifecycle.looked(self.now)

    def _deadline_lies_ahead(self, token: Token) -> bool:
        """Whether the deadline passed only by a wall clock that was wrong when the token was loaded."""
        refused = self.signin is not None and self.signin.__cause__ is not None
        return not refused and token.signin_deadline is not None and self._signin_left(token) > 0

    # --- a token is taken up ---

    def _take(
        self, token: Token, left: float, *, renewed: bool = False, signin_again: bool = False
    ) -> None:
        before = self.token
        known = before is not None and before.signin_deadline == token.signin_deadline
        self.lifecycle.take(
            self.now,
            lifetime=token.lifetime.total_seconds(),
            left=left,
            signin_left=None if known and not signin_again else self._signin_left(token),
            renewed=renewed,
        )
        self.token = token
        self.signin = self.last_error = None
        self.wake()

    def _adopt(self, token: Token) -> None:
        self._renewal.known = token
        self._take(token, self._left(token))
        self._tell("Token updated", token, source="store")

    def _tell(self, message: str, token: Token, **fields: object) -> None:
        following = iso(self.when(self.lifecycle.retry_at))
        expires_in = round(self.lifecycle.expires - self.now, 1)
        self._report.token(message, token, **fields, next=following, expires_in_seconds=expires_in)
        self._on_token(token)

    def _put_above(self, token: Token, stored: Token | None) -> None:
        if stored is not None and stored.generation >= token.generation:
            token = token.with_generation(next_generation(stored.generation, token.issued_at))
        if stored is not None and not token.refresh_token:
            token = replace(
                token,
                refresh_token=stored.refresh_token,
                signin_deadline=token.signin_deadline or stored.signin_deadline,
            )
        self._take(token, self._left(token))
        self._owed.owe(token, self.now)

    def _left(self, token: Token) -> float:
        return seconds_left(token, self._clock.wall())

    def _signin_left(self, token: Token) -> float:
        if token.signin_deadline is None:
            return math.inf
        return (token.signin_deadline - self._clock.wall()).total_seconds()

    def _require_signin(self, signin: SignInRequired) -> None:
        self.signin = signin
        self.lifecycle.refused(self.now)
        self.wake()

    def _speak_of_state(self) -> None:
        state = self.lifecycle.state
        if state is TokenState.SIGN_IN_REQUIRED and self.signin is None:
            deadline = iso(self.token.signin_deadline) if self.token else None
            self.signin = self._report.signin(f"the sign-in ended at {deadline}")
        if state is self._said:
            return
        self._said = state
        if state is TokenState.SIGN_IN_REQUIRED and self.signin is not None:
            words, command = str(self.signin.args[0]), self.signin.command
            self._report.says(logging.ERROR, "Sign-in required", reason=words, command=command)
        elif state is TokenState.EXPIRED and self._mourned is not self.token:
            self._mourned = self.token
            self._report.says(logging.WARNING, "Token expired", generation=self.generation)

    # --- saves that are owed ---

    async def _save(self) -> None:
        token = self._owed.token
        if token is None:
            return
        newer, error = await self._renewal.save(token)
        if self._owed.token is not token:
            return  # a newer one was handed in meanwhile and is saved next
        self._owed.tried(token, error, self.now, self._clock.chance())
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
