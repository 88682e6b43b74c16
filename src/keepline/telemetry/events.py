"""Log events: a stable sentence with fields, through the standard library's logging.

Invariant: a record made here carries its fields as data, so that nothing downstream ever parses prose.
"""

import logging
from collections.abc import Mapping
from typing import Any

from keepline.telemetry.redaction import shortened

__all__ = ["event", "fields_of"]


def event(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Log a stable, greppable sentence with its fields.

    Args:
        logger: the room's logger, named `keepline.<room>`.
        level: `logging.INFO` and its like.
        message: the event's name as in the contract, for example `Token refreshed`.
        fields: numbers and short texts; never a secret. One named `account` is an account's id, and is shortened.
    """
    if logger.isEnabledFor(level):
        if isinstance(account := fields.get("account"), str):
            fields["account"] = shortened(account)
        logger.log(level, message, extra={"fields": fields})


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields of a record that `event` made, empty for others."""
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields
