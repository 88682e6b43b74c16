"""Numbers: exact from several threads, exported as Prometheus reads them, misuse refused."""

import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from keepline import telemetry
from keepline.telemetry import PREFIX, Histogram, Registry, render_metrics


def series(registry: Registry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a Prometheus server reads from the exposition."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(render_metrics(registry).decode())
        for sample in family.samples
    }


def test_a_counter_without_labels_starts_at_zero_so_that_its_first_step_is_seen() -> None:
    registry = Registry()
    counter = registry.counter("things_total", "Things.")
    assert series(registry) == {("keepline_things_total", ()): 0}
    counter.inc()
    counter.inc(by=2.5)
    assert counter.value() == 3.5
    assert series(registry) == {("keepline_things_total", ()): 3.5}


def test_labels_make_series_and_a_forgotten_one_is_gone() -> None:
    registry = Registry()
    gauge = registry.gauge("expiry_timestamp_seconds", "When.", "credential")
    assert series(registry) == {}
    gauge.set(1770000000.5, "schwab")
    gauge.set(3, 'na"me\n')
    assert series(registry) == {
        ("keepline_expiry_timestamp_seconds", (("credential", "schwab"),)): 1770000000.5,
        ("keepline_expiry_timestamp_seconds", (("credential", 'na"me\n'),)): 3,
    }
    gauge.forget('na"me\n')
    gauge.forget("never there")
    assert gauge.samples() == [(("schwab",), 1770000000.5)]
    assert gauge.value("never there") == 0


def test_types_and_descriptions_reach_the_exposition() -> None:
    registry = Registry()
    registry.counter("a_total", "Counts a.")
    registry.gauge("b", "Is b.")
    registry.histogram("c_seconds", "Spread of c.", buckets=(1, 2))
    text = render_metrics(registry).decode()
    assert "# HELP keepline_a_total Counts a.\n# TYPE keepline_a_total counter\n" in text
    assert "# TYPE keepline_b gauge\n" in text
    assert "# TYPE keepline_c_seconds histogram\n" in text


def test_a_histogram_counts_each_value_under_every_bound_that_holds_it() -> None:
    registry = Registry()
    spread = registry.histogram("call_seconds", "Calls.", "relay", buckets=(0.001, 0.1, 1))
    for seconds in (0.001, 0.05, 5, 0.0):
        spread.observe(seconds, "main")
    found = series(registry)
    by_bound = {
        dict(labels).get("le"): value for (name, labels), value in found.items() if "bucket" in name
    }
    assert by_bound == {"0.001": 2, "0.1": 3, "1.0": 3, "+Inf": 4}
    assert found["keepline_call_seconds_count", (("relay", "main"),)] == 4
    assert found["keepline_call_seconds_sum", (("relay", "main"),)] == pytest.approx(5.051)
    assert spread.value("main") == 4
    assert spread.sum("main") == pytest.approx(5.051)
    spread.forget("main")
    assert series(registry) == {}
    assert (spread.value("main"), spread.sum("main"), spread.samples()) == (0, 0, [])


@given(
    st.lists(st.floats(0, 100), max_size=30),
    st.lists(st.floats(0.001, 50), min_size=1, max_size=6, unique=True).map(sorted),
)
def test_buckets_are_cumulative_and_end_at_the_count(
    values: list[float], bounds: list[float]
) -> None:
    spread = Registry().histogram("x", "d", buckets=bounds)
    for value in values:
        spread.observe(value)
    [(labels, buckets, total)] = spread.distributions()
    assert labels == ()
    assert buckets[-1] == ("+Inf", len(values))
    assert [count for _, count in buckets[:-1]] == [sum(v <= b for v in values) for b in bounds]
    assert total == pytest.approx(sum(values))


def test_a_bound_of_infinity_is_taken_for_the_one_that_is_always_there() -> None:
    spread = Registry().histogram("x", "d", buckets=(1, float("inf")))
    spread.observe(7)
    assert spread.distributions() == [((), [("1.0", 0), ("+Inf", 1)], 7)]


@pytest.mark.parametrize("bounds", [(), (2, 1), (1, 1)])
def test_bounds_that_do_not_grow_are_refused(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must grow"):
        Registry().histogram("x", "d", buckets=bounds)


def test_a_histogram_is_not_set_or_incremented() -> None:
    spread = Registry().histogram("x", "d")
    with pytest.raises(TypeError, match="use observe"):
        spread.inc()
    with pytest.raises(TypeError, match="use observe"):
        spread.set(3)


def test_the_same_name_is_the_same_metric() -> None:
    registry = Registry()
    assert registry.counter("a_total", "d", "x") is registry.counter("a_total", "other words", "x")
    assert registry.histogram("h", "d") is registry.histogram("h", "d")
    assert len(list(registry)) == 2


@pytest.mark.parametrize(
    "again",
    [
        lambda r: r.gauge("a_total", "d", "x"),
        lambda r: r.counter("a_total", "d", "y"),
        lambda r: r.histogram("a_total", "d", "x"),
    ],
)
def test_a_name_that_means_two_things_is_refused(again) -> None:
    registry = Registry()
    registry.counter("a_total", "d", "x")
    with pytest.raises(ValueError, match="keepline_a_total is a counter"):
        again(registry)


def test_the_wrong_number_of_label_values_is_refused() -> None:
    registry = Registry()
    counter, spread = registry.counter("a_total", "d", "x"), registry.histogram("h", "d", "x")
    with pytest.raises(ValueError, match="has the labels"):
        counter.inc()
    with pytest.raises(ValueError, match="has the labels"):
        counter.set(1, "a", "b")
    with pytest.raises(ValueError, match="has the labels"):
        spread.observe(1)


def test_no_step_is_lost_between_threads() -> None:
    registry = Registry()
    counter, spread = registry.counter("a_total", "d", "x"), registry.histogram("h", "d")

    def work() -> None:
        for _ in range(5000):
            counter.inc("one")
            spread.observe(1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places as often as they can
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert counter.value("one") == 20_000
    assert spread.value() == spread.sum() == 20_000


def test_reprs_tell_name_kind_and_size() -> None:
    registry = Registry()
    assert repr(registry.counter("a_total", "d")) == "<Metric keepline_a_total counter, 1 series>"
    assert repr(registry.histogram("h", "d", "x")) == "<Histogram keepline_h histogram, 0 series>"


def test_public_names_are_there_and_others_are_not() -> None:
    assert all(hasattr(telemetry, name) for name in telemetry.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        telemetry.nonsense  # noqa: B018
    assert isinstance(telemetry.Registry().histogram("x", "d"), Histogram)
    assert PREFIX == "keepline_"


def test_counting_loads_no_exporter() -> None:
    code = (
        "import sys; from keepline.telemetry import REGISTRY, event, redact; REGISTRY.counter('a_total', 'd').inc();"
        "print([m for m in ('prometheus_client', 'structlog', 'logging.handlers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_numbers_counted_elsewhere_are_brought_before_every_read() -> None:
    registry = Registry()
    counter = registry.counter("calls_total", "Calls.", "op")
    seconds = registry.histogram("call_seconds", "How long.", "op", buckets=(1, 2))
    elsewhere = [3, 1]

    def bring() -> None:
        count, elsewhere[0] = elsewhere[0], 0
        counter.inc("place", by=count)
        seconds.add([count, 0, 0], 0.5 * count, "place")

    counter.gather_from(bring)
    assert counter.value("place") == 3
    assert (seconds.value("place"), seconds.sum("place")) == (3, 1.5)
    elsewhere[0] = 2
    assert series(registry)["keepline_calls_total", (("op", "place"),)] == 5
