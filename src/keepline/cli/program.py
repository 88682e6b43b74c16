"""Runs one command and turns its end, good or bad, into an exit code."""

import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from keepline.cli import service
from keepline.cli.exits import DONE, FAILED, INTERRUPTED, USAGE, exit_code
from keepline.errors import KeeplineError

__all__ = ["main", "run"]


def main() -> NoReturn:
    """The program `keepline`."""
    _open_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are on standard error already."""
    try:
        code = _finish(_perform(list(arguments)))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except KeeplineError as error:
        _say(str(error))
        code = exit_code(error)
    except BrokenPipeError:
        code = _reader_left()
    except Exception as error:
        code = _click_error(error)
    return code


def _perform(arguments: list[str]) -> object:
    if arguments[:1] == ["run"] and (wanted := service.parse(arguments[1:])) is not None:
        return service.serve(*wanted)
    from keepline.cli.app import app
    from keepline.cli.notes import notes

    with notes():
        return app(arguments, prog_name="keepline", standalone_mode=False)


def _open_streams() -> None:
    """Started with a closed standard stream, it reads an end there, and what it says goes nowhere.

    Opened in their order, so that each gets its number back and no socket or file of ours gets it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _finish(result: object) -> int:
    """Flush while a broken pipe can still be told from a failure."""
    sys.stdout.flush()
    return result if isinstance(result, int) else DONE


def _reader_left() -> int:
    """`keepline … | head` has read enough: be quiet, also when the interpreter flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _click_error(error: Exception) -> int:
    """Usage errors carry their own code and words; anything else is a fault of ours."""
    words = getattr(error, "format_message", None)
    if words is not None:
        message = words()
        if "\n" in message:  # a group without a verb: its whole help
            sys.stderr.write(f"{message}\n")
        else:
            _say(_usage(message, getattr(error, "ctx", None)))
        return int(getattr(error, "exit_code", USAGE))
    if type(error).__name__ == "Abort":
        return INTERRUPTED
    return _internal(error)


def _usage(message: str, context: object) -> str:
    command = getattr(context, "command_path", "keepline")
    message = message.strip().rstrip(".")
    if re.search(r"unexpected extra argument", message):  # it may be a secret: do not repeat it
        message = "one argument too many; tokens and secrets are never arguments, give them on standard input"
    return f"{message[:1].lower()}{message[1:]}; see {command} --help"


def _internal(error: Exception) -> int:
    from keepline.telemetry import redact

    _say(redact(f"internal error, please report it: {type(error).__name__}: {error}"))
    if os.environ.get("KEEPLINE_DEBUG"):
        import traceback

        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    return FAILED


def _say(line: str) -> None:
    sys.stderr.write(f"keepline: {line}\n")
