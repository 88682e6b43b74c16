"""What ProjectX shows of accounts in one view, so that a stream can be held against it.

Invariants: open orders before the history, so that an order that ends meanwhile is in one of them; fills before and
after positions, until nothing came between; a query that fails is None.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from keepline.brokers.checks import id_number, moment
from keepline.brokers.projectx.client import ProjectXClient
from keepline.brokers.projectx.messages import TradeInfo
from keepline.brokers.projectx.words import account_of, fill_of, order_of, position_of
from keepline.brokers.snapshots import Reading, checked_scope, lags_behind
from keepline.model import Account, Fill, Order, Position
from keepline.stream.snapshot import Snapshot

__all__ = ["ProjectXSnapshots"]


class ProjectXSnapshots:
    """A `SnapshotSource` over the typed client: one call for all accounts, five or more for each.

    Args:
        client: stays the caller's to close.

    Example:
        >>> snapshot = await ProjectXSnapshots(client).snapshot(["1001"], since=yesterday)
    """

    def __init__(self, client: ProjectXClient) -> None:
        self._client = client

    async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
        """Take a snapshot of these accounts.

        Raises:
            ConfigError: no account, or an id or a time that makes no sense; nothing was sent.
            KeeplineError: nothing could be read at all.
        """
        scope = checked_scope(accounts)
        numbers = [id_number(name, "accounts") for name in scope]
        moment(since, "since")
        reading = Reading()
        parts = _Parts()
        parts.accounts = await self._accounts(scope, reading)
        for number in numbers:
            await self._account(number, since, reading, parts)
        reading.raise_if_blind()
        return reading.snapshot(
            taken_at=self._client.clock.wall(),
            since=since,
            scope=scope,
            accounts=parts.accounts,
            orders=tuple(parts.orders),
            open_orders=tuple(parts.open_orders),
            positions=tuple(parts.positions),
            fills=tuple(parts.fills),
            voided=tuple(parts.voided),
        )

    async def _accounts(self, scope: tuple[str, ...], reading: Reading) -> tuple[Account, ...]:
        # also those that are closed: one that is followed does not vanish
        found = await reading.read("accounts", self._client.accounts(only_active=False))
        if found is None:
            return ()
        there = {str(info.id) for info in found}
        if missing := [name for name in scope if name not in there]:
            # what is asked of an account that is not ours is empty, and would look flat
            names = ", ".join(sorted(there)) or "none"
            reading.failed["accounts"] = (
                f"{', '.join(missing)} is not there; the token reaches {names}"
            )
        return tuple(account_of(info) for info in found if str(info.id) in scope)

    async def _account(
        self, number: int, since: datetime, reading: Reading, parts: "_Parts"
    ) -> None:
        working, past = await self._orders(number, since, reading)
        trades, held = await reading.at_rest(
            partial(self._trades, number, since, reading),
            partial(self._positions, number, reading),
            _mark,
        )
        fills = [fill_of(trade) for trade in trades or () if not trade.voided]
        if lags_behind((*working, *past), fills):
            working, past = await self._orders(number, since, reading)
        parts.open_orders += working
        parts.orders += past
        parts.fills += fills
        parts.voided += [str(trade.id) for trade in trades or () if trade.voided]
        parts.positions += held or ()

    async def _orders(
        self, number: int, since: datetime, reading: Reading
    ) -> tuple[tuple[Order, ...], tuple[Order, ...]]:
        working = await reading.read("open_orders", self._client.open_orders(number)) or ()
        past = await reading.read("orders", self._client.search_orders(number, since)) or ()
        return tuple(map(order_of, working)), tuple(map(order_of, past))

    async def _trades(
        self, number: int, since: datetime, reading: Reading
    ) -> tuple[TradeInfo, ...] | None:
        query = self._client.search_trades(number, since)
        return await reading.read("fills positions", query)

    async def _positions(self, number: int, reading: Reading) -> tuple[Position, ...] | None:
        found = await reading.read("positions", self._client.open_positions(number))
        return None if found is None else tuple(map(position_of, found))


class _Parts:
    """What was read of all accounts so far."""

    def __init__(self) -> None:
        self.accounts: tuple[Account, ...] = ()
        self.orders: list[Order] = []
        self.open_orders: list[Order] = []
        self.positions: list[Position] = []
        self.fills: list[Fill] = []
        self.voided: list[str] = []


def _mark(trades: tuple[TradeInfo, ...]) -> set[tuple[int, bool]]:
    return {(trade.id, trade.voided) for trade in trades}
