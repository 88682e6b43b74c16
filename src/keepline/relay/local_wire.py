"""The daemon's local interface as bytes: newline JSON, versioned, multiplexed by id, events by subscription.

Invariants: nothing here waits or touches a socket; what a peer sends never raises, it becomes an answer with a code or
an error value; a line has at most 64 KiB; a refresh token never crosses; of several unsent events of one credential
only the newest is kept, so a slow reader costs a bounded amount of memory.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from keepline.credentials.token import Token
from keepline.errors import KeeplineError, ProtocolError
from keepline.relay.local_objects import (
    error_from_wire,
    error_to_wire,
    token_from_object,
    token_object,
)

__all__ = [
    "MAX_LINE",
    "MAX_OPEN_REQUESTS",
    "OPERATIONS",
    "PROTOCOL",
    "LocalAnswer",
    "LocalClientSession",
    "LocalEvent",
    "LocalRequest",
    "LocalServerSession",
]

PROTOCOL = 1
"""The version that `hello` reports and every line carries as `v`."""

MAX_LINE = 64 * 1024
"""Bytes of one line, its newline included."""

MAX_OPEN_REQUESTS = 64
"""Requests of one connection that may wait for their answer at the same time."""

OPERATIONS = frozenset({"hello", "ping", "status", "token.get", "token.subscribe", "token.refresh"})


class LocalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked; fields that an operation does not know are ignored.

    Attributes:
        id: the client's number for the answer.
        op: one of `OPERATIONS`.
        credential: the credential's name; never empty for `token.*`.
        newer_than: `token.get` wants a token of a later generation than this.
        than: `token.refresh` wants no new request when the generation is already later than this.
        client: who says `hello`, for the log.
    """

    id: int
    op: str
    credential: str = ""
    newer_than: int | None = None
    than: int | None = None
    client: str = ""


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """The answer to one request: either `result` or `error`.

    Attributes:
        id: the request's number; None when the server could not read it.
    """

    id: int | None
    result: Mapping[str, Any] | None = None
    error: KeeplineError | None = None


@dataclass(frozen=True, slots=True)
class LocalEvent:
    """A renewed token of a subscribed credential."""

    credential: str
    token: Token


class LocalServerSession:
    """One client's connection, seen from the daemon.

    The face feeds what it read to `receive`, serves the requests that come back, answers each with `reply` or `fail`,
    and writes what `take` returns whenever the socket can be written; it closes once `is_closing` and all is taken.
    """

    def __init__(self) -> None:
        self._lines = _Lines()
        self._open: set[int] = set()
        self._out: list[bytes] = []
        self._events: dict[str, Token] = {}

    @property
    def is_closing(self) -> bool:
        """Whether the peer broke the framing: nothing more is read, the last answer says why."""
        return self._lines.overflown

    def receive(self, data: bytes) -> list[LocalRequest]:
        """The valid requests in these bytes; all others are answered here."""
        requests = []
        for line in self._lines.feed(data):
            try:
                requests.append(self._admit(_read_request(line)))
            except _BadRequest as bad:
                self._refuse(bad)
        if self._lines.overflown and not self._lines.reported:
            self._lines.reported = True
            self._refuse(_BadRequest(None, "bad_request", f"a line has at most {MAX_LINE} bytes"))
        return requests

    def reply(self, request: LocalRequest, result: Mapping[str, Any]) -> None:
        """Answer a request; a second answer to the same one is ignored."""
        if request.id in self._open:
            self._open.discard(request.id)
            self._put({"v": PROTOCOL, "id": request.id, "ok": True, "result": result})

    def fail(self, request: LocalRequest, error: BaseException) -> None:
        """Answer a request with an error; one that is not ours becomes `internal` without its text."""
        if request.id in self._open:
            self._open.discard(request.id)
            body = error_to_wire(error)
            self._put({"v": PROTOCOL, "id": request.id, "ok": False, "error": body})

    def event(self, credential: str, token: Token) -> None:
        """Tell the client of a renewed token; replaces an older one that was not taken yet."""
        self._events.pop(credential, None)
        self._events[credential] = token

    def take(self) -> bytes:
        """What to write now, b"" for nothing: answers first, then the newest event of each credential."""
        for credential, token in self._events.items():
            data = token_object(token)
            self._put({"v": PROTOCOL, "event": "token", "credential": credential, "data": data})
        self._events.clear()
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _admit(self, request: LocalRequest) -> LocalRequest:
        if request.id in self._open:
            raise _BadRequest(None, "bad_request", f"id {request.id} still waits for its answer")
        if len(self._open) >= MAX_OPEN_REQUESTS:
            raise _BadRequest(
                request.id, "queue_full", f"{MAX_OPEN_REQUESTS} requests wait on this connection"
            )
        self._open.add(request.id)
        return request

    def _refuse(self, bad: "_BadRequest") -> None:
        error = {"code": bad.code, "message": bad.message}
        self._put({"v": PROTOCOL, "id": bad.id, "ok": False, "error": error})

    def _put(self, message: Mapping[str, Any]) -> None:
        self._out.append(msgspec.json.encode(message) + b"\n")

    def __repr__(self) -> str:
        return f"<LocalServerSession {len(self._open)} open, {len(self._events)} events unsent>"


class LocalClientSession:
    """A connection to the daemon, seen from the client: numbers requests, sorts answers and events."""

    def __init__(self) -> None:
        self._lines = _Lines()
        self._next = 0

    def request(self, op: str, **arguments: object) -> tuple[int, bytes]:
        """A request's number and the line to write; arguments that are None are left out."""
        self._next += 1
        given = {name: value for name, value in arguments.items() if value is not None}
        message = {**given, "v": PROTOCOL, "id": self._next, "op": op}
        return self._next, msgspec.json.encode(message) + b"\n"

    def receive(self, data: bytes) -> list[LocalAnswer | LocalEvent | ProtocolError]:
        """Answers and events in these bytes; after a `ProtocolError` the connection is of no more use."""
        found = [self._read(line) for line in self._lines.feed(data)]
        if self._lines.overflown and not self._lines.reported:
            self._lines.reported = True
            found.append(ProtocolError(f"the daemon sent a line of more than {MAX_LINE} bytes"))
        return [item for item in found if item is not None]

    def _read(self, line: bytes) -> LocalAnswer | LocalEvent | ProtocolError | None:
        try:
            message = _decode_message(line.decode())
            if message.event:
                return self._event(message)
            if message.ok:
                return LocalAnswer(message.id, message.result or {})
            return LocalAnswer(message.id, error=error_from_wire(message.error or {}))
        except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
            return ProtocolError(f"the daemon sent a line that is not of its protocol: {error}")
        except ProtocolError as error:
            return error

    def _event(self, message: "_Message") -> LocalEvent | None:
        if message.event != "token":
            return None  # a newer daemon may tell of more than we know
        return LocalEvent(message.credential, token_from_object(message.data))


class _BadRequest(Exception):
    def __init__(self, number: int | None, code: str, message: str) -> None:
        super().__init__(message)
        self.id, self.code, self.message = number, code, message


def _read_request(line: bytes) -> LocalRequest:
    number = None
    try:
        text = line.decode()
        envelope = _decode_envelope(text)
        number = envelope.id
        if envelope.v != PROTOCOL:
            what = f"protocol {envelope.v} is not spoken here, {PROTOCOL} is"
            raise _BadRequest(number, "bad_request", what)
        if envelope.op not in OPERATIONS:
            known = ", ".join(sorted(OPERATIONS))
            raise _BadRequest(number, "unknown_op", f"unknown operation; known are: {known}")
        request = _decode_request(text)
    except UnicodeDecodeError:
        raise _BadRequest(number, "bad_request", "a line is UTF-8") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _BadRequest(number, "bad_request", f"not a request: {error}") from None
    if request.op.startswith("token.") and not request.credential:
        raise _BadRequest(number, "bad_request", f"{request.op} needs a `credential`")
    return request


class _Lines:
    """Cuts bytes at newlines, looking at each byte once; an endless line is dropped and remembered."""

    __slots__ = ("_buffer", "overflown", "reported")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.overflown = False
        self.reported = False

    def feed(self, data: bytes) -> list[bytes]:
        if self.overflown:
            return []
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(self._buffer) + lines[0]
            self._buffer.clear()
        self._buffer += rest
        whole = list(itertools.takewhile(lambda line: len(line) < MAX_LINE, lines))
        if len(whole) < len(lines) or len(self._buffer) >= MAX_LINE:
            self.overflown = True
            self._buffer.clear()
        return [line for line in whole if line.strip()]


class _Envelope(msgspec.Struct):
    id: int
    op: str
    v: int = PROTOCOL


class _Message(msgspec.Struct):
    id: int | None = None
    ok: bool = False
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    event: str = ""
    credential: str = ""
    data: dict[str, Any] | None = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_request = msgspec.json.Decoder(LocalRequest).decode
_decode_message = msgspec.json.Decoder(_Message).decode
