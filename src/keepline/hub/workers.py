"""More processes that fan out (Linux): the hub accepts, and hands the sockets of live connections to its workers.

Invariants: the hub alone numbers, stores, signs in, revokes, throttles and answers everything but live connections; a
message reaches each worker in the order of offsets, after the state of its channel; a worker that gives no sign of life
is killed and replaced; without workers, or for what is no plain WebSocket request, the hub serves by itself.

A connection's first bytes are looked at without being taken (`MSG_PEEK`), and the kernel says nothing of connections
that send none (`TCP_DEFER_ACCEPT`), so a silent stranger costs nothing here.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import KeeplineError, ProtocolError
from keepline.hub.bus import read_frame
from keepline.hub.bus_wire import framed
from keepline.hub.messages import Message
from keepline.hub.process import LogSettings, Order, order_text
from keepline.hub.registrar import Outlet, Registrar
from keepline.hub.settings import HubConfig
from keepline.hub.worker_wire import (
    Ask,
    Beat,
    Deliver,
    Elsewhere,
    FromWorker,
    Messages,
    Read,
    Recheck,
    Told,
    ToWorker,
    counted_elsewhere,
    parse_from_worker,
    restoring,
    worker_frame,
)
from keepline.resilience.backoff import Backoff
from keepline.telemetry import REGISTRY, event

__all__ = ["Everywhere", "Workers"]

log = logging.getLogger("keepline.hub")

RESTARTS = REGISTRY.counter("hub_worker_restarts_total", "Workers that were replaced.")

_MAIN = "keepline.hub.worker_main"
_BACKOFF = Backoff((0.1, 0.5, 2.0, 10.0), jitter=0.2)
_MOST_BEHIND = 64 << 20
_LIVE = b"GET /ws/analytics"
_TCP_DEFER_ACCEPT = getattr(socket, "TCP_DEFER_ACCEPT", None)
_GRACE_SECONDS = 8.0
_START_SECONDS = 20.0
_ANSWER_SECONDS = 2.0

Counts = Mapping[tuple[str, str], int]


class Workers:
    """The workers of one hub, and the socket that they all live on.

    Args:
        config: the hub's, with how many.
        registrar: has the channels, and reads what memory no longer has.
        own: what the hub's own loop counts of its connections.
        beat_seconds: between two signs of life.
        silence_seconds: without one a worker is given up.
        log: how workers log.
        clock: for waits.
    """

    def __init__(
        self,
        config: HubConfig,
        registrar: Registrar,
        *,
        own: Callable[[], Counts],
        beat_seconds: float = 1.0,
        silence_seconds: float = 10.0,
        log: LogSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._config = config
        self._registrar = registrar
        self._own = own
        self._beat_seconds = beat_seconds
        self._silence_seconds = silence_seconds
        self._log = log or LogSettings()
        self._clock = clock
        self._public = frozenset(channel.name for channel in config.channels)
        self._port = 0
        self._live: list[_Worker] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._next = 0
        self._elsewhere: dict[tuple[str, str], int] = {}
        self._complete = asyncio.Event()
        self._closing = False

    async def start(self, port: int) -> None:
        """Start them; return when each serves or has failed once.

        Args:
            port: where the hub listens.
        """
        self._port = port
        self._closing = False
        first = [asyncio.Event() for _ in range(self._config.workers)]
        self._keepers = [asyncio.create_task(self._keep(event)) for event in first]
        await asyncio.gather(*(event.wait() for event in first))

    def listen(self, sockets: Sequence[socket.socket], server: Callable[[], Any]) -> None:
        """Accept from now on.

        Args:
            sockets: bound.
            server: makes the protocol of what stays here.
        """
        loop = asyncio.get_running_loop()
        for each in sockets:
            if _TCP_DEFER_ACCEPT is not None:
                seconds = max(1, int(self._config.handshake_timeout_seconds))
                each.setsockopt(socket.IPPROTO_TCP, _TCP_DEFER_ACCEPT, seconds)
            each.listen(4096)
            self._accepting.append(loop.create_task(self._accept(each, server)))

    async def hang_up(self) -> None:
        """Accept nobody any more."""
        await _cancelled(self._accepting)

    async def close(self) -> None:
        """Have them send their clients away, and end."""
        self._closing = True
        await self.hang_up()
        for worker in self._live:
            worker.tell_to_end()
        limit = self._config.drain_seconds + _GRACE_SECONDS
        await asyncio.gather(*(worker.ended(limit) for worker in self._live))
        await _cancelled(self._keepers)

    async def complete(self) -> None:
        """Return when all of them serve."""
        await self._complete.wait()

    # what the hub has for them

    def deliver(self, message: Message) -> None:
        """Let their clients have the next message of its channel."""
        if not self._live or message.channel not in self._public:
            return
        retained = self._registrar.channels[message.channel].retained
        frame = worker_frame(Deliver(message, retained))
        for worker in self._live:
            worker.write(frame)

    def recheck(self) -> None:
        """Users or revocations changed."""
        for worker in self._live:
            worker.say(Recheck())

    async def told(self) -> list[Told]:
        """Who is connected to them, and their numbers; of those that answer in time."""
        answers = (worker.ask(self._clock, _ANSWER_SECONDS) for worker in self._live)
        found = await asyncio.gather(*answers)
        return [each for each in found if each is not None]

    # what there is to say about them

    @property
    def pids(self) -> list[int]:
        """The processes that serve."""
        return [worker.pid for worker in self._live]

    @property
    def clients(self) -> int:
        """How many clients they have, by their last signs of life."""
        return sum(worker.clients for worker in self._live)

    def counted(self, kind: str, name: str) -> int:
        """How many places they have taken."""
        return self._elsewhere.get((kind, name), 0)

    def troubles(self) -> list[str]:
        """What `/readyz` should say."""
        missing = self._config.workers - sum(each.serves.is_set() for each in self._live)
        return [f"{missing} of {self._config.workers} workers do not serve"] if missing else []

    def __repr__(self) -> str:
        return f"<Workers {self.pids}>"

    # inside

    async def _keep(self, first: asyncio.Event) -> None:
        failures = 0
        while True:
            worker = _Worker(self._heard, self._answered, self._clock)
            try:
                await worker.spawn(self._order())
                self._begin(worker)
                worker.on_serving = first.set
                reason = await worker.until_over(self._silence_seconds)
            except OSError as error:
                reason = str(error)
            finally:
                self._forget(worker)
                await worker.kill()
                first.set()
            if self._closing:
                return
            failures = 1 if worker.serves.is_set() else failures + 1
            event(log, logging.ERROR, "Worker lost", pid=worker.pid, reason=reason)
            RESTARTS.inc()
            await self._clock.sleep(_BACKOFF.delay(failures, self._clock.chance()))

    def _order(self) -> Order:
        config = msgspec.structs.replace(self._config, port=self._port, workers=0)
        return Order(
            config=config,
            bus=None,
            log=self._log,
            beat_seconds=self._beat_seconds,
            grace_seconds=_GRACE_SECONDS,
        )

    def _begin(self, worker: "_Worker") -> None:
        """In one turn of the loop: no message can come between a channel's state and what follows it."""
        for name in self._public:
            worker.say(restoring(self._registrar.channels[name]))
        self._live.append(worker)

    def _forget(self, worker: "_Worker") -> None:
        if worker in self._live:
            self._live.remove(worker)
        self._complete.clear()
        self._count()

    def _heard(self, worker: "_Worker", beat: Beat) -> None:
        if sum(each.serves.is_set() for each in self._live) == self._config.workers:
            self._complete.set()
        worker.counts = {(kind, name): count for kind, name, count in beat.counts}
        self._count()
        others = [each.counts for each in self._live if each is not worker]
        worker.say(Elsewhere(counted_elsewhere([self._own(), *others])))

    def _count(self) -> None:
        total = counted_elsewhere(each.counts for each in self._live)
        self._elsewhere = {(kind, name): count for kind, name, count in total}

    async def _answered(self, worker: "_Worker", asked: Read) -> None:
        try:
            found = await self._registrar.read(asked.channel, asked.after, asked.limit)
        except KeeplineError as error:
            event(log, logging.ERROR, "Journal not read", channel=asked.channel, error=str(error))
            worker.say(Messages(asked.ask, None))
        else:
            worker.say(Messages(asked.ask, tuple(found)))

    async def _accept(self, listening: socket.socket, server: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except (
                OSError
            ) as error:  # no more descriptors: those who wait are served a little later
                event(log, logging.WARNING, "Connection not accepted", error=str(error))
                await self._clock.sleep(0.1)
                continue
            if not (_is_live(sock) and self._hand_over(sock)):
                with contextlib.suppress(OSError):
                    await loop.connect_accepted_socket(server, sock)

    def _hand_over(self, sock: socket.socket) -> bool:
        for _ in range(len(self._live)):
            self._next += 1
            worker = self._live[self._next % len(self._live)]
            if worker.serves.is_set() and worker.take(sock):
                sock.close()
                return True
        return False


class Everywhere:
    """The outlet of a hub with workers: its own clients first, then theirs.

    Args:
        own: the hub's own.
        workers: the others.
    """

    def __init__(self, own: Outlet, workers: Workers) -> None:
        self._own = own
        self._workers = workers

    def deliver(self, message: Message) -> None:
        """Let everybody have the next message of its channel."""
        self._own.deliver(message)
        self._workers.deliver(message)


class _Worker:
    """One process, seen from the hub."""

    def __init__(
        self,
        heard: Callable[["_Worker", Beat], None],
        answered: Callable[["_Worker", Read], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self.serves = asyncio.Event()
        self.counts: Counts = {}
        self.clients = 0
        self.pid = 0
        self.on_serving: Callable[[], object] = lambda: None
        self._heard_at = clock.boottime()
        self._heard = heard
        self._answered = answered
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._hand: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: dict[int, asyncio.Future[Told | None]] = {}
        self._behind = asyncio.Event()
        self._number = 0

    async def spawn(self, order: Order) -> None:
        link, link_there = socket.socketpair()
        hand, hand_there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        hand.setblocking(False)
        self._hand = hand
        there = (link_there.fileno(), hand_there.fileno())
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", _MAIN, *map(str, there)),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=there,
                start_new_session=True,
            )
        except BaseException:
            link.close()
            raise
        finally:
            link_there.close()
            hand_there.close()
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_unix_connection(sock=link)
        self._writer.write(framed(order_text(order)))
        self._start(self._hear(reader))

    def say(self, word: ToWorker) -> None:
        self.write(worker_frame(word))

    def write(self, frame: bytes) -> None:
        if self._writer is None or self._writer.transport.is_closing():
            return
        self._writer.write(frame)
        if self._writer.transport.get_write_buffer_size() > _MOST_BEHIND:
            self._behind.set()

    def take(self, sock: socket.socket) -> bool:
        """Give it a connection; False when it takes none just now."""
        if self._hand is None:
            return False
        try:
            socket.send_fds(self._hand, [b"c"], [sock.fileno()])
        except OSError:
            return False
        return True

    async def ask(self, clock: Clock, seconds: float) -> Told | None:
        self._number += 1
        number = self._number
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self.say(Ask(number))
        try:
            return await within(clock, seconds, answer)
        except TimeoutError:
            return None
        finally:
            self._asked.pop(number, None)

    async def until_over(self, silence: float) -> str:
        """Return, with the reason, when it is of no use any more."""
        assert self._process is not None
        ends = {
            asyncio.ensure_future(self._process.wait()): "its process ended",
            asyncio.ensure_future(self._silence(silence)): f"no sign of life for {silence:g} s",
            asyncio.ensure_future(self._behind.wait()): "it takes or says nothing any more",
        }
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return ends[done.pop()]
        finally:
            await _cancelled(list(ends))

    def tell_to_end(self) -> None:
        if self._writer is not None and self._writer.can_write_eof():
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    async def ended(self, seconds: float) -> None:
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await within(self._clock, seconds, self._process.wait())

    async def kill(self) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    process.kill()
            await process.wait()
        await _cancelled(list(self._tasks))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)
        if self._writer is not None:
            self._writer.transport.abort()
        if self._hand is not None:
            self._hand.close()
            self._hand = None

    async def _silence(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await within(self._clock, _START_SECONDS, self.serves.wait())
        while (left := self._heard_at + seconds - self._clock.boottime()) > 0:
            await self._clock.sleep(left)

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, ProtocolError):
            while (payload := await read_frame(reader)) is not None:
                self._take_in(parse_from_worker(payload))
        self._behind.set()  # it says nothing any more

    def _take_in(self, word: FromWorker) -> None:
        match word:
            case Beat():
                self._heard_at = self._clock.boottime()
                self.clients = word.clients
                self.serves.set()
                self.on_serving()
                self._heard(self, word)
            case Read():
                self._start(self._answered(self, word))
            case Told() if (answer := self._asked.get(word.ask)) and not answer.done():
                answer.set_result(word)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_live(sock: socket.socket) -> bool:
    """Whether it begins as a live connection does; what came in pieces is not waited for."""
    try:
        head = sock.recv(len(_LIVE) + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    return head[:-1] == _LIVE and head[-1:] in (b" ", b"?")


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
