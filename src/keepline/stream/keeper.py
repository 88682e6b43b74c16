"""Keeps one stream connected and says what may be believed of it: the face that does what the deciders say.

Invariants: one task and one timer for a stream; a message arms no timer and wakes nobody but for the first of a
topic; a topic that is wanted outlives every connection; nothing is live while a request, a reconciliation or the data
it needs is missing; whoever stops waiting, no link is left open behind.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from keepline import telemetry
from keepline.clock import Clock
from keepline.errors import APIError, ConfigError, PermanentError, TransientError
from keepline.stream.carrier import Carrier
from keepline.stream.dials import Dials, End
from keepline.stream.escalation import Escalation, Told
from keepline.stream.events import ConnectionState, EventKind
from keepline.stream.health import HealthWatch
from keepline.stream.port import Link, Topic
from keepline.stream.redial import DialLimiter, Fault, Plan, fault_of_error, fault_of_lost
from keepline.stream.renewal import Renewal
from keepline.stream.replacement import Replacement
from keepline.stream.rounds import Rounds
from keepline.stream.settings import StreamSettings
from keepline.stream.subscriptions import Action, Command, Phase, Registry
from keepline.stream.tokens import StreamTokens

__all__ = ["Keeper"]

log = logging.getLogger("keepline.stream")


class Keeper:
    """The life of one stream, from connecting to stopping.

    Args:
        factory: makes a link for each attempt.
        name: of the stream.
        settings: what is done when.
        registry: what is wanted.
        watch: how fresh it is.
        rounds: what is done about what was missed.
        tokens: told when a token was refused; None when the links know no token.
        limiter: how often the process may dial.
        clock: time and chance.
        tell: gets what a bot should know.
        deliver: gets each message once, as it arrives: epoch, channel, arguments, arrival.
        forward: gets what was kept back for a reconciliation: channel, arguments, arrival.

    Attributes:
        state: of the connection.
        reason: why it is in that state, "" when there is nothing to say.
        error: what ended it for good, None while it has not.
    """

    def __init__(
        self,
        factory: Callable[[], Link],
        *,
        name: str,
        settings: StreamSettings,
        registry: Registry,
        watch: HealthWatch,
        rounds: Rounds,
        tokens: StreamTokens | None,
        limiter: DialLimiter,
        clock: Clock,
        tell: Told,
        deliver: Callable[[int, str, Sequence[Any], float], None],
        forward: Callable[[str, Sequence[Any], float], None],
    ) -> None:
        self._factory = factory
        self._name = name
        self._settings = settings
        self._registry = registry
        self._watch = watch
        self._rounds = rounds
        self._clock = clock
        self._tell = tell
        self._deliver = deliver
        self._forward = forward
        self._dials = Dials(
            name=name, settings=settings, tokens=tokens, limiter=limiter, clock=clock
        )
        self._carrier: Carrier | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._round: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._giving_up: End | None = None
        self._renewal = Renewal(
            name=name, settings=settings, registry=registry, tokens=tokens, limiter=limiter, clock=clock,
            new_carrier=self._new_carrier, take_over=self._take_over, wake=self.wake,
        )  # fmt: skip
        self._escalation = Escalation(
            watch=watch, registry=registry, clock=clock, tell=tell, spawn=self._spawn,
            earned=self._dials.memory.data, give_up=self._unanswered,
        )  # fmt: skip
        self._live = False
        self._alarmed = False
        self.state = ConnectionState.DISCONNECTED
        self.reason = ""
        self.error: APIError | None = None

    # --- what others ask ---

    @property
    def carrier(self) -> Carrier | None:
        """The connection that is up, None when none is."""
        up = self.state is ConnectionState.CONNECTED
        return self._carrier if up else None

    @property
    def epoch(self) -> int:
        """The number of the connection that is up, 0 when none is."""
        return 0 if (carrier := self.carrier) is None else carrier.epoch

    def wake(self) -> None:
        """Something has changed: look now instead of at the next deadline."""
        self._wake.set()

    def renew(self, reason: str) -> None:
        """Take a new connection in the place of this one, without a gap where the broker allows two.

        Where there is none a newer token ends the wait for it.
        """
        if self.state is ConnectionState.CONNECTED:
            self._renewal.want(reason)
            self.wake()
        else:
            self._dials.newer_token()

    def give_up(self, fault: Fault, words: str) -> None:
        """Drop the connection and make a new one."""
        self._giving_up = End(fault, words)
        self.wake()

    def allow(self, attempts: int | None) -> None:
        """From now on so many dials in a row may fail; None goes on for ever."""
        self._dials.memory.allow(attempts)

    def proof_of_life(self) -> None:
        """Data came: the backoff may be earned back."""
        self._dials.memory.data()

    def blind(self, topics: Sequence[Topic]) -> list[str]:
        """Why these topics do not show the present, empty when they do."""
        if (carrier := self.carrier) is None:
            return [f"{self.state.value}{': ' + self.reason if self.reason else ''}"]
        if carrier.lost is not None:
            return [f"the connection has just ended: {carrier.lost.error or carrier.lost.reason}"]
        reasons = []
        if self._rounds.pending:
            why = self._rounds.failure or self._rounds.due
            reasons.append(f"reconciling{': ' + why if why else ''}")
        return [*reasons, *filter(None, (self._blind(topic, carrier) for topic in topics))]

    def _blind(self, topic: Topic, carrier: Carrier) -> str:
        phase = self._registry.phase(topic, carrier.epoch)
        if phase not in (Phase.CONFIRMED, Phase.FIRST_DATA):
            return f"{topic.name} is not confirmed" if topic.subscribe else ""
        if self._watch.is_stale(topic):
            return f"{topic.name} is stale"
        if topic.cadence is None or phase is Phase.FIRST_DATA:
            return ""
        is_open = topic.session is None or topic.session.is_open(self._clock.wall())
        return f"{topic.name} has brought nothing yet" if is_open else ""

    # --- the life ---

    async def run(self) -> None:
        """Connect, look after it, connect again; returns when it has FAILED, ends by being cancelled."""
        self._dials.memory.reset()
        self.error = None
        self.state = ConnectionState.CONNECTING
        try:
            while (plan := await self._one_connection()).dial:
                await self._dials.wait(plan)
        except ConfigError as error:  # nothing that time could heal
            self._fail(str(error))
        except Exception as error:
            log.exception("the keeper of %s failed", self._name)
            self._fail(f"a defect of ours ({type(error).__name__})")
        finally:
            await self._let_go()
            if self.state is not ConnectionState.FAILED:
                self.state, self.reason = ConnectionState.DISCONNECTED, ""
                self._live = False
                self._rounds.lost()
                self._watch.disconnected(self._clock.boottime(), "disconnected")

    def _fail(self, words: str) -> None:
        self.state, self.reason, self._live = ConnectionState.FAILED, words, False
        self.error = PermanentError(words)
        self._watch.disconnected(self._clock.boottime(), words)
        self._tell(EventKind.LOST, None, words)

    async def _one_connection(self) -> Plan:
        end = await self._dial()
        if end is None:
            end = await self._serve()
        was_up = self.state is ConnectionState.CONNECTED
        plan = self._plan(end)
        if was_up or not plan.dial:
            self._tell(EventKind.LOST, None, plan.reason)
        await self._let_go()
        return plan

    async def _dial(self) -> End | None:
        """Make a connection; why not, or None when it is up."""
        await self._dials.begin()
        self._giving_up = None
        self._renewal.forget()
        self._rounds.connecting()
        try:
            self._carrier = carrier = self._new_carrier()
            await carrier.open(self._settings.attempt_timeout)
        except ConfigError:
            raise
        except Exception as error:
            if not isinstance(error, APIError):
                telemetry.event(
                    log,
                    logging.WARNING,
                    "Stream connect failed",
                    stream=self._name,
                    reason=str(error),
                )
            known = error if isinstance(error, APIError) else None
            return End(fault_of_error(error), str(error) or type(error).__name__, known)
        self._is_up()
        return None

    def _is_up(self) -> None:
        now = self._clock.boottime()
        self._dials.memory.opened(now)
        self._watch.connected(now)
        self.state, self.reason = ConnectionState.CONNECTED, ""
        self._tell(EventKind.CONNECTED, None, "")

    def _plan(self, end: End) -> Plan:
        now = self._clock.boottime()
        plan = self._dials.plan(end)
        self._watch.disconnected(now, plan.reason)
        self._rounds.lost()
        self._live = False
        self.reason = plan.reason
        if not plan.dial:
            self.state = ConnectionState.FAILED
            self.error = end.error or TransientError(plan.reason, category="network")
        elif self.state is ConnectionState.CONNECTED:
            self.state = ConnectionState.RECONNECTING
        if plan.attempt == 1:  # the failures before were forgotten
            self._alarmed = False
        if plan.alarm and not self._alarmed:
            self._alarmed = True
            self._tell(EventKind.ALARM, None, plan.reason)
        return plan

    async def _let_go(self) -> None:
        """Close what is open and end what runs."""
        tasks, self._tasks, self._round = self._tasks, set(), None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        own = [] if self._carrier is None else [self._carrier]
        for carrier in [*own, *self._renewal.carriers]:
            await carrier.close()
        # not before: who is cancelled on the way comes here again
        self._carrier = None
        self._renewal.dropped()

    # --- while it is up ---

    async def _serve(self) -> End:
        while True:
            carrier = self._carrier
            assert carrier is not None
            end = self._ended(carrier) or self._giving_up or self._blinded(carrier)
            if end is not None:
                return end
            self._pump(carrier)
            self._see_to_rounds(carrier)
            self._see_to_renewal()
            self._judge()
            await self._rest()

    def _ended(self, carrier: Carrier) -> End | None:
        if (lost := carrier.lost) is not None:
            fault = fault_of_lost(lost.reason, allow_reconnect=lost.allow_reconnect)
            return End(fault, lost.error or "")
        if (hopeless := self._registry.hopeless(carrier.epoch)) is not None:
            return End(Fault.STALE, hopeless)
        return None

    def _blinded(self, carrier: Carrier) -> End | None:
        words = self._escalation.check(carrier)
        return None if words is None else End(Fault.STALE, words)

    def _unanswered(self, carrier: Carrier, words: str) -> None:
        if carrier is self._carrier:
            self.give_up(Fault.STALE, words)

    def _pump(self, carrier: Carrier) -> None:
        carrier.pump()
        self._renewal.pump()

    def _judge(self) -> None:
        if self.blind(self._registry.wanted):
            self._live = False
        elif not self._live:
            self._live = True
            self._tell(EventKind.LIVE, None, "")

    async def _rest(self) -> None:
        """Until something happens or a deadline comes."""
        now, wall = self._clock.boottime(), self._clock.wall()
        at = self._watch.deadline(now, wall)
        if (retry := self._registry.deadline()) is not None:
            at = min(at, retry)
        if (renew := self._renewal.deadline) is not None:
            at = min(at, renew)
        timer = asyncio.ensure_future(self._clock.sleep(at - now))
        timer.add_done_callback(self._time_is_up)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    def _time_is_up(self, timer: asyncio.Future[None]) -> None:
        if not timer.cancelled():  # a timer that was put away must not wake what put it away
            self._wake.set()

    # --- reconciliation ---

    def _see_to_rounds(self, carrier: Carrier) -> None:
        if not self._rounds.due or self._rounds.running or self._round is not None:
            return
        there = (Phase.CONFIRMED, Phase.FIRST_DATA)
        for topic in self._registry.wanted:  # a snapshot must be younger than the subscriptions
            if topic.policy == "never" and self._registry.phase(topic, carrier.epoch) not in there:
                return
        self._tell(EventKind.RECONCILING, None, self._rounds.due)
        self._round = self._spawn(self._reconcile())

    async def _reconcile(self) -> None:
        await self._rounds.run()
        self._round = None
        for channel, arguments, at in self._rounds.take():
            self._forward(channel, arguments, at)
        self.wake()

    # --- a newer connection ---

    def _see_to_renewal(self) -> None:
        if not self._renewal.is_due:
            return
        if self._settings.two_connections:
            self._spawn(self._renewal.begin())
        else:
            self._giving_up = End(Fault.RENEWAL, self._renewal.wanted)
            self.wake()

    def _take_over(self, replacement: Replacement) -> Carrier:
        """The replacement is the stream's connection from now on; gives back the old one."""
        old, new = self._carrier, replacement.carrier
        assert old is not None
        now = self._clock.boottime()
        self._watch.connected(now)
        for topic in self._registry.wanted:
            if self._registry.phase(topic, old.epoch) is Phase.FIRST_DATA:
                self._registry.data((topic.channel, topic.key), new.epoch)
            self._watch.confirmed(topic, now)
        self._carrier = new
        for channel, arguments, at in replacement.switch():
            self._deliver(new.epoch, channel, arguments, at)
        if replacement.overflowed:
            self._rounds.request("more messages came during the renewal than could be kept")
        self._dials.renewed()
        return old

    # --- what the carriers bring ---

    def _new_carrier(self) -> Carrier:
        return Carrier(
            self._factory(),
            registry=self._registry,
            clock=self._clock,
            arrival=self._arrived,
            answered=self._answered,
            request_timeout=self._settings.request_timeout,
            stop_timeout=self._settings.stop_timeout,
        )

    def _arrived(self, carrier: Carrier, channel: str, arguments: Sequence[Any], at: float) -> None:
        if self._renewal.passes(carrier, channel, arguments, at) and carrier is self._carrier:
            self._deliver(carrier.epoch, channel, arguments, at)

    def _answered(self, carrier: Carrier, command: Command | None) -> None:
        self._renewal.answered()
        if command is not None and carrier is self._carrier and command.action is Action.SUBSCRIBE:
            self._confirmed(command.topic, carrier)
        self.wake()

    def _confirmed(self, topic: Topic, carrier: Carrier) -> None:
        if self._registry.phase(topic, carrier.epoch) not in (Phase.CONFIRMED, Phase.FIRST_DATA):
            return  # first data may come in the frame that confirms
        self._watch.confirmed(topic, self._clock.boottime())
        if topic.policy == "never":  # also while a round runs: what it asks for may be older
            self._rounds.request(f"{topic.name} was subscribed")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def __repr__(self) -> str:
        return f"<Keeper {self._name} {self.state.value}{' ' + self.reason if self.reason else ''}>"
