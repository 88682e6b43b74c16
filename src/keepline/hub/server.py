"""`AnalyticsHub`: one server on one port that lets any number of screens see what a desk does, live.

Invariants: a message is numbered by the registrar and fanned out by the broadcaster, and the two meet only in
`Outlet.deliver` and `Source.read`; `publish` never blocks and may be called from any thread; what is never dropped is
on the disk before anybody gets it.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import Closed, ConfigError, KeeplineError, QueueFull
from keepline.http import HttpSession
from keepline.hub.alert_actions import AlertHandler
from keepline.hub.attendance import LOOK_SECONDS, Attendance
from keepline.hub.broadcaster import Broadcaster
from keepline.hub.closecodes import CloseCode
from keepline.hub.frontage import SOCKET_PATH, Frontage, tls_context
from keepline.hub.gate import Gate
from keepline.hub.http_api import HttpApi
from keepline.hub.listening import bind
from keepline.hub.opening import GateSettings, make_gate
from keepline.hub.origins import HostRules, OriginRules, own_hosts, own_origins
from keepline.hub.page import Page
from keepline.hub.process import LogSettings
from keepline.hub.readiness import CANARY_CHANNEL, Readiness
from keepline.hub.registrar import Published, Registrar, report_failure
from keepline.hub.replies import reply
from keepline.hub.settings import HubConfig
from keepline.hub.upgrade import SocketDoor
from keepline.hub.worker_wire import merged_metrics
from keepline.hub.workers import Everywhere, Workers

__all__ = ["AnalyticsHub"]

log = logging.getLogger("keepline.hub")

_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = r"/{name:(?!api/|ws/|login$)[A-Za-z0-9_][A-Za-z0-9_./-]{0,200}}"
_BACKLOG = 4096
_AT_ONCE = 32
_MOST_WAITING = 100_000
_LOOK_AT_USERS = 2.0
_PRUNE_SECONDS = 60.0


class AnalyticsHub:
    """The fan-out server.

    Args:
        config: a `HubConfig`, or a mapping of its fields.
        worker_log: how its workers log, when it has any.
        clock: time.

    Example:
        >>> async with AnalyticsHub({"port": 7999}) as hub:
        ...     hub.publish("lp-performance", "lp-metrics", {"lpName": "LP1"}, key="LP1")
        ...     await hub.publish_durable("alerts", "alert", {"title": "LP gone"})
    """

    def __init__(
        self,
        config: HubConfig | Mapping[str, Any] | None = None,
        *,
        worker_log: LogSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.config = HubConfig.of(config)
        self._clock = clock
        journal = self.config.journal_file or self.config.directory / "hub-messages.db"
        self.registrar = Registrar(
            (*self.config.channels, CANARY_CHANNEL),
            journal_path=None if self.config.memory_only else journal,
            max_data=self.config.max_data_bytes,
            clock=clock,
        )
        self.broadcaster = Broadcaster(
            self.registrar.channels.values(),
            self.registrar,
            limits=self.config.limits(),
            slice=self.config.slice,
            clock=clock,
        )
        self.attendance = Attendance(
            clock,
            most={
                "all": self.config.max_connections,
                "address": self.config.max_connections_per_address,
                "user": self.config.max_connections_per_user,
            },
            public=[channel.name for channel in self.config.channels],
        )
        self.workers = self._make_workers(worker_log) if self.config.workers else None
        self._public = frozenset(channel.name for channel in self.config.channels)
        self._handler: AlertHandler | None = None
        self._inbox: deque[tuple[str, str, bytes, str | None, str | None]] = deque()
        self._inbox_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._gate: Gate | None = None
        self._api: HttpApi | None = None
        self._door: SocketDoor | None = None
        self._readiness: Readiness | None = None
        self._http: HttpSession | None = None
        self._runner: web.AppRunner | None = None
        self._sites: list[web.SockSite] = []
        self._listening: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._busy: asyncio.Future[None] | None = None
        self.port = self.config.port

    # publishing

    def publish(
        self,
        channel: str,
        type: str,
        data: Any,
        *,
        key: str | None = None,
        id: str | None = None,
    ) -> None:
        """Publish a message, from any thread, without waiting.

        Args:
            channel: one of the hub's.
            type: what it is, for example `lp-metrics`.
            data: anything that JSON can say; `msgspec.Raw` for JSON text.
            key: what it is about: on a channel that conflates, the newest per key is kept.
            id: by what it is recognised when it comes again.

        Raises:
            ConfigError: no such channel, a word that is none, data that JSON cannot say or that is too large.
            QueueFull: too many messages wait for the disk or for the hub's loop.
            Closed: the hub does not run.
        """
        text = self._prepared(channel, type, data, key, id)
        loop = self._loop
        if loop is None:
            raise Closed("the hub does not run: start it with `async with` or serve()")
        if self.registrar.durable(channel):
            posted = self.registrar.post(channel, type, text, key=key, id=id)
            posted.add_done_callback(report_failure)
        elif threading.get_ident() == self._thread and not self._inbox:
            self.registrar.publish(channel, type, text, key=key, id=id)
        else:
            self._hand_over(loop, (channel, type, text, key, id))

    async def publish_durable(
        self,
        channel: str,
        type: str,
        data: Any,
        *,
        key: str | None = None,
        id: str | None = None,
    ) -> Published:
        """Publish a message; on a channel that never drops it is on the disk when this returns. Arguments as `publish`.

        Returns:
            Its place in the channel; `new` is False when its id was known.

        Raises:
            StorageError: it is not on the disk, and nobody gets it.
            ConfigError, QueueFull, Closed: as `publish`.
        """
        text = self._prepared(channel, type, data, key, id)
        if self._loop is None:
            raise Closed("the hub does not run: start it with `async with` or serve()")
        return await self.registrar.publish_durable(channel, type, text, key=key, id=id)

    def on_alert(self, handler: AlertHandler | None) -> None:
        """Register who acknowledges, resolves and snoozes alerts; without one the answer is 501."""
        self._handler = handler
        if self._api is not None:
            self._api.alert_handler = handler

    # life

    @property
    def gate(self) -> Gate:
        """Users, keys and rights, once the hub runs."""
        if self._gate is None:
            raise Closed("the hub does not run")
        return self._gate

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        host = self.config.host
        bare = f"[{host}]" if ":" in host and not host.startswith("[") else host or "127.0.0.1"
        return f"{'https' if self.config.tls_certificate else 'http'}://{bare}:{self.port}"

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self.attendance) + (self.workers.clients if self.workers else 0)

    @property
    def reasons(self) -> list[str]:
        """Why it is not ready; nothing when it delivers."""
        return ["the hub does not run"] if self._readiness is None else self._readiness.reasons

    async def ready(self) -> None:
        """Return once a message has gone through the whole path."""
        if self._readiness is None:
            raise Closed("the hub does not run")
        await self._readiness.first()

    async def __aenter__(self) -> "AnalyticsHub":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def serve(self) -> None:
        """Run until cancelled, then send the clients away in good order.

        Raises:
            ConfigError, StorageError, OSError: as `start`.
        """
        await self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            ConfigError: a setting that cannot be, also a TLS certificate.
            StorageError: the journal or the users file cannot be used.
            OSError: the port is taken.
        """
        async with self._turn():
            if self._loop is not None:
                raise ConfigError("the hub runs already", key="hub")
            self._stopping = False
            try:
                await self._open(asyncio.get_running_loop())
            except BaseException:
                await self._close()
                raise

    async def stop(self) -> None:
        """Take no more connections, send the clients away with a code that says come back, and end."""
        async with self._turn():
            await self._close()

    # inside

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One start or stop at a time; whoever comes meanwhile waits for its end."""
        while self._busy is not None:
            await asyncio.wait([self._busy])
        self._busy = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            self._busy.set_result(None)
            self._busy = None

    async def _close(self) -> None:
        self._stopping = True
        if self._door is not None:
            self._door.draining = True
        for site in self._sites:
            await site.stop()
        self._sites.clear()
        await asyncio.gather(self._send_away(), self._end_workers())
        self._loop = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self.broadcaster.close()
        await self.registrar.close()
        if self._gate is not None:
            await self._gate.close()
        if self._http is not None:
            await self._http.close()
        self._gate = self._http = self._api = self._door = self._readiness = None
        telemetry.event(log, logging.INFO, "Hub stopped", port=self.port)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._http = HttpSession()
        settings = self.config.gate or GateSettings(directory=self.config.directory)
        context, page = await asyncio.to_thread(self._read_files, settings)
        gate = self._gate = await asyncio.to_thread(
            make_gate, settings, self._http, clock=self._clock
        )
        await gate.start()
        self.broadcaster.start()
        workers = self.workers
        await self.registrar.start(
            Everywhere(self.broadcaster, workers) if workers else self.broadcaster
        )
        with self._inbox_lock:
            self._inbox.clear()  # what came too late for an earlier life
        self._loop, self._thread = loop, threading.get_ident()
        await self._listen(gate, page, context)
        self._tasks = [
            loop.create_task(self._look()),
            loop.create_task(self._look_at_users(gate)),
            loop.create_task(self._prune()),
        ]
        if self._readiness is not None:
            self._tasks.append(loop.create_task(self._readiness.run()))
        for task in self._tasks:
            task.add_done_callback(_ended)
        telemetry.event(log, logging.INFO, "Hub listens", url=self.url)

    def _read_files(self, settings: GateSettings) -> tuple[ssl.SSLContext | None, Page]:
        settings.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.config.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        page = Page(self.config.page or _PAGE)
        page.load()
        certificate, key = self.config.tls_certificate, self.config.tls_key
        if certificate is None or key is None:
            return None, page
        try:
            return tls_context(certificate, key), page
        except OSError as error:
            words = f"{certificate} and {key} are no certificate with its key: {error}"
            raise ConfigError(words, key="tls_certificate") from None

    async def _listen(self, gate: Gate, page: Page, context: ssl.SSLContext | None) -> None:
        host = self.config.host
        names = own_hosts(host)
        sockets = self._listening = await bind(
            host, self.config.port
        )  # origins hold the port, so it is bound first
        self.port = sockets[0].getsockname()[1]
        origins = OriginRules(
            [*own_origins(names, self.port, tls=context is not None), *self.config.allowed_origins]
        )
        anywhere = host in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
        frontage = Frontage(
            hosts=HostRules([*names, *self.config.allowed_hosts], any_address=anywhere),
            origins=origins,
            gate=gate,
            clock=self._clock,
            tls=context is not None,
            most_per_address=self.config.max_connections_per_address + 100,
        )
        self._serve_routes(gate, origins, page)
        assert self._api is not None
        assert self._door is not None
        routes = [
            *self._api.routes(),
            web.get(SOCKET_PATH, self._door.answer),
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
            web.get("/", _async(page)),
            web.get(_PAGE_FILES, _async(page)),
        ]
        self._runner = frontage.runner(
            frontage.application(routes), handshake_seconds=self.config.handshake_timeout_seconds
        )
        await self._runner.setup()
        assert self._runner.server is not None
        frontage.watch(self._runner.server)
        if self.workers is not None:
            await self.workers.start(self.port)
            self.workers.listen(sockets, self._runner.server)
            return
        for each in sockets:
            site = web.SockSite(self._runner, each, ssl_context=context, backlog=_AT_ONCE)
            self._sites.append(site)
            await site.start()
            each.listen(
                _BACKLOG
            )  # so many may wait in the kernel; asyncio takes `backlog` of them in one turn

    def _serve_routes(self, gate: Gate, origins: OriginRules, page: Page) -> None:
        self._door = SocketDoor(
            self.config,
            gate=gate,
            origins=origins,
            broadcaster=self.broadcaster,
            attendance=self.attendance,
            clock=self._clock,
        )
        self._api = HttpApi(
            self.config,
            gate=gate,
            registrar=self.registrar,
            broadcaster=self.broadcaster,
            attendance=self.attendance,
            clock=self._clock,
        )
        self._api.alert_handler = self._handler
        if self.workers is not None:
            self._api.elsewhere = self._others
            self.attendance.elsewhere = self.workers.counted
        self._readiness = Readiness(
            self.registrar,
            self.broadcaster,
            clock=self._clock,
            every_seconds=self.config.canary_seconds,
            reasons=self._troubles,
        )

    def _troubles(self) -> list[str]:
        found = []
        if self._stopping:
            found.append("the hub is shutting down")
        if not self._sites and not self._listening:
            found.append("the hub does not listen")
        if any(task.done() for task in self._tasks):
            found.append("a part of the hub has failed: the log says which")
        if self.workers is not None:
            found += self.workers.troubles()
        journal = self.registrar.journal
        if journal is not None and journal.failure is not None:
            found.append(f"the journal cannot be written: {journal.failure}")
        return found

    async def _healthz(self, request: web.Request) -> web.Response:
        return reply(200, {"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        reasons = self.reasons
        return reply(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})

    async def _metrics(self, request: web.Request) -> web.Response:
        self.broadcaster.tally.report()
        self.attendance.gauge()
        text = await asyncio.to_thread(telemetry.render_metrics)
        if self.workers is not None:
            text = merged_metrics(text, [told.metrics for told in await self.workers.told()])
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=text, headers=headers)

    async def _look(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            self.registrar.adjust()
            self.broadcaster.adjust()
            self.attendance.look()
            self.broadcaster.tally.report()

    async def _look_at_users(self, gate: Gate) -> None:
        while True:
            await self._clock.sleep(_LOOK_AT_USERS)
            if await gate.look():
                self._recheck()

    async def _prune(self) -> None:
        while True:
            await self._clock.sleep(_PRUNE_SECONDS)
            try:
                await self.registrar.prune()
            except KeeplineError as error:  # what is too old stays for a minute more
                telemetry.event(log, logging.WARNING, "Journal not pruned", error=str(error))

    async def revoke(self, user: str) -> None:
        """Make every token of a user void up to now, and end its connections.

        Raises:
            StorageError: it could not be written; the tokens still count.
        """
        await self.gate.revoke(user)
        self._recheck()

    def _recheck(self) -> None:
        self.attendance.recheck()
        if self.workers is not None:
            self.workers.recheck()

    def _make_workers(self, worker_log: LogSettings | None) -> Workers:
        return Workers(
            self.config,
            self.registrar,
            own=self.attendance.counts,
            log=worker_log,
            clock=self._clock,
        )

    async def _others(self) -> list[dict[str, Any]]:
        assert self.workers is not None
        return [client for told in await self.workers.told() for client in told.clients]

    async def _send_away(self) -> None:
        if len(self.attendance):
            await self.attendance.send_away(CloseCode.SHUTTING_DOWN, self.config.drain_seconds)

    async def _end_workers(self) -> None:
        if self.workers is not None:
            await self.workers.close()
        for each in self._listening:
            each.close()
        self._listening = []

    def _prepared(
        self, channel: object, type: str, data: Any, key: str | None, id: str | None
    ) -> bytes:
        if not isinstance(channel, str) or channel not in self._public:
            known = ", ".join(sorted(self._public))
            raise ConfigError(f"there is no channel {channel!r}; there are {known}", key="channel")
        return self.registrar.prepared(channel, type, data, key, id)

    def _hand_over(
        self,
        loop: asyncio.AbstractEventLoop,
        message: tuple[str, str, bytes, str | None, str | None],
    ) -> None:
        with self._inbox_lock:
            if len(self._inbox) >= _MOST_WAITING:
                raise QueueFull(f"{_MOST_WAITING} messages wait for the hub's loop")
            first = not self._inbox
            self._inbox.append(message)
        if first:
            try:
                loop.call_soon_threadsafe(self._empty_inbox)
            except RuntimeError:
                with self._inbox_lock:
                    self._inbox.clear()
                raise Closed("the hub's loop is closed") from None

    def _empty_inbox(self) -> None:
        with self._inbox_lock:
            messages = list(self._inbox)
            self._inbox.clear()
        if self._loop is None:
            return
        for channel, kind, text, key, own in messages:
            self.registrar.publish(channel, kind, text, key=key, id=own)

    def __repr__(self) -> str:
        return f"<AnalyticsHub {self.url}, {len(self.attendance)} clients>"


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        words = f"{type(error).__name__}: {error}"
        telemetry.event(log, logging.ERROR, "Hub part failed", error=words)


def _async(page: Page) -> Any:
    async def answer(request: web.Request) -> web.Response:
        return page.answer(request)

    return answer
