"""ProjectX's `success: false`: every number of every endpoint, and what nobody documented."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.projectx.errors import TABLES, read_body, table_of
from keepline.errors import OutcomeUnknown, PermanentError, TransientError
from keepline.resilience.classify import CATEGORIES, Failure, error_of

PATHS = {
    "order/place": "POST /api/Order/place",
    "order/cancel": "POST /api/Order/cancel",
    "order/modify": "POST /api/Order/modify",
    "position/closecontract": "POST /api/Position/closeContract",
    "position/partialclosecontract": "POST /api/Position/partialCloseContract",
}


def body(code: object, *, success: object = False, message: object = None, **more: object) -> bytes:
    return json.dumps(
        {"success": success, "errorCode": code, "errorMessage": message, **more}
    ).encode()


def said(endpoint: str, code: object, **more: object) -> Failure:
    found = read_body(endpoint, 200, body(code, **more))
    assert found is not None
    return found


def test_success_is_no_failure_whatever_else_is_in_it() -> None:
    assert read_body("POST /api/Order/place", 200, body(0, success=True, orderId=7)) is None


def test_an_error_status_speaks_for_itself() -> None:
    assert read_body("POST /api/Order/place", 500, b"") is None
    assert read_body("POST /api/Order/place", 400, b'{"title":"x"}') is None


@pytest.mark.parametrize(
    ("endpoint", "code", "name"),
    [
        ("order/place", 6, "OrderPending"), ("order/place", 7, "UnknownError"),
        ("order/cancel", 4, "Pending"), ("order/cancel", 5, "UnknownError"),
        ("order/modify", 4, "Pending"), ("order/modify", 5, "UnknownError"),
        ("position/closecontract", 6, "OrderPending"), ("position/closecontract", 7, "UnknownError"),
        ("position/partialclosecontract", 7, "OrderPending"), ("position/partialclosecontract", 8, "UnknownError"),
    ],
)  # fmt: skip
def test_pending_and_unknown_leave_the_outcome_open(endpoint: str, code: int, name: str) -> None:
    found = said(PATHS[endpoint], code)
    assert not found.no_effect
    assert not found.transient
    assert found.code.endswith(f" {code} {name}")
    assert isinstance(error_of(found, mutation=True), OutcomeUnknown)


@pytest.mark.parametrize("endpoint", sorted(PATHS))
def test_all_other_numbers_of_a_mutation_are_refusals(endpoint: str) -> None:
    for code, meaning in TABLES[endpoint].items():
        open_ended = "Pending" in meaning.name or meaning.name == "UnknownError"
        error = error_of(said(PATHS[endpoint], code, message="why"), mutation=True)
        assert type(error) is (OutcomeUnknown if open_ended else PermanentError)
        assert meaning.name in str(error)
        assert "why" in str(error)


@pytest.mark.parametrize("endpoint", sorted(PATHS))
@pytest.mark.parametrize("code", [11, 99, -1, 2**40])
def test_a_number_that_no_table_has_is_never_a_refusal(endpoint: str, code: int) -> None:
    assert isinstance(error_of(said(PATHS[endpoint], code), mutation=True), OutcomeUnknown)


@pytest.mark.parametrize(("code", "success"), [(0, False), (3, True)])
def test_two_statements_that_cannot_both_be_true_prove_nothing(code: int, success: bool) -> None:
    found = said("POST /api/Order/place", code, success=success, message="?")
    assert not found.no_effect
    assert found.message == (
        f"no clear answer: place {code}: success is {str(success).lower()} but errorCode is {code}: ?"
    )


def test_a_rejection_that_speaks_of_a_timeout_proves_nothing() -> None:
    found = said("POST /api/Order/place", 2, message="Timed out waiting for the exchange")
    assert isinstance(error_of(found, mutation=True), OutcomeUnknown)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (body("3"), "Expected `int`, got `str` - at `$.errorCode`"),
        (body(3, success="false"), "Expected `bool`, got `str` - at `$.success`"),
        (body(3, message=5), "$.errorMessage"),
        (b'{"errorCode": 3}', "missing required field `success`"),
        (b"[]", "Expected `object`"),
        (b"<html><title>Down</title>", "a page titled “Down”"),
        (b"", "an empty body"),
        (b'{"success": tr', "a body of 14 bytes"),
    ],
)
def test_an_answer_without_the_envelope_says_what_is_wrong_and_where(
    text: bytes, words: str
) -> None:
    found = read_body("POST /api/Order/place", 200, text)
    assert found is not None
    assert words in found.message
    assert isinstance(error_of(found, mutation=True), OutcomeUnknown)
    assert isinstance(error_of(found, mutation=False), TransientError)


def test_ping_answers_with_bare_text() -> None:
    assert read_body("GET /api/Status/ping", 200, b"pong") is None


@pytest.mark.parametrize(("code", "fatal"), [(3, True), (7, True), (8, False), (10, True)])
def test_a_refused_login_is_for_a_person_except_for_the_unknown_error(
    code: int, fatal: bool
) -> None:
    found = said("POST /api/Auth/loginKey", code)
    assert found.transient is not fatal
    assert (found.category == "auth") is fatal


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_dead_session_asks_for_a_newer_token(code: int) -> None:
    assert said("POST /api/Auth/validate", code).token_refused


@pytest.mark.parametrize(
    "endpoint", ["POST /api/Order/place", "/api/Order/place/", "Order/place", "post https://h/API/ORDER/PLACE"]
)  # fmt: skip
def test_a_table_is_found_by_every_spelling_of_its_endpoint(endpoint: str) -> None:
    assert table_of(endpoint) == "order/place"


def test_bars_have_their_own_names() -> None:
    error = error_of(said("POST /api/History/retrieveBars", 4, message="too many"), mutation=False)
    assert isinstance(error, PermanentError)
    assert str(error) == "refused: retrievebars 4 LimitInvalid: too many"
    assert error.code == "retrievebars 4 LimitInvalid"


@given(st.sampled_from(sorted(TABLES)), st.binary(max_size=80) | st.integers().map(body))
def test_no_body_breaks_the_reader(endpoint: str, text: bytes) -> None:
    found = read_body(f"POST /api/{endpoint}", 200, text)
    assert found is None or (found.category in CATEGORIES and found.message.isprintable())
