"""An account as it is known here: orders, fills, positions and balances, each event applied once, in any order.

Invariants: applying a value twice changes nothing; a fill counts once, by its id; an older state of an order never
overwrites a newer one, and no state overwrites a final one but another final one with more filled; a position is what a
broker once told beside its fills, moved by every fill since. No clock: what is older is told by the values themselves.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from keepline.model import Account, Fill, Order, OrderStatus, Position

__all__ = ["AccountView", "Change", "Told", "moved", "standing", "total"]

Told: TypeAlias = Order | Fill | Position | Account
"""What a stream or a snapshot tells of an account."""

Place: TypeAlias = tuple[str, str]

_ZERO = Decimal(0)
_KEPT = 20_000
_RANK = {OrderStatus.UNKNOWN: 0, OrderStatus.PENDING: 1}


class Change(NamedTuple):
    """Something that is otherwise than it was a moment ago.

    Attributes:
        value: how it is now: an order, a new fill, a position (flat ones too), an account.
        before: how it was; None when it was not known.
        recovered: whether it is told late: by a snapshot, because the stream did not tell it, or because whoever
            listens had no room for it before.
    """

    value: Told
    before: Told | None = None
    recovered: bool = False


class AccountView:
    """Everything that is known of the accounts of one broker.

    Args:
        kept: so many fills, and so many orders that have ended, are kept; of older ones nothing is taken in again.
    """

    def __init__(self, *, kept: int = _KEPT) -> None:
        self._kept = kept
        self._orders: dict[str, Order] = {}
        self._ended: dict[str, None] = {}  # in the order in which they ended
        self._fills: dict[str, Fill] = {}
        self._voided: dict[str, None] = {}
        self._positions: dict[Place, Position] = {}
        self._disputed: dict[Place, Position] = {}
        self._accounts: dict[str, Account] = {}
        self._anchors: dict[str, datetime] = {}
        self._forgotten: datetime | None = None

    # --- what is known ---

    @property
    def orders(self) -> Mapping[str, Order]:
        """Orders by id, those that ended too."""
        return MappingProxyType(self._orders)

    @property
    def fills(self) -> Mapping[str, Fill]:
        """Fills by id, in the order in which they became known."""
        return MappingProxyType(self._fills)

    @property
    def positions(self) -> Mapping[Place, Position]:
        """Positions that are not flat, by account and instrument."""
        return {place: held for place, held in self._positions.items() if held.quantity}

    @property
    def accounts(self) -> Mapping[str, Account]:
        """Accounts by id."""
        return MappingProxyType(self._accounts)

    @property
    def disputed(self) -> Mapping[Place, Position]:
        """Positions that the stream told and that the fills do not explain; a look at the broker settles them."""
        return MappingProxyType(self._disputed)

    def position(self, account: str, instrument: str) -> Position | None:
        """What an account holds of an instrument; a quantity of 0 is flat, None is not known."""
        held = self._positions.get((account, instrument))
        if held is None and account in self._anchors:
            return _flat((account, instrument))
        return held

    def working(self, account: str | None = None) -> list[Order]:
        """Orders that have not ended, of one account or of all."""
        return [
            order
            for order in self._orders.values()
            if not order.status.is_final and account in (None, order.account)
        ]

    def is_anchored(self, account: str) -> bool:
        """Whether positions and fills of the account were once told together: its fills move positions since."""
        return account in self._anchors

    # --- what is told ---

    def apply(self, told: Told, *, recovered: bool = False) -> list[Change]:
        """Take in what a stream or a snapshot tells.

        Returns:
            What changed by it: nothing for a repetition or for an older state; a fill also moves its position.
        """
        match told:
            case Order():
                return self._order(told, recovered)
            case Fill():
                return self._fill(told, recovered)
            case Position():
                return self._position(told, recovered)
            case Account():
                return self._account(told, recovered)

    def retract(self, fill_id: str, *, recovered: bool = False) -> list[Change]:
        """The broker takes a fill back (a busted trade): it counts no more, however often it is told again."""
        self._voided[fill_id] = None
        if len(self._voided) > self._kept:
            del self._voided[next(iter(self._voided))]
        fill = self._fills.pop(fill_id, None)
        if fill is None or not self._counts(fill):
            return []
        return self._move(replace(fill, side=fill.side.opposite), recovered)

    def place(self, position: Position, *, recovered: bool = False) -> list[Change]:
        """Set a position to what the broker says, whatever the fills say."""
        key = (position.account, position.instrument)
        self._disputed.pop(key, None)
        if not position.quantity:
            position = _flat(key)
        before = self._positions.get(key)
        self._positions[key] = position
        if position == (before or _flat(key)):
            return []
        return [Change(position, before, recovered)]

    def anchor(self, account: str, since: datetime) -> None:
        """From now on fills move the positions of the account; unknown ones from before `since` are in them already."""
        self._anchors[account] = max(since, self._anchors.get(account, since))

    def settle(self, account: str, instrument: str) -> None:
        """What the stream said of a position was looked into."""
        self._disputed.pop((account, instrument), None)

    # --- orders ---

    def _order(self, told: Order, recovered: bool) -> list[Change]:
        known = self._orders.get(told.id)
        order = told if known is None else _merged(known, told)
        if order == known:
            return []
        self._orders[told.id] = order
        if order.status.is_final:
            self._ended[told.id] = None
            if len(self._ended) > self._kept:
                oldest = next(iter(self._ended))
                del self._ended[oldest], self._orders[oldest]
        return [Change(order, known, recovered)]

    # --- fills and positions ---

    def _fill(self, fill: Fill, recovered: bool) -> list[Change]:
        if (known := self._fills.get(fill.id)) is not None:
            if known.fees is None and fill.fees is not None:
                self._fills[fill.id] = replace(known, fees=fill.fees)
            return []
        if fill.id in self._voided or (self._forgotten is not None and fill.at <= self._forgotten):
            return []
        self._fills[fill.id] = fill
        self._make_room()
        changes = [Change(fill, None, recovered)]
        return changes + self._move(fill, recovered) if self._counts(fill) else changes

    def _counts(self, fill: Fill) -> bool:
        since = self._anchors.get(fill.account)
        return since is not None and fill.at >= since

    def _move(self, fill: Fill, recovered: bool) -> list[Change]:
        key = (fill.account, fill.instrument)
        before = self._positions.get(key)
        after = moved(before or _flat(key), fill)
        told = self._disputed.get(key)
        if told is not None and told.quantity == after.quantity:
            after = _priced(self._disputed.pop(key), after.average_price)
        self._positions[key] = after
        return [Change(after, before, recovered)]

    def _position(self, told: Position, recovered: bool) -> list[Change]:
        key = (told.account, told.instrument)
        before = self._positions.get(key)
        if told.account in self._anchors:
            ours = before or _flat(key)
            if told.quantity != ours.quantity:
                self._disputed[key] = told
                return []
            told = _priced(told, ours.average_price)
        return self.place(told, recovered=recovered)

    def _make_room(self) -> None:
        if len(self._fills) > self._kept:
            oldest = self._fills.pop(next(iter(self._fills)))
            self._forgotten = max(oldest.at, self._forgotten or oldest.at)

    # --- accounts ---

    def _account(self, told: Account, recovered: bool) -> list[Change]:
        known = self._accounts.get(told.id)
        account = told if known is None else _filled_up(told, known)
        if account == known:
            return []
        self._accounts[told.id] = account
        return [Change(account, known, recovered)]

    def __repr__(self) -> str:
        return (
            f"<AccountView {len(self.working())} orders at work, {len(self._fills)} fills, "
            f"{len(self.positions)} positions>"
        )


def standing(order: Order) -> tuple[bool, Decimal, datetime, int]:
    """How far an order has come: of two states of one order the greater one is the newer one.

    An end comes after everything else, more filled after less, then the broker's time counts, and at last a status
    that says more.
    """
    at = order.updated_at or order.entered_at
    return order.status.is_final, order.filled, at, _RANK.get(order.status, 2)


def moved(position: Position, fill: Fill) -> Position:
    """The position after a fill; its average price is that of what was opened last in its direction."""
    before, step = position.quantity, fill.side.sign * fill.quantity
    after = before + step
    if after == 0:
        price = None
    elif before == 0 or (before > 0) != (after > 0):
        price = fill.price
    elif abs(after) < abs(before) or position.average_price is None:
        price = position.average_price
    else:
        price = (before * position.average_price + step * fill.price) / after
    return replace(position, quantity=after, average_price=price)


def total(fills: Iterable[Fill]) -> Decimal:
    """By how much fills move a position."""
    return sum((fill.side.sign * fill.quantity for fill in fills), _ZERO)


def _merged(known: Order, told: Order) -> Order:
    if standing(told) < standing(known):
        return known
    times = [at for at in (known.updated_at, told.updated_at) if at is not None]
    return replace(
        told,
        filled=max(known.filled, told.filled),
        average_price=known.average_price if told.average_price is None else told.average_price,
        tag=told.tag or known.tag,
        updated_at=max(times, default=None),
    )


def _flat(place: Place) -> Position:
    return Position(account=place[0], instrument=place[1], quantity=_ZERO)


def _priced(position: Position, price: Decimal | None) -> Position:
    if position.average_price is not None or not position.quantity:
        return position
    return replace(position, average_price=price)


def _filled_up(told: Account, known: Account) -> Account:
    """What one telling leaves open stays as it was told before."""
    return Account(
        id=told.id,
        name=told.name or known.name,
        balance=known.balance if told.balance is None else told.balance,
        can_trade=known.can_trade if told.can_trade is None else told.can_trade,
        simulated=known.simulated if told.simulated is None else told.simulated,
    )
