"""Counters, log events and redaction: what rooms say about themselves.

Rooms count in plain numbers and log through the standard library; the street decides where it goes. Exporters
(prometheus-client, structlog) are imported where they are used, so that a bot that wants a token pays for neither.
Invariants: no secret, user name or order id is a label; every log line that leaves through `setup_logging` is redacted.
"""

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Literal

__all__ = ["REGISTRY", "Metric", "Registry", "event", "redact", "render_metrics"]

PREFIX = "keepline_"

_PRIVATE_FIELD = (
    r"(?:access_token|refresh_token|id_token|client_secret|app_secret|api_?key|password|shared_secret|code_verifier"
    r"|bearer_token|token|secret|code)"
)
_REDACTIONS = (
    (
        re.compile(r"(?i)\b(bearer|basic)(\s+)(?!error|token\b|realm)[A-Za-z0-9._~+/=-]{6,}"),
        r"\1\2[redacted]",
    ),
    (re.compile(r"(?i)([?&]" + _PRIVATE_FIELD + r"=)[^&\s'\"]+"), r"\1[redacted]"),
    (
        re.compile(r"(?i)([\"']" + _PRIVATE_FIELD + r"[\"']\s*:\s*)([\"'])(?:\\.|(?!\2).)*(\2|$)"),
        r"\1\2[redacted]\2",
    ),
    (
        re.compile(r"(?i)\b((?!code=)" + _PRIVATE_FIELD + r"=)(?!\[redacted)[^&\s,;'\")\]}]{6,}"),
        r"\1[redacted]",
    ),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "[redacted jwt]"),
)


def redact(text: str) -> str:
    """The text without what looks like a secret: bearer values, token fields in URLs, JSON and forms, JWTs."""
    for pattern, replacement in _REDACTIONS:
        text = pattern.sub(replacement, text)
    return text


def event(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Log a stable, greppable sentence with its fields.

    Args:
        logger: the room's logger, named `keepline.<room>`.
        level: `logging.INFO` and its like.
        message: the event's name as in the contract, for example `Token refreshed`.
        fields: numbers and short texts; never a secret.
    """
    if logger.isEnabledFor(level):
        logger.log(level, message, extra={"fields": fields})


class Metric:
    """One name with its labelled plain numbers; `inc` and `set` cost a dictionary write."""

    __slots__ = ("_values", "description", "kind", "labels", "name")

    def __init__(
        self,
        name: str,
        description: str,
        kind: Literal["counter", "gauge"],
        labels: tuple[str, ...],
    ) -> None:
        self.name = PREFIX + name
        self.description = description
        self.kind = kind
        self.labels = labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """Add to the series of these label values, in the order in which the metric declares them."""
        self._values[labels] = self._values.get(labels, 0.0) + by

    def set(self, value: float, *labels: str) -> None:
        self._values[labels] = value

    def forget(self, *labels: str) -> None:
        """Drop a series whose subject is gone."""
        self._values.pop(labels, None)

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0.0)

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        return list(self._values.items())

    def __repr__(self) -> str:
        return f"<Metric {self.name} {self.kind}, {len(self._values)} series>"


class Registry:
    """All metrics of a process; the same name twice is the same metric."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._lock = threading.Lock()

    def counter(self, name: str, description: str, *labels: str) -> Metric:
        return self._metric(name, description, "counter", labels)

    def gauge(self, name: str, description: str, *labels: str) -> Metric:
        return self._metric(name, description, "gauge", labels)

    def __iter__(self) -> Iterator[Metric]:
        return iter(list(self._metrics.values()))

    def _metric(
        self,
        name: str,
        description: str,
        kind: Literal["counter", "gauge"],
        labels: tuple[str, ...],
    ) -> Metric:
        with self._lock:
            return self._metrics.setdefault(name, Metric(name, description, kind, labels))


REGISTRY = Registry()
"""The process's metrics; rooms declare theirs at import."""


def render_metrics(registry: Registry = REGISTRY) -> bytes:
    """The Prometheus text exposition of all metrics, read at this moment."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.exposition import generate_latest

    class Collector:
        def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
            for metric in registry:
                family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                out = family(metric.name, metric.description, labels=metric.labels)
                for labels, value in metric.samples():
                    out.add_metric(labels, value)
                yield out

    return generate_latest(Collector())


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields of a record that `event` made, empty for others."""
    return getattr(record, "fields", {})
