"""The one door: signs people in, judges tokens, and says who may do what; every no is counted and logged.

Invariants: at most two Argon2 computations run at once, and one that nobody waits for any more still counts until it is
done; nothing here blocks the event loop; a refusal never raises and never holds a secret.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import TypeVar

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError, KeeplineError, StorageError
from keepline.hub.access import AccessRules, Action, Identity, standing_refusal
from keepline.hub.jwks import KeySet
from keepline.hub.passwords import LONGEST_PASSWORD, parameters_of, password_fits
from keepline.hub.presenting import Presented
from keepline.hub.refusals import Refusal, RefusalCode, refuse
from keepline.hub.signing import SigningKeys
from keepline.hub.tenure import NOTICE_SECONDS, Tenure
from keepline.hub.throttle import LoginThrottle
from keepline.hub.tokens import (
    LEEWAY_SECONDS,
    Issued,
    KeyWanted,
    TokenIssuer,
    TokenVerifier,
)
from keepline.hub.trust import TrustedIssuer
from keepline.hub.users import User, UsersFile

__all__ = ["Gate"]

log = logging.getLogger("keepline.hub")

_REFUSED = telemetry.REGISTRY.counter(
    "hub_refused_total", "Requests that the hub's doors refused, by why.", "code"
)
_SIGN_INS = telemetry.REGISTRY.counter("hub_sign_ins_total", "Sign-ins that succeeded.")

AT_ONCE = 2
"""Argon2 computations at once: each takes 64 MiB and a tenth of a second of four lanes."""

_QUIET_SECONDS = 1.0

T = TypeVar("T")


class Gate:
    """Users, keys and rights of one hub; belongs to one event loop.

    Args:
        users: the users file; read by `start`.
        keys: the signing keys of our own tokens.
        rules: who may do what.
        issuer: the `iss` of our own tokens.
        audience: their `aud`.
        token_lifetime_seconds: how long they live.
        trusted: other issuers.
        leeway_seconds: how far clocks may differ.
        notice_seconds: how long before its end a connection is told.
        throttle: of failed sign-ins.
        clock: time.
    """

    def __init__(
        self,
        users: UsersFile,
        keys: SigningKeys,
        *,
        rules: AccessRules | None = None,
        issuer: str = "keepline",
        audience: str = "keepline-hub",
        token_lifetime_seconds: float = 43_200.0,
        trusted: Iterable[TrustedIssuer] = (),
        leeway_seconds: float = LEEWAY_SECONDS,
        notice_seconds: float = NOTICE_SECONDS,
        throttle: LoginThrottle | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not 60 <= token_lifetime_seconds <= 31 * 86_400:
            raise ConfigError("60 seconds to 31 days are sensible", key="token_lifetime_seconds")
        self.rules = rules or AccessRules()
        self._users = users
        self._keys = keys
        self._clock = clock
        self._throttle = throttle or LoginThrottle()
        self._notice = notice_seconds
        self._issuer = TokenIssuer(
            issuer=issuer, audience=audience, lifetime_seconds=token_lifetime_seconds
        )
        own = TrustedIssuer(issuer, frozenset({audience}), frozenset({"HS256"}), keys)
        others = tuple(trusted)
        self._sets = {each.issuer: each.keys for each in others if isinstance(each.keys, KeySet)}
        self._verifier = TokenVerifier((own, *others), leeway_seconds=leeway_seconds)
        self._computing = 0
        self._said: dict[RefusalCode, tuple[float, int]] = {}

    async def start(self) -> None:
        """Read the users and fetch the issuers' keys.

        Raises:
            StorageError: the users file is not private or is damaged.
        """
        await asyncio.to_thread(self._users.load)
        if not self._users.book:
            telemetry.event(
                log, logging.WARNING, "Nobody can sign in yet", command="keepline user add NAME"
            )
        await asyncio.gather(*(keys.look() for keys in self._sets.values()))

    async def look(self) -> bool:
        """Call it every few seconds: takes up a changed users file and begins to fetch keys that are due.

        Returns:
            True when users or revocations changed: ask `recheck` for every live connection.
        """
        for keys in self._sets.values():
            keys.begin()  # an issuer that does not answer must not delay a revocation
        return await asyncio.to_thread(self._refresh)

    async def close(self) -> None:
        """End fetches under way."""
        await asyncio.gather(*(keys.close() for keys in self._sets.values()))

    async def sign_in(
        self, username: object, password: object, *, address: str
    ) -> Issued | Refusal:
        """Judge a name and password.

        Args:
            username: as it came, of any type.
            password: as it came, of any type.
            address: the peer's IP address.

        Returns:
            A token; `bad_credentials` for an unknown name, a wrong password and a disabled user alike; `throttled` or
            `busy` with the seconds to wait.
        """
        name = username if isinstance(username, str) and len(username) <= 256 else ""
        given = password if isinstance(password, str) and len(password) <= LONGEST_PASSWORD else ""
        ticket = self._throttle.attempt(address, name, self._clock.boottime())
        if isinstance(ticket, Refusal):
            return self.refused(ticket)
        if self._computing >= AT_ONCE:
            self._throttle.not_made(ticket)
            return self.refused(refuse(RefusalCode.BUSY, retry_after=1.0))
        user = await self._compute(name, given)
        if user is None:
            return self.refused(refuse(RefusalCode.BAD_CREDENTIALS))
        self._throttle.succeeded(ticket)
        _SIGN_INS.inc()
        return self._issue(user)

    async def admit(self, presented: Presented | Refusal | str) -> Identity | Refusal:
        """Judge a token: signature, claims, revocation.

        Args:
            presented: what `presenting.presented` found, or a bare token.

        Returns:
            Who it speaks for, or why not.
        """
        if isinstance(presented, Refusal):
            return self.refused(presented)
        token = presented.token if isinstance(presented, Presented) else presented
        verdict = self._verifier.verify(token, self._wall())
        if isinstance(verdict, KeyWanted):
            keys = self._sets[verdict.issuer]
            await keys.look(unknown=True)
            verdict = self._verifier.verify(token, self._wall())
            if isinstance(verdict, KeyWanted):
                code = RefusalCode.KEYS_UNAVAILABLE if keys.failing else RefusalCode.UNKNOWN_KEY
                verdict = refuse(code)
        if isinstance(verdict, Identity):
            verdict = self._standing(verdict) or verdict
        return self.refused(verdict) if isinstance(verdict, Refusal) else verdict

    def recheck(self, identity: Identity) -> Refusal | None:
        """Whether a live connection's user still stands; from memory."""
        refusal = self._standing(identity)
        return None if refusal is None else self.refused(refusal)

    def allows(self, identity: Identity, action: Action, channel: object) -> Refusal | None:
        """None when this is allowed; `forbidden` or `bad_channel` else."""
        refusal = self.rules.refusal(identity, action, channel)
        return None if refusal is None else self.refused(refusal)

    def tenure(self, identity: Identity) -> Tenure:
        """The expiry of a new connection."""
        return Tenure(
            identity,
            leeway_seconds=self._verifier.leeway_seconds,
            notice_seconds=self._notice,
        )

    async def revoke(self, user: str) -> None:
        """Make every token of a user void up to now; lasts over restarts. Then `recheck` the live connections.

        Raises:
            StorageError: it could not be written; the tokens still count.
        """
        now = self._wall()
        await asyncio.to_thread(lambda: self._users.revoke(user, now=now))

    def refused(self, refusal: Refusal, **fields: object) -> Refusal:
        """Count and log a refusal, also one that was decided elsewhere; at most one line a second for each code."""
        _REFUSED.inc(refusal.code.value)
        now = self._clock.boottime()
        last, silent = self._said.get(refusal.code, (float("-inf"), 0))
        if now - last < _QUIET_SECONDS:
            self._said[refusal.code] = (last, silent + 1)
            return refusal
        self._said[refusal.code] = (now, 0)
        more: Mapping[str, object] = {"not_logged": silent} if silent else {}
        telemetry.event(
            log, logging.INFO, "Access refused", code=refusal.code.value, **fields, **more
        )
        return refusal

    def _refresh(self) -> bool:
        try:
            self._keys.refreshed(now=self._wall())
        except StorageError as error:
            telemetry.event(log, logging.ERROR, "Signing keys not read", reason=str(error))
        return self._users.refreshed()

    def _standing(self, identity: Identity) -> Refusal | None:
        return standing_refusal(identity, self._users.book, own_issuer=self._issuer.issuer)

    def _wall(self) -> float:
        return self._clock.wall().timestamp()

    def _issue(self, user: User) -> Issued:
        return self._issuer.issue(
            self._keys.current,
            user=user.name,
            role=user.role,
            account=user.account,
            now=self._wall(),
        )

    async def _compute(self, name: str, password: str) -> User | None:
        self._computing += 1
        work = asyncio.get_running_loop().run_in_executor(None, self._check, name, password)
        work.add_done_callback(self._computed)
        return await asyncio.shield(work)  # a thread cannot be cancelled: it counts until it ends

    def _computed(self, work: asyncio.Future[User | None]) -> None:
        self._computing -= 1
        if not work.cancelled():
            work.exception()  # seen, also when the one who asked has hung up

    def _check(self, name: str, password: str) -> User | None:
        self._users.refreshed()
        book = self._users.book
        user = book.find(name)
        phc = None if user is None or not password else user.password
        good = password_fits(password, phc, like=book.usual_parameters())
        if user is None or not good or user.disabled:
            return None
        if parameters_of(user.password) != self._users.parameters:
            self._rehash(user, password)
        return user

    def _rehash(self, user: User, password: str) -> None:
        try:
            self._users.rehash(user, password)
        except KeeplineError as error:
            telemetry.event(log, logging.WARNING, "Password not hashed anew", reason=str(error))

    def __repr__(self) -> str:
        return f"<Gate {self._users!r}>"
