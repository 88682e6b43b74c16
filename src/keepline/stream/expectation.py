"""What is expected of one topic, and how far to go when it does not come: a decider.

Invariants: the topic's own data alone makes it fresh, never pings, answers or other topics; what is silent by nature
(cadence None) is asked about, not accused; a closed session accuses nobody and its opening starts the wait anew; the
ladder probe → resubscribe → reconnect ends in an alarm after a number of fruitless rounds, and each later round raises
it again; a reconnect does not forget the rounds, only data in time does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from keepline.errors import ConfigError
from keepline.stream.calendar import Span
from keepline.stream.lag import LagMeter
from keepline.stream.port import Topic

__all__ = ["Expectation", "Ladder", "Step"]

_NEVER = float("inf")


class Step(StrEnum):
    """What a check found, or asks for."""

    STALE = "stale"
    """the topics are older than their cadence allows: tell the bots"""
    FRESH = "fresh"
    """their data is in time again, or their session has closed: tell the bots"""
    PROBE = "probe"
    """ask the venue something that it must answer, then call `probed`"""
    RESUBSCRIBE = "resubscribe"
    """give the topics back and ask anew on the same connection; where that is impossible, reconnect"""
    RECONNECT = "reconnect"
    """make a new connection"""
    ALARM = "alarm"
    """nothing helped: a person must look"""


@dataclass(frozen=True, slots=True)
class Ladder:
    """How far to go, and when, in seconds after a topic went stale.

    Attributes:
        probe: before the venue is asked whether it is there.
        resubscribe: before the topic is asked for anew.
        reconnect: before a new connection is made.
        rounds: new connections without data of the topic before the alarm; one is enough while other topics flow,
            since each blinds them.
        again: seconds from an alarm to the next round.
    """

    probe: float = 0.0
    resubscribe: float = 15.0
    reconnect: float = 45.0
    rounds: int = 3
    again: float = 900.0

    def __post_init__(self) -> None:
        if not 0 <= self.probe <= self.resubscribe <= self.reconnect < _NEVER:
            raise ConfigError(
                f"the steps must follow each other: 0 <= probe <= resubscribe <= reconnect, not {self}",
                key="ladder",
            )
        if self.rounds < 1 or not 0 < self.again < _NEVER:
            raise ConfigError(f"needs rounds >= 1 and again > 0, not {self}", key="ladder")


_RUNGS = (Step.PROBE, Step.RESUBSCRIBE, Step.RECONNECT)


class Expectation:
    """One topic over all connections; times are boottime seconds.

    Attributes:
        topic: which one.
        confirmed_at: when the venue confirmed it on this connection, None before.
        heard_at: its last data on this connection, None before.
        last_data: its last data over all connections.
        stale_since: when it went stale, None while it is not.
        blind_since: from when on it cannot be trusted (unconfirmed, unheard, stale, disconnected), None while it can.
        alarmed_at: when a person was called, None when that is over.
        lag: how late its events come.
    """

    __slots__ = ("_asked_at", "_base", "_fruitless", "_ladder", "_rung", "_span", "_stale_after", "alarmed_at",
                 "blind_since", "confirmed_at", "heard_at", "lag", "last_data", "stale_since", "topic")  # fmt: skip

    def __init__(
        self, topic: Topic, *, stale_after: float, ladder: Ladder, now: float | None = None
    ) -> None:
        self.topic = topic
        self.confirmed_at: float | None = None
        self.heard_at: float | None = None
        self.last_data: float | None = None
        self.stale_since: float | None = None
        self.blind_since: float | None = now
        self.alarmed_at: float | None = None
        self.lag = LagMeter()
        self._stale_after = stale_after
        self._ladder = ladder
        self._rung = 0
        self._base = 0.0  # when the ladder was set up
        self._fruitless = 0
        self._asked_at: float | None = None
        self._span: Span | None = None

    # --- facts ---

    def begin(self, now: float) -> None:
        """A connection began or ended: nothing is known on it."""
        self.confirmed_at = self.heard_at = self._asked_at = self._span = None
        self.stale_since, self._rung = None, 0
        self.lag.reset()
        if self.blind_since is None:
            self.blind_since = now

    def confirm(self, now: float) -> None:
        """The venue confirmed it; a second confirmation starts no new wait."""
        if self.confirmed_at is None:
            self.confirmed_at = now
            if self.topic.cadence is None:
                self.blind_since = None

    def hear(self, now: float, venue_at: float | None) -> bool:
        """Data arrived; True when it was stale until now."""
        self.last_data = self.heard_at = now
        if venue_at is not None:
            self.lag.saw(now, venue_at)
        if self.blind_since is None:
            return False
        return self._see()

    def _see(self) -> bool:
        if self.stale_since is not None and self.is_late:
            return False  # it flows, and too late: the next check judges it
        was_stale = self.stale_since is not None
        self.stale_since = self.blind_since = None
        self._rung = 0
        return was_stale

    @property
    def is_late(self) -> bool:
        """Whether its events come so late that they are stale at arrival."""
        return self.lag.value >= self._stale_after

    @property
    def is_expected(self) -> bool:
        """Whether data must come: confirmed, with a cadence, and its session open as of the last check."""
        open_ = self._span is None or self._span.is_open
        return self.topic.cadence is not None and self.confirmed_at is not None and open_

    @property
    def is_seen(self) -> bool:
        """Whether it is confirmed on this connection and what came of it can be trusted."""
        if self.confirmed_at is None or self.stale_since is not None:
            return False
        return self.heard_at is not None or not self.is_expected

    # --- judgement ---

    def judge(
        self, now: float, wall: datetime, others_flow: Callable[[], bool]
    ) -> Iterator[tuple[Step, str]]:
        """What is new, with the reason; `others_flow` tells whether other topics of the connection are fresh."""
        self.lag.judge(wall.timestamp() - now)
        since = self._waiting_since(now, wall)
        if since is None:
            yield from self._rest()
        elif self.topic.cadence is None:
            yield from self._ask(since, now)
        elif now < since + self.topic.cadence and not self.is_late:
            yield from self._be_fresh()
        else:
            yield from self._be_stale(since, now)
            yield from self._climb(since, now, others_flow)

    def _waiting_since(self, now: float, wall: datetime) -> float | None:
        """When the wait for the next data began; None while there is none to wait for."""
        if self.confirmed_at is None:
            return None
        since = (
            self.confirmed_at if self.heard_at is None else max(self.confirmed_at, self.heard_at)
        )
        calendar = self.topic.session
        if calendar is None:
            return since
        if self._span is None or wall not in self._span:
            self._span = calendar.span(wall)
        if not self._span.is_open:
            return None
        return max(since, now - (wall - self._span.start).total_seconds())

    def _rest(self) -> Iterator[tuple[Step, str]]:
        if self.confirmed_at is None:
            return
        self.blind_since = None  # there is nothing to see
        if self.stale_since is not None:
            self.stale_since, self._rung = None, 0
            yield Step.FRESH, f"{self.topic.name}: the session is closed"

    def _ask(self, since: float, now: float) -> Iterator[tuple[Step, str]]:
        if now >= self._ask_at(since):
            self._asked_at = now
            yield (
                Step.PROBE,
                f"{self.topic.name}: silent for {now - since:.0f} s, which may be normal",
            )

    def _ask_at(self, since: float) -> float:
        last = since if self._asked_at is None else max(since, self._asked_at)
        return last + self._stale_after

    def _be_fresh(self) -> Iterator[tuple[Step, str]]:
        if self.heard_at is None:
            return
        self._fruitless, self.alarmed_at = 0, None
        if self._see():
            yield Step.FRESH, f"{self.topic.name}: data is in time again"

    def _be_stale(self, since: float, now: float) -> Iterator[tuple[Step, str]]:
        if self.stale_since is not None:
            return
        assert self.topic.cadence is not None
        self.stale_since = min(now, since + self.topic.cadence)
        if self.blind_since is None:
            self.blind_since = since
        self._rung, self._base = 0, self.stale_since
        if self.alarmed_at is not None:
            self._base = max(self._base, self.alarmed_at + self._ladder.again)
        yield Step.STALE, self._complaint(since, now)

    def _climb(
        self, since: float, now: float, others_flow: Callable[[], bool]
    ) -> Iterator[tuple[Step, str]]:
        """All rungs of the ladder that are due."""
        reason = self._complaint(since, now)
        while now >= self._rung_at():
            step = _RUNGS[self._rung]
            self._rung += 1
            if step is Step.RECONNECT:
                yield from self._end_round(now, reason, others_flow())
            else:
                yield step, reason

    def _rung_at(self) -> float:
        ladder = self._ladder
        times = (ladder.probe, ladder.resubscribe, ladder.reconnect, _NEVER)
        return self._base + times[self._rung]

    def _end_round(self, now: float, reason: str, others_flow: bool) -> Iterator[tuple[Step, str]]:
        """The top of the ladder: a new connection; and an alarm when the earlier ones brought nothing."""
        self._fruitless += 1
        fruitless = self._fruitless - 1
        if fruitless >= (1 if others_flow else self._ladder.rounds):
            self.alarmed_at = now
            yield Step.ALARM, f"{reason}; nothing helped in {fruitless} rounds before"
        if others_flow and fruitless:
            # a new connection would blind the others: this topic alone is asked for again, later
            self._rung, self._base = 0, now + self._ladder.again
        else:
            yield Step.RECONNECT, reason

    def _complaint(self, since: float, now: float) -> str:
        if self.is_late:
            return f"{self.topic.name}: {self.lag.words}"
        return (
            f"{self.topic.name}: no data for {now - since:.0f} s, "
            f"expected every {self.topic.cadence:g} s"
        )

    def due_at(self, now: float, wall: datetime) -> float:
        """When `judge` may find something new without any fact; infinity when it waits for facts or a session."""
        if self.confirmed_at is not None and self.topic.session is not None and self._span is None:
            return now  # whether its session is open is not known yet
        since = self._waiting_since(now, wall)
        if since is None:
            return _NEVER
        if self.topic.cadence is None:
            return self._ask_at(since)
        return since + self.topic.cadence if self.stale_since is None else self._rung_at()

    def __repr__(self) -> str:
        return f"<Expectation {self.topic.name}, {'seen' if self.is_seen else 'not seen'}>"
