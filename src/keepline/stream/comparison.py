"""What a snapshot and the view of an account disagree in, and what follows from it.

Invariants: only what was read is compared; an order is missing only when open orders and a history that reaches back to
its entry were read and neither has it; a position is compared beside the fills of the same snapshot, and broken only
when the same difference is there a guard period later, without activity in between or in three looks; what the stream
still tells within the guard period was no discrepancy.
"""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from msgspec.structs import replace

from keepline.model import Account, Fill, Order, OrderStatus, Position
from keepline.stream.snapshot import Discrepancy, DiscrepancyKind, Snapshot
from keepline.stream.view import AccountView, Change, Told, standing, total

__all__ = ["Circumstances", "Comparison", "Findings"]

_Key = tuple[DiscrepancyKind, str, str]
_Place = tuple[str, str]
_ZERO = Decimal(0)
_LOOKS_OF_A_BREAK = 3
_KIND = DiscrepancyKind


class Circumstances(NamedTuple):
    """When a snapshot was taken.

    Attributes:
        asked: how many events the stream had told when the first query was sent.
        now: the time.
        live: whether events are applied as they come; else the stream was away and cannot explain anything later.
        heard: what the stream told since, and is not applied yet.
    """

    asked: int
    now: float
    live: bool
    heard: Iterable[Told] = ()


class Findings:
    """What a snapshot brought.

    Attributes:
        changes: of the view, in order.
        discrepancies: to be announced now.
        further: accounts with an order that the snapshot cannot tell of, and when the oldest of them was entered.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.discrepancies: list[Discrepancy] = []
        self.further: dict[str, datetime] = {}


class _Unsure(NamedTuple):
    difference: Decimal
    looks: int
    since: float


class Comparison:
    """Compares snapshots with a view, and remembers what is not decided yet.

    Args:
        view: what is known; snapshots are applied to it.
        guard_seconds: so long something must be quiet before a difference counts as one.
    """

    def __init__(self, view: AccountView, *, guard_seconds: float) -> None:
        self._view = view
        self._guard = guard_seconds
        self._told = 0
        self._spoken: dict[_Place, int] = {}
        self._active: dict[_Place, float] = {}
        self._unsure: dict[_Place, _Unsure] = {}
        self._pending: dict[_Key, tuple[float, Discrepancy]] = {}
        self._behind: dict[str, tuple[Order, float]] = {}
        self._announced: set[_Key] = set()
        self._balances: set[str] = set()  # accounts whose last word came from the stream

    # --- what the stream tells ---

    def note(self, event: Told, now: float) -> None:
        """The stream told something, applied or not: nothing is concluded of its place for a while."""
        self._told += 1
        self._spoken[_place(event)] = self._told
        self._active[_place(event)] = now

    @property
    def told(self) -> int:
        """How many events the stream told so far."""
        return self._told

    def explain(self, event: Told) -> None:
        """An event is applied: what a look had found of it before was no discrepancy."""
        if isinstance(event, Account):
            self._balances.add(event.id)
        if isinstance(event, Fill):
            self._pending.pop((_KIND.MISSED_FILL, event.account, event.id), None)
        if isinstance(event, Order):
            self._explain_order(event)

    def _explain_order(self, event: Order) -> None:
        for kind in (_KIND.UNKNOWN_ORDER, _KIND.ORDER_BREAK):
            key = (kind, event.account, event.id)
            theirs = self._pending[key][1].theirs if key in self._pending else None
            if isinstance(theirs, Order) and standing(event) >= standing(theirs):
                del self._pending[key]

    # --- what is not decided yet ---

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to tell; None for never."""
        return min((at for at, _ in self._pending.values()), default=None)

    def expire(self, now: float) -> list[Discrepancy]:
        """Discrepancies that the stream had time to explain, and did not."""
        over = [key for key, (at, _) in self._pending.items() if at <= now]
        return [self._pending.pop(key)[1] for key in over]

    @property
    def unsure(self) -> frozenset[_Place]:
        """Positions whose difference is watched, by account and instrument."""
        return frozenset(self._unsure)

    # --- what a snapshot says ---

    def compare(self, snapshot: Snapshot, when: Circumstances) -> Findings:
        """Apply a snapshot, and tell what it says that was not known."""
        found = Findings()
        if snapshot.accounts is not None:
            self._accounts(snapshot.accounts, snapshot, when, found)
        self._orders(snapshot, when, found)
        self._absences(snapshot, when, found)
        for fill_id in snapshot.voided:
            found.changes += self._view.retract(fill_id, recovered=True)
        fresh = self._fills(snapshot, when, found)
        if snapshot.positions is not None and snapshot.fills is not None:
            for account in snapshot.scope:
                self._positions(account, snapshot, when, fresh, found)
        return found

    # --- accounts ---

    def _accounts(
        self, told: Iterable[Account], snapshot: Snapshot, when: Circumstances, found: Findings
    ) -> None:
        for theirs in told:
            if theirs.id not in snapshot.scope or self._spoke((theirs.id, ""), when):
                continue  # the stream's word is the later one
            ours = self._view.accounts.get(theirs.id)
            changes = self._view.apply(theirs, recovered=True)
            found.changes += changes
            differs = ours is not None and theirs.balance not in (None, ours.balance)
            if differs and theirs.id in self._balances and not self._is_active(theirs.id, when):
                self._announce(_KIND.BALANCE_BREAK, theirs.id, theirs.id, ours, theirs, when, found)
            if changes:
                self._balances.discard(theirs.id)

    def _is_active(self, account: str, when: Circumstances) -> bool:
        """Whether anything of an account happened that may move its balance."""
        quiet_since = when.now - self._guard
        return not when.live or any(
            place[0] == account and at > quiet_since for place, at in self._active.items()
        )

    # --- orders ---

    def _orders(self, snapshot: Snapshot, when: Circumstances, found: Findings) -> None:
        told = (event for event in when.heard if isinstance(event, Order))
        heard = {event.id: event for event in sorted(told, key=standing)}
        for theirs in (*(snapshot.open_orders or ()), *(snapshot.orders or ())):
            if theirs.account in snapshot.scope:
                self._order(theirs, heard.get(theirs.id), when, found)

    def _order(
        self, theirs: Order, heard: Order | None, when: Circumstances, found: Findings
    ) -> None:
        ours = self._view.orders.get(theirs.id)
        self._announced.discard((_KIND.MISSING_ORDER, theirs.account, theirs.id))
        if (
            ours is not None
            and standing(theirs) == standing(ours)
            and self._spoke(_place(ours), when)
        ):
            return  # of two states of one age the stream's is the later one
        changes = self._view.apply(theirs, recovered=True)
        found.changes += changes
        if not self._view.is_anchored(theirs.account):
            return
        if heard is not None and standing(heard) >= standing(theirs):
            return
        if ours is None:
            self._announce(
                _KIND.UNKNOWN_ORDER, theirs.account, theirs.id, None, theirs, when, found
            )
        elif changes and _differ(ours, theirs):
            self._announce(_KIND.ORDER_BREAK, theirs.account, theirs.id, ours, theirs, when, found)
        elif _differ(ours, theirs):
            self._older_there(ours, theirs, when, found)
        else:
            self._behind.pop(theirs.id, None)

    def _older_there(
        self, ours: Order, theirs: Order, when: Circumstances, found: Findings
    ) -> None:
        """A list may lag behind the stream for a moment; when it still does later, one of them is wrong."""
        before = self._behind.setdefault(theirs.id, (theirs, when.now))
        if before[0] != theirs:
            self._behind[theirs.id] = (theirs, when.now)
            return
        key = (_KIND.ORDER_BREAK, theirs.account, theirs.id)
        if when.now - before[1] >= self._guard and key not in self._announced:
            self._announced.add(key)
            found.discrepancies.append(Discrepancy(*key, ours, theirs))

    def _absences(self, snapshot: Snapshot, when: Circumstances, found: Findings) -> None:
        if snapshot.orders is None or snapshot.open_orders is None:
            return
        there = {order.id for order in (*snapshot.orders, *snapshot.open_orders)}
        self._behind = {
            name: seen
            for name, seen in self._behind.items()
            if name in there or seen[0].account not in snapshot.scope
        }
        for order in self._view.working():
            if order.account not in snapshot.scope or order.id in there:
                continue
            if order.status is OrderStatus.SUSPENDED:
                continue  # a bracket that waits for its entry is in no list (ProjectX)
            if self._spoke(_place(order), when):
                continue  # it may be younger than the snapshot
            key = (_KIND.MISSING_ORDER, order.account, order.id)
            if key in self._announced:
                continue
            if order.entered_at < snapshot.since:
                oldest = found.further.get(order.account, order.entered_at)
                found.further[order.account] = min(oldest, order.entered_at)
                continue
            self._announced.add(key)
            found.discrepancies.append(Discrepancy(*key, order, None))

    # --- fills ---

    def _fills(self, snapshot: Snapshot, when: Circumstances, found: Findings) -> set[_Place]:
        """Apply the fills; the places where some were new."""
        heard = {event.id for event in when.heard if isinstance(event, Fill)}
        fresh = set()
        for fill in snapshot.fills or ():
            if fill.account not in snapshot.scope:
                continue
            changes = self._view.apply(fill, recovered=True)
            found.changes += changes
            if not changes or not self._view.is_anchored(fill.account):
                continue
            fresh.add(_place(fill))
            if fill.id not in heard:
                self._announce(_KIND.MISSED_FILL, fill.account, fill.id, None, fill, when, found)
        return fresh

    # --- positions ---

    def _positions(
        self,
        account: str,
        snapshot: Snapshot,
        when: Circumstances,
        fresh: set[_Place],
        found: Findings,
    ) -> None:
        view = self._view
        theirs = {p.instrument: p for p in snapshot.positions or () if p.account == account}
        later = _later_fills(view, account, snapshot)
        known = {i for a, i in {*view.positions, *view.disputed, *self._unsure} if a == account}
        for instrument in sorted({*theirs, *known, *later}):
            told = theirs.get(instrument) or _flat(account, instrument)
            since_then = later.get(instrument, _ZERO)
            if not view.is_anchored(account):
                quantity = told.quantity + since_then
                found.changes += view.place(_with(told, quantity), recovered=True)
            else:
                active = (account, instrument) in fresh
                self._position(told, since_then, when, active, found)
        view.anchor(account, snapshot.since)

    def _position(
        self,
        theirs: Position,
        since_then: Decimal,
        when: Circumstances,
        active: bool,
        found: Findings,
    ) -> None:
        view, place = self._view, _place(theirs)
        ours = view.position(*place) or _flat(*place)
        difference = ours.quantity - since_then - theirs.quantity
        if not difference or ours.quantity == theirs.quantity:
            self._unsure.pop(place, None)
            if not self._spoke(place, when):
                view.settle(*place)
            if ours.quantity == theirs.quantity and theirs.average_price is not None:
                found.changes += view.place(theirs, recovered=True)
            return
        if not self._is_broken(place, difference, when, active):
            return
        del self._unsure[place]
        found.changes += view.place(_with(theirs, ours.quantity - difference), recovered=True)
        kind, (account, instrument) = _KIND.POSITION_BREAK, place
        found.discrepancies.append(Discrepancy(kind, account, instrument, ours, theirs))

    def _is_broken(
        self, place: _Place, difference: Decimal, when: Circumstances, active: bool
    ) -> bool:
        """Whether a difference is one: it is there again later, and nothing moved, or however much moved."""
        before = self._unsure.get(place)
        if before is None or before.difference != difference:
            before = _Unsure(difference, 0, when.now)
        self._unsure[place] = before = before._replace(looks=before.looks + 1)
        quiet_since = max(self._active.get(place, before.since), before.since)
        if when.now - before.since < self._guard:
            return False
        if before.looks >= _LOOKS_OF_A_BREAK:
            return True
        return not active and when.now - quiet_since >= self._guard

    # --- helpers ---

    def _spoke(self, place: _Place, when: Circumstances) -> bool:
        """Whether the stream told something of a place since the snapshot was asked for."""
        return self._spoken.get(place, 0) > when.asked

    def _announce(
        self,
        kind: DiscrepancyKind,
        account: str,
        name: str,
        ours: Told | None,
        theirs: Told | None,
        when: Circumstances,
        found: Findings,
    ) -> None:
        discrepancy = Discrepancy(kind, account, name, ours, theirs)
        if when.live and kind is not _KIND.BALANCE_BREAK:
            due = (when.now + self._guard, discrepancy)
            self._pending.setdefault((kind, account, name), due)
        else:
            found.discrepancies.append(discrepancy)


def _place(event: Told) -> _Place:
    if isinstance(event, Account):
        return event.id, ""
    return event.account, event.instrument


def _differ(ours: Order, theirs: Order) -> bool:
    names = ("status", "filled", "quantity", "limit_price", "stop_price")
    return any(getattr(ours, name) != getattr(theirs, name) for name in names)


def _later_fills(view: AccountView, account: str, snapshot: Snapshot) -> dict[str, Decimal]:
    """By how much fills moved each instrument that the snapshot does not have yet."""
    listed = {fill.id for fill in snapshot.fills or ()}
    later: dict[str, list[Fill]] = {}
    for fill in view.fills.values():
        if fill.account == account and fill.at >= snapshot.since and fill.id not in listed:
            later.setdefault(fill.instrument, []).append(fill)
    return {instrument: total(fills) for instrument, fills in later.items()}


def _flat(account: str, instrument: str) -> Position:
    return Position(account=account, instrument=instrument, quantity=_ZERO)


def _with(position: Position, quantity: Decimal) -> Position:
    return replace(position, quantity=quantity)
