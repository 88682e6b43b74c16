"""What went wrong, as bare values: statuses, bodies, headers and exceptions become failures, failures become errors."""

import asyncio
import math
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import (
    APIError,
    CircuitOpen,
    ConfigError,
    OutcomeUnknown,
    PermanentError,
    ProtocolError,
    QueueFull,
    RateLimited,
    Refused,
    SignInRequired,
    TokenUnavailable,
    TransientError,
)
from keepline.http import Headers
from keepline.resilience.classify import (
    CATEGORIES,
    LONGEST_RETRY_AFTER,
    Failure,
    category_of,
    checked_status,
    error_of,
    failure_of_answer,
    is_transient,
    parse_retry_after,
    proves_no_effect,
    unreadable,
)
from keepline.resilience.raised import failure_of_exception
from keepline.resilience.wording import clean

WALL = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)

ODD = {401: "auth", 403: "auth", 408: "timeout", 429: "rate_limit", 504: "timeout"}


def failure(status: int, body: bytes = b"", **headers: str) -> Failure:
    fields = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return failure_of_answer(status, fields, body, wall=WALL)


@pytest.mark.parametrize("status", range(400, 600))
def test_every_status_has_the_contracts_category_and_kind_of_error(status: int) -> None:
    found = failure(status)
    assert category_of(status) == found.category
    assert found.category == ODD.get(status, "client" if status < 500 else "server")
    transient = status in (408, 429) or (status >= 500 and status not in (501, 505))
    assert is_transient(status) is found.transient is transient
    error = error_of(found, mutation=False)
    assert type(error) is (TransientError if transient else PermanentError)
    assert (error.status, error.category) == (status, found.category)
    assert str(status) in str(error)


@pytest.mark.parametrize("status", range(400, 600))
def test_a_mutation_is_refused_only_by_a_status_that_proves_it(status: int) -> None:
    proven = status < 500 and status not in (408, 429, 499)
    assert proves_no_effect(status) is proven
    assert type(error_of(failure(status), mutation=True)) is (
        PermanentError if proven else OutcomeUnknown
    )


@pytest.mark.parametrize(
    ("status", "proven"), [(301, False), (302, False), (303, False), (307, True), (308, True)]
)
def test_a_redirect_that_was_not_followed_says_to_check_the_address(
    status: int, proven: bool
) -> None:
    found = failure(status, b"<html>moved</html>")
    assert (found.category, found.transient, found.no_effect) == ("client", False, proven)
    assert "check the broker's address" in found.message


def test_a_status_of_no_known_class_is_the_servers_fault() -> None:
    assert (category_of(799), failure(799).message) == ("server", "status 799")


def test_a_refusal_that_speaks_of_a_timeout_proves_nothing() -> None:
    found = failure(400, b'{"message": "Order request timed out"}')
    assert not found.no_effect
    assert isinstance(error_of(found, mutation=True), OutcomeUnknown)
    assert isinstance(error_of(found, mutation=False), PermanentError)


# ------------------------------------------------------------------------------------------------ Retry-After


@pytest.mark.parametrize(
    ("text", "seconds", "note"),
    [
        (None, None, ""),
        ("", None, ""),
        ("0", 0, ""),
        (" 7 ", 7, ""),
        ("1.5", 1.5, ""),
        ("300", 300, ""),
        ("31536000", 300, "clamped to 300 s"),
        ("inf", 300, "clamped to 300 s"),
        ("-5", None, "'-5' is neither"),
        ("nan", None, "'nan' is neither"),
        ("soon", None, "'soon' is neither"),
        ("Mon, 05 Jan 2026 14:30:20 GMT", 20, ""),
        ("Monday, 05-Jan-26 14:30:20 GMT", 20, ""),
        ("Mon Jan  5 14:30:20 2026", 20, ""),
        ("Mon, 05 Jan 2026 09:30:00 GMT", 0, ""),
        ("Wed, 06 Jan 2027 14:30:00 GMT", 300, "clamped to 300 s"),
        ("Mon, 99 Foo 2026 99:99:99 GMT", None, "is neither"),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_clamped_with_words(
    text: str | None, seconds: float | None, note: str
) -> None:
    wait = parse_retry_after(text, wall=WALL)
    assert wait.seconds == seconds
    assert note in wait.note
    assert bool(note) == bool(wait.note)


@given(st.text(max_size=40) | st.floats().map(str) | st.integers().map(str))
def test_whatever_retry_after_says_the_wait_is_sound(text: str) -> None:
    seconds = parse_retry_after(text, wall=WALL).seconds
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


@given(st.integers(-10_000, 299))
def test_a_date_counts_from_the_servers_own_time_so_a_wrong_clock_here_does_no_harm(
    ahead: int,
) -> None:
    theirs = WALL + timedelta(days=3)
    found = failure(
        503,
        retry_after=format_datetime(theirs + timedelta(seconds=ahead), usegmt=True),
        date=format_datetime(theirs, usegmt=True),
    )
    assert found.retry_after == max(ahead, 0)


def test_an_odd_retry_after_is_named_in_the_message() -> None:
    found = failure(429, retry_after="31536000")
    assert found.retry_after == 300
    assert found.message == (
        "429 Too Many Requests (it asks for a wait of 3.1536e+07 s, clamped to 300 s)"
    )


# ----------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("body", "words", "code"),
    [
        (b'{"type":"https://b/x","title":"Too big","detail":"size 9 > 5"}', "size 9 > 5; Too big", "https://b/x"),
        (b'{"type":"about:blank","title":"No"}', "No", ""),
        (b'{"title":"Invalid.","errors":{"size":["must be > 0","x"]}}', "Invalid.; size: must be > 0", ""),
        (b'{"error":"invalid_request","error_description":"redirect_uri"}', "redirect_uri", "invalid_request"),
        (b'{"message":"Bad","errors":["a","b"]}', "Bad; a; b", ""),
        (b'{"errors":[{"id":"7","title":"T","detail":"D"}]}', "T: D", ""),
        (b'{"errors":[[], [["deep"]]]}', "deep", ""),
        (b'{"error":{"message":"inner"}}', "inner", ""),
        (b'{"errorMessage":"said so","errorCode":7}', "said so", "7"),
        (b'{"errorCode":true}', "", ""),
        (b'"just text"', "just text", ""),
        (b"[1, 2]", "", ""),
        (b"plain\x00\x1b[31m text\r\nof it", "plain [31m text of it", ""),
        (b"\xff\xfe", "��", ""),
        (b"  <!doctype html><title>\n We will be\n back </title>", "a page titled “We will be back”", ""),
        (b"<html></html>", "a page", ""),
        (b"{" * 70_000, "a body of 70000 bytes", ""),
        (b'{"a":' * 30_000, "a body of 150000 bytes", ""),
        (b"[" * 20_000, "…", ""),
    ],
)  # fmt: skip
def test_words_and_code_are_found_in_every_common_shape(body: bytes, words: str, code: str) -> None:
    found = failure(400, body)
    assert found.message.startswith("400 Bad Request")
    assert found.message.endswith(words)
    assert found.code == code


@pytest.mark.parametrize("level", ["[", '{"error":'])
def test_a_body_as_deep_as_the_stack_breaks_nothing(level: str) -> None:
    for depth in range(880, 1000):  # somewhere here decoding it still works and reading it does not
        closing = "]" if level == "[" else "}"
        body = f'{{"errors":[{level * depth}{{}}{closing * depth}]}}'
        if level != "[":
            body = f"{level * depth}{{}}{closing * depth}"
        assert failure(400, body.encode()).category == "client"


@given(st.binary(max_size=300))
def test_no_body_breaks_the_reading_or_the_line(body: bytes) -> None:
    found = failure(502, body)
    assert found.category == "server"
    assert found.message.isprintable()
    assert len(found.message) < 300


@pytest.mark.parametrize(
    "body",
    [
        b'{"message":"bad header Authorization: Bearer s3cr3t-s3cr3t"}',
        b'{"detail":"access_token=s3cr3t-s3cr3t was refused"}',
        b'{"error_description":"{\\"refresh_token\\":\\"s3cr3t-s3cr3t\\"}"}',
        b"password=s3cr3t-s3cr3t",
    ],
)
def test_a_secret_that_an_answer_quotes_is_hidden(body: bytes) -> None:
    error = error_of(failure(400, body, x_request_id="token=s3cr3t-s3cr3t"), mutation=True)
    assert "s3cr3t" not in f"{error!r} {error} {error.request_id} {error.code}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Request-Id", "r-1"), ("Schwab-Client-CorrelId", "c-2"), ("CF-Ray", "ray"), ("other", "")],
)
def test_the_request_id_is_kept_for_the_brokers_support(name: str, value: str) -> None:
    assert failure_of_answer(500, Headers({name: value}), b"", wall=WALL).request_id == value


def test_a_reader_speaks_first_and_the_headers_still_count() -> None:
    seen = []

    def reader(endpoint: str, status: int, body: bytes) -> Failure | None:
        seen.append((endpoint, status, body))
        return Failure("client", False, "said", code="7") if body else None

    fields = Headers({"Retry-After": "3"})
    read = failure_of_answer(400, fields, b"x", endpoint="GET /a", reader=reader, wall=WALL)
    assert (read.message, read.code, read.status, read.retry_after) == ("said", "7", 400, 3)
    assert seen == [("GET /a", 400, b"x")]
    silent = failure_of_answer(500, fields, b"", reader=reader, wall=WALL)
    assert silent.message == "500 Internal Server Error"
    again = failure_of_answer(200, fields, b"x", reader=reader, said=read, wall=WALL)
    assert (again.status, len(seen)) == (200, 2)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "200 with an empty body where JSON"),
        (b"<html><title>Sorry</title>", "200 with a page titled “Sorry” where JSON"),
        (b'{"a":', "200 with a body of 5 bytes where JSON"),
    ],
)
def test_a_good_status_around_something_else_is_transient_and_proves_nothing(
    body: bytes, what: str
) -> None:
    found = unreadable(200, body, "JSON is expected")
    assert (found.category, found.transient, found.no_effect) == ("server", True, False)
    assert found.message.startswith(what)


# ------------------------------------------------------------------------------------------------- exceptions


KEY = aiohttp.client_reqrep.ConnectionKey("h", 1, False, True, None, None, None)


class FakeResponse:
    status_code = 429


class LibraryError(Exception):
    response = FakeResponse()


@pytest.mark.parametrize(
    ("error", "category", "transient", "sent"),
    [
        (TimeoutError(), "timeout", True, True),
        (TimeoutError("slow"), "timeout", True, True),
        (ConnectionResetError("gone"), "network", True, True),
        (BrokenPipeError(), "network", True, True),
        (ConnectionRefusedError(111, "refused"), "network", True, False),
        (socket.gaierror(-2, "unknown"), "network", True, False),
        (OSError(101, "unreachable"), "network", True, True),
        (asyncio.IncompleteReadError(b"", 3), "network", True, True),
        (ssl.SSLCertVerificationError("bad"), "network", False, False),
        (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), "network", True, False),
        (aiohttp.ServerDisconnectedError(), "network", True, True),
        (aiohttp.ServerTimeoutError(), "timeout", True, True),
        (aiohttp.ConnectionTimeoutError(), "timeout", True, False),
        (aiohttp.ClientPayloadError("cut"), "network", True, True),
        (LibraryError("429"), "rate_limit", True, True),
        (FileNotFoundError(2, "no", "/x"), "client", False, True),
        (ValueError("ours"), "client", False, True),
        (ProtocolError("not JSON"), "server", True, True),
        (RateLimited("full", retry_after=2.0), "rate_limit", True, False),
        (CircuitOpen("open", retry_after=9.0), "server", True, False),
        (QueueFull("full"), "client", True, False),
        (Refused("no"), "client", True, False),
        (TokenUnavailable("later"), "auth", True, False),
        (SignInRequired("now"), "auth", False, False),
        (TransientError("x", category="network", sent=False), "network", True, False),
        (TransientError("x", category="server", status=503), "server", True, True),
        (PermanentError("x", category="auth", status=403), "auth", False, True),
        (APIError("x", category="of no kind"), "client", False, True),
    ],
)
def test_every_exception_has_a_category_and_says_whether_it_was_sent(
    error: Exception, category: str, transient: bool, sent: bool
) -> None:
    found = failure_of_exception(error)
    assert (found.category, found.transient, found.sent) == (category, transient, sent)
    assert found.category in CATEGORIES
    assert sent or found.no_effect
    assert found.retry_after == getattr(error, "retry_after", None)


class TransportError(Exception):
    """As httpx, urllib3 and requests name the root of theirs."""


@pytest.mark.parametrize(
    ("name", "category", "sent"),
    [
        ("ConnectTimeout", "timeout", False),
        ("PoolTimeout", "timeout", False),
        ("ReadTimeout", "timeout", True),
        ("ConnectError", "network", False),
        ("NewConnectionError", "network", False),
        ("ReadError", "network", True),
    ],
)
def test_errors_of_other_libraries_are_known_by_name(name: str, category: str, sent: bool) -> None:
    found = failure_of_exception(type(name, (TransportError,), {})("gone"))
    assert (found.category, found.transient) == (category, True)
    assert (found.sent, found.no_effect) == (sent, not sent)


def test_a_foreign_message_is_cleaned_and_named() -> None:
    found = failure_of_exception(OSError("GET http://u:passw0rd@h/ Bearer abcdefghijk\n failed"))
    assert found.message == "OSError: GET http://u:[redacted]@h/ Bearer [redacted] failed"
    assert failure_of_exception(OSError()).message == "OSError"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt()])
def test_a_cancellation_is_nobodys_failure(error: BaseException) -> None:
    with pytest.raises(type(error)):
        failure_of_exception(error)


@pytest.mark.parametrize(
    ("status", "proven"), [(400, True), (None, True), (501, False), (505, False)]
)
def test_a_permanent_error_of_5xx_proves_nothing(status: int | None, proven: bool) -> None:
    error = PermanentError("no", category="server", status=status)
    assert failure_of_exception(error).no_effect is proven


def test_an_error_of_ours_goes_round_unchanged() -> None:
    first = error_of(failure(503, b"x", x_request_id="r"), mutation=True, endpoint="POST /a")
    again = error_of(
        failure_of_exception(first),
        mutation=True,
        endpoint="POST /a",
        attempt=2,
        elapsed_seconds=1.5,
    )
    assert (str(again), again.request_id) == (str(first), "r")
    assert str(again).count("look it up") == 1
    assert (again.attempt, again.elapsed_seconds) == (2, 1.5)
    refusal = PermanentError("no", status=200, code="3 InsufficientFunds")
    assert isinstance(error_of(failure_of_exception(refusal), mutation=True), PermanentError)


@given(st.text(max_size=600), st.integers(5, 60))
def test_clean_gives_one_printable_line_of_bounded_length(text: str, limit: int) -> None:
    line = clean(text, limit)
    assert len(line) <= limit
    assert line.isprintable()
    assert line == line.strip()


def test_a_text_without_end_is_not_read_to_its_end() -> None:
    assert clean(" " * 10_000_000 + "x") == ""


@pytest.mark.parametrize("status", ["429", 429.0, True, None, 99, 1000, -1, math.nan])
def test_a_status_that_is_none_is_a_clear_error(status: object) -> None:
    with pytest.raises(ConfigError, match="status_code") as caught:
        checked_status(status)
    assert caught.value.key == "status_code"
