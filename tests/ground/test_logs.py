"""Log lines: their form, where they go, and what never enters them."""

import io
import json
import logging
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keepline.errors import ConfigError
from keepline.telemetry import event, fields_of, setup_logging

SECRET = "s3cretValue-1234567890"
LINE = re.compile(
    r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] (DEBUG|INFO|WARNING|ERROR|CRITICAL): "
)

log = logging.getLogger("keepline.credentials")


@pytest.fixture
def console() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def set_up(console: io.StringIO) -> Iterator[Callable[..., Callable[[], None]]]:
    """`setup_logging` onto the console of this test, taken down at its end."""
    downs: list[Callable[[], None]] = []

    def start(*args, **options) -> Callable[[], None]:
        downs.append(setup_logging(*args, **{"stream": console, **options}))
        return downs[-1]

    yield start
    for down in downs:
        down()


def test_a_line_is_timestamp_level_message_and_fields(set_up, console) -> None:
    set_up()
    event(
        log,
        logging.INFO,
        "Token refreshed",
        cycle=3,
        attempt=1,
        name="a b",
        nothing=None,
        quote='say "x"',
        empty="",
    )
    line = console.getvalue()
    assert LINE.match(line)
    assert LINE.sub("", line) == (
        'Token refreshed cycle=3 attempt=1 name="a b" nothing=- quote="say \\"x\\"" empty=""\n'
    )


def test_the_timestamp_is_the_records_own(set_up, console) -> None:
    set_up()
    record = log.makeRecord(log.name, logging.INFO, "f", 1, "Token received", (), None)
    record.created = 1767623400.25
    logging.getLogger().handle(record)
    assert console.getvalue() == "[2026-01-05T14:30:00.250Z] INFO: Token received\n"


@pytest.mark.parametrize(("level", "named"), [("info", False), ("warning", True), ("error", True)])
def test_from_warning_up_a_line_names_its_component(
    set_up, console, level: str, named: bool
) -> None:
    set_up()
    getattr(log, level)("what happened")
    assert ("component=credentials" in console.getvalue()) is named


def test_an_event_may_name_its_component_itself(set_up, console) -> None:
    set_up()
    event(log, logging.ERROR, "Refresh failed", component="schwab")
    assert console.getvalue().endswith("ERROR: Refresh failed component=schwab\n")


def test_json_lines_are_objects_with_the_same_contents(set_up, console) -> None:
    set_up(log_format="json")
    event(log, logging.INFO, "Token refreshed", cycle=3, next={"in": 1500.0})
    log.error("Two\nlines")
    first, second = map(json.loads, console.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "level": "INFO",
        "message": "Token refreshed",
        "component": "credentials",
        "fields": {"cycle": 3, "next": {"in": 1500.0}},
    }
    assert second["message"] == "Two\nlines"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_leaves_in_message_field_exception_or_stack(
    set_up, console, log_format: str
) -> None:
    set_up("DEBUG", log_format=log_format)
    log.info("GET https://x.example/?code=%s&state=1", SECRET)
    event(
        log,
        logging.INFO,
        "Answer",
        body=json.dumps({"refresh_token": SECRET}),
        token=SECRET,
        deep=[{"secret": SECRET}],
    )
    try:
        try:
            raise KeyError(f"Bearer {SECRET}")
        except KeyError as inner:
            raise ValueError(json.dumps({"error": json.dumps({"access_token": SECRET})})) from inner
    except ValueError:
        log.exception("Refresh failed")
    log.info("Where are we", stack_info=True)
    written = console.getvalue()
    assert SECRET not in written
    assert written.count("[redacted]") >= 6
    assert "ValueError" in written
    assert "KeyError" in written
    assert "test_logs.py" in written


def test_a_peer_cannot_forge_a_line(set_up, console) -> None:
    set_up()
    event(log, logging.INFO, "x\n[2026] INFO: forged\x1b[2J", peer="a\r\n[2026] INFO: forged")
    try:
        raise ValueError("\n[2026-01-05T14:30:00.250Z] INFO: forged")
    except ValueError:
        log.exception("Refresh failed")
    lines = console.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("[")]) == 2
    assert "\x1b" not in console.getvalue()
    assert all(line.startswith("    ") for line in lines[2:])


def test_others_speak_from_warning_up_and_their_lines_are_redacted(set_up, console) -> None:
    set_up()
    for name in ("asyncio", "aiohttp.access", "somebody.else"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("took token=%s along", SECRET)
    assert console.getvalue().count("took token=[redacted] along") == 3
    assert "chatter" not in console.getvalue()
    assert "component=aiohttp.access" in console.getvalue()


def test_at_debug_others_speak_from_info_up(set_up, console) -> None:
    set_up("debug")
    logging.getLogger("asyncio").info("heard")
    logging.getLogger("asyncio").debug("not heard")
    log.debug("heard too")
    assert console.getvalue().count("heard") == 2


def test_warnings_of_the_interpreter_become_lines(set_up, console) -> None:
    set_up()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old name", UserWarning, stacklevel=1)
    assert "UserWarning: old name" in console.getvalue()
    assert "component=py.warnings" in console.getvalue()


def test_a_second_set_up_replaces_the_first_and_taking_down_restores(console) -> None:
    root, ours = logging.getLogger(), logging.getLogger("keepline")
    before = (root.level, ours.level, list(root.handlers))
    first = setup_logging("DEBUG", stream=io.StringIO())
    second = setup_logging("ERROR", stream=console)
    first()  # too late: it has been replaced, and must not disturb its successor
    log.warning("not heard")
    log.error("heard")
    assert console.getvalue().count("heard") == 1
    second()
    log.critical("nobody listens")
    assert console.getvalue().count("\n") == 1
    root.setLevel(before[0])
    ours.setLevel(before[1])
    assert list(root.handlers) == before[2]


def test_without_a_stream_the_console_is_standard_error(capsys) -> None:
    down = setup_logging()
    log.info("here")
    down()
    assert "INFO: here" in capsys.readouterr().err


def test_the_file_gets_the_same_lines_and_is_closed_to_others(
    set_up, console, tmp_path: Path
) -> None:
    path = tmp_path / "logs" / "keepline.log"
    mask = os.umask(0)
    try:
        set_up(log_file=path)
    finally:
        os.umask(mask)
    log.info("Grüße")
    assert path.read_text(encoding="utf-8") == console.getvalue()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


def test_a_tighter_umask_makes_a_tighter_file(set_up, tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        set_up(log_file=tmp_path / "k.log")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "k.log").stat().st_mode) == 0o600


def test_a_rotated_file_is_left_and_a_new_one_begun(set_up, tmp_path: Path) -> None:
    path = tmp_path / "k.log"
    set_up(log_file=path)
    log.info("before")
    path.rename(tmp_path / "k.log.1")
    log.info("after")
    assert "before" in (tmp_path / "k.log.1").read_text()
    assert "after" in path.read_text()
    assert "before" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0


def test_a_file_that_cannot_be_opened_is_a_configuration_error_that_names_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"telemetry\.log_file.*cannot open the log file .*file/k\.log"
    ) as caught:
        setup_logging(log_file=tmp_path / "file" / "k.log")
    assert caught.value.key == "telemetry.log_file"


def test_a_log_that_cannot_be_written_stops_nobody_and_is_said_once(
    set_up, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "logs" / "k.log"
    set_up(log_file=path)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file where the directory was")
    for _ in range(3):
        log.info("access_token=%s", SECRET)
    said = capsys.readouterr().err
    assert said.count("the log file cannot be written") == 1
    assert SECRET not in said
    path.parent.unlink()
    path.parent.mkdir()
    log.info("back")
    assert "back" in path.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_nobody(set_up, capsys) -> None:
    full = open("/dev/full", "w")  # noqa: PTH123, SIM115
    set_up(stream=full)
    log.info("password=%s", SECRET)
    log.info("again")
    said = capsys.readouterr().err
    assert said.count("the console log cannot be written (OSError") == 1
    assert SECRET not in said
    with pytest.raises(OSError, match="No space left"):
        full.close()


def broken_call(console: io.StringIO) -> None:
    """Hand a record that cannot be formatted to our handler alone: the runner's own would raise."""
    record = log.makeRecord(log.name, logging.INFO, "f", 1, "%d tokens", (SECRET,), None)
    [ours] = [
        handler
        for handler in logging.getLogger().handlers
        if getattr(handler, "stream", None) is console
    ]
    ours.handle(record)


def test_a_broken_call_does_not_print_its_arguments(set_up, console, capsys) -> None:
    set_up()
    broken_call(console)
    assert console.getvalue() == ""
    assert SECRET not in capsys.readouterr().err


def test_without_a_standard_error_a_failure_stays_silent(set_up, console, monkeypatch) -> None:
    set_up()
    monkeypatch.setattr(sys, "stderr", None)
    broken_call(console)
    log.info("goes on")
    assert console.getvalue().count("goes on") == 1


@pytest.mark.parametrize(
    ("options", "key"),
    [({"level": "LOUD"}, "telemetry.log_level"), ({"log_format": "xml"}, "telemetry.log_format")],
)
def test_a_wrong_choice_names_its_key(options: dict[str, str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        setup_logging(**options)
    assert caught.value.key == key


def test_an_event_below_the_level_costs_no_record(caplog) -> None:
    quiet = logging.getLogger("keepline.quiet")
    quiet.setLevel(logging.WARNING)
    event(quiet, logging.INFO, "not made", n=1)
    event(quiet, logging.WARNING, "made", n=2)
    assert [(record.message, fields_of(record)) for record in caplog.records] == [
        ("made", {"n": 2})
    ]


@pytest.mark.parametrize(
    ("account", "shown"), [("10000001", "…001"), ("1001", "…001"), ("7", "…7"), ("", ""), (7, 7)]
)
def test_an_account_is_told_by_its_end(caplog, account: object, shown: object) -> None:
    event(
        logging.getLogger("keepline.orders"), logging.WARNING, "Order look failed", account=account
    )
    assert [fields_of(record) for record in caplog.records] == [{"account": shown}]


def test_a_record_of_others_has_no_fields() -> None:
    assert fields_of(logging.makeLogRecord({"msg": "x"})) == {}
