"""Which endpoint has which budget, and what a rule may not say."""

import pytest

from keepline.errors import ConfigError
from keepline.resilience.limits import LARGEST_LIMIT, limit_rules, rule_for

GOOD = {"limit": 10, "window_seconds": 5}


@pytest.mark.parametrize(
    ("endpoint", "rule"),
    [
        ("/api/History/retrieveBars", "history"),
        ("History/retrieveBars", "history"),
        ("/api/history/retrievebars", "history"),
        ("POST /api/History/retrieveBars", "history"),
        ("history", "history"),
        ("general", "general"),
        ("/api/Order/place", "general"),
        ("/api/HistoryOfOrders", "general"),
    ],
)
def test_without_a_configuration_bars_have_a_budget_of_their_own(endpoint: str, rule: str) -> None:
    assert rule_for(limit_rules(None), endpoint).name == rule


def test_the_default_numbers_are_the_contracts() -> None:
    history, general = limit_rules({})
    assert (history.limit, history.window_seconds, history.burst) == (50, 30.0, 50)
    assert (general.limit, general.window_seconds, general.burst) == (200, 60.0, 200)
    assert str(history) == "history: 50 per 30 s"


def test_the_first_rule_that_matches_wins_and_a_name_wins_over_every_pattern() -> None:
    rules = limit_rules(
        {
            "limits": {
                "orders": {**GOOD, "endpoints": ["*/Order/*"]},
                "all": {**GOOD, "endpoints": ["*"]},
                "late": {**GOOD, "endpoints": ["*/Order/*"]},
            }
        }
    )
    assert rule_for(rules, "/api/Order/place").name == "orders"
    assert rule_for(rules, "/api/Account/search").name == "all"
    assert rule_for(rules, "late").name == "late"


def test_a_rule_named_like_a_default_one_keeps_its_endpoints() -> None:
    rules = limit_rules(
        {"limits": {"history": {"limit": 30, "window_seconds": 30}, "general": GOOD}}
    )
    assert rule_for(rules, "/api/History/retrieveBars").limit == 30
    assert rule_for(rules, "/api/Order/place").name == "general"


def test_a_rule_without_endpoints_is_reached_by_its_name_alone() -> None:
    rules = limit_rules({"limits": {"orders": GOOD}})
    assert rule_for(rules, "orders").name == "orders"
    with pytest.raises(
        ConfigError, match=r"no rule covers the endpoint '/api/Order/place' \(there are: orders\)"
    ):
        rule_for(rules, "/api/Order/place")


@pytest.mark.parametrize(
    ("window", "margin"), [(1.0, 0.01), (10.0, 0.1), (60.0, 0.25), (3600.0, 0.25)]
)
def test_the_margin_is_a_hundredth_of_the_window_and_a_quarter_second_at_most(
    window: float, margin: float
) -> None:
    (rule,) = limit_rules({"limits": {"a": {"limit": 1, "window_seconds": window}}})
    assert rule.margin_seconds == pytest.approx(margin)
    assert rule.span == pytest.approx(window + margin)


def test_a_margin_and_a_burst_may_be_given() -> None:
    (rule,) = limit_rules({"limits": {"a": {**GOOD, "margin_seconds": 0, "burst": 3}}})
    assert (rule.span, rule.burst, str(rule)) == (5.0, 3, "a: 10 per 5 s, 3 at once")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1], r"^\[config\]: a limiter takes a mapping"),
        ({"history": GOOD}, r'^\[history\]: is not known here: rules go below "limits"'),
        ({"limits": {}}, r"^\[limits\]: is a mapping of at least one rule"),
        ({"limits": [GOOD]}, r"^\[limits\]: is a mapping"),
        ({"limits": {7: GOOD}}, r"^\[limits\]: a rule's name is a text, not 7"),
        ({"limits": {"": GOOD}}, r"^\[limits\]: a rule's name"),
        ({"limits": {"a": 5}}, r"^\[limits\.a\]: is a mapping with limit"),
        ({"limits": {"a": {**GOOD, "windw_seconds": 1}}}, r"^\[limits\.a\.windw_seconds\]: .*mean window_seconds"),
        ({"limits": {"a": {**GOOD, "zzz": 1}}}, r"^\[limits\.a\.zzz\]: is not known; there are: limit"),
        *(
            ({"limits": {"a": {**GOOD, "limit": bad}}}, r"^\[limits\.a\.limit\]: is a whole number from 1")
            for bad in (0, -1, 1.5, True, "50", None, float("nan"), LARGEST_LIMIT + 1)
        ),
        *(
            ({"limits": {"a": {**GOOD, "window_seconds": bad}}}, r"^\[limits\.a\.window_seconds\]: .* above 0")
            for bad in (0, -1, True, "5", None, float("nan"), float("inf"))
        ),
        *(
            ({"limits": {"a": {**GOOD, "margin_seconds": bad}}}, r"^\[limits\.a\.margin_seconds\]: .* from 0 up")
            for bad in (-0.1, float("nan"), float("inf"), "1")
        ),
        *(
            ({"limits": {"a": {**GOOD, "burst": bad}}}, r"^\[limits\.a\.burst\]: is a whole number from 1 to 10")
            for bad in (0, 11, 2.0)
        ),
        *(
            ({"limits": {"a": {**GOOD, "endpoints": bad}}}, r"^\[limits\.a\.endpoints\]: ")
            for bad in ("*", 5, [""], [3])
        ),
        ({"limits": {"a": {}}}, r"^\[limits\.a\.limit\]: "),
    ],
)  # fmt: skip
def test_a_rule_that_makes_no_sense_names_its_key(config: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        limit_rules(config)  # type: ignore[arg-type]


@pytest.mark.parametrize("endpoint", ["", None, 5, ["a"]])
def test_an_endpoint_is_a_text(endpoint: object) -> None:
    with pytest.raises(ConfigError, match=r"^\[endpoint\]: is a text such as"):
        rule_for(limit_rules(None), endpoint)


@pytest.mark.parametrize("weight", [0, -1, 4, 1.5, True, "1", None])
def test_a_weight_that_could_never_be_served_is_refused(weight: object) -> None:
    (rule,) = limit_rules({"limits": {"a": {**GOOD, "burst": 3}}})
    with pytest.raises(
        ConfigError, match=r"^\[weight\]: .*'a' weighs a whole number from 1 to its burst of 3"
    ):
        rule.check_weight(weight)  # type: ignore[arg-type]
