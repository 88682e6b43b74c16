"""Ready means delivering: a canary goes through publish, frame, socket and reader each few seconds.

Invariants: the canary's socket is served like every other client's; what `/readyz` says comes from what arrived, never
from what was merely started.
"""

import asyncio
import re
import socket
from collections.abc import Callable

from keepline.clock import Clock
from keepline.hub.broadcaster import Broadcaster
from keepline.hub.channels import Policy
from keepline.hub.closecodes import CloseCode
from keepline.hub.measures import CANARY, READY
from keepline.hub.registrar import Registrar
from keepline.hub.settings import OWN_CHANNEL, ChannelSettings

__all__ = ["CANARY_CHANNEL", "CANARY_CLIENT", "Readiness"]

CANARY_CLIENT = "canary"
CANARY_CHANNEL = ChannelSettings(
    name=OWN_CHANNEL, policy=Policy.DROP_OLDEST, history_count=1, history_seconds=60.0
)
"""Clients cannot subscribe to it: it is not one of the hub's public channels."""

_MARK = re.compile(rb'"canary":(\d+)')
_TAIL = 256


class Readiness:
    """Whether the hub delivers, and why not.

    Args:
        registrar: numbers the canary.
        broadcaster: sends it.
        clock: time.
        every_seconds: between two.
        reasons: what else may be wrong, in words.
    """

    def __init__(
        self,
        registrar: Registrar,
        broadcaster: Broadcaster,
        *,
        clock: Clock,
        every_seconds: float,
        reasons: Callable[[], list[str]],
    ) -> None:
        self._registrar = registrar
        self._broadcaster = broadcaster
        self._clock = clock
        self._every = every_seconds
        self._others = reasons
        self._sent: dict[int, float] = {}
        self._count = 0
        self._arrived: float | None = None
        self._error = ""
        self._first = asyncio.Event()
        self._link: _Link | None = None

    @property
    def reasons(self) -> list[str]:
        """Why the hub is not ready; nothing when it is."""
        found = self._others()
        late = self._late()
        return [*found, late] if late else found

    async def first(self) -> None:
        """Return when a canary has arrived."""
        await self._first.wait()

    async def run(self) -> None:
        """Send canaries until cancelled."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        try:
            transport, link = await loop.create_connection(_Link, sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        self._link = link
        link.transport = transport
        client = self._broadcaster.connect(CANARY_CLIENT, link, deflate=False, welcome={})
        self._broadcaster.subscribe(client, [CANARY_CHANNEL.name])
        reader = loop.create_task(self._read(theirs))
        try:
            while True:
                self._send()
                await self._clock.sleep(self._every)
                READY.set(0 if self.reasons else 1)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._broadcaster.disconnect(client)
            transport.abort()
            theirs.close()
            READY.set(0)

    def _send(self) -> None:
        self._count += 1
        self._sent[self._count] = self._clock.boottime()
        for old in [number for number in self._sent if number <= self._count - 20]:
            del self._sent[old]
        text = self._registrar.prepared(CANARY_CHANNEL.name, "canary", {"canary": self._count})
        self._registrar.publish(CANARY_CHANNEL.name, "canary", text)

    async def _read(self, theirs: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        rest = b""
        while data := await loop.sock_recv(theirs, 65_536):
            rest += data
            for match in _MARK.finditer(rest):
                self._receive(int(match[1]))
            rest = rest[-_TAIL:]

    def _receive(self, number: int) -> None:
        sent = self._sent.pop(number, None)
        if sent is None:
            return
        now = self._clock.boottime()
        CANARY.observe(now - sent)
        self._arrived = now
        for old in [each for each in self._sent if each < number]:
            del self._sent[old]
        if not self._first.is_set():
            self._first.set()
            READY.set(0 if self.reasons else 1)

    def _late(self) -> str:
        if self._arrived is None and not self._sent:
            return "no canary was sent yet"
        if not self._sent:
            return ""
        oldest = self._clock.boottime() - min(self._sent.values())
        if self._arrived is None:
            return f"no canary has arrived yet, the first is {oldest:.1f} s old"
        if oldest < self._every:
            return ""
        return f"the canary message is {oldest:.1f} s late: messages are not delivered"

    def __repr__(self) -> str:
        return f"<Readiness {self.reasons or 'ready'}>"


class _Link(asyncio.Protocol):
    """The canary's end in the hub: a socket like any client's."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._empty = asyncio.Event()
        self._empty.set()

    def pause_writing(self) -> None:
        self._empty.clear()

    def resume_writing(self) -> None:
        self._empty.set()

    async def drained(self) -> None:
        await self._empty.wait()

    def end(self, code: CloseCode, reason: str) -> None:
        self.transport.abort()

    def overflowed(self, dropped: int) -> None:
        """Nobody reads the canary's losses: they are late canaries."""
