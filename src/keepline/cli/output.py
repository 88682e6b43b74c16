"""What commands print: JSON for programs, aligned plain lines for people and pipes.

Invariant: results go to standard output, everything else to standard error.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "on_terminal",
    "say",
    "show_credential",
    "show_daemon",
    "show_fields",
    "show_json",
    "show_stream",
    "show_table",
    "write",
]


def write(text: str) -> None:
    """One line of the result, visible at once also in a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """One line beside the result: progress, hints."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def on_terminal() -> bool:
    return sys.stdout.isatty()


def show_json(value: object, *, lines: bool = False) -> None:
    """Indented on a terminal, one line in a pipe or when there are many."""
    indent = 2 if on_terminal() and not lines else None
    write(json.dumps(value, ensure_ascii=False, default=str, indent=indent))


def show_fields(fields: Mapping[str, Any]) -> None:
    """`name  value` lines, aligned."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        write(f"{name:<{width}}  {_text(value)}")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns under their headings."""
    cells = [list(columns), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        write(line.rstrip())


def show_credential(told: Mapping[str, Any]) -> None:
    """One credential with its two clocks."""
    show_fields(
        {
            "credential": told["name"],
            "state": told["state"],
            "generation": told.get("generation"),
            "fingerprint": told.get("fingerprint"),
            "token expires": _clock(told, "expires_at", "expires_in_seconds"),
            "sign in again by": _clock(told, "signin_deadline", "signin_in_seconds"),
            "next renewal": told.get("next_refresh_at"),
            "last error": told.get("last_error"),
            "storage": told.get("storage"),
        }
    )
    if told.get("unsaved_generation"):
        write(f"NOT SAVED: generation {told['unsaved_generation']} is in memory only")
    if told.get("interrupted"):
        write(f"interrupted: {told['interrupted']}")


def show_daemon(told: Mapping[str, Any]) -> None:
    """The daemon, its credentials and its bots."""
    if told["running"]:
        write(f"daemon {told['version']}, pid {told['pid']}, since {told['started_at']}")
        for part in told["parts"]:
            write(f"  {'ok  ' if part['ready'] else 'wait'}  {part['name']}: {part['reason']}")
    else:
        write("no daemon runs; this is what is stored")
    for credential in told["credentials"].values():
        write("")
        show_credential(credential)
    for name, targets in told["relay"].items():
        write("")
        write(f"relay {name}")
        for target in targets:
            reason = f": {target['reason']}" if target["reason"] else ""
            write(f"  {target['target']}  {target['outcome']}{reason}")
    for name, stream in told.get("streams", {}).items():
        write("")
        show_stream(name, stream)


def show_stream(name: str, told: Mapping[str, Any]) -> None:
    """One stream: what may be believed of it, and when each topic last brought something."""
    live = "live" if told["live"] else "NOT LIVE"
    write(f"stream {name}: {live}, {told['state']}, {told['health']}")
    for reason in told["reasons"]:
        write(f"  {reason}")
    width = max((len(topic["topic"]) for topic in told["topics"]), default=0)
    for topic in told["topics"]:
        last = topic["last_data"] or "no data yet"
        write(f"  {topic['topic']:<{width}}  {topic['phase']:<10}  {last}")
    if (recording := told["recording"]) is not None:
        missed = f", {recording['missed']} missed" if recording["missed"] else ""
        failure = f"; ended: {recording['failure']}" if recording["failure"] else ""
        write(f"  recorded in {recording['file']}: {recording['frames']} frames{missed}{failure}")


def _clock(told: Mapping[str, Any], at: str, left: str) -> str | None:
    if told.get(at) is None:
        return None
    seconds = told.get(left)
    return f"{told[at]}{'' if seconds is None else f' ({_span(seconds)})'}"


def _span(seconds: float) -> str:
    """`in 24 min`, `3 h ago`."""
    size = abs(seconds)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if size >= 2 * length:
            text = f"{size / length:.0f} {unit}"
            break
    else:
        text = f"{size:.0f} s"
    return f"in {text}" if seconds >= 0 else f"{text} ago"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
