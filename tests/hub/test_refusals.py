"""Refusals: each code has a status, words and a row on the page."""

import re
from pathlib import Path

import pytest

from keepline.hub.refusals import RefusalCode, refuse

PAGE = (Path(__file__).parents[2] / "docs/reference/hub-access.md").read_text()


@pytest.mark.parametrize("code", list(RefusalCode))
def test_each_code_has_status_words_and_its_row(code: RefusalCode) -> None:
    refusal = refuse(code)
    assert refusal.words
    assert refusal.status in (400, 401, 403, 421, 429, 503)
    assert f"| `{code}` | {refusal.status} |" in PAGE


def test_the_page_has_no_other_code() -> None:
    table = PAGE.split("## Refusals")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(RefusalCode)


def test_what_time_or_a_new_token_heals_says_come_back() -> None:
    assert {code for code in RefusalCode if refuse(code).come_back} == {
        RefusalCode.EXPIRED,
        RefusalCode.NOT_YET_VALID,
        RefusalCode.KEYS_UNAVAILABLE,
        RefusalCode.THROTTLED,
        RefusalCode.BUSY,
    }


def test_better_words_and_a_wait_may_be_given() -> None:
    refusal = refuse(RefusalCode.THROTTLED, "later", retry_after=2.0)
    assert (refusal.words, refusal.retry_after, refusal.status) == ("later", 2.0, 429)
