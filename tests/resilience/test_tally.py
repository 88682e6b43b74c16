"""Plain counters that reach the metrics when these are read, once each."""

import gc
import sys

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


def test_an_owner_that_goes_while_the_metrics_are_read_does_not_lock_them_up() -> None:
    class Loop:
        """Garbage that only the collector finds: it may run at any allocation, inside a lock too."""

        def __init__(self) -> None:
            self.me = self
            self.tally = Tally(self, "tally", "d")
            self.tally.succeeded(0.1)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for count in range(1, 200):
            Loop()
            assert REQUESTS.value("tally", "d", "ok") == count
    finally:
        gc.set_threshold(*threshold)


def test_owners_that_come_and_go_unread_leave_nothing_behind() -> None:
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(1000):
        Tally(Owner(), "tally", "e")
    gc.collect()
    assert sys.getallocatedblocks() - before < 500


def test_slow_calls_fall_into_the_last_bucket() -> None:
    owner = Owner()
    tally = Tally(owner, "tally", "c")
    tally.succeeded(1e9)
    assert tally.buckets[-1] == 1
