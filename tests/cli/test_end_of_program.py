"""Ends of a command, good and bad, as exit codes; and the light way into `keepline run`."""

import logging
import signal
import sys
from pathlib import Path

import pytest
import typer

from keepline import errors
from keepline.cli import program, service
from keepline.cli.app import app
from keepline.cli.exits import exit_code, exit_code_of_outcomes, exit_code_of_signal
from keepline.cli.notes import notes
from keepline.cli.output import show_credential, show_fields, show_table
from keepline.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.SignInRequired("x"), 3),
        (errors.TransientError("x"), 4),
        (errors.TokenUnavailable("x"), 4),
        (ConnectionRefusedError(), 4),
        (errors.TokenRefused("x"), 1),
        (errors.StorageError("x"), 1),
        (errors.PermanentError("x"), 1),
        (errors.QueueFull("x"), 1),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_the_worst_delivery_decides() -> None:
    def code(*outcomes: str) -> int:
        return exit_code_of_outcomes(outcomes)

    assert code() == code("delivered", "superseded") == 0
    assert code("delivered", "unreachable") == 4
    assert code("unreachable", "refused") == code("too_large") == 1


def test_a_stop_is_done_and_ctrl_c_is_interrupted() -> None:
    assert exit_code_of_signal(signal.SIGTERM) == 0
    assert exit_code_of_signal(signal.SIGINT) == 130


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail(arguments: list[str]) -> object:
        raise error

    monkeypatch.setattr(program, "_perform", fail)
    return program.run(["x"])


def test_a_fault_of_ours_is_one_redacted_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(monkeypatch, RuntimeError('{"access_token": "secret-text"}')) == 1
    err = capsys.readouterr().err
    assert err.startswith("keepline: internal error, please report it: RuntimeError")
    assert "secret-text" not in err
    assert "Traceback" not in err


def test_a_developer_may_see_where_it_was_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KEEPLINE_DEBUG", "1")
    assert fails_with(monkeypatch, RuntimeError("access_token=secret-text-x")) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "secret-text" not in err


def test_ctrl_c_is_interrupted_without_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(monkeypatch, KeyboardInterrupt()) == 130
    assert fails_with(monkeypatch, typer.Abort()) == 130
    assert capsys.readouterr().err == ""


def test_the_program_exits_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["keepline", "version"])
    with pytest.raises(SystemExit) as caught:
        program.main()
    assert caught.value.code == 0


# --- keepline run without the parser ---


def test_the_light_parser_reads_what_typer_reads() -> None:
    arguments = [
        "-c",
        "a.toml",
        "--once",
        "--log-level=DEBUG",
        "--metrics",
        "",
        "--log-format",
        "json",
        "--workers",
        "2",
    ]
    assert service.parse(arguments) == (
        Path("a.toml"),
        True,
        {
            "telemetry.log_level": "DEBUG",
            "telemetry.metrics": "",
            "telemetry.log_format": "json",
            "hub.workers": "2",
        },
    )
    assert service.parse([]) == (None, False, {})
    assert service.parse(["--config=b.toml"]) == (Path("b.toml"), False, {})


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["x"], ["--once=1"], ["--config"]])
def test_what_it_does_not_know_is_left_to_typer(arguments: list[str]) -> None:
    assert service.parse(arguments) is None


@pytest.mark.parametrize(
    ("given", "words"), [("two", "expected a whole number"), ("-1", "a whole number, 0 or more")]
)
def test_a_number_of_workers_that_is_none_is_refused_with_its_key(
    tmp_path: Path, given: str, words: str
) -> None:
    file = tmp_path / "keepline.toml"
    file.write_text("[hub]\nenabled = true\n")
    with pytest.raises(ConfigError, match=rf"hub\.workers.*{words}"):
        service.serve(file, False, {"hub.workers": given})


def test_a_number_of_workers_counts_over_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keepline.toml"
    file.write_text("[hub]\nenabled = true\nworkers = 1\n")
    taken = []
    monkeypatch.setattr(
        "keepline.daemon.run.run", lambda settings: taken.append(settings.hub.workers)
    )
    monkeypatch.setattr("keepline.daemon.loop.run_on_loop", lambda made: 15)
    monkeypatch.setattr("keepline.telemetry.setup_logging", lambda *_, **__: None)
    service.serve(file, False, {"hub.workers": "2"})
    assert taken == [2]


def test_it_knows_every_option_that_typer_declares() -> None:
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    declared = {option for parameter in run.params for option in parameter.opts}
    assert declared - {"--help", "-h"} == {*service.FLAGS, "--config", "-c", "--once"}


def test_a_flag_of_run_beats_file_and_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keepline.toml"
    file.write_text("")
    monkeypatch.setenv("KEEPLINE__TELEMETRY__LOG_LEVEL", "ERROR")
    assert program.run(["run", "-c", str(file), "--log-level", "LOUD"]) == 2
    assert "expected one of DEBUG, INFO, WARNING, ERROR, not 'LOUD'" in capsys.readouterr().err


def test_a_package_is_hidden_only_while_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with service.without("colorsys"), pytest.raises(ImportError):
        __import__("colorsys")
    import colorsys

    with service.without("colorsys"):
        assert sys.modules["colorsys"] is colorsys


# --- what is printed ---


def test_notes_are_redacted_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    room = logging.getLogger("keepline.room")
    with notes():
        for _ in range(2):
            room.warning("look here token=abcdefgh")
        room.error("said by the command itself")
        room.warning("Token not delivered")
        logging.getLogger("asyncio").error("never on the terminal")
    assert capsys.readouterr().err == "keepline: note: look here token=[redacted]\n"


def test_fields_and_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    show_fields({"a": None, "long": True, "b": False})
    show_table(("x", "yy"), [(1, "z"), (100, None)])
    assert capsys.readouterr().out == ("a     -\nlong  yes\nb     no\nx    yy\n1    z\n100  -\n")


def test_a_credential_in_trouble_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show_credential(
        {
            "name": "x",
            "state": "VALID",
            "expires_at": "2026-01-05T14:30:00+00:00",
            "expires_in_seconds": None,
            "signin_deadline": "2026-01-05T14:30:00+00:00",
            "signin_in_seconds": 20.0,
            "unsaved_generation": 7,
            "interrupted": "a refresh was lost",
        }
    )
    out = capsys.readouterr().out
    assert "NOT SAVED: generation 7 is in memory only" in out
    assert "interrupted: a refresh was lost" in out
    assert "2026-01-05T14:30:00+00:00 (in 20 s)" in out
