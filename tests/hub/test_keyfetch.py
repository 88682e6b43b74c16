"""When keys are fetched: at first, now and then, once for an unknown one, and after failures with growing pauses."""

from hypothesis import given
from hypothesis import strategies as st

from keepline.hub.keyfetch import KeyFetch


def good(pace: KeyFetch, now: float, *, unknown: bool = False) -> None:
    pace.started(now, unknown=unknown)
    pace.succeeded(now)


def test_the_first_look_fetches_and_then_every_ten_minutes() -> None:
    pace = KeyFetch()
    assert pace.failing
    assert pace.wanted(0.0)
    assert pace.deadline == float("-inf")
    good(pace, 0.0)
    assert not pace.failing
    assert not pace.wanted(599.9)
    assert pace.deadline == 600.0
    assert pace.wanted(600.0)
    assert repr(pace) == "<KeyFetch good>"


def test_an_unknown_key_causes_one_fetch_in_half_a_minute() -> None:
    pace = KeyFetch()
    good(pace, 0.0)
    assert pace.wanted(1.0, unknown=True)
    good(pace, 1.0, unknown=True)
    assert not pace.wanted(30.9, unknown=True)
    assert pace.wanted(31.0, unknown=True)


def test_failures_pause_longer_and_longer_also_for_unknown_keys() -> None:
    pace, now = KeyFetch(), 0.0
    for pause in (1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
        assert pace.wanted(now, unknown=True)
        pace.started(now, unknown=True)
        pace.failed(now)
        assert pace.failing
        assert not pace.wanted(now + pause - 0.01, unknown=True)
        now += pause
        assert pace.deadline == now
    good(pace, now)
    pace.failed(now + 600)
    assert pace.deadline == now + 601
    assert repr(pace) == "<KeyFetch failing>"


@given(st.lists(st.tuples(st.floats(0, 60), st.booleans(), st.booleans()), max_size=300))
def test_strangers_with_invented_keys_cause_few_fetches(looks: list) -> None:
    pace, now, fetches = KeyFetch(), 0.0, []
    for pause, unknown, works in looks:
        now += pause
        if pace.wanted(now, unknown=unknown):
            fetches.append(now)
            pace.started(now, unknown=unknown)
            (pace.succeeded if works else pace.failed)(now)
    # at most the first, one each half minute, and the repeats after failures, which pause
    assert len(fetches) <= 2 + now / 30 + sum(not works for *_, works in looks)
