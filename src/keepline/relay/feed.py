"""A bot's subscription at the daemon: the current token at once, then every renewal, for ever.

Invariants: the feed never gives up: it connects again with growing, spread delays; the same token is handed over once;
of several unread tokens only the newest is; an older generation never replaces a newer one that lives.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.token import Token
from keepline.errors import Closed, ConfigError, KeeplineError
from keepline.portal import shared_portal
from keepline.relay.address import Address, TLSConfig, check_name
from keepline.relay.callbacks import Callbacks
from keepline.relay.local import LocalClient
from keepline.relay.mailbox import EMPTY, Callback, Mailbox
from keepline.resilience.backoff import exponential

__all__ = ["TokenFeed"]

log = logging.getLogger("keepline.relay")

_BACKOFF = exponential(0.1, 10.0, jitter=0.2)
_GOOD_CONNECTION = 10.0  # seconds; one that ends sooner does not reset the delays, or a broken daemon meets a storm


class TokenFeed:
    """Follows one credential at the daemon of this machine.

    Iterate it (`async for token in feed`), or use `async with` for callbacks on the running loop, or `start`/`stop` and
    `with` from plain code: callbacks run on threads.

    Args:
        credential: the credential's name in the daemon's configuration.
        address: the daemon's socket; None for `daemon.sock` in the runtime directory.
        callback: called with each new access token as text.
        tls: certificates for a `tls://` address.
        clock: for tests.

    Example:
        async for token in TokenFeed("schwab"):
            session.headers["Authorization"] = f"Bearer {token.access_token}"

    Attributes:
        is_running: between `start` and `stop`, or inside `async with`.
        is_connected: whether the daemon serves it just now.
        token_count: how many different tokens have come.
        last_error: why it is not connected; None when it is, or was never started.
    """

    def __init__(
        self,
        credential: str,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        callback: Callback | None = None,
        tls: TLSConfig | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.credential = check_name(credential)
        self.is_connected = False
        self.token_count = 0
        self.last_error: str | None = None
        self._address = address
        self._tls = tls
        self._clock = clock
        self._text = ""
        self._latest: Token | None = None
        self._callbacks = Callbacks(callback, clock=clock)
        self._lock = threading.RLock()
        self._task: asyncio.Task[None] | None = None
        self._on_portal = False
        self._pid = 0  # a forked child has neither the thread nor the task

    @property
    def is_running(self) -> bool:
        return self._task is not None and self._pid == os.getpid()

    def get_latest_token(self) -> str:
        """The newest access token, "" before the first one."""
        return self._text

    def get_latest(self) -> Token | None:
        """The newest token, None before the first one."""
        return self._latest

    def get_stats(self) -> dict[str, Any]:
        """Numbers for people and monitors; JSON-ready."""
        latest = self._latest
        return {
            "running": self.is_running,
            "connected": self.is_connected,
            "credential": self.credential,
            "token_count": self.token_count,
            "fingerprint": latest.fingerprint if latest else None,
            "generation": latest.generation if latest else None,
            "expires_at": latest.expires_at.timestamp() if latest else None,
            "callbacks": self._callbacks.stats(),
            "last_error": self.last_error,
        }

    def set_callback(self, callback: Callback | None) -> None:
        """Replace the callback given to the constructor; None removes it."""
        self._callbacks.set_main(callback)

    def add_callback(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call one more function for each new token (its text, or the `Token` with `full`).

        Returns:
            A function that removes it again.
        """
        return self._callbacks.add(callback, full=full)

    def start(self) -> None:
        """Follow the credential on the background thread; returns at once, connected or not.

        Raises:
            ConfigError: an address that is none, or a coroutine function as callback.
        """
        with self._lock:
            if self.is_running:
                return
            client = self._client()
            self._callbacks.open(on_loop=False)
            shared_portal().call(self._begin, client, on_portal=True)

    def stop(self) -> None:
        """End it; callbacks that run may finish, none begins. Without `start` it does nothing."""
        with self._lock:
            if self.is_running and self._on_portal:
                self._callbacks.close()
                shared_portal().call(self._end)

    def __enter__(self) -> "TokenFeed":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> "TokenFeed":
        if self.is_running:
            raise ConfigError("this feed runs already", key="feed")
        client = self._client()
        self._callbacks.open(on_loop=True)
        await self._begin(client, on_portal=False)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._callbacks.close()
        await self._end()
        await self._callbacks.wait_closed()

    async def __aiter__(self) -> AsyncIterator[Token]:
        mailbox, changed = Mailbox(), asyncio.Event()

        def leave(token: Token) -> None:
            mailbox.put(token)
            changed.set()

        task = asyncio.get_running_loop().create_task(self._follow(self._client(), leave))
        try:
            while True:
                await changed.wait()
                changed.clear()
                if (token := mailbox.take()) is not EMPTY:
                    yield token
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _begin(self, client: LocalClient, *, on_portal: bool) -> None:
        self._on_portal, self._pid = on_portal, os.getpid()
        self._task = asyncio.get_running_loop().create_task(self._follow(client, self._hand_over))

    async def _end(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, client: LocalClient, deliver: Callable[[Token], None]) -> None:
        failures = 0
        known: Token | None = None
        while True:
            began = self._clock.boottime()
            try:
                await client.connect()
                subscription = await client.subscribe(self.credential)
                self._connected()
                while True:
                    token = await subscription.next()
                    if self._is_news(token, known):
                        known = token
                        self._accept(token)
                        deliver(token)
            except KeeplineError as error:
                if self._clock.boottime() - began >= _GOOD_CONNECTION:
                    failures = 0
                failures += 1
                self._disconnected(error)
            finally:
                self.is_connected = False
                await client.close()
            await self._clock.sleep(_BACKOFF.delay(failures, self._clock.chance()))

    def _is_news(self, token: Token, known: Token | None) -> bool:
        if known is None or known.is_expired(self._clock.wall()):
            return True
        if token.generation == known.generation:
            return token.access_token != known.access_token
        return token.generation > known.generation

    def _accept(self, token: Token) -> None:
        if not self._is_news(token, self._latest):
            return
        self._latest, self._text = token, token.access_token
        self.token_count += 1
        telemetry.event(
            log,
            logging.INFO,
            "Token received",
            credential=self.credential,
            generation=token.generation,
            fingerprint=token.fingerprint,
        )

    def _hand_over(self, token: Token) -> None:
        self._callbacks.put(token, self._clock.boottime())

    def _connected(self) -> None:
        self.is_connected, self.last_error = True, None
        telemetry.event(log, logging.INFO, "Feed connected", credential=self.credential)

    def _disconnected(self, error: KeeplineError) -> None:
        reason = str(error)
        if isinstance(error, Closed) or reason == self.last_error:
            return  # said already
        self.last_error = reason
        telemetry.event(
            log, logging.WARNING, "Feed not connected", credential=self.credential, reason=reason
        )

    def _client(self) -> LocalClient:
        return LocalClient(
            self._address, tls=self._tls, clock=self._clock, name=f"feed of pid {os.getpid()}"
        )

    def __repr__(self) -> str:
        state = "connected" if self.is_connected else "not connected"
        return f"<TokenFeed {self.credential} {state}, latest {self._latest}>"
