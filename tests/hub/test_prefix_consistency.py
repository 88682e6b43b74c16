"""Whatever is published, stalled, cut, resumed and slowed, every screen sees a prefix of what was published.

No duplicate, no hole that is not announced, the newest value per key at the end. The screen itself complains.
"""

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.hub.screen import Screen

from keepline.hub.channels import Channel, Policy
from keepline.hub.cohorts import Client, Delivery
from keepline.hub.fanout import Hub, Refill
from keepline.hub.limits import Limits
from keepline.hub.messages import Message, Stamps

KEYS = ["", "EURUSD", "GBPUSD", "USDJPY", "AUDUSD", "XAUUSD", "NZDUSD"]
LIMITS = Limits(
    max_batch=4, client_buffer=6, frame_bytes=700, slow_after=50.0, refill=3, offences=1_000_000
)
NAMES = ["state", "few", "queue", "alerts"]
RETAINED = 25


class Seat:
    """A screen, its connection when it has one, and whether the network takes what is written."""

    def __init__(self) -> None:
        self.screen = Screen()
        self.client: Client | None = None
        self.full = False
        self.wanted: set[str] = set()


class Desk(RuleBasedStateMachine):
    """Publishers, screens and a network that does as it likes."""

    @initialize(age=st.sampled_from([5.0, 1e9]), count=st.sampled_from([8, 40]))
    def open(self, age: float, count: int) -> None:
        def channel(name: str, policy: Policy, **more: int) -> Channel:
            return Channel(name, policy, epoch="e1", history_age=age, history_count=count, **more)

        self.hub = Hub(
            [
                channel("state", Policy.CONFLATE),
                channel("few", Policy.CONFLATE, max_keys=3),
                channel("queue", Policy.DROP_OLDEST),
                channel("alerts", Policy.NEVER),
            ],
            LIMITS,
        )
        self.hub.channels["alerts"].retained = 1
        self.now = 0.0
        self.journal: list[Message] = []
        self.all: dict[str, list[Message]] = {name: [] for name in NAMES}
        self.seats: list[Seat] = []
        self.under_way: list[Delivery] = []
        self.refills: list[Refill] = []
        self.born = 1
        self.stamps = Stamps()

    # publishers

    @rule(
        channel=st.sampled_from(NAMES),
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=12),
        gone=st.booleans(),
    )
    def publish(self, channel: str, keys: list[str], gone: bool) -> None:
        for i, key in enumerate(keys):
            last = gone and i == len(keys) - 1 and channel in ("state", "few") and key
            value = None if last else {"n": len(self.all[channel]), "pad": "x" * 60}
            if channel == "alerts":
                message = self.hub.stamp(channel, "t", value, self.now, key=key)
                self.journal.append(message)
                self.hub.deliver(message)
                del self.journal[:-RETAINED]
                self.hub.channels["alerts"].retained = self.journal[0].offset
            else:
                message = self.hub.publish(channel, "t", value, self.now, key=key)
            self.all[channel].append(message)

    # screens

    @rule(deflate=st.booleans(), channels=st.sets(st.sampled_from(NAMES)))
    def connect(self, deflate: bool, channels: set[str]) -> None:
        if len(self.seats) < 6:
            self.seats.append(Seat())
            self._connect(self.seats[-1], deflate, channels)

    @rule(data=st.data(), deflate=st.booleans(), with_resume=st.booleans())
    def reconnect(self, data: st.DataObject, deflate: bool, with_resume: bool) -> None:
        seat = self._pick(data, lambda seat: True)
        if seat is not None:
            self._cut(seat)
            self._connect(seat, deflate, seat.wanted, resume=with_resume)

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        seat = self._pick(data, lambda seat: seat.client is not None)
        if seat is not None:
            self._cut(seat)

    @rule(data=st.data(), channel=st.sampled_from(NAMES), resume=st.booleans())
    def subscribe(self, data: st.DataObject, channel: str, resume: bool) -> None:
        seat = self._pick(data, lambda seat: seat.client is not None)
        if seat is not None and channel not in seat.wanted:
            seat.wanted.add(channel)
            position = seat.screen.resume([channel]) if resume else {}
            self._say(seat, {"action": "subscribe", "channels": [channel], "resume": position})

    @rule(data=st.data(), channel=st.sampled_from(NAMES))
    def unsubscribe(self, data: st.DataObject, channel: str) -> None:
        seat = self._pick(data, lambda seat: seat.client is not None)
        if seat is not None and channel in seat.wanted:
            seat.wanted.discard(channel)
            self._say(seat, {"action": "unsubscribe", "channels": [channel]})

    @rule(data=st.data(), rate=st.sampled_from([None, 5, 20, 1000]))
    def rate(self, data: st.DataObject, rate: float | None) -> None:
        seat = self._pick(data, lambda seat: seat.client is not None)
        if seat is not None:
            self._say(seat, {"action": "rate", "rate": rate})

    @rule(data=st.data(), what=st.sampled_from(["ping", "nonsense"]))
    def talk(self, data: st.DataObject, what: str) -> None:
        seat = self._pick(data, lambda seat: seat.client is not None)
        if seat is not None:
            self._say(seat, {"action": what})

    @rule(channel=st.sampled_from(["state", "few", "queue"]), count=st.integers(0, 9))
    def begin_anew(self, channel: str, count: int) -> None:
        """The process that keeps the count was replaced."""
        self.born += 1
        old = self.hub.channels[channel]
        fresh = Channel(channel, old.policy, epoch=f"e{self.born}")
        for i in range(count):
            data = msgspec.json.encode({"n": f"{self.born}.{i}"})
            fresh.deliver(fresh.stamp("t", data, self.now, self.stamps, key=KEYS[i % 3]))
        self.hub.restore(
            channel, list(fresh.history), offset=count, epoch=fresh.epoch, now=self.now
        )

    # the network

    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        seat = self._pick(data, lambda seat: seat.client is not None)
        if seat is not None:
            seat.full = True

    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        seat = self._pick(data, lambda seat: seat.full)
        if seat is not None:
            self._drain(seat)

    @rule(count=st.sampled_from([1, 2, None]))
    @precondition(lambda self: self.under_way)
    def hand(self, count: int | None) -> None:
        self._hand(count)

    @rule(seconds=st.sampled_from([0.001, 0.016, 0.02, 0.1, 1.0, 7.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self._tick()

    @rule()
    @precondition(lambda self: self.refills)
    def refill(self) -> None:
        self._refill()

    # at the end, and at all times

    def teardown(self) -> None:
        if not hasattr(self, "hub"):
            return
        for _ in range(400):
            for seat in self.seats:
                self._drain(seat)
            while self.under_way:
                self._hand(None)
            while self.refills:
                self._refill()
            if self.hub.deadline is None:
                break
            self.now = max(self.now, self.hub.deadline)
            self._tick()
        assert self.hub.deadline is None, "the hub comes to rest"
        for seat in self.seats:
            if seat.client is not None:
                self._is_right(seat)

    @invariant()
    def frames_are_small(self) -> None:
        for seat in getattr(self, "seats", []):
            assert seat.screen.largest <= max(LIMITS.max_batch, LIMITS.client_buffer) + 1

    def _is_right(self, seat: Seat) -> None:
        screen = seat.screen
        assert screen.subscribed == seat.wanted
        for name in seat.wanted:
            channel = self.hub.channels[name]
            assert screen.epoch[name] == channel.epoch
            assert screen.position[name] == channel.offset or (
                name == "alerts" and screen.position[name] is None
            )
            if name in ("state", "few"):
                newest = {m.key: msgspec.json.decode(m.data) for m in channel.latest.values()}
                shown = {k: v for k, v in screen.state.get(name, {}).items() if k in newest}
                assert shown == {k: v for k, v in newest.items() if v is not None}
            if name == "queue" and channel.history:
                last = channel.history[-1]
                assert screen.state[name][last.key] == msgspec.json.decode(last.data)

    # hands

    def _pick(self, data: st.DataObject, fits: object) -> Seat | None:
        seats = [seat for seat in self.seats if fits(seat)]  # type: ignore[operator]
        return data.draw(st.sampled_from(seats)) if seats else None

    def _connect(
        self, seat: Seat, deflate: bool, channels: set[str], *, resume: bool = False
    ) -> None:
        self.born += 1
        seat.client = self.hub.connect(f"c{self.born}", self.now, link=seat, deflate=deflate)
        seat.wanted = set(channels)
        seat.full = False
        seat.screen.subscribed.clear()
        positions = seat.screen.resume(sorted(channels)) if resume else {}
        self._say(seat, {"action": "subscribe", "channels": sorted(channels), "resume": positions})

    def _cut(self, seat: Seat) -> None:
        if seat.client is not None:
            self.hub.disconnect(seat.client)
            seat.client = None
            seat.full = False

    def _drain(self, seat: Seat) -> None:
        seat.full = False
        if seat.client is not None:
            self.hub.drained(seat.client, self.now)

    def _say(self, seat: Seat, request: object) -> None:
        assert seat.client is not None
        assert self.hub.receive(seat.client, msgspec.json.encode(request), self.now) is None

    def _tick(self) -> None:
        work = self.hub.tick(self.now)
        self.under_way += work.deliveries
        self.refills += work.refills
        for closing in work.closings:
            assert closing.code == 3010
            self._cut(closing.client.link)

    def _hand(self, count: int | None) -> None:
        delivery = self.under_way[0]
        for client in self.hub.hand(delivery, count):
            seat = client.link
            assert seat.client is client
            if seat.full:
                self.hub.stalled(delivery, client, self.now)
            else:
                seat.screen.frame(delivery.frame)
        if not delivery.waiting:
            self.under_way.pop(0)

    def _refill(self) -> None:
        refill = self.refills.pop(0)
        found = [m for m in self.journal if m.offset > refill.after][: refill.limit]
        self.hub.refilled(refill, found, self.now)


TestDesk = Desk.TestCase
TestDesk.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
