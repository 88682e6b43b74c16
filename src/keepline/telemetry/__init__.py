"""What rooms say about themselves: numbers, log events, and both without secrets.

Rooms count in plain numbers and log through the standard library; the street decides where it goes. Exporters
(prometheus-client, structlog) are imported where they are used, so a bot that wants a token pays for neither.
"""

from keepline.telemetry.events import event, fields_of
from keepline.telemetry.metrics import (
    DEFAULT_BUCKETS,
    PREFIX,
    REGISTRY,
    Histogram,
    Metric,
    Registry,
    render_metrics,
)
from keepline.telemetry.redaction import redact, redact_value, shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from keepline.telemetry.logs import setup_logging

__all__ = [
    "DEFAULT_BUCKETS",
    "PREFIX",
    "REGISTRY",
    "Histogram",
    "Metric",
    "Registry",
    "event",
    "fields_of",
    "redact",
    "redact_value",
    "render_metrics",
    "setup_logging",
    "shortened",
]


def __getattr__(name: str) -> object:
    if name != "setup_logging":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keepline.telemetry.logs import setup_logging

    return setup_logging
