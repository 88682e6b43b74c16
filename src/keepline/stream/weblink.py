"""A link over an aiohttp WebSocket for any broker whose protocol is a `StreamWire`.

The face moves bytes and keeps one timer for the wire's deadline; the wire decides. Invariants: one reader, one writer
and one timer task for each link, all gone after `close`; frames leave in the order in which the wire made them; the
timer is armed again when it fires or when the deadline comes nearer, never for each message; a peer that does not read
blocks the writer alone.
"""

import asyncio
import contextlib
import logging
import socket as sockets
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import APIError, Closed, ConfigError, TransientError
from keepline.stream.port import (
    Delivered,
    Ended,
    Lost,
    Opened,
    Settled,
    Sink,
    StreamWire,
    Topic,
    WireEvent,
)
from keepline.stream.tokens import StreamTokens, StreamTokenSource
from keepline.stream.websession import SessionLease, borrow_session, dial_error

if TYPE_CHECKING:
    import aiohttp

__all__ = ["WireLink"]

log = logging.getLogger("keepline.stream")

_NEVER = float("inf")
_GOODBYE_SECONDS = (
    2.0  # for the peer's answer to our Close frame: a stop must not hang on a dead peer
)


class WireLink:
    """One WebSocket connection of a broker's stream.

    Args:
        wire: the protocol, a new object for this connection (or what makes one).
        url: `wss://…` (`ws://` on loopback); its query may hold secrets, it is never logged.
        token: whatever gives the token for the login.
        headers: sent with the upgrade.
        ssl_context: whom to trust; None is the system's store.
        max_message_bytes: a larger frame ends the connection.
        clock: time.
        tap: gets every frame with its arrival time before the wire does (recording); one that raises is let go.

    Raises:
        ConfigError: the address is not a WebSocket's.
    """

    def __init__(
        self,
        wire: StreamWire | Callable[[], StreamWire],
        url: str,
        token: StreamTokenSource,
        *,
        headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_message_bytes: int = 16 << 20,
        clock: Clock = SYSTEM_CLOCK,
        tap: Callable[[bytes | str, float], None] | None = None,
    ) -> None:
        self._endpoint = _endpoint_of(url)
        self._wire: StreamWire = wire() if callable(wire) else wire
        self._url = url
        self._tokens = token if isinstance(token, StreamTokens) else StreamTokens(token)
        self._headers = headers
        self._ssl = ssl_context
        self._max_bytes = max_message_bytes
        self._clock = clock
        self._tap = tap
        self._sink: Sink = _nowhere
        self._lease: SessionLease | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.Task[None] | None = None
        self._armed_for = _NEVER
        self._to_write = asyncio.Event()
        self._answers: dict[str, asyncio.Future[None]] = {}
        self._opened: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[Lost] | None = None
        self._said: Lost | None = None

    async def open(self, sink: Sink) -> None:
        """Ask for a token, connect, log in.

        Raises:
            APIError: it did not work; the kinds as in the port.
            CredentialError: there is no token.
            Closed: a link is opened once.
        """
        if self._lost is not None:
            raise Closed("a link is opened once: make a new one")
        loop = asyncio.get_running_loop()
        self._sink, self._lost, self._opened = sink, loop.create_future(), loop.create_future()
        try:
            token = await self._tokens()
            socket = self._socket = await self._connect()
            self._wire.open(token, self._clock.boottime())
            self._tasks = [
                loop.create_task(self._guarded(self._read(socket)), name="stream reader"),
                loop.create_task(self._guarded(self._write(socket)), name="stream writer"),
            ]
            self._attend()
            await self._opened
        except BaseException:
            await self.close()
            raise

    async def subscribe(self, topic: Topic) -> None:
        """Ask for a topic; returns once the broker confirmed it.

        Raises:
            APIError: refused, or the connection ended first.
        """
        self._must_be_open()
        await self._answer(self._wire.subscribe(topic, self._clock.boottime()))

    async def unsubscribe(self, topic: Topic) -> None:
        """End a topic.

        Raises:
            APIError: refused, or the connection ended first.
        """
        self._must_be_open()
        await self._answer(self._wire.unsubscribe(topic, self._clock.boottime()))

    async def probe(self) -> bool:
        """Ask something that the broker must answer; False where there is nothing to ask.

        Raises:
            APIError: the connection ended first.
        """
        self._must_be_open()
        ref = self._wire.probe(self._clock.boottime())
        await self._answer(ref)
        return ref is not None

    async def closed(self) -> Lost:
        """Return once the connection has ended; `close` is still due then.

        Raises:
            Closed: it was never opened.
        """
        if self._lost is None:
            raise Closed("the link was not opened")
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        """Say goodbye and let go of everything; may be called twice."""
        self._end(Lost("stopped"))
        socket, self._socket = self._socket, None
        lease, self._lease = self._lease, None
        try:
            await self._stop_tasks()
            if socket is not None and not socket.closed:
                await self._say_goodbye(socket)
        finally:
            if lease is not None:
                await lease.release()

    async def _stop_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        if self._timer is not None:
            tasks.append(self._timer)
        self._timer = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _say_goodbye(self, socket: "aiohttp.ClientWebSocketResponse") -> None:
        self._wire.close(self._clock.boottime())
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await _send(socket, self._wire.take())
                await socket.close()
        except OSError:
            pass  # nobody listens to a goodbye on a broken connection
        finally:
            if not socket.closed:
                _cut(socket)

    async def _connect(self) -> "aiohttp.ClientWebSocketResponse":
        import aiohttp

        self._lease = borrow_session()
        try:
            return await self._lease.session.ws_connect(
                self._url,
                headers=self._headers,
                max_msg_size=self._max_bytes,
                ssl=self._ssl or True,
                timeout=aiohttp.ClientWSTimeout(ws_close=_GOODBYE_SECONDS),
            )
        except (OSError, aiohttp.ClientError) as error:
            cause = error if isinstance(error, OSError) else None
            raise dial_error(error, endpoint=self._endpoint) from cause

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """A defect in a wire or a sink ends the connection in words, not in silence."""
        try:
            await work
        except Exception as error:
            log.exception("the link to %s failed", self._endpoint)
            self._end(Lost("cut", f"the link failed ({type(error).__name__})"))

    async def _read(self, socket: "aiohttp.ClientWebSocketResponse") -> None:
        import aiohttp

        data = (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
        while self._said is None:
            message = await socket.receive()
            if message.type not in data:
                self._end(_how_it_ended(message))
                return
            now = self._clock.boottime()
            if self._tap is not None:
                self._record(message.data, now)
            self._apply(self._wire.receive(message.data, now), now)
            self._attend()

    def _record(self, data: bytes | str, at: float) -> None:
        assert self._tap is not None
        try:
            self._tap(data, at)
        except Exception:
            self._tap = None
            log.exception("the recording of %s stopped", self._endpoint)

    async def _write(self, socket: "aiohttp.ClientWebSocketResponse") -> None:
        try:
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                await _send(socket, self._wire.take())
        except (
            OSError
        ) as error:  # aiohttp's connection errors are OSErrors; the reader may not see this one
            self._end(Lost("cut", f"writing failed ({type(error).__name__})"))

    async def _watch(self) -> None:
        while (deadline := self._wire.deadline) is not None:
            self._armed_for = deadline
            await self._clock.sleep(deadline - self._clock.boottime())
            self._armed_for = -_NEVER  # what happens now arms nothing: the loop looks again
            now = self._clock.boottime()
            if (due := self._wire.deadline) is not None and due <= now:
                self._apply(self._wire.expire(now), now)
                self._to_write.set()
            if self._said is not None:
                return
        self._armed_for = _NEVER

    def _attend(self) -> None:
        """Something was asked of the wire: let the writer look, and the timer if the deadline came nearer."""
        self._to_write.set()
        deadline = self._wire.deadline
        if deadline is None or deadline >= self._armed_for or self._said is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = deadline
        self._timer = asyncio.get_running_loop().create_task(
            self._guarded(self._watch()), name="stream timer"
        )

    def _apply(self, events: Sequence[WireEvent], now: float) -> None:
        for event in events:
            match event:
                case Delivered(channel, arguments):
                    self._sink(channel, arguments, now)
                case Settled(ref, error):
                    _settle(self._answers.pop(ref, None), error)
                case Opened():
                    _settle(self._opened, None)
                case Ended(lost, error):
                    self._end(lost, error)

    async def _answer(self, ref: str | None) -> None:
        if ref is None:
            return self._attend()
        answer = self._answers[ref] = asyncio.get_running_loop().create_future()
        self._attend()
        try:
            await answer
        finally:
            self._answers.pop(ref, None)

    def _must_be_open(self) -> None:
        if self._socket is None or self._said is not None:
            raise TransientError(
                "the stream is not connected",
                category="network",
                endpoint=self._endpoint,
                sent=False,
            )

    def _end(self, lost: Lost, error: APIError | None = None) -> None:
        if self._said is not None:
            return
        self._said = lost
        if self._lost is not None:
            self._lost.set_result(lost)
        words = f"the connection ended first: {lost.error or lost.reason}"
        failure = error or TransientError(words, category="network")
        failure.endpoint = failure.endpoint or self._endpoint
        for waiting in (self._opened, *self._answers.values()):
            _settle(waiting, failure)
        self._answers.clear()

    def __repr__(self) -> str:
        state = "not open" if self._socket is None else "open"
        return f"<WireLink {self._endpoint} {state if self._said is None else self._said.reason}>"


async def _send(socket: "aiohttp.ClientWebSocketResponse", frames: Sequence[bytes | str]) -> None:
    for frame in frames:
        if isinstance(frame, str):
            await socket.send_str(frame)
        else:
            await socket.send_bytes(frame)


def _cut(socket: "aiohttp.ClientWebSocketResponse") -> None:
    """End a connection whose buffers are full: a Close frame would wait for ever behind them."""
    if (bare := socket.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):
            bare.shutdown(sockets.SHUT_RDWR)


def _settle(answer: asyncio.Future[None] | None, error: APIError | None) -> None:
    if answer is None or answer.done():
        return
    if error is None:
        answer.set_result(None)
    else:
        answer.set_exception(error)
        answer.exception()  # the one who asked may be gone: then nobody is to be told


def _how_it_ended(message: "aiohttp.WSMessage") -> Lost:
    import aiohttp

    if message.type is aiohttp.WSMsgType.CLOSE:
        code = message.data or 1005  # RFC 6455 §7.1.5: a Close frame without a code
        return Lost("close", f"the server closed the WebSocket ({code})")
    if message.type is aiohttp.WSMsgType.ERROR and isinstance(message.data, aiohttp.WebSocketError):
        return Lost("protocol", f"a frame that is not allowed or too large ({message.data.code})")
    return Lost("cut", "the connection was cut without a word (1006)")


def _endpoint_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigError("a ws:// or wss:// address with a host is needed", key="url")
    return f"GET {parts.scheme}://{parts.hostname}{parts.path or '/'}"


def _nowhere(channel: str, arguments: Sequence[Any], at: float) -> None:
    """Before `open` nothing is listened to."""
