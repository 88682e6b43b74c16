"""One connection to Schwab's streamer: where it is, is asked anew each time, then the wire does the talking.

Invariants: a token goes to no address without TLS (loopback alone excepted); what the streamer says of itself and what
cannot be read reaches the log and the counters, never a callback; account activity is heard before anything waits.
"""

import logging
import ssl
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from keepline import telemetry
from keepline.brokers.schwab.client import SchwabClient
from keepline.brokers.schwab.messages import StreamerInfo
from keepline.brokers.schwab.streamer_messages import AccountActivity, Notice, Unreadable
from keepline.brokers.schwab.streamer_state import SeenActivity
from keepline.brokers.schwab.streamer_wire import NOTICES, UNREADABLE, SchwabWire
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import Closed, PermanentError
from keepline.stream.port import Link, Lost, Sink, Topic
from keepline.stream.recorder import RecordedConnection
from keepline.stream.tokens import StreamTokens
from keepline.stream.weblink import WireLink

__all__ = ["SchwabLink"]

log = logging.getLogger("keepline.stream")

UNREAD = telemetry.REGISTRY.counter(
    "stream_unreadable_total",
    "Events that could not be read, or that take something back.",
    "channel",
)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PREFERENCE = "GET /trader/v1/userPreference"


class SchwabLink:
    """A `keepline.stream.port.Link`; a new one for each connection.

    Args:
        client: knows where the streamer is.
        tokens: whatever gives the token for the login.
        seen: which account activities were told already.
        heard: gets each new account activity at once; synchronous and cheap.
        ssl_context: whom to trust.
        answer_timeout: seconds that a command's answer may take.
        server_timeout: seconds without any frame after which the connection is dead.
        clock: time.
        record: the tap of a recording.
        played: a connection to use in the place of a new one, for replays.
    """

    def __init__(
        self,
        client: SchwabClient,
        tokens: StreamTokens,
        *,
        seen: SeenActivity | None = None,
        heard: Callable[[AccountActivity], object] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        answer_timeout: float = 15.0,
        server_timeout: float = 30.0,
        clock: Clock = SYSTEM_CLOCK,
        record: RecordedConnection | None = None,
        played: Link | None = None,
    ) -> None:
        self._client, self._tokens, self._clock = client, tokens, clock
        self._record, self._played = record, played
        self._seen = seen if seen is not None else SeenActivity()
        self._heard = heard
        self._ssl = ssl_context
        self._answer_timeout, self._server_timeout = answer_timeout, server_timeout
        self._inner: Link | None = None
        self._sink: Sink | None = None

    async def open(self, sink: Sink) -> None:
        """Ask where the streamer is, connect, log in.

        Raises:
            APIError: it did not work; `PermanentError` with status 401 for a dead token.
            CredentialError: there is no token.
        """
        if self._sink is not None:
            raise Closed("a link is opened once: make a new one")
        self._sink = sink
        self._inner = self._played if self._played is not None else await self._made()
        await self._inner.open(self._hear)

    async def subscribe(self, topic: Topic) -> None:
        """Ask for a topic; returns once Schwab confirmed it.

        Raises:
            APIError: refused, or the connection ended first.
        """
        await self._opened().subscribe(topic)

    async def unsubscribe(self, topic: Topic) -> None:
        """End a topic.

        Raises:
            APIError: refused, or the connection ended first.
        """
        await self._opened().unsubscribe(topic)

    async def probe(self) -> None:
        """Ask for a service's fields once more.

        Raises:
            APIError: no answer came.
        """
        await self._opened().probe()

    async def close(self) -> None:
        """Log out and let go of everything."""
        if self._inner is not None:
            await self._inner.close()
            self._note_end(Lost("stopped"))

    async def closed(self) -> Lost:
        """Return once the connection has ended.

        Raises:
            Closed: it was never opened.
        """
        lost = await self._opened().closed()
        self._note_end(lost)
        return lost

    async def _made(self) -> WireLink:
        info = await self._where()
        wire = SchwabWire(
            info,
            seen=self._seen,
            answer_timeout=self._answer_timeout,
            server_timeout=self._server_timeout,
        )
        return WireLink(
            wire,
            info.streamer_socket_url,
            self._tokens,
            ssl_context=self._ssl,
            clock=self._clock,
            tap=None if self._record is None else self._tap,
        )

    def _tap(self, frame: bytes | str, at: float) -> None:
        if self._record is not None:
            self._record(self._tokens.hidden_in(frame), at)

    async def _where(self) -> StreamerInfo:
        infos = (await self._client.user_preference()).streamer_info
        if not infos:
            words = "no streamer is named there: the app needs the product for streaming"
            raise PermanentError(words, endpoint=_PREFERENCE)
        parts = urlsplit(infos[0].streamer_socket_url)
        safe = parts.scheme == "wss" or (parts.scheme == "ws" and parts.hostname in _LOOPBACK)
        if not safe or not parts.hostname:
            raise PermanentError("the streamer's address is not wss://", endpoint=_PREFERENCE)
        return infos[0]

    def _note_end(self, lost: Lost) -> None:
        record, self._record = self._record, None
        if record is not None:
            record.lost(lost.reason, self._clock.boottime())

    def _opened(self) -> Link:
        if self._inner is None:
            raise Closed("the link was not opened")
        return self._inner

    def _hear(self, channel: str, arguments: Sequence[Any], at: float) -> None:
        message = arguments[1]
        if channel == UNREADABLE:
            self._unread(message)
            return
        if channel == NOTICES:
            self._noticed(message)
            return
        if isinstance(message, AccountActivity) and self._heard is not None:
            self._heard(message)
        assert self._sink is not None
        self._sink(channel, arguments, at)

    @staticmethod
    def _noticed(notice: Notice) -> None:
        telemetry.event(
            log, logging.WARNING, "Streamer notice", code=notice.code, words=notice.words
        )

    @staticmethod
    def _unread(message: Unreadable) -> None:
        UNREAD.inc("streamer")
        telemetry.event(log, logging.WARNING, "Streamer unreadable", reason=message.reason)

    def __repr__(self) -> str:
        return f"<SchwabLink {self._inner!r}>"
