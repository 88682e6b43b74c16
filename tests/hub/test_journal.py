"""The journal of messages: on the disk before anybody is told, in order, once, across crashes and full disks."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keepline.errors import Closed, ConfigError, QueueFull, StorageError
from keepline.hub.entries import Entry, Retention
from keepline.hub.journal import COMMITS, FAILURES, WRITES, MessageJournal
from keepline.hub.journal_file import JournalFile
from keepline.testing import ManualClock

ALERT = b'{"title":"LP gone"}'
DAY = 86_400.0


@pytest.fixture
def path(clean_environment: Path) -> Path:
    return clean_environment / "data" / "hub.messages"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Callable[..., object]]:
    journals: list[MessageJournal] = []

    async def make(**options: object) -> MessageJournal:
        journal = MessageJournal(path, **options)
        await journal.start()
        journals.append(journal)
        return journal

    yield make
    for journal in journals:
        await journal.close()


def entry(own: str, at: float) -> Entry:
    return Entry("alerts", 0, "alert", None, own, at, ALERT)


# --- what it keeps ---


async def test_a_message_gets_the_next_offset_and_is_there_after_a_restart(opened) -> None:
    journal = await opened(clock=ManualClock())
    first = await journal.append("alerts", "alert", ALERT, key="LP1", id="one")
    second = await journal.append("alerts", "alert", b"{}", at=12.5)
    assert (first.new, first.entry.offset, second.entry.offset) == (True, 1, 2)
    assert first.entry.at == ManualClock().wall().timestamp()
    assert len(second.entry.id) == 24
    before = await journal.position("alerts")
    await journal.close()
    again = await opened()
    assert await again.read("alerts", 0) == [first.entry, second.entry]
    assert await again.position("alerts") == before
    assert (before.offset, before.oldest) == (2, 1)


async def test_an_epoch_is_one_channels_and_one_files(opened, path: Path) -> None:
    journal = await opened()
    alerts, other = await journal.position("alerts"), await journal.position("other")
    assert alerts.epoch != other.epoch
    assert (alerts.offset, alerts.oldest) == (0, None)
    await journal.close()
    assert (await (await opened()).position("alerts")).epoch == alerts.epoch
    for left in path.parent.iterdir():
        left.unlink()
    assert (await (await opened()).position("alerts")).epoch != alerts.epoch


async def test_a_known_id_is_not_written_again(opened) -> None:
    told: list[Entry] = []
    journal = await opened(on_stored=told.append)
    writes = WRITES.value()
    first = await journal.append("alerts", "alert", ALERT, id="one")
    again = await journal.append("alerts", "alert", b'{"other":1}', id="one")
    elsewhere = await journal.append("other", "alert", ALERT, id="one")
    assert again == (first.entry, False)
    assert elsewhere.new
    assert told == [first.entry, elsewhere.entry]
    assert WRITES.value() - writes == 2
    assert await journal.find("alerts", "one") == first.entry
    assert await journal.find("alerts", "two") is None
    assert await journal.find("nowhere", "one") is None


async def test_the_same_id_twice_in_one_commit_is_written_once(opened) -> None:
    journal = await opened()
    done = await asyncio.gather(*(journal.append("alerts", "alert", ALERT, id="x") for _ in "123"))
    assert [each.new for each in done] == [True, False, False]
    assert {each.entry.offset for each in done} == {1}


async def test_reading_pages_both_ways(opened) -> None:
    journal = await opened()
    for number in range(10):
        await journal.append("alerts", "alert", b"%d" % number)

    def data(entries: list[Entry]) -> list[int]:
        return [int(each.data) for each in entries]

    assert data(await journal.read("alerts", 7)) == [7, 8, 9]
    assert data(await journal.read("alerts", 2, limit=3)) == [2, 3, 4]
    assert data(await journal.latest("alerts", limit=3)) == [7, 8, 9]
    assert data(await journal.latest("alerts", limit=3, before=8)) == [4, 5, 6]
    assert await journal.read("nowhere", 0) == await journal.latest("nowhere") == []
    with pytest.raises(ConfigError, match="at least one"):
        await journal.read("alerts", 0, limit=0)


async def test_retention_by_count_keeps_the_newest_and_never_an_offset_twice(opened) -> None:
    journal = await opened(retention={"alerts": Retention(count=3)})
    for number in range(5):
        await journal.append("alerts", "alert", b"%d" % number, id=str(number))
    assert [each.offset for each in await journal.read("alerts", 0)] == [3, 4, 5]
    assert (await journal.position("alerts")).oldest == 3
    assert (await journal.append("alerts", "alert", b"0", id="0")).entry.offset == 6


async def test_retention_by_age_lets_go_from_the_oldest_on(opened) -> None:
    clock = ManualClock()
    journal = await opened(clock=clock, otherwise=Retention(age_seconds=DAY))
    await journal.append("alerts", "alert", b"1")
    clock.advance(DAY / 2)
    await journal.append("alerts", "alert", b"2")
    clock.advance(DAY / 2 + 1)
    assert await journal.prune() == 1
    assert [each.data for each in await journal.read("alerts", 0)] == [b"2"]
    clock.advance(DAY)
    assert await journal.prune() == 1
    assert await journal.prune() == 0
    position = await journal.position("alerts")
    assert (position.offset, position.oldest) == (2, None)
    await journal.close()
    assert (await (await opened()).append("alerts", "alert", b"3")).entry.offset == 3


async def test_a_wall_clock_that_jumps_back_makes_no_hole(opened) -> None:
    clock = ManualClock()
    journal = await opened(clock=clock, otherwise=Retention(age_seconds=DAY))
    await journal.append("alerts", "alert", b"1")
    clock.jump_wall(-10 * DAY)
    await journal.append("alerts", "alert", b"2")
    clock.jump_wall(10 * DAY)
    assert await journal.prune() == 0
    assert [each.data for each in await journal.read("alerts", 0)] == [b"1", b"2"]


# --- order ---


async def test_each_new_message_is_told_in_order_before_its_caller_goes_on(opened) -> None:
    told: list[int] = []
    journal = await opened(on_stored=lambda each: told.append(each.offset))

    async def one() -> None:
        stored = await journal.append("alerts", "alert", ALERT)
        assert stored.entry.offset in told

    await asyncio.gather(*(one() for _ in range(200)))
    assert told == list(range(1, 201))


async def test_messages_come_from_any_thread_and_share_commits(opened) -> None:
    told: list[int] = []
    journal = await opened(on_stored=lambda each: told.append(each.offset))
    commits, writes = COMMITS.value(), WRITES.value()

    def work() -> None:
        futures = [journal.post("alerts", "alert", ALERT) for _ in range(100)]
        for future in futures:
            future.result()

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    assert told == list(range(1, 401))
    assert WRITES.value() - writes == 400
    assert COMMITS.value() - commits < 400
    assert journal.waiting == 0


async def test_a_cancelled_caller_undoes_nothing(opened) -> None:
    told: list[Entry] = []
    journal = await opened(on_stored=told.append)
    task = asyncio.ensure_future(journal.append("alerts", "alert", ALERT))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await journal.append("alerts", "alert", b"{}")
    assert [each.offset for each in told] == [1, 2]


async def test_a_delivery_that_raises_harms_neither_journal_nor_caller(opened, caplog) -> None:
    def deliver(_: Entry) -> None:
        raise RuntimeError("a fault of the face")

    journal = await opened(on_stored=deliver)
    assert (await journal.append("alerts", "alert", ALERT)).new
    assert "A stored message was not delivered" in caplog.text


async def test_a_full_queue_is_refused_not_forgotten(opened) -> None:
    journal = await opened(capacity=2)
    hold, held = threading.Event(), threading.Event()

    def wait(_: JournalFile) -> None:
        held.set()
        hold.wait()

    waiting = asyncio.ensure_future(journal._do(wait))
    await asyncio.to_thread(held.wait)
    posted = [journal.post("alerts", "alert", b"%d" % n) for n in range(2)]
    with pytest.raises(QueueFull, match="too slow"):
        journal.post("alerts", "alert", b"2")
    assert journal.waiting == 2
    hold.set()
    await waiting
    assert [(await asyncio.wrap_future(each)).entry.offset for each in posted] == [1, 2]
    assert (await journal.append("alerts", "alert", b"2")).entry.offset == 3


# --- what goes wrong ---


async def test_one_journal_has_one_owner(opened, path: Path) -> None:
    journal = await opened()
    with pytest.raises(StorageError, match=r"another program \(process \d+\)"):
        await opened()
    with pytest.raises(StorageError, match="open already"):
        await journal.start()
    await journal.close()
    await journal.close()
    await opened()


async def test_a_start_that_is_given_up_gives_the_file_up(opened, path: Path) -> None:
    journal = MessageJournal(path)
    starting = asyncio.ensure_future(journal.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not [each for each in threading.enumerate() if path.name in each.name]
    await opened()
    with pytest.raises(StorageError):
        await journal.start()


async def test_a_closed_journal_says_so(opened) -> None:
    journal = await opened()
    await journal.close()
    with pytest.raises(Closed):
        await journal.append("alerts", "alert", ALERT)
    with pytest.raises(Closed):
        await journal.read("alerts", 0)
    assert "closed" in repr(journal)


async def test_close_finishes_what_was_asked(opened, path: Path) -> None:
    journal = await opened()
    posted = [journal.post("alerts", "alert", b"%d" % n) for n in range(1000)]
    await journal.close()
    assert all(each.result(0).new for each in posted)
    assert (await (await opened()).position("alerts")).offset == 1000


BAD = [
    ({"channel": ""}, "channel"),
    ({"channel": "x" * 129}, "channel"),
    ({"channel": 5}, "channel"),
    ({"type": "\ud800"}, "type"),
    ({"id": ""}, "id"),
    ({"key": ""}, "key"),
    ({"data": "text"}, "data"),
    ({"data": bytes((16 << 20) + 1)}, "data"),
    ({"at": float("nan")}, "at"),
]


@pytest.mark.parametrize(("change", "key"), BAD, ids=lambda each: str(each)[:30])
async def test_what_cannot_be_stored_is_refused_before_it_harms_its_neighbours(
    opened, change, key: str
) -> None:
    journal = await opened()
    good = {"channel": "alerts", "type": "alert", "data": ALERT}
    with pytest.raises(ConfigError) as caught:
        journal.post(**{**good, **change})
    assert caught.value.key == key
    assert (await journal.append(**good)).new


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 0},
        {"retention": {"alerts": Retention(count=0)}},
        {"otherwise": Retention(age_seconds=0)},
    ],
)
def test_settings_that_keep_nothing_are_refused(path: Path, options) -> None:
    with pytest.raises(ConfigError):
        MessageJournal(path, **options)


async def test_a_full_disk_loses_nothing_and_is_said(opened, caplog) -> None:
    told: list[Entry] = []
    journal = await opened(on_stored=told.append)
    await journal.append("alerts", "alert", b"1")
    await journal._do(lambda file: file._db.execute("PRAGMA max_page_count=1"))
    failures = FAILURES.value()
    with pytest.raises(StorageError, match="disk is full; free some space"):
        await journal.append("alerts", "alert", b"x" * 200_000)
    assert FAILURES.value() - failures == 1
    assert "Message not stored" in caplog.text
    assert len(told) == 1
    assert journal.failure is None  # with room again it goes on
    await journal._do(lambda file: file._db.execute("PRAGMA max_page_count=1000000"))
    assert (await journal.append("alerts", "alert", b"2")).entry.offset == 2
    assert [each.data for each in told] == [b"1", b"2"]


async def test_a_locked_file_is_waited_for_and_then_said(opened, path: Path) -> None:
    journal = await opened()
    await journal._do(lambda file: file._db.execute("PRAGMA busy_timeout=1"))
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="keeps it locked"):
            await journal.append("alerts", "alert", ALERT)
        other.execute("ROLLBACK")
    other.close()
    assert journal.failure is None
    assert (await journal.append("alerts", "alert", ALERT)).entry.offset == 1


async def test_after_a_failure_in_doubt_nothing_is_written_but_what_is_there_is_read(
    opened,
) -> None:
    journal = await opened()
    await journal.append("alerts", "alert", b"1")

    def fail(file: JournalFile) -> None:
        with file._watched():
            file._db.execute("INSERT INTO channels(number) VALUES(NULL)")  # an error of the file

    with pytest.raises(StorageError):
        await journal._do(fail, "write")
    await journal.read("alerts", 0)
    assert journal.failure is not None
    assert "failed" in repr(journal)
    with pytest.raises(StorageError):
        await journal.append("alerts", "alert", b"2")
    assert [each.data for each in await journal.read("alerts", 0)] == [b"1"]
    await journal.close()
    again = await opened()
    assert (await again.append("alerts", "alert", b"2")).entry.offset == 2


async def test_one_fault_fails_its_group_whole_and_gives_no_offset_away(opened) -> None:
    journal = await opened()
    hold, held = threading.Event(), threading.Event()

    def wait(_: JournalFile) -> None:
        held.set()
        hold.wait()

    def fault(_: JournalFile) -> None:
        raise RuntimeError("a fault")

    waiting = asyncio.ensure_future(journal._do(wait))
    await asyncio.to_thread(held.wait)
    good = journal.post("new", "alert", ALERT)
    bad = journal._ask(fault, "write")  # in one group with the good one
    hold.set()
    await waiting
    for each in (good, bad):
        with pytest.raises(StorageError, match="a fault"):
            await asyncio.wrap_future(each)
    assert (await journal.position("new")).offset == 0
    assert (await journal.append("new", "alert", ALERT)).entry.offset == 1


async def test_words_of_any_language_come_back_as_they_were(opened) -> None:
    journal = await opened()
    text = "Währung 円 \0 '\"; DROP TABLE messages"
    stored = await journal.append("ä", "t", b"\xff\0", key=text, id=text)
    assert await journal.find("ä", text) == stored.entry
    assert await journal.read("ä", 0) == [stored.entry]
    assert (stored.entry.key, stored.entry.data) == (text, b"\xff\0")


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs(x)")
    db.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()


def strangers(path: Path) -> None:
    path.parent.chmod(0o777)


def link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def lock_is_a_directory(path: Path) -> None:
    lock = path.with_name(f"{path.name}.lock")
    lock.unlink()
    lock.mkdir()


def fifo(path: Path) -> None:
    import os

    lock = path.with_name(f"{path.name}.lock")
    lock.unlink()
    os.mkfifo(lock)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damaged, "is damaged|damaged"),
        (lambda path: path.write_bytes(b"no database at all" * 500), "damaged, or no journal"),
        (foreign, "another program"),
        (newer, "newer Keepline"),
        (strangers, "chmod go-w"),
        (link, "cannot be used"),
        (lock_is_a_directory, "cannot be used"),
        (fifo, "not a regular file"),
    ],
)
async def test_a_file_that_cannot_be_it_is_refused_with_words(
    opened, path: Path, harm, words: str
) -> None:
    journal = await opened()
    await journal.append("alerts", "alert", b"x" * 5000)
    await journal.close()
    harm(path)
    with pytest.raises(StorageError, match=words) as caught:
        await opened()
    assert caught.value.path == path
    path.parent.chmod(0o700)


async def test_the_file_is_ours_alone(opened, path: Path) -> None:
    await opened()
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


WRITER = """
import asyncio, sys
from keepline.hub.journal import MessageJournal
async def main():
    journal = MessageJournal(sys.argv[1], on_stored=lambda e: print(e.offset, flush=True))
    await journal.start()
    while True:
        await asyncio.gather(*(journal.append("alerts", "alert", b"{}") for _ in range(7)))
asyncio.run(main())
"""


async def test_after_kill_9_all_that_was_told_is_there_and_the_count_goes_on(
    opened, path: Path
) -> None:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, str(path)), stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    told = [int(await program.stdout.readline()) for _ in range(50)]
    program.kill()
    rest = await program.stdout.read()
    told += [int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
    await program.wait()
    assert told == list(range(1, len(told) + 1))
    journal = await opened()
    position = await journal.position("alerts")
    assert position.offset >= told[-1]
    held = [each.offset for each in await journal.latest("alerts", limit=1000)]
    assert held == list(range(held[0], position.offset + 1))
    assert (await journal.append("alerts", "alert", b"{}")).entry.offset == position.offset + 1


# --- the file against a model ---


class FileModel(RuleBasedStateMachine):
    """Whatever is appended, rolled back, pruned and reopened: what is held is the newest, without holes."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = tempfile.TemporaryDirectory(prefix="kl-")
        self.path = Path(self.directory.name) / "data" / "j"
        self.file = JournalFile(self.path)
        self.kept = Retention(count=5, age_seconds=100.0)
        self.held: list[Entry] = []
        self.newest = 0
        self.now = 0.0

    @rule(own=st.sampled_from("abcdefgh"), commit=st.booleans())
    def append(self, own: str, commit: bool) -> None:
        self.now += 1
        self.file.begin()
        stored = self.file.append(entry(own, self.now), self.kept)
        if not commit:
            self.file.roll_back()
            return
        self.file.commit()
        known = next((each for each in self.held if each.id == own), None)
        if known is not None:
            assert stored == (known, False)
            return
        self.newest += 1
        assert (stored.new, stored.entry.offset) == (True, self.newest)
        self.held = [*self.held, stored.entry][-5:]

    @rule(seconds=st.sampled_from([1.0, 50.0, 101.0]))
    def prune(self, seconds: float) -> None:
        self.now += seconds
        self.file.begin()
        gone = self.file.prune("alerts", self.kept, self.now)
        self.file.commit()
        young = [each for each in self.held if each.at >= self.now - 100.0]
        assert gone == len(self.held) - len(young)
        self.held = young

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.file = JournalFile(self.path)

    @invariant()
    def shows_what_is_held(self) -> None:
        assert self.file.read("alerts", 0, 100) == self.held
        if self.file.names():
            self.file.begin()
            position = self.file.position("alerts")
            self.file.roll_back()
            assert position.offset == self.newest
            assert position.oldest == (self.held[0].offset if self.held else None)

    def teardown(self) -> None:
        self.file.close()
        self.directory.cleanup()


TestFileModel = FileModel.TestCase
