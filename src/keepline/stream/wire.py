"""One conversation with a hub in the caller's role, without a socket: bytes and time go in, events and bytes come out.

Invariants: what the server sends never raises; a call that the server waits for is answered once at most, and at
once when its values do not fit; pings go out on silence of ours, and silence of the server's ends the conversation;
with stateful reconnect a lost transport may be replaced once at a time, and no counted message is lost or delivered
twice. It raises only when it is misused: `Closed` outside of an open conversation, `ConfigError` for a value that
cannot be sent. Source: ASP.NET Core 9 hub protocol; first ping right after the handshake, because it arms the
server's own timeout.
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Final

from keepline import errors
from keepline.stream.binding import Types
from keepline.stream.codec import Codec
from keepline.stream.framing import LARGEST_MESSAGE
from keepline.stream.handshake import HandshakeReader, read_response, write_request
from keepline.stream.ledger import Ledger, Waiting
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
    StreamInvocation,
    StreamItem,
)
from keepline.stream.messages import Sequence as SequenceMessage
from keepline.stream.replay import COUNTED, MessageBuffer
from keepline.stream.wire_events import (
    Answered,
    Called,
    Cancelled,
    Closed,
    CloseReason,
    Ended,
    HandshakeDone,
    Item,
    Resumed,
    Stray,
    Unbound,
    WireEvent,
)

__all__ = [
    "Answered",
    "Called",
    "Cancelled",
    "CloseReason",
    "Closed",
    "Ended",
    "HandshakeDone",
    "HubWire",
    "Item",
    "Phase",
    "Resumed",
    "Stray",
    "Unbound",
    "WireEvent",
]


class Phase(Enum):
    """Where a conversation stands."""

    NEW = auto()
    """Nothing was said."""
    HANDSHAKE = auto()
    """The proposal is out."""
    OPEN = auto()
    """Messages go both ways."""
    LOST = auto()
    """The transport is gone, the conversation may go on over a new one."""
    CLOSED = auto()
    """It is over."""


_HOPELESS: Final = re.compile(r"^The protocol '.*' is not supported|does not support version")
_OPEN: Final = Phase.OPEN  # looked up for every frame


class HubWire:
    """One conversation; a new object for each negotiated connection.

    The face writes what `take` gives after every call of a method, and calls `expire` when `deadline` has come. The
    deadline moves earlier only by `open`, `receive` and `reattached`.

    Args:
        codec: the encoding.
        types: into what arguments, results and items are decoded.
        keep_alive: seconds of our own silence after which a ping goes out.
        server_timeout: seconds of the server's silence after which the conversation is over; at least twice the
            interval of the server's pings.
        handshake_timeout: seconds for the answer to the handshake.
        stateful: the server granted stateful reconnect.
        replay_bytes: unacknowledged bytes from which on `blocked` asks senders to wait.
        max_message_bytes: the largest message that may arrive.
        inherent_keep_alive: the transport itself proves life (long polling): no pings, no server timeout.

    Attributes:
        decoder: of what arrives.
        heard: when the newest bytes arrived.
        straight: whether a frame that is one plain call may go straight to its handlers instead of to `receive`, with
            no more to do here than to set `heard`: the conversation is open, nothing is counted and nothing is kept.
    """

    __slots__ = ("_buffer", "_codec", "_handshake_timeout", "_inherent", "_keep_alive", "_ledger", "_now", "_out",
                 "_phase", "_ping_at", "_reader", "_resuming", "_server_timeout", "_shake_by", "_types", "decoder",
                 "heard", "straight")  # fmt: skip

    def __init__(
        self,
        codec: Codec,
        *,
        types: Types | None = None,
        keep_alive: float = 15.0,
        server_timeout: float = 30.0,
        handshake_timeout: float = 15.0,
        stateful: bool = False,
        replay_bytes: int = 100_000,
        max_message_bytes: int = LARGEST_MESSAGE,
        inherent_keep_alive: bool = False,
    ) -> None:
        self._codec = codec
        self._types = types if types is not None else Types()
        self.decoder = codec.decoder(self._types, max_message_bytes=max_message_bytes)
        self._keep_alive = keep_alive
        self._server_timeout = server_timeout
        self._handshake_timeout = handshake_timeout
        self._buffer = MessageBuffer(replay_bytes) if stateful else None
        self._inherent = inherent_keep_alive
        self._phase = Phase.NEW
        self._reader = HandshakeReader()
        self._out: list[bytes] = []
        self._ledger = Ledger(self._types)
        self._resuming = False
        self.straight = False
        self._now = self.heard = self._ping_at = self._shake_by = 0.0

    @property
    def binary(self) -> bool:
        """Whether the encoding needs binary frames."""
        return self._codec.binary

    @property
    def phase(self) -> Phase:
        """Where the conversation stands."""
        return self._phase

    @property
    def blocked(self) -> bool:
        """Whether senders shall wait until the server has acknowledged more (stateful reconnect only)."""
        return self._buffer is not None and self._buffer.full

    @property
    def can_reattach(self) -> bool:
        """Whether a transport that is lost now, or was, may be replaced without a new negotiation."""
        eligible = self._phase is Phase.OPEN and self._buffer is not None and not self._resuming
        return eligible or self._phase is Phase.LOST

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do, None when nothing is timed."""
        if self._phase is Phase.HANDSHAKE:
            return self._shake_by
        if self._phase is not Phase.OPEN:
            return None
        due = [] if self._inherent else [self._ping_at, self.heard + self._server_timeout]
        if self._buffer is not None and self._buffer.deadline is not None:
            due.append(self._buffer.deadline)
        return min(due, default=None)

    def take(self) -> list[bytes]:
        """What is to be written now, in order; each part is a whole message and may be a frame of its own."""
        out, self._out = self._out, []
        return out

    # --- the transport ---

    def open(self, now: float) -> None:
        """The transport is there: propose the encoding and the version."""
        if self._phase is not Phase.NEW:
            raise errors.Closed("this conversation was opened before; make a new one")
        self._phase = Phase.HANDSHAKE
        self._now = now
        self._shake_by = now + self._handshake_timeout
        self._out.append(write_request(self._codec.name, 1 if self._buffer is None else 2))

    def receive(self, data: bytes | str, now: float) -> list[WireEvent]:
        """Bytes arrived; what they mean, in order."""
        if self._phase is _OPEN:
            self.heard = now
            messages = self._feed(data)
            if self._buffer is None:
                for message in messages:
                    if type(message) is not Invocation or message.id is not None:
                        break
                else:  # plain calls alone: they are the events
                    return messages  # type: ignore[return-value]
            return self._messages(messages, len(data), now)
        if self._phase is Phase.HANDSHAKE:
            self.heard = now
            return self._shake(data, now)
        return []

    def _feed(self, data: bytes | str) -> list[Decoded]:
        messages = self.decoder.feed(data)
        self.straight = self._buffer is None and self.decoder.idle
        return messages

    def expire(self, now: float) -> list[WireEvent]:
        """Time passed: pings and acknowledgements become due, patience ends."""
        self._now = now
        if self._phase is Phase.HANDSHAKE and now >= self._shake_by:
            words = f"the server did not answer the handshake within {self._handshake_timeout:g} s"
            return self._end(CloseReason.HANDSHAKE_TIMEOUT, words)
        if self._phase is not Phase.OPEN:
            return []
        if not self._inherent and now >= self.heard + self._server_timeout:
            words = f"nothing arrived from the server for {self._server_timeout:g} s"
            return self._end(CloseReason.SILENT, words)
        self._acknowledge(now)
        if not self._inherent and now >= self._ping_at:
            self._say(Ping())
        return []

    def lost(self, now: float, error: str = "", *, clean: bool = False) -> list[WireEvent]:
        """The transport is gone without a Close message.

        Without events the conversation goes on: connect once more with the same connection token, without negotiation
        and handshake, and call `reattached`; when that attempt fails, call `lost` again.

        Args:
            now: seconds on the clock of `deadline`.
            error: why, in words.
            clean: the server ended the transport itself, by a Close frame or 204; that cannot be reattached.
        """
        self._now = now
        if self._phase is Phase.CLOSED:
            return []
        if clean or self._phase is Phase.LOST or not self.can_reattach:
            return self._end(CloseReason.LOST, error)
        self._phase = Phase.LOST
        self._out.clear()  # what is counted is kept in the buffer, the rest belongs to the old transport
        self.decoder.reset()
        return []

    def reattached(self, now: float) -> None:
        """A new transport carries the conversation on: announce our number, repeat what is unacknowledged."""
        if self._phase is not Phase.LOST or self._buffer is None:
            raise errors.Closed("nothing is lost here that could be reattached")
        self._phase = Phase.OPEN
        self._resuming = True
        self._now = self.heard = now
        first, kept = self._buffer.begin()
        self._say(SequenceMessage(first))
        self._out += kept

    def close(self, error: str | None = None) -> list[WireEvent]:
        """End the conversation; a Close goes out when it was open."""
        if self._phase is Phase.CLOSED:
            return []
        if self._phase is Phase.OPEN:
            self._say(Close(error))
        self._phase = Phase.CLOSED
        self.straight = False
        return [Closed(CloseReason.OURS, False, error or "")]

    # --- what we say ---

    def send(
        self, target: str, arguments: Sequence[Any], *, stream_ids: Sequence[str] = ()
    ) -> None:
        """Call a method without waiting for an answer; there will be none, not even an error."""
        self._say(Invocation(target, arguments, None, stream_ids))

    def invoke(
        self,
        target: str,
        arguments: Sequence[Any],
        result_type: Any = Any,
        *,
        stream_ids: Sequence[str] = (),
    ) -> str:
        """Call a method; `Answered` will have this id."""
        call_id = self._ledger.new_id()
        call = Invocation(target, arguments, call_id, stream_ids)
        return self._await(call_id, call, Waiting.CALL, result_type)

    def open_stream(
        self,
        target: str,
        arguments: Sequence[Any],
        item_type: Any = Any,
        *,
        stream_ids: Sequence[str] = (),
    ) -> str:
        """Call a streaming method; `Item` and at last `Ended` will have this id."""
        call_id = self._ledger.new_id()
        call = StreamInvocation(target, arguments, call_id, stream_ids)
        return self._await(call_id, call, Waiting.STREAM, item_type)

    def cancel(self, call_id: str) -> None:
        """Want no more of a stream, or forget a call; no event with this id will come. Unknown ids are left alone."""
        waiting = self._ledger.cancel(call_id)
        if waiting is Waiting.STREAM and self._phase in (Phase.OPEN, Phase.LOST):
            self._say(CancelInvocation(call_id))  # a server of version 9 knows no cancelled calls

    def new_upload(self) -> str:
        """An id for a stream of ours: give it to a call in `stream_ids`, then `upload` and `finish_upload`."""
        return self._ledger.new_id()

    def upload(self, stream_id: str, item: Any) -> None:
        """One item of a stream of ours."""
        self._say(StreamItem(stream_id, item))

    def finish_upload(self, stream_id: str, error: str | None = None) -> None:
        """A stream of ours is over; an error reaches the method as an exception."""
        self._say(Completion(stream_id, error=error))

    def complete(self, call_id: str, result: Any = None, *, error: str | None = None) -> bool:
        """Answer a call of the server's; False when it is answered already or was never made."""
        if not self._ledger.owes(call_id) or self._phase not in (Phase.OPEN, Phase.LOST):
            return False
        self._say(
            Completion(call_id, error=error) if error is not None else Completion(call_id, result)
        )
        self._ledger.answered(call_id)
        return True

    def _await(self, call_id: str, call: Message, waiting: Waiting, kind: Any) -> str:
        self._ledger.wait(call_id, waiting, kind)
        try:
            self._say(call)
        except errors.KeeplineError:
            self._ledger.forget(call_id)
            raise
        return call_id

    def _say(self, message: Message) -> None:
        if self._phase not in (Phase.OPEN, Phase.LOST):
            raise errors.Closed("the connection is not open")
        framed = self._codec.encode(message)
        if self._buffer is not None and type(message) in COUNTED:
            self._buffer.sent(framed)
        if self._phase is Phase.OPEN:
            self._out.append(framed)
            self._ping_at = max(self._now, self.heard) + self._keep_alive

    # --- what we hear ---

    def _shake(self, data: bytes | str, now: float) -> list[WireEvent]:
        read = self._reader.feed(data)
        if read is None:
            return []
        answer = read if isinstance(read, Malformed) else read_response(read[0])
        if isinstance(read, Malformed) or isinstance(answer, Malformed):
            reason = answer.reason if isinstance(answer, Malformed) else ""
            return self._end(CloseReason.MALFORMED, reason)
        if answer.error is not None:
            hopeless = _HOPELESS.search(answer.error) is not None
            return self._end(CloseReason.REFUSED, answer.error, allow_reconnect=not hopeless)
        self._phase = Phase.OPEN
        if not self._inherent:
            self._say(Ping())
        rest = read[1]
        return [HandshakeDone(), *self._messages(self._feed(rest), len(rest), now)]

    def _messages(self, messages: list[Decoded], size: int, now: float) -> list[WireEvent]:
        events: list[WireEvent] = []
        buffer = self._buffer
        for message in messages:
            kind = type(message)
            if buffer is not None and kind in COUNTED:
                fresh = buffer.received(now, size // len(messages))
                if not fresh:
                    continue
            if kind is Invocation:
                if message.id is not None:  # type: ignore[union-attr]
                    self._ledger.owe(message.id)  # type: ignore[union-attr]
                events.append(message)  # type: ignore[arg-type]
                continue
            _HEAR[kind](self, message, events)
            if self._phase is not Phase.OPEN:
                return events
        self._acknowledge(now)
        return events

    def _acknowledge(self, now: float) -> None:
        ack = None if self._buffer is None else self._buffer.due(now)
        if ack is not None:
            self._say(ack)

    def _hear_item(self, message: StreamItem, events: list[WireEvent]) -> None:
        event = self._ledger.item(message)
        if event is not None:
            events.append(event)

    def _hear_completion(self, message: Completion, events: list[WireEvent]) -> None:
        event = self._ledger.completion(message)
        if event is not None:
            events.append(event)

    def _hear_unbound(self, failure: BindingFailure, events: list[WireEvent]) -> None:
        if failure.target:
            if failure.id is not None:
                self._say(Completion(failure.id, error=f"{failure.target}: {failure.reason}"))
            events.append(Unbound(failure))
            return
        call_id = failure.id or ""
        event = self._ledger.unfit(call_id, failure)
        if event is not None:
            events.append(event)
        if failure.stream:
            self.cancel(call_id)

    def _hear_stream_call(self, message: StreamInvocation, events: list[WireEvent]) -> None:
        reason = "a client offers no streams"
        self._hear_unbound(BindingFailure(message.target, message.id, reason, True), events)

    def _hear_cancel(self, message: CancelInvocation, events: list[WireEvent]) -> None:
        events.append(self._ledger.withdrawn(message.id))

    def _hear_ping(self, message: Ping, events: list[WireEvent]) -> None:
        pass  # that something arrived was all

    def _hear_close(self, message: Close, events: list[WireEvent]) -> None:
        words, welcome = message.error or "", message.allow_reconnect
        events += self._end(CloseReason.SAID, words, allow_reconnect=welcome)

    def _hear_ack(self, message: Ack, events: list[WireEvent]) -> None:
        if self._buffer is not None:
            self._buffer.acknowledged(message.sequence_id)

    def _hear_sequence(self, message: SequenceMessage, events: list[WireEvent]) -> None:
        if self._buffer is None:
            return
        reason = self._buffer.resume(message.sequence_id)
        if reason is not None:
            self._break_off(reason, events)
        elif self._resuming:
            self._resuming = False
            events.append(Resumed())

    def _hear_malformed(self, failure: Malformed, events: list[WireEvent]) -> None:
        self._break_off(failure.reason, events)

    def _break_off(self, reason: str, events: list[WireEvent]) -> None:
        self._say(Close(reason))
        events += self._end(CloseReason.MALFORMED, reason)

    def _end(
        self, reason: CloseReason, error: str, *, allow_reconnect: bool = True
    ) -> list[WireEvent]:
        self._phase = Phase.CLOSED
        self.straight = False
        return [Closed(reason, allow_reconnect, error)]


_HEAR: Final[dict[type, Callable[[HubWire, Any, list[WireEvent]], None]]] = {
    StreamInvocation: HubWire._hear_stream_call,
    StreamItem: HubWire._hear_item,
    Completion: HubWire._hear_completion,
    CancelInvocation: HubWire._hear_cancel,
    Ping: HubWire._hear_ping,
    Close: HubWire._hear_close,
    Ack: HubWire._hear_ack,
    SequenceMessage: HubWire._hear_sequence,
    BindingFailure: HubWire._hear_unbound,
    Malformed: HubWire._hear_malformed,
}
