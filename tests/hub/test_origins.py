"""Origins and hosts: equal or refused, whatever tricks a name plays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.hub.origins import HostRules, OriginRules, own_hosts, own_origins
from keepline.hub.refusals import RefusalCode

RULES = OriginRules(
    [
        "https://desk.example",
        "http://127.0.0.1:7999",
        "https://[2001:db8::1]:8443",
        "https://bücher.example",
    ]
)


@pytest.mark.parametrize(
    "origin",
    ["https://desk.example", "https://desk.example:443", "https://DESK.example", "http://127.0.0.1:7999",
     "https://[2001:db8::1]:8443", "https://[2001:DB8:0::1]:8443", "https://xn--bcher-kva.example"],
)  # fmt: skip
def test_an_origin_in_the_list_may_connect(origin: str) -> None:
    assert RULES.refusal([origin]) is None


@pytest.mark.parametrize(
    "origin",
    ["http://desk.example", "https://desk.example:8443", "https://desk.example:80", "http://desk.example:443",
     "https://desk.example.evil.example", "https://evil-desk.example", "https://a.desk.example", "https://desk.example.",
     "https://desk.example@evil.example", "https://user@desk.example", "https://user:pass@desk.example",
     "https://desk.example/", "https://desk.example/path", "https://desk.example?x", "https://desk.example#x",
     "https://desk.example\\@evil.example", "https://desk.example\n", " https://desk.example", "https://desk.example ",
     "https://desk.example, https://desk.example", "https://desk.example:", "https://desk.example:0443",
     "https://desk.example:99999", "https://desk.example:x", "null", "", "*", "https://", "https://*.example", "file://",
     "wss://desk.example", "desk.example", "//desk.example", "https:desk.example", "http://127.0.0.1",
     "http://127.1:7999", "http://2130706433:7999", "http://0177.0.0.1:7999", "http://localhost:7999",
     "https://[2001:db8::1]", "https://[2001:db8::1", "https://[::zz]:8443", "https://bücher.example",
     "https://desk\u3002example", "https://deſk.example", "chrome-extension://desk.example"],
)  # fmt: skip
def test_any_other_is_refused(origin: str) -> None:
    refusal = RULES.refusal([origin])
    assert refusal is not None
    assert refusal.code is RefusalCode.BAD_ORIGIN
    assert "Access-Control-Allow-Origin" not in RULES.cors([origin], preflight=True)


@given(st.text())
def test_no_text_is_an_origin_by_accident(text: str) -> None:
    assert RULES.refusal([text]) is not None
    assert (
        RULES.refusal([f"https://desk.example{text}"]) is None
        or text in ("", ":443")
        or RULES.refusal([f"https://desk.example{text}"])
    )


def test_without_origin_it_is_no_page_and_two_are_nobody() -> None:
    assert RULES.refusal([]) is None
    assert RULES.refusal(["https://desk.example", "https://desk.example"]) is not None


def test_cors_names_the_one_that_asked_and_never_allows_credentials() -> None:
    answer = RULES.cors(["https://desk.example"])
    assert answer == {"Vary": "Origin", "Access-Control-Allow-Origin": "https://desk.example"}
    asked = RULES.cors(["https://desk.example"], preflight=True)
    assert "Authorization" in asked["Access-Control-Allow-Headers"]
    assert asked["Access-Control-Allow-Methods"] == "GET, POST, OPTIONS"
    assert "Access-Control-Allow-Credentials" not in asked
    assert RULES.cors([]) == {"Vary": "Origin"}


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "desk.example", "https://*.example", "https://desk.example/app", "https://u@desk.example", "ftp://x",
     "https://desk.example.", "https://desk.example:0", "", "https://ü..example"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin"):
        OriginRules([origin])


def test_a_trailing_slash_is_forgiven_in_the_configuration() -> None:
    rules = OriginRules(["HTTPS://Desk.example/"])
    assert rules.refusal(["https://desk.example"]) is None
    assert repr(rules) == "<OriginRules https://desk.example>"
    assert repr(OriginRules()) == "<OriginRules none>"


HOSTS = HostRules(
    ["127.0.0.1", "localhost", "[::1]", "hub.example:8443", "2001:db8::7", "bücher.example:1"]
)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:7999", "localhost:1", "LocalHost", "[::1]:7999", "[0:0:0:0:0:0:0:1]", "hub.example:8443",
     "[2001:db8::7]:80", "xn--bcher-kva.example:1"],
)  # fmt: skip
def test_the_hub_goes_by_its_names(host: str) -> None:
    assert HOSTS.refusal([host]) is None


@pytest.mark.parametrize(
    "hosts",
    [[], [""], ["127.0.0.1", "127.0.0.1"], ["evil.example"], ["hub.example"], ["hub.example:443"], ["localhost."],
     ["localhost.evil.example"], ["127.0.0.1.evil.example"], ["evil.example:7999"], ["user@localhost"], ["localhost/x"],
     ["localhost, localhost"], ["[::1"], ["::1"], ["10.0.0.9"], ["localhost:0"], ["localhost:70000"], ["ｌocalhost"]],
)  # fmt: skip
def test_a_strangers_name_is_refused(hosts: list[str]) -> None:
    refusal = HOSTS.refusal(hosts)
    assert refusal is not None
    assert (refusal.code, refusal.status) == (RefusalCode.BAD_HOST, 421)


def test_addresses_can_be_taken_all_since_no_name_was_resolved() -> None:
    rules = HostRules([], any_address=True)
    assert rules.refusal(["10.0.0.9:7999"]) is None
    assert rules.refusal(["[2001:db8::1]"]) is None
    assert rules.refusal(["evil.example"]) is not None
    assert rules.refusal(["10.0.0.9.evil.example"]) is not None


@pytest.mark.parametrize("host", ["", "a b", "*", "*.example", "http://x", "x/", "a:b"])
def test_what_is_no_host_is_refused_at_the_start(host: str) -> None:
    with pytest.raises(ConfigError, match="is not a host"):
        HostRules([host])


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", ["127.0.0.1", "localhost", "[::1]"]),
        ("::1", ["127.0.0.1", "localhost", "[::1]"]),
        ("localhost", ["127.0.0.1", "localhost", "[::1]"]),
        ("0.0.0.0", ["127.0.0.1", "localhost", "[::1]"]),
        ("", ["127.0.0.1", "localhost", "[::1]"]),
        ("10.0.0.5", ["127.0.0.1", "localhost", "[::1]", "10.0.0.5"]),
        ("2001:db8::1", ["127.0.0.1", "localhost", "[::1]", "[2001:db8::1]"]),
        ("hub.example", ["127.0.0.1", "localhost", "[::1]", "hub.example"]),
    ],
)
def test_a_listener_goes_by_its_own_names(host: str, names: list[str]) -> None:
    assert own_hosts(host) == names
    assert all(HostRules(names).refusal([f"{name}:7999"]) is None for name in names)
    assert all(
        OriginRules(own_origins(names, 7999, tls=True)).refusal([f"https://{n}:7999"]) is None
        for n in names
    )


def test_own_origins_are_written_as_browsers_do() -> None:
    assert own_origins(["a.example", "::1"], 80, tls=False) == ["http://a.example", "http://[::1]"]
    assert (
        repr(HOSTS)
        == "<HostRules 127.0.0.1, [2001:db8::7], [::1], hub.example:8443, localhost, xn--bcher-kva.example:1>"
    )
