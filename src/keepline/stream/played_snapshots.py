"""Snapshots of a broker in a recording, and out of it: what was missed on the day is known again in the replay.

Invariants: a snapshot is handed on at its place among the frames, never before and never after; the replay stands still
until whoever needs it has asked for it; nothing is asked of a broker.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from keepline.stream.snapshot import Snapshot, SnapshotSource

__all__ = ["PlayedSnapshots", "RecordedSnapshots"]


class RecordedSnapshots:
    """A source whose snapshots are also written down.

    Args:
        source: is asked.
        write: gets each whole or partial answer as JSON.
    """

    def __init__(self, source: SnapshotSource, write: Callable[[str], object]) -> None:
        self._source = source
        self._write = write

    async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
        """Ask, write down, hand on.

        Raises:
            KeeplineError: as the source says; then nothing is written.
        """
        found = await self._source.snapshot(accounts, since=since)
        self._write(msgspec.json.encode(found).decode())
        return found

    def __repr__(self) -> str:
        return f"<RecordedSnapshots of {self._source!r}>"


class PlayedSnapshots:
    """The snapshots of a recording, as a source for the stream that is played."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[Snapshot]] = []
        self._asked = asyncio.Event()
        self._calls: list[Callable[[], object]] = []
        self._first = True

    async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
        """The next one of the recording, once the replay has come to it."""
        answer: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._asked.set()
        try:
            return await answer
        finally:
            if answer in self._waiting:
                self._waiting.remove(answer)

    def on_offer(self, call: Callable[[], object]) -> None:
        """Have `call` bring somebody to ask, when a snapshot is there and nobody waits for it."""
        self._calls.append(call)

    def begin(self) -> None:
        """A connection begins: whoever was connected asks for a snapshot by itself."""
        self._first = True

    async def offer(self, told: str) -> None:
        """Hand on a snapshot; returns once somebody has it, or at once where nobody would ask.

        Raises:
            msgspec.DecodeError: it is none.
        """
        found = msgspec.json.decode(told, type=Snapshot)
        if not self._waiting and not self._first:
            for call in self._calls:
                call()
        if self._first or self._calls:
            while not self._waiting:
                self._asked.clear()
                await self._asked.wait()
        self._first = False
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            if not answer.done():
                answer.set_result(found)

    def __repr__(self) -> str:
        return f"<PlayedSnapshots, {len(self._waiting)} wait>"
