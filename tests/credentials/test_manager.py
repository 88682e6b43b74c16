"""The token manager on a manual clock: who is served what and when, and what each failure leaves behind."""

import asyncio
import contextlib
import itertools
import json
import logging
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.credentials.keeping import FakeIssuer, FakeStore, events, keep, memory, outage, settled

from keepline.credentials.history import RotationHistory
from keepline.credentials.issuer import StaticIssuer
from keepline.credentials.lifecycle import TokenState
from keepline.credentials.manager import TokenManager
from keepline.credentials.storage import Interruption
from keepline.credentials.token import NEVER, Token, fingerprint
from keepline.errors import (
    Closed,
    ConfigError,
    PermanentError,
    QueueFull,
    SignInRequired,
    StorageError,
    TokenRefused,
    TokenUnavailable,
)
from keepline.telemetry import REGISTRY
from keepline.testing import ManualClock

DAY = 86400.0


@pytest.fixture(autouse=True)
def _all_log_lines(caplog):
    caplog.set_level(logging.DEBUG, logger="keepline")


def metric(name: str, *labels: str) -> float:
    found = [m for m in REGISTRY if m.name == f"keepline_{name}"]
    return found[0].value(*labels)


def series(name: str) -> dict[tuple[str, ...], float]:
    found = [m for m in REGISTRY if m.name == f"keepline_{name}"]
    return dict(found[0].samples())


def is_state(kept, *states: str):
    return lambda: kept.state in states


def newer(kept, generation: int):
    return lambda: kept.generation > generation


# --- serving ---


async def test_a_stored_token_is_served_at_once_and_nothing_is_asked():
    kept = keep()
    async with kept.manager:
        assert await kept.manager.get_token() == "access-secret-1"
        assert (await kept.manager.get()).refresh_token == "refresh-secret-1"
        assert kept.issuer.requests == 0
        assert kept.manager.get_state() is TokenState.VALID


async def test_a_valid_token_costs_no_turn_of_the_loop():
    kept = keep()
    async with kept.manager:
        with pytest.raises(StopIteration) as done:
            kept.manager.get_token().send(None)
        assert done.value.value == "access-secret-1"


async def test_the_fast_path_looks_at_the_clock_once_and_calls_nothing_else():
    kept = keep()
    looks, calls = [], []
    boottime = kept.clock.boottime
    kept.clock.boottime = lambda: looks.append(1) or boottime()
    manager = TokenManager({}, StaticIssuer("a-token", clock=kept.clock), clock=kept.clock)

    def note(frame, event, _):
        if event == "call":
            calls.append(frame.f_code.co_name)

    async with manager:
        await manager.get_token()
        del looks[:]
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            await manager.get_token()
        finally:
            sys.setprofile(before)
        assert len(looks) == 1
    assert calls == ["get_token", "<lambda>", "<lambda>"]


async def test_a_manager_that_nobody_started_starts_at_the_first_call():
    kept = keep()
    assert kept.state == "INITIAL"
    tokens = await asyncio.gather(*(kept.manager.get_token() for _ in range(20)))
    assert set(tokens) == {"access-secret-1"}
    assert kept.store.steps.count("load") == 1
    await kept.manager.stop()


async def test_without_a_store_the_first_token_is_fetched_and_kept_in_memory():
    clock = ManualClock()
    issuer = FakeIssuer(clock, needs_person=False)
    async with TokenManager({}, issuer, clock=clock) as manager:
        assert await manager.get_token() == "access-secret-1"
        assert manager.status()["storage"] == "memory"
        assert issuer.sign_ins == 1


async def test_an_issuer_that_needs_nobody_gives_the_first_token():
    kept = keep(signed_in=False, needs_person=False)
    async with kept.manager:
        waiting = asyncio.ensure_future(kept.manager.get_token())
        assert await waiting == "access-secret-1"
        assert kept.store.held.access_token == "access-secret-1"
        assert kept.manager.status()["cycle"] == 2


async def test_without_a_first_token_a_person_is_called_with_the_command():
    kept = keep(signed_in=False)
    async with kept.manager:
        with pytest.raises(SignInRequired) as call:
            await kept.manager.get_token()
        assert kept.state == "SIGN_IN_REQUIRED"
        assert "schwab: no token yet" in str(call.value)
        assert "keepline login schwab" in str(call.value)
        assert kept.issuer.requests == 0


async def test_a_static_token_is_served_for_ever_and_renewed_never():
    clock = ManualClock()
    async with TokenManager({}, StaticIssuer("by-hand", clock=clock), clock=clock) as manager:
        assert await manager.get_token() == "by-hand"
        clock.advance(10 * 365 * DAY)
        await settled()
        assert await manager.get_token() == "by-hand"
        assert manager.status()["expires_in_seconds"] is None


async def test_a_static_token_that_ends_says_what_to_do_and_serves_to_its_end():
    clock = ManualClock()
    issuer = StaticIssuer("by-hand", clock.wall() + timedelta(hours=1), clock=clock)
    async with TokenManager({}, issuer, clock=clock) as manager:
        await manager.get_token()
        await clock.run_until(lambda: manager.get_state() is TokenState.SIGN_IN_REQUIRED)
        assert await manager.get_token() == "by-hand"
        clock.advance(3600)
        with pytest.raises(SignInRequired, match="make a new one at the broker"):
            await manager.get_token()


# --- when it renews ---


@pytest.mark.parametrize(("lifetime", "at"), [(86400.0, 79200.0), (1800.0, 1500.0)])
async def test_a_token_is_renewed_in_time_and_the_old_one_served_until_then(lifetime, at):
    kept = keep(lifetime=lifetime)
    async with kept.manager:
        await settled()
        kept.clock.advance(at - 1)
        await settled()
        assert kept.issuer.requests == 0
        kept.clock.advance(1)
        await settled()
        assert kept.issuer.spent == ["refresh-secret-1"]
        assert await kept.manager.get_token() == "access-secret-2"
        assert kept.store.held.access_token == "access-secret-2"


async def test_hours_of_renewals_ask_once_per_cycle_and_save_once_per_cycle():
    kept = keep()
    async with kept.manager:
        await kept.until(lambda: kept.issuer.requests == 30)
        await settled()
        assert kept.issuer.spent == [f"refresh-secret-{n}" for n in range(1, 31)]
        assert kept.store.steps.count("save") == 30
        assert kept.clock.boottime() == pytest.approx(30 * 1500.0)


async def test_the_old_token_is_served_while_its_successor_is_on_its_way():
    kept = keep()
    async with kept.manager:
        kept.issuer.gate.clear()
        kept.clock.advance(1500)
        await kept.issuer.asked.wait()
        assert kept.state == "REFRESHING"
        assert await kept.manager.get_token() == "access-secret-1"
        kept.issuer.gate.set()
        await settled()
        assert await kept.manager.get_token() == "access-secret-2"


async def test_generations_grow_with_the_time_of_issue():
    kept = keep()
    async with kept.manager:
        before = await kept.manager.get()
        after = await kept.manager.force_refresh()
        again = await kept.manager.force_refresh()
        assert before.generation == 1
        assert after.generation == int(after.issued_at.timestamp())
        assert again.generation == after.generation + 1


async def test_a_stored_token_that_died_is_renewed_before_anyone_is_served():
    kept = keep()
    kept.clock.advance(4000)
    async with kept.manager:
        assert await kept.manager.get_token() == "access-secret-2"
        assert kept.issuer.requests == 1


async def test_an_answer_without_refresh_token_and_deadline_keeps_the_old_ones():
    kept = keep()
    refresh = kept.issuer.refresh

    async def forgetful(token):
        return replace(await refresh(token), refresh_token="", signin_deadline=None)

    kept.issuer.refresh = forgetful
    async with kept.manager:
        fresh = await kept.manager.force_refresh()
        assert fresh.refresh_token == "refresh-secret-1"
        assert fresh.signin_deadline == kept.store.held.signin_deadline is not None


async def test_what_is_no_token_is_a_failure_and_not_a_crash():
    kept = keep()

    async def wrong(token):
        return "a bare text"

    kept.issuer.refresh = wrong
    async with kept.manager:
        with pytest.raises(TokenUnavailable, match="the issuer gave str"):
            await kept.manager.force_refresh()
        assert await kept.manager.get_token() == "access-secret-1"


async def test_an_issuer_that_returns_the_same_token_is_not_asked_in_a_loop():
    kept = keep()

    async def same(token):
        kept.issuer.spent.append(token.refresh_token)
        return token

    kept.issuer.refresh = same
    async with kept.manager:
        await settled()
        kept.clock.advance(1500)
        await settled()
        assert len(kept.issuer.spent) == 1
        assert kept.manager.status()["last_error"].startswith("the issuer returned the token")


# --- failures that pass ---


async def test_a_ten_minute_outage_around_expiry_ends_with_a_token_and_no_human(caplog):
    kept = keep()
    calls = 0
    refresh = kept.issuer.refresh

    async def cut_off(token):
        nonlocal calls
        calls += 1
        if 1450 <= kept.clock.boottime() < 2050:
            raise outage()
        return await refresh(token)

    kept.issuer.refresh = cut_off
    async with kept.manager:
        states = set()
        await kept.until(lambda: states.add(kept.state) or kept.state == "EXPIRED")
        assert kept.clock.boottime() == 1800
        with pytest.raises(TokenUnavailable) as wait:
            await kept.manager.get_token()
        assert "answered 503" in str(wait.value)
        assert wait.value.retry_at > kept.clock.wall()
        assert isinstance(wait.value.cause, Exception)
        await kept.until(lambda: states.add(kept.state) or kept.state == "VALID")
        assert await kept.manager.get_token() == "access-secret-2"
        assert kept.clock.boottime() < 2350
    assert "SIGN_IN_REQUIRED" not in states
    assert calls == 6
    assert kept.issuer.spent == ["refresh-secret-1"]
    assert not events(caplog, "Sign-in required")
    assert len(events(caplog, "Token expired")) == 1


async def test_after_the_last_delay_it_goes_on_every_five_minutes():
    kept = keep(lifetime=DAY)
    times = []

    async def down(token):
        times.append(kept.clock.boottime())
        raise outage()

    kept.issuer.refresh = down
    async with kept.manager:
        await kept.until(lambda: len(times) == 9)
    waits = [round(b - a) for a, b in itertools.pairwise(times)]
    assert waits == [30, 60, 120, 300, 300, 300, 300, 300]


async def test_the_delays_are_spread_so_that_a_fleet_does_not_come_back_together():
    kept = keep(lifetime=DAY, clock=ManualClock(chance=0.0))
    kept.issuer.script = [outage(), outage()]
    async with kept.manager:
        await kept.until(lambda: kept.issuer.requests == 1)
        first = kept.clock.boottime()
        await kept.until(lambda: kept.issuer.requests == 2)
        assert kept.clock.boottime() - first == pytest.approx(27)


async def test_the_issuers_retry_after_is_respected_even_by_force():
    kept = keep()
    kept.issuer.script = [outage(retry_after=600.0)]
    async with kept.manager:
        with pytest.raises(TokenUnavailable) as wait:
            await kept.manager.force_refresh()
        assert wait.value.retry_at == kept.clock.wall() + timedelta(seconds=600)
        kept.clock.advance(599)
        await settled()
        with pytest.raises(TokenUnavailable):
            await kept.manager.force_refresh()
        assert kept.issuer.requests == 1
        kept.clock.advance(1)
        await settled()
        assert kept.issuer.requests == 2
        assert kept.state == "VALID"


@pytest.mark.parametrize(
    "failure",
    [
        PermanentError("the certificate of the issuer is not trusted", category="network"),
        RuntimeError("a bug in somebody's issuer"),
        OSError(101, "Network is unreachable"),
    ],
)
async def test_no_failure_but_a_refusal_calls_a_person(failure):
    kept = keep()
    kept.issuer.script = [failure]
    async with kept.manager:
        with pytest.raises(TokenUnavailable):
            await kept.manager.force_refresh()
        assert kept.state == "ERROR"
        assert await kept.manager.get_token() == "access-secret-1"
        await kept.until(is_state(kept, "VALID"))
        assert await kept.manager.get_token() == "access-secret-2"


async def test_an_issuer_that_never_answers_is_given_up_after_the_timeout():
    kept = keep(refresh_timeout_seconds=30)
    kept.issuer.gate.clear()
    async with kept.manager:
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await kept.until(forced.done)
        assert kept.clock.boottime() == pytest.approx(30)
        with pytest.raises(TokenUnavailable, match="no answer from the issuer within 30 s"):
            await forced
        assert kept.store.abandoned == [True]


@pytest.mark.parametrize(
    ("failure", "lost"),
    [
        (outage(), True),
        (outage(sent=False), False),
        (PermanentError("bad request", status=400), False),
        (TokenRefused("no", code="invalid_grant", status=400), False),
        (RuntimeError("?"), True),
    ],
)
async def test_the_intent_stays_only_where_an_answer_may_have_been_lost(failure, lost):
    kept = keep()
    kept.issuer.script = [failure]
    async with kept.manager:
        with contextlib.suppress(TokenUnavailable, SignInRequired):
            await kept.manager.force_refresh()
        assert kept.store.abandoned == [lost]


# --- a person ---


async def test_a_refusal_calls_a_person_and_the_token_is_served_to_its_end(caplog):
    kept = keep()
    kept.issuer.script = [TokenRefused("the refresh token is unknown", code="invalid_grant")]
    async with kept.manager:
        with pytest.raises(
            SignInRequired, match=r"refresh token is unknown.*keepline login schwab"
        ):
            await kept.manager.force_refresh()
        assert kept.state == "SIGN_IN_REQUIRED"
        assert await kept.manager.get_token() == "access-secret-1"
        await kept.until(lambda: kept.clock.boottime() >= 1800)
        with pytest.raises(SignInRequired) as call:
            await kept.manager.get_token()
        assert isinstance(call.value.__cause__, TokenRefused)
        assert kept.issuer.requests == 1
    assert len(events(caplog, "Sign-in required")) == 1


async def test_a_refused_refresh_is_followed_by_a_sign_in_that_needs_nobody():
    kept = keep(needs_person=False)
    kept.issuer.script = [TokenRefused("the session is gone", code="3")]
    async with kept.manager:
        assert (await kept.manager.force_refresh()).access_token == "access-secret-2"
        assert (kept.issuer.sign_ins, kept.state) == (1, "VALID")


async def test_a_refused_sign_in_points_to_the_configuration():
    kept = keep(signed_in=False, needs_person=False)
    kept.issuer.script = [TokenRefused("loginKey 3 InvalidCredentials")]
    async with kept.manager:
        with pytest.raises(SignInRequired, match=r"InvalidCredentials.*configuration"):
            await kept.manager.get_token()
        await kept.until(lambda: kept.clock.boottime() > 3600)
        assert kept.issuer.requests == 1


async def test_a_dead_token_without_refresh_token_is_not_presented_where_nobody_is_needed():
    kept = keep(needs_person=False)
    kept.store.held = replace(kept.store.held, refresh_token="")
    kept.clock.advance(1801)
    async with kept.manager:
        await kept.manager.get_token()
        assert (kept.issuer.spent, kept.issuer.sign_ins) == ([], 1)


async def test_a_sign_in_by_another_process_is_found_within_thirty_seconds():
    kept = keep()
    kept.issuer.script = [TokenRefused("unknown")]
    async with kept.manager:
        with pytest.raises(SignInRequired):
            await kept.manager.force_refresh()
        begun = kept.clock.boottime()
        kept.store.held = kept.issuer.sign_in().with_generation(5)
        await kept.until(is_state(kept, "VALID"))
        assert kept.clock.boottime() - begun <= 30
        assert (await kept.manager.get()).generation == 5
        assert kept.issuer.requests == 1


async def test_force_looks_for_a_sign_in_at_once():
    kept = keep(signed_in=False)
    async with kept.manager:
        with pytest.raises(SignInRequired):
            await kept.manager.force_refresh()
        kept.store.held = kept.issuer.sign_in().with_generation(5)
        assert (await kept.manager.force_refresh()).generation == 5
        assert kept.issuer.requests == 0


async def test_an_unreadable_store_while_a_person_is_awaited_is_said_and_looked_at_again():
    kept = keep(signed_in=False)
    async with kept.manager:
        await settled()
        kept.store.failing = {"load"}
        with pytest.raises(SignInRequired):
            await kept.manager.force_refresh()
        assert "no space left for load" in kept.manager.status()["last_error"]
        kept.store.failing = set()
        kept.store.held = kept.issuer.sign_in().with_generation(5)
        await kept.until(is_state(kept, "VALID"))


async def test_the_deadline_calls_a_person_and_no_refresh_token_is_spent_after_it():
    kept = keep(signin_lifetime=1600.0)
    async with kept.manager:
        await kept.until(is_state(kept, "SIGN_IN_REQUIRED"))
        assert kept.clock.boottime() == 1600
        assert kept.issuer.spent == ["refresh-secret-1"]
        assert await kept.manager.get_token() == "access-secret-2"
        await kept.until(lambda: kept.clock.boottime() >= 3400)
        with pytest.raises(SignInRequired, match="the sign-in ended at"):
            await kept.manager.get_token()
        assert len(kept.issuer.spent) == 1


async def test_refreshes_do_not_move_the_deadline_and_warnings_come_once_each(caplog):
    kept = keep()
    async with kept.manager:
        await kept.until(is_state(kept, "SIGN_IN_REQUIRED"))
        assert kept.clock.boottime() == pytest.approx(7 * DAY)
    hours = [fields["in_hours"] for fields in events(caplog, "Sign-in needed soon")]
    assert hours == [72, 48, 24, 6, 1]
    assert events(caplog, "Sign-in needed soon")[0]["command"] == "keepline login schwab"


async def test_a_deadline_that_passed_only_by_a_wrong_wall_clock_is_taken_back():
    kept = keep()
    kept.clock.jump_wall(
        30 * DAY
    )  # a machine without a battery clock, before its time server is reached
    async with kept.manager:
        assert kept.state == "SIGN_IN_REQUIRED"
        await settled()
        kept.clock.jump_wall(-30 * DAY)
        await kept.until(is_state(kept, "VALID"))
        assert kept.issuer.requests == 0


# --- clocks ---


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
async def test_a_jump_of_the_wall_clock_changes_nothing(jump):
    kept = keep()
    async with kept.manager:
        await settled()
        kept.clock.advance(700)
        kept.clock.jump_wall(jump)
        assert await kept.manager.get_token() == "access-secret-1"
        kept.clock.advance(799)
        await settled()
        assert kept.issuer.requests == 0
        kept.clock.advance(1)
        await settled()
        assert kept.issuer.requests == 1
        assert kept.manager.status()["expires_in_seconds"] == 1800
        kept.clock.jump_wall(-jump)
        kept.clock.advance(1499)
        await settled()
        assert kept.issuer.requests == 1


async def test_a_late_wall_clock_gives_a_stored_token_no_second_life():
    kept = keep()
    kept.clock.jump_wall(-3600)
    async with kept.manager:
        assert kept.manager.status()["expires_in_seconds"] == 1800


async def test_a_suspended_machine_wakes_up_to_the_truth():
    kept = keep()
    async with kept.manager:
        await settled()
        kept.clock.advance(5 * 3600)  # nothing ran meanwhile
        assert kept.issuer.requests == 0
        assert await kept.manager.get_token() == "access-secret-2"
        assert kept.issuer.requests == 1


async def test_the_first_caller_after_a_suspend_need_not_wait_for_the_timer():
    kept = keep()
    async with kept.manager:
        await settled()
        sleeping = kept.clock.next_wake
        kept.clock._now += 4 * 3600  # the timers have not noticed yet
        assert sleeping is not None
        token = await kept.manager.get_token()
        assert token == "access-secret-2"


async def test_the_life_of_an_answer_counts_from_the_request_on():
    kept = keep()
    kept.issuer.gate.clear()
    async with kept.manager:
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await kept.issuer.asked.wait()
        kept.clock.advance(20)
        kept.issuer.gate.set()
        await forced
        assert kept.manager.status()["expires_in_seconds"] == 1780


# --- the queue ---


async def expired(kept):
    """The manager with a dead token and an answer on its way that does not come."""
    kept.issuer.gate.clear()
    kept.clock.advance(1900)
    await kept.manager.start()
    await kept.issuer.asked.wait()


async def test_callers_wait_for_the_renewal_and_all_get_its_token():
    kept = keep()
    await expired(kept)
    callers = [asyncio.ensure_future(kept.manager.get_token()) for _ in range(100)]
    await settled()
    assert kept.manager.status()["waiting"] == 100
    kept.issuer.gate.set()
    assert set(await asyncio.gather(*callers)) == {"access-secret-2"}
    assert kept.issuer.requests == 1
    await kept.manager.stop()


async def test_the_caller_beyond_the_bound_is_refused_and_the_others_are_not():
    kept = keep()
    await expired(kept)
    callers = [asyncio.ensure_future(kept.manager.get_token()) for _ in range(100)]
    await settled()
    with pytest.raises(QueueFull, match="100 callers"):
        await kept.manager.get_token()
    callers.pop().cancel()
    await settled()
    callers.append(asyncio.ensure_future(kept.manager.get_token()))
    kept.issuer.gate.set()
    assert set(await asyncio.gather(*callers)) == {"access-secret-2"}
    await kept.manager.stop()


async def test_a_caller_waits_no_longer_than_the_queue_allows():
    kept = keep()
    await expired(kept)
    caller = asyncio.ensure_future(kept.manager.get_token())
    await kept.until(caller.done)
    assert kept.clock.boottime() == pytest.approx(1910)
    with pytest.raises(TokenUnavailable, match="no token came within 10 s") as wait:
        await caller
    assert wait.value.retry_at is None
    assert kept.manager.status()["waiting"] == 0
    kept.issuer.gate.set()
    await settled()
    assert await kept.manager.get_token() == "access-secret-2"
    await kept.manager.stop()


async def test_a_cancelled_caller_disturbs_nobody():
    kept = keep()
    await expired(kept)
    staying, leaving = (asyncio.ensure_future(kept.manager.get_token()) for _ in range(2))
    await settled()
    leaving.cancel()
    await settled()
    kept.issuer.gate.set()
    assert await staying == "access-secret-2"
    assert leaving.cancelled()
    await kept.manager.stop()


async def test_an_answer_is_saved_and_published_when_every_caller_has_gone():
    kept = keep()
    await expired(kept)
    told = []
    kept.manager.subscribe(told.append)
    callers = [asyncio.ensure_future(kept.manager.get_token()) for _ in range(5)]
    callers.append(asyncio.ensure_future(kept.manager.force_refresh()))
    await settled()
    for caller in callers:
        caller.cancel()
    await settled()
    kept.issuer.gate.set()
    await settled()
    assert kept.store.held.access_token == "access-secret-2"
    assert [token.access_token for token in told] == ["access-secret-2"]
    await kept.manager.stop()


async def test_who_waits_learns_at_once_that_the_renewal_failed():
    kept = keep()
    kept.issuer.script = [outage()]
    await expired(kept)
    caller = asyncio.ensure_future(kept.manager.get_token())
    await settled()
    kept.issuer.gate.set()
    await settled()
    assert caller.done()
    with pytest.raises(TokenUnavailable) as wait:
        await caller
    assert wait.value.retry_at == kept.clock.wall() + timedelta(seconds=30)
    await kept.manager.stop()


async def test_who_waits_goes_on_waiting_when_the_next_attempt_comes_in_time():
    kept = keep(retry_delays=[3.0])
    kept.issuer.script = [outage()]
    await expired(kept)
    caller = asyncio.ensure_future(kept.manager.get_token())
    forced = asyncio.ensure_future(kept.manager.force_refresh())
    await settled()
    kept.issuer.gate.set()
    await settled()
    assert not caller.done()
    with pytest.raises(TokenUnavailable):
        await forced
    later = asyncio.ensure_future(kept.manager.get_token())
    await kept.until(caller.done)
    assert await caller == await later == "access-secret-2"
    await kept.manager.stop()


# --- one renewal for many, late 401s ---


@pytest.mark.parametrize("with_generation", [True, False])
async def test_a_hundred_forced_refreshes_make_one_request(with_generation):
    kept = keep()
    async with kept.manager:
        old = (await kept.manager.get()).generation if with_generation else None
        tokens = await asyncio.gather(*(kept.manager.force_refresh(than=old) for _ in range(100)))
        assert {token.access_token for token in tokens} == {"access-secret-2"}
        await settled()
    assert kept.issuer.requests == 1


async def test_a_hundred_401s_of_one_generation_make_one_request():
    kept = keep()
    async with kept.manager:
        old = (await kept.manager.get()).generation
        tokens = await asyncio.gather(*(kept.manager.get(newer_than=old) for _ in range(100)))
        assert {token.access_token for token in tokens} == {"access-secret-2"}
        await settled()
    assert kept.issuer.requests == 1


async def test_a_renewal_that_is_asked_for_during_a_save_begins_after_it_and_once():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        await kept.lease.lock.acquire()
        kept.manager.update_access_token("outside")  # its save waits for the lease
        await settled()
        forced = [asyncio.ensure_future(kept.manager.force_refresh()) for _ in range(3)]
        await settled()
        assert not any(each.done() for each in forced)
        kept.lease.lock.release()
        assert {token.access_token for token in await asyncio.gather(*forced)} == {
            "access-secret-2"
        }
        await settled()
    assert kept.issuer.requests == 1


async def test_callers_who_force_a_look_cause_no_renewal_of_what_it_finds():
    kept = keep(signed_in=False)
    async with kept.manager:
        await settled()
        kept.store.held = kept.issuer.sign_in().with_generation(5)
        tokens = await asyncio.gather(*(kept.manager.force_refresh() for _ in range(10)))
        assert {token.generation for token in tokens} == {5}
        await settled()
    assert kept.issuer.requests == 0


async def test_a_late_401_of_an_old_generation_makes_no_request():
    kept = keep()
    async with kept.manager:
        old = (await kept.manager.get()).generation
        fresh = await kept.manager.force_refresh(than=old)
        assert await kept.manager.force_refresh(than=old) == fresh
        assert await kept.manager.get(newer_than=old) == fresh
        assert kept.issuer.requests == 1


async def test_force_without_generation_joins_the_renewal_under_way():
    kept = keep()
    async with kept.manager:
        kept.issuer.gate.clear()
        kept.clock.advance(1500)
        await kept.issuer.asked.wait()
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await settled()
        kept.issuer.gate.set()
        assert (await forced).access_token == "access-secret-2"
        assert kept.issuer.requests == 1


async def test_a_token_that_the_venue_refused_is_served_to_nobody_while_it_is_renewed():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        kept.issuer.gate.clear()
        refused = asyncio.ensure_future(kept.manager.get(newer_than=1))
        await kept.issuer.asked.wait()
        plain = asyncio.ensure_future(kept.manager.get_token())
        await settled()
        assert not plain.done()
        kept.issuer.gate.set()
        assert (await refused).access_token == await plain == "access-secret-2"
        assert kept.issuer.requests == 1


async def test_plain_callers_wait_for_a_refused_tokens_successor_only_as_long_as_the_queue_allows():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        kept.issuer.gate.clear()
        refused = asyncio.ensure_future(kept.manager.get(newer_than=1))
        plain = asyncio.ensure_future(kept.manager.get_token())
        await kept.until(lambda: refused.done() and plain.done())
        for caller in (refused, plain):
            with pytest.raises(TokenUnavailable):
                await caller
        kept.issuer.gate.set()


async def test_one_stray_401_during_an_outage_does_not_stop_the_other_bots():
    kept = keep()
    kept.issuer.script = [outage()]
    async with kept.manager:
        await kept.manager.get()
        with pytest.raises(TokenUnavailable):
            await kept.manager.get(newer_than=1)
        assert await kept.manager.get_token() == "access-secret-1"


async def test_401s_during_the_retry_delay_do_not_hammer_the_issuer():
    kept = keep()
    kept.issuer.script = [outage()]
    async with kept.manager:
        await kept.manager.get()
        for _ in range(20):
            with pytest.raises(TokenUnavailable) as wait:
                await kept.manager.get(newer_than=1)
            with pytest.raises(TokenUnavailable):
                await kept.manager.force_refresh(than=1)
        assert wait.value.retry_at == kept.clock.wall() + timedelta(seconds=30)
        assert kept.issuer.requests == 1
        assert (await kept.manager.force_refresh()).access_token == "access-secret-2"


async def test_a_venue_that_refuses_every_token_does_not_drain_the_issuer():
    kept = keep()
    async with kept.manager:
        for _ in range(200):
            token = await kept.manager.get()
            with contextlib.suppress(TokenUnavailable):
                await kept.manager.get(newer_than=token.generation)
        assert kept.issuer.requests <= 2


async def test_a_caller_that_knows_a_newer_token_starts_a_look_and_leaves_ours_in_service():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        kept.store.held = kept.issuer.sign_in().with_generation(8)
        assert (await kept.manager.get(newer_than=7)).generation == 8
        assert kept.issuer.requests == 0


async def test_a_generation_that_nobody_has_is_answered_and_not_waited_for():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        with pytest.raises(TokenUnavailable, match="no token newer than generation"):
            await kept.manager.get(newer_than=10**12)
        assert await kept.manager.get_token() == "access-secret-2"


async def test_an_old_generations_401_on_a_dead_token_waits_for_the_renewal():
    kept = keep()
    await expired(kept)
    caller = asyncio.ensure_future(kept.manager.get(newer_than=0))
    await settled()
    kept.issuer.gate.set()
    assert (await caller).access_token == "access-secret-2"
    await kept.manager.stop()


async def test_a_refused_token_calls_a_person_at_once_when_one_is_needed():
    kept = keep()
    kept.issuer.script = [TokenRefused("unknown")]
    async with kept.manager:
        await kept.manager.get()
        with pytest.raises(SignInRequired):
            await kept.manager.get(newer_than=1)
        with pytest.raises(SignInRequired):
            await kept.manager.get_token()
        assert kept.issuer.requests == 1


# --- other processes ---


async def test_a_siblings_newer_token_is_adopted_and_nothing_is_spent(caplog):
    kept = keep()
    async with kept.manager:
        await settled()
        kept.clock.advance(1400)
        kept.store.held = kept.issuer.sign_in().with_generation(77)
        kept.clock.advance(100)
        await settled()
        assert (await kept.manager.get()).generation == 77
        assert kept.issuer.requests == 0
        assert kept.lease.taken == 1
    assert events(caplog, "Token updated")[-1]["source"] == "store"


async def test_a_foreign_programs_token_is_adopted_although_its_number_did_not_grow():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        kept.clock.advance(60)
        kept.store.held = kept.issuer.sign_in().with_generation(1)
        adopted = await kept.manager.force_refresh()
        assert adopted.access_token == "access-secret-2"
        assert adopted.generation > 1
        assert kept.issuer.requests == 0


async def test_a_foreign_sign_in_with_the_same_expiry_is_adopted_by_its_later_deadline():
    kept = keep()
    async with kept.manager:
        first = await kept.manager.get()
        kept.store.held = replace(
            kept.issuer.sign_in(),
            generation=1,
            expires_at=first.expires_at,
            signin_deadline=first.signin_deadline + timedelta(days=2),
        )
        assert (await kept.manager.force_refresh()).access_token == "access-secret-2"
        assert kept.issuer.requests == 0


async def test_a_siblings_token_that_is_old_already_is_the_one_that_is_spent():
    kept = keep()
    async with kept.manager:
        await settled()
        kept.store.held = kept.issuer.sign_in().with_generation(77)
        kept.clock.advance(1600)
        await settled()
        assert kept.issuer.spent == ["refresh-secret-2"]
        assert (await kept.manager.get()).access_token == "access-secret-3"


async def test_a_siblings_token_serves_although_its_own_renewal_fails():
    kept = keep()
    kept.issuer.script = [outage()]
    async with kept.manager:
        await settled()
        kept.clock.advance(1400)
        wall = kept.clock.wall()
        kept.store.held = replace(
            kept.issuer.sign_in(),
            generation=77,
            issued_at=wall - timedelta(seconds=1450),
            expires_at=wall + timedelta(seconds=350),
        )
        kept.clock.advance(100)
        await settled()
        assert (await kept.manager.get()).generation == 77
        assert kept.state == "ERROR"


async def test_while_another_process_holds_the_lease_the_old_token_is_served_and_nothing_spent():
    kept = keep()
    async with kept.manager:
        await settled()
        await kept.lease.lock.acquire()
        kept.clock.advance(1500)
        await kept.until(is_state(kept, "ERROR"))
        assert "another process has held the lease" in kept.manager.status()["last_error"]
        assert await kept.manager.get_token() == "access-secret-1"
        assert kept.issuer.requests == 0
        kept.lease.lock.release()
        await kept.until(is_state(kept, "VALID"))
        assert kept.issuer.requests == 1


async def test_what_a_stopped_holder_saved_is_adopted_without_its_lease():
    kept = keep()
    async with kept.manager:
        await settled()
        await kept.lease.lock.acquire()
        kept.clock.advance(1500)
        await settled()
        kept.store.held = kept.issuer.sign_in().with_generation(77)
        await kept.until(newer(kept, 1))
        assert (kept.generation, kept.issuer.requests) == (77, 0)
        kept.lease.lock.release()


async def test_a_refusal_is_no_call_for_a_person_when_the_store_changed_meanwhile():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        kept.issuer.gate.clear()
        kept.issuer.script = [TokenRefused("spent before")]
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await kept.issuer.asked.wait()
        kept.store.held = kept.issuer.sign_in().with_generation(77)
        kept.issuer.gate.set()
        assert (await forced).generation == 77
        assert kept.state == "VALID"


async def test_a_siblings_token_spares_the_sign_in_that_needs_nobody():
    kept = keep(needs_person=False)
    async with kept.manager:
        await kept.manager.get()
        kept.issuer.gate.clear()
        kept.issuer.script = [TokenRefused("the session is gone")]
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await kept.issuer.asked.wait()
        kept.store.held = kept.issuer.sign_in().with_generation(77)
        kept.issuer.gate.set()
        assert (await forced).generation == 77
        assert kept.issuer.sign_ins == 0


async def test_the_order_is_lease_then_store_then_room_then_issuer_then_save():
    kept = keep()
    order = kept.store.steps
    enter, refresh = kept.lease.lock.acquire, kept.issuer.refresh

    async def entered():
        order.append("lease")
        return await enter()

    async def asked(token):
        order.append("issuer")
        return await refresh(token)

    kept.lease.lock.acquire, kept.issuer.refresh = entered, asked
    async with kept.manager:
        await settled()
        del order[:]
        kept.manager.subscribe(lambda _: order.append("published"))
        await kept.manager.force_refresh()
    assert order == ["lease", "load", "prepare", "issuer", "save", "published"]


# --- the disk ---


async def test_nothing_is_spent_that_could_not_be_saved():
    kept = keep()
    async with kept.manager:
        await settled()
        kept.store.failing = {"prepare"}
        kept.clock.advance(1500)
        await settled()
        assert kept.issuer.requests == 0
        assert kept.state == "ERROR"
        assert "no space left for prepare" in kept.manager.status()["last_error"]
        assert await kept.manager.get_token() == "access-secret-1"


async def test_before_the_token_dies_an_unsavable_answer_is_better_than_none():
    kept = keep()
    async with kept.manager:
        await settled()
        kept.store.failing = {"prepare", "save", "store"}
        await kept.until(lambda: kept.issuer.requests == 1)
        assert 1740 <= kept.clock.boottime() < 1800
        await settled()
        assert await kept.manager.get_token() == "access-secret-2"
        assert kept.manager.status()["unsaved_generation"] == kept.generation


async def test_an_unreadable_store_is_no_reason_to_ask_twice_or_to_lose_an_owed_save():
    kept = keep(needs_person=False)
    kept.issuer.script = [TokenRefused("the session is gone")]
    async with kept.manager:
        await settled()
        kept.issuer.gate.clear()
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await kept.issuer.asked.wait()
        kept.store.failing = {"load"}  # between the refusal and the sign-in
        kept.issuer.gate.set()
        assert (await forced).access_token == "access-secret-2"
        kept.manager.update_access_token("outside")
        await settled()
        assert kept.store.held.access_token == "outside"


async def test_an_unreadable_store_is_treated_like_a_full_one():
    kept = keep()
    async with kept.manager:
        await settled()
        kept.store.failing = {"load"}
        kept.clock.advance(1500)
        await settled()
        assert kept.issuer.requests == 0
        await kept.until(lambda: kept.issuer.requests == 1)
        assert 1740 <= kept.clock.boottime() < 1800
        await settled()
        assert await kept.manager.get_token() == "access-secret-2"


async def test_a_token_that_could_not_be_saved_is_served_alarmed_and_saved_later(caplog):
    kept = keep()
    async with kept.manager:
        await settled()
        kept.store.failing = {"save", "store"}
        fresh = await kept.manager.force_refresh()
        assert fresh.access_token == await kept.manager.get_token() == "access-secret-2"
        assert kept.manager.status()["unsaved_generation"] == fresh.generation
        assert metric("token_unsaved_generation", "schwab") == fresh.generation
        assert kept.lease.lock.locked(), "a sibling could spend the old refresh token"
        await kept.until(lambda: kept.store.steps.count("store") == 4)
        assert len(events(caplog, "Token not saved")) >= 4
        kept.store.failing = set()
        await kept.until(lambda: kept.store.held == fresh)
        await settled()
        assert kept.manager.status()["unsaved_generation"] == 0
        assert metric("token_unsaved_generation", "schwab") == 0
        assert not kept.lease.lock.locked()
        assert kept.issuer.spent == ["refresh-secret-1"]


async def test_an_unsaved_tokens_own_refresh_token_is_spent_next_and_never_the_old_one():
    kept = keep()
    async with kept.manager:
        await settled()
        kept.store.failing = {"save", "store"}
        await kept.manager.force_refresh()
        await kept.until(lambda: kept.issuer.requests == 3)
        assert kept.issuer.spent == ["refresh-secret-1", "refresh-secret-2", "refresh-secret-3"]
        assert kept.state in ("VALID", "REFRESHING")
        kept.store.failing = set()


async def test_stop_tries_a_last_time_to_save(caplog):
    kept = keep()
    await kept.manager.start()
    kept.store.failing = {"save", "store"}
    fresh = await kept.manager.force_refresh()
    kept.store.failing = set()
    await kept.manager.stop()
    assert kept.store.held == fresh
    assert not events(caplog, "Token lost: the last try to save it failed")
    assert not kept.lease.lock.locked()


async def test_stop_is_loud_about_a_token_that_it_could_not_save(caplog):
    kept = keep()
    await kept.manager.start()
    kept.store.failing = {"save", "store", "abandon"}
    await kept.manager.force_refresh()
    await kept.manager.stop()
    record = next(r for r in caplog.records if r.getMessage().startswith("Token lost"))
    assert record.levelno == logging.CRITICAL
    assert not kept.lease.lock.locked()


async def test_a_save_that_landed_elsewhere_frees_the_lease_for_siblings():
    kept = keep()
    save = kept.store.save

    def kept_aside(token):
        save(token)  # load() finds it, as with the fallback directory
        raise StorageError("the new token is kept in the fallback until a save succeeds")

    kept.store.save = kept_aside
    async with kept.manager:
        fresh = await kept.manager.force_refresh()
        assert not kept.lease.lock.locked()
        assert kept.manager.status()["unsaved_generation"] == fresh.generation


async def test_a_store_that_cannot_be_read_refuses_the_start_and_a_later_one_works():
    kept = keep()
    kept.store.failing = {"load"}
    with pytest.raises(StorageError, match="no space left for load"):
        await kept.manager.start()
    with pytest.raises(StorageError):
        await kept.manager.get_token()
    kept.store.failing = set()
    await kept.manager.start()
    assert await kept.manager.get_token() == "access-secret-1"
    await kept.manager.stop()


async def test_a_bug_while_freeing_the_reserved_space_costs_no_token():
    kept = keep()
    kept.store.failing = {"save"}
    kept.store.abandon = lambda **_: 1 / 0
    async with kept.manager:
        fresh = await kept.manager.force_refresh()
        assert fresh.access_token == await kept.manager.get_token() == "access-secret-2"
        await kept.until(lambda: kept.store.held == fresh)


async def test_a_lock_file_that_cannot_be_used_is_a_failure_of_ours(monkeypatch):
    kept = keep()

    async def broken():
        raise StorageError("the lock file is not a regular file of ours: remove it", path="/x.lock")

    async with kept.manager:
        await settled()
        monkeypatch.setattr(kept.lease.lock, "acquire", broken)
        with pytest.raises(TokenUnavailable, match=r"x.lock: the lock file is not a regular file"):
            await kept.manager.force_refresh()
        assert await kept.manager.get_token() == "access-secret-1"
        assert kept.issuer.requests == 0


async def test_a_refusal_after_an_answer_was_lost_says_so():
    kept = keep()
    kept.issuer.script = [outage(), TokenRefused("the refresh token was spent before")]
    async with kept.manager:
        await kept.until(is_state(kept, "SIGN_IN_REQUIRED"))
        await kept.until(lambda: kept.clock.boottime() > 1800)
        with pytest.raises(SignInRequired, match="interrupted before its answer was saved"):
            await kept.manager.get_token()
        assert "2026-01-05 14:55:00" in kept.manager.status()["interrupted"]


async def test_a_siblings_refresh_that_is_under_way_is_no_interruption(caplog):
    kept = keep()
    begun = Interruption(kept.clock.wall(), 1, fingerprint("refresh-secret-1"))
    kept.store.interrupted = lambda: begun
    kept.clock.advance(1700)
    await kept.lease.lock.acquire()
    async with kept.manager:
        await settled()
        assert kept.manager.status()["interrupted"] is None
        kept.store.held = kept.issuer.sign_in().with_generation(9)
        kept.lease.lock.release()
        await kept.until(newer(kept, 1))
        assert kept.issuer.requests == 0
    assert not events(caplog, "Refresh was interrupted")


async def test_an_interrupted_refresh_is_said_and_tried_again(caplog):
    kept = keep()
    begun = Interruption(kept.clock.wall(), 1, fingerprint("refresh-secret-1"))
    kept.store.interrupted = lambda: begun
    async with kept.manager:
        assert (await kept.manager.force_refresh()).access_token == "access-secret-2"
    assert len(events(caplog, "Refresh was interrupted")) == 1


def test_an_answer_on_its_way_when_the_loop_ends_leaves_the_intent():
    clock = ManualClock()
    kept = {}

    async def cut_short():
        kept["it"] = keep(clock=clock)
        it = kept["it"]
        it.issuer.gate.clear()
        asyncio.ensure_future(it.manager.force_refresh()).add_done_callback(lambda f: f.cancelled())
        await it.issuer.asked.wait()

    asyncio.run(cut_short())
    assert kept["it"].store.abandoned == [True]


# --- tokens from outside ---


async def test_a_bare_token_from_outside_counts_half_an_hour_and_keeps_the_refresh_token(caplog):
    kept = keep()
    async with kept.manager:
        first = await kept.manager.get()
        kept.manager.update_access_token("from-outside")
        token = await kept.manager.get()
        assert token.access_token == "from-outside"
        assert token.refresh_token == first.refresh_token
        assert token.signin_deadline == first.signin_deadline
        assert kept.manager.status()["expires_in_seconds"] == 1800
        assert events(caplog, "Token updated")[-1]["expires_in_seconds"] == 1800
        await settled()
        assert kept.store.held == token


async def test_a_bare_token_with_an_expiry_lives_to_it():
    kept = keep(default_lifetime_seconds=60)
    async with kept.manager:
        kept.manager.update_access_token("one", kept.clock.wall() + timedelta(hours=2))
        assert kept.manager.status()["expires_in_seconds"] == 7200
        kept.manager.update_access_token("two")
        assert kept.manager.status()["expires_in_seconds"] == 60


async def test_a_new_sign_in_from_outside_is_served_published_and_saved():
    kept = keep(signed_in=False)
    told = []
    async with kept.manager:
        kept.manager.subscribe(told.append)
        assert kept.state == "SIGN_IN_REQUIRED"
        kept.manager.update_tokens(kept.issuer.sign_in())
        assert kept.state == "VALID"
        assert await kept.manager.get_token() == "access-secret-1"
        await settled()
        assert kept.store.held == told[0] == await kept.manager.get()
        assert told[0].generation > 0


async def test_the_same_token_again_is_no_news():
    kept = keep()
    told = []
    async with kept.manager:
        kept.manager.subscribe(told.append)
        kept.manager.update_tokens(await kept.manager.get())
        assert told == []


@pytest.mark.parametrize("text", ["", None])
async def test_an_empty_token_from_outside_is_refused(text):
    kept = keep()
    async with kept.manager:
        with pytest.raises(ValueError, match="access_token must not be empty"):
            kept.manager.update_access_token(text)


async def test_a_dead_token_from_outside_is_refused_with_its_expiry():
    kept = keep()
    async with kept.manager:
        when = kept.clock.wall() - timedelta(seconds=1)
        with pytest.raises(ValueError, match=f"expired at {when:%Y-%m-%dT%H:%M:%S}") as refusal:
            kept.manager.update_access_token("late", when)
        assert not isinstance(refusal.value, ConfigError)
        assert await kept.manager.get_token() == "access-secret-1"


async def test_an_older_generation_from_outside_is_refused():
    kept = keep()
    async with kept.manager:
        fresh = await kept.manager.force_refresh()
        older = fresh.with_generation(fresh.generation - 1)
        with pytest.raises(ValueError, match=r"generation .* older than"):
            kept.manager.update_tokens(older)


async def test_a_sign_in_that_arrives_during_a_refresh_is_not_overwritten_by_its_answer():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        kept.issuer.gate.clear()
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await kept.issuer.asked.wait()
        kept.clock.advance(5)
        kept.manager.update_tokens(kept.issuer.sign_in())
        signed_in = await kept.manager.get()
        kept.issuer.gate.set()
        await settled()
        last = await kept.manager.get()
        assert last.access_token == signed_in.access_token
        assert last.generation > signed_in.generation
        assert (await forced).access_token == signed_in.access_token
        assert kept.store.held == last


async def test_a_bare_token_that_arrives_during_a_refresh_is_replaced_by_its_answer():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        kept.issuer.gate.clear()
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await kept.issuer.asked.wait()
        kept.manager.update_access_token("in-between")
        between = await kept.manager.get()
        kept.issuer.gate.set()
        await forced
        await settled()
        last = await kept.manager.get()
        assert last.access_token == "access-secret-2"
        assert last.generation > between.generation
        assert kept.store.held == last


async def test_a_failure_about_the_old_token_says_nothing_about_a_new_one():
    kept = keep()
    kept.issuer.script = [TokenRefused("the old one is unknown")]
    async with kept.manager:
        await kept.manager.get()
        kept.issuer.gate.clear()
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await kept.issuer.asked.wait()
        kept.manager.update_tokens(kept.issuer.sign_in())
        kept.issuer.gate.set()
        await settled()
        assert kept.state == "VALID"
        assert (await forced).access_token == "access-secret-2"


async def test_a_token_from_outside_never_overwrites_what_a_sibling_renewed():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        sibling = kept.issuer.sign_in().with_generation(int(2e9))
        kept.store.held = sibling
        kept.manager.update_access_token("from-outside")
        await settled()
        assert kept.store.held == sibling
        assert await kept.manager.get() == sibling


async def test_the_token_that_one_from_outside_replaced_is_not_adopted_back():
    kept = keep()
    async with kept.manager:
        await kept.manager.get()
        kept.store.failing = {"store"}  # the store goes on holding the old one, which lives longer
        kept.manager.update_access_token("short", kept.clock.wall() + timedelta(seconds=600))
        await settled()
        assert (await kept.manager.force_refresh()).access_token == "access-secret-2"
        assert kept.issuer.spent == ["refresh-secret-1"]


async def test_a_token_handed_in_before_the_start_stands_above_the_stored_one():
    kept = keep()
    stored = kept.store.held
    kept.manager.update_access_token("early")
    async with kept.manager:
        token = await kept.manager.get()
        assert token.access_token == "early"
        assert token.generation > stored.generation
        assert token.refresh_token == stored.refresh_token
        assert token.signin_deadline == stored.signin_deadline
        await settled()
        assert kept.store.held == token


async def test_a_token_handed_in_before_the_start_needs_no_stored_one():
    kept = keep(signed_in=False)
    kept.manager.update_access_token("early")
    async with kept.manager:
        assert await kept.manager.get_token() == "early"
        await settled()
        assert kept.store.held.access_token == "early"


# --- subscribers ---


async def test_every_subscriber_is_told_of_every_token_and_one_that_fails_hurts_nobody(caplog):
    kept = keep()
    sync, later = [], []

    def broken(token):
        raise RuntimeError("a subscriber's bug")

    async def broken_later(token):
        raise RuntimeError("a subscriber's other bug")

    async def listening(token):
        later.append(token.generation)

    async with kept.manager:
        for callback in (broken, broken_later, listening, lambda t: sync.append(t.generation)):
            kept.manager.subscribe(callback)
        one = await kept.manager.force_refresh()
        await settled()
        two = await kept.manager.force_refresh()
        await settled()
        assert sync == later == [one.generation, two.generation]
    failures = [r for r in caplog.records if "a subscriber failed" in r.getMessage()]
    assert len(failures) == 4


async def test_after_unsubscribing_nothing_comes_and_a_second_time_does_no_harm():
    kept = keep()
    told = []
    async with kept.manager:
        unsubscribe = kept.manager.subscribe(told.append)
        unsubscribe()
        unsubscribe()
        await kept.manager.force_refresh()
        assert told == []


async def test_what_cannot_be_called_cannot_subscribe():
    kept = keep()
    with pytest.raises(TypeError, match="a callable is needed, not str"):
        kept.manager.subscribe("print")


async def test_a_slow_subscriber_skips_to_the_newest_and_delays_nobody():
    kept = keep()
    slow, quick, release = [], [], asyncio.Event()

    async def slowly(token):
        slow.append(token.access_token)
        await release.wait()

    async with kept.manager:
        kept.manager.subscribe(slowly)
        kept.manager.subscribe(lambda token: quick.append(token.access_token))
        for _ in range(3):
            await kept.manager.force_refresh()
            await settled()
        assert slow == ["access-secret-2"]
        assert len(quick) == 3
        release.set()
        await settled()
        assert slow == ["access-secret-2", "access-secret-4"]


async def test_a_subscriber_may_ask_the_manager():
    kept = keep()
    seen = []

    async def curious(token):
        seen.append(await kept.manager.get_token())

    async with kept.manager:
        kept.manager.subscribe(curious)
        await kept.manager.force_refresh()
        await settled()
        assert seen == ["access-secret-2"]


# --- the end ---


async def test_stop_waits_for_an_answer_that_is_on_its_way_and_saves_it():
    kept = keep()
    told = []
    await kept.manager.start()
    kept.manager.subscribe(told.append)
    kept.issuer.gate.clear()
    waiting = asyncio.ensure_future(kept.manager.force_refresh())
    await kept.issuer.asked.wait()
    stopping = asyncio.ensure_future(kept.manager.stop())
    await settled()
    assert not stopping.done()
    with pytest.raises(Closed):
        await kept.manager.get_token()
    kept.issuer.gate.set()
    await stopping
    assert kept.store.held.access_token == "access-secret-2"
    assert (await waiting).access_token == told[0].access_token == "access-secret-2"


async def test_a_cancelled_stop_does_not_lose_the_answer():
    kept = keep()
    await kept.manager.start()
    kept.issuer.gate.clear()
    with contextlib.suppress(TokenUnavailable):
        forced = asyncio.ensure_future(kept.manager.force_refresh())
    await kept.issuer.asked.wait()
    stopping = asyncio.ensure_future(kept.manager.stop())
    await settled()
    stopping.cancel()
    await settled()
    kept.issuer.gate.set()
    await kept.manager.stop()
    assert kept.store.held.access_token == "access-secret-2"
    await forced


async def test_stop_does_not_wait_for_another_process():
    kept = keep()
    await kept.manager.start()
    await kept.lease.lock.acquire()
    waiting = asyncio.ensure_future(kept.manager.force_refresh())
    await settled()
    await kept.manager.stop()
    assert kept.clock.boottime() == 0
    with pytest.raises(Closed):
        await waiting
    assert kept.issuer.requests == 0
    kept.lease.lock.release()


async def test_after_the_stop_every_use_says_closed():
    kept = keep()
    await kept.manager.start()
    assert await kept.manager.get_token()
    await kept.manager.stop()
    await kept.manager.stop()
    for use in (
        kept.manager.get_token,
        kept.manager.get,
        kept.manager.force_refresh,
        kept.manager.start,
    ):
        with pytest.raises(Closed, match="schwab: the token manager was stopped"):
            await use()
    with pytest.raises(Closed):
        kept.manager.update_access_token("late")
    assert kept.manager.status()["generation"] == 1


async def test_starting_twice_says_closed():
    kept = keep()
    async with kept.manager:
        with pytest.raises(Closed, match="started already"):
            await kept.manager.start()


async def test_stop_before_start_is_fine():
    kept = keep()
    await kept.manager.stop()
    with pytest.raises(Closed):
        await kept.manager.get_token()


async def test_a_stop_during_the_start_ends_it():
    kept = keep()
    starting = asyncio.ensure_future(kept.manager.start())
    await asyncio.sleep(0)
    await kept.manager.stop()
    with pytest.raises(Closed):
        await starting


async def test_stop_gives_slow_subscribers_a_second_and_then_cancels_them(caplog):
    kept = keep()
    ended = []

    async def endless(token):
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(token.generation)

    await kept.manager.start()
    kept.manager.subscribe(endless)
    fresh = await kept.manager.force_refresh()
    await settled()
    stopping = asyncio.ensure_future(kept.manager.stop())
    await kept.until(stopping.done)
    assert ended == [fresh.generation]
    assert any("did not end within 1 s" in r.getMessage() for r in caplog.records)


def test_another_event_loop_is_refused_with_words():
    clock = ManualClock()
    manager = TokenManager({}, FakeIssuer(clock, needs_person=False), storage=memory(), clock=clock)

    async def begin():
        await manager.start()
        await manager.force_refresh()

    async def elsewhere():
        with pytest.raises(Closed, match="another event loop"):
            await manager.force_refresh()

    asyncio.run(begin())
    asyncio.run(elsewhere())


async def test_an_issuer_that_is_none_is_refused_before_anything_starts():
    with pytest.raises(ConfigError) as refusal:
        TokenManager({}, object())
    assert refusal.value.key == "auth_service"
    assert "object has no authenticate()" in str(refusal.value)


# --- what people see ---


async def test_a_refresh_is_told_with_cycle_attempt_generation_expiry_and_next(caplog):
    kept = keep()
    kept.issuer.script = [outage()]
    async with kept.manager:
        await kept.until(lambda: kept.store.steps.count("save") == 1)
        await settled()
        token = await kept.manager.get()
    failed, refreshed = events(caplog, "Token refresh failed"), events(caplog, "Token refreshed")
    assert failed == [
        {
            "credential": "schwab",
            "cycle": 1,
            "attempt": 1,
            "reason": "the issuer answered 503",
            "next": "2026-01-05T14:55:30+00:00",
        }
    ]
    assert refreshed[0].pop("expires_in_seconds") == 1800
    assert refreshed == [
        {
            "credential": "schwab",
            "cycle": 1,
            "attempt": 2,
            "generation": token.generation,
            "expires_at": "2026-01-05T15:25:30+00:00",
            "next": "2026-01-05T15:20:30+00:00",
        }
    ]


async def test_metrics_follow_the_token():
    kept = keep(name="measured")
    async with kept.manager:
        await kept.manager.force_refresh()
        kept.issuer.script = [outage()]
        with pytest.raises(TokenUnavailable):
            await kept.manager.force_refresh()
        token = await kept.manager.get()
        assert metric("token_expiry_timestamp_seconds", "measured") == token.expires_at.timestamp()
        assert metric("token_issued_timestamp_seconds", "measured") == token.issued_at.timestamp()
        assert metric("token_generation", "measured") == token.generation
        deadline = metric("token_signin_deadline_timestamp_seconds", "measured")
        assert deadline == token.signin_deadline.timestamp()
        assert metric("token_refresh_total", "measured", "refreshed") == 1
        assert metric("token_refresh_total", "measured", "failed") == 1
        assert metric("token_unsaved_generation", "measured") == 0
        kept.manager.update_tokens(Token("free", expires_at=NEVER, issued_at=kept.clock.wall()))
        assert ("measured",) not in series("token_signin_deadline_timestamp_seconds")


async def test_status_is_json_and_says_everything_but_the_secrets():
    kept = keep()
    async with kept.manager:
        token = await kept.manager.get()
        status = json.loads(json.dumps(kept.manager.status()))
    assert status == {
        "name": "schwab",
        "state": "VALID",
        "generation": 1,
        "fingerprint": token.fingerprint,
        "issued_at": "2026-01-05T14:30:00+00:00",
        "expires_at": "2026-01-05T15:00:00+00:00",
        "expires_in_seconds": 1800.0,
        "signin_deadline": "2026-01-12T14:30:00+00:00",
        "signin_in_seconds": 604800.0,
        "next_refresh_at": "2026-01-05T14:55:00+00:00",
        "last_error": None,
        "cycle": 1,
        "attempt": 0,
        "waiting": 0,
        "unsaved_generation": 0,
        "interrupted": None,
        "storage": "memory",
    }


async def test_status_before_the_first_token_is_json_too():
    kept = keep(signed_in=False)
    status = json.loads(json.dumps(kept.manager.status()))
    assert (status["state"], status["fingerprint"], status["expires_at"]) == ("INITIAL", "-", None)


async def test_no_secret_leaves_by_log_error_status_or_repr(caplog):
    kept = keep()
    kept.issuer.script = [None, TokenRefused("no more"), None]
    async with kept.manager:
        kept.manager.subscribe(lambda token: 1 / 0)
        await kept.manager.force_refresh()
        with pytest.raises(SignInRequired) as call:
            await kept.manager.force_refresh()
        kept.manager.update_access_token("outside-secret-9")
        seen = [repr(kept.manager), json.dumps(kept.manager.status()), str(call.value)]
    seen += [f"{r.getMessage()} {fields_text(r)}" for r in caplog.records]
    assert "secret" not in "\n".join(seen)
    assert "schwab" in repr(kept.manager)


def fields_text(record) -> str:
    return str(getattr(record, "fields", ""))


async def test_a_secret_in_a_foreign_error_is_redacted():
    kept = keep()
    kept.issuer.script = [RuntimeError("POST failed: refresh_token=refresh-secret-1&x=1")]
    async with kept.manager:
        with pytest.raises(TokenUnavailable) as wait:
            await kept.manager.force_refresh()
        assert "refresh-secret-1" not in str(wait.value) + str(kept.manager.status())


async def test_rotations_are_noted_with_their_outcome():
    history = RotationHistory(None)
    kept = keep(history=history)
    async with kept.manager:
        await kept.manager.force_refresh()
        kept.issuer.script = [outage()]
        with pytest.raises(TokenUnavailable):
            await kept.manager.force_refresh()
        kept.issuer.script = [TokenRefused("no more")]
        with pytest.raises(SignInRequired):
            await kept.manager.force_refresh()
        records = history.read()
    assert [r.outcome for r in records] == ["refreshed", "failed", "refused"]
    assert records[1].reason == "the issuer answered 503"
    assert records[0].generation == records[1].generation == kept.generation


async def test_a_history_that_cannot_be_written_stops_nothing(caplog):
    class Full:
        def append(self, *_, **__):
            raise StorageError("disk full", path="/full/history")

    kept = keep(history=Full())
    async with kept.manager:
        assert (await kept.manager.force_refresh()).access_token == "access-secret-2"
    assert events(caplog, "History not written")


async def test_the_keeper_goes_on_after_a_stumble(caplog):
    kept = keep(retry_delays=[600.0])
    kept.issuer.script = [outage()]

    def stumbling(record):
        if record.getMessage() == "Token expired":
            raise RuntimeError("a bug in somebody's log filter")
        return True

    logger = logging.getLogger("keepline.credentials")
    logger.addFilter(stumbling)
    try:
        async with kept.manager:
            await kept.until(lambda: kept.clock.boottime() > 1800)
            await kept.until(is_state(kept, "VALID"))
            assert await kept.manager.get_token() == "access-secret-2"
    finally:
        logger.removeFilter(stumbling)
    assert any("stumbled and goes on" in r.getMessage() for r in caplog.records)


class SlowStore(FakeStore):
    """On a disk that answers when the test lets it."""

    path = Path("slow/tokens.enc")

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.saved = lambda: None

    def load(self):
        found = super().load()
        self.gate.wait()
        return found

    def store(self, token):
        super().store(token)
        self.saved()


async def test_a_sign_in_that_is_handed_in_during_a_look_stands():
    kept = keep(signed_in=False, store=SlowStore())
    async with kept.manager:
        with pytest.raises(SignInRequired):
            await kept.manager.get_token()
        kept.store.held = kept.issuer.sign_in().with_generation(3)
        kept.store.gate.clear()
        forced = asyncio.ensure_future(kept.manager.force_refresh())
        await settled()
        kept.manager.update_tokens(kept.issuer.sign_in())
        loop, saved = asyncio.get_running_loop(), asyncio.Event()
        kept.store.saved = lambda: loop.call_soon_threadsafe(saved.set)
        kept.store.gate.set()
        assert (await forced).access_token == "access-secret-2"
        await saved.wait()  # its save comes after the look
        assert await kept.manager.get_token() == "access-secret-2"
        assert kept.store.held.access_token == "access-secret-2"


async def test_a_bug_in_a_store_is_a_failure_with_a_retry_and_not_the_end(caplog):
    class Odd(FakeStore):
        def prepare(self, spending):
            raise LookupError("a bug in somebody's store")

    clock = ManualClock()
    issuer = FakeIssuer(clock)
    odd = Odd(issuer.sign_in().with_generation(1))
    kept = keep(store=odd, issuer=issuer, clock=clock)
    async with kept.manager:
        with pytest.raises(TokenUnavailable, match="LookupError"):
            await kept.manager.force_refresh()
        assert kept.state == "ERROR"
        assert await kept.manager.get_token() == "access-secret-1"
    assert any("failed unexpectedly" in r.getMessage() for r in caplog.records)
