"""The journal on a real disk: durable before it says so, owned by one, clear about what is wrong."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.brokers.orders.venue import order_intent

from keepline.brokers.base import IntentKind, OrderIntent
from keepline.brokers.orders import How, OrderJournal, Record, State
from keepline.brokers.orders.journal import COMMITS, WRITES
from keepline.brokers.orders.records import from_row, same_body, to_row
from keepline.brokers.orders.store import JournalFile, leave_decision, read_journal
from keepline.errors import Closed, ConfigError, StorageError
from keepline.files.ownership import owner_of
from keepline.model import Fill, OrderType, Side

WALL = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
FILL = Fill(
    id="t1",
    order_id="7",
    account="A",
    instrument="MNQ",
    side=Side.BUY,
    quantity=Decimal(1),
    price=Decimal("100.25"),
    at=WALL,
)


def record(name: str, state: State = State.SENT, *, minutes: float = 0, **more: object) -> Record:
    at = WALL + timedelta(minutes=minutes)
    given = {"sent_at": at, "prepared_at": at, "changed_at": at} | more
    return Record(intent=order_intent(name), state=state, **given)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "test.orders"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[OrderJournal]:
    journal = OrderJournal(path)
    await journal.start()
    yield journal
    await journal.close()


async def reopened(journal: OrderJournal) -> OrderJournal:
    await journal.close()
    other = OrderJournal(journal.path)
    await other.start()
    return other


# --- what is kept ---


async def test_an_intent_is_kept_whole_across_a_restart(journal: OrderJournal) -> None:
    kept = record("a", how=How.NONE)
    kept = structs.replace(
        kept,
        intent=order_intent(
            "a",
            "0.10",
            type=OrderType.STOP_LIMIT,
            limit_price=Decimal("21000.250"),
            stop_price=Decimal(21000),
            take_profit_ticks=20,
            depends_on=("b", "c"),
            deadline_seconds=5.0,
        ),
    )
    assert await journal.begin(kept) is None
    journal = await reopened(journal)
    assert await journal.find("a") == kept
    await journal.close()


async def test_an_id_is_taken_once_and_the_known_intent_is_told(journal: OrderJournal) -> None:
    first = record("a")
    assert await journal.begin(first) is None
    assert await journal.begin(structs.replace(first, state=State.PREPARED)) == first
    assert await journal.find("a") == first


async def test_where_an_intent_stands_is_kept(journal: OrderJournal) -> None:
    await journal.begin(record("a"))
    now = record(
        "a", State.ADOPTED, how=How.LATE, reason="order 7 is open", order_id="7", target="6"
    )
    await journal.save(now)
    journal = await reopened(journal)
    assert await journal.find("a") == now
    await journal.close()


async def test_an_id_that_nobody_used_is_not_known(journal: OrderJournal) -> None:
    assert await journal.find("nobody") is None


async def test_what_is_unresolved_is_restored_however_old_and_the_rest_only_when_it_is_new(
    journal: OrderJournal,
) -> None:
    for number, state in enumerate(State):
        await journal.begin(record(f"old {state.value}", state, minutes=number - 5000))
        await journal.begin(record(f"new {state.value}", state, minutes=number))
    names = [r.intent.id for r in await journal.restore((WALL - timedelta(days=1)).timestamp())]
    owed = ["prepared", "sent", "unknown", "ambiguous"]
    assert names == [f"old {name}" for name in owed] + [f"new {state.value}" for state in State]
    assert await journal.oldest_owed() == (WALL - timedelta(minutes=5000)).timestamp()


async def test_nothing_is_owed_by_an_empty_journal(journal: OrderJournal) -> None:
    assert await journal.oldest_owed() is None
    assert await journal.restore(0.0) == []


async def test_each_fill_is_new_once(journal: OrderJournal) -> None:
    other = structs.replace(FILL, id="t2", at=WALL - timedelta(seconds=1))
    foreign = structs.replace(FILL, account="B", order_id="8")
    assert await journal.new_fills([FILL, FILL]) == [FILL]
    assert await journal.new_fills([other, FILL, foreign]) == [other, foreign]
    journal = await reopened(journal)
    assert await journal.new_fills([FILL, other]) == []
    assert await journal.fills("7") == [other, FILL]
    await journal.close()


async def test_a_mark_is_kept(journal: OrderJournal) -> None:
    assert await journal.mark("caught up A") is None
    assert await journal.mark("caught up A", 12.5) == 12.5
    journal = await reopened(journal)
    assert await journal.mark("caught up A") == 12.5
    await journal.close()


@given(
    kind=st.sampled_from(IntentKind),
    quantity=st.none() | st.decimals(allow_nan=False, allow_infinity=False),
    state=st.sampled_from(State),
    how=st.sampled_from(How),
    reason=st.text(max_size=40),
    order_id=st.none() | st.text(max_size=10),
    seconds=st.integers(0, 10**9),
)
def test_any_record_comes_back_from_its_row(
    kind: IntentKind,
    quantity: Decimal | None,
    state: State,
    how: How,
    reason: str,
    order_id: str | None,
    seconds: int,
) -> None:
    at = WALL + timedelta(seconds=seconds)
    intent = OrderIntent(id="a", kind=kind, account="A", quantity=quantity)
    kept = Record(
        intent=intent,
        state=state,
        how=how,
        reason=reason,
        order_id=order_id,
        prepared_at=at,
        changed_at=at,
    )
    assert from_row(to_row(kept)) == kept


def test_how_long_a_caller_waits_is_not_part_of_what_it_wants() -> None:
    one = order_intent("a", deadline_seconds=1.0)
    assert same_body(one, order_intent("a", deadline_seconds=2.0))
    assert same_body(one, order_intent("a", "1.0"))
    assert not same_body(one, order_intent("a", 2))


# --- group commit ---


async def test_whoever_waits_while_the_disk_is_busy_shares_the_next_sync(
    journal: OrderJournal,
) -> None:
    commits, writes = COMMITS.value(), WRITES.value()
    await asyncio.gather(*(journal.begin(record(f"i{n}")) for n in range(400)))
    assert WRITES.value() - writes == 400
    assert COMMITS.value() - commits < 100


async def test_entries_keep_their_order(journal: OrderJournal) -> None:
    saves = [journal.save(record("a", reason=str(n))) for n in range(50)]
    await asyncio.gather(journal.begin(record("a")), *saves)
    found = await journal.find("a")
    assert found is not None
    assert found.reason == "49"


async def test_a_caller_that_goes_away_does_not_disturb_the_others(journal: OrderJournal) -> None:
    gone = asyncio.create_task(journal.begin(record("gone")))
    await asyncio.sleep(0)
    gone.cancel()
    assert await journal.begin(record("stays")) is None
    assert await journal.find("gone") is not None


async def test_what_was_asked_before_the_end_is_still_written(path: Path) -> None:
    journal = OrderJournal(path)
    await journal.start()
    begun = [asyncio.create_task(journal.begin(record(f"i{n}"))) for n in range(700)]
    await asyncio.sleep(0)
    await journal.close()
    assert await asyncio.gather(*begun) == [None] * 700
    assert len(await asyncio.to_thread(read_journal, path)) == 700


async def test_a_closed_journal_says_so(journal: OrderJournal) -> None:
    await journal.close()
    await journal.close()
    with pytest.raises(Closed, match="is closed"):
        await journal.begin(record("a"))
    assert "closed" in repr(journal)


# --- whose it is ---


async def test_a_second_owner_is_refused_with_the_first_ones_process(journal: OrderJournal) -> None:
    second = OrderJournal(journal.path)
    with pytest.raises(StorageError, match=f"process {os.getpid()}.*one at a time") as caught:
        await second.start()
    assert caught.value.path == journal.path
    assert await journal.begin(record("a")) is None, "the first is not disturbed"


async def test_a_second_process_is_refused(journal: OrderJournal) -> None:
    program = (
        "import asyncio, sys\nfrom keepline.brokers.orders import OrderJournal\n"
        "asyncio.run(OrderJournal(sys.argv[1]).start())"
    )
    run = [sys.executable, "-c", program, str(journal.path)]
    done = await asyncio.to_thread(subprocess.run, run, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"process {os.getpid()}" in done.stderr


async def test_the_owner_is_known_while_it_lives(journal: OrderJournal) -> None:
    assert await asyncio.to_thread(owner_of, journal.path) == os.getpid()
    await journal.close()
    assert await asyncio.to_thread(owner_of, journal.path) is None
    assert await asyncio.to_thread(owner_of, journal.path.with_name("none")) is None


async def test_a_journal_is_free_again_after_its_owner(journal: OrderJournal) -> None:
    await journal.begin(record("a"))
    journal = await reopened(journal)
    assert await journal.find("a") is not None
    await journal.close()


async def test_files_are_private(journal: OrderJournal) -> None:
    await journal.begin(record("a"))
    modes = {p.name: p.stat().st_mode & 0o777 for p in journal.path.parent.iterdir()}
    assert set(modes) == {f"test.orders{suffix}" for suffix in ("", "-wal", "-shm", ".lock")}
    assert set(modes.values()) == {0o600}
    assert journal.path.parent.stat().st_mode & 0o777 == 0o700


# --- what can be wrong ---


def refused(path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        asyncio.run(OrderJournal(path).start())
    assert owner_of(path) is None, "nobody is locked out after that"
    return str(caught.value)


def made(path: Path) -> Path:
    async def make() -> None:
        journal = OrderJournal(path)
        await journal.start()
        await asyncio.gather(*(journal.begin(record(f"i{n}")) for n in range(200)))
        await journal.close()

    asyncio.run(make())
    return path


def test_a_file_that_is_no_journal_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("this is not a database, it is a shopping list" * 50)
    path.chmod(0o600)
    said = refused(path)
    assert str(path) in said
    assert "no journal at all" in said
    assert "check each open order at the broker" in said


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE recipes(name)")
    db.commit()
    db.close()
    path.chmod(0o600)
    assert "database of another program" in refused(path)
    with pytest.raises(StorageError, match="another program"):
        read_journal(path)


def test_a_journal_of_a_newer_program_is_refused(path: Path) -> None:
    db = sqlite3.connect(made(path))
    db.execute("PRAGMA user_version=99")
    db.close()
    assert "newer Keepline (version 99" in refused(path)


def test_a_damaged_journal_is_refused(path: Path) -> None:
    data = bytearray(made(path).read_bytes())
    data[4096 : len(data)] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    said = refused(path)
    assert "damaged" in said
    assert "check each open order at the broker" in said


def test_a_journal_that_was_cut_short_is_refused(path: Path) -> None:
    data = made(path).read_bytes()
    path.write_bytes(data[: len(data) // 2 - 100])
    assert "damaged" in refused(path)


def test_one_damaged_entry_is_named(path: Path) -> None:
    db = sqlite3.connect(made(path))
    db.execute("UPDATE orders SET body='{' WHERE id='i7'")
    db.commit()
    db.close()

    async def use() -> None:
        journal = OrderJournal(path)
        await journal.start()
        try:
            other, damaged = await asyncio.gather(
                journal.find("i8"), journal.find("i7"), return_exceptions=True
            )
            assert isinstance(other, Record), "the others can be read"
            assert isinstance(damaged, StorageError)
            assert "'i7'" in str(damaged)
            with pytest.raises(StorageError, match="'i7'"):
                await journal.restore(0.0)
        finally:
            await journal.close()

    asyncio.run(use())


def test_a_link_in_its_place_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    assert "order journal cannot be used" in refused(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_others_can_write_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    assert "chmod go-w" in refused(path)


def test_a_lock_file_that_is_none_is_refused(path: Path) -> None:
    path.parent.mkdir()
    lock = path.with_name(f"{path.name}.lock")
    os.mkfifo(lock, 0o600)
    with pytest.raises(StorageError, match="lock file is not a regular file"):
        asyncio.run(OrderJournal(path).start())


FULL = """
import asyncio, resource, signal, sys, types
tests = types.ModuleType("tests")
tests.__path__ = [sys.argv[2]]
sys.modules["tests"] = tests
from tests.brokers.orders.venue import order_intent, PlainBroker, Venue
from keepline.brokers.orders import OrderGateway
from keepline.errors import StorageError
from keepline.testing import ManualClock

async def main():
    broker = PlainBroker(Venue(ManualClock()))
    refused, said = 0, ""
    async with OrderGateway(broker, sys.argv[1]) as gateway:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        for number in range(300):
            try:
                await gateway.place(order_intent(f"i{number}"))
            except StorageError as error:
                refused, said = refused + 1, str(error)
    print(refused, len(broker.sent), said)

asyncio.run(main())
"""


def test_a_disk_that_takes_no_more_is_a_clear_error_and_nothing_is_sent(path: Path) -> None:
    run = [sys.executable, "-c", FULL, str(path), str(Path(__file__).parents[2])]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, sent, said = done.stdout.split(" ", 2)
    assert int(refused) > 0
    assert int(sent) == 300 - int(refused), "what could not be written was not sent"
    assert str(path) in said
    kept = {r.intent.id for r in read_journal(path, all_records=True)}
    assert kept >= {f"i{n}" for n in range(int(sent))}, "all that was sent is in the journal"


async def test_a_full_disk_that_has_room_again_is_used_again(path: Path) -> None:
    """SQLite's own limit of pages stands for the disk here: it fails the same way, and can be lifted."""
    journal = OrderJournal(path)
    await journal.start()
    await journal._do(lambda file: file._db.execute("PRAGMA max_page_count=1"))
    failures = await asyncio.gather(
        *(journal.begin(record(f"i{n}")) for n in range(200)), return_exceptions=True
    )
    assert any(
        isinstance(f, StorageError) and "the disk is full; free some space" in str(f)
        for f in failures
    )
    await journal._do(lambda file: file._db.execute("PRAGMA max_page_count=100000"))
    assert await journal.begin(record("after")) is None
    kept = {r.intent.id for r in await journal.restore(0.0)}
    told = {f"i{n}" for n, f in enumerate(failures) if f is None}
    assert kept == told | {"after"}, "exactly what was promised"
    await journal.close()


async def test_after_an_error_of_the_device_nothing_more_is_written(
    journal: OrderJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        """A connection whose sync fails once."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self._real = real

        def execute(self, sql: str, *more: object) -> sqlite3.Cursor:
            if sql == "COMMIT":
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise error
            return self._real.execute(sql, *more)

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    def spoil(file: object) -> None:
        file._db = Failing(file._db)

    def heal(file: object) -> None:
        file._db = file._db._real

    with pytest.raises(StorageError, match="disk reports an error"):
        await journal._do(spoil)
    with pytest.raises(StorageError, match="disk reports an error"):
        await journal.begin(record("a"))
    with pytest.raises(StorageError):
        await journal._do(heal)
    with pytest.raises(StorageError, match="disk reports an error"):
        await journal.begin(record("b"))


# --- beside the owner ---


async def test_a_journal_is_read_beside_its_owner(journal: OrderJournal) -> None:
    await journal.begin(record("a", State.UNKNOWN))
    await journal.begin(record("b", State.ACCEPTED, minutes=1, order_id="7"))
    assert [r.intent.id for r in await asyncio.to_thread(read_journal, journal.path)] == ["a"]
    everything = await asyncio.to_thread(read_journal, journal.path, all_records=True, limit=1)
    assert [r.intent.id for r in everything] == ["b"]


async def test_a_decision_waits_for_the_owner(journal: OrderJournal) -> None:
    await journal.begin(record("a", State.AMBIGUOUS))
    await asyncio.to_thread(leave_decision, journal.path, "a", "7", "seen")
    await asyncio.to_thread(leave_decision, journal.path, "a", None, "or not")
    first, second = await journal.decisions()
    assert (first.intent_id, first.order_id, first.reason) == ("a", "7", "seen")
    assert second.order_id is None
    await journal.taken_up([first.number])
    assert await journal.decisions() == [second]


def test_a_decision_about_nothing_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="no order journal"):
        leave_decision(path, "a", "7", "")
    with pytest.raises(ConfigError, match="no order journal"):
        read_journal(path)
    with pytest.raises(ConfigError, match="no intent 'nobody'"):
        leave_decision(made(path), "nobody", "7", "")


def test_each_commit_is_synced(path: Path) -> None:
    file = JournalFile(path)
    try:
        assert file._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert file._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        file.close()


# --- one owner, one line ---


async def test_an_open_journal_has_one_gateway(journal: OrderJournal) -> None:
    with pytest.raises(StorageError, match="one gateway owns a journal"):
        await journal.start()
    await journal.begin(record("a"))
    assert await journal.find("a") is not None


async def test_what_has_no_line_in_the_journal_is_not_taken_for_written(
    journal: OrderJournal,
) -> None:
    written = asyncio.gather(
        journal.begin(record("a")),
        journal.save(record("gone")),
        journal.begin(record("b")),
        return_exceptions=True,
    )
    first, failed, last = await written
    assert (first, last) == (None, None)
    assert isinstance(failed, StorageError)
    assert "no intent gone" in str(failed)
    assert await journal.find("b") is not None
