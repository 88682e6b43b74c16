"""The hub as a part of the daemon, and what the daemon itself has to say there: its tokens and its parts.

Invariants: the hub has a process of its own, so its bursts hold up no token; the socket of its bus outlives it, and
whoever publishes while it is being started again waits there; what is said on `system` holds no secret and is said
again to each new life of the hub.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.config import Settings
from keepline.daemon.hubdoors import hub_config
from keepline.daemon.parts import Part
from keepline.errors import TransientError
from keepline.files.directories import runtime_directory
from keepline.hub.bus import LocalBus
from keepline.hub.outgoing import POLICIES
from keepline.hub.process import HubProcess, LogSettings
from keepline.hub.settings import HubConfig
from keepline.relay.binding import Binding, bind_unix

__all__ = ["CHANNEL", "BusPart", "HubPart", "bus_path", "hub_settings", "log_settings", "states"]

CHANNEL = "system"
"""Where the daemon says how it is."""

LOOK_SECONDS = 1.0
_BACKLOG = 64
_CREDENTIAL = {
    "state": "state",
    "generation": "generation",
    "expires_at": "expiresAt",
    "next_refresh_at": "nextRefreshAt",
    "signin_deadline": "signinDeadline",
    "last_error": "lastError",
}
_STREAM = {"state": "state", "health": "health", "live": "live", "reasons": "reasons"}
_TOLD = (
    ("credentials", "credential-state", _CREDENTIAL),
    ("streams", "stream-state", _STREAM),
)
"""Where it is in the status, the type of its message, and which facts under which names."""

State = tuple[str, Mapping[str, Any]]


def bus_path() -> Path:
    """Where the hub's bus is: `hub.sock` in the runtime directory; nothing is made here."""
    return runtime_directory(make=False) / "hub.sock"


def hub_settings(settings: Settings) -> HubConfig:
    """The hub of a configuration.

    Raises:
        ConfigError: names the key.
        StorageError: a file with secrets is not private.
    """
    return hub_config(settings, data=settings.base / "data")


def log_settings(settings: Settings) -> LogSettings:
    """How the hub's process logs: as the daemon does, to the same places."""
    told = settings.telemetry
    file = None if told.log_file is None else str(told.log_file)
    return LogSettings(told.log_level, file, told.log_format)


class HubPart(Part):
    """The hub's process under the daemon's supervisor.

    Args:
        config: the hub.
        path: of its bus.
        log: how it logs.
        clock: for waits.
    """

    name = "hub"

    def __init__(
        self,
        config: HubConfig,
        *,
        path: Path,
        log: LogSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = path
        self._config = config
        self._log = log
        self._clock = clock
        self._binding: Binding | None = None
        self._process: HubProcess | None = None
        self.drain_seconds = HubProcess(config).drain_seconds

    @property
    def pid(self) -> int | None:
        """Its process, None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def url(self) -> str:
        """Where it listens, empty while it does not."""
        return "" if self._process is None else self._process.url

    async def start(self) -> None:
        binding = await asyncio.to_thread(self._bound)
        self._process = HubProcess(
            self._config, bus=binding.socket, log=self._log, clock=self._clock
        )
        await self._process.start()

    async def run(self) -> None:
        assert self._process is not None
        raise TransientError(await self._process.ended(), category="server")

    async def stop(self) -> None:
        if self._process is not None:
            await self._process.stop()

    async def close(self) -> None:
        """Let go of the bus's socket, at the daemon's end."""
        binding, self._binding = self._binding, None
        if binding is not None:
            await asyncio.to_thread(binding.release)

    def ready(self) -> tuple[bool, str]:
        return (False, "not started") if self._process is None else self._process.ready()

    def _bound(self) -> Binding:
        """The socket of the last life, or a new one when its file has gone."""
        if self._binding is not None and self._binding.stands():
            return self._binding
        if self._binding is not None:
            self._binding.release()
        runtime_directory()
        self._binding = bind_unix(
            self.path, mode=0o600, group=None, backlog=_BACKLOG, clock=self._clock
        )
        return self._binding

    def __repr__(self) -> str:
        return f"<HubPart {self.url or 'not serving'}>"


def states(status: Mapping[str, Any]) -> dict[str, State]:
    """What there is to say on the channel, by key.

    Args:
        status: the daemon's, as `keepline status` shows it.

    Returns:
        For each key the type of the message and its data.
    """
    told: dict[str, State] = {}
    for what, type_, facts in _TOLD:
        for name, each in status.get(what, {}).items():
            data = {own: each.get(theirs) for theirs, own in facts.items()}
            told[f"{type_} {name}"] = type_, {"name": name, **data}
    for part in status["parts"]:
        told[f"part-state {part['name']}"] = "part-state", dict(part)
    return told


class BusPart(Part):
    """The daemon's end of the bus; says how the daemon is whenever something changes.

    Args:
        path: of the bus.
        look: the daemon's status.
        clock: for waits.
    """

    name = "hub bus"
    drain_seconds = 2.0

    def __init__(
        self, path: Path, look: Callable[[], Mapping[str, Any]], *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._path = path
        self._look = look
        self._clock = clock
        self._said: dict[str, State] = {}
        self._changed = asyncio.Event()
        self.bus: LocalBus | None = None

    async def start(self) -> None:
        self.bus = LocalBus(
            *(self._path,),
            name="daemon",
            policies={**POLICIES, CHANNEL: "conflate"},
            on_connected=self._begin_anew,
            clock=self._clock,
        )
        await self.bus.start()

    async def run(self) -> None:
        while True:
            self._changed.clear()
            self._say()
            try:
                await within(self._clock, LOOK_SECONDS, self._changed.wait())
            except TimeoutError:
                continue

    async def stop(self) -> None:
        bus, self.bus = self.bus, None
        if bus is not None:
            await bus.close()

    def ready(self) -> tuple[bool, str]:
        return (False, "not started") if self.bus is None else self.bus.ready()

    def changed(self) -> None:
        """Something is different: look at once."""
        self._changed.set()

    def _begin_anew(self) -> None:
        self._said.clear()
        self._changed.set()

    def _say(self) -> None:
        if self.bus is None or not self.bus.connected:
            return
        for key, state in states(self._look()).items():
            if self._said.get(key) != state:
                kind, data = state
                self.bus.publish(CHANNEL, kind, data, key=key)
                self._said[key] = state
