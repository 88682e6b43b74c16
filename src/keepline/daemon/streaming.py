"""A stream as a part of the daemon: kept, reconciled, recorded where that is wanted, and told of.

Invariants: it asks the daemon's own credential for tokens and follows its renewals; a stream that has failed for good
fails its part alone, which comes back after a delay with a new connection and a new recording; what is not live is
said.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

from keepline.clock import SYSTEM_CLOCK, Clock
from keepline.config import Settings
from keepline.daemon.clients import client_of
from keepline.daemon.credential import CredentialPart
from keepline.daemon.parts import Part
from keepline.daemon.streams import KeptStream, listen, recorder_of, stream_of
from keepline.errors import TransientError
from keepline.http import HttpSession
from keepline.stream.events import ConnectionState
from keepline.stream.recorder import Recorder

__all__ = ["StreamPart"]


class StreamPart(Part):
    """Keeps one `[stream.NAME]`.

    Args:
        settings: all of them.
        stream: the section's name.
        source: the credential of its broker.
        http: for calls to the broker; stays the caller's to close.
        clock: of everything in it.
    """

    drain_seconds = 6.0

    def __init__(
        self,
        settings: Settings,
        stream: str,
        source: CredentialPart,
        *,
        http: HttpSession,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = f"stream {stream}"
        self.stream: KeptStream | None = None
        self.recorder: Recorder | None = None
        self._settings = settings
        self._section = stream
        self._source = source
        self._http = http
        self._clock = clock
        self._failed = asyncio.Event()
        self._stack = AsyncExitStack()

    # --- a part ---

    async def start(self) -> None:
        """Open the recording, if there is one; the connection is made by `run`, so that nobody waits for it."""
        self.recorder = await asyncio.to_thread(
            recorder_of, self._settings, self._section, clock=self._clock
        )
        if self.recorder is not None:
            await self._stack.enter_async_context(self.recorder)

    async def run(self) -> None:
        """Connect and stay connected; ends when the stream has failed for good.

        Raises:
            KeeplineError: why.
        """
        table = self._settings.stream[self._section]
        client = client_of(self._settings, table.broker, self._source, http=self._http)
        await self._stack.enter_async_context(client)
        self._failed.clear()
        stream = await stream_of(
            self._settings,
            self._section,
            client,
            self._source,
            recorder=self.recorder,
            clock=self._clock,
        )
        self._stack.push_async_callback(stream.disconnect)
        self.stream = stream
        listen(stream, table, self._told)
        await stream.connect()
        await self._failed.wait()
        raise TransientError("; ".join(stream.reasons) or "it failed", category="network")

    async def stop(self) -> None:
        """Say goodbye, and write what is left of the recording."""
        stack, self._stack = self._stack, AsyncExitStack()
        self.stream = None
        await stack.aclose()

    def ready(self) -> tuple[bool, str]:
        """Live is ready; anything else says why not."""
        if self.stream is None:
            return False, "asking the broker for accounts and symbols"
        if self.recorder is not None and self.recorder.failure is not None:
            return False, f"not recorded any more: {self.recorder.failure}"
        if self.stream.is_live:
            return True, f"live, {self.stream.health.value}"
        return False, f"{self.stream.state.value}: {'; '.join(self.stream.reasons)}"

    # --- what is told ---

    def status(self) -> Mapping[str, Any]:
        """State, health with reasons, and when data of each topic last came."""
        stream = self.stream
        table = self._settings.stream[self._section]
        told: dict[str, Any] = {
            "broker": table.broker,
            "protocol": self._settings.brokers[table.broker].broker,
            "state": "stopped" if stream is None else stream.state.value,
            "health": "unhealthy" if stream is None else stream.health.value,
            "live": stream is not None and stream.is_live,
            "reasons": ["not started yet"] if stream is None else list(stream.reasons),
            "reconciled_at": None if stream is None else _moment(stream.reconciled_at),
            "topics": [] if stream is None else _topics(stream),
            "recording": None if self.recorder is None else _recording(self.recorder),
        }
        times = [topic["last_data"] for topic in told["topics"] if topic["last_data"] is not None]
        return {**told, "last_data": max(times, default=None)}

    async def _told(self, kind: str, value: Any) -> None:
        stream = self.stream
        if kind == "event" and stream is not None and stream.state is ConnectionState.FAILED:
            self._failed.set()

    def __repr__(self) -> str:
        return f"<StreamPart {self._section} {self.stream or 'stopped'}>"


def _topics(stream: KeptStream) -> list[dict[str, Any]]:
    return [
        {
            "stream": manager.name,
            "topic": standing.topic.name,
            "phase": standing.phase.value,
            "last_data": _moment(manager.last_data(standing.topic)),
        }
        for manager in stream.managers
        for standing in manager.standings
    ]


def _recording(recorder: Recorder) -> dict[str, Any]:
    return {
        "file": str(recorder.path),
        "frames": recorder.frames,
        "missed": recorder.missed,
        "failure": recorder.failure,
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds")
