"""The connection manager for SignalR: one kept stream for each hub of a broker, behind one object.

Invariants: the state is the worst of all hubs, the stream is live when all are; a newer token takes over without a gap
where the broker allows two connections; credentials are whatever can be asked for a token.
"""

import asyncio
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.errors import ConfigError
from keepline.stream.delivery import Callback
from keepline.stream.events import ConnectionState, StreamEvent, StreamMessage
from keepline.stream.health import HealthStatus
from keepline.stream.manager import EventRouter, StreamManager, Until, VenueTime
from keepline.stream.port import KeyOf, Link, Reconciling, Topic, key_of_first_text
from keepline.stream.routing import ConflateBy
from keepline.stream.signalr_config import StreamConfig
from keepline.stream.signalr_link import SignalRLink
from keepline.stream.tokens import StreamTokens, StreamTokenSource

__all__ = ["SignalRConnectionManager"]

log = logging.getLogger("keepline.stream")

_STATES = (
    ConnectionState.FAILED,
    ConnectionState.DISCONNECTED,
    ConnectionState.RECONNECTING,
    ConnectionState.CONNECTING,
    ConnectionState.CONNECTED,
)
_HEALTHS = (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.HEALTHY)


class SignalRConnectionManager:
    """SignalR hubs that a bot can rely on.

    Example:
        ```python
        streams = SignalRConnectionManager(tokens, router, {"url": "https://rtc.topstepx.com/hubs/market"})
        quotes = Topic("GatewayQuote", ("SubscribeContractQuotes", "CON.F.US.MNQ.Z26"), key="CON.F.US.MNQ.Z26")
        streams.subscribe(quotes, on_quote)
        await streams.connect()
        ```

    Args:
        token_manager: anything with `await get_token()`, or a callable (sync or async); one with `subscribe` tells of
            newer tokens. None when the hubs want none.
        event_router: gets every message: an object with `route(event)` or a callable, sync or async; None for none.
        config: a `StreamConfig` or a mapping of its fields; `url` is needed.
        key_of: tells to which topic of a channel a message belongs.
        venue_time: tells when the venue says that a message happened.
        clock: time and chance.

    Raises:
        ConfigError: a setting makes no sense.
    """

    def __init__(
        self,
        token_manager: StreamTokenSource | None,
        event_router: EventRouter | Callable[[StreamMessage], object] | None = None,
        config: StreamConfig | Mapping[str, Any] | None = None,
        *,
        key_of: KeyOf = key_of_first_text,
        venue_time: VenueTime | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._config = StreamConfig.of(config)
        self._clock = clock
        self._source = token_manager
        self._forget_tokens: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hubs: dict[str, StreamManager] = {}
        self._tokens: dict[str, StreamTokens] = {}
        for name, url in self._config.hubs.items():
            tokens = None if token_manager is None else StreamTokens(token_manager)
            if tokens is not None:
                self._tokens[name] = tokens
            self._hubs[name] = StreamManager(
                self._factory(name, url, tokens),
                name=f"{self._config.name}/{name}" if name else self._config.name,
                settings=self._config.settings,
                tokens=tokens,
                event_router=event_router,
                key_of=key_of,
                venue_time=venue_time,
                clock=clock,
            )

    # --- the connection ---

    async def __aenter__(self) -> "SignalRConnectionManager":
        try:
            await self.connect()
        except BaseException:
            await self.disconnect()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def connect(self, *, until: Until = "connected") -> None:
        """Connect all hubs and stay connected; errors as `StreamManager.connect`."""
        self._loop = asyncio.get_running_loop()
        self._follow_tokens()
        await _all(hub.connect(until=until) for hub in self._hubs.values())

    async def disconnect(self) -> None:
        """Close all connections; what is wanted stays wanted."""
        forget, self._forget_tokens = self._forget_tokens, None
        if forget is not None:
            forget()
        await _all(hub.disconnect() for hub in self._hubs.values())

    def renew(self, reason: str = "a newer token") -> None:
        """Take new connections, with a newly asked token, in the place of these."""
        for hub in self._hubs.values():
            hub.renew(reason)

    def hub(self, endpoint: str | None = None) -> StreamManager:
        """The manager of one hub.

        Raises:
            ConfigError: there is none of that name, or there are several and none was named.
        """
        if endpoint is None and len(self._hubs) == 1:
            return next(iter(self._hubs.values()))
        if endpoint is None or endpoint not in self._hubs:
            raise ConfigError(f"name one of the endpoints {sorted(self._hubs)}", key="endpoint")
        return self._hubs[endpoint]

    # --- what is wanted ---

    def subscribe(
        self,
        channel: Topic | str,
        callback: Callback | None = None,
        *,
        endpoint: str | None = None,
        inline: bool = False,
        conflate_by: ConflateBy | None = None,
    ) -> Callable[[], None]:
        """Want a channel, now and after every reconnect.

        Args:
            channel: the server's target name, or a `Topic` that says how to ask for it.
            callback: called as `callback(*arguments)`, sync or async.
            endpoint: which hub; None for the only one. A bare name without one is listened to on all hubs.
            inline: a plain function runs on the event loop at once: only for what never blocks.
            conflate_by: under which key messages replace each other.

        Returns:
            A function that ends it.

        Raises:
            ConfigError: as `StreamManager.subscribe`, or which hub is not clear.
        """
        on_all = endpoint is None and isinstance(channel, str)
        hubs = list(self._hubs.values()) if on_all else [self.hub(endpoint)]
        ends = [
            hub.subscribe(channel, callback, inline=inline, conflate_by=conflate_by) for hub in hubs
        ]
        return lambda: _call_each(ends)

    async def invoke(
        self, method: str, *arguments: Any, endpoint: str | None = None, **options: Any
    ) -> Any:
        """Call a method of a hub; options and errors as `SignalRConnection.invoke`.

        Raises:
            StreamNotLive: there is no connection; nothing was sent.
        """
        return await self._connection(endpoint).invoke(method, *arguments, **options)

    async def stream(
        self, method: str, *arguments: Any, endpoint: str | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        """Iterate over what a streaming method gives; options and errors as `SignalRConnection.stream`.

        Raises:
            StreamNotLive: there is no connection; nothing was sent.
        """
        items = self._connection(endpoint).stream(method, *arguments, **options)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    def add_reconciler(
        self,
        reconciler: Reconciling | Callable[[], Awaitable[object]],
        *,
        endpoint: str | None = None,
        channels: Collection[str] | None = None,
    ) -> Callable[[], None]:
        """Run something after each connect of a hub, see `StreamManager.add_reconciler`."""
        return self.hub(endpoint).add_reconciler(reconciler, channels=channels)

    def on_event(
        self, callback: Callable[[StreamEvent], object], *, inline: bool = False
    ) -> Callable[[], None]:
        """Be told what changes on any hub; returns a function that ends it."""
        ends = [hub.on_event(callback, inline=inline) for hub in self._hubs.values()]
        return lambda: _call_each(ends)

    # --- what may be believed ---

    @property
    def state(self) -> ConnectionState:
        """The worst state of all hubs."""
        return min((hub.state for hub in self._hubs.values()), key=_STATES.index)

    @property
    def health(self) -> HealthStatus:
        """The worst health of all hubs; `reasons` says why."""
        return min((hub.health for hub in self._hubs.values()), key=_HEALTHS.index)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong, in words; empty when nothing is."""
        return tuple(reason for hub in self._hubs.values() for reason in hub.reasons)

    @property
    def is_live(self) -> bool:
        """Whether everything that is wanted shows the present."""
        return all(hub.is_live for hub in self._hubs.values())

    def require_live(self, channel: str | None = None, key: str | None = None) -> None:
        """Refuse to go on while blind.

        Raises:
            StreamNotLive: what is shown is not the present, with the reasons.
        """
        hubs = list(self._hubs.values())
        if channel is not None:
            asked = [hub for hub in hubs if any(t.topic.channel == channel for t in hub.standings)]
            hubs = asked or hubs
        for hub in hubs:
            hub.require_live(channel, key)

    def stats(self) -> dict[str, Any]:
        """Numbers and texts of each hub for a status page."""
        return {hub.name: hub.stats() for hub in self._hubs.values()}

    # --- inside ---

    def _factory(self, hub: str, url: str, tokens: StreamTokens | None) -> Callable[[], Link]:
        config = self._config

        def make(channels: Iterable[str] = ()) -> Link:
            return SignalRLink(
                url,
                tokens,
                types=config.types,
                probe=config.probe,
                channels=channels,
                encoding=config.encoding,
                transports=config.transports,
                skip_negotiation=config.skip_negotiation,
                token_in=config.token_in,
                stateful=config.stateful,
                keep_alive=config.keep_alive,
                server_timeout=config.server_timeout,
                handshake_timeout=config.attempt_timeout,
                clock=self._clock,
                **(config.options or {}),
            )

        try:
            make()  # what is wrong with the settings is said here, not at the first dial
        except TypeError as error:
            raise ConfigError(f"not what a connection takes: {error}", key="options") from error
        return lambda: make({one.topic.channel: None for one in self._hubs[hub].standings})

    def _connection(self, endpoint: str | None) -> Any:
        link = self.hub(endpoint).link
        assert isinstance(link, SignalRLink)
        return link.connection

    def _follow_tokens(self) -> None:
        follow = getattr(self._source, "subscribe", None)
        if self._config.renew_with_token and self._forget_tokens is None and callable(follow):
            self._forget_tokens = follow(self._newer_token)

    def _newer_token(self, token: Any) -> None:
        # it may be told on another thread's loop
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._renew_with, token)

    def _renew_with(self, token: Any) -> None:
        for name, hub in self._hubs.items():
            tokens = self._tokens[name]
            if not tokens.is_last(token):
                telemetry.event(log, logging.INFO, "Stream token renewed", stream=hub.name)
                hub.renew("a newer token")

    def __repr__(self) -> str:
        return f"<SignalRConnectionManager {self._config.name} {self.state.value}, {self.health.value}>"


async def _all(works: Any) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _call_each(ends: Sequence[Callable[[], None]]) -> None:
    for end in ends:
        end()
