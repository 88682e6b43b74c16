"""What the manager of a stream needs from any broker: a link, and for a plain WebSocket only its wire.

A `Link` is one connection without any policy; the manager makes a new one for each attempt. A `StreamWire` is the
protocol of a broker's WebSocket as a decider: bytes, facts and `now` in, events and bytes out. Invariants: a topic is a
value, the same topic on a new connection asks for the same thing; a wire never raises for what the peer did, it answers
`Ended`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from msgspec import Struct

from keepline.errors import APIError

if TYPE_CHECKING:
    from keepline.stream.calendar import SessionCalendar

__all__ = [
    "Delivered",
    "Ended",
    "KeyOf",
    "Link",
    "Lost",
    "Opened",
    "Policy",
    "Reconciling",
    "Settled",
    "Sink",
    "StreamWire",
    "Topic",
    "WireEvent",
    "key_of_first_text",
]

Policy: TypeAlias = Literal["never", "conflate"]
"""What a full mailbox may do: `never` loses nothing in silence (orders, fills), `conflate` keeps the newest."""

Sink: TypeAlias = Callable[[str, Sequence[Any], float], None]
"""Where a link puts what arrived: channel, arguments, arrival (boottime seconds). Synchronous, cheap, never raises."""

KeyOf: TypeAlias = Callable[[str, Sequence[Any]], str]
"""Channel and arguments of a message to the key of the topic that it belongs to; "" when to the whole channel."""


class Topic(Struct, frozen=True):
    """One thing that is wanted from a stream.

    Attributes:
        channel: the name under which its messages arrive (SignalR: the server's target name).
        subscribe: method and arguments that ask for it; empty when messages come without asking.
        unsubscribe: method and arguments that end it; None when the broker has no such call.
        key: tells topics of one channel apart (a contract, an account), as the messages' key does; "" takes them all.
        policy: what a full mailbox may do with its messages.
        cadence: seconds within which data is expected while the session is open; None when it may be silent for long.
        session: when data is expected at all; None means always.
    """

    channel: str
    subscribe: tuple[Any, ...] = ()
    unsubscribe: tuple[Any, ...] | None = None
    key: str = ""
    policy: Policy = "never"
    cadence: float | None = None
    session: "SessionCalendar | None" = None

    @property
    def name(self) -> str:
        """Channel and key, as people read it: `GatewayQuote CON.F.US.MNQ.Z26`."""
        return f"{self.channel} {self.key}" if self.key else self.channel


class Lost(Struct, frozen=True):
    """How a connection ended.

    Attributes:
        reason: one word for metrics and tables: `close`, `cut`, `timeout`, `protocol`, `kicked`, `stopped`, ….
        error: what a person reads, never a secret; None when nothing was said.
        allow_reconnect: False when the server asked us not to come back.
    """

    reason: str
    error: str | None = None
    allow_reconnect: bool = True


class Link(Protocol):
    """One connection of some broker's stream, without policy; a new object for each connect."""

    async def open(self, sink: Sink) -> None:
        """Ask for a token, connect, log in; messages go to `sink` from then on.

        Raises:
            TransientError: it may work in a moment; `status` and `retry_after` as the server said.
            PermanentError: this will not work again unchanged; `status` says why.
        """
        ...

    async def subscribe(self, topic: Topic) -> None:
        """Ask for a topic; returns once the broker confirmed it.

        Raises:
            APIError: it was refused (`PermanentError`), or no answer can be trusted.
        """
        ...

    async def unsubscribe(self, topic: Topic) -> None:
        """End a topic; a no-op where the broker has no such call."""
        ...

    async def probe(self) -> bool | None:
        """Ask something that the broker must answer, be it with an error; False where there is nothing to ask."""
        ...

    async def close(self) -> None:
        """Say goodbye and let go of everything; may be called twice and at any time."""
        ...

    async def closed(self) -> Lost:
        """Return once the connection has ended, whoever ended it."""
        ...


class Reconciling(Protocol):
    """What makes the known right again after an interruption; it keeps the events that come meanwhile by itself."""

    def begin(self) -> None:
        """A connection is up, or something may have been missed on it: what arrives from now on is to be kept."""
        ...

    async def reconcile(self) -> None:
        """Ask for what was missed, apply it, then what was kept.

        Raises:
            Exception: a query failed: it is called again, and until it returns the stream is not live.
        """
        ...

    def lost(self) -> None:
        """The connection is gone: what is known is the past."""
        ...


class Opened(Struct, frozen=True):
    """The login is done: subscriptions may be sent."""


class Delivered(Struct, frozen=True):
    """A message for the sink: its channel and its arguments."""

    channel: str
    arguments: Sequence[Any]


class Settled(Struct, frozen=True):
    """A request (`subscribe`, `unsubscribe`, `probe`) has its answer; `error` is None when the broker said yes."""

    ref: str
    error: APIError | None = None


class Ended(Struct, frozen=True):
    """The connection must end, or has ended; `error` is set when `open` failed and says how to go on."""

    lost: Lost
    error: APIError | None = None


WireEvent: TypeAlias = Opened | Delivered | Settled | Ended


class StreamWire(Protocol):
    """The protocol of a broker's WebSocket, sans I/O: one object for one connection; `now` is boottime seconds."""

    @property
    def deadline(self) -> float | None:
        """When `expire` wants to be called, None when there is nothing to wait for."""
        ...

    def open(self, token: str, now: float) -> None:
        """The socket is open: prepare the login (the token is used here and kept nowhere else)."""
        ...

    def receive(self, data: bytes | str, now: float) -> Sequence[WireEvent]:
        """What one frame means: text frames as `str`, binary ones as `bytes`; never raises for what the peer sent."""
        ...

    def take(self) -> list[bytes | str]:
        """The frames that must be written now, in order; each is handed out once."""
        ...

    def subscribe(self, topic: Topic, now: float) -> str:
        """Ask for a topic; the answer comes as `Settled` with the reference that is returned here."""
        ...

    def unsubscribe(self, topic: Topic, now: float) -> str | None:
        """End a topic; None when the broker has no such request."""
        ...

    def probe(self, now: float) -> str | None:
        """Ask something that the broker must answer; None where there is nothing to ask."""
        ...

    def expire(self, now: float) -> Sequence[WireEvent]:
        """The deadline has come: what that means."""
        ...

    def close(self, now: float) -> None:
        """Prepare the goodbye, if the protocol has one."""
        ...


def key_of_first_text(channel: str, arguments: Sequence[Any]) -> str:
    """The key of most brokers: the first of several arguments when it is text (`(contract, data)`), else ""."""
    if len(arguments) > 1:
        first = arguments[0]
        if isinstance(first, str):
            return first
    return ""
