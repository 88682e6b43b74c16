"""The error handler as a synchronous, threaded bot uses it."""

import asyncio
import threading

import pytest

from keepline.brokers.projectx.errors import read_body
from keepline.errors import (
    ConfigError,
    OutcomeUnknown,
    PermanentError,
    RateLimited,
    TransientError,
)
from keepline.resilience import ErrorHandler, RetryBudget, RetryPolicy
from keepline.resilience.handler import is_mutation
from keepline.resilience.retry import RetryVerdict
from keepline.testing import ManualClock

SERVER = TransientError("503", category="server", status=503)
REFUSED = '{"success": false, "errorCode": 3, "errorMessage": "no margin"}'


@pytest.fixture
def handler() -> ErrorHandler:
    return ErrorHandler(clock=ManualClock())


@pytest.mark.parametrize(
    ("status", "category"),
    [
        (401, "auth"), (403, "auth"), (404, "client"), (408, "timeout"), (429, "rate_limit"), (500, "server"),
        (504, "timeout"), (599, "server"), (None, "network"), (TimeoutError(), "timeout"),
        (ConnectionResetError(), "network"), (302, "client"),
    ],
)  # fmt: skip
def test_classify_error_takes_a_status_an_exception_or_nothing(
    handler: ErrorHandler, status: object, category: str
) -> None:
    assert handler.classify_error(status) == category  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [b"<html>Sorry</html>", "<html>", b"{"])
def test_a_page_inside_a_200_is_the_servers_fault(handler: ErrorHandler, body: object) -> None:
    assert handler.classify_error(200, body) == "server"


@pytest.mark.parametrize("body", [None, "{}", {"ok": True}])
def test_a_good_answer_is_no_error_to_classify(handler: ErrorHandler, body: object) -> None:
    with pytest.raises(ConfigError, match="200 is not the status of an error"):
        handler.classify_error(200, body)


@pytest.mark.parametrize(
    ("body", "category"),
    [
        (REFUSED, "client"),
        (REFUSED.encode(), "client"),
        ({"success": False, "errorCode": "3"}, "server"),
        ({"success": False, "errorCode": 42}, "server"),
    ],
)
def test_a_brokers_no_inside_a_200_is_read_by_its_reader(body: object, category: str) -> None:
    handler = ErrorHandler(reader=read_body)
    assert handler.classify_error(200, body, endpoint="POST /api/Order/place") == category


@pytest.mark.parametrize("status", ["429", 4.29, True, 0, 6000])
def test_a_status_as_text_is_a_clear_error(handler: ErrorHandler, status: object) -> None:
    with pytest.raises(ConfigError, match="status_code"):
        handler.classify_error(status)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("endpoint", "mutation"),
    [
        ("GET /api/Order/1", False), ("get /x", False), ("HEAD /x", False), ("POST /anything", True),
        ("PUT /accounts/1/orders/2", True), ("DELETE /x", True), ("POST /api/History/retrieveBars", False),
        ("POST /api/Order/search", False), ("POST /api/Order/searchOpen", False), ("POST /x/previewOrder", False),
        ("/api/Order/place", True), ("/api/Position/closeContract", True), ("/accounts/1/orders?x=/search", True),
        ("/quotes", False), ("", False), ("POST /api/Contract/available", False),
        ("DELETE /api/History/1", True), ("PUT /x/search", True), ("/api/Order/search", False),
    ],
)  # fmt: skip
def test_in_doubt_an_endpoint_changes_something(endpoint: str, mutation: bool) -> None:
    assert is_mutation(endpoint) is mutation


def test_should_retry_asks_kind_and_count_and_counts_nothing(handler: ErrorHandler) -> None:
    assert [handler.should_retry(SERVER, attempt) for attempt in (1, 2, 3, 4)] == [
        True,
        True,
        True,
        False,
    ]
    assert not handler.should_retry(PermanentError("x", category="client", status=400), 1)
    assert not handler.should_retry(OutcomeUnknown("x", category="server"), 1)
    assert not handler.should_retry(SERVER, 1, mutation=True)
    order = TransientError("x", category="network", endpoint="POST /api/Order/place")
    assert not handler.should_retry(order, 1)
    order.sent = False
    assert handler.should_retry(order, 1)
    assert handler.get_stats()["total_errors"] == 0


@pytest.mark.parametrize("attempt", [0, -1, "1", 1.0, True])
def test_an_attempt_is_a_whole_number_from_one(handler: ErrorHandler, attempt: int) -> None:
    for ask in (
        lambda: handler.should_retry(SERVER, attempt),
        lambda: handler.get_retry_delay(attempt, SERVER),
        lambda: handler.handle_error(SERVER, "GET /a", attempt),
    ):
        with pytest.raises(ConfigError, match="whole number from 1 up"):
            ask()


def test_delays_are_drawn_below_a_doubling_bound_and_above_retry_after() -> None:
    handler = ErrorHandler(clock=ManualClock(chance=0.999))
    assert [round(handler.get_retry_delay(n, SERVER), 1) for n in (1, 2, 3, 9)] == [0.5, 1, 2, 20]
    asked = TransientError("429", category="rate_limit", status=429, retry_after=30.0)
    assert 30 <= handler.get_retry_delay(1, asked) <= 31


async def test_a_decision_carries_the_error_with_its_context(handler: ErrorHandler) -> None:
    decision = handler.handle_error(SERVER, "GET /a", 2, elapsed_seconds=1.25)
    assert await decision is decision
    assert (decision.retry, decision.delay_seconds, decision.attempt) == (True, 0.5, 2)
    error = decision.error
    assert (error.endpoint, error.attempt, error.elapsed_seconds) == ("GET /a", 2, 1.25)
    assert error.__cause__ is SERVER


@pytest.mark.parametrize(
    ("error", "endpoint", "verdict", "kind"),
    [
        (SERVER, "POST /api/Order/place", RetryVerdict.UNSAFE, OutcomeUnknown),
        (OutcomeUnknown("x", category="network"), "GET /a", RetryVerdict.UNSAFE, OutcomeUnknown),
        (RateLimited("full"), "POST /api/Order/place", RetryVerdict.REPEAT, TransientError),
        (ConnectionRefusedError(), "/api/Order/place", RetryVerdict.REPEAT, TransientError),
        (ConnectionResetError(), "/api/Order/place", RetryVerdict.UNSAFE, OutcomeUnknown),
        (ValueError("ours"), "GET /a", RetryVerdict.PERMANENT, PermanentError),
    ],
)
def test_what_may_be_an_order_is_not_repeated_without_proof(
    handler: ErrorHandler, error: Exception, endpoint: str, verdict: RetryVerdict, kind: type
) -> None:
    decision = handler.handle_error(error, endpoint, 1)
    assert decision.verdict is verdict
    assert type(decision.error) is kind


def test_the_caller_may_know_better_what_a_call_changes(handler: ErrorHandler) -> None:
    assert handler.handle_error(SERVER, "POST /read", 1, mutation=False)
    assert not handler.handle_error(SERVER, "GET /write", 1, mutation=True)
    assert ErrorHandler(reader=read_body).classify_error(503, "<html>") == "server"


def test_deadline_and_budget_end_the_repeating() -> None:
    handler = ErrorHandler(budget=RetryBudget(capacity=1, per_second=0), clock=ManualClock())
    assert (
        handler.handle_error(SERVER, "GET /a", 1, seconds_left=0.25).verdict
        is RetryVerdict.DEADLINE
    )
    assert handler.handle_error(SERVER, "GET /a", 1, seconds_left=0.26)
    assert handler.handle_error(SERVER, "GET /a", 1).verdict is RetryVerdict.BUDGET


def test_statistics_name_every_category(handler: ErrorHandler) -> None:
    handler.handle_error(SERVER, "GET /a", 1)
    handler.handle_error(SERVER, "GET /a", 4)
    handler.handle_error(TimeoutError(), "GET /a", 1)
    handler.record_success()
    assert handler.get_stats() == {
        "total_errors": 3,
        "retries": 2,
        "successes": 1,
        "by_category": {
            "auth": 0,
            "client": 0,
            "server": 2,
            "network": 0,
            "timeout": 1,
            "rate_limit": 0,
        },
    }
    assert repr(handler).startswith("<ErrorHandler 3 errors, 2 retries, 4 attempts")


def test_eight_threads_lose_no_count(handler: ErrorHandler) -> None:
    def work() -> None:
        for _ in range(500):
            handler.handle_error(TimeoutError(), "POST /api/Order/place", 1)
            handler.record_success()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = handler.get_stats()
    assert (stats["total_errors"], stats["successes"], stats["retries"]) == (4000, 4000, 0)


def test_a_cancellation_goes_on(handler: ErrorHandler) -> None:
    with pytest.raises(asyncio.CancelledError):
        handler.handle_error(asyncio.CancelledError(), "GET /a", 1)
    assert handler.get_stats()["total_errors"] == 0


def test_settings_come_as_a_policy_a_mapping_or_not_at_all() -> None:
    assert ErrorHandler({"attempts": 2}).policy.attempts == 2
    assert ErrorHandler(RetryPolicy(attempts=3)).policy.attempts == 3
    with pytest.raises(ConfigError, match="no such setting of retries; did you mean attempts"):
        ErrorHandler({"attempt": 2})
