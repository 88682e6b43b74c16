"""What the hub's own process runs: `python -m keepline.hub.process_main FD`; see `keepline.hub.process`.

Invariants: the process ends when the other end of its pipe does, in order if its loop still turns and hard if not; it
says what it is only through that pipe.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec

import msgspec

from keepline.clock import SYSTEM_CLOCK
from keepline.errors import KeeplineError, ProtocolError
from keepline.hub.bus_server import BusServer
from keepline.hub.bus_wire import HEAD, frame_length, framed
from keepline.hub.process import Beat, Failed, Order, read_order
from keepline.hub.server import AnalyticsHub
from keepline.telemetry import setup_logging

__all__ = ["end_hard_without", "main", "received"]

_DONE, _FAILED, _USAGE = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Be a hub until the pipe ends; the program's exit code."""
    try:
        pipe = socket.socket(fileno=int(arguments[0]))
    except (IndexError, ValueError, OSError):
        sys.stderr.write("this is started by `keepline run`, not by hand\n")
        return _USAGE
    try:
        order = read_order(received(pipe))
        setup_logging(order.log.level, log_file=order.log.file, log_format=order.log.format)
    except (KeeplineError, OSError) as error:
        _say_at_once(pipe, error)
        return _FAILED
    end_hard_without(pipe, order.config.drain_seconds + order.grace_seconds)
    factory = None
    if find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(order, pipe))


def end_hard_without(pipe: socket.socket, seconds: float) -> None:
    """A loop that hangs does not see the end of the pipe: a thread does, and waits no longer than the end may take."""
    watched = pipe.dup()

    def watch() -> None:
        poll = select.poll()
        poll.register(watched, 0)  # POLLHUP is always told
        poll.poll()
        SYSTEM_CLOCK.pause(seconds + 1.0)
        os._exit(_FAILED)

    threading.Thread(target=watch, name="keepline-pipe", daemon=True).start()


def received(pipe: socket.socket) -> bytes:
    """The first frame that comes through a pipe, waiting for it.

    Raises:
        ProtocolError: it ends before, or what comes is none.
    """
    pipe.setblocking(True)
    return _exactly(pipe, frame_length(_exactly(pipe, HEAD)))


async def _serve(order: Order, pipe: socket.socket) -> int:
    reader, writer = await asyncio.open_unix_connection(sock=pipe)
    hub = AnalyticsHub(order.config, worker_log=order.log)
    bus: BusServer | None = None
    try:
        await hub.start()
        if order.bus is not None:
            bus = BusServer(hub.registrar, socket.socket(fileno=order.bus))
            await bus.start()
        await hub.ready()
    except (KeeplineError, OSError) as error:
        writer.write(framed(_failure(error)))
        await hub.stop()
        return _FAILED
    beats = asyncio.create_task(_beat(hub, writer, order.beat_seconds))
    try:
        await _until_told(reader, beats)
    finally:
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)
        if bus is not None:
            await bus.close()  # whoever is not answered keeps the message
        await hub.stop()
    return _DONE if beats.cancelled() else _FAILED


async def _beat(hub: AnalyticsHub, writer: asyncio.StreamWriter, pause: float) -> None:
    """Until the journal has failed: it writes no more in this life, and alerts are kept for the next one."""
    journal = hub.registrar.journal
    while journal is None or journal.failure is None:
        if not writer.transport.get_write_buffer_size():
            beat = Beat(hub.url, hub.clients, tuple(hub.reasons))
            writer.write(framed(msgspec.json.encode(beat)))
        await SYSTEM_CLOCK.sleep(pause)


async def _until_told(reader: asyncio.StreamReader, beats: "asyncio.Task[None]") -> None:
    """The end of the pipe, SIGTERM from somebody else, or the end of our signs of life."""
    loop = asyncio.get_running_loop()
    told = loop.create_task(_end_of(reader))
    loop.add_signal_handler(signal.SIGTERM, told.cancel)
    try:
        await asyncio.wait({told, beats}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def _end_of(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        await reader.read()


def _exactly(pipe: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = pipe.recv(size - len(parts))
        if not part:
            raise ProtocolError("the pipe ended before the order came")
        parts += part
    return bytes(parts)


def _say_at_once(pipe: socket.socket, error: Exception) -> None:
    with contextlib.suppress(OSError):
        pipe.sendall(framed(_failure(error)))


def _failure(error: Exception) -> bytes:
    if isinstance(error, OSError) and not isinstance(error, KeeplineError):
        words = f"cannot listen: {error.strerror or error}"
    else:
        words = str(error)
    return msgspec.json.encode(Failed(type(error).__name__, words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
