"""The hub's decider: who gets which frame when, and what becomes of those who do not take it."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from tests.hub.screen import read

from keepline.errors import ConfigError
from keepline.hub.channels import Channel, Policy
from keepline.hub.closecodes import CloseCode
from keepline.hub.cohorts import Client, Delivery
from keepline.hub.fanout import Hub, Work
from keepline.hub.limits import Limits
from keepline.hub.messages import Message
from keepline.hub.offences import ErrorCode, Offence
from keepline.hub.wire import Position, Refresh

STATE, QUEUE, ALERTS = "exposure-updates", "routing-metrics", "alerts"
TICK = 0.016


class Stage:
    """A hub, its clients and what each of them was written."""

    def __init__(self, limits: Limits | None = None, **more: Any) -> None:
        self.hub = Hub(
            [
                Channel(STATE, Policy.CONFLATE, epoch="e1", **more),
                Channel(QUEUE, Policy.DROP_OLDEST, epoch="e1", **more),
                Channel(ALERTS, Policy.NEVER, epoch="e1", **more),
            ],
            limits or Limits(),
        )
        self.now = 0.0
        self.full: set[Client] = set()
        self.got: dict[Client, list[list[dict[str, Any]]]] = {}
        self.last = Work([], [], [])

    def client(self, *channels: str, name: str = "", settle: bool = True, **more: Any) -> Client:
        client = self.hub.connect(name or f"c{len(self.got)}", self.now, **more)
        self.got[client] = []
        if channels:
            self.hub.subscribe(client, channels, self.now)
        if settle:
            self.settle()
        return client

    def settle(self) -> None:
        """Two quiet ticks: everybody is where the others are; what was written is forgotten."""
        for _ in range(3):
            self.tick(TICK)
        for frames in self.got.values():
            frames.clear()

    def publish(self, channel: str, *values: Any, key: str = "") -> list[Message]:
        return [self.hub.publish(channel, "t", value, self.now, key=key) for value in values]

    def tick(self, seconds: float = 0.0) -> Work:
        self.now += seconds
        self.last = self.hub.tick(self.now)
        for delivery in self.last.deliveries:
            self.write(delivery)
        return self.last

    def write(self, delivery: Delivery, count: int | None = None) -> None:
        for client in self.hub.hand(delivery, count):
            if client in self.full:
                self.hub.stalled(delivery, client, self.now)
            else:
                self.got[client].append(read(delivery.frame))

    def drain(self, client: Client) -> None:
        self.full.discard(client)
        self.hub.drained(client, self.now)

    def say(self, client: Client, **request: Any) -> Refresh | None:
        return self.hub.receive(client, msgspec.json.encode(request), self.now)

    def heard(self, client: Client) -> list[dict[str, Any]]:
        """All messages that it was written since the last time."""
        heard = [message for frame in self.got[client] for message in frame]
        self.got[client].clear()
        return heard


def brief(messages: Sequence[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Type, and offset or what matters of the data."""
    short = []
    for message in messages:
        data = message["data"]
        if message["type"] == "gap":
            short.append(("gap", (data["from"], data["to"])))
        elif message["type"] == "error":
            short.append(("error", data["code"]))
        elif message["type"] == "subscribed":
            short.append(("subscribed", data["recovered"]))
        else:
            short.append((message["type"], message.get("offset")))
    return short


# --- the first messages ---


def test_a_client_is_welcomed_told_its_subscriptions_and_shown_the_state() -> None:
    stage = Stage()
    stage.publish(STATE, 1, 2, key="EURUSD")
    client = stage.client(settle=False, name="screen", welcome={"version": 1})
    stage.say(client, action="subscribe", channels=[STATE], id=7)
    stage.tick()
    welcome, subscribed, snapshot = stage.heard(client)
    assert welcome["data"] == {"client": "screen", "version": 1}
    assert subscribed["channel"] == STATE
    assert subscribed["data"] == {
        "policy": "conflate", "epoch": "e1", "offset": 2, "recovered": False, "id": 7,
    }  # fmt: skip
    assert snapshot["offset"] == 2
    (item,) = snapshot["data"]["items"]
    assert item.pop("timestamp") <= snapshot["timestamp"]
    assert item == {"type": "t", "key": "EURUSD", "offset": 2, "data": 2}


def test_clients_at_one_place_share_one_frame() -> None:
    stage = Stage()
    clients = [stage.client(STATE, QUEUE, settle=False) for _ in range(20)]
    stage.tick()
    data = [d for d in stage.last.deliveries if d.control is None]
    assert len(data) == 1, "even the first snapshot is joined once"
    stage.settle()
    stage.publish(QUEUE, 1)
    stage.tick()
    assert len(stage.last.deliveries) == 1
    assert all(brief(stage.heard(client)) == [("t", 1)] for client in clients)


def test_those_with_and_without_compression_get_frames_of_their_own() -> None:
    stage = Stage()
    plain, packed = stage.client(QUEUE), stage.client(QUEUE, deflate=True)
    stage.settle()
    stage.publish(QUEUE, "x" * 500)
    stage.tick()
    assert sorted(d.frame[0] for d in stage.last.deliveries) == [0x81, 0xC1]
    assert stage.heard(plain) == stage.heard(packed) != []


# --- when ---


def test_the_first_message_after_quiet_goes_at_once_and_the_next_ones_wait_for_the_frame() -> None:
    stage = Stage()
    client = stage.client(QUEUE)
    stage.now = 10.0
    assert stage.hub.deadline is None
    stage.publish(QUEUE, 1)
    assert stage.hub.deadline is not None
    assert stage.hub.deadline <= stage.now
    stage.tick()
    assert brief(stage.heard(client)) == [("t", 1)]
    stage.now += 0.001
    stage.publish(QUEUE, 2)
    assert stage.hub.deadline == pytest.approx(10.0 + TICK)
    stage.tick()
    assert stage.heard(client) == []
    stage.publish(QUEUE, 3)
    stage.tick(TICK)
    assert brief(stage.heard(client)) == [("t", 2), ("t", 3)]
    assert stage.hub.deadline is None


def test_frames_of_different_channels_come_to_leave_together_and_never_early() -> None:
    stage = Stage()
    first, second = stage.client(STATE), stage.client(QUEUE, STATE)
    stage.now = 10.001
    stage.publish(QUEUE, 1)  # second alone: the two are out of step now
    stage.tick()
    assert stage.heard(second)
    stage.now = 10.005
    times: dict[Client, list[float]] = {first: [], second: []}
    for _ in range(200):
        stage.publish(STATE, 1, key="EURUSD")
        due = stage.hub.deadline
        assert due is not None
        stage.now = max(stage.now, due)
        together = len(stage.tick().deliveries) == 2
        for client, instants in times.items():
            if stage.heard(client):
                instants.append(stage.now)
    assert together
    assert stage.now / TICK == pytest.approx(round(stage.now / TICK), abs=0.001)
    for instants in times.values():
        pauses = [after - before for before, after in itertools.pairwise(instants)]
        assert min(pauses) >= TICK - 1e-9
        assert max(pauses) <= 1.13 * TICK


def test_a_slow_wish_gets_fewer_frames_with_all_in_them() -> None:
    stage = Stage()
    client = stage.client(QUEUE, STATE)
    stage.say(client, action="rate", rate=10)
    stage.settle()
    for i in range(100):
        stage.publish(QUEUE, i)
        stage.publish(STATE, i, key="EURUSD")
        stage.tick(0.01)
    frames = stage.got[client]
    assert 8 <= len(frames) <= 11
    seen = [m["offset"] for frame in frames for m in frame if m["channel"] == QUEUE]
    assert seen == list(range(1, len(seen) + 1)), "a slower frame may hold more"
    assert all(sum(m["channel"] == STATE for m in frame) == 1 for frame in frames)


def test_alerts_and_answers_do_not_wait_for_a_slow_wish() -> None:
    stage = Stage()
    client = stage.client(QUEUE, ALERTS)
    stage.say(client, action="rate", rate=0.1)
    stage.settle()
    stage.publish(QUEUE, 1)
    stage.tick()
    stage.heard(client)
    stage.publish(QUEUE, 2)
    stage.publish(ALERTS, "fire")
    stage.say(client, action="ping", id=1)
    stage.tick(TICK)
    assert brief(stage.heard(client)) == [("pong", None), ("t", 1)]
    assert stage.hub.deadline == pytest.approx(stage.now + 10, abs=0.1)
    stage.tick(10.0)
    assert brief(stage.heard(client)) == [("t", 2)]


def test_an_idle_hub_has_no_deadline() -> None:
    stage = Stage()
    for _ in range(5):
        stage.client(STATE, ALERTS)
    assert stage.hub.deadline is None
    stage.publish(QUEUE, 1)
    assert stage.hub.deadline is None, "nobody reads that channel"
    assert stage.tick(100.0).deliveries == []


# --- policies ---


def test_a_frame_has_at_most_fifty_messages() -> None:
    stage = Stage()
    client = stage.client(QUEUE, ALERTS)
    stage.publish(QUEUE, *range(120))
    stage.publish(ALERTS, *range(5))
    frames = []
    for _ in range(3):
        stage.tick(TICK)
        frames += stage.got[client]
        stage.got[client] = []
    assert [len(frame) for frame in frames] == [50, 50, 25]
    assert [m["channel"] for m in frames[0][:5]] == [ALERTS] * 5, "alerts are not behind the rest"


def test_one_channel_cannot_take_the_whole_frame() -> None:
    stage = Stage()
    client = stage.client(QUEUE, ALERTS)
    stage.publish(ALERTS, *range(500))
    stage.publish(QUEUE, *range(200))
    stage.tick()
    channels = [message["channel"] for message in stage.heard(client)]
    assert (channels.count(ALERTS), channels.count(QUEUE)) == (25, 25)


def test_more_keys_than_a_frame_has_room_for_collapse_into_one_message() -> None:
    stage = Stage()
    client = stage.client(STATE)
    for i in range(60):
        stage.publish(STATE, i, key=f"K{i}")
    stage.tick()
    (snapshot,) = stage.heard(client)
    assert snapshot["data"]["partial"] is True
    assert [item["data"] for item in snapshot["data"]["items"]] == list(range(60))
    assert snapshot["offset"] == 60


def test_a_slow_client_gets_the_newest_of_each_key_and_the_count_of_what_was_passed_over() -> None:
    stage = Stage()
    slow, fast = stage.client(STATE), stage.client(STATE)
    stage.settle()
    stage.full.add(slow)
    for i in range(1000):
        stage.publish(STATE, i, key=f"K{i % 3}")
        stage.tick(TICK)
    stage.drain(slow)
    stage.tick(TICK)
    assert brief(stage.heard(slow)) == [("t", 998), ("t", 999), ("t", 1000)]
    assert (slow.conflated, slow.dropped) == (997, 0)
    assert len(stage.heard(fast)) == 1000
    outbox = slow.outbox()
    assert outbox is not None
    assert outbox.waiting() == 0


def test_a_slow_client_loses_the_oldest_of_a_queue_and_is_told_which() -> None:
    stage = Stage()
    slow = stage.client(QUEUE)
    stage.full.add(slow)
    stage.publish(QUEUE, *range(300))
    stage.tick()
    stage.publish(QUEUE, *range(100))
    outbox = slow.outbox()
    assert outbox is not None
    assert outbox.waiting() == 400
    stage.drain(slow)
    for _ in range(10):
        stage.tick(TICK)
    heard = brief(stage.heard(slow))
    assert heard[0] == ("gap", (1, 144))
    assert [offset for _, offset in heard[1:]] == list(range(145, 401))
    assert slow.dropped + (slow.cohort.dropped if slow.cohort else 0) == 144


def test_a_gap_stands_where_the_messages_were() -> None:
    stage = Stage(Limits(client_buffer=4, max_batch=3))
    client = stage.client(QUEUE)
    stage.publish(QUEUE, 1, 2)
    stage.tick()
    stage.publish(QUEUE, *range(3, 13))
    for _ in range(4):
        stage.tick(TICK)
    assert brief(stage.heard(client)) == [
        ("t", 1), ("t", 2), ("gap", (3, 8)), ("t", 9), ("t", 10), ("t", 11), ("t", 12),
    ]  # fmt: skip


def test_a_large_queue_is_cut_by_bytes_as_well() -> None:
    stage = Stage(Limits(frame_bytes=10_000))
    client = stage.client(QUEUE)
    stage.publish(QUEUE, *["x" * 4000] * 9)
    for _ in range(3):
        stage.tick(TICK)
    assert [len(frame) for frame in stage.got[client]] == [3, 3, 3]


def test_alerts_wait_for_however_slow_a_client_and_come_from_the_journal() -> None:
    stage = Stage(Limits(refill=10), history_count=5)
    stage.hub.channels[ALERTS].retained = 1
    slow = stage.client(ALERTS)
    stage.full.add(slow)
    journal = stage.publish(ALERTS, 0)
    stage.tick()
    for i in range(1, 30):
        journal += stage.publish(ALERTS, i)
    stage.drain(slow)
    for _ in range(12):
        for refill in stage.tick(TICK).refills:
            found = [m for m in journal if m.offset > refill.after][: refill.limit]
            stage.hub.refilled(refill, found, stage.now)
    assert [offset for _, offset in brief(stage.heard(slow))] == list(range(1, 31))


def test_what_the_journal_has_no_more_is_announced() -> None:
    stage = Stage(history_count=5)
    stage.hub.channels[ALERTS].retained = 1
    slow = stage.client(ALERTS)
    stage.full.add(slow)
    stage.publish(ALERTS, 0)
    stage.tick()
    stage.publish(ALERTS, *range(1, 30))
    stage.drain(slow)
    (refill,) = stage.tick(TICK).refills
    assert (refill.channel, refill.after) == (ALERTS, 0)
    stage.hub.refilled(refill, [], stage.now)
    stage.tick(TICK)
    heard = brief(stage.heard(slow))
    assert heard[0] == ("gap", (1, 25))
    assert [offset for _, offset in heard[1:]] == [26, 27, 28, 29, 30]


def test_a_whole_cohort_that_the_memory_outran_reads_the_journal_one_by_one() -> None:
    stage = Stage(history_count=5)
    stage.hub.channels[ALERTS].retained = 1
    clients = [stage.client(ALERTS) for _ in range(3)]
    stage.settle()
    journal = stage.publish(ALERTS, *range(12))
    refills = stage.tick().refills
    assert [refill.client for refill in refills] == clients
    for refill in refills:
        stage.hub.refilled(refill, journal[refill.after : refill.after + 256], stage.now)
    for _ in range(4):
        stage.tick(TICK)
    for client in clients:
        assert [offset for _, offset in brief(stage.heard(client))] == list(range(1, 13))
        assert client.cohort is not None, "and then they are one cohort again"


@pytest.mark.parametrize("published", [5, 6, 7, 12])
def test_a_gap_is_exactly_what_is_not_here_any_more(published: int) -> None:
    stage = Stage(history_count=5)
    slow = stage.client(QUEUE)
    stage.full.add(slow)
    stage.publish(QUEUE, 0)
    stage.tick()
    stage.publish(QUEUE, *range(1, published))
    stage.drain(slow)
    stage.tick(TICK)
    heard = brief(stage.heard(slow))
    lost = published - 5
    assert heard[: lost > 0] == [("gap", (1, lost))][: lost > 0]
    assert [offset for _, offset in heard[lost > 0 :]] == list(range(lost + 1, published + 1))


def test_what_the_journal_handed_back_is_delivered_though_it_forgets_it_meanwhile() -> None:
    stage = Stage(Limits(refill=3), history_count=5)
    stage.hub.channels[ALERTS].retained = 1
    client = stage.client(ALERTS)
    journal = stage.publish(ALERTS, *range(20))
    (refill,) = stage.tick().refills
    stage.hub.refilled(refill, journal[:3], stage.now)
    stage.hub.channels[ALERTS].retained = 11
    (refill,) = [*stage.tick(TICK).refills, *stage.tick(TICK).refills]
    stage.hub.refilled(refill, journal[10:13], stage.now)
    for _ in range(5):
        for refill in stage.tick(TICK).refills:
            stage.hub.refilled(refill, journal[refill.after :][:3], stage.now)
    heard = brief(stage.heard(client))
    assert heard[:4] == [("t", 1), ("t", 2), ("t", 3), ("gap", (4, 10))]
    assert [offset for _, offset in heard[4:]] == list(range(11, 21))


def test_an_answer_of_the_journal_to_an_older_question_is_not_taken_for_the_newer_one() -> None:
    stage = Stage(history_count=5)
    stage.hub.channels[ALERTS].retained = 1
    client = stage.client(ALERTS)
    journal = stage.publish(ALERTS, *range(20))
    (older,) = stage.tick().refills
    stage.hub.subscribe(client, [ALERTS], stage.now, {ALERTS: Position("e1", 8)})
    (newer,) = stage.tick(TICK).refills
    assert (older.after, newer.after) == (0, 8)
    stage.hub.refilled(older, journal, stage.now)
    (again,) = stage.tick(TICK).refills
    for refill in (newer, again):
        stage.hub.refilled(refill, journal[refill.after :], stage.now)
        stage.tick(TICK)
    heard = brief(stage.heard(client))
    assert heard == [("subscribed", True), *[("t", i) for i in range(9, 21)]]


def test_an_answer_of_the_journal_for_somebody_who_left_is_nothing() -> None:
    stage = Stage(history_count=5)
    stage.hub.channels[ALERTS].retained = 1
    client = stage.client(ALERTS)
    journal = stage.publish(ALERTS, *range(12))
    (refill,) = stage.tick().refills
    stage.say(client, action="unsubscribe", channels=[ALERTS])
    stage.hub.refilled(refill, journal, stage.now)
    stage.hub.disconnect(client)
    stage.hub.refilled(refill, journal, stage.now)
    assert stage.tick(1.0).deliveries == []


# --- resume ---


@pytest.mark.parametrize(
    ("channel", "position", "expected"),
    [
        (QUEUE, Position("e1", 17), [("subscribed", True), ("t", 18), ("t", 19), ("t", 20)]),
        (QUEUE, Position("e1", 20), [("subscribed", True)]),
        (QUEUE, Position("e1", 3), [("subscribed", False), ("gap", (4, 20)), ("snapshot", 20)]),
        (QUEUE, Position("e1", 21), [("subscribed", False), ("gap", (None, 20)), ("snapshot", 20)]),
        (QUEUE, Position("e0", 19), [("subscribed", False), ("gap", (None, 20)), ("snapshot", 20)]),
        (STATE, Position("e1", 18), [("subscribed", True), ("t", 19), ("t", 20)]),
        (STATE, Position("e1", 0), [("subscribed", True), ("t", 17), ("t", 18), ("t", 19), ("t", 20)]),
        (STATE, Position("e7", 0), [("subscribed", False), ("gap", (None, 20)), ("snapshot", 20)]),
        (ALERTS, Position("e1", 18), [("subscribed", True), ("t", 19), ("t", 20)]),
        (ALERTS, Position("e1", 3), [("subscribed", False), ("gap", (4, 10)), *[("t", i) for i in range(11, 21)]]),
        (ALERTS, Position("e0", 3), [("subscribed", False), ("gap", (None, 20)), *[("t", i) for i in range(11, 21)]]),
    ],
)  # fmt: skip
def test_a_resume_gives_exactly_what_was_missed_or_says_what_is_lost(
    channel: str, position: Position, expected: list[tuple[str, Any]]
) -> None:
    stage = Stage(history_count=10)
    for i in range(20):
        stage.publish(channel, i, key=f"K{i % 4}")
    client = stage.client(settle=False)
    stage.hub.subscribe(client, [channel], stage.now, {channel: position})
    stage.tick()
    assert brief(stage.heard(client))[1:] == expected


def test_what_was_promised_at_a_resume_is_not_dropped_as_slow() -> None:
    stage = Stage(Limits(client_buffer=10, max_batch=10))
    stage.publish(QUEUE, *range(100))
    client = stage.client(settle=False)
    stage.hub.subscribe(client, [QUEUE], stage.now, {QUEUE: Position("e1", 0)})
    for i in range(20):
        stage.publish(QUEUE, i)
        stage.tick(TICK)
    seen = [m["offset"] for m in stage.heard(client) if "offset" in m]
    assert seen == list(range(1, 121))


def test_a_thousand_who_come_back_at_once_share_what_they_missed() -> None:
    stage = Stage()
    stage.publish(QUEUE, *range(40))
    for i in range(1000):
        client = stage.client(settle=False, name=str(i))
        stage.hub.subscribe(client, [QUEUE], stage.now, {QUEUE: Position("e1", 10)})
    stage.tick()
    data = [d for d in stage.last.deliveries if d.control is None]
    assert len(data) == 1


def test_those_who_catch_up_together_share_every_frame_and_lose_nothing() -> None:
    stage = Stage(Limits(client_buffer=10, max_batch=10))
    stage.publish(QUEUE, *range(100))
    clients = [stage.client(settle=False) for _ in range(3)]
    for client in clients:
        stage.hub.subscribe(client, [QUEUE], stage.now, {QUEUE: Position("e1", 0)})
    for i in range(20):
        stage.publish(QUEUE, i)
        work = stage.tick(TICK)
        assert sum(delivery.control is None for delivery in work.deliveries) == 1
    for client in clients:
        seen = [m["offset"] for m in stage.heard(client) if "offset" in m]
        assert seen == list(range(1, 121))


def test_subscribing_again_begins_anew() -> None:
    stage = Stage()
    client = stage.client(QUEUE)
    stage.publish(QUEUE, 1, 2)
    stage.tick()
    stage.heard(client)
    stage.say(client, action="subscribe", channels=[QUEUE])
    stage.tick(TICK)
    assert brief(stage.heard(client)) == [("subscribed", False), ("snapshot", 2)]


# --- requests ---


def test_nothing_of_a_channel_comes_after_unsubscribed() -> None:
    stage = Stage()
    client = stage.client(QUEUE, STATE)
    stage.publish(QUEUE, 1)
    stage.say(client, action="unsubscribe", channels=[QUEUE], id="u1")
    stage.publish(QUEUE, 2)
    stage.publish(STATE, 1)
    stage.tick()
    unsubscribed, value = stage.heard(client)
    assert unsubscribed["type"] == "unsubscribed"
    assert (unsubscribed["channel"], unsubscribed["data"]) == (QUEUE, {"id": "u1"})
    assert value["channel"] == STATE
    stage.say(client, action="unsubscribe", channels=[STATE])
    stage.publish(STATE, 2)
    stage.tick(TICK)
    assert brief(stage.heard(client)) == [("unsubscribed", None)]
    assert client.channels() == ()


@pytest.mark.parametrize(
    ("request_", "codes"),
    [
        ({"action": "subscribe", "channels": ["nowhere"]}, ["unknown_channel"]),
        ({"action": "subscribe", "channels": ["secret"]}, ["forbidden"]),
        ({"action": "unsubscribe", "channels": [QUEUE]}, ["not_subscribed"]),
        ({"action": "unsubscribe", "channels": ["nowhere", QUEUE]}, ["unknown_channel", "not_subscribed"]),
        ({"action": "subscribe", "channels": [STATE], "resume": {QUEUE: {"epoch": "e", "offset": 1}}}, ["bad_resume"]),
        ({"action": "dance"}, ["unknown_action"]),
        ({"action": "ping", "pad": "x" * 70_000}, ["too_large"]),
    ],
)  # fmt: skip
def test_an_offence_is_answered_and_the_connection_stays(
    request_: dict[str, Any], codes: list[str]
) -> None:
    stage = Stage()
    stage.hub.channels["secret"] = Channel("secret", Policy.CONFLATE, epoch="e")
    client = stage.client()
    text = msgspec.json.encode({**request_, "id": 5})
    stage.hub.receive(client, text, stage.now, lambda channel: channel != "secret")
    stage.tick()
    errors = stage.heard(client)
    assert [error["data"]["code"] for error in errors] == codes
    assert stage.last.closings == []
    assert client.channels() == ()
    if codes != ["too_large"]:
        assert all(error["data"]["id"] == 5 for error in errors)


def test_more_channels_than_allowed_are_refused_one_by_one() -> None:
    stage = Stage(Limits(max_channels=2))
    client = stage.client()
    stage.say(client, action="subscribe", channels=[STATE, QUEUE, ALERTS])
    stage.tick()
    heard = brief(stage.heard(client))
    assert ("error", "too_many_channels") in heard
    assert client.channels() == (STATE, QUEUE)
    stage.say(client, action="subscribe", channels=[QUEUE])
    stage.tick(TICK)
    assert ("subscribed", False) in brief(stage.heard(client)), "one that it has is no new one"


def test_offences_that_repeat_end_the_connection_and_rare_ones_are_forgiven() -> None:
    stage = Stage(Limits(offences=3, forgive_after=10.0))
    client = stage.client()
    for _ in range(20):
        stage.say(client, action="dance")
        assert stage.tick(10.0).closings == []
    for _ in range(4):
        stage.say(client, action="dance")
    (closing,) = stage.tick().closings
    assert (closing.client, closing.code) == (client, CloseCode.TOO_MANY_OFFENCES)
    stage.say(client, action="dance")
    assert stage.tick(1.0).closings == []


def test_a_flood_is_ignored_then_ended_with_a_code_that_comes_back() -> None:
    stage = Stage(Limits(inbound_rate=10, inbound_burst=20, offences=3))
    client = stage.client()
    for i in range(20):
        stage.say(client, action="ping", id=i)
    stage.tick()
    assert len(stage.heard(client)) == 20
    stage.say(client, action="ping")
    stage.tick()
    assert brief(stage.heard(client)) == [("error", "rate_limited")]
    for _ in range(3):
        stage.say(client, action="ping")
    (closing,) = stage.tick().closings
    assert closing.code == CloseCode.FLOODING


def test_a_newer_token_is_for_the_face_to_judge() -> None:
    stage = Stage()
    client = stage.client()
    request = stage.say(client, action="refresh", token="x.y.z", id=3)
    assert request == Refresh("x.y.z", 3)
    stage.hub.tell(client, "refreshed", stage.now, {"id": 3})
    stage.hub.offend(client, Offence.of(ErrorCode.BINARY), stage.now)
    stage.tick()
    assert brief(stage.heard(client)) == [("refreshed", None), ("error", "binary")]


# --- those who do not read ---


def test_a_stalled_client_leaves_the_cohort_and_comes_back_to_it() -> None:
    stage = Stage()
    clients = [stage.client(QUEUE) for _ in range(3)]
    stage.settle()
    stage.full.add(clients[1])
    stage.publish(QUEUE, 1)
    stage.tick()
    assert clients[1].cohort is None
    assert clients[0].cohort is clients[2].cohort is not None
    stage.publish(QUEUE, 2)
    stage.tick(TICK)
    stage.drain(clients[1])
    stage.tick()
    assert brief(stage.heard(clients[1])) == [("t", 1), ("t", 2)]
    stage.publish(QUEUE, 3)
    stage.tick(TICK)
    assert clients[1].cohort is clients[0].cohort
    assert brief(stage.heard(clients[1])) == [("t", 3)]


def test_a_client_that_stays_slow_is_closed_with_a_code_that_comes_back() -> None:
    stage = Stage(Limits(slow_after=30.0))
    client = stage.client(QUEUE)
    stage.full.add(client)
    stage.publish(QUEUE, 1)
    stage.tick()
    assert stage.hub.deadline == pytest.approx(stage.now + 30.0)
    assert stage.tick(29.9).closings == []
    (closing,) = stage.tick(0.1).closings
    assert (closing.client, closing.code) == (client, CloseCode.SLOW)
    stage.drain(client)
    stage.publish(QUEUE, 2)
    assert stage.tick(1.0) == Work([], [], []), "it is told nothing more"
    stage.hub.disconnect(client)
    assert stage.hub.clients == {}


def test_a_client_that_asks_and_does_not_read_is_closed() -> None:
    stage = Stage(Limits(control_buffer=20))
    client = stage.client()
    stage.full.add(client)
    stage.say(client, action="ping")
    stage.tick()
    for _ in range(30):
        stage.say(client, action="ping")
    (closing,) = stage.tick().closings
    assert closing.code == CloseCode.SLOW


def test_answers_that_were_not_taken_come_later_in_order() -> None:
    stage = Stage()
    client = stage.client(QUEUE)
    stage.full.add(client)
    stage.say(client, action="ping", id=1)
    stage.publish(QUEUE, 1)
    stage.tick()
    stage.say(client, action="ping", id=2)
    stage.tick(TICK)
    assert stage.heard(client) == []
    stage.drain(client)
    stage.tick(TICK)
    heard = stage.heard(client)
    assert [m["data"].get("id") for m in heard[:2]] == [1, 2]
    assert brief(heard[2:]) == [("t", 1)]


def test_many_answers_come_in_several_frames_before_any_data() -> None:
    stage = Stage(Limits(max_batch=3))
    client = stage.client(settle=False)
    stage.say(client, action="subscribe", channels=[STATE, QUEUE, ALERTS])
    stage.say(client, action="ping")
    for _ in range(3):
        stage.tick(TICK)
    kinds = [message["type"] for message in stage.heard(client)]
    assert kinds == ["welcome", *["subscribed"] * 3, "pong", *["snapshot"] * 3]


# --- slices ---


def test_a_frame_is_handed_out_in_slices_and_nobody_gets_the_next_one_before_it() -> None:
    stage = Stage()
    clients = [stage.client(QUEUE) for _ in range(5)]
    stage.settle()
    stage.publish(QUEUE, 1)
    (delivery,) = stage.hub.tick(stage.now).deliveries
    stage.write(delivery, 2)
    stage.publish(QUEUE, 2)
    assert stage.hub.tick(stage.now + TICK).deliveries == []
    assert stage.hub.deadline is None, "until the slices are out"
    stage.write(delivery, 2)
    stage.write(delivery, 2)
    assert stage.hub.deadline is not None
    stage.tick(TICK)
    assert all(brief(stage.heard(client)) == [("t", 1), ("t", 2)] for client in clients)


def test_who_changes_while_slices_are_out_neither_misses_nor_repeats() -> None:
    stage = Stage()
    clients = [stage.client(QUEUE) for _ in range(4)]
    stage.settle()
    stage.publish(QUEUE, 1)
    (delivery,) = stage.hub.tick(stage.now).deliveries
    stage.write(delivery, 2)
    for client in clients:
        stage.say(client, action="subscribe", channels=[STATE])
    gone = stage.client(QUEUE, settle=False)
    stage.hub.disconnect(clients[3])
    stage.hub.disconnect(gone)
    stage.hub.disconnect(gone)
    while delivery.waiting:
        stage.write(delivery, 1)
    stage.publish(QUEUE, 2)
    for _ in range(3):
        stage.tick(TICK)
    for client in clients[:3]:
        queue = [
            m["offset"] for m in stage.heard(client) if m.get("channel") == QUEUE and "offset" in m
        ]
        assert queue == [1, 2]
    assert brief(stage.heard(clients[3])) == []


def test_a_cohort_of_one_that_leaves_is_no_more() -> None:
    stage = Stage()
    client = stage.client(QUEUE)
    stage.settle()
    cohort = client.cohort
    assert cohort is not None
    stage.publish(QUEUE, 1)
    (delivery,) = stage.hub.tick(stage.now).deliveries
    stage.hub.disconnect(client)
    assert delivery.waiting == []
    assert cohort.members == {}
    assert stage.hub.tick(stage.now + 1).deliveries == []
    stage.hub.stalled(delivery, client, stage.now)
    stage.hub.tell(client, "pong", stage.now, {})
    stage.hub.close(client, CloseCode.FAILED)
    assert stage.hub.tick(stage.now + 2) == Work([], [], [])


def test_a_close_comes_out_of_the_next_tick_once() -> None:
    stage = Stage()
    client = stage.client(QUEUE)
    stage.hub.close(client, CloseCode.REVOKED, "asked by an operator")
    stage.hub.close(client, CloseCode.SHUTTING_DOWN)
    assert stage.hub.deadline == float("-inf")
    (closing,) = stage.tick().closings
    assert (closing.code, closing.reason) == (CloseCode.REVOKED, "asked by an operator")
    assert stage.hub.deadline is None


# --- publishing ---


def test_a_message_whose_id_is_known_is_the_earlier_one() -> None:
    stage = Stage()
    client = stage.client(ALERTS)
    first = stage.hub.publish(ALERTS, "alert", {"n": 1}, stage.now, own="a1")
    again = stage.hub.publish(ALERTS, "alert", {"n": 2}, stage.now, own="a1")
    assert again is first
    assert stage.hub.duplicates == 1
    stage.tick()
    (alert,) = stage.heard(client)
    assert (alert["id"], alert["data"]) == ("a1", {"n": 1})


def test_what_cannot_be_published_is_refused_in_words() -> None:
    hub = Stage(Limits(max_data=100)).hub
    with pytest.raises(ConfigError, match="no channel 'nowhere'; there are exposure-updates"):
        hub.publish("nowhere", "t", 1, 0.0)
    with pytest.raises(ConfigError, match="is 102 bytes; a message may have 100"):
        hub.publish(STATE, "t", "x" * 100, 0.0)
    with pytest.raises(ConfigError, match="not a finite number"):
        hub.publish(STATE, "t", {"net": float("nan")}, 0.0)
    assert hub.channels[STATE].stamped == 0


def test_an_alert_that_is_being_stored_is_not_seen_yet() -> None:
    stage = Stage()
    client = stage.client(ALERTS)
    first = stage.hub.stamp(ALERTS, "alert", 1, stage.now)
    second = stage.hub.stamp(ALERTS, "alert", 2, stage.now)
    assert stage.tick().deliveries == []
    stage.hub.deliver(first)
    stage.tick()
    assert brief(stage.heard(client)) == [("alert", 1)]
    stage.hub.channels[ALERTS].withdraw(second.offset)
    stage.publish(ALERTS, 3)
    stage.tick(TICK)
    assert brief(stage.heard(client)) == [("t", 2)]


def test_a_channel_that_persists_first_is_not_published_around_its_journal() -> None:
    stage = Stage()
    message = stage.hub.stamp(ALERTS, "alert", 1, stage.now)
    with pytest.raises(ConfigError, match="'alerts' is persisted first: use publish_durable"):
        stage.hub.publish(ALERTS, "alert", 2, stage.now)
    stage.hub.deliver(message)
    assert stage.hub.publish(ALERTS, "alert", 2, stage.now).offset == 2


def test_clients_begin_anew_in_another_epoch_and_go_on_in_the_same() -> None:
    stage = Stage()
    client, other = stage.client(QUEUE), stage.client(STATE)
    stage.publish(QUEUE, *range(5))
    stage.tick()
    stage.settle()
    fresh = Stage()
    fresh.hub.restore(QUEUE, [], offset=5, epoch="e1", now=0.0)
    more = fresh.publish(QUEUE, 5, 6)
    stage.hub.restore(QUEUE, more, offset=7, epoch="e1", now=stage.now)
    stage.tick(TICK)
    assert brief(stage.heard(client)) == [("t", 6), ("t", 7)]
    stage.hub.restore(QUEUE, [], offset=2, epoch="e2", now=stage.now)
    stage.tick(TICK)
    heard = stage.heard(client)
    assert brief(heard) == [("subscribed", False), ("gap", (None, 2)), ("snapshot", 2)]
    assert heard[0]["data"]["epoch"] == heard[2]["epoch"] == "e2"
    assert stage.heard(other) == []


def test_wall_time_can_be_set_again() -> None:
    stage = Stage()
    client = stage.client(STATE)
    stage.hub.skew = 1.7e9 - stage.now
    assert stage.hub.skew == 1.7e9 - stage.now
    stage.publish(STATE, 1)
    stage.tick()
    assert stage.heard(client)[0]["timestamp"].startswith("2023-11-14T22:13:20.0")


def test_a_delivery_says_since_when_its_oldest_message_waits() -> None:
    stage = Stage()
    stage.client(QUEUE)
    stage.settle()
    stage.publish(QUEUE, 1)
    stage.now += 5
    stage.publish(QUEUE, 2)
    (delivery,) = stage.tick().deliveries
    assert (delivery.count, delivery.oldest) == (2, pytest.approx(stage.now - 5))
