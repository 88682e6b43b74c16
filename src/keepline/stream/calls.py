"""What we wait for on a hub connection: answers of calls and items of streams.

Invariants: everything that waits is settled once, by its answer or by the end of the connection; a queue of items is
bounded, and the stream that overflows it ends alone with `QueueFull`, never in silence; the words of the server come
with their explanation.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from keepline.errors import (
    APIError,
    ConfigError,
    KeeplineError,
    OutcomeUnknown,
    PermanentError,
    ProtocolError,
    QueueFull,
    TransientError,
)
from keepline.stream.explain import explain
from keepline.stream.port import Lost
from keepline.stream.wire_events import Answered, CloseReason, Ended, Item

__all__ = ["Calls", "ItemQueue", "start_failure", "unknown"]


class ItemQueue:
    """The items of one stream between the reader and whoever iterates."""

    __slots__ = ("_error", "_items", "_limit", "_news", "_over", "name")

    def __init__(self, name: str, limit: int) -> None:
        if limit < 1:
            raise ConfigError(f"at least one item must fit, not {limit}", key="buffer")
        self.name = name
        self._limit = limit
        self._items: deque[Any] = deque()
        self._news = asyncio.Event()
        self._over = False
        self._error: KeeplineError | None = None

    def put(self, item: Any) -> bool:
        """Take an item; False when there is no room, which ends the stream."""
        if len(self._items) >= self._limit:
            self.end(
                QueueFull(
                    f"{self.name}: more than {self._limit} items wait to be taken; the stream was cancelled"
                )
            )
            return False
        self._items.append(item)
        self._news.set()
        return True

    def end(self, error: KeeplineError | None = None) -> None:
        """No more items come; what waits is still handed out before the error."""
        if not self._over:
            self._over, self._error = True, error
            self._news.set()

    async def take(self) -> Any:
        """The next item.

        Raises:
            StopAsyncIteration: the stream is over.
            KeeplineError: it ended with this.
        """
        while not self._items:
            if self._over:
                raise self._error or StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._items.popleft()


class Calls:
    """All calls and streams that are open on one connection.

    Args:
        cancel: tells the wire that a stream is wanted no more.
    """

    def __init__(self, cancel: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._answers: dict[str, tuple[str, asyncio.Future[Any]]] = {}
        self._streams: dict[str, ItemQueue] = {}

    def __len__(self) -> int:
        return len(self._answers) + len(self._streams)

    def expect(self, call_id: str, name: str) -> asyncio.Future[Any]:
        """Wait for the answer of a call; `name` is for the words of an error."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[call_id] = name, answer
        return answer

    def expect_items(self, call_id: str, queue: ItemQueue) -> None:
        """Wait for the items of a stream."""
        self._streams[call_id] = queue

    def forget(self, call_id: str) -> None:
        """Nobody waits any more; unknown ids are left alone."""
        self._answers.pop(call_id, None)
        self._streams.pop(call_id, None)

    def answered(self, event: Answered) -> None:
        """A call is over."""
        name, answer = self._answers.pop(event.id, ("", None))
        if answer is None or answer.done():
            return
        if event.error is None:
            answer.set_result(event.result)
        else:
            answer.set_exception(_failure(name, event.error, event.unfit))

    def item(self, event: Item) -> None:
        """A stream has an item; without room for it the stream is cancelled."""
        queue = self._streams.get(event.id)
        if queue is not None and not queue.put(event.item):
            self._streams.pop(event.id)
            self._cancel(event.id)

    def ended(self, event: Ended) -> None:
        """A stream is over."""
        queue = self._streams.pop(event.id, None)
        if queue is not None:
            words = event.error
            queue.end(None if words is None else _failure(queue.name, words, event.unfit))

    def lost(self, words: str) -> None:
        """The connection is over: nobody will ever know what became of the open calls."""
        answers, self._answers = self._answers, {}
        streams, self._streams = self._streams, {}
        for name, answer in answers.values():
            if not answer.done():
                answer.set_exception(unknown(name, words))
                answer.exception()  # whoever asked may be gone: then nobody is to be told
        for queue in streams.values():
            queue.end(unknown(queue.name, words))


def unknown(name: str, words: str, *, category: str = "network") -> OutcomeUnknown:
    """The error of a call whose answer will not come."""
    return OutcomeUnknown(
        f"{words}; it may have taken effect: look it up before you send it again",
        category=category,
        endpoint=name,
    )


def _failure(name: str, error: str, unfit: bool) -> KeeplineError:
    if unfit:
        return ProtocolError(f"{name}: it worked, but what came back does not fit: {error}")
    category = "auth" if "user is unauthorized" in error else "client"
    failure: APIError = PermanentError(explain(error), category=category, endpoint=name)
    return failure


def start_failure(lost: Lost, how: CloseReason, name: str) -> APIError:
    """The error of a start that failed after the transport was open."""
    words = explain(lost.error or "")
    if how is CloseReason.REFUSED:
        return PermanentError(f"the server refused the handshake: {words}", endpoint=name)
    if how is CloseReason.MALFORMED:
        return PermanentError(
            f"the server does not speak the hub protocol: {words}; is this the address of a SignalR hub?",
            category="server",
            endpoint=name,
        )
    if how is CloseReason.HANDSHAKE_TIMEOUT:
        return TransientError(words, category="timeout", endpoint=name)
    return TransientError(
        f"the connection ended before the handshake was done: {words or lost.reason}",
        category="network",
        endpoint=name,
    )
