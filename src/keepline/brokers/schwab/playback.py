"""Recorded frames of Schwab's streamer through the code that reads live ones.

Invariants: the wire is that of a live connection; quotes begin and end with their connection; an activity that was sent
once more on the next one is told once.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from keepline.brokers.schwab.messages import StreamerInfo
from keepline.brokers.schwab.streamer_messages import (
    AccountActivity,
    Book,
    Candlestick,
    LevelOne,
    Notice,
    Screener,
)
from keepline.brokers.schwab.streamer_state import SeenActivity
from keepline.brokers.schwab.streamer_wire import SchwabWire
from keepline.stream.playback import Message, WireFrames

__all__ = ["SchwabValues", "schwab_frames"]

_NOBODY = StreamerInfo(streamer_socket_url="wss://recorded.invalid")
_KINDS: Final[dict[type, str]] = {
    Book: "depth",
    Candlestick: "candle",
    Screener: "screener",
    AccountActivity: "activity",
    Notice: "notice",
}


def schwab_frames(seen: SeenActivity | None = None) -> WireFrames:
    """The reader of a recorded connection, for a `Playback` that feeds a `SchwabStream`.

    Args:
        seen: which activities were told on earlier connections.
    """
    return WireFrames(SchwabWire(_NOBODY, seen=seen))


class SchwabValues:
    """The reader of a recorded connection, for a `Playback` that runs into a function: kinds and values.

    Args:
        seen: which activities were told; the same for all connections.
        wall: tells when the frame arrived that is being read.
    """

    def __init__(self, seen: SeenActivity, wall: Callable[[], datetime]) -> None:
        self._frames = schwab_frames(seen)
        self._wall = wall

    def receive(self, frame: bytes | str, now: float) -> list[Message]:
        """Each value as `(kind, (value,))`: `quote`, `depth`, `candle`, `screener`, `activity`, `notice`."""
        found: list[Message] = []
        for _, (_, value) in self._frames.receive(frame, now):
            if isinstance(value, LevelOne):
                found.append(("quote", (value.quote(self._wall()),)))
            elif (kind := _KINDS.get(type(value))) is not None:
                found.append((kind, (value,)))
        return found
