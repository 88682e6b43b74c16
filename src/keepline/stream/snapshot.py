"""What a broker shows when it is asked, and in what that can disagree with what its stream told.

Invariant: None is a query that failed; it is never read as "none", "flat" or "no orders".
"""

import enum
from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from msgspec import Struct, field

from keepline.model import Account, Fill, Order, Position
from keepline.stream.view import Told

__all__ = ["Discrepancy", "DiscrepancyKind", "Snapshot", "SnapshotSource"]

_PARTS = ("accounts", "orders", "open_orders", "positions", "fills")


class DiscrepancyKind(enum.StrEnum):
    """In what we and the broker disagreed."""

    MISSED_FILL = "missed_fill"
    UNKNOWN_ORDER = "unknown_order"
    MISSING_ORDER = "missing_order"
    ORDER_BREAK = "order_break"
    POSITION_BREAK = "position_break"
    BALANCE_BREAK = "balance_break"


class Discrepancy(NamedTuple):
    """One thing in which the broker's snapshot and what was known here disagreed.

    Attributes:
        kind: what it is about.
        account: whose.
        id: of the order or fill; the instrument of a position, the account of a balance.
        ours: what was known here, None for nothing.
        theirs: what the broker says, None for nothing. It counts from now on, except for an order that is missing
            there or that is further here than there.
    """

    kind: DiscrepancyKind
    account: str
    id: str
    ours: Told | None = None
    theirs: Told | None = None

    def __str__(self) -> str:
        return f"{self.kind.value.replace('_', ' ')}: {self.id} in account {self.account}"


class Snapshot(Struct, frozen=True, kw_only=True):
    """What a broker shows of some accounts. None means that the query failed.

    Positions and fills belong together: a fill of the window that is in a position is in `fills`, too.

    Attributes:
        taken_at: when it was complete, by our wall clock.
        since: orders entered and fills made at this instant or later are in it.
        scope: the accounts that it is about.
        accounts: with their balances.
        orders: all of the window, with their final states.
        open_orders: that are at work, however old.
        positions: that are not flat.
        fills: of the window.
        voided: ids of fills that the broker took back.
        failed: names of what could not be read, with the reason.
    """

    taken_at: datetime
    since: datetime
    scope: tuple[str, ...]
    accounts: tuple[Account, ...] | None = None
    orders: tuple[Order, ...] | None = None
    open_orders: tuple[Order, ...] | None = None
    positions: tuple[Position, ...] | None = None
    fills: tuple[Fill, ...] | None = None
    voided: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of what could not be read."""
        return tuple(n for n in _PARTS if getattr(self, n) is None or n in self.failed)


class SnapshotSource(Protocol):
    """Asks one broker for everything that a stream could have missed."""

    def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Awaitable[Snapshot]:
        """Take a snapshot (as an `async def`).

        A query that fails is None and listed in `failed`; the others are still told.

        Args:
            accounts: ids, at least one.
            since: orders entered and fills made at this instant or later; aware.

        Raises:
            KeeplineError: nothing could be read at all.
        """
        ...
