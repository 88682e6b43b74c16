"""One connection to a SignalR hub, without policy: what it says is sent, what it hears reaches handlers, it ends once.

Invariants: the reader calls synchronous handlers inline and waits for nobody; every pending call ends, by its answer or
with `OutcomeUnknown`; `closed()` tells why the connection ended; after `stop` no task is left; no token and no secret
of the connection is in a message, a log line or a repr.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.errors import Closed, TransientError
from keepline.stream.answering import Answering
from keepline.stream.binding import Types
from keepline.stream.calls import Calls, ItemQueue, start_failure, unknown
from keepline.stream.events import ConnectionState
from keepline.stream.messages import Invocation
from keepline.stream.plan import Plan
from keepline.stream.port import Lost
from keepline.stream.straight import straight
from keepline.stream.tokens import StreamTokenSource
from keepline.stream.uploads import Uploads, split
from keepline.stream.wire import HubWire
from keepline.stream.wire_events import (
    Answered,
    Cancelled,
    CloseReason,
    Ended,
    HandshakeDone,
    Item,
    Stray,
    Unbound,
    WireEvent,
)
from keepline.telemetry import REGISTRY, event

if TYPE_CHECKING:  # aiohttp comes with the first start
    from keepline.stream.carriage import Carriage

__all__ = ["SignalRConnection"]

log = logging.getLogger("keepline.stream")

_strays = REGISTRY.counter(
    "stream_stray_total", "Messages for calls that are not open, or that fit no handler.", "kind"
)

Tap = Callable[[bytes | str, float], None]


class SignalRConnection:
    """One connection to an ASP.NET Core SignalR hub.

    It is started once and ends once; a new attempt is a new object. Handlers may be added at any time, before the
    start for a hub that speaks at once.

    Args:
        url: the hub, https:// (http:// on loopback with a token); ws and wss are taken as well. Its query is kept.
        access_token: a text, a callable (sync or async) or an object with `get_token()`; asked anew for each
            negotiation and each connect. None when the hub wants none.
        encoding: `json` or `messagepack`.
        transports: which may be used; the server's order counts, the next is tried when one does not start.
        skip_negotiation: go straight to a WebSocket; then there is no connection id and no stateful reconnect.
        token_in: `header`, or `query` for a server that reads only `access_token` from the address.
        stateful: ask for stateful reconnect: a lost transport is replaced without losing a message.
        keep_alive: seconds of our own silence after which a ping goes out.
        server_timeout: seconds of the server's silence after which the connection is lost; at least twice its pings'
            interval (ASP.NET Core pings every 15 s).
        handshake_timeout: seconds for each step of the start.
        result_timeout: seconds within which a call of the server is answered, by a handler or by an error.
        headers: sent with each HTTP request; `Authorization` and `Cookie` not to another origin after a redirect.
        types: into what arguments are decoded, copied; `on(target, handler, *types)` adds to the copy.
        ssl_context: whom to trust; None is the system's store.
        max_message_bytes: a larger message ends the connection.
        max_running: coroutines of handlers that may run at a time; one more is refused and counted.
        tap: gets each chunk as it arrived with its arrival time (boottime seconds), before anything else: to record.
        clock: time.

    Attributes:
        connection_id: the server's public name for it, None before the start or without negotiation.
        transport: which transport carries it, "" before the start.

    Raises:
        ConfigError: the address is none, an option is not known, or options exclude each other.

    Example:
        async with SignalRConnection("https://rtc.topstepx.com/hubs/market", tokens.get_token) as hub:
            hub.on("GatewayQuote", print)
            await hub.invoke("SubscribeContractQuotes", "CON.F.US.MNQ.Z26")
            print(await hub.closed())
    """

    def __init__(
        self,
        url: str,
        access_token: StreamTokenSource | None = None,
        *,
        encoding: str = "json",
        transports: Sequence[str] = ("websockets", "events", "polling"),
        skip_negotiation: bool = False,
        token_in: Literal["header", "query"] = "header",  # noqa: S107 - a place, not a secret
        stateful: bool = False,
        keep_alive: float = 15.0,
        server_timeout: float = 30.0,
        handshake_timeout: float = 15.0,
        result_timeout: float = 15.0,
        headers: Mapping[str, str] | None = None,
        types: Types | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_message_bytes: int = 16 << 20,
        max_running: int = 1000,
        tap: Tap | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._plan = Plan(
            url,
            access_token,
            encoding=encoding,
            transports=transports,
            skip_negotiation=skip_negotiation,
            token_in=token_in,
            stateful=stateful,
            headers=headers,
            ssl_context=ssl_context,
            max_message_bytes=max_message_bytes,
            keep_alive=keep_alive,
            server_timeout=server_timeout,
            handshake_timeout=handshake_timeout,
        )
        self._name = self._plan.name
        self._clock = clock
        self._tap = tap
        self._answering = Answering(
            self._answer,
            clock=clock,
            limit=max_running,
            seconds=result_timeout,
            types=None if types is None else types.copy(),
        )
        self._calls = Calls(self._cancel)
        self._uploads = Uploads(lambda: self._carriage)
        self._state = ConnectionState.DISCONNECTED
        self.connection_id: str | None = None
        self.transport = ""
        self._started = False
        self._starting: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._carriage: Carriage | None = None
        self._life: asyncio.Task[None] | None = None
        self._lost: Lost | None = None
        self._gone = asyncio.Event()

    # ------------------------------------------------------------------------------------------ life

    @property
    def state(self) -> ConnectionState:
        """CONNECTING during the start, CONNECTED, RECONNECTING during a reattach, otherwise DISCONNECTED."""
        return self._state

    @property
    def types(self) -> Types:
        """Into what arguments, results and items are decoded."""
        return self._answering.dispatch.types

    @property
    def received_at(self) -> float:
        """When the newest chunk arrived (boottime seconds), 0 before the first."""
        return 0.0 if self._carriage is None else self._carriage.received_at

    async def start(self) -> None:
        """Negotiate, connect, shake hands; returns when calls may be made.

        Raises:
            TransientError: it may work in a moment; `status` and `retry_after` as the server said.
            PermanentError: it will not work unchanged: a refused token, no hub at the address, a bad certificate, a
                server of another kind.
            CredentialError: the token source has no token.
            ConfigError: a token would travel in clear text, or options exclude each other.
            Closed: it was started before, or stopped meanwhile.
        """
        if self._started:
            raise Closed("a connection is started once: make a new one")
        self._started = True
        self._state = ConnectionState.CONNECTING
        self._starting = asyncio.get_running_loop().create_task(self._start(), name="stream start")
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if self._lost is None:  # it is the caller who gave up
                await self.stop()
                raise
            raise Closed("the connection was stopped while it started") from None
        except BaseException as error:
            self._ended(Lost("failed", str(error)), CloseReason.LOST)
            if self._life is not None:
                await asyncio.wait([self._life])
            raise

    async def stop(self) -> None:
        """Say Close and let go of everything; may be called twice and at any time, also by a handler."""
        self._started = True
        if self._starting is not None and not self._starting.done():
            self._ended(Lost("stopped", None, False), CloseReason.OURS)
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._carriage is None or self._life is None:
            self._ended(Lost("stopped", None, False), CloseReason.OURS)
            return
        self._carriage.close()
        mine = asyncio.current_task()
        if (
            mine not in self._answering.tasks and mine not in self._uploads.tasks
        ):  # they end with it
            await asyncio.wait([self._life])

    async def closed(self) -> Lost:
        """Return as soon as the connection has ended, and why; `stop` waits until nothing of it is left.

        Raises:
            Closed: it was never started.
        """
        if not self._started:
            raise Closed("the connection was not started")
        await self._gone.wait()
        assert self._lost is not None, "told before it is gone"
        return self._lost

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # ------------------------------------------------------------------------------------------ words

    def on(
        self, target: str, handler: Callable[..., Any], *argument_types: Any
    ) -> Callable[[], None]:
        """Call a handler for each message of a target, in any spelling.

        Synchronous handlers run in the reader and must be quick; coroutines run as tasks. What a handler gives back
        answers a server that waits for a result.

        Args:
            target: the server's name for it.
            handler: takes the arguments.
            argument_types: into what they are decoded, one for each; plain values without.

        Returns:
            A callable that removes the handler.

        Raises:
            ConfigError: a type cannot be decoded, or others are registered for the target.
        """
        return self._answering.dispatch.on(target, handler, *argument_types)

    async def invoke(
        self,
        target: str,
        *arguments: Any,
        result_type: Any = Any,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Call a method and wait for its result.

        Arguments that can be iterated asynchronously are uploaded as streams, item by item as there is room.

        Args:
            target: the method.
            arguments: what it takes.
            result_type: into what the result is decoded.
            timeout_seconds: give up after this long; None waits as long as the connection lives.

        Raises:
            PermanentError: the server says no, in its words and with an explanation.
            OutcomeUnknown: the connection or the time ended before the answer came.
            TransientError: there is no connection; nothing was sent.
            ProtocolError: the result has another type than expected.
            ConfigError: an argument cannot be sent.
        """
        name = f"invoke {target}"
        wire = await self._speaking(name)
        plain, streams = split(arguments, wire)
        call_id = wire.invoke(target, plain, result_type, stream_ids=tuple(streams))
        answer = self._calls.expect(call_id, name)
        try:
            with self._uploads.beside(streams):
                self._push()
                if timeout_seconds is None:
                    return await answer
                return await within(self._clock, timeout_seconds, answer)
        except TimeoutError:
            raise unknown(name, f"no answer within {timeout_seconds:g} s", category="timeout") from None  # fmt: skip
        finally:
            self._calls.forget(call_id)
            wire.cancel(call_id)

    async def send(self, target: str, *arguments: Any) -> None:
        """Call a method without waiting for an answer, which never comes, not even an error.

        Returns when the message is written, or kept for a reattach; uploads go on by themselves.

        Raises:
            TransientError: there is no connection; nothing was sent.
            OutcomeUnknown: the connection ended before the message was written.
            ConfigError: an argument cannot be sent.
        """
        name = f"send {target}"
        wire = await self._speaking(name)
        plain, streams = split(arguments, wire)
        wire.send(target, plain, stream_ids=tuple(streams))
        self._uploads.begin(streams)
        self._push()
        assert self._carriage is not None, "there is a wire"
        await self._carriage.room.wait()
        if self._lost is not None:
            raise unknown(name, f"the connection ended: {self._lost.error or self._lost.reason}")

    async def stream(
        self, target: str, *arguments: Any, item_type: Any = Any, buffer: int = 1024
    ) -> AsyncGenerator[Any, None]:
        """Call a streaming method and iterate over its items; leaving the loop cancels it at the server.

        Args:
            target: the method.
            arguments: what it takes.
            item_type: into what each item is decoded.
            buffer: items that may wait to be taken; one more ends this stream.

        Raises:
            PermanentError: the server ended it with an error.
            OutcomeUnknown: the connection ended first.
            QueueFull: the items came faster than they were taken.
            TransientError: there is no connection; nothing was sent.
        """
        name = f"stream {target}"
        queue = ItemQueue(name, buffer)
        wire = await self._speaking(name)
        plain, streams = split(arguments, wire)
        call_id = wire.open_stream(target, plain, item_type, stream_ids=tuple(streams))
        self._calls.expect_items(call_id, queue)
        try:
            with self._uploads.beside(streams):
                self._push()
                while True:
                    try:
                        item = await queue.take()
                    except StopAsyncIteration:
                        return
                    yield item
        finally:
            self._calls.forget(call_id)
            wire.cancel(call_id)
            self._push()

    # ------------------------------------------------------------------------------------- inside

    async def _start(self) -> None:
        from keepline.stream.carriage import Carriage

        dialler = self._plan.dialler()
        dialled = await dialler.dial()
        loop = asyncio.get_running_loop()
        self.transport, self.connection_id = dialled.transport.name, dialled.connection_id
        wire = self._plan.wire(dialled, self.types)
        self._carriage = Carriage(
            wire,
            dialler,
            dialled,
            receive=straight(wire, self._answering.dispatch),
            sink=self._heard,
            ended=self._ended,
            reattaching=self._reattaching,
            tap=None if self._tap is None else self._record,
            clock=self._clock,
        )
        self._opened = loop.create_future()
        self._life = loop.create_task(self._live(self._carriage), name="stream")
        await self._opened
        event(log, logging.INFO, "Stream connected", url=self._name, transport=self.transport)

    async def _live(self, carriage: "Carriage") -> None:
        try:
            await carriage.run()
        finally:
            await self._uploads.stop()
            await self._answering.stop()

    def _heard(self, events: Sequence[WireEvent]) -> None:
        """What happened, in order, without the calls that nobody waits for: those were delivered before."""
        for happened in events:
            hear = _HEARD.get(type(happened))
            if hear is not None:
                hear(self, happened)

    def _hear_open(self, _: HandshakeDone) -> None:
        self._state = ConnectionState.CONNECTED
        if self._carriage is not None:
            self._carriage.attend()  # pings may be due sooner than the answer was
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _hear_unbound(self, happened: Unbound) -> None:
        failure = happened.failure
        _strays.inc("misfit")
        fields = {"target": failure.target, "reason": failure.reason}
        event(log, logging.WARNING, "Stream message does not fit", **fields)

    def _hear_stray(self, happened: Stray) -> None:
        _strays.inc(happened.kind)

    def _record(self, data: bytes | str, at: float) -> None:
        """A recorder that fails stops recording, not the stream."""
        assert self._tap is not None, "set with the tap"
        try:
            self._tap(data, at)
        except Exception as error:
            if self._carriage is not None:
                self._carriage.tap = None
            log.error("Stream recording stopped", exc_info=error, extra={"fields": {"url": self._name}})  # fmt: skip

    def _reattaching(self, begins: bool) -> None:
        self._state = ConnectionState.RECONNECTING if begins else ConnectionState.CONNECTED
        event(log, logging.INFO, "Stream reattaches" if begins else "Stream reattached", url=self._name)  # fmt: skip

    def _ended(self, lost: Lost, how: CloseReason) -> None:
        """Everyone who waits is told at once; what remains is to let go."""
        if self._lost is not None:
            return
        self._lost = lost
        self._gone.set()
        self._state = ConnectionState.DISCONNECTED
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(start_failure(lost, how, self._name))
            self._opened.exception()  # a start that was given up has nobody to tell
        self._calls.lost(f"the connection ended: {lost.error or lost.reason}")
        event(log, logging.INFO, "Stream ended", url=self._name, reason=lost.reason, error=lost.error)  # fmt: skip

    async def _speaking(self, name: str) -> HubWire:
        """The wire, once there is room; calls are made between start and end only."""
        carriage = self._carriage
        while carriage is not None and carriage.wire.blocked and self._lost is None:
            await carriage.room.wait()
        if carriage is None or self._lost is not None or self._state is ConnectionState.CONNECTING:
            why = f"it ended: {self._lost.error or self._lost.reason}" if self._lost else "not started"  # fmt: skip
            raise TransientError(
                f"there is no connection ({why}); nothing was sent",
                category="network",
                endpoint=name,
                sent=False,
            )
        return carriage.wire

    def _push(self) -> None:
        if self._carriage is not None:
            self._carriage.push()

    def _cancel(self, call_id: str) -> None:
        if self._carriage is not None:
            self._carriage.wire.cancel(call_id)

    def _answer(self, call_id: str, result: Any = None, *, error: str | None = None) -> None:
        if self._carriage is not None:
            self._carriage.wire.complete(call_id, result, error=error)
            self._carriage.push()

    def __repr__(self) -> str:
        return f"<SignalRConnection {self._name} {self._state.value}>"


_HEARD: dict[type, Callable[[SignalRConnection, Any], None]] = {
    HandshakeDone: SignalRConnection._hear_open,
    Invocation: lambda self, happened: self._answering.asked(happened),
    Answered: lambda self, happened: self._calls.answered(happened),
    Item: lambda self, happened: self._calls.item(happened),
    Ended: lambda self, happened: self._calls.ended(happened),
    Cancelled: lambda self, happened: self._answering.cancelled(happened.id),
    Unbound: SignalRConnection._hear_unbound,
    Stray: SignalRConnection._hear_stray,
}
