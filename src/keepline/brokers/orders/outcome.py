"""What a caller is told about its intent: a value of this moment, and the way to the final word.

Invariant: the value never changes; `final()` waits for another one.
"""

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from keepline.brokers.orders.resolution import How, State, Ticket

__all__ = ["OrderOutcome", "OutcomeState", "outcome_of"]


class OutcomeState(enum.Enum):
    """What a caller may rely on."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    PRESUMED_ABSENT = "presumed_absent"


@dataclass(frozen=True, slots=True)
class OrderOutcome:
    """What is known of an intent at one moment.

    Attributes:
        intent_id: whose outcome it is.
        state: ACCEPTED (it is at the broker), REFUSED (it is not, by proof), UNKNOWN (sent or waiting, and nobody
            knows), AMBIGUOUS (a person must decide: `keepline orders reconcile`), PRESUMED_ABSENT (looked for and
            not found).
        order_id: the broker's id, None while unknown.
        how: by what it is known: `answer`, `query`, `stream`, `late` (it appeared after it was presumed absent or
            refused), `person`, `unsent` (it never left), "" for not at all.
        reason: in words.
    """

    intent_id: str
    state: OutcomeState
    order_id: str | None = None
    how: str = ""
    reason: str = ""
    _final: Callable[[str], "Awaitable[OrderOutcome]"] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def accepted(self) -> bool:
        """Whether the broker has it."""
        return self.state is OutcomeState.ACCEPTED

    @property
    def is_final(self) -> bool:
        """Whether waiting tells no more: only an order that appears late changes it."""
        return self.state not in (OutcomeState.UNKNOWN, OutcomeState.AMBIGUOUS)

    async def final(self) -> "OrderOutcome":
        """Wait until it is ACCEPTED, REFUSED or PRESUMED_ABSENT, however long a person takes.

        Raises:
            Closed: the gateway was stopped first; the next one goes on with the intent.
            StorageError: it could not be written to the journal, and was not sent.
        """
        return self if self.is_final or self._final is None else await self._final(self.intent_id)


_STATES = {
    State.PREPARED: OutcomeState.UNKNOWN,
    State.SENT: OutcomeState.UNKNOWN,
    State.UNKNOWN: OutcomeState.UNKNOWN,
    State.AMBIGUOUS: OutcomeState.AMBIGUOUS,
    State.REFUSED: OutcomeState.REFUSED,
    State.PRESUMED_ABSENT: OutcomeState.PRESUMED_ABSENT,
    State.ACCEPTED: OutcomeState.ACCEPTED,
    State.ADOPTED: OutcomeState.ACCEPTED,
}


def outcome_of(
    ticket: Ticket,
    final: Callable[[str], Awaitable[OrderOutcome]] | None = None,
    *,
    waits_for: tuple[str, ...] = (),
) -> OrderOutcome:
    """The outcome of a ticket at this moment."""
    reason = ticket.reason
    if ticket.state is State.PREPARED:
        names = ", ".join(waits_for)
        reason = f"frozen, nothing was sent: waits for {names}" if names else "nothing was sent yet"
    elif ticket.state is State.SENT:
        reason = "sent, and no answer came yet"
    return OrderOutcome(
        ticket.intent.id,
        _STATES[ticket.state],
        ticket.order_id,
        How.NONE.value if ticket.state in (State.PREPARED, State.SENT) else ticket.how.value,
        reason,
        final,
    )
