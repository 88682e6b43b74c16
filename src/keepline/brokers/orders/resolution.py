"""What becomes of one intent: a table of states, and the rules that settle an unknown outcome.

Invariants: time comes in as numbers; an intent whose request may have left is settled by proof alone: an answer, a
sight of its order, a person, or so many complete views without it that none of them came before the broker's longest
processing time was over. Sight wins over absence at any time.
"""

import enum
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from msgspec import structs

from keepline.brokers.base import BrokerFacts, IntentKind, OrderIntent
from keepline.brokers.orders.matching import Finding, Found, Window
from keepline.errors import ConfigError

__all__ = ["LATE_WATCH_SECONDS", "TRANSITIONS", "How", "State", "Ticket"]

LATE_WATCH_SECONDS = 3600.0
"""How long an intent that was presumed absent is looked for by queries; events are heeded for ever."""

_ASK_AGAIN_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 15.0


class State(enum.Enum):
    """Where an intent stands."""

    PREPARED = "prepared"
    SENT = "sent"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    PRESUMED_ABSENT = "presumed_absent"
    ADOPTED = "adopted"
    AMBIGUOUS = "ambiguous"

    @property
    def is_settled(self) -> bool:
        """Whether a caller has its answer; a presumption can still be overtaken by the order itself."""
        return self in _SETTLED

    @property
    def is_accepted(self) -> bool:
        return self in (State.ACCEPTED, State.ADOPTED)


_SETTLED = frozenset({State.ACCEPTED, State.ADOPTED, State.REFUSED, State.PRESUMED_ABSENT})

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PREPARED: frozenset({State.SENT, State.REFUSED}),
    State.SENT: frozenset({State.ACCEPTED, State.REFUSED, State.UNKNOWN}),
    State.UNKNOWN: frozenset(
        {State.ACCEPTED, State.REFUSED, State.PRESUMED_ABSENT, State.AMBIGUOUS}
    ),
    State.AMBIGUOUS: frozenset({State.ACCEPTED, State.REFUSED, State.PRESUMED_ABSENT}),
    State.PRESUMED_ABSENT: frozenset({State.ADOPTED, State.REFUSED, State.AMBIGUOUS}),
    State.REFUSED: frozenset({State.ADOPTED}),
    State.ACCEPTED: frozenset(),
    State.ADOPTED: frozenset(),
}
"""From where to where; nothing else happens. Only PREPARED proves that nothing was sent."""


class How(enum.Enum):
    """By what an outcome is known."""

    NONE = ""
    UNSENT = "unsent"
    ANSWER = "answer"
    QUERY = "query"
    STREAM = "stream"
    LATE = "late"
    PERSON = "person"


class Ticket:
    """One intent and what is known of it.

    Attributes:
        intent: as it is sent: with the target filled in.
        state: where it stands.
        order_id: the broker's, None while unknown.
        how: by what the state is known.
        reason: in words.
        sent_at: when the request was handed over, by our wall clock; None before.
        next_query_at: when to look at the broker, on the clock of `now`; None for no need.
    """

    __slots__ = (
        *("_absences", "_counted_at", "_ended_at", "_ended_wall", "_looked_at", "_looks", "_unclear", "_watch_until"),
        *("facts", "how", "intent", "next_query_at", "order_id", "reason", "sent_at", "state"),
    )  # fmt: skip

    def __init__(self, intent: OrderIntent, facts: BrokerFacts) -> None:
        self.intent = intent
        self.facts = facts
        self.state = State.PREPARED
        self.how = How.NONE
        self.order_id: str | None = None
        self.reason = ""
        self.sent_at: datetime | None = None
        self.next_query_at: float | None = None
        self._ended_at: float | None = None
        self._ended_wall: datetime | None = None
        self._absences = self._looks = 0
        self._unclear = False
        self._counted_at = self._looked_at = self._watch_until = 0.0

    @classmethod
    def restored(
        cls,
        intent: OrderIntent,
        facts: BrokerFacts,
        *,
        state: State,
        how: How,
        reason: str,
        order_id: str | None,
        sent_at: datetime | None,
    ) -> "Ticket":
        """As another process left it; `resume` goes on with it."""
        ticket = cls(intent, facts)
        ticket.state, ticket.how, ticket.reason = state, how, reason
        ticket.order_id, ticket.sent_at = order_id, sent_at
        return ticket

    # --- what the call tells ---

    def aim(self, order_id: str) -> None:
        """Fill in the order that a `modify` or `cancel` means."""
        self.intent = structs.replace(self.intent, target_order_id=order_id)

    def send(self, wall: datetime) -> None:
        """The request is about to leave; this is on the disk already."""
        self._move(State.SENT, How.NONE, "")
        self.sent_at = wall

    def unsent(self, reason: str) -> None:
        """Nothing was sent, and this is proven; an order that was seen meanwhile wins all the same."""
        if self.state in (State.PREPARED, State.SENT):
            self._move(State.REFUSED, How.UNSENT, reason)

    def answered(self, order_id: str | None, now: float, wall: datetime) -> None:
        """The broker said yes; without an id its order is looked for."""
        self._end_call(now, wall)
        if self.state is State.SENT:
            self._move(State.ACCEPTED, How.ANSWER, "")
        self.order_id = self.order_id or order_id
        if self.is_open:
            self.next_query_at = now

    def refused(self, reason: str, now: float, wall: datetime) -> None:
        """The broker said no, and this proves that nothing was changed; an order that was seen meanwhile wins."""
        self._end_call(now, wall)
        if self.state is State.SENT:
            self._move(State.REFUSED, How.ANSWER, reason)

    def lost(self, reason: str, now: float, wall: datetime) -> None:
        """The call ended without a trustworthy answer."""
        self._end_call(now, wall)
        if self.state is State.SENT:
            self._move(State.UNKNOWN, How.NONE, reason)
            self.next_query_at = now

    def resume(self, now: float, wall: datetime) -> None:
        """Another process had this intent: its call ended at an unknown moment before now."""
        if self.sent_at is None or self.state in (State.REFUSED, State.PREPARED):
            return
        longest = self.sent_at + timedelta(seconds=self.facts.longest_call_seconds)
        self._end_call(now, max(self.sent_at, min(wall, longest)))
        if self.state is State.SENT:
            self._move(State.UNKNOWN, How.NONE, "the program ended before an answer was noted")
        if self.state is State.PRESUMED_ABSENT:
            self._watch_until = now + LATE_WATCH_SECONDS
        if self.is_open:
            self.next_query_at = now

    def _end_call(self, now: float, wall: datetime) -> None:
        self._ended_at, self._ended_wall = now, wall

    # --- what a look at the broker tells ---

    @property
    def is_open(self) -> bool:
        """Whether a sight of its order would change something."""
        return _OPEN[self.state](self)

    @property
    def has_tag(self) -> bool:
        """Whether its order is known by a tag, so that a sight of it is beyond doubt."""
        return self.facts.tag_echoed and self.intent.kind is IntentKind.PLACE

    @property
    def makes_order(self) -> bool:
        """Whether an id is to be expected of it."""
        kind = self.intent.kind
        replaces = kind is IntentKind.MODIFY and self.facts.replace_makes_new_order
        return kind is IntentKind.PLACE or replaces

    @property
    def owns_order(self) -> bool:
        """Whether its order is its own, and not another intent's that it changes."""
        return self.makes_order or self.intent.kind in (IntentKind.CLOSE, IntentKind.PARTIAL_CLOSE)

    @property
    def in_flight(self) -> bool:
        """Whether its call is under way."""
        return self.state is State.SENT

    @property
    def processed_at(self) -> float:
        """When the broker's longest processing time is over: a view before it proves no absence."""
        assert self._ended_at is not None
        return self._ended_at + self.facts.longest_processing_seconds

    @property
    def window(self) -> Window:
        """When its order must have been taken in."""
        assert self.sent_at is not None
        skew = timedelta(seconds=self.facts.clock_skew_seconds)
        longest = timedelta(seconds=self.facts.longest_call_seconds)
        ended = self._ended_wall or self.sent_at + longest
        processing = timedelta(seconds=self.facts.longest_processing_seconds)
        start = self.sent_at
        if (
            ended < start
        ):  # our clock was put back during the call: either reading may be the right one
            start, ended = ended - longest, start + longest
        return Window(start - skew, ended + processing + skew)

    def look(self, finding: Finding, how: How, asked_at: float, now: float) -> bool:
        """Take in what a view says.

        Args:
            finding: of `examine`.
            how: query or stream.
            asked_at: when the first source of the view was asked, on the clock of `now`.
            now: the time.

        Returns:
            Whether state or order id changed.
        """
        before = (self.state, self.order_id)
        if self.is_open and not (self.in_flight and finding.what is not Found.YES):
            self._take(finding, how, asked_at)
        if not self.is_open:
            self.next_query_at = None
        return (self.state, self.order_id) != before

    def _take(self, finding: Finding, how: How, asked_at: float) -> None:
        match finding.what:
            case Found.YES:
                self._seen(finding, how)
            case Found.NO if self.state is not State.REFUSED:
                self.order_id = finding.order_id
                if not self.state.is_accepted:
                    self._move(State.REFUSED, how, finding.reason)
            case Found.ASK if self.state in (State.UNKNOWN, State.PRESUMED_ABSENT):
                self._move(State.AMBIGUOUS, how, finding.reason)
            case Found.ABSENT | Found.NEEDLESS | Found.UNCLEAR:
                self._count(finding, how, asked_at)
            case _:
                pass

    def _seen(self, finding: Finding, how: How) -> None:
        self.order_id = finding.order_id
        if self.state in (State.PRESUMED_ABSENT, State.REFUSED):
            self._move(State.ADOPTED, How.LATE, finding.reason)
        elif not self.state.is_accepted:
            self._move(State.ACCEPTED, how, finding.reason)

    def _count(self, finding: Finding, how: How, asked_at: float) -> None:
        assert self._ended_at is not None
        spacing = self.facts.absence_spacing_seconds
        if asked_at < self._ended_at or (self._absences and asked_at < self._counted_at + spacing):
            return
        unclear = finding.what is Found.UNCLEAR
        if unclear is not self._unclear:
            self._unclear, self._absences = unclear, 0
        self._absences += 1
        self._counted_at = asked_at
        if self._is_proven and self.state is State.UNKNOWN:
            self._conclude(finding, how, asked_at)

    @property
    def _is_proven(self) -> bool:
        """Enough views in a row said the same, the last one after the longest processing time."""
        enough = self._absences >= self.facts.absences
        return enough and self._counted_at >= self.processed_at

    def _conclude(self, finding: Finding, how: How, asked_at: float) -> None:
        if finding.what is Found.UNCLEAR:
            self._move(State.AMBIGUOUS, how, f"{finding.reason}; a person must decide")
        elif finding.what is Found.NEEDLESS:
            self._move(State.ACCEPTED, how, finding.reason)
        else:
            self._move(State.PRESUMED_ABSENT, how, self._absence(finding))
            self._watch_until = asked_at + LATE_WATCH_SECONDS

    def _absence(self, finding: Finding) -> str:
        assert self._ended_at is not None
        seconds = self._counted_at - self._ended_at
        return (
            f"{finding.reason} in {self._absences} views, the last {seconds:.0f} s after the call"
        )

    def pace(self, now: float) -> None:
        """After a look that was meant for it, say when to look again: soon at first, seldom later."""
        self._looks += 1
        self._looked_at = now
        spacing = self.facts.absence_spacing_seconds
        pause = min(spacing * 2 ** min(self._looks - 1, 10), max(_LONGEST_PAUSE_SECONDS, spacing))
        if not self.is_open:
            self.next_query_at = None
        elif self.state is State.AMBIGUOUS:
            self.next_query_at = now + _ASK_AGAIN_SECONDS
        elif self.state is State.PRESUMED_ABSENT:
            later = now + spacing * 2 ** min(self._looks, 10)
            self.next_query_at = later if later <= self._watch_until else None
        elif self.state is State.REFUSED or (self.state.is_accepted and self._is_proven):
            self.next_query_at = None
        else:
            due = now + pause
            if now < self.processed_at:
                due = max(min(due, self.processed_at), now + spacing)
            self.next_query_at = due

    def nudge(self, now: float) -> None:
        """Something happened that may concern it: look soon, though not for each event of a burst."""
        if not self.is_open or self.in_flight or self.state is State.REFUSED:
            return
        soon = now
        if self._looks:
            soon = max(now, self._looked_at + self.facts.absence_spacing_seconds)
        if self.next_query_at is None or soon < self.next_query_at:
            self.next_query_at = soon

    # --- what a person says ---

    def decide(self, order_id: str | None, reason: str) -> None:
        """A person says which order it is, or None for none.

        Raises:
            ConfigError: it is under way, or settled by proof.
        """
        absent = order_id is None
        if self.state is State.SENT:
            raise ConfigError(f"{self.intent.id} is under way just now: wait for its answer")
        if self.state is State.PREPARED:
            if not absent:
                raise ConfigError(f"{self.intent.id} was never sent: it has no order")
            return self.unsent(reason)
        if self.state.is_accepted and self.order_id is not None and not absent:
            raise ConfigError(f"{self.intent.id} is settled: it is order {self.order_id}")
        if (self.state.is_accepted or self.state is State.REFUSED) and absent:
            raise ConfigError(f"{self.intent.id} is settled: {self.state.value}")
        return self._decide(order_id, reason)

    def _decide(self, order_id: str | None, reason: str) -> None:
        self.next_query_at = None
        self.order_id = order_id
        if order_id is None:
            state = State.PRESUMED_ABSENT
        elif self.state in (State.PRESUMED_ABSENT, State.REFUSED, State.ADOPTED):
            state = State.ADOPTED
        else:
            state = State.ACCEPTED
        if state is self.state:
            self.how, self.reason = How.PERSON, reason
        else:
            self._move(state, How.PERSON, reason)

    def _move(self, state: State, how: How, reason: str) -> None:
        if state not in TRANSITIONS[self.state]:  # also where assertions are switched off
            raise RuntimeError(
                f"intent {self.intent.id}: {self.state.name} cannot become {state.name}"
            )
        self.state, self.how, self.reason = state, how, reason

    def __repr__(self) -> str:
        order = f", order {self.order_id}" if self.order_id else ""
        return f"<Ticket {self.intent.id} {self.state.name}{order}>"


_OPEN: Mapping[State, Callable[[Ticket], bool]] = {
    State.PREPARED: lambda ticket: False,
    State.SENT: lambda ticket: True,
    State.UNKNOWN: lambda ticket: True,
    State.AMBIGUOUS: lambda ticket: True,
    State.ACCEPTED: lambda ticket: ticket.order_id is None and ticket.makes_order,
    State.ADOPTED: lambda ticket: False,
    # what a person has said gives way to a tag alone, and so does a refusal
    State.PRESUMED_ABSENT: lambda ticket: ticket.has_tag or ticket.how is not How.PERSON,
    State.REFUSED: lambda ticket: ticket.has_tag and ticket.sent_at is not None,
}
