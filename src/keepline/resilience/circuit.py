"""One circuit: which calls may go, decided by how the last ones ended.

                 ┌── too many failed or slow ──►┐
        CLOSED ──┤                              OPEN ── break over ──► HALF_OPEN ──┐
          ▲ ▲    └──────────────────────────────▲  └◄──── a probe failed ──────────┤
          │ └───────────── enough probes succeeded ───────────────────────────────┘
          └── close() ── ISOLATED ◄── isolate() ── any state

Invariants:
  * Each change of state begins a new era; how a call of an earlier era ends is counted as late and decides nothing.
  * HALF_OPEN has never more than `probes` leases out. A probe that is cancelled, or whose end says nothing, gives its
    lease back; one that hangs loses it after `lease_seconds`.
  * A call that says nothing about the other side (cancelled, refused by ourselves) changes no count.

A decider: no clock, lock or loop; `now` comes from outside and never runs backwards.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, NamedTuple

from keepline.errors import ConfigError

__all__ = ["Circuit", "CircuitSettings", "CircuitState", "Permit"]


class CircuitState(Enum):
    """What a circuit does with a call."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"
    ISOLATED = "isolated"

    @property
    def number(self) -> int:
        """The value of the metric `circuit_state`: 0 closed, 1 half-open, 2 open, 3 isolated."""
        return list(CircuitState).index(self)


class _Event(Enum):
    TOO_BAD = "too many calls failed or were slow"
    BREAK_OVER = "the break is over"
    PROBES_WELL = "enough probes succeeded"
    PROBE_BAD = "a probe failed"
    ISOLATE = "isolated by hand"
    CLOSE = "closed by hand"


_NEXT: Mapping[tuple[CircuitState, _Event], CircuitState] = {
    (CircuitState.CLOSED, _Event.TOO_BAD): CircuitState.OPEN,
    (CircuitState.OPEN, _Event.BREAK_OVER): CircuitState.HALF_OPEN,
    (CircuitState.HALF_OPEN, _Event.PROBES_WELL): CircuitState.CLOSED,
    (CircuitState.HALF_OPEN, _Event.PROBE_BAD): CircuitState.OPEN,
    **{(state, _Event.ISOLATE): CircuitState.ISOLATED for state in CircuitState},
    **{(state, _Event.CLOSE): CircuitState.CLOSED for state in CircuitState},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitSettings:
    """When a circuit opens, for how long, and what closes it again.

    Attributes:
        failure_rate: share of failed calls in the window from which it opens.
        slow_call_seconds: a call that takes this long or longer is slow, however it ended; None: no call is.
        slow_call_rate: share of slow calls in the window from which it opens.
        window_seconds: how far back calls count, in steps of a tenth.
        minimum_calls: fewer calls in the window decide nothing.
        break_seconds: how long it stays open the first time; twice as long after each failed probe.
        longest_break_seconds: what that grows to.
        probes: calls let through half-open at once, and how many must succeed to close.
        lease_seconds: how long a probe may hang before another takes its place.
    """

    failure_rate: float = 0.5
    slow_call_seconds: float | None = 10.0
    slow_call_rate: float = 0.8
    window_seconds: float = 60.0
    minimum_calls: int = 10
    break_seconds: float = 15.0
    longest_break_seconds: float = 120.0
    probes: int = 2
    lease_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("failure_rate", "slow_call_rate"):
            if not _is_number(value := getattr(self, name)) or not 0 < value <= 1:
                raise ConfigError(f"is a share above 0, at most 1, not {value!r}", key=name)
        for name in ("minimum_calls", "probes"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ConfigError(f"is a whole number from 1 up, not {value!r}", key=name)
        for name in (field.name for field in fields(self) if field.name.endswith("_seconds")):
            value = getattr(self, name)
            if name == "slow_call_seconds" and value is None:
                continue
            if not _is_number(value) or not 0 < value < math.inf:
                raise ConfigError(f"is a number of seconds above 0, not {value!r}", key=name)
        if self.longest_break_seconds < self.break_seconds:
            raise ConfigError(
                f"is at least break_seconds ({self.break_seconds:g}), not {self.longest_break_seconds:g}",
                key="longest_break_seconds",
            )


class Permit(NamedTuple):
    """The right to make one call.

    Attributes:
        era: in which it was given.
        lease: the number of a probe's lease, 0 while the circuit is closed.
    """

    era: int
    lease: int


class Circuit:
    """The state of one circuit and its counts.

    Attributes:
        state: what it was after the last call or change; OPEN turns HALF_OPEN with the first call after the break.
        pass_freely: the permit of every call while CLOSED, None otherwise.
        news: changes of state that nobody has read yet, as (from, to, why); whoever reads them clears them.
        refused, late, opened: calls turned away, results that came an era too late, how often it opened.
    """

    __slots__ = ("_break", "_leases", "_next_lease", "_open_until", "_slow_from", "_successes", "_window", "era",
                 "late", "news", "opened", "pass_freely", "refused", "settings", "state")  # fmt: skip

    def __init__(self, settings: CircuitSettings) -> None:
        self.settings = settings
        self.state = CircuitState.CLOSED
        self.era = 0
        self.pass_freely: Permit | None = Permit(0, 0)
        self.news: list[tuple[CircuitState, CircuitState, str]] = []
        self.refused = self.late = self.opened = 0
        slow = settings.slow_call_seconds
        self._slow_from = math.inf if slow is None else slow
        self._window = _Window(settings.window_seconds)
        self._break = settings.break_seconds
        self._open_until = -math.inf
        self._leases: dict[int, float] = {}
        self._next_lease = 1
        self._successes = 0

    def enter(self, now: float) -> Permit | None:
        """The permit of a call that begins now; None: it may not."""
        if self.pass_freely is not None:
            return self.pass_freely
        if self.state is CircuitState.OPEN and now >= self._open_until:
            self._go(_Event.BREAK_OVER, now)
        if self.state is CircuitState.HALF_OPEN:
            self._forget_hung(now)
            if len(self._leases) + self._successes < self.settings.probes:
                return self._lease(now)
        self.refused += 1
        return None

    def went_well(self, permit: Permit, begun: float, now: float) -> bool:
        """The quick way for nearly all calls: counts a good one while nothing was bad; False: ask `succeeded`.

        The one method that needs no lock around it.
        """
        window = self._window
        if (
            permit is self.pass_freely
            and now < window.plain_until
            and now - begun < self._slow_from
        ):
            window.count_plain()
            return True
        return False

    def succeeded(self, permit: Permit, begun: float, now: float) -> None:
        """A call ended well; half-open, a slow one has not."""
        slow = now - begun >= self._slow_from
        if permit is self.pass_freely:
            self._count(now, failed=False, slow=slow)
        elif self._settle_probe(permit, now):
            if slow:
                self._go(_Event.PROBE_BAD, now)
            else:
                self._successes += 1
                if self._successes >= self.settings.probes:
                    self._go(_Event.PROBES_WELL, now)

    def failed(self, permit: Permit, begun: float, now: float) -> None:
        """A call ended in a way that speaks against the other side."""
        if permit is self.pass_freely:
            self._count(now, failed=True, slow=now - begun >= self._slow_from)
        elif self._settle_probe(permit, now):
            self._go(_Event.PROBE_BAD, now)

    def ended(self, permit: Permit, now: float) -> None:
        """A call ended and says nothing: a probe's lease is free again, nothing is counted."""
        if permit is not self.pass_freely:
            self._settle_probe(permit, now)

    def isolate(self, now: float) -> None:
        """Turn every call away until `close`."""
        self._go(_Event.ISOLATE, now)

    def close(self, now: float) -> None:
        """Begin anew, closed and with nothing counted."""
        self._go(_Event.CLOSE, now)

    def state_at(self, now: float) -> CircuitState:
        """What a call that came now would meet."""
        if self.state is CircuitState.OPEN and now >= self._open_until:
            return CircuitState.HALF_OPEN
        return self.state

    def retry_after(self, now: float) -> float | None:
        """Seconds until a new try makes sense: 0 when it would be let in, None when only a person can close it."""
        if self.state is CircuitState.ISOLATED:
            return None
        if self.state is CircuitState.OPEN:
            return max(0.0, self._open_until - now)
        if self._leases and len(self._leases) + self._successes >= self.settings.probes:
            return max(0.0, min(self._leases.values()) - now)
        return 0.0

    def counts(self, now: float) -> tuple[int, int, int]:
        """(calls, failed, slow) in the window."""
        self._window.roll(now)
        return self._window.calls, self._window.failed, self._window.slow

    def probing(self, now: float) -> int:
        """Leases that are out."""
        return sum(1 for until in self._leases.values() if until > now)

    def _count(self, now: float, *, failed: bool, slow: bool) -> None:
        window, settings = self._window, self.settings
        window.add(now, failed=failed, slow=slow)
        if window.calls < settings.minimum_calls:
            return
        if (
            window.failed >= settings.failure_rate * window.calls
            or window.slow >= settings.slow_call_rate * window.calls
        ):
            self._go(_Event.TOO_BAD, now)

    def _lease(self, now: float) -> Permit:
        permit = Permit(self.era, self._next_lease)
        self._leases[permit.lease] = now + self.settings.lease_seconds
        self._next_lease += 1
        return permit

    def _settle_probe(self, permit: Permit, now: float) -> bool:
        """Take a lease back; False when it is not out any more and its result decides nothing."""
        self._forget_hung(now)
        if self._leases.pop(permit.lease, None) is not None:  # those of earlier eras were cleared
            return True
        self.late += 1
        return False

    def _forget_hung(self, now: float) -> None:
        for lease in [lease for lease, until in self._leases.items() if until <= now]:
            del self._leases[lease]

    def _go(self, event: _Event, now: float) -> None:
        before, self.state = self.state, _NEXT[self.state, event]
        self.news.append((before, self.state, event.value))
        self.era += 1
        self.pass_freely = Permit(self.era, 0) if self.state is CircuitState.CLOSED else None
        self._leases.clear()
        self._successes = 0
        if self.state is CircuitState.OPEN:
            self._open(now, again=event is _Event.PROBE_BAD)
        elif self.state is CircuitState.CLOSED:
            self._window = _Window(self.settings.window_seconds)

    def _open(self, now: float, *, again: bool) -> None:
        settings = self.settings
        grown = min(2 * self._break, settings.longest_break_seconds)
        self._break = grown if again else settings.break_seconds
        self._open_until = now + self._break
        self.opened += 1

    def __repr__(self) -> str:
        return f"<Circuit {self.state.value}, era {self.era}>"


class _Window:
    """Counts of the last `seconds` in ten slices: no call counts longer than that, and each at least nine tenths of it.

    Attributes:
        calls, failed, slow: what is counted, but for plain calls of the newest slice.
        count_plain: counts a good call, safe from every thread without a lock (a good call that ends in the instant in
            which another thread sums up may be missed: one call in a window is no matter).
        plain_until: when that must stop: the end of the newest slice, at once while anything failed or was slow, since
            then even a good call may be the one that completes the minimum.
    """

    __slots__ = (
        "_end",
        "_plain",
        "_slice",
        "_slices",
        "calls",
        "count_plain",
        "failed",
        "plain_until",
        "slow",
    )

    SLICES = 10

    def __init__(self, seconds: float) -> None:
        self._slice = seconds / self.SLICES
        self._slices = [(0, 0, 0)] * self.SLICES  # oldest first; the last is being filled
        self._end = self.plain_until = -math.inf
        self._begin_plain()
        self._sum()

    def add(self, now: float, *, failed: bool, slow: bool) -> None:
        self.roll(now)
        calls, failures, slows = self._slices[-1]
        self._slices[-1] = (calls + 1, failures + failed, slows + slow)
        self._sum()

    def roll(self, now: float) -> None:
        """Drop what is too old; slices begin anew with the first call after a whole window of quiet."""
        calls, failures, slows = self._slices[-1]
        self._slices[-1] = (calls + self._begin_plain(), failures, slows)
        late = (now - self._end) / self._slice
        if late >= self.SLICES:
            self._slices = [(0, 0, 0)] * self.SLICES
            self._end = now + self._slice
        elif late >= 0:
            steps = int(late) + 1
            self._slices = self._slices[steps:] + [(0, 0, 0)] * steps
            self._end += steps * self._slice
        self._sum()

    def _begin_plain(self) -> int:
        """Begin to count plain calls from zero; how many there were."""
        before = getattr(self, "_plain", None)
        self._plain = itertools.count()
        self.count_plain = self._plain.__next__
        return 0 if before is None else next(before)

    def _sum(self) -> None:
        self.calls, self.failed, self.slow = map(sum, zip(*self._slices, strict=True))
        self.plain_until = -math.inf if self.failed or self.slow else self._end


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
