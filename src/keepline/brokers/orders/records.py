"""What the journal keeps of an intent, and how it is written as a row.

Invariants: a row is read back into the same record; one that cannot be read is damage, never skipped in silence.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct, structs

from keepline.brokers.base import BrokerFacts, OrderIntent
from keepline.brokers.orders.resolution import How, State, Ticket
from keepline.errors import ConfigError

__all__ = [
    "COLUMNS",
    "Decision",
    "Record",
    "from_row",
    "record_of",
    "same_body",
    "ticket_of",
    "to_row",
]

COLUMNS = (
    "id", "body", "state", "how", "reason", "order_id", "target", "prepared_at", "sent_at", "changed_at"
)  # fmt: skip
"""The columns of the table `orders`, in the order of a row."""

Row = tuple[Any, ...]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OrderIntent).decode


class Record(Struct, frozen=True, kw_only=True):
    """An intent as the journal has it.

    Attributes:
        intent: as the caller gave it.
        state: where it stands; SENT is written before the request leaves.
        how: by what the state is known.
        reason: in words.
        order_id: the broker's id, None while unknown.
        target: the order that a `modify` or `cancel` was aimed at, when the caller had not named it.
        prepared_at, sent_at, changed_at: by our wall clock, in UTC.
    """

    intent: OrderIntent
    state: State
    how: How = How.NONE
    reason: str = ""
    order_id: str | None = None
    target: str = ""
    prepared_at: datetime
    sent_at: datetime | None = None
    changed_at: datetime


class Decision(Struct, frozen=True, kw_only=True):
    """What a person said of an intent: its order's id, or None for absent."""

    number: int
    intent_id: str
    order_id: str | None
    reason: str


def record_of(
    ticket: Ticket, *, body: OrderIntent, prepared_at: datetime, changed_at: datetime
) -> Record:
    """The record of a ticket at this moment."""
    target = ticket.intent.target_order_id
    return Record(
        intent=body,
        state=ticket.state,
        how=ticket.how,
        reason=ticket.reason,
        order_id=ticket.order_id,
        target="" if target == body.target_order_id else target,
        prepared_at=prepared_at,
        sent_at=ticket.sent_at,
        changed_at=changed_at,
    )


def ticket_of(record: Record, facts: BrokerFacts) -> Ticket:
    """The ticket that a record left behind."""
    ticket = Ticket.restored(
        record.intent,
        facts,
        state=record.state,
        how=record.how,
        reason=record.reason,
        order_id=record.order_id,
        sent_at=record.sent_at,
    )
    if record.target:
        ticket.aim(record.target)
    return ticket


def same_body(one: OrderIntent, other: OrderIntent) -> bool:
    """Whether two intents ask for the same; how long a caller waits is not part of it."""
    return one == structs.replace(other, deadline_seconds=one.deadline_seconds)


def to_row(record: Record) -> Row:
    """The row of a record."""
    return (
        record.intent.id,
        _encode(record.intent),
        record.state.value,
        record.how.value,
        record.reason,
        record.order_id,
        record.target,
        record.prepared_at.timestamp(),
        None if record.sent_at is None else record.sent_at.timestamp(),
        record.changed_at.timestamp(),
    )


def from_row(row: Row) -> Record:
    """The record of a row.

    Raises:
        ConfigError: the row is damaged; it names the intent.
    """
    name, body, state, how, reason, order_id, target, prepared_at, sent_at, changed_at = row
    try:
        return Record(
            intent=_decode(body),
            state=State(state),
            how=How(how),
            reason=reason,
            order_id=order_id,
            target=target,
            prepared_at=datetime.fromtimestamp(prepared_at, UTC),
            sent_at=None if sent_at is None else datetime.fromtimestamp(sent_at, UTC),
            changed_at=datetime.fromtimestamp(changed_at, UTC),
        )
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise ConfigError(f"the entry of intent {name!r} cannot be read: {error}") from error
