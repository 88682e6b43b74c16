"""Runs the daemon until a signal, or one cycle of its work: what `keepline run` does.

Invariants: SIGTERM, SIGINT and SIGHUP all mean "stop in order"; the service manager hears that the daemon is ready only
when it serves, and hears signs of life only from the loop that does the work.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import Settings
from keepline.credentials.lifecycle import TokenState
from keepline.credentials.manager import TokenManager
from keepline.credentials.token import Token
from keepline.daemon.compose import check_settings, manager_of, sender_of
from keepline.daemon.notify import Notifier
from keepline.daemon.service import Daemon
from keepline.errors import ConfigError, KeeplineError
from keepline.http import HttpSession
from keepline.relay.sender import Delivery
from keepline.telemetry import event

__all__ = ["Cycle", "run", "run_once", "stop_signals", "until_signal"]

log = logging.getLogger("keepline.daemon")

STATUS_SECONDS = 30.0
"""Between two lines of status for the service manager."""

_STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


async def run(
    settings: Settings, *, notifier: Notifier | None = None, clock: Clock = SYSTEM_CLOCK
) -> signal.Signals:
    """Serve until a signal, then stop in order.

    Returns:
        The signal.

    Raises:
        ConfigError: the settings are wrong; nothing was started.
        StorageError: another daemon serves here, or no credential's store can be read.
    """
    notifier = notifier or Notifier()
    daemon = await asyncio.to_thread(Daemon, settings, clock=clock)
    with stop_signals() as stop:
        await daemon.start()
        notifier.ready(daemon.summary())
        alive = asyncio.create_task(_signs_of_life(daemon, notifier, clock))
        try:
            number = await stop
        finally:
            notifier.stopping("a refresh in flight is saved first")
            event(log, logging.INFO, "Daemon stopping")
            try:
                await daemon.stop()
            finally:
                alive.cancel()  # not before: waiting for an answer is no standstill for the watchdog
            event(log, logging.INFO, "Daemon stopped")
    return number


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Future[signal.Signals]]:
    """A future that the first stop signal fulfils; later ones change nothing."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()

    def told(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number)

    numbers = [getattr(signal, name) for name in _STOP_SIGNALS if hasattr(signal, name)]
    for number in numbers:
        with contextlib.suppress(NotImplementedError):  # Windows has no such handlers
            loop.add_signal_handler(number, told, number)
    try:
        yield stop
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)


async def until_signal(work: Coroutine[Any, Any, object]) -> signal.Signals | None:
    """Do the work to its end, or until a signal cancels it.

    Returns:
        The signal; None when the work came to its end.
    """
    with stop_signals() as stop:
        task = asyncio.create_task(work)
        ends: set[asyncio.Future[Any]] = {task, stop}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()  # without effect on work that has ended
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        return stop.result() if stop.done() else None


async def _signs_of_life(daemon: Daemon, notifier: Notifier, clock: Clock) -> None:
    pause = min(notifier.watchdog_seconds or STATUS_SECONDS, STATUS_SECONDS)
    while True:
        await clock.sleep(pause)
        if notifier.watchdog_seconds is not None:
            notifier.watchdog()
        notifier.status(daemon.summary())


# --- one cycle --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle did for one credential.

    Attributes:
        credential: its name.
        token: the one that was delivered, None when there is none to serve.
        error: why there is none, or why a renewal that was due failed.
        deliveries: what became of the token at each bot.
    """

    credential: str
    token: Token | None
    error: KeeplineError | None
    deliveries: tuple[Delivery, ...] = ()


async def run_once(settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> list[Cycle]:
    """Renew what is due, save it, deliver the current tokens; safe beside a running daemon.

    Raises:
        ConfigError: the settings are wrong; nothing was done.
    """
    if not settings.credentials:
        raise ConfigError(
            "nothing to keep; add a [credentials.NAME]", key="credentials", file=settings.file
        )
    await asyncio.to_thread(check_settings, settings)
    async with HttpSession() as http:
        return list(
            await asyncio.gather(
                *(_cycle(settings, name, http, clock) for name in settings.credentials)
            )
        )


async def _cycle(settings: Settings, name: str, http: HttpSession, clock: Clock) -> Cycle:
    manager = await asyncio.to_thread(manager_of, settings, name, http=http, clock=clock)
    token, error = await _renewed(manager, clock)
    if token is None:
        return Cycle(name, None, error)
    return Cycle(name, token, error, tuple(await _deliver(settings, name, token, clock)))


async def _renewed(
    manager: TokenManager, clock: Clock
) -> tuple[Token | None, KeeplineError | None]:
    """The token to serve, and the error of a renewal that was due."""
    taken: list[Token] = []
    manager.subscribe(taken.append)
    error: KeeplineError | None = None
    try:
        async with manager:
            if manager.get_state() is not TokenState.VALID:
                generation = taken[-1].generation if taken else None
                await manager.force_refresh(than=generation)
    except KeeplineError as failure:
        error = failure
        event(log, logging.ERROR, "Cycle failed", credential=manager.name, reason=str(failure))
    usable = [token for token in taken if not token.is_expired(clock.wall())]
    return (usable[-1] if usable else None), error


async def _deliver(settings: Settings, name: str, token: Token, clock: Clock) -> Iterable[Delivery]:
    relays = [relay for relay, table in settings.relay.items() if table.credential == name]
    senders = [await asyncio.to_thread(sender_of, settings, relay, clock=clock) for relay in relays]
    reports = await asyncio.gather(*(sender.send(token) for sender in senders))
    return [delivery for report in reports for delivery in report]
