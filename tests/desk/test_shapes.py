"""The desk's messages as they go over the wire."""

import enum
import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.desk import shapes
from keepline.errors import ConfigError
from keepline.model import Side

ROUTING = {
    "symbol": "EURUSD", "side": "buy", "volume": 1.5, "decision": "ABOOK", "lp": "LP1",
    "execution_time_ms": 12, "spread": 0.8, "slippage": -0.1,
}  # fmt: skip
PROVIDER = {
    "name": "LP1", "status": "connected", "avg_spread": 0.7, "execution_quality": 0.98, "latency_ms": 4.2,
    "quotes_per_second": 55, "reject_rate": 0.01, "uptime": 99.9,
}  # fmt: skip
EXPOSURE = {
    "total": 900, "net": -80, "limit": 100, "by_symbol": {"EURUSD": -80}, "by_lp": {"LP1": 20.5},
}  # fmt: skip
ALERT = {
    "severity": "critical", "category": "exposure", "title": "Limit", "message": "Net is 95 %",
    "source": "risk", "action_items": ["hedge"],
}  # fmt: skip
ALL = [
    (shapes.routing_decision, ROUTING),
    (shapes.provider_metrics, PROVIDER),
    (shapes.exposure_change, EXPOSURE),
    (shapes.alert, ALERT),
]


def test_a_routing_decision() -> None:
    assert shapes.routing_decision(**ROUTING) == {
        "symbol": "EURUSD", "side": "buy", "volume": 1.5, "routingDecision": "ABOOK", "lpSelected": "LP1",
        "executionTimeMs": 12, "spread": 0.8, "slippage": -0.1,
    }  # fmt: skip


def test_a_providers_metrics() -> None:
    assert shapes.provider_metrics(**PROVIDER) == {
        "lpName": "LP1", "status": "connected", "avgSpread": 0.7, "executionQuality": 0.98, "latencyMs": 4.2,
        "quotesPerSecond": 55, "rejectRate": 0.01, "uptime": 99.9,
    }  # fmt: skip


def test_an_exposure_change() -> None:
    assert shapes.exposure_change(**EXPOSURE) == {
        "totalExposure": 900, "netExposure": -80, "exposureLimit": 100, "utilizationPct": 80.0,
        "riskLevel": "high", "bySymbol": {"EURUSD": -80}, "byLP": {"LP1": 20.5},
    }  # fmt: skip


def test_an_alert() -> None:
    assert shapes.alert(**ALERT) == {
        "severity": "critical", "category": "exposure", "title": "Limit", "message": "Net is 95 %",
        "source": "risk", "actionItems": ["hedge"],
    }  # fmt: skip


def test_words_are_known_however_they_are_written() -> None:
    class Book(enum.Enum):
        HEDGE = "partial hedge"

    written = {
        "side": [Side.BUY, "BUY", "Buy"],
        "decision": [Book.HEDGE, "Partial_Hedge", "PARTIAL-HEDGE"],
    }
    for name, ways in written.items():
        made = [shapes.routing_decision(**{**ROUTING, name: way}) for way in ways]
        assert made.count(made[0]) == 3
    assert (
        shapes.routing_decision(**{**ROUTING, "decision": "a-book"})["routingDecision"] == "ABOOK"
    )
    assert shapes.provider_metrics(**{**PROVIDER, "status": "DEGRADED"})["status"] == "degraded"


def test_what_is_not_known_is_null_and_what_has_no_rows_is_empty() -> None:
    reject = {**ROUTING, "lp": None, "execution_time_ms": None, "spread": None, "slippage": None}
    made = shapes.routing_decision(**reject)
    assert (made["lpSelected"], made["executionTimeMs"], made["spread"]) == (None, None, None)
    assert shapes.routing_decision(**{**ROUTING, "lp": ""})["lpSelected"] is None
    made = shapes.exposure_change(5, 5, None, None, None)
    assert (made["exposureLimit"], made["utilizationPct"], made["bySymbol"]) == (None, None, {})
    assert shapes.alert(**{**ALERT, "action_items": None})["actionItems"] == []
    assert shapes.alert(**{**ALERT, "message": "", "source": ""})["message"] == ""


def test_decimals_become_numbers_rows_and_nested_mappings_too() -> None:
    made = shapes.exposure_change(
        *(Decimal("900.5"), Decimal(-5), Decimal(10)),
        {"EURUSD": {"net": Decimal("1.25"), "stale": False, "book": None, "name": "x"}},
        [{"lp": "LP1", "net": Decimal(3)}],
    )
    assert json.loads(json.dumps(made)) == made
    assert made["bySymbol"]["EURUSD"] == {"net": 1.25, "stale": False, "book": None, "name": "x"}
    assert made["byLP"] == [{"lp": "LP1", "net": 3.0}]


NAN, HUGE = float("nan"), 10**400
BAD = [
    (0, "symbol", ["", " ", None, 5, "\ud800", "x" * 10_001]),
    (0, "side", ["long", None]),
    (0, "volume", [NAN, -1, None, "1", True, HUGE, float("inf"), Decimal("sNaN")]),
    (0, "decision", ["CBOOK", ""]),
    (0, "lp", [5]),
    (0, "execution_time_ms", [-1, NAN]),
    (0, "slippage", ["0"]),
    (1, "name", [""]),
    (1, "status", ["up"]),
    (1, "latency_ms", [-0.1]),
    (1, "reject_rate", [-1]),
    (2, "total", [None]),
    (2, "net", [NAN]),
    (2, "limit", [-1, NAN]),
    (2, "by_symbol", ["EURUSD", 5, dict.fromkeys(map(str, range(1001)), 1), {"x": NAN}, {5: 1}, {"": 1}]),
    (2, "by_lp", [{"x": object()}, {"a": [[[[[[[[[1]]]]]]]]]}]),
    (3, "severity", ["fatal"]),
    (3, "title", [""]),
    (3, "message", [None]),
    (3, "action_items", ["hedge", 5, [""], ["x"] * 1001]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "name", "value"),
    [(which, name, value) for which, name, values in BAD for value in values],
    ids=lambda each: str(each)[:12].encode("ascii", "replace").decode(),
)
def test_what_cannot_be_is_refused_by_the_arguments_name(which: int, name: str, value) -> None:
    make, good = ALL[which]
    with pytest.raises(ConfigError) as caught:
        make(**{**good, name: value})
    assert caught.value.key.split("[")[0] == name


@given(st.sampled_from(ALL), st.data())
def test_whatever_is_given_it_is_json_or_refused(which, data) -> None:
    make, good = which
    anything = st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.decimals()),
        st.dictionaries(st.text(), st.floats(), max_size=2),
        st.lists(st.text(), max_size=2),
    )
    name = data.draw(st.sampled_from(sorted(good)))
    try:
        made = make(**{**good, name: data.draw(anything)})
    except ConfigError:
        return
    json.dumps(made, allow_nan=False).encode()
