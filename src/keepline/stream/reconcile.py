"""Right again after any interruption: buffer the stream, compare a snapshot with what is known, apply, replay, live.

Invariants: between `begin` and live every event is kept, and applied after the snapshot; only a snapshot without a
failure that was asked for on this connection makes live; looks at a live stream keep their distance. Time comes in as
`now` (seconds), the wall clock as an argument.
"""

import enum
from collections import deque
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from keepline.errors import ConfigError
from keepline.model import Fill, Order, Position
from keepline.stream.comparison import Circumstances, Comparison, Findings
from keepline.stream.snapshot import Discrepancy, DiscrepancyKind, Snapshot, SnapshotSource
from keepline.stream.view import AccountView, Change, Told

__all__ = [
    "Discrepancy",
    "DiscrepancyKind",
    "Look",
    "Phase",
    "ReconcileSettings",
    "Reconciler",
    "Result",
    "Snapshot",
    "SnapshotSource",
]


class ReconcileSettings(Struct, frozen=True, kw_only=True):
    """How often and how carefully to look.

    Attributes:
        guard_seconds: so long something must be quiet before a difference counts as one.
        every_seconds: between two looks at an account while nothing calls for one.
        spacing_seconds: at least this long between two looks of a live stream.
        margin_seconds: a look reaches back so far beyond the last whole one: clocks differ, events come late.
        lookback_seconds: how far the first look reaches back.
        retry_seconds: pauses after looks that failed; the last one is repeated.
        buffer: so many events are kept while a snapshot is taken; with more of them another one is taken.
    """

    guard_seconds: float = 5.0
    every_seconds: float = 60.0
    spacing_seconds: float = 5.0
    margin_seconds: float = 120.0
    lookback_seconds: float = 86_400.0
    retry_seconds: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
    buffer: int = 100_000


class Phase(enum.StrEnum):
    """Whether what is known is the present."""

    APART = "apart"
    BUFFERING = "buffering"
    LIVE = "live"


class Look(NamedTuple):
    """A snapshot that is to be taken now.

    Attributes:
        accounts: of these.
        since: orders and fills of this instant and later.
        reason: `connect`, `periodic`, or what called for it.
    """

    accounts: tuple[str, ...]
    since: datetime
    reason: str


class Result(NamedTuple):
    """What a snapshot brought.

    Attributes:
        discrepancies: to be announced now; others follow from `expire` unless the stream still tells them.
        changes: in order: those of the snapshot (recovered), then those of the events that were kept meanwhile.
        live: whether the present is known.
        reason: why not, in words.
    """

    discrepancies: tuple[Discrepancy, ...] = ()
    changes: tuple[Change, ...] = ()
    live: bool = False
    reason: str = ""


_Place = tuple[str, str]


class _Asking(NamedTuple):
    look: Look
    at: float
    asked: int  # events that the stream had told by then


class Reconciler:
    """Decides when to look, what a snapshot changes, and when the stream is live.

    The order of calls: `begin` on each connection, `receive` for each event from then on, `look` → take the snapshot →
    `finish`, again while `phase` is not LIVE. Afterwards whenever `deadline` has come: `expire`, `look`.

    Args:
        accounts: the ids of the accounts that are followed.
        view: what is known; a new one by default.
        settings: how often and how carefully.

    Raises:
        ConfigError: no account, or a setting makes no sense.
    """

    def __init__(
        self,
        accounts: Iterable[str],
        view: AccountView | None = None,
        settings: ReconcileSettings | None = None,
    ) -> None:
        self.accounts = _checked_accounts(accounts)
        self.view = AccountView() if view is None else view
        self.settings = _checked(settings or ReconcileSettings())
        self.phase = Phase.APART
        self.overflows = 0
        self._buffer: deque[tuple[int, Told]] = deque()
        self._overflowed = False
        self._asking: _Asking | None = None
        self._due: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._whole: dict[str, float] = {}  # when the last snapshot without a failure was asked for
        self._further: dict[str, datetime] = {}
        self._failures = 0
        self._next_look = 0.0
        guard = self.settings.guard_seconds
        self._comparison = Comparison(self.view, guard_seconds=guard)

    # --- what happens ---

    def begin(self, now: float) -> None:
        """A connection is up: from now on events are kept until a snapshot was compared."""
        self.phase = Phase.BUFFERING
        self._asking = None
        self._failures = 0
        self._next_look = now

    def lost(self, now: float) -> None:
        """The connection is gone; what is known is the past. Events that were kept stay kept."""
        self.phase = Phase.APART
        self._asking = None

    def receive(self, event: Told, now: float) -> list[Change]:
        """An event of the stream: applied when live, kept otherwise.

        Returns:
            What changed by it; nothing while it is kept.
        """
        self._comparison.note(event, now)
        if self.phase is Phase.LIVE:
            return self._apply(event, now)
        if len(self._buffer) >= self.settings.buffer:
            self._buffer.clear()
            self._overflowed = True
            self.overflows += 1
        self._buffer.append((self._comparison.told, event))
        return []

    def suspect(
        self, now: float, *accounts: str, reason: str = "asked for", since: datetime | None = None
    ) -> None:
        """Something may have been missed: look at these accounts (all without one) as soon as may be.

        Args:
            now: the time.
            *accounts: whose; of accounts that are not followed nobody is asked.
            reason: what calls for it.
            since: the look has to reach back so far, when what happened is older than what looks reach back to.
        """
        for account in accounts or self.accounts:
            if account in self.accounts:
                self._call_for(account, now, reason)
                if since is not None:
                    oldest = since - timedelta(seconds=self.settings.margin_seconds)
                    self._further[account] = min(oldest, self._further.get(account, oldest))

    # --- when to look ---

    @property
    def deadline(self) -> float | None:
        """When `expire` or `look` have something to do; None for never."""
        times = (self.expiry, self.next_look)
        return min((at for at in times if at is not None), default=None)

    @property
    def next_look(self) -> float | None:
        """When `look` has something to ask for; None while one is under way, or while apart."""
        if self._asking is not None or self.phase is Phase.APART:
            return None
        if self.phase is Phase.BUFFERING:
            return self._next_look
        return max(min(self._due.values()), self._next_look) if self._due else None

    @property
    def expiry(self) -> float | None:
        """When `expire` has something to tell; None for never."""
        return self._comparison.deadline

    def look(self, now: float, wall: datetime) -> Look | None:
        """The snapshot to take now: of all accounts before live, of one afterwards; None for none."""
        if self._asking is not None or now < self._next_look or self.phase is Phase.APART:
            return None
        if self.phase is Phase.BUFFERING:
            accounts, reason = self.accounts, "connect"
        else:
            account = min(self._due, key=lambda name: self._due[name], default=None)
            if account is None or self._due[account] > now:
                return None
            accounts, reason = (account,), self._reasons[account]
        for account in accounts:
            self._due.pop(account, None)
        since = min(self._since(account, now, wall) for account in accounts)
        self._overflowed = False
        look = Look(accounts, since, reason)
        self._asking = _Asking(look, now, self._comparison.told)
        return look

    def give_up(self) -> None:
        """The snapshot that `look` asked for will not come; another look may be asked for at once."""
        if self._asking is not None:
            asking, self._asking = self._asking, None
            for account in asking.look.accounts:
                self._call_for(account, asking.at, asking.look.reason)

    def expire(self, now: float) -> list[Discrepancy]:
        """Discrepancies that the stream had time to explain, and did not."""
        return self._comparison.expire(now)

    @property
    def unsure(self) -> frozenset[_Place]:
        """Positions (account, instrument) whose difference is being watched."""
        return self._comparison.unsure

    # --- what a snapshot says ---

    def finish(self, snapshot: Snapshot, now: float) -> Result:
        """Take in the snapshot that `look` asked for.

        A snapshot of another connection than the present one (`begin` or `lost` came in between) is ignored.
        """
        if self._asking is None:
            return Result(
                live=self.phase is Phase.LIVE, reason="the connection changed while it was taken"
            )
        (look, asked_at, asked), self._asking = self._asking, None
        live = self.phase is Phase.LIVE
        when = Circumstances(asked, now, live, tuple(event for _, event in self._buffer))
        try:
            found = self._comparison.compare(snapshot, when)
            reason = self._why_not(look, snapshot, found)
        except Exception as error:  # a source that is not ours may show what cannot be compared
            found, reason = Findings(), f"it makes no sense: {error!r}"
        self._schedule(look, asked_at, now, failed=bool(reason))
        if not reason and not live:
            self.phase = Phase.LIVE
            found.changes += self._replay(asked, now)
        return Result(
            tuple(found.discrepancies),
            tuple(found.changes),
            self.phase is Phase.LIVE,
            reason,
        )

    def _why_not(self, look: Look, snapshot: Snapshot, found: Findings) -> str:
        missing = [*snapshot.missing, *sorted(set(look.accounts) - set(snapshot.scope))]
        if missing:
            return f"could not be read: {', '.join(missing)}"
        if found.further:
            self._further |= found.further
            return "an order is older than what was asked for"
        return "too many events came while it was taken" if self._overflowed else ""

    def _replay(self, asked: int, now: float) -> list[Change]:
        changes: list[Change] = []
        while self._buffer:
            number, event = self._buffer.popleft()
            # what has no age of its own and came before the snapshot was asked for is older than it
            if number > asked or isinstance(event, Order | Fill):
                changes += self._apply(event, now)
        return changes

    def _schedule(self, look: Look, asked_at: float, now: float, *, failed: bool) -> None:
        settings = self.settings
        if failed:
            pause = settings.retry_seconds[min(self._failures, len(settings.retry_seconds) - 1)]
            self._failures += 1
            for account in look.accounts:
                self._call_for(account, now + pause, "the last look failed")
            self._next_look = now + pause
            return
        self._failures = 0
        self._next_look = now + settings.spacing_seconds
        for account in look.accounts:
            self._whole[account] = asked_at
            if look.since <= self._further.get(account, look.since):
                self._further.pop(account, None)
            self._call_for(account, now + settings.every_seconds, "periodic")
            if any(place[0] == account for place in (*self.unsure, *self.view.disputed)):
                self._call_for(account, now + settings.guard_seconds, "a position is disputed")

    def _since(self, account: str, now: float, wall: datetime) -> datetime:
        settings, last = self.settings, self._whole.get(account)
        back = settings.lookback_seconds if last is None else now - last + settings.margin_seconds
        since = wall - timedelta(seconds=back)
        return min(since, self._further.get(account, since))

    def _call_for(self, account: str, at: float, reason: str) -> None:
        if at < self._due.get(account, float("inf")):
            self._due[account] = at
            self._reasons[account] = reason

    # --- events of the stream ---

    def _apply(self, event: Told, now: float) -> list[Change]:
        self._comparison.explain(event)
        changes = self.view.apply(event)
        if isinstance(event, Position) and (event.account, event.instrument) in self.view.disputed:
            self._call_for(
                event.account, now + self.settings.guard_seconds, "a position is disputed"
            )
        return changes

    def __repr__(self) -> str:
        return f"<Reconciler {self.phase.value}, {len(self._buffer)} events kept, {self.view!r}>"


def _checked_accounts(accounts: Iterable[str]) -> tuple[str, ...]:
    if isinstance(accounts, str):
        raise ConfigError(f"is a list of account ids, not the text {accounts!r}", key="accounts")
    found: tuple[object, ...] = tuple(dict.fromkeys(accounts))
    for name in found:
        if not isinstance(name, str) or not name:  # an int would never equal an event's account
            raise ConfigError(f"holds ids as texts, not {name!r}", key="accounts")
    if not found:
        raise ConfigError("at least one account is needed", key="accounts")
    return tuple(str(name) for name in found)


def _checked(settings: ReconcileSettings) -> ReconcileSettings:
    for name in ("guard_seconds", "every_seconds", "spacing_seconds", "margin_seconds"):
        _above_zero(name, getattr(settings, name))
    _above_zero("lookback_seconds", settings.lookback_seconds)
    _above_zero("buffer", settings.buffer)
    if not settings.retry_seconds:
        raise ConfigError("at least one pause is needed", key="retry_seconds")
    for pause in settings.retry_seconds:
        _above_zero("retry_seconds", pause)
    return settings


def _above_zero(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):  # type: ignore[operator]
        raise ConfigError(f"must be a number above 0, not {value!r}", key=name)
