"""From "something happened to this order" to the order itself: the activity's own data is documented too loosely.

Invariants: an order is asked for once however many activities came meanwhile; what cannot be asked is given to the
reconciliation, never forgotten; one request at a time.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from keepline import telemetry
from keepline.brokers.account_events import AccountEvents
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import OrderInfo
from keepline.brokers.schwab.streamer_messages import AccountActivity
from keepline.brokers.schwab.streamer_state import SUBSCRIBED
from keepline.brokers.schwab.words import fills_of, orders_of
from keepline.errors import KeeplineError

__all__ = ["OrderRefresh"]

log = logging.getLogger("keepline.stream")

_MOST = 1_000  # orders that wait to be asked for; with more a snapshot is cheaper anyway
_WHY = "account activity"


class OrderRefresh:
    """Turns account activity into orders and fills.

    Args:
        client: asked for orders.
        events: gets what was found.
        accounts: whose orders are followed; activity of others is passed over.
    """

    def __init__(
        self, client: SchwabClient, events: AccountEvents, accounts: Iterable[str]
    ) -> None:
        self._client = client
        self._events = events
        self._accounts = frozenset(accounts)
        self._wanted: dict[tuple[str, str], None] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def hear(self, activity: AccountActivity) -> None:
        """An activity came; synchronous, cheap, never raises."""
        if activity.kind == SUBSCRIBED:
            return
        if not activity.account or len(self._wanted) >= _MOST:
            self._events.reconciliation.suspect(reason=_WHY)
        elif activity.account in self._accounts:
            self._wanted[activity.account, activity.order_id] = None
            self._news.set()

    async def start(self) -> None:
        """Begin to ask."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="schwab order refresh")

    async def stop(self) -> None:
        """Ask no more; what waits is forgotten, a snapshot finds it."""
        task, self._task = self._task, None
        self._wanted.clear()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            while self._wanted:
                account, order = next(iter(self._wanted))
                del self._wanted[account, order]  # an activity during the request asks once more
                await self._ask(account, order)
            self._news.clear()
            await self._news.wait()

    async def _ask(self, account: str, order: str) -> None:
        if order:
            try:
                self._found((await self._client.order(account, int(order)),), account)
            except KeeplineError as error:
                telemetry.event(
                    log, logging.WARNING, "Order refresh failed", order=order, error=str(error)
                )
            except (
                Exception
            ):  # an order in a shape that nobody expected must not end the work for all others
                log.exception("Order refresh failed")
        # positions and balances are in no order, and an order may be told later than its activity: look, too
        self._events.reconciliation.suspect(account, reason=_WHY)

    def _found(self, rows: Sequence[OrderInfo], account: str) -> None:
        for order in orders_of(rows, account):
            self._events.receive(order)
        for fill in fills_of(rows, account):
            self._events.receive(fill)

    def __repr__(self) -> str:
        return f"<OrderRefresh, {len(self._wanted)} orders wait>"
