"""Schwab's three shapes of an error body."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.schwab.errors import SIGN_IN_AGAIN, needs_sign_in, read_body
from keepline.errors import OutcomeUnknown, PermanentError, TransientError
from keepline.resilience.classify import error_of

ORDERS = "POST /trader/v1/accounts/{account}/orders"


@pytest.mark.parametrize(
    ("status", "document", "message", "code"),
    [
        (400, {"message": "Bad order", "errors": ["price", "size"]}, "400: Bad order; price; size", ""),
        (400, {"message": "Same", "errors": ["Same"]}, "400: Same", ""),
        (404, {"errors": [{"id": "9f", "status": "404", "title": "Not Found", "detail": "no symbol"}]},
         "404: Not Found: no symbol", "9f"),
        (404, {"errors": [{"id": 5, "status": 404, "title": "Not Found"}]}, "404: Not Found", "5"),
        (400, {"error": "invalid_client", "error_description": "refresh token invalid"},
         "400: refresh token invalid", "invalid_client"),
        (500, {"message": "Oops", "errors": None}, "500: Oops", ""),
    ],
)  # fmt: skip
def test_each_shape_gives_words_and_code(
    status: int, document: dict[str, object], message: str, code: str
) -> None:
    found = read_body(ORDERS, status, json.dumps(document).encode())
    assert found is not None
    assert (found.message, found.code, found.status) == (message, code, status)


@pytest.mark.parametrize(
    ("status", "kind", "read"),
    [
        (400, PermanentError, PermanentError),
        (401, PermanentError, PermanentError),
        (408, OutcomeUnknown, TransientError),
        (429, OutcomeUnknown, TransientError),
        (500, OutcomeUnknown, TransientError),
        (503, OutcomeUnknown, TransientError),
    ],
)
def test_the_status_decides_what_is_proven(status: int, kind: type, read: type) -> None:
    found = read_body(ORDERS, status, b'{"message": "no"}')
    assert found is not None
    assert type(error_of(found, mutation=True)) is kind
    assert type(error_of(found, mutation=False)) is read


def test_a_400_that_speaks_of_a_timeout_proves_nothing() -> None:
    found = read_body(ORDERS, 400, b'{"message": "The request timed out"}')
    assert found is not None
    assert isinstance(error_of(found, mutation=True), OutcomeUnknown)


def test_a_missing_product_is_not_cured_by_a_newer_token() -> None:
    plain = read_body(ORDERS, 401, b'{"message": "token expired"}')
    product = read_body(ORDERS, 401, b'{"errors": [{"detail": "Client not authorized"}]}')
    assert plain is not None
    assert plain.token_refused
    assert product is not None
    assert not product.token_refused
    assert "add the product to the app" in product.message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"message": "fine"}'),
        (201, b""),
        (500, b"<html>Access Denied</html>"),
        (500, b"[]"),
        (500, b'{"x": 1}'),
        (500, b'{"message": 5, "errors": [7]}'),
        (500, b'{"message": "' + b"x" * 70_000 + b'"}'),
    ],
)
def test_a_good_status_or_another_shape_is_left_to_the_common_reading(
    status: int, body: bytes
) -> None:
    assert read_body(ORDERS, status, body) is None


@pytest.mark.parametrize("sign", SIGN_IN_AGAIN)
def test_a_dead_refresh_token_is_recognised_in_code_and_words(sign: str) -> None:
    assert needs_sign_in(json.dumps({"error": sign.upper()}).encode())
    assert needs_sign_in(json.dumps({"error": "x", "error_description": f"a {sign} b"}).encode())


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": "server_error"}', b"[1]"])
def test_an_outage_is_no_reason_to_sign_in(body: bytes) -> None:
    assert not needs_sign_in(body)


messages = st.text(max_size=60).map(lambda text: json.dumps({"message": text}).encode())


@given(st.integers(300, 599), st.binary(max_size=100) | messages)
def test_no_body_breaks_the_reader(status: int, body: bytes) -> None:
    found = read_body(ORDERS, status, body)
    assert found is None or found.message.isprintable()
