"""A bot's inbox for tokens: it listens, the daemon pushes.

Invariants: `start` never raises and `stop` never waits for a peer or a callback; the latest token is one attribute, so
every thread reads a whole one; callbacks run beside the loop and beside each other; nothing of a token but its
fingerprint reaches history, statistics, repr or log.
"""

import asyncio
import atexit
import collections
import errno
import functools
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

from keepline import telemetry
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.credentials.token import Token
from keepline.errors import ConfigError, KeeplineError
from keepline.portal import shared_portal
from keepline.relay.callbacks import Callbacks
from keepline.relay.keeper import TokenKeeper
from keepline.relay.listener import Listener
from keepline.relay.mailbox import Callback
from keepline.relay.message import Ledger, Push
from keepline.relay.peer import Peer
from keepline.relay.settings import TokenReceiverConfig, listener_options
from keepline.relay.wire import Arrival

__all__ = ["ReceivedToken", "TokenReceiver", "TokenReceiverConfig"]

log = logging.getLogger("keepline.relay")

_RECEIVED = telemetry.REGISTRY.counter(
    "relay_received_total", "Messages that a receiver got, by what became of them.", "outcome"
)
_listening: "weakref.WeakSet[TokenReceiver]" = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class ReceivedToken:
    """A line of the history: which token came when, without the token.

    Attributes:
        fingerprint: tells tokens apart.
        received_at: when it came (aware).
        expires_at: when it dies (aware).
        generation: its number, 0 when the sender gave none.
        credential: whose it is, "" when the sender did not say.
        pid: the sending process on this machine, None when unknown.
    """

    fingerprint: str
    received_at: datetime
    expires_at: datetime
    generation: int
    credential: str
    pid: int | None


class TokenReceiver:
    """Receives tokens that the daemon pushes and hands the newest to whoever asks.

    Use `start`/`stop` or `with` from plain code (also inside a running loop): callbacks run on threads. Or
    `async with`: everything runs on the caller's loop, and callbacks may be coroutine functions.

    Args:
        callback: called with each new access token as text.
        config: where to listen and whom to trust.
        clock: for tests.

    Example:
        with TokenReceiver(print) as receiver:
            receiver.get_latest_token()

    Attributes:
        is_running: whether it listens.
        token_count: how many tokens have come.
        last_error: why it does not listen, or what is wrong meanwhile; None when all is well.
        address: where it listens, with the port that the system chose.
    """

    def __init__(
        self,
        callback: Callback | None = None,
        config: TokenReceiverConfig | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.config = TokenReceiverConfig() if config is None else config
        self.is_running = False
        self.token_count = 0
        self.last_error: str | None = None
        self.address = ""
        self._clock = clock
        self._lock = threading.RLock()
        self._text = ""
        self._latest: Token | None = None
        self._history: collections.deque[ReceivedToken] = collections.deque(
            maxlen=self.config.history_size
        )
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._ledger = Ledger()
        self._callbacks = Callbacks(callback, clock=clock)
        self._keeper = (
            TokenKeeper(self.config.persist_path, clock) if self.config.persist_path else None
        )
        self._listener: Listener | None = None
        self._on_callers_loop = False
        self._failure: Exception | None = None
        self._troubles: dict[str, str] = {}

    # --- reading, from any thread ---

    def get_latest_token(self) -> str:
        """The newest access token, "" before the first one."""
        return self._text

    def get_latest(self) -> Token | None:
        """The newest token, None before the first one."""
        return self._latest

    def history(self) -> list[ReceivedToken]:
        """What came lately, oldest first; as many as `history_size`."""
        return list(self._history)

    def get_stats(self) -> dict[str, Any]:
        """Numbers and times for people and monitors; JSON-ready."""
        latest, listener, last = self._latest, self._listener, self.history()[-1:]
        return {
            "running": self.is_running,
            "address": self.address,
            "token_count": self.token_count,
            "outcomes": dict(self._outcomes),
            "connections": len(listener.connections) if listener else 0,
            "fingerprint": latest.fingerprint if latest else None,
            "generation": latest.generation if latest else None,
            "expires_at": latest.expires_at.timestamp() if latest else None,
            "last_received_at": last[0].received_at.timestamp() if last else None,
            "callbacks": self._callbacks.stats(),
            "last_error": self.last_error,
        }

    # --- callbacks ---

    def set_callback(self, callback: Callback | None) -> None:
        """Replace the callback given to the constructor; None removes it.

        Raises:
            ConfigError: a coroutine function while the receiver runs on its own thread.
        """
        self._callbacks.set_main(callback)

    def add_callback(self, callback: Callback, *, full: bool = False) -> Callable[[], None]:
        """Call one more function for each new token.

        Args:
            callback: gets the access token as text.
            full: hand it the `Token` instead.

        Returns:
            A function that removes it again.

        Raises:
            ConfigError: a coroutine function while the receiver runs on its own thread.
        """
        return self._callbacks.add(callback, full=full)

    # --- on the background thread ---

    def start(self) -> bool:
        """Listen, on the background thread.

        Returns:
            True when it listens (or did already); False with the reason in `last_error`. It never raises.
        """
        with self._lock:
            if self.is_running:
                return True
            try:
                self._prepare(on_loop=False)
                self._callbacks.open(on_loop=False)
                shared_portal().call(self._open)
            except Exception as error:
                self._not_started(error)
                return False
            return True

    def stop(self) -> None:
        """Stop listening; callbacks that run may finish, none begins. Without `start` it does nothing."""
        with self._lock:
            if self.is_running and not self._on_callers_loop:
                self.is_running = False
                self._callbacks.close()
                shared_portal().call(self._close)

    def __enter__(self) -> "TokenReceiver":
        if not self.start():
            raise self._failure or ConfigError(self.last_error or "the receiver did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- on the caller's loop ---

    async def __aenter__(self) -> "TokenReceiver":
        if self.is_running:
            raise ConfigError("this receiver listens already", key="receiver")
        try:
            await asyncio.to_thread(self._prepare, on_loop=True)
            self._callbacks.open(on_loop=True)
            await self._open()
        except Exception as error:
            raise self._not_started(error) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.is_running = False
        self._callbacks.close()
        await self._close()
        await self._callbacks.wait_closed()

    # --- inside ---

    async def _open(self) -> None:
        listener = Listener(
            listener_options(self.config),
            self._ledger,
            clock=self._clock,
            on_arrival=self._arrived,
            on_trouble=functools.partial(self._troubled, "socket"),
        )
        await listener.open()
        self._listener, self.address = listener, str(listener.address)
        self.last_error = next(iter(self._troubles.values()), None)
        self._failure = None
        self.is_running = True
        _listening.add(self)
        telemetry.event(log, logging.INFO, "Receiver listens", address=self.address)

    async def _close(self) -> None:
        listener, self._listener = self._listener, None
        _listening.discard(self)
        if listener is not None:
            await listener.close()
            telemetry.event(log, logging.INFO, "Receiver stopped", address=self.address)
        if self._keeper is not None:
            self._keeper.close()

    def _arrived(self, arrival: Arrival, peer: Peer | None) -> None:
        self._outcomes[arrival.outcome] += 1
        _RECEIVED.inc(arrival.outcome)
        if arrival.token is not None:
            self._accepted(arrival.token, arrival.credential, peer)
        elif arrival.reason:
            telemetry.event(
                log,
                logging.WARNING,
                "Token refused",
                code=arrival.outcome,
                reason=arrival.reason,
                pid=peer.pid if peer else None,
            )

    def _accepted(self, token: Token, credential: str, peer: Peer | None) -> None:
        arrived = self._clock.boottime()
        self._latest, self._text = token, token.access_token
        self.token_count += 1
        pid = peer.pid if peer else None
        line = ReceivedToken(
            token.fingerprint, token.issued_at, token.expires_at, token.generation, credential, pid
        )
        self._history.append(line)
        self._callbacks.put(token, arrived)
        if self._keeper is not None:
            self._keeper.put(token, arrived)
        if log.isEnabledFor(logging.INFO):
            telemetry.event(
                log,
                logging.INFO,
                "Token received",
                credential=credential,
                generation=token.generation,
                fingerprint=line.fingerprint,
                expires_in_seconds=round(token.lifetime.total_seconds()),
                pid=pid,
            )

    def _troubled(self, what: str, trouble: str | None) -> None:
        if trouble == self._troubles.get(what):
            return
        if trouble is None:
            del self._troubles[what]
        else:
            self._troubles[what] = trouble
            log.error("%s: %s", self.address, trouble)
        self.last_error = next(iter(self._troubles.values()), None)

    def _prepare(self, *, on_loop: bool) -> None:
        self._on_callers_loop = on_loop
        if self._keeper is None:
            return
        token = self._keeper.open(on_trouble=functools.partial(self._troubled, "file"))
        if token is not None and self._latest is None:
            self._latest, self._text = token, token.access_token
            self._ledger.remember(Push(token, str(token.extra.get("credential", ""))))

    def _not_started(self, error: Exception) -> Exception:
        self._callbacks.close()
        if self._keeper is not None:
            self._keeper.close()
        self._failure = _in_words(error, self.config)
        self.last_error = str(self._failure)
        log.error("The receiver did not start: %s", self.last_error)
        return self._failure

    def _unlink_at_exit(self) -> None:
        if self._listener is not None:
            self._listener.unlink_at_exit()

    def _after_fork(self) -> None:
        self.is_running = False
        self._lock = threading.RLock()
        self._callbacks.forget_after_fork()
        if self._keeper is not None:
            self._keeper.forget_after_fork()
        if self._listener is not None:
            self._listener.abandon_after_fork()
            self._listener = None

    def __repr__(self) -> str:
        state = f"listens at {self.address}" if self.is_running else "not running"
        return f"<TokenReceiver {state}, {self.token_count} tokens, latest {self._latest}>"


def _in_words(error: Exception, config: TokenReceiverConfig) -> Exception:
    """The error as one of ours, with what to do."""
    if isinstance(error, KeeplineError):
        return error
    if isinstance(error, OSError):
        # asyncio's own words for it hold a tuple; a name that does not resolve has no errno of the system
        resolved = not isinstance(error, socket.gaierror)
        words = os.strerror(error.errno) if error.errno and resolved else error.strerror or error
        remedy = {
            errno.EADDRINUSE: "; stop the other program or choose another tcp_port",
            errno.EACCES: "; ports below 1024 belong to root: choose another tcp_port",
            errno.EADDRNOTAVAIL: "; tcp_host is no address of this machine",
        }.get(error.errno or 0, "")
        return ConfigError(
            f"cannot listen at {config.tcp_host} port {config.tcp_port}: {words}{remedy}",
            key="tcp_port",
        )
    return error


def _unlink_all() -> None:
    for receiver in list(_listening):
        receiver._unlink_at_exit()


def _after_fork_in_child() -> None:
    for receiver in list(_listening):
        receiver._after_fork()
    _listening.clear()


atexit.register(_unlink_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
