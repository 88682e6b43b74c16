"""Whether a stream tells the truth: freshness per topic against its cadence and its session, never mere openness.

Invariants: only a topic's own data makes it fresh, pings and other topics' messages do not; what is silent by nature
(cadence None) is asked, not accused; a closed session accuses nobody and its opening starts the expectation anew; the
ladder probe → resubscribe → reconnect ends in an alarm after a number of fruitless rounds and never goes round in
silence; a reason stays until its own cause is gone, whatever other reasons come and go.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from keepline.errors import ConfigError
from keepline.stream.calendar import Span
from keepline.stream.lag import LagMeter
from keepline.stream.port import Topic
from keepline.stream.subscriptions import Ident, ident_of

__all__ = ["Finding", "Health", "HealthStatus", "HealthWatch", "Ladder", "Step"]


class HealthStatus(StrEnum):
    """Contract: what a bot sees of a stream."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Step(StrEnum):
    """What a check found, or asks for."""

    STALE = "stale"
    """the topics are older than their cadence allows: tell the bots"""
    FRESH = "fresh"
    """data of the topics is back, or their session has closed: tell the bots"""
    PROBE = "probe"
    """ask the venue something that it must answer, then call `probed`"""
    RESUBSCRIBE = "resubscribe"
    """give the topics back and ask anew on the same connection; where that is impossible, reconnect"""
    RECONNECT = "reconnect"
    """make a new connection"""
    ALARM = "alarm"
    """nothing helped: a person must look"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to do or to say.

    Attributes:
        step: what.
        topics: about which; empty for the whole connection.
        reason: in words.
    """

    step: Step
    topics: tuple[Topic, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Health:
    """Status with its reasons, worst first; healthy has none."""

    status: HealthStatus
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ladder:
    """How far to go, and when, in seconds after a topic went stale.

    Attributes:
        probe: before the venue is asked whether it is there.
        resubscribe: before the topic is asked for anew.
        reconnect: before a new connection is made.
        rounds: reconnects without data of the topic before the alarm.
        again: seconds between further rounds after the alarm; each raises it again.
    """

    probe: float = 0.0
    resubscribe: float = 15.0
    reconnect: float = 45.0
    rounds: int = 3
    again: float = 900.0

    def __post_init__(self) -> None:
        if not 0 <= self.probe <= self.resubscribe <= self.reconnect < float("inf"):
            raise ConfigError(
                f"the steps must follow each other: 0 <= probe <= resubscribe <= reconnect, not {self}",
                key="ladder",
            )
        if self.rounds < 1 or not 0 < self.again < float("inf"):
            raise ConfigError(f"needs rounds >= 1 and again > 0, not {self}", key="ladder")


_RUNGS = (Step.PROBE, Step.RESUBSCRIBE, Step.RECONNECT)


@dataclass(slots=True)
class _Watch:
    """One topic's expectation."""

    topic: Topic
    confirmed_at: float | None = None
    last_data: float | None = None  # over all connections
    heard_at: float | None = None  # data on this connection
    stale_since: float | None = None
    rung: int = 0
    fruitless: int = 0  # rounds of the ladder without data
    alarmed_at: float | None = None
    asked_at: float | None = None
    span: Span | None = None
    lag: LagMeter = field(default_factory=LagMeter)


class HealthWatch:
    """The health of one stream over all its connections.

    The face calls `check` when `deadline` comes, and does what the findings say.
    """

    def __init__(
        self,
        *,
        heartbeat: float = 30.0,
        stale_after: float = 120.0,
        lag_limit: float = 5.0,
        ladder: Ladder = Ladder(),
    ) -> None:
        """
        Args:
            heartbeat: seconds between checks at most.
            stale_after: seconds of silence after which a topic that may be silent is asked about; how old the data of
                any topic may be, venue time against arrival.
            lag_limit: seconds by which events may come late before the stream counts as degraded.
            ladder: what is done about a stale topic, and when.

        Raises:
            ConfigError: a number that is not positive.
        """
        for key, value in (
            ("heartbeat", heartbeat),
            ("stale_after", stale_after),
            ("lag_limit", lag_limit),
        ):
            if not 0 < value < float("inf"):
                raise ConfigError(f"a number of seconds above 0, not {value!r}", key=key)
        self._heartbeat = heartbeat
        self._stale_after = stale_after
        self._lag_limit = lag_limit
        self._ladder = ladder
        self._watches: dict[Ident, _Watch] = {}
        self._connected = False
        self._probe_asked = False
        self._notes: dict[str, tuple[HealthStatus, str]] = {}
        self._checked_at: float | None = None
        self.note("connection", "not connected yet", status=HealthStatus.UNHEALTHY)

    # --- facts ---

    def watch(self, topic: Topic) -> None:
        """A topic is wanted; nothing is expected of it before `confirmed`."""
        self._watches.setdefault(ident_of(topic), _Watch(topic))

    def unwatch(self, topic: Topic) -> None:
        """Nobody wants the topic any more."""
        self._watches.pop(ident_of(topic), None)

    def connected(self, now: float) -> None:
        """A full connection is open: each topic's expectation starts at its confirmation."""
        self._connected = True
        self._begin(now)
        self.clear("connection")

    def disconnected(self, now: float, reason: str) -> None:
        """The connection is gone, in words that people read."""
        self._connected = False
        self._begin(now)
        self.note("connection", reason or "not connected", status=HealthStatus.UNHEALTHY)

    def _begin(self, now: float) -> None:
        self._probe_asked = False
        self.clear("probe")
        self._checked_at = now
        for watch in self._watches.values():
            watch.confirmed_at = watch.heard_at = watch.asked_at = None
            watch.stale_since, watch.rung = None, 0
            watch.lag.reset()

    def confirmed(self, topic: Topic, now: float) -> None:
        """The venue confirmed a subscription: data is expected from now on."""
        watch = self._watches.get(ident_of(topic))
        if watch is not None and watch.confirmed_at is None:
            watch.confirmed_at = now

    def data(self, ident: Ident, now: float, venue_at: float | None = None) -> bool:
        """Data of a topic arrived: cheap, for every message.

        Args:
            ident: channel and key.
            now: arrival, boottime seconds.
            venue_at: the event's time at the venue, epoch seconds, when it carries one.

        Returns:
            True when the topic was stale until now and is fresh again.
        """
        watch = self._watches.get(ident)
        if watch is None:
            return False
        watch.last_data = watch.heard_at = now
        if venue_at is not None:
            watch.lag.saw(now, venue_at)
        if watch.stale_since is None:
            if watch.fruitless:
                watch.fruitless, watch.alarmed_at = 0, None
            return False
        return self._refresh(watch)

    def _refresh(self, watch: _Watch) -> bool:
        if watch.lag.value >= self._stale_after:
            return False  # it flows, and it flows too late
        watch.stale_since, watch.rung = None, 0
        watch.fruitless, watch.alarmed_at = 0, None
        return True

    def probed(self, now: float, error: str | None = None) -> None:
        """A probe was answered, or failed in the words given. An answer is life, not freshness."""
        self._probe_asked = False
        if error is None:
            self.clear("probe")
        else:
            self.note("probe", f"the venue does not answer a probe: {error}")

    def note(self, name: str, text: str, *, status: HealthStatus = HealthStatus.DEGRADED) -> None:
        """Hold a reason of somebody else's (`overflow`, `reconciling`, …) until `clear` of the same name."""
        self._notes[name] = (status, text)

    def clear(self, name: str) -> None:
        """Drop the reason of that name; other reasons stay."""
        self._notes.pop(name, None)

    # --- checks ---

    def check(self, now: float, wall: datetime) -> list[Finding]:
        """Judge every topic, and say what has to be done.

        Args:
            now: boottime seconds.
            wall: the same moment on the wall clock (aware): sessions live there.

        Returns:
            What is new since the last check; at most one finding of each step.
        """
        self._checked_at = now
        found: dict[Step, list[tuple[Topic, str]]] = {}
        if self._connected:
            for watch in self._watches.values():
                for step, reason in self._judge(watch, now, wall):
                    found.setdefault(step, []).append((watch.topic, reason))
            self._judge_probe(found)
        return [_finding(step, found[step]) for step in Step if step in found]

    def _judge(self, watch: _Watch, now: float, wall: datetime) -> Iterator[tuple[Step, str]]:
        if watch.confirmed_at is None:
            return
        anchor = wall.timestamp() - now
        watch.lag.judge(anchor)
        since = self._expected_since(watch, now, wall)
        if since is None:
            if watch.stale_since is not None:
                watch.stale_since, watch.rung = None, 0
                yield Step.FRESH, "the session is closed"
            return
        if watch.topic.cadence is None:
            yield from self._ask(watch, since, now)
            return
        limit_at = since + watch.topic.cadence
        late = watch.lag.value >= self._stale_after
        if watch.stale_since is None:
            if now < limit_at and not late:
                return
            watch.stale_since = now if late and now < limit_at else limit_at
            watch.rung = 0
            yield Step.STALE, self._complaint(watch, since, now)
        elif now < limit_at and not late:
            self._refresh(watch)
            yield Step.FRESH, "data is in time again"
            return
        yield from self._climb(watch, since, now)

    def _expected_since(self, watch: _Watch, now: float, wall: datetime) -> float | None:
        """When the wait for the next data began; None while the session is closed."""
        assert watch.confirmed_at is not None
        since = max(watch.confirmed_at, watch.heard_at or watch.confirmed_at)
        calendar = watch.topic.session
        if calendar is None:
            return since
        if watch.span is None or wall not in watch.span:
            watch.span = calendar.span(wall)
        if not watch.span.is_open:
            return None
        return max(since, now - (wall - watch.span.start).total_seconds())

    def _ask(self, watch: _Watch, since: float, now: float) -> Iterator[tuple[Step, str]]:
        """What may be silent is asked about now and then."""
        last = max(since, watch.asked_at or since)
        if now >= last + self._stale_after:
            watch.asked_at = now
            yield Step.PROBE, f"silent for {now - since:.0f} s, which may be normal"

    def _climb(self, watch: _Watch, since: float, now: float) -> Iterator[tuple[Step, str]]:
        """The next rungs of the ladder that are due."""
        assert watch.stale_since is not None
        if watch.rung >= len(_RUNGS):
            return
        reason = self._complaint(watch, since, now)
        while watch.rung < len(_RUNGS) and now >= self._rung_at(watch):
            step = _RUNGS[watch.rung]
            watch.rung += 1
            if step is Step.RECONNECT:
                yield from self._round(watch, now, reason)
            else:
                yield step, reason

    def _rung_at(self, watch: _Watch) -> float:
        assert watch.stale_since is not None
        ladder = self._ladder
        times = (ladder.probe, ladder.resubscribe, ladder.reconnect)
        at = watch.stale_since + times[watch.rung]
        if watch.alarmed_at is not None:
            at = max(at, watch.alarmed_at + ladder.again)
        return at

    def _round(self, watch: _Watch, now: float, reason: str) -> Iterator[tuple[Step, str]]:
        """The top of the ladder: a new connection, and an alarm when the earlier ones were fruitless."""
        others_flow = self._others_flow(watch, now)
        watch.fruitless += 1
        if watch.fruitless > (1 if others_flow else self._ladder.rounds):
            watch.alarmed_at = now
            yield Step.ALARM, f"{reason}; {watch.fruitless - 1} new connections brought nothing"
        if others_flow and watch.fruitless > 1:
            watch.rung = (
                1  # a new connection would blind the others: only this topic is asked for, later
            )
        else:
            yield Step.RECONNECT, reason

    def _others_flow(self, watch: _Watch, now: float) -> bool:
        return any(
            other.stale_since is None and other.heard_at is not None
            for other in self._watches.values()
            if other is not watch and other.topic.cadence is not None
        )

    def _judge_probe(self, found: dict[Step, list[tuple[Topic, str]]]) -> None:
        if Step.PROBE in found:
            if self._probe_asked:
                del found[Step.PROBE]
            self._probe_asked = True

    def _complaint(self, watch: _Watch, since: float, now: float) -> str:
        limit = watch.topic.cadence
        if watch.lag.value >= self._stale_after:
            return f"{watch.topic.name}: events come {watch.lag.value:.0f} s after their time at the venue"
        return f"{watch.topic.name}: no data for {now - since:.0f} s, expected every {limit:g} s"

    def deadline(self, now: float, wall: datetime) -> float:
        """When to call `check` next (boottime seconds): a heartbeat from now at most."""
        at = now + self._heartbeat
        if self._connected:
            for watch in self._watches.values():
                at = min(at, self._due_at(watch, now, wall))
        return max(at, now)

    def _due_at(self, watch: _Watch, now: float, wall: datetime) -> float:
        if watch.confirmed_at is None:
            return float("inf")
        since = self._expected_since(watch, now, wall)
        if since is None:
            return float("inf")
        if watch.topic.cadence is None:
            return max(since, watch.asked_at or since) + self._stale_after
        if watch.stale_since is None:
            return since + watch.topic.cadence
        return self._rung_at(watch) if watch.rung < len(_RUNGS) else float("inf")

    # --- where things stand ---

    @property
    def health(self) -> Health:
        """Status and reasons as of the last facts and checks."""
        reasons = sorted(self._reasons(), key=lambda pair: _WORST.index(pair[0]))
        if not reasons:
            return Health(HealthStatus.HEALTHY)
        return Health(reasons[0][0], tuple(text for _, text in reasons))

    def _reasons(self) -> Iterator[tuple[HealthStatus, str]]:
        yield from self._notes.values()
        stale = [watch for watch in self._watches.values() if watch.stale_since is not None]
        expected = [
            watch
            for watch in self._watches.values()
            if watch.topic.cadence is not None and watch.confirmed_at is not None
            and (watch.span is None or watch.span.is_open)
        ]  # fmt: skip
        all_stale = bool(stale) and len(stale) == len(expected)
        for watch in stale:
            worse = all_stale or watch.alarmed_at is not None
            status = HealthStatus.UNHEALTHY if worse else HealthStatus.DEGRADED
            yield status, f"{watch.topic.name} is stale"
        for watch in self._watches.values():
            if watch.stale_since is None and watch.lag.value >= self._lag_limit:
                yield HealthStatus.DEGRADED, f"{watch.topic.name}: {watch.lag.words}"

    def is_stale(self, topic: Topic) -> bool:
        """Whether a topic's data is older than its cadence allows, as of the last check."""
        watch = self._watches.get(ident_of(topic))
        return watch is not None and watch.stale_since is not None

    def last_data(self, topic: Topic) -> float | None:
        """When data of a topic last arrived (boottime seconds), over all connections; None when never."""
        watch = self._watches.get(ident_of(topic))
        return None if watch is None else watch.last_data

    def lag(self, topic: Topic) -> float:
        """Seconds by which the topic's freshest events came late, as of the last check."""
        watch = self._watches.get(ident_of(topic))
        return 0.0 if watch is None else watch.lag.value

    def __repr__(self) -> str:
        return f"<HealthWatch {self.health.status}, {len(self._watches)} topics>"


_WORST = (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.HEALTHY)


def _finding(step: Step, pairs: Iterable[tuple[Topic, str]]) -> Finding:
    topics, reasons = zip(*pairs, strict=True)
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return Finding(step, tuple(topics), reasons[0] + more)
