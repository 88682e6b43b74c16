"""A screen: reads frames as a client does and holds the hub to what it promises."""

import zlib
from typing import Any

import msgspec

CONFLATE, DROP_OLDEST, NEVER = "conflate", "drop-oldest", "never"


def payload_of(frame: bytes) -> bytes:
    """The payload of one whole server frame, inflated on its own when it is compressed."""
    assert frame[0] in (0x81, 0xC1), frame[:2]
    assert not frame[1] & 0x80, "a server does not mask"
    length, at = frame[1], 2
    if length >= 126:
        at = 4 if length == 126 else 10
        length = int.from_bytes(frame[2:at])
        assert length >= (126 if at == 4 else 65536), "not the shortest form"
    payload = frame[at:]
    assert len(payload) == length
    if frame[0] == 0xC1:
        payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
    return payload


def read(frame: bytes) -> list[dict[str, Any]]:
    """The messages of a frame."""
    return msgspec.json.decode(payload_of(frame))


class Screen:
    """What one client knows: where it is in each channel, the state that it shows, and what it saw."""

    def __init__(self) -> None:
        self.policy: dict[str, str] = {}
        self.epoch: dict[str, str] = {}
        self.position: dict[str, int | None] = {}
        self.state: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, list[int]] = {}
        self.lost: dict[str, int] = {}
        self.gaps: list[dict[str, Any]] = []
        self.other: list[dict[str, Any]] = []
        self.subscribed: set[str] = set()
        self.largest = 0

    def frame(self, frame: bytes) -> None:
        messages = read(frame)
        self.largest = max(self.largest, len(messages))
        for message in messages:
            self.message(message)

    def message(self, message: dict[str, Any]) -> None:
        kind, channel = message["type"], message.get("channel")
        if kind == "subscribed":
            self._begin(channel, message["data"])
        elif kind == "unsubscribed":
            self.subscribed.discard(channel)
        elif kind == "gap":
            self._gap(channel, message["data"])
        elif "offset" not in message:
            self.other.append(message)
        else:
            assert channel in self.subscribed, f"{kind} of {channel} without a subscription"
            assert message["epoch"] == self.epoch[channel]
            self._value(kind, channel, message)

    def resume(self, channels: list[str]) -> dict[str, dict[str, Any]]:
        """What it would say on a new connection."""
        return {
            name: {"epoch": self.epoch[name], "offset": self.position[name]}
            for name in channels
            if self.position.get(name) is not None
        }

    def _begin(self, channel: str, data: dict[str, Any]) -> None:
        self.subscribed.add(channel)
        self.policy[channel] = data["policy"]
        self.epoch[channel] = data["epoch"]
        if not data["recovered"]:
            self.position[channel] = None
        assert self.position.get(channel) is not None or not data["recovered"]

    def _gap(self, channel: str, data: dict[str, Any]) -> None:
        assert channel in self.subscribed
        assert self.policy[channel] != CONFLATE or data["reason"] != "slow"
        self.gaps.append({"channel": channel, **data})
        self.lost[channel] = self.lost.get(channel, 0) + (data["count"] or 0)
        if data["reason"] in ("slow", "retention"):
            assert data["count"] == data["to"] - data["from"] + 1 > 0
            if self.position[channel] is not None:
                assert data["from"] == self.position[channel] + 1, (data, self.position[channel])
        self.position[channel] = data["to"]
        if self.policy[channel] == NEVER and data["from"] is None:
            self.position[channel] = None

    def _value(self, kind: str, channel: str, message: dict[str, Any]) -> None:
        offset, before = message["offset"], self.position[channel]
        policy = self.policy[channel]
        if kind == "snapshot":
            self._snapshot(channel, offset, message["data"])
            return
        if before is None:
            assert policy == NEVER, "the first thing is a snapshot"
        else:
            assert offset > before, f"{channel}: {offset} again after {before}"
            assert policy == CONFLATE or offset == before + 1, (
                f"{channel}: a hole {before}..{offset}"
            )
        self.position[channel] = offset
        self.seen.setdefault(channel, []).append(offset)
        self._show(channel, message.get("key", ""), message["data"])

    def _snapshot(self, channel: str, offset: int, data: dict[str, Any]) -> None:
        before = self.position[channel]
        offsets = [item["offset"] for item in data["items"]]
        assert offsets == sorted(set(offsets))
        assert all(each <= offset for each in offsets)
        if data["partial"]:
            assert before is not None
            assert self.policy[channel] == CONFLATE
            assert all(each > before for each in offsets)
        else:
            assert before is None or offset >= before
            self.state[channel] = {}
        self.position[channel] = offset
        for item in data["items"]:
            self._show(channel, item["key"], item["data"])

    def _show(self, channel: str, key: str, value: Any) -> None:
        state = self.state.setdefault(channel, {})
        state.pop(key, None) if value is None else state.__setitem__(key, value)
