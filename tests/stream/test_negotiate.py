"""Negotiation: URLs that keep their query, replies in words, transports in order."""

import pytest

from keepline.errors import ConfigError
from keepline.stream.negotiate import (
    Negotiated,
    NegotiateError,
    Offer,
    Redirect,
    choose_transports,
    connect_url,
    negotiate_url,
    read_reply,
    websocket_url,
    write_reply,
)

NEGOTIATE_URLS = [
    ("https://h/hub", "https://h/hub/negotiate?negotiateVersion=1"),
    ("https://h/hub/", "https://h/hub/negotiate?negotiateVersion=1"),
    ("https://h", "https://h/negotiate?negotiateVersion=1"),
    ("wss://h:8443/hub?a=1&b=x%20y", "https://h:8443/hub/negotiate?a=1&b=x%20y&negotiateVersion=1"),
    ("ws://h/hub?negotiateVersion=0", "http://h/hub/negotiate?negotiateVersion=0"),
    ("https://h/hub?a=#fragment", "https://h/hub/negotiate?a=&negotiateVersion=1"),
    ("HTTPS://h/hub", "https://h/hub/negotiate?negotiateVersion=1"),
]


@pytest.mark.parametrize(("url", "asked"), NEGOTIATE_URLS)
def test_the_question_is_behind_the_path_and_keeps_the_query(url: str, asked: str) -> None:
    assert negotiate_url(url) == asked


def test_stateful_reconnect_is_asked_for_in_the_query() -> None:
    asked = negotiate_url("https://h/hub?useStatefulReconnect=false", stateful=True)
    assert asked == "https://h/hub/negotiate?useStatefulReconnect=false&negotiateVersion=1"
    assert negotiate_url("https://h/hub", stateful=True).endswith("=1&useStatefulReconnect=true")


@pytest.mark.parametrize(
    "url",
    [
        "", "h/hub", "ftp://h/hub", "https://", "https:///hub", "https://h:x/", "https://[/", "https://a b/hub",
        "https://h:99999/hub",
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused_with_words(url: str) -> None:
    with pytest.raises(ConfigError, match="begins with https:// and a host name"):
        negotiate_url(url)


@pytest.mark.parametrize("address", ["me:secret@h", "secret@h"])
def test_a_password_in_an_address_is_refused_unseen(address: str) -> None:
    with pytest.raises(ConfigError, match="no user name and no password") as caught:
        connect_url(f"https://{address}/hub")
    assert "secret" not in str(caught.value)


def test_a_connection_has_its_token_once_and_escaped() -> None:
    assert connect_url("https://h/hub?a=1", "t+/=") == "https://h/hub?a=1&id=t%2B%2F%3D"
    assert connect_url("https://h/hub?id=old&a=1", "new") == "https://h/hub?a=1&id=new"
    assert connect_url("wss://h/hub", access_token="a b") == "https://h/hub?access_token=a%20b"
    assert (
        connect_url("wss://h/hub?access_token=old", access_token="new")
        == "https://h/hub?access_token=new"
    )
    assert connect_url("https://h/hub?id=mine") == "https://h/hub?id=mine"
    assert websocket_url("https://h/hub?id=1") == "wss://h/hub?id=1"
    assert websocket_url("ws://h/hub") == "ws://h/hub"


def offers(text: str = "[]") -> str:
    return f'"availableTransports":{text}'


TEST = '[{"transport":"WebSockets","transferFormats":["Text","Binary"]}]'
ALL = (Offer("WebSockets", ("Text", "Binary")),)
REPLIES = [
    (f'{{"connectionId":"a",{offers()}}}', Negotiated("a", "a", (), 0)),
    (f'{{"connectionId":"",{offers()}}}', Negotiated("", "", (), 0)),
    (f'{{"connectionId":"a","connectionToken":"b",{offers()}}}', Negotiated("a", "b", (), 0)),
    (f'{{{offers(TEST)},"negotiateVersion":1,"connectionToken":"b","connectionId":"a"}}', Negotiated("a", "b", ALL)),
    (f'{{"connectionId":"a","connectionToken":"b","negotiateVersion":1,"connectionToken":"c",{offers()}}}',
     Negotiated("a", "c", ())),
    (f'{{"new":{{}},"connectionId":"a",{offers()},"tokenLifetimeSeconds":60}}',
     Negotiated("a", "a", (), 0, False, 60)),
    ('{"url":"https://else/hub?a=1"}', Redirect("https://else/hub?a=1")),
    ('{"url":"https://else/hub","accessToken":"t"}', Redirect("https://else/hub", "t")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reply"), REPLIES)
def test_a_reply_is_read(text: str, reply: Negotiated | Redirect) -> None:
    assert read_reply(text.encode()) == reply


ERRORS = [
    ("null", "not one"), ("[]", "not one"), ("{}", "no 'connectionId'"), (f"{{{offers()}}}", "no 'connectionId'"),
    ('{"connectionId":"a"}', "no 'availableTransports'"), (f'{{"connectionId":1,{offers()}}}', "connectionId"),
    (f'{{"connectionId":"a",{offers("null")}}}', "availableTransports"),
    (f'{{"connectionId":"a",{offers("[{}]")}}}', "transport"),
    ('{"connectionId":"a","availableTransports":[{"transport":"t"}]}', "transferFormats"),
    (f'{{"connectionId":"a","negotiateVersion":1,{offers()}}}', "no 'connectionToken'"),
    (f'{{"connectionId":"a","useStatefulReconnect":true,{offers()}}}', "nobody asked"),
    ('{"error":"The client requested a non-integer protocol version."}', "non-integer"),
    ('{"Url":"/signalr","ConnectionToken":"x","ProtocolVersion":"1.5"}', "old ASP.NET SignalR"),
    ("<!DOCTYPE html><title>Sign in</title>", "a web page came"), ("", "not JSON"), ("{", "not JSON"),
    ("\xff", "not JSON"), ('{"a":' + "[" * 100_000, "not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), ERRORS, ids=[words for _, words in ERRORS])
def test_a_reply_that_helps_nobody_has_words(text: str, words: str) -> None:
    reply = read_reply(text.encode("latin-1"))
    assert isinstance(reply, NegotiateError)
    assert words in reply.reason


def test_a_page_is_known_by_its_content_type_too() -> None:
    reply = read_reply(b"Welcome", content_type="text/HTML; charset=utf-8")
    assert isinstance(reply, NegotiateError)
    assert "a web page came" in reply.reason


def test_stateful_reconnect_is_granted_when_it_was_asked_for() -> None:
    text = f'{{"connectionId":"a","useStatefulReconnect":true,{offers()}}}'.encode()
    granted = read_reply(text, stateful=True)
    assert isinstance(granted, Negotiated)
    assert granted.stateful


WRITTEN = [
    Negotiated("a", "b", ALL), Negotiated("a", "a", (), 0), Negotiated("a", "b", ALL, 1, True, 30.0),
    Redirect("https://else/hub"), Redirect("https://else/hub", "t"),
]  # fmt: skip


@pytest.mark.parametrize("reply", WRITTEN)
def test_what_a_server_writes_is_read(reply: Negotiated | Redirect) -> None:
    assert read_reply(write_reply(reply), stateful=True) == reply


def test_a_server_writes_errors_and_no_token_in_version_0() -> None:
    assert write_reply(NegotiateError("no")) == b'{"error":"no"}'
    assert b"connectionToken" not in write_reply(Negotiated("a", "a", (), 0))


def test_no_secret_is_shown() -> None:
    made = Negotiated("public", "secret-1", ALL)
    elsewhere = Redirect("https://else/hub?access_token=secret-2", "secret-3")
    shown = f"{made!r} {elsewhere!r}"
    assert "secret" not in shown
    assert "public" in shown
    assert "https://else/hub" in shown


SERVER = (
    Offer("WebSockets", ("Text", "Binary")),
    Offer("ServerSentEvents", ("Text",)),
    Offer("LongPolling", ("Text", "Binary")),
    Offer("Telepathy", ("Text", "Binary")),
)
ALL_THREE = ("websockets", "events", "polling")
CHOICES = [
    (SERVER, ALL_THREE, False, ALL_THREE),
    (SERVER, ("polling", "websockets"), False, ("websockets", "polling")),
    (SERVER, ALL_THREE, True, ("websockets", "polling")),
    ((Offer("ServerSentEvents", ("Text", "Binary")), SERVER[2]), ALL_THREE, True, ("polling",)),
    ((Offer("WebSockets", ("Binary",)), SERVER[1]), ALL_THREE, False, ("events",)),
    ((SERVER[2], SERVER[0], SERVER[2]), ALL_THREE, False, ("polling", "websockets")),
]


@pytest.mark.parametrize(("offered", "wanted", "binary", "chosen"), CHOICES)
def test_transports_are_tried_in_the_servers_order(
    offered: tuple[Offer, ...], wanted: tuple[str, ...], binary: bool, chosen: tuple[str, ...]
) -> None:
    assert choose_transports(offered, wanted, binary=binary) == chosen


def test_without_a_common_transport_both_sides_are_named() -> None:
    failure = choose_transports(SERVER[1:2], ("events",), binary=True)
    assert isinstance(failure, NegotiateError)
    assert "events with Binary frames" in failure.reason
    assert "ServerSentEvents (Text)" in failure.reason
    nothing = choose_transports((), ("events",), binary=False)
    assert isinstance(nothing, NegotiateError)
    assert "offers none" in nothing.reason
