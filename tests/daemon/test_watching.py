"""Recordings played for the command line: each thing in its order, with the time of the day, and what was missing."""

import asyncio
from pathlib import Path

import pytest

from keepline.daemon.watching import Told, replay, speed_of
from keepline.errors import ConfigError
from keepline.stream.recorder import Recorder
from keepline.stream.recording import BlockWriter, Entry, Head
from keepline.testing import ManualClock

QUOTE = '{"type":1,"target":"GatewayQuote","arguments":["MNQ",{"lastPrice":%d,"bestBid":1}]}\x1e'
POSITION = '{"type":1,"target":"GatewayUserPosition","arguments":["none"]}\x1e'


def written(path: Path, head: Head, *entries: Entry) -> Path:
    writer = BlockWriter(head)
    blocks = [block for entry in entries if (block := writer.add(entry))]
    path.write_bytes(b"".join([*blocks, writer.flush() or b""]))
    return path


async def test_each_thing_comes_in_its_order_with_its_time(tmp_path: Path) -> None:
    clock = ManualClock()
    head = Head(started_at=clock.wall(), stream="top", broker="projectx")
    path = await asyncio.to_thread(
        written, tmp_path / "a.gz", head,
        Entry(0.0, 1, "open", "market"), Entry(0.5, 1, "text", "{}\x1e" + QUOTE % 7),
        Entry(1.0, 2, "open", "user"), Entry(1.0, 2, "text", "{}\x1e" + POSITION),
        Entry(1.5, 2, "snapshot", "{}"), Entry(2.0, 1, "missed", "3"), Entry(2.5, 1, "lost", "cut"),
    )  # fmt: skip
    told: list[Told] = []
    played = await replay(path, told.append, speed=None, clock=clock)
    assert [(t.kind, t.stream, (t.at - head.started_at).total_seconds()) for t in told] == [
        ("event", "top.market", 0.0), ("quote", "top.market", 0.5), ("event", "top.user", 1.0),
        ("event", "top.user", 1.5), ("event", "top.market", 2.0), ("event", "top.market", 2.5),
    ]  # fmt: skip
    assert told[1].value.last == 7.0
    assert told[1].value.at == told[1].at  # the broker told no time
    assert [t.value.kind.value for t in told if t.kind == "event"] == [
        "connected", "connected", "reconciling", "overflow", "lost",
    ]  # fmt: skip
    assert "3 frames are not in the recording" in told[4].value.reason
    assert (played.messages, played.frames, played.connections, played.missed) == (1, 2, 2, 3)
    assert (played.last, played.damage) == (told[-1].at, None)


async def test_a_recording_without_anything_is_played_too(tmp_path: Path) -> None:
    async with Recorder(tmp_path / "a.gz", broker="schwab"):
        pass
    played = await replay(tmp_path / "a.gz", pytest.fail, speed=None)
    assert (played.messages, played.last) == (0, None)


async def test_a_recording_of_an_unknown_broker_is_said(tmp_path: Path) -> None:
    async with Recorder(tmp_path / "a.gz", broker="elsewhere"):
        pass
    with pytest.raises(ConfigError, match="no broker 'elsewhere' is known here"):
        await replay(tmp_path / "a.gz", pytest.fail)


async def test_what_shows_it_and_fails_ends_it(tmp_path: Path) -> None:
    async with Recorder(tmp_path / "a.gz", broker="schwab") as recorder:
        recorder.connection("schwab")

    def gone(_: Told) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await replay(tmp_path / "a.gz", gone)


@pytest.mark.parametrize(
    ("words", "speed"), [("max", None), ("1", 1.0), ("0.5", 0.5), ("20", 20.0)]
)
def test_a_speed_as_people_write_it(words: str, speed: float | None) -> None:
    assert speed_of(words) == speed


@pytest.mark.parametrize("words", ["", "fast", "0", "-1", "inf", "nan"])
def test_what_is_no_speed_is_said(words: str) -> None:
    with pytest.raises(ConfigError, match="a number above 0 or max"):
        speed_of(words)
