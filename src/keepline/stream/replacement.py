"""A second connection that is filled while the first one goes on.

Invariants: until the switch only the first connection's messages go on and the second's are kept back; after it only
the second's, without those that the first had brought; a second connection that ends or is not filled in time
replaces nothing.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from keepline.clock import Clock, within
from keepline.errors import TransientError
from keepline.stream.carrier import Carrier
from keepline.stream.overlap import Overlap
from keepline.stream.subscriptions import Registry

__all__ = ["Replacement"]


class Replacement:
    """The second connection.

    Args:
        carrier: not opened yet.
        limit: messages that are kept back at most.
    """

    def __init__(self, carrier: Carrier, *, limit: int) -> None:
        self.carrier = carrier
        self._overlap = Overlap(limit=limit)
        self._switched = False
        self._something = asyncio.Event()

    @property
    def is_filling(self) -> bool:
        """Whether it is up and not yet the stream's."""
        return bool(self.carrier.epoch) and not self._switched

    @property
    def overflowed(self) -> bool:
        """Whether more messages came than could be kept back."""
        return self._overlap.overflowed

    async def open(self, seconds: float) -> None:
        """Connect and log in; errors as the carrier's."""
        await self.carrier.open(seconds)

    async def filled(self, registry: Registry, clock: Clock, seconds: float) -> None:
        """Return once everything that is wanted is confirmed on it.

        Raises:
            TransientError: it ended, or was not filled in time.
        """
        try:
            await within(clock, seconds, self._filled(registry))
        except TimeoutError:
            raise TransientError(f"not filled within {seconds:g} s", category="timeout") from None

    async def _filled(self, registry: Registry) -> None:
        while not registry.settled(self.carrier.epoch):
            if self.carrier.lost is not None:
                raise TransientError(
                    f"the new connection ended ({self.carrier.lost.reason})", category="network"
                )
            self._something.clear()
            await self._something.wait()

    def wake(self) -> None:
        """An answer came, or the end."""
        self._something.set()

    def switch(self) -> list[tuple[str, Sequence[Any], float]]:
        """From now on this is the stream's connection: what only it has brought so far."""
        self._switched = True
        return self._overlap.switch()

    def passes(self, carrier: Carrier, channel: str, arguments: Sequence[Any], at: float) -> bool:
        """Whether a message goes on now; what does not is kept back, or has gone on before."""
        if carrier is not self.carrier:
            if not self._switched:
                self._overlap.from_old(channel, arguments)
            return True
        if self._switched:
            return not self._overlap.is_repeat(channel, arguments)
        self._overlap.from_new(channel, arguments, at)
        return False

    def __repr__(self) -> str:
        return f"<Replacement {self.carrier!r}, {self._overlap!r}>"
