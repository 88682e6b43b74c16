"""A link over a SignalR connection: topics become hub methods, the server's targets become channels.

Invariants: a handler is there before its topic is asked for, so no message finds none; the link adds no policy.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keepline.errors import PermanentError
from keepline.stream.connection import SignalRConnection
from keepline.stream.port import Lost, Sink, Topic
from keepline.stream.tokens import StreamTokenSource

__all__ = ["SignalRLink"]


class SignalRLink:
    """One connection to a SignalR hub.

    Args:
        url: the hub, as `SignalRConnection` takes it.
        token: whatever gives the token; None when the hub wants none.
        types: by channel, into what its arguments are decoded, one type for each; plain values without.
        probe: method and arguments of a call that does no harm and must be answered, be it with an error; () for none.
        channels: what is listened to from the first frame on, as a server may speak without being asked.
        options: more of `SignalRConnection`: `encoding`, `transports`, `skip_negotiation`, `token_in`, `tap`, ….

    Raises:
        ConfigError: as `SignalRConnection`.
    """

    def __init__(
        self,
        url: str,
        token: StreamTokenSource | None = None,
        *,
        types: Mapping[str, Sequence[Any]] | None = None,
        probe: Sequence[Any] = (),
        channels: Iterable[str] = (),
        **options: Any,
    ) -> None:
        self._connection = SignalRConnection(url, token, **options)
        self._types = {name.lower(): tuple(kinds) for name, kinds in (types or {}).items()}
        self._probe = tuple(probe)
        self._sink: Sink | None = None
        self._heard: set[str] = set()
        wanted = tuple(channels)
        spelled = {channel.lower() for channel in wanted}
        for channel in (*wanted, *(name for name in types or () if name.lower() not in spelled)):
            self._hear(channel)

    @property
    def connection(self) -> SignalRConnection:
        """The connection itself, for calls and streams."""
        return self._connection

    async def open(self, sink: Sink) -> None:
        """Negotiate, connect, shake hands; errors as `SignalRConnection.start`."""
        self._sink = sink
        await self._connection.start()

    async def subscribe(self, topic: Topic) -> None:
        """Listen to the topic's channel and call its method.

        Raises:
            APIError: as `SignalRConnection.invoke`.
        """
        self._hear(topic.channel)
        if topic.subscribe:
            await self._connection.invoke(*topic.subscribe)

    async def unsubscribe(self, topic: Topic) -> None:
        """Call the topic's method for the end; the channel may have other topics and is still listened to."""
        if topic.unsubscribe:
            await self._connection.invoke(*topic.unsubscribe)

    async def probe(self) -> bool:
        """Make the harmless call; a server's no is an answer too.

        Raises:
            APIError: no answer can come any more.
        """
        if not self._probe:
            return False
        with contextlib.suppress(PermanentError):  # it lives: it said no
            await self._connection.invoke(*self._probe)
        return True

    async def close(self) -> None:
        """Say Close and let go of everything; may be called twice."""
        await self._connection.stop()

    async def closed(self) -> Lost:
        """Return once the connection has ended."""
        return await self._connection.closed()

    def _hear(self, channel: str) -> None:
        if channel in self._heard:
            return
        self._heard.add(
            channel
        )  # as it is spelled: each spelling is a channel to those who subscribed it
        connection = self._connection

        def handle(*arguments: Any) -> None:
            if self._sink is not None:
                self._sink(channel, arguments, connection.received_at)

        connection.on(channel, handle, *self._types.get(channel.lower(), ()))

    def __repr__(self) -> str:
        return f"<SignalRLink {self._connection!r}>"
