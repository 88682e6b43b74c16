"""The background loop: one thread for synchronous callers, without patching anybody's loop."""

import asyncio
import os
import signal
import sys
import threading

import pytest

from keepline.portal import Portal, shared_portal


@pytest.fixture
def portal():
    portal = Portal(name="test-portal")
    yield portal
    portal.stop()


async def double(number, *, plus=0):
    return 2 * number + plus


async def thread_name():
    return threading.current_thread().name


def test_a_caller_without_a_loop_gets_the_result(portal):
    assert portal.call(double, 21, plus=1) == 43


def test_nothing_runs_before_the_first_use_and_all_calls_share_one_thread(portal):
    assert not portal.is_running
    names = {portal.call(thread_name), portal.call(thread_name)}
    assert names == {"test-portal"}
    assert portal.is_running
    assert "running" in repr(portal)


def test_the_error_of_the_coroutine_reaches_the_caller(portal):
    async def fail():
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        portal.call(fail)


async def test_a_call_works_inside_a_running_loop(portal):
    assert portal.call(double, 2) == 4


def test_submit_hands_out_a_future_and_cancels_the_work_with_it(portal):
    began, cancelled = threading.Event(), threading.Event()

    async def wait_for_ever():
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    future = portal.submit(wait_for_ever())
    assert began.wait(5)
    future.cancel()
    assert cancelled.wait(5)


def test_a_blocking_call_on_the_portals_own_thread_is_refused(portal):
    async def call_again():
        portal.call(double, 1)

    async def stop_here():
        portal.stop()

    with pytest.raises(RuntimeError, match="wait for itself"):
        portal.call(call_again)
    with pytest.raises(RuntimeError, match="own thread"):
        portal.call(stop_here)


def test_stop_cancels_what_runs_and_the_next_use_starts_again(portal):
    began, cancelled = threading.Event(), threading.Event()

    async def wait_for_ever():
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    portal.submit(wait_for_ever())
    assert began.wait(5)
    portal.stop()
    assert cancelled.is_set()
    assert not portal.is_running
    portal.stop()
    assert portal.call(double, 3) == 6


def test_the_shared_portal_is_one():
    assert shared_portal() is shared_portal()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gets_a_portal_of_its_own_and_the_parents_goes_on(portal):
    assert portal.call(double, 1) == 2
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # a child that waits for the parent's loop would outlive the test
        try:
            answer = portal.call(double, 4)
            portal.stop()
            os.write(writer, str(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "8"
    assert portal.call(double, 5) == 10


def test_without_uvloop_the_standard_loop_serves(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    portal = Portal(name="test-portal-plain")
    try:
        assert portal.call(double, 7) == 14
    finally:
        portal.stop()
