"""Failed sign-ins: free ones, locks that double, nothing forgotten too early, nothing kept for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.hub.refusals import Refusal, RefusalCode
from keepline.hub.throttle import LoginThrottle, Pace, Ticket, network_of

HOME, AWAY = "10.0.0.1", "10.0.0.2"


def fail(
    throttle: LoginThrottle, count: int, *, address: str = HOME, name: str = "ann", now: float = 0.0
) -> None:
    """So many failures, each as early as it is allowed."""
    for _ in range(count):
        verdict = throttle.attempt(address, name, now)
        if isinstance(verdict, Refusal):
            assert verdict.retry_after is not None
            now += verdict.retry_after
            assert isinstance(throttle.attempt(address, name, now), Ticket)


def wait(
    throttle: LoginThrottle, *, address: str = HOME, name: str = "ann", now: float = 0.0
) -> float:
    """Seconds to wait; asking costs nothing."""
    verdict = throttle.attempt(address, name, now)
    if isinstance(verdict, Refusal):
        assert verdict.code is RefusalCode.THROTTLED
        assert verdict.retry_after is not None
        return verdict.retry_after
    throttle.not_made(verdict)
    return 0.0


def test_five_failures_are_free_then_each_locks_twice_as_long() -> None:
    throttle, now = LoginThrottle(), 0.0
    for _ in range(4):
        assert isinstance(throttle.attempt(HOME, "ann", now), Ticket)
    assert wait(throttle, now=now) == 0.0
    for lock in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900):
        assert isinstance(throttle.attempt(HOME, "ann", now), Ticket)
        assert wait(throttle, now=now) == lock
        assert wait(throttle, now=now + lock - 0.5) == 0.5
        now += lock


def test_a_name_is_locked_for_every_address_and_other_names_are_not() -> None:
    throttle = LoginThrottle()
    fail(throttle, 5)
    assert wait(throttle, address=AWAY) == 1.0
    assert wait(throttle, name="bob") == 0.0


def test_an_address_that_tries_many_names_is_locked() -> None:
    throttle = LoginThrottle()
    for i in range(20):
        assert isinstance(throttle.attempt(HOME, f"user{i}", 0.0), Ticket)
    assert wait(throttle, name="fresh") == 1.0
    assert wait(throttle, name="fresh", address=AWAY) == 0.0


@pytest.mark.parametrize("name", ["ann", "nobody", "", "\ud800", "x" * 1000])
def test_a_name_that_does_not_exist_is_treated_alike(name: str) -> None:
    throttle = LoginThrottle()
    fail(throttle, 5, name=name)
    assert wait(throttle, name=name) == 1.0


def test_spellings_of_a_name_are_one_name() -> None:
    throttle = LoginThrottle()
    fail(throttle, 5, name="Zoë")
    assert wait(throttle, name="ZOE\u0308") == 1.0


def test_a_success_starts_the_name_afresh_but_not_the_address() -> None:
    throttle = LoginThrottle()
    fail(throttle, 4)
    for i in range(15):
        throttle.attempt(HOME, f"victim{i}", 0.0)
    good = throttle.attempt(HOME, "ann", 0.0)
    assert isinstance(good, Ticket)
    throttle.succeeded(good)
    assert isinstance(throttle.attempt(HOME, "victim", 0.0), Ticket)  # the twentieth
    assert wait(throttle, name="ann") == 1.0  # the address is locked
    assert wait(throttle, name="ann", address=AWAY) == 0.0


def test_parallel_guesses_find_no_gap() -> None:
    throttle = LoginThrottle()
    verdicts = [throttle.attempt(f"10.1.0.{i}", "ann", 0.0) for i in range(100)]
    assert sum(isinstance(each, Ticket) for each in verdicts) == 5


def test_an_attempt_that_was_not_made_does_not_count() -> None:
    throttle = LoginThrottle()
    for _ in range(100):
        ticket = throttle.attempt(HOME, "ann", 0.0)
        assert isinstance(ticket, Ticket)
        throttle.not_made(ticket)
    assert len(throttle) == 0


def test_one_not_made_among_failures_takes_back_only_itself() -> None:
    throttle = LoginThrottle()
    fail(throttle, 4)
    fifth = throttle.attempt(HOME, "ann", 0.0)
    assert isinstance(fifth, Ticket)
    assert wait(throttle) == 1.0
    throttle.not_made(fifth)
    assert wait(throttle) == 0.0
    fail(throttle, 1)
    assert wait(throttle) == 1.0


def test_strangers_do_not_lock_a_user_out_of_a_familiar_address() -> None:
    throttle = LoginThrottle()
    good = throttle.attempt(HOME, "ann", 0.0)
    assert isinstance(good, Ticket)
    throttle.succeeded(good)
    fail(throttle, 5, address=AWAY)
    assert wait(throttle, address=AWAY) == 1.0
    assert wait(throttle, address=HOME) == 0.0
    fail(throttle, 5, address=HOME)  # own failures count, by themselves
    assert wait(throttle, address=HOME) == 1.0


def test_an_hour_without_failure_forgets_everything() -> None:
    throttle = LoginThrottle()
    fail(throttle, 14)
    last = 1 + 2 + 4 + 8 + 16 + 32 + 64 + 128 + 256.0
    assert wait(throttle, now=last) == 512.0
    assert wait(throttle, now=last + 3600) == 0.0
    fail(throttle, 4, now=last + 3600)
    assert wait(throttle, now=last + 3600) == 0.0


def test_memory_is_bounded_and_a_flood_pushes_out_the_unlocked_first() -> None:
    throttle = LoginThrottle(capacity=50)
    fail(throttle, 12, address="10.9.9.9", name="ann")
    for i in range(500):
        throttle.attempt(f"10.2.{i // 250}.{i % 250}", f"flood{i}", 100.0)
        assert len(throttle) <= 50
    assert wait(throttle, now=100.0, address=AWAY) > 0.0
    assert "locks 1" in repr(throttle)


def test_full_of_locks_it_still_counts_who_comes_new() -> None:
    throttle = LoginThrottle(capacity=4, by_address=Pace(free=1000))
    for name in ("a", "b", "c", "d"):
        fail(throttle, 6, name=name, address=f"10.3.0.{ord(name)}")
    for _ in range(5):
        throttle.attempt("10.4.0.1", "new", 50.0)
    assert wait(throttle, name="new", address="10.4.0.2", now=50.0) == 1.0


def test_familiar_addresses_are_bounded() -> None:
    throttle = LoginThrottle(capacity=2)
    for i in range(3):
        good = throttle.attempt(f"10.0.1.{i}", "ann", 0.0)
        assert isinstance(good, Ticket)
        throttle.succeeded(good)
    fail(throttle, 5, address=AWAY)
    assert wait(throttle, address="10.0.1.0") == 1.0  # pushed out
    assert wait(throttle, address="10.0.1.2") == 0.0


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("no address", "no address"),
        ("", ""),
        ("x" * 100, "x" * 64),
    ],
)
def test_an_address_counts_by_its_network(address: str, network: str) -> None:
    assert network_of(address) == network


def test_a_network_of_ipv6_addresses_is_locked_as_one() -> None:
    throttle = LoginThrottle()
    for i in range(20):
        throttle.attempt(f"2001:db8::{i:x}", f"user{i}", 0.0)
    assert wait(throttle, address="2001:db8::ffff", name="fresh") == 1.0
    assert wait(throttle, address="2001:db8:0:1::1", name="fresh") == 0.0


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.floats(0, 400), st.integers(0, 2)),
        max_size=150,
    )
)
def test_whatever_is_tried_locks_hold_and_memory_is_bounded(steps: list) -> None:
    throttle, now = LoginThrottle(capacity=8), 0.0
    granted: dict[int, list[float]] = {}
    for address, name, pause, outcome in steps:
        now += pause
        verdict = throttle.attempt(f"10.0.0.{address}", f"user{name}", now)
        assert len(throttle) <= 8 + 2
        if isinstance(verdict, Refusal):
            assert 0 < (verdict.retry_after or 0) <= 900
        elif outcome == 0:
            throttle.not_made(verdict)
        elif outcome == 1:
            throttle.succeeded(verdict)
            granted.clear()
        else:
            granted.setdefault(name, []).append(now)


@given(st.lists(st.floats(0, 100), max_size=200))
def test_guesses_at_one_name_are_few_from_wherever_they_come(pauses: list[float]) -> None:
    throttle, now, granted = LoginThrottle(), 0.0, []
    for i, pause in enumerate(pauses):
        now += pause
        if isinstance(throttle.attempt(f"10.7.{i // 250}.{i % 250}", "ann", now), Ticket):
            granted.append(now)
    locks = [min(900.0, 2.0**i) for i in range(len(granted))]
    for i in range(5, len(granted)):
        gap = granted[i] - granted[i - 1]
        assert gap >= locks[i - 5] - 1e-6 or gap >= 3600
