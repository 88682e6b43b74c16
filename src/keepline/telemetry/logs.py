"""Where log lines go: console and file, text or JSON.

The street calls `setup_logging` once; rooms never import this module. Invariants: each line that leaves through it is
redacted, texts of exceptions included; a line of text is one event, whatever a peer put into it; a log that cannot be
written never stops the program and never prints what it could not write.
"""

import contextlib
import io
import json
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from keepline.errors import ConfigError
from keepline.telemetry.events import fields_of
from keepline.telemetry.redaction import redact, redact_value

__all__ = ["FILE_MODE", "setup_logging"]

FILE_MODE = 0o640
"""A new log file may be read by its group (adm, say), never by others; the umask may take more away."""

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

EventDict = MutableMapping[str, Any]


def setup_logging(
    level: str = "INFO",
    *,
    log_file: Path | str | None = None,
    log_format: Literal["text", "json"] = "text",
    stream: TextIO | None = None,
) -> Callable[[], None]:
    """Send every log line of the process to the console, and to a file when one is named.

    A line of text is `[timestamp] LEVEL: message key=value ...`, in UTC, with `component=` from WARNING up. A line of
    JSON is an object with `timestamp`, `level`, `message`, `component` and `fields`. What asyncio, aiohttp and others
    say passes from WARNING up (from INFO up at level DEBUG). Calling it again replaces what the last call set up.

    Args:
        level: the least that is logged, by name.
        log_file: appended to, made with mode 0640, reopened when a rotation moved it away.
        log_format: lines for people or for machines.
        stream: the console, standard error when None.

    Returns:
        A function that takes it all down again and closes the file.

    Raises:
        ConfigError: no such level or format, or the file cannot be opened.
    """
    if level.upper() not in _LEVELS:
        raise ConfigError(f"{level!r} is none of {', '.join(_LEVELS)}", key="telemetry.log_level")
    formatter = _formatter(log_format)
    handlers: list[logging.Handler] = [_Console(sys.stderr if stream is None else stream)]
    if log_file is not None:
        handlers.append(_open(Path(log_file)))
    for handler in handlers:
        handler.setFormatter(formatter)
    _take_down()
    return _put_up(handlers, logging.getLevelNamesMapping()[level.upper()])


def _put_up(handlers: list[logging.Handler], level: int) -> Callable[[], None]:
    root, ours = logging.getLogger(), logging.getLogger("keepline")
    before = (root.level, ours.level)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO if level <= logging.DEBUG else max(level, logging.WARNING))
    ours.setLevel(level)
    logging.captureWarnings(True)

    def take_down() -> None:
        if handlers[0] in root.handlers:  # else a later call has replaced them, levels and all
            _take_down()
            root.setLevel(before[0])
            ours.setLevel(before[1])

    return take_down


def _take_down() -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Careful)]:
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)


class _Careful(logging.Handler):
    """Says once, not per line and without the line's content, that a log cannot be written."""

    name_for_people = "the log"
    _failing = False
    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        try:
            super().emit(record)
        except OSError:  # the standard library lets an error at reopening pass to whoever logged
            self.handleError(record)
        self._failing = self._failed

    def handleError(self, record: logging.LogRecord) -> None:
        self._failed = True
        problem = sys.exc_info()[1]
        if not self._failing and sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # there may be nobody left to tell
                sys.stderr.write(
                    f"{self.name_for_people} cannot be written ({type(problem).__name__}: "
                    f"{redact(str(problem))}); lines are lost until it can\n"
                )


class _Console(_Careful, logging.StreamHandler[TextIO]):
    """The console."""

    name_for_people = "the console log"


class _File(_Careful, logging.handlers.WatchedFileHandler):
    """A file that is opened again when a rotation has moved it away."""

    name_for_people = "the log file"

    def _open(self) -> io.TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        return open(os.open(self.baseFilename, flags, FILE_MODE), "a", encoding="utf-8")  # noqa: PTH123


def _open(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        return _File(path)
    except OSError as error:
        raise ConfigError(
            f"cannot open the log file {path}: {error.strerror or error}; name a file in a directory that"
            " this user may write",
            key="telemetry.log_file",
        ) from error


def _formatter(log_format: str) -> logging.Formatter:
    from structlog.stdlib import ProcessorFormatter

    if log_format not in ("text", "json"):
        raise ConfigError(f"{log_format!r} is neither text nor json", key="telemetry.log_format")
    return ProcessorFormatter(
        foreign_pre_chain=[_read_record, _describe_exception, _hide_secrets],
        processors=[
            ProcessorFormatter.remove_processors_meta,
            _as_text if log_format == "text" else _as_json,
        ],
    )


def _read_record(_logger: object, _name: str, entry: EventDict) -> EventDict:
    record: logging.LogRecord = entry["_record"]
    moment = datetime.fromtimestamp(record.created, UTC)
    entry["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry["level"] = record.levelname
    entry["component"] = record.name.removeprefix("keepline.")
    entry["fields"] = fields_of(record)
    return entry


def _describe_exception(logger: Any, name: str, entry: EventDict) -> EventDict:
    from structlog.processors import StackInfoRenderer, format_exc_info

    return format_exc_info(logger, name, StackInfoRenderer()(logger, name, entry))


def _hide_secrets(_logger: object, _name: str, entry: EventDict) -> EventDict:
    for key in ("event", "exception", "stack"):
        if entry.get(key):
            entry[key] = redact(str(entry[key]))
    entry["fields"] = redact_value(entry["fields"])
    return entry


def _as_text(_logger: object, _name: str, entry: EventDict) -> str:
    fields = dict(entry["fields"])
    if logging.getLevelNamesMapping().get(entry["level"], 0) >= logging.WARNING:
        fields.setdefault("component", entry["component"])
    message = " ".join([_one_line(entry["event"]), *(f"{k}={_word(v)}" for k, v in fields.items())])
    lines = [f"[{entry['timestamp']}] {entry['level']}: {message}"]
    for key in ("exception", "stack"):
        lines += [f"    {line}" for line in str(entry.get(key) or "").splitlines()]
    return redact("\n".join(lines))


def _as_json(_logger: object, _name: str, entry: EventDict) -> str:
    line = {key: entry[key] for key in ("timestamp", "level")}
    line |= {"message": entry["event"], "component": entry["component"], "fields": entry["fields"]}
    line |= {key: entry[key] for key in ("exception", "stack") if entry.get(key)}
    return json.dumps(line, ensure_ascii=False, default=str)


def _one_line(text: object) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _word(value: object) -> str:
    text = _one_line("-" if value is None else value)
    plain = text and not any(c in " \t\"'=" for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)
