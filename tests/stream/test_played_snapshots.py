"""Snapshots of a recording: each at its place among the frames, and nobody waits for one that nobody needs."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from keepline.errors import TransientError
from keepline.model import Account, Fill, Order, OrderStatus, OrderType, Position, Side
from keepline.stream.playback import Playback, SignalRFrames
from keepline.stream.played_snapshots import PlayedSnapshots, RecordedSnapshots
from keepline.stream.recorder import Recorder
from keepline.stream.recording import Recording
from keepline.stream.snapshot import Snapshot
from keepline.testing import ManualClock

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
ORDER = Order(
    id="7",
    account="1001",
    instrument="MES",
    side=Side.BUY,
    type=OrderType.LIMIT,
    status=OrderStatus.FILLED,
    quantity=Decimal(2),
    filled=Decimal(2),
    limit_price=Decimal("5990.25"),
    entered_at=NOON,
)
FILL = Fill(
    id="9",
    order_id="7",
    account="1001",
    instrument="MES",
    side=Side.BUY,
    quantity=Decimal(2),
    price=Decimal("5990.25"),
    at=NOON,
)


def snapshot(number: int = 1) -> Snapshot:
    return Snapshot(
        taken_at=NOON.replace(minute=number),
        since=NOON,
        scope=("1001",),
        accounts=(Account(id="1001", name="A", balance=Decimal("1.5")),),
        orders=(ORDER,),
        open_orders=(),
        positions=(Position(account="1001", instrument="MES", quantity=Decimal(2)),),
        fills=(FILL,),
        failed={"positions": "busy"},
    )


class Source:
    """A broker that shows what it is told to."""

    def __init__(self, shown: Snapshot | None) -> None:
        self.shown = shown

    async def snapshot(self, accounts: Sequence[str], *, since: datetime) -> Snapshot:
        if self.shown is None:
            raise TransientError("out of reach", category="network")
        return self.shown


def asked(played: PlayedSnapshots) -> "asyncio.Task[Snapshot]":
    return asyncio.create_task(played.snapshot(["1001"], since=NOON))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def written() -> list[str]:
    told: list[str] = []
    await RecordedSnapshots(Source(snapshot()), told.append).snapshot(["1001"], since=NOON)
    return told


async def test_what_is_written_is_what_was_shown() -> None:
    (text,) = await written()
    played = PlayedSnapshots()
    waiting = asked(played)
    await settled()
    await played.offer(text)
    assert await waiting == snapshot()


async def test_a_query_that_fails_is_not_written() -> None:
    told: list[str] = []
    with pytest.raises(TransientError):
        await RecordedSnapshots(Source(None), told.append).snapshot(["1001"], since=NOON)
    assert told == []


async def test_the_first_of_a_connection_waits_until_it_is_asked_for() -> None:
    (text,) = await written()
    played = PlayedSnapshots()
    offering = asyncio.create_task(played.offer(text))
    await settled()
    assert not offering.done()
    assert await asked(played) == snapshot()
    await offering


async def test_a_later_one_that_nobody_would_ask_for_is_passed_over() -> None:
    (text,) = await written()
    played = PlayedSnapshots()
    for _ in range(2):
        played.begin()
        waiting = asked(played)
        await settled()
        await played.offer(text)
        assert await waiting == snapshot()
        await played.offer(text)  # returns
    late = asked(played)
    await settled()
    assert not late.done()
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert "0 wait" in repr(played)


async def test_whoever_follows_is_brought_to_ask_for_a_later_one() -> None:
    (text,) = await written()
    played = PlayedSnapshots()
    asking: list[asyncio.Task[Snapshot]] = []
    played.on_offer(lambda: asking.append(asked(played)))
    first = asked(played)
    await settled()
    await played.offer(text)
    assert await first == snapshot()
    assert asking == []
    await played.offer(text)
    assert await asking[0] == snapshot()


async def test_a_snapshot_that_is_damaged_ends_the_connection_with_words(tmp_path: Path) -> None:
    clock = ManualClock()
    async with Recorder(tmp_path / "a.gz", clock=clock) as recorder:
        tap = recorder.connection("user")
        tap("{}\x1e", clock.boottime())
        tap.snapshot('{"taken_at":"never"}', clock.boottime())
    recording = await asyncio.to_thread(Recording, tmp_path / "a.gz")
    link = Playback(recording, SignalRFrames, speed=None, clock=clock).link("user")
    await link.open(lambda *_: None)
    lost = await link.closed()
    assert (lost.reason, lost.allow_reconnect) == ("end", False)
    assert "a snapshot is damaged" in (lost.error or "")
    await link.close()
