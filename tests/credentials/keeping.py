"""Fakes for tests of the token manager: an issuer that rotates, a store that can fail, a lease that can be held."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

from keepline.clock import Clock
from keepline.credentials.manager import TokenManager
from keepline.credentials.storage import TokenStorage
from keepline.credentials.token import Token
from keepline.errors import StorageError, TokenRefused, TransientError
from keepline.telemetry import fields_of
from keepline.testing import ManualClock

__all__ = ["FakeIssuer", "FakeLease", "FakeStore", "Kept", "events", "keep", "settled"]


class FakeIssuer:
    """Rotates its refresh tokens, refuses a spent one and ends the family, answers by a script.

    Attributes:
        script: what the next calls do: an exception is raised, anything else is ignored; empty means success.
        spent: the refresh tokens that were presented, in order.
        gate: when cleared, answers wait for it; `asked` is set when a call has come in.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        lifetime: float = 1800.0,
        needs_person: bool = True,
        signin_lifetime: float | None = None,
    ) -> None:
        self.needs_person = needs_person
        self.clock = clock
        self.lifetime = lifetime
        self.signin_lifetime = signin_lifetime
        self.script: list[object] = []
        self.spent: list[str] = []
        self.sign_ins = 0
        self.live = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self._count = 0

    @property
    def requests(self) -> int:
        return len(self.spent) + self.sign_ins

    def sign_in(self) -> Token:
        """What a person's sign-in ends with."""
        deadline = None
        if self.signin_lifetime is not None:
            deadline = self.clock.wall() + timedelta(seconds=self.signin_lifetime)
        return replace(self._token(), signin_deadline=deadline)

    async def authenticate(self) -> Token:
        self.sign_ins += 1
        await self._answer()
        return self._token()

    async def refresh(self, token: Token) -> Token:
        self.spent.append(token.refresh_token)
        good = token.refresh_token == self.live
        if good:
            self.live = "on its way"  # spent from the moment of the request on
        now = self.clock.wall()
        await self._answer(unspend=token.refresh_token if good else "")
        if not good:
            self.live = "revoked"
            raise TokenRefused("the refresh token was spent before", code="invalid_grant")
        expires = now + timedelta(seconds=self.lifetime)
        fresh = replace(self._token(), issued_at=now, expires_at=expires)
        return replace(fresh, signin_deadline=token.signin_deadline)

    async def _answer(self, unspend: str = "") -> None:
        self.asked.set()
        await self.gate.wait()
        planned = self.script.pop(0) if self.script else None
        if isinstance(planned, Exception):
            if unspend:
                self.live = unspend  # this issuer does nothing when it fails
            raise planned

    def _token(self) -> Token:
        self._count += 1
        self.live = f"refresh-secret-{self._count}"
        now = self.clock.wall()
        return Token(
            f"access-secret-{self._count}",
            self.live,
            expires_at=now + timedelta(seconds=self.lifetime),
            issued_at=now,
        )


class FakeStore:
    """A store in memory whose every step can fail and is written down.

    Attributes:
        steps: what was called, in order.
        failing: names of steps that raise StorageError.
        held: the token that it holds.
    """

    path: Path | None = None

    def __init__(self, token: Token | None = None) -> None:
        self.held = token
        self.steps: list[str] = []
        self.failing: set[str] = set()
        self.intent: Token | None = None
        self.abandoned: list[bool] = []

    def load(self) -> Token | None:
        self._step("load")
        return self.held

    def store(self, token: Token) -> None:
        self._step("store")
        self.held = token

    def clear_token(self) -> None:
        self.held = None

    def prepare(self, spending: Token | None) -> "FakeStore":
        self._step("prepare")
        self.intent = spending
        return self

    def save(self, token: Token) -> Token:
        self._step("save")
        self.held, self.intent = token, None
        return token

    def abandon(self, *, answer_lost: bool) -> None:
        self.abandoned.append(answer_lost)
        self._step("abandon")

    def interrupted(self) -> None:
        return None

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.failing:
            raise StorageError(f"no space left for {name}; free some", path="/full/tokens.enc")


class FakeLease:
    """A lease that a test can keep from us."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.taken = 0

    async def __aenter__(self) -> None:
        await self.lock.acquire()
        self.taken += 1

    async def __aexit__(self, *_: object) -> None:
        self.lock.release()


class Kept(SimpleNamespace):
    """A manager with everything around it: `manager`, `issuer`, `store`, `lease`, `clock`."""

    manager: TokenManager
    issuer: FakeIssuer
    store: FakeStore
    lease: FakeLease
    clock: ManualClock

    async def until(self, condition: Callable[[], object], **limit: float) -> None:
        await self.clock.run_until(condition, **limit)

    @property
    def state(self) -> str:
        return self.manager.get_state().name

    @property
    def generation(self) -> int:
        return self.manager.status()["generation"]


def keep(
    *,
    signed_in: bool = True,
    clock: ManualClock | None = None,
    issuer: FakeIssuer | None = None,
    store: FakeStore | None = None,
    history: object = None,
    needs_person: bool = True,
    lifetime: float = 1800.0,
    signin_lifetime: float | None = 7 * 86400.0,
    **config: object,
) -> Kept:
    """A manager on a manual clock, not yet started; `signed_in` puts a first token into its store."""
    clock = clock or ManualClock()
    issuer = issuer or FakeIssuer(
        clock, lifetime=lifetime, needs_person=needs_person, signin_lifetime=signin_lifetime
    )
    store = store if store is not None else FakeStore()
    if signed_in and store.held is None:
        store.held = issuer.sign_in().with_generation(1)
    lease = FakeLease()
    manager = TokenManager(
        {"name": "schwab", **config},
        issuer,
        storage=store,
        lease=lease,
        history=history,
        clock=clock,
    )
    return Kept(manager=manager, issuer=issuer, store=store, lease=lease, clock=clock)


def outage(*, sent: bool = True, retry_after: float | None = None) -> TransientError:
    """An answer that may be better in a moment."""
    return TransientError(
        "the issuer answered 503",
        category="server",
        status=503 if sent else None,
        retry_after=retry_after,
        sent=sent,
    )


def events(caplog, message: str) -> list[dict[str, object]]:
    """The fields of every event of that name."""
    logging.getLogger("keepline")  # the name by which rooms log
    return [dict(fields_of(r)) for r in caplog.records if r.getMessage() == message]


async def settled(turns: int = 30) -> None:
    """Let everything that can run without time run."""
    for _ in range(turns):
        await asyncio.sleep(0)


def memory() -> TokenStorage:
    """The real store without a file."""
    return TokenStorage(memory_only=True)
