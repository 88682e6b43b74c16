"""Claims about the fault table."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.sandbox.faults import KINDS, ROUTES, Faults, Plan

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "reference" / "sandbox.md"


def in_force(now: float = 0.0, **description: Any) -> Faults:
    faults = Faults()
    faults.add(description, now=now)
    return faults


def plan(faults: Faults, route: str = "token", *, now: float = 0.0) -> Plan:
    return faults.plan(route, now=now)


def test_without_faults_nothing_is_suffered() -> None:
    assert plan(Faults()) == Plan()


def test_a_fault_strikes_as_often_as_its_count_says() -> None:
    faults = in_force(fault="5xx", count=2)
    assert [plan(faults).reply is not None for _ in range(3)] == [True, True, False]
    assert faults.in_force(now=0) == []


def test_a_fault_ends_with_its_seconds() -> None:
    faults = in_force(now=100, fault="5xx", seconds=10)
    assert plan(faults, now=109.9).struck == ("5xx",)
    assert plan(faults, now=110).struck == ()


def test_without_count_and_seconds_a_single_mishap_strikes_once_and_a_state_lasts() -> None:
    assert [f.left for f in in_force(fault="5xx").in_force(now=0)] == [1]
    assert [f.left for f in in_force(fault="outage").in_force(now=0)] == [None]
    assert [f.until for f in in_force(fault="outage").in_force(now=0)] == [math.inf]


def test_faults_that_answer_line_up_as_a_script() -> None:
    faults = Faults()
    for name in ("5xx", "429", "answer_lost"):
        faults.add({"fault": name}, now=0)
    assert [plan(faults).struck for _ in range(4)] == [("5xx",), ("429",), ("answer_lost",), ()]


def test_faults_that_change_an_answer_apply_together() -> None:
    faults = Faults()
    for description in (
        {"fault": "slow", "delay": 2},
        {"fault": "slow", "delay": 1.5},
        {"fault": "rotate", "enabled": False},
        {"fault": "clock_skew", "skew": -30},
        {"fault": "no_refresh_token"},
        {"fault": "5xx", "status": 502},
    ):
        faults.add(description, now=0)
    suffered = plan(faults)
    assert (suffered.delay, suffered.rotate, suffered.skew) == (3.5, False, -30)
    assert suffered.without == {"refresh_token"}
    assert suffered.reply is not None
    assert suffered.reply.status == 502


def test_a_fault_keeps_to_its_routes() -> None:
    faults = in_force(fault="5xx", on="login", count=5)
    assert plan(faults, "token") == Plan()
    assert plan(faults, "login").struck == ("5xx",)
    assert in_force(fault="5xx", on=["token", "api"]).in_force(now=0)[0].on == ("token", "api")
    assert plan(in_force(fault="refuse"), "api") == Plan()


def test_an_outage_cuts_every_route_before_any_work() -> None:
    faults = in_force(fault="outage")
    assert all(plan(faults, route).cut for route in ROUTES)


def test_a_lost_answer_is_lost_after_the_work() -> None:
    suffered = plan(in_force(fault="answer_lost"))
    assert suffered.lose
    assert not suffered.cut
    assert suffered.reply is None


def reply_of(route: str = "token", **description: Any) -> Any:
    return plan(in_force(**description), route).reply


def test_a_refusal_speaks_each_issuer_s_language() -> None:
    oauth = reply_of(fault="refuse", code="invalid_client", status=401)
    assert (oauth.status, oauth.body["error"]) == (401, "invalid_client")
    login = reply_of("login", fault="refuse", error_code=7, description="sign first")
    assert login.status == 200
    assert login.body == {
        "token": None,
        "success": False,
        "errorCode": 7,
        "errorMessage": "sign first",
    }
    validate = reply_of("validate", fault="refuse")
    assert (validate.body["success"], validate.body["newToken"]) == (False, None)
    assert "token" not in reply_of("logout", fault="refuse", on="logout").body


def test_too_many_requests_with_and_without_a_time() -> None:
    assert reply_of(fault="429").headers == {}
    assert reply_of(fault="429", retry_after=None).headers == {}
    assert reply_of(fault="429", retry_after=2.5).headers == {"Retry-After": "2.5"}


def test_an_html_page_takes_the_place_of_json() -> None:
    reply = reply_of(fault="html")
    assert reply.status == 403
    assert reply.body.startswith("<html>")
    assert reply_of(fault="html", status=200).status == 200


def test_a_refusal_of_an_order_speaks_each_broker_s_language() -> None:
    def refused(broker: str) -> Any:
        faults = in_force(fault="refuse", on="order", error_code=2, description="no")
        return faults.plan("order", now=0, broker=broker).reply

    assert refused("projectx").body == {"success": False, "errorCode": 2, "errorMessage": "no"}
    assert refused("schwab").body == {"message": "no", "errors": ["no"]}
    assert (refused("projectx").status, refused("schwab").status) == (200, 400)


@pytest.mark.parametrize("route", ["order", "modify", "cancel", "close"])
def test_the_answer_to_what_changes_orders_may_be_lost(route: str) -> None:
    assert plan(in_force(fault="order_answer_lost"), route).lose
    assert plan(in_force(fault="order_answer_lost"), "query") == Plan()


def test_work_may_be_done_later_than_an_error_is_answered() -> None:
    def late(broker: str = "schwab", **more: Any) -> Plan:
        return in_force(fault="late_accept", **more).plan("order", now=0, broker=broker)

    assert (late().later, late().lose) == (8.0, False)
    assert late().reply is not None
    assert late().reply.status == 504  # type: ignore[union-attr]
    page = late(answer="html", status=200, after=0).reply
    assert page is not None
    assert (page.status, str(page.body)[:6]) == (200, "<html>")
    cut = late(answer="cut", after=3)
    assert (cut.later, cut.lose, cut.reply) == (3.0, True, None)
    number = late("projectx", error_code=7, description="it timed out").reply
    assert number is not None
    assert number.body == {"success": False, "errorCode": 7, "errorMessage": "it timed out"}
    assert late(error_code=7).reply == late().reply  # Schwab has no numbers


def test_terms_of_the_market_add_up() -> None:
    faults = Faults()
    for description in (
        {"fault": "duplicate_tag", "policy": "original"},
        {"fault": "no_location"},
        {"fault": "partial_fill_then_cut", "part": 0.25, "after": 3},
        {"fault": "clock_skew", "skew": 5},
    ):
        faults.add(description, now=0)
    terms = plan(faults, "order").terms
    assert (terms.duplicates, terms.location, terms.part, terms.pause, terms.skew) == (
        "original", False, 0.25, 3.0, 5.0,
    )  # fmt: skip
    again = plan(faults, "order")
    assert again.struck == ("duplicate_tag", "clock_skew")


def test_revoke_is_over_when_it_is_done() -> None:
    faults = Faults()
    fault = faults.add({"fault": "revoke", "what": "access", "on": "token"}, now=0)
    assert fault.parameters == {"what": "access"}
    assert faults.in_force(now=0) == []


def test_clearing_ends_all() -> None:
    faults = in_force(fault="outage")
    assert faults.clear() == 1
    assert plan(faults) == Plan()


@pytest.mark.parametrize(
    ("description", "key", "words"),
    [
        ({}, "fault", "known: refuse, 5xx"),
        ({"fault": "nope"}, "fault", "no such fault: 'nope'; known: refuse, 5xx"),
        ({"fault": ["refuse"]}, "fault", "no such fault"),
        ({"fault": "slow", "dely": 1}, "dely", "known: count, seconds, on, delay"),
        ({"fault": "slow", "delay": -1}, "delay", "a number from 0 up is needed"),
        ({"fault": "slow", "delay": None}, "delay", "a number is needed"),
        ({"fault": "slow", "delay": True}, "delay", "a number is needed"),
        ({"fault": "slow", "delay": "5"}, "delay", "a number is needed"),
        ({"fault": "slow", "delay": 10**400}, "delay", "a number is needed"),
        ({"fault": "clock_skew", "skew": float("nan")}, "skew", "a number is needed"),
        ({"fault": "5xx", "status": 99}, "status", "from 200 to 599"),
        ({"fault": "5xx", "count": 0}, "count", "a whole number from 1 up"),
        ({"fault": "5xx", "count": 1.5}, "count", "a whole number from 1 up"),
        ({"fault": "5xx", "seconds": -1}, "seconds", "a number from 0 up"),
        ({"fault": "5xx", "on": "everything"}, "on", "names of routes"),
        ({"fault": "5xx", "on": 5}, "on", "names of routes"),
        ({"fault": "5xx", "on": []}, "on", "names of routes"),
        (
            {"fault": "silent", "on": ["user_hub", "token"]},
            "on",
            "user_hub, market_hub, test_hub, streamer",
        ),
        ({"fault": "rotate", "enabled": 1}, "enabled", "true or false is needed"),
        ({"fault": "refuse", "code": 5}, "code", "a text is needed"),
        ({"fault": "refuse", "error_code": 1.5}, "error_code", "a whole number"),
        ({"fault": "revoke", "what": "me"}, "what", "access or all"),
        ({"fault": "duplicate_tag", "policy": "maybe"}, "policy", "refuse or accept or original"),
        ({"fault": "late_accept", "answer": []}, "answer", "error or html or cut"),
        ({"fault": "late_accept", "on": "query"}, "on", "order, modify, cancel, close"),
        ({"fault": "partial_fill_then_cut", "part": 1.5}, "part", "from 0 to 1"),
        ({"fault": "oversize_frame", "bytes": 10**12}, "bytes", "from 1 to 268435456"),
        ({"fault": "split_frames", "size": 0}, "size", "a whole number from 1 up"),
        ({"fault": "no_location", "on": "cancel"}, "on", "order, modify"),
    ],
)
def test_a_description_that_is_wrong_names_what_is_known(
    description: dict[str, object], key: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Faults().add(description, now=0)
    assert caught.value.key == key
    assert words in str(caught.value)


@given(
    st.dictionaries(
        st.sampled_from(["fault", "count", "seconds", "on", "delay", "status", "code", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.sampled_from(list(KINDS)),
    )
)
def test_any_description_is_a_fault_or_a_clear_refusal(description: dict[str, object]) -> None:
    faults = Faults()
    with contextlib.suppress(ConfigError):
        faults.add(description, now=0)
    for route in ROUTES:
        assert isinstance(plan(faults, route), Plan)


@pytest.mark.parametrize("name", KINDS)
def test_every_fault_is_a_line_of_the_reference(name: str) -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1
    for parameter, default in KINDS[name].parameters.items():
        told = str(default).lower() if default is None or isinstance(default, bool) else default
        shown = f"{told:g}" if isinstance(told, float) else told
        assert f"`{parameter}` = {shown}" in rows[0]


def test_the_reference_lists_no_fault_that_is_gone() -> None:
    _, _, faults = DOCUMENT.read_text().partition("## Faults")
    rows = [line.split("`")[1] for line in faults.splitlines() if line.startswith("| `")]
    assert rows == list(KINDS)
