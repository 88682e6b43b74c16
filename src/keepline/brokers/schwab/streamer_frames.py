"""The frames of Schwab's streamer: what may be in one, read part by part, and the one shape of a request.

Invariants: a part that cannot be read spoils no other; unknown members are passed over; pure functions.

Source: Schwab's Streamer API guide, "Request format" and "Response format".
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from keepline.brokers.schwab.messages import StreamerInfo

__all__ = ["NOT_OURS", "Answer", "Content", "Data", "Frame", "Notify", "read_frame", "request"]

NOT_OURS = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What the readers raise for bytes that are none of the streamer's."""


class Frame(Struct):
    """One WebSocket message; its parts are still bytes."""

    response: list[Raw] | None = None
    notify: list[Raw] | None = None
    data: list[Raw] | None = None


class Content(Struct):
    """A code with words."""

    code: int | None = None
    msg: Any = None


class Answer(Struct):
    """A part of `response`: the answer to a request."""

    requestid: str | int | None = None
    content: Content = msgspec.field(default_factory=Content)


class Notify(Struct):
    """A part of `notify`: a heartbeat, or words of the streamer about itself."""

    heartbeat: Any = None
    content: Content | None = None


class Data(Struct):
    """A part of `data`: lines of one service."""

    service: str
    content: list[dict[str, Any]]
    timestamp: Any = None


read_frame = msgspec.json.Decoder(Frame).decode


def request(
    who: StreamerInfo, number: int, service: str, command: str, parameters: Mapping[str, str]
) -> str:
    """The frame of one request; nothing else may be in it, since Schwab works on several at once and fails some."""
    body = {
        "service": service,
        "command": command,
        "requestid": str(number),
        "SchwabClientCustomerId": who.schwab_client_customer_id,
        "SchwabClientCorrelId": who.schwab_client_correl_id,
        "parameters": parameters,
    }
    return msgspec.json.encode({"requests": [body]}).decode()
