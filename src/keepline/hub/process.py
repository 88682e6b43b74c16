"""The hub in a process of its own: started, watched, and ended with whoever started it.

Invariants: settings with their secrets go through a pipe, never through arguments or the environment; a hub that gives
no sign of life is as good as dead; however this process ends, its hub ends too.

Over the pipe (frames as on the bus) goes one `Order`; back come `Beat`s, or one `Failed`. The pipe's end
says: send the clients away and end.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import ConfigError, ProtocolError, StorageError, TransientError
from keepline.hub.bus import read_frame
from keepline.hub.bus_wire import framed
from keepline.hub.settings import HubConfig
from keepline.telemetry import event

__all__ = ["Beat", "Failed", "HubProcess", "LogSettings", "Order", "order_text", "read_order"]

log = logging.getLogger("keepline.hub")

_MAIN = "keepline.hub.process_main"


class LogSettings(msgspec.Struct, frozen=True):
    """How the hub's process logs; as `telemetry.setup_logging`."""

    level: str = "INFO"
    file: str | None = None
    format: Literal["text", "json"] = "text"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to be.

    Attributes:
        config: the hub.
        bus: the number of the inherited socket that its bus listens on, None for no bus.
        log: how it logs.
        beat_seconds: between two signs of life.
        grace_seconds: how long it may take to end, beyond sending its clients away.
    """

    config: HubConfig
    bus: int | None
    log: LogSettings
    beat_seconds: float
    grace_seconds: float


class Beat(msgspec.Struct, frozen=True, tag_field="op", tag="beat"):
    """A sign of life.

    Attributes:
        url: where it listens.
        clients: who is connected.
        reasons: why it is not ready; none when it delivers.
    """

    url: str
    clients: int
    reasons: tuple[str, ...]


class Failed(msgspec.Struct, frozen=True, tag_field="op", tag="failed"):
    """It cannot start.

    Attributes:
        kind: the error's name.
        words: what it says.
    """

    kind: str
    words: str


_words: "msgspec.json.Decoder[Beat | Failed]" = msgspec.json.Decoder(Beat | Failed)


class HubProcess:
    """One hub process; after `stop` it may be started again.

    Args:
        config: the hub.
        bus: a listening Unix socket for its bus, which outlives it: who connects while it is gone waits.
        log: how it logs.
        start_seconds: until it must serve.
        silence_seconds: without a sign of life it is given up.
        grace_seconds: how long it may take to end, beyond sending its clients away.
        beat_seconds: between two signs of life.
        clock: for waits.
    """

    def __init__(
        self,
        config: HubConfig,
        *,
        bus: socket.socket | None = None,
        log: LogSettings | None = None,
        start_seconds: float = 30.0,
        silence_seconds: float = 15.0,
        grace_seconds: float = 10.0,
        beat_seconds: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.config = config
        self._bus = bus
        self._log = log or LogSettings()
        self._start_seconds = start_seconds
        self._silence_seconds = silence_seconds
        self._grace_seconds = grace_seconds
        self._beat_seconds = beat_seconds
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._beat: Beat | None = None
        self._failed: Failed | None = None
        self._heard = 0.0

    @property
    def pid(self) -> int | None:
        """Its number, None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def url(self) -> str:
        """Where it listens, empty while it does not."""
        return "" if self._beat is None else self._beat.url

    @property
    def drain_seconds(self) -> float:
        """How long `stop` may take."""
        return self.config.drain_seconds + self._grace_seconds + 1.0

    def ready(self) -> tuple[bool, str]:
        """Whether it delivers, and the reason in words."""
        if self._beat is None:
            return False, "not started"
        age = self._clock.boottime() - self._heard
        if age > max(3 * self._beat_seconds, 3.0):
            return False, f"no sign of life for {age:.0f} s"
        if self._beat.reasons:
            return False, "; ".join(self._beat.reasons)
        return True, f"{self.url}, clients: {self._beat.clients}"

    async def start(self) -> None:
        """Return when it serves.

        Raises:
            ConfigError, StorageError: as the hub says.
            TransientError: it ended, or did not serve in time.
        """
        self._first.clear()
        self._beat = self._failed = None
        try:
            await self._spawn()
            await within(self._clock, self._start_seconds, self._first.wait())
            self._check_started()
        except TimeoutError:
            await self.stop()
            raise TransientError(
                f"the hub did not serve within {self._start_seconds:g} s", category="timeout"
            ) from None
        except BaseException:  # also when nobody waits for it any more
            await self.stop()
            raise
        event(log, logging.INFO, "Hub process started", pid=self.pid, url=self.url)

    async def ended(self) -> str:
        """Return, with the reason, when it has ended or gives no sign of life."""
        assert self._process is not None
        ending = asyncio.create_task(self._process.wait())
        silent = asyncio.create_task(self._silence())
        try:
            await asyncio.wait({ending, silent}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return f"the hub's process ended with {ending.result()}"
            return f"the hub gave no sign of life for {self._silence_seconds:g} s"
        finally:
            ending.cancel()
            silent.cancel()
            await asyncio.gather(ending, silent, return_exceptions=True)

    async def stop(self) -> None:
        """Have it send its clients away and end; kill it when it does not. Twice is once."""
        process, self._process = self._process, None
        self._beat = None
        if process is None:
            return
        if self._writer is not None:
            self._writer.close()
        limit = self.config.drain_seconds + self._grace_seconds
        try:
            await within(self._clock, limit, process.wait())
        except TimeoutError:
            event(log, logging.WARNING, "Hub process killed", pid=process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    process.kill()
        await process.wait()
        await self._hang_up()

    def __repr__(self) -> str:
        return f"<HubProcess {self.pid or 'not running'}>"

    # inside

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        inherited = [theirs.fileno(), *([] if self._bus is None else [self._bus.fileno()])]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", _MAIN, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C is for us, who end it in order
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._writer.write(framed(order_text(self._order())))
        self._heard = self._clock.boottime()
        self._hearing = asyncio.create_task(self._hear(reader))

    def _order(self) -> Order:
        return Order(
            config=self.config,
            bus=None if self._bus is None else self._bus.fileno(),
            log=self._log,
            beat_seconds=self._beat_seconds,
            grace_seconds=self._grace_seconds,
        )

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, ProtocolError, msgspec.DecodeError):
            while (payload := await read_frame(reader)) is not None:
                word = _words.decode(payload)
                self._heard = self._clock.boottime()
                if isinstance(word, Failed):
                    self._failed = word
                else:
                    self._beat = word
                self._first.set()
        self._first.set()

    def _check_started(self) -> None:
        if self._failed is not None:
            words = self._failed.words
            match self._failed.kind:
                case "ConfigError":
                    raise ConfigError(words)
                case "StorageError":
                    raise StorageError(words)
            raise TransientError(words, category="server")
        if self._beat is None:
            raise TransientError("the hub's process ended before it served", category="server")

    async def _silence(self) -> None:
        while (left := self._heard + self._silence_seconds - self._clock.boottime()) > 0:
            await self._clock.sleep(left)

    async def _hang_up(self) -> None:
        hearing, self._hearing = self._hearing, None
        writer, self._writer = self._writer, None
        if hearing is not None:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def order_text(order: Order) -> bytes:
    """An order as it goes through the pipe."""
    return msgspec.json.encode(order, enc_hook=_plain)


def read_order(payload: bytes) -> Order:
    """The order that came through the pipe.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return msgspec.json.decode(payload, type=Order, dec_hook=_of_plain)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"no order for a hub: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not written")


def _of_plain(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise TypeError(f"{kind} is not read")
