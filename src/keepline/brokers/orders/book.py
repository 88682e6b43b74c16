"""All intents of one broker together: who owns which order, who waits for whom, when to look, and what a look settles.

Invariants: an order belongs to at most one intent; among intents that cannot be told apart the surest and the oldest
come first; what a look does not cover it does not judge. No clock, no task: a gateway does what this says.
"""

from collections.abc import Container, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from msgspec import structs

from keepline.brokers.base import (
    BrokerFacts,
    Evidence,
    EvidenceQuery,
    IntentKind,
    OrderIntent,
)
from keepline.brokers.orders.matching import (
    Finding,
    Found,
    View,
    candidates,
    could_be,
    examine,
    partial_view,
    shape,
    whole_view,
)
from keepline.brokers.orders.resolution import How, State, Ticket
from keepline.model import Fill, Order

__all__ = ["Book", "Look", "Release"]

_KEPT = 10_000
_BY_TARGET = (IntentKind.MODIFY, IntentKind.CANCEL)
_OF_POSITION = (IntentKind.CLOSE, IntentKind.PARTIAL_CLOSE)
_RANK = {State.ACCEPTED: 0, State.ADOPTED: 0, State.PRESUMED_ABSENT: 2}


class Release(NamedTuple):
    """Whether an intent may be sent: at once when nothing is named here.

    Attributes:
        waits_for: intents whose outcome is awaited.
        refused: why it must not be sent at all.
        target: the order id that it was waiting for.
    """

    waits_for: tuple[str, ...] = ()
    refused: str = ""
    target: str = ""


class Look(NamedTuple):
    """A query that is due, and the intents that its answer judges."""

    query: EvidenceQuery
    covers: frozenset[str]


class Book:
    """All intents of one broker.

    Args:
        facts: of the broker.
        kept: settled intents that stay here; older ones are in the journal alone.
    """

    def __init__(self, facts: BrokerFacts, *, kept: int = _KEPT) -> None:
        self._facts = facts
        self._kept = kept
        self._tickets: dict[str, Ticket] = {}
        self._settled: dict[str, None] = {}  # in the order in which they were settled
        self._unsettled: dict[str, Ticket] = {}
        self._owners: dict[str, str] = {}
        self._done: dict[tuple[str, ...], Ticket] = {}  # what was cancelled or closed, and by whom
        self._searching: dict[str, Ticket] = {}
        self._lanes: dict[tuple[str, ...], dict[str, Ticket]] = {}

    # --- keeping ---

    def add(self, ticket: Ticket) -> list[str]:
        """Take in a new intent, or one from an earlier process; returns as `update` does."""
        self._tickets[ticket.intent.id] = ticket
        return self.update(ticket)

    def get(self, intent_id: str) -> Ticket | None:
        return self._tickets.get(intent_id)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(list(self._tickets.values()))

    def __len__(self) -> int:
        return len(self._tickets)

    def discard(self, intent_id: str) -> None:
        """Forget an intent that never came to be."""
        ticket = self._tickets.pop(intent_id, None)
        if ticket is not None:
            self._searching.pop(intent_id, None)
            self._unsettled.pop(intent_id, None)
            self.leave_lane(ticket)

    def enter_lane(self, ticket: Ticket) -> None:
        """From now on, later changes of the same order or position wait for this one."""
        if (lane := _lane(ticket.intent)) is not None:
            self._lanes.setdefault(lane, {})[ticket.intent.id] = ticket

    def leave_lane(self, ticket: Ticket) -> None:
        """Nobody waits for this one any more."""
        lane = _lane(ticket.intent)
        if lane is not None and (queue := self._lanes.get(lane)) is not None:
            queue.pop(ticket.intent.id, None)
            if not queue:
                del self._lanes[lane]

    def update(self, ticket: Ticket) -> list[str]:
        """Note that a ticket changed.

        Returns:
            The ids of old intents that were let go to make room.
        """
        name = ticket.intent.id
        self._tickets.setdefault(name, ticket)
        if ticket.order_id is not None and ticket.owns_order:
            self._owners.setdefault(ticket.order_id, name)
        if ticket.state.is_accepted and (effect := _effect(ticket.intent)) is not None:
            self._done[effect] = ticket
        # a refusal is overtaken by a tag alone, and tags are found without searching
        if ticket.is_open and ticket.state is not State.REFUSED:
            self._searching[name] = ticket
        else:
            self._searching.pop(name, None)
        self._settled.pop(name, None)
        if not ticket.state.is_settled:
            self._unsettled[name] = ticket
            return []
        self._unsettled.pop(name, None)
        self.leave_lane(ticket)
        if name in self._searching:
            return []
        self._settled[name] = None
        return self._make_room()

    def owner(self, order_id: str) -> str | None:
        """The intent that an order belongs to."""
        return self._owners.get(order_id)

    def unsettled(self) -> list[Ticket]:
        """Intents whose outcome nobody knows yet."""
        return list(self._unsettled.values())

    @property
    def unsettled_count(self) -> int:
        return len(self._unsettled)

    def _make_room(self) -> list[str]:
        gone = []
        while len(self._settled) > self._kept:
            name = next(iter(self._settled))
            del self._settled[name]
            ticket = self._tickets.pop(name)
            if ticket.order_id is not None and self._owners.get(ticket.order_id) == name:
                del self._owners[ticket.order_id]
            effect = _effect(ticket.intent)
            if effect is not None and self._done.get(effect) is ticket:
                del self._done[effect]
            gone.append(name)
        return gone

    # --- who may be sent ---

    def release(self, intent: OrderIntent) -> Release:
        """Whether an intent may be sent now; one of `depends_on` that is not in the book is waited for."""
        waits: list[str] = []
        for name in intent.depends_on:
            if (ticket := self._tickets.get(name)) is None:  # it is being looked up
                waits.append(name)
                continue
            if ticket.state in (State.REFUSED, State.PRESUMED_ABSENT):
                return Release(refused=f"depends on {name}, which is {ticket.state.value}")
            if not ticket.state.is_accepted:
                waits.append(name)
        if waits:
            return Release(waits_for=tuple(waits))
        if intent.kind in _BY_TARGET and not intent.target_order_id:
            return self._target_of(intent)
        return Release(waits_for=tuple(self._ahead_of(intent)))

    def _target_of(self, intent: OrderIntent) -> Release:
        (name,) = intent.depends_on
        ticket = self._tickets[name]
        if ticket.order_id is not None:
            return Release(target=ticket.order_id)
        if ticket.next_query_at is not None:
            return Release(waits_for=(name,))
        return Release(refused=f"the order id of {name} is not known")

    def _ahead_of(self, intent: OrderIntent) -> Iterator[str]:
        lane = _lane(intent)
        if intent.kind is IntentKind.CANCEL or lane is None:
            return
        for name in self._lanes.get(lane, ()):
            if name == intent.id:
                return
            yield name

    # --- when to look, and at what ---

    def next_at(self, busy: Container[str] = ()) -> float | None:
        """When the next look is due at an account that is not busy, None for never."""
        times = (
            ticket.next_query_at
            for ticket in self._searching.values()
            if ticket.intent.account not in busy
        )
        return min((at for at in times if at is not None), default=None)

    def due(self, now: float, busy: Container[str] = ()) -> list[Look]:
        """The looks that are due, one per account; each covers everything that is searched for there."""
        accounts = {
            ticket.intent.account
            for ticket in self._searching.values()
            if ticket.next_query_at is not None and ticket.next_query_at <= now
        }
        return [self._look_at(account) for account in sorted(accounts) if account not in busy]

    def look_since(self, account: str, since: datetime) -> Look:
        """A look that nobody waits for, back to `since` at least."""
        if any(
            t.intent.account == account and t.next_query_at is not None
            for t in self._searching.values()
        ):
            look = self._look_at(account)
            query = structs.replace(look.query, since=min(since, look.query.since), instruments=())
            return Look(query, look.covers)
        return Look(EvidenceQuery(account=account, since=since), frozenset())

    @property
    def wants_person(self) -> bool:
        """Whether there is an intent that a person could settle."""
        waiting = (*self._unsettled.values(), *self._searching.values())
        return any(not ticket.in_flight for ticket in waiting)

    def _look_at(self, account: str) -> Look:
        covered = [
            ticket
            for ticket in self._searching.values()
            if ticket.intent.account == account and ticket.next_query_at is not None
        ]
        intents = [ticket.intent for ticket in covered]
        named = {intent.instrument for intent in intents}
        query = EvidenceQuery(
            account=account,
            since=min(ticket.window.start for ticket in covered),
            instruments=() if "" in named else tuple(sorted(named)),
            order_ids=tuple(sorted({i.target_order_id for i in intents if i.target_order_id})),
        )
        return Look(query, frozenset(intent.id for intent in intents))

    def reconsider(self, account: str, now: float) -> None:
        """Something was decided that may leave others with one order that fits: look soon."""
        for ticket in self._searching.values():
            if ticket.intent.account == account:
                ticket.nudge(now)

    # --- what is seen ---

    def seen(self, look: Look, evidence: Evidence, asked_at: float, now: float) -> list[Ticket]:
        """Judge everything by an answer to a query; the tickets that changed."""
        view = whole_view(evidence)
        part = partial_view(view.orders.values(), view.fills)
        concerned = self._concerned(look.query.account, view.orders.values())
        return self._judge(concerned, view, part, look.covers, How.QUERY, asked_at, now)

    def witness(self, event: Order | Fill, now: float) -> list[Ticket]:
        """Judge by one event of a stream; what it may concern and cannot settle is looked at soon."""
        if isinstance(event, Fill):
            self._nudge(event, event.order_id, now)
            return []
        view = partial_view([event])
        concerned = self._concerned(event.account, [event])
        changed = self._judge(concerned, view, view, frozenset(), How.STREAM, now, now)
        self._nudge(event, event.id, now)
        return changed

    def _concerned(self, account: str, orders: Iterable[Order]) -> list[Ticket]:
        found = {
            name: ticket
            for name, ticket in self._searching.items()
            if ticket.intent.account == account and not (ticket.has_tag and ticket.in_flight)
        }
        for order in orders:
            tagged = self._tickets.get(order.tag) if order.tag else None
            if tagged is not None and tagged.has_tag and tagged.is_open:
                found[tagged.intent.id] = tagged
        return sorted(found.values(), key=_surest_first)

    def _judge(
        self,
        tickets: list[Ticket],
        whole: View,
        part: View,
        covers: frozenset[str],
        how: How,
        asked_at: float,
        now: float,
    ) -> list[Ticket]:
        changed = []
        for number, ticket in enumerate(tickets):
            covered = ticket.intent.id in covers
            view = whole if covered else part
            finding = self._examine(ticket, view, tickets[:number], tickets[number + 1 :], covers)
            if ticket.look(finding, how, asked_at, now):
                changed.append(ticket)
            if covered:
                ticket.pace(now)
            self.update(ticket)
        return changed

    def _examine(
        self,
        ticket: Ticket,
        view: View,
        before: list[Ticket],
        after: list[Ticket],
        covers: frozenset[str],
    ) -> Finding:
        intent = ticket.intent
        if intent.kind in _BY_TARGET and not intent.target_order_id:
            return Finding(Found.WAIT, "its order is not known yet")
        if self._has_successor(ticket):
            return Finding(Found.WAIT, "another intent has done it")
        if ticket.has_tag or intent.kind in _BY_TARGET:
            return examine(intent, view, self._facts, ticket.window, self.owner)
        fitting = candidates(intent, view, self._facts, ticket.window, self.owner)
        after = [other for other in after if _could_own(other, fitting)]
        unheard = [
            other
            for other in before
            if other.is_open and other.intent.id not in covers and _could_own(other, fitting)
        ]
        if unheard or any(other.in_flight for other in after):
            # one that comes before it, or will soon know its order, has the first choice
            return Finding(Found.WAIT, "an order fits, and another intent may own it")
        alike = sum(shape(other.intent) == shape(intent) for other in after)
        return examine(intent, view, self._facts, ticket.window, self.owner, rivals=alike)

    def _has_successor(self, ticket: Ticket) -> bool:
        """Whether a cancel or close that was presumed absent was asked for again: what is done is not its doing."""
        if ticket.state is not State.PRESUMED_ABSENT or (effect := _effect(ticket.intent)) is None:
            return False
        assert ticket.sent_at is not None
        others = [*self._searching.values(), self._done.get(effect, ticket)]
        return any(
            _effect(other.intent) == effect
            and other.state is not State.PRESUMED_ABSENT
            and other.sent_at is not None
            and other.sent_at >= ticket.sent_at
            for other in others
        )

    def _nudge(self, event: Order | Fill, order_id: str, now: float) -> None:
        for ticket in self._searching.values():
            intent = ticket.intent
            near = intent.account == event.account and intent.instrument in ("", event.instrument)
            if isinstance(event, Order) and ticket.has_tag:
                continue  # another tag's order tells it nothing
            if near and self.owner(order_id) in (None, intent.id):
                ticket.nudge(now)


def _lane(intent: OrderIntent) -> tuple[str, ...] | None:
    if intent.kind in _BY_TARGET and intent.target_order_id:
        return ("order", intent.account, intent.target_order_id)
    if intent.kind in _OF_POSITION:
        return ("position", intent.account, intent.instrument)
    return None


def _effect(intent: OrderIntent) -> tuple[str, ...] | None:
    """What two intents have in common whose doing leaves no mark of its own."""
    if intent.kind is IntentKind.CANCEL:
        return ("cancel", intent.account, intent.target_order_id)
    if intent.kind in _OF_POSITION:
        return ("close", intent.account, intent.instrument)
    return None


def _could_own(ticket: Ticket, orders: list[Order]) -> bool:
    if ticket.has_tag or ticket.intent.kind in _BY_TARGET:
        return False
    return any(could_be(ticket.intent, ticket.window, order) for order in orders)


def _surest_first(ticket: Ticket) -> tuple[bool, int, bool, datetime, str]:
    assert ticket.sent_at is not None
    vague = (
        ticket.intent.kind in _OF_POSITION
    )  # it may fit an order that says more about another intent
    rank = _RANK.get(ticket.state, 1)
    return ticket.in_flight, rank, vague, ticket.sent_at, ticket.intent.id
