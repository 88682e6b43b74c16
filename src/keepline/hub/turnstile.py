"""Lets so many in at each turn of the loop: a thousand who come back at once must not keep those who stayed waiting.

Invariants: first come, first in; one who gives up takes nobody's turn.
"""

import asyncio
from collections import deque

__all__ = ["Turnstile"]


class Turnstile:
    """A queue in front of costly work.

    Args:
        per_turn: how many may go on before others get the loop.
    """

    def __init__(self, per_turn: int = 16) -> None:
        self._per_turn = per_turn
        self._passed = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def wait(self) -> None:
        """Return when it is one's turn."""
        loop = asyncio.get_running_loop()
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn, loop)
        if self._passed < self._per_turn and not self._queue:
            self._passed += 1
            return
        place: asyncio.Future[None] = loop.create_future()
        self._queue.append(place)
        await place

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passed = 0
        while self._queue and self._passed < self._per_turn:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                self._passed += 1
        self._turning = bool(self._queue) or self._passed > 0
        if self._turning:
            loop.call_soon(self._turn, loop)

    def __repr__(self) -> str:
        return f"<Turnstile {len(self._queue)} wait>"
