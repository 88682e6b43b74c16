"""A recorded stream again, through the code that reads the live one.

Invariants: the frames go through the same wire as on the day, in the recorded order; a connection plays once, the next
`open` plays the next connection; the arrival times are those of the recording, whatever the speed; nothing is asked of
anybody.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import Closed, ConfigError, PermanentError
from keepline.stream.binding import Types
from keepline.stream.codec import codec
from keepline.stream.played_snapshots import PlayedSnapshots
from keepline.stream.port import Delivered, Ended, Lost, Sink, StreamWire, Topic
from keepline.stream.recording import Entry, Recording
from keepline.stream.wire import Called, HubWire
from keepline.stream.wire import Closed as HubClosed

__all__ = ["FrameReader", "Message", "Playback", "PlayedLink", "SignalRFrames", "WireFrames"]

_BATCH = 256  # entries read at once in a thread, and delivered between two looks at the event loop

Message = tuple[str, Sequence[Any]]
"""Channel and arguments."""


class FrameReader(Protocol):
    """Reads the frames of one recorded connection."""

    def receive(self, frame: bytes | str, now: float) -> list[Message]:
        """The messages of a frame."""
        ...


class SignalRFrames:
    """Reads the frames of a SignalR connection, handshake included.

    Args:
        encoding: `json` or `messagepack`, as recorded.
        types: into what arguments are decoded.
    """

    def __init__(self, encoding: str = "json", types: Types | None = None) -> None:
        if encoding not in ("json", "messagepack"):
            raise ConfigError(f"no such encoding: {encoding!r}", key="encoding")
        self._wire = HubWire(codec(encoding), types=types)
        self._binary = encoding != "json"
        self._wire.open(0.0)
        self.over: str | None = None
        """Why nothing is read any more: what the server said, None while it goes on."""

    def receive(self, frame: bytes | str, now: float) -> list[Message]:
        """The calls of a frame; everything else speaks to the connection, not to its users."""
        if self._binary and isinstance(frame, str):  # it was recorded as text because it could be
            frame = frame.encode()
        messages: list[Message] = []
        for happened in self._wire.receive(frame, now):
            if isinstance(happened, Called):
                messages.append((happened.target, happened.arguments))
            elif isinstance(happened, HubClosed):
                self.over = happened.error or happened.reason.value
        self._wire.take()  # what we would have said
        return messages


class WireFrames:
    """Reads the frames of a broker's own WebSocket protocol.

    Args:
        wire: the protocol, a new object.
    """

    def __init__(self, wire: StreamWire) -> None:
        self._wire = wire
        self._wire.open("", 0.0)
        self.over: str | None = None
        """Why nothing is read any more, None while it goes on."""

    def receive(self, frame: bytes | str, now: float) -> list[Message]:
        """What the wire delivers."""
        messages: list[Message] = []
        for happened in self._wire.receive(frame, now):
            if isinstance(happened, Delivered):
                messages.append((happened.channel, happened.arguments))
            elif isinstance(happened, Ended):
                self.over = happened.lost.error or happened.lost.reason
        self._wire.take()
        return messages


class Playback:
    """Plays a recording: through links for a manager, or straight into a function.

    Args:
        recording: what is played.
        reader: makes the reader of a new connection.
        speed: 1.0 is the pace of the day, 10.0 ten times that; None is as fast as it goes.
        clock: keeps the pace.

    Attributes:
        snapshots: what the broker showed on the day; for the stream that is fed by `link`.

    Raises:
        ConfigError: a speed that is not positive.
    """

    def __init__(
        self,
        recording: Recording,
        reader: Callable[[], FrameReader],
        *,
        speed: float | None = 1.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if speed is not None and not 0 < speed < float("inf"):
            raise ConfigError(f"a positive speed is needed, not {speed!r}", key="speed")
        self.recording = recording
        self.reader = reader
        self.snapshots = PlayedSnapshots()
        self._speed = speed
        self._clock = clock
        self._began: float | None = None
        self._played: dict[str, int] = {}

    async def run(self, sink: Sink, *, watch: Callable[[Entry], object] | None = None) -> int:
        """Play everything, all connections in their order, into a function.

        Args:
            sink: gets channel, arguments and arrival (boottime seconds as if it were now).
            watch: gets each entry before it is played: progress, connections that come and go.

        Returns:
            How many messages there were.
        """
        readers: dict[int, FrameReader] = {}
        count = 0
        async for entry, now in self.paced(iter(self.recording)):
            if watch is not None:
                watch(entry)
            if entry.kind == "open":
                readers[entry.connection] = self.reader()
            elif entry.is_frame:
                reader = readers.setdefault(entry.connection, self.reader())
                for channel, arguments in reader.receive(entry.data, now):
                    sink(channel, arguments, now)
                    count += 1
            elif entry.kind == "lost":
                readers.pop(entry.connection, None)
        return count

    def link(self, label: str = "") -> "PlayedLink":
        """The next connection of that label (any, when it is empty) as a link: a manager's link factory."""
        return PlayedLink(self, label)

    def next_connection(self, label: str) -> int | None:
        """The number of the connection after the last one that was played; reads the file."""
        last = self._played.get(label, 0)
        for entry in self.recording:
            if entry.kind == "open" and entry.connection > last and label in ("", entry.data):
                self._played[label] = entry.connection
                return entry.connection
        return None

    async def paced(self, entries: Iterator[Entry]) -> AsyncIterator[tuple[Entry, float]]:
        """Entries, each when its time has come, with the moment it stands for (boottime seconds)."""
        if self._began is None:
            self._began = self._clock.boottime()
        while batch := await asyncio.to_thread(lambda: list(islice(entries, _BATCH))):
            for entry in batch:
                if self._speed is not None:
                    due = self._began + entry.at / self._speed
                    if (wait := due - self._clock.boottime()) > 0:
                        await self._clock.sleep(wait)
                yield entry, self._began + entry.at
            await asyncio.sleep(0)

    def __repr__(self) -> str:
        return f"<Playback of {self.recording.path} at {self._speed or 'full'} speed>"


class PlayedLink:
    """One recorded connection in the place of a live one."""

    def __init__(self, playback: Playback, label: str) -> None:
        self._playback = playback
        self._label = label
        self._task: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[Lost] | None = None

    async def open(self, sink: Sink) -> None:
        """Begin to play.

        Raises:
            PermanentError: the recording has no further connection.
            Closed: a link is opened once.
        """
        if self._lost is not None:
            raise Closed("a link is opened once: make a new one")
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        number = await asyncio.to_thread(self._playback.next_connection, self._label)
        if number is None:
            raise PermanentError(
                f"{self._playback.recording.path} has no further connection", category="client"
            )
        self._task = loop.create_task(self._play(number, sink), name="stream playback")

    async def _play(self, number: int, sink: Sink) -> None:
        reader = self._playback.reader()
        mine = (e for e in self._playback.recording if e.connection == number)
        snapshots = self._playback.snapshots
        snapshots.begin()
        lost = Lost("end", "the recording ends here", allow_reconnect=False)
        try:
            async for entry, now in self._playback.paced(mine):
                if entry.is_frame:
                    for channel, arguments in reader.receive(entry.data, now):
                        sink(channel, arguments, now)
                elif entry.kind == "snapshot":
                    await snapshots.offer(str(entry.data))
                elif entry.kind == "lost":
                    lost = Lost("recorded", str(entry.data))
        except ConfigError as error:  # the file went away
            lost = Lost("end", str(error), allow_reconnect=False)
        except msgspec.DecodeError as error:
            lost = Lost("end", f"a snapshot is damaged: {error}", allow_reconnect=False)
        self._end(lost)

    def _end(self, lost: Lost) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(lost)

    async def subscribe(self, topic: Topic) -> None:
        """What was subscribed on the day is what comes."""

    async def unsubscribe(self, topic: Topic) -> None:
        """Nothing changes in a recording."""

    async def probe(self) -> bool:
        """Nobody is there to be asked."""
        return False

    async def close(self) -> None:
        """Stop playing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._end(Lost("stopped"))

    async def closed(self) -> Lost:
        """Return once the connection has been played to its end.

        Raises:
            Closed: it was never opened.
        """
        if self._lost is None:
            raise Closed("the link was not opened")
        return await asyncio.shield(self._lost)
