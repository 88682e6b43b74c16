"""What decides a renewal before anything is sent: whose token is newer, and how long one lives."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from keepline.credentials.exchange import answer_may_be_lost
from keepline.credentials.renewal import seconds_left, supersedes
from keepline.credentials.token import NEVER, Token
from keepline.errors import PermanentError, TransientError

NOW = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
SECONDS = st.integers(-10_000, 10_000)


def token(access="a", refresh="r", *, life=1800, generation=1, deadline=None, issued=NOW) -> Token:
    return Token(
        access,
        refresh,
        expires_at=issued + timedelta(seconds=life),
        issued_at=issued,
        generation=generation,
        signin_deadline=None if deadline is None else NOW + timedelta(days=deadline),
    )


@given(SECONDS, SECONDS)
def test_a_token_never_has_more_than_its_life_and_never_more_than_the_clock_gives(life, jump):
    wall = NOW + timedelta(seconds=jump)
    left = seconds_left(token(life=life), wall)
    assert left <= max(life, 0)
    assert left <= life - jump


def test_a_token_that_never_dies_has_no_end():
    assert seconds_left(Token("a", expires_at=NEVER), NOW) == float("inf")


@given(st.integers(1, 9), st.integers(1, 9), SECONDS, SECONDS)
def test_two_tokens_never_take_each_others_place_by_generation_alone(one, two, life, other):
    first = token("a", life=life, generation=one)
    second = token("b", life=life, generation=two)
    assert not (supersedes(first, second) and supersedes(second, first))
    assert not supersedes(token(life=life, generation=one), token(life=other, generation=two))


def test_what_takes_the_place_of_the_token_in_hand():
    held = token()
    assert supersedes(token("b"), None)
    assert supersedes(token("b", generation=2), held)
    assert supersedes(token("b", generation=2, life=10), held)
    assert supersedes(token("b", life=1801), held)
    assert supersedes(token(refresh="s", life=1801), held)
    assert supersedes(token("b", deadline=8), token(deadline=7))
    assert not supersedes(token("b"), held)
    assert not supersedes(token("b", life=100, deadline=7), token(deadline=7))
    assert not supersedes(token(generation=9), held), "the same secrets are no news"


def test_where_an_answer_may_have_been_lost():
    assert answer_may_be_lost(TransientError("cut", category="network"))
    assert answer_may_be_lost(TransientError("gateway", status=502))
    assert answer_may_be_lost(TransientError("no json", status=200))
    assert answer_may_be_lost(RuntimeError("?"))
    assert not answer_may_be_lost(TransientError("refused connection", sent=False))
    assert not answer_may_be_lost(TransientError("slow down", status=429))
    assert not answer_may_be_lost(PermanentError("bad", status=400))
