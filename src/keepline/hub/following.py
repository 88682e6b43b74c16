"""What a follower of channels knows: where it is in each, and which messages it wants to see.

Invariants: a decider; a message is given out once per channel, epoch and offset; after a break the next request resumes
where the last message was; what the hub says is never trusted to have the right shape.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from keepline.errors import ConfigError, PermanentError, ProtocolError

__all__ = ["Following", "Note"]

_CONTROL = frozenset(
    {"welcome", "subscribed", "unsubscribed", "refreshed", "error", "expiring", "pong", "gap"}
)
Message = dict[str, Any]


class Note(str):
    """Something that a person should know beside the messages."""


class Following:
    """The channels that are followed.

    Args:
        channels: their names.
        types: show only these types; all when empty.
        keys: show only these keys; all when empty.
    """

    def __init__(
        self, channels: Sequence[str], *, types: Iterable[str] = (), keys: Iterable[str] = ()
    ) -> None:
        if not channels or not all(channels):
            raise ConfigError("at least one channel is needed", key="channels")
        self.channels = list(dict.fromkeys(channels))
        self._types = frozenset(types)
        self._keys = frozenset(keys)
        self._positions: dict[str, tuple[str, int]] = {}
        self._refused: dict[str, str] = {}

    def request(self) -> bytes:
        """The subscription to send on a new connection."""
        wanted = [name for name in self.channels if name not in self._refused]
        action: Message = {"action": "subscribe", "channels": wanted}
        resume = {
            name: {"epoch": epoch, "offset": offset}
            for name, (epoch, offset) in self._positions.items()
            if name in wanted
        }
        if resume:
            action["resume"] = resume
        return msgspec.json.encode(action)

    def frame(self, text: str | bytes) -> list[Message | Note]:
        """What a frame has to show.

        Raises:
            ProtocolError: it is no array of messages.
            PermanentError: the hub refuses every channel.
        """
        try:
            messages = msgspec.json.decode(text, type=list[Message])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("the hub sent a frame that is no array of messages") from None
        shown: list[Message | Note] = []
        for message in messages:
            shown += self._message(message)
        return shown

    def _message(self, message: Message) -> Sequence[Message | Note]:
        kind, channel = message.get("type"), message.get("channel")
        if kind in _CONTROL:
            return self._control(str(kind), channel, message.get("data"))
        epoch, offset = message.get("epoch"), message.get("offset")
        if not (isinstance(channel, str) and isinstance(epoch, str) and isinstance(offset, int)):
            return ()
        before = self._seen(channel, epoch)
        self._positions[channel] = epoch, max(offset, before)
        if kind == "snapshot":
            return self._snapshot(message, before)
        return [message] if offset > before and self._wants(message) else ()

    def _snapshot(self, message: Message, before: int) -> Sequence[Message]:
        """A snapshot's items as the messages that they once were, without those that were shown."""
        data = message.get("data")
        items = data.get("items") if isinstance(data, dict) else None
        shown = []
        for item in items if isinstance(items, list) else ():
            if not isinstance(item, dict) or not isinstance(item.get("offset"), int):
                continue
            if item["offset"] > before:
                shown.append({**message, **item, "snapshot": True})
        return [item for item in shown if self._wants(item)]

    def _control(self, kind: str, channel: object, data: object) -> Sequence[Note]:
        told = data if isinstance(data, dict) else {}
        where = f"{channel}: " if isinstance(channel, str) else ""
        if kind == "subscribed" and isinstance(channel, str):
            return self._subscribed(channel, told)
        if kind == "gap":
            count = told.get("count")
            what = "messages were missed" if count is None else f"{count} messages were missed"
            return [Note(f"{where}{what} ({told.get('reason', 'no reason given')})")]
        if kind == "expiring":
            return [Note("the token expires soon")]
        if kind == "error":
            return self._error(channel, where, told)
        return ()

    def _subscribed(self, channel: str, told: Message) -> Sequence[Note]:
        """A count that begins anew makes every message new."""
        epoch = told.get("epoch")
        known = self._positions.get(channel)
        if isinstance(epoch, str) and known is not None and known[0] != epoch:
            self._positions[channel] = epoch, 0
        return ()

    def _error(self, channel: object, where: str, told: Message) -> Sequence[Note]:
        words = f"{where}{told.get('message', 'the hub reports an error')} ({told.get('code')})"
        if isinstance(channel, str) and channel in self.channels:
            self._refused[channel] = words
            if len(self._refused) == len(self.channels):
                raise PermanentError(words)
        return [Note(words)]

    def _seen(self, channel: str, epoch: str) -> int:
        known = self._positions.get(channel)
        return known[1] if known is not None and known[0] == epoch else 0

    def _wants(self, message: Message) -> bool:
        return (not self._types or message.get("type") in self._types) and (
            not self._keys or message.get("key") in self._keys
        )

    def __repr__(self) -> str:
        return f"<Following {', '.join(self.channels)}>"
