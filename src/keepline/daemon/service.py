"""The daemon put together: socket, relays, credentials, streams and numbers under one supervisor.

Invariants: the socket is first, so a second daemon ends before it touches a token; relays listen before credentials
speak, so the token of the last run is delivered at once; streams come after the tokens that they need, the hub last,
no bot waits for it; it stops in reverse.
"""

import logging
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keepline
from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import Settings
from keepline.daemon.compose import check_settings, manager_of, sender_of
from keepline.daemon.credential import CredentialPart
from keepline.daemon.delivery import DeliveryPart
from keepline.daemon.endpoint import MetricsEndpoint, parse_listen
from keepline.daemon.parts import Part, Supervisor
from keepline.daemon.socket import LocalSocket
from keepline.errors import ConfigError
from keepline.http import HttpSession
from keepline.relay.address import daemon_socket_path
from keepline.telemetry import event

if TYPE_CHECKING:
    from keepline.daemon.hubpart import BusPart, HubPart
    from keepline.daemon.streaming import StreamPart

__all__ = ["Daemon"]

log = logging.getLogger("keepline.daemon")


class Daemon:
    """Everything that `keepline run` runs.

    Args:
        settings: what to run.
        socket_path: the local socket; `daemon.sock` in the runtime directory unless given.
        clock: time and chance of every part.

    Raises:
        ConfigError: the settings name nothing to keep or to run, or something that is wrong; names the key.
        StorageError: a file with secrets is not private.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        socket_path: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not settings.credentials and not settings.hub.enabled:
            raise ConfigError(
                "nothing to keep; add a [credentials.NAME], or enabled = true to [hub]",
                key="credentials",
                file=settings.file,
            )
        check_settings(settings)
        self._settings = settings
        self._clock = clock
        self._http = HttpSession()
        self._began: datetime | None = None
        self.credentials = {name: self._credential(name) for name in settings.credentials}
        self.relays = {name: self._relay(name) for name in settings.relay}
        self.streams = self._streams()
        path = socket_path or daemon_socket_path()
        self.socket = LocalSocket(path, self.credentials, self.status, clock=clock)
        self.metrics = self._metrics()
        self.hub = self._hub()
        self.bus = self._bus()
        self.supervisor = Supervisor(self._parts(), clock=clock)

    async def start(self) -> None:
        """Start every part.

        Raises:
            StorageError: another daemon serves here, or none of the credentials' stores can be read.
        """
        self._began = self._clock.wall()
        await self.supervisor.start()
        errors = [part.start_error for part in self.credentials.values()]
        if errors and all(errors):
            await self.stop()
            raise next(error for error in errors if error is not None)
        event(
            log,
            logging.INFO,
            "Daemon started",
            version=keepline.__version__,
            pid=os.getpid(),
            credentials=",".join(self.credentials) or "-",
            relays=",".join(self.relays) or None,
            streams=",".join(self.streams) or None,
        )

    async def stop(self) -> None:
        """Stop every part; a refresh in flight is waited for until its answer is saved."""
        await self.supervisor.stop()
        if self.hub is not None:
            await self.hub.close()
        await self._http.close()

    def status(self) -> Mapping[str, Any]:
        """What `keepline status` shows: no secret in it."""
        parts = self.supervisor.readiness()
        return {
            "version": keepline.__version__,
            "pid": os.getpid(),
            "started_at": self._began.isoformat(timespec="seconds") if self._began else None,
            "config": str(self._settings.file) if self._settings.file else None,
            "ready": all(part.ready for part in parts),
            "parts": [{"name": p.name, "ready": p.ready, "reason": p.reason} for p in parts],
            "credentials": {name: part.status() for name, part in self.credentials.items()},
            "relay": {name: part.status() for name, part in self.relays.items()},
            "streams": {name: part.status() for name, part in self.streams.items()},
        }

    def summary(self) -> str:
        """One line for people: who serves, and what is wrong."""
        wrong = [f"{p.name}: {p.reason}" for p in self.supervisor.readiness() if not p.ready]
        if wrong:
            return "; ".join(wrong)
        told = (
            f"{name} generation {part.current.generation}, expires {part.current.expires_at:%H:%M:%S} UTC"
            for name, part in self.credentials.items()
            if part.current is not None
        )
        return "; ".join(told)

    def _parts(self) -> list[Part]:
        others = [part for part in (self.hub, self.bus, self.metrics) if part is not None]
        kept = (*self.relays.values(), *self.credentials.values(), *self.streams.values())
        return [self.socket, *kept, *others]

    def _credential(self, name: str) -> CredentialPart:
        return CredentialPart(
            name,
            lambda: manager_of(self._settings, name, http=self._http, clock=self._clock),
            refresh_timeout=self._settings.credentials[name].refresh_timeout_seconds,
        )

    def _relay(self, name: str) -> DeliveryPart:
        source = self.credentials[self._settings.relay[name].credential]
        sender = sender_of(self._settings, name, clock=self._clock)
        return DeliveryPart(name, sender, source, clock=self._clock)

    def _streams(self) -> "dict[str, StreamPart]":
        if not self._settings.stream:
            return {}
        from keepline.daemon.streaming import StreamPart  # the brokers are not in every daemon

        return {
            name: StreamPart(
                self._settings,
                name,
                self.credentials[self._settings.brokers[table.broker].credential],
                http=self._http,
                clock=self._clock,
            )
            for name, table in self._settings.stream.items()
        }

    def _metrics(self) -> MetricsEndpoint | None:
        if not self._settings.telemetry.metrics:
            return None
        host, port = parse_listen(self._settings.telemetry.metrics)
        return MetricsEndpoint(host, port, lambda: self.supervisor.readiness())

    def _hub(self) -> "HubPart | None":
        if not self._settings.hub.enabled:
            return None
        from keepline.daemon.hubpart import HubPart, bus_path, hub_settings, log_settings

        config, log_as = hub_settings(self._settings), log_settings(self._settings)
        return HubPart(config, path=bus_path(), log=log_as, clock=self._clock)

    def _bus(self) -> "BusPart | None":
        if self.hub is None:
            return None
        from keepline.daemon.hubpart import BusPart

        return BusPart(self.hub.path, self.status, clock=self._clock)

    def __repr__(self) -> str:
        return f"<Daemon {self.supervisor!r}>"
