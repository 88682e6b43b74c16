"""The way of one intent: into the journal, past those it waits for, out to the broker once, and what came back.

Invariants: the request leaves after its intent is on the disk as SENT, and never twice; only what proves that nothing
was changed is a refusal; whatever else ends the call leaves the outcome unknown.
"""

import asyncio
from datetime import datetime

from msgspec import structs

from keepline.brokers.base import Ack, OrderIntent
from keepline.brokers.orders.docket import Docket, Entry
from keepline.brokers.orders.records import Record, same_body
from keepline.brokers.orders.resolution import State, Ticket
from keepline.clock import within
from keepline.errors import APIError, ConfigError, CredentialError, PermanentError, Refused

__all__ = ["different_body", "run"]

_NOTHING_SENT = (Refused, CredentialError, ConfigError)


async def run(docket: Docket, entry: Entry) -> None:
    """Bring one intent to the end of its call.

    Raises:
        KeeplineError: it could not be written, or makes no sense; nothing was sent.
    """
    await _find_dependencies(docket, entry.body)
    docket.book.enter_lane(entry.ticket)
    released = _released(docket, entry)
    known = await docket.journal.begin(
        _as_sent(docket, entry) if released else docket.record(entry)
    )
    if known is not None and not same_body(known.intent, entry.body):
        raise different_body(entry.body.id)
    entry.written = True
    if known is not None and known.state is not State.PREPARED:
        docket.adopt(entry, known)
        docket.changed(entry)
    elif known is None and released:
        await _send(docket, entry)
    elif await _wait_for_release(docket, entry):
        await docket.journal.save(_as_sent(docket, entry))
        await _send(docket, entry)


def different_body(intent_id: str) -> ConfigError:
    """The error of an id that is used for two things."""
    return ConfigError(
        f"intent {intent_id!r} exists already and asks for something else; nothing was sent: a new wish needs a new id",
        key="id",
    )


async def _find_dependencies(docket: Docket, intent: OrderIntent) -> None:
    for name in intent.depends_on:
        if await docket.fetch(name) is None:
            raise ConfigError(
                f"intent {intent.id!r} depends on {name!r}, which nobody has placed; nothing was sent",
                key="depends_on",
            )


def _released(docket: Docket, entry: Entry) -> bool:
    """Whether it may be sent at once; its target is filled in on the way."""
    release = docket.book.release(entry.ticket.intent)
    if release.target:
        entry.ticket.aim(release.target)
        docket.book.enter_lane(entry.ticket)
        release = docket.book.release(entry.ticket.intent)
    return not release.waits_for and not release.refused


async def _wait_for_release(docket: Docket, entry: Entry) -> bool:
    """Wait for what it depends on; False when that means that it must not be sent."""
    docket.stir.set()  # a person may settle what it waits for
    while not _released(docket, entry):
        release = docket.book.release(entry.ticket.intent)
        if release.refused:
            entry.ticket.unsent(f"{release.refused}; nothing was sent")
            docket.changed(entry)
            await docket.save(entry)
            return False
        await _any_change(docket, (entry.body.id, *release.waits_for))
        if entry.ticket.state is not State.PREPARED:  # a person has withdrawn it
            return False
        await _find_dependencies(docket, entry.body)
    return True


async def _any_change(docket: Docket, names: tuple[str, ...]) -> None:
    waiting = [
        asyncio.ensure_future(entry.change())
        for name in names
        if (entry := docket.get(name)) is not None
    ]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _as_sent(docket: Docket, entry: Entry) -> Record:
    wall = docket.clock.wall()
    return structs.replace(docket.record(entry), state=State.SENT, sent_at=wall)


async def _send(docket: Docket, entry: Entry) -> None:
    ticket = entry.ticket
    if ticket.state is not State.PREPARED:  # a person has withdrawn it while it was written
        await docket.save(entry)
        return
    ticket.send(docket.clock.wall())
    docket.changed(entry)
    try:
        await _call(docket, ticket)
    finally:
        docket.changed(entry)
        await docket.save(entry)


async def _call(docket: Docket, ticket: Ticket) -> None:
    clock, broker = docket.clock, docket.broker
    try:
        call = getattr(broker, ticket.intent.kind.value)(ticket.intent)
        ack: Ack = await within(clock, broker.facts.longest_call_seconds, call)
        order_id = ack.order_id or None
    except asyncio.CancelledError:
        ticket.lost(
            "the gateway was stopped while it was under way", clock.boottime(), clock.wall()
        )
        raise
    except Exception as error:
        _end(ticket, error, clock.boottime(), clock.wall())
    else:
        ticket.answered(order_id, clock.boottime(), clock.wall())


def _end(ticket: Ticket, error: Exception, now: float, wall: datetime) -> None:
    words = str(error) or type(error).__name__
    if isinstance(error, _NOTHING_SENT) or (isinstance(error, APIError) and not error.sent):
        ticket.unsent(words)
    elif isinstance(error, PermanentError):
        ticket.refused(words, now, wall)
    else:
        ticket.lost(words, now, wall)
