"""Claims about one connection to the sandbox's streamer, in bare numbers."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.sandbox.book import Kind, Side, Ticket
from keepline.sandbox.faults import Fault
from keepline.sandbox.faulttable import KINDS
from keepline.sandbox.market import Market
from keepline.sandbox.streamer_faults import calls_meant, damaged, glued
from keepline.sandbox.streamer_feed import SERVICES, Activity, StreamerFeed
from keepline.sandbox.streamer_session import (
    MOST_KEYS,
    Identity,
    StreamerSession,
    StreamerTimes,
)

NOW = 1_767_623_400.0  # 2026-01-05 14:30 UTC
WHO = Identity()
EQUITIES = "LEVELONE_EQUITIES"
GOOD = "good-token"


class Bench:
    """A session with a clock in hand."""

    def __init__(self, *, logged_in: bool = True) -> None:
        self.market, self.now = Market(), NOW
        self.feed = StreamerFeed(self.market)
        self.market.advance(self.now)
        self.pin("AAPL", 200)
        self.session = StreamerSession(
            self.feed,
            accepts=lambda token, now: token == GOOD,
            who=WHO,
            times=StreamerTimes(),
            now=self.now,
        )
        self.number = 0
        if logged_in:
            assert self.code(self.login()) == 0

    def pin(self, symbol: str, price: object) -> None:
        self.market.pin(symbol, Decimal(str(price)), now=self.now)

    def request(self, service: str, command: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        return {
            "service": service,
            "command": command,
            "requestid": self.number,
            "SchwabClientCustomerId": WHO.customer,
            "SchwabClientCorrelId": WHO.correlation,
            "parameters": parameters,
        }

    def say(self, *requests: object) -> list[dict[str, Any]]:
        self.session.receive(json.dumps({"requests": list(requests)}), self.now)
        return self.session.answers(self.now)

    def login(self, token: str = GOOD, **more: Any) -> list[dict[str, Any]]:
        said = {"SchwabClientChannel": WHO.channel, "SchwabClientFunctionId": WHO.function}
        return self.say(self.request("ADMIN", "LOGIN", Authorization=token, **said, **more))

    def ask(
        self, command: str, keys: str, service: str = EQUITIES, fields: str = "0,1,2,3,34"
    ) -> list[Any]:
        return self.say(self.request(service, command, keys=keys, fields=fields))

    def tick(self, seconds: float = 1.0, **options: Any) -> list[dict[str, Any]]:
        self.now += seconds
        self.market.advance(self.now)
        return self.session.tick(self.now, self.feed.activities(), **options)

    @staticmethod
    def code(frames: list[Any]) -> int:
        return frames[0]["response"][0]["content"]["code"]  # type: ignore[no-any-return]

    @staticmethod
    def lines(frames: list[Any]) -> list[Any]:
        return [
            line for frame in frames for part in frame.get("data", ()) for line in part["content"]
        ]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_login_is_answered_with_its_number_and_the_correlation() -> None:
    bench = Bench(logged_in=False)
    [frame] = bench.login()
    [answer] = frame["response"]
    assert (answer["service"], answer["command"], answer["requestid"]) == ("ADMIN", "LOGIN", "1")
    assert answer["SchwabClientCorrelId"] == WHO.correlation
    assert answer["timestamp"] == int(NOW * 1000)
    assert "status=" in answer["content"]["msg"]


@pytest.mark.parametrize("token", ["", "Bearer good-token", "bad"])
def test_a_token_that_is_dead_or_not_bare_ends_it(token: str) -> None:
    bench = Bench(logged_in=False)
    assert bench.code(bench.login(token)) == 3
    assert bench.session.over
    assert bench.tick(100) == []


@pytest.mark.parametrize(
    "wrong",
    [{"SchwabClientChannel": "X"}, {"SchwabClientFunctionId": "X"}, {"Authorization": 7}],
)
def test_an_introduction_that_user_preference_did_not_tell_is_malformed(
    wrong: dict[str, Any],
) -> None:
    bench = Bench(logged_in=False)
    said = {
        "Authorization": GOOD,
        "SchwabClientChannel": WHO.channel,
        "SchwabClientFunctionId": WHO.function,
    }
    assert bench.code(bench.say(bench.request("ADMIN", "LOGIN", **{**said, **wrong}))) == 21
    assert not bench.session.logged_in


def test_before_the_login_and_under_another_name_nobody_is_known(bench: Bench) -> None:
    early = Bench(logged_in=False)
    assert early.code(early.ask("SUBS", "AAPL")) == 20
    stranger = {
        **bench.request(EQUITIES, "SUBS", keys="AAPL", fields="0,1"),
        "SchwabClientCorrelId": "x",
    }
    assert bench.code(bench.say(stranger)) == 20


def test_a_command_beside_the_login_comes_too_early() -> None:
    bench = Bench(logged_in=False)
    said = {
        "Authorization": GOOD,
        "SchwabClientChannel": WHO.channel,
        "SchwabClientFunctionId": WHO.function,
    }
    both = bench.say(
        bench.request("ADMIN", "LOGIN", **said),
        bench.request(EQUITIES, "SUBS", keys="F", fields="1"),
    )
    assert [bench.code([frame]) for frame in both] == [0, 20]


@pytest.mark.parametrize(
    ("command", "code"), [("SUBS", 22), ("UNSUBS", 23), ("ADD", 24), ("VIEW", 25)]
)
def test_of_commands_at_once_the_first_works(bench: Bench, command: str, code: int) -> None:
    first = bench.request(EQUITIES, "SUBS", keys="AAPL", fields="0,1")
    answers = bench.say(first, bench.request(EQUITIES, command, keys="F", fields="0,1"))
    codes = [bench.code([frame]) for frame in answers if "response" in frame]
    assert codes == [0, code]
    assert bench.session.keys == 1


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "7", "{}", '{"requests": []}', '{"requests": 7}', '{"requests": [7]}', b"\xff", "[" * 9999,
     '{"requests": [{"service": 7, "command": "SUBS", "requestid": 1}]}',
     '{"requests": [{"service": "X", "command": "SUBS"}]}',
     '{"requests": [{"service": "X", "command": "SUBS", "requestid": 1, "parameters": 7}]}'],
)  # fmt: skip
def test_what_is_no_request_is_malformed(bench: Bench, text: str | bytes) -> None:
    bench.session.receive(text, bench.now)
    assert bench.code(bench.session.answers(bench.now)) == 21
    assert not bench.session.over


def test_a_request_alone_needs_no_list(bench: Bench) -> None:
    bench.session.receive(
        json.dumps(bench.request(EQUITIES, "SUBS", keys="AAPL", fields="1")), bench.now
    )
    assert bench.code(bench.session.answers(bench.now)) == 0


@pytest.mark.parametrize(
    ("command", "keys", "service", "fields", "code"),
    [
        ("SUBS", "AAPL", "LEVELONE_OPTIONS", "0", 11),
        ("SUBS", "", EQUITIES, "0", 21),
        ("SUBS", "AAPL", EQUITIES, "", 21),
        ("SUBS", "AAPL", EQUITIES, "bid", 21),
        ("BUY", "AAPL", EQUITIES, "0", 21),
        ("ADD", "k", "ACCT_ACTIVITY", "0", 21),
        ("VIEW", "", EQUITIES, "0,1", 25),
        ("SUBS", ",".join(f"S{n}" for n in range(MOST_KEYS + 1)), EQUITIES, "0", 19),
        ("SUBS", "AAPL", EQUITIES, "0,1,99", 0),
    ],
)
def test_a_command_is_judged(
    bench: Bench, command: str, keys: str, service: str, fields: str, code: int
) -> None:
    assert bench.code(bench.ask(command, keys, service, fields)) == code


def test_subs_replaces_add_adds_and_unsubs_takes_away(bench: Bench) -> None:
    bench.ask("SUBS", "AAPL,F")
    bench.ask("ADD", "MSFT,AAPL")
    assert bench.session.keys == 3
    bench.ask("SUBS", "SPY")
    assert bench.session.keys == 1
    assert bench.code(bench.ask("UNSUBS", "SPY,NEVER")) == 0
    assert bench.code(bench.ask("UNSUBS", "SPY")) == 0
    assert bench.session.keys == 0


def test_the_symbol_limit_counts_all_services(bench: Bench) -> None:
    bench.ask("SUBS", ",".join(f"S{n}" for n in range(MOST_KEYS)))
    assert bench.code(bench.ask("SUBS", "AAPL", "CHART_EQUITY")) == 19
    assert bench.code(bench.ask("ADD", "S1")) == 0
    assert bench.code(bench.ask("SUBS", "A,B")) == 0


def test_a_quote_begins_whole_and_then_tells_what_changed(bench: Bench) -> None:
    [line] = bench.lines(bench.ask("SUBS", "AAPL"))
    assert line == {
        "key": "AAPL",
        "delayed": False,
        "1": 200.0,
        "2": 200.01,
        "3": 200.0,
        "34": int(NOW * 1000),
    }
    assert bench.lines(bench.tick()) == []  # times alone are no news
    bench.pin("AAPL", 201)
    [line] = bench.lines(bench.tick())
    assert line == {"key": "AAPL", "1": 201.0, "2": 201.01, "3": 201.0, "34": int(bench.now * 1000)}


def test_view_changes_the_fields(bench: Bench) -> None:
    bench.ask("SUBS", "AAPL")
    assert bench.code(bench.say(bench.request(EQUITIES, "VIEW", fields="0,1"))) == 0
    bench.pin("AAPL", 201)
    assert bench.lines(bench.tick()) == [{"key": "AAPL", "1": 201.0}]


def test_a_symbol_that_does_not_exist_is_taken_and_stays_silent(bench: Bench) -> None:
    answer = bench.ask("SUBS", "NOBODY,CON.F.US.MES.Z26")
    assert (bench.code(answer), bench.lines(answer)) == (0, [])
    assert bench.session.keys == 2


def test_a_book_is_whole_and_a_candle_comes_once_a_minute(bench: Bench) -> None:
    [book] = bench.lines(bench.ask("SUBS", "AAPL", "NASDAQ_BOOK", "0,1,2,3"))
    assert (book["2"][0]["0"], book["3"][0]["0"]) == (200.0, 200.01)
    [candle] = bench.lines(bench.ask("SUBS", "AAPL", "CHART_EQUITY", "0,1,2,3,4,5,6,7,8"))
    assert candle["7"] == int(NOW - 60) * 1000
    assert candle["1"] == 869
    kinds = [set(line) for line in bench.lines(bench.tick())]
    assert not any("8" in names for names in kinds)
    [later] = [line for line in bench.lines(bench.tick(60)) if "8" in line]
    assert later["7"] == int(NOW) * 1000


def order(bench: Bench, **more: Any) -> Any:
    asked = {
        "account": "10000001",
        "listing": "AAPL",
        "side": Side.BUY,
        "kind": Kind.MARKET,
        "size": Decimal(10),
    }
    return bench.market.place(Ticket(**{**asked, **more}), now=bench.now)


def test_what_happens_to_an_order_is_told_in_order_and_numbered(bench: Bench) -> None:
    [greeting] = bench.lines(bench.ask("SUBS", "mine,other", "ACCT_ACTIVITY", "0,1,2,3"))
    assert (greeting["key"], greeting["2"]) == ("mine", "SUBSCRIBED")
    placed = order(bench)
    lines = bench.lines(bench.tick())
    assert [line["2"] for line in lines] == ["OrderCreated", "OrderAccepted", "OrderFillCompleted"]
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert {line["1"] for line in lines} == {"10000001"}
    data = json.loads(lines[-1]["3"])
    assert data["SchwabOrderID"] == str(placed.id)
    told = data["BaseEvent"]["OrderFillCompletedEvent"]
    assert told["ExecutionInfo"]["ExecutionQuantity"] == {"lo": "10000000", "signScale": 12}
    assert told["LegStatus"] == "LegClosed"
    assert bench.lines(bench.tick()) == []


def test_an_order_that_ends_without_a_fill_is_told(bench: Bench) -> None:
    bench.ask("SUBS", "mine", "ACCT_ACTIVITY")
    placed = order(bench, kind=Kind.LIMIT, limit=Decimal(100))
    bench.tick()
    bench.market.cancel(placed.id, account="10000001", now=bench.now)
    [out] = bench.lines(bench.tick())
    assert out["2"] == "OrderUROutCompleted"
    assert '"ClientCancel"' in out["3"]
    bench.market.record_rejected(Ticket(account="10000001", listing="F", side=Side.BUY, kind=Kind.MARKET,
                                        size=Decimal(1)), now=bench.now, words="no")  # fmt: skip
    assert [line["2"] for line in bench.lines(bench.tick())] == [
        "OrderCreated",
        "OrderUROutCompleted",
    ]


def test_orders_of_another_broker_and_of_the_past_are_told_to_nobody(bench: Bench) -> None:
    bench.ask("SUBS", "mine", "ACCT_ACTIVITY")
    order(bench, account="1001", listing="CON.F.US.MES.Z26", size=Decimal(1))
    assert bench.lines(bench.tick()) == []
    order(bench)
    bench.feed.catch_up()
    assert bench.lines(bench.tick()) == []


def test_heartbeats_come_whatever_else_does(bench: Bench) -> None:
    bench.ask("SUBS", "AAPL")
    assert bench.tick(9.9) == []
    assert bench.tick(0.1) == [{"notify": [{"heartbeat": str(int(bench.now * 1000))}]}]
    bench.pin("AAPL", 201)
    assert bench.tick(10, quiet=True) == [{"notify": [{"heartbeat": str(int(bench.now * 1000))}]}]
    assert len(bench.lines(bench.tick())) == 1  # a quote is caught up with


def test_without_subscriptions_it_ends_after_half_a_minute(bench: Bench) -> None:
    bench.ask("SUBS", "AAPL")
    bench.tick(60)
    bench.ask("UNSUBS", "AAPL")
    assert not any("content" in frame["notify"][0] for frame in bench.tick(29.9))
    ended = bench.tick(0.1)[-1]
    assert ended["notify"][0]["content"] == {
        "code": 30,
        "msg": "Stop streaming due to empty subscription",
    }
    assert bench.session.over
    assert Bench(logged_in=False).tick(30)[-1]["notify"][0]["content"]["code"] == 30


def test_a_logout_is_answered_and_ends_it(bench: Bench) -> None:
    after = bench.say(
        bench.request("ADMIN", "LOGOUT"), bench.request(EQUITIES, "SUBS", keys="F", fields="0")
    )
    assert [bench.code([frame]) for frame in after] == [0]
    assert bench.session.over


def test_a_fault_lets_commands_fail(bench: Bench) -> None:
    bench.session.receive(
        json.dumps(bench.request(EQUITIES, "ADD", keys="F", fields="0")), bench.now
    )
    assert bench.session.commands == ["ADD"]
    assert bench.code(bench.session.answers(bench.now, failing={"ADD"})) == 24


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(SERVICES),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["requests", "service", "command", "requestid", "parameters", "keys"]),
                        inner, max_size=5), max_leaves=15).map(json.dumps) | st.binary(max_size=30))  # fmt: skip
def test_no_frame_of_a_client_raises(text: str | bytes) -> None:
    bench = Bench()
    assert bench.session.receive(text, bench.now) >= 1
    assert json.dumps(bench.session.answers(bench.now))


# --- what faults do to frames ----------------------------------------------------------------------------------------


def frame(*lines: dict[str, Any]) -> dict[str, Any]:
    return {"data": [{"service": "S", "content": list(lines)}]}


def fault(name: str, **more: object) -> Fault:
    return Fault(name, {**KINDS[name].parameters, **more}, ("streamer",))


A, B, C = ({"key": name} for name in "ABC")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing_events", [frame(B, C)]),
        ("duplicate_events", [frame(A, A, B, C)]),
        ("reordered_events", [frame(B, A, C)]),
    ],
)
def test_the_first_line_suffers(name: str, expected: list[dict[str, Any]]) -> None:
    left = [name]

    def strike(names: frozenset[str]) -> dict[str, Fault]:
        assert "S" in names
        return {found: fault(found) for found in [left.pop()] if found} if left else {}

    assert damaged([frame(A, B, C)], [], strike) == expected


def test_a_line_that_is_held_back_comes_with_the_next_frame() -> None:
    held: list[Any] = []
    assert (
        damaged([frame(A)], held, lambda _: {"reordered_events": fault("reordered_events")}) == []
    )
    assert damaged([frame(B)], held, lambda _: {}) == [frame(B, A)]
    assert held == []


def test_a_monster_comes_before_its_line_and_heartbeats_are_left_alone() -> None:
    beat = {"notify": [{"heartbeat": "1"}]}
    found = damaged(
        [beat, frame(A)], [], lambda _: {"oversize_frame": fault("oversize_frame", bytes=1000)}
    )
    assert (found[0], found[2]) == (beat, frame(A))
    assert len(json.dumps(found[1])) > 1000


def test_frames_are_glued_by_their_kinds() -> None:
    beat = {"notify": [{"heartbeat": "1"}]}
    [whole] = glued([frame(A), beat, frame(B)])
    assert whole == {"data": [*frame(A)["data"], *frame(B)["data"]], "notify": beat["notify"]}
    assert glued([]) == []


def test_a_fault_of_calls_means_its_method_or_all_but_the_login() -> None:
    commands = ["LOGIN", "SUBS", "ADD"]
    assert calls_meant(fault("call_fails"), commands) == {"SUBS", "ADD"}
    assert calls_meant(fault("call_fails", method="LOGIN"), commands) == {"LOGIN"}
    assert calls_meant(fault("call_fails", method="VIEW"), commands) == frozenset()


def test_an_activity_is_a_line() -> None:
    assert Activity(3, "10", "OrderCreated", "{}").line("k") == {
        "seq": 3, "key": "k", "1": "10", "2": "OrderCreated", "3": "{}"}  # fmt: skip
