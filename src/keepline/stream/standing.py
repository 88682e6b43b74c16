"""Words about subscriptions: how far one has come, what is asked of the venue, where things stand.

Invariant: values only; `subscriptions.Registry` decides.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TypeAlias

from keepline.stream.port import Topic

__all__ = ["Action", "Command", "Ident", "Phase", "Standing", "ident_of"]

Ident: TypeAlias = tuple[str, str]
"""What tells topics apart: channel and key."""


class Phase(StrEnum):
    """How far a topic has come on a connection."""

    UNKNOWN = "unknown"
    """nobody wants it"""
    WANTED = "wanted"
    """somebody wants it and the venue has not been asked on this connection"""
    PENDING = "pending"
    """the venue was asked and has not answered"""
    CONFIRMED = "confirmed"
    """the venue said yes; nothing has arrived yet"""
    FIRST_DATA = "first_data"
    """data has arrived on this connection"""


class Action(Enum):
    """What a command asks of the venue."""

    SUBSCRIBE = "subscribe"
    UNSUBSCRIBE = "unsubscribe"


@dataclass(frozen=True, slots=True)
class Command:
    """One request that has to be sent now.

    Attributes:
        epoch: the connection on which to send it.
        action: ask for the topic, or give it back.
        topic: which one.
        serial: tells this command from an earlier one of the same topic.
    """

    epoch: int
    action: Action
    topic: Topic
    serial: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a topic stands, for people and for metrics.

    Attributes:
        topic: which one.
        phase: how far it has come on the newest connection.
        holders: how many callbacks share it.
        failures: how often in a row the venue said no on this connection.
        reason: the last refusal in words, "" when there was none.
        retry_at: when it is asked for again (boottime seconds), None when no wait is on.
    """

    topic: Topic
    phase: Phase
    holders: int
    failures: int
    reason: str
    retry_at: float | None


def ident_of(topic: Topic) -> Ident:
    """What tells a topic from others: its channel and key."""
    return (topic.channel, topic.key)
