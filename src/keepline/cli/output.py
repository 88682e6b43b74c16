"""What commands print: JSON for programs, aligned plain lines for people and pipes.

Invariant: results go to standard output, everything else to standard error.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["on_terminal", "say", "show_fields", "show_json", "show_table", "write"]


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


def show_json(value: object) -> None:
    """Indented on a terminal, one line in a pipe."""
    write(json.dumps(value, ensure_ascii=False, default=str, indent=2 if on_terminal() else None))


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


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
