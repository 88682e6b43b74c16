"""What is done about a stream that says too little: tell, probe, subscribe anew, connect anew, call a person.

The face of `health`: it does what the findings say. Invariants: a probe holds up nothing; an answer of an earlier
connection ends no later one; a silence that was answered for is a life that earns, a blind one is not.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from keepline.clock import Clock
from keepline.stream.carrier import Carrier
from keepline.stream.events import EventKind
from keepline.stream.health import Finding, HealthWatch, Step
from keepline.stream.port import Topic
from keepline.stream.subscriptions import Registry

__all__ = ["Escalation", "Told"]

Told: TypeAlias = Callable[[EventKind, Topic | None, str], None]
"""Gets what a bot should know: what happened, to which topic (None for the stream), and why."""


class Escalation:
    """The steps of one stream.

    Args:
        watch: finds what is wrong.
        registry: what is wanted, and asked for anew.
        clock: time.
        tell: gets what a bot should know.
        spawn: runs a probe beside everything else.
        earned: called when the venue answered, or need not, and nothing is stale.
        give_up: called with a connection that did not answer a probe, and with words.
    """

    def __init__(
        self,
        *,
        watch: HealthWatch,
        registry: Registry,
        clock: Clock,
        tell: Told,
        spawn: "Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]",
        earned: Callable[[], None],
        give_up: Callable[[Carrier, str], None],
    ) -> None:
        self._watch = watch
        self._registry = registry
        self._clock = clock
        self._tell = tell
        self._spawn = spawn
        self._earned = earned
        self._give_up = give_up

    def check(self, carrier: Carrier) -> str | None:
        """Look, and do what is due; words when only a new connection helps."""
        words = None
        for finding in self._watch.check(self._clock.boottime(), self._clock.wall()):
            words = self._act(finding, carrier) or words
        return words

    def _act(self, finding: Finding, carrier: Carrier) -> str | None:
        match finding.step:
            case Step.STALE:
                for topic in finding.topics:
                    self._tell(EventKind.STALE, topic, finding.reason)
            case Step.FRESH:
                for topic in finding.topics:
                    self._tell(EventKind.LIVE, topic, finding.reason)
            case Step.PROBE:
                self._spawn(self._probe(carrier))
            case Step.RESUBSCRIBE:
                # a topic that cannot be given back waits for the next rung
                for topic in finding.topics:
                    self._registry.resubscribe(topic)
            case Step.ALARM:
                about = finding.topics[0] if finding.topics else None
                self._tell(EventKind.ALARM, about, finding.reason)
            case Step.RECONNECT:
                return finding.reason
        return None

    async def _probe(self, carrier: Carrier) -> None:
        answered = await carrier.probe()
        now = self._clock.boottime()
        if answered is False:
            self._watch.probed(now, "no answer in time")
            self._give_up(carrier, "the venue did not answer a probe")
            return
        self._watch.probed(now)
        if not any(self._watch.is_stale(topic) for topic in self._registry.wanted):
            self._earned()  # silence is its nature, and it has lived through one

    def __repr__(self) -> str:
        return f"<Escalation by {self._watch!r}>"
