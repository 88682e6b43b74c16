"""ProjectX's user and market hubs for connections: subscribing, and the venue's events on their way to a subscriber.

Invariants: the answer to a subscription comes before its first event; every decision about events is the feed's.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from keepline.sandbox.signalr_calls import Method
from keepline.sandbox.signalr_callwork import Caller, Strike
from keepline.sandbox.signalr_hubs import TOPICS, Feed, Message, after

__all__ = ["ProjectXHub"]


class ProjectXHub:
    """One of the two.

    Args:
        name: `user` or `market`.
        table: its methods.
        feed: the venue's events, brought up to date by the server.
        strike: faults of this hub.
        now: the market's time.
    """

    def __init__(
        self,
        name: str,
        table: Mapping[str, Method],
        feed: Callable[[], Feed],
        *,
        strike: Strike,
        now: Callable[[], float],
    ) -> None:
        self.name, self.route, self.table = name, f"{name}_hub", table
        self._feed, self._strike, self._now = feed, strike, now

    async def call(self, connection: Caller, method: Method, arguments: tuple[Any, ...]) -> object:
        """Subscribe or unsubscribe; nothing comes back."""
        connection.book.call(method.name, arguments)
        return None

    async def stream(self, _: Caller, __: Method, ___: tuple[Any, ...]) -> AsyncIterator[object]:
        """No method of these hubs streams."""
        return
        yield

    def answered(self, connection: Caller, method: Method, arguments: tuple[Any, ...]) -> None:
        """Tell a new subscriber how things stand."""
        topic, begins = TOPICS[method.name]
        if begins and arguments:
            for message in self._feed().begun(topic, arguments[0], now=self._now()):
                self._send(connection, message, 1)

    def tell(self, connections: Iterable[Caller], messages: Iterable[Message]) -> None:
        """Send events to whoever subscribed, as often as they did."""
        found = list(messages)
        for connection in connections:
            for message in found:
                times = connection.book.times(message.topic, message.key)
                self._send(connection, message, times)

    def _send(self, connection: Caller, message: Message, times: int) -> None:
        for _ in range(times):
            wrapped = self._strike(("wrapped_events",)).get("wrapped_events")
            action = int(str(wrapped.parameters["action"])) if wrapped else None
            connection.event(message.topic.value, after(message, action=action))
