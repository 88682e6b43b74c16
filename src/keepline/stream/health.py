"""Whether a stream tells the truth: the freshness of each topic, never the mere openness of a connection.

Invariants: a connection that is open earns no health, its topics do; a reason stays until its own cause is gone,
whatever other reasons come and go; what a topic may do by itself is in `expectation`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from keepline.errors import ConfigError
from keepline.stream.expectation import Expectation, Ladder, Step
from keepline.stream.port import Topic
from keepline.stream.standing import Ident, ident_of

__all__ = ["Finding", "Health", "HealthStatus", "HealthWatch", "Ladder", "Step"]


class HealthStatus(StrEnum):
    """How far a stream can be trusted."""

    HEALTHY = "healthy"
    """every topic is confirmed, and fresh where data is expected"""
    DEGRADED = "degraded"
    """a part is missing, late or in doubt: the reasons say which"""
    UNHEALTHY = "unhealthy"
    """there is no connection, or nothing that is expected arrives"""


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


_Reason = tuple[HealthStatus, str]
_WORST = (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.HEALTHY)


class HealthWatch:
    """The health of one stream over all its connections.

    The face calls `check` when `deadline` comes, and does what the findings say.

    Example:
        >>> watch = HealthWatch()
        >>> quotes = Topic("GatewayQuote", key="MNQ", cadence=120.0)
        >>> watch.watch(quotes)
        >>> watch.connected(0.0)
        >>> watch.confirmed(quotes, 0.0)
        >>> [finding.step.value for finding in watch.check(120.0, datetime(2026, 1, 5, 15, tzinfo=UTC))]
        ['stale', 'probe']
    """

    def __init__(
        self,
        *,
        heartbeat: float = 30.0,
        stale_after: float = 120.0,
        lag_limit: float = 5.0,
        probe_timeout: float = 15.0,
        ladder: Ladder = Ladder(),  # noqa: B008 - frozen
    ) -> None:
        """
        Args:
            heartbeat: seconds between checks at most.
            stale_after: seconds of silence after which a topic that may be silent is asked about, and the age (venue
                time against arrival) at which data of any topic is stale on arrival.
            lag_limit: seconds by which events may come late before the stream counts as degraded.
            probe_timeout: seconds in which a probe must be answered (`probed`).
            ladder: what is done about a stale topic, and when.

        Raises:
            ConfigError: a number that is not positive.
        """
        for key, value in (("heartbeat", heartbeat), ("stale_after", stale_after),
                           ("lag_limit", lag_limit), ("probe_timeout", probe_timeout)):  # fmt: skip
            if not 0 < value < float("inf"):
                raise ConfigError(f"a number of seconds above 0, not {value!r}", key=key)
        self._heartbeat = heartbeat
        self._stale_after = stale_after
        self._lag_limit = lag_limit
        self._probe_timeout = probe_timeout
        self._ladder = ladder
        self._topics: dict[Ident, Expectation] = {}
        self._connected = False
        self._probed_at: float | None = None  # a probe is under way since then
        self._probe_failed: tuple[float, str] | None = None  # when it was asked, and how it ended
        self._dead_rounds = 0
        self._notes: dict[str, _Reason] = {}
        self.note("connection", "not connected yet", status=HealthStatus.UNHEALTHY)

    # --- facts ---

    def watch(self, topic: Topic, now: float | None = None) -> None:
        """A topic is wanted (blind since `now`); nothing is expected of it before `confirmed`."""
        ident = ident_of(topic)
        if ident not in self._topics:
            self._topics[ident] = Expectation(
                topic, stale_after=self._stale_after, ladder=self._ladder, now=now
            )

    def unwatch(self, topic: Topic) -> None:
        """Nobody wants the topic any more."""
        self._topics.pop(ident_of(topic), None)

    def connected(self, now: float) -> None:
        """A full connection is open: each topic's wait starts at its confirmation."""
        self._begin(now, connected=True)
        self.clear("connection")

    def disconnected(self, now: float, reason: str) -> None:
        """The connection is gone, in words that people read."""
        self._begin(now, connected=False)
        self.note("connection", reason or "not connected", status=HealthStatus.UNHEALTHY)

    def _begin(self, now: float, *, connected: bool) -> None:
        self._connected = connected
        self._probed_at = self._probe_failed = None
        for one in self._topics.values():
            one.begin(now)

    def confirmed(self, topic: Topic, now: float) -> None:
        """The venue confirmed a subscription: data is expected from now on."""
        one = self._topics.get(ident_of(topic))
        if one is not None:
            one.confirm(now)

    def data(self, ident: Ident, now: float, venue_at: float | None = None) -> bool:
        """Data of a topic arrived: cheap, for every message.

        Args:
            ident: channel and key.
            now: arrival, boottime seconds.
            venue_at: the event's time at the venue, epoch seconds, when it carries one.

        Returns:
            True when the topic was stale until now and is fresh again.
        """
        one = self._topics.get(ident)
        return one is not None and one.hear(now, venue_at)

    def probed(self, now: float, error: str | None = None) -> None:
        """A probe was answered, or failed in the words given. An answer is life, not freshness."""
        if self._probed_at is None or now < self._probed_at:
            return  # of an earlier connection
        if error is None:
            self._dead_rounds = 0
        else:
            self._probe_failed = self._probed_at, error
        self._probed_at = None

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
            What is new since the last check, at most one finding of each step; nothing while disconnected.
        """
        if not self._connected:
            return []
        found: dict[Step, list[tuple[Topic | None, str]]] = {}
        for one in self._topics.values():
            for step, reason in one.judge(now, wall, lambda one=one: self._others_flow(one)):  # type: ignore[misc]
                found.setdefault(step, []).append((one.topic, reason))
        for step, reason in self._judge_probe(now):
            found.setdefault(step, []).append((None, reason))
        self._leave_out(found, now)
        return [_finding(step, found[step]) for step in Step if step in found]

    def _others_flow(self, one: Expectation) -> bool:
        return any(
            other.is_expected and other.is_seen
            for other in self._topics.values()
            if other is not one
        )

    def _judge_probe(self, now: float) -> Iterator[tuple[Step, str]]:
        """A probe that failed, and no data since it was asked: nobody is there, only a new connection helps."""
        heard = [one.heard_at for one in self._topics.values() if one.heard_at is not None]
        if heard:
            self._dead_rounds = 0
        if self._probed_at is not None and now >= self._probed_at + self._probe_timeout:
            self._probe_failed = self._probed_at, f"no answer in {self._probe_timeout:g} s"
            self._probed_at = None
        if self._probe_failed is None:
            return
        asked_at, error = self._probe_failed
        self._probe_failed = None
        if heard and max(heard) >= asked_at:
            return
        if self._dead_rounds >= self._ladder.rounds:
            yield (
                Step.ALARM,
                f"a probe failed: {error}; so it did on {self._dead_rounds} connections before",
            )
        self._dead_rounds += 1
        yield Step.RECONNECT, f"a probe failed: {error}"

    def _leave_out(self, found: dict[Step, list[tuple[Topic | None, str]]], now: float) -> None:
        """A new connection makes smaller steps needless; one probe at a time is enough."""
        if Step.RECONNECT in found:
            found.pop(Step.PROBE, None)
            found.pop(Step.RESUBSCRIBE, None)
        elif Step.PROBE in found:
            if self._probed_at is None:
                self._probed_at = now
            else:
                del found[Step.PROBE]

    def deadline(self, now: float, wall: datetime) -> float:
        """When to call `check` next (boottime seconds): a heartbeat from now at most."""
        at = now + self._heartbeat
        if self._connected:
            at = min((one.due_at(now, wall) for one in self._topics.values()), default=at)
            if self._probed_at is not None:
                at = min(at, self._probed_at + self._probe_timeout)
        return max(min(at, now + self._heartbeat), now)

    # --- where things stand ---

    @property
    def health(self) -> Health:
        """Status and reasons as of the last facts and checks."""
        reasons = sorted(self._reasons(), key=lambda reason: _WORST.index(reason[0]))
        if not reasons:
            return Health(HealthStatus.HEALTHY)
        return Health(reasons[0][0], tuple(text for _, text in reasons))

    def _reasons(self) -> Iterator[_Reason]:
        yield from self._notes.values()
        if not self._connected:
            return
        topics = list(self._topics.values())
        yield from self._stale_reasons(topics)
        for one in topics:
            if one.stale_since is None and one.lag.value >= self._lag_limit:
                yield HealthStatus.DEGRADED, f"{one.topic.name}: {one.lag.words}"
        if names := [one.topic.name for one in topics if one.confirmed_at is None]:
            yield HealthStatus.DEGRADED, f"not confirmed: {_listed(names)}"
        waiting = [one for one in topics if one.is_expected and one.heard_at is None]
        if names := [one.topic.name for one in waiting if one.stale_since is None]:
            yield HealthStatus.DEGRADED, f"no data yet on this connection: {_listed(names)}"

    def _stale_reasons(self, topics: Sequence[Expectation]) -> Iterator[_Reason]:
        stale = [one for one in topics if one.stale_since is not None]
        if not stale:
            return
        nothing_else = not any(one.is_expected and one.stale_since is None for one in topics)
        status = HealthStatus.UNHEALTHY if nothing_else else HealthStatus.DEGRADED
        yield status, f"stale: {_listed([one.topic.name for one in stale])}"
        if alarmed := [one.topic.name for one in stale if one.alarmed_at is not None]:
            yield HealthStatus.UNHEALTHY, f"nothing helped so far: {_listed(alarmed)}"

    def is_stale(self, topic: Topic) -> bool:
        """Whether a topic's data is older than its cadence allows, as of the last check."""
        one = self._topics.get(ident_of(topic))
        return one is not None and one.stale_since is not None

    def sees(self, topic: Topic) -> bool:
        """Whether a topic is confirmed on this connection, not stale, and heard of where data is expected."""
        one = self._topics.get(ident_of(topic))
        return self._connected and one is not None and one.is_seen

    def blind_since(self, topic: Topic) -> float | None:
        """From when on a topic cannot be trusted (boottime seconds): its last data before it went stale, or the loss of
        the connection; None while it can, and for an unknown topic."""
        one = self._topics.get(ident_of(topic))
        return None if one is None else one.blind_since

    def last_data(self, topic: Topic) -> float | None:
        """When data of a topic last arrived (boottime seconds), over all connections; None when never."""
        one = self._topics.get(ident_of(topic))
        return None if one is None else one.last_data

    def lag(self, topic: Topic) -> float:
        """Seconds by which the topic's freshest events came late, as of the last check."""
        one = self._topics.get(ident_of(topic))
        return 0.0 if one is None else one.lag.value

    def __repr__(self) -> str:
        return f"<HealthWatch {self.health.status}, {len(self._topics)} topics>"


def _finding(step: Step, pairs: Sequence[tuple[Topic | None, str]]) -> Finding:
    topics = tuple(topic for topic, _ in pairs if topic is not None)
    more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
    return Finding(step, topics, pairs[0][1] + more)


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
