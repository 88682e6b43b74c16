"""What a short command says beside its result: warnings of the rooms, one line each on standard error.

Invariants: redacted; what the command's own error or output says anyway is not said twice; no traceback reaches the
terminal through logging's last resort.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from keepline.cli.output import say
from keepline.telemetry import fields_of, redact

__all__ = ["notes"]

_SAID_ANYWAY = frozenset(
    {
        "Token refresh failed",
        "Token not delivered",
        "Stream redial",
        "Stream gives up",
        "Stream stale",
        "Stream lost",
    }
)
_WORTH_SAYING = "A storage key was generated"


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(_WORTH_SAYING):
            return True
        return record.levelno == logging.WARNING and message not in _SAID_ANYWAY

    def emit(self, record: logging.LogRecord) -> None:
        words = [record.getMessage(), *(f"{k}={v}" for k, v in fields_of(record).items())]
        line = redact(f"keepline: note: {' '.join(words)}")
        if line not in self._said:
            self._said.add(line)
            say(line)


@contextmanager
def notes() -> Iterator[None]:
    """Say them while a command runs."""
    handlers = {"keepline": _Notes(), "": logging.NullHandler()}
    talkative = logging.getLogger("keepline.credentials")
    before = talkative.level
    talkative.setLevel(logging.INFO)
    for name, handler in handlers.items():
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        talkative.setLevel(before)
        for name, handler in handlers.items():
            logging.getLogger(name).removeHandler(handler)
