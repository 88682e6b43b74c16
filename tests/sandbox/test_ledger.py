"""Claims about sign-ins and the tokens that came from them."""

from hypothesis import given
from hypothesis import strategies as st

from keepline.sandbox.ledger import Family, Ledger, Verdict


def opened(ledger: Ledger, *, refresh: str = "r1", deadline: float = 1000.0) -> Family:
    family = ledger.open(deadline, now=0)
    ledger.rotate(family, refresh, now=0)
    return family


def verdict(ledger: Ledger, refresh: str, *, now: float = 0.0, grace: float = 0.0) -> Verdict:
    return ledger.look_up(refresh, grace=grace, now=now)[0]


def test_an_unknown_token_belongs_to_nobody() -> None:
    assert Ledger().look_up("x", grace=0, now=0) == (Verdict.UNKNOWN, None)


def test_the_newest_token_is_live_and_the_spent_one_is_reuse() -> None:
    ledger = Ledger()
    family = opened(ledger)
    ledger.rotate(family, "r2", now=10)
    assert verdict(ledger, "r2", now=10) is Verdict.LIVE
    assert verdict(ledger, "r1", now=10) is Verdict.REUSED


def test_within_the_grace_only_the_token_before_the_live_one_is_forgiven() -> None:
    ledger = Ledger()
    family = opened(ledger)
    ledger.rotate(family, "r2", now=10)
    ledger.rotate(family, "r3", now=20)
    assert verdict(ledger, "r2", now=29.9, grace=10) is Verdict.GRACE
    assert verdict(ledger, "r2", now=30, grace=10) is Verdict.REUSED
    assert verdict(ledger, "r1", now=20, grace=10) is Verdict.REUSED


def test_the_deadline_ends_even_the_live_token_and_rotation_never_moves_it() -> None:
    ledger = Ledger()
    family = opened(ledger, deadline=100)
    ledger.rotate(family, "r2", now=99)
    assert verdict(ledger, "r2", now=99.9) is Verdict.LIVE
    assert verdict(ledger, "r2", now=100) is Verdict.EXPIRED


def test_a_revoked_family_takes_its_access_tokens_along() -> None:
    ledger = Ledger()
    family = opened(ledger)
    ledger.grant(family, "a1", 50, now=0)
    assert ledger.accepts("a1", now=49.9)
    assert not ledger.accepts("a1", now=50)
    assert ledger.revoke(family) is True
    assert ledger.revoke(family) is False
    assert not ledger.accepts("a1", now=1)
    assert verdict(ledger, "r1") is Verdict.REVOKED


def test_access_tokens_may_die_early_while_the_refresh_token_lives_on() -> None:
    ledger = Ledger()
    family = opened(ledger)
    ledger.grant(family, "a1", 50, now=0)
    ledger.forget_access()
    assert not ledger.accepts("a1", now=1)
    assert verdict(ledger, "r1") is Verdict.LIVE
    ledger.grant(family, "a2", 150, now=100)
    assert ledger.accepts("a2", now=100)


def test_what_is_over_is_forgotten_when_a_new_sign_in_comes() -> None:
    ledger = Ledger()
    family = opened(ledger, deadline=100)
    ledger.grant(family, "a1", 50, now=0)
    other = ledger.open(1000, now=99)
    ledger.rotate(other, "s1", now=99)
    assert verdict(ledger, "r1", now=99) is Verdict.LIVE
    ledger.open(1000, now=100)
    assert verdict(ledger, "r1", now=100) is Verdict.UNKNOWN
    assert not ledger.accepts("a1", now=10)
    assert verdict(ledger, "s1", now=100) is Verdict.LIVE


def test_all_sign_ins_end_at_once_and_are_counted_once() -> None:
    ledger = Ledger()
    opened(ledger)
    opened(ledger, refresh="s1")
    assert ledger.revoke_all() == 2
    assert ledger.revoke_all() == 0


@given(st.lists(st.floats(0, 900), min_size=1, max_size=30), st.floats(0, 100))
def test_of_all_tokens_that_a_family_ever_had_exactly_one_is_live(
    moments: list[float], grace: float
) -> None:
    ledger = Ledger()
    family = opened(ledger, refresh="r0")
    now = 0.0
    for count, now in enumerate(sorted(moments), start=1):
        ledger.rotate(family, f"r{count}", now=now)
    verdicts = [
        verdict(ledger, f"r{index}", now=now, grace=grace) for index in range(len(moments) + 1)
    ]
    assert verdicts.count(Verdict.LIVE) == 1
    assert verdicts[-1] is Verdict.LIVE
    assert verdicts.count(Verdict.GRACE) == (1 if grace > 0 else 0)
