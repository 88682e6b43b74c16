"""Who wants which messages of a stream: topics shared by callbacks, each callback with a mailbox of its own.

Invariants: a topic is wanted from the broker once however many callbacks share it, and given back with the last; the
way of a message is worked out once for each channel and key; nothing here waits.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from keepline.clock import Clock
from keepline.errors import ConfigError
from keepline.stream.delivery import Callback, Delivery, Overflow
from keepline.stream.port import KeyOf, Topic
from keepline.stream.subscriptions import Ident, ident_of

__all__ = ["ConflateBy", "Route", "Router", "Subscriber"]

ConflateBy = Callable[[Sequence[Any]], str]
"""The arguments of a message to the key under which a newer one replaces it."""

_ROUTES_KEPT = 10_000  # channel and key pairs whose way is remembered; a broker that invents keys costs no memory


class Subscriber:
    """One callback of one topic.

    Attributes:
        topic: what it wants.
        delivery: its mailbox and worker.
        conflate_by: under which key its messages replace each other, None for the topic's.
    """

    __slots__ = ("_make", "conflate_by", "delivery", "topic")

    def __init__(
        self, topic: Topic, make: Callable[[], Delivery], conflate_by: ConflateBy | None
    ) -> None:
        self.topic = topic
        self._make = make
        self.delivery = make()
        self.conflate_by = conflate_by

    async def restart(self, seconds: float) -> None:
        """Let the worker go; a later message starts a new one."""
        old, self.delivery = self.delivery, self._make()
        await old.close(drain_seconds=seconds)


class Route:
    """The way of the messages of one channel and key.

    Attributes:
        idents: the topics that they make fresh.
        subscribers: the callbacks that get them.
        never: whether one of the topics drops nothing.
    """

    __slots__ = ("idents", "never", "subscribers")

    def __init__(self, idents: tuple[Ident, ...], subscribers: tuple[Subscriber, ...]) -> None:
        self.idents = idents
        self.subscribers = subscribers
        self.never = any(one.topic.policy == "never" for one in subscribers)


class Router:
    """The callbacks of one stream.

    Args:
        key_of: tells to which topic a message belongs.
        mailbox: messages that may wait for one callback.
        on_overflow: called when a `never` mailbox is full, and when it has room again.
        clock: time.
    """

    def __init__(
        self,
        *,
        key_of: KeyOf,
        mailbox: int,
        on_overflow: Callable[[Overflow], None],
        clock: Clock,
    ) -> None:
        self.key_of = key_of
        self._mailbox = mailbox
        self._on_overflow = on_overflow
        self._clock = clock
        self._by_ident: dict[Ident, list[Subscriber]] = {}
        self._routes: dict[Ident, Route] = {}
        self._leaving: set[asyncio.Task[int]] = set()

    def add(
        self, topic: Topic, callback: Callback, *, inline: bool, conflate_by: ConflateBy | None
    ) -> Subscriber:
        """Add a callback.

        Raises:
            ConfigError: it is not callable, or shares a topic whose messages may be dropped in another way.
        """
        others = self._by_ident.get(ident_of(topic), [])
        if others and others[0].topic.policy != topic.policy:
            raise ConfigError(
                f"{topic.name} is subscribed with the policy {others[0].topic.policy!r} already",
                key="policy",
            )
        make = partial(
            Delivery,
            callback,
            channel=topic.channel,
            policy=topic.policy,
            limit=self._mailbox,
            inline=inline,
            on_overflow=self._on_overflow,
            clock=self._clock,
        )
        subscriber = Subscriber(topic, make, conflate_by)
        self._by_ident.setdefault(ident_of(topic), []).append(subscriber)
        self._routes.clear()
        return subscriber

    def remove(self, subscriber: Subscriber) -> bool:
        """Remove a callback and let its worker go; False when it is not here (any more)."""
        ident = ident_of(subscriber.topic)
        there = self._by_ident.get(ident, [])
        if subscriber not in there:
            return False
        there.remove(subscriber)
        if not there:
            del self._by_ident[ident]
        self._routes.clear()
        self.let_go(subscriber.delivery)
        return True

    def route(self, channel: str, key: str) -> Route:
        """The way of a message."""
        found = self._routes.get((channel, key))
        return found if found is not None else self._work_out(channel, key)

    def push(self, route: Route, arguments: Sequence[Any], key: str) -> None:
        """Put a message into the mailboxes of its callbacks; what a `conflate_by` raises comes last."""
        failed: Exception | None = None
        for subscriber in route.subscribers:
            by = subscriber.conflate_by
            try:
                subscriber.delivery.push(arguments, key if by is None else by(arguments))
            except (
                Exception
            ) as error:  # one that cannot tell its key takes no message from the others
                failed = error
        if failed is not None:
            raise failed

    def deliveries(self) -> list[Delivery]:
        """Every callback's mailbox."""
        return [one.delivery for there in self._by_ident.values() for one in there]

    async def close(self, seconds: float) -> None:
        """Let every worker go, each with that long for what waits; a later message starts new ones."""
        closing = [one.restart(seconds) for there in self._by_ident.values() for one in there]
        await asyncio.gather(*closing, *self._leaving, return_exceptions=True)

    def let_go(self, delivery: Delivery, seconds: float = 0.0) -> None:
        """Let a worker go, with that long for what waits, without waiting for it here."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # without a loop no worker ever started
        task = loop.create_task(delivery.close(drain_seconds=seconds))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _work_out(self, channel: str, key: str) -> Route:
        if len(self._routes) >= _ROUTES_KEPT:
            self._routes.clear()
        wanted = dict.fromkeys(((channel, key), (channel, "")))
        idents = tuple(ident for ident in wanted if ident in self._by_ident)
        subscribers = tuple(one for ident in idents for one in self._by_ident[ident])
        route = self._routes[channel, key] = Route(idents, subscribers)
        return route

    def __repr__(self) -> str:
        return f"<Router of {len(self._by_ident)} topics>"
