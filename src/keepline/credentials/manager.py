"""The front of one credential: serves its token to everyone in the process, and makes them wait within bounds.

Invariants: a valid token costs a caller one look at the clock and no task switch; a token is served until it really
expires unless the venue refused it; who waits is bounded in number and in time, and who gives up disturbs nobody;
all of it happens on one event loop.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.audience import Subscriber, Subscribers, Waiter, WaitingRoom
from keepline.credentials.holding import Holding
from keepline.credentials.keeper import Keeper
from keepline.credentials.lifecycle import TokenState
from keepline.credentials.policy import TokenManagerConfig
from keepline.credentials.renewal import Lease, Renewal
from keepline.credentials.reporting import Reporter, finite, iso, reason
from keepline.credentials.token import Token
from keepline.errors import Closed, ConfigError, TokenUnavailable

if TYPE_CHECKING:
    from keepline.credentials.history import RotationHistory
    from keepline.credentials.issuer import AuthService
    from keepline.credentials.storage import TokenStore

__all__ = ["TokenManager"]

SUBSCRIBER_GRACE_SECONDS = 1.0
"""How long `stop()` lets subscribers' coroutines end."""


class TokenManager:
    """Keeps one credential signed in.

    `await get_token()` is all that a caller needs; the first call starts the manager when nobody did. Use `async
    with`, or `start()` and `stop()`, so that a renewal in flight is saved before the program ends.

    Args:
        config: how to keep it, a TokenManagerConfig or a mapping of its fields.
        auth_service: the issuer.
        storage: where the token lives between runs; None keeps it in memory only.
        lease: one holder among processes; None takes a lock file beside the storage's file.
        history: where rotations are noted, with fingerprints only.
        clock: time and chance.

    Raises:
        ConfigError: a setting is wrong, or `auth_service` is not one.
    """

    def __init__(
        self,
        config: TokenManagerConfig | Mapping[str, object],
        auth_service: "AuthService",
        *,
        storage: "TokenStore | None" = None,
        lease: Lease | None = None,
        history: "RotationHistory | None" = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config = TokenManagerConfig.of(config)
        _check_issuer(auth_service)
        clock = clock or SYSTEM_CLOCK
        self._clock = clock
        # what get_token() touches while the token is valid
        self._boottime = clock.boottime
        self._fresh_until = -math.inf
        self._access_token = ""
        self._store = _memory_store() if storage is None else storage
        self._renewal = Renewal(
            auth_service,
            self._store,
            _lease_beside(self._store, clock) if lease is None else lease,
            clock,
            name=config.name,
            timeout=config.refresh_timeout_seconds,
        )
        self._held = Holding(config, clock, on_token=self._publish, on_change=self._follow)
        self._keeper = Keeper(
            config, self._held, self._renewal, clock, history=history, on_rest=self._settle
        )
        self._report = Reporter(config.name)
        self._queue = WaitingRoom(config.max_queue_depth, clock)
        self._subscribers = Subscribers(config.name)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """The credential's name."""
        return self._config.name

    # --- life ---

    async def start(self) -> None:
        """Read the store and begin to keep the token; returns before a first token is there.

        Raises:
            StorageError: the store cannot be read; nothing was started, a later start may work.
            Closed: it was started or stopped before.
        """
        if self._opening is not None and not self._closed:
            raise Closed(f"{self.name}: the token manager was started already")
        await self._ready()

    async def stop(self) -> None:
        """End: a renewal that was sent is waited for, saved and published; who still waits then gets Closed.

        A second call does no harm.
        """
        self._closed = True
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        await self._keeper.close()
        self._queue.dismiss(lambda _: self._report.closed())
        await self._subscribers.drain(self._clock, SUBSCRIBER_GRACE_SECONDS)

    async def __aenter__(self) -> "TokenManager":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    # --- tokens out ---

    async def get_token(self) -> str:
        """The access token, at once while it is valid.

        Raises:
            SignInRequired: a person must act, and no valid token is left.
            TokenUnavailable: none is valid, and none came within `queue_timeout_seconds` or can before the next
                attempt.
            QueueFull: `max_queue_depth` callers wait already.
            StorageError: the first call starts the manager, and the store cannot be read.
            Closed: the manager was stopped, or belongs to another event loop.
        """
        if self._boottime() < self._fresh_until:
            return self._access_token
        return (await self.get()).access_token

    async def get(self, *, newer_than: int | None = None) -> Token:
        """The token with everything that belongs to it.

        Args:
            newer_than: the generation that the venue refused with HTTP 401. When it is the current one, that token
                counts as unusable: a renewal begins, and everyone, plain callers too, waits for it within the
                queue's bounds. If that renewal fails for a passing reason, plain callers are served the unexpired
                token again: one stray 401 must not stop every bot. When the current generation is newer already, it
                is the answer, and nothing is asked of the issuer.

        Raises:
            As `get_token`. TokenUnavailable also when an attempt failed a moment ago and the next one is not due.
        """
        await self._ready()
        if newer_than is None:
            return await self._next(-1)
        if not self._held.serves(newer_than):
            self._reject(newer_than)
        return await self._next(newer_than)

    async def force_refresh(self, *, than: int | None = None) -> Token:
        """A new token; callers at the same time share one request.

        Args:
            than: the generation that is too old. When the current one is newer, it is the answer and nothing is
                asked of the issuer; after a failed attempt the retry delay is respected. None means now, whatever
                there is: only the issuer's own Retry-After is respected then.

        Raises:
            SignInRequired: a person must act. The store was looked at before.
            TokenUnavailable: the attempt failed; the token in hand, if unexpired, goes on being served.
            QueueFull, StorageError, Closed: as `get_token`.
        """
        await self._ready()
        held, floor = self._held, -1 if than is None else than
        if than is not None and held.token is not None and held.serves(than):
            return held.token
        barred = self._barred_until(than)
        if not self._keeper.renewing and held.now < barred:
            raise self._unavailable(retry_at=barred)
        newer_than = max(held.generation, floor)
        self._keeper.demand()
        return await self._queue.wait(newer_than=newer_than)

    def get_state(self) -> TokenState:
        """Where the credential stands just now."""
        if self._keeper.opened:
            self._held.wake()
        return self._held.state

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback(token)` with every new token from now on; the answer ends that.

        Coroutine functions are awaited, one token after another; a slow one skips to the newest. One that fails is
        logged and hurts no other.
        """
        return self._subscribers.add(callback)

    # --- tokens in ---

    def update_access_token(self, token: str, expires_at: datetime | None = None) -> None:
        """Take up an access token from outside; the refresh token and the sign-in deadline in hand stay.

        Args:
            token: the access token.
            expires_at: when it dies (aware); without it, it counts as living `default_lifetime_seconds`.

        Raises:
            ValueError: it is empty or has expired.
            Closed: the manager was stopped.
        """
        wall = self._clock.wall()
        life = timedelta(seconds=self._config.default_lifetime_seconds)
        bare = Token(token, expires_at=expires_at or wall + life, issued_at=wall)
        held = self._held.token
        if held is not None:
            bare = replace(
                bare,
                refresh_token=held.refresh_token,
                signin_deadline=held.signin_deadline,
                scope=held.scope,
            )
        self.update_tokens(bare)

    def update_tokens(self, token: Token) -> None:
        """Take up a token from outside, a new sign-in for example: served and published at once, saved behind.

        Raises:
            ValueError: it has expired, or its generation is older than the one in hand.
            Closed: the manager was stopped.
        """
        if self._closed:
            raise self._report.closed()
        self._check_outside(token)
        if token != self._held.token:
            self._keeper.hand_in(token)

    # --- what people see ---

    def status(self) -> dict[str, Any]:
        """Everything about the credential that is no secret, for JSON: instants ISO-8601 UTC, durations seconds."""
        state, keeper, held = self.get_state(), self._keeper, self._held
        token, life, now = held.token, held.lifecycle, held.now
        return {
            "name": self.name,
            "state": state.name,
            "generation": held.generation,
            "fingerprint": token.fingerprint if token else "-",
            "issued_at": iso(token.issued_at) if token else None,
            "expires_at": iso(token.expires_at) if token else None,
            "expires_in_seconds": finite(life.expires - now),
            "signin_deadline": iso(token.signin_deadline) if token else None,
            "signin_in_seconds": finite(life.signin_deadline - now),
            "next_refresh_at": iso(held.when(life.retry_at)),
            "last_error": reason(held.last_error) or None,
            "cycle": life.cycle,
            "attempt": keeper.attempt,
            "waiting": len(self._queue),
            "unsaved_generation": keeper.unsaved_generation,
            "interrupted": self._renewal.lost or None,
            "storage": str(self._store.path) if self._store.path else "memory",
        }

    def __repr__(self) -> str:
        token, waiting = self._held.token or "no token", len(self._queue)
        return f"<TokenManager {self.name} {self._held.state.name}, {token}, {waiting} waiting>"

    # --- opening ---

    async def _ready(self) -> None:
        if self._closed:
            raise self._report.closed()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise Closed(
                f"{self.name}: this token manager belongs to another event loop; use it there or make one per loop"
            )
        if not self._keeper.opened:
            await self._open()

    async def _open(self) -> None:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._keeper.open())
        opening = self._opening
        try:
            await asyncio.shield(opening)
        except BaseException:
            if self._closed:
                raise self._report.closed() from None
            if opening.done() and self._opening is opening:
                self._opening = self._loop = None  # it failed: a later call may try again
            raise

    # --- the queue ---

    def _follow(self) -> None:
        """The clocks moved on: what the fast path reads follows."""
        token = self._held.token
        if token is not None:
            self._access_token = token.access_token
            self._fresh_until = self._held.fresh_until

    def _publish(self, token: Token) -> None:
        if self._held.lifecycle.life_left(self._held.now) > 0:
            self._queue.serve(token)
        self._subscribers.tell(token)

    def _settle(self) -> None:
        """An errand ended: serve or send away those for whom that decided."""
        token = self._held.token
        if token is not None and self._held.serves():
            self._queue.serve(token)
        if not self._keeper.wanted:
            self._queue.dismiss(self._verdict)

    def _verdict(self, waiter: Waiter) -> Exception | None:
        if self._closed:
            return self._report.closed()
        if waiter.until > -math.inf:
            return self._hopeless(waiter.until, waiter.newer_than)
        signin = self._held.signin
        return self._report.again(signin) if signin else self._unavailable()

    async def _next(self, newer_than: int) -> Token:
        held = self._held
        self._keeper.tend()  # after a suspend the timers are late, the clock is not
        if held.token is not None and held.serves(newer_than):
            return held.token
        patience = self._config.queue_timeout_seconds
        hopeless = self._hopeless(held.now + patience, newer_than)
        if hopeless is not None:
            raise hopeless
        try:
            return await self._queue.wait(newer_than=newer_than, patience=patience)
        except TimeoutError:
            raise self._unavailable(f"no token came within {patience:g} s") from None

    def _hopeless(self, until: float, newer_than: int) -> Exception | None:
        """Why no token will come before `until`, None while one may."""
        held = self._held
        if self._keeper.busy:
            return None
        if held.signin is not None:
            return self._report.again(held.signin)
        if held.lifecycle.due <= until:
            return None
        if newer_than >= held.generation and held.last_error is None:
            return self._unavailable(f"there is no token newer than generation {newer_than}")
        return self._unavailable()

    def _reject(self, generation: int) -> None:
        """The venue refused this generation: renew, unless that cannot help now."""
        held, life = self._held, self._held.lifecycle
        if generation < held.generation:
            return  # a late answer about an older token; the current one has expired
        if generation == held.generation:
            allowed = life.rejected(held.now)
            held.wake()
        else:  # somebody holds a newer one than we do: ours is not in doubt
            allowed = self._keeper.renewing or held.now >= life.rejected_until
        if not allowed:
            raise self._unavailable(retry_at=life.rejected_until)
        if held.signin is None:
            self._keeper.demand()

    def _barred_until(self, than: int | None) -> float:
        life = self._held.lifecycle
        if than is None or not life.failures or life.retry_at is None:
            return life.barred_until
        return max(life.barred_until, life.retry_at)

    def _unavailable(self, what: str = "", *, retry_at: float | None = None) -> TokenUnavailable:
        held = self._held
        if not what and held.last_error is not None:
            what = f"the last renewal failed: {reason(held.last_error)}"
        at = held.when(held.lifecycle.retry_at if retry_at is None else retry_at)
        return self._report.unavailable(what or "no valid token", at, held.last_error)

    def _check_outside(self, token: Token) -> None:
        if token.is_expired(self._clock.wall()):
            raise ValueError(
                f"{self.name}: the token from outside expired at {iso(token.expires_at)}; hand in a valid one"
            )
        held = self._held.generation
        if 0 < token.generation < held:
            raise ValueError(
                f"{self.name}: the token from outside is of generation {token.generation}, older than {held} in hand"
            )


def _check_issuer(issuer: object) -> None:
    for method in ("authenticate", "refresh"):
        if not callable(getattr(issuer, method, None)):
            raise ConfigError(
                f"needs async authenticate() and refresh(token); {type(issuer).__name__} has no {method}()",
                key="auth_service",
            )


def _memory_store() -> "TokenStore":
    from keepline.credentials.storage import TokenStorage

    return TokenStorage(memory_only=True)


def _lease_beside(store: "TokenStore", clock: Clock) -> Lease | None:
    if store.path is None:
        return None
    from keepline.credentials.lease import FileLease

    return FileLease(store.path.with_name(f"{store.path.name}.lock"), clock=clock)
