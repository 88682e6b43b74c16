"""Claims about the hubs' deciders: calls, ids, market data, subscriptions, frames."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.sandbox.book import Kind, Side, Ticket
from keepline.sandbox.market import Market
from keepline.sandbox.signalr_calls import Method, checked, methods
from keepline.sandbox.signalr_endpoint import WINDOW, Endpoint, Place, Seat, Transport
from keepline.sandbox.signalr_frames import joined, pieces, strange
from keepline.sandbox.signalr_hubs import Book, Feed, Topic, after
from keepline.sandbox.signalr_tape import LEVELS, Depth, Tape
from keepline.stream.codec import codec
from keepline.stream.messages import Completion, Malformed, Sequence

MES = "CON.F.US.MES.Z26"
NOW = 1_767_623_400.0
TABLE = methods(
    (Method("Add", (int, float)), Method("Count", (int,), streaming=True), Method("Up", uploads=1))
)

FAILED = "Failed to invoke '{}' due to an error on the server."
MIXED = "The client attempted to invoke the {} '{}' method with a {} invocation."


# --- calls, in the words of the real server ---


@pytest.mark.parametrize(
    ("target", "arguments", "streaming", "uploads", "words"),
    [
        ("Nope", [], False, 0, f"{FAILED.format('Nope')} HubException: Method does not exist."),
        ("add", [1], False, 0, FAILED.format("add")),
        ("Add", ["1", 2], False, 0, FAILED.format("Add")),
        ("Add", [True, 2], False, 0, FAILED.format("Add")),
        ("Up", [], False, 0, FAILED.format("Up")),
        ("Count", [1], False, 0, MIXED.format("streaming", "Count", "non-streaming")),
        ("Add", [1, 2], True, 0, MIXED.format("non-streaming", "Add", "streaming")),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_is_answered_as_the_real_server_does(
    target: str, arguments: list[Any], streaming: bool, uploads: int, words: str
) -> None:
    assert checked(TABLE, target, arguments, streaming=streaming, uploads=uploads) == words


def test_a_method_is_found_in_any_case_and_a_whole_number_is_a_float() -> None:
    assert checked(TABLE, "aDD", [1, 2], streaming=False, uploads=0) is TABLE["add"]
    assert checked(TABLE, "up", [], streaming=False, uploads=1) is TABLE["up"]


# --- ids and places ---


def negotiated(endpoint: Endpoint, now: float = 0.0, **query: str) -> dict[str, Any]:
    body: Any = endpoint.negotiate({"negotiateVersion": "1", **query}, now=now).body
    assert isinstance(body, dict)
    return body


def seat_of(
    endpoint: Endpoint,
    token: str | None,
    now: float = 0.0,
    how: Transport = Transport.WEBSOCKETS,
) -> Seat:
    seat = endpoint.attach(token, how, now=now)
    assert isinstance(seat, Seat)
    return seat


def test_an_offer_names_both_ids_and_three_transports() -> None:
    offer = negotiated(Endpoint("user", seed=1))
    assert len(offer["connectionId"]) == len(offer["connectionToken"]) == 22
    assert offer["connectionId"] != offer["connectionToken"]
    assert "useStatefulReconnect" not in offer
    assert [(o["transport"], o["transferFormats"]) for o in offer["availableTransports"]] == [
        ("WebSockets", ["Text", "Binary"]),
        ("ServerSentEvents", ["Text"]),
        ("LongPolling", ["Text", "Binary"]),
    ]
    assert negotiated(Endpoint("user", seed=1)) == offer
    assert negotiated(Endpoint("user", seed=2)) != offer


def test_version_0_has_no_token_and_its_id_is_one() -> None:
    endpoint = Endpoint("user", seed=1)
    offer = negotiated(endpoint, negotiateVersion="0")
    assert "connectionToken" not in offer
    assert seat_of(endpoint, offer["connectionId"]).id == offer["connectionId"]


@pytest.mark.parametrize(
    ("version", "answer"),
    [("9", 1), ("x", "non-integer protocol version"), ("-1", "does not support this version")],
)
def test_a_version_that_cannot_be_is_refused_inside_of_a_200(version: str, answer: object) -> None:
    reply = Endpoint("user", seed=1).negotiate({"negotiateVersion": version}, now=0)
    body: Any = reply.body
    assert reply.status == 200
    assert body.get("negotiateVersion") == answer or str(answer) in body["error"]


def test_stateful_reconnect_is_granted_when_asked_for_and_by_a_fault() -> None:
    endpoint = Endpoint("user", seed=1)
    assert negotiated(endpoint, useStatefulReconnect="true")["useStatefulReconnect"] is True
    body: Any = endpoint.negotiate({}, now=0, unasked=True, offered=["LongPolling"]).body
    assert body["useStatefulReconnect"] is True
    assert [o["transport"] for o in body["availableTransports"]] == ["LongPolling"]


def test_a_connection_has_one_transport_and_one_socket() -> None:
    endpoint = Endpoint("user", seed=1)
    token = negotiated(endpoint)["connectionToken"]
    seat_of(endpoint, token)
    assert endpoint.attach(token, Transport.WEBSOCKETS, now=0) == 409
    assert endpoint.attach(token, Transport.POLLING, now=0) == 409
    assert endpoint.attach("no such id", Transport.EVENTS, now=0) == 404
    assert endpoint.attach(None, Transport.EVENTS, now=0) == 400
    assert seat_of(endpoint, None).place is Place.ATTACHED  # negotiation skipped


def test_a_window_passes_and_then_the_connection_is_gone() -> None:
    endpoint = Endpoint("user", seed=1)
    token = negotiated(endpoint)["connectionToken"]
    seat = seat_of(endpoint, token)
    endpoint.detach(seat, keep=True, now=10)
    assert endpoint.find(token, now=10 + WINDOW - 0.1) is seat
    seat_of(endpoint, token, now=11)
    endpoint.detach(seat, keep=True, now=20)
    assert endpoint.sweep(now=20 + WINDOW) == [seat]
    assert endpoint.attach(token, Transport.WEBSOCKETS, now=20 + WINDOW) == 404
    endpoint.detach(seat, keep=True, now=40)
    assert seat.place is Place.GONE
    unused = negotiated(endpoint, now=50)["connectionToken"]
    assert endpoint.find(unused, now=50 + WINDOW) is None
    assert endpoint.seats == 0


def test_posts_and_deletes_are_told_why_not() -> None:
    endpoint = Endpoint("user", seed=1)
    tokens = [negotiated(endpoint)["connectionToken"] for _ in range(3)]
    for token, how in zip(tokens, Transport, strict=True):
        seat_of(endpoint, token, how=how)
    new = negotiated(endpoint)["connectionToken"]
    sent = [endpoint.sender(t, now=0) for t in (None, "x", new, *tokens)]
    assert [s if isinstance(s, int) else 200 for s in sent] == [400, 404, 404, 405, 200, 200]
    ended = [endpoint.deleted(t, now=0) for t in (None, "x", *tokens)]
    assert [s if isinstance(s, int) else 202 for s in ended] == [400, 404, 400, 400, 202]
    endpoint.detach(seat_of(endpoint, new), keep=False, now=0)
    assert endpoint.find(new, now=0) is None


# --- market data ---


def a_market() -> Market:
    market = Market(seed=7)
    market.advance(NOW)
    return market


def a_tape(market: Market) -> Tape:
    return Tape(market, market.listings[MES], seed=7)


def test_quotes_after_a_whole_one_add_up_to_the_whole_one() -> None:
    market = a_market()
    tape = a_tape(market)
    known = tape.quote(now=NOW)
    for second in range(1, 300):
        quote = tape.step(now=NOW + second).quote
        assert not quote or {"symbol", "symbolName", "lastUpdated", "timestamp"} < set(quote)
        known |= quote
        if second == 100:
            tape.quote(now=NOW + second + 0.5)  # another subscriber looks in between
        whole = tape._whole(NOW + second)
        moments = ("timestamp", "lastUpdated")
        assert all(known[name] == whole[name] for name in whole if name not in moments)
    assert any(len(tape.step(now=NOW + s).quote) < 13 for s in range(300, 310))


def test_levels_after_a_whole_book_add_up_to_the_whole_book() -> None:
    market = a_market()
    tape = a_tape(market)

    def applied(book: dict[Any, Any], rows: list[dict[str, Any]]) -> dict[Any, Any]:
        for row in rows:
            if row["type"] in (Depth.ASK, Depth.BEST_ASK, Depth.BID, Depth.BEST_BID):
                side = row["type"] in (Depth.ASK, Depth.BEST_ASK)
                book[side, row["price"]] = row["volume"]
        return {key: size for key, size in book.items() if size}

    first: Any = tape.depth(now=NOW)
    assert (first[0]["type"], len(first)) == (Depth.RESET, 1 + 2 * LEVELS)
    book = applied({}, first)
    kinds = set()
    for second in range(1, 200):
        rows: Any = tape.step(now=NOW + second).depth
        kinds |= {row["type"] for row in rows}
        book = applied(book, rows)
        assert book == applied({}, tape.depth(now=NOW + second))  # type: ignore[arg-type]
    assert {Depth.NEW_BEST_ASK, Depth.NEW_BEST_BID} < kinds


def test_the_tape_is_the_same_for_the_same_seed_and_its_volume_only_grows() -> None:
    one, two = a_tape(a_market()), a_tape(a_market())
    steps = [one.step(now=NOW + second) for second in range(50)]
    assert steps == [two.step(now=NOW + second) for second in range(50)]
    volumes = [step.quote["volume"] for step in steps if "volume" in step.quote]
    assert volumes == sorted(volumes)  # type: ignore[type-var]
    trades = [row for step in steps for row in step.trades]
    assert {row["type"] for row in trades} == {0, 1}
    day = NOW + 86_400
    assert one.quote(now=day)["open"] != one.quote(now=NOW)["open"]


def test_a_pinned_price_stands_still_in_the_tape() -> None:
    market = a_market()
    market.pin(MES, Decimal(6000), now=NOW)
    tape = a_tape(market)
    tape.quote(now=NOW)
    for second in range(20):
        step = tape.step(now=NOW + second)
        assert "lastPrice" not in step.quote
        assert {row["price"] for row in step.trades} <= {6000.0, 6000.25}


# --- subscriptions and events ---


def bought(market: Market, account: str = "1001", listing: str = MES, **more: Any) -> int:
    asked = {"kind": Kind.MARKET, "size": Decimal(1), **more}
    ticket = Ticket(account=account, listing=listing, side=Side.BUY, **asked)
    return market.place(ticket, now=NOW).id


def test_subscribing_twice_delivers_twice_and_unsubscribing_ends_it_all() -> None:
    book = Book()
    assert book.call("SubscribeOrders", (1001,)) == (Topic.ORDERS, 1001)
    book.call("SubscribeOrders", (1001,))
    book.call("SubscribeAccounts", ())
    assert (book.times(Topic.ORDERS, 1001), book.times(Topic.ACCOUNTS, None)) == (2, 1)
    assert (len(book), sorted(t.name for t, _ in book)) == (3, ["ACCOUNTS", "ORDERS", "ORDERS"])
    assert book.call("UnsubscribeOrders", (1001,)) is None
    assert book.times(Topic.ORDERS, 1001) == 0
    assert book.keys(Topic.ACCOUNTS) == {None}


def test_an_order_is_told_in_the_shapes_of_the_rest_api() -> None:
    market = a_market()
    feed = Feed(market, seed=1)
    number = bought(market)
    told = feed.user_events()
    assert [m.topic.value for m in told] == [
        "GatewayUserOrder",
        "GatewayUserOrder",
        "GatewayUserTrade",
        "GatewayUserPosition",
        "GatewayUserAccount",
    ]
    order, trade, position, account = (m.arguments[0] for m in told[1:])
    assert isinstance(order, dict)
    assert (order["id"], order["status"], order["fillVolume"]) == (number, 2, 1)
    assert trade["orderId"] == number  # type: ignore[index]
    assert position["size"] == 1  # type: ignore[index]
    assert account["balance"] == 150_000 - 0.37  # type: ignore[index]
    assert {m.key for m in told} == {1001, None}
    assert feed.user_events() == []


def test_other_brokers_and_waiting_brackets_are_not_told() -> None:
    market = a_market()
    feed = Feed(market, seed=1)
    bought(market, account="10000001", listing="AAPL")
    assert feed.user_events() == []
    bought(market, kind=Kind.LIMIT, limit=Decimal(4000), stop_loss=-40)
    assert [m.arguments[0]["status"] for m in feed.user_events()] == [1]  # type: ignore[index]


def test_what_does_not_exist_tells_nothing() -> None:
    feed = Feed(a_market(), seed=1)
    for contract in ("CON.F.US.MES.H25", "AAPL", "x", 5):
        assert feed.begun(Topic.QUOTES, contract, now=NOW) == []
        assert feed.ticks([contract], now=NOW) == []
    assert feed.begun(Topic.MARKET_TRADES, MES, now=NOW) == []
    assert [len(feed.begun(t, MES, now=NOW)) for t in (Topic.QUOTES, Topic.DEPTH)] == [1, 1]


def test_events_can_come_wrapped_on_the_user_hub_alone() -> None:
    market = a_market()
    feed = Feed(market, seed=1)
    bought(market)
    message = feed.user_events()[0]
    assert after(message, action=1) == ({"action": 1, "data": message.arguments[0]},)
    assert after(message, action=None) == message.arguments
    tick = feed.ticks([MES], now=NOW)[0]
    assert after(tick, action=1) == tick.arguments


def test_working_orders_can_be_filled_at_their_own_price() -> None:
    market = a_market()
    bought(market, kind=Kind.LIMIT, size=Decimal(4), limit=Decimal(4000))
    bought(market, kind=Kind.STOP, size=Decimal(4), stop=Decimal(9000))
    filled = market.fill_working(0.5, now=NOW)
    assert [(o.filled, o.average) for o in filled] == [(2, 4000), (2, 9000)]
    assert [o.filled for o in market.fill_working(1, now=NOW)] == [4, 4]
    assert market.fill_working(1, now=NOW) == []


def test_the_first_of_two_brackets_ends_the_other_when_both_are_filled_away() -> None:
    market = a_market()
    bought(market, stop_loss=-40, take_profit=40)
    assert len(market.fill_working(1, now=NOW)) == 1
    assert market.positions == []


# --- frames ---


@given(st.lists(st.text(min_size=1), min_size=1), st.integers(1, 9))
def test_pieces_of_text_are_text_and_add_up(messages: list[str], size: int) -> None:
    framed = [text.encode(errors="replace") for text in messages]
    cut = pieces(framed, size=size, binary=False)
    assert all(len(part.decode()) <= size for part in cut)
    assert b"".join(cut) == b"".join(framed)
    assert joined(pieces(framed, size=size, binary=True)) == joined(framed)


@pytest.mark.parametrize("name", ["json", "messagepack"])
def test_what_no_client_expects_is_what_it_says(name: str) -> None:
    def read(form: str) -> list[Any]:
        return codec(name).decoder().feed(strange(form, binary=name == "messagepack"))

    assert isinstance(read("completion")[0], Completion)
    assert read("sequence") == [Sequence(0)]
    assert read("unknown_type") == []
    assert isinstance(read("not_json")[0], Malformed)
    assert not isinstance(read("item")[0], Malformed)
    assert read("call")[0].id == "s999"
    strange("not_utf8", binary=name == "messagepack")
