"""Which calls and streams of ours are open, and which calls of the server's still want an answer.

Invariants: an id of ours is used once; every call ends in one `Answered` and every stream in one `Ended`, unless it was
cancelled; what belongs to nothing that is open is a `Stray`; an id of the server's is answered once.
"""

from enum import Enum, auto
from typing import Any

import msgspec

from keepline.stream.binding import Types
from keepline.stream.messages import BindingFailure, Completion, StreamItem
from keepline.stream.wire_events import Answered, Cancelled, Ended, Item, Stray

__all__ = ["Ledger", "Waiting"]


class Waiting(Enum):
    """What an id of ours stands for."""

    CALL = auto()
    """One answer will come."""
    STREAM = auto()
    """Items will come, and an end."""
    CANCELLED = auto()
    """Nobody wants it any more, but items or an answer may be under way."""


class Ledger:
    """The open calls of one conversation.

    Args:
        types: where the types of results and items are registered while they are expected.
    """

    __slots__ = ("_last_id", "_owed", "_types", "_waiting")

    def __init__(self, types: Types) -> None:
        self._types = types
        self._last_id = 0
        self._waiting: dict[str, Waiting] = {}
        self._owed: set[str] = set()

    def new_id(self) -> str:
        """An id that stood for nothing before."""
        self._last_id += 1
        return str(self._last_id)

    def wait(self, call_id: str, waiting: Waiting, kind: Any) -> None:
        """Answers or items of a type will come under an id.

        Raises:
            ConfigError: the type cannot be decoded.
        """
        self._types.expect_result(call_id, kind)
        self._waiting[call_id] = waiting

    def forget(self, call_id: str) -> None:
        """The call was never made."""
        self._types.forget_result(call_id)
        self._waiting.pop(call_id, None)

    def cancel(self, call_id: str) -> Waiting | None:
        """Want no more of a call or stream; gives what it was, None when it was not open."""
        waiting = self._waiting.get(call_id)
        if waiting is None or waiting is Waiting.CANCELLED:
            return None
        self._waiting[call_id] = Waiting.CANCELLED
        self._types.forget_result(call_id)
        return waiting

    def item(self, message: StreamItem) -> Item | Stray | None:
        """An item arrived."""
        waiting = self._waiting.get(message.id)
        if waiting is Waiting.STREAM:
            return Item(message.id, message.item)
        return None if waiting is Waiting.CANCELLED else Stray("item", message.id)

    def completion(self, message: Completion) -> Answered | Ended | Stray | None:
        """An answer, or the end of a stream, arrived."""
        result = None if message.result is msgspec.UNSET else message.result
        return self._finish(message.id, result, message.error, False)

    def unfit(self, call_id: str, failure: BindingFailure) -> Answered | Ended | Stray | None:
        """A result or an item has another type than expected; an open stream is then cancelled as well."""
        if not failure.stream:
            return self._finish(call_id, None, failure.reason, True)
        if self._waiting.get(call_id) is Waiting.STREAM:
            return Ended(call_id, failure.reason, True)
        return None if call_id in self._waiting else Stray("item", call_id)

    def _finish(
        self, call_id: str, result: Any, error: str | None, unfit: bool
    ) -> Answered | Ended | Stray | None:
        waiting = self._waiting.pop(call_id, None)
        self._types.forget_result(call_id)
        if waiting is Waiting.STREAM:
            return Ended(call_id, error, unfit)
        if waiting is Waiting.CALL:
            return Answered(call_id, result, error, unfit)
        return None if waiting is Waiting.CANCELLED else Stray("completion", call_id)

    def owe(self, call_id: str) -> None:
        """The server waits for an answer under an id."""
        self._owed.add(call_id)

    def owes(self, call_id: str) -> bool:
        """Whether the server waits for an answer under an id."""
        return call_id in self._owed

    def answered(self, call_id: str) -> None:
        """The server has its answer."""
        self._owed.discard(call_id)

    def withdrawn(self, call_id: str) -> Cancelled | Stray:
        """The server waits no more."""
        if call_id not in self._owed:
            return Stray("cancellation", call_id)
        self._owed.discard(call_id)
        return Cancelled(call_id)
