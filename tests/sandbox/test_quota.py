"""Claims about how often the venue lets a client ask."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.sandbox.quota import Quota, Rate


def test_a_window_lets_its_number_in_and_opens_again() -> None:
    quota = Quota(Rate(2, 10.0))
    assert [quota.take(now) for now in (0, 1, 2, 9.9, 10, 10.5, 11)] == [
        True, True, False, False, True, False, True,
    ]  # fmt: skip


@given(st.integers(1, 5), st.lists(st.floats(0, 3), max_size=60))
def test_no_window_holds_more_and_what_fits_is_let_in(limit: int, steps: list[float]) -> None:
    quota, now, granted = Quota(Rate(limit, 10.0)), 0.0, []
    for step in steps:
        now += step
        recent = [at for at in granted if now - at < 10.0]
        let_in = quota.take(now)
        assert let_in == (len(recent) < limit)
        if let_in:
            granted.append(now)


@pytest.mark.parametrize(
    ("limit", "seconds"), [(0, 1.0), (1, 0.0), (1, float("inf")), (1, float("nan"))]
)
def test_a_rate_is_positive(limit: int, seconds: float) -> None:
    with pytest.raises(ConfigError, match="at least 1 request"):
        Rate(limit, seconds)
