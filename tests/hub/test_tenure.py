"""Expiry on live connections: one notice, the end, and a refresh of the same user."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.hub.access import Identity
from keepline.hub.refusals import RefusalCode
from keepline.hub.tenure import Ended, Expiring, Tenure

START = 1_000.0


def who(
    expires_at: float, *, user: str = "ann", issuer: str = "keepline", role: str = "viewer"
) -> Identity:
    return Identity(user, role, "", issuer, START, expires_at)


def test_a_client_is_told_once_and_then_closed() -> None:
    tenure = Tenure(who(START + 600), leeway_seconds=30, notice_seconds=60)
    assert tenure.deadline == START + 540
    assert tenure.due(START + 539.9) is None
    assert tenure.due(START + 540) == Expiring(START + 600, 60.0)
    assert tenure.deadline == tenure.ends_at == START + 630
    assert tenure.due(START + 629.9) is None
    ended = tenure.due(START + 630)
    assert isinstance(ended, Ended)
    assert ended.refusal.code is RefusalCode.EXPIRED
    assert ended.refusal.come_back
    assert repr(tenure) == "<Tenure until 1630>"


def test_a_short_life_is_announced_in_its_second_half() -> None:
    tenure = Tenure(who(START + 40), leeway_seconds=0, notice_seconds=60)
    assert tenure.deadline == START + 20


def test_a_notice_within_the_leeway_says_nothing_is_left() -> None:
    tenure = Tenure(who(START + 100), leeway_seconds=30)
    assert tenure.due(START + 110) == Expiring(START + 100, 0.0)


def test_a_refresh_of_the_same_user_goes_on_and_is_announced_anew() -> None:
    tenure = Tenure(who(START + 100), leeway_seconds=0)
    assert isinstance(tenure.due(START + 60), Expiring)
    assert tenure.refresh(who(START + 900, role="trader"), START + 61) is None
    assert tenure.identity.role == "trader"
    assert tenure.due(START + 100) is None
    assert tenure.due(START + 840) == Expiring(START + 900, 60.0)


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        (who(START + 900, user="bob"), RefusalCode.OTHER_USER),
        (who(START + 900, user="Ann"), RefusalCode.OTHER_USER),
        (who(START + 900, issuer="elsewhere"), RefusalCode.OTHER_USER),
        (who(START + 20), RefusalCode.EXPIRED),
    ],
)
def test_another_user_or_a_dead_token_changes_nothing(
    identity: Identity, code: RefusalCode
) -> None:
    tenure = Tenure(who(START + 100), leeway_seconds=30)
    refusal = tenure.refresh(identity, START + 50)
    assert refusal is not None
    assert refusal.code is code
    assert tenure.ends_at == START + 130
    assert tenure.identity.user == "ann"


@given(st.lists(st.floats(0, 3000)), st.floats(1, 2000))
def test_however_the_clock_jumps_the_end_is_the_end_and_the_notice_comes_once(
    looks: list[float], life: float
) -> None:
    tenure = Tenure(who(START + life), leeway_seconds=30)
    told = 0
    for offset in looks:
        due = tenure.due(START + offset)
        assert isinstance(due, Ended) == (START + offset >= tenure.ends_at)
        told += isinstance(due, Expiring)
    assert told <= 1
