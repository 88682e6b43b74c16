"""Intents outlive connections: what is wanted is confirmed in the end, each asked for once per connection, in order."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keepline.errors import ConfigError
from keepline.resilience.backoff import Backoff
from keepline.stream.port import Topic
from keepline.stream.standing import ident_of
from keepline.stream.subscriptions import Action, Command, Phase, Registry


def quote(key: str, *, gives_back: bool = True) -> Topic:
    unsubscribe = ("UnsubscribeContractQuotes", key) if gives_back else None
    return Topic("GatewayQuote", ("SubscribeContractQuotes", key), unsubscribe, key)


A, B, C = quote("A"), quote("B"), quote("C")


def registry(*topics: Topic, parallel: int = 16) -> Registry:
    made = Registry(backoff=Backoff((1.0, 2.0, 60.0), jitter=0.0), parallel=parallel)
    for topic in topics:
        made.want(topic)
    return made


def asked(commands: list[Command]) -> list[tuple[str, str]]:
    return [(command.action.value, command.topic.key) for command in commands]


def answer_all(made: Registry, now: float = 0.0) -> list[tuple[str, str]]:
    """Confirm until nothing is due; what was asked, in order."""
    order = []
    while commands := made.due(now):
        order += asked(commands)
        for command in commands:
            assert made.confirmed(command)
    return order


def test_what_is_wanted_is_asked_for_in_order_once_a_connection_is_open() -> None:
    made = registry(B, A, C)
    assert made.due(0.0) == []
    assert not made.settled()
    made.connected()
    assert asked(made.due(0.0)) == [("subscribe", "B"), ("subscribe", "A"), ("subscribe", "C")]
    assert made.due(0.0) == []  # each once
    assert made.phase(A) is Phase.PENDING


def test_the_phases_of_a_topic() -> None:
    made = registry()
    assert made.phase(A) is Phase.UNKNOWN
    assert made.want(A)
    assert made.phase(A) is Phase.WANTED
    made.connected()
    [command] = made.due(0.0)
    assert made.phase(A) is Phase.PENDING
    assert made.confirmed(command)
    assert made.phase(A) is Phase.CONFIRMED
    assert made.data(ident_of(A))
    assert not made.data(ident_of(A))
    assert made.phase(A) is Phase.FIRST_DATA
    made.disconnected()
    assert made.phase(A) is Phase.WANTED


def test_data_before_the_confirmation_counts_as_first_data() -> None:
    made = registry(A)
    made.connected()
    [command] = made.due(0.0)
    assert made.data(ident_of(A))
    made.confirmed(command)
    assert made.phase(A) is Phase.FIRST_DATA
    assert not made.data(("GatewayQuote", "nobody wants it"))


def test_callbacks_share_one_subscription_and_the_last_one_gives_it_back() -> None:
    made = registry(A)
    assert not made.want(A)
    assert made.holders(A) == 2
    made.connected()
    assert answer_all(made) == [("subscribe", "A")]
    assert not made.release(A)
    assert made.due(0.0) == []
    assert made.release(A)
    assert not made.release(A)
    assert made.holders(A) == 0
    assert answer_all(made) == [("unsubscribe", "A")]
    assert made.phase(A) is Phase.UNKNOWN


def test_the_same_channel_and_key_with_another_request_is_refused_with_words() -> None:
    made = registry(A)
    other = Topic("GatewayQuote", ("SubscribeSomethingElse", "A"), None, "A")
    with pytest.raises(ConfigError, match=r"already subscribed with .*SubscribeContractQuotes"):
        made.want(other)
    assert made.holders(A) == 1


def test_a_topic_left_while_it_was_asked_for_is_given_back_after_the_answer() -> None:
    made = registry(A)
    made.connected()
    [command] = made.due(0.0)
    made.release(A)
    assert made.due(0.0) == []
    made.confirmed(command)
    assert answer_all(made) == [("unsubscribe", "A")]


def test_a_topic_wanted_again_while_it_is_given_back_is_asked_for_anew_and_last() -> None:
    made = registry(A, B)
    made.connected()
    answer_all(made)
    made.release(A)
    [leaving] = made.due(0.0)
    made.want(A)
    assert made.due(0.0) == []
    made.confirmed(leaving)
    assert answer_all(made) == [("subscribe", "A")]
    made.disconnected()
    made.connected()
    assert answer_all(made) == [("subscribe", "B"), ("subscribe", "A")]


def test_what_cannot_be_given_back_is_not_asked_for_twice_on_one_connection() -> None:
    stays = quote("S", gives_back=False)
    made = registry(stays)
    made.connected()
    answer_all(made)
    made.release(stays)
    assert made.due(0.0) == []
    made.want(stays)
    assert made.due(0.0) == []
    assert made.settled()
    made.disconnected()
    made.connected()
    assert answer_all(made) == [("subscribe", "S")]


def test_another_request_for_what_is_still_there_first_gives_the_old_one_back() -> None:
    made = registry(A)
    made.connected()
    answer_all(made)
    made.release(A)
    other = Topic("GatewayQuote", ("SubscribeFast", "A"), ("UnsubscribeFast", "A"), "A")
    made.want(other)
    assert not made.settled()
    [leaving] = made.due(0.0)
    assert leaving.topic.unsubscribe == ("UnsubscribeContractQuotes", "A")
    made.confirmed(leaving)
    [asking] = made.due(0.0)
    assert asking.topic == other


def test_another_request_for_what_cannot_be_given_back_needs_a_new_connection() -> None:
    stays = quote("S", gives_back=False)
    made = registry(stays)
    made.connected()
    answer_all(made)
    made.release(stays)
    made.want(Topic("GatewayQuote", ("SubscribeFast", "S"), None, "S"))
    assert "by another request" in (made.hopeless() or "")


def test_a_refusal_is_repeated_after_growing_waits_and_stops_nobody_else() -> None:
    made = registry(A, B)
    made.connected()
    first, second = made.due(0.0)
    made.failed(first, 0.0, reason="no such contract")
    made.confirmed(second)
    assert made.deadline() == 1.0
    assert made.due(0.5) == []
    [again] = made.due(1.0)
    made.failed(again, 1.0, reason="no such contract")
    assert made.deadline() == 3.0
    [standing, _] = made.standings()
    assert (standing.failures, standing.reason) == (2, "no such contract")
    assert (standing.phase, standing.retry_at) == (Phase.WANTED, 3.0)
    [again] = made.due(3.0)
    made.confirmed(again)
    assert made.settled()
    assert made.deadline() is None


@pytest.mark.parametrize(
    ("how", "at"),
    [({"permanent": True}, 60.0), ({"retry_after": 30.0}, 30.0), ({"retry_after": 0.1}, 1.0)],
)
def test_how_long_a_refusal_makes_wait(how: dict[str, float], at: float) -> None:
    made = registry(A)
    made.connected()
    [command] = made.due(0.0)
    made.failed(command, 0.0, reason="no", **how)
    assert made.deadline() == at


def test_after_a_lost_answer_a_topic_is_given_back_before_it_is_asked_for_again() -> None:
    made = registry(A)
    made.connected()
    [command] = made.due(0.0)
    made.failed(command, 0.0, reason="timeout", in_doubt=True)
    assert not made.settled()
    [back] = made.due(1.0)
    assert back.action is Action.UNSUBSCRIBE
    made.failed(back, 1.0, reason="was not subscribed", permanent=True)
    assert asked(made.due(1.0)) == [("subscribe", "A")]


def test_data_is_the_answer_to_a_subscribe_whose_answer_was_lost() -> None:
    made = registry(A)
    made.connected()
    [command] = made.due(0.0)
    made.failed(command, 0.0, reason="timeout", in_doubt=True)
    assert made.data(ident_of(A))
    assert made.phase(A) is Phase.FIRST_DATA
    assert made.due(100.0) == []


def test_only_a_new_connection_gives_certainty_when_answers_keep_getting_lost() -> None:
    stays = quote("S", gives_back=False)
    made = registry(A, stays)
    made.connected()
    asking, other = made.due(0.0)
    made.failed(other, 0.0, reason="timeout", in_doubt=True)
    assert "GatewayQuote S: whether it is subscribed is unknown" in (made.hopeless() or "")
    made.release(stays)
    assert made.hopeless() is None
    made.failed(asking, 0.0, reason="timeout", in_doubt=True)
    for now in (1.0, 10.0):
        assert made.hopeless() is None
        [back] = made.due(now)
        made.failed(back, now, reason="timeout", in_doubt=True)
    assert "no answer 3 times in a row (timeout)" in (made.hopeless() or "")
    made.disconnected()
    made.connected()
    assert made.hopeless() is None


def test_a_giving_back_that_fails_for_now_is_repeated_and_one_that_was_refused_is_over() -> None:
    made = registry(A, B)
    made.connected()
    answer_all(made)
    made.release(A)
    [back] = made.due(0.0)
    made.failed(back, 0.0, reason="busy")
    assert made.due(0.5) == []
    [back] = made.due(1.0)
    made.failed(back, 1.0, reason="unknown", permanent=True)
    assert made.due(1e6) == []
    assert made.settled()


def test_answers_of_an_earlier_connection_change_nothing() -> None:
    made = registry(A)
    first = made.connected()
    [old] = made.due(0.0)
    made.disconnected(first)
    made.connected()
    assert not made.confirmed(old)
    assert not made.failed(old, 0.0, reason="late")
    assert made.phase(A) is Phase.WANTED
    [new] = made.due(0.0)
    assert made.confirmed(new)
    assert not made.confirmed(new)  # nor does a second answer


def test_a_late_answer_is_not_taken_for_that_of_a_newer_request() -> None:
    made = registry(A)
    made.connected()
    [asking] = made.due(0.0)
    made.failed(asking, 0.0, reason="timeout", in_doubt=True)
    [back] = made.due(1.0)
    assert not made.confirmed(asking)
    assert made.phase(A) is Phase.WANTED
    assert made.confirmed(back)
    assert asked(made.due(1.0)) == [("subscribe", "A")]


def test_an_outage_during_the_resubscription_loses_nothing() -> None:
    made = registry(A, B, C, parallel=1)
    made.connected()
    [first] = made.due(0.0)
    made.confirmed(first)
    made.due(0.0)
    made.disconnected()
    made.connected()
    assert answer_all(made) == [("subscribe", "A"), ("subscribe", "B"), ("subscribe", "C")]
    assert made.settled()


def test_no_more_requests_are_under_way_than_allowed() -> None:
    made = registry(A, B, C, parallel=2)
    made.connected()
    first, _second = made.due(0.0)
    assert made.due(0.0) == []
    made.confirmed(first)
    assert asked(made.due(0.0)) == [("subscribe", "C")]


def test_givings_back_go_first_so_that_a_limit_of_the_venue_is_kept() -> None:
    made = registry(A, parallel=1)
    made.connected()
    answer_all(made)
    made.want(B)
    made.release(A)
    assert answer_all(made) == [("unsubscribe", "A"), ("subscribe", "B")]


def test_a_topic_is_asked_for_anew_on_the_same_connection() -> None:
    made = registry(A)
    assert not made.resubscribe(A)
    made.connected()
    answer_all(made)
    made.data(ident_of(A))
    assert made.resubscribe(A)
    assert not made.settled()
    assert answer_all(made) == [("unsubscribe", "A"), ("subscribe", "A")]
    assert made.phase(A) is Phase.CONFIRMED  # first data is awaited again
    assert made.due(0.0) == []


def test_what_cannot_be_given_back_cannot_be_asked_for_anew() -> None:
    stays = quote("S", gives_back=False)
    made = registry(stays)
    made.connected()
    answer_all(made)
    assert not made.resubscribe(stays)


def test_a_new_connection_is_filled_while_the_old_one_serves() -> None:
    made = registry(A, B)
    old = made.connected()
    answer_all(made)
    new = made.connected()
    assert (made.epoch, made.settled(old), made.settled(new)) == (new, True, False)
    assert asked(made.due(0.0, old)) == []
    assert answer_all(made) == [("subscribe", "A"), ("subscribe", "B")]
    assert made.data(ident_of(A), old)
    assert made.data(ident_of(A), new)
    made.disconnected(old)
    assert made.settled()


def test_when_the_new_connection_fails_the_old_one_still_counts() -> None:
    made = registry(A)
    old = made.connected()
    answer_all(made)
    made.disconnected(made.connected())
    assert made.epoch == old
    assert made.settled()


@pytest.mark.parametrize("wrong", [{"parallel": 0}, {"doubts": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Registry(**wrong)


def test_its_repr_tells_how_far_it_is() -> None:
    made = registry(A, B)
    made.connected()
    first, _ = made.due(0.0)
    made.confirmed(first)
    assert repr(made) == "<Registry epoch 1, 1 of 2 confirmed>"


class AnySchedule(RuleBasedStateMachine):
    """A venue that answers in any order, or not at all, under any wishes and any outages.

    The venue's own book is kept here: it must never see a subscribe for what it already has.
    """

    topics = (A, B, C, quote("S", gives_back=False))

    def __init__(self) -> None:
        super().__init__()
        self.made = registry(parallel=3)
        self.now = 0.0
        self.holders = dict.fromkeys(range(len(self.topics)), 0)
        self.books: dict[int, dict[str, bool]] = {}  # what the venue has, by connection
        self.open: list[Command] = []
        self.firsts: dict[int, list[str]] = {}

    @rule(which=st.integers(0, 3))
    def want(self, which: int) -> None:
        self.made.want(self.topics[which])
        self.holders[which] += 1

    @rule(which=st.integers(0, 3))
    def release(self, which: int) -> None:
        last = self.made.release(self.topics[which])
        assert last == (self.holders[which] == 1)
        self.holders[which] = max(self.holders[which] - 1, 0)

    @precondition(lambda self: len(self.books) < 2)
    @rule()
    def connect(self) -> None:
        epoch = self.made.connected()
        self.books[epoch] = {}
        self.firsts[epoch] = [topic.key for topic in self.made.wanted]

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        epoch = data.draw(st.sampled_from(sorted(self.books)))
        self.made.disconnected(epoch)
        del self.books[epoch]

    @rule(seconds=st.sampled_from([0.0, 1.0, 70.0]))
    def send(self, seconds: float) -> None:
        self.now += seconds
        for command in self.made.due(self.now):
            self.open.append(command)
            book = self.books[command.epoch]
            if command.action is Action.SUBSCRIBE:
                assert not book.get(command.topic.key), "subscribed twice on one connection"
                self.in_order(command)

    def in_order(self, command: Command) -> None:
        """Of those wanted when the connection opened, each first request comes in that order."""
        firsts, key = self.firsts[command.epoch], command.topic.key
        if key in firsts:
            wanted = {topic.key for topic in self.made.wanted}
            earlier = [one for one in firsts[: firsts.index(key)] if one in wanted]
            self.firsts[command.epoch] = [one for one in firsts if one != key]
            order = [topic.key for topic in self.made.wanted]
            assert all(order.index(one) > order.index(key) for one in earlier), "out of order"

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["yes", "no", "never", "lost"]), does=st.booleans())
    def answer(self, data: st.DataObject, how: str, does: bool) -> None:
        command = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        known = command.epoch in self.books
        subscribing = command.action is Action.SUBSCRIBE
        if known and (how == "yes" or (how == "lost" and does)):
            self.books[command.epoch][command.topic.key] = subscribing
        if known and how == "never" and not subscribing:
            self.books[command.epoch][command.topic.key] = False  # there was nothing to give back
        if how == "yes":
            assert self.made.confirmed(command) == known
        else:
            told = self.made.failed(
                command,
                self.now,
                reason=how,
                in_doubt=how == "lost",
                permanent=how == "never",
            )
            assert told == known

    @invariant()
    def confirmed_means_confirmed(self) -> None:
        for epoch, book in self.books.items():
            for topic in self.made.wanted:
                if self.made.phase(topic, epoch) in (Phase.CONFIRMED, Phase.FIRST_DATA):
                    assert book.get(topic.key)

    def teardown(self) -> None:
        """From wherever it is, a patient venue brings it to the end: wanted is confirmed, nothing else is there."""
        for _ in range(50):
            for command in list(self.open):
                self.open.remove(command)
                if command.epoch in self.books:
                    book = self.books[command.epoch]
                    book[command.topic.key] = command.action is Action.SUBSCRIBE
                self.made.confirmed(command)
            for epoch in list(self.books):
                if self.made.hopeless(epoch):
                    self.made.disconnected(epoch)
                    del self.books[epoch]
            if not self.books:
                self.connect()
            self.send(70.0)
            if not self.open and not any(self.made.hopeless(epoch) for epoch in self.books):
                break
        wanted = {self.topics[which].key for which, count in self.holders.items() if count}
        assert {topic.key for topic in self.made.wanted} == wanted
        assert self.made.settled()
        for epoch, book in self.books.items():
            assert self.made.settled(epoch)
            there = {key for key, present in book.items() if present}
            assert there - {"S"} == wanted - {"S"}
            assert there >= wanted


TestAnySchedule = AnySchedule.TestCase
TestAnySchedule.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
