"""Schwab's streamer as a decider: a login, commands one after the other, heartbeats, and typed messages.

A `keepline.stream.port.StreamWire`. Invariants: nothing but LOGIN leaves before its answer; one command is under way
at a time, for two at once make one of them fail; a frame of the peer never raises; codes 3, 12, 20 and 30 end it.

Sources: Schwab's Streamer API guide; clients in the field for what it leaves open (ACCT_ACTIVITY takes SUBS alone,
codes also come as `notify`).
"""

import enum
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from keepline.brokers.schwab.messages import StreamerInfo
from keepline.brokers.schwab.streamer_codes import SUCCEEDED, Code, ending_of, failure_of, plain
from keepline.brokers.schwab.streamer_commands import Command, Commands
from keepline.brokers.schwab.streamer_fields import ACCOUNT_ACTIVITY, LEVEL_ONE
from keepline.brokers.schwab.streamer_frames import (
    NOT_OURS,
    Answer,
    Content,
    Data,
    Notify,
    read_frame,
    request,
)
from keepline.brokers.schwab.streamer_messages import (
    Notice,
    Unreadable,
    moment_of,
    read_activity,
    read_content,
)
from keepline.brokers.schwab.streamer_state import Quotes, SeenActivity
from keepline.errors import APIError, PermanentError, TransientError
from keepline.stream.port import Delivered, Ended, Lost, Opened, Settled, Topic, WireEvent

__all__ = ["ACTIVITY_KEY", "MOST_KEYS", "NOTICES", "UNREADABLE", "SchwabWire"]

ACTIVITY_KEY = "Account Activity"
"""The key under which account activity is asked for; Schwab only hands it back."""

NOTICES = "NOTICE"
"""The channel of what the streamer says of itself; nobody has to ask for it."""

UNREADABLE = "UNREADABLE"
"""The channel of frames, or parts of them, that are none of the streamer's."""

MOST_KEYS = 500
"""Keys of one connection, as clients in the field report Schwab's limit."""

_MOST_UNREADABLE = 100  # in a row: what talks like that is no streamer


class _State(enum.Enum):
    NEW = "before the login"
    ENTERING = "login sent"
    OPEN = "logged in"
    OVER = "over"


Events: TypeAlias = list[WireEvent]

_answer = msgspec.json.Decoder(Answer).decode
_notify = msgspec.json.Decoder(Notify).decode
_data = msgspec.json.Decoder(Data).decode


class SchwabWire:
    """One connection to the streamer.

    Args:
        who: how the user introduces itself, from `userPreference`.
        seen: which account activities were seen on earlier connections; hand the same one to each wire.
        answer_timeout: seconds that a command's answer may take.
        server_timeout: seconds without any frame, heartbeats included, after which the connection is dead.
        most_keys: more are refused before they are sent.
    """

    def __init__(
        self,
        who: StreamerInfo,
        *,
        seen: SeenActivity | None = None,
        answer_timeout: float = 15.0,
        server_timeout: float = 30.0,
        most_keys: int = MOST_KEYS,
    ) -> None:
        self._who = who
        self._seen = seen if seen is not None else SeenActivity()
        self._answer_timeout = answer_timeout
        self._server_timeout = server_timeout
        self._most_keys = most_keys
        self._commands = Commands(most_keys)
        self._state = _State.NEW
        self._secret = ""  # until the login is answered: an answer that repeats it must not show it
        self._quotes = Quotes()
        self._flight: Command | None = None
        self._answer_due = 0.0
        self._heard_at = 0.0
        self._ready: list[WireEvent] = []
        self._out: list[bytes | str] = []
        self._requests = 0
        self._refs = 0
        self._unreadable = 0
        self.heartbeat_at: datetime | None = None

    @property
    def deadline(self) -> float | None:
        """When `expire` wants to be called."""
        if self._ready:
            return self._heard_at  # what is ready is late already
        if self._state in (_State.NEW, _State.OVER):
            return None
        silent = self._heard_at + self._server_timeout
        return silent if self._flight is None else min(silent, self._answer_due)

    def open(self, token: str, now: float) -> None:
        """The socket is open: log in with the bare token."""
        self._state, self._heard_at, self._secret = _State.ENTERING, now, token
        login = {
            "Authorization": token,
            "SchwabClientChannel": self._who.schwab_client_channel,
            "SchwabClientFunctionId": self._who.schwab_client_function_id,
        }
        self._send(Command("LOGIN", "ADMIN", {}), now, login)

    def receive(self, data: bytes | str, now: float) -> Sequence[WireEvent]:
        """What a frame means."""
        if self._state in (_State.NEW, _State.OVER):
            return ()
        self._heard_at = now
        events = self._drained()
        try:
            frame = read_frame(data)
        except NOT_OURS as problem:
            self._unread(events, f"a frame that cannot be read: {plain(problem)}")
            return events
        self._unreadable = 0
        for raw in frame.response or ():
            self._each(events, raw, _answer, self._answered, now)
        for raw in frame.notify or ():
            self._each(events, raw, _notify, self._notified, now)
        for raw in frame.data or ():
            self._each(events, raw, _data, self._told, now)
        return events

    def take(self) -> list[bytes | str]:
        """The frames to write now."""
        out, self._out = self._out, []
        return out

    def subscribe(self, topic: Topic, now: float) -> str:
        """Ask for a topic: its channel is the service, `topic.subscribe[2]` the numbers of the fields."""
        ref, fields = self._new_ref(), str(topic.subscribe[2]) if len(topic.subscribe) > 2 else ""
        if self._state is _State.OVER:
            self._ready.append(Settled(ref, _gone(topic)))
        elif not self._commands.want(topic.channel, topic.key, fields, ref):
            words = f"{self._most_keys} keys are subscribed already, Schwab takes no more: end some first"
            self._ready.append(Settled(ref, PermanentError(words, endpoint=topic.name, sent=False)))
        self._pump(now)
        return ref

    def unsubscribe(self, topic: Topic, now: float) -> str | None:
        """End a topic."""
        ref = self._new_ref()
        if self._state is _State.OVER:
            self._ready.append(Settled(ref, _gone(topic)))
        else:
            self._commands.end(topic.channel, topic.key, ref)
        self._pump(now)
        return ref

    def probe(self, now: float) -> str | None:
        """Ask for a service's fields once more: whatever Schwab answers, it is there. None without subscriptions."""
        ref = self._new_ref()
        asked = self._commands.ask(ref)
        self._pump(now)
        return ref if asked else None

    def expire(self, now: float) -> Sequence[WireEvent]:
        """The deadline has come."""
        events = self._drained()
        if self._state in (_State.NEW, _State.OVER):
            return events
        if now >= self._heard_at + self._server_timeout:
            words = f"nothing was heard for {self._server_timeout:g} s, not even a heartbeat"
            self._end(events, Lost("timeout", words), TransientError(words, category="timeout"))
        elif self._flight is not None and now >= self._answer_due:
            self._unanswered(events, self._flight, now)
        return events

    def close(self, now: float) -> None:
        """Say goodbye; what the streamer says to that is not waited for."""
        if self._state is _State.OPEN:
            self._send(Command("LOGOUT", "ADMIN", {}), now, {})
        self._state = _State.OVER
        self._forget()

    # ---------------------------------------------------------------------------------------------------- commands

    def _new_ref(self) -> str:
        self._refs += 1
        return str(self._refs)

    def _pump(self, now: float) -> None:
        """Send the next command if none is under way."""
        if self._state is _State.OPEN and self._flight is None:
            command = self._commands.next()
            if command is not None:
                self._send(command, now, command.parameters())

    def _send(self, command: Command, now: float, parameters: dict[str, str]) -> None:
        self._requests += 1
        self._flight, self._answer_due = command, now + self._answer_timeout
        self._out.append(
            request(self._who, self._requests, command.service, command.verb, parameters)
        )

    # ----------------------------------------------------------------------------------------------------- answers

    def _each(
        self,
        events: Events,
        raw: Raw,
        read: Callable[[Raw], Any],
        use: Callable[[Events, Any, float], None],
        now: float,
    ) -> None:
        if self._state is _State.OVER:
            return
        try:
            part = read(raw)
        except NOT_OURS as problem:
            events.append(_delivered(UNREADABLE, "", Unreadable(plain(problem))))
            return
        use(events, part, now)

    def _answered(self, events: Events, answer: Answer, now: float) -> None:
        code, words = self._read(answer.content)
        command = self._flight
        mine = command is not None and str(answer.requestid) == str(self._requests)
        ending = ending_of(code, words)
        if ending is not None:
            self._end(events, ending, failure_of(code, words, command.name if command else ""))
        elif not mine or command is None:
            return  # the answer of a command that was given up
        elif command.verb == "LOGIN":
            self._entered(events, code, words, now)
        else:
            self._finished(events, command, code, words, now)

    def _entered(self, events: Events, code: Code, words: str, now: float) -> None:
        if code not in SUCCEEDED:
            lost = Lost("login", f"the login failed: code {int(code)} {words}")
            self._end(events, lost, failure_of(code, words, "LOGIN ADMIN"))
            return
        self._state, self._flight, self._secret = _State.OPEN, None, ""
        events.append(Opened())
        self._pump(now)

    def _finished(
        self, events: Events, command: Command, code: Code, words: str, now: float
    ) -> None:
        self._flight = None
        error = None
        if code in SUCCEEDED:
            self._commands.confirm(command)
            self._forget_quotes(command)
        elif not command.asks:
            error = failure_of(code, words, command.name)
            self._commands.fail(command)
        events.extend(Settled(ref, error) for ref in command.refs)
        self._pump(now)

    def _forget_quotes(self, command: Command) -> None:
        if command.verb == "UNSUBS":
            for key in command.keys:
                self._quotes.forget(command.service, key)

    def _unanswered(self, events: Events, command: Command, now: float) -> None:
        words = f"no answer within {self._answer_timeout:g} s"
        error = TransientError(words, category="timeout", endpoint=command.name)
        if command.verb == "LOGIN":
            self._end(events, Lost("timeout", "the login was not answered"), error)
            return
        self._flight = None
        self._commands.fail(command)
        events.extend(Settled(ref, error) for ref in command.refs)
        self._pump(now)

    def _notified(self, events: Events, notice: Notify, now: float) -> None:
        if notice.heartbeat is not None:
            self.heartbeat_at = moment_of(notice.heartbeat)
        if notice.content is None:
            return
        code, words = self._read(notice.content)
        ending = ending_of(code, words)
        if ending is not None:
            self._end(events, ending, failure_of(code, words, ""))
        else:
            events.append(_delivered(NOTICES, "", Notice(notice.content.code, words)))

    def _told(self, events: Events, data: Data, now: float) -> None:
        at = moment_of(data.timestamp)
        for content in data.content:
            key = content.get("key")
            if not isinstance(key, str):
                reason = f"a line of {plain(data.service)} without a key"
                events.append(_delivered(UNREADABLE, "", Unreadable(reason)))
            elif data.service in LEVEL_ONE:
                quote = self._quotes.merged(data.service, key, content, at)
                events.append(_delivered(data.service, key, quote))
            elif data.service == ACCOUNT_ACTIVITY:
                activity = read_activity(content)
                if self._seen.is_new(activity):
                    events.append(_delivered(data.service, key, activity))
            else:
                message = read_content(data.service, key, content, at)
                wrong = isinstance(message, Unreadable)
                events.append(_delivered(UNREADABLE if wrong else data.service, key, message))

    def _read(self, content: Content) -> tuple[Code, str]:
        code = Code.UNKNOWN_FAILURE if content.code is None else Code(content.code)
        return code, plain(content.msg, self._secret)

    # ---------------------------------------------------------------------------------------------------------- end

    def _unread(self, events: Events, reason: str) -> None:
        self._unreadable += 1
        events.append(_delivered(UNREADABLE, "", Unreadable(reason)))
        if self._unreadable >= _MOST_UNREADABLE:
            words = f"{self._unreadable} frames in a row that cannot be read"
            self._end(events, Lost("protocol", words), TransientError(words))

    def _end(self, events: Events, lost: Lost, error: APIError) -> None:
        opening = self._state is _State.ENTERING
        self._state = _State.OVER
        self._forget()
        events.append(Ended(lost, error if opening else None))

    def _forget(self) -> None:
        self._secret, self._flight = "", None
        self._commands.clear()

    def _drained(self) -> list[WireEvent]:
        ready, self._ready = self._ready, []
        return ready

    def __repr__(self) -> str:
        waiting = len(self._commands)
        return (
            f"<SchwabWire {self._state.value}, {self._commands.keys} keys, {waiting} commands wait>"
        )


def _delivered(channel: str, key: str, message: object) -> Delivered:
    return Delivered(channel, (key, message))


def _gone(topic: Topic) -> TransientError:
    return TransientError(
        "the connection is over", category="network", endpoint=topic.name, sent=False
    )
