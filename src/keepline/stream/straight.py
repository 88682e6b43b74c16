"""The short way of the most frequent frame: one plain call goes from its bytes to its handlers within one function.

Invariants: a frame that goes this way has the same effect as through `HubWire.receive` and `Dispatch.deliver`, and
whatever is not recognised by its first and last bytes, or does not fit, goes through them. There is one function for
each encoding, and both repeat the loop of `Dispatch.deliver`: a quote is decoded in 0.2 µs, and a call or an object
more on its way costs a quarter of that.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from keepline.stream.dispatch import Dispatch
from keepline.stream.messages import Invocation
from keepline.stream.wire import HubWire
from keepline.stream.wire_events import WireEvent

__all__ = ["Receive", "straight"]

Receive: TypeAlias = Callable[[bytes | str, float], Sequence[WireEvent]]
"""Takes what arrived and when; gives the events that are left for the face, as `Dispatch.deliver` does."""

_JSON_END: Final = b"}\x1e"
_JSON_KEY: Final = slice(20, 36)  # the first letters of the target, behind `{"type":1,"target":"`
_REMEMBERED: Final = 1024  # targets; a peer cannot make us remember more
_TWO_BYTES: Final = 0x3FFF  # the largest length that MessagePack's frame says in two bytes
_NONE: Final = ()


def straight(wire: HubWire, dispatch: Dispatch) -> Receive:
    """`wire.receive` and `dispatch.deliver` in one.

    Args:
        wire: a conversation; its decoder expects the types of the dispatch.
        dispatch: the handlers.
    """
    ways = _Ways(wire, dispatch)
    return _binary(ways) if wire.binary else _text(ways)


class _Ways:
    """The targets that were called so far, by the bytes with which a plain call of them begins."""

    def __init__(self, wire: HubWire, dispatch: Dispatch) -> None:
        self.wire = wire
        self.dispatch = dispatch
        self.known: dict[bytes, tuple[Any, ...]] = dispatch.types.derived()
        self._seen: dict[str, None] = dispatch.types.derived()

    def long_way(self, data: bytes | str, now: float) -> Sequence[WireEvent]:
        """What is not known yet, or no plain call; the next one of its kind may be."""
        events = self.wire.receive(data, now)
        if len(events) == 1 and type(call := events[0]) is Invocation:
            self._learn(call.target)
        return self.dispatch.deliver(events)

    def _learn(self, target: str) -> None:
        if target in self._seen or len(self._seen) >= _REMEMBERED:
            return
        self._seen[target] = None
        head, read = self.wire.decoder.plain(target)
        way = target, read, self.dispatch.handlers(target)
        if self.wire.binary:
            self.known[head] = way
        else:
            self.known.setdefault((head + b"[")[_JSON_KEY], (head, len(head), *way))


def _text(ways: _Ways) -> Receive:
    """For `{"type":1,"target":"X","arguments":[…]}` and a separator; one more separator inside is no JSON."""
    wire, known, long_way, limit = ways.wire, ways.known, ways.long_way, ways.wire.decoder.limit
    failed, returned = ways.dispatch.failed, ways.dispatch.returned

    def receive(data: Any, now: float) -> Sequence[WireEvent]:
        arguments = None
        try:
            head, begin, target, read, handlers = known[data[_JSON_KEY]]
            if (
                data.startswith(head)
                and data.endswith(_JSON_END)
                and len(data) <= limit
                and wire.straight
            ):
                arguments = read(data[begin:-2])
        except Exception:  # noqa: S110 (not known; or what a Struct of the caller raises: there it gets its words)
            pass
        if arguments is None:
            return long_way(data, now)
        wire.heard = now
        for handler in handlers:
            try:
                result = handler(*arguments)
            except Exception as error:
                failed(Invocation(target, arguments), error)
                continue
            if result is not None:
                returned(Invocation(target, arguments), result)
        return _NONE

    return receive


def _binary(ways: _Ways) -> Receive:
    """For a length of one or two bytes and `[1, {}, nil, "X", […], []]`."""
    wire, known, long_way = ways.wire, ways.known, ways.long_way
    failed, returned = ways.dispatch.failed, ways.dispatch.returned
    limit = min(wire.decoder.limit, _TWO_BYTES)

    def receive(data: Any, now: float) -> Sequence[WireEvent]:
        arguments = None
        try:
            size, begin = data[0], 1
            if size > 0x7F:
                size, begin = size & 0x7F | data[1] << 7, 2
            stop = begin + data[begin + 4] - 0x9B  # the fifth byte holds the size of the name
            target, read, handlers = known[data[begin:stop]]
            if begin + size == len(data) and data[-1] == 0x90 and size <= limit and wire.straight:
                arguments = read(data[stop:-1])
        except Exception:  # noqa: S110 (too short, not known, text, or as above)
            pass
        if arguments is None:
            return long_way(data, now)
        wire.heard = now
        for handler in handlers:
            try:
                result = handler(*arguments)
            except Exception as error:
                failed(Invocation(target, arguments), error)
                continue
            if result is not None:
                returned(Invocation(target, arguments), result)
        return _NONE

    return receive
