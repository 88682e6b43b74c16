"""Freshness, not openness: who is accused, when, what is done about it, and who is left in peace."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepline.errors import ConfigError
from keepline.stream.calendar import CME_FUTURES, US_EQUITIES
from keepline.stream.health import Finding, Health, HealthStatus, HealthWatch, Ladder, Step
from keepline.stream.port import Topic
from keepline.stream.standing import ident_of

QUOTES = Topic("GatewayQuote", key="MNQ", cadence=120.0)
TRADES = Topic("GatewayTrade", key="MNQ", cadence=120.0)
ORDERS = Topic("GatewayUserOrder", key="7")
NOON = datetime(2026, 11, 16, 18, 0, tzinfo=UTC)  # Monday, noon in Chicago
LADDER = Ladder(probe=0.0, resubscribe=15.0, reconnect=45.0, rounds=3, again=900.0)


class Day:
    """A watch with its two clocks, which move together."""

    def __init__(self, *topics: Topic, start: datetime = NOON, **options: float) -> None:
        self.watch = HealthWatch(ladder=LADDER, **options)
        self.now = 1000.0
        self._start = start.astimezone(UTC)  # hours pass by the sun, not by the clock on the wall
        self.topics = topics
        for topic in topics:
            self.watch.watch(topic, self.now)
        self.connect()

    @property
    def wall(self) -> datetime:
        return self._start + timedelta(seconds=self.now - 1000.0)

    def connect(self) -> None:
        self.watch.connected(self.now)
        for topic in self.topics:
            self.watch.confirmed(topic, self.now)

    def reconnect(self) -> None:
        self.watch.disconnected(self.now, "a new connection is made")
        self.connect()

    def data(self, topic: Topic, late: float | None = None) -> bool:
        venue_at = None if late is None else self.wall.timestamp() - late
        return self.watch.data(ident_of(topic), self.now, venue_at)

    def check(self) -> list[Step]:
        return [finding.step for finding in self.findings()]

    def findings(self) -> list[Finding]:
        return self.watch.check(self.now, self.wall)

    def pass_(self, seconds: float) -> list[tuple[float, Step]]:
        """Let time pass, checking whenever the watch wants it: what was found, and after how long."""
        begin, end, found = self.now, self.now + seconds, []
        while self.now < end:
            found += [(self.now - begin, step) for step in self.check()]
            at = self.watch.deadline(self.now, self.wall)
            assert at > self.now
            self.now = min(at, end)
        found += [(self.now - begin, step) for step in self.check()]
        return found

    @property
    def health(self) -> Health:
        return self.watch.health

    @property
    def status(self) -> HealthStatus:
        return self.watch.health.status


def test_before_the_first_connection_it_is_unhealthy_and_asks_for_nothing() -> None:
    watch = HealthWatch()
    watch.watch(QUOTES)
    assert watch.health == Health(HealthStatus.UNHEALTHY, ("not connected yet",))
    assert watch.check(0.0, NOON) == []
    assert watch.deadline(0.0, NOON) == 30.0


def test_an_open_connection_is_not_health_before_its_topics_are_confirmed_and_heard() -> None:
    day = Day()
    assert day.status is HealthStatus.HEALTHY  # nothing is wanted
    day.watch.watch(QUOTES, day.now)
    assert day.health == Health(HealthStatus.DEGRADED, ("not confirmed: GatewayQuote MNQ",))
    assert not day.watch.sees(QUOTES)
    day.watch.confirmed(QUOTES, day.now)
    assert day.health.reasons == ("no data yet on this connection: GatewayQuote MNQ",)
    day.data(QUOTES)
    assert day.health == Health(HealthStatus.HEALTHY)
    assert day.watch.sees(QUOTES)


def test_a_topic_goes_stale_at_its_cadence_to_the_second() -> None:
    day = Day(QUOTES)
    day.data(QUOTES)
    assert day.pass_(119.9) == []
    day.now += 0.1
    stale, probe = day.findings()
    assert (stale.step, probe.step) == (Step.STALE, Step.PROBE)
    assert stale.topics == (QUOTES,)
    assert stale.reason == "GatewayQuote MNQ: no data for 120 s, expected every 120 s"
    assert day.health.status is HealthStatus.UNHEALTHY
    assert day.health.reasons == ("stale: GatewayQuote MNQ",)
    assert day.watch.is_stale(QUOTES)
    assert not day.watch.sees(QUOTES)


def test_a_topic_that_never_brings_anything_is_stale_from_its_confirmation_on() -> None:
    day = Day(QUOTES)
    assert day.pass_(120.0) == [(120.0, Step.STALE), (120.0, Step.PROBE)]


def test_messages_of_other_topics_and_answers_to_probes_keep_nothing_fresh() -> None:
    day = Day(QUOTES, ORDERS)
    day.data(QUOTES)
    for _ in range(12):
        day.now += 10.0
        day.data(ORDERS)
        day.watch.probed(day.now)
    assert day.check() == [Step.STALE, Step.PROBE]
    day.watch.probed(day.now)
    assert day.watch.is_stale(QUOTES)


def test_a_confirmation_starts_no_new_wait() -> None:
    day = Day(QUOTES)
    day.now += 119.0
    day.watch.confirmed(QUOTES, day.now)
    assert day.pass_(1.0)[0] == (1.0, Step.STALE)


def test_the_ladder_goes_from_probe_to_resubscribe_to_reconnect() -> None:
    day = Day(QUOTES)
    found = []
    while not found or found[-1][1] is not Step.RECONNECT:
        found += [(at + day.now - 1000.0 - 15.0, step) for at, step in day.pass_(15.0)]
        day.watch.probed(day.now)
    assert [step for _, step in found] == [
        Step.STALE, Step.PROBE, Step.RESUBSCRIBE, Step.RECONNECT,
    ]  # fmt: skip
    assert [at for at, _ in found] == [120.0, 120.0, 135.0, 165.0]
    assert day.pass_(3600.0) == []  # nothing more on this connection: a new one is being made


def test_data_ends_the_climb_and_tells_so_at_once() -> None:
    day = Day(QUOTES)
    day.pass_(130.0)
    assert day.data(QUOTES)
    assert not day.data(QUOTES)
    assert day.status is HealthStatus.HEALTHY
    assert [step for _, step in day.pass_(119.0)] == []


def climb(day: Day, *, answer: bool = True) -> list[Step]:
    """One round of the ladder to its top; probes are answered."""
    found: list[Step] = []
    for _ in range(200):
        day.now = day.watch.deadline(day.now, day.wall)
        steps = day.check()
        found += steps
        if answer and Step.PROBE in steps:
            day.watch.probed(day.now)
        if Step.RECONNECT in steps or Step.ALARM in steps:
            return found
    return found


def test_a_stream_that_stays_blind_calls_a_person_and_goes_on_rarely_and_loudly() -> None:
    day = Day(QUOTES)
    ends = []
    for _ in range(6):
        found = climb(day)
        ends.append((found[-1], Step.ALARM in found, Step.RECONNECT in found))
        at = day.now
        day.reconnect()
    assert [alarm for _, alarm, _ in ends] == [False, False, False, True, True, True]
    assert all(reconnect for _, _, reconnect in ends)
    assert "nothing helped" not in str(day.health.reasons)  # it waits for the new connection
    climb(day)
    assert day.now - at >= LADDER.again
    assert day.health.reasons[0].startswith("nothing helped so far") or (
        "nothing helped so far: GatewayQuote MNQ" in day.health.reasons
    )


def test_the_alarm_says_how_often_nothing_helped() -> None:
    day = Day(QUOTES)
    for _ in range(3):
        climb(day)
        day.reconnect()
    found = []
    while not any(finding.step is Step.ALARM for finding in found):
        day.now = day.watch.deadline(day.now, day.wall)
        found = day.findings()
        day.watch.probed(day.now)
    [alarm] = [finding for finding in found if finding.step is Step.ALARM]
    assert alarm.reason.endswith("nothing helped in 3 rounds before")


def test_data_in_time_ends_the_alarm_and_the_rounds_count_from_nothing() -> None:
    day = Day(QUOTES)
    for _ in range(4):
        climb(day)
        day.reconnect()
    day.data(QUOTES)
    day.check()
    assert day.status is HealthStatus.HEALTHY
    assert [Step.ALARM in climb(day) or day.reconnect() for _ in range(3)] == [None] * 3


def test_one_blind_topic_does_not_blind_the_others_again_and_again() -> None:
    day = Day(QUOTES, TRADES)
    found: list[tuple[float, Step]] = []
    for minute in range(120):
        for _ in range(6):
            day.now += 10.0
            day.data(TRADES)
            steps = day.check()
            found += [(minute, step) for step in steps]
            if Step.PROBE in steps:
                day.watch.probed(day.now)
            if Step.RECONNECT in steps:
                day.reconnect()
                day.data(TRADES)
    steps = [step for _, step in found]
    assert steps.count(Step.RECONNECT) == 1
    assert 5 <= steps.count(Step.ALARM) <= 8
    assert steps.count(Step.RESUBSCRIBE) >= steps.count(Step.ALARM)
    assert day.status is HealthStatus.UNHEALTHY
    assert "stale: GatewayQuote MNQ" in day.health.reasons


def test_one_stale_topic_of_several_is_a_degraded_stream() -> None:
    day = Day(QUOTES, TRADES)
    day.now += 119.0
    day.data(TRADES)
    day.now += 1.0
    day.check()
    assert day.health == Health(HealthStatus.DEGRADED, ("stale: GatewayQuote MNQ",))


def test_many_stale_topics_are_one_finding_and_one_short_reason() -> None:
    topics = [Topic("GatewayQuote", key=f"K{number}", cadence=60.0) for number in range(8)]
    day = Day(*topics)
    day.now += 60.0
    stale, probe = day.findings()
    assert (len(stale.topics), len(probe.topics)) == (8, 8)
    assert stale.reason.endswith("(and 7 more)")
    assert day.health.reasons == (
        f"stale: {', '.join(f'GatewayQuote K{number}' for number in range(5))} and 3 more",
    )


def test_after_a_long_sleep_only_the_largest_step_is_taken() -> None:
    day = Day(QUOTES, ORDERS)
    day.data(QUOTES)
    day.now += 8 * 3600.0
    assert day.check() == [Step.STALE, Step.RECONNECT]


# --- what is silent by nature ---


def test_an_account_without_events_is_asked_about_and_never_accused() -> None:
    day = Day(ORDERS)
    probes = 0
    for _ in range(24 * 60):
        steps = [step for _, step in day.pass_(60.0)]
        assert set(steps) <= {Step.PROBE}
        probes += len(steps)
        if steps:
            day.watch.probed(day.now)
    assert probes == pytest.approx(24 * 3600 / 120, abs=2)
    assert day.status is HealthStatus.HEALTHY
    assert day.watch.sees(ORDERS)


def test_an_event_postpones_the_question() -> None:
    day = Day(ORDERS)
    day.now += 100.0
    day.data(ORDERS)
    assert day.pass_(119.0) == []
    assert [step for _, step in day.pass_(1.0)] == [Step.PROBE]


def test_a_probe_without_an_answer_means_a_new_connection() -> None:
    day = Day(ORDERS)
    assert day.pass_(120.0) == [(120.0, Step.PROBE)]
    assert day.pass_(14.9) == []
    day.now += 0.1
    [reconnect] = day.findings()
    assert (reconnect.step, reconnect.topics) == (Step.RECONNECT, ())
    assert reconnect.reason == "a probe failed: no answer in 15 s"


@pytest.mark.parametrize("error", [None, "Method does not exist"])
def test_data_behind_an_unanswered_probe_is_an_answer(error: str | None) -> None:
    day = Day(ORDERS)
    day.pass_(121.0)
    day.data(ORDERS)
    if error:
        day.watch.probed(day.now, error)
    assert day.pass_(100.0) == []


def test_a_failed_probe_means_a_new_connection_and_in_the_end_a_person() -> None:
    day = Day(ORDERS)
    ends = []
    for _ in range(5):
        day.pass_(120.0)
        day.watch.probed(day.now, "Method does not exist")
        ends.append(day.findings())
        assert day.findings() == []
        day.reconnect()
    assert [[finding.step for finding in end] for end in ends] == [[Step.RECONNECT]] * 3 + [
        [Step.RECONNECT, Step.ALARM]
    ] * 2
    assert ends[0][0].reason == "a probe failed: Method does not exist"
    assert "so it did on 3 connections before" in ends[3][1].reason


def test_an_answer_or_data_forgets_failed_probes() -> None:
    day = Day(ORDERS)
    for _ in range(6):
        for _ in range(2):
            day.pass_(120.0)
            day.watch.probed(day.now, "no")
            assert day.check() == [Step.RECONNECT]
            day.reconnect()
        day.data(ORDERS)
        day.check()


def test_an_answer_to_nothing_says_nothing() -> None:
    day = Day(ORDERS)
    day.watch.probed(day.now, "of an earlier connection")
    assert day.check() == []


def test_one_probe_at_a_time_is_enough() -> None:
    day = Day(ORDERS, QUOTES, probe_timeout=500.0)
    assert [step for _, step in day.pass_(120.0)] == [Step.STALE, Step.PROBE]
    assert Step.PROBE not in [step for _, step in day.pass_(30.0)]


# --- sessions ---

CHICAGO = ZoneInfo("America/Chicago")


def futures(at: str) -> Day:
    return Day(
        Topic("GatewayQuote", key="MNQ", cadence=120.0, session=CME_FUTURES),
        start=datetime.fromisoformat(at).replace(tzinfo=CHICAGO),
    )


@pytest.mark.parametrize(
    ("last_data", "opening"),
    [
        ("2026-11-16 15:59:30", "2026-11-16 17:00:00"),  # the daily maintenance break
        ("2026-11-20 15:59:30", "2026-11-22 17:00:00"),  # the weekend
        ("2026-11-26 11:59:30", "2026-11-26 17:00:00"),  # Thanksgiving
        ("2026-12-24 12:14:30", "2026-12-27 17:00:00"),  # Christmas and the weekend behind it
        (
            "2026-03-06 15:59:30",
            "2026-03-08 17:00:00",
        ),  # the weekend with the change to summer time
    ],
)
def test_a_closed_market_accuses_nobody_and_its_opening_starts_the_wait_anew(
    last_data: str, opening: str
) -> None:
    day = futures(last_data)
    day.data(day.topics[0])
    opens = datetime.fromisoformat(opening).replace(tzinfo=CHICAGO)
    quiet = (opens.astimezone(UTC) - day.wall.astimezone(UTC)).total_seconds()
    assert day.pass_(quiet + 119.0) == []
    assert day.status is HealthStatus.HEALTHY
    assert [step for _, step in day.pass_(1.0)] == [Step.STALE, Step.PROBE]


def test_the_wait_after_an_opening_ends_to_the_second() -> None:
    day = futures("2026-11-16 16:59:50")
    assert day.pass_(129.0) == []
    assert [step for _, step in day.pass_(1.0)] == [Step.STALE, Step.PROBE]


def test_a_connection_made_while_the_market_is_closed_sees_what_there_is_to_see() -> None:
    day = futures("2026-11-21 12:00:00")
    assert day.watch.deadline(day.now, day.wall) == day.now  # the session is judged at once
    assert day.check() == []
    assert day.watch.sees(day.topics[0])
    assert day.status is HealthStatus.HEALTHY
    assert day.watch.blind_since(day.topics[0]) is None


def test_the_close_ends_an_accusation() -> None:
    day = futures("2026-11-16 15:57:00")
    assert [step for _, step in day.pass_(121.0)] == [Step.STALE, Step.PROBE]
    day.watch.probed(day.now)
    found = day.pass_(120.0)
    assert found[-1][1] is Step.FRESH
    assert not day.watch.is_stale(day.topics[0])


def test_markets_with_other_hours_do_not_excuse_each_other() -> None:
    start = datetime(
        2026, 11, 16, 17, 30, tzinfo=ZoneInfo("America/New_York")
    )  # maintenance, after hours
    stock = Topic("LEVELONE_EQUITIES", key="AAPL", cadence=60.0, session=US_EQUITIES)
    future = Topic("GatewayQuote", key="MNQ", cadence=60.0, session=CME_FUTURES)
    day = Day(stock, future, start=start)
    assert day.pass_(1800.0) == []
    assert [step for _, step in day.pass_(60.0)] == [Step.STALE, Step.PROBE]
    assert day.watch.is_stale(future)
    assert not day.watch.is_stale(stock)
    assert day.status is HealthStatus.UNHEALTHY  # of what is expected nothing comes


# --- lag ---


def test_events_that_come_late_degrade_the_stream_and_say_how_late() -> None:
    day = Day(QUOTES)
    day.data(QUOTES, late=0.1)
    day.check()
    day.now += 1.0
    day.data(QUOTES, late=9.1)
    day.check()
    assert day.health == Health(
        HealthStatus.DEGRADED,
        ("GatewayQuote MNQ: events come 9.0 s after their time at the venue",),
    )
    assert day.watch.lag(QUOTES) == pytest.approx(9.0)
    day.now += 1.0
    day.data(QUOTES, late=0.1)
    day.check()
    assert day.status is HealthStatus.HEALTHY


def test_data_that_flows_an_hour_late_is_stale_and_climbs_the_ladder_to_the_alarm() -> None:
    day = Day(QUOTES)
    steps: list[Step] = []
    for _ in range(1000):
        day.now += 1.0
        day.data(QUOTES, late=4140.0)
        found = day.check()
        steps += found
        if Step.PROBE in found:
            day.watch.probed(day.now)
        if Step.RECONNECT in found:
            day.reconnect()
        if Step.ALARM in found:
            break
    assert steps.count(Step.RECONNECT) == 4
    assert steps[-1] is Step.ALARM
    assert not day.watch.sees(QUOTES)


def test_a_late_stream_that_catches_up_is_fresh_at_the_next_check() -> None:
    day = Day(QUOTES)
    day.data(QUOTES, late=4140.0)
    assert day.check()[0] is Step.STALE
    day.now += 1.0
    assert not day.data(QUOTES, late=0.0)  # first it is judged
    assert day.check() == [Step.FRESH]
    assert day.status is HealthStatus.HEALTHY


# --- reasons, blindness ---


def test_reasons_overlap_and_each_ends_with_its_own_cause() -> None:
    day = Day(QUOTES)
    day.data(QUOTES)
    day.watch.note("overflow", "a callback is too slow")
    day.watch.note("reconciling", "the positions are being compared")
    day.pass_(120.0)
    assert day.health.reasons == (
        "stale: GatewayQuote MNQ",
        "a callback is too slow",
        "the positions are being compared",
    )
    day.data(QUOTES)
    assert day.status is HealthStatus.DEGRADED
    day.watch.clear("overflow")
    day.watch.clear("overflow")
    assert day.health.reasons == ("the positions are being compared",)
    day.watch.disconnected(day.now, "cut")
    assert day.health.reasons == ("cut", "the positions are being compared")
    day.connect()
    day.data(QUOTES)
    day.watch.clear("reconciling")
    assert day.health == Health(HealthStatus.HEALTHY)


def test_blindness_counts_from_the_last_data_before_the_silence() -> None:
    day = Day(QUOTES)
    assert day.watch.blind_since(QUOTES) == 1000.0  # wanted, and never seen
    day.data(QUOTES)
    assert day.watch.blind_since(QUOTES) is None
    day.pass_(130.0)
    assert day.watch.blind_since(QUOTES) == 1000.0
    day.reconnect()
    assert day.watch.blind_since(QUOTES) == 1000.0  # a new connection alone shows nothing
    day.data(QUOTES)
    assert day.watch.blind_since(QUOTES) is None
    assert day.watch.last_data(QUOTES) == day.now


def test_what_may_be_silent_is_blind_from_the_loss_to_the_confirmation() -> None:
    day = Day(ORDERS)
    assert day.watch.blind_since(ORDERS) is None
    day.now += 10.0
    day.watch.disconnected(day.now, "cut")
    assert not day.watch.sees(ORDERS)
    day.now += 5.0
    assert day.watch.blind_since(ORDERS) == 1010.0
    day.connect()
    assert day.watch.blind_since(ORDERS) is None


def test_what_nobody_watches_is_nobodys_business() -> None:
    day = Day(QUOTES)
    day.watch.unwatch(QUOTES)
    assert day.pass_(3600.0) == []
    assert not day.data(QUOTES)
    day.watch.confirmed(QUOTES, day.now)
    assert day.watch.last_data(QUOTES) is None
    assert day.watch.lag(QUOTES) == 0.0
    assert day.watch.blind_since(QUOTES) is None
    assert not day.watch.sees(QUOTES)
    assert not day.watch.is_stale(QUOTES)
    assert repr(day.watch) == "<HealthWatch healthy, 0 topics>"


def test_a_topic_watched_twice_keeps_what_is_known_of_it() -> None:
    day = Day(QUOTES)
    day.data(QUOTES)
    day.watch.watch(QUOTES, day.now)
    assert day.watch.sees(QUOTES)


@given(
    st.lists(
        st.tuples(st.sampled_from(["data", "orders", "probe", "check", "reconnect"]), st.floats(0.0, 100.0)),
        max_size=60,
    )
)  # fmt: skip
def test_whatever_happens_stale_means_no_data_for_the_cadence_and_the_watch_never_looks_away(
    happenings,
) -> None:
    day = Day(QUOTES, ORDERS)
    last = day.now
    for what, seconds in happenings:
        day.pass_(seconds)
        if what == "data":
            day.data(QUOTES)
            last = day.now
        elif what == "orders":
            day.data(ORDERS)
        elif what == "probe":
            day.watch.probed(day.now)
        elif what == "reconnect":
            day.reconnect()
            last = day.now
        day.check()
        assert day.watch.is_stale(QUOTES) == (day.now - last >= 120.0)
        assert day.now <= day.watch.deadline(day.now, day.wall) <= day.now + 30.0


# --- settings ---


@pytest.mark.parametrize("key", ["heartbeat", "stale_after", "lag_limit", "probe_timeout"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_settings_that_make_no_sense_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        HealthWatch(**{key: value})
    assert caught.value.key == key


@pytest.mark.parametrize(
    "wrong",
    [{"probe": -1.0}, {"resubscribe": 60.0}, {"reconnect": float("inf")}, {"rounds": 0}, {"again": 0.0}],
)  # fmt: skip
def test_a_ladder_that_leads_nowhere_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        Ladder(**wrong)
    assert caught.value.key == "ladder"
