"""ProjectX's two hubs as a decider: who subscribed to what, and what the venue's events are to a subscriber.

Invariants: subscribing twice on one connection delivers twice, as users of TopstepX observed; unsubscribing ends all of
it; accounts of another broker and brackets that still wait are told to nobody; an account or a contract that does not
exist is subscribed to without a word and never tells anything.

Source: the realtime pages of gateway.docs.projectx.com; the `{action, data}` shape is what clients recorded.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

from keepline.sandbox import projectx_shapes as shapes
from keepline.sandbox.book import Event, Fill, Order, Position, Status
from keepline.sandbox.market import Market
from keepline.sandbox.signalr_calls import Method, methods
from keepline.sandbox.signalr_tape import Step, Tape

__all__ = ["LOGOUT", "MARKET", "TOPICS", "USER", "Book", "Feed", "Message", "Topic", "after"]

LOGOUT = "GatewayLogout"
"""What both hubs send when a session was displaced; undocumented."""


class Topic(Enum):
    """What can be subscribed to; the value is the event that it brings."""

    ACCOUNTS = "GatewayUserAccount"
    ORDERS = "GatewayUserOrder"
    POSITIONS = "GatewayUserPosition"
    TRADES = "GatewayUserTrade"
    QUOTES = "GatewayQuote"
    MARKET_TRADES = "GatewayTrade"
    DEPTH = "GatewayDepth"


class Message(NamedTuple):
    """An event for those who subscribed to its topic and key."""

    topic: Topic
    key: object
    arguments: tuple[object, ...]


_NAMES: Mapping[str, tuple[Topic, tuple[type, ...]]] = {
    "Accounts": (Topic.ACCOUNTS, ()),
    "Orders": (Topic.ORDERS, (int,)),
    "Positions": (Topic.POSITIONS, (int,)),
    "Trades": (Topic.TRADES, (int,)),
    "ContractQuotes": (Topic.QUOTES, (str,)),
    "ContractTrades": (Topic.MARKET_TRADES, (str,)),
    "ContractMarketDepth": (Topic.DEPTH, (str,)),
}
TOPICS: Mapping[str, tuple[Topic, bool]] = {
    f"{word}{name}": (topic, word == "Subscribe")
    for name, (topic, _) in _NAMES.items()
    for word in ("Subscribe", "Unsubscribe")
}
"""Topic of each method, and whether it begins or ends a subscription."""


def _table(names: Iterable[str]) -> Mapping[str, Method]:
    return methods(
        Method(f"{word}{name}", _NAMES[name][1])
        for name in names
        for word in ("Subscribe", "Unsubscribe")
    )


USER = _table(name for name in _NAMES if not name.startswith("Contract"))
"""Methods of the user hub, by lower-case name."""
MARKET = _table(name for name in _NAMES if name.startswith("Contract"))
"""Methods of the market hub."""


class Book:
    """What one connection subscribed to."""

    def __init__(self) -> None:
        self._times: Counter[tuple[Topic, object]] = Counter()

    def call(self, method: str, arguments: tuple[object, ...]) -> tuple[Topic, object] | None:
        """Do what a method says; the topic and key that it began, None when it ended one."""
        topic, begins = TOPICS[method]
        key = arguments[0] if arguments else None
        if begins:
            self._times[topic, key] += 1
            return topic, key
        self._times.pop((topic, key), None)
        return None

    def times(self, topic: Topic, key: object) -> int:
        """How often an event of this topic is sent to the connection."""
        return self._times.get((topic, key), 0)

    def keys(self, *topics: Topic) -> set[object]:
        """Accounts or contracts that it listens to."""
        return {key for topic, key in self._times if topic in topics}

    def __len__(self) -> int:
        return self._times.total()

    def __iter__(self) -> Iterator[tuple[Topic, object]]:
        return self._times.elements()


class Feed:
    """The venue's events as the hubs tell them; `now` is the market's time.

    Args:
        market: the truth.
        seed: of market data.
    """

    def __init__(self, market: Market, *, seed: int) -> None:
        self._market, self._seed = market, seed
        self._tapes: dict[str, Tape] = {}
        self._seen = 0

    def user_events(self) -> list[Message]:
        """What happened to accounts since the last look, oldest first."""
        events = self._market.events_since(self._seen)
        if events:
            self._seen = events[-1].number
        return [message for event in events for message in self._told(event)]

    def begun(self, topic: Topic, key: object, *, now: float) -> list[Message]:
        """What a new subscription is told first: a whole quote, a whole book."""
        tape = self._tape(key)
        if tape is None:
            return []
        if topic is Topic.QUOTES:
            return [Message(topic, key, (key, tape.quote(now=now)))]
        if topic is Topic.DEPTH:
            return [Message(topic, key, (key, tape.depth(now=now)))]
        return []

    def ticks(self, contracts: Iterable[object], *, now: float) -> list[Message]:
        """What happened at the market to contracts since the last look."""
        found: list[Message] = []
        for contract in sorted(map(str, contracts)):
            tape = self._tape(contract)
            if tape is not None:
                found += _ticks(contract, tape.step(now=now))
        return found

    def _told(self, event: Event) -> Iterator[Message]:
        item = event.item
        account = self._market.accounts[item.account]
        if account.hash:
            return
        key = int(item.account)
        if isinstance(item, Order):
            if item.status is not Status.SUSPENDED:
                listing = self._market.listings[item.listing]
                yield Message(Topic.ORDERS, key, (shapes.order_told(item, listing, skew=0.0),))
        elif isinstance(item, Fill):
            yield Message(Topic.TRADES, key, (shapes.trade_told(item, skew=0.0),))
        elif isinstance(item, Position):
            yield Message(Topic.POSITIONS, key, (shapes.position_told(item, skew=0.0),))
            cash = self._market.holdings.cash(account.id)
            yield Message(Topic.ACCOUNTS, None, (shapes.account_told(account, cash),))

    def _tape(self, contract: object) -> Tape | None:
        listing = self._market.listings.get(str(contract))
        if listing is None or not listing.is_future or not listing.active:
            return None
        if listing.id not in self._tapes:
            self._tapes[listing.id] = Tape(self._market, listing, seed=self._seed)
        return self._tapes[listing.id]


def after(message: Message, *, action: int | None) -> tuple[object, ...]:
    """The arguments as they are sent: flat, or wrapped as `{action, data}` on the user hub."""
    if action is None or message.topic in (Topic.QUOTES, Topic.MARKET_TRADES, Topic.DEPTH):
        return message.arguments
    return ({"action": action, "data": message.arguments[0]},)


def _ticks(contract: str, step: Step) -> Iterator[Message]:
    if step.quote:
        yield Message(Topic.QUOTES, contract, (contract, step.quote))
    if step.trades:
        yield Message(Topic.MARKET_TRADES, contract, (contract, step.trades))
    if step.depth:
        yield Message(Topic.DEPTH, contract, (contract, step.depth))
