"""Counters, gauges and distributions in plain numbers, read at scrape.

Invariants: counting is exact from several threads; the exporter is imported where it is used; no secret, user name or
order id is a label.
"""

import bisect
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

__all__ = [
    "DEFAULT_BUCKETS",
    "PREFIX",
    "REGISTRY",
    "Histogram",
    "Metric",
    "Registry",
    "render_metrics",
]

PREFIX = "keepline_"

DEFAULT_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Upper bounds in seconds, from a callback (0.1 ms) to a refresh that hangs (30 s); 1 ms is one of the alert rules."""


class Metric:
    """One name with its labelled plain numbers, safe from every thread; `set` costs a dictionary write."""

    __slots__ = ("_lock", "_sources", "_values", "description", "kind", "labels", "name")

    def __init__(
        self,
        name: str,
        description: str,
        kind: Literal["counter", "gauge", "histogram"],
        labels: tuple[str, ...],
    ) -> None:
        self.name = PREFIX + name
        self.description = description
        self.kind = kind
        self.labels = labels
        self._lock = threading.Lock()
        self._sources: list[Callable[[], None]] = []
        self._values: dict[tuple[str, ...], float] = (
            {} if labels or kind == "histogram" else {(): 0.0}
        )

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """Add to the series of these label values, in the order in which the metric declares them."""
        with self._lock:
            self._values[self._series(labels)] = self._values.get(labels, 0.0) + by

    def set(self, value: float, *labels: str) -> None:
        """Put the series of these label values to a number."""
        self._values[self._series(labels)] = value

    def forget(self, *labels: str) -> None:
        """Drop a series whose subject is gone."""
        self._values.pop(labels, None)

    def value(self, *labels: str) -> float:
        """The number of a series, 0 when it was never touched."""
        self._gather()
        return self._values.get(labels, 0.0)

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        """All series at this moment: label values and number."""
        self._gather()
        return list(self._values.items())

    def gather_from(self, bring: Callable[[], None]) -> None:
        """Call `bring` before every read: a hot path counts in numbers of its own and brings them here only then."""
        self._sources.append(bring)

    def _gather(self) -> None:
        for bring in self._sources:
            bring()

    def _series(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) != len(self.labels):
            raise ValueError(
                f"{self.name} has the labels {self.labels}, not {len(labels)} values: {labels}"
            )
        return labels

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.kind}, {len(self.samples())} series>"


class Histogram(Metric):
    """How often a measured value fell under each bound: quantiles are computed where histories are kept."""

    __slots__ = ("_counts", "_sums", "buckets")

    def __init__(
        self, name: str, description: str, labels: tuple[str, ...], buckets: Sequence[float]
    ) -> None:
        super().__init__(name, description, "histogram", labels)
        if not buckets or list(buckets) != sorted({float(bound) for bound in buckets}):
            raise ValueError(f"the buckets of {name} must grow, not {tuple(buckets)}")
        self.buckets = tuple(float(bound) for bound in buckets if bound != math.inf)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        if not labels:
            self._begin(())

    def observe(self, value: float, *labels: str) -> None:
        """Count one value (in the unit that the name says) in the series of these label values."""
        with self._lock:
            counts = self._counts.get(labels) or self._begin(self._series(labels))
            counts[bisect.bisect_left(self.buckets, value)] += 1
            self._sums[labels] += value

    def add(self, counts: Sequence[int], total: float, *labels: str) -> None:
        """Count many values at once: how many fell under each bound (and above all of them), and their sum."""
        with self._lock:
            known = self._counts.get(labels) or self._begin(self._series(labels))
            for place, count in enumerate(counts):
                known[place] += count
            self._sums[labels] += total

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """Not for a histogram: it counts what `observe` is given."""
        raise TypeError(f"{self.name} is a histogram: use observe()")

    def set(self, value: float, *labels: str) -> None:
        """Not for a histogram: it counts what `observe` is given."""
        raise TypeError(f"{self.name} is a histogram: use observe()")

    def forget(self, *labels: str) -> None:
        """Drop a series whose subject is gone."""
        with self._lock:
            self._counts.pop(labels, None)
            self._sums.pop(labels, None)

    def value(self, *labels: str) -> float:
        """How many values the series has seen."""
        self._gather()
        return float(sum(self._counts.get(labels, ())))

    def sum(self, *labels: str) -> float:
        """The values of the series added up."""
        self._gather()
        return self._sums.get(labels, 0.0)

    def samples(self) -> list[tuple[tuple[str, ...], float]]:
        """All series at this moment: label values and how many values each has seen."""
        self._gather()
        return [(labels, self.value(*labels)) for labels in list(self._counts)]

    def distributions(self) -> list[tuple[tuple[str, ...], list[tuple[str, float]], float]]:
        """All series: label values, cumulative counts by upper bound as Prometheus wants them, and the sum."""
        self._gather()
        with self._lock:
            return [
                (labels, self._cumulative(counts), self._sums[labels])
                for labels, counts in self._counts.items()
            ]

    def _begin(self, labels: tuple[str, ...]) -> list[int]:
        self._sums[labels] = 0.0
        return self._counts.setdefault(labels, [0] * (len(self.buckets) + 1))

    def _cumulative(self, counts: list[int]) -> list[tuple[str, float]]:
        bounds = (*(str(bound) for bound in self.buckets), "+Inf")
        return list(zip(bounds, map(float, itertools.accumulate(counts)), strict=True))


class Registry:
    """All metrics of a process; the same name twice is the same metric, and never of another kind."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._lock = threading.Lock()

    def counter(self, name: str, description: str, *labels: str) -> Metric:
        """A number that only grows; its name ends in `_total`."""
        return self._add(Metric(name, description, "counter", labels))

    def gauge(self, name: str, description: str, *labels: str) -> Metric:
        """A number that goes up and down; an instant is a timestamp in epoch seconds, never an age."""
        return self._add(Metric(name, description, "gauge", labels))

    def histogram(
        self,
        name: str,
        description: str,
        *labels: str,
        buckets: Sequence[float] = DEFAULT_BUCKETS,
    ) -> Histogram:
        """A distribution; `buckets` are growing upper bounds in the unit that the name says."""
        metric = self._add(Histogram(name, description, labels, buckets))
        assert isinstance(metric, Histogram)  # _add compared the kinds
        return metric

    def __iter__(self) -> Iterator[Metric]:
        return iter(list(self._metrics.values()))

    def _add(self, wanted: Metric) -> Metric:
        with self._lock:
            metric = self._metrics.setdefault(wanted.name, wanted)
        if (metric.kind, metric.labels) != (wanted.kind, wanted.labels):
            raise ValueError(
                f"{metric.name} is a {metric.kind} with the labels {metric.labels},"
                f" not a {wanted.kind} with {wanted.labels}"
            )
        return metric


REGISTRY = Registry()
"""The process's metrics; rooms declare theirs at import."""


def render_metrics(registry: Registry = REGISTRY) -> bytes:
    """The Prometheus text exposition of all metrics, read at this moment."""
    from prometheus_client.exposition import generate_latest

    class Collector:
        def collect(self) -> Iterator[Any]:
            return map(_family, registry)

    return generate_latest(Collector())


def _family(metric: Metric) -> Any:
    from prometheus_client import core

    if isinstance(metric, Histogram):
        distribution = core.HistogramMetricFamily(
            metric.name, metric.description, labels=metric.labels
        )
        for labels, buckets, total in metric.distributions():
            distribution.add_metric(labels, buckets, total)
        return distribution
    make = core.CounterMetricFamily if metric.kind == "counter" else core.GaugeMetricFamily
    family = make(metric.name, metric.description, labels=metric.labels)
    for labels, value in metric.samples():
        family.add_metric(labels, value)
    return family
