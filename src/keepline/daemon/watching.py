"""A stream for the command line: its own connection with the daemon's tokens, watched or recorded; a recording again.

Invariants: the first connection comes soon or the command ends with the reason, later ones are tried for ever; Schwab's
one connection is never taken from a running daemon; whoever reads what is told and fails ends the command.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from keepline.brokers.projectx.playback import ProjectXValues
from keepline.brokers.schwab.playback import SchwabValues
from keepline.brokers.schwab.streamer_state import SeenActivity
from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.config import Settings
from keepline.daemon.ask import daemon
from keepline.daemon.clients import broker_session
from keepline.daemon.streamcheck import check_stream
from keepline.daemon.streams import KeptStream, listen, stream_of
from keepline.errors import ConfigError, KeeplineError, Refused, TransientError
from keepline.stream.events import ConnectionState, EventKind, StreamEvent
from keepline.stream.playback import FrameReader, Playback
from keepline.stream.recorder import Recorder
from keepline.stream.recording import Entry, Recording

__all__ = ["FIRST_DIALS", "Played", "Show", "Told", "replay", "speed_of", "stream_named", "watch"]

FIRST_DIALS = 1
"""Dials that a command makes for its first connection: a script wants to know, the daemon keeps trying."""


class Told(NamedTuple):
    """Something that a stream told.

    Attributes:
        at: when it arrived, aware.
        stream: whose it is.
        kind: `event`, `quote`, `trade`, `depth`, `order`, `fill`, `position`, `account`, `discrepancy`, ….
        value: what was told, a struct.
    """

    at: datetime
    stream: str
    kind: str
    value: Any


Show: TypeAlias = Callable[[Told], object]


def stream_named(settings: Settings, name: str = "") -> str:
    """The section that was named, or the only one that there is.

    Raises:
        ConfigError: none was named and there are several, or none is there; says which are.
    """
    known = list(settings.stream)
    if name in known or (not name and len(known) == 1):
        return name or known[0]
    if not known:
        what = "no [stream.NAME] is configured; it needs a broker, and accounts or symbols"
    elif name:
        what = f"no [stream.{name}]; there is {', '.join(known)}"
    else:
        what = f"which stream? name one of {', '.join(known)}"
    raise ConfigError(what, key="stream", file=settings.file)


async def watch(
    settings: Settings,
    name: str,
    show: Show,
    *,
    recorder: Recorder | None = None,
    seconds: float = 0.0,
    opened: Callable[[KeptStream], object] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Stream until the time is over, or for ever.

    Args:
        settings: all of them.
        name: of the section.
        show: gets everything that the section wants.
        recorder: gets every frame; started, stays the caller's to stop.
        seconds: how long; 0 has no end.
        opened: gets the stream before it connects.
        clock: of the stream.

    Raises:
        ConfigError: a symbol or an address that makes no sense, or an account that is not there.
        TransientError: there was no first connection.
        SignInRequired: there is no token without a person.
        Refused: the daemon has the only connection that the broker allows.
        KeeplineError: the stream has failed for good.
    """
    async with _session(settings, name, recorder, clock) as stream:
        if opened is not None:
            opened(stream)
        watching = _Watching(stream, name, show, clock)
        listen(stream, settings.stream[name], watching.tell)
        try:
            await within(clock, seconds or float("inf"), watching.run(recorder))
        except TimeoutError:
            if not watching.connected:
                words = f"no connection in {seconds:g} s: {'; '.join(stream.reasons)}"
                raise TransientError(words, category="timeout") from None


@contextlib.asynccontextmanager
async def _session(settings: Settings, name: str, recorder: Recorder | None, clock: Clock) -> Any:
    check_stream(settings, name)
    table = settings.stream[name]
    await _leave_alone(settings, table.broker)
    async with broker_session(settings, table.broker) as (client, tokens):
        await tokens.get()  # so that a sign-in that is needed is said at once
        stream = await stream_of(settings, name, client, tokens, recorder=recorder, clock=clock)
        for manager in stream.managers:
            manager.allow_failures(FIRST_DIALS)
        try:
            yield stream
        finally:
            await stream.disconnect()


async def _leave_alone(settings: Settings, broker: str) -> None:
    """Schwab ends a user's stream when another one begins, by whatever name: the daemon's is worth more."""
    if settings.brokers[broker].broker != "schwab":
        return
    async with daemon() as running:
        told = {} if running is None else (await running.status()).get("streams", {})
    sharing = {
        n
        for n, b in settings.brokers.items()
        if b.credential == settings.brokers[broker].credential
    }
    for name, stream in told.items():
        if stream["protocol"] == "schwab" and stream["broker"] in sharing:
            raise Refused(
                f"the daemon has the one connection that Schwab allows a user, as stream {name};"
                f" let it record ([stream.{name}] record = …), or stop it first"
            )


class _Watching:
    """One command's look at a stream."""

    def __init__(self, stream: KeptStream, name: str, show: Show, clock: Clock) -> None:
        self.connected = False
        self._stream = stream
        self._name = name
        self._show = show
        self._clock = clock
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, recorder: Recorder | None) -> None:
        """Until the stream has failed, or `show` has, or the disk."""
        await self._stream.connect()
        self.connected = True
        for manager in self._stream.managers:
            manager.allow_failures(None)
        self._look()  # it may have failed already
        if recorder is None:
            return await self._ended
        while recorder.failure is None:
            with contextlib.suppress(TimeoutError):
                return await within(self._clock, 1.0, asyncio.shield(self._ended))
        raise KeeplineError(f"recording ended: {recorder.failure}")

    async def tell(self, kind: str, value: Any) -> None:
        """Show it; the first failure is the command's."""
        is_event = isinstance(value, StreamEvent)
        at = value.at if is_event else self._clock.wall()
        try:
            self._show(Told(at, value.stream if is_event else self._name, kind, value))
        except Exception as error:
            self._end(error)
        if is_event:
            self._look()

    def _look(self) -> None:
        if self.connected and self._stream.state is ConnectionState.FAILED:
            words = "; ".join(self._stream.reasons)
            self._end(TransientError(f"the stream has failed: {words}", category="network"))

    def _end(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
            self._ended.exception()  # before the first connection nobody asks for it


# --- a recording again ------------------------------------------------------------------------------------------------


@dataclass
class Played:
    """What was in a recording, as far as it was played.

    Attributes:
        messages: values that were told.
        frames: frames that were read.
        connections: that began.
        missed: frames that the recording itself says it does not have.
        first: when the recording began.
        last: when the last thing in it happened, None when nothing did.
        damage: why it stopped before the end of the file, None when it did not.
    """

    first: datetime
    messages: int = 0
    frames: int = 0
    connections: int = 0
    missed: int = 0
    last: datetime | None = None
    damage: str | None = None


def speed_of(words: str) -> float | None:
    """How fast to play: `1`, `10`, `0.5`; None for `max`.

    Raises:
        ConfigError: it is no speed.
    """
    if words == "max":
        return None
    try:
        speed = float(words)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise ConfigError(f"a number above 0 or max, not {words!r}", key="--speed")
    return speed


async def replay(
    path: Path,
    show: Show,
    *,
    speed: float | None = 1.0,
    seconds: float = 0.0,
    opened: Callable[[Played], object] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Played:
    """Play a recording through the code that reads the live stream.

    Args:
        path: the recording.
        show: gets every value, and the connections that came and went as events.
        speed: 1.0 is the pace of the day; None as fast as it goes.
        seconds: end after so long; 0 plays everything.
        opened: gets the count, which grows while it plays.
        clock: keeps the pace.

    Returns:
        What was played; `damage` says where a damaged file ends.

    Raises:
        ConfigError: it is no recording, or of a broker that is not known here.
    """
    recording = await asyncio.to_thread(Recording, path)
    playing = _Playing(recording, show)
    if opened is not None:
        opened(playing.played)
    playback = Playback(recording, playing.reader(), speed=speed, clock=clock)
    with contextlib.suppress(TimeoutError):
        work = playback.run(playing.told, watch=playing.watch)
        await within(clock, seconds or float("inf"), work)
        playing.played.damage = recording.damage
    return playing.played


class _Playing:
    """One recording on its way to `show`."""

    def __init__(self, recording: Recording, show: Show) -> None:
        self.played = Played(recording.head.started_at)
        self._head = recording.head
        self._show = show
        self._at = recording.head.started_at
        self._labels: dict[int, str] = {}
        self._now = 0

    def reader(self) -> Callable[[], FrameReader]:
        """Makes the reader of a connection.

        Raises:
            ConfigError: of what broker the recording is, is not known here.
        """
        head = self._head
        if head.broker == "projectx":
            return lambda: ProjectXValues(head.encoding, self._wall)
        if head.broker == "schwab":
            seen = SeenActivity()
            return lambda: SchwabValues(seen, self._wall)
        raise ConfigError(f"no broker {head.broker!r} is known here", key="recording")

    def watch(self, entry: Entry) -> None:
        """An entry is about to be played."""
        self._now = entry.connection
        self._at = self._head.started_at + timedelta(seconds=entry.at)
        self.played.last = self._at
        self.played.frames += entry.is_frame
        match entry.kind:
            case "open":
                self.played.connections += 1
                self._labels[entry.connection] = str(entry.data)
                self._event(EventKind.CONNECTED, "")
            case "lost":
                self._event(EventKind.LOST, str(entry.data))
            case "snapshot":
                self._event(EventKind.RECONCILING, "the broker was asked what was missed")
            case "missed":
                self.played.missed += int(entry.data)
                words = f"{int(entry.data)} frames are not in the recording: the disk was too slow"
                self._event(EventKind.OVERFLOW, words)

    def told(self, kind: str, arguments: Any, _: float) -> None:
        """A value of the entry."""
        self.played.messages += 1
        self._show(Told(self._at, self._name(), kind, arguments[0]))

    def _event(self, kind: EventKind, reason: str) -> None:
        name = self._name()
        event = StreamEvent(kind, name, self._at, reason=reason)
        self._show(Told(self._at, name, "event", event))

    def _name(self) -> str:
        stream, label = self._head.stream or self._head.broker, self._labels.get(self._now, "")
        return stream if label in ("", stream) else f"{stream}.{label}"

    def _wall(self) -> datetime:
        return self._at
