"""The three ways to present a token, their precedence, and two tokens at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.hub.presenting import (
    LONGEST_TOKEN,
    SUBPROTOCOL,
    Presented,
    Way,
    chosen_subprotocol,
    presented,
)
from keepline.hub.refusals import Refusal, RefusalCode

A, B = "aaa.bbb.ccc", "aaa.bbb.ddd"


@pytest.mark.parametrize(
    ("given_", "way"),
    [
        ({"authorization": [f"Bearer {A}"]}, Way.AUTHORIZATION),
        ({"authorization": [f"bearer  {A} "]}, Way.AUTHORIZATION),
        ({"protocols": [f"keepline.v1, bearer.{A}"]}, Way.SUBPROTOCOL),
        ({"protocols": ["keepline.v1", f"bearer.{A}"]}, Way.SUBPROTOCOL),
        ({"query": [A]}, Way.QUERY),
        ({"query": [A, A]}, Way.QUERY),
        ({"authorization": ["Basic dXNlcjpwYXNz"], "query": [A]}, Way.QUERY),
        (
            {"authorization": [f"Bearer {A}"], "protocols": [f"bearer.{A}"], "query": [A]},
            Way.AUTHORIZATION,
        ),
        ({"protocols": [f"bearer.{A}"], "query": [A]}, Way.SUBPROTOCOL),
    ],
)
def test_a_token_is_found_and_the_first_way_counts(given_: dict, way: Way) -> None:
    assert presented(**given_) == Presented(A, way)


@pytest.mark.parametrize(
    ("given_", "code"),
    [
        ({}, RefusalCode.NO_TOKEN),
        ({"authorization": ["Basic dXNlcjpwYXNz"]}, RefusalCode.NO_TOKEN),
        ({"protocols": ["keepline.v1", "graphql-ws"]}, RefusalCode.NO_TOKEN),
        ({"authorization": [f"Bearer {A}"], "query": [B]}, RefusalCode.CONFLICTING_TOKENS),
        ({"authorization": [f"Bearer {A}", f"Bearer {B}"]}, RefusalCode.CONFLICTING_TOKENS),
        ({"protocols": [f"bearer.{A}, bearer.{B}"]}, RefusalCode.CONFLICTING_TOKENS),
        ({"query": [A, B]}, RefusalCode.CONFLICTING_TOKENS),
        ({"query": [A, ""]}, RefusalCode.CONFLICTING_TOKENS),
        ({"query": [""]}, RefusalCode.BAD_TOKEN),
        ({"authorization": ["Bearer"]}, RefusalCode.BAD_TOKEN),
        ({"authorization": ["Bearer a b.c.d"]}, RefusalCode.BAD_TOKEN),
        ({"query": ["a.b.c.d"]}, RefusalCode.BAD_TOKEN),
        ({"query": ["a.b.ç"]}, RefusalCode.BAD_TOKEN),
        ({"query": ["a.b.c\n"]}, RefusalCode.BAD_TOKEN),
        ({"query": ["a.b." + "c" * LONGEST_TOKEN]}, RefusalCode.BAD_TOKEN),
    ],
)
def test_what_is_no_single_token_is_refused(given_: dict, code: RefusalCode) -> None:
    refusal = presented(**given_)
    assert isinstance(refusal, Refusal)
    assert refusal.code is code


@given(st.lists(st.text()), st.lists(st.text()), st.lists(st.text()))
def test_whatever_comes_is_a_token_or_a_refusal(fields: list, protocols: list, query: list) -> None:
    found = presented(authorization=fields, protocols=protocols, query=query)
    assert isinstance(found, Presented | Refusal)


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ([], None),
        ([f"bearer.{A}"], None),
        (["KEEPLINE.V1"], None),
        ([f"bearer.{A}, keepline.v1"], SUBPROTOCOL),
        ([f"bearer.{A}", "x,keepline.v1"], SUBPROTOCOL),
    ],
)
def test_the_answer_is_the_protocols_name_and_never_the_token(offered: list, answer: str) -> None:
    assert chosen_subprotocol(offered) == answer


def test_a_repr_shows_the_way_only() -> None:
    assert repr(Presented(A, Way.QUERY)) == "<Presented by query>"
