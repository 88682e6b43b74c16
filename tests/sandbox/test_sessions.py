"""Claims about ProjectX's part of the sandbox."""

from collections import Counter

import jwt
import pytest

from keepline.sandbox.sessions import Sessions

KEY = {"userName": "sandbox", "apiKey": "hush"}


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(
        username="sandbox", api_key="hush", lifetime=100, secret=b"s" * 32, counts=Counter()
    )


def test_the_right_key_buys_a_jwt_whose_exp_tells_the_truth(sessions: Sessions) -> None:
    answer = sessions.login_key(KEY, now=1000)
    assert answer["success"] is True
    assert answer["errorCode"] == 0
    token = str(answer["token"])
    claims = jwt.decode(token, b"s" * 32, algorithms=["HS256"], options={"verify_exp": False})
    assert (claims["sub"], claims["iat"], claims["exp"]) == ("sandbox", 1000, 1100)
    assert sessions.accepts(token, now=1099.9)
    assert not sessions.accepts(token, now=1100)


@pytest.mark.parametrize(
    "body", [{}, {**KEY, "apiKey": "x"}, {**KEY, "userName": None}, {"apiKey": 5}]
)
def test_a_wrong_key_is_refused_inside_a_success_status(
    sessions: Sessions, body: dict[str, object]
) -> None:
    answer = sessions.login_key(body, now=0)
    assert (answer["success"], answer["errorCode"], answer["token"]) == (False, 3, None)


def test_validate_answers_with_a_newer_token_while_the_session_lives(sessions: Sessions) -> None:
    first = str(sessions.login_key(KEY, now=0)["token"])
    answer = sessions.validate(first, now=50)
    assert answer["success"] is True
    assert sessions.accepts(str(answer["newToken"]), now=149)
    assert not sessions.accepts(first, now=149)


def test_validate_tells_expired_from_unknown_and_from_nothing(sessions: Sessions) -> None:
    token = str(sessions.login_key(KEY, now=0)["token"])
    codes = [sessions.validate(bearer, now=100)["errorCode"] for bearer in (token, "x", "")]
    assert codes == [3, 2, 1]


def test_logout_ends_a_session_once(sessions: Sessions) -> None:
    token = str(sessions.login_key(KEY, now=0)["token"])
    assert sessions.logout(token, now=1)["success"] is True
    assert sessions.logout(token, now=1) == {"success": False, "errorCode": 1, "errorMessage": None}
    assert not sessions.accepts(token, now=1)


def test_long_expired_sessions_are_forgotten(sessions: Sessions) -> None:
    old = str(sessions.login_key(KEY, now=0)["token"])
    sessions.login_key(KEY, now=201)
    assert sessions.validate(old, now=201)["errorCode"] == 2


def test_all_sessions_may_end_at_once(sessions: Sessions) -> None:
    token = str(sessions.login_key(KEY, now=0)["token"])
    sessions.forget()
    assert not sessions.accepts(token, now=1)
