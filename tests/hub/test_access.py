"""Rights: what the defaults allow, what the configuration changes, and that no spelling of a name widens anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.hub.access import (
    AccessRules,
    Action,
    Identity,
    Standing,
    is_channel_name,
    standing_refusal,
)
from keepline.hub.refusals import RefusalCode

CHANNELS = ("routing-metrics", "lp-performance", "exposure-updates", "alerts", "system")


def who(role: str, **changes: object) -> Identity:
    fields = {
        "user": "ann",
        "account": "",
        "issuer": "keepline",
        "issued_at": 100.0,
        "expires_at": 200.0,
    }
    return Identity(role=role, **(fields | changes))  # type: ignore[arg-type]


def granted(rules: AccessRules, role: str, action: Action) -> set[str]:
    return {name for name in CHANNELS if rules.refusal(who(role), action, name) is None}


@pytest.mark.parametrize(
    ("role", "action", "channels"),
    [
        ("admin", Action.SUBSCRIBE, set(CHANNELS)),
        ("admin", Action.PUBLISH, set(CHANNELS)),
        ("admin", Action.ACKNOWLEDGE, set(CHANNELS)),
        ("trader", Action.SUBSCRIBE, {"exposure-updates", "alerts"}),
        ("trader", Action.PUBLISH, set()),
        ("trader", Action.ACKNOWLEDGE, {"alerts"}),
        ("viewer", Action.SUBSCRIBE, {"alerts", "lp-performance"}),
        ("viewer", Action.PUBLISH, set()),
        ("viewer", Action.ACKNOWLEDGE, set()),
        ("service", Action.SUBSCRIBE, set()),
        ("service", Action.PUBLISH, set(CHANNELS)),
        ("service", Action.ACKNOWLEDGE, set()),
        ("stranger", Action.SUBSCRIBE, set()),
        ("", Action.SUBSCRIBE, set()),
        ("Admin", Action.SUBSCRIBE, set()),
        ("admin ", Action.SUBSCRIBE, set()),
    ],
)
def test_the_defaults_are_the_contracts(role: str, action: Action, channels: set[str]) -> None:
    assert granted(AccessRules(), role, action) == channels


@pytest.mark.parametrize(
    "name",
    ["ALERTS", "Alerts", "alerts ", " alerts", "alerts\n", "alerts\0", "al*", "*", "?lerts", "[a]lerts", "alerts/",
     "../alerts", "alerts.", ".alerts", "alerts.*", "alerts,system", "ａｌｅｒｔｓ", "аlerts", "alert\u200bs",
     "alertſ", "", "-alerts", "a" * 65, 7, None, True, ["alerts"], {"a": 1}, b"alerts"],
)  # fmt: skip
def test_no_spelling_of_a_channel_widens_a_right(name: object) -> None:
    for role in ("admin", "viewer"):
        refusal = AccessRules().refusal(who(role), Action.SUBSCRIBE, name)
        assert refusal is not None
        assert refusal.code is RefusalCode.BAD_CHANNEL


@given(st.text())
def test_what_is_granted_is_granted_letter_by_letter(name: str) -> None:
    refusal = AccessRules().refusal(who("viewer"), Action.SUBSCRIBE, name)
    assert (refusal is None) == (name in {"alerts", "lp-performance"})


@given(st.text())
def test_a_channel_name_is_plain_ascii(name: str) -> None:
    if is_channel_name(name):
        assert name.isascii()
        assert name == name.lower().strip()


def test_the_configuration_replaces_all_rights_that_it_is_given() -> None:
    rules = AccessRules({"auditor": {"subscribe": ["*"]}, "admin": {}})
    assert granted(rules, "auditor", Action.SUBSCRIBE) == set(CHANNELS)
    assert granted(rules, "admin", Action.SUBSCRIBE) == set()
    assert rules.allowed(who("auditor"), Action.SUBSCRIBE, ["b", "a", "B"]) == ["b", "a"]
    assert repr(rules) == "<AccessRules for auditor>"
    assert repr(AccessRules({})) == "<AccessRules for nobody>"


@pytest.mark.parametrize(
    ("rights", "words"),
    [
        (
            {"viewer": {"read": ["alerts"]}},
            "no such action; there is subscribe, publish, acknowledge",
        ),
        ({"viewer": {"subscribe": ["alerts*"]}}, "there are no patterns"),
        ({"viewer": {"subscribe": ["Alerts"]}}, "not a channel's name"),
        ({"viewer": {"subscribe": "alerts"}}, "expected a list of channels"),
        ({"a viewer": {"subscribe": []}}, "a role is"),
    ],
)
def test_rights_that_make_no_sense_are_refused_at_the_start(rights: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        AccessRules(rights)
    assert error.value.key.startswith("rights.")


def test_only_overseers_see_who_is_connected() -> None:
    assert AccessRules().oversight_refusal(who("admin")) is None
    refusal = AccessRules().oversight_refusal(who("trader"))
    assert refusal is not None
    assert refusal.code is RefusalCode.FORBIDDEN
    assert AccessRules(overseers=["trader"]).oversight_refusal(who("trader")) is None


class Book:
    def __init__(self, standing: Standing | None, revoked: float | None = None) -> None:
        self._standing, self._revoked = standing, revoked

    def standing(self, user: str) -> Standing | None:
        return self._standing

    def revoked_before(self, user: str) -> float | None:
        return self._revoked


@pytest.mark.parametrize(
    ("book", "issuer", "stands"),
    [
        (Book(Standing("viewer")), "keepline", True),
        (Book(None), "keepline", False),
        (Book(Standing("viewer", disabled=True)), "keepline", False),
        (Book(Standing("admin")), "keepline", False),
        (Book(Standing("viewer", account="U1")), "keepline", False),
        (Book(Standing("viewer"), revoked=99.9), "keepline", True),
        (Book(Standing("viewer"), revoked=100.0), "keepline", False),
        (Book(Standing("viewer"), revoked=100.1), "keepline", False),
        (Book(None), "elsewhere", True),
        (Book(Standing("viewer", disabled=True)), "elsewhere", True),
        (Book(None, revoked=100.0), "elsewhere", False),
    ],
)
def test_a_token_stands_while_its_user_does(book: Book, issuer: str, stands: bool) -> None:
    refusal = standing_refusal(who("viewer", issuer=issuer), book, own_issuer="keepline")
    assert (refusal is None) == stands
    if refusal is not None:
        assert refusal.code is RefusalCode.REVOKED
