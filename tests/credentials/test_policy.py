"""The numbers by which a credential is kept: their defaults, and a clear refusal of every wrong one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.policy import TokenManagerConfig
from keepline.errors import ConfigError

HOUR = 3600.0


def test_the_defaults_are_those_of_the_contract():
    config = TokenManagerConfig()
    assert config.name == "default"
    assert config.refresh_buffer_seconds == 7200
    assert config.refresh_at_fraction == 5 / 6
    assert config.max_retries == 4
    assert config.retry_delays == (30, 60, 120, 300)
    assert config.max_queue_depth == 100
    assert config.queue_timeout_seconds == 10
    assert config.refresh_timeout_seconds == 30
    assert config.default_lifetime_seconds == 1800


@pytest.mark.parametrize(
    ("lifetime", "buffer"),
    [(24 * HOUR, 2 * HOUR), (1800.0, 300.0), (12 * HOUR, 2 * HOUR), (60.0, 10.0), (0.0, 0.0)],
)
def test_the_smaller_buffer_wins(lifetime, buffer):
    assert TokenManagerConfig().buffer(lifetime) == pytest.approx(buffer)


@given(
    st.floats(0, 1e9),
    st.floats(0, 1e6),
    st.floats(0.01, 0.99),
)
def test_the_buffer_never_exceeds_either_bound(lifetime, seconds, fraction):
    config = TokenManagerConfig(refresh_buffer_seconds=seconds, refresh_at_fraction=fraction)
    assert 0 <= config.buffer(lifetime) <= min(seconds, lifetime)


def test_after_the_listed_delays_it_goes_on_every_five_minutes():
    backoff = TokenManagerConfig().backoff
    assert [backoff.delay(n) for n in range(1, 8)] == [30, 60, 120, 300, 300, 300, 300]


@pytest.mark.parametrize(
    ("retries", "delays", "expected"),
    [
        (0, (1,), [300, 300]),
        (1, (1, 2), [1, 300]),
        (4, (1, 2), [1, 2, 2, 2, 300]),
    ],
)
def test_max_retries_says_how_many_delays_come_before_the_steady_one(retries, delays, expected):
    backoff = TokenManagerConfig(max_retries=retries, retry_delays=delays).backoff
    assert [backoff.delay(n + 1) for n in range(len(expected))] == expected


def test_a_mapping_makes_a_configuration_and_a_configuration_is_taken_as_it_is():
    config = TokenManagerConfig.of({"name": "schwab", "retry_delays": [1, 2]})
    assert (config.name, config.retry_delays) == ("schwab", (1.0, 2.0))
    assert TokenManagerConfig.of(config) is config


@pytest.mark.parametrize(
    ("wrong", "key", "words"),
    [
        ({"refresh_bufer_seconds": 1}, "refresh_bufer_seconds", "refresh_buffer_seconds"),
        ({"colour": "red"}, "colour", "known are"),
        ({7: 1}, "7", "unknown"),
        ({"refresh_buffer_seconds": -1}, "refresh_buffer_seconds", "from 0 up"),
        ({"refresh_buffer_seconds": math.nan}, "refresh_buffer_seconds", "nan"),
        ({"refresh_buffer_seconds": "2h"}, "refresh_buffer_seconds", "str"),
        ({"refresh_buffer_seconds": True}, "refresh_buffer_seconds", "bool"),
        ({"refresh_at_fraction": 0}, "refresh_at_fraction", "above 0"),
        ({"refresh_at_fraction": 1.0}, "refresh_at_fraction", "below 1"),
        ({"max_retries": -1}, "max_retries", "from 0 up"),
        ({"max_retries": 1.5}, "max_retries", "whole number"),
        ({"max_retries": True}, "max_retries", "whole number"),
        ({"retry_delays": []}, "retry_delays", "at least one"),
        ({"retry_delays": "30"}, "retry_delays", "list"),
        ({"retry_delays": 30}, "retry_delays", "list"),
        ({"retry_delays": [30, 0]}, "retry_delays[1]", "above 0"),
        ({"retry_delays": [30, None]}, "retry_delays[1]", "NoneType"),
        ({"max_queue_depth": 0}, "max_queue_depth", "from 1 up"),
        ({"queue_timeout_seconds": 0}, "queue_timeout_seconds", "above 0"),
        ({"refresh_timeout_seconds": math.inf}, "refresh_timeout_seconds", "inf"),
        ({"default_lifetime_seconds": -3}, "default_lifetime_seconds", "above 0"),
        ({"name": ""}, "name", "name"),
        ({"name": "two words"}, "name", "two words"),
        ({"name": None}, "name", "None"),
        ("schwab", "config", "str"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path(wrong, key, words):
    with pytest.raises(ConfigError) as refusal:
        TokenManagerConfig.of(wrong)
    assert refusal.value.key == key
    assert words in str(refusal.value)
