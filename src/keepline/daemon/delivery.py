"""A relay as a part of the daemon: each new token of a credential to its bots, the current one at the start.

Invariants: no relay and no bot delays another; of several tokens only the newest is still tried; an absent bot is no
failure of the daemon, it is tried again with the next token.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from keepline.clock import SYSTEM_CLOCK, Clock, within
from keepline.credentials.token import Token
from keepline.daemon.parts import Part
from keepline.relay.sender import Delivery, TokenSender

__all__ = ["GRACE_SECONDS", "DeliveryPart", "Followed"]

GRACE_SECONDS = 0.2
"""At the end, for a token that was renewed in the last moment."""


class Followed(Protocol):
    """Whose tokens are delivered."""

    @property
    def current(self) -> Token | None: ...
    def subscribe(self, callback: Callable[[Token], Any]) -> Callable[[], None]: ...


class DeliveryPart(Part):
    """Delivers one credential's tokens.

    Args:
        relay: the relay's name.
        sender: knows the bots.
        source: the credential.
    """

    def __init__(
        self, relay: str, sender: TokenSender, source: Followed, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.name = f"relay {relay}"
        self.last: Mapping[str, Delivery] = {}
        self._sender = sender
        self._clock = clock
        self._source = source
        self._unsubscribe: Callable[[], None] = lambda: None
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._unsubscribe = self._source.subscribe(self.deliver)
        if self._source.current is not None:
            self.deliver(self._source.current)

    async def stop(self) -> None:
        """A delivery under way gets a moment; one that waits for a bot is given up until the daemon's next start."""
        self._unsubscribe()
        with contextlib.suppress(TimeoutError):
            await within(self._clock, GRACE_SECONDS, self.delivered())
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        await self._sender.close()

    def ready(self) -> tuple[bool, str]:
        """A bot that does not run is not the daemon's fault: always ready, the reason tells who has the token."""
        delivered = sum(delivery.ok for delivery in self.last.values())
        return True, f"{delivered} of {len(self._sender.targets)} targets have the newest token"

    def deliver(self, token: Token) -> None:
        """Send to all targets, without waiting for it."""
        task = asyncio.get_running_loop().create_task(self._send(token))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def delivered(self) -> None:
        """Return when nothing is under way any more."""
        while self._sending:
            await asyncio.wait(self._sending)

    def status(self) -> list[dict[str, Any]]:
        """Each target with what became of its last token."""
        return [self._target(target.name) for target in self._sender.targets]

    async def _send(self, token: Token) -> None:
        report = await self._sender.send(token)
        newest = {d.target: d for d in report if d.outcome != "superseded"}
        self.last = {**self.last, **newest}

    def _target(self, name: str) -> dict[str, Any]:
        last = self.last.get(name)
        told = {"target": name, "outcome": last.outcome if last else "none yet"}
        return {**told, "reason": last.reason if last else ""}

    def __repr__(self) -> str:
        return f"<DeliveryPart {self.name} to {len(self._sender.targets)} targets>"
