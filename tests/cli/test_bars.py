"""`keepline bars` as a person runs it, against the sandbox."""

import asyncio
import csv
import io
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet
import pytest
from tests.brokers.loopback import Reply, loopback

from keepline.brokers.barfile import COLUMNS, BarFile, bar_file
from keepline.brokers.projectx.messages import ContractInfo
from keepline.cli.program import run
from keepline.daemon.download import chosen, instant
from keepline.errors import ConfigError, KeeplineError
from keepline.model import Bar
from keepline.sandbox.server import SandboxServer

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxServer]:
    async with SandboxServer() as server:
        yield server


@pytest.fixture
def keepline(
    sandbox: SandboxServer,
    clean_environment: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., "asyncio.Future[tuple[int, str, str]]"]:
    """Run the program in a thread of its own, with a configuration for both brokers: code, output, errors."""
    file = clean_environment / "keepline.toml"
    file.write_text(
        '[credentials.top]\nissuer = "projectx"\nusername = "sandbox"\nstorage = "memory"\n'
        f'base_url = "{sandbox.url}"\n'
        '[credentials.schwab]\nissuer = "static"\nstorage = "memory"\n'
        f'[brokers.top]\n[brokers.schwab]\nbase_url = "{sandbox.url}"\n'
    )
    monkeypatch.setenv("PROJECT_X_API_KEY", "sandbox-api-key")
    monkeypatch.setenv("KEEPLINE__CREDENTIALS__SCHWAB__ACCESS_TOKEN", sandbox.issue().access_token)
    monkeypatch.setenv("KEEPLINE_CONFIG", str(file))

    async def keepline(*arguments: object) -> tuple[int, str, str]:
        code = await asyncio.to_thread(run, [str(argument) for argument in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return keepline


async def test_bars_go_into_a_csv_file(keepline: Run, tmp_path: Path) -> None:
    out = tmp_path / "mes.csv"
    code, told, said = await keepline(
        "bars",
        "MES",
        "--from",
        "2026-01-05",
        "--to",
        "2026-01-05T02:00",
        "--broker",
        "top",
        "--out",
        out,
    )
    assert (code, said) == (0, "")
    rows = list(csv.reader(out.read_text().splitlines()))
    assert rows[0] == list(COLUMNS)
    assert rows[1][0] == "2026-01-05T00:00:00+00:00"
    assert len(rows) == 122
    assert all(float(low) <= float(close) <= float(high) for _, _, high, low, close, _ in rows[1:])
    assert (
        told == f"121 bars from 2026-01-05T00:00:00+00:00 to 2026-01-05T02:00:00+00:00 in {out}\n"
    )
    assert list(tmp_path.iterdir()) == [out]


async def test_bars_go_into_a_parquet_file_with_lines_of_progress(
    keepline: Run, tmp_path: Path
) -> None:
    out = tmp_path / "mes.parquet"
    code, told, said = await keepline(
        "bars", "CON.F.US.MES.Z26", "--from", "2026-01-05", "--to", "2026-01-05T08:00", "--unit", "second",
        "--broker", "top", "--out", out, "--json",
    )  # fmt: skip
    assert code == 0
    table = pyarrow.parquet.read_table(out)
    summary = json.loads(told)
    assert summary["rows"] == table.num_rows > 20_000
    assert table.column_names == list(COLUMNS)
    times = table["at"].to_pylist()
    assert times[0].isoformat() == summary["first"] == "2026-01-05T00:00:00+00:00"
    assert times == sorted(set(times))
    assert said.splitlines()[-1].startswith("100%  ")
    assert "50%" in said


async def test_without_a_file_rows_are_printed(keepline: Run) -> None:
    span = ("--from", "2026-01-05T00:00Z", "--to", "2026-01-05T00:05+00:00", "--broker", "top")
    code, told, _ = await keepline("bars", "MESZ6", *span)
    rows = list(csv.reader(io.StringIO(told)))
    assert (code, rows[0], len(rows)) == (0, list(COLUMNS), 7)
    code, told, _ = await keepline("bars", "MESZ6", *span, "--json")
    objects = [json.loads(line) for line in told.splitlines()]
    assert [list(map(str, row.values())) for row in objects] == rows[1:]


async def test_schwabs_bars_come_by_symbol(keepline: Run, tmp_path: Path) -> None:
    out = tmp_path / "aapl.csv"
    code, told, _ = await keepline(
        "bars",
        "AAPL",
        "--from",
        "2w",
        "--number",
        30,
        "--broker",
        "schwab",
        "--extended",
        "--out",
        out,
    )
    assert code == 0
    assert int(told.split()[0]) == len(out.read_text().splitlines()) - 1 > 0


async def test_a_span_without_bars_is_a_file_without_rows(keepline: Run, tmp_path: Path) -> None:
    out = tmp_path / "mes.csv"
    span = ("--from", "2026-01-03T10:00", "--to", "2026-01-03T11:00", "--broker", "top")
    code, told, _ = await keepline("bars", "MES", *span, "--out", out)
    assert (code, told) == (0, f"0 bars from - to - in {out}\n")
    assert out.read_text() == ",".join(COLUMNS) + "\n"
    code, told, _ = await keepline("bars", "MES", *span)
    assert (code, told) == (0, ",".join(COLUMNS) + "\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("MES",), 2, "which broker? name one of top, schwab"),
        (("MES", "--broker", "x"), 2, "no [brokers.x]; there is top, schwab"),
        (("MES", "--from", "yesterday"), 2, "[--from]: 'yesterday' is no moment; write 2026-01-05"),
        (("MES", "--from", "1h", "--to", "2h"), 2, "is not after the start"),
        (("MES", "--unit", "tick"), 2, "[unit]: is one of second, minute"),
        (("NOPE",), 2, "'NOPE' names no single contract; there is none"),
        (("M",), 2, "CON.F.US.MES.Z26 (MESZ6)"),
        (("",), 2, "[symbol]: is a text that is not empty"),
        (("MES", "--unit", "Tick"), 2, "month, not 'Tick'"),
        (("MES", "--out", "bars.xlsx"), 2, "ends in .csv or .parquet, not '.xlsx'"),
        (
            ("MES", "--out", "no-such-directory/bars.csv"),
            2,
            "cannot be written: No such file or directory",
        ),
        (("MES", "--number", "0"), 2, "--number"),
    ],
)
async def test_what_makes_no_sense_is_said_with_its_remedy(
    keepline: Run, arguments: tuple[str, ...], code: int, words: str
) -> None:
    if "--broker" not in arguments and words[:5] != "which":
        arguments = (*arguments, "--broker", "top")
    got, told, said = await keepline("bars", *arguments)
    assert (got, told) == (code, "")
    assert words in said
    assert "Traceback" not in said


async def test_a_download_that_fails_leaves_what_was_there(
    keepline: Run, sandbox: SandboxServer, tmp_path: Path
) -> None:
    out = tmp_path / "mes.csv"
    out.write_text("what was there")
    sandbox.fault("5xx", on=["history"], status=501)
    code, _, said = await keepline("bars", "MES", "--broker", "top", "--out", out)
    assert code == 1
    assert "501" in said
    assert out.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [out]


async def test_a_terminal_gets_a_bar_on_standard_error(
    keepline: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "mes.csv"
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
    code, told, said = await keepline(
        "bars",
        "MES",
        "--from",
        "2026-01-05",
        "--to",
        "2026-01-05T01:00",
        "--broker",
        "top",
        "--out",
        out,
    )
    assert (code, told.split()[:2]) == (0, ["61", "bars"])
    assert "MES" in said


# --- words of people ---


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("now", NOW), ("90min", NOW - timedelta(minutes=90)), ("12h", NOW - timedelta(hours=12)),
        ("5d", NOW - timedelta(days=5)), ("2 w", NOW - timedelta(weeks=2)), ("2026-01-05", NOW.replace(hour=0)),
        ("2026-01-05T14:30+02:30", NOW), ("2026-01-05 12:00", NOW), ("2026-01-05T12:00Z", NOW),
    ],
)  # fmt: skip
def test_a_moment_as_people_write_it(words: str, found: datetime) -> None:
    assert instant(words, NOW, key="--from") == found


@pytest.mark.parametrize("words", ["", "5", "5y", "d", "-5d", "2026-13-01", "12:00", "tomorrow"])
def test_what_is_no_moment_is_said(words: str) -> None:
    with pytest.raises(ConfigError, match=r"--to.*is no moment"):
        instant(words, NOW, key="--to")


async def test_live_and_extended_reach_the_broker(
    clean_environment: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = clean_environment / "keepline.toml"
    token = '.token]\nissuer = "static"\nstorage = "memory"\n'
    async with loopback() as venue:
        file.write_text(
            f'[credentials{token}[brokers.top]\nbroker = "projectx"\ncredential = "token"\n'
            f'base_url = "{venue.url}"\n[brokers.schwab]\ncredential = "token"\n'
            f'base_url = "{venue.url}"\n'
        )
        monkeypatch.setenv("KEEPLINE__CREDENTIALS__TOKEN__ACCESS_TOKEN", "secret")
        monkeypatch.setenv("KEEPLINE_CONFIG", str(file))
        bars = {"success": True, "errorCode": 0, "bars": []}
        venue.on("/api/History/retrieveBars", Reply(bars))
        venue.on("/marketdata/v1/pricehistory", Reply({"candles": []}))
        sent = []
        for more in ((), ("--live", "--extended")):
            for name, symbol in (("top", "CON.F.US.MES.Z26"), ("schwab", "AAPL")):
                words = ["bars", symbol, "--broker", name, *more]
                assert await asyncio.to_thread(run, words) == 0, capsys.readouterr().err
            assert venue.last("retrieveBars").body["contractId"] == "CON.F.US.MES.Z26"
            sent.append(
                (
                    venue.last("retrieveBars").body["live"],
                    venue.last("pricehistory").query["needExtendedHoursData"],
                )
            )
    assert sent == [(False, "false"), (True, "true")]


def test_a_day_without_a_zone_is_utc_wherever_the_machine_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert instant("2026-01-05", NOW, key="--from") == NOW.replace(hour=0)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("words", ["99999w", "1969-12-31", "0001-01-01"])
def test_a_moment_of_before_there_were_bars_is_a_slip(words: str) -> None:
    with pytest.raises(ConfigError, match="is before 1970"):
        instant(words, NOW, key="--from")


def contract(name: str, root: str, active: bool = True) -> ContractInfo:
    number = f"CON.F.US.{root}.{name[-2]}2{name[-1]}"
    return ContractInfo(id=number, name=name, active_contract=active)


LISTED = (
    contract("ESH6", "EP"),
    contract("ESZ5", "EP", active=False),
    contract("MESH6", "MES"),
    contract("MESM6", "MES"),
)


@pytest.mark.parametrize(
    ("words", "found"),
    [("ES", "CON.F.US.EP.H26"), ("ep", "CON.F.US.EP.H26"), ("ESZ5", "CON.F.US.EP.Z25"), ("mesm6", "CON.F.US.MES.M26"),
     ("CON.F.US.MES.H26", "CON.F.US.MES.H26")],
)  # fmt: skip
def test_a_symbol_or_a_root_means_one_contract(words: str, found: str) -> None:
    assert chosen(words, LISTED) == found


def test_a_root_of_several_contracts_lists_them() -> None:
    with pytest.raises(
        ConfigError, match=r"there is CON\.F\.US\.MES\.H26 \(MESH6\), CON\.F\.US\.MES\.M26"
    ):
        chosen("MES", LISTED)
    with pytest.raises(ConfigError, match="there is none"):
        chosen("NQ", ())


# --- files ---

BAR = Bar(at=NOW, open=1.0, high=2.0, low=0.5, close=1.5, volume=10.0)


@pytest.mark.parametrize("name", ["b.csv", "b.parquet"])
def test_a_file_that_is_dropped_leaves_no_trace(tmp_path: Path, name: str) -> None:
    file = bar_file(tmp_path / name)
    file.write([BAR])
    file.drop()
    assert list(tmp_path.iterdir()) == []


def crowded(limit: int) -> Callable[[], object]:
    """No file of this process grows beyond so many bytes; gives the way back."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_all(file: BarFile, bars: list[Bar]) -> None:
    file.write(bars)
    file.keep()


@pytest.mark.parametrize("name", ["b.csv", "b.parquet"])
def test_a_disk_that_takes_no_more_is_said_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    file = bar_file(tmp_path / name)
    free = crowded(4096)
    try:
        with pytest.raises(KeeplineError, match=f"{name}: cannot be written: .*File too large"):
            write_all(file, [BAR] * 200_000)
    finally:
        free()
    file.drop()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        bar_file(tmp_path / "b.csv")


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ConfigError, match=r"pip install 'keepline\[parquet\]', or name a \.csv file"
    ):
        bar_file(tmp_path / "b.parquet")


def test_a_file_that_cannot_take_its_name_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "b.csv"
    file = bar_file(target)
    file.write([BAR])
    target.mkdir()
    with pytest.raises(KeeplineError, match=r"b\.csv: cannot be written: Is a directory"):
        file.keep()
    file.drop()
    assert list(tmp_path.iterdir()) == [target]
