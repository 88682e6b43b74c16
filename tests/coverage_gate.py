"""Fails a run in which a room has less than 90 % of its lines and branches tested: a good average hides no bad room.

Run it after `coverage combine`: `python tests/coverage_gate.py [--data-file FILE] [--fail-under PERCENT]`.
"""

import argparse
import io
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from coverage import Coverage
from coverage.exceptions import CoverageException

FAIL_UNDER = 90.0
PACKAGE = "keepline"


@dataclass
class Room:
    """What was counted in one top-level module or package."""

    name: str
    covered: int = 0
    total: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def percent(self) -> float:
        """Lines and branches together, as coverage counts them; an empty room is full."""
        return 100.0 * self.covered / self.total if self.total else 100.0


def room_of(file: str) -> str:
    """`…/keepline/relay/wire.py` lies in `relay`, `…/keepline/clock.py` in `clock`."""
    parts = Path(file).with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index(PACKAGE) :]
    return below[0]


def rooms_of(report: dict) -> list[Room]:
    """The rooms of a JSON report of coverage, by name."""
    rooms: dict[str, Room] = {}
    for file, data in sorted(report["files"].items()):
        room = rooms.setdefault(room_of(file), Room(room_of(file)))
        summary = data["summary"]
        room.covered += summary["covered_lines"] + summary.get("covered_branches", 0)
        room.total += summary["num_statements"] + summary.get("num_branches", 0)
        missed = set(data["missing_lines"])
        lines = spans(sorted(missed))
        branches = [
            f"{a}->{'exit' if b < 0 else b}"
            for a, b in data.get("missing_branches", [])
            if not missed & {a, b}
        ]  # a branch to or from a line that was not reached goes without saying
        if lines or branches:
            room.missing.append(f"{file}: {', '.join(lines + branches)}")
    return sorted(rooms.values(), key=lambda room: room.name)


def spans(lines: list[int]) -> list[str]:
    """[3, 4, 5, 9] as ["3-5", "9"]."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][-1] + 1:
            runs[-1].append(line)
        else:
            runs.append([line])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def measure(data_file: str | None) -> dict:
    """The JSON report of the data that the test run has left."""
    coverage = Coverage(data_file=data_file) if data_file else Coverage()
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "coverage.json"
        coverage.json_report(outfile=str(out))
        return json.loads(out.read_text())


def verdict(rooms: list[Room], fail_under: float) -> tuple[str, bool]:
    """The table with what is missing in rooms that fail, and whether all passed."""
    out = io.StringIO()
    print(f"{'room':<14} {'covered':>8} {'of':>6} {'branch coverage':>16}", file=out)
    for room in rooms:
        mark = "" if room.percent >= fail_under else f"  under {fail_under:g} %"
        print(
            f"{room.name:<14} {room.covered:>8} {room.total:>6} {room.percent:>14.1f} %{mark}",
            file=out,
        )
    failed = [room for room in rooms if room.percent < fail_under]
    for room in failed:
        print(f"\n{room.name} is tested too little, not reached:", file=out)
        print(*(f"  {line}" for line in room.missing), sep="\n", file=out)
    return out.getvalue(), not failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-file", default=None)
    parser.add_argument("--fail-under", type=float, default=FAIL_UNDER)
    options = parser.parse_args(arguments)
    try:
        rooms = rooms_of(measure(options.data_file))
    except CoverageException as problem:
        sys.stderr.write(f"no coverage to judge: {problem}\n")
        return 1
    table, passed = verdict(rooms, options.fail_under)
    sys.stdout.write(table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
