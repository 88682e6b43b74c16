"""What a worker's process runs: `python -m keepline.hub.worker_main LINK HAND`; see `keepline.hub.workers`.

Invariants: it numbers nothing and stores nothing; users, keys and revocations it only reads; the process ends when the
other end of its link does.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from aiohttp import web

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK
from keepline.errors import KeeplineError, ProtocolError, TransientError
from keepline.http import HttpSession
from keepline.hub.attendance import LOOK_SECONDS, Attendance
from keepline.hub.broadcaster import Broadcaster
from keepline.hub.bus import read_frame
from keepline.hub.closecodes import CloseCode
from keepline.hub.frontage import SOCKET_PATH, Frontage
from keepline.hub.gate import Gate
from keepline.hub.http_api import HttpApi
from keepline.hub.messages import Message
from keepline.hub.opening import GateSettings, make_gate
from keepline.hub.origins import HostRules, OriginRules, own_hosts, own_origins
from keepline.hub.process import Order, read_order
from keepline.hub.process_main import end_hard_without, received
from keepline.hub.registrar import Registrar
from keepline.hub.upgrade import SocketDoor
from keepline.hub.worker_wire import (
    Ask,
    Beat,
    Deliver,
    Elsewhere,
    Messages,
    Read,
    Recheck,
    Restore,
    Told,
    ToWorker,
    counted_elsewhere,
    parse_to_worker,
    worker_frame,
)

__all__ = ["Worker", "main"]

log = logging.getLogger("keepline.hub")

_LOOK_AT_USERS = 2.0


class Worker:
    """Fans out to the connections that it is handed.

    Args:
        order: the hub that it belongs to.
        reader: what the hub says.
        writer: to the hub.
        hand: where connections come from.
    """

    def __init__(
        self,
        order: Order,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hand: socket.socket,
    ) -> None:
        self._order = order
        self._config = config = order.config
        self._reader, self._writer, self._hand = reader, writer, hand
        self._clock = SYSTEM_CLOCK
        self._registrar = Registrar(
            config.channels, journal_path=None, max_data=config.max_data_bytes
        )
        self._broadcaster = Broadcaster(
            self._registrar.channels.values(), self, limits=config.limits(), slice=config.slice
        )
        self._attendance = Attendance(
            self._clock,
            most={
                "all": config.max_connections,
                "address": config.max_connections_per_address,
                "user": config.max_connections_per_user,
            },
            public=[channel.name for channel in config.channels],
        )
        self._elsewhere: dict[tuple[str, str], int] = {}
        self._attendance.elsewhere = lambda kind, name: self._elsewhere.get((kind, name), 0)
        self._asked: dict[int, asyncio.Future[list[Message]]] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Serve until the link ends."""
        async with HttpSession() as http:
            settings = self._config.gate or GateSettings(directory=self._config.directory)
            gate = await asyncio.to_thread(make_gate, settings, http, follows=True)
            await gate.start()
            runner = await self._open(gate)
            loop = asyncio.get_running_loop()
            loop.add_reader(self._hand, self._take, runner.server)
            work = [loop.create_task(each) for each in (self._beat(), self._look(gate))]
            try:
                await self._hear()
            finally:
                loop.remove_reader(self._hand)
                self._door.draining = True
                if len(self._attendance):
                    seconds = self._config.drain_seconds
                    await self._attendance.send_away(CloseCode.SHUTTING_DOWN, seconds)
                for task in (*work, *self._tasks):
                    task.cancel()
                await asyncio.gather(*work, *self._tasks, return_exceptions=True)
                await runner.cleanup()
                await self._broadcaster.close()
                await gate.close()

    async def read(self, channel: str, after: int, limit: int) -> list[Message]:
        """Messages that memory no longer has, from the hub.

        Raises:
            TransientError: it cannot read them.
        """
        self._number += 1
        number = self._number
        answer: asyncio.Future[list[Message]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._say(Read(number, channel, after, limit))
        try:
            return await answer
        finally:
            del self._asked[number]

    async def _open(self, gate: Gate) -> web.AppRunner:
        config, clock = self._config, self._clock
        names = own_hosts(config.host)
        origins = OriginRules(
            [*own_origins(names, config.port, tls=False), *config.allowed_origins]
        )
        anywhere = config.host in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
        frontage = Frontage(
            hosts=HostRules([*names, *config.allowed_hosts], any_address=anywhere),
            origins=origins,
            gate=gate,
            clock=clock,
            tls=False,
            most_per_address=config.max_connections_per_address + 100,
        )
        shared: dict[str, Any] = {
            "gate": gate,
            "broadcaster": self._broadcaster,
            "attendance": self._attendance,
            "clock": clock,
        }
        self._gate = gate
        self._door = SocketDoor(config, origins=origins, **shared)
        self._api = HttpApi(config, registrar=self._registrar, **shared)
        self._broadcaster.start()
        application = frontage.application([web.get(SOCKET_PATH, self._door.answer)])
        application.on_response_prepare.append(_once)
        runner = frontage.runner(application, handshake_seconds=config.handshake_timeout_seconds)
        await runner.setup()
        assert runner.server is not None
        frontage.watch(runner.server)
        return runner

    def _take(self, server: Any) -> None:
        """A connection, or several, that the hub accepted."""
        while True:
            try:
                _, descriptors, _, _ = socket.recv_fds(self._hand, 16, 1)
            except BlockingIOError:
                return
            if not descriptors:
                return  # the hub is gone, and the link says so too
            sock = socket.socket(fileno=descriptors[0])
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            self._start(loop.connect_accepted_socket(server, sock))

    async def _hear(self) -> None:
        with contextlib.suppress(OSError, ProtocolError):
            while (payload := await read_frame(self._reader)) is not None:
                self._obey(parse_to_worker(payload))

    def _obey(self, word: ToWorker) -> None:
        match word:
            case Deliver(message, retained):
                self._registrar.channels[message.channel].retained = retained
                self._broadcaster.deliver(message)
            case Restore():
                self._registrar.channels[word.channel].retained = word.retained
                self._broadcaster.restore(
                    word.channel, word.messages, offset=word.offset, epoch=word.epoch
                )
            case Messages(ask, messages):
                self._answer(ask, messages)
            case Elsewhere(counts):
                self._elsewhere = {(kind, name): count for kind, name, count in counts}
            case Recheck():
                self._start(self._recheck())
            case Ask(ask):
                self._start(self._tell(ask))

    def _answer(self, ask: int, messages: Sequence[Message] | None) -> None:
        answer = self._asked.get(ask)
        if answer is None or answer.done():
            return
        if messages is None:
            answer.set_exception(TransientError("the hub cannot read its journal"))
        else:
            answer.set_result(list(messages))

    async def _recheck(self) -> None:
        await self._gate.look()
        self._attendance.recheck()

    async def _tell(self, ask: int) -> None:
        self._broadcaster.tally.report()
        self._attendance.gauge()
        metrics = await asyncio.to_thread(telemetry.render_metrics)
        self._say(Told(ask, tuple(self._api.here()), metrics))

    async def _beat(self) -> None:
        while True:
            if not self._writer.transport.get_write_buffer_size():
                counts = counted_elsewhere([self._attendance.counts()])
                self._say(Beat(len(self._attendance), counts))
            await self._clock.sleep(self._order.beat_seconds)

    async def _look(self, gate: Gate) -> None:
        users = 0.0
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            self._broadcaster.adjust()
            self._attendance.look()
            self._broadcaster.tally.report()
            users += LOOK_SECONDS
            if users >= _LOOK_AT_USERS:
                users = 0.0
                if await gate.look():
                    self._attendance.recheck()

    def _say(self, word: Beat | Read | Told) -> None:
        if not self._writer.transport.is_closing():
            self._writer.write(worker_frame(word))

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            telemetry.event(
                log, logging.WARNING, "Worker's task failed", error=type(error).__name__
            )


def main(arguments: Sequence[str]) -> int:
    """Be a worker until the link ends; the program's exit code."""
    try:
        link, hand = (socket.socket(fileno=int(each)) for each in arguments)
    except (ValueError, OSError):
        sys.stderr.write("this is started by the hub, not by hand\n")
        return 2
    try:
        order = read_order(received(link))
        told = order.log
        telemetry.setup_logging(told.level, log_file=told.file, log_format=told.format)
    except (KeeplineError, OSError):
        return 1
    end_hard_without(link, order.config.drain_seconds + order.grace_seconds)
    hand.setblocking(False)
    factory = None
    if find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(order, link, hand))


async def _serve(order: Order, link: socket.socket, hand: socket.socket) -> int:
    reader, writer = await asyncio.open_unix_connection(sock=link)
    await Worker(order, reader, writer, hand).run()
    return 0


async def _once(request: web.Request, response: web.StreamResponse) -> None:
    """Whoever is not let in starts anew at the hub: other addresses are answered there alone."""
    if not isinstance(response, web.WebSocketResponse):
        response.force_close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
