"""Recordings: what was taken comes back as it was; a damaged file gives what is before the damage and says so."""

import asyncio
import gzip
import resource
import stat
from collections.abc import Coroutine
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import Closed, ConfigError, PermanentError
from keepline.stream import recorder as recorder_module
from keepline.stream.codec import codec
from keepline.stream.messages import Invocation
from keepline.stream.playback import Playback, SignalRFrames
from keepline.stream.recorder import Recorder
from keepline.stream.recording import BlockWriter, Entry, Head, Recording
from keepline.testing import ManualClock

QUOTE = '{"type":1,"target":"GatewayQuote","arguments":["MNQ",{"lastPrice":%d}]}\x1e'


def quotes(path: Path, clock: ManualClock, *, connections: int = 1, frames: int = 3) -> Path:
    with Recorder(path, stream="topstep", broker="projectx", clock=clock) as recorder:
        for number in range(connections):
            tap = recorder.connection("market")
            tap("{}\x1e", clock.boottime())
            for n in range(frames):
                clock.advance(1.0)
                tap(QUOTE % (number * 100 + n), clock.boottime())
            tap.lost("cut", clock.boottime())
    return path


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def recording(tmp_path: Path, clock: ManualClock) -> Recording:
    return Recording(quotes(tmp_path / "two.klrec.gz", clock, connections=2, frames=3))


def test_what_was_taken_comes_back_with_its_times(tmp_path: Path, clock: ManualClock) -> None:
    recording = Recording(quotes(tmp_path / "a.klrec.gz", clock))
    assert (recording.head.broker, recording.head.stream) == ("projectx", "topstep")
    entries = list(recording)
    assert [e.kind for e in entries] == ["open", *["text"] * 4, "lost"]
    assert [e.at for e in entries] == [0.0, 0.0, 1.0, 2.0, 3.0, 3.0]
    assert entries[0].data == "market"
    assert entries[4].data == QUOTE % 2
    assert recording.damage is None
    assert list(recording) == entries  # as often as asked


@given(
    st.lists(
        st.one_of(
            st.builds(Entry, st.sampled_from((0.0, 0.25, 7e5)), st.integers(1, 9), st.just("text"), st.text()),
            st.builds(Entry, st.just(1.5), st.integers(1, 9), st.just("binary"), st.binary()),
        )
    ),
    st.integers(1, 300),
)  # fmt: skip
def test_any_frames_survive_any_block_size(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], block: int
) -> None:
    writer = BlockWriter(Head(started_at=ManualClock().wall()), block_bytes=block)
    blocks = [b for e in entries if (b := writer.add(e))] + [writer.flush() or b""]
    path = tmp_path_factory.mktemp("r") / "x.gz"
    path.write_bytes(b"".join(blocks))
    assert list(Recording(path)) == entries


def test_the_file_is_ours_alone_and_plain_tools_read_it(tmp_path: Path, clock: ManualClock) -> None:
    path = quotes(tmp_path / "deep" / "a.klrec.gz", clock)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert gzip.decompress(path.read_bytes()).startswith(b'{"format":"keepline-stream"')


def test_a_recording_is_never_overwritten(tmp_path: Path, clock: ManualClock) -> None:
    path = quotes(tmp_path / "a.klrec.gz", clock)
    with pytest.raises(ConfigError, match=r"a\.klrec\.gz exists: .* choose another name"):
        Recorder(path).start()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        Recorder(tmp_path / "file" / "a.gz").start()


def test_a_cut_tail_gives_what_is_before_it_and_says_so(tmp_path: Path, clock: ManualClock) -> None:
    writer = BlockWriter(Head(started_at=clock.wall()), block_bytes=1)
    blocks = [writer.add(Entry(float(n), 1, "text", f"frame {n}")) or b"" for n in range(4)]
    whole, path = b"".join(blocks), tmp_path / "a.gz"
    before_last = len(whole) - len(blocks[-1])
    for cut in range(before_last, len(whole)):
        path.write_bytes(whole[:cut])
        recording = Recording(path)
        assert [e.data for e in recording][:3] == ["frame 0", "frame 1", "frame 2"]
        assert (recording.damage is None) == (cut == before_last)


def test_flipped_bytes_end_the_reading_with_words(tmp_path: Path, clock: ManualClock) -> None:
    writer = BlockWriter(Head(started_at=clock.wall()), block_bytes=1)
    first, second = (writer.add(Entry(float(n), 1, "text", "x" * 50)) or b"" for n in range(2))
    path = tmp_path / "a.gz"
    path.write_bytes(first + second[:20] + b"\xff\xff\xff" + second[23:])
    recording = Recording(path)
    assert len(list(recording)) == 1
    assert recording.damage is not None
    assert str(path) in recording.damage


def test_a_line_that_is_none_ends_the_reading_with_its_number(tmp_path: Path) -> None:
    writer = BlockWriter(Head(started_at=ManualClock().wall()))
    path = tmp_path / "a.gz"
    path.write_bytes((writer.flush() or b"") + gzip.compress(b'[1.0,1,"text"]\nnonsense\n'))
    recording = Recording(path)
    assert [e.kind for e in recording] == ["text"]
    assert recording.damage is not None
    assert "line 3 is damaged" in recording.damage


@pytest.mark.parametrize(
    "line",
    ['[1e300,1,"text","{}"]', '[-1,1,"text","{}"]', '[2,1,"missed","many"]', '[2,1,"missed",""]',
     '[2,1,"binary","!"]', '[2,1,"text","\\ud800"]', "[2]", "\xff", "null"],
)  # fmt: skip
def test_a_line_that_no_recorder_writes_is_damage(tmp_path: Path, line: str) -> None:
    head = '{"started_at":"2026-01-05T00:00:00Z"}\n[1,1,"open","user"]\n'
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress((head + line + "\n").encode("latin-1")))
    recording = Recording(path)
    assert [entry.kind for entry in recording] == ["open"]
    assert "line 3 is damaged" in (recording.damage or "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a recording"),
        (b"plain text", "is not a recording"),
        (gzip.compress(b"{}\n"), "is not a recording"),
        (gzip.compress(b'{"started_at":"2026-01-05T00:00:00Z","format":"other"}\n'), "not a recording"),
        (gzip.compress(b'{"started_at":"2026-01-05T00:00:00"}\n'), "not a recording"),
        (gzip.compress(b'{"started_at":"0001-01-05T00:00:00Z"}\n'), "not a recording"),
        (gzip.compress(b'{"started_at":"2026-01-05T00:00:00Z","version":2}\n'), "of version 2, this program reads 1"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused_by_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        Recording(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.gz cannot be read: No such file"):
        Recording(tmp_path / "nothing.gz")


def test_frames_beyond_the_bound_are_counted_in_the_recording(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_PENDING_BYTES", 100)
    monkeypatch.setattr(recorder_module, "_FLUSH_SECONDS", 3600.0)  # the disk stands still
    path = tmp_path / "a.gz"
    with Recorder(path, clock=clock) as recorder:
        tap = recorder.connection("market")
        for _ in range(5):
            tap("x" * 40, clock.boottime())
        assert (recorder.frames, recorder.missed) == (2, 3)
    assert [(e.kind, e.data) for e in Recording(path)][-1] == ("missed", "3")


def test_a_full_disk_ends_the_recording_once_and_leaves_the_stream_alone(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path / "a.gz", clock=clock)
    recorder.start()
    tap = recorder.connection("market")
    tap("a frame", clock.boottime())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # the disk takes one byte
    try:
        recorder.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    tap("another", clock.boottime())
    assert recorder.failure is not None
    assert "File too large" in recorder.failure
    assert [r.message for r in caplog.records if "Recording ended" in r.message] != []


def test_a_stopped_recorder_says_so(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a.gz") as recorder:
        pass
    recorder.stop()
    with pytest.raises(Closed, match="stopped"):
        recorder.connection("market")


def test_bytes_that_are_text_are_written_as_text(tmp_path: Path, clock: ManualClock) -> None:
    """So that people can read a recording of JSON; half a character at the end of a chunk stays as it is."""
    for encoding, kinds in (("json", ["text", "binary"]), ("messagepack", ["binary", "binary"])):
        with Recorder(tmp_path / encoding, encoding=encoding, clock=clock) as recorder:
            tap = recorder.connection("market")
            tap('{"é":1}\x1e'.encode(), clock.boottime())
            tap(b'{"\xc3', clock.boottime())
        _, *frames = Recording(tmp_path / encoding)
        assert [frame.kind for frame in frames] == kinds
        data = b"".join(f.data.encode() if isinstance(f.data, str) else f.data for f in frames)
        assert data == '{"é":1}\x1e'.encode() + b'{"\xc3'


def test_a_handshake_in_text_begins_a_binary_session_too() -> None:
    reader = SignalRFrames("messagepack")
    assert reader.receive("{}\x1e", 0.0) == []
    assert reader.receive(codec("messagepack").encode(Invocation("Echo", ["x"])), 0.0) == [
        ("Echo", ["x"])
    ]


async def in_time(clock: ManualClock, work: Coroutine[object, object, int]) -> int:
    """Let time run while `work`, which also waits for a thread, goes on."""
    time = asyncio.ensure_future(clock.run_until(lambda: False))
    try:
        return await work
    finally:
        time.cancel()


class TestPlayback:
    async def test_a_session_plays_at_its_own_pace(
        self, recording: Recording, clock: ManualClock
    ) -> None:
        began = clock.boottime()
        heard: list[tuple[object, float]] = []

        def sink(channel: str, arguments: object, at: float) -> None:
            heard.append((arguments, at - began))
            assert clock.boottime() == at

        playback = Playback(recording, SignalRFrames, clock=clock)
        assert await in_time(clock, playback.run(sink)) == 6
        assert [at for _, at in heard] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert heard[1][0] == ["MNQ", {"lastPrice": 1}]

    async def test_twice_the_pace_takes_half_the_time(
        self, recording: Recording, clock: ManualClock
    ) -> None:
        began = clock.boottime()
        playback = Playback(recording, SignalRFrames, speed=2.0, clock=clock)
        await in_time(clock, playback.run(lambda *_: None))
        assert clock.boottime() - began == 3.0

    async def test_full_speed_keeps_the_recorded_arrival_times(
        self, recording: Recording, clock: ManualClock
    ) -> None:
        began, times, kinds = clock.boottime(), [], []
        playback = Playback(recording, SignalRFrames, speed=None, clock=clock)
        count = await playback.run(
            lambda channel, arguments, at: times.append(at - began),
            watch=lambda entry: kinds.append(entry.kind),
        )
        assert count == 6
        assert times == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert clock.boottime() == began
        assert (kinds.count("open"), kinds.count("lost")) == (2, 2)

    async def test_each_link_plays_the_next_connection_of_its_label(
        self, recording: Recording, clock: ManualClock
    ) -> None:
        playback = Playback(recording, SignalRFrames, speed=None, clock=clock)
        heard: list[object] = []
        for expected in (2, 102):
            link = playback.link("market")
            await link.open(lambda channel, arguments, at: heard.append(arguments[1]))
            lost = await link.closed()
            assert (lost.error, lost.allow_reconnect) == ("cut", True)
            assert heard[-1] == {"lastPrice": expected}
            await link.close()
        for label in ("market", "user"):
            with pytest.raises(PermanentError, match="no further connection"):
                await playback.link(label).open(lambda *_: None)

    async def test_a_recording_that_went_away_ends_without_a_way_back(
        self, recording: Recording, clock: ManualClock
    ) -> None:
        link = Playback(recording, SignalRFrames, speed=None, clock=clock).link("market")

        def gone(*_: object) -> None:
            pytest.fail("nothing is there to be played")

        playing = link._playback.next_connection
        link._playback.next_connection = lambda label: (playing(label), recording.path.unlink())[0]  # type: ignore
        await link.open(gone)
        lost = await link.closed()
        assert (lost.reason, lost.allow_reconnect) == ("end", False)
        assert "cannot be read" in lost.error
        await link.close()

    async def test_a_recording_that_just_stops_ends_without_a_way_back(
        self, tmp_path: Path, clock: ManualClock
    ) -> None:
        async with Recorder(tmp_path / "a.gz", clock=clock) as recorder:
            recorder.connection("market")("{}\x1e", clock.boottime())
        recording = await asyncio.to_thread(Recording, tmp_path / "a.gz")
        link = Playback(recording, SignalRFrames, speed=None, clock=clock).link()
        with pytest.raises(Closed):
            await link.closed()
        await link.open(lambda *_: None)
        lost = await link.closed()
        assert (lost.reason, lost.allow_reconnect) == ("end", False)
        with pytest.raises(Closed):
            await link.open(lambda *_: None)
        await link.close()

    async def test_a_link_can_be_stopped_in_the_middle(
        self, recording: Recording, clock: ManualClock
    ) -> None:
        link = Playback(recording, SignalRFrames, clock=clock).link("market")
        await link.open(lambda *_: None)
        await link.close()
        assert (await link.closed()).reason == "stopped"

    async def test_a_file_that_goes_away_ends_the_link_with_words(
        self, recording: Recording, clock: ManualClock
    ) -> None:
        link = Playback(recording, SignalRFrames, clock=clock).link("market")
        gone = Playback(recording, SignalRFrames, clock=clock).link("market")
        await link.open(lambda *_: None)
        await link.close()
        await asyncio.to_thread(recording.path.unlink)
        with pytest.raises(ConfigError, match="cannot be read"):
            await gone.open(lambda *_: None)

    async def test_what_the_server_said_at_the_end_is_told(self) -> None:
        reader = SignalRFrames()
        assert reader.receive("{}\x1e" + QUOTE % 7, 0.0) == [
            ("GatewayQuote", ["MNQ", {"lastPrice": 7}])
        ]
        assert reader.receive('{"type":7,"error":"over"}\x1e', 1.0) == []
        assert "over" in (reader.over or "")

    def test_an_encoding_that_is_none_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="no such encoding"):
            SignalRFrames("xml")

    @pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan")])
    def test_a_speed_that_is_none_is_refused(self, recording: Recording, speed: float) -> None:
        with pytest.raises(ConfigError, match="a positive speed is needed"):
            Playback(recording, SignalRFrames, speed=speed)
