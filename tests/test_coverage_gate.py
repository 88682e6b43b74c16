"""The gate that judges the other tests is judged here, on real coverage data of a small package."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests import coverage_gate

GOOD = "def f(x):\n    if x:\n        return 1\n    return 2\n\n\nf(0)\nf(1)\n"
POOR = "def f(x):\n    if x:\n        return 1\n    a = 1\n    return a\n\n\nf(1)\n"


@pytest.fixture
def small_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "src" / "keepline"
    (package / "relay").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "relay" / "__init__.py").write_text("")
    (package / "clock.py").write_text(GOOD)
    (package / "relay" / "wire.py").write_text(POOR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_with_coverage(folder: Path) -> str:
    data = str(folder / "data")
    program = "import sys; sys.path.insert(0, 'src'); import keepline.clock, keepline.relay.wire"
    (folder / "program.py").write_text(program)
    command = [
        sys.executable,
        "-m",
        "coverage",
        "run",
        "--rcfile=/dev/null",
        "--branch",
        f"--data-file={data}",
    ]
    subprocess.run([*command, "--source=src/keepline", "program.py"], cwd=folder, check=True)
    return data


def test_a_room_under_the_mark_fails_by_name_with_its_lines(small_package: Path, capsys) -> None:
    data = run_with_coverage(small_package)
    assert coverage_gate.main(["--data-file", data]) == 1
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if " %" in line}
    assert "100.0 %" in rows["clock"]
    assert "under" not in rows["clock"]
    assert "under 90 %" in rows["relay"]
    assert "relay is tested too little" in out
    assert "src/keepline/relay/wire.py: 4-5\n" in out


def test_every_room_over_the_mark_passes(small_package: Path, capsys) -> None:
    data = run_with_coverage(small_package)
    assert coverage_gate.main(["--data-file", data, "--fail-under", "50"]) == 0
    assert "too little" not in capsys.readouterr().out


def test_without_data_it_fails_with_words(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert coverage_gate.main(["--data-file", str(tmp_path / "none")]) == 1
    assert "no coverage to judge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "room"),
    [
        ("src/keepline/clock.py", "clock"),
        ("src/keepline/relay/wire.py", "relay"),
        ("/home/keepline/src/keepline/cli/main.py", "cli"),
        ("src/keepline/__init__.py", "__init__"),
    ],
)
def test_rooms_are_top_level_names(file: str, room: str) -> None:
    assert coverage_gate.room_of(file) == room


@pytest.mark.parametrize(
    ("lines", "text"), [([], []), ([7], ["7"]), ([3, 4, 5, 9], ["3-5", "9"]), ([1, 3], ["1", "3"])]
)
def test_lines_are_told_in_spans(lines: list[int], text: list[str]) -> None:
    assert coverage_gate.spans(lines) == text


def test_an_empty_room_is_full() -> None:
    assert coverage_gate.Room("none").percent == 100


def test_a_branch_never_taken_between_lines_that_were_reached_is_told() -> None:
    summary = {"covered_lines": 4, "num_statements": 4, "covered_branches": 2, "num_branches": 4}
    data = {"summary": summary, "missing_lines": [], "missing_branches": [[2, 4], [7, -1]]}
    [room] = coverage_gate.rooms_of({"files": {"src/keepline/clock.py": data}})
    assert room.percent == 75
    assert room.missing == ["src/keepline/clock.py: 2->4, 7->exit"]
