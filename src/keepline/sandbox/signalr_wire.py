"""The server's side of one hub connection as a decider: handshake, keep-alive, limits, stateful reconnect.

Bytes and `now` go in; messages for the hub and bytes for the transport come out. Invariants: nothing is answered before
the handshake; what a client sends wrong ends its connection with a Close message that allows to reconnect, an unknown
type alone only makes us deaf; a counted message is kept until it is acknowledged, and at `REPLAY_BYTES` unacknowledged
nothing more is sent.

Source: measured at an ASP.NET Core 9.0 server with default options.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from keepline.sandbox.signalr_intake import Intake
from keepline.stream.codec import Codec, Decoder, codec
from keepline.stream.handshake import (
    CANCELED,
    FAILED,
    HandshakeReader,
    HandshakeRequest,
    judge_request,
    read_request,
    write_response,
)
from keepline.stream.messages import (
    Ack,
    BindingFailure,
    CancelInvocation,
    Close,
    Completion,
    Decoded,
    Invocation,
    Malformed,
    Message,
    Ping,
    Sequence,
    StreamInvocation,
    StreamItem,
)
from keepline.stream.replay import COUNTED, MessageBuffer

__all__ = ["REPLAY_BYTES", "Heard", "Limits", "Phase", "ServerWire"]

REPLAY_BYTES = 100_000
"""Unacknowledged bytes at which a stateful connection stops sending."""

_BROKEN = "Connection closed with an error."
_STATEFUL = 2  # the version of the handshake that stateful reconnect needs

Heard = Invocation | StreamInvocation | StreamItem | Completion | CancelInvocation
"""What a hub has to know of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times and sizes, ASP.NET Core's own unless told otherwise.

    Attributes:
        keep_alive: seconds without a message after which a ping is sent.
        client_timeout: seconds without a message after which a client that has pinged once is given up.
        handshake_timeout: seconds for the handshake.
        message_bytes: the largest message of a client.
    """

    keep_alive: float = 15.0
    client_timeout: float = 30.0
    handshake_timeout: float = 15.0
    message_bytes: int = 32_768


class Phase(Enum):
    """Where the conversation stands."""

    HANDSHAKE = "handshake"
    OPEN = "open"
    OVER = "over"


class ServerWire:
    """One conversation.

    Attributes:
        phase: where it stands.
        asked: the handshake as the client asked for it, None before it came.
        stateful: whether it may be carried on by another transport.
        withhold_acks: whether acknowledgements are kept back (a fault).
        refusal: with what the handshake is refused, None when it is judged (a fault).

    Args:
        now: seconds.
        stateful: stateful reconnect was negotiated; it comes true with a handshake of version 2.
        polling: over long polling no pings are sent.
        limits: times and sizes.
    """

    def __init__(
        self, *, now: float, stateful: bool = False, polling: bool = False, limits: Limits
    ) -> None:
        self.phase = Phase.HANDSHAKE
        self.asked: HandshakeRequest | None = None
        self.stateful = False
        self.withhold_acks = False
        self.refusal: str | None = None
        self._may_be_stateful, self._polling, self._limits = stateful, polling, limits
        self._codec: Codec = codec("json")
        self._head = HandshakeReader()
        self._decoder: Decoder = self._codec.decoder()
        self._buffer = MessageBuffer(REPLAY_BYTES)
        self._opened, self._heard, self._spoke = now, now, now
        self._intake = Intake(binary=False)
        self._pinged, self._attached = False, True
        self._out: list[bytes] = []
        self._waiting: deque[Message] = deque()

    @property
    def binary(self) -> bool:
        """Whether its frames are binary."""
        return self._codec.binary

    @property
    def can_reattach(self) -> bool:
        """Whether another transport may carry on."""
        return self.stateful and self.phase is Phase.OPEN

    @property
    def waiting(self) -> int:
        """Messages that wait for an acknowledgement of earlier ones."""
        return len(self._waiting)

    @property
    def unsent(self) -> int:
        """Messages that the transport has not taken yet."""
        return len(self._out)

    def receive(self, data: bytes | str, *, now: float) -> list[Heard]:
        """What arrived, as far as the hub has to know; everything else is dealt with."""
        if self.phase is Phase.OVER:
            return []
        self._heard = now
        if self.phase is Phase.HANDSHAKE:
            data = self._shake(data, now)
        if self.phase is not Phase.OPEN or not data:
            return []
        ready = self._intake.feed(data)
        heard = [self._take_in(message, now) for message in self._decoder.feed(ready)]
        if self._intake.is_full:
            self.close(_BROKEN, allow_reconnect=True, now=now)
        return [message for message in heard if message is not None]

    def send(self, message: Message, *, now: float) -> None:
        """Have a message sent, now or when an acknowledgement makes room."""
        if self.phase is not Phase.OPEN:
            return
        if type(message) in COUNTED and (self._waiting or (self.stateful and self._buffer.full)):
            self._waiting.append(message)
        else:
            self._put(message, now)

    def close(self, error: str | None = None, *, allow_reconnect: bool = False, now: float) -> None:
        """End the conversation with a Close message."""
        if self.phase is Phase.OPEN:
            self._put(Close(error, allow_reconnect), now)
        self.phase = Phase.OVER

    def end(self) -> None:
        """End the conversation without a word."""
        self.phase = Phase.OVER

    def garble(self, data: bytes) -> None:
        """Send bytes as they are, which nothing counts."""
        self._out.append(data)

    def take(self) -> list[bytes]:
        """What has to be written now, one message each."""
        out, self._out = self._out, []
        return out

    def tick(self, *, now: float) -> None:
        """Look at the time; once a second, as the real server does."""
        limits = self._limits
        if self.phase is Phase.HANDSHAKE:
            if now - self._opened >= limits.handshake_timeout:
                self._refuse(CANCELED)
        elif self.phase is Phase.OPEN and self._attached:
            if self._pinged and now - self._heard >= limits.client_timeout:
                self.close(_BROKEN, allow_reconnect=True, now=now)
            elif self.stateful and not self.withhold_acks and (ack := self._buffer.due(now)):
                self._put(ack, now)
            elif not self._polling and now - self._spoke >= limits.keep_alive:
                self._put(Ping(), now)

    def lost(self) -> None:
        """The transport is gone; what is counted is kept for the next one."""
        self._attached = False
        self._out.clear()

    def reattached(self, *, now: float) -> None:
        """Another transport carries on: it is told where we are, then everything that may have been lost."""
        self._attached, self._heard, self._spoke = True, now, now
        first, again = self._buffer.begin()
        self._out = [self._codec.encode(Sequence(first)), *again]
        self._intake.clear()
        self._decoder.reset()

    def _shake(self, data: bytes | str, now: float) -> bytes:
        """Read the handshake; the bytes after it."""
        found = self._head.feed(data)
        if found is None:
            return b""
        record, rest = (b"", b"") if isinstance(found, Malformed) else found
        request = read_request(record)
        words = judge_request(request) if self.refusal is None else self.refusal
        if words is not None or isinstance(request, Malformed):
            self._refuse(words or FAILED)
            return b""
        self.asked, self.phase, self._spoke = request, Phase.OPEN, now
        self._codec = codec(request.protocol)
        self._intake = Intake(binary=self._codec.binary)
        self._decoder = self._codec.decoder(max_message_bytes=self._limits.message_bytes)
        self.stateful = self._may_be_stateful and request.version == _STATEFUL
        self._out.append(write_response())
        return rest

    def _refuse(self, words: str) -> None:
        self._out.append(write_response(words))
        self.phase = Phase.OVER

    def _take_in(self, message: Decoded, now: float) -> Heard | None:
        """A message for the hub, or None when it was for us."""
        if self.phase is Phase.OVER:
            return None
        match message:
            case BindingFailure() | Malformed():
                self.close(_BROKEN, allow_reconnect=True, now=now)
            case Ping():
                self._pinged = True
            case Close():
                self.end()
            case Ack():
                self._acknowledged(message.sequence_id, now)
            case Sequence():
                if self.stateful and self._buffer.resume(message.sequence_id) is not None:
                    self.close(_BROKEN, allow_reconnect=True, now=now)
            case _ if not self.stateful or self._buffer.received(now):
                return message
        return None

    def _acknowledged(self, number: int, now: float) -> None:
        self._buffer.acknowledged(number)
        while self._waiting and not self._buffer.full:
            self._put(self._waiting.popleft(), now)

    def _put(self, message: Message, now: float) -> None:
        data = self._codec.encode(message)
        if self.stateful and type(message) in COUNTED:
            self._buffer.sent(data)
        if self._attached:
            self._out.append(data)
            self._spoke = now
