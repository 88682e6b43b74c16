"""Whether to try again and when: bare numbers, drawn and checked."""

import asyncio
import gc
import itertools
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError, TransientError
from keepline.resilience import Decision, Failure, RetryBudget, RetryPolicy
from keepline.resilience.classify import CATEGORIES
from keepline.resilience.retry import RetryVerdict

failures = st.builds(
    Failure,
    category=st.sampled_from(CATEGORIES),
    transient=st.booleans(),
    message=st.just("x"),
    no_effect=st.booleans(),
    retry_after=st.none() | st.floats(),
)
policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 10),
    first_delay_seconds=st.floats(0, 100),
    throttled_delay_seconds=st.floats(0, 100),
    longest_delay_seconds=st.floats(0, 1000),
    longest_retry_after_seconds=st.floats(0, 1000),
)
chances = st.floats(0, 1, exclude_max=True)


@given(policies, failures, st.integers(1, 12), st.booleans())
def test_the_verdict_follows_from_proof_kind_and_count(
    policy: RetryPolicy, failure: Failure, attempt: int, mutation: bool
) -> None:
    verdict = policy.verdict(failure, attempt=attempt, mutation=mutation)
    if mutation and not failure.no_effect:
        assert verdict is RetryVerdict.UNSAFE
    elif not failure.transient:
        assert verdict is RetryVerdict.PERMANENT
    else:
        assert (verdict is RetryVerdict.REPEAT) == (attempt < policy.attempts)


@given(policies, failures, st.integers(1, 5000), chances)
def test_a_delay_is_sound_and_never_shorter_than_the_server_asked(
    policy: RetryPolicy, failure: Failure, attempt: int, chance: float
) -> None:
    delay = policy.delay(failure, attempt=attempt, chance=chance)
    assert 0 <= delay < math.inf
    asked = failure.retry_after
    if asked is not None and 0 <= asked <= policy.longest_retry_after_seconds:
        assert delay >= asked
    elif asked is None:
        assert delay <= policy.longest_delay_seconds


@pytest.mark.parametrize(
    ("category", "attempt", "chance", "seconds"),
    [
        ("server", 1, 0.0, 0),
        ("server", 1, 0.5, 0.25),
        ("server", 3, 0.5, 1.0),
        ("server", 9, 0.5, 10.0),
        ("rate_limit", 1, 0.5, 0.5),
        ("rate_limit", 2, 0.5, 1.0),
    ],
)
def test_full_jitter_doubles_and_is_capped(
    category: str, attempt: int, chance: float, seconds: float
) -> None:
    failure = Failure(category, True, "x")  # type: ignore[arg-type]
    assert RetryPolicy().delay(failure, attempt=attempt, chance=chance) == seconds


@pytest.mark.parametrize(
    ("asked", "seconds"), [(7.0, 7.25), (0.0, 0.25), (9e9, 300.25), (-5.0, 0.25), (math.nan, 0.25)]
)
def test_a_servers_wait_is_spread_a_little_and_a_senseless_one_ignored(
    asked: float, seconds: float
) -> None:
    failure = Failure("server", True, "x", retry_after=asked)
    assert RetryPolicy().delay(failure, attempt=1, chance=0.5) == seconds


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, "5", True, None])
@pytest.mark.parametrize(
    "name",
    ["first_delay_seconds", "throttled_delay_seconds", "longest_delay_seconds", "longest_retry_after_seconds"],
)  # fmt: skip
def test_a_delay_that_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="seconds from 0 up") as caught:
        RetryPolicy(**{name: value})  # type: ignore[arg-type]
    assert caught.value.key == name


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, None])
def test_attempts_are_a_whole_number_from_one(value: object) -> None:
    with pytest.raises(ConfigError, match="attempts"):
        RetryPolicy(attempts=value)  # type: ignore[arg-type]


def test_no_deadline_is_none_and_a_negative_one_is_refused() -> None:
    assert RetryPolicy(deadline_seconds=None).deadline_seconds is None
    with pytest.raises(ConfigError, match="deadline_seconds"):
        RetryPolicy(deadline_seconds=-1)


def test_a_mapping_with_an_unknown_name_gets_the_nearest_one() -> None:
    assert RetryPolicy.from_mapping({"attempts": 2}) == RetryPolicy(attempts=2)
    with pytest.raises(ConfigError, match="did you mean attempts"):
        RetryPolicy.from_mapping({"atempts": 2})
    with pytest.raises(ConfigError, match="there are attempts, first_delay_seconds"):
        RetryPolicy.from_mapping({"zzz": 2})


def test_a_policy_tells_its_numbers() -> None:
    assert str(RetryPolicy()) == (
        "4 attempts, full jitter from 0.5 s (429: 1 s) to 20 s, Retry-After up to 300 s"
    )


# ----------------------------------------------------------------------------------------------------- budget


@given(
    st.lists(st.tuples(st.sampled_from(CATEGORIES), st.booleans(), st.floats(0, 50)), max_size=60)
)
def test_no_more_retries_than_capacity_successes_and_time_have_earned(
    events: list[tuple[str, bool, float]],
) -> None:
    budget, now, earned, spent = RetryBudget(capacity=5), 0.0, 5.0, 0.0
    budget.spend("server", now)
    spent += 1
    for category, success, pause in events:
        now += pause
        earned += pause * 0.1
        if success:
            budget.succeeded()
            earned += 0.1
        elif budget.spend(category, now):  # type: ignore[arg-type]
            spent += {"timeout": 2.0, "rate_limit": 0.5}.get(category, 1.0)
        assert spent <= earned + 1e-9
        assert 0 <= budget.left <= 5


def test_an_empty_budget_refuses_until_successes_or_time_fill_it() -> None:
    budget = RetryBudget(capacity=2, per_success=0.5, per_second=0.1)
    assert [budget.spend("server", 0) for _ in range(3)] == [True, True, False]
    budget.succeeded()
    assert not budget.spend("server", 0)
    budget.succeeded()
    assert budget.spend("server", 0)
    assert not budget.spend("server", 9)
    assert budget.spend("server", 10)
    assert not budget.spend("timeout", 29)
    assert budget.spend("timeout", 30)


def test_a_clock_that_steps_back_earns_nothing() -> None:
    budget = RetryBudget(capacity=1)
    assert budget.spend("server", 100)
    assert not budget.spend("server", 50)
    assert not budget.spend("server", 109)
    assert budget.spend("server", 110.1)


def test_calls_to_one_host_share_a_budget_as_long_as_somebody_holds_it() -> None:
    mine = RetryBudget.shared("broker.example")
    assert RetryBudget.shared("broker.example") is mine
    assert RetryBudget.shared("other.example") is not mine
    mine.spend("server", 0)
    del mine
    gc.collect()
    assert RetryBudget.shared("broker.example").left == 20


def test_eight_threads_spend_no_retry_twice() -> None:
    budget = RetryBudget(capacity=1000, per_second=0)
    granted = itertools.count()

    def work() -> None:
        while budget.spend("server", 0):
            next(granted)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert next(granted) == 1000


@pytest.mark.parametrize("name", ["capacity", "per_success", "per_second"])
@pytest.mark.parametrize("value", [-1, math.nan, "1"])
def test_a_budget_of_senseless_numbers_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        RetryBudget(**{name: value})  # type: ignore[arg-type]


def test_a_budget_of_nothing_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="attempts=1"):
        RetryBudget(capacity=0)
    assert repr(RetryBudget()) == "<RetryBudget 20 of 20 retries>"


# --------------------------------------------------------------------------------------------------- decision


async def test_a_decision_is_true_for_a_repeat_and_awaiting_it_waits_for_nothing() -> None:
    error = TransientError("503", category="server", endpoint="GET /a")
    again = Decision(RetryVerdict.REPEAT, 0.5, error, 1, "GET /a")
    assert await again is again
    assert await asyncio.wait_for(again, 1) is again
    assert again
    assert (again.retry, again.category, again.reason) == (True, "server", "attempt 2 in 0.5 s")
    over = Decision(RetryVerdict.ATTEMPTS, 0.0, error, 4)
    assert not over
    assert str(over) == "GET /a: 503 [attempt 4: all attempts are used up]"
