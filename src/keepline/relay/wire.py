"""The two ends of a push, without a socket: bytes and time go in, answers and tokens come out.

Invariants: what the peer sends never raises; every message gets exactly one answer, in order, with a newline exactly
when the message had one; after a message that is not of version 1, and after every one that cannot be read, the
receiving end closes; a shared secret is proven, never sent.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import msgspec

from keepline.credentials.token import Token
from keepline.relay.framing import QUIET_SECONDS, Cut, Frame, Framer
from keepline.relay.message import (
    LARGEST_MESSAGE,
    Code,
    Ledger,
    Rejected,
    parse_push,
    read_envelope,
    seal,
)

__all__ = ["Answer", "Arrival", "ReceiverWire", "SenderWire", "WireRules"]

_LONGEST_ANSWER: Final = 1024


@dataclass(frozen=True, slots=True)
class WireRules:
    """What one receiver asks of its senders.

    Attributes:
        max_token_size: bytes of the largest message.
        receive_timeout: seconds from a message's first byte to its last, and from the connection to its first message.
        shared_secret: what senders must prove to know; b"" asks for no proof.
    """

    max_token_size: int = LARGEST_MESSAGE
    receive_timeout: float = 5.0
    shared_secret: bytes = b""


class Arrival(msgspec.Struct, frozen=True):
    """What became of one message.

    Attributes:
        outcome: `accepted`, `duplicate`, or the code of the refusal.
        token: the token when it is news, else None.
        credential: whose it is, "" when the message did not say.
        reason: the refusal in words.
    """

    outcome: str
    token: Token | None = None
    credential: str = ""
    reason: str = ""


class ReceiverWire:
    """One connection seen from the receiving end.

    Args:
        rules: what is asked of senders.
        ledger: what this receiver has accepted so far, on all its connections.
        now: seconds on the clock that `deadline` is told in.
        nonce: hex digits that no connection had before; used when the rules hold a secret.
    """

    __slots__ = ("_began", "_framer", "_heard", "_ledger", "_nonce", "_out", "_rules", "_sequence", "_versioned",
                 "is_closing")  # fmt: skip

    def __init__(self, rules: WireRules, ledger: Ledger, *, now: float, nonce: str = "") -> None:
        self._rules = rules
        self._ledger = ledger
        self._framer = Framer(rules.max_token_size)
        self._nonce = nonce
        self._sequence = 0
        self._began = self._heard = now
        self._versioned = False  # the last message was of version 1: silence is no fault
        self._out: list[bytes] = (
            [b'{"nonce":"%s"}\n' % nonce.encode()] if rules.shared_secret else []
        )
        self.is_closing = False

    def receive(self, data: bytes, now: float, wall: float) -> list[Arrival]:
        """The messages that these bytes complete.

        Args:
            data: what was read.
            now: seconds on the clock of `deadline`.
            wall: epoch seconds.
        """
        if self.is_closing:
            return []
        was_in_message = self._framer.is_in_message
        self._heard = now
        frames = self._framer.feed(data)
        if self._framer.is_in_message and not was_in_message:
            self._began = now  # blanks before it bought no time
        arrivals = []
        for frame in frames:
            arrivals.append(self._serve(frame, wall))
            if self.is_closing:
                return arrivals
        if frames:
            self._began = now
            # what has begun behind the last message (`{…}{…` in one read) is still waited for
            self.is_closing = not self._versioned and not self._framer.is_in_message
        return arrivals

    def receive_eof(self, wall: float) -> list[Arrival]:
        """The input ended; the peer may still read our answer."""
        if self.is_closing:
            return []
        frame = self._framer.finish()
        self.is_closing = True
        if frame is None:
            return []
        arrival = self._serve(frame, wall)
        # a connection without a message only asked whether we are there; it is answered and not counted
        return [] if frame.cut is Cut.EMPTY else [arrival]

    @property
    def deadline(self) -> float | None:
        """When `wake` is due; None while nothing is waited for."""
        if self.is_closing or (self._versioned and not self._framer.is_in_message):
            return None
        patience = self._began + self._rules.receive_timeout
        return min(patience, self._heard + QUIET_SECONDS) if self._framer.is_in_text else patience

    def wake(self, now: float, wall: float) -> list[Arrival]:
        """Time passed: bare text may be complete, or a message is late."""
        deadline = self.deadline
        if deadline is None or now < deadline:
            return []
        # the same sum as in `deadline`: the difference of two times may round to less than they are apart
        if self._framer.is_in_text and now >= self._heard + QUIET_SECONDS:
            return self._quiet(wall)
        self.is_closing = True
        if self._framer.is_in_message:
            return [self._refuse(Code.INCOMPLETE, "the message did not end in time", newline=False)]
        return [self._refuse(Code.EMPTY, "nothing came in time", newline=False)]

    def refuse(self, code: Code, reason: str) -> Arrival:
        """Turn the peer away before it said anything."""
        self.is_closing = True
        self._out.clear()
        return self._refuse(code, reason, newline=True)

    def take(self) -> bytes:
        """What to write now."""
        if not self._out:
            return b""
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return out

    def _serve(self, frame: Frame, wall: float) -> Arrival:
        try:
            _check_cut(frame.cut, self._rules)
            arrival = self._accept(frame, wall)
        except Rejected as rejected:
            if rejected.code not in (Code.STALE, Code.EXPIRED) or not self._versioned:
                self.is_closing = True
            return self._refuse(rejected.code, rejected.reason, newline=frame.newline)
        self._out.append(b"OK\n" if frame.newline else b"OK")
        return arrival

    def _accept(self, frame: Frame, wall: float) -> Arrival:
        data, is_json = frame.data, frame.is_json
        self._versioned = False
        if self._rules.shared_secret:
            data = read_envelope(data, self._rules.shared_secret, self._nonce, self._sequence)
            self._sequence += 1
            is_json = data.startswith(b"{")
        push = parse_push(data, is_json=is_json, wall=wall)
        self._versioned = push.keeps_open
        is_news = self._ledger.admit(push, wall)
        return Arrival(
            "accepted" if is_news else "duplicate", push.token if is_news else None, push.credential
        )

    def _quiet(self, wall: float) -> list[Arrival]:
        frame = self._framer.quiet()
        assert frame is not None  # the framer was in text
        arrival = self._serve(frame, wall)
        self.is_closing = True  # bare text is of no version
        return [arrival]

    def _refuse(self, code: Code, reason: str, *, newline: bool) -> Arrival:
        self._out.append(f"ERR {code} {reason}{chr(10) if newline else ''}".encode())
        return Arrival(str(code), reason=reason)

    def __repr__(self) -> str:
        state = "closing" if self.is_closing else "open"
        return f"<ReceiverWire {state}, {self._framer!r}>"


def _check_cut(cut: Cut, rules: WireRules) -> None:
    match cut:
        case Cut.TOO_LARGE:
            raise Rejected(Code.TOO_LARGE, f"a message has at most {rules.max_token_size} bytes")
        case Cut.INCOMPLETE:
            raise Rejected(Code.INCOMPLETE, "the input ended inside a JSON object")
        case Cut.BROKEN:
            raise Rejected(
                Code.BAD_JSON, "a control character in a JSON string, or text glued to an object"
            )
        case Cut.EMPTY:
            raise Rejected(Code.EMPTY, "the message is empty")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiving end said to one message.

    Attributes:
        ok: it took the token.
        code: the code of a refusal; `silent` when it closed without a word, `unclear` for words that we do not know.
        reason: the refusal in words; what the other end wrote may hold anything, so redact it before showing it.
    """

    ok: bool
    code: str = ""
    reason: str = ""


class _Stage(Enum):
    GREETING = auto()  # a nonce is awaited
    READY = auto()
    WAITING = auto()  # for the answer to what was sent
    OVER = auto()


class SenderWire:
    """One connection seen from the sending end; one message at a time.

    Args:
        shared_secret: what the receiver wants proven; b"" for a receiver that asks for nothing.
    """

    __slots__ = ("_buffer", "_deadline", "_nonce", "_secret", "_sequence", "_stage")

    def __init__(self, *, shared_secret: bytes = b"") -> None:
        self._secret = shared_secret
        self._stage = _Stage.GREETING if shared_secret else _Stage.READY
        self._buffer = bytearray()
        self._nonce = ""
        self._sequence = 0
        self._deadline: float | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a message may be sent now."""
        return self._stage is _Stage.READY

    @property
    def is_over(self) -> bool:
        """Whether nothing can be sent on this connection any more."""
        return self._stage is _Stage.OVER

    @property
    def deadline(self) -> float | None:
        """When `wake` is due; None while nothing is waited for."""
        return self._deadline

    def send(self, body: bytes) -> bytes:
        """What to write, in one piece, for this message: with its proof and newline.

        Call `receive` with b"" afterwards: the receiver may have said something already.

        Raises:
            RuntimeError: not ready; that is a mistake of the caller.
        """
        if self._stage is not _Stage.READY:
            raise RuntimeError(f"cannot send while {self._stage.name}")
        self._stage = _Stage.WAITING
        if self._secret:
            body = seal(self._secret, self._nonce, self._sequence, body)
            self._sequence += 1
        return body + b"\n"

    def receive(self, data: bytes, now: float) -> Answer | None:
        """The answer, once it is complete."""
        if self._stage is _Stage.OVER:
            return None
        self._buffer += data
        self._deadline = None
        if self._stage is _Stage.READY:
            return self._over("unclear", "the other end floods us") if self._is_flooded else None
        del self._buffer[: len(self._buffer) - len(self._buffer.lstrip())]
        end = self._buffer.find(b"\n")
        if end >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            return self._greeted(line) if self._stage is _Stage.GREETING else self._answered(line)
        if self._is_flooded:
            return self._over("unclear", f"more than {_LONGEST_ANSWER} bytes without a newline")
        if self._buffer and self._stage is _Stage.WAITING:
            self._deadline = now + QUIET_SECONDS
        return None

    def receive_eof(self) -> Answer | None:
        """The receiver closed; what it wrote before is its answer."""
        stage, line = self._stage, bytes(self._buffer).strip()
        self._deadline = None
        answer = None
        if stage is _Stage.WAITING and line:
            answer = self._answered(line)
        elif stage in (_Stage.WAITING, _Stage.GREETING):
            answer = Answer(False, "silent", "it closed the connection without an answer")
        self._stage = _Stage.OVER
        return answer

    def wake(self, now: float) -> Answer | None:
        """Time passed: an answer without a newline is complete after `QUIET_SECONDS`."""
        if self._deadline is None or now < self._deadline:
            return None
        self._deadline = None
        line = bytes(self._buffer)
        self._buffer.clear()
        return self._answered(line)

    @property
    def _is_flooded(self) -> bool:
        return len(self._buffer) > _LONGEST_ANSWER

    def _greeted(self, line: bytes) -> Answer | None:
        try:
            nonce = _decode_greeting(line).nonce
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            nonce = ""
        if not (8 <= len(nonce) <= 128 and nonce.isalnum() and nonce.isascii()):
            if line.startswith(b"ERR "):
                return self._answered(line)
            return self._over(
                "no_greeting", "it does not ask for a proof: has it the shared secret?"
            )
        self._nonce, self._stage = nonce, _Stage.READY
        return None

    def _answered(self, line: bytes) -> Answer:
        words = line.decode(errors="replace").strip().split(maxsplit=2)
        if words[:1] == ["OK"]:
            self._stage = _Stage.READY
            return Answer(True)
        if words[:1] == ["ERR"]:
            self._stage = _Stage.READY
            code, reason = [*words[1:], "", ""][:2]
            return Answer(False, _printable(code), _printable(reason))
        if line.startswith(b'{"nonce"'):
            return self._over(
                "needs_secret", "it asks for a proof: give this target its shared secret"
            )
        return self._over("unclear", "it answered neither OK nor ERR")

    def _over(self, code: str, reason: str) -> Answer:
        self._stage, self._deadline = _Stage.OVER, None
        self._buffer.clear()
        return Answer(False, code, reason)

    def __repr__(self) -> str:
        return f"<SenderWire {self._stage.name}, {self._sequence} proven>"


def _printable(text: str) -> str:
    return "".join(c for c in text[:200] if c.isprintable())


class _Greeting(msgspec.Struct):
    nonce: str


_decode_greeting = msgspec.json.Decoder(_Greeting).decode
