"""Every layer of a call, with time moved by hand and the other side scripted."""

import asyncio
import gc
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.projectx.errors import read_body
from keepline.errors import (
    APIError,
    CircuitOpen,
    Closed,
    ConfigError,
    KeeplineError,
    OutcomeUnknown,
    PermanentError,
    RateLimited,
    Refused,
    SignInRequired,
    TokenUnavailable,
    TransientError,
)
from keepline.http import Headers, Response
from keepline.resilience import (
    CircuitBreaker,
    Operation,
    Pipeline,
    RateLimiter,
    RetryBudget,
    RetryPolicy,
)
from keepline.resilience.tally import REQUEST_SECONDS, REQUESTS, RETRIES
from keepline.telemetry import fields_of
from keepline.testing import ManualClock

URL = "https://api.example.com/v1"
GOOD = b'{"success": true, "errorCode": 0}'
LOST = TransientError("the connection was lost", category="network")
NEVER_SENT = TransientError("cannot connect", category="network", sent=False)


def answer(status: int = 200, body: bytes = GOOD, **headers: str) -> Response:
    fields = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return Response(status, fields, body, URL)


class Venue:
    """The other side: answers by script, the last line for ever, each after some seconds of the clock."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.script: list[Any] = [answer()]
        self.seconds = 0.0
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: object = None,
        form: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Response:
        self.requests.append(
            {"method": method, "url": url, "headers": dict(headers or {}), "params": params, "json": json,
             "form": form, "timeout": timeout_seconds}
        )  # fmt: skip
        self.times.append(self.clock.boottime())
        line = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if self.seconds:
            await self.clock.sleep(self.seconds)
        if isinstance(line, asyncio.Event):
            await line.wait()
            line = answer()
        if isinstance(line, BaseException):
            raise line
        assert isinstance(line, Response)
        return line

    def __repr__(self) -> str:
        return "<Venue>"


@dataclass(frozen=True)
class Token:
    access_token: str
    generation: int
    token_type: str = "Bearer"


class Manager:
    """A token manager: the next token is there when it is asked for, unless it cannot come."""

    def __init__(self) -> None:
        self.token = Token("secret-1", 1)
        self.asked: list[int | None] = []
        self.refuses: Exception | None = None
        self.hangs: asyncio.Event | None = None
        self.renewal_hangs = False

    async def get(self, *, newer_than: int | None = None) -> Token:
        self.asked.append(newer_than)
        if self.hangs is not None:
            await self.hangs.wait()
        if newer_than is not None:
            if self.renewal_hangs:
                await asyncio.Event().wait()
            if self.refuses is not None:
                raise self.refuses
            generation = newer_than + 1
            self.token = Token(f"secret-{generation}", generation)
        return self.token


class Bench:
    """A pipeline with everything around it."""

    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock()
        self.venue = Venue(self.clock)
        self.manager = Manager()
        self.budget = RetryBudget()
        settings = {"tokens": self.manager, "budget": self.budget, "broker": "test", **options}
        self.line = Pipeline(self.venue, URL, clock=self.clock, **settings)

    def operation(
        self, name: str = "op", method: str = "GET", path: str = "/a", **options: Any
    ) -> Operation[Response]:
        return self.line.operation(name, method, path, **options)

    async def run(self, operation: Operation[Any], **call: Any) -> Any:
        """Await a call while time runs as far as it needs."""
        task = asyncio.ensure_future(operation(**call))
        await self.clock.run_until(task.done)
        return await task

    async def fails(self, operation: Operation[Any], kind: type[Exception], **call: Any) -> Any:
        with pytest.raises(kind) as caught:
            await self.run(operation, **call)
        assert type(caught.value) is kind
        return caught.value


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -------------------------------------------------------------------------------------------- what goes right


async def test_a_good_call_sends_one_request_with_the_newest_token(bench: Bench) -> None:
    bench.line = Pipeline(
        bench.venue,
        URL + "/",
        broker="test",
        tokens=bench.manager,
        headers={"Accept": "application/json"},
    )
    place = bench.line.operation("place", "post", "/orders")
    got = await place(json={"size": 1}, params={"x": "1"}, headers={"X-Extra": "e"})
    assert got.body == GOOD
    assert bench.venue.requests == [
        {
            "method": "POST",
            "url": f"{URL}/orders",
            "headers": {"Accept": "application/json", "X-Extra": "e", "Authorization": "Bearer secret-1"},
            "params": {"x": "1"},
            "json": {"size": 1},
            "form": None,
            "timeout": 30.0,
        }
    ]  # fmt: skip
    bench.manager.token = Token("secret-2", 2)
    await place(form={"a": "b"})
    assert bench.venue.requests[1]["headers"] == {
        "Accept": "application/json",
        "Authorization": "Bearer secret-2",
    }
    assert bench.venue.requests[1]["form"] == {"a": "b"}


async def test_without_tokens_no_authorization_is_sent() -> None:
    bench = Bench(tokens=None)
    await bench.operation()()
    assert bench.venue.requests[0]["headers"] == {}


async def test_places_in_a_path_are_filled_quoted_and_kept_out_of_names(bench: Bench) -> None:
    get = bench.operation("order", "GET", "/accounts/{account}/orders/{order}")
    await get(fields={"account": "a/b?c", "order": 7})
    assert bench.venue.requests[0]["url"] == f"{URL}/accounts/a%2Fb%3Fc/orders/7"
    assert get.endpoint == "GET /v1/accounts/{account}/orders/{order}"


@pytest.mark.parametrize(
    ("fields", "key"),
    [({}, "account"), (None, "account"), ({"account": ""}, "account"), ({"account": None}, "account"),
     ({"account": 1, "other": 2}, "other")],
)  # fmt: skip
async def test_a_path_with_a_missing_or_unknown_place_is_not_sent(
    bench: Bench, fields: Any, key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        await bench.operation("o", "GET", "/accounts/{account}")(fields=fields)
    assert caught.value.key == key
    assert bench.venue.requests == []


async def test_decode_makes_the_result_and_may_read_headers(bench: Bench) -> None:
    bench.venue.script = [answer(201, b"", location="/orders/42")]
    place = bench.line.operation(
        "place", "POST", "/orders", decode=lambda got: got.headers["Location"].rpartition("/")[2]
    )
    assert await place() == "42"


async def test_expect_any_takes_what_comes(bench: Bench) -> None:
    bench.venue.script = [answer(200, b"pong"), answer(204, b"")]
    ping = bench.operation(expect="any")
    assert (await ping()).text == "pong"
    assert (await ping()).status == 204


async def test_request_prepares_its_operation_once_and_refuses_ids_in_paths(bench: Bench) -> None:
    for _ in range(300):
        await bench.line.request("GET", "/orders/{id}", fields={"id": 5})
    assert len({id(found) for found in bench.line._operations.values()}) == 1
    assert REQUESTS.value("test", "orders", "ok") >= 300
    for number in range(255):
        await bench.line.request("GET", f"/orders/{number}", op="orders")
    with pytest.raises(ConfigError, match="put ids into `fields`"):
        await bench.line.request("GET", "/orders/one-more", op="orders")
    await Bench().line.request("GET", "/{x}", fields={"x": 1})


# --------------------------------------------------------------------------------------------- what is retried


async def test_a_read_is_repeated_with_growing_delays_until_it_comes_through(bench: Bench) -> None:
    bench.venue.script = [answer(503), LOST, answer()]
    assert (await bench.run(bench.operation())).status == 200
    assert bench.venue.times == [0, 0.25, 0.75]
    stats = bench.line.get_stats()
    assert (stats["retries"], stats["successes"], stats["total_errors"]) == (2, 1, 2)
    assert stats["retry_budget"] == pytest.approx(18.125, abs=0.01)


async def test_a_read_gives_up_after_its_attempts_with_the_whole_story(bench: Bench) -> None:
    bench.venue.script = [answer(503, b'{"message":"down"}', x_request_id="r-9")]
    error = await bench.fails(bench.operation("quotes", "GET", "/quotes"), TransientError)
    assert str(error) == (
        "GET /v1/quotes: 503 Service Unavailable: down (all attempts are used up)"
    )
    assert (error.attempt, error.status, error.category, error.request_id) == (
        4,
        503,
        "server",
        "r-9",
    )
    assert error.elapsed_seconds == bench.clock.boottime() == 0.25 + 0.5 + 1.0
    assert len(bench.venue.requests) == 4


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 501, 505])
async def test_what_will_fail_again_is_not_repeated(bench: Bench, status: int) -> None:
    bench.venue.script = [answer(status)]
    error = await bench.fails(bench.operation(), PermanentError)
    assert (error.status, len(bench.venue.requests)) == (status, 1)


@pytest.mark.parametrize(
    "line", [answer(500), answer(502), answer(503), answer(504), answer(408), answer(429), answer(302), LOST,
             TransientError("slow", category="timeout"), answer(200, b"<html>Sorry</html>"), answer(200, b""),
             answer(200, b'{"a":'), ConnectionResetError("gone"), answer(501), RuntimeError("a bug on the way")]
)  # fmt: skip
async def test_a_mutation_without_proof_is_sent_once_and_its_outcome_is_unknown(
    bench: Bench, line: Any
) -> None:
    bench.venue.script = [line, answer()]
    error = await bench.fails(bench.operation("place", "POST", "/orders"), OutcomeUnknown)
    assert "look it up before you send it again" in str(error)
    assert len(bench.venue.requests) == 1
    assert REQUESTS.value("test", "place", "unknown") > 0


async def test_a_mutation_that_never_left_is_repeated(bench: Bench) -> None:
    bench.venue.script = [NEVER_SENT, ConnectionRefusedError(111, "refused"), answer()]
    assert (await bench.run(bench.operation("place", "POST", "/orders"))).status == 200
    assert len(bench.venue.requests) == 3


async def test_a_mutation_that_never_leaves_ends_as_transient_not_as_unknown(bench: Bench) -> None:
    bench.venue.script = [NEVER_SENT]
    error = await bench.fails(bench.operation("place", "POST", "/orders"), TransientError)
    assert (error.sent, error.attempt, error.__cause__) == (False, 4, NEVER_SENT)


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 307, 308])
async def test_a_refused_mutation_is_refused_not_unknown(bench: Bench, status: int) -> None:
    bench.venue.script = [answer(status)]
    await bench.fails(bench.operation("place", "POST", "/orders"), PermanentError)


async def test_a_read_by_post_is_repeated_when_it_is_called_one(bench: Bench) -> None:
    bench.venue.script = [answer(503), answer()]
    assert await bench.run(bench.operation("bars", "POST", "/bars", mutation=False))
    assert len(bench.venue.requests) == 2


async def test_retry_after_is_waited_for(bench: Bench) -> None:
    bench.venue.script = [answer(503, retry_after="7"), answer()]
    await bench.run(bench.operation())
    assert bench.venue.times == [0, 7.25]


async def test_a_wait_beyond_the_deadline_is_not_begun(bench: Bench) -> None:
    bench.venue.script = [answer(503, retry_after="59.9")]
    error = await bench.fails(bench.operation(), TransientError)
    assert bench.clock.boottime() == 0
    assert str(error).endswith("(the next attempt would come after the deadline)")
    assert error.retry_after == 59.9


async def test_an_empty_budget_stops_repeating_for_all_who_share_it(bench: Bench) -> None:
    bench.venue.script = [answer(503)]
    for _ in range(7):
        await bench.fails(bench.operation(), TransientError)
    error = await bench.fails(bench.operation(), TransientError)
    assert str(error).endswith("(the host's retry budget is spent)")
    assert bench.budget.left < 1
    bench.venue.script = [answer()]
    for _ in range(30):
        await bench.operation()()
    assert bench.budget.left > 1


def test_pipelines_to_one_host_share_one_budget() -> None:
    lines = [
        Pipeline(Venue(ManualClock()), f"https://{host}/x", broker="b")
        for host in ("a.example", "a.example", "b.example", "a.example:444")
    ]
    assert lines[0].budget is lines[1].budget
    assert len({id(line.budget) for line in lines}) == 3


# ------------------------------------------------------------------------------------------------ the deadline


async def test_the_deadline_spans_all_attempts_and_shortens_the_last_timeout() -> None:
    bench = Bench(timeout_seconds=10.0, retry=RetryPolicy(deadline_seconds=25.0, attempts=9))
    bench.venue.seconds = 9.0
    bench.venue.script = [answer(503)]
    error = await bench.fails(bench.operation(), TransientError)
    assert [request["timeout"] for request in bench.venue.requests] == [10.0, 10.0, 25 - 18.75]
    assert error.attempt == 3


@pytest.mark.parametrize(("given_", "timeout"), [(None, 30.0), (5.0, 5.0), (100.0, 30.0)])
async def test_a_call_may_bring_its_own_deadline(
    bench: Bench, given_: float | None, timeout: float
) -> None:
    await bench.operation()(deadline_seconds=given_)
    assert bench.venue.requests[0]["timeout"] == timeout


async def test_without_a_deadline_only_attempts_and_timeouts_bound_a_call() -> None:
    bench = Bench(retry=RetryPolicy(deadline_seconds=None))
    bench.venue.script = [answer(503, retry_after="299"), answer()]
    await bench.run(bench.operation())
    assert bench.clock.boottime() == 299.25


async def test_a_token_that_does_not_come_before_the_deadline_sends_nothing(bench: Bench) -> None:
    bench.manager.hangs = asyncio.Event()
    error = await bench.fails(bench.operation(deadline_seconds=5), Refused)
    assert "no token came in time" in str(error)
    assert (bench.clock.boottime(), bench.venue.requests) == (5, [])


async def test_a_token_that_comes_late_but_in_time_is_sent(bench: Bench) -> None:
    bench.manager.hangs = asyncio.Event()
    task = asyncio.ensure_future(bench.operation()())
    await bench.clock.until_asleep()
    bench.clock.advance(20)
    bench.manager.hangs.set()
    await task
    assert bench.venue.requests[0]["timeout"] == 30.0
    assert bench.clock.next_wake is None


async def test_a_turn_that_comes_after_the_deadline_is_not_used() -> None:
    class Slow:
        async def acquire(self, endpoint: str, **_: Any) -> None:
            bench.clock.advance(6)

        def feedback(self, endpoint: str, retry_after: float | None) -> None:
            raise AssertionError

    bench = Bench(limiter=Slow())
    error = await bench.fails(bench.operation(deadline_seconds=5), Refused)
    assert str(error) == "GET /v1/a: the deadline passed before it could be sent"
    assert bench.venue.requests == []


class LateClock(ManualClock):
    """A clock whose sleeps end late, as those of a busy loop do."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        self.advance(3)


@pytest.mark.parametrize("limited", [False, True])
async def test_a_wait_that_ends_late_leaves_the_servers_word_standing(limited: bool) -> None:
    clock = LateClock()
    venue = Venue(clock)
    venue.script = [answer(503)]
    of = limiter(clock) if limited else None
    get = Pipeline(venue, URL, broker="late", limiter=of, clock=clock).operation("q", "GET", "/a")
    call = asyncio.ensure_future(get(deadline_seconds=2))
    await clock.run_until(call.done)
    with pytest.raises(
        TransientError, match=r"503 .*\(the deadline passed before the next attempt"
    ):
        await call
    assert len(venue.requests) == 1
    assert of is None or of.get_stats()["granted"] == 1


# ------------------------------------------------------------------------------------------------- the limiter


async def test_a_turn_that_nothing_was_sent_with_is_given_back() -> None:
    bench = Bench()
    of = limiter(bench.clock, 5)
    bench.line = Pipeline(
        bench.venue, URL, broker="test", tokens=bench.manager, limiter=of, clock=bench.clock
    )
    get = bench.operation()
    bench.manager.hangs = asyncio.Event()
    await bench.fails(get, Refused, weight=3, deadline_seconds=4)
    assert (of.get_stats()["granted"], of.get_stats()["given_back"]) == (0, 1)
    cancelled = asyncio.ensure_future(get(weight=3))
    await bench.clock.until_asleep()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert (of.get_stats()["granted"], of.get_stats()["given_back"]) == (0, 2)
    bench.manager.hangs.set()
    await bench.run(get, weight=5)
    assert (of.get_stats()["granted"], len(bench.venue.requests)) == (1, 1)


async def test_a_turn_that_something_was_sent_with_is_not_given_back() -> None:
    bench = Bench()
    of = limiter(bench.clock, 5)
    bench.line = Pipeline(
        bench.venue, URL, broker="test", budget=bench.budget, limiter=of, clock=bench.clock
    )
    bench.venue.script = [NEVER_SENT, answer(404)]
    await bench.fails(bench.operation(), PermanentError)
    assert (of.get_stats()["granted"], of.get_stats()["given_back"]) == (2, 0)


@pytest.mark.parametrize("asked", [math.nan, -1.0, math.inf])
async def test_a_retry_after_of_a_readers_own_making_does_no_harm(asked: float) -> None:
    bench = Bench()
    of = limiter(bench.clock)
    bench.line = Pipeline(bench.venue, URL, broker="test", limiter=of, clock=bench.clock)
    bench.venue.script = [
        TransientError("slow down", category="rate_limit", retry_after=asked),
        answer(),
    ]
    await bench.run(bench.operation())
    assert of.get_stats()["feedback"] == 1


def limiter(clock: ManualClock, limit: int = 2, window: float = 10.0) -> RateLimiter:
    rule = {"limit": limit, "window_seconds": window, "endpoints": ["*"], "margin_seconds": 0.0}
    return RateLimiter({"limits": {"all": rule}}, clock=clock)


async def test_each_attempt_pays_the_limiter() -> None:
    bench = Bench()
    bench.line = Pipeline(
        bench.venue,
        URL,
        broker="test",
        budget=bench.budget,
        limiter=limiter(bench.clock),
        clock=bench.clock,
    )
    bench.venue.script = [answer(503), answer(503), answer()]
    await bench.run(bench.operation())
    assert bench.venue.times[:2] == [0, 0.25]
    assert bench.venue.times[2] >= 10


async def test_the_limiter_gets_path_weight_priority_and_the_seconds_left() -> None:
    seen: list[tuple[Any, ...]] = []

    class Spy:
        async def acquire(
            self, endpoint: str, *, weight: int, priority: str, deadline: float | None
        ) -> None:
            seen.append((endpoint, weight, priority, deadline))

        def feedback(self, endpoint: str, retry_after: float | None) -> None:
            seen.append((endpoint, retry_after))

    bench = Bench(limiter=Spy())
    bench.venue.script = [answer(429, retry_after="3"), answer(429), answer()]
    bars = bench.operation(
        "bars", "GET", "/bars", weight=3, priority="history", deadline_seconds=60
    )
    await bench.run(bars)
    await bench.run(bars, weight=5, deadline_seconds=7)
    path = "/v1/bars"
    assert seen[:4] == [
        (path, 3, "history", 60),
        (path, 3.0),
        (path, 3, "history", 56.5),
        (path, None),
    ]
    assert seen[-1] == (path, 5, "history", 7)


@pytest.mark.parametrize("weight", [0, -1, "1", 1.5])
async def test_a_weight_that_cannot_be_is_refused_before_anything_is_sent(weight: Any) -> None:
    bench = Bench()
    bench.line = Pipeline(
        bench.venue, URL, broker="test", limiter=limiter(bench.clock, 9), clock=bench.clock
    )
    with pytest.raises(ConfigError, match="weigh"):
        await bench.operation()(weight=weight)
    assert bench.venue.requests == []


async def test_a_call_that_the_limiter_cannot_serve_is_refused_unsent() -> None:
    bench = Bench()
    bench.line = Pipeline(
        bench.venue, URL, broker="lim", limiter=limiter(bench.clock, 1), clock=bench.clock
    )
    get = bench.operation("q")
    await get()
    with pytest.raises(RateLimited):
        await get(deadline_seconds=5)
    assert len(bench.venue.requests) == 1
    assert REQUESTS.value("lim", "q", "limited") == 1


async def test_a_limiter_that_refuses_the_repeat_leaves_the_servers_word_standing() -> None:
    bench = Bench()
    bench.line = Pipeline(
        bench.venue, URL, broker="test", limiter=limiter(bench.clock, 1), clock=bench.clock
    )
    bench.venue.script = [answer(503)]
    error = await bench.fails(bench.operation(deadline_seconds=5), TransientError)
    assert error.status == 503
    assert isinstance(error.__cause__, RateLimited)


async def test_a_429_is_fed_back_and_said(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    limits = limiter(bench.clock, 100)
    bench.line = Pipeline(bench.venue, URL, broker="test", limiter=limits, clock=bench.clock)
    bench.venue.script = [answer(429, retry_after="5"), answer()]
    with caplog.at_level(logging.WARNING):
        await bench.run(bench.operation())
    assert bench.venue.times[1] >= 5
    assert "rate limit exceeded" in caplog.messages


# ------------------------------------------------------------------------------------------------- the breaker


def breaker(clock: ManualClock) -> CircuitBreaker:
    return CircuitBreaker({"minimum_calls": 3, "break_seconds": 30.0}, clock=clock)


async def test_a_side_that_fails_is_left_alone_and_probed_later() -> None:
    bench = Bench()
    circuits = breaker(bench.clock)
    bench.line = Pipeline(
        bench.venue,
        URL,
        broker="brk",
        breaker=circuits,
        retry=RetryPolicy(attempts=1),
        clock=bench.clock,
    )
    get = bench.operation("q")
    bench.venue.script = [answer(500)]
    for _ in range(3):
        await bench.fails(get, TransientError)
    with pytest.raises(CircuitOpen):
        await get()
    assert len(bench.venue.requests) == 3
    assert REQUESTS.value("brk", "q", "circuit_open") == 1
    bench.clock.advance(31)
    bench.venue.script = [answer()]
    await get()


async def test_operation_classes_have_circuits_of_their_own() -> None:
    bench = Bench()
    circuits = breaker(bench.clock)
    bench.line = Pipeline(
        bench.venue,
        URL,
        broker="test",
        breaker=circuits,
        retry=RetryPolicy(attempts=1),
        clock=bench.clock,
    )
    bars = bench.operation("bars", priority="history")
    bench.venue.script = [answer(500)]
    for _ in range(3):
        await bench.fails(bars, TransientError)
    with pytest.raises(CircuitOpen):
        await bars()
    bench.venue.script = [answer()]
    await bench.operation("place", "POST", priority="order")()
    await bench.operation("quotes")()
    await bench.operation("odd", group="mine")()
    names = set(circuits.get_stats()["circuits"])
    assert names == {
        f"api.example.com {group}" for group in ("history", "orders", "queries", "mine")
    }


@pytest.mark.parametrize(
    "line", [answer(400), answer(401), answer(403), answer(404), answer(429),
             answer(200, b'{"success":false,"errorCode":7}'), answer(200, b'{"success":false,"errorCode":2}')]
)  # fmt: skip
async def test_refusals_and_considered_answers_open_nothing(line: Response) -> None:
    bench = Bench()
    circuits = breaker(bench.clock)
    bench.line = Pipeline(
        bench.venue, URL, broker="test", breaker=circuits, reader=read_body, retry=RetryPolicy(attempts=1),
        clock=bench.clock,
    )  # fmt: skip
    place = bench.operation("place", "POST", "/Order/place")
    bench.venue.script = [line]
    for _ in range(10):
        with pytest.raises(APIError):
            await place()
    assert len(bench.venue.requests) == 10


async def test_our_own_waits_are_not_held_against_the_other_side() -> None:
    bench = Bench()
    circuits = breaker(bench.clock)
    bench.line = Pipeline(
        bench.venue, URL, broker="test", breaker=circuits, limiter=limiter(bench.clock, 1, 30.0),
        retry=RetryPolicy(deadline_seconds=None), clock=bench.clock,
    )  # fmt: skip
    for _ in range(10):
        await bench.run(bench.operation())
    bench.venue.script = [answer(404)]
    await bench.fails(bench.operation(), PermanentError)
    stats = circuits.get_stats()["circuits"]["api.example.com queries"]
    assert (stats["slow"], stats["failed"], stats["state"]) == (0, 0, "closed")
    assert stats["calls"] > 0


async def test_a_slow_other_side_is_counted_as_slow() -> None:
    bench = Bench()
    circuits = breaker(bench.clock)
    bench.line = Pipeline(bench.venue, URL, broker="test", breaker=circuits, clock=bench.clock)
    bench.venue.seconds = 12.0
    await bench.run(bench.operation())
    assert circuits.get_stats()["circuits"]["api.example.com queries"]["slow"] == 1


async def test_a_cancelled_call_blames_nobody_and_is_cancelled() -> None:
    bench = Bench()
    circuits = breaker(bench.clock)
    bench.line = Pipeline(bench.venue, URL, broker="can", breaker=circuits, clock=bench.clock)
    bench.venue.script = [asyncio.Event()]
    get = bench.operation("q")
    for _ in range(5):
        task = asyncio.ensure_future(get())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert circuits.get_stats()["circuits"]["api.example.com queries"]["calls"] == 0
    assert REQUESTS.value("can", "q", "cancelled") == 5


async def test_a_call_that_is_thrown_away_counts_as_nothing_and_asks_no_lock() -> None:
    bench = Bench()
    circuits = breaker(bench.clock)
    bench.line = Pipeline(bench.venue, URL, broker="gone", breaker=circuits, clock=bench.clock)
    bench.venue.script = [asyncio.Event()]
    call = bench.operation("q")()
    call.send(None)
    call.close()
    assert circuits.get_stats()["circuits"]["api.example.com queries"]["calls"] == 0
    assert REQUESTS.value("gone", "q", "cancelled") == 0


# --------------------------------------------------------------------------------------------------- the token


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_401_waits_for_a_newer_token_and_repeats_once(bench: Bench, method: str) -> None:
    bench.venue.script = [answer(401), answer()]
    await bench.run(bench.operation("o", method, "/orders"))
    assert bench.manager.asked == [None, 1, None]
    assert [request["headers"]["Authorization"] for request in bench.venue.requests] == [
        "Bearer secret-1",
        "Bearer secret-2",
    ]


async def test_a_401_that_comes_after_another_call_has_the_newer_token_renews_nothing(
    bench: Bench,
) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    refusals = iter(gates)
    good = bench.venue.request

    async def request(method: str, url: str, **call: Any) -> Response:
        if call["headers"]["Authorization"] == "Bearer secret-1":
            await next(refusals).wait()
            return answer(401, b'{"message":"no such token secret-1"}')
        return await good(method, url, **call)

    bench.venue.request = request  # type: ignore[method-assign]
    bench.line = Pipeline(bench.venue, URL, broker="two", tokens=bench.manager, clock=bench.clock)
    get = bench.operation()
    early, late = asyncio.ensure_future(get()), asyncio.ensure_future(get())
    await asyncio.sleep(0)
    gates[0].set()
    await early
    gates[1].set()
    await late
    assert [one for one in bench.manager.asked if one is not None] == [1, 1]


async def test_a_text_source_whose_newer_token_another_call_sent_already_is_enough() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    refusals = iter(gates)
    text = "old-secret"

    async def newest() -> str:
        return text

    bench = Bench(tokens=newest)
    good = bench.venue.request

    async def request(method: str, url: str, **call: Any) -> Response:
        if call["headers"]["Authorization"] == "Bearer old-secret":
            await next(refusals).wait()
            return answer(401)
        return await good(method, url, **call)

    bench.venue.request = request  # type: ignore[method-assign]
    bench.line = Pipeline(bench.venue, URL, broker="two", tokens=newest, clock=bench.clock)
    early, late = (asyncio.ensure_future(bench.operation()()) for _ in gates)
    await asyncio.sleep(0)
    text = "new-secret"
    for gate, call in zip(gates, (early, late), strict=True):
        gate.set()
        assert (await call).body == GOOD


async def test_a_token_that_an_answer_quotes_is_hidden_also_where_the_quote_was_cut_off(
    bench: Bench,
) -> None:
    bench.manager.token = Token("I0.opaque-" + "abcdefgh" * 20, 1)
    bench.venue.script = [
        answer(400, b"x" * 200 + b" " + bench.manager.token.access_token.encode())
    ]
    error = await bench.fails(bench.operation(), PermanentError)
    assert "I0.opaqu" not in str(error)


async def test_a_second_401_is_the_end(bench: Bench) -> None:
    bench.venue.script = [answer(401, b'{"message":"no such token secret-2"}')]
    error = await bench.fails(bench.operation(), PermanentError)
    assert (error.category, error.attempt, len(bench.venue.requests)) == ("auth", 2, 2)
    assert "secret" not in f"{error} {error!r}"


async def test_a_401_that_no_newer_token_can_cure_names_the_cure(bench: Bench) -> None:
    bench.venue.script = [answer(401)]
    bench.manager.refuses = SignInRequired("the refresh token is dead", credential="schwab")
    error = await bench.fails(bench.operation(), SignInRequired)
    assert "keepline login schwab" in str(error)
    assert isinstance(error.__cause__, PermanentError)
    assert error.__cause__.status == 401


async def test_a_newer_token_is_waited_for_no_longer_than_the_deadline(bench: Bench) -> None:
    bench.venue.script = [answer(401)]
    bench.manager.renewal_hangs = True
    error = await bench.fails(bench.operation(deadline_seconds=8), PermanentError)
    assert str(error).endswith("(no newer token came in time)")
    assert bench.clock.boottime() == 8


async def test_a_text_source_that_gives_the_same_token_again_ends_at_once() -> None:
    async def text() -> str:
        return "same-secret"

    bench = Bench(tokens=text)
    bench.venue.script = [answer(401)]
    await bench.fails(bench.operation(), PermanentError)
    assert len(bench.venue.requests) == 1


async def test_a_mutation_whose_401_the_reader_does_not_trust_is_not_repeated() -> None:
    from keepline.resilience import Failure

    def reader(endpoint: str, status: int, body: bytes) -> Failure | None:
        return Failure("auth", False, "maybe", token_refused=True) if status == 401 else None

    bench = Bench(reader=reader)
    bench.venue.script = [answer(401), answer()]
    await bench.fails(bench.operation("place", "POST", "/orders"), OutcomeUnknown)
    assert len(bench.venue.requests) == 1
    bench.venue.script = [answer(401), answer()]
    await bench.run(bench.operation())


async def test_without_a_token_nothing_is_sent(bench: Bench) -> None:
    async def none() -> str:
        raise TokenUnavailable("later")

    bench = Bench(tokens=none, broker="tok")
    await bench.fails(bench.operation("q"), TokenUnavailable)
    assert bench.venue.requests == []
    assert REQUESTS.value("tok", "q", "no_token") == 1


# ------------------------------------------------------------------------------------------------ strange bodies


class Bars(msgspec.Struct):
    bars: list[int]


def bars(got: Response) -> Bars:
    return msgspec.json.decode(got.body, type=Bars)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b'{"bars": ["1"]}', PermanentError, "Expected `int`, got `str` - at `$.bars[0]`"),
        (b"{}", PermanentError, "missing required field `bars`"),
        (b"<html><title>Maintenance</title>", TransientError, "a page titled “Maintenance”"),
        (b'{"bars": [1', TransientError, "a body of 11 bytes"),
        (b"", TransientError, "an empty body"),
    ],
)
async def test_a_good_status_around_the_wrong_thing_says_what_and_where(
    bench: Bench, body: bytes, kind: type, words: str
) -> None:
    bench.venue.script = [answer(200, body)]
    read = bench.line.operation("bars", "GET", "/bars", decode=bars)
    error = await bench.fails(read, kind)
    assert words in str(error)
    assert str(error).startswith("GET /v1/bars: 200 with")
    place = bench.line.operation("place", "POST", "/orders", decode=bars)
    await bench.fails(place, OutcomeUnknown)


async def test_a_decode_of_the_callers_own_that_breaks_is_named(bench: Bench) -> None:
    read = bench.line.operation("bars", "GET", "/bars", decode=lambda got: {}["x"])
    error = await bench.fails(read, PermanentError)
    assert "'x'" in str(error)


async def test_a_page_is_tried_again(bench: Bench) -> None:
    bench.venue.script = [answer(200, b"<html></html>"), answer(200, b'{"bars":[1]}')]
    read = bench.line.operation("bars", "GET", "/bars", decode=bars)
    assert await bench.run(read) == Bars([1])


@pytest.mark.parametrize(
    ("code", "kind"), [(3, PermanentError), (6, OutcomeUnknown), (7, OutcomeUnknown), (99, OutcomeUnknown)]
)  # fmt: skip
async def test_a_brokers_no_inside_a_200_ends_the_call(code: int, kind: type) -> None:
    bench = Bench(reader=read_body)
    bench.venue.script = [answer(200, json.dumps({"success": False, "errorCode": code}).encode())]
    error = await bench.fails(bench.operation("place", "POST", "/Order/place"), kind)
    assert error.code.startswith(f"place {code}")
    assert len(bench.venue.requests) == 1


# ------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, "5", True])
async def test_a_deadline_that_cannot_be_is_refused_before_anything_is_sent(
    bench: Bench, seconds: Any
) -> None:
    with pytest.raises(ConfigError, match="deadline_seconds"):
        await bench.operation()(deadline_seconds=seconds)
    with pytest.raises(ConfigError, match="deadline_seconds"):
        bench.operation(deadline_seconds=seconds)
    with pytest.raises(ConfigError, match="timeout_seconds"):
        bench.operation(timeout_seconds=seconds)
    assert bench.venue.requests == []


@pytest.mark.parametrize(
    "url", ["", "ftp://h", "https://", "https://u:p@h/", "https://h/?q", "https://h/#f", "https://h:x/", None]
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        Pipeline(Venue(ManualClock()), url, broker="b")


@pytest.mark.parametrize("seconds", [0, -1, math.nan, "30"])
def test_a_timeout_above_zero_is_needed(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="timeout_seconds"):
        Pipeline(Venue(ManualClock()), URL, broker="b", timeout_seconds=seconds)


def test_a_path_begins_with_a_slash(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="begins with a slash"):
        bench.operation(path="orders")


@pytest.mark.parametrize(
    "mistake", [ConfigError("no address"), Closed("closed"), TypeError("not JSON")]
)
async def test_the_callers_own_mistake_is_neither_repeated_nor_renamed(
    bench: Bench, mistake: Exception
) -> None:
    bench.venue.script = [mistake]
    with pytest.raises(type(mistake)) as caught:
        await bench.operation("place", "POST", "/orders")()
    assert caught.value is mistake
    assert len(bench.venue.requests) == 1


# -------------------------------------------------------------------------------------------- what is reported


async def test_operations_prepared_without_end_share_the_counters_of_their_name() -> None:
    bench = Bench(broker="many")
    for _ in range(50):
        await bench.operation("q")()
    assert len({id(bench.operation("q").tally) for _ in range(3)}) == 1
    assert (bench.line.get_stats()["successes"], REQUESTS.value("many", "q", "ok")) == (50, 50)
    get = bench.operation("q")
    del bench.line
    gc.collect()
    await get()
    assert REQUESTS.value("many", "q", "ok") == 51


async def test_metrics_tell_outcomes_retries_and_seconds() -> None:
    bench = Bench(broker="met")
    get = bench.operation("q")
    bench.venue.seconds = 0.3
    bench.venue.script = [answer(503), answer(), answer(404)]
    await bench.run(get)
    await bench.fails(get, PermanentError)
    assert REQUESTS.value("met", "q", "ok") == 1
    assert REQUESTS.value("met", "q", "client") == 1
    assert RETRIES.value("met", "q", "server") == 1
    assert REQUEST_SECONDS.value("met", "q") == 3
    assert REQUEST_SECONDS.sum("met", "q") == pytest.approx(0.9)


async def test_every_step_off_the_straight_way_is_logged_without_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(broker="logs")
    with caplog.at_level(logging.INFO, logger="keepline.resilience"):
        bench.venue.script = [answer(401), answer(503), answer()]
        await bench.run(bench.operation("q"))
        bench.venue.script = [LOST]
        await bench.fails(bench.operation("place", "POST", "/orders"), OutcomeUnknown)
        bench.venue.script = [answer(404)]
        await bench.fails(bench.operation("q"), PermanentError)
    assert caplog.messages == [
        "Token refused",
        "Call repeated",
        "Call recovered",
        "Outcome unknown",
        "Call failed",
    ]
    repeated = fields_of(caplog.records[1])
    assert (repeated["broker"], repeated["op"], repeated["attempt"], repeated["status"]) == (
        "logs",
        "q",
        2,
        503,
    )
    assert "secret" not in str([fields_of(record) for record in caplog.records])


async def test_a_good_call_writes_no_line_and_makes_no_timer(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks()
    with caplog.at_level(logging.INFO):
        await bench.operation()()
    assert caplog.messages == []
    assert bench.clock.next_wake is None
    assert asyncio.all_tasks() == tasks
    assert not getattr(loop, "_scheduled", [])


async def test_a_good_call_is_a_line_for_those_who_ask_for_everything(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="keepline.resilience"):
        await bench.operation("q")()
    assert caplog.messages == ["Call done"]
    assert fields_of(caplog.records[0]) == {"broker": "test", "op": "q", "seconds": 0.0}


def test_a_pipeline_prints_its_layers_in_order_with_their_numbers() -> None:
    clock = ManualClock()
    line = Pipeline(
        Venue(clock), "https://api.topstepx.com", broker="projectx", tokens=Manager(), limiter=limiter(clock),
        breaker=breaker(clock), budget=RetryBudget(), reader=read_body, clock=clock,
    )  # fmt: skip
    text = str(line)
    order = ["deadline", "breaker", "retry", "limiter", "timeout", "token", "http", "classify"]
    assert [name for name, _ in line.describe()] == order
    assert [row.split()[1] for row in text.splitlines()[1:] if row[2].isdigit()] == order
    for number in (
        "60 s over all attempts",
        "4 attempts",
        "2 per 10 s",
        "30 s for each attempt",
        "20 of 20",
    ):
        assert number in text
    assert repr(line) == "<Pipeline projectx: https://api.topstepx.com>"
    assert repr(line.operation("place", "POST", "/o")) == (
        "<Operation place: POST /o, changes something, 0 calls came through>"
    )
    bare = str(Pipeline(Venue(clock), URL, broker="b", retry=RetryPolicy(deadline_seconds=None)))
    assert bare.count("none") == 4


# ---------------------------------------------------------------------------------------------- whatever happens


LINES: dict[str, Callable[[], Any]] = {
    "ok": answer,
    "refused": lambda: answer(400),
    "unauthorised": lambda: answer(401),
    "throttled": lambda: answer(429, retry_after="2"),
    "broken": lambda: answer(503),
    "page": lambda: answer(200, b"<html>"),
    "lost": lambda: TransientError("lost", category="network"),
    "late": lambda: TransientError("late", category="timeout"),
    "unsent": lambda: TransientError("no connection", category="network", sent=False),
}
HARMLESS_LINES = {"refused", "unauthorised", "unsent"}


@given(st.lists(st.sampled_from(sorted(LINES)), min_size=1, max_size=8), st.booleans())
def test_no_script_makes_a_mutation_take_effect_twice(script: list[str], mutation: bool) -> None:
    async def run() -> None:
        bench = Bench(broker="fuzz")
        bench.venue.script = [LINES[name]() for name in script]
        call = bench.operation("o", "POST", "/orders", mutation=mutation)
        error = None
        try:
            await bench.run(call)
        except KeeplineError as caught:
            error = caught
        sent = [script[min(number, len(script) - 1)] for number in range(len(bench.venue.requests))]
        if mutation:
            effects = [name for name in sent if name not in HARMLESS_LINES]
            assert len(effects) <= 1
            # a mutation that may have taken effect is never told as failed, nor a failed one as unknown
            possible = bool(effects) and effects != ["ok"]
            assert isinstance(error, OutcomeUnknown) == possible
        assert (error is None) == (sent[-1] == "ok")
        assert bench.clock.boottime() <= 60
        assert bench.clock.next_wake is None

    asyncio.run(run())
