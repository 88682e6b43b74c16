"""What faults do to the frames of the sandbox's streamer: lines lost, doubled, late or preceded by a monster.

Invariants: pure functions over frames; a line that is held back is sent after the next one, never lost; heartbeats and
answers are left alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keepline.sandbox.faults import Fault
from keepline.sandbox.faulttable import number
from keepline.sandbox.streamer_session import Frame

__all__ = ["EVENTS", "calls_meant", "damaged", "glued"]

EVENTS = ("missing_events", "duplicate_events", "reordered_events", "oversize_frame")
"""The faults that strike a line of data."""

Strike = Callable[[frozenset[str]], dict[str, Fault]]


def damaged(frames: Iterable[Frame], held: list[Any], strike: Strike) -> list[Frame]:
    """The frames as a client gets them.

    Args:
        frames: as the session made them.
        held: lines that wait for the next one; belongs to the connection.
        strike: the faults of `EVENTS` that strike a line with these names (its service, its kind).
    """
    found: list[Frame] = []
    for frame in frames:
        parts: Any = frame.get("data")
        if parts is None:
            found.append(frame)
            continue
        for part in parts:
            found += _damaged_part(part, held, strike)
    return found


def _damaged_part(part: Any, held: list[Any], strike: Strike) -> list[Frame]:
    before: list[Frame] = []
    lines: list[Any] = []
    for line in part["content"]:
        struck = strike(frozenset({part["service"], str(line.get("2", ""))}))
        if "oversize_frame" in struck:
            size = int(number(struck["oversize_frame"].parameters["bytes"]))
            before.append({"notify": [{"service": "ADMIN", "content": {"msg": "x" * size}}]})
        if "missing_events" in struck:
            continue
        if "reordered_events" in struck:
            held.append(line)
            continue
        lines += [line, line] if "duplicate_events" in struck else [line]
        lines += held
        held.clear()
    return [*before, {"data": [{**part, "content": lines}]}] if lines else before


def glued(frames: Sequence[Frame]) -> list[Frame]:
    """Several frames as one."""
    whole: Frame = {}
    for frame in frames:
        for name, parts in frame.items():
            known: Any = whole.setdefault(name, [])
            known.extend(parts)
    return [whole] if whole else []


def calls_meant(fault: Fault, commands: Iterable[str]) -> frozenset[str]:
    """Which of these commands a fault of calls means: the one that it names, else all but LOGIN."""
    method = fault.parameters["method"]
    return frozenset(c for c in commands if c == method or (not method and c != "LOGIN"))
