"""Plain counters that reach the metrics when these are read, once each."""

import gc

from keepline.resilience.tally import REQUEST_SECONDS, REQUESTS, Tally


class Owner:
    pass


def test_counts_are_brought_when_read_and_never_twice() -> None:
    owner = Owner()
    tally = Tally(owner, "tally", "a")
    assert REQUESTS.value("tally", "a", "ok") == 0
    assert (("tally", "a", "ok"), 0.0) in REQUESTS.samples()
    tally.succeeded(0.002)
    tally.succeeded(40.0)
    for _ in range(2):
        assert REQUESTS.value("tally", "a", "ok") == 2
        assert REQUEST_SECONDS.value("tally", "a") == 2
        assert REQUEST_SECONDS.sum("tally", "a") == 40.002
    tally.succeeded(0.5)
    assert REQUESTS.value("tally", "a", "ok") == 3


def test_two_owners_of_one_operation_add_up_and_a_gone_one_is_not_forgotten() -> None:
    first, second = Owner(), Owner()
    ours, theirs = Tally(first, "tally", "b"), Tally(second, "tally", "b")
    ours.succeeded(0.1)
    theirs.succeeded(0.1)
    del first, ours
    gc.collect()
    assert REQUESTS.value("tally", "b", "ok") == 2
    theirs.succeeded(0.1)
    assert REQUESTS.value("tally", "b", "ok") == 3


def test_slow_calls_fall_into_the_last_bucket() -> None:
    owner = Owner()
    tally = Tally(owner, "tally", "c")
    tally.succeeded(1e9)
    assert tally.buckets[-1] == 1
