"""Recorded frames of ProjectX's hubs through the code that reads live ones.

Invariants: frames, types and readers are those of a live connection; a connection's books and merged quotes begin and
end with it.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from keepline.brokers.projectx.quotes import QuoteMerger
from keepline.brokers.projectx.stream_messages import MARKET_EVENTS, stream_types
from keepline.brokers.projectx.stream_reading import Heard, MarketReader, UserReader
from keepline.model import Account, DepthUpdate, Fill, MarketTrade, Order, Position, Quote
from keepline.stream.playback import Message, SignalRFrames

__all__ = ["ProjectXValues", "projectx_frames"]

_KINDS: Final = {
    Quote: "quote",
    MarketTrade: "trade",
    DepthUpdate: "depth",
    Order: "order",
    Fill: "fill",
    Position: "position",
    Account: "account",
}


def projectx_frames(encoding: str = "json") -> SignalRFrames:
    """The reader of a recorded connection, for a `Playback` that feeds a `ProjectXStream`.

    Args:
        encoding: `json` or `messagepack`, as the recording's head says.

    Raises:
        ConfigError: there is no such encoding.
    """
    return SignalRFrames(encoding, stream_types(encoding))


class ProjectXValues:
    """The reader of a recorded connection, for a `Playback` that runs into a function: kinds and values.

    Args:
        encoding: `json` or `messagepack`, as the recording's head says.
        wall: tells when the frame arrived that is being read.
    """

    def __init__(self, encoding: str, wall: Callable[[], datetime]) -> None:
        self._frames = projectx_frames(encoding)
        self._user = UserReader()
        self._market = MarketReader(QuoteMerger())
        self._wall = wall

    def receive(self, frame: bytes | str, now: float) -> list[Message]:
        """Each value as `(kind, (value,))`: `quote`, `trade`, `depth`, `order`, `fill`, `position`, `account`."""
        return [
            (_KINDS[type(found.value)], (found.value,))
            for channel, arguments in self._frames.receive(frame, now)
            for found in (
                self._market.read(channel, arguments, self._wall())
                if channel in MARKET_EVENTS
                else self._user.read(channel, arguments)
            )
            if isinstance(found, Heard)
        ]
