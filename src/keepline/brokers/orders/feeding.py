"""Lets the order gateway see what a stream and its reconciliation see, so that unknown outcomes settle themselves.

Invariants: the gateway knows by itself what repeats; a difference that no single event explains makes it look at the
broker; nothing here sends, and nothing here raises into the stream.
"""

import asyncio
import logging

from keepline.brokers.orders.gateway import OrderGateway
from keepline.errors import KeeplineError
from keepline.model import Fill, Order
from keepline.stream.snapshot import Discrepancy, DiscrepancyKind
from keepline.stream.view import Change
from keepline.telemetry import event

__all__ = ["GatewayFeed"]

log = logging.getLogger("keepline.orders")

_LOOK = frozenset({DiscrepancyKind.MISSING_ORDER, DiscrepancyKind.POSITION_BREAK})


class GatewayFeed:
    """Hands changes and discrepancies of a `Reconciliation` to an order gateway, on the gateway's event loop.

    Args:
        gateway: stays the caller's to start and stop.

    Example:
        >>> feed = GatewayFeed(gateway)
        >>> Reconciliation(source, ["1001"], on_change=feed.changed, on_discrepancy=feed.differs)
    """

    def __init__(self, gateway: OrderGateway) -> None:
        self._gateway = gateway
        self._wanted: set[str] = set()
        self._looks: dict[str, asyncio.Task[None]] = {}

    def changed(self, change: Change) -> None:
        """An order or a fill is otherwise than it was; the rest does not concern the gateway."""
        if isinstance(change.value, Order | Fill):
            self._gateway.observe(change.value)

    def differs(self, found: Discrepancy) -> None:
        """The broker's snapshot says something else: what it shows is observed, what it does not show is looked for."""
        if isinstance(found.theirs, Order | Fill):
            self._gateway.observe(found.theirs)
        if found.kind not in _LOOK:
            return
        self._wanted.add(found.account)
        if found.account not in self._looks:
            look = asyncio.ensure_future(self._look(found.account))
            self._looks[found.account] = look
            look.add_done_callback(lambda _: self._looks.pop(found.account, None))

    async def settle(self, found: Discrepancy) -> None:
        """As `differs`, and return once the gateway has looked: a callback for streams that run these on the loop."""
        self.differs(found)
        await self.drain()

    async def drain(self) -> None:
        """Wait for looks that are under way."""
        await asyncio.gather(*self._looks.values())

    async def stop(self) -> None:
        """Give up looks that are under way; the gateway makes those that it needs itself."""
        self._wanted.clear()
        looks = list(self._looks.values())
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    async def _look(self, account: str) -> None:
        while account in self._wanted:
            self._wanted.discard(account)  # what is found from now on needs a look of its own
            try:
                await self._gateway.catch_up(account)
            except KeeplineError as error:
                event(log, logging.WARNING, "Order look failed", account=account, error=str(error))
            except Exception:
                log.exception("Order look failed")
