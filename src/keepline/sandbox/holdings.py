"""What the sandbox's accounts hold: positions and cash, made of nothing but fills.

Invariants: a position is the sum of its fills, to the last digit; a position that was closed is gone, and the next one
has a new id.
"""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from keepline.sandbox.book import Account, Fill, Position
from keepline.sandbox.listings import Listing

__all__ = ["Holdings"]


class Holdings:
    """Positions and cash of all accounts."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self._cash = {account.id: account.cash for account in accounts}
        self._positions: dict[tuple[str, str], Position] = {}
        self._ids = itertools.count(1)

    def cash(self, account: str) -> Decimal:
        """Dollars of an account."""
        return self._cash[account]

    def all(self) -> list[Position]:
        """Every open position."""
        return list(self._positions.values())

    def position(self, account: str, listing: str) -> Position | None:
        """What the account holds of it, None when nothing."""
        return self._positions.get((account, listing))

    def profit(self, fill: Fill, listing: Listing) -> Decimal | None:
        """What a fill earns by closing; None when it only opens."""
        held = self.position(fill.account, fill.listing)
        if held is None or held.size * fill.side.value > 0:
            return None
        closed = min(fill.size, abs(held.size))
        return listing.worth((held.average - fill.price) * fill.side.value, closed)

    def affords(self, account: str, listing: Listing, change: Decimal, *, price: Decimal) -> bool:
        """Whether the cash suffices for a change of the position; closing always does."""
        held = self.position(account, listing.id)
        size = held.size if held else Decimal(0)
        more = abs(size + change) - abs(size)
        if more <= 0:
            return True
        if listing.margin is None:
            return change < 0 or self._cash[account] >= price * change
        return self._cash[account] >= listing.margin * abs(size + change)

    def apply(self, fill: Fill, listing: Listing) -> Position:
        """Book a fill; the position after it, of size 0 when it was closed."""
        change = fill.size * fill.side.value
        if listing.is_future:
            self._cash[fill.account] += (fill.profit or 0) - fill.fees
        else:
            self._cash[fill.account] -= change * fill.price + fill.fees
        position = self._after(fill, change)
        key = (fill.account, fill.listing)
        if position.size:
            self._positions[key] = position
        else:
            self._positions.pop(key, None)
        return position

    def _after(self, fill: Fill, change: Decimal) -> Position:
        held = self.position(fill.account, fill.listing)
        if held is None:
            return Position(
                id=next(self._ids),
                account=fill.account,
                listing=fill.listing,
                size=change,
                average=fill.price,
                opened_at=fill.at,
            )
        size = held.size + change
        if held.size * change > 0:
            cost = held.average * held.size + fill.price * change
            return replace(held, size=size, average=cost / size)
        return replace(
            held, size=size, average=fill.price if size * held.size < 0 else held.average
        )
