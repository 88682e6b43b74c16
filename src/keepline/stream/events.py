"""What a stream tells its bot: the state of its connection and the events that change what may be believed.

Invariants: an event is a value; its reason is for people and never holds a secret.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from msgspec import Struct

__all__ = ["STATE_NUMBERS", "ConnectionState", "EventKind", "StreamEvent", "StreamMessage"]


class ConnectionState(StrEnum):
    """Whether there is a connection, which says nothing about the freshness of its data."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    FAILED = "failed"


STATE_NUMBERS = {state: number for number, state in enumerate(ConnectionState)}
"""The value of the metric `stream_state`: 0 disconnected, 1 connecting, 2 connected, 3 reconnecting, 4 failed."""


class EventKind(StrEnum):
    """What happened.

    CONNECTED: a connection is up, and nothing is known yet. FIRST_DATA: a topic brought data on this connection.
    RECONCILING: what was missed is being asked for. LIVE: what is shown is the present. STALE: a topic is older than
    it may be. LOST: the connection ended, or (state FAILED) will not come back. OVERFLOW: a callback was too slow for
    its mailbox, and messages were lost. ALARM: probe, resubscription and reconnection did not help; a person must look.
    """

    CONNECTED = "connected"
    FIRST_DATA = "first_data"
    RECONCILING = "reconciling"
    LIVE = "live"
    STALE = "stale"
    LOST = "lost"
    OVERFLOW = "overflow"
    ALARM = "alarm"


class StreamEvent(Struct, frozen=True):
    """One event of a stream.

    Attributes:
        kind: what happened.
        stream: the stream's name.
        at: when, aware, in UTC.
        channel: whom it is about, "" for the whole stream.
        key: the topic of the channel, "" for all of it.
        reason: in words why, "" when the kind says it all.
    """

    kind: EventKind
    stream: str
    at: datetime
    channel: str = ""
    key: str = ""
    reason: str = ""


class StreamMessage(Struct, frozen=True):
    """One message of a broker, as an event router gets it.

    Attributes:
        stream: the stream's name.
        channel: the name under which it arrived.
        arguments: what it carries.
        received_at: arrival, boottime seconds.
    """

    stream: str
    channel: str
    arguments: Sequence[Any]
    received_at: float
