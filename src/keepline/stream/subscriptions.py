"""What is wanted from a stream, and what the venue has confirmed of it: a decider over intents and connections.

Invariants: an intent outlives every connection; on one connection (an epoch) a topic is never asked for twice without
having been given back in between; the first requests of an epoch go out in the order in which the topics were wanted;
an answer that belongs to an earlier epoch changes nothing. Two epochs may be open at once, so that a new connection is
filled before the old one is dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from keepline.errors import ConfigError
from keepline.resilience.backoff import Backoff
from keepline.stream.port import Topic
from keepline.stream.standing import Action, Command, Ident, Phase, Standing, ident_of

__all__ = ["Action", "Command", "Ident", "Phase", "Registry", "Standing", "ident_of"]


class _Venue(Enum):
    """What the venue has of a topic on one connection, as far as we can know."""

    ABSENT = 0
    ASKED = 1  # a subscribe is under way
    PRESENT = 2
    LEAVING = 3  # an unsubscribe is under way
    DOUBTFUL = (
        4  # an answer was lost: it may be there, so it is given back before it is asked for again
    )


@dataclass(slots=True)
class _Intent:
    topic: Topic
    holders: int = 1


@dataclass(slots=True)
class _Held:
    """One topic on one connection."""

    topic: Topic
    venue: _Venue = _Venue.ABSENT
    serial: int = 0
    failures: int = 0
    reason: str = ""
    retry_at: float | None = None
    seen: bool = False
    renew: bool = False  # it is given back and asked for anew
    lost: Action | None = None  # which request's answer was lost


class Registry:
    """The intents above the connections: wanted, pending, confirmed, first data seen.

    Example:
        >>> registry = Registry()
        >>> registry.want(Topic("GatewayQuote", ("SubscribeContractQuotes", "MNQ"), key="MNQ"))
        True
        >>> epoch = registry.connected()
        >>> [command] = registry.due(now=0.0)
        >>> registry.confirmed(command)
        True
        >>> registry.settled()
        True
    """

    def __init__(
        self,
        *,
        backoff: Backoff = Backoff((1.0, 2.0, 5.0, 10.0, 30.0, 60.0)),  # noqa: B008 - frozen
        parallel: int = 16,
        doubts: int = 3,
    ) -> None:
        """
        Args:
            backoff: waits before a refused request is repeated on the same connection.
            parallel: how many requests may be under way per connection; 1 for venues that mind.
            doubts: after so many lost answers in a row for one topic only a new connection gives certainty.
        """
        if parallel < 1 or doubts < 1:
            raise ConfigError(
                f"a number from 1 up is needed, not parallel={parallel!r}, doubts={doubts!r}",
                key="parallel" if parallel < 1 else "doubts",
            )
        self._backoff = backoff
        self._parallel = parallel
        self._doubts = doubts
        self._intents: dict[Ident, _Intent] = {}
        self._epochs: dict[int, dict[Ident, _Held]] = {}
        self._newest = 0
        self._made = 0
        self._serial = 0

    # --- intents ---

    def want(self, topic: Topic) -> bool:
        """Somebody wants a topic; True when this is the first holder.

        Raises:
            ConfigError: the same channel and key were wanted with another request before.
        """
        ident = ident_of(topic)
        intent = self._intents.get(ident)
        if intent is not None:
            if not _same_request(intent.topic, topic):
                raise ConfigError(
                    f"{topic.name} is already subscribed with {intent.topic.subscribe!r}, it cannot be with "
                    f"{topic.subscribe!r} too: give the topics different keys",
                    key="key",
                )
            intent.holders += 1
            return False
        self._intents[ident] = _Intent(topic)
        for held in self._epochs.values():
            one = held.pop(ident, None) or _Held(topic)
            one.renew = not _same_request(one.topic, topic)  # it is there, by another request
            held[ident] = one  # at the end of the order
        return True

    def release(self, topic: Topic) -> bool:
        """A holder goes; True when it was the last one and the topic is given back."""
        ident = ident_of(topic)
        intent = self._intents.get(ident)
        if intent is None:
            return False
        intent.holders -= 1
        if intent.holders:
            return False
        del self._intents[ident]
        for epoch in self._epochs:
            self._tidy(epoch, ident)
        return True

    @property
    def wanted(self) -> tuple[Topic, ...]:
        """All topics that somebody wants, in the order in which they were wanted first."""
        return tuple(intent.topic for intent in self._intents.values())

    def holders(self, topic: Topic) -> int:
        """How many share a topic."""
        intent = self._intents.get(ident_of(topic))
        return intent.holders if intent else 0

    # --- connections ---

    def connected(self) -> int:
        """A full (not a resumed) connection is open: nothing is subscribed on it. Returns its epoch."""
        self._made += 1
        self._newest = self._made
        self._epochs[self._newest] = {
            ident: _Held(intent.topic) for ident, intent in self._intents.items()
        }
        return self._newest

    def disconnected(self, epoch: int | None = None) -> None:
        """A connection is gone with all it had; without an epoch all of them are. Intents stay."""
        if epoch is None:
            self._epochs.clear()
        else:
            self._epochs.pop(epoch, None)
        self._newest = max(self._epochs, default=0)

    @property
    def epoch(self) -> int:
        """The newest connection that is open, 0 when none is."""
        return self._newest

    def _on(self, epoch: int | None) -> dict[Ident, _Held]:
        return self._epochs.get(self._newest if epoch is None else epoch, {})

    # --- requests ---

    def due(self, now: float, epoch: int | None = None) -> list[Command]:
        """What must be sent now, each once: givings-back first, then what is asked for, in order.

        Args:
            now: boottime seconds.
            epoch: one connection only; None for all that are open.
        """
        commands: list[Command] = []
        for number in self._epochs if epoch is None else (epoch,):
            commands += self._due_on(number, now)
        return commands

    def _due_on(self, epoch: int, now: float) -> list[Command]:
        held = self._epochs.get(epoch, {})
        under_way = sum(one.venue in (_Venue.ASKED, _Venue.LEAVING) for one in held.values())
        free = self._parallel - under_way
        ready = [
            (action, one)
            for ident, one in held.items()
            if (action := self._next(ident, one)) is not None
            and (one.retry_at is None or one.retry_at <= now)
        ]
        ready.sort(key=lambda pair: pair[0] is Action.SUBSCRIBE)  # stable: the order stays
        return [self._command(epoch, action, one) for action, one in ready[: max(free, 0)]]

    def _next(self, ident: Ident, one: _Held) -> Action | None:
        wanted = ident in self._intents
        if one.venue is _Venue.ABSENT:
            return Action.SUBSCRIBE if wanted else None
        if one.topic.unsubscribe is None:
            return None
        if one.venue is _Venue.DOUBTFUL:
            return Action.UNSUBSCRIBE
        if one.venue is _Venue.PRESENT and (one.renew or not wanted):
            return Action.UNSUBSCRIBE
        return None

    def _command(self, epoch: int, action: Action, one: _Held) -> Command:
        self._serial += 1
        one.serial = self._serial
        one.retry_at = None
        one.venue = _Venue.LEAVING
        if action is Action.SUBSCRIBE:
            one.venue = _Venue.ASKED
            one.topic = self._intents[ident_of(one.topic)].topic
            one.seen = one.renew = False
        return Command(epoch, action, one.topic, self._serial)

    def confirmed(self, command: Command) -> bool:
        """The venue said yes; False when the answer is too old to matter."""
        one = self._open(command)
        if one is None:
            return False
        one.failures, one.reason, one.retry_at, one.lost = 0, "", None, None
        one.venue = _Venue.PRESENT if command.action is Action.SUBSCRIBE else _Venue.ABSENT
        self._tidy(command.epoch, ident_of(command.topic))
        return True

    def failed(
        self,
        command: Command,
        now: float,
        *,
        reason: str,
        in_doubt: bool = False,
        permanent: bool = False,
        retry_after: float | None = None,
        chance: float = 0.5,
    ) -> bool:
        """The venue said no, or nothing; False when the answer is too old to matter.

        Args:
            command: as `due` gave it.
            now: boottime seconds.
            reason: in words, without secrets.
            in_doubt: no answer can be trusted: the venue may have done it.
            permanent: the same request will fail again: only the longest wait makes sense; and a giving-back that is
                refused so has nothing to give back.
            retry_after: seconds that the venue asked for.
            chance: a number in [0, 1) that spreads the wait.
        """
        one = self._open(command)
        if one is None:
            return False
        one.failures += 1
        one.reason = reason
        one.lost = command.action if in_doubt else None
        steps = len(self._backoff.delays) + 1 if permanent else one.failures
        one.retry_at = now + max(self._backoff.delay(steps, chance), retry_after or 0.0)
        one.venue = _after_failure(command.action, in_doubt=in_doubt, permanent=permanent)
        if command.action is Action.UNSUBSCRIBE and one.venue is _Venue.ABSENT:
            one.retry_at = None
        self._tidy(command.epoch, ident_of(command.topic))
        return True

    def _open(self, command: Command) -> _Held | None:
        one = self._epochs.get(command.epoch, {}).get(ident_of(command.topic))
        under_way = one is not None and one.venue in (_Venue.ASKED, _Venue.LEAVING)
        return one if one is not None and under_way and one.serial == command.serial else None

    def _tidy(self, epoch: int, ident: Ident) -> None:
        """Forget what nobody wants and the venue does not have."""
        held = self._epochs[epoch]
        one = held.get(ident)
        if one is not None and one.venue is _Venue.ABSENT and ident not in self._intents:
            del held[ident]

    def resubscribe(self, topic: Topic) -> bool:
        """Give a confirmed topic back and ask anew on the same connection.

        Returns:
            False when that is impossible: the venue cannot give it back, or has not confirmed it. Then only a new
            connection helps.
        """
        one = self._on(None).get(ident_of(topic))
        if one is None or one.venue is not _Venue.PRESENT or one.topic.unsubscribe is None:
            return False
        one.renew = True
        one.retry_at = None
        return True

    def data(self, ident: Ident, epoch: int | None = None) -> bool:
        """Data of a topic arrived; True for the first on this connection.

        Where the answer to a subscribe was lost, data is the answer.
        """
        one = self._epochs.get(self._newest if epoch is None else epoch, _NOTHING).get(ident)
        if one is None or one.seen:
            return False
        if one.venue is _Venue.DOUBTFUL and one.lost is Action.SUBSCRIBE:
            one.failures, one.reason, one.retry_at, one.lost = 0, "", None, None
            one.venue = _Venue.PRESENT
        one.seen = True
        return True

    # --- where things stand ---

    def phase(self, topic: Topic, epoch: int | None = None) -> Phase:
        """How far a topic has come on a connection, the newest one by default."""
        ident = ident_of(topic)
        if ident not in self._intents:
            return Phase.UNKNOWN
        one = self._on(epoch).get(ident)
        return Phase.WANTED if one is None else self._phase_of(one)

    def _phase_of(self, one: _Held) -> Phase:
        if one.venue is _Venue.PRESENT and not one.renew:
            return Phase.FIRST_DATA if one.seen else Phase.CONFIRMED
        return Phase.PENDING if one.venue is _Venue.ASKED else Phase.WANTED

    def settled(self, epoch: int | None = None) -> bool:
        """Whether everything that is wanted is confirmed on a connection, the newest one by default."""
        held = self._epochs.get(self._newest if epoch is None else epoch)
        if held is None:
            return False
        there = (Phase.CONFIRMED, Phase.FIRST_DATA)
        return all(self._phase_of(held[ident]) in there for ident in self._intents)

    def standings(self) -> list[Standing]:
        """Every wanted topic on the newest connection, in order."""
        return list(self._standings(self._on(None)))

    def _standings(self, held: dict[Ident, _Held]) -> Iterator[Standing]:
        for ident, intent in self._intents.items():
            one = held.get(ident) or _Held(intent.topic)
            yield Standing(
                intent.topic,
                self._phase_of(one),
                intent.holders,
                one.failures,
                one.reason,
                one.retry_at,
            )

    def deadline(self) -> float | None:
        """When `due` has something new without any event (boottime seconds), None when it waits for events."""
        waits = (
            one.retry_at
            for held in self._epochs.values()
            for ident, one in held.items()
            if one.retry_at is not None and self._next(ident, one) is not None
        )
        return min(waits, default=None)

    def hopeless(self, epoch: int | None = None) -> str | None:
        """Why only a new connection gives certainty, None while this one can."""
        held = self._on(epoch)
        texts = (self._hopeless(held[ident]) for ident in self._intents if ident in held)
        return next((text for text in texts if text is not None), None)

    def _hopeless(self, one: _Held) -> str | None:
        if one.topic.unsubscribe is None and one.venue is _Venue.DOUBTFUL:
            return f"{one.topic.name}: whether it is subscribed is unknown ({one.reason})"
        if one.topic.unsubscribe is None and one.renew and one.venue is _Venue.PRESENT:
            return (
                f"{one.topic.name}: it is subscribed by another request, and cannot be given back"
            )
        if one.venue is _Venue.DOUBTFUL and one.failures >= self._doubts:
            return f"{one.topic.name}: no answer {one.failures} times in a row ({one.reason})"
        return None

    def __repr__(self) -> str:
        phases = [standing.phase for standing in self.standings()]
        there = sum(phase in (Phase.CONFIRMED, Phase.FIRST_DATA) for phase in phases)
        return f"<Registry epoch {self.epoch}, {there} of {len(phases)} confirmed>"


def _same_request(one: Topic, other: Topic) -> bool:
    return (one.subscribe, one.unsubscribe) == (other.subscribe, other.unsubscribe)


def _after_failure(action: Action, *, in_doubt: bool, permanent: bool) -> _Venue:
    """What the venue has after it said no, or nothing."""
    if in_doubt:
        return _Venue.DOUBTFUL
    if action is Action.SUBSCRIBE or permanent:
        return _Venue.ABSENT
    return _Venue.PRESENT


_NOTHING: dict[Ident, _Held] = {}
