"""Orders that are never doubled: the intent journal, unknown outcomes, and how they are settled."""

from keepline.brokers.orders.feeding import GatewayFeed
from keepline.brokers.orders.gateway import OrderGateway
from keepline.brokers.orders.journal import Journal, OrderJournal
from keepline.brokers.orders.outcome import OrderOutcome, OutcomeState
from keepline.brokers.orders.records import Decision, Record
from keepline.brokers.orders.resolution import How, State
from keepline.brokers.orders.watch import CaughtUp

__all__ = [
    "CaughtUp",
    "Decision",
    "GatewayFeed",
    "How",
    "Journal",
    "OrderGateway",
    "OrderJournal",
    "OrderOutcome",
    "OutcomeState",
    "Record",
    "State",
]
