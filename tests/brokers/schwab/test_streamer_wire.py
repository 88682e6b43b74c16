"""Claims about Schwab's streamer as a decider, with bare numbers and no socket."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.brokers.schwab.messages import StreamerInfo
from keepline.brokers.schwab.streamer_messages import (
    AccountActivity,
    Book,
    Candlestick,
    LevelOne,
    Notice,
    Unreadable,
)
from keepline.brokers.schwab.streamer_state import SeenActivity
from keepline.brokers.schwab.streamer_topics import activity_topic, topic_of
from keepline.brokers.schwab.streamer_wire import NOTICES, UNREADABLE, SchwabWire
from keepline.errors import PermanentError, TransientError
from keepline.stream.port import Delivered, Ended, Opened, Settled, Topic, WireEvent
from keepline.stream.redial import Fault, fault_of_error, fault_of_lost

WHO = StreamerInfo(
    streamer_socket_url="wss://streamer.invalid/ws",
    schwab_client_customer_id="customer",
    schwab_client_correl_id="correlation",
    schwab_client_channel="N9",
    schwab_client_function_id="APIAPP",
)
TOKEN = "I0.a-secret-access-token@"
EQUITIES = "LEVELONE_EQUITIES"
AAPL, MSFT, SPY = (topic_of(EQUITIES, symbol) for symbol in ("AAPL", "MSFT", "SPY"))


class Bench:
    """A wire with a clock in hand."""

    def __init__(self, *, logged_in: bool = True, **options: Any) -> None:
        self.wire = SchwabWire(WHO, **options)
        self.now = 100.0
        self.sent: list[dict[str, Any]] = []
        self.wire.open(TOKEN, self.now)
        if logged_in:
            assert self.answer(0, "server=s1;status=NP") == [Opened()]
            self.sent.clear()

    def last(self) -> dict[str, Any]:
        """The newest request that left."""
        for frame in self.wire.take():
            [request] = json.loads(frame)["requests"]
            self.sent.append(request)
        return self.sent[-1]

    def hear(self, frame: object) -> list[WireEvent]:
        text = frame if isinstance(frame, (str, bytes)) else json.dumps(frame)
        return list(self.wire.receive(text, self.now))

    def answer(self, code: int, words: str = "", number: str | None = None) -> list[WireEvent]:
        request = self.last()
        told = {"service": request["service"], "command": request["command"],
                "requestid": number or request["requestid"], "content": {"code": code, "msg": words}}  # fmt: skip
        return self.hear({"response": [told]})

    def ask(self, topic: Topic) -> str:
        return self.wire.subscribe(topic, self.now)

    def confirmed(self, *topics: Topic) -> None:
        for topic in topics:
            ref = self.ask(topic)
            assert self.answer(0) == [Settled(ref)]

    def data(
        self, service: str, *lines: dict[str, object], at: int = 1_767_623_400_000
    ) -> list[Any]:
        part = {"service": service, "timestamp": at, "command": "SUBS", "content": list(lines)}
        return self.hear({"data": [part]})


@pytest.fixture
def bench() -> Bench:
    return Bench()


def message(events: list[Any]) -> Any:
    [event] = events
    assert isinstance(event, Delivered)
    return event.arguments[1]


# --- login -----------------------------------------------------------------------------------------------------------


def test_the_login_says_the_bare_token_and_what_user_preference_told() -> None:
    bench = Bench(logged_in=False)
    assert bench.last() == {
        "service": "ADMIN",
        "command": "LOGIN",
        "requestid": "1",
        "SchwabClientCustomerId": "customer",
        "SchwabClientCorrelId": "correlation",
        "parameters": {
            "Authorization": TOKEN,
            "SchwabClientChannel": "N9",
            "SchwabClientFunctionId": "APIAPP",
        },
    }


def test_nothing_leaves_before_the_login_is_answered() -> None:
    bench = Bench(logged_in=False)
    bench.last()
    ref = bench.ask(AAPL)
    assert bench.wire.take() == []
    assert bench.answer(0) == [Opened()]
    assert bench.last()["command"] == "SUBS"
    assert bench.answer(0) == [Settled(ref)]


def test_a_denied_login_ends_it_and_asks_for_a_newer_token_without_showing_this_one() -> None:
    bench = Bench(logged_in=False)
    [ended] = bench.answer(3, f"Login Denied.: {TOKEN} is invalid or has expired")
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, PermanentError)
    assert (ended.error.status, ended.error.code) == (401, "3 LOGIN_DENIED")
    assert fault_of_error(ended.error) is Fault.UNAUTHORIZED
    assert TOKEN not in f"{ended!r} {ended.error} {bench.wire!r}"
    assert "has expired" in str(ended.error)
    assert bench.wire.deadline is None
    assert bench.hear({"notify": [{"heartbeat": "1"}]}) == []


def test_a_login_beside_a_connection_that_is_not_over_is_a_conflict() -> None:
    [ended] = Bench(logged_in=False).answer(12, "maximum connections")
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, TransientError)
    assert fault_of_error(ended.error) is Fault.CONFLICT
    assert "an old one of ours that is not over yet" in str(ended.error)


@pytest.mark.parametrize("code", [9, 11, 21, 22, 99])
def test_any_other_answer_to_the_login_is_a_failure(code: int) -> None:
    [ended] = Bench(logged_in=False).answer(code, "what")
    assert isinstance(ended, Ended)
    assert ended.error is not None


def test_a_login_that_is_not_answered_ends_in_time() -> None:
    bench = Bench(logged_in=False, answer_timeout=5.0)
    assert bench.wire.deadline == 105.0
    assert list(bench.wire.expire(104.9)) == []
    [ended] = bench.wire.expire(105.0)
    assert isinstance(ended, Ended)
    assert ended.lost.reason == "timeout"
    assert isinstance(ended.error, TransientError)


# --- commands --------------------------------------------------------------------------------------------------------


def test_the_first_key_of_a_service_replaces_what_was_there_and_later_ones_are_added(
    bench: Bench,
) -> None:
    bench.confirmed(AAPL)
    assert (bench.last()["command"], bench.last()["parameters"]["keys"]) == ("SUBS", "AAPL")
    assert bench.last()["parameters"]["fields"].startswith("0,1,2,")
    bench.confirmed(MSFT)
    assert (bench.last()["command"], bench.last()["parameters"]["keys"]) == ("ADD", "MSFT")
    bench.confirmed(topic_of("CHART_EQUITY", "AAPL"))
    assert bench.last()["command"] == "SUBS"


def test_one_command_is_under_way_at_a_time_and_those_that_wait_leave_as_one(bench: Bench) -> None:
    first, second, third = bench.ask(AAPL), bench.ask(MSFT), bench.ask(SPY)
    assert bench.last()["parameters"]["keys"] == "AAPL"
    assert bench.wire.take() == []
    assert bench.answer(26) == [Settled(first)]
    assert bench.last()["parameters"]["keys"] == "MSFT,SPY"
    assert bench.last()["command"] == "ADD"
    assert bench.answer(28) == [Settled(second), Settled(third)]


def test_account_activity_knows_no_add(bench: Bench) -> None:
    bench.confirmed(activity_topic())
    bench.confirmed(activity_topic())
    assert [request["command"] for request in bench.sent] == ["SUBS", "SUBS"]


def test_the_end_of_a_subscription_is_asked_for_by_its_key(bench: Bench) -> None:
    bench.confirmed(AAPL, MSFT)
    ref = bench.wire.unsubscribe(MSFT, bench.now)
    assert (bench.last()["command"], bench.last()["parameters"]) == ("UNSUBS", {"keys": "MSFT"})
    assert bench.answer(27) == [Settled(str(ref))]
    bench.wire.unsubscribe(AAPL, bench.now)
    bench.answer(27)
    bench.confirmed(SPY)
    assert bench.last()["command"] == "SUBS"  # nothing is left of the service


@pytest.mark.parametrize(
    ("code", "kind", "category"),
    [
        (9, TransientError, "server"),
        (11, TransientError, "server"),
        (19, PermanentError, "client"),
        (21, PermanentError, "client"),
        (22, TransientError, "server"),
        (24, TransientError, "server"),
        (77, TransientError, "server"),
    ],
)
def test_a_refused_command_fails_alone(
    bench: Bench, code: int, kind: type[Exception], category: str
) -> None:
    ref = bench.ask(AAPL)
    [settled] = bench.answer(code, "because\r\n\x1b[0m of it")
    assert isinstance(settled, Settled)
    assert settled.ref == ref
    assert isinstance(settled.error, kind)
    assert settled.error.category == category  # type: ignore[union-attr]
    assert "because [0m of it" in str(settled.error)
    assert str(code) in settled.error.code  # type: ignore[union-attr]
    bench.confirmed(AAPL)
    assert bench.last()["command"] == "SUBS"


def test_the_answer_of_another_command_is_not_ours(bench: Bench) -> None:
    ref = bench.ask(AAPL)
    assert bench.answer(0, number="900") == []
    assert bench.answer(0) == [Settled(ref)]
    assert bench.answer(0) == []  # once more


def test_a_command_without_an_answer_is_given_up_and_the_next_one_leaves() -> None:
    bench = Bench(answer_timeout=5.0, server_timeout=60.0)
    first, second = bench.ask(AAPL), bench.ask(topic_of("CHART_EQUITY", "AAPL"))
    assert bench.last()["service"] == EQUITIES
    assert bench.wire.deadline == 105.0
    [settled] = bench.wire.expire(105.0)
    assert isinstance(settled, Settled)
    assert settled.ref == first
    assert isinstance(settled.error, TransientError)
    assert settled.error.category == "timeout"
    assert bench.last()["service"] == "CHART_EQUITY"
    assert bench.answer(0) == [Settled(second)]


def test_more_keys_than_schwab_takes_are_refused_before_they_are_sent() -> None:
    bench = Bench(most_keys=2)
    bench.confirmed(AAPL, MSFT)
    sent = len(bench.sent)
    ref = bench.ask(SPY)
    assert bench.wire.take() == []
    assert bench.wire.deadline is not None
    assert bench.wire.deadline <= bench.now
    [settled] = bench.wire.expire(bench.now)
    assert isinstance(settled, Settled)
    assert (settled.ref, settled.error.sent) == (ref, False)  # type: ignore[union-attr]
    assert "2 keys are subscribed already" in str(settled.error)
    bench.confirmed(AAPL)  # once more is not one more
    bench.wire.unsubscribe(MSFT, bench.now)
    bench.answer(0)
    bench.confirmed(SPY)
    assert len(bench.sent) == sent + 3


def test_a_refused_key_makes_room_again() -> None:
    bench = Bench(most_keys=1)
    bench.ask(AAPL)
    bench.answer(22)
    bench.confirmed(MSFT)


@given(st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from([0, 22, 26])), max_size=12))
def test_every_reference_is_settled_once(steps: list[tuple[str, int]]) -> None:
    bench = Bench()
    refs, settled = [], []
    for name, code in steps:
        refs.append(bench.ask(topic_of(EQUITIES, name)))
        settled += bench.answer(code)
    while bench.wire.take():
        bench.sent.clear()
    for _ in steps:
        settled += bench.wire.expire(bench.wire.deadline or 0) if len(settled) < len(refs) else []
    told = [event.ref for event in settled if isinstance(event, Settled)]
    assert sorted(set(told)) == sorted(told)
    assert set(told) <= set(refs)


# --- probe -----------------------------------------------------------------------------------------------------------


def test_without_subscriptions_there_is_nothing_to_probe(bench: Bench) -> None:
    assert bench.wire.probe(bench.now) is None


def test_a_probe_asks_for_the_fields_once_more_and_takes_any_answer(bench: Bench) -> None:
    bench.confirmed(activity_topic(), AAPL)
    for code in (29, 25):
        ref = bench.wire.probe(bench.now)
        request = bench.last()
        assert (request["command"], request["service"]) == ("VIEW", EQUITIES)
        assert "keys" not in request["parameters"]
        assert bench.answer(code) == [Settled(str(ref))]


def test_a_probe_of_account_activity_alone_subscribes_again(bench: Bench) -> None:
    bench.confirmed(activity_topic())
    bench.wire.probe(bench.now)
    assert (bench.last()["command"], bench.last()["service"]) == ("SUBS", "ACCT_ACTIVITY")


def test_a_probe_without_an_answer_fails() -> None:
    bench = Bench(answer_timeout=5.0)
    bench.confirmed(AAPL)
    bench.wire.probe(bench.now)
    [settled] = bench.wire.expire(105.0)
    assert isinstance(settled, Settled)
    assert settled.error is not None


# --- life ------------------------------------------------------------------------------------------------------------


def test_heartbeats_keep_it_alive_and_silence_ends_it(bench: Bench) -> None:
    bench.confirmed(AAPL)
    bench.now = 125.0
    assert bench.hear({"notify": [{"heartbeat": "1767623400000"}]}) == []
    assert bench.wire.heartbeat_at is not None
    assert bench.wire.heartbeat_at.year == 2026
    assert bench.wire.deadline == 155.0
    assert list(bench.wire.expire(154.9)) == []
    [ended] = bench.wire.expire(155.0)
    assert isinstance(ended, Ended)
    assert ended.lost.reason == "timeout"
    assert "not even a heartbeat" in str(ended.lost.error)
    assert ended.error is None
    assert list(bench.wire.expire(200.0)) == []


@pytest.mark.parametrize("where", ["notify", "response"])
@pytest.mark.parametrize(
    ("code", "reason", "fault"),
    [
        (12, "kicked", Fault.OCCUPIED),
        (30, "stopped", Fault.NETWORK),
        (20, "session", Fault.NETWORK),
        (3, "login", Fault.NETWORK),
    ],
)
def test_four_codes_end_the_connection_wherever_they_stand(
    bench: Bench, where: str, code: int, reason: str, fault: Fault
) -> None:
    bench.confirmed(AAPL)
    content = {"code": code, "msg": "so it is"}
    [ended] = bench.hear({where: [{"service": "ADMIN", "content": content}]})
    assert isinstance(ended, Ended)
    assert ended.lost.reason == reason
    assert ended.lost.allow_reconnect
    assert f"code {code}: so it is" in str(ended.lost.error)
    assert ended.error is None
    assert fault_of_lost(ended.lost.reason) is fault
    assert bench.wire.deadline is None


def test_what_follows_the_end_in_a_frame_is_not_read(bench: Bench) -> None:
    end = {"service": "ADMIN", "content": {"code": 12, "msg": ""}}
    line = {"service": EQUITIES, "content": [{"key": "AAPL", "1": 1.0}]}
    assert len(bench.hear({"notify": [end, end], "data": [line]})) == 1


def test_after_the_end_a_request_fails_at_once(bench: Bench) -> None:
    bench.hear({"notify": [{"content": {"code": 30}}]})
    ref, other = bench.ask(AAPL), bench.wire.unsubscribe(AAPL, bench.now)
    told = [(event.ref, event.error.sent) for event in bench.wire.expire(bench.now)
            if isinstance(event, Settled) and event.error]  # fmt: skip
    assert told == [(ref, False), (other, False)]


def test_goodbye_is_a_logout_when_there_was_a_login() -> None:
    bench = Bench()
    bench.wire.close(bench.now)
    assert bench.last()["command"] == "LOGOUT"
    assert bench.wire.deadline is None
    early = Bench(logged_in=False)
    early.last()
    early.wire.close(early.now)
    assert early.wire.take() == []


def test_what_the_streamer_says_of_itself_is_told(bench: Bench) -> None:
    [event] = bench.hear(
        {"notify": [{"service": "ADMIN", "content": {"code": 7, "msg": "maintenance at six"}}]}
    )
    assert event == Delivered(NOTICES, ("", Notice(7, "maintenance at six")))


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_quote_is_whole_after_each_change(bench: Bench) -> None:
    first = message(
        bench.data(EQUITIES, {"key": "AAPL", "delayed": False, "1": 149.8, "2": 149.9, "8": 560})
    )
    assert isinstance(first, LevelOne)
    assert first.values == {"bid_price": 149.8, "ask_price": 149.9, "total_volume": 560}
    assert first.delayed is False
    second = message(bench.data(EQUITIES, {"key": "AAPL", "1": 149.7, "34": 1_767_623_401_000}))
    assert second.changed == ("bid_price", "quote_time")
    assert second.values == {**first.values, "bid_price": 149.7, "quote_time": 1_767_623_401_000}
    assert first.values["bid_price"] == 149.8  # what was handed out stays as it was
    quote = second.quote(first.at)
    assert (quote.instrument, quote.bid, quote.ask, quote.last, quote.volume) == (
        "AAPL",
        149.7,
        149.9,
        None,
        560.0,
    )
    assert quote.at.isoformat() == "2026-01-05T14:30:01+00:00"


def test_symbols_and_services_do_not_mix_and_an_ended_symbol_begins_anew(bench: Bench) -> None:
    bench.confirmed(AAPL)
    bench.data(EQUITIES, {"key": "AAPL", "1": 1.0})
    assert message(bench.data(EQUITIES, {"key": "MSFT", "2": 2.0})).values == {"ask_price": 2.0}
    assert message(bench.data("LEVELONE_OPTIONS", {"key": "AAPL", "3": 2.0})).values == {
        "ask_price": 2.0
    }
    bench.wire.unsubscribe(AAPL, bench.now)
    bench.answer(0)
    assert message(bench.data(EQUITIES, {"key": "AAPL", "2": 2.0})).values == {"ask_price": 2.0}


def test_a_new_connection_begins_with_empty_quotes() -> None:
    seen = SeenActivity()
    Bench(seen=seen).data(EQUITIES, {"key": "AAPL", "1": 1.0})
    later = Bench(seen=seen)
    assert message(later.data(EQUITIES, {"key": "AAPL", "2": 2.0})).values == {"ask_price": 2.0}


def test_an_invented_symbol_fills_no_memory(bench: Bench) -> None:
    for number in range(5000):
        bench.data(EQUITIES, {"key": f"S{number}", "1": 1.0})
    assert message(bench.data(EQUITIES, {"key": "S4999", "2": 1.0})).values.keys() == {
        "bid_price",
        "ask_price",
    }
    assert message(bench.data(EQUITIES, {"key": "S0", "2": 1.0})).values.keys() == {"ask_price"}


def activity(
    seq: int | None, kind: str = "OrderAccepted", data: str = '{"SchwabOrderID": "7001"}'
) -> dict[str, Any]:
    return {"seq": seq, "key": "Account Activity", "1": "10000001", "2": kind, "3": data}


def test_a_repeated_activity_is_told_once_even_on_the_next_connection() -> None:
    seen = SeenActivity()
    bench = Bench(seen=seen)
    [first] = bench.data("ACCT_ACTIVITY", activity(5), activity(5))
    assert first.arguments[1] == AccountActivity(
        5, "10000001", "OrderAccepted", '{"SchwabOrderID": "7001"}', "7001"
    )
    assert Bench(seen=seen).data("ACCT_ACTIVITY", activity(5)) == []
    assert seen.repeats == 2


def test_a_number_that_began_anew_hides_no_activity() -> None:
    seen = SeenActivity()
    Bench(seen=seen).data("ACCT_ACTIVITY", activity(1))
    bench = Bench(seen=seen)
    assert len(bench.data("ACCT_ACTIVITY", activity(1, "OrderFillCompleted"))) == 1
    assert len(bench.data("ACCT_ACTIVITY", activity(1, data='{"SchwabOrderID": "7002"}'))) == 1


def test_greetings_and_activities_without_a_number_are_always_told(bench: Bench) -> None:
    for _ in range(2):
        assert len(bench.data("ACCT_ACTIVITY", activity(0, "SUBSCRIBED", ""))) == 1
        assert len(bench.data("ACCT_ACTIVITY", activity(None))) == 1


def test_only_the_newest_activities_are_remembered() -> None:
    seen = SeenActivity()
    bench = Bench(seen=seen)
    for number in range(5000):
        bench.data("ACCT_ACTIVITY", activity(number))
    assert bench.data("ACCT_ACTIVITY", activity(4999)) == []
    assert len(bench.data("ACCT_ACTIVITY", activity(0))) == 1


def test_books_candles_and_lists_arrive_typed_under_their_keys(bench: Bench) -> None:
    level = {"0": 10.5, "1": 300, "2": 1, "3": [{"0": "NSDQ", "1": 300, "2": 5}]}
    [book] = bench.data(
        "NASDAQ_BOOK", {"key": "AAPL", "1": 1_767_623_400_000, "2": [level], "3": []}
    )
    assert isinstance(book.arguments[1], Book)
    [candle] = bench.data(
        "CHART_EQUITY",
        {
            "key": "AAPL",
            "seq": 0,
            "1": 779,
            "2": 1,
            "3": 4,
            "4": 0.5,
            "5": 2,
            "6": 26,
            "7": 1_767_623_400_000,
            "8": 2,
        },
    )
    assert isinstance(candle.arguments[1], Candlestick)
    assert candle.arguments[1].sequence == 779
    assert (book.channel, book.arguments[0]) == ("NASDAQ_BOOK", "AAPL")


# --- what is no streamer's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "x",
        "[]",
        "7",
        "null",
        '{"data": 7}',
        '{"data": [',
        b"\xff\xfe",
        "[" * 5000,
        '{"notify": {}}',
    ],
)
def test_a_frame_that_cannot_be_read_is_an_event_and_the_stream_goes_on(
    bench: Bench, frame: str | bytes
) -> None:
    [event] = bench.hear(frame)
    assert isinstance(event, Delivered)
    assert event.channel == UNREADABLE
    assert isinstance(event.arguments[1], Unreadable)
    bench.confirmed(AAPL)


@pytest.mark.parametrize(
    "part",
    [7, {}, {"service": EQUITIES}, {"service": 7, "content": []}, {"service": EQUITIES, "content": [7]},
     {"service": EQUITIES, "content": [{}]}, {"service": EQUITIES, "content": [{"key": 7}]},
     {"service": "NOVELTY", "content": [{"key": "A"}]}, {"service": "CHART_EQUITY", "content": [{"key": "A"}]}],
)  # fmt: skip
def test_a_part_that_cannot_be_read_spoils_no_other(bench: Bench, part: object) -> None:
    good = {"service": EQUITIES, "content": [{"key": "AAPL", "1": 1.0}]}
    bad, fine = bench.hear({"data": [part, good]})
    assert isinstance(bad, Delivered)
    assert bad.channel == UNREADABLE
    assert isinstance(fine, Delivered)
    assert fine.channel == EQUITIES


def test_nothing_but_nonsense_ends_the_connection(bench: Bench) -> None:
    for _ in range(99):
        assert len(bench.hear("x")) == 1
    bench.hear({"notify": [{"heartbeat": "1"}]})
    for _ in range(99):
        bench.hear("x")
    ended = bench.hear("x")[-1]
    assert isinstance(ended, Ended)
    assert ended.lost.reason == "protocol"


def test_an_empty_frame_says_nothing(bench: Bench) -> None:
    assert bench.hear("{}") == []
    assert bench.hear({"data": None, "novelty": 1}) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["service", "content", "code", "msg", "key", "0", "1", "2", "3", "7", "seq",
                         "requestid", "heartbeat", "timestamp", "items"]) | st.text(max_size=3),
        inner, max_size=6),
    max_leaves=12,
)  # fmt: skip
SERVICES = st.sampled_from(
    [EQUITIES, "NASDAQ_BOOK", "CHART_EQUITY", "SCREENER_EQUITY", "ACCT_ACTIVITY", "X"]
)
LINES = st.dictionaries(st.sampled_from([*"01234567", "key", "seq", "delayed"]), JSON, max_size=7)
DATA = st.fixed_dictionaries(
    {"service": SERVICES, "content": st.lists(LINES, max_size=3), "timestamp": JSON}
)


@given(
    st.binary(max_size=80)
    | st.text(max_size=80)
    | st.fixed_dictionaries(
        {},
        optional={
            "response": st.lists(JSON, max_size=3),
            "notify": st.lists(JSON, max_size=3),
            "data": st.lists(DATA | JSON, max_size=3),
        },
    ).map(json.dumps)
)
def test_no_frame_raises(frame: str | bytes) -> None:
    bench = Bench()
    bench.confirmed(AAPL)
    for event in bench.hear(frame):
        assert isinstance(event, (Opened, Delivered, Settled, Ended))
        assert repr(event)
