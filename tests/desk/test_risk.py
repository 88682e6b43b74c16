"""One table says how risky an exposure is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.desk.risk import RISK_TABLE, RiskLevel, risk_level, utilization_pct
from keepline.errors import ConfigError


@pytest.mark.parametrize(
    ("net", "level"),
    [
        (0, "low"), (49.99, "low"), (50, "medium"), (74.99, "medium"), (75, "high"), (89.99, "high"),
        (90, "critical"), (100, "critical"), (1e9, "critical"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1])
def test_the_levels_begin_where_the_table_says_on_both_sides(net, level: str, sign: int) -> None:
    assert risk_level(sign * net, 100) is RiskLevel(level)
    assert utilization_pct(sign * net, 100) == pytest.approx(net)


def test_a_limit_that_is_none_or_zero_divides_nothing() -> None:
    assert utilization_pct(5, None) is utilization_pct(5, 0) is utilization_pct(0, 0.0) is None
    assert risk_level(1e12, None) is RiskLevel.LOW
    assert risk_level(0, 0) is RiskLevel.LOW
    assert risk_level(-0.01, 0) is RiskLevel.CRITICAL


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="not negative"):
        risk_level(1, -1)


def test_the_table_covers_everything_from_zero_up_the_highest_first() -> None:
    bounds = [bound for bound, _ in RISK_TABLE]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == 0
    assert {level for _, level in RISK_TABLE} == set(RiskLevel)


@given(st.floats(0, 1e12), st.floats(0, 1e12), st.floats(1e-3, 1e12))
def test_more_exposure_is_never_less_risky(one: float, other: float, limit: float) -> None:
    order = list(RiskLevel)
    less, more = sorted([one, other])
    assert order.index(risk_level(less, limit)) <= order.index(risk_level(more, limit))
