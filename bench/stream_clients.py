"""Three SignalR clients for the bench of streams: ours, pysignalr and signalrcore, each with handlers of its own kind.

Without a socket each gets what its socket hands on, and goes its own way to the handlers: ours ends in typed objects,
the others in dictionaries. `python -m bench.stream_clients NAME ENCODING URL COUNT` reads from a server until so many
events have reached the handlers, and prints the processor seconds between the first and the last of them.
"""

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.stream_traffic import TARGETS

__all__ = ["NAMES", "offline"]

NAMES = ("keepline", "pysignalr", "signalrcore")


class Counted:
    """How many events came, and the processor time of the first and the last."""

    def __init__(self, count: int) -> None:
        self.wanted, self.seen = count, 0
        self.begun = self.ended = 0.0
        self.done: Callable[[], object] = lambda: None

    def sync(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == 1:
            self.begun = time.process_time()
        elif self.seen == self.wanted:
            self.ended = time.process_time()
            self.done()

    async def coroutine(self, _: Any) -> None:
        self.sync()


Way = Callable[[Sequence[bytes], Callable[..., Any]], float]
"""Reads frames into one handler for all targets, and returns the processor seconds."""


def offline(name: str, encoding: str, frames: Sequence[bytes]) -> Callable[[], float]:
    """What reads these frames once and returns the processor seconds, tried out first: all of them reach a handler."""
    way = {"keepline": _ours, "pysignalr": _pysignalr, "signalrcore": _signalrcore}[name](encoding)
    counted = Counted(len(frames))
    is_async = name == "pysignalr"
    way(frames, counted.coroutine if is_async else counted.sync)
    if counted.seen != counted.wanted:
        raise SystemExit(f"{name}: {counted.seen} of {counted.wanted} events came")
    idle = {"keepline": _idle_typed, "pysignalr": _idle_coroutine, "signalrcore": _idle}[name]
    return lambda: way(frames, idle)


def _idle(arguments: Any) -> None: ...


async def _idle_coroutine(arguments: Any) -> None: ...


def _idle_typed(contract: Any, payload: Any) -> None: ...


def _ours(encoding: str) -> Way:
    from keepline.stream.codec import codec
    from keepline.stream.dispatch import Dispatch
    from keepline.stream.handshake import write_response
    from keepline.stream.straight import straight
    from keepline.stream.wire import HubWire

    def read(frames: Sequence[bytes], handler: Callable[..., Any]) -> float:
        dispatch = Dispatch(failed=_unexpected, returned=_unexpected)
        wire = HubWire(codec(encoding), types=dispatch.types)
        for target, kinds in _expected().items():
            dispatch.on(target, handler, *kinds)
        wire.open(0.0)
        receive = straight(wire, dispatch)
        receive(write_response(), 0.0)
        begun = time.process_time()
        for frame in frames:
            if receive(frame, 1.0):
                raise SystemExit("something that is no event")
        return time.process_time() - begun

    return read


def _pysignalr(encoding: str) -> Way:
    from pysignalr.client import SignalRClient

    def read(frames: Sequence[bytes], handler: Callable[..., Any]) -> float:
        client = SignalRClient("http://127.0.0.1/hub", _pysignalr_protocol(encoding))
        for target in TARGETS:
            client.on(target, handler)
        handed = [frame.decode() for frame in frames] if encoding == "json" else frames

        async def feed() -> float:
            take = client._transport._on_raw_message
            begun = time.process_time()
            for frame in handed:
                await take(frame)
            return time.process_time() - begun

        return asyncio.run(feed())

    return read


def _pysignalr_protocol(encoding: str) -> Any:
    from pysignalr.protocol.json import JSONProtocol
    from pysignalr.protocol.messagepack import MessagepackProtocol

    return JSONProtocol() if encoding == "json" else MessagepackProtocol()


def _signalrcore(encoding: str) -> Way:
    from signalrcore.protocol.json_hub_protocol import JsonHubProtocol
    from signalrcore.protocol.messagepack_protocol import MessagePackHubProtocol

    def read(frames: Sequence[bytes], handler: Callable[..., Any]) -> float:
        hub = _core_hub("http://127.0.0.1/hub", encoding)
        protocol = JsonHubProtocol() if encoding == "json" else MessagePackHubProtocol()
        for target in TARGETS:
            hub.on(target, handler)
        handed = [frame.decode() for frame in frames] if encoding == "json" else frames
        parse, take = protocol.parse_messages, hub.on_message
        begun = time.process_time()
        for frame in handed:
            take(parse(frame))
        return time.process_time() - begun

    return read


def _core_hub(url: str, encoding: str) -> Any:
    from signalrcore.hub_connection_builder import HubConnectionBuilder
    from signalrcore.protocol.messagepack_protocol import MessagePackHubProtocol

    builder = HubConnectionBuilder().with_url(url, options={"verify_ssl": False})
    builder = builder.configure_logging(logging.CRITICAL)
    if encoding == "messagepack":
        builder = builder.with_hub_protocol(MessagePackHubProtocol())
    return builder.build()


def _expected() -> Any:
    from keepline.brokers.projectx.stream_messages import MARKET_EVENTS

    return MARKET_EVENTS


def _unexpected(*what: object) -> None:
    raise SystemExit(f"unexpected: {what}")


# ------------------------------------------------------------------------------------------------- over a socket


async def _ours_online(encoding: str, url: str, counted: Counted) -> None:
    from keepline.stream.connection import SignalRConnection

    over = asyncio.Event()
    counted.done = over.set
    hub = SignalRConnection(url, encoding=encoding)
    for target, kinds in _expected().items():
        hub.on(target, counted.sync, *kinds)
    async with hub:
        await over.wait()


async def _pysignalr_online(encoding: str, url: str, counted: Counted) -> None:
    from pysignalr.client import SignalRClient

    over = asyncio.Event()
    counted.done = over.set
    client = SignalRClient(url, _pysignalr_protocol(encoding))
    for target in TARGETS:
        client.on(target, counted.coroutine)
    running = asyncio.create_task(client.run())
    await over.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def _signalrcore_online(encoding: str, url: str, counted: Counted) -> None:
    over = threading.Event()
    counted.done = over.set
    hub = _core_hub(url, encoding)
    for target in TARGETS:
        hub.on(target, counted.sync)
    hub.start()
    over.wait()


def main(name: str, encoding: str, url: str, count: int) -> None:
    counted = Counted(count)
    gc.freeze()
    if name == "signalrcore":
        _signalrcore_online(encoding, url, counted)
    else:
        client = _ours_online if name == "keepline" else _pysignalr_online
        asyncio.run(client(encoding, url, counted))
    print(counted.ended - counted.begun, flush=True)
    os._exit(0)  # signalrcore's stop() waits for a thread that waits for one more frame


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
