"""What Schwab shows of accounts in one view, so that a stream can be held against it.

Invariants: executions are read with their orders, before and after positions, until nothing came between; orders that
work are listed however old they are, because Schwab lists by the time of entry alone; a query that fails is None.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

from keepline.brokers.checks import moment, text
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import OrderInfo
from keepline.brokers.schwab.words import account_of, fills_of, orders_of, position_of
from keepline.brokers.snapshots import Reading, checked_scope
from keepline.model import Account, Fill, Order, Position
from keepline.stream.snapshot import Snapshot

__all__ = ["SchwabSnapshots"]

_OLDEST = timedelta(days=185)  # an order good till cancelled works 180 days at most
_AHEAD = timedelta(minutes=1)  # their clock may be ahead of ours


class SchwabSnapshots:
    """A `SnapshotSource` over the typed client: three calls or more for each account.

    The first snapshot of an account lists the orders of half a year, to find those that still work; later ones begin
    with the oldest of these.

    Args:
        client: stays the caller's to close.
    """

    def __init__(self, client: SchwabClient) -> None:
        self._client = client
        self._oldest: dict[str, datetime] = {}

    async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
        """Take a snapshot of these accounts.

        Raises:
            ConfigError: no account, or a number or a time that makes no sense; nothing was sent.
            KeeplineError: nothing could be read at all.
        """
        scope = tuple(text(name, "accounts") for name in checked_scope(accounts))
        moment(since, "since")
        reading, parts = Reading(), _Parts()
        for account in scope:
            await self._account(account, since, reading, parts)
        reading.raise_if_blind()
        return reading.snapshot(
            taken_at=self._client.clock.wall(),
            since=since,
            scope=scope,
            accounts=tuple(parts.accounts),
            orders=tuple(parts.orders),
            open_orders=tuple(order for order in parts.orders if not order.status.is_final),
            positions=tuple(parts.positions),
            fills=tuple(fill for fill in parts.fills if fill.at >= since),
        )

    async def _account(
        self, account: str, since: datetime, reading: Reading, parts: "_Parts"
    ) -> None:
        start = self._start(account, since)
        rows, held = await reading.at_rest(
            partial(self._rows, account, start, reading),
            partial(self._positions, account, reading, parts),
            lambda rows: {fill.id for fill in fills_of(rows, account)},
        )
        if rows is None:
            reading.failed.setdefault("accounts", reading.failed.get("orders", ""))
            return
        orders = orders_of(rows, account)
        entered = [order.entered_at for order in orders if not order.status.is_final]
        self._oldest[account] = min(entered, default=self._client.clock.wall())
        parts.orders += orders
        parts.fills += fills_of(rows, account)
        parts.positions += held or ()

    def _start(self, account: str, since: datetime) -> datetime:
        now = self._client.clock.wall()
        oldest = self._oldest.get(account, now - _OLDEST) - _AHEAD
        return min(since, oldest, now - _AHEAD)

    async def _rows(
        self, account: str, start: datetime, reading: Reading
    ) -> tuple[OrderInfo, ...] | None:
        end = self._client.clock.wall() + _AHEAD
        names = "orders open_orders fills positions"
        return await reading.read(names, self._client.orders(account, start, end))

    async def _positions(
        self, account: str, reading: Reading, parts: "_Parts"
    ) -> tuple[Position, ...] | None:
        query = self._client.account(account, positions=True)
        found = await reading.read("accounts positions", query)
        if found is None:
            return None
        parts.accounts[:] = [a for a in parts.accounts if a.id != account] + [account_of(found)]
        return tuple(position_of(row, account) for row in found.positions or ())


class _Parts:
    """What was read of all accounts so far."""

    def __init__(self) -> None:
        self.accounts: list[Account] = []
        self.orders: list[Order] = []
        self.positions: list[Position] = []
        self.fills: list[Fill] = []
